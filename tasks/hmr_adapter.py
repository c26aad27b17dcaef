"""HMR-Adapter for train.py: two experts, their adapters, and the dual path that joins them.

An expert is trained from pictures alone; an adapter is what is new around it. Stage "all" trains
the four one after another and then scores the dual path, which has no training of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

import bodymodels
import data
import hmr_adapter
import metrics
from files import load_arrays
from networks.adapter_encoders import HandEncoder, is_small, start_rotations
from networks.adapter_rivals import build_model
from tasks.base import (
    Batch,
    BodyTask,
    Mesh,
    Predictions,
    Task,
    Terms,
    bare,
    load_regressor,
    photo_of,
)
from tasks.settings import HMR_ADAPTER, HMR_EXPERT, own_overrides, suitable_preset
from weights.files import require
from weights.hmr_adapter import (
    expert_of,
    hand_mean,
    load_body_expert,
    load_checkpoint,
    load_encoder,
    load_hand_expert,
    load_path,
    load_paths,
)

OCCLUDED = 0.5  # share of rendered hands that something covers
ENCODERS = {hmr_adapter.HandExpert: bodymodels.ASSETS / "simplehand_views_cpu.pt",
            hmr_adapter.BodyExpert: bodymodels.ASSETS / "genhmr_cpu.pt"}  # of small experts
Output = dict[str, Tensor]  # of a model's forward
PARTS = ("hand_expert", "body_expert", "hand", "body")  # the stages of "all", in order


class PeopleTask(Task):
    """What the four stages share: rendered or official people, and experts to build on."""

    MODEL: ClassVar[type]  # what this stage trains
    MODELS = ("SMPL-X's of all genders, MANO_RIGHT, MANO_LEFT, MANO_SMPLX_vertex_ids.pkl and, to "
              "judge bodies, SMPLX_to_J14.pkl, for faces SMPL-X__FLAME_vertex_ids.npy, for 3DPW "
              "SMPL_NEUTRAL and, for its PVE, PyMAF-X's smplx_to_smpl.pkl")
    ARGUMENTS = "models", "backbone"
    ADAPTS = False  # whether the stage builds on an expert
    DETAIL = 1  # of OfficialPeople that are judged

    @classmethod
    def load_expert(cls, file: Path, arguments: argparse.Namespace) -> nn.Module:
        """Load HaMeR, SMPLer-X or one of our experts, also from inside an adapter."""
        if issubclass(cls, HandExpertTask):
            return load_hand_expert(file)
        return load_body_expert(file, hand_mean=hand_mean(arguments.models))

    @classmethod
    def load(cls, path: Path, arguments: argparse.Namespace) -> nn.Module:
        """Load the model of this stage."""
        if not cls.ADAPTS:
            return cls.load_expert(path, arguments)
        model = load_checkpoint(path)
        return model if isinstance(model, cls.MODEL) else expert_of(model, cls.MODEL)

    @classmethod
    def adapt(cls, config: object, arguments: argparse.Namespace) -> object:
        """The config with that of the given expert."""
        if not cls.ADAPTS or not arguments.expert:
            return config
        expert = cls.load_expert(arguments.expert, arguments)
        return dataclasses.replace(config, expert=expert.config)

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        arguments, origin, config = self.arguments, self.origin, self.config
        self.is_new = not (origin or arguments.checkpoint)
        if not self.ADAPTS:
            require(is_small(config) or not arguments.backbone,
                    "--backbone: only the experts of preset cpu start from one")
            return
        stage, starts = arguments.stage, origin or arguments.checkpoint or arguments.expert
        require(starts or config.trainable == "all",
                f"--stage {stage} adapts a trained expert: make one with --stage {stage}_expert "
                "and give its checkpoint with --expert")
        require(arguments.eval or config.inject != "none" or config.trainable != "adapter",
                "inject=none leaves nothing to train: set trainable=head or all")

    def data_set(self, split: str) -> Dataset:
        """A split of rendered people, or of official data."""
        config, settings, training = self.config, self.settings, split == "train"
        size = config.body_size if training else settings.test_body_size or config.body_size
        hand_size = getattr(config, "expert", config).image_size
        if self.data != "rendered":
            return self.official(split, size, hand_size=hand_size, models=self.arguments.models,
                                 augmentation=settings.augmentation if training else None,
                                 detail=1 if training else self.DETAIL)
        return self.rendered(data.RenderedPeople, split, size, occlusion=OCCLUDED,
                             hand_size=hand_size, lens_size=max(128, size))

    def build(self) -> nn.Module:
        """The expert with new weights, or the adapter around the trained one.

        A new small expert starts with the pose that its encoder finds.
        """
        if self.ADAPTS:
            file = self.arguments.expert
            return build_model(self.config, file and self.load_expert(file, self.arguments))
        model = build_model(self.config)
        if is_small(self.config):
            load_encoder(model, self.arguments.backbone or ENCODERS[self.MODEL])
            if self.is_new:
                some = Subset(self.train_set, range(min(1_500, len(self.train_set))))
                start_rotations(model, map(self.pictures, DataLoader(some, batch_size=50)))
        return model

    def pictures(self, batch: Batch) -> Tensor:
        """Return what an expert sees of a batch of people."""
        return batch["image"]


# -------------------------------------------------------------------------------------- hands


class HandExpertTask(PeopleTask):
    """The hand expert, HaMeR: hands from their crops.

    Its predictions are `points` (B, 2, 21 + 778, 3): joints and vertices of the [right, left] hand
    relative to the wrist, the left one mirrored.
    """

    PRESETS = {name: preset.hand.expert for name, preset in hmr_adapter.PRESETS.items()}
    SETTINGS = HMR_EXPERT
    PROTOCOLS = {"rendered": "rendered_people_hands", "arctic": "arctic_p1val"} | dict.fromkeys((
        "hmr-adapter-hands", "h36m-smplx", "rich", "bedlam", "freihand", "interhand", "hamer",
        "hamer-tars"), "")
    MODEL = hmr_adapter.HandExpert
    NEXT = "python train.py --model hmr_adapter --stage hand --expert {checkpoint} --guide BODY"
    INPUTS: ClassVar[Sequence[str]] = ("images",)  # of the model in training, see hand_samples
    CLEAR = 0.5  # of a hand has to be seen, or it counts as occluded (our choice)
    REMARK = ("Hands relative to their wrists; occluded: less than half of it is visible. Mean "
              "hand: of training samples,\nplain or aligned, in each column the better one.\n")

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        free = self.data == "rendered"
        self.hand = bodymodels.load_model("hand_right") if free else bodymodels.load_model(
            self.arguments.models, family="mano", tips="smplx")
        self.faces = self.hand.faces

    def pictures(self, batch: Batch) -> Tensor:
        """Return the crops (2 B, 3, S, S) of both hands."""
        return batch["hand_images"].flatten(0, 1)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Eq. 5."""
        samples = hmr_adapter.hand_samples(batch, getattr(self.config, "arm", "arm"))
        known = samples["valid"] > 0
        if known.any():  # leave out hands outside of the picture: they cost time
            samples = {name: values[known] for name, values in samples.items()}
        prediction = model(*(samples[name] for name in self.INPUTS))
        terms = hmr_adapter.hand_losses(prediction, samples, self.hand, self.config)
        share = known.float().mean()  # means over all hands, however a step is divided
        terms = {name: share * term for name, term in terms.items()}
        loss = hmr_adapter.hand_total_loss(terms, self.config)
        encoder = getattr(getattr(bare(model), "backbone", None), "patch_embed", None)
        if isinstance(encoder, HandEncoder) and "vertices" in samples:  # not inside an adapter
            terms["encoder"] = share * encoder.loss(samples)
            loss = loss + terms["encoder"]
        return loss, terms

    def outputs(self, model: nn.Module, batch: Batch) -> dict[str, Output]:
        """Predict both hands (2 B) of the people, by predictor."""
        return {"expert": model(batch["hand_images"].flatten(0, 1))}

    def predict(self, model: nn.Module, batch: Batch, final: bool = False) -> Predictions:
        """Predict both hands of people by every predictor."""
        found = {name: {"points": self.hands(output).unflatten(0, (-1, 2))}
                 for name, output in self.outputs(model, batch).items()}
        return Predictions(batch["index"], found, {
            "points": self.from_wrist(batch["hand_vertices"]), "valid": batch["hand_valid"],
            "visible": batch["hand_visible"]})

    def hands(self, output: Output) -> Tensor:
        """Return joints and vertices (B, 21 + 778, 3) relative to the wrist."""
        return self.from_wrist(self.hand(output["betas"], output["hand_pose"]).vertices)

    def from_wrist(self, vertices: Tensor) -> Tensor:
        """Return joints and vertices (..., 21 + 778, 3) relative to the wrist; of true hands, too.

        Joints are regressed from the mesh (SMPLer-X): those of the skeleton, with which the
        networks learn, are about 3 mm away.
        """
        joints = torch.einsum("jv,...vc->...jc", self.hand.keypoint_regressor, vertices)
        return torch.cat([joints, vertices], -2) - joints[..., :1, :]

    def points(self, batch: Batch) -> Tensor:
        """Return the same of all true hands that are in the picture."""
        return self.from_wrist(batch["hand_vertices"])[batch["hand_valid"] > 0]

    def mesh(self, values: Mapping[str, np.ndarray]) -> Mesh:
        """Joints and vertices of both hands of all people, one after another."""
        return self.as_mesh(values["points"].reshape(-1, *values["points"].shape[2:]))

    def truth(self, predictions: Predictions) -> Mesh:
        """Return the true hands, and which of them each group of errors counts."""
        valid, visible = predictions.truth["valid"] > 0, predictions.truth["visible"]
        groups = {"clear ": valid & (visible >= self.CLEAR),
                  "occluded ": valid & (visible < self.CLEAR)}
        if self.data != "rendered":  # SMPLer-X leaves no hand out
            groups = {"": np.ones_like(valid)}
        return self.mesh(predictions.truth) | {"groups": groups}

    def judge(self, mesh: Mesh, truth: Mesh) -> dict[str, np.ndarray]:
        """Compute the errors (2 N,) of all hands in each group; NaN for those of the others."""
        protocol = metrics.PROTOCOLS[self.protocol].hands or self.protocol
        errors = metrics.evaluate_each(protocol, mesh, truth)
        return {f"{group}{metric}": np.where(chosen.ravel(), values, np.nan)
                for group, chosen in truth["groups"].items() if chosen.any()
                for metric, values in errors.items()}

    def scene(self, index: int, predictions: Predictions) -> tuple[np.ndarray, ...]:
        """Return a crop, the right hand's or the left's, its K, and both meshes at its wrist."""
        sample, hand = self.test_set[index], index % 2
        wrist, K = (sample[name][hand].numpy() for name in ("hand_joints", "hand_K"))
        return photo_of(sample["hand_images"][hand]), K, *(
            values["points"][index, hand, 21:] + wrist[0]
            for values in (predictions.first, predictions.truth))


class HandAdapterTask(HandExpertTask):
    """The hand adapter: hands from their crops and the pose of the arm."""

    PRESETS = {name: preset.hand for name, preset in hmr_adapter.PRESETS.items()}
    SETTINGS = HMR_ADAPTER
    MODEL, ADAPTS = hmr_adapter.HandAdapter, True
    DETAIL, INPUTS = 4, ("images", "arm", "arm_valid")
    ARGUMENTS = "models", "expert", "guide"
    NEXT = "python demo.py hmr_adapter PICTURE --hand {checkpoint}"
    COMPARED = (("found arm", "expert"), ("found arm", "no arm"),
                ("found arm, true boxes", "expert, true boxes"))
    REMARK = ("Found arm: of the body model in --guide, in crops where it finds hands. No arm: "
              "unknown.\nTrue boxes: crops around the true keypoints, as without a guide.\n"
              + HandExpertTask.REMARK)

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        arguments, config = self.arguments, self.config
        require(not needs_guide(config) or arguments.eval or arguments.guide,
                "arm_source=found trains with the arms that a whole-body model finds: give its "
                "checkpoint with --guide")
        # Loaded here, before training is seeded: building a module draws random numbers.
        self.guide = None
        if arguments.guide:
            self.guide = load_path(hmr_adapter.BodyAdapter, arguments.guide,
                                   hand_mean=hand_mean(arguments.models))

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """The same, with the true arm or the one that the guide finds."""
        if self.config.arm_source == "found" and self.guide is not None:
            with torch.no_grad():
                batch = batch | {"body_pose": look(self.guide, batch)["body_pose"]}
        return super().loss(model, batch, step)

    def outputs(self, model: nn.Module, batch: Batch) -> dict[str, Output]:
        """Predict with found arms and boxes, as in use, with true ones, and by the expert."""
        outputs, true = {}, batch["hand_images"].flatten(0, 1)
        arms = {"true arm": batch["body_pose"]}
        crops = {"true boxes" if self.guide else "": true}
        if self.guide is not None:
            guide = look(self.guide, batch)
            arms = {"found arm": guide["body_pose"]} | arms
            found = hmr_adapter.crop_hands(*sharpest(batch, guide["tight_boxes"]), true.shape[-1])
            crops = {"": found.flatten(0, 1)} | crops
        for boxes, images in crops.items():
            rows = {name: model(images, hmr_adapter.arm_pose(pose, model.config.arm).flatten(0, 1))
                    for name, pose in arms.items()} | {"no arm": model(images)}
            if model.config.trainable == "adapter":  # else the expert inside has changed
                rows["expert"] = model.expert(images)
            outputs |= {", ".join(filter(None, (name, boxes))): row for name, row in rows.items()}
        return outputs


def needs_guide(config: hmr_adapter.HandConfig) -> bool:
    """Say whether training needs a whole-body model that predicts theta_b."""
    return config.design not in ("image", "none") and config.arm_source == "found"


# ------------------------------------------------------------------------------------- bodies


class BodyExpertTask(PeopleTask, BodyTask):
    """The whole-body expert, SMPLer-X: bodies from pictures of people.

    The "betas" of its predictions are shape and expression together, (B, 20).
    """

    PRESETS = {name: preset.body.expert for name, preset in hmr_adapter.PRESETS.items()}
    SETTINGS = HMR_EXPERT
    PROTOCOLS = {"rendered": "rendered_people", "arctic": "arctic_p1val", "ehf": "ehf",
                 "3dpw-moon": "3dpw_smplx_lineage"} | dict.fromkeys((
                     "hmr-adapter-body", "h36m-smplx", "rich", "bedlam"), "")
    MODEL = hmr_adapter.BodyExpert
    BODY, FAMILY = "wholebody", "smplx"
    JOINTS, PIECE = 76, 200
    NEXT = "python train.py --model hmr_adapter --stage body --expert {checkpoint}"

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the model's inputs in training."""
        return (batch["image"],)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Eq. 7 and 8, and SMPLer-X's terms of an expert.

        Boxes of rendered hands are known outside of the picture, too.
        """
        if self.data == "rendered":
            batch = batch | {"hand_boxes_valid": torch.ones_like(batch["hand_valid"])}
        expert = expert_of(bare(model), hmr_adapter.BodyExpert)
        prediction = model(*self.inputs(batch))
        terms = hmr_adapter.body_losses(prediction, batch, self.light_body, expert, self.config)
        return hmr_adapter.body_total_loss(terms, self.config), terms

    def outputs(self, model: nn.Module, batch: Batch) -> tuple[Output, dict[str, Tensor]]:
        """Return the model's output, and the rotations (B, 55, 3, 3) by predictor."""
        output = look(model, batch)
        return output, {"expert": output["body_pose"]}

    def predict(self, model: nn.Module, batch: Batch, final: bool = False) -> Predictions:
        """Predict poses by every predictor, with the shape of the first."""
        output, poses = self.outputs(model, batch)
        truth = {"pose": batch["body_pose"], "betas": self.shape(batch)}
        if self.data == "rendered":
            box, knuckles = output["hand_boxes"][:, :, None], hmr_adapter.true_knuckles(batch)
            inside = (knuckles - box[..., :2] - box[..., 2:] / 2).abs() <= box[..., 2:] / 2
            truth["knuckles_found"] = torch.where(
                batch["hand_valid"][..., None] > 0, inside.all(-1), torch.nan)  # (B, 2, 4)
        betas = self.shape(output)
        return Predictions(batch["index"], {
            name: {"pose": pose, "betas": betas} for name, pose in poses.items()}, truth)

    def notes(self, predictions: Predictions) -> str:
        """Also print the share of true knuckles that lie in the hand boxes of the body expert."""
        text = super().notes(predictions)
        if "knuckles_found" not in predictions.truth:
            return text
        share = np.nanmean(predictions.truth["knuckles_found"])
        return f"{text}{share:.1%} of the true knuckles are in the predicted hand boxes.\n"

    def shape(self, values: Mapping[str, Tensor]) -> Tensor:
        """Betas and expression (B, 20)."""
        return torch.cat([values["betas"], values["expression"]], 1)

    def points(self, batch: Batch) -> Tensor:
        """True keypoints and vertices (B, 76 + 10475, 3)."""
        return torch.cat(self.posed(self.shape(batch), batch["body_pose"]), 1)

    def posed(self, betas: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Keypoints (B, 76, 3) and vertices (B, 10475, 3) of untranslated bodies."""
        output = self.body.to(pose.device)(betas[:, :10], pose, betas[:, 10:])
        return self.body.keypoints(output), output.vertices

    # ---- official protocols

    def truth(self, predictions: Predictions) -> Mesh:
        """Return the true meshes; of official data those of their own models, SMPL-X or SMPL."""
        if self.data == "rendered":
            return super().truth(predictions)
        pictures = self.test_set.pictures
        vertices = [pictures.posed(record)[0].vertices[0].numpy()
                    for record in self.test_set.records(predictions.index)]
        return {"vertices": np.stack(vertices)}

    def judge(self, mesh: Mesh, truth: Mesh) -> dict[str, np.ndarray]:
        """Compute the protocol's errors; on official data joints are regressed from the meshes."""
        if self.data == "rendered":
            return super().judge(mesh, truth)
        folder = Path(self.arguments.models)
        if self.protocol == "3dpw_smplx_lineage":  # the 14 that count are among SMPL-X's first 24
            smpl = self.test_set.pictures.body().J_regressor.numpy()
            regressors = self.body.J_regressor.numpy()[:24], smpl
            both = [{"joints": np.einsum("jv,nvc->njc", regressor, points["vertices"])}
                    for regressor, points in zip(regressors, (mesh, truth), strict=True)]
            if (folder / "smplx_to_smpl.pkl").is_file():
                to_smpl = load_arrays(folder / "smplx_to_smpl.pkl")["matrix"]  # (6890, 10475)
                both[0]["vertices"] = to_smpl @ mesh["vertices"]
                both[1]["vertices"] = truth["vertices"]
            return metrics.evaluate_each(self.protocol, *both)
        return metrics.evaluate_each(
            self.protocol, *map(self.regressed, (mesh, truth)),
            folder / "MANO_SMPLX_vertex_ids.pkl",
            folder / "SMPL-X__FLAME_vertex_ids.npy" if self.protocol == "ehf" else None)

    def regressed(self, mesh: Mesh) -> Mesh:
        """A mesh with its 76 keypoints and, as "scored", the 14 joints of SMPLX_to_J14."""
        vertices = mesh["vertices"]
        joints, scored = (np.einsum("jv,nvc->njc", regressor, vertices) for regressor in (
            self.body.J_regressor.numpy(), self.j14_regressor))
        surface = vertices[:, list(self.body.surface_vertex_ids)]
        return {"vertices": vertices, "joints": np.concatenate([joints, surface], 1),
                "scored": scored}

    @functools.cached_property
    def j14_regressor(self) -> np.ndarray:
        """SMPLX_to_J14.pkl (14, V)."""
        return load_regressor(Path(self.arguments.models, "SMPLX_to_J14.pkl"), 14, self.body)


class BodyAdapterTask(BodyExpertTask):
    """The body adapter: whole bodies, refined by the features at the knuckles."""

    PRESETS = {name: preset.body for name, preset in hmr_adapter.PRESETS.items()}
    SETTINGS = HMR_ADAPTER
    MODEL, ADAPTS = hmr_adapter.BodyAdapter, True
    ARGUMENTS = "models", "expert"
    NEXT = "python demo.py hmr_adapter PICTURE --body {checkpoint}"
    COMPARED = (("adapter", "expert"),)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the model's inputs in training: with true knuckles, or without."""
        if self.config.knuckle_source == "found":
            return (batch["image"],)
        return batch["image"], hmr_adapter.true_knuckles(batch), batch["hand_valid"]

    def outputs(self, model: nn.Module, batch: Batch) -> tuple[Output, dict[str, Tensor]]:
        """Predict by the adapter, with the knuckles that the expert finds, and by the expert."""
        output = look(model, batch)
        poses = {"adapter": output["body_pose"]}
        if model.config.trainable == "adapter":  # else the expert inside has changed
            poses["expert"] = look(model.expert, batch)["body_pose"]
        return output, poses


# ---------------------------------------------------------------------------------- dual path


class DualPathTask(BodyAdapterTask):
    """Both paths and their merge, which nothing trains: the four stages, then scores."""

    DETAIL = 4
    COMPARED = (("ours", "experts"), ("ours", "expert"), ("ours", "ours, all hands"))
    ARGUMENTS = "models", "guide"
    NEXT = "python demo.py hmr_adapter PICTURE --hand {checkpoint} --body {guide}"
    REMARK = ("Expert: the body expert alone; experts: with the hand expert's hands, merged; ours: "
              "with both adapters.\nHands are cut out where the body path finds them; true boxes: "
              "where they are. Hands outside of the square are\nleft to the body path; all hands: "
              "merged, too, as in the paper.\n" + BodyTask.REMARK)

    @classmethod
    def load(cls, path: Path, arguments: argparse.Namespace) -> nn.Module:
        """Load both paths; the config of the run is the body's."""
        model = load_paths(path, arguments.guide, hand_mean=hand_mean(arguments.models))
        model.config = model.body.config
        return model

    def outputs(self, model: hmr_adapter.HMRAdapter, batch: Batch
                ) -> tuple[Output, dict[str, Tensor]]:
        """Predict by both paths with and without adapters, also for true boxes; by the expert."""
        poses, bodies = {}, {}
        adapters = (model.hand, model.body)
        frozen = all(part.config.trainable == "adapter" for part in adapters)
        for name, scale in (("ours", 1.0), ("experts", 0.0)):
            if name == "experts" and not frozen:
                continue  # the experts inside were trained on
            body = bodies[name] = look(model.body, batch, scale=scale)
            size, hand_size = batch["image"].shape[-1], model.hand.config.expert.image_size
            crops = hmr_adapter.crop_hands(*sharpest(batch, body["tight_boxes"]), hand_size)
            inside = hmr_adapter.in_picture(body["hand_boxes"], size, size)
            joined = model.join(body, crops, inside, scale=scale)
            poses[name] = joined["body_pose"]
            poses[f"{name}, all hands"] = hmr_adapter.merge(
                body["body_pose"], joined["hand_pose"], torch.ones_like(inside))
            poses[f"{name}, true boxes"] = model.join(
                body, batch["hand_images"], batch["hand_valid"], scale=scale)["body_pose"]
        if frozen:
            poses["expert"] = bodies["experts"]["body_pose"]
        return bodies["ours"], poses


def look(model: nn.Module, batch: Batch, **options: float) -> Output:
    """Run a whole-body expert or adapter on a batch's images; boxes are in pixels of these.

    The pictures of the test split are larger than a small expert's, which sees them averaged.
    """
    images, config = batch["image"], expert_of(model, hmr_adapter.BodyExpert).config
    times = images.shape[-1] // config.image_size if is_small(config) else 1
    if times > 1:
        images = F.avg_pool2d(images.float(), times)
    output = model(images, **options)
    return output | {name: times * output[name] for name in ("hand_boxes", "tight_boxes")}


def sharpest(batch: Batch, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pictures of a batch with the most pixels, and boxes in pixels of its images there.

    The paper cuts hands out of the input picture. Of official people that is "picture", 2048 px a
    side for images of 512: there a hand's square has as many pixels as HaMeR sees, 256, or more.
    """
    pictures = batch.get("picture", batch["image"])
    return pictures, boxes * (pictures.shape[-1] / batch["image"].shape[-1])


def stage_runs(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the runs of --stage all: four stages, each in its folder in OUT, and the evaluation.

    --set reaches each stage that has the field.
    """
    out, runs, stages = arguments.out, [], [STAGES[part] for part in PARTS]
    files = {stage: out / stage / "checkpoint.pt" for stage in PARTS}
    preset = arguments.preset or suitable_preset()
    for stage in () if arguments.eval else PARTS:
        own = {"stage": stage, "name": f"hmr_adapter-{stage}", "out": out / stage, "export": None,
               "overrides": own_overrides(arguments.overrides, STAGES[stage], stages)}
        if stage in ("hand", "body"):
            own["expert"] = files[f"{stage}_expert"]
            own["export"] = arguments.export and (
                arguments.export / f"hmr_adapter_{stage}_{preset}.pt")
        if stage == "hand":
            own["guide"] = files["body_expert"]
        runs.append(argparse.Namespace(**vars(arguments) | own))
    runs.append(argparse.Namespace(**vars(arguments) | {
        "eval": True, "export": None, "checkpoint": arguments.checkpoint or files["hand"],
        "guide": arguments.guide or files["body"],
        "overrides": own_overrides(arguments.overrides, STAGES["body"], stages)}))
    return runs


STAGES = {"hand_expert": HandExpertTask, "body_expert": BodyExpertTask, "hand": HandAdapterTask,
          "body": BodyAdapterTask, "all": DualPathTask}
