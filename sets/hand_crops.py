"""Hand crops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sets.augmentation import Augmentation
from sets.crops import inside, keypoint_box, perspective_crop, transform_points, warp
from sets.samples import ImageDataset

NUM_JOINTS, NUM_VERTICES = 21, 778  # hand21, MANO topology


@dataclass
class Annotated:
    """A picture and what is known about its hand, in the original camera."""

    image: np.ndarray  # (H, W, 3) uint8
    K: np.ndarray  # (3, 3)
    joints: np.ndarray  # (21, 3) metres
    vertices: np.ndarray  # (778, 3) metres
    keypoints_2d: np.ndarray  # (21, 2) pixels
    keypoints_valid: np.ndarray  # (21,)
    mesh_valid: float
    side: int = 1  # 1 right, 0 left


def crop_sample(source: Annotated, center: np.ndarray, box: np.ndarray, size: int, *,
                roll: float = 0.0, mirror: bool = False) -> dict[str, np.ndarray]:
    """The perspective crop of a picture and its annotation, as numpy arrays of a sample."""
    crop = perspective_crop(source.K, center, box, size, roll=roll, mirror=mirror)
    keypoints = transform_points(crop.homography, source.keypoints_2d)
    return {
        "image": warp(source.image, crop.homography, size).transpose(2, 0, 1),
        "K": crop.K,
        "keypoints_2d": keypoints,
        "keypoints_valid": source.keypoints_valid * inside(keypoints, size, size),
        "joints": source.joints @ crop.rotation.T,
        "vertices": source.vertices @ crop.rotation.T,
        "mesh_valid": source.mesh_valid,
        "crop": crop.homography,
        "camera_rotation": crop.rotation,
        "side": np.int64(source.side),
    }


def augmented_crop(source: Annotated, center: np.ndarray, box: np.ndarray, size: int,
                   recipe: Augmentation, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Jitter, scale, turn and mirror the box as the recipe says, then crop. Left hands are mirrored
    once more: they come out right, and `camera_rotation` has determinant -1 unless flipped."""
    height, width = source.image.shape[:2]
    shift, scale, roll = recipe.draw_motion(rng)
    center = np.clip(center + shift * box[0], 0, (width, height))
    mirror = bool(rng.random() < recipe.flip) != (source.side == 0)
    return crop_sample(source, center, box * scale, size, roll=roll, mirror=mirror)


TIGHT_BOX = Augmentation(scale=(1.25, 1.25))  # how the papers crop a hand to evaluate it


def hand_sample(source: Annotated, size: int, recipe: Augmentation | None,
                rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The crop of a hand around its keypoints, or the whole picture if none is known."""
    height, width = source.image.shape[:2]
    if source.keypoints_valid.any():
        center, box = keypoint_box(source.keypoints_2d[source.keypoints_valid > 0])
        return augmented_crop(source, center, np.maximum(box, 1.0), size, recipe or TIGHT_BOX, rng)
    whole = np.array([width, height], np.float64)
    sample = augmented_crop(source, whole / 2, whole, size, recipe or Augmentation(), rng)
    return sample | {"keypoints_2d": source.keypoints_2d}  # unknown stays zero


class HandDataset(ImageDataset):
    """A data set of hands, right ones after any mirroring."""

    def finish(self, sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        super().finish(sample, rng)
        sample.setdefault("side", np.int64(1))
        if self.augmentation is not None and not sample["keypoints_valid"][[0, 9]].any():
            sample["mesh_valid"] = 0.0  # official: no 3-D loss, wrist and knuckle are out
