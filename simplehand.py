"""SimpleHand: the 778 vertices of a hand from one RGB crop, the whole paper in one file.

Zhishan Zhou, Shihao Zhou, Zhi Lv, Minqiang Zou, Yao Tang, Jiajun Liang:
"A Simple Baseline for Efficient Hand Mesh Reconstruction", CVPR 2024.

The claim: a mesh decoder needs two things and nothing else. A *token generator* that looks where
the 21 keypoints are, in a feature map fine enough to tell fingers apart, and a *mesh regressor*
that grows those 21 tokens into 778 vertices in a few steps, 21 -> 84 -> 336 -> 778.

    where in the paper                     what                              where in this file
    Sec. 3.1, Fig. 2-D  T(X_b)             token generator                   MeshHead.tokens
    Eq. 1               R = H_k ... H_0    mesh regressor                    MeshHead.regress
    Eq. 2               U_k(MF_k(P_k(.)))  decoder layer                     MeshHead.decoder_layer
    Eq. 3               X_k + emb_k        position embedding                MeshHead.decoder_layer
    Sec. 3.3, Fig. 4    R(T(X_b))          framework                         SimpleHand.forward
    Eq. 4, 5, 6         L1 terms           joints, 2D keypoints, vertices    losses
    Eq. 7               weighted sum       w = 10, 1, 10                     total_loss
    Sec. 4.1            backbone           FastViT-MA36                      FastViT

"The release" is the authors' code of 2024-05-27; where paper and release disagree or are silent,
a comment beside the line says so. Metres, pixels and OpenCV camera axes (x right, y down, z away
from the camera) throughout; an image spans [0, W] x [0, H], so the centre of its first pixel is
(0.5, 0.5). Letters in shapes: B batch, S side of the crop in pixels, C channels, N tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ------------------------------------------------------------------------------------ config


@dataclass(frozen=True)
class Config:
    """Everything that defines a model and its training run. Defaults are the paper's."""

    # Input
    image_size: int = 224  # px, side of the square crop, a multiple of 32 (release)
    official: bool = False  # True: exactly the release, for its checkpoints. It feeds BGR scaled
    # to +-0.5 to weights pretrained on RGB with ImageNet statistics, samples with
    # align_corners=True (up to 4 px off at the borders) and adds a sine map the paper does not
    # mention. False, for new training: RGB with ImageNet statistics, exact sampling, no sine map.

    # Backbone: FastViT-MA36 (Sec. 4.1; the numbers are FastViT's Table 2)
    embed_dims: tuple[int, ...] = (76, 152, 304, 608)  # channels of the four stages
    depths: tuple[int, ...] = (6, 6, 18, 6)  # blocks of the four stages
    mlp_ratio: float = 4.0  # hidden width of the convolutional MLPs
    attention: bool = True  # last stage mixes by self-attention (MA36), else by RepMixer
    feature_width: int = 1216  # channels of the last map, a multiple of embed_dims[-1]
    layer_scale: float = 1e-5  # initial value (timm)
    backbone_drop_path: float = 0.2  # rate at the last block, rising linearly (release)

    # Token generator
    token_width: int = 256  # channels after the 4x deconvolution (Sec. 4.1: first dimension)

    # Mesh regressor
    tokens: tuple[int, ...] = (21, 84, 336)  # tokens entering each decoder layer (Sec. 4.1)
    num_vertices: int = 778  # tokens leaving the last one (MANO)
    dims: tuple[int, ...] = (256, 128, 64)  # feature dimension of each layer (Sec. 4.1)
    blocks: tuple[int, ...] = (1, 1, 1)  # MetaFormer blocks in each layer (Table 7)
    heads: int = 4  # attention heads (release)
    regressor_mlp_ratio: float = 4.0  # (release)
    dropout: float = 0.1  # of the attention weights (release)
    drop_path: float = 0.1  # of both residual branches (release)

    # Loss, Eq. 7 (Sec. 3.4)
    weight_joints: float = 10.0
    weight_keypoints_2d: float = 1.0
    weight_vertices: float = 10.0

    # Optimisation. 100 epochs of FreiHAND's 130,240 images are 13.0 M samples; the release counts
    # 200 "epochs" of 256 steps x 256 samples = 13.1 M. Both halve in the same place.
    batch_size: int = 32  # samples per process (Sec. 4.1: 8 GPUs x 32)
    accumulate: int = 1  # batches per optimiser step (our choice)
    steps: int = 51_200  # optimiser steps: 200 x 256 (release)
    learning_rate: float = 5e-4  # (Sec. 4.1)
    schedule: str = "step"  # "step": / 10 at half of the steps (Sec. 4.1); "cosine"; "constant"
    warmup_steps: int = 1_280  # linear from 0: 5 x 256 (release; the paper is silent)
    weight_decay: float = 1e-2  # AdamW (release; the paper is silent)
    gradient_clip: float = 1.0  # norm (release; the paper is silent)
    precision: str = "fp16"  # "fp32", "bf16" or "fp16" with a gradient scaler (release)
    channels_last: bool = True  # memory format, for speed alone (our choice)
    ema_decay: float = 0.0  # of a moving average of the weights, 0 = off (release)
    eval_every: int = 2_560  # steps between evaluations: 10 x 256 (our choice)
    seed: int = 0  # of initialisation, order and augmentation (our choice)

    # RenderedHands, the free stand-in for FreiHAND (our choice)
    train_samples: int = 130_240  # (as many as FreiHAND has)
    test_samples: int = 1_000
    views: float = 180.0  # degrees, largest turn away from the canonical view; 180 = the sphere

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(getattr(self, field.name), list):  # as read back from a file
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        require(self.image_size > 0 and self.image_size % 32 == 0,
                f"image_size is {self.image_size}: choose a multiple of 32")
        require(len(self.embed_dims) == len(self.depths) == 4,
                f"embed_dims {self.embed_dims} and depths {self.depths}: give four numbers each")
        require(self.feature_width % self.embed_dims[-1] == 0,
                f"feature_width {self.feature_width}: choose a multiple of {self.embed_dims[-1]}")
        require(not self.attention or self.embed_dims[-1] % 32 == 0,
                f"embed_dims[-1] is {self.embed_dims[-1]}: attention heads are 32 wide")
        require(len(self.tokens) == len(self.dims) == len(self.blocks) and self.tokens[0] == 21,
                f"tokens {self.tokens}, dims {self.dims}, blocks {self.blocks}: give one number "
                "per decoder layer each, tokens starting with the 21 keypoints")
        require(all(dim % self.heads == 0 for dim in self.dims),
                f"dims {self.dims}: choose multiples of heads = {self.heads}")


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


PRESETS: dict[str, Config] = {
    # Sec. 4.1: torchrun with 8 processes, RTX 2080 Ti, 7 hours.
    "paper": Config(),
    # One H200: global batch 512 is twice the paper's, so half of the steps and, AdamW's rule,
    # the learning rate times sqrt(2).
    "h200": Config(
        batch_size=512, steps=25_600, warmup_steps=640, learning_rate=7.07e-4, precision="bf16",
        eval_every=1_280,
    ),
    # One GPU with 11 GB: the paper's run, step for step, its eight batches one after another.
    "single_gpu": Config(accumulate=8),
    # Two CPU cores: the same design, small enough to learn in minutes.
    "cpu": Config(
        image_size=128, embed_dims=(24, 48, 96, 192), depths=(1, 1, 2, 1), mlp_ratio=2.0,
        attention=True, feature_width=384, layer_scale=0.1, backbone_drop_path=0.0,
        token_width=128, dims=(128, 64, 32), dropout=0.0, drop_path=0.0,
        batch_size=32, steps=2_000, warmup_steps=100, learning_rate=1e-3, schedule="cosine",
        precision="fp32", channels_last=True, eval_every=500, train_samples=20_000, views=60.0,
    ),
}

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


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class MetaFormerBlock(nn.Module):
    """MF_k of Eq. 2 with the attention mixer, pre-norm: (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.token_mixer = nn.MultiheadAttention(
            width, config.heads, dropout=config.dropout, batch_first=True
        )
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * config.regressor_mlp_ratio))
        self.drop_path = DropPath(config.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop_path(self.token_mixer(y, y, y, need_weights=False)[0])
        return x + self.drop_path(self.mlp(self.norm2(x)))


class LinearUpsample(nn.Module):
    """U_k of Eq. 2: a single linear layer over the tokens, (B, N, C) -> (B, N', C)."""

    def __init__(self, tokens_in: int, tokens_out: int) -> None:
        super().__init__()
        self.upsample = nn.Linear(tokens_in, tokens_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(x.transpose(1, 2)).transpose(1, 2)


class MeshHead(nn.Module):
    """Token generator T and mesh regressor R (Fig. 4), under the release's parameter names."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.official = config.official
        # Kernel equals stride: each cell of X_b becomes its own 4 x 4 patch.
        self.deconv = nn.Sequential(
            nn.ConvTranspose2d(config.feature_width, config.token_width, 4, 4, bias=False),
            nn.BatchNorm2d(config.token_width),
            nn.ReLU(),
        )
        widths = (config.token_width, *config.dims)
        tokens = (*config.tokens, config.num_vertices)
        self.num_layers = len(config.tokens)
        for k in range(1, self.num_layers + 1):
            embedding = torch.empty(1, tokens[k - 1], widths[k - 1])
            blocks = [MetaFormerBlock(widths[k], config) for _ in range(config.blocks[k - 1])]
            setattr(self, f"pos_emb_{k}", nn.Parameter(nn.init.trunc_normal_(embedding, std=0.02)))
            setattr(self, f"proj_{k}", nn.Linear(widths[k - 1], widths[k]))
            setattr(self, f"encoder_{k}", nn.Sequential(*blocks))
            setattr(self, f"upsample_{k}", LinearUpsample(tokens[k - 1], tokens[k]))
        self.pred_final = nn.Linear(widths[-1], 3)

    def forward(self, features: Tensor, keypoints_2d: Tensor) -> Tensor:
        """Vertices R(T(X_b)), (B, 778, 3) metres, from X_b and the keypoints to sample at."""
        return self.regress(self.tokens(features, keypoints_2d))

    def tokens(self, features: Tensor, keypoints_2d: Tensor) -> Tensor:
        """Token generator: X_b (B, C, S/32, S/32), keypoints (B, 21, 2) in 0..1 -> (B, 21, C')."""
        features = self.deconv(features)  # (B, C', S/8, S/8)
        if self.official:
            features = features + sine_map(features)
        # Not detached: mesh losses also move the keypoints (zero gradient where clamped).
        grid = (2.0 * keypoints_2d - 1.0).clamp(-1.0, 1.0).unsqueeze(2)  # (B, 21, 1, 2)
        # The release puts 0 and 1 on the *centres* of the border cells, (S/8 - 1) u instead of
        # S/8 u - 0.5. Beyond those centres ours repeats the border; the release never gets there.
        sampled = F.grid_sample(
            features.to(grid.dtype), grid, padding_mode="border", align_corners=self.official
        )
        return sampled.squeeze(3).transpose(1, 2)  # (B, 21, C')

    def regress(self, x: Tensor) -> Tensor:
        """Mesh regressor: tokens X_0 = X_m (B, 21, C') -> vertices (B, 778, 3)."""
        for k in range(1, self.num_layers + 1):  # Eq. 1; the release counts from 1, not 0
            x = self.decoder_layer(k, x)
        return full_precision(self.pred_final, x)

    def decoder_layer(self, k: int, x: Tensor) -> Tensor:
        """H_k: more tokens, fewer channels, as (B, 21, 256) -> (B, 84, 256) -> (B, 336, 128)."""
        emb, project, metaformer, upsample = (
            getattr(self, f"{part}_{k}") for part in ("pos_emb", "proj", "encoder", "upsample")
        )
        x = x + emb  # Eq. 3; on the layer's input, before P_k (release), as Sec. 3.3 can be read
        return upsample(metaformer(project(x)))  # Eq. 2


def full_precision(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply the layer outside autocast: in bf16 a coordinate of 0.1 m is only good to 0.4 mm."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(layer.weight.dtype))


def sine_map(features: Tensor) -> Tensor:
    """Fixed position map of the release (DETR's), (C, H, W) like `features`: y first, then x."""
    channels, height, width = features.shape[1:]
    half = channels // 2
    exponent = torch.arange(half, device=features.device) // 2 * 2 / half

    def encode(length: int) -> Tensor:  # (half, length), sine and cosine interleaved
        position = torch.arange(1, length + 1, device=features.device) / (length + 1e-6)
        angle = 2.0 * math.pi * position / 10_000.0 ** exponent[:, None]
        return torch.stack((angle[0::2].sin(), angle[1::2].cos()), 1).flatten(0, 1)

    y = encode(height)[:, :, None].expand(half, height, width)
    x = encode(width)[:, None, :].expand(half, height, width)
    return torch.cat((y, x)).to(features.dtype)


class SimpleHand(nn.Module):
    """The framework of Fig. 4: backbone, 2D keypoint head, token generator, mesh regressor."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = FastViT(config)
        self.keypoints_2d_head = nn.Linear(config.feature_width, 2 * config.tokens[0])
        self.mesh_head = MeshHead(config)
        if not config.official:  # start in the middle of the crop, where sampling has a gradient
            nn.init.constant_(self.keypoints_2d_head.bias, 0.5)
        mean, std = ((0.5,) * 3, (1.0,) * 3) if config.official else (
            (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, as in pretraining
        )
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict the hand of each crop.

        images: (B, 3, S, S) RGB of *right* hands (mirror left ones first), uint8 or floats in
            0..255, S a multiple of 32.
        Returns vertices (B, 778, 3), metres in the crop's camera axes with joint 9 (base of the
        middle finger) as origin, and keypoints_2d (B, 21, 2), fractions of the crop 0..1.
        Raises ValueError for another shape.
        """
        features = self.backbone(self.normalise(images))  # X_b, (B, C, S/32, S/32)
        pooled = features.mean((2, 3))  # "global feature" of Fig. 4
        keypoints_2d = full_precision(self.keypoints_2d_head, pooled).unflatten(1, (-1, 2))
        return {"vertices": self.mesh_head(features, keypoints_2d), "keypoints_2d": keypoints_2d}

    def normalise(self, images: Tensor) -> Tensor:
        """RGB 0..255 -> what the backbone was trained on; the release's BGR when official."""
        require(
            images.ndim == 4 and images.shape[1] == 3 and not any(n % 32 for n in images.shape[2:]),
            f"images of shape {tuple(images.shape)}: expected (B, 3, S, S), S a multiple of 32",
        )
        if self.config.official:
            images = images.flip(1)
        return (images.to(self.mean.dtype) / 255.0 - self.mean) / self.std

    def fuse(self) -> SimpleHand:
        """A copy for inference: every branch, norm and scale folded into its convolution."""
        fused = copy.deepcopy(self).eval()
        fused.backbone.fuse()
        fold_norm(fused.mesh_head.deconv, "0", "1")
        return fused


# ------------------------------------------------------------------------- backbone: FastViT
# Vasu, Gabriel, Zhu, Tuzel, Ranjan: "FastViT: A Fast Hybrid Vision Transformer using Structural
# Reparameterization", ICCV 2023, under timm's parameter names. While training, convolutions have
# parallel branches; in evaluation mode all of them are linear, so their sum is one convolution.


def folded(norm: nn.BatchNorm2d, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel and bias of norm(conv(x)), conv without bias, in evaluation mode."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return kernel * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


def identity_kernel(channels: int, groups: int, size: int, like: Tensor) -> Tensor:
    """The convolution that changes nothing, (C, C / groups, size, size), typed as `like`."""
    kernel = like.new_zeros(channels, channels // groups, size, size)
    index = torch.arange(channels, device=like.device)
    kernel[index, index % (channels // groups), size // 2, size // 2] = 1.0
    return kernel


@torch.no_grad()
def fold_norm(module: nn.Module, conv_name: str, norm_name: str) -> None:
    """Fold a batch norm into the convolution (or deconvolution) before it."""
    conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
    output_first = (lambda w: w.transpose(0, 1)) if conv.transposed else (lambda w: w)
    kernel, bias = folded(norm, output_first(conv.weight))
    conv.weight.copy_(output_first(kernel))
    conv.bias = nn.Parameter(bias)
    setattr(module, norm_name, nn.Identity())


@torch.no_grad()
def fold_scale(module: nn.Module, scale_name: str, layer: nn.Linear | nn.Conv2d) -> None:
    """Fold a layer scale into the linear map before it."""
    gamma = getattr(module, scale_name).gamma.flatten()
    layer.weight.mul_(gamma.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.mul_(gamma)
    setattr(module, scale_name, nn.Identity())


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm."""

    def __init__(
        self, channels_in: int, channels_out: int, size: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in, channels_out, size, stride, size // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def collapsed(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the whole."""
        return folded(self.bn, self.conv.weight)


class Collapsible(nn.Module):
    """Linear branches with one convolution's worth of function; subclasses list the `branches`,
    compute with them in `branched` and say in `collapsed` which convolution they amount to."""

    branches: tuple[str, ...] = ()

    def __init__(
        self, channels_in: int, channels_out: int, size: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.shape = (channels_in, channels_out, size, stride, size // 2, 1, groups)
        self.reparam_conv: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.branched(x) if self.reparam_conv is None else self.reparam_conv(x)

    @torch.no_grad()
    def collapse(self) -> None:
        """Replace the branches by their convolution."""
        kernel, bias = self.collapsed()
        conv = nn.Conv2d(*self.shape, device=kernel.device, dtype=kernel.dtype)
        conv.weight.copy_(kernel)
        conv.bias.copy_(bias)
        for name in self.branches:
            if name in self._modules:
                delattr(self, name)
        self.reparam_conv = conv


class MobileOne(Collapsible):
    """k x k, 1 x 1 and identity branches, each with batch norm, summed; then SE and activation."""

    branches = ("conv_kxk", "conv_scale", "identity")

    def __init__(
        self, channels_in: int, channels_out: int, size: int, stride: int = 1, groups: int = 1,
        convolve: bool = True, excite: bool = False, activate: bool = True,
    ) -> None:
        super().__init__(channels_in, channels_out, size, stride, groups)
        if channels_in == channels_out and stride == 1:
            self.identity = nn.BatchNorm2d(channels_out)
        if convolve:
            branch = ConvNorm(channels_in, channels_out, size, stride, groups)
            self.conv_kxk = nn.ModuleList([branch])
        if convolve and size > 1:
            self.conv_scale = ConvNorm(channels_in, channels_out, 1, 1, groups)
        self.se = SqueezeExcite(channels_out) if excite else nn.Identity()
        self.act = nn.GELU() if activate else nn.Identity()

    def branched(self, x: Tensor) -> Tensor:
        # A 1 x 1 kernel of stride n reads every n-th pixel. Slicing them out says the same and
        # avoids a crash of torch 2.13: strided 1 x 1, channels last, backward on CPU.
        stride = self.shape[3]
        parts = []
        if hasattr(self, "identity"):
            parts.append(self.identity(x))
        if hasattr(self, "conv_kxk"):
            parts.append(self.conv_kxk[0](x))
        if hasattr(self, "conv_scale"):
            parts.append(self.conv_scale(x[:, :, ::stride, ::stride]))
        return sum(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.se(super().forward(x)))

    def collapsed(self) -> tuple[Tensor, Tensor]:
        _, channels, size, *_, groups = self.shape
        parts = []
        if hasattr(self, "identity"):
            identity = identity_kernel(channels, groups, size, self.identity.weight)
            parts.append(folded(self.identity, identity))
        if hasattr(self, "conv_kxk"):
            parts.append(self.conv_kxk[0].collapsed())
        if hasattr(self, "conv_scale"):
            kernel, bias = self.conv_scale.collapsed()
            parts.append((F.pad(kernel, [size // 2] * 4), bias))
        kernels, biases = zip(*parts, strict=True)
        return sum(kernels), sum(biases)


class SqueezeExcite(nn.Module):
    """Scale channels by a gate computed from their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, max(channels // 16, 1), 1)
        self.fc2 = nn.Conv2d(max(channels // 16, 1), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class LargeKernelConv(Collapsible):
    """7 x 7 plus 3 x 3, stride 2. No activation: the original computes one and discards it, so
    the published weights never saw it."""

    branches = ("large_conv", "small_conv")

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 7, 2, channels_in)
        self.large_conv = ConvNorm(channels_in, channels_out, 7, 2, channels_in)
        self.small_conv = ConvNorm(channels_in, channels_out, 3, 2, channels_in)

    def branched(self, x: Tensor) -> Tensor:
        return self.large_conv(x) + self.small_conv(x)

    def collapsed(self) -> tuple[Tensor, Tensor]:
        (large, large_bias), (small, small_bias) = (
            self.large_conv.collapsed(), self.small_conv.collapsed()
        )
        return large + F.pad(small, [2] * 4), large_bias + small_bias


class PositionConv(Collapsible):
    """Conditional position encoding before attention: x + depthwise 7 x 7 of x."""

    branches = ("pos_enc",)

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 7, 1, channels)
        self.pos_enc = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels)

    def branched(self, x: Tensor) -> Tensor:
        return x + self.pos_enc(x)

    def collapsed(self) -> tuple[Tensor, Tensor]:
        kernel = self.pos_enc.weight
        channels = kernel.shape[0]
        return kernel + identity_kernel(channels, channels, 7, kernel), self.pos_enc.bias


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class RepMixer(Collapsible):
    """Depthwise token mixing: x + scale * (mixer(x) - norm(x))."""

    branches = ("mixer", "norm", "layer_scale")

    def __init__(self, channels: int, layer_scale: float) -> None:
        super().__init__(channels, channels, 3, 1, channels)
        self.norm = MobileOne(
            channels, channels, 3, groups=channels, convolve=False, activate=False
        )
        self.mixer = MobileOne(channels, channels, 3, groups=channels, activate=False)
        self.layer_scale = LayerScale(channels, layer_scale)

    def branched(self, x: Tensor) -> Tensor:
        return x + self.layer_scale(self.mixer(x) - self.norm(x))

    def collapsed(self) -> tuple[Tensor, Tensor]:
        (mixer, mixer_bias), (norm, norm_bias) = self.mixer.collapsed(), self.norm.collapsed()
        gamma, channels = self.layer_scale.gamma, mixer.shape[0]
        identity = identity_kernel(channels, channels, 3, mixer)
        kernel = identity + gamma[..., None] * (mixer - norm)
        return kernel, gamma.flatten() * (mixer_bias - norm_bias)


class ConvMlp(nn.Module):
    """Depthwise 7 x 7 with batch norm, then a pointwise MLP."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.conv = ConvNorm(channels, channels, 7, groups=channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.conv(x))))


class RepMixerBlock(nn.Module):
    """Convolutional MetaFormer block, (B, C, H, W) -> the same."""

    def __init__(self, channels: int, config: Config, drop_path: float) -> None:
        super().__init__()
        self.token_mixer = RepMixer(channels, config.layer_scale)
        self.mlp = ConvMlp(channels, config.mlp_ratio)
        self.layer_scale = LayerScale(channels, config.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.drop_path(self.layer_scale(self.mlp(x)))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the cells of a map, heads 32 wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // 32
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        for linear in (self.qkv, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        qkv = self.qkv(x.flatten(2).transpose(1, 2))  # (B, HW, 3C)
        qkv = qkv.unflatten(2, (3, self.heads, 32)).permute(2, 0, 3, 1, 4)  # (3, B, heads, HW, 32)
        x = F.scaled_dot_product_attention(*qkv)  # (B, heads, HW, 32)
        x = self.proj(x.transpose(1, 2).flatten(2))  # (B, HW, C)
        return x.transpose(1, 2).unflatten(2, size)


class AttentionBlock(nn.Module):
    """Attention MetaFormer block, (B, C, H, W) -> the same."""

    def __init__(self, channels: int, config: Config, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.token_mixer = SelfAttention(channels)
        self.layer_scale_1 = LayerScale(channels, config.layer_scale)
        self.mlp = ConvMlp(channels, config.mlp_ratio)
        self.layer_scale_2 = LayerScale(channels, config.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1(self.token_mixer(self.norm(x))))
        return x + self.drop_path(self.layer_scale_2(self.mlp(x)))


class Downsample(nn.Module):
    """Half the resolution: depthwise large kernel, then pointwise."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            LargeKernelConv(channels_in, channels_out), MobileOne(channels_out, channels_out, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Stage(nn.Module):
    """Downsampling (but in the first stage), position encoding before attention, blocks."""

    def __init__(self, index: int, config: Config, drop_paths: list[float]) -> None:
        super().__init__()
        channels = config.embed_dims[index]
        attention = config.attention and index == 3
        self.downsample = (
            Downsample(config.embed_dims[index - 1], channels) if index > 0 else nn.Identity()
        )
        self.pos_emb = PositionConv(channels) if attention else nn.Identity()
        block = AttentionBlock if attention else RepMixerBlock
        self.blocks = nn.Sequential(*[block(channels, config, rate) for rate in drop_paths])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.pos_emb(self.downsample(x)))


class FastViT(nn.Module):
    """Images (B, 3, S, S) -> the last feature map X_b, (B, feature_width, S/32, S/32)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, last = config.embed_dims[0], config.embed_dims[-1]
        self.stem = nn.Sequential(
            MobileOne(3, first, 3, stride=2),
            MobileOne(first, first, 3, stride=2, groups=first),
            MobileOne(first, first, 1),
        )  # S/4
        rates = torch.linspace(0.0, config.backbone_drop_path, sum(config.depths), device="cpu")
        self.stages = nn.Sequential(*[
            Stage(index, config, part.tolist())
            for index, part in enumerate(rates.split(config.depths))
        ])  # S/4, S/8, S/16, S/32
        self.final_conv = MobileOne(last, config.feature_width, 3, groups=last, excite=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.final_conv(self.stages(self.stem(x)))

    def reparameterize(self) -> None:
        """Collapse all branches in place; the layout of timm's and Apple's inference weights."""
        for module in list(self.modules()):
            if isinstance(module, Collapsible):
                module.collapse()

    def fuse(self) -> None:
        """Reparameterise, then also fold what those leave: MLP norms and layer scales."""
        self.reparameterize()
        for module in list(self.modules()):
            if isinstance(module, ConvMlp):
                fold_norm(module.conv, "conv", "bn")
            elif isinstance(module, RepMixerBlock):
                fold_scale(module, "layer_scale", module.mlp.fc2)
            elif isinstance(module, AttentionBlock):
                fold_scale(module, "layer_scale_1", module.token_mixer.proj)
                fold_scale(module, "layer_scale_2", module.mlp.fc2)


# ------------------------------------------------------------------------------------ losses


def regress_joints(vertices: Tensor, keypoint_regressor: Tensor) -> Tensor:
    """J_3d = J V_3d (Sec. 3.4): (B, 778, 3) -> (B, 21, 3), wrist, thumb to pinky, base to tip.

    keypoint_regressor (21, 778) acts on the *posed* vertices: sixteen rows of MANO's joint
    regressor and five fingertip vertices. Joints from MANO's skeleton are another quantity:
    scored against those, a perfect mesh has a PA-MPJPE of 3.26 mm.
    """
    return torch.einsum("jv,bvc->bjc", keypoint_regressor, vertices)


def make_targets(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of samples (camera-frame metres, crop pixels) in the units of the predictions."""
    root = batch["joints"][:, 9:10]
    return {
        "vertices": batch["vertices"] - root,
        "joints": batch["joints"] - root,
        "keypoints_2d": batch["keypoints_2d"] / batch["image"].shape[-1],
        "keypoints_valid": batch["keypoints_valid"],
        "mesh_valid": batch["mesh_valid"][:, None],
    }


def losses(
    prediction: dict[str, Tensor], batch: dict[str, Tensor], keypoint_regressor: Tensor
) -> dict[str, Tensor]:
    """The three unweighted terms of Eq. 4 to 6, each a scalar.

    1/M ||.||_1 is read as the release does: summed over coordinates, mean over the M points. An
    invalid keypoint or mesh counts as zero error, not as one point less, so that the mean over
    a batch is the mean of the means over its parts.
    """
    target = make_targets(batch)
    joints = regress_joints(prediction["vertices"], keypoint_regressor)

    def l1(predicted: Tensor, name: str, valid: str) -> Tensor:
        return ((predicted - target[name]).abs().sum(-1) * target[valid]).mean()

    return {
        "joints": l1(joints, "joints", "mesh_valid"),  # Eq. 4
        "keypoints_2d": l1(prediction["keypoints_2d"], "keypoints_2d", "keypoints_valid"),  # Eq. 5
        "vertices": l1(prediction["vertices"], "vertices", "mesh_valid"),  # Eq. 6
    }


def total_loss(terms: dict[str, Tensor], config: Config) -> Tensor:
    """Eq. 7."""
    return (
        config.weight_joints * terms["joints"]
        + config.weight_keypoints_2d * terms["keypoints_2d"]
        + config.weight_vertices * terms["vertices"]
    )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Groups for AdamW: weight decay on matrices and kernels alone.

    Biases, norms, layer scales and position embeddings are spared (our choice). The release
    spares only names with "bn" or "bias" in them, so decays most of these too.
    """
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        spared = parameter.squeeze().ndim < 2 or "pos_emb_" in name
        groups[not spared].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
