"""HMR-Adapter: two adapters that let a frozen body model and a frozen hand model inform each other.

Anonymous authors: "HMR-Adapter: A Lightweight Adapter with Dual-Path Cross Augmentation for
Expressive Human Mesh Recovery", ACM MM 2024.

Two large pre-trained experts stay frozen: SMPLer-X for whole bodies and HaMeR for hands. The hand
adapter adds attention to the pose of the arm inside the hand expert's decoder. The body adapter is
a small decoder that reads image features at the knuckles and corrects the body expert's pose. The
refined body and hands are then merged into one SMPL-X mesh.

    where in the paper         what                                    where in this file
    3.2.2, Eq. 1   Z'          cross-attention of the hand expert      CrossAttention, Decoder
    3.2.3          theta_0     body pose of the whole-body expert      BodyExpert.initial_pose
    3.3            theta_b     the arm joint group, (J, 6)             arm_pose
                   F^B         its features, (J, 1280)                 ArmFeatures
    Eq. 2          Z''         cross-attention to the body pose        HandAdapter.decode
    Eq. 3          Z^new       the sum of both                         HandAdapter.decode
    3.4            F^J         features at eight MCP joints, (8, 512)  BodyAdapter.knuckle_features
    Eq. 4          theta-hat   theta_0 + FFN(CA(Q'', K'', V''))        BodyAdapter.poses
    Eq. 5          L (hand)    weighted sum                            hand_total_loss
    Eq. 6          L_theta     distance between rotations              pose_distance
    Eq. 7          L (body)    weighted sum                            body_total_loss
    Eq. 8          L_2D        L_img + L_proj                          body_losses
    3.1, Fig. 2    dual path   both adapters, then SMPL-X              HMRAdapter, merge
    Table 3 to 6   baselines   rivals                                  networks/adapter_rivals.py
    our choice     encoders    U-nets in place of patches, for a CPU   networks/adapter_encoders.py

The authors have published no code. Where the paper is silent we follow HaMeR (Pavlakos et al.,
CVPR 2024) and SMPLer-X (Cai et al., NeurIPS 2023), else choose; every config field names its
source. The experts use the parameter names of the released weights.

weights/hmr_adapter.py opens all checkpoints; this file alone, train.py's of the paper's own size:

    content = torch.load(FILE, weights_only=True, map_location="cpu")
    model = HandAdapter(HandConfig(**content["config"]))
    model.load_state_dict(content["model"])

What to know before you trust a number:
- The product of the eight rotations in theta_b is the hand's global orientation: with the true
  theta_b (3.5.1) the adapter trains with the answer to one of its sixteen outputs. At test time
  theta_b is predicted. Table 3 agrees: PVE falls from 30.9 to 24.1 mm (22 %), PA-PVE, which ignores
  orientation, from 9.0 to 8.4 (7 %). Report both; `arm_source` and `arm_drop` weaken this leak.
- The decoder has one query token, and a softmax over one token is 1. The q and k thirds of every
  to_qkv get no gradient: 6,291,456 of the hand adapter's 26.8 M parameters change by decay alone.
- Without `joint_embedding`, Eq. 2 does not depend on the order of the arm joints, nor Eq. 4 on that
  of the knuckles. Delta theta depends on the eight knuckle features alone, not on theta_0.

Units are metres and radians, camera axes OpenCV's (x right, y down, z forward). 6D rotations are
[column 0, column 1], except for the output of SMPLer-X's regressors (see from_interleaved). Finger
rotations are absolute (they include the mean hand). Pairs of hands are [right, left]; image, arm
and pose of a left hand are mirrored, because the hand networks know only right hands. Letters in
shapes: B batch, S side of a square crop in pixels, N tokens, D width, J joints of the arm (8).
"""

from __future__ import annotations

import copy
import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Joint numbers of SMPL-X: 22 of the body, jaw, two eyes, 15 of the left hand, 15 of the right.
# Numbers 55 to 75 are the landmarks that the smplx package appends: nose, eyes, ears, feet, tips.
JAW, EYES, LEFT_FINGERS, RIGHT_FINGERS = slice(22, 23), slice(23, 25), slice(25, 40), slice(40, 55)
MIRRORED_BODY = [0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20]
ARMS = {  # theta_b: joints "from the root joint to the Left / Right Wrist" (3.3); [right, left]
    "arm": ([0, 3, 6, 9, 14, 17, 19, 21], [0, 3, 6, 9, 13, 16, 18, 20]),
    "whole_body": (list(range(22)), MIRRORED_BODY),  # Table 5
}
POSITIONED = [  # the 25 joints, of the 76, whose positions SMPLer-X predicts
    0, 1, 2, 4, 5, 7, 8, 12, 16, 17, 18, 19, 20, 21, 60, 61, 62, 63, 64, 65, 59, 58, 57, 56, 55]
HANDS = [  # the 21 hand joints, of the 76: wrist, then thumb to pinky, base to tip; [right, left]
    [21, 52, 53, 54, 71, 40, 41, 42, 72, 43, 44, 45, 73, 49, 50, 51, 74, 46, 47, 48, 75],
    [20, 37, 38, 39, 66, 25, 26, 27, 67, 28, 29, 30, 68, 34, 35, 36, 69, 31, 32, 33, 70]]
KNUCKLES = [4, 8, 12, 16]  # MCP joints, index to pinky, of a hand's 20 joints without the wrist
TASKS = {"betas": 0, "camera": 1, "expression": 2, "jaw": 3, "pose": slice(6, 31)}  # 4, 5: unused
BODY_DEPTH, HAND_DEPTH = 2.0, 0.3  # metres of depth that the bins of a heat map span (SMPLer-X)
FOCAL = 5000 / 256  # focal length of a crop's camera in sides of the crop (HaMeR, SMPLer-X)
HEAD_WIDTH = 64  # channels of a head of the decoder (HaMeR)

# ------------------------------------------------------------------------------------ config


def require(condition: object, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Training:
    """Settings of every training run. Defaults: the adapters', 10K steps on 4 V100 (paper)."""

    batch_size: int = 128  # samples per optimiser step, over all processes: 4 x 32 (paper)
    steps: int = 10_000  # optimiser steps (paper)
    learning_rate: float = 1e-4  # of AdamW (our choice: the paper is silent, the experts had 1e-5)
    schedule: str = "constant"  # or "step": / 10 at half of the steps, "cosine" (HaMeR)
    warmup_steps: int = 100  # linear, from 0 (our choice)
    weight_decay: float = 1e-4  # (HaMeR)
    gradient_clip: float = 1.0  # norm (our choice)
    body_size: int = 512  # px, side of the pictures of people (SMPLer-X)


@dataclass(frozen=True)
class HandTraining(Training):
    """Weights of Eq. 5 (not in the paper): sums over a hand, means over the batch (HaMeR: sums)."""

    weight_keypoints_2d: float = 0.01  # lambda_2D, unit: side of the crop (HaMeR)
    weight_keypoints_3d: float = 0.05  # lambda_3D, per metre (HaMeR)
    weight_vertices: float = 0.05 * 21 / 778  # lambda_v, per metre: in all as L_3D (our choice)
    weight_pose: float = 1e-3  # lambda_theta (HaMeR)
    weight_betas_prior: float = 0.0  # of squared betas of hands of unknown shape (our choice)


@dataclass(frozen=True)
class BodyTraining(Training):
    """A weight of Eq. 7, of which the paper gives none; body_total_loss has the others."""

    weight_keypoints_3d: float = 100.0  # lambda_3D, per metre (SMPLer-X)


@dataclass(frozen=True)
class EncoderConfig:
    """The image encoder of both experts: ViT-H/16 (paper)."""

    image_size: int = 256  # px, S, a multiple of 64; the encoder uses the middle 3/4 (HaMeR)
    patch_size: int = 16  # px (HaMeR)
    vit_dim: int = 1280  # (paper)
    vit_depth: int = 32  # (HaMeR)
    vit_heads: int = 16  # (HaMeR)

    def __post_init__(self) -> None:
        require(self.image_size > 0 and self.image_size % (4 * self.patch_size) == 0, "image_size "
                f"is {self.image_size}: expected a multiple of {4 * self.patch_size}, four patches")
        require(self.vit_dim % self.vit_heads == 0,
                f"vit_heads is {self.vit_heads}: expected a divisor of vit_dim, {self.vit_dim}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the encoder's feature map: (16, 12)."""
        rows = self.image_size // self.patch_size
        return rows, 3 * rows // 4


@dataclass(frozen=True)
class DecoderConfig:
    """The transformer decoder of the hand expert; the body adapter has one of the same shape."""

    decoder_dim: int = 1024  # (HaMeR)
    decoder_layers: int = 6  # (paper)
    decoder_heads: int = 8  # (HaMeR)
    decoder_ffn: int = 1024  # hidden width of its MLPs (HaMeR)


@dataclass(frozen=True)
class HandExpertConfig(HandTraining, DecoderConfig, EncoderConfig):
    """HaMeR. Train it only if you do not have its released weights."""

    weight_vertices: float = 0.0  # HaMeR has no such loss
    learning_rate: float = 1e-5  # (HaMeR)
    steps: int = 1_000_000  # (HaMeR)


@dataclass(frozen=True)
class BodyExpertConfig(BodyTraining, EncoderConfig):
    """SMPLer-X-H. Train it only if you do not have its released weights."""

    depth_bins: int = 16  # of the heat maps of body and hands (SMPLer-X)
    hand_cells: int = 16  # width and height of a hand's feature map (SMPLer-X)
    hand_upscale: int = 4  # 2^k, of the feature map before hands are cut from it (SMPLer-X)
    box_dim: int = 256  # channels of the box net (SMPLer-X)
    box_margin: float = 1.0  # of predicted boxes of hands; 1.2, of 3:4, in the released weights
    joint_dim: int = 512  # channels per joint in all regressors (SMPLer-X)
    hand_extension: float = 2.0  # side of a hand map's square in longer sides of its box (SMPLer-X)
    weight_boxes: float = 1.0  # per cell of the feature map (SMPLer-X)
    batch_size: int = 64  # 16 on each of four GPUs (SMPLer-X: 16 each)
    learning_rate: float = 1e-5  # (SMPLer-X)
    schedule: str = "cosine"  # (SMPLer-X)
    weight_decay: float = 0.0  # (SMPLer-X)
    steps: int = 350_000  # for its ten epochs (our choice)


@dataclass(frozen=True)
class AdapterConfig:
    """What both adapters, and the rivals that they are compared with, have in common."""

    inject: str = "adapter"  # (paper), or "none", "concat" (Tables 3, 4), "weighted" (Tables 5, 6)
    joint_embedding: str = "none"  # (paper, literally), or "learned": one vector per joint
    trainable: str = "adapter"  # (paper), "head": all but the encoder, "all" (Tables 3, 4)

    @property
    def design(self) -> str:
        """The name of the model's design: that of its context, or of another way to inject it."""
        return self.context if self.inject == "adapter" else self.inject

    def check(self, expert: type, **choices: Sequence[str]) -> None:
        """Make a config of a checkpoint's dictionary; raise ValueError for what is no choice."""
        if isinstance(self.expert, Mapping):
            object.__setattr__(self, "expert", expert(**self.expert))
        choices |= dict(inject=("adapter", "none", "concat", "weighted"),
                        joint_embedding=("none", "learned"), trainable=("adapter", "head", "all"))
        for name, allowed in choices.items():
            require(getattr(self, name) in allowed,
                    f"{name} is {getattr(self, name)!r}: expected one of {', '.join(allowed)}")


@dataclass(frozen=True)
class HandConfig(AdapterConfig, HandTraining):
    """The hand adapter. Defaults: the paper's."""

    expert: HandExpertConfig = HandExpertConfig()  # (paper)
    context: str = "arm"  # of the adapter (paper), or "image": F^H again (Table 3, No. 5)
    arm: str = "arm"  # theta_b (paper), or "whole_body" (Table 5)
    arm_source: str = "true"  # in training (paper), or "found": by a whole-body model (our choice)
    arm_drop: float = 0.0  # share of theta_b hidden in training (our choice)

    def __post_init__(self) -> None:
        self.check(HandExpertConfig, context=("arm", "image"), arm=ARMS,
                   arm_source=("true", "found"))


@dataclass(frozen=True)
class BodyConfig(AdapterConfig, BodyTraining, DecoderConfig):
    """The body adapter. Defaults: the paper's, which gives 37M parameters and no shapes.

    HaMeR's sizes make 36,508,292; "reuse_hand_conv" and offset_hidden=2048 make 37,037,188.
    """

    expert: BodyExpertConfig = BodyExpertConfig()  # (paper)
    context: str = "knuckles"  # of the adapter (paper), or "tokens": the 25 of the pose (Table 4)
    joint_proj: str = "conv"  # 1280 -> 512 (paper), or "reuse_hand_conv": the expert's, frozen
    knuckle_source: str = "true"  # in training (paper), or "found": by the expert (our choice)
    offset_hidden: int = 1024  # hidden width of the FFN in Eq. 4 (our choice)

    def __post_init__(self) -> None:
        self.check(BodyExpertConfig, context=("knuckles", "tokens"),
                   joint_proj=("conv", "reuse_hand_conv"), knuckle_source=("true", "found"))
        require(self.inject != "concat" or self.trainable != "adapter",
                "inject=concat replaces the expert's regressors: set trainable to head or all")


@dataclass(frozen=True)
class Config:
    """Both paths. Defaults: the paper's."""

    hand: HandConfig = HandConfig()
    body: BodyConfig = BodyConfig()


# ---------------------------------------------------------------------------------- adapters


class Adapter(nn.Module):
    """An expert, frozen as far as `config.trainable` says, and new modules around it."""

    def __init__(self, config: HandConfig | BodyConfig,
                 expert: HandExpert | BodyExpert | None = None) -> None:
        """expert: None for the paper's, with random weights."""
        super().__init__()
        require(config.design == self.DESIGN, f"{type(self).__name__} is for {self.DESIGN!r}, not "
                f"for {config.design!r}: use build_model of networks/adapter_rivals.py")
        new = HandExpert if isinstance(config, HandConfig) else BodyExpert
        self.config, self.expert = config, new(config.expert) if expert is None else expert
        self.build()
        self.expert.requires_grad_(True)  # it may come frozen, from another adapter
        for module in self.frozen():
            module.requires_grad_(False)
        self.train()

    def frozen(self) -> list[nn.Module]:
        """Return the modules that training does not change."""
        encoder = self.expert.get_submodule(self.ENCODER)
        return {"adapter": [self.expert], "head": [encoder], "all": []}[self.config.trainable]

    def train(self, mode: bool = True) -> Adapter:
        """Set the mode; frozen modules stay in evaluation mode, without new statistics or drops."""
        super().train(mode)
        for module in self.frozen():
            module.eval()
        return self


class ArmFeatures(nn.Module):
    """F^B: theta_b as rotation matrices (B, J, 3, 3) -> features (B, J, 1280)."""

    def __init__(self, config: HandConfig) -> None:
        super().__init__()
        width, self.joints = config.expert.vit_dim, len(ARMS[config.arm][0])
        self.drop = config.arm_drop
        self.projection = nn.Linear(6, width)
        self.joint_embedding = (nn.Parameter(0.02 * torch.randn(self.joints, width))
                                if config.joint_embedding == "learned" else None)

    def forward(self, rotations: Tensor | None, valid: Tensor | None = None,
                batch: int | None = None) -> Tensor:
        """valid: (B,), 0 where theta_b is unknown; None: known. batch: B, where that is None."""
        batch = len(rotations) if batch is None else batch
        if rotations is None:
            pose_6d = self.projection.weight.new_zeros(batch, self.joints, 6)
        else:
            require(tuple(rotations.shape) == (batch, self.joints, 3, 3), "arm of shape "
                    f"{tuple(rotations.shape)}: expected ({batch}, {self.joints}, 3, 3)")
            pose_6d = matrix_to_rotation_6d(rotations)  # (B, J, 6)
            valid = torch.ones(batch, device=pose_6d.device) if valid is None else valid
            if self.training and self.drop:
                valid = valid * (torch.rand(len(valid), device=valid.device) >= self.drop)
            # "We set the additional body pose to zero" if it is unknown: no rotation is 0 in 6D.
            pose_6d = torch.where(valid[:, None, None] > 0, pose_6d, 0.0)
        features = self.projection(pose_6d)  # (B, J, 1280)
        return features if self.joint_embedding is None else features + self.joint_embedding


class HandAdapter(Adapter):
    """The hand expert, conditioned on the pose of the arm (3.3)."""

    ENCODER, DESIGN = "backbone", "arm"

    def build(self) -> None:
        self.arm = ArmFeatures(self.config)
        self.build_layers()

    def build_layers(self) -> None:
        """Copy SA and CA, out-projections included, to SA' and CA' of every layer."""
        self.layers = nn.ModuleList([nn.ModuleDict({
            "self_attention": copy.deepcopy(self_attention.fn),
            "cross_attention": copy.deepcopy(cross_attention.fn),
        }) for self_attention, cross_attention, _ in self.decoder.layers])
        self.layers.requires_grad_(True)

    @property
    def decoder(self) -> Decoder:
        return self.expert.mano_head.transformer

    def forward(self, images: Tensor, arm: Tensor | None = None, arm_valid: Tensor | None = None, *,
                scale: float = 1.0) -> dict[str, Tensor]:
        """Predict right hands from images (B, 3, S, S), left hands mirrored, and theta_b.

        arm: theta_b as matrices (B, J, 3, 3), one hand's part of `arm_pose`; None: unknown.
        arm_valid: (B,), 0 where it is unknown. scale: of Eq. 2's output in Eq. 3; 0 gives
        self.expert's result, bit for bit. Returns and raises what HandExpert.forward does.
        """
        features = self.expert.features(images)  # F^H (B, 192, 1280)
        return self.expert.mano_head.readout(self.token(features, arm, arm_valid, scale))

    def token(self, features: Tensor, arm: Tensor | None, arm_valid: Tensor | None,
              scale: float) -> Tensor:
        """Decode F^H (B, 192, 1280) and theta_b (B, J, 3, 3) to the output token (B, 1, 1024)."""
        return self.decode(features, self.arm(arm, arm_valid, len(features)), scale)

    def decode(self, features: Tensor, arm_features: Tensor, scale: float) -> Tensor:
        """Run the decoder with parallel layers: F^H (B, 192, 1280), F^B (B, J, 1280) -> (B, 1, D).

        Norms and MLPs are the expert's. The paper's equations omit residuals; these are HaMeR's.
        """
        x = self.decoder.query(len(features))  # Z (B, 1, 1024)
        for (self_attention, cross_attention, ffn), new in zip(
                self.decoder.layers, self.layers, strict=True):
            own = x + self_attention(x)  # SA(Z)
            other = x + new["self_attention"](self_attention.norm(x))  # SA'(Z)
            own = own + cross_attention(own, features)  # CA(Q, K, V), Eq. 1
            other = new["cross_attention"](cross_attention.norm(other), arm_features)  # Eq. 2
            x = own + scale * other  # Z^new, Eq. 3
            x = x + ffn(x)
        return x


def to_hand_maps(points: Tensor, boxes: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Convert points (B, 2, N, 2) to cells of the hand maps; also say which are inside (B, 2, N).

    boxes: (B, 2, 4) x, y, width, height, in the points' unit. The left hand's map is mirrored. Like
    SMPLer-X's targets, this is half a cell off roi_align's cell centres.
    """
    at = (points - boxes[:, :, None, :2]) * (cells / boxes[:, :, None, 2:])
    inside = ((at >= 0) & (at <= cells)).all(-1)
    at[:, 1, :, 0] = cells - 1 - at[:, 1, :, 0]
    return at, inside


class BodyAdapter(Adapter):
    """The whole-body expert, and a decoder beside it that reads features at the knuckles (3.4)."""

    ENCODER, DESIGN = "encoder", "knuckles"

    def build(self) -> None:
        self.build_projection()
        self.build_decoder()

    def build_projection(self) -> None:
        """Create the 1-by-1 convolution, 1280 -> 512, and the knuckles' embedding."""
        config, width = self.config, self.config.expert.joint_dim
        if config.joint_proj == "conv":
            self.joint_proj = nn.Conv2d(config.expert.vit_dim, width, 1)
        self.joint_embedding = (nn.Parameter(0.02 * torch.randn(8, width))
                                if config.joint_embedding == "learned" else None)

    def build_decoder(self) -> None:
        """Create the decoder and the FFN of Eq. 4."""
        config = self.config
        self.decoder = Decoder(config, config.expert.joint_dim)
        self.offset = mlp(config.decoder_dim, config.offset_hidden, 22 * 6)
        nn.init.zeros_(self.offset.fc2.weight)  # start as the expert (our choice)
        nn.init.zeros_(self.offset.fc2.bias)

    def forward(self, images: Tensor, knuckles: Tensor | None = None,
                hand_valid: Tensor | None = None, *, scale: float = 1.0) -> dict[str, Tensor]:
        """Predict people from images (B, 3, S, S), as BodyExpert.features takes them.

        knuckles: of true_knuckles, for training (3.5.2); None: those that the expert predicts.
        hand_valid: (B, 2), 0 for unseen hands. scale: of Delta theta in Eq. 4; 0 gives the expert's
        result. Returns what assemble does, and initial_pose, theta_0's rotations (B, 22, 3, 3).
        """
        features, size = self.expert.features(images), images.shape[-1]
        initial, refined = self.poses(features, size, knuckles, hand_valid, scale)
        return self.expert.assemble(features, refined, size) | {
            "initial_pose": rotation_6d_to_matrix(from_interleaved(initial))}

    def poses(self, features: BodyFeatures, size: int, knuckles: Tensor | None,
              hand_valid: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        """Return theta_0 and theta-hat, interleaved 6D (B, 22, 6) each."""
        initial = self.expert.initial_pose(features)  # theta_0 (B, 22, 6)
        context = self.knuckle_features(features, size, knuckles, hand_valid)  # F^J (B, 8, 512)
        token = self.decoder(context)[:, 0]  # CA(Q'', K'', V'') (B, 1024)
        offset = self.offset(token).float().unflatten(1, (22, 6))  # Delta theta (B, 22, 6)
        return initial, initial + scale * offset  # Eq. 4

    def knuckle_features(self, features: BodyFeatures, size: int, pixels: Tensor | None,
                         hand_valid: Tensor | None) -> Tensor:
        """Sample F^J (B, 8, 512) at the MCP joints; 0 outside of its map, and for unseen hands."""
        last = self.config.expert.hand_cells - 1
        if pixels is None:
            positions = features.hand_joints[:, :, KNUCKLES, :2]  # (B, 2, 4, 2)
            inside = torch.ones_like(positions[..., 0], dtype=torch.bool)  # (B, 2, 4)
        else:
            positions, inside = to_hand_maps(self.expert.to_cells(pixels, size),
                                             features.hand_boxes, last + 1)
        if hand_valid is not None:
            inside = inside & (hand_valid[..., None] > 0)
        positions = torch.where(inside[..., None], positions, 0.0).clamp(0, last)
        conv = (self.joint_proj if self.config.joint_proj == "conv" else
                self.expert.hand_regressor.hand_conv)
        maps = conv(features.hand_maps.flatten(0, 1))  # (2 B, 512, 16, 16), both hands of a person
        sampled = sample_at(maps, positions.flatten(0, 1)).unflatten(0, inside.shape[:2])
        sampled = (sampled * inside[..., None]).flatten(1, 2)  # (B, 8, 512)
        return sampled if self.joint_embedding is None else sampled + self.joint_embedding


# ------------------------------------------------------------------------------------- losses


def hand_samples(batch: Mapping[str, Tensor], arm: str = "arm") -> dict[str, Tensor]:
    """Turn both hands of B people into 2 B samples of right hands, for training (3.5.1).

    batch: hand_images (B, 2, 3, S, S); hand_pose (B, 2, 16, 3, 3); hand_joints (B, 2, 21, 3),
        metres; hand_keypoints_2d (B, 2, 21, 2), pixels of the crops; hand_valid (B, 2); body_pose
        (B, 55, 3, 3); and, if known, hand_vertices (B, 2, 778, 3), hand_betas (B, 2, 10) with
        hand_betas_valid (B, 2), body_pose_valid (B,). All of a left hand is mirrored.
    arm: HandConfig.arm. Returns the pairs (2 B, ...) without "hand_" in their names, keypoints_2d
    in -0.5..0.5, arm and arm_valid.
    """
    samples = {name.removeprefix("hand_"): value.flatten(0, 1) for name, value in batch.items()
               if name.startswith("hand_") and value.ndim >= 2}
    known = batch.get("body_pose_valid", torch.ones_like(batch["hand_valid"][:, 0]))
    return samples | {
        "keypoints_2d": samples["keypoints_2d"] / samples["images"].shape[-1] - 0.5,
        "arm": arm_pose(batch["body_pose"], arm).flatten(0, 1),  # (2 B, J, 3, 3)
        "arm_valid": known[:, None].expand(-1, 2).flatten()}


def pose_distance(found: Tensor, true: Tensor, term: str, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Compute both terms of Eq. 6 per joint: rotations (B, J, 3, 3) twice -> (B, J) twice.

    term: "l2sq", as in the equation, or "l1", as in the text above it. For rotation matrices
    1 - cos = ||difference||^2 / 6, so with "l2sq" the two terms are proportional. valid: (B, J or
    1), 0 for rotations that may be NaN: their distance is 0, up to rounding.
    """
    true = torch.where(valid[..., None, None] > 0, true, found.detach())
    found, true = found.flatten(2), true.flatten(2)  # (B, J, 9)
    norm = (found - true).square() if term == "l2sq" else (found - true).abs()
    return norm.sum(-1), 1 - F.cosine_similarity(found, true, dim=-1)


def hand_losses(prediction: Mapping[str, Tensor], samples: Mapping[str, Tensor], hand: Callable,
                config: HandConfig | HandExpertConfig) -> dict[str, Tensor]:
    """Compute the unweighted terms of Eq. 5, scalars: sums over a hand, means over the batch.

    prediction: of HandAdapter or HandExpert. samples: of hand_samples. hand: a right hand's model;
    hand(betas, rotations).vertices are (B, 778, 3) in metres, hand.keypoint_regressor (21, 778).
    3D errors are relative to the wrist. What is invalid or lacking counts as zero.
    """
    vertices = hand(prediction["betas"], prediction["hand_pose"]).vertices
    joints = torch.einsum("jv,bvc->bjc", hand.keypoint_regressor.to(vertices), vertices)
    projected = project_to_crop(joints, hand_translation(prediction["camera"]))
    wrist, true_wrist = joints[:, :1], samples["joints"][:, :1]
    valid, betas = samples["valid"], prediction["betas"]

    def reduced(error: Tensor) -> Tensor:
        known = valid.view(-1, *[1] * (error.ndim - 1)) > 0  # invalid values may be NaN
        return torch.where(known, error, 0.0).flatten(1).sum(1).mean()

    rotation, cosine = pose_distance(prediction["hand_pose"], samples["pose"], "l2sq",
                                     valid[:, None])
    terms = dict.fromkeys(("vertices", "betas"), vertices.new_zeros(())) | {
        "keypoints_2d": reduced((projected - samples["keypoints_2d"]).abs()),  # L_2D
        "keypoints_3d": reduced((joints - wrist - samples["joints"] + true_wrist).abs()),  # L_3D
        "pose": reduced(rotation) + reduced(cosine) / cosine.shape[1]}  # L_theta, Eq. 6
    if "vertices" in samples:  # L_v
        terms["vertices"] = reduced((vertices - wrist - samples["vertices"] + true_wrist).abs())
    betas_known = torch.zeros_like(valid)[:, None]
    if "betas" in samples:  # L_beta
        betas_known = samples.get("betas_valid", valid)[:, None]
        difference = torch.where(betas_known > 0, betas - samples["betas"], 0.0)
        terms["betas"] = reduced(betas_known * difference.square())
    if config.weight_betas_prior:
        terms["betas_prior"] = reduced(torch.where(betas_known > 0, 0.0, betas.square()))
    return terms


def hand_total_loss(terms: Mapping[str, Tensor], config: HandTraining) -> Tensor:
    """Eq. 5: the weighted sum. There is no adversarial loss ("we do not use")."""
    return (config.weight_keypoints_2d * terms["keypoints_2d"]
            + config.weight_keypoints_3d * terms["keypoints_3d"]
            + config.weight_vertices * terms["vertices"]
            + config.weight_pose * terms["pose"] + 5e-4 * terms["betas"]  # lambda_beta (HaMeR)
            + config.weight_betas_prior * terms.get("betas_prior", 0.0))  # ours


def true_knuckles(batch: Mapping[str, Tensor]) -> Tensor:
    """Select the true MCP joints (B, 2, 4, 2), pixels of the images, for BodyAdapter (3.5.2)."""
    return batch["keypoints_2d"][:, torch.tensor(HANDS)[:, 1:][:, KNUCKLES]]


def heat_map_targets(batch: Mapping[str, Tensor], expert: BodyExpert,
                     boxes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return targets of both position nets, (B, 25, 3) and (B, 2, 20, 3), each with its validity.

    boxes: of the hand maps (B, 2, 4) in cells. Depths, in bins, are relative to pelvis or wrist.
    """
    config, size = expert.config, batch["image"].shape[-1]
    cells, valid = expert.to_cells(batch["keypoints_2d"], size), batch["keypoints_valid"] > 0
    depth, half = batch["keypoints_3d"][..., 2], config.depth_bins / 2
    wrists, hands = torch.tensor(HANDS).split((1, 20), 1)  # (2, 1), (2, 20)
    bins = (1 + (depth[:, POSITIONED] - depth[:, :1]) / (BODY_DEPTH / 2)) * half
    body = torch.cat((cells[:, POSITIONED], bins[..., None]), 2)
    limit = body.new_tensor([*reversed(config.grid), config.depth_bins])
    in_map = ((body >= 0) & (body < limit)).all(-1)
    bins = (1 + (depth[:, hands] - depth[:, wrists]) / (HAND_DEPTH / 2)) * half
    at, in_box = to_hand_maps(cells[:, hands], boxes, config.hand_cells)
    hand = torch.cat((at, bins[..., None]), 3)
    return [(body, valid[:, POSITIONED] & in_map), (hand, valid[:, hands] & in_box)]


def masked_mean(error: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error over all elements (..., C), where valid (...) is 0 counted as zero."""
    return torch.where(valid[..., None] > 0, error.abs(), 0.0).mean()


def body_losses(prediction: Mapping[str, Tensor], batch: Mapping[str, Tensor], body: Callable,
                expert: BodyExpert, config: BodyConfig | BodyExpertConfig) -> dict[str, Tensor]:
    """Compute the unweighted terms of Eq. 7, Eq. 8 and SMPLer-X, scalars: means over all elements.

    prediction: of BodyAdapter or BodyExpert. batch, of which invalid values count as zero: image
        (B, 3, S, S); body_pose (B, 55, 3, 3); betas, expression (B, 10); keypoints_3d (B, 76, 3),
        metres; keypoints_2d (B, 76, 2), pixels, with keypoints_valid (B, 76); hand_boxes (B, 2, 4),
        tight: x, y, width, height in pixels, with hand_valid (B, 2) or, if they are known outside
        of the image, too, hand_boxes_valid (B, 2); and, default 1, keypoints_3d_valid (B, 76),
        body_pose_valid (B,), rotations_valid (B, 55), betas_valid and expression_valid (B,).
    body: a whole-body model; body.keypoints(body(betas, rotations, expression)) are its 76
    keypoints (B, 76, 3) in metres.
    """
    keypoints = body.keypoints(body(prediction["betas"], prediction["body_pose"],
                                    prediction["expression"]))
    rows, size, margin = expert.config.grid[0], batch["image"].shape[-1], expert.config.box_margin
    projected = project_to_crop(keypoints, prediction["translation"]) * rows
    true_projected = (batch["keypoints_2d"] / size - 0.5) * rows  # cells
    relative = keypoints - keypoints[:, :1]
    true_relative = batch["keypoints_3d"] - batch["keypoints_3d"][:, :1]

    def known(name: str, *shape: int) -> Tensor:
        return batch.get(f"{name}_valid", keypoints.new_ones(len(keypoints), *shape))

    joints, hand_joints = heat_map_targets(batch, expert, prediction["map_boxes"])
    corner = expert.to_cells(batch["hand_boxes"][..., :2], size)  # (B, 2, 2) in cells
    side = batch["hand_boxes"][..., 2:] * (rows / size)  # tight
    posed = [*range(23), *range(25, 55)]  # 53: SMPL-X's 55 without the eyes
    pose_known = known("body_pose")[:, None] * known("rotations", 55)[:, posed]
    rotation, cosine = pose_distance(  # SMPLer-X's L1: the paper gives Eq. 6 for hands
        prediction["body_pose"][:, posed], batch["body_pose"][:, posed], "l1", pose_known)
    in_3d = known("keypoints_3d", 76)
    boxes_known = batch["hand_boxes_valid" if "hand_boxes_valid" in batch else "hand_valid"]
    return {
        "keypoints_img": masked_mean(prediction["joints"] - joints[0], joints[1])
        + masked_mean(prediction["hand_joints"] - hand_joints[0], hand_joints[1]),  # L_img
        "keypoints_proj": masked_mean(projected - true_projected, batch["keypoints_valid"]),
        "keypoints_3d": masked_mean(relative - true_relative, in_3d * in_3d[:, :1]),  # L_3D
        "pose": torch.where(pose_known > 0, rotation / 9 + cosine, 0.0).mean(),  # L_theta
        "betas": masked_mean(prediction["betas"] - batch["betas"], known("betas")),  # L_beta
        "expression": masked_mean(prediction["expression"] - batch["expression"],
                                  known("expression")),
        "boxes": masked_mean(prediction["box_centers"][:, :2] - corner - side / 2, boxes_known)
        + masked_mean(prediction["box_sizes"][:, :2] - margin * side, boxes_known),
    }


def body_total_loss(terms: Mapping[str, Tensor], config: BodyConfig | BodyExpertConfig) -> Tensor:
    """Eq. 7: the weighted sum; L_img and L_beta of a frozen expert have no gradient: left out.

    The expert, and rivals that train its head, learn from all terms of SMPLer-X. The weights are
    its, 1 unless given; its 10 was for an L1 of axis-angles, without the cosine of Eq. 6.
    """
    loss = (terms["keypoints_proj"] + config.weight_keypoints_3d * terms["keypoints_3d"]
            + 10.0 * terms["pose"])
    if getattr(config, "trainable", "all") == "adapter":
        return loss
    expert = getattr(config, "expert", config)
    return (loss + terms["keypoints_img"]  # Eq. 8
            + terms["betas"] + terms["expression"] + expert.weight_boxes * terms["boxes"])


# --------------------------------------------------------------------------------- dual path


def merge(body_pose: Tensor, hand_pose: Tensor, valid: Tensor | None = None) -> Tensor:
    """Put MANO hands on an SMPL-X body: (B, 55, 3, 3) -> (B, 55, 3, 3).

    hand_pose: (B, 2, 16, 3, 3) of the hand network: orientation in the camera frame, absolute
    fingers, the left one mirrored; that is undone here. valid: (B, 2), 0 for hands that keep the
    body's pose. A MANO hand's orientation is global, an SMPL-X wrist relative to its elbow: wrist =
    (product from pelvis to elbow)^T orientation: inverse kinematics (paper, of its baseline).
    """
    pose = body_pose.clone()
    hands = torch.stack((hand_pose[:, 0], mirror(hand_pose[:, 1])), 1)
    for side, fingers in enumerate((RIGHT_FINGERS, LEFT_FINGERS)):
        *chain, last = ARMS["arm"][side]
        pose[:, fingers] = hands[:, side, 1:]
        elbow = chain_product(body_pose[:, chain])  # its global rotation
        pose[:, last] = elbow.mT @ hands[:, side, 0]
        if valid is not None:
            part, seen = [last, *range(55)[fingers]], valid[:, side, None, None, None] > 0
            pose[:, part] = torch.where(seen, pose[:, part], body_pose[:, part])
    return pose


def sample_squares(images: Tensor, squares: Tensor, size: int, mirrored: bool = False) -> Tensor:
    """Crop squares (B, 3, size, size), 0..255, from images (B, 3, H, W); black outside of them.

    squares: (B, 3) x, y of the centre, side, in pixels. Each pixel averages up to 8 x 8 samples.
    """
    edge = squares.new_tensor([images.shape[3], images.shape[2]])
    crops = [squares.new_empty(0, 3, size, size)]
    counts = (squares[:, 2] / size).ceil().clamp(1, 8).int().tolist()
    for image, (x, y, side), samples in zip(images, squares, counts, strict=True):
        at = (torch.arange(size * samples, device=side.device) + 0.5) / (size * samples) - 0.5
        across, down = x + at * side * (-1 if mirrored else 1), y + at * side
        grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)[None]
        pixels = F.grid_sample(image[None].to(grid), 2 * grid / edge - 1, align_corners=False)
        crops.append(F.avg_pool2d(pixels, samples))
    return torch.cat(crops)


def hand_squares(boxes: Tensor) -> Tensor:
    """Return squares (B, 2, 3), twice as large as tight boxes (B, 2, 4) of hands (HaMeR)."""
    sides = 2 * torch.maximum(boxes[..., 3:], boxes[..., 2:3] * 4 / 3)  # HaMeR sees 3:4 of a square
    return torch.cat((boxes[..., :2] + boxes[..., 2:] / 2, sides), -1)


def crop_hands(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crop both hands, the left one mirrored: (B, 3, H, W), (B, 2, 4) -> (B, 2, 3, size, size)."""
    squares = hand_squares(boxes)
    return torch.stack([sample_squares(images, squares[:, hand], size, mirrored=hand == 1)
                        for hand in range(2)], 1)


class HMRAdapter(nn.Module):
    """Both adapted experts: from images of people to SMPL-X (3.1, Fig. 2)."""

    def __init__(self, config: Config, hand: HandAdapter | None = None,
                 body: BodyAdapter | None = None) -> None:
        """hand, body: trained models of the configs in `config`; None: random weights."""
        super().__init__()
        self.config = config
        self.hand = HandAdapter(config.hand) if hand is None else hand
        self.body = BodyAdapter(config.body) if body is None else body

    def forward(self, images: Tensor, pictures: Tensor | None = None, *, scale: float = 1.0
                ) -> dict[str, Tensor]:
        """Predict SMPL-X, see `join`, from images (B, 3, S, S), as BodyExpert.features takes them.

        Hands are cut out of `pictures`, images of more pixels, if given. scale 0: no adapters.
        """
        prediction = self.body(images, scale=scale)
        pictures = images if pictures is None else pictures
        boxes = prediction["tight_boxes"] * (pictures.shape[-1] / images.shape[-1])
        crops = crop_hands(pictures, boxes, self.hand.config.expert.image_size)
        return self.join(prediction, crops, scale=scale)

    def join(self, prediction: dict[str, Tensor], hand_images: Tensor,
             hand_valid: Tensor | None = None, *, scale: float = 1.0) -> dict[str, Tensor]:
        """Run the hand path after the body path's prediction, and merge both.

        hand_images: (B, 2, 3, H, H), as HandExpert takes them, the left one mirrored. hand_valid:
        (B, 2), of merge. Returns what BodyAdapter.forward does, with its body_pose as body_path;
        hand_pose (B, 2, 16, 3, 3), the left one mirrored; the merged body_pose; and hand_valid.
        """
        body_pose = prediction["body_pose"]
        # theta_b of theta-hat, the nearer to the truth; the paper can also mean theta_0's.
        arms = arm_pose(body_pose, self.hand.config.arm).flatten(0, 1)  # (2 B, J, 3, 3)
        hands = self.hand(hand_images.flatten(0, 1), arms, scale=scale)
        hand_pose = hands["hand_pose"].unflatten(0, (len(body_pose), 2))
        valid = body_pose.new_ones(hand_pose.shape[:2]) if hand_valid is None else hand_valid
        return prediction | {"body_path": body_pose, "hand_pose": hand_pose, "hand_valid": valid,
                             "body_pose": merge(body_pose, hand_pose, valid)}


# --------------------------------------------------------------------------------- inference


def smplx_parameters(body_pose: Tensor, hand_mean: Tensor | None = None) -> dict[str, Tensor]:
    """Convert rotations (B, 55, 3, 3) to the axis-angles that smplx.SMPLX takes, by their names.

    hand_mean: (2, 15, 3), the file's hands_meanr, hands_meanl, if flat_hand_mean=False (default).
    """
    pose = matrix_to_axis_angle(body_pose)  # (B, 55, 3)
    if hand_mean is not None:
        pose[:, RIGHT_FINGERS] -= hand_mean[0].to(pose)
        pose[:, LEFT_FINGERS] -= hand_mean[1].to(pose)
    parts = {"global_orient": slice(0, 1), "body_pose": slice(1, 22), "jaw_pose": JAW,
             "leye_pose": slice(23, 24), "reye_pose": slice(24, 25),
             "left_hand_pose": LEFT_FINGERS, "right_hand_pose": RIGHT_FINGERS}
    return {name: pose[:, part].flatten(1) for name, part in parts.items()}


def in_picture(boxes: Tensor, width: int, height: int) -> Tensor:
    """Say which boxes (B, 2, 4), x, y, width, height, have their centre in a picture: (B, 2)."""
    centers = boxes[..., :2] + boxes[..., 2:] / 2
    return ((centers >= 0) & (centers < centers.new_tensor([width, height]))).all(-1)


def square_of(model: nn.Module, image: np.ndarray, box: Sequence[float] | None,
              margin: float) -> np.ndarray:
    """Return x, y of the centre and side, in pixels, of the square that the model is to see.

    box: x, y, width, height in pixels, grown to 3:4 and by the margin; None: the picture, to 3:4.
    Raises ValueError for bad input, and for a model in training mode.
    """
    require(not model.training, "the model is in training mode: call model.eval() first")
    require(image.ndim == 3 and image.shape[2] == 3 and image.size and image.dtype == np.uint8,
            f"image {image.shape} of {image.dtype}: expected (H, W, 3) uint8 RGB")
    height, width = image.shape[:2]
    if box is None:
        return np.array([width / 2, height / 2, max(height, width * 4 / 3)])
    box, most = np.asarray(box, np.float64), 10 * max(width, height)
    require(box.shape == (4,) and np.isfinite(box).all()
            and 1 <= min(box[2:]) and max(box[2:]) <= most
            and max(box[:2] - (width, height)) < 0 < min(box[:2] + box[2:]),
            f"box {box.tolist()}: expected x,y,width,height on the {width} x {height} picture, "
            f"with sides from 1 px to {most} px")
    return np.array([*(box[:2] + box[2:] / 2), margin * max(box[3], box[2] * 4 / 3)])


def cut_square(model: nn.Module, image: np.ndarray, square: np.ndarray, size: int,
               mirrored: bool = False) -> Tensor:
    """Crop a square (1, 3, size, size) of a picture (H, W, 3), on the model's device."""
    center, side, edge = square[:2], square[2], np.array(image.shape[1::-1])
    low = np.clip(np.floor(center - side / 2) - 1, 0, edge - 1).astype(int)
    high = np.clip(np.ceil(center + side / 2) + 1, 1, edge).astype(int)
    image = image[low[1] : high[1], low[0] : high[0]]  # the rest of a huge picture costs nothing
    parameter = next(model.parameters())
    pixels = torch.tensor(np.ascontiguousarray(image.transpose(2, 0, 1)[None])).to(parameter)
    square = torch.tensor([[*(center - low), side]]).to(parameter)
    return sample_squares(pixels, square, size, mirrored)


def to_arrays(tensors: Mapping[str, Tensor], square: np.ndarray,
              K: np.ndarray | None) -> dict[str, np.ndarray]:
    """Convert a batch of one to float32 arrays, with its square as box, before the camera K (3, 3).

    None: the square's own. The mesh keeps its pixel; its distance grows with the focal length.
    """
    require(all(value.isfinite().all() for value in tensors.values()),
            "the network's output is not finite: its weights are damaged, or training diverged")
    x, y, side = square
    own = np.array([[FOCAL * side, 0, x], [0, FOCAL * side, y], [0, 0, 1]], np.float32)
    arrays = {name: value[0].float().cpu().numpy() for name, value in tensors.items()} | {
        "K": own, "box": np.array([x - side / 2, y - side / 2, side, side], np.float32)}
    if K is None:
        return arrays
    K, start = np.asarray(K, np.float64), arrays["transl"]
    require(K.shape == (3, 3) and np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0
            and (K[2] == (0, 0, 1)).all(), f"K {K.tolist()}: expected (3, 3) intrinsics in pixels")
    shift = np.linalg.inv(K) @ own @ start * (K[0, 0] / own[0, 0]) - start
    return arrays | {name: np.float32(arrays[name] + shift) for name in (
        "vertices", "joints", "transl")} | {"K": np.float32(K)}


@torch.inference_mode()
def predict(model: HMRAdapter | BodyAdapter, image: np.ndarray, body: Callable, *,
            box: Sequence[float] | None = None, hand_boxes: np.ndarray | None = None,
            K: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Predict the SMPL-X mesh of one person in a picture, in camera coordinates.

    model: both paths, or the body path alone. image: (H, W, 3) uint8 RGB. body: a whole-body model
    on the CPU; body(betas, rotations, expression, transl) returns vertices and joints, as
    bodymodels.load_model("wholebody") does. box: see square_of; grown by a quarter (SMPLer-X).
    hand_boxes: (2, 4) tight boxes of the right and left hand, in place of the predicted ones; NaN
    where unknown. K: (3, 3) of the picture, see to_arrays. Hands are cut out of the picture; one
    whose box has its centre outside keeps the body's pose (our choice). Returns float32 arrays:
    vertices (V, 3), joints (K, 3), metres; K (3, 3); transl (3,); rotations (55, 3, 3); betas,
    expression (10,); smplx_parameters, fingers absolute; the body expert's keypoints_2d (25, 2), of
    POSITIONED joints, and hand_boxes (2, 4), in pixels; hand_inside (2,), 1 for boxes with their
    centre in the picture; hand_valid (2,), 1 for hands of the hand path; box. Raises ValueError.
    """
    square = square_of(model, image, box, 1.25)
    path, side = getattr(model, "body", model), square[2]
    expert = path.config.expert
    prediction = path(cut_square(path, image, square, expert.image_size))
    boxes = torch.cat([prediction["hand_boxes"], prediction["tight_boxes"]])  # (2, 2, 4)
    boxes, at = boxes * (side / expert.image_size), torch.tensor(square[:2]).to(boxes)
    boxes[..., :2] += at - side / 2  # pixels of the picture
    if hand_boxes is not None:
        given = boxes.new_tensor(hand_boxes)
        require(given.shape == (2, 4) and not (given.isinf().any() or (given[:, 2:] <= 0).any()),
                f"hand_boxes {given.tolist()}: expected (2, 4) x,y,width,height; NaN if unknown")
        boxes = torch.where(given.isfinite(), given, boxes)
    boxes, tight = boxes.split(1)
    inside = in_picture(boxes, *image.shape[1::-1])
    if path is not model:  # both paths
        squares, size = hand_squares(tight)[0].double().cpu(), model.hand.config.expert.image_size
        crops = [cut_square(path, image, each.numpy(), size, mirrored=hand == 1)
                 for hand, each in enumerate(squares)]
        prediction = model.join(prediction, torch.stack(crops, 1), inside)
    cells = prediction["joints"][..., :2] - at.new_tensor(expert.grid[::-1]) / 2  # from the centre
    names = ("betas", "body_pose", "expression", "translation")
    found = {name: prediction[name].float().cpu() for name in names}
    mesh = body(*found.values())
    return to_arrays({
        "vertices": mesh.vertices, "joints": mesh.joints, "transl": found["translation"],
        "rotations": found["body_pose"], "betas": found["betas"], "expression": found["expression"],
        "keypoints_2d": at + cells * (side / expert.grid[0]), "hand_boxes": boxes,
        "hand_inside": inside, "hand_valid": inside & (path is not model),
    } | smplx_parameters(found["body_pose"]), square, K)


@torch.inference_mode()
def predict_hand(model: HandAdapter, image: np.ndarray, hand: Callable, *,
                 box: Sequence[float] | None = None, side: str = "right",
                 K: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Predict the MANO mesh of one hand in a picture, in camera coordinates; its arm is unknown.

    hand: a right hand's model on the CPU. box: see square_of; made twice as large (HaMeR). side: a
    "left" hand is mirrored for the network, and its mesh back. K: see to_arrays. Returns vertices,
    joints, transl, K and box as predict; rotations (16, 3, 3); and betas, of a right hand.
    """
    require(side in ("right", "left"), f"side {side!r}: expected right or left")
    square, expert, left = square_of(model, image, box, 2.0), model.config.expert, side == "left"
    crop = cut_square(model, image, square, expert.image_size, left)
    prediction = {name: value.float().cpu() for name, value in model(crop).items()}
    transl = hand_translation(prediction["camera"])
    betas, pose = prediction["betas"], prediction["hand_pose"]
    posed, sign = hand(betas, pose, transl=transl), transl.new_tensor([-1 if left else 1, 1, 1])
    return to_arrays({
        "vertices": sign * posed.vertices, "joints": sign * posed.joints, "transl": sign * transl,
        "rotations": mirror(pose) if left else pose, "betas": betas,
    }, square, K)


# --------------------------------------------------------------------- hand expert: HaMeR


class TokenAttention(nn.Module):
    """SA: self-attention of the decoder's tokens, (B, Q, D) -> (B, Q, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * heads * HEAD_WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * HEAD_WIDTH, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*qkv)  # (B, H, Q, D'); for Q = 1 this is v
        return self.to_out(x.transpose(1, 2).flatten(2))  # (B, Q, D)


class CrossAttention(nn.Module):
    """CA of Eq. 1: queries (B, Q, D) attend to a context (B, N, C) -> (B, Q, D)."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * HEAD_WIDTH, bias=False)  # W_q
        self.to_kv = nn.Linear(context_width, 2 * heads * HEAD_WIDTH, bias=False)  # W_k, W_v
        self.to_out = nn.Sequential(nn.Linear(heads * HEAD_WIDTH, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = self.to_q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, H, Q, D')
        k, v = self.to_kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)  # Eq. 1: softmax(Q K^T / sqrt(d)) V
        return self.to_out(x.transpose(1, 2).flatten(2))  # (B, Q, D)


class PreNorm(nn.Module):
    """A layer after layer norm of its queries; the context is not normalised (HaMeR)."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        return self.fn(self.norm(x), *context)


class Decoder(nn.Module):
    """A transformer decoder with one query token: context (B, N, C) -> (B, 1, D)."""

    def __init__(self, config: DecoderConfig, context_width: int) -> None:
        super().__init__()
        width, heads, hidden = config.decoder_dim, config.decoder_heads, config.decoder_ffn
        self.to_token_embedding = nn.Linear(1, width)
        self.pos_embedding = nn.Parameter(torch.randn(1, 1, width))
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleList([
            PreNorm(width, TokenAttention(width, heads)),
            PreNorm(width, CrossAttention(width, heads, context_width)),
            PreNorm(width, nn.Sequential(OrderedDict(net=nn.Sequential(  # HaMeR's 2 is a dropout
                nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width))))),
        ]) for _ in range(config.decoder_layers)])})

    @property
    def layers(self) -> nn.ModuleList:
        """[self-attention, cross-attention, MLP] of each layer."""
        return self.transformer["layers"]

    def query(self, count: int) -> Tensor:
        """Embed empty tokens z: (B, 1, D). Their input is 0, so this is a learned constant."""
        zero = self.to_token_embedding.weight.new_zeros(count, 1, 1)
        return self.to_token_embedding(zero) + self.pos_embedding

    def forward(self, context: Tensor) -> Tensor:
        x = self.query(len(context))  # Z (B, 1, 1024)
        for self_attention, cross_attention, ffn in self.layers:
            x = x + self_attention(x)  # SA(Z)
            x = x + cross_attention(x, context)  # Z', Eq. 1
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
            nn.init.xavier_uniform_(layer.weight, gain=0.01)  # start near the mean hand (HaMeR)
            nn.init.zeros_(layer.bias)
        self.register_buffer("init_hand_pose", torch.tensor([[1.0, 0, 0, 0, 1, 0] * 16]))
        self.register_buffer("init_betas", torch.zeros(1, 10))
        self.register_buffer("init_cam", torch.tensor([[0.9, 0.0, 0.0]]))

    def readout(self, token: Tensor) -> dict[str, Tensor]:
        """Regress what HandExpert.forward returns from the token (B, 1, D), in full precision."""
        with torch.autocast(token.device.type, enabled=False):
            token = token[:, 0].float()  # (B, 1024)
            pose_6d = (self.decpose(token) + self.init_hand_pose).unflatten(1, (16, 6))
            return {"hand_pose": rotation_6d_to_matrix(pose_6d),
                    "betas": self.decshape(token) + self.init_betas,
                    "camera": self.deccam(token) + self.init_cam}


class HandExpert(nn.Module):
    """HaMeR: a right hand, or a mirrored left hand, from its image (3.2.2). encoder: see ViT."""

    def __init__(self, config: HandExpertConfig, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = ViT(config, encoder)
        self.mano_head = ManoHead(config)
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])  # ImageNet's
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Encode RGB crops (B, 3, S, S), uint8 or floats in 0..255, to F^H (B, 192, 1280)."""
        return self.backbone((middle_of(images, self.config) - self.mean) / self.std)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict right hands from RGB crops (B, 3, S, S), uint8 or floats in 0..255.

        Returns hand_pose (B, 16, 3, 3): the global orientation, then 15 absolute finger rotations;
        betas (B, 10); camera (B, 3), see hand_translation. Raises ValueError for other shapes.
        """
        return self.mano_head.readout(self.mano_head.transformer(self.features(images)))


# --------------------------------------------------------- whole-body expert: SMPLer-X


def rotation_layer(width: int, joints: int, second: float = 1.0) -> nn.Sequential:
    """Return a linear layer to interleaved 6D whose output starts near the identity.

    second: -1 starts at half a turn around x, the root of an upright person (our choice: SMPLer-X
    starts at random; children can then learn to cancel a wrong parent rotation).
    """
    layer = nn.Linear(width, 6 * joints)
    nn.init.xavier_uniform_(layer.weight, gain=0.01)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, 0, 0, second, 0, 0]).repeat(joints))
    return nn.Sequential(layer)


def deconvolutions(*widths: int) -> nn.Sequential:
    """Return transposed convolutions that double the map, each with batch norm and ReLU."""
    return nn.Sequential(*[layer for before, after in zip(widths[:-1], widths[1:], strict=True)
                           for layer in (nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False),
                                         nn.BatchNorm2d(after), nn.ReLU())])


def sample_at(features: Tensor, positions: Tensor) -> Tensor:
    """Sample maps (B, C, h, w) bilinearly at x, y in cells (B, N, 2) -> (B, N, C); 0 outside."""
    size = positions.new_tensor([features.shape[3] - 1, features.shape[2] - 1])
    grid = 2 * positions[:, None] / size - 1  # cell centres are at integers
    samples = F.grid_sample(features.to(grid), grid, align_corners=True)  # (B, C, 1, N)
    return samples[:, :, 0].mT


def roi_weights(low: Tensor, high: Tensor, cells: int, size: int) -> Tensor:
    """Sampling matrix of roi_align along one axis: (B,), (B,) -> (B, cells, size)."""
    length = (high - low).clamp_min(1.0)
    counts = (length / cells).ceil().clamp(1, 64)  # samples per cell (64: our limit)
    # Reading the largest count would stall a GPU; samples beyond a box's count have weight 0.
    most = int(counts.max()) if low.device.type == "cpu" and len(counts) else 64
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
    """Average features over the cells of one box per map: (B, C, h, w) -> (B, C, cells, cells).

    boxes: (B, 4) x0, y0, x1, y1 in cells. He et al., "Mask R-CNN", ICCV 2017; torchvision's
    roi_align(sampling_ratio=-1, aligned=False), here as two matrix products, of rows and columns.
    """
    boxes = boxes.float()
    rows = roi_weights(boxes[:, 1], boxes[:, 3], cells, features.shape[2])
    columns = roi_weights(boxes[:, 0], boxes[:, 2], cells, features.shape[3])
    return rows.to(features)[:, None] @ features @ columns.to(features).mT[:, None]


def expectation(heat: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Softmax over the last dimensions, and the mean position (..., x y [z]) in cells."""
    shape = heat.shape[-dimensions:]
    heat = heat.float().flatten(-dimensions).softmax(-1).unflatten(-1, shape)
    position = []
    for axis in range(dimensions):
        others = [-1 - other for other in range(dimensions) if other != axis]
        cells = torch.arange(shape[-1 - axis], device=heat.device, dtype=heat.dtype)
        position.append((heat.sum(others) * cells).sum(-1))
    return heat, torch.stack(position, -1)


class PositionNet(nn.Module):
    """Joint positions from a map (B, D, h, w): heat (B, J, d, h, w) and x, y, z (B, J, 3)."""

    def __init__(self, width: int, joints: int, bins: int) -> None:
        super().__init__()
        self.shape = (joints, bins)
        self.conv = nn.Sequential(nn.Conv2d(width, math.prod(self.shape), 1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return expectation(self.conv(features).unflatten(1, self.shape), 3)


class BoxNet(nn.Module):
    """Boxes of right hand, left hand and face: centres and sizes (B, 3, 2), in cells of the map."""

    def __init__(self, config: BodyExpertConfig) -> None:
        super().__init__()
        width = config.box_dim
        self.deconv = deconvolutions(config.vit_dim + 25 * config.depth_bins, *[width] * 3)
        self.bbox_center = nn.Sequential(nn.Conv2d(width, 3, 1))
        self.lhand_size, self.rhand_size, self.face_size = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
            for _ in range(3))

    def forward(self, features: Tensor, heat: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.cat((features, heat.flatten(1, 2).to(features)), 1)  # (B, 1680, 16, 12)
        features = self.deconv(features)  # (B, 256, 128, 96)
        _, centers = expectation(self.bbox_center(features), 2)
        centers = centers[:, [1, 0, 2]]  # the released weights have the left hand first
        at_centers = sample_at(features, centers.detach())  # (B, 3, 256)
        sizes = [net(at_centers[:, part]) for part, net in enumerate(
            (self.rhand_size, self.lhand_size, self.face_size))]
        return centers / 8, torch.stack(sizes, 1).float()


class HandRoiNet(nn.Module):
    """Feature maps of both hands: (B, D, h, w) and boxes (B, 2, 4) -> (B, 2, D, 16, 16)."""

    def __init__(self, config: BodyExpertConfig) -> None:
        super().__init__()
        width, doublings = config.vit_dim, config.hand_upscale.bit_length() - 1
        self.upscale, self.cells = config.hand_upscale, config.hand_cells
        self.deconv = deconvolutions(*(width >> n for n in range(doublings + 1)))
        self.conv = nn.Sequential(nn.Conv2d(width >> doublings, width, 1))

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """boxes: x, y, width, height in cells of the map. The left hand's map is mirrored."""
        features = self.deconv(features)  # (B, 320, 64, 48)
        corners = self.upscale * torch.cat((boxes[..., :2], boxes[..., :2] + boxes[..., 2:]), 2)
        right, left = (roi_align(features, corners[:, side], self.cells) for side in (0, 1))
        hands = torch.stack((right, left.flip(3)), 1)  # (B, 2, 320, 16, 16)
        return self.conv(hands.flatten(0, 1)).unflatten(0, hands.shape[:2])


class BodyFeatures(NamedTuple):
    """Intermediate outputs of BodyExpert, before any rotation is regressed."""

    tokens: Tensor  # (B, 31, 1280), see TASKS
    joints: Tensor  # (B, 25, 3) x, y, z of POSITIONED, in cells of the feature map and depth bins
    box_centers: Tensor  # (B, 3, 2) in cells of the feature map: right hand, left hand, face
    box_sizes: Tensor  # (B, 3, 2) in cells of the feature map
    hand_boxes: Tensor  # (B, 2, 4) x, y, width, height of the hand maps, in cells
    hand_maps: Tensor  # (B, 2, 1280, 16, 16), the left one mirrored
    hand_joints: Tensor  # (B, 2, 20, 3) in cells of the hand maps


class BodyExpert(nn.Module):
    """SMPLer-X: body, hands and face from the image of a person (3.2.3). encoder: see ViT."""

    def __init__(self, config: BodyExpertConfig, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        width, channels = config.vit_dim, config.joint_dim
        self.encoder = ViT(config, encoder, tasks=31)
        self.body_position_net = PositionNet(width, 25, config.depth_bins)
        self.body_regressor = nn.ModuleDict({
            "body_conv": nn.Sequential(nn.Linear(width, channels)),
            "root_pose_out": rotation_layer(25 * (channels + 3), 1, second=-1.0),
            "body_pose_out": rotation_layer(25 * (channels + 3), 21),
            "shape_out": nn.Sequential(nn.Linear(width, 10)),
            "cam_out": nn.Sequential(nn.Linear(width, 3))})
        self.box_net = BoxNet(config)
        self.hand_roi_net = HandRoiNet(config)
        self.hand_position_net = PositionNet(width, 20, config.depth_bins)
        self.hand_regressor = nn.ModuleDict({
            "hand_conv": nn.Sequential(
                nn.Conv2d(width, channels, 1), nn.BatchNorm2d(channels), nn.ReLU()),
            "hand_pose_out": rotation_layer(20 * (channels + 3), 15)})
        self.face_regressor = nn.ModuleDict({  # of a task token each
            "expr_out": nn.Sequential(nn.Linear(width, 10)),
            "jaw_pose_out": rotation_layer(width, 1)})
        # The mean hands, [right, left], to which the released weights' fingers are relative; or 0.
        self.register_buffer("hand_mean", torch.zeros(2, 15, 3))
        self.has_relative_fingers = False
        self.register_load_state_dict_post_hook(BodyExpert.notice_hand_mean)

    def notice_hand_mean(self, *_: object) -> None:
        """Store whether hand_mean is not zero: reading it in every forward would stall a GPU."""
        self.has_relative_fingers = not self.hand_mean.is_meta and bool(self.hand_mean.any())

    def features(self, images: Tensor) -> BodyFeatures:
        """Encode RGB crops (B, 3, S, S), uint8 or floats in 0..255, of people in the middle 3/4."""
        tokens = self.encoder(middle_of(images, self.config))  # (B, 223, 1280); no mean, no std
        tokens, patches = tokens[:, :31], tokens[:, 31:]
        features = patches.mT.unflatten(2, self.config.grid)  # (B, 1280, 16, 12)
        heat, joints = self.body_position_net(features)  # (B, 25, 16, 16, 12), (B, 25, 3)
        centers, sizes = self.box_net(features, heat.detach())  # (B, 3, 2) each
        side = self.config.hand_extension * sizes[:, :2].detach().amax(-1, keepdim=True)
        side = side.clamp(0.5, 2.0 * self.config.grid[0])  # untrained networks predict any size
        boxes = torch.cat((centers[:, :2].detach() - side / 2, side, side), -1)  # (B, 2, 4)
        maps = self.hand_roi_net(features, boxes)  # (B, 2, 1280, 16, 16)
        _, hand_joints = self.hand_position_net(maps.flatten(0, 1))  # (2 B, 20, 3)
        return BodyFeatures(tokens, joints, centers, sizes, boxes, maps,
                            hand_joints.unflatten(0, maps.shape[:2]))

    def joined(self, features: BodyFeatures) -> Tensor:
        """Return "a concatenation of 3D body joint coordinates and tokens": (B, 12875)."""
        tokens = self.body_regressor.body_conv(features.tokens[:, TASKS["pose"]])  # (B, 25, 512)
        return torch.cat((tokens, features.joints.detach().to(tokens)), 2).flatten(1)

    def rotations(self, joined: Tensor) -> Tensor:
        """Regress interleaved 6D (B, 22, 6) of root and body, each by "a linear layer"."""
        layers = self.body_regressor.root_pose_out, self.body_regressor.body_pose_out
        return torch.cat([layer(joined) for layer in layers], 1).float().unflatten(1, (22, 6))

    def initial_pose(self, features: BodyFeatures) -> Tensor:
        """Regress theta_0: interleaved 6D (B, 22, 6)."""
        return self.rotations(self.joined(features))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict people from images (B, 3, S, S), as `features` takes them; see `assemble`."""
        features = self.features(images)
        return self.assemble(features, self.initial_pose(features), images.shape[-1])

    def assemble(self, features: BodyFeatures, pose_6d: Tensor, size: int) -> dict[str, Tensor]:
        """Return all predictions for a body pose, interleaved 6D (B, 22, 6).

        size: S, side of the images in pixels. Returns pose_6d; body_pose (B, 55, 3, 3), SMPL-X's
        rotations with absolute fingers; betas, expression (B, 10); translation (B, 3) in metres;
        hand_boxes (B, 2, 4), squares of the hand maps, and tight_boxes: x, y, width, height in
        pixels; and joints, box_centers, box_sizes, map_boxes, hand_joints of `features`, in cells.
        """
        regressor, face, tokens = self.body_regressor, self.face_regressor, features.tokens
        jaw = face["jaw_pose_out"](tokens[:, TASKS["jaw"]]).float()[:, None]  # (B, 1, 6)
        rotations = rotation_6d_to_matrix(from_interleaved(torch.cat((pose_6d, jaw), 1)))
        right, left = self.fingers(features).unbind(1)  # (B, 15, 3, 3) each
        eyes = torch.eye(3, device=rotations.device).to(rotations).expand(len(rotations), 2, 3, 3)
        camera = regressor.cam_out(tokens[:, TASKS["camera"]]).float()
        # Untrained networks predict any size
        sizes = features.box_sizes[:, :2].clamp_min(0.1) / self.config.box_margin
        tight = torch.cat((features.box_centers[:, :2] - sizes / 2, sizes), 2)
        return {
            "pose_6d": pose_6d,
            "body_pose": torch.cat((rotations, eyes, mirror(left), right), 1),
            "betas": regressor.shape_out(tokens[:, TASKS["betas"]]).float(),
            "expression": face["expr_out"](tokens[:, TASKS["expression"]]).float(),
            # sqrt(f^2 2.5^2 / area of the crop) in metres: 56.38
            "translation": torch.cat((camera[:, :2], FOCAL * 2.5 / 0.75**0.5
                                      * camera[:, 2:].sigmoid()), 1),
            "hand_boxes": self.to_pixels(features.hand_boxes, size),
            "tight_boxes": self.to_pixels(tight, size), "joints": features.joints,
            "box_centers": features.box_centers, "box_sizes": features.box_sizes,
            "map_boxes": features.hand_boxes, "hand_joints": features.hand_joints,
        }

    def fingers(self, features: BodyFeatures) -> Tensor:
        """Regress absolute finger rotations (B, 2, 15, 3, 3) of right hands."""
        maps, joints = features.hand_maps.flatten(0, 1), features.hand_joints.flatten(0, 1).detach()
        sampled = sample_at(self.hand_regressor.hand_conv(maps), joints[..., :2])  # (2 B, 20, 512)
        pose = self.hand_regressor.hand_pose_out(torch.cat((sampled, joints), 2).flatten(1))
        pose_6d = pose.float().view(*features.hand_maps.shape[:2], 15, 6)
        rotations = rotation_6d_to_matrix(from_interleaved(pose_6d))
        if self.has_relative_fingers:
            mean = self.hand_mean.clone()
            mean[1, :, 1:] *= -1  # the left mean hand, mirrored
            rotations = axis_angle_to_matrix(matrix_to_axis_angle(rotations) + mean)
        return rotations

    def to_cells(self, pixels: Tensor, size: int) -> Tensor:
        """Convert points (..., 2) from pixels of images (size, size) to cells of the map."""
        rows, _ = self.config.grid
        return pixels * (rows / size) - pixels.new_tensor([rows / 8, 0])

    def to_pixels(self, boxes: Tensor, size: int) -> Tensor:
        """Convert boxes (..., 4), x, y, width, height, from cells of the map to pixels."""
        rows, _ = self.config.grid
        return (boxes + boxes.new_tensor([rows / 8, 0, 0, 0])) * (size / rows)


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


class PatchEmbed(nn.Module):
    """Patches of crops (B, 3, S, 3/4 S) as tokens (B, N, D)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        # A padding of two pixels, unlike every other ViT: the patches start two pixels outside.
        self.proj = nn.Conv2d(3, width, patch, patch, padding=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Crops (B, 3, S, 3/4 S) -> tokens (B, N, D), under the names of ViTPose, HMR2.0, TokenHMR."""

    def __init__(self, config: EncoderConfig, encoder: nn.Module | None = None,
                 tasks: int = 0) -> None:
        """encoder: a U-net that makes tokens in place of patches. tasks: number of task tokens."""
        super().__init__()
        width, depth = config.vit_dim, config.vit_depth
        self.patch_embed = PatchEmbed(width, config.patch_size) if encoder is None else encoder
        # The first position was a class token's; that token is gone, its position is added to all.
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + math.prod(config.grid), width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList([  # the rate of the last block is 0.55 (HaMeR)
            ViTBlock(width, config.vit_heads, 0.55 * n / max(depth - 1, 1)) for n in range(depth)])
        self.last_norm = nn.LayerNorm(width, eps=1e-6)
        self.task_tokens = nn.Parameter(nn.init.trunc_normal_(
            torch.empty(1, tasks, width), std=0.02)) if tasks else None

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images) + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        if self.task_tokens is not None:
            x = torch.cat((self.task_tokens.expand(len(x), -1, -1), x), 1)  # SMPLer-X's, in front
        for block in self.blocks:
            x = block(x)
        return self.last_norm(x)


def middle_of(images: Tensor, config: EncoderConfig) -> Tensor:
    """Scale RGB crops (B, 3, k S, k S) from 0..255 to 0..1, and keep the middle (B, 3, S, 3/4 S).

    k is 2 for SMPLer-X's crops of 512 px, of which it keeps every second pixel ("nearest").
    Raises ValueError for sides that are no multiple of S, and for pictures in 0..1.
    """
    size, shape = config.image_size, tuple(images.shape)
    require(len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] and shape[2] % size == 0
            and shape[2] > 0, f"images of shape {shape}: expected (B, 3, {size}, {size})")
    if images.is_floating_point() and images.numel() and not (
            images.is_meta or torch.compiler.is_compiling()):
        require(not 0 < images.max() <= 1, "images in 0..1: expected 0..255, multiply them by 255")
    k = shape[2] // size
    return images[..., ::k, ::k][..., size // 8 : -(size // 8)].float() / 255.0


# ---------------------------------------------------------------- rotations and projection


def unit(vector: Tensor, fallback: Tensor, shortest: float) -> Tensor:
    """Scale vectors (..., 3) to length 1; those below `shortest` become `fallback`, no gradient."""
    degenerate = vector.abs().amax(-1, keepdim=True) <= shortest
    vector = torch.where(degenerate, fallback, vector)
    vector = vector / vector.detach().abs().amax(-1, keepdim=True)  # 1e20 squared would overflow
    return vector / vector.norm(dim=-1, keepdim=True)


def rotation_6d_to_matrix(rotation_6d: Tensor) -> Tensor:
    """Convert [column 0, column 1] (..., 6) to rotation matrices (..., 3, 3), by Gram-Schmidt.

    Zhou et al., "On the Continuity of Rotation Representations", CVPR 2019. Zero and parallel
    columns fall back to an axis, so values and gradients are always finite.
    """
    first, second = rotation_6d.unflatten(-1, (2, 3)).unbind(-2)
    first = unit(first, torch.eye(3, dtype=first.dtype, device=first.device)[0], 1e-12)
    axis = F.one_hot(first.abs().argmin(-1), 3).to(first)  # the one least parallel to `first`

    def orthogonal(vector: Tensor) -> Tensor:
        return vector - (first * vector).sum(-1, keepdim=True) * first

    second = unit(second, first, 1e-12)
    second = unit(orthogonal(second), orthogonal(axis), 8 * torch.finfo(first.dtype).eps)
    second = unit(orthogonal(second), second, 0.0)  # again: cancellation left a part of `first`
    return torch.stack((first, second, torch.linalg.cross(first, second)), -1)


def matrix_to_rotation_6d(matrix: Tensor) -> Tensor:
    """Convert rotation matrices (..., 3, 3) to [column 0, column 1] (..., 6)."""
    return matrix[..., :2].mT.flatten(-2)


def from_interleaved(rotation_6d: Tensor) -> Tensor:
    """Convert SMPLer-X's 6D (..., 6), whose columns are interleaved, to [column 0, column 1]."""
    return rotation_6d.unflatten(-1, (3, 2)).mT.flatten(-2)


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Convert axis times angle in radians (..., 3) to rotation matrices (..., 3, 3)."""
    axes = torch.eye(3).to(axis_angle).expand(*axis_angle.shape, 3)
    cross = torch.linalg.cross(axes, axis_angle[..., None, :])  # its rows
    return torch.linalg.matrix_exp(cross.double()).to(axis_angle)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Convert rotation matrices (..., 3, 3) to axis times angle (..., 3), angle in 0..pi."""
    double = matrix.double()
    trace = double.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    skew = (double - double.mT)[..., [2, 0, 1], [1, 2, 0]][..., None]  # 2 sin(angle) axis
    rest = double + double.mT + (1 - trace) * torch.eye(3, device=matrix.device)
    outer = torch.cat((torch.cat((1 + trace, skew.mT), -1), torch.cat((skew, rest), -1)), -2)
    # 4 q q^T of the quaternion q: the row with the largest diagonal element is a multiple of q
    row = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*trace.shape[:-1], 4)
    real, axis = outer.gather(-2, row)[..., 0, :].split((1, 3), -1)
    sine = axis.square().sum(-1, keepdim=True).clamp_min(1e-30).sqrt()
    return (axis / sine * torch.where(real < 0, -2, 2) * torch.atan2(sine, real.abs())).to(matrix)


def mirror(rotations: Tensor) -> Tensor:
    """Mirror rotations (..., 3, 3): M R M, M = diag(-1, 1, 1). Axis-angles become (x, -y, -z)."""
    signs = 1 - 2 * torch.arange(3, device=rotations.device).clamp_max(1)  # no copy to a GPU
    return rotations * (signs[:, None] * signs).to(rotations)


def chain_product(rotations: Tensor) -> Tensor:
    """Multiply a kinematic chain's rotations (B, J, 3, 3), root first -> (B, 3, 3)."""
    return functools.reduce(torch.matmul, rotations.unbind(1))


def arm_pose(body_pose: Tensor, arm: str = "arm") -> Tensor:
    """Select theta_b of both hands: (B, >= 22, 3, 3) -> (B, 2, J, 3, 3), the left one mirrored.

    body_pose: SMPL-X's rotations, the root's in the camera frame. arm: a key of ARMS.
    """
    right, left = ARMS[arm]
    return torch.stack((body_pose[:, right], mirror(body_pose[:, left])), 1)


def project_to_crop(points: Tensor, translation: Tensor) -> Tensor:
    """Project points (B, N, 3) + translation (B, 3), metres, to a crop: (B, N, 2) in -0.5..0.5."""
    points = points + translation[:, None]
    return FOCAL * points[..., :2] / points[..., 2:]


def hand_translation(camera: Tensor) -> Tensor:
    """Convert HaMeR's camera [s, tx, ty] (B, 3) to a translation (B, 3) in metres."""
    s, x, y = camera.unbind(-1)
    return torch.stack((x, y, 2.0 * FOCAL / (s + 1e-9)), -1)


# ----------------------------------------------------------------------------------- presets


def cpu_preset() -> Config:
    """Return the same design in small, behind small encoders, see networks/adapter_encoders.py."""
    decoder = dict(decoder_layers=3, decoder_heads=4)
    run = dict(batch_size=32, schedule="cosine", learning_rate=1e-3, gradient_clip=5.0,
               body_size=128)
    expert = run | dict(image_size=128, vit_depth=1, weight_decay=1e-3)
    adapter = run | dict(joint_embedding="learned")
    of_hands = dict(weight_keypoints_2d=0.2, weight_keypoints_3d=1.0,
                    weight_vertices=1.0 * 21 / 778, weight_pose=0.1)
    hand = HandExpertConfig(vit_dim=288, vit_heads=4, decoder_dim=256, **decoder, **expert,
                            **of_hands, steps=360, weight_betas_prior=0.05)
    body = BodyExpertConfig(
        vit_dim=268, vit_heads=4, **expert | dict(learning_rate=3e-4), patch_size=8, steps=360,
        weight_keypoints_3d=30.0, weight_boxes=3.0, hand_upscale=1, hand_extension=2.3,
        depth_bins=8, hand_cells=8, joint_dim=160, box_dim=32)
    # Found arms and knuckles have errors; adapters trained on true ones would trust them too much.
    return Config(
        HandConfig(expert=hand, **adapter, **of_hands, steps=160, arm_source="found", arm_drop=0.1),
        BodyConfig(expert=body, decoder_dim=192, decoder_ffn=192, **decoder, **adapter, steps=100,
                   knuckle_source="found", offset_hidden=192, weight_keypoints_3d=30.0))


EMBEDDED = Config(HandConfig(joint_embedding="learned"), BodyConfig(joint_embedding="learned"))
PRESETS: dict[str, Config] = {
    "paper": Config(),  # torchrun with 4 processes, V100, six hours; no joint embeddings
    "h200": EMBEDDED,  # one H200
    "single_gpu": EMBEDDED,  # one GPU with 24 GB
    "cpu": cpu_preset(),  # two CPU cores
}
