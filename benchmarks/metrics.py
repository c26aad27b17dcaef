"""Procrustes alignment beside the code in common use, on the CPU."""

import argparse

import torch
from torch import Tensor

from benchmarks.timing import table
from metrics import procrustes_align


def common_procrustes(source: Tensor, target: Tensor) -> Tensor:
    """Similarity alignment as most repositories of the field write it: one batch, torch.svd."""
    source, target = source.transpose(1, 2), target.transpose(1, 2)
    source_mean, target_mean = source.mean(2, keepdim=True), target.mean(2, keepdim=True)
    x, y = source - source_mean, target - target_mean
    cross = torch.matmul(x, y.transpose(1, 2))
    u, _, v = torch.svd(cross)
    flip = torch.eye(3, dtype=source.dtype).repeat(len(source), 1, 1)
    flip[:, 2, 2] = torch.sign(torch.linalg.det(u @ v.transpose(1, 2)))
    rotation = v @ flip @ u.transpose(1, 2)
    scale = (rotation @ cross).diagonal(dim1=1, dim2=2).sum(1) / (x**2).sum(dim=(1, 2))
    offset = target_mean - scale[:, None, None] * (rotation @ source_mean)
    return (scale[:, None, None] * (rotation @ source) + offset).transpose(1, 2)


def run(arguments: argparse.Namespace) -> None:
    for samples, points in ((3960, 778), (990, 6890)):
        source = 0.05 * torch.randn(samples, points, 3)
        both = source, source + 0.01 * torch.randn(samples, points, 3)
        pieces = list(zip(*(x.split(64) for x in both), strict=True))  # these fit into caches
        table(f"Procrustes, {samples} x {points} points", {
            "ours": lambda both=both: procrustes_align(*both),
            "common, whole": lambda both=both: common_procrustes(*both),
            "common, in batches of 64": lambda pieces=pieces: [
                common_procrustes(*piece) for piece in pieces]}, arguments.seconds)
