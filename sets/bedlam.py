"""Bedlam."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import bodymodels
from sets.crops import inside
from sets.official import BOX_MARGIN
from sets.official_bodies import BodyPictures
from sets.records import texts, with_confidence


class BEDLAM(BodyPictures):
    """BEDLAM (Black et al. 2023): all_npz_12_training/*.npz and SCENE_6fps/png/seq_000000/....

    Poses are absolute and already before the camera; the translation is trans_cam plus that of
    cam_ext. The bodies are of the neutral SMPL-X with 11 shape coefficients (AGORA's have 10),
    whatever `gender` was rendered. Pictures of close-ups lie on their side: they are turned
    clockwise. People with fewer than eight joints in the picture are left out (option
    min_keypoints; option picture_size: width and height as stored).
    """

    SPLITS = {"train": "all_npz_12_training", "val": "all_npz_12_validation"}
    SOURCES = ("{split}/*.npz",)
    JOINTS, MODEL, NUM_BETAS = "smplx76", "smplx", 11
    OPTIONS = {"min_keypoints": 8, "picture_size": (1280, 720)}
    HOME = "bedlam.is.tue.mpg.de"

    def rows(self) -> Iterator[dict]:
        for path in next(iter(self.sources.values())):
            arrays = bodymodels.load_arrays(self.file(path))
            names, closeup = texts(arrays["imgname"]), "closeup" in path.stem
            size = self.options["picture_size"][::-1 if closeup else 1]
            points = arrays["gtkps"][:, :76, :2]
            kept = np.flatnonzero(inside(points, *size).sum(1) >= self.options["min_keypoints"])
            side = arrays["scale"][kept] * 200 / BOX_MARGIN
            betas, count = arrays["shape"][kept], self.NUM_BETAS
            if len(kept):
                yield {
                    "image": [f"{path.stem}/png/{names[index]}" for index in kept],
                    "turns": int(closeup), "center": arrays["center"][kept],
                    "box": np.stack([side, side], 1), "K": arrays["cam_int"][kept],
                    "keypoints_2d": with_confidence(points[kept]), "has_pose": 1, "has_hands": 1,
                    "pose": arrays["pose_cam"][kept].reshape(-1, 55, 3), "has_betas": 1,
                    "betas": np.pad(betas, ((0, 0), (0, count)))[:, :count], "has_transl": 1,
                    "transl": arrays["trans_cam"][kept] + arrays["cam_ext"][kept, :3, 3],
                    "person": kept, "sequence": path.stem}
