"""3DPW and Human3.6M as HMR2.0 evaluates on them: hmr2_evaluation_data/*.npz."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from files import load_arrays
from sets.files import texts
from sets.official import BOX_MARGIN
from sets.official_bodies import BodyPictures
from sets.records import with_confidence


class ThreeDPWHMR2(BodyPictures):
    """3DPW in HMR2.0's file hmr2_evaluation_data/3dpw_test.npz, beside the pictures it names.

    scale is the width and height of the box in pixels, or one number for both, with the margin.
    Its true joints are 44: OpenPose's 25, then the 19 of SMPL_to_J19, in metres. No poses are read.
    """

    SPLITS = {"test": "3dpw_test"}
    SOURCES = ("hmr2_evaluation_data/{split}.npz",)
    JOINTS, COUNTS = "hmr44", {}
    HOME = "github.com/shubham-goel/4D-Humans"

    def rows(self) -> Iterator[dict]:
        split = self.SPLITS[self.split]
        arrays = load_arrays(self.file(f"hmr2_evaluation_data/{split}.npz"))
        names = texts(arrays["imgname"])
        count = len(names)
        box = np.asarray(arrays["scale"], np.float64).reshape(count, -1) / BOX_MARGIN
        flat, solid = (np.concatenate([
            arrays.get(f"body_keypoints_{size - 1}d", np.zeros((count, 25, size))),
            arrays.get(f"extra_keypoints_{size - 1}d", np.zeros((count, 19, size)))], 1)
            for size in (3, 4))
        yield {"image": names, "center": arrays["center"], "frame": np.arange(count),
               "box": np.broadcast_to(box, (count, 2)),
               "keypoints_2d": with_confidence(flat[..., :2], flat[..., 2]),
               "keypoints_3d": with_confidence(solid[..., :3], solid[..., 3])}


class Human36MHMR2(ThreeDPWHMR2):
    """Human3.6M, protocol 2, in HMR2.0's file hmr2_evaluation_data/h36m_val_p2.npz, the same."""

    SPLITS = {"test": "h36m_val_p2"}
