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
the end, results.json, errors.npz (of each sample; not of SimpleHand), curves.png and
predictions.png (test images, predicted and true meshes). Repeat the command to continue a run that
was killed: it loses the time since its last checkpoint, at most --save-every. torchrun
--max-restarts does so by itself.

A run that is killed and continued ends in the same weights as an uninterrupted one, bit for bit on
a CPU with the same number of threads, because a step depends only on its checkpoint and its number:
- the samples of step n are a function of (seed, n), see `rank_batches`;
- dropout and all other random draws are seeded by (seed, step, part of the step);
- a checkpoint holds everything else, and replaces its predecessor atomically.
The number of processes is not a hyperparameter: batch_size counts the samples of a step over all
processes, batch norm spans them, and the order of samples does not depend on them. Only the dropout
masks differ, as they do between one batch and several accumulated ones.

Without --preset the machine decides: "h200" for a GPU of more than 100 GB, "single_gpu" for a
smaller one, "cpu" without a GPU. "paper" has the paper's numbers. SimpleHand has four more presets:
paper_hrnet and paper_hiera (other backbones), ablation (rows of tables on a CPU), cpu_views (any
view). The papers' files end with their batches, steps and rates. No preset for GPUs has been run
yet.
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
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import bodymodels
from files import first_line
from sets.samples import follow_parent
from tasks import genhmr, hmr_adapter, simplehand
from tasks.base import EVALUATIONS, Predictions, Scores, Task, parameter_groups
from tasks.files import (
    add_row,
    add_scores,
    claim,
    cut_table,
    read_content,
    read_run,
    report,
    save,
)
from tasks.ranks import World, announce, fail, join_world, share_batch_norm
from tasks.settings import (
    OF_THE_LOOP,
    ON_A_CPU,
    PRECISIONS,
    Settings,
    override,
    preset_settings,
    suitable_preset,
)
from weights.files import require

PAPERS = {"simplehand": simplehand, "genhmr": genhmr, "hmr_adapter": hmr_adapter}
TASKS: dict[str, type[Task]] = {  # by model, or by model-stage
    f"{model}-{stage}" if stage else model: task
    for model, paper in PAPERS.items() for stage, task in paper.STAGES.items()}
MAX_SKIPPED = 10  # non-finite steps in a row before giving up
COUNTERS = "step", "position", "skipped", "seconds"  # of a Trainer
BASELINE_SAMPLES = 2_000  # training samples whose mean is the baseline
PRINT_EVERY = 10.0  # seconds between lines of progress

# --------------------------------------------------------------------- functions of the step


def learning_rate(config: object, step: int) -> float:
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
    finally:
        if world.workers:  # they ignore SIGTERM, and an error's traceback would keep them alive
            batches._shutdown_workers()


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
        self.model = model.to(device, memory_format=layout)
        task.to(device)
        if world.size > 1:
            self.model = share_batch_norm(self.model, world)
        if compile:
            self.model.compile()
        self.called: nn.Module = MixedPrecision(self.model, device, settings.precision)
        if world.size > 1:
            # 1 x 1 convolutions: their two memory layouts are the same
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            self.called = DistributedDataParallel(
                self.called, [device] if device.type == "cuda" else None,
                process_group=world.steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config.weight_decay), lr=config.learning_rate, fused=True)
        self.step = 0  # finished optimiser steps
        self.position = 0  # samples seen
        self.skipped = 0  # non-finite steps in a row, up to now
        self.seconds = 0.0  # spent training, over all resumed parts

    def train_step(self, batches: list[dict[str, Tensor]]) -> dict[str, float]:
        """Take one optimiser step on this rank's batches.

        Returns the losses (means over all ranks), rate and gradient norm. If loss or gradient are
        not finite on any rank, no rank moves.
        """
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        terms = self.accumulate_gradients(batches)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(),
                                        self.config.gradient_clip or math.inf)
        # Without a scaler the only place where the step waits for the device.
        *values, norm = torch.stack([*terms.values(), norm]).tolist()
        losses = dict(zip(terms, self.world.mean(values), strict=True))
        # The scaler cures an overflow by scaling less: that is no lost step.
        finite = math.isfinite(losses["loss"]) and (
            math.isfinite(norm) or self.scaler.get_scale() > 1.0)
        if finite:
            self.scaler.step(self.optimizer)
        else:
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.skipped = 0 if finite else self.skipped + 1
        self.step += 1
        self.position += self.config.batch_size
        return {"step": self.step, **losses, "learning_rate": rate, "grad_norm": norm}

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

    def state_dict(self) -> dict[str, object]:
        """Everything a checkpoint keeps; rates and random states are functions of the step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in COUNTERS},
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue where the trainer that returned this state was."""
        self.model.load_state_dict(state["model"])
        decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, decay in zip(self.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay  # as --set says, not as it was
        if state["scaler"]:  # else its precision needed none
            self.scaler.load_state_dict(state["scaler"])
        for name in COUNTERS:
            setattr(self, name, state[name])


# -------------------------------------------------------------------------------- evaluation


def samples_at_once(task: Task, world: World) -> int:
    """Return the number of samples that one process computes at once."""
    return max(1, task.config.batch_size // (world.size * task.settings.accumulate))


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, world: World, final: bool = False,
             most: int | None = None) -> tuple[Scores, Predictions | None]:
    """Score the test split, divided among the ranks; the leader gets scores and predictions.

    most: the largest number of samples to score.
    """
    own = range(len(task.test_set))[:most][world.rank::world.size]
    size = samples_at_once(task, world)
    keys = [list(own[start:start + size]) for start in range(0, len(own), size)]
    model.eval()
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 would round the meshes that are scored
    parts = [task.predict(model, batch, final).map(lambda value: value.cpu().numpy())
             for batch in load_batches(task.test_set, keys, world)]
    torch.set_float32_matmul_precision(precision)
    model.train()
    gathered = [part for parts in world.gather(parts) for part in parts]
    if not world.leader:
        return {}, None
    order = np.concatenate([part.index for part in gathered]).argsort()
    predictions = gathered[0].map(lambda *values: np.concatenate(values)[order], *gathered[1:])
    return task.scores(predictions), predictions


def keep_scores(task: Task, model: nn.Module, step: int, world: World,
                about: Mapping[str, object], scores: Scores) -> None:
    """Write an evaluation to scores.csv and, if it is the best so far, the weights to best.pt."""
    out = task.arguments.out
    if world.leader and add_scores(out, step, scores):
        save({**about, "step": step, "scores": scores, "baseline": task.baseline,
              "model": model.state_dict()}, out / "best.pt")
    world.share(None)  # the others wait, however long scoring takes


# ------------------------------------------------------------------------------ training loop


def train(trainer: Trainer, about: Mapping[str, object]) -> None:
    """Train to the last step, log, evaluate and save."""
    task, config, settings, world = trainer.task, trainer.config, trainer.settings, trainer.world
    arguments = task.arguments
    keys = rank_batches(trainer.position, config.steps - trainer.step, config.batch_size,
                        settings.accumulate, world, len(task.train_set), settings.seed)
    batches = load_batches(task.train_set, keys, world)
    printed, saved = 0.0, time.monotonic()
    while trainer.step < config.steps:
        if trainer.step and trainer.step % settings.eval_every == 0:
            scores, _ = evaluate(task, trainer.model, world)
            keep_scores(task, trainer.model, trainer.step, world, about, scores)
        start = time.monotonic()
        row = trainer.train_step([next(batches) for _ in range(settings.accumulate)])
        seconds = time.monotonic() - start
        trainer.seconds += seconds
        last = trainer.step == config.steps
        if world.leader:
            add_row(arguments.out / "log.csv", row | {
                "samples_per_second": config.batch_size / seconds, "seconds": trainer.seconds})
            if start - printed > PRINT_EVERY or last or trainer.skipped:
                printed, pace = start, trainer.seconds / trainer.step
                losses = "  ".join(f"{name} {row[name]:.4f}" for name in list(row)[1:-2])
                left = timedelta(seconds=round((config.steps - trainer.step) * pace))
                skipped = f"  skipped, {trainer.skipped} in a row" * bool(trainer.skipped)
                print(f"step {trainer.step}/{config.steps}  {losses}  "
                      f"{config.batch_size / pace:.0f} samples/s  {left} left{skipped}", flush=True)
        if trainer.skipped == MAX_SKIPPED:
            fail(f"{MAX_SKIPPED} steps in a row were not finite: gave up at step {trainer.step}. "
                 "Try a smaller learning_rate")
        if world.leader and (last or start - saved > arguments.save_every):
            save({**trainer.state_dict(), **about, "baseline": task.baseline},
                 arguments.out / "checkpoint.pt")
            saved = time.monotonic()


# ---------------------------------------------------------------------------------- one run


def choose_config(arguments: argparse.Namespace, run: Mapping | None = None,
                  start: nn.Module | None = None) -> tuple[object, Settings]:
    """Choose config and settings: of the run to continue, else of the preset; changed by --set.

    start: the model of --checkpoint, which has a network's config.
    """
    task = TASKS[arguments.name]
    arguments.preset = arguments.preset or (run["preset"] if run else suitable_preset())
    require(arguments.preset in task.PRESETS, f"no preset {arguments.preset!r} for "
            f"{arguments.name}: expected one of {', '.join(task.PRESETS)}")
    config = task.PRESETS[arguments.preset]
    settings = preset_settings(task.SETTINGS, arguments.preset, run)
    if run:
        try:  # the class with these fields: SimpleHand's presets have two
            kinds = {frozenset(vars(preset)): type(preset) for preset in task.PRESETS.values()}
            config = kinds.get(frozenset(run["config"]), type(config))(**run["config"])
        except TypeError as error:
            raise ValueError(f"the run in {arguments.out} has settings of another version of this "
                             f"code ({error}): start a new one with --out FOLDER") from error
    else:
        if start is not None:  # the network of the file, optimised as the preset says
            config = dataclasses.replace(start.config, **{
                name: getattr(config, name) for name in OF_THE_LOOP})
        config = task.adapt(config, arguments)
    config, settings = override(arguments.overrides, config, settings)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    require(config.batch_size % (processes * settings.accumulate) == 0,
            f"batch_size is {config.batch_size}: expected a multiple of {processes} processes x "
            f"accumulate={settings.accumulate}")
    return config, settings


def flags_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the flags that make a run what it is, and the fields of --set; "" for what is not set.
    """
    names = ("name", "preset", "data", "protocol", "checkpoint", "backbone", "tokenizer", "expert",
             "guide")
    return {name: str(getattr(arguments, name) or "") for name in names} | {
        name: value for name, _, value in (text.partition("=") for text in arguments.overrides)}


def require_same_run(arguments: argparse.Namespace, run: Mapping) -> None:
    """Raise ValueError if the run in OUT, its checkpoint or results, is another than the flags say.

    A run is continued by its own command given again, as torchrun does after a failure, or by
    --resume, for which all flags may be left out and those of --set changed.
    """
    given, known = flags_of(arguments), run.get("flags", {})  # older runs have none
    if arguments.resume:
        known = {name: run[name] for name in ("name", "preset", "data")}
        given = {name: given[name] or value for name, value in known.items()}
    else:
        given["preset"] = given["preset"] or suitable_preset()
    other = [name for name in {**given, **known} if given.get(name) != known.get(name)]
    require(not other, f"{arguments.out} already holds another run (it differs in "
            f"{', '.join(other)}): continue that one with --resume, or start this one with --out "
            "FOLDER")


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
    return model.train()  # a frozen encoder stays in evaluation mode


def prepare(arguments: argparse.Namespace) -> tuple[Task, nn.Module, dict | None]:
    """Open models and data; return the task, its model and the content of the run that goes on.

    ValueError or OSError if they do not go together.
    """
    kind, path = TASKS[arguments.name], arguments.out / "checkpoint.pt"
    run = None if arguments.eval else read_run(path)
    if run:
        require_same_run(arguments, run)
    elif arguments.resume:
        announce(f"note: {arguments.out} has nothing to continue: a new run")
    start, origin = None, run or {}
    if arguments.eval or arguments.checkpoint and not run:
        file = arguments.checkpoint or path
        start = kind.load(file, arguments)
        origin = read_content(arguments.guide if arguments.stage == "all" else file)
    if arguments.eval:  # stages of HMR-Adapter share settings: an expert may come out of an adapter
        own = origin and (origin["name"] == arguments.name or arguments.model == "hmr_adapter")
        settings = preset_settings(kind.SETTINGS, arguments.preset or origin.get("preset"),
                                   origin if own else None)
        config, settings = override(arguments.overrides, start.config, settings)
        other = [name for name, value in vars(config).items()
                 if value != getattr(start.config, name) and name not in OF_THE_LOOP]
        require(not other, f"--eval cannot change {', '.join(other)}, which the file says")
    else:
        config, settings = choose_config(arguments, run, start)
    about = {name: value for name, value in origin.items() if name not in ("model", "optimizer")}
    task = kind(config, arguments, about, settings)
    model = start if arguments.eval else build(task, start)
    if arguments.preset not in (None, *ON_A_CPU) and not torch.cuda.is_available():
        announce(f"note: --preset {arguments.preset} is for a GPU, and this machine has none")
    announce(f"data: {task.data}; what is rendered or packed once is kept in {arguments.cache}")
    # Data are prepared before the processes meet, so that none of them waits in vain.
    _ = task.test_set, arguments.eval or task.train_set
    return task, model, run


def begin(trainer: Trainer, run: Mapping | None) -> None:
    """Continue the run, or start one; the leader says what will happen."""
    task, world, arguments = trainer.task, trainer.world, trainer.task.arguments
    out, size = arguments.out, samples_at_once(task, world)
    if run:
        try:
            trainer.load_state_dict(run)
        except (RuntimeError, ValueError, KeyError) as error:
            fail(f"the checkpoint in {out} does not fit these settings ({first_line(error)}): "
                 "continue without changing the network, or start a new run with --out FOLDER")
    elif world.leader:
        count = min(BASELINE_SAMPLES, len(task.train_set))
        keys = (list(range(first, min(first + size, count))) for first in range(0, count, size))
        task.set_baseline(load_batches(task.train_set, keys, world))
    if task.data != "rendered":  # if scores need a file that is missing, say so now
        evaluate(task, trainer.model, world, most=2 * world.size)
    if world.share(trainer.step) != trainer.step:
        fail(f"{out} does not show process {world.rank} the checkpoint that the first one sees: "
             "--out has to be a folder that all machines share")
    if not world.leader:
        return
    out.mkdir(parents=True, exist_ok=True)
    trainer.lock = claim(out)
    for name in ("log.csv", "scores.csv"):
        cut_table(out / name, trainer.step)
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(f"{type(trainer.model).__name__}, {count:,} parameters, on {world.size} x "
          f"{world.device.type}: from step {trainer.step} to {task.config.steps}, in {out}\n"
          f"{task.config.batch_size} samples per step, {size} at a time in a process", flush=True)
    if task.PRETRAINED and not (run or arguments.checkpoint or arguments.backbone
                                or arguments.preset in ON_A_CPU):
        print(f"note: no --backbone: it starts from random weights, the paper's from "
              f"{task.PRETRAINED}", flush=True)


def finish(task: Task, model: nn.Module, step: int | None, world: World,
           about: Mapping[str, object]) -> None:
    """Score the model, print the table, write results, pictures and, if asked to, the export."""
    arguments, weights = task.arguments, model.state_dict()
    if arguments.export:  # rounds the weights first, so that the scores are those of the file
        weights |= {name: value.detach().half() for name, value in model.named_parameters()}
        model.load_state_dict(weights)
    task.to(world.device)
    scores, predictions = evaluate(task, model, world, final=True)
    if not arguments.eval:
        keep_scores(task, model, step, world, about, scores)
    if not world.leader:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {**about, "step": step, "scores": scores}
    if arguments.export:  # for others: without the flags, which may name this machine's folders
        shared = {name: value for name, value in results.items() if name != "flags"}
        save({**shared, "model": weights, "baseline": task.baseline}, arguments.export)
    report(task, predictions, scores)
    bodymodels.write_atomically(arguments.out / "results.json",
                                json.dumps(results, indent=2).encode())
    flags = vars(arguments) | {"checkpoint": arguments.eval and arguments.checkpoint
                               or arguments.out / "checkpoint.pt"}
    print(f"in {arguments.out}: " + ", ".join(sorted(
        path.name for path in arguments.out.glob("[!.]*")))
          + f"\nnext: {task.NEXT.format(**flags)}", flush=True)


def run_one(arguments: argparse.Namespace, world: World | None) -> World:
    """Train, then evaluate; or evaluate alone. Returns the processes that met."""
    task, model, run = prepare(arguments)
    world = world or join_world(arguments.workers)
    about = {"name": arguments.name, "preset": arguments.preset or task.origin.get("preset"),
             "data": task.data, "protocol": task.protocol,
             "config": dataclasses.asdict(task.config),
             "settings": dataclasses.asdict(task.settings), "flags": flags_of(arguments),
             "processes": world.size, "threads": torch.get_num_threads(),
             "torch": str(torch.__version__)}
    if arguments.eval:
        finish(task, model.to(world.device), task.origin.get("step"), world, about)
        return world
    trainer = Trainer(task, world, model, arguments.compile)
    begin(trainer, run)
    del run  # its weights and moments
    train(trainer, about)
    announce(f"\n{trainer.step} steps took {timedelta(seconds=round(trainer.seconds))}")
    finish(task, trainer.model, trainer.step, world, about)
    return world


# ------------------------------------------------------------------------------ command line

FLAGS: dict[str, dict] = {  # of some stages: ARGUMENTS of a task names those that it takes
    "hand": {"metavar": "FILE", "help": "MANO_RIGHT.pkl for FreiHAND, the folder of both sides for "
             "DexYCB (default: the free hand)"},
    "body": {"metavar": "FILE", "help": "SMPL's file (default: the free body)"},
    "models": {"metavar": "FOLDER", "help": "official body models. genhmr: "
               f"{genhmr.TransformerTask.MODELS}; hmr_adapter: {hmr_adapter.PeopleTask.MODELS}"},
    "backbone": {"metavar": "FILE", "help": "weights of the image encoder to start from. "
                 "simplehand: ImageNet's of FastViT, HRNet or Hiera. genhmr: 4D-Humans', "
                 "TokenHMR's or ViTPose's; for cpu a checkpoint of --stage encoder. hmr_adapter, "
                 "for cpu: GenHMR's for bodies, SimpleHand's for hands (default: those in assets)"},
    "tokenizer": {"metavar": "FILE", "help": "checkpoint of the tokenizer to build on"},
    "detections": {"metavar": "FOLDER", "help": "OpenPose's files for the pictures to evaluate on, "
                   "a/b_keypoints.json for a/b.jpg: refinement follows them (default: 3DPW's own; "
                   "without any the true joints, an oracle)"},
    "schedule": {"choices": tuple(genhmr.genhmr.SCHEDULES), "help": "masking schedule of sampling, "
                 "Table 11 (default: cosine)"},
    "top_k": {"type": int, "metavar": "K", "help": "draw each token among the K most likely, Table "
              "12 (default: 1)"},
    "samples": {"type": int, "metavar": "N", "help": "draw N poses for each picture, and score "
                "them as a distribution, see tasks/posterior.py"},
    "brief": {"action": "store_true", "help": "leave the rows of Tables 2 and 3 out of the last "
              "scores"},
    "expert": {"metavar": "FILE", "help": "checkpoint of the expert to adapt: train.py's, HaMeR's "
               "or SMPLer-X's"},
    "guide": {"metavar": "FILE", "help": "checkpoint of a whole-body stage, or SMPLer-X's, which "
              "finds the arms for --stage hand; of --stage all --eval the body path, beside the "
              "hand path in --checkpoint"},
}


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the flags, of which model and stage have their own; --help also lists their fields."""
    def refuse(message: str) -> None:
        fail(f"{message}; see --help")  # one line

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.error = refuse
    first.add_argument("--model")
    first.add_argument("--stage")
    chosen = first.parse_known_args(argv)[0]
    stages = PAPERS[chosen.model].STAGES if chosen.model in PAPERS else {}
    known = (chosen.stage or "") in stages
    tasks = [stages[chosen.stage or ""]] if known else list(stages.values())
    kinds = [*(type(task.PRESETS["cpu"]) for task in tasks), *[Settings] * bool(tasks)]
    configs = dict.fromkeys(kind for one in kinds for kind in reversed(one.mro()[:-1]))
    parser = argparse.ArgumentParser(
        prog="train.py", formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__,
        epilog="Fields of --set:\n\n" + "\n".join(map(inspect.getsource, configs)) if configs else
        "Add --model to see its other flags and the fields of --set.")
    parser.error = refuse
    parser.set_defaults(**dict.fromkeys(FLAGS))
    add_flags(parser)
    own = parser.add_argument_group("of this model or stage")
    for flag in dict.fromkeys(flag for task in tasks for flag in task.ARGUMENTS):
        own.add_argument(f"--{flag.replace('_', '-')}", **FLAGS[flag])
    arguments = parser.parse_args(argv)
    if not known:
        parser.error(f"{chosen.model} is trained without --stage" if "" in stages else
                     f"{chosen.model} is trained in stages, each a run of its own: add --stage "
                     + ", then --stage ".join(stages))
    if arguments.stage == "all" and not arguments.eval and (arguments.guide
                                                            or arguments.checkpoint):
        parser.error("--stage all trains its own --guide and --checkpoint: they go with --eval")
    if arguments.export and arguments.stage != "all" and arguments.export.is_dir():
        parser.error(f"--export {arguments.export} is a folder: expected a file")
    arguments.name = "-".join(filter(None, (arguments.model, arguments.stage)))
    scored = "-eval" * bool(arguments.eval and arguments.checkpoint)
    arguments.out = arguments.out or Path("runs", arguments.name + scored)
    return arguments


def add_flags(parser: argparse.ArgumentParser) -> None:
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
        "or released ones: the file has config and kind of data, the preset steps, batch, rate and "
        "decay. With --eval: score them (default: OUT/checkpoint.pt)")
    add("--eval", action="store_true", help="score a checkpoint and write pictures, no training")
    add("--compile", action="store_true", help="torch.compile the model")
    add = parser.add_argument_group("data").add_argument
    add("--data", metavar="KIND", help="rendered (default), or official data: see sets/README.md")
    add("--data-root", metavar="FOLDER", help="folder of data that are not rendered")
    add("--protocol", choices=tuple(EVALUATIONS), help="how, and on which data set, to evaluate "
        "what trains on official data")
    add("--test-root", metavar="FOLDER", help="folder to evaluate on (default: --data-root's)")
    add("--cache", metavar="FOLDER", default="runs/cache", help="folder for rendered images and "
        "packed annotation (default: %(default)s)")
    add = parser.add_argument_group("processes and files").add_argument
    add("--out", type=Path, metavar="FOLDER", help="of the run (default: runs/MODEL[-STAGE])")
    add("--export", type=Path, metavar="FILE", help="also write the final weights in half "
        "precision; a folder if the command trains several stages")
    add("--workers", type=int, help="data processes of each training process (default: with a "
        "GPU one per core, at most 16; none on a CPU)")
    add("--save-every", type=float, default=60.0, metavar="SECONDS",
        help="time between checkpoints; 0: after every step (default: %(default)s)")


def run(argv: list[str], world: World | None = None) -> World | None:
    """Do all runs that a command line stands for; return the processes.

    world: the processes, if an earlier call has joined them.
    """
    arguments = parse_arguments(argv)
    try:
        for one in hmr_adapter.stage_runs(arguments) if arguments.stage == "all" else [arguments]:
            world = run_one(one, world)
    except (OSError, ValueError) as error:  # a full disk, a damaged picture, wrong flags
        fail(message_of(error))
    except RuntimeError as error:
        if "by peer" not in str(error):
            raise
        fail("another process has ended: see its message")
    except KeyboardInterrupt:
        fail("interrupted: the same command continues")
    return world


def message_of(error: Exception) -> str:
    """Return an error's message; of one that contains a data process's traceback, the last line."""
    text = str(error).strip()
    return re.sub(r"^\w+: ", "", text.split("\n")[-1]) if "Traceback (most" in text else text


def main(argv: list[str] | None = None) -> None:
    """Do the runs of this command."""
    world = run(sys.argv[1:] if argv is None else argv)
    if world is not None and world.size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
