"""networks/smooth.py: the filter's properties, and who is who over the frames of a video."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from networks import smooth
from networks.smooth import follow, overlap, smooth_positions, smooth_rotations, smooth_video

SEEDS = st.integers(0, 2**32 - 1)


def positions(seed: int, frames: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A random walk of three points, and numbers of frames with gaps."""
    random = np.random.default_rng(seed)
    return random.normal(0, 0.05, (frames, 3, 3)).cumsum(0), random.integers(1, 4, frames).cumsum()


@given(SEEDS)
def test_smoothing_knows_no_place_direction_or_time_s_arrow(seed):
    """Moved, turned or reversed input gives moved, turned or reversed output. Nor does a point know
    of the others."""
    values, frames = positions(seed)
    turn = Rotation.random(random_state=seed).as_matrix()
    found = smooth_positions(values, frames, 30)
    moved = smooth_positions(values @ turn + (1, 2, 3), frames, 30)
    assert np.allclose(moved, found @ turn + (1, 2, 3))
    assert np.allclose(smooth_positions(values, frames + 5, 30), found)
    assert np.allclose(smooth_positions(values[:, :1], frames, 30), found[:, :1])
    backward = smooth_positions(values[::-1], -frames[::-1], 30)[::-1]
    assert np.abs(backward - found)[10:-10].max() < 1e-3  # the ends feel which pass came first


@given(SEEDS, st.floats(0, 0.3))
def test_rotations_stay_rotations(seed, noise):
    """The result is orthogonal with determinant 1, turns with its input on either side, and what
    rests rests."""
    vectors = positions(seed)[0] + np.random.default_rng(seed).normal(0, noise, (40, 3, 3))
    values = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(40, 3, 3, 3)
    frames = np.arange(40)
    found = smooth_rotations(values, frames, 30)
    assert np.allclose(found @ found.swapaxes(-1, -2), np.eye(3))
    assert (np.linalg.det(found) > 0).all()
    turn, other = Rotation.random(2, random_state=seed).as_matrix()
    assert np.allclose(smooth_rotations(turn @ values @ other, frames, 30), turn @ found @ other)
    rest = np.repeat(values[:1], 40, 0)
    assert np.allclose(smooth_rotations(rest, frames, 30), rest)


@pytest.mark.parametrize("rate", [1.0, 30.0, 240.0])
def test_steady_movement_has_no_lag(rate):
    """At constant speed a position is where the body is, in every frame and with gaps."""
    frames = np.array([0, 1, 2, 5, 6, 9, 10])
    values = frames[:, None, None] * np.array([1.0, -2, 0.5])
    assert np.allclose(smooth_positions(values, frames, rate), values)
    for count in range(1, 4):
        assert np.allclose(smooth_positions(values[:count], frames[:count], rate), values[:count])
    turns = Rotation.from_rotvec(np.arange(60)[:, None] / 30 * [0, 1, 0]).as_matrix()[:, None]
    found = smooth_rotations(turns, np.arange(60), 30)
    assert np.abs(found - turns)[20:40].max() < 1e-3


@pytest.mark.parametrize("speed", [0.0, 1.0])
def test_noise_gets_smaller(speed):
    """Of a body at rest and of one whose joints turn by a rad/s, both position and jitter."""
    random, frames = np.random.default_rng(0), np.arange(90)
    true = np.stack([np.sin(speed * frames / 30 + phase) for phase in range(3)], 1)[:, None]
    noisy = true + random.normal(0, 0.1, true.shape)
    matrices = [Rotation.from_rotvec(x[:, 0]).as_matrix()[:, None] for x in (true, noisy)]
    for correct, given_values, found in (
            (true, noisy, smooth_positions(noisy, frames, 30)),
            (*matrices, smooth_rotations(matrices[1], frames, 30))):
        assert np.abs(found - correct).mean() < 0.75 * np.abs(given_values - correct).mean()
        jitter, before = (np.abs(np.diff(x, 2, 0)).mean() for x in (found, given_values))
        assert jitter < 0.4 * before


def test_two_people_who_pass_keep_their_tracks():
    """By their boxes, although their order changes; nobody follows one who left long ago."""
    def at(x: float, side: int = 0) -> dict[str, np.ndarray]:
        return {"box": np.array([x, 0, 100, 200.0]), "side": np.array(side)}

    frames = [[at(0), at(60, 1)], [at(60, 1), at(20)], [at(40)], [], [at(50), at(60, 1)]]
    assert follow(frames) == [[(0, 0), (1, 1), (2, 0), (4, 0)], [(0, 1), (1, 0), (4, 1)]]
    late = [[at(0)], *[[]] * smooth.GAP, [at(0)]]
    assert follow(late) == [[(0, 0)], [(smooth.GAP + 1, 0)]]
    assert follow([[at(0)], [at(90)]]) == [[(0, 0)], [(1, 0)]]


def test_overlap_is_intersection_over_union():
    """2 x 3 common cells of two boxes of 4 x 5; nothing of boxes apart; all of the same one."""
    assert overlap((0, 0, 4, 5), (2, 2, 4, 5)) == pytest.approx(6 / (20 + 20 - 6))
    assert overlap((0, 0, 4, 5), (2, 2, 1, 1), smaller=True) == 1
    assert overlap((0, 0, 4, 5), (4, 0, 4, 5)) == 0 and overlap((1, 2, 3, 4), (1, 2, 3, 4)) == 1


def test_bodies_are_posed_again_with_one_shape():
    """`pose` sees smooth rotations and translations and the mean shape; hands move as a whole."""
    random = np.random.default_rng(0)
    frames = [[{"box": np.array([0, 0, 9, 9]), "betas": random.normal(size=10),
                "pose": Rotation.random(24, random_state=frame).as_matrix(),
                "transl": random.normal(size=3), "other": np.array(frame)}] for frame in range(5)]
    found = smooth_video(frames, 30.0, lambda arrays: arrays | {"vertices": arrays["transl"] * 2})
    transl = np.stack([frame[0]["transl"] for frame in frames])
    for number, (one,) in enumerate(found):
        assert np.allclose(one["betas"], np.mean([frame[0]["betas"] for frame in frames], 0))
        assert np.allclose(one["vertices"], 2 * smooth_positions(
            transl[:, None], range(5), 30)[number, 0], atol=1e-5)
        assert one["other"] == number and one["transl"].dtype == np.float32
    hand = random.normal(size=(778, 3))
    roots = random.normal(size=(5, 3))
    frames = [[{"box": np.array([0, 0, 9, 9]), "side": np.array(1), "root": root,
                "vertices": hand + root, "joints": hand[:21] + root}] for root in roots]
    for (one,) in smooth_video(frames, 30.0, None):
        assert np.allclose(one["vertices"] - one["root"], hand, atol=1e-5)
        assert np.allclose(one["joints"], one["vertices"][:21], atol=1e-5)
