"""Open every data set, rendered or official: images and annotations.

    RenderedHands, FreiHAND, DexYCB, ...    pictures of hands
    RenderedBodies, ThreeDPW, BEDLAM, ...   pictures of bodies
    RenderedPeople, OfficialPeople          pictures of whole bodies, with crops of their hands
    MotionPoses, AMASS, MOYO                poses of bodies, without pictures
    Joined, Mixed                           several data sets, one after the other or in proportions

Each data set is a short class in sets/; sets/README.md says what to download. Rendered data need no
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

# ruff: noqa: F401  the rest of the house and the notebooks take many names from here
from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from sets import readers
from sets.augmentation import AUGMENTATIONS, Augmentation, find_augmentation, for_hands
from sets.crops import (
    NUM_JOINTS,
    SMPL_KEYPOINTS,
    SMPLX_KEYPOINTS,
    crop_homography,
    hand_square,
)
from sets.images import read_image
from sets.motion import AMASS, MOYO, MotionCapture, MotionPoses
from sets.official import GENDERS, HandPairs, OfficialPeople, relabelled
from sets.painting import paint_background, paint_surface
from sets.readers import DexYCB, FreiHAND
from sets.rendered import (
    FINGER_SLOTS,
    PALM_NORMAL_UP,
    RenderedHands,
    hand_surface,
    hinge_axes,
    sample_hand_pose,
    shade,
)
from sets.rendered_bodies import RenderedBodies, RenderedPeople
from sets.samples import Joined, KeyedDataset, Mixed, available_cores, random_generator

RENDERED = {"rendered": RenderedHands, "bodies": RenderedBodies, "people": RenderedPeople}
OFFICIAL = readers.READERS | {"amass": AMASS, "moyo": MOYO}
HMR2_SETS = ("h36m-train", "mpii-train", "coco-train-2014-pruned",
             "coco-train-2014-vitpose-pruned", "mpi-inf-train-pruned",
             "ava-train-midframes-1fps-vitpose", "aic-train-vitpose",
             "insta-train-vitpose-replicate")
PEOPLE_SETS = {("h36m-smplx", "h36m"): 1.0, ("rich", "rich"): 1.0, ("bedlam", "bedlam"): 1.0}


def shards(weights: Mapping[str, float], reader: str = "hmr2-tars"
           ) -> dict[tuple[str, str], float]:
    """Return a mixture of folders of tar shards."""
    return {(reader, folder): weight for folder, weight in weights.items()}


# {name: {(data set, its folder below the root): weight}}
MIXTURES: dict[str, dict[tuple[str, str], float]] = {
    # GenHMR's "SD" with HMR2.0a's weights
    "genhmr-sd": shards({"h36m-train": 0.3, "mpii-train": 0.1, "mpi-inf-train-pruned": 0.2,
                         "coco-train-2014-pruned": 0.4}),
    # "ITW" with HMR2.0b's weights, and "BL" with TokenHMR's. The paper's text has more data as the
    # better; its Table 7 has 58.6 mm for SD + ITW on 3DPW, its Table 1 54.7 for SD alone
    "genhmr-itw": shards(dict(zip(HMR2_SETS, (
        0.1, 0.1, 0.1, 0.1, 0.02, 0.19, 0.19, 0.2), strict=True))),
    "genhmr-bl": shards(dict(zip(HMR2_SETS, (
        0.1, 0.1, 0.1, 0.1, 0.04, 0.13, 0.13, 0.12), strict=True))) | {("bedlam", "bedlam"): 0.18},
    # HMR-Adapter's, with samples as of RenderedPeople; equal weights are our choice. Its hands come
    # from the sets of bodies and from two sets of hands
    "hmr-adapter-body": PEOPLE_SETS,
    "hmr-adapter-hands": PEOPLE_SETS | {("freihand", "freihand"): 1.0,
                                        ("interhand", "interhand"): 1.0},
    # HaMeR's
    "hamer": shards({
        "freihand-train": 0.25, "interhand26m-train": 0.25, "mtc-train": 0.1, "cocow-train": 0.1,
        "rhd-train": 0.05, "halpe-train": 0.05, "mpiinzsl-train": 0.05, "ho3d-train": 0.05,
        "h2o3d-train": 0.05, "dex-train": 0.05}, "hamer-tars"),
}
PEOPLE_MIXTURES = ("hmr-adapter-body", "hmr-adapter-hands")  # their samples have crops of hands


def open_official(name: str, root: str | os.PathLike, split: str | None = None, *,
                  size: int = 128, augmentation: str | Augmentation | None = None, seed: int = 0,
                  cache: str | os.PathLike | None = None,
                  models: str | os.PathLike | None = None, hand_size: int = 0, detail: int = 1,
                  **options: str | os.PathLike | None) -> KeyedDataset:
    """Open a data set of OFFICIAL, or a mixture of MIXTURES, in the folder `root`.

    split: by default the first of the data set's SPLITS. augmentation: a recipe or its name in
    AUGMENTATIONS. models: a folder of official body models. options: `detections` of Pictures.
    hand_size: if given, samples are those of OfficialPeople, with crops of hands of this side; sets
    of hands alone are then augmented by `for_hands` of the recipe. detail: see OfficialPeople.
    Mixtures use neither detections nor detail; AMASS and MOYO, without pictures, nothing but split,
    seed and cache.
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
        return kind(root, split, seed=seed, cache=cache)
    options |= {"seed": seed, "cache": cache, "models": models}
    if not hand_size:
        return kind(root, split, size, augmentation=augmentation, **options)
    if kind.MODEL == "mano":
        recipe = for_hands(find_augmentation(augmentation) or Augmentation())
        return HandPairs(kind(root, split, hand_size, augmentation=recipe, **options), size)
    return OfficialPeople(kind(root, split, size, **options), hand_size, augmentation=augmentation,
                          detail=detail)


COLORS = ((230, 60, 60), (240, 170, 40), (70, 190, 80), (60, 140, 240), (190, 90, 220))
FINGERS = [(0, *range(1 + 4 * finger, 5 + 4 * finger)) for finger in range(5)]
LIMBS = (
    "left_hip left_knee left_ankle left_foot left_big_toe",
    "right_hip right_knee right_ankle right_foot right_big_toe",
    "left_shoulder left_elbow left_wrist left_hand left_middle1 left_middle_tip",
    "right_shoulder right_elbow right_wrist right_hand right_middle1 right_middle_tip",
    "pelvis spine1 spine spine2 spine3 thorax neck head nose")


def draw_keypoints(image: np.ndarray, keypoints: np.ndarray, valid: np.ndarray,
                   zoom: int = 3) -> np.ndarray:
    """Enlarge a picture (S, S, 3) uint8 `zoom` times and draw the skeleton of a hand or body on it.

    keypoints (J, 2): pixels in the order "hand21", "smpl45" or "smplx76".
    """
    names = SMPL_KEYPOINTS if len(keypoints) == len(SMPL_KEYPOINTS) else SMPLX_KEYPOINTS
    chains = FINGERS if len(keypoints) == NUM_JOINTS else [
        [names.index(name) for name in limb.split() if name in names] for limb in LIMBS]
    side = image.shape[0] * zoom
    picture = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    for chain, color in zip(chains, COLORS, strict=True):
        for start, end in zip(chain, chain[1:], strict=False):
            if valid[start] and valid[end]:  # no bone across a joint that is not known
                draw.line([tuple(zoom * keypoints[joint]) for joint in (start, end)], color, 2)
        for x, y in (zoom * keypoints[joint] for joint in chain if valid[joint]):
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), color)
    return np.asarray(picture)


def draw_sample(sample: dict[str, Tensor]) -> np.ndarray:
    """Draw a sample's picture with its keypoints; people have their hands beside them."""
    arrays = {name: value.numpy() for name, value in sample.items()}
    tiles = [draw_keypoints(arrays["image"].transpose(1, 2, 0), arrays["keypoints_2d"],
                            arrays["keypoints_valid"])]
    for image, keypoints in zip(arrays.get("hand_images", ()), arrays.get("hand_keypoints_2d", ()),
                                strict=True):
        hand = draw_keypoints(image.transpose(1, 2, 0), keypoints, np.ones(NUM_JOINTS))
        tiles.append(np.asarray(Image.fromarray(hand).resize(tiles[0].shape[:2])))
    return np.concatenate(tiles, 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `python data.py NAME`: count a data set's samples, print one, draw some."""
    parser = argparse.ArgumentParser(description="Look at a data set.")
    add = parser.add_argument
    add("name", metavar="NAME", choices=(*RENDERED, *OFFICIAL, *MIXTURES),
        help=f"{', '.join(RENDERED)}; {', '.join(OFFICIAL)}; or a mixture: {', '.join(MIXTURES)}")
    add("--data-root", type=Path, help="the folder of a data set as its authors ship it; for a "
        "mixture, the folder above those of its data sets")
    add("--models", type=Path, help="a folder of official body models, for meshes and for poses "
        "that are stored relative to a mean hand")
    add("--split", help="default: train if rendered, else the first one in sets/README.md")
    add("--draw", type=int, default=0, metavar="N", help="draw N samples in NAME.png")
    args = parser.parse_args(argv)
    try:
        if args.name in RENDERED:
            dataset = RENDERED[args.name](args.split or "train")
        elif args.data_root is None:
            raise ValueError(f"{args.name} needs --data-root FOLDER")
        else:
            dataset = open_official(args.name, args.data_root, args.split, models=args.models)
        print(f"{args.name}, split {dataset.split}: {len(dataset):,} samples")
        for name, value in dataset[0].items():
            print(f"  {name:17} {str(tuple(value.shape)):14} {str(value.dtype):14}"
                  f"{value.min():10.4g} to {value.max():.4g}")
        if args.draw > 0 and "image" in dataset[0]:
            tiles = [draw_sample(dataset[key]) for key in range(min(args.draw, len(dataset)))]
            Image.fromarray(np.concatenate(tiles)).save(f"{args.name}.png")
            print(f"drawn: {args.name}.png")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
