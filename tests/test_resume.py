"""Runs of every stage are killed at random moments and continued: the last bits are the same.

All processes of a run get SIGKILL, as in a power cut: before the first checkpoint, between two, or
while one is written. Runs are forked from this process, which has imported everything.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import sys
import time

import pytest
import test_tasks_adapter
import test_tasks_genhmr
import test_train
import torch
from test_train import assert_same_state, rows

import train
from tasks import files

STEPS = 12
VIT = {"image_size": 64, "patch_size": 16, "vit_dim": 16, "vit_depth": 1, "vit_heads": 2,
       "scales": (1, 2)}  # the paper's encoder, trained
NEEDED = {  # stages whose final checkpoints a stage begins with
    "genhmr-transformer": ("tokenizer", "encoder"), "genhmr-transformer vit": ("tokenizer",),
    "hmr_adapter-hand": ("hand_expert", "body_expert"), "hmr_adapter-body": ("body_expert",)}
STAGES = [f"{model}-{stage}".removesuffix("-") for model, paper in train.PAPERS.items()
          for stage in paper.STAGES if stage != "all"] + ["genhmr-transformer vit"]


def command(stage, out, folder, steps):
    """The command line of a stage's run in `out`; `folder` has the cache and earlier stages."""
    name, _, variant = stage.partition(" ")
    model, _, part = name.partition("-")
    fields = {"steps": steps, "eval_every": 25, "test_samples": 2}
    if model == "simplehand":
        return test_train.command_line(folder / "cache", out, dropout=0.1, drop_path=0.1, **fields)
    if model == "genhmr":
        fields |= VIT if variant else {}
        argv = test_tasks_genhmr.command_line(folder, part, out, **fields)
        if variant:
            place = argv.index("--backbone")
            del argv[place:place + 2]
        return argv
    flags = [f"--{flag}={folder / other / 'checkpoint.pt'}" for flag, other in zip(
        ("expert", "guide"), NEEDED.get(stage, ()), strict=False)]
    return test_tasks_adapter.command_line(folder, part, out, *flags, arm_drop=0.1,
                                           arm_source="found", knuckle_source="found", **fields)


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
            files.draw_curves = files.draw_predictions = lambda *_: None  # longer than such a run
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
    for other in NEEDED.get(stage, ()):
        if not (folder / other).exists():
            finish(command(f"{stage.partition('-')[0]}-{other}", folder / other, folder, 3), 1, log)
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
