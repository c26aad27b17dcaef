"""Threedpw."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import bodymodels
from sets.official_bodies import BodyPictures
from sets.records import boxes_around, intrinsics, relabelled, turned, with_confidence, xywh_box


class ThreeDPW(BodyPictures):
    """3DPW (von Marcard et al. 2018): imageFiles/ and sequenceFiles/.

    A person's frame counts if its camera pose is valid and its 2D keypoints are there: 35,515 of
    the test split. Poses and jointPositions are of the world, cam_poses lead from there to the
    camera. poses2d are (3, 18) a frame. Pictures are numbered 0, 1, ..., whatever img_frame_ids
    say. The box is that of the 2D keypoints, as SPIN makes it. keypoints_2d are a detector's,
    keypoints_3d the 24 joints of the gendered body.
    """

    SPLITS = {"test": "test", "train": "train", "val": "validation"}
    SOURCES = ("sequenceFiles/{split}/*.pkl",)
    JOINTS, COUNTS = "smpl45", {"test": 35_515}
    HOME = "virtualhumans.mpi-inf.mpg.de/3DPW"

    def rows(self) -> Iterator[dict]:
        for path in next(iter(self.sources.values())):
            content = bodymodels.safe_unpickle(self.file(path))
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
        solid = np.zeros((len(kept), 45, 4))
        solid[:, :24] = with_confidence(joints + t[:, None])
        pose = content["poses"][person].reshape(-1, 24, 3)[kept]
        pose[:, 0] = turned(R, pose[:, 0])
        return {
            "image": [f"imageFiles/{sequence}/image_{frame:05d}.jpg" for frame in kept],
            "K": content["cam_intrinsics"], "center": center, "box": box, "pose": pose,
            "keypoints_2d": relabelled(detected, "openpose18", "smpl45"), "keypoints_3d": solid,
            "betas": content["betas"][person][:10], "transl": content["trans"][person][kept],
            "world_to_camera": motion, "has_pose": 1, "has_betas": 1, "has_transl": 1,
            "gender": {"n": 0, "m": 1, "f": 2}[gender[0]], "person": person, "frame": kept,
            "sequence": sequence}


class ThreeDPWMoon(BodyPictures):
    """3DPW as Moon's lineage packs it: 3DPW_test.json, 3DPW_train.json, ... and imageFiles/.

    SMPL's parameters are in the camera's frame there, for the neutral model. Other people than
    the rows of ThreeDPW: scores of the two do not compare. joint_cam is not read.
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
