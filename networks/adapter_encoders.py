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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hmr_adapter as hmr
from bodymodels import BodyModel
from genhmr import JOINTS, matrix_to_rotation_6d, rotation_6d_to_matrix
from networks import any_view
from networks.small_encoder import GRID, HEAT_GRID, IMAGE_SIZE, NAMES, SmallEncoder
from sets.crops import rotation, upright_view
from simplehand import VERTICES

# Keypoints whose heat maps a whole-body expert sees: wrists and fingertips, for boxes of hands
OF_HANDS = [n for n, name in enumerate(NAMES)
            if re.search("wrist|thumb|index|middle|ring|pinky", name)]
CLOSE = (0.3, 1.0)  # least and largest side of the square of a closer look, of the crop's


class BodyEncoder(SmallEncoder):
    """Crops of people (B, 3, S, 3/4 S), RGB in 0..1 -> tokens (B, N, D).

    Those of a SmallEncoder and, beside each, the whole lifted pose and what the heat maps of wrists
    and fingertips hold in its cell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pose = slice(self.width, self.width + 6 * JOINTS)  # of a token: rotations of 24 joints
        self.width += 6 * JOINTS + len(OF_HANDS)  # D, 268

    def forward(self, crops: Tensor) -> Tensor:
        reading = self.read((crops - self.mean) / self.std)
        pose = matrix_to_rotation_6d(rotation_6d_to_matrix(reading.lifted.pose)).flatten(1)
        pose = pose[:, None].expand(-1, reading.tokens.shape[1], -1)  # (B, N, 144)
        heat = reading.heat[:, OF_HANDS].exp().unflatten(2, HEAT_GRID)  # (B, 12, 32, 24)
        hands = 4 * F.adaptive_avg_pool2d(heat, GRID).flatten(2).mT  # (B, N, 12) probabilities
        return torch.cat((reading.tokens, pose, hands.to(pose)), 2)


class HandEncoder(nn.Module):
    """Normalised crops of hands (B, 3, S, 3/4 S) -> tokens (B, N, D).

    SimpleHand's network for photographs looks at the whole crop, and closer at the hand that it
    finds there, turned upright. A token holds the U-net's features of its cell in the first look,
    and what the second finds: keypoints in 2D, with the spread of their heat maps, and in 3D, the
    rotations of MANO's joints, and the turn.
    """

    KEYPOINTS, JOINTS = 21, 16

    def __init__(self) -> None:
        super().__init__()
        config = dataclasses.replace(any_view.PRESETS["cpu_views"], depths=(2, 3, 3, 6),
                                     blocks=(4, 0, 0))  # assets/simplehand_views_cpu.pt
        self.hand = any_view.build(config)
        start = config.token_width + 6 * self.KEYPOINTS
        self.pose = slice(start, start + 6 * self.JOINTS)  # of a token: rotations of 16 joints
        self.width = self.pose.stop + 2  # D, 288
        self.register_buffer("regressor", torch.zeros(self.KEYPOINTS, VERTICES))
        self.register_buffer("parts", torch.zeros(self.JOINTS, VERTICES, 3))

    def train(self, mode: bool = True) -> HandEncoder:
        """Set the mode; a frozen encoder stays in evaluation mode."""
        return super().train(mode and next(self.parameters()).requires_grad)

    def forward(self, crops: Tensor) -> Tensor:
        size, edge = self.hand.config.image_size, crops.shape[2] // 8
        crops = F.pad(crops, (edge, edge))  # (B, 3, S, S)
        maps, first = self.look(F.interpolate(crops, size=(size, size), mode="bilinear",
                                              antialias=True))  # of the whole crop
        view = closer_view(first["keypoints_2d"].detach())
        _, second = self.look(any_view.turn(crops, *view, size))
        whole = View(torch.zeros_like(view.angle), torch.ones_like(view.side),
                     torch.full_like(view.center, 0.5))
        self.looks = [(whole, first), (view, second)] if self.training else None  # for `loss`

        maps = F.avg_pool2d(maps, 2)  # (B, 64, 8, 8), of which the middle 3/4 is the crop
        cells = maps[..., 1:-1].flatten(2).mT  # (B, N, 64)
        hand = any_view.turn_back(second, *view)
        joints = self.regressor @ hand["vertices"]
        keypoints = torch.cat((4 * (hand["keypoints_2d"] - 0.5), 10 * hand["spread_2d"][..., None],
                               10 * (joints - joints[:, :1])), 2)  # (B, 21, 6)
        pose = matrix_to_rotation_6d(self.rotations(hand["vertices"]))  # (B, 16, 6)
        turn = rotation(view.angle)[:, 0]  # (B, 2)
        hand = torch.cat((keypoints.flatten(1), pose.flatten(1), turn), 1)  # (B, 224)
        return torch.cat((cells, hand[:, None].expand(-1, cells.shape[1], -1).to(cells)), 2)

    def look(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the U-net's maps of images (B, 3, 64, 64), and the hand that it finds there."""
        maps, last = self.hand.backbone(images)
        found = self.hand.keypoints_2d_head(maps, last)
        vertices = self.hand.mesh_head(maps, found["keypoints_2d"]).float()
        return maps, found | {"vertices": vertices}

    def rotations(self, vertices: Tensor) -> Tensor:
        """Read the rotations (B, 16, 3, 3) of MANO's joints off a mesh (B, 778, 3).

        The map that takes a part of the template nearest to the same part of the mesh, by least
        squares, is linear in the mesh; its first two columns make a rotation.
        """
        turned = torch.einsum("bvc,jvd->bjcd", vertices, self.parts)
        turned = rotation_6d_to_matrix(matrix_to_rotation_6d(turned))  # of each part, in the camera
        fingers = turned[:, 1:].unflatten(1, (5, 3))
        parents = torch.cat((turned[:, None, :1].expand(-1, 5, -1, -1, -1), fingers[:, :, :2]), 2)
        return torch.cat((turned[:, :1], (parents.mT @ fingers).flatten(1, 2)), 1)

    def loss(self, samples: Mapping[str, Tensor]) -> Tensor:
        """Compute the mean of SimpleHand's losses of both looks in the last forward in training.

        samples: of hmr_adapter.hand_samples. Without this loss keypoints drift away from the hand.
        """
        losses, valid = [], samples["valid"]
        for view, found in self.looks:
            turn = rotation(view.angle).mT  # of row vectors: x R^T = R x
            points = samples["keypoints_2d"] + 0.5 - view.center[:, None]
            points = 0.5 + points @ turn / view.side[:, None, None]  # 0..1 in the view
            vertices, joints = (torch.cat((x[..., :2] @ turn, x[..., 2:]), 2)
                                for x in (samples["vertices"], samples["joints"]))
            batch = {"image": points.new_empty(0, 1), "vertices": vertices, "joints": joints,
                     "keypoints_2d": points, "mesh_valid": valid,
                     "keypoints_valid": valid[:, None] * ((points > 0) & (points < 1)).all(2)}
            terms = any_view.losses(found, batch, self.regressor)
            losses.append(any_view.total_loss(terms, self.hand.config))
        return sum(losses) / len(losses)


class View(NamedTuple):
    """A square part of a crop, turned: the arguments of any_view.turn."""

    angle: Tensor  # (B,) radians, clockwise
    side: Tensor  # (B,) of the crop's side
    center: Tensor  # (B, 2) in the crop, 0..1


def closer_view(keypoints: Tensor) -> View:
    """Return the square in which a hand with these keypoints (B, 21, 2) stands upright."""
    center = (keypoints.amax(1) + keypoints.amin(1)) / 2
    return View(*upright_view(keypoints - center[:, None] + 0.5, CLOSE), center)


def part_readers(hand: BodyModel) -> Tensor:
    """Return what `rotations` of a HandEncoder multiplies meshes by, (16, 778, 3), of a hand.

    For each joint: the least-squares solution for the vertices that mostly follow it.
    """
    weights = hand.skinning_weights * (hand.skinning_weights > 0.5)  # (16, 778)
    weights = weights / weights.sum(1, keepdim=True)
    offset = hand.v_template - (weights @ hand.v_template)[:, None]  # (16, 778, 3)
    weighted = weights[..., None] * offset
    spread = weighted.mT @ offset  # (16, 3, 3)
    return weighted @ torch.linalg.inv(spread)


def is_small(config: hmr.EncoderConfig) -> bool:
    """Say whether a config is of an expert behind one of these encoders."""
    return config.image_size == IMAGE_SIZE


def small_encoder(config: hmr.EncoderConfig) -> HandEncoder | BodyEncoder | None:
    """Build the encoder of a small expert, with random weights; None for the paper's patches.

    A BodyEncoder is frozen: it has learned on more pictures than its expert sees.
    """
    if not is_small(config):
        return None
    return (HandEncoder() if isinstance(config, hmr.HandExpertConfig) else
            BodyEncoder().requires_grad_(False))


@torch.no_grad()
def start_rotations(expert: hmr.HandExpert | hmr.BodyExpert, pictures: Iterable[Tensor],
                    ridge: float = 1.0) -> None:
    """Let the layers of a small expert that regress rotations start with its encoder's pose.

    The tokens hold that pose. The layers' weights are the least squares for the given pictures,
    (B, 3, S, S) each, with `ridge` times the squared weights of inputs of variance 1.
    """
    hands, mode, inputs, targets = isinstance(expert, hmr.HandExpert), expert.training, [], []
    layers = [expert.mano_head.decpose] if hands else [
        expert.body_regressor.root_pose_out[0], expert.body_regressor.body_pose_out[0]]
    encoder = (expert.backbone if hands else expert.encoder).patch_embed
    expert.eval()
    for images in pictures:
        features, crops = expert.features(images), hmr.middle_of(images, expert.config)
        crops = (crops - expert.mean) / expert.std if hands else crops
        pose = encoder(crops)[:, 0, encoder.pose]  # all tokens hold it
        if hands:
            inputs.append(expert.mano_head.transformer(features)[:, 0])
            targets.append(pose - expert.mano_head.init_hand_pose)
        else:
            inputs.append(expert.joined(features))
            columns = pose.unflatten(1, (JOINTS, 2, 3))[:, :22]
            targets.append(columns.mT.flatten(1))  # interleaved 6D
    expert.train(mode)
    x, y = torch.cat(inputs).double(), torch.cat(targets).double()  # (N, D), (N, 96 or 132)
    mean, spread = x.mean(0), x.std(0) + 1e-4
    x = (x - mean) / spread
    gram = x.mT @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = (torch.linalg.solve(gram, x.mT @ (y - y.mean(0))) / spread[:, None]).mT
    bias = y.mean(0) - weight @ mean
    counts = [layer.out_features for layer in layers]
    for layer, *own in zip(layers, weight.split(counts), bias.split(counts), strict=True):
        layer.weight.copy_(own[0])
        layer.bias.copy_(own[1])
