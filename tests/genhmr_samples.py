"""GenHMR's tiny models and batches that several tests use."""

from dataclasses import replace

import torch
from simplehand_samples import count as count
from simplehand_samples import images
from torch import Tensor

import bodymodels
import genhmr
from genhmr import Config, GenHMR, TokenizerConfig
from networks.small_encoder import build_genhmr
from tasks.genhmr import augment_rotation

TINY_TOKENIZER = TokenizerConfig(num_tokens=48, codebook_size=32, code_dim=8, width=16, depth=2)
TINY = Config(
    tokenizer=TINY_TOKENIZER, image_size=64, vit_dim=32, vit_depth=2, vit_heads=2,
    scales=(1, 2, 4), pyramid_width=8, width=16, heads=2, points=2, layers=2,
    regressor_width=16, steps=100)
FOR_PICTURES = Config(
    tokenizer=TokenizerConfig(codebook_size=64, code_dim=16, width=32, depth=1),
    image_size=128, vit_dim=32, vit_depth=1, vit_heads=2, scales=(1, 2),
    pyramid_width=16, width=16, heads=2, points=2, layers=2, regressor_width=16)
SHAPES = ((4, 3), (8, 6), (16, 12))  # of three maps, not square: a swap of x and y shows
SMALL = replace(TINY, image_size=128, patch_size=8, vit_dim=120, scales=(1, 2),
                mask_loss_on="masked", tokenizer=replace(TINY_TOKENIZER, normalise=True))


def lively_model(config: Config = TINY) -> GenHMR:
    """A model whose probabilities differ from token to token, as those of a trained one do."""
    torch.manual_seed(1)
    model = build_genhmr(config).eval()
    with torch.no_grad():
        model.transformer.head.weight.normal_(0.0, 1.0)
        model.transformer.position_embedding.normal_()
        for layer in model.transformer.layers:
            layer.cross_attention.sampling_offsets.weight.normal_(0.0, 0.2)
            layer.cross_attention.attention_weights.weight.normal_()
    return model


def noisy_model() -> GenHMR:
    """A model for pictures, untrained, with random weights everywhere: no output is uniform."""
    torch.manual_seed(0)
    model = GenHMR(FOR_PICTURES).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def on_meta(config: Config) -> GenHMR:
    with torch.device("meta"):
        return build_genhmr(config)


def poses(count: int, seed: int = 0, spread: float = 0.3) -> Tensor:
    """Bodies with random joints and headings, (count, 24, 3, 3)."""
    generator = torch.Generator().manual_seed(seed)
    angles = spread * torch.randn(count, 24, 3, generator=generator)
    return augment_rotation(bodymodels.axis_angle_to_matrix(angles), generator)


def keypoints_of(body: bodymodels.BodyModel, betas: Tensor, rotations: Tensor) -> Tensor:
    return body.keypoints(body(betas, rotations))


def batch_of(body: bodymodels.BodyModel, size: int = 4, image_size: int = 64,
             seed: int = 0) -> dict[str, Tensor]:
    """A batch as data.py makes it, its bodies seen by a camera of the training kind."""
    generator = torch.Generator().manual_seed(seed)
    pose, betas = poses(size, seed), 0.5 * torch.randn(size, 10, generator=generator)
    camera = torch.tensor([0.9, 0.0, 0.2]) + 0.05 * torch.randn(size, 3, generator=generator)
    keypoints = keypoints_of(body, betas, pose)
    flat = genhmr.project_to_crop(keypoints, camera, TINY.focal)
    translation = genhmr.camera_translation(camera, TINY.focal)[:, None]
    ones = torch.ones(size)
    return {"image": images(size, image_size, seed), "pose": pose, "pose_valid": ones,
            "betas": betas, "betas_valid": ones, "keypoints_3d": keypoints + translation,
            "keypoints_3d_valid": torch.ones(size, 45), "keypoints_2d": (flat + 0.5) * image_size,
            "keypoints_valid": torch.ones(size, 45), "camera": camera}


def as_maps(values: Tensor, shapes=SHAPES) -> list[Tensor]:
    """(B, N, C) -> the maps, (B, C, h, w) each."""
    parts = values.split([height * width for height, width in shapes], 1)
    return [part.mT.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]
