"""SimpleHand: the 778 vertices of a hand from one RGB crop, the whole paper in one file.

Zhishan Zhou, Shihao Zhou, Zhi Lv, Minqiang Zou, Yao Tang, Jiajun Liang:
"A Simple Baseline for Efficient Hand Mesh Reconstruction", CVPR 2024.

The claim: a mesh decoder needs two things and nothing else. A *token generator* that looks where
the 21 keypoints are, in a feature map fine enough to tell fingers apart, and a *mesh regressor*
that grows those 21 tokens into 778 vertices in a few steps, 21 -> 84 -> 336 -> 778.

    where in the paper                     what                              where in this file
    Sec. 3.1, Fig. 2-D  T(X_b)             token generator                   MeshHead.tokens
    Eq. 1               R = H_k ... H_0    mesh regressor                    MeshHead.regress
    Eq. 2               U_k(MF_k(P_k(.)))  decoder layer                     MeshHead.decoder_layer
    Eq. 3               X_k + emb_k        position embedding                MeshHead.decoder_layer
    Sec. 3.3, Fig. 4    R(T(X_b))          framework                         SimpleHand.forward
    Eq. 4, 5, 6         L1 terms           joints, 2D keypoints, vertices    losses
    Eq. 7               weighted sum       w = 10, 1, 10                     total_loss
    Sec. 4.1, 4.5       backbones          FastViT-MA36, HRNet, Hiera-Tiny   FastViT, HRNet, Hiera
    Tables 4 to 8       ablations          what a row changes                ABLATIONS

The method comes first; the backbones, which are not the paper's, are the last sections.
"The release" is the authors' code of 2024-05-27; where paper and release disagree or are silent,
a comment beside the line says so. Metres, pixels and OpenCV camera axes (x right, y down, z away
from the camera) throughout; an image spans [0, W] x [0, H], so the centre of its first pixel is
(0.5, 0.5). Letters in shapes: B batch, S side of the crop in pixels, C channels, N tokens.
"""

from __future__ import annotations

import argparse
import copy
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

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ------------------------------------------------------------------------------------ config

BACKBONES = ("fastvit", "hrnet", "hiera")
SAMPLINGS = ("global", "grid", "point", "coarse_mesh")
MIXERS = ("attention", "identity", "convolution")
COARSE = 4  # every fourth vertex makes the coarse mesh: 195, as many as FastMETRO's has

@dataclass(frozen=True)
class Config:
    """Everything that defines a model and its training run. Defaults are the paper's."""

    # Input
    image_size: int = 224  # px, side of the square crop, a multiple of 32 (release)
    official: bool = False  # True: exactly the release, for its checkpoints. It feeds BGR scaled
    # to +-0.5 to weights pretrained on RGB with ImageNet statistics, samples with
    # align_corners=True (up to 4 px off at the borders) and adds a sine map the paper does not
    # mention. False, for new training: RGB with ImageNet statistics, exact sampling, no sine map.

    # Backbone (Sec. 4.1; the numbers are those of FastViT-MA36, FastViT's Table 2)
    embed_dims: tuple[int, ...] = (76, 152, 304, 608)  # channels of stages; HRNet: of branches
    depths: tuple[int, ...] = (6, 6, 18, 6)  # blocks of stages; HRNet: modules, but in the first
    large_kernel: int = 7  # px, of FastViT's downsampling, position encoding and MLPs
    mlp_ratio: float = 4.0  # hidden width of the MLPs of FastViT and Hiera
    attention: bool = True  # FastViT's last stage: self-attention (MA36), else RepMixer
    feature_width: int = 1216  # channels of the last map: X_b but in HRNet, there only averaged
    layer_scale: float = 1e-5  # initial value in FastViT (timm)
    backbone_drop_path: float = 0.2  # rate at the last block, rising linearly (release)
    backbone: str = "fastvit"  # "fastvit", "hrnet" (Sec. 4.1) or "hiera" (Sec. 4.5)

    # Token generator (Fig. 2, Table 5)
    sampling: str = "point"  # where: "global", "grid", "point" or "coarse_mesh" (Fig. 2 A, B, D, F)
    upsample: tuple[int, ...] = (4,)  # deconvolutions of X_b by these factors; 1: none (Fig. 2-C)
    refine: int = 0  # 3 x 3 convolutions after them (Fig. 2-E, "enhanced")
    token_width: int = 256  # channels after the first of either (Sec. 4.1: first dimension)

    # Mesh regressor
    tokens: tuple[int, ...] = (21, 84, 336)  # tokens entering each decoder layer (Sec. 4.1)
    num_vertices: int = 778  # tokens leaving the last one (MANO)
    dims: tuple[int, ...] = (256, 128, 64)  # feature dimension of each layer (Sec. 4.1)
    blocks: tuple[int, ...] = (1, 1, 1)  # MetaFormer blocks in each layer (Table 7)
    mixer: str = "attention"  # of tokens: "attention", "identity" or "convolution" (Table 8)
    position_embedding: bool = True  # Eq. 3 (Table 8)
    heads: int = 4  # attention heads (release)
    regressor_mlp_ratio: float = 4.0  # (release)
    dropout: float = 0.1  # of the attention weights (release)
    drop_path: float = 0.1  # of both residual branches (release)
    output_scale: float = 1.0  # metres, and crops, per unit of the last layers (release)

    # Loss, Eq. 7 (Sec. 3.4)
    weight_joints: float = 10.0
    weight_keypoints_2d: float = 1.0
    weight_vertices: float = 10.0

    # Optimisation. 100 epochs of FreiHAND's 130,240 images are 13.0 M samples; the release counts
    # 200 "epochs" of 256 steps x 256 samples = 13.1 M. Both halve in the same place.
    batch_size: int = 256  # samples per optimiser step, over all processes (Sec. 4.1: 8 x 32)
    accumulate: int = 1  # parts in which a process computes its share of them (our choice)
    steps: int = 51_200  # optimiser steps: 200 x 256 (release)
    learning_rate: float = 5e-4  # (Sec. 4.1)
    schedule: str = "step"  # "step": / 10 at half of the steps (Sec. 4.1); "cosine"; "constant"
    warmup_steps: int = 1_280  # linear from 0: 5 x 256 (release; the paper is silent)
    weight_decay: float = 1e-2  # AdamW (release; the paper is silent)
    gradient_clip: float = 1.0  # norm (release; the paper is silent)
    precision: str = "fp16"  # "fp32", "bf16" or "fp16" with a gradient scaler (release)
    channels_last: bool = True  # memory format, for speed alone (our choice)
    ema_decay: float = 0.0  # of a moving average of the weights, 0 = off (release)
    eval_every: int = 2_560  # steps between evaluations: 10 x 256 (our choice)
    seed: int = 0  # of initialisation, order and augmentation (our choice)

    # RenderedHands, the free stand-in for FreiHAND (our choice)
    train_samples: int = 130_240  # (as many as FreiHAND has)
    test_samples: int = 1_000
    views: float = 90.0  # degrees, largest tilt of palm or back; 90 is the whole sphere
    in_plane: float = 180.0  # degrees, largest turn in the image plane, either way

    def __post_init__(self) -> None:
        fastvit, first = self.backbone == "fastvit", self.tokens[0]
        for name, valid, rule in (
            ("backbone", self.backbone in BACKBONES, f"one of {', '.join(BACKBONES)}"),
            ("sampling", self.sampling in SAMPLINGS, f"one of {', '.join(SAMPLINGS)}"),
            ("mixer", self.mixer in MIXERS, f"one of {', '.join(MIXERS)}"),
            ("image_size", self.image_size > 0 and self.image_size % 32 == 0, "a multiple of 32"),
            ("depths", len(self.depths) == len(self.embed_dims) == 4, "four, as of embed_dims"),
            ("embed_dims", not fastvit or not self.attention or self.embed_dims[-1] % 32 == 0,
             "the last a multiple of 32, the width of an attention head"),
            ("feature_width", self.feature_width % self.last_width == 0
             and (self.backbone != "hiera" or self.feature_width == self.last_width),
             f"{self.last_width}" if self.backbone == "hiera" else
             f"a multiple of {self.last_width}"),
            ("large_kernel", self.large_kernel in range(3, 99, 2), "an odd number from 3 on"),
            ("upsample", min(self.upsample, default=0) >= 1, "factors, or 1 for none"),
            ("tokens", math.isqrt(first) ** 2 == first if self.sampling == "grid"
             else first == self.points, "a square number of cells first" if self.sampling == "grid"
             else f"the {self.points} points first"),
            ("dims", len(self.tokens) == len(self.dims) == len(self.blocks),
             "as many as tokens and blocks"),
            ("heads", not any(dim % self.heads for dim in self.dims), "a divisor of all dims"),
        ):
            require(valid, f"{name} is {getattr(self, name)}: expected {rule}")

    @property
    def last_width(self) -> int:
        """Channels that feature_width has to be a multiple of."""
        return 64 if self.backbone == "hrnet" else self.embed_dims[-1]

    @property
    def backbone_width(self) -> int:
        """Channels of X_b; of "global" sampling, of its average over the last map."""
        hrnet_map = self.backbone == "hrnet" and self.sampling != "global"
        return self.embed_dims[1] if hrnet_map else self.feature_width

    @property
    def points(self) -> int:
        """Points of the image that the model predicts: the keypoints, and the coarse mesh."""
        coarse = self.sampling == "coarse_mesh"
        return 21 + (len(range(0, self.num_vertices, COARSE)) if coarse else 0)


def require(condition: object, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


PRESETS: dict[str, Config] = {
    # Sec. 4.1: torchrun with 8 processes, RTX 2080 Ti, 7 hours.
    "paper": Config(),
    # The same with HRNet-W64, whose map at S/8 needs no deconvolution (Sec. 3.3; 11 hours), and
    # with Hiera-Tiny, as in the paper's ablations (Sec. 4.5).
    "paper_hrnet": Config(
        backbone="hrnet", embed_dims=(64, 128, 256, 512), depths=(4, 1, 4, 3), feature_width=2048,
        upsample=(1,)),
    "paper_hiera": Config(
        backbone="hiera", embed_dims=(96, 192, 384, 768), depths=(1, 2, 7, 2), feature_width=768),
    # One H200: global batch 512 is twice the paper's, so half of the steps and, AdamW's rule,
    # the learning rate times sqrt(2).
    "h200": Config(
        batch_size=512, steps=25_600, warmup_steps=640, learning_rate=7.07e-4, precision="bf16",
        eval_every=1_280),
    # One GPU with 11 GB: the paper's run, step for step, in eight batches of 32.
    "single_gpu": Config(accumulate=8),
    # Two CPU cores: the same design, small enough to learn in minutes, from hands that turn no
    # further than 15 degrees: in that time the whole sphere of views does not fit. Nothing there
    # knows any picture yet, so the 2D keypoints, the most direct lesson, weigh as much as the mesh.
    "cpu": Config(
        image_size=64, embed_dims=(32, 64, 128, 256), depths=(1, 1, 1, 1), large_kernel=3,
        mlp_ratio=2.0, feature_width=256, layer_scale=1.0, backbone_drop_path=0.0,
        token_width=64, dims=(64, 32, 16), blocks=(1, 1, 0), heads=1, dropout=0.0, drop_path=0.0,
        output_scale=0.1, weight_keypoints_2d=40.0, batch_size=32, steps=3_800, warmup_steps=100,
        learning_rate=3e-3, schedule="cosine", precision="fp32", eval_every=1_900,
        train_samples=20_000, views=15.0, in_plane=15.0,
    ),
}
# What train.py --ablate trains unless told otherwise: the same with the paper's three blocks, and
# fewer steps, so that three seeds of Tables 4, 5, 6 and 8 take two hours.
PRESETS["ablation"] = replace(
    PRESETS["cpu"], blocks=(1, 1, 1), steps=500, eval_every=500, train_samples=16_000)

# ------------------------------------------------------------------------------------ method


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


def mlp(width: int, hidden: int) -> nn.Sequential:
    """Linear, GELU, linear."""
    return nn.Sequential(OrderedDict(
        fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width)))


class SeparableConv(nn.Module):
    """The convolution mixer (our reading): wider, 7 tokens of their row depthwise, back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(2 * width, 2 * width, 7, padding=3, groups=2 * width)
        self.reduce = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, C) -> (B, N, C)
        x = F.gelu(self.expand(x))
        return self.reduce(self.depthwise(x.transpose(1, 2)).transpose(1, 2))


class MetaFormerBlock(nn.Module):
    """MF_k of Eq. 2, pre-norm: (B, N, C) -> (B, N, C).

    The identity mixer is one, so its branch adds the normed tokens. (The release would leave that
    branch out; its identity and convolution blocks cannot be built.)
    """

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        if config.mixer == "attention":
            self.token_mixer = nn.MultiheadAttention(width, config.heads, config.dropout,
                                                     batch_first=True)
        else:
            self.token_mixer = (nn.Identity() if config.mixer == "identity"
                                else SeparableConv(width))
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width, int(width * config.regressor_mlp_ratio))
        self.drop_path = DropPath(config.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        attention = isinstance(self.token_mixer, nn.MultiheadAttention)
        mixed = (self.token_mixer(y, y, y, need_weights=False)[0] if attention
                 else self.token_mixer(y))
        x = x + self.drop_path(mixed)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class LinearUpsample(nn.Module):
    """U_k of Eq. 2: a single linear layer over the tokens, (B, N, C) -> (B, N', C)."""

    def __init__(self, tokens_in: int, tokens_out: int) -> None:
        super().__init__()
        self.upsample = nn.Linear(tokens_in, tokens_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(x.transpose(1, 2)).transpose(1, 2)


class PatchDeconv(nn.ConvTranspose2d):
    """Deconvolution whose kernel is its stride: each cell of X_b becomes a patch of its own.

    That is one matrix product, on a CPU three times faster than the general deconvolution.
    """

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C', 4 H, 4 W), if by 4
        patches = x.permute(0, 2, 3, 1) @ self.weight.flatten(1)  # (B, H, W, C' * 4 * 4)
        patches = patches.unflatten(3, self.weight.shape[1:]).permute(0, 3, 1, 4, 2, 5)
        y = patches.flatten(4).flatten(2, 3)  # (B, C', H, 4, W, 4) -> (B, C', 4 H, 4 W)
        return y if self.bias is None else y + self.bias[:, None, None]


def upsampler(config: Config) -> tuple[nn.Sequential, int]:
    """What the token generator does to X_b before it samples (Fig. 2 C to E); the new channels.

    One deconvolution by 4 is the paper's (and the release's names); a map as fine as HRNet's, or
    the average of "global", stays as it is.
    """
    layers, width = [], config.backbone_width
    factors = () if config.sampling == "global" else config.upsample
    kernels = [factor for factor in factors if factor > 1]
    for size in (*kernels, *[0] * (config.refine if factors else 0)):
        shape = (width, config.token_width)
        layers += [PatchDeconv(*shape, size, size, bias=False) if size
                   else nn.Conv2d(*shape, 3, padding=1, bias=False),
                   nn.BatchNorm2d(config.token_width), nn.ReLU()]
        width = config.token_width
    return nn.Sequential(*layers), width


def samples_cells(config: Config) -> bool:
    """Whether SampledDeconv is for models of this config."""
    factors = [factor for factor in config.upsample if factor > 1]
    return len(factors) == 1 and not config.refine and not config.official and (
        config.sampling != "global")


class SampledDeconv(nn.Module):
    """The one deconvolution and its ReLU, fused, at the cells that points need: at most 4 each.

    21 points need 84 of 784 cells at most, and each of those is a cell of X_b times one of 16
    matrices. The values are exact; the shapes depend on the points, so for inference alone.
    """

    def __init__(self, deconv: PatchDeconv) -> None:
        super().__init__()
        self.factor = deconv.stride[0]
        self.weight = nn.Parameter(deconv.weight.flatten(2).permute(2, 0, 1).contiguous())
        self.bias = nn.Parameter(deconv.bias.detach().clone())

    def forward(self, x: Tensor, points: Tensor, corners: bool) -> Tensor:
        """X_b (B, C, H, W), points (B, N, 2) in 0..1 -> (B, N, C'); corners: as the release."""
        limit = self.factor * torch.tensor(x.shape[:1:-1], device=x.device) - 1  # last x, last y
        place = points * limit if corners else points * (limit + 1) - 0.5
        place = place.clamp(torch.zeros_like(limit), limit)  # (B, N, 2)
        low, step = place.floor(), torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=x.device)
        cell = torch.minimum(low.long()[:, :, None] + step, limit)  # (B, N, 4, 2)
        share = torch.where(step > 0, (place - low)[:, :, None], 1 - (place - low)[:, :, None])
        coarse, phase = cell // self.factor, (cell % self.factor) @ torch.tensor(
            [1, self.factor], device=x.device)
        sample = torch.arange(len(x), device=x.device)[:, None, None]
        rows = x[sample, :, coarse[..., 1], coarse[..., 0]].flatten(0, 2)  # (B N 4, C)
        values = rows.new_empty(len(rows), len(self.bias))
        for index, matrix in enumerate(self.weight):  # (C, C'), of one of the 16 phases
            chosen = (phase.flatten() == index).nonzero()[:, 0]
            values[chosen] = torch.addmm(self.bias, rows[chosen], matrix).relu()
        return (share.prod(-1, keepdim=True) * values.view(*cell.shape[:3], -1)).sum(2)


class MeshHead(nn.Module):
    """Token generator T and mesh regressor R (Fig. 4), under the release's parameter names."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.official, self.sampling = config.official, config.sampling
        self.deconv, width = upsampler(config)
        widths = (width, *config.dims)
        tokens = (*config.tokens, config.num_vertices)
        self.num_layers, self.cells = len(config.tokens), math.isqrt(config.tokens[0])
        for k in range(1, self.num_layers + 1):
            embedding = torch.empty(1, tokens[k - 1], widths[k - 1])
            blocks = [MetaFormerBlock(widths[k], config) for _ in range(config.blocks[k - 1])]
            embedding = nn.Parameter(nn.init.trunc_normal_(embedding, std=0.02))
            setattr(self, f"pos_emb_{k}", embedding if config.position_embedding else None)
            setattr(self, f"proj_{k}", nn.Linear(widths[k - 1], widths[k]))
            setattr(self, f"encoder_{k}", nn.Sequential(*blocks))
            setattr(self, f"upsample_{k}", LinearUpsample(tokens[k - 1], tokens[k]))
        self.pred_final = nn.Linear(widths[-1], 3)
        self.output_scale = config.output_scale

    def forward(self, features: Tensor, keypoints_2d: Tensor) -> Tensor:
        """Vertices R(T(X_b)), (B, 778, 3) metres, from X_b and the keypoints to sample at."""
        return self.regress(self.tokens(features, keypoints_2d))

    def tokens(self, features: Tensor, keypoints_2d: Tensor) -> Tensor:
        """Token generator: X_b (B, C, S/32, S/32), points (B, N, 2) in 0..1 -> (B, N, C')."""
        if self.sampling == "grid":  # the centres of cells, wherever the keypoints are
            side = (torch.arange(self.cells, device=features.device) + 0.5) / self.cells
            keypoints_2d = torch.cartesian_prod(side, side).flip(1).to(keypoints_2d).expand(
                len(features), -1, 2)
        if isinstance(self.deconv, SampledDeconv):
            return self.deconv(features, keypoints_2d, self.official)
        features = self.deconv(features)  # (B, C', S/8, S/8)
        if self.official:
            features = features + sine_map(features)
        # Not detached: mesh losses also move the keypoints (zero gradient where clamped).
        grid = (2.0 * keypoints_2d - 1.0).clamp(-1.0, 1.0).unsqueeze(2)  # (B, 21, 1, 2)
        grid = grid.nan_to_num(0.0)  # NaN is no place: sampling there would crash, not diverge
        # The release puts 0 and 1 on the *centres* of the border cells, (S/8 - 1) u instead of
        # S/8 u - 0.5. Beyond those centres ours repeats the border; the release never gets there.
        sampled = F.grid_sample(features.to(grid.dtype), grid, padding_mode="border",
                                align_corners=self.official)
        return sampled.squeeze(3).transpose(1, 2)  # (B, 21, C')

    def regress(self, x: Tensor) -> Tensor:
        """Mesh regressor: tokens X_0 = X_m (B, 21, C') -> vertices (B, 778, 3)."""
        for k in range(1, self.num_layers + 1):  # Eq. 1; the release counts from 1, not 0
            x = self.decoder_layer(k, x)
        return self.output_scale * full_precision(self.pred_final, x)

    def decoder_layer(self, k: int, x: Tensor) -> Tensor:
        """H_k: more tokens, fewer channels, as (B, 21, 256) -> (B, 84, 256) -> (B, 336, 128)."""
        emb, project, metaformer, upsample = (
            getattr(self, f"{part}_{k}") for part in ("pos_emb", "proj", "encoder", "upsample"))
        if emb is not None:
            x = x + emb  # Eq. 3; before P_k (release), as Sec. 3.3 can be read
        return upsample(metaformer(project(x)))  # Eq. 2


def full_precision(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply the layer outside autocast: in bf16 a coordinate of 0.1 m is only good to 0.4 mm."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(layer.weight.dtype))


def sine_map(features: Tensor) -> Tensor:
    """Fixed position map of the release (DETR's), (C, H, W) like `features`: y first, then x."""
    channels, height, width = features.shape[1:]
    half = channels // 2
    exponent = torch.arange(half, device=features.device) // 2 * 2 / half

    def encode(length: int) -> Tensor:  # (half, length), sine and cosine interleaved
        position = torch.arange(1, length + 1, device=features.device) / (length + 1e-6)
        angle = 2.0 * math.pi * position / 10_000.0 ** exponent[:, None]
        return torch.stack((angle[0::2].sin(), angle[1::2].cos()), 1).flatten(0, 1)

    y = encode(height)[:, :, None].expand(half, height, width)
    x = encode(width)[:, None, :].expand(half, height, width)
    return torch.cat((y, x)).to(features.dtype)


class SimpleHand(nn.Module):
    """The framework of Fig. 4: backbone, 2D keypoint head, token generator, mesh regressor."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        backbone = {"fastvit": FastViT, "hrnet": HRNet, "hiera": Hiera}[config.backbone]
        self.backbone = backbone(config)
        self.keypoints_2d_head = nn.Linear(config.feature_width, 2 * config.points)
        self.mesh_head = MeshHead(config)
        if not config.official:  # start in the middle of the crop, where sampling has a gradient
            nn.init.constant_(self.keypoints_2d_head.bias, 0.5 / config.output_scale)
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])  # ImageNet
        if config.official:
            mean, std = torch.full((3,), 0.5), torch.ones(3)
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict the hand of each crop.

        images: (B, 3, S, S) RGB of *right* hands (mirror left ones first), uint8 or floats in
            0..255, S a multiple of 32.
        Returns vertices (B, 778, 3), metres in the crop's camera axes with joint 9 (base of the
        middle finger) as origin, and keypoints_2d (B, 21, 2), fractions of the crop 0..1;
        with "coarse_mesh" sampling also coarse_2d (B, 195, 2), those of every fourth vertex.
        Raises ValueError for another shape.
        """
        maps = self.extract(self.normalise(images))
        features, last = maps if isinstance(maps, tuple) else (maps, maps)  # X_b: S/32, HRNet S/8
        pooled = last.mean((2, 3))  # "global feature" of Fig. 4
        points = full_precision(self.keypoints_2d_head, pooled).unflatten(1, (-1, 2))
        points = self.config.output_scale * points
        if self.config.sampling == "global":  # a map of one cell: every sample is its value
            features = pooled[:, :, None, None]
        prediction = {"vertices": self.mesh_head(features, points), "keypoints_2d": points[:, :21]}
        return prediction | ({"coarse_2d": points[:, 21:]} if points.shape[1] > 21 else {})

    def extract(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The backbone; in and out of its own precision, if fuse(bf16=True) gave it one."""
        own, others = next(self.backbone.parameters()).dtype, self.keypoints_2d_head.weight.dtype
        if own == others:
            return self.backbone(images)
        maps = self.backbone(images.to(own))
        return maps.to(others) if isinstance(maps, Tensor) else tuple(x.to(others) for x in maps)

    def normalise(self, images: Tensor) -> Tensor:
        """RGB 0..255 -> what the backbone was trained on; the release's BGR when official."""
        shape = tuple(images.shape)
        require(len(shape) == 4 and shape[1] == 3 and not any(side % 32 for side in shape[2:]),
                f"images of shape {shape}: expected (B, 3, S, S), S a multiple of 32")
        if self.config.official:
            images = images.flip(1)
        return (images.to(self.mean.dtype) / 255.0 - self.mean) / self.std

    @torch.no_grad()
    def fuse(self, *, sampled: bool = False, bf16: bool = False) -> SimpleHand:
        """A copy for inference: branches, norms and scales folded into the layers next to them.

        sampled: compute the deconvolution only where it is sampled, see SampledDeconv: exact.
        bf16: run the backbone in bfloat16, channels last: not exact. Coordinates stay float32.
        """
        require(not sampled or samples_cells(self.config), "sampled: expected points sampled "
                "from one deconvolution, without the release's sine map")
        fused = copy.deepcopy(self).eval()
        fused.backbone.fuse()
        fold_norms(fused.mesh_head)
        if sampled:
            fused.mesh_head.deconv = SampledDeconv(fused.mesh_head.deconv[0])
        if bf16:
            fused.backbone.to(torch.bfloat16, memory_format=torch.channels_last)
        return fused


def fold_norms(module: nn.Module) -> None:
    """Fold every batch norm that follows a convolution, in place, as evaluation mode has it."""
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (_, conv), (name, norm) in zip(children, children[1:], strict=False):
            if (isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
                    and isinstance(norm, nn.BatchNorm2d)):
                transposed = isinstance(conv, nn.ConvTranspose2d)
                conv.weight, conv.bias = nn.utils.fusion.fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
                    norm.weight, norm.bias, transpose=transposed)
                setattr(parent, name, nn.Identity())


# ------------------------------------------------------------------------------------ losses


def regress_joints(vertices: Tensor, keypoint_regressor: Tensor) -> Tensor:
    """J_3d = J V_3d (Sec. 3.4): (B, 778, 3) -> (B, 21, 3), wrist, thumb to pinky, base to tip.

    keypoint_regressor (21, 778) acts on the *posed* vertices: sixteen rows of MANO's joint
    regressor and five fingertip vertices. Joints from MANO's skeleton are another quantity:
    scored against those, a perfect mesh has a PA-MPJPE of 3.26 mm.
    """
    return torch.einsum("jv,bvc->bjc", keypoint_regressor, vertices)


def losses(prediction: dict[str, Tensor], batch: dict[str, Tensor],
           keypoint_regressor: Tensor) -> dict[str, Tensor]:
    """The unweighted terms of Eq. 4 to 6, each a scalar.

    batch: as data.py makes it, camera-frame metres and crop pixels; here they become relative to
    joint 9 (release; the paper is silent) and fractions of the crop.
    1/M ||.||_1 is read as the release does: summed over coordinates, mean over the M points. What
    is invalid counts as zero error, so the mean over a batch is the mean of those of its parts.
    """
    vertices, keypoints_2d = prediction["vertices"], prediction["keypoints_2d"]
    root, mesh_valid = batch["joints"][:, 9:10], batch["mesh_valid"][:, None]

    def l1(predicted: Tensor, true: Tensor, valid: Tensor) -> Tensor:
        return ((predicted - true).abs().sum(-1) * valid).mean()

    joints = regress_joints(vertices, keypoint_regressor)
    true_2d = batch["keypoints_2d"] / batch["image"].shape[-1]
    terms = {
        "joints": l1(joints, batch["joints"] - root, mesh_valid),  # Eq. 4
        "keypoints_2d": l1(keypoints_2d, true_2d, batch["keypoints_valid"]),  # Eq. 5
        "vertices": l1(vertices, batch["vertices"] - root, mesh_valid),  # Eq. 6
    }
    if "coarse_2d" in prediction:  # Eq. 5 for the coarse mesh that guides the sampling (Fig. 2-F)
        pixels = batch["vertices"][:, ::COARSE] @ batch["K"].mT
        true_2d = pixels[..., :2] / pixels[..., 2:].clamp(min=1e-3) / batch["image"].shape[-1]
        inside = ((true_2d >= 0) & (true_2d <= 1)).all(-1)
        terms["coarse_2d"] = l1(prediction["coarse_2d"], true_2d, inside * mesh_valid)
    return terms


def total_loss(terms: dict[str, Tensor], config: Config) -> Tensor:
    """Eq. 7."""
    total = (config.weight_joints * terms["joints"]
             + config.weight_keypoints_2d * terms["keypoints_2d"]
             + config.weight_vertices * terms["vertices"])
    return total + config.weight_keypoints_2d * terms.get("coarse_2d", 0.0)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Groups for AdamW: weight decay on matrices and kernels alone.

    Biases, norms, layer scales and position embeddings are spared (our choice). The release
    spares only names with "bn" or "bias" in them, so it decays most of these too.
    """
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        embedding = "pos_emb_" in name or "pos_embed" in name
        spared = name.endswith((".bias", ".gamma")) or parameter.ndim < 2 or embedding
        groups[not spared].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0}]


# --------------------------------------------------------------------------------- inference


def crop_camera(K: np.ndarray, box: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn the camera to the centre of a box and zoom in until the box fills the crop.

    K (3, 3), box (x, y, width, height) in pixels. Returns the crop's K and the rotation in
    X_crop = rotation @ X_camera, both (3, 3). Training crops are made like this (release); in
    an affine crop hands off the camera's axis would look sheared.
    """
    inverse, size_of_box = np.linalg.inv(K), np.diag([*box[2:], 0])[:2] / 2
    center = np.append(box[:2] + box[2:] / 2, 1.0)
    x, y, z = inverse @ center / np.linalg.norm(inverse @ center)
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])
    rotation = np.eye(3) + cross + cross @ cross / (1 + z)  # the shortest, ray -> z axis
    edges = (center + np.concatenate((size_of_box, -size_of_box))) @ (rotation @ inverse).T
    focal = size / 2 / np.abs(edges[:, :2] / edges[:, 2:]).max()
    return np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]), rotation


def transform(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a homography (3, 3) to points (..., 2)."""
    points = points @ homography[:, :2].T + homography[:, 2]
    return points[..., :2] / points[..., 2:]


def warp(image: np.ndarray, crop_to_image: np.ndarray, size: int, samples: int) -> Tensor:
    """Crop (3, size, size) float of an image (H, W, 3), black outside of it.

    Each pixel is the mean of samples x samples bilinear ones, against aliasing.
    """
    centers = (np.arange(size * samples) + 0.5) / samples
    points = transform(crop_to_image, np.stack(np.meshgrid(centers, centers), -1))
    grid = torch.from_numpy(2 * points / (image.shape[1], image.shape[0]) - 1).float()
    pixels = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    return F.avg_pool2d(F.grid_sample(pixels[None], grid[None], align_corners=False), samples)[0]


def fit_translation(points: np.ndarray, pixels: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Translation t (3,) that puts points (N, 3) onto pixels (N, 2) best, by least squares.

    f (x + tx) = (u - cx) (z + tz), and the same for y, are linear in t. Nothing is put nearer
    than 0.1 m, so that predictions that agree on no depth still give a picture.
    """
    rays = (pixels - K[:2, 2]) / np.diag(K)[:2]  # (N, 2)
    right = rays * points[:, 2:] - points[:, :2]  # t_xy - rays t_z = right
    left = np.concatenate((np.tile(np.eye(2), (len(points), 1)), -rays.reshape(-1, 1)), 1)
    depth = np.linalg.lstsq(left, right.reshape(-1), rcond=None)[0][2]
    depth = max(depth, 0.1 - points[:, 2].min())
    return np.append((right + rays * depth).mean(0), depth)


def check_view(image: np.ndarray, box: Sequence[float] | None, side: str,
               K: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The padded box and K that `predict` works with; its ValueErrors and defaults."""
    require(image.ndim == 3 and image.shape[2] == 3 and image.size and image.dtype == np.uint8,
            f"image {image.shape} of {image.dtype}: expected (H, W, 3) uint8 RGB")
    require(side in ("right", "left"), f"side {side!r}: expected right or left")
    height, width = image.shape[:2]
    if K is None:
        focal = math.hypot(width, height)
        K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    K = np.asarray(K, np.float64)
    require(K.shape == (3, 3) and np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0,
            f"K {K.tolist()}: expected the (3, 3) intrinsics in pixels")
    if box is None:
        return np.array([0.0, 0.0, width, height]), K
    box = np.asarray(box, np.float64)
    require(box.shape == (4,) and np.isfinite(box).all() and min(box[2:]) > 0
            and max(box[:2] - (width, height)) < 0 < min(box[:2] + box[2:]),
            f"box {box.tolist()}: expected x,y,width,height on the {width} x {height} picture")
    return np.concatenate((box[:2] - box[2:] / 8, box[2:] * 1.25)), K


@torch.inference_mode()
def predict(model: SimpleHand, image: np.ndarray, keypoint_regressor: Tensor, *,
            box: Sequence[float] | None = None, side: str = "right",
            K: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The inference loop: one hand of a whole picture, in that picture's camera.

    image: (H, W, 3) uint8 RGB. keypoint_regressor: (21, 778), see regress_joints.
    box: x, y, width, height of the hand in pixels, enlarged by a quarter as the release does; by
        default the whole picture, not enlarged.
    side: "right" or "left"; left hands are mirrored for the network and back. You have to know
        which: the network makes a right hand of either, as data sets and detectors say whose.
    K: (3, 3) of the picture; by default its focal length is the picture's diagonal (our choice,
        53 degrees), and the distance is only as good as that.
    Returns float32 arrays vertices (778, 3) and joints (21, 3), metres in the camera's frame;
    root (3,), the origin of the network's root-relative mesh there (subtract it to get that);
    keypoints_2d (21, 2), where the network saw the joints, in pixels of the picture; K (3, 3);
    box (4,), as cropped; and side, int64, 1 right, 0 left. Raises ValueError for bad input.
    """
    require(not model.training, "the model is in training mode: call model.eval() first")
    box, K = check_view(image, box, side, K)
    size = model.config.image_size
    crop_K, rotation = crop_camera(K, box, size)
    if side == "left":
        rotation = np.diag([-1.0, 1.0, 1.0]) @ rotation  # the mirror becomes part of the camera
    crop_to_image = K @ rotation.T @ np.linalg.inv(crop_K)
    crop = warp(image, crop_to_image, size, min(math.ceil(max(box[2:]) / size), 8))

    hand = {name: value.double().cpu() for name, value in model(crop[None].to(model.mean)).items()}
    require(all(value.isfinite().all() for value in hand.values()),
            "the network's output is not finite: its weights are damaged, or training diverged")
    joints = regress_joints(hand["vertices"], keypoint_regressor.double().cpu())[0].numpy()
    vertices, pixels = hand["vertices"][0].numpy(), hand["keypoints_2d"][0].numpy() * size
    root = fit_translation(joints, pixels, crop_K)
    arrays = {
        "vertices": (vertices + root) @ rotation,  # rotation^T x, of row vectors
        "joints": (joints + root) @ rotation, "root": root @ rotation,
        "keypoints_2d": transform(crop_to_image, pixels), "K": K, "box": box,
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return arrays | {"side": np.array(int(side == "right"))}


# ------------------------------------------------------------------------------- checkpoints

APPLE_NAMES = (  # patterns of Apple's FastViT parameter names -> timm's, which are ours
    (r"^patch_embed\.", "stem."),
    # stages and the downsampling before them are numbered in one row there
    (r"^network\.0\.", "stages.0.blocks."), (r"^network\.1\.", "stages.1.downsample."),
    (r"^network\.2\.", "stages.1.blocks."), (r"^network\.3\.", "stages.2.downsample."),
    (r"^network\.4\.", "stages.2.blocks."), (r"^network\.5\.", "stages.3.downsample."),
    (r"^network\.6\.pe\.", "stages.3.pos_emb.pos_enc."), (r"^network\.7\.", "stages.3.blocks."),
    (r"^conv_exp\.", "final_conv."), (r"^head\.(weight|bias)$", r"head.fc.\1"),
    (r"\.rbr_conv\.", ".conv_kxk."), (r"\.rbr_scale\.", ".conv_scale."),
    (r"\.rbr_skip\.", ".identity."), (r"\.lkb_origin\.", ".large_conv."),
    (r"\.convffn\.", ".mlp."), (r"\.(layer_scale(_[12])?)$", r".\1.gamma"),
    (r"\.se\.reduce\.", ".se.fc1."), (r"\.se\.expand\.", ".se.fc2."),
    # and two more in its inference weights
    (r"^network\.6\.reparam_conv\.", "stages.3.pos_emb.reparam_conv."),
    (r"\.lkb_reparam\.", ".reparam_conv."),
)


CLASSIFIERS = (  # of FastViT; HRNet; Hiera, by timm and by its authors
    r"^(backbone\.)?(head\.fc|classifier|head\.norm|head\.projection|norm)\.(weight|bias)$")


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


def load_checkpoint(source: str | PathLike | Mapping, *, strict: bool = True) -> SimpleHand:
    """The model in a checkpoint, in evaluation mode on the CPU.

    source: a file or its content: train.py's {"model", "config", ...}, or the release's
    {"state_dict": ...}, which becomes a Config(official=True).
    Raises FileNotFoundError, or ValueError for anything else and for weights that do not fit;
    strict=False prints what does not fit and loads the rest.
    """
    state, config = read_checkpoint(source)
    require(any(name.startswith("mesh_head.") for name in state),
            "no SimpleHand checkpoint: expected train.py's or the release's "
            "(load_backbone takes the weights of FastViT alone)")
    return from_checkpoint(SimpleHand, Config, {"official": True} if config is None else config,
                           state, ignored=CLASSIFIERS, strict=strict)


def load_backbone(backbone: FastViT | HRNet | Hiera, source: str | PathLike | Mapping, *,
                  strict: bool = True) -> None:
    """Load a backbone's ImageNet weights, by timm's names or its authors'.

    FastViT's may be of training or inference; for the latter the backbone is reparameterised.
    Raises like load_checkpoint.
    """
    state, _ = read_checkpoint(source)
    if not isinstance(backbone, FastViT):
        return load_weights(backbone, state, ignored=CLASSIFIERS, strict=strict)
    for pattern, replacement in APPLE_NAMES:
        state = {re.sub(pattern, replacement, name): value for name, value in state.items()}
    if any(".reparam_conv." in name for name in state):
        backbone.reparameterize()
    load_weights(backbone, state, ignored=CLASSIFIERS, strict=strict)


# --------------------------------------------------------------------------------- ablations

LAYER, NAIVE = {"blocks": (1,)}, {"tokens": (21,), "dims": (256,), "mixer": "identity"}
ABLATIONS: dict[str, dict[str, tuple[dict, tuple[float, float]]]] = {
    # Rows of the paper's tables: what is different from the paper's model, PA-MPJPE and PA-MPVPE
    # in mm on FreiHAND with Hiera-Tiny. Sizes are the paper's; `ablated` brings them to a config.
    "table4": {  # the baseline's regressor is that of Sec. 3.2: one layer, identity mixer
        "simple baseline": ({"sampling": "global", **NAIVE, **LAYER}, (6.9, 7.2)),
        "+ mesh regressor": ({"sampling": "global"}, (6.5, 6.8)),
        "+ token generator": ({**NAIVE, **LAYER}, (6.6, 7.1)),
        "+ both": ({}, (6.2, 6.5)),
    },
    "table5": {
        "global, 1 x 1": ({"sampling": "global"}, (6.5, 6.8)),
        "grid, 7 x 7": ({"sampling": "grid", "upsample": (1,)}, (6.3, 6.6)),
        "point, 7 x 7": ({"upsample": (1,)}, (6.3, 6.6)),
        "point, 14 x 14": ({"upsample": (2,)}, (6.3, 6.6)),
        "point, 28 x 28": ({}, (6.2, 6.5)),
        "point, 28 x 28, enhanced": ({"refine": 1}, (6.2, 6.5)),
        "coarse mesh, 28 x 28": ({"sampling": "coarse_mesh"}, (6.2, 6.5)),
    },
    "table6": {  # widths of other than three layers are our choice: each half of the one before
        "1 layer: 21": ({"tokens": (21,), "dims": (256,), **LAYER}, (6.6, 7.1)),
        **{f"{len(tokens)} layers: {', '.join(map(str, tokens))}": ({
            "tokens": tokens, "dims": (256, 128, 64, 32)[:len(tokens)],
            "blocks": (1, 1, 1, 1)[:len(tokens)]}, scores) for tokens, scores in {
                (21, 256): (6.3, 6.6), (21, 384): (6.3, 6.6), (21, 256, 384): (6.2, 6.5),
                (21, 84, 336): (6.2, 6.5), (21, 128, 256, 384): (6.2, 6.5),
                (21, 63, 126, 252): (6.3, 6.6)}.items()},
    },
    "table7": {
        "dimensions 64, 32, 16": ({"dims": (64, 32, 16)}, (6.5, 6.9)),
        "dimensions 128, 64, 32": ({"dims": (128, 64, 32)}, (6.3, 6.6)),
        "dimensions 256, 128, 64; blocks 1, 1, 1": ({}, (6.2, 6.5)),
        "dimensions 512, 256, 128": ({"dims": (512, 256, 128)}, (6.2, 6.5)),  # printed: 12
        "dimensions 1024, 512, 256": ({"dims": (1024, 512, 256)}, (6.4, 6.7)),
        "blocks 2, 2, 2": ({"blocks": (2, 2, 2)}, (6.2, 6.6)),
        "blocks 3, 3, 3": ({"blocks": (3, 3, 3)}, (6.3, 6.6)),
    },
    "table8": {  # the last row is ours: the paper names no other mixer
        "ours": ({}, (6.2, 6.5)),
        "identity mixer": ({"mixer": "identity"}, (6.3, 6.6)),
        "without position embedding": ({"position_embedding": False}, (6.3, 6.6)),
        "separable convolution mixer": ({"mixer": "convolution"}, (math.nan, math.nan)),
    },
}


def ablated(config: Config, changes: dict) -> Config:
    """The config with a row's changes, at the config's own scale.

    Dimensions keep their ratio to the first of the paper's, 256; the tokens that enter are the
    points sampled: with "grid" as many as X_b has cells.
    """
    values = changes | {"dims": tuple(width * config.dims[0] // 256 for width in changes["dims"])
                        } if "dims" in changes else dict(changes)
    first = {"grid": (config.image_size // 32) ** 2,
             "coarse_mesh": 21 + len(range(0, config.num_vertices, COARSE))}
    if changes.get("sampling") in first:
        values["tokens"] = (first[changes["sampling"]], *config.tokens[1:])
    return replace(config, **values)


Scores = Mapping[str, Mapping[int, tuple[float, float]]]  # row -> seed -> PA-MPJPE, PA-MPVPE in mm


def ablation_table(name: str, found: Scores, config: Config, command: str) -> str:
    """A table in Markdown, ours beside the paper's; then every ordering of the paper's rows.

    found may lack rows or seeds. An ordering is judged by PA-MPJPE over the seeds both rows have.
    """
    rows, cells = ABLATIONS[name], config.image_size // 32
    lines = [f"# SimpleHand, {name.replace('table', 'Table ')}", "", f"`{command}`", "",
             f"Ours: {config.backbone}, {config.steps:,} steps of {config.batch_size} "
             f"images of {config.image_size} px, so X_b has {cells} x {cells} "
             f"cells, where the paper's has 7 x 7; dimensions times {config.dims[0] / 256:g}. "
             "The paper's: FreiHAND, Hiera-Tiny. Errors in mm; mean ± standard deviation over "
             "seeds.", "",
             "| | paper PA-MPJPE | paper PA-MPVPE | our PA-MPJPE | our PA-MPVPE | seeds |",
             "|---|---|---|---|---|---|"]
    for row, (_, paper) in rows.items():
        ours = np.array(list(found.get(row, {}).values())).reshape(-1, 2)
        cells = [f"{value:.1f}" if value == value else "-" for value in paper]
        cells += [spread(column) for column in ours.T] + [str(len(ours))]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += ["", "| the paper's ordering of PA-MPJPE | paper's difference | ours | holds |",
              "|---|---|---|---|"]
    for worse, (_, (high, _)) in rows.items():
        for better, (_, (low, _)) in rows.items():
            seeds = found.get(worse, {}).keys() & found.get(better, {}).keys()
            if high > low and seeds:
                differences = np.array([found[worse][seed][0] - found[better][seed][0]
                                        for seed in seeds])
                verdict = "yes" if differences.mean() > 0 else "**no**"
                lines.append(
                    f"| {better} < {worse} | {high - low:.1f} | {spread(differences)} | {verdict}, "
                    f"in {(differences > 0).sum()} of {len(seeds)} seeds |")
    return "\n".join(lines) + "\n"


def spread(values: np.ndarray) -> str:
    """Mean, and standard deviation of the sample if there are several."""
    if len(values) < 2:
        return f"{values[0]:.2f}" if len(values) else "-"
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


# ----------------------------------------------------------------------- export and benchmark


def export(model: SimpleHand, path: str | PathLike) -> float:
    """Write the fused model for programs without this file; how far its answers are from ours.

    FILE.onnx is ONNX, anything else `torch.export.load(FILE).module()`. Either takes uint8 RGB
    (B, 3, S, S), any B, and returns vertices (B, 778, 3) and keypoints_2d (B, 21, 2) as `forward`
    does. Returns the largest absolute difference for a batch of 3, NaN for ONNX without
    onnxruntime. Raises ValueError where ONNX's exporter is not installed.
    """
    model, size = model.fuse(), model.config.image_size
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images)
        if Path(path).suffix == ".onnx":
            found = export_onnx(model, images, path)
        else:
            program = torch.export.export(
                model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
            torch.export.save(program, path)
            found = torch.export.load(path).module()(images)
    return max(((found[name] - value).abs().max().item() for name, value in expected.items()
                if name in found), default=math.nan)


def export_onnx(model: SimpleHand, images: Tensor, path: str | PathLike) -> dict[str, Tensor]:
    """Write FILE.onnx; what onnxruntime, if installed, makes of the images with it."""
    try:
        import onnxscript  # noqa: F401, what torch.onnx writes with
    except ImportError:
        raise ValueError("ONNX: expected its exporter, pip install onnx onnxscript") from None
    names = list(model(images))
    torch.onnx.export(model, (images[:2],), str(path), input_names=["images"], output_names=names,
                      dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True,
                      external_data=False, verbose=False)
    try:
        import onnxruntime
    except ImportError:
        return {}
    session = onnxruntime.InferenceSession(str(path))
    arrays = session.run(names, {"images": images.numpy()})
    return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}


def variants(model: SimpleHand, images: Tensor) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """Ways to run the model on these images, by name; the plain model is the first."""
    def call(model: Callable) -> Callable:
        return lambda: model(images)

    fused, sampled = model.fuse(), samples_cells(model.config)
    ways = {"plain": call(model), "fused": call(fused)}
    last = images.contiguous(memory_format=torch.channels_last)
    best, half = fused.fuse(sampled=sampled), fused.fuse(sampled=sampled, bf16=True)
    if sampled:
        ways["fused, sampled cells"] = call(fused.fuse(sampled=True))
    best.backbone.to(memory_format=torch.channels_last)
    ways["the same, channels last"] = lambda: best(last)
    ways["the same, bf16"] = lambda: half(last)
    ways["fused, torch.compile"] = call(torch.compile(fused.fuse(), dynamic=False))
    if images.is_cuda:
        ways["fused, bf16, CUDA graph"] = cuda_graph(fused.fuse(bf16=True), last)
    return ways


def cuda_graph(model: SimpleHand, images: Tensor) -> Callable[[], dict[str, Tensor]]:
    """The model recorded once on these images; calls replay it, without a launch per kernel."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries choose and allocate before the recording
        for _ in range(3):
            model(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(images)

    def replay() -> dict[str, Tensor]:
        graph.replay()
        return output

    return replay


@torch.inference_mode()
def medians(ways: Mapping[str, Callable], seconds: float, rounds: int = 3) -> dict[str, float]:
    """Median times in ms of functions that take turns, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["plain"]) < rounds:
        for name, function in ways.items():
            wait()
            start = time.perf_counter()
            function()
            wait()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(spent) for name, spent in times.items()}


def benchmark(config: Config, seconds: float = 20.0, batches: Sequence[int] = (1, 32)) -> None:
    """Print milliseconds, images per second, ratio to the plain model and difference from it."""
    torch.manual_seed(0)
    model = SimpleHand(config).eval()
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for batch in batches:
            shape = (batch, 3, config.image_size, config.image_size)
            images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
            print(f"\n{device}, batch {batch}, {torch.get_num_threads()} threads, float32 but "
                  f"where said, medians of interleaved runs\n{'':28}{'ms':>10}{'images/s':>11}"
                  f"{'ratio':>8}   largest difference, mm", flush=True)
            benchmark_batch(model.to(device), images, seconds)


@torch.inference_mode()
def benchmark_batch(model: SimpleHand, images: Tensor, seconds: float) -> None:
    """The lines of one device and batch size."""
    ways, outputs = variants(model, images), {}
    for name, function in list(ways.items()):
        try:
            outputs[name] = function()["vertices"].clone()
        except Exception as error:  # torch.compile, say, without a compiler
            print(f"  {name:26}  not possible here: {str(error).splitlines()[0][:60]}")
            del ways[name]
    times = medians(ways, seconds)
    for name, spent in times.items():
        difference = 1e3 * (outputs[name] - outputs["plain"]).abs().max().item()
        print(f"  {name:26}{spent:>10.2f}{1e3 * len(images) / spent:>11.1f}"
              f"{spent / times['plain']:>8.2f}   {difference:.1e}", flush=True)


# ------------------------------------------------------------------------- backbone: FastViT
# Vasu, Gabriel, Zhu, Tuzel, Ranjan: "FastViT: A Fast Hybrid Vision Transformer using Structural
# Reparameterization", ICCV 2023, under timm's parameter names.


class Collapsible(nn.Module):
    """Branches, computed in `branched`, that are one convolution in disguise; see `collapse`."""

    def __init__(self, channels_in: int, channels_out: int, size: int, stride: int = 1,
                 groups: int = 1) -> None:
        super().__init__()
        self.shape = (channels_in, channels_out, size, stride, size // 2, 1, groups)
        self.reparam_conv: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.branched(x) if self.reparam_conv is None else self.reparam_conv(x)

    @torch.no_grad()
    def collapse(self) -> None:
        """Replace the branches by their convolution.

        In evaluation mode all of them are linear and local, batch norms included, so the kernel
        of their sum is its response to single ones, and the bias its response to zeros.
        """
        if self.reparam_conv is not None:
            return
        channels_in, _, size, stride, middle, _, groups = self.shape
        exact = copy.deepcopy(self).double().eval()
        like, width = next(self.parameters()), channels_in // groups
        ones = torch.eye(width * size**2, dtype=torch.float64, device=like.device)
        ones = ones.view(-1, width, size, size)  # one 1 each, at every place of the kernel
        start = middle * (stride - 1)  # where the window of output pixel (middle, middle) starts
        ones = F.pad(ones, (start, 0, start, 0)).repeat(1, groups, 1, 1)
        bias = exact.branched(torch.zeros_like(ones[:1]))[0, :, middle, middle]
        kernel = (exact.branched(ones)[:, :, middle, middle] - bias).T
        conv = nn.Conv2d(*self.shape, device=like.device, dtype=like.dtype)
        conv.weight.copy_(kernel.reshape(conv.weight.shape))
        conv.bias.copy_(bias)
        for name, _ in list(self.named_children()):
            if name not in ("se", "act"):  # these come after the sum
                delattr(self, name)
        self.reparam_conv = conv


class ConvNorm(Collapsible):
    """Convolution without bias, then batch norm."""

    def __init__(self, channels_in: int, channels_out: int, size: int, stride: int = 1,
                 groups: int = 1) -> None:
        super().__init__(channels_in, channels_out, size, stride, groups)
        # With channels last, torch 2.13 on CPUs crashes in the backward pass of a strided 1 x 1
        # convolution that is not depthwise: slicing takes the same stride.
        self.step = stride if size == groups == 1 else 1
        self.conv = nn.Conv2d(channels_in, channels_out, size, stride // self.step, size // 2,
                              groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)

    def branched(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x[:, :, :: self.step, :: self.step]))


class MobileOne(Collapsible):
    """k x k, 1 x 1 and identity branches, each with batch norm; then excitation, activation."""

    def __init__(self, channels_in: int, channels_out: int, size: int, stride: int = 1,
                 groups: int = 1, convolve: bool = True, excite: bool = False,
                 activate: bool = True) -> None:
        shape = (channels_in, channels_out, size, stride, groups)
        super().__init__(*shape)
        same = channels_in == channels_out and stride == 1
        self.identity = nn.BatchNorm2d(channels_out) if same else None
        self.conv_kxk = nn.Sequential(ConvNorm(*shape)) if convolve else None
        self.conv_scale = None if size == 1 or not convolve else ConvNorm(
            channels_in, channels_out, 1, stride, groups)
        self.se = SqueezeExcite(channels_out) if excite else nn.Identity()
        self.act = nn.GELU() if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.se(super().forward(x)))

    def branched(self, x: Tensor) -> Tensor:
        branches = (self.identity, self.conv_kxk, self.conv_scale)
        return sum(branch(x) for branch in branches if branch is not None)


class SqueezeExcite(nn.Module):
    """Scale channels by a gate computed from their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class LargeKernelConv(Collapsible):
    """Large kernel plus 3 x 3, stride 2. No activation after it: the authors' code computes one and
    discards the result, so their weights never saw it."""

    def __init__(self, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__(channels_in, channels_out, size, 2, channels_in)
        self.large_conv = ConvNorm(channels_in, channels_out, size, 2, channels_in)
        self.small_conv = ConvNorm(channels_in, channels_out, 3, 2, channels_in)

    def branched(self, x: Tensor) -> Tensor:
        return self.large_conv(x) + self.small_conv(x)


class PositionConv(Collapsible):
    """Conditional position encoding before attention."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__(channels, channels, size, 1, channels)
        self.pos_enc = nn.Conv2d(*self.shape)

    def branched(self, x: Tensor) -> Tensor:
        return x + self.pos_enc(x)


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma

    def fold_into(self, layer: nn.Linear | nn.Conv2d) -> nn.Identity:
        """Scale the layer's output channels instead; returns what remains of this one."""
        layer.weight.mul_(self.gamma.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.mul_(self.gamma.flatten())
        return nn.Identity()


class RepMixer(Collapsible):
    """Token mixing by depthwise convolution."""

    def __init__(self, channels: int, layer_scale: float) -> None:
        shape = (channels, channels, 3, 1, channels)
        super().__init__(*shape)
        self.norm = MobileOne(*shape, convolve=False, activate=False)
        self.mixer = MobileOne(*shape, activate=False)
        self.layer_scale = LayerScale(channels, layer_scale)

    def branched(self, x: Tensor) -> Tensor:
        return x + self.layer_scale(self.mixer(x) - self.norm(x))


def conv_mlp(channels: int, config: Config) -> nn.Sequential:
    """Depthwise large kernel, then pointwise linear, GELU, linear."""
    hidden = int(channels * config.mlp_ratio)
    return nn.Sequential(OrderedDict(
        conv=ConvNorm(channels, channels, config.large_kernel, 1, channels),
        fc1=nn.Conv2d(channels, hidden, 1), act=nn.GELU(), fc2=nn.Conv2d(hidden, channels, 1)))


class RepMixerBlock(nn.Module):
    """MetaFormer block with RepMixer, (B, C, H, W) -> the same."""

    def __init__(self, channels: int, config: Config, drop_path: float) -> None:
        super().__init__()
        self.token_mixer = RepMixer(channels, config.layer_scale)
        self.mlp = conv_mlp(channels, config)
        self.layer_scale = LayerScale(channels, config.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.drop_path(self.layer_scale(self.mlp(x)))

    def fold(self) -> None:
        """Fold the scale into the layer before it, in place, if not done."""
        if isinstance(self.layer_scale, nn.Identity):
            return
        self.layer_scale = self.layer_scale.fold_into(self.mlp.fc2)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the cells of a map, heads 32 wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = self.qkv(x.flatten(2).transpose(1, 2))  # (B, HW, 3C)
        x = x.unflatten(2, (3, -1, 32)).permute(2, 0, 3, 1, 4)  # (3, B, heads, HW, 32)
        x = F.scaled_dot_product_attention(*x)  # (B, heads, HW, 32)
        x = self.proj(x.transpose(1, 2).flatten(2))  # (B, HW, C)
        return x.transpose(1, 2).unflatten(2, size)  # (B, C, H, W)


class AttentionBlock(nn.Module):
    """MetaFormer block with self-attention, (B, C, H, W) -> the same."""

    def __init__(self, channels: int, config: Config, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.token_mixer = SelfAttention(channels)
        self.layer_scale_1 = LayerScale(channels, config.layer_scale)
        self.mlp = conv_mlp(channels, config)
        self.layer_scale_2 = LayerScale(channels, config.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1(self.token_mixer(self.norm(x))))
        return x + self.drop_path(self.layer_scale_2(self.mlp(x)))

    def fold(self) -> None:
        """Fold the norm into the layer after it and the scales into those before, if not done."""
        if isinstance(self.norm, nn.Identity):
            return
        qkv, scale = self.token_mixer.qkv, self.norm.weight / (
            self.norm.running_var + self.norm.eps).sqrt()
        qkv.bias = nn.Parameter(qkv.weight @ (self.norm.bias - self.norm.running_mean * scale))
        qkv.weight.mul_(scale)
        self.norm = nn.Identity()
        self.layer_scale_1 = self.layer_scale_1.fold_into(self.token_mixer.proj)
        self.layer_scale_2 = self.layer_scale_2.fold_into(self.mlp.fc2)


def downsample(channels_in: int, channels_out: int, size: int) -> nn.Sequential:
    """Half the resolution: depthwise large kernel, then pointwise."""
    return nn.Sequential(OrderedDict(proj=nn.Sequential(
        LargeKernelConv(channels_in, channels_out, size),
        MobileOne(channels_out, channels_out, 1))))


class Stage(nn.Module):
    """Downsampling (but in the first stage), position encoding before attention, blocks."""

    def __init__(self, index: int, config: Config, drop_paths: list[float]) -> None:
        super().__init__()
        before, channels = (0, *config.embed_dims)[index : index + 2]
        attention = config.attention and index == 3
        block = AttentionBlock if attention else RepMixerBlock
        size = config.large_kernel
        self.downsample = downsample(before, channels, size) if index else nn.Identity()
        self.pos_emb = PositionConv(channels, size) if attention else nn.Identity()
        self.blocks = nn.Sequential(*[block(channels, config, rate) for rate in drop_paths])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.pos_emb(self.downsample(x)))


class FastViT(nn.Module):
    """Images (B, 3, S, S) -> the last feature map X_b, (B, feature_width, S/32, S/32)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, last = config.embed_dims[0], config.embed_dims[-1]
        self.stem = nn.Sequential(  # S/4
            MobileOne(3, first, 3, 2), MobileOne(first, first, 3, 2, first),
            MobileOne(first, first, 1))
        depth = sum(config.depths)
        rates = iter(config.backbone_drop_path * n / max(depth - 1, 1) for n in range(depth))
        self.stages = nn.Sequential(*[  # S/4, S/8, S/16, S/32
            Stage(index, config, [next(rates) for _ in range(blocks)])
            for index, blocks in enumerate(config.depths)])
        self.final_conv = MobileOne(last, config.feature_width, 3, 1, last, excite=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.final_conv(self.stages(self.stem(x)))

    def reparameterize(self) -> None:
        """Collapse branches in place, into the layout of timm's and Apple's inference weights."""
        waiting = [self]
        while waiting:
            for child in waiting.pop().children():
                if isinstance(child, (MobileOne, LargeKernelConv, PositionConv, RepMixer)):
                    child.collapse()
                else:
                    waiting.append(child)

    @torch.no_grad()
    def fuse(self) -> None:
        """Reparameterise, then fold in place what that layout leaves: norms, layer scales."""
        self.reparameterize()
        for module in list(self.modules()):
            if isinstance(module, ConvNorm):
                module.collapse()
            if isinstance(module, RepMixerBlock | AttentionBlock):
                module.fold()


# --------------------------------------------------------------------------- backbone: HRNet
# Wang et al.: "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020,
# in the form for classification, under its authors' parameter names, which are timm's too.


def conv_norm(channels_in: int, channels_out: int, size: int, stride: int = 1,
              activate: bool = True, bias: bool = False) -> nn.Sequential:
    """Convolution, batch norm and, if wanted, ReLU."""
    conv = nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), *[nn.ReLU()] * activate)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(channels, channels, 3, activate=False)
        self.conv2, self.bn2 = conv_norm(channels, channels, 3, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, the last to four times the width, and a skip."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(channels_in, width, 1, activate=False)
        self.conv2, self.bn2 = conv_norm(width, width, 3, activate=False)
        self.conv3, self.bn3 = conv_norm(width, 4 * width, 1, activate=False)
        self.downsample = (conv_norm(channels_in, 4 * width, 1, activate=False)
                           if channels_in != 4 * width else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.downsample(x) + self.bn3(self.conv3(y)))


def resize(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """From one branch's channels and resolution to another's; each is half of the one before."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(*conv_norm(widths[source], widths[target], 1, activate=False),
                             nn.Upsample(scale_factor=2 ** (source - target)))
    last = target - source - 1
    return nn.Sequential(*[
        conv_norm(widths[source], widths[source] if step < last else widths[target], 3, 2,
                  activate=step < last) for step in range(last + 1)])


class Exchange(nn.Module):
    """Four blocks on every branch; then each branch becomes the sum of all, resized."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        branches = range(len(widths))
        self.branches = nn.ModuleList(
            nn.Sequential(*[BasicBlock(width) for _ in range(4)]) for width in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(resize(widths, source, target) for source in branches)
            for target in branches)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [F.relu(sum(layer(x) for layer, x in zip(layers, maps, strict=True)))
                for layers in self.fuse_layers]


def transition(before: Sequence[int], widths: Sequence[int]) -> nn.ModuleList:
    """New widths for the branches that are there, and one more branch of half the resolution."""
    same = [nn.Identity() if old == new else conv_norm(old, new, 3)
            for old, new in zip(before, widths, strict=False)]
    return nn.ModuleList([*same, nn.Sequential(conv_norm(before[-1], widths[-1], 3, 2))])


class HRNet(nn.Module):
    """Images (B, 3, S, S) -> two maps: S/8, and the last one of the classifier, S/32.

    The map at S/8 is the second branch, (B, embed_dims[1], S/8, S/8); the other, (B,
    feature_width, S/32, S/32), is what ImageNet's classes were averaged from and what the
    keypoints are here (our reading: the paper says neither, and the release has no HRNet).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, (bottlenecks, *modules) = config.embed_dims, config.depths
        self.conv1, self.bn1 = conv_norm(3, 64, 3, 2, activate=False)  # S/2
        self.conv2, self.bn2 = conv_norm(64, 64, 3, 2, activate=False)  # S/4
        self.layer1 = nn.Sequential(*[
            Bottleneck(64 if index == 0 else 256, 64) for index in range(bottlenecks)])
        before: Sequence[int] = (256,)
        for number, count in enumerate(modules, 1):  # stages 2, 3, 4 with as many branches
            branches = widths[:number + 1]
            setattr(self, f"transition{number}", transition(before, branches))
            setattr(self, f"stage{number + 1}",
                    nn.Sequential(*[Exchange(branches) for _ in range(count)]))
            before = branches
        narrow = [config.feature_width // 64 * 2**index for index in range(4)]  # 32, ..., 256
        self.incre_modules = nn.ModuleList(
            nn.Sequential(Bottleneck(*pair)) for pair in zip(widths, narrow, strict=True))
        self.downsamp_modules = nn.ModuleList(
            conv_norm(4 * width, 8 * width, 3, 2, bias=True) for width in narrow[:3])
        self.final_layer = conv_norm(4 * narrow[3], config.feature_width, 1, bias=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))
        maps = [self.layer1(F.relu(self.bn2(self.conv2(x))))]
        for number in (1, 2, 3):
            layers = getattr(self, f"transition{number}")  # the new branch comes from the last
            maps = [layer(maps[min(index, len(maps) - 1)]) for index, layer in enumerate(layers)]
            maps = getattr(self, f"stage{number + 1}")(maps)
        widened = [layer(x) for layer, x in zip(self.incre_modules, maps, strict=True)]
        last = widened[0]
        for layer, wide in zip(self.downsamp_modules, widened[1:], strict=True):
            last = wide + layer(last)
        return maps[1], self.final_layer(last)

    def fuse(self) -> None:
        """Fold the norms into their convolutions, in place."""
        fold_norms(self)


# --------------------------------------------------------------------------- backbone: Hiera
# Ryali et al.: "Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles", ICML
# 2023, under timm's parameter names. Tokens stay in their picture, (B, H, W, C): the authors sort
# them so that mask units are contiguous, which masked pretraining needs and inference does not.


def pool(x: Tensor) -> Tensor:
    """Maximum of 2 x 2 tokens, (B, H, W, C) -> (B, H/2, W/2, C)."""
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).amax((2, 4))


class UnitAttention(nn.Module):
    """Self-attention inside mask units of unit x unit tokens, 0: among all; queries may pool."""

    def __init__(self, width_in: int, width: int, heads: int, unit: int, pools: bool) -> None:
        super().__init__()
        self.heads, self.unit, self.pools = heads, unit, pools
        self.qkv = nn.Linear(width_in, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C) -> (B, H', W', C')
        unit = self.unit or x.shape[1]
        units = (x.shape[0], x.shape[1] // unit, x.shape[2] // unit)
        x = x.unflatten(2, (-1, unit)).unflatten(1, (-1, unit)).transpose(2, 3).flatten(0, 2)
        q, k, v = self.qkv(x).chunk(3, -1)  # (B units, unit, unit, C')
        q = pool(q) if self.pools else q
        side = q.shape[1]
        q, k, v = (y.flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for y in (q, k, v))  # (B units, heads, tokens, C' / heads)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.proj(x).unflatten(1, (side, side)).unflatten(0, units)
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class HieraBlock(nn.Module):
    """Transformer block, (B, H, W, C) -> the same, or half the resolution and wider."""

    def __init__(self, width_in: int, width: int, heads: int, unit: int, config: Config,
                 drop_path: float) -> None:
        super().__init__()
        pools = width_in != width
        self.norm1 = nn.LayerNorm(width_in, eps=1e-6)
        self.proj = nn.Linear(width_in, width) if pools else None
        self.attn = UnitAttention(width_in, width, heads, unit, pools)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = mlp(width, int(width * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x if self.proj is None else pool(self.proj(y))
        x = x + self.drop_path(self.attn(y))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Hiera(nn.Module):
    """Images (B, 3, S, S) -> the last feature map X_b, (B, embed_dims[3], S/32, S/32).

    S is the configured one, which the position embedding belongs to. The norm before ImageNet's
    classifier is not applied, as in timm's feature maps.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, self.side = config.embed_dims, config.image_size // 4
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, widths[0], 7, 4, 3)))
        self.pos_embed = nn.Parameter(torch.empty(1, self.side**2, widths[0]))
        depth, blocks, before, unit = sum(config.depths), [], widths[0], 8
        for stage, (width, count) in enumerate(zip(widths, config.depths, strict=True)):
            for index in range(count):
                rate = config.backbone_drop_path * len(blocks) / max(depth - 1, 1)
                blocks.append(HieraBlock(before, width, width // widths[0], unit, config, rate))
                before = width
                if index == 0:  # a stage's first block pools, and still sees the stage's before
                    unit = (8, 4, 0, 0)[stage]
        self.blocks = nn.Sequential(*blocks)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).permute(0, 2, 3, 1)  # (B, S/4, S/4, C)
        require(x.shape[1] == x.shape[2] == self.side,
                f"images {4 * x.shape[1]} px high: expected {4 * self.side} x {4 * self.side}, "
                "the size of Hiera's position embedding")
        x = x + self.pos_embed.unflatten(1, (self.side, self.side))
        return self.blocks(x).permute(0, 3, 1, 2)

    def fuse(self) -> None:
        """Nothing to fold: its norms depend on the input."""


# ------------------------------------------------------------------------------ command line

RELEASED = {  # parameters: the backbone's by timm, the others' in the release
    "backbone": 42_851_004, "backbone, reparameterised": 42_767_632, "keypoints_2d_head": 51_114,
    "deconv": 4_981_248, "decoder layer 1": 862_776, "decoder layer 2": 281_232,
    "decoder layer 3": 363_434, "pred_final": 195, "mesh regressor": 1_507_637,
    "all but the backbone": 6_539_999, "total": 49_391_003,
}
REMARK = """\
Table 2 of the paper gives 1.9 M parameters for all but the backbone, next to HRNet's scores. HRNet
needs no deconvolution, and the release has no HRNet: nothing in it adds up to 1.9 M. With FastViT
it is 6.5 M: 5.0 M for the deconvolution, 1.5 M for the mesh regressor, 0.05 M for the 2D head.
With HRNet as we read the paper it is 1.56 M."""


def count_parameters(config: Config) -> dict[str, int]:
    """Parameters of each part of the model, without allocating them."""
    with torch.device("meta"):
        model = SimpleHand(config)
    counts = dict.fromkeys(RELEASED, 0)
    for name, parameter in model.named_parameters():
        part = re.sub(r"^[a-z_]+_(\d)$", r"decoder layer \1",
                      name.removeprefix("mesh_head.").split(".")[0])
        counts[part] = counts.get(part, 0) + parameter.numel()
    counts["total"] = sum(counts.values())
    counts["all but the backbone"] = counts["total"] - counts["backbone"]
    counts["mesh regressor"] = sum(
        count for part, count in counts.items() if part.startswith(("decoder", "pred_final")))
    if isinstance(model.backbone, FastViT):
        model.backbone.reparameterize()
        counts["backbone, reparameterised"] = sum(p.numel() for p in model.backbone.parameters())
    return counts


def print_summary(as_json: bool) -> None:
    """Every preset's parameters, part by part, beside the released model's if it is that one."""
    counts = {name: count_parameters(config) for name, config in PRESETS.items()}
    released = {name: RELEASED if name in ("paper", "single_gpu", "h200") else {}
                for name in PRESETS}
    if as_json:
        print(json.dumps({"parameters": counts, "released": released, "remark": REMARK}, indent=1))
        return
    for name, parts in counts.items():
        print(f"{name:<27}{'parameters':>14}{'released':>14}")
        for part, number in parts.items():
            reference = f"{released[name][part]:,}" if released[name] else "-"
            print(f"  {part:<25}{number:>14,}{reference:>14}")
    print(f"\n{REMARK}")


def reconstruct(arguments: argparse.Namespace) -> None:
    """Predict the hand in a picture; write overlay, arrays and mesh."""
    import bodymodels
    import data
    from sets import pictures

    box = pictures.parse_box(arguments.box)
    pictures.check_folder(arguments.out)
    hand = bodymodels.load_model(arguments.hand)
    faces = hand.faces.numpy()[:, ::-1 if arguments.left else 1]  # mirrored, they face inwards
    image = data.read_image(arguments.image)
    model = load_checkpoint(arguments.checkpoint).fuse()
    found = predict(model, image, hand.keypoint_regressor, box=box,
                    side="left" if arguments.left else "right")
    print(pictures.write_result(arguments.image, arguments.out, image, found, faces,
                                found["root"]))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 after one line about bad input."""
    parser = argparse.ArgumentParser(
        description="SimpleHand: the mesh of the hand in a picture.",
        epilog="Writes the mesh over the picture (_overlay.png), the mesh (.obj, .ply, .glb: "
               "metres, root-relative, y up) and the arrays of simplehand.predict (.npz).")
    add = parser.add_argument
    add("image", nargs="?", help="a picture with one hand")
    add("--checkpoint", default=Path(__file__).with_name("assets") / "simplehand_cpu.pt",
        help="train.py's or the authors' (default: the small one that comes with this file)")
    add("--box", help="x,y,w,h of the hand in pixels (default: the whole picture)")
    add("--left", action="store_true",
        help="it is a left hand: mirrored for the network, the mesh mirrored back")
    add("--hand", default="hand_right", metavar="FILE",
        help="MANO_RIGHT.pkl, for checkpoints trained on MANO (default: the free hand)")
    add("--out", type=Path, default=Path("output"), help="folder to write to (default: output)")
    add("--summary", action="store_true", help="print the parameters of every preset instead")
    add("--json", action="store_true", help="print them as JSON")
    add("--export", type=Path, metavar="FILE",
        help="write the fused --checkpoint for torch.export.load, or FILE.onnx, instead")
    add("--benchmark", action="store_true", help="print times and ratios instead")
    add("--preset", default="paper", choices=PRESETS, help="to benchmark (default: paper)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.summary:
            print_summary(arguments.json)
        elif arguments.benchmark:
            benchmark(PRESETS[arguments.preset])
        elif arguments.export:
            difference = export(load_checkpoint(arguments.checkpoint), arguments.export)
            print(f"wrote {arguments.export}; read back, it differs by {difference:.0e}")
        else:
            require(arguments.image is not None,
                    "name a picture, or give --summary, --export or --benchmark")
            reconstruct(arguments)
    except (ValueError, OSError) as error:
        print(f"simplehand.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
