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
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

import bodymodels
from sets.arctic import ARCTIC
from sets.augmentation import AUGMENTATIONS, Augmentation
from sets.bedlam import BEDLAM
from sets.body_crops import BODY_FOCAL, BODY_PARTS, body_box, body_camera, move_body  # noqa: F401
from sets.body_poses import (  # noqa: F401
    LIMBS,
    NEAR_DUPLICATE,
    OTHER_NOISE,
    SMPL_KEYPOINTS,
    TEST_CLIPS,
    MotionPoses,
    face_forward,
    motion_frames,
    sample_body_pose,
)
from sets.crops import (  # noqa: F401
    crop_homography,
    inside,
    perspective_crop,
    transform_points,
    warp,
)
from sets.dexycb import DexYCB
from sets.ehf import EHF
from sets.emdb import EMDB
from sets.freihand import FreiHAND
from sets.hand_crops import NUM_JOINTS, Annotated, HandDataset, augmented_crop, crop_sample  # noqa: F401
from sets.hand_poses import (  # noqa: F401
    FINGER_SLOTS,
    LOWER_LIMIT,
    PALM_NORMAL_UP,
    PINCHES,
    THUMB_SLOT,
    UPPER_LIMIT,
    hinge_axes,
    sample_hand_pose,
    sample_view,
)
from sets.human36m import Human36M, Human36MMoon, Human36MSMPLX
from sets.images import read_image  # noqa: F401
from sets.interhand import InterHand
from sets.keypoints_2d import AIC, COCO, MPII
from sets.motion import (
    AMASS,
    MOYO,
    Z_UP_TO_CAMERA,  # noqa: F401
    MotionCapture,
)
from sets.mpi_inf_3dhp import MPIINF3DHP
from sets.official import Pictures, hand_space, official_body  # noqa: F401
from sets.official_people import HandPairs, OfficialPeople
from sets.packing import (  # noqa: F401
    available_cores,
    build_packed,
    fingerprint,
    stream_json_list,
)
from sets.people import (  # noqa: F401
    HAND_KEYPOINTS,
    SMPLX_KEYPOINTS,
    augment_person,
    hand_square,
    person_labels,
)
from sets.records import (  # noqa: F401
    GENDERS,
    intrinsics,
    moved_translation,
    pixels,
    record_dtype,
    relabelled,
    to_records,
)
from sets.rendered import paint_background, paint_surface, project_surface  # noqa: F401
from sets.rendered_bodies import (  # noqa: F401
    RenderedBodies,
    augment_body,
    body_surface,
    hand_vertices,
    paint_body,
    sample_body_scene,
    sample_outfit,
)
from sets.rendered_hands import RenderedHands, hand_surface, paint_hand, sample_scene, shade  # noqa: F401
from sets.rendered_people import (  # noqa: F401
    PEOPLE_RENDER_VERSION,
    Occluder,
    Person,
    RenderedPeople,
    View,
    draw_occluder,
    hand_faces,
    sample_occluders,
    sample_person,
)
from sets.rich import RICH
from sets.samples import Joined, KeyedDataset, Mixed, random_generator  # noqa: F401
from sets.shards import HaMeRShards, HMRShards
from sets.threedpw import ThreeDPW, ThreeDPWMoon


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
    "h36m-moon": Human36MMoon, "h36m-smplx": Human36MSMPLX, "coco": COCO, "aic": AIC,
    "mpii": MPII, "mpi-inf-3dhp": MPIINF3DHP, "hmr2-tars": HMRShards, "hamer-tars": HaMeRShards,
    "bedlam": BEDLAM, "rich": RICH, "arctic": ARCTIC, "ehf": EHF}


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
