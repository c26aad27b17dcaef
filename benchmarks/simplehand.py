"""SimpleHand: faster ways to run the model beside the plain one, on the CPU and on a GPU."""

import argparse

import torch
from torch import Tensor

from benchmarks.timing import table
from networks.backbones import simplehand_model
from networks.fast import with_sampled_cells
from simplehand import PRESETS, SimpleHand


@torch.inference_mode()
def compare(model: SimpleHand, images: Tensor, seconds: float) -> None:
    """Print the time of each way, and how far its mesh is from the plain model's."""
    ways, expected = {}, model(images)["vertices"]
    for name, prepare in {
            "plain": lambda: model, "fused": model.fuse,
            "fused, sampled cells": lambda: with_sampled_cells(model.fuse()),
            "fused, torch.compile": lambda: torch.compile(model.fuse(), dynamic=False)}.items():
        try:
            way = prepare()
            error = 1e3 * (way(images)["vertices"] - expected).abs().max().item()
            ways[f"{name}, differs by {error:.0e} mm"] = lambda way=way: way(images)
        except Exception as error:  # torch.compile without a compiler, two deconvolutions, ...
            print(f"{name}: not possible here, {str(error).splitlines()[0]:.60}")
    table(f"{images.device}, batch {len(images)}, {torch.get_num_threads()} threads", ways, seconds)


def run(arguments: argparse.Namespace) -> None:
    model = simplehand_model(PRESETS[arguments.preset]).eval()
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for batch in (1, 32):
            shape = (batch, 3, *[model.config.image_size] * 2)
            images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
            compare(model.to(device), images, arguments.seconds)
