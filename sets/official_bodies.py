"""Official bodies."""

from __future__ import annotations

import os

import numpy as np
import torch

import bodymodels
from sets.body_crops import SEEN_WIDTH, draw_crop, move_body
from sets.crops import crop_homography, inside, warp
from sets.official import BOX_MARGIN, UNKNOWN_FOCAL, Pictures
from sets.records import (
    boxes_around,
    intrinsics,
    moved_translation,
    pixels,
    relabelled,
    with_confidence,
)


class BodyPictures(Pictures):
    """Pictures of bodies; a sample is that of RenderedBodies, and flags what is not known:

        keypoints_*      in the order `joint_set`, "smpl45" unless asked for another
        K_valid          ()  0 if the data set does not tell K, which then is a guess
        pose_valid, betas_valid, transl_valid ()   SMPL's; of SMPL-X's pose the 21 body joints
                         transfer to SMPL exactly, its betas do not and are 0
        gender           ()  int64, an index of GENDERS

    The crop is square, a body's box x 1.2 in what an encoder sees of it. With `models` a body
    whose pose, shape and place are known also has the keypoints of its own model.
    """

    def __init__(self, root: str | os.PathLike, split: str | None = None, size: int = 256, *,
                 joint_set: str = "smpl45", **options) -> None:
        if joint_set not in bodymodels.JOINT_SETS:
            raise ValueError(f"unknown joint set {joint_set!r}")
        self.joint_set = joint_set
        super().__init__(root, split, size, **options)

    def keypoints(self, record: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keypoints (J, 3) and (J, 4) of `joint_set`, and the translation before the camera (3,).

        Points in space whose pelvis is not known are of no use to losses on SMPL: they are hidden.
        """
        flat, solid = (relabelled(record[name], self.JOINTS, self.joint_set)
                       for name in ("keypoints_2d", "keypoints_3d"))
        transl, of_smpl = np.zeros(3, np.float32), self.joint_set.startswith("smpl")
        if (self.models is not None and self.MODEL == "smpl" and self.joint_set == "smpl45"
                and record["has_pose"] * record["has_betas"] * record["has_transl"]):
            output, model, place = self.posed(record, light=True)
            solid, transl = with_confidence(model.keypoints(output)[0].numpy()), place.numpy()
            known = with_confidence(pixels(solid[:, :3], record["K"]), float(record["K"][2, 2]))
            flat = np.where(flat[:, 2:] > 0, flat, known)
        elif of_smpl and not solid[0, 3]:
            solid = np.zeros_like(solid)
        return flat, solid, transl

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self.records()[index]
        image = self.picture(record)
        (flat, solid, transl), (height, width) = self.keypoints(record), image.shape[:2]
        K, told = record["K"].astype(np.float64), float(record["K"][2, 2])
        if not told:
            K = intrinsics((UNKNOWN_FOCAL, UNKNOWN_FOCAL), (width / 2, height / 2))
        pose = bodymodels.axis_angle_to_matrix(torch.tensor(self.smpl_pose(record["pose"])))
        is_smpl = self.MODEL == "smpl"
        sample = {"pose": pose.numpy(), "K": K, "transl": transl,
                  "betas": record["betas"][:10] * is_smpl,
                  "keypoints_2d": flat[:, :2], "keypoints_3d": solid[:, :3]}
        homography, roll, mirror = self.crop(record, flat, (width, height), rng)
        sample = move_body(sample, homography, roll, mirror, keypoint_set=self.joint_set)
        order = bodymodels.mirror_indices(self.joint_set) if mirror else slice(None)
        seen = inside(sample["keypoints_2d"], self.size, self.size)
        placed = float(transl.any())
        return sample | {
            "image": warp(image, homography, self.size).transpose(2, 0, 1),
            "transl": sample["transl"] * placed, "transl_valid": placed, "K_valid": told,
            "keypoints_valid": flat[order, 2] * seen, "keypoints_3d_valid": solid[order, 3],
            "pose_valid": record["has_pose"], "betas_valid": record["has_betas"] * is_smpl,
            "gender": np.int64(record["gender"])}

    def smpl_pose(self, pose: np.ndarray) -> np.ndarray:
        """SMPL's axis-angles (24, 3) of a record's: those of SMPL-X without fingers and face."""
        return pose if self.MODEL == "smpl" else np.concatenate([pose[:22], 0 * pose[:2]])

    def neural_annot(self, fit: dict) -> dict:
        """The columns of a body that NeuralAnnot fitted, SMPL's or SMPL-X's; none without one."""
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

    def crop(self, record: np.ndarray, flat: np.ndarray, size: tuple[int, int],
             rng: np.random.Generator) -> tuple[np.ndarray, float, bool]:
        """Homography of the crop, and the roll and mirror in it. Without a box: all the picture."""
        center, (width, height) = record["center"].astype(np.float64), record["box"]
        side = BOX_MARGIN * max(height, width / SEEN_WIDTH)
        if side <= 0:
            center, side = np.array(size) / 2, max(size[1], size[0] / SEEN_WIDTH)
        if self.augmentation is None or not self.augmentation.moves:
            return crop_homography(center, side, self.size), 0.0, False
        return draw_crop(rng, self.augmentation, self.size, flat[:, :2],
                         bodymodels.JOINT_SETS[self.joint_set], (center, side), flat[:, 2] > 0)

    def with_model_keypoints(self, columns: dict, gender: str = "neutral", template: str = ""
                             ) -> dict:
        """Columns of SMPL-X bodies with their keypoints, "smplx76", and the boxes of those."""
        if self.models is None:
            raise FileNotFoundError(f"{type(self).__name__} tells poses and no keypoints: give the "
                                    "folder of SMPL-X's models with models=, or --models")
        model = self.body(gender, template=template, light=True, num_betas=self.NUM_BETAS)
        betas, pose = (torch.as_tensor(np.asarray(columns[name]), dtype=torch.float32)
                       for name in ("betas", "pose"))
        betas = betas.expand(len(pose), -1)
        roots = model.rest_joints(betas)[:, 0].numpy()
        transl = np.stack([moved_translation(*moved) for moved in zip(
            np.broadcast_to(columns["transl"], roots.shape), np.broadcast_to(
                columns["world_to_camera"], (len(roots), 3, 4)), roots, strict=True)])
        points = model.keypoints(model(betas, pose, transl=torch.from_numpy(transl))).numpy()
        front = (points[..., 2] > 0.05).astype(np.float32)  # metres
        flat = pixels(np.where(front[..., None] > 0, points, 1.0), np.asarray(columns["K"]))
        center, box = boxes_around(with_confidence(flat, front))
        return columns | {"keypoints_2d": with_confidence(flat, front), "center": center,
                          "keypoints_3d": with_confidence(points), "box": box}
