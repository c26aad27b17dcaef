"""Random poses of bodies from the free motion clips."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import torch
from torch import Tensor

import bodymodels
from sets.samples import KeyedDataset

SMPL_JOINTS, SMPL_KEYPOINTS = bodymodels.JOINT_SETS["smpl24"], bodymodels.JOINT_SETS["smpl45"]
TEST_CLIPS = ("dance_b", "getup_faceup", "kick", "run", "turn_right1")  # of motion.npz
NEAR_DUPLICATE = 0.1  # rad: keep a frame only if some joint differs by this from every kept one
Y_UP_TO_CAMERA = np.diag([1.0, -1, -1])  # a body facing +z then faces the camera
LIMBS = tuple(
    [index for index, name in enumerate(SMPL_JOINTS) if re.search(pattern, name)]
    for pattern in ("hip|knee|ankle|foot", "left_(collar|shoulder|elbow|wrist|hand)",
                    "right_(collar|shoulder|elbow|wrist|hand)"))
# Standard deviations of joint noise in radians. Wrists, collars and toes never move in the clips.
JOINT_NOISE = {"wrist": 0.25, "collar": 0.08, "neck": 0.12, "head": 0.12, "foot": 0.1}
OTHER_NOISE = 0.03


@cache
def motion_frames(split: str, lean: float = 180.0) -> np.ndarray:
    """Return the poses (N, 24, 3) of a split's clips, axis-angle, y up, then their mirror images.

    Whole clips of `assets/motion.npz` belong to one split. Of frames that hardly differ, the first
    is kept. All are turned about the vertical to face +z as far as possible. lean: largest angle in
    degrees between the pelvis and upright; 180 keeps somersaults too.
    """
    with np.load(bodymodels.ASSETS / "motion.npz") as arrays:
        clips = arrays["clip_names"][arrays["clip"]]
        poses = torch.from_numpy(arrays["poses"].astype(np.float64)).unflatten(1, (24, 3))
    poses = poses[torch.from_numpy(np.isin(clips, TEST_CLIPS) == (split == "test"))]
    rotations = bodymodels.axis_angle_to_matrix(poses)
    rotations[:, 0] = face_forward(rotations[:, 0])
    kept: list[int] = []
    for index, frame in enumerate(rotations):
        trace = (rotations[kept] * frame).sum((2, 3))  # of the relative rotation
        if (((trace.clamp(-1, 3) - 1) / 2).acos().amax(1) >= NEAR_DUPLICATE).all():
            kept.append(index)
    upright = rotations[kept, 0, 1, 1] > np.cos(np.deg2rad(lean)) - 1e-6  # cosine of its lean
    frames = bodymodels.matrix_to_axis_angle(rotations[kept][upright])
    return torch.cat([frames, bodymodels.mirror_pose(frames, SMPL_JOINTS)]).numpy()


def face_forward(roots: Tensor) -> Tensor:
    """Remove the rotation about y from root orientations (N, 3, 3), y up."""
    w, _, y, _ = bodymodels.matrix_to_quaternion(roots).unbind(1)
    turn = torch.zeros(len(roots), 3, dtype=roots.dtype)
    turn[:, 1] = -2 * torch.atan2(y, w)
    return bodymodels.axis_angle_to_matrix(turn) @ roots


def sample_body_pose(rng: np.random.Generator, split: str, views: float = 180.0,
                     lean: float = 180.0) -> np.ndarray:
    """Draw a plausible pose: SMPL rotations (24, 3, 3), the root's in an upright camera's frame.

    Half are frames of the split's clips; the other half take legs, left arm and right arm from
    other frames. Noise moves all joints but the root, most where the clips are still. The body
    faces the camera and is then turned about the vertical by up to +- `views` degrees. lean: see
    `motion_frames`.
    """
    frames = motion_frames(split, lean)
    pose = frames[rng.integers(len(frames))].copy()
    if rng.random() < 0.5:
        for limb in LIMBS:
            pose[limb] = frames[rng.integers(len(frames))][limb]
    pose[1:] += rng.normal(0, 1, (23, 3)) * _joint_noise()[1:]
    heading = np.deg2rad(rng.uniform(-views, views))
    rotations = bodymodels.axis_angle_to_matrix(
        torch.from_numpy(np.concatenate([pose, [[0, heading, 0]]]))).numpy()
    rotations[0] = Y_UP_TO_CAMERA @ rotations[24] @ rotations[0]
    return rotations[:24]


@cache
def _joint_noise() -> np.ndarray:
    kinds = (name.removeprefix("left_").removeprefix("right_") for name in SMPL_JOINTS)
    return np.array([[JOINT_NOISE.get(kind, OTHER_NOISE)] for kind in kinds])


def sample_betas(rng: np.random.Generator) -> np.ndarray:
    """Draw a shape (10,) of the free body models."""
    return np.clip(rng.standard_normal(10), -2.5, 2.5)


class MotionPoses(KeyedDataset):
    """Body poses without pictures, from the free motion clips, to train a pose tokenizer.

    A sample is {"pose": (24, 3, 3) rotations, "betas": (10,), "index": ()}; every epoch has other
    poses. The root is in the frame of an upright camera; the training may tilt it. split: "train"
    or "test", from different clips. views: see `sample_body_pose`.
    """

    LENGTHS = {"train": 40_000, "test": 2_000}

    def __init__(self, split: str = "train", length: int | None = None, seed: int = 0, *,
                 views: float = 180.0) -> None:
        super().__init__(split, tuple(self.LENGTHS), seed)
        self.length = self.LENGTHS[split] if length is None else length
        if self.length < 1 or not 0 <= views <= 180:
            raise ValueError("expected a positive length and views in 0..180 degrees, "
                             f"got {self.length} and {views}")
        self.views = float(views)

    def __len__(self) -> int:
        return self.length

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"pose": sample_body_pose(rng, self.split, self.views), "betas": sample_betas(rng)}
