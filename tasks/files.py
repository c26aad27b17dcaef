"""What a run leaves: checkpoints, tables of steps and of scores."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import sem  # standard error of the mean

import bodymodels
from files import first_line
from networks.overlays import png
from sets.samples import fcntl
from tasks.base import Errors, Predictions, Scores, Task, is_error
from weights.files import check_whole, require


def save(content: Mapping[str, object], path: Path) -> None:
    """Do torch.save, but replace the file atomically; OSError leaves the old file and no other."""
    temporary = path.with_name(f".{path.name}.unfinished")  # the same name each time: none pile up
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save has RuntimeError for a full disk
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(f"cannot write {path} ({first_line(error)}): make room or choose another "
                      "--out; what was there is kept") from error


def claim(out: Path) -> IO:
    """Keep other runs out of a folder while the result is open; ValueError if one is in it."""
    lock = open(out / ".lock", "w")
    try:
        if fcntl:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise ValueError(f"another run is writing to {out}: wait for it, or choose another --out"
                         ) from error
    except OSError:  # a disk without locks
        pass
    return lock


def read_run(path: Path) -> dict[str, object] | None:
    """Read the checkpoint of a run; None if there is none, ValueError if it is damaged."""
    if not path.exists():
        return None
    advice = "restore it from a copy, or move it away to start anew"
    try:
        check_whole(path)
        run = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise half a dozen types
        raise ValueError(f"{path} is damaged ({first_line(error)}): {advice}") from error
    require({"optimizer", "preset"} <= set(run), f"{path} is not a run's checkpoint: {advice}; to "
            "start from its weights use --checkpoint and another --out")
    return run


def read_content(path: Path) -> dict[str, object]:
    """Read the content of a checkpoint of train.py; empty for one of another program."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # readable, since the model has been loaded: objects of another program
        return {}
    ours = isinstance(content, dict) and "config" in content and "name" in content
    return content if ours else {}


# ------------------------------------------------------------------------------------- tables


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the complete rows of a csv file; the last may be torn. Empty without a file."""
    if not path.exists():
        return []
    with open(path, newline="", errors="replace") as file:
        return [row for row in csv.DictReader(line.replace("\0", "") for line in file)
                if None not in row.values() and row.get("step", "0").isdecimal()]


def cut_table(path: Path, step: int) -> None:
    """Drop the rows after a step, which a resumed run writes again, and a torn one."""
    rows = [row for row in read_table(path) if int(row["step"]) <= step]
    if not rows:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    bodymodels.write_atomically(path, text.getvalue().encode())


def add_row(path: Path, row: Mapping[str, float]) -> None:
    """Write a row at the end of a csv file, at once; a new file begins with the names.

    Terms that only a resumed run has are not written.
    """
    with open(path, "a+", newline="") as file:
        file.seek(0)
        names = next(csv.reader(file), None)
        writer = csv.DictWriter(file, names or list(row), "nan", "ignore")
        if names is None:
            writer.writeheader()
        writer.writerow({name: f"{value:.9g}" for name, value in row.items()})


def add_scores(out: Path, step: int, scores: Scores) -> bool:
    """Write a row of scores.csv; returns whether its PA-MPJPE, else its MPJPE, is the least so far.
    """
    path, row = out / "scores.csv", {"step": step, **next(iter(scores.values()), {})}
    rows = read_table(path)
    if step not in (int(other["step"]) for other in rows):
        add_row(path, row)
        print(f"\ntest at step {step}: " + "  ".join(
            f"{name} {value:.4g}" for name, value in list(row.items())[1:]), flush=True)
    metric = next((name for end in ("PA-MPJPE", "MPJPE") for name in row if name.endswith(end)),
                  None)  # "clear PA-MPJPE", say
    if metric is None:
        return False
    before = [float(other.get(metric, "nan")) for other in rows if int(other["step"]) < step]
    least = np.nanmin([math.inf, *before])
    return float(f"{row[metric]:.9g}") < least  # NaN never is


# ------------------------------------------------------------------------------------ reports


def report(task: Task, predictions: Predictions, scores: Scores) -> None:
    """Print the table of scores; write errors, pictures and the file of the data set's toolkit.

    errors.npz has the errors of every sample, "PREDICTOR: METRIC", to compare two runs by.
    """
    out, errors = task.arguments.out, predictions.errors
    if scores:
        print(f"\n{score_table(scores)}\nMPJPE, PVE and the like in mm; F-scores and AUC from 0 to "
              f"1.\n{task.REMARK}{comparisons(task, errors)}{task.notes(predictions)}")
    else:
        print("\nno annotation to score against\n")
    if errors:
        content = io.BytesIO()
        np.savez(content, **{f"{name}: {metric}": values.astype(np.float32)
                             for name, rows in errors.items() for metric, values in rows.items()})
        bodymodels.write_atomically(out / "errors.npz", content.getvalue())
    task.write(predictions, out)
    draw_predictions(task, predictions, out / "predictions.png")
    if not task.arguments.eval:
        draw_curves(out)


def score_table(scores: Scores) -> str:
    """Format scores: a line per predictor and a column per metric; a predictor may lack one."""
    metrics = list(dict.fromkeys(metric for values in scores.values() for metric in values))
    width = max(map(len, scores)) + 2
    column = max(10, *(len(metric) + 2 for metric in metrics))
    lines = [" " * width + "".join(f"{metric:>{column}}" for metric in metrics)]
    for name, values in scores.items():
        lines.append(f"{name:{width}}" + "".join(
            f"{values.get(metric, math.nan):{column}.3f}" for metric in metrics))
    return "\n".join(lines)


def comparisons(task: Task, errors: Errors) -> str:
    """Describe mean differences of errors, paired by sample, with their standard errors."""
    text = ""
    for name, other in task.COMPARED:
        if name in errors and other in errors:
            text += f"{name} minus {other}: "
            for metric, values in errors[name].items():
                each = values - errors[other][metric]
                text += f"{metric} {np.nanmean(each):+.2f} +- {sem(each, nan_policy='omit'):.2f}  "
            text = text.rstrip() + "\n"
    return text


def draw_predictions(task: Task, predictions: Predictions, path: Path) -> None:
    """Draw the first test images, each with the predicted and the true mesh over it, as one PNG.

    A mesh without a known translation is left out.
    """
    images = []
    for index in range(min(12, len(task.test_set))):
        photo, K, *meshes = task.scene(index, predictions)
        drawn = [bodymodels.render(mesh, task.faces, K, photo.shape[:2], background=photo,
                                   opacity=0.75, supersample=2).image
                 if mesh[:, 2].min() > 0 else photo for mesh in meshes]
        image = np.concatenate([photo, *drawn], 1).clip(0, 1)
        images.append(np.pad(image, ((0, 8), (0, 8), (0, 0)), constant_values=1.0))
    images += [np.ones_like(images[0])] * (-len(images) % 3)  # three columns
    bodymodels.write_atomically(path, png(np.concatenate([
        np.concatenate(images[start:start + 3], 1) for start in range(0, len(images), 3)])))


def draw_curves(out: Path) -> None:
    """Draw losses and test errors over the steps, from log.csv and scores.csv, to curves.png."""
    losses, scores = read_table(out / "log.csv"), read_table(out / "scores.csv")
    loss_names = list(losses[0])[1:list(losses[0]).index("learning_rate")] if losses else []
    error_names = [name for name in scores[0] if is_error(name)]
    figure = Figure(figsize=(11, 4), layout="tight")
    panels = (("training losses", losses, loss_names), ("test errors", scores, error_names))
    for axes, (title, rows, names) in zip(figure.subplots(1, 2), panels, strict=True):
        window = max(1, len(rows) // 100)  # running mean over a hundredth
        steps = [int(row["step"]) for row in rows[window - 1:]]
        for name in names:
            values = np.convolve([float(row[name]) for row in rows], np.ones(window) / window,
                                 "valid")
            axes.plot(steps, values, label=name, marker="." if len(rows) < 50 else "")
        if names:
            axes.legend(fontsize="small")
        axes.set(title=title, xlabel="step", yscale="log")
    save_figure(figure, out / "curves.png")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a matplotlib figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, dpi=110)
    bodymodels.write_atomically(path, content.getvalue())
