"""What the official data sets of bodies share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

import bodymodels
from sets.body_crops import SEEN_WIDTH, draw_crop, move_body
from sets.crops import crop_homography, inside, transform_points, warp
from sets.keypoint_files import detected_person
from sets.official import BOX_MARGIN, UNKNOWN_FOCAL, Pictures
from sets.records import (
    boxes_around,
    intrinsics,
    moved_translation,
    relabelled,
    to_pixels,
    with_confidence,
)

OWN = "own"  # detections that the data set itself ships


class BodyPictures(Pictures):
    """Pictures of bodies. A sample is that of RenderedBodies, with flags for what is known:

        keypoints_*      in the order `joint_set`, by default "smpl45"
        K_valid          ()  0 if the data set has no K; K then is a guess
        pose_valid, betas_valid, transl_valid ()   of SMPL. Root and body joints of an SMPL-X pose
                         are copied to SMPL; its betas do not fit SMPL and are 0
        gender           ()  int64, an index of GENDERS

    The crop is a square in which the encoder sees the body's box x 1.2. With `models`, a body of
    known pose, shape and place has the keypoints of its own model as well.

    detections: whose 2D keypoints a sample also has, as a method finds them that knows no truth.
    OWN: those of the data set (3DPW), or a folder of OpenPose's files, see `detected_person`:

        detected_2d          (45, 2)  pixels of the crop, in the order "smpl45"
        detected_confidence  (45,)    of the detector, 0: not found

    keypoints_* then are true wherever the model tells them; else 3DPW's are the detector's. Raises
    FileNotFoundError for a missing folder, ValueError for OWN of a data set without detections.
    """

    DETECTED = False  # whether keypoints_2d of a record are a detector's

    def __init__(self, root: str | os.PathLike, split: str | None = None, size: int = 256, *,
                 joint_set: str = "smpl45", detections: str | os.PathLike | None = None,
                 **options) -> None:
        if joint_set not in bodymodels.JOINT_SETS:
            raise ValueError(f"unknown joint set {joint_set!r}")
        if detections == OWN and not self.DETECTED:
            raise ValueError(f"{type(self).__name__} has no detector's keypoints: give the folder "
                             "of OpenPose's files")
        if detections not in (None, OWN) and not Path(detections).is_dir():
            raise FileNotFoundError(f"no folder {detections}: expected OpenPose's files in it, "
                                    "a/b_keypoints.json for each picture a/b.jpg")
        self.joint_set, self.detections = joint_set, detections
        super().__init__(root, split, size, **options)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self.records()[index]
        image = self.picture(record)
        height, width = image.shape[:2]
        keypoints_2d, keypoints_3d, transl = self.keypoints(record)
        K, K_valid = record["K"].astype(np.float64), float(record["K"][2, 2])
        if not K_valid:
            K = intrinsics((UNKNOWN_FOCAL, UNKNOWN_FOCAL), (width / 2, height / 2))
        pose = bodymodels.axis_angle_to_matrix(torch.tensor(self.smpl_pose(record["pose"])))
        is_smpl = self.MODEL == "smpl"
        sample = {"pose": pose.numpy(), "K": K, "transl": transl,
                  "betas": record["betas"][:10] * is_smpl,
                  "keypoints_2d": keypoints_2d[:, :2], "keypoints_3d": keypoints_3d[:, :3]}
        homography, roll, mirror = self.crop(record, keypoints_2d, (width, height), rng)
        sample = move_body(sample, homography, roll, mirror, keypoint_set=self.joint_set)
        order = bodymodels.mirror_indices(self.joint_set) if mirror else slice(None)
        in_crop = inside(sample["keypoints_2d"], self.size, self.size)
        placed = float(transl.any())
        if self.detections is not None:
            found = self.detected(record, (width, height))
            found = found[bodymodels.mirror_indices("smpl45")] if mirror else found
            sample |= {"detected_2d": transform_points(homography, found[:, :2]),
                       "detected_confidence": found[:, 2]}
        return sample | {
            "image": warp(image, homography, self.size).transpose(2, 0, 1),
            "transl": sample["transl"] * placed, "transl_valid": placed, "K_valid": K_valid,
            "keypoints_valid": keypoints_2d[order, 2] * in_crop,
            "keypoints_3d_valid": keypoints_3d[order, 3],
            "pose_valid": record["has_pose"], "betas_valid": record["has_betas"] * is_smpl,
            "gender": np.int64(record["gender"])}

    def detected(self, record: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return a detector's keypoints (45, 3): pixels of the picture and confidence.

        size: width and height of the picture.
        """
        if self.detections == OWN:
            return relabelled(record["keypoints_2d"], self.JOINTS, "smpl45")
        corner = record["center"] - record["box"] / 2
        box = (*corner, *record["box"]) if record["box"].any() else None
        return detected_person(Path(self.detections), record["image"].decode(), box, size)

    def keypoints(self, record: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return keypoints (J, 3) and (J, 4) of `joint_set`, and the translation (3,).

        3D keypoints without a pelvis are hidden: losses on SMPL cannot use them.
        """
        keypoints_2d, keypoints_3d = (relabelled(record[name], self.JOINTS, self.joint_set)
                                      for name in ("keypoints_2d", "keypoints_3d"))
        transl, of_smpl = np.zeros(3, np.float32), self.joint_set.startswith("smpl")
        if (self.models is not None and self.MODEL == "smpl" and self.joint_set == "smpl45"
                and record["has_pose"] * record["has_betas"] * record["has_transl"]):
            output, model, place = self.posed(record, keypoints_only=True)
            keypoints_3d = with_confidence(model.keypoints(output)[0].numpy())
            transl = place.numpy()
            projected = with_confidence(to_pixels(keypoints_3d[:, :3], record["K"]),
                                        float(record["K"][2, 2]))
            annotated = 0 if self.DETECTED and self.detections is not None else keypoints_2d[:, 2:]
            keypoints_2d = np.where(annotated > 0, keypoints_2d, projected)
        elif of_smpl and not keypoints_3d[0, 3]:
            keypoints_3d = np.zeros_like(keypoints_3d)
        return keypoints_2d, keypoints_3d, transl

    def smpl_pose(self, pose: np.ndarray) -> np.ndarray:
        """Return SMPL's axis-angles (24, 3): those of SMPL-X without fingers and face."""
        return pose if self.MODEL == "smpl" else np.concatenate([pose[:22], 0 * pose[:2]])

    def crop(self, record: np.ndarray, keypoints_2d: np.ndarray, size: tuple[int, int],
             rng: np.random.Generator) -> tuple[np.ndarray, float, bool]:
        """Return the crop's homography, with its roll and mirror. No box: the whole picture."""
        center, (width, height) = record["center"].astype(np.float64), record["box"]
        side = BOX_MARGIN * max(height, width / SEEN_WIDTH)
        if side <= 0:
            center, side = np.array(size) / 2, max(size[1], size[0] / SEEN_WIDTH)
        if self.augmentation is None or not self.augmentation.moves:
            return crop_homography(center, side, self.size), 0.0, False
        return draw_crop(rng, self.augmentation, self.size, keypoints_2d[:, :2],
                         bodymodels.JOINT_SETS[self.joint_set], (center, side),
                         keypoints_2d[:, 2] > 0)

    def neural_annot(self, fit: dict) -> dict:
        """Return the columns of a body that NeuralAnnot fitted with SMPL or SMPL-X."""
        row = {"betas": fit["shape"][:10], "transl": fit["trans"], "has_pose": 1, "has_betas": 1,
               "has_transl": 1}
        if self.MODEL == "smpl":
            return row | {"pose": np.reshape(fit["pose"], (24, 3))}
        parts = [fit[name] for name in ("root_pose", "body_pose", "jaw_pose")] + [np.zeros(6)] + [
            fit[name] for name in ("lhand_pose", "rhand_pose")]
        vector = np.concatenate([np.reshape(part, -1) for part in parts])[None]
        pose = self.absolute(vector)
        return row | {"pose": (vector.reshape(1, 55, 3) if pose is None else pose)[0],
                      "has_hands": pose is not None}

    def with_model_keypoints(self, columns: dict, gender: str = "neutral", template: str = ""
                             ) -> dict:
        """Add the keypoints of SMPL-X bodies, "smplx76", and their boxes to the columns."""
        if self.models is None:
            raise FileNotFoundError(f"{type(self).__name__} has poses but no keypoints: give the "
                                    "folder of SMPL-X's models with models=, or --models")
        model = self.body(gender, template=template, keypoints_only=True, num_betas=self.NUM_BETAS)
        betas, pose = (torch.as_tensor(np.asarray(columns[name]), dtype=torch.float32)
                       for name in ("betas", "pose"))
        betas = betas.expand(len(pose), -1)
        roots = model.rest_joints(betas)[:, 0].numpy()
        transl = np.stack([moved_translation(*motion) for motion in zip(
            np.broadcast_to(columns["transl"], roots.shape), np.broadcast_to(
                columns["world_to_camera"], (len(roots), 3, 4)), roots, strict=True)])
        points = model.keypoints(model(betas, pose, transl=torch.from_numpy(transl))).numpy()
        front = (points[..., 2] > 0.05).astype(np.float32)  # metres before the camera
        keypoints = with_confidence(to_pixels(np.where(front[..., None] > 0, points, 1.0),
                                              np.asarray(columns["K"])), front)
        center, box = boxes_around(keypoints)
        return columns | {"keypoints_2d": keypoints, "keypoints_3d": with_confidence(points),
                          "center": center, "box": box}
