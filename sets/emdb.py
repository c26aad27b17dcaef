"""EMDB: people in the wild with electromagnetic sensors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from files import safe_unpickle
from sets.official_bodies import BodyPictures
from sets.records import GENDERS, corner_box, rotate_root, with_confidence


class EMDB(BodyPictures):
    """EMDB (Kaufmann et al. 2023): P0/ to P9/, with 14_outdoor_climb/ and so on in them.

    A sequence's own flags say to which of the two benchmarks it belongs; good_frames_mask says
    which frames count. The world's y is up, and the extrinsics lead from the world to the camera.
    """

    SPLITS = {"emdb1": "emdb1", "emdb2": "emdb2"}
    SOURCES = ("P*/*/*_data.pkl",)
    JOINTS = "smpl24"
    HOME = "eth-ait.github.io/emdb"

    def rows(self) -> Iterator[dict]:
        for path in next(iter(self.sources.values())):
            content = safe_unpickle(self.file(path))
            if content[self.split]:
                yield self._sequence(path.parent.relative_to(self.root).as_posix(), content)

    @staticmethod
    def _sequence(folder: str, content: dict) -> dict:
        kept = np.flatnonzero(content["good_frames_mask"])
        camera, body = content["camera"], content["smpl"]
        motion = camera["extrinsics"][kept, :3]
        root = rotate_root(motion[..., :3], body["poses_root"][kept])
        return corner_box(content["bboxes"]["bboxes"][kept]) | {
            "image": [f"{folder}/images/{frame:05d}.jpg" for frame in kept],
            "image_size": (int(camera["width"]), int(camera["height"])),
            "K": camera["intrinsics"], "keypoints_2d": with_confidence(content["kp2d"][kept]),
            "pose": np.concatenate([root, body["poses_body"][kept]], 1).reshape(-1, 24, 3),
            "betas": body["betas"][:10], "transl": body["trans"][kept], "frame": kept,
            "world_to_camera": motion, "has_pose": 1, "has_betas": 1, "has_transl": 1,
            "gender": GENDERS.index(content["gender"]), "sequence": content["name"]}
