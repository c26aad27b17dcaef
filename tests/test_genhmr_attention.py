"""GenHMR's deformable attention."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from genhmr_samples import SHAPES, SIZES, SMALL, TINY, as_maps, images, lively_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.genhmr import project_then_sample
from genhmr import Config, DeformableAttention, GenHMR, sample_maps


def attention_input(batch: int = 2, queries: int = 5, heads: int = 3, points: int = 2,
                    channels: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Maps, locations also outside of them, and weights that sum to one."""
    cells = sum(height * width for height, width in SHAPES)
    values = torch.randn(batch, cells, channels, dtype=dtype)
    locations = 1.6 * torch.rand(batch, queries, heads, 3, points, 2, dtype=dtype) - 0.3
    weights = torch.rand(batch, queries, heads, 3, points, dtype=dtype)
    return values, locations, weights / weights.sum((3, 4), keepdim=True)


def naive_sample_maps(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The definition, in loops: four neighbours of each point, nothing outside of the map."""
    maps = as_maps(values)
    batch, queries, heads, levels, points = weights.shape
    out = torch.zeros(batch, queries, heads, values.shape[2], dtype=values.dtype)
    for b, q, h, level, k in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        height, width = SHAPES[level]
        x = locations[b, q, h, level, k, 0].item() * width - 0.5
        y = locations[b, q, h, level, k, 1].item() * height - 0.5
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    part = (1 - abs(x - column)) * (1 - abs(y - row))
                    out[b, q, h] += weights[b, q, h, level, k] * part * maps[level][
                        b, :, row, column]
    return out


def grid_sample_attention(module: DeformableAttention, queries: Tensor, reference: Tensor,
                          values: Tensor) -> Tensor:
    """Deformable-DETR's way: project every cell, sample each map by grid_sample, add up."""
    heads, levels, points = module.shape
    batch, length = queries.shape[:2]
    offsets = module.sampling_offsets(queries).view(batch, length, heads, levels, points, 2)
    weights = module.attention_weights(queries).view(batch, length, heads, -1).softmax(-1)
    weights = weights.view(batch, length, heads, levels, points)
    sizes = torch.tensor([[width, height] for height, width in SHAPES])
    locations = reference[:, None, None, None] + offsets / sizes[:, None]
    projected = module.value_proj(values)
    out = 0.0
    for level, map_ in enumerate(as_maps(projected)):
        map_ = map_.unflatten(1, (heads, -1)).flatten(0, 1)  # (B H, D / H, h, w)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # (B H, L, P, 2)
        sampled = F.grid_sample(map_, grid, align_corners=False)  # (B H, D / H, L, P)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        out = out + (weight * sampled).sum(-1)
    out = out.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)
    return module.output_proj(out)


def random_attention(dtype: torch.dtype = torch.float64) -> DeformableAttention:
    """A layer whose every parameter matters."""
    module = DeformableAttention(replace(TINY, width=12, heads=3, pyramid_width=4)).to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


def test_sampling_equals_four_neighbours_in_loops():
    """sample_maps equals its definition to rounding, also across borders."""
    values, locations, weights = attention_input()
    sums, inside = sample_maps(values, SIZES, locations, weights)
    assert torch.allclose(sums, naive_sample_maps(values, locations, weights), atol=1e-14)
    ones = naive_sample_maps(torch.ones_like(values), locations, weights)[..., 0]
    assert torch.allclose(inside, ones, atol=1e-14)


def test_sampling_of_simple_fields_is_exact():
    """A constant field gives the constant, a ramp the location; far outside the sum is zero."""
    values, locations, weights = attention_input(queries=200)
    inner = 0.5 / 3 + (1 - 1 / 3) * torch.rand_like(locations)  # between the outermost centres
    ramps = torch.cat([torch.stack(torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width,
        indexing="ij"), -1).flatten(0, 1) for height, width in SHAPES]).double()
    ramps = torch.cat((ramps, torch.full_like(ramps, 3.0)), 1).expand(2, -1, -1)
    sums, inside = sample_maps(ramps, SIZES, inner, weights)
    expected = (weights[..., None] * inner).sum((3, 4))
    assert torch.allclose(sums[..., 1], expected[..., 0], atol=1e-7)  # x, along the width
    assert torch.allclose(sums[..., 0], expected[..., 1], atol=1e-7)
    assert torch.allclose(sums[..., 2:], torch.full_like(sums[..., 2:], 3.0))
    assert torch.allclose(inside, torch.ones_like(inside))
    for far in (-5.0, 7.0, 1e30, -1e30, math.inf, -math.inf):
        sums, inside = sample_maps(values, SIZES, torch.full_like(locations, far), weights)
        assert not sums.any() and not inside.any()


def test_sampling_at_centres_is_a_lookup():
    """A sample at the centre of a cell is the cell; on the border it is half of the cell."""
    sizes = torch.tensor([(4, 3)])
    values = torch.randn(1, 12, 5)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(3), indexing="ij")
    centres = torch.stack(((columns + 0.5) / 3, (rows + 0.5) / 4), -1).view(1, 12, 1, 1, 1, 2)
    weights = torch.ones(1, 12, 1, 1, 1)
    assert torch.allclose(sample_maps(values, sizes, centres, weights)[0][:, :, 0], values,
                          atol=1e-5)
    border = torch.tensor([0.5 / 3, 0.0]).expand(1, 1, 1, 1, 1, 2)
    half = sample_maps(values, sizes, border, weights[:, :1])
    assert torch.allclose(half[0][0, 0, 0], 0.5 * values[0, 0], atol=1e-6)
    assert half[1].item() == pytest.approx(0.5)


def test_sampling_gradients():
    """Gradients of maps, locations and weights pass gradcheck."""
    values, locations, weights = attention_input(1, 2, 2, 1, 2)
    inputs = [x.requires_grad_() for x in (values, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, at, w: sample_maps(v, SIZES, at, w), inputs, atol=1e-6)


def test_attention_equals_projecting_everything_first():
    """Sampling before projecting equals projecting before sampling, in values and gradients."""
    module, reference = random_attention(), torch.rand(5, 2).double()
    queries, values = torch.randn(2, 5, 12).double(), attention_input()[0]
    leaves = [queries, reference, values, *module.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    ours = module(queries, reference, values, SIZES)
    theirs = grid_sample_attention(module, queries, reference, values)
    assert torch.allclose(ours, theirs, atol=1e-12)
    weights = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad((weights * ours).sum(), leaves),
                    torch.autograd.grad((weights * theirs).sum(), leaves), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor that is created."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **kwargs or {})
        for tensor in (made if isinstance(made, tuple | list) else [made]):
            if isinstance(tensor, Tensor) and not operation.is_view:
                self.elements = max(self.elements, tensor.numel())
        return made


def test_attention_makes_nothing_of_the_size_of_the_maps():
    """Its largest tensor holds the sampled vectors, not the projected maps."""
    config = Config(width=64, pyramid_width=64, vit_dim=64, vit_heads=4)
    attention, sizes = DeformableAttention(config), torch.tensor([(16, 12), (64, 48), (128, 96)])
    queries, values = torch.randn(1, 96, 64), torch.randn(1, 15_552, 64)
    largest = {}
    for function in (attention, partial(project_then_sample, attention)):
        with torch.no_grad(), Largest() as noted:
            function(queries, torch.rand(96, 2), values, sizes)
        largest[function] = noted.elements
    ours, usual = largest.values()
    assert ours == 96 * 8 * 64 and usual >= values.numel()


def test_attention_equals_transformers():
    """With its weights the layer equals Hugging Face's module to 1e-12."""
    try:
        from transformers.models.deformable_detr import modeling_deformable_detr as peer
    except Exception as error:  # not there, or without what it needs, or beside a wrong torchvision
        pytest.skip(f"no transformers: {error}")

    class Settings:
        d_model, num_feature_levels, disable_custom_kernels = 12, 3, True

    module = random_attention()
    module.value_proj = nn.Linear(12, 12).double()
    other = peer.DeformableDetrMultiscaleDeformableAttention(Settings(), num_heads=3, n_points=2)
    other.double().load_state_dict(module.state_dict())
    queries, reference = torch.randn(2, 5, 12).double(), torch.rand(5, 2).double()
    values = torch.randn(2, sum(h * w for h, w in SHAPES), 12).double()
    shapes = torch.tensor(SHAPES)
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    expected, _ = other(
        queries, encoder_hidden_states=values,
        reference_points=reference[None, :, None].expand(2, -1, 3, -1), spatial_shapes=shapes,
        spatial_shapes_list=list(SHAPES), level_start_index=starts)
    assert torch.allclose(module(queries, reference, values, SIZES), expected, atol=1e-12)


def test_nan_stays_in_its_query():
    """A location or weight that is NaN spoils its own query and head, forward and backward."""
    values, locations, weights = attention_input()
    expected, _ = sample_maps(values, SIZES, locations, weights)
    locations[1, 2, 0, 1, 1, 0] = math.nan
    weights[0, 1, 2, 0, 0] = math.nan
    locations.requires_grad_()
    sums, inside = sample_maps(values, SIZES, locations, weights)
    bad = torch.zeros_like(inside, dtype=torch.bool)
    bad[1, 2, 0] = bad[0, 1, 2] = True
    assert torch.equal(sums.isnan().all(-1), bad) and torch.equal(inside.isnan(), bad)
    assert torch.equal(sums[~bad], expected[~bad])
    gradient, = torch.autograd.grad(sums[~bad].sum(), locations)
    assert gradient[~bad].isfinite().all()


@pytest.mark.parametrize("config", [TINY, SMALL])
def test_nan_picture_stays_in_its_row(config):
    """A NaN picture does not spoil the others of its batch."""
    model, batch = lively_model(config), images(3, config.image_size).float()
    tokens = torch.full((3, 48), model.mask_token)
    with torch.no_grad():
        expected = model(batch, tokens)
        batch[1, 0, 5, 20] = math.nan
        spoiled = model(batch, tokens)
    for name, value in spoiled.items():
        assert value[1].isnan().any(), name
        assert torch.allclose(value[[0, 2]], expected[name][[0, 2]], atol=1e-5)


def test_attention_starts_as_a_ring():
    """Heads look into eight directions, their points at 1, 2, 3, 4 cells, equally weighted."""
    config = replace(TINY, width=32, heads=8, points=4)
    layer = GenHMR(config).transformer.layers[0].cross_attention
    assert not layer.sampling_offsets.weight.any() and not layer.attention_weights.weight.any()
    offsets = layer.sampling_offsets.bias.view(8, 3, 4, 2)
    assert torch.allclose(offsets.abs().amax(-1), torch.arange(1.0, 5).expand(8, 3, 4))
    assert torch.allclose(offsets[0, 0, 0], torch.tensor([1.0, 0.0]))
    assert torch.allclose(offsets[2, 1, 3], torch.tensor([0.0, 4.0]), atol=1e-5)
    assert len(offsets[:, 0, 0].round(decimals=3).unique(dim=0)) == 8
