"""Judge GenHMR as a generative model: many drawn poses for each picture, with proper scores.

A greedy pose cannot show whether iterations help: it says nothing of what else the model believes.
These scores are of draws x_1..x_S of the joints and the true joints y, in mm, roots aligned:

    NLL       -log p(true tokens) per token, in T steps that reveal them in random order
    energy    mean |x_i - y| - 1/2 mean |x_i - x_j|, the energy score (Gneiting and Raftery, 2007):
              least, on average, for draws from the true distribution
    control   the same of the draws of T = 1, moved away from their mean by the one factor that
              gives them the spread of this T: a gain that this has, too, is only a wider spread
    single    MPJPE of one draw; mean: of the draws' mean; best: of the draw next to the truth
    kept %    tokens that stay if a draw is decoded and encoded again
    spread    root mean square distance of the draws from their mean; error: of the truth from it.
              The ratio of their root mean squares over pictures is 1 where the model knows how sure
              it may be

ProHMR (Kolotouros et al., 2021), HuManiFlow (Sengupta et al., 2023) and MEGA (Fiche et al., 2025)
are judged by such scores. All of this is ours: the paper reports single poses only.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import genhmr

ITERATIONS = (1, 2, 5, 10, 20)


@torch.no_grad()
def joint_nll(model: genhmr.GenHMR, features: genhmr.Features, true: Tensor, iterations: int,
              generator: torch.Generator) -> Tensor:
    """Compute -log p(true tokens) per token (B,): T steps reveal tokens (B, L) in random order."""
    order = torch.rand(true.shape, generator=generator, device=true.device).argsort(1).argsort(1)
    counts, total = genhmr.mask_counts(true.shape[1], iterations), 0.0
    for before, after in zip(counts, counts[1:], strict=False):
        masked = true.masked_fill(order < before, model.mask_token)
        logits = model.predict_logits(features, masked).float()
        nll = F.cross_entropy(logits.mT, true, reduction="none")
        total = total + (nll * ((order < before) & (order >= after))).sum(1)
    return total / true.shape[1]


@torch.no_grad()
def draw(model: genhmr.GenHMR, features: genhmr.Features, body: object, true: Tensor,
         iterations: int, samples: int, seed: int) -> dict[str, Tensor]:
    """Draw poses of each picture, at temperature 1, in random order; true: its tokens (B, L).

    Returns draws (B, S, 24, 3), joints in metres from the pelvis; nll (B,); kept (B,), in percent.
    """
    generator = torch.Generator(true.device).manual_seed(seed)
    many = features._replace(**{name: getattr(features, name).repeat_interleave(samples, 0)
                                for name in ("values", "betas", "camera")})
    codes = model.config.tokenizer.codebook_size
    sampled = genhmr.sample_from(model, many, iterations=iterations, top_k=codes, order="random",
                                 generator=generator)
    joints = body(sampled.betas, sampled.rotations).joints
    kept = (model.tokenizer.encode(sampled.rotations) == sampled.tokens).float().mean(1)
    split = (len(true), samples)
    return {"draws": (joints - joints[:, :1]).unflatten(0, split),
            "nll": joint_nll(model, features, true, iterations, generator),
            "kept": 100 * kept.view(split).mean(1)}


def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the mean distance over joints (..., 24, 3) in mm: (...)."""
    return 1000 * np.linalg.norm(first - second, axis=-1).mean(-1)


def energy(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute the energy score (N,) of draws (N, S, 24, 3) and true joints (N, 24, 3), in mm."""
    count = draws.shape[1]
    between = sum(distance(draws, np.roll(draws, shift, 1)).sum(1) for shift in range(1, count))
    return (distance(draws, truth[:, None]).mean(1)
            - between / (2 * count * max(count - 1, 1)))


def posterior_errors(draws: np.ndarray, first: np.ndarray, truth: np.ndarray
                     ) -> dict[str, np.ndarray]:
    """Compute the scores of each picture (N,), see the head of this file.

    draws, first: (N, S, 24, 3) of this T and of T = 1. truth: (N, 24, 3). All are relative to the
    pelvis, in metres.
    """
    mean, first_mean = draws.mean(1, keepdims=True), first.mean(1, keepdims=True)
    count = draws.shape[1]
    unbiased = (count + 1) / max(count - 1, 1)  # as a further draw is distributed about the mean
    squares = np.square(draws - mean).sum(-1).mean((1, 2))
    factor = np.sqrt(squares.mean() / np.square(first - first_mean).sum(-1).mean())
    each = distance(draws, truth[:, None])
    return {"energy": energy(draws, truth),
            "control": energy(first_mean + factor * (first - first_mean), truth),
            "single": each.mean(1), "mean": distance(mean[:, 0], truth), "best": each.min(1),
            "spread": 1000 * np.sqrt(unbiased * squares),
            "error": 1000 * np.sqrt(np.square(mean[:, 0] - truth).sum(-1).mean(1))}
