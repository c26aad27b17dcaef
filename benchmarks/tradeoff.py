"""SimpleHand's Fig. 1: error against time, the paper's models and our own, as one figure."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

import simplehand
import weights.simplehand
from benchmarks.timing import medians
from networks.backbones import simplehand_model
from tables import TABLES
from tasks.base import save_figure


class Point(NamedTuple):
    """A model of the figure."""

    time: float  # ms per image, batch 1
    error: float  # PA-MPJPE, mm


def read_runs(folder: Path) -> dict[str, tuple[simplehand.Config, float]]:
    """Read what tables.py has trained: row -> config and PA-MPJPE in mm, the mean over seeds.

    Raises ValueError if the folder has no run of SimpleHand.
    """
    rows: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("simplehand */seed */results.json")):
        name = path.parent.parent.name.removeprefix("simplehand ")
        rows.setdefault(name, []).append(json.loads(path.read_text()))
    if not rows:
        raise ValueError(f"no runs of SimpleHand in {folder}: `python tables.py simplehand table7` "
                         "trains some; or give tables.py's --out with --runs")
    return {name: (weights.simplehand.config_class(runs[0]["config"])(**runs[0]["config"]),
                   float(np.mean([run["scores"]["SimpleHand"]["PA-MPJPE"] for run in runs])))
            for name, runs in rows.items()}


@torch.inference_mode()
def measure(rows: Mapping[str, tuple[simplehand.Config, float]], seconds: float,
            device: str) -> dict[str, Point]:
    """Time each row's fused model on one crop; weights are random, times do not depend on them."""
    ways = {}
    for name, (config, _) in rows.items():
        crop = torch.zeros(1, 3, config.image_size, config.image_size, dtype=torch.uint8)
        ways[name] = partial(simplehand_model(config).eval().fuse().to(device), crop.to(device))
    return {name: Point(time, rows[name][1]) for name, time in medians(ways, seconds).items()}


def papers_points() -> dict[str, Point]:
    """The paper's models whose speed its Table 1 has."""
    table = TABLES["simplehand"]["table1"]
    fps, error = table.paper.index("FPS"), table.paper.index("PA-MPJPE")
    return {name: Point(1e3 / float(row[fps]), float(row[error]))
            for name, row in table.figures.items() if row[fps] != "-"}


def draw(panels: Mapping[str, Mapping[str, Point]], path: Path) -> None:
    """Draw a panel of error against time for each title."""
    figure = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    for axes, (title, points) in zip(np.atleast_1d(figure.subplots(1, len(panels))),
                                     panels.items(), strict=True):
        for name, point in points.items():
            axes.plot(*point, "o", color="C3" if name.startswith(("ours", "unchanged")) else "C0")
            axes.annotate(name, point, xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.set(title=title, xlabel="ms per image", ylabel="PA-MPJPE, mm")
        axes.margins(x=0.2)
    save_figure(figure, path)


def run(arguments: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        points = measure(read_runs(arguments.runs), arguments.seconds, device)
    except ValueError as error:
        raise SystemExit(f"benchmarks: {error}") from None
    print(f"| model | ms per image, batch 1, {device}, {torch.get_num_threads()} threads | "
          "PA-MPJPE, mm |\n|---|---|---|")
    for name, point in sorted(points.items(), key=lambda item: item[1]):
        print(f"| {name} | {point.time:.2f} | {point.error:.2f} |")
    path = arguments.runs / "tradeoff.png"
    draw({"the paper: FreiHAND, RTX 2080 Ti": papers_points(), f"ours, {device}": points}, path)
    print(f"in {path}")
