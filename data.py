"""Images and annotations: pictures, crops, augmentation; hands, bodies and their motion.

    RenderedHands, FreiHAND     pictures of hands
    RenderedBodies              pictures of bodies
    RenderedPeople              pictures of whole bodies, and of their hands
    MotionPoses, AMASS, MOYO    poses of bodies, without pictures; Joined makes several one
    HandPictures, BodyPictures  the other official data sets of hands and bodies, see OFFICIAL;
                                Mixed has several in proportions, see MIXTURES
    OfficialPeople, HandPairs   the same with samples as of RenderedPeople

Every data set is a `torch.utils.data.Dataset`. `dataset[key]` takes key = epoch * len(dataset) +
index and is a pure function of (seed, split, epoch, index): no state, so any worker, any rank and
any resumed run sees the same sample. A sample is a dict of tensors. RenderedBodies, RenderedPeople
and MotionPoses tell what theirs hold; that of a hand, where S is the crop's side:

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
A hand's joints are in `hand21` order, a body's in `smpl45`, a whole body's in `smplx76`. Try it:
`python data.py rendered --draw 8`, or bodies or people in place of rendered.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

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


def read_image(path: str | os.PathLike, *, upright: bool = True,
               part: tuple[int, int] = (0, 0)) -> np.ndarray:
    """A picture file as (H, W, 3) uint8 RGB, upright.

    EXIF orientation is applied, transparency is composited on white, 16-bit grey is scaled to
    8 bits, palettes, grey and CMYK are converted, and of an animation the first frame is taken.
    upright=False leaves the pixels as they are stored, whatever EXIF says of them. part: the first
    byte and the number of bytes that hold the picture, if the file is an archive; 0 bytes: all.
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
        with Image.open(_bytes_of(path, *part) if part[1] else path) as picture:
            picture.load()
            return np.array(_to_rgb(ImageOps.exif_transpose(picture) if upright else picture))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large a picture ({error}): scale it down first") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ValueError(f"{path} cannot be read as a picture ({error}): "
                         "expected an undamaged JPEG, PNG or similar") from error


def _bytes_of(path: Path, start: int, count: int) -> io.BytesIO:
    with open(path, "rb") as file:
        file.seek(start)
        content = file.read(count)
    return io.BytesIO(base64.b64decode(content) if path.suffix == ".tsv" else content)


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
    extreme: float = 0.0  # probability of a box around a part of the body, bodies only
    hmr_draws: bool = False  # motion drawn as HMR2.0 does, see `draw_motion`
    gain: tuple[float, float] = (1.0, 1.0)  # factor of each colour channel
    brightness: tuple[float, float] = (0.0, 0.0)  # offset, fraction of white
    contrast: tuple[float, float] = (0.0, 0.0)  # factor - 1

    @property
    def moves(self) -> bool:
        """Whether the recipe changes the crop and not only colours."""
        return (self.center_jitter, self.scale, self.rotation, self.radians_quirk, self.flip,
                self.extreme) != (0.0, (1.0, 1.0), 0.0, False, 0.0, 0.0)

    def draw_roll(self, rng: np.random.Generator) -> float:
        """An in-plane rotation in radians.

        The official code draws N(0, 90) clipped to +-180, meant as degrees, and passes it to cos
        and sin as radians: nearly uniform over the circle, with spikes at +-180 rad (4.6 %).
        """
        if self.radians_quirk:
            return float(np.clip(rng.normal(0, 90), -180, 180))
        return float(np.deg2rad(rng.uniform(-self.rotation, self.rotation)))

    def draw_motion(self, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
        """Shift of the centre (2,) in box widths, factor of the box's side, roll in radians.

        HMR2.0 draws shift and scale from a normal distribution cut off at one deviation, which is
        the range, and turns 60 % of the pictures, by one cut off at two.
        """
        if self.hmr_draws:
            low, high = self.scale
            shift, normal = np.clip(rng.normal(0, 1, 2), -1, 1), np.clip(rng.normal(), -1, 1)
            turn = np.clip(rng.normal(), -2, 2) * (rng.random() < 0.6)
            return (shift * self.center_jitter, (low + high + (high - low) * normal) / 2,
                    float(np.deg2rad(turn * self.rotation)))
        shift = rng.uniform(-self.center_jitter, self.center_jitter, 2)
        return shift, rng.uniform(*self.scale), self.draw_roll(rng)

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
    # HMR2.0: SCALE .3, ROT 30, TRANS .02, FLIP .5, COLOR 20 %, extreme crops 10 %
    "official_hmr": Augmentation(center_jitter=0.02, scale=(0.7, 1.3), rotation=30.0, flip=0.5,
                                 extreme=0.1, hmr_draws=True, gain=(0.8, 1.2)),
    # HaMeR: the same but for flips and extreme crops, of a box twice as large as the hand's
    "official_hamer": Augmentation(center_jitter=0.04, scale=(1.4, 2.6), rotation=30.0,
                                   hmr_draws=True, gain=(0.8, 1.2)),
    "rendered_bodies": Augmentation(center_jitter=0.02, scale=(0.9, 1.1), rotation=8.0, flip=0.5,
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


# First words: independent streams of random numbers.
AUGMENTING, RENDERING, NOISE, RENDERING_BODIES, RENDERING_PEOPLE, DETAILS, MIXING = range(7)


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
    side: int = 1  # 1 right, 0 left


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


class KeyedDataset(Dataset):
    """What all data sets share: splits, keys, epochs, random numbers, tensors."""

    def __init__(self, split: str, splits: Sequence[str], seed: int) -> None:
        if split not in splits:
            raise ValueError(f"unknown split {split!r}: expected one of {', '.join(splits)}")
        if seed < 0:
            raise ValueError(f"expected seed >= 0, got {seed}")
        self.split, self.seed = split, seed
        self.split_id = list(splits).index(split)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The sample's arrays after the geometric part of the augmentation."""
        raise NotImplementedError

    def finish(self, sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        """The rest of the augmentation, in place."""

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        if key < 0:
            raise IndexError(f"keys count up from 0 (epoch * length + index), got {key}")
        epoch, index = divmod(int(key), len(self))
        rng = random_generator(AUGMENTING, self.seed, self.split_id, epoch, index)
        sample = {"index": np.int64(index)} | self.load(index, rng)
        self.finish(sample, rng)
        return {name: _tensor(value) for name, value in sample.items()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[index] for index in range(len(self)))  # one epoch: keys alone never end


class ImageDataset(KeyedDataset):
    """A data set of square pictures, whose colours the augmentation changes last."""

    def __init__(self, split: str, splits: Sequence[str], size: int, seed: int,
                 augmentation: str | Augmentation | None) -> None:
        super().__init__(split, splits, seed)
        if size < 16:
            raise ValueError(f"expected size >= 16, got {size}")
        self.size, self.augmentation = size, find_augmentation(augmentation)

    def finish(self, sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        if self.augmentation is not None:
            sample["image"] = self.augmentation.recolor(sample["image"], rng)


class HandDataset(ImageDataset):
    """A data set of hands, right ones after any mirroring."""

    def finish(self, sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        super().finish(sample, rng)
        sample.setdefault("side", np.int64(1))
        if self.augmentation is not None and not sample["keypoints_valid"][[0, 9]].any():
            sample["mesh_valid"] = 0.0  # official: no 3-D loss, wrist and knuckle are out


def _tensor(value: np.ndarray | float) -> Tensor:
    array = np.asarray(value)
    kept = array.dtype in (np.uint8, np.int64)
    return torch.from_numpy(np.array(array, array.dtype if kept else np.float32, order="C"))


# ------------------------------------------------------------------------------ packed files


def fingerprint(settings: dict) -> str:
    """Sixteen hexadecimal digits that change with any of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def open_packed(path: Path, dtype: np.dtype, length: int | None) -> np.ndarray | None:
    """The memory-mapped records (length,) of a complete file, else None; length None is any."""
    try:
        records = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    expected = records.shape[:1] if length is None else (length,)
    return records if records.dtype == dtype and records.shape == expected else None


def build_packed(path: Path, dtype: np.dtype, length: int | None,
                 fill: Callable[..., Iterator[np.ndarray] | None]) -> np.ndarray:
    """Memory-map `path`, building it first with `fill(records)` unless it is complete.

    With length None the records are those that `fill()` yields, however many they are. Readers
    never see half a file: it is written beside its place and renamed. Of several processes that
    ask at once one builds and the others wait; a killed builder's lock dies with it.
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
    with lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if open_packed(path, dtype, length) is None:  # nobody finished it while we waited
            needed = dtype.itemsize * (length or 0)
            if shutil.disk_usage(path.parent).free < 1.05 * needed:  # a full disk kills by SIGBUS
                raise ValueError(f"{path.parent} has no room for {needed / 1e9:.1f} GB: "
                                 "give cache=FOLDER elsewhere")
            try:
                if length is None:
                    write_records(temporary, dtype, fill())
                else:
                    records = np.lib.format.open_memmap(temporary, "w+", dtype, (length,))
                    fill(records)
                    records.flush()  # to the disk
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    return open_packed(path, dtype, length)


def write_records(path: Path, dtype: np.dtype, chunks: Iterable[np.ndarray]) -> None:
    """A .npy file of all records of the chunks, of which one at a time is in memory."""
    count = 0
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_2_0(file, header | {"shape": (0,)})
        for chunk in chunks:
            file.write(chunk.tobytes())
            count += len(chunk)
        file.seek(0)  # numpy leaves room in the header for any number of records
        np.lib.format.write_array_header_2_0(file, header | {"shape": (count,)})
        file.flush()
        os.fsync(file.fileno())


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


# ---------------------------------------------------------------------- body poses and views

SMPL_JOINTS, SMPL_KEYPOINTS = bodymodels.JOINT_SETS["smpl24"], bodymodels.JOINT_SETS["smpl45"]
TEST_CLIPS = ("dance_b", "getup_faceup", "kick", "run", "turn_right1")  # of motion.npz
NEAR_DUPLICATE = 0.1  # rad: a frame has a joint at least so far from its like in each other frame
Y_UP_TO_CAMERA = np.diag([1.0, -1, -1])  # a body that faces +z then faces the camera
Z_UP_TO_CAMERA = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
LIMBS = tuple(
    [index for index, name in enumerate(SMPL_JOINTS) if re.search(pattern, name)]
    for pattern in ("hip|knee|ankle|foot", "left_(collar|shoulder|elbow|wrist|hand)",
                    "right_(collar|shoulder|elbow|wrist|hand)"))
# Standard deviations in radians. Wrists, collars and toes never move in the clips.
JOINT_NOISE = {"wrist": 0.25, "collar": 0.08, "neck": 0.12, "head": 0.12, "foot": 0.1}
OTHER_NOISE = 0.03


@cache
def motion_frames(split: str, lean: float = 180.0) -> np.ndarray:
    """Poses (N, 24, 3) of a split's clips, axis-angle, y up, then their mirror images.

    lean: degrees, the most that the pelvis leans from upright; 180 keeps somersaults too.

    The clips of `assets/motion.npz` are divided as wholes. Of frames that hardly differ the first
    stays. All are turned about the vertical until they face +z, as nearly as they can.
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
    """Root orientations (N, 3, 3), y up, without the part of the turn that is about y."""
    w, _, y, _ = bodymodels.matrix_to_quaternion(roots).unbind(1)
    turn = torch.zeros(len(roots), 3, dtype=roots.dtype)
    turn[:, 1] = -2 * torch.atan2(y, w)
    return bodymodels.axis_angle_to_matrix(turn) @ roots


def sample_body_pose(rng: np.random.Generator, split: str, views: float = 180.0,
                     lean: float = 180.0) -> np.ndarray:
    """A plausible body: SMPL rotations (24, 3, 3), the root's in an upright camera's frame.

    Half are frames of the split's clips, the other half have legs, left arm or right arm of other
    frames; noise moves all joints but the root, most where the clips are still. The body faces
    the camera and is then turned about the vertical by up to +- `views` degrees. lean: see
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
    """A body shape (10,) of our free models."""
    return np.clip(rng.standard_normal(10), -2.5, 2.5)


class MotionPoses(KeyedDataset):
    """Body poses without pictures, from the free motion clips: all that a pose tokenizer needs.

    A sample is {"pose": (24, 3, 3) rotations, "betas": (10,), "index": ()}; every epoch brings
    other poses. The root is in the frame of a camera that stands upright: tilting it is left to
    the training's augmentation. split: "train" or "test", of different clips. views: see
    `sample_body_pose`.
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


# -------------------------------------------------------------------- recorded body motion


class MotionCapture(KeyedDataset):
    """What AMASS and MOYO share: files of recorded motion, read once into a packed file.

    A sample is that of MotionPoses. Recordings are z up; the root is turned into the frame of an
    upright camera and keeps its heading. Only poses transfer exactly from SMPL-H and SMPL-X to
    SMPL: betas, the files' first ten, mean a different shape there.

    trim, stride: the share of each sequence dropped at both ends, and every how many of the other
    frames one is taken; the defaults are TokenHMR's, GenHMR does not tell. hands: SMPL's joints
    left_hand and right_hand are "still", or turn with the "index" finger, as AMASS's own tools
    have it. cache: folder for the packed file (0.33 kB a frame), `root` by default; it is made
    again when the files change.
    """

    DTYPE = np.dtype([("pose", np.float32, (24, 3)), ("betas", np.float32, 10)])
    SPLITS: tuple[str, ...]

    def __init__(self, root: str | os.PathLike, split: str, trim: float, stride: int, hands: str,
                 seed: int, cache: str | os.PathLike | None, progress: bool) -> None:
        super().__init__(split, self.SPLITS, seed)
        if not 0 <= trim < 0.5 or stride < 1 or hands not in ("still", "index"):
            raise ValueError("expected trim in 0..0.5, a stride of 1 or more and hands still or "
                             f"index, got {trim}, {stride} and {hands!r}")
        self.root, self.trim, self.stride, self.hands = Path(root), trim, stride, hands
        self.progress = progress
        self.files = self.find_files()
        marks = {path.relative_to(self.root).as_posix(): (path.stat().st_size,
                                                          path.stat().st_mtime_ns)
                 for path in self.files}
        name = fingerprint({"files": marks, "trim": trim, "stride": stride, "hands": hands})
        self.path = ((self.root if cache is None else Path(cache))
                     / f"{type(self).__name__.lower()}_{split}_{name}.npy")
        self._packed: np.ndarray | None = None
        if not len(self._records()):
            raise ValueError(f"the {len(self.files)} files of {self.root}, split {split}, have no "
                             f"frame left with trim={trim} and stride={stride}")

    def find_files(self) -> list[Path]:
        """The split's recordings, in an order that is always the same."""
        raise NotImplementedError

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """One recording: SMPL poses (T, 24, 3), axis-angle, and betas (10,) or (T, 10)."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._records())

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}  # workers map the file themselves

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self._records()[index]
        pose = torch.from_numpy(record["pose"].astype(np.float64))
        rotations = bodymodels.axis_angle_to_matrix(pose).numpy()
        rotations[0] = Z_UP_TO_CAMERA @ rotations[0]
        return {"pose": rotations, "betas": record["betas"]}

    def _records(self) -> np.ndarray:
        if self._packed is None:
            self._packed = build_packed(self.path, self.DTYPE, None, self._gather)
        return self._packed

    def _gather(self) -> Iterator[np.ndarray]:
        bar = tqdm(self.files, f"Packing {self.path.name}", disable=not self.progress)
        return (self._excerpt(path) for path in bar)

    def _excerpt(self, path: Path) -> np.ndarray:
        poses, betas = self.read(path)
        kept = slice(int(self.trim * len(poses)), int((1 - self.trim) * len(poses)), self.stride)
        records = np.zeros(len(poses[kept]), self.DTYPE)
        records["pose"] = poses[kept]
        records["betas"] = betas[kept] if betas.ndim == 2 else betas
        if self.hands == "still":
            records["pose"][:, 22:] = 0
        if not np.isfinite(records["pose"]).all() or not np.isfinite(records["betas"]).all():
            raise ValueError(f"{path} has poses or betas that are not finite: copy it again, or "
                             "take it away")
        return records


def smpl_pose(path: Path, poses: np.ndarray) -> np.ndarray:
    """SMPL's 24 joints (T, 24, 3) of SMPL-H's (T, 156) or SMPL-X's (T, 165) axis-angles."""
    joints = {156: "smplh52", 165: "smplx55"}
    if poses.ndim != 2 or poses.shape[1] not in joints:
        raise ValueError(f"{path}: expected poses (T, 156), SMPL-H, or (T, 165), SMPL-X, got "
                         f"{poses.shape}")
    order = bodymodels.joint_indices(joints[poses.shape[1]], "amass24")
    return poses.reshape(len(poses), -1, 3)[:, order]


def first_betas(path: Path, betas: np.ndarray, frames: int) -> np.ndarray:
    """The first ten of betas (N,) or (frames, N), filled up with zeros."""
    if betas.ndim not in (1, 2) or betas.ndim == 2 and len(betas) != frames:
        raise ValueError(f"{path}: expected betas (N,) or ({frames}, N), got {betas.shape}")
    betas = betas[..., :10]
    return np.pad(betas, [(0, 0)] * (betas.ndim - 1) + [(0, 10 - betas.shape[-1])])


class AMASS(MotionCapture):
    """AMASS (Mahmood et al. 2019) in its official layout, the SMPL+H or the SMPL-X download.

    root: the folder with CMU/, KIT/, ... and in them <subject>/<sequence>_poses.npz (SMPL+H) or
    <sequence>_stageii.npz (SMPL-X; ignored beside the same sequence of SMPL+H). Split by data
    set as in TokenHMR; `missing` names what a split has and root has not. subsets: other data sets
    instead, by either release's name; then all must be there. See MotionCapture for the others.
    """

    SPLITS = ("train", "val", "test")
    SUBSETS = {
        "train": ("CMU", "KIT", "BMLrub", "DanceDB", "BMLmovi", "EyesJapanDataset", "BMLhandball",
                  "TotalCapture", "EKUT", "ACCAD", "TCDHands", "PosePrior"),
        "val": ("HumanEva", "HDM05", "SFU", "MoSh"),
        "test": ("Transitions", "SSM"),
    }
    ALIASES = {  # names of earlier releases
        "BMLrub": ("BioMotionLab_NTroje", "BML"), "EyesJapanDataset": ("Eyes_Japan_Dataset",),
        "HDM05": ("MPI_HDM05",), "PosePrior": ("MPI_Limits",), "MoSh": ("MPI_mosh",),
        "SSM": ("SSM_synced",), "Transitions": ("Transitions_mocap",),
        "TCDHands": ("TCD_handMocap",), "DFaust": ("DFaust_67",),
    }

    def __init__(self, root: str | os.PathLike, split: str = "train", *,
                 subsets: Sequence[str] | None = None, trim: float = 0.2, stride: int = 10,
                 hands: str = "still", seed: int = 0, cache: str | os.PathLike | None = None,
                 progress: bool = True) -> None:
        self.subsets = subsets
        self.missing: list[str] = []
        super().__init__(root, split, trim, stride, hands, seed, cache, progress)

    def find_files(self) -> list[Path]:
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {self.root}: expected AMASS there, see "
                                    "amass.is.tue.mpg.de")
        folders = {path.name.lower(): path for path in sorted(self.root.iterdir())
                   if path.is_dir()}
        files: list[Path] = []
        for subset in self.subsets or self.SUBSETS[self.split]:
            found = [folders[name.lower()] for name in self._names(subset)
                     if name.lower() in folders]
            files += [path for folder in found for path in self._sequences(folder)]
            self.missing += [] if found else [subset]
        if self.missing and self.subsets or not files:
            wanted = ", ".join(self.missing if self.missing and self.subsets else
                               self.SUBSETS[self.split])
            raise FileNotFoundError(f"no recordings of {wanted} in {self.root}: expected folders "
                                    "of these names with SUBJECT/SEQUENCE_poses.npz or "
                                    "_stageii.npz in them")
        return files

    def _names(self, subset: str) -> list[str]:
        """A data set's name in each release."""
        known = {name: [name, *self.ALIASES.get(name, ())]
                 for name in (*self.ALIASES, *sum(self.SUBSETS.values(), ()))}
        return next((names for names in known.values()
                     if subset.lower() in (name.lower() for name in names)), [subset])

    @staticmethod
    def _sequences(folder: Path) -> list[Path]:
        """A data set's recordings, without its shape files."""
        found = {str(path).removesuffix(ending): path for ending in ("_stageii.npz", "_poses.npz")
                 for path in folder.glob(f"*/*{ending}")}  # SMPL+H last: it replaces SMPL-X
        return sorted(found.values())

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        try:
            with np.load(path, allow_pickle=False) as arrays:  # other arrays may hold objects
                poses, betas = (np.asarray(arrays[name], np.float64) for name in ("poses", "betas"))
        except Exception as error:  # what a damaged archive raises is nearly anything
            raise ValueError(f"{path} cannot be read as AMASS's .npz with poses and betas "
                             f"({error}): download it again") from error
        return smpl_pose(path, poses), first_betas(path, betas, len(poses))


class MOYO(MotionCapture):
    """MOYO (Tripathi et al. 2023), yoga, in its official layout.

    root: the folder with mosh_smpl/ (SMPL fits) or mosh/ (SMPL-X fits), or the one above it; in
    them train/ and val/ with one .pkl a sequence. The SMPL fits are taken if they are there. One
    subject, whose shape SMPL-X fits do not tell as betas: they are 0. Nothing in a file is
    executed. See MotionCapture for the other arguments; hands="index" keeps an SMPL fit's own.
    """

    SPLITS = ("train", "val")
    LAYOUTS = ("mosh_smpl/{split}/*.pkl", "mosh/{split}/*_stageii.pkl")

    def __init__(self, root: str | os.PathLike, split: str = "train", *, trim: float = 0.1,
                 stride: int = 5, hands: str = "still", seed: int = 0,
                 cache: str | os.PathLike | None = None, progress: bool = True) -> None:
        super().__init__(root, split, trim, stride, hands, seed, cache, progress)

    def find_files(self) -> list[Path]:
        for layout in self.LAYOUTS:
            pattern = layout.format(split=self.split)
            files = [*self.root.glob(pattern), *self.root.glob(f"*/{pattern}")]
            if files:
                return sorted(files)
        wanted = " or ".join(layout.format(split=self.split) for layout in self.LAYOUTS)
        raise FileNotFoundError(f"no {wanted} in {self.root}: expected MOYO there, see "
                                "moyo.is.tue.mpg.de")

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        arrays = bodymodels.load_arrays(path)
        try:
            if "fullpose" in arrays:
                poses = smpl_pose(path, np.asarray(arrays["fullpose"], np.float64))
            else:
                root, body = (np.asarray(arrays[name], np.float64).reshape(-1, width)
                              for name, width in (("global_orient", 3), ("body_pose", 69)))
                poses = np.concatenate([root, body], 1).reshape(-1, 24, 3)
            betas = np.asarray(arrays["betas"], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no recording of MOYO ({error}): expected fullpose "
                             "(T, 165), or global_orient (T, 3) and body_pose (T, 69), and betas"
                             ) from error
        return poses, first_betas(path, betas, len(poses))


class Joined(KeyedDataset):
    """Data sets of one split, one after the other, as one: AMASS and MOYO, for example."""

    def __init__(self, datasets: Sequence[KeyedDataset]) -> None:
        if not datasets:
            raise ValueError("expected at least one data set to join")
        super().__init__(datasets[0].split, [datasets[0].split], datasets[0].seed)
        self.datasets = list(datasets)
        self.ends = np.cumsum([len(dataset) for dataset in datasets])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        if key < 0:
            raise IndexError(f"keys count up from 0 (epoch * length + index), got {key}")
        epoch, index = divmod(int(key), len(self))
        number = int(np.searchsorted(self.ends, index, side="right"))
        dataset = self.datasets[number]
        own = index - int(self.ends[number]) + len(dataset)
        return dataset[epoch * len(dataset) + own] | {"index": torch.tensor(index)}


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
    """Colours (V, 3) of the vertices of a hand with its skin or sleeve, lit."""
    normals = bodymodels.vertex_normals(surface, hand_surface().faces)
    return light(rng, surface, normals, _skin(rng, len(surface)))


def light(rng: np.random.Generator, surface: np.ndarray, normals: np.ndarray,
          albedo: np.ndarray) -> np.ndarray:
    """Colours (V, 3) of a surface's vertices: a key light, ambient light, a highlight."""
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


def random_skin(rng: np.random.Generator) -> np.ndarray:
    """A skin colour (3,) between two of SKIN_TONES."""
    tone = rng.uniform(0, len(SKIN_TONES) - 1)
    base = SKIN_TONES[int(tone)] + (tone % 1) * (SKIN_TONES[int(tone) + 1]
                                                 - SKIN_TONES[int(tone)])
    return base * (1 + rng.normal(0, 0.05, 3))


def _skin(rng: np.random.Generator, count: int) -> np.ndarray:
    """Albedo (count, 3): a skin tone, lighter palms, redder tips, blotches; perhaps a sleeve."""
    hand = hand_surface()
    base = random_skin(rng)
    lighter = np.clip(base * 1.1 + (0.06, 0.03, 0.03), 0, 1)
    skin = base + rng.uniform(0, 1) * hand.palmar * (lighter - base)
    skin = skin + rng.uniform(0, 1) * hand.tip * (0.06, -0.03, -0.02)
    waves = np.cos(hand.template @ rng.normal(0, 120, (3, 4)) + rng.uniform(0, 6.3, 4))
    skin = skin * (1 + rng.uniform(0, 0.06) * waves.mean(1, keepdims=True))
    arm = random_color(rng) if rng.random() < 0.5 else base
    return np.concatenate([skin, np.broadcast_to(arm, (count - NUM_VERTICES, 3))])


def paint_hand(image: np.ndarray, scene: Scene, colors: np.ndarray) -> None:
    """Draw the shaded hand into a picture (S, S, 3) of float32 0..255, in place."""
    paint_surface(image, scene.surface, hand_surface().faces, scene.K, colors)


def project_surface(surface: np.ndarray, K: np.ndarray) -> np.ndarray:
    """What `rasterize` wants of points (V, 3): their pixels and their depth (V, 3)."""
    z = surface[:, 2:]
    return np.concatenate([surface[:, :2] / z * K[0, 0] + K[:2, 2], z], 1)


def paint_surface(image: np.ndarray, surface: np.ndarray, faces: np.ndarray, K: np.ndarray,
                  colors: np.ndarray) -> np.ndarray:
    """Draw a closed surface (V, 3) into float32 0..255, in place; its depth (S, S) in metres."""
    size, pixels = len(image), project_surface(surface, K)
    beyond = np.concatenate([pixels[:, :2] < 0, pixels[:, :2] > size], 1)  # each of the 4 borders
    beyond = np.packbits(beyond, 1).ravel()[faces.T]
    faces = faces[beyond[0] & beyond[1] & beyond[2] == 0]
    x, y = pixels[:, 0][faces.T], pixels[:, 1][faces.T]
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    faces = faces[area < 0]  # outside faces turned to the camera; the surface is closed
    face_ids, barycentric, depth = bodymodels.rasterize(pixels, faces, (size, size))
    drawn = np.flatnonzero(face_ids >= 0)
    corners = (255 * colors).astype(np.float32)[faces].take(face_ids.ravel()[drawn], 0)
    weights = barycentric.reshape(-1, 3)[drawn]
    image.reshape(-1, 3)[drawn] = np.einsum("pk,pkc->pc", weights, corners)  # (pixels, 3)
    return depth


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


def occlude(rng: np.random.Generator, picture: Image.Image) -> None:
    """Draw one or two shapes over a third of the pictures."""
    if rng.random() < 0.35:
        occluder = ImageDraw.Draw(picture)
        for _ in range(int(rng.integers(1, 3))):
            draw_shape(occluder, rng, picture.width, rng.uniform(0, 1, 2), rng.uniform(0.04, 0.18))


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


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Rendered:
    """For data sets whose pictures are rendered: on the fly, or once, into a packed file.

    What inherits has split, seed and length, a dtype of records, and `render(index)`.
    """

    LENGTHS: dict[str, int]  # of each split, by default
    path: Path | None = None
    _packed: np.ndarray | None = None

    def open_cache(self, cache: str | os.PathLike | None, kind: str, settings: dict,
                   progress: bool) -> None:
        """Find or build the packed file in the folder `cache`; its name holds the settings."""
        if cache is not None:
            name = f"{kind}_{self.split}_{self.size}_{fingerprint(settings)}.npy"
            self.path = Path(cache) / name
            build_packed(self.path, self.dtype, self.length, lambda out: self._fill(out, progress))

    def __len__(self) -> int:
        return self.length

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}  # workers map the file themselves

    def record(self, index: int) -> np.ndarray:
        """A packed record, from the cache if there is one."""
        if self.path is None:
            return self.render(index)
        if self._packed is None:
            self._packed = build_packed(self.path, self.dtype, self.length,
                                        lambda out: self._fill(out, False))
        return self._packed[index]

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


class RenderedHands(Rendered, HandDataset):
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
        settings = {name: getattr(self, name) for name in
                    ("split", "size", "length", "seed", "views", "in_plane", "sides")}
        self.open_cache(cache, "rendered_hands", settings | {"version": RENDER_VERSION}, progress)

    def render(self, index: int) -> np.ndarray:
        """The packed record of one sample, made from nothing but seed, split and index."""
        rng = random_generator(RENDERING, self.seed, self.split_id, index)
        scene = sample_scene(rng, self.size, self.views, self.in_plane, self.sides)
        image = paint_background(rng, self.size).astype(np.float32)
        paint_hand(image, scene, shade(rng, scene.surface))
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        occlude(rng, picture)
        record = np.zeros((), self.dtype)
        record["image"] = develop(rng, picture)
        record["K"], record["joints"] = scene.K, scene.joints
        record["vertices"] = scene.surface[:NUM_VERTICES]
        projected = scene.joints @ scene.K.T
        record["keypoints_2d"] = projected[:, :2] / projected[:, 2:]
        return record

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


# --------------------------------------------------------------------------- rendered bodies

BODY_RENDER_VERSION = 1  # count up whenever the same settings would give other pictures
BODY_FOCAL = 5000 / 256  # GenHMR's and HMR2.0's: 5000 pixels for a crop of 256
SEEN_WIDTH = 0.75  # of the crop: GenHMR's and HMR2.0's encoder leaves out an eighth on each side
HAIR_COLORS = np.array([[0.05, 0.04, 0.04], [0.16, 0.10, 0.07], [0.33, 0.21, 0.12],
                        [0.72, 0.56, 0.33], [0.45, 0.18, 0.08], [0.55, 0.54, 0.53]])
SLEEVES = (0.2, 0.24, 0.38, 0.42, 0.5, 0.66, 0.68, 0.7)  # m from the middle, arms outstretched
HEMS = (-0.42, -0.55, -0.62, -0.85, -1.02, -1.04, -1.06, -1.08)  # m, shorts to long trousers
BODY_PARTS = {  # what the box of a truncated picture holds: its keypoints, how often
    "above the knees": (r"^(?!.*(ankle|foot|toe|heel))", 0.3),
    "above the hips": (r"^(?!.*(knee|ankle|foot|toe|heel))", 0.3),
    "head and shoulders": (r"head|neck|shoulder|nose|eye|ear", 0.1),
    "torso": (r"pelvis|hip|spine|shoulder|neck", 0.1),
    "legs": (r"hip|knee|ankle|foot|toe|heel", 0.08),
    "left side": (r"left|spine|neck", 0.06),
    "right side": (r"right|spine|neck", 0.06),
}


def draw_body_part(rng: np.random.Generator, names: Sequence[str] = SMPL_KEYPOINTS) -> list[int]:
    """The keypoints (indices of `names`) of one of BODY_PARTS."""
    patterns, chances = zip(*BODY_PARTS.values(), strict=True)
    pattern = patterns[rng.choice(len(patterns), p=chances)]
    return [index for index, name in enumerate(names) if re.search(pattern, name)]


def body_box(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre (2,) and side of a square crop of points (N, 2) in which the encoder sees them all."""
    center, (width, height) = keypoint_box(points)
    return center, max(height, width / SEEN_WIDTH)


class BodySurface:
    """A free body ("body" or "wholebody"): where on its template skin, hair and clothes are."""

    def __init__(self, name: str) -> None:
        self.model = bodymodels.load_model(name)
        self.faces = self.model.faces.numpy()
        self.template = self.model.v_template.numpy().astype(np.float64)
        x, y, z = self.template.T
        weights = self.model.skinning_weights.numpy().astype(np.float64)  # (K, V)
        self.head, self.arm = (
            weights[[i for i, joint in enumerate(self.model.joint_names)
                     if re.search(parts, joint)]].sum(0)
            for parts in ("neck|head|jaw|eyeball",
                          "shoulder|elbow|wrist|hand|thumb|index|middle|ring|pinky"))
        self.reach = np.where(self.arm > 0.3, np.abs(x), 0)  # along the arms, from the middle
        nose, right_eye, left_eye = self.template[list(self.model.surface_vertex_ids[:3])]
        self.eyes = _spot(self.template, left_eye, 0.012) + _spot(self.template, right_eye, 0.012)
        mouth = nose - (0, 0.045, 0.015)
        self.mouth = _spot((self.template - mouth) * (0.5, 1.5, 1), np.zeros(3), 0.012)
        self.jaw = (y < nose[1] - 0.01) & (z > nose[2] - 0.1) & (self.head > 0.5)
        self.forehead = (y - nose[1] + 0.05) - 0.9 * (z - nose[2] + 0.14)  # positive: hair

    def pose(self, *parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vertices (V, 3) and keypoints (45 or 76, 3) from betas, rotations and any expression.

        Always one sample at a time, float32: a batched product may round differently, and the
        same sample must come out bit for bit.
        """
        with torch.inference_mode():
            output = self.model(*(torch.from_numpy(array)[None] for array in parameters))
            return output.vertices[0].numpy(), self.model.keypoints(output)[0].numpy()


def _spot(points: np.ndarray, center: np.ndarray, radius: float) -> np.ndarray:
    return np.exp(-np.square((points - center) / radius).sum(1))


@cache
def body_surface(name: str = "body") -> BodySurface:
    return BodySurface(name)


class BodyScene(NamedTuple):
    """A body in the frame of its crop's camera."""

    surface: np.ndarray  # (V, 3) metres
    keypoints: np.ndarray  # (45 or 76, 3) metres
    K: np.ndarray  # (3, 3) pixels
    pose: np.ndarray  # (24 or 55, 3, 3)
    betas: np.ndarray  # (10,)
    transl: np.ndarray  # (3,) metres
    expression: np.ndarray | None = None  # (10,) of a whole body


def body_camera(size: int) -> np.ndarray:
    """The intrinsics (3, 3) of every crop: a long, fixed focal length, as the papers have it."""
    focal = BODY_FOCAL * size
    return np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])


def sample_body_scene(rng: np.random.Generator, split: str, size: int, views: float,
                      lean: float) -> BodyScene:
    """A posture, and a detector-like box around all of it or a part."""
    pose, betas = sample_posture(rng, split, views, lean)
    vertices, keypoints = body_surface().pose(betas, pose)
    transl = sample_transl(rng, vertices, keypoints, SMPL_KEYPOINTS)
    return BodyScene(vertices + transl, keypoints + transl, body_camera(size), pose, betas, transl)


def sample_posture(rng: np.random.Generator, split: str, views: float, lean: float = 180.0
                   ) -> tuple[np.ndarray, np.ndarray]:
    """Pose (24, 3, 3) and betas (10,), float32, seen by a camera a little above or below."""
    pose, betas = sample_body_pose(rng, split, views, lean), sample_betas(rng)
    pitch, roll = np.clip(rng.normal((0.1, 0), (0.2, 0.08)), -0.6, 0.6)
    cos, sin = np.cos(pitch), np.sin(pitch)
    tilt = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    pose[0] = _roll_and_mirror(roll, False) @ tilt @ pose[0]
    return pose.astype(np.float32), betas.astype(np.float32)


def sample_transl(rng: np.random.Generator, vertices: np.ndarray, keypoints: np.ndarray,
                  names: Sequence[str]) -> np.ndarray:
    """Where the body stands (3,), so that a detector-like box, some truncated, is the crop."""
    visible = vertices if rng.random() < 0.8 else keypoints[draw_body_part(rng, names)]
    center, side = body_box(visible[:, :2].astype(np.float64))
    side *= rng.uniform(1.05, 1.35)
    center = center + rng.uniform(-0.06, 0.06, 2) * side
    return np.array([*-center, BODY_FOCAL * side]).astype(np.float32)


class Outfit(NamedTuple):
    """What a body's surface is made of."""

    albedo: np.ndarray  # (V, 3)
    thickness: np.ndarray  # (V,) metres of cloth and hair on the skin


def sample_outfit(rng: np.random.Generator, name: str = "body") -> Outfit:
    """Skin with a face and hair, then shirt, trousers or dress, and shoes, each of random cut."""
    body = body_surface(name)
    y, z = body.template[:, 1], body.template[:, 2]
    albedo = _face(rng, random_skin(rng), body)
    if name == "wholebody":  # whose hands are seen from near
        _tint_hands(rng, albedo)
    thickness = np.zeros(len(y))

    def wear(mask: np.ndarray, color: np.ndarray, thick: float) -> None:
        albedo[mask] = color * _cloth(rng, body.template[mask])
        thickness[mask] = thick

    waist, hem = rng.uniform(-0.28, -0.1), rng.choice(HEMS)
    clothes = random_color(rng)
    wear((y < waist) & (y > hem), random_color(rng), rng.uniform(0, 0.015))
    if rng.random() < 0.85:
        wear(y < rng.uniform(-1.1, -1.04), random_color(rng), rng.uniform(0, 0.01))
    if rng.random() < 0.1:
        waist = rng.uniform(-0.8, -0.35)  # a dress
    neckline, scoop = rng.uniform(0.295, 0.34), rng.uniform(0, 0.14)
    low_neck = neckline - scoop * np.clip(z / 0.1, 0, 1) * np.exp(-np.square(
        body.template[:, 0] / 0.07))
    wear((y > waist) & (y < low_neck) & (body.reach < rng.choice(SLEEVES)), clothes,
         rng.uniform(0, 0.015))
    if rng.random() < 0.93:
        length = rng.uniform(0, 0.25) * (rng.random() < 0.4)
        hair = (body.forehead > 0) & (y > 0.36) | (z < 0.01) & (body.arm < 0.1) & (
            y > 0.36 - length) & (np.abs(body.template[:, 0]) < 0.1)
        wear(hair & (y > 0.1), _hair_color(rng), rng.uniform(0, 0.02))
    return Outfit(albedo, thickness)


def _face(rng: np.random.Generator, skin: np.ndarray, body: BodySurface) -> np.ndarray:
    """Albedo (V, 3) of a bare body: darker eyes, redder mouth, perhaps a beard."""
    albedo = np.tile(skin, (len(body.template), 1))
    albedo *= 1 - rng.uniform(0.4, 0.9) * np.minimum(body.eyes, 1)[:, None]
    albedo *= 1 - body.mouth[:, None] * rng.uniform(0, 1) * np.array([0.1, 0.5, 0.5])
    if rng.random() < 0.15:
        albedo[body.jaw] = 0.4 * albedo[body.jaw] + 0.6 * _hair_color(rng)
    return albedo


def _hair_color(rng: np.random.Generator) -> np.ndarray:
    return np.clip(HAIR_COLORS[rng.integers(len(HAIR_COLORS))] * rng.uniform(0.7, 1.3), 0, 1)


def _cloth(rng: np.random.Generator, template: np.ndarray) -> np.ndarray:
    """Factors (N, 1) of a garment's colour at template points (N, 3): folds, perhaps stripes."""
    waves = np.cos(template @ rng.normal(0, 40, (3, 4)) + rng.uniform(0, 6.3, 4)).mean(1)
    factor = 1 + rng.uniform(0, 0.15) * waves
    if rng.random() < 0.25:
        direction = rng.choice((0, 1, 1, 2))
        phase = template[:, direction] / rng.uniform(0.05, 0.16) + rng.random()
        factor *= np.where(phase % 1 < rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.9), 1)
    return factor[:, None]


def paint_body(image: np.ndarray, scene: BodyScene, rng: np.random.Generator) -> None:
    """Dress the body, light it, and draw it into a picture (S, S, 3) of float32 0..255."""
    surface, colors = dress(rng, scene, "body")
    paint_surface(image, surface, body_surface().faces, scene.K, colors)


def dress(rng: np.random.Generator, scene: BodyScene, name: str
          ) -> tuple[np.ndarray, np.ndarray]:
    """The clothed surface (V, 3) of a scene's body and its lit colours (V, 3)."""
    outfit = sample_outfit(rng, name)
    normals = bodymodels.vertex_normals(scene.surface, body_surface(name).faces)
    surface = scene.surface + normals * outfit.thickness[:, None]
    return surface, light(rng, surface, normals, outfit.albedo)


class RenderedBodies(Rendered, ImageDataset):
    """Pictures of the free body in clothes, rendered on the fly: no download, exact labels.

    One sample; S is the crop's side, keypoints are in smpl45 order:

        image            (3, S, S)   uint8    RGB
        K                (3, 3)      float32  intrinsics of the crop, in its pixels
        pose             (24, 3, 3)  float32  SMPL rotations, the root's in the camera's frame
        betas            (10,)       float32  shape of the free body
        transl           (3,)        float32  metres: keypoints_3d are the body model's plus this
        keypoints_3d     (45, 3)     float32  metres, the crop's camera frame
        keypoints_2d     (45, 2)     float32  crop pixels
        keypoints_valid  (45,)       float32  1 inside the crop
        pose_valid, betas_valid (), keypoints_3d_valid (45,)  float32  1: all is known here
        index            ()          int64    index within the split

    Without augmentation K is the papers' camera, 5000 pixels of focal length for a crop of 256;
    recipes that zoom or shift change K, so that it stays exact. A fifth of the boxes hold only a
    part of the body. split: "train" or "test", of different clips and random numbers. views, lean:
    see `sample_body_pose`. length and cache: as for RenderedHands; 3 S^2 + 1.9 kB a sample.
    """

    LENGTHS = {"train": 40_000, "test": 1_000}
    KNOWN = {"pose_valid": 1.0, "betas_valid": 1.0,
             "keypoints_3d_valid": np.ones(len(SMPL_KEYPOINTS))}

    def __init__(self, split: str = "train", size: int = 128, *, length: int | None = None,
                 seed: int = 0, views: float = 180.0, lean: float = 180.0,
                 augmentation: str | Augmentation | None = None,
                 cache: str | os.PathLike | None = None, progress: bool = True) -> None:
        super().__init__(split, tuple(self.LENGTHS), size, seed, augmentation)
        self.length = self.LENGTHS[split] if length is None else length
        if self.length < 1 or not 0 <= views <= 180 or not 30 <= lean <= 180:
            raise ValueError("expected a positive length, views in 0..180 and lean in 30..180 "
                             f"degrees, got {self.length}, {views} and {lean}")
        self.views, self.lean, count = float(views), float(lean), len(SMPL_KEYPOINTS)
        self.dtype = np.dtype([
            ("image", np.uint8, (size, size, 3)), ("K", np.float32, (3, 3)),
            ("pose", np.float32, (24, 3, 3)), ("betas", np.float32, 10),
            ("transl", np.float32, 3), ("keypoints_3d", np.float32, (count, 3)),
            ("keypoints_2d", np.float32, (count, 2))])
        settings = {name: getattr(self, name)
                    for name in ("split", "size", "length", "seed", "views", "lean")}
        self.open_cache(cache, "rendered_bodies", settings | {"version": BODY_RENDER_VERSION},
                        progress)

    def render(self, index: int) -> np.ndarray:
        """The packed record of one sample, made from nothing but seed, split and index."""
        rng = random_generator(RENDERING_BODIES, self.seed, self.split_id, index)
        scene = sample_body_scene(rng, self.split, self.size, self.views, self.lean)
        image = paint_background(rng, self.size).astype(np.float32)
        paint_body(image, scene, rng)
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        occlude(rng, picture)
        record = np.zeros((), self.dtype)
        record["image"] = develop(rng, picture)
        for name in ("K", "pose", "betas", "transl"):
            record[name] = getattr(scene, name)
        record["keypoints_3d"] = scene.keypoints
        projected = scene.keypoints @ scene.K.T
        record["keypoints_2d"] = projected[:, :2] / projected[:, 2:]
        return record

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self.record(index)
        sample = {name: record[name] for name in self.dtype.names}
        if self.augmentation is not None and self.augmentation.moves:
            sample = augment_body(sample, self.augmentation, rng)
        else:
            sample["image"] = sample["image"].transpose(2, 0, 1)
        valid = inside(sample["keypoints_2d"], self.size, self.size)
        return sample | self.KNOWN | {"keypoints_valid": valid}


def augment_body(sample: dict[str, np.ndarray], recipe: Augmentation,
                 rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Crop the picture (S, S, 3) of a body anew, as the recipe says, and move its labels along."""
    size = len(sample["image"])
    homography, roll, mirror = draw_crop(rng, recipe, size, sample["keypoints_2d"], SMPL_KEYPOINTS)
    image = warp(sample["image"], homography, size).transpose(2, 0, 1)
    return move_body(sample, homography, roll, mirror) | {"image": image}


def draw_crop(rng: np.random.Generator, recipe: Augmentation, size: int, keypoints: np.ndarray,
              names: Sequence[str], box: tuple[np.ndarray, float] | None = None,
              known: np.ndarray | None = None) -> tuple[np.ndarray, float, bool]:
    """A new crop of a body's picture: its homography, and the roll and mirror in it.

    box: centre and side of the crop before (default: of a whole picture, size x size); known: of
    the keypoints (default: all), of which a part of the body needs three.
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
    """The sample's labels after `crop_homography` with this roll and mirror, still exact.

    The camera turns about its axis, which turns the body about that axis in the camera's frame;
    what shifts and zooms goes into K. A mirrored body has left and right exchanged; there pose and
    betas tell the keypoints to millimetres only, as shapes are not quite symmetric.
    """
    turn = _roll_and_mirror(roll, False)
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
    camera = homography @ sample["K"] @ np.linalg.inv(_roll_and_mirror(roll, mirror))
    return sample | {"pose": pose, "keypoints_3d": keypoints, "keypoints_2d": keypoints_2d,
                     "K": camera, "transl": keypoints[0] - rest_root}


# --------------------------------------------------------------------------- rendered people

PEOPLE_RENDER_VERSION = 1  # count up whenever the same settings would give other pictures
SMPLX_JOINTS, SMPLX_KEYPOINTS = bodymodels.JOINT_SETS["smplx55"], bodymodels.JOINT_SETS["smplx76"]
HANDS = ("right", "left")  # the order of everything that a sample holds once per hand
ARMS, HAND_JOINTS, HAND_KEYPOINTS = (  # (2, 8) and (2, 16) joints, (2, 21) keypoints
    [bodymodels.joint_indices(source, target(side)) for side in HANDS]
    for source, target in (
        ("smplx55", lambda side: f"{side}_arm08"),
        ("smplx55", lambda side: [f"{side}_{name}" for name in bodymodels.JOINT_SETS["mano16"]]),
        ("smplx76", lambda side: f"{side}_hand21")))
HAND_MARGIN = 2.0  # HaMeR's: the crop is so many times as large as the keypoints' box
FINE = 2  # times the picture's resolution the background has, for the hands' crops


class Occluder(NamedTuple):
    """A shape in front of the body, the same in every view."""

    center: np.ndarray  # (2,) pixels of the picture
    radius: float  # pixels of the picture
    seed: int  # of its kind, colour and form


class View(NamedTuple):
    """A square part of a picture at its own resolution."""

    homography: np.ndarray  # (3, 3) picture's pixels -> view's pixels; scales and shifts only
    size: int  # pixels


def sample_person(rng: np.random.Generator, split: str, size: int, views: float,
                  lean: float = 180.0) -> BodyScene:
    """A posture with articulated hands and a face, before the camera as `sample_body_scene` does.

    The fingers of both hands are drawn independently by `sample_hand_pose`, left ones as mirror
    images. The jaw opens a little, the eyes look straight ahead.
    """
    posture, betas = sample_posture(rng, split, views, lean)
    pose = np.tile(np.eye(3, dtype=np.float32), (len(SMPLX_JOINTS), 1, 1))
    pose[:22] = posture[:22]  # SMPL's hands are SMPL-X's wrists
    angles = np.stack([sample_hand_pose(rng), sample_hand_pose(rng),  # (3, 15, 3)
                       np.zeros((15, 3))])
    angles[2, 0, 0] = min(rng.exponential(0.1), 0.35)  # jaw
    fingers = bodymodels.axis_angle_to_matrix(torch.from_numpy(angles))
    fingers[1] = bodymodels.mirror_matrix(fingers[1])
    for joints, rotations in zip(HAND_JOINTS, fingers[:2].numpy(), strict=True):
        pose[joints[1:]] = rotations
    pose[SMPLX_JOINTS.index("jaw")] = fingers[2, 0]
    expression = np.clip(rng.normal(0, 0.7, 10), -2, 2).astype(np.float32)
    vertices, keypoints = body_surface("wholebody").pose(betas, pose, expression)
    transl = sample_transl(rng, vertices, keypoints, SMPLX_KEYPOINTS)
    return BodyScene(vertices + transl, keypoints + transl, body_camera(size), pose, betas, transl,
                     expression)


def hand_square(keypoints: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre (2,) and side of a hand's crop around its keypoints (N, 2).

    As HaMeR does it: twice the tight box, made as wide as the part of the crop the encoder sees.
    """
    center, side = body_box(keypoints)
    return center, HAND_MARGIN * side


def sample_occluders(rng: np.random.Generator, size: int, hands: np.ndarray, occlusion: float
                     ) -> list[Occluder]:
    """Shapes anywhere in a third of the pictures, and over each hand at the rate `occlusion`.

    hands (2, 21, 2): keypoints in pixels. The numbers drawn do not depend on the rate, and what a
    rate hides a higher one hides too.
    """
    count = int(rng.integers(1, 3)) * (rng.random() < 0.35)
    shapes = [Occluder(rng.uniform(0, size, 2), size * rng.uniform(0.04, 0.18),
                       int(rng.integers(2**31))) for _ in range(count)]
    for center, (width, height) in map(keypoint_box, hands):
        extent = np.hypot(width, height)
        over = Occluder(center + rng.uniform(-0.3, 0.3, 2) * (width, height),
                        extent * rng.uniform(0.3, 0.6), int(rng.integers(2**31)))
        shapes += [over] * (rng.random() < occlusion)
    return shapes


def draw_occluder(picture: Image.Image, occluder: Occluder, view: View) -> None:
    """Draw an occluder of the whole picture as a view shows it."""
    rng = random_generator(DETAILS, occluder.seed)
    center = transform_points(view.homography, occluder.center)
    draw_shape(ImageDraw.Draw(picture), rng, view.size, center / view.size,
               occluder.radius * view.homography[0, 0] / view.size)


class Person:
    """A dressed person before a background, ready to be painted in any view."""

    def __init__(self, rng: np.random.Generator, scene: BodyScene, size: int, occlusion: float
                 ) -> None:
        self.body, self.scene, self.size = body_surface("wholebody"), scene, size
        self.surface, self.colors = dress(rng, scene, "wholebody")
        self.background = paint_background(rng, FINE * size)
        projected = scene.keypoints @ scene.K.T
        self.keypoints_2d = projected[:, :2] / projected[:, 2:]
        self.lens = int(rng.integers(2**31))
        hands = self.keypoints_2d[HAND_KEYPOINTS]
        self.occluders = sample_occluders(rng, size, hands, occlusion)

    def paint(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """A view (s, s, 3) uint8, and the depth (s, s) of what it shows, 0 where that is hidden.

        Nothing is known outside the picture: it is black there.
        """
        to_view = view.homography @ np.diag([1 / FINE, 1 / FINE, 1])
        image = warp(self.background, to_view, view.size).astype(np.float32)
        depth = paint_surface(image, self.surface, self.body.faces,
                              view.homography @ self.scene.K, self.colors)
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        bare = np.array(picture)
        for occluder in self.occluders:
            draw_occluder(picture, occluder, view)
        depth[(bare != np.asarray(picture)).any(-1)] = 0
        image = develop(random_generator(DETAILS, self.lens), picture)  # one camera
        outside = self._outside(view)
        image[outside], depth[outside] = 0, 0
        return image, depth

    def _outside(self, view: View) -> np.ndarray:
        """Which pixels (s, s) of a view lie outside the picture."""
        corners = np.array([[0, 0], [self.size, self.size]], np.float64)
        low, high = transform_points(view.homography, corners)[:, None] - 1e-6
        pixels = np.arange(view.size)[:, None] + 0.5
        columns, rows = ((pixels < low) | (pixels > high)).T
        return rows[:, None] | columns

    def paint_hand(self, hand: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Crop of a hand (s, s, 3), its vertices (778, 3), its K, how much of it is seen.

        Of the left hand it is all mirrored.
        """
        center, side = hand_square(self.keypoints_2d[HAND_KEYPOINTS[hand]])
        view = View(crop_homography(center, side, size), size)
        image, depth = self.paint(view)
        K = view.homography @ self.scene.K
        pixels = project_surface(self.surface, K)
        alone = bodymodels.rasterize(pixels, hand_faces()[hand], (size, size))[2]
        silhouette = alone < np.inf
        seen = (depth[silhouette] > alone[silhouette] - 1e-3).sum() / max(silhouette.sum(), 1)
        vertices = self.scene.surface[hand_vertices()[hand]]
        if HANDS[hand] == "left":
            K = np.array([[-1, 0, size], [0, 1, 0], [0, 0, 1]]) @ K @ np.diag([-1.0, 1, 1])
            image, vertices = image[:, ::-1], vertices * (-1, 1, 1)
        return image, vertices, K, seen


@cache
def hand_vertices() -> list[np.ndarray]:
    """The hands' vertices (778,) in the whole body, in the order of HANDS."""
    return [bodymodels.hand_vertex_ids("wholebody")[side].numpy() for side in HANDS]


@cache
def hand_faces() -> list[np.ndarray]:
    """The whole body's faces of each hand."""
    faces = body_surface("wholebody").faces
    return [faces[np.isin(faces, vertices).all(1)] for vertices in hand_vertices()]


def _tint_hands(rng: np.random.Generator, albedo: np.ndarray) -> None:
    """Lighter palms and redder finger tips on the bare skin (10475, 3), in place."""
    hand, palm, tip = hand_surface(), rng.uniform(0, 1), rng.uniform(0, 1)
    for vertices in hand_vertices():
        lighter = np.clip(albedo[vertices] * 1.1 + (0.06, 0.03, 0.03), 0, 1) - albedo[vertices]
        albedo[vertices] += palm * hand.palmar * lighter + tip * hand.tip * (0.06, -0.03, -0.02)


class PeopleDataset(ImageDataset):
    """A data set of whole bodies with crops of their hands."""

    def finish(self, sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        super().finish(sample, rng)
        if self.augmentation is not None:
            sample["hand_images"] = np.stack([self.augmentation.recolor(image, rng)
                                              for image in sample["hand_images"]])

    def labelled(self, sample: dict[str, np.ndarray], rng: np.random.Generator
                 ) -> dict[str, np.ndarray]:
        """A person's pictures and labels, moved as the augmentation says, with `person_labels`."""
        if self.augmentation is not None and self.augmentation.moves:
            sample = augment_person(sample, self.augmentation, rng)
        return person_labels(sample | {
            "image": sample["image"].transpose(2, 0, 1),
            "hand_images": sample["hand_images"].transpose(0, 3, 1, 2)}, self.size)


class RenderedPeople(Rendered, PeopleDataset):
    """Pictures of the free whole body with a crop of each hand, rendered: exact labels.

    One sample; S and H are the sides of the crops, "hand" arrays hold the right one first:

        image                (3, S, S)      uint8    RGB, the whole body
        K                    (3, 3)         float32  its intrinsics, in its pixels
        body_pose            (55, 3, 3)     float32  SMPL-X rotations, the root's in the camera's
                                                     frame, fingers absolute
        betas, expression    (10,) each     float32  of the free whole body
        transl               (3,)           float32  metres, see below
        keypoints_3d         (76, 3)        float32  metres, the camera's frame, "smplx76"
        keypoints_2d         (76, 2)        float32  pixels of `image`
        keypoints_valid      (76,)          float32  1 inside `image`
        hand_images          (2, 3, H, H)   uint8    RGB
        hand_K               (2, 3, 3)      float32  their intrinsics
        hand_boxes           (2, 4)         float32  x, y, width, height in pixels of `image`: the
                                                     tight box of the hand's 21 keypoints
        hand_pose            (2, 16, 3, 3)  float32  MANO: orientation in the camera, 15 fingers
        hand_joints          (2, 21, 3)     float32  metres, the camera's frame, "hand21"
        hand_vertices        (2, 778, 3)    float32  the same, MANO's topology
        hand_keypoints_2d    (2, 21, 2)     float32  pixels of the hand's crop
        hand_valid           (2,)           float32  1 if most of its keypoints are in `image`
        hand_visible         (2,)           float32  share of the hand that nothing hides
        arm_pose             (2, 8, 3, 3)   float32  from the pelvis to the wrist, "right_arm08"
        index                ()             int64    index within the split

    Left hands look right-handed: hand_images[1] is mirrored, and all but hand_boxes is what a
    right hand has that looks so. The product of a hand's arm_pose is the first of its hand_pose:
    whoever knows the true arm knows the hand's orientation. keypoints_3d are those of the body
    model plus transl.

    A hand's crop is the square of `hand_square`, painted at its own resolution; augmentation
    moves and turns crops further. occlusion: the share of hands that a shape covers, wholly or in
    part. It changes the shapes alone: people, clothes and cameras stay. Poses and boxes are as
    in RenderedBodies, so some hands are out of the picture, and their crops black there.
    split, length, seed, cache: as for RenderedHands; 3 S^2 + 6 H^2 + 22 kB a sample.
    hand_size: H, by default S. views, lean: see `sample_body_pose`.
    """

    LENGTHS = {"train": 20_000, "test": 1_000}

    def __init__(self, split: str = "train", size: int = 128, *, length: int | None = None,
                 seed: int = 0, occlusion: float = 0.5, hand_size: int | None = None,
                 views: float = 180.0, lean: float = 180.0,
                 augmentation: str | Augmentation | None = None,
                 cache: str | os.PathLike | None = None, progress: bool = True) -> None:
        super().__init__(split, tuple(self.LENGTHS), size, seed, augmentation)
        self.length = self.LENGTHS[split] if length is None else length
        self.hand_size = size if hand_size is None else hand_size
        if (self.length < 1 or self.hand_size < 16 or not 0 <= views <= 180
                or not 30 <= lean <= 180):
            raise ValueError("expected a positive length, hand_size >= 16, views in 0..180 and "
                             "lean in 30..180 degrees, "
                             f"got {self.length}, {self.hand_size}, {views} and {lean}")
        if not 0 <= occlusion <= 1:
            raise ValueError(f"expected an occlusion rate in 0..1, got {occlusion}")
        self.views, self.lean, self.occlusion = float(views), float(lean), float(occlusion)
        self.dtype = np.dtype([
            ("image", np.uint8, (size, size, 3)), ("K", np.float32, (3, 3)),
            ("hand_images", np.uint8, (2, self.hand_size, self.hand_size, 3)),
            ("hand_vertices", np.float32, (2, NUM_VERTICES, 3)),
            ("hand_K", np.float32, (2, 3, 3)), ("hand_visible", np.float32, 2),
            ("pose", np.float32, (len(SMPLX_JOINTS), 3, 3)), ("betas", np.float32, 10),
            ("expression", np.float32, 10), ("transl", np.float32, 3),
            ("keypoints_3d", np.float32, (len(SMPLX_KEYPOINTS), 3)),
            ("keypoints_2d", np.float32, (len(SMPLX_KEYPOINTS), 2))])
        settings = {name: getattr(self, name) for name in (
            "split", "size", "length", "seed", "views", "lean", "hand_size", "occlusion")}
        self.open_cache(cache, "rendered_people", settings | {"version": PEOPLE_RENDER_VERSION},
                        progress)

    def render(self, index: int) -> np.ndarray:
        """The packed record of one sample, made from nothing but seed, split and index."""
        rng = random_generator(RENDERING_PEOPLE, self.seed, self.split_id, index)
        scene = sample_person(rng, self.split, self.size, self.views, self.lean)
        person = Person(rng, scene, self.size, self.occlusion)
        record = np.zeros((), self.dtype)
        record["image"], _ = person.paint(View(np.eye(3), self.size))
        for hand in range(2):
            parts = person.paint_hand(hand, self.hand_size)
            for name, value in zip(("images", "vertices", "K", "visible"), parts, strict=True):
                record[f"hand_{name}"][hand] = value
        for name in ("K", "pose", "betas", "expression", "transl"):
            record[name] = getattr(scene, name)
        record["keypoints_3d"], record["keypoints_2d"] = scene.keypoints, person.keypoints_2d
        return record

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self.record(index)
        return self.labelled({name: record[name] for name in self.dtype.names}, rng)


def person_labels(sample: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """A sample of RenderedPeople with the labels that follow from the others; "pose" is renamed."""
    pose = sample.pop("pose")
    arms, hands = arm_and_hand_poses(pose)
    hand_joints = sample["keypoints_3d"][HAND_KEYPOINTS]  # (2, 21, 3)
    hand_joints[1] *= (-1, 1, 1)
    projected = hand_joints @ sample["hand_K"].swapaxes(1, 2)
    valid = inside(sample["keypoints_2d"], size, size)
    low, high = (function(sample["keypoints_2d"][HAND_KEYPOINTS], 1)
                 for function in (np.min, np.max))
    return sample | {
        "body_pose": pose, "keypoints_valid": valid, "arm_pose": arms, "hand_pose": hands,
        "hand_joints": hand_joints, "hand_keypoints_2d": projected[..., :2] / projected[..., 2:],
        "hand_boxes": np.concatenate([low, high - low], 1),
        "hand_valid": (valid[HAND_KEYPOINTS].mean(1) > 0.5).astype(np.float32)}


def arm_and_hand_poses(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SMPL-X rotations (55, 3, 3) as those of the arms (2, 8, 3, 3) and of MANO (2, 16, 3, 3).

    Of the left, what its mirror image has: M R M with M = diag(-1, 1, 1).
    """
    rotations = torch.tensor(pose)
    arms, hands = rotations[torch.tensor(ARMS)], rotations[torch.tensor(HAND_JOINTS)]
    hands[:, 0] = bodymodels.chain_rotation(arms)  # in the camera's frame, not the elbow's
    for rotations in (arms, hands):
        rotations[1] = bodymodels.mirror_matrix(rotations[1])
    return arms.numpy(), hands.numpy()


def augment_person(sample: dict[str, np.ndarray], recipe: Augmentation,
                   rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Crop all pictures (S, S, 3) and (2, H, H, 3) of a person anew, and move the labels along.

    All turn alike, since it is the camera that turns; each is shifted and scaled on its own. In a
    mirrored picture the right hand is what was the left.
    """
    size = len(sample["image"])
    homography, roll, mirror = draw_crop(rng, recipe, size, sample["keypoints_2d"],
                                         SMPLX_KEYPOINTS)
    moved = move_body(sample, homography, roll, mirror, "smplx55", "smplx76")
    hands = [move_hand({name: sample[name][hand] for name in sample if name.startswith("hand_")},
                       turn, recipe, rng) for hand, turn in enumerate((roll, -roll))]
    hands = hands[::-1] if mirror else hands
    return moved | {"image": warp(sample["image"], homography, size)} | {
        name: np.stack([hand[name] for hand in hands]) for name in hands[0]}


def move_hand(hand: dict[str, np.ndarray], roll: float, recipe: Augmentation,
              rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A hand's crop (H, H, 3) turned by `roll`, shifted and scaled as the recipe draws."""
    size, turn = len(hand["hand_images"]), _roll_and_mirror(roll, False)
    shift, scale, _ = recipe.draw_motion(rng)
    homography = crop_homography(size * (0.5 + shift), size * scale, size, roll=roll)
    return hand | {"hand_images": warp(hand["hand_images"], homography, size),
                   "hand_vertices": hand["hand_vertices"] @ turn.T,
                   "hand_K": homography @ hand["hand_K"] @ turn.T}


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
    text, are packed once into a memory-mapped file (9.9 kB an id) and again when they change.
    K is used as it is: if its pixel centres are at integers that is half a pixel, below the
    annotation's own error. Joints are the given xyz, never regressed. models: the folder of
    MANO_RIGHT, whose mean hand `hand_pose` needs.
    """

    BACKGROUNDS = ("gs", "hom", "sample", "auto")
    SHAPES = {"K": (3, 3), "xyz": (NUM_JOINTS, 3), "verts": (NUM_VERTICES, 3), "mano": (1, 61)}
    COUNTS = {"training": 130_240, "evaluation": 3_960}

    def __init__(self, root: str | os.PathLike, split: str = "training", size: int = 224, *,
                 augmentation: str | Augmentation | None = None, seed: int = 0,
                 cache: str | os.PathLike | None = None, models: str | os.PathLike | None = None,
                 progress: bool = True) -> None:
        super().__init__(split, ("training", "evaluation"), size, seed, augmentation)
        self.root, self.progress = Path(root), progress
        self.models = None if models is None else Path(models)
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
        return hand_sample(self.annotated(index), self.size, self.augmentation, rng)

    def whole_hands(self) -> np.ndarray:
        """Indices of hands whose pose, mesh and joints are all known."""
        return np.arange(len(self) if {"mano", "xyz", "verts"} <= set(self.sources) else 0)

    def hand_pose(self, index: int) -> tuple[np.ndarray, np.ndarray, float]:
        """MANO's absolute axis-angles (16, 3), betas (10,) and 1.0: they are known.

        The orientation is taken as the camera's, as the data set's own tools do; somebody who
        fitted it anew came to another.
        """
        mano = self._records()["mano"][index % self.db_size][0].astype(np.float64)
        [(mean, _)] = hand_space(self.models, "mano", "right", "neutral")
        pose = mano[:48] + np.concatenate([np.zeros(3), mean])
        return pose.reshape(16, 3), mano[48:58], 1.0

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


def stream_json_list(path: Path, chunk: int = 1 << 22, key: str = "") -> Iterator[object]:
    """The items of a JSON file that holds one long list, one at a time, in little memory.

    key: the list is the value of this key, which occurs once, of the file's dictionary. Raises
    ValueError if the file is damaged, or if one item is longer than 16 chunks of characters.
    """
    decoder, gap = json.JSONDecoder(), re.compile(r"[\s,]*")
    with open(path, encoding="utf-8") as file:
        text = file.read(chunk).lstrip()
        start = re.compile(rf'"{key}"\s*:\s*\[' if key else r"\[")
        while key and not start.search(text) and (more := file.read(chunk)):
            text = text[-100:] + more  # the key may have been cut in two
        found = start.search(text) if key else start.match(text)
        if not found:
            raise ValueError(f"it has no list {key!r}" if key else "it does not start with [")
        position = found.end()
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


# ---------------------------------------------------------------- official pictures and labels

GENDERS = ("neutral", "male", "female")
BOX_MARGIN = 1.2  # of a body's crop: every lineage's; what a data set's own boxes include is undone
UNKNOWN_FOCAL = 5000.0  # pixels, where a data set does not tell: HMR's and its heirs' custom
UNREADABLE = (KeyError, IndexError, TypeError, AttributeError, ValueError, EOFError,
              tarfile.TarError, zipfile.BadZipFile, ElementTree.ParseError)  # from damaged files


def record_dtype(joints: int, pose: int, betas: int) -> np.dtype:
    """What is packed of one person in one picture; Pictures tells what it means."""
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
    """One person (columns["image"] is a text) or many (it is a list) as records.

    What is not given is 0, "", or -1 for the side and the identity for world_to_camera; what has
    the shape of one record's field holds for all. ValueError names a column that does not fit.
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
        records[name] = array
    return records


def rigid(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """(..., 3, 4) of rotations (..., 3, 3) and translations (..., 3)."""
    return np.concatenate([R, np.broadcast_to(t, R.shape[:-1])[..., None]], -1)


def turned(R: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Axis-angles (N, 3) of a root's orientations (N, 3) after R (3, 3) or (N, 3, 3)."""
    rotations = bodymodels.axis_angle_to_matrix(torch.as_tensor(root, dtype=torch.float64))
    product = torch.as_tensor(R, dtype=torch.float64) @ rotations
    return bodymodels.matrix_to_axis_angle(product).numpy()


def moved_translation(transl: np.ndarray, world_to_camera: np.ndarray, rest_root: np.ndarray
                      ) -> np.ndarray:
    """A body's translation (3,) in the camera's frame, where its root is turned, too.

    A body turns about its resting root joint and not about the origin: R T + t would be wrong by
    |R j - j|, about 0.2 m for SMPL. rest_root (3,) depends on shape and gender.
    """
    R, t = world_to_camera[:, :3], world_to_camera[:, 3]
    return R @ (rest_root + transl) + t - rest_root


def pixels(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Points (..., J, 3) in front of cameras K (..., 3, 3), as pixels (..., J, 2)."""
    projected = points @ K.swapaxes(-1, -2)
    return projected[..., :2] / projected[..., 2:]


def intrinsics(focal: Sequence[float], center: Sequence[float]) -> np.ndarray:
    """K (3, 3) of focal lengths (2,) and principal point (2,)."""
    return np.array([[focal[0], 0, center[0]], [0, focal[1], center[1]], [0, 0, 1]])


def with_confidence(points: np.ndarray, confidence: np.ndarray | float = 1.0) -> np.ndarray:
    """Points (..., J, D) and a column of confidences, zero where those are."""
    confidence = np.broadcast_to(confidence, points.shape[:-1])[..., None]
    return np.concatenate([np.where(confidence > 0, points, 0.0), confidence], -1)


def boxes_around(keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres and sizes (N, 2) of the tight boxes of known keypoints (N, J, 3); 0 if none is."""
    known = keypoints[..., 2:] > 0
    low = np.where(known, keypoints[..., :2], np.inf).min(-2)
    high = np.where(known, keypoints[..., :2], -np.inf).max(-2)
    some = known.any(-2)
    return np.where(some, (low + high) / 2, 0.0), np.where(some, high - low, 0.0)


@cache
def joint_places(source: str, target: str) -> np.ndarray:
    """First and second choice (J, 2) of the target's joints in the source; -1: none.

    OpenPose's hips and shoulders in "hmr44" are SMPL's, LSP's are the others'. Neither's neck and
    head are SMPL's joints of these names.
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
    """Keypoints (..., J, C) of one joint set, confidence last, as another's; 0 if unknown."""
    padded = np.concatenate([keypoints, np.zeros_like(keypoints[..., :1, :])], -2)
    first, second = (padded[..., places, :] for places in joint_places(source, target).T)
    return np.where(first[..., -1:] > 0, first, second)


@lru_cache(maxsize=16)
def official_body(folder: Path, template: bytes | None, light: bool, **options
                  ) -> bodymodels.BodyModel:
    """A model from a folder, with options for `load_model`; loaded once in a process.

    template: see `template_bytes`. light: for joints and keypoints alone.
    """
    if light:
        return official_body(folder, template, False, **options).for_keypoints()
    own = {} if template is None else {
        "v_template": np.frombuffer(template, np.float32).reshape(-1, 3)}
    return bodymodels.load_model(folder, **options, **own)


@lru_cache(maxsize=64)
def template_bytes(path: Path, age: int) -> bytes:
    """The vertices of a mesh file that was written at `age`, as float32."""
    return bodymodels.load_vertices(path).tobytes()


@lru_cache(maxsize=16)
def hand_space(folder: Path, family: str, side: str, gender: str
               ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean hand (45,) and principal components (45, 45) of a model's hand, or left and right."""
    arrays = bodymodels.load_arrays(bodymodels.find_model(folder, family, side, gender), "hands_")
    ends = ("",) if family == "mano" else ("l", "r")
    return [(np.reshape(arrays[f"hands_mean{end}"], 45), arrays[f"hands_components{end}"])
            for end in ends]


class Pictures(ImageDataset):
    """What the data sets below share: official files, read once; pictures, read when asked for.

    root: the folder as the authors ship it. Its annotation is packed once into a memory-mapped
    file in `cache` (default: root), and again when a source file changes: the file's name holds a
    checksum of theirs. Nothing in a file is executed. `annotation(index)` is what is known of one
    person in one picture, the same for all data sets; what is unknown is zero and flagged 0:

        image            str      picture, below root        part, turns   see `picture`
        image_size       (2,)     width and height, 0: not told
        K                (3, 3)   intrinsics, 0: unknown
        center, box      (2,)     pixels: middle, width and height of a tight box, never padded
        keypoints_2d     (J, 3)   pixels and confidence, in the order JOINTS
        keypoints_3d     (J, 4)   metres in the camera's frame, and confidence; not relative to
                                  the root, unless the data set only tells that
        pose             (P, 3)   axis-angles of MODEL: its root's in the camera's frame, fingers
                                  absolute (has_hands)
        betas            (B,)     of the model of this gender (an index of GENDERS)
        transl           (3,)     metres, in the data set's frame: `moved_translation` needs a model
        world_to_camera  (3, 4)   from that frame to the camera's
        has_pose, has_hands, has_betas, has_transl
        side             1 right hand, 0 left, -1 a body        mask     (3,), of Shards
        person, frame    numbers  sequence, mesh     texts, as the data set's docstring tells

    models: a folder of official body models, for what needs them: meshes, and fingers that are
    told relative to the models' mean hand or as coefficients of their components. options: see
    OPTIONS of each data set.
    """

    SPLITS: dict[str, str] = {"train": "train", "val": "val", "test": "test"}  # and in file names
    SOURCES: tuple[str, ...]  # patterns of files; every one must be there. {split} is replaced
    JOINTS, MODEL, NUM_BETAS = "", "smpl", 10
    HAND_SPACE = ""  # what finger angles are in the files, if not absolute: see load_model
    MODEL_OPTIONS: dict = {}  # for load_model
    OPTIONS: dict = {}  # names and defaults
    CHOICES: dict[str, Sequence] = {}  # of some options: what they may be
    FILES: tuple[str, ...] = ()  # options that name a file below root, or none
    COUNTS: dict[str, int] = {}  # samples of whole official splits, or folders
    UNIT = "part"  # what `rows` yields
    HOME = ""  # where it is to be had

    def __init__(self, root: str | os.PathLike, split: str | None = None, size: int = 224, *,
                 augmentation: str | Augmentation | None = None, seed: int = 0,
                 cache: str | os.PathLike | None = None, models: str | os.PathLike | None = None,
                 progress: bool = True, **options) -> None:
        split = next(iter(self.SPLITS)) if split is None else split
        super().__init__(split, tuple(self.SPLITS), size, seed, augmentation)
        self.root, self.progress = Path(root), progress
        self.models = None if models is None else Path(models)
        unknown = set(options) - set(self.OPTIONS)
        if unknown:
            raise ValueError(f"{type(self).__name__} has no option {', '.join(sorted(unknown))}: "
                             f"expected {', '.join(self.OPTIONS) or 'none'}")
        self.options = self.OPTIONS | options
        for name, allowed in self.CHOICES.items():
            if self.options[name] not in allowed:
                raise ValueError(f"{type(self).__name__}: {name}={self.options[name]!r}, expected "
                                 f"one of {', '.join(map(str, allowed))}")
        poses = len(bodymodels.JOINT_SETS[{"mano": "mano16", "smpl": "smpl24",
                                           "smplx": "smplx55"}[self.MODEL]])
        self.dtype = record_dtype(len(bodymodels.JOINT_SETS[self.JOINTS]), poses, self.NUM_BETAS)
        self.sources = self.find_sources()
        files = [path for paths in self.sources.values() for path in paths]
        if self.HAND_SPACE and self.models:
            files += [path for path in sorted(self.models.rglob("*")) if path.is_file()]
        marks = {os.path.relpath(path, self.root): (path.stat().st_size, path.stat().st_mtime_ns)
                 for path in files}
        name = fingerprint({"files": marks, "options": repr(sorted(self.options.items())),
                            "version": READER_VERSION})
        self.path = ((self.root if cache is None else Path(cache))
                     / f"{type(self).__name__.lower()}_{split}_{name}.npy")
        self.reading = self.root  # what an error is about
        self._packed: np.ndarray | None = None
        self.records()

    def find_sources(self) -> dict[str, list[Path]]:
        """The files that each pattern of SOURCES finds."""
        found = {}
        for pattern in (text.format(split=self.SPLITS[self.split]) for text in self.SOURCES):
            found[pattern] = sorted(self.root.glob(pattern))
            if not found[pattern]:
                raise FileNotFoundError(f"no {self.root / pattern}: expected "
                                        f"{type(self).__name__} there in its official layout, see "
                                        f"{self.HOME}")
        return found | {name: [self.file(self.options[name])] for name in self.FILES
                        if self.options[name]}

    def rows(self) -> Iterator[dict | np.ndarray]:
        """The people of the split, in an order that is always the same: what `to_records` takes
        or makes."""
        raise NotImplementedError

    def count_rows(self) -> int | None:
        """How much `rows` will yield, if that is known."""
        return None

    def file(self, path: str | os.PathLike) -> Path:
        """A file below root, which is read from now on."""
        self.reading = self.root / path
        if not self.reading.is_file():
            raise FileNotFoundError(f"no {self.reading}: expected {type(self).__name__} there in "
                                    f"its official layout, see {self.HOME}")
        return self.reading

    def json(self, path: str | os.PathLike) -> dict | list:
        """The content of a JSON file below root."""
        return json.loads(self.file(path).read_bytes())

    def yaml(self, path: str | os.PathLike) -> dict:
        """The content of a YAML file below root, of plain data alone."""
        import yaml  # comes with jupyterlab; little here wants it
        try:
            return yaml.safe_load(self.file(path).read_text())
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error

    def records(self, indices: int | np.ndarray | slice = slice(None)) -> np.ndarray:
        """Annotation, all of it or of some samples, memory-mapped."""
        if self._packed is None:
            self._packed = build_packed(self.path, self.dtype, None, self._gather)
        return self._packed[indices]

    def _gather(self) -> Iterator[np.ndarray]:
        count = 0
        try:
            for columns in tqdm(self.rows(), f"Packing {self.path.name}", self.count_rows(),
                                unit=self.UNIT, disable=not self.progress):
                packed = isinstance(columns, np.ndarray)
                records = columns if packed else to_records(columns, self.dtype)
                count += len(records)
                yield records
        except FileNotFoundError:
            raise
        except UNREADABLE as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{self.reading} is not as {type(self).__name__} is shipped "
                             f"({reason}): copy or download it again, see {self.HOME}") from error
        if not count:
            raise ValueError(f"no sample of the split {self.split} is left in {self.root}: "
                             f"expected all of {type(self).__name__}, see {self.HOME}")

    def __len__(self) -> int:
        return len(self.records())

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}  # workers map the file themselves

    def annotation(self, index: int) -> dict:
        """One record: arrays, numbers and texts by name."""
        record = self.records()[index]
        values = {name: record[name].copy() for name in self.dtype.names}
        return {name: value.decode() if isinstance(value, bytes) else value
                for name, value in values.items()}

    def picture(self, record: np.ndarray) -> np.ndarray:
        """The picture (H, W, 3) of a record, as it is stored: EXIF is no part of the annotation.

        part: the first byte and the number of bytes of it in an archive, 0 bytes: a file of its
        own. turns: quarter turns clockwise that the data set asks for.
        """
        path = self.root / record["image"].decode()
        image = read_image(path, upright=False, part=tuple(record["part"].tolist()))
        image = np.ascontiguousarray(np.rot90(image, -int(record["turns"])))
        told = tuple(record["image_size"].tolist())
        if any(told) and told != image.shape[1::-1]:
            raise ValueError(f"{path} has {image.shape[1]} x {image.shape[0]} pixels where the "
                             f"annotation tells {told[0]} x {told[1]}: take the original pictures")
        return image

    def body(self, gender: str = "neutral", side: str = "right", template: str = "",
             light: bool = False, **options) -> bodymodels.BodyModel:
        """The model from the folder `models`, see `official_body`; template: a file below root."""
        if side == "right":  # what mends a left hand
            options.pop("fix_left_shapedirs", None)
        path = self.root / template
        own = template_bytes(path, path.stat().st_mtime_ns) if template else None
        return official_body(self.models, own, light, family=self.MODEL, gender=gender, side=side,
                             **options)

    def absolute(self, pose: np.ndarray, gender: str = "neutral", side: str = "right"
                 ) -> np.ndarray | None:
        """Poses (N, ...) of HAND_SPACE as absolute axis-angles (N, P, 3); None without models.

        What is relative to the mean hand is added to it number by number, as smplx does.
        """
        if self.models is None:
            return None
        pose = np.asarray(pose, np.float64).reshape(len(pose), -1)
        hands = hand_space(self.models, self.MODEL, side, gender)
        others = 3 * self.dtype["pose"].shape[0] - 45 * len(hands)
        fingers = np.split(pose[:, others:], len(hands), 1)
        if self.HAND_SPACE == "pca":
            fingers = [values @ components[:values.shape[1]]
                       for values, (_, components) in zip(fingers, hands, strict=True)]
        fingers = [values + mean for values, (mean, _) in zip(fingers, hands, strict=True)]
        return np.concatenate([pose[:, :others], *fingers], 1).reshape(len(pose), -1, 3)

    def posed(self, record: np.ndarray, light: bool = False
              ) -> tuple[bodymodels.BodyOutput, bodymodels.BodyModel, Tensor]:
        """A record's body in the camera's frame, its model, and its translation there (3,)."""
        model = self.body(GENDERS[record["gender"]], "left" if record["side"] == 0 else "right",
                          record["mesh"].decode(), light, num_betas=self.NUM_BETAS,
                          **self.MODEL_OPTIONS)
        betas, pose = (torch.tensor(record[name][None]) for name in ("betas", "pose"))
        root = model.rest_joints(betas)[0, 0].numpy()
        transl = torch.from_numpy(moved_translation(record["transl"], record["world_to_camera"],
                                                    root).astype(np.float32))
        return model(betas, pose, transl=transl[None]), model, transl


READER_VERSION = 2  # count up whenever the same files would give other records


# ------------------------------------------------------------------------------ hands, official


class HandPictures(Pictures, HandDataset):
    """Pictures of hands, cropped as those of FreiHAND; left hands are mirrored.

    A sample's joints are the given ones, never the mesh's: TIPS tells which vertices the data
    set's own fingertips are, for whoever compares them with a mesh. Vertices need `models`, the
    folder with MANO_RIGHT and MANO_LEFT; without, or with a joint unknown, mesh_valid is 0.
    """

    JOINTS, MODEL = "hand21", "mano"
    TIPS = "smplx"

    def annotated(self, index: int) -> Annotated:
        """A picture and its annotation as they are in the data set; an unknown K is guessed."""
        record = self.records()[index]
        image = self.picture(record)
        K = record["K"].astype(np.float64)
        if not K[2, 2]:
            K = intrinsics((UNKNOWN_FOCAL,) * 2, (image.shape[1] / 2, image.shape[0] / 2))
        keypoints, joints = record["keypoints_2d"], record["keypoints_3d"]
        vertices, known = np.zeros((NUM_VERTICES, 3)), 0.0
        if self.models is not None and record["has_pose"] and (joints[:, 3] > 0).all():
            output, known = self.posed(record)[0], 1.0
            vertices = output.vertices[0].numpy()
            if not record["has_transl"]:  # then where the joints are
                vertices += joints[0, :3] - output.joints[0, 0].numpy()
        valid = (keypoints[:, 2] > 0) * inside(keypoints[:, :2], image.shape[1], image.shape[0])
        return Annotated(image, K, joints[:, :3], vertices,
                         keypoints[:, :2], valid, known, int(record["side"]))

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return hand_sample(self.annotated(index), self.size, self.augmentation, rng)

    def whole_hands(self) -> np.ndarray:
        """Indices of hands whose pose, mesh and joints are all known."""
        records = self.records()
        return np.flatnonzero((records["has_pose"] > 0)
                              & (records["keypoints_3d"][..., 3] > 0).all(1))

    def hand_pose(self, index: int) -> tuple[np.ndarray, np.ndarray, float]:
        """MANO's absolute axis-angles (16, 3), before any mirroring, betas (10,) and has_betas."""
        record = self.records()[index]
        return (record["pose"].astype(np.float64), record["betas"], float(record["has_betas"]))


DEXYCB_SETUPS: dict[str, Callable[[int, int, int], str]] = {  # split of subject, sequence, camera
    "s0": lambda subject, sequence, camera:
        "train" if sequence % 5 != 4 else "val" if subject < 2 else "test",
    "s1": lambda subject, sequence, camera:
        {6: "val", 7: "test", 8: "test"}.get(subject, "train"),
    "s2": lambda subject, sequence, camera: {6: "val", 7: "test"}.get(camera, "train"),
    "s3": lambda subject, sequence, camera:
        {3: "val", 19: "val", 7: "test", 11: "test", 15: "test"}.get(sequence // 5, "train"),
}


class DexYCB(HandPictures):
    """DexYCB (Chao et al. 2021): 20200709-subject-01/ to 20201022-subject-10/ and calibration/.

    Options: setup, "s0" to "s3", the official splits; sequences, how many a subject must have,
    since the splits count them (0: do not check). Frames without a hand, all -1 in the files, are
    left out: 406,888 of s0's train and 78,768 of its test stay. person is the official number of
    the sample, which result files want (invalid samples count).

    pose_m is 45 coefficients of the principal components of its own side's MANO, relative to the
    mean hand, in the camera's frame. It was made with MANO_LEFT as it is, mistake included.
    Joints are the given joint_3d, whose tips are manopth's vertices.
    """

    SOURCES = ("20*-subject-*/*/meta.yml", "20*-subject-*/*/[0-9]*/",
               "calibration/intrinsics/*_640x480.yml", "calibration/mano_*/mano.yml")
    HAND_SPACE, TIPS = "pca", "manopth_right"
    OPTIONS, CHOICES = {"setup": "s0", "sequences": 100}, {"setup": tuple(DEXYCB_SETUPS)}
    COUNTS = {"s0 train": 406_888, "s0 test": 78_768}
    HOME = "dex-ycb.github.io"
    CAMERAS = ("836212060125", "839512060362", "840412060917", "841412060263", "932122060857",
               "932122060861", "932122061900", "932122062010")

    def rows(self) -> Iterator[dict]:
        number, wanted = 0, self.options["sequences"]
        for folder in sorted(self.root.glob("20*-subject-*")):
            sequences = sorted(path for path in folder.iterdir() if path.is_dir())
            self.reading = folder
            if wanted and len(sequences) != wanted:
                raise ValueError(f"{len(sequences)} sequences where the splits count {wanted}")
            subject = int(folder.name[-2:]) - 1
            for order, sequence in enumerate(sequences):
                meta = self.yaml(sequence / "meta.yml")
                for camera, serial in enumerate(self.CAMERAS):
                    if serial not in map(str, meta["serials"]) or self.split != DEXYCB_SETUPS[
                            self.options["setup"]](subject, order, camera):
                        continue
                    yield from self._camera(sequence, serial, meta, number)
                    number += meta["num_frames"]

    def _camera(self, sequence: Path, serial: str, meta: dict, number: int) -> Iterator[dict]:
        """The frames of one camera in one sequence that show the hand."""
        color = self.yaml(f"calibration/intrinsics/{serial}_640x480.yml")["color"]
        K = intrinsics((color["fx"], color["fy"]), (color["ppx"], color["ppy"]))
        betas = self.yaml(f"calibration/mano_{meta['mano_calib'][0]}/mano.yml")["betas"]
        side, labels, frames = meta["mano_sides"][0], [], []
        for frame in range(meta["num_frames"]):
            with np.load(self.file(sequence / serial / f"labels_{frame:06d}.npz")) as arrays:
                label = [arrays[name][0] for name in ("pose_m", "joint_3d", "joint_2d")]
            if not (label[1] == -1).all():
                labels.append(label)
                frames.append(frame)
        if not frames:
            return
        pose, joints, keypoints = map(np.stack, zip(*labels, strict=True))
        absolute = self.absolute(pose[:, :48], side=side)
        folder = (sequence / serial).relative_to(self.root).as_posix()
        center, box = boxes_around(with_confidence(keypoints))
        yield {
            "image": [f"{folder}/color_{frame:06d}.jpg" for frame in frames],
            "image_size": (640, 480), "K": K, "center": center, "box": box,
            "sequence": sequence.name,
            "keypoints_2d": with_confidence(keypoints), "keypoints_3d": with_confidence(joints),
            "betas": betas, "has_betas": 1, "transl": pose[:, 48:], "has_transl": 1,
            "side": int(side == "right"), "person": number + np.array(frames), "frame": frames,
        } | ({} if absolute is None else {"pose": absolute, "has_pose": 1, "has_hands": 1})


class InterHand(HandPictures):
    """InterHand2.6M (Moon et al. 2020): images/ and annotations/, the 5 or the 30 fps release.

    One sample a hand: two of an interacting pair, each with the box of its own projected joints.
    joint_3d is in millimetres of the world, MANO's fits (NeuralAnnot; many are missing) in metres
    of the world and relative to the mean hand, made with a mended MANO_LEFT. camera.json has
    camera positions, not translations. Joints run from tip to base there.
    """

    SOURCES = ("annotations/{split}/InterHand2.6M_{split}_data.json",
               "annotations/{split}/InterHand2.6M_{split}_camera.json",
               "annotations/{split}/InterHand2.6M_{split}_joint_3d.json",
               "annotations/{split}/InterHand2.6M_{split}_MANO_NeuralAnnot.json")
    HAND_SPACE = "mean_relative"
    MODEL_OPTIONS = {"fix_left_shapedirs": True}
    HOME = "mks0601.github.io/InterHand2.6M"

    def rows(self) -> Iterator[dict]:
        data, *others = (next(iter(paths)) for paths in self.sources.values())
        cameras, joints, manos = map(self.json, others)
        fields = ("file_name", "width", "height", "capture", "seq_name", "camera", "frame_idx")
        pictures = {item["id"]: tuple(item[field] for field in fields)  # over a million
                    for item in stream_json_list(self.file(data), key="images")}
        for item in stream_json_list(self.file(data), key="annotations"):
            picture = dict(zip(fields, pictures[item["image_id"]], strict=True))
            capture, frame = str(picture["capture"]), str(picture["frame_idx"])
            camera = {name: np.array(cameras[capture][name][str(picture["camera"])])
                      for name in ("campos", "camrot", "focal", "princpt")}
            fits = manos.get(capture, {}).get(frame, {})
            for hand, side in enumerate(("right", "left")):
                if item["hand_type"] in (side, "interacting"):
                    yield from self._hand(side, slice(21 * hand, 21 * hand + 21), picture, camera,
                                          joints[capture][frame], fits.get(side), item["id"])

    def _hand(self, side: str, part: slice, picture: dict, camera: dict, world: dict,
              fit: dict | None, person: int) -> Iterator[dict]:
        order = bodymodels.joint_indices("interhand21", "hand21")
        valid = np.array(world["joint_valid"], np.float64).reshape(42)[part][order]
        if not valid.any():
            return
        R, t = camera["camrot"], -camera["camrot"] @ camera["campos"] / 1000
        K = intrinsics(camera["focal"], camera["princpt"])
        points = np.array(world["world_coord"])[part][order] / 1000 @ R.T + t
        keypoints = with_confidence(pixels(np.where(valid[:, None] > 0, points, 1.0), K), valid)
        center, box = boxes_around(keypoints[None])
        row = {"image": f"images/{self.SPLITS[self.split]}/{picture['file_name']}",
               "image_size": (picture["width"], picture["height"]), "K": K, "center": center[0],
               "box": box[0], "keypoints_2d": keypoints, "world_to_camera": rigid(R, t),
               "keypoints_3d": with_confidence(points, valid), "side": int(side == "right"),
               "person": person, "frame": picture["frame_idx"],
               "sequence": f"{picture['capture']}/{picture['seq_name']}"}
        if fit:
            row |= {"betas": fit["shape"], "transl": fit["trans"], "has_betas": 1, "has_transl": 1}
            pose = self.absolute(np.array(fit["pose"]).reshape(1, 16, 3), side=side)
            if pose is not None:
                pose[:, 0] = turned(R, pose[:, 0])
                row |= {"pose": pose[0], "has_pose": 1, "has_hands": 1}
        yield row


# ----------------------------------------------------------------------------- bodies, official


class BodyPictures(Pictures):
    """Pictures of bodies; a sample is that of RenderedBodies, and flags what is not known:

        keypoints_*      in the order `joint_set`, "smpl45" unless asked for another
        K_valid          ()  0 if the data set does not tell K, which then is a guess
        pose_valid, betas_valid, transl_valid ()   SMPL's; of SMPL-X's pose the 21 body joints
                         transfer to SMPL exactly, its betas do not and are 0
        gender           ()  int64, an index of GENDERS

    The crop is square, a body's box x 1.2 in what an encoder sees of it. With `models` a body
    whose pose, shape and place are known also has the keypoints of its own model.
    """

    def __init__(self, root: str | os.PathLike, split: str | None = None, size: int = 256, *,
                 joint_set: str = "smpl45", **options) -> None:
        if joint_set not in bodymodels.JOINT_SETS:
            raise ValueError(f"unknown joint set {joint_set!r}")
        self.joint_set = joint_set
        super().__init__(root, split, size, **options)

    def keypoints(self, record: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keypoints (J, 3) and (J, 4) of `joint_set`, and the translation before the camera (3,).

        Points in space whose pelvis is not known are of no use to losses on SMPL: they are hidden.
        """
        flat, solid = (relabelled(record[name], self.JOINTS, self.joint_set)
                       for name in ("keypoints_2d", "keypoints_3d"))
        transl, of_smpl = np.zeros(3, np.float32), self.joint_set.startswith("smpl")
        if (self.models is not None and self.MODEL == "smpl" and self.joint_set == "smpl45"
                and record["has_pose"] * record["has_betas"] * record["has_transl"]):
            output, model, place = self.posed(record, light=True)
            solid, transl = with_confidence(model.keypoints(output)[0].numpy()), place.numpy()
            known = with_confidence(pixels(solid[:, :3], record["K"]), float(record["K"][2, 2]))
            flat = np.where(flat[:, 2:] > 0, flat, known)
        elif of_smpl and not solid[0, 3]:
            solid = np.zeros_like(solid)
        return flat, solid, transl

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self.records()[index]
        image = self.picture(record)
        (flat, solid, transl), (height, width) = self.keypoints(record), image.shape[:2]
        K, told = record["K"].astype(np.float64), float(record["K"][2, 2])
        if not told:
            K = intrinsics((UNKNOWN_FOCAL, UNKNOWN_FOCAL), (width / 2, height / 2))
        pose = bodymodels.axis_angle_to_matrix(torch.tensor(self.smpl_pose(record["pose"])))
        is_smpl = self.MODEL == "smpl"
        sample = {"pose": pose.numpy(), "K": K, "transl": transl,
                  "betas": record["betas"][:10] * is_smpl,
                  "keypoints_2d": flat[:, :2], "keypoints_3d": solid[:, :3]}
        homography, roll, mirror = self.crop(record, flat, (width, height), rng)
        sample = move_body(sample, homography, roll, mirror, keypoint_set=self.joint_set)
        order = bodymodels.mirror_indices(self.joint_set) if mirror else slice(None)
        seen = inside(sample["keypoints_2d"], self.size, self.size)
        placed = float(transl.any())
        return sample | {
            "image": warp(image, homography, self.size).transpose(2, 0, 1),
            "transl": sample["transl"] * placed, "transl_valid": placed, "K_valid": told,
            "keypoints_valid": flat[order, 2] * seen, "keypoints_3d_valid": solid[order, 3],
            "pose_valid": record["has_pose"], "betas_valid": record["has_betas"] * is_smpl,
            "gender": np.int64(record["gender"])}

    def smpl_pose(self, pose: np.ndarray) -> np.ndarray:
        """SMPL's axis-angles (24, 3) of a record's: those of SMPL-X without fingers and face."""
        return pose if self.MODEL == "smpl" else np.concatenate([pose[:22], 0 * pose[:2]])

    def neural_annot(self, fit: dict) -> dict:
        """The columns of a body that NeuralAnnot fitted, SMPL's or SMPL-X's; none without one."""
        row = {"betas": fit["shape"][:10], "transl": fit["trans"], "has_pose": 1, "has_betas": 1,
               "has_transl": 1}
        if self.MODEL == "smpl":
            return row | {"pose": np.reshape(fit["pose"], (24, 3))}
        parts = [fit[name] for name in ("root_pose", "body_pose", "jaw_pose")] + [np.zeros(6)] + [
            fit[name] for name in ("lhand_pose", "rhand_pose")]
        vector = np.concatenate([np.reshape(part, -1) for part in parts])[None]
        pose = self.absolute(vector)
        return row | {"pose": (vector.reshape(1, 55, 3) if pose is None else pose)[0],
                      "has_hands": pose is not None}

    def crop(self, record: np.ndarray, flat: np.ndarray, size: tuple[int, int],
             rng: np.random.Generator) -> tuple[np.ndarray, float, bool]:
        """Homography of the crop, and the roll and mirror in it. Without a box: all the picture."""
        center, (width, height) = record["center"].astype(np.float64), record["box"]
        side = BOX_MARGIN * max(height, width / SEEN_WIDTH)
        if side <= 0:
            center, side = np.array(size) / 2, max(size[1], size[0] / SEEN_WIDTH)
        if self.augmentation is None or not self.augmentation.moves:
            return crop_homography(center, side, self.size), 0.0, False
        return draw_crop(rng, self.augmentation, self.size, flat[:, :2],
                         bodymodels.JOINT_SETS[self.joint_set], (center, side), flat[:, 2] > 0)

    def with_model_keypoints(self, columns: dict, gender: str = "neutral", template: str = ""
                             ) -> dict:
        """Columns of SMPL-X bodies with their keypoints, "smplx76", and the boxes of those."""
        if self.models is None:
            raise FileNotFoundError(f"{type(self).__name__} tells poses and no keypoints: give the "
                                    "folder of SMPL-X's models with models=, or --models")
        model = self.body(gender, template=template, light=True, num_betas=self.NUM_BETAS)
        betas, pose = (torch.as_tensor(np.asarray(columns[name]), dtype=torch.float32)
                       for name in ("betas", "pose"))
        betas = betas.expand(len(pose), -1)
        roots = model.rest_joints(betas)[:, 0].numpy()
        transl = np.stack([moved_translation(*moved) for moved in zip(
            np.broadcast_to(columns["transl"], roots.shape), np.broadcast_to(
                columns["world_to_camera"], (len(roots), 3, 4)), roots, strict=True)])
        points = model.keypoints(model(betas, pose, transl=torch.from_numpy(transl))).numpy()
        front = (points[..., 2] > 0.05).astype(np.float32)  # metres
        flat = pixels(np.where(front[..., None] > 0, points, 1.0), np.asarray(columns["K"]))
        center, box = boxes_around(with_confidence(flat, front))
        return columns | {"keypoints_2d": with_confidence(flat, front), "center": center,
                          "keypoints_3d": with_confidence(points), "box": box}


def xywh_box(box: Sequence[float]) -> dict[str, np.ndarray]:
    """Centre and size of a box given as left, top, width and height (..., 4)."""
    box = np.asarray(box, np.float64)
    return {"center": box[..., :2] + box[..., 2:4] / 2, "box": box[..., 2:4]}


def corner_box(box: np.ndarray) -> dict[str, np.ndarray]:
    """Centre and size of boxes given as left, top, right and bottom (..., 4)."""
    return {"center": (box[..., :2] + box[..., 2:4]) / 2, "box": box[..., 2:4] - box[..., :2]}


class ThreeDPW(BodyPictures):
    """3DPW (von Marcard et al. 2018): imageFiles/ and sequenceFiles/.

    A person's frame counts if its camera pose is valid and its 2D keypoints are there: 35,515 of
    the test split. Poses and jointPositions are of the world, cam_poses lead from there to the
    camera. poses2d are (3, 18) a frame. Pictures are numbered 0, 1, ..., whatever img_frame_ids
    say. The box is that of the 2D keypoints, as SPIN makes it. keypoints_2d are a detector's,
    keypoints_3d the 24 joints of the gendered body.
    """

    SPLITS = {"test": "test", "train": "train", "val": "validation"}
    SOURCES = ("sequenceFiles/{split}/*.pkl",)
    JOINTS, COUNTS = "smpl45", {"test": 35_515}
    HOME = "virtualhumans.mpi-inf.mpg.de/3DPW"

    def rows(self) -> Iterator[dict]:
        for path in next(iter(self.sources.values())):
            content = bodymodels.safe_unpickle(self.file(path))
            for person, gender in enumerate(content["genders"]):
                yield self._person(path.stem, content, person, gender)

    @staticmethod
    def _person(sequence: str, content: dict, person: int, gender: str) -> dict:
        detected = content["poses2d"][person].swapaxes(1, 2)  # (N, 18, 3)
        kept = np.flatnonzero((content["campose_valid"][person] > 0)
                              & (detected[..., 2] > 0).any(1))
        detected, motion = detected[kept], content["cam_poses"][kept, :3]
        R, t = motion[..., :3], motion[..., 3]
        detected = with_confidence(detected[..., :2], detected[..., 2])
        center, box = boxes_around(detected)
        joints = content["jointPositions"][person].reshape(-1, 24, 3)[kept] @ R.swapaxes(1, 2)
        solid = np.zeros((len(kept), 45, 4))
        solid[:, :24] = with_confidence(joints + t[:, None])
        pose = content["poses"][person].reshape(-1, 24, 3)[kept]
        pose[:, 0] = turned(R, pose[:, 0])
        return {
            "image": [f"imageFiles/{sequence}/image_{frame:05d}.jpg" for frame in kept],
            "K": content["cam_intrinsics"], "center": center, "box": box, "pose": pose,
            "keypoints_2d": relabelled(detected, "openpose18", "smpl45"), "keypoints_3d": solid,
            "betas": content["betas"][person][:10], "transl": content["trans"][person][kept],
            "world_to_camera": motion, "has_pose": 1, "has_betas": 1, "has_transl": 1,
            "gender": {"n": 0, "m": 1, "f": 2}[gender[0]], "person": person, "frame": kept,
            "sequence": sequence}


class ThreeDPWMoon(BodyPictures):
    """3DPW as Moon's lineage packs it: 3DPW_test.json, 3DPW_train.json, ... and imageFiles/.

    SMPL's parameters are in the camera's frame there, for the neutral model. Other people than
    the rows of ThreeDPW: scores of the two do not compare. joint_cam is not read.
    """

    SPLITS = ThreeDPW.SPLITS
    SOURCES = ("3DPW_{split}.json",)
    JOINTS = "smpl45"
    HOME = "github.com/mks0601/3DMPPE_POSENET_RELEASE"

    def rows(self) -> Iterator[dict]:
        content = self.json(f"3DPW_{self.SPLITS[self.split]}.json")
        pictures = {item["id"]: item for item in content["images"]}
        for item in content["annotations"]:
            picture = pictures[item["image_id"]]
            camera = item.get("cam_param") or picture["cam_param"]
            yield xywh_box(item["bbox"]) | {
                "image": f"imageFiles/{picture['sequence']}/{picture['file_name']}",
                "K": intrinsics(camera["focal"], camera["princpt"]),
                "person": item["id"], "sequence": picture["sequence"],
                "image_size": (picture["width"], picture["height"])
            } | self.neural_annot(item["smpl_param"])


class EMDB(BodyPictures):
    """EMDB (Kaufmann et al. 2023): P0/ to P9/, in them 14_outdoor_climb/ and so on.

    Which of its two benchmarks a sequence belongs to, the file's own flags tell. Frames count by
    good_frames_mask. The world's y is up, extrinsics lead to the camera.
    """

    SPLITS = {"emdb1": "emdb1", "emdb2": "emdb2"}
    SOURCES = ("P*/*/*_data.pkl",)
    JOINTS = "smpl24"
    HOME = "eth-ait.github.io/emdb"

    def rows(self) -> Iterator[dict]:
        for path in next(iter(self.sources.values())):
            content = bodymodels.safe_unpickle(self.file(path))
            if content[self.split]:
                yield self._sequence(path.parent.relative_to(self.root).as_posix(), content)

    @staticmethod
    def _sequence(folder: str, content: dict) -> dict:
        kept = np.flatnonzero(content["good_frames_mask"])
        camera, body = content["camera"], content["smpl"]
        motion = camera["extrinsics"][kept, :3]
        root = turned(motion[..., :3], body["poses_root"][kept])
        return corner_box(content["bboxes"]["bboxes"][kept]) | {
            "image": [f"{folder}/images/{frame:05d}.jpg" for frame in kept],
            "image_size": (int(camera["width"]), int(camera["height"])),
            "K": camera["intrinsics"], "keypoints_2d": with_confidence(content["kp2d"][kept]),
            "pose": np.concatenate([root, body["poses_body"][kept]], 1).reshape(-1, 24, 3),
            "betas": body["betas"][:10], "transl": body["trans"][kept], "frame": kept,
            "world_to_camera": motion, "has_pose": 1, "has_betas": 1, "has_transl": 1,
            "gender": GENDERS.index(content["gender"]), "sequence": content["name"]}


class SPIN(BodyPictures):
    """The flat files of SPIN (Kolotouros et al. 2019): dataset_extras/*.npz beside the pictures.

    root: the folder of one data set with the names that imgname tells, and dataset_extras/ in it.
    A split is a file's name. scale is a side / 200, whatever margin its maker had: crops show that
    square. `S` is relative to the pelvis. Any annotation may be missing.
    """

    SPLITS = {name: name for name in (
        "h36m_train", "h36m_valid_protocol1", "h36m_valid_protocol2", "3dpw_test", "mpii_train",
        "coco_2014_train", "mpi_inf_3dhp_train", "mpi_inf_3dhp_valid", "lsp_dataset_test")}
    SOURCES = ("dataset_extras/{split}.npz",)
    JOINTS, COUNTS = "eft49", {"3dpw_test": 35_515, "h36m_valid_protocol1": 109_867,
                               "h36m_valid_protocol2": 27_558, "mpi_inf_3dhp_valid": 2_929}
    HOME = "github.com/nkolot/SPIN"

    def rows(self) -> Iterator[dict]:
        arrays = bodymodels.load_arrays(self.file(self.SOURCES[0].format(
            split=self.SPLITS[self.split])))
        names = texts(arrays["imgname"])
        kept = [index for index, name in enumerate(names) if self.wanted(name)]
        arrays = {name: value[kept] for name, value in arrays.items() if len(value) == len(names)}
        count = len(kept)
        side = np.asarray(arrays["scale"], np.float64) * 200 / BOX_MARGIN
        known = arrays.get("has_smpl", np.full(count, float("pose" in arrays)))
        flat = [arrays.get("openpose", np.zeros((count, 25, 3))),
                arrays.get("part", np.zeros((count, 24, 3)))]
        solid = arrays.get("S", np.zeros((count, 24, 4)))
        flat = np.concatenate(flat, 1)
        genders = [gender_number(value) for value in arrays.get("gender", ["n"] * count)]
        if count:
            yield {"image": [names[index] for index in kept], "center": arrays["center"],
                   "box": np.stack([side, side], 1), "has_pose": known, "has_betas": known,
                   "keypoints_2d": with_confidence(flat[..., :2], flat[..., 2]),
                   "keypoints_3d": np.pad(solid, ((0, 0), (25, 0), (0, 0))),
                   "pose": arrays.get("pose", np.zeros((count, 72))).reshape(-1, 24, 3),
                   "betas": arrays.get("shape", np.zeros((count, 10)))[:, :10], "frame": kept,
                   "gender": genders}

    def wanted(self, name: str) -> bool:
        """Whether the picture belongs to the split."""
        return True


def texts(names: np.ndarray) -> list[str]:
    """Names that a file holds as text or as bytes."""
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def gender_number(value: object) -> int:
    """Where in GENDERS a name ("m", b"female") or a number (-1 neutral, 0 male, 1 female) leads.

    The numbers are those of HMR2.0's files for evaluation as far as we know: unverified.
    """
    value = value.decode() if isinstance(value, bytes) else value
    if isinstance(value, str):
        return {"n": 0, "m": 1, "f": 2}[value[:1].lower()]
    return int(value) + 1


class EFT(BodyPictures):
    """EFT's fits of SMPL (Joo et al. 2021): COCO2014-Part-ver01.json and so on, beside pictures.

    A split is a file's name. Poses are rotation matrices; scale is a side / 200, and crops show
    that square. Neither K nor a place before the camera is told. Option images: the pictures'
    folder below root, by default that of COCO's.
    """

    COUNTS = {"COCO2014-Part-ver01": 28_344, "COCO2014-All-ver01": 79_051,
              "COCO2014-Val-ver10": 10_510, "MPII_ver01": 14_361, "LSPet_ver01": 2_946}
    SPLITS = {name: name for name in COUNTS}
    SOURCES = ("{split}.json",)
    JOINTS, OPTIONS = "eft49", {"images": "train2014"}
    HOME = "github.com/facebookresearch/eft"

    def rows(self) -> Iterator[dict]:
        for item in stream_json_list(self.file(f"{self.split}.json"), key="data"):
            pose = torch.tensor(item["parm_pose"], dtype=torch.float64).reshape(24, 3, 3)
            keypoints = np.reshape(np.array(item["gt_keypoint_2d"], np.float64), (49, 3))
            yield {"image": f"{self.options['images']}/{item['imageName']}",
                   "center": item["bbox_center"],
                   "box": np.full(2, item["bbox_scale"] * 200 / BOX_MARGIN),
                   "pose": bodymodels.matrix_to_axis_angle(pose).numpy(), "has_pose": 1,
                   "betas": item["parm_shape"], "has_betas": 1, "person": item["annotId"],
                   "keypoints_2d": with_confidence(keypoints[:, :2], keypoints[:, 2])}


class METRO(BodyPictures):
    """METRO's and FastMETRO's tables of bodies (Lin et al. 2021): a .yaml that names those of one
    split, *.label.tsv and *.img.tsv, with *.img.lineidx beside it.

    Option table: the .yaml. A line is a key, a tab and a value: a JSON list of one dictionary, or
    in the last column a picture in base64, which stays where it is. scale is a side / 200. Joints
    in the plane may be placeholders: has_2d_joints. linelist, which chooses lines, tables that join
    others (composite) and those of hands are not read.
    """

    SPLITS, SOURCES = {"train": ""}, ()
    JOINTS, OPTIONS, FILES = "j24", {"table": "train.yaml"}, ("table",)
    HOME = "github.com/microsoft/MeshTransformer"

    def find_sources(self) -> dict[str, list[Path]]:
        found = super().find_sources()
        try:
            names = self.yaml(self.options["table"])
            self.pictures = names["img"]
            wanted = names["label"], Path(names["img"]).with_suffix(".lineidx")
        except UNREADABLE as error:
            raise ValueError(f"{self.reading} is not as METRO is shipped ({error}): expected the "
                             "names of label and img") from error
        return found | {str(name): [self.file(name)] for name in wanted}

    def rows(self) -> Iterator[dict]:
        _, labels, index = (paths[0] for paths in self.sources.values())
        path = self.file(self.pictures)
        starts = [int(line) for line in self.file(index).read_text().split()]
        lines = self.file(labels).read_text().splitlines()
        with open(path, "rb") as pictures:
            for line, start, end in zip(lines, starts, [*starts[1:], path.stat().st_size],
                                        strict=True):
                pictures.seek(start)
                tab = pictures.read(min(end - start, 4096)).rindex(b"\t") + 1  # base64 has none
                yield self._person(json.loads(line.split("\t", 1)[1])[0]) | {
                    "image": self.pictures, "part": (start + tab, end - start - tab)}

    @staticmethod
    def _person(label: dict) -> dict:
        flat, solid = (np.reshape(label[f"{kind}_joints"], (24, width)).astype(np.float64)
                       for kind, width in (("2d", 3), ("3d", 4)))
        return {"center": label["center"], "box": np.full(2, label["scale"] * 200 / BOX_MARGIN),
                "keypoints_2d": with_confidence(flat[:, :2], flat[:, 2] * label["has_2d_joints"]),
                "keypoints_3d": with_confidence(solid[:, :3], solid[:, 3] * label["has_3d_joints"]),
                "pose": np.reshape(label["pose"], (24, 3)), "has_pose": label["has_smpl"],
                "betas": label["betas"], "has_betas": label["has_smpl"],
                "gender": gender_number(label.get("gender", "n"))}


class Human36M(SPIN):
    """Human3.6M (Ionescu et al. 2014) in SPIN's files: images/ and dataset_extras/h36m_*.npz.

    p2 is protocol 2: the frontal camera 60457274 alone, of subjects 9 and 11.
    """

    SPLITS = {"train": "h36m_train", "p1": "h36m_valid_protocol1", "p2": "h36m_valid_protocol2"}
    COUNTS = {"p1": 109_867, "p2": 27_558}
    HOME = "vision.imar.ro/human3.6m and github.com/nkolot/SPIN"

    def wanted(self, name: str) -> bool:
        return self.split != "p2" or ".60457274" in name


class Human36MMoon(BodyPictures):
    """Human3.6M as Moon's lineage packs it: images/ and annotations/Human36M_subject*_*.json.

    All is in the world's frame, joints and translations of cameras in millimetres; joints run
    right leg first. Options: stride, of the 50 frames a second. SMPL's fits (NeuralAnnot) are
    taken where they are. p1: all cameras of subjects 9 and 11; p2: the fourth alone.
    """

    SPLITS = {"train": "train", "p1": "test", "p2": "test"}
    SUBJECTS = {"train": (1, 5, 6, 7, 8), "test": (9, 11)}
    JOINTS, OPTIONS, FITS = "h36m17_moon", {"stride": 5}, "SMPL_NeuralAnnot"
    HOME = "github.com/mks0601/3DMPPE_POSENET_RELEASE"

    def find_sources(self) -> dict[str, list[Path]]:
        found = {}
        for subject in self.SUBJECTS[self.SPLITS[self.split]]:
            names = [f"annotations/Human36M_subject{subject}_{kind}.json"
                     for kind in ("data", "camera", "joint_3d", self.FITS)]
            fits = self.root / names.pop()
            found |= {name: [self.file(name)] for name in names}
            found |= {fits.name: [fits]} if fits.is_file() else {}
        return found

    def rows(self) -> Iterator[dict]:
        for subject in self.SUBJECTS[self.SPLITS[self.split]]:
            data, cameras, joints = (self.json(f"annotations/Human36M_subject{subject}_{kind}.json")
                                     for kind in ("data", "camera", "joint_3d"))
            fits = self.sources.get(f"Human36M_subject{subject}_{self.FITS}.json")
            fits = self.json(fits[0]) if fits else {}
            pictures = {item["id"]: item for item in data["images"]}
            for item in data["annotations"]:
                picture = pictures[item["image_id"]]
                place = [str(picture[f"{kind}_idx"]) for kind in ("action", "subaction", "frame")]
                if picture["frame_idx"] % self.options["stride"] == 0 and (
                        self.split != "p2" or picture["cam_idx"] == 4):
                    yield self._person(item, picture, cameras[str(picture["cam_idx"])],
                                       nested(joints, place), nested(fits, place))

    def _person(self, item: dict, picture: dict, camera: dict, world: list | None,
                fit: dict | None) -> dict:
        R, t = np.array(camera["R"]), np.array(camera["t"]) / 1000
        K = intrinsics(camera["f"], camera["c"])
        row = xywh_box(item["bbox"]) | {
            "image": f"images/{picture['file_name']}", "K": K, "person": picture["subject"],
            "image_size": (picture["width"], picture["height"]), "frame": picture["frame_idx"],
            "world_to_camera": rigid(R, t), "sequence": Path(picture["file_name"]).parent.name}
        if world is not None:
            points = np.array(world) / 1000 @ R.T + t
            row |= {"keypoints_3d": with_confidence(points),
                    "keypoints_2d": with_confidence(pixels(points, K))}
        if fit is not None:
            row |= self.neural_annot(fit)
            row["pose"][:1] = turned(R, row["pose"][:1])
        return row


class Human36MSMPLX(Human36MMoon):
    """The same with NeuralAnnot's fits of SMPL-X, which HMR-Adapter trains on.

    Fingers are relative to the mean hand there: without `models` they stay unknown.
    """

    MODEL, HAND_SPACE, FITS = "smplx", "mean_relative", "SMPLX_NeuralAnnot"


def nested(tree: dict, keys: Sequence[str]) -> object:
    """tree[a][b][c], or None where a key is missing."""
    for key in keys:
        tree = tree.get(key) if tree else None
    return tree


class COCO(BodyPictures):
    """COCO (Lin et al. 2014): annotations/person_keypoints_*.json, train2014/, val2014/, ...

    17 keypoints in the plane; v = 1 and 2 (covered, visible) count alike. Options: min_keypoints,
    how many of the twelve of the limbs a person must have (SPIN: 12); crowds are left out; fits,
    a file of NeuralAnnot's below root, by annotation: many people have none. Its K is a guess made
    with the fit, not the picture's own, and differs between people.
    """

    SPLITS = {"train": "train2014", "val": "val2014", "train2017": "train2017",
              "val2017": "val2017"}
    SOURCES = ("annotations/person_keypoints_{split}.json",)
    JOINTS, OPTIONS, FILES = "coco17", {"min_keypoints": 12, "fits": ""}, ("fits",)
    HOME = "cocodataset.org"

    def rows(self) -> Iterator[dict]:
        folder = self.SPLITS[self.split]
        fits = self.json(self.options["fits"]) if self.options["fits"] else {}
        path = self.file(f"annotations/person_keypoints_{folder}.json")
        pictures = {item["id"]: item for item in stream_json_list(path, key="images")}
        for item in stream_json_list(path, key="annotations"):
            keypoints = np.reshape(np.array(item["keypoints"], np.float64), (17, 3))
            if item["iscrowd"] or (keypoints[5:, 2] > 0).sum() < self.options["min_keypoints"]:
                continue
            picture = pictures[item["image_id"]]
            yield xywh_box(item["bbox"]) | {
                "image": f"{folder}/{picture['file_name']}", "person": item["id"],
                "image_size": (picture["width"], picture["height"]),
                "keypoints_2d": with_confidence(keypoints[:, :2], keypoints[:, 2] > 0)
            } | self._fit(fits.get(str(item["id"])))

    def _fit(self, fit: dict | None) -> dict:
        """The columns of a fit, which has a camera of its own."""
        if fit is None:
            return {}
        camera = fit["cam_param"]
        return {"K": intrinsics(camera["focal"], camera["princpt"])
                } | self.neural_annot(fit["smpl_param"])


class AIC(BodyPictures):
    """AI Challenger's keypoints: keypoint_train_annotations_20170902.json and the pictures' folder.

    v = 1 is visible, 2 covered and 3 absent: not as in COCO. Names have no ending.
    """

    SPLITS = {"train": "20170902"}
    SOURCES = ("keypoint_train_annotations_{split}.json",)
    JOINTS, OPTIONS = "aic14", {"min_keypoints": 1}
    HOME = "github.com/AIChallenger/AI_Challenger_2017"

    def rows(self) -> Iterator[dict]:
        for item in stream_json_list(self.file("keypoint_train_annotations_20170902.json")):
            for number, (name, box) in enumerate(sorted(item["human_annotations"].items())):
                keypoints = np.reshape(np.array(item["keypoint_annotations"][name], float), (14, 3))
                known = (keypoints[:, 2] == 1) | (keypoints[:, 2] == 2)
                if known.sum() >= self.options["min_keypoints"]:
                    yield corner_box(np.array(box, np.float64)) | {
                        "image": f"keypoint_train_images_20170902/{item['image_id']}.jpg",
                        "keypoints_2d": with_confidence(keypoints[:, :2], known), "person": number}


def read_mat(path: Path) -> dict:
    """The variables of a MATLAB file before version 7.3, structs as objects with attributes."""
    from scipy.io import loadmat  # takes a while to import
    try:
        return loadmat(path, squeeze_me=True, struct_as_record=False)
    except Exception as error:  # what damaged files raise is nearly anything
        raise ValueError(f"no MATLAB file before version 7.3: {error}") from error


def listed(value: object) -> list:
    """A MATLAB array of objects as a list: of one it makes the thing itself, of none nothing."""
    return list(np.atleast_1d(np.asarray(value, object)))


class MPII(BodyPictures):
    """MPII Human Pose (Andriluka et al. 2014): mpii_human_pose_v1_u12_1.mat and images/.

    Only the training pictures have labels. Points have an id and come in any order, some missing;
    pixels count from 1 there and from 0 here. The box is a square of the person's height, scale x
    200, around objpos. Options: min_keypoints of 16 (SPIN: all).
    """

    SPLITS = {"train": "train"}
    SOURCES = ("mpii_human_pose_v1_u12_1.mat",)
    JOINTS, OPTIONS = "mpii16", {"min_keypoints": 16}
    HOME = "human-pose.mpi-inf.mpg.de"

    def rows(self) -> Iterator[dict]:
        release = read_mat(self.file(self.SOURCES[0]))["RELEASE"]
        for item, training in zip(listed(release.annolist), listed(release.img_train), strict=True):
            for number, person in enumerate(listed(getattr(item, "annorect", []))):
                points = listed(getattr(getattr(person, "annopoints", None), "point", []))
                keypoints = np.zeros((16, 3))
                for point in points:
                    keypoints[int(point.id)] = point.x - 1, point.y - 1, 1
                if training and keypoints[:, 2].sum() >= self.options["min_keypoints"]:
                    height = float(person.scale) * 200
                    yield {"image": f"images/{item.image.name}", "person": number,
                           "center": (person.objpos.x - 1, person.objpos.y - 1),
                           "box": (height, height), "keypoints_2d": keypoints}


class MPIINF3DHP(BodyPictures):
    """MPI-INF-3DHP (Mehta et al. 2017): S1/ to S8/ to train, mpi_inf_3dhp_test_set/ to evaluate.

    The frames of the videos have to be extracted by whoever has them, to S1/Seq1/imageFrames/
    video_0/frame_000001.jpg, counted from 1. Training: the eight cameras at chest height, every
    10th frame (option stride), all 17 joints in the picture; annot3, millimetres before the
    camera. Test: files of HDF5 (h5py reads them), valid frames with all joints in the picture, and
    by default univ_annot3 as in SPIN's files (option universal).
    """

    SPLITS = {"train": "S*/Seq*/annot.mat", "test": "mpi_inf_3dhp_test_set/TS*/annot_data.mat"}
    SOURCES = ("{split}",)
    JOINTS, OPTIONS = "h36m17_spin", {"stride": 10, "universal": True}
    COUNTS = {"test": 2_929}
    HOME = "vcai.mpi-inf.mpg.de/3dhp-dataset"
    CAMERAS = (0, 1, 2, 4, 5, 6, 7, 8)
    OF_28 = (4, 18, 19, 20, 23, 24, 25, 3, 5, 6, 7, 9, 10, 11, 14, 15, 16)
    OF_17 = (14, 11, 12, 13, 8, 9, 10, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4)

    def find_sources(self) -> dict[str, list[Path]]:
        found = super().find_sources()
        if self.split == "train":
            found["camera.calibration"] = [self.file(path.with_name("camera.calibration"))
                                           for path in next(iter(found.values()))]
        return found

    def rows(self) -> Iterator[dict]:
        for path in next(iter(self.sources.values())):
            folder = path.parent.relative_to(self.root)
            yield from (self._training if self.split == "train" else self._test)(path, folder)

    def _training(self, path: Path, folder: Path) -> Iterator[dict]:
        lines = self.file(folder / "camera.calibration").read_text().splitlines()
        matrices = [np.array(lines[7 * camera + 5].split()[1:], np.float64).reshape(4, 4)
                    for camera in range(14)]  # seven lines a camera, the fifth are the intrinsics
        content = read_mat(self.file(path))
        for camera in self.CAMERAS:
            K = matrices[camera][:3, :3]
            flat = content["annot2"][camera].reshape(-1, 28, 2)[:, self.OF_28]
            solid = content["annot3"][camera].reshape(-1, 28, 3)[:, self.OF_28] / 1000
            kept = np.arange(0, len(flat), self.options["stride"])
            name = f"{folder.as_posix()}/imageFrames/video_{camera}/frame_{{:06d}}.jpg"
            yield from self._frames(name, kept, flat, solid, (2048, 2048), K)

    def _test(self, path: Path, folder: Path) -> Iterator[dict]:
        import h5py  # only these six files are of this kind
        try:
            with h5py.File(self.file(path), "r") as content:
                flat, solid, valid = (content[name][()] for name in (
                    "annot2", "univ_annot3" if self.options["universal"] else "annot3",
                    "valid_frame"))
        except OSError as error:
            raise ValueError(f"no HDF5: {error}") from error
        name = f"{folder.as_posix()}/imageSequence/img_{{:06d}}.jpg"
        with Image.open(self.file(name.format(1))) as picture:
            size = picture.size
        yield from self._frames(name, np.flatnonzero(valid), flat[:, 0, self.OF_17],
                                solid[:, 0, self.OF_17] / 1000, size, np.zeros((3, 3)))

    @staticmethod
    def _frames(name: str, kept: np.ndarray, flat: np.ndarray, solid: np.ndarray,
                size: tuple[int, int], K: np.ndarray) -> Iterator[dict]:
        """The frames of those kept that have all joints in the picture."""
        kept = kept[inside(flat[kept], *size).all(1)]
        flat = with_confidence(flat[kept])
        center, box = boxes_around(flat)
        if len(kept):
            yield {"image": [name.format(frame + 1) for frame in kept], "image_size": size,
                   "center": center, "box": box, "K": K, "frame": kept, "keypoints_2d": flat,
                   "keypoints_3d": with_confidence(solid[kept])}


# --------------------------------------------------------------- official, packed by others


def shard_items(path: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Keys of a tar file and for each {ending: (first byte, bytes)}.

    Members belong together while their names up to the base name's first dot are the same.
    """
    with tarfile.open(path, "r:") as archive:
        files = (member for member in archive if member.isfile())

        def key(member: tarfile.TarInfo) -> str:
            folder, slash, base = member.name.rpartition("/")
            return folder + slash + base.partition(".")[0]

        for name, members in itertools.groupby(files, key):
            yield name, {member.name.rpartition("/")[2].partition(".")[2]:
                         (member.offset_data, member.size) for member in members}
        if _bytes_of(path, archive.offset, 512).read() != bytes(512):  # tarfile would just stop
            raise ValueError(f"damaged or cut off at byte {archive.offset}")


class Shards(Pictures):
    """Tar files of HMR2.0's and HaMeR's training sets: 000000.tar, ... of one set in a folder.

    A key is a picture, data.pyd, a pickled list of the people in it, and perhaps detection.npz,
    their masks: `mask(index)`. scale is the box's width and height / 200 and a body's crop shows
    that box. A key that is damaged is left out with a warning, a damaged shard is an error, and
    what a file exclude.txt beside the shards names, a key without its folder a line, is left out,
    too. Pictures stay in the shards, which all cores read at once.
    """

    SPLITS, UNIT = {"train": ""}, "shard"
    SOURCES = ("*.tar",)
    PICTURES = ("jpg", "jpeg", "png")

    def find_sources(self) -> dict[str, list[Path]]:
        path = self.root / "exclude.txt"
        self.excluded = set(path.read_text().split()) if path.is_file() else set()
        return super().find_sources() | ({path.name: [path]} if path.is_file() else {})

    def count_rows(self) -> int:
        return len(self.sources["*.tar"])

    def rows(self) -> Iterator[np.ndarray]:
        paths = self.sources["*.tar"]
        alone = multiprocessing.current_process().daemon  # which may have no children
        workers = 1 if alone else min(available_cores(), len(paths))
        with multiprocessing.Pool(workers) if workers > 1 else contextlib.nullcontext() as pool:
            found = pool.imap(self.shard, paths, 8) if pool else map(self.shard, paths)
            for self.reading, shard in zip(paths, found, strict=True):
                if isinstance(shard, Exception):
                    raise shard
                records, complaints = shard
                for complaint in complaints:
                    warnings.warn(complaint, stacklevel=1)
                yield records

    def shard(self, path: Path) -> tuple[np.ndarray, list[str]] | Exception:
        """`people`, or why they cannot be read."""
        try:
            return self.people(path)
        except UNREADABLE as error:
            return error

    def people(self, path: Path) -> tuple[np.ndarray, list[str]]:
        """The people of one shard, and what was left out because it is damaged."""
        rows, complaints = [np.zeros(0, self.dtype)], []
        for key, parts in shard_items(path):
            unknown = set(parts) - {*self.PICTURES, "data.pyd", "detection.npz"}
            if unknown:
                raise ValueError(f"{key} has a part of unknown kind, {', '.join(unknown)}")
            picture = next((parts[ending] for ending in self.PICTURES if ending in parts), None)
            if picture is None or key.rpartition("/")[2] in self.excluded:
                continue
            try:
                people = bodymodels.safe_unpickle(_bytes_of(path, *parts["data.pyd"]).read())
                rows += [to_records(row | {
                    "image": path.name, "part": picture, "person": number, "sequence": key[-96:],
                    "mask": (*parts.get("detection.npz", (0, 0)), mask_number(people[number]))
                }, self.dtype) for number, row in enumerate(map(self.person, people)) if row]
            except UNREADABLE as error:
                complaints.append(f"{path}: {key} is damaged and left out ({error})")
        return np.concatenate(rows), complaints

    def mask(self, index: int) -> np.ndarray:
        """Where in its picture (H, W) a person was detected; all of it if the shard does not tell.
        """
        record = self.records()[index]
        start, count, number = record["mask"].tolist()
        if not count or number < 0:
            return np.ones(self.picture(record).shape[:2], bool)
        member = _bytes_of(self.root / record["image"].decode(), start, count)
        with np.load(member, allow_pickle=False) as arrays:
            return arrays["masks"][number].astype(bool)

    def person(self, person: dict) -> dict | None:
        """The columns of one person; None leaves it out."""
        raise NotImplementedError


class HMRShards(Shards, BodyPictures):
    """HMR2.0's training sets (Goel et al. 2023): dataset_tars/coco-train-2014-pruned and so on.

    filters: as in HMR2.0's training: keypoints below a confidence of 0.3 do not count; people with
    four keypoints or fewer, or a reprojection loss of 31,000 or more, are left out; a pose goes
    with its shape, which is not believed if a coefficient is beyond 3; a shape that is unknown is
    the mean one. SUPPRESS_BAD_POSES is not done: it needs a histogram of AMASS whose layout and
    threshold are not documented. The nine bad pictures of AI Challenger that HMR2.0 leaves out by
    name want an exclude.txt, see Shards.
    """

    JOINTS, OPTIONS = "hmr44", {"filters": True}
    HOME = "github.com/shubham-goel/4D-Humans"

    def person(self, person: dict) -> dict | None:
        keypoints = np.array(person["keypoints_2d"], np.float64)
        betas = np.array(person["betas"], np.float64)
        has_pose, has_betas = (float(np.asarray(person[name])) > 0
                               for name in ("has_body_pose", "has_betas"))
        if self.options["filters"]:
            keypoints[keypoints[:, 2] < 0.3] = 0
            if (keypoints[:, 2] > 0).sum() <= 4 or reprojection_loss(person) >= 31_000:
                return None
            has_pose = has_betas = has_pose and has_betas and np.abs(betas).max() <= 3
            betas, has_betas = betas * has_betas, True
        return {"keypoints_2d": keypoints, "keypoints_3d": person["keypoints_3d"],
                "center": person["center"],
                "box": np.broadcast_to(person["scale"], 2) * 200 / BOX_MARGIN,
                "pose": np.reshape(person["body_pose"], (24, 3)), "betas": betas,
                "has_pose": has_pose, "has_betas": has_betas}


def mask_number(person: dict) -> int:
    """Which of its picture's masks is a person's; -1 if the file does not tell."""
    return int(person.get("extra_info", {}).get("detection_npz_idx", -1))


def reprojection_loss(person: dict) -> float:
    """Of the fit behind a person of HMR2.0's; 0 if the file does not tell."""
    losses = person.get("extra_info", {}).get("fitting_loss", {})
    losses = losses.item() if isinstance(losses, np.ndarray) else losses
    return float(losses.get("reprojection_loss", 0.0))


class HaMeRShards(Shards, HandPictures):
    """HaMeR's training sets (Pavlakos et al. 2024): dataset_tars/freihand-train and so on.

    hand_pose is absolute (as HaMeR's layer and its author's answers say; not seen in a real tar).
    K is not told: the crop's camera is a guess, and joints may be relative to the wrist. The crop
    is around the keypoints: scale is not used.
    """

    COUNTS = {"freihand-train": 130_240, "interhand26m-train": 1_424_632, "dex-train": 406_888,
              "halpe-train": 34_289, "cocow-train": 78_666, "mtc-train": 363_947,
              "rhd-train": 61_705, "mpiinzsl-train": 15_184, "ho3d-train": 83_325,
              "h2o3d-train": 121_996}  # as HaMeR's epochs count
    HOME = "github.com/geopavlakos/hamer"
    MODEL_OPTIONS = {"fix_left_shapedirs": True}

    def person(self, person: dict) -> dict | None:
        return {"keypoints_2d": person["keypoints_2d"], "keypoints_3d": person["keypoints_3d"],
                "center": person["center"], "box": np.broadcast_to(person["scale"], 2) * 200,
                "pose": np.reshape(person["hand_pose"], (16, 3)), "betas": person["betas"],
                "has_pose": np.asarray(person["has_hand_pose"]) > 0,
                "has_hands": np.asarray(person["has_hand_pose"]) > 0,
                "has_betas": np.asarray(person["has_betas"]) > 0,
                "side": int(np.asarray(person["right"]))}


class Flat(Pictures):
    """Files for evaluation of HMR2.0 and HaMeR: SPLIT.npz and a folder of pictures.

    Options: images, the pictures' folder below root. scale is in pixels here, not in 200 of them,
    but in TokenHMR's emdb_for_hmr2. Only imgname, center and scale must be there.
    """

    SOURCES = ("{split}.npz",)
    OPTIONS = {"images": "images"}

    def rows(self) -> Iterator[dict]:
        arrays = bodymodels.load_arrays(self.file(f"{self.SPLITS[self.split]}.npz"))
        scale = np.asarray(arrays["scale"], np.float64)
        box = np.broadcast_to(scale if scale.ndim == 2 else scale[:, None], (len(scale), 2))
        box = box * (200 if self.split == "emdb_for_hmr2" else 1) / BOX_MARGIN
        yield {"image": [f"{self.options['images']}/{name}" for name in texts(arrays["imgname"])],
               "center": arrays["center"], "box": box, "person": arrays.get("personid", 0)
               } | self.labels(arrays, len(box))

    def labels(self, arrays: dict, count: int) -> dict:
        """The columns that may be missing."""
        raise NotImplementedError


class HMRFlat(Flat, BodyPictures):
    """HMR2.0's and TokenHMR's hmr2_evaluation_data: 3dpw_test.npz, h36m_val_p2.npz, ...

    Of body_keypoints_3d the joints 1 to 14 do not count. How gender is told as a number is
    unverified, see `gender_number`.
    """

    SPLITS = {name: name for name in ("3dpw_test", "h36m_val_p2", "coco_val", "emdb_for_hmr2",
                                      "posetrack_2018_val", "hr-lspet_train")}
    JOINTS, HOME = "hmr44", "github.com/shubham-goel/4D-Humans"

    def labels(self, arrays: dict, count: int) -> dict:
        def joined(kind: str, width: int) -> np.ndarray:
            parts = [arrays.get(f"{part}_keypoints_{kind}", np.zeros((count, joints, width)))
                     for part, joints in (("body", 25), ("extra", 19))]
            return np.concatenate(parts, 1)

        flat, solid = arrays.get("keypoints_2d", joined("2d", 3)), joined("3d", 4)
        solid[:, 1:15, 3] = 0
        pose = arrays.get("body_pose", np.zeros((count, 72)))
        has_pose = arrays.get("has_body_pose", float("body_pose" in arrays))
        has_betas = arrays.get("has_betas", float("betas" in arrays))
        return {"keypoints_2d": flat, "keypoints_3d": solid, "pose": pose.reshape(-1, 24, 3),
                "betas": arrays.get("betas", np.zeros((count, 10)))[:, :10], "has_pose": has_pose,
                "has_betas": has_betas,
                "gender": [gender_number(value) for value in arrays.get("gender", ["n"] * count)]}


class HaMeRFlat(Flat, HandPictures):
    """HaMeR's hamer_evaluation_data: freihand_val.npz, ho3d_val.npz and HInt's.

    Left hands (right = 0) are mirrored, hand_pose is absolute, K is not told. The crop is around
    the keypoints: HaMeR's own evaluation takes FreiHAND's boxes as they are.
    """

    SPLITS = {name: name for name in ("freihand_val", "ho3d_val", *(
        f"TEST_{part}_img_{kind}" for part in ("newdays", "vid", "ego4d")
        for kind in ("all", "vis", "occ")))}
    HOME = HaMeRShards.HOME
    MODEL_OPTIONS = HaMeRShards.MODEL_OPTIONS

    def labels(self, arrays: dict, count: int) -> dict:
        known = float("hand_pose" in arrays)
        return {"keypoints_2d": arrays.get("hand_keypoints_2d", np.zeros((count, 21, 3))),
                "keypoints_3d": arrays.get("hand_keypoints_3d", np.zeros((count, 21, 4))),
                "pose": arrays.get("hand_pose", np.zeros((count, 48))).reshape(-1, 16, 3),
                "betas": arrays.get("betas", np.zeros((count, 10))), "has_pose": known,
                "has_hands": known, "has_betas": float("betas" in arrays),
                "side": np.asarray(arrays.get("right", np.ones(count)))}


# ------------------------------------------------------------------------ whole bodies, official


class HumanData(BodyPictures):
    """HumanData of mmhuman3d and SMPLer-X: SPLIT.npz and the pictures that it names.

    Boxes are padded by 1.2 in the file. Fingers are relative to the mean hand unless misc says
    flat_hand_mean: then they need `models` (or stay unknown). Of 190 keypoints, compressed or not,
    the first 144 are SMPL-X's in its own order as mmhuman3d documents it, and 76 of these ours:
    not checked on a file. Intrinsics are focal_length and principal_point (or focal, princpt) of
    meta or misc, for each person or for all.
    """

    SPLITS = {name: name for name in ("p1_train", "p1_val", "rich_train_fix_betas",
                                      "bedlam_train")}
    SOURCES = ("{split}.npz",)
    JOINTS, MODEL, HAND_SPACE = "smplx76", "smplx", "mean_relative"
    HOME = "github.com/SMPLCap/SMPLer-X"

    def rows(self) -> Iterator[dict]:
        arrays = bodymodels.load_arrays(self.file(f"{self.SPLITS[self.split]}.npz"))
        body, meta, misc = (arrays.get(name, {}) for name in ("smplx", "meta", "misc"))
        count = len(arrays["image_path"])
        parts = [np.reshape(body.get(name, np.zeros((count, joints, 3))), (count, joints, 3))
                 for name, joints in (("global_orient", 1), ("body_pose", 21), ("jaw_pose", 1),
                                      ("leye_pose", 1), ("reye_pose", 1), ("left_hand_pose", 15),
                                      ("right_hand_pose", 15))]
        pose, has_hands = np.concatenate(parts, 1), "left_hand_pose" in body
        if has_hands and not misc.get("flat_hand_mean", False):
            absolute = self.absolute(pose)
            has_hands, pose = absolute is not None, pose if absolute is None else absolute
        columns = {"pose": pose, "has_pose": "global_orient" in body, "has_hands": has_hands}
        for name, column in (("betas", "betas"), ("transl", "transl")):
            if name in body:
                columns |= {column: body[name][:, :10], f"has_{column}": 1}
        if {"height", "width"} <= set(meta):
            columns["image_size"] = np.stack([meta["width"], meta["height"]], 1)
        for focal, center in (("focal_length", "principal_point"), ("focal", "princpt")):
            for told in (misc, meta):
                if {focal, center} <= set(told):
                    columns["K"] = self._cameras(told[focal], told[center], count)
        columns |= {f"keypoints_{kind}": self._keypoints(arrays, kind, count)
                    for kind in ("2d", "3d")}
        box = xywh_box(arrays["bbox_xywh"][:, :4])
        yield columns | {"image": texts(arrays["image_path"]), "center": box["center"],
                         "box": box["box"] / 1.2}

    @staticmethod
    def _cameras(focal: object, center: object, count: int) -> np.ndarray:
        """K (count, 3, 3) of numbers or pairs, of one for all or one each."""
        def pairs(value: object) -> np.ndarray:
            array = np.asarray(value, np.float64)
            array = array[:, None] if array.ndim == 1 and array.shape != (2,) else array
            return np.broadcast_to(array, (count, 2))

        K = np.tile(np.eye(3), (count, 1, 1))
        K[:, [0, 1], [0, 1]], K[:, :2, 2] = pairs(focal), pairs(center)
        return K

    def _keypoints(self, arrays: dict, kind: str, count: int) -> np.ndarray:
        """Those of SMPL-X, or else the original ones, with confidences; zeros without any."""
        names = [f"keypoints{kind}{suffix}" for suffix in ("_smplx", "_original", "")]
        name = next((name for name in names if name in arrays), None)
        if name is None:
            return np.zeros((count, 76, int(kind[0]) + 1))
        points, mask = np.asarray(arrays[name], np.float64), np.asarray(arrays[f"{name}_mask"]) > 0
        if arrays.get("__keypoints_compressed__", False):
            whole = np.zeros((count, len(mask), points.shape[2]))
            whole[:, mask] = points
            points = whole
        return with_confidence(points[:, :76, :-1], points[:, :76, -1] * mask[:76])


class BEDLAM(BodyPictures):
    """BEDLAM (Black et al. 2023): all_npz_12_training/*.npz and SCENE_6fps/png/seq_000000/....

    Poses are absolute and already before the camera; the translation is trans_cam plus that of
    cam_ext. The bodies are of the neutral SMPL-X with 11 shape coefficients (AGORA's have 10),
    whatever `gender` was rendered. Pictures of close-ups lie on their side: they are turned
    clockwise. People with fewer than eight joints in the picture are left out (option
    min_keypoints; option picture_size: width and height as stored).
    """

    SPLITS = {"train": "all_npz_12_training", "val": "all_npz_12_validation"}
    SOURCES = ("{split}/*.npz",)
    JOINTS, MODEL, NUM_BETAS = "smplx76", "smplx", 11
    OPTIONS = {"min_keypoints": 8, "picture_size": (1280, 720)}
    HOME = "bedlam.is.tue.mpg.de"

    def rows(self) -> Iterator[dict]:
        for path in next(iter(self.sources.values())):
            arrays = bodymodels.load_arrays(self.file(path))
            names, closeup = texts(arrays["imgname"]), "closeup" in path.stem
            size = self.options["picture_size"][::-1 if closeup else 1]
            points = arrays["gtkps"][:, :76, :2]
            kept = np.flatnonzero(inside(points, *size).sum(1) >= self.options["min_keypoints"])
            side = arrays["scale"][kept] * 200 / BOX_MARGIN
            betas, count = arrays["shape"][kept], self.NUM_BETAS
            if len(kept):
                yield {
                    "image": [f"{path.stem}/png/{names[index]}" for index in kept],
                    "turns": int(closeup), "center": arrays["center"][kept],
                    "box": np.stack([side, side], 1), "K": arrays["cam_int"][kept],
                    "keypoints_2d": with_confidence(points[kept]), "has_pose": 1, "has_hands": 1,
                    "pose": arrays["pose_cam"][kept].reshape(-1, 55, 3), "has_betas": 1,
                    "betas": np.pad(betas, ((0, 0), (0, count)))[:, :count], "has_transl": 1,
                    "transl": arrays["trans_cam"][kept] + arrays["cam_ext"][kept, :3, 3],
                    "person": kept, "sequence": path.stem}


class RICH(BodyPictures):
    """RICH (Huang et al. 2022): bodies/, images/, scan_calibration/ and resource/.

    One sample for each person, frame and camera of resource/meta's view_id. Bodies are of the
    gendered SMPL-X (resource/gender.json), before the first camera of several; fingers are 12
    coefficients a hand. `models` is a must: keypoints and boxes are those of the bodies. A
    person's name is the folder's; sequences of two people have two numbers in theirs. Option
    picture_size: width and height, or the other way round where K's middle is; pictures of another
    size, as in the reduced release, are refused, since K is not theirs.
    """

    SOURCES = ("resource/meta/{split}.txt", "resource/gender.json", "resource/imgext.json",
               "bodies/{split}/*/", "scan_calibration/*/calibration/*.xml")
    JOINTS, MODEL, HAND_SPACE = "smplx76", "smplx", "pca"
    OPTIONS = {"picture_size": (4112, 3008)}
    HOME = "rich.is.tue.mpg.de"
    PARTS = ("global_orient", "body_pose", "jaw_pose", "leye_pose", "reye_pose", "left_hand_pose",
             "right_hand_pose")

    def rows(self) -> Iterator[dict]:
        genders, endings = (self.json(f"resource/{name}.json") for name in ("gender", "imgext"))
        split = self.SPLITS[self.split]
        lines = self.file(f"resource/meta/{split}.txt").read_text().splitlines()
        fields = lines[0].split("\t")
        for line in lines[1:]:
            meta = dict(zip(fields, line.split("\t"), strict=True))
            sequence = meta["sequence_name"]
            scene = sequence.split("_")[0]
            frames = sorted((self.root / "bodies" / split / sequence).glob("*/*.pkl"))
            if not frames:
                raise FileNotFoundError(f"no bodies/{split}/{sequence}/*/*.pkl in {self.root}: "
                                        f"expected RICH's official layout, see {self.HOME}")
            cameras = {int(view): self._camera(scene, int(view))
                       for view in meta["view_id"].split(",")}
            for path in frames:
                body = bodymodels.load_arrays(self.file(path))
                for view, (motion, K) in cameras.items():
                    yield self._person(path, body, genders[str(int(path.stem))], motion, K) | {
                        "image": f"images/{split}/{sequence}/cam_{view:02d}/{path.parent.name}_"
                                 f"{view:02d}.{endings[scene]}", "sequence": sequence}

    def _camera(self, scene: str, view: int) -> tuple[np.ndarray, np.ndarray]:
        """World to camera (3, 4), and K."""
        path = self.file(f"scan_calibration/{scene}/calibration/{view:03d}.xml")
        tree = ElementTree.parse(path)
        return tuple(np.array(tree.find(f"{name}/data").text.split(), np.float64).reshape(shape)
                     for name, shape in (("CameraMatrix", (3, 4)), ("Intrinsics", (3, 3))))

    def _person(self, path: Path, body: dict, gender: str, motion: np.ndarray, K: np.ndarray
                ) -> dict:
        vector = np.concatenate([np.reshape(body[name], -1) for name in self.PARTS])[None]
        pose = self.absolute(vector, gender)
        if pose is not None:
            pose[:, 0] = turned(motion[:, :3], pose[:, 0])
        columns = {"pose": pose, "betas": np.reshape(body["betas"], (1, 10)),
                   "transl": np.reshape(body["transl"], (1, 3)), "world_to_camera": motion, "K": K}
        found = self.with_model_keypoints(columns, gender)
        alone = {name: value[0] for name, value in found.items()
                 if name not in ("K", "world_to_camera")}
        upright = K[1, 2] > K[0, 2]
        return found | alone | {"has_pose": 1, "has_hands": 1, "has_betas": 1, "has_transl": 1,
                                "image_size": self.options["picture_size"][::-1 if upright else 1],
                                "gender": GENDERS.index(gender), "person": int(path.stem),
                                "frame": int(path.parent.name)}


class ARCTIC(BodyPictures):
    """ARCTIC (Fan et al. 2023), the eight cameras around: raw_seqs/, meta/, images/, splits_json/.

    root: the folder `data` of arctic_data. Protocol 1; HMR-Adapter scores its val (the test set's
    truth is withheld). Ten frames at either end are dropped, of the others every tenth is taken
    (option interval: SMPLer-X's, which HMR-Adapter does not tell). A picture's number is that of
    its frame plus the subject's ioi_offset; view v has entry v - 1 of the cameras and v of the
    picture sizes. Bodies have the subject's own template, which `mesh` names, and no betas;
    fingers are absolute. Frames without a finite fit are left out. `models` is a must.
    """

    SPLITS = {"val": "val", "train": "train"}
    SOURCES = ("splits_json/protocol_p1.json", "meta/misc.json", "meta/subject_vtemplates/s*.obj",
               "raw_seqs/s*/*.smplx.npy")
    JOINTS, MODEL, OPTIONS = "smplx76", "smplx", {"interval": 10}
    HOME = "arctic.is.tue.mpg.de"
    TRIM = 10
    PARTS = RICH.PARTS

    def rows(self) -> Iterator[dict]:
        misc = self.json("meta/misc.json")
        for name in sorted(self.json("splits_json/protocol_p1.json")[self.SPLITS[self.split]]):
            subject, sequence = name.split("/")
            body = bodymodels.load_arrays(self.file(f"raw_seqs/{subject}/{sequence}.smplx.npy"))
            pose = np.concatenate([np.reshape(body[part], (len(body["transl"]), -1))
                                   for part in self.PARTS], 1).reshape(-1, 55, 3)
            frames = np.arange(self.TRIM, len(pose) - self.TRIM, self.options["interval"])
            whole = np.isfinite(pose).all((1, 2)) & np.isfinite(body["transl"]).all(1)
            frames = frames[whole[frames]]
            for view in range(1, 9) if len(frames) else ():
                yield self._view(misc[subject], subject, sequence, view, frames,
                                 pose[frames].astype(np.float64), body["transl"][frames])

    def _view(self, misc: dict, subject: str, sequence: str, view: int, frames: np.ndarray,
              pose: np.ndarray, transl: np.ndarray) -> dict:
        motion = np.array(misc["world2cam"][view - 1], np.float64)[:3]
        pose[:, 0] = turned(motion[:, :3], pose[:, 0])
        template, gender = f"meta/subject_vtemplates/{subject}.obj", misc["gender"]
        self.file(template)
        columns = self.with_model_keypoints(
            {"pose": pose, "betas": np.zeros((1, 10)), "transl": transl,
             "world_to_camera": motion, "K": np.array(misc["intris_mat"][view - 1])},
            gender, template)
        return columns | {
            "image": [f"images/{subject}/{sequence}/{view}/{frame + misc['ioi_offset']:05d}.jpg"
                      for frame in frames], "image_size": misc["image_size"][view],
            "betas": np.zeros(10), "has_pose": 1, "has_hands": 1, "has_transl": 1, "frame": frames,
            "mesh": template, "gender": GENDERS.index(gender), "sequence": f"{subject}/{sequence}",
            "person": view}


class EHF(BodyPictures):
    """EHF (Pavlakos et al. 2019): 01_img.jpg, 01_align.ply, 01_2Djnt.json, ..., 100_..., flat.

    The truth is a mesh in SMPL-X's topology in the scanner's frame, `vertices(record)` before the
    camera; there are no parameters. Keypoints are OpenPose's, and the box is theirs.
    """

    SPLITS, COUNTS = {"test": "test"}, {"test": 100}
    SOURCES = ("*_align.ply", "*_2Djnt.json")
    JOINTS, MODEL = "openpose25", "smplx"
    HOME = "smpl-x.is.tue.mpg.de"
    ROTATION = (-2.98747896, 0.01172457, -0.05704687)  # axis-angle
    TRANSLATION = (-0.03609917, 0.43416458, 2.37101226)  # metres
    K = intrinsics((1498.22426237, 1498.22426237), (790.263706, 578.90334))

    def rows(self) -> Iterator[dict]:
        R = bodymodels.axis_angle_to_matrix(torch.tensor(self.ROTATION, dtype=torch.float64))
        motion = rigid(R.numpy(), np.array(self.TRANSLATION))
        for path in sorted(self.sources["*_align.ply"], key=lambda path: int(path.name[:-10])):
            number = path.name[:-10]
            bodymodels.load_vertices(self.file(path))  # a damaged one is found now
            people = self.json(f"{number}_2Djnt.json")["people"]
            keypoints = np.reshape(people[0]["pose_keypoints_2d"], (25, 3))
            keypoints = with_confidence(keypoints[:, :2], keypoints[:, 2])
            center, box = boxes_around(keypoints[None])
            ending = "jpg" if (self.root / f"{number}_img.jpg").is_file() else "png"
            yield {"image": f"{number}_img.{ending}", "K": self.K, "center": center[0],
                   "box": box[0], "keypoints_2d": keypoints, "world_to_camera": motion,
                   "mesh": path.name, "frame": int(number)}

    def vertices(self, record: np.ndarray) -> np.ndarray:
        """A record's true mesh (V, 3) in metres before the camera."""
        vertices = bodymodels.load_vertices(self.root / record["mesh"].decode())
        motion = record["world_to_camera"]
        return vertices @ motion[:, :3].T + motion[:, 3]

    def posed(self, record: np.ndarray, light: bool = False
              ) -> tuple[bodymodels.BodyOutput, bodymodels.BodyModel, Tensor]:
        """The true mesh with the joints that SMPL-X's regressor takes from it; no translation."""
        model = self.body()
        vertices = torch.from_numpy(self.vertices(record))[None]
        unknown = torch.full((1, len(model.parents), 4, 4), torch.nan)
        return (bodymodels.BodyOutput(vertices, model.J_regressor @ vertices, unknown), model,
                torch.zeros(3))


class OfficialPeople(PeopleDataset):
    """Whole bodies of official data with crops of their hands, as RenderedPeople has them.

    pictures: of a data set of SMPL-X's bodies before a known camera, with a folder `models` in
    which MANO_SMPLX_vertex_ids.pkl lies as well; people without a body there are left out. Of EHF
    poses are unknown, of SMPL's bodies all that their 24 joints do not tell. Beside the rest of
    the sample there is what is known:

        body_pose_valid, betas_valid, expression_valid   ()       float32  betas: those of the
                                                                           neutral body alone
        hand_betas                                       (2, 10)  float32  MANO's: unknown, 0
        hand_betas_valid                                 (2,)     float32

    Nothing tells expressions and hidden hands: expression is 0 and hand_visible 1. Of BEDLAM's
    eleven betas the first ten are told; keypoints and hands are those of all. Augmentation crops
    the crops anew, as of rendered people: what lies outside of them is black.
    """

    def __init__(self, pictures: BodyPictures, hand_size: int | None = None, *,
                 augmentation: str | Augmentation | None = None) -> None:
        if pictures.models is None:
            raise ValueError(f"people of {type(pictures).__name__}: expected it opened with a "
                             "folder of models")
        super().__init__(pictures.split, [pictures.split], pictures.size, pictures.seed,
                         augmentation)
        self.pictures, self.hand_size = pictures, hand_size or pictures.size
        records = pictures.records()
        self.kept = np.flatnonzero((records["K"][:, 2, 2] > 0) & (
            (records["has_pose"] * records["has_transl"] > 0) | (records["mesh"] != b"")))
        if not len(self.kept):
            raise ValueError(f"{type(pictures).__name__} in {pictures.root} has no body before a "
                             "known camera: it cannot be read as people")
        self.hand_vertices = [np.zeros(NUM_VERTICES, np.int64)] * 2  # SMPL's hands do not count
        if pictures.MODEL == "smplx":
            ids = bodymodels.hand_vertex_ids(pictures.models / "MANO_SMPLX_vertex_ids.pkl")
            self.hand_vertices = [ids[side] for side in HANDS]

    def __len__(self) -> int:
        return len(self.kept)

    def records(self, indices: int | np.ndarray | slice = slice(None)) -> np.ndarray:
        """Those of `pictures` behind samples, all of them or some."""
        return self.pictures.records()[self.kept[indices]]

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self.records(index)
        image, K = self.pictures.picture(record), record["K"].astype(np.float64)
        output, model, transl = self.pictures.posed(record)
        points = relabelled(with_confidence(model.keypoints(output)[0].numpy()),
                            f"{self.pictures.MODEL}{len(model.parents) + 21}", "smplx76")
        known = points[:, 3]
        points = np.where(points[:, 3:] > 0, points[:, :3], (0, 0, 1))  # 0 has no place in pictures
        flat = pixels(points, K)
        size = image.shape[1], image.shape[0]
        homography = self.pictures.crop(record, with_confidence(flat, known), size, rng)[0]
        pose = np.tile(np.eye(3), (55, 1, 1))
        told = record["pose"] if self.pictures.MODEL == "smplx" else record["pose"][:22]
        pose[:len(told)] = bodymodels.axis_angle_to_matrix(torch.tensor(told)).numpy()
        sample = {"image": warp(image, homography, self.size), "K": homography @ K, "pose": pose,
                  "betas": record["betas"][:10], "expression": np.zeros(10), "keypoints_3d": points,
                  "keypoints_2d": transform_points(homography, flat), "transl": transl.numpy(),
                  "hand_visible": np.ones(2)}
        hands = [self._hand(hand, image, K, flat, output.vertices[0]) for hand in range(2)]
        sample |= {name: np.stack([hand[name] for hand in hands]) for name in hands[0]}
        labels = self.labelled(sample, rng)
        neutral = self.pictures.MODEL == "smplx" and GENDERS[record["gender"]] == "neutral"
        return labels | {
            "keypoints_valid": labels["keypoints_valid"] * known,
            "hand_valid": labels["hand_valid"] * known[HAND_KEYPOINTS].all(1),
            "body_pose_valid": record["has_pose"], "betas_valid": record["has_betas"] * neutral,
            "expression_valid": 0.0, "hand_betas": np.zeros((2, 10)),
            "hand_betas_valid": np.zeros(2)}

    def _hand(self, hand: int, image: np.ndarray, K: np.ndarray, flat: np.ndarray,
              vertices: Tensor) -> dict[str, np.ndarray]:
        """Crop, mesh and K of a hand; of the left all mirrored."""
        mirror, size = HANDS[hand] == "left", self.hand_size
        center, side = hand_square(flat[HAND_KEYPOINTS[hand]])
        view = crop_homography(center, max(side, 1.0), size, mirror=mirror)
        flip = np.diag([-1.0 if mirror else 1.0, 1, 1])
        return {"hand_images": warp(image, view, size), "hand_K": view @ K @ flip,
                "hand_vertices": vertices[self.hand_vertices[hand]].numpy() @ flip}


class HandPairs(PeopleDataset):
    """Official hands, two by two, in the layout of OfficialPeople: to be mixed with people.

    hands: FreiHAND, InterHand2.6M, DexYCB or HaMeR's sets, with the recipe of their augmentation
    and a folder `models`. Those of unknown pose, mesh or joints are left out. Either of a pair may
    be a right or a left hand; all look right. There is no person around them: the picture is black
    and body_pose_valid 0. size: its side.
    """

    def __init__(self, hands: FreiHAND | HandPictures, size: int) -> None:
        if hands.models is None:
            raise ValueError(f"pairs of {type(hands).__name__}: expected it opened with a folder "
                             "of models")
        super().__init__(hands.split, [hands.split], size, hands.seed, None)
        self.hands, self.kept = hands, hands.whole_hands()
        if not len(self.kept):
            raise ValueError(f"{type(hands).__name__} in {hands.root} has no hand whose pose, mesh "
                             "and joints are known")

    def __len__(self) -> int:
        return (len(self.kept) + 1) // 2

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        pair = [self._hand(int(self.kept[number % len(self.kept)]), rng)
                for number in (2 * index, 2 * index + 1)]
        one = np.eye(3)
        return {name: np.stack([hand[name] for hand in pair]) for name in pair[0]} | {
            "image": np.zeros((3, self.size, self.size), np.uint8), "K": one,
            "body_pose": np.tile(one, (55, 1, 1)), "arm_pose": np.tile(one, (2, 8, 1, 1)),
            "keypoints_3d": np.zeros((76, 3)), "keypoints_2d": np.zeros((76, 2)),
            "keypoints_valid": np.zeros(76), "hand_boxes": np.zeros((2, 4)),
            "transl": np.zeros(3), "betas": np.zeros(10), "expression": np.zeros(10),
            "hand_visible": np.ones(2)} | dict.fromkeys(
                ("body_pose_valid", "betas_valid", "expression_valid"), 0.0)

    def _hand(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One hand's crop and labels; its pose turns and is mirrored as the crop's camera was."""
        sample = self.hands.load(index, rng)
        self.hands.finish(sample, rng)
        pose, betas, betas_valid = self.hands.hand_pose(index)
        turn = sample["camera_rotation"]
        flip = np.diag([np.sign(np.linalg.det(turn)), 1, 1])
        pose = flip @ bodymodels.axis_angle_to_matrix(torch.from_numpy(pose)).numpy() @ flip
        pose[0] = turn @ flip @ pose[0]
        return {"hand_images": sample["image"], "hand_K": sample["K"], "hand_pose": pose,
                "hand_joints": sample["joints"], "hand_vertices": sample["vertices"],
                "hand_keypoints_2d": sample["keypoints_2d"], "hand_valid": sample["mesh_valid"],
                "hand_betas": betas, "hand_betas_valid": betas_valid}


# ------------------------------------------------------------------------------------ mixtures


class Mixed(KeyedDataset):
    """Data sets of one sample layout in proportions: weights choose a set for each sample anew.

    Within the set the sample and its epoch, which decides its augmentation, are drawn as well. An
    epoch is as long as all sets together, or `length`.
    """

    def __init__(self, datasets: Sequence[KeyedDataset], weights: Sequence[float],
                 length: int | None = None, seed: int = 0) -> None:
        if not datasets or len(datasets) != len(weights) or min(weights) <= 0:
            raise ValueError("expected data sets and as many weights above 0")
        super().__init__("train", ["train"], seed)
        self.datasets = list(datasets)
        self.weights = np.array(weights, np.float64) / sum(weights)
        self.length = sum(map(len, datasets)) if length is None else length

    def __len__(self) -> int:
        return self.length

    @property
    def joint_set(self) -> str | None:
        """That of the bodies' keypoints, None for hands."""
        return getattr(self.datasets[0], "joint_set", None)

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        if key < 0:
            raise IndexError(f"keys count up from 0 (epoch * length + index), got {key}")
        rng = random_generator(MIXING, self.seed, *divmod(int(key), len(self)))
        dataset = self.datasets[rng.choice(len(self.datasets), p=self.weights)]
        own = int(rng.integers(2**31)) * len(dataset) + int(rng.integers(len(dataset)))
        return dataset[own] | {"index": torch.tensor(int(key) % len(self))}


def _tars(reader: str, weights: dict[str, float]) -> dict[tuple[str, str], float]:
    return {(reader, folder): weight for folder, weight in weights.items()}


HMR2_SETS = ("h36m-train", "mpii-train", "coco-train-2014-pruned",
             "coco-train-2014-vitpose-pruned", "mpi-inf-train-pruned",
             "ava-train-midframes-1fps-vitpose", "aic-train-vitpose",
             "insta-train-vitpose-replicate")
# Of each: {(data set, folder below the root): weight}; in a folder of the mixture's data sets.
MIXTURES: dict[str, dict[tuple[str, str], float]] = {
    # GenHMR's "SD", with the weights of HMR2.0a: from HMR2.0's shards, and from the sets themselves
    "genhmr-sd": _tars("hmr2-tars", {"h36m-train": 0.3, "mpii-train": 0.1, "mpi-inf-train-pruned":
                                     0.2, "coco-train-2014-pruned": 0.4}),
    "genhmr-sd-official": {("h36m-moon", "h36m"): 0.3, ("mpii", "mpii"): 0.1,
                           ("mpi-inf-3dhp", "mpi-inf-3dhp"): 0.2, ("coco", "coco"): 0.4},
    # "ITW", with HMR2.0b's, and "BL", with TokenHMR's
    "genhmr-itw": _tars("hmr2-tars", dict(zip(HMR2_SETS, (
        0.1, 0.1, 0.1, 0.1, 0.02, 0.19, 0.19, 0.2), strict=True))),
    "genhmr-bl": _tars("hmr2-tars", dict(zip(HMR2_SETS, (
        0.1, 0.1, 0.1, 0.1, 0.04, 0.13, 0.13, 0.12), strict=True))) | {("bedlam", "bedlam"): 0.18},
    # HMR-Adapter's, always in the layout of RenderedPeople; equal weights are our choice. Its hands
    # are those of the bodies' sets and of two more
    "hmr-adapter-body": {("h36m-smplx", "h36m"): 1.0, ("rich", "rich"): 1.0,
                         ("bedlam", "bedlam"): 1.0},
    "hmr-adapter-hands": {("h36m-smplx", "h36m"): 1.0, ("rich", "rich"): 1.0,
                          ("bedlam", "bedlam"): 1.0, ("freihand", "freihand"): 1.0,
                          ("interhand", "interhand"): 1.0},
    "hamer": _tars("hamer-tars", {
        "freihand-train": 0.25, "interhand26m-train": 0.25, "mtc-train": 0.1, "cocow-train": 0.1,
        "rhd-train": 0.05, "halpe-train": 0.05, "mpiinzsl-train": 0.05, "ho3d-train": 0.05,
        "h2o3d-train": 0.05, "dex-train": 0.05}),
}
OFFICIAL = {
    "freihand": FreiHAND, "dexycb": DexYCB, "interhand": InterHand, "amass": AMASS, "moyo": MOYO,
    "3dpw": ThreeDPW, "3dpw-moon": ThreeDPWMoon, "emdb": EMDB, "h36m": Human36M,
    "h36m-moon": Human36MMoon, "h36m-smplx": Human36MSMPLX, "spin": SPIN, "eft": EFT,
    "metro": METRO, "coco": COCO, "aic": AIC, "mpii": MPII, "mpi-inf-3dhp": MPIINF3DHP,
    "hmr2-tars": HMRShards, "hamer-tars": HaMeRShards, "hmr2-npz": HMRFlat,
    "hamer-npz": HaMeRFlat, "humandata": HumanData, "bedlam": BEDLAM, "rich": RICH,
    "arctic": ARCTIC, "ehf": EHF}


def open_official(name: str, root: str | os.PathLike, split: str | None = None, *,
                  size: int = 128, augmentation: str | Augmentation | None = None, seed: int = 0,
                  cache: str | os.PathLike | None = None,
                  models: str | os.PathLike | None = None, hand_size: int = 0, **options
                  ) -> KeyedDataset:
    """A data set of OFFICIAL, or a mixture of MIXTURES, in the folder root; options: its own.

    hand_size: if it is given samples are those of OfficialPeople, with crops of hands so large;
    the augmentation of sets that have hands alone is then HaMeR's, if there is any.
    """
    packed = {"seed": seed, "cache": cache}
    if name in MIXTURES:
        if split not in (None, "train"):
            raise ValueError(f"{name} is a mixture to train on, it has no split {split!r}")
        if name.startswith("hmr-adapter"):
            hand_size = hand_size or size
        parts = [open_official(part, Path(root, folder), "train", size=size, models=models,
                               augmentation=augmentation, hand_size=hand_size, **packed)
                 for part, folder in MIXTURES[name]]
        return Mixed(parts, list(MIXTURES[name].values()), seed=seed)
    kind = OFFICIAL[name]
    if issubclass(kind, MotionCapture):
        return kind(root, split or "train", **packed)
    if kind is FreiHAND and split in (None, "train"):
        split = "training"
    of_hands, pictures = issubclass(kind, HandDataset), {"size": size, "augmentation": augmentation}
    if hand_size:
        pictures = {"size": hand_size, "augmentation": augmentation and "official_hamer"
                    } if of_hands else {"size": size}
    found = kind(root, split, **pictures, **packed, models=models, **options)
    if not hand_size:
        return found
    return HandPairs(found, size) if of_hands else OfficialPeople(found, hand_size,
                                                                  augmentation=augmentation)


def look_for_pictures(dataset: KeyedDataset, most: int = 1000) -> str:
    """Looks for pictures of samples all over a data set; FileNotFoundError tells of missing ones.

    Returns what is to be said of it, and how many of the samples are known in which respect.
    """
    if isinstance(dataset, OfficialPeople | HandPairs):
        dataset = dataset.pictures if isinstance(dataset, OfficialPeople) else dataset.hands
    setup, split = getattr(dataset, "options", {}).get("setup"), dataset.split
    whole = next((count for name, count in getattr(dataset, "COUNTS", {}).items()
                  if name in (split, f"{setup} {split}", dataset.root.name)), 0)
    counted = f"{type(dataset).__name__}: {len(dataset):,} samples" + (
        f", officially {whole:,}" if whole else "")
    if not isinstance(dataset, Pictures):
        return counted
    records = dataset.records()
    names = {name.decode() for name in records["image"][::max(1, len(records) // most)]}
    missing = sorted(name for name in names if not (dataset.root / name).is_file())
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(names)} pictures looked for are missing, "
                                f"{dataset.root / missing[0]} for one")
    known = {"keypoints_2d": (records["keypoints_2d"][..., 2] > 0).any(1),
             "keypoints_3d": (records["keypoints_3d"][..., 3] > 0).any(1),
             "K": records["K"][:, 2, 2] > 0}
    known |= {name: records[f"has_{name}"] > 0 for name in ("pose", "hands", "betas", "transl")}
    return (f"{counted}; {len(names)} pictures looked for, all there; known: " + ", ".join(
        f"{name} {100 * values.mean():.0f} %" for name, values in known.items()))


# ---------------------------------------------------------------------------------- looking

FINGER_COLORS = ((230, 60, 60), (240, 170, 40), (70, 190, 80), (60, 140, 240), (190, 90, 220))
HAND_CHAINS = tuple((0, *range(1 + 4 * finger, 5 + 4 * finger)) for finger in range(5))
LIMB_NAMES = (
    "left_hip left_knee left_ankle left_foot left_big_toe",
    "right_hip right_knee right_ankle right_foot right_big_toe",
    "left_shoulder left_elbow left_wrist left_hand left_middle1 left_middle_tip",
    "right_shoulder right_elbow right_wrist right_hand right_middle1 right_middle_tip",
    "pelvis spine1 spine spine2 spine3 thorax neck head nose")


@cache
def chains(joint_set: str) -> tuple[tuple[int, ...], ...]:
    """The lines of a skeleton, as indices of a joint set."""
    if joint_set == "hand21":
        return HAND_CHAINS
    names = bodymodels.JOINT_SETS[joint_set]
    places = {name.removesuffix("_openpose"): place
              for place, name in reversed(list(enumerate(names)))}
    return tuple(tuple(places[name] for name in chain.split() if name in places)
                 for chain in LIMB_NAMES)


JOINT_SET_OF = {NUM_JOINTS: "hand21", len(SMPL_KEYPOINTS): "smpl45",
                len(SMPLX_KEYPOINTS): "smplx76"}  # of rendered pictures


def draw_keypoints(image: np.ndarray, keypoints: np.ndarray, valid: np.ndarray,
                   zoom: int = 3, joint_set: str | None = None) -> np.ndarray:
    """Picture (S, S, 3) uint8, `zoom` times larger, with a hand's or a body's skeleton on it.

    keypoints (J, 2) pixels of a joint set, by default "hand21", "smpl45" or "smplx76".
    """
    lines = chains(joint_set or JOINT_SET_OF[len(keypoints)])
    side = image.shape[0] * zoom
    picture = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    points = [tuple(point) for point in (keypoints * zoom).tolist()]
    for chain, color in zip(lines, FINGER_COLORS, strict=True):
        for start, end in zip(chain, chain[1:], strict=False):
            if valid[start] and valid[end]:
                draw.line([points[start], points[end]], color, width=2)
        for joint in chain:
            if valid[joint]:
                x, y = points[joint]
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), color)
    return np.asarray(picture)


def draw_pose(sample: dict[str, Tensor], size: int = 384) -> np.ndarray:
    """The free body in a sample's pose and shape, as a picture (size, size, 3) uint8."""
    body = body_surface()
    vertices, _ = body.pose(sample["betas"].numpy(), sample["pose"].numpy())
    center, side = body_box(vertices[:, :2])
    vertices = vertices + np.array([*-center, 1.2 * BODY_FOCAL * side], np.float32)
    picture = bodymodels.render(vertices, body.faces, body_camera(size), (size, size),
                                background=(0.5, 0.55, 0.6))
    return (255 * picture.image).astype(np.uint8)


def draw_sample(sample: dict[str, Tensor], joint_set: str | None = None) -> np.ndarray:
    """A sample's picture and its projected keypoints, or its pose if it has no picture."""
    if "image" not in sample:
        return draw_pose(sample)
    picture = draw_keypoints(sample["image"].permute(1, 2, 0).numpy(),
                             sample["keypoints_2d"].numpy(), sample["keypoints_valid"].numpy(),
                             joint_set=joint_set)
    return draw_hands(sample, picture) if "hand_images" in sample else picture


def draw_hands(sample: dict[str, Tensor], picture: np.ndarray) -> np.ndarray:
    """A whole body's picture with both hands' boxes on it, and their crops beside it."""
    zoom = len(picture) / sample["image"].shape[1]
    canvas = Image.fromarray(picture)
    for x, y, width, height in (zoom * sample["hand_boxes"]).tolist():
        ImageDraw.Draw(canvas).rectangle((x, y, x + width, y + height), outline="white")
    tiles = [np.asarray(canvas)]
    for image, keypoints in zip(sample["hand_images"], sample["hand_keypoints_2d"], strict=True):
        hand = draw_keypoints(image.permute(1, 2, 0).numpy(), keypoints.numpy(),
                              np.ones(NUM_JOINTS))
        tiles.append(np.asarray(Image.fromarray(hand).resize(canvas.size)))
    return np.concatenate(tiles, 1)


def draw_samples(dataset: KeyedDataset, keys: Sequence[int], path: str | os.PathLike,
                 columns: int = 4) -> None:
    """Write a PNG with the pictures of some samples."""
    joint_set = getattr(dataset, "joint_set", None)
    tiles = [draw_sample(dataset[key], joint_set) for key in keys]
    blank = np.zeros_like(tiles[0])
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i:i + columns], 1) for i in range(0, len(tiles), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


def parse_option(text: str) -> bool | int | str | tuple:
    """A data set's option as the command line tells it: true, 12, 1280,720 or a text."""
    words = {"true": True, "false": False}
    parts = tuple(words.get(part, int(part) if part.isdigit() else part)
                  for part in text.split(","))
    return parts if len(parts) > 1 else parts[0]


def open_dataset(args: argparse.Namespace) -> KeyedDataset:
    """The data set that the command line asks for."""
    pictures = {"size": args.size, "augmentation": args.augmentation}
    packed = {"seed": args.seed, "cache": args.cache}
    if args.name in (*OFFICIAL, *MIXTURES):
        if args.data_root is None:
            raise ValueError(f"{args.name} needs --data-root FOLDER")
        options = dict(option.split("=", 1) for option in args.option)
        options = {name: parse_option(text) for name, text in options.items()}
        return open_official(args.name, args.data_root, args.split, models=args.models,
                             **pictures, **packed, **options)
    split = args.split or "train"
    if args.name == "motion":
        return MotionPoses(split, seed=args.seed)
    if args.name == "people":
        return RenderedPeople(split, occlusion=args.occlusion, **pictures, **packed)
    kind = RenderedHands if args.name == "rendered" else RenderedBodies
    return kind(split, **pictures, **packed)


def main(argv: Sequence[str] | None = None) -> None:
    """`python data.py NAME`: count a data set's samples, print one, draw some."""
    parser = argparse.ArgumentParser(description="Look at a data set.")
    parser.add_argument("name", metavar="NAME", choices=(
        "rendered", "bodies", "people", "motion", *OFFICIAL, *MIXTURES),
        help=f"rendered, bodies, people, motion; {', '.join(OFFICIAL)}; or a mixture: "
             + ", ".join(MIXTURES))
    parser.add_argument("--data-root", type=Path, help="the folder of a data set as its authors "
                        "ship it; of a mixture, the one with its data sets' folders")
    parser.add_argument("--models", type=Path, help="the folder of official body models, for "
                        "meshes, and poses that are told relative to a mean hand")
    parser.add_argument("--option", nargs="+", default=[], metavar="NAME=VALUE",
                        help="of the data set, as OPTIONS of its class: setup=s1, stride=1, ...; "
                        "hand_size=128 shows people with crops of their hands")
    parser.add_argument("--split", help="default: the training split, if it has one")
    parser.add_argument("--size", type=int, default=128, help="side of the crops in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--augmentation", choices=tuple(AUGMENTATIONS), default="none")
    parser.add_argument("--occlusion", type=float, default=0.5, help="share of covered hands of "
                        "people")
    parser.add_argument("--cache", type=Path, help="folder for packed files")
    parser.add_argument("--draw", type=int, default=0, metavar="N", help="draw N samples")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="where to draw")
    args = parser.parse_args(argv)
    try:
        dataset = open_dataset(args)
        print(f"{args.name}, split {dataset.split}: {len(dataset):,} samples")
        for part in getattr(dataset, "datasets", [dataset]):
            print(look_for_pictures(part))
        for name, value in dataset[0].items():
            print(f"  {name:17} {str(tuple(value.shape)):14} {str(value.dtype):14}"
                  f"{value.min():10.4g} to {value.max():.4g}")
        if args.draw:
            columns = 2 if "hand_images" in dataset[0] else 4  # people have three pictures each
            draw_samples(dataset, range(min(args.draw, len(dataset))), args.out, columns)
            print(f"drawn: {args.out}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
