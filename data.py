"""Images and annotations: pictures, crops, augmentation, rendered hands and FreiHAND.

Every data set is a `torch.utils.data.Dataset`. `dataset[key]` takes key = epoch * len(dataset) +
index and is a pure function of (seed, split, epoch, index): no state, so any worker, any rank and
any resumed run sees the same sample. One sample is a dict of tensors; S is the crop's side:

    image            (3, S, S)  uint8    RGB
    K                (3, 3)     float32  intrinsics of the crop, in its pixels
    keypoints_2d     (21, 2)    float32  crop pixels
    keypoints_valid  (21,)      float32  1 inside the picture and inside the crop
    joints           (21, 3)    float32  metres, frame of the crop's camera, not root-relative
    vertices         (778, 3)   float32  the same frame
    mesh_valid       ()         float32  1 if joints and vertices may be supervised
    side             ()         int64    1 right, 0 left: the real hand, before any mirroring
    index            ()         int64    index within the split
    crop             (3, 3)     float32  homography, original pixels -> crop pixels
    camera_rotation  (3, 3)     float32  X_crop = camera_rotation @ X_original

Pixels: a W x H picture spans [0, W] x [0, H] and the centre of its first pixel is (0.5, 0.5).
Joints are in `hand21` order. Try it: `python data.py rendered --draw 8`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import bodymodels

try:
    import fcntl
except ImportError:  # not POSIX: concurrent builders then repeat each other's work
    fcntl = None

NUM_JOINTS, NUM_VERTICES = 21, 778  # hand21, MANO topology

# ------------------------------------------------------------------------------- pictures


def read_image(path: str | os.PathLike) -> np.ndarray:
    """A picture file as (H, W, 3) uint8 RGB, upright.

    EXIF orientation is applied, transparency is composited on white, 16-bit grey is scaled to
    8 bits, palettes, grey and CMYK are converted, and of an animation the first frame is taken.
    Raises FileNotFoundError for a missing file, ValueError for anything that is not a picture.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no picture at {path}: check the path")
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the path of one picture")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): copy or download it again")
    try:
        with Image.open(path) as picture:
            picture.load()
            return np.array(_to_rgb(ImageOps.exif_transpose(picture)))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large a picture ({error}): scale it down first") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ValueError(f"{path} cannot be read as a picture ({error}): "
                         "expected an undamaged JPEG, PNG or similar") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # "I;16", "I;16B" and, for some 16-bit files, "I"
        grey = np.asarray(picture).astype(np.float64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its grey values do not fit 16 bits")
        return Image.fromarray(np.round(grey / 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("floating-point pictures have no fixed white; save it with 8 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


# ---------------------------------------------------------------------------------- crops


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
    return to_crop @ _roll_and_mirror(roll, mirror) @ to_origin


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
    rotation = _roll_and_mirror(roll, mirror) @ turn
    return Crop(crop_K, crop_K @ rotation @ inverse, rotation)


def rotation_to_axis(ray: np.ndarray) -> np.ndarray:
    """(3, 3) shortest rotation that takes a ray (3,) in front of the camera to the +z axis."""
    x, y, z = ray / np.linalg.norm(ray)
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])  # of ray x axis = (y, -x, 0)
    return np.eye(3) + cross + cross @ cross / (1 + z)


def _roll_and_mirror(roll: float, mirror: bool) -> np.ndarray:
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


# ----------------------------------------------------------------------------- augmentation


@dataclass(frozen=True)
class Augmentation:
    """A recipe. Ranges are uniform; geometry moves the crop's camera, so labels stay exact."""

    center_jitter: float = 0.0  # centre moves by +- this fraction of the box's width, both axes
    scale: tuple[float, float] = (1.0, 1.0)  # box side factor; a data set's box is tight or whole
    rotation: float = 0.0  # degrees, +- in the image plane
    radians_quirk: bool = False  # rotation as the official SimpleHand code draws it, see below
    flip: float = 0.0  # probability of mirroring: pictures of the other hand, same topology
    gain: tuple[float, float] = (1.0, 1.0)  # factor of each colour channel
    brightness: tuple[float, float] = (0.0, 0.0)  # offset, fraction of white
    contrast: tuple[float, float] = (0.0, 0.0)  # factor - 1

    @property
    def moves(self) -> bool:
        """Whether the recipe changes the crop and not only colours."""
        return (self.center_jitter, self.scale, self.rotation, self.radians_quirk,
                self.flip) != (0.0, (1.0, 1.0), 0.0, False, 0.0)

    def draw_roll(self, rng: np.random.Generator) -> float:
        """An in-plane rotation in radians.

        The official code draws N(0, 90) clipped to +-180, meant as degrees, and passes it to cos
        and sin as radians: nearly uniform over the circle, with spikes at +-180 rad (4.6 %).
        """
        if self.radians_quirk:
            return float(np.clip(rng.normal(0, 90), -180, 180))
        return float(np.deg2rad(rng.uniform(-self.rotation, self.rotation)))

    def recolor(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Gain, then brightness and contrast, of (3, S, S) uint8, through one table per channel."""
        gain = rng.uniform(*self.gain, (3, 1))
        brightness, contrast = rng.uniform(*self.brightness), rng.uniform(*self.contrast)
        table = np.clip(np.arange(256) * gain, 0, 255)
        table = np.clip(table * (1 + contrast) + 255 * brightness, 0, 255).round().astype(np.uint8)
        return np.stack([row[channel] for row, channel in zip(table, image, strict=True)])


COLOR = {"gain": (0.6, 1.4), "brightness": (-0.4, 0.1), "contrast": (-0.2, 0.2)}  # official
AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "official_simplehand": Augmentation(center_jitter=0.1, scale=(1.0, 1.5), radians_quirk=True,
                                        flip=0.5, **COLOR),
    "rendered": Augmentation(gain=(0.8, 1.2), brightness=(-0.15, 0.15), contrast=(-0.2, 0.2)),
    "rendered_moving": Augmentation(center_jitter=0.05, scale=(0.85, 1.15), rotation=30.0,
                                    gain=(0.8, 1.2), brightness=(-0.15, 0.15),
                                    contrast=(-0.2, 0.2)),
}


def find_augmentation(recipe: str | Augmentation | None) -> Augmentation | None:
    """A recipe by name, or the recipe itself."""
    if isinstance(recipe, str):
        if recipe not in AUGMENTATIONS:
            raise ValueError(f"unknown augmentation {recipe!r}: expected one of "
                             f"{', '.join(AUGMENTATIONS)}, or an Augmentation")
        return AUGMENTATIONS[recipe]
    return recipe


AUGMENTING, RENDERING, NOISE = range(3)  # first words: independent streams of random numbers


def random_generator(*words: int) -> np.random.Generator:
    """A counter-based generator that depends on the words alone, all of them non-negative."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


# ---------------------------------------------------------------------------------- samples


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


def inside(keypoints: np.ndarray, width: int, height: int) -> np.ndarray:
    """1.0 for each of (N, 2) pixels that lies in the picture, as float32 (N,)."""
    return ((keypoints >= 0) & (keypoints <= (width, height))).all(-1).astype(np.float32)


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
    }


def augmented_crop(source: Annotated, center: np.ndarray, box: np.ndarray, size: int,
                   recipe: Augmentation, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Jitter, scale, turn and mirror the box as the recipe says, then crop."""
    height, width = source.image.shape[:2]
    jitter = rng.uniform(-recipe.center_jitter, recipe.center_jitter, 2) * box[0]
    center = np.clip(center + jitter, 0, (width, height))
    box = box * rng.uniform(*recipe.scale)
    roll, mirror = recipe.draw_roll(rng), bool(rng.random() < recipe.flip)
    return crop_sample(source, center, box, size, roll=roll, mirror=mirror)


class HandDataset(Dataset):
    """What all hand data sets share: keys, epochs, random numbers, tensors."""

    def __init__(self, split: str, splits: Sequence[str], size: int, seed: int,
                 augmentation: str | Augmentation | None) -> None:
        if split not in splits:
            raise ValueError(f"unknown split {split!r}: expected one of {', '.join(splits)}")
        if size < 16 or seed < 0:
            raise ValueError(f"expected size >= 16 and seed >= 0, got {size} and {seed}")
        self.split, self.size, self.seed = split, size, seed
        self.split_id = list(splits).index(split)
        self.augmentation = find_augmentation(augmentation)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The sample's arrays after the geometric part of the augmentation."""
        raise NotImplementedError

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        if key < 0:
            raise IndexError(f"keys count up from 0 (epoch * length + index), got {key}")
        epoch, index = divmod(int(key), len(self))
        rng = random_generator(AUGMENTING, self.seed, self.split_id, epoch, index)
        sample = self.load(index, rng)
        if self.augmentation is not None:
            sample["image"] = self.augmentation.recolor(sample["image"], rng)
            if not sample["keypoints_valid"][[0, 9]].any():
                sample["mesh_valid"] = 0.0  # official: no 3-D loss, wrist and knuckle are out
        sample = {"side": np.int64(1), "index": np.int64(index)} | sample
        return {name: _tensor(value) for name, value in sample.items()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[index] for index in range(len(self)))  # one epoch: keys alone never end


def _tensor(value: np.ndarray | float) -> Tensor:
    array = np.asarray(value)
    kept = array.dtype in (np.uint8, np.int64)
    return torch.from_numpy(np.array(array, array.dtype if kept else np.float32, order="C"))


# ------------------------------------------------------------------------------ packed files


def fingerprint(settings: dict) -> str:
    """Sixteen hexadecimal digits that change with any of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def open_packed(path: Path, dtype: np.dtype, length: int) -> np.ndarray | None:
    """The memory-mapped records (length,) of a complete file, else None."""
    try:
        records = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return records if records.dtype == dtype and records.shape == (length,) else None


def build_packed(path: Path, dtype: np.dtype, length: int,
                 fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """Memory-map `path`, building it first with `fill(records)` unless it is complete.

    Readers never see half a file: it is written beside its place and renamed. Of several
    processes that ask at once one builds and the others wait; a killed builder's lock dies with it.
    """
    records = open_packed(path, dtype, length)
    if records is not None:
        return records
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "w")
    except OSError as error:
        raise ValueError(f"cannot write the cache {path.parent} ({error}): "
                         "give cache=FOLDER on a disk with room and permission") from error
    temporary = path.with_suffix(".tmp" if fcntl else f".{os.getpid()}.tmp")
    needed = dtype.itemsize * length
    with lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if open_packed(path, dtype, length) is None:  # nobody finished it while we waited
            if shutil.disk_usage(path.parent).free < 1.05 * needed:  # a full disk kills by SIGBUS
                raise ValueError(f"{path.parent} has no room for {needed / 1e9:.1f} GB: "
                                 "give cache=FOLDER elsewhere")
            try:
                records = np.lib.format.open_memmap(temporary, "w+", dtype, (length,))
                fill(records)
                records.flush()  # to the disk
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    return open_packed(path, dtype, length)


# ---------------------------------------------------------------------- hand poses and views

FINGER_SLOTS = {"index": 0, "middle": 3, "ring": 9, "pinky": 6}  # first joint, MANO order less root
THUMB_SLOT = 12
PALM_NORMAL_UP = np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])  # back to the camera, fingers up

# Angles of the thumb in radians: saddle joint flexion, abduction and twist, then flexion of the
# two hinges. The pinches were fitted once so that pad meets pad on the mean free hand.
THUMB_POSES = {
    "rest": (0.10, -0.20, 0.00, 0.15, 0.20),
    "flat": (0.00, -0.60, 0.00, -0.10, -0.10),
    "up": (-0.30, -0.30, 0.00, -0.10, -0.20),
    "folded": (0.50, -0.10, 0.30, 0.70, 0.70),
    "grasp": (0.30, 0.25, 0.20, 0.35, 0.35),
}
PINCHES = {  # thumb as above; flexion of the finger's three joints, abduction of its first
    "index": ((0.26, -0.02, 0.18, 0.28, 0.30), (0.85, 0.85, 0.41), 0.00),
    "middle": ((0.44, 0.24, 0.04, 0.45, 0.44), (1.00, 0.98, 0.48), 0.07),
    "ring": ((0.61, 0.53, -0.05, 0.55, 0.47), (1.16, 0.91, 0.44), 0.17),
}
LOWER_LIMIT, UPPER_LIMIT = np.full((15, 3), -0.35), np.full((15, 3), 0.35)  # flexion, abduction..
LOWER_LIMIT[:, 0], UPPER_LIMIT[:, 0] = -0.3, 1.9
LOWER_LIMIT[12], UPPER_LIMIT[12] = (-0.5, -0.8, -0.4), (0.9, 0.7, 0.5)
LOWER_LIMIT[13:, 1:] = UPPER_LIMIT[13:, 1:] = 0.0


@cache
def hinge_axes() -> np.ndarray:
    """Each joint's flexion, abduction and twist axis (15, 3, 3), rest frame of the right hand.

    Fingers point along -x with the palm down (-y) and the index towards +z; positive flexion
    closes the hand, positive abduction of a finger goes towards the thumb.
    """
    flexion = np.tile([0.0, 0.0, 1.0], (15, 1))
    twist = np.tile([-1.0, 0.0, 0.0], (15, 1))
    flexion[THUMB_SLOT:] = 0.65, -0.74, -0.17  # from the shape of the last segment and its nail
    twist[THUMB_SLOT:] = -0.054, -0.068, 0.064  # along the thumb
    flexion /= np.linalg.norm(flexion, axis=-1, keepdims=True)
    twist -= (twist * flexion).sum(-1, keepdims=True) * flexion
    twist /= np.linalg.norm(twist, axis=-1, keepdims=True)
    return np.stack([flexion, np.cross(twist, flexion), twist], 1)


def sample_hand_pose(rng: np.random.Generator) -> np.ndarray:
    """A plausible hand: axis-angle (15, 3), absolute, MANO joint order without the wrist.

    Half are grasps and relaxed hands, whose fingers close together; the others are gestures (each
    finger straight or folded), pinches, and independent fingers. All stay within joint limits.
    """
    kind = rng.choice(4, p=(0.45, 0.25, 0.15, 0.15))
    if kind == 0:
        curl = rng.uniform(0, 1) + rng.uniform(-0.25, 0.25) * np.linspace(-1, 1, 4)
    elif kind == 1:
        curl = np.where(rng.random(4) < 0.5, rng.uniform(0, 0.15, 4), rng.uniform(0.75, 1, 4))
    else:
        curl = rng.uniform(0, 1, 4)
    curl = np.clip(curl + rng.normal(0, 0.05, 4), -0.1, 1)
    angles = _finger_angles(curl, rng)
    mixture = rng.dirichlet(np.full(len(THUMB_POSES), 0.4))
    thumb = mixture @ np.array(list(THUMB_POSES.values()))
    if kind == 2:
        finger = list(PINCHES)[rng.integers(len(PINCHES))]
        thumb, flexion, abduction = map(np.asarray, PINCHES[finger])
        slot = FINGER_SLOTS[finger]
        angles[slot:slot + 3, 0], angles[slot, 1] = flexion, abduction
    angles[THUMB_SLOT], angles[13:, 0] = thumb[:3], thumb[3:]
    angles += rng.normal(0, 0.04, (15, 3)) * (1.0, 0.5, 0.5)
    angles = np.clip(angles, LOWER_LIMIT, UPPER_LIMIT)
    return np.einsum("jd,jdc->jc", angles, hinge_axes())


def _finger_angles(curl: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Joint angles (15, 3) from how far index, middle, ring and pinky are closed (4,)."""
    angles = np.zeros((15, 3))
    hook = rng.uniform(-1, 1)  # -1 bends the knuckles first, +1 the middle joints first
    coupling = rng.uniform(0.45, 0.75)  # last joint follows the middle one
    spread = rng.uniform(-0.3, 1.0) * np.array([0.2, 0.03, -0.12, -0.28])
    converge = np.array([-0.05, 0.0, 0.12, 0.3])  # folded fingers aim at the base of the thumb
    for finger, slot in enumerate(FINGER_SLOTS.values()):
        closed = curl[finger]
        angles[slot, 0] = 1.4 * closed * (1 - 0.5 * max(hook, 0) * (1 - closed))
        angles[slot + 1, 0] = 1.75 * closed * (1 - 0.6 * max(-hook, 0) * (1 - closed))
        angles[slot + 2, 0] = coupling * angles[slot + 1, 0]
        angles[slot, 1] = spread[finger] * (1 - closed) + converge[finger] * closed
    return angles


def sample_view(rng: np.random.Generator, views: float, in_plane: float,
                sides: str = "both") -> np.ndarray:
    """Rotation (3, 3) of the rest hand into the camera frame.

    The hand starts with its back or palm to the camera and its fingers up, is tilted until the
    normal is up to `views` degrees off the camera's axis (uniform on the cap; 90 with both sides
    is the whole sphere) and turned in the image plane by up to +- `in_plane` degrees.
    """
    palm = {"both": bool(rng.integers(2)), "palm": True, "back": False}[sides]
    base = np.diag([-1.0, 1.0, -1.0]) @ PALM_NORMAL_UP if palm else PALM_NORMAL_UP
    cos = rng.uniform(np.cos(np.deg2rad(views)), 1)
    azimuth, sin = rng.uniform(0, 2 * np.pi), np.sqrt(1 - cos * cos)
    tilt = rotation_to_axis(np.array([sin * np.cos(azimuth), sin * np.sin(azimuth), cos]))
    roll = np.deg2rad(rng.uniform(-in_plane, in_plane))
    return _roll_and_mirror(roll, False) @ tilt @ base


# ---------------------------------------------------------------------------- rendered hands

RENDER_VERSION = 1  # count up whenever the same settings would give other pictures
SKIN_TONES = np.array([[0.93, 0.76, 0.65], [0.87, 0.66, 0.53], [0.76, 0.54, 0.41],
                       [0.55, 0.37, 0.27], [0.36, 0.23, 0.17]])
FOREARM_RINGS = 3


class HandSurface:
    """The free right hand with a forearm: a closed surface, so only front faces need drawing."""

    def __init__(self) -> None:
        self.model = bodymodels.load_model("hand_right", dtype=torch.float64)
        hand_faces = self.model.faces.numpy()
        self.regressor = self.model.keypoint_regressor.numpy()
        self.template = self.model.v_template.numpy()
        self.wrist = boundary_loop(hand_faces)  # (16,)
        self.faces = np.concatenate([hand_faces, self._forearm_faces()])
        normals = bodymodels.vertex_normals(self.template, hand_faces)
        self.palmar = np.clip(0.5 - 1.5 * normals[:, 1], 0, 1)[:, None]  # 1 palm, 0 back
        tips = self.template[list(self.model.tip_vertex_ids)]
        nearest = np.linalg.norm(self.template[:, None] - tips, axis=-1).min(1)[:, None]
        self.tip = np.exp(-np.square(nearest / 0.012))

    def _forearm_faces(self) -> np.ndarray:
        """Strips between copies of the wrist's rim, and a fan that closes the last one."""
        count = len(self.wrist)
        copies = NUM_VERTICES + np.arange(FOREARM_RINGS * count).reshape(FOREARM_RINGS, count)
        rings = np.vstack([self.wrist, copies])
        a, b = rings, np.roll(rings, -1, axis=1)
        lower = np.stack([b[:-1], a[:-1], a[1:]], -1).reshape(-1, 3)
        upper = np.stack([b[:-1], a[1:], b[1:]], -1).reshape(-1, 3)
        center = np.full(count, NUM_VERTICES + copies.size)
        return np.concatenate([lower, upper, np.stack([b[-1], a[-1], center], -1)])

    def pose(self, betas: np.ndarray, hand_pose: np.ndarray) -> np.ndarray:
        """Vertices (778, 3) in the rest frame, float64, always one sample at a time.

        A batched product may round differently, and the same sample must come out bit for bit.
        """
        pose = torch.from_numpy(np.concatenate([np.zeros((1, 3)), hand_pose]))
        with torch.inference_mode():
            return self.model(torch.from_numpy(betas)[None], pose[None]).vertices[0].numpy()

    def with_forearm(self, vertices: np.ndarray, direction: np.ndarray, length: float,
                     taper: float) -> np.ndarray:
        """Append the forearm's rings and end point to hand vertices (778, 3)."""
        rim = vertices[self.wrist]
        center = rim.mean(0)
        steps = np.linspace(0, 1, FOREARM_RINGS + 1)[1:, None, None]
        rings = center + (rim - center) * (1 + taper * steps) + direction * length * steps
        return np.concatenate([vertices, rings.reshape(-1, 3), rings[-1].mean(0, keepdims=True)])


def boundary_loop(faces: np.ndarray) -> np.ndarray:
    """The vertices of a mesh's only hole, in the order of its border edges."""
    edges = {(int(a), int(b)) for face in faces for a, b in zip(face, np.roll(face, -1),
                                                                strict=True)}
    following = dict(edge for edge in edges if edge[::-1] not in edges)
    loop = [min(following)]
    while following[loop[-1]] != loop[0]:
        loop.append(following[loop[-1]])
    return np.array(loop)


@cache
def hand_surface() -> HandSurface:
    return HandSurface()


@cache
def _noise_bank() -> np.ndarray:  # drawing it anew for each picture would cost more than LBS
    return random_generator(NOISE).standard_normal(2**20, dtype=np.float32)


class Scene(NamedTuple):
    """A hand and its camera, in metres and pixels."""

    surface: np.ndarray  # (V, 3) the hand's 778 vertices, then the forearm's
    joints: np.ndarray  # (21, 3)
    K: np.ndarray  # (3, 3)


def sample_scene(rng: np.random.Generator, size: int, views: float, in_plane: float,
                 sides: str) -> Scene:
    """Pose, shape, view, distance and a detector-like box around the projected keypoints."""
    hand = hand_surface()
    betas = np.clip(rng.standard_normal(10), -2.5, 2.5)
    vertices = hand.pose(betas, sample_hand_pose(rng))
    vertices = vertices @ sample_view(rng, views, in_plane, sides).T
    joints = hand.regressor @ vertices
    distance = np.exp(rng.uniform(np.log(0.35), np.log(1.2)))
    shift = np.array([0, 0, distance]) - joints.mean(0)
    vertices, joints = vertices + shift, joints + shift

    center, box = keypoint_box(joints[:, :2] / joints[:, 2:])
    center = center + rng.uniform(-0.1, 0.1, 2) * box.max()
    crop = perspective_crop(np.eye(3), center, box * rng.uniform(1.1, 1.5), size)
    vertices, joints = vertices @ crop.rotation.T, joints @ crop.rotation.T

    forearm = joints[0] - joints[9]
    forearm /= np.linalg.norm(forearm)
    forearm += rng.normal(0, 0.25, 3)
    forearm /= np.linalg.norm(forearm)
    length = rng.uniform(0.02, 0.25) * (1 + 0.95 * min(forearm[2], 0))  # never hide the hand
    surface = hand.with_forearm(vertices, forearm, length, rng.uniform(0, 0.3))
    return Scene(surface, joints, crop.K)


def shade(rng: np.random.Generator, surface: np.ndarray) -> np.ndarray:
    """Colours (V, 3) of the vertices: skin or sleeve, a key light, ambient light, a highlight."""
    hand = hand_surface()
    albedo = _skin(rng, len(surface))
    normals = bodymodels.vertex_normals(surface, hand.faces)
    towards_light = rng.normal(0, 1, 3) + (0, -0.5, -0.8)  # rather from above and the camera
    towards_light /= np.linalg.norm(towards_light)
    warmth = rng.uniform(-0.12, 0.12) * np.array([1, 0, -1])
    key = rng.uniform(0.3, 0.9) * (1 + warmth)
    ambient = rng.uniform(0.3, 0.7) * (1 - 0.5 * warmth)
    overhead = 1 - rng.uniform(0, 0.4) * (1 + normals[:, 1:2]) / 2  # less light from below
    lambert = np.clip(normals @ towards_light, 0, None)[:, None]
    view = -surface / np.linalg.norm(surface, axis=1, keepdims=True)
    halfway = towards_light + view
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    glint = np.clip((normals * halfway).sum(1, keepdims=True), 0, None) ** 16
    return albedo * (ambient * overhead + key * lambert) + rng.uniform(0, 0.15) * glint


def _skin(rng: np.random.Generator, count: int) -> np.ndarray:
    """Albedo (count, 3): a skin tone, lighter palms, redder tips, blotches; perhaps a sleeve."""
    hand = hand_surface()
    tone = rng.uniform(0, len(SKIN_TONES) - 1)
    base = SKIN_TONES[int(tone)] + (tone % 1) * (SKIN_TONES[int(tone) + 1]
                                                 - SKIN_TONES[int(tone)])
    base = base * (1 + rng.normal(0, 0.05, 3))
    lighter = np.clip(base * 1.1 + (0.06, 0.03, 0.03), 0, 1)
    skin = base + rng.uniform(0, 1) * hand.palmar * (lighter - base)
    skin = skin + rng.uniform(0, 1) * hand.tip * (0.06, -0.03, -0.02)
    waves = np.cos(hand.template @ rng.normal(0, 120, (3, 4)) + rng.uniform(0, 6.3, 4))
    skin = skin * (1 + rng.uniform(0, 0.06) * waves.mean(1, keepdims=True))
    arm = random_color(rng) if rng.random() < 0.5 else base
    return np.concatenate([skin, np.broadcast_to(arm, (count - NUM_VERTICES, 3))])


def paint_hand(image: np.ndarray, scene: Scene, colors: np.ndarray) -> None:
    """Draw the shaded surface into a picture (S, S, 3) of float32 0..255, in place."""
    size = len(image)
    z = scene.surface[:, 2:]
    pixels = np.concatenate([scene.surface[:, :2] / z * scene.K[0, 0] + size / 2, z], 1)
    faces = hand_surface().faces
    x, y = pixels[:, 0][faces.T], pixels[:, 1][faces.T]
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    faces = faces[area < 0]  # outside faces turned to the camera; the surface is closed
    face_ids, barycentric, _ = bodymodels.rasterize(pixels, faces, (size, size))
    drawn = np.flatnonzero(face_ids >= 0)
    corners = (255 * colors).astype(np.float32)[faces].take(face_ids.ravel()[drawn], 0)
    weights = barycentric.reshape(-1, 3)[drawn]
    image.reshape(-1, 3)[drawn] = np.einsum("pk,pkc->pc", weights, corners)  # (pixels, 3)


# Backgrounds, occluders and the camera's imperfections


def paint_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A picture (size, size, 3) uint8 of nothing in particular, as out of focus as it happens.

    Soft colour fields with finer texture, and clutter: bars, discs and polygons, some of them in
    skin colours, so that colour alone does not give the hand away.
    """
    side = size // int(rng.choice((1, 2, 4)))
    grid = int(rng.integers(1, 6))
    field = rng.normal(0, rng.uniform(10, 45), (grid, grid, 3)) + 255 * random_color(rng)
    picture = _enlarge(field, side).astype(np.float32)
    if rng.random() < 0.7:
        grid = int(rng.integers(6, max(side // 2, 7)))
        texture = rng.normal(0, 1, (grid, grid)) * rng.uniform(5, 25) + 128
        picture += _enlarge(texture, side)[..., None].astype(np.float32) - 128
    canvas = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(0, 12))):
        draw_shape(draw, rng, side, rng.uniform(-0.1, 1.1, 2), rng.uniform(0.03, 0.4))
    return np.array(canvas.resize((size, size), Image.Resampling.BILINEAR))


def random_color(rng: np.random.Generator) -> np.ndarray:
    """RGB (3,) 0..1, mostly greyish, as most things are."""
    return np.clip(rng.uniform(0.05, 0.95) + rng.exponential(0.12) * rng.normal(0, 1, 3), 0, 1)


def _enlarge(values: np.ndarray, side: int) -> np.ndarray:
    small = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def draw_shape(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int,
               center: np.ndarray, radius: float) -> None:
    """A bar, disc or polygon; centre and radius are fractions of the picture's side."""
    tone = SKIN_TONES[rng.integers(len(SKIN_TONES))] * rng.uniform(0.5, 1.1)
    color = tone if rng.random() < 0.3 else random_color(rng)
    fill = tuple(int(255 * min(value, 1)) for value in color)
    (x, y), radius = center * side, radius * side
    kind = rng.integers(3)
    if kind == 0:
        angle, reach = rng.uniform(0, np.pi), radius * 2.5
        dx, dy = reach * np.cos(angle), reach * np.sin(angle)
        draw.line((x - dx, y - dy, x + dx, y + dy), fill, width=max(1, int(radius * 0.7)))
    elif kind == 1:
        height = radius * rng.uniform(0.4, 1)
        draw.ellipse((x - radius, y - height, x + radius, y + height), fill)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
        points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)
        draw.polygon([tuple(point) for point in points.tolist()], fill)


def develop(rng: np.random.Generator, picture: Image.Image) -> np.ndarray:
    """Lens and sensor: blur (the picture's only anti-aliasing), white balance, noise; uint8."""
    radius = rng.uniform(0.35, 0.6) if rng.random() < 0.7 else rng.uniform(0.6, 1.6)
    radius *= picture.width / 128
    image = np.array(picture.filter(ImageFilter.BoxBlur(radius)), np.float32)
    image *= (rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    start = int(rng.integers(len(_noise_bank()) - image.size))
    noise = _noise_bank()[start:start + image.size].reshape(image.shape)
    image += noise * np.float32(rng.exponential(3.0))
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


class RenderedHands(HandDataset):
    """Pictures of the free right hand, rendered on the fly: no download, exact labels.

    split: "train" or "test", made of different random numbers. length: 40,000 and 1,000 by
    default; the first samples of a longer split are those of a shorter one.
    views, in_plane, sides: see `sample_view`; the default is the whole sphere.
    cache: a folder; the split is rendered once, by all cores, into one memory-mapped file there
    (3 S^2 + 9.9 kB a sample) and read from it afterwards, bit for bit the same. The file's name
    holds a fingerprint of the settings. Old files are not removed: delete the folder at will.
    Without geometric augmentation `crop` and `camera_rotation` are identities: the picture is its
    own original.
    """

    LENGTHS = {"train": 40_000, "test": 1_000}

    def __init__(self, split: str = "train", size: int = 128, *, length: int | None = None,
                 seed: int = 0, views: float = 90.0, in_plane: float = 180.0,
                 sides: str = "both", augmentation: str | Augmentation | None = None,
                 cache: str | os.PathLike | None = None, progress: bool = True) -> None:
        super().__init__(split, tuple(self.LENGTHS), size, seed, augmentation)
        self.length = self.LENGTHS[split] if length is None else length
        if not (0 <= views <= 90 and 0 <= in_plane <= 180 and self.length > 0):
            raise ValueError("expected views in 0..90 and in_plane in 0..180 degrees and a "
                             f"positive length, got {views}, {in_plane} and {self.length}")
        if sides not in ("both", "palm", "back"):
            raise ValueError(f"unknown sides {sides!r}: expected both, palm or back")
        self.views, self.in_plane, self.sides = float(views), float(in_plane), sides
        self.dtype = np.dtype([
            ("image", np.uint8, (size, size, 3)), ("K", np.float32, (3, 3)),
            ("joints", np.float32, (NUM_JOINTS, 3)), ("vertices", np.float32, (NUM_VERTICES, 3)),
            ("keypoints_2d", np.float32, (NUM_JOINTS, 2))])
        self.path: Path | None = None
        self._packed: np.ndarray | None = None
        if cache is not None:
            self.path = self._cache_path(Path(cache))
            build_packed(self.path, self.dtype, self.length, lambda out: self._fill(out, progress))

    def __len__(self) -> int:
        return self.length

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}  # workers map the file themselves

    def render(self, index: int) -> np.ndarray:
        """The packed record of one sample, made from nothing but seed, split and index."""
        rng = random_generator(RENDERING, self.seed, self.split_id, index)
        scene = sample_scene(rng, self.size, self.views, self.in_plane, self.sides)
        image = paint_background(rng, self.size).astype(np.float32)
        paint_hand(image, scene, shade(rng, scene.surface))
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        if rng.random() < 0.35:
            occluder = ImageDraw.Draw(picture)
            for _ in range(int(rng.integers(1, 3))):
                draw_shape(occluder, rng, self.size, rng.uniform(0, 1, 2), rng.uniform(0.04, 0.18))
        record = np.zeros((), self.dtype)
        record["image"] = develop(rng, picture)
        record["K"], record["joints"] = scene.K, scene.joints
        record["vertices"] = scene.surface[:NUM_VERTICES]
        projected = scene.joints @ scene.K.T
        record["keypoints_2d"] = projected[:, :2] / projected[:, 2:]
        return record

    def record(self, index: int) -> np.ndarray:
        """A packed record, from the cache if there is one."""
        if self.path is None:
            return self.render(index)
        if self._packed is None:
            self._packed = build_packed(self.path, self.dtype, self.length,
                                        lambda out: self._fill(out, False))
        return self._packed[index]

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self.record(index)
        sample = {name: record[name] for name in self.dtype.names}
        valid = inside(sample["keypoints_2d"], self.size, self.size)
        if self.augmentation is not None and self.augmentation.moves:
            source = Annotated(**sample, keypoints_valid=valid, mesh_valid=1.0)
            whole = np.array([self.size, self.size], np.float64)
            return augmented_crop(source, whole / 2, whole, self.size, self.augmentation, rng)
        sample["image"] = sample["image"].transpose(2, 0, 1)
        return sample | {"keypoints_valid": valid, "mesh_valid": 1.0, "crop": np.eye(3),
                         "camera_rotation": np.eye(3)}

    def _cache_path(self, folder: Path) -> Path:
        settings = {name: getattr(self, name) for name in
                    ("split", "size", "length", "seed", "views", "in_plane", "sides")}
        name = fingerprint(settings | {"version": RENDER_VERSION})
        return folder / f"rendered_hands_{self.split}_{self.size}_{name}.npy"

    def _render_batch(self, indices: list[int]) -> np.ndarray:
        return np.stack([self.render(index) for index in indices])

    def _fill(self, records: np.ndarray, progress: bool) -> None:
        """Render the whole split, on all cores."""
        workers = available_cores() if self.length >= 256 else 0
        loader = DataLoader(range(self.length), batch_size=32, num_workers=workers,
                            collate_fn=self._render_batch,
                            generator=torch.Generator())  # not the global one, which it would move
        bar = tqdm(loader, f"Rendering {self.path.name}", unit="batch", disable=not progress)
        for number, batch in enumerate(bar):
            records[32 * number:32 * number + len(batch)] = batch


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --------------------------------------------------------------------------------- FreiHAND


class FreiHAND(HandDataset):
    """FreiHAND (Zimmermann et al. 2019) in its official layout, version 2.

    root: the folder with training/, evaluation/ and their .json files. Training has four
    backgrounds (green screen, homogenised, sample, auto), picture = background * N + id, and one
    annotation per id; N is read from the files (32,560), so a small folder works too. Evaluation
    is read with or without the annotation that was released later: without it keypoints are
    unknown, the crop is the whole picture and all flags are 0.
    Without augmentation the crop is the box of the true keypoints x 1.25, as the papers evaluate.

    cache: folder for the packed annotation, `root` by default. The JSON lists, over a gigabyte of
    text, are packed once into a memory-mapped file (9.6 kB an id) and again when they change.
    K is used as it is: if its pixel centres are at integers that is half a pixel, below the
    annotation's own error. Joints are the given xyz, never regressed.
    """

    EVALUATION = Augmentation(scale=(1.25, 1.25))
    BACKGROUNDS = ("gs", "hom", "sample", "auto")
    SHAPES = {"K": (3, 3), "xyz": (NUM_JOINTS, 3), "verts": (NUM_VERTICES, 3)}

    def __init__(self, root: str | os.PathLike, split: str = "training", size: int = 224, *,
                 augmentation: str | Augmentation | None = None, seed: int = 0,
                 cache: str | os.PathLike | None = None, progress: bool = True) -> None:
        super().__init__(split, ("training", "evaluation"), size, seed, augmentation)
        self.root, self.progress = Path(root), progress
        self.pictures = self.root / split / "rgb"
        sources = {name: self.root / f"{split}_{name}.json" for name in self.SHAPES}
        self.sources = {name: path for name, path in sources.items() if path.is_file()}
        required = ("K", "xyz") if split == "training" else ("K",)
        for path in (self.pictures, *(sources[name] for name in required)):
            if not path.exists():
                raise FileNotFoundError(f"no {path}: expected FreiHAND's official layout in "
                                        f"{self.root}, see freihand.informatik.uni-freiburg.de")
        self.dtype = np.dtype([(name, np.float32, self.SHAPES[name]) for name in self.sources])
        stats = {name: path.stat() for name, path in self.sources.items()}
        marks = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
        folder = self.root if cache is None else Path(cache)
        self.path = folder / f"freihand_{split}_{fingerprint(marks)}.npy"
        self._packed: np.ndarray | None = None
        self.db_size = sum(1 for _ in self._items("K"))
        self.versions = self._count_versions()
        self._records()

    def _count_versions(self) -> int:
        most = len(self.BACKGROUNDS) if self.split == "training" else 1
        found = [self.picture_path(version * self.db_size).is_file() for version in range(most)]
        if not self.db_size or not found[0]:
            raise FileNotFoundError(f"no picture for the {self.db_size} annotations of the split "
                                    f"{self.split}: expected {self.picture_path(0)}")
        return found.index(False) if False in found else most

    def __len__(self) -> int:
        return self.db_size * self.versions

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}

    def picture_path(self, index: int) -> Path:
        """The file of a picture."""
        return self.pictures / f"{index:08d}.jpg"

    def annotated(self, index: int) -> Annotated:
        """A picture and its annotation as they are in the data set."""
        image = read_image(self.picture_path(index))
        record = self._records()[index % self.db_size]
        known = "xyz" in self.sources
        K = record["K"].astype(np.float64)
        joints = record["xyz"] if known else np.zeros(self.SHAPES["xyz"])
        vertices = record["verts"] if "verts" in self.sources else np.zeros(self.SHAPES["verts"])
        keypoints, valid = np.zeros((NUM_JOINTS, 2)), np.zeros(NUM_JOINTS, np.float32)
        if known:
            projected = joints @ K.T
            keypoints = projected[:, :2] / projected[:, 2:]
            valid = inside(keypoints, image.shape[1], image.shape[0])
        return Annotated(image, K, joints, vertices, keypoints, valid,
                         mesh_valid=float(known and "verts" in self.sources))

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        source = self.annotated(index)
        height, width = source.image.shape[:2]
        center, box = np.array([width, height]) / 2, np.array([width, height], np.float64)
        recipe = Augmentation() if self.augmentation is None else self.augmentation
        if source.keypoints_valid.any():
            center, box = keypoint_box(source.keypoints_2d[source.keypoints_valid > 0])
            box = np.maximum(box, 1.0)
            recipe = self.augmentation or self.EVALUATION
        sample = augmented_crop(source, center, box, self.size, recipe, rng)
        if "xyz" not in self.sources:
            sample["keypoints_2d"] = source.keypoints_2d  # unknown stays zero
        return sample

    def _records(self) -> np.ndarray:
        if self._packed is None:
            self._packed = build_packed(self.path, self.dtype, self.db_size, self._fill)
        return self._packed

    def _items(self, name: str) -> Iterator[object]:
        try:
            yield from stream_json_list(self.sources[name])
        except ValueError as error:
            raise ValueError(f"{self.sources[name]} is not a whole JSON list ({error}): "
                             "download it again") from error

    def _fill(self, records: np.ndarray) -> None:
        for name, path in self.sources.items():
            count = 0
            for item in tqdm(self._items(name), f"Packing {path.name}", total=len(records),
                             disable=not self.progress):
                array = np.asarray(item, np.float32)
                if array.shape != self.SHAPES[name]:
                    raise ValueError(f"{path}, item {count}: expected {self.SHAPES[name]} numbers, "
                                     f"got shape {array.shape}")
                if count < len(records):
                    records[name][count] = array
                count += 1
            if count != len(records):
                raise ValueError(f"{path} has {count} items where K has {len(records)}: "
                                 "the files do not belong together")


def stream_json_list(path: Path, chunk: int = 1 << 22) -> Iterator[object]:
    """The items of a JSON file that holds one long list, one at a time, in little memory.

    Raises ValueError if the file is damaged, or if one item is longer than 16 chunks of characters.
    """
    decoder, gap = json.JSONDecoder(), re.compile(r"[\s,]*")
    with open(path, encoding="utf-8") as file:
        text = file.read(chunk).lstrip()
        if not text.startswith("["):
            raise ValueError("it does not start with [")
        position = 1
        while True:
            position = gap.match(text, position).end()
            if text.startswith("]", position):
                return
            with contextlib.suppress(json.JSONDecodeError):  # perhaps only cut by the chunk's end
                item, end = decoder.raw_decode(text, position)
                if text[end:end + 1] in tuple(",] \t\r\n"):  # else a number may go on
                    yield item
                    position = end
                    continue
            more = file.read(chunk)
            if not more or len(text) - position > 16 * chunk:
                raise ValueError("damaged or cut off")
            text, position = text[position:] + more, 0


# ---------------------------------------------------------------------------------- looking

FINGER_COLORS = ((230, 60, 60), (240, 170, 40), (70, 190, 80), (60, 140, 240), (190, 90, 220))


def draw_keypoints(image: np.ndarray, keypoints: np.ndarray, valid: np.ndarray,
                   zoom: int = 3) -> np.ndarray:
    """Picture (S, S, 3) uint8, `zoom` times larger, with the hand21 skeleton drawn on it."""
    side = image.shape[0] * zoom
    picture = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    points = [tuple(point) for point in (keypoints * zoom).tolist()]
    for finger, color in enumerate(FINGER_COLORS):
        chain = [0, *range(1 + 4 * finger, 5 + 4 * finger)]
        for start, end in zip(chain, chain[1:], strict=False):
            if valid[start] and valid[end]:
                draw.line([points[start], points[end]], color, width=2)
        for joint in chain:
            if valid[joint]:
                x, y = points[joint]
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), color)
    return np.asarray(picture)


def draw_samples(dataset: HandDataset, keys: Sequence[int], path: str | os.PathLike,
                 columns: int = 4) -> None:
    """Write a PNG with the pictures of some samples and their projected keypoints."""
    tiles = []
    for key in keys:
        sample = dataset[key]
        tiles.append(draw_keypoints(sample["image"].permute(1, 2, 0).numpy(),
                                    sample["keypoints_2d"].numpy(),
                                    sample["keypoints_valid"].numpy()))
    blank = np.zeros_like(tiles[0])
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i:i + columns], 1) for i in range(0, len(tiles), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


def main(argv: Sequence[str] | None = None) -> None:
    """`python data.py NAME`: count a data set's samples, print one, draw some."""
    parser = argparse.ArgumentParser(description="Look at a data set.")
    parser.add_argument("name", choices=("rendered", "freihand"))
    parser.add_argument("--data-root", type=Path, help="the data set's folder (freihand)")
    parser.add_argument("--split", help="default: the training split")
    parser.add_argument("--size", type=int, default=128, help="side of the crops in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--augmentation", choices=tuple(AUGMENTATIONS), default="none")
    parser.add_argument("--cache", type=Path, help="folder for packed files")
    parser.add_argument("--draw", type=int, default=0, metavar="N", help="draw N samples")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="where to draw")
    args = parser.parse_args(argv)
    options = {"size": args.size, "seed": args.seed, "augmentation": args.augmentation,
               "cache": args.cache}
    try:
        if args.name == "freihand":
            if args.data_root is None:
                parser.error("freihand needs --data-root FOLDER")
            dataset = FreiHAND(args.data_root, args.split or "training", **options)
        else:
            dataset = RenderedHands(args.split or "train", **options)
        print(f"{args.name}, split {dataset.split}: {len(dataset):,} samples")
        for name, value in dataset[0].items():
            print(f"  {name:16} {str(tuple(value.shape)):14} {str(value.dtype):14}"
                  f"{value.min():10.4g} to {value.max():.4g}")
        if args.draw:
            draw_samples(dataset, range(min(args.draw, len(dataset))), args.out)
            print(f"drawn: {args.out}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
