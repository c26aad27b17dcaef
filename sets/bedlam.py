"""BEDLAM: synthetic people with SMPL-X bodies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sets.crops import inside
from sets.files import read_npz, texts
from sets.official import BOX_MARGIN
from sets.official_bodies import BodyPictures
from sets.records import with_confidence


class BEDLAM(BodyPictures):
    """BEDLAM (Black et al. 2023): all_npz_12_training/*.npz and SCENE_6fps/png/seq_000000/....

    Poses are absolute and already in the camera's frame; the translation is trans_cam plus that of
    cam_ext. Bodies are of the neutral SMPL-X with 11 shape coefficients, whatever `gender` says.
    Close-ups lie on their side: they are turned clockwise. AGORA's files in the same folder
    (agora-*.npz) have other keys and other pictures; they are left out.
    Options:
        min_keypoints  how many joints of a person must be in the picture.
        percent        use the first rows of each file; BEDLAM's own code trains on 80 percent.
        picture_size   width and height of the pictures as stored.
    """

    SPLITS = {"train": "all_npz_12_training", "val": "all_npz_12_validation"}
    SOURCES = ("{split}/*.npz",)
    JOINTS, MODEL, NUM_BETAS = "smplx76", "smplx", 11
    OPTIONS = {"min_keypoints": 8, "percent": 100, "picture_size": (1280, 720)}
    HOME = "bedlam.is.tue.mpg.de"
    ARRAYS = ("imgname", "center", "scale", "gtkps", "cam_int", "cam_ext", "pose_cam", "trans_cam",
              "shape")

    def rows(self) -> Iterator[dict]:
        for path in next(iter(self.sources.values())):
            if path.name.startswith("agora"):
                continue
            names, center, scale, gtkps, cam_int, cam_ext, pose, transl, betas = read_npz(
                self.file(path), *self.ARRAYS)
            names, closeup = texts(names), "closeup" in path.stem
            size = self.options["picture_size"][::-1 if closeup else 1]
            points = gtkps[:len(gtkps) * self.options["percent"] // 100, :76, :2]
            kept = np.flatnonzero(inside(points, *size).sum(1) >= self.options["min_keypoints"])
            side = scale[kept] * 200 / BOX_MARGIN
            if len(kept):
                yield {
                    "image": [f"{path.stem}/png/{names[index]}" for index in kept],
                    "turns": int(closeup), "center": center[kept],
                    "box": np.stack([side, side], 1), "K": cam_int[kept],
                    "keypoints_2d": with_confidence(points[kept]), "has_pose": 1, "has_hands": 1,
                    "pose": pose[kept].reshape(-1, 55, 3), "has_betas": 1,
                    "betas": np.pad(betas[kept], ((0, 0), (0, self.NUM_BETAS))
                                    )[:, :self.NUM_BETAS],
                    "has_transl": 1, "transl": transl[kept] + cam_ext[kept, :3, 3],
                    "person": kept, "sequence": path.stem}
