"""The rivals of HMR-Adapter's adapters in Tables 3 to 6, the tables' rows, and parameter counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weights.hmr_adapter
from hmr_adapter import (
    PRESETS,
    TASKS,
    ArmFeatures,
    BodyAdapter,
    BodyConfig,
    BodyExpert,
    BodyExpertConfig,
    BodyFeatures,
    Config,
    HandAdapter,
    HandConfig,
    HandExpert,
    HandExpertConfig,
    require,
)
from networks import small_experts


class HandImageAdapter(HandAdapter):
    """context="image": F^H in place of F^B, an adapter without guidance (Table 3, No. 5)."""

    DESIGN = "image"

    def build(self) -> None:
        self.build_layers()

    def token(self, features: Tensor, arm: Tensor | None, arm_valid: Tensor | None,
              scale: float) -> Tensor:
        return self.decode(features, features, scale)


class Moderator(nn.Module):
    """Weighted sum of two features (B, N, D), with the moderator of PIXIE (Feng et al., 2021).

    The weights are a softmax of T times the output of an MLP that reads both; T is learned.
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


def check_scale(model: HandAdapter | BodyAdapter, scale: float) -> None:
    """Raise ValueError for a scale: what is concatenated or weighted has none."""
    require(scale == 1.0, f"scale is {scale}: inject={model.config.inject} has none; compare with "
            "the pre-trained expert's own checkpoint")


class ConcatHand(HandAdapter):
    """inject="concat": F^B as more tokens of the decoder's context (Table 3, No. 4; Table 5).

    More tokens, not more channels: the latter would train 47M parameters, not the paper's 39M.
    """

    DESIGN = "concat"

    def build(self) -> None:
        self.arm = ArmFeatures(self.config)

    def token(self, features: Tensor, arm: Tensor | None, arm_valid: Tensor | None,
              scale: float) -> Tensor:
        check_scale(self, scale)
        arm_features = self.arm(*self.prepare_arm(arm, arm_valid, len(features)))  # (B, 8, 1280)
        return self.decoder(self.context(features, arm_features))

    def context(self, features: Tensor, arm_features: Tensor) -> Tensor:
        return torch.cat((features, arm_features), 1)  # (B, 200, 1280)


class WeightedHand(ConcatHand):
    """inject="weighted": a weighted sum of F^H and the mean of F^B (Table 5)."""

    DESIGN = "weighted"

    def build(self) -> None:
        super().build()
        self.moderator = Moderator(self.config.expert.vit_dim, 1024)

    def context(self, features: Tensor, arm_features: Tensor) -> Tensor:
        return self.moderator(features, arm_features.mean(1, keepdim=True))  # (B, 192, 1280)


class BodyTokenAdapter(BodyAdapter):
    """context="tokens": the 25 pose tokens in place of the knuckles (Table 4, No. 5)."""

    DESIGN = "tokens"

    def build(self) -> None:
        self.token_proj = nn.Linear(self.config.expert.vit_dim, self.config.expert.joint_dim)
        self.build_decoder()

    def knuckle_features(self, features: BodyFeatures, *_) -> tuple[Tensor, None]:
        return self.token_proj(features.tokens[:, TASKS["pose"]]), None  # (B, 25, 512)


class ConcatBody(BodyAdapter):
    """inject="concat": F^J as more inputs of widened regressors (Table 4, No. 4; Table 6)."""

    DESIGN = "concat"

    def build(self) -> None:
        self.build_projection()
        regressor, extra = self.expert.body_regressor, 8 * self.config.expert.joint_dim
        for name in ("root_pose_out", "body_pose_out"):
            old = getattr(regressor, name)[0]
            new = nn.Linear(old.in_features + extra, old.out_features).to(old.weight)
            if self.config.concat_init == "zero_pad":  # the new inputs have no effect at first
                with torch.no_grad():
                    new.weight.copy_(F.pad(old.weight, (0, extra)))
                    new.bias.copy_(old.bias)
            setattr(regressor, name, nn.Sequential(new))

    def poses(self, features: BodyFeatures, size: int, knuckles: Tensor | None,
              hand_valid: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        check_scale(self, scale)
        knuckle_features, _ = self.knuckle_features(features, size, knuckles, hand_valid)
        pose_6d = self.regress(features, knuckle_features)
        return pose_6d, pose_6d

    def regress(self, features: BodyFeatures, knuckle_features: Tensor) -> Tensor:
        regressor = self.expert.body_regressor
        joined = regressor.joined(self.expert.pose_features(features), features.joints)
        joined = torch.cat((joined, knuckle_features.flatten(1).to(joined)), 1)
        return self.expert.regress(joined, features)


class WeightedBody(ConcatBody):
    """inject="weighted": a weighted sum of the pose tokens' features and the mean F^J (Table 6)."""

    DESIGN = "weighted"

    def build(self) -> None:
        self.build_projection()
        self.moderator = Moderator(self.config.expert.joint_dim, self.config.expert.joint_dim)

    def regress(self, features: BodyFeatures, knuckle_features: Tensor) -> Tensor:
        moderated = self.moderator(self.expert.pose_features(features),
                                   knuckle_features.mean(1, keepdim=True))
        regressor = self.expert.body_regressor
        return self.expert.regress(regressor.joined(moderated, features.joints), features)


RIVALS = (HandImageAdapter, ConcatHand, WeightedHand, BodyTokenAdapter, ConcatBody, WeightedBody)


def build_model(config: HandExpertConfig | BodyExpertConfig | HandConfig | BodyConfig,
                expert: HandExpert | BodyExpert | None = None) -> nn.Module:
    """Build the expert, adapter or rival of a config, with random weights.

    expert: the pre-trained one of an adapter or rival, of config.expert; becomes a part of it.
    """
    return small_experts.build_model(config, expert, RIVALS)


def load_checkpoint(source: str | PathLike | Mapping) -> nn.Module:
    """Load an expert, adapter or rival, see weights/hmr_adapter.py."""
    return weights.hmr_adapter.load_checkpoint(source, RIVALS)


def on_meta(config: HandConfig | BodyConfig) -> HandAdapter | BodyAdapter:
    """Build the model of a config without allocating its weights, to count them."""
    with torch.device("meta"):
        return build_model(config)


def count(module: nn.Module, trainable: bool = False) -> int:
    """Count the parameters of a module, or the trainable ones."""
    return sum(parameter.numel() for parameter in module.parameters()
               if parameter.requires_grad or not trainable)


def count_parameters(config: Config) -> dict[str, tuple[int, int]]:
    """Count (all, trainable) parameters of each part of both paths, without allocating them."""
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


# The rows of the paper's tables: changes of a preset's `hand` (Tables 3, 5) or `body` (4, 6).
BASELINES: dict[str, tuple[str, dict[str, object]]] = {
    "Table 3, HaMeR": ("hand", dict(inject="none")),
    "Table 3, No. 1": ("hand", dict(inject="none", trainable="all")),
    "Table 3, No. 2": ("hand", dict(inject="none", trainable="all")),
    "Table 3, No. 3": ("hand", dict(inject="none", trainable="head")),
    "Table 3, No. 4": ("hand", dict(inject="concat", trainable="head")),
    "Table 3, No. 5": ("hand", dict(context="image")),
    "Table 3, No. 6": ("hand", dict()),
    "Table 4, SMPLer-X": ("body", dict(inject="none")),
    "Table 4, No. 1": ("body", dict(inject="none", trainable="all")),
    "Table 4, No. 2": ("body", dict(inject="none", trainable="all")),
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
FROM_SCRATCH = ("Table 3, No. 2", "Table 4, No. 2")  # not pre-trained, "double steps"


def baseline(row: str, preset: str = "paper") -> HandConfig | BodyConfig:
    """Return the config of a row of the paper's tables, a key of BASELINES.

    The rows of FROM_SCRATCH have twice the preset's steps and start without a trained expert.
    """
    require(row in BASELINES, f"row {row!r}: expected one of {'; '.join(BASELINES)}")
    part, changes = BASELINES[row]
    config = replace(getattr(PRESETS[preset], part), **changes)
    return replace(config, steps=2 * config.steps) if row in FROM_SCRATCH else config


DISCRIMINATOR = 1_545_211  # parameters of HaMeR's discriminator, which no prediction depends on
PAPER_SAYS = {  # trainable parameters in the paper's tables
    "Table 3, No. 1": "671M", "Table 3, No. 3": "39M", "Table 3, No. 4": "39M",
    "Table 3, No. 5": "27M", "Table 3, No. 6": "27M", "Table 4, No. 1": "662M",
    "Table 4, No. 3": "31M", "Table 4, No. 4": "31M", "Table 4, No. 5": "37M",
    "Table 4, No. 6": "37M",
}
REMARK = f"""\
671M is HaMeR with its discriminator, {DISCRIMINATOR:,} parameters more than here, truncated, not
rounded. 27M includes copied, trained out-projections; without them it would be 24M. 37M does not
follow from the paper; our composition uses only HaMeR's numbers. With one query token the softmax
of either adapter's SA is 1: its q and k weights, 6,291,456, change only by weight decay."""
