"""Runs of every stage are killed at random moments and continued: the last bits are the same.

All processes of a run get SIGKILL, as in a power cut: before the first checkpoint, between two, or
while one is written. Runs are forked from this process, which has imported everything.
"""

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import socket
import sys
import time

import pytest
import torch
from test_train import assert_same_state, rows

import train
from tasks.settings import settable

STEPS = 12
RUN = {"warmup_steps": 2, "eval_every": 25, "batch_size": 8, "train_samples": 44, "test_samples": 2,
       "heads": 2, "width": 16}
TINY = {  # by model: fields that its stages may have
    "simplehand": {
        "image_size": 32, "embed_dims": "8,8,16,32", "depths": "1,1,1,1", "feature_width": 32,
        "token_width": 16, "dims": "16,8,8", "dropout": 0.1, "drop_path": 0.1},
    "genhmr": {
        "num_tokens": 48, "codebook_size": 16, "code_dim": 8, "depth": 1,
        "pyramid_width": 16, "points": 2, "layers": 1, "regressor_width": 16, "accumulate": 2},
    "hmr_adapter": {
        "image_size": 64,
        "vit_dim": 16, "vit_heads": 2, "decoder_dim": 16, "decoder_layers": 1, "decoder_heads": 2,
        "decoder_ffn": 16, "body_size": 64, "test_body_size": 64,
        "train_samples": 24, "depth_bins": 4, "hand_cells": 4, "joint_dim": 8,
        "arm_drop": 0.1, "offset_hidden": 16},
}
VIT = {"image_size": 64, "patch_size": 16, "vit_dim": 16, "vit_depth": 1, "vit_heads": 2,
       "scales": "1,2"}  # the paper's encoder, trained
NEEDED = {  # flags that name the final checkpoint of another stage
    "genhmr-transformer": {"tokenizer": "genhmr-tokenizer", "backbone": "genhmr-encoder"},
    "genhmr-transformer vit": {"tokenizer": "genhmr-tokenizer"},
    "hmr_adapter-hand": {"expert": "hmr_adapter-hand_expert", "guide": "hmr_adapter-body_expert"},
    "hmr_adapter-body": {"expert": "hmr_adapter-body_expert"},
}
STAGES = [f"{model}-{stage}".removesuffix("-") for model, paper in train.PAPERS.items()
          for stage in paper.STAGES if stage != "all"] + ["genhmr-transformer vit"]


def command(stage, out, folder, steps):
    """The command line of a stage's run in `out`; `folder` has the cache and earlier stages."""
    name, _, variant = stage.partition(" ")
    model, _, part = name.partition("-")
    task = train.TASKS[name]
    fields = {field.name for field in dataclasses.fields(task.PRESETS["cpu"])}.union(
        *map(settable, task.SETTINGS.values()))
    settings = RUN | TINY[model] | (VIT if variant else {}) | {"steps": steps}
    flags = [f"--{flag}={folder / other / 'checkpoint.pt'}"
             for flag, other in NEEDED.get(stage, {}).items()]
    return ["--model", model, *(["--stage", part] if part else []), "--preset", "cpu", "--out",
            str(out), "--cache", str(folder / "cache"), "--save-every", "0", *flags, "--set",
            *(f"{field}={value}" for field, value in settings.items() if field in fields)]


def start(argv, ranks, log):
    """Fork the processes of a run; returns their ids. What they print goes to the end of a file."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            sys.stdout = sys.stderr = file = open(log, "a", buffering=1)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                           "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost",
                           "MASTER_PORT": str(port)}
            train.draw_curves = lambda *_: None  # drawing takes longer than such a run
            for task in train.TASKS.values():
                task.write = lambda *_: None
            train.main(list(argv))
            code = 0
        except BaseException as error:  # a fork must not return into the caller
            print(f"process {rank}: {error!r}", file=file, flush=True)
        finally:
            os._exit(code)
    return children


def finish(argv, ranks, log):
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
             for child in start(argv, ranks, log)]
    assert not any(codes), f"a run ended with {codes}\n{log.read_text()[-2000:]}"


def kill_at_random(children, path, rng):
    """Kill a run after a random number of its checkpoints, one a step, and part of a step."""
    def version():
        return path.stat().st_mtime_ns if path.exists() else 0

    after, seen, began = rng.randrange(STEPS), version(), time.monotonic()
    while after and not os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.001)
        if (now := version()) != seen:
            after, seen = after - 1, now
            last, began = time.monotonic() - began, time.monotonic()
            if not after:
                time.sleep(rng.random() * last)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_killed_runs_end_in_the_same_bits(folder, stage, ranks):
    """Killed twice and given again until it ends: weights, optimiser, averages, counters; the log
    has every step once, although the kills leave torn rows."""
    log, rng = folder / "log.txt", random.Random(f"{stage} {ranks}")
    for other in NEEDED.get(stage, {}).values():
        if not (folder / other).exists():
            finish(command(other, folder / other, folder, 3), 1, log)
    whole, killed = folder / "whole", folder / "killed"
    finish(command(stage, whole, folder, STEPS), ranks, log)
    for _ in range(2):
        kill_at_random(start(command(stage, killed, folder, STEPS), ranks, log),
                       killed / "checkpoint.pt", rng)
        log_file = killed / "log.csv"
        if log_file.exists() and len(log_file.read_text().splitlines()) <= STEPS:  # not at its end
            with open(log_file, "a") as file:
                file.write("11,0.1")
    finish(command(stage, killed, folder, STEPS), ranks, log)
    assert_same_state(*(torch.load(out / "checkpoint.pt", weights_only=True)
                        for out in (whole, killed)))
    assert rows(whole / "log.csv") == rows(killed / "log.csv")
    assert [row["step"] for row in rows(whole / "log.csv")] == list(range(1, STEPS + 1))
    for out in (whole, killed):
        shutil.rmtree(out)
