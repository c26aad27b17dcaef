"""The rivals that HMR-Adapter's Tables 3 to 6 compare it with, and the builder of any model.

The rivals share the adapters' experts and configs: the experts alone, adapters with another
context, and concatenation or a weighted sum in place of the adapter. `build_model` finds the class
of a config. The paper's baseline of both experts follows PyMAF-X (Sec. 4.2). PyMAF-X also shares
the wrists' twists with the elbows. The paper does not say whether its baseline does; ours does not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import hmr_adapter as hmr
from networks.adapter_encoders import small_encoder


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


class Rival:
    """The part that both paths' rivals share: config.design says which one it is."""

    def __init__(self, config: hmr.HandConfig | hmr.BodyConfig,
                 expert: hmr.HandExpert | hmr.BodyExpert | None = None) -> None:
        self.DESIGN = config.design
        super().__init__(config, expert)

    def check_scale(self, scale: float) -> None:
        """Raise ValueError for a scale: what is concatenated or weighted has none."""
        hmr.require(scale == 1.0, f"scale is {scale}: inject={self.config.inject} has none; compare"
                    " with the pre-trained expert's own checkpoint")


class HandRival(Rival, hmr.HandAdapter):
    """A rival of the hand adapter.

    inject="none": the expert alone, trained as far as `trainable` says (Table 3, No. 1 to 3).
    inject="concat": F^B as more tokens of the decoder's context (Table 3, No. 4; Table 5). More
        channels would train 47M parameters, not the paper's 39M.
    inject="weighted": a weighted sum of F^H and the mean of F^B (Table 5).
    context="image": F^H in place of F^B, an adapter without guidance (Table 3, No. 5).
    """

    def build(self) -> None:
        if self.DESIGN == "image":
            self.build_layers()
        elif self.DESIGN != "none":
            self.arm = hmr.ArmFeatures(self.config)
        if self.DESIGN == "weighted":
            self.moderator = Moderator(self.config.expert.vit_dim, 1024)

    def token(self, features: Tensor, arm: Tensor | None, arm_valid: Tensor | None,
              scale: float) -> Tensor:
        if self.DESIGN == "none":
            return self.decoder(features)  # (B, 1, 1024)
        if self.DESIGN == "image":
            return self.decode(features, features, scale)
        self.check_scale(scale)
        arm_features = self.arm(arm, arm_valid, len(features))  # (B, 8, 1280)
        if self.DESIGN == "concat":
            return self.decoder(torch.cat((features, arm_features), 1))  # of (B, 200, 1280)
        return self.decoder(self.moderator(features, arm_features.mean(1, keepdim=True)))


class BodyRival(Rival, hmr.BodyAdapter):
    """A rival of the body adapter.

    inject="none": the expert alone, trained as far as `trainable` says (Table 4, No. 1 to 3).
    inject="concat": F^J as more inputs of widened regressors (Table 4, No. 4; Table 6).
    inject="weighted": a weighted sum of the pose tokens' features and the mean F^J (Table 6).
    context="tokens": the 25 pose tokens in place of the knuckles (Table 4, No. 5).
    """

    def build(self) -> None:
        expert = self.config.expert
        if self.DESIGN == "tokens":
            self.token_proj = nn.Linear(expert.vit_dim, expert.joint_dim)
            self.build_decoder()
        elif self.DESIGN != "none":
            self.build_projection()
        if self.DESIGN == "weighted":
            self.moderator = Moderator(expert.joint_dim, expert.joint_dim)
        for name in ("root_pose_out", "body_pose_out") if self.DESIGN == "concat" else ():
            old = getattr(self.expert.body_regressor, name)[0]
            new = nn.Linear(old.in_features + 8 * expert.joint_dim, old.out_features)
            setattr(self.expert.body_regressor, name, nn.Sequential(new.to(old.weight)))

    def knuckle_features(self, features: hmr.BodyFeatures, *arguments) -> Tensor:
        if self.DESIGN == "tokens":
            return self.token_proj(features.tokens[:, hmr.TASKS["pose"]])  # (B, 25, 512)
        return super().knuckle_features(features, *arguments)

    def poses(self, features: hmr.BodyFeatures, size: int, knuckles: Tensor | None,
              hand_valid: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        if self.DESIGN == "tokens":
            return super().poses(features, size, knuckles, hand_valid, scale)
        if self.DESIGN == "none":
            return (self.expert.initial_pose(features),) * 2
        self.check_scale(scale)
        hands = self.knuckle_features(features, size, knuckles, hand_valid)  # (B, 8, 512)
        if self.DESIGN == "concat":
            joined = self.expert.joined(features)
            joined = torch.cat((joined, hands.flatten(1).to(joined)), 1)
        else:
            tokens = self.expert.body_regressor.body_conv(features.tokens[:, hmr.TASKS["pose"]])
            tokens = self.moderator(tokens, hands.mean(1, keepdim=True))
            joined = torch.cat((tokens, features.joints.detach().to(tokens)), 2).flatten(1)
        return (self.expert.rotations(joined),) * 2


def build_model(config: hmr.HandExpertConfig | hmr.BodyExpertConfig | hmr.HandConfig |
                hmr.BodyConfig | hmr.Config,
                expert: hmr.HandExpert | hmr.BodyExpert | None = None) -> nn.Module:
    """Build what a config describes, with random weights: expert, adapter or rival, or both paths.

    expert: the pre-trained one of an adapter or rival, of config.expert; becomes a part of it.
    """
    if isinstance(config, hmr.Config):
        return hmr.HMRAdapter(config, build_model(config.hand), build_model(config.body))
    if isinstance(config, hmr.HandExpertConfig):
        return hmr.HandExpert(config, small_encoder(config))
    if isinstance(config, hmr.BodyExpertConfig):
        return hmr.BodyExpert(config, small_encoder(config))
    adapter, rival = ((hmr.HandAdapter, HandRival) if isinstance(config, hmr.HandConfig) else
                      (hmr.BodyAdapter, BodyRival))
    kind = adapter if config.design == adapter.DESIGN else rival
    return kind(config, build_model(config.expert) if expert is None else expert)


# --------------------------------------------------------------------------- parameter counts


def on_meta(config: hmr.HandConfig | hmr.BodyConfig) -> hmr.HandAdapter | hmr.BodyAdapter:
    """Build the model of a config without allocating its weights, to count them."""
    with torch.device("meta"):
        return build_model(config)


def count(module: nn.Module, trainable: bool = False) -> int:
    """Count the parameters of a module, or the trainable ones."""
    return sum(parameter.numel() for parameter in module.parameters()
               if parameter.requires_grad or not trainable)
