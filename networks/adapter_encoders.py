"""HMR-Adapter's small encoders, in place of patches of pictures: two U-nets that learned before.

The paper freezes two experts with a ViT-H each. The preset `cpu` keeps the paper's experts, with
small numbers, and gives their ViTs the tokens of U-nets in place of patches: bodies those of
GenHMR's SmallEncoder, hands those of SimpleHand's network for photographs. All of this is our
choice.

Letters in shapes: B batch, S side of the square crop in pixels, N tokens, D width of a token.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hmr_adapter as hmr
from genhmr import JOINTS, matrix_to_rotation_6d, rotation_6d_to_matrix
from networks import any_view
from networks.small_encoder import GRID, HEAT_GRID, IMAGE_SIZE, NAMES, SmallEncoder

# Keypoints whose heat maps a whole-body expert sees: wrists and fingertips, for boxes of hands
OF_HANDS = [n for n, name in enumerate(NAMES)
            if re.search("wrist|thumb|index|middle|ring|pinky", name)]
SEEN = 80  # px, side of the middle of a hand's crop of 128 px that the U-net sees, as 64 px


class BodyEncoder(SmallEncoder):
    """Crops of people (B, 3, S, 3/4 S), RGB in 0..1 -> tokens (B, N, D).

    Those of a SmallEncoder and, beside each, the whole lifted pose and what the heat maps of wrists
    and fingertips hold in its cell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.width += 6 * JOINTS + len(OF_HANDS)  # D, 268

    def lifted(self, crops: Tensor) -> Tensor:
        """Lift the pose of SMPL's 24 joints: rotations (B, 24, 3, 3)."""
        return rotation_6d_to_matrix(self.read((crops - self.mean) / self.std).lifted.pose)

    def forward(self, crops: Tensor) -> Tensor:
        reading = self.read((crops - self.mean) / self.std)
        pose = matrix_to_rotation_6d(rotation_6d_to_matrix(reading.lifted.pose)).flatten(1)
        pose = pose[:, None].expand(-1, reading.tokens.shape[1], -1)  # (B, N, 144)
        heat = reading.heat[:, OF_HANDS].exp().unflatten(2, HEAT_GRID)  # (B, 12, 32, 24)
        hands = 4 * F.adaptive_avg_pool2d(heat, GRID).flatten(2).mT  # (B, N, 12) probabilities
        return torch.cat((reading.tokens, pose, hands.to(pose)), 2)


class HandEncoder(nn.Module):
    """Normalised crops of hands (B, 3, S, 3/4 S) -> tokens (B, N, D).

    A token holds the U-net's features of its cell, and what SimpleHand's network for photographs
    finds in the middle of the crop: all keypoints in 2D, with the spread of their heat maps, and
    in 3D. While it trains, it also learns by SimpleHand's own losses.
    """

    KEYPOINTS = 21

    def __init__(self) -> None:
        super().__init__()
        config = dataclasses.replace(any_view.PRESETS["cpu_views"], depths=(2, 3, 3, 6),
                                     blocks=(4, 0, 0))  # assets/simplehand_views_cpu.pt
        self.hand = any_view.build(config)
        self.width = config.token_width + 6 * self.KEYPOINTS  # D, 190
        self.register_buffer("regressor", torch.zeros(self.KEYPOINTS, config.num_vertices))

    def train(self, mode: bool = True) -> HandEncoder:
        """Set the mode; a frozen encoder stays in evaluation mode."""
        return super().train(mode and next(self.parameters()).requires_grad)

    def forward(self, crops: Tensor) -> Tensor:
        top, left = ((side - SEEN) // 2 for side in crops.shape[2:])
        crops = crops[:, :, top : top + SEEN, left : left + SEEN]  # (B, 3, 80, 80)
        size, network = self.hand.config.image_size, self.hand
        maps, last = network.backbone(F.interpolate(
            crops, size=(size, size), mode="bilinear", antialias=True))  # (B, 64, 16, 16)
        found = network.keypoints_2d_head(maps, last)
        vertices = network.mesh_head(maps, found["keypoints_2d"]).float()
        self.found = found | {"vertices": vertices} if self.training else None
        joints = self.regressor @ vertices
        hand = torch.cat((4 * (found["keypoints_2d"] - 0.5), 10 * found["spread_2d"][..., None],
                          10 * (joints - joints[:, :1])), 2).flatten(1)  # (B, 126)
        edge = (maps.shape[3] - GRID[1]) // 2
        cells = maps[..., edge : edge + GRID[1]].flatten(2).mT  # (B, N, 64)
        return torch.cat((cells, hand[:, None].expand(-1, cells.shape[1], -1).to(cells)), 2)

    def loss(self, samples: Mapping[str, Tensor]) -> Tensor:
        """Compute SimpleHand's loss of what the last forward in training found.

        samples: of hmr_adapter.hand_samples, the same hands. Without this loss only the decoder
        trains the network, whose own keypoints then drift away from the hand.
        """
        ratio = samples["images"].shape[-1] / SEEN
        points = ratio * samples["keypoints_2d"] + 0.5  # 0..1 in the middle of the crop
        valid = samples["valid"]
        batch = {"image": points.new_empty(0, SEEN), "vertices": samples["vertices"],
                 "joints": samples["joints"], "keypoints_2d": SEEN * points, "mesh_valid": valid,
                 "keypoints_valid": valid[:, None] * ((points > 0) & (points < 1)).all(2)}
        terms = any_view.losses(self.found, batch, self.regressor)
        return any_view.total_loss(terms, self.hand.config)


def is_small(config: hmr.EncoderConfig) -> bool:
    """Say whether a config is of an expert behind one of these encoders."""
    return (config.image_size, config.patch_size) == (IMAGE_SIZE, IMAGE_SIZE // GRID[0])


def hand_expert(config: hmr.HandExpertConfig) -> hmr.HandExpert:
    """Build a hand expert with random weights, behind a HandEncoder if its config is small."""
    return hmr.HandExpert(config, HandEncoder() if is_small(config) else None)


def body_expert(config: hmr.BodyExpertConfig) -> hmr.BodyExpert:
    """Build a whole-body expert with random weights, behind a BodyEncoder if it is small.

    The BodyEncoder is frozen: it has learned on more pictures than the expert sees.
    """
    encoder = BodyEncoder().requires_grad_(False) if is_small(config) else None
    return hmr.BodyExpert(config, encoder)


@torch.no_grad()
def start_rotations(expert: hmr.BodyExpert, pictures: Iterable[Tensor], ridge: float = 1.0) -> None:
    """Let the layers of a whole-body expert that regress rotations start with its encoder's pose.

    The expert's tokens hold the pose that its BodyEncoder lifts, and a linear layer reads it out.
    Its weights have a closed form: the least squares for the given pictures, (B, 3, S, S) each,
    with `ridge` times the squared weights of inputs of variance 1.
    """
    net, encoder, mode = expert.body_regressor, expert.encoder.patch_embed, expert.training
    expert.eval()
    inputs, targets = [], []
    for images in pictures:
        features = expert.features(images)
        inputs.append(expert.joined(features).double())
        found = encoder.lifted(hmr.middle_of(images, expert.config))
        targets.append(found[:, :22, :, :2].flatten(1).double())  # interleaved 6D
    expert.train(mode)
    x, y = torch.cat(inputs), torch.cat(targets)  # (N, 25 (d + 3)), (N, 132)
    mean, spread = x.mean(0), x.std(0) + 1e-4
    x = (x - mean) / spread
    gram = x.mT @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = (torch.linalg.solve(gram, x.mT @ (y - y.mean(0))) / spread[:, None]).mT
    bias = y.mean(0) - weight @ mean
    first = 0
    for (layer,) in (net.root_pose_out, net.body_pose_out):
        rows = slice(first, first := first + layer.out_features)
        layer.weight.copy_(weight[rows])
        layer.bias.copy_(bias[rows])
