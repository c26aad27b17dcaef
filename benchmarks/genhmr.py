"""GenHMR's deformable attention, plain and fast, and its time from a crop to a pose."""

import argparse
import copy
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from benchmarks.timing import table
from bodymodels import load_model
from genhmr import PRESETS, Config, DeformableAttention, refine, sample_from
from networks import fast
from networks.small_encoder import build_genhmr

# T, P: ms on an RTX A5000 (Tables 2 and 3). The paper also says that AITI "measures per-iteration
# processing time", but its figures grow with T and P.
AITI = {(1, 0): 32, (3, 0): 75, (5, 0): 102, (10, 0): 255, (15, 0): 321, (20, 0): 412,
        (5, 1): 154, (5, 3): 209, (5, 5): 253, (5, 10): 444, (5, 20): 638}


def benchmark_attention(width: int, seconds: float) -> None:
    """Print the times of 96 queries on 15,552 cells, the plain module's and the fast one's."""
    attention = DeformableAttention(replace(Config(), width=width, pyramid_width=width))
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    inputs = torch.randn(1, 96, width), torch.rand(96, 2), torch.randn(1, 15_552, width)
    peers = {"plain": attention, "fast": fast.replace(copy.deepcopy(attention))}
    plain, quick = (peer(*inputs) for peer in peers.values())
    error = ((quick - plain).abs().max() / plain.abs().max()).item()
    ways = {name: torch.no_grad()(partial(peer, *inputs)) for name, peer in peers.items()}
    table(f"attention, width {width}, differs by {error:.0e}", ways, seconds)
    trained = [x.requires_grad_() for x in inputs]
    table("the same, forward and backward", {
        name: lambda peer=peer: peer(*trained).sum().backward() for name, peer in peers.items()},
        seconds)


@torch.no_grad()
def time_per_image(config: Config, seconds: float, device: str = "cpu") -> None:
    """Print the time from a crop to its pose, AITI; weights are random, times do not depend on them
    """
    model = fast.replace(build_genhmr(config)).eval().to(device)
    body = load_model("body").for_keypoints().to(device)
    images = torch.zeros(1, 3, config.image_size, config.image_size, device=device)

    def predict(iterations: int, steps: int) -> None:
        start = sample_from(model, model.encode(images), iterations=iterations)
        if steps:
            refine(model, start.embeddings, start.betas, start.camera, images.new_zeros(1, 45, 2),
                   images.new_ones(1, 45), lambda betas, pose: body.keypoints(body(betas, pose)),
                   iterations=steps)

    table(f"GenHMR, from a crop to its pose, {device}", {
        f"T = {T}{f', P = {P}' * bool(P)} (RTX A5000: {paper} ms)": partial(predict, T, P)
        for (T, P), paper in AITI.items()}, seconds)


def run(arguments: argparse.Namespace) -> None:
    for width in (1024, 256):
        benchmark_attention(width, arguments.seconds)
    time_per_image(PRESETS[arguments.preset], arguments.seconds)
