"""GenHMR on a picture: crops, cameras, refinement, counts."""

import math

import numpy as np
import pytest
import torch
from genhmr_samples import FOR_PICTURES as TINY
from genhmr_samples import noisy_model
from hypothesis import assume, given
from hypothesis import strategies as st
from simplehand_samples import picture

import bodymodels
import genhmr
from genhmr import GenHMR

SMPL45 = bodymodels.JOINT_SETS["smpl45"]


@pytest.fixture(scope="module")
def model() -> GenHMR:
    return noisy_model()


BOX = (30.0, 20.0, 45.0, 60.0)


def keypoints_of(found: dict, *names: str, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Keypoints (45, 3) as predicted, of these joints, moved by `shift` pixels."""
    keypoints = np.zeros((45, 3))
    for name in names:
        index = SMPL45.index(name)
        keypoints[index] = *(found["keypoints_2d"][index] + shift), 1.0
    return keypoints


# ---------------------------------------------------------------------------- crop and camera


@given(st.tuples(st.floats(-20, 100), st.floats(-20, 80), st.floats(1, 200), st.floats(1, 200)))
def test_the_network_sees_the_whole_box(box):
    """The crop's middle three quarters hold the box, with a margin of a fifth one way."""
    assume(min(box[0] + box[2], box[1] + box[3]) > 0)  # it has a part of the picture
    center, side = genhmr.square_box(picture(), box, np.zeros((45, 3)))
    assert np.allclose(center, (box[0] + box[2] / 2, box[1] + box[3] / 2))
    assert math.isclose(max(box[2] / (0.75 * side), box[3] / side), 1 / 1.2)


def test_convention_crops_are_sampled_at_pixel_centres():
    """A picture of its coordinates shows where crops are: x + 0.5 exactly; outside is black."""
    white = np.full((60, 60, 3), 200, np.uint8)
    crop = genhmr.crop_picture(white, np.array([0.0, 30.0]), 60.0, 32)
    assert not crop[:, :, :15].any() and torch.allclose(crop[:, 2:-2, 17:], torch.tensor(200.0))
    y, x = np.mgrid[:80, :100]
    image = np.stack([x, y, 0 * x], -1).astype(np.uint8)
    center, side, size = np.array([50.0, 40.0]), 40.0, 20
    crop = genhmr.crop_picture(image, center, side, size)
    coordinates = (torch.arange(size) + 0.5) / size * side - side / 2
    assert torch.allclose(crop[0], coordinates + 50 - 0.5, atol=1e-3)
    assert torch.allclose(crop[1], coordinates[:, None] + 40 - 0.5, atol=1e-3)


cameras = st.tuples(st.floats(0.2, 2), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))


@given(cameras, st.tuples(st.floats(0, 500), st.floats(0, 500)), st.floats(20, 900))
def test_the_mesh_covers_in_the_picture_what_it_covered_in_the_crop(camera, center, side):
    """Projected by the picture's K = projected by the crop's camera, moved to the crop's place."""
    camera, center = torch.tensor([camera], dtype=torch.float64), np.array(center)
    points = torch.randn(1, 30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    in_crop = genhmr.project_to_crop(points, camera, TINY.focal)[0].numpy()
    translation, K = genhmr.picture_camera(camera, TINY.focal, center, side)
    pixels = bodymodels.project(points[0] + torch.from_numpy(translation),
                                torch.from_numpy(K)).numpy()
    assert np.allclose(pixels, center + side * in_crop, atol=1e-6)


# -------------------------------------------------------------------------------- prediction


def test_prediction_is_consistent(model, body):
    """Shapes, types, one camera for everything, every count as scheduled."""
    found = genhmr.predict(model, body, picture(), box=BOX)
    assert {name: value.shape for name, value in found.items()} == {
        "vertices": (6890, 3), "joints": (24, 3), "keypoints_3d": (45, 3), "keypoints_2d": (45, 2),
        "pose": (24, 3, 3), "betas": (10,), "transl": (3,), "camera": (3,), "K": (3, 3),
        "box": (4,), "confidence": (45,), "energies": (1,), "drawn_poses": (0, 24, 3, 3),
        "tokens": (96,), "fitted": ()}
    assert all(value.dtype == {"tokens": np.int64, "fitted": bool}.get(name, np.float32)
               for name, value in found.items())
    pose, betas = torch.from_numpy(found["pose"])[None], torch.from_numpy(found["betas"])[None]
    posed = body(betas, pose, transl=torch.from_numpy(found["transl"])[None])
    assert np.allclose(posed.vertices[0], found["vertices"], atol=1e-4)
    assert np.allclose(body.keypoints(posed)[0], found["keypoints_3d"], atol=1e-4)
    assert np.array_equal(found["joints"], found["keypoints_3d"][:24])
    pixels = bodymodels.project(torch.from_numpy(found["keypoints_3d"]).double(),
                                torch.from_numpy(found["K"]).double())
    assert np.allclose(pixels, found["keypoints_2d"], atol=0.01)
    assert np.allclose(found["box"], (16.5, 14, 72, 72))


def test_refinement_starts_from_the_mean_code(model, body):
    """With mean_code the unrefined pose is the one that the steps start from."""
    before = genhmr.predict(model, body, picture(), box=BOX, iterations=1, mean_code=True)
    targets = keypoints_of(before, "nose", "left_wrist", shift=(2, -1))
    after = genhmr.predict(model, body, picture(), box=BOX, iterations=1, mean_code=True,
                           keypoints=targets, refinement=2, step_size=0.1)
    still = genhmr.predict(model, body, picture(), box=BOX, iterations=1, mean_code=True,
                           keypoints=targets, refinement=0)
    assert np.array_equal(still["pose"], before["pose"])
    assert np.array_equal(still["energies"], after["energies"][:1])
    plain = genhmr.predict(model, body, picture(), box=BOX, iterations=1)
    assert np.array_equal(plain["tokens"], before["tokens"])
    assert not np.array_equal(plain["pose"], before["pose"])


def test_schedules_and_chance_reach_the_sampling(model, body, monkeypatch):
    """Rows of Tables 2, 11 and 12: T, schedule and top_k give other tokens; so does chance, also
    for drawn poses, which are as many as asked for, differ, and are drawn in random order."""
    def found(seed: int = 0, **options) -> dict:
        return genhmr.predict(model, body, picture(), **options,
                              generator=torch.Generator().manual_seed(seed))

    def tokens(*seed: int, **options) -> np.ndarray:
        return found(*seed, **options)["tokens"]

    assert np.array_equal(tokens(), tokens(iterations=5, schedule="cosine", top_k=1))
    for options in ({"iterations": 1}, {"schedule": "cubic"}, {"top_k": 8}):
        assert not np.array_equal(tokens(), tokens(**options))
    assert np.array_equal(tokens(top_k=8), tokens(top_k=8))
    assert not np.array_equal(tokens(top_k=8), tokens(1, top_k=8))
    drawn = [found(seed, iterations=2, samples=3)["drawn_poses"] for seed in (0, 0, 1)]
    assert drawn[0].shape == (3, 24, 3, 3) and np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert np.abs(drawn[0][0] - drawn[0][1]).max() > 1e-3
    sample, orders = genhmr.sample_from, []

    def noted(*given, **options):
        orders.append(options.get("order", "confidence"))
        return sample(*given, **options)

    monkeypatch.setattr(genhmr, "sample_from", noted)
    found(samples=2)
    assert orders == ["confidence", "random", "random"]


@pytest.mark.parametrize("names", [("nose", "left_wrist"), SMPL45])
def test_refinement_follows_the_keypoints(model, body, names):
    """For small steps the energy falls, and the seen keypoints are nearer to their targets.

    Small for this model, whose random weights are steeper than a trained tokenizer's.
    """
    before = genhmr.predict(model, body, picture(), box=BOX)
    targets = keypoints_of(before, *names, shift=(2, -1))
    after = genhmr.predict(model, body, picture(), box=BOX, keypoints=targets, refinement=20,
                           step_size=0.1)
    assert after["energies"].shape == (21,) and (np.diff(after["energies"]) < 0).all()
    seen = targets[:, 2] > 0

    def error(found: dict) -> float:
        return np.square(found["keypoints_2d"] - targets[:, :2])[seen].sum()

    assert error(after) < error(before)
    assert np.array_equal(before["tokens"], after["tokens"])  # refinement leaves the codebook
    assert np.array_equal(before["betas"], after["betas"])
    assert np.array_equal(before["K"], after["K"])


def test_fitted_camera_puts_the_body_where_its_keypoints_are(model, body):
    """A body seen elsewhere, twice as large: the same pose there; then refinement, if asked for."""
    before = genhmr.predict(model, body, picture(), box=BOX)
    targets = keypoints_of(before, "nose", "left_wrist", "right_wrist", "left_ankle")
    targets[:, :2] = 2 * (targets[:, :2] - 40) + (30, 25)
    found = genhmr.predict(model, body, picture(), box=BOX, keypoints=targets, refinement=0,
                           fitted_camera=True)
    seen = targets[:, 2] > 0
    assert np.abs(found["keypoints_2d"] - targets[:, :2])[seen].max() < 1  # perspective remains
    assert found["camera"][0] == pytest.approx(2 * before["camera"][0], rel=0.05)
    assert np.array_equal(found["pose"], before["pose"])
    refined = genhmr.predict(model, body, picture(), box=BOX, keypoints=targets, refinement=1,
                             step_size=0.1, fitted_camera=True)
    away = genhmr.predict(model, body, picture(), box=BOX, keypoints=targets, refinement=1,
                          step_size=0.1)
    assert np.array_equal(refined["camera"], found["camera"])
    assert refined["fitted"] and found["fitted"] and not away["fitted"]
    assert refined["energies"][0] < 0.01 * away["energies"][0]
