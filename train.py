"""Train and evaluate in plain PyTorch, in one process or in several that torchrun starts.

    python train.py --model simplehand                                # a preset for this machine
    torchrun --nproc-per-node 8 train.py --model simplehand --preset paper --backbone FILE \\
        --data freihand --data-root FOLDER --hand MANO_RIGHT.pkl          # the paper's run
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST train.py ...
    python train.py --model simplehand --resume --set steps=9000      # continue the run in OUT
    python train.py --model simplehand --checkpoint FILE              # a new run from these weights
    python train.py --model simplehand --eval --checkpoint FILE       # scores only
    python train.py --model genhmr --stage tokenizer                  # each stage is a run
    python train.py --model genhmr --stage encoder                    # of our small network alone
    python train.py --model genhmr --stage transformer --tokenizer FILE --backbone FILE
    python train.py --model hmr_adapter --stage all                   # all stages in a row

The folder OUT (runs/MODEL[-STAGE] by default) receives checkpoint.pt (to continue), best.pt (the
best weights by test score), log.csv (a row per step), scores.csv (a row per evaluation) and, at
the end, results.json, predictions.png and curves.png. Repeat the command to continue its run;
torchrun --max-restarts does so by itself. If bad data end a run, one message says why; error.txt
says where in the code.

A run that is killed and continued ends in the same weights as an uninterrupted one, bit for bit on
a CPU with the same number of threads, because a step depends only on its checkpoint and its number:
- the samples of step n are a function of (seed, n), see `rank_batches`;
- dropout and all other random draws are seeded by (seed, step, part of the step);
- a checkpoint holds everything else, and replaces its predecessor atomically.
The number of processes is not a hyperparameter: batch_size counts the samples of a step over all
processes, batch norm spans them, and the order of samples does not depend on them. Only the dropout
masks differ, as they do between one batch and several accumulated ones.

Without --preset the machine decides: "h200" for a GPU of more than 100 GB, "single_gpu" for a
smaller one, "cpu" without a GPU. Samples per step and steps of the presets (a x b: b parts of a
samples, on b GPUs or, for single_gpu, one after another):

    preset       SimpleHand       GenHMR: tokenizer transformer       HMR-Adapter: hand; body
    paper        32 x 8, 51,200   512, 200,000      48 x 2, 300,000   32 x 4, 10,000; 10,000
    single_gpu   32 x 8, 51,200   256 x 2, 200,000  12 x 8, 300,000   16 x 8, 10,000; 10,000
    h200         512, 25,600      2,048, 50,000     192, 150,000      128, 10,000; 10,000
    cpu          32, 3,800        64, 5,000         32, 1,800         32, 300; 200

HMR-Adapter's numbers are its adapters'. SimpleHand has four more presets: paper_hrnet and
paper_hiera (other backbones), ablation (rows of tables on a CPU), cpu_views (any view: 64, 7,200).
No preset for GPUs has been run yet.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import inspect
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import bodymodels
from sets.samples import follow_parent
from tasks import genhmr, hmr_adapter, simplehand
from tasks.base import EVALUATIONS, Predictions, Scores, Task, parameter_groups
from tasks.files import (
    Journal,
    add_scores,
    describe,
    draw_curves,
    first_line,
    opening,
    read_run,
    save,
    score_table,
)
from tasks.ranks import World, announce, fail, join_world, share_batch_norm
from tasks.settings import (
    ON_A_CPU,
    PRECISIONS,
    RunConfig,
    Settings,
    check_shares,
    override,
    preset_settings,
    stored_settings,
    suitable_preset,
    supported_precision,
    with_optimisation,
)

PAPERS = {"simplehand": simplehand, "genhmr": genhmr, "hmr_adapter": hmr_adapter}
TASKS: dict[str, type[Task]] = {  # by model, or by model-stage
    f"{model}-{stage}" if stage else model: task
    for model, paper in PAPERS.items() for stage, task in paper.STAGES.items()}
Value = TypeVar("Value")
MAX_SKIPPED = 10  # non-finite steps in a row before giving up
COUNTERS = "step", "position", "skipped", "seconds"  # of a Trainer
BASELINE_SAMPLES = 2_000  # training samples whose mean is the baseline

# --------------------------------------------------------------------- functions of the step


def learning_rate(config: RunConfig, step: int) -> float:
    """Return the rate of step 0, 1, ...: warm-up times constant, step (/ 10 at half) or cosine."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    factor = {
        "constant": 1.0,
        "step": 1.0 if step < config.steps / 2 else 0.1,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * max(0.0, progress)),
    }[config.schedule]
    return config.learning_rate * warmup * factor


def seed_everything(*numbers: int) -> None:
    """Seed all random number generators by these numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Shuffle the indices of one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(length)


def key_at(position: int, length: int, seed: int) -> int:
    """Return the key of the position-th sample of a run: epoch * length + index."""
    epoch, offset = divmod(position, length)
    return epoch * length + int(epoch_order(seed, epoch, length)[offset])


def rank_batches(position: int, steps: int, batch_size: int, accumulate: int, world: World,
                 length: int, seed: int) -> Iterator[list[int]]:
    """Yield the keys of this rank's batches, `accumulate` per step, from the position-th sample on.

    A step takes the next batch_size samples of the run: an equal, contiguous share for each rank.
    """
    own = batch_size // world.size
    part = own // accumulate
    for step in range(steps):
        first = position + step * batch_size + world.rank * own
        for start in range(first, first + own, part):
            yield [key_at(start + offset, length, seed) for offset in range(part)]


# -------------------------------------------------------------------------------------- data


def load_batches(dataset: Dataset, keys: Iterable[list[int]],
                 world: World) -> Iterator[dict[str, Tensor]]:
    """Yield batches of the data set, one for each list of keys, on this rank's device."""
    loader = DataLoader(dataset, batch_sampler=keys, num_workers=world.workers,
                        pin_memory=world.device.type == "cuda", worker_init_fn=follow_parent)
    batches = iter(loader)
    try:
        for batch in batches:
            yield {name: value.to(world.device, non_blocking=True)
                   for name, value in batch.items()}
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "Traceback" in str(error):
            raise
        path = "/dev/shm"
        size = (f", of which {path} has {shutil.disk_usage(path).total / 2**20:,.0f} MiB"
                if os.path.isdir(path) else "")
        raise RuntimeError(
            f"a data worker died ({error}). Batches travel through shared memory{size}: in a "
            "container give it more (docker run --shm-size=16g), else try fewer --workers; "
            "--workers 0 needs none") from error
    finally:
        if world.workers:  # they ignore SIGTERM, and an error's traceback would keep them alive
            batches._shutdown_workers()


def share(task: Task, world: World) -> int:
    """Return the number of samples that one process computes at once."""
    return task.config.batch_size // (world.size * task.settings.accumulate)


# ----------------------------------------------------------------------------- training step


class MixedPrecision(nn.Module):
    """A model that runs in lower precision; losses, outside, are computed in full precision."""

    def __init__(self, module: nn.Module, device: torch.device, precision: str) -> None:
        super().__init__()
        self.module, self.device, self.dtype = module, device, PRECISIONS[precision]

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        enabled = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=enabled):
            return self.module(*inputs)


class Trainer:
    """Model, optimiser and counters: all that a step changes and a checkpoint keeps."""

    def __init__(self, task: Task, world: World, model: nn.Module, compile: bool = False) -> None:
        config, settings, device = task.config, task.settings, world.device
        self.task, self.config, self.settings, self.world = task, config, settings, world
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        model = model.to(device, memory_format=layout)
        task.to(device)
        self.model = share_batch_norm(model, device) if world.size > 1 else model
        if compile:
            self.model.compile()
        self.called: nn.Module = MixedPrecision(self.model, device, settings.precision)
        if world.size > 1:
            # 1 x 1 convolutions: their two memory layouts are the same
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            self.called = DistributedDataParallel(
                self.called, [device] if device.type == "cuda" else None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config.weight_decay), lr=config.learning_rate, fused=True)
        self.buffers = [buffer.clone() for buffer in self.model.buffers()]  # before the step
        self.step = 0  # finished optimiser steps
        self.position = 0  # samples seen
        self.skipped = 0  # non-finite steps in a row, up to now
        self.seconds = 0.0  # spent training, over all resumed parts

    def train_step(self, batches: list[dict[str, Tensor]],
                   flags: Iterable[bool] = ()) -> tuple[dict[str, float], list[bool]]:
        """Take one optimiser step on this rank's batches.

        Returns the losses (means over all ranks), rate and gradient norm, and for each flag
        whether any rank raised it. If loss or gradient are not finite on any rank, no rank moves.
        """
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        copy_all(self.buffers, list(self.model.buffers()))
        terms = self.accumulate_gradients(batches)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(),
                                        self.config.gradient_clip or math.inf)
        # The only place where the step waits for the device.
        *values, norm = torch.stack([*terms.values(), norm]).tolist()
        shared = self.world.mean([*values, *flags])
        row = {"step": self.step + 1, **dict(zip(terms, shared, strict=False)),
               "learning_rate": rate, "grad_norm": norm}
        # The scaler cures an overflow by scaling less: that is no lost step.
        finite = math.isfinite(norm) or self.scaler.get_scale() > 1.0
        self.conclude(finite and math.isfinite(row["loss"]))
        return row, [flag > 0.0 for flag in shared[len(terms):]]

    def accumulate_gradients(self, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute gradients of the mean loss over the batches; returns that loss and its terms."""
        total: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            part = self.world.rank * len(batches) + number  # of the step, whoever computes it
            seed_everything(self.settings.seed, self.step, 0, part)
            apart = number + 1 < len(batches) and self.world.size > 1  # reduce gradients once
            with self.called.no_sync() if apart else contextlib.nullcontext():
                loss, terms = self.task.loss(self.called, batch, self.step)
                self.scaler.scale(loss / len(batches)).backward()
            for name, term in {"loss": loss, **terms}.items():
                total[name] = total.get(name, 0.0) + term.detach() / len(batches)
        return total

    def conclude(self, finite: bool) -> None:
        """Take the step, or restore weights and buffers as they were before it."""
        if finite:
            self.scaler.step(self.optimizer)
        else:
            copy_all(list(self.model.buffers()), self.buffers)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.skipped = 0 if finite else self.skipped + 1
        self.step += 1
        self.position += self.config.batch_size

    def state_dict(self) -> dict[str, object]:
        """Everything a checkpoint keeps; rates and random states are functions of the step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "schedule": {"kind": self.config.schedule, "step": self.step},
            "rng": {"seed": self.settings.seed, "step": self.step},
            **{name: getattr(self, name) for name in COUNTERS},
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue where the trainer that returned this state was."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for name in COUNTERS:
            setattr(self, name, state[name])


@torch.no_grad()
def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors into others, with one kernel launch per dtype."""
    for dtype in {tensor.dtype for tensor in targets}:
        pairs = [(target, source) for target, source in zip(targets, sources, strict=True)
                 if target.dtype == dtype]
        torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])


# ------------------------------------------------------------------------------------- files


def on_leader(world: World, work: Callable[..., Value], *values: object) -> Value | None:
    """Call work(*values) on the leader alone; its OSError or ValueError ends all processes."""
    result, problem = None, ""
    if world.leader:
        try:
            result = work(*values)
        except (OSError, ValueError) as error:
            if world.size == 1:
                raise
            problem = message_of(error)
    problem = world.share(problem)
    if problem:
        fail(problem)
    return result


def message_of(error: Exception) -> str:
    """Return an error's message; of one that contains a data process's traceback, the last line."""
    text = str(error).strip()
    return re.sub(r"^\w+: ", "", text.split("\n")[-1]) if "Traceback (most" in text else text


# -------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, world: World, final: bool = False,
             most: int | None = None) -> tuple[Scores, Predictions | None]:
    """Score the test split, divided among the ranks; the leader gets scores and predictions.

    most: the largest number of samples to score.
    """
    own = range(len(task.test_set))[:most][world.rank::world.size]
    size = max(1, share(task, world))
    keys = [list(own[start:start + size]) for start in range(0, len(own), size)]
    model.eval()
    parts = [task.predict(model, batch, final).numpy()
             for batch in load_batches(task.test_set, keys, world)]
    model.train()
    gathered = [part for parts in world.gather(parts) for part in parts]
    predictions = Predictions.join(gathered) if world.leader else None
    return on_leader(world, task.scores, predictions) or {}, predictions


# ------------------------------------------------------------------------------ training loop


@contextlib.contextmanager
def on_signals(handler: Callable, *numbers: signal.Signals) -> Iterator[None]:
    """In this context the handler receives these signals."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def train(trainer: Trainer, about: Mapping[str, object], signals: list[str]) -> bool:
    """Train to the last step, log, evaluate and save; return False if a signal came before."""
    task, config, settings, world = trainer.task, trainer.config, trainer.settings, trainer.world
    arguments = task.arguments
    keys = rank_batches(trainer.position, config.steps - trainer.step, config.batch_size,
                        settings.accumulate, world, len(task.train_set), settings.seed)
    batches = load_batches(task.train_set, keys, world)
    journal, stopping = Journal(task), False
    saved, save_seconds = time.monotonic(), 0.0
    while trainer.step < config.steps and not stopping:
        if trainer.step and trainer.step % settings.eval_every == 0:
            scores, _ = evaluate(task, trainer.model, world)
            keep_scores(task, trainer.model, trainer.step, world, about, scores)
        start = time.monotonic()
        step_batches = [next(batches) for _ in range(settings.accumulate)]
        # Save when it is time, and for at most a twentieth of the time; with 0 after every step.
        pause = arguments.save_every and max(arguments.save_every, 20 * save_seconds)
        due = world.leader and start - saved > pause
        row, (stopping, saving) = trainer.train_step(step_batches, (bool(signals), due))
        trainer.seconds += time.monotonic() - start
        if world.leader:
            journal.add(row, time.monotonic() - start, trainer.seconds, trainer.skipped)
        if trainer.skipped == MAX_SKIPPED:
            give_up(trainer, arguments.out, step_batches)
        if stopping or saving or trainer.step == config.steps:
            saved = time.monotonic()
            content = {**trainer.state_dict(), **about, "baseline": task.baseline}
            on_leader(world, save, content, arguments.out / "checkpoint.pt")
            save_seconds = time.monotonic() - saved
    if stopping and world.leader:
        print(f"\n{' '.join(signals) or 'A signal to another process'}: saved at step "
              f"{trainer.step} of {config.steps}; the same command continues", flush=True)
    return not stopping


def keep_scores(task: Task, model: nn.Module, step: int, world: World,
                about: Mapping[str, object], scores: Scores) -> None:
    """Write an evaluation to scores.csv and, if it is the best so far, the weights to best.pt."""
    out, metric = task.arguments.out, task.arguments.best or task.BEST
    if world.share(world.leader and add_scores(out, step, scores, metric)):
        content = {**about, "step": step, "scores": scores, "baseline": task.baseline,
                   "model": model.state_dict()}
        on_leader(world, save, content, out / "best.pt")


def give_up(trainer: Trainer, out: Path, batches: list[dict[str, Tensor]]) -> NoReturn:
    """Stop after too many non-finite steps, leaving the last batches of every rank."""
    path = out / f"nonfinite_rank{trainer.world.rank}.pt"
    save({"step": trainer.step, "batches": batches}, path)
    trainer.world.share(None)
    fail(f"{MAX_SKIPPED} steps in a row were not finite: gave up at step {trainer.step}; the last "
         f"batch is in {path}. Try a smaller learning_rate")


# ---------------------------------------------------------------------------------- one run


def choose_config(arguments: argparse.Namespace, run: Mapping | None,
                  start: nn.Module | None) -> tuple[RunConfig, Settings]:
    """Choose config and settings by the flags, the run to continue and the model to start from.

    An existing run is continued, by --resume or by its own command given again, as torchrun does
    after a failure; ValueError if the flags describe another run.
    """
    task = TASKS[arguments.name]
    known = run if run and arguments.resume and run["name"] == arguments.name else None
    arguments.preset = arguments.preset or (known["preset"] if known else suitable_preset())
    if arguments.preset not in task.PRESETS:
        raise ValueError(f"no preset {arguments.preset!r} for {arguments.name}: expected one of "
                         + ", ".join(task.PRESETS))
    base = task.PRESETS[arguments.preset]
    settings = preset_settings(task.SETTINGS, arguments.preset, base)
    if known:
        try:
            base = task.config_from(known["config"])
            settings = dataclasses.replace(settings, **stored_settings(known))
        except TypeError as error:
            raise ValueError(f"the run in {arguments.out} has settings of another version of this "
                             f"code ({error}): continue it with that version, or start a new run "
                             "with --out FOLDER") from error
    elif start is not None:
        base = with_optimisation(task.config_of(start), base)
    config, settings = overridden(task.adapt(base, arguments), settings, arguments.overrides)
    if supported_precision(settings.precision) != settings.precision:
        announce("this GPU has no bf16: training in fp16, with a gradient scaler")
        settings = dataclasses.replace(settings, precision="fp16")
    if run:
        require_same_run(arguments, run, config, settings)
    if arguments.preset not in ON_A_CPU and not torch.cuda.is_available():
        announce(f"no GPU found: preset {arguments.preset} runs on a CPU; --preset cpu is made for "
                 "one")
    return config, settings


def overridden(config: RunConfig, settings: Settings,
               assignments: Sequence[str]) -> tuple[RunConfig, Settings]:
    """Apply --set to both; ValueError for a field that neither has."""
    return override(config, assignments, settings), override(settings, assignments, config)


def require_same_run(arguments: argparse.Namespace, run: Mapping, config: RunConfig,
                     settings: Settings) -> None:
    """Raise ValueError if the run in OUT, its checkpoint or results, is another than the flags say.
    """
    wanted = {"name": arguments.name, "preset": arguments.preset,
              "data": arguments.data or run["data"]}
    other = [name for name, value in wanted.items() if run[name] != value]
    if not arguments.resume:
        known, own = (json.loads(json.dumps(values)) for values in (  # results.json has lists
            stored_settings(run) | run["config"],
            dataclasses.asdict(settings) | dataclasses.asdict(config)))
        other += [name for name, value in own.items() if known.get(name) != value]
        if arguments.protocol not in (None, run.get("protocol", arguments.protocol)):
            other.append("protocol")
    if other:
        raise ValueError(f"{arguments.out} already holds another run (it differs in "
                         f"{', '.join(other)}): continue that one with --resume, or start this "
                         "one with --out FOLDER")


def build(task: Task, start: nn.Module | None) -> nn.Module:
    """Build the model as training begins; ValueError if there is no model with these settings."""
    seed_everything(task.settings.seed)
    try:
        model = task.build()
        if start is not None:
            model.load_state_dict(start.state_dict())
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError) as error:
        kind = "fit the weights of --checkpoint" if start is not None else "describe a model"
        raise ValueError(f"the settings do not {kind} ({first_line(error)}): change them with "
                         "--set") from error
    empty = [name for name, value in model.named_parameters() if not value.numel()]
    if empty:
        raise ValueError(f"the settings describe layers of width 0 ({empty[0]}): change them with "
                         "--set")
    return model.train()  # a frozen encoder stays in evaluation mode


def begin(trainer: Trainer, run: Mapping | None) -> None:
    """Continue the run, or start one; the leader says what will happen."""
    task, world, out = trainer.task, trainer.world, trainer.task.arguments.out
    if run:
        try:
            trainer.load_state_dict(run)
        except (RuntimeError, ValueError, KeyError) as error:
            fail(f"the checkpoint in {out} does not fit these settings ({first_line(error)}): "
                 "continue without changing the network, or start a new run with --out FOLDER")
    elif world.leader:
        size, count = share(task, world), min(BASELINE_SAMPLES, len(task.train_set))
        keys = (list(range(first, min(first + size, count))) for first in range(0, count, size))
        task.set_baseline(load_batches(task.train_set, keys, world))
        out.mkdir(parents=True, exist_ok=True)
    if task.data != "rendered":  # if scores need a file that is missing, say so now
        evaluate(task, trainer.model, world, most=2 * world.size)
    world.share(None)
    if world.mean([trainer.step]) != [trainer.step]:
        fail(f"{out} shows step {trainer.step} to process {world.rank} and another to others: "
             "--out has to be a folder that all machines share")
    if world.leader:
        for line in opening(task, world, trainer.model, trainer.step, run):
            print(line, flush=True)


def finish(task: Task, model: nn.Module, step: int | None, world: World,
           about: Mapping[str, object]) -> None:
    """Score the model, print the table, write results, pictures and, if asked to, the export."""
    weights, out, export = model.state_dict(), task.arguments.out, task.arguments.export
    if export:  # rounds the weights first, so that the scores are those of the file
        weights |= {name: value.detach().half() for name, value in model.named_parameters()}
        model.load_state_dict(weights)
    task.to(world.device)
    scores, predictions = evaluate(task, model, world, final=True)
    if not task.arguments.eval:
        keep_scores(task, model, step, world, about, scores)
    if not world.leader:
        return
    if scores:
        print(f"\n{score_table(scores)}\nMPJPE, PVE and the like in mm; F-scores and AUC from 0 to "
              f"1.\n{task.REMARK}{task.comparisons(predictions)}")
    else:
        print("\nno annotation to score against\n")
    out.mkdir(parents=True, exist_ok=True)
    results = {**about, "step": step, "scores": scores}
    bodymodels.write_atomically(out / "results.json", json.dumps(results, indent=2).encode())
    if export:
        save({**results, "model": weights, "baseline": task.baseline}, export)
    task.write(predictions, out)
    if not task.arguments.eval:
        draw_curves(out)
    print(f"in {out}: " + ", ".join(sorted(path.name for path in out.iterdir())), flush=True)
    print(f"next: {task.next_command(out)}", flush=True)


def run_one(arguments: argparse.Namespace, world: World | None) -> tuple[World, bool]:
    """Train, then evaluate; or evaluate alone. Returns the world and whether all is done."""
    kind, path = TASKS[arguments.name], arguments.out / "checkpoint.pt"
    try:
        if arguments.eval:
            model, origin = kind.load(arguments)
            config = kind.config_of(model)
            settings = kind.settings_of(config, arguments, origin)
            config, settings = overridden(config, settings, arguments.overrides)
            task = kind(config, arguments, origin, settings)
        else:
            run = read_run(path)
            if arguments.resume and run is None:
                announce(f"--resume: no run in {arguments.out}, a new one begins")
            start, origin = kind.load(arguments) if arguments.checkpoint else (None, {})
            config, settings = choose_config(arguments, run, start)
            check_shares(config, settings, int(os.environ.get("WORLD_SIZE", 1)))
            origin = run or origin
            task = kind(config, arguments, origin, settings)
            model = build(task, start)
        announce(f"data: {task.data}; what is rendered or packed once is kept in "
                 f"{arguments.cache}")
        # Data are prepared before the processes meet, so that none of them waits in vain.
        _ = task.test_set, arguments.eval or task.train_set
        world = world or join_world(arguments.workers)
    except (ValueError, OSError) as error:
        fail(str(error))
    about = describe(task, origin, world)
    if arguments.eval:
        finish(task, model.to(world.device), origin.get("step"), world, about)
        return world, True
    trainer = Trainer(task, world, model, arguments.compile)
    begin(trainer, run)
    signals: list[str] = []
    with on_signals(lambda number, _: signals.append(signal.Signals(number).name),
                    signal.SIGTERM, signal.SIGINT):
        done = train(trainer, about, signals)
    if done:
        announce(f"\n{trainer.step} steps took {timedelta(seconds=round(trainer.seconds))}")
        finish(task, trainer.model, trainer.step, world, about)
    return world, done


# ------------------------------------------------------------------------------ command line


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see --help")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the flags; with --model, --help also lists the fields of --set."""
    configs = dict.fromkeys(task.Config for name, task in TASKS.items()
                            if name.partition("-")[0] in argv)
    configs |= dict.fromkeys([Settings] * bool(configs))
    parser = Parser(
        prog="train.py", formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__,
        epilog="Fields of --set:\n\n" + "\n".join(map(inspect.getsource, configs)) if configs else
        "Add --model to see the fields of --set.")
    add_flags(parser)
    of_tasks = {name: spec for task in TASKS.values() for name, spec in task.ARGUMENTS.items()}
    add = parser.add_argument_group("of some papers or stages").add_argument
    for name, spec in of_tasks.items():
        helps = {task.ARGUMENTS[name]["help"]: label.partition("-")[0]
                 for label, task in TASKS.items() if name in task.ARGUMENTS}
        text = "; ".join(f"{model}: {text}" for text, model in helps.items())
        add(f"--{name.replace('_', '-')}", **spec | {"help": text})
    arguments = parser.parse_args(argv)
    arguments.argv = argv
    arguments.name = "-".join(filter(None, (arguments.model, arguments.stage)))
    check_arguments(arguments, of_tasks, parser)
    arguments.out = arguments.out or TASKS[arguments.name].folder(arguments)
    return arguments


def add_flags(parser: Parser) -> None:
    """Add the flags that all papers and stages have."""
    add = parser.add_argument_group("run").add_argument
    add("--model", required=True, choices=list(PAPERS), help="the paper")
    add("--stage", help="of a paper that is trained in stages: "
        + ", ".join(name.replace("-", ": ", 1) for name in TASKS if "-" in name))
    add("--preset", help="a named config (default: one for this machine)")
    add("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", dest="overrides",
        help="change fields of the config; --model M --help lists them")
    add("--resume", action="store_true",
        help="continue the run in OUT with its settings, but for those given here")
    add("--checkpoint", type=Path, metavar="FILE", help="start a new run from these weights, ours "
        "or released ones: network from the file, optimisation and data from the preset; with "
        "--eval: score them (default: OUT/checkpoint.pt)")
    add("--eval", action="store_true", help="score a checkpoint and write pictures, no training")
    add("--best", metavar="METRIC", help="the test score that chooses best.pt (default: PA-MPJPE; "
        "for poses alone MPJPE)")
    add("--compile", action="store_true", help="torch.compile the model")
    add = parser.add_argument_group("data").add_argument
    add("--data", metavar="KIND", help="rendered, or an official set or mixture: sets/README.md "
        "(default: rendered)")
    add("--data-root", metavar="FOLDER", help="folder of data that are not rendered")
    add("--protocol", choices=tuple(EVALUATIONS), help="how, and on which data set, to evaluate "
        "what trains on official data")
    add("--test-root", metavar="FOLDER", help="folder of the data to evaluate on (default: that of "
        "--data-root)")
    add("--cache", metavar="FOLDER", default="runs/cache", help="folder for rendered images and "
        "packed annotation (default: %(default)s)")
    add = parser.add_argument_group("processes and files").add_argument
    add("--out", type=Path, metavar="FOLDER", help="folder of the run (default: "
        "runs/MODEL[-STAGE])")
    add("--export", type=Path, metavar="FILE", help="also write the final weights in half "
        "precision; a folder if the command trains several stages")
    add("--workers", type=int, help="data processes of each training process (default: with a "
        "GPU one per core, at most 16; none on a CPU)")
    add("--save-every", type=float, default=60.0, metavar="SECONDS",
        help="time between checkpoints; 0: after every step (default: %(default)s)")


def check_arguments(arguments: argparse.Namespace, of_tasks: Iterable[str],
                    parser: Parser) -> None:
    """End with a message unless the flags go together; of_tasks: those that some tasks lack."""
    stages, name = list(PAPERS[arguments.model].STAGES), arguments.name
    if name not in TASKS and stages == [""]:
        parser.error(f"{arguments.model} is trained without --stage")
    if name not in TASKS:
        given = f"no stage {arguments.stage!r}: " if arguments.stage else ""
        parser.error(f"{given}{arguments.model} is trained in stages, each a run of its own: add "
                     "--stage " + ", then --stage ".join(stages))
    for flag in of_tasks:
        if flag not in TASKS[name].ARGUMENTS and getattr(arguments, flag) is not None:
            parser.error(f"--{flag.replace('_', '-')} means nothing to "
                         f"{name.replace('-', ' --stage ')}")
    if arguments.workers is not None and arguments.workers < 0:
        parser.error(f"--workers {arguments.workers}: expected 0 or more")
    try:
        TASKS[name].check_arguments(arguments)
    except ValueError as error:
        parser.error(str(error))


def run(argv: list[str], world: World | None = None) -> tuple[World | None, bool]:
    """Do all runs that a command line stands for; return the processes and whether all is done.

    world: the processes, if an earlier call has joined them. A signal ends a run before its time.
    """
    arguments, done = parse_arguments(argv), True
    for one in TASKS[arguments.name].plan(arguments):
        try:
            with on_signals(signal.default_int_handler, signal.SIGTERM):  # as Ctrl-C does
                world, done = run_one(one, world)
        except OSError as error:  # a full disk, a folder that may not be written
            fail(message_of(error))
        except ValueError as error:  # a damaged picture, a regressor of another body
            path = one.out / "error.txt"
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(traceback.format_exc())
            fail(f"{message_of(error)} (more in {path})")
        except RuntimeError as error:
            if "by peer" not in str(error):
                raise
            fail("another process has ended: see its message")
        except KeyboardInterrupt:  # while data are prepared or scored
            fail("interrupted: the same command continues")
        if not done:
            break
    return world, done


def main(argv: list[str] | None = None) -> None:
    """Do the runs of this command."""
    world, _ = run(sys.argv[1:] if argv is None else argv)
    if world is not None and world.size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
