"""Rendered pictures of the free body, and of the whole body with crops of its hands."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

import bodymodels
from sets import crops, painting
from sets.augmentation import Augmentation
from sets.motion import SMPL_JOINTS, check_poses, sample_betas, sample_body_pose, sample_wide_poses
from sets.rendered import Rendered, hand_surface, sample_hand_pose
from sets.samples import DETAILS, RENDERING_BODIES, RENDERING_PEOPLE, random_generator

STEEP = 0.4  # version 2: share of cameras that look from up to 40 degrees above or below
HAIR_COLORS = np.array([[0.05, 0.04, 0.04], [0.16, 0.10, 0.07], [0.33, 0.21, 0.12],
                        [0.72, 0.56, 0.33], [0.45, 0.18, 0.08], [0.55, 0.54, 0.53]])
SLEEVES = (0.2, 0.24, 0.38, 0.42, 0.5, 0.66, 0.68, 0.7)  # m from the middle, arms outstretched
HEMS = (-0.42, -0.55, -0.62, -0.85, -1.02, -1.04, -1.06, -1.08)  # m, shorts to long trousers


class BodySurface:
    """A free body ("body" or "wholebody"), with masks of face, hair and arms on its template."""

    def __init__(self, name: str = "body") -> None:
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
        """Return vertices (V, 3) and keypoints (45 or 76, 3) of one body, float32.

        parameters: betas, rotations and, for the whole body, expression. A batch would round
        differently.
        """
        with torch.inference_mode():
            output = self.model(*(torch.from_numpy(array)[None] for array in parameters))
            return output.vertices[0].numpy(), self.model.keypoints(output)[0].numpy()


def _spot(points: np.ndarray, center: np.ndarray, radius: float) -> np.ndarray:
    return np.exp(-np.square((points - center) / radius).sum(1))


body_surface = cache(BodySurface)


class BodyScene(NamedTuple):
    """A body in the frame of its crop's camera."""

    surface: np.ndarray  # (V, 3) metres
    keypoints_3d: np.ndarray  # (45 or 76, 3) metres
    K: np.ndarray  # (3, 3) pixels
    pose: np.ndarray  # (24 or 55, 3, 3)
    betas: np.ndarray  # (10,)
    transl: np.ndarray  # (3,) metres
    expression: np.ndarray | None = None  # (10,) of a whole body

    @property
    def keypoints_2d(self) -> np.ndarray:
        return bodymodels.project(self.keypoints_3d, self.K)


def place(rng: np.random.Generator, size: int, pose: np.ndarray, betas: np.ndarray,
          *expression: np.ndarray) -> BodyScene:
    """Draw a detector-like box around a free body, for a fifth around a part of it: the crop.

    With an expression it is the whole body.
    """
    names = crops.SMPLX_KEYPOINTS if expression else crops.SMPL_KEYPOINTS
    body = body_surface("wholebody" if expression else "body")
    vertices, keypoints = body.pose(betas, pose, *expression)
    visible = vertices if rng.random() < 0.8 else keypoints[crops.draw_body_part(rng, names)]
    center, side = crops.body_box(visible[:, :2].astype(np.float64))
    side *= rng.uniform(1.05, 1.35)
    center = center + rng.uniform(-0.06, 0.06, 2) * side
    transl = np.array([*-center, crops.BODY_FOCAL * side]).astype(np.float32)
    return BodyScene(vertices + transl, keypoints + transl, crops.body_camera(size), pose, betas,
                     transl, *expression)


def sample_posture(rng: np.random.Generator, split: str, views: float, lean: float = 180.0,
                   wide: float = 0.0, steep: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw pose (24, 3, 3) and betas (10,), float32, before a pitched camera: `camera_tilt`."""
    if wide:
        poses, betas = sample_wide_postures([rng], split, wide, views, lean, steep)
        return poses[0], betas[0]
    pose, betas = sample_body_pose(rng, split, views, lean), sample_betas(rng)
    pose[0] = camera_tilt(rng, steep) @ pose[0]
    return pose.astype(np.float32), betas.astype(np.float32)


def sample_wide_postures(rngs: Sequence[np.random.Generator], split: str, wide: float,
                         views: float, lean: float, steep: float = 0.0
                         ) -> tuple[np.ndarray, np.ndarray]:
    """Draw poses (N, 24, 3, 3) and betas (N, 10), float32, one of each from each generator."""
    poses = sample_wide_poses(rngs, split, wide, views, lean)
    betas = np.stack([sample_betas(rng) for rng in rngs])
    poses[:, 0] = np.stack([camera_tilt(rng, steep) for rng in rngs]) @ poses[:, 0]
    return poses.astype(np.float32), betas.astype(np.float32)


def camera_tilt(rng: np.random.Generator, steep: float = 0.0) -> np.ndarray:
    """Draw the rotation (3, 3) of a camera that is pitched and rolled a little.

    A share `steep` of the cameras is pitched uniformly, by up to 40 degrees up or down.
    """
    pitch, roll = np.clip(rng.normal((0.1, 0), (0.2, 0.08)), -0.6, 0.6)
    if steep and rng.random() < steep:
        pitch = np.deg2rad(rng.uniform(-40, 40))
    cos, sin = np.cos(pitch), np.sin(pitch)
    tilt = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return crops.roll_and_mirror(roll, False) @ tilt


def dress(rng: np.random.Generator, surface: np.ndarray, name: str
          ) -> tuple[np.ndarray, np.ndarray]:
    """Return the clothed surface (V, 3) of a free body and its shaded colours (V, 3).

    Skin, face, hair, shirt, trousers or dress, and shoes, each of random cut.
    """
    body = body_surface(name)
    x, y, z = body.template.T
    albedo = _face(rng, painting.random_skin(rng), body)
    if name == "wholebody":  # whose hands have crops of their own
        tint_hands(rng, albedo)
    thickness = np.zeros(len(y))  # metres of cloth and hair on the skin

    def wear(mask: np.ndarray, color: np.ndarray, thick: float) -> None:
        albedo[mask] = color * _cloth(rng, body.template[mask])
        thickness[mask] = thick

    waist, hem = rng.uniform(-0.28, -0.1), rng.choice(HEMS)
    clothes = painting.random_color(rng)
    wear((y < waist) & (y > hem), painting.random_color(rng), rng.uniform(0, 0.015))
    if rng.random() < 0.85:
        wear(y < rng.uniform(-1.1, -1.04), painting.random_color(rng), rng.uniform(0, 0.01))
    if rng.random() < 0.1:
        waist = rng.uniform(-0.8, -0.35)  # a dress
    neckline, scoop = rng.uniform(0.295, 0.34), rng.uniform(0, 0.14)
    low_neck = neckline - scoop * np.clip(z / 0.1, 0, 1) * np.exp(-np.square(x / 0.07))
    wear((y > waist) & (y < low_neck) & (body.reach < rng.choice(SLEEVES)), clothes,
         rng.uniform(0, 0.015))
    if rng.random() < 0.93:
        length = rng.uniform(0, 0.25) * (rng.random() < 0.4)
        hair = (body.forehead > 0) & (y > 0.36) | (z < 0.01) & (body.arm < 0.1) & (
            y > 0.36 - length) & (np.abs(x) < 0.1)
        wear(hair & (y > 0.1), _hair_color(rng), rng.uniform(0, 0.02))
    normals = bodymodels.vertex_normals(surface, body.faces)
    surface = surface + normals * thickness[:, None]
    return surface, painting.shade_surface(rng, surface, normals, albedo)


def _face(rng: np.random.Generator, skin: np.ndarray, body: BodySurface) -> np.ndarray:
    """Return albedo (V, 3) of bare skin: darker eyes, redder mouth, perhaps a beard."""
    albedo = np.tile(skin, (len(body.template), 1))
    albedo *= 1 - rng.uniform(0.4, 0.9) * np.minimum(body.eyes, 1)[:, None]
    albedo *= 1 - body.mouth[:, None] * rng.uniform(0, 1) * np.array([0.1, 0.5, 0.5])
    if rng.random() < 0.15:
        albedo[body.jaw] = 0.4 * albedo[body.jaw] + 0.6 * _hair_color(rng)
    return albedo


def _hair_color(rng: np.random.Generator) -> np.ndarray:
    return np.clip(HAIR_COLORS[rng.integers(len(HAIR_COLORS))] * rng.uniform(0.7, 1.3), 0, 1)


def _cloth(rng: np.random.Generator, template: np.ndarray) -> np.ndarray:
    """Draw factors (N, 1) of a garment's colour at points (N, 3): folds, perhaps stripes."""
    waves = np.cos(template @ rng.normal(0, 40, (3, 4)) + rng.uniform(0, 6.3, 4)).mean(1)
    factor = 1 + rng.uniform(0, 0.15) * waves
    if rng.random() < 0.25:
        direction = rng.choice((0, 1, 1, 2))
        phase = template[:, direction] / rng.uniform(0.05, 0.16) + rng.random()
        factor *= np.where(phase % 1 < rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.9), 1)
    return factor[:, None]


def paint_behind(rng: np.random.Generator, size: int, split: str, lean: float, K: np.ndarray,
                 surface: np.ndarray, colors: np.ndarray
                 ) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Draw what is behind a person of this surface (V, 3) and colours (V, 3), shadow included.

    A quarter of the pictures has somebody behind; one in twenty has somebody in front, mostly cut
    off by the border. Return the picture (size, size, 3), float32 0..255, and surfaces and colours
    of those in front.
    """
    image = painting.paint_scene(rng, size, split, colors)
    behind = [_bystander(rng, split, lean, 0.65)] if rng.random() < 0.25 else []
    before = [_bystander(rng, split, lean, 0.0)] if rng.random() < 0.05 else []
    if rng.random() < 0.35:
        painting.cast_shadow(rng, image, painting.project_surface(surface, K)[:, :2])
    for body, its_colors in behind:
        painting.paint_surface(image, body, body_surface().faces, K, its_colors)
    return image, before


def _bystander(rng: np.random.Generator, split: str, lean: float, near: float
               ) -> tuple[np.ndarray, np.ndarray]:
    """Draw a clothed person, up to `near` (0: 0.5 to 0.7) crop sides from the crop's middle."""
    pose, betas = sample_posture(rng, split, 180.0, lean)
    vertices = body_surface().pose(betas, pose)[0]
    center, height = crops.body_box(vertices[:, :2])
    side = height / rng.uniform(0.35, 1.3)  # of the crop, in metres at the person
    across = rng.uniform(-near, near) if near else rng.choice((-1, 1)) * rng.uniform(0.5, 0.7)
    shift = side * np.array([across, rng.uniform(-0.15, 0.25)]) - center
    transl = np.array([*shift, crops.BODY_FOCAL * side]).astype(np.float32)
    return dress(rng, vertices + transl, "body")


class RenderedBodies(Rendered):
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
        pose_valid, betas_valid (), keypoints_3d_valid (45,)  float32  1: all labels are known
        index            ()          int64    index within the split

    Without augmentation K is the papers' camera: a focal length of 5000 pixels for a crop of 256.
    A fifth of the boxes contain only a part of the body. split: "train" or "test", from different
    clips, photographs and random numbers. views, lean: see `sample_body_pose`; wide: see
    `sample_wide_poses`. length and cache: as for RenderedHands; 3 S^2 + 1.9 kB a sample.

    version 2 draws backgrounds as of photographs, other people and shadows (`paint_scene`,
    `paint_behind`), and 40 % of its cameras look from up to 40 degrees above or below. version 1 is
    the renderer of older scores: level cameras before colours and shapes.
    """

    LENGTHS = {"train": 40_000, "test": 1_000}
    KIND, JOINTS, KEYPOINTS = "bodies", len(SMPL_JOINTS), len(crops.SMPL_KEYPOINTS)
    KNOWN = {"pose_valid": 1.0, "betas_valid": 1.0, "keypoints_3d_valid": np.ones(KEYPOINTS)}

    def __init__(self, split: str = "train", size: int = 128, *, length: int | None = None,
                 seed: int = 0, views: float = 180.0, lean: float = 180.0, wide: float = 0.0,
                 version: int = 2, augmentation: str | Augmentation | None = None,
                 cache: str | os.PathLike | None = None, more: dict | None = None) -> None:
        """Open a split. more: settings of a subclass that the pictures depend on."""
        super().__init__(split, size, length, seed, augmentation)
        check_poses(self.length, views, lean, wide)
        if version not in (1, 2):  # a new one whenever the same settings would give other pictures
            raise ValueError(f"unknown version {version!r} of the rendered pictures: expected 2, "
                             "or 1 for the pictures of older scores")
        self.views, self.lean, self.wide = float(views), float(lean), float(wide)
        self.version, self.steep = version, STEEP * (version > 1)
        self.dtype = np.dtype(self.fields())
        settings = (more or {}) | ({"wide": self.wide} if wide else {})
        self.open_cache(cache, self.KIND, views=self.views, lean=self.lean, version=version,
                        **settings)

    def fields(self) -> list[tuple]:
        """Return the fields of a record."""
        return [("image", np.uint8, (self.size, self.size, 3)), ("K", np.float32, (3, 3)),
                ("pose", np.float32, (self.JOINTS, 3, 3)), ("betas", np.float32, 10),
                ("transl", np.float32, 3), ("keypoints_3d", np.float32, (self.KEYPOINTS, 3)),
                ("keypoints_2d", np.float32, (self.KEYPOINTS, 2))]

    def labels(self, scene: BodyScene) -> np.ndarray:
        """Return a record with the labels of a scene; pictures are still black."""
        record = np.zeros((), self.dtype)
        for name in self.dtype.names:
            record[name] = getattr(scene, name, 0)
        return record

    def render(self, index: int) -> np.ndarray:
        rng = random_generator(RENDERING_BODIES, self.seed, self.split_id, index)
        posture = sample_posture(rng, self.split, self.views, self.lean, self.wide, self.steep)
        scene = place(rng, self.size, *posture)
        if self.version == 1:
            image, before = painting.paint_background(rng, self.size).astype(np.float32), []
            surface, colors = dress(rng, scene.surface, "body")
        else:
            surface, colors = dress(rng, scene.surface, "body")
            image, before = paint_behind(rng, self.size, self.split, self.lean, scene.K, surface,
                                         colors)
        for body, its_colors in ((surface, colors), *before):
            painting.paint_surface(image, body, body_surface().faces, scene.K, its_colors)
        picture = painting.to_image(image)
        painting.occlude(rng, picture, painting.textures(self.split) if self.version > 1 else ())
        record = self.labels(scene)
        record["image"] = painting.add_lens_and_noise(rng, picture)
        return record

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        sample = self.arrays(index)
        if self.augmentation is not None and self.augmentation.moves:
            sample = crops.crop_body(sample, self.size, self.augmentation, rng)[0]
        sample["image"] = sample["image"].transpose(2, 0, 1)
        valid = crops.inside(sample["keypoints_2d"], self.size, self.size)
        return sample | self.KNOWN | {"keypoints_valid": valid}


@cache
def hand_vertices() -> list[np.ndarray]:
    """Return the indices (778,) of each hand's vertices, in the order of HANDS."""
    return [bodymodels.hand_vertex_ids("wholebody")[side].numpy() for side in crops.HANDS]


def tint_hands(rng: np.random.Generator, albedo: np.ndarray) -> None:
    """Make the palms of bare skin (10475, 3) lighter and the finger tips redder, in place."""
    hand, palm, tip = hand_surface(), rng.uniform(0, 1), rng.uniform(0, 1)
    for vertices in hand_vertices():
        lighter = np.clip(albedo[vertices] * 1.1 + (0.06, 0.03, 0.03), 0, 1) - albedo[vertices]
        albedo[vertices] += palm * hand.palmar * lighter + tip * hand.tip * (0.06, -0.03, -0.02)


FINE = 2  # resolution of the background / of the picture, for the crops of hands


class Occluder(NamedTuple):
    """A shape in front of the body, the same in every view."""

    center: np.ndarray  # (2,) pixels of the picture
    radius: float  # pixels of the picture
    seed: int  # for its kind, colour and form


def sample_person(rng: np.random.Generator, split: str, size: int, views: float,
                  lean: float = 180.0, wide: float = 0.0, steep: float = 0.0) -> BodyScene:
    """Draw a posture with hand poses and a face, and `place` it.

    `sample_hand_pose` draws the fingers of each hand; left ones are mirrored. The jaw opens a
    little, the eyes look straight ahead.
    """
    posture, betas = sample_posture(rng, split, views, lean, wide, steep)
    pose = np.tile(np.eye(3, dtype=np.float32), (len(crops.SMPLX_JOINTS), 1, 1))
    pose[:22] = posture[:22]  # SMPL's hands are SMPL-X's wrists
    angles = np.stack([sample_hand_pose(rng), sample_hand_pose(rng),  # (3, 15, 3)
                       np.zeros((15, 3))])
    angles[2, 0, 0] = min(rng.exponential(0.1), 0.35)  # jaw
    fingers = bodymodels.axis_angle_to_matrix(torch.from_numpy(angles))
    fingers[1] = bodymodels.mirror_matrix(fingers[1])
    for joints, rotations in zip(crops.HAND_JOINTS, fingers[:2].numpy(), strict=True):
        pose[joints[1:]] = rotations
    pose[crops.SMPLX_JOINTS.index("jaw")] = fingers[2, 0]
    expression = np.clip(rng.normal(0, 0.7, 10), -2, 2).astype(np.float32)
    return place(rng, size, pose, betas, expression)


def sample_occluders(rng: np.random.Generator, size: int, hands: np.ndarray, occlusion: float
                     ) -> list[Occluder]:
    """Draw shapes anywhere in 35 % of the pictures, and over each hand at the rate `occlusion`.

    hands (2, 21, 2): keypoints in pixels. The random numbers do not depend on the rate: what is
    hidden at one rate is hidden at a higher one, too.
    """
    count = int(rng.integers(1, 3)) * (rng.random() < 0.35)
    shapes = [Occluder(rng.uniform(0, size, 2), size * rng.uniform(0.04, 0.18),
                       int(rng.integers(2**31))) for _ in range(count)]
    for center, (width, height) in map(crops.keypoint_box, hands):
        extent = np.hypot(width, height)
        over = Occluder(center + rng.uniform(-0.3, 0.3, 2) * (width, height),
                        extent * rng.uniform(0.3, 0.6), int(rng.integers(2**31)))
        shapes += [over] * (rng.random() < occlusion)
    return shapes


def draw_occluder(picture: Image.Image, occluder: Occluder, to_view: np.ndarray,
                  sources: Sequence[Image.Image] = ()) -> None:
    """Draw an occluder, given in the whole picture, into a view of it: see `Person.paint`.

    sources: textures that half of the occluders take a part of; by default all are plain.
    """
    rng = random_generator(DETAILS, occluder.seed)
    center = crops.transform_points(to_view, occluder.center)
    radius = occluder.radius * to_view[0, 0]
    if sources and rng.random() < 0.5:
        tile = painting.cut_piece(rng, painting.pick(rng, sources), 2 * painting.REACH * radius)
        step = tile.width / (2 * painting.REACH * radius)
        x, y = (painting.REACH * radius - center) * step
        layer = tile.transform(picture.size, Image.Transform.AFFINE, (step, 0, x, 0, step, y),
                               Image.Resampling.BILINEAR)
        picture.paste(layer, (0, 0), layer)
        return
    size = picture.width
    painting.draw_shape(ImageDraw.Draw(picture), rng, size, center / size, radius / size)


class Person:
    """A dressed person before a background, to be painted in any view."""

    def __init__(self, rng: np.random.Generator, scene: BodyScene, size: int, occlusion: float,
                 split: str = "train", lean: float = 180.0, version: int = 2) -> None:
        self.body, self.scene, self.size = body_surface("wholebody"), scene, size
        self.surface, self.colors = dress(rng, scene.surface, "wholebody")
        self.before, self.sources = [], []  # people, and textures of occluders
        if version == 1:
            self.background = painting.paint_background(rng, FINE * size)
        else:
            image, self.before = paint_behind(rng, FINE * size, split, lean,
                                              np.diag([FINE, FINE, 1]) @ scene.K, self.surface,
                                              self.colors)
            self.background = np.asarray(painting.to_image(image))
            self.sources = painting.textures(split)
        self.keypoints_2d = scene.keypoints_2d
        self.lens = int(rng.integers(2**31))
        hands = self.keypoints_2d[crops.HAND_KEYPOINTS]
        self.occluders = sample_occluders(rng, size, hands, occlusion)

    def paint(self, to_view: np.ndarray, size: int, lens_size: int = 128
              ) -> tuple[np.ndarray, np.ndarray]:
        """Return a view (s, s, 3) uint8 and the person's depth in it (s, s), 0 where hidden.

        to_view: homography (3, 3) from pixels of the picture to those of the view, scale and shift
        only. The view is black outside the picture. lens_size: see `add_lens_and_noise`.
        """
        fine = to_view @ np.diag([1 / FINE, 1 / FINE, 1])
        image = crops.warp(self.background, fine, size).astype(np.float32)
        K = to_view @ self.scene.K
        depth = painting.paint_surface(image, self.surface, self.body.faces, K, self.colors)
        for surface, colors in self.before:
            hides = painting.paint_surface(image, surface, body_surface().faces, K, colors) < np.inf
            depth[hides] = 0
        picture = painting.to_image(image)
        bare = np.array(picture)
        for occluder in self.occluders:
            draw_occluder(picture, occluder, to_view, self.sources)
        depth[(bare != np.asarray(picture)).any(-1)] = 0
        image = painting.add_lens_and_noise(random_generator(DETAILS, self.lens), picture,
                                            lens_size)
        corners = np.array([[0, 0], [self.size, self.size]], np.float64)
        low, high = crops.transform_points(to_view, corners)[:, None] - 1e-6
        pixels = np.arange(size)[:, None] + 0.5
        columns, rows = ((pixels < low) | (pixels > high)).T
        outside = rows[:, None] | columns
        image[outside], depth[outside] = 0, 0
        return image, depth

    def paint_hand(self, hand: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Return a hand's crop (s, s, 3), vertices (778, 3), K, and the share of it that is seen.

        The left hand is mirrored.
        """
        center, side = crops.hand_square(self.keypoints_2d[crops.HAND_KEYPOINTS[hand]])
        to_view = crops.crop_homography(center, side, size)
        image, depth = self.paint(to_view, size)
        K = to_view @ self.scene.K
        pixels = painting.project_surface(self.surface, K)
        alone = bodymodels.rasterize(pixels, hand_faces()[hand], (size, size))[2]
        silhouette = alone < np.inf
        seen = (depth[silhouette] > alone[silhouette] - 1e-3).sum() / max(silhouette.sum(), 1)
        vertices = self.scene.surface[hand_vertices()[hand]]
        if crops.HANDS[hand] == "left":
            K = np.array([[-1, 0, size], [0, 1, 0], [0, 0, 1]]) @ K @ np.diag([-1.0, 1, 1])
            image, vertices = image[:, ::-1], vertices * (-1, 1, 1)
        return image, vertices, K, seen


@cache
def hand_faces() -> list[np.ndarray]:
    """Return the faces of each hand in the whole body."""
    faces = body_surface("wholebody").faces
    return [faces[np.isin(faces, vertices).all(1)] for vertices in hand_vertices()]


class RenderedPeople(RenderedBodies):
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
        index                ()             int64    index within the split

    Left hands are mirrored: hand_images[1] and all "hand" labels except hand_boxes are those of the
    mirrored picture's right hand. A hand's crop is the square of `hand_square`, painted at its own
    resolution, black outside the picture; augmentation moves and turns it further.

    Arguments are those of RenderedBodies; 3 S^2 + 6 H^2 + 22 kB a sample. hand_size: H, by default
    S. occlusion: share of the hands that a shape covers, wholly or in part; it changes nothing but
    the shapes. lens_size: see `add_lens_and_noise`; with S, a hand cut out of the picture is as
    sharp as its own crop.
    """

    LENGTHS = {"train": 20_000, "test": 1_000}
    KIND, JOINTS, KEYPOINTS = "people", len(crops.SMPLX_JOINTS), len(crops.SMPLX_KEYPOINTS)

    def __init__(self, split: str = "train", size: int = 128, *, occlusion: float = 0.5,
                 hand_size: int | None = None, lens_size: int = 128, **options) -> None:
        if not 0 <= occlusion <= 1:
            raise ValueError(f"expected an occlusion rate in 0..1, got {occlusion}")
        self.hand_size = size if hand_size is None else hand_size
        self.occlusion, self.lens_size = float(occlusion), int(lens_size)
        more = {"hand_size": self.hand_size, "occlusion": self.occlusion}
        more |= {"lens_size": self.lens_size} if lens_size != 128 else {}
        super().__init__(split, size, more=more, **options)

    def fields(self) -> list[tuple]:
        image, K, pose, betas, *others = super().fields()
        return [image, K, ("hand_images", np.uint8, (2, self.hand_size, self.hand_size, 3)),
                ("hand_vertices", np.float32, (2, crops.NUM_VERTICES, 3)),
                ("hand_K", np.float32, (2, 3, 3)), ("hand_visible", np.float32, 2),
                pose, betas, ("expression", np.float32, 10), *others]

    def render(self, index: int) -> np.ndarray:
        rng = random_generator(RENDERING_PEOPLE, self.seed, self.split_id, index)
        scene = sample_person(rng, self.split, self.size, self.views, self.lean, self.wide,
                              self.steep)
        person = Person(rng, scene, self.size, self.occlusion, self.split, self.lean, self.version)
        record = self.labels(scene)
        record["image"], _ = person.paint(np.eye(3), self.size, self.lens_size)
        for hand in range(2):
            parts = person.paint_hand(hand, self.hand_size)
            for name, value in zip(("images", "vertices", "K", "visible"), parts, strict=True):
                record[f"hand_{name}"][hand] = value
        return record

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return crops.labelled_person(self.arrays(index), self.augmentation, self.size, rng)
