"""What the official data sets of hands share."""

from __future__ import annotations

import numpy as np

from sets.crops import inside
from sets.hand_crops import NUM_VERTICES, Annotated, HandDataset, hand_sample
from sets.official import UNKNOWN_FOCAL, Pictures
from sets.records import intrinsics


class HandPictures(Pictures, HandDataset):
    """Pictures of hands, cropped as those of FreiHAND; left hands are mirrored.

    Joints are the given ones, unless the data set says otherwise. Vertices need `models`, the
    folder of MANO_RIGHT and MANO_LEFT; without it, or with a joint unknown, mesh_valid is 0.
    """

    JOINTS, MODEL = "hand21", "mano"

    def annotated(self, index: int) -> Annotated:
        """Return a picture and its annotation as they are stored; an unknown K is guessed."""
        record = self.records()[index]
        image = self.picture(record)
        K = record["K"].astype(np.float64)
        if not K[2, 2]:
            K = intrinsics((UNKNOWN_FOCAL,) * 2, (image.shape[1] / 2, image.shape[0] / 2))
        keypoints, joints = record["keypoints_2d"], record["keypoints_3d"]
        vertices, known = np.zeros((NUM_VERTICES, 3)), 0.0
        if self.models is not None and record["has_pose"] and (joints[:, 3] > 0).all():
            output, known = self.posed(record)[0], 1.0
            vertices = output.vertices[0].numpy()
            if not record["has_transl"]:  # place the wrist where the given joints have it
                vertices += joints[0, :3] - output.joints[0, 0].numpy()
        valid = (keypoints[:, 2] > 0) * inside(keypoints[:, :2], image.shape[1], image.shape[0])
        return Annotated(image, K, joints[:, :3], vertices,
                         keypoints[:, :2], valid, known, int(record["side"]))

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return hand_sample(self.annotated(index), self.size, self.augmentation, rng)

    def whole_hands(self) -> np.ndarray:
        """Return the indices of hands with known pose, mesh and joints."""
        records = self.records()
        return np.flatnonzero((records["has_pose"] > 0)
                              & (records["keypoints_3d"][..., 3] > 0).all(1))

    def hand_pose(self, index: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Return MANO's absolute axis-angles (16, 3) before mirroring, betas (10,), has_betas."""
        record = self.records()[index]
        return (record["pose"].astype(np.float64), record["betas"], float(record["has_betas"]))
