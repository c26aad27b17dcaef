"""SimpleHand looks again at a hand, turned upright (ours).

Hands that point up and fill their crops look more alike than others, so a network finds their
fingers more easily. A first pass tells how the hand is turned. Further passes see the crop turned
upright, each by a slightly different angle, and the result is their mean. MediaPipe's hand tracker
turns its crops upright, too. Training shows crops of both kinds (recipe "rendered_upright").
Letters in shapes: B batch, S side of the crop in pixels, N vertices or keypoints, P further
passes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sets.hand_crops import rotation, upright_view
from simplehand import SimpleHand, cell_centres

STEP = math.radians(10)  # between the angles of further passes (our choice)
TRUST = 4  # the weight of a pass is the spread of its heat maps to the power -TRUST (our choice)


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

        spread_2d is that of the heat maps of all further passes together: it also grows where the
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
        """Return what the network finds in the crops that `turn` makes, in the axes of images."""
        found = self.model(turn(images, angle, side))
        back = rotation(angle)  # of row vectors: x R = R^T x
        flat, depth = found["vertices"].split((2, 1), dim=2)
        points = 0.5 + side[:, None, None] * (found["keypoints_2d"] - 0.5) @ back
        return {"vertices": torch.cat((flat @ back, depth), 2), "keypoints_2d": points,
                "spread_2d": side[:, None] * found["spread_2d"]}


def looking_again(model: SimpleHand) -> nn.Module:
    """Return the model, or Upright around it if its config asks for further passes."""
    return Upright(model) if model.config.upright_passes else model


def turn(images: Tensor, angle: Tensor, side: Tensor) -> Tensor:
    """Crop squares around the middle of images (B, 3, S, S); uint8 or float in, float out.

    Each is `side` (B,) times as large as the image and turned, so that its content turns clockwise
    by `angle`. Black outside of the image.
    """
    images, size = images.to(angle.dtype), images.shape[-1]
    pixels = 2 * cell_centres(images) - 1  # (S S, 2), the crop spans +-1
    grid = side[:, None, None] * (pixels @ rotation(angle))  # (B, S S, 2): R^T x, of row vectors
    return F.grid_sample(images, grid.unflatten(1, (size, size)), align_corners=False)
