"""Crops of bodies, and how their labels move along."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch

import bodymodels
from sets.augmentation import Augmentation
from sets.body_poses import SMPL_KEYPOINTS
from sets.crops import crop_homography, keypoint_box, roll_and_mirror, transform_points

BODY_FOCAL = 5000 / 256  # focal length in crop sides: 5000 pixels for a crop of 256 (HMR2.0)
SEEN_WIDTH = 0.75  # share of the crop: the encoder cuts an eighth off either side (HMR2.0)
BODY_PARTS = {  # what the box of a truncated body contains: keypoint names, probability
    "above the knees": (r"^(?!.*(ankle|foot|toe|heel))", 0.3),
    "above the hips": (r"^(?!.*(knee|ankle|foot|toe|heel))", 0.3),
    "head and shoulders": (r"head|neck|shoulder|nose|eye|ear", 0.1),
    "torso": (r"pelvis|hip|spine|shoulder|neck", 0.1),
    "legs": (r"hip|knee|ankle|foot|toe|heel", 0.08),
    "left side": (r"left|spine|neck", 0.06),
    "right side": (r"right|spine|neck", 0.06),
}


def draw_body_part(rng: np.random.Generator, names: Sequence[str] = SMPL_KEYPOINTS) -> list[int]:
    """Draw one of BODY_PARTS; return its keypoints as indices of `names`."""
    patterns, chances = zip(*BODY_PARTS.values(), strict=True)
    pattern = patterns[rng.choice(len(patterns), p=chances)]
    return [index for index, name in enumerate(names) if re.search(pattern, name)]


def body_box(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Return centre (2,) and side of the square crop in which the encoder sees points (N, 2)."""
    center, (width, height) = keypoint_box(points)
    return center, max(height, width / SEEN_WIDTH)


def body_camera(size: int) -> np.ndarray:
    """Return K (3, 3) of every crop: a long, fixed focal length, as in the papers."""
    focal = BODY_FOCAL * size
    return np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])


def draw_crop(rng: np.random.Generator, recipe: Augmentation, size: int, keypoints: np.ndarray,
              names: Sequence[str], box: tuple[np.ndarray, float] | None = None,
              known: np.ndarray | None = None) -> tuple[np.ndarray, float, bool]:
    """Draw a crop of a body's picture; return its homography, roll and mirror.

    box: centre and side of the crop without augmentation; by default the whole picture, size x
    size. known: which keypoints (J,) are known, by default all; a part of the body needs three.
    """
    center, side = (np.array([size, size]) / 2, float(size)) if box is None else box
    if rng.random() < recipe.extreme:
        part = [joint for joint in draw_body_part(rng, names) if known is None or known[joint]]
        if len(part) > 2:
            least = side / 8
            center, side = body_box(keypoints[part])
            side = max(1.2 * side, least)
    shift, scale, roll = recipe.draw_motion(rng)
    mirror = bool(rng.random() < recipe.flip)
    return crop_homography(center + shift * side, side * scale, size, roll=roll,
                           mirror=mirror), roll, mirror


def move_body(sample: dict[str, np.ndarray], homography: np.ndarray, roll: float, mirror: bool,
              joints: str = "smpl24", keypoint_set: str = "smpl45") -> dict[str, np.ndarray]:
    """Return the sample's labels after a `crop_homography` with this roll and mirror.

    Rolling the camera rotates the body about the camera's axis; shift and zoom go into K. A
    mirrored body has left and right exchanged. Pose and betas then give its keypoints to within
    millimetres only, since shapes are not quite symmetric.
    """
    turn = roll_and_mirror(roll, False)
    pose, keypoints = sample["pose"].copy(), sample["keypoints_3d"] @ turn.T
    pose[0] = turn @ pose[0]
    keypoints_2d = transform_points(homography, sample["keypoints_2d"])
    rest_root = sample["keypoints_3d"][0] - sample["transl"]
    if mirror:
        order = bodymodels.mirror_indices(keypoint_set)
        flip = np.diag([-1.0, 1.0, 1.0])
        names = bodymodels.JOINT_SETS[joints]
        pose = bodymodels.mirror_pose(torch.from_numpy(pose), names).numpy()
        keypoints, keypoints_2d = keypoints[order] @ flip, keypoints_2d[order]
    camera = homography @ sample["K"] @ np.linalg.inv(roll_and_mirror(roll, mirror))
    return sample | {"pose": pose, "keypoints_3d": keypoints, "keypoints_2d": keypoints_2d,
                     "K": camera, "transl": keypoints[0] - rest_root}
