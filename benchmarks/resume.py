"""Kill training runs at random moments, continue them, compare the bits of their final weights.

    python -m benchmarks resume                                  # every stage, 1 and 2 processes
    python -m benchmarks resume --stage hmr_adapter-hand --ranks 2 --trials 20

For each stage one run of a tiny model is left alone. Every trial starts the same run, kills all of
its processes (SIGKILL, as a power cut would) once or twice at random moments, among them moments
before the first checkpoint and while one is written, and gives the command again until it ends.
Weights, optimiser, moving average and counters must then be the same, bit for bit.

Runs are forked from this process, which has imported everything, so a trial takes seconds. Linux
and macOS only.
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import train

SMALL_RUN = {"warmup_steps": 2, "eval_every": 25, "batch_size": 8}
ENCODER = {"vit_dim": 16, "vit_depth": 1, "vit_heads": 2}
HAND = {"image_size": 64, "widths": "4,4,8,8", "blocks": 1, "pooled": 4, "lift_width": 16,
        "vit_dim": 16}
DECODER = {"decoder_dim": 16, "decoder_layers": 1, "decoder_heads": 2, "decoder_head_dim": 4,
           "decoder_ffn": 16}
TRANSFORMER = {"pyramid_width": 16, "width": 16, "heads": 2, "points": 2, "layers": 1, "ffn": 32,
               "regressor_width": 16, "accumulate": 2, "train_samples": 44,
               "test_samples": 2}
PEOPLE = {"body_size": 64, "test_body_size": 64, "hand_size": 64, "train_samples": 24,
          "test_samples": 2}
SETTINGS: dict[str, dict[str, object]] = {
    "simplehand": {
        "image_size": 32, "embed_dims": "8,8,16,32", "depths": "1,1,1,1", "feature_width": 32,
        "token_width": 16, "dims": "16,8,8", "heads": 2, "dropout": 0.1, "drop_path": 0.1,
        "train_samples": 44, "test_samples": 2},
    "genhmr-tokenizer": {
        "num_tokens": 48, "codebook_size": 16, "code_dim": 8, "width": 16, "depth": 1,
        "train_samples": 44, "test_samples": 2},
    "genhmr-encoder": {
        "image_size": 64, "widths": "4,4,8,8", "blocks": 1, "heads": 2, "pooled": 4,
        "lift_width": 16, "train_samples": 44, "test_samples": 2},
    "genhmr-transformer": {**TRANSFORMER, "pretrain_steps": 5},  # around an encoder, frozen
    "genhmr-transformer vit": {  # with the paper's encoder, trained
        **TRANSFORMER, **ENCODER, "backbone": "vit", "image_size": 64, "vit_drop_path": 0.1,
        "scales": "1,2"},
    "hmr_adapter-hand_expert": {**HAND, **DECODER, **PEOPLE},
    "hmr_adapter-body_expert": {
        **HAND, **PEOPLE, "depth_bins": 4, "hand_cells": 4, "joint_dim": 8},
    "hmr_adapter-hand": {**PEOPLE, "arm_noise": 0.1, "arm_drop": 0.1},  # arms that a guide finds
    "hmr_adapter-body": {**DECODER, **PEOPLE, "offset_hidden": 16},
}
NEEDED = {  # flags that name the final checkpoint of another stage
    "genhmr-transformer": {"tokenizer": "genhmr-tokenizer", "backbone": "genhmr-encoder"},
    "genhmr-transformer vit": {"tokenizer": "genhmr-tokenizer"},
    "hmr_adapter-hand": {"expert": "hmr_adapter-hand_expert", "guide": "hmr_adapter-body_expert"},
    "hmr_adapter-body": {"expert": "hmr_adapter-body_expert"},
}


def command(stage: str, out: Path, folder: Path, steps: int) -> list[str]:
    """The command line of a stage's run in `out`; `folder` has the cache and earlier stages."""
    model, _, part = stage.split()[0].partition("-")
    settings = SMALL_RUN | SETTINGS[stage] | {"steps": steps}
    flags = [f"--{flag}={folder / other / 'checkpoint.pt'}"
             for flag, other in NEEDED.get(stage, {}).items()]
    return ["--model", model, *(["--stage", part] if part else []), "--preset", "cpu", "--out",
            str(out), "--cache", str(folder / "cache"), "--save-every", "0", *flags, "--set",
            *(f"{name}={value}" for name, value in settings.items())]


def start(argv: Sequence[str], ranks: int, log: Path) -> list[int]:
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
            os.setpgrp()
            sys.stdout = sys.stderr = file = open(log, "a", buffering=1)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                           "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost",
                           "MASTER_PORT": str(port)}
            for task in train.TASKS.values():  # drawing takes longer than such a run
                task.write = lambda *_: None
            train.draw_curves = lambda *_: None
            train.main(list(argv))
            code = 0
        except BaseException as error:  # a fork must not return into the caller
            print(f"process {rank}: {error!r}", flush=True)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return children


def wait(children: Sequence[int], log: Path) -> None:
    """Wait for the processes of a run; RuntimeError unless all end well."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise RuntimeError(f"a run ended with {codes}: see {log}\n{log.read_text()[-2000:]}")


def kill(children: Sequence[int]) -> None:
    """SIGKILL for every process of a run, and for its data processes."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)


def version(path: Path) -> tuple[int, int] | None:
    """Identify a checkpoint file without opening it; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def kill_at_random(children: Sequence[int], path: Path, steps: int, duration: float,
                   rng: random.Random) -> None:
    """Kill a run of so many steps, which lasts about `duration` seconds, at a random moment.

    Steps are counted by the checkpoints that appear in `path`, one a step, so that a run is killed
    before its end also when the machine is busier than before. Step 0 is all that comes before.
    """
    after, part, last, seen = rng.randrange(steps), rng.random(), duration / 2, version(path)
    began = time.monotonic()
    while after and not os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.001)
        if (now := version(path)) != seen:
            after, seen = after - 1, now
            last, began = time.monotonic() - began, time.monotonic()
    time.sleep(part * last)
    kill(children)


def digest(out: Path) -> str:
    """Hash everything in a checkpoint but times, commands and software versions."""
    content = torch.load(out / "checkpoint.pt", weights_only=True)
    state = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            state.update(f"{value.dtype} {tuple(value.shape)}".encode())
            state.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, Mapping):
            for name in sorted(value, key=str):
                state.update(str(name).encode())
                add(value[name])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            state.update(repr(value).encode())

    add({name: value for name, value in content.items()
         if name not in ("seconds", "command", "versions")})
    return state.hexdigest()


def last_step(out: Path) -> int:
    """The step of the last checkpoint; 0 without one."""
    path = out / "checkpoint.pt"
    return torch.load(path, weights_only=True)["step"] if path.exists() else 0


def measure(stage: str, ranks: int, trials: int, folder: Path, steps: int,
            rng: random.Random) -> tuple[int, list[int]]:
    """Count the trials that end in the bits of the undisturbed run; also list the killed steps."""
    log, reference = folder / "log.txt", folder / f"{stage} {ranks}"
    shutil.rmtree(reference, ignore_errors=True)
    wait(start(command(stage, reference, folder, steps), ranks, log), log)  # renders, too
    expected = digest(reference)
    shutil.rmtree(reference)
    began = time.monotonic()
    wait(start(command(stage, reference, folder, steps), ranks, log), log)
    duration = time.monotonic() - began
    same, met, out = 0, [], folder / "killed"
    for _ in range(trials):
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(rng.choice((1, 1, 2))):
            if last_step(out) == steps:
                break
            children = start(command(stage, out, folder, steps), ranks, log)
            kill_at_random(children, out / "checkpoint.pt", steps - last_step(out), duration, rng)
            met.append(last_step(out))
        wait(start(command(stage, out, folder, steps), ranks, log), log)
        same += digest(out) == expected
    return same, met


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials and print the table; returns 1 if any run ended in other bits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks resume", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2], help="numbers of processes")
    parser.add_argument("--trials", type=int, default=20, help="of each (default: 20)")
    parser.add_argument("--steps", type=int, default=40, help="of each run (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    arguments = parser.parse_args(argv)
    rng, failed, threads = random.Random(arguments.seed), 0, torch.get_num_threads()
    torch.set_num_threads(1)  # a fork inherits no threads
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stage in SETTINGS:  # what others build on, once
            if any(stage in NEEDED.get(other, {}).values() for other in arguments.stage):
                wait(start(command(stage, folder / stage, folder, 3), 1, folder / "log.txt"),
                     folder / "log.txt")
        print(f"{'stage':26}{'processes':>10}{'kills':>7}{'trials':>8}{'same bits':>11}   "
              "steps done when killed", flush=True)
        for stage in arguments.stage:
            for ranks in arguments.ranks:
                same, met = measure(stage, ranks, arguments.trials, folder, arguments.steps, rng)
                failed += same < arguments.trials
                print(f"{stage:26}{ranks:10}{len(met):7}{arguments.trials:8}{same:11}   "
                      + " ".join(map(str, sorted(met))), flush=True)
    torch.set_num_threads(threads)
    return int(failed > 0)
