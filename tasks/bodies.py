"""What the tasks of bodies share: predictions that are poses, scored as joints and meshes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import bodymodels
import metrics
from files import safe_unpickle
from tasks.base import Batch, Errors, Predictions, Scores, Task, better

Mesh = dict[str, np.ndarray]  # joints (N, J, 3) and vertices (N, V, 3), in metres


def load_regressor(path: Path, count: int, body: bodymodels.BodyModel) -> np.ndarray:
    """Read a pickled regressor (count, V) of a body's joints."""
    regressor = np.asarray(safe_unpickle(path), np.float32)
    if regressor.shape != (count, len(body.v_template)):
        raise ValueError(f"{path} has shape {regressor.shape}: expected {count} joints of "
                         f"{len(body.v_template)} vertices")
    return regressor


class BodyTask(Task):
    """A task whose predictors find a pose (B, K, 3, 3) and betas (B, S), as the truth has them."""

    BODY, FAMILY = "body", "smpl"  # the free body, and the family of official data
    MOVED = ("light_body",)
    PIECE = 500  # samples whose meshes are in memory at a time
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
        if file and len(self.body.parents) != 24:
            raise ValueError(f"--body {file}: it has {len(self.body.parents)} joints; expected a "
                             "SMPL model, with 24")
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

    def scores(self, predictions: Predictions) -> Scores:
        """Score all predictors and the mean pose."""
        pieces = [predictions[start:start + self.PIECE]
                  for start in range(0, len(predictions.index), self.PIECE)]
        parts = [self.piece_errors(piece) for piece in pieces]
        errors = {name: {metric: np.concatenate([part[name][metric] for part in parts])
                         for metric in parts[0][name]} for name in parts[0]}
        predictions.errors = {name: errors[name] for name in predictions.found}
        scores = {name: {metric: float(values.mean()) for metric, values in rows.items()}
                  for name, rows in errors.items()}
        if self.baseline is not None:
            scores["mean pose"] = better(scores.pop("mean"), scores.pop("mean shape"))
        return scores

    def piece_errors(self, predictions: Predictions) -> Errors:
        """Compute the errors of all predictors and of both constants of the baseline."""
        meshes = {name: self.mesh(values) for name, values in predictions.found.items()}
        count = next(iter(meshes.values()))["joints"].shape[1]
        constants = () if self.baseline is None else zip(
            ("mean", "mean shape"), self.baseline.numpy(), strict=True)
        for name, points in constants:
            points = np.broadcast_to(points, (len(predictions.index), *points.shape))
            meshes[name] = {"joints": points[:, :count], "vertices": points[:, count:]}
        truth = self.truth(predictions)
        return {name: self.judge(mesh, truth) for name, mesh in meshes.items()}

    def truth(self, predictions: Predictions) -> Mesh:
        """Return the true meshes, with which the protocol compares."""
        return self.mesh(predictions.truth)

    def judge(self, mesh: Mesh, truth: Mesh) -> dict[str, np.ndarray]:
        """Compute the protocol's errors (N,) of one predictor's meshes."""
        return metrics.evaluate_each(self.protocol, mesh, truth)

    def comparisons(self, predictions: Predictions) -> str:
        """Also the aligned errors of rendered people by heading: fronts, sides and backs."""
        text = super().comparisons(predictions)
        if self.data != "rendered":
            return text
        away = predictions.truth["pose"][:, 0, 2, 2]  # cosine: 1 looks where the camera looks
        groups = {"fronts": away < -0.5, "sides": abs(away) <= 0.5, "backs": away > 0.5}
        for name, rows in predictions.errors.items():
            metric = next((metric for metric in rows if metric.startswith("PA-")), None)
            if metric is None:  # the protocol aligns nothing
                continue
            text += f"{name}, {metric}: " + ", ".join(
                f"{group} {rows[metric][chosen].mean():.1f} ({chosen.sum()})"
                for group, chosen in groups.items() if chosen.any()) + "\n"
        return text

    def picture(self, index: int, predictions: Predictions) -> np.ndarray:
        """A test image (S, S, 3) beside the first predictor's and the true mesh over it."""
        sample, one = self.test_set[index], predictions[index:index + 1]
        photo = sample["image"].permute(1, 2, 0).numpy() / np.float32(255)
        found, truth = (self.mesh(values) for values in (one.first, one.truth))
        pelvis = truth["joints"][0, 0] + sample["transl"].numpy()
        return np.concatenate([photo] + [
            self.draw(mesh["vertices"][0] - mesh["joints"][0, 0] + pelvis, sample["K"], photo)
            for mesh in (found, truth)], 1)

    def draw(self, mesh: np.ndarray, K: np.ndarray, background: np.ndarray) -> np.ndarray:
        """Draw a mesh (V, 3) over a picture, or the picture alone if no translation is known."""
        if self.data != "rendered" and mesh[:, 2].min() <= 0:
            return background
        return super().draw(mesh, K, background)
