"""Pictures, crops, augmentation, rendered hands and FreiHAND."""

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

import bodymodels
import data

ROOT = Path(data.__file__).parent
CONTRACT = {
    "image": ((3, 48, 48), torch.uint8), "K": ((3, 3), torch.float32),
    "keypoints_2d": ((21, 2), torch.float32), "keypoints_valid": ((21,), torch.float32),
    "joints": ((21, 3), torch.float32), "vertices": ((778, 3), torch.float32),
    "mesh_valid": ((), torch.float32), "side": ((), torch.int64), "index": ((), torch.int64),
    "crop": ((3, 3), torch.float32), "camera_rotation": ((3, 3), torch.float32),
}


def hands(split="train", size=48, length=40, **options):
    return data.RenderedHands(split, size, length=length, progress=False, **options)


def digest(sample):
    joined = b"".join(sample[name].numpy().tobytes() for name in sorted(sample))
    return hashlib.sha256(joined).hexdigest()


def assert_projects(sample, atol=2e-3):
    projected = bodymodels.project(sample["joints"], sample["K"])
    torch.testing.assert_close(projected, sample["keypoints_2d"], atol=atol, rtol=1e-5)


def blob(width, height, x, y, spread=3.0):
    """A picture (height, width, 3) with one bright Gaussian spot at pixel (x, y)."""
    columns, rows = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    value = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2))
    return np.repeat(value[..., None], 3, 2).round().astype(np.uint8)


def centroid(image):
    weight = image[..., 0].astype(np.float64)
    rows, columns = np.indices(weight.shape) + 0.5
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


# ----------------------------------------------------------------------------------- crops

intrinsics = st.builds(
    lambda fx, ratio, cx, cy: np.array([[fx, 0, cx], [0, fx * ratio, cy], [0, 0, 1]]),
    st.floats(80, 2000), st.floats(0.8, 1.25), st.floats(20, 300), st.floats(20, 300))
centers = st.tuples(st.floats(0, 320), st.floats(0, 240)).map(np.array)
boxes = st.tuples(st.floats(4, 120), st.floats(4, 120)).map(np.array)
rolls = st.floats(-7, 7)


@given(intrinsics, centers, boxes, rolls, st.booleans(), st.integers(0, 2**32 - 1))
def test_perspective_crop_is_a_rotated_camera(K, center, box, roll, mirror, seed):
    """Projecting rotated points with the crop's K equals moving the original's pixels."""
    crop = data.perspective_crop(K, center, box, 96, roll=roll, mirror=mirror)
    np.testing.assert_allclose(crop.rotation @ crop.rotation.T, np.eye(3), atol=1e-12)
    assert np.isclose(np.linalg.det(crop.rotation), -1 if mirror else 1)
    np.testing.assert_allclose(data.transform_points(crop.homography, center), [48, 48], atol=1e-6)
    pixels = center + np.random.default_rng(seed).uniform(-0.5, 0.5, (8, 2)) * box
    points = np.column_stack([pixels, np.ones(8)]) @ np.linalg.inv(K).T * 0.7
    turned = points @ crop.rotation.T @ crop.K.T
    np.testing.assert_allclose(turned[:, :2] / turned[:, 2:],
                               data.transform_points(crop.homography, pixels), atol=1e-6)


@given(intrinsics, centers, boxes)
def test_perspective_crop_holds_the_box(K, center, box):
    """The middles of the box's sides lie in the crop, and the outermost on its border."""
    crop = data.perspective_crop(K, center, box, 96)
    sides = center + np.array([[-1, 0], [1, 0], [0, -1], [0, 1]]) * box / 2
    reach = np.abs(data.transform_points(crop.homography, sides) - 48).max()
    assert reach == pytest.approx(48, abs=1e-6)


@given(intrinsics)
def test_perspective_crop_at_the_principal_point_does_not_turn(K):
    """No turn at all is finite: the official code divides by the angle's sine there."""
    crop = data.perspective_crop(K, K[:2, 2], (50, 40), 64)
    np.testing.assert_allclose(crop.rotation, np.eye(3), atol=1e-12)
    assert np.isfinite(crop.homography).all()


@given(centers, st.floats(4, 200), rolls, st.booleans())
def test_affine_crop_maps_the_turned_box_to_the_corners(center, side, roll, mirror):
    """Box corners, turned by -roll about the centre, become the corners of the crop."""
    homography = data.crop_homography(center, side, 64, roll=roll, mirror=mirror)
    cos, sin = np.cos(roll), np.sin(roll)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side / 2 @ [[cos, -sin], [sin, cos]]
    expected = np.array([[0, 0], [64, 0], [64, 64], [0, 64]], np.float64)
    if mirror:
        expected[:, 0] = 64 - expected[:, 0]
    np.testing.assert_allclose(data.transform_points(homography, center + corners), expected,
                               atol=1e-6)


@given(st.floats(70, 250), st.floats(60, 180), st.floats(50, 130), rolls, st.booleans())
def test_convention_pixels_are_half_open_squares(x, y, side, roll, mirror):
    """A warped spot is where the homography puts it, to a twentieth of a pixel: no half pixel."""
    center = (x + 5, y - 3)
    homography = data.crop_homography(center, side, 96, roll=roll, mirror=mirror)
    warped = data.warp(blob(320, 240, x, y), homography, 96)
    expected = data.transform_points(homography, np.array([x, y]))
    np.testing.assert_allclose(centroid(warped), expected, atol=0.05)


@given(st.floats(300, 900), st.floats(250, 700), st.floats(300, 1100))
def test_reducing_warp_keeps_positions(x, y, side):
    """Averaging blocks before a strong reduction moves nothing, whatever the picture's size."""
    homography = data.crop_homography((x, y), side, 64)
    warped = data.warp(blob(1201, 967, x + 31, y - 17, spread=20), homography, 64)
    inside = data.transform_points(homography, np.array([x + 31, y - 17]))
    np.testing.assert_allclose(centroid(warped), inside, atol=0.15)


def test_warp_identity_returns_the_picture():
    """A crop of the whole picture at its own size changes no value."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    homography = data.crop_homography((32, 32), 64, 64)
    np.testing.assert_array_equal(data.warp(image, homography, 64), image)


@pytest.mark.parametrize("box,size", [((0, 5), 32), ((5, -1), 32), ((5, 5), 0)])
def test_crops_refuse_empty_boxes(box, size):
    with pytest.raises(ValueError, match="positive box"):
        data.perspective_crop(np.eye(3), (0, 0), box, size)
    with pytest.raises(ValueError, match="positive box"):
        data.crop_homography((0, 0), min(box), size)


def source_picture():
    sample = hands(size=64)[3]
    return data.Annotated(
        sample["image"].permute(1, 2, 0).numpy(), *(sample[name].numpy() for name in (
            "K", "joints", "vertices", "keypoints_2d", "keypoints_valid")), mesh_valid=1.0)


def test_mirrored_crop_mirrors_everything():
    """Mirroring negates x of every point, maps pixels to S - x, flips the picture; K stays."""
    source, center, box = source_picture(), np.array([30.0, 34]), np.array([50.0, 40])
    plain = data.crop_sample(source, center, box, 48, roll=0.4)
    mirrored = data.crop_sample(source, center, box, 48, roll=0.4, mirror=True)
    flip = np.array([-1, 1, 1])
    for name in ("joints", "vertices"):
        np.testing.assert_allclose(mirrored[name], plain[name] * flip, atol=1e-7)
    np.testing.assert_allclose(mirrored["keypoints_2d"][:, 0], 48 - plain["keypoints_2d"][:, 0],
                               atol=1e-4)
    np.testing.assert_array_equal(mirrored["K"], plain["K"])
    difference = mirrored["image"][:, :, ::-1].astype(int) - plain["image"]
    assert np.abs(difference).max() <= 1


# ----------------------------------------------------------------------------- augmentation


@given(st.sampled_from(["official_simplehand", "rendered", "rendered_moving"]),
       st.integers(0, 3), st.integers(0, 9))
def test_augmentation_is_a_function_of_seed_epoch_and_index(recipe, epoch, index):
    """The same key gives the same sample; another epoch or seed another, with labels exact."""
    dataset = hands(length=10, augmentation=recipe)
    key = epoch * len(dataset) + index
    sample = dataset[key]
    assert digest(sample) == digest(hands(length=10, augmentation=recipe)[key])
    assert sample["index"] == index
    for other in (dataset[key + len(dataset)],
                  hands(length=10, augmentation=recipe, seed=1)[key]):
        assert not torch.equal(sample["image"], other["image"])
    assert_projects(sample)
    original = hands(length=10)[index]
    moved = original["joints"] @ sample["camera_rotation"].T
    torch.testing.assert_close(moved, sample["joints"], atol=1e-5, rtol=0)
    pixels = data.transform_points(sample["crop"].numpy(), original["keypoints_2d"].numpy())
    np.testing.assert_allclose(pixels, sample["keypoints_2d"], atol=2e-2)


def test_convention_official_rotation_is_degrees_read_as_radians():
    """N(0, 90) clipped at +-180, used as radians: 4.6 % at the ends, nearly uniform otherwise."""
    recipe, rng = data.AUGMENTATIONS["official_simplehand"], np.random.default_rng(0)
    rolls = np.array([recipe.draw_roll(rng) for _ in range(20_000)])
    clipped = np.abs(rolls) == 180
    assert 0.04 < clipped.mean() < 0.052
    histogram = np.histogram(rolls[~clipped] % (2 * np.pi), 12, (0, 2 * np.pi))[0]
    assert np.abs(histogram / histogram.mean() - 1).max() < 0.08


def test_official_recipe_draws_its_ranges():
    """Box jitter, scale, flips and colour gains stay in the documented ranges and fill them."""
    recipe = data.AUGMENTATIONS["official_simplehand"]
    source, center, box = source_picture(), np.array([32.0, 32]), np.array([20.0, 30])
    crops = [data.augmented_crop(source, center, box, 48, recipe, np.random.default_rng(i))
             for i in range(150)]
    flips = np.mean([np.linalg.det(crop["camera_rotation"]) < 0 for crop in crops])
    middles = np.array([data.transform_points(np.linalg.inv(crop["crop"]), np.array([24.0, 24]))
                        for crop in crops])
    offsets = (middles - center) / box[0]
    assert 0.35 < flips < 0.65
    assert np.abs(offsets).max() <= 0.1 + 1e-6 and np.abs(offsets).max() > 0.09
    plain = data.perspective_crop(source.K, center, box, 48).K[0, 0]
    zoom = plain / np.array([crop["K"][0, 0] for crop in crops])
    assert 0.98 < zoom.min() < 1.1 and 1.4 < zoom.max() < 1.53


@given(st.integers(0, 2**32 - 1))
def test_recolor_is_monotone_per_channel(seed):
    """Colour recipes never reorder the values of a channel, and stay within 0..255."""
    ramp = np.arange(256, dtype=np.uint8)
    image = np.broadcast_to(ramp.reshape(1, 16, 16), (3, 16, 16))
    colored = data.AUGMENTATIONS["official_simplehand"].recolor(image, np.random.default_rng(seed))
    assert colored.dtype == np.uint8
    assert (np.diff(colored.reshape(3, 256).astype(int), axis=1) >= 0).all()


def test_keypoints_are_valid_inside_picture_and_crop():
    """A keypoint counts if it was in the original picture and is in the crop; both do happen."""
    source = source_picture()
    source.keypoints_valid = np.arange(21) % 2.0
    sample = data.crop_sample(source, np.array([20.0, 30]), np.array([30.0, 30]), 48)
    inside = ((sample["keypoints_2d"] >= 0) & (sample["keypoints_2d"] <= 48)).all(1)
    assert 0 < inside.sum() < 21
    np.testing.assert_array_equal(sample["keypoints_valid"], source.keypoints_valid * inside)


def test_unknown_recipe_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown augmentation 'offical'.*official_simplehand"):
        hands(augmentation="offical")


# ---------------------------------------------------------------------------- rendered hands


def test_samples_keep_the_contract():
    """Every data set's samples have these keys, shapes and types, and collate."""
    sample = hands()[5]
    assert {name: (tuple(value.shape), value.dtype) for name, value in sample.items()} == CONTRACT
    batch = next(iter(DataLoader(hands(), batch_size=4)))
    assert batch["vertices"].shape == (4, 778, 3) and batch["index"].tolist() == [0, 1, 2, 3]


def test_labels_are_consistent():
    """Joints are the regressor's, K projects them to the keypoints, in front of the camera."""
    regressor = bodymodels.load_model("hand_right").keypoint_regressor
    for sample in hands(length=12):
        torch.testing.assert_close(regressor @ sample["vertices"], sample["joints"],
                                   atol=2e-6, rtol=0)
        assert_projects(sample)
        assert (sample["vertices"][:, 2] > 0.1).all()
        assert sample["side"] == 1 and sample["mesh_valid"] == 1


def test_projected_joints_land_on_the_hand():
    """Where a valid keypoint is, the hand is painted: on its pixel or the one beside it."""
    missed = total = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scene = data.sample_scene(rng, 128, 90.0, 180.0, "both")
        image = np.zeros((128, 128, 3), np.float32)
        data.paint_hand(image, scene, np.ones_like(scene.surface))
        painted = np.pad(image[..., 0] > 0, 2)
        projected = scene.joints @ scene.K.T
        pixels = projected[:, :2] / projected[:, 2:]
        for x, y in pixels[data.inside(pixels, 128, 128) > 0]:
            column, row = int(x) + 2, int(y) + 2
            total += 1
            missed += not painted[row - 1:row + 2, column - 1:column + 2].any()
    assert total > 700 and missed == 0


def test_painted_surface_is_closed():
    """Drawing only front faces shows what drawing all faces shows: the nearest, without holes."""
    for seed in range(8):
        scene = data.sample_scene(np.random.default_rng(seed), 96, 90.0, 180.0, "both")
        z = scene.surface[:, 2:]
        image = np.zeros((96, 96, 3), np.float32)
        data.paint_hand(image, scene, np.repeat(z, 3, 1))  # paints its depth
        pixels = np.concatenate([scene.surface[:, :2] / z * scene.K[0, 0] + 48, z], 1)
        faces = data.hand_surface().faces
        _, _, depth = bodymodels.rasterize(pixels, faces, (96, 96))
        painted = np.where(image[..., 0] > 0, image[..., 0] / 255, np.inf)
        assert np.isclose(painted, depth, atol=1e-4).mean() > 0.995


def test_pictures_show_the_hand():
    """Pictures of one scene with and without its hand differ where the hand is."""
    rng = np.random.default_rng(4)
    scene = data.sample_scene(rng, 96, 90.0, 180.0, "both")
    background = data.paint_background(rng, 96).astype(np.float32)
    image = background.copy()
    data.paint_hand(image, scene, data.shade(rng, scene.surface))
    changed = np.abs(image - background).max(-1) > 0
    assert 0.1 < changed.mean() < 0.95


@given(st.floats(0, 90), st.floats(0, 180), st.sampled_from(["both", "palm", "back"]),
       st.integers(0, 2**32 - 1))
def test_views_stay_in_their_cone(views, in_plane, sides, seed):
    """The hand's normal is within `views` degrees of the camera's axis, on the side asked for."""
    rotation = data.sample_view(np.random.default_rng(seed), views, in_plane, sides)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.isclose(np.linalg.det(rotation), 1)
    back_towards_camera = -rotation[2, 1]
    limit = np.cos(np.deg2rad(views)) - 1e-9
    assert abs(back_towards_camera) >= limit
    if sides != "both":
        assert back_towards_camera * (1 if sides == "back" else -1) >= limit


def test_convention_hand_starts_upright():
    """Without tilt or roll the fingers point up and the back view has the thumb on the left."""
    rotation = data.sample_view(np.random.default_rng(0), 0.0, 0.0, "back")
    joints = bodymodels.load_model("hand_right", dtype=torch.float64)
    points = joints.keypoint_regressor @ joints.v_template @ torch.from_numpy(rotation).T
    assert points[12, 1] < points[0, 1]  # middle tip above the wrist: y is down
    assert points[4, 0] < points[20, 0]  # thumb tip left of the pinky's


def test_default_views_cover_the_sphere():
    """Directions of the palm's normal over many draws have mean 0 and covariance 1/3."""
    rng = np.random.default_rng(0)
    for column in range(3):
        directions = np.stack([data.sample_view(rng, 90, 180)[:, column] for _ in range(3000)])
        np.testing.assert_allclose(directions.mean(0), 0, atol=0.05)
        np.testing.assert_allclose(directions.T @ directions / 3000, np.eye(3) / 3, atol=0.03)


@given(st.integers(0, 2**32 - 1))
def test_poses_respect_joint_limits(seed):
    """Every angle lies within its limit, and the axes of each joint are orthonormal."""
    pose = data.sample_hand_pose(np.random.default_rng(seed))
    axes = data.hinge_axes()
    np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.tile(np.eye(3), (15, 1, 1)),
                               atol=1e-12)
    angles = np.einsum("jc,jdc->jd", pose, axes)
    assert (angles >= data.LOWER_LIMIT - 1e-9).all() and (angles <= data.UPPER_LIMIT + 1e-9).all()


def test_poses_are_varied_and_fingers_go_together():
    """Fingers open and close over their whole range, neighbours more alike than not."""
    rng = np.random.default_rng(0)
    axes = data.hinge_axes()
    flexion = np.array([np.einsum("jc,jc->j", data.sample_hand_pose(rng), axes[:, 0])
                        for _ in range(800)])
    middle_joints = flexion[:, [1, 4, 10, 7]]  # index, middle, ring, pinky
    assert (middle_joints.min(0) < 0.1).all() and (middle_joints.max(0) > 1.6).all()
    correlation = np.corrcoef(middle_joints.T)
    assert correlation[0, 1] > 0.3 and correlation[1, 2] > 0.3


def test_pinches_bring_the_tips_together():
    """A pinch pose ends with thumb and fingertip within a centimetre on the mean hand."""
    model = bodymodels.load_model("hand_right", dtype=torch.float64)
    tips = {"index": 8, "middle": 12, "ring": 16}
    for finger, (thumb, flexion, abduction) in data.PINCHES.items():
        angles, slot = np.zeros((15, 3)), data.FINGER_SLOTS[finger]
        angles[slot:slot + 3, 0], angles[slot, 1] = flexion, abduction
        angles[data.THUMB_SLOT], angles[13:, 0] = thumb[:3], thumb[3:]
        pose = np.einsum("jd,jdc->jc", angles, data.hinge_axes())
        vertices = data.hand_surface().pose(np.zeros(10), pose)
        joints = model.keypoint_regressor.numpy() @ vertices
        assert np.linalg.norm(joints[4] - joints[tips[finger]]) < 0.01


def test_boundary_loop_is_the_wrist():
    """The hand's only hole has 16 vertices, and the forearm's faces close it."""
    surface = data.hand_surface()
    assert len(surface.wrist) == 16
    edges = np.concatenate([surface.faces[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))])
    assert {tuple(edge) for edge in edges.tolist()} == {tuple(e) for e in edges[:, ::-1].tolist()}


@pytest.mark.parametrize("option", [{"views": 100}, {"in_plane": -1}, {"length": 0},
                                    {"sides": "top"}, {"split": "val"}, {"size": 4}, {"seed": -1}])
def test_bad_options_are_refused(option):
    with pytest.raises(ValueError, match="expected"):
        hands(**option)
    with pytest.raises(IndexError, match="count up from 0"):
        hands()[-1]


# ------------------------------------------------------------------- rendered: determinism


def test_samples_do_not_depend_on_order_or_instance():
    """Any order, any instance, a pickled copy, a longer split: the same bits."""
    forward = [digest(sample) for sample in hands(length=8)]
    backward = [digest(hands(length=8)[index]) for index in reversed(range(8))]
    assert forward == backward[::-1]
    copy = pickle.loads(pickle.dumps(hands(length=8)))
    assert [digest(copy[index]) for index in range(8)] == forward
    assert [digest(hands(length=30)[index]) for index in range(8)] == forward
    assert len(set(forward)) == 8


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_samples_do_not_depend_on_workers(context):
    """DataLoader workers of either kind return what the main process makes."""
    dataset = hands(length=6)
    loader = DataLoader(dataset, batch_size=None, sampler=range(6), num_workers=2,
                        multiprocessing_context=context)
    assert [digest(sample) for sample in loader] == [digest(sample) for sample in dataset]


@pytest.mark.slow
def test_samples_do_not_depend_on_threads():
    """Processes with other thread counts make the same bits."""
    program = ("import data, hashlib, torch; torch.set_num_threads({}); h = hashlib.sha256();"
               "d = data.RenderedHands(size=48, length=10);"
               "[h.update(d.render(i).tobytes()) for i in range(10)]; print(h.hexdigest())")
    results = set()
    for threads in (1, 3):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        run = subprocess.run([sys.executable, "-c", program.format(threads)], cwd=ROOT, text=True,
                             capture_output=True, env=environment, check=True)
        results.add(run.stdout.strip())
    assert len(results) == 1


def test_splits_and_seeds_share_no_sample():
    """Train and test pictures and meshes, and those of another seed, are all different."""
    datasets = [hands("train"), hands("test"), hands("train", seed=1)]
    samples = [sample for dataset in datasets for sample in dataset]
    for name in ("image", "vertices"):
        assert len({sample[name].numpy().tobytes() for sample in samples}) == len(samples)


# -------------------------------------------------------------------------------- the cache


def test_cached_samples_are_the_rendered_ones(tmp_path):
    """Bit for bit, augmented or not, also for a pickled copy; building leaves global RNG alone."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for recipe in ("none", "rendered_moving"):
        plain = hands(augmentation=recipe)
        cached = hands(augmentation=recipe, cache=tmp_path)
        copy = pickle.loads(pickle.dumps(cached))
        for key in (0, 7, 39, 40, 83):
            assert digest(plain[key]) == digest(cached[key]) == digest(copy[key])
    assert torch.equal(torch.get_rng_state(), state)
    assert len(list(tmp_path.glob("*.npy"))) == 1  # the recipe is not part of the file
    assert not list(tmp_path.glob("*.tmp"))


def test_cache_is_built_by_all_cores_alike(tmp_path):
    """A split large enough for worker processes is packed in order."""
    cached, plain = hands(size=16, length=260, cache=tmp_path), hands(size=16, length=260)
    for index in (0, 31, 32, 100, 255, 259):
        assert digest(cached[index]) == digest(plain[index])


def test_cache_follows_the_settings(tmp_path):
    """Each setting that changes pictures gets its own file; a finished file is not rebuilt."""
    paths = {hands(length=2, cache=tmp_path, **options).path for options in (
        {}, {"seed": 1}, {"views": 30.0}, {"in_plane": 10.0}, {"sides": "palm"}, {"size": 32},
        {"split": "test"})}
    assert len(paths) == 7
    before = hands(length=2, cache=tmp_path).path.stat().st_mtime_ns
    assert hands(length=2, cache=tmp_path).path.stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["truncate", "empty", "garbage", "other length", "other type"])
def test_damaged_cache_is_rebuilt(tmp_path, damage):
    """A file that is short, empty, or holds something else is replaced by a good one."""
    path = hands(length=3, cache=tmp_path).path
    whole = path.read_bytes()
    if damage.startswith("other"):
        np.save(path, np.load(path)[:2] if damage == "other length" else np.zeros(3))
    else:
        path.write_bytes({"truncate": whole[:-100], "empty": b"", "garbage": b"no array"}[damage])
    hands(length=3, cache=tmp_path)
    assert path.read_bytes() == whole


def test_failed_build_leaves_nothing(tmp_path):
    """When filling fails, neither a half file nor its temporary stays behind."""
    def fill(records):
        records[0] = 1
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        data.build_packed(tmp_path / "x.npy", np.dtype(np.int64), 5, fill)
    assert {path.name for path in tmp_path.iterdir()} == {"x.lock"}


def test_cache_survives_a_killed_builder(tmp_path):
    """A builder killed half way blocks nobody and leaves no file under the final name."""
    program = ("import data, os, pathlib, signal, sys\n"
               "def fill(records):\n    records[0] = 7\n    os.kill(os.getpid(), signal.SIGKILL)\n"
               "data.build_packed(pathlib.Path(sys.argv[1]), data.np.dtype('i8'), 3, fill)")
    path = tmp_path / "x.npy"
    run = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT)
    assert run.returncode == -9 and not path.exists()
    records = data.build_packed(path, np.dtype(np.int64), 3, lambda out: out.fill(5))
    assert records.tolist() == [5, 5, 5]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
def test_ranks_may_build_at_once(tmp_path):
    """Processes that want the same file at the same moment build it once and agree."""
    program = ("import data, hashlib, pathlib, sys, time\n"
               "def fill(records):\n"
               "    open(sys.argv[1] + '/built', 'a').write('x'); time.sleep(0.3)\n"
               "    records[:] = range(1000)\n"
               "r = data.build_packed(pathlib.Path(sys.argv[1]) / 'x.npy', data.np.dtype('i8'), "
               "1000, fill)\nprint(int(r.sum()))")
    runs = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT,
                             stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.communicate()[0].strip() for run in runs] == ["499500"] * 3
    assert (tmp_path / "built").read_text() == "x"


def test_unwritable_cache_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write the cache.*give cache=FOLDER"):
        hands(length=2, cache=tmp_path / "file" / "inside")
    with pytest.raises(ValueError, match="has no room for .* GB: give cache=FOLDER"):
        hands(length=10**15, cache=tmp_path)


# --------------------------------------------------------------------------------- FreiHAND

UNIQUE = 2


def write_freihand(root, annotated=True):
    """A tiny folder in the official format: two ids, four backgrounds, one evaluation picture."""
    samples = [hands(size=64, length=3)[index] for index in range(3)]
    for split in ("training", "evaluation"):
        (root / split / "rgb").mkdir(parents=True)

    def picture(split, number, sample, shade):
        image = sample["image"].permute(1, 2, 0).numpy() // 2 + shade
        Image.fromarray(image).save(root / split / "rgb" / f"{number:08d}.jpg", quality=95)

    for version in range(4):
        for index in range(UNIQUE):
            picture("training", version * UNIQUE + index, samples[index], 30 * version)
    picture("evaluation", 0, samples[2], 0)
    for split, chosen in (("training", samples[:UNIQUE]), ("evaluation", samples[2:])):
        lists = {"K": [s["K"].tolist() for s in chosen],
                 "scale": [float((s["joints"][9] - s["joints"][10]).norm()) for s in chosen]}
        if annotated or split == "training":
            lists |= {"xyz": [s["joints"].tolist() for s in chosen],
                      "verts": [s["vertices"].tolist() for s in chosen],
                      "mano": [[[0.0] * 61] for _ in chosen]}
        for name, items in lists.items():
            (root / f"{split}_{name}.json").write_text(json.dumps(items))
    return samples


@pytest.fixture
def freihand(tmp_path):
    root = tmp_path / "FreiHAND"
    return root, write_freihand(root)


def reader(root, split="training", size=48, **options):
    return data.FreiHAND(root, split, size, progress=False, **options)


def test_freihand_backgrounds_share_one_annotation(freihand):
    """Picture v * N + i shows background v of id i and has its annotation."""
    root, samples = freihand
    dataset = reader(root)
    assert (len(dataset), dataset.db_size, dataset.versions) == (8, 2, 4)
    for index in range(8):
        source = dataset.annotated(index)
        expected = samples[index % UNIQUE]
        np.testing.assert_array_equal(source.joints, expected["joints"])
        np.testing.assert_array_equal(source.vertices, expected["vertices"])
        np.testing.assert_allclose(source.keypoints_2d, expected["keypoints_2d"], atol=1e-3)
        shown = source.image.astype(float).mean() - expected["image"].numpy().mean() / 2
        assert abs(shown - 30 * (index // UNIQUE)) < 2


def test_freihand_samples_keep_the_contract(freihand):
    """Same keys, shapes and types as rendered hands; labels exact under the crop's camera."""
    root, samples = freihand
    dataset = reader(root)
    for index in range(8):
        sample = dataset[index]
        assert {k: (tuple(v.shape), v.dtype) for k, v in sample.items()} == CONTRACT
        assert_projects(sample)
        moved = samples[index % UNIQUE]["joints"] @ sample["camera_rotation"].T
        torch.testing.assert_close(moved, sample["joints"], atol=1e-6, rtol=0)


def test_freihand_evaluation_crop_is_the_box_times_125(freihand):
    """Without augmentation the keypoints' longer side spans 1/1.25 of the crop, in its middle."""
    root, _ = freihand
    for split in ("training", "evaluation"):
        sample = reader(root, split)[0]
        assert sample["keypoints_valid"].all() and sample["mesh_valid"] == 1
        low, high = sample["keypoints_2d"].amin(0), sample["keypoints_2d"].amax(0)
        assert (high - low).max().item() == pytest.approx(48 / 1.25, rel=0.05)
        assert ((low + high) / 2 - 24).abs().max() < 2


def test_freihand_without_released_annotation(tmp_path):
    """Then the crop is the whole picture, and keypoints and mesh are flagged unknown."""
    root = tmp_path / "FreiHAND"
    write_freihand(root, annotated=False)
    sample = reader(root, "evaluation", size=64)[0]
    assert not sample["keypoints_valid"].any() and sample["mesh_valid"] == 0
    assert not sample["keypoints_2d"].any() and not sample["joints"].any()
    assert torch.isfinite(sample["crop"]).all()
    torch.testing.assert_close(sample["crop"], torch.eye(3), atol=0.1, rtol=0)


def test_freihand_augmentation_mirrors_and_turns(freihand):
    """The official recipe is reproducible by key, keeps labels exact, and mirrors about half."""
    root, _ = freihand
    dataset = reader(root, augmentation="official_simplehand")
    samples = [dataset[key] for key in range(40)]
    for key, sample in enumerate(samples):
        assert_projects(sample)
        assert digest(sample) == digest(reader(root, augmentation="official_simplehand")[key])
    mirrored = sum(float(torch.linalg.det(sample["camera_rotation"])) < 0 for sample in samples)
    assert 10 < mirrored < 30


def test_freihand_is_packed_once_into_a_mapped_file(freihand, tmp_path):
    """Annotation is memory-mapped float32 in the chosen folder, and packed again if changed."""
    root, samples = freihand
    before = {path.name for path in root.iterdir()}
    cache = tmp_path / "packed"
    dataset = reader(root, cache=cache)
    dataset[0]
    assert isinstance(dataset._packed, np.memmap) and dataset.dtype.itemsize == 4 * 2467
    assert len(pickle.dumps(dataset)) < 5_000  # what a worker is sent
    stamp = dataset.path.stat().st_mtime_ns
    assert reader(root, cache=cache).path.stat().st_mtime_ns == stamp
    assert {path.name for path in root.iterdir()} == before  # a read-only root is enough
    moved = [(s["joints"] + 0.25).tolist() for s in samples[:UNIQUE]]
    (root / "training_xyz.json").write_text(json.dumps(moved))
    changed = reader(root, cache=cache).annotated(0)
    np.testing.assert_allclose(changed.joints, samples[0]["joints"] + 0.25, atol=1e-6)


@pytest.mark.parametrize("name,content,message", [
    ("xyz", "[[[1, 2, 3]]]", r"training_xyz.json, item 0: expected \(21, 3\)"),
    ("xyz", "[]", "has 0 items where K has 2"),
    ("verts", "[[[0.1, 0.2", "not a whole JSON list.*download it again"),
    ("verts", '{"a": 1}', "not a whole JSON list"),
    ("K", "", "not a whole JSON list"),
    ("K", "[[1, 2], nonsense]", "not a whole JSON list"),
])
def test_freihand_bad_annotation_is_one_clear_error(freihand, name, content, message):
    root, _ = freihand
    (root / f"training_{name}.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        reader(root)
    assert not list(root.glob("*.npy"))


def test_freihand_missing_files_are_named(freihand, tmp_path):
    root, _ = freihand
    dataset = reader(root)
    (root / "training/rgb/00000003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="00000003.jpg"):
        dataset[3]
    (root / "training_xyz.json").unlink()
    with pytest.raises(FileNotFoundError, match="training_xyz.json.*official layout"):
        reader(root)
    with pytest.raises(FileNotFoundError, match="official layout"):
        reader(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unknown split 'val'"):
        reader(root, "val")


def test_freihand_counts_the_backgrounds_it_finds(freihand):
    """With only two of four backgrounds on disk the data set is half as long."""
    root, _ = freihand
    for index in range(4, 8):
        (root / f"training/rgb/{index:08d}.jpg").unlink()
    assert len(reader(root)) == 4


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-10**6, 10**6)


@given(st.lists(st.recursive(numbers, lambda inner: st.lists(inner, max_size=4), max_leaves=12)),
       st.integers(40, 90), st.sampled_from([None, 1]))
def test_streamed_json_is_the_parsed_json(tmp_path_factory, items, chunk, indent):
    """Whatever the list, the layout and the chunks it is read in: the items of json.loads."""
    path = tmp_path_factory.getbasetemp() / "list.json"
    path.write_text(json.dumps(items, indent=indent))
    try:
        assert list(data.stream_json_list(path, chunk)) == items
    except ValueError:  # only an item longer than sixteen chunks may be refused
        assert max(len(json.dumps(item, indent=indent)) for item in items) > 10 * chunk


# --------------------------------------------------------------------------------- pictures

GRADIENT = np.dstack([np.tile(np.linspace(0, 255, 12), (8, 1)), np.full((8, 12), 90),
                      np.tile(np.linspace(255, 0, 8)[:, None], (1, 12))]).round().astype(np.uint8)


def write_png(path, size, bits, color, pixels):
    """A PNG written by hand: (width, height), bits, colour type, bytes before compression."""
    header = struct.pack(">IIBBBBB", *size, bits, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(content)) + kind + content
                    + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_read_image_converts_every_mode(tmp_path, mode):
    """Any colour mode becomes (H, W, 3) uint8 RGB with the colours the picture shows."""
    picture = Image.fromarray(GRADIENT).convert(mode)
    path = tmp_path / {"CMYK": "x.tif", "YCbCr": "x.tif"}.get(mode, "x.png")
    picture.save(path)
    image = data.read_image(path)
    assert image.shape == (8, 12, 3) and image.dtype == np.uint8
    expected = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(image - expected).max() <= 2


def test_read_image_composites_transparency_on_white(tmp_path):
    """Half transparent red on nothing is pink; fully transparent is white, palettes included."""
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :2] = (255, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    image = data.read_image(tmp_path / "rgba.png")
    assert np.abs(image[0, 0].astype(int) - (255, 127, 127)).max() <= 1
    assert (image[:, 2:] == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 0, 0, 200])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert (data.read_image(tmp_path / "palette.png") == 255).all()


def test_read_image_scales_sixteen_bits(tmp_path):
    """16-bit grey spans 0..255 by value / 257, and is not clipped at 255."""
    values = np.linspace(0, 65535, 48).round().astype(np.uint16).reshape(6, 8)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    write_png(tmp_path / "x.png", (8, 6), 16, 0, rows)
    image = data.read_image(tmp_path / "x.png")
    np.testing.assert_array_equal(image, np.repeat((values / 257).round()[..., None], 3, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image_applies_exif_orientation(tmp_path, orientation):
    """All eight orientations of the same picture come out upright."""
    stored = {1: GRADIENT, 2: GRADIENT[:, ::-1], 3: GRADIENT[::-1, ::-1], 4: GRADIENT[::-1],
              5: GRADIENT.transpose(1, 0, 2), 6: np.rot90(GRADIENT),
              7: GRADIENT[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(GRADIENT, -1)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(data.read_image(tmp_path / "x.png"), GRADIENT)


def test_read_image_takes_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (5, 5), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (data.read_image(tmp_path / "x.gif")[2, 2] == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "bmp", "webp", "tif"])
def test_read_image_refuses_truncated_files(tmp_path, kind):
    """Half a file is one ValueError that names it, in any format."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"x.{kind}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"x\.{kind} cannot be read as a picture"):
        data.read_image(path)


@pytest.mark.parametrize("content", [b"text, not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
                                     b"\xff\xd8\xff" + bytes(range(64)), b"GIF89a", b"BM" * 9])
def test_read_image_refuses_what_is_no_picture(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        data.read_image(tmp_path / "x.jpg")


def test_read_image_names_missing_empty_and_folder(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match="empty.png is empty"):
        data.read_image(tmp_path / "empty.png")
    with pytest.raises(ValueError, match="is not a file"):
        data.read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match="no picture at .*missing.png"):
        data.read_image(tmp_path / "missing.png")


def test_read_image_refuses_decompression_bombs(tmp_path):
    """A small file that claims a huge picture is refused before its pixels are made."""
    write_png(tmp_path / "bomb.png", (40_000, 40_000), 8, 2, b"")
    with pytest.raises(ValueError, match="too large a picture"):
        data.read_image(tmp_path / "bomb.png")


@given(st.integers(0, 2**32 - 1))
def test_read_image_survives_mutated_files(tmp_path_factory, seed):
    """A damaged picture gives pixels or one ValueError, never another error."""
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.getbasetemp() / f"mutated.{('png', 'jpg', 'gif', 'tif')[seed % 4]}"
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    for position in rng.integers(len(content), size=5):
        content[position] = rng.integers(256)
    path.write_bytes(content)
    try:
        assert data.read_image(path).dtype == np.uint8
    except ValueError as error:
        assert path.name in str(error)


# ------------------------------------------------------------------------------ command line


def test_command_line_prints_and_draws(tmp_path, capsys, freihand):
    """Both data sets print their counts and shapes and draw a readable grid."""
    root, _ = freihand
    for arguments, count in (["rendered", "--size", "48"], "40,000"), (
            ["freihand", "--data-root", str(root), "--size", "48"], "8"):
        out = tmp_path / "grid.png"
        data.main([*arguments, "--draw", "5", "--out", str(out)])
        printed = capsys.readouterr().out
        assert f"{count} samples" in printed and "keypoints_2d" in printed
        assert data.read_image(out).shape == (2 * 144, 4 * 144, 3)


@pytest.mark.parametrize("arguments", [["freihand"], ["freihand", "--data-root", "nowhere"],
                                       ["rendered", "--split", "val"], ["rendered", "--size", "2"]])
def test_command_line_errors_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        data.main(arguments)
    assert exit_info.value.code not in (0, None)
    assert "Traceback" not in capsys.readouterr().err
