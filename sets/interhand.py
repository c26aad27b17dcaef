"""Interhand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import bodymodels
from sets.official import HandPictures
from sets.packing import stream_json_list
from sets.records import boxes_around, intrinsics, pixels, rigid, turned, with_confidence


class InterHand(HandPictures):
    """InterHand2.6M (Moon et al. 2020): images/ and annotations/, the 5 or the 30 fps release.

    One sample a hand: two of an interacting pair, each with the box of its own projected joints.
    joint_3d is in millimetres of the world, MANO's fits (NeuralAnnot; many are missing) in metres
    of the world and relative to the mean hand, made with a mended MANO_LEFT. camera.json has
    camera positions, not translations. Joints run from tip to base there.
    """

    SOURCES = ("annotations/{split}/InterHand2.6M_{split}_data.json",
               "annotations/{split}/InterHand2.6M_{split}_camera.json",
               "annotations/{split}/InterHand2.6M_{split}_joint_3d.json",
               "annotations/{split}/InterHand2.6M_{split}_MANO_NeuralAnnot.json")
    HAND_SPACE = "mean_relative"
    MODEL_OPTIONS = {"fix_left_shapedirs": True}
    HOME = "mks0601.github.io/InterHand2.6M"

    def rows(self) -> Iterator[dict]:
        data, *others = (next(iter(paths)) for paths in self.sources.values())
        cameras, joints, manos = map(self.json, others)
        fields = ("file_name", "width", "height", "capture", "seq_name", "camera", "frame_idx")
        pictures = {item["id"]: tuple(item[field] for field in fields)  # over a million
                    for item in stream_json_list(self.file(data), key="images")}
        for item in stream_json_list(self.file(data), key="annotations"):
            picture = dict(zip(fields, pictures[item["image_id"]], strict=True))
            capture, frame = str(picture["capture"]), str(picture["frame_idx"])
            camera = {name: np.array(cameras[capture][name][str(picture["camera"])])
                      for name in ("campos", "camrot", "focal", "princpt")}
            fits = manos.get(capture, {}).get(frame, {})
            for hand, side in enumerate(("right", "left")):
                if item["hand_type"] in (side, "interacting"):
                    yield from self._hand(side, slice(21 * hand, 21 * hand + 21), picture, camera,
                                          joints[capture][frame], fits.get(side), item["id"])

    def _hand(self, side: str, part: slice, picture: dict, camera: dict, world: dict,
              fit: dict | None, person: int) -> Iterator[dict]:
        order = bodymodels.joint_indices("interhand21", "hand21")
        valid = np.array(world["joint_valid"], np.float64).reshape(42)[part][order]
        if not valid.any():
            return
        R, t = camera["camrot"], -camera["camrot"] @ camera["campos"] / 1000
        K = intrinsics(camera["focal"], camera["princpt"])
        points = np.array(world["world_coord"])[part][order] / 1000 @ R.T + t
        keypoints = with_confidence(pixels(np.where(valid[:, None] > 0, points, 1.0), K), valid)
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
                pose[:, 0] = turned(R, pose[:, 0])
                row |= {"pose": pose[0], "has_pose": 1, "has_hands": 1}
        yield row
