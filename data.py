"""Open every data set, rendered or official: images and annotations.

    RenderedHands, FreiHAND, DexYCB, ...    pictures of hands
    RenderedBodies, ThreeDPW, BEDLAM, ...   pictures of bodies
    RenderedPeople, OfficialPeople          pictures of whole bodies, with crops of their hands
    MotionPoses, AMASS, MOYO                poses of bodies, without pictures
    Joined, Mixed                           several data sets, one after the other or in proportions

Each data set has a short file in sets/; sets/README.md says what to download. Rendered data need no
download. Try it: `python data.py rendered --draw 8`, or bodies or people instead of rendered.

Every data set is a `torch.utils.data.Dataset`. `dataset[key]` takes key = epoch * len(dataset) +
index and is a pure function of (seed, split, epoch, index). It keeps no state, so that any worker,
any rank and any resumed run gets the same sample. A sample is a dictionary of tensors. That of a
hand, where S is the crop's side:

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

RenderedBodies, RenderedPeople and MotionPoses describe their own samples. Joints are in the order
`hand21` (hands), `smpl45` (bodies) or `smplx76` (whole bodies) of `bodymodels.JOINT_SETS`.

Conventions of the whole project:

    length         metres inside, millimetres in reports
    camera frame   OpenCV's: x right, y down, z forward; x_cam = R x_world + t
    pixels         a W x H picture spans [0, W] x [0, H]; its first pixel's centre is (0.5, 0.5)
    images         RGB uint8 (B, 3, H, W); the model normalises them
    rotations      matrices inside; axis-angle and 6D [column 0, column 1] only at the edges
    hands          right hands; a left hand is mirrored. Poses are absolute: the mean pose is added
    hand joints    21: wrist, then thumb to pinky, each from base to tip; 16 are regressed from the
                   posed vertices, the five tips are vertices
    body joints    SMPL's 24, SMPL-X's 55; other sets by name in bodymodels.JOINT_SETS
    metrics        metrics.PROTOCOLS names joints, root, alignment, reflection rule and unit
"""

from __future__ import annotations

import argparse
import ast
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

import bodymodels
from sets.augmentation import AUGMENTATIONS, Augmentation, find_augmentation, for_hands
from sets.body_sets import (
    ARCTIC,
    BEDLAM,
    EHF,
    EMDB,
    RICH,
    Human36M,
    Human36MHMR2,
    Human36MSMPLX,
    ThreeDPW,
    ThreeDPWHMR2,
    ThreeDPWMoon,
)
from sets.crops import (
    BODY_FOCAL,
    NUM_JOINTS,
    SMPL_KEYPOINTS,
    SMPLX_KEYPOINTS,
    body_box,
    body_camera,
    crop_homography,
    hand_square,
    perspective_crop,
)
from sets.hand_sets import DexYCB, FreiHAND, InterHand
from sets.images import read_image
from sets.motion import AMASS, MOYO, MotionCapture, MotionPoses
from sets.official import GENDERS, HandPairs, OfficialPeople, Pictures, hand_space, relabelled
from sets.painting import paint_background, paint_surface
from sets.rendered import (
    FINGER_SLOTS,
    PALM_NORMAL_UP,
    RenderedHands,
    hand_surface,
    hinge_axes,
    sample_hand_pose,
    shade,
)
from sets.rendered_bodies import RenderedBodies, RenderedPeople, body_surface
from sets.samples import Joined, KeyedDataset, Mixed, available_cores, random_generator
from sets.shards import HaMeRShards, HMRShards

__all__ = [  # what the rest of the house and the notebooks import from here
    "AMASS", "AUGMENTATIONS", "Augmentation", "DexYCB", "FINGER_SLOTS", "FreiHAND", "GENDERS",
    "HandPairs", "Joined", "KeyedDataset", "MIXTURES", "MOYO", "Mixed", "MotionPoses", "OFFICIAL",
    "OfficialPeople", "PALM_NORMAL_UP", "RenderedBodies", "RenderedHands", "RenderedPeople",
    "available_cores", "body_camera", "crop_homography", "draw_keypoints", "draw_samples",
    "find_augmentation", "hand_space", "hand_square", "hand_surface", "hinge_axes", "main",
    "open_official", "paint_background", "paint_surface", "perspective_crop", "random_generator",
    "read_image", "relabelled", "sample_hand_pose", "shade",
]

RENDERED = {"rendered": RenderedHands, "bodies": RenderedBodies, "people": RenderedPeople}
OFFICIAL = {
    "freihand": FreiHAND, "dexycb": DexYCB, "interhand": InterHand, "amass": AMASS, "moyo": MOYO,
    "3dpw": ThreeDPW, "3dpw-moon": ThreeDPWMoon, "emdb": EMDB, "h36m": Human36M,
    "h36m-smplx": Human36MSMPLX, "3dpw-hmr2": ThreeDPWHMR2,
    "h36m-hmr2": Human36MHMR2, "hmr2-tars": HMRShards, "hamer-tars": HaMeRShards,
    "bedlam": BEDLAM, "rich": RICH, "arctic": ARCTIC, "ehf": EHF}


def _shards(reader: str, weights: dict[str, float]) -> dict[tuple[str, str], float]:
    return {(reader, folder): weight for folder, weight in weights.items()}


HMR2_SETS = ("h36m-train", "mpii-train", "coco-train-2014-pruned",
             "coco-train-2014-vitpose-pruned", "mpi-inf-train-pruned",
             "ava-train-midframes-1fps-vitpose", "aic-train-vitpose",
             "insta-train-vitpose-replicate")
# {name: {(data set, its folder below the root): weight}}
MIXTURES: dict[str, dict[tuple[str, str], float]] = {
    # GenHMR's "SD" with HMR2.0a's weights
    "genhmr-sd": _shards("hmr2-tars", {"h36m-train": 0.3, "mpii-train": 0.1,
                                       "mpi-inf-train-pruned": 0.2, "coco-train-2014-pruned": 0.4}),
    # "ITW" with HMR2.0b's weights, and "BL" with TokenHMR's
    "genhmr-itw": _shards("hmr2-tars", dict(zip(HMR2_SETS, (
        0.1, 0.1, 0.1, 0.1, 0.02, 0.19, 0.19, 0.2), strict=True))),
    "genhmr-bl": _shards("hmr2-tars", dict(zip(HMR2_SETS, (
        0.1, 0.1, 0.1, 0.1, 0.04, 0.13, 0.13, 0.12), strict=True))) | {("bedlam", "bedlam"): 0.18},
    # HMR-Adapter's, with samples as of RenderedPeople; equal weights are our choice. Its hands come
    # from the sets of bodies and from two sets of hands
    "hmr-adapter-body": {("h36m-smplx", "h36m"): 1.0, ("rich", "rich"): 1.0,
                         ("bedlam", "bedlam"): 1.0},
    "hmr-adapter-hands": {("h36m-smplx", "h36m"): 1.0, ("rich", "rich"): 1.0,
                          ("bedlam", "bedlam"): 1.0, ("freihand", "freihand"): 1.0,
                          ("interhand", "interhand"): 1.0},
    # HaMeR's
    "hamer": _shards("hamer-tars", {
        "freihand-train": 0.25, "interhand26m-train": 0.25, "mtc-train": 0.1, "cocow-train": 0.1,
        "rhd-train": 0.05, "halpe-train": 0.05, "mpiinzsl-train": 0.05, "ho3d-train": 0.05,
        "h2o3d-train": 0.05, "dex-train": 0.05}),
}
PEOPLE_MIXTURES = ("hmr-adapter-body", "hmr-adapter-hands")  # their samples have crops of hands

# ----------------------------------------------------------------------------------- opening


def open_official(name: str, root: str | os.PathLike, split: str | None = None, *,
                  size: int = 128, augmentation: str | Augmentation | None = None, seed: int = 0,
                  cache: str | os.PathLike | None = None,
                  models: str | os.PathLike | None = None, hand_size: int = 0, detail: int = 1,
                  **options) -> KeyedDataset:
    """Open a data set of OFFICIAL, or a mixture of MIXTURES, in the folder `root`.

    split: by default the training split, if there is one. augmentation: a recipe or its name in
    AUGMENTATIONS. models: a folder of official body models. options: those of the data set.
    hand_size: if given, samples are those of OfficialPeople, with crops of hands of this side; sets
    of hands alone are then augmented by `for_hands` of the recipe. detail: see OfficialPeople.
    Raises ValueError or FileNotFoundError that says what is missing.
    """
    if name in MIXTURES:
        if split not in (None, "train"):
            raise ValueError(f"{name} is a mixture for training: it has no split {split!r}")
        if name in PEOPLE_MIXTURES:
            hand_size = hand_size or size
        parts = [open_official(part, Path(root, folder), "train", size=size, seed=seed, cache=cache,
                               models=models, augmentation=augmentation, hand_size=hand_size)
                 for part, folder in MIXTURES[name]]
        return Mixed(parts, list(MIXTURES[name].values()), seed=seed)
    kind = OFFICIAL[name]
    if issubclass(kind, MotionCapture):
        return kind(root, split or "train", seed=seed, cache=cache)
    if kind is FreiHAND and split == "train":
        split = "training"
    options |= {"seed": seed, "cache": cache, "models": models}
    if not hand_size:
        return kind(root, split, size, augmentation=augmentation, **options)
    if kind.MODEL == "mano":
        recipe = find_augmentation(augmentation)
        return HandPairs(kind(root, split, hand_size, augmentation=recipe and for_hands(recipe),
                              **options), size)
    return OfficialPeople(kind(root, split, size, **options), hand_size, augmentation=augmentation,
                          detail=detail)


def describe(dataset: KeyedDataset, most: int = 1000) -> str:
    """Check that pictures of up to `most` evenly spaced samples exist; return a one-line summary.

    The summary has the number of samples, the official number, and the share of samples with each
    kind of annotation. Raises FileNotFoundError if a picture is missing.
    """
    dataset = getattr(dataset, "pictures", getattr(dataset, "hands", dataset))
    official = next((count for name, count in getattr(dataset, "COUNTS", {}).items()
                     if name in (dataset.split, dataset.root.name)), 0)
    summary = f"{type(dataset).__name__}: {len(dataset):,} samples" + (
        f", officially {official:,}" if official else "")
    if not isinstance(dataset, Pictures):
        return summary
    records = dataset.records()
    names = {name.decode() for name in records["image"][::max(1, len(records) // most)]}
    missing = sorted(name for name in names if not (dataset.root / name).is_file())
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(names)} pictures looked for are missing, "
                                f"for example {dataset.root / missing[0]}")
    known = {name: records[name][..., -1].any(1) for name in ("keypoints_2d", "keypoints_3d")}
    known["K"] = records["K"][:, 2, 2] > 0
    known |= {name: records[f"has_{name}"] > 0 for name in ("pose", "hands", "betas", "transl")}
    return (f"{summary}; {len(names)} pictures looked for, all there; known: " + ", ".join(
        f"{name} {100 * values.mean():.0f} %" for name, values in known.items()))


# ----------------------------------------------------------------------------------- drawing

FINGER_COLORS = ((230, 60, 60), (240, 170, 40), (70, 190, 80), (60, 140, 240), (190, 90, 220))
HAND_CHAINS = tuple((0, *range(1 + 4 * finger, 5 + 4 * finger)) for finger in range(5))
LIMB_NAMES = (
    "left_hip left_knee left_ankle left_foot left_big_toe",
    "right_hip right_knee right_ankle right_foot right_big_toe",
    "left_shoulder left_elbow left_wrist left_hand left_middle1 left_middle_tip",
    "right_shoulder right_elbow right_wrist right_hand right_middle1 right_middle_tip",
    "pelvis spine1 spine spine2 spine3 thorax neck head nose")
JOINT_SET_OF = {NUM_JOINTS: "hand21", len(SMPL_KEYPOINTS): "smpl45",
                len(SMPLX_KEYPOINTS): "smplx76"}  # of rendered pictures, by the number of joints


@cache
def chains(joint_set: str) -> tuple[tuple[int, ...], ...]:
    """Return the lines of a skeleton as indices of a joint set."""
    if joint_set == "hand21":
        return HAND_CHAINS
    names = bodymodels.JOINT_SETS[joint_set]
    places = {name.removesuffix("_openpose"): place
              for place, name in reversed(list(enumerate(names)))}
    return tuple(tuple(places[name] for name in chain.split() if name in places)
                 for chain in LIMB_NAMES)


def draw_keypoints(image: np.ndarray, keypoints: np.ndarray, valid: np.ndarray,
                   zoom: int = 3, joint_set: str | None = None) -> np.ndarray:
    """Enlarge a picture (S, S, 3) uint8 `zoom` times and draw the skeleton of a hand or body on it.

    keypoints (J, 2): pixels in the order of joint_set, by default "hand21", "smpl45" or "smplx76".
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
    """Render the free body in a sample's pose and shape, as (size, size, 3) uint8."""
    body = body_surface()
    vertices, _ = body.pose(sample["betas"].numpy(), sample["pose"].numpy())
    center, side = body_box(vertices[:, :2])
    vertices = vertices + np.array([*-center, 1.2 * BODY_FOCAL * side], np.float32)
    picture = bodymodels.render(vertices, body.faces, body_camera(size), (size, size),
                                background=(0.5, 0.55, 0.6))
    return (255 * picture.image).astype(np.uint8)


def draw_sample(sample: dict[str, Tensor], joint_set: str | None = None) -> np.ndarray:
    """Draw a sample's picture with its keypoints, or its pose if it has no picture."""
    if "image" not in sample:
        return draw_pose(sample)
    picture = draw_keypoints(sample["image"].permute(1, 2, 0).numpy(),
                             sample["keypoints_2d"].numpy(), sample["keypoints_valid"].numpy(),
                             joint_set=joint_set)
    return draw_hands(sample, picture) if "hand_images" in sample else picture


def draw_hands(sample: dict[str, Tensor], picture: np.ndarray) -> np.ndarray:
    """Draw the boxes of both hands on a whole body's picture, and put their crops beside it."""
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


# ------------------------------------------------------------------------------ command line


def parse_option(text: str) -> tuple[str, object]:
    """Split NAME=VALUE of the command line; a value is True, 12, 1280,720 or a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--option {text}: expected NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def open_dataset(args: argparse.Namespace) -> KeyedDataset:
    """Open the data set that the command line asks for."""
    options = dict(map(parse_option, args.option))
    if args.name == "motion":
        return MotionPoses(args.split or "train", **options)
    options |= {"size": args.size, "augmentation": args.augmentation, "cache": args.cache}
    if args.name in RENDERED:
        return RENDERED[args.name](args.split or "train", **options)
    if args.data_root is None:
        raise ValueError(f"{args.name} needs --data-root FOLDER")
    return open_official(args.name, args.data_root, args.split, models=args.models, **options)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the flags of `python data.py`."""
    parser = argparse.ArgumentParser(description="Look at a data set.")
    add = parser.add_argument
    add("name", metavar="NAME", choices=(*RENDERED, "motion", *OFFICIAL, *MIXTURES),
        help=f"{', '.join(RENDERED)}, motion; {', '.join(OFFICIAL)}; or a mixture: "
             + ", ".join(MIXTURES))
    add("--data-root", type=Path, help="the folder of a data set as its authors ship it; for a "
        "mixture, the folder above those of its data sets")
    add("--models", type=Path, help="a folder of official body models, for meshes and for poses "
        "that are stored relative to a mean hand")
    add("--option", nargs="+", default=[], metavar="NAME=VALUE",
        help="arguments of the data set, see its docstring: stride=1, occlusion=0.3, ...; "
             "hand_size=128 shows people with crops of their hands")
    add("--split", help="default: the training split, if there is one")
    add("--size", type=int, default=128, help="side of the crops in pixels")
    add("--augmentation", choices=tuple(AUGMENTATIONS), default="none")
    add("--cache", type=Path, help="folder for packed files")
    add("--draw", type=int, default=0, metavar="N", help="draw N samples")
    add("--out", type=Path, help="file of the drawing (default: NAME.png)")
    args = parser.parse_args(argv)
    if args.draw < 0:
        parser.error(f"--draw {args.draw}: expected 0 or more")
    args.out = args.out or Path(f"{args.name}.png")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run `python data.py NAME`: count a data set's samples, print one, draw some."""
    args = parse_arguments(argv)
    try:
        dataset = open_dataset(args)
        print(f"{args.name}, split {dataset.split}: {len(dataset):,} samples")
        for part in getattr(dataset, "datasets", [dataset]):
            print(describe(part))
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
