"""SimpleHand looks again at a hand, turned upright (ours).

A hand that points up and fills its crop looks like all others that do, so a network finds its
fingers more easily. The first pass tells how a hand is turned; MediaPipe's tracker of hands turns
its crops like this, too. Later passes turn the crop to the left and to the right of that, and the
result is the mean of what they find. Training shows crops of both kinds (recipe
"rendered_upright"). Letters in shapes: B batch, S side of the crop in pixels, P passes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sets.hand_crops import FILL, KNUCKLES, SIDES
from simplehand import SimpleHand, cell_centres

STEP = math.radians(10)  # between the turns of later passes (our choice)
TRUST = 4  # a pass weighs as the spread of its heat maps to the power of minus this (our choice)


class Upright(nn.Module):
    """A trained SimpleHand that sees each crop 1 + config.upright_passes times."""

    def __init__(self, model: SimpleHand) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.train(model.training)

    @property
    def mean(self) -> Tensor:
        """As SimpleHand's, which tells `predict` the device."""
        return self.model.mean

    def fuse(self) -> Upright:
        """Return a copy for inference, as SimpleHand.fuse."""
        return Upright(self.model.fuse())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, S, S) -> vertices, keypoints_2d and spread_2d as SimpleHand.forward's.

        spread_2d is that of the heat maps of all later passes together: it also grows where the
        passes disagree.
        """
        angle, side = upright_view(self.model(images)["keypoints_2d"])
        count = self.config.upright_passes
        passes = [self.look(images, angle + STEP * (number - (count - 1) / 2), side)
                  for number in range(count)]
        vertices, points, spread = (torch.stack([found[name] for found in passes], 1) for name in
                                    ("vertices", "keypoints_2d", "spread_2d"))  # (B, P, N, ...)
        doubt = spread.mean(2).clamp(min=1e-3)  # (B, P)
        share = F.normalize(doubt**-TRUST, p=1.0, dim=1)[:, :, None, None]
        mean = (share * points).sum(1)  # (B, 21, 2)
        apart = (points - mean[:, None]).square().sum(3)
        variance = (share[..., 0] * (spread.square() + apart)).sum(1)
        return {"vertices": (share * vertices).sum(1), "keypoints_2d": mean,
                "spread_2d": variance.sqrt()}

    def look(self, images: Tensor, angle: Tensor, side: Tensor) -> dict[str, Tensor]:
        """What the network finds in crops of crops; see `turn`. Meshes and points are turned back.
        """
        found = self.model(turn(images, angle, side))
        back = rotation(angle)  # of row vectors: x R = R^T x
        flat, depth = found["vertices"].split((2, 1), dim=2)
        points = 0.5 + side[:, None, None] * (found["keypoints_2d"] - 0.5) @ back
        return {"vertices": torch.cat((flat @ back, depth), 2), "keypoints_2d": points,
                "spread_2d": side[:, None] * found["spread_2d"]}


def looking_again(model: SimpleHand) -> nn.Module:
    """The model, or Upright around it if its config asks for further passes."""
    return Upright(model) if model.config.upright_passes else model


def upright_view(keypoints_2d: Tensor) -> tuple[Tensor, Tensor]:
    """sets.hand_crops.upright_view of a batch: (B, 21, 2), 0..1, -> angle and side (B,)."""
    x, y = (keypoints_2d[:, KNUCKLES].mean(1) - keypoints_2d[:, 0]).unbind(1)
    angle = -math.pi / 2 - torch.atan2(y, x)
    reach = ((keypoints_2d - 0.5) @ rotation(angle).mT).abs().amax((1, 2))
    return angle, (2 * FILL * reach).clamp(*SIDES)


def rotation(angle: Tensor) -> Tensor:
    """Rotations (B, 2, 2) by angles (B,) in radians, clockwise where y points down."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos, -sin, sin, cos), 1).unflatten(1, (2, 2))


def turn(images: Tensor, angle: Tensor, side: Tensor) -> Tensor:
    """Crop squares around the middle of images (B, 3, S, S); uint8 or float in, float out.

    Each is `side` (B,) times as large as the image and turned, so that its content turns clockwise
    by `angle`. Black outside of the image.
    """
    images, size = images.to(angle.dtype), images.shape[-1]
    pixels = 2 * cell_centres(images) - 1  # (S S, 2), the crop spans +-1
    grid = side[:, None, None] * (pixels @ rotation(angle))  # (B, S S, 2): R^T x, of row vectors
    return F.grid_sample(images, grid.unflatten(1, (size, size)), align_corners=False)
