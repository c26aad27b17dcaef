"""SimpleHand's tiny models and what several tests need."""

from dataclasses import asdict
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import bodymodels
from networks import any_view
from networks.backbones import simplehand_model
from simplehand import Config, SimpleHand, regress_joints

TINY = Config(
    image_size=64, embed_dims=(16, 16, 32, 32), depths=(1, 1, 2, 1), mlp_ratio=2.0,
    feature_width=64, layer_scale=0.5, token_width=16, dims=(16, 8, 8), heads=2,
    backbone_drop_path=0.0, drop_path=0.0, dropout=0.0,
)
HRNET = {"backbone": "hrnet", "embed_dims": (8, 16, 32, 64), "upsample": (1,)}
HIERA = {"backbone": "hiera", "embed_dims": (8, 16, 32, 64), "depths": (1, 2, 2, 1)}
UNET = any_view.Config(
    image_size=64, embed_dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), upsample=(1,),
    token_width=16, dims=(16, 8, 8), heads=2, drop_path=0.0, dropout=0.0)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(config: Config) -> SimpleHand:
    with torch.device("meta"):
        return simplehand_model(config)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms, scales and biases values that a forgotten one of them could not hide behind."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0.0, 0.2, generator=generator)
        elif name.endswith("gamma") or value.ndim == 1 and value.is_floating_point():
            value.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


def images(count: int = 2, size: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def picture(height: int = 90, width: int = 120) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3))
    return np.kron(small, np.ones((10, 10, 1))).astype(np.uint8)


def regressor() -> torch.Tensor:
    return bodymodels.load_model("hand_right").keypoint_regressor


def batch_of(size: int = 4, image_size: int = 64, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch with the shapes and meanings of data.py."""
    generator = torch.Generator().manual_seed(seed)
    vertices = 0.1 * torch.randn(size, 778, 3, generator=generator) + torch.tensor([0, 0, 0.6])
    return {
        "image": images(size, image_size, seed),
        "vertices": vertices,
        "joints": regress_joints(vertices, regressor()),
        "keypoints_2d": image_size * torch.rand(size, 21, 2, generator=generator),
        "keypoints_valid": (torch.rand(size, 21, generator=generator) > 0.2).float(),
        "mesh_valid": torch.ones(size),
        "K": torch.tensor([[100.0, 0, image_size / 2], [0, 100, image_size / 2],
                           [0, 0, 1]]).expand(size, 3, 3),
    }


def trained_model() -> SimpleHand:
    """A tiny model whose outputs are not all in the middle, as those of a trained one."""
    torch.manual_seed(0)
    model = SimpleHand(TINY).eval()
    nn.init.normal_(model.keypoints_2d_head.bias, 0.5, 0.2)
    nn.init.normal_(model.mesh_head.layers[2].upsample.bias, 0.0, 0.05)
    return model


def checkpoint_of(model: SimpleHand, **others) -> dict:
    return {"model": model.state_dict(), "config": asdict(model.config), "step": 7, **others}


def timm_or_skip() -> ModuleType:
    """The package timm; without it the test is skipped."""
    try:
        import timm
    except Exception as error:  # torchvision, which timm imports, has more than ImportError
        pytest.skip(f"timm cannot be imported: {error}")
    return timm
