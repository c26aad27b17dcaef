"""Rendered hands: poses, views, exact labels, closed surface, determinism."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hand_samples import CONTRACT, ROOT, assert_projects, digest, hands
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import bodymodels
from sets.crops import inside
from sets.painting import paint_background
from sets.rendered import (
    FINGER_SLOTS,
    LOWER_LIMIT,
    PINCHES,
    THUMB_SLOT,
    UPPER_LIMIT,
    hand_surface,
    hinge_axes,
    paint_hand,
    sample_hand_pose,
    sample_scene,
    sample_view,
    shade,
)


@given(st.floats(0, 90), st.floats(0, 180), st.sampled_from(["both", "palm", "back"]),
       st.integers(0, 2**32 - 1))
def test_views_stay_in_their_cone(views, in_plane, sides, seed):
    """The hand's normal is within `views` degrees of the camera's axis, on the side asked for."""
    rotation = sample_view(np.random.default_rng(seed), views, in_plane, sides)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.isclose(np.linalg.det(rotation), 1)
    back_towards_camera = -rotation[2, 1]
    limit = np.cos(np.deg2rad(views)) - 1e-9
    assert abs(back_towards_camera) >= limit
    if sides != "both":
        assert back_towards_camera * (1 if sides == "back" else -1) >= limit


def test_convention_hand_starts_upright():
    """Without tilt or roll the fingers point up and the back view has the thumb on the left."""
    rotation = sample_view(np.random.default_rng(0), 0.0, 0.0, "back")
    joints = bodymodels.load_model("hand_right", dtype=torch.float64)
    points = joints.keypoint_regressor @ joints.v_template @ torch.from_numpy(rotation).T
    assert points[12, 1] < points[0, 1]  # middle tip above the wrist: y is down
    assert points[4, 0] < points[20, 0]  # thumb tip left of the pinky's


def test_default_views_cover_the_sphere():
    """Directions of the palm's normal over many draws have mean 0 and covariance 1/3."""
    rng = np.random.default_rng(0)
    for column in range(3):
        directions = np.stack([sample_view(rng, 90, 180)[:, column] for _ in range(3000)])
        np.testing.assert_allclose(directions.mean(0), 0, atol=0.05)
        np.testing.assert_allclose(directions.T @ directions / 3000, np.eye(3) / 3, atol=0.03)


@given(st.integers(0, 2**32 - 1))
def test_poses_respect_joint_limits(seed):
    """Every angle lies within its limit, and the axes of each joint are orthonormal."""
    pose = sample_hand_pose(np.random.default_rng(seed))
    axes = hinge_axes()
    np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.tile(np.eye(3), (15, 1, 1)),
                               atol=1e-12)
    angles = np.einsum("jc,jdc->jd", pose, axes)
    assert (angles >= LOWER_LIMIT - 1e-9).all() and (angles <= UPPER_LIMIT + 1e-9).all()


def test_poses_are_varied_and_fingers_go_together():
    """Fingers open and close over their whole range, neighbours more alike than not."""
    rng = np.random.default_rng(0)
    axes = hinge_axes()
    flexion = np.array([np.einsum("jc,jc->j", sample_hand_pose(rng), axes[:, 0])
                        for _ in range(800)])
    middle_joints = flexion[:, [1, 4, 10, 7]]  # index, middle, ring, pinky
    assert (middle_joints.min(0) < 0.1).all() and (middle_joints.max(0) > 1.6).all()
    correlation = np.corrcoef(middle_joints.T)
    assert correlation[0, 1] > 0.3 and correlation[1, 2] > 0.3


def test_pinches_bring_the_tips_together():
    """A pinch pose ends with thumb and fingertip within a centimetre on the mean hand."""
    model = bodymodels.load_model("hand_right", dtype=torch.float64)
    tips = {"index": 8, "middle": 12, "ring": 16}
    for finger, (thumb, flexion, abduction) in PINCHES.items():
        angles, slot = np.zeros((15, 3)), FINGER_SLOTS[finger]
        angles[slot:slot + 3, 0], angles[slot, 1] = flexion, abduction
        angles[THUMB_SLOT], angles[13:, 0] = thumb[:3], thumb[3:]
        pose = np.einsum("jd,jdc->jc", angles, hinge_axes())
        vertices = hand_surface().pose(np.zeros(10), pose)
        joints = model.keypoint_regressor.numpy() @ vertices
        assert np.linalg.norm(joints[4] - joints[tips[finger]]) < 0.01


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
        scene = sample_scene(rng, 128, 90.0, 180.0, "both")
        image = np.zeros((128, 128, 3), np.float32)
        paint_hand(image, scene, np.ones_like(scene.surface))
        painted = np.pad(image[..., 0] > 0, 2)
        projected = scene.joints @ scene.K.T
        pixels = projected[:, :2] / projected[:, 2:]
        for x, y in pixels[inside(pixels, 128, 128) > 0]:
            column, row = int(x) + 2, int(y) + 2
            total += 1
            missed += not painted[row - 1:row + 2, column - 1:column + 2].any()
    assert total > 700 and missed == 0


def test_painted_surface_is_closed():
    """Drawing only front faces gives the same depth as drawing all faces."""
    for seed in range(8):
        scene = sample_scene(np.random.default_rng(seed), 96, 90.0, 180.0, "both")
        z = scene.surface[:, 2:]
        image = np.zeros((96, 96, 3), np.float32)
        paint_hand(image, scene, np.repeat(z, 3, 1))  # paints its depth
        pixels = np.concatenate([scene.surface[:, :2] / z * scene.K[0, 0] + 48, z], 1)
        faces = hand_surface().faces
        _, _, depth = bodymodels.rasterize(pixels, faces, (96, 96))
        painted = np.where(image[..., 0] > 0, image[..., 0] / 255, np.inf)
        assert np.isclose(painted, depth, atol=1e-4).mean() > 0.995


def test_pictures_show_the_hand():
    """Pictures of one scene with and without its hand differ where the hand is."""
    rng = np.random.default_rng(4)
    scene = sample_scene(rng, 96, 90.0, 180.0, "both")
    background = paint_background(rng, 96).astype(np.float32)
    image = background.copy()
    paint_hand(image, scene, shade(rng, scene.surface))
    changed = np.abs(image - background).max(-1) > 0
    assert 0.1 < changed.mean() < 0.95


def test_boundary_loop_is_the_wrist():
    """The hand's only hole has 16 vertices, and the forearm's faces close it."""
    surface = hand_surface()
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
