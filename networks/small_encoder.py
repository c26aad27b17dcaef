"""A small image encoder, in place of a ViT-H that was trained on millions of pictures.

The encoder learns in minutes because its own training tells it where to look: heat maps find the
keypoints in the picture, and an MLP lifts them to a pose (`--stage encoder`). GenHMR then uses its
tokens as those of a ViT, (B, N, D) on a grid. All of this is our choice.

Letters in shapes: B batch, S side of the crop in pixels, K keypoints, N cells of the grid (192),
M cells of the heat maps (768), D channels of a token (112; behind GenHMR 128), W width of the MLP.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bodymodels
import genhmr
from networks import fast
from networks.any_view import UNet, cross_entropy_at

IMAGE_SIZE = 128  # px, S; the encoder sees the middle three quarters of the crop's width
GRID = (16, 12)  # rows and columns of the tokens, at stride 8
HEAT_GRID = (32, 24)  # rows and columns of the heat maps, at stride 4
NAMES = bodymodels.JOINT_SETS["smpl45"]
OTHER_SIDE = bodymodels.mirror_indices("smpl45")  # of each keypoint
BLOCK = (4, 2)  # cells of the grid that belong to one joint: 4 x 6 blocks for 24 joints
WIDTHS = (16, 32, 64, 128)  # channels at strides 2, 4, 8 and 16
BLOCKS = 6  # of attention over the cells at stride 16
POOLED = 16  # features of the place of each keypoint
LIFT_WIDTH = 384  # of the MLP from keypoints to a pose, W
WIDTH = WIDTHS[2] + 19 + 13 + POOLED  # D, without embeddings


@dataclass(frozen=True)
class EncoderConfig:
    """The training of a SmallEncoder, by AdamW. All values are our choice."""

    unpictured: int = 2  # posed bodies without a picture that train the lift, per picture
    batch_size: int = 32  # pictures per optimiser step, over all processes
    steps: int = 2_600
    learning_rate: float = 1.5e-3
    schedule: str = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 1e-3
    gradient_clip: float = 5.0  # norm


PRESETS: dict[str, EncoderConfig] = {
    "h200": EncoderConfig(batch_size=256, steps=10_000),
    "single_gpu": EncoderConfig(batch_size=128, steps=10_000),
    "cpu": EncoderConfig(),
}


class Lifted(NamedTuple):
    """A pose in 3D, computed from keypoints in 2D."""

    joints: Tensor  # (B, K, 3) metres from the first keypoint, camera axes
    pose: Tensor  # (B, 24, 6) rotations
    betas: Tensor  # (B, 10)
    camera: Tensor  # (B, 3) s, tx, ty of genhmr.project_to_crop


class Lift(nn.Module):
    """An MLP from keypoints in 2D, and features of the picture there, to a 3D pose.

    It works without features, so that it can also learn from posed bodies without pictures.
    """

    COUNTS = 3 * genhmr.KEYPOINTS, 6 * genhmr.JOINTS, 10, 3  # joints, rotations, betas, camera

    def __init__(self, features: int) -> None:
        super().__init__()
        width = LIFT_WIDTH
        self.keypoints = nn.Linear(5 * genhmr.KEYPOINTS + 3, width)
        self.features = nn.Linear(features, width, bias=False)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.out = nn.Linear(width, sum(self.COUNTS))
        nn.init.zeros_(self.features.weight)
        with torch.no_grad():
            self.out.weight.mul_(0.3)
            self.out.bias.zero_()
            _, pose, _, camera = self.out.bias.split(self.COUNTS)
            pose.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0] * genhmr.JOINTS))
            camera.copy_(torch.tensor([0.9, 0.0, 0.0]))

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
        joints, pose, betas, camera = self.out(x).split(self.COUNTS, 1)
        return Lifted(joints.unflatten(1, (-1, 3)), pose.unflatten(1, (-1, 6)), betas, camera)


class Reading(NamedTuple):
    """The output of SmallEncoder.read: keypoints in the picture, and the pose lifted from them."""

    tokens: Tensor  # (B, N, D) as a ViT's
    heat: Tensor  # (B, K, M) log probability of each cell, per keypoint
    at: Tensor  # (B, K, 2) place of each keypoint, -0.5..0.5; if outside, at the nearest border
    share: Tensor  # (B, K) probability within two cells of that place
    confidence: Tensor  # (B, K) the same, 0 at the border of the crop
    lifted: Lifted


def attention() -> list[nn.Module]:
    """Make the blocks over the cells at stride 16, with narrower MLPs than a ViT's."""
    width = WIDTHS[3]
    blocks = [genhmr.ViTBlock(width, 4, 0.0) for _ in range(BLOCKS)]
    for block in blocks:
        block.mlp = genhmr.mlp(width, 2 * width, width)
    return blocks


class SmallEncoder(UNet):
    """Crops (B, 3, S, 3/4 S) -> tokens (B, N, D) on a grid, as from a ViT.

    A U-net with attention at its coarsest level makes heat maps, like a ViTPose in miniature. The
    token of a cell holds the U-net's features there, what the encoder knows of the whole person,
    and what it knows of one joint: the cells of block j of the grid hold joint j. Behind GenHMR
    they also hold the lifted pose as the pose tokenizer embeds it.
    """

    def __init__(self) -> None:
        _, w4, w8, w16 = WIDTHS
        super().__init__(WIDTHS, (1, 1, 1), 2 * w4, GRID[0] * GRID[1] // 4, attention, "norm")
        self.width = WIDTH
        self.embed: Callable[[Tensor], Tensor] | None = None  # of GenHMR's tokenizer
        self.heat = nn.Conv2d(2 * w4, genhmr.KEYPOINTS, 1)
        self.side = genhmr.mlp(w16, w16 // 2, genhmr.KEYPOINTS)
        with torch.no_grad():
            self.side.fc2.bias.fill_(-2.0)
        self.pool4 = nn.Conv2d(2 * w4, POOLED, 1)
        self.pool8 = nn.Conv2d(w8, POOLED, 1)
        self.lift = Lift(genhmr.KEYPOINTS * POOLED + w16)
        # Checkpoints have it, and are known by it
        self.register_buffer("sizes", torch.tensor([*WIDTHS, BLOCKS, POOLED, LIFT_WIDTH]))
        y, x = ((torch.arange(count) + 0.5 - count / 2) / HEAT_GRID[0] for count in HEAT_GRID)
        centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
        self.register_buffer("centres", centres, persistent=False)  # (M, 2), crop in -0.5..0.5
        self.register_buffer("joint_of_cell", token_of_cell(1), persistent=False)  # (N,)
        self.register_buffer("other_side", torch.tensor(OTHER_SIDE), persistent=False)
        genhmr.register_statistics(self)

    def train(self, mode: bool = True) -> SmallEncoder:
        """Set the mode; a frozen encoder stays in evaluation mode."""
        return super().train(mode and self.heat.weight.requires_grad)

    def normalise(self, images: Tensor) -> Tensor:
        """Convert pictures (B, 3, S, S), RGB 0..255, to the crops (B, 3, S, 3/4 S) of `forward`."""
        return genhmr.normalised_crop(self, images, IMAGE_SIZE)

    @torch.no_grad()
    def keypoints(self, images: Tensor) -> Tensor:
        """Find keypoints in pictures (B, 3, S, S): x, y in -0.5..0.5 and confidence (B, 45, 3)."""
        reading = self.read(self.normalise(images))
        return torch.cat((reading.at, reading.confidence[..., None]), 2)

    def forward(self, crops: Tensor, reading: bool = False) -> Tensor | Reading:
        """Return the tokens (B, N, D) alone, or all of a Reading."""
        return self.read(crops) if reading else self.read(crops).tokens

    def heat_map_loss(self, heat: Tensor, keypoints: Tensor) -> Tensor:
        """Compute the cross-entropy (B, K) of log probabilities (B, K, M) and true places.

        keypoints: (B, K, 2), crop in -0.5..0.5; one outside counts as at the border.
        """
        return cross_entropy_at(heat, keypoints.nan_to_num(), self.centres, HEAT_GRID[0])

    def read(self, crops: Tensor) -> Reading:
        """Find keypoints in normalised crops (B, 3, S, 3/4 S), and lift them."""
        x4, x8, cells = self.maps(crops)  # (B, 64, 32, 24), (B, 64, 16, 12), (B, 48, 128)
        with torch.autocast(x4.device.type, enabled=False):  # places are finer than bf16's steps
            return self.lift_maps(x4.float(), x8.float(), cells.float().mean(1))

    def lift_maps(self, x4: Tensor, x8: Tensor, whole: Tensor) -> Reading:
        """Find keypoints in the maps, and lift them."""
        heat = self.heat(x4).flatten(2).log_softmax(-1)  # (B, K, M)
        # The maps are of the picture's sides: seen from behind, a person has them exchanged
        side = self.side(whole)[..., None]  # (B, K, 1)
        heat = torch.logaddexp(F.logsigmoid(-side) + heat,
                               F.logsigmoid(side) + heat[:, self.other_side])
        probability = heat.detach().exp()  # 3D losses must not move the heat maps
        pooled = self.pool4(x4) + F.interpolate(self.pool8(x8), scale_factor=2.0)
        features = probability @ pooled.flatten(2).mT  # (B, K, 16)
        at, share = locate(probability, self.centres, 2.5 / HEAT_GRID[0])
        lifted = self.lift(at, share, torch.cat((features.flatten(1), whole), 1))
        inside = (at.abs() < self.centres.amax(0) - 0.5 / HEAT_GRID[0]).all(-1)
        found = torch.cat((4 * at, share[..., None], (share * inside)[..., None], features), 2)
        tokens = self.tokens(x8, lifted, found)
        return Reading(tokens, heat, at, share, share * inside, lifted)

    def tokens(self, x8: Tensor, lifted: Lifted, keypoints: Tensor) -> Tensor:
        """Lay out the tokens (B, N, D): cells of the picture, the person, and blocks of joints."""
        camera = 4 * (lifted.camera - lifted.camera.new_tensor([0.9, 0.0, 0.0]))
        rotations = genhmr.rotation_6d_to_matrix(lifted.pose)
        pose = genhmr.matrix_to_rotation_6d(rotations)  # unit columns
        person = torch.cat((lifted.betas, camera, pose[:, 0]), 1)  # (B, 19)
        joints = torch.cat((keypoints, 2 * lifted.joints), 2)[:, :genhmr.JOINTS]
        joints = torch.cat((pose, joints), 2)[:, self.joint_of_cell]  # (B, N, 13 + 16)
        person = person[:, None].expand(-1, joints.shape[1], -1)
        tokens = torch.cat((0.3 * x8.flatten(2).mT, person, joints), 2)
        if self.embed is None:
            return tokens
        z = self.embed(rotations)  # (B, L, C)
        owner = token_of_cell(z.shape[1] // genhmr.JOINTS, z.device)
        return torch.cat((tokens, z[:, owner]), 2)


def locate(probability: Tensor, centres: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Find keypoints in probabilities (B, K, M) of cells whose centres (M, 2) are given.

    Returns the mean of the cells around the most probable one (B, K, 2), and their share (B, K).
    """
    peak = centres[probability.argmax(-1)]  # (B, K, 2)
    near = probability * ((centres - peak[:, :, None]).abs().amax(-1) < radius)
    share = near.sum(-1)
    return near @ centres / share[..., None].clamp_min(1e-6), share


def token_of_cell(per_joint: int, device: torch.device | None = None) -> Tensor:
    """Return the number of the pose token that each cell belongs to (N,), `per_joint` a joint.

    The eight cells of a joint's block, row by row, are shared out among the joint's tokens.
    """
    rows, columns = (torch.arange(count, device=device) for count in GRID)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    joint = row // BLOCK[0] * (GRID[1] // BLOCK[1]) + column // BLOCK[1]
    inside = row % BLOCK[0] * BLOCK[1] + column % BLOCK[1]
    return (joint * per_joint + inside * per_joint // math.prod(BLOCK)).flatten()


def places(per_joint: int) -> Tensor:
    """Return the middle of each pose token's cells: (L, 2), x and y in 0..1 over the grid.

    If a joint has more tokens than cells, several tokens share one.
    """
    cells = math.prod(BLOCK)
    in_order = token_of_cell(cells).argsort()  # the cells of the first joint, of the second, ...
    first = torch.arange(genhmr.JOINTS * per_joint) * cells // per_joint
    own = in_order[first[:, None] + torch.arange(max(cells // per_joint, 1))]  # (L, cells)
    xy = torch.stack((own % GRID[1], own // GRID[1]), -1).float().mean(1) + 0.5
    return xy / torch.tensor(GRID[::-1])


def is_small(config: genhmr.Config) -> bool:
    """Say whether a config is of a model behind a SmallEncoder, whose tokens are at stride 8."""
    return config.patch_size == IMAGE_SIZE // GRID[0]


def build_genhmr(config: genhmr.Config, encoder: SmallEncoder | None = None) -> genhmr.GenHMR:
    """Build GenHMR: behind a SmallEncoder, if the config is for one, or behind the paper's ViT.

    A SmallEncoder is frozen. Each pose token first looks at the cells of its joint, where it reads
    the tokenizer's embedding of the pose that the encoder lifts. Plain layers have fast equals.
    """
    if is_small(config):
        encoder = (encoder or SmallEncoder()).requires_grad_(False)
    model = fast.replace(genhmr.GenHMR(config, encoder))
    if encoder is not None:
        encoder.embed = model.tokenizer.embed
        with torch.no_grad():
            middle = places(config.tokenizer.num_tokens // genhmr.JOINTS)
            model.transformer.reference.copy_(middle.logit())
    return model
