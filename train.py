"""Train and evaluate in plain PyTorch: one process, or as many as torchrun starts.

    python train.py --model simplehand                                # suits this machine
    torchrun --nproc-per-node 8 train.py --model simplehand --preset paper \\
        --data freihand --data-root FOLDER --hand MANO_RIGHT.pkl          # the paper's run
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST train.py ...
    python train.py --model simplehand --resume --set steps=9000      # prolong the run in OUT
    python train.py --model simplehand --eval --checkpoint FILE [--export FILE]
    python train.py --model simplehand --ablate table5 --seeds 3      # a table of the paper
    python train.py --model genhmr --stage tokenizer                  # papers with stages: each
    python train.py --model genhmr --stage transformer --tokenizer FILE   # is a run of its own
    python train.py --model hmr_adapter --stage all                   # or all of them in a row

OUT (runs/<model>[-<stage>] unless given) receives checkpoint.pt, log.csv with one row per step,
scores.csv with one row per evaluation and, at the end, results.json, predictions.png and
curves.png. The same command given again continues its run, also by itself under torchrun
--max-restarts.

A run killed at any moment and resumed ends in the weights of an uninterrupted one, bit for bit on
a CPU, because a step depends on nothing but its checkpoint and its number:
- order: the samples of step n are a function of (seed, n), see `rank_batches`;
- chance: dropout and all else draws from generators seeded by (seed, step, batch of the step);
- state: a checkpoint is the rest, and replaces its predecessor in one instant.
The number of processes is not a hyperparameter: batch_size counts the samples of a step over all
processes, batch norm spans them, and the order of samples does not depend on them. Only what
dropout drops differs, as it does between one batch and several accumulated ones.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import ctypes
import dataclasses
import functools
import inspect
import io
import json
import math
import os
import platform
import random
import shlex
import signal
import sys
import time
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

import bodymodels
import data
import genhmr
import hmr_adapter
import metrics
import simplehand

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EVALUATIONS = {  # data set and split that a protocol of metrics judges
    "freihand": ("freihand", "evaluation"), "dexycb_s0": ("dexycb", "test"),
    "3dpw_lsp14": ("3dpw", "test"), "3dpw_smplx_lineage": ("3dpw-moon", "test"),
    "emdb1_24": ("emdb", "emdb1"), "h36m_p2_lsp14": ("h36m", "p2"),
    "amass_test": ("amass", "test"), "moyo_val": ("moyo", "val"),
    "arctic_p1val": ("arctic", "val"), "ehf": ("ehf", "test"),
}
SCHEDULES = ("constant", "step", "cosine")
MAX_SKIPPED = 10  # non-finite steps in a row before giving up
BASELINE_SAMPLES = 2_000  # training samples whose mean is the baseline

# ------------------------------------------------------------------------------------- ranks


@dataclass(frozen=True)
class World:
    """The processes that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    workers: int = 0  # data processes beside each of them
    patient: dist.ProcessGroup | None = None  # waits for hours, where the default gives up at 60 s

    @property
    def leader(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def mean(self, values: Iterable[float]) -> list[float]:
        """The mean of each value over all processes, the same bits on each of them."""
        total = torch.tensor(list(values), dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(total)
        return (total / self.size).tolist()

    def wait(self) -> None:
        """Return once every process got here."""
        if self.size > 1:
            dist.barrier(group=self.patient)

    def gather(self, value: typing.Any) -> list[typing.Any]:
        """Everybody's value on the leader, in order of rank; nothing elsewhere."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.leader else None
        dist.gather_object(value, values, group=self.patient)
        return values or []


def join_world(workers: int | None = None) -> World:
    """Meet the other processes that torchrun started, if it did."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = choose_device()
    if workers is None:  # a CPU that trains has none to spare
        share = data.available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = min(16, share) if device.type == "cuda" else 0
    if size == 1:
        return World(device=device, workers=workers)
    # After a restart, addresses of the last attempt are still in the store: look under new names.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    served = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
                          is_master=served, timeout=timedelta(seconds=60))
    store = dist.PrefixStore(f"attempt {attempt}", store)
    store.set(f"rank {rank}", "ready")  # another machine may still be preparing its data
    store.wait([f"rank {number}" for number in range(size)], timedelta(hours=12))
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size,
                            timeout=timedelta(seconds=60))
    patient = dist.new_group(backend="gloo", timeout=timedelta(hours=12))
    return World(rank, size, device, workers, patient)


def choose_device() -> torch.device:
    """This process's GPU, or the CPU with its share of the cores."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not torch.cuda.is_available():
        if neighbours > 1:  # torchrun would give each a single core
            torch.set_num_threads(max(1, data.available_cores() // neighbours))
        else:
            keep_freed_memory()
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(f"process {local_rank} on this machine has no GPU of its own: start at "
                         f"most {torch.cuda.device_count()} with --nproc-per-node")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")  # TF32, as convolutions have by default
    torch.backends.cudnn.benchmark = True
    return device


def keep_freed_memory() -> None:
    """Have glibc keep the buffers that a step frees for the next step.

    It gives large ones back to the system, and each page that comes again costs a fault.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_... of malloc.h
    with contextlib.suppress(AttributeError, OSError):  # another libc: it does as it likes
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 2**25)  # the largest that all versions take
        mallopt(trim_threshold, 2**30)


class MeanOverRanks(torch.autograd.Function):
    """The mean of a tensor over all processes, and of its gradient."""

    @staticmethod
    def forward(context: typing.Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    backward = forward


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes (PyTorch's own SyncBatchNorm needs CUDA)."""

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        if not self.training:
            return super().forward(x)
        var, mean = (v.double() for v in torch.var_mean(x.float(), (0, 2, 3), correction=0))
        moments = MeanOverRanks.apply(torch.stack((mean, var + mean.square())))
        mean, var = moments[0], moments[1] - moments[0].square()
        with torch.no_grad():
            count = x.numel() // x.shape[1] * dist.get_world_size()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(x.dtype), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(x.dtype), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return x * scale.to(x.dtype).view(-1, 1, 1) + shift.to(x.dtype).view(-1, 1, 1)


def share_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch norm of the model span all processes; names and weights stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm
    return model


# --------------------------------------------------------------------- functions of the step


def learning_rate(config: typing.Any, step: int) -> float:
    """The rate of step 0, 1, ...: linear warm-up times constant, step (/ 10 at half) or cosine."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    factor = {
        "constant": 1.0,
        "step": 1.0 if step < config.steps / 2 else 0.1,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * max(0.0, progress)),
    }[config.schedule]
    return config.learning_rate * warmup * factor


def seed_everything(*words: int) -> None:
    """Make all that follows a function of these numbers."""
    seed = int(np.random.SeedSequence(words).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The shuffled indices of one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(length)


def key_at(position: int, length: int, seed: int) -> int:
    """The data set key of the position-th sample of a run: epoch * length + index."""
    epoch, offset = divmod(position, length)
    return epoch * length + int(epoch_order(seed, epoch, length)[offset])


def rank_batches(position: int, steps: int, batch_size: int, accumulate: int, world: World,
                 length: int, seed: int) -> Iterator[list[int]]:
    """Keys of this rank's batches, `accumulate` per step, from the position-th sample on.

    A step takes the next batch_size samples of the run: an equal, contiguous share for each rank.
    """
    share = batch_size // world.size
    part = share // accumulate
    for step in range(steps):
        first = position + step * batch_size + world.rank * share
        for start in range(first, first + share, part):
            yield [key_at(start + offset, length, seed) for offset in range(part)]


# -------------------------------------------------------------------------------------- data


def load_batches(dataset: Dataset, keys: Iterable[list[int]],
                 world: World) -> Iterator[dict[str, Tensor]]:
    """Collated batches of the data set, one for each list of keys, on this rank's device."""
    loader = DataLoader(dataset, batch_sampler=keys, num_workers=world.workers,
                        pin_memory=world.device.type == "cuda", worker_init_fn=ignore_signals)
    try:
        for batch in loader:
            yield {name: value.to(world.device, non_blocking=True)
                   for name, value in batch.items()}
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "Traceback" in str(error):
            raise
        raise RuntimeError(f"a data worker died ({error}): it may have run out of memory, or of "
                           "shared memory in a container; try fewer with --workers") from error


def ignore_signals(worker: int) -> None:
    """Leave SIGTERM and Ctrl-C to the main process, which then stops its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# ----------------------------------------------------------------------------- training step


class Trainer:
    """Model, optimiser and counters: all that a step changes and a checkpoint keeps."""

    def __init__(self, task: typing.Any, world: World, compile: bool = False) -> None:
        config = task.config
        seed_everything(config.seed)
        self.task, self.config, self.world = task, config, world
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        model = task.build().to(world.device, memory_format=layout)
        self.ema = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True
        ) if config.ema_decay else None
        self.model = share_batch_norm(model, world.device) if world.size > 1 else model
        if compile:
            self.model.compile()
        # Of 1 x 1 convolutions, whose two layouts in memory are the same.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        self.parallel = self.model if world.size == 1 else DistributedDataParallel(
            self.model, [world.device] if world.device.type == "cuda" else None)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.optimizer = torch.optim.AdamW(
            task.parameter_groups(self.model), lr=config.learning_rate, fused=True)
        self.step = 0  # finished optimiser steps
        self.position = 0  # samples seen
        self.skipped = 0  # non-finite steps in a row, up to now
        self.seconds = 0.0  # spent training, over all resumed parts

    @property
    def best_model(self) -> nn.Module:
        """The weights to evaluate and ship: the moving average if there is one."""
        return self.ema.module if self.ema else self.model

    def train_step(self, batches: list[dict[str, Tensor]],
                   flags: Iterable[bool] = ()) -> tuple[dict[str, float], list[bool]]:
        """One optimiser step on this rank's batches.

        Returns the losses (means over all ranks), rate and gradient norm, and for each flag
        whether any rank raised it. If loss or gradient are not finite on any rank, no rank moves.
        """
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        terms = self.accumulate_gradients(batches)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.gradient_clip or math.inf).item()
        shared = self.world.mean([*terms.values(), *flags])
        row = {"step": self.step + 1, **dict(zip(terms, shared, strict=False)),
               "learning_rate": rate, "grad_norm": norm}
        # An overflow that the scaler can cure by scaling less is business as usual.
        finite = math.isfinite(norm) or self.scaler.get_scale() > 1.0
        self.conclude(finite and math.isfinite(row["loss"]), buffers)
        return row, [flag > 0.0 for flag in shared[len(terms):]]

    def accumulate_gradients(self, batches: list[dict[str, Tensor]]) -> dict[str, float]:
        """Gradients of the mean loss over the batches; returns that loss and its terms."""
        total: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            part = self.world.rank * len(batches) + number  # of the step, whoever takes it
            seed_everything(self.config.seed, self.step, 0, part)
            apart = number + 1 < len(batches) and self.world.size > 1  # reduce gradients once
            with self.parallel.no_sync() if apart else contextlib.nullcontext():
                loss, terms = self.task.loss(self, batch)
                self.scaler.scale(loss / len(batches)).backward()
            for name, term in {"loss": loss, **terms}.items():
                total[name] = total.get(name, 0.0) + term.detach() / len(batches)
        return dict(zip(total, torch.stack(list(total.values())).tolist(), strict=True))

    def __call__(self, *inputs: Tensor) -> typing.Any:
        """The model in mixed precision; losses are computed outside, in full precision."""
        dtype = PRECISIONS[self.config.precision]
        with torch.autocast(self.world.device.type, dtype, enabled=dtype != torch.float32):
            return self.parallel(*inputs)

    def conclude(self, finite: bool, buffers: list[Tensor]) -> None:
        """Take the step, or leave weights and buffers as they were before it."""
        if finite:
            self.scaler.step(self.optimizer)
            if self.ema:
                self.ema.update_parameters(self.model)
        else:
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.skipped = 0 if finite else self.skipped + 1
        self.step += 1
        self.position += self.config.batch_size

    def state_dict(self) -> dict[str, typing.Any]:
        """Everything a checkpoint keeps; rates and random states are functions of the step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "schedule": {"kind": self.config.schedule, "step": self.step},
            "rng": {"seed": self.config.seed, "step": self.step},
            "step": self.step,
            "position": self.position,
            "skipped": self.skipped,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, typing.Any]) -> None:
        """Become the trainer that returned this state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        for name in ("step", "position", "skipped", "seconds"):
            setattr(self, name, state[name])


# ------------------------------------------------------------------------------------- files


def save(content: dict[str, typing.Any], path: Path) -> None:
    """torch.save, of which a reader sees all or nothing, even if this process dies on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.unfinished")  # always this, for the next to replace
    with open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Table:
    """A csv file that a resumed run continues: rows of steps it has yet to do are dropped."""

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
    """The complete rows of a csv file, of which the last may be torn; none without a file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


class Journal:
    """What the leader writes and prints while training: log.csv, scores.csv, lines of progress."""

    def __init__(self, trainer: Trainer, out: Path) -> None:
        config = trainer.config
        self.trainer, self.out, self.steps = trainer, out, config.steps
        self.samples = config.batch_size
        self.unit = trainer.task.UNIT
        self.rows: Table | None = None  # opened with the first row, which tells the columns
        self.scores: Table | None = None
        self.seconds: collections.deque[float] = collections.deque(maxlen=50)  # of recent steps
        self.printed = 0.0

    def add(self, row: dict[str, float], seconds: float) -> None:
        """One step, which took so many seconds."""
        self.seconds.append(seconds)
        row = row | {f"{self.unit}_per_second": self.samples / seconds,
                     "seconds": self.trainer.seconds}
        self.rows = self.rows or Table(self.out / "log.csv", list(row), row["step"] - 1)
        self.rows.add(row)
        if self.trainer.skipped:
            print(f"\nstep {row['step']} skipped, {self.trainer.skipped} in a row: loss "
                  f"{row['loss']}, gradient norm {row['grad_norm']}", flush=True)
        terminal = sys.stdout.isatty()  # there one line renews itself; elsewhere, now and then one
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

    def add_scores(self, scores: Scores) -> None:
        """One evaluation."""
        row = {"step": self.trainer.step, **next(iter(scores.values()), {})}
        self.scores = self.scores or Table(self.out / "scores.csv", list(row), row["step"])
        if row["step"] not in self.scores.steps:
            self.scores.add(row)
            print(f"\ntest at step {row['step']}: " + "  ".join(
                f"{name} {value:.4g}" for name, value in list(row.items())[1:]), flush=True)


# -------------------------------------------------------------------------------- evaluation

Scores = dict[str, dict[str, float]]  # predictor -> metric -> value; the model is the first


@torch.no_grad()
def evaluate(task: typing.Any, model: nn.Module, world: World,
             final: bool = False) -> tuple[Scores, dict[str, np.ndarray]]:
    """Score the test split, split among the ranks; the leader gets scores and predictions."""
    share = range(world.rank, len(task.test_set), world.size)
    size = max(1, task.config.batch_size // (world.size * task.config.accumulate))
    keys = [list(share[start:start + size]) for start in range(0, len(share), size)]
    model.eval()
    outputs = [
        {name: value.cpu().numpy() for name, value in task.predict(model, batch, final).items()}
        for batch in load_batches(task.test_set, keys, world)
    ]
    model.train()
    scores, predictions = {}, {}
    gathered = [batch for outputs in world.gather(outputs) for batch in outputs]
    if world.leader:
        order = np.concatenate([batch["index"] for batch in gathered]).argsort()
        predictions = {name: np.concatenate([batch[name] for batch in gathered])[order]
                       for name in gathered[0]}
        scores = task.scores(predictions)
    world.wait()
    return scores, predictions


def score_table(scores: Scores) -> str:
    """A line per metric and a column per predictor, or across if these are more.

    The last column (line) is the first predictor's part of the last one's.
    """
    names = list(scores)
    cells = {}
    for metric in scores[names[0]]:
        values = [scores[name][metric] for name in names]
        cells[metric] = [*values, values[0] / values[-1] if values[-1] else math.nan]
    heads, lines = [*names, "ratio"], list(cells.items())
    if len(names) > len(cells):
        heads, lines = list(cells), list(zip(heads, zip(*cells.values(), strict=True), strict=True))
    width = max(12, *(len(name) for name, _ in lines))
    return "\n".join([" " * width + "".join(f"{head:>14}" for head in heads)] + [
        f"{name:{width}}" + "".join(f"{value:14.3f}" for value in values)
        for name, values in lines])


def draw_curves(out: Path) -> None:
    """Losses and test errors over the steps, from log.csv and scores.csv to curves.png."""
    losses, scores = read_table(out / "log.csv"), read_table(out / "scores.csv")
    loss_names = list(losses[0])[1:list(losses[0]).index("learning_rate")]
    error_names = [name for name in scores[0] if name.endswith("E")]  # MPJPE, PVE, ...
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = (("training losses", losses, loss_names), ("test errors", scores, error_names))
    for axes, (title, rows, names) in zip(figure.subplots(1, 2), panels, strict=True):
        window = np.ones(max(1, len(rows) // 100))  # running mean over a hundredth
        steps = [int(row["step"]) for row in rows[len(window) - 1:]]
        for name in names:
            values = np.convolve([float(row[name]) for row in rows], window / len(window), "valid")
            axes.plot(steps, values, label=name, marker="." if len(rows) < 50 else "")
            axes.legend(fontsize="small")
        axes.set(title=title, xlabel="step", yscale="log")
    save_figure(figure, out / "curves.png")


def draw_grid(images: list[np.ndarray], path: Path, columns: int, title: str) -> None:
    """Images (H, W, 3) of 0..1 in a grid, as one PNG."""
    rows = math.ceil(len(images) / columns)
    height, width = images[0].shape[:2]
    figure = Figure(figsize=(12, 12 * rows * height / (columns * width) + 0.4), layout="tight")
    for number, image in enumerate(images, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.axis("off")
        axes.imshow(image.clip(0, 1))
    figure.suptitle(title)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """A matplotlib figure as PNG."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    bodymodels.write_atomically(path, png.getvalue())


# ------------------------------------------------------------------------------ training loop


@contextlib.contextmanager
def signals_noted() -> Iterator[list[str]]:
    """Inside, SIGTERM and Ctrl-C do nothing but to put their names into a list."""
    received: list[str] = []
    handlers = {number: signal.signal(number, lambda number, _: received.append(
        signal.Signals(number).name)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def train(trainer: Trainer, out: Path, about: dict[str, typing.Any], save_every: float,
          signals: list[str]) -> bool:
    """Run to the last step, logging, evaluating and saving; False if a signal came before."""
    task, config, world = trainer.task, trainer.config, trainer.world
    keys = rank_batches(trainer.position, config.steps - trainer.step, config.batch_size,
                        config.accumulate, world, len(task.train_set), config.seed)
    batches = load_batches(task.train_set, keys, world)
    journal, stopping = Journal(trainer, out), False
    saved, save_seconds = time.monotonic(), 0.0
    while trainer.step < config.steps and not stopping:
        if trainer.step and trainer.step % config.eval_every == 0:
            scores, _ = evaluate(task, trainer.best_model, world)
            if world.leader:
                journal.add_scores(scores)
        start = time.monotonic()
        step_batches = [next(batches) for _ in range(config.accumulate)]
        # Saving is due now and then, and not for more than a twentieth of the time.
        due = world.leader and start - saved > max(save_every, 20 * save_seconds)
        row, (stopping, saving) = trainer.train_step(step_batches, (bool(signals), due))
        trainer.seconds += time.monotonic() - start
        if world.leader:
            journal.add(row, time.monotonic() - start)
        if trainer.skipped == MAX_SKIPPED:
            give_up(trainer, out, step_batches)
        if stopping or saving or trainer.step == config.steps:
            saved = time.monotonic()
            if world.leader:
                save({**trainer.state_dict(), **about, "baseline": task.baseline},
                     out / "checkpoint.pt")
            world.wait()
            save_seconds = time.monotonic() - saved
    if stopping and world.leader:
        print(f"\n{' '.join(signals) or 'A signal to another process'}: saved at step "
              f"{trainer.step} of {config.steps}; the same command continues", flush=True)
    return not stopping


def give_up(trainer: Trainer, out: Path, batches: list[dict[str, Tensor]]) -> None:
    """Stop after too many non-finite steps, leaving the last batches of every rank."""
    path = out / f"nonfinite_rank{trainer.world.rank}.pt"
    save({"step": trainer.step, "batches": batches}, path)
    trainer.world.wait()
    raise SystemExit(f"{MAX_SKIPPED} steps in a row were not finite: gave up at step "
                     f"{trainer.step}; the last batch is in {path}")


# ------------------------------------------------------------------------------------- tasks


class Task:
    """What the loop asks of a paper, or of one stage of it: model, data, loss and scores.

    config: of the model and the run; arguments: all flags; origin: the checkpoint to continue or
    to score, or nothing. Beside the methods here a task has `faces` and `data_set`, `build`,
    `loss`, `predict`, `points`, `scores` and `picture`; see those of SimpleHandTask.
    """

    Config: type  # the dataclass whose fields --set takes
    PRESETS: Mapping[str, typing.Any]  # its instances by name
    load_checkpoint: Callable[..., nn.Module]  # from a file, the model with its config
    parameters: Callable[..., list[dict]]  # from model and weight decay, groups for AdamW
    PROTOCOLS: Mapping[str, str]  # of metrics, by kind of data; "": ask for one
    FLAGS: tuple[str, ...] = ()  # those of OPTIONAL that mean something here
    MODELS = ""  # what official data need in --models
    TITLE: str  # of predictions.png
    UNIT = "images"  # what a sample is
    ABLATIONS: Mapping[str, Mapping] = {}  # tables of --ablate
    REMARK = ""  # printed below the table of scores

    def __init__(self, config: typing.Any, arguments: argparse.Namespace,
                 origin: Mapping[str, typing.Any]) -> None:
        self.config, self.arguments = config, arguments
        self.baseline: Tensor | None = origin.get("baseline")  # (2, N, 3), see set_baseline
        asked = getattr(arguments, "protocol", None)  # decides what an evaluation alone is of
        judged = EVALUATIONS.get(asked, ("",))[0] if getattr(arguments, "eval", False) else ""
        self.data = arguments.data or judged or origin.get("data", "rendered")
        if self.data not in self.PROTOCOLS:
            raise ValueError(f"--data {self.data}: expected one of {', '.join(self.PROTOCOLS)}")
        if self.data != "rendered" and not arguments.data_root:
            raise ValueError(f"--data {self.data}: say where its folder is with --data-root")
        self.protocol = asked or self.PROTOCOLS[self.data]
        if self.protocol not in self.PROTOCOLS.values() or not self.protocol:
            raise ValueError(f"--data {self.data}: choose what to judge by with --protocol, one of "
                             + ", ".join(sorted({*self.PROTOCOLS.values()} - {""})))
        if self.PROTOCOLS[self.data] not in ("", self.protocol):
            raise ValueError(f"--data {self.data} is judged by {self.PROTOCOLS[self.data]}, and "
                             f"not by {self.protocol}")
        if self.data != "rendered" and self.MODELS and not arguments.models:
            raise ValueError(f"--data {self.data}: its bodies are official models'; give the "
                             f"folder of {self.MODELS} with --models")

    def official(self, split: str, size: int, **options) -> Dataset:
        """The official training data, or those that the protocol judges."""
        arguments, config = self.arguments, self.config
        name, part, root = self.data, "train", arguments.data_root
        if split == "test":
            name, part = EVALUATIONS[self.protocol]
            root = arguments.test_root or root
        return data.open_official(name, root, part, size=size, seed=config.seed,
                                  cache=arguments.cache, **options)

    @classmethod
    def adapt(cls, config: typing.Any, arguments: argparse.Namespace) -> typing.Any:
        """The config of a run, with what files named by the flags decide."""
        return config

    @functools.cached_property
    def train_set(self) -> Dataset:
        """The training split, augmented."""
        return self.data_set("train", self.config.train_samples)

    @functools.cached_property
    def test_set(self) -> Dataset:
        """The test split, as it is."""
        return self.data_set("test", self.config.test_samples)

    def parameter_groups(self, model: nn.Module) -> list[dict]:
        """For AdamW."""
        return type(self).parameters(model, self.config.weight_decay)

    def set_baseline(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """Two means of the `points` (N, 3) of these training samples.

        The plain mean is the best constant for MPJPE, but no hand or body: views from all sides
        cancel. The second is the mean after turning all onto one another, the best for PA-MPJPE.
        """
        points = torch.cat([self.points(batch).cpu() for batch in batches])
        mean, shape = points.mean(0), points[0]
        for _ in range(5):
            shape = metrics.procrustes_align(points, shape.expand_as(points), scale=False).mean(0)
        self.baseline = torch.stack([mean, shape])

    def check_same(self, flag: str, load: Callable[..., nn.Module],
                   origin: Mapping[str, typing.Any]) -> None:
        """Refuse the flag's file unless the checkpoint to continue holds the same weights."""
        file = getattr(self.arguments, flag)
        given, own = (load(source).state_dict() for source in (file, origin))
        if given.keys() != own.keys() or not all(
                value.equal(own[name]) for name, value in given.items()):
            raise ValueError(f"these weights were trained with another {flag} than {file}, which "
                             f"they hold: leave --{flag} out")

    def dump(self, out: Path, predictions: dict[str, np.ndarray], **found: np.ndarray) -> None:
        """predictions.npz, for others to score: what was found, and in which official picture."""
        records = self.test_set.records(predictions["index"])
        told = {name: records[name] for name in ("image", "sequence", "person", "frame")}
        np.savez(out / "predictions.npz", **told, **found)

    def write(self, predictions: dict[str, np.ndarray], out: Path) -> None:
        """Pictures of the first samples of the test split."""
        images = [self.picture(index, predictions) for index in range(min(12, len(self.test_set)))]
        draw_grid(images, out / "predictions.png", columns=3, title=self.TITLE)

    def draw(self, mesh: np.ndarray, K: np.ndarray, background: np.ndarray) -> np.ndarray:
        """A mesh (V, 3) over a picture (H, W, 3)."""
        return bodymodels.render(mesh, self.faces, K, background.shape[:2], background=background,
                                 supersample=2).image


def better(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """In each row the better of two scores: the smaller error (MPJPE, ...), else the larger."""
    return {name: (min if name.endswith("E") else max)(first[name], second[name])
            for name in first}


class SimpleHandTask(Task):
    """Hand meshes from crops."""

    Config, PRESETS = simplehand.Config, simplehand.PRESETS
    load_checkpoint = staticmethod(simplehand.load_checkpoint)
    parameters = staticmethod(simplehand.parameter_groups)
    PROTOCOLS = {"rendered": "rendered_hands", "freihand": "freihand", "dexycb": "dexycb_s0"}
    FLAGS = ("hand", "backbone", "protocol")
    ABLATIONS = simplehand.ABLATIONS
    TITLE = "image, predicted mesh, true mesh (both placed at the true root joint)"

    def __init__(self, config: simplehand.Config, arguments: argparse.Namespace,
                 origin: Mapping[str, typing.Any]) -> None:
        super().__init__(config, arguments, origin)
        if self.data != "rendered" and not arguments.hand:
            raise ValueError(f"--data {self.data}: its meshes are MANO's, whose faces and joints "
                             "the free hand does not have; give MANO_RIGHT.pkl with --hand")
        if self.data == "dexycb" and not Path(arguments.hand).is_dir():
            raise ValueError("--data dexycb has left hands, too: give the folder of MANO_RIGHT and "
                             "MANO_LEFT with --hand")
        tips = data.DexYCB.TIPS if self.protocol == "dexycb_s0" else None
        hand = bodymodels.load_model(arguments.hand or "hand_right", family="mano", tips=tips)
        self.keypoint_regressor, self.faces = hand.keypoint_regressor, hand.faces

    def data_set(self, split: str, length: int) -> Dataset:
        """A split of the chosen data."""
        config, training = self.config, split == "train"
        if self.data == "freihand":
            return data.FreiHAND(
                self.arguments.data_root, "training" if training else "evaluation",
                config.image_size, seed=config.seed,
                augmentation="official_simplehand" if training else None,
                cache=self.arguments.cache)
        if self.data != "rendered":
            return self.official(split, config.image_size, models=self.arguments.hand,
                                 augmentation="official_simplehand" if training else None)
        return data.RenderedHands(
            split, config.image_size, length=length, seed=config.seed if training else 0,
            views=config.views, in_plane=config.in_plane,
            augmentation="rendered" if training else None, cache=self.arguments.cache)

    def build(self) -> nn.Module:
        """The model with new weights, but for the backbone if there is a file of it."""
        model = simplehand.SimpleHand(self.config)
        if self.arguments.backbone:
            simplehand.load_backbone(model.backbone, self.arguments.backbone)
        return model

    def loss(self, trainer: Trainer,
             batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and its unweighted terms for the log.

        Called, the trainer is the model; it also has that model's weights and the step.
        """
        prediction = trainer(batch["image"])
        terms = simplehand.losses(prediction, batch,
                                  self.keypoint_regressor.to(batch["image"].device))
        return simplehand.total_loss(terms, self.config), terms

    def predict(self, model: nn.Module, batch: dict[str, Tensor],
                final: bool = False) -> dict[str, Tensor]:
        """What `scores` needs: meshes in the axes of the original camera, beside the truth.

        final: at the end of a run; add what only the last table shows.
        """
        meshes = {"vertices": model(batch["image"])["vertices"],
                  "true_vertices": self.points(batch),
                  "true_joints": batch["joints"] - batch["joints"][:, 9:10]}
        back = batch["camera_rotation"]  # x_original = R^T x_crop, so for row vectors x R
        return {name: points @ back for name, points in meshes.items()} | {
            name: batch[name] for name in ("index", "mesh_valid")}

    def points(self, batch: dict[str, Tensor]) -> Tensor:
        """Root-relative true meshes (B, 778, 3)."""
        return batch["vertices"] - batch["joints"][:, 9:10]

    def scores(self, predictions: dict[str, np.ndarray]) -> Scores:
        """The model's and the mean hand's; nothing if the test split has no annotation."""
        known = predictions["mesh_valid"] > 0
        if not known.any():
            return {}
        truth = {name: predictions[f"true_{name}"][known] for name in ("joints", "vertices")}

        def score(hands: np.ndarray) -> dict[str, float]:
            hands = np.broadcast_to(hands, truth["vertices"].shape)
            return metrics.evaluate(self.protocol,
                                    {"vertices": hands, "joints": self.joints(hands)}, truth)

        scores = {"SimpleHand": score(predictions["vertices"][known])}
        if self.baseline is not None:
            scores["mean hand"] = better(*map(score, self.baseline.numpy()))
        return scores

    def joints(self, vertices: np.ndarray) -> np.ndarray:
        """(N, 778, 3) -> (N, 21, 3)."""
        return np.einsum("jv,nvc->njc", self.keypoint_regressor.numpy(), vertices)

    def write(self, predictions: dict[str, np.ndarray], out: Path) -> None:
        """Pictures and, for FreiHAND, the file that its evaluation server takes."""
        vertices = predictions["vertices"]
        if self.data == "freihand":
            metrics.write_predictions(out / "pred.json", self.joints(vertices), vertices)
        elif self.data == "dexycb":  # relative to the middle knuckle, as the model tells hands
            numbers = self.test_set.records(predictions["index"])["person"]
            metrics.write_dexycb(out / "dexycb.txt", numbers, self.joints(vertices))
        super().write(predictions, out)

    def picture(self, index: int, predictions: dict[str, np.ndarray]) -> np.ndarray:
        """A test image (S, S, 3) beside the predicted and the true mesh over it."""
        sample = self.test_set[index]
        photo = sample["image"].permute(1, 2, 0).numpy() / np.float32(255)
        rotation, root = sample["camera_rotation"].numpy(), sample["joints"][9].numpy()
        meshes = [predictions[name][index] @ rotation.T + root
                  for name in ("vertices", "true_vertices")]
        return np.concatenate([photo] + [self.draw(mesh, sample["K"], photo) for mesh in meshes], 1)


class BodyTask(Task):
    """What tasks share whose predictions are poses of a body, scored as joints and meshes.

    `predict` names each predictor's rotations (B, K, 3, 3) "pose of <predictor>".
    """

    BODY, FAMILY = "body", "smpl"  # the free body, and what that of official data is
    PIECE = 500  # samples whose meshes are in memory at a time
    REMARK = "Mean pose: the mean body, or that of bodies turned onto one another if better.\n"

    def __init__(self, config: typing.Any, arguments: argparse.Namespace,
                 origin: Mapping[str, typing.Any]) -> None:
        super().__init__(config, arguments, origin)
        if self.data != "rendered" and self.MODELS:
            self.body = bodymodels.load_model(arguments.models, family=self.FAMILY)
        else:
            self.body = bodymodels.load_model(arguments.body or self.BODY)
        if arguments.body and len(self.body.parents) != 24:
            raise ValueError(f"--body {arguments.body}: it has {len(self.body.parents)} joints; "
                             "expected a SMPL model, with 24")
        self.faces = self.body.faces

    def points(self, batch: dict[str, Tensor]) -> Tensor:
        """True joints and vertices (B, J + V, 3)."""
        return torch.cat(self.posed(batch["betas"], batch["pose"]), 1)

    def posed(self, betas: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Joints (B, J, 3) and vertices (B, V, 3) without translation."""
        output = self.body.to(pose.device)(betas, pose)
        return output.joints, output.vertices

    def mesh(self, betas: np.ndarray, pose: np.ndarray) -> dict[str, np.ndarray]:
        """The same by name."""
        joints, vertices = self.posed(*map(torch.from_numpy, (betas, pose)))
        return {"joints": joints.numpy(), "vertices": vertices.numpy()}

    def scores(self, predictions: dict[str, np.ndarray]) -> Scores:
        """Of all predictors and the mean pose."""
        pieces = [{name: value[start:start + self.PIECE] for name, value in predictions.items()}
                  for start in range(0, len(predictions["index"]), self.PIECE)]
        parts = [self.score_piece(piece) for piece in pieces]
        weights = [len(piece["index"]) for piece in pieces]
        scores = {name: {metric: float(np.average([part[name][metric] for part in parts],
                                                  weights=weights)) for metric in parts[0][name]}
                  for name in parts[0]}
        if self.baseline is not None:
            scores["mean pose"] = better(scores.pop("mean"), scores.pop("mean shape"))
        return scores

    def score_piece(self, predictions: dict[str, np.ndarray]) -> Scores:
        """Of some samples, for every predictor and for both constants of the baseline."""
        meshes = {name.removeprefix("pose of "): self.mesh(predictions["betas"], pose)
                  for name, pose in predictions.items() if name.startswith("pose of ")}
        count = next(iter(meshes.values()))["joints"].shape[1]
        constants = () if self.baseline is None else zip(
            ("mean", "mean shape"), self.baseline.numpy(), strict=True)
        for name, points in constants:
            points = np.broadcast_to(points, (len(predictions["index"]), *points.shape))
            meshes[name] = {"joints": points[:, :count], "vertices": points[:, count:]}
        truth = self.truth(predictions)
        return {name: self.judge(mesh, truth) for name, mesh in meshes.items()}

    def truth(self, predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the protocol compares with."""
        return self.mesh(predictions["true_betas"], predictions["true_pose"])

    def judge(self, mesh: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> dict[str, float]:
        """The protocol's table for joints and vertices as `mesh` makes them."""
        return metrics.evaluate(self.protocol, mesh, truth)

    def picture(self, index: int, predictions: dict[str, np.ndarray]) -> np.ndarray:
        """A test image (S, S, 3) beside the first predictor's and the true mesh over it."""
        sample = self.test_set[index]
        photo = sample["image"].permute(1, 2, 0).numpy() / np.float32(255)
        one = {name: value[index:index + 1] for name, value in predictions.items()}
        found = self.mesh(one["betas"], self.first_pose(one))["vertices"][0]
        truth = self.mesh(one["true_betas"], one["true_pose"])["vertices"][0]
        return np.concatenate([photo] + [
            self.draw(mesh + shift, sample["K"], photo) for mesh, shift in (
                (found, one["transl"]), (truth, sample["transl"].numpy()))], 1)

    def first_pose(self, predictions: dict[str, np.ndarray]) -> np.ndarray:
        """That of the first predictor in the table."""
        return next(value for name, value in predictions.items() if name.startswith("pose of "))

    def draw(self, mesh: np.ndarray, K: np.ndarray, background: np.ndarray) -> np.ndarray:
        """A mesh (V, 3) over a picture (H, W, 3); not one around the camera, of unknown place."""
        if self.data != "rendered" and mesh[:, 2].min() <= 0:
            return background
        return super().draw(mesh, K, background)

    def write(self, predictions: dict[str, np.ndarray], out: Path) -> None:
        """Pictures and, of official pictures, the first predictor's poses, shapes and joints."""
        if self.data != "rendered" and self.MODELS:
            pose, betas = self.first_pose(predictions), predictions["betas"]
            pieces = [slice(start, start + self.PIECE)
                      for start in range(0, len(pose), self.PIECE)]
            self.dump(out, predictions, pose=pose, betas=betas, transl=predictions["transl"],
                      joints=np.concatenate([self.mesh(betas[piece], pose[piece])["joints"]
                                             for piece in pieces]))
        super().write(predictions, out)


class TokenizerTask(BodyTask):
    """GenHMR, stage 1: poses to tokens and back."""

    Config, PRESETS = genhmr.TokenizerConfig, genhmr.TOKENIZER_PRESETS
    load_checkpoint = staticmethod(genhmr.load_tokenizer)
    parameters = staticmethod(genhmr.parameter_groups)
    PROTOCOLS = {"rendered": "pose_reconstruction", "amass": "amass_test", "moyo": "moyo_val",
                 "amass+moyo": "pose_reconstruction"}
    FLAGS = ("body", "protocol")
    UNIT = "poses"
    TITLE = "the pose, and what its tokens tell of it"

    def __init__(self, config: genhmr.TokenizerConfig, arguments: argparse.Namespace,
                 origin: Mapping[str, typing.Any]) -> None:
        super().__init__(config, arguments, origin)
        vertices = range(0, len(self.body.v_template), config.vertex_stride)
        self.thin_body = self.body.at_vertices(vertices)  # for the loss

    def data_set(self, split: str, length: int) -> Dataset:
        """A split of the free clips; or of the official data, each sequence in its proportion."""
        seed, folder = self.config.seed if split == "train" else 0, self.arguments.data_root
        if self.data == "rendered":
            return data.MotionPoses(split, length, seed, views=self.config.heading)
        held_out = dict(EVALUATIONS.values())
        parts = [{"amass": data.AMASS, "moyo": data.MOYO}[name](
            Path(folder, name) if "+" in self.data else folder,
            split if split == "train" else held_out[name], seed=seed, cache=self.arguments.cache)
            for name in self.data.split("+")]
        return data.Joined(parts) if len(parts) > 1 else parts[0]

    def build(self) -> nn.Module:
        """The tokenizer with new weights."""
        return genhmr.Tokenizer(self.config)

    def loss(self, trainer: Trainer,
             batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L_vq of poses that are turned at random; perplexity and dead codes for the log."""
        pose = genhmr.augment_rotation(batch["pose"], config=self.config)
        prediction = trainer(pose)
        terms = genhmr.tokenizer_losses(prediction, batch | {"pose": pose},
                                        self.thin_body.to(pose.device))
        statistics = {name: prediction[name] for name in ("perplexity", "dead_codes")}
        return genhmr.tokenizer_total_loss(terms, self.config), terms | statistics

    def predict(self, model: nn.Module, batch: dict[str, Tensor],
                final: bool = False) -> dict[str, Tensor]:
        """What the tokens tell of each pose, beside the pose."""
        return {"index": batch["index"], "pose of tokenizer": model(batch["pose"])["rotations"],
                "betas": batch["betas"], "true_pose": batch["pose"], "true_betas": batch["betas"]}

    def picture(self, index: int, predictions: dict[str, np.ndarray]) -> np.ndarray:
        """True and decoded pose side by side, seen from 4 m."""
        K, white = np.array([[240.0, 0, 80], [0, 240, 80], [0, 0, 1]]), np.ones((160, 160, 3))
        sample = {name: value[index:index + 1] for name, value in predictions.items()}
        meshes = [self.mesh(sample["betas"], sample[name])["vertices"][0]
                  for name in ("true_pose", "pose of tokenizer")]
        return np.concatenate([self.draw(mesh + (0, 0, 4), K, white) for mesh in meshes], 1)


class TransformerTask(BodyTask):
    """GenHMR, stage 2: tokens from images."""

    Config, PRESETS = genhmr.Config, genhmr.PRESETS
    load_checkpoint = staticmethod(genhmr.load_checkpoint)
    parameters = staticmethod(genhmr.parameter_groups)
    PROTOCOLS = {"rendered": "rendered_bodies"} | dict.fromkeys((
        "genhmr-sd", "genhmr-sd-official", "genhmr-itw", "genhmr-bl", "hmr2-tars", "h36m-moon",
        "coco", "mpii", "mpi-inf-3dhp", "aic", "bedlam"), "") | {
        EVALUATIONS[protocol][0]: protocol for protocol in (
            "3dpw_lsp14", "3dpw_smplx_lineage", "emdb1_24", "h36m_p2_lsp14")}
    FLAGS = ("backbone", "tokenizer", "iterations", "models", "protocol", "test_root")
    MODELS = ("SMPL_NEUTRAL, SMPL_MALE, SMPL_FEMALE and, for protocols of 14 joints, "
              "J_regressor_h36m.npy")
    TITLE = "image, predicted mesh (where the predicted camera puts it), true mesh"
    NOISE = 0.02  # of the crop: sigma of the 2D joints that refinement sees (our choice)
    REMARK = ("T: iterations of sampling. P: steps of refinement after it, against the true 2D "
              "joints (those\nof the 24 inside the crop) with noise of sigma 2 % of the crop's "
              f"side; fitted: the camera\nto them before, by genhmr.fit_camera.\n{BodyTask.REMARK}")

    @classmethod
    def adapt(cls, config: genhmr.Config, arguments: argparse.Namespace) -> genhmr.Config:
        """With the config of the tokenizer that is given."""
        if not arguments.tokenizer:
            return config
        tokenizer = genhmr.load_tokenizer(arguments.tokenizer)
        return dataclasses.replace(config, tokenizer=tokenizer.config)

    def __init__(self, config: genhmr.Config, arguments: argparse.Namespace,
                 origin: Mapping[str, typing.Any]) -> None:
        super().__init__(config, arguments, origin)
        if not origin and not arguments.tokenizer:
            raise ValueError("--stage transformer predicts the tokens of a trained tokenizer: make "
                             "one with --stage tokenizer and give its checkpoint with --tokenizer")
        self.iterations = 5 if arguments.iterations is None else arguments.iterations
        if self.iterations < 1:
            raise ValueError(f"--iterations {self.iterations}: expected at least 1")
        if origin and arguments.tokenizer:
            self.check_same("tokenizer", genhmr.load_tokenizer, origin)
        self.light_body = self.body.for_keypoints()  # training needs no other vertices

    def data_set(self, split: str, length: int) -> Dataset:
        """A split of rendered people, or of official data."""
        config, training = self.config, split == "train"
        if self.data != "rendered":
            return self.official(split, config.image_size, models=self.arguments.models,
                                 augmentation="official_hmr" if training else None)
        return data.RenderedBodies(
            split, config.image_size, length=length, seed=config.seed if training else 0,
            views=config.views, lean=config.lean, cache=self.arguments.cache,
            augmentation=config.augmentation if training else None)

    def build(self) -> nn.Module:
        """New weights around the tokenizer, but for the backbone if there is a file of it."""
        model = genhmr.GenHMR(self.config)
        if self.arguments.tokenizer:
            tokenizer = genhmr.load_tokenizer(self.arguments.tokenizer)
            model.tokenizer.load_state_dict(tokenizer.state_dict())
        if self.arguments.backbone:
            genhmr.load_backbone(model, self.arguments.backbone)
        return model

    def points(self, batch: dict[str, Tensor]) -> Tensor:
        """True joints and vertices (B, 24 + V, 3) of those whose pose is known, if any is."""
        known = batch["pose_valid"] > 0
        return super().points({name: batch[name][known] if known.any() else batch[name]
                               for name in ("betas", "pose")})

    def truth(self, predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Joints of motion capture, or bodies of each one's gender."""
        if self.data == "rendered":
            return super().truth(predictions)
        records = self.test_set.records(predictions["index"])
        if self.protocol == "h36m_p2_lsp14":
            return {"joints": data.relabelled(records["keypoints_3d"], self.test_set.JOINTS,
                                              "j17")[..., :3]}
        truth = {name: np.empty((len(records), count, 3), np.float32)
                 for name, count in (("joints", 24), ("vertices", len(self.body.v_template)))}
        for number in np.unique(records["gender"]):
            of = records["gender"] == number
            body = self.test_set.body(data.GENDERS[number], num_betas=10)
            posed = body(*(torch.from_numpy(predictions[name][of])
                           for name in ("true_betas", "true_pose")))
            truth["joints"][of], truth["vertices"][of] = posed.joints, posed.vertices
        return self.judged(truth)

    def judge(self, mesh: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> dict[str, float]:
        return super().judge(self.judged(mesh), truth)

    def judged(self, mesh: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """With the 17 joints of SPIN's regressor, for protocols of 14 of them."""
        if metrics.PROTOCOLS[self.protocol].joints != "j17":
            return mesh
        joints = np.einsum("jv,nvc->njc", self.h36m_regressor, mesh["vertices"])
        return mesh | {"joints": joints[:, bodymodels.joint_indices("h36m17_spin", "j17")]}

    @functools.cached_property
    def h36m_regressor(self) -> np.ndarray:
        """SPIN's J_regressor_h36m (17, V): left leg first, as the other file of its role is not."""
        path = Path(self.arguments.models, "J_regressor_h36m.npy")
        regressor = np.load(path, allow_pickle=False).astype(np.float32)
        rest = regressor @ self.body.v_template.numpy()
        if rest[1, 0] <= rest[4, 0]:
            raise ValueError(f"{path} has the right leg first: take SPIN's file, not Moon's")
        return regressor

    def in_crop(self, transl: Tensor, K: Tensor) -> Tensor:
        """Translations (B, 3) before the model's camera as those before the crops' K (B, 3, 3)."""
        model = data.body_camera(self.config.image_size)
        x, y, z = transl.unbind(1)
        z = z * K[:, 0, 0] / model[0, 0]
        return torch.stack((x - (K[:, 0, 2] - model[0, 2]) * z / K[:, 0, 0],
                            y - (K[:, 1, 2] - model[1, 2]) * z / K[:, 1, 1], z), 1)

    def loss(self, trainer: Trainer,
             batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L_total of all tokens, predicted from those that are not masked."""
        batch = genhmr.mask_batch(trainer.model, batch)
        terms = genhmr.losses(
            trainer(batch["image"], batch["masked_tokens"], batch.get("guessed")), batch,
            trainer.model, self.light_body.to(batch["image"].device),
            genhmr.gumbel_temperature(trainer.step, self.config))
        return genhmr.total_loss(terms, self.config), terms

    def predict(self, model: nn.Module, batch: dict[str, Tensor],
                final: bool = False) -> dict[str, Tensor]:
        """Poses sampled and, in the end, also with other T and refined, beside the truth."""
        features = model.encode(batch["image"])
        runs = {T: genhmr.sample_from(model, features, iterations=T)
                for T in dict.fromkeys((self.iterations, 1, 5, 10) if final else
                                       (self.iterations,))}
        found = runs[self.iterations]
        poses = {f"T={T}": run.rotations for T, run in runs.items()}
        for P, fitted in ((5, False), (10, False), (20, False), (20, True)) if final else ():
            poses[f"T={self.iterations} P={P}{' fitted' * fitted}"] = self.refined(
                model, found, batch, P, fitted)
        config = model.config
        transl = genhmr.camera_translation(found.camera, config.focal)
        if self.data != "rendered":
            transl = self.in_crop(transl, batch["K"])
        return {"index": batch["index"], "betas": found.betas, "transl": transl,
                "true_pose": batch["pose"], "true_betas": batch["betas"]} | {
            f"pose of {name}": pose for name, pose in poses.items()}

    def refined(self, model: nn.Module, found: genhmr.Sampled, batch: dict[str, Tensor],
                steps: int, fitted: bool = False) -> Tensor:
        """The poses after so many steps towards the true 2D joints with noise."""
        noise = np.stack([np.random.default_rng(index).normal(0, self.NOISE, (24, 2))
                          for index in batch["index"].tolist()])
        joints = batch["keypoints_2d"][:, :24] / model.config.image_size - 0.5
        joints = joints + torch.from_numpy(noise).to(joints)
        seen = batch["keypoints_valid"][:, :24]
        body, camera = self.light_body.to(joints.device), found.camera
        if fitted:
            camera = genhmr.fit_camera(camera, joints, seen,
                                       body(found.betas, found.rotations).joints,
                                       model.config.focal)
        return genhmr.refine(model, found.tokens, found.betas, camera, joints, seen,
                             lambda betas, pose: body(betas, pose).joints,
                             iterations=steps).rotations


class PeopleTask(Task):
    """What the stages of HMR-Adapter share: rendered or official people, and experts to build on.

    An expert is trained from pictures alone; an adapter is what is new around it.
    """

    parameters = staticmethod(hmr_adapter.parameter_groups)
    load_expert: Callable[..., nn.Module]  # from a file
    MODEL: type  # what this stage trains
    FLAGS = ("models", "protocol", "test_root")
    MODELS = ("SMPL-X's of all genders, MANO_RIGHT, MANO_LEFT, MANO_SMPLX_vertex_ids.pkl and, to "
              "judge bodies, SMPLX_to_J14.pkl, for faces SMPL-X__FLAME_vertex_ids.npy, for 3DPW "
              "SMPL_NEUTRAL")

    @classmethod
    def load_checkpoint(cls, path: str | Path) -> nn.Module:
        """The model of this stage; an expert also out of an adapter."""
        model = hmr_adapter.load_checkpoint(path)
        return model if isinstance(model, cls.MODEL) else hmr_adapter.expert_of(model, cls.MODEL)

    @classmethod
    def adapt(cls, config: typing.Any, arguments: argparse.Namespace) -> typing.Any:
        """With the config of the expert that is given."""
        if not arguments.expert:
            return config
        return dataclasses.replace(config, expert=cls.load_expert(arguments.expert).config)

    def __init__(self, config: typing.Any, arguments: argparse.Namespace,
                 origin: Mapping[str, typing.Any]) -> None:
        super().__init__(config, arguments, origin)
        if "expert" in self.FLAGS and not origin and not arguments.expert:
            stage = arguments.stage
            raise ValueError(f"--stage {stage} adapts a trained expert: make one with --stage "
                             f"{stage}_expert and give its checkpoint with --expert")
        if getattr(config, "inject", "") == "none" and config.trainable == "adapter":
            raise ValueError("inject=none leaves nothing to train: set trainable=head or all")
        if origin and arguments.expert and config.trainable == "adapter":
            self.check_same("expert", self.load_given, origin)

    def data_set(self, split: str, length: int) -> Dataset:
        """A split of rendered people, or of official data."""
        config, training = self.config, split == "train"
        if self.data != "rendered":
            return self.official(split, config.body_size, hand_size=config.hand_size,
                                 models=self.arguments.models,
                                 augmentation="official_hmr" if training else None)
        return data.RenderedPeople(
            split, config.body_size, hand_size=config.hand_size, length=length,
            seed=config.seed if training else 0, views=config.views, lean=config.lean,
            occlusion=config.occlusion, cache=self.arguments.cache,
            augmentation=config.augmentation if training else None)

    def build(self) -> nn.Module:
        """The expert with new weights, or the adapter around the trained one."""
        if not self.arguments.expert:
            return hmr_adapter.build_model(self.config)
        return hmr_adapter.build_model(self.config, self.load_given(self.arguments.expert))

    def load_given(self, source: str | Path | Mapping[str, typing.Any]) -> nn.Module:
        """An expert, with all that its weights need beside them."""
        return self.load_expert(source)


class HandExpertTask(PeopleTask):
    """HMR-Adapter's first expert, HaMeR: hands from their crops."""

    Config = hmr_adapter.HandExpertConfig
    PRESETS = {name: preset.hand.expert for name, preset in hmr_adapter.PRESETS.items()}
    PROTOCOLS = {"rendered": "rendered_people_hands", "arctic": "arctic_p1val"} | dict.fromkeys((
        "hmr-adapter-hands", "h36m-smplx", "rich", "bedlam", "freihand", "interhand", "hamer",
        "hamer-tars"), "")
    MODEL = hmr_adapter.HandExpert
    load_expert = staticmethod(hmr_adapter.load_hand_expert)
    TITLE = "hand (left ones mirrored), predicted mesh, true mesh (both at the true wrist)"
    CLEAR = 0.5  # of a hand has to be seen, or it counts as occluded (our choice)
    REMARK = ("Hands relative to their wrists. Rendered ones: those in the picture; occluded: less "
              "than half of it\nis seen. Mean hand: the mean mesh, or that of meshes turned onto "
              "one another if better.\n")

    def __init__(self, config: typing.Any, arguments: argparse.Namespace,
                 origin: Mapping[str, typing.Any]) -> None:
        super().__init__(config, arguments, origin)
        if self.data == "rendered":
            self.hand = bodymodels.load_model("hand_right")
        else:
            self.hand = bodymodels.load_model(arguments.models, family="mano", tips="smplx")
        self.faces = self.hand.faces

    def inputs(self, samples: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """What the model sees of `hand_samples` while it is trained."""
        return (samples["images"],)

    def loss(self, trainer: Trainer,
             batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 5."""
        samples = hmr_adapter.hand_samples(batch, getattr(self.config, "arm", "arm"))
        hand = self.hand.to(samples["images"].device)
        terms = hmr_adapter.hand_losses(trainer(*self.inputs(samples)), samples, hand, self.config)
        return hmr_adapter.hand_total_loss(terms, self.config), terms

    def found(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The model's output for both hands (2 B) of the people, by predictor."""
        return {"expert": model(batch["hand_images"].flatten(0, 1))}

    def predict(self, model: nn.Module, batch: dict[str, Tensor],
                final: bool = False) -> dict[str, Tensor]:
        """Both hands of people as joints and vertices (B, 2, 21 + 778, 3), beside the truth."""
        hands = {name: self.mesh(output).unflatten(0, (-1, 2))
                 for name, output in self.found(model, batch).items()}
        return {name: batch[name] for name in ("index", "hand_valid", "hand_visible")} | {
            "true hands": self.true_hands(batch)} | {
            f"hands of {name}": points for name, points in hands.items()}

    def mesh(self, output: dict[str, Tensor]) -> Tensor:
        """Joints and vertices (B, 21 + 778, 3), relative to the wrist."""
        hand = self.hand.to(output["betas"].device)
        vertices = hand(output["betas"], output["hand_pose"]).vertices
        joints = torch.einsum("jv,bvc->bjc", hand.keypoint_regressor, vertices)
        return torch.cat([joints, vertices], 1) - joints[:, :1]

    def true_hands(self, batch: dict[str, Tensor]) -> Tensor:
        """The same of the truth, (B, 2, 21 + 778, 3)."""
        joints = batch["hand_joints"]
        return torch.cat([joints, batch["hand_vertices"]], 2) - joints[:, :, :1]

    def points(self, batch: dict[str, Tensor]) -> Tensor:
        """The same of all true hands that are in the picture."""
        return self.true_hands(batch)[batch["hand_valid"] > 0]

    def scores(self, predictions: dict[str, np.ndarray]) -> Scores:
        """Of all predictors and the mean hand, for clear and for occluded hands."""
        valid, visible = predictions["hand_valid"] > 0, predictions["hand_visible"]
        truth, protocol = predictions["true hands"], metrics.PROTOCOLS[self.protocol].hands
        groups = {"clear ": valid & (visible >= self.CLEAR),
                  "occluded ": valid & (visible < self.CLEAR)}
        if self.data != "rendered":  # SMPLer-X leaves no hand out
            groups = {"": np.ones_like(valid)}

        def score(hands: np.ndarray) -> dict[str, float]:
            hands, scores = np.broadcast_to(hands, truth.shape), {}
            for group, chosen in groups.items():
                both = [{"joints": points[chosen][:, :21], "vertices": points[chosen][:, 21:]}
                        for points in (hands, truth)]
                scores |= {f"{group}{metric}": value for metric, value in metrics.evaluate(
                    protocol or self.protocol, *both).items()} if chosen.any() else {}
            return scores

        scores = {name.removeprefix("hands of "): score(hands)
                  for name, hands in predictions.items() if name.startswith("hands of ")}
        if self.baseline is not None:
            scores["mean hand"] = better(*map(score, self.baseline.numpy()))
        return scores

    def write(self, predictions: dict[str, np.ndarray], out: Path) -> None:
        """Pictures and, of official ones, the first predictor's [right, left] hands, relative to
        the wrist, left ones as they are."""
        if self.data != "rendered":
            hands = predictions[self.first(predictions)] * [[[1.0, 1, 1]], [[-1, 1, 1]]]
            self.dump(out, predictions, joints=hands[:, :, :21], vertices=hands[:, :, 21:])
        super().write(predictions, out)

    def first(self, predictions: dict[str, np.ndarray]) -> str:
        """The name of the first predictor's hands."""
        return next(name for name in predictions if name.startswith("hands of "))

    def picture(self, index: int, predictions: dict[str, np.ndarray]) -> np.ndarray:
        """A crop (H, H, 3), the right hand's or the left's, beside predicted and true mesh."""
        sample, hand = self.test_set[index], index % 2
        photo = sample["hand_images"][hand].permute(1, 2, 0).numpy() / np.float32(255)
        first = self.first(predictions)
        return np.concatenate([photo] + [self.draw(
            predictions[name][index, hand, 21:] + sample["hand_joints"][hand, 0].numpy(),
            sample["hand_K"][hand].numpy(), photo) for name in (first, "true hands")], 1)


class HandAdapterTask(HandExpertTask):
    """HMR-Adapter's first adapter: hands from their crops and the pose of the arm."""

    Config = hmr_adapter.HandConfig
    PRESETS = {name: preset.hand for name, preset in hmr_adapter.PRESETS.items()}
    MODEL = hmr_adapter.HandAdapter
    FLAGS = (*PeopleTask.FLAGS, "expert", "guide")
    REMARK = ("True arm: hears the true pose of the arm, whose product is the hand's orientation. "
              "Found arm: that of\nthe whole-body model in --guide. No arm: hears that it is "
              "unknown. Expert: alone.\n" + HandExpertTask.REMARK)

    def __init__(self, config: typing.Any, arguments: argparse.Namespace,
                 origin: Mapping[str, typing.Any]) -> None:
        super().__init__(config, arguments, origin)
        if config.arm_source == "found" and not arguments.guide and not arguments.eval:
            raise ValueError("arm_source=found trains with the arms that a whole-body model finds: "
                             "give its checkpoint with --guide")

    @functools.cached_property
    def guide(self) -> nn.Module:
        """The whole-body model."""
        return hmr_adapter.load_checkpoint(self.arguments.guide)

    @torch.no_grad()
    def find_pose(self, batch: dict[str, Tensor]) -> Tensor:
        """The guide's rotations (B, 55, 3, 3)."""
        return self.guide.to(batch["image"].device)(batch["image"])["body_pose"]

    def loss(self, trainer: Trainer,
             batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 5, with the true arm or the one that the guide finds."""
        if self.config.arm_source == "found":
            batch = batch | {"body_pose": self.find_pose(batch)}
        return super().loss(trainer, batch)

    def inputs(self, samples: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """With the arm."""
        return samples["images"], samples["arm"], samples["arm_valid"]

    def found(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """With the true arm, one found in the person's picture, an unknown one; and the expert."""
        images, arm = batch["hand_images"].flatten(0, 1), model.config.arm
        arms = {"true arm": batch["body_pose"]}
        if self.arguments.guide:
            arms["found arm"] = self.find_pose(batch)
        return {name: model(images, hmr_adapter.arm_pose(pose, arm).flatten(0, 1))
                for name, pose in arms.items()} | {
            "no arm": model(images), "expert": model.expert(images)}


class BodyExpertTask(PeopleTask, BodyTask):
    """HMR-Adapter's second expert, SMPLer-X: whole bodies from pictures of people.

    In its predictions "betas" are shape and expression together, (B, 20).
    """

    Config = hmr_adapter.BodyExpertConfig
    PRESETS = {name: preset.body.expert for name, preset in hmr_adapter.PRESETS.items()}
    PROTOCOLS = {"rendered": "rendered_people", "arctic": "arctic_p1val", "ehf": "ehf",
                 "3dpw-moon": "3dpw_smplx_lineage"} | dict.fromkeys((
                     "hmr-adapter-body", "h36m-smplx", "rich", "bedlam"), "")
    MODEL = hmr_adapter.BodyExpert
    load_expert = staticmethod(hmr_adapter.load_body_expert)
    BODY, FAMILY = "wholebody", "smplx"
    PIECE = 200
    TITLE = "image, predicted mesh (where the predicted camera puts it), true mesh"

    def __init__(self, config: typing.Any, arguments: argparse.Namespace,
                 origin: Mapping[str, typing.Any]) -> None:
        super().__init__(config, arguments, origin)
        self.light_body = self.body.for_keypoints()  # training needs no other vertices

    def load_given(self, source: str | Path | Mapping[str, typing.Any]) -> nn.Module:
        """The expert; SMPLer-X's own weights need the mean hand of its models."""
        if self.data == "rendered":
            return self.load_expert(source)
        (left, _), (right, _) = data.hand_space(Path(self.arguments.models), "smplx", "right",
                                                "neutral")
        mean = torch.tensor(np.stack([right, left])).float().view(2, 15, 3)
        return self.load_expert(source, hand_mean=mean)

    def inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """What the model sees while it is trained."""
        return (batch["image"],)

    def loss(self, trainer: Trainer,
             batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 7 and 8."""
        body = self.light_body.to(batch["image"].device)
        expert = hmr_adapter.expert_of(trainer.model, hmr_adapter.BodyExpert)
        terms = hmr_adapter.body_losses(trainer(*self.inputs(batch)), batch, body, expert,
                                        self.config)
        return hmr_adapter.body_total_loss(terms, self.config), terms

    def found(self, model: nn.Module, batch: dict[str, Tensor]
              ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The model's output, and the rotations (B, 55, 3, 3) by predictor."""
        output = model(batch["image"])
        return output, {"expert": output["body_pose"]}

    def predict(self, model: nn.Module, batch: dict[str, Tensor],
                final: bool = False) -> dict[str, Tensor]:
        """The poses, one shape for all of them, and the truth."""
        output, poses = self.found(model, batch)
        return {"index": batch["index"], "transl": output["translation"],
                "betas": self.shape(output), "true_betas": self.shape(batch),
                "true_pose": batch["body_pose"]} | {
            f"pose of {name}": pose for name, pose in poses.items()}

    def truth(self, predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of official data the meshes of their own models, SMPL-X's or SMPL's."""
        if self.data == "rendered":
            return super().truth(predictions)
        pictures = self.test_set.pictures
        vertices = [pictures.posed(record)[0].vertices[0].numpy()
                    for record in self.test_set.records(predictions["index"])]
        return {"vertices": np.stack(vertices)}

    def judge(self, mesh: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> dict[str, float]:
        """Of official data all joints are those that regressors take from the meshes."""
        if self.data == "rendered":
            return super().judge(mesh, truth)
        if self.protocol == "3dpw_smplx_lineage":  # the 14 that count are among SMPL-X's first 24
            smpl = self.test_set.pictures.body().J_regressor.numpy()
            regressors = self.body.J_regressor.numpy()[:24], smpl
            return metrics.evaluate(self.protocol, *(
                {"joints": np.einsum("jv,nvc->njc", regressor, points["vertices"])}
                for regressor, points in zip(regressors, (mesh, truth), strict=True)))
        folder = Path(self.arguments.models)
        return metrics.evaluate(
            self.protocol, *map(self.regressed, (mesh, truth)),
            folder / "MANO_SMPLX_vertex_ids.pkl",
            folder / "SMPL-X__FLAME_vertex_ids.npy" if self.protocol == "ehf" else None)

    def regressed(self, mesh: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A mesh with its 76 keypoints and, as "scored", the 14 joints of SMPLX_to_J14."""
        vertices = mesh["vertices"]
        joints, scored = (np.einsum("jv,nvc->njc", regressor, vertices) for regressor in (
            self.body.J_regressor.numpy(), self.j14_regressor))
        surface = vertices[:, list(self.body.surface_vertex_ids)]
        return {"vertices": vertices, "joints": np.concatenate([joints, surface], 1),
                "scored": scored}

    @functools.cached_property
    def j14_regressor(self) -> np.ndarray:
        """SMPLX_to_J14.pkl (14, V)."""
        path = Path(self.arguments.models, "SMPLX_to_J14.pkl")
        regressor = np.asarray(bodymodels.safe_unpickle(path), np.float32)
        if regressor.shape != (14, len(self.body.v_template)):
            raise ValueError(f"{path} has shape {regressor.shape}: expected 14 rows for the "
                             f"{len(self.body.v_template)} vertices of SMPL-X")
        return regressor

    def shape(self, values: dict[str, Tensor]) -> Tensor:
        """Betas and expression (B, 20)."""
        return torch.cat([values["betas"], values["expression"]], 1)

    def points(self, batch: dict[str, Tensor]) -> Tensor:
        """True keypoints and vertices (B, 76 + 10475, 3)."""
        return torch.cat(self.posed(self.shape(batch), batch["body_pose"]), 1)

    def posed(self, betas: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Keypoints (B, 76, 3) and vertices (B, 10475, 3) without translation."""
        output = self.body.to(pose.device)(betas[:, :10], pose, betas[:, 10:])
        return self.body.keypoints(output), output.vertices


class BodyAdapterTask(BodyExpertTask):
    """HMR-Adapter's second adapter: whole bodies, refined by what is seen at the knuckles."""

    Config = hmr_adapter.BodyConfig
    PRESETS = {name: preset.body for name, preset in hmr_adapter.PRESETS.items()}
    MODEL = hmr_adapter.BodyAdapter
    FLAGS = (*PeopleTask.FLAGS, "expert")

    def inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """With the true knuckles, or without."""
        if self.config.knuckle_source == "found":
            return (batch["image"],)
        return batch["image"], hmr_adapter.true_knuckles(batch), batch["hand_valid"]

    def found(self, model: nn.Module, batch: dict[str, Tensor]
              ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The adapter's with knuckles where the expert sees them, and the expert's."""
        output = model(batch["image"])
        poses = {"adapter": output["body_pose"]}
        if model.keeps_expert:
            poses["expert"] = model.expert(batch["image"])["body_pose"]
        return output, poses


class DualPathTask(BodyAdapterTask):
    """Both paths of HMR-Adapter and the merge, which nothing trains: scores alone."""

    Config = hmr_adapter.Training  # what all stages have; each has more
    FLAGS = (*PeopleTask.FLAGS, "guide")
    REMARK = ("Expert: the whole-body expert alone. Experts: with the hand expert's hands, merged. "
              "Ours: the same\nwith both adapters. Hands are cut out where they are; those outside "
              f"of the picture stay the body's.\n{BodyTask.REMARK}")

    def found(self, model: hmr_adapter.HMRAdapter, batch: dict[str, Tensor]
              ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Both paths with and without adapters, and the whole-body expert alone."""
        ours, experts = (model.join(
            model.body(batch["image"], scale=scale), batch["hand_images"], batch["hand_valid"],
            scale=scale) for scale in (1.0, 0.0))
        return ours, {"ours": ours["body_pose"], "experts": experts["body_pose"],
                      "expert": experts["body_path"]}


TASKS = {  # by model, or by model-stage
    "simplehand": SimpleHandTask, "genhmr-tokenizer": TokenizerTask,
    "genhmr-transformer": TransformerTask, "hmr_adapter-hand_expert": HandExpertTask,
    "hmr_adapter-body_expert": BodyExpertTask, "hmr_adapter-hand": HandAdapterTask,
    "hmr_adapter-body": BodyAdapterTask, "hmr_adapter-all": DualPathTask}

# ------------------------------------------------------------------------------ command line


OPTIONAL = ("hand", "body", "backbone", "tokenizer", "iterations", "models", "protocol",
            "test_root", "expert", "guide")  # flags of some tasks only


def find_task(model: str | None, stage: str | None) -> str | None:
    """The name in TASKS, if there is one."""
    name = f"{model}-{stage}" if stage else model
    return name if name in TASKS else None


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The flags; with --model, --help also lists the fields that --set takes."""
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("--model")
    chosen.add_argument("--stage")
    known = chosen.parse_known_args(argv)[0]
    task = TASKS.get(find_task(known.model, known.stage))
    parser = argparse.ArgumentParser(
        prog="train.py", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__, epilog=inspect.getsource(task.Config) if task else
        "Add --model, and --stage if it has stages, to see the fields that --set takes.")
    add = parser.add_argument
    add("--model", required=True, choices=list(dict.fromkeys(name.split("-")[0] for name in TASKS)))
    add("--stage", help="of a model that is trained in stages: "
        + ", ".join(name.replace("-", ": ", 1) for name in TASKS if "-" in name))
    add("--preset", help="a named Config (default: one that suits this machine)")
    add("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", dest="overrides",
        help="change fields of the Config; --model M --help lists them")
    add("--data", help="kind of data: rendered (default), or freihand or dexycb for simplehand, or "
        "amass, moyo or amass+moyo for genhmr's tokenizer, or for its transformer and for "
        "hmr_adapter a data set or mixture of data.py: genhmr-sd, genhmr-itw, genhmr-bl, coco, "
        "..., hmr-adapter-hands, hmr-adapter-body, rich, ...")
    add("--protocol", choices=tuple(EVALUATIONS), help="how, and so on which data set, to judge "
        "what is trained or evaluated on official data")
    add("--test-root", help="folder of the data set that --protocol judges (default: --data-root)")
    add("--models", help="folder of official body models: for genhmr "
        + f"{TransformerTask.MODELS}; for hmr_adapter {PeopleTask.MODELS}")
    add("--data-root", help="folder of data that are not rendered; of amass+moyo, the one with "
        "the folders amass and moyo")
    add("--hand", help="hand model: MANO_RIGHT.pkl for FreiHAND, the folder of both sides' for "
        "DexYCB (default: the free one)")
    add("--body", help="body model: a file of SMPL's (default: the free one)")
    add("--tokenizer", help="checkpoint of the tokenizer that --stage transformer builds on")
    add("--expert", help="checkpoint of the expert that --stage hand or body adapts: train.py's, "
        "HaMeR's or SMPLer-X's")
    add("--guide", help="checkpoint of a whole-body stage: its arm poses train --stage hand with "
        "arm_source=found and are scored there; or with --stage all --eval")
    add("--iterations", type=int, help="of sampling, for the scores (default: 5)")
    add("--cache", help="folder for rendered images (default: runs/cache)", default="runs/cache")
    add("--backbone", help="weights to start from: FastViT's, HRNet's or Hiera's for simplehand, "
        "4D-Humans', TokenHMR's or ViTPose's ViT for genhmr")
    add("--out", type=Path, help="folder of the run (default: runs/MODEL[-STAGE])")
    add("--resume", action="store_true",
        help="continue the run in --out; its settings hold, but for those given here")
    add("--eval", action="store_true", help="only score --checkpoint (default: that in --out)")
    add("--checkpoint", type=Path, help="the file to score with --eval; of --stage all, the hand's")
    add("--export", type=Path, help="write the final weights in half precision, to ship, to this "
        "file; of --stage all, to this folder")
    add("--workers", type=int, help="data processes beside each training process")
    add("--save-every", type=float, default=60.0, metavar="SECONDS", help="(default: 60)")
    add("--compile", action="store_true", help="torch.compile the model")
    add("--ablate", help="train every row of this table of the paper instead, and write the table: "
        + ", ".join(simplehand.ABLATIONS))
    add("--seeds", type=int, default=1, help="of each row, from the config's on (default: 1)")
    arguments = parser.parse_args(argv)
    arguments.argv, arguments.name = argv, find_task(arguments.model, arguments.stage)
    check_arguments(arguments, parser.error)
    arguments.out = arguments.out or Path("runs") / (
        f"{arguments.name}-eval" if arguments.checkpoint
        else f"{arguments.name}-ablations" if arguments.ablate else arguments.name)
    return arguments


def check_arguments(arguments: argparse.Namespace, error: Callable[[str], None]) -> None:
    """Call error with a message unless the flags go together."""
    stages = [name.partition("-")[2] for name in TASKS if name.split("-")[0] == arguments.model]
    if arguments.name is None:
        error(f"{arguments.model} is trained without --stage" if stages == [""] else
              f"{arguments.model} is trained in stages, each with a run of its own: add --stage "
              + ", then --stage ".join(stages))
    for flag in OPTIONAL:
        if getattr(arguments, flag) is not None and flag not in TASKS[arguments.name].FLAGS:
            flag = flag.replace("_", "-")
            error(f"--{flag} means nothing to {arguments.name.replace('-', ' --stage ')}")
    if arguments.checkpoint and not arguments.eval:
        error("--checkpoint goes with --eval; to continue a run use --resume")
    if arguments.ablate and arguments.ablate not in TASKS[arguments.name].ABLATIONS:
        error(f"--ablate {arguments.ablate}: {arguments.name} has "
              + (", ".join(TASKS[arguments.name].ABLATIONS) or "no such tables"))
    if arguments.ablate and (arguments.eval or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        error("--ablate trains, in one process: use it without --eval and --nproc-per-node")
    if arguments.seeds < 1:
        error(f"--seeds {arguments.seeds}: expected at least 1")
    if arguments.name == "hmr_adapter-all" and arguments.guide and not arguments.eval:
        error("--stage all trains its own --guide: that flag goes with --eval")


def override(config: typing.Any, assignments: list[str]) -> typing.Any:
    """The config with "field=value" applied; raises ValueError for what does not fit."""
    values = {}
    kinds = {name: kind for name, kind in typing.get_type_hints(type(config)).items()
             if not dataclasses.is_dataclass(kind)}  # a part's config comes with the part
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or name not in kinds:
            raise ValueError(f"--set {assignment}: expected FIELD=VALUE with a field of: "
                             + ", ".join(kinds))
        try:
            values[name] = parse_value(kinds[name], text)
        except (ValueError, KeyError):
            kind = getattr(kinds[name], "__name__", kinds[name])
            raise ValueError(f"--set {assignment}: {text!r} is not of type {kind}; by default "
                             f"{name} is {getattr(config, name)}") from None
    config = dataclasses.replace(config, **values)
    check_config(config)
    return config


def parse_value(kind: typing.Any, text: str) -> typing.Any:
    """Text as a bool, int, float, str or comma-separated tuple of them."""
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
        return tuple(parse_value(kind, part) for part in text.split(",") if text)  # () for none
    return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)


def check_config(config: typing.Any) -> None:
    """Raise ValueError unless the fields that this file reads make sense."""
    for name in ("batch_size", "accumulate", "steps", "eval_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}: expected at least 1")
    for name, allowed in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} is {getattr(config, name)!r}: expected one of "
                             + ", ".join(allowed))
    if not 0.0 <= config.ema_decay < 1.0:
        raise ValueError(f"ema_decay is {config.ema_decay}: expected 0 (off) or up to 1")


def check_shares(config: typing.Any, world: World) -> None:
    """Raise ValueError unless the step's samples split evenly among processes and parts."""
    parts = world.size * config.accumulate
    if config.batch_size % parts:
        raise ValueError(f"batch_size is {config.batch_size}: expected a multiple of {parts}, "
                         f"{world.size} processes x accumulate={config.accumulate}")


def choose_config(arguments: argparse.Namespace, run: dict | None) -> typing.Any:
    """Preset and config from the flags, or with --resume from the run in --out and the flags.

    A run that is there is continued, be it the command that is repeated, as torchrun does after
    a failure, or --resume; ValueError if it is another one.
    """
    task = TASKS[arguments.name]
    known = run if run and arguments.resume and run["name"] == arguments.name else None
    arguments.preset = arguments.preset or (known["preset"] if known else suitable_preset())
    preset = choose_preset(arguments, arguments.preset)
    base = task.Config(**known["config"]) if known else preset
    config = override(task.adapt(base, arguments), arguments.overrides)
    if run:
        wanted = {"name": arguments.name, "preset": arguments.preset,
                  "data": arguments.data or run["data"]}
        other = [name for name, value in wanted.items() if run[name] != value]
        if not arguments.resume:
            other += [name for name, value in dataclasses.asdict(config).items()
                      if run["config"].get(name) != value]
        if other:
            raise ValueError(f"{arguments.out} already holds another run (it differs in "
                             f"{', '.join(other)}): continue that one with --resume, or start "
                             "this one with --out FOLDER")
    return config


def choose_preset(arguments: argparse.Namespace, name: str) -> typing.Any:
    """The task's preset of this name; raises ValueError if it has none."""
    presets = TASKS[arguments.name].PRESETS
    if name not in presets:
        raise ValueError(f"no preset {name!r} for {arguments.name}: expected one of "
                         + ", ".join(presets))
    return presets[name]


def suitable_preset() -> str:
    """The preset for this machine."""
    if not torch.cuda.is_available():
        return "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory
    return "h200" if memory > 100e9 else "single_gpu"


def begin(trainer: Trainer, run: dict | None, out: Path) -> None:
    """Take up the run, or start one."""
    task, world = trainer.task, trainer.world
    if run:
        trainer.load_state_dict(run)
    elif world.leader:
        size, count = task.config.batch_size, min(BASELINE_SAMPLES, len(task.train_set))
        keys = (list(range(first, min(first + size, count))) for first in range(0, count, size))
        task.set_baseline(load_batches(task.train_set, keys, world))
        out.mkdir(parents=True, exist_ok=True)
    world.wait()
    if world.mean([trainer.step]) != [trainer.step]:
        raise SystemExit(f"train.py: {out} shows step {trainer.step} to process {world.rank} and "
                         "another to others: --out has to be a folder that all machines share")
    if world.leader:
        count = sum(parameter.numel() for parameter in trainer.model.parameters())
        print(f"{type(trainer.model).__name__}, {count:,} parameters, on {world.size} x "
              f"{world.device.type}: from step {trainer.step} to {task.config.steps}, in {out}",
              flush=True)


def describe(task: typing.Any, origin: dict, world: World) -> dict[str, typing.Any]:
    """What a checkpoint tells about itself; a continued run keeps its first command."""
    arguments = task.arguments
    launcher = "python" if world.size == 1 else f"torchrun --nproc-per-node {world.size}"
    command = f"{launcher} train.py {shlex.join(map(without_folder, arguments.argv))}"
    return {
        "name": arguments.name, "preset": arguments.preset or origin.get("preset"),
        "data": task.data, "config": dataclasses.asdict(task.config),
        "command": origin.get("command", command),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__),
                     "numpy": np.__version__},
    }


def without_folder(word: str) -> str:
    """A flag's value, but of an absolute path its end: the rest belongs to this machine."""
    before, equals, value = word.rpartition("=")
    return before + equals + (Path(value).name if os.path.isabs(value) else value)


def finish(task: typing.Any, model: nn.Module, step: int | None, world: World,
           about: dict[str, typing.Any]) -> None:
    """Score the model, print the table, write results, pictures and, if asked to, the export."""
    weights, out, export = model.state_dict(), task.arguments.out, task.arguments.export
    if export:  # rounds the weights first, so that the scores are those of the file
        weights |= {name: value.detach().half() for name, value in model.named_parameters()}
        model.load_state_dict(weights)
    scores, predictions = evaluate(task, model, world, final=True)
    if not world.leader:
        return
    print(f"\n{score_table(scores)}\n{task.REMARK}" if scores else
          "\nno annotation to score against\n")
    out.mkdir(parents=True, exist_ok=True)
    results = {**about, "step": step, "scores": scores}
    bodymodels.write_atomically(out / "results.json", json.dumps(results, indent=2).encode())
    task.write(predictions, out)
    if export:
        save({**results, "model": weights, "baseline": task.baseline}, export)
    if not task.arguments.eval:
        row = {"step": step, **next(iter(scores.values()), {})}
        Table(out / "scores.csv", list(row), step - 1).add(row)
        draw_curves(out)
    print(f"in {out}: " + ", ".join(sorted(path.name for path in out.iterdir())), flush=True)


def ablate(arguments: argparse.Namespace) -> None:
    """Train every row of a table with every seed, one after another; what is done is kept.

    Each is a run of its own in OUT, named by what it changes, so tables share rows. The table is
    written after each. Several processes may work on one OUT with seeds of their own.
    """
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--ablate")
    own.add_argument("--seeds")
    rest = own.parse_known_args(arguments.argv)[1]  # the flags that the runs get too
    preset, rows = arguments.preset or "ablation", simplehand.ABLATIONS[arguments.ablate]
    try:
        config = override(choose_preset(arguments, preset), arguments.overrides)
        configs = {row: simplehand.ablated(config, changes) for row, (changes, _) in rows.items()}
    except ValueError as error:
        sys.exit(f"train.py: {error}")
    out, found = arguments.out, collections.defaultdict(dict)
    for seed in range(config.seed, config.seed + arguments.seeds):
        for row, changed in configs.items():
            fields = {name: value for name, value in dataclasses.asdict(changed).items()
                      if value != getattr(config, name)}
            settings = [f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
                        for name, value in fields.items()]
            run = out / " ".join(settings or ["unchanged"]) / f"seed {seed}"
            if not (run / "results.json").exists():
                print(f"\n{arguments.ablate}, {row}, seed {seed}", flush=True)
                main([*rest, "--preset", preset, "--out", str(run), "--set", *settings,
                      f"seed={seed}"])
            if not (run / "results.json").exists():  # a signal ended it
                return
            results = json.loads((run / "results.json").read_text())
            require_same_run(results, dataclasses.asdict(changed) | {"seed": seed}, run)
            scores = next(iter(results["scores"].values()))
            found[row][seed] = scores["PA-MPJPE"], scores["PA-MPVPE"]
            command = f"python train.py {shlex.join(arguments.argv)}"
            text = simplehand.ablation_table(arguments.ablate, found, config, command)
            bodymodels.write_atomically(out / f"{arguments.ablate}.md", text.encode())
    print(f"\n{text}\nin {out / arguments.ablate}.md")


def require_same_run(results: dict, config: dict, run: Path) -> None:
    """Raise SystemExit if a finished run of an ablation had other settings than asked for now."""
    other = [name for name, value in json.loads(json.dumps(config)).items()
             if results["config"].get(name) != value]
    if other:
        sys.exit(f"train.py: {run} holds another run (it differs in {', '.join(other)}): give "
                 "another folder with --out")


def run_stage(arguments: argparse.Namespace, world: World | None = None) -> tuple[World, bool]:
    """Train, then evaluate; or evaluate alone. Returns the world and whether all is done."""
    task_class = TASKS[arguments.name]
    try:
        if arguments.eval:
            path = arguments.checkpoint or arguments.out / "checkpoint.pt"
            model = task_class.load_checkpoint(path)
            origin = torch.load(path, map_location="cpu", weights_only=True)
            task = task_class(override(model.config, arguments.overrides), arguments, origin)
        else:
            path = arguments.out / "checkpoint.pt"
            origin = (torch.load(path, map_location="cpu", weights_only=True)
                      if path.exists() else None)
            task = task_class(choose_config(arguments, origin), arguments, origin or {})
        # Data are prepared before the processes meet, because then none of them waits in vain.
        _ = task.test_set, arguments.eval or task.train_set
        world = world or join_world(arguments.workers)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train.py: {error}")
    about = describe(task, origin or {}, world)
    if arguments.eval:
        finish(task, model.to(world.device), origin.get("step"), world, about)
        return world, True
    try:
        check_shares(task.config, world)
    except ValueError as error:
        sys.exit(f"train.py: {error}")
    trainer = Trainer(task, world, arguments.compile)
    begin(trainer, origin, arguments.out)
    with signals_noted() as signals:
        done = train(trainer, arguments.out, about, arguments.save_every, signals)
    if done:
        finish(task, trainer.best_model, trainer.step, world, about)
    return world, done


ALL = ("hand_expert", "body_expert", "hand", "body")  # stages of HMR-Adapter, in order


def run_all(arguments: argparse.Namespace) -> tuple[World, bool]:
    """HMR-Adapter's four stages, each in its folder in OUT, and the scores of the dual path."""
    world, done, out = None, True, arguments.out
    for stage in () if arguments.eval else ALL:
        world, done = run_stage(stage_arguments(arguments, stage), world) if done else (world, done)
    if not done:
        return world, False
    files = [arguments.checkpoint or out / "hand" / "checkpoint.pt",
             arguments.guide or out / "body" / "checkpoint.pt"]
    part = argparse.Namespace(**vars(stage_arguments(arguments, "body")) | {
        "name": arguments.name, "out": out, "eval": True, "expert": None, "export": None})
    try:
        model = hmr_adapter.load_paths(*files)
        origin = torch.load(files[1], map_location="cpu", weights_only=True)
        task = DualPathTask(override(model.body.config, part.overrides), part, origin)
        _ = task.test_set
        world = world or join_world(arguments.workers)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train.py: {error}")
    finish(task, model.to(world.device), None, world, describe(task, origin, world))
    return world, True


def stage_arguments(arguments: argparse.Namespace, stage: str) -> argparse.Namespace:
    """The flags of one of all stages; what --set sets, it sets in each that has the field."""
    def fields(task: str) -> set[str]:
        return {field.name for field in dataclasses.fields(TASKS[task].Config)}

    name = f"{arguments.model}-{stage}"
    elsewhere = set().union(*(fields(f"{arguments.model}-{other}") for other in ALL)) - fields(name)
    changes = {"stage": stage, "name": name, "out": arguments.out / stage,
               "overrides": [text for text in arguments.overrides
                             if text.partition("=")[0] not in elsewhere], "export": None}
    if stage in ("hand", "body"):
        preset = arguments.preset or suitable_preset()
        changes |= {"expert": arguments.out / f"{stage}_expert" / "checkpoint.pt",
                    "export": arguments.export and
                    arguments.export / f"hmr_adapter_{stage}_{preset}.pt"}
    if stage == "hand":
        changes["guide"] = arguments.out / "body_expert" / "checkpoint.pt"
    return argparse.Namespace(**vars(arguments) | changes)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    if arguments.ablate:
        return ablate(arguments)
    world, _ = (run_all if arguments.name == "hmr_adapter-all" else run_stage)(arguments)
    if world.size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
