"""Rendered bodies: exact labels, determinism, boxes, outfits, augmentation."""

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from body_samples import BODY, SMPL24, SMPL45, digest, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import bodymodels as bm
import data
from sets.augmentation import Augmentation
from sets.crops import BODY_PARTS, body_camera, crop_homography, inside, move_body
from sets.motion import OTHER_NOISE, motion_frames
from sets.rendered_bodies import (
    RenderedBodies,
    augment_body,
    body_surface,
    paint_body,
    sample_body_scene,
    sample_outfit,
)

CONTRACT = {
    "image": ((3, 48, 48), torch.uint8), "K": ((3, 3), torch.float32),
    "pose": ((24, 3, 3), torch.float32), "pose_valid": ((), torch.float32),
    "betas": ((10,), torch.float32), "betas_valid": ((), torch.float32),
    "transl": ((3,), torch.float32), "keypoints_3d": ((45, 3), torch.float32),
    "keypoints_3d_valid": ((45,), torch.float32), "keypoints_2d": ((45, 2), torch.float32),
    "keypoints_valid": ((45,), torch.float32), "index": ((), torch.int64),
}
RECIPES = {name: data.AUGMENTATIONS[name] for name in ("official_hmr", "rendered_bodies")}


def bodies(split="train", size=48, length=30, **options):
    return RenderedBodies(split, size, length=length, progress=False, **options)


def test_body_samples_keep_the_contract():
    """These keys, shapes and types, all known; they collate."""
    sample = bodies()[35]
    assert {name: (tuple(value.shape), value.dtype) for name, value in sample.items()} == CONTRACT
    assert sample["index"] == 5 and sample["pose_valid"] == sample["betas_valid"] == 1
    assert sample["keypoints_3d_valid"].all()
    assert next(iter(DataLoader(bodies(), batch_size=3)))["image"].shape == (3, 3, 48, 48)


@pytest.mark.parametrize("recipe,atol", [
    (None, 1e-4), (replace(RECIPES["official_hmr"], flip=0.0), 1e-4),
    (replace(RECIPES["rendered_bodies"], flip=0.0), 1e-4),
    (replace(RECIPES["official_hmr"], flip=1.0), 8e-3)])  # shapes are symmetric to millimetres
def test_body_labels_are_exact(recipe, atol):
    """Pose, shape and translation give the 3D keypoints; K projects them to the 2D ones."""
    light = BODY.for_keypoints()
    for sample in map(bodies(augmentation=recipe).__getitem__, range(30)):
        output = light(sample["betas"][None], sample["pose"][None], transl=sample["transl"][None])
        torch.testing.assert_close(light.keypoints(output)[0], sample["keypoints_3d"], atol=atol,
                                   rtol=0)
        projected = bm.project(sample["keypoints_3d"].double(), sample["K"].double())
        torch.testing.assert_close(projected.float(), sample["keypoints_2d"], atol=0.01, rtol=1e-5)
        inside = ((sample["keypoints_2d"] >= 0) & (sample["keypoints_2d"] <= 48)).all(1)
        assert torch.equal(sample["keypoints_valid"], inside.float())
        assert (sample["keypoints_3d"][:, 2] > 1).all()


def test_convention_the_camera_is_the_papers():
    """5000 pixels of focal length for a crop of 256, principal point in the middle."""
    for size in (48, 256):
        K = bodies(size=size)[0]["K"]
        focal = 5000 / 256 * size
        assert K.tolist() == [[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]


def test_bodies_are_pure_functions_of_their_keys(tmp_path):
    """A sample is the same in a new instance, another order, a longer split, the cache."""
    sample = digest(bodies()[4])
    again = bodies()
    again[9]
    assert sample == digest(again[4]) == digest(bodies(length=31)[4])
    cached = bodies(cache=tmp_path)
    assert digest(cached[4]) == sample
    assert digest(pickle.loads(pickle.dumps(cached))[4]) == sample
    assert len(list(tmp_path.glob("rendered_bodies_train_48_*.npy"))) == 1
    others = [bodies("test"), bodies(seed=1), bodies(views=30.0),
              bodies(augmentation="official_hmr")]
    others.append(bodies(wide=1.0, cache=tmp_path))
    assert len({sample, *(digest(dataset[4]) for dataset in others)}) == 6
    moving = bodies(augmentation="rendered_bodies", cache=tmp_path)
    assert digest(moving[4]) == digest(bodies(augmentation="rendered_bodies")[4])
    assert digest(moving[4]) != digest(moving[34])  # the next epoch


def test_bodies_do_not_depend_on_threads():
    """One thread or two render the same bits."""
    threads, digests = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            digests.append([digest(bodies()[key]) for key in range(5)])
    finally:
        torch.set_num_threads(threads)
    assert digests[0] == digests[1]


def test_poses_of_a_split_come_from_its_clips():
    """Up to noise and mirroring, a test picture's spine is that of a frame of a test clip."""
    spine = [SMPL24.index(name) for name in ("spine1", "spine2", "spine3")]
    frames = motion_frames("test")[:, spine]
    for sample in map(bodies("test").__getitem__, range(12)):
        angles = bm.matrix_to_axis_angle(sample["pose"][spine].double()).numpy()
        assert np.abs(frames - angles).max((1, 2)).min() < 4.5 * OTHER_NOISE


def test_pictures_show_the_body():
    """Where the surface projects to, and hardly anywhere else, the picture is painted."""
    faces = body_surface().faces
    for seed in range(12):
        scene = sample_body_scene(np.random.default_rng(seed), "train", 96, 180.0, 180.0)
        image = np.full((96, 96, 3), -1, np.float32)
        paint_body(image, scene, np.random.default_rng(seed))
        painted = image[..., 0] >= 0
        pixels = bm.project(torch.from_numpy(scene.surface), torch.from_numpy(scene.K).float())
        pixels = np.concatenate([pixels.numpy(), scene.surface[:, 2:]], 1)
        silhouette = bm.rasterize(pixels, faces, (96, 96))[0] >= 0
        assert painted.mean() > 0.02
        assert (painted & silhouette).sum() > 0.98 * silhouette.sum()  # clothes hide nothing
        assert painted.sum() < 1.5 * silhouette.sum() + 40  # and are thin
        assert image.std() > 5


def test_boxes_hold_the_body_or_a_part_of_it():
    """Most crops hold all keypoints in the part the encoder sees; some are truncated, not many."""
    whole = seen = 0
    for seed in range(200):
        scene = sample_body_scene(np.random.default_rng(seed), "train", 128, 180.0, 180.0)
        projected = scene.keypoints @ scene.K.T
        pixels = projected[:, :2] / projected[:, 2:]
        whole += inside(pixels, 128, 128).all()
        seen += inside(pixels - (16, 0), 96, 128).all()
        assert inside(pixels, 128, 128).sum() >= 4
    assert 140 < whole < 180 and whole - 35 < seen <= whole


def test_parts_of_the_body():
    """Each part contains the keypoints that its name says."""
    parts = {name: {joint for joint in SMPL45 if re.search(pattern, joint)}
             for name, (pattern, _) in BODY_PARTS.items()}
    assert {"nose", "left_knee"} < parts["above the knees"]
    assert not {"left_ankle", "right_heel", "left_big_toe", "left_foot"} & parts["above the knees"]
    assert parts["above the hips"] == parts["above the knees"] - {"left_knee", "right_knee"}
    assert "left_heel" not in parts["head and shoulders"] and "left_ear" in parts[
        "head and shoulders"]
    assert sum(chance for _, chance in BODY_PARTS.values()) == pytest.approx(1)


@given(seeds)
def test_outfits_differ_between_parts(seed):
    """Colours lie in 0..1, cloth is at most centimetres thick, and a body has several colours."""
    outfit = sample_outfit(np.random.default_rng(seed))
    assert outfit.albedo.shape == (6890, 3) and outfit.thickness.shape == (6890,)
    assert (outfit.albedo >= 0).all() and outfit.albedo.max() < 1.5
    assert outfit.thickness.min() >= 0 and outfit.thickness.max() <= 0.02
    hand, chest = BODY.surface_vertex_ids[13], int(np.abs(
        body_surface().template - (0, 0.1, 0.12)).sum(1).argmin())
    assert outfit.thickness[hand] == 0 and (outfit.albedo[hand] != outfit.albedo[chest]).any()


def spotted_sample(x, y, size=96):
    """A sample whose picture is one bright spot where all its keypoints are."""
    rows, columns = np.indices((size, size)) + 0.5
    spot = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    K = body_camera(size)
    point = np.array([(x - size / 2) / K[0, 0], (y - size / 2) / K[0, 0], 1]) * 30
    return {"image": np.repeat(spot[..., None], 3, 2).round().astype(np.uint8), "K": K,
            "pose": np.tile(np.eye(3), (24, 1, 1)), "betas": np.zeros(10),
            "transl": point - (0.01, -0.2, 0.03), "keypoints_3d": np.tile(point, (45, 1)),
            "keypoints_2d": np.tile([x, y], (45, 1)).astype(np.float64)}


@given(seeds, st.floats(38, 58), st.floats(38, 58))
def test_pictures_move_with_their_labels(seed, x, y):
    """After any augmentation, a spot is where the moved keypoints are and where K projects it."""
    recipe = Augmentation(center_jitter=0.03, scale=(0.8, 1.2), rotation=40, flip=0.5)
    moved = augment_body(spotted_sample(x, y), recipe, np.random.default_rng(seed))
    weight = moved["image"][0].astype(np.float64)
    rows, columns = np.indices(weight.shape) + 0.5
    centroid = [(weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()]
    np.testing.assert_allclose(centroid, moved["keypoints_2d"][0], atol=0.1)
    projected = moved["keypoints_3d"] @ moved["K"].T
    np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], moved["keypoints_2d"],
                               atol=1e-6)


@given(seeds, st.floats(-3, 3), st.booleans())
def test_moving_a_body_can_be_undone(seed, roll, mirror):
    """Turning and mirroring back restores every label."""
    record = bodies().render(seed % 1000)
    sample = {name: record[name].astype(np.float64) for name in record.dtype.names}
    there = crop_homography((24, 24), 48, 48, roll=roll, mirror=mirror)
    moved = move_body(sample, there, roll, mirror)
    back = roll if mirror else -roll
    again = move_body(moved, crop_homography((24, 24), 48, 48, roll=back, mirror=mirror),
                           back, mirror)
    for name in ("pose", "keypoints_3d", "keypoints_2d", "K", "transl"):
        np.testing.assert_allclose(again[name], sample[name], atol=2e-6, err_msg=name)
    assert np.isclose(np.linalg.det(moved["pose"]), 1, atol=1e-5).all()
    assert moved["K"][0, 0] > 0 and moved["K"][1, 1] > 0


def test_mirrored_bodies_exchange_left_and_right():
    """After mirroring, the left hand's keypoint is the mirrored one of the right hand."""
    record = bodies().render(3)
    sample = {name: record[name] for name in record.dtype.names}
    homography = crop_homography((24, 24), 48, 48, mirror=True)
    moved = move_body(sample, homography, 0.0, True)
    left, right = SMPL45.index("left_wrist"), SMPL45.index("right_wrist")
    x, y = sample["keypoints_2d"][right]
    np.testing.assert_allclose(moved["keypoints_2d"][left], [48 - x, y], atol=1e-4)
    np.testing.assert_allclose(moved["keypoints_3d"][left],
                               sample["keypoints_3d"][right] * (-1, 1, 1), atol=1e-5)


def test_official_recipe_draws_as_hmr_does():
    """Scale 1 +- 0.3 and shift +- 0.02 cut at one deviation, 60 % turned by 30 degrees, cut at 60.
    """
    recipe = data.AUGMENTATIONS["official_hmr"]
    draws = [recipe.draw_motion(np.random.default_rng(seed)) for seed in range(3000)]
    shift, scale, roll = (np.array(values) for values in zip(*draws, strict=True))
    assert np.abs(shift).max() == 0.02 and (np.abs(shift) == 0.02).mean() == pytest.approx(
        0.317, abs=0.03)
    assert scale.min() == pytest.approx(0.7) and scale.max() == pytest.approx(1.3)
    assert scale.mean() == pytest.approx(1, abs=0.02)
    degrees = np.rad2deg(roll)
    assert (degrees != 0).mean() == pytest.approx(0.6, abs=0.03)
    assert np.abs(degrees).max() == pytest.approx(60)
    assert degrees[degrees != 0].std() == pytest.approx(29, abs=1.5)
    assert (recipe.flip, recipe.extreme, recipe.gain) == (0.5, 0.1, (0.8, 1.2))


def test_extreme_crops_show_a_part():
    """With probability 1 each crop is a part's box: fewer keypoints stay inside than before."""
    recipe = Augmentation(extreme=1.0)
    assert recipe.moves
    plain, parts = bodies(), bodies(augmentation=recipe)
    kept = [(plain[key]["keypoints_valid"].sum(), parts[key]["keypoints_valid"].sum())
            for key in range(30)]
    assert all(after >= 3 for _, after in kept)
    assert np.mean([after < before for before, after in kept]) > 0.6


@pytest.mark.parametrize("options,message", [
    ({"views": -1}, "views in 0..180"), ({"length": 0}, "positive length"),
    ({"size": 8}, "expected size >= 16, got 8"), ({"split": "val"}, "unknown split 'val'"),
    ({"augmentation": "hmr"}, "unknown augmentation 'hmr': expected one of .*official_hmr"),
])
def test_rendered_bodies_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        bodies(**options)
