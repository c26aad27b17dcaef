"""Random poses of bodies: splits, mirror images, limits, headings."""

import re

import numpy as np
import pytest
import torch
from body_samples import SMPL24, digest, seeds
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch.utils.data import DataLoader

import bodymodels as bm
from sets.motion import (
    LIMBS,
    NEAR_DUPLICATE,
    OTHER_NOISE,
    PARTS,
    TEST_CLIPS,
    MotionPoses,
    face_forward,
    motion_frames,
    sample_body_pose,
    sample_wide_poses,
)
from sets.rendered_bodies import RenderedBodies


def source_clips():
    with np.load(bm.ASSETS / "motion.npz") as arrays:
        return arrays["poses"].reshape(-1, 24, 3), arrays["clip_names"][arrays["clip"]]


def test_splits_share_no_clip():
    """Apart from its heading, every frame of a split comes from one of the split's clips."""
    poses, clips = source_clips()
    for split in ("train", "test"):
        frames = motion_frames(split)
        original = bm.axis_angle_to_matrix(torch.from_numpy(frames[:len(frames) // 2, 1:]))
        rotations = bm.axis_angle_to_matrix(torch.from_numpy(poses[:, 1:]).double())
        for frame in original[::17]:
            nearest = (rotations - frame).abs().amax((1, 2, 3)).argmin()
            assert (rotations[nearest] - frame).abs().max() < 1e-5
            assert (clips[nearest] in TEST_CLIPS) == (split == "test")
    assert set(TEST_CLIPS) < set(clips)


def test_frames_differ_and_are_mirrored():
    """No two frames are near duplicates; the second half is the mirrored first half."""
    frames = torch.from_numpy(motion_frames("test"))
    half = frames[:len(frames) // 2]
    torch.testing.assert_close(frames[len(half):], bm.mirror_pose(half, SMPL24))
    rotations = bm.axis_angle_to_matrix(half)
    trace = torch.einsum("ikab,jkab->ijk", rotations, rotations)
    angle = ((trace.clamp(-1, 3) - 1) / 2).acos().amax(2)
    apart = angle[~torch.eye(len(half), dtype=bool)]
    assert apart.min() >= NEAR_DUPLICATE - 1e-6 and len(half) > 100


@given(seeds, st.floats(-3.1, 3.1))
def test_facing_forward_forgets_the_heading(seed, heading):
    """Turned about the vertical, a body faces forward as before; facing forward twice is once."""
    quaternion = np.random.default_rng(seed).normal(size=(1, 4))
    root = torch.from_numpy(Rotation.from_quat(quaternion).as_matrix())
    turn = bm.axis_angle_to_matrix(torch.tensor([[0, heading, 0]], dtype=torch.float64))
    forward = face_forward(root)
    torch.testing.assert_close(face_forward(turn @ root), forward, atol=1e-6, rtol=0)
    torch.testing.assert_close(face_forward(forward), forward, atol=1e-9, rtol=0)
    torch.testing.assert_close(forward[0, 1], root[0, 1], atol=1e-12, rtol=0)  # heights stay


@given(seeds, st.sampled_from(["train", "test"]), st.floats(0, 180))
def test_sampled_poses_are_rotations(seed, split, views):
    pose = sample_body_pose(np.random.default_rng(seed), split, views)
    assert pose.shape == (24, 3, 3)
    np.testing.assert_allclose(pose @ pose.swapaxes(1, 2), np.tile(np.eye(3), (24, 1, 1)),
                               atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(pose), 1, atol=1e-9)


@pytest.mark.parametrize("views", [0.0, 40.0])
def test_convention_bodies_stand_and_face_the_camera(views):
    """Most bodies are upright with y down, and these face the camera to about `views` degrees.
    """
    poses = [MotionPoses("test", views=views)[key]["pose"].numpy() for key in range(150)]
    up = np.array([-pose[0, 1, 1] for pose in poses])
    assert (up > 0.7).mean() > 0.6
    facing = np.array([-pose[0, 2, 2] for pose in poses])[up > 0.9]  # the camera looks along +z
    heading = np.rad2deg(np.arccos(facing.clip(-1, 1)))
    assert heading.max() < views + 26  # leaning by acos(0.9)
    assert views == 0 or heading.max() > 20


def test_limbs_are_exchanged_within_a_split():
    """Some poses are frames of the clips up to noise, others have limbs of several frames."""
    frames = motion_frames("test")
    limbs, whole = [[index for index in limb if MOVES[index]] for limb in LIMBS], 0
    for seed in range(60):
        pose = sample_body_pose(np.random.default_rng(seed), "test")
        angles = bm.matrix_to_axis_angle(torch.from_numpy(pose)).numpy()
        gaps = [np.abs(frames[:, limb] - angles[limb]).max((1, 2)) for limb in limbs]
        assert max(gap.min() for gap in gaps) < 5 * OTHER_NOISE  # each is some frame's
        whole += np.max(gaps, 0).min() < 5 * OTHER_NOISE
    assert 15 < whole < 50


MOVES = [not re.search("wrist|collar|foot|hand|pelvis|neck|head", name) for name in SMPL24]


def test_motion_poses_keep_the_contract():
    """Samples are pure functions of their keys; epochs and seeds differ; they collate."""
    first, second = (MotionPoses("train", 30, seed=2) for _ in range(2))
    sample = first[31]
    assert {name: (tuple(value.shape), value.dtype) for name, value in sample.items()} == {
        "pose": ((24, 3, 3), torch.float32), "betas": ((10,), torch.float32),
        "index": ((), torch.int64)}
    assert sample["index"] == 1
    assert [digest(second[key]) for key in (7, 31, 7)] == [digest(first[key]) for key in (7, 31, 7)]
    different = [first[1], first[31], MotionPoses("train", 30)[1],
                 MotionPoses("test", 30, seed=2)[1]]
    assert len({digest(sample) for sample in different}) == 4
    assert len(list(first)) == len(first) == 30
    batch = next(iter(DataLoader(first, batch_size=8, num_workers=0)))
    assert batch["pose"].shape == (8, 24, 3, 3)


def gaps_to_frames(poses, split="test"):
    """The least difference of each part of poses (N, 24, 3, 3) from all frames, (N, 5), radians."""
    frames = motion_frames(split)
    angles = bm.matrix_to_axis_angle(torch.from_numpy(poses)).numpy()
    parts = [[i for i, name in enumerate(SMPL24) if re.search(part, name) and MOVES[i]]
             for part in PARTS]
    return np.stack([np.abs(frames[:, part] - angle[part]).max((1, 2)).min() for angle in angles
                     for part in parts]).reshape(-1, 5)


def test_widened_poses_go_beyond_the_clips():
    """Without widening, every part is some frame's up to noise; widened, most parts are not."""
    rngs = [np.random.default_rng(seed) for seed in range(40)]
    known = gaps_to_frames(sample_wide_poses(rngs, "test", 0.0)) < 5 * OTHER_NOISE
    assert known.all()
    wide = gaps_to_frames(sample_wide_poses(rngs, "test", 1.0)) < 5 * OTHER_NOISE
    assert 0.2 < wide.mean() < 0.7
    half = gaps_to_frames(sample_wide_poses(rngs, "test", 0.5)) < 5 * OTHER_NOISE
    assert wide.mean() < half.mean() < 1


@given(seeds, st.floats(0, 1), st.floats(0, 180))
def test_wide_poses_are_rotations_and_belong_to_their_generators(seed, wide, views):
    """Proper rotations; a pose does not depend on the poses drawn beside it."""
    rngs = [np.random.default_rng((seed, number)) for number in range(3)]
    poses = sample_wide_poses(rngs, "test", wide, views)
    np.testing.assert_allclose(poses @ poses.swapaxes(2, 3), np.tile(np.eye(3), (3, 24, 1, 1)),
                               atol=1e-9)
    alone = sample_wide_poses([np.random.default_rng((seed, 1))], "test", wide, views)
    np.testing.assert_allclose(alone[0], poses[1], atol=1e-12)


def test_motion_poses_come_in_batches():
    """__getitems__, as a loader calls it, returns the samples of the keys, wide or not."""
    for wide in (0.0, 0.6):
        dataset = MotionPoses("train", 30, wide=wide, lean=45.0)
        samples = dataset.__getitems__([7, 31, 7])
        for key, sample in zip([7, 31, 7], samples, strict=True):
            assert sample.keys() == dataset[key].keys()
            assert sample["index"] == key % 30 and sample["pose"].dtype == torch.float32
            for name, value in dataset[key].items():
                torch.testing.assert_close(sample[name], value, atol=1e-6, rtol=0)
        assert digest(dataset[7]) != digest(MotionPoses("train", 30, wide=0.3)[7])


@pytest.mark.parametrize("options,message", [
    ({"split": "val"}, "unknown split 'val': expected one of train, test"),
    ({"length": 0}, "positive length, views in 0..180 and .* got 0, "),
    ({"views": 181}, "views in 0..180"), ({"wide": 1.1}, "wide in 0..1"),
    ({"seed": -1}, "expected seed >= 0"),
])
def test_motion_poses_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        MotionPoses(**options)


def test_lean_keeps_upright_bodies():
    """No pelvis leans more than `lean`; 180 keeps all frames; the splits differ."""
    for split in ("train", "test"):
        everything, upright = motion_frames(split), motion_frames(split, 45.0)
        assert 0 < len(upright) < len(everything)
        roots = bm.axis_angle_to_matrix(torch.from_numpy(upright[:, 0]))
        assert roots[:, 1, 1].min() >= np.cos(np.deg2rad(45)) - 1e-6
    upright = RenderedBodies("test", 64, length=4, lean=45.0)
    assert all(sample["pose"][0, 1, 1] < 0 for sample in upright)  # y is down there
    with pytest.raises(ValueError, match="lean"):
        RenderedBodies("test", 64, lean=10.0)
