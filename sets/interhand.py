"""InterHand2.6M: one or two hands before many cameras."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import bodymodels
from sets.official_hands import HandPictures
from sets.packing import stream_json_list
from sets.records import boxes_around, intrinsics, rigid, rotate_root, to_pixels, with_confidence


class InterHand(HandPictures):
    """InterHand2.6M (Moon et al. 2020): images/ and annotations/, the 5 or the 30 fps release.

    Each hand is a sample; each of an interacting pair has the box of its own projected joints.
    Which joints are valid is stored for each picture (data.json). As in the authors' loader, a hand
    without a valid wrist has no valid joint; it is left out.

    joint_3d is in millimetres of the world, tip to base. MANO's fits (NeuralAnnot; many frames have
    none) are in metres of the world, relative to the mean hand, and made with the corrected
    MANO_LEFT. camera.json holds positions of cameras, not translations.
    """

    SOURCES = ("annotations/{split}/InterHand2.6M_{split}_data.json",
               "annotations/{split}/InterHand2.6M_{split}_camera.json",
               "annotations/{split}/InterHand2.6M_{split}_joint_3d.json",
               "annotations/{split}/InterHand2.6M_{split}_MANO_NeuralAnnot.json")
    HAND_SPACE = "mean_relative"
    MODEL_OPTIONS = {"fix_left_shapedirs": True}
    HOME = "mks0601.github.io/InterHand2.6M"
    FIELDS = ("file_name", "width", "height", "capture", "seq_name", "camera", "frame_idx")

    def rows(self) -> Iterator[dict]:
        data, *others = (next(iter(paths)) for paths in self.sources.values())
        cameras, joints, manos = map(self.json, others)
        pictures = {item["id"]: tuple(item[field] for field in self.FIELDS)  # over a million
                    for item in stream_json_list(self.file(data), key="images")}
        for item in stream_json_list(self.file(data), key="annotations"):
            picture = dict(zip(self.FIELDS, pictures[item["image_id"]], strict=True))
            capture, frame = str(picture["capture"]), str(picture["frame_idx"])
            camera = {name: np.array(cameras[capture][name][str(picture["camera"])])
                      for name in ("campos", "camrot", "focal", "princpt")}
            fits = manos.get(capture, {}).get(frame, {})
            points, valid = joints[capture][frame]["world_coord"], item["joint_valid"]
            for side, first in (("right", 0), ("left", 21)):
                if item["hand_type"] in (side, "interacting"):
                    part = slice(first, first + 21)
                    yield from self._hand(side, picture, camera, np.array(points)[part],
                                          np.array(valid, np.float64).reshape(42)[part],
                                          fits.get(side), item["id"])

    def _hand(self, side: str, picture: dict, camera: dict, world: np.ndarray, valid: np.ndarray,
              fit: dict | None, person: int) -> Iterator[dict]:
        """Yield a hand from its joints (21, 3) in the world and their validity (21,)."""
        order = bodymodels.joint_indices("interhand21", "hand21")
        valid = valid[order]
        if not valid[0]:
            return
        R, t = camera["camrot"], -camera["camrot"] @ camera["campos"] / 1000
        K = intrinsics(camera["focal"], camera["princpt"])
        points = world[order] / 1000 @ R.T + t
        keypoints = with_confidence(to_pixels(np.where(valid[:, None] > 0, points, 1.0), K), valid)
        center, box = boxes_around(keypoints[None])
        row = {"image": f"images/{self.SPLITS[self.split]}/{picture['file_name']}",
               "image_size": (picture["width"], picture["height"]), "K": K, "center": center[0],
               "box": box[0], "keypoints_2d": keypoints, "world_to_camera": rigid(R, t),
               "keypoints_3d": with_confidence(points, valid), "side": int(side == "right"),
               "person": person, "frame": picture["frame_idx"],
               "sequence": f"{picture['capture']}/{picture['seq_name']}"}
        if fit:
            row |= {"betas": fit["shape"], "transl": fit["trans"], "has_betas": 1, "has_transl": 1}
            pose = self.absolute(np.array(fit["pose"]).reshape(1, 16, 3), side=side)
            if pose is not None:
                pose[:, 0] = rotate_root(R, pose[:, 0])
                row |= {"pose": pose[0], "has_pose": 1, "has_hands": 1}
        yield row
