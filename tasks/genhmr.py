"""GenHMR for train.py: the pose tokenizer, a small image encoder and the masked transformer."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import sem  # standard error of the mean
from torch import Tensor, nn
from torch.utils.data import Dataset

import bodymodels
import data
import genhmr
import metrics
from files import load_array
from networks import small_encoder
from networks.small_encoder import (
    IMAGE_SIZE,
    EncoderConfig,
    Lifted,
    Reading,
    SmallEncoder,
    build_genhmr,
)
from sets.crops import BODY_FOCAL, BODY_PARTS, SMPL_KEYPOINTS
from sets.images import LEAST_CONFIDENCE
from sets.official import OWN
from sets.rendered_bodies import STEEP, sample_wide_postures
from tasks import posterior
from tasks.base import (
    EVALUATIONS,
    Batch,
    BodyTask,
    Errors,
    Mesh,
    Predictions,
    Terms,
    bare,
    load_regressor,
)
from tasks.settings import GENHMR_ENCODER, GENHMR_TOKENIZER, GENHMR_TRANSFORMER, Settings
from weights.files import require
from weights.genhmr import load_backbone, load_checkpoint, load_encoder, load_tokenizer

# Weights of the encoder's losses (our choices): of 3D keypoints, per metre, rotation matrices, the
# keypoints of the posed body, per metre, these in the crop, per side, all L1, and squared shapes;
# of all these for bodies without pictures; and of a heat map whose keypoint is outside the crop
LIFT_WEIGHTS = {"joints": 5.0, "pose": 2.0, "posed": 8.0, "projected": 5.0, "betas": 0.2}
UNPICTURED, OUTSIDE = 0.7, 0.2


def augment_rotation(rotations: Tensor, generator: torch.Generator | None = None,
                     settings: Settings = GENHMR_TOKENIZER["paper"]) -> Tensor:
    """Turn each body as a whole: poses (B, 24, 3, 3) -> the same with another global orientation.

    "We rotate the poses at varying degrees" (appendix): the tokenizer must know every orientation
    that stage 2 meets. A standing body (y down) takes a heading within settings.views and leans
    up to settings.tilt; a fraction of the bodies takes any rotation (our choice). Bodies turn about
    their rest pelvis: vertices V become R (V - J_0) + J_0.
    """
    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, device=rotations.device)

    batch = len(rotations)
    heading, lean, direction = (2 * uniform(3, batch) - 1).unbind()
    direction = math.pi * direction
    level = torch.stack((direction.cos(), torch.zeros_like(lean), direction.sin()), -1)
    vertical = torch.eye(3, device=level.device)[1]
    tilt, heading = math.radians(settings.tilt) * lean, math.radians(settings.views) * heading
    turn = (bodymodels.axis_angle_to_matrix(tilt[:, None] * level)
            @ bodymodels.axis_angle_to_matrix(heading[:, None] * vertical))
    normal = torch.randn(batch, 6, generator=generator, device=rotations.device)
    any_way = uniform(batch) < settings.uniform_rotation
    turn = torch.where(any_way[:, None, None], genhmr.rotation_6d_to_matrix(normal), turn)
    root, body = rotations.split((1, genhmr.JOINTS - 1), 1)
    return torch.cat((turn.to(rotations)[:, None] @ root, body), 1)


class TokenizerTask(BodyTask):
    """Stage 1: poses to tokens and back."""

    PRESETS, SETTINGS = genhmr.TOKENIZER_PRESETS, GENHMR_TOKENIZER
    PROTOCOLS = {"rendered": "pose_reconstruction", "amass": "amass_test", "moyo": "moyo_val",
                 "amass+moyo": "pose_reconstruction"}
    ARGUMENTS = ("body",)
    REMARK = ("1 degree: every joint was turned by one degree; 10 % random: so many tokens were "
              "replaced. changed %: tokens\nthat are not the true pose's, in the first row after "
              f"decoding and encoding again.\n{BodyTask.REMARK}")
    NEXT = ("python train.py --model genhmr --stage encoder; with a ViT in its place --stage "
            "transformer --tokenizer {checkpoint}")

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        if self.config.vertex_stride:
            vertices = range(0, len(self.body.v_template), self.config.vertex_stride)
            self.light_body = self.body.at_vertices(vertices)

    @classmethod
    def load(cls, path: Path, arguments: argparse.Namespace) -> nn.Module:
        """Load a tokenizer, alone or inside a GenHMR."""
        return load_tokenizer(path)

    def data_set(self, split: str) -> Dataset:
        """A split of the free clips, or of official data: each sequence in its proportion.

        A run chooses its best weights on AMASS's validation split, as the paper does; with MOYO
        on both validation splits (our choice). --eval scores them on AMASS's test split.
        """
        arguments, training = self.arguments, split == "train"
        settings, seed = self.settings, self.settings.seed if training else 0
        if self.data == "rendered":
            length = settings.train_samples if training else settings.test_samples
            return data.MotionPoses(split, length, seed, views=settings.views,
                                    lean=settings.lean, wide=settings.wide if training else 0.0)
        root = arguments.data_root if training else arguments.test_root or arguments.data_root
        held_out = dict(EVALUATIONS.values()) | ({} if arguments.eval else {"amass": "val"})
        parts = [{"amass": data.AMASS, "moyo": data.MOYO}[name](
            Path(root, name) if "+" in self.data else root,
            split if training else held_out[name], seed=seed, cache=arguments.cache)
            for name in self.data.split("+")]
        return data.Joined(parts) if len(parts) > 1 else parts[0]

    def build(self) -> nn.Module:
        """The tokenizer with new weights."""
        return genhmr.Tokenizer(self.config)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """L_vq of randomly rotated poses; perplexity and dead codes for the log."""
        pose = augment_rotation(batch["pose"], settings=self.settings)
        prediction = model(pose)
        terms = genhmr.tokenizer_losses(prediction, batch | {"pose": pose}, self.light_body)
        statistics = {name: prediction[name] for name in ("perplexity", "dead_codes")}
        return genhmr.total_loss(terms, self.config), terms | statistics

    def predict(self, model: nn.Module, batch: Batch, final: bool = False) -> Predictions:
        """Decode each pose from its tokens; at the end also from wrong tokens."""
        tokens, betas = model.encode(batch["pose"]), batch["betas"]
        decoded = model.decode(tokens)
        found = {"tokenizer": (decoded, model.encode(decoded))}
        if final:
            turned, random = self.disturbed(model, batch, tokens)
            found |= {name: (model.decode(wrong), wrong) for name, wrong in (
                ("1 degree", turned), ("10 % random", random))}
        return Predictions(
            batch["index"], {name: {"pose": pose, "betas": betas, "tokens": other}
                             for name, (pose, other) in found.items()},
            {"pose": batch["pose"], "betas": betas, "tokens": tokens})

    def disturbed(self, model: nn.Module, batch: Batch, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens of slightly turned poses, and the true tokens, a tenth of them random.

        What is drawn for a sample depends on its index alone.
        """
        length, codes = tokens.shape[1], len(model.codebook)
        rngs = map(np.random.default_rng, batch["index"].tolist())
        draws = [(rng.standard_normal((24, 3)), rng.random(length) < 0.1,
                  rng.integers(codes, size=length)) for rng in rngs]
        axes, random, other = (torch.from_numpy(np.stack(each)).to(tokens.device)
                               for each in zip(*draws, strict=True))
        axes = F.normalize(axes.to(batch["pose"]), dim=-1)
        turns = bodymodels.axis_angle_to_matrix(np.deg2rad(1.0) * axes)
        return model.encode(batch["pose"] @ turns), torch.where(random, other, tokens)

    def errors(self, predictions: Predictions) -> Errors:
        """Compute the errors of all predictors, and the share of tokens that they changed."""
        errors = super().errors(predictions)
        for name, values in predictions.found.items():
            changed = values["tokens"] != predictions.truth["tokens"]
            errors[name]["changed %"] = 100 * changed.mean(1)
        return errors

    def scene(self, index: int, predictions: Predictions) -> tuple[np.ndarray, ...]:
        """Return white, a camera, and both bodies 4 m away from it."""
        one = predictions.rows(index, index + 1)
        K, white = np.array([[240.0, 0, 80], [0, 240, 80], [0, 0, 1]]), np.ones((160, 160, 3))
        return white, K, *(self.mesh(values)["vertices"][0] + (0, 0, 4)
                           for values in (one.first, one.truth))


class EncoderTask(BodyTask):
    """Before stage 2: a small encoder that knows poses, as the paper's trained ViT-H does."""

    PRESETS, SETTINGS = small_encoder.PRESETS, GENHMR_ENCODER
    PROTOCOLS = {"rendered": "rendered_bodies"}
    ARGUMENTS = ()
    NEXT = ("python train.py --model genhmr --stage transformer --tokenizer "
           "runs/genhmr-tokenizer/checkpoint.pt --backbone {checkpoint}")

    @classmethod
    def load(cls, path: Path, arguments: argparse.Namespace) -> nn.Module:
        """Load an encoder, alone or inside a GenHMR."""
        encoder = load_encoder(path)
        encoder.config = EncoderConfig()  # encoders have one size
        return encoder

    def data_set(self, split: str) -> Dataset:
        """A split of rendered people."""
        return self.rendered(data.RenderedBodies, split, IMAGE_SIZE)

    def build(self) -> nn.Module:
        """The encoder with new weights."""
        return SmallEncoder()

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """Compute the losses of heat maps and lifted bodies, with and without pictures."""
        config, network = self.config, bare(model)
        reading = model(network.normalise(batch["image"]), True)
        true, inside = crop_places(batch["keypoints_2d"])
        weight = torch.where(inside, 1.0, OUTSIDE)
        heat = (weight * network.heat_map_loss(reading.heat, true)).mean()
        terms = {"heat": heat} | lift_losses(reading.lifted, batch, self.light_body)
        if config.unpictured:
            at, share, bodies = imagine_bodies(network, reading, true, config.unpictured,
                                               self.settings, self.light_body)
            terms |= {f"unpictured_{name}": term for name, term in lift_losses(
                network.lift(at, share), bodies, self.light_body).items()}
        return encoder_total_loss(terms), terms

    def predict(self, model: nn.Module, batch: Batch, final: bool = False) -> Predictions:
        """Predict lifted bodies."""
        reading = model.read(model.normalise(batch["image"]))
        return Predictions(batch["index"], {"encoder": lifted_body(reading)},
                           {name: batch[name] for name in ("pose", "betas")})


def crop_places(keypoints_2d: Tensor) -> tuple[Tensor, Tensor]:
    """Convert pixels (B, K, 2) to -0.5..0.5, and say which the encoder can see: (B, K), bool."""
    at = keypoints_2d / IMAGE_SIZE - 0.5
    return at, (at.abs() < at.new_tensor([0.375, 0.5])).all(-1)


def lifted_body(reading: Reading) -> dict[str, Tensor]:
    """Return the encoder's own answer: pose (B, 24, 3, 3) and betas (B, 10)."""
    lifted = reading.lifted
    return {"pose": genhmr.rotation_6d_to_matrix(lifted.pose), "betas": lifted.betas}


def lift_losses(lifted: Lifted, batch: Batch, body: bodymodels.BodyModel) -> Terms:
    """Compute the unweighted terms of a lifted body, each a scalar.

    batch: pose (B, 24, 3, 3), betas (B, 10), keypoints_3d (B, 45, 3) in metres, the first being the
    pelvis, and keypoints_2d (B, 45, 2) in pixels.
    """
    rotations = genhmr.rotation_6d_to_matrix(lifted.pose)
    true, (true_2d, _) = batch["keypoints_3d"], crop_places(batch["keypoints_2d"])
    true = true - true[:, :1]
    posed = body.keypoints(body(lifted.betas, rotations))
    projected = genhmr.project_to_crop(posed, lifted.camera, genhmr.Config().focal)
    return {"joints": F.l1_loss(lifted.joints, true), "pose": F.l1_loss(rotations, batch["pose"]),
            "posed": F.l1_loss(posed - posed[:, :1], true),
            "projected": F.l1_loss(projected, true_2d),
            "betas": F.mse_loss(lifted.betas, batch["betas"])}


def encoder_total_loss(terms: Terms) -> Tensor:
    """Weigh and sum the terms of heat maps, of pictures and of bodies without pictures."""
    lifted = sum(
        weight * (terms[name] + UNPICTURED * terms.get(f"unpictured_{name}", 0.0))
        for name, weight in LIFT_WEIGHTS.items())
    return terms["heat"] + lifted


@torch.no_grad()
def imagine_bodies(encoder: SmallEncoder, reading: Reading, true: Tensor, times: int,
                   settings: Settings, body: bodymodels.BodyModel) -> tuple[Tensor, Tensor, Batch]:
    """Pose bodies without pictures, `times` as many as there are pictures.

    reading, true: the encoder's keypoints in the pictures, and the true ones (B, 45, 2). Returns
    keypoints as the encoder would find them, with the errors it makes in these pictures (those of
    one picture stay together, up to 1.3 times as large): at (N, 45, 2), share (N, 45); and the
    bodies: pose, betas, keypoints_3d, and keypoints_2d in pixels.
    """
    count, device = len(true) * times, true.device
    rngs = np.random.default_rng(int(torch.randint(2**31, ()))).spawn(count)
    pose, betas = (torch.from_numpy(array).to(device) for array in sample_wide_postures(
        rngs, "train", settings.wide, settings.views, settings.lean,
        STEEP * (settings.version > 1)))
    keypoints = body.keypoints(body(betas, pose))
    flat = in_random_crops(keypoints - keypoints[:, :1])
    low, high = encoder.centres.amin(0), encoder.centres.amax(0)
    source = torch.randint(len(true), (count,), device=device)
    gain = 0.3 + torch.rand(count, 1, 1, device=device)
    at = flat.clamp(low, high) + gain * (reading.at - true.clamp(low, high))[source]
    at = (at + 0.004 * torch.randn_like(at)).clamp(low, high)
    return at, reading.share[source], {"pose": pose, "betas": betas, "keypoints_3d": keypoints,
                                       "keypoints_2d": (flat + 0.5) * IMAGE_SIZE}


def in_random_crops(keypoints: Tensor) -> Tensor:
    """Project keypoints (B, 45, 3), metres from the pelvis, to crops as pictures have: (B, 45, 2).

    As `place` of rendered bodies, but for the box, which is that of keypoints with a margin
    instead of the surface's.
    """
    count, device = len(keypoints), keypoints.device
    parts = torch.tensor([[re.search(pattern, name) is not None for name in SMPL_KEYPOINTS]
                          for pattern, _ in BODY_PARTS.values()], device=device)  # (7, 45)
    chances = torch.tensor([chance for _, chance in BODY_PARTS.values()], device=device)
    part = torch.multinomial(chances.expand(count, -1), 1)[:, 0]
    truncated = torch.rand(count, 1, device=device) < 0.2
    boxed = parts[part] | ~truncated  # (B, 45)
    plane = keypoints[..., :2]
    margin = torch.where(truncated, 0.0, 0.05)
    high = plane.masked_fill(~boxed[..., None], -torch.inf).amax(1) + margin
    low = plane.masked_fill(~boxed[..., None], torch.inf).amin(1) - margin
    width, height = (high - low).unbind(1)
    side = torch.maximum(height, width / 0.75) * (1.0 + 0.45 * torch.rand(count, device=device))
    shift = 0.07 * (2 * torch.rand(count, 2, device=device) - 1)
    plane = plane - ((high + low) / 2 + side[:, None] * shift)[:, None]
    return BODY_FOCAL * plane / (BODY_FOCAL * side[:, None, None] + keypoints[..., 2:])


class TransformerTask(BodyTask):
    """Stage 2: tokens from images."""

    PRESETS, SETTINGS = genhmr.PRESETS, GENHMR_TRANSFORMER
    PROTOCOLS = {"rendered": "rendered_bodies"} | dict.fromkeys((
        "genhmr-sd", "genhmr-itw", "genhmr-bl", "hmr2-tars", "bedlam"), "") | {
        EVALUATIONS[protocol][0]: protocol for protocol in (
            "3dpw_lsp14", "3dpw_smplx_lineage", "emdb1_24", "h36m_p2_lsp14", "hmr2_lsp14",
            "hmr2_h36m_lsp14")}
    MODELS = ("SMPL_NEUTRAL, SMPL_MALE, SMPL_FEMALE and, for protocols of 14 joints, "
              "J_regressor_h36m.npy or, for HMR2.0's, SMPL_to_J19.pkl")
    ARGUMENTS = ("tokenizer", "backbone", "models", "detections", "schedule", "top_k", "samples",
                 "brief")
    PRETRAINED = "ViTPose's, as HMR2.0's do (GenHMR is silent)"
    NEXT = "python demo.py genhmr PICTURE --checkpoint {checkpoint}"
    FIRST = 5  # T of the first row
    ITERATIONS = (1, 3, 5, 10, 15, 20)  # T of the last table (Table 2)
    REFINEMENTS = (1, 3, 5, 10, 20)  # P of the last table (Table 3)
    NOISE = 0.02  # of the crop: sigma of the 2D joints given to refinement (our choice)
    REMARK = ("T: iterations. mean code: one pass, each place decoded from its mean code. P: steps "
              "of refinement towards\ndetected 2D keypoints or, an oracle, the true joints (of "
              "Human3.6M 13 of its capture) with noise of sigma\n2 % of the crop's side. encoder: "
              "the pose that the small image encoder lifts; tokens: encoded and decoded.\nown 2D: "
              "the mean code at temperature 0.7, refined on the encoder's own keypoints.\n"
              + BodyTask.REMARK)
    COMPARED = (*((f"T={T}", "T=1") for T in (2, 5, 10, 20)), ("T=5 P=10", "T=5"),
                ("mean code", "T=1"), ("mean code", "encoder"), ("encoder, tokens", "encoder"),
                ("mean code, own 2D", "encoder"))

    @classmethod
    def load(cls, path: Path, arguments: argparse.Namespace) -> nn.Module:
        """Load a GenHMR of ours."""
        return load_checkpoint(path)

    @classmethod
    def adapt(cls, config: genhmr.Config, arguments: argparse.Namespace) -> genhmr.Config:
        """Return the config with that of the given tokenizer, and as wide as the small encoder."""
        if arguments.tokenizer:
            tokenizer = load_tokenizer(arguments.tokenizer)
            config = dataclasses.replace(config, tokenizer=tokenizer.config)
        if arguments.backbone and small_encoder.is_small(config):
            width = small_encoder.WIDTH + config.tokenizer.code_dim
            config = dataclasses.replace(config, vit_dim=width)
        return config

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        arguments, origin = self.arguments, self.origin
        starts, self.small = origin or arguments.checkpoint, small_encoder.is_small(self.config)
        require(starts or arguments.tokenizer, "--stage transformer predicts the tokens of a "
                "trained tokenizer: make one with --stage tokenizer and give its checkpoint with "
                "--tokenizer")
        require(starts or not self.small or arguments.backbone, "--stage transformer needs a "
                "trained encoder: make one with --stage encoder and give its checkpoint, or "
                "assets/genhmr_cpu.pt, with --backbone")
        require(arguments.samples is None or arguments.samples > 0,
                f"--samples {arguments.samples}: expected at least 1")
        judges = data.OFFICIAL.get(EVALUATIONS.get(self.protocol, ("",))[0])
        own = OWN if judges and judges.DETECTED else None
        self.detections = arguments.detections or own  # of the pictures to evaluate on
        # HMR2.0's files are not known to have true 2D joints
        self.refines = bool(self.detections) or not self.protocol.startswith("hmr2_")

    def data_set(self, split: str) -> Dataset:
        """A split of rendered people, or of official data."""
        size, training = self.config.image_size, split == "train"
        if self.data == "rendered":
            return self.rendered(data.RenderedBodies, split, size)
        return self.official(split, size, models=self.arguments.models,
                             augmentation=self.settings.augmentation if training else None,
                             **({} if training else {"detections": self.detections}))

    def build(self) -> nn.Module:
        """New weights around the tokenizer, but for the encoder if a file has it."""
        file = self.arguments.backbone
        model = build_genhmr(self.config, load_encoder(file) if file and self.small else None)
        if self.arguments.tokenizer:
            tokenizer = load_tokenizer(self.arguments.tokenizer)
            model.tokenizer.load_state_dict(tokenizer.state_dict())
        if file and not self.small:
            load_backbone(model, file)
        return model.train()

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Terms]:
        """L_total of all tokens, predicted from those that are not masked."""
        network = bare(model)
        batch = genhmr.mask_batch(network, batch)
        prediction = model(batch["image"], batch["masked_tokens"])
        terms = genhmr.losses(prediction, batch, network, self.light_body,
                              genhmr.gumbel_temperature(step, self.config))
        return genhmr.total_loss(terms, self.config), terms

    def points(self, batch: Batch) -> Tensor:
        """True joints and vertices (B, 24 + V, 3) of the samples whose pose is known, if any is."""
        known = batch["pose_valid"] > 0
        return super().points({name: batch[name][known] if known.any() else batch[name]
                               for name in ("betas", "pose")})

    def predict(self, model: nn.Module, batch: Batch, final: bool = False) -> Predictions:
        """Sample poses; at the end of a run for every T, and refined by every P."""
        features, first, arguments = model.encode(batch["image"]), self.FIRST, self.arguments
        if final and arguments.samples:
            return self.drawn(model, features, batch)
        final = final and not arguments.brief
        generator = torch.Generator(features.values.device)
        runs = {T: genhmr.sample_from(
            model, features, iterations=T, schedule=arguments.schedule or "cosine",
            top_k=1 if arguments.top_k is None else arguments.top_k,
            # the index of the first sample is the seed
            generator=generator.manual_seed(int(batch["index"][0])))
            for T in dict.fromkeys((first, *self.ITERATIONS[:len(self.ITERATIONS) * final]))}
        poses = {f"T={T}": run.rotations for T, run in runs.items()}
        if final:
            most = max(self.REFINEMENTS)
            oracle = self.data != "rendered" and self.detections is None
            kind = " oracle: true 2D" if oracle else ""
            if self.refines:
                refined = self.refined(model, runs[first], batch, most)  # (P + 1, B, 24, 3, 3)
                poses |= {f"T={first} P={P}{kind}": refined[P] for P in self.REFINEMENTS}
            mean = genhmr.sample_from(model, features, iterations=1, mean_code=True)
            poses["mean code"] = mean.rotations
            if self.refines:
                poses[f"mean code P={most}{kind}"] = self.refined(model, mean, batch, most)[-1]
        found = {name: {"pose": pose, "betas": runs[first].betas} for name, pose in poses.items()}
        if final and self.small:
            reading = model.backbone.read(model.normalise(batch["image"]))
            body = lifted_body(reading)
            # Sure codes and sure keypoints count most; numbers from training pictures (our choice)
            mean = genhmr.sample_from(model, features, iterations=1, mean_code=True,
                                      temperature=0.7)
            own = self.refined_on(model, mean, reading.at, reading.confidence**6, iterations=20,
                                  step_size=20.0)
            tokens = model.tokenizer.encode(body["pose"])
            found |= {"encoder": body,
                      "mean code, own 2D": {"pose": own[-1], "betas": mean.betas},
                      "encoder, tokens": body | {"pose": model.tokenizer.decode(tokens)}}
        return Predictions(batch["index"], found, {name: batch[name] for name in ("pose", "betas")})

    def drawn(self, model: nn.Module, features: genhmr.Features, batch: Batch) -> Predictions:
        """Draw poses of each picture for every T; found also has the pose of T = 1."""
        true = model.tokenizer.encode(batch["pose"])
        greedy = {T: genhmr.sample_from(model, features, iterations=T)
                  for T in posterior.ITERATIONS}
        joints = self.light_body(batch["betas"], batch["pose"]).joints
        found = {f"T={T}": {"pose": pose.rotations, "betas": pose.betas} | posterior.draw(
            model, features, self.light_body, true, T, self.arguments.samples,
            int(batch["index"][0])) for T, pose in greedy.items()}
        return Predictions(batch["index"], found, {
            "pose": batch["pose"], "betas": batch["betas"], "joints": joints - joints[:, :1],
            "inside": batch["keypoints_valid"][:, :genhmr.JOINTS].amin(1)})

    def errors(self, predictions: Predictions) -> Errors:
        """Compute the errors of all predictors; those of drawn poses are in tasks/posterior.py."""
        errors = super().errors(predictions)
        if "draws" in predictions.first:
            first, truth = predictions.first["draws"], predictions.truth["joints"]
            for name, found in predictions.found.items():
                errors[name] |= posterior.posterior_errors(found["draws"], first, truth) | {
                    "NLL": found["nll"], "kept %": found["kept"]}
        return errors

    def notes(self, predictions: Predictions) -> str:
        """Compare drawn poses with their control, of all, clear and truncated people."""
        inside, text = predictions.truth.get("inside"), ""
        if inside is None:
            return super().notes(predictions)
        groups = {"all": np.isfinite(inside), "clear": inside > 0, "truncated": inside == 0}
        for group, rows in groups.items():
            for name, errors in predictions.errors.items() if rows.sum() > 1 else ():
                energy, control, spread, error = (errors[column][rows] for column in (
                    "energy", "control", "spread", "error"))
                gain = energy - control
                ratio = np.sqrt(np.square(spread).mean() / np.square(error).mean())
                text += (f"{name}, {group} ({rows.sum()}): energy minus control {gain.mean():+.2f} "
                         f"+- {sem(gain):.2f}, spread / error {ratio:.2f}\n")
        return text

    def refined(self, model: nn.Module, sampled: genhmr.Sampled, batch: Batch,
                steps: int) -> Tensor:
        """Refine by 0 to P steps: (P + 1, B, 24, 3, 3).

        Towards a detector's keypoints, as they are, if the batch has them; else, an oracle, towards
        the true 2D joints with noise.
        """
        count, size = 24, model.config.image_size
        if "detected_2d" in batch:
            count, points = 45, batch["detected_2d"] / size - 0.5
            seen = batch["detected_confidence"]
            seen = seen * (seen >= LEAST_CONFIDENCE)
        else:
            noise = np.stack([np.random.default_rng(index).normal(0, self.NOISE, (count, 2))
                              for index in batch["index"].tolist()])
            points = batch["keypoints_2d"][:, :count] / size - 0.5
            points = points + torch.from_numpy(noise).to(points)
            seen = batch["keypoints_valid"][:, :count]
        return self.refined_on(model, sampled, points, seen, iterations=steps)

    def refined_on(self, model: nn.Module, sampled: genhmr.Sampled, points: Tensor,
                   confidence: Tensor, **options: float) -> Tensor:
        """Refine on keypoints (B, J, 2) by 0 to P steps: (P + 1, B, 24, 3, 3)."""
        def keypoints(betas: Tensor, pose: Tensor) -> Tensor:
            return self.light_body.keypoints(self.light_body(betas, pose))[:, :points.shape[1]]

        return genhmr.refine(model, sampled.embeddings, sampled.betas, sampled.camera, points,
                             confidence, keypoints, **options).poses

    # ---- official protocols

    def truth(self, predictions: Predictions) -> Mesh:
        """Return joints of motion capture, or meshes of each person's gender."""
        if self.data == "rendered":
            return super().truth(predictions)
        records = self.test_set.records(predictions.index)
        if self.protocol in ("h36m_p2_lsp14", "hmr2_lsp14", "hmr2_h36m_lsp14"):
            return {"joints": data.relabelled(records["keypoints_3d"], self.test_set.JOINTS,
                                              "j17")[..., :3]}
        truth = {name: np.empty((len(records), count, 3), np.float32)
                 for name, count in (("joints", 24), ("vertices", len(self.body.v_template)))}
        for number in np.unique(records["gender"]):
            rows = records["gender"] == number
            body = self.test_set.body(data.GENDERS[number], num_betas=10)
            posed = body(*(torch.from_numpy(predictions.truth[name][rows])
                           for name in ("betas", "pose")))
            truth["joints"][rows], truth["vertices"][rows] = posed.joints, posed.vertices
        return self.regressed(truth)

    def judge(self, mesh: Mesh, truth: Mesh) -> dict[str, np.ndarray]:
        """Compute the protocol's errors; on official data with the joints that it regresses."""
        return super().judge(self.regressed(mesh), truth)

    def regressed(self, mesh: Mesh) -> Mesh:
        """Add the protocol's 17 joints, for protocols that score 14 of them."""
        if metrics.PROTOCOLS[self.protocol].joints != "j17":
            return mesh
        return mesh | {"joints": np.einsum("jv,nvc->njc", self.regressor, mesh["vertices"])}

    @functools.cached_property
    def regressor(self) -> np.ndarray:
        """The regressor (17, V) of the protocol's joints "j17": HMR2.0's or SPIN's.

        SPIN's J_regressor_h36m has the left leg first; Moon's file of that name is refused.
        """
        if self.protocol.startswith("hmr2_"):
            path = Path(self.arguments.models, "SMPL_to_J19.pkl")
            return load_regressor(path, 19, self.body)[bodymodels.joint_indices("j24", "j17")]
        path = Path(self.arguments.models, "J_regressor_h36m.npy")
        regressor = load_array(path).astype(np.float32)
        rest = regressor @ self.body.v_template.cpu().numpy()
        require(rest[1, 0] > rest[4, 0],
                f"{path} has the right leg first: take SPIN's file, not Moon's")
        return regressor[bodymodels.joint_indices("h36m17_spin", "j17")]


STAGES = {"tokenizer": TokenizerTask, "encoder": EncoderTask, "transformer": TransformerTask}
