"""Rendered pictures, and those of the free right hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

import bodymodels
from sets import crops, painting, samples
from sets.augmentation import Augmentation


class Rendered(samples.KeyedDataset):
    """A data set of rendered pictures: on the fly, or once into a packed file.

    Subclasses have a dtype of records, and `render(index)`: one record, which depends on seed,
    split and index alone.
    """

    LENGTHS: dict[str, int]  # default length of each split

    def __init__(self, split: str, size: int, length: int | None, seed: int,
                 augmentation: str | Augmentation | None) -> None:
        super().__init__(split, tuple(self.LENGTHS), seed, size, augmentation)
        self.length = self.LENGTHS[split] if length is None else length

    def __len__(self) -> int:
        return self.length

    def open_cache(self, cache: str | os.PathLike | None, kind: str, **settings) -> None:
        """Find or build the packed file in the folder `cache`; its name holds a checksum.

        settings: what the pictures depend on beside split, size, length and seed.
        """
        if cache is not None:
            mark = samples.fingerprint(settings | {"split": self.split, "size": self.size,
                                                   "length": self.length, "seed": self.seed})
            self.path = Path(cache) / f"rendered_{kind}_{self.split}_{self.size}_{mark}.bin"
            self.records()

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """Return the fields of a packed record, from the cache if there is one."""
        record = self.render(index) if self.path is None else self.records(index)
        return {name: record[name] for name in self.dtype.names}

    def render_batch(self, indices: list[int]) -> np.ndarray:
        """Render the records of several indices (N,)."""
        return np.stack([self.render(index) for index in indices])

    def chunks(self, start: int) -> Iterator[np.ndarray]:
        """Render the split from `start` on, on all cores, in batches of records."""
        workers = samples.available_cores() if self.length >= 256 else 0
        loader = DataLoader(range(start, self.length), batch_size=32, num_workers=workers,
                            collate_fn=self.render_batch, worker_init_fn=samples.follow_parent,
                            generator=torch.Generator())  # the loader would advance the global one
        batches = iter(loader)
        try:
            yield from tqdm(batches, f"Rendering {self.path.name}", unit="batch",
                            initial=start // 32, total=-(-self.length // 32))
        finally:
            if workers:  # they ignore signals, and an error's traceback would keep them alive
                batches._shutdown_workers()


FINGER_SLOTS = {"index": 0, "middle": 3, "ring": 9, "pinky": 6}  # in MANO's order, no root
THUMB_SLOT = 12
PALM_NORMAL_UP = np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])  # back to the camera, fingers up
# Angles of the thumb in radians: flexion, abduction and twist of the saddle joint, then flexion of
# the two hinges. The pinches were fitted so that the finger pads meet on the mean free hand.
THUMB_POSES = {
    "rest": (0.10, -0.20, 0.00, 0.15, 0.20),
    "flat": (0.00, -0.60, 0.00, -0.10, -0.10),
    "up": (-0.30, -0.30, 0.00, -0.10, -0.20),
    "folded": (0.50, -0.10, 0.30, 0.70, 0.70),
    "grasp": (0.30, 0.25, 0.20, 0.35, 0.35),
}
PINCHES = {  # thumb as above; flexion of the finger's three joints, abduction of the first
    "index": ((0.26, -0.02, 0.18, 0.28, 0.30), (0.85, 0.85, 0.41), 0.00),
    "middle": ((0.44, 0.24, 0.04, 0.45, 0.44), (1.00, 0.98, 0.48), 0.07),
    "ring": ((0.61, 0.53, -0.05, 0.55, 0.47), (1.16, 0.91, 0.44), 0.17),
}
LOWER_LIMIT, UPPER_LIMIT = np.full((15, 3), -0.35), np.full((15, 3), 0.35)  # radians
LOWER_LIMIT[:, 0], UPPER_LIMIT[:, 0] = -0.3, 1.9
LOWER_LIMIT[12], UPPER_LIMIT[12] = (-0.5, -0.8, -0.4), (0.9, 0.7, 0.5)
LOWER_LIMIT[13:, 1:] = UPPER_LIMIT[13:, 1:] = 0.0


@cache
def hinge_axes() -> np.ndarray:
    """Return each joint's flexion, abduction and twist axis (15, 3, 3), rest frame, right hand.

    Fingers point along -x, the palm faces down (-y) and the index finger is on the +z side.
    Positive flexion closes the hand, positive abduction moves a finger towards the thumb.
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
    """Draw a plausible hand pose: axis-angles (15, 3), absolute, MANO's joints without the wrist.

    45 % are grasps and relaxed hands, whose fingers close together; the others are gestures (each
    finger straight or folded), pinches, and independent fingers, within joint limits.
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
    """Return joint angles (15, 3) for index, middle, ring and pinky closed to 0..1, `curl` (4,)."""
    angles = np.zeros((15, 3))
    hook = rng.uniform(-1, 1)  # -1: knuckles bend first, +1: middle joints bend first
    coupling = rng.uniform(0.45, 0.75)  # the last joint follows the middle one
    spread = rng.uniform(-0.3, 1.0) * np.array([0.2, 0.03, -0.12, -0.28])
    converge = np.array([-0.05, 0.0, 0.12, 0.3])  # folded fingers aim at the base of the thumb
    for finger, slot in enumerate(FINGER_SLOTS.values()):
        closed = curl[finger]
        angles[slot, 0] = 1.4 * closed * (1 - 0.5 * max(hook, 0) * (1 - closed))
        angles[slot + 1, 0] = 1.75 * closed * (1 - 0.6 * max(-hook, 0) * (1 - closed))
        angles[slot + 2, 0] = coupling * angles[slot + 1, 0]
        angles[slot, 1] = spread[finger] * (1 - closed) + converge[finger] * closed
    return angles


def sample_view(rng: np.random.Generator, views: float, in_plane: float) -> np.ndarray:
    """Draw the rotation (3, 3) of the resting hand into the camera's frame.

    The hand starts with its back or palm to the camera and its fingers up. It is tilted until the
    palm's normal is up to `views` degrees off the camera's axis (uniform on the cap; 90 is the
    whole sphere), and turned in the image plane by up to +- `in_plane` degrees.
    """
    palm = rng.integers(2)
    base = np.diag([-1.0, 1.0, -1.0]) @ PALM_NORMAL_UP if palm else PALM_NORMAL_UP
    cos = rng.uniform(np.cos(np.deg2rad(views)), 1)
    azimuth, sin = rng.uniform(0, 2 * np.pi), np.sqrt(1 - cos * cos)
    tilt = crops.rotation_to_axis(np.array([sin * np.cos(azimuth), sin * np.sin(azimuth), cos]))
    roll = np.deg2rad(rng.uniform(-in_plane, in_plane))
    return crops.roll_and_mirror(roll, False) @ tilt @ base


RENDER_VERSION = 1  # increase it whenever the same settings would give other pictures
FOREARM_RINGS = 3
WRIST = [586, 592, 591, 593, 594, 598, 706, 736,  # vertices of the mesh's hole, in their order
         595, 596, 597, 590, 589, 703, 588, 587]


class HandSurface:
    """The free right hand with a forearm. It is closed, so that only front faces are drawn."""

    def __init__(self) -> None:
        self.model = bodymodels.load_model("hand_right", dtype=torch.float64)
        hand_faces = self.model.faces.numpy()
        self.regressor = self.model.keypoint_regressor.numpy()
        self.template = self.model.v_template.numpy()
        # strips between copies of the wrist's rim, and a fan that closes the last copy
        count = len(WRIST)
        copies = crops.NUM_VERTICES + np.arange(FOREARM_RINGS * count).reshape(FOREARM_RINGS, count)
        a = np.vstack([WRIST, copies])
        b = np.roll(a, -1, axis=1)
        lower = np.stack([b[:-1], a[:-1], a[1:]], -1).reshape(-1, 3)
        upper = np.stack([b[:-1], a[1:], b[1:]], -1).reshape(-1, 3)
        center = np.full(count, crops.NUM_VERTICES + copies.size)
        end = np.stack([b[-1], a[-1], center], -1)
        self.faces = np.concatenate([hand_faces, lower, upper, end])
        normals = bodymodels.vertex_normals(self.template, hand_faces)
        self.palmar = np.clip(0.5 - 1.5 * normals[:, 1], 0, 1)[:, None]  # 1 palm, 0 back
        tips = self.template[list(self.model.tip_vertex_ids)]
        nearest = np.linalg.norm(self.template[:, None] - tips, axis=-1).min(1)[:, None]
        self.tip = np.exp(-np.square(nearest / 0.012))

    def pose(self, betas: np.ndarray, hand_pose: np.ndarray) -> np.ndarray:
        """Return the vertices (778, 3) of one hand in the rest frame, float64.

        A batch may round differently, and a sample must be the same bit for bit.
        """
        pose = torch.from_numpy(np.concatenate([np.zeros((1, 3)), hand_pose]))
        with torch.inference_mode():
            return self.model(torch.from_numpy(betas)[None], pose[None]).vertices[0].numpy()

    def with_forearm(self, vertices: np.ndarray, direction: np.ndarray, length: float,
                     taper: float) -> np.ndarray:
        """Append the forearm's rings and end point to the hand's vertices (778, 3)."""
        rim = vertices[WRIST]
        center = rim.mean(0)
        steps = np.linspace(0, 1, FOREARM_RINGS + 1)[1:, None, None]
        rings = center + (rim - center) * (1 + taper * steps) + direction * length * steps
        return np.concatenate([vertices, rings.reshape(-1, 3), rings[-1].mean(0, keepdims=True)])


hand_surface = cache(HandSurface)


def sample_scene(rng: np.random.Generator, size: int, views: float, in_plane: float
                 ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw pose, shape, view, distance and a detector-like box around the keypoints.

    Return the surface (V, 3) of the hand's 778 vertices, then the forearm's, the joints (21, 3),
    both in metres in the frame of the crop's camera, and its K.
    """
    hand = hand_surface()
    betas = np.clip(rng.standard_normal(10), -2.5, 2.5)
    vertices = hand.pose(betas, sample_hand_pose(rng))
    vertices = vertices @ sample_view(rng, views, in_plane).T
    joints = hand.regressor @ vertices
    distance = np.exp(rng.uniform(np.log(0.35), np.log(1.2)))
    shift = np.array([0, 0, distance]) - joints.mean(0)
    vertices, joints = vertices + shift, joints + shift

    center, box = crops.keypoint_box(joints[:, :2] / joints[:, 2:])
    center = center + rng.uniform(-0.1, 0.1, 2) * box.max()
    crop = crops.perspective_crop(np.eye(3), center, box * rng.uniform(1.1, 1.5), size)
    vertices, joints = vertices @ crop.rotation.T, joints @ crop.rotation.T

    forearm = joints[0] - joints[9]
    forearm /= np.linalg.norm(forearm)
    forearm += rng.normal(0, 0.25, 3)
    forearm /= np.linalg.norm(forearm)
    # short if it points at the camera, so that it does not hide the hand
    length = rng.uniform(0.02, 0.25) * (1 + 0.95 * min(forearm[2], 0))
    surface = hand.with_forearm(vertices, forearm, length, rng.uniform(0, 0.3))
    return surface, joints, crop.K


def shade(rng: np.random.Generator, surface: np.ndarray) -> np.ndarray:
    """Return the shaded colours (V, 3) of a hand: skin tone, lighter palm, redder tips, blotches.

    Half of the forearms have a sleeve.
    """
    hand = hand_surface()
    base = painting.random_skin(rng)
    lighter = np.clip(base * 1.1 + (0.06, 0.03, 0.03), 0, 1)
    skin = base + rng.uniform(0, 1) * hand.palmar * (lighter - base)
    skin = skin + rng.uniform(0, 1) * hand.tip * (0.06, -0.03, -0.02)
    waves = np.cos(hand.template @ rng.normal(0, 120, (3, 4)) + rng.uniform(0, 6.3, 4))
    skin = skin * (1 + rng.uniform(0, 0.06) * waves.mean(1, keepdims=True))
    arm = painting.random_color(rng) if rng.random() < 0.5 else base
    arm = np.broadcast_to(arm, (len(surface) - crops.NUM_VERTICES, 3))
    normals = bodymodels.vertex_normals(surface, hand.faces)
    return painting.shade_surface(rng, surface, normals, np.concatenate([skin, arm]))


class RenderedHands(Rendered):
    """Pictures of the free right hand, rendered on the fly: no download, exact labels.

    split: "train" or "test", made of different random numbers. length: by default 40,000 and 1,000;
    a longer split starts with the samples of a shorter one. views, in_plane: see `sample_view`; the
    default is the whole sphere.

    cache: a folder. The split is rendered once, by all cores, into one memory-mapped file there
    (3 S^2 + 9.8 kB a sample) and read from it afterwards, bit for bit the same. A rendering that
    was killed continues where it stopped.
    """

    LENGTHS = {"train": 40_000, "test": 1_000}

    def __init__(self, split: str = "train", size: int = 128, *, length: int | None = None,
                 seed: int = 0, views: float = 90.0, in_plane: float = 180.0,
                 augmentation: str | Augmentation | None = None,
                 cache: str | os.PathLike | None = None) -> None:
        super().__init__(split, size, length, seed, augmentation)
        if not (0 <= views <= 90 and 0 <= in_plane <= 180 and self.length > 0):
            raise ValueError("expected views in 0..90 and in_plane in 0..180 degrees and a "
                             f"positive length, got {views}, {in_plane} and {self.length}")
        self.views, self.in_plane = float(views), float(in_plane)
        self.dtype = np.dtype([
            ("image", np.uint8, (size, size, 3)), ("K", np.float32, (3, 3)),
            ("joints", np.float32, (crops.NUM_JOINTS, 3)),
            ("vertices", np.float32, (crops.NUM_VERTICES, 3)),
            ("keypoints_2d", np.float32, (crops.NUM_JOINTS, 2))])
        self.open_cache(cache, "hands", views=self.views, in_plane=self.in_plane, sides="both",
                        version=RENDER_VERSION)

    def render(self, index: int) -> np.ndarray:
        rng = samples.random_generator(samples.RENDERING, self.seed, self.split_id, index)
        surface, joints, K = sample_scene(rng, self.size, self.views, self.in_plane)
        image = painting.paint_background(rng, self.size).astype(np.float32)
        painting.paint_surface(image, surface, hand_surface().faces, K, shade(rng, surface))
        picture = painting.to_image(image)
        painting.occlude(rng, picture)
        record = np.zeros((), self.dtype)
        record["image"] = painting.add_lens_and_noise(rng, picture)
        record["K"], record["joints"] = K, joints
        record["vertices"] = surface[:crops.NUM_VERTICES]
        record["keypoints_2d"] = bodymodels.project(joints, K)
        return record

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        sample = self.arrays(index)
        sample |= {"keypoints_valid": crops.inside(sample["keypoints_2d"], self.size, self.size),
                   "mesh_valid": 1.0, "side": np.int64(1)}
        if self.augmentation is not None and self.augmentation.moves:
            whole = np.array([self.size, self.size], np.float64)
            return crops.augmented_crop(sample, whole / 2, whole, self.size, self.augmentation, rng)
        return sample | {"image": sample["image"].transpose(2, 0, 1), "crop": np.eye(3),
                         "camera_rotation": np.eye(3)}
