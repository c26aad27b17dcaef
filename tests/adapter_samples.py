"""HMR-Adapter's tiny models and batches that several tests use."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from simplehand_samples import images
from torch import Tensor, nn

import bodymodels
import hmr_adapter as hmr
from networks.adapter_rivals import build_model
from tables import TABLES

ENCODER = dict(image_size=64, vit_dim=32, vit_depth=1, vit_heads=2)
DECODER = dict(decoder_dim=16, decoder_layers=2, decoder_heads=2, decoder_ffn=16)
TINY_HAND = hmr.HandConfig(expert=hmr.HandExpertConfig(**ENCODER, **DECODER))
TINY_BODY = hmr.BodyConfig(
    expert=hmr.BodyExpertConfig(**ENCODER, depth_bins=4, hand_cells=4, box_dim=8, joint_dim=8),
    **DECODER, offset_hidden=16)
TINY = hmr.Config(TINY_HAND, TINY_BODY)
RIGHT, LEFT = 0, 1
STAGES = {"hand_expert": hmr.HandExpert, "hand": hmr.HandAdapter, "body_expert": hmr.BodyExpert,
          "body": hmr.BodyAdapter}
# Rows of Tables 3 to 6: the path and the fields that differ from the paper's.
BASELINES = {"HaMeR": ("hand", {"inject": "none"}), "SMPLer-X": ("body", {"inject": "none"})} | {
    f"{name}, {row}": (table.stage, dict(word.split("=") for word in words if "=" in word
                                         and "steps" not in word))
    for name, table in TABLES["hmr_adapter"].items() if name in ("table3", "table4", "table5",
                                                                 "table6")
    for row, words in table.words.items() if "expert" not in words}


@cache
def whole_body() -> bodymodels.BodyModel:
    """The free whole body, reduced to the vertices of its 76 keypoints."""
    return bodymodels.load_model("wholebody").for_keypoints()


@cache
def free_hand() -> bodymodels.BodyModel:
    return bodymodels.load_model("hand_right")


def rotations(*shape: int, spread: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return bodymodels.axis_angle_to_matrix(spread * torch.randn(*shape, 3, dtype=dtype))


def lively(module: nn.Module) -> nn.Module:
    """Make weights and norm statistics as varied as those of a trained network."""
    generator = torch.Generator().manual_seed(1)
    if hasattr(module, "offset"):  # a body adapter's, 0 at first
        module.offset.fc2.reset_parameters()
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.5 * float(parameter.std()) if parameter.numel() > 9
                           else 0.1)
        for buffer_owner in module.modules():
            if isinstance(buffer_owner, nn.BatchNorm2d):
                buffer_owner.running_mean.normal_(0, 0.1, generator=generator)
                buffer_owner.running_var.uniform_(0.5, 2, generator=generator)
    return module


def hand_adapter(**changes) -> hmr.HandAdapter:
    torch.manual_seed(2)
    return lively(build_model(replace(TINY_HAND, **changes))).eval()


def body_adapter(**changes) -> hmr.BodyAdapter:
    torch.manual_seed(3)
    return lively(build_model(replace(TINY_BODY, **changes))).eval()


def both_paths() -> hmr.HMRAdapter:
    return hmr.HMRAdapter(TINY, hand_adapter(), body_adapter()).eval()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@cache
def people(count: int = 2, size: int = 64) -> dict[str, Tensor]:
    """A batch as data.RenderedPeople makes it, with noise for pictures."""
    torch.manual_seed(4)
    pose = rotations(count, 55, spread=0.2)
    pose[:, hmr.EYES] = torch.eye(3)
    pose[:, 0] = pose[:, 0] @ torch.diag(torch.tensor([1.0, -1, -1]))  # upright in a camera
    betas, expression = 0.5 * torch.randn(count, 10), 0.5 * torch.randn(count, 10)
    body = whole_body()
    keypoints = body.keypoints(body(betas, pose, expression, torch.tensor([[0.0, -0.2, 45.0]])))
    flat = (hmr.FOCAL * keypoints[..., :2] / keypoints[..., 2:] + 0.5) * size
    hands = keypoints[:, torch.tensor(hmr.HANDS)]  # (B, 2, 21, 3)
    hands_2d = flat[:, torch.tensor(hmr.HANDS)]
    low, high = hands_2d.amin(2), hands_2d.amax(2)
    center, side = (low + high) / 2, 8 / 3 * (high - low).amax(-1, keepdim=True)
    in_crop = (hands_2d - center[:, :, None]) / side[:, :, None]
    in_crop[:, LEFT, :, 0] *= -1
    hands[:, LEFT, :, 0] *= -1
    orientation = torch.stack([hmr.chain_product(pose[:, hmr.ARMS["arm"][side]])
                               for side in (RIGHT, LEFT)], 1)[:, :, None]
    fingers = torch.stack([pose[:, hmr.RIGHT_FINGERS], pose[:, hmr.LEFT_FINGERS]], 1)
    hand_pose = torch.cat((orientation, fingers), 2)
    hand_pose[:, LEFT] = bodymodels.mirror_matrix(hand_pose[:, LEFT])
    return {
        "image": images(count, size), "body_pose": pose, "betas": betas, "expression": expression,
        "keypoints_3d": keypoints, "keypoints_2d": flat, "keypoints_valid": torch.ones(count, 76),
        "hand_images": images(2 * count, size, 5).unflatten(0, (count, 2)),
        "hand_boxes": torch.cat((low, high - low), -1), "hand_pose": hand_pose,
        "hand_joints": hands, "hand_keypoints_2d": (in_crop + 0.5) * size,
        "hand_valid": torch.ones(count, 2)}


def loss_of(model: nn.Module, size: int = 64) -> Tensor:
    """The total loss of an expert or adapter for two people."""
    batch = people(2, size)
    if isinstance(model, hmr.HandAdapter | hmr.HandExpert):
        samples = hmr.hand_samples(batch, getattr(model.config, "arm", "arm"))
        extra = (samples["arm"], samples["arm_valid"]) if hasattr(model, "expert") else ()
        prediction = model(samples["images"], *extra)
        terms = hmr.hand_losses(prediction, samples, free_hand(), model.config)
        return hmr.hand_total_loss(terms, model.config)
    extra = (hmr.true_knuckles(batch), batch["hand_valid"]) if hasattr(model, "expert") else ()
    prediction = model(batch["image"], *extra)
    terms = hmr.body_losses(prediction, batch, whole_body(), getattr(model, "expert", model),
                            model.config)
    return hmr.body_total_loss(terms, model.config)


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Eq. 1 and 2, head by head, with plain matrix products."""
    out = []
    for q_h, k_h, v_h in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1),
                             strict=True):
        weights = (q_h @ k_h.mT / math.sqrt(q_h.shape[-1])).softmax(-1)
        out.append(weights @ v_h)
    return torch.cat(out, -1)


def cross(layer: hmr.CrossAttention, x: Tensor, context: Tensor) -> Tensor:
    k, v = layer.to_kv(context).chunk(2, -1)
    return layer.to_out(attention(layer.to_q(x), k, v, layer.heads))


def self_attend(layer: hmr.TokenAttention, x: Tensor) -> Tensor:
    return layer.to_out(attention(*layer.to_qkv(x).chunk(3, -1), layer.heads))
