"""networks/fast_simplehand.py: every way to run the model computes what the plain one does."""

import functools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks import simplehand as room
from networks import fast_simplehand as fast
from networks.backbones import simplehand_model
from simplehand import Config, SimpleHand

TINY = Config(
    image_size=64, embed_dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), mlp_ratio=2.0,
    feature_width=64, layer_scale=0.5, token_width=16, dims=(16, 8, 8), heads=2,
    backbone_drop_path=0.0, drop_path=0.0, dropout=0.0,
)


@functools.cache
def dense_and_sampled() -> list[nn.Module]:
    torch.manual_seed(0)
    model = SimpleHand(TINY).eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias, 0.3, 0.2)
    return [model.fuse().mesh_head, fast.with_sampled_cells(model.fuse()).mesh_head]


@given(st.lists(st.one_of(st.floats(-0.5, 1.5, width=32), st.sampled_from([0.0, 0.5, 1.0])),
                min_size=6, max_size=6), st.integers(1, 3))
def test_sampled_cells_are_those_of_the_whole_map(values, batch):
    """Computing the deconvolution only where it is read gives the same tokens."""
    dense, sampled = dense_and_sampled()
    points = torch.tensor(values).view(3, 2).expand(batch, 3, 2)
    features = torch.randn(batch, 64, 2, 3)
    with torch.no_grad():
        expected = dense.tokens(features, points)
        assert torch.allclose(sampled.tokens(features, points), expected, atol=1e-5)
    assert expected.abs().max() > 0.01


def test_bf16_backbones_leave_coordinates_in_full_precision():
    """In bfloat16 the results are close, and finer than bf16."""
    torch.manual_seed(0)
    model = SimpleHand(TINY).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = model(images), fast.fuse_bf16(model)(images)
    for name, value in found.items():
        assert value.dtype == torch.float32 and not torch.equal(value, value.bfloat16().float())
        assert 0 < (value - expected[name]).abs().max() < 0.05 * expected[name].abs().max()


def test_sampled_cells_multiply_no_integers():
    """CUDA has no matrix product of integers: those in the graph are all of floating point."""
    sampled = dense_and_sampled()[1]
    dtypes = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), options=None):
            if any(name in str(operator) for name in ("mm", "mv", "dot")):
                dtypes.extend(x.dtype for x in arguments if isinstance(x, torch.Tensor))
            return operator(*arguments, **(options or {}))

    with torch.no_grad(), Record():
        sampled.tokens(torch.randn(1, 64, 2, 2), torch.rand(1, 21, 2))
    assert dtypes and all(dtype.is_floating_point for dtype in dtypes)


@pytest.mark.parametrize("fields", [
    {"upsample": (2, 2)}, {"refine": 1}, {"official": True},
    {"backbone": "hrnet", "embed_dims": (8, 16, 32, 64), "upsample": (1,)}], ids=str)
def test_sampled_cells_need_one_deconvolution(fields):
    """For any other config the message says what was expected."""
    with torch.device("meta"):
        model = simplehand_model(replace(TINY, **fields))
    with pytest.raises(ValueError, match="one deconvolution"):
        fast.with_sampled_cells(model)


@pytest.mark.slow
def test_benchmark_compares_what_computes_the_same(capsys, monkeypatch):
    """Every way is timed and computes nearly the same; one that fails is a line, the others run."""
    def fail(*_, **__):
        raise RuntimeError("no compiler found\nwith details")

    monkeypatch.setattr(torch, "compile", fail)
    model = simplehand_model(TINY).eval()
    room.compare(model, torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), 0.0)
    lines = capsys.readouterr().out.splitlines()
    assert "fused, torch.compile: not possible here, no compiler found" in lines
    ways = [line for line in lines if "differs by" in line]
    assert len(ways) == 5 and "plain" in ways[0]
    for way in ways:
        assert float(way.split("differs by ")[1].split()[0]) < (50 if "bf16" in way else 1e-2)
