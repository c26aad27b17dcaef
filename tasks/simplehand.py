"""SimpleHand for train.py: hand meshes from crops."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

import bodymodels
import data
import metrics
import simplehand
import weights.simplehand
from networks import any_view
from networks.any_view import looking_again
from networks.backbones import ALL_PRESETS, simplehand_model
from tasks.base import Batch, Mesh, Predictions, Scores, Task, Terms, better, photo_of
from tasks.settings import SIMPLEHAND
from weights.files import require

DEXYCB_IMAGES = 406_888  # of the training split of s0
ROOT_JOINT = 9  # of the 21: the middle finger's knuckle, the origin of the predicted mesh


class SimpleHandTask(Task):
    """Hand meshes from crops."""

    PRESETS, SETTINGS = ALL_PRESETS, SIMPLEHAND
    PROTOCOLS = {"rendered": "rendered_hands", "freihand": "freihand", "dexycb": "dexycb_s0"}
    ARGUMENTS = "hand", "backbone"
    PRETRAINED = "ImageNet's"
    NEXT = "python demo.py simplehand PICTURE --box X,Y,WIDTH,HEIGHT --checkpoint {checkpoint}"

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        file, official = self.arguments.hand, self.data != "rendered"
        require(file or not official, f"--data {self.data}: its meshes are MANO's, whose faces and "
                "joints the free hand does not have; give MANO_RIGHT.pkl with --hand")
        require(self.data != "dexycb" or Path(file).is_dir(), "--data dexycb has left hands, too: "
                "give the folder of MANO_RIGHT and MANO_LEFT with --hand")
        tips = data.DexYCB.TIPS if self.protocol == "dexycb_s0" else None
        self.hand = bodymodels.load_model(file or "hand_right", family="mano", tips=tips)
        self.faces = self.hand.faces
        require(len(self.hand.v_template) == simplehand.VERTICES,
                f"{file}: expected a hand of {simplehand.VERTICES} vertices")

    @classmethod
    def load(cls, path: Path, arguments: argparse.Namespace) -> nn.Module:
        """Load a hand network, also a released one."""
        return weights.simplehand.load_checkpoint(path)

    @classmethod
    def adapt(cls, config: simplehand.Config, arguments: argparse.Namespace) -> simplehand.Config:
        """The config; in the paper's length, 100 epochs also of DexYCB's s0, which is larger."""
        paper = simplehand.PRESETS["paper"]
        if (arguments.data == "dexycb" and config.steps * config.batch_size
                == paper.steps * paper.batch_size):
            return replace(config, steps=100 * DEXYCB_IMAGES // config.batch_size)
        return config

    def data_set(self, split: str) -> Dataset:
        """A split of the chosen data."""
        config, views, training = self.config, self.settings.views, split == "train"
        if self.data == "rendered":
            return self.rendered(data.RenderedHands, split, config.image_size,
                                 in_plane=180.0 if views == 90.0 else views)
        augmentation = "official_simplehand" if training else None
        if config.official:  # weights of the release have seen its crops
            augmentation = "release_simplehand" if training else "release_simplehand_test"
        return self.official(split, config.image_size, augmentation=augmentation,
                             models=self.arguments.hand if self.data == "dexycb" else None)

    def build(self) -> nn.Module:
        """The model with new weights, but for the backbone if a file has them."""
        model = simplehand_model(self.config)
        if self.arguments.backbone:
            weights.simplehand.load_backbone(model.backbone, self.arguments.backbone)
        return model

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Eq. 7."""
        method = any_view if self.config.backbone == "unet" else simplehand
        terms = method.losses(model(batch["image"]), batch, self.hand.keypoint_regressor)
        return method.total_loss(terms, self.config), terms

    def predict(self, model: nn.Module, batch: Batch, final: bool = False) -> Predictions:
        """Meshes relative to the root joint, in the axes of the original camera; 2D keypoints."""
        output, size = looking_again(model)(batch["image"]), batch["image"].shape[-1]
        vertices, keypoints = (output[name].cpu() for name in ("vertices", "keypoints_2d"))
        batch = {name: value.cpu() for name, value in batch.items()  # a GPU would round to TF32
                 if name != "image"}
        back = batch["camera_rotation"]  # x_original = R^T x_crop, so for row vectors x R
        truth = {"vertices": self.points(batch) @ back,
                 "joints": (batch["joints"] - batch["joints"][:, ROOT_JOINT:ROOT_JOINT + 1]) @ back,
                 "keypoints_2d": batch["keypoints_2d"] / size,  # 0..1, as the network's
                 "keypoints_valid": batch["keypoints_valid"], "mesh_valid": batch["mesh_valid"]}
        found = {"vertices": vertices @ back, "keypoints_2d": keypoints}
        return Predictions(batch["index"], {"SimpleHand": found}, truth)

    def points(self, batch: Batch) -> Tensor:
        """True meshes (B, 778, 3) relative to the root joint."""
        return batch["vertices"] - batch["joints"][:, ROOT_JOINT:ROOT_JOINT + 1]

    def scores(self, predictions: Predictions) -> Scores:
        """The model's and the mean hand's; empty if the test split has no annotation."""
        known = predictions.truth["mesh_valid"] > 0
        if not known.any():
            return {}
        truth = {name: predictions.truth[name][known] for name in ("joints", "vertices")}

        def score(hands: np.ndarray) -> dict[str, float]:
            hands = np.broadcast_to(hands, truth["vertices"].shape)
            return metrics.evaluate(self.protocol, self.as_mesh(hands), truth)

        scores = {name: score(values["vertices"][known])
                  | keypoint_scores(values["keypoints_2d"], predictions.truth)
                  for name, values in predictions.found.items()}
        if self.baseline is not None:
            valid = predictions.truth["keypoints_valid"][..., None]  # (N, 21, 1)
            mean = (predictions.truth["keypoints_2d"] * valid).sum(0) / np.maximum(valid.sum(0), 1)
            scores["mean hand"] = better(*map(score, self.baseline.numpy())) | keypoint_scores(
                mean, predictions.truth)
        return scores

    def as_mesh(self, points: np.ndarray) -> Mesh:
        """Return meshes (N, 778, 3) and their 21 joints."""
        regressor = self.hand.keypoint_regressor.cpu().numpy()
        return {"vertices": points, "joints": np.einsum("jv,nvc->njc", regressor, points)}

    def write(self, predictions: Predictions, out: Path) -> None:
        """Write the file that the data set's evaluation server or toolkit takes."""
        hands = self.as_mesh(predictions.first["vertices"])
        if self.data == "freihand":
            metrics.write_predictions(out / "pred.json", hands["joints"], hands["vertices"])
        elif self.data == "dexycb":
            numbers = self.test_set.records(predictions.index)["person"]
            metrics.write_dexycb(out / "dexycb.txt", numbers, hands["joints"])

    def scene(self, index: int, predictions: Predictions) -> tuple[np.ndarray, ...]:
        """Return a test image, its K, and both meshes with their root joint where the true one is.
        """
        sample = self.test_set[index]
        rotation, root = sample["camera_rotation"].numpy(), sample["joints"][ROOT_JOINT].numpy()
        return photo_of(sample["image"]), sample["K"], *(
            values["vertices"][index] @ rotation.T + root
            for values in (predictions.first, predictions.truth))


def keypoint_scores(keypoints: np.ndarray, truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Normalised mean error of 2D keypoints (N, 21, 2) or (21, 2), percent of the crop's side.

    Of keypoints that are known; empty if none is.
    """
    errors = np.linalg.norm(keypoints - truth["keypoints_2d"], axis=-1)
    known = errors[truth["keypoints_valid"] > 0]
    return {"2D NME": 100 * float(known.mean())} if len(known) else {}


STAGES = {"": SimpleHandTask}
