"""All that needs a GPU: SimpleHand's and GenHMR's inference, and training steps of every paper."""

import argparse
import tempfile

import torch
from torch.utils.data import default_collate

import benchmarks.genhmr
import benchmarks.simplehand
import train
from benchmarks.timing import table
from tasks.settings import ON_A_CPU


def training_step(name: str, preset: str, device: torch.device, seconds: float,
                  *changes: str) -> None:
    """Print the time of one optimiser step of a task of train.py, with changes as of --set."""
    kind, (model, _, stage) = train.TASKS[name], name.partition("-")
    if hasattr(kind.PRESETS[preset], "arm_source"):
        changes += ("arm_source=true",)  # needs no second network
    with tempfile.TemporaryDirectory() as cache:
        arguments = train.parse_arguments([
            "--model", model, "--preset", preset, *["--stage", stage] * bool(stage),
            "--cache", cache, "--set", "train_samples=4", *changes])
        config, settings = train.choose_config(arguments, None, None)
        origin = {"data": "rendered"}  # as of a checkpoint: no trained expert or tokenizer needed
        task = kind(config, arguments, origin, settings)
        trainer = train.Trainer(task, train.World(device=device), task.build())
        part = config.batch_size // settings.accumulate
        samples = default_collate([task.train_set[index % 4] for index in range(part)])
    batches = [{key: value.to(device) for key, value in samples.items()}] * settings.accumulate
    table(f"{name}, training step, {preset}", {
        f"{config.batch_size} samples": lambda: trainer.train_step(batches)}, seconds)


def run(arguments: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        print("not run: no GPU can be used on this machine")
        return
    benchmarks.simplehand.run(arguments)
    benchmarks.genhmr.time_per_image(benchmarks.genhmr.PRESETS["paper"], arguments.seconds, "cuda")
    for name, kind in train.TASKS.items():
        for preset in set(kind.PRESETS if kind.TRAINS else ()).difference(ON_A_CPU):
            torch.cuda.reset_peak_memory_stats()
            try:
                training_step(name, preset, torch.device("cuda"), arguments.seconds)
                print(f"  at most {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
            except torch.cuda.OutOfMemoryError as error:
                print(f"{name}, {preset}: {error!r:.80}")
