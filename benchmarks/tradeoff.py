"""SimpleHand's Fig. 1: error against time, the paper's models and our own, as one figure."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import simplehand
import weights.simplehand
from benchmarks.speed import DEVICE, medians
from networks.backbones import simplehand_model
from tables import TABLES
from tasks.files import save_figure

Points = dict[str, tuple[float, float]]  # ms per image at batch 1, PA-MPJPE in mm


def read_runs(folder: Path) -> dict[str, tuple[simplehand.Config, float]]:
    """Read what tables.py has trained: row -> config and PA-MPJPE in mm, the mean over seeds."""
    rows: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("simplehand */seed */results.json")):
        run = json.loads(path.read_text())
        if run["scores"]:  # its test split has annotation
            rows.setdefault(path.parent.parent.name.removeprefix("simplehand "), []).append(run)
    return {name: (weights.simplehand.config_class(runs[0]["config"])(**runs[0]["config"]),
                   float(np.mean([run["scores"]["SimpleHand"]["PA-MPJPE"] for run in runs])))
            for name, runs in rows.items()}


@torch.inference_mode()
def measure(rows: dict[str, tuple[simplehand.Config, float]], seconds: float) -> Points:
    """Time each row's fused model on one crop; weights are random, times do not depend on them."""
    ways = {}
    for name, (config, _) in rows.items():
        crop = torch.zeros(1, 3, config.image_size, config.image_size, dtype=torch.uint8)
        ways[name] = partial(simplehand_model(config).eval().fuse().to(DEVICE), crop.to(DEVICE))
    return {name: (time, rows[name][1]) for name, time in medians(ways, seconds).items()}


def papers_points() -> Points:
    """The paper's models whose speed its Table 1 has."""
    table = TABLES["simplehand"]["table1"]
    fps, error = table.paper.index("FPS"), table.paper.index("PA-MPJPE")
    return {name: (1e3 / float(row[fps]), float(row[error]))
            for name, row in table.figures.items() if row[fps] != "-"}


def run(arguments: argparse.Namespace) -> None:
    rows = read_runs(arguments.runs)
    if not rows:
        raise SystemExit(f"benchmarks: no runs of SimpleHand in {arguments.runs}: `python tables.py"
                         " simplehand table7` trains some; or give tables.py's --out with --runs")
    ours = measure(rows, arguments.seconds)
    print(f"| model | ms per image, batch 1, {DEVICE}, {torch.get_num_threads()} threads | "
          "PA-MPJPE, mm |\n|---|---|---|")
    for name, (time, error) in sorted(ours.items(), key=lambda item: item[1]):
        print(f"| {name} | {time:.2f} | {error:.2f} |")
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, title, points in zip(figure.subplots(1, 2), (
            "the paper: FreiHAND, RTX 2080 Ti", f"ours, {DEVICE}"), (papers_points(), ours),
            strict=True):
        for name, point in points.items():
            axes.plot(*point, "o", color="C3" if name.startswith(("ours", "unchanged")) else "C0")
            axes.annotate(name, point, xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.margins(x=0.25)  # room for the names
        axes.set(title=title, xlabel="ms per image", ylabel="PA-MPJPE, mm")
    save_figure(figure, arguments.runs / "tradeoff.png")
    print(f"in {arguments.runs / 'tradeoff.png'}")
