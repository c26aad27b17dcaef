"""Procrustes alignment and FreiHAND's protocol beside the code in common use, on the CPU."""

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from benchmarks.timing import medians
from metrics import evaluate, procrustes_align


def common_procrustes(source: Tensor, target: Tensor) -> Tensor:
    """Similarity alignment as most repositories of the field write it: one batch, torch.svd."""
    source, target = source.transpose(1, 2), target.transpose(1, 2)
    source_mean, target_mean = source.mean(2, keepdim=True), target.mean(2, keepdim=True)
    x, y = source - source_mean, target - target_mean
    variance = (x**2).sum(dim=(1, 2))
    cross = torch.matmul(x, y.transpose(1, 2))
    u, _, v = torch.svd(cross)
    flip = torch.eye(3, dtype=source.dtype).repeat(len(source), 1, 1)
    flip[:, 2, 2] = torch.sign(torch.linalg.det(u @ v.transpose(1, 2)))
    rotation = v @ flip @ u.transpose(1, 2)
    scale = (rotation @ cross).diagonal(dim1=1, dim2=2).sum(1) / variance
    scale = scale[:, None, None]
    offset = target_mean - scale * (rotation @ source_mean)
    return (scale * (rotation @ source) + offset).transpose(1, 2)


def official_structure(prediction: Mapping[str, np.ndarray], target: Mapping[str, np.ndarray]
                        ) -> dict[str, float]:
    """FreiHAND's table the way its script goes about it: sample by sample, point by point."""
    def align(truth, points):
        x, y = points - points.mean(0), truth - truth.mean(0)
        x_norm, y_norm = np.linalg.norm(x) + 1e-8, np.linalg.norm(y) + 1e-8
        u, singular, vh = np.linalg.svd((y / y_norm).T @ (x / x_norm))
        return x / x_norm @ (u @ vh).T * singular.sum() * y_norm + truth.mean(0)

    def f_score(truth, points, threshold):
        to_points, _ = cKDTree(points).query(truth)
        to_truth, _ = cKDTree(truth).query(points)
        recall = sum(d < threshold for d in to_points) / len(to_points)
        precision = sum(d < threshold for d in to_truth) / len(to_truth)
        return 2 * recall * precision / (recall + precision) if recall + precision else 0.0

    kinds = [(name, aligned) for name in ("joints", "vertices") for aligned in (True, False)]
    errors = {kind: [[] for _ in range(target[kind[0]].shape[1])] for kind in kinds}
    scores = {}
    for index in range(len(target["joints"])):
        for name, aligned in kinds:
            truth, points = target[name][index], prediction[name][index]
            points = align(truth, points) if aligned else points
            for keypoint, error in enumerate(np.sqrt(np.sum((truth - points)**2, 1))):
                errors[name, aligned][keypoint].append(error)
            for threshold in (0.005, 0.015) if name == "vertices" else ():
                key = f"F@{1000 * threshold:g}{'' if aligned else ' raw'}"
                scores.setdefault(key, []).append(f_score(truth, points, threshold))

    report = {name: np.mean(values) for name, values in scores.items()}
    steps = np.linspace(0, 0.05, 100)
    for (name, aligned), keypoints in errors.items():
        means, areas = [], []
        for keypoint in map(np.array, keypoints):
            curve = np.array([np.mean((keypoint <= step).astype(float)) for step in steps])
            areas.append(((curve[1:] + curve[:-1]) / 2 * np.diff(steps)).sum() / steps[-1])
            means.append(keypoint.mean())
        short, mean = ("J", "MPJPE") if name == "joints" else ("V", "MPVPE")
        report[f"{'PA-' if aligned else ''}{mean}"] = 1000 * np.mean(means)
        report[f"AUC-{short}{'' if aligned else ' raw'}"] = np.mean(areas)
    return report


def benchmark_procrustes(samples: int, points: int, rounds: int = 5) -> None:
    """Print our time, the common code's on the whole batch, and the common code's on pieces."""
    generator = torch.Generator().manual_seed(0)
    source = 0.05 * torch.randn(samples, points, 3, generator=generator)
    target = source + 0.01 * torch.randn(samples, points, 3, generator=generator)
    pieces = list(zip(source.split(64), target.split(64), strict=True))  # these fit into caches
    times = medians({
        "ours": lambda: procrustes_align(source, target),
        "whole": lambda: common_procrustes(source, target),
        "split": lambda: torch.cat([common_procrustes(*piece) for piece in pieces])}, 0, rounds)
    exact = common_procrustes(source.double(), target.double())
    error = (procrustes_align(source, target) - exact).abs().max()
    ours, whole, split = times["ours"], times["whole"], times["split"]
    print(f"  {samples} x {points}: {ours:.0f} ms; common {whole:.0f} ms, {whole / ours:.2f} times "
          f"as long; common in batches of 64 {split:.0f} ms, {split / ours:.2f} times; "
          f"largest difference {error:.0e} m", flush=True)


def benchmark_protocol(samples: int, rounds: int = 3, vertices: int = 778) -> None:
    """Print the time of evaluate("freihand") and of the official script's structure."""
    random = np.random.default_rng(0)
    target = {name: 0.05 * random.normal(size=(samples, count, 3))
              for name, count in (("joints", 21), ("vertices", vertices))}
    prediction = {name: points + 0.006 * random.normal(size=points.shape) + 0.01
                  for name, points in target.items()}
    tables = {}
    times = medians({
        "ours": lambda: tables.update(ours=evaluate("freihand", prediction, target)),
        "official": lambda: tables.update(official=official_structure(prediction, target))},
        0, rounds)
    difference = max(abs(tables["ours"][name] - value)
                     for name, value in tables["official"].items())
    print(f"  {times['ours'] / 1e3:.1f} s; official structure {times['official'] / 1e3:.1f} s; "
          f"{times['ours'] / times['official']:.3f} of it; largest difference in the table "
          f"{difference:.0e}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks metrics", description=__doc__)
    parser.add_argument("--samples", type=int, default=3960, help="default: FreiHAND's test set")
    samples = parser.parse_args(argv).samples
    print(f"{torch.get_num_threads()} threads, medians of interleaved runs\n"
          "procrustes_align, float32, against the common batched torch SVD:")
    benchmark_procrustes(samples, 778)
    benchmark_procrustes(max(1, samples // 4), 6890)
    print(f"evaluate('freihand'), {samples} samples, against the structure of the official script,"
          "\na loop over samples with a k-d tree for each score (scipy's in place of Open3D's):")
    benchmark_protocol(samples)
