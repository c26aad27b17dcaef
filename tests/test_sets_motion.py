"""AMASS and MOYO: layouts, options, packed files, damage; joined data sets."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from body_samples import BODY, SMPL45, digest
from official_folders import recording, write_amass, write_moyo

import bodymodels as bm
from sets.motion import AMASS, MOYO, Z_UP_TO_CAMERA, MotionPoses
from sets.samples import Joined


def axis_angles(dataset):
    """Poses as they were recorded, z up."""
    poses = torch.stack([sample["pose"] for sample in dataset]).double()
    poses[:, 0] = torch.from_numpy(Z_UP_TO_CAMERA.T) @ poses[:, 0]
    return bm.matrix_to_axis_angle(poses).numpy()


def test_amass_reads_both_downloads(tmp_path):
    """Trim and stride take the frames they should, of every recording once, in SMPL's order."""
    poses = write_amass(tmp_path)
    dataset = AMASS(tmp_path, progress=False, hands="index")
    picked = []
    for name, first in (("CMU/01/a_poses.npz", 66), ("CMU/02/b_poses.npz", 66),
                        ("MPI_Limits/03/c_stageii.npz", 75)):
        frames = poses[name]
        right = first + 45  # of the first joint of each index finger
        kept = frames[range(int(0.2 * len(frames)), int(0.8 * len(frames)), 10)]
        picked.append(np.concatenate([kept[:, :66], kept[:, first:first + 3],
                                      kept[:, right:right + 3]], 1).reshape(-1, 24, 3))
    np.testing.assert_allclose(axis_angles(dataset), np.concatenate(picked), atol=2e-6)
    assert dataset[0]["betas"].tolist() == pytest.approx(np.arange(10) / 10)
    assert "KIT" in dataset.missing and "PosePrior" not in dataset.missing
    assert dataset[0].keys() == MotionPoses(length=1)[0].keys()


def test_amass_options(tmp_path):
    """Subsets have any release's names; hands are still; stride=1, trim=0 give every frame."""
    poses = write_amass(tmp_path)
    test = AMASS(tmp_path, "test", trim=0, stride=1, progress=False)
    frames = poses["SSM_synced/04/d_poses.npz"]
    expected = frames[:, :72].reshape(-1, 24, 3).copy()
    expected[:, 22:] = 0
    np.testing.assert_allclose(axis_angles(test), expected, atol=2e-6)
    for name in ("SSM", "ssm_synced", "SSM_synced"):
        again = AMASS(tmp_path, subsets=[name], trim=0, stride=1, progress=False)
        assert digest(again[3]) == digest(test[3])
    assert test.missing == ["Transitions"]


def test_convention_recordings_stand_before_the_camera(tmp_path):
    """An upright body of AMASS's z-up world is upright with y down and faces the camera."""
    (tmp_path / "KIT/1").mkdir(parents=True)
    standing = np.zeros((10, 156))
    standing[:, 0] = np.pi / 2
    np.savez(tmp_path / "KIT/1/x_poses.npz", poses=standing, betas=np.zeros(16))
    sample = AMASS(tmp_path, stride=1, progress=False)[0]
    keypoints = BODY.keypoints(BODY(sample["betas"][None], sample["pose"][None]))[0]
    nose, pelvis, ankle, toe = (keypoints[SMPL45.index(name)] for name in
                                ("nose", "pelvis", "left_ankle", "left_big_toe"))
    assert nose[1] < pelvis[1] < ankle[1] and toe[2] < ankle[2]


def test_packed_motion_is_read_again_only_when_files_change(tmp_path):
    """Files that look unchanged are not opened; changed ones are."""
    write_amass(tmp_path)
    path, cache = tmp_path / "SSM_synced/04/d_poses.npz", tmp_path / "cache"
    before = AMASS(tmp_path, "test", cache=cache, progress=False)
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = AMASS(tmp_path, "test", cache=cache, progress=False)
    assert [digest(sample) for sample in before] == [digest(sample) for sample in after]
    assert digest(pickle.loads(pickle.dumps(after))[1]) == digest(after[1])
    os.utime(path, ns=(0, 0))
    with pytest.raises(ValueError, match="d_poses.npz cannot be read as AMASS's .npz"):
        AMASS(tmp_path, "test", cache=cache, progress=False)
    assert not list(cache.glob("*.tmp"))


@pytest.mark.parametrize("spoil,message", [
    ({"poses": np.zeros((40, 150))}, r"expected poses \(T, 156\), SMPL-H.*got \(40, 150\)"),
    ({"poses": np.full((40, 156), np.nan)}, "poses or betas that are not finite"),
    ({"betas": np.zeros((3, 16))}, r"expected betas \(N,\) or \(40, N\), got \(3, 16\)"),
    ({"betas": np.array({"a": 1})}, "cannot be read as AMASS's"),
    ({"poses": np.array("walk")}, "cannot be read as AMASS's"),
])
def test_bad_recordings_of_amass(tmp_path, spoil, message):
    """One message names the file and what is wrong in it."""
    write_amass(tmp_path)
    good = {"poses": recording(0), "betas": np.zeros(16)}
    np.savez(tmp_path / "SSM_synced/04/d_poses.npz", **(good | spoil))
    with pytest.raises(ValueError, match="d_poses.npz.*" + message):
        AMASS(tmp_path, "test", progress=False)


@pytest.mark.parametrize("options,error,message", [
    ({"split": "val"}, FileNotFoundError, "no recordings of HumanEva, HDM05, SFU, MoSh in"),
    ({"subsets": ["CMU", "GRAB"]}, FileNotFoundError, "no recordings of GRAB in"),
    ({"root": "nowhere"}, FileNotFoundError, "no folder nowhere: expected AMASS there"),
    ({"trim": 0.5}, ValueError, "expected trim in 0..0.5"),
    ({"hands": "both"}, ValueError, "hands still or index, got .* and 'both'"),
    ({"trim": 0.499, "split": "test"}, ValueError, "no frame left with trim=0.499"),
    ({"split": "dev"}, ValueError, "unknown split 'dev': expected one of train, val, test"),
])
def test_amass_refuses(tmp_path, options, error, message):
    write_amass(tmp_path)
    np.savez(tmp_path / "SSM_synced/04/d_poses.npz", poses=np.zeros((1, 156)), betas=np.zeros(16))
    with pytest.raises(error, match=message):
        AMASS(**{"root": tmp_path, "progress": False} | options)


@pytest.mark.parametrize("smpl", [True, False])
def test_moyo_reads_both_fits(tmp_path, smpl):
    """SMPL fits are preferred to SMPL-X fits; 10 % are trimmed, every fifth frame is taken."""
    folder, poses = write_moyo(tmp_path, smpl)
    for root in (tmp_path, folder):
        for split in ("train", "val"):
            dataset = MOYO(root, split, progress=False)
            found = axis_angles(dataset)
            np.testing.assert_allclose(found[:, :22], poses[split][3:27:5, :22], atol=2e-6)
            assert not found[:, 22:].any()
            assert dataset[0]["betas"].tolist() == [float(smpl)] * 10
    if smpl:
        own = axis_angles(MOYO(tmp_path, "val", hands="index", progress=False))
        np.testing.assert_allclose(own, poses["val"][3:27:5], atol=2e-6)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_bad_recordings_of_moyo(tmp_path):
    """A pickle that would run a program is refused; wrong content and missing splits are named."""
    folder, _ = write_moyo(tmp_path, smpl=False)
    path, mark = folder / "mosh/val/yoga_stageii.pkl", tmp_path / "mark"
    for content, message in (
            ({"fullpose": Attack(mark)}, "yoga_stageii.pkl is damaged or unsafe"),
            ({"betas": np.zeros(10)}, "yoga_stageii.pkl is no recording of MOYO"),
            ({"fullpose": np.zeros((4, 100)), "betas": np.zeros(10)}, r"got \(4, 100\)"),
            ({"global_orient": np.zeros((4, 3)), "body_pose": np.zeros((4, 60)),
              "betas": np.zeros(10)}, "is no recording of MOYO"),
            ([1, 2], "holds a list, not arrays")):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=message):
            MOYO(tmp_path, "val", progress=False)
    assert not mark.exists()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no mosh_smpl/val/.*expected MOYO there"):
        MOYO(tmp_path, "val", progress=False)


def test_joined_data_sets(tmp_path):
    """Each sample of an epoch comes once, in order, with keys of the joined set."""
    write_amass(tmp_path / "amass")
    write_moyo(tmp_path / "moyo", smpl=False)
    parts = [AMASS(tmp_path / "amass", progress=False),
             MOYO(tmp_path / "moyo", progress=False), MotionPoses("train", 4)]
    joined = Joined(parts)
    assert len(joined) == sum(map(len, parts))
    apart = [sample["pose"] for part in parts for sample in part]
    for index, (sample, pose) in enumerate(zip(joined, apart, strict=True)):
        assert sample["index"] == index and torch.equal(sample["pose"], pose)
    later = joined[3 * len(joined) + len(joined) - 1]
    assert torch.equal(later["pose"], parts[2][3 * 4 + 3]["pose"])
    with pytest.raises(IndexError, match="keys count up from 0"):
        joined[-1]
    with pytest.raises(ValueError, match="at least one data set"):
        Joined([])


def test_moyo_takes_the_captures_with_hands_alone(tmp_path):
    """Of two captures only that with hands is read; a single capture is read whatever its name."""
    folder, _ = write_moyo(tmp_path, smpl=False)
    other = tmp_path / "20220923_20220926_with_com"
    shutil.copytree(folder, other)
    assert [path.relative_to(tmp_path).parts[0] for path in MOYO(tmp_path, progress=False).files
            ] == [folder.name]
    assert len(MOYO(other, progress=False)) == len(MOYO(tmp_path, progress=False))
