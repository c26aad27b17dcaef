"""Rendered pictures of the free whole body, with crops of its hands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

import bodymodels
from sets.augmentation import Augmentation
from sets.backgrounds import REACH, cut_piece, pick, textures, to_image
from sets.body_crops import body_camera
from sets.body_poses import check_poses
from sets.crops import crop_homography, keypoint_box, transform_points, warp
from sets.hand_crops import NUM_VERTICES
from sets.hand_poses import sample_hand_pose
from sets.people import (
    HAND_JOINTS,
    HAND_KEYPOINTS,
    HANDS,
    SMPLX_JOINTS,
    SMPLX_KEYPOINTS,
    PeopleDataset,
    hand_square,
)
from sets.rendered import (
    STEEP,
    Rendered,
    add_lens_and_noise,
    check_version,
    draw_shape,
    paint_background,
    paint_surface,
    project_surface,
)
from sets.rendered_bodies import (
    BodyScene,
    body_surface,
    dress,
    hand_vertices,
    paint_behind,
    sample_posture,
    sample_transl,
)
from sets.samples import DETAILS, RENDERING_PEOPLE, random_generator

FINE = 2  # resolution of the background / of the picture, for the crops of hands


class Occluder(NamedTuple):
    """A shape in front of the body, the same in every view."""

    center: np.ndarray  # (2,) pixels of the picture
    radius: float  # pixels of the picture
    seed: int  # for its kind, colour and form


class View(NamedTuple):
    """A square part of a picture at its own resolution."""

    homography: np.ndarray  # (3, 3) picture pixels -> view pixels; scale and shift only
    size: int  # pixels


def sample_person(rng: np.random.Generator, split: str, size: int, views: float,
                  lean: float = 180.0, wide: float = 0.0, steep: float = 0.0) -> BodyScene:
    """Draw a posture with hand poses and a face, and place it as `sample_body_scene` does.

    `sample_hand_pose` draws the fingers of each hand; left ones are mirrored. The jaw opens a
    little, the eyes look straight ahead.
    """
    posture, betas = sample_posture(rng, split, views, lean, wide, steep)
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


def sample_occluders(rng: np.random.Generator, size: int, hands: np.ndarray, occlusion: float
                     ) -> list[Occluder]:
    """Draw shapes anywhere in 35 % of the pictures, and over each hand at the rate `occlusion`.

    hands (2, 21, 2): keypoints in pixels. The random numbers do not depend on the rate: what is
    hidden at one rate is hidden at a higher one, too.
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


def draw_occluder(picture: Image.Image, occluder: Occluder, view: View,
                  sources: Sequence[Image.Image] = ()) -> None:
    """Draw an occluder, given in the whole picture, into a view of it.

    sources: textures that half of the occluders take a part of; by default all are plain.
    """
    rng = random_generator(DETAILS, occluder.seed)
    center = transform_points(view.homography, occluder.center)
    radius = occluder.radius * view.homography[0, 0]
    if sources and rng.random() < 0.5:
        tile = cut_piece(rng, pick(rng, sources), 2 * REACH * radius)
        step = tile.width / (2 * REACH * radius)
        x, y = (REACH * radius - center) * step
        layer = tile.transform(picture.size, Image.Transform.AFFINE, (step, 0, x, 0, step, y),
                               Image.Resampling.BILINEAR)
        picture.paste(layer, (0, 0), layer)
        return
    draw_shape(ImageDraw.Draw(picture), rng, view.size, center / view.size, radius / view.size)


class Person:
    """A dressed person before a background, to be painted in any view."""

    def __init__(self, rng: np.random.Generator, scene: BodyScene, size: int, occlusion: float,
                 split: str = "train", lean: float = 180.0, version: int = 2) -> None:
        self.body, self.scene, self.size = body_surface("wholebody"), scene, size
        self.surface, self.colors = dress(rng, scene, "wholebody")
        self.before, self.sources = [], []  # people, and textures of occluders
        if version == 1:
            self.background = paint_background(rng, FINE * size)
        else:
            image, self.before = paint_behind(rng, FINE * size, split, lean,
                                              np.diag([FINE, FINE, 1]) @ scene.K, self.surface,
                                              self.colors)
            self.background, self.sources = np.asarray(to_image(image)), textures(split)
        projected = scene.keypoints @ scene.K.T
        self.keypoints_2d = projected[:, :2] / projected[:, 2:]
        self.lens = int(rng.integers(2**31))
        hands = self.keypoints_2d[HAND_KEYPOINTS]
        self.occluders = sample_occluders(rng, size, hands, occlusion)

    def paint(self, view: View, lens_size: int = 128) -> tuple[np.ndarray, np.ndarray]:
        """Return a view (s, s, 3) uint8 and the person's depth in it (s, s), 0 where hidden.

        The view is black outside the picture. lens_size: see `add_lens_and_noise`.
        """
        to_view = view.homography @ np.diag([1 / FINE, 1 / FINE, 1])
        image = warp(self.background, to_view, view.size).astype(np.float32)
        K = view.homography @ self.scene.K
        depth = paint_surface(image, self.surface, self.body.faces, K, self.colors)
        for surface, colors in self.before:
            hides = paint_surface(image, surface, body_surface().faces, K, colors) < np.inf
            depth[hides] = 0
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        bare = np.array(picture)
        for occluder in self.occluders:
            draw_occluder(picture, occluder, view, self.sources)
        depth[(bare != np.asarray(picture)).any(-1)] = 0
        image = add_lens_and_noise(random_generator(DETAILS, self.lens), picture, lens_size)
        outside = self._outside(view)
        image[outside], depth[outside] = 0, 0
        return image, depth

    def _outside(self, view: View) -> np.ndarray:
        """Return which pixels (s, s) of a view lie outside the picture."""
        corners = np.array([[0, 0], [self.size, self.size]], np.float64)
        low, high = transform_points(view.homography, corners)[:, None] - 1e-6
        pixels = np.arange(view.size)[:, None] + 0.5
        columns, rows = ((pixels < low) | (pixels > high)).T
        return rows[:, None] | columns

    def paint_hand(self, hand: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Return a hand's crop (s, s, 3), vertices (778, 3), K, and the share of it that is seen.

        The left hand is mirrored.
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
def hand_faces() -> list[np.ndarray]:
    """Return the faces of each hand in the whole body."""
    faces = body_surface("wholebody").faces
    return [faces[np.isin(faces, vertices).all(1)] for vertices in hand_vertices()]


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
        hand_boxes           (2, 4)         float32  x, y, width, height of the tight box of the
                                                     hand's 21 keypoints, pixels of `image`
        hand_pose            (2, 16, 3, 3)  float32  MANO: orientation in the camera, 15 fingers
        hand_joints          (2, 21, 3)     float32  metres, the camera's frame, "hand21"
        hand_vertices        (2, 778, 3)    float32  the same, MANO's topology
        hand_keypoints_2d    (2, 21, 2)     float32  pixels of the hand's crop
        hand_valid           (2,)           float32  1 if most of its keypoints are in `image`
        hand_visible         (2,)           float32  share of the hand that nothing hides
        arm_pose             (2, 8, 3, 3)   float32  from the pelvis to the wrist, "right_arm08"
        index                ()             int64    index within the split

    Left hands are mirrored: hand_images[1] and all "hand" and "arm" labels except hand_boxes are
    those of the mirrored picture's right hand. The product of a hand's arm_pose is the first
    rotation of its hand_pose, so that the true arm gives away the hand's orientation. keypoints_3d
    are those of the body model plus transl.

    A hand's crop is the square of `hand_square`, painted at its own resolution; augmentation moves
    and turns it further. occlusion: share of the hands that a shape covers, wholly or in part; it
    changes nothing but the shapes. Poses and boxes are as in RenderedBodies, so that some hands are
    outside the picture; their crops are black there.

    split, version: as for RenderedBodies. length, seed, cache: as for RenderedHands; 3 S^2 + 6 H^2
    + 22 kB a sample. hand_size: H, by default S. views, lean: see `sample_body_pose`; wide: see
    `sample_wide_poses`. lens_size: see `add_lens_and_noise`; with S, a hand cut out of the picture
    is as sharp as its own crop.
    """

    LENGTHS = {"train": 20_000, "test": 1_000}

    def __init__(self, split: str = "train", size: int = 128, *, length: int | None = None,
                 seed: int = 0, occlusion: float = 0.5, hand_size: int | None = None,
                 views: float = 180.0, lean: float = 180.0, wide: float = 0.0,
                 lens_size: int = 128, version: int = 2,
                 augmentation: str | Augmentation | None = None,
                 cache: str | os.PathLike | None = None, progress: bool = True) -> None:
        super().__init__(split, tuple(self.LENGTHS), size, seed, augmentation)
        self.length = self.LENGTHS[split] if length is None else length
        self.hand_size = size if hand_size is None else hand_size
        check_poses(self.length, views, lean, wide)
        if self.hand_size < 16:
            raise ValueError(f"expected hand_size >= 16, got {self.hand_size}")
        if not 0 <= occlusion <= 1:
            raise ValueError(f"expected an occlusion rate in 0..1, got {occlusion}")
        self.version = check_version(version)
        self.views, self.lean, self.wide = float(views), float(lean), float(wide)
        self.occlusion, self.lens_size = float(occlusion), int(lens_size)
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
        if wide:
            settings["wide"] = self.wide
        if lens_size != 128:
            settings["lens_size"] = self.lens_size
        self.open_cache(cache, "rendered_people", settings | {"version": version}, progress)

    def render(self, index: int) -> np.ndarray:
        """Render one sample as a packed record; it depends on seed, split and index alone."""
        rng = random_generator(RENDERING_PEOPLE, self.seed, self.split_id, index)
        scene = sample_person(rng, self.split, self.size, self.views, self.lean, self.wide,
                              STEEP * (self.version > 1))
        person = Person(rng, scene, self.size, self.occlusion, self.split, self.lean, self.version)
        record = np.zeros((), self.dtype)
        record["image"], _ = person.paint(View(np.eye(3), self.size), self.lens_size)
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
