"""Crop pictures: affine and perspective crops, homographies, resampling.

A W x H picture spans [0, W] x [0, H] and the centre of its first pixel is (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image


class Crop(NamedTuple):
    """A virtual camera that looks at a box of the original picture."""

    K: np.ndarray  # (3, 3) intrinsics of the crop, in its pixels
    homography: np.ndarray  # (3, 3) original pixels -> crop pixels
    rotation: np.ndarray  # (3, 3) X_crop = rotation @ X_original; determinant -1 if mirrored


def keypoint_box(keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre (2,) and the width and height (2,) of the tight box of points (N, 2)."""
    low, high = keypoints.min(0), keypoints.max(0)
    return (low + high) / 2, high - low


def inside(keypoints: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return 1.0 for each of the pixels (..., 2) that lies in the picture, as float32 (...)."""
    return ((keypoints >= 0) & (keypoints <= (width, height))).all(-1).astype(np.float32)


def crop_homography(center: Sequence[float], side: float, size: int, *, roll: float = 0.0,
                    mirror: bool = False) -> np.ndarray:
    """Return the affine map (3, 3) of a square box (pixels) onto a size x size picture.

    `roll` turns the content clockwise, in radians; `mirror` then swaps left and right.
    """
    if side <= 0 or size <= 0:
        raise ValueError(f"a crop needs a positive box side and size, got {side} and {size}")
    to_origin = np.array([[1, 0, -center[0]], [0, 1, -center[1]], [0, 0, 1]], np.float64)
    scale = size / side
    to_crop = np.array([[scale, 0, size / 2], [0, scale, size / 2], [0, 0, 1]], np.float64)
    return to_crop @ roll_and_mirror(roll, mirror) @ to_origin


def perspective_crop(K: np.ndarray, center: Sequence[float], box: Sequence[float], size: int, *,
                     roll: float = 0.0, mirror: bool = False) -> Crop:
    """Rotate the camera until the box's centre lies on its axis, then zoom until the box fits.

    K (3, 3), centre (2,) and box (width, height) are in pixels of the original picture; the longer
    side of the box fills `size`. The crop is exact for 3D points, which an affine crop is not. The
    rotation is the shortest one; its formula also holds for a box in the middle of the picture.
    """
    K, turn = _turn_to_box(K, center, box, size)
    inverse = np.linalg.inv(K)
    (x, y), (half_width, half_height) = center, (box[0] / 2, box[1] / 2)
    edges = np.array([[x - half_width, y, 1], [x + half_width, y, 1],
                      [x, y - half_height, 1], [x, y + half_height, 1]]) @ (turn @ inverse).T
    focal = size / 2 / np.abs(edges[:, :2] / edges[:, 2:]).max()
    crop_K = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    rotation = roll_and_mirror(roll, mirror) @ turn
    return Crop(crop_K, crop_K @ rotation @ inverse, rotation)


def release_crop(K: np.ndarray, center: Sequence[float], box: Sequence[float], size: int, *,
                 roll: float = 0.0, mirror: bool = False) -> Crop:
    """Crop as SimpleHand's released code does (its cal_perspective_mat).

    It differs from `perspective_crop` in three ways. The zoom fits the bounding box of the four
    rotated corners, and fx and fy keep their ratio. All coordinates have pixel centres at integers.
    A mirrored pixel moves from x to size - 1 - x.
    """
    K, turn = _turn_to_box(K, center, box, size)
    inverse = np.linalg.inv(K)
    corners = np.array(center) + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 * box
    rays = np.column_stack([corners, np.ones(4)]) @ (turn @ inverse).T
    extent = np.ptp(rays[:, :2] / rays[:, 2:] * (K[0, 0], K[1, 1]), axis=0)
    zoom = size / extent.max()
    crop_K = np.array([[zoom * K[0, 0], 0, size / 2], [0, zoom * K[1, 1], size / 2], [0, 0, 1]])
    if mirror:
        crop_K[0, 2] = size / 2 - 1
    rotation = roll_and_mirror(roll, mirror) @ turn
    return Crop(crop_K, crop_K @ rotation @ inverse, rotation)


def _turn_to_box(K: np.ndarray, center: Sequence[float], box: Sequence[float], size: int
                 ) -> tuple[np.ndarray, np.ndarray]:
    """Return K as float64, and the rotation (3, 3) that brings the box's centre onto the axis."""
    if min(box) <= 0 or size <= 0:
        raise ValueError(f"a crop needs a positive box and size, got {tuple(box)} and {size}")
    K = np.asarray(K, np.float64)
    return K, rotation_to_axis(np.linalg.inv(K) @ np.array([center[0], center[1], 1.0]))


def rotation_to_axis(ray: np.ndarray) -> np.ndarray:
    """Return the shortest rotation (3, 3) from a ray (3,) in front of the camera to the +z axis."""
    x, y, z = ray / np.linalg.norm(ray)
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])  # matrix of ray x axis = (y, -x, 0)
    return np.eye(3) + cross + cross @ cross / (1 + z)


def roll_and_mirror(roll: float, mirror: bool) -> np.ndarray:
    """Return the rotation (3, 3) about the camera's axis, followed by a mirroring of x if asked."""
    cos, sin = np.cos(roll), np.sin(roll)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return np.diag([-1.0, 1.0, 1.0]) @ turn if mirror else turn


def transform_points(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a homography (3, 3) to pixels (..., 2)."""
    mapped = points @ homography[:, :2].T + homography[:, 2]
    return mapped[..., :2] / mapped[..., 2:]


def warp(image: np.ndarray, image_to_crop: np.ndarray, size: int) -> np.ndarray:
    """Resample (H, W, 3) uint8 to (size, size, 3), bilinear, black outside the picture.

    image_to_crop is a homography (3, 3). Before a strong reduction whole blocks of pixels are
    averaged, which avoids aliasing.
    """
    inverse = np.linalg.inv(image_to_crop)
    middle = size / 2 + np.array([[0, 0], [1, 0], [0, 1]])
    origin, right, down = transform_points(inverse, middle)
    shrink = int(min(np.linalg.norm(right - origin), np.linalg.norm(down - origin)))
    picture = Image.fromarray(image)
    if shrink >= 2:
        picture = picture.reduce(shrink)
        inverse = np.diag([1 / shrink, 1 / shrink, 1]) @ inverse
    return _resample(picture, inverse, size)


def release_warp(image: np.ndarray, image_to_crop: np.ndarray, size: int) -> np.ndarray:
    """Resample as SimpleHand's release does, with cv2.warpPerspective.

    Pixel centres are at integers, nothing is averaged, and the border fades to black.
    """
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    to_centers = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    to_padded = np.array([[1, 0, 1.5], [0, 1, 1.5], [0, 0, 1]])
    inverse = to_padded @ np.linalg.inv(image_to_crop) @ to_centers
    channels = [_resample(Image.fromarray(padded[..., channel].astype(np.float32)), inverse, size)
                for channel in range(3)]  # as floats: Pillow truncates bytes, OpenCV rounds
    return np.stack(channels, -1).round().astype(np.uint8)


def _resample(picture: Image.Image, crop_to_picture: np.ndarray, size: int) -> np.ndarray:
    coefficients = (crop_to_picture / crop_to_picture[2, 2]).ravel()[:8].tolist()
    return np.array(picture.transform((size, size), Image.Transform.PERSPECTIVE, coefficients,
                                      Image.Resampling.BILINEAR))
