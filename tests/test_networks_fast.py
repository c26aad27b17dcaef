"""networks/fast.py: fast equals compute what the plain layers do.

The fast deformable attention has its tests in test_genhmr.py.
"""

from dataclasses import replace

import pytest
import torch
from simplehand_samples import TINY, images, randomise
from torch import nn

from networks import fast
from networks.backbones import simplehand_model
from simplehand import SimpleHand

ONE_BLOCK = replace(TINY, depths=(1, 1, 1, 1))


@pytest.mark.parametrize("fields", [{}, {"upsample": (2, 2)}, {"official": True}], ids=str)
def test_replaced_models_are_the_plain_ones(fields):
    """Same names, weights, outputs and gradients to rounding, fused or not; all deconvolutions
    are replaced, and twice is as good as once."""
    torch.manual_seed(0)
    fast_model = randomise(simplehand_model(replace(ONE_BLOCK, **fields)))
    plain = SimpleHand(fast_model.config).eval()
    plain.load_state_dict(fast_model.state_dict())
    kinds = [{type(layer) for layer in model.modules()} for model in (plain, fast_model)]
    assert nn.ConvTranspose2d in kinds[0] and fast.PatchDeconv in kinds[1]
    assert nn.ConvTranspose2d not in kinds[1] and fast.replace(fast_model) is fast_model
    found = []
    for model in (plain, fast_model, plain.fuse(), fast_model.fuse()):
        vertices = model(images())["vertices"]
        vertices.square().sum().backward()
        found.append((vertices, model.mesh_head.deconv[0].weight.grad))
    for vertices, _ in found[1:]:
        torch.testing.assert_close(vertices, found[0][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-4, rtol=1e-3)
