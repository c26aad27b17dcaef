"""Skinning beside the smplx package, and Procrustes alignment beside the usual code, on the CPU."""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import table
from bodymodels import BodyModel, load_model
from metrics import procrustes_align

BATCHES = {"hand_right": (1, 64), "body": (1, 64), "wholebody": (1, 16)}
POINTS = ((3960, 778), (990, 6890))  # samples, points


def smplx_vertices(model: BodyModel) -> Callable[[Tensor, Tensor], Tensor]:
    """smplx.lbs with the model's arrays in the layouts of smplx's own modules.

    Those store posedirs as a transposed view (P, 3V) with strides (1, P), which costs time.
    """
    from smplx.lbs import lbs
    offsets = model.offsets.view(-1, 3, model.J_regressor.shape[1]).transpose(1, 2)  # (S + P, V, 3)
    components = model.num_betas + model.num_expression
    shapedirs = offsets[:components].permute(1, 2, 0).contiguous()
    posedirs = offsets[components:].flatten(1).T.contiguous().T
    weights, parents = model.skinning_weights.T.contiguous(), torch.tensor(model.parents)
    return lambda shape, pose: lbs(shape, pose.flatten(1), model.v_template, shapedirs, posedirs,
                                   model.J_regressor, parents, weights)[0]


def our_vertices(model: BodyModel) -> Callable[[Tensor, Tensor], Tensor]:
    """The same of bodymodels.py; shape: betas and expression."""
    return lambda shape, pose: model(
        shape[:, :model.num_betas], pose, shape[:, model.num_betas:]).vertices


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


def backward(poser: Callable[[Tensor, Tensor], Tensor], *inputs: Tensor) -> None:
    poser(*(x.clone().requires_grad_() for x in inputs)).sum().backward()


def run(arguments: argparse.Namespace) -> None:
    for name, batch in [(name, batch) for name, batches in BATCHES.items() for batch in batches]:
        model = load_model(name)
        inputs = (torch.randn(batch, len(model.skeleton_basis)),
                  0.4 * torch.randn(batch, len(model.parents), 3))
        posers = {"smplx": smplx_vertices(model), "ours": our_vertices(model)}
        ways = {way: partial(poser, *inputs) for way, poser in posers.items()}
        ways |= {f"{way}, and backward": partial(backward, poser, *inputs)
                 for way, poser in posers.items()}
        table(f"{name}, batch {batch}", ways, arguments.seconds)
    for samples, points in POINTS:
        source = 0.05 * torch.randn(samples, points, 3)
        both = source, source + 0.01 * torch.randn(samples, points, 3)
        pieces = list(zip(*(x.split(64) for x in both), strict=True))  # these fit into caches
        table(f"Procrustes, {samples} x {points} points", {
            "ours": partial(procrustes_align, *both),
            "common, whole": partial(common_procrustes, *both),
            "common, in batches of 64": lambda pieces=pieces: [
                common_procrustes(*piece) for piece in pieces]}, arguments.seconds)
