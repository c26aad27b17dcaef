"""SimpleHand for photographs: any hand in any view (ours), the default of demo.py.

Three changes to the paper's network:
    1. X_b is the map of a U-net, at a quarter of the crop's resolution: it learns to localise
       without ImageNet, where a map of 2 x 2 cells hardly tells where fingers are.
    2. The 2D keypoints are the means of heat maps, whose width tells how sure the network is.
       Their places are added to the tokens.
    3. A trained network looks again: hands that point up and fill their crops look more alike than
       others. Four passes see the crop in quarter turns; further ones see it turned upright by
       what the surest of these finds.
MediaPipe's hand tracker turns its crops upright, too. Training shows crops of both kinds (recipe
"rendered_upright"). `looking_again` adds the further passes for inference. Letters in shapes as in
simplehand.py: B batch, S side of the crop in pixels, C channels, N tokens or cells; and P further
passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import simplehand
from sets.crops import rotation, upright_view
from simplehand import MeshHead, MetaFormerBlock, SimpleHand, fold_norms

# Of upright passes: the angle between them, and the sides of two more, smaller and larger; with
# TRUST chosen on training images of another seed
STEP, SCALES = math.radians(10), (0.9, 1.1)
WEIGHT_HEAT_MAPS = 0.5  # of their cross-entropy (our choice)
# We warn of heat maps wider than SPREAD, and suggest the other side where the mirrored hand's are
# narrower by the factor SURER: see benchmarks/alarms.py and RESULTS.md.
SPREAD, SURER = 0.09, 0.8
TRUST = 8  # the weight of a pass is the spread of its heat maps to the power -TRUST


@dataclass(frozen=True)
class Config(simplehand.Config):
    """SimpleHand's, and our additions.

    embed_dims are UNet's widths; depths its own, and the number of blocks of attention. FastViT's
    other fields mean nothing here, upsample has to be (1,).
    """

    backbone: str = "unet"
    upright_passes: int = 3  # angles at which inference looks again, see Upright; 0: look once


def build(config: Config) -> SimpleHand:
    """Build the network that looks once; its outputs also have heat_maps and spread_2d.

    heat_maps (B, 21, h, w): log probabilities of the cells of X_b; spread_2d (B, 21): of these, see
    heat_map_spread.
    """
    widths, (*depths, attention), cells = config.embed_dims, config.depths, config.image_size // 16
    unet = UNet(widths, depths, config.token_width, cells**2, lambda: [
        MetaFormerBlock(widths[3], config) for _ in range(attention)])
    return SimpleHand(config, unet, HeatMapKeypoints(config), PlacedHead(config))


# ----------------------------------------------------------------------------------- network


def conv_norm(channels_in: int, channels_out: int, stride: int = 1, size: int = 3,
              activate: bool = True, bias: bool = False) -> nn.Sequential:
    """Make a convolution, by default 3 x 3, a batch norm and, if `activate`, a ReLU."""
    conv = nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), *[nn.ReLU(inplace=True)] * activate)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a skip. norm: the name of its norms in checkpoints."""

    def __init__(self, channels: int, norm: str = "bn") -> None:
        super().__init__()
        for number in (1, 2):
            conv, scale, _ = conv_norm(channels, channels)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"{norm}{number}", scale)

    def forward(self, x: Tensor) -> Tensor:
        conv1, norm1, conv2, norm2 = self.children()
        return F.relu(x + norm2(conv2(F.relu(norm1(conv1(x))))))


class UNet(nn.Module):
    """Images (B, 3, S, S') -> the maps of SimpleHand's backbones, see `forward`.

    Convolutions down to S/16, attention over these cells, and back up to S/4 with shortcuts.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int], channels: int, cells: int,
                 attention: Callable[[], list[nn.Module]], norm: str = "bn") -> None:
        """widths: channels at S/2, S/4, S/8 and S/16. depths: residual blocks at S/4 to S/16.

        channels: of the result. attention: makes the blocks over the `cells` at S/16. norm: see
        ResidualBlock.
        """
        super().__init__()
        self.channels = channels
        w2, w4, w8, w16 = widths

        def residual(width: int, count: int = 1) -> list[nn.Module]:
            return [ResidualBlock(width, norm) for _ in range(count)]

        self.stem = nn.Sequential(conv_norm(3, w2, 2), conv_norm(w2, w4, 2),
                                  *residual(w4, depths[0]))
        self.down8 = nn.Sequential(conv_norm(w4, w8, 2), *residual(w8, depths[1]))
        self.down16 = nn.Sequential(conv_norm(w8, w16, 2), *residual(w16, depths[2]))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(cells, w16))
        self.blocks = nn.Sequential(*attention())
        self.norm = nn.LayerNorm(w16)
        self.up8, (self.join8,) = nn.Conv2d(w16, w8, 1), residual(w8)
        self.up4, self.join4 = nn.Conv2d(w8, w4, 1), conv_norm(w4, channels)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, S, S') -> maps at S/4 and S/8, and the cells (B, N, C) at S/16."""
        x4 = self.stem(x)  # (B, 32, S/4, S'/4)
        x8 = self.down8(x4)  # (B, 64, S/8, S'/8)
        x16 = self.down16(x8)  # (B, 128, S/16, S'/16)
        cells = self.norm(self.blocks(x16.flatten(2).mT + self.pos_embed))  # (B, N, 128)
        x16 = cells.mT.unflatten(2, x16.shape[2:])
        x8 = self.join8(F.interpolate(self.up8(x16), scale_factor=2.0) + x8)
        return self.join4(F.interpolate(self.up4(x8), scale_factor=2.0) + x4), x8, cells

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return X_b (B, channels, S/4, S/4), twice: keypoints are found in it, too."""
        x4, *_ = self.maps(x)
        return x4, x4

    fuse = fold_norms  # into the convolutions, in place


class HeatMapKeypoints(nn.Conv2d):
    """2D keypoints as the means of heat maps over X_b.

    Sun et al., "Integral Human Pose Regression", ECCV 2018.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config.token_width, config.num_points, 1)

    def forward(self, features: Tensor, last: Tensor) -> dict[str, Tensor]:
        """X_b (B, C, h, w) -> keypoints_2d, heat_maps and spread_2d, see build."""
        heat = super().forward(features).float()  # (B, 21, h, w)
        log_probability = heat.flatten(2).log_softmax(2)  # (B, 21, h w)
        with torch.autocast(heat.device.type, enabled=False):  # places are finer than bf16's steps
            points = log_probability.exp() @ cell_centres(heat)  # (B, 21, 2)
        points, maps = points.to(self.weight.dtype), log_probability.view_as(heat)
        return {"keypoints_2d": points, "heat_maps": maps,
                "spread_2d": heat_map_spread(maps, points)}


def cell_centres(maps: Tensor) -> Tensor:
    """Centres (h w, 2) of the cells of maps (..., h, w), row by row: x and y, 0..1."""
    height, width = maps.shape[-2:]
    ones = torch.ones_like(maps[0, 0])  # (h, w), of the maps' device when exported, too
    x, y = (ones.cumsum(1) - 0.5) / width, (ones.cumsum(0) - 0.5) / height
    return torch.stack((x, y), 2).flatten(0, 1)


def heat_map_spread(heat_maps: Tensor, keypoints_2d: Tensor) -> Tensor:
    """Standard deviation of heat maps (B, 21, h, w) about their means (B, 21, 2): (B, 21).

    In sides of the crop. The less sure the network is of a keypoint, the larger it is.
    """
    squared = (cell_centres(heat_maps) - keypoints_2d[:, :, None]).square().sum(3)  # (B, 21, h w)
    return (heat_maps.flatten(2).exp() * squared).sum(2).sqrt()


class PlacedHead(MeshHead):
    """Adds to each token an embedding of the point where it was sampled."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.token_width)
        self.place = nn.Linear(2, self.layers[0].project.in_features)

    def generate(self, features: Tensor, points: Tensor) -> Tensor:
        return super().generate(features, points) + self.place(4.0 * points - 2.0)


# ------------------------------------------------------------------------------------ losses


def losses(prediction: dict[str, Tensor], batch: dict[str, Tensor],
           keypoint_regressor: Tensor) -> dict[str, Tensor]:
    """Compute SimpleHand's terms, see simplehand.losses, and the heat maps' cross-entropy."""
    true_2d = batch["keypoints_2d"] / batch["image"].shape[-1]
    return simplehand.losses(prediction, batch, keypoint_regressor) | {
        "heat_maps": heat_map_loss(prediction["heat_maps"], true_2d, batch["keypoints_valid"])}


def heat_map_loss(heat_maps: Tensor, keypoints_2d: Tensor, valid: Tensor) -> Tensor:
    """Mean cross-entropy of log probabilities (B, 21, h, w) and keypoints (B, 21, 2), 0..1."""
    count = torch.tensor(heat_maps.shape[:1:-1], device=heat_maps.device)  # w, h
    each = cross_entropy_at(heat_maps.flatten(2), keypoints_2d, cell_centres(heat_maps), count)
    return (each * valid).mean()


def cross_entropy_at(heat: Tensor, points: Tensor, centres: Tensor,
                     scale: Tensor | float) -> Tensor:
    """Cross-entropy (B, K) of log probabilities (B, K, M) of cells and true points (B, K, 2).

    A point is shared by the four cells around it, as in bilinear interpolation. centres: (M, 2), of
    the cells, row by row. scale: cells per unit of length.
    """
    at = points.clamp(centres[0], centres[-1])[:, :, None]
    share = (1 - scale * (at - centres).abs()).clamp(min=0).prod(-1)  # (B, K, M)
    return -(share * heat).sum(2)


def total_loss(terms: dict[str, Tensor], config: Config) -> Tensor:
    """Eq. 7, and the weighted cross-entropy."""
    return simplehand.total_loss(terms, config) + WEIGHT_HEAT_MAPS * terms["heat_maps"]


# ----------------------------------------------------------------------------- looking again


class Upright(nn.Module):
    """A trained network that sees each crop in quarter turns, then several times upright."""

    def __init__(self, model: SimpleHand) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.train(model.training)

    @property
    def mean(self) -> Tensor:
        """As SimpleHand's, which tells `predict` the device."""
        return self.model.mean

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, S, S) -> vertices, keypoints_2d and spread_2d, see build.

        The results are means over the upright passes, each turned or scaled in another way.
        spread_2d is that of all their heat maps together: it also grows where the passes disagree.
        """
        angle, side = upright_view(self.first(images))
        middle = (self.config.upright_passes - 1) / 2
        views = [(STEP * (number - middle), 1.0) for number in range(self.config.upright_passes)]
        vertices, points, spread = stacked([
            self.look(images, angle + turned, side * scale)
            for turned, scale in [*views, *((0.0, scale) for scale in SCALES)]])  # (B, P, N, ...)
        doubt = spread.mean(2).clamp(min=1e-3)  # (B, P)
        share = F.normalize(doubt**-TRUST, p=1.0, dim=1)[:, :, None, None]
        mean = (share * points).sum(1)  # (B, 21, 2)
        apart = (points - mean[:, None]).square().sum(3)
        variance = (share[..., 0] * (spread.square() + apart)).sum(1)
        return {"vertices": (share * vertices).sum(1), "keypoints_2d": mean,
                "spread_2d": variance.sqrt()}

    def first(self, images: Tensor) -> Tensor:
        """Return keypoints (B, 21, 2) of the surest of four passes, in quarter turns."""
        whole = self.mean.new_ones(len(images))
        _, points, spread = stacked([self.look(images, quarters * math.pi / 2 * whole, whole)
                                     for quarters in range(4)])
        surest = spread.mean(2).argmin(1)
        return points.take_along_dim(surest[:, None, None, None], 1)[:, 0]

    def look(self, images: Tensor, angle: Tensor, side: Tensor) -> dict[str, Tensor]:
        """Return what the network finds in the crops that `turn` makes, in the axes of images."""
        return turn_back(self.model(turn(images, angle, side)), angle, side)


def stacked(passes: Sequence[Mapping[str, Tensor]]) -> Iterator[Tensor]:
    """Stack vertices, keypoints_2d and spread_2d of P passes: (B, P, ...) each."""
    return (torch.stack([hand[name] for hand in passes], 1)
            for name in ("vertices", "keypoints_2d", "spread_2d"))


def looking_again(model: SimpleHand) -> nn.Module:
    """Return the model, or Upright around it if its config asks for further passes."""
    return Upright(model) if getattr(model.config, "upright_passes", 0) else model


def heat_map_notes(side: str, spread: float, mirrored: float | None = None) -> list[str]:
    """Say for which hand one is taken, and warn of wide heat maps.

    spread: mean of spread_2d, 0 without heat maps. mirrored: that of the mirrored hand, where the
    user says the side; None where a detector does.
    """
    asked, right = mirrored is not None, side == "right"
    other = "left" if right else "right"
    advice = "add ,left after its --box" if right else "leave out left"
    notes = [f"{'taken for ' * (asked and right)}a {side} hand"]
    if asked and mirrored < SURER * spread:
        notes.append(f"warning: it looks more like a {other} hand: {advice}")
    elif asked and right:
        notes[0] += f"; for a {other} one {advice}"
    if spread > SPREAD:
        notes.append("warning: the network is not sure where the keypoints are: do not trust this "
                     "result")
    return notes


def turn(images: Tensor, angle: Tensor, side: Tensor, center: Tensor | None = None,
         size: int | None = None) -> Tensor:
    """Crop squares (B, 3, size, size) of images (B, 3, S, S); uint8 or float in, float out.

    Each is `side` (B,) times as large as the image and turned, so that its content turns clockwise
    by `angle`. center: (B, 2), 0..1, by default the middle. Zero outside of the image.
    """
    images, size = images.to(angle.dtype), size or images.shape[-1]
    center = angle.new_full((1, 2), 0.5) if center is None else center
    pixels = 2 * cell_centres(images[..., :size, :size]) - 1  # (size size, 2), the crop spans +-1
    grid = side[:, None, None] * (pixels @ rotation(angle))  # R^T x, of row vectors
    grid = grid + (2 * center - 1)[:, None]
    return F.grid_sample(images, grid.unflatten(1, (size, size)), align_corners=False)


def turn_back(hand: Mapping[str, Tensor], angle: Tensor, side: Tensor,
              center: Tensor | None = None) -> dict[str, Tensor]:
    """Return a hand that was found in a crop of `turn`, see build, in the axes of the image."""
    back = rotation(angle)  # of row vectors: x R = R^T x
    flat, depth = hand["vertices"].split((2, 1), dim=2)
    center = angle.new_full((1, 2), 0.5) if center is None else center
    points = center[:, None] + side[:, None, None] * (hand["keypoints_2d"] - 0.5) @ back
    return {"vertices": torch.cat((flat @ back, depth), 2), "keypoints_2d": points,
            "spread_2d": side[:, None] * hand["spread_2d"]}


# ----------------------------------------------------------------------------------- presets

PRESETS = {
    # Two CPU cores: an hour of training, with boxes that cut the hand, coloured light, motion blur
    # and JPEGs.
    "cpu_views": Config(
        image_size=64, embed_dims=(16, 32, 64, 128), depths=(1, 1, 1, 2), upsample=(1,),
        token_width=64, dims=(128, 32, 16), blocks=(3, 0, 0), heads=4, regressor_mlp_ratio=2.0,
        dropout=0.0, drop_path=0.0, output_scale=0.1, weight_keypoints_2d=5.0,
        batch_size=64, steps=7_200, warmup_steps=100, learning_rate=1.5e-3, schedule="cosine"),
}
