"""Data sets of 2D keypoints: COCO, AI Challenger, MPII Human Pose."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sets.files import as_list, read_mat
from sets.official_bodies import BodyPictures
from sets.packing import stream_json_list
from sets.records import corner_box, intrinsics, with_confidence, xywh_box


class COCO(BodyPictures):
    """COCO (Lin et al. 2014): annotations/person_keypoints_*.json, train2014/, val2014/, ...

    17 keypoints; hidden (v = 1) and visible ones (v = 2) count alike. Crowds are left out.
    Options:
        min_keypoints  how many of the twelve limb keypoints a person must have (SPIN: 12).
        fits           a file of NeuralAnnot's fits below root, by annotation; many people have
                       none. Its K is a guess made with the fit, and differs between people.
    """

    SPLITS = {"train": "train2014", "val": "val2014", "train2017": "train2017",
              "val2017": "val2017"}
    SOURCES = ("annotations/person_keypoints_{split}.json",)
    JOINTS, OPTIONS, FILES = "coco17", {"min_keypoints": 12, "fits": ""}, ("fits",)
    HOME = "cocodataset.org"

    def rows(self) -> Iterator[dict]:
        folder = self.SPLITS[self.split]
        fits = self.json(self.options["fits"]) if self.options["fits"] else {}
        path = self.file(f"annotations/person_keypoints_{folder}.json")
        pictures = {item["id"]: item for item in stream_json_list(path, key="images")}
        for item in stream_json_list(path, key="annotations"):
            keypoints = np.reshape(np.array(item["keypoints"], np.float64), (17, 3))
            if item["iscrowd"] or (keypoints[5:, 2] > 0).sum() < self.options["min_keypoints"]:
                continue
            picture = pictures[item["image_id"]]
            yield xywh_box(item["bbox"]) | {
                "image": f"{folder}/{picture['file_name']}", "person": item["id"],
                "image_size": (picture["width"], picture["height"]),
                "keypoints_2d": with_confidence(keypoints[:, :2], keypoints[:, 2] > 0)
            } | self._fit(fits.get(str(item["id"])))

    def _fit(self, fit: dict | None) -> dict:
        """Return the columns of a fit, which has a camera of its own."""
        if fit is None:
            return {}
        camera = fit["cam_param"]
        return {"K": intrinsics(camera["focal"], camera["princpt"])
                } | self.neural_annot(fit["smpl_param"])


class AIC(BodyPictures):
    """AI Challenger: keypoint_train_annotations_20170902.json and the pictures' folder.

    v = 1 is visible, 2 hidden and 3 absent, unlike COCO. Picture names have no extension. Option
    min_keypoints: how many of the 14 keypoints a person must have.
    """

    SPLITS = {"train": "20170902"}
    SOURCES = ("keypoint_train_annotations_{split}.json",)
    JOINTS, OPTIONS = "aic14", {"min_keypoints": 1}
    HOME = "github.com/AIChallenger/AI_Challenger_2017"

    def rows(self) -> Iterator[dict]:
        for item in stream_json_list(self.file("keypoint_train_annotations_20170902.json")):
            for number, (name, box) in enumerate(sorted(item["human_annotations"].items())):
                keypoints = np.reshape(np.array(item["keypoint_annotations"][name], float), (14, 3))
                known = (keypoints[:, 2] == 1) | (keypoints[:, 2] == 2)
                if known.sum() >= self.options["min_keypoints"]:
                    yield corner_box(np.array(box, np.float64)) | {
                        "image": f"keypoint_train_images_20170902/{item['image_id']}.jpg",
                        "keypoints_2d": with_confidence(keypoints[:, :2], known), "person": number}


class MPII(BodyPictures):
    """MPII Human Pose (Andriluka et al. 2014): mpii_human_pose_v1_u12_1.mat and images/.

    Only training pictures have labels. Points have an id and come in any order, some are missing.
    Pixels count from 1 in the file and from 0 here. The box is a square with the person's height as
    its side (scale x 200), around objpos. Option min_keypoints: how many of the 16 keypoints a
    person must have (SPIN: all).
    """

    SPLITS = {"train": "train"}
    SOURCES = ("mpii_human_pose_v1_u12_1.mat",)
    JOINTS, OPTIONS = "mpii16", {"min_keypoints": 16}
    HOME = "human-pose.mpi-inf.mpg.de"

    def rows(self) -> Iterator[dict]:
        release = read_mat(self.file(self.SOURCES[0]))["RELEASE"]
        for item, training in zip(as_list(release.annolist), as_list(release.img_train),
                                  strict=True):
            for number, person in enumerate(as_list(getattr(item, "annorect", []))):
                points = as_list(getattr(getattr(person, "annopoints", None), "point", []))
                keypoints = np.zeros((16, 3))
                for point in points:
                    keypoints[int(point.id)] = point.x - 1, point.y - 1, 1
                if training and keypoints[:, 2].sum() >= self.options["min_keypoints"]:
                    height = float(person.scale) * 200
                    yield {"image": f"images/{item.image.name}", "person": number,
                           "center": (person.objpos.x - 1, person.objpos.y - 1),
                           "box": (height, height), "keypoints_2d": keypoints}
