"""Poses of bodies: the free clips, AMASS and MOYO."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import Call
from hypothesis import given
from hypothesis import strategies as st
from official_folders import recording, write_amass, write_moyo
from set_samples import BODY, SMPL45, digest, layout, seeds
from torch.utils.data import DataLoader

import bodymodels as bm
from sets import motion
from sets.rendered_bodies import RenderedBodies
from sets.samples import Joined


def source_clips():
    with np.load(bm.ASSETS / "motion.npz") as arrays:
        return arrays["poses"].reshape(-1, 24, 3), arrays["clip_names"][arrays["clip"]]


def test_splits_share_no_clip():
    """Apart from its heading, every frame of a split comes from one of the split's clips."""
    poses, clips = source_clips()
    for split in ("train", "test"):
        frames = motion.motion_frames(split)
        original = bm.axis_angle_to_matrix(torch.from_numpy(frames[:len(frames) // 2, 1:]))
        rotations = bm.axis_angle_to_matrix(torch.from_numpy(poses[:, 1:]).double())
        for frame in original[::17]:
            nearest = (rotations - frame).abs().amax((1, 2, 3)).argmin()
            assert (rotations[nearest] - frame).abs().max() < 1e-5
            assert (clips[nearest] in motion.TEST_CLIPS) == (split == "test")
    assert set(motion.TEST_CLIPS) < set(clips)


def test_motion_poses_keep_the_contract():
    """Samples are pure functions of their keys; epochs and seeds differ; they collate."""
    first, second = (motion.MotionPoses("train", 30, seed=2) for _ in range(2))
    sample = first[31]
    assert layout(sample) == {
        "pose": ((24, 3, 3), torch.float32), "betas": ((10,), torch.float32),
        "index": ((), torch.int64)}
    assert sample["index"] == 1
    assert [digest(second[key]) for key in (7, 31, 7)] == [digest(first[key]) for key in (7, 31, 7)]
    different = [first[1], first[31], motion.MotionPoses("train", 30)[1],
                 motion.MotionPoses("test", 30, seed=2)[1]]
    assert len({digest(sample) for sample in different}) == 4
    assert len(list(first)) == len(first) == 30
    batch = next(iter(DataLoader(first, batch_size=8, num_workers=0)))
    assert batch["pose"].shape == (8, 24, 3, 3)


@given(seeds, st.floats(0, 1), st.floats(0, 180))
def test_wide_poses_are_rotations_and_belong_to_their_generators(seed, wide, views):
    """Proper rotations; a pose does not depend on the poses drawn beside it."""
    rngs = [np.random.default_rng((seed, number)) for number in range(3)]
    poses = motion.sample_wide_poses(rngs, "test", wide, views)
    np.testing.assert_allclose(poses @ poses.swapaxes(2, 3), np.tile(np.eye(3), (3, 24, 1, 1)),
                               atol=1e-9)
    alone = motion.sample_wide_poses([np.random.default_rng((seed, 1))], "test", wide, views)
    np.testing.assert_allclose(alone[0], poses[1], atol=1e-12)


def test_lean_keeps_upright_bodies():
    """No pelvis leans more than `lean`; 180 keeps all frames; the splits differ."""
    for split in ("train", "test"):
        everything, upright = motion.motion_frames(split), motion.motion_frames(split, 45.0)
        assert 0 < len(upright) < len(everything)
        roots = bm.axis_angle_to_matrix(torch.from_numpy(upright[:, 0]))
        assert roots[:, 1, 1].min() >= np.cos(np.deg2rad(45)) - 1e-6
    upright = RenderedBodies("test", 64, length=4, lean=45.0)
    assert all(sample["pose"][0, 1, 1] < 0 for sample in upright)  # y is down there
    with pytest.raises(ValueError, match="lean"):
        RenderedBodies("test", 64, lean=10.0)


def axis_angles(dataset):
    """Poses as they were recorded, z up."""
    poses = torch.stack([sample["pose"] for sample in dataset]).double()
    poses[:, 0] = torch.from_numpy(motion.Z_UP_TO_CAMERA.T) @ poses[:, 0]
    return bm.matrix_to_axis_angle(poses).numpy()


def test_amass_reads_both_downloads(tmp_path):
    """Trim and stride take the frames they should, of every recording once, in SMPL's order; hands
    are still; data sets may have the names of earlier releases."""
    poses = write_amass(tmp_path)
    for split, names in (
            ("train", ("CMU/01/a_poses.npz", "CMU/02/b_poses.npz", "MPI_Limits/03/c_stageii.npz")),
            ("test", ("SSM_synced/04/d_poses.npz",))):
        dataset, picked = motion.AMASS(tmp_path, split), []
        for frames in (poses[name] for name in names):
            kept = frames[range(int(0.2 * len(frames)), int(0.8 * len(frames)), 10)]
            picked.append(np.pad(kept[:, :66], ((0, 0), (0, 6))).reshape(-1, 24, 3))
        np.testing.assert_allclose(axis_angles(dataset), np.concatenate(picked), atol=2e-6)
        assert dataset[0].keys() == motion.MotionPoses(length=1)[0].keys()
    assert motion.AMASS(tmp_path)[0]["betas"].tolist() == pytest.approx(np.arange(10) / 10)


def test_a_recording_of_two_releases_is_read_once(tmp_path):
    """SMPL+H's counts, also where its release has another name of the data set."""
    for name, width in (("BMLrub/rub001/walk_stageii.npz", 165), ("BMLrub/rub001/jog_stageii.npz",
                        165), ("BioMotionLab_NTroje/rub001/walk_poses.npz", 156)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / name, poses=recording(0, width=width), betas=np.zeros(16))
    dataset = motion.AMASS(tmp_path)
    assert [path.name for paths in dataset.sources.values() for path in paths] == [
        "jog_stageii.npz", "walk_poses.npz"]


def test_convention_recordings_stand_before_the_camera(tmp_path):
    """An upright body of AMASS's z-up world is upright with y down and faces the camera."""
    (tmp_path / "KIT/1").mkdir(parents=True)
    standing = np.zeros((10, 156))
    standing[:, 0] = np.pi / 2
    np.savez(tmp_path / "KIT/1/x_poses.npz", poses=standing, betas=np.zeros(16))
    sample = motion.AMASS(tmp_path)[0]
    keypoints = BODY.keypoints(BODY(sample["betas"][None], sample["pose"][None]))[0]
    nose, pelvis, ankle, toe = (keypoints[SMPL45.index(name)] for name in
                                ("nose", "pelvis", "left_ankle", "left_big_toe"))
    assert nose[1] < pelvis[1] < ankle[1] and toe[2] < ankle[2]


@pytest.mark.parametrize("spoil,options,error,message", [
    ({"poses": np.zeros((40, 150))}, {}, ValueError,
     r"d_poses.npz.*expected poses \(T, 156\), SMPL-H.*got \(40, 150\)"),
    ({"poses": np.full((40, 156), np.nan)}, {}, ValueError, "d_poses.npz.* betas are not finite"),
    ({"betas": np.zeros((3, 16))}, {}, ValueError, "d_poses.npz.*is not as AMASS is shipped"),
    ({"poses": np.array("walk")}, {}, ValueError, "d_poses.npz.*is not as AMASS is shipped"),
    ({"poses": np.zeros((1, 156))}, {}, ValueError, "no sample of the split test is left"),
    ({}, {"split": "dev"}, ValueError, "unknown split 'dev': expected one of train, val, test"),
    ({}, {"split": "val"}, FileNotFoundError, "no .*HumanEva.*: expected AMASS there"),
    ({}, {"root": "nowhere", "split": "train"}, FileNotFoundError,
     "no .*nowhere/CMU.*: expected AMASS there"),
])
def test_amass_refuses(tmp_path, spoil, options, error, message):
    """One message names the file and what is wrong in it."""
    write_amass(tmp_path)
    good = {"poses": recording(0), "betas": np.zeros(16)}
    np.savez(tmp_path / "SSM_synced/04/d_poses.npz", **(good | spoil))
    with pytest.raises(error, match=message):
        motion.AMASS(**{"root": tmp_path, "split": "test"} | options)


@pytest.mark.parametrize("smpl", [True, False])
def test_moyo_reads_both_fits(tmp_path, smpl):
    """SMPL fits are preferred to SMPL-X fits; 10 % are trimmed, every fifth frame is taken."""
    folder, poses = write_moyo(tmp_path, smpl)
    for root in (tmp_path, folder):
        for split in ("train", "val"):
            dataset = motion.MOYO(root, split)
            found = axis_angles(dataset)
            np.testing.assert_allclose(found[:, :22], poses[split][3:27:5, :22], atol=2e-6)
            assert not found[:, 22:].any()
            assert dataset[0]["betas"].tolist() == [float(smpl)] * 10


def test_bad_recordings_of_moyo(tmp_path):
    """A pickle that would run a program is refused; wrong content and missing splits are named."""
    folder, _ = write_moyo(tmp_path, smpl=False)
    path, mark = folder / "mosh/val/yoga_stageii.pkl", tmp_path / "mark"
    for content, message in (
            ({"fullpose": Call(Path.touch, mark)}, "is not as MOYO is shipped.*unsafe"),
            ({"fullpose": np.zeros((4, 100)), "betas": np.zeros(10)}, r"got \(4, 100\)"),
            ([1, 2], "holds a list, not arrays")):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=f"yoga_stageii.pkl.*{message}"):
            motion.MOYO(tmp_path, "val")
    assert not mark.exists()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no .*mosh/val/.*expected MOYO there"):
        motion.MOYO(tmp_path, "val")


def test_joined_data_sets(tmp_path):
    """Each sample of an epoch comes once, in order, with keys of the joined set."""
    write_amass(tmp_path / "amass")
    write_moyo(tmp_path / "moyo", smpl=False)
    parts = [motion.AMASS(tmp_path / "amass"),
             motion.MOYO(tmp_path / "moyo"), motion.MotionPoses("train", 4)]
    joined = Joined(parts)
    assert len(joined) == sum(map(len, parts))
    apart = [sample["pose"] for part in parts for sample in part]
    for index, (sample, pose) in enumerate(zip(joined, apart, strict=True)):
        assert sample["index"] == index and torch.equal(sample["pose"], pose)
    later = joined[3 * len(joined) + len(joined) - 1]
    assert torch.equal(later["pose"], parts[2][3 * 4 + 3]["pose"])
    with pytest.raises(IndexError, match="keys count up from 0"):
        joined[-1]


def test_moyo_takes_the_captures_with_hands_alone(tmp_path):
    """Of two captures only that with hands is read; a single capture is read whatever its name."""
    folder, _ = write_moyo(tmp_path, smpl=False)
    other = tmp_path / "20220923_20220926_with_com"
    shutil.copytree(folder, other)
    assert [path.relative_to(tmp_path).parts[0] for path in motion.MOYO(tmp_path).first_sources()
            ] == [folder.name]
    assert len(motion.MOYO(other)) == len(motion.MOYO(tmp_path))
