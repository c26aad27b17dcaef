"""What a run leaves and tells: checkpoints, tables of steps and scores, curves, its progress."""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import io
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import bodymodels
from tasks.base import Scores, Task, is_error, save_figure
from tasks.ranks import World
from weights.files import check_whole


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
            temporary.unlink(missing_ok=True)
        kept = "; the file that was there is kept" if path.exists() else ""
        raise OSError(f"cannot write {path} ({first_line(error)}){kept}: make room or choose "
                      "another --out") from error


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
    needed = ("model", "optimizer", "scaler", "step", "position", "skipped", "seconds", "name",
              "preset", "data", "config")
    missing = [name for name in needed if not isinstance(run, dict) or name not in run]
    if missing:
        raise ValueError(f"{path} is not a run's checkpoint, it lacks {', '.join(missing)}: "
                         f"{advice}; to start from its weights use --checkpoint and another --out")
    return run


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, and the second after a colon."""
    first, *others = str(error).strip().split("\n")
    if first.endswith(":") and others:  # of load_state_dict: the second says what does not fit
        first += " " + others[0].strip()
    return (first or type(error).__name__)[:200]


class Table:
    """A csv file that a resumed run continues; rows of steps that it takes again are dropped."""

    def __init__(self, path: Path, columns: list[str], step: int) -> None:
        rows = [row for row in read_table(path) if int(row["step"]) <= step]
        self.steps = {int(row["step"]) for row in rows}
        text = io.StringIO()
        csv.DictWriter(text, columns).writerows([dict(zip(columns, columns, strict=True)), *rows])
        bodymodels.write_atomically(path, text.getvalue().encode())
        self.file = open(path, "a", newline="")
        self.writer = csv.DictWriter(self.file, columns)

    def add(self, row: dict[str, float]) -> None:
        """Write one row, at once."""
        self.steps.add(row["step"])
        self.writer.writerow({name: f"{value:.9g}" for name, value in row.items()})
        self.file.flush()


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the complete rows of a csv file; the last may be torn. Empty without a file.

    Raises ValueError if a value is no number, or a step none from 0 on.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline="") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
        for row in rows:
            int(row["step"])
            list(map(float, row.values()))
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged ({error!r}): move it away, and the run continues "
                         "without the rows in it") from error
    return rows


def add_scores(out: Path, step: int, scores: Scores, best: str) -> bool:
    """Write a row of scores.csv; returns whether its score `best` is the best so far."""
    row = {"step": step, **next(iter(scores.values()), {})}
    earlier = [other for other in read_table(out / "scores.csv") if int(other["step"]) < step]
    metric = next((name for name in row if name.endswith(best)), None)  # "clear PA-MPJPE", say
    table = Table(out / "scores.csv", list(row), step)
    if step not in table.steps:
        table.add(row)
        print(f"\ntest at step {step}: " + "  ".join(
            f"{name} {value:.4g}" for name, value in list(row.items())[1:]), flush=True)
    table.file.close()
    if metric is None or not math.isfinite(row[metric]):
        return False
    values = [float(other[metric]) for other in earlier if metric in other]
    sign = 1 if is_error(metric) else -1
    return all(sign * float(f"{row[metric]:.9g}") < sign * value for value in values)


def score_table(scores: Scores) -> str:
    """Format scores: a line per metric and a column per predictor, or transposed if they are more.

    The last column (line) is the ratio of the first predictor's scores to the last one's. A
    predictor may lack a score.
    """
    names = list(scores)
    cells = {}
    for metric in dict.fromkeys(metric for values in scores.values() for metric in values):
        values = [scores[name].get(metric, math.nan) for name in names]
        cells[metric] = [*values, values[0] / values[-1] if values[-1] else math.nan]
    heads, lines = [*names, "ratio"], list(cells.items())
    if len(names) > len(cells):
        heads, lines = list(cells), list(zip(heads, zip(*cells.values(), strict=True), strict=True))
    width = max(12, *(len(name) for name, _ in lines))
    column = max(14, *(len(head) + 2 for head in heads))
    return "\n".join([" " * width + "".join(f"{head:>{column}}" for head in heads)] + [
        f"{name:{width}}" + "".join(f"{value:{column}.3f}" for value in values)
        for name, values in lines])


def draw_curves(out: Path) -> None:
    """Draw losses and test errors over the steps, from log.csv and scores.csv, to curves.png."""
    losses, scores = read_table(out / "log.csv"), read_table(out / "scores.csv")
    loss_names = list(losses[0])[1:list(losses[0]).index("learning_rate")]
    error_names = [name for name in scores[0] if is_error(name)]
    figure = Figure(figsize=(11, 4))
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.12, top=0.92, wspace=0.18)
    panels = (("training losses", losses, loss_names), ("test errors", scores, error_names))
    for axes, (title, rows, names) in zip(figure.subplots(1, 2), panels, strict=True):
        window = np.ones(max(1, len(rows) // 100))  # running mean over a hundredth
        steps = [int(row["step"]) for row in rows[len(window) - 1:]]
        for name in names:
            values = np.convolve([float(row[name]) for row in rows], window / len(window), "valid")
            axes.plot(steps, values, label=name, marker="." if len(rows) < 50 else "")
        if names:
            axes.legend(fontsize="small")
        axes.set(title=title, xlabel="step", yscale="log")
    save_figure(figure, out / "curves.png")


def opening(task: Task, world: World, model: nn.Module, step: int,
            run: Mapping | None) -> Iterator[str]:
    """Yield the first lines of a run: model, steps, batch, cache, and notes.

    step: finished ones. run: the checkpoint that the run continues from.
    """
    config, arguments, cache = task.config, task.arguments, Path(task.arguments.cache)
    accumulate = task.settings.accumulate
    count = sum(parameter.numel() for parameter in model.parameters())
    yield (f"{type(model).__name__}, {count:,} parameters, on {world.size} x "
           f"{world.device.type}: from step {step} to {config.steps}, in {arguments.out}")
    parts = f" in {accumulate} parts" if accumulate > 1 else ""
    planned = task.PRESETS[arguments.preset].batch_size
    changed = "" if planned == config.batch_size else f", where the preset has {planned}"
    yield (f"{config.batch_size} {task.UNIT} per step: {config.batch_size // world.size} in each "
           f"process{parts}{changed}")
    if cache.is_dir():
        size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
        yield (f"cached data: {size / 2**20:,.0f} MiB in {cache}, which you can delete after "
               "training")
    for name, number in numbers_of(world).items():
        before = run.get(name, number) if run else number
        if before != number:
            yield (f"note: this run was trained with {name}={before}, and continues with "
                   f"{name}={number}: the samples of each step stay the same, the last bits of the "
                   "results do not")
    if world.device.type == "cpu" and arguments.preset in ("paper", "single_gpu", "h200"):
        yield "note: no GPU can be used, so this preset trains on the CPU"
    yield from (f"note: {note}" for note in ([] if run else task.notes()))


def numbers_of(world: World) -> dict[str, int]:
    """Return the numbers of processes and, on a CPU, of threads: rounding depends on them."""
    threads = {} if world.device.type == "cuda" else {"threads": torch.get_num_threads()}
    return {"processes": world.size, **threads}


def describe(task: Task, origin: Mapping, world: World) -> dict[str, object]:
    """Return what a checkpoint tells of its origin; a continued run keeps its first command."""
    arguments = task.arguments
    launcher = "python" if world.size == 1 else f"torchrun --nproc-per-node {world.size}"
    command = f"{launcher} train.py {shlex.join(map(without_folder, arguments.argv))}"
    known = origin if arguments.eval or "optimizer" in origin else {}
    return {
        "name": arguments.name, "preset": arguments.preset or origin.get("preset"),
        "data": task.data, "protocol": task.protocol, "config": dataclasses.asdict(task.config),
        "settings": dataclasses.asdict(task.settings),
        "command": known.get("command", command), **numbers_of(world),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__),
                     "numpy": np.__version__},
    }


def without_folder(word: str) -> str:
    """Keep only the file name of an absolute path, so that files do not name this machine."""
    before, equals, value = word.rpartition("=")
    return before + equals + (Path(value).name if os.path.isabs(value) else value)


class Journal:
    """What the leader writes and prints while training: log.csv, scores.csv, lines of progress."""

    def __init__(self, task: Task) -> None:
        self.out, self.steps = task.arguments.out, task.config.steps
        self.samples, self.unit = task.config.batch_size, task.UNIT
        self.rows: Table | None = None  # opened with the first row, which has the columns
        self.seconds: collections.deque[float] = collections.deque(maxlen=50)  # of recent steps
        self.printed = 0.0

    def add(self, row: dict[str, float], seconds: float, total: float, skipped: int) -> None:
        """Log one step.

        seconds, total: that the step and the run took so far. skipped: non-finite steps in a row.
        """
        self.seconds.append(seconds)
        row = row | {f"{self.unit}_per_second": self.samples / seconds, "seconds": total}
        self.rows = self.rows or Table(self.out / "log.csv", list(row), row["step"] - 1)
        self.rows.add(row)
        if skipped:
            print(f"\nstep {row['step']} skipped, {skipped} in a row: loss {row['loss']}, gradient "
                  f"norm {row['grad_norm']}", flush=True)
        terminal = sys.stdout.isatty()  # there one line is overwritten, elsewhere new ones follow
        if (time.monotonic() - self.printed > (0.5 if terminal else 10.0)
                or row["step"] == self.steps):
            self.printed = time.monotonic()
            end = "\r" if terminal and row["step"] < self.steps else "\n"
            print(self.progress(row), end=end, flush=True)

    def progress(self, row: dict[str, float]) -> str:
        """Step, losses, samples per second and time left."""
        losses = list(row)[1:list(row).index("learning_rate")]
        pace = sum(self.seconds) / len(self.seconds)
        left = timedelta(seconds=round((self.steps - row["step"]) * pace))
        return (f"step {row['step']}/{self.steps}  "
                + "  ".join(f"{name} {row[name]:.4f}" for name in losses)
                + f"  {self.samples / pace:.0f} {self.unit}/s  {left} left ")
