"""SimpleHand: the 778 vertices of a hand from one RGB crop. The paper's method in one file.

Zhishan Zhou, Shihao Zhou, Zhi Lv, Minqiang Zou, Yao Tang, Jiajun Liang:
"A Simple Baseline for Efficient Hand Mesh Reconstruction", CVPR 2024.

The paper's claim: a mesh decoder needs only two parts. A *token generator* samples a feature map
at the 21 keypoints; the map must be fine enough to separate the fingers. A *mesh regressor* turns
those 21 tokens into 778 vertices in a few steps: 21 -> 84 -> 336 -> 778.

    in the paper                           what                              in this file
    Sec. 3.1, Fig. 2-D  T(X_b)             token generator                   MeshHead.generate
    Eq. 1               R = H_k ... H_0    mesh regressor                    MeshHead.regress
    Eq. 2               U_k(MF_k(P_k(.)))  decoder layer                     DecoderLayer
    Eq. 3               X_k + emb_k        position embedding                MeshHead.regress
    Sec. 3.3, Fig. 4    R(T(X_b))          framework                         SimpleHand.forward
    Eq. 4, 5, 6         L1 terms           joints, 2D keypoints, vertices    losses
    Eq. 7               weighted sum       w = 10, 1, 10                     total_loss
    Tables 5, 8         alternatives       samplings, mixers                 GridHead, mixer, ...
    Sec. 4.1            backbone           FastViT-MA36                      FastViT
    Sec. 4.1, 4.5       other backbones    HRNet-W64, Hiera-Tiny             networks/backbones.py

The method comes first; FastViT, another paper's work, and the presets come last.
weights/simplehand.py opens checkpoints. This file alone opens those that train.py writes, if the
backbone is FastViT:

    content = torch.load(FILE, weights_only=True, map_location="cpu")
    config = {name: x for name, x in content["config"].items() if name in Config.__annotations__}
    model = SimpleHand(Config(**config))  # older files have the settings of their run there, too
    model.load_state_dict(content["model"])

"The release" is the authors' code of 2024-05-27. Where paper and release disagree or are silent, a
comment says so. Units are metres and pixels. The camera frame is OpenCV's: x right, y down, z away
from the camera. An image spans [0, W] x [0, H], so the centre of its first pixel is (0.5, 0.5).
Letters in shapes: B batch, S side of the crop in pixels, C channels, N tokens.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ------------------------------------------------------------------------------------ config

VERTICES = 778  # of a hand, and tokens leaving the last decoder layer (MANO)
COARSE = 4  # the coarse mesh is every fourth vertex: 195 of them, as many as FastMETRO's has


@dataclass(frozen=True)
class Config:
    """Everything that defines a model and its training. The defaults are the paper's."""

    # Input
    image_size: int = 224  # px, side of the square crop, a multiple of 32 (release)
    official: bool = False  # True reproduces the release, for its checkpoints: BGR images scaled
    # to +-0.5 (though its backbone was pretrained on RGB with ImageNet statistics), sampling with
    # align_corners=True (up to 4 px off at the borders), a sine map that the paper does not
    # mention, and its crop. False, for new training: RGB with ImageNet statistics, exact sampling.

    # Backbone (Sec. 4.1; the numbers are those of FastViT-MA36, FastViT's Table 2). The others are
    # in networks/backbones.py.
    embed_dims: tuple[int, ...] = (76, 152, 304, 608)  # channels of stages; HRNet: of branches
    depths: tuple[int, ...] = (6, 6, 18, 6)  # blocks of stages; HRNet: see its __init__
    large_kernel: int = 7  # px, of FastViT's downsampling, position encoding and MLPs
    mlp_ratio: float = 4.0  # hidden width of the MLPs of FastViT and Hiera
    feature_width: int = 1216  # channels of the last map of FastViT and HRNet
    layer_scale: float = 1e-5  # initial value in FastViT (timm)
    backbone_drop_path: float = 0.2  # rate at the last block, rising linearly (release)
    backbone: str = "fastvit"  # "fastvit", "hrnet" (Sec. 4.1), "hiera" (Sec. 4.5)

    # Token generator (Fig. 2, Table 5)
    sampling: str = "point"  # where: "global", "grid", "point" or "coarse_mesh" (Fig. 2 A, B, D, F)
    upsample: tuple[int, ...] = (4,)  # deconvolutions of X_b by these factors; 1: none (Fig. 2-C)
    refine: int = 0  # 3 x 3 convolutions after them (Fig. 2-E, "enhanced")
    token_width: int = 256  # channels after the first of either (Sec. 4.1: first dimension)

    # Mesh regressor
    tokens: tuple[int, ...] = (21, 84, 336)  # tokens entering each decoder layer (Sec. 4.1)
    dims: tuple[int, ...] = (256, 128, 64)  # feature dimension of each layer (Sec. 4.1)
    blocks: tuple[int, ...] = (1, 1, 1)  # MetaFormer blocks in each layer (Table 7)
    mixer: str = "attention"  # of tokens: "attention", "identity" or "convolution" (Table 8)
    position_embedding: bool = True  # Eq. 3 (Table 8)
    heads: int = 4  # attention heads (release)
    regressor_mlp_ratio: float = 4.0  # (release)
    dropout: float = 0.1  # of the attention weights (release)
    drop_path: float = 0.1  # of both residual branches (release)
    output_scale: float = 1.0  # metres, and crops, per unit of the last layers (release)

    # Loss, Eq. 7 (Sec. 3.4)
    weight_joints: float = 10.0
    weight_keypoints_2d: float = 1.0
    weight_vertices: float = 10.0

    # Optimisation. 100 epochs of FreiHAND's 130,240 images are 13.0 M samples; the release counts
    # 200 "epochs" of 256 steps x 256 samples = 13.1 M. Both divide the rate by 10 halfway. On
    # DexYCB, three times as large, train.py takes as many steps as 100 epochs are: 158,940.
    batch_size: int = 256  # samples per optimiser step, over all processes (Sec. 4.1: 8 x 32)
    steps: int = 51_200  # optimiser steps: 200 x 256 (release)
    learning_rate: float = 5e-4  # (Sec. 4.1)
    schedule: str = "step"  # "step": / 10 at half of the steps (Sec. 4.1); "cosine"; "constant"
    warmup_steps: int = 1_280  # linear from 0: 5 x 256 (release; the paper is silent)
    weight_decay: float = 1e-2  # AdamW (release; the paper is silent)
    gradient_clip: float = 1.0  # norm (release; the paper is silent)

    @property
    def num_points(self) -> int:
        """Number of image points that the model predicts: the keypoints, and the coarse mesh."""
        coarse = self.sampling == "coarse_mesh"
        return 21 + (len(range(0, VERTICES, COARSE)) if coarse else 0)


def require(condition: object, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


# ------------------------------------------------------------------------------------ method


class DropPath(nn.Module):
    """Drops a residual branch for whole samples while training, scaled to keep its mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1.0 - self.rate)


def mlp(width: int, hidden: int) -> nn.Sequential:
    """Linear, GELU, linear."""
    return nn.Sequential(OrderedDict(
        fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width)))


class TokenAttention(nn.MultiheadAttention):
    """Multi-head self-attention over tokens, (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__(width, config.heads, config.dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x, need_weights=False)[0]


class SeparableConv(nn.Module):
    """Convolution mixer (our reading of Table 8): expand, depthwise over 7 tokens, reduce."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(2 * width, 2 * width, 7, padding=3, groups=2 * width)
        self.reduce = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.expand(x)).transpose(1, 2)  # (B, 2 C, N)
        return self.reduce(self.depthwise(x).transpose(1, 2))  # (B, N, C)


class MetaFormerBlock(nn.Module):
    """MF_k of Eq. 2, pre-norm: (B, N, C) -> (B, N, C).

    With the identity mixer (Table 8) the first branch adds the normed tokens. The release would
    leave that branch out, but its identity and convolution blocks cannot be built.
    """

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        mixer = {"attention": TokenAttention, "identity": nn.Identity, "convolution": SeparableConv}
        require(config.mixer in mixer,
                f"mixer is {config.mixer!r}: expected one of {', '.join(mixer)}")
        self.norm1 = nn.LayerNorm(width)
        self.token_mixer = mixer[config.mixer](width, config)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width, int(width * config.regressor_mlp_ratio))
        self.drop_path = DropPath(config.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.token_mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DecoderLayer(nn.Module):
    """H_k of Eq. 1: more tokens, fewer channels.

    project is P_k, a linear layer over channels; metaformer is MF_k; upsample is U_k, a single
    linear layer over tokens.
    """

    def __init__(self, project: nn.Linear, metaformer: nn.Sequential, upsample: nn.Linear) -> None:
        super().__init__()
        self.project, self.metaformer, self.upsample = project, metaformer, upsample

    def forward(self, x: Tensor) -> Tensor:  # (B, N, C)
        x = self.metaformer(self.project(x))  # (B, N, C')
        return self.upsample(x.transpose(1, 2)).transpose(1, 2)  # (B, N', C'), Eq. 2


def upsampler(config: Config, width: int) -> tuple[nn.Sequential, int]:
    """Build what the token generator does to X_b before it samples, and its output channels.

    width: channels of X_b. By default one deconvolution by 4, batch norm and ReLU (Fig. 2-D,
    release); no layer where X_b is fine enough (HRNet's) or never sampled ("global").
    """
    require(config.token_width > 0, f"token_width is {config.token_width}: expected more")
    layers: list[nn.Module] = []
    deconvolutions = [partial(nn.ConvTranspose2d, kernel_size=factor, stride=factor)
                      for factor in config.upsample if factor > 1]
    refinements = [partial(nn.Conv2d, kernel_size=3, padding=1)] * config.refine
    for conv in (deconvolutions + refinements) * (config.sampling != "global"):
        layers += [conv(width, config.token_width, bias=False),
                   nn.BatchNorm2d(config.token_width), nn.ReLU()]
        width = config.token_width
    return nn.Sequential(*layers), width


def read_map(features: Tensor, points: Tensor, align_corners: bool = False) -> Tensor:
    """Read a map (B, C, H, W) at points (B, N, 2), fractions of the image 0..1 -> (B, N, C).

    Bilinear; beyond the centres of the border cells the border repeats. The points are not
    detached, so mesh losses move the keypoints too; where clamped, their gradient is zero.
    """
    grid = (2.0 * points - 1.0).clamp(-1.0, 1.0).unsqueeze(2)  # (B, N, 1, 2)
    grid = grid.nan_to_num(0.0)  # sampling at NaN crashes; let the loss show that training diverged
    sampled = F.grid_sample(features.to(grid.dtype), grid, padding_mode="border",
                            align_corners=align_corners)  # (B, C, N, 1)
    return sampled.squeeze(3).transpose(1, 2)


class FullPrecision(nn.Linear):
    """A linear layer outside autocast: in bf16 a coordinate of 0.1 m is only good to 0.4 mm.

    On GPUs, torch.set_float32_matmul_precision("high") still rounds its inputs to TF32.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class GlobalKeypoints(FullPrecision):
    """The 2D keypoint head of Fig. 4: reads the keypoints from the "global feature"."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.feature_width, 2 * config.num_points)
        self.output_scale = config.output_scale
        if not config.official:  # start in the middle of the crop, where sampling has a gradient
            nn.init.constant_(self.bias, 0.5 / config.output_scale)

    def forward(self, features: Tensor, last: Tensor) -> dict[str, Tensor]:
        """The last map (B, C, S/32, S/32) -> keypoints_2d and coarse_2d of SimpleHand.forward."""
        pooled = last.mean((2, 3))  # (B, C)
        points = self.output_scale * super().forward(pooled).unflatten(1, (-1, 2))  # (B, P, 2)
        coarse = {"coarse_2d": points[:, 21:]} if points.shape[1] > 21 else {}
        return {"keypoints_2d": points[:, :21]} | coarse


class MeshHead(nn.Module):
    """Token generator T and mesh regressor R of Fig. 4. channels: of X_b; None: FastViT's."""

    def __init__(self, config: Config, channels: int | None = None) -> None:
        super().__init__()
        first, grid = config.tokens[0], config.sampling == "grid"
        require(len(config.tokens) == len(config.dims) == len(config.blocks),
                "tokens, dims and blocks: expected equally many of each")
        require(first == (math.isqrt(first) ** 2 if grid else config.num_points),
                f"tokens begin with {first}: expected {'a square' if grid else config.num_points}")
        deconv, width = upsampler(config, channels or config.feature_width)
        widths, tokens = (width, *config.dims), (*config.tokens, VERTICES)
        embeddings, layers = [], []
        for k, blocks in enumerate(config.blocks):
            metaformer = nn.Sequential(
                *[MetaFormerBlock(widths[k + 1], config) for _ in range(blocks)])
            embedding = torch.empty(1, tokens[k], widths[k])
            embeddings.append(nn.init.trunc_normal_(embedding, std=0.02))
            layers.append(DecoderLayer(nn.Linear(widths[k], widths[k + 1]), metaformer,
                                       nn.Linear(tokens[k], tokens[k + 1])))
        self.position_embeddings = (nn.ParameterList(embeddings) if config.position_embedding
                                    else [0.0] * len(layers))  # Table 8
        self.deconv = deconv
        self.layers = nn.ModuleList(layers)
        self.pred_final = FullPrecision(widths[-1], 3)
        self.output_scale = config.output_scale

    def forward(self, features: Tensor, points: Tensor) -> Tensor:
        """Vertices R(T(X_b)), (B, 778, 3) metres, from X_b and the points to sample at."""
        return self.regress(self.generate(features, points))

    def generate(self, features: Tensor, points: Tensor) -> Tensor:
        """Token generator: X_b (B, C, S/32, S/32), points (B, N, 2) in 0..1 -> (B, N, C')."""
        features = self.deconv(features)  # (B, C', S/8, S/8)
        return read_map(features, points)  # (B, 21, C')

    def regress(self, x: Tensor) -> Tensor:
        """Mesh regressor: tokens X_0 (B, 21, C') -> vertices (B, 778, 3)."""
        # Sec. 3.2 puts emb_k on each output X_k, Sec. 3.3 before each MetaFormer block; the release
        # and this file add it before P_k.
        for layer, embedding in zip(self.layers, self.position_embeddings, strict=True):  # Eq. 1
            x = layer(x + embedding)  # Eq. 3, then 2; (B, 84, 256), (B, 336, 128), (B, 778, 64)
        return self.output_scale * self.pred_final(x)  # (B, 778, 3)


class GridHead(MeshHead):
    """Fig. 2-B: samples the centres of a grid, wherever the keypoints are."""

    def generate(self, features: Tensor, points: Tensor) -> Tensor:
        cells = math.isqrt(self.layers[0].upsample.in_features)
        centers = (torch.arange(cells, device=points.device) + 0.5) / cells
        grid = torch.cartesian_prod(centers, centers).flip(1)  # (N, 2), row by row
        return super().generate(features, grid.to(points.dtype).expand(len(features), -1, 2))


class GlobalHead(MeshHead):
    """Fig. 2-A: every token is the average of the last map."""

    def generate(self, features: Tensor, points: Tensor) -> Tensor:
        return read_map(features.mean((2, 3), keepdim=True), points)  # a map of one cell


class ReleasedHead(MeshHead):
    """The release's token generator.

    It adds a sine map and puts 0 and 1 on the *centres* of the border cells: it reads column
    (S/8 - 1) u of the map instead of S/8 u - 0.5.
    """

    def generate(self, features: Tensor, points: Tensor) -> Tensor:
        features = self.deconv(features)  # (B, C', S/8, S/8)
        return read_map(features + sine_map(features), points, align_corners=True)


def sine_map(features: Tensor) -> Tensor:
    """Compute the release's fixed position map (DETR's), (C, H, W) as `features`: y, then x."""
    channels, height, width = features.shape[1:]
    half = channels // 2
    # Ones of the features' device, not torch.arange, which an exported file would tie to a CPU
    ones = torch.ones_like(features[0], dtype=torch.float32)
    exponent = (ones[:half, :1, :1].cumsum(0) - 1).div(2, rounding_mode="floor") * 2 / half

    def encode(position: Tensor, length: int) -> Tensor:  # (1, H, W) -> (C / 2, H, W)
        angle = 2.0 * math.pi * (position / (length + 1e-6)) / 10_000.0 ** exponent
        return torch.stack((angle[0::2].sin(), angle[1::2].cos()), 1).flatten(0, 1)

    y, x = encode(ones[:1].cumsum(1), height), encode(ones[:1].cumsum(2), width)
    return torch.cat((y, x)).to(features.dtype)


class SimpleHand(nn.Module):
    """The framework of Fig. 4: backbone, 2D keypoint head, token generator, mesh regressor.

    backbone: by default FastViT. Another one returns two maps for normalised images (B, 3, S, S):
        X_b (B, channels, h, w), which the tokens are sampled from, and the last map
        (B, config.feature_width, h', w'), whose average is the "global feature". It has the
        attribute `channels` and a method fuse(), which prepares it for inference, in place.
    keypoints_2d_head: by default GlobalKeypoints; another one takes both maps, too, and may return
        more, which `forward` passes on. mesh_head: by default that of config.sampling.
    Raises ValueError for a config that describes no model.
    """

    def __init__(self, config: Config, backbone: nn.Module | None = None,
                 keypoints_2d_head: nn.Module | None = None,
                 mesh_head: nn.Module | None = None) -> None:
        super().__init__()
        heads = {"point": MeshHead, "coarse_mesh": MeshHead, "grid": GridHead, "global": GlobalHead}
        if config.official:
            heads = {"point": ReleasedHead, "coarse_mesh": ReleasedHead}
        size, sampling = config.image_size, config.sampling
        require(size % 32 == 0 < size, f"image_size is {size}: expected a multiple of 32")
        require(sampling in heads, f"sampling is {sampling!r}: expected one of {', '.join(heads)}")
        require(backbone is not None or config.backbone == "fastvit",
                f"config is for the backbone {config.backbone!r}: expected that as an argument")
        self.config = config
        self.backbone = FastViT(config) if backbone is None else backbone
        self.keypoints_2d_head = keypoints_2d_head or GlobalKeypoints(config)
        self.mesh_head = mesh_head or heads[sampling](config, self.backbone.channels)
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])  # ImageNet
        if config.official:
            mean, std = torch.full((3,), 0.5), torch.ones(3)
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict the hand of each crop.

        images: (B, 3, S, S) RGB of *right* hands (mirror left ones first), uint8 or floats in
            0..255, S a multiple of 32.
        Returns vertices (B, 778, 3), metres in the crop's camera axes with joint 9 (base of the
        middle finger) as origin, and keypoints_2d (B, 21, 2), fractions of the crop 0..1; with
        "coarse_mesh" sampling also coarse_2d (B, 195, 2), those of every fourth vertex. Raises
        ValueError for another shape.
        """
        features, last = self.backbone(self.normalise(images))  # X_b and the last map
        hand = self.keypoints_2d_head(features, last)  # keypoints_2d (B, 21, 2) and more
        points = [hand[name] for name in ("keypoints_2d", "coarse_2d") if name in hand]
        return {"vertices": self.mesh_head(features, torch.cat(points, 1))} | hand

    def normalise(self, images: Tensor) -> Tensor:
        """Scale RGB 0..255 to what the backbone was trained on; the release's BGR if official."""
        shape = tuple(images.shape)
        require(len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] and shape[2] % 32 == 0,
                f"images of shape {shape}: expected (B, 3, S, S), S a multiple of 32")
        if images.is_floating_point() and images.numel() and not (
                images.is_meta or torch.compiler.is_compiling()):
            require(not 0 < images.max() <= 1,
                    "images in 0..1: expected 0..255, multiply them by 255")
        if self.config.official:
            images = images.flip(1)
        return (images.to(self.mean.dtype) / 255.0 - self.mean) / self.std

    @torch.no_grad()
    def fuse(self) -> SimpleHand:
        """Return a copy for inference: batch norms, branches and scales become part of layers."""
        fused = copy.deepcopy(self).eval()
        fused.backbone.fuse()
        fold_norms(fused.mesh_head)
        return fused


def fold_norms(module: nn.Module) -> None:
    """Fold every batch norm into the convolution before it, in place, as in evaluation mode."""
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (_, conv), (name, norm) in zip(children, children[1:], strict=False):
            if (isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
                    and isinstance(norm, nn.BatchNorm2d)):
                conv.weight, conv.bias = nn.utils.fusion.fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
                    norm.weight, norm.bias, transpose=isinstance(conv, nn.ConvTranspose2d))
                setattr(parent, name, nn.Identity())


# ------------------------------------------------------------------------------------ losses

MANO_ORDER = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
MANO_TIPS = (744, 320, 443, 555, 672)  # vertex ids: thumb, index, middle, ring, pinky


def mano_keypoint_regressor(J_regressor: Tensor) -> Tensor:
    """Build the keypoint regressor (21, 778) from MANO_RIGHT.pkl's J_regressor (16, 778), dense.

    MANO's rows are the wrist, then three joints each of index, middle, pinky, ring and thumb. The
    result adds the five fingertips, which are vertices, and sorts into the order of FreiHAND:
    wrist, then thumb, index, middle, ring and pinky, each from base to tip.
    """
    if hasattr(J_regressor, "toarray"):  # scipy's, in MANO's file
        J_regressor = J_regressor.toarray()
    J_regressor = torch.as_tensor(J_regressor)
    require(J_regressor.shape == (16, 778),
            f"J_regressor of shape {tuple(J_regressor.shape)}: expected MANO's (16, 778)")
    tips = F.one_hot(torch.tensor(MANO_TIPS), 778).to(J_regressor)  # (5, 778)
    return torch.cat((J_regressor, tips))[list(MANO_ORDER)]


def regress_joints(vertices: Tensor, keypoint_regressor: Tensor) -> Tensor:
    """J_3d = J V_3d (Sec. 3.4): (B, 778, 3) -> (B, 21, 3), wrist, thumb to pinky, base to tip.

    keypoint_regressor: (21, 778), see mano_keypoint_regressor. It acts on the *posed* vertices, as
    FreiHAND defines its joints. The joints of MANO's posed skeleton (DexYCB's, smplx's) are other
    points, some millimetres away: never compare the two.
    """
    return torch.einsum("jv,bvc->bjc", keypoint_regressor.to(vertices), vertices)


def losses(prediction: dict[str, Tensor], batch: dict[str, Tensor],
           keypoint_regressor: Tensor) -> dict[str, Tensor]:
    """Compute the unweighted terms of Eq. 4 to 6, each a scalar.

    prediction: what SimpleHand.forward returns. keypoint_regressor: see regress_joints.
    batch, with all lengths in metres, in the camera frame of the crop:
        image            (B, 3, S, S)   only its size S is used
        vertices         (B, 778, 3)    true mesh, any origin
        joints           (B, 21, 3)     true joints, same origin
        keypoints_2d     (B, 21, 2)     pixels of the crop, 0..S
        keypoints_valid  (B, 21)        1 where keypoints_2d counts, else 0
        mesh_valid       (B,)           1 where vertices and joints count, else 0
        K                (B, 3, 3)      intrinsics of the crop in pixels, with "coarse_mesh" only;
                                        vertices then need the camera as origin
    Meshes are compared relative to joint 9 (release; the paper is silent). 1/M ||.||_1 is read as
    in the release: summed over coordinates, mean over the M points. Invalid entries add zero to
    the sum, so the mean over a batch is the mean of the means over its parts.
    """
    vertices, keypoints_2d = prediction["vertices"], prediction["keypoints_2d"]
    root, mesh_valid = batch["joints"][:, 9:10], batch["mesh_valid"][:, None]

    for name, count in ("mesh_valid", ()), ("keypoints_valid", keypoints_2d.shape[1:2]):
        require(batch[name].shape == (len(vertices), *count),
                f"{name} of shape {tuple(batch[name].shape)}: expected {(len(vertices), *count)}")

    def l1(predicted: Tensor, true: Tensor, valid: Tensor) -> Tensor:
        error = torch.where(valid[..., None] > 0, predicted - true, 0.0)  # invalid ones may be NaN
        return (error.abs().sum(-1) * valid).mean()

    joints = regress_joints(vertices, keypoint_regressor)
    true_2d = batch["keypoints_2d"] / batch["image"].shape[-1]
    terms = {
        "joints": l1(joints, batch["joints"] - root, mesh_valid),  # Eq. 4
        "keypoints_2d": l1(keypoints_2d, true_2d, batch["keypoints_valid"]),  # Eq. 5
        "vertices": l1(vertices, batch["vertices"] - root, mesh_valid),  # Eq. 6
    }
    if "coarse_2d" in prediction:  # Eq. 5 for the coarse mesh that guides the sampling (Fig. 2-F)
        pixels = batch["vertices"][:, ::COARSE] @ batch["K"].mT
        true_2d = pixels[..., :2] / pixels[..., 2:].clamp(min=1e-3) / batch["image"].shape[-1]
        inside = ((true_2d >= 0) & (true_2d <= 1)).all(-1)
        terms["coarse_2d"] = l1(prediction["coarse_2d"], true_2d, inside * mesh_valid)
    return terms


def total_loss(terms: dict[str, Tensor], config: Config) -> Tensor:
    """Eq. 7."""
    return (config.weight_joints * terms["joints"]
            + config.weight_keypoints_2d * terms["keypoints_2d"]
            + config.weight_vertices * terms["vertices"]
            + config.weight_keypoints_2d * terms.get("coarse_2d", 0.0))


# --------------------------------------------------------------------------------- inference


def crop_camera(K: np.ndarray, box: np.ndarray, size: int,
                official: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Turn the camera to the centre of a box and zoom in until the box fills the crop.

    K (3, 3), box (x, y, width, height) in pixels. Returns the crop's K and the rotation in
    X_crop = rotation @ X_camera, both (3, 3). Training crops are made like this (release); in
    an affine crop hands off the camera's axis would look sheared.

    The midpoints of the box's sides fit into the crop, the outermost one exactly. official=True
    repeats the release: it fits the turned corners, keeps the ratio of the focal lengths (zoom
    differs by up to 2 %, in wide pictures 10), and has its axis on a pixel's centre, S/2 + 0.5.
    """
    inverse, half = np.linalg.inv(K), box[2:] / 2
    center = np.append(box[:2] + half, 1.0)
    x, y, z = inverse @ center / np.linalg.norm(inverse @ center)
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])
    rotation = np.eye(3) + cross + cross @ cross / (1 + z)  # the shortest, ray -> z axis
    edges = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    offsets = np.pad((corners if official else edges) * half, ((0, 0), (0, 1)))
    points = (center + offsets) @ (rotation @ inverse).T
    points = points[:, :2] / points[:, 2:]  # in units of the focal length
    if official:
        focal = np.diag(K)[:2]
        focal, middle = size / np.ptp(focal * points, axis=0).max() * focal, size / 2 + 0.5
    else:
        focal, middle = np.full(2, size / 2 / np.abs(points).max()), size / 2
    return np.array([[focal[0], 0, middle], [0, focal[1], middle], [0, 0, 1]]), rotation


def transform(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a homography (3, 3) to points (..., 2)."""
    points = points @ homography[:, :2].T + homography[:, 2]
    return points[..., :2] / points[..., 2:]


def cut_out(image: np.ndarray, crop_to_image: np.ndarray, size: int, samples: int) -> Tensor:
    """Cut a crop (3, size, size) float out of an image (H, W, 3), black outside of it.

    Each pixel is the mean of samples x samples bilinear ones, against aliasing.
    """
    centers = (np.arange(size * samples) + 0.5) / samples
    points = transform(crop_to_image, np.stack(np.meshgrid(centers, centers), -1))
    grid = torch.from_numpy(2 * points / image.shape[1::-1] - 1).float()
    pixels = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    return F.avg_pool2d(F.grid_sample(pixels[None], grid[None], align_corners=False), samples)[0]


def fit_translation(points: np.ndarray, pixels: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Translation t (3,) that puts points (N, 3) onto pixels (N, 2) best, by least squares.

    f (x + tx) = (u - cx) (z + tz), and the same for y, are linear in t. No point ends nearer than
    0.1 m, so that a prediction whose keypoints fit no depth can still be drawn.
    """
    rays = (pixels - K[:2, 2]) / np.diag(K)[:2]  # (N, 2)
    right = rays * points[:, 2:] - points[:, :2]  # t_xy - rays t_z = right
    left = np.concatenate((np.tile(np.eye(2), (len(points), 1)), -rays.reshape(-1, 1)), 1)
    depth = np.linalg.lstsq(left, right.reshape(-1), rcond=None)[0][2]
    depth = max(depth, 0.1 - points[:, 2].min())
    return np.append((right + rays * depth).mean(0), depth)


def check_view(image: np.ndarray, box: Sequence[float] | None, side: str,
               K: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Check the arguments of `predict`; return its padded box and K, by default or as given."""
    require(image.ndim == 3 and image.shape[2] == 3 and image.size and image.dtype == np.uint8,
            f"image {image.shape} of {image.dtype}: expected (H, W, 3) uint8 RGB")
    require(side in ("right", "left"), f"side {side!r}: expected right or left")
    (height, width), f = image.shape[:2], math.hypot(*image.shape[:2])
    K = np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]]) if K is None else np.asarray(
        K, np.float64)
    require(K.shape == (3, 3) and np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0
            and (K[2] == (0, 0, 1)).all(),
            f"K {K.tolist()}: expected (3, 3) intrinsics in pixels, its last row 0, 0, 1")
    if box is None:
        return np.array([0.0, 0.0, width, height]), K
    box = np.asarray(box, np.float64)
    require(box.shape == (4,) and np.isfinite(box).all() and min(box[2:]) >= 1
            and max(box[2:]) <= 10 * max(width, height)
            and max(box[:2] - (width, height)) < 0 < min(box[:2] + box[2:]),
            f"box {box.tolist()}: expected x,y,width,height of a part of the {width} x {height} "
            f"picture, with sides from 1 px to {10 * max(width, height)} px")
    return np.concatenate((box[:2] - box[2:] / 8, box[2:] * 1.25)), K


@torch.inference_mode()
def predict(model: SimpleHand, image: np.ndarray, keypoint_regressor: Tensor, *,
            box: Sequence[float] | None = None, side: str = "right",
            K: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Reconstruct one hand of a whole picture in that picture's camera.

    image: (H, W, 3) uint8 RGB. keypoint_regressor: (21, 778), see regress_joints.
    box: x, y, width, height of the hand in pixels, enlarged by a quarter as the release does; by
        default the whole picture, not enlarged.
    side: "right" or "left"; the network cannot tell. A left hand is mirrored for the network, and
        its mesh back. Networks trained on FreiHAND or DexYCB, like the release's, have seen both:
        they turn a left hand given as "right" into a left hand's mesh, whose faces point inwards.
    K: (3, 3) of the picture; by default its focal length is the picture's diagonal (our choice,
        53 degrees). The distance is only as good as this focal length.
    Returns float32 arrays vertices (778, 3), joints (21, 3) and root (3,), the origin of the
    network's mesh, all in metres in the camera's frame; keypoints_2d (21, 2), of the network, in
    pixels of the picture; K (3, 3); box (4,), as cropped; side, int64, 1 right, 0 left; and what
    else the network returns, as it is. Raises ValueError for bad input.
    """
    require(not model.training, "the model is in training mode: call model.eval() first")
    image, keypoint_regressor = np.asarray(image), torch.as_tensor(keypoint_regressor)
    box, K = check_view(image, box, side, K)
    size, official = model.config.image_size, model.config.official
    crop_K, rotation = crop_camera(K, box, size, official)
    if side == "left":
        rotation = np.diag([-1.0, 1.0, 1.0]) @ rotation  # the mirror becomes part of the camera
    crop_to_image = K @ rotation.T @ np.linalg.inv(crop_K)
    samples = 1 if official else min(math.ceil(max(box[2:]) / size), 8)
    crop = cut_out(image, crop_to_image, size, samples)

    hand = {name: value.double().cpu() for name, value in model(crop[None].to(model.mean)).items()}
    require(all(value.isfinite().all() for value in hand.values()),
            "the network's output is not finite: its weights are damaged, or training diverged")
    joints = regress_joints(hand["vertices"], keypoint_regressor.double().cpu())[0].numpy()
    vertices, pixels = hand["vertices"][0].numpy(), hand["keypoints_2d"][0].numpy() * size
    pixels += 0.5 * official  # the release counts pixels from the centre of the first one
    root = fit_translation(joints, pixels, crop_K)
    arrays = {name: value[0].numpy() for name, value in hand.items()} | {
        "vertices": (vertices + root) @ rotation,  # rotation^T x, of row vectors
        "joints": (joints + root) @ rotation, "root": root @ rotation,
        "keypoints_2d": transform(crop_to_image, pixels), "K": K, "box": box,
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()} | {
        "side": np.array(int(side == "right"))}


# ------------------------------------------------------------------------- backbone: FastViT
# Vasu, Gabriel, Zhu, Tuzel, Ranjan: "FastViT: A Fast Hybrid Vision Transformer using Structural
# Reparameterization", ICCV 2023, under timm's parameter names. New weights start from PyTorch's
# defaults; timm starts from a truncated normal distribution.


class Collapsible(nn.Module):
    """Base of layers whose `branched`, in evaluation mode, is equal to one convolution."""

    def __init__(self, channels_in: int, channels_out: int, size: int, stride: int = 1,
                 groups: int = 1) -> None:
        super().__init__()
        self.shape = (channels_in, channels_out, size, stride, size // 2, 1, groups)
        self.reparam_conv: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.branched(x) if self.reparam_conv is None else self.reparam_conv(x)

    @torch.no_grad()
    def collapse(self) -> None:
        """Replace the branches by their convolution, in place.

        In evaluation mode every branch is linear and local, batch norm included. So the response
        of their sum to an image of zeros is the bias, and to images with a single one the kernel.
        """
        if self.reparam_conv is not None:
            return
        channels_in, _, size, stride, middle, _, groups = self.shape
        exact = copy.deepcopy(self).double().eval()
        like, width = next(self.parameters()), channels_in // groups
        ones = torch.eye(width * size**2, dtype=torch.float64, device=like.device)
        ones = ones.view(-1, width, size, size)  # a single one each, at every place of the kernel
        start = middle * (stride - 1)  # where the window of output pixel (middle, middle) starts
        ones = F.pad(ones, (start, 0, start, 0)).repeat(1, groups, 1, 1)
        bias = exact.branched(torch.zeros_like(ones[:1]))[0, :, middle, middle]
        kernel = (exact.branched(ones)[:, :, middle, middle] - bias).T
        conv = nn.Conv2d(*self.shape, device=like.device, dtype=like.dtype)
        conv.weight.copy_(kernel.reshape(conv.weight.shape))
        conv.bias.copy_(bias)
        for name, _ in list(self.named_children()):
            if name not in ("se", "act"):  # MobileOne applies these after the sum
                delattr(self, name)
        self.reparam_conv = conv


class ConvNorm(Collapsible):
    """Convolution without bias, then batch norm."""

    def __init__(self, channels_in: int, channels_out: int, size: int, stride: int = 1,
                 groups: int = 1) -> None:
        super().__init__(channels_in, channels_out, size, stride, groups)
        # With channels last, torch 2.13 on CPUs crashes in the backward pass of a strided 1 x 1
        # convolution that is not depthwise, so such a one slices its input instead.
        self.slicing = stride if size == groups == 1 else 1
        self.conv = nn.Conv2d(channels_in, channels_out, size, stride // self.slicing, size // 2,
                              groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)

    def branched(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x[:, :, :: self.slicing, :: self.slicing]))


class MobileOne(Collapsible):
    """k x k, 1 x 1 and identity branches, each with batch norm; then squeeze-excite and GELU."""

    def __init__(self, channels_in: int, channels_out: int, size: int, stride: int = 1,
                 groups: int = 1, convolve: bool = True, excite: bool = False,
                 activate: bool = True) -> None:
        shape = (channels_in, channels_out, size, stride, groups)
        super().__init__(*shape)
        same = channels_in == channels_out and stride == 1
        self.identity = nn.BatchNorm2d(channels_out) if same else None
        self.conv_kxk = nn.Sequential(ConvNorm(*shape)) if convolve else None
        self.conv_scale = None if size == 1 or not convolve else ConvNorm(
            channels_in, channels_out, 1, stride, groups)
        self.se = SqueezeExcite(channels_out) if excite else nn.Identity()
        self.act = nn.GELU() if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.se(super().forward(x)))

    def branched(self, x: Tensor) -> Tensor:
        branches = (self.identity, self.conv_kxk, self.conv_scale)
        return sum(branch(x) for branch in branches if branch is not None)


class SqueezeExcite(nn.Module):
    """Scales channels by a gate that is computed from their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class LargeKernelConv(Collapsible):
    """Large kernel plus 3 x 3, stride 2.

    No activation follows: the authors' code computes one and discards it, so their weights were
    trained without.
    """

    def __init__(self, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__(channels_in, channels_out, size, 2, channels_in)
        self.large_conv = ConvNorm(channels_in, channels_out, size, 2, channels_in)
        self.small_conv = ConvNorm(channels_in, channels_out, 3, 2, channels_in)

    def branched(self, x: Tensor) -> Tensor:
        return self.large_conv(x) + self.small_conv(x)


class PositionConv(Collapsible):
    """Conditional position encoding before attention."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__(channels, channels, size, 1, channels)
        self.pos_enc = nn.Conv2d(*self.shape)

    def branched(self, x: Tensor) -> Tensor:
        return x + self.pos_enc(x)


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma

    def fold_into(self, layer: nn.Linear | nn.Conv2d) -> nn.Identity:
        """Scale the layer's output channels instead; return what replaces this module."""
        layer.weight.mul_(self.gamma.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.mul_(self.gamma.flatten())
        return nn.Identity()


class RepMixer(Collapsible):
    """Token mixing by depthwise convolution."""

    def __init__(self, channels: int, layer_scale: float) -> None:
        shape = (channels, channels, 3, 1, channels)
        super().__init__(*shape)
        self.norm = MobileOne(*shape, convolve=False, activate=False)
        self.mixer = MobileOne(*shape, activate=False)
        self.layer_scale = LayerScale(channels, layer_scale)

    def branched(self, x: Tensor) -> Tensor:
        return x + self.layer_scale(self.mixer(x) - self.norm(x))


def conv_mlp(channels: int, config: Config) -> nn.Sequential:
    """Depthwise large kernel, then pointwise linear, GELU, linear."""
    hidden = int(channels * config.mlp_ratio)
    require(hidden > 0, f"mlp_ratio is {config.mlp_ratio}: expected more")
    return nn.Sequential(OrderedDict(
        conv=ConvNorm(channels, channels, config.large_kernel, 1, channels),
        fc1=nn.Conv2d(channels, hidden, 1), act=nn.GELU(), fc2=nn.Conv2d(hidden, channels, 1)))


class RepMixerBlock(nn.Module):
    """MetaFormer block with RepMixer, (B, C, H, W) -> the same."""

    def __init__(self, channels: int, config: Config, drop_path: float) -> None:
        super().__init__()
        self.token_mixer = RepMixer(channels, config.layer_scale)
        self.mlp = conv_mlp(channels, config)
        self.layer_scale = LayerScale(channels, config.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.drop_path(self.layer_scale(self.mlp(x)))

    def fold(self) -> None:
        """Fold the scale into the layer before it, in place; a second call does nothing."""
        if isinstance(self.layer_scale, LayerScale):
            self.layer_scale = self.layer_scale.fold_into(self.mlp.fc2)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the cells of a map, heads 32 wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        require(channels % 32 == 0, f"{channels} channels in attention: expected a multiple of 32")
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]  # (B, C, H, W)
        x = self.qkv(x.flatten(2).transpose(1, 2))  # (B, HW, 3C)
        x = x.unflatten(2, (3, -1, 32)).permute(2, 0, 3, 1, 4)  # (3, B, heads, HW, 32)
        x = F.scaled_dot_product_attention(*x)  # (B, heads, HW, 32)
        x = self.proj(x.transpose(1, 2).flatten(2))  # (B, HW, C)
        return x.transpose(1, 2).unflatten(2, size)  # (B, C, H, W)


class AttentionBlock(nn.Module):
    """MetaFormer block with self-attention, (B, C, H, W) -> the same."""

    def __init__(self, channels: int, config: Config, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.token_mixer = SelfAttention(channels)
        self.layer_scale_1 = LayerScale(channels, config.layer_scale)
        self.mlp = conv_mlp(channels, config)
        self.layer_scale_2 = LayerScale(channels, config.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1(self.token_mixer(self.norm(x))))
        return x + self.drop_path(self.layer_scale_2(self.mlp(x)))

    def fold(self) -> None:
        """Fold norm and scales into their neighbours, in place; a second call does nothing."""
        if isinstance(self.norm, nn.Identity):
            return
        qkv, scale = self.token_mixer.qkv, self.norm.weight / (
            self.norm.running_var + self.norm.eps).sqrt()
        qkv.bias = nn.Parameter(qkv.weight @ (self.norm.bias - self.norm.running_mean * scale))
        qkv.weight.mul_(scale)
        self.norm = nn.Identity()
        self.layer_scale_1 = self.layer_scale_1.fold_into(self.token_mixer.proj)
        self.layer_scale_2 = self.layer_scale_2.fold_into(self.mlp.fc2)


class Stage(nn.Module):
    """Downsampling (not in the first stage), position encoding before attention, blocks."""

    def __init__(self, index: int, config: Config, drop_paths: list[float]) -> None:
        super().__init__()
        before, channels = (0, *config.embed_dims)[index : index + 2]
        attention = index == 3  # in MA36's last stage
        block = AttentionBlock if attention else RepMixerBlock
        size = config.large_kernel
        self.downsample = nn.Sequential(OrderedDict(proj=nn.Sequential(
            LargeKernelConv(before, channels, size), MobileOne(channels, channels, 1)
        ))) if index else nn.Identity()
        self.pos_emb = PositionConv(channels, size) if attention else nn.Identity()
        self.blocks = nn.Sequential(*[block(channels, config, rate) for rate in drop_paths])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.pos_emb(self.downsample(x)))


class FastViT(nn.Module):
    """Images (B, 3, S, S) -> X_b, (B, feature_width, S/32, S/32), and again as the last map."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        require(len(config.depths) == len(config.embed_dims) == 4 and config.large_kernel % 2
                and min(config.embed_dims) > 0,
                "depths, embed_dims, large_kernel: expected four of either and an odd number")
        self.channels = config.feature_width
        first, last = config.embed_dims[0], config.embed_dims[-1]
        self.stem = nn.Sequential(  # S/4
            MobileOne(3, first, 3, 2), MobileOne(first, first, 3, 2, first),
            MobileOne(first, first, 1))
        depth = sum(config.depths)
        rates = iter(config.backbone_drop_path * n / max(depth - 1, 1) for n in range(depth))
        self.stages = nn.Sequential(*[  # S/4, S/8, S/16, S/32
            Stage(index, config, [next(rates) for _ in range(blocks)])
            for index, blocks in enumerate(config.depths)])
        self.final_conv = MobileOne(last, config.feature_width, 3, 1, last, excite=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)  # (B, 76, S/4, S/4)
        x = self.stages(x)  # (B, 608, S/32, S/32)
        x = self.final_conv(x)  # (B, 1216, S/32, S/32)
        return x, x

    def reparameterize(self) -> None:
        """Collapse the branches, in place: the layout of timm's and Apple's inference weights."""
        for module in self.modules():  # the branches of a collapsed one do not follow
            if isinstance(module, MobileOne | LargeKernelConv | PositionConv | RepMixer):
                module.collapse()

    @torch.no_grad()
    def fuse(self) -> None:
        """Reparameterise, then fold the remaining norms and layer scales, in place."""
        self.reparameterize()
        for module in list(self.modules()):
            if isinstance(module, ConvNorm):
                module.collapse()
            if isinstance(module, RepMixerBlock | AttentionBlock):
                module.fold()


# ----------------------------------------------------------------------------------- presets

PRESETS: dict[str, Config] = {
    # Sec. 4.1: torchrun with 8 processes, RTX 2080 Ti, 7 hours. The paper starts from FastViT's
    # ImageNet weights (train.py --backbone FILE) and does not say whether the processes share
    # the statistics of their batch norms. train.py shares them, over all 256 samples.
    "paper": Config(),
    # One H200: a batch of 512 is twice the paper's, so half of the steps and, AdamW's rule, the
    # learning rate times sqrt(2). Batch norms see all 512 samples.
    "h200": Config(
        batch_size=512, steps=25_600, warmup_steps=640, learning_rate=7.07e-4),
    # One GPU with 11 GB: the paper's samples per step, which train.py takes in eight parts of 32.
    # Batch norms see 32 samples each, not 256, so this run is not equal to that of "paper".
    "single_gpu": Config(),
    # Two CPU cores: the same design, small enough to learn in minutes, from hands within 15
    # degrees of a frontal view: the whole sphere of views takes longer. Its backbone is not
    # pretrained, so the 2D keypoints, its most direct supervision, weigh as much as the mesh.
    "cpu": Config(
        image_size=64, embed_dims=(32, 64, 128, 256), depths=(1, 1, 1, 1), large_kernel=3,
        mlp_ratio=2.0, feature_width=256, layer_scale=1.0, backbone_drop_path=0.0,
        token_width=64, dims=(64, 32, 16), blocks=(1, 1, 0), heads=1, dropout=0.0, drop_path=0.0,
        output_scale=0.1, weight_keypoints_2d=40.0, batch_size=32, steps=3_800, warmup_steps=100,
        learning_rate=3e-3, schedule="cosine"),
    # The default of tables.py: "cpu" with the paper's three blocks and fewer steps.
    "ablation": Config(
        image_size=64, embed_dims=(32, 64, 128, 256), depths=(1, 1, 1, 1), large_kernel=3,
        mlp_ratio=2.0, feature_width=256, layer_scale=1.0, backbone_drop_path=0.0,
        token_width=64, dims=(64, 32, 16), heads=1, dropout=0.0, drop_path=0.0,
        output_scale=0.1, weight_keypoints_2d=40.0, batch_size=32, steps=500, warmup_steps=100,
        learning_rate=3e-3, schedule="cosine"),
}
