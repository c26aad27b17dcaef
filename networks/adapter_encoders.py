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

from hmr_adapter import BodyExpert, BodyExpertConfig, EncoderConfig, HandExpert, HandExpertConfig
from networks import any_view
from networks.small_encoder import BLOCK, GRID, IMAGE_SIZE, SmallEncoder

SEEN = 80  # px, side of the middle of a hand's crop of 128 px that the U-net sees, as 64 px
DEPTHS = (2, 3, 3, 6)  # of assets/simplehand_views_cpu.pt
JOINTS = 21  # of a hand


class BodyEncoder(SmallEncoder):
    """Crops of people (B, 3, S, 3/4 S), RGB in 0..1 -> the tokens of a SmallEncoder (B, N, D)."""

    def forward(self, crops: Tensor) -> Tensor:
        return self.read((crops - self.mean) / self.std).tokens


class HandEncoder(nn.Module):
    """Normalised crops of hands (B, 3, S, 3/4 S) -> tokens (B, N, D) of any_view's U-net.

    A token holds the U-net's features of its cell, and of one of the 21 keypoints: block j of the
    grid holds keypoint j, its place and what the U-net sees there.
    """

    def __init__(self, width: int) -> None:
        """width: D."""
        super().__init__()
        config = dataclasses.replace(any_view.PRESETS["cpu_views"], depths=DEPTHS)
        self.size = config.image_size
        self.unet = any_view.UNet(config)
        self.heat = any_view.HeatMapKeypoints(config)
        self.pool = nn.Conv2d(config.token_width, width - config.token_width - 4, 1)
        rows, columns = (torch.arange(count) // side
                         for count, side in zip(GRID, BLOCK, strict=True))
        block = (rows[:, None] * (GRID[1] // BLOCK[1]) + columns).flatten()  # (N,)
        self.register_buffer("keypoint_of_cell", block.clamp_max(JOINTS - 1), persistent=False)

    def train(self, mode: bool = True) -> HandEncoder:
        """Set the mode; a frozen encoder stays in evaluation mode."""
        return super().train(mode and self.heat.weight.requires_grad)

    def forward(self, crops: Tensor) -> Tensor:
        top, left = ((side - SEEN) // 2 for side in crops.shape[2:])
        crops = crops[:, :, top : top + SEEN, left : left + SEEN]  # (B, 3, 80, 80)
        x4, last = self.unet(F.interpolate(crops, size=2 * [self.size], mode="bilinear",
                                           antialias=True))  # (B, 64, 16, 16)
        found = self.heat(x4, last)
        probability = found["heat_maps"].flatten(2).exp()  # (B, 21, 256)
        features = probability @ self.pool(x4).flatten(2).mT.float()  # (B, 21, 28)
        keypoints = torch.cat((
            4 * (found["keypoints_2d"] - 0.5), 10 * found["spread_2d"][..., None],
            probability.amax(2, keepdim=True), features), 2)  # (B, 21, 32)
        edge = (x4.shape[3] - GRID[1]) // 2
        cells = x4[..., edge : edge + GRID[1]].flatten(2).mT  # (B, N, 64)
        return torch.cat((cells, keypoints[:, self.keypoint_of_cell].to(cells)), 2)


def is_small(config: EncoderConfig) -> bool:
    """Say whether a config is of an expert behind one of these encoders."""
    return config.patch_size == IMAGE_SIZE // GRID[0]


def hand_expert(config: HandExpertConfig) -> HandExpert:
    """Build a hand expert with random weights, behind a HandEncoder if its config is small."""
    return HandExpert(config, HandEncoder(config.vit_dim) if is_small(config) else None)


def body_expert(config: BodyExpertConfig) -> BodyExpert:
    """Build a whole-body expert with random weights, behind a BodyEncoder if it is small.

    The BodyEncoder is frozen: it has learned on more pictures than the expert sees.
    """
    encoder = BodyEncoder().requires_grad_(False) if is_small(config) else None
    return BodyExpert(config, encoder)
