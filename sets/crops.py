"""Crop pictures, and move their labels along: of hands, bodies, and people with their hands.

Samples of hands and coordinates of pixels: see data.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import bodymodels
from sets.augmentation import TIGHT_BOX, Augmentation


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
    to_origin = np.array([[1, 0, -center[0]], [0, 1, -center[1]], [0, 0, 1]], np.float64)
    scale = size / side
    to_crop = np.array([[scale, 0, size / 2], [0, scale, size / 2], [0, 0, 1]], np.float64)
    return to_crop @ roll_and_mirror(roll, mirror) @ to_origin


def perspective_crop(K: np.ndarray, center: Sequence[float], box: Sequence[float], size: int, *,
                     roll: float = 0.0, mirror: bool = False, release: bool = False) -> Crop:
    """Rotate the camera until the box's centre lies on its axis, then zoom until the box fits.

    K (3, 3), centre (2,) and box (width, height) are in pixels of the original picture; the longer
    side of the box fills `size`. The crop is exact for 3D points, which an affine crop is not.

    release: crop as SimpleHand's released code does (its cal_perspective_mat). The zoom then fits
    the bounding box of the four rotated corners, and fx and fy keep their ratio. Pixel centres are
    at integers, so that a mirrored pixel moves from x to size - 1 - x.
    """
    K = np.asarray(K, np.float64)
    inverse = np.linalg.inv(K)
    turn = rotation_to_axis(inverse @ (*center, 1.0))
    if release:
        corners = np.array(center) + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 * box
        rays = np.column_stack([corners, np.ones(4)]) @ (turn @ inverse).T
        extent = np.ptp(rays[:, :2] / rays[:, 2:] * (K[0, 0], K[1, 1]), axis=0)
        focal = size / extent.max() * K[[0, 1], [0, 1]]
    else:
        (x, y), (half_width, half_height) = center, (box[0] / 2, box[1] / 2)
        edges = np.array([[x - half_width, y, 1], [x + half_width, y, 1],
                          [x, y - half_height, 1], [x, y + half_height, 1]]) @ (turn @ inverse).T
        focal = size / 2 / np.abs(edges[:, :2] / edges[:, 2:]).max() * np.ones(2)
    middle = size / 2 - (release and mirror)
    crop_K = np.array([[focal[0], 0, middle], [0, focal[1], size / 2], [0, 0, 1]])
    rotation = roll_and_mirror(roll, mirror) @ turn
    return Crop(crop_K, crop_K @ rotation @ inverse, rotation)


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
    """Resample (H, W, 3) uint8 by a homography to (size, size, 3), bilinear, black outside.

    Before a strong reduction whole blocks of pixels are averaged, which avoids aliasing.
    """
    inverse = np.linalg.inv(image_to_crop)
    middle = size / 2 + np.array([[0, 0], [1, 0], [0, 1]])
    origin, right, down = transform_points(inverse, middle)
    shrink = int(min(np.linalg.norm(right - origin), np.linalg.norm(down - origin),
                     max(image.shape)))  # no box is too large
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


NUM_JOINTS, NUM_VERTICES = 21, 778  # hand21, MANO topology
KNUCKLES = [5, 9, 13, 17]  # of index, middle, ring and little finger
FILL, SIDES = 1.15, (0.7, 1.2)  # of upright_view


def hand_sample(source: dict[str, np.ndarray], size: int, recipe: Augmentation | None,
                rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Crop a hand around its known keypoints, or take the whole picture if none is known.

    source: as of `crop_sample`. Without a recipe the crop is the keypoints' tight box x 1.25.
    """
    keypoints, known = source["keypoints_2d"], source["keypoints_valid"] > 0
    if known.any():
        center, box = keypoint_box(keypoints[known])
        return augmented_crop(source, center, np.maximum(box, 1.0), size, recipe or TIGHT_BOX, rng)
    whole = np.array(source["image"].shape[1::-1], np.float64)
    sample = augmented_crop(source, whole / 2, whole, size, recipe or Augmentation(), rng)
    return sample | {"keypoints_2d": keypoints}  # unknown keypoints stay zero


def augmented_crop(source: dict[str, np.ndarray], center: np.ndarray, box: np.ndarray, size: int,
                   recipe: Augmentation, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Shift, scale, turn and mirror the box as the recipe draws it, then crop.

    Left hands are mirrored once more than the recipe says: `camera_rotation` of a left hand has
    determinant -1 unless the recipe flips it.
    """
    shift, scale, roll = recipe.draw_motion(rng)
    center = np.clip(center + shift * box[0], 0, source["image"].shape[1::-1])
    mirror = bool(rng.random() < recipe.flip) != (source["side"] == 0)
    sample = crop_sample(source, center, box * scale, size, roll=roll, mirror=mirror,
                         release=recipe.release_crop)
    if recipe.upright and rng.random() < recipe.upright:
        return upright_sample(sample, size, rng)
    return sample


def upright_sample(sample: dict[str, np.ndarray], size: int, rng: np.random.Generator
                   ) -> dict[str, np.ndarray]:
    """Crop a crop once more: the hand points up and fills it, nearly.

    A network that looks again at a hand makes such crops from keypoints that it found in the first
    one, so the true ones get noise here.
    """
    guess = sample["keypoints_2d"] + rng.normal(0, 0.03 * size, (NUM_JOINTS, 2))
    roll, side = (value.item() for value in upright_view(
        torch.from_numpy(guess.clip(0, size)[None] / size)))
    roll, side = roll + rng.normal(0, 0.1), size * side * rng.uniform(0.92, 1.12)
    again = crop_sample(sample | {"image": sample["image"].transpose(1, 2, 0)},
                        np.full(2, size / 2), np.full(2, side), size, roll=roll)
    return again | {"crop": again["crop"] @ sample["crop"],
                    "camera_rotation": again["camera_rotation"] @ sample["camera_rotation"]}


def upright_view(keypoints: Tensor, sides: tuple[float, float] = SIDES) -> tuple[Tensor, Tensor]:
    """Return roll and side (B,) of boxes around the crops' centres in which hands stand upright.

    keypoints: (B, 21, 2), 0..1. The wrist lies below the middle of four knuckles, and the farthest
    keypoint at 1 / FILL of the way to the box's border. sides: least and largest, of the crop's.
    """
    x, y = (keypoints[:, KNUCKLES].mean(1) - keypoints[:, 0]).unbind(1)
    roll = -np.pi / 2 - torch.atan2(y, x)
    reach = ((keypoints - 0.5) @ rotation(roll).mT).abs().amax((1, 2))
    return roll, (2 * FILL * reach).clamp(*sides)


def rotation(roll: Tensor) -> Tensor:
    """Return rotations (B, 2, 2) by angles (B,) in radians, clockwise where y points down."""
    cos, sin = roll.cos(), roll.sin()
    return torch.stack((cos, -sin, sin, cos), 1).unflatten(1, (2, 2))


def crop_sample(source: dict[str, np.ndarray], center: np.ndarray, box: np.ndarray, size: int, *,
                roll: float = 0.0, mirror: bool = False, release: bool = False
                ) -> dict[str, np.ndarray]:
    """Crop a picture and its annotation with a virtual camera.

    source: what a sample has (see data.py), in the original camera: image (H, W, 3), K, joints,
    vertices, keypoints_2d, keypoints_valid (21,) 1 if known, mesh_valid and side. release: see
    `perspective_crop`, also of K, crop and keypoints_2d.
    """
    crop = perspective_crop(source["K"], center, box, size, roll=roll, mirror=mirror,
                            release=release)
    image = (release_warp if release else warp)(source["image"], crop.homography, size)
    keypoints = transform_points(crop.homography, source["keypoints_2d"])
    return {
        "image": image.transpose(2, 0, 1), "K": crop.K, "keypoints_2d": keypoints,
        "keypoints_valid": source["keypoints_valid"] * inside(keypoints, size, size),
        "joints": source["joints"] @ crop.rotation.T,
        "vertices": source["vertices"] @ crop.rotation.T, "mesh_valid": source["mesh_valid"],
        "crop": crop.homography, "camera_rotation": crop.rotation,
        "side": np.int64(source["side"])}


SMPL_KEYPOINTS = bodymodels.JOINT_SETS["smpl45"]
BODY_FOCAL = 5000 / 256  # focal length in crop sides: 5000 pixels for a crop of 256 (HMR2.0)
SEEN_WIDTH = 0.75  # share of the crop: the encoder cuts an eighth off either side (HMR2.0)
BODY_PARTS = {  # what the box of a truncated body contains: keypoint names, probability
    "above the knees": (r"^(?!.*(ankle|foot|toe|heel))", 0.3),
    "above the hips": (r"^(?!.*(knee|ankle|foot|toe|heel))", 0.3),
    "head and shoulders": (r"head|neck|shoulder|nose|eye|ear", 0.1),
    "torso": (r"pelvis|hip|spine|shoulder|neck", 0.1),
    "legs": (r"hip|knee|ankle|foot|toe|heel", 0.08),
    "left side": (r"left|spine|neck", 0.06),
    "right side": (r"right|spine|neck", 0.06),
}


def draw_body_part(rng: np.random.Generator, names: Sequence[str] = SMPL_KEYPOINTS) -> list[int]:
    """Draw one of BODY_PARTS; return its keypoints as indices of `names`."""
    patterns, chances = zip(*BODY_PARTS.values(), strict=True)
    pattern = patterns[rng.choice(len(patterns), p=chances)]
    return [index for index, name in enumerate(names) if re.search(pattern, name)]


def body_box(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Return centre (2,) and side of the square crop in which the encoder sees points (N, 2)."""
    center, (width, height) = keypoint_box(points)
    return center, max(height, width / SEEN_WIDTH)


def body_camera(size: int) -> np.ndarray:
    """Return K (3, 3) of every crop: a long, fixed focal length, as in the papers."""
    focal = BODY_FOCAL * size
    return np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])


def crop_body(sample: dict[str, np.ndarray], size: int, recipe: Augmentation | None,
              rng: np.random.Generator, square: tuple[np.ndarray, float] | None = None,
              known: np.ndarray | None = None, joints: str = "smpl24",
              keypoint_set: str = "smpl45"
              ) -> tuple[dict[str, np.ndarray], np.ndarray, float, bool]:
    """Crop the picture (H, W, 3) of a body as a recipe draws it, and move its labels along.

    square: centre and side of the crop without augmentation; by default the whole picture, size x
    size. known: which keypoints (J,) are known, by default all; a part of the body needs three.
    Returns the sample, and homography, roll and mirror of the crop.
    """
    center, side = (np.array([size, size]) / 2, float(size)) if square is None else square
    roll, mirror = 0.0, False
    if recipe is not None and recipe.moves:
        if rng.random() < recipe.extreme:
            part = [joint for joint in draw_body_part(rng, bodymodels.JOINT_SETS[keypoint_set])
                    if known is None or known[joint]]
            if len(part) > 2:
                least = side / 8
                center, side = body_box(sample["keypoints_2d"][part])
                side = max(1.2 * side, least)
        shift, scale, roll = recipe.draw_motion(rng)
        mirror = bool(rng.random() < recipe.flip)
        center, side = center + shift * side, side * scale
    homography = crop_homography(center, side, size, roll=roll, mirror=mirror)
    moved = move_body(sample, homography, roll, mirror, joints, keypoint_set)
    return moved | {"image": warp(sample["image"], homography, size)}, homography, roll, mirror


def move_body(sample: dict[str, np.ndarray], homography: np.ndarray, roll: float, mirror: bool,
              joints: str = "smpl24", keypoint_set: str = "smpl45") -> dict[str, np.ndarray]:
    """Return the sample's labels after a `crop_homography` with this roll and mirror.

    Rolling the camera rotates the body; shift and zoom go into K, and a skew if fx and fy differ. A
    mirrored body has left and right exchanged; pose and betas give its keypoints to within
    millimetres, since shapes are not quite symmetric.
    """
    turn = roll_and_mirror(roll, False)
    pose, keypoints = sample["pose"].copy(), sample["keypoints_3d"] @ turn.T
    pose[0] = turn @ pose[0]
    keypoints_2d = transform_points(homography, sample["keypoints_2d"])
    rest_root = sample["keypoints_3d"][0] - sample["transl"]
    if mirror:
        order = bodymodels.mirror_indices(keypoint_set)
        pose = bodymodels.mirror_pose(torch.from_numpy(pose), bodymodels.JOINT_SETS[joints]).numpy()
        keypoints, keypoints_2d = keypoints[order] @ np.diag([-1.0, 1, 1]), keypoints_2d[order]
    camera = homography @ sample["K"] @ np.linalg.inv(roll_and_mirror(roll, mirror))
    return sample | {"pose": pose, "keypoints_3d": keypoints, "keypoints_2d": keypoints_2d,
                     "K": camera, "transl": keypoints[0] - rest_root}


SMPLX_JOINTS, SMPLX_KEYPOINTS = bodymodels.JOINT_SETS["smplx55"], bodymodels.JOINT_SETS["smplx76"]
HANDS = ("right", "left")  # the order of all "hand" arrays of a sample
ARMS, HAND_JOINTS, HAND_KEYPOINTS = (  # indices: (2, 8) and (2, 16) joints, (2, 21) keypoints
    [bodymodels.joint_indices(source, target(side)) for side in HANDS]
    for source, target in (
        ("smplx55", lambda side: f"{side}_arm08"),
        ("smplx55", lambda side: [f"{side}_{name}" for name in bodymodels.JOINT_SETS["mano16"]]),
        ("smplx76", lambda side: f"{side}_hand21")))
HAND_MARGIN = 2.0  # side of a hand's crop / side of the keypoints' box (HaMeR)


def hand_square(keypoints: np.ndarray) -> tuple[np.ndarray, float]:
    """Return centre (2,) and side of a hand's crop around its keypoints (N, 2), as in HaMeR."""
    center, side = body_box(keypoints)
    return center, HAND_MARGIN * side


def labelled_person(sample: dict[str, np.ndarray], recipe: Augmentation | None, size: int,
                    rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Augment a person's pictures and labels; add what follows from them.

    "pose" becomes "body_pose". The left hand is that of the mirrored person.
    """
    if recipe is not None and recipe.moves:
        sample = augment_person(sample, recipe, rng)
    sample = sample | {"image": sample["image"].transpose(2, 0, 1),
                       "hand_images": sample["hand_images"].transpose(0, 3, 1, 2)}
    pose = sample.pop("pose")
    rotations = torch.tensor(pose)
    arms, hands = rotations[torch.tensor(ARMS)], rotations[torch.tensor(HAND_JOINTS)]
    hands[:, 0] = bodymodels.chain_rotation(arms)  # in the camera's frame, not the elbow's
    hands[1] = bodymodels.mirror_matrix(hands[1])
    hand_joints = sample["keypoints_3d"][HAND_KEYPOINTS]  # (2, 21, 3)
    hand_joints[1] *= (-1, 1, 1)
    valid = inside(sample["keypoints_2d"], size, size)
    flat = sample["keypoints_2d"][HAND_KEYPOINTS]
    return sample | {
        "body_pose": pose, "keypoints_valid": valid, "hand_pose": hands.numpy(),
        "hand_joints": hand_joints,
        "hand_keypoints_2d": bodymodels.project(hand_joints, sample["hand_K"]),
        "hand_boxes": np.concatenate([flat.min(1), np.ptp(flat, 1)], 1),
        "hand_valid": (valid[HAND_KEYPOINTS].mean(1) > 0.5).astype(np.float32)}


def augment_person(sample: dict[str, np.ndarray], recipe: Augmentation,
                   rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Crop all pictures (S, S, 3) and (2, H, H, 3) of a person again, and move the labels along.

    All turn by the same angle; each has its own shift and scale. Mirroring exchanges the hands.
    """
    moved, _, roll, mirror = crop_body(sample, len(sample["image"]), recipe, rng,
                                       joints="smplx55", keypoint_set="smplx76")
    size, hands = sample["hand_images"].shape[1], []
    for hand, angle in enumerate((roll, -roll)):
        turn = roll_and_mirror(angle, False)
        shift, scale, _ = recipe.draw_motion(rng)
        center = size * (0.5 + recipe.hand_jitter * shift)
        homography = crop_homography(center, size * scale, size, roll=angle)
        hands.append({"hand_images": warp(sample["hand_images"][hand], homography, size),
                      "hand_vertices": sample["hand_vertices"][hand] @ turn.T,
                      "hand_K": homography @ sample["hand_K"][hand] @ turn.T,
                      "hand_visible": sample["hand_visible"][hand]})
    hands = hands[::-1] if mirror else hands
    return moved | {name: np.stack([hand[name] for hand in hands]) for name in hands[0]}
