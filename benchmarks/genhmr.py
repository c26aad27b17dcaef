"""GenHMR's deformable attention, plain and fast, and the time of every part."""

import argparse
import copy
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from benchmarks.timing import table
from bodymodels import load_model
from genhmr import PRESETS, Config, DeformableAttention, Sampled, refine, sample_from
from networks import fast
from networks.small_encoder import build_genhmr


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
    """Print the time from a crop to its pose, AITI, beside the paper's (Tables 2 and 3).

    The paper also says that AITI "measures per-iteration processing time", but its figures grow
    with T and P. Weights are random: times do not depend on them.
    """
    model = fast.replace(build_genhmr(config)).eval().to(device)
    body = load_model("body").for_keypoints().to(device)
    images = torch.zeros(1, 3, config.image_size, config.image_size, device=device)

    def sampled(iterations: int) -> Sampled:
        return sample_from(model, model.encode(images), iterations=iterations)

    def refined(steps: int) -> None:
        start = sampled(5)
        refine(model, start.embeddings, start.betas, start.camera, images.new_zeros(1, 45, 2),
               images.new_ones(1, 45), lambda betas, pose: body.keypoints(body(betas, pose)),
               iterations=steps)

    ways = {f"T = {T} (RTX A5000: {paper} ms)": partial(sampled, T)
            for T, paper in {1: 32, 3: 75, 5: 102, 10: 255, 15: 321, 20: 412}.items()}
    ways |= {f"T = 5, P = {P} (RTX A5000: {paper} ms)": partial(refined, P)
             for P, paper in {1: 154, 3: 209, 5: 253, 10: 444, 20: 638}.items()}
    table(f"GenHMR, from a crop to its pose, {device}", ways, seconds)


@torch.no_grad()
def benchmark_parts(config: Config, seconds: float, device: str = "cpu") -> None:
    """Print the time of every part of the model."""
    model = fast.replace(build_genhmr(config)).eval().to(device)
    body = load_model("body").for_keypoints().to(device)
    images = torch.zeros(1, 3, config.image_size, config.image_size, device=device)
    features = model.encode(images)
    tokens = images.new_zeros(1, config.tokenizer.num_tokens, dtype=torch.int64)
    start = model.tokenizer.quantiser.lookup(tokens)
    parts = {
        "encoder and feature maps": partial(model.encode, images),
        "transformer, one iteration": partial(model.predict_logits, features, tokens),
        "pose decoder": partial(model.tokenizer.decode, tokens),
        "refinement, 10 steps": lambda: refine(
            model, start, features.betas, features.camera, images.new_zeros(1, 45, 2),
            images.new_ones(1, 45), lambda betas, pose: body.keypoints(body(betas, pose)))}
    table(f"GenHMR, its parts, batch 1, {device}", parts, seconds)


def run(arguments: argparse.Namespace) -> None:
    for width in (1024, 256):
        benchmark_attention(width, arguments.seconds)
    time_per_image(PRESETS[arguments.preset], arguments.seconds)
    benchmark_parts(PRESETS[arguments.preset], arguments.seconds)
