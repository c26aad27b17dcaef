"""Annotation records of official data sets, and the geometry that their readers share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

import bodymodels

GENDERS = ("neutral", "male", "female")
MAX_PIXELS = 10**6  # of a box: larger ones are damage, and no crop can show them


def record_dtype(joints: int, pose: int, betas: int) -> np.dtype:
    """Return the dtype of one person in one picture; `official.Pictures` explains the fields."""
    return np.dtype([
        ("image", "S160"), ("part", np.int64, 2), ("turns", np.int8), ("image_size", np.int32, 2),
        ("K", np.float32, (3, 3)), ("center", np.float32, 2), ("box", np.float32, 2),
        ("keypoints_2d", np.float32, (joints, 3)), ("keypoints_3d", np.float32, (joints, 4)),
        ("pose", np.float32, (pose, 3)), ("betas", np.float32, betas), ("transl", np.float32, 3),
        ("world_to_camera", np.float32, (3, 4)), ("has_pose", np.float32),
        ("has_hands", np.float32), ("has_betas", np.float32), ("has_transl", np.float32),
        ("gender", np.int8), ("side", np.int8), ("person", np.int64), ("frame", np.int32),
        ("sequence", "S96"), ("mesh", "S96"), ("mask", np.int64, 3)])


def to_records(columns: dict, dtype: np.dtype) -> np.ndarray:
    """Convert columns to records: one person (columns["image"] is a text) or many (it is a list).

    A column in the shape of one record's field holds for all records. Missing columns become 0 or
    "", side becomes -1 and world_to_camera the identity. Raises ValueError with the name of a
    column of the wrong shape or length, with numbers that are not finite, or with impossible boxes.
    """
    count = 1 if isinstance(columns["image"], str) else len(columns["image"])
    records = np.zeros(count, dtype)
    records["side"], records["world_to_camera"] = -1, np.eye(3, 4)
    for name, value in columns.items():
        array, shape = np.asarray(value), dtype[name].shape
        if array.shape not in (shape, (count, *shape)):
            raise ValueError(f"{name} has shape {array.shape}, expected {(count, *shape)}")
        if array.dtype.kind in "SU":
            array = np.char.encode(array) if array.dtype.kind == "U" else array
            if array.dtype.itemsize > dtype[name].itemsize:
                raise ValueError(f"{name} is longer than {dtype[name].itemsize} bytes")
        elif not np.isfinite(array.astype(np.float64)).all():
            raise ValueError(f"{name} has numbers that are not finite")
        elif name in ("center", "box") and np.abs(array).max(initial=0) > MAX_PIXELS:
            raise ValueError(f"{name} has numbers beyond {MAX_PIXELS:,} pixels")
        records[name] = array
    return records


# ---------------------------------------------------------------------------------- geometry


def rigid(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Join rotations (..., 3, 3) and translations (..., 3) to (..., 3, 4)."""
    return np.concatenate([R, np.broadcast_to(t, R.shape[:-1])[..., None]], -1)


def rotate_root(R: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Apply R (3, 3) or (N, 3, 3) to root orientations (N, 3), all as axis-angles (N, 3)."""
    rotations = bodymodels.axis_angle_to_matrix(torch.as_tensor(root, dtype=torch.float64))
    product = torch.as_tensor(R, dtype=torch.float64) @ rotations
    return bodymodels.matrix_to_axis_angle(product).numpy()


def moved_translation(transl: np.ndarray, world_to_camera: np.ndarray, rest_root: np.ndarray
                      ) -> np.ndarray:
    """Return a body's translation (3,) in the camera's frame, for a root rotated into that frame.

    A body turns about its resting root joint j (rest_root, metres), not about the origin: R T + t
    would be wrong by |R j - j|, about 0.2 m for SMPL. j depends on shape and gender.
    """
    R, t = world_to_camera[:, :3], world_to_camera[:, 3]
    return R @ (rest_root + transl) + t - rest_root


def to_pixels(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Project points (..., J, 3) in front of cameras K (..., 3, 3) to pixels (..., J, 2)."""
    projected = points @ K.swapaxes(-1, -2)
    return projected[..., :2] / projected[..., 2:]


def intrinsics(focal: Sequence[float], center: Sequence[float]) -> np.ndarray:
    """Return K (3, 3) from focal lengths (2,) and principal point (2,)."""
    return np.array([[focal[0], 0, center[0]], [0, focal[1], center[1]], [0, 0, 1]])


# ------------------------------------------------------------------------- keypoints and boxes


def with_confidence(points: np.ndarray, confidence: np.ndarray | float = 1.0) -> np.ndarray:
    """Append confidences (..., J) to points (..., J, D); points of confidence 0 become 0."""
    confidence = np.broadcast_to(confidence, points.shape[:-1])[..., None]
    return np.concatenate([np.where(confidence > 0, points, 0.0), confidence], -1)


def boxes_around(keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centre and size (N, 2) of the tight boxes of known keypoints (N, J, 3); 0 if none."""
    known = keypoints[..., 2:] > 0
    low = np.where(known, keypoints[..., :2], np.inf).min(-2)
    high = np.where(known, keypoints[..., :2], -np.inf).max(-2)
    some = known.any(-2)
    return np.where(some, (low + high) / 2, 0.0), np.where(some, high - low, 0.0)


def xywh_box(box: Sequence[float]) -> dict[str, np.ndarray]:
    """Return centre and size of boxes given as left, top, width and height (..., 4)."""
    box = np.asarray(box, np.float64)
    return {"center": box[..., :2] + box[..., 2:4] / 2, "box": box[..., 2:4]}


def corner_box(box: np.ndarray) -> dict[str, np.ndarray]:
    """Return centre and size of boxes given as left, top, right and bottom (..., 4)."""
    return {"center": (box[..., :2] + box[..., 2:4]) / 2, "box": box[..., 2:4] - box[..., :2]}


@cache
def joint_places(source: str, target: str) -> np.ndarray:
    """Return where each joint of `target` is in `source`: first and second choice (J, 2), or -1.

    In "hmr44", hips and shoulders of OpenPose correspond to SMPL's, those of LSP to the others'.
    SMPL's neck and head are other points than the joints of these names elsewhere.
    """
    to_model, from_model = target.startswith("smpl"), source.startswith("smpl")
    place = {name: index for index, name in enumerate(bodymodels.JOINT_SETS[source])}
    rows = []
    for name in bodymodels.JOINT_SETS[target]:
        plain = -1 if name in ("neck", "head") and to_model != from_model else place.get(name, -1)
        openpose = place.get(f"{name}_openpose", -1)
        rows.append((openpose, plain) if to_model else (plain, openpose))
    return np.array(rows)


def relabelled(keypoints: np.ndarray, source: str, target: str) -> np.ndarray:
    """Reorder keypoints (..., J, C), confidence last, to another joint set; unknown ones are 0."""
    padded = np.concatenate([keypoints, np.zeros_like(keypoints[..., :1, :])], -2)
    first, second = (padded[..., places, :] for places in joint_places(source, target).T)
    return np.where(first[..., -1:] > 0, first, second)
