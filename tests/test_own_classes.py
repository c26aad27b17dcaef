"""The shipped checkpoints: whose classes hold their parameters, and what they compute."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bodymodels
import genhmr
import hmr_adapter
import simplehand
import weights.genhmr
import weights.hmr_adapter
import weights.simplehand
from networks import fast
from sets.images import read_image


def own_share(model: nn.Module, paper: object) -> float:
    """Return the share of the parameters in classes of the paper's file.

    A parameter counts if no module around it is of another class than the paper's, torch's, or
    those of networks/fast.py, which compute the same as the paper's. So blocks of the paper inside
    an encoder of ours do not count.
    """
    counts = {True: 0, False: 0}

    def count(module: nn.Module, own: bool) -> None:
        home = type(module).__module__
        own = own and (home in (paper.__name__, fast.__name__) or home.startswith("torch."))
        counts[own] += sum(value.numel() for value in module.parameters(recurse=False))
        for child in module.children():
            count(child, own)

    count(model, type(model).__module__ == paper.__name__)
    return counts[True] / sum(counts.values())


def open_shipped(name: str) -> nn.Module:
    path = bodymodels.ASSETS / f"{name}.pt"
    if name.startswith("hmr_adapter"):
        return weights.hmr_adapter.load_checkpoint(path)
    return (weights.genhmr if name.startswith("genhmr") else weights.simplehand
            ).load_checkpoint(path)


@pytest.mark.parametrize(("name", "paper", "least"), [
    ("simplehand_cpu", simplehand, 1.0), ("genhmr_cpu", genhmr, 0.55),
    ("hmr_adapter_hand_cpu", hmr_adapter, 0.6), ("hmr_adapter_body_cpu", hmr_adapter, 0.6)])
def test_shipped_checkpoints_are_the_papers_classes(name, paper, least):
    """Opened as a user does, most of a demo's parameters are in classes of the paper's file."""
    assert own_share(open_shipped(name), paper) >= least


def outputs(name: str) -> Tensor:
    """Return what a checkpoint finds in the astronaut's picture, all in one row."""
    model, picture = open_shipped(name), read_image(bodymodels.ASSETS / "astronaut.jpg")
    pixels = torch.tensor(picture).permute(2, 0, 1)[None].float()
    images = F.interpolate(pixels, size=getattr(model.config, "image_size", 128), mode="area")
    if name == "genhmr_cpu":
        found = [model.backbone(model.normalise(images)), *model.encode(images)]
        return torch.cat([values.flatten() for values in found])
    if name == "hmr_adapter_hand_cpu":
        return model(images, torch.eye(3).expand(1, 8, 3, 3))["hand_pose"].flatten()
    found = model(images)
    return found["body_pose" if "body_pose" in found else "vertices"].flatten()


@pytest.mark.parametrize(("name", "spread", "mean"), [
    ("simplehand_cpu", 0.032005, 0.36374e-3), ("simplehand_views_cpu", 0.017380, 0.14031e-3),
    ("genhmr_cpu", 0.87115, -0.70098e-3), ("hmr_adapter_hand_cpu", 0.52366, 10.2771e-3),
    ("hmr_adapter_body_cpu", 0.50345, 6.2396e-3)])
@torch.no_grad()
def test_golden_outputs_of_shipped_checkpoints(name, spread, mean):
    """They compute what they did when they were shipped; the mean weighs numbers differently."""
    found = outputs(name).double()
    weights = torch.arange(len(found)).double().cos()
    assert found.std().item() == pytest.approx(spread, rel=1e-4)
    assert (weights * found).mean().item() == pytest.approx(mean, rel=5e-3)
