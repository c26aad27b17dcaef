"""HMR-Adapter's small encoders, in place of patches of pictures: two U-nets that learned before.

The paper freezes two experts with a ViT-H each. The preset `cpu` keeps the paper's experts, with
small numbers, and gives their ViTs the tokens of U-nets in place of patches: bodies those of
GenHMR's SmallEncoder, hands those of SimpleHand's network for photographs. All of this is our
choice.

Letters in shapes: B batch, S side of the square crop in pixels, N tokens, D width of a token.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genhmr import JOINTS, matrix_to_rotation_6d, rotation_6d_to_matrix
from hmr_adapter import BodyExpert, BodyExpertConfig, EncoderConfig, HandExpert, HandExpertConfig
from networks import any_view
from networks.small_encoder import GRID, IMAGE_SIZE, SmallEncoder

SEEN = 80  # px, side of the middle of a hand's crop of 128 px that the U-net sees, as 64 px


class BodyEncoder(SmallEncoder):
    """Crops of people (B, 3, S, 3/4 S), RGB in 0..1 -> tokens (B, N, D).

    Those of a SmallEncoder, and the whole lifted pose beside each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.width += 6 * JOINTS  # D, 256

    def forward(self, crops: Tensor) -> Tensor:
        reading = self.read((crops - self.mean) / self.std)
        pose = matrix_to_rotation_6d(rotation_6d_to_matrix(reading.lifted.pose)).flatten(1)
        pose = pose[:, None].expand(-1, reading.tokens.shape[1], -1)  # (B, N, 144)
        return torch.cat((reading.tokens, pose), 2)


class HandEncoder(nn.Module):
    """Normalised crops of hands (B, 3, S, 3/4 S) -> tokens (B, N, D).

    A token holds the U-net's features of its cell, and what SimpleHand's network for photographs
    finds in the middle of the crop: all keypoints in 2D, with the spread of their heat maps, and
    in 3D.
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
        joints = self.regressor @ network.mesh_head(maps, found["keypoints_2d"]).float()
        hand = torch.cat((4 * (found["keypoints_2d"] - 0.5), 10 * found["spread_2d"][..., None],
                          10 * (joints - joints[:, :1])), 2).flatten(1)  # (B, 126)
        edge = (maps.shape[3] - GRID[1]) // 2
        cells = maps[..., edge : edge + GRID[1]].flatten(2).mT  # (B, N, 64)
        return torch.cat((cells, hand[:, None].expand(-1, cells.shape[1], -1).to(cells)), 2)


def is_small(config: EncoderConfig) -> bool:
    """Say whether a config is of an expert behind one of these encoders."""
    return (config.image_size, config.patch_size) == (IMAGE_SIZE, IMAGE_SIZE // GRID[0])


def hand_expert(config: HandExpertConfig) -> HandExpert:
    """Build a hand expert with random weights, behind a HandEncoder if its config is small."""
    return HandExpert(config, HandEncoder() if is_small(config) else None)


def body_expert(config: BodyExpertConfig) -> BodyExpert:
    """Build a whole-body expert with random weights, behind a BodyEncoder if it is small.

    The BodyEncoder is frozen: it has learned on more pictures than the expert sees.
    """
    encoder = BodyEncoder().requires_grad_(False) if is_small(config) else None
    return BodyExpert(config, encoder)
