"""What the training loop asks of a task: of a paper, or of one of its training stages.

A task brings data, model, loss, predictions and scores; train.py brings steps, processes and files.
`Task` declares everything that the loop calls. The classes of a paper are in the file of its name.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import bodymodels
import data
import metrics
from files import safe_unpickle
from tasks.settings import Settings
from weights.files import require

EVALUATIONS = {  # data set and split on which a protocol of metrics.py is defined
    "freihand": ("freihand", "evaluation"), "dexycb_s0": ("dexycb", "test"),
    "3dpw_lsp14": ("3dpw", "test"), "3dpw_smplx_lineage": ("3dpw-moon", "test"),
    "hmr2_lsp14": ("3dpw-hmr2", "test"), "hmr2_h36m_lsp14": ("h36m-hmr2", "test"),
    "emdb1_24": ("emdb", "emdb1"), "h36m_p2_lsp14": ("h36m", "p2"),
    "amass_test": ("amass", "test"), "moyo_val": ("moyo", "val"),
    "arctic_p1val": ("arctic", "val"), "ehf": ("ehf", "test"),
}
Scores = dict[str, dict[str, float]]  # predictor -> metric -> value; the model comes first
Errors = dict[str, dict[str, np.ndarray]]  # predictor -> metric -> (N,), NaN where none counts
Mesh = dict[str, np.ndarray]  # joints (N, J, 3) and vertices (N, V, 3), in metres
Terms = Mapping[str, Tensor]  # named scalars of a loss
Batch = dict[str, Tensor]


# -------------------------------------------------------------------------------- predictions


@dataclasses.dataclass
class Predictions:
    """What predictors found in test samples, and the truth: tensors or arrays, samples first."""

    index: Tensor | np.ndarray  # (N,) int64, of the samples in the test split
    found: dict[str, dict[str, Tensor | np.ndarray]]  # predictor -> name -> values (N, ...)
    truth: dict[str, Tensor | np.ndarray]  # name -> values (N, ...)
    errors: Errors = dataclasses.field(default_factory=dict)  # from Task.scores, where it has them

    @property
    def first(self) -> dict[str, np.ndarray]:
        """The values of the first predictor, the one that the pictures show."""
        return next(iter(self.found.values()))

    def rows(self, start: int, stop: int) -> Predictions:
        """Select the samples of these rows."""
        return self.map(lambda values: values[start:stop])

    def map(self, function: Callable, *others: Predictions) -> Predictions:
        """Apply a function to each of the values, together with that of the others."""
        return Predictions(*(combine(function, *(getattr(each, name) for each in (self, *others)))
                             for name in ("index", "found", "truth")))


def combine(function: Callable, *trees: object) -> object:
    """Apply a function to the values in equally nested dictionaries: one call for each place."""
    if not isinstance(trees[0], dict):
        return function(*trees)
    return {name: combine(function, *(tree[name] for tree in trees)) for name in trees[0]}


def better(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Choose the better of two scores in each row: the smaller error, else the larger score."""
    return {name: (min if is_error(name) else max)(first[name], second[name]) for name in first}


def is_error(metric: str) -> bool:
    """Say whether smaller is better: MPJPE, PA-MPVPE, MVE, ..., but not F-scores and AUC."""
    return metric.endswith("E")


# --------------------------------------------------------------------------------------- task


class Task(ABC):
    """A paper, or one of its stages.

    config: the paper's, of model and optimisation. arguments: the flags. origin: the content of the
    checkpoint that is continued, evaluated or started from; empty for new weights. settings: of the
    run. Subclasses add `faces`, of the meshes in pictures. Raises ValueError if these do not go
    together.
    """

    PRESETS: ClassVar[Mapping[str, object]]  # by preset the paper's config, which --set changes
    SETTINGS: ClassVar[Mapping[str, Settings]]  # by preset
    PROTOCOLS: ClassVar[Mapping[str, str]]  # kind of data -> protocol of metrics; "": ask for one
    ARGUMENTS: ClassVar[Sequence[str]]  # its own flags, names of train.FLAGS
    NEXT: ClassVar[str]  # the next command, with {checkpoint} and other flags
    MODELS: ClassVar[str] = ""  # the body models that official data need in --models
    PRETRAINED: ClassVar[str] = ""  # weights from which the paper's backbone starts
    REMARK: ClassVar[str] = ""  # printed below the table of scores
    BASELINE: ClassVar[str] = "mean hand"  # name of the constant predictions in the table
    COMPARED: ClassVar[Sequence[tuple[str, str]]] = ()  # predictors to compare sample by sample
    JOINTS: ClassVar[int] = 21  # of `points`, before the vertices
    PIECE: ClassVar[int] = 10**9  # samples whose meshes are in memory at a time

    def __init__(self, config: object, arguments: argparse.Namespace,
                 origin: Mapping[str, object], settings: Settings) -> None:
        self.config, self.arguments, self.settings = config, arguments, settings
        self.origin = origin
        self.baseline: Tensor | None = origin.get("baseline")  # (2, N, 3), see set_baseline
        judged = EVALUATIONS.get(arguments.protocol, ("",))[0] if arguments.eval else ""
        self.data = arguments.data or judged or origin.get("data", "rendered")
        self.protocol = arguments.protocol or self.PROTOCOLS.get(self.data, "")
        name, known = f"--data {self.data}", self.PROTOCOLS
        require(self.data in known, f"{name}: expected one of {', '.join(known)}")
        own = known[self.data]
        require(own in ("", self.protocol), f"{name} is evaluated by {own}, not by {self.protocol}")
        require(self.protocol and self.protocol in known.values(),
                f"{name}: choose the protocol with --protocol, one of "
                + ", ".join(sorted({*known.values()} - {""})))
        if self.data != "rendered":
            require(arguments.data_root, f"{name}: give its folder with --data-root")
            require(arguments.models or not self.MODELS, f"{name} needs official body models: give "
                    f"the folder of {self.MODELS} with --models")

    # ---- the command

    @classmethod
    def adapt(cls, config: object, arguments: argparse.Namespace) -> object:
        """Return the config, adapted to the files that the flags name."""
        return config

    @classmethod
    @abstractmethod
    def load(cls, path: Path, arguments: argparse.Namespace) -> nn.Module:
        """Load the model of a checkpoint, with its `config`; FileNotFoundError or ValueError."""

    # ---- data

    @functools.cached_property
    def train_set(self) -> Dataset:
        """The training split, augmented."""
        return self.data_set("train")

    @functools.cached_property
    def test_set(self) -> Dataset:
        """The test split, not augmented."""
        return self.data_set("test")

    @abstractmethod
    def data_set(self, split: str) -> Dataset:
        """Open the split "train" or "test"."""

    def rendered(self, kind: Callable[..., Dataset], split: str, size: int,
                 **options: object) -> Dataset:
        """Open pictures of `size` pixels that a class of sets/ renders by the settings.

        The test split has seed 0, the poses of the clips alone and no augmentation.
        """
        plain = {"seed": 0, "augmentation": None, "wide": 0.0} if split == "test" else {}
        for name in ("seed", "augmentation", "wide", "views", "lean", "version"):
            value = getattr(self.settings, name)
            if value is not None:  # else the stage has no such setting
                options[name] = plain.get(name, value)
        return kind(split, size, length=getattr(self.settings, f"{split}_samples"),
                    cache=self.arguments.cache, **options)

    def official(self, split: str, size: int, **options: object) -> Dataset:
        """Open the official training data, or the data on which the protocol is defined."""
        arguments = self.arguments
        name, part, root = self.data, "train", arguments.data_root
        if split == "test":
            name, part = EVALUATIONS[self.protocol]
            root = arguments.test_root or root
        return data.open_official(name, root, part, size=size, seed=self.settings.seed,
                                  cache=arguments.cache, **options)

    # ---- training

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the model as training begins."""

    def to(self, device: torch.device) -> None:
        """Move what losses and predictions need to a device, once; scores are computed on the CPU.
        """
        for name, value in vars(self).items():
            if isinstance(value, nn.Module) and name != "body":
                value.to(device)

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Compute the scalar to minimise, and the terms to log.

        model: to be called, so that gradients are reduced over processes; `bare(model)` has its
        attributes. step: finished optimiser steps.
        """

    # ---- evaluation

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch, final: bool = False) -> Predictions:
        """Predict with the model and its rivals; the result also holds the truth.

        final: at the end of a run; adds predictors that only the last table shows.
        """

    def scores(self, predictions: Predictions) -> Scores:
        """Score every predictor and the constants of the baseline; empty without annotation.

        The errors of each sample are left in predictions.errors.
        """
        starts = range(0, len(predictions.index), self.PIECE)
        parts = [self.errors(predictions.rows(start, start + self.PIECE)) for start in starts]
        errors = combine(lambda *values: np.concatenate(values), *parts)
        scores = combine(lambda values: float(values[~np.isnan(values)].mean()), errors)
        predictions.errors = {name: errors[name] for name in predictions.found}
        if self.baseline is not None:
            scores[self.BASELINE] = better(scores.pop("mean"), scores.pop("mean shape"))
        return scores

    def errors(self, predictions: Predictions) -> Errors:
        """Compute the errors of all predictors and of both constants of the baseline."""
        truth = self.truth(predictions)
        meshes = {name: self.mesh(values) for name, values in predictions.found.items()}
        if self.baseline is not None:
            count = len(next(iter(truth.values())))
            for name, points in zip(("mean", "mean shape"), self.baseline.numpy(), strict=True):
                meshes[name] = self.as_mesh(np.broadcast_to(points, (count, *points.shape)))
        return {name: self.judge(mesh, truth) for name, mesh in meshes.items()}

    def truth(self, predictions: Predictions) -> Mesh:
        """Return the true meshes, with which the protocol compares."""
        return self.mesh(predictions.truth)

    def mesh(self, values: Mapping[str, np.ndarray]) -> Mesh:
        """Return joints and vertices of a predictor's or the true values."""
        raise NotImplementedError

    def as_mesh(self, points: np.ndarray) -> Mesh:
        """Return joints and vertices of `points` (N, J + V, 3): constants of the baseline."""
        return {"joints": points[:, :self.JOINTS], "vertices": points[:, self.JOINTS:]}

    def judge(self, mesh: Mesh, truth: Mesh) -> dict[str, np.ndarray]:
        """Compute the protocol's errors (N,) of one predictor's meshes; NaN where none counts."""
        return metrics.evaluate_each(self.protocol, mesh, truth)

    @abstractmethod
    def points(self, batch: Batch) -> Tensor:
        """Return true points (B, N, 3), of which the baseline is a mean."""

    def set_baseline(self, batches: Iterable[Batch]) -> None:
        """Compute the constant predictions (2, N, 3): two means of `points` of training samples.

        The plain mean has the least MPJPE of all constants, but no human shape: views from all
        sides cancel. The second, after aligning all samples with one another, has the least
        PA-MPJPE.
        """
        points = torch.cat([self.points(batch).cpu() for batch in batches])
        mean, shape = points.mean(0), points[0]
        for _ in range(5):
            shape = metrics.procrustes_align(points, shape.expand_as(points), scale=False).mean(0)
        self.baseline = torch.stack([mean, shape])

    # ---- what a run leaves

    def notes(self, predictions: Predictions) -> str:
        """Describe what else the predictions show, in whole lines."""
        return ""

    def write(self, predictions: Predictions, out: Path) -> None:  # noqa: B027
        """Write the file that the data set's evaluation server or toolkit takes, if it has one."""

    @abstractmethod
    def scene(self, index: int, predictions: Predictions) -> tuple[np.ndarray, ...]:
        """Return a test image (H, W, 3), its K, and the predicted and true vertices (V, 3) there.
        """


class BodyTask(Task):
    """A task whose predictors find a pose (B, K, 3, 3) and betas (B, S), as the truth has them."""

    BODY, FAMILY = "body", "smpl"  # the free body, and the family of official data
    JOINTS, PIECE = 24, 500
    BASELINE = "mean pose"
    REMARK = ("Mean pose: of training samples, plain or aligned with one another, in each column "
              "the better one.\n")

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

    def notes(self, predictions: Predictions) -> str:
        """List the aligned errors of rendered people by heading: fronts, sides and backs."""
        if self.data != "rendered":
            return ""
        away, text = predictions.truth["pose"][:, 0, 2, 2], ""  # cosine: 1 looks as the camera does
        groups = {"fronts": away < -0.5, "sides": abs(away) <= 0.5, "backs": away > 0.5}
        for name, rows in predictions.errors.items():
            metric = next((metric for metric in rows if metric.startswith("PA-")), None)
            if metric:  # else the protocol aligns nothing
                text += f"{name}, {metric}: " + ", ".join(
                    f"{group} {rows[metric][chosen].mean():.1f} ({chosen.sum()})"
                    for group, chosen in groups.items() if chosen.any()) + "\n"
        return text

    def scene(self, index: int, predictions: Predictions) -> tuple[np.ndarray, ...]:
        """Return a test image, its K, and both meshes with their pelvis where the true one is."""
        sample, one = self.test_set[index], predictions.rows(index, index + 1)
        found, truth = (self.mesh(values) for values in (one.first, one.truth))
        pelvis = truth["joints"][0, 0] + sample["transl"].numpy()
        return photo_of(sample["image"]), sample["K"], *(
            mesh["vertices"][0] - mesh["joints"][0, 0] + pelvis for mesh in (found, truth))


def photo_of(image: Tensor) -> np.ndarray:
    """Convert an image of a data set (3, H, W) to (H, W, 3), 0..1."""
    return image.permute(1, 2, 0).numpy() / np.float32(255)


def load_regressor(path: Path, count: int, body: bodymodels.BodyModel) -> np.ndarray:
    """Read a pickled regressor (count, V) of a body's joints."""
    regressor = np.asarray(safe_unpickle(path), np.float32)
    require(regressor.shape == (count, len(body.v_template)),
            f"{path} has shape {regressor.shape}: expected {count} joints of "
            f"{len(body.v_template)} vertices")
    return regressor


def bare(model: nn.Module) -> nn.Module:
    """Return the paper's module inside the wrappers of the loop."""
    while hasattr(model, "module"):
        model = model.module
    return model


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Group the trained parameters for AdamW: weight decay on matrices and kernels only.

    Biases, norms, scales and embeddings of positions do not decay (our choice; SimpleHand's release
    spares only names with "bn" or "bias" in them).
    """
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim < 2 or re.search(
            r"(pos_embed|_embedding|_embeddings\.\d+|task_tokens|\.reference|\.gamma)$", name)
        if parameter.requires_grad:
            groups[not spared].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0}]
