"""Human3.6M: people in a motion-capture studio, in SPIN's files and in Moon's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from files import load_arrays
from sets.files import texts
from sets.official import BOX_MARGIN
from sets.official_bodies import BodyPictures
from sets.records import (
    intrinsics,
    rigid,
    rotate_root,
    to_pixels,
    with_confidence,
    xywh_box,
)


class Human36M(BodyPictures):
    """Human3.6M (Ionescu et al. 2014) in SPIN's files: images/ and dataset_extras/h36m_*.npz.

    p2 is protocol 2: the frontal camera 60457274 alone, subjects 9 and 11. scale is the side of a
    square box / 200, margin included. S is relative to the pelvis. Any annotation may be missing.
    """

    SPLITS = {"train": "h36m_train", "p1": "h36m_valid_protocol1", "p2": "h36m_valid_protocol2"}
    SOURCES = ("dataset_extras/{split}.npz",)
    JOINTS, COUNTS = "eft49", {"p1": 109_867, "p2": 27_558}
    HOME = "vision.imar.ro/human3.6m and github.com/nkolot/SPIN"

    def rows(self) -> Iterator[dict]:
        arrays = load_arrays(self.file(f"dataset_extras/{self.SPLITS[self.split]}.npz"))
        names = texts(arrays["imgname"])
        kept = [index for index, name in enumerate(names)
                if self.split != "p2" or ".60457274" in name]
        arrays = {name: value[kept] for name, value in arrays.items() if len(value) == len(names)}
        count = len(kept)
        side = np.asarray(arrays["scale"], np.float64) * 200 / BOX_MARGIN
        has_smpl = arrays.get("has_smpl", np.full(count, float("pose" in arrays)))
        keypoints_2d = np.concatenate([arrays.get("openpose", np.zeros((count, 25, 3))),
                                       arrays.get("part", np.zeros((count, 24, 3)))], 1)
        keypoints_3d = arrays.get("S", np.zeros((count, 24, 4)))
        if count:
            yield {"image": [names[index] for index in kept], "center": arrays["center"],
                   "box": np.stack([side, side], 1), "has_pose": has_smpl, "has_betas": has_smpl,
                   "keypoints_2d": with_confidence(keypoints_2d[..., :2], keypoints_2d[..., 2]),
                   "keypoints_3d": np.pad(keypoints_3d, ((0, 0), (25, 0), (0, 0))),
                   "pose": arrays.get("pose", np.zeros((count, 72))).reshape(-1, 24, 3),
                   "betas": arrays.get("shape", np.zeros((count, 10)))[:, :10], "frame": kept}


class Human36MMoon(BodyPictures):
    """Human3.6M as Moon's lineage packs it: images/ and annotations/Human36M_subject*_*.json.

    Everything is in the world's frame; joints and camera translations are in millimetres, the right
    leg comes first. SMPL's fits (NeuralAnnot) are read where they exist. p1: all cameras of
    subjects 9 and 11; p2: the fourth camera alone. Option stride: take every stride-th of the 50
    frames a second.
    """

    SPLITS = {"train": "train", "p1": "test", "p2": "test"}
    SUBJECTS = {"train": (1, 5, 6, 7, 8), "test": (9, 11)}
    JOINTS, OPTIONS, FITS = "h36m17_moon", {"stride": 5}, "SMPL_NeuralAnnot"
    HOME = "github.com/mks0601/3DMPPE_POSENET_RELEASE"

    def find_sources(self) -> dict[str, list[Path]]:
        sources = {}
        for subject in self.SUBJECTS[self.SPLITS[self.split]]:
            names = [f"annotations/Human36M_subject{subject}_{kind}.json"
                     for kind in ("data", "camera", "joint_3d", self.FITS)]
            fits = self.root / names.pop()
            sources |= {name: [self.file(name)] for name in names}
            sources |= {fits.name: [fits]} if fits.is_file() else {}
        return sources

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
                                       _nested(joints, place), _nested(fits, place))

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
                    "keypoints_2d": with_confidence(to_pixels(points, K))}
        if fit is not None:
            row |= self.neural_annot(fit)
            row["pose"][:1] = rotate_root(R, row["pose"][:1])
        return row


class Human36MSMPLX(Human36MMoon):
    """The same with NeuralAnnot's fits of SMPL-X, on which HMR-Adapter trains.

    Fingers are stored relative to the mean hand: without `models` they stay unknown.
    """

    MODEL, HAND_SPACE, FITS = "smplx", "mean_relative", "SMPLX_NeuralAnnot"


def _nested(tree: dict, keys: Sequence[str]) -> object:
    """Return tree[a][b][c], or None where a key is missing."""
    for key in keys:
        tree = tree.get(key) if tree else None
    return tree
