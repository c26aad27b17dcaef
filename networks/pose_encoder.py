"""An image encoder that finds keypoints first: the small experts of HMR-Adapter use it.

The papers start from ViT-H, trained on millions of pictures. A small network learns in minutes if
its loss tells it where to look: heat maps find the keypoints in the picture, and an MLP lifts these
2D keypoints to a pose. Both are our choice.

Letters in shapes: B batch, S side of the crop in pixels, K keypoints, R rotations, N cells of the
heat maps, C features at a keypoint, D channels of a map, W width of the MLP.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genhmr import ViTBlock, mlp, normalised_crop, register_statistics
from networks.small_encoder import ResidualMapBlock, cell_centres, conv_norm, locate


class Lifted(NamedTuple):
    """What Lift makes of 2D keypoints."""

    joints: Tensor  # (B, K, 3) metres from the first keypoint, camera axes
    pose: Tensor  # (B, R, 6) rotations
    betas: Tensor  # (B, shapes)
    hidden: Tensor | None = None  # (B, W) the features they were read from


class Lift(nn.Module):
    """Predict 3D keypoints, rotations and a shape from 2D keypoints and image features at them.

    It works without features, so that it can also learn from posed bodies without pictures.
    """

    def __init__(self, keypoints: int, rotations: int, shapes: int, width: int,
                 features: int) -> None:
        super().__init__()
        self.counts = 3 * keypoints, 6 * rotations, shapes
        self.keypoints = nn.Linear(5 * keypoints + 3, width)
        self.features = nn.Linear(features, width)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.out = nn.Linear(width, sum(self.counts))
        for layer in (self.features.weight, self.features.bias, self.out.bias):
            nn.init.zeros_(layer)
        with torch.no_grad():
            self.out.weight.mul_(0.3)
            _, pose, _ = self.out.bias.split(self.counts)
            pose.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0] * rotations))

    def forward(self, at: Tensor, share: Tensor, features: Tensor | None = None) -> Lifted:
        """at: (B, K, 2), -0.5..0.5. share: (B, K), confidence. features: (B, F), if any."""
        weight = share[..., None] / share.sum(1)[:, None, None]
        centre = (weight * at).sum(1, keepdim=True)  # (B, 1, 2)
        size = (weight * (at - centre).square()).sum((1, 2), keepdim=True).sqrt().clamp_min(0.02)
        x = self.keypoints(torch.cat((4 * at.flatten(1), share, ((at - centre) / size).flatten(1),
                                      4 * centre[:, 0], 10 * size[:, 0]), 1))
        x = F.gelu(x if features is None else x + self.features(features))
        for norm, hidden in zip(self.norms, self.hidden, strict=True):
            x = x + F.gelu(hidden(norm(x)))  # (B, W)
        joints, pose, betas = self.out(x).split(self.counts, 1)
        return Lifted(joints.unflatten(1, (-1, 3)), pose.unflatten(1, (-1, 6)), betas, x)


class Seen(NamedTuple):
    """What PoseEncoder finds in a picture."""

    heat: Tensor  # (B, K, N) log probability of each cell, per keypoint
    at: Tensor  # (B, K, 2) where each is, -0.5..0.5; outside the crop: the nearest border
    share: Tensor  # (B, K) probability within two cells of that place
    found: Tensor  # (B, K, C) features at that place
    whole: Tensor  # (B, D) features of the whole picture
    lifted: Lifted
    maps: dict[int, Tensor]  # by stride, 4, 8 and 16: features (B, D, h, w)


class PoseEncoder(nn.Module):
    """Crops (B, 3, S, 3/4 S) -> heat maps at stride 4, and the pose that they suggest.

    A ViTPose in miniature, to train in minutes: convolutions down to stride 16, attention over
    these cells, and back up to stride 4 with shortcuts.
    """

    def __init__(self, config: object, keypoints: int = 45, rotations: int = 24,
                 shapes: int = 10) -> None:
        """config: hmr_adapter's EncoderConfig; by default it finds SMPL's keypoints."""
        super().__init__()
        self.config, (w2, w4, w8, w16) = config, config.widths
        self.channels = {4: 2 * w4, 8: w8, 16: w16}  # of the maps, by stride
        rows, columns = config.grid
        self.stem = nn.Sequential(conv_norm(3, w2, 2), conv_norm(w2, w4, 2), ResidualMapBlock(w4))
        self.down8 = nn.Sequential(conv_norm(w4, w8, 2), ResidualMapBlock(w8))
        self.down16 = nn.Sequential(conv_norm(w8, w16, 2), ResidualMapBlock(w16))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(rows * columns // 16, w16))
        heads = getattr(config, "heads", 4)
        self.blocks = nn.Sequential(*[ViTBlock(w16, heads, 0.0) for _ in range(config.blocks)])
        for block in self.blocks:
            block.mlp = mlp(w16, 2 * w16, w16)
        self.norm = nn.LayerNorm(w16)
        self.up8, self.join8 = nn.Conv2d(w16, w8, 1), ResidualMapBlock(w8)
        self.up4, self.join4 = nn.Conv2d(w8, w4, 1), conv_norm(w4, 2 * w4)
        self.heat = nn.Conv2d(2 * w4, keypoints, 1)
        self.pool4 = nn.Conv2d(2 * w4, config.pooled, 1)
        self.pool8 = nn.Conv2d(w8, config.pooled, 1)
        self.lift = Lift(keypoints, rotations, shapes, config.lift_width,
                         keypoints * config.pooled + w16)
        self.register_buffer("centres", cell_centres(config.grid), persistent=False)
        register_statistics(self)

    def normalise(self, images: Tensor) -> Tensor:
        """Convert pictures (B, 3, S, S), RGB 0..255, to the crops (B, 3, S, 3/4 S) of `forward`."""
        return normalised_crop(self, images, self.config.image_size)

    def forward(self, crops: Tensor) -> Seen:
        x4 = self.stem(crops)  # (B, 32, 32, 24)
        x8 = self.down8(x4)  # (B, 64, 16, 12)
        x16 = self.down16(x8)  # (B, 128, 8, 6)
        cells = self.norm(self.blocks(x16.flatten(2).mT + self.pos_embed))  # (B, 48, 128)
        x16 = cells.mT.unflatten(2, x16.shape[2:])
        x8 = self.join8(F.interpolate(self.up8(x16), scale_factor=2.0) + x8)
        x4 = self.join4(F.interpolate(self.up4(x8), scale_factor=2.0) + x4)  # (B, 64, 32, 24)
        with torch.autocast(x4.device.type, enabled=False):  # places are finer than bf16's steps
            return self.read(x4.float(), x8.float(), x16.float(), cells.float())

    def read(self, x4: Tensor, x8: Tensor, x16: Tensor, cells: Tensor) -> Seen:
        """Find keypoints in the maps, and lift them."""
        heat = self.heat(x4).flatten(2).log_softmax(-1)  # (B, K, 768)
        probability = heat.detach().exp()  # 3D losses must not move the heat maps
        pooled = self.pool4(x4) + F.interpolate(self.pool8(x8), scale_factor=2.0)
        found = probability @ pooled.flatten(2).mT  # (B, K, 24)
        at, share = locate(probability, self.centres, 2.5 / self.config.grid[0])
        whole = cells.mean(1)  # (B, 128)
        lifted = self.lift(at, share, torch.cat((found.flatten(1), whole), 1))
        return Seen(heat, at, share, found, whole, lifted, {4: x4, 8: x8, 16: x16})

    def imagine(self, at: Tensor, share: Tensor) -> Seen:
        """Return the output for keypoints without a picture: places (B, K, 2), shares (B, K)."""
        size, (batch, keypoints) = self.config.image_size, share.shape
        maps = {stride: at.new_zeros(batch, width, size // stride, 3 * size // (4 * stride))
                for stride, width in self.channels.items()}
        return Seen(at.new_zeros(batch, keypoints, len(self.centres)), at, share,
                    at.new_zeros(batch, keypoints, self.config.pooled),
                    at.new_zeros(batch, self.channels[16]), self.lift(at, share), maps)
