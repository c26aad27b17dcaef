"""The demo is the paper: whose classes hold the parameters of the shipped checkpoints."""

import pytest
from torch import nn

import bodymodels
import genhmr
import hmr_adapter
import simplehand
import weights.genhmr
import weights.hmr_adapter
import weights.simplehand
from networks import fast


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
