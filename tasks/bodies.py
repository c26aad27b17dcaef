"""What the tasks of bodies share: predictions that are poses, scored as joints and meshes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import bodymodels
from files import safe_unpickle
from tasks.base import Batch, Mesh, Predictions, Task, photo_of
from weights.files import require


def load_regressor(path: Path, count: int, body: bodymodels.BodyModel) -> np.ndarray:
    """Read a pickled regressor (count, V) of a body's joints."""
    regressor = np.asarray(safe_unpickle(path), np.float32)
    require(regressor.shape == (count, len(body.v_template)),
            f"{path} has shape {regressor.shape}: expected {count} joints of "
            f"{len(body.v_template)} vertices")
    return regressor


class BodyTask(Task):
    """A task whose predictors find a pose (B, K, 3, 3) and betas (B, S), as the truth has them."""

    BODY, FAMILY = "body", "smpl"  # the free body, and the family of official data
    JOINTS, PIECE = 24, 500
    BASELINE = "mean pose"
    MOVED = ("light_body",)
    REMARK = ("Mean pose: of training samples, plain or aligned with one another, in each column "
              "the better one.\n")
    TITLE = "image, predicted mesh, true mesh (both at the true pelvis)"

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        arguments, file = self.arguments, self.arguments.body
        if self.data != "rendered" and self.MODELS:
            self.body = bodymodels.load_model(arguments.models, family=self.FAMILY)
        else:
            self.body = bodymodels.load_model(file or self.BODY)
        require(not file or len(self.body.parents) == 24, f"--body {file}: it has "
                f"{len(self.body.parents)} joints; expected a SMPL model, with 24")
        self.light_body = self.body.for_keypoints()  # losses need no other vertices
        self.faces = self.body.faces

    def points(self, batch: Batch) -> Tensor:
        """True joints and vertices (B, J + V, 3)."""
        return torch.cat(self.posed(batch["betas"], batch["pose"]), 1)

    def posed(self, betas: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Joints (B, J, 3) and vertices (B, V, 3) of untranslated bodies."""
        output = self.body.to(pose.device)(betas, pose)
        return output.joints, output.vertices

    def mesh(self, values: Mapping[str, np.ndarray]) -> Mesh:
        """Joints and vertices of poses and betas."""
        joints, vertices = self.posed(*(torch.from_numpy(values[name])
                                        for name in ("betas", "pose")))
        return {"joints": joints.numpy(), "vertices": vertices.numpy()}

    def scene(self, index: int, predictions: Predictions) -> tuple[np.ndarray, ...]:
        """Return a test image, its K, and both meshes with their pelvis where the true one is."""
        sample, one = self.test_set[index], predictions[index:index + 1]
        found, truth = (self.mesh(values) for values in (one.first, one.truth))
        pelvis = truth["joints"][0, 0] + sample["transl"].numpy()
        return photo_of(sample["image"]), sample["K"], *(
            mesh["vertices"][0] - mesh["joints"][0, 0] + pelvis for mesh in (found, truth))
