"""What a run tells about itself: its first lines, its progress, and the origin of its files."""

from __future__ import annotations

import collections
import dataclasses
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
from torch import nn

from tasks.base import RunConfig, Task
from tasks.files import Table, size_of
from tasks.ranks import World


def opening(task: Task, world: World, model: nn.Module, step: int,
            run: Mapping | None) -> Iterator[str]:
    """Yield the first lines of a run: model, steps, batch, cache, and notes.

    step: finished ones. run: the checkpoint that the run continues from.
    """
    config, arguments, cache = task.config, task.arguments, Path(task.arguments.cache)
    count = sum(parameter.numel() for parameter in model.parameters())
    yield (f"{type(model).__name__}, {count:,} parameters, on {world.size} x "
           f"{world.device.type}: from step {step} to {config.steps}, in {arguments.out}")
    parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
    planned = task.PRESETS[arguments.preset].batch_size
    changed = "" if planned == config.batch_size else f", where the preset has {planned}"
    yield (f"{config.batch_size} {task.UNIT} per step: {config.batch_size // world.size} in each "
           f"process{parts}{changed}")
    if cache.is_dir():
        yield f"cached data: {size_of(cache)} in {cache}, which you can delete after training"
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
        "data": task.data, "config": dataclasses.asdict(task.config),
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

    def __init__(self, out: Path, config: RunConfig, unit: str) -> None:
        self.out, self.steps = out, config.steps
        self.samples, self.unit = config.batch_size, unit
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
