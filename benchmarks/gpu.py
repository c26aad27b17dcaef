"""Measure all that needs a GPU, and write a table in Markdown.

Rows: SimpleHand's inference at batch 1 in every way that benchmarks/simplehand.py knows, GenHMR's
sampling with T = 1 and 5, and a training step of every paper at each GPU preset: the trainer's own
step, on rendered samples that are already on the GPU. Weights are random; the times do not depend
on them. Without a GPU the table says "not run".
"""

import argparse
import dataclasses
import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import default_collate

import genhmr
import simplehand
from benchmarks.simplehand import variants
from benchmarks.timing import medians
from bodymodels import write_atomically
from networks.backbones import simplehand_model
from networks.small_encoder import build_genhmr

HEADER = "| what | ms | images/s | peak GiB |\n|---|---|---|---|"
CPU_PRESETS = ("cpu", "ablation")


def failed(name: str, error: Exception) -> str:
    """Return the line of a measurement that failed."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"| {name} | failed: {reason[:80].replace('|', '/')} | | |"


def measure(name: str, prepare: Callable[[], Callable[[], object]], samples: int,
            device: torch.device, seconds: float) -> str:
    """One line of the table. prepare: returns the function to time, which handles `samples`."""
    is_cuda = device.type == "cuda"
    try:
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        time = medians({name: prepare()}, seconds)[name]
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if is_cuda else "-"
        line = f"| {name} | {time:.2f} | {1e3 * samples / time:,.1f} | {memory} |"
    except Exception as error:  # out of memory, torch.compile without a compiler, ...
        line = failed(name, error)
    gc.collect()
    if is_cuda:
        torch.cuda.empty_cache()
    return line


@torch.inference_mode()
def simplehand_lines(config: simplehand.Config, device: torch.device, seconds: float
                     ) -> Iterator[str]:
    """SimpleHand at batch 1: plain, fused, half precision, compiled, CUDA graph."""
    torch.manual_seed(0)
    model = simplehand_model(config).eval().to(device)
    size = (1, 3, config.image_size, config.image_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8).to(device)
    for way, prepare in variants(model, images).items():
        yield measure(f"SimpleHand, inference, batch 1: {way}", prepare, 1, device, seconds)


@torch.inference_mode()
def genhmr_lines(config: genhmr.Config, device: torch.device, seconds: float) -> Iterator[str]:
    """GenHMR at batch 1, from a picture to a pose, with 1 and 5 iterations of sampling."""
    torch.manual_seed(0)
    model = build_genhmr(config).eval().to(device)
    images = torch.zeros(1, 3, config.image_size, config.image_size, device=device)
    for T in (1, 5):
        yield measure(f"GenHMR, sampling, batch 1: T = {T}",
                      lambda T=T: lambda: genhmr.sample(model, images, iterations=T),
                      1, device, seconds)


def training_line(name: str, preset: str, device: torch.device, seconds: float, cache: str,
                  **changes: object) -> str:
    """One optimiser step of a task of train.py; changes: of the preset's fields."""
    import train  # here: a failure to import it costs the training rows alone
    from tasks.settings import precision_of, supported_precision

    kind = train.TASKS[name]
    config = dataclasses.replace(kind.PRESETS[preset], train_samples=4, **changes)
    if precision_of(config) != supported_precision(precision_of(config)):
        config = dataclasses.replace(config, precision=supported_precision(precision_of(config)))
    if hasattr(config, "arm_source"):
        config = dataclasses.replace(config, arm_source="true")  # needs no second network

    def prepare() -> Callable[[], object]:
        model, _, stage = name.partition("-")
        flags = ["--model", model, "--preset", preset, "--cache", cache]
        arguments = train.parse_arguments(flags + (["--stage", stage] if stage else []))
        origin = {"data": "rendered"}  # as of a checkpoint: no trained expert or tokenizer needed
        task = kind(config, arguments, origin)
        trainer = train.Trainer(task, train.World(device=device), task.build())
        part = config.batch_size // config.accumulate
        samples = [task.train_set[index % 4] for index in range(part)]
        batch = {key: value.to(device) for key, value in default_collate(samples).items()}
        return lambda: trainer.train_step([batch] * config.accumulate)

    precision = precision_of(config)
    return measure(f"{name}, training step, {preset}: {config.batch_size} samples in "
                   f"{config.accumulate} parts, {precision}", prepare, config.batch_size, device,
                   seconds)


def training_lines(device: torch.device, seconds: float) -> Iterator[str]:
    """A training step of every task at each preset that is not for the CPU."""
    import train

    with tempfile.TemporaryDirectory() as cache:
        for name, kind in train.TASKS.items():
            for preset in kind.PRESETS:
                if preset not in CPU_PRESETS and kind.TRAINS:
                    yield training_line(name, preset, device, seconds, cache)


def groups(device: torch.device, seconds: float) -> dict[str, Callable[[], Iterator[str]]]:
    """Return the parts of the table by name, as functions that run them."""
    return {
        "SimpleHand, inference, batch 1": lambda: simplehand_lines(
            simplehand.PRESETS["paper"], device, seconds),
        "GenHMR, sampling, batch 1": lambda: genhmr_lines(
            genhmr.PRESETS["paper"], device, seconds),
        "training steps": lambda: training_lines(device, seconds),
    }


def table(parts: dict[str, Callable[[], Iterator[str]]], out: Path, device: torch.device) -> None:
    """Print and write the table; the file is written anew after each line."""
    title = (f"{torch.cuda.get_device_name()}, torch {torch.__version__}, medians"
             if device.type == "cuda" else "No GPU can be used on this machine.")
    lines = [title, "", HEADER]
    print(f"{title}\n\n{HEADER}", flush=True)

    def add(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        write_atomically(out, ("\n".join(lines) + "\n").encode())

    for name, run in parts.items():
        try:
            for line in run() if device.type == "cuda" else [f"| {name} | not run | | |"]:
                add(line)
        except Exception as error:  # the other parts are measured all the same
            add(failed(name, error))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.md"), metavar="FILE",
                        help="the table (default: runs/gpu.md)")
    parser.add_argument("--seconds", type=float, default=10.0, help="per row (default: 10)")
    arguments = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table(groups(device, arguments.seconds), arguments.out, device)
    print(f"wrote {arguments.out}")
