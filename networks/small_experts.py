"""HMR-Adapter's small experts, which learn in minutes on a CPU, and their losses.

The paper freezes two experts of 0.7 billion parameters each. These have three million, so that
every command works without the released weights: a PoseEncoder finds keypoints, and the decoders
of HaMeR and SMPLer-X read tokens that are made of them. All of it is our choice.

Letters in shapes: B batch, S side of a square crop in pixels, K keypoints, D width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmr_adapter import (
    BODY_DEPTH,
    POSITIONED,
    BodyConfig,
    BodyExpert,
    BodyExpertConfig,
    BodyFeatures,
    BodyRegressor,
    Decoder,
    EncoderConfig,
    HandConfig,
    HandExpert,
    HandExpertConfig,
    HandRegressor,
    HandRoiNet,
    ManoHead,
    PositionNet,
    face_regressor,
    middle_of,
    register_statistics,
)
from networks.pose_encoder import PoseEncoder, Seen
from networks.small_encoder import cell_centres, heat_map_loss


class KeypointTokens(nn.Module):
    """Make tokens (B, wholes + K, D) of a PoseEncoder's output: of all keypoints, then of each."""

    def __init__(self, config: EncoderConfig, keypoints: int, wholes: int) -> None:
        super().__init__()
        self.whole = nn.Linear(config.lift_width, wholes * config.vit_dim)
        self.each = nn.Linear(config.pooled + 6, config.vit_dim)
        self.joint_embedding = nn.Parameter(0.02 * torch.randn(keypoints, config.vit_dim))

    def forward(self, seen: Seen) -> Tensor:
        lifted = seen.lifted
        keypoints = torch.cat((4 * seen.at, seen.share[..., None], 2 * lifted.joints, seen.found),
                              2)
        each = self.each(keypoints) + self.joint_embedding  # (B, K, D)
        return torch.cat((self.whole(lifted.hidden).unflatten(1, (-1, each.shape[2])), each), 1)


class HandFinder(nn.Module):
    """The encoder of PoseHandExpert: crops (B, 3, S, 3/4 S) -> F^H (B, 1 + 21, D)."""

    def __init__(self, config: HandExpertConfig) -> None:
        super().__init__()
        self.encoder = PoseEncoder(config, 21, 16, shapes=0)
        self.tokens = KeypointTokens(config, 21, 1)

    def forward(self, crops: Tensor) -> Tensor:
        return self.tokens(self.encoder(crops))


class StartedDecoder(Decoder):
    """A decoder whose query starts from the context's first token."""

    def query(self, context: Tensor) -> Tensor:
        return super().query(context) + context[:, :1]


class PoseHandExpert(HandExpert):
    """A small hand expert: HaMeR's decoder on tokens of the keypoints that it finds."""

    def __init__(self, config: HandExpertConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.backbone = HandFinder(config)
        self.mano_head = ManoHead(config)
        self.mano_head.transformer = StartedDecoder(config, config.vit_dim)
        register_statistics(self)

    def encode(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return F^H (B, 1 + 21, D); heat maps, joints as "lifted", and the mean share (B,)."""
        seen = self.backbone.encoder(self.normalise(images))
        return self.backbone.tokens(seen), {
            "heat": seen.heat, "lifted": seen.lifted.joints, "share": seen.share.mean(1)}


SEEN = [*range(22), 28, 43, *range(55, 76)]  # SMPL's 45 keypoints in SMPL-X's 76; its hands: the
# middle knuckles. Among these: POSITIONED; wrist, knuckle and finger tips, [right, left]
SEEN_POSITIONED = [SEEN.index(joint) for joint in POSITIONED]
SEEN_HANDS = [[21, 23, *range(40, 45)], [20, 22, *range(35, 40)]]


class PoseBodyExpert(BodyExpert):
    """A small whole-body expert: SMPLer-X's regressors on tokens of the keypoints."""

    def __init__(self, config: BodyExpertConfig) -> None:
        nn.Module.__init__(self)
        self.config, width = config, config.vit_dim
        self.encoder = PoseEncoder(config, len(SEEN), 24, shapes=0)
        self.tokens = KeypointTokens(config, len(SEEN), 6)
        self.to_map = nn.Conv2d(2 * config.widths[1], width, 1)
        self.body_regressor = BodyRegressor(config)
        for layer in (self.body_regressor.root_pose_out, self.body_regressor.body_pose_out):
            nn.init.zeros_(layer[0].bias)  # they correct the lifted pose
        self.boxes = nn.ModuleList([nn.Linear(7 * 3 + config.lift_width, 4) for _ in range(2)])
        self.hand_roi_net = HandRoiNet(config)
        self.hand_position_net = PositionNet(width, 20, config.depth_bins)
        self.hand_regressor = HandRegressor(config)
        self.face_regressor = face_regressor(config)
        self.register_hand_mean()
        register_statistics(self)

    def features(self, images: Tensor) -> BodyFeatures:
        """As BodyExpert's."""
        size = self.config.image_size  # larger pictures are averaged, which leaves less noise
        images = F.avg_pool2d(images.float(), max(1, images.shape[-1] // size))
        seen = self.encoder((middle_of(images, self.config) - self.mean) / self.std)
        tokens = self.tokens(seen)  # (B, 6 + 45, D)
        tokens = torch.cat((tokens[:, :6], tokens[:, 6:][:, SEEN_POSITIONED]), 1)  # (B, 31, D)
        depth = (1 + seen.lifted.joints[:, SEEN_POSITIONED, 2:] / (BODY_DEPTH / 2))
        joints = torch.cat((self.to_cells(seen.at[:, SEEN_POSITIONED] + 0.5, 1),
                            depth * self.config.depth_bins / 2), 2)  # (B, 25, 3)
        centers, sizes = self.find_hands(seen)  # (B, 2, 2) each
        boxes = self.hand_squares(centers.detach(), sizes.detach())  # (B, 2, 4)
        maps = self.hand_roi_net(self.to_map(seen.maps[4]), boxes)  # (B, 2, D, 8, 8)
        _, hand_joints = self.hand_position_net(maps.flatten(0, 1))  # (2 B, 20, 3)
        return BodyFeatures(tokens, joints, centers, sizes, boxes, maps,
                            hand_joints.unflatten(0, maps.shape[:2]), seen)

    def find_hands(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Predict centres and sizes (B, 2, 2) of the hands' tight boxes, in cells."""
        at = self.to_cells(seen.at[:, SEEN_HANDS] + 0.5, 1)  # (B, 2, 7, 2)
        share = seen.share[:, SEEN_HANDS][..., None]  # (B, 2, 7, 1)
        middle = (at * share).sum(2) / share.sum(2).clamp_min(1e-6)  # (B, 2, 2)
        around = torch.cat(((at - middle[:, :, None]) / 4, share), 3).flatten(2)  # (B, 2, 21)
        correction = torch.stack([
            net(torch.cat((around[:, side], seen.lifted.hidden), 1))
            for side, net in enumerate(self.boxes)], 1)  # (B, 2, 4)
        extent = at.amax(2) - at.amin(2)
        return middle + correction[..., :2], extent + correction[..., 2:]

    def regress(self, joined: Tensor, features: BodyFeatures) -> Tensor:
        """Add the regressed correction to the lifted pose; interleaved 6D (B, 22, 6)."""
        pose_6d = features.seen.lifted.pose[:, :22]
        lifted = pose_6d.unflatten(-1, (2, 3)).mT.flatten(-2)  # interleaved
        return lifted + super().regress(joined, features)

    def assemble(self, features: BodyFeatures, pose_6d: Tensor, size: int) -> dict[str, Tensor]:
        """As BodyExpert's; also heat maps and, as "lifted", joints."""
        return super().assemble(features, pose_6d, size) | {
            "heat": features.seen.heat, "lifted": features.seen.lifted.joints}


def hand_expert(config: HandExpertConfig) -> HandExpert:
    """Build a hand expert with random weights."""
    return (PoseHandExpert if config.backbone == "pose" else HandExpert)(config)


def body_expert(config: BodyExpertConfig) -> BodyExpert:
    """Build a whole-body expert with random weights."""
    return (PoseBodyExpert if config.backbone == "pose" else BodyExpert)(config)


# ------------------------------------------------------------------------------------- losses


def keypoint_losses(prediction: Mapping[str, Tensor], keypoints_2d: Tensor, joints: Tensor,
                    config: EncoderConfig) -> tuple[Tensor, Tensor]:
    """Compute the losses of a PoseEncoder, each (B,): of heat maps, and of keypoints in 3D.

    keypoints_2d: (B, K, 2), crop in -0.5..0.5; of one outside the heat map counts a fifth.
    joints: (B, K, 3), metres.
    """
    heat = heat_map_loss(prediction["heat"], keypoints_2d, config.grid)  # (B, K)
    centres = cell_centres(config.grid, keypoints_2d.device)
    inside = (keypoints_2d >= centres.amin(0)) & (keypoints_2d <= centres.amax(0))
    error = (prediction["lifted"] - joints + joints[:, :1]).abs()
    return (heat * torch.where(inside.all(-1), 1.0, 0.2)).mean(1), error.mean((1, 2))


def hand_keypoint_losses(prediction: Mapping[str, Tensor], samples: Mapping[str, Tensor],
                         config: HandConfig | HandExpertConfig) -> dict[str, Tensor]:
    """Compute the terms that hand_losses lacks: of a small expert that is trained as a whole.

    prediction, samples: as of hand_losses; invalid samples count as zero.
    """
    if "heat" not in prediction or getattr(config, "trainable", "all") != "all":
        return {}
    losses = keypoint_losses(prediction, samples["keypoints_2d"], samples["joints"],
                             getattr(config, "expert", config))
    heat, lift = (torch.where(samples["valid"] > 0, loss, 0.0).mean() for loss in losses)
    return {"heat": heat, "lift": lift}


def body_keypoint_losses(prediction: Mapping[str, Tensor], batch: Mapping[str, Tensor],
                         config: BodyConfig | BodyExpertConfig) -> dict[str, Tensor]:
    """Compute the terms that body_losses lacks: of a small expert. Arguments: as of body_losses."""
    if "heat" not in prediction:
        return {}
    heat, lift = keypoint_losses(
        prediction, batch["keypoints_2d"][:, SEEN] / batch["image"].shape[-1] - 0.5,
        batch["keypoints_3d"][:, SEEN], getattr(config, "expert", config))
    return {"heat": heat.mean(), "lift": lift.mean()}
