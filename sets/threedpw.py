"""3DPW: people outdoors, in its official files and in Moon's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from files import safe_unpickle
from sets.official_bodies import BodyPictures
from sets.records import (
    boxes_around,
    intrinsics,
    relabelled,
    rotate_root,
    with_confidence,
    xywh_box,
)


class ThreeDPW(BodyPictures):
    """3DPW (von Marcard et al. 2018): imageFiles/ and sequenceFiles/.

    A person counts in the frames with a valid camera and 2D keypoints: 35,515 of the test split.
    Poses and jointPositions are in the world's frame, cam_poses lead to the camera. poses2d are
    (3, 18) a frame. Pictures are numbered 0, 1, ..., not by img_frame_ids. The box is that of the
    2D keypoints, as in SPIN. keypoints_2d come from a detector; keypoints_3d are the 24 joints of
    the gendered body.
    """

    SPLITS = {"test": "test", "train": "train", "val": "validation"}
    SOURCES = ("sequenceFiles/{split}/*.pkl",)
    JOINTS, COUNTS, DETECTED = "smpl45", {"test": 35_515}, True
    HOME = "virtualhumans.mpi-inf.mpg.de/3DPW"

    def rows(self) -> Iterator[dict]:
        for path in next(iter(self.sources.values())):
            content = safe_unpickle(self.file(path))
            for person, gender in enumerate(content["genders"]):
                yield self._person(path.stem, content, person, gender)

    @staticmethod
    def _person(sequence: str, content: dict, person: int, gender: str) -> dict:
        detected = content["poses2d"][person].swapaxes(1, 2)  # (N, 18, 3)
        kept = np.flatnonzero((content["campose_valid"][person] > 0)
                              & (detected[..., 2] > 0).any(1))
        detected, motion = detected[kept], content["cam_poses"][kept, :3]
        R, t = motion[..., :3], motion[..., 3]
        detected = with_confidence(detected[..., :2], detected[..., 2])
        center, box = boxes_around(detected)
        joints = content["jointPositions"][person].reshape(-1, 24, 3)[kept] @ R.swapaxes(1, 2)
        keypoints_3d = np.zeros((len(kept), 45, 4))
        keypoints_3d[:, :24] = with_confidence(joints + t[:, None])
        pose = content["poses"][person].reshape(-1, 24, 3)[kept]
        pose[:, 0] = rotate_root(R, pose[:, 0])
        return {
            "image": [f"imageFiles/{sequence}/image_{frame:05d}.jpg" for frame in kept],
            "K": content["cam_intrinsics"], "center": center, "box": box, "pose": pose,
            "keypoints_2d": relabelled(detected, "openpose18", "smpl45"),
            "keypoints_3d": keypoints_3d,
            "betas": content["betas"][person][:10], "transl": content["trans"][person][kept],
            "world_to_camera": motion, "has_pose": 1, "has_betas": 1, "has_transl": 1,
            "gender": {"n": 0, "m": 1, "f": 2}[gender[0]], "person": person, "frame": kept,
            "sequence": sequence}


class ThreeDPWMoon(BodyPictures):
    """3DPW as Moon's lineage packs it: 3DPW_test.json, 3DPW_train.json, ... and imageFiles/.

    SMPL's parameters are in the camera's frame and for the neutral model. The people are not those
    of ThreeDPW, so that scores of the two cannot be compared. joint_cam is not read.
    """

    SPLITS = ThreeDPW.SPLITS
    SOURCES = ("3DPW_{split}.json",)
    JOINTS = "smpl45"
    HOME = "github.com/mks0601/3DMPPE_POSENET_RELEASE"

    def rows(self) -> Iterator[dict]:
        content = self.json(f"3DPW_{self.SPLITS[self.split]}.json")
        pictures = {item["id"]: item for item in content["images"]}
        for item in content["annotations"]:
            picture = pictures[item["image_id"]]
            camera = item.get("cam_param") or picture["cam_param"]
            yield xywh_box(item["bbox"]) | {
                "image": f"imageFiles/{picture['sequence']}/{picture['file_name']}",
                "K": intrinsics(camera["focal"], camera["princpt"]),
                "person": item["id"], "sequence": picture["sequence"],
                "image_size": (picture["width"], picture["height"])
            } | self.neural_annot(item["smpl_param"])
