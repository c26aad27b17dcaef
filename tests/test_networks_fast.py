"""networks/fast.py: fast equals compute what the plain layers do; so does every way to run.

The fast deformable attention has its tests in test_genhmr.py.
"""

import functools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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


@functools.cache
def dense_and_sampled() -> list[nn.Module]:
    torch.manual_seed(0)
    model = SimpleHand(ONE_BLOCK).eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias, 0.3, 0.2)
    return [model.fuse().mesh_head, fast.with_sampled_cells(model.fuse()).mesh_head]


@given(st.lists(st.one_of(st.floats(-0.5, 1.5, width=32), st.sampled_from([0.0, 0.5, 1.0])),
                min_size=6, max_size=6), st.integers(1, 3))
def test_sampled_cells_are_those_of_the_whole_map(values, batch):
    """Computing the deconvolution only where it is read gives the same tokens."""
    dense, sampled = dense_and_sampled()
    points = torch.tensor(values).view(3, 2).expand(batch, 3, 2)
    features = torch.randn(batch, ONE_BLOCK.feature_width, 2, 3)
    with torch.no_grad():
        expected = dense.generate(features, points)
        assert torch.allclose(sampled.generate(features, points), expected, atol=1e-5)
    assert expected.abs().max() > 0.01


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the types of what matrix products take."""

    dtypes: list[torch.dtype]

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        if any(name in str(operator) for name in ("mm", "mv", "dot")):
            self.dtypes += [x.dtype for x in arguments if isinstance(x, torch.Tensor)]
        return operator(*arguments, **(options or {}))


def test_sampled_cells_multiply_no_integers():
    """CUDA has no matrix product of integers: those in the graph are all of floating point."""
    record = Products()
    record.dtypes = []
    with torch.no_grad(), record:
        dense_and_sampled()[1].generate(torch.randn(1, ONE_BLOCK.feature_width, 2, 2),
                                      torch.rand(1, 21, 2))
    assert record.dtypes and all(dtype.is_floating_point for dtype in record.dtypes)


@pytest.mark.parametrize("fields", [
    {"upsample": (2, 2)}, {"refine": 1}, {"official": True},
    {"backbone": "hrnet", "embed_dims": (8, 16, 32, 64), "upsample": (1,)}], ids=str)
def test_sampled_cells_need_one_deconvolution(fields):
    """For any other config the message says what was expected."""
    with torch.device("meta"):
        model = simplehand_model(replace(ONE_BLOCK, **fields))
    with pytest.raises(ValueError, match="one deconvolution"):
        fast.with_sampled_cells(model)
