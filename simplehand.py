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
    Sec. 4.1            backbone           FastViT-MA36                      FastViT

"The release" is the authors' code of 2024-05-27; where paper and release disagree or are silent,
a comment beside the line says so. Metres, pixels and OpenCV camera axes (x right, y down, z away
from the camera) throughout; an image spans [0, W] x [0, H], so the centre of its first pixel is
(0.5, 0.5). Letters in shapes: B batch, S side of the crop in pixels, C channels, N tokens.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ------------------------------------------------------------------------------------ config


@dataclass(frozen=True)
class Config:
    """Everything that defines a model and its training run. Defaults are the paper's."""

    # Input
    image_size: int = 224  # px, side of the square crop, a multiple of 32 (release)
    official: bool = False  # True: exactly the release, for its checkpoints. It feeds BGR scaled
    # to +-0.5 to weights pretrained on RGB with ImageNet statistics, samples with
    # align_corners=True (up to 4 px off at the borders) and adds a sine map the paper does not
    # mention. False, for new training: RGB with ImageNet statistics, exact sampling, no sine map.

    # Backbone: FastViT-MA36 (Sec. 4.1; the numbers are FastViT's Table 2)
    embed_dims: tuple[int, ...] = (76, 152, 304, 608)  # channels of the four stages
    depths: tuple[int, ...] = (6, 6, 18, 6)  # blocks of the four stages
    large_kernel: int = 7  # px, of downsampling, position encoding and MLPs
    mlp_ratio: float = 4.0  # hidden width of the convolutional MLPs
    attention: bool = True  # last stage mixes by self-attention (MA36), else by RepMixer
    feature_width: int = 1216  # channels of the last map, a multiple of embed_dims[-1]
    layer_scale: float = 1e-5  # initial value (timm)
    backbone_drop_path: float = 0.2  # rate at the last block, rising linearly (release)

    # Token generator
    token_width: int = 256  # channels after the 4x deconvolution (Sec. 4.1: first dimension)

    # Mesh regressor
    tokens: tuple[int, ...] = (21, 84, 336)  # tokens entering each decoder layer (Sec. 4.1)
    num_vertices: int = 778  # tokens leaving the last one (MANO)
    dims: tuple[int, ...] = (256, 128, 64)  # feature dimension of each layer (Sec. 4.1)
    blocks: tuple[int, ...] = (1, 1, 1)  # MetaFormer blocks in each layer (Table 7)
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
    batch_size: int = 32  # samples per process (Sec. 4.1: 8 GPUs x 32)
    accumulate: int = 1  # batches per optimiser step (our choice)
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
        for name, valid, rule in (
            ("image_size", self.image_size > 0 and self.image_size % 32 == 0, "a multiple of 32"),
            ("depths", len(self.depths) == len(self.embed_dims) == 4, "four, as of embed_dims"),
            ("embed_dims", not self.attention or self.embed_dims[-1] % 32 == 0,
             "the last a multiple of 32, the width of an attention head"),
            ("feature_width", self.feature_width % self.embed_dims[-1] == 0,
             "a multiple of the last of embed_dims"),
            ("large_kernel", self.large_kernel in range(3, 99, 2), "an odd number from 3 on"),
            ("tokens", self.tokens[0] == 21, "the 21 keypoints first"),
            ("dims", len(self.tokens) == len(self.dims) == len(self.blocks),
             "as many as tokens and blocks"),
            ("heads", not any(dim % self.heads for dim in self.dims), "a divisor of all dims"),
        ):
            require(valid, f"{name} is {getattr(self, name)}: expected {rule}")


def require(condition: object, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


PRESETS: dict[str, Config] = {
    # Sec. 4.1: torchrun with 8 processes, RTX 2080 Ti, 7 hours.
    "paper": Config(),
    # One H200: global batch 512 is twice the paper's, so half of the steps and, AdamW's rule,
    # the learning rate times sqrt(2).
    "h200": Config(
        batch_size=512, steps=25_600, warmup_steps=640, learning_rate=7.07e-4, precision="bf16",
        eval_every=1_280),
    # One GPU with 11 GB: the paper's run, step for step, its eight batches one after another.
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


class MetaFormerBlock(nn.Module):
    """MF_k of Eq. 2 with the attention mixer, pre-norm: (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.token_mixer = nn.MultiheadAttention(width, config.heads, config.dropout,
                                                 batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width, int(width * config.regressor_mlp_ratio))
        self.drop_path = DropPath(config.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop_path(self.token_mixer(y, y, y, need_weights=False)[0])
        return x + self.drop_path(self.mlp(self.norm2(x)))


class LinearUpsample(nn.Module):
    """U_k of Eq. 2: a single linear layer over the tokens, (B, N, C) -> (B, N', C)."""

    def __init__(self, tokens_in: int, tokens_out: int) -> None:
        super().__init__()
        self.upsample = nn.Linear(tokens_in, tokens_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(x.transpose(1, 2)).transpose(1, 2)


class PatchDeconv(nn.ConvTranspose2d):
    """4x deconvolution whose kernel is its stride: each cell of X_b becomes a patch of its own.

    That is one matrix product, on a CPU three times faster than the general deconvolution.
    """

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C', 4 H, 4 W)
        patches = x.permute(0, 2, 3, 1) @ self.weight.flatten(1)  # (B, H, W, C' * 4 * 4)
        patches = patches.unflatten(3, self.weight.shape[1:]).permute(0, 3, 1, 4, 2, 5)
        y = patches.flatten(4).flatten(2, 3)  # (B, C', H, 4, W, 4) -> (B, C', 4 H, 4 W)
        return y if self.bias is None else y + self.bias[:, None, None]


class MeshHead(nn.Module):
    """Token generator T and mesh regressor R (Fig. 4), under the release's parameter names."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.official = config.official
        self.deconv = nn.Sequential(
            PatchDeconv(config.feature_width, config.token_width, 4, 4, bias=False),
            nn.BatchNorm2d(config.token_width), nn.ReLU())
        widths = (config.token_width, *config.dims)
        tokens = (*config.tokens, config.num_vertices)
        self.num_layers = len(config.tokens)
        for k in range(1, self.num_layers + 1):
            embedding = torch.empty(1, tokens[k - 1], widths[k - 1])
            blocks = [MetaFormerBlock(widths[k], config) for _ in range(config.blocks[k - 1])]
            setattr(self, f"pos_emb_{k}", nn.Parameter(nn.init.trunc_normal_(embedding, std=0.02)))
            setattr(self, f"proj_{k}", nn.Linear(widths[k - 1], widths[k]))
            setattr(self, f"encoder_{k}", nn.Sequential(*blocks))
            setattr(self, f"upsample_{k}", LinearUpsample(tokens[k - 1], tokens[k]))
        self.pred_final = nn.Linear(widths[-1], 3)
        self.output_scale = config.output_scale

    def forward(self, features: Tensor, keypoints_2d: Tensor) -> Tensor:
        """Vertices R(T(X_b)), (B, 778, 3) metres, from X_b and the keypoints to sample at."""
        return self.regress(self.tokens(features, keypoints_2d))

    def tokens(self, features: Tensor, keypoints_2d: Tensor) -> Tensor:
        """Token generator: X_b (B, C, S/32, S/32), keypoints (B, 21, 2) in 0..1 -> (B, 21, C')."""
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
        x = x + emb  # Eq. 3; on the layer's input, before P_k (release), as Sec. 3.3 can be read
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
        self.backbone = FastViT(config)
        self.keypoints_2d_head = nn.Linear(config.feature_width, 2 * config.tokens[0])
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
        middle finger) as origin, and keypoints_2d (B, 21, 2), fractions of the crop 0..1.
        Raises ValueError for another shape.
        """
        features = self.backbone(self.normalise(images))  # X_b, (B, C, S/32, S/32)
        pooled = features.mean((2, 3))  # "global feature" of Fig. 4
        keypoints_2d = full_precision(self.keypoints_2d_head, pooled).unflatten(1, (-1, 2))
        keypoints_2d = self.config.output_scale * keypoints_2d
        return {"vertices": self.mesh_head(features, keypoints_2d), "keypoints_2d": keypoints_2d}

    def normalise(self, images: Tensor) -> Tensor:
        """RGB 0..255 -> what the backbone was trained on; the release's BGR when official."""
        shape = tuple(images.shape)
        require(len(shape) == 4 and shape[1] == 3 and not any(side % 32 for side in shape[2:]),
                f"images of shape {shape}: expected (B, 3, S, S), S a multiple of 32")
        if self.config.official:
            images = images.flip(1)
        return (images.to(self.mean.dtype) / 255.0 - self.mean) / self.std

    @torch.no_grad()
    def fuse(self) -> SimpleHand:
        """A copy for inference: branches and norms folded into their convolutions."""
        fused = copy.deepcopy(self).eval()
        fused.backbone.fuse()
        deconv, norm, _ = fused.mesh_head.deconv
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        deconv.weight.mul_(scale[:, None, None])  # (C, C', 4, 4)
        deconv.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
        fused.mesh_head.deconv[1] = nn.Identity()
        return fused


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

    def fuse(self) -> None:
        """Reparameterise, then fold in place the norms that layout leaves, but attention's."""
        self.reparameterize()
        for module in list(self.modules()):
            if isinstance(module, ConvNorm):
                module.collapse()


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
    """The three unweighted terms of Eq. 4 to 6, each a scalar.

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
    return {
        "joints": l1(joints, batch["joints"] - root, mesh_valid),  # Eq. 4
        "keypoints_2d": l1(keypoints_2d, true_2d, batch["keypoints_valid"]),  # Eq. 5
        "vertices": l1(vertices, batch["vertices"] - root, mesh_valid),  # Eq. 6
    }


def total_loss(terms: dict[str, Tensor], config: Config) -> Tensor:
    """Eq. 7."""
    return (config.weight_joints * terms["joints"]
            + config.weight_keypoints_2d * terms["keypoints_2d"]
            + config.weight_vertices * terms["vertices"])


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Groups for AdamW: weight decay on matrices and kernels alone.

    Biases, norms, layer scales and position embeddings are spared (our choice). The release
    spares only names with "bn" or "bias" in them, so it decays most of these too.
    """
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        spared = name.endswith((".bias", ".gamma")) or parameter.ndim < 2 or "pos_emb_" in name
        groups[not spared].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0}]


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


def read_checkpoint(source: str | PathLike | Mapping) -> tuple[dict[str, Tensor], dict | None]:
    """State dict and config, if any, of a checkpoint or its file, never running code in it.

    Takes train.py's {"model", "config", "ema", ...}, of which the moving average is preferred,
    {"state_dict"} and bare state dicts. Raises FileNotFoundError or ValueError.
    """
    if not isinstance(source, Mapping):
        if not Path(source).is_file():
            raise FileNotFoundError(f"no checkpoint {source}: expected a file that train.py wrote")
        try:
            source = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files raise half a dozen types
            reason = str(error).split("\n")[0][:100]
            raise ValueError(f"{source} is not a readable checkpoint ({reason})") from error
        require(isinstance(source, Mapping), "the checkpoint is no dictionary of weights")
    state = next((source[name] for name in ("ema", "model", "state_dict") if source.get(name)),
                 source)
    require(isinstance(state, Mapping), "the checkpoint has no dictionary of weights")
    return {name.removeprefix("module."): value for name, value in state.items()
            if isinstance(value, Tensor) and name != "n_averaged"}, source.get("config")


def load_weights(module: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> None:
    """Copy weights by name, in the module's own precision.

    The ImageNet classifier `head.fc`, which the release drags along unused, is left out and
    reported. Any other difference in names or shapes is a ValueError, or is printed if not strict.
    """
    own = module.state_dict()
    unused = [name for name in state if re.search(r"\bhead\.fc\.(weight|bias)$", name)]
    fitting = {name: value for name, value in state.items()
               if name in own and value.shape == own[name].shape}
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own and name not in unused],
        "of another shape": [name for name in own if name in state and name not in fitting],
    }
    report = "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for kind, names in problems.items() if names)
    require(not (strict and report), f"these weights are not {type(module).__name__}'s: {report}")
    if unused:
        print(f"left out, SimpleHand does not use them: {', '.join(unused)}")
    if report:
        print(f"loaded in part: {report}")
    module.load_state_dict(fitting, strict=False)


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
    try:
        model = SimpleHand(Config(official=True) if config is None else Config(**config))
    except TypeError as error:
        raise ValueError(f"the checkpoint's config is not SimpleHand's: {error}") from error
    load_weights(model, state, strict)
    return model.eval()


def load_backbone(backbone: FastViT, source: str | PathLike | Mapping, *,
                  strict: bool = True) -> None:
    """Load FastViT's ImageNet weights, by timm's or Apple's names, of training or inference.

    For inference weights the backbone is reparameterised. Raises like load_checkpoint.
    """
    state, _ = read_checkpoint(source)
    for pattern, replacement in APPLE_NAMES:
        state = {re.sub(pattern, replacement, name): value for name, value in state.items()}
    if any(".reparam_conv." in name for name in state):
        backbone.reparameterize()
    load_weights(backbone, state, strict)


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
    side: "right" or "left"; left hands are mirrored for the network and back.
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
it is 6.5 M: 5.0 M for the deconvolution, 1.5 M for the mesh regressor, 0.05 M for the 2D head."""


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
    model.backbone.reparameterize()
    counts["backbone, reparameterised"] = sum(p.numel() for p in model.backbone.parameters())
    return counts


def print_summary(as_json: bool) -> None:
    """Every preset's parameters, part by part, beside the released model's if it is that one."""
    counts = {name: count_parameters(config) for name, config in PRESETS.items()}
    released = {name: {} if name == "cpu" else RELEASED for name in PRESETS}
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
    import matplotlib.image

    import bodymodels
    import data

    try:
        box = arguments.box and [float(number) for number in arguments.box.split(",")]
    except ValueError:
        raise ValueError(f"--box {arguments.box}: expected x,y,width,height") from None
    hand = bodymodels.load_model(arguments.hand)
    faces = hand.faces.numpy()[:, ::-1 if arguments.left else 1]  # mirrored, they face inwards
    image = data.read_image(arguments.image)
    model = load_checkpoint(arguments.checkpoint).fuse()
    found = predict(model, image, hand.keypoint_regressor, box=box,
                    side="left" if arguments.left else "right")
    overlay = bodymodels.render(found["vertices"], faces, found["K"], image.shape[:2],
                                background=image / np.float32(255), supersample=2)
    png, npz = io.BytesIO(), io.BytesIO()
    matplotlib.image.imsave(png, overlay.image, format="png")
    np.savez_compressed(npz, faces=faces, **found)
    base = arguments.out / Path(arguments.image).stem
    arguments.out.mkdir(parents=True, exist_ok=True)
    bodymodels.write_atomically(f"{base}_overlay.png", png.getvalue())  # base.png may be IMAGE
    bodymodels.write_atomically(f"{base}.npz", npz.getvalue())
    upright = (found["vertices"] - found["root"]) * (1, -1, -1)  # y up, as viewers expect
    for ending in ("obj", "ply", "glb"):
        bodymodels.save_mesh(f"{base}.{ending}", upright, faces)
    print(f"wrote {base}_overlay.png, .npz, .obj, .ply and .glb")


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
    add("--left", action="store_true", help="it is a left hand")
    add("--hand", default="hand_right", metavar="FILE",
        help="MANO_RIGHT.pkl, for checkpoints trained on MANO (default: the free hand)")
    add("--out", type=Path, default=Path("output"), help="folder to write to (default: output)")
    add("--summary", action="store_true", help="print the parameters of every preset instead")
    add("--json", action="store_true", help="print them as JSON")
    arguments = parser.parse_args(argv)
    try:
        if arguments.summary:
            print_summary(arguments.json)
        else:
            require(arguments.image is not None, "name a picture, or give --summary")
            reconstruct(arguments)
    except (ValueError, OSError) as error:
        print(f"simplehand.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
