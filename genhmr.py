"""GenHMR: generate the pose of a person in a picture as 96 tokens. The whole paper in one file.

Muhammad Usama Saleem, Ekkasit Pinyoanuntapong, Pu Wang, Hongfei Xue, Srijan Das, Chen Chen:
"GenHMR: Generative Human Mesh Recovery", AAAI 2025.

Depth is ambiguous in a picture, so the paper generates a pose instead of regressing it. Stage 1
trains a pose tokenizer: a VQ-VAE that turns a pose into 96 tokens, indices into a codebook of 2048
codes. Stage 2 trains a transformer that predicts masked tokens from the other tokens and the
picture. Inference starts with all tokens masked; each iteration keeps the most confident
predictions and masks the others again. Gradient steps on the codes of these tokens then move the
body onto 2D keypoints.

    in the paper                   what                                   in this file
    "Pose Tokenizer"   argmin_k    nearest code                           Quantiser.nearest
                       L_vq, L_re  loss of stage 1                        tokenizer_losses
    "Masked Transformer Decoder"   MSDA                                   DeformableAttention
    "Generative Masking" gamma     number of masked tokens in training    random_mask
    Eq. 1              L_mask      -log p(y_i | Y_M, X)                   mask_loss
    Eq. 5              tau_t       temperature of the Gumbel noise        gumbel_temperature
    Eq. 6              p_mk        Gumbel-softmax, straight-through       relax
    "Camera Model"     Pi(K(J+T))  projection                             project_to_crop
    "Training Strategy" L_total    loss of stage 2                        losses, total_loss
    "Uncertainty-Guided Sampling"  iterative decoding                     sample_from
    "Mask Scheduling Function"     four mask schedules                    SCHEDULES
    Eq. 2, 3, 4        G, L_2D, Y+ 2D pose-guided refinement              refine

The authors have not published code. Where the paper is silent we follow HMR2.0 (Goel et al.,
"Humans in 4D", ICCV 2023), whose loss weights, learning rate and batch size it has, or TokenHMR
(Dwivedi et al., CVPR 2024), or choose ourselves; every field of the configs names its source.
Where the paper contradicts itself, a comment beside the line says so.

The image encoder is an argument: GenHMR(config) has the paper's ViT-H, GenHMR(config, encoder) any
module that returns tokens on the config's grid. To open a checkpoint of train.py with this file:

    content = torch.load(FILE, weights_only=True, map_location="cpu")
    config = {name: x for name, x in content["config"].items() if name in Config.__annotations__}
    model = GenHMR(Config(**config), encoder)  # older files have more fields
    model.load_state_dict(content["model"])

Units are metres and radians; camera axes are OpenCV's (x right, y down, z away from the camera); a
6D rotation is [column 0, column 1]. Letters in shapes: B batch, L tokens of a pose (96), V codes
(2048), C their dimension (256), S side of the crop in pixels, N cells of the image encoder (192),
D width, H heads, P points of attention or, in refinement, its steps, T iterations of sampling.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

JOINTS = 24  # SMPL's: the global orientation, 21 of the body, 2 of the hands; all become tokens
KEYPOINTS = 45  # the joints and 21 points of the surface: nose, eyes, ears, toes, heels, tips

# ------------------------------------------------------------------------------------ config


def require(condition: object, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything that defines a pose tokenizer and its training, stage 1. Defaults: the paper's."""

    # Network
    num_tokens: int = 96  # L, 24 * 2^k (paper, Table 6: 48, 96, 192, 384)
    codebook_size: int = 2048  # V (paper, Table 5: 1024, 2048, 4096)
    code_dim: int = 256  # C (paper, Table 5: 128, 256)
    width: int = 512  # channels of the convolutions (TokenHMR)
    depth: int = 2  # residual blocks in the encoder and in the decoder (TokenHMR)
    normalise: bool = False  # embeddings to mean 0 and variance 1, each by itself (our choice)
    corruption: float = 0.0  # largest share of random tokens in training, see corrupt (our choice)

    # Codebook: moving averages, and a restart of unused codes (paper)
    momentum: float = 0.99  # of the averages (TokenHMR; the paper is silent)

    # Loss. L_vq = re L_re + E |sg[z] - c| + alpha |z - sg[c]|, L_re = pose + vertices + joints
    weight_embedding: float = 0.02  # lambda_E (paper); no gradient, as averages move the codes
    weight_commitment: float = 0.02  # lambda_alpha (TokenHMR; the paper does not give it)
    weight_pose: float = 1.0  # lambda_theta (paper, of "pose parameters"; here of matrices)
    weight_vertices: float = 0.5  # lambda_V, per metre (paper)
    weight_joints: float = 0.3  # lambda_J, per metre (paper)
    vertex_stride: int = 1  # L_V uses every n-th vertex; 1: all (paper), 0: 21 surface keypoints

    # Optimisation: Adam, on poses turned "at varying degrees" (paper)
    batch_size: int = 512  # samples per optimiser step, over all processes (paper)
    steps: int = 200_000  # optimiser steps (paper)
    learning_rate: float = 1e-4  # (paper)
    schedule: str = "constant"  # or "step": / 10 at half of the steps, "cosine" (our choice)
    warmup_steps: int = 1_000  # linear from 0 (our choice)
    weight_decay: float = 0.0  # Adam (paper)
    gradient_clip: float = 1.0  # norm (our choice)

    def __post_init__(self) -> None:
        require(self.num_tokens in [JOINTS * 2**k for k in range(1, 10)],
                f"num_tokens is {self.num_tokens}: expected 48, 96, 192, 384, ... (24 * 2^k)")
        require(0.0 <= self.momentum < 1.0, f"momentum is {self.momentum}: expected 0 <= m < 1")
        require(self.depth <= 100, f"depth is {self.depth}: expected 1 to 100")
        require(0.0 <= self.corruption <= 1.0, f"corruption is {self.corruption}: expected 0 to 1")
        for name in ("codebook_size", "code_dim", "width", "depth"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}: expected > 0")


@dataclass(frozen=True)
class Config:
    """Everything that defines a GenHMR and its training, stage 2. Defaults: the paper's."""

    tokenizer: TokenizerConfig = TokenizerConfig()  # of the frozen tokenizer inside (paper)

    # Input. The crop is square; the encoder sees its middle three quarters (HMR2.0)
    image_size: int = 256  # px, S, a multiple of 64 (HMR2.0)

    # Image encoder: ViT-H/16 (paper). Another encoder must return as many tokens, as wide
    patch_size: int = 16  # px (paper)
    vit_dim: int = 1280  # D, channels of a token (ViT-H)
    vit_depth: int = 32  # (ViT-H)
    vit_heads: int = 16  # (ViT-H)

    # Feature maps, "inspired by ViT-Det"
    scales: tuple[int, ...] = (1, 4, 8)  # times the encoder's resolution (paper, the appendix). Its
    # Table 15 has 68.8 mm on 3DPW for these, 68.3 with 16x as well; its other tables have 68.1
    pyramid_width: int = 256  # channels of the maps (our choice: ViTDet's)

    # Masked transformer
    width: int = 256  # channels of the queries (our choice: Deformable-DETR's)
    heads: int = 8  # H, of both attentions (our choice: Deformable-DETR's)
    points: int = 4  # P, sampled per head and map (our choice: Deformable-DETR's)
    layers: int = 4  # (paper, Table 16)

    # Shape and camera, "directly regressed from the image features" (paper)
    regressor_width: int = 1024  # hidden width (our choice)

    # Loss. L_mask is a mean over tokens and samples. The other terms are 48 times a mean over
    # samples: HMR2.0's weights are for sums over the 48 samples of a process
    tau_max: float = 1.0  # largest tau (paper; Table 4: 0.7 is best on 3DPW, 1 in EMDB's MPJPE)
    mask_loss_on: str = "all"  # tokens (paper, Eq. 1), or only "masked" ones (MaskGIT)
    weight_mask: float = 1.0  # (paper)
    weight_keypoints_3d: float = 5e-2  # per metre (paper)
    weight_keypoints_2d: float = 1e-2  # per side of the crop (paper)
    weight_pose: float = 1e-3  # lambda_theta (paper); lambda_SMPL = 1.5e-3 is the sum of this
    weight_betas: float = 5e-4  # and this (paper), not another factor

    # Temperature of the Gumbel-softmax, Eq. 5
    temperature_start: float = 1.0  # (paper)
    temperature_end: float = 0.01  # (paper)
    temperature_duration: float = 0.5  # fraction of the steps; constant afterwards (paper: 50 %
    # "slightly compromise generalization", but it is the best row of Table 9 in all but one cell)

    # Optimisation: Adam on 2 GPUs
    batch_size: int = 96  # over all processes: 2 GPUs x 48 (paper, read as HMR2.0 means its 48)
    steps: int = 300_000  # optimiser steps (our choice: the paper is silent)
    learning_rate: float = 1e-5  # (paper)
    schedule: str = "constant"  # or "step": / 10 at half of the steps, "cosine" (HMR2.0)
    warmup_steps: int = 1_000  # linear from 0 (our choice)
    weight_decay: float = 0.0  # Adam (paper); HMR2.0 has 1e-4
    gradient_clip: float = 1.0  # norm; Gumbel gradients grow as it cools (our choice)

    def __post_init__(self) -> None:
        if isinstance(self.tokenizer, Mapping):  # from a checkpoint
            object.__setattr__(self, "tokenizer", TokenizerConfig(**self.tokenizer))
        object.__setattr__(self, "scales", tuple(self.scales))
        for name, valid, rule in (
            ("image_size", self.image_size > 0 and self.image_size % (4 * self.patch_size) == 0,
             f"a multiple of {4 * self.patch_size}, four patches"),
            ("vit_depth", 0 < self.vit_depth <= 1000, "1 to 1000"),
            ("scales", self.scales and {2**k for k in range(10)}.issuperset(self.scales)
             and self.vit_dim % max(self.scales) == 0, "powers of 2 that divide vit_dim"),
            ("heads", self.width % self.heads == 0, "a divisor of width"),
            ("layers", 0 < self.layers <= 1000, "1 to 1000"),
            ("tau_max", 0 < self.tau_max <= 1, "above 0, at most 1"),
            ("mask_loss_on", self.mask_loss_on in ("all", "masked"), "'all' or 'masked'"),
            ("temperature_end", 0 < self.temperature_end <= self.temperature_start,
             "above 0, at most temperature_start"),
            ("temperature_duration", self.temperature_duration > 0, "a part of the steps, above 0"),
        ):
            require(valid, f"{name} is {getattr(self, name)}: expected {rule}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the encoder's cells, the patches of a crop."""
        rows = self.image_size // self.patch_size
        return rows, 3 * rows // 4

    @property
    def map_sizes(self) -> list[tuple[int, int]]:
        """Rows and columns of each feature map."""
        return [(scale * self.grid[0], scale * self.grid[1]) for scale in self.scales]

    @property
    def focal(self) -> float:
        """Focal length in sides of the crop: fixed (paper), 5000 px for 256 px (HMR2.0)."""
        return 5000.0 / 256.0


# ------------------------------------------------------------------------ rotations, cameras


def unit(vector: Tensor, fallback: Tensor, shortest: float) -> Tensor:
    """Scale vectors (..., 3) to length 1; those below `shortest` become `fallback`, no gradient."""
    degenerate = vector.abs().amax(-1, keepdim=True) <= shortest
    vector = torch.where(degenerate, fallback, vector)
    vector = vector / vector.detach().abs().amax(-1, keepdim=True)  # 1e20 squared would overflow
    return vector / vector.norm(dim=-1, keepdim=True)


def rotation_6d_to_matrix(rotation_6d: Tensor) -> Tensor:
    """Convert [column 0, column 1] (..., 6) to rotation matrices (..., 3, 3), by Gram-Schmidt.

    Zhou et al., "On the Continuity of Rotation Representations", CVPR 2019. Zero and parallel
    columns fall back to an axis, so values and gradients are always finite.
    """
    first, second = rotation_6d.unflatten(-1, (2, 3)).unbind(-2)
    first = unit(first, torch.eye(3, dtype=first.dtype, device=first.device)[0], 1e-12)
    axis = F.one_hot(first.abs().argmin(-1), 3).to(first)  # the one least parallel to `first`

    def orthogonal(vector: Tensor) -> Tensor:
        return vector - (first * vector).sum(-1, keepdim=True) * first

    second = unit(second, first, 1e-12)
    second = unit(orthogonal(second), orthogonal(axis), 8 * torch.finfo(first.dtype).eps)
    second = unit(orthogonal(second), second, 0.0)  # again: cancellation left a part of `first`
    return torch.stack((first, second, torch.linalg.cross(first, second)), -1)


def matrix_to_rotation_6d(matrix: Tensor) -> Tensor:
    """Convert rotation matrices (..., 3, 3) to [column 0, column 1] (..., 6)."""
    return matrix[..., :2].mT.flatten(-2)


def camera_translation(camera: Tensor, focal: float) -> Tensor:
    """Convert a camera [s, tx, ty] (B, 3) to a translation T (B, 3) in metres (HMR2.0).

    focal: in sides of the crop, config.focal. The paper calls this a "weak perspective camera", but
    s only sets the depth of a perspective one. A metre at that depth covers s / 2 of the crop;
    s = 0.9 is 43.4 m away.
    """
    s, x, y = camera.unbind(-1)
    return torch.stack((x, y, 2.0 * focal / (s + 1e-9)), -1)


def project_to_crop(points: Tensor, camera: Tensor, focal: float) -> Tensor:
    """Project points (B, J, 3) in metres to the crop: (B, J, 2), its sides at -0.5 and 0.5.

    J_2D = Pi(K (J_3D + T)), without a rotation. camera: (B, 3), s, tx, ty. focal: config.focal.
    """
    points = points + camera_translation(camera, focal)[:, None]  # Eq. 3 forgets T
    return focal * points[..., :2] / points[..., 2:]


# ------------------------------------------------------------------- stage 1: pose tokenizer


class ResidualBlock(nn.Module):
    """x + conv(relu(dilated conv(relu(x)))), without norms: (B, D, n) -> the same."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.dilated = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.pointwise = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(F.relu(self.dilated(F.relu(x))))


def pose_encoder(config: TokenizerConfig) -> nn.Sequential:
    """Make E: 6D rotations along the list of joints (B, 6, 24) -> embeddings z (B, C, L).

    TokenHMR's network without its rounding of lengths to tens: the lengths are those of Table 6.
    The paper encodes axis-angles, theta (24, 3); we encode 6D, as TokenHMR does (its 6D are rows).
    """
    width, length = config.width, 2 * JOINTS
    layers = [nn.Conv1d(6, width, 3, padding=1), nn.ReLU(),
              nn.Upsample(length), nn.Conv1d(width, width, 3, padding=1), nn.ReLU()]
    while length < 2 * config.num_tokens:
        length *= 2
        layers += [nn.Upsample(length), nn.Conv1d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.Conv1d(width, width, 4, stride=2, padding=1),  # 2 L -> L
        *[ResidualBlock(width, 3**power) for power in reversed(range(config.depth))],
        nn.Conv1d(width, config.code_dim, 3, padding=1))


def pose_decoder(config: TokenizerConfig) -> nn.Sequential:
    """Make the decoder: embeddings (B, C, L) -> 6D rotations (B, 6, 24), in four equal steps.

    TokenHMR's network but for the ReLU before the last convolution, which T2M-GPT's decoder has
    and TokenHMR's has not.
    """
    width = config.width
    layers = [nn.Conv1d(config.code_dim, width, 3, padding=1), nn.ReLU()]
    for step in (3, 2, 1, 0):  # lengths 78, 60, 42, 24
        length = JOINTS + step * (config.num_tokens - JOINTS) // 4
        layers += [nn.Upsample(length), nn.Conv1d(width, width, 3, padding=1), nn.ReLU()]
    last = nn.Conv1d(width, 6, 3, padding=1)
    with torch.no_grad():  # start near the rest pose, where 6D is well-conditioned (our choice)
        last.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
    return nn.Sequential(
        *layers, *[ResidualBlock(width, 3**power) for power in reversed(range(config.depth))],
        nn.Conv1d(width, width, 3, padding=1), nn.ReLU(), last)


def all_reduced(x: Tensor) -> Tensor:
    """Sum a tensor over all processes, if there are several."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def random_rows(x: Tensor, count: int) -> Tensor:
    """Pick `count` random rows of x (N, C), the same on all processes.

    If x has fewer rows they repeat, with a little noise. (T2M-GPT, MoMask and TokenHMR lost
    Jukebox's shuffling: their codes restart from the first rows of the batch.)
    """
    rows = x[torch.randperm(len(x), device=x.device)[:count]]
    if len(rows) < count:
        rows = rows.repeat(-(-count // len(rows)), 1)[:count]
        rows = rows + 0.01 * rows.std() * torch.randn_like(rows)
    rows = rows.contiguous()
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(rows, 0)
    return rows


class Quantiser(nn.Module):
    """Replace embeddings by the nearest code of a codebook (V, C), VQ-VAE's EMA variant.

    Each code follows a moving average of the embeddings that chose it. Codebook and averages are
    buffers: a checkpoint contains them, so training resumes exactly.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        size = (config.codebook_size, config.code_dim)
        self.momentum = config.momentum
        self.register_buffer("codebook", torch.randn(size))
        self.register_buffer("code_sum", torch.zeros(size))  # average of the sum of z per code
        self.register_buffer("code_count", torch.zeros(len(self.codebook)))  # of their number
        self.register_buffer("initialised", torch.tensor(False))
        self.checked = False  # `initialised` was read once: a GPU need not be asked every step

    def nearest(self, z: Tensor) -> Tensor:
        """argmin_k ||z_i - c_k||_2: embeddings (..., C) -> tokens (...), int64."""
        # |z - c|^2 = |z|^2 - 2 (z.c - |c|^2 / 2), so the largest product is the nearest code
        half_norms = 0.5 * self.codebook.square().sum(1)
        products = torch.addmm(-half_norms, z.flatten(0, -2), self.codebook.T)  # (N, V)
        return products.argmax(1).view(z.shape[:-1])

    def lookup(self, tokens: Tensor) -> Tensor:
        """Tokens (...) -> codes (..., C)."""
        return F.embedding(tokens, self.codebook)

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """Quantise embeddings (B, L, C); in training mode, also move the codes.

        Returns embeddings (B, L, C) with a straight-through gradient, tokens (B, L), and scalars:
        embedding_loss, commitment_loss, perplexity (1..V) and dead_codes, unused by this batch.
        """
        if self.training and not self.checked:
            if not self.initialised:
                self.initialise(z.detach().flatten(0, 1))
            self.checked = True
        tokens = self.nearest(z)  # (B, L)
        codes = self.lookup(tokens)  # (B, L, C)
        usage = torch.zeros_like(self.code_count).index_add_(
            0, tokens.flatten(), self.code_count.new_ones(tokens.numel()))  # (V,)
        if self.training:
            usage = all_reduced(usage)
            self.update(z.detach().flatten(0, 1), tokens.flatten(), usage)
        return {
            "embeddings": z + (codes - z).detach(),  # straight-through: d codes / d z = 1
            "tokens": tokens,
            # The paper writes the norm; all code of this family has the mean square.
            "embedding_loss": F.mse_loss(codes, z.detach()),  # ||sg[z] - c||, no gradient: see EMA
            "commitment_loss": F.mse_loss(z, codes.detach()),  # ||z - sg[c]||
            "perplexity": torch.special.entr(usage / usage.sum()).sum().exp(),  # exp of the entropy
            "dead_codes": (usage == 0).sum(),
        }

    @torch.no_grad()
    def update(self, z: Tensor, tokens: Tensor, usage: Tensor) -> None:
        """Move every code towards the mean of the embeddings (N, C) that chose it."""
        sums = torch.zeros_like(self.code_sum).index_add_(0, tokens, z)
        self.code_sum.lerp_(all_reduced(sums), 1.0 - self.momentum)
        self.code_count.lerp_(usage, 1.0 - self.momentum)
        alive = self.code_count >= 1.0
        fresh = random_rows(z, len(self.codebook))
        means = self.code_sum / self.code_count.clamp_min(1.0)[:, None]
        self.codebook.copy_(torch.where(alive[:, None], means, fresh))
        # TokenHMR keeps the old sums, which move a restarted code back to its old, unused place.
        self.code_sum.copy_(torch.where(alive[:, None], self.code_sum, fresh))
        self.code_count.clamp_min_(1.0)

    @torch.no_grad()
    def initialise(self, z: Tensor) -> None:
        """Start with embeddings (N, C) of the first batch, as if each had been used once."""
        self.codebook.copy_(random_rows(z, len(self.codebook)))
        self.code_sum.copy_(self.codebook)
        self.code_count.fill_(1.0)
        self.initialised.fill_(True)


class Tokenizer(nn.Module):
    """Convert poses to tokens and back: encoder, codebook, decoder (Fig. 2a). Always in fp32.

    There are four times as many tokens as joints, but no token belongs to one joint: in the paper's
    config it depends on four to eight neighbours in SMPL's list, a joint on a third of all or more.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = pose_encoder(config)
        self.quantiser = Quantiser(config)
        self.decoder = pose_decoder(config)

    @property
    def codebook(self) -> Tensor:
        """The codes (V, C)."""
        return self.quantiser.codebook

    def embed(self, rotations: Tensor) -> Tensor:
        """Rotation matrices (B, 24, 3, 3) -> embeddings z (B, L, C), not quantised."""
        require(tuple(rotations.shape[1:]) == (JOINTS, 3, 3),
                f"poses of shape {tuple(rotations.shape)}: expected matrices (B, {JOINTS}, 3, 3)")
        with torch.autocast(rotations.device.type, enabled=False):
            x = matrix_to_rotation_6d(rotations.float()).mT  # (B, 6, 24)
            z = self.encoder(x).mT
            return F.layer_norm(z, z.shape[-1:]) if self.config.normalise else z

    def encode(self, rotations: Tensor) -> Tensor:
        """Poses (B, 24, 3, 3), global orientation first -> tokens (B, L), int64 in 0..V-1."""
        z = self.embed(rotations)
        with torch.autocast(z.device.type, enabled=False):
            return self.quantiser.nearest(z)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) -> poses (B, 24, 3, 3)."""
        return self.decode_embeddings(self.quantiser.lookup(tokens))

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        """Embeddings Y (B, L, C), codes or not -> poses (B, 24, 3, 3)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return rotation_6d_to_matrix(self.decoder(embeddings.float().mT).mT)

    def forward(self, rotations: Tensor) -> dict[str, Tensor]:
        """Encode, quantise, decode: rotations (B, 24, 3, 3), and Quantiser.forward's values."""
        z = self.embed(rotations)  # (B, L, C)
        with torch.autocast(z.device.type, enabled=False):
            quantised = self.quantiser(z)
        embeddings = quantised.pop("embeddings")
        if self.training and self.config.corruption:
            embeddings = corrupt(embeddings, self.codebook, self.config.corruption)
        return {"rotations": self.decode_embeddings(embeddings), **quantised}


def corrupt(embeddings: Tensor, codebook: Tensor, most: float) -> Tensor:
    """Replace some of each pose's embeddings (B, L, C) by random codes (ours).

    Each is replaced with a probability that is drawn for the pose, uniformly from 0 to `most`. The
    decoder learns that neighbours outvote a wrong token (after PCT: Geng et al., CVPR 2023).
    """
    shape, device = embeddings.shape[:2], embeddings.device
    wrong = torch.rand(shape, device=device) < most * torch.rand(shape[0], 1, device=device)
    codes = F.embedding(torch.randint(len(codebook), shape, device=device), codebook)
    return torch.where(wrong[..., None], codes, embeddings)


def tokenizer_losses(prediction: dict[str, Tensor], batch: dict[str, Tensor],
                     body: Callable) -> dict[str, Tensor]:
    """Compute the unweighted terms of L_vq and L_re, each a scalar.

    prediction: of Tokenizer.forward. batch: pose (B, 24, 3, 3), the input of the tokenizer, and
    betas (B, 10). body(betas, rotations) returns an object with vertices (B, V, 3) and joints
    (B, 24, 3) in metres.
    """
    with torch.no_grad():
        true = body(batch["betas"], batch["pose"])
    predicted = body(batch["betas"], prediction["rotations"])
    return {
        "pose": F.l1_loss(prediction["rotations"], batch["pose"]),  # L_theta, of matrices
        "vertices": F.l1_loss(predicted.vertices, true.vertices),  # L_V
        "joints": F.l1_loss(predicted.joints, true.joints),  # L_J
        "embedding": prediction["embedding_loss"],
        "commitment": prediction["commitment_loss"],
    }


def total_loss(terms: dict[str, Tensor], config: TokenizerConfig | Config) -> Tensor:
    """Weigh and sum the terms of tokenizer_losses, L_vq, or of `losses`, L_total."""
    return sum(getattr(config, f"weight_{name}") * term for name, term in terms.items())


# -------------------------------------------------------------- stage 2: masked transformer


def register_statistics(module: nn.Module) -> None:
    """Give a module ImageNet's mean and standard deviation of colours."""
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    module.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
    module.register_buffer("std", std.view(3, 1, 1), persistent=False)


def normalised_crop(module: nn.Module, images: Tensor, size: int) -> Tensor:
    """Normalise RGB crops (B, 3, S, S), 0..255, and keep their middle (B, 3, S, 3/4 S)."""
    require(images.shape[1:] == (3, size, size),
            f"images of shape {tuple(images.shape)}: expected (B, 3, {size}, {size})")
    if images.is_floating_point() and images.numel() and not (
            images.is_meta or torch.compiler.is_compiling()):
        require(not 0 < images.max() <= 1, "images in 0..1: expected 0..255, multiply them by 255")
    images = images[..., size // 8 : -(size // 8)]
    return (images.to(module.mean.dtype) / 255.0 - module.mean) / module.std


def mlp(width: int, hidden: int, width_out: int) -> nn.Sequential:
    """Linear, GELU, linear."""
    return nn.Sequential(OrderedDict(
        fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width_out)))


class SelfAttention(nn.Module):
    """Multi-head self-attention, (B, N, D) -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*qkv)  # (B, H, N, D / H)
        return self.proj(x.transpose(1, 2).flatten(2))


class MapNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def pyramid_level(width: int, scale: int, width_out: int) -> nn.Sequential:
    """Make one level of ViTDet's simple feature pyramid: (B, D, h, w) -> `scale` times as fine."""
    layers: list[nn.Module] = []
    for doubling in range(scale.bit_length() - 1):
        if doubling:
            layers += [MapNorm(width, eps=1e-6), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, 2))
        width //= 2
    return nn.Sequential(
        *layers, nn.Conv2d(width, width_out, 1, bias=False), MapNorm(width_out, eps=1e-6),
        nn.Conv2d(width_out, width_out, 3, padding=1, bias=False), MapNorm(width_out, eps=1e-6))


class Regressor(nn.Module):
    """Regress shape and camera from the mean of the encoder's tokens (paper)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.vit_dim)
        self.mlp = mlp(config.vit_dim, config.regressor_width, 13)
        with torch.no_grad():  # mean shape, body as high as most of the crop (HMR2.0)
            self.mlp.fc2.weight.mul_(0.01)
            self.mlp.fc2.bias.copy_(torch.tensor([0.0] * 10 + [0.9, 0.0, 0.0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, D) -> shape (B, 10) and camera (B, 3), s, tx, ty."""
        with torch.autocast(x.device.type, enabled=False):  # at 43 m, steps of bf16 are 0.25 m
            return self.mlp(self.norm(x.float()).mean(1)).split((10, 3), 1)


class DeformableAttention(nn.Module):
    """MSDA(Y, p_y, {x^l}) = sum_l sum_k A_lyk W x^l(p_y + dp_lyk), per head (Zhu et al., 2020).

    Parameters are named as in Deformable-DETR.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, self.map_sizes = config.width, config.map_sizes
        self.shape = config.heads, len(config.scales), config.points
        self.sampling_offsets = nn.Linear(width, 2 * math.prod(self.shape))
        self.attention_weights = nn.Linear(width, math.prod(self.shape))
        self.value_proj = nn.Linear(config.pyramid_width, width)
        self.output_proj = nn.Linear(width, width)
        widths_and_heights = torch.tensor(self.map_sizes).flip(1)  # as offsets are x, y
        self.register_buffer("cells", widths_and_heights, persistent=False)  # (maps, 2)

    def initialise(self) -> None:
        """Point head h in direction h, its point k at distance k + 1 cells; equal weights."""
        heads, _, points = self.shape
        angle = 2.0 * math.pi * torch.arange(heads) / heads
        ring = torch.stack((angle.cos(), angle.sin()), -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        offsets = ring[:, None, None] * torch.arange(1, points + 1)[:, None]  # (H, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.view(*self.shape, 2).copy_(offsets)
        for weight in (self.sampling_offsets.weight, self.attention_weights.weight):
            nn.init.zeros_(weight)

    def forward(self, queries: Tensor, reference: Tensor, values: Tensor) -> Tensor:
        """queries (B, L, D), reference (L, 2) in 0..1, values as in Features -> (B, L, D)."""
        offsets = self.sampling_offsets(queries).to(reference).unflatten(2, (*self.shape, 2))
        weights = self.attention_weights(queries).to(reference).unflatten(2, (self.shape[0], -1))
        weights = weights.softmax(-1).unflatten(3, self.shape[1:])  # A, over maps and points
        reference = reference[..., None, None, None, :]
        locations = reference + offsets / self.cells[:, None]  # p_y + dp_lyk, (B, L, H, maps, P, 2)
        return self.output_proj(self.sample_maps(values, locations, weights).to(queries))

    def sample_maps(self, values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        """Sum bilinear samples of the projected maps, zero outside: (B, L, D).

        values: as in Features. locations: (B, L, H, maps, P, 2). weights: (B, L, H, maps, P).
        """
        values = self.value_proj(values).to(weights).mT  # W x, (B, D, N)
        levels = values.split([height * width for height, width in self.map_sizes], 2)
        total = 0.0
        for level, (x, size) in enumerate(zip(levels, self.map_sizes, strict=True)):
            x = x.unflatten(1, (self.shape[0], x.shape[1] // self.shape[0])).flatten(0, 1)
            x = x.unflatten(2, size)  # (B H, D / H, rows, columns)
            grid = 2.0 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1.0
            sampled = F.grid_sample(x, grid, align_corners=False)  # (B H, D / H, L, P)
            weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B H, L, P)
            total = total + (weight[:, None] * sampled).sum(3)  # (B H, D / H, L)
        return total.unflatten(0, (-1, self.shape[0])).flatten(1, 2).mT


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, MLP, pre-norm: (B, L, D) -> the same."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.self_attention = SelfAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.cross_attention = DeformableAttention(config)
        self.norm3 = nn.LayerNorm(config.width)
        self.mlp = mlp(config.width, 4 * config.width, config.width)  # (Deformable-DETR)

    def forward(self, x: Tensor, reference: Tensor, values: Tensor) -> Tensor:
        x = x + self.self_attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), reference, values)
        return x + self.mlp(self.norm3(x))


class Features(NamedTuple):
    """What the model computes once per picture, whatever the tokens."""

    values: Tensor  # (B, cells, width) of all feature maps (15,552), one after another, by rows
    betas: Tensor  # (B, 10)
    camera: Tensor  # (B, 3), s, tx, ty


def initialise_linears(module: nn.Module) -> None:
    """Xavier for all linear layers, as in MAE and Deformable-DETR."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


class MaskedTransformer(nn.Module):
    """p(y_i | Y_M, X): tokens, some of them masked, and a picture's maps -> logits (B, L, V)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        length, codes = config.tokenizer.num_tokens, config.tokenizer.codebook_size
        self.token_embedding = nn.Linear(config.tokenizer.code_dim, config.width)
        self.mask_embedding = nn.Parameter(torch.empty(config.width))  # the learned [MASK]
        self.position_embedding = nn.Parameter(torch.empty(length, config.width))
        self.reference = nn.Parameter(torch.empty(length, 2))  # p_y, before the sigmoid
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, codes)  # [MASK] is never an output
        initialise_linears(self)
        for layer in self.layers:
            layer.cross_attention.initialise()
        # Our choice; 0.02, as in BERT, gave the `cpu` preset the same loss after 100 steps
        nn.init.normal_(self.mask_embedding, std=0.5)
        nn.init.normal_(self.position_embedding, std=0.5)
        with torch.no_grad():  # each token looks at a place of its own
            nn.init.uniform_(self.reference, 0.1, 0.9).logit_()

    def forward(self, tokens: Tensor, codebook: Tensor, features: Features) -> Tensor:
        masked = tokens == len(codebook)  # (B, L)
        codes = F.embedding(tokens.masked_fill(masked, 0), codebook)  # (B, L, C), frozen
        x = torch.where(masked[..., None], self.mask_embedding.to(codes),
                        self.token_embedding(codes).to(codes))  # (B, L, D)
        x = x + self.position_embedding
        reference = self.reference.sigmoid()  # (L, 2)
        for layer in self.layers:
            x = layer(x, reference, features.values)
        return self.head(self.norm(x))  # (B, L, V)


class GenHMR(nn.Module):
    """Image encoder, masked transformer and, frozen, the tokenizer of stage 1 (Fig. 2)."""

    def __init__(self, config: Config, encoder: nn.Module | None = None) -> None:
        """encoder: crops (B, 3, S, 3/4 S) -> tokens (B, N, vit_dim) on config.grid; None: a ViT."""
        super().__init__()
        self.config = config
        self.mask_token = config.tokenizer.codebook_size  # [MASK]: V, one after the last token
        require(encoder is not None or config.vit_dim % config.vit_heads == 0,
                f"vit_heads is {config.vit_heads}: expected a divisor of vit_dim, {config.vit_dim}")
        self.backbone = ViT(config) if encoder is None else encoder
        self.pyramid = nn.ModuleList([pyramid_level(
            config.vit_dim, scale, config.pyramid_width) for scale in config.scales])
        self.regressor = Regressor(config)
        self.transformer = MaskedTransformer(config)
        if encoder is None:
            initialise_linears(self.backbone)
        self.tokenizer = Tokenizer(config.tokenizer).requires_grad_(False)
        register_statistics(self)
        self.train()

    def train(self, mode: bool = True) -> GenHMR:
        """Set the mode of all parts but the tokenizer, which stays in evaluation mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Predict shape, camera, and all tokens of the pose from some of them.

        images: (B, 3, S, S) RGB, uint8 or floats in 0..255. tokens: (B, L) int64, `mask_token`
        where masked. Returns logits (B, L, V), betas (B, 10) and camera (B, 3) = s, tx, ty.
        Raises ValueError for other shapes.
        """
        features = self.encode(images)
        return {"logits": self.predict_logits(features, tokens), "betas": features.betas,
                "camera": features.camera}

    def encode(self, images: Tensor) -> Features:
        """Compute what does not depend on the tokens; images as in `forward`."""
        x = self.backbone(self.normalise(images))  # (B, 192, 1280)
        expected = (len(images), math.prod(self.config.grid), self.config.vit_dim)
        require(tuple(x.shape) == expected, f"the encoder returns tokens of shape "
                f"{tuple(x.shape)}: expected {expected}, as in the config")
        grid = x.transpose(1, 2).unflatten(2, self.config.grid)  # (B, 1280, 16, 12)
        maps = [level(grid) for level in self.pyramid]  # (B, 256, 16, 12), (.., 64, 48), ...
        values = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)  # (B, 15552, 256)
        return Features(values, *self.regressor(x))

    def predict_logits(self, features: Features, tokens: Tensor) -> Tensor:
        """Predict logits (B, L, V) from tokens (B, L), `mask_token` where masked."""
        expected = (len(features.values), self.config.tokenizer.num_tokens)
        require(tuple(tokens.shape) == expected and tokens.dtype == torch.int64,
                f"tokens {tuple(tokens.shape)} of {tokens.dtype}: expected int64 {expected}")
        return self.transformer(tokens, self.tokenizer.codebook, features)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise pictures (B, 3, S, S), and keep their middle (B, 3, S, 3/4 S)."""
        return normalised_crop(self, images, self.config.image_size)


# ------------------------------------------------------------------------ stage 2: training


def random_mask(tokens: Tensor, mask_token: int, tau_max: float = 1.0,
                generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Generative masking: tokens (B, L) -> the tokens with some masked, and the mask (B, L).

    m = ceil(gamma(tau) L) random positions, gamma(tau) = cos(pi tau / 2), tau ~ U(0, 1): 64 % of
    the tokens on average, all of them for 9 % of the poses. tau_max below 1 masks more, as gamma
    decreases (0.3: 97 %), although the paper's text calls U(0, 0.3) "narrower masking ratios".
    """
    batch, length = tokens.shape
    tau = tau_max * torch.rand(batch, 1, dtype=torch.float64, generator=generator,
                               device=tokens.device)
    count = (torch.cos(0.5 * math.pi * tau) * length).ceil()  # at least 1: tau is below 1
    order = torch.rand(batch, length, generator=generator, device=tokens.device).argsort(1)
    mask = order.argsort(1) < count
    return tokens.masked_fill(mask, mask_token), mask


def mask_batch(model: GenHMR, batch: dict[str, Tensor],
               generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Add the input and the target of stage 2 to a batch: tokens, masked_tokens, mask (B, L).

    batch: pose (B, 24, 3, 3); pose_valid (B,), 0 or 1. Without a pose all tokens are masked.
    """
    unknown = batch["pose_valid"][:, None] == 0
    tokens = model.tokenizer.encode(batch["pose"])
    masked, mask = random_mask(tokens, model.mask_token, model.config.tau_max, generator)
    return batch | {"tokens": tokens, "mask": mask | unknown,
                    "masked_tokens": masked.masked_fill(unknown, model.mask_token)}


def gumbel_temperature(step: int, config: Config) -> float:
    """tau_t of Eq. 5. After T, a part of all steps, it stays, where Eq. 5 would rise again."""
    progress = min(step / (config.temperature_duration * config.steps), 1.0)
    start, end = config.temperature_start, config.temperature_end
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))  # Eq. 5


def relax(model: GenHMR, logits: Tensor, temperature: float,
          generator: torch.Generator | None = None, known: Tensor | None = None) -> Tensor:
    """Draw a pose (B, 24, 3, 3) from logits (B, L, V), differentiably (Jang et al., 2016).

    Forward, tokens drawn from the categorical distribution of the logits; backward, the gradient
    of their Gumbel-softmax. known: (B, L) tokens to take as they are, `mask_token` where to draw.
    """
    logits = logits.float()
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device)  # below 1
    noise = -(-uniform.log()).log()  # n_k; -inf for a uniform of 0, a token that is not drawn
    probability = ((logits + noise) / temperature).softmax(-1)  # p_mk, Eq. 6
    soft = probability @ model.tokenizer.codebook  # (B, L, C)
    hard = model.tokenizer.quantiser.lookup(probability.argmax(-1))  # (B, L, C)
    embeddings = hard + (soft - soft.detach())  # straight-through
    if known is not None:
        masked = known == model.mask_token
        codes = model.tokenizer.quantiser.lookup(known.masked_fill(masked, 0))
        embeddings = torch.where(masked[..., None], embeddings, codes)
    return model.tokenizer.decode_embeddings(embeddings)


def mask_loss(logits: Tensor, batch: dict[str, Tensor], config: Config) -> Tensor:
    """L_mask of Eq. 1, as a mean over tokens and samples; zero for samples without a pose.

    logits: (B, L, V). batch: tokens, mask (B, L) of mask_batch, pose_valid (B,). Eq. 1 sums over
    all tokens, while the text says masked ones. A sum would start at 732 and hide the other terms.
    """
    nll = F.cross_entropy(logits.float().transpose(1, 2), batch["tokens"], reduction="none")
    weight = batch["mask"].to(nll) if config.mask_loss_on == "masked" else torch.ones_like(nll)
    per_sample = (weight * nll).sum(1) / weight.sum(1)  # every mask has at least one token
    return (per_sample * batch["pose_valid"]).mean()


def losses(prediction: dict[str, Tensor], batch: dict[str, Tensor], model: GenHMR, body: Callable,
           temperature: float) -> dict[str, Tensor]:
    """Compute the unweighted terms of L_total = L_mask + L_SMPL + L_3D + L_2D, each a scalar.

    Invalid entries count as zero. prediction: of GenHMR.forward on batch["masked_tokens"]. batch:
    of mask_batch, which adds tokens, masked_tokens and mask (B, L) to
        pose (B, 24, 3, 3), rotation matrices in camera axes; pose_valid (B,), 0 or 1;
        betas (B, 10); betas_valid (B,), 0 or 1;
        keypoints_3d (B, J, 3), metres, relative to anything, the first being the pelvis;
        keypoints_3d_valid (B, J), weights, 0 for unknown;
        keypoints_2d (B, J, 2), pixels of the crop; keypoints_valid (B, J), weights, 0 for unknown.
    body: an object with body(betas, rotations), which returns a posed body in metres, and
    body.keypoints(posed), which returns its keypoints (B, J, 3) in the order of the batch's.
    temperature: tau_t, of gumbel_temperature.
    """
    config = model.config
    # If L_mask does not train the logits of visible tokens, these tokens are taken as they are
    tokens = batch["masked_tokens"] if config.mask_loss_on == "masked" else None
    rotations = relax(model, prediction["logits"], temperature, known=tokens)
    keypoints = body.keypoints(body(prediction["betas"], rotations))
    in_crop = project_to_crop(keypoints, prediction["camera"], config.focal)  # J_2D
    true_in_crop = batch["keypoints_2d"] / config.image_size - 0.5
    true = batch["keypoints_3d"]
    keypoints, true = keypoints - keypoints[:, :1], true - true[:, :1]
    known = batch["keypoints_3d_valid"]
    known = known * (known[:, :1] > 0)  # all are relative to the pelvis

    def reduced(error: Callable, difference: Tensor, valid: Tensor) -> Tensor:
        """HMR2.0's sum over a process's batch of 48, for batches of any size."""
        valid = valid.view(*valid.shape, *[1] * (difference.ndim - valid.ndim))
        difference = torch.where(valid > 0, difference, 0.0)  # invalid entries may be NaN
        return 48.0 / len(difference) * (valid * error(difference)).sum()

    return {
        "mask": mask_loss(prediction["logits"], batch, config),
        "keypoints_3d": reduced(torch.abs, keypoints - true, known),  # L_3D
        "keypoints_2d": reduced(torch.abs, in_crop - true_in_crop, batch["keypoints_valid"]),
        "pose": reduced(torch.square, rotations - batch["pose"], batch["pose_valid"]),  # L_SMPL
        "betas": reduced(torch.square, prediction["betas"] - batch["betas"], batch["betas_valid"]),
    }


# ---------------------------------------------------------------- uncertainty-guided sampling

# gamma(t / T), the fraction of the tokens that is masked again after iteration t of T.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),  # the square of "training"
    "linear": lambda x: 1.0 - x,
    "cubic": lambda x: 1.0 - x**3,
    # The text, "a convex curve, enabling rapid initial exploration", fits MaskGIT's 1 - sqrt(x);
    # the printed curve is concave and slow at first.
    "sqrt": lambda x: math.sqrt(1.0 - x**2),
    "training": lambda x: math.cos(0.5 * math.pi * x),  # also called "cosine" in the paper
}


def mask_counts(length: int, iterations: int, schedule: str = "cosine") -> list[int]:
    """Count the masked tokens, of `length`, before iteration 1 and after iterations 1..T.

    ceil(gamma(t / T) L): at 96 tokens and T = 5, cosine, 96, 87, 63, 34, 10, 0. With a curve that
    starts slowly an iteration may change nothing (cubic: 96, 96, 90, 76, 47, 0).
    Raises ValueError for an unknown schedule and for less than one iteration.
    """
    require(schedule in SCHEDULES, f"schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}")
    require(iterations >= 1, f"{iterations} iterations: expected 1 or more")
    gamma = SCHEDULES[schedule]
    # Without the 1e-9 an exact 24 of 96 becomes 25: cos(2 pi / 3) is not -1/2 in floats.
    counts = [math.ceil(gamma(t / iterations) * length - 1e-9) for t in range(iterations)]
    return [*counts, 0]  # cos(pi / 2) is not 0 either, but the last iteration keeps every token


class Sampled(NamedTuple):
    """A pose per picture, and the iterations that led to it."""

    tokens: Tensor  # (B, L) int64
    embeddings: Tensor  # (B, L, C) Y, of which `rotations` are decoded: the tokens' codes, or means
    rotations: Tensor  # (B, 24, 3, 3)
    betas: Tensor  # (B, 10)
    camera: Tensor  # (B, 3), s, tx, ty
    masks: Tensor  # (T + 1, B, L) bool: before iteration 1, after 1, ..., after T (Fig. 5)
    confidences: Tensor  # (T, B, L): the probability each had when chosen (Fig. 6)


def choose(probability: Tensor, top_k: int, generator: torch.Generator | None) -> Tensor:
    """Draw tokens (B, L) among the k most likely of probabilities (B, L, V)."""
    if top_k == 1:
        return probability.argmax(-1)
    largest, tokens = probability.topk(top_k, -1)
    drawn = torch.multinomial(largest.flatten(0, 1), 1, generator=generator)
    return tokens.gather(2, drawn.view(*tokens.shape[:2], 1))[..., 0]


@torch.no_grad()
def sample_from(model: GenHMR, features: Features, *, iterations: int = 5,
                schedule: str = "cosine", top_k: int = 1, temperature: float = 1.0,
                order: str = "confidence", mean_code: bool = False,
                generator: torch.Generator | None = None) -> Sampled:
    """Uncertainty-guided sampling: keep the most confident tokens, predict the others again.

    features: of GenHMR.encode, shared by all iterations. iterations: T (Table 2). schedule: one of
    SCHEDULES (Table 11). top_k: draw among the k most likely (Table 12); the paper's 1 is greedy,
    although its text says "stochastic". A kept token stays (MaskGIT); the paper's text also permits
    masking it again. The other options are ours. temperature: divides the logits. order: an
    iteration keeps the tokens of the greatest "confidence" (paper), or "random" ones. Keeping
    confident ones makes drawn poses more alike. mean_code: the places that are masked before the
    last iteration (all at T = 1, 10 of 96 at T = 5) decode the mean of all codes, weighted by their
    probabilities, in place of the most likely code.
    Raises ValueError for bad options and a model in training mode.
    """
    require(not model.training, "the model is in training mode: call model.eval() first")
    codes, device = model.config.tokenizer.codebook_size, features.values.device
    require(1 <= top_k <= codes, f"top_k is {top_k}: expected 1 to {codes}")
    require(temperature > 0, f"temperature is {temperature}: expected a number above 0")
    require(order in ("confidence", "random"),
            f"order {order!r}: expected 'confidence' or 'random'")
    shape = len(features.values), model.config.tokenizer.num_tokens
    tokens = torch.full(shape, model.mask_token, device=device)  # Y_1
    masks, confidences = [tokens == model.mask_token], []
    confidence = torch.zeros(shape, device=device)
    for count in mask_counts(shape[1], iterations, schedule)[1:]:
        masked = masks[-1]
        logits = model.predict_logits(features, tokens).float()
        probability = (logits / temperature).softmax(-1)  # p(y_i | Y_M, X)
        chosen = choose(probability, top_k, generator)  # (B, L)
        tokens = torch.where(masked, chosen, tokens)
        likely = probability.gather(2, chosen[..., None])[..., 0]
        confidence = torch.where(masked, likely, confidence)
        score = (confidence if order == "confidence"
                 else torch.rand(shape, generator=generator, device=device))
        rank = score.masked_fill(~masked, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
        masks.append(rank < count)
        confidences.append(confidence)
        tokens = tokens.masked_fill(masks[-1], model.mask_token)
    embeddings = model.tokenizer.quantiser.lookup(tokens)
    if mean_code:
        mean = probability @ model.tokenizer.codebook  # (B, L, C)
        embeddings = torch.where(masked[..., None], mean, embeddings)
    return Sampled(tokens, embeddings, model.tokenizer.decode_embeddings(embeddings),
                   features.betas, features.camera, torch.stack(masks), torch.stack(confidences))


# ------------------------------------------------------------------ 2D pose-guided refinement


class Refined(NamedTuple):
    """Poses moved onto 2D keypoints, and the steps that led to them (Fig. 4, 11)."""

    rotations: Tensor  # (B, 24, 3, 3), poses[-1]
    embeddings: Tensor  # Y, (B, L, C), no longer codes
    energies: Tensor  # (P + 1, B), G before the first step, after it, ..., after the last
    poses: Tensor  # (P + 1, B, 24, 3, 3), at the same times


@torch.enable_grad()
def refine(model: GenHMR, start: Tensor, betas: Tensor, camera: Tensor, keypoints_2d: Tensor,
           confidence: Tensor, keypoints: Callable[[Tensor, Tensor], Tensor], *,
           iterations: int = 10, step_size: float = 60.0, weight_pose: float = 1e-3) -> Refined:
    """2D pose-guided refinement: gradient steps on the embeddings of a pose, all else frozen.

    start (B, L, C), betas (B, 10), camera (B, 3): of sample_from; the last two stay (our reading).
    keypoints_2d: J_2D (B, J, 2) in the crop, its sides at -0.5 and 0.5; confidence (B, J), 0 for
    invisible ones. keypoints(betas, rotations) returns J'_3D (B, J, 3) in metres. iterations: P, in
    the paper's Table 1 twenty, after T = 5. step_size: eta for up to 24 visible keypoints. More
    make the energy steeper, so eta is then multiplied by (24 / number of visible keypoints)^2. The
    paper gives neither eta nor lambda_theta' (weight_pose), and does not weigh
    by confidence.
    Raises ValueError for a step size that is not positive, and for other shapes.
    """
    require(0 < step_size < math.inf, f"step_size is {step_size}: expected a number above 0")
    require(confidence.shape == keypoints_2d.shape[:2] and len(start) == len(confidence),
            f"keypoints {tuple(keypoints_2d.shape)}, confidence {tuple(confidence.shape)}: "
            f"expected ({len(start)}, J, 2) and ({len(start)}, J)")
    eta = step_size * (JOINTS / (confidence > 0).sum(1).clamp_min(JOINTS)[:, None, None]).square()
    embeddings, energies, poses = start, [], []
    for step in range(iterations + 1):
        embeddings = embeddings.detach().requires_grad_()  # Y
        rotations = model.tokenizer.decode_embeddings(embeddings)
        poses.append(rotations.detach())
        projected = project_to_crop(keypoints(betas, rotations), camera, model.config.focal)
        distance = torch.where(confidence[..., None] > 0, projected - keypoints_2d, 0.0)
        error = confidence * distance.square().sum(-1)  # Eq. 3
        change = (rotations - poses[0]).square().sum((1, 2, 3))  # L_theta', 0 at the start
        energy = error.sum(1) + weight_pose * change  # G (B,), Eq. 2
        energies.append(energy.detach())
        if step < iterations:
            gradient, = torch.autograd.grad(energy.sum(), embeddings)  # rows are independent
            embeddings = embeddings - eta * gradient  # Eq. 4
    return Refined(poses[-1], embeddings.detach(), torch.stack(energies), torch.stack(poses))


def fit_camera(camera: Tensor, keypoints_2d: Tensor, confidence: Tensor, keypoints_3d: Tensor,
               focal: float) -> Tensor:
    """Fit the camera (B, 3) of a pose to its 2D keypoints, by least squares of Eq. 3 (ours).

    The paper uses the network's camera; where that is wrong, refinement can only bend the body.
    camera: the network's. keypoints_2d, confidence: as in `refine`. keypoints_3d: of the pose,
    (B, J, 3) in metres. A row keeps its camera if fewer than two keypoints are visible, or if no
    other fits.
    """
    weight = confidence.sqrt()[..., None]
    target = weight * torch.where(weight > 0, keypoints_2d, 0.0)
    # The projection, s / 2 (x + tx, y + ty), is linear in the solution: s / 2 times 1, tx and ty
    solution, zero = torch.zeros_like(camera[..., None]), torch.zeros_like(weight)
    for _ in range(4):  # nearer points look larger: by how much depends on s
        scale = weight / (1.0 + keypoints_3d[..., 2:] * solution[:, :1] / focal)
        x, y = (scale * keypoints_3d[..., :2]).split(1, -1)
        rows = torch.stack((torch.cat((x, scale, zero), -1), torch.cat((y, zero, scale), -1)), 2)
        rows = rows.flatten(1, 2)
        with torch.autocast(rows.device.type, enabled=False):  # no solver in lower precision
            solution, _ = torch.linalg.solve_ex(rows.mT @ rows,
                                                rows.mT @ target.flatten(1)[..., None])
    best = torch.cat((2.0 * solution[:, :1], solution[:, 1:] / solution[:, :1]), 1)[..., 0]
    usable = best.isfinite().all(1) & (best[:, 0] > 0) & ((confidence > 0).sum(1) > 1)
    return torch.where(usable[:, None], best, camera)


# --------------------------------------------------------------------- inference on a picture

LEAST_CONFIDENCE = 0.3  # of a 2D keypoint that counts as visible (inherited: HMR2.0's filter)
BOX_MARGIN = 1.2  # side of the crop, per extent of the box or keypoints (our choice)


def visible_keypoints(keypoints: np.ndarray, width: int, height: int) -> np.ndarray:
    """Set all but the visible keypoints to zero: (45, 3) of x, y in pixels and confidence.

    Visible are those of LEAST_CONFIDENCE and more that lie in the picture: detectors extrapolate,
    and in a portrait the imagined legs must not move the pose.
    Raises ValueError for other shapes and for numbers that are not finite, unless confidence is 0.
    """
    keypoints = np.asarray(keypoints, np.float64)
    require(keypoints.shape == (KEYPOINTS, 3), f"keypoints of shape {keypoints.shape}: expected "
            f"({KEYPOINTS}, 3) of x, y, confidence, in the order of smpl45")
    x, y, confidence = keypoints.T
    bad = ~np.isfinite(confidence) | (confidence > 0) & ~(np.isfinite(x) & np.isfinite(y))
    require(not bad.any(), f"keypoints: number {', '.join(map(str, np.flatnonzero(bad)))} not "
                           f"finite, expected confidence 0 for what is not visible")
    visible = (confidence >= LEAST_CONFIDENCE) & (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    return np.where(visible[:, None], np.minimum(keypoints, (np.inf, np.inf, 1)), 0.0)


def square_box(image: np.ndarray, box: Sequence[float] | None,
               keypoints: np.ndarray) -> tuple[np.ndarray, float]:
    """Choose the square to crop: centre (2,) and side, in pixels of the picture.

    Its middle three quarters hold the box with a margin, as in training; by default the box of the
    visible keypoints; without those, the whole picture without a margin.
    Raises ValueError for a box that is none, or has no part of the picture.
    """
    size, visible = np.array(image.shape[1::-1], np.float64), keypoints[keypoints[:, 2] > 0, :2]
    corner, extent, margin = np.zeros(2), size, 1.0
    if box is not None:
        box, margin = np.asarray(box, np.float64), BOX_MARGIN
        require(box.shape == (4,) and np.isfinite(box).all()
                and 1 <= min(box[2:]) and max(box[2:]) <= 10 * max(size)
                and max(box[:2] - size) < 0 < min(box[:2] + box[2:]),
                f"box {box.tolist()}: expected x,y,width,height on the {size[0]:.0f} x "
                f"{size[1]:.0f} picture, in pixels")
        corner, extent = np.split(box, 2)
    elif len(visible) > 1 and (np.ptp(visible, 0) > 1).any():
        corner, extent, margin = visible.min(0), np.ptp(visible, 0), BOX_MARGIN
    return corner + extent / 2, margin * max(4 / 3 * extent[0], extent[1])


def crop_picture(image: np.ndarray, center: np.ndarray, side: float, size: int) -> Tensor:
    """Crop a square as floats 0..255 (3, size, size), black outside of the picture.

    Each pixel is the mean of several bilinear samples, against aliasing (HMR2.0's demo blurs).
    """
    samples = min(math.ceil(side / size), 8)
    steps = (torch.arange(size * samples, dtype=torch.float64) + 0.5) / (size * samples) - 0.5
    x, y = (2 * (middle + side * steps) / length - 1
            for middle, length in zip(center, image.shape[1::-1], strict=True))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None].float()
    pixels = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    return F.avg_pool2d(F.grid_sample(pixels, grid, align_corners=False), samples)[0]


def picture_camera(camera: Tensor, focal: float, center: np.ndarray, side: float,
                   own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Convert a crop's camera (1, 3) to one of the picture: T (3,), metres, and K (3, 3), pixels.

    With these the mesh covers in the picture what it covers in the crop. own: (3, 3), your K:
    T keeps its pixel, and its depth grows with the focal length (our choice).
    """
    translation = camera_translation(camera, focal)[0].double().cpu().numpy()
    K = np.array([[focal * side, 0, center[0]], [0, focal * side, center[1]], [0, 0, 1]])
    if own is None:
        return translation, K
    own = np.asarray(own, np.float64)
    require(own.shape == (3, 3) and np.isfinite(own).all() and own[0, 0] > 0 and own[1, 1] > 0
            and (own[2] == (0, 0, 1)).all(),
            f"K {own.tolist()}: expected (3, 3) intrinsics in pixels, its last row 0, 0, 1")
    return np.linalg.inv(own) @ K @ translation * (own[0, 0] / K[0, 0]), own


def in_picture(body: Callable, betas: Tensor, rotations: Tensor, translation: np.ndarray,
               K: np.ndarray) -> dict[str, np.ndarray]:
    """Pose a body (batch of 1) before the picture's camera; arrays as of `predict`."""
    posed = body(betas, rotations)
    points = posed.vertices, posed.joints, body.keypoints(posed)
    vertices, joints, keypoints = (x[0].double().cpu().numpy() + translation for x in points)
    projected = keypoints @ K.T
    return {"vertices": vertices, "joints": joints, "keypoints_3d": keypoints,
            "keypoints_2d": projected[:, :2] / projected[:, 2:], "transl": translation, "K": K}


@torch.inference_mode(False)  # refinement needs gradients
@torch.no_grad()
def predict(model: GenHMR, body: Callable, image: np.ndarray, *,
            box: Sequence[float] | None = None, keypoints: np.ndarray | None = None,
            iterations: int = 5, schedule: str = "cosine", top_k: int = 1, mean_code: bool = False,
            refinement: int = 10, fitted_camera: bool = False, samples: int = 0,
            K: np.ndarray | None = None, generator: torch.Generator | None = None,
            **options) -> dict[str, np.ndarray]:
    """Predict one person of a whole picture, in that picture's camera: the inference loop.

    body: on the model's device; body(betas, rotations) returns an object with vertices (B, V, 3)
        and joints (B, 24, 3) in metres, body.keypoints(posed) its 45 keypoints (B, 45, 3).
    image: (H, W, 3) uint8 RGB. box: x, y, width, height of the person in pixels; by default that of
        the visible keypoints or the whole picture. A margin of a fifth is added.
    keypoints: (45, 3) of x, y in pixels and confidence, 0 for invisible ones, in the body's order.
    iterations, schedule, top_k, mean_code, generator: of sample_from. samples: also draw so many
        poses, among all codes and in random order (ours). refinement: number of steps (P) if there
        are keypoints; if the energies rise, give a smaller step_size. fitted_camera: fit the camera
        to them first. options: of `refine`. K: (3, 3), your intrinsics, see picture_camera.
    Returns float32 vertices (V, 3), joints (24, 3), keypoints_3d (45, 3), metres before the camera;
    keypoints_2d (45, 2), pixels of the picture; pose (24, 3, 3); betas (10,); transl (3,), already
    added to the vertices; camera (3,), s, tx and ty in the crop; K (3, 3); box (4,), the square
    that was cropped; confidence (45,) of the keypoints; energies (P + 1,), before and after each
    step; drawn_poses (samples, 24, 3, 3); tokens (L,), int64; fitted (), bool, whether the camera
    is not the network's. Raises ValueError for bad input.
    """
    require(min(refinement, samples) >= 0, f"refinement is {refinement} and samples {samples}: "
            "expected 0 or more")
    image = np.asarray(image)
    require(image.ndim == 3 and image.shape[2] == 3 and image.size and image.dtype == np.uint8,
            f"image {image.shape} of {image.dtype}: expected (H, W, 3) uint8 RGB")
    keypoints = visible_keypoints(np.zeros((KEYPOINTS, 3)) if keypoints is None else keypoints,
                                  *image.shape[1::-1])
    center, side = square_box(image, box, keypoints)
    crop = crop_picture(image, center, side, model.config.image_size).to(model.mean)
    features, focal = model.encode(crop[None]), model.config.focal
    how = dict(iterations=iterations, schedule=schedule, generator=generator)
    sampled = sample_from(model, features, top_k=top_k, mean_code=mean_code, **how)
    drawn = [sample_from(model, features, top_k=model.mask_token, order="random", **how).rotations
             for _ in range(samples)]
    light = body.for_keypoints() if hasattr(body, "for_keypoints") else body  # fewer vertices

    def keypoints_3d(betas: Tensor, rotations: Tensor) -> Tensor:
        return light.keypoints(light(betas, rotations))

    in_crop = torch.from_numpy((keypoints[:, :2] - center) / side)[None].to(crop)  # -0.5..0.5
    confidence = torch.from_numpy(keypoints[:, 2])[None].to(crop)
    camera = sampled.camera if not fitted_camera else fit_camera(
        sampled.camera, in_crop, confidence, keypoints_3d(sampled.betas, sampled.rotations), focal)
    refined = refine(model, sampled.embeddings, sampled.betas, camera, in_crop, confidence,
                     keypoints_3d, iterations=refinement if confidence.any() else 0, **options)
    require(all(x.isfinite().all() for x in (refined.rotations, sampled.betas, camera)),
            "the network's output is not finite: its weights are damaged, or training diverged")
    found = in_picture(body, sampled.betas, refined.rotations,
                       *picture_camera(camera, focal, center, side, K))
    found |= {"pose": refined.rotations[0], "betas": sampled.betas[0], "camera": camera[0],
              "energies": refined.energies[:, 0], "tokens": sampled.tokens[0],
              "drawn_poses": torch.cat([refined.rotations[:0], *drawn]),
              "box": np.append(center - side / 2, (side, side)), "confidence": keypoints[:, 2],
              "fitted": not torch.equal(camera, sampled.camera)}
    found = {name: torch.as_tensor(value).cpu() for name, value in found.items()}
    return {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in found.items()}


# ------------------------------------------------------------------ image encoder: ViT-H/16
# Dosovitskiy et al.: "An Image Is Worth 16x16 Words", ICLR 2021, as ViTPose and HMR2.0 have it.


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


class ViTBlock(nn.Module):
    """Pre-norm transformer block, (B, N, D) -> the same."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = mlp(width, 4 * width, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """Crops (B, 3, S, 3/4 S) -> tokens (B, N, D), under the names of ViTPose, HMR2.0, TokenHMR."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, patch, depth = config.vit_dim, config.patch_size, config.vit_depth
        # A padding of two pixels, unlike every other ViT: the patches start two pixels outside.
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch, padding=2)})
        # The first position was a class token's; that token is gone, its position is added to all.
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + math.prod(config.grid), width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList([  # the rate of the last block is 0.55 (HMR2.0)
            ViTBlock(width, config.vit_heads, 0.55 * n / max(depth - 1, 1)) for n in range(depth)])
        self.last_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)  # (B, 192, 1280)
        x = x + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        for block in self.blocks:
            x = block(x)
        return self.last_norm(x)


# --------------------------------------------------------------------------------- presets

TOKENIZER_PRESETS: dict[str, TokenizerConfig] = {
    "paper": TokenizerConfig(),
    # One H200: 4 x the batch, 1/4 of the steps and, by Adam's square-root rule, 2 x the rate.
    "h200": TokenizerConfig(batch_size=2048, steps=50_000, learning_rate=2e-4, warmup_steps=250),
    # One GPU with 11 GB: the paper's run; train.py takes each step in two halves.
    "single_gpu": TokenizerConfig(),
    # Two CPU cores: fewer channels and codes. The joint loss, on 45 keypoints, is the mean over 24
    # joints and 21 points of the surface: 5 x L_45 = 5 x (24 L_J + 21 L_V) / 45.
    "cpu": TokenizerConfig(
        codebook_size=64, code_dim=16, width=128, depth=1, normalise=True, corruption=0.12,
        weight_commitment=0.2, weight_joints=2.67, weight_vertices=2.33, vertex_stride=0,
        batch_size=64, steps=3_600, learning_rate=1e-3, schedule="cosine", warmup_steps=100),
}

PRESETS: dict[str, Config] = {
    # Two RTX A6000.
    "paper": Config(),
    # One H200: 2 x the batch, 1/2 of the steps, sqrt(2) x the learning rate.
    "h200": Config(batch_size=192, steps=150_000, learning_rate=1.41e-5, warmup_steps=500),
    # One GPU with 24 GB: the paper's run; train.py takes each step in eight parts of 12.
    "single_gpu": Config(),
    # Two CPU cores, behind a small trained encoder of 128 channels. The terms of pose and
    # keypoints weigh less than the paper's, whose L_3D would start ten times as large as L_mask.
    "cpu": Config(
        tokenizer=TOKENIZER_PRESETS["cpu"], image_size=128, patch_size=8, vit_dim=128,
        scales=(1, 2), pyramid_width=64, width=160, heads=5, points=2, layers=6,
        regressor_width=256, mask_loss_on="masked", weight_keypoints_3d=4.6e-3,
        weight_keypoints_2d=2e-3, weight_pose=5e-6, weight_betas=1e-3, temperature_end=0.5,
        batch_size=32, steps=1_050, learning_rate=1e-3, schedule="cosine", warmup_steps=100),
}
