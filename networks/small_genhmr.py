"""GenHMR with additions of ours, so that a small model learns on a laptop: the `cpu` preset.

A pose encoder finds keypoints and lifts them to a pose, from which the tokens start; each place of
the token sequence has its own linear maps; attention first prefers joints that are near; the pose
tokenizer's network knows which token belongs to which joint. Each addition is a field of
genhmr.Config or genhmr.TokenizerConfig and can be used alone, all but the first also with the
paper's ViT.

build_genhmr and build_tokenizer make any model that a config describes. Letters in shapes are
genhmr.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genhmr import (
    JOINTS,
    KEYPOINTS,
    Config,
    DecoderLayer,
    Features,
    GenHMR,
    Quantiser,
    Regressor,
    SelfAttention,
    Tokenizer,
    TokenizerConfig,
    ViT,
    fit_camera,
    initialise_linears,
    mlp,
    pose_decoder,
    pose_encoder,
    pyramid_level,
    rotation_6d_to_matrix,
)
from networks.pose_encoder import PoseEncoder, Seen, cell_centres


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Build the paper's tokenizer, or one with our additions."""
    return (Tokenizer if config.is_papers else SmallTokenizer)(config)


def build_genhmr(config: Config) -> GenHMR:
    """Build the paper's model, or one with our additions."""
    if config.is_papers:
        return GenHMR(config)
    return (PoseGenHMR if config.backbone == "pose" else SmallGenHMR)(config)


# ------------------------------------------------------------------- stage 1: pose tokenizer


class JointNet(nn.Module):
    """A linear map for each joint, plus an MLP that sees all: (B, 24, I) -> (B, 24, O).

    The maps make it easy to copy a joint's rotation, so unseen poses do as well as seen ones. On a
    CPU it is several times as fast as convolutions, and a token belongs to one joint.
    """

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(JOINTS, inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(JOINTS, outputs))
        self.whole = nn.Sequential(
            nn.Linear(JOINTS * inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, JOINTS * outputs))
        with torch.no_grad():
            self.whole[-1].weight.mul_(0.2)  # each joint starts from its own linear map

    def forward(self, x: Tensor) -> Tensor:
        own = torch.einsum("bji,jio->bjo", x, self.own) + self.bias  # (B, 24, O)
        return own + self.whole(x.flatten(1)).unflatten(1, (JOINTS, -1))


class JointEncoder(nn.Module):
    """6D rotations (B, 6, 24) -> embeddings z (B, C, L); tokens of a joint are neighbours."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.net = JointNet(6, config.num_tokens // JOINTS * config.code_dim, config.width)
        self.length = config.num_tokens

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.mT).reshape(len(x), self.length, -1).mT


class JointDecoder(nn.Module):
    """Embeddings (B, C, L) -> 6D rotations (B, 6, 24)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.net = JointNet(config.num_tokens // JOINTS * config.code_dim, 6, config.width)
        with torch.no_grad():  # start near the rest pose, as pose_decoder does
            self.net.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
            self.net.own.mul_(0.3)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.net(embeddings.mT.reshape(len(embeddings), JOINTS, -1)).mT


def corrupt(embeddings: Tensor, codebook: Tensor, most: float) -> Tensor:
    """Replace up to a share `most` of each pose's embeddings (B, L, C) by random codes.

    The decoder learns that neighbours outvote a wrong token (after PCT: Geng et al., CVPR 2023).
    """
    shape, device = embeddings.shape[:2], embeddings.device
    wrong = torch.rand(shape, device=device) < most * torch.rand(shape[0], 1, device=device)
    codes = F.embedding(torch.randint(len(codebook), shape, device=device), codebook)
    return torch.where(wrong[..., None], codes, embeddings)


class SmallTokenizer(Tokenizer):
    """A tokenizer that needs few codes, and to which a wrong token costs little."""

    def build(self, config: TokenizerConfig) -> None:
        """Make the networks."""
        joints = config.network == "joints"
        self.encoder = (JointEncoder if joints else pose_encoder)(config)
        self.quantiser = Quantiser(config)
        self.decoder = (JointDecoder if joints else pose_decoder)(config)

    def embed(self, rotations: Tensor) -> Tensor:
        """Rotation matrices (B, 24, 3, 3) -> embeddings z (B, L, C), not quantised."""
        z = super().embed(rotations)
        return F.layer_norm(z, z.shape[-1:]) if self.config.normalise else z

    def forward(self, rotations: Tensor) -> dict[str, Tensor]:
        """As Tokenizer.forward; in training mode some embeddings are replaced before decoding."""
        z = self.embed(rotations)  # (B, L, C)
        with torch.autocast(z.device.type, enabled=False):
            quantised = self.quantiser(z)
        embeddings = quantised.pop("embeddings")
        if self.training and self.config.corruption:
            embeddings = corrupt(embeddings, self.codebook, self.config.corruption)
        return {"rotations": self.decode_embeddings(embeddings), **quantised}


# -------------------------------------------------------------- stage 2: masked transformer


class PlaceLinear(nn.Module):
    """A linear map for each place of a sequence: (B, L, I) -> (B, L, O)."""

    def __init__(self, length: int, width: int, width_out: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * width**-0.5 * torch.randn(length, width, width_out))
        self.bias = nn.Parameter(torch.zeros(length, width_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bli,lio->blo", x, self.weight) + self.bias


PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)


def skeleton_distances() -> Tensor:
    """Count the bones between every two of SMPL's joints (24, 24)."""
    distance = torch.full((JOINTS, JOINTS), math.inf).fill_diagonal_(0)
    for joint, parent in enumerate(PARENTS[1:], 1):
        distance[joint, parent] = distance[parent, joint] = 1
    for joint in range(JOINTS):  # Floyd-Warshall
        distance = torch.minimum(distance, distance[:, joint:joint + 1] + distance[joint])
    return distance


class BiasedAttention(SelfAttention):
    """Self-attention with a learned bias per head and pair of tokens, (B, L, D) -> the same.

    It starts as ALiBi's (Press et al., ICLR 2022): minus the distance of the tokens' joints along
    the skeleton, times 1, 1/2, 1/4, ... by head, and times 0 in the last.
    """

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__(width, heads)
        distance = skeleton_distances()
        for dim in (0, 1):
            distance = distance.repeat_interleave(length // JOINTS, dim)
        slopes = torch.tensor([0.5**head for head in range(heads - 1)] + [0.0])
        self.bias = nn.Parameter(-slopes[:, None, None] * distance)  # (H, L, L)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*qkv, attn_mask=self.bias.to(x))  # (B, H, L, D / H)
        return self.proj(x.transpose(1, 2).flatten(2))


class SmallTransformer(nn.Module):
    """genhmr.MaskedTransformer with config.token_maps, distance_bias and unit_scales.

    With a pose encoder, tokens start from what it found, and look at the places of their joints.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        per_place, width = config.token_maps == "per_place", config.width
        tokens = config.tokenizer
        length, dim, codes = tokens.num_tokens, tokens.code_dim, tokens.codebook_size
        self.token_embedding = (PlaceLinear(length, dim, width) if per_place
                                else nn.Linear(dim, width))
        self.mask_embedding = nn.Parameter(torch.empty(width))  # the learned [MASK]
        self.position_embedding = nn.Parameter(torch.empty(length, width))
        self.reference = nn.Parameter(torch.empty(length, 2))
        self.layers = nn.ModuleList([DecoderLayer(config, (
            BiasedAttention(width, config.heads, length) if config.distance_bias
            else SelfAttention(width, config.heads))) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(width)
        self.head = (PlaceLinear(length, width, codes, scale=0.5) if per_place
                     else nn.Linear(width, codes))

    def initialise(self) -> None:
        """Set the initial weights of all but PlaceLinear and the bias of BiasedAttention."""
        initialise_linears(self)
        for layer in self.layers:
            layer.cross_attention.initialise()
        std = 0.5 if self.config.unit_scales else 0.02
        nn.init.normal_(self.mask_embedding, std=std)
        nn.init.normal_(self.position_embedding, std=std)
        if self.config.backbone == "pose":
            nn.init.zeros_(self.reference)  # an offset from the joint's place
        else:
            with torch.no_grad():
                nn.init.uniform_(self.reference, 0.1, 0.9).logit_()

    def forward(self, tokens: Tensor, codebook: Tensor,
                features: Features | PoseFeatures) -> Tensor:
        masked = tokens == len(codebook)  # (B, L)
        if self.config.unit_scales:
            codebook = codebook / codebook.std()
        codes = F.embedding(tokens.masked_fill(masked, 0), codebook)  # (B, L, C), frozen
        x = torch.where(masked[..., None], self.mask_embedding.to(codes),
                        self.token_embedding(codes).to(codes))  # (B, L, D)
        x = x + self.position_embedding
        if self.config.backbone == "pose":
            x, reference = x + features.start, features.places + self.reference  # (B, L, 2)
        else:
            reference = self.reference.sigmoid()  # (L, 2)
        for layer in self.layers:
            x = layer(x, reference, features.values, features.sizes)
        return self.head(self.norm(x))  # (B, L, V)


class SmallGenHMR(GenHMR):
    """GenHMR with our transformer and tokenizer, behind the paper's image encoder."""

    def build(self, config: Config) -> None:
        """Make the networks, with their initial weights."""
        self.backbone = ViT(config)
        self.pyramid = nn.ModuleList([pyramid_level(
            config.vit_dim, scale, config.pyramid_width) for scale in config.scales])
        self.regressor = Regressor(config)
        self.transformer = SmallTransformer(config)
        initialise_linears(self.backbone)
        self.transformer.initialise()
        self.tokenizer = build_tokenizer(config.tokenizer).requires_grad_(False)

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """As GenHMR.forward; in training mode some samples see the model's own guesses.

        That is a share config.own_guesses of them, see `surest`. Also returns tokens (B, L) as the
        transformer saw them.
        """
        guessing = self.training and self.config.own_guesses > 0
        if guessing:
            own = torch.rand(len(tokens), device=tokens.device) < self.config.own_guesses
        features = self.encode(images)
        if guessing:
            tokens = torch.where(own[:, None], self.surest(features, tokens), tokens)
        return {"logits": self.predict_logits(features, tokens), "tokens": tokens,
                "betas": features.betas, "camera": features.camera}

    @torch.no_grad()
    def surest(self, features: Features, tokens: Tensor) -> Tensor:
        """Replace all tokens (B, L) by guesses, and mask as many as were masked: the least sure.

        Sampling shows the model its own guesses, while training shows it the truth.
        """
        masked = torch.full_like(tokens, self.mask_token)
        confidence, guesses = self.predict_logits(features, masked).float().softmax(-1).max(-1)
        count = (tokens == self.mask_token).sum(1, keepdim=True)
        return guesses.masked_fill(confidence.argsort(1).argsort(1) < count, self.mask_token)


# ---------------------------------------------------------- stage 2: from keypoints to tokens


class PoseStart(nn.Module):
    """Convert a PoseEncoder's output to shape, camera and start of the pose tokens.

    The shape is the encoder's. The camera is the one that projects its 3D keypoints onto its 2D
    keypoints. Each token starts from what the encoder found at its joint.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width, self.tokens = config.width, config.tokenizer.num_tokens // JOINTS
        self.focal, cells = config.focal, cell_centres(config.encoder.grid)
        pooled, hidden = config.encoder.pooled, config.regressor_width
        self.joint = PlaceLinear(JOINTS, 12, self.tokens * self.width, scale=0.7)
        self.found = PlaceLinear(JOINTS, pooled, self.width, scale=0.0)
        self.z = nn.Linear(config.tokenizer.code_dim, self.width)
        self.lifted = mlp(6 * KEYPOINTS + 6 * JOINTS, hidden, JOINTS * self.width)
        self.seen = mlp(KEYPOINTS * pooled + config.encoder.widths[-1], hidden,
                        JOINTS * self.width)
        self.pelvis = nn.Linear(10, 3).requires_grad_(False)  # of unposed shapes: set_pelvis
        with torch.no_grad():
            self.lifted.fc2.weight.mul_(0.3)
            for layer in (self.seen.fc2.weight, self.seen.fc2.bias):
                layer.zero_()
        self.register_buffer("border", cells.amax(0) - 0.5 / config.encoder.grid[0],
                             persistent=False)

    @torch.no_grad()
    def set_pelvis(self, rest_joints: Callable[[Tensor], Tensor]) -> None:
        """Learn where a body's pelvis is: rest_joints(betas) -> (B, 24, 3), linear in the shape."""
        pelvis = rest_joints(torch.cat((torch.zeros(1, 10), torch.eye(10))))[:, 0]  # (11, 3)
        self.pelvis.bias.copy_(pelvis[0])
        self.pelvis.weight.copy_((pelvis[1:] - pelvis[0]).T)

    def sure(self, seen: Seen) -> Tensor:
        """Return the confidence of each 2D keypoint (B, 45): its share, 0 at the border."""
        return seen.share * (seen.at.abs() < self.border).all(-1)

    def camera(self, seen: Seen) -> Tensor:
        """Fit the camera (B, 3) of the lifted keypoints by least squares."""
        with torch.autocast(seen.at.device.type, enabled=False):
            points = seen.lifted.joints + self.pelvis(seen.lifted.betas)[:, None]
            usual = seen.at.new_tensor([[0.9, 0.0, 0.0]]).expand(len(points), 3)
            return fit_camera(usual, seen.at, self.sure(seen), points, self.focal)

    def forward(self, seen: Seen, z: Tensor) -> Tensor:
        """Compute the start of the tokens (B, L, D).

        z: (B, L, C), the lifted pose's embeddings in the tokenizer.
        """
        with torch.autocast(z.device.type, enabled=False):
            pose, at, share = seen.lifted.pose, 4 * seen.at, seen.share[..., None]
            keypoints = torch.cat((at, share, 2 * seen.lifted.joints), 2)  # (B, 45, 6)
            joint = self.joint(torch.cat((keypoints[:, :JOINTS], pose), 2))  # (B, 24, L / 24 * D)
            body = self.lifted(torch.cat((keypoints.flatten(1), pose.flatten(1)), 1))
            body = body + self.seen(torch.cat((seen.found.flatten(1), seen.whole), 1))
            body = body.unflatten(1, (JOINTS, -1)) + self.found(seen.found[:, :JOINTS])
            start = self.z(z) + joint.unflatten(2, (-1, self.width)).flatten(1, 2)
            return start + body.repeat_interleave(self.tokens, 1)

    def places(self, seen: Seen) -> Tensor:
        """Locate the joint of each token: (B, L, 2), 0..1 over the part that the encoder sees."""
        at = seen.at[:, :JOINTS] / seen.at.new_tensor([0.75, 1.0]) + 0.5
        return at.repeat_interleave(self.tokens, 1)


class PoseFeatures(NamedTuple):
    """What PoseGenHMR computes once per picture: Features, and where the tokens start."""

    values: Tensor  # as in Features, here and below
    sizes: Tensor
    betas: Tensor
    camera: Tensor
    own: Tensor  # (B, 45, 3) 2D keypoints, -0.5..0.5, and their confidence
    start: Tensor  # (B, L, D) added to the queries of the tokens
    places: Tensor  # (B, L, 2) where the tokens' joints are in the maps, 0..1


class PoseGenHMR(SmallGenHMR):
    """SmallGenHMR behind a PoseEncoder, which is trained before and frozen here."""

    def build(self, config: Config) -> None:
        """Make the networks, with their initial weights."""
        self.backbone = PoseEncoder(config.encoder).requires_grad_(False)
        self.pyramid = nn.ModuleList([pyramid_level(
            self.backbone.channels[16 // min(scale, 4)], scale // min(scale, 4),
            config.pyramid_width) for scale in config.scales])
        self.regressor = PoseStart(config)
        self.transformer = SmallTransformer(config)
        self.transformer.initialise()
        self.tokenizer = build_tokenizer(config.tokenizer).requires_grad_(False)

    def train(self, mode: bool = True) -> PoseGenHMR:
        """Set the mode of all parts but the tokenizer and the encoder, which stay in evaluation."""
        super().train(mode)
        self.backbone.eval()
        return self

    def encode(self, images: Tensor) -> PoseFeatures:
        """Compute what does not depend on the tokens.

        images: as in GenHMR.forward; also (B, 45, 3), keypoints without a picture: x and y in
        -0.5..0.5 and confidence.
        """
        if images.ndim == 3:
            return self.pose_features(self.backbone.imagine(images[..., :2], images[..., 2]))
        return self.pose_features(self.backbone(self.normalise(images)))

    def pose_features(self, seen: Seen) -> PoseFeatures:
        """Compute the features from the encoder's output; its maps have strides 16, 8 and 4."""
        maps = [level(seen.maps[16 // min(scale, 4)])
                for level, scale in zip(self.pyramid, self.config.scales, strict=True)]
        values = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)  # (B, N, C)
        z = self.tokenizer.embed(rotation_6d_to_matrix(seen.lifted.pose))  # (B, L, C)
        own = torch.cat((seen.at, self.regressor.sure(seen)[..., None]), 2)
        return PoseFeatures(values, self.map_sizes, seen.lifted.betas, self.regressor.camera(seen),
                            own, self.regressor(seen, z), self.regressor.places(seen))
