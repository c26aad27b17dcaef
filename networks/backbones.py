"""SimpleHand's other backbones: HRNet and Hiera, which the paper tries too.

The docstring of SimpleHand says what a backbone must do. simplehand_model builds SimpleHand with
any of them, and that of networks/any_view.py. Letters in shapes: B batch, S side of the
crop in pixels, C channels, N tokens, H and W the sides of a map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import simplehand
from networks import any_view, fast
from networks.any_view import ResidualBlock, conv_norm
from simplehand import Config, DropPath, SimpleHand, fold_norms, mlp, require


def simplehand_model(config: Config) -> SimpleHand:
    """Build the SimpleHand that a config describes, with the fast equals of plain layers."""
    require((config.backbone == "unet") == isinstance(config, any_view.Config),
            f"backbone is {config.backbone!r}: expected unet in any_view.Config and nowhere else")
    if config.backbone == "unet":
        return any_view.build(config)
    kind = {"hrnet": HRNet, "hiera": Hiera}.get(config.backbone)
    require(kind or config.backbone == "fastvit",
            f"backbone is {config.backbone!r}: expected fastvit, hrnet or hiera")
    return fast.replace(SimpleHand(config, kind and kind(config)))


# ------------------------------------------------------------------------------------- HRNet
# Wang et al.: "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020,
# as for classification, under its authors' parameter names, which are also timm's.


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, the last to four times the width, and a skip."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(channels_in, width, size=1, activate=False)
        self.conv2, self.bn2 = conv_norm(width, width, activate=False)
        self.conv3, self.bn3 = conv_norm(width, 4 * width, size=1, activate=False)
        self.downsample = (conv_norm(channels_in, 4 * width, size=1, activate=False)
                           if channels_in != 4 * width else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.downsample(x) + self.bn3(self.conv3(y)))


def resize(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """Bring one branch to another's channels and resolution; each has half of the one before."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(*conv_norm(widths[source], widths[target], size=1, activate=False),
                             nn.Upsample(scale_factor=2 ** (source - target)))
    halvings = [conv_norm(widths[source], widths[source], 2) for _ in range(source + 1, target)]
    return nn.Sequential(*halvings, conv_norm(widths[source], widths[target], 2, activate=False))


class Exchange(nn.Module):
    """Four blocks on every branch; then each branch becomes the sum of all, resized."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        branches = range(len(widths))
        self.branches = nn.ModuleList(
            nn.Sequential(*[ResidualBlock(width) for _ in range(4)]) for width in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(resize(widths, source, target) for source in branches)
            for target in branches)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [F.relu(sum(layer(x) for layer, x in zip(layers, maps, strict=True)))
                for layers in self.fuse_layers]


def transition(before: Sequence[int], widths: Sequence[int]) -> nn.ModuleList:
    """Give the branches new widths and add one of half the resolution, from the last branch."""
    same = [nn.Identity() if old == new else conv_norm(old, new)
            for old, new in zip(before, widths, strict=False)]
    return nn.ModuleList([*same, nn.Sequential(conv_norm(before[-1], widths[-1], 2))])


class HRNet(nn.Module):
    """Images (B, 3, S, S) -> X_b, (B, embed_dims[1], S/8, S/8), and the last map.

    X_b is the second branch. The last map, (B, feature_width, S/32, S/32), is the one whose average
    ImageNet's classifier reads; here the keypoints are read from it, and all of "global" sampling
    (our reading: the paper says neither, and the release has no HRNet).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = config.embed_dims
        bottlenecks, *modules = config.depths  # the first stage counts blocks, the others modules
        self.pooled = config.sampling == "global"
        self.channels = config.feature_width if self.pooled else widths[1]
        self.conv1, self.bn1 = conv_norm(3, 64, 2, activate=False)  # S/2
        self.conv2, self.bn2 = conv_norm(64, 64, 2, activate=False)  # S/4
        self.layer1 = nn.Sequential(*[
            Bottleneck(64 if index == 0 else 256, 64) for index in range(bottlenecks)])
        before: Sequence[int] = (256,)
        for number, count in enumerate(modules, 1):  # stages 2, 3, 4 with as many branches
            branches = widths[:number + 1]
            setattr(self, f"transition{number}", transition(before, branches))
            setattr(self, f"stage{number + 1}",
                    nn.Sequential(*[Exchange(branches) for _ in range(count)]))
            before = branches
        narrow = [config.feature_width // 64 * 2**index for index in range(4)]  # 32, ..., 256
        self.incre_modules = nn.ModuleList(
            nn.Sequential(Bottleneck(*pair)) for pair in zip(widths, narrow, strict=True))
        self.downsamp_modules = nn.ModuleList(
            conv_norm(4 * width, 8 * width, 2, bias=True) for width in narrow[:3])
        self.final_layer = conv_norm(4 * narrow[3], config.feature_width, size=1, bias=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))  # (B, 64, S/2, S/2)
        maps = [self.layer1(F.relu(self.bn2(self.conv2(x))))]
        for number in (1, 2, 3):
            layers = getattr(self, f"transition{number}")  # the new branch comes from the last
            maps = [layer(maps[min(index, len(maps) - 1)]) for index, layer in enumerate(layers)]
            maps = getattr(self, f"stage{number + 1}")(maps)
        widened = [layer(x) for layer, x in zip(self.incre_modules, maps, strict=True)]
        last = widened[0]
        for layer, wide in zip(self.downsamp_modules, widened[1:], strict=True):
            last = wide + layer(last)
        last = self.final_layer(last)  # (B, 2048, S/32, S/32)
        return last if self.pooled else maps[1], last

    fuse = fold_norms  # into the convolutions, in place


# ------------------------------------------------------------------------------------- Hiera
# Ryali et al.: "Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles", ICML
# 2023, under timm's parameter names. Tokens keep their place in the image, (B, H, W, C); the
# authors sort them so that mask units are contiguous, which only masked pretraining needs.


def pool(x: Tensor) -> Tensor:
    """Maximum over 2 x 2 tokens, (B, H, W, C) -> (B, H/2, W/2, C)."""
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).amax((2, 4))


class UnitAttention(nn.Module):
    """Self-attention inside mask units of unit x unit tokens, 0: among all tokens.

    With `pools` the queries are the maxima over 2 x 2 tokens, so the map has half the resolution.
    """

    def __init__(self, width_in: int, width: int, heads: int, unit: int, pools: bool) -> None:
        super().__init__()
        self.heads, self.unit, self.pools = heads, unit, pools
        self.qkv = nn.Linear(width_in, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C) -> (B, H', W', C')
        unit = self.unit or x.shape[1]
        units = (x.shape[0], x.shape[1] // unit, x.shape[2] // unit)
        x = x.unflatten(2, (-1, unit)).unflatten(1, (-1, unit)).transpose(2, 3).flatten(0, 2)
        q, k, v = self.qkv(x).chunk(3, -1)  # (B units, unit, unit, C')
        q = pool(q) if self.pools else q
        side = q.shape[1]
        q, k, v = (y.flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for y in (q, k, v))  # (B units, heads, tokens, C' / heads)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.proj(x).unflatten(1, (side, side)).unflatten(0, units)
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class HieraBlock(nn.Module):
    """Transformer block, (B, H, W, C) -> the same, or half the resolution and wider."""

    def __init__(self, width_in: int, width: int, heads: int, unit: int, config: Config,
                 drop_path: float) -> None:
        super().__init__()
        pools = width_in != width
        self.norm1 = nn.LayerNorm(width_in, eps=1e-6)
        self.proj = nn.Linear(width_in, width) if pools else None
        self.attn = UnitAttention(width_in, width, heads, unit, pools)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = mlp(width, int(width * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x if self.proj is None else pool(self.proj(y))
        x = x + self.drop_path(self.attn(y))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Hiera(nn.Module):
    """Images (B, 3, S, S) -> X_b, (B, embed_dims[3], S/32, S/32), and again as the last map.

    S must be config.image_size, to which the position embedding belongs. The norm before
    ImageNet's classifier is not applied, as in timm's feature maps.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, self.side = config.embed_dims, config.image_size // 4
        self.channels = widths[3]
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, widths[0], 7, 4, 3)))
        self.pos_embed = nn.Parameter(torch.empty(1, self.side**2, widths[0]))
        depth, blocks, before, unit = sum(config.depths), [], widths[0], 8
        for stage, (width, count) in enumerate(zip(widths, config.depths, strict=True)):
            for index in range(count):
                rate = config.backbone_drop_path * len(blocks) / max(depth - 1, 1)
                blocks.append(HieraBlock(before, width, width // widths[0], unit, config, rate))
                before = width
                if index == 0:  # a stage's first block still has the unit of the stage before
                    unit = (8, 4, 0, 0)[stage]
        self.blocks = nn.Sequential(*blocks)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patch_embed(x).permute(0, 2, 3, 1)  # (B, S/4, S/4, C)
        require(x.shape[1] == x.shape[2] == self.side,
                f"images {4 * x.shape[1]} px high: expected {4 * self.side} x {4 * self.side}, "
                "the size of Hiera's position embedding")
        x = x + self.pos_embed.unflatten(1, (self.side, self.side))
        x = self.blocks(x).permute(0, 3, 1, 2)  # (B, 768, S/32, S/32)
        return x, x

    def fuse(self) -> None:
        """Do nothing: layer norms depend on the input."""


# ----------------------------------------------------------------------------------- presets

PRESETS = {
    # simplehand's "paper" with HRNet-W64, whose map at S/8 needs no deconvolution (Sec. 3.3; 11
    # hours), and with Hiera-Tiny, as in the paper's ablations (Sec. 4.5).
    "paper_hrnet": Config(
        backbone="hrnet", embed_dims=(64, 128, 256, 512), depths=(4, 1, 4, 3), feature_width=2048,
        upsample=(1,)),
    "paper_hiera": Config(
        backbone="hiera", embed_dims=(96, 192, 384, 768), depths=(1, 2, 7, 2), feature_width=768),
}
ALL_PRESETS = simplehand.PRESETS | PRESETS | any_view.PRESETS  # what simplehand_model builds
