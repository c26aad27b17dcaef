"""Crops of annotated hands: what all data sets of hands share.

A sample of a hand is described in data.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sets import crops
from sets.augmentation import TIGHT_BOX, Augmentation
from sets.crops import inside, keypoint_box, transform_points
from sets.samples import ImageDataset

NUM_JOINTS, NUM_VERTICES = 21, 778  # hand21, MANO topology
KNUCKLES = [5, 9, 13, 17]  # of index, middle, ring and little finger
FILL, SIDES = 1.15, (0.7, 1.2)  # of upright_view


@dataclass
class Annotated:
    """A picture and the annotation of one hand in it, in the original camera."""

    image: np.ndarray  # (H, W, 3) uint8
    K: np.ndarray  # (3, 3) pixels
    joints: np.ndarray  # (21, 3) metres
    vertices: np.ndarray  # (778, 3) metres
    keypoints_2d: np.ndarray  # (21, 2) pixels
    keypoints_valid: np.ndarray  # (21,) 1 if known
    mesh_valid: float  # 1 if joints and vertices are known
    side: int = 1  # 1 right, 0 left


class HandDataset(ImageDataset):
    """A data set of hands. Left hands are mirrored, so that the labels are those of right hands.

    A recipe with flips mirrors pictures once more: half of them then look like left hands, with
    the topology of right ones. `side` tells the real hand.
    """

    def finish(self, sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        super().finish(sample, rng)
        sample.setdefault("side", np.int64(1))
        if self.augmentation is not None and not sample["keypoints_valid"][[0, 9]].any():
            sample["mesh_valid"] = 0.0  # SimpleHand's release: no 3D loss without joints 0 and 9


def hand_sample(source: Annotated, size: int, recipe: Augmentation | None,
                rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Crop a hand around its known keypoints, or take the whole picture if none is known.

    Without a recipe the crop is the keypoints' tight box x 1.25.
    """
    height, width = source.image.shape[:2]
    if source.keypoints_valid.any():
        center, box = keypoint_box(source.keypoints_2d[source.keypoints_valid > 0])
        return augmented_crop(source, center, np.maximum(box, 1.0), size, recipe or TIGHT_BOX, rng)
    whole = np.array([width, height], np.float64)
    sample = augmented_crop(source, whole / 2, whole, size, recipe or Augmentation(), rng)
    return sample | {"keypoints_2d": source.keypoints_2d}  # unknown keypoints stay zero


def augmented_crop(source: Annotated, center: np.ndarray, box: np.ndarray, size: int,
                   recipe: Augmentation, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Shift, scale, turn and mirror the box as the recipe draws it, then crop.

    Left hands are mirrored once more than the recipe says: `camera_rotation` of a left hand has
    determinant -1 unless the recipe flips it.
    """
    height, width = source.image.shape[:2]
    shift, scale, roll = recipe.draw_motion(rng)
    center = np.clip(center + shift * box[0], 0, (width, height))
    mirror = bool(rng.random() < recipe.flip) != (source.side == 0)
    sample = crop_sample(source, center, box * scale, size, roll=roll, mirror=mirror,
                         release=recipe.release_crop)
    if recipe.upright and rng.random() < recipe.upright:
        return upright_sample(sample, size, rng)
    return sample


def upright_sample(sample: dict[str, np.ndarray], size: int, rng: np.random.Generator
                   ) -> dict[str, np.ndarray]:
    """Crop a crop once more: the hand points up and fills it, nearly.

    A network that looks again at a hand sees such crops. It makes them from keypoints that it
    found in the first crop, so the true ones get noise here.
    """
    guess = sample["keypoints_2d"] + rng.normal(0, 0.03 * size, (NUM_JOINTS, 2))
    roll, side = (value.item() for value in upright_view(
        torch.from_numpy(guess.clip(0, size)[None] / size)))
    roll, side = roll + rng.normal(0, 0.1), size * side * rng.uniform(0.92, 1.12)
    source = Annotated(**{name: sample[name] for name in (
        "K", "joints", "vertices", "keypoints_2d", "keypoints_valid", "mesh_valid")},
        image=sample["image"].transpose(1, 2, 0))
    again = crop_sample(source, np.full(2, size / 2), np.full(2, side), size, roll=roll)
    return again | {"crop": again["crop"] @ sample["crop"], "side": sample["side"],
                    "camera_rotation": again["camera_rotation"] @ sample["camera_rotation"]}


def upright_view(keypoints: Tensor) -> tuple[Tensor, Tensor]:
    """Return roll and side (B,) of boxes around the crops' centres in which hands stand upright.

    keypoints: (B, 21, 2), 0..1. The wrist lies below the middle of four knuckles, and the farthest
    keypoint at 1 / FILL of the way to the box's border. Sides are limited to SIDES of the crop's.
    """
    x, y = (keypoints[:, KNUCKLES].mean(1) - keypoints[:, 0]).unbind(1)
    roll = -np.pi / 2 - torch.atan2(y, x)
    reach = ((keypoints - 0.5) @ rotation(roll).mT).abs().amax((1, 2))
    return roll, (2 * FILL * reach).clamp(*SIDES)


def rotation(roll: Tensor) -> Tensor:
    """Return rotations (B, 2, 2) by angles (B,) in radians, clockwise where y points down."""
    cos, sin = roll.cos(), roll.sin()
    return torch.stack((cos, -sin, sin, cos), 1).unflatten(1, (2, 2))


def crop_sample(source: Annotated, center: np.ndarray, box: np.ndarray, size: int, *,
                roll: float = 0.0, mirror: bool = False, release: bool = False
                ) -> dict[str, np.ndarray]:
    """Crop a picture and its annotation with a virtual camera.

    release: crop and resample as SimpleHand's released code does. Then K, crop and keypoints_2d
    have pixel centres at integers.
    """
    make_crop = crops.release_crop if release else crops.perspective_crop
    resample = crops.release_warp if release else crops.warp
    crop = make_crop(source.K, center, box, size, roll=roll, mirror=mirror)
    keypoints = transform_points(crop.homography, source.keypoints_2d)
    return {
        "image": resample(source.image, crop.homography, size).transpose(2, 0, 1),
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
