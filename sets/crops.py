"""Crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image


class Crop(NamedTuple):
    """A virtual camera that looks at a box of the original picture."""

    K: np.ndarray  # (3, 3) intrinsics, principal point in the middle of the crop
    homography: np.ndarray  # (3, 3) original pixels -> crop pixels
    rotation: np.ndarray  # (3, 3) X_crop = rotation @ X_original; determinant -1 if mirrored


def keypoint_box(keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tight box of keypoints (N, 2): its centre (2,) and its width and height (2,)."""
    low, high = keypoints.min(0), keypoints.max(0)
    return (low + high) / 2, high - low


def crop_homography(center: Sequence[float], side: float, size: int, *, roll: float = 0.0,
                    mirror: bool = False) -> np.ndarray:
    """Affine crop: (3, 3) map of the square box (pixels) onto a size x size picture.

    `roll` turns the content clockwise by that many radians; `mirror` then swaps left and right.
    """
    if side <= 0 or size <= 0:
        raise ValueError(f"a crop needs a positive box side and size, got {side} and {size}")
    to_origin = np.array([[1, 0, -center[0]], [0, 1, -center[1]], [0, 0, 1]], np.float64)
    scale = size / side
    to_crop = np.array([[scale, 0, size / 2], [0, scale, size / 2], [0, 0, 1]], np.float64)
    return to_crop @ roll_and_mirror(roll, mirror) @ to_origin


def perspective_crop(K: np.ndarray, center: Sequence[float], box: Sequence[float], size: int, *,
                     roll: float = 0.0, mirror: bool = False) -> Crop:
    """Turn the camera until the box's centre lies on its axis; zoom until the box fills the crop.

    K (3, 3), centre (2,) and box (width, height) in pixels of the original; the longer of the two
    fills `size`. Exact for 3-D points, unlike an affine crop, whose camera would be skewed. The
    turn is the shortest one, written without a division by its angle: none is fine too.
    """
    if min(box) <= 0 or size <= 0:
        raise ValueError(f"a crop needs a positive box and size, got {tuple(box)} and {size}")
    K = np.asarray(K, np.float64)
    inverse = np.linalg.inv(K)
    turn = rotation_to_axis(inverse @ np.array([center[0], center[1], 1.0]))
    (x, y), (half_width, half_height) = center, (box[0] / 2, box[1] / 2)
    edges = np.array([[x - half_width, y, 1], [x + half_width, y, 1],
                      [x, y - half_height, 1], [x, y + half_height, 1]]) @ (turn @ inverse).T
    focal = size / 2 / np.abs(edges[:, :2] / edges[:, 2:]).max()
    crop_K = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    rotation = roll_and_mirror(roll, mirror) @ turn
    return Crop(crop_K, crop_K @ rotation @ inverse, rotation)


def rotation_to_axis(ray: np.ndarray) -> np.ndarray:
    """(3, 3) shortest rotation that takes a ray (3,) in front of the camera to the +z axis."""
    x, y, z = ray / np.linalg.norm(ray)
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])  # of ray x axis = (y, -x, 0)
    return np.eye(3) + cross + cross @ cross / (1 + z)


def roll_and_mirror(roll: float, mirror: bool) -> np.ndarray:
    cos, sin = np.cos(roll), np.sin(roll)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return np.diag([-1.0, 1.0, 1.0]) @ turn if mirror else turn


def transform_points(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a (3, 3) homography to pixels (..., 2)."""
    mapped = points @ homography[:, :2].T + homography[:, 2]
    return mapped[..., :2] / mapped[..., 2:]


def warp(image: np.ndarray, homography: np.ndarray, size: int) -> np.ndarray:
    """Resample (H, W, 3) uint8 to (size, size, 3), bilinear, black outside.

    Strong reductions first average whole blocks of pixels, which keeps them free of aliasing.
    """
    inverse = np.linalg.inv(homography)
    middle = size / 2 + np.array([[0, 0], [1, 0], [0, 1]])
    origin, right, down = transform_points(inverse, middle)
    shrink = int(min(np.linalg.norm(right - origin), np.linalg.norm(down - origin)))
    picture = Image.fromarray(image)
    if shrink >= 2:
        picture = picture.reduce(shrink)
        inverse = np.diag([1 / shrink, 1 / shrink, 1]) @ inverse
    coefficients = (inverse / inverse[2, 2]).ravel()[:8].tolist()
    return np.array(picture.transform((size, size), Image.Transform.PERSPECTIVE, coefficients,
                                      Image.Resampling.BILINEAR))


def inside(keypoints: np.ndarray, width: int, height: int) -> np.ndarray:
    """1.0 for each of (N, 2) pixels that lies in the picture, as float32 (N,)."""
    return ((keypoints >= 0) & (keypoints <= (width, height))).all(-1).astype(np.float32)
