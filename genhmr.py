"""GenHMR: a human body from one picture as a sentence of 96 words, the whole paper in one file.

Muhammad Usama Saleem, Ekkasit Pinyoanuntapong, Pu Wang, Hongfei Xue, Srijan Das, Chen Chen:
"GenHMR: Generative Human Mesh Recovery", AAAI 2025.

The claim: depth is ambiguous, so do not regress a pose, *generate* it. A tokenizer (stage 1, a
VQ-VAE on motion capture) turns a pose into 96 words of a codebook of 2048. A transformer (stage 2)
learns to fill in masked words, looking at the picture. At test time all words start masked; in
each of a few iterations the surest are kept and the others guessed again. Gradient steps on the
words' embeddings then pull the body onto 2D keypoints.

    where in the paper             what                                      where in this file
    "Pose Tokenizer"   argmin_k    nearest code                              Quantiser.nearest
                       L_vq, L_re  loss of stage 1                           tokenizer_total_loss
    "Masked Transformer Decoder"   MSDA, deformable attention                DeformableAttention
    "Generative Masking" gamma     how many words are masked in training     random_mask
    Eq. 1              L_mask      -log p(y_i | Y_M, X)                      losses
    Eq. 5              tau_t       temperature of the Gumbel noise           gumbel_temperature
    Eq. 6              p_mk        Gumbel-softmax, straight-through          relax
    "Camera Model"     Pi(K(J+T))  projection                                project
    "Training Strategy" L_total    loss of stage 2                           total_loss
    "Uncertainty-Guided Sampling"  iterative decoding                        sample
    "Mask Scheduling Function"     four gammas                               SCHEDULES
    Eq. 2, 3, 4        G, L_2D, Y+ 2D pose-guided refinement                 refine

No code of the authors is public. Their loss weights, learning rate and batch size are those of
HMR2.0 (Goel et al., "Humans in 4D", ICCV 2023), so where the paper is silent we do as HMR2.0 or
TokenHMR (Dwivedi et al., CVPR 2024) do, or, last, choose. Every field of the two configs says
which: (paper), (HMR2.0), (TokenHMR), (our choice). Where the paper contradicts itself, a comment
beside the line says so.

Metres, radians, and OpenCV camera axes (x right, y down, z away from the camera) throughout; 6D
rotations are [column 0, column 1]. Letters in shapes: B batch, L words of a pose (96), V words of
the codebook (2048), C their dimension (256), S side of the crop in pixels, H heads, P points.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import math
import re
import statistics
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

JOINTS = 24  # of SMPL: global orientation, 21 of the body, 2 of the hands; all are tokenised

# ------------------------------------------------------------------------------------ config


def require(condition: object, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything that defines a pose tokenizer and its training, stage 1. Defaults: the paper's."""

    # Network
    num_tokens: int = 96  # words of a pose, 24 * 2^k (paper, Table 6: 48, 96, 192, 384)
    codebook_size: int = 2048  # (paper, Table 5: 1024, 2048, 4096)
    code_dim: int = 256  # (paper, Table 5: 128, 256)
    width: int = 512  # channels of the convolutions (TokenHMR)
    depth: int = 2  # residual blocks on either side (TokenHMR)
    dilation_growth: int = 3  # of their kernels, block by block (TokenHMR)

    # Codebook: moving averages, and codes that nobody uses start anew (paper)
    momentum: float = 0.99  # of the averages (TokenHMR; the paper is silent)
    legacy_reset: bool = False  # True: a restarted code keeps its stale averages, as in TokenHMR,
    # which bring it back to where nobody used it as soon as somebody does (our choice)

    # Loss. L_vq = re L_re + E |sg[z] - c| + alpha |z - sg[c]|, L_re = pose + vertices + joints
    weight_reconstruction: float = 1.0  # lambda_re (paper)
    weight_embedding: float = 0.02  # lambda_E (paper); no gradient, as averages move the codes
    weight_commitment: float = 0.02  # lambda_alpha (TokenHMR; the paper never gives it)
    weight_pose: float = 1.0  # lambda_theta (paper)
    weight_vertices: float = 0.5  # lambda_V, per metre (paper)
    weight_joints: float = 0.3  # lambda_J, per metre (paper)
    vertex_stride: int = 1  # L_V is a mean over every n-th vertex; 1: over all of them (paper)

    # Augmentation: "we rotate the poses at varying degrees" (paper), see augment_rotation
    heading: float = 180.0  # degrees, the most that a body is turned about the vertical and
    tilt: float = 45.0  # degrees, the most that it leans (our choice, both)
    uniform_rotation: float = 0.2  # part of the bodies turned any way at all (our choice)

    # Optimisation: Adam
    batch_size: int = 512  # samples per optimiser step, over all processes (paper)
    accumulate: int = 1  # parts in which a process computes its share of them (our choice)
    steps: int = 200_000  # optimiser steps (paper)
    learning_rate: float = 1e-4  # (paper)
    schedule: str = "constant"  # or "step": / 10 at half of the steps, "cosine" (our choice)
    warmup_steps: int = 1_000  # linear from 0 (our choice)
    weight_decay: float = 0.0  # Adam (paper)
    gradient_clip: float = 1.0  # norm (our choice)
    precision: str = "fp32"  # words must not depend on it: always computed in fp32 (our choice)
    channels_last: bool = False  # no meaning for sequences (our choice)
    ema_decay: float = 0.0  # of a moving average of the weights, 0 = off (our choice)
    eval_every: int = 5_000  # steps between evaluations (our choice)
    seed: int = 0  # of initialisation, order and augmentation (our choice)
    train_samples: int = 1_000_000  # poses of an epoch of the free motion data (our choice)
    test_samples: int = 2_000  # (our choice)

    def __post_init__(self) -> None:
        multiplier = self.num_tokens // JOINTS
        require(multiplier >= 2 and self.num_tokens == JOINTS * multiplier
                and multiplier & (multiplier - 1) == 0,
                f"num_tokens is {self.num_tokens}: expected 48, 96, 192, 384, ... (24 * 2^k)")
        require(0.0 <= self.momentum < 1.0, f"momentum is {self.momentum}: expected 0 <= m < 1")
        for name in ("codebook_size", "code_dim", "width", "depth", "dilation_growth",
                     "vertex_stride"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}: expected > 0")


@dataclass(frozen=True)
class Config:
    """Everything that defines a GenHMR and its training, stage 2. Defaults are the paper's."""

    tokenizer: TokenizerConfig = TokenizerConfig()  # of the frozen tokenizer inside (paper)

    # Input. The crop is square; the encoder sees its middle three quarters (HMR2.0)
    image_size: int = 256  # px, S, a multiple of 64 (HMR2.0)

    # Image encoder: ViT-H/16 (paper)
    patch_size: int = 16  # px (paper)
    vit_dim: int = 1280  # (ViT-H)
    vit_depth: int = 32  # (ViT-H)
    vit_heads: int = 16  # (ViT-H)
    vit_drop_path: float = 0.55  # rate at the last block, rising linearly (HMR2.0)
    stem: tuple[int, ...] = ()  # channels of convolutions before the patches, each halving the
    # picture: a ViT without weights from elsewhere learns much faster with them (our choice)

    # Feature maps, "inspired by ViT-Det"
    scales: tuple[int, ...] = (1, 4, 8)  # times the encoder's resolution, powers of 2 (paper)
    pyramid_width: int = 256  # channels of the maps (our choice: ViTDet's)

    # Masked transformer
    width: int = 256  # channels of the queries (our choice: Deformable-DETR's)
    heads: int = 8  # H, of both attentions (our choice: Deformable-DETR's)
    points: int = 4  # P, sampled per head and map (our choice: Deformable-DETR's)
    layers: int = 4  # (paper, Table 16)
    ffn: int = 1024  # hidden width of the MLPs (our choice: Deformable-DETR's)

    # Shape and camera, "directly regressed from the image features" (paper)
    regressor_width: int = 1024  # hidden width (our choice)
    # Heat maps over the cells for so many 2D keypoints, 0: none (paper). Shape, camera and words
    # then start from where these are and what is there, not from a mean of all cells: ViTPose's
    # encoder knows keypoints already, a new one learns little from words in minutes (our choice)
    heat_maps: int = 0
    focal_length: float = 5000.0  # px at a crop of 256 px; fixed (paper), this value (HMR2.0)

    # Loss. L_mask is a mean over words and samples, the others see `reduction`
    tau_max: float = 1.0  # tau ~ U(0, tau_max) of generative masking (paper, Table 4: 0.3 to 1)
    guesses: float = 0.0  # highest part of the words left unmasked that are the model's own, as
    # when it samples; 0: all of them are true (paper). Without, what it believes after one
    # iteration misleads a small model in the next (our choice)
    mask_loss_on: str = "all"  # words (paper, Eq. 1), or "masked" ones alone (MaskGIT)
    reduction: str = "hmr2_sum"  # sums over joints and batch (HMR2.0; the weights are its own), or
    # "mean": over the batch, times 48, for batches of other sizes (our choice)
    weight_mask: float = 1.0  # (paper)
    weight_keypoints_3d: float = 5e-2  # per metre (paper)
    weight_keypoints_2d: float = 1e-2  # per side of the crop (paper)
    weight_heat: float = 0.0  # of the heat maps' L_heat, a sum over keypoints (our choice)
    weight_pose: float = 1e-3  # lambda_theta (paper). lambda_SMPL = 1.5e-3 is only the sum of
    weight_betas: float = 5e-4  # these two (paper), no further factor

    # Temperature of the Gumbel-softmax, Eq. 5
    temperature_start: float = 1.0  # (paper)
    temperature_end: float = 0.01  # (paper)
    temperature_duration: float = 0.5  # of the steps; then it stays at the end (paper)

    # Optimisation: Adam on 2 GPUs
    batch_size: int = 96  # samples per optimiser step, over all processes: 2 GPUs x 48 (paper,
    # read as HMR2.0 means its 48)
    accumulate: int = 1  # parts in which a process computes its share of them (our choice)
    steps: int = 300_000  # optimiser steps (our choice: the paper is silent)
    learning_rate: float = 1e-5  # (paper)
    schedule: str = "constant"  # or "step": / 10 at half of the steps, "cosine" (HMR2.0)
    warmup_steps: int = 1_000  # linear from 0 (our choice)
    weight_decay: float = 0.0  # Adam (paper); HMR2.0 has 1e-4
    gradient_clip: float = 1.0  # norm; Gumbel gradients grow as it cools (our choice)
    precision: str = "bf16"  # "fp32", "bf16" or "fp16" with a gradient scaler (our choice)
    channels_last: bool = True  # memory format, for speed alone (our choice)
    ema_decay: float = 0.0  # of a moving average of the weights, 0 = off (our choice)
    eval_every: int = 10_000  # steps between evaluations (our choice)
    seed: int = 0  # of initialisation, order, masks and augmentation (our choice)

    # Data
    augmentation: str = "official_hmr"  # a recipe of data.py: scale, rotation, flip, colour (paper)
    train_samples: int = 300_000  # rendered bodies of an epoch, the free stand-in (our choice)
    test_samples: int = 1_000  # (our choice)
    views: float = 180.0  # degrees of heading away from the camera, either way (our choice)
    lean: float = 180.0  # degrees, the most that a body leans from upright (our choice)

    def __post_init__(self) -> None:
        if isinstance(self.tokenizer, Mapping):  # from a checkpoint
            object.__setattr__(self, "tokenizer", TokenizerConfig(**self.tokenizer))
        object.__setattr__(self, "scales", tuple(self.scales))
        object.__setattr__(self, "stem", tuple(self.stem))
        for name, valid, rule in (
            ("image_size", self.image_size > 0 and self.image_size % (4 * self.patch_size) == 0,
             f"a multiple of {4 * self.patch_size}, four patches"),
            ("stem", self.patch_size % 2 ** len(self.stem) == 0, "halvings within a patch"),
            ("vit_heads", self.vit_dim % self.vit_heads == 0, "a divisor of vit_dim"),
            ("scales", self.scales and all(scale > 0 and scale & (scale - 1) == 0
                                           and self.vit_dim % scale == 0 for scale in self.scales),
             "powers of 2 that divide vit_dim"),
            ("heads", self.width % self.heads == 0, "a divisor of width"),
            ("tau_max", 0 < self.tau_max <= 1, "above 0, at most 1"),
            ("guesses", 0 <= self.guesses <= 1, "0 to 1"),
            ("mask_loss_on", self.mask_loss_on in ("all", "masked"), "'all' or 'masked'"),
            ("reduction", self.reduction in ("hmr2_sum", "mean"), "'hmr2_sum' or 'mean'"),
            ("temperature_end", 0 < self.temperature_end <= self.temperature_start,
             "above 0, at most temperature_start"),
            ("temperature_duration", self.temperature_duration > 0, "a part of the steps, above 0"),
        ):
            require(valid, f"{name} is {getattr(self, name)}: expected {rule}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the encoder's cells, the patches of a crop."""
        rows = self.image_size // self.patch_size
        return rows, 3 * rows // 4

    @property
    def focal(self) -> float:
        """Focal length in sides of the crop."""
        return self.focal_length / 256.0


TOKENIZER_PRESETS: dict[str, TokenizerConfig] = {
    "paper": TokenizerConfig(),
    # One H200: four times the batch, a quarter of the steps and, Adam's rule, twice the rate.
    "h200": TokenizerConfig(
        batch_size=2048, steps=50_000, learning_rate=2e-4, warmup_steps=250, eval_every=1_250),
    # One GPU with 11 GB: the paper's run, step for step, in two halves.
    "single_gpu": TokenizerConfig(accumulate=2),
    # Two CPU cores: the same design and the same 96 words, small enough to learn in minutes. It
    # knows the bodies that its stage 2 will meet, which face an upright camera. Few codes, as few
    # are told apart by an encoder as small as that of stage 2.
    "cpu": TokenizerConfig(
        codebook_size=32, code_dim=64, width=96, depth=1, vertex_stride=20, heading=20.0,
        tilt=20.0, uniform_rotation=0.0, batch_size=64, steps=2_600, learning_rate=2e-3,
        schedule="cosine", warmup_steps=100, eval_every=1_300, train_samples=20_000,
        test_samples=1_000),
}

PRESETS: dict[str, Config] = {
    # torchrun with 2 processes, RTX A6000. With 48 samples each, "mean" is HMR2.0's sum; with any
    # other number of processes it stays so.
    "paper": Config(reduction="mean"),
    # One H200: twice the paper's 2 x 48, so half of the steps and, Adam's rule, the learning rate
    # times sqrt(2).
    "h200": Config(
        batch_size=192, steps=150_000, learning_rate=1.41e-5, warmup_steps=500, reduction="mean",
        eval_every=5_000),
    # One GPU with 24 GB: the paper's run, step for step, in eight batches of 12.
    "single_gpu": Config(accumulate=8, reduction="mean"),
    # Two CPU cores: the same design with a tiny encoder, at half the resolution, for bodies that
    # stand and turn no further than 30 degrees from the camera: cartwheels take longer. That
    # encoder has seen nothing before, so it begins with convolutions and is asked for keypoints.
    # With the paper's weights L_3D starts ten times as large as L_mask, and its Gumbel noise drowns
    # the little that can be learned in minutes: here the terms beside L_mask weigh far less. (Once
    # words are learned, more of L_3D makes the likeliest ones fit together: see assets/README.md.)
    "cpu": Config(
        tokenizer=TOKENIZER_PRESETS["cpu"], image_size=128, vit_dim=128, vit_depth=2, vit_heads=4,
        vit_drop_path=0.0, stem=(24, 48, 96, 128), scales=(1, 2), pyramid_width=32, width=64,
        heads=4, points=2, layers=2, ffn=128, regressor_width=256, heat_maps=45,
        reduction="mean", weight_keypoints_3d=2.5e-4, weight_keypoints_2d=1e-4,
        weight_heat=1e-3, weight_pose=5e-6, weight_betas=1e-4, guesses=1.0, temperature_end=0.5,
        batch_size=32, steps=2_300, learning_rate=2e-3, schedule="cosine", warmup_steps=100,
        precision="fp32", channels_last=False, eval_every=1_150, augmentation="rendered_bodies",
        train_samples=16_000, test_samples=500, views=30.0, lean=45.0),
}

# ------------------------------------------------------------------------ rotations, cameras


def unit(vector: Tensor, fallback: Tensor, shortest: float) -> Tensor:
    """Vectors (..., 3) of length 1; `fallback`, without gradient, for those below `shortest`."""
    degenerate = vector.abs().amax(-1, keepdim=True) <= shortest
    vector = torch.where(degenerate, fallback, vector)
    vector = vector / vector.detach().abs().amax(-1, keepdim=True)  # 1e20 squared would overflow
    return vector / vector.norm(dim=-1, keepdim=True)


def rotation_6d_to_matrix(rotation_6d: Tensor) -> Tensor:
    """[column 0, column 1] (..., 6) -> rotation matrices (..., 3, 3), by Gram-Schmidt.

    Zhou et al., "On the Continuity of Rotation Representations", CVPR 2019. Zero and parallel
    columns fall back to an axis, so values and gradients are always finite.
    """
    first, second = rotation_6d.unflatten(-1, (2, 3)).unbind(-2)
    first = unit(first, first.new_tensor([1, 0, 0]), 1e-12)
    axis = F.one_hot(first.abs().argmin(-1), 3).to(first)  # the one least parallel to `first`

    def orthogonal(vector: Tensor) -> Tensor:
        return vector - (first * vector).sum(-1, keepdim=True) * first

    second = unit(second, first, 1e-12)
    second = unit(orthogonal(second), orthogonal(axis), 8 * torch.finfo(first.dtype).eps)
    second = unit(orthogonal(second), second, 0.0)  # again: cancellation left a part of `first`
    return torch.stack((first, second, torch.linalg.cross(first, second)), -1)


def matrix_to_rotation_6d(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) -> [column 0, column 1] (..., 6)."""
    return matrix[..., :2].mT.flatten(-2)


def axis_rotation(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotation about unit axes (..., 3) by angles (...) in radians, Rodrigues' formula."""
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    angle = angle[..., None, None]
    return torch.eye(3).to(axis) + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)


def augment_rotation(rotations: Tensor, generator: torch.Generator | None = None,
                     config: TokenizerConfig = TOKENIZER_PRESETS["paper"]) -> Tensor:
    """Turn each body as a whole: poses (B, 24, 3, 3) -> the same with another global orientation.

    "We rotate the poses at varying degrees" (appendix). The tokenizer sees the global orientation
    too, and stage 2 meets it in camera axes, so it has to know all of SO(3): a standing body (y
    down) takes any heading and leans up to config.tilt degrees, a part of them takes any rotation
    (our choice). A body turns about its rest pelvis: vertices V become R (V - J_0) + J_0.
    """
    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, device=rotations.device)

    batch = len(rotations)
    heading, lean, towards = (2 * uniform(3, batch) - 1).unbind()
    towards = math.pi * towards
    flat = torch.stack((towards.cos(), torch.zeros_like(lean), towards.sin()), -1)
    turn = axis_rotation(flat, math.radians(config.tilt) * lean) @ axis_rotation(
        flat.new_tensor([0, 1, 0]).expand_as(flat), math.radians(config.heading) * heading)
    normal = torch.randn(batch, 6, generator=generator, device=rotations.device)
    anyhow = uniform(batch) < config.uniform_rotation
    turn = torch.where(anyhow[:, None, None], rotation_6d_to_matrix(normal), turn)
    root, body = rotations.split((1, JOINTS - 1), 1)
    return torch.cat((turn.to(rotations)[:, None] @ root, body), 1)


def camera_translation(camera: Tensor, focal: float, size: float = 1.0) -> Tensor:
    """Camera [s, tx, ty] (B, 3) -> translation T (B, 3) in metres (HMR2.0).

    focal and size: focal length and side of the crop in the same unit, so 5000 and 256 pixels, or
    config.focal and 1. Called "weak perspective camera" in the paper: s only sets the depth of a
    perspective one. A metre at that depth covers s / 2 of the crop; s = 0.9 is 43.4 m away.
    """
    s, x, y = camera.unbind(-1)
    return torch.stack((x, y, 2.0 * focal / (size * s + 1e-9)), -1)


def project(points: Tensor, camera: Tensor, focal: float) -> Tensor:
    """J_2D = Pi(K (J_3D + T)): points (B, N, 3), camera (B, 3) -> (B, N, 2), crop in -0.5..0.5.

    focal: in sides of the crop, as config.focal. The camera's rotation is the identity.
    """
    points = points + camera_translation(camera, focal)[:, None]  # Eq. 3 forgets T
    return focal * points[..., :2] / points[..., 2:]


# ------------------------------------------------------------------- stage 1: pose tokenizer


class ResidualBlock(nn.Module):
    """x + conv(relu(dilated conv(relu(x)))), without norms: (B, D, n) -> the same."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.dilated = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.pointwise = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(F.relu(self.dilated(F.relu(x))))


def residual_blocks(config: TokenizerConfig) -> list[ResidualBlock]:
    """The widest dilation first."""
    return [ResidualBlock(config.width, config.dilation_growth**power)
            for power in reversed(range(config.depth))]


def pose_encoder(config: TokenizerConfig) -> nn.Sequential:
    """E: 6D rotations along the sequence of joints (B, 6, 24) -> embeddings z (B, C, L).

    As TokenHMR's, whose lengths are rounded to multiples of ten; without that rounding, which
    could never give 96, its grid of lengths becomes exactly the one of Table 6.
    """
    width, length = config.width, 2 * JOINTS
    layers = [nn.Conv1d(6, width, 3, padding=1), nn.ReLU(),
              nn.Upsample(length), nn.Conv1d(width, width, 3, padding=1), nn.ReLU()]
    while length < 2 * config.num_tokens:
        length *= 2
        layers += [nn.Upsample(length), nn.Conv1d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.Conv1d(width, width, 4, stride=2, padding=1),  # 2 L -> L
        *residual_blocks(config), nn.Conv1d(width, config.code_dim, 3, padding=1))


def pose_decoder(config: TokenizerConfig) -> nn.Sequential:
    """Embeddings (B, C, L) -> 6D rotations (B, 6, 24), the length shrinking in four equal steps."""
    width = config.width
    layers = [nn.Conv1d(config.code_dim, width, 3, padding=1), nn.ReLU()]
    for step in (3, 2, 1, 0):  # 78, 60, 42, 24
        length = JOINTS + step * (config.num_tokens - JOINTS) // 4
        layers += [nn.Upsample(length), nn.Conv1d(width, width, 3, padding=1), nn.ReLU()]
    last = nn.Conv1d(width, 6, 3, padding=1)
    with torch.no_grad():  # start near the rest pose, where 6D is well-conditioned (our choice)
        last.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
    return nn.Sequential(*layers, *residual_blocks(config),
                         nn.Conv1d(width, width, 3, padding=1), nn.ReLU(), last)


class Quantiser(nn.Module):
    """The codebook (V, C), moved by averages of what it is used for (VQ-VAE's EMA variant).

    Codebook and averages are buffers, so a checkpoint has them and training resumes exactly.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        size = (config.codebook_size, config.code_dim)
        self.momentum, self.legacy_reset = config.momentum, config.legacy_reset
        self.register_buffer("codebook", torch.randn(size))
        self.register_buffer("code_sum", torch.zeros(size))  # average of the sum of z per code
        self.register_buffer("code_count", torch.zeros(len(self.codebook)))  # of their number
        self.register_buffer("initialised", torch.tensor(False))

    def nearest(self, z: Tensor) -> Tensor:
        """argmin_k ||z_i - c_k||_2: embeddings (..., C) -> words (...), int64."""
        # |z - c|^2 = |z|^2 - 2 (z.c - |c|^2 / 2), of which one matrix product finds the least.
        half_norms = 0.5 * self.codebook.square().sum(1)
        products = torch.addmm(-half_norms, z.flatten(0, -2), self.codebook.T)  # (N, V)
        return products.argmax(1).view(z.shape[:-1])

    def lookup(self, tokens: Tensor) -> Tensor:
        """Words (...) -> codes (..., C)."""
        return F.embedding(tokens, self.codebook)

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """Quantise embeddings (B, L, C); in training mode, also learn from them."""
        if self.training and not self.initialised:
            self.initialise(z.detach().flatten(0, 1))
        tokens = self.nearest(z)
        codes = self.lookup(tokens)
        usage = torch.bincount(tokens.flatten(), minlength=len(self.codebook)).to(z)
        if self.training:
            usage = all_reduced(usage)
            self.update(z.detach().flatten(0, 1), tokens.flatten(), usage)
        probability = usage / usage.sum()
        entropy = -torch.special.xlogy(probability, probability).sum()
        return {
            "embeddings": z + (codes - z).detach(),  # straight-through: d codes / d z = 1
            "tokens": tokens,
            # The paper writes the norm, all code of this family its mean square.
            "embedding_loss": F.mse_loss(codes, z.detach()),  # ||sg[z] - c||, no gradient: see EMA
            "commitment_loss": F.mse_loss(z, codes.detach()),  # ||z - sg[c]||
            "perplexity": entropy.exp(),  # of this batch's words, 1..V
            "dead_codes": (usage == 0).sum(),  # codes that this batch has no use for, 0..V-1
        }

    @torch.no_grad()
    def update(self, z: Tensor, tokens: Tensor, usage: Tensor) -> None:
        """Move every code towards the mean of the embeddings (N, C) that chose it."""
        sums = torch.zeros_like(self.code_sum).index_add_(0, tokens, z)
        self.code_sum.lerp_(all_reduced(sums), 1.0 - self.momentum)
        self.code_count.lerp_(usage, 1.0 - self.momentum)
        alive = self.code_count >= 1.0
        fresh = random_rows(z, len(self.codebook))
        means = self.code_sum / self.code_count.clamp_min(1.0)[:, None]
        self.codebook.copy_(torch.where(alive[:, None], means, fresh))
        if not self.legacy_reset:  # or the next to choose it would find it back among stale sums
            self.code_sum.copy_(torch.where(alive[:, None], self.code_sum, fresh))
            self.code_count.clamp_min_(1.0)

    @torch.no_grad()
    def initialise(self, z: Tensor) -> None:
        """Start with embeddings of the first batch, each as if it had been used once."""
        self.codebook.copy_(random_rows(z, len(self.codebook)))
        self.code_sum.copy_(self.codebook)
        self.code_count.fill_(1.0)
        self.initialised.fill_(True)


def all_reduced(x: Tensor) -> Tensor:
    """The sum over all processes, if there are several."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def random_rows(x: Tensor, count: int) -> Tensor:
    """`count` rows of x (N, C) in random order, the same on all processes.

    Really random: Jukebox's permutation was lost in T2M-GPT, MoMask and TokenHMR, whose codes
    restart from the first rows of the batch. Fewer rows than asked for repeat, a little moved.
    """
    rows = x[torch.randperm(len(x), device=x.device)[:count]]
    if len(rows) < count:
        rows = rows.repeat(-(-count // len(rows)), 1)[:count]
        rows = rows + 0.01 * rows.std() * torch.randn_like(rows)
    rows = rows.contiguous()
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(rows, 0)
    return rows


class Tokenizer(nn.Module):
    """Poses to words and back: encoder, codebook, decoder (Fig. 2a). Always in full precision.

    Four words per joint by number only: in this net a word sees four to eight joints, neighbours
    in SMPL's order rather than in the body, and a joint depends on a third or more of the words.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = pose_encoder(config)
        self.quantiser = Quantiser(config)
        self.decoder = pose_decoder(config)

    @property
    def codebook(self) -> Tensor:
        """(V, C)."""
        return self.quantiser.codebook

    def embed(self, rotations: Tensor) -> Tensor:
        """Rotation matrices (B, 24, 3, 3) -> embeddings z (B, L, C), not quantised."""
        require(tuple(rotations.shape[1:]) == (JOINTS, 3, 3),
                f"poses of shape {tuple(rotations.shape)}: expected matrices (B, {JOINTS}, 3, 3)")
        with torch.autocast(rotations.device.type, enabled=False):
            x = matrix_to_rotation_6d(rotations.float()).mT  # (B, 6, 24)
            return self.encoder(x).mT  # (B, L, C)

    def encode(self, rotations: Tensor) -> Tensor:
        """Poses (B, 24, 3, 3), global orientation first -> words (B, L), int64 in 0..V-1."""
        z = self.embed(rotations)
        with torch.autocast(z.device.type, enabled=False):
            return self.quantiser.nearest(z)

    def decode(self, tokens: Tensor) -> Tensor:
        """Words (B, L) -> poses (B, 24, 3, 3)."""
        return self.decode_embeddings(self.quantiser.lookup(tokens))

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        """Embeddings Y (B, L, C), of the codebook or not -> poses (B, 24, 3, 3)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return rotation_6d_to_matrix(self.decoder(embeddings.float().mT).mT)

    def forward(self, rotations: Tensor) -> dict[str, Tensor]:
        """Encode, quantise, decode; in training mode this also moves the codebook.

        Returns rotations (B, 24, 3, 3) and what Quantiser.forward does.
        """
        z = self.embed(rotations)
        with torch.autocast(z.device.type, enabled=False):
            quantised = self.quantiser(z)
        return {"rotations": self.decode_embeddings(quantised.pop("embeddings")), **quantised}


def tokenizer_losses(prediction: dict[str, Tensor], batch: dict[str, Tensor],
                     body: Callable) -> dict[str, Tensor]:
    """The unweighted terms of L_vq and L_re, each a scalar.

    prediction: of Tokenizer.forward. batch: pose (B, 24, 3, 3), what the tokenizer was given, and
    betas (B, 10). body(betas, rotations) returns a body's vertices and joints, in metres.
    """
    with torch.no_grad():
        true = body(batch["betas"], batch["pose"])
    predicted = body(batch["betas"], prediction["rotations"])
    return {
        "pose": F.l1_loss(prediction["rotations"], batch["pose"]),  # L_theta, of matrices
        "vertices": F.l1_loss(predicted.vertices, true.vertices),  # L_V
        "joints": F.l1_loss(predicted.joints, true.joints),  # L_J
        "embedding": prediction["embedding_loss"],
        "commitment": prediction["commitment_loss"],
    }


def tokenizer_total_loss(terms: dict[str, Tensor], config: TokenizerConfig) -> Tensor:
    """L_vq."""
    reconstruction = (config.weight_pose * terms["pose"]  # L_re
                      + config.weight_vertices * terms["vertices"]
                      + config.weight_joints * terms["joints"])
    return (config.weight_reconstruction * reconstruction
            + config.weight_embedding * terms["embedding"]
            + config.weight_commitment * terms["commitment"])


# ------------------------------------------------------------------ stage 2: image encoder


class DropPath(nn.Module):
    """Drops a residual branch for whole samples while training, scaled to keep its mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1.0 - self.rate)


def mlp(width: int, hidden: int, width_out: int) -> nn.Sequential:
    """Linear, GELU, linear."""
    return nn.Sequential(OrderedDict(
        fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width_out)))


class SelfAttention(nn.Module):
    """Multi-head self-attention, (B, N, D) -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*qkv)  # (B, H, N, D / H)
        return self.proj(x.transpose(1, 2).flatten(2))


class ViTBlock(nn.Module):
    """Pre-norm transformer block, (B, N, D) -> the same."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = mlp(width, 4 * width, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def conv_stem(widths: tuple[int, ...]) -> nn.Sequential:
    """Convolutions that halve the picture each: Xiao et al., "Early Convolutions Help
    Transformers See Better", 2021."""
    layers: list[nn.Module] = []
    for width_in, width in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(width_in, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width),
                   nn.GELU()]
    return nn.Sequential(*layers)


class ViT(nn.Module):
    """Crops (B, 3, S, 3/4 S) -> tokens (B, N, D), under the names of ViTPose, HMR2.0, TokenHMR."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, patch, depth = config.vit_dim, config.patch_size, config.vit_depth
        self.grid = config.grid  # (16, 12)
        # A padding of two pixels, unlike every other ViT: the patches start two pixels outside.
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch, padding=2)})
        if config.stem:
            rest = patch // 2 ** len(config.stem)
            self.patch_embed = nn.ModuleDict({
                "stem": conv_stem(config.stem),
                "proj": nn.Conv2d(config.stem[-1], width, rest, rest)})
        # The first position belongs to a class token that is gone, and is added to all others.
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + math.prod(self.grid), width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList([
            ViTBlock(width, config.vit_heads, config.vit_drop_path * n / max(depth - 1, 1))
            for n in range(depth)])
        self.last_norm = nn.LayerNorm(width, eps=1e-6)

    def embed(self, images: Tensor) -> Tensor:
        """The patches, with their positions (B, N, D)."""
        for layer in self.patch_embed.values():
            images = layer(images)
        x = images.flatten(2).transpose(1, 2)  # (B, 192, 1280)
        return x + self.pos_embed[:, 1:] + self.pos_embed[:, :1]

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.last_norm(x)


class MapNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def pyramid_level(width: int, scale: int, width_out: int) -> nn.Sequential:
    """A map of `scale` times the resolution, as ViTDet's simple feature pyramid makes it."""
    layers: list[nn.Module] = []
    for doubling in range(scale.bit_length() - 1):
        if doubling:
            layers += [MapNorm(width, eps=1e-6), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, 2))
        width //= 2
    return nn.Sequential(
        *layers, nn.Conv2d(width, width_out, 1, bias=False), MapNorm(width_out, eps=1e-6),
        nn.Conv2d(width_out, width_out, 3, padding=1, bias=False), MapNorm(width_out, eps=1e-6))


def cell_centres(config: Config) -> Tensor:
    """Centres of the encoder's cells (N, 2), row by row, x and y in the crop, -0.5..0.5."""
    y, x = ((torch.arange(count) + 0.5 - count / 2) / config.grid[0] for count in config.grid)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)


class Regressed(NamedTuple):
    """What is read from the encoder's tokens at once."""

    betas: Tensor  # (B, 10)
    camera: Tensor  # (B, 3), s, tx, ty
    start: Tensor  # (B, L, width), what the words start from, or (B, 0, width)
    heat: Tensor  # (B, J, N) log probability of each keypoint for each cell; J may be 0


class Regressor(nn.Module):
    """Shape and camera from the encoder's tokens (B, N, D), starting at the mean.

    config.heat_maps: from the places of keypoints and what is there, and a start for each word.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width, count = config.width, config.heat_maps
        self.norm = nn.LayerNorm(config.vit_dim)
        inputs, outputs = config.vit_dim, 13
        if count:
            self.register_buffer("centres", cell_centres(config), persistent=False)
            self.heat = nn.Linear(config.vit_dim, count)
            self.reduce = nn.Linear(config.vit_dim, 16)
            inputs, outputs = count * (2 + 16), 13 + config.tokenizer.num_tokens * config.width
        self.mlp = mlp(inputs, config.regressor_width, outputs)
        with torch.no_grad():  # no shape, the body as high as most of the crop (HMR2.0)
            self.mlp.fc2.weight.mul_(0.1 if count else 0.01)
            self.mlp.fc2.bias[:13].copy_(torch.tensor([0.0] * 10 + [0.9, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Regressed:
        with torch.autocast(x.device.type, enabled=False):  # bf16 knows no depth between 40 and 41
            x = self.norm(x.float())
            heat, found = x.new_zeros(len(x), 0, x.shape[1]), x.mean(1)
            if hasattr(self, "heat"):
                heat = self.heat(x).mT.log_softmax(-1)
                where = 4.0 * self.centres.expand(len(x), -1, -1)  # about -2..2
                cells = torch.cat((where, self.reduce(x)), 2)  # and what is there
                found = (heat.exp() @ cells).flatten(1)  # (B, J * (2 + 16))
            betas, camera, start = self.mlp(found).tensor_split((10, 13), 1)
            words = start.shape[1] // self.width
            return Regressed(betas, camera, start.unflatten(1, (words, self.width)), heat)


# -------------------------------------------------------------- stage 2: masked transformer


def sample_maps(values: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor,
                weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of bilinear samples: sum_l sum_k A_lyk x^l(p_lyk).

    values: (B, N, C), the maps x^l of `shapes` ((height, width), ...) row by row, one behind the
    other. locations: (B, Q, H, maps, P, 2), x and y in 0..1 over each map. weights: A, (B, Q, H,
    maps, P). Returns sums (B, Q, H, C), and (B, Q, H) the sums of the weights of what lies inside.
    Outside the maps is zero; a NaN stays in its own query.

    One embedding bag per query and head, of four neighbours for each point. Nothing of the size
    of the maps is made, forward.
    """
    sizes = torch.tensor(shapes, device=values.device)  # (maps, 2), on rows of `values`:
    starts = sizes.prod(1).cumsum(0) - sizes.prod(1)
    height, width, start = torch.cat((sizes, starts[:, None]), 1).repeat_interleave(
        weights.shape[4], 0).unbind(1)  # of every point, (maps * P,)
    start = start + values.shape[1] * torch.arange(
        len(values), device=values.device).view(-1, 1, 1, 1)  # (B, 1, 1, maps * P)
    x, y = locations.flatten(3, 4).unbind(-1)  # (B, Q, H, maps * P)
    index, weight = [], []
    for row, near_y in neighbours(y, height):
        for column, near_x in neighbours(x, width):
            index.append(start + row * width + column)
            weight.append(weights.flatten(3) * near_y * near_x)
    weight = torch.cat(weight, -1).to(values)  # (B, Q, H, 4 * maps * P)
    sums = F.embedding_bag(torch.cat(index, -1).flatten(0, 2), values.flatten(0, 1), mode="sum",
                           per_sample_weights=weight.flatten(0, 2))
    return sums.view(*weight.shape[:3], -1), weight.sum(-1)


def neighbours(at: Tensor, size: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two cells around positions in 0..1 of a row of `size` cells, and their weights.

    The centre of the first cell is at 0.5 / size. Cells outside are replaced, with weight 0.
    """
    at = torch.minimum((at * size - 0.5).clamp_min(-1.0), size.to(at))  # farther out is the same
    low = at.detach().floor()
    cell = low.nan_to_num(0.0).long()  # NaN is no index: the weights keep it, for its own query
    last = size - 1
    first = torch.where((cell < 0) | (cell > last), 0.0, low + 1.0 - at)
    second = torch.where(cell >= last, 0.0, at - low)
    return [(torch.minimum(cell.clamp_min(0), last), first),
            (torch.minimum(cell + 1, last), second)]


class DeformableAttention(nn.Module):
    """MSDA(Y, p_y, {x^l}) = sum_l sum_k A_lyk W x^l(p_y + dp_lyk), per head (Zhu et al., 2020).

    Under the names of Deformable-DETR, whose code projects every cell of every map by W and then
    samples. Sampling and projecting are both linear, so here the few sampled vectors are projected
    instead: the same result at a twentieth of the time.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, heads, maps, points = (
            config.width, config.heads, len(config.scales), config.points)
        self.shape = (heads, maps, points)
        self.sampling_offsets = nn.Linear(width, 2 * math.prod(self.shape))
        self.attention_weights = nn.Linear(width, math.prod(self.shape))
        self.value_proj = nn.Linear(config.pyramid_width, width)
        self.output_proj = nn.Linear(width, width)

    def initialise(self) -> None:
        """Head h looks into direction h, its point k at k + 1 cells; all weights are equal."""
        heads, maps, points = self.shape
        angle = 2.0 * math.pi * torch.arange(heads) / heads
        ring = torch.stack((angle.cos(), angle.sin()), -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, points + 1)[:, None]
        ring = (ring[:, None, None] * steps).expand(heads, maps, points, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.flatten())
        for weight in (self.sampling_offsets.weight, self.attention_weights.weight):
            nn.init.zeros_(weight)

    def forward(self, queries: Tensor, reference: Tensor, values: Tensor,
                shapes: tuple[tuple[int, int], ...]) -> Tensor:
        """queries (B, L, D), reference (L, 2) in 0..1, maps as in sample_maps -> (B, L, D)."""
        heads, maps, points = self.shape
        offsets = self.sampling_offsets(queries).to(reference).unflatten(2, (*self.shape, 2))
        weights = self.attention_weights(queries).to(reference).unflatten(2, (heads, -1))
        weights = weights.softmax(-1).unflatten(3, (maps, points))  # A, over maps and points
        sizes = torch.tensor(shapes, device=queries.device).flip(1)[:, None]
        locations = reference.view(-1, 1, 1, 1, 2) + offsets / sizes  # p_y + dp_lyk
        sampled, inside = sample_maps(values, shapes, locations, weights)  # (B, L, H, C)
        projection = self.value_proj.weight.unflatten(0, (heads, -1))  # W, (H, D / H, C)
        x = torch.einsum("blhc,hdc->blhd", sampled, projection)
        x = x + inside[..., None] * self.value_proj.bias.unflatten(0, (heads, -1))
        return self.output_proj(x.flatten(2).to(queries))


class DecoderLayer(nn.Module):
    """Words look at one another, at the picture, and think: (B, L, D) -> the same, pre-norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.self_attention = SelfAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.cross_attention = DeformableAttention(config)
        self.norm3 = nn.LayerNorm(config.width)
        self.mlp = mlp(config.width, config.ffn, config.width)

    def forward(self, x: Tensor, reference: Tensor, values: Tensor,
                shapes: tuple[tuple[int, int], ...]) -> Tensor:
        x = x + self.self_attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), reference, values, shapes)
        return x + self.mlp(self.norm3(x))


class MaskedTransformer(nn.Module):
    """p(y_i | Y_M, X): words, some of them masked, and a picture's maps -> logits (B, L, V)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        length, words = config.tokenizer.num_tokens, config.tokenizer.codebook_size
        self.word_embedding = nn.Linear(config.tokenizer.code_dim, config.width)
        self.mask_embedding = nn.Parameter(torch.empty(config.width))  # the learned [MASK]
        self.position_embedding = nn.Parameter(torch.empty(length, config.width))
        self.reference = nn.Parameter(torch.empty(length, 2))  # p_y, before the sigmoid
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, words)  # [MASK] is never an output

    def forward(self, tokens: Tensor, codebook: Tensor, features: Features) -> Tensor:
        masked = tokens == len(codebook)
        codes = F.embedding(tokens.masked_fill(masked, 0), codebook)  # (B, L, C), frozen
        x = torch.where(masked[..., None], self.mask_embedding.to(codes),
                        self.word_embedding(codes).to(codes))
        x = x + self.position_embedding
        if features.start.shape[1]:
            x = x + features.start
        reference = self.reference.sigmoid()
        for layer in self.layers:
            x = layer(x, reference, features.values, features.shapes)
        return self.head(self.norm(x))


class Features(NamedTuple):
    """All that the picture has to say, computed once per picture."""

    values: Tensor  # (B, N, C) feature maps row by row, one behind the other
    shapes: tuple[tuple[int, int], ...]  # their (height, width)
    betas: Tensor  # (B, 10)
    camera: Tensor  # (B, 3), s, tx, ty
    start: Tensor  # as of Regressed
    heat: Tensor  # as of Regressed


class GenHMR(nn.Module):
    """Encoder, masked transformer, and inside, frozen, the tokenizer of stage 1 (Fig. 2)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = ViT(config)
        self.pyramid = nn.ModuleList([
            pyramid_level(config.vit_dim, scale, config.pyramid_width) for scale in config.scales])
        self.regressor = Regressor(config)
        self.transformer = MaskedTransformer(config)
        self.initialise()
        self.tokenizer = Tokenizer(config.tokenizer).requires_grad_(False).eval()
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])  # ImageNet
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def initialise(self) -> None:
        """Xavier for all linear layers (MAE's way, and Deformable-DETR's) but the regressor's."""
        for part in (self.backbone, self.transformer):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
        for layer in self.transformer.layers:
            layer.cross_attention.initialise()
        nn.init.normal_(self.transformer.mask_embedding, std=0.02)
        nn.init.normal_(self.transformer.position_embedding, std=0.02)
        nn.init.uniform_(self.transformer.reference, 0.1, 0.9).logit_()

    def train(self, mode: bool = True) -> GenHMR:
        """As every module, but the tokenizer stays as stage 1 left it."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    @property
    def mask_token(self) -> int:
        """The number that stands for [MASK], one behind the last word."""
        return self.config.tokenizer.codebook_size

    def forward(self, images: Tensor, tokens: Tensor,
                guessed: Tensor | None = None) -> dict[str, Tensor]:
        """Predict shape, camera, and the words of the pose from some of them.

        images: (B, 3, S, S) RGB, uint8 or floats in 0..255. tokens: (B, L) int64, `mask_token`
            where masked. guessed: (B, L) bool, words to replace by what the model believes where
            it knows none.
        Returns logits (B, L, V), betas (B, 10), camera (B, 3) = s, tx, ty, and heat (B,
        config.heat_maps, N), the log probability of each keypoint for each of the N cells.
        Raises ValueError for other shapes.
        """
        features = self.encode(images)
        if guessed is not None:
            with torch.no_grad():
                unknown = torch.full_like(tokens, self.mask_token)
                guess = self.predict_logits(features, unknown).argmax(-1)
            tokens = torch.where(guessed, guess, tokens)
        return {"logits": self.predict_logits(features, tokens), "betas": features.betas,
                "camera": features.camera, "heat": features.heat}

    def encode(self, images: Tensor) -> Features:
        """What does not depend on the words; images as in `forward`."""
        tokens = self.backbone(self.normalise(images))  # (B, 192, 1280)
        grid = tokens.transpose(1, 2).unflatten(2, self.backbone.grid)  # (B, 1280, 16, 12)
        maps = [level(grid) for level in self.pyramid]  # (B, 256, 16, 12), (.., 64, 48), ...
        return Features(torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1),
                        tuple(tuple(x.shape[2:]) for x in maps), *self.regressor(tokens))

    def predict_logits(self, features: Features, tokens: Tensor) -> Tensor:
        """Logits (B, L, V) of every word; masked words are `mask_token` in tokens (B, L)."""
        expected = (len(features.values), self.config.tokenizer.num_tokens)
        require(tuple(tokens.shape) == expected and tokens.dtype == torch.int64,
                f"tokens of {tokens.dtype} and shape {tuple(tokens.shape)}: expected int64 of "
                f"shape {expected}")
        return self.transformer(tokens, self.tokenizer.codebook, features)

    def normalise(self, images: Tensor) -> Tensor:
        """RGB 0..255 (B, 3, S, S) -> ImageNet statistics, the middle (B, 3, S, 3/4 S)."""
        size, shape = self.config.image_size, tuple(images.shape)
        require(len(shape) == 4 and shape[1:] == (3, size, size),
                f"images of shape {shape}: expected (B, 3, {size}, {size})")
        images = images[..., size // 8 : -(size // 8)]
        return (images.to(self.mean.dtype) / 255.0 - self.mean) / self.std


# ------------------------------------------------------------------------ stage 2: training


def random_mask(tokens: Tensor, mask_token: int, tau_max: float = 1.0,
                generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Generative masking: words (B, L) -> the words with some masked, and the mask (B, L).

    m = ceil(gamma(tau) L), gamma(tau) = cos(pi tau / 2), tau ~ U(0, 1), in random positions. That
    is 64 % of the words on average, and all of them for 9 % of the poses. tau_max below 1 masks
    more, never less: gamma decreases, although Table 4 calls U(0, 0.3) "narrower ratios".
    """
    batch, length = tokens.shape
    tau = tau_max * torch.rand(batch, 1, dtype=torch.float64, generator=generator,
                               device=tokens.device)
    count = (torch.cos(0.5 * math.pi * tau) * length).ceil().clamp_min(1)
    order = torch.rand(batch, length, generator=generator, device=tokens.device).argsort(1)
    mask = order.argsort(1) < count
    return tokens.masked_fill(mask, mask_token), mask


def mask_batch(model: GenHMR, batch: dict[str, Tensor],
               generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """The batch with what stage 2 reads and is to write: tokens, masked_tokens, mask (B, L).

    batch: pose (B, 24, 3, 3) and pose_valid (B,), as data.py makes them. Samples without a pose
    have all words masked. With config.guesses also guessed (B, L): see GenHMR.forward.
    """
    unknown = batch["pose_valid"][:, None] == 0
    tokens = model.tokenizer.encode(batch["pose"])
    masked, mask = random_mask(tokens, model.mask_token, model.config.tau_max, generator)
    found = batch | {"tokens": tokens, "mask": mask | unknown,
                     "masked_tokens": masked.masked_fill(unknown, model.mask_token)}
    if model.config.guesses:
        part = model.config.guesses * torch.rand(len(tokens), 1, generator=generator,
                                                 device=tokens.device)
        chance = torch.rand(tokens.shape, generator=generator, device=tokens.device)
        found["guessed"] = (chance < part) & ~found["mask"]
    return found


def gumbel_temperature(step: int, config: Config) -> float:
    """tau_t of Eq. 5 at step t; T is `temperature_duration` of all steps.

    After T it stays at its end: Eq. 5 itself would climb again, up to its start.
    """
    progress = min(step / (config.temperature_duration * config.steps), 1.0)
    start, end = config.temperature_start, config.temperature_end
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))  # Eq. 5


def relax(model: GenHMR, logits: Tensor, temperature: float,
          generator: torch.Generator | None = None) -> Tensor:
    """A random pose (B, 24, 3, 3) from logits (B, L, V), differentiable (Jang et al., 2016).

    Forward, words drawn from the categorical distribution of the logits; backward, the gradient
    of their Gumbel-softmax.
    """
    logits = logits.float()
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device)  # below 1
    noise = -(-uniform.log()).log()  # n_k; -inf for a uniform of 0, a word that is not drawn
    probability = ((logits + noise) / temperature).softmax(-1)  # p_mk, Eq. 6
    soft = probability @ model.tokenizer.codebook  # (B, L, C)
    hard = model.tokenizer.quantiser.lookup(probability.argmax(-1))
    return model.tokenizer.decode_embeddings(hard + (soft - soft.detach()))  # straight-through


def losses(prediction: dict[str, Tensor], batch: dict[str, Tensor], model: GenHMR, body: Callable,
           temperature: float) -> dict[str, Tensor]:
    """The unweighted terms of L_total, each a scalar.

    prediction: of GenHMR.forward on batch["masked_tokens"]. batch: as data.py makes it (image,
    pose, betas, keypoints_3d (B, J, 3) in metres, keypoints_2d (B, J, 2) in pixels, and who is
    valid), after mask_batch. body(betas, rotations) returns a body, body.keypoints of that its
    keypoints (B, J, 3), of which the first is the pelvis. What is invalid counts as zero.
    """
    config = model.config
    rotations = relax(model, prediction["logits"], temperature)
    keypoints = body.keypoints(body(prediction["betas"], rotations))
    flat = project(keypoints, prediction["camera"], config.focal)  # J_2D
    true, true_flat = batch["keypoints_3d"], batch["keypoints_2d"] / batch["image"].shape[-1] - 0.5
    keypoints, true = keypoints - keypoints[:, :1], true - true[:, :1]

    def reduced(error: Callable, difference: Tensor, valid: Tensor) -> Tensor:
        """Sum over all (HMR2.0), or 48 times the mean over the batch of sums over the rest."""
        valid = valid.view(*valid.shape, *[1] * (difference.ndim - valid.ndim))
        difference = torch.where(valid > 0, difference, 0.0)  # what is invalid may be NaN
        total = (valid * error(difference)).sum()
        return total if config.reduction == "hmr2_sum" else 48.0 / len(difference) * total

    terms = {
        "mask": mask_loss(prediction["logits"], batch, config),
        "keypoints_3d": reduced(torch.abs, keypoints - true, batch["keypoints_3d_valid"]),  # L_3D
        "keypoints_2d": reduced(torch.abs, flat - true_flat, batch["keypoints_valid"]),  # L_2D
        "pose": reduced(torch.square, rotations - batch["pose"], batch["pose_valid"]),  # L_SMPL
        "betas": reduced(torch.square, prediction["betas"] - batch["betas"], batch["betas_valid"]),
    }
    if config.heat_maps:
        terms["heat"] = reduced(torch.abs, heat_loss(prediction["heat"], true_flat, config),
                                batch["keypoints_valid"])
    return terms


def mask_loss(logits: Tensor, batch: dict[str, Tensor], config: Config) -> Tensor:
    """L_mask of Eq. 1, as a mean over words and samples; of samples without a pose it is zero.

    A sum over the 96 words would drown all other terms: 732 where nothing is known, not 7.6. The
    sum in Eq. 1 runs over all words, the text speaks of the masked ones.
    """
    nll = F.cross_entropy(logits.float().transpose(1, 2), batch["tokens"], reduction="none")
    weight = batch["mask"].to(nll) if config.mask_loss_on == "masked" else torch.ones_like(nll)
    per_sample = (weight * nll).sum(1) / weight.sum(1)  # a mask has one word or more
    return (per_sample * batch["pose_valid"]).mean()


def heat_loss(heat: Tensor, keypoints: Tensor, config: Config) -> Tensor:
    """L_heat (B, J): cross-entropy of log probabilities (B, J, N) with where keypoints are.

    keypoints: (B, J, 2), crop in -0.5..0.5. Each is shared by the four cells around it, in the
    parts of bilinear interpolation; one outside counts as at the border.
    """
    centres = cell_centres(config).to(heat)
    at = keypoints.nan_to_num().clamp(centres.amin(0), centres.amax(0))[:, :, None]
    cells = config.grid[0] * (at - centres).abs()  # away, (B, J, N, 2)
    return -((1 - cells).clamp_min(0).prod(-1) * heat).sum(-1)


def total_loss(terms: dict[str, Tensor], config: Config) -> Tensor:
    """L_total = L_mask + L_SMPL + L_3D + L_2D."""
    return (config.weight_mask * terms["mask"]
            + config.weight_keypoints_3d * terms["keypoints_3d"]
            + config.weight_keypoints_2d * terms["keypoints_2d"]
            + config.weight_pose * terms["pose"] + config.weight_betas * terms["betas"]
            + config.weight_heat * terms.get("heat", 0.0))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Groups for AdamW: weight decay on matrices and kernels alone, frozen parameters left out."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim < 2 or re.search(r"(pos_embed|_embedding|\.reference)$", name)
        if parameter.requires_grad:
            groups[not spared].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0}]


# ---------------------------------------------------------------- uncertainty-guided sampling

# gamma(t / T), the part of the words that is masked again after iteration t of T.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),  # the square of "training"
    "linear": lambda x: 1.0 - x,
    "cubic": lambda x: 1.0 - x**3,
    # "A convex curve, enabling rapid initial exploration" fits MaskGIT's 1 - sqrt(x); as printed
    # the curve is concave and slow at first.
    "sqrt": lambda x: math.sqrt(1.0 - x**2),
    "training": lambda x: math.cos(0.5 * math.pi * x),  # also called "cosine" in the paper
}


def mask_counts(length: int, iterations: int, schedule: str = "cosine",
                force_progress: bool = False) -> list[int]:
    """How many of `length` words are masked before iteration 1 and after iterations 1..T.

    ceil(gamma(t / T) L): at 96 words and T = 5, cosine, 96, 87, 63, 34, 10, 0. Curves that start
    slowly may mask all of them again (cubic: 96, 96, 90, 76, 47, 0), an iteration for nothing;
    force_progress keeps at least one word each time.
    """
    require(schedule in SCHEDULES, f"schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}")
    require(iterations >= 1, f"{iterations} iterations: expected 1 or more")
    counts = [length]
    for t in range(1, iterations):
        # Without the 1e-9 an exact 24 of 96 becomes 25: cos(2 pi / 3) is not -1/2 in floats.
        count = math.ceil(SCHEDULES[schedule](t / iterations) * length - 1e-9)
        counts.append(max(min(count, counts[-1] - force_progress), 0))
    return [*counts, 0]  # cos(pi / 2) is not 0 either, but the last iteration keeps every word


class Sampled(NamedTuple):
    """A pose per picture, and how it came about."""

    tokens: Tensor  # (B, L) int64
    rotations: Tensor  # (B, 24, 3, 3)
    betas: Tensor  # (B, 10)
    camera: Tensor  # (B, 3), s, tx, ty
    masks: Tensor  # (T + 1, B, L) bool: before iteration 1, after 1, ..., after T (Fig. 5)
    confidences: Tensor  # (T, B, L): the probability each word had when chosen (Fig. 6)
    guesses: Tensor  # (T, B, L) int64: all words, before the least sure are masked again


def sample(model: GenHMR, images: Tensor, **options) -> Sampled:
    """Poses of pictures (B, 3, S, S), as GenHMR.forward takes them; options of sample_from."""
    with torch.no_grad():
        features = model.encode(images)
    return sample_from(model, features, **options)


@torch.no_grad()
def sample_from(model: GenHMR, features: Features, *, iterations: int = 5,
                schedule: str = "cosine", top_k: int = 1, force_progress: bool = False,
                remask: str = "never", generator: torch.Generator | None = None) -> Sampled:
    """Uncertainty-guided sampling: start with masks, keep the surest words, guess the rest again.

    features: of GenHMR.encode, used by all iterations. top_k: words are drawn among the k most
    likely. "Stochastic" in the text, but the paper's 1, the best by far (Table 12), is greedy.
    remask: "never" masks a word again that was kept (MaskGIT), or "any" if it is among the least
    sure ones (Mask-Predict); the paper can be read either way.
    Raises ValueError for bad options and a model in training mode.
    """
    require(not model.training, "the model is in training mode: call model.eval() first")
    require(remask in ("never", "any"), f"remask {remask!r}: expected 'never' or 'any'")
    words = model.config.tokenizer.codebook_size
    require(1 <= top_k <= words, f"top_k is {top_k}: expected 1 to {words}")
    length = model.config.tokenizer.num_tokens
    counts = mask_counts(length, iterations, schedule, force_progress)
    tokens = torch.full((len(features.values), length), model.mask_token,
                        device=features.values.device)  # Y_1
    masks, confidences, guesses = [tokens == model.mask_token], [], []
    confidence = torch.zeros(tokens.shape, device=tokens.device)
    for count in counts[1:]:
        probability = model.predict_logits(features, tokens).float().softmax(-1)  # p(y_i | Y_M, X)
        chosen = choose(probability, top_k, generator)
        tokens = torch.where(masks[-1], chosen, tokens)
        sure = probability.gather(2, chosen[..., None])[..., 0]
        confidence = torch.where(masks[-1], sure, confidence)
        score = confidence
        if remask == "never":
            score = confidence.masked_fill(~masks[-1], math.inf)
        rank = score.argsort(dim=1, stable=True).argsort(dim=1)
        masks.append(rank < count)
        confidences.append(confidence)
        guesses.append(tokens)
        tokens = tokens.masked_fill(masks[-1], model.mask_token)
    return Sampled(tokens, model.tokenizer.decode(tokens), features.betas, features.camera,
                   torch.stack(masks), torch.stack(confidences), torch.stack(guesses))


def choose(probability: Tensor, top_k: int, generator: torch.Generator | None) -> Tensor:
    """Words (B, L) drawn from the k largest of the probabilities (B, L, V)."""
    if top_k == 1:
        return probability.argmax(-1)
    largest, words = probability.topk(top_k, -1)
    drawn = torch.multinomial(largest.flatten(0, 1), 1, generator=generator)
    return words.gather(2, drawn.view(*words.shape[:2], 1))[..., 0]


# ------------------------------------------------------------------ 2D pose-guided refinement


class Refined(NamedTuple):
    """Poses pulled onto 2D keypoints."""

    rotations: Tensor  # (B, 24, 3, 3)
    embeddings: Tensor  # Y, (B, L, C), between the words of the codebook
    energies: Tensor  # (P + 1, B), G before the first step, after it, ..., after the last


def refine(model: GenHMR, tokens: Tensor, betas: Tensor, camera: Tensor, keypoints_2d: Tensor,
           confidence: Tensor, keypoints: Callable[[Tensor, Tensor], Tensor], *,
           iterations: int = 10, step_size: float = 300.0, weight_pose: float = 1e-2,
           optimizer: str = "gd") -> Refined:
    """2D pose-guided refinement: gradient steps on the words' embeddings, all else frozen.

    tokens (B, L), betas (B, 10), camera (B, 3): of `sample`. keypoints_2d: J_2D (B, J, 2) in the
    crop, its sides at -0.5 and 0.5; confidence (B, J), 0 where not seen. keypoints(betas,
    rotations) returns J'_3D (B, J, 3) in metres. Camera and shape stay (our reading).
    optimizer: "gd", the paper's, or "adam" with step_size as its rate (0.1, say).
    The paper gives neither eta (step_size) nor lambda_theta' (weight_pose), and does not weigh by
    confidence. For the shipped `cpu` model, 30 helps less than 300; with 3000 the energy rises
    before it falls: notebooks/02_genhmr.ipynb draws it.
    Raises ValueError for another optimizer or shapes.
    """
    require(optimizer in ("gd", "adam"), f"optimizer {optimizer!r}: expected 'gd' or 'adam'")
    require(confidence.shape == keypoints_2d.shape[:2] and len(tokens) == len(confidence),
            f"keypoints {tuple(keypoints_2d.shape)}, confidence {tuple(confidence.shape)}: "
            f"expected ({len(tokens)}, J, 2) and ({len(tokens)}, J)")
    with torch.no_grad():
        initial = model.tokenizer.decode(tokens)
        embeddings = model.tokenizer.quantiser.lookup(tokens).clone()

    def energy(embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """G (B,), Eq. 2, and the pose it belongs to."""
        rotations = model.tokenizer.decode_embeddings(embeddings)
        flat = project(keypoints(betas, rotations), camera, model.config.focal)
        away = torch.where(confidence[..., None] > 0, flat - keypoints_2d, 0.0)
        error = confidence * away.square().sum(-1)  # Eq. 3
        change = (rotations - initial).square().sum((1, 2, 3))  # L_theta', 0 at the start
        return error.sum(1) + weight_pose * change, rotations

    embeddings.requires_grad_()
    adam = torch.optim.Adam([embeddings], lr=step_size) if optimizer == "adam" else None
    energies = []
    with torch.enable_grad():
        for _ in range(iterations):
            before, _ = energy(embeddings)
            energies.append(before.detach())
            gradient, = torch.autograd.grad(before.sum(), embeddings)  # of its own row each
            with torch.no_grad():
                if adam is None:
                    embeddings -= step_size * gradient  # Eq. 4
                else:
                    embeddings.grad = gradient
                    adam.step()
    with torch.no_grad():
        last, rotations = energy(embeddings)
    return Refined(rotations, embeddings.detach(), torch.stack([*energies, last]))


def fit_camera(camera: Tensor, keypoints_2d: Tensor, confidence: Tensor, keypoints_3d: Tensor,
               focal: float) -> Tensor:
    """The camera (B, 3) that brings a pose nearest to its 2D keypoints: least squares of Eq. 3.

    Ours, off by default: the paper trusts the network's camera. A picture unlike those of its
    training leads that astray, and then refinement can only bend the body.
    camera: the network's. keypoints_2d, confidence: as in `refine`. keypoints_3d: of the pose,
    (B, J, 3) in metres. A row of fewer than two seen keypoints, or of a pose that has nothing in
    common with them, keeps its camera.
    """
    weight = confidence.sqrt()[..., None]
    seen = weight * torch.where(weight > 0, keypoints_2d, 0.0)
    half, zero = torch.zeros_like(camera[:, :1, None]), torch.zeros_like(weight)  # half of s
    for _ in range(4):  # nearer points look larger: by how much depends on s
        scale = weight / (1.0 + keypoints_3d[..., 2:] * half / focal)
        x, y = (scale * keypoints_3d[..., :2]).split(1, -1)
        # What is seen, s / 2 (x + tx, y + ty), is linear in s / 2, s tx / 2 and s ty / 2
        rows = torch.stack((torch.cat((x, scale, zero), -1), torch.cat((y, zero, scale), -1)), 2)
        rows = rows.flatten(1, 2)
        solution, _ = torch.linalg.solve_ex(rows.mT @ rows, rows.mT @ seen.flatten(1)[..., None])
        half = solution[:, :1]
    found = (solution / half)[..., 0]  # 1, tx, ty
    found = torch.cat((2.0 * half[:, 0], found[:, 1:]), 1)
    usable = found.isfinite().all(1) & (found[:, 0] > 0) & ((confidence > 0).sum(1) > 1)
    return torch.where(usable[:, None], found, camera)


# ------------------------------------------------------------------------------- checkpoints


class Foreign:
    """Stand-in for objects in a checkpoint that are not tensors (of yacs or OmegaConf, say).

    They load as an empty dictionary; their own code is neither imported nor run.
    """

    def __new__(cls, *_) -> OrderedDict:
        return OrderedDict()


def read_checkpoint(source: str | PathLike | Mapping) -> tuple[dict[str, Tensor], dict | None]:
    """Read the weights of a checkpoint, and its config if it has one, without running its code.

    source: a file or its content, which is train.py's {"model", "ema", "config", ...} (the moving
    average is preferred), {"state_dict"}, {"model_state"}, {"network"}, or the weights alone.
    Raises FileNotFoundError or ValueError.
    """
    if not isinstance(source, Mapping):
        if not Path(source).is_file():
            raise FileNotFoundError(f"no checkpoint {source}: expected a file that train.py wrote")
        try:
            names = (torch.serialization.get_unsafe_globals_in_checkpoint(source)
                     if zipfile.is_zipfile(source) else [])
            with torch.serialization.safe_globals([(Foreign, name) for name in names]):
                source = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files raise half a dozen types
            reason = str(error).split("\n")[0][:100]
            raise ValueError(f"{source} is not a readable checkpoint ({reason})") from error
    require(isinstance(source, Mapping), "this checkpoint is not a dictionary of weights")
    nested = (source.get(name) for name in ("ema", "model", "state_dict", "model_state", "network"))
    weights = next((value for value in nested if isinstance(value, Mapping) and value), source)
    state = {name.removeprefix("module."): value for name, value in weights.items()
             if isinstance(value, Tensor) and name != "n_averaged"}
    require(state, "no weights in this checkpoint: expected a dictionary of tensors, as "
                   "torch.save(model.state_dict(), FILE) writes it")
    return state, source.get("config")


def compare_weights(module: nn.Module, state: Mapping[str, Tensor], ignored: str | None,
                    strict: bool) -> tuple[dict[str, Tensor], str]:
    """Return the weights that fit a module, by name and shape, and a report of all others.

    A name whose start matches `ignored`, a pattern, is not part of the report. ValueError if
    strict and there is something to report.
    """
    own = module.state_dict()
    fitting = {name: value for name, value in state.items()
               if name in own and value.shape == own[name].shape}
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own and not (
            ignored and re.match(ignored, name))],
        "of another shape": [name for name in own if name in state and name not in fitting],
    }
    report = "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for kind, names in problems.items() if names)
    require(not (strict and report), f"these weights are not {type(module).__name__}'s: {report}")
    return fitting, report


def load_weights(module: nn.Module, state: Mapping[str, Tensor], *, ignored: str | None = None,
                 strict: bool = True) -> None:
    """Copy weights by name, in the module's own precision.

    ignored: a pattern for the start of names that the module does not use; these are left out,
    and printed. Any other difference in names or shapes raises ValueError, or is printed if not
    strict.
    """
    fitting, report = compare_weights(module, state, ignored, strict)
    unused = {found[0].rstrip(".") for name in state if ignored and name not in fitting
              and (found := re.match(ignored, name))}
    if unused:
        print(f"left out, {type(module).__name__} does not use it: {', '.join(sorted(unused))}")
    if report:
        print(f"loaded in part: {report}")
    module.load_state_dict(fitting, strict=False)


def from_checkpoint(kind: type[nn.Module], config_kind: type, config: object,
                    state: Mapping[str, Tensor], *, ignored: str | None = None,
                    strict: bool = True) -> nn.Module:
    """Build a model from a checkpoint's config and weights, in evaluation mode on the CPU.

    ignored, strict: as in load_weights. Raises ValueError if the config is not the model's.
    """
    require(isinstance(config, Mapping) and config, f"the checkpoint's config is not a dictionary: "
            f"save dataclasses.asdict({config_kind.__name__}(...))")
    try:
        config = config_kind(**config)
        with torch.device("meta"):  # a damaged config may ask for any amount of memory
            compare_weights(kind(config), state, ignored, strict)
    except (TypeError, RuntimeError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"the checkpoint's config is not {kind.__name__}'s: {error}") from error
    model = kind(config)
    load_weights(model, state, ignored=ignored, strict=strict)
    return model.eval()


def load_checkpoint(source: str | PathLike | Mapping) -> GenHMR:
    """The model in a checkpoint of stage 2, with its tokenizer, in evaluation mode on the CPU.

    source: a file of train.py or its content, {"model", "config", ...}.
    Raises FileNotFoundError, or ValueError for anything else and for weights that do not fit.
    """
    state, config = read_checkpoint(source)
    require(config is not None and any(name.startswith("transformer.") for name in state),
            "no GenHMR checkpoint: expected train.py's of stage 2 (load_tokenizer takes stage 1's, "
            "load_backbone the weights of a ViT alone)")
    return from_checkpoint(GenHMR, Config, config, state)


def load_tokenizer(source: str | PathLike | Mapping) -> Tokenizer:
    """The tokenizer in a checkpoint of stage 1, or inside one of stage 2, in evaluation mode.

    source and errors: as of load_checkpoint.
    """
    state, config = read_checkpoint(source)
    if isinstance(config, Mapping) and "tokenizer" in config:
        config = config["tokenizer"]
        state = {name.removeprefix("tokenizer."): value for name, value in state.items()
                 if name.startswith("tokenizer.")}
    require(config is not None and any(name.startswith("quantiser.") for name in state),
            "no tokenizer in this checkpoint: expected train.py's of stage 1 or 2")
    return from_checkpoint(Tokenizer, TokenizerConfig, config, state)


def load_backbone(model: GenHMR, source: str | PathLike | Mapping) -> None:
    """Load the encoder of a 4D-Humans, TokenHMR or ViTPose checkpoint into the model.

    What belongs to no encoder (heads, discriminators, body models) is left out and reported.
    Raises FileNotFoundError, or ValueError where the encoder does not fit.
    """
    state, _ = read_checkpoint(source)
    own = {name.removeprefix("backbone."): value for name, value in state.items()
           if name.startswith("backbone.")}
    unused = sorted({name.split(".")[0] for name in state if own and name[:9] != "backbone."})
    load_weights(model.backbone, own or state)
    if unused:
        print(f"left out, no part of the encoder: {', '.join(unused)}")


# --------------------------------------------------------------------- inference on a picture

LEAST_CONFIDENCE = 0.3  # of a 2D keypoint that counts as seen (inherited: HMR2.0's filter)
BOX_MARGIN = 1.2  # side of the crop, per extent of the box or keypoints (our choice)
ASPECT = 4 / 3  # height of the part of a crop that the network sees, per its width


def check_picture(image: np.ndarray, box: Sequence[float] | None) -> None:
    """ValueError unless this is an RGB picture and the box, if any, a box that overlaps it."""
    require(isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3
            and image.size and image.dtype == np.uint8,
            f"image {getattr(image, 'shape', '')} of {getattr(image, 'dtype', type(image))}: "
            f"expected (H, W, 3) uint8 RGB")
    if box is not None:
        height, width = image.shape[:2]
        box = np.asarray(box, np.float64)
        require(box.shape == (4,) and np.isfinite(box).all() and min(box[2:]) > 0
                and max(box[:2] - (width, height)) < 0 < min(box[:2] + box[2:]),
                f"box {box.tolist()}: expected x,y,width,height on the {width} x {height} picture")


def seen_keypoints(keypoints: np.ndarray, width: int, height: int) -> np.ndarray:
    """Keypoints (J, 3) of x, y, confidence with all zeros for those that nobody can see.

    Not seen are those below LEAST_CONFIDENCE and, as detectors extrapolate, those outside of the
    picture: in a portrait the legs must not drag the pose to where a detector imagines them.
    Raises ValueError for other shapes and for numbers that are not finite, unless unseen.
    """
    keypoints = np.asarray(keypoints, np.float64)
    require(keypoints.ndim == 2 and keypoints.shape[1] == 3,
            f"keypoints of shape {keypoints.shape}: expected (J, 3) of x, y, confidence")
    check_finite(keypoints, "keypoints")
    x, y, confidence = keypoints.T
    seen = (confidence >= LEAST_CONFIDENCE) & (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    clipped = np.stack((x, y, confidence.clip(0, 1)), 1)
    return np.where(seen[:, None], clipped, 0.0)  # also where x or y is NaN


def check_finite(keypoints: np.ndarray, origin: str) -> None:
    """ValueError if keypoints (J, 3) with any confidence are not finite numbers."""
    x, y, confidence = keypoints.T
    bad = ~np.isfinite(confidence) | (confidence > 0) & ~(np.isfinite(x) & np.isfinite(y))
    require(not bad.any(), f"{origin}: number {', '.join(map(str, np.flatnonzero(bad)))} not "
                           f"finite, expected confidence 0 for what is not seen")


def crop_square(image: np.ndarray, box: Sequence[float] | None,
                keypoints: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre (2,) and side in pixels of the square to crop.

    In it the network sees the whole box and, as in training, a margin around it. Without a box it
    is the one around the seen keypoints or, without those, the whole picture without a margin.
    """
    seen = keypoints[keypoints[:, 2] > 0, :2]
    if box is not None:
        corner, extent, margin = *np.split(np.asarray(box, np.float64), 2), BOX_MARGIN
    elif len(seen) > 1 and (np.ptp(seen, 0) > 1).any():
        corner, extent, margin = seen.min(0), np.ptp(seen, 0), BOX_MARGIN
    else:
        corner, extent, margin = np.zeros(2), np.array(image.shape[1::-1], np.float64), 1.0
    return corner + extent / 2, margin * max(extent[0] * ASPECT, extent[1])


def crop_picture(image: np.ndarray, center: np.ndarray, side: float, size: int) -> Tensor:
    """The square as a picture (3, size, size) of floats 0..255, black outside of the image.

    Each pixel is the mean of several bilinear samples where the picture is finer than the crop,
    against aliasing (HMR2.0's demo blurs for it).
    """
    samples = min(math.ceil(side / size), 8)
    steps = (torch.arange(size * samples, dtype=torch.float64) + 0.5) / (size * samples) - 0.5
    x, y = (2 * (middle + side * steps) / extent - 1
            for middle, extent in zip(center, image.shape[1::-1], strict=True))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None].float()
    pixels = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    return F.avg_pool2d(F.grid_sample(pixels, grid, align_corners=False), samples)[0]


def picture_camera(translation: np.ndarray, config: Config, center: np.ndarray, side: float,
                   K: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The whole picture's K (3, 3) and the body's translation (3,) before it.

    Without K it is the crop's own camera, whose principal point is the centre of the crop: the
    mesh covers in the picture exactly what it covered in the crop. With K, so that several
    people share one camera, the plane through the body's origin stays where it was and, as in
    HMR2.0's demo, what is before and behind it moves a little (12 px were seen).
    """
    focal = config.focal * side  # pixels of the picture
    if K is None:
        return np.array([[focal, 0, center[0]], [0, focal, center[1]], [0, 0, 1]]), translation
    K = np.asarray(K, np.float64)
    require(K.shape == (3, 3) and np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0,
            f"K {K.tolist()}: expected the (3, 3) intrinsics in pixels")
    depth = translation[2] * math.sqrt(K[0, 0] * K[1, 1]) / focal
    pixel = center + focal * translation[:2] / translation[2]
    return K, np.append((pixel - K[:2, 2]) / np.diag(K)[:2] * depth, depth)


@torch.no_grad()
def predict(model: GenHMR, body: Callable, image: np.ndarray, *,
            box: Sequence[float] | None = None, keypoints: np.ndarray | None = None,
            iterations: int = 5, schedule: str = "cosine", refinement: int = 10,
            fitted_camera: bool = False, K: np.ndarray | None = None, **options
            ) -> dict[str, np.ndarray]:
    """The inference loop: one person of a whole picture, in that picture's camera.

    body: a bodymodels.BodyModel of SMPL's 24 joints. image: (H, W, 3) uint8 RGB.
    box: x, y, width, height of the person in pixels; by default that of the seen keypoints or,
        without keypoints, the whole picture. A fifth is added as a margin.
    keypoints: (45, 3) of x, y in pixels of the picture and confidence, in the order of
        bodymodels.JOINT_SETS["smpl45"] (see to_smpl45); zeros for joints that are not seen.
    iterations: of the sampling (T). refinement: steps against the keypoints (P), 0 for none;
        none are made without keypoints. Too large a step_size makes the energy rise: look at
        energies. fitted_camera: before it, see `fit_camera`. K: (3, 3) of the picture, see
        picture_camera. options: of `refine`.
    Returns float32 arrays vertices (V, 3), joints (24, 3) and keypoints_3d (45, 3), metres in the
    camera's frame; keypoints_2d (45, 2), the latter in the picture; pose (24, 3, 3); betas (10,);
    transl (3,), which is part of the vertices already; camera (3,), s, tx and ty in the crop; K
    (3, 3); box (4,), the square that was cropped; confidence (45,) of the keypoints that were
    used; energies (P + 1,) of the refinement; poses (T, 24, 3, 3), of each iteration; confidences
    (T, L); and tokens (L,), int64, masks (T + 1, L), bool, and fitted (), bool, whether camera is
    not the network's. Raises ValueError for bad input.
    """
    require(not model.training, "the model is in training mode: call model.eval() first")
    require(refinement >= 0, f"refinement is {refinement}: expected 0 or more steps")
    check_picture(image, box)
    seen = seen_keypoints(np.zeros((45, 3)) if keypoints is None else keypoints,
                          *image.shape[1::-1])
    require(len(seen) == 45, f"{len(seen)} keypoints: expected the 45 of smpl45, see to_smpl45")
    center, side = crop_square(image, box, seen)
    device = next(model.parameters()).device
    crop = crop_picture(image, center, side, model.config.image_size).to(device)

    features = model.encode(crop[None])
    sampled = sample_from(model, features, iterations=iterations, schedule=schedule)
    betas, camera, rotations = sampled.betas, sampled.camera, sampled.rotations
    energies = rotations.new_zeros(1, 1)
    if seen[:, 2].any():
        light = body.for_keypoints()
        aim = torch.from_numpy((seen[:, :2] - center) / side)[None].to(betas)  # [-0.5, 0.5]
        confidence = torch.from_numpy(seen[:, 2])[None].to(betas)

        def keypoints_3d(betas: Tensor, rotations: Tensor) -> Tensor:
            return light.keypoints(light(betas, rotations))

        if fitted_camera:
            camera = fit_camera(camera, aim, confidence, keypoints_3d(betas, rotations),
                                model.config.focal)
        if refinement:
            rotations, _, energies = refine(model, sampled.tokens, betas, camera, aim, confidence,
                                            keypoints_3d, iterations=refinement, **options)
    require(all(x.isfinite().all() for x in (rotations, betas, camera)),
            "the network's output is not finite: its weights are damaged, or training diverged")

    posed = body(betas, rotations)
    translation = camera_translation(camera, model.config.focal)
    K, translation = picture_camera(
        translation[0].double().cpu().numpy(), model.config, center, side, K)
    in_camera = [points[0].double().cpu().numpy() + translation
                 for points in (posed.vertices, posed.joints, body.keypoints(posed))]
    arrays = dict(zip(("vertices", "joints", "keypoints_3d"), in_camera, strict=True))
    in_image = arrays["keypoints_3d"] @ K.T
    arrays |= {"keypoints_2d": in_image[:, :2] / in_image[:, 2:], "transl": translation, "K": K,
               "box": np.append(center - side / 2, (side, side)), "confidence": seen[:, 2]}
    tensors = {"pose": rotations[0], "betas": betas[0], "camera": camera[0],
               "energies": energies[:, 0], "confidences": sampled.confidences[:, 0],
               "poses": model.tokenizer.decode(sampled.guesses[:, 0])}
    arrays |= {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return arrays | {"tokens": sampled.tokens[0].cpu().numpy(),
                     "masks": sampled.masks[:, 0].cpu().numpy(),
                     "fitted": np.array(not torch.equal(camera, sampled.camera))}


# ------------------------------------------------------------------------------ 2D keypoints

KEYPOINT_SETS = {17: "coco17", 18: "openpose18", 25: "openpose25", 33: "mediapipe33"}


def read_keypoints(path: str | PathLike, picture: str | PathLike = "") -> list[np.ndarray]:
    """The people in a file of 2D keypoints, each (J, 3): x, y in pixels, confidence in [0, 1].

    Reads OpenPose's JSON, {"people": [{"pose_keypoints_2d": [...]}]}, and COCO's, of annotations
    ({"images": ..., "annotations": [{"keypoints": [...]}]}, confidence is its visibility flag) or
    of results ([{"image_id": ..., "keypoints": [...]}]); of a COCO file about several pictures,
    those whose name or number is that of `picture`.
    Raises FileNotFoundError or ValueError: other contents, no people, or another number of
    keypoints than COCO's 17, OpenPose's 18 or 25 or MediaPipe's 33.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no keypoints {path}: expected OpenPose's or COCO's JSON")
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({str(error)[:80]})") from error
    if isinstance(content, Mapping) and "people" in content:
        people = content["people"]
    else:
        people = coco_people(content, Path(picture), path)
    require(isinstance(people, list) and all(isinstance(person, Mapping) for person in people),
            f"{path} has neither OpenPose's nor COCO's layout of people")
    rows = [person[key] for person in people
            for key in ("pose_keypoints_2d", "pose_keypoints", "keypoints") if key in person]
    require(rows, f"{path} has no people with body keypoints")
    return [keypoint_rows(numbers, f"person {index} of {path}")
            for index, numbers in enumerate(rows)]


def coco_people(content, picture: Path, path: str | PathLike) -> list:
    """The entries of COCO annotations or results that are about this picture."""
    images = []
    if isinstance(content, Mapping):
        images, content = content.get("images", []), content.get("annotations")
    try:
        pictures = {entry["image_id"]: str(entry["image_id"]) for entry in content}
        pictures |= {entry["id"]: Path(entry["file_name"]).stem for entry in images}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} has neither OpenPose's nor COCO's layout of people") from error
    if len(pictures) > 1:  # COCO's 000000000139.jpg is number 139
        pictures = {number: name for number, name in pictures.items()
                    if name.lstrip("0") == picture.stem.lstrip("0")}
        require(pictures, f"{path} is about several pictures, but not about {picture.name}")
    return [entry for entry in content if entry["image_id"] in pictures]


def keypoint_rows(numbers, origin: str) -> np.ndarray:
    """A flat list of x, y, confidence as rows (J, 3); ValueErrors begin with `origin`."""
    try:
        numbers = np.asarray(numbers, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{origin}: its keypoints are not a list of numbers") from None
    expected = ", ".join(f"{count} ({name})" for count, name in KEYPOINT_SETS.items())
    require(numbers.ndim == 1 and numbers.size % 3 == 0 and numbers.size // 3 in KEYPOINT_SETS,
            f"{origin} has {numbers.size} numbers: expected x, y and confidence of {expected} "
            f"keypoints")
    rows = numbers.reshape(-1, 3)
    check_finite(rows, origin)
    x_and_y = rows[rows[:, 2] > 0, :2]
    require(not len(x_and_y) or not np.abs(x_and_y).max() <= 2,
            f"{origin}: coordinates of up to {np.abs(x_and_y).max(initial=0):.2f} look like "
            f"fractions, expected pixels")
    return np.concatenate((rows[:, :2], rows[:, 2:].clip(0, 1)), 1)


def to_smpl45(keypoints: np.ndarray) -> np.ndarray:
    """Keypoints (J, 3) of COCO, OpenPose or MediaPipe -> (45, 3) of the body, joints by name.

    Joints that the detector does not have get zeros: coordinates and confidence.
    """
    from bodymodels import JOINT_SETS

    place = {name: index for index, name in enumerate(JOINT_SETS["smpl45"])}
    result = np.zeros((45, 3))
    for name, row in zip(JOINT_SETS[KEYPOINT_SETS[len(keypoints)]], keypoints, strict=True):
        if name in place:
            result[place[name]] = row
    return result


def choose_person(people: Sequence[np.ndarray], box: Sequence[float] | None,
                  width: int, height: int) -> np.ndarray | None:
    """The keypoints of whoever is seen best: the largest sum of confidence, in the box if given.

    None if nobody is seen there.
    """
    x, y, w, h = (0, 0, width, height) if box is None else box

    def score(person: np.ndarray) -> float:
        seen = seen_keypoints(person, width, height)
        inside = ((seen[:, :2] >= (x, y)) & (seen[:, :2] <= (x + w, y + h))).all(1)
        return (seen[:, 2] * inside).sum()

    best = max(people, key=score, default=None)
    return None if best is None or score(best) == 0 else best


def detect_keypoints(image: np.ndarray, box: Sequence[float] | None) -> list[np.ndarray]:
    """MediaPipe's 33 keypoints (33, 3) of the one person that it finds in the box, if any.

    Needs `mediapipe==0.10.21`, whose wheel brings its weights; raises ImportError without it.
    """
    import mediapipe

    height, width = image.shape[:2]
    x, y, w, h = (0, 0, width, height) if box is None else box
    left, top = max(int(x), 0), max(int(y), 0)
    part = np.ascontiguousarray(image[top : math.ceil(y + h), left : math.ceil(x + w)])
    with mediapipe.solutions.pose.Pose(static_image_mode=True) as detector:
        found = detector.process(part).pose_landmarks
    if found is None:
        return []
    return [np.array([(left + mark.x * part.shape[1], top + mark.y * part.shape[0],
                       mark.visibility) for mark in found.landmark], np.float64)]


# ----------------------------------------------------------------------------------- summary

PARTS = {  # name -> its modules and buffers, and parameters of the paper's size as specified
    "image encoder, ViT": (r"backbone\.", 630.9e6),
    "feature map 1, coarse": (r"pyramid\.0\.", 0.92e6),
    "feature map 2": (r"pyramid\.1\.", 4.77e6),
    "feature map 3, fine": (r"pyramid\.2\.", 4.94e6),
    "shape and camera": (r"regressor\.", 1.3e6),
    "masked transformer": (r"transformer\.", 4.60e6),
    "pose tokenizer, encoder": (r"tokenizer\.encoder\.", 5.91e6),
    "pose tokenizer, decoder": (r"tokenizer\.decoder\.", 6.44e6),
    "pose tokenizer, codebook": (r"tokenizer\.quantiser\.codebook$", 0.52e6),
    "pose tokenizer": (r"tokenizer\.(encoder|decoder|quantiser\.codebook$)", 12.87e6),
    "total": ("", 660e6),
}
REMARK = """\
The paper gives no parameter counts. Those specified are of its ViT-H/16, of the tokenizer that
satisfies all of its tables (TokenHMR's, by the same count, has the size of TokenHMR's file), and
of our choices for what it leaves open: 256 channels in the maps and in the masked transformer."""


def count_parameters(config: Config) -> dict[str, int]:
    """Parameters of each of PARTS, and the codebook, which is no parameter, without memory."""
    with torch.device("meta"):
        model = GenHMR(config)
    sizes = {name: value.numel() for name, value in (
        *model.named_parameters(), ("tokenizer.quantiser.codebook", model.tokenizer.codebook))}
    return {part: sum(size for name, size in sizes.items() if re.match(pattern, name))
            for part, (pattern, _) in PARTS.items()}


def print_summary(as_json: bool) -> None:
    """Every preset's parameters, part by part, beside the specified ones if it is of that size."""
    counts = {name: count_parameters(config) for name, config in PRESETS.items()}
    specified = {name: {} if name == "cpu" else {part: int(count) for part, (_, count)
                                                 in PARTS.items()} for name in PRESETS}
    if as_json:
        print(json.dumps({"parameters": counts, "specified": specified, "remark": REMARK},
                         indent=1))
        return
    for name, parts in counts.items():
        print(f"{name:<29}{'parameters':>13}{'specified':>12}")
        for part, number in parts.items():
            reference = f"{specified[name][part] / 1e6:.2f} M" if specified[name] else "-"
            print(f"  {part:<27}{number:>13,}{reference:>12}")
    print(f"\n{REMARK}")


# --------------------------------------------------------------------------------- benchmark


def project_then_sample(attention: DeformableAttention, queries: Tensor, reference: Tensor,
                        values: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """DeformableAttention as everyone computes it: project all cells, then sample map by map."""
    heads, maps, points = attention.shape
    batch, length, _ = queries.shape
    offsets = attention.sampling_offsets(queries).unflatten(2, (*attention.shape, 2))
    weights = attention.attention_weights(queries).unflatten(2, (heads, -1)).softmax(-1)
    projected = attention.value_proj(values).unflatten(2, (heads, -1))  # (B, N, H, D / H)
    cells, total = [height * width for height, width in shapes], 0.0
    for level, (part, (height, width)) in enumerate(
            zip(projected.split(cells, 1), shapes, strict=True)):
        grid = 2.0 * reference[:, None, None] - 1.0 + 2.0 * offsets[:, :, :, level] / (
            torch.tensor([width, height], device=queries.device))  # (B, L, H, P, 2)
        sampled = F.grid_sample(part.permute(0, 2, 3, 1).reshape(batch * heads, -1, height, width),
                                grid.transpose(1, 2).flatten(0, 1), align_corners=False)
        weight = weights.unflatten(3, (maps, points))[:, :, :, level].transpose(1, 2)
        total = total + (sampled * weight.flatten(0, 1)[:, None]).sum(3)  # (B H, D / H, L)
    return attention.output_proj(total.view(batch, -1, length).transpose(1, 2))


def peer_attention(attention: DeformableAttention) -> Callable:
    """Hugging Face's module with the same weights; project_then_sample without transformers."""
    try:
        from transformers.models.deformable_detr import modeling_deformable_detr as detr
    except Exception:  # its optional dependencies break in many ways
        return functools.partial(project_then_sample, attention)
    heads, maps, points = attention.shape
    config = argparse.Namespace(d_model=attention.value_proj.out_features,
                                num_feature_levels=maps, disable_custom_kernels=True)
    peer = detr.DeformableDetrMultiscaleDeformableAttention(config, heads, points)
    peer.to(attention.value_proj.weight).load_state_dict(attention.state_dict())

    def forward(queries: Tensor, reference: Tensor, values: Tensor, shapes: tuple) -> Tensor:
        sizes = torch.tensor(shapes, device=queries.device)
        areas = sizes.prod(1)
        return peer(queries, encoder_hidden_states=values, spatial_shapes=sizes,
                    spatial_shapes_list=list(shapes), level_start_index=areas.cumsum(0) - areas,
                    reference_points=reference[None, :, None].expand(len(values), -1, maps, -1))[0]

    return forward


def medians(functions: Sequence[Callable], seconds: float) -> list[float]:
    """Median times in ms of functions that take turns, so that a busy machine slows all alike."""
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 4:
        for function, spent in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            spent.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(spent[1:]) for spent in times]


def benchmark_attention(width: int, seconds: float, batch: int = 1) -> None:
    """Print our deformable attention's time per the usual one's, at the paper's sizes."""
    torch.manual_seed(0)
    attention = DeformableAttention(replace(Config(), width=width, pyramid_width=width))
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    shapes = ((16, 12), (64, 48), (128, 96))
    queries, values = torch.randn(batch, 96, width), torch.randn(batch, 15_552, width)
    reference, peer = torch.rand(96, 2), peer_attention(attention)

    def run(function: Callable, backward: bool) -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            inputs = [x.detach().requires_grad_(backward) for x in (queries, values)]
            output = function(inputs[0], reference, inputs[1], shapes)
            return [output, *torch.autograd.grad(output.sum(), inputs)] if backward else [output]

    for label, backward in (("forward", False), ("forward + backward", True)):
        runs = [functools.partial(run, function, backward) for function in (attention, peer)]
        ours, theirs = medians(runs, seconds)
        difference = max(((x - y).abs().max() / y.abs().max()).item()
                         for x, y in zip(runs[0](), runs[1](), strict=True))
        print(f"  {f'width {width}, {label}':<32}{ours:>9.1f} ms{theirs:>9.1f} ms"
              f"{ours / theirs:>8.3f}   differs by {difference:.0e}", flush=True)


def benchmark(config: Config, seconds: float = 4.0, widths: Sequence[int] = (1024, 256)) -> None:
    """Print times on this CPU: deformable attention, T = 5 per T = 1, and every part."""
    print(f"{torch.get_num_threads()} threads, float32, batch 1, medians of interleaved runs\n")
    print("deformable attention of 96 queries on 15,552 cells: this file's, the usual one, ratio")
    for width in widths:
        benchmark_attention(width, seconds)
    torch.manual_seed(0)
    model = GenHMR(config).eval()
    images = torch.zeros(1, 3, config.image_size, config.image_size)
    with torch.no_grad():
        features, tokens = model.encode(images), torch.zeros(1, 96, dtype=torch.int64)
        once, five = medians([lambda: sample(model, images, iterations=1),
                              lambda: sample(model, images, iterations=5)], 2 * seconds)
        print(f"\npicture to pose, T = 1: {once:.1f} ms, T = 5: {five:.1f} ms, "
              f"ratio {five / once:.2f} (in the paper's Table 2: 3.2)\n")
        grid = torch.zeros(1, config.vit_dim, *model.backbone.grid)
        parts = {
            "image encoder": lambda: model.backbone(model.normalise(images)),
            "feature maps": lambda: [level(grid) for level in model.pyramid],
            "shape and camera": lambda: model.regressor(grid.flatten(2).transpose(1, 2)),
            "masked transformer, an iteration": lambda: model.predict_logits(features, tokens),
            "pose tokenizer, decoder": lambda: model.tokenizer.decode(tokens),
            "refinement, 10 steps": refinement_run(model, features, tokens),
        }
        for part, spent in zip(parts, medians(list(parts.values()), 2 * seconds), strict=True):
            print(f"  {part:<32}{spent:>9.1f} ms")
    print()
    for part, count in count_parameters(config).items():
        specified = f"{PARTS[part][1] / 1e6:.2f} M" if config.vit_dim == 1280 else "-"
        print(f"  {part:<32}{count:>13,}{specified:>12}")


def refinement_run(model: GenHMR, features: Features, tokens: Tensor) -> Callable:
    """Ten steps of refinement against the free body's keypoints, as a function to time."""
    import bodymodels

    body = bodymodels.load_model("body").for_keypoints()
    return lambda: refine(
        model, tokens, features.betas, features.camera, torch.zeros(1, 45, 2), torch.ones(1, 45),
        lambda betas, rotations: body.keypoints(body(betas, rotations)))


# ------------------------------------------------------------------------------ command line


def find_keypoints(arguments: argparse.Namespace, image: np.ndarray,
                   box: Sequence[float] | None) -> tuple[np.ndarray | None, str]:
    """The person's keypoints (45, 3) and where they are from; or None, and why there are none."""
    if arguments.keypoints is not None:
        people, origin = read_keypoints(arguments.keypoints, arguments.image), arguments.keypoints
    elif arguments.refine == 0 and not arguments.fit_camera:
        return None, "--refine 0"
    else:
        try:
            people, origin = detect_keypoints(image, box), "MediaPipe"
        except ImportError:
            return None, "no --keypoints, and mediapipe is not installed"
    person = choose_person([to_smpl45(person) for person in people], box, *image.shape[1::-1])
    if person is None:
        origin = f"{origin} sees nobody{'' if box is None else ' in the box'}"
    return person, origin


def draw_sampling(found: dict[str, np.ndarray], image: np.ndarray, body: Callable) -> bytes:
    """A PNG of the sampling process: Fig. 5, Fig. 6 and the mesh after each iteration."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    import bodymodels

    count, length = found["confidences"].shape
    shown = np.unique(np.linspace(0, count - 1, min(count, 6)).round().astype(int))
    poses = np.concatenate((found["poses"][shown], found["pose"][None]))
    titles = [f"iteration {index + 1}" for index in shown] + ["refined"]
    if len(found["energies"]) == 1:  # not refined: the last iteration is the result
        poses, titles = poses[:-1], titles[:-1]
    betas = torch.from_numpy(found["betas"])[None]
    meshes = body(betas, torch.from_numpy(poses)).vertices.numpy() + found["transl"]
    x, y, side, _ = found["box"]
    crop = crop_picture(image, np.array([x, y]) + side / 2, float(side), 256)
    crop = crop.permute(1, 2, 0).numpy() / 255
    K = np.diag([256 / side, 256 / side, 1]) @ (found["K"] - [[0, 0, x], [0, 0, y], [0, 0, 0]])

    figure = Figure(figsize=(max(2.2 * len(poses), 10), 5.2), layout="constrained")
    rows = figure.subfigures(2, 1, height_ratios=(1, 1))
    left, right = rows[0].subplots(1, 2)
    left.imshow(found["masks"], cmap=ListedColormap(["orange", "black"]), vmin=0, vmax=1,
                aspect="auto", interpolation="nearest")
    left.set(title="masked tokens (black) after each iteration", xlabel="token", ylabel="iteration")
    for axis in (left.yaxis, right.yaxis):
        axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    bar = right.imshow(found["confidences"], vmin=0, vmax=1, aspect="auto",
                       interpolation="nearest", extent=(-0.5, length - 0.5, count + 0.5, 0.5))
    right.set(title="confidence of each iteration", xlabel="token", ylabel="iteration")
    rows[0].colorbar(bar, ax=right)
    panels = rows[1].subplots(1, len(poses), squeeze=False)[0]
    for panel, vertices, title in zip(panels, meshes, titles, strict=True):
        panel.imshow(bodymodels.render(vertices, body.faces, K, (256, 256), background=crop,
                                       supersample=2).image)
        panel.set_title(title)
        panel.axis("off")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def reconstruct(arguments: argparse.Namespace) -> None:
    """Predict the person in a picture; write overlay, sampling process, arrays and mesh."""
    import matplotlib.image

    import bodymodels
    import data

    try:
        box = arguments.box and [float(number) for number in arguments.box.split(",")]
    except ValueError:
        raise ValueError(f"--box {arguments.box}: expected x,y,width,height") from None
    body = bodymodels.load_model(arguments.body)
    require(len(body.parents) == 24, f"--body {arguments.body}: GenHMR needs SMPL's 24 joints, "
                                     f"this model has {len(body.parents)}")
    image = data.read_image(arguments.image)
    check_picture(image, box)
    model = load_checkpoint(arguments.checkpoint)
    keypoints, origin = find_keypoints(arguments, image, box)
    found = predict(model, body, image, box=box, keypoints=keypoints,
                    iterations=arguments.iterations, refinement=arguments.refine,
                    fitted_camera=arguments.fit_camera,
                    **({} if arguments.step_size is None else {"step_size": arguments.step_size}))
    overlay = bodymodels.render(found["vertices"], body.faces, found["K"], image.shape[:2],
                                background=image / np.float32(255), supersample=2)
    png, npz = io.BytesIO(), io.BytesIO()
    matplotlib.image.imsave(png, overlay.image, format="png")
    np.savez_compressed(npz, faces=body.faces.numpy(), **found)
    sampling = draw_sampling(found, image, body)
    base = arguments.out / Path(arguments.image).stem
    arguments.out.mkdir(parents=True, exist_ok=True)
    bodymodels.write_atomically(f"{base}_overlay.png", png.getvalue())  # base.png may be IMAGE
    bodymodels.write_atomically(f"{base}_sampling.png", sampling)
    bodymodels.write_atomically(f"{base}.npz", npz.getvalue())
    upright = (found["vertices"] - found["joints"][0]) * (1, -1, -1)  # y up, as viewers expect
    for ending in ("obj", "ply", "glb"):
        bodymodels.save_mesh(f"{base}.{ending}", upright, body.faces)
    energies, count = found["energies"], (found["confidence"] > 0).sum()
    if arguments.fit_camera:
        print(f"camera fitted to {count} keypoints" if found["fitted"] else
              f"camera not fitted: {'the keypoints do not tell it' if count else origin}")
    if len(energies) > 1:
        origin = f"{count} keypoints ({origin})"
        rose = ", it rose: give a smaller --step-size" if energies[-1] > energies[0] else ""
        print(f"refined against {origin}: energy {energies[0]:.3g} -> {energies[-1]:.3g} "
              f"in {len(energies) - 1} steps{rose}")
    else:
        print(f"not refined: {origin if arguments.refine else '--refine 0'}")
    print(f"wrote {base}_overlay.png, {base.name}_sampling.png, .npz, .obj, .ply and .glb")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 after one line about bad input."""
    parser = argparse.ArgumentParser(
        description="GenHMR: the mesh of the person in a picture.",
        epilog="Writes the mesh over the picture (_overlay.png), the sampling process "
               "(_sampling.png), the mesh (.obj, .ply, .glb: metres, pelvis at the origin, y up) "
               "and the arrays of genhmr.predict (.npz).")
    add = parser.add_argument
    add("image", nargs="?", help="a picture with one person")
    add("--checkpoint", default=Path(__file__).with_name("assets") / "genhmr_cpu.pt",
        help="train.py's, of stage transformer (default: the small one that comes with this file)")
    add("--box", help="x,y,w,h of the person in pixels (default: around the keypoints, without "
                      "keypoints the whole picture)")
    add("--keypoints", metavar="FILE", help="2D keypoints to refine against, OpenPose's or COCO's "
                                            "JSON (default: MediaPipe's, where installed)")
    add("--iterations", type=int, default=5, help="of the sampling (default: 5)")
    add("--refine", type=int, default=10, help="steps of the refinement (default: 10)")
    add("--fit-camera", action="store_true",
        help="before it, put the body where the keypoints are (default: where the network says)")
    add("--step-size", type=float, help="of the refinement (default: that of genhmr.refine)")
    add("--body", default="body", metavar="FILE",
        help="SMPL_NEUTRAL.pkl, for checkpoints trained on SMPL (default: the free body)")
    add("--out", type=Path, default=Path("output"), help="folder to write to (default: output)")
    add("--summary", action="store_true", help="print the parameters of every preset instead")
    add("--json", action="store_true", help="print them as JSON")
    add("--benchmark", action="store_true", help="print times and ratios instead")
    add("--preset", default="paper", choices=PRESETS, help="to benchmark (default: paper)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.summary:
            print_summary(arguments.json)
        elif arguments.benchmark:
            benchmark(PRESETS[arguments.preset])
        else:
            require(arguments.image is not None, "name a picture, or give --summary or --benchmark")
            reconstruct(arguments)
    except (ValueError, OSError) as error:
        print(f"genhmr.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
