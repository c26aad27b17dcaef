"""Bodies: their keypoints, motion without pictures, AMASS, MOYO, rendered pictures, protocols."""

import hashlib
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import smplx
import torch
from hypothesis import given
from hypothesis import strategies as st
from joblib_files import joblib_dump
from smplx.vertex_ids import vertex_ids
from torch.utils.data import DataLoader

import bodymodels as bm
import data
import metrics

SMPL24, SMPL45 = bm.JOINT_SETS["smpl24"], bm.JOINT_SETS["smpl45"]
BODY, WHOLE = bm.load_model("body"), bm.load_model("wholebody")
seeds = st.integers(0, 2**31 - 1)


def digest(sample):
    joined = b"".join(sample[name].numpy().tobytes() for name in sorted(sample))
    return hashlib.sha256(joined).hexdigest()


def inputs(body, seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    betas = torch.randn(batch, 10, generator=generator)
    return betas, 0.5 * torch.randn(batch, len(body.parents), 3, generator=generator)


# --------------------------------------------------------------------------------- keypoints


@pytest.mark.parametrize("ours,theirs", [("smpl", "smplh"), ("smplx", "smplx")])
def test_landmarks_are_the_vertices_of_smplx(ours, theirs):
    """Each vertex is the one that the smplx package has under the same name."""
    sides = {"right": "r", "left": "l"}
    for name, vertex in zip(SMPL45[24:], bm.SURFACE_VERTEX_IDS[ours], strict=True):
        side, _, part = name.partition("_")
        part = part.removesuffix("_tip")
        foot = part in ("big_toe", "small_toe", "heel")
        key = (name if name == "nose" else side[0].upper() + part.title().replace("_", "") if foot
               else sides[side] + part)
        assert vertex_ids[theirs][key] == vertex, name


def test_keypoints_are_those_of_smplx(tmp_path):
    """"smpl45" and "smplx76" are what smplx returns as joints for the same file and pose."""
    (tmp_path / "SMPLX_NEUTRAL.npz").symlink_to(bm.ASSETS / "wholebody.npz")
    theirs = smplx.SMPLX(tmp_path, ext="npz", use_pca=False, flat_hand_mean=True, batch_size=2)
    betas, pose = inputs(WHOLE, 0)
    parts = dict(zip(("global_orient", "body_pose", "jaw_pose", "leye_pose", "reye_pose",
                      "left_hand_pose", "right_hand_pose"),
                     pose.flatten(1).split([3, 63, 3, 3, 3, 45, 45], 1), strict=True))
    expected = theirs(betas=betas, expression=torch.zeros(2, 10), **parts).joints[:, :76]
    torch.testing.assert_close(WHOLE.keypoints(WHOLE(betas, pose)), expected, atol=1e-5, rtol=0)

    arrays = dict(bm.load_arrays(bm.ASSETS / "body.npz"))
    with open(tmp_path / "SMPL_NEUTRAL.pkl", "wb") as file:
        pickle.dump(arrays, file)
    theirs = smplx.SMPL(tmp_path / "SMPL_NEUTRAL.pkl", batch_size=2)
    betas, pose = inputs(BODY, 1)
    expected = theirs(betas=betas, global_orient=pose[:, 0], body_pose=pose[:, 1:].flatten(1))
    torch.testing.assert_close(BODY.keypoints(BODY(betas, pose)), expected.joints, atol=1e-5,
                               rtol=0)


def test_keypoints_are_symmetric():
    """At rest left keypoints are mirror images of right ones, to a millimetre, and lie on +x."""
    keypoints = BODY.keypoints(BODY(torch.zeros(1, 10), torch.zeros(1, 24, 3)))[0]
    torch.testing.assert_close(bm.mirror_points(keypoints[bm.mirror_indices("smpl45")]), keypoints,
                               atol=1e-3, rtol=0)
    left = [name.startswith("left") for name in SMPL45]
    assert (keypoints[left][:, 0] > 0.01).all() and sum(left) == 19


@given(st.lists(st.integers(0, 6889), min_size=1, max_size=20), seeds)
def test_body_of_a_few_vertices(vertex_ids, seed):
    """It has the same joints, bit for bit, and of the same mesh the vertices asked for."""
    betas, pose = inputs(BODY, seed)
    light, full = BODY.at_vertices(vertex_ids)(betas, pose), BODY(betas, pose)
    assert torch.equal(light.joints, full.joints)
    assert torch.equal(light.transforms, full.transforms)
    torch.testing.assert_close(light.vertices, full.vertices[:, vertex_ids], atol=1e-6, rtol=0)


@pytest.mark.parametrize("body", [BODY, WHOLE], ids=["smpl", "smplx"])
def test_body_for_keypoints(body):
    """It gives the same keypoints with the same gradients, from 21 vertices."""
    light, gradients = body.for_keypoints(), []
    assert light.v_template.shape == (21, 3) and light.faces.shape == (0, 3)
    betas, pose = inputs(body, 3)
    for model in (body, light):
        shape, angles = betas.clone().requires_grad_(), pose.clone().requires_grad_()
        keypoints = model.keypoints(model(shape, angles))
        (keypoints * torch.arange(3)).square().sum().backward()
        gradients.append((keypoints.detach(), shape.grad, angles.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert body.J_regressor is not None and light.J_regressor is None


def test_body_of_few_vertices_keeps_what_it_can():
    """Landmarks and fingertips are found again at their new places, or not at all."""
    again = BODY.for_keypoints().at_vertices([*range(20, -1, -1)])
    assert again.surface_vertex_ids == tuple(range(20, -1, -1))
    betas, pose = inputs(BODY, 4)
    torch.testing.assert_close(again.keypoints(again(betas, pose)),
                               BODY.keypoints(BODY(betas, pose)), atol=1e-6, rtol=0)
    hand = bm.load_model("hand_right")
    assert hand.at_vertices([5, *hand.tip_vertex_ids]).tip_vertex_ids == (1, 2, 3, 4, 5)
    assert hand.at_vertices([5]).tip_vertex_ids == ()


@pytest.mark.parametrize("ask,message", [
    (lambda: BODY.at_vertices([0, 6890]), "expected vertices of body, 0 to 6889, got"),
    (lambda: BODY.at_vertices([]), "expected vertices of body, 0 to 6889"),
    (lambda: bm.load_model("hand_right").keypoints(None), "hand_right has no landmarks"),
    (lambda: BODY.at_vertices([332]).keypoints(None), "body has no landmarks"),
])
def test_keypoint_errors(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


# ------------------------------------------------------------------------------- motion clips


def source_clips():
    with np.load(bm.ASSETS / "motion.npz") as arrays:
        return arrays["poses"].reshape(-1, 24, 3), arrays["clip_names"][arrays["clip"]]


def test_splits_share_no_clip():
    """Every frame of a split is, but for its heading, one of a clip that the split owns."""
    poses, clips = source_clips()
    for split in ("train", "test"):
        frames = data.motion_frames(split)
        original = bm.axis_angle_to_matrix(torch.from_numpy(frames[:len(frames) // 2, 1:]))
        rotations = bm.axis_angle_to_matrix(torch.from_numpy(poses[:, 1:]).double())
        for frame in original[::17]:
            nearest = (rotations - frame).abs().amax((1, 2, 3)).argmin()
            assert (rotations[nearest] - frame).abs().max() < 1e-5
            assert (clips[nearest] in data.TEST_CLIPS) == (split == "test")
    assert set(data.TEST_CLIPS) < set(clips)


def test_frames_differ_and_are_mirrored():
    """No two frames are near duplicates; the second half mirrors the first."""
    frames = torch.from_numpy(data.motion_frames("test"))
    half = frames[:len(frames) // 2]
    torch.testing.assert_close(frames[len(half):], bm.mirror_pose(half, SMPL24))
    rotations = bm.axis_angle_to_matrix(half)
    trace = torch.einsum("ikab,jkab->ijk", rotations, rotations)
    angle = ((trace.clamp(-1, 3) - 1) / 2).acos().amax(2)
    apart = angle[~torch.eye(len(half), dtype=bool)]
    assert apart.min() >= data.NEAR_DUPLICATE - 1e-6 and len(half) > 100


@given(seeds, st.floats(-3.1, 3.1))
def test_facing_forward_forgets_the_heading(seed, heading):
    """Turned about the vertical, a body faces forward as before; facing forward twice is once."""
    quaternion = np.random.default_rng(seed).normal(size=(1, 4))
    root = bm.quaternion_to_matrix(torch.from_numpy(quaternion))
    turn = bm.axis_angle_to_matrix(torch.tensor([[0, heading, 0]], dtype=torch.float64))
    forward = data.face_forward(root)
    torch.testing.assert_close(data.face_forward(turn @ root), forward, atol=1e-6, rtol=0)
    torch.testing.assert_close(data.face_forward(forward), forward, atol=1e-9, rtol=0)
    torch.testing.assert_close(forward[0, 1], root[0, 1], atol=1e-12, rtol=0)  # heights stay


@given(seeds, st.sampled_from(["train", "test"]), st.floats(0, 180))
def test_sampled_poses_are_rotations(seed, split, views):
    pose = data.sample_body_pose(np.random.default_rng(seed), split, views)
    assert pose.shape == (24, 3, 3)
    np.testing.assert_allclose(pose @ pose.swapaxes(1, 2), np.tile(np.eye(3), (24, 1, 1)),
                               atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(pose), 1, atol=1e-9)


@pytest.mark.parametrize("views", [0.0, 40.0])
def test_convention_bodies_stand_and_face_the_camera(views):
    """Most bodies are upright with y down; of those none faces away by more than `views`, nearly.
    """
    poses = [data.MotionPoses("test", views=views)[key]["pose"].numpy() for key in range(150)]
    up = np.array([-pose[0, 1, 1] for pose in poses])
    assert (up > 0.7).mean() > 0.6
    facing = np.array([-pose[0, 2, 2] for pose in poses])[up > 0.9]  # the camera looks along +z
    heading = np.rad2deg(np.arccos(facing.clip(-1, 1)))
    assert heading.max() < views + 26  # leaning by acos(0.9)
    assert views == 0 or heading.max() > 20


def test_limbs_are_exchanged_within_a_split():
    """Some poses are frames of the clips up to noise, others have limbs of several frames."""
    frames = data.motion_frames("test")
    limbs, whole = [[index for index in limb if MOVES[index]] for limb in data.LIMBS], 0
    for seed in range(60):
        pose = data.sample_body_pose(np.random.default_rng(seed), "test")
        angles = bm.matrix_to_axis_angle(torch.from_numpy(pose)).numpy()
        gaps = [np.abs(frames[:, limb] - angles[limb]).max((1, 2)) for limb in limbs]
        assert max(gap.min() for gap in gaps) < 5 * data.OTHER_NOISE  # each is some frame's
        whole += np.max(gaps, 0).min() < 5 * data.OTHER_NOISE
    assert 15 < whole < 50


MOVES = [not re.search("wrist|collar|foot|hand|pelvis|neck|head", name) for name in SMPL24]


def test_motion_poses_keep_the_contract():
    """Samples are pure functions of their keys; epochs and seeds differ; they collate."""
    first, second = (data.MotionPoses("train", 30, seed=2) for _ in range(2))
    sample = first[31]
    assert {name: (tuple(value.shape), value.dtype) for name, value in sample.items()} == {
        "pose": ((24, 3, 3), torch.float32), "betas": ((10,), torch.float32),
        "index": ((), torch.int64)}
    assert sample["index"] == 1
    assert [digest(second[key]) for key in (7, 31, 7)] == [digest(first[key]) for key in (7, 31, 7)]
    different = [first[1], first[31], data.MotionPoses("train", 30)[1],
                 data.MotionPoses("test", 30, seed=2)[1]]
    assert len({digest(sample) for sample in different}) == 4
    assert len(list(first)) == len(first) == 30
    batch = next(iter(DataLoader(first, batch_size=8, num_workers=0)))
    assert batch["pose"].shape == (8, 24, 3, 3)


@pytest.mark.parametrize("options,message", [
    ({"split": "val"}, "unknown split 'val': expected one of train, test"),
    ({"length": 0}, "positive length and views in 0..180 degrees, got 0 and"),
    ({"views": 181}, "views in 0..180"), ({"seed": -1}, "expected seed >= 0"),
])
def test_motion_poses_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        data.MotionPoses(**options)


# ------------------------------------------------------------------------------ AMASS and MOYO


def recording(seed, frames=40, width=156):
    return np.random.default_rng(seed).normal(0, 0.3, (frames, width))


def write_amass(root):
    """Two data sets of both downloads under old and new names; returns the poses by file."""
    poses = {}
    for seed, (name, width, extra) in enumerate([
            ("CMU/01/a_poses.npz", 156, {"mocap_framerate": 120.0, "gender": "female"}),
            ("CMU/02/b_poses.npz", 156, {"mocap_framerate": 120.00004577, "gender": b"male"}),
            ("MPI_Limits/03/c_stageii.npz", 165, {"mocap_frame_rate": 60.0, "gender": "neutral",
                                                  "markers_latent_vids": np.array({"a": 1})}),
            ("CMU/01/a_stageii.npz", 165, {"mocap_frame_rate": 120.0}),
            ("SSM_synced/04/d_poses.npz", 156, {"mocap_framerate": 60.0})]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        poses[name] = recording(seed, 40 + seed, width)
        np.savez(path, poses=poses[name], betas=np.arange(16.0) / 10 + seed,
                 trans=np.zeros((40 + seed, 3)), **extra)
    np.savez(root / "CMU/01/shape.npz", betas=np.zeros(16))
    np.savez(root / "MPI_Limits/03/neutral_stagei.npz", betas=np.zeros(16))
    return poses


def axis_angles(dataset):
    """Poses as they were recorded, z up."""
    poses = torch.stack([sample["pose"] for sample in dataset]).double()
    poses[:, 0] = torch.from_numpy(data.Z_UP_TO_CAMERA.T) @ poses[:, 0]
    return bm.matrix_to_axis_angle(poses).numpy()


def test_amass_reads_both_downloads(tmp_path):
    """Trim and stride take the frames they should, of every recording once, in SMPL's order."""
    poses = write_amass(tmp_path)
    dataset = data.AMASS(tmp_path, progress=False, hands="index")
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
    assert dataset[0].keys() == data.MotionPoses(length=1)[0].keys()


def test_amass_options(tmp_path):
    """Splits and subsets choose by any release's name; hands are still; every frame can be had."""
    poses = write_amass(tmp_path)
    test = data.AMASS(tmp_path, "test", trim=0, stride=1, progress=False)
    frames = poses["SSM_synced/04/d_poses.npz"]
    expected = frames[:, :72].reshape(-1, 24, 3).copy()
    expected[:, 22:] = 0
    np.testing.assert_allclose(axis_angles(test), expected, atol=2e-6)
    for name in ("SSM", "ssm_synced", "SSM_synced"):
        again = data.AMASS(tmp_path, subsets=[name], trim=0, stride=1, progress=False)
        assert digest(again[3]) == digest(test[3])
    assert test.missing == ["Transitions"]


def test_convention_recordings_stand_before_the_camera(tmp_path):
    """Who stands upright in AMASS's z-up world stands upright, y down, and faces the camera."""
    (tmp_path / "KIT/1").mkdir(parents=True)
    standing = np.zeros((10, 156))
    standing[:, 0] = np.pi / 2
    np.savez(tmp_path / "KIT/1/x_poses.npz", poses=standing, betas=np.zeros(16))
    sample = data.AMASS(tmp_path, stride=1, progress=False)[0]
    keypoints = BODY.keypoints(BODY(sample["betas"][None], sample["pose"][None]))[0]
    nose, pelvis, ankle, toe = (keypoints[SMPL45.index(name)] for name in
                                ("nose", "pelvis", "left_ankle", "left_big_toe"))
    assert nose[1] < pelvis[1] < ankle[1] and toe[2] < ankle[2]


def test_packed_motion_is_read_again_only_when_files_change(tmp_path):
    """Files that look unchanged are not opened; changed ones are."""
    write_amass(tmp_path)
    path, cache = tmp_path / "SSM_synced/04/d_poses.npz", tmp_path / "cache"
    before = data.AMASS(tmp_path, "test", cache=cache, progress=False)
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = data.AMASS(tmp_path, "test", cache=cache, progress=False)
    assert [digest(sample) for sample in before] == [digest(sample) for sample in after]
    assert digest(pickle.loads(pickle.dumps(after))[1]) == digest(after[1])
    os.utime(path, ns=(0, 0))
    with pytest.raises(ValueError, match="d_poses.npz cannot be read as AMASS's .npz"):
        data.AMASS(tmp_path, "test", cache=cache, progress=False)
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
        data.AMASS(tmp_path, "test", progress=False)


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
        data.AMASS(**{"root": tmp_path, "progress": False} | options)


def write_moyo(root, smpl):
    """Both layouts below a release's folder, 30 frames each; returns the SMPL poses by split."""
    folder, poses = root / "20220923_20220926_with_hands", {}
    for seed, split in enumerate(("train", "val")):
        fullpose = recording(seed, 30, 165)
        path = folder / f"mosh/{split}/yoga_stageii.pkl"
        path.parent.mkdir(parents=True)
        path.write_bytes(pickle.dumps({
            "fullpose": fullpose, "trans": np.zeros((30, 3)), "betas": np.zeros(300),
            "v_template_fname": "/somebody/mesh.ply"}))
        poses[split] = fullpose[:, :66].reshape(30, 22, 3)
        if smpl:
            path = folder / f"mosh_smpl/{split}/yoga.pkl"
            path.parent.mkdir(parents=True)
            frames = recording(seed + 10, 30, 72)
            joblib_dump({"global_orient": frames[:, :3], "body_pose": frames[:, 3:],
                         "transl": np.zeros((30, 3)), "betas": np.ones((30, 10))}, path)
            poses[split] = frames.reshape(30, 24, 3)
    return folder, poses


@pytest.mark.parametrize("smpl", [True, False])
def test_moyo_reads_both_fits(tmp_path, smpl):
    """SMPL fits, which joblib wrote, go before SMPL-X fits; 10 % trim, every fifth frame."""
    folder, poses = write_moyo(tmp_path, smpl)
    for root in (tmp_path, folder):
        for split in ("train", "val"):
            dataset = data.MOYO(root, split, progress=False)
            found = axis_angles(dataset)
            np.testing.assert_allclose(found[:, :22], poses[split][3:27:5, :22], atol=2e-6)
            assert not found[:, 22:].any()
            assert dataset[0]["betas"].tolist() == [float(smpl)] * 10
    if smpl:
        own = axis_angles(data.MOYO(tmp_path, "val", hands="index", progress=False))
        np.testing.assert_allclose(own, poses["val"][3:27:5], atol=2e-6)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_bad_recordings_of_moyo(tmp_path):
    """A file that is a program is not run; other content is named; so is a missing split."""
    folder, _ = write_moyo(tmp_path, smpl=False)
    path, mark = folder / "mosh/val/yoga_stageii.pkl", tmp_path / "mark"
    for content, message in (
            ({"fullpose": Attack(mark)}, "yoga_stageii.pkl is damaged or is not plain data"),
            ({"betas": np.zeros(10)}, "yoga_stageii.pkl is no recording of MOYO"),
            ({"fullpose": np.zeros((4, 100)), "betas": np.zeros(10)}, r"got \(4, 100\)"),
            ({"global_orient": np.zeros((4, 3)), "body_pose": np.zeros((4, 60)),
              "betas": np.zeros(10)}, "is no recording of MOYO"),
            ([1, 2], "holds a list, not arrays")):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=message):
            data.MOYO(tmp_path, "val", progress=False)
    assert not mark.exists()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no mosh_smpl/val/.*expected MOYO there"):
        data.MOYO(tmp_path, "val", progress=False)


def test_joined_data_sets(tmp_path):
    """One after the other, with the joined set's keys: each sample of an epoch comes once."""
    write_amass(tmp_path / "amass")
    write_moyo(tmp_path / "moyo", smpl=False)
    parts = [data.AMASS(tmp_path / "amass", progress=False),
             data.MOYO(tmp_path / "moyo", progress=False), data.MotionPoses("train", 4)]
    joined = data.Joined(parts)
    assert len(joined) == sum(map(len, parts))
    apart = [sample["pose"] for part in parts for sample in part]
    for index, (sample, pose) in enumerate(zip(joined, apart, strict=True)):
        assert sample["index"] == index and torch.equal(sample["pose"], pose)
    later = joined[3 * len(joined) + len(joined) - 1]
    assert torch.equal(later["pose"], parts[2][3 * 4 + 3]["pose"])
    with pytest.raises(IndexError, match="keys count up from 0"):
        joined[-1]
    with pytest.raises(ValueError, match="at least one data set"):
        data.Joined([])


# ---------------------------------------------------------------------------- rendered bodies

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
    return data.RenderedBodies(split, size, length=length, progress=False, **options)


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
    """Anew, in another order, from a longer split or from the cache: the same sample."""
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
    assert len({sample, *(digest(dataset[4]) for dataset in others)}) == 5
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
    """A test picture's spine is, up to noise and its mirror image, that of a test clip's frame."""
    spine = [SMPL24.index(name) for name in ("spine1", "spine2", "spine3")]
    frames = data.motion_frames("test")[:, spine]
    for sample in map(bodies("test").__getitem__, range(12)):
        angles = bm.matrix_to_axis_angle(sample["pose"][spine].double()).numpy()
        assert np.abs(frames - angles).max((1, 2)).min() < 4.5 * data.OTHER_NOISE


def test_pictures_show_the_body():
    """Where the surface projects to, and hardly anywhere else, the picture is painted."""
    faces = data.body_surface().faces
    for seed in range(12):
        scene = data.sample_body_scene(np.random.default_rng(seed), "train", 96, 180.0, 180.0)
        image = np.full((96, 96, 3), -1, np.float32)
        data.paint_body(image, scene, np.random.default_rng(seed))
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
        scene = data.sample_body_scene(np.random.default_rng(seed), "train", 128, 180.0, 180.0)
        projected = scene.keypoints @ scene.K.T
        pixels = projected[:, :2] / projected[:, 2:]
        whole += data.inside(pixels, 128, 128).all()
        seen += data.inside(pixels - (16, 0), 96, 128).all()
        assert data.inside(pixels, 128, 128).sum() >= 4
    assert 140 < whole < 180 and whole - 35 < seen <= whole


def test_parts_of_the_body():
    """The parts are made of the keypoints that their names tell."""
    parts = {name: {joint for joint in SMPL45 if re.search(pattern, joint)}
             for name, (pattern, _) in data.BODY_PARTS.items()}
    assert {"nose", "left_knee"} < parts["above the knees"]
    assert not {"left_ankle", "right_heel", "left_big_toe", "left_foot"} & parts["above the knees"]
    assert parts["above the hips"] == parts["above the knees"] - {"left_knee", "right_knee"}
    assert "left_heel" not in parts["head and shoulders"] and "left_ear" in parts[
        "head and shoulders"]
    assert sum(chance for _, chance in data.BODY_PARTS.values()) == pytest.approx(1)


@given(seeds)
def test_outfits_differ_between_parts(seed):
    """Colours are colours; cloth is at most centimetres thick; a shirt is not all there is."""
    outfit = data.sample_outfit(np.random.default_rng(seed))
    assert outfit.albedo.shape == (6890, 3) and outfit.thickness.shape == (6890,)
    assert (outfit.albedo >= 0).all() and outfit.albedo.max() < 1.5
    assert outfit.thickness.min() >= 0 and outfit.thickness.max() <= 0.02
    hand, chest = BODY.surface_vertex_ids[13], int(np.abs(
        data.body_surface().template - (0, 0.1, 0.12)).sum(1).argmin())
    assert outfit.thickness[hand] == 0 and (outfit.albedo[hand] != outfit.albedo[chest]).any()


# -------------------------------------------------------------------- augmentation of bodies


def spotted_sample(x, y, size=96):
    """A sample whose picture is one bright spot where all its keypoints are."""
    rows, columns = np.indices((size, size)) + 0.5
    spot = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    K = data.body_camera(size)
    point = np.array([(x - size / 2) / K[0, 0], (y - size / 2) / K[0, 0], 1]) * 30
    return {"image": np.repeat(spot[..., None], 3, 2).round().astype(np.uint8), "K": K,
            "pose": np.tile(np.eye(3), (24, 1, 1)), "betas": np.zeros(10),
            "transl": point - (0.01, -0.2, 0.03), "keypoints_3d": np.tile(point, (45, 1)),
            "keypoints_2d": np.tile([x, y], (45, 1)).astype(np.float64)}


@given(seeds, st.floats(38, 58), st.floats(38, 58))
def test_pictures_move_with_their_labels(seed, x, y):
    """Whatever a recipe draws, the spot is where the moved keypoints are, and where K puts them."""
    recipe = data.Augmentation(center_jitter=0.03, scale=(0.8, 1.2), rotation=40, flip=0.5)
    moved = data.augment_body(spotted_sample(x, y), recipe, np.random.default_rng(seed))
    weight = moved["image"][0].astype(np.float64)
    rows, columns = np.indices(weight.shape) + 0.5
    centroid = [(weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()]
    np.testing.assert_allclose(centroid, moved["keypoints_2d"][0], atol=0.1)
    projected = moved["keypoints_3d"] @ moved["K"].T
    np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], moved["keypoints_2d"],
                               atol=1e-6)


@given(seeds, st.floats(-3, 3), st.booleans())
def test_moving_a_body_can_be_undone(seed, roll, mirror):
    """Turned and mirrored back, every label is what it was."""
    record = bodies().render(seed % 1000)
    sample = {name: record[name].astype(np.float64) for name in record.dtype.names}
    there = data.crop_homography((24, 24), 48, 48, roll=roll, mirror=mirror)
    moved = data.move_body(sample, there, roll, mirror)
    back = roll if mirror else -roll
    again = data.move_body(moved, data.crop_homography((24, 24), 48, 48, roll=back, mirror=mirror),
                           back, mirror)
    for name in ("pose", "keypoints_3d", "keypoints_2d", "K", "transl"):
        np.testing.assert_allclose(again[name], sample[name], atol=2e-6, err_msg=name)
    assert np.isclose(np.linalg.det(moved["pose"]), 1, atol=1e-5).all()
    assert moved["K"][0, 0] > 0 and moved["K"][1, 1] > 0


def test_mirrored_bodies_exchange_left_and_right():
    """After a mirror the left hand's keypoint is on what was the right hand's, mirrored."""
    record = bodies().render(3)
    sample = {name: record[name] for name in record.dtype.names}
    homography = data.crop_homography((24, 24), 48, 48, mirror=True)
    moved = data.move_body(sample, homography, 0.0, True)
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
    recipe = data.Augmentation(extreme=1.0)
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


# -------------------------------------------------------------------------------- protocols


def meshes(seed, batch=3):
    rng = np.random.default_rng(seed)
    return {"joints": rng.normal(size=(batch, 24, 3)), "vertices": rng.normal(size=(batch, 50, 3))}


@given(seeds)
def test_rendered_bodies_are_judged_from_the_pelvis(seed):
    """A shift costs nothing; a similarity transform nothing after alignment; a mirror does cost."""
    target, rng = meshes(seed), np.random.default_rng(seed)
    shifted = {name: points + (0.3, -1, 5) for name, points in target.items()}
    report = metrics.evaluate("rendered_bodies", shifted, target)
    assert list(report) == ["PA-MPJPE", "PA-MVE", "MPJPE", "MVE"]
    assert max(report.values()) < 1e-6
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    moved = {name: 1.7 * points @ turn for name, points in target.items()}
    report = metrics.evaluate("rendered_bodies", moved, target)
    assert report["PA-MPJPE"] < 1e-6 and report["PA-MVE"] < 1e-6 and report["MPJPE"] > 1
    mirrored = {name: points * (-1, 1, 1) for name, points in target.items()}
    assert metrics.evaluate("rendered_bodies", mirrored, target)["PA-MPJPE"] > 1


def test_rendered_bodies_against_a_loop():
    """Joints and vertices minus the joints' pelvis, mean distances in mm."""
    prediction, target = meshes(0), meshes(1)
    report = metrics.evaluate("rendered_bodies", prediction, target)
    for name, key in (("joints", "MPJPE"), ("vertices", "MVE")):
        errors = [np.linalg.norm((a - p[0]) - (b - t[0]), axis=1).mean() for a, b, p, t in zip(
            prediction[name], target[name], prediction["joints"], target["joints"], strict=True)]
        assert report[key] == pytest.approx(1000 * np.mean(errors))


def test_reconstructions_are_judged_as_given():
    """No root, no alignment: a centimetre off is 10 mm."""
    target = meshes(2)
    moved = {name: points + (0.01, 0, 0) for name, points in target.items()}
    report = metrics.evaluate("pose_reconstruction", moved, target)
    assert report == pytest.approx({"MPJPE": 10, "MVE": 10})
    with pytest.raises(ValueError, match=r"joints of smpl24 are \(B, 24, 3\)"):
        metrics.evaluate("pose_reconstruction", {"joints": np.zeros((1, 21, 3)),
                                                 "vertices": np.zeros((1, 9, 3))}, target)


# ------------------------------------------------------------------------------ command line


@pytest.mark.parametrize("arguments", [["bodies", "--size", "32", "--augmentation", "official_hmr"],
                                       ["motion"], ["motion", "--split", "test"]])
def test_command_line_draws(tmp_path, capsys, arguments):
    """It counts the samples, describes one and draws some, whatever the kind."""
    out = tmp_path / "samples.png"
    data.main([*arguments, "--draw", "5", "--out", str(out)])
    picture = data.read_image(out)
    assert picture.shape[0] == picture.shape[1] // 2 and picture.std() > 5
    assert re.search(r"samples\n  index .*pose +\(24, 3, 3\)", capsys.readouterr().out, re.DOTALL)


def test_command_line_reads_recordings(tmp_path, capsys):
    write_amass(tmp_path)
    data.main(["amass", "--data-root", str(tmp_path), "--split", "test"])
    assert "amass, split test: 3 samples" in capsys.readouterr().out


@pytest.mark.parametrize("arguments,message", [
    (["amass"], "amass needs --data-root"), (["moyo", "--data-root", "nowhere"], "expected MOYO"),
    (["motion", "--split", "val"], "unknown split 'val'")])
def test_command_line_explains(arguments, message):
    with pytest.raises(SystemExit, match=message):
        data.main(arguments)


def test_lean_keeps_upright_bodies():
    """No pelvis leans further than asked, all frames lean less than 180, and both splits differ."""
    for split in ("train", "test"):
        everything, upright = data.motion_frames(split), data.motion_frames(split, 45.0)
        assert 0 < len(upright) < len(everything)
        roots = bm.axis_angle_to_matrix(torch.from_numpy(upright[:, 0]))
        assert roots[:, 1, 1].min() >= np.cos(np.deg2rad(45)) - 1e-6
    upright = data.RenderedBodies("test", 64, length=4, lean=45.0)
    assert all(sample["pose"][0, 1, 1] < 0 for sample in upright)  # y is down there
    with pytest.raises(ValueError, match="lean"):
        data.RenderedBodies("test", 64, lean=10.0)
