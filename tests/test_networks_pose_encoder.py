"""The small image encoder that finds keypoints first."""

from types import SimpleNamespace

import pytest
import torch
from genhmr_samples import images
from hypothesis import given
from hypothesis import strategies as st

from genhmr import rotation_6d_to_matrix
from networks.pose_encoder import Lift, PoseEncoder
from networks.small_encoder import cell_centres, heat_map_loss, locate

TINY_ENCODER = SimpleNamespace(image_size=64, widths=(4, 4, 8, 8), blocks=1, heads=2, pooled=4,
                               lift_width=16, grid=(16, 12))


def test_pose_encoder_finds_what_it_says(body):
    """Shapes; probabilities of cells sum to one; places lie among the cells."""
    encoder = PoseEncoder(TINY_ENCODER).eval()
    seen = encoder(encoder.normalise(images(3)))
    rows, columns = TINY_ENCODER.grid
    assert seen.heat.shape == (3, 45, rows * columns) and (rows, columns) == (16, 12)
    assert torch.allclose(seen.heat.exp().sum(-1), torch.ones(3, 45), atol=1e-5)
    assert (seen.at.abs() <= encoder.centres.amax(0)).all()
    assert (0 < seen.share).all() and (seen.share <= 1.00001).all()
    assert {stride: tuple(x.shape[1:]) for stride, x in seen.maps.items()} == {
        4: (8, 16, 12), 8: (8, 8, 6), 16: (8, 4, 3)}
    assert [tuple(x.shape) for x in seen.lifted] == [
        (3, 45, 3), (3, 24, 6), (3, 10), (3, 16)]
    with pytest.raises(ValueError, match="expected .B, 3, 64, 64"):
        encoder.normalise(images(1, 32))


def test_located_keypoints_are_means_around_the_peak():
    """One hot cell is the place; of two in reach it is between; a far one only takes share."""
    centres = cell_centres(TINY_ENCODER.grid)
    probability = torch.zeros(1, 3, len(centres))
    probability[0, 0, 30] = 1.0
    probability[0, 1, 30], probability[0, 1, 31] = 0.6, 0.4
    probability[0, 2, 30], probability[0, 2, 100] = 0.7, 0.3
    at, share = locate(probability, centres, 2.5 / 16)
    assert torch.allclose(at[0, 0], centres[30]) and torch.allclose(at[0, 2], centres[30])
    assert torch.allclose(at[0, 1], 0.6 * centres[30] + 0.4 * centres[31])
    assert torch.allclose(share, torch.tensor([[1.0, 1.0, 0.7]]))


def test_lift_begins_without_features_near_the_rest_pose():
    """A new lift does not read the picture, and its pose is hardly bent; shifts change little."""
    lift = Lift(45, 24, 10, 32, 7)
    at, share = 0.3 * torch.randn(5, 45, 2), torch.rand(5, 45)
    lifted = lift(at, share, torch.randn(5, 7))
    for value, without in zip(lifted, lift(at, share), strict=True):
        assert torch.equal(value, without)
    assert (rotation_6d_to_matrix(lifted.pose) - torch.eye(3)).abs().mean() < 0.3
    weights = torch.zeros(1, 45)
    weights[:, :2] = 1.0
    moved = at[:1].clone()
    assert all(x.isfinite().all() for x in lift(0 * moved, weights))  # no extent


@given(st.lists(st.tuples(st.floats(-0.8, 0.8), st.floats(-0.8, 0.8)), min_size=1, max_size=4))
def test_heat_map_loss_is_least_where_the_keypoint_is(places):
    """The heat of least loss has its mean at the keypoint, or at the nearest possible place."""
    grid = TINY_ENCODER.grid
    centres = cell_centres(grid)
    assert centres.shape == (16 * 12, 2) and centres.mean(0).abs().max() < 1e-6
    low, high = centres.amin(0), centres.amax(0)
    assert torch.allclose(high - low + 1 / 16, torch.tensor([0.75, 1.0]))
    places = torch.tensor(places)[None]
    heat = torch.zeros(1, places.shape[1], len(centres), requires_grad=True)
    loss = heat_map_loss(heat.log_softmax(-1), places, grid).sum()
    gradient, = torch.autograd.grad(loss, heat)
    wanted = 1 / len(centres) - gradient  # of cross-entropy: what is believed less what is true
    assert wanted.min() > -1e-6
    assert torch.allclose(wanted @ centres, places.clamp(low, high), atol=1e-5)
    best = heat_map_loss(wanted.clamp_min(1e-9).log(), places, grid).sum()
    assert best <= loss
