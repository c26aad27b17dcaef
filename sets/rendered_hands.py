"""Rendered pictures of the free right hand."""

from __future__ import annotations

import os
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import bodymodels
from sets.augmentation import Augmentation
from sets.crops import inside, keypoint_box, perspective_crop
from sets.hand_crops import NUM_JOINTS, NUM_VERTICES, Annotated, HandDataset, augmented_crop
from sets.hand_poses import sample_hand_pose, sample_view
from sets.rendered import (
    Rendered,
    add_lens_and_noise,
    occlude,
    paint_background,
    paint_surface,
    random_color,
    random_skin,
    shade_surface,
)
from sets.samples import RENDERING, random_generator

RENDER_VERSION = 1  # increase it whenever the same settings would give other pictures
FOREARM_RINGS = 3


class HandSurface:
    """The free right hand with a forearm. It is closed, so that only front faces are drawn."""

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
        """Return strips between copies of the wrist's rim, and a fan that closes the last copy."""
        count = len(self.wrist)
        copies = NUM_VERTICES + np.arange(FOREARM_RINGS * count).reshape(FOREARM_RINGS, count)
        rings = np.vstack([self.wrist, copies])
        a, b = rings, np.roll(rings, -1, axis=1)
        lower = np.stack([b[:-1], a[:-1], a[1:]], -1).reshape(-1, 3)
        upper = np.stack([b[:-1], a[1:], b[1:]], -1).reshape(-1, 3)
        center = np.full(count, NUM_VERTICES + copies.size)
        return np.concatenate([lower, upper, np.stack([b[-1], a[-1], center], -1)])

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
        rim = vertices[self.wrist]
        center = rim.mean(0)
        steps = np.linspace(0, 1, FOREARM_RINGS + 1)[1:, None, None]
        rings = center + (rim - center) * (1 + taper * steps) + direction * length * steps
        return np.concatenate([vertices, rings.reshape(-1, 3), rings[-1].mean(0, keepdims=True)])


def boundary_loop(faces: np.ndarray) -> np.ndarray:
    """Return the vertices around a mesh's only hole, in the order of its border edges."""
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


class Scene(NamedTuple):
    """A hand and its camera, in metres and pixels."""

    surface: np.ndarray  # (V, 3) the hand's 778 vertices, then the forearm's
    joints: np.ndarray  # (21, 3)
    K: np.ndarray  # (3, 3)


def sample_scene(rng: np.random.Generator, size: int, views: float, in_plane: float,
                 sides: str) -> Scene:
    """Draw pose, shape, view, distance and a detector-like box around the keypoints."""
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
    # short if it points at the camera, so that it does not hide the hand
    length = rng.uniform(0.02, 0.25) * (1 + 0.95 * min(forearm[2], 0))
    surface = hand.with_forearm(vertices, forearm, length, rng.uniform(0, 0.3))
    return Scene(surface, joints, crop.K)


def shade(rng: np.random.Generator, surface: np.ndarray) -> np.ndarray:
    """Return the shaded colours (V, 3) of a hand with its skin or sleeve."""
    normals = bodymodels.vertex_normals(surface, hand_surface().faces)
    return shade_surface(rng, surface, normals, _skin(rng, len(surface)))


def _skin(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw albedo (count, 3): skin tone, lighter palm, redder tips, blotches, perhaps a sleeve."""
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
    """Draw the shaded hand into a picture (S, S, 3), float32 0..255, in place."""
    paint_surface(image, scene.surface, hand_surface().faces, scene.K, colors)


class RenderedHands(Rendered, HandDataset):
    """Pictures of the free right hand, rendered on the fly: no download, exact labels.

    split: "train" or "test", made of different random numbers. length: by default 40,000 and 1,000;
    a longer split starts with the samples of a shorter one. views, in_plane, sides: see
    `sample_view`; the default is the whole sphere.

    cache: a folder. The split is rendered once, by all cores, into one memory-mapped file there
    (3 S^2 + 9.9 kB a sample) and read from it afterwards, bit for bit the same. A rendering that
    was killed continues where it stopped. The file's name holds a checksum of the settings. Old
    files stay; you may delete the folder at any time.

    Without geometric augmentation `crop` and `camera_rotation` are identities.
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
        """Render one sample as a packed record; it depends on seed, split and index alone."""
        rng = random_generator(RENDERING, self.seed, self.split_id, index)
        scene = sample_scene(rng, self.size, self.views, self.in_plane, self.sides)
        image = paint_background(rng, self.size).astype(np.float32)
        paint_hand(image, scene, shade(rng, scene.surface))
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        occlude(rng, picture)
        record = np.zeros((), self.dtype)
        record["image"] = add_lens_and_noise(rng, picture)
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
