"""GenHMR's deformable attention: genhmr.py's plain one, and the fast one of networks/fast.py."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from genhmr_samples import SHAPES, TINY, as_maps, images, lively_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from genhmr import Config, DeformableAttention, GenHMR
from networks import fast

FORMS = {"plain": lambda module: module, "fast": fast.replace}
CELLS = sum(height * width for height, width in SHAPES)


def random_attention(**fields) -> DeformableAttention:
    """A layer for the maps of SHAPES, in float64, whose every parameter matters."""
    module = DeformableAttention(replace(TINY, **{"width": 12, "heads": 3, "pyramid_width": 4}
                                         | fields)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


def attention_input(queries: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, locations also outside of them, and weights that sum to one."""
    values = torch.randn(2, CELLS, 4, dtype=torch.float64)
    locations = 1.6 * torch.rand(2, queries, 3, 3, 2, 2, dtype=torch.float64) - 0.3
    weights = torch.rand(2, queries, 3, 3, 2, dtype=torch.float64)
    return values, locations, weights / weights.sum((3, 4), keepdim=True)


def in_loops(module: DeformableAttention, values: Tensor, locations: Tensor,
             weights: Tensor) -> Tensor:
    """The definition: W times the four neighbours of each point, nothing outside of the map."""
    maps = as_maps(module.value_proj(values))
    out = torch.zeros(*weights.shape[:3], 4, dtype=values.dtype)
    for b, q, h, level, k in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        height, width = SHAPES[level]
        x = locations[b, q, h, level, k, 0].item() * width - 0.5
        y = locations[b, q, h, level, k, 1].item() * height - 0.5
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    part = (1 - abs(x - column)) * (1 - abs(y - row))
                    out[b, q, h] += weights[b, q, h, level, k] * part * maps[level][
                        b, 4 * h:4 * h + 4, row, column]
    return out.flatten(2)


@pytest.mark.parametrize("form", FORMS)
def test_samples_are_the_definition_in_loops(form):
    """Sums of four neighbours each, head by head, to rounding, also across borders."""
    module, inputs = FORMS[form](random_attention()), attention_input()
    assert torch.allclose(module.sample_maps(*inputs), in_loops(module, *inputs), atol=1e-13)


def test_the_fast_attention_is_the_plain_one():
    """Values and gradients of queries, places, maps and all parameters; names and weights stay."""
    plain, inputs = random_attention(), (
        torch.randn(2, 5, 12).double(), torch.rand(5, 2).double(), attention_input()[0])
    gathering = fast.replace(copy.deepcopy(plain))
    assert type(plain) is DeformableAttention and type(gathering) is fast.GatheringAttention
    results, upstream = [], torch.randn(2, 5, 12).double()
    for module in (plain, gathering):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = module(*leaves)
        results.append([out, *torch.autograd.grad((upstream * out).sum(),
                                                  [*leaves, *module.parameters()])])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-10) and a.abs().max() > 1e-3
    assert list(gathering.state_dict()) == list(plain.state_dict())


def test_models_are_replaced_in_place():
    """Every layer's attention, once or twice, without other outputs; the weights load strictly."""
    model, tokens = lively_model(), torch.full((2, 48), 32)
    with torch.no_grad():
        expected = model(images(), tokens)
        assert fast.replace(fast.replace(model)) is model
        found = model(images(), tokens)
    assert all(type(layer.cross_attention) is fast.GatheringAttention
               for layer in model.transformer.layers)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)
    GenHMR(TINY).load_state_dict(model.state_dict())


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor that is created."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **kwargs or {})
        for tensor in (made if isinstance(made, tuple | list) else [made]):
            if isinstance(tensor, Tensor) and not operation.is_view:
                self.elements = max(self.elements, tensor.numel())
        return made


def test_the_fast_attention_makes_nothing_of_the_size_of_the_maps():
    """Its largest tensor holds the sampled vectors, the plain one's the projected maps."""
    inputs, largest = (torch.randn(1, 96, 64), torch.rand(96, 2), torch.randn(1, 15_552, 64)), {}
    for form, made in FORMS.items():
        attention = made(DeformableAttention(Config(width=64, pyramid_width=64)))
        with torch.no_grad(), Largest() as noted:
            attention(*inputs)
        largest[form] = noted.elements
    assert largest["fast"] == 96 * 8 * 64 and largest["plain"] >= 15_552 * 64


@pytest.mark.parametrize("form", FORMS)
def test_nan_stays_in_its_query(form):
    """A location or weight that is NaN spoils its own query and head, forward and backward."""
    module, (values, locations, weights) = FORMS[form](random_attention()), attention_input()
    expected = module.sample_maps(values, locations, weights).unflatten(2, (3, 4))
    locations[1, 2, 0, 1, 1, 0] = math.nan
    weights[0, 1, 2, 0, 0] = math.nan
    locations.requires_grad_()
    sums = module.sample_maps(values, locations, weights).unflatten(2, (3, 4))
    bad = torch.zeros(2, 5, 3, dtype=torch.bool)
    bad[1, 2, 0] = bad[0, 1, 2] = True
    assert torch.equal(sums.isnan().all(-1), bad) and torch.equal(sums[~bad], expected[~bad])
    gradient, = torch.autograd.grad(sums[~bad].sum(), locations)
    assert gradient[~bad].isfinite().all()


def test_attention_starts_as_a_ring():
    """Heads look into eight directions, their points at 1, 2, 3, 4 cells, equally weighted."""
    layer = GenHMR(replace(TINY, width=32, heads=8, points=4)).transformer.layers[0].cross_attention
    assert not layer.sampling_offsets.weight.any() and not layer.attention_weights.weight.any()
    offsets = layer.sampling_offsets.bias.view(8, 3, 4, 2)
    assert torch.allclose(offsets.abs().amax(-1), torch.arange(1.0, 5).expand(8, 3, 4))
    assert torch.allclose(offsets[0, 0, 0], torch.tensor([1.0, 0.0]))
    assert torch.allclose(offsets[2, 1, 3], torch.tensor([0.0, 4.0]), atol=1e-5)
    assert len(offsets[:, 0, 0].round(decimals=3).unique(dim=0)) == 8
