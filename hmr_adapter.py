"""HMR-Adapter: a body model and a hand model that tell each other what they see, in one file.

Anonymous authors: "HMR-Adapter: A Lightweight Adapter with Dual-Path Cross Augmentation for
Expressive Human Mesh Recovery", ACM MM 2024.

The claim: two large experts know bodies (SMPLer-X) and hands (HaMeR), and neither knows what the
other does. Freeze both; teach a small adapter inside the hand expert's decoder to listen to the
pose of the arm, and a small decoder beside the body expert to listen to the picture's features at
the knuckles. Then join the refined body and the refined hands in one SMPL-X mesh.

    where in the paper         what                                    where in this file
    3.2.2, Eq. 1   Z'          cross-attention of the hand expert      CrossAttention, Decoder
    3.2.3          theta_0     body pose of the whole-body expert      BodyExpert
    3.3            theta_b     the arm joint group, (J, 6)             arm_pose
                   F^B         its features, (J, 1280)                 ArmFeatures
    Eq. 2          Z''         cross-attention to the body pose        HandAdapter.decode
    Eq. 3          Z^new       the two, added                          HandAdapter.decode
    3.4            F^J         features at eight MCP joints, (8, 512)  BodyAdapter.knuckles
    Eq. 4          theta-hat   theta_0 + FFN(CA(Q'', K'', V''))        BodyAdapter.forward
    Eq. 5          L (hand)    weighted sum                            hand_total_loss
    Eq. 6          L_theta     distance of rotations                   pose_distance
    Eq. 7          L (body)    weighted sum                            body_total_loss
    Eq. 8          L_2D        L_img + L_proj                          body_losses
    3.1, Fig. 2    dual path   both adapters, then SMPL-X              HMRAdapter, merge
    Table 3 to 6   baselines   as changes of the config                BASELINES

No code of the authors is public. They share names with SMPLer-X, so where the paper is silent we
do as HaMeR (Pavlakos et al., CVPR 2024) and SMPLer-X (Cai et al., NeurIPS 2023) do, or, last,
choose. Every field of the configs says which: (paper), (HaMeR), (SMPLer-X), (our choice). The
experts keep the names of their released weights, so those load; nothing else is theirs.

What one should know before trusting a number:
- The product of the eight rotations in theta_b IS the hand's global orientation. Trained with the
  true theta_b (3.5.1), the adapter is handed the answer to one of its sixteen outputs; at test
  time theta_b is predicted. Table 3 agrees: PVE gains much, PA-PVE, which forgets orientation,
  little. Report both arm poses; `arm`, `arm_source` and `arm_noise` in HandConfig weaken the leak.
- The decoder has one query, and a softmax over one is 1. So the q and k thirds of every to_qkv in
  it are never used: 6,291,456 of the hand adapter's 26.8 M weights stay what they were.
- Without an embedding of its own, a joint is nobody: Eq. 2 is the same for all orders of the arm's
  joints, and Eq. 4 for all orders of the knuckles, left or right. Hence `joint_embedding`.
- Delta theta sees the eight knuckles and nothing else, neither theta_0 nor the body.
- L_img and L_beta of Eq. 7 depend on frozen weights alone: no gradient comes of them.

Metres, radians, OpenCV camera axes (x right, y down, z away). 6D rotations are [column 0, column
1] but for what SMPLer-X's regressors write (see from_interleaved). Finger rotations are absolute.
Pairs of hands are [right, left], and whatever a hand network sees or says of a left hand is
mirrored, M R M with M = diag(-1, 1, 1): it knows right hands alone. Letters in shapes: B batch,
S side of a square crop in pixels, N tokens, D width, J joints of the arm (8).
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Joints of SMPL-X by number: 22 of the body, jaw, two eyes, 15 of the left hand, 15 of the right.
# Behind them, 55 to 75, the landmarks that the smplx package appends: nose, eyes, ears, feet, tips.
BODY, JAW, EYES, LEFT_FINGERS, RIGHT_FINGERS = (
    slice(0, 22), slice(22, 23), slice(23, 25), slice(25, 40), slice(40, 55))
MIRRORED_BODY = [0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20]
ARMS = {  # theta_b of [right, left]: which rotations the hand expert gets to know
    # "from the root joint to the wrist along the kinematic chain": J = 8
    "arm": ([0, 3, 6, 9, 14, 17, 19, 21], [0, 3, 6, 9, 13, 16, 18, 20]),
    "arm_without_wrist": ([0, 3, 6, 9, 14, 17, 19], [0, 3, 6, 9, 13, 16, 18]),
    "whole_body": (list(range(22)), MIRRORED_BODY),  # Table 5
}
POSITIONED = [  # the 25 joints whose position SMPLer-X predicts, among the 76
    0, 1, 2, 4, 5, 7, 8, 12, 16, 17, 18, 19, 20, 21, 60, 61, 62, 63, 64, 65, 59, 58, 57, 56, 55]
HANDS = [  # wrist, then thumb to pinky, base to tip, among the 76: [right, left]
    [21, 52, 53, 54, 71, 40, 41, 42, 72, 43, 44, 45, 73, 49, 50, 51, 74, 46, 47, 48, 75],
    [20, 37, 38, 39, 66, 25, 26, 27, 67, 28, 29, 30, 68, 34, 35, 36, 69, 31, 32, 33, 70]]
KNUCKLES = [4, 8, 12, 16]  # MCP joints of index to pinky among a hand's 20, which has no wrist
TRAINABLE = ("adapter", "head", "all")
TASKS = {"betas": 0, "camera": 1, "expression": 2, "jaw": 3, "pose": slice(6, 31)}  # 4, 5: unused
BODY_DEPTH, HAND_DEPTH = 2.0, 0.3  # metres of depth that a heat map's bins span (SMPLer-X)

# ------------------------------------------------------------------------------------ config


def require(condition: object, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def nested(config: object, name: str, kind: type) -> None:
    """Turn the field `name`, a dictionary if it comes from a checkpoint, into its config."""
    if isinstance(getattr(config, name), Mapping):
        object.__setattr__(config, name, kind(**getattr(config, name)))


def check_choices(config: object, **choices: tuple[str, ...]) -> None:
    """Refuse any field that is none of its choices."""
    for name, allowed in choices.items():
        require(getattr(config, name) in allowed,
                f"{name} is {getattr(config, name)!r}: expected one of {', '.join(allowed)}")


@dataclass(frozen=True)
class Training:
    """How anything here is trained. Defaults: the adapters', "10K steps" on 4 V100 (paper)."""

    batch_size: int = 128  # samples per optimiser step, over all processes: 4 x 32 (paper)
    accumulate: int = 1  # parts in which a process computes its share of them (our choice)
    steps: int = 10_000  # optimiser steps (paper)
    learning_rate: float = 1e-4  # AdamW (our choice: the paper is silent, the experts had 1e-5)
    schedule: str = "constant"  # or "step": / 10 at half of the steps, "cosine" (HaMeR)
    warmup_steps: int = 100  # linear from 0 (our choice)
    weight_decay: float = 1e-4  # (HaMeR)
    gradient_clip: float = 1.0  # norm (our choice)
    precision: str = "bf16"  # "fp32", "bf16" or "fp16" with a gradient scaler (our choice)
    channels_last: bool = False  # memory format, for speed alone (our choice)
    ema_decay: float = 0.0  # of a moving average of the weights, 0 = off (our choice)
    eval_every: int = 500  # steps between evaluations (our choice)
    seed: int = 0  # of initialisation, order and augmentation (our choice)
    train_samples: int = 100_000  # rendered people of an epoch, the free stand-in (our choice)
    test_samples: int = 1_000  # (our choice)
    body_size: int = 512  # px, side of their pictures (SMPLer-X)
    hand_size: int = 256  # px, side of their hands' crops (HaMeR)
    views: float = 180.0  # degrees that they turn from the camera, either way (our choice)
    lean: float = 180.0  # degrees that they lean, at most (our choice)
    occlusion: float = 0.5  # part of their hands that something hides (our choice)
    augmentation: str = "rendered_bodies"  # of data.AUGMENTATIONS (our choice)


@dataclass(frozen=True)
class HandTraining(Training):
    """Eq. 5, whose weights the paper does not give. Sums over a sample, means over the batch.

    HaMeR sums over the batch too, so its learning rate of 1e-5 belongs to a loss as many times
    larger as the batch has samples.
    """

    weight_keypoints_2d: float = 0.01  # lambda_2D, per side of the crop (HaMeR)
    weight_keypoints_3d: float = 0.05  # lambda_3D, per metre (HaMeR)
    weight_vertices: float = 0.05 * 21 / 778  # lambda_v, per metre: as heavy as L_3D (our choice)
    weight_pose: float = 1e-3  # lambda_theta (HaMeR)
    weight_betas: float = 5e-4  # lambda_beta (HaMeR)
    pose_term: str = "l2sq"  # (paper, Eq. 6), or "l1" (paper, the text above Eq. 6)


@dataclass(frozen=True)
class BodyTraining(Training):
    """Eq. 7, whose weights the paper does not give. Means over everything, as SMPLer-X's."""

    weight_keypoints_2d: float = 1.0  # lambda_2D, per cell of the feature map (SMPLer-X)
    weight_keypoints_3d: float = 100.0  # lambda_3D, per metre (SMPLer-X)
    weight_pose: float = 10.0  # lambda_theta (SMPLer-X)
    weight_betas: float = 1.0  # lambda_beta (SMPLer-X)
    pose_term: str = "l1"  # (SMPLer-X: Eq. 6 is given for hands), or "l2sq" (paper, Eq. 6)


@dataclass(frozen=True)
class EncoderConfig:
    """The image encoder of both experts: ViT-H/16 (paper)."""

    image_size: int = 256  # px, S, a multiple of 64; the encoder sees the middle 3/4 (HaMeR)
    patch_size: int = 16  # px (HaMeR)
    vit_dim: int = 1280  # (paper)
    vit_depth: int = 32  # (HaMeR)
    vit_heads: int = 16  # (HaMeR)
    vit_drop_path: float = 0.55  # rate at the last block, rising linearly (HaMeR)
    stem: tuple[int, ...] = ()  # channels of convolutions before the patches, each halving the
    # picture: a ViT without weights from elsewhere learns much faster with them (our choice)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stem", tuple(self.stem))
        cell = 4 * self.patch_size
        require(self.patch_size % 2 ** len(self.stem) == 0,
                f"stem is {self.stem}: expected as many halvings as fit in a patch")
        require(self.image_size > 0 and self.image_size % cell == 0,
                f"image_size is {self.image_size}: expected a multiple of {cell}, four patches")
        require(self.vit_dim % self.vit_heads == 0,
                f"vit_heads is {self.vit_heads}: expected a divisor of vit_dim, {self.vit_dim}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the encoder's cells, the patches of a crop: (16, 12)."""
        rows = self.image_size // self.patch_size
        return rows, 3 * rows // 4


@dataclass(frozen=True)
class DecoderConfig:
    """The transformer decoder of the hand expert, of which the body adapter is another (HaMeR)."""

    decoder_dim: int = 1024  # (HaMeR)
    decoder_layers: int = 6  # (paper)
    decoder_heads: int = 8  # (HaMeR)
    decoder_head_dim: int = 64  # (HaMeR)
    decoder_ffn: int = 1024  # hidden width of its MLPs (HaMeR)


@dataclass(frozen=True)
class HandExpertConfig(HandTraining, DecoderConfig, EncoderConfig):
    """HaMeR. Only who has no weights of it needs to train it."""

    weight_vertices: float = 0.0  # it had no such loss (HaMeR)
    weight_keypoints_img: float = 0.0  # of keypoints that a position net reads off the encoder's
    # map, per side of the crop; 0: no such net. HaMeR's encoder had learned that before, as
    # ViTPose's; one that begins with nothing learns no rotation in minutes without (our choice)
    learning_rate: float = 1e-5  # (HaMeR)
    steps: int = 1_000_000  # (HaMeR)
    focal_length: float = 5000.0  # px at a crop of 256 px (HaMeR)

    @property
    def focal(self) -> float:
        """Focal length in sides of the crop."""
        return self.focal_length / 256.0


@dataclass(frozen=True)
class BodyExpertConfig(BodyTraining, EncoderConfig):
    """SMPLer-X-H. Only who has no weights of it needs to train it."""

    depth_bins: int = 16  # of the body's and the hands' heat maps (SMPLer-X)
    hand_cells: int = 16  # width and height of a hand's feature map (SMPLer-X)
    hand_upscale: int = 4  # of the map that it is cut from, 2^k (SMPLer-X)
    box_dim: int = 256  # channels of the box net (SMPLer-X)
    joint_dim: int = 512  # features of a joint, in all regressors (SMPLer-X)
    hand_extension: float = 2.0  # the hand's map covers so many predicted boxes (SMPLer-X)
    focal_length: float = 5000.0  # px at a crop of 256 px (SMPLer-X)
    weight_expression: float = 1.0  # (SMPLer-X)
    weight_boxes: float = 1.0  # per cell of the feature map (SMPLer-X)
    batch_size: int = 64  # 16 on each of four GPUs (SMPLer-X: 16 each)
    learning_rate: float = 1e-5  # (SMPLer-X)
    schedule: str = "cosine"  # (SMPLer-X)
    weight_decay: float = 0.0  # (SMPLer-X)
    steps: int = 350_000  # for its ten epochs (our choice)

    @property
    def focal(self) -> float:
        """Focal length in sides of the crop."""
        return self.focal_length / 256.0


@dataclass(frozen=True)
class HandConfig(HandTraining):
    """The adapter of the hand expert, and the rivals it is compared with. Defaults: the paper's."""

    expert: HandExpertConfig = HandExpertConfig()  # (paper)
    inject: str = "adapter"  # (paper), or "none", "concat" (Table 3), "weighted" (Table 5)
    context: str = "arm"  # of the adapter (paper), or "image": F^H once more (Table 3, No. 5)
    arm: str = "arm"  # theta_b (paper), "arm_without_wrist" (our choice), "whole_body" (Table 5)
    joint_embedding: str = "none"  # (paper, literally), "learned", one vector a joint, or "flat",
    # one linear layer for all joints together (our choice)
    trainable: str = "adapter"  # (paper), "head": the decoder too, "all" (Table 3)
    zero_init: bool = False  # the new out-projections begin at 0: as the expert (our choice)
    missing: str = "zeros"  # unknown theta_b (paper), "identity", "mask": no adapter (our choice)
    arm_source: str = "true"  # theta_b while training (paper), or "found" in the person's picture
    # by the whole-body expert, errors included (our choice)
    arm_noise: float = 0.0  # rad, sigma of noise on theta_b while training (our choice)
    arm_drop: float = 0.0  # part of theta_b that is hidden while training (our choice); FreiHAND's
    # and InterHand2.6M's hands, which the paper trains on, have none anyway

    def __post_init__(self) -> None:
        nested(self, "expert", HandExpertConfig)
        check_choices(self, inject=("adapter", "none", "concat", "weighted"),
                      context=("arm", "image"), arm=tuple(ARMS), trainable=TRAINABLE,
                      joint_embedding=("none", "learned", "flat"),
                      missing=("zeros", "identity", "mask"), arm_source=("true", "found"),
                      pose_term=("l2sq", "l1"))


@dataclass(frozen=True)
class BodyConfig(BodyTraining, DecoderConfig):
    """The adapter of the body expert, and its rivals. Defaults: the paper's.

    The paper gives 37M and no shapes; nothing fits alone. This reading, 36,508,292, has no number
    that is not HaMeR's; "reuse_hand_conv" with offset_hidden=2048 has 37,037,188.
    """

    expert: BodyExpertConfig = BodyExpertConfig()  # (paper)
    inject: str = "adapter"  # (paper), or "none", "concat" (Table 4), "weighted" (Table 6)
    context: str = "knuckles"  # of the adapter (paper), or "tokens": the 25 of the pose (Table 4)
    joint_proj: str = "conv"  # 1280 -> 512 (paper), "reuse_hand_conv": the expert's, frozen, or
    # "separate": one per side, with norm and ReLU (our choice: Hand4Whole's)
    knuckle_source: str = "true"  # where features are taken while training (paper), or "found":
    # where the expert believes the knuckles are, as later in use (our choice)
    offset_hidden: int = 1024  # of the FFN in Eq. 4; 0: one linear layer (our choice)
    joint_embedding: str = "none"  # (paper, literally), or "learned", one vector a knuckle
    trainable: str = "adapter"  # (paper), "head": all but the encoder, "all" (Table 4)
    zero_init: bool = True  # Delta theta = 0 to begin with (our choice)
    missing: str = "zeros"  # features of unseen knuckles, or "mask": not looked at (our choice)
    concat_init: str = "random"  # of a widened regressor, or "zero_pad": as before (our choice)

    def __post_init__(self) -> None:
        nested(self, "expert", BodyExpertConfig)
        check_choices(self, inject=("adapter", "none", "concat", "weighted"),
                      context=("knuckles", "tokens"), trainable=TRAINABLE,
                      joint_proj=("conv", "reuse_hand_conv", "separate"),
                      knuckle_source=("true", "found"),
                      joint_embedding=("none", "learned"), missing=("zeros", "mask"),
                      concat_init=("random", "zero_pad"), pose_term=("l2sq", "l1"))


@dataclass(frozen=True)
class Config:
    """Both paths, and how they meet. Defaults: the paper's."""

    hand: HandConfig = HandConfig()
    body: BodyConfig = BodyConfig()
    guide: str = "refined"  # the hand hears theta-hat, nearer to the truth it was trained with, or
    # "initial": theta_0, the two paths in parallel (our choice: the paper can be read either way)
    wrist: str = "ik"  # by inverse kinematics (paper, of its baseline), "twist": as PyMAF-X, or
    # "body": the body expert's (our choice)
    max_twist: float = 0.4 * math.pi  # rad; "twist" hands what is beyond to the elbow (PyMAF-X)

    def __post_init__(self) -> None:
        nested(self, "hand", HandConfig)
        nested(self, "body", BodyConfig)
        check_choices(self, guide=("refined", "initial"), wrist=("ik", "twist", "body"))


def cpu_preset() -> Config:
    """Two CPU cores: the same design with tiny experts, which train.py has to train first."""
    encoder = dict(image_size=128, vit_dim=96, vit_depth=3, vit_heads=3, vit_drop_path=0.0,
                   stem=(16, 32, 64, 128))
    decoder = dict(decoder_dim=96, decoder_layers=2, decoder_heads=4, decoder_head_dim=16,
                   decoder_ffn=96)
    run = dict(batch_size=32, schedule="cosine", precision="fp32", train_samples=12_000,
               body_size=128, hand_size=64, views=30.0, lean=45.0, augmentation="rendered",
               eval_every=1_000)
    expert = run | dict(weight_decay=1e-4, warmup_steps=100)
    adapter = run | dict(joint_embedding="learned")
    hand = HandExpertConfig(
        **encoder | dict(image_size=64, patch_size=8, stem=(24, 48, 96)), **decoder, **expert,
        steps=3_000, learning_rate=3e-3, weight_keypoints_2d=0.05, weight_pose=0.01,
        weight_keypoints_img=0.1)
    body = BodyExpertConfig(
        **encoder, **expert, steps=1_800, learning_rate=2e-3, weight_keypoints_2d=20.0,
        weight_boxes=5.0, depth_bins=8, hand_cells=8, box_dim=8, joint_dim=48)
    # Such a body expert is far from the truth: who is trained with the truth believes it too much.
    return Config(
        HandConfig(expert=hand, **adapter, steps=2_500, learning_rate=2e-3, arm_source="found",
                   arm_noise=0.1, arm_drop=0.1),
        BodyConfig(expert=body, **decoder, **adapter, steps=400, learning_rate=3e-4,
                   knuckle_source="found", offset_hidden=96))


PRESETS: dict[str, Config] = {
    # torchrun with 4 processes, V100, six hours. To the letter, so joints have no embedding.
    "paper": Config(),
    # One H200: the paper's 4 x 32 as one batch.
    "h200": Config(HandConfig(joint_embedding="learned"), BodyConfig(joint_embedding="learned")),
    # One GPU with 24 GB: the paper's 4 x 32 as eight batches.
    "single_gpu": Config(
        HandConfig(accumulate=8, joint_embedding="learned"),
        BodyConfig(accumulate=8, joint_embedding="learned")),
    "cpu": cpu_preset(),
}

# Rows of the paper's tables as changes of a preset's `hand` (Tables 3, 5) or `body` (4, 6): see
# `baseline`. Where no expert's weights are loaded first, the run is "not pre-trained".
BASELINES: dict[str, tuple[str, dict[str, object]]] = {
    "Table 3, HaMeR": ("hand", dict(inject="none")),
    "Table 3, No. 1": ("hand", dict(inject="none", trainable="all")),
    "Table 3, No. 2": ("hand", dict(inject="none", trainable="all", steps=20_000)),  # from scratch
    "Table 3, No. 3": ("hand", dict(inject="none", trainable="head")),
    "Table 3, No. 4": ("hand", dict(inject="concat", trainable="head")),
    "Table 3, No. 5": ("hand", dict(context="image")),
    "Table 3, No. 6": ("hand", dict()),
    "Table 4, SMPLer-X": ("body", dict(inject="none")),
    "Table 4, No. 1": ("body", dict(inject="none", trainable="all")),
    "Table 4, No. 2": ("body", dict(inject="none", trainable="all", steps=20_000)),  # from scratch
    "Table 4, No. 3": ("body", dict(inject="none", trainable="head")),
    "Table 4, No. 4": ("body", dict(inject="concat", trainable="head",
                                    joint_proj="reuse_hand_conv")),
    "Table 4, No. 5": ("body", dict(context="tokens")),
    "Table 4, No. 6": ("body", dict()),
    "Table 5, Concatenation": ("hand", dict(inject="concat", trainable="head")),
    "Table 5, Weighted sum": ("hand", dict(inject="weighted", trainable="head")),
    "Table 5, Whole-body pose": ("hand", dict(arm="whole_body")),
    "Table 5, HMR-Adapter": ("hand", dict()),
    "Table 6, Concatenation": ("body", dict(inject="concat", trainable="head",
                                            joint_proj="reuse_hand_conv")),
    "Table 6, Weighted sum": ("body", dict(inject="weighted", trainable="head",
                                           joint_proj="reuse_hand_conv")),
    "Table 6, HMR-Adapter": ("body", dict()),
}


def baseline(row: str, preset: str = "paper") -> HandConfig | BodyConfig:
    """The config of a row of the paper's tables, by its name in BASELINES."""
    require(row in BASELINES, f"row {row!r}: expected one of {'; '.join(BASELINES)}")
    part, changes = BASELINES[row]
    return replace(getattr(PRESETS[preset], part), **changes)

# --------------------------------------------------------------------------------- rotations


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


def from_interleaved(rotation_6d: Tensor) -> Tensor:
    """SMPLer-X's 6D, the (3, 2) matrix of two columns row by row -> [column 0, column 1] (..., 6).

    HaMeR's, and ours, is the latter: smplerx = hamer[[0, 3, 1, 4, 2, 5]].
    """
    return rotation_6d.unflatten(-1, (3, 2)).mT.flatten(-2)


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Axis times angle in radians (..., 3) -> rotation matrices (..., 3, 3)."""
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(cross)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) -> axis times angle (..., 3), angle in 0..pi.

    The axis is the eigenvector of R + R^T to its largest eigenvalue: exact at 180 degrees too.
    """
    double = matrix.double()
    axis = torch.linalg.eigh(double + double.mT).eigenvectors[..., -1]
    skew = torch.stack((double[..., 2, 1] - double[..., 1, 2],
                        double[..., 0, 2] - double[..., 2, 0],
                        double[..., 1, 0] - double[..., 0, 1]), -1)  # 2 sin(angle) axis
    trace = double.diagonal(dim1=-2, dim2=-1).sum(-1)
    angle = torch.atan2((skew * axis).sum(-1), trace - 1)
    return (axis * angle[..., None]).to(matrix)


def mirror(rotations: Tensor) -> Tensor:
    """M R M with M = diag(-1, 1, 1): a left hand's rotations as a right one's, and back.

    (..., 3, 3); of axis-angle (x, y, z) it makes (x, -y, -z).
    """
    return rotations * rotations.new_tensor([[1, -1, -1], [-1, 1, 1], [-1, 1, 1]])


def chain_product(rotations: Tensor) -> Tensor:
    """R_0 R_1 ... of a kinematic chain (B, J, 3, 3), root first -> its end's rotation (B, 3, 3)."""
    product = rotations[:, 0]
    for joint in range(1, rotations.shape[1]):
        product = product @ rotations[:, joint]
    return product


def arm_pose(body_pose: Tensor, arm: str = "arm") -> Tensor:
    """theta_b of both hands as matrices: (B, >= 22, 3, 3) -> (B, 2, J, 3, 3), the left mirrored.

    body_pose: SMPL-X's, the root's rotation in the camera's frame, where the hand's is too (that
    a crop's own camera looks a little aside is ignored, as in both experts).
    """
    right, left = ARMS[arm]
    return torch.stack((body_pose[:, right], mirror(body_pose[:, left])), 1)


def project(points: Tensor, translation: Tensor, focal: float) -> Tensor:
    """Points (B, N, 3), translation (B, 3) in metres -> (B, N, 2) in a crop from -0.5 to 0.5.

    focal: in sides of the crop, as config.focal.
    """
    points = points + translation[:, None]
    return focal * points[..., :2] / points[..., 2:]


def hand_translation(camera: Tensor, focal: float) -> Tensor:
    """HaMeR's camera [s, tx, ty] (B, 3) -> translation (B, 3) in metres."""
    s, x, y = camera.unbind(-1)
    return torch.stack((x, y, 2.0 * focal / (s + 1e-9)), -1)


# ----------------------------------------------------------------------------- image encoder


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

    def __init__(self, config: EncoderConfig) -> None:
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


class TaskViT(ViT):
    """The same with 31 learned task tokens in front: (B, 3, S, 3/4 S) -> (B, 31, D), (B, N, D)."""

    def __init__(self, config: BodyExpertConfig) -> None:
        super().__init__(config)
        self.task_tokens = nn.Parameter(torch.zeros(1, 31, config.vit_dim))
        nn.init.trunc_normal_(self.task_tokens, std=0.02)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(images)
        x = torch.cat((self.task_tokens.expand(len(x), -1, -1), x), 1)  # they have no position
        for block in self.blocks:
            x = block(x)
        tokens, patches = self.last_norm(x).split((31, x.shape[1] - 31), 1)
        return tokens, patches


def middle(images: Tensor, config: EncoderConfig) -> Tensor:
    """RGB 0..255 (B, 3, k S, k S) -> 0..1, the middle (B, 3, S, 3/4 S), every k-th pixel of it.

    k is 1, or 2 for SMPLer-X's crops of 512 x 384, which it halves like this ("nearest").
    """
    size, shape = config.image_size, tuple(images.shape)
    require(len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] and shape[2] % size == 0
            and shape[2] > 0, f"images of shape {shape}: expected (B, 3, {size}, {size})")
    k = shape[2] // size
    return images[..., ::k, ::k][..., size // 8 : -(size // 8)].float() / 255.0


# ------------------------------------------------------------------- hand expert: HaMeR


class TokenAttention(nn.Module):
    """SA: self-attention of the decoder, (B, Q, D) -> the same, under HaMeR's names."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*qkv)  # (B, H, Q, D'); with Q = 1 this is v
        return self.to_out(x.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """CA of Eq. 1: queries (B, Q, D) look at a context (B, N, C) -> (B, Q, D)."""

    def __init__(self, width: int, heads: int, head_dim: int, context_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_dim, bias=False)  # W_q
        self.to_kv = nn.Linear(context_width, 2 * heads * head_dim, bias=False)  # W_k, W_v
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, width))

    def forward(self, x: Tensor, context: Tensor, seen: Tensor | None = None) -> Tensor:
        """seen: (B, N) bool, what of the context may be looked at; default: all of it."""
        q = self.to_q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if seen is None else seen[:, None, None]
        x = F.scaled_dot_product_attention(q, k, v, mask)  # Eq. 1: softmax(Q K^T / sqrt(d)) V
        return self.to_out(x.transpose(1, 2).flatten(2))


class PreNorm(nn.Module):
    """A layer behind a norm of its queries; the context is not normalised (HaMeR)."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor, *context: Tensor | None) -> Tensor:
        return self.fn(self.norm(x), *context)


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    """Linear, GELU, linear as net.0 and net.3: HaMeR has dropouts, of rate 0, in between."""
    return nn.Sequential(OrderedDict(net=nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width))))


class Decoder(nn.Module):
    """A single token that reads a context (B, N, C) -> (B, 1, D). Eq. 1 in every layer."""

    def __init__(self, config: DecoderConfig, context_width: int) -> None:
        super().__init__()
        width, attention = config.decoder_dim, (
            config.decoder_dim, config.decoder_heads, config.decoder_head_dim)
        self.to_token_embedding = nn.Linear(1, width)
        self.pos_embedding = nn.Parameter(torch.randn(1, 1, width))
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleList([
            PreNorm(width, TokenAttention(*attention)),
            PreNorm(width, CrossAttention(*attention, context_width)),
            PreNorm(width, feed_forward(width, config.decoder_ffn)),
        ]) for _ in range(config.decoder_layers)])})

    @property
    def layers(self) -> nn.ModuleList:
        """[self-attention, cross-attention, MLP] of each layer."""
        return self.transformer["layers"]

    def query(self, context: Tensor) -> Tensor:
        """The empty token z after its embedding, (B, 1, D): a zero, so a learned constant."""
        zero = self.to_token_embedding.weight.new_zeros(len(context), 1, 1)
        return self.to_token_embedding(zero) + self.pos_embedding

    def forward(self, context: Tensor, seen: Tensor | None = None) -> Tensor:
        x = self.query(context)
        for self_attention, cross_attention, ffn in self.layers:
            x = x + self_attention(x)  # SA(Z)
            x = x + cross_attention(x, context, seen)  # Z', Eq. 1
            x = x + ffn(x)
        return x


class ManoHead(nn.Module):
    """Decoder and "three independent linear layers" for pose, shape and camera."""

    def __init__(self, config: HandExpertConfig) -> None:
        super().__init__()
        self.transformer = Decoder(config, config.vit_dim)
        self.decpose = nn.Linear(config.decoder_dim, 16 * 6)
        self.decshape = nn.Linear(config.decoder_dim, 10)
        self.deccam = nn.Linear(config.decoder_dim, 3)
        for layer in (self.decpose, self.decshape, self.deccam):
            nn.init.xavier_uniform_(layer.weight, gain=0.01)  # start at the mean hand (HaMeR)
            nn.init.zeros_(layer.bias)
        self.register_buffer("init_hand_pose", torch.tensor([[1.0, 0, 0, 0, 1, 0] * 16]))
        self.register_buffer("init_betas", torch.zeros(1, 10))
        self.register_buffer("init_cam", torch.tensor([[0.9, 0.0, 0.0]]))

    def readout(self, token: Tensor) -> dict[str, Tensor]:
        """Token (B, 1, D) -> what HandExpert.forward returns, in full precision."""
        with torch.autocast(token.device.type, enabled=False):
            token = token[:, 0].float()
            pose_6d = (self.decpose(token) + self.init_hand_pose).unflatten(1, (16, 6))
            return {"hand_pose": rotation_6d_to_matrix(pose_6d),
                    "betas": self.decshape(token) + self.init_betas,
                    "camera": self.deccam(token) + self.init_cam}


class HandExpert(nn.Module):
    """HaMeR: a right hand, or a mirrored left one, from its picture (3.2.2)."""

    def __init__(self, config: HandExpertConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ViT(config)
        self.mano_head = ManoHead(config)
        if config.weight_keypoints_img:
            self.position_net = PositionNet(config.vit_dim, 21, 1)
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])  # ImageNet
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    def look(self, images: Tensor) -> Tensor:
        """F^H: RGB crops (B, 3, S, S), uint8 or floats in 0..255 -> tokens (B, 192, 1280)."""
        return self.backbone((middle(images, self.config) - self.mean) / self.std)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """RGB crops (B, 3, S, S), uint8 or floats in 0..255, of right-handed hands.

        Returns hand_pose (B, 16, 3, 3), the global orientation first, fingers absolute; betas
        (B, 10); camera (B, 3) = s, tx, ty, see hand_translation; with a position net also its
        keypoints_img (B, 21, 2), from -0.5 to 0.5. Raises ValueError for other shapes.
        """
        features = self.look(images)
        found = self.mano_head.readout(self.mano_head.transformer(features))
        if self.config.weight_keypoints_img:
            rows, columns = self.backbone.grid
            _, cells = self.position_net(features.mT.unflatten(2, self.backbone.grid))
            middle = cells.new_tensor([columns - 1, rows - 1]) / 2
            found["keypoints_img"] = (cells[..., :2] - middle) / rows
        return found


# ---------------------------------------------------- whole-body expert: SMPLer-X


def single(layer: nn.Module) -> nn.Sequential:
    """A layer under the name "0", as SMPLer-X has many."""
    return nn.Sequential(layer)


def rotations_of(width: int, joints: int, second: float = 1.0) -> nn.Sequential:
    """A linear layer to interleaved 6D that begins near one rotation whatever it sees: identity.

    second: -1 for half a turn around x, as people stand before an OpenCV camera. SMPLer-X begins
    anywhere; then rotations may stay wrong for good, as those behind them undo it (our choice).
    """
    layer = nn.Linear(width, 6 * joints)
    nn.init.xavier_uniform_(layer.weight, gain=0.01)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, 0, 0, second, 0, 0]).repeat(joints))
    return single(layer)


def deconvolutions(*widths: int) -> nn.Sequential:
    """Maps of twice the size, again and again, each with norm and ReLU."""
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False),
                   nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def expectation(heat: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Softmax over the last dimensions, and its mean position (..., x y [z]) in cells."""
    shape = heat.shape[-dimensions:]
    heat = heat.float().flatten(-dimensions).softmax(-1).unflatten(-1, shape)
    position = []
    for axis in range(dimensions):
        others = [-1 - other for other in range(dimensions) if other != axis]
        cells = torch.arange(shape[-1 - axis], device=heat.device, dtype=heat.dtype)
        position.append((heat.sum(others) * cells).sum(-1))
    return heat, torch.stack(position, -1)


def sample_at(features: Tensor, positions: Tensor) -> Tensor:
    """Bilinear samples of maps (B, C, h, w) at x, y in cells (B, N, 2) -> (B, N, C), 0 outside."""
    size = positions.new_tensor([features.shape[3] - 1, features.shape[2] - 1])
    grid = 2 * positions[:, None] / size - 1  # cells have their centres at whole numbers
    samples = F.grid_sample(features.to(grid), grid, align_corners=True)  # (B, C, 1, N)
    return samples[:, :, 0].mT


def roi_weights(low: Tensor, high: Tensor, cells: int, size: int) -> Tensor:
    """One axis of roi_align: (B,), (B,) -> (B, cells, size), rows sum to 1 inside the map."""
    length = (high - low).clamp_min(1.0)
    counts = (length / cells).ceil().clamp(1, 64)  # samples a cell, by its size (64: our limit)
    most = int(counts.max()) if len(counts) else 1
    sample = torch.arange(most, device=low.device)
    used = sample < counts[:, None]  # (B, most)
    within = (sample + 0.5) / counts[:, None]
    at = torch.arange(cells, device=low.device)[:, None] + within[:, None]  # (B, cells, most)
    at = low[:, None, None] + at * (length / cells)[:, None, None]
    outside = (at < -1) | (at > size)
    at = at.clamp(0, size - 1)[..., None]
    near = (1 - (at - torch.arange(size, device=low.device)).abs()).clamp_min(0)
    return (near * (used[:, None] & ~outside)[..., None]).sum(2) / counts[:, None, None]


def roi_align(features: Tensor, boxes: Tensor, cells: int) -> Tensor:
    """Mean features of the cells of one box a map: (B, C, h, w), (B, 4) -> (B, C, cells, cells).

    boxes: x0, y0, x1, y1 in cells of the map, the first cell at 0. He et al., "Mask R-CNN", ICCV
    2017; torchvision's roi_align(sampling_ratio=-1, aligned=False). Means of bilinear samples on
    a grid are a product of one matrix for each axis, so no sample is ever made.
    """
    boxes = boxes.float()
    rows = roi_weights(boxes[:, 1], boxes[:, 3], cells, features.shape[2])
    columns = roi_weights(boxes[:, 0], boxes[:, 2], cells, features.shape[3])
    return rows.to(features)[:, None] @ features @ columns.to(features).mT[:, None]


class PositionNet(nn.Module):
    """Where joints are: a map (B, D, h, w) -> heat (B, J, d, h, w), their x, y, z (B, J, 3)."""

    def __init__(self, width: int, joints: int, bins: int) -> None:
        super().__init__()
        self.shape = (joints, bins)
        self.conv = single(nn.Conv2d(width, math.prod(self.shape), 1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return expectation(self.conv(features).unflatten(1, self.shape), 3)


class BodyRegressor(nn.Module):
    """theta_0: "a linear layer, using a concatenation of 3D body joint coordinates and tokens"."""

    def __init__(self, config: BodyExpertConfig) -> None:
        super().__init__()
        width, joints = config.vit_dim, 25 * (config.joint_dim + 3)
        self.body_conv = single(nn.Linear(width, config.joint_dim))
        self.root_pose_out = rotations_of(joints, 1, second=-1.0)
        self.body_pose_out = rotations_of(joints, 21)
        self.shape_out = single(nn.Linear(width, 10))
        self.cam_out = single(nn.Linear(width, 3))

    def rotations(self, features: Tensor, positions: Tensor, extra: Tensor | None = None) -> Tensor:
        """features (B, 25, 512) of body_conv, positions (B, 25, 3) -> interleaved 6D (B, 22, 6).

        extra: (B, E), more input of regressors that `widen` has made.
        """
        joined = torch.cat((features, positions.detach().to(features)), 2).flatten(1)
        if extra is not None:
            joined = torch.cat((joined, extra.to(joined)), 1)
        pose = torch.cat((self.root_pose_out(joined), self.body_pose_out(joined)), 1)
        return pose.float().unflatten(1, (22, 6))

    def widen(self, extra: int, keep: bool) -> None:
        """Let both regressors see `extra` more numbers; keep what they do, or start anew."""
        for name in ("root_pose_out", "body_pose_out"):
            old = getattr(self, name)[0]
            new = nn.Linear(old.in_features + extra, old.out_features).to(old.weight)
            if keep:
                with torch.no_grad():
                    new.weight.copy_(F.pad(old.weight, (0, extra)))
                    new.bias.copy_(old.bias)
            setattr(self, name, single(new))


class BoxNet(nn.Module):
    """Boxes of right hand, left hand and face: centres and sizes (B, 3, 2), in cells of the map."""

    def __init__(self, config: BodyExpertConfig) -> None:
        super().__init__()
        width = config.box_dim
        self.deconv = deconvolutions(config.vit_dim + 25 * config.depth_bins, *[width] * 3)
        self.bbox_center = single(nn.Conv2d(width, 3, 1))
        self.lhand_size, self.rhand_size, self.face_size = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
            for _ in range(3))

    def forward(self, features: Tensor, heat: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.cat((features, heat.flatten(1, 2).to(features)), 1)  # (B, 1680, 16, 12)
        features = self.deconv(features)  # (B, 256, 128, 96)
        _, centers = expectation(self.bbox_center(features), 2)
        centers = centers[:, [1, 0, 2]]  # the released weights have the left hand first
        at_centers = sample_at(features, centers.detach())
        sizes = [net(at_centers[:, part]) for part, net in enumerate(
            (self.rhand_size, self.lhand_size, self.face_size))]
        return centers / 8, torch.stack(sizes, 1).float()


class HandRoiNet(nn.Module):
    """The hands' part of the body's map, larger: (B, D, h, w), (B, 2, 4) -> (B, 2, D, 16, 16)."""

    def __init__(self, config: BodyExpertConfig) -> None:
        super().__init__()
        width, doublings = config.vit_dim, config.hand_upscale.bit_length() - 1
        self.upscale, self.cells = config.hand_upscale, config.hand_cells
        self.deconv = deconvolutions(*(width >> n for n in range(doublings + 1)))
        self.conv = single(nn.Conv2d(width >> doublings, width, 1))

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """boxes: x, y, width, height in cells of the map. The left hand's map is mirrored."""
        features = self.deconv(features)  # (B, 320, 64, 48)
        corners = self.upscale * torch.cat((boxes[..., :2], boxes[..., :2] + boxes[..., 2:]), 2)
        right, left = (roi_align(features, corners[:, side], self.cells) for side in (0, 1))
        hands = torch.stack((right, left.flip(3)), 1)  # (B, 2, 320, 16, 16)
        return self.conv(hands.flatten(0, 1)).unflatten(0, hands.shape[:2])


class HandRegressor(nn.Module):
    """Fingers of right-handed hands: a map (B, D, 16, 16), 20 joints -> interleaved 6D."""

    def __init__(self, config: BodyExpertConfig) -> None:
        super().__init__()
        self.hand_conv = conv_norm_relu(config.vit_dim, config.joint_dim)
        self.hand_pose_out = rotations_of(20 * (config.joint_dim + 3), 15)

    def forward(self, features: Tensor, joints: Tensor) -> Tensor:
        """joints: (B, 20, 3) in cells. Returns (B, 15, 6)."""
        joints = joints.detach()
        sampled = sample_at(self.hand_conv(features), joints[..., :2])
        pose = self.hand_pose_out(torch.cat((sampled, joints), 2).flatten(1))
        return pose.float().unflatten(1, (15, 6))


def conv_norm_relu(width: int, width_out: int) -> nn.Sequential:
    """A 1-by-1 convolution with batch norm and ReLU."""
    return nn.Sequential(nn.Conv2d(width, width_out, 1), nn.BatchNorm2d(width_out), nn.ReLU())


class FaceRegressor(nn.Module):
    """Expression and jaw, from a task token each."""

    def __init__(self, config: BodyExpertConfig) -> None:
        super().__init__()
        self.expr_out = single(nn.Linear(config.vit_dim, 10))
        self.jaw_pose_out = rotations_of(config.vit_dim, 1)


class Seen(NamedTuple):
    """What the whole-body expert sees before it says a rotation; cells are those of its map."""

    tokens: Tensor  # (B, 31, 1280), see TASKS
    joints: Tensor  # (B, 25, 3) x, y, z of POSITIONED, in cells and depth bins
    box_centers: Tensor  # (B, 3, 2) in cells: right hand, left hand, face
    box_sizes: Tensor  # (B, 3, 2) in cells
    hand_boxes: Tensor  # (B, 2, 4) x, y, width, height of the hands' maps, in cells
    hand_maps: Tensor  # (B, 2, 1280, 16, 16) the left one mirrored
    hand_joints: Tensor  # (B, 2, 20, 3) in cells of the hands' maps


class BodyExpert(nn.Module):
    """SMPLer-X: body, hands, face from the picture of a person (3.2.3)."""

    def __init__(self, config: BodyExpertConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TaskViT(config)
        self.body_position_net = PositionNet(config.vit_dim, 25, config.depth_bins)
        self.body_regressor = BodyRegressor(config)
        self.box_net = BoxNet(config)
        self.hand_roi_net = HandRoiNet(config)
        self.hand_position_net = PositionNet(config.vit_dim, 20, config.depth_bins)
        self.hand_regressor = HandRegressor(config)
        self.face_regressor = FaceRegressor(config)
        # Axis-angles that are added to all fingers (right, left). The released weights' fingers
        # are relative to SMPL-X's mean hand, ours are absolute.
        self.register_buffer("hand_mean", torch.zeros(2, 15, 3))

    def look(self, images: Tensor) -> Seen:
        """RGB crops (B, 3, S, S), uint8 or floats in 0..255, of a person -> Seen.

        The person's box, of 3 : 4, is the middle three quarters of the square.
        """
        tokens, patches = self.encoder(middle(images, self.config))  # no mean, no std
        features = patches.mT.unflatten(2, self.config.grid)  # (B, 1280, 16, 12)
        heat, joints = self.body_position_net(features)
        centers, sizes = self.box_net(features, heat.detach())
        boxes = self.square(centers[:, :2].detach(), sizes[:, :2].detach())
        maps = self.hand_roi_net(features, boxes)
        _, hand_joints = self.hand_position_net(maps.flatten(0, 1))
        return Seen(tokens, joints, centers, sizes, boxes, maps,
                    hand_joints.unflatten(0, maps.shape[:2]))

    def square(self, centers: Tensor, sizes: Tensor) -> Tensor:
        """Boxes (B, 2, 4) x, y, width, height, twice the larger of width and height each way.

        No smaller than half a cell and no larger than twice the map: an untrained net says that.
        """
        rows, _ = self.config.grid
        side = (self.config.hand_extension * sizes.amax(-1, keepdim=True)).clamp(0.5, 2.0 * rows)
        return torch.cat((centers - side / 2, side, side), -1)

    def initial_pose(self, seen: Seen) -> Tensor:
        """theta_0: interleaved 6D (B, 22, 6) of root and body."""
        regressor = self.body_regressor
        return regressor.rotations(regressor.body_conv(seen.tokens[:, TASKS["pose"]]), seen.joints)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images: as `look` takes them. Returns what `assemble` does."""
        seen = self.look(images)
        return self.assemble(seen, self.initial_pose(seen), images.shape[-1])

    def assemble(self, seen: Seen, pose_6d: Tensor, size: int) -> dict[str, Tensor]:
        """All that is predicted, from what is seen and theta, interleaved 6D (B, 22, 6).

        size: S, the side of the pictures in pixels. Returns pose_6d; body_pose (B, 55, 3, 3),
        SMPL-X's rotations with absolute fingers; betas (B, 10); expression (B, 10); translation
        (B, 3) in metres; hand_boxes (B, 2, 4), the squares x, y, width, height around the hands
        in pixels; and `seen`'s joints, box_centers, box_sizes, map_boxes and hand_joints, in cells.
        """
        regressor, face, tokens = self.body_regressor, self.face_regressor, seen.tokens
        jaw = face.jaw_pose_out(tokens[:, TASKS["jaw"]]).float()[:, None]
        rotations = rotation_6d_to_matrix(from_interleaved(torch.cat((pose_6d, jaw), 1)))
        right, left = self.fingers(seen).unbind(1)
        eyes = torch.eye(3).to(rotations).expand(len(rotations), 2, 3, 3)
        camera = regressor.cam_out(tokens[:, TASKS["camera"]]).float()
        return {
            "pose_6d": pose_6d,
            "body_pose": torch.cat((rotations, eyes, mirror(left), right), 1),
            "betas": regressor.shape_out(tokens[:, TASKS["betas"]]).float(),
            "expression": face.expr_out(tokens[:, TASKS["expression"]]).float(),
            # sqrt(f^2 2.5^2 / area of the crop) in metres: 56.38
            "translation": torch.cat((camera[:, :2], self.config.focal * 2.5 / 0.75**0.5
                                      * camera[:, 2:].sigmoid()), 1),
            "hand_boxes": self.to_pixels(seen.hand_boxes, size), "joints": seen.joints,
            "box_centers": seen.box_centers, "box_sizes": seen.box_sizes,
            "map_boxes": seen.hand_boxes, "hand_joints": seen.hand_joints,
        }

    def fingers(self, seen: Seen) -> Tensor:
        """Absolute finger rotations (B, 2, 15, 3, 3) of right-handed hands."""
        pose_6d = self.hand_regressor(seen.hand_maps.flatten(0, 1), seen.hand_joints.flatten(0, 1))
        rotations = rotation_6d_to_matrix(from_interleaved(pose_6d))
        rotations = rotations.unflatten(0, seen.hand_maps.shape[:2])
        if self.hand_mean.any():
            mean = self.hand_mean.clone()
            mean[1, :, 1:] *= -1  # the left one's, mirrored
            rotations = axis_angle_to_matrix(matrix_to_axis_angle(rotations) + mean)
        return rotations

    def to_cells(self, pixels: Tensor, size: int) -> Tensor:
        """Points (..., 2) in pixels of the square pictures of this size -> cells of the map."""
        rows, _ = self.config.grid
        return pixels * (rows / size) - pixels.new_tensor([rows / 8, 0])

    def to_pixels(self, boxes: Tensor, size: int) -> Tensor:
        """Boxes (..., 4), x, y, width, height, in cells of the map -> pixels of the pictures."""
        rows, _ = self.config.grid
        return (boxes + boxes.new_tensor([rows / 8, 0, 0, 0])) * (size / rows)


# ------------------------------------------------------------------------------------ adapters


class Adapter(nn.Module):
    """An expert, frozen as far as `config.trainable` says, and what is new around it.

    Frozen means without gradient AND in evaluation mode, whatever train() says: batch norms left
    in training mode would forget what they know, and drop-path would drop a half of ViT-H.
    """

    def frozen(self) -> list[nn.Module]:
        """The modules that training leaves alone."""
        return {"adapter": [self.expert], "head": [self.encoder()], "all": []}[
            self.config.trainable]

    def freeze(self) -> None:
        """At the end of __init__; the expert may come frozen, out of another adapter."""
        self.expert.requires_grad_(True)
        for module in self.frozen():
            module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Adapter:
        """As every module, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self.frozen():
            module.eval()
        return self


class Moderator(nn.Module):
    """Weighted sum of two features (B, N, D), weights by PIXIE's moderator: a rival (Table 5, 6).

    Softmax of T times what an MLP says of both; T is learned.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * width, hidden), nn.ReLU(), nn.Linear(hidden, hidden),
                                 nn.ReLU(), nn.Linear(hidden, 2))
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        other = other.expand_as(own)
        weights = (self.temperature * self.net(torch.cat((own, other), -1))).softmax(-1)
        return weights[..., :1] * own + weights[..., 1:] * other


class ArmFeatures(nn.Module):
    """F^B: theta_b as rotation matrices (B, J, 3, 3) -> features (B, J, 1280)."""

    def __init__(self, config: HandConfig) -> None:
        super().__init__()
        self.missing = config.missing
        joints, width = len(ARMS[config.arm][0]), config.expert.vit_dim
        self.flat = config.joint_embedding == "flat"
        factor = joints if self.flat else 1
        self.projection = nn.Linear(factor * 6, factor * width)
        self.joint_embedding = None
        if config.joint_embedding == "learned":
            self.joint_embedding = nn.Parameter(0.02 * torch.randn(joints, width))

    def forward(self, rotations: Tensor, valid: Tensor) -> Tensor:
        """valid: (B,), 0 where the arm's pose is not known."""
        unknown = torch.zeros(6).to(rotations)  # "we set the additional body pose to zero", which
        if self.missing == "identity":  # no rotation is; an unknown arm cannot be mistaken for one
            unknown = unknown.new_tensor([1, 0, 0, 0, 1, 0])
        known = valid[:, None, None] > 0
        pose_6d = torch.where(known, matrix_to_rotation_6d(rotations), unknown)  # (B, J, 6)
        if self.flat:
            return self.projection(pose_6d.flatten(1)).unflatten(1, (rotations.shape[1], -1))
        features = self.projection(pose_6d)  # (B, J, 1280)
        return features if self.joint_embedding is None else features + self.joint_embedding


class HandAdapter(Adapter):
    """The hand expert, listening to the arm (3.3)."""

    def __init__(self, config: HandConfig, expert: HandExpert | None = None) -> None:
        """expert: becomes a part of this; SA' and CA' begin as copies of its SA and CA."""
        super().__init__()
        self.config = config
        self.expert = HandExpert(config.expert) if expert is None else expert
        if config.inject != "none" and config.context == "arm":
            self.arm = ArmFeatures(config)
        if config.inject == "weighted":
            self.moderator = Moderator(config.expert.vit_dim, 1024)
        if config.inject == "adapter":
            self.layers = nn.ModuleList([nn.ModuleDict({
                "self_attention": copy.deepcopy(self_attention.fn),  # SA'
                "cross_attention": copy.deepcopy(cross_attention.fn),  # W'_q, W'_k, W'_v, and out
            }) for self_attention, cross_attention, _ in self.decoder.layers])
            self.layers.requires_grad_(True)
            if config.zero_init:  # else the first output is already another than the expert's
                for layer in self.layers:
                    nn.init.zeros_(layer["cross_attention"].to_out[0].weight)
                    nn.init.zeros_(layer["cross_attention"].to_out[0].bias)
        self.freeze()

    @property
    def decoder(self) -> Decoder:
        """The expert's."""
        return self.expert.mano_head.transformer

    def encoder(self) -> nn.Module:
        """What "head" leaves frozen."""
        return self.expert.backbone

    def forward(self, images: Tensor, arm: Tensor | None = None, arm_valid: Tensor | None = None, *,
                scale: float = 1.0) -> dict[str, Tensor]:
        """images (B, 3, S, S) as HandExpert.forward takes them, left hands mirrored.

        arm: theta_b as matrices (B, J, 3, 3), a hand's part of `arm_pose`; None: not known.
        arm_valid: (B,), 0 for unknown ones. scale: of what the adapter adds; with 0 the result is
        the expert's, bit for bit. Returns what the expert does.
        """
        features = self.expert.look(images)  # F^H (B, 192, 1280)
        if self.config.inject == "none":
            return self.expert.mano_head.readout(self.decoder(features))
        guide, valid = self.guide(features, arm, arm_valid)
        if self.config.inject == "concat":
            token = self.decoder(torch.cat((features, guide), 1))  # as tokens: 39M, not 47M
        elif self.config.inject == "weighted":
            token = self.decoder(self.moderator(features, guide.mean(1, keepdim=True)))
        else:
            if self.config.missing == "mask":
                scale = scale * valid[:, None, None].to(features)
            token = self.decode(features, guide, scale)
        return self.expert.mano_head.readout(token)

    def guide(self, features: Tensor, arm: Tensor | None,
              arm_valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """F^B (B, J, 1280), or F^H once more, and whose arm is known (B,)."""
        batch, joints = len(features), len(ARMS[self.config.arm][0])
        valid = torch.ones(batch, device=features.device) if arm_valid is None else arm_valid
        if self.config.context == "image" and self.config.inject == "adapter":
            return features, torch.ones_like(valid)
        if arm is None:
            arm, valid = torch.eye(3).to(features).expand(batch, joints, 3, 3), 0 * valid
        require(tuple(arm.shape) == (batch, joints, 3, 3),
                f"arm of shape {tuple(arm.shape)}: expected ({batch}, {joints}, 3, 3)")
        if self.training and self.config.arm_noise:
            noise = self.config.arm_noise * torch.randn_like(arm[..., 0])
            arm = arm @ axis_angle_to_matrix(noise)
        if self.training and self.config.arm_drop:
            valid = valid * (torch.rand(batch, device=valid.device) >= self.config.arm_drop)
        return self.arm(arm, valid), valid

    def decode(self, features: Tensor, guide: Tensor, scale: float | Tensor) -> Tensor:
        """The decoder with its new, parallel layers; norms and MLPs are the expert's, shared.

        features: F^H (B, 192, 1280). guide: F^B (B, J, 1280). Returns the token (B, 1, 1024).
        The paper's equations have no residuals; these are HaMeR's.
        """
        x = self.decoder.query(features)  # Z
        for (self_attention, cross_attention, ffn), new in zip(
                self.decoder.layers, self.layers, strict=True):
            own = x + self_attention(x)  # SA(Z)
            other = x + new["self_attention"](self_attention.norm(x))  # SA'(Z)
            x = own + cross_attention(own, features)  # CA(Q, K, V), Eq. 1
            other = new["cross_attention"](cross_attention.norm(other), guide)  # Z'', Eq. 2
            x = x + scale * other  # Z^new, Eq. 3
            x = x + ffn(x)
        return x


class BodyAdapter(Adapter):
    """The whole-body expert, and a decoder beside it that looks at the knuckles (3.4)."""

    def __init__(self, config: BodyConfig, expert: BodyExpert | None = None) -> None:
        """expert: becomes a part of this; "concat" widens its regressors."""
        super().__init__()
        self.config = config
        self.expert = BodyExpert(config.expert) if expert is None else expert
        width, joint_dim = config.expert.vit_dim, config.expert.joint_dim
        if config.inject != "none" and config.context == "knuckles":
            self.build_projection(width, joint_dim)
        if config.inject == "adapter":
            if config.context == "tokens":
                self.token_proj = nn.Linear(width, joint_dim)
            self.decoder = Decoder(config, joint_dim)  # SA'', W''_q, W''_k, W''_v
            self.offset = (mlp(config.decoder_dim, config.offset_hidden, 22 * 6)
                           if config.offset_hidden else nn.Linear(config.decoder_dim, 22 * 6))
            if config.zero_init:
                last = self.offset.fc2 if config.offset_hidden else self.offset
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        elif config.inject == "weighted":
            self.moderator = Moderator(joint_dim, joint_dim)
        elif config.inject == "concat":
            self.expert.body_regressor.widen(8 * joint_dim, keep=config.concat_init == "zero_pad")
        self.freeze()

    def build_projection(self, width: int, joint_dim: int) -> None:
        """What takes the hands' maps from 1280 to 512 channels, and who a knuckle is."""
        if self.config.joint_proj == "conv":
            self.joint_proj = nn.Conv2d(width, joint_dim, 1)
        elif self.config.joint_proj == "separate":
            self.joint_proj = nn.ModuleList([conv_norm_relu(width, joint_dim) for _ in range(2)])
        if self.config.joint_embedding == "learned":
            self.joint_embedding = nn.Parameter(0.02 * torch.randn(8, joint_dim))

    def encoder(self) -> nn.Module:
        """What "head" leaves frozen."""
        return self.expert.encoder

    def forward(self, images: Tensor, knuckles: Tensor | None = None,
                hand_valid: Tensor | None = None, *, scale: float = 1.0) -> dict[str, Tensor]:
        """images (B, 3, S, S) as BodyExpert.look takes them.

        knuckles: true MCP joints (B, 2, 4, 2) in pixels of the images, index to pinky, of the
        right and the left hand, to train with (3.5.2); None: those that the expert predicts.
        hand_valid: (B, 2), 0 for hands that cannot be seen. scale: of Delta theta; with 0 the
        result is the expert's, bit for bit.
        Returns what BodyExpert.assemble does, and initial_pose (B, 22, 3, 3), theta_0's rotations.
        """
        config, expert = self.config, self.expert
        seen, size = expert.look(images), images.shape[-1]
        if config.inject == "none":
            pose_6d = initial = expert.initial_pose(seen)
        elif config.inject == "adapter":
            initial = expert.initial_pose(seen)
            pose_6d = initial + scale * self.pose_offset(seen, size, knuckles, hand_valid)  # Eq. 4
        else:
            features, _ = self.knuckles(seen, size, knuckles, hand_valid)
            pose_6d = initial = self.rival_pose(seen, features)
        return expert.assemble(seen, pose_6d, size) | {
            "initial_pose": rotation_6d_to_matrix(from_interleaved(initial))}

    def pose_offset(self, seen: Seen, size: int, knuckles: Tensor | None,
                    hand_valid: Tensor | None) -> Tensor:
        """Delta theta (B, 22, 6), to be added to SMPLer-X's 6D before it becomes a rotation."""
        if self.config.context == "tokens":
            context, visible = self.token_proj(seen.tokens[:, TASKS["pose"]]), None
        else:
            context, visible = self.knuckles(seen, size, knuckles, hand_valid)
        token = self.decoder(context, visible)[:, 0]  # CA(Q'', K'', V'') of Eq. 4
        return self.offset(token).float().unflatten(1, (22, 6))

    def rival_pose(self, seen: Seen, knuckles: Tensor) -> Tensor:
        """Interleaved 6D (B, 22, 6) of the expert's own regressor, with F^J (B, 8, 512) in it."""
        regressor = self.expert.body_regressor
        features = regressor.body_conv(seen.tokens[:, TASKS["pose"]])
        if self.config.inject == "weighted":
            features = self.moderator(features, knuckles.mean(1, keepdim=True))
            return regressor.rotations(features, seen.joints)
        return regressor.rotations(features, seen.joints, knuckles.flatten(1))

    def knuckles(self, seen: Seen, size: int, pixels: Tensor | None,
                 hand_valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """F^J: features (B, 8, 512) at the MCP joints, and which may be looked at (B, 8).

        What is off the hand's map, or a hand that cannot be seen, has features of zero.
        """
        last = self.config.expert.hand_cells - 1
        if pixels is None:
            positions = seen.hand_joints[:, :, KNUCKLES, :2]  # (B, 2, 4, 2)
            inside = torch.ones_like(positions[..., 0], dtype=torch.bool)
        else:
            positions, inside = in_boxes(self.expert.to_cells(pixels, size), seen.hand_boxes,
                                         last + 1)
        if hand_valid is not None:
            inside = inside & (hand_valid[..., None] > 0)
        positions = torch.where(inside[..., None], positions, 0.0).clamp(0, last)
        maps = self.project_maps(seen.hand_maps)  # (2 B, 512, 16, 16), both hands of a picture
        features = sample_at(maps, positions.flatten(0, 1)).unflatten(0, inside.shape[:2])
        features = (features * inside[..., None]).flatten(1, 2)
        if self.config.joint_embedding == "learned":
            features = features + self.joint_embedding
        if self.config.missing == "zeros":
            return features, None
        inside = inside.flatten(1)
        return features, inside | ~inside.any(1, keepdim=True)  # a softmax needs something

    def project_maps(self, maps: Tensor) -> Tensor:
        """The 1-by-1 convolution: (B, 2, 1280, 16, 16) -> (2 B, 512, 16, 16)."""
        if self.config.joint_proj == "separate":
            return torch.stack([net(maps[:, side]) for side, net in enumerate(self.joint_proj)],
                               1).flatten(0, 1)
        reuse = self.config.joint_proj == "reuse_hand_conv"
        return (self.expert.hand_regressor.hand_conv if reuse else self.joint_proj)(
            maps.flatten(0, 1))


def in_boxes(points: Tensor, boxes: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Points (B, 2, N, 2) and boxes (B, 2, 4) in one unit -> positions in maps of these boxes.

    The left hand's map is mirrored: x -> cells - 1 - x. Also returns which of them are in their
    box (B, 2, N). SMPLer-X makes the targets of its position net like this, half a cell beside
    where roi_align has the middles of cells; so true and predicted joints are one kind of number.
    """
    at = (points - boxes[:, :, None, :2]) * (cells / boxes[:, :, None, 2:])
    inside = ((at >= 0) & (at <= cells)).all(-1)
    right, left = at.unbind(1)
    left = torch.stack((cells - 1 - left[..., 0], left[..., 1]), -1)
    return torch.stack((right, left), 1), inside


# ------------------------------------------------------------------------------------- losses


def hand_samples(batch: Mapping[str, Tensor], arm: str = "arm") -> dict[str, Tensor]:
    """Both hands of people as 2 B samples, all of them right-handed, to train with (3.5.1).

    batch: as data.py makes it, pairs [right, left], the left one's values mirrored: hand_images
    (B, 2, 3, S, S), hand_pose (B, 2, 16, 3, 3), hand_joints (B, 2, 21, 3) in metres,
    hand_keypoints_2d (B, 2, 21, 2) in pixels of the crops, hand_valid (B, 2), body_pose
    (B, 55, 3, 3). Where they are known also hand_vertices (B, 2, 778, 3), hand_betas (B, 2, 10)
    with hand_betas_valid (B, 2), and body_pose_valid (B,), default 1. arm: of HandConfig.
    Returns images, pose, joints, keypoints_2d from -0.5 to 0.5, valid, arm, arm_valid; perhaps
    vertices, betas and betas_valid.
    """
    flat = {name.removeprefix("hand_"): value.flatten(0, 1) for name, value in batch.items()
            if name.startswith("hand_") and value.ndim >= 2}
    size = batch["hand_images"].shape[-1]
    known = batch.get("body_pose_valid", torch.ones_like(batch["hand_valid"][:, 0]))
    samples = {name: flat[name] for name in ("images", "pose", "joints", "vertices", "betas",
                                             "betas_valid", "valid") if name in flat}
    return samples | {
        "keypoints_2d": flat["keypoints_2d"] / size - 0.5,
        "arm": arm_pose(batch["body_pose"], arm).flatten(0, 1),  # the true one (3.5.1)
        "arm_valid": known[:, None].expand(-1, 2).flatten()}


def pose_distance(predicted: Tensor, true: Tensor, term: str) -> tuple[Tensor, Tensor]:
    """The two terms of Eq. 6 for each joint: rotations (B, J, 3, 3) twice -> (B, J) twice.

    term: "l2sq" as in the equation, or "l1" as in the text above it. Of rotation matrices
    1 - cos = ||difference||^2 / 6, so with "l2sq" Eq. 6 is one loss under two names.
    """
    predicted, true = predicted.flatten(2), true.flatten(2)
    difference = predicted - true
    norm = difference.square() if term == "l2sq" else difference.abs()
    return norm.sum(-1), 1 - F.cosine_similarity(predicted, true, dim=-1)


def hand_losses(prediction: Mapping[str, Tensor], samples: Mapping[str, Tensor], hand: Callable,
                config: HandConfig | HandExpertConfig) -> dict[str, Tensor]:
    """The unweighted terms of Eq. 5, each a scalar: sums over a hand, means over the batch.

    prediction: of HandAdapter.forward. samples: of hand_samples. hand(betas, rotations) returns a
    right hand's vertices (B, 778, 3) in metres, of which hand.keypoint_regressor (21, 778) makes
    joints. 3D is relative to the wrist. What is invalid counts as zero; what is not known at all,
    vertices or betas, is 0.
    """
    vertices = hand(prediction["betas"], prediction["hand_pose"]).vertices
    joints = torch.einsum("jv,bvc->bjc", hand.keypoint_regressor.to(vertices), vertices)
    focal = getattr(config, "expert", config).focal
    flat = project(joints, hand_translation(prediction["camera"], focal), focal)
    wrist, true_wrist = joints[:, :1], samples["joints"][:, :1]
    valid = samples["valid"]

    def reduced(error: Tensor) -> Tensor:
        known = valid.view(-1, *[1] * (error.ndim - 1)) > 0  # what is invalid may be NaN
        return torch.where(known, error, 0.0).flatten(1).sum(1).mean()

    rotation, cosine = pose_distance(prediction["hand_pose"], samples["pose"], config.pose_term)
    terms = {
        "keypoints_2d": reduced((flat - samples["keypoints_2d"]).abs()),  # L_2D
        "keypoints_3d": reduced((joints - wrist - samples["joints"] + true_wrist).abs()),  # L_3D
        "vertices": vertices.new_zeros(()), "betas": vertices.new_zeros(()),
        "pose": reduced(rotation) + reduced(cosine) / cosine.shape[1],  # L_theta, Eq. 6
    }
    if "keypoints_img" in prediction:
        terms["keypoints_img"] = reduced(
            (prediction["keypoints_img"] - samples["keypoints_2d"]).abs())
    if "vertices" in samples:  # L_v
        terms["vertices"] = reduced(
            (vertices - wrist - samples["vertices"] + true_wrist).abs())
    if "betas" in samples:  # L_beta
        known = samples.get("betas_valid", valid)[:, None]
        terms["betas"] = reduced(known * (prediction["betas"] - samples["betas"]).square())
    return terms


def hand_total_loss(terms: Mapping[str, Tensor], config: HandTraining) -> Tensor:
    """Eq. 5. There is no adversarial loss ("we do not use")."""
    loss = (config.weight_keypoints_2d * terms["keypoints_2d"]
            + config.weight_keypoints_3d * terms["keypoints_3d"]
            + config.weight_vertices * terms["vertices"]
            + config.weight_pose * terms["pose"] + config.weight_betas * terms["betas"])
    if "keypoints_img" in terms:
        loss = loss + config.weight_keypoints_img * terms["keypoints_img"]
    return loss


def true_knuckles(batch: Mapping[str, Tensor]) -> Tensor:
    """MCP joints (B, 2, 4, 2) in pixels of the images, for BodyAdapter.forward (3.5.2)."""
    return batch["keypoints_2d"][:, torch.tensor(HANDS)[:, 1:][:, KNUCKLES]]


def heat_map_targets(batch: Mapping[str, Tensor], expert: BodyExpert,
                     boxes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What both position nets should say, and where that counts: body (B, 25, 3), (B, 25), and
    hands (B, 2, 20, 3), (B, 2, 20).

    boxes: the hands' maps (B, 2, 4) in cells, as predicted. Depths, relative to pelvis or wrist,
    are bins: 2 m for the body, 0.3 m for a hand (SMPLer-X).
    """
    config, size = expert.config, batch["image"].shape[-1]
    cells, valid = expert.to_cells(batch["keypoints_2d"], size), batch["keypoints_valid"] > 0
    depth, hands = batch["keypoints_3d"][..., 2], torch.tensor(HANDS)
    half = config.depth_bins / 2
    body = torch.cat((cells[:, POSITIONED], (1 + (depth[:, POSITIONED, None] - depth[:, :1, None])
                                             / (BODY_DEPTH / 2)) * half), 2)
    limit = body.new_tensor([*reversed(config.grid), config.depth_bins])
    in_map = ((body >= 0) & (body < limit)).all(-1)
    at, in_box = in_boxes(cells[:, hands[:, 1:]], boxes, config.hand_cells)
    bins = 1 + (depth[:, hands[:, 1:]] - depth[:, hands[:, :1]]) / (HAND_DEPTH / 2)
    hand = torch.cat((at, bins[..., None] * half), 3)
    return [(body, valid[:, POSITIONED] & in_map), (hand, valid[:, hands[:, 1:]] & in_box)]


def body_losses(prediction: Mapping[str, Tensor], batch: Mapping[str, Tensor], body: Callable,
                expert: BodyExpert, config: BodyConfig | BodyExpertConfig) -> dict[str, Tensor]:
    """The unweighted terms of Eq. 7 and 8 and of SMPLer-X, each a scalar: means over everything.

    prediction: of BodyAdapter.forward or BodyExpert.forward. batch: as data.py makes it: image
    (B, 3, S, S), body_pose (B, 55, 3, 3), betas, expression (B, 10), keypoints_3d (B, 76, 3) in
    metres, keypoints_2d (B, 76, 2) in pixels, keypoints_valid (B, 76), hand_boxes (B, 2, 4) x, y,
    width, height in pixels, tight, and hand_valid (B, 2); perhaps betas_valid and
    expression_valid (B,), default 1. body(betas, rotations, expression) returns a body,
    body.keypoints of that its 76 keypoints. Invalid counts as zero.
    """
    keypoints = body.keypoints(body(prediction["betas"], prediction["body_pose"],
                                    prediction["expression"]))
    rows, _ = expert.config.grid
    flat = project(keypoints, prediction["translation"], expert.config.focal) * rows
    true_flat = (batch["keypoints_2d"] / batch["image"].shape[-1] - 0.5) * rows  # cells
    true = batch["keypoints_3d"] - batch["keypoints_3d"][:, :1]

    def mean(error: Tensor, valid: Tensor) -> Tensor:
        return torch.where(valid[..., None] > 0, error.abs(), 0.0).mean()

    def shape(name: str) -> Tensor:
        known = batch.get(f"{name}_valid", torch.ones_like(batch[name][:, 0]))
        return mean(prediction[name] - batch[name], known)

    joints, hand_joints = heat_map_targets(batch, expert, prediction["map_boxes"])
    x, y, *sides = expert.to_cells(batch["hand_boxes"].unflatten(2, (2, 2)),
                                   batch["image"].shape[-1]).flatten(2).unbind(2)
    corner, side = torch.stack((x, y), 2), batch["hand_boxes"][..., 2:] * (
        rows / batch["image"].shape[-1])
    posed = [*range(23), *range(25, 55)]  # 53: SMPL-X's 55 without the eyes
    rotation, cosine = pose_distance(prediction["body_pose"][:, posed],
                                     batch["body_pose"][:, posed], config.pose_term)
    return {
        "keypoints_img": mean(prediction["joints"] - joints[0], joints[1])
        + mean(prediction["hand_joints"] - hand_joints[0], hand_joints[1]),  # L_img
        "keypoints_proj": mean(flat - true_flat, batch["keypoints_valid"]),  # L_proj
        "keypoints_3d": (keypoints - keypoints[:, :1] - true).abs().mean(),  # L_3D
        "pose": (rotation / 9 + cosine).mean(),  # L_theta
        "betas": shape("betas"), "expression": shape("expression"),  # L_beta
        "boxes": mean(prediction["box_centers"][:, :2] - corner - side / 2, batch["hand_valid"])
        + mean(prediction["box_sizes"][:, :2] - side, batch["hand_valid"]),
    }


def body_total_loss(terms: Mapping[str, Tensor], config: BodyConfig | BodyExpertConfig) -> Tensor:
    """Eq. 7. What nothing trainable can change is left out: beside a frozen expert L_img, L_beta.

    The expert itself, and the rivals that train its head, learn from all of SMPLer-X's terms.
    """
    loss = (config.weight_keypoints_2d * terms["keypoints_proj"]
            + config.weight_keypoints_3d * terms["keypoints_3d"]
            + config.weight_pose * terms["pose"])
    if getattr(config, "trainable", "all") == "adapter":
        return loss
    expert = getattr(config, "expert", config)
    return (loss + config.weight_keypoints_2d * terms["keypoints_img"]  # Eq. 8
            + config.weight_betas * terms["betas"]
            + expert.weight_expression * terms["expression"]
            + expert.weight_boxes * terms["boxes"])


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Groups for AdamW: weight decay on matrices and kernels alone, frozen parameters left out."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim < 2 or re.search(r"(pos_embed|_embedding|task_tokens)$", name)
        if parameter.requires_grad:
            groups[not spared].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0}]


# ----------------------------------------------------------------------------------- dual path


def share_twist(elbow: Tensor, wrist: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Give what a wrist twists beyond `most` radians to its elbow, (B, 3, 3) twice -> the same.

    The forearm twists, not the wrist (PyMAF-X). In SMPL-X's rest pose the arms lie along x, so a
    rotation about x leaves the wrist where it is; elbow @ wrist does not change.
    """
    def root(square: Tensor) -> Tensor:
        return square.clamp_min(0).sqrt()

    xx, yy, zz = wrist.diagonal(dim1=1, dim2=2).unbind(1)
    sign = torch.where(wrist[:, 2, 1] < wrist[:, 1, 2], -1.0, 1.0)
    angle = 2 * torch.atan2(sign * root(1 + xx - yy - zz), root(1 + xx + yy + zz))
    excess = angle - angle.clamp(-most, most)
    turn = axis_angle_to_matrix(F.pad(excess[:, None], (0, 2)))
    return elbow @ turn, turn.mT @ wrist


def merge(body_pose: Tensor, hand_pose: Tensor, valid: Tensor | None = None, *, wrist: str = "ik",
          max_twist: float = 0.4 * math.pi) -> Tensor:
    """Put MANO hands on an SMPL-X body: the most asked question about these two models.

    body_pose: (B, 55, 3, 3). hand_pose: (B, 2, 16, 3, 3) of the hand network, global orientation
    in the camera's frame and absolute fingers; the left one mirrored. valid: (B, 2), 0 for hands
    that stay the body's. Returns (B, 55, 3, 3).

    1. The left hand is mirrored back: M R M for all sixteen rotations.
    2. A MANO hand's orientation is global, an SMPL-X wrist is relative to its elbow. So wrist =
       (product of all rotations from the pelvis to the elbow)^T times orientation ("ik").
    3. Fingers are copied. They are absolute here: smplx's layers with flat_hand_mean=False (their
       default) add a mean hand, which smplx_parameters takes off.
    wrist: "ik"; "twist", the same with share_twist; "body" keeps the body's.
    """
    pose = body_pose.clone()
    hands = torch.stack((hand_pose[:, 0], mirror(hand_pose[:, 1])), 1)
    for side, fingers in enumerate((RIGHT_FINGERS, LEFT_FINGERS)):
        *chain, last = ARMS["arm"][side]
        pose[:, fingers] = hands[:, side, 1:]
        if wrist != "body":
            elbow = chain_product(body_pose[:, chain])  # its global rotation
            pose[:, last] = elbow.mT @ hands[:, side, 0]
        if wrist == "twist":
            pose[:, chain[-1]], pose[:, last] = share_twist(
                pose[:, chain[-1]], pose[:, last], max_twist)
        if valid is not None:
            unseen, part = valid[:, side] <= 0, [chain[-1], last, *range(55)[fingers]]
            pose[:, part] = torch.where(unseen[:, None, None, None], body_pose[:, part],
                                        pose[:, part])
    return pose


def crop_square(images: Tensor, centers: Tensor, sides: Tensor, size: int,
                mirrored: bool = False) -> Tensor:
    """Square crops (B, 3, size, size) in 0..255 of images (B, 3, H, W), black outside of them.

    centers (B, 2) and sides (B,) in pixels. Each pixel is the mean of several, against aliasing.
    """
    samples = int((sides.amax() / size).ceil().clamp(1, 8)) if len(sides) else 1
    at = (torch.arange(size * samples, device=sides.device) + 0.5) / (size * samples) - 0.5
    steps = at * sides[:, None]  # (B, size * samples)
    x, y = centers[:, :1] + steps * (-1 if mirrored else 1), centers[:, 1:] + steps
    grid = torch.stack((x[:, None].expand(-1, len(at), -1), y[..., None].expand(-1, -1, len(at))),
                       -1)
    size_of_image = sides.new_tensor([images.shape[3], images.shape[2]])
    pixels = F.grid_sample(images.to(grid), 2 * grid / size_of_image - 1, align_corners=False)
    return F.avg_pool2d(pixels, samples)


def crop_hands(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Squares around both hands: (B, 3, H, W), (B, 2, 4) -> (B, 2, 3, size, size) in 0..255.

    boxes: x, y, width, height in pixels; those of SMPLer-X are twice as wide as the hand already,
    so nothing is added but what makes them 3 : 4, which is what HaMeR sees of a square. The left
    hand is mirrored.
    """
    centers = boxes[..., :2] + boxes[..., 2:] / 2
    sides = torch.maximum(boxes[..., 3], boxes[..., 2] * 4 / 3)  # (B, 2)
    return torch.stack([crop_square(images, centers[:, hand], sides[:, hand], size, hand == 1)
                        for hand in range(2)], 1)


class HMRAdapter(nn.Module):
    """Both adapted experts: from pictures of people to SMPL-X (3.1, Fig. 2)."""

    def __init__(self, config: Config, hand: HandAdapter | None = None,
                 body: BodyAdapter | None = None) -> None:
        """hand, body: trained ones, of the configs in `config`."""
        super().__init__()
        self.config = config
        self.hand = HandAdapter(config.hand) if hand is None else hand
        self.body = BodyAdapter(config.body) if body is None else body

    def forward(self, images: Tensor, hand_images: Tensor | None = None, *,
                body_scale: float = 1.0, hand_scale: float = 1.0) -> dict[str, Tensor]:
        """images (B, 3, S, S) as BodyExpert.look takes them.

        hand_images: (B, 2, 3, H, H) as HandExpert.forward takes them, the left one mirrored; by
        default cut out of the images where the body expert sees hands.
        body_scale, hand_scale: of the adapters; with 0 and 0 these are the two experts combined.
        Returns what BodyAdapter.forward does, its body_pose as body_path, with hand_pose
        (B, 2, 16, 3, 3), the left one mirrored, and body_pose (B, 55, 3, 3), the two merged.
        """
        found = self.body(images, scale=body_scale)
        if hand_images is None:
            size = self.hand.config.expert.image_size
            hand_images = crop_hands(images, found["hand_boxes"], size)
        return self.join(found, hand_images, scale=hand_scale)

    def join(self, found: dict[str, Tensor], hand_images: Tensor, valid: Tensor | None = None, *,
             scale: float = 1.0) -> dict[str, Tensor]:
        """The hand path and the merge, after the body path; valid: (B, 2), of `merge`."""
        body_pose, config = found["body_pose"], self.config
        guide = body_pose if config.guide == "refined" else found["initial_pose"]
        arms = arm_pose(guide, self.hand.config.arm).flatten(0, 1)
        hands = self.hand(hand_images.flatten(0, 1), arms, scale=scale)
        hand_pose = hands["hand_pose"].unflatten(0, (len(body_pose), 2))
        return found | {"body_path": body_pose, "hand_pose": hand_pose, "body_pose": merge(
            body_pose, hand_pose, valid, wrist=config.wrist, max_twist=config.max_twist)}


# --------------------------------------------------------------------------------- checkpoints


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


def load_checkpoint(source: str | PathLike | Mapping
                    ) -> HandExpert | BodyExpert | HandAdapter | BodyAdapter:
    """The model in one of train.py's checkpoints, whichever it is, in evaluation mode on the CPU.

    Raises FileNotFoundError, or ValueError for anything else and for weights that do not fit.
    """
    state, config = read_checkpoint(source)
    kinds = {"expert.mano_head.": (HandAdapter, HandConfig), "mano_head.": (HandExpert,
             HandExpertConfig), "expert.encoder.": (BodyAdapter, BodyConfig),
             "encoder.": (BodyExpert, BodyExpertConfig)}
    kind = next((kinds[prefix] for prefix in kinds if any(
        name.startswith(prefix) for name in state)), None)
    require(config is not None and kind is not None,
            "no checkpoint of train.py for HMR-Adapter: load_hand_expert and load_body_expert take "
            "the released weights of HaMeR and SMPLer-X")
    return from_checkpoint(*kind, config, state)


def load_released(expert: nn.Module, state: Mapping[str, Tensor], ignored: str,
                  strict: bool) -> None:
    """Copy a release's weights, as load_weights; buffers that no release has keep their values."""
    own = {name: value for name, value in expert.state_dict().items()
           if name not in state and re.search(r"(hand_mean|num_batches_tracked)$", name)}
    load_weights(expert, own | state, ignored=ignored, strict=strict)


def load_hand_expert(source: str | PathLike | Mapping, *, strict: bool = True) -> HandExpert:
    """The hand expert in train.py's checkpoint, alone or in an adapter, or in HaMeR's release.

    source: a file or its content. Raises like load_checkpoint; strict=False prints what does not
    fit and loads the rest.
    """
    state, config = read_checkpoint(source)
    if config is not None:
        return expert_of(load_checkpoint(source), HandExpert).requires_grad_(True)
    require(any(name.startswith("mano_head.") for name in state),
            "no hand expert in this checkpoint: expected train.py's or HaMeR's")
    expert = HandExpert(HandExpertConfig())
    load_released(expert, state, r"(discriminator|mano)\.|initialized$", strict)
    return expert.eval()


def load_body_expert(source: str | PathLike | Mapping, *, hand_mean: Tensor | None = None,
                     strict: bool = True) -> BodyExpert:
    """The whole-body expert in train.py's checkpoint, alone or in an adapter, or in SMPLer-X-H's.

    hand_mean: axis-angles (2, 15, 3) of SMPL-X's mean hands (hands_meanr, hands_meanl), to which
    the released weights' fingers are relative. source, strict and errors: as load_hand_expert's.
    """
    state, config = read_checkpoint(source)
    if config is not None:
        return expert_of(load_checkpoint(source), BodyExpert).requires_grad_(True)
    for pattern, name in SMPLER_X_NAMES:
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    require(any(name.startswith("body_regressor.") for name in state),
            "no whole-body expert in this checkpoint: expected train.py's or SMPLer-X's")
    expert = BodyExpert(BodyExpertConfig())
    load_released(expert, state, r"smplx_layer\.", strict)
    if hand_mean is None:
        print("fingers of these weights are relative to SMPL-X's mean hand: give hand_mean to make "
              "them absolute (the dual path takes no fingers from this expert)")
    else:
        expert.hand_mean.copy_(hand_mean)
    return expert.eval()


SMPLER_X_NAMES = (  # what older releases call their parts
    (r"^(module\.)+", ""), (r"^backbone\.", "encoder."),
    (r"^body_rotation_net\.", "body_regressor."), (r"^hand_rotation_net\.", "hand_regressor."))


def expert_of(model: nn.Module, kind: type) -> nn.Module:
    """The model, or the expert inside it; ValueError if that is of another kind."""
    expert = getattr(model, "expert", model)
    require(isinstance(expert, kind),
            f"this checkpoint has a {type(expert).__name__}: expected a {kind.__name__}")
    return expert


# ----------------------------------------------------------------------------------- inference


def smplx_parameters(body_pose: Tensor, hand_mean: Tensor | None = None) -> dict[str, Tensor]:
    """Rotations (B, 55, 3, 3) as the axis-angles that smplx's SMPLX layers take, by their names.

    hand_mean: (2, 15, 3), hands_meanr and hands_meanl of the model file, for layers made with
    flat_hand_mean=False, smplx's default; None: for flat_hand_mean=True.
    """
    pose = matrix_to_axis_angle(body_pose)
    if hand_mean is not None:
        right, left = hand_mean.to(pose)
        pose[:, RIGHT_FINGERS] -= right
        pose[:, LEFT_FINGERS] -= left
    parts = {"global_orient": slice(0, 1), "body_pose": slice(1, 22), "jaw_pose": JAW,
             "leye_pose": slice(23, 24), "reye_pose": slice(24, 25),
             "left_hand_pose": LEFT_FINGERS, "right_hand_pose": RIGHT_FINGERS}
    return {name: pose[:, part].flatten(1) for name, part in parts.items()}


def person_square(shape: Sequence[int], box: Sequence[float] | None) -> tuple[np.ndarray, float]:
    """Centre (2,) and side of the square crop of a person in a picture of this (height, width).

    box: x, y, width, height in pixels, made 3 : 4 and a quarter larger (SMPLer-X); None: the
    whole picture, not enlarged. ValueError for a box that is not on the picture.
    """
    height, width = shape[:2]
    if box is None:
        return np.array([width, height]) / 2, max(height, width * 4 / 3)
    box = np.asarray(box, np.float64)
    require(box.shape == (4,) and np.isfinite(box).all() and min(box[2:]) > 0
            and max(box[:2] - (width, height)) < 0 < min(box[:2] + box[2:]),
            f"box {box.tolist()}: expected x,y,width,height on the {width} x {height} picture")
    return box[:2] + box[2:] / 2, 1.25 * max(box[3], box[2] * 4 / 3)


@torch.inference_mode()
def predict(model: HMRAdapter, image: np.ndarray, body: Callable, *,
            box: Sequence[float] | None = None) -> dict[str, np.ndarray]:
    """The inference loop: one person of a whole picture as an SMPL-X mesh in front of it.

    image: (H, W, 3) uint8 RGB. body(betas, rotations, expression, transl) returns vertices and
    joints, as bodymodels.load_model("wholebody"). box: see person_square.
    Hands are cut out of the picture itself, not of the person's crop, which has few pixels of
    them. A hand whose box has its centre outside of the picture stays the body expert's.
    Returns float32 arrays: vertices (V, 3), joints (K, 3) in metres, the frame of a camera with
    intrinsics K (3, 3) (its axis goes through the middle of the box); transl (3,); rotations
    (55, 3, 3); betas, expression (10,); the axis-angles of smplx_parameters, fingers absolute;
    hand_boxes (2, 4) x, y, width, height in pixels, [right, left]; hand_valid (2,); and box, the
    person's square. Raises ValueError for bad input.
    """
    require(not model.training, "the model is in training mode: call model.eval() first")
    require(image.ndim == 3 and image.shape[2] == 3 and image.size and image.dtype == np.uint8,
            f"image {image.shape} of {image.dtype}: expected (H, W, 3) uint8 RGB")
    center, side = person_square(image.shape, box)
    parameter = next(model.parameters())
    picture = torch.tensor(image.transpose(2, 0, 1)[None]).to(parameter)  # (1, 3, H, W)
    size = model.body.config.expert.image_size
    at, sides = torch.tensor(center[None]).to(parameter), parameter.new_tensor([side])
    found = model.body(crop_square(picture, at, sides, size))
    boxes = found["hand_boxes"] * (side / size)
    boxes[..., :2] += at[:, None] - side / 2
    middles = boxes[..., :2] + boxes[..., 2:] / 2
    valid = ((middles >= 0) & (middles < middles.new_tensor(image.shape[1::-1]))).all(-1)
    hand_size = model.hand.config.expert.image_size
    found = model.join(found, crop_hands(picture, boxes, hand_size), valid.float())

    require(all(value.isfinite().all() for value in found.values()),
            "the network's output is not finite: its weights are damaged, or training diverged")
    found = {name: value.float().cpu() for name, value in found.items()}
    mesh = body(found["betas"], found["body_pose"], found["expression"], found["translation"])
    focal = model.body.config.expert.focal * side
    arrays = {
        "vertices": mesh.vertices, "joints": mesh.joints, "transl": found["translation"],
        "rotations": found["body_pose"], "betas": found["betas"],
        "expression": found["expression"], "hand_boxes": boxes.cpu(), "hand_valid": valid.cpu(),
    } | smplx_parameters(found["body_pose"])
    return {name: value[0].numpy().astype(np.float32) for name, value in arrays.items()} | {
        "K": np.array([[focal, 0, center[0]], [0, focal, center[1]], [0, 0, 1]], np.float32),
        "box": np.array([*(center - side / 2), side, side], np.float32)}


# -------------------------------------------------------------------------------- command line

DISCRIMINATOR = 1_545_211  # parameters of HaMeR's adversary, which no result depends on
PAPER_SAYS = {  # trainable parameters in the paper's tables
    "Table 3, No. 1": "671M", "Table 3, No. 3": "39M", "Table 3, No. 4": "39M",
    "Table 3, No. 5": "27M", "Table 3, No. 6": "27M", "Table 4, No. 1": "662M",
    "Table 4, No. 3": "31M", "Table 4, No. 4": "31M", "Table 4, No. 5": "37M",
    "Table 4, No. 6": "37M",
}
REMARK = f"""\
671M is HaMeR with its discriminator, {DISCRIMINATOR:,} parameters more than here, cut off, not
rounded. 27M: out-projections are copied and trained too, or it would be 24M. 37M: no composition
follows from the paper; this one, of HaMeR's numbers alone, rounds to it. With one query a
softmax is 1: of either adapter's SA the thirds for q and k, 6,291,456, never change."""


def count(module: nn.Module, trainable: bool = False) -> int:
    """Parameters of a module, or those that train."""
    return sum(parameter.numel() for parameter in module.parameters()
               if parameter.requires_grad or not trainable)


def on_meta(config: HandConfig | BodyConfig) -> HandAdapter | BodyAdapter:
    """The model of a config without its numbers, to count them."""
    with torch.device("meta"):
        return (HandAdapter if isinstance(config, HandConfig) else BodyAdapter)(config)


def count_parameters(config: Config) -> dict[str, tuple[int, int]]:
    """(all, trainable) parameters of each part of both paths, without allocating them."""
    counts = {}
    for path, model in (("hand", on_meta(config.hand)), ("body", on_meta(config.body))):
        for owner, label in ((model.expert, "expert"), (model, "adapter")):
            for name, part in owner.named_children():
                if part is not model.expert:
                    counts[f"{path} {label}: {name}"] = count(part), count(part, True)
            for name, parameter in owner.named_parameters(recurse=False):
                counts[f"{path} {label}: {name}"] = (parameter.numel(),) * 2
        counts[f"{path} expert"] = count(model.expert), count(model.expert, True)
        new, trainable = (count(model, flag) - count(model.expert, flag) for flag in (False, True))
        counts[f"{path} adapter"] = new, trainable
    return counts


def print_summary(as_json: bool) -> None:
    """Parameters of the paper's and the cpu preset by part, and of the tables' rows."""
    presets = {name: count_parameters(PRESETS[name]) for name in ("paper", "cpu")}
    rows = {row: (count(on_meta(baseline(row)), True), says) for row, says in PAPER_SAYS.items()}
    if as_json:
        print(json.dumps({
            "parameters": {name: {part: {"all": both[0], "trainable": both[1]}
                                  for part, both in parts.items()}
                           for name, parts in presets.items()},
            "rows": {row: {"trainable": number, "paper": says}
                     for row, (number, says) in rows.items()}, "remark": REMARK}, indent=1))
        return
    for name, parts in presets.items():
        print(f"{name:<34}{'parameters':>14}{'trainable':>14}")
        for part, (number, trainable) in parts.items():
            print(f"  {part:<32}{number:>14,}{trainable:>14,}")
    print(f"\n{'trainable in the tables':<34}{'here':>14}{'paper':>14}")
    for row, (number, says) in rows.items():
        print(f"  {row:<32}{number:>14,}{says:>14}")
    print(f"\n{REMARK}")


def load_paths(hand: str | PathLike, body: str | PathLike) -> HMRAdapter:
    """Both paths from train.py's checkpoints of stages "hand" and "body", in evaluation mode."""
    models = {}
    for name, source, kind in (("hand", hand, HandAdapter), ("body", body, BodyAdapter)):
        models[name] = load_checkpoint(source)
        require(isinstance(models[name], kind), f"{source} has a {type(models[name]).__name__}: "
                f"expected a {kind.__name__}, of train.py --stage {name}")
    config = Config(models["hand"].config, models["body"].config)
    return HMRAdapter(config, **models).eval()


def reconstruct(arguments: argparse.Namespace) -> None:
    """Predict the person in a picture; write overlay, arrays and mesh."""
    import matplotlib.image

    import bodymodels
    import data

    try:
        box = arguments.box and [float(number) for number in arguments.box.split(",")]
    except ValueError:
        raise ValueError(f"--box {arguments.box}: expected x,y,width,height") from None
    body = bodymodels.load_model(arguments.model)
    require(len(body.parents) == 55, f"--model {arguments.model} has {len(body.parents)} joints: "
            "expected an SMPL-X model, with 55")
    image, faces = data.read_image(arguments.image), body.faces.numpy()
    found = predict(load_paths(arguments.hand, arguments.body), image, body, box=box)
    overlay = bodymodels.render(found["vertices"], faces, found["K"], image.shape[:2],
                                background=image / np.float32(255), supersample=2)
    png, npz = io.BytesIO(), io.BytesIO()
    matplotlib.image.imsave(png, overlay.image, format="png")
    np.savez_compressed(npz, faces=faces, **found)
    base = arguments.out / Path(arguments.image).stem
    arguments.out.mkdir(parents=True, exist_ok=True)
    bodymodels.write_atomically(f"{base}_overlay.png", png.getvalue())  # base.png may be IMAGE
    bodymodels.write_atomically(f"{base}.npz", npz.getvalue())
    upright = (found["vertices"] - found["joints"][0]) * (1, -1, -1)  # y up, as viewers expect
    for ending in ("obj", "ply", "glb"):
        bodymodels.save_mesh(f"{base}.{ending}", upright, faces)
    print(f"wrote {base}_overlay.png, .npz, .obj, .ply and .glb")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 after one line about bad input."""
    parser = argparse.ArgumentParser(
        description="HMR-Adapter: the body, hands and face of the person in a picture.",
        epilog="Writes the mesh over the picture (_overlay.png), the mesh (.obj, .ply, .glb: "
               "metres, pelvis at the origin, y up) and the arrays of hmr_adapter.predict (.npz).")
    add, assets = parser.add_argument, Path(__file__).with_name("assets")
    add("image", nargs="?", help="a picture with one person")
    add("--hand", default=assets / "hmr_adapter_hand_cpu.pt", metavar="FILE",
        help="checkpoint of train.py --stage hand (default: the small one beside this file)")
    add("--body", default=assets / "hmr_adapter_body_cpu.pt", metavar="FILE",
        help="checkpoint of train.py --stage body (default: the small one beside this file)")
    add("--model", default="wholebody", metavar="FILE",
        help="SMPLX_NEUTRAL.npz, for checkpoints trained on SMPL-X (default: the free body)")
    add("--box", help="x,y,w,h of the person in pixels (default: the whole picture)")
    add("--out", type=Path, default=Path("output"), help="folder to write to (default: output)")
    add("--summary", action="store_true", help="print the parameters of every part instead")
    add("--json", action="store_true", help="print them as JSON")
    arguments = parser.parse_args(argv)
    try:
        if arguments.summary:
            print_summary(arguments.json)
        else:
            require(arguments.image is not None, "name a picture, or give --summary")
            reconstruct(arguments)
    except (ValueError, OSError) as error:
        print(f"hmr_adapter.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
