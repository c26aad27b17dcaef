"""The tables and figures of GenHMR's paper: --model genhmr --ablate table2, or --figure 5."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import bodymodels
import genhmr
from tasks import ablations, genhmr_figures
from tasks.ablations import Row, Table, share_a_part
from tasks.base import Batch, Predictions
from tasks.genhmr import TokenizerTask, TransformerTask
from tasks.settings import override, own_overrides

SHIPPED = bodymodels.ASSETS / "genhmr_cpu.pt"
PAPER = ("3DPW MPJPE", "3DPW MVE", "EMDB MPJPE", "EMDB MVE")
OURS = ("MPJPE", "MVE", "PA-MPJPE")  # on the rendered test split, or by the protocol asked for
POSES = Table(("AMASS MPJPE", "AMASS MVE", "MOYO MPJPE", "MOYO MVE"), ("MPJPE", "MVE"), {})

# ------------------------------------------------------------------ rows that are only scored

FIVE = (68.1, 77.5, 88.2, 99.5)  # T = 5, P = 0, greedy, cosine: a row of most tables
CURVES: dict[str, dict[int, tuple[float, ...]]] = {  # Table 11: schedule -> T -> the paper's
    "cosine": {1: (73.5, 84.2, 92.2, 104.5), 3: (70.2, 81.9, 89.8, 101.6), 5: FIVE,
               10: (67.8, 79.1, 87.5, 98.3), 15: (67.6, 78.5, 87.1, 96.6),
               20: (67.4, 78.1, 86.8, 95.4)},
    "cubic": {5: (69.7, 78.9, 89.8, 101.2), 10: (69.1, 79.1, 89.0, 100.1),
              15: (68.8, 79.0, 88.5, 99.3), 20: (68.6, 79.2, 88.2, 98.7)},
    "linear": {5: (71.6, 81.2, 91.7, 103.1), 10: (71.3, 80.7, 91.2, 102.4),
               15: (71.0, 80.9, 90.8, 101.3), 20: (70.8, 81.1, 90.3, 100.6)},
    "sqrt": {5: (73.4, 82.8, 93.5, 104.9), 10: (73.1, 83.0, 93.1, 104.2),
             15: (73.3, 83.3, 93.3, 104.6), 20: (73.6, 83.5, 93.6, 105.0)},
}
SAMPLED: dict[str, Table] = {  # changes: of `poses`
    "table2": Table(PAPER, OURS, {
        f"T = {T}": Row({"iterations": T}, paper) for T, paper in CURVES["cosine"].items()}),
    "table3": Table((*PAPER, "H36M MPJPE"), OURS, {
        "UGS": Row({"refinement": 0}, (*FIVE, 37.1)),
        "P = 1": Row({"refinement": 1}, (66.5, 77.0, 86.5, 96.5, 36.2)),
        "P = 3": Row({"refinement": 3}, (63.6, 73.5, 83.7, 92.1, 35.1)),
        "P = 5": Row({"refinement": 5}, (60.2, 70.4, 79.1, 87.5, 34.3)),
        "P = 10": Row({"refinement": 10}, (57.5, 68.5, 73.5, 82.0, 33.2)),
        "P = 20": Row({"refinement": 20}, (54.7, 67.5, 68.5, 76.4, 33.5))},
        note="UGS: sampling with 5 iterations, from which the P steps of refinement start. They "
             "follow true 2D joints with noise of 2 % of the crop's side, the paper's OpenPose's."),
    "table11": Table(PAPER, OURS, {
        f"{schedule}, T = {T}": Row({"iterations": T, "schedule": schedule}, paper)
        for schedule, rows in CURVES.items() for T, paper in rows.items()},
        note="Orderings: rows of one schedule, and schedules at one T.", related=share_a_part),
    "table12": Table(PAPER, OURS, {
        f"top-{k}": Row({"top_k": k}, paper) for k, paper in {
            1: FIVE, 2: (75.7, 90.3, 98.2, 116.9), 5: (85.1, 98.6, 108.6, 123.1),
            10: (90.5, 110.1, 118.1, 130.6), 20: (98.9, 120.6, 130.9, 140.3)}.items()},
        note="A k above the number of codes is not run."),
}
SHOWN = {"T = 1": Row({"iterations": 1}, ()), "T = 5": Row({}, ()),
         "P = 1": Row({"refinement": 1}, ()), "P = 10": Row({"refinement": 10}, ())}  # in a figure

# ---------------------------------------------------------------------- rows that are trained


def losses(*names: str) -> dict[str, float]:
    """Set weights of 0 for the terms of L_total that a row of Table 10 leaves out."""
    every = ("mask", "pose", "keypoints_3d", "keypoints_2d", "betas")
    return {f"weight_{name}": 0.0 for name in every if name not in names}


CODES = {"1024 x 256": {"codebook_size": 1024}, "2048 x 128": {"code_dim": 128}, "2048 x 256": {},
         "4096 x 256": {"codebook_size": 4096}}
TOKENS = {f"{count} tokens": {"num_tokens": count} for count in (48, 96, 192, 384)}
TOKENIZED: dict[str, Table] = {  # changes: of TokenizerConfig
    "table5": dataclasses.replace(POSES, rows={name: Row(CODES[name], paper) for name, paper in {
        "1024 x 256": (10.5, 9.2, 16.2, 14.5), "2048 x 128": (8.9, 8.1, 13.9, 12.7),
        "2048 x 256": (8.5, 7.8, 13.4, 12.2), "4096 x 256": (6.1, 5.9, 9.0, 8.4)}.items()}),
    "table6": dataclasses.replace(POSES, rows={name: Row(TOKENS[name], paper) for name, paper in {
        "48 tokens": (11.1, 10.5, 16.7, 15.3), "96 tokens": (8.5, 7.8, 13.4, 12.2),
        "192 tokens": (7.8, 6.9, 11.5, 10.8), "384 tokens": (7.1, 6.0, 10.7, 10.2)}.items()}),
}
TRAINED: dict[str, Table] = {  # changes: of Config, and as "tokenizer" those of TokenizerConfig
    "table4": Table(PAPER, OURS, {
        f"tau up to {tau}": Row({"tau_max": tau}, paper) for tau, paper in {
            1.0: FIVE, 0.3: (72.1, 84.2, 93.5, 105.3), 0.5: (69.8, 81.7, 90.2, 101.5),
            0.7: (67.9, 77.1, 88.7, 99.4)}.items()}),
    "table8": Table(PAPER, OURS, {
        f"{start} to {end}": Row({"temperature_start": start, "temperature_end": end}, paper)
        for (start, end), paper in {
            (2.0, 0.01): (90.1, 99.5, 110.2, 120.5), (2.0, 0.1): (85.4, 95.9, 105.7, 115.8),
            (1.5, 0.01): (78.3, 88.2, 96.5, 107.3), (1.5, 0.05): (82.1, 91.6, 100.3, 111.1),
            (1.2, 0.01): (74.5, 83.2, 92.0, 103.5), (1.0, 0.01): FIVE,
            (0.8, 0.01): (68.0, 78.2, 88.8, 99.1), (0.5, 0.1): (77.2, 86.0, 98.3, 109.7),
        }.items()}),
    "table9": Table(PAPER, OURS, {
        f"{percent} %": Row({"temperature_duration": percent / 100}, paper)
        for percent, paper in {
            50: FIVE, 75: (80.5, 89.4, 99.7, 110.5), 100: (68.9, 78.2, 88.9, 98.8),
            125: (70.0, 79.0, 89.5, 99.2), 150: (72.5, 81.0, 90.8, 100.7),
            200: (75.2, 84.1, 94.3, 105.0)}.items()}),
    "table10": Table((*PAPER, "3DPW PA-MPJPE", "EMDB PA-MPJPE"), OURS, {
        ", ".join(names): Row(losses(*names), paper) for names, paper in {
            ("mask", "pose", "keypoints_3d", "keypoints_2d", "betas"): (*FIVE, 42.1, 51.7),
            ("mask", "betas"): (80.5, 92.5, 98.8, 113.9, 45.5, 60.8),
            ("pose", "betas"): (82.0, 95.6, 100.7, 118.0, 48.5, 61.7),
            ("keypoints_3d", "betas"): (87.5, 146.4, 110.9, 160.8, 57.9, 67.9),
            ("keypoints_2d", "betas"): (1160.6, 1167.7, 1180.8, 1190.7, 103.6, 110.7),
            ("mask", "pose", "betas"): (80.0, 91.5, 97.6, 110.6, 45.1, 58.9),
            ("mask", "pose", "keypoints_3d", "betas"): (78.5, 90.0, 93.7, 106.9, 43.7, 56.9),
        }.items()}),
    "table13": Table(PAPER, OURS, {
        name: Row({"tokenizer": CODES[name]}, paper) for name, paper in {
            "1024 x 256": (70.1, 82.5, 90.2, 103.7), "2048 x 128": (69.9, 80.3, 89.2, 99.9),
            "2048 x 256": FIVE, "4096 x 256": (69.5, 80.4, 90.4, 100.4)}.items()}),
    "table14": Table(PAPER, OURS, {
        name: Row({"tokenizer": TOKENS[name]}, paper) for name, paper in {
            "48 tokens": (68.5, 80.5, 92.6, 105.6), "96 tokens": FIVE,
            "192 tokens": (72.5, 83.6, 96.8, 110.7), "384 tokens": (82.5, 91.5, 101.4, 135.4),
        }.items()}),
    "table15": Table(("3DPW MPJPE", "EMDB MPJPE"), OURS, {
        "maps " + ", ".join(f"{scale}x" for scale in scales): Row({"scales": scales}, paper)
        for scales, paper in {
            (1, 4, 8, 16): (68.3, 88.3), (1,): (71.3, 92.3), (1, 4): (69.8, 90.3),
            (1, 4, 8): (68.8, 89.3), (4, 8, 16): (68.8, 88.8), (1, 8, 16): (69.3, 89.8),
            (1, 4, 16): (69.8, 89.9)}.items()}),
    "table16": Table(PAPER, OURS, {
        f"{count} layers": Row({"layers": count}, paper) for count, paper in {
            2: (70.5, 85.9, 94.8, 107.0), 4: FIVE, 6: (69.5, 77.1, 88.1, 100.2),
            8: (70.9, 79.9, 91.9, 104.9)}.items()}),
}
# What rows have in place of the cpu preset's fields, if no --preset is given, so that a table with
# three seeds takes hours, not days.
SCALE: dict[str, tuple[str, ...]] = {
    "tokenizer": ("steps=600", "eval_every=600"),
    "transformer": ("steps=240", "pretrain_steps=80", "warmup_steps=40", "eval_every=240",
                    "train_samples=6000", "layers=4"),
}
TABLES = dict(sorted((SAMPLED | TOKENIZED | TRAINED).items(), key=lambda item: int(item[0][5:])))


def scaled(config: genhmr.TokenizerConfig, changes: Mapping[str, int]) -> genhmr.TokenizerConfig:
    """Apply a row's changes; codes and their dimension keep their ratio to the paper's 2048 x 256.

    Tokens do not: 24 * 2^k is possible at any scale.
    """
    paper = genhmr.TokenizerConfig()
    values = {name: value if name == "num_tokens" else
              max(1, getattr(config, name) * value // getattr(paper, name))
              for name, value in changes.items()}
    return dataclasses.replace(config, **values)


# -------------------------------------------------------------------------------------- task


class PaperTask(TransformerTask):
    """Tables and figures: several runs of both stages, or one evaluation with other predictors."""

    TRAINS = False
    ARGUMENTS = {name: TransformerTask.ARGUMENTS[name]
                 for name in ("tokenizer", "backbone", "models")} | ablations.arguments(TABLES) | {
        "figure": {"choices": ("4", "5", "6", "7", "11", "sampling", "iterations"), "help": "draw "
                   "this figure of the paper, or one of ours about sampling, of --checkpoint "
                   "(default: the shipped one)"},
        "pictures": {"metavar": "N,N", "help": "pictures of the test split that --figure shows "
                     "(default: helped most, median, helped least)"},
    }

    @classmethod
    def plan(cls, arguments: argparse.Namespace,
             parse: ablations.Parse) -> Iterator[argparse.Namespace]:
        """Yield the runs of a table, or the evaluation that a table or figure needs."""
        if arguments.figure == "7":
            genhmr_figures.draw_schedules(arguments.out / "figure7.png")
        elif arguments.ablate in TOKENIZED or arguments.ablate in TRAINED:
            yield from train_rows(arguments, parse)
        else:
            yield from score_rows(arguments, parse)

    @classmethod
    def folder(cls, arguments: argparse.Namespace) -> Path:
        """The default of --out."""
        return Path("runs", "genhmr-ablations" if arguments.ablate else "genhmr-figures")

    @classmethod
    def check_arguments(cls, arguments: argparse.Namespace) -> None:
        """Raise ValueError unless one table or figure is asked for, and can be."""
        if (arguments.ablate is None) == (arguments.figure is None):
            raise ValueError("genhmr is trained in stages, each a run of its own: add --stage "
                             "tokenizer, then --stage encoder, then --stage transformer; or ask "
                             "for a table or figure of the paper with --ablate or --figure")
        ablations.check_arguments(arguments, TABLES)
        trains = arguments.seeds or arguments.ablate not in (None, *SAMPLED)
        if trains and arguments.checkpoint:
            raise ValueError("a table that trains its rows starts from new weights: leave "
                             "--checkpoint out")
        if trains and arguments.data not in (None, "rendered"):
            raise ValueError(f"--ablate {arguments.ablate} trains on rendered data: leave --data "
                             f"out; {', '.join(SAMPLED)} without --seeds score other data, too")

    def predict(self, model: nn.Module, batch: Batch, final: bool = False) -> Predictions:
        """Predict the poses of every row; for Figures 5 and 6 also masks and confidences."""
        features = model.encode(batch["image"])
        if self.arguments.figure in ("5", "6"):
            return self.traced(model, features, batch)
        if self.arguments.figure == "iterations":
            return self.told_and_iterated(model, features, batch)
        poses, rows = {}, SHOWN
        if self.arguments.figure != "sampling":
            rows = SAMPLED[self.arguments.ablate or "table3"].rows
        most = max(row.changes.get("refinement", 0) for row in rows.values())
        sampled = self.sample(model, features, batch, 5)
        refined = self.refined(model, sampled, batch, most) if most else ()
        for name, row in rows.items():
            options = {"iterations": 5, **row.changes}
            if "refinement" in options:
                poses[name] = refined[options["refinement"]]
            elif options.get("top_k", 1) <= model.config.tokenizer.codebook_size:
                poses[name] = self.sample(model, features, batch, **options).rotations
        return self.beside_truth(model, batch, sampled, poses)

    def traced(self, model: nn.Module, features: genhmr.Features, batch: Batch) -> Predictions:
        """Ten iterations of sampling, and after each the masked tokens and their confidence."""
        sampled = self.sample(model, features, batch, genhmr_figures.ITERATIONS)
        predictions = self.beside_truth(model, batch, sampled, {"UGS": sampled.rotations})
        predictions.found["UGS"] |= {"masks": sampled.masks[1:].transpose(0, 1),
                                     "confidences": sampled.confidences.transpose(0, 1)}
        return predictions

    def told_and_iterated(self, model: nn.Module, features: genhmr.Features,
                          batch: Batch) -> Predictions:
        """Sample with each T, with and without oracles; for T = 5 also mark the right tokens."""
        poses, runs = {}, {}
        for name, (features_of, percent) in {
            "as it is": (features, 0),
            **{f"told {percent} % of the tokens": (features, percent)
               for percent in genhmr_figures.TOLD},
            **({"told the 2D keypoints": (self.told_keypoints(model, batch), 0)}
               if model.config.backbone == "pose" else {}),
        }.items():
            true, told = self.partly_masked(model, batch, percent)
            for T in genhmr_figures.COUNTS:
                runs[T] = genhmr.sample_from(model, features_of, iterations=T, told=told)
                poses[f"{name}, T = {T}"] = runs[T].rotations
            if name == "as it is":
                first, right = runs[5], runs[5].tokens == true
        predictions = self.beside_truth(model, batch, first, poses)
        predictions.found["as it is, T = 5"] |= {
            "right": right, "confidence": first.confidences[-1],
            "kept": 1 + first.masks[1:].sum(0)}  # in which iteration, 1 to 5
        return predictions

    @staticmethod
    def told_keypoints(model: nn.Module, batch: Batch) -> genhmr.Features:
        """Compute the features as if the encoder had found each 2D keypoint exactly."""
        encoder = model.backbone
        seen = encoder(encoder.normalise(batch["image"]))
        at = batch["keypoints_2d"] / model.config.image_size - 0.5
        at = at.clamp(encoder.centres.amin(0), encoder.centres.amax(0))
        lifted = encoder.lift(at, seen.share, torch.cat((seen.found.flatten(1), seen.whole), 1))
        return model.pose_features(seen._replace(at=at, lifted=lifted))

    def write(self, predictions: Predictions, out: Path) -> None:
        """Write the figure, or what the rows of a table have in common."""
        if self.arguments.figure is None:
            return super().write(predictions, out)
        path = out / f"{figure_name(self.arguments)}.png"
        if self.arguments.figure == "iterations":
            return genhmr_figures.draw_iterations(predictions, path)
        pictures = [int(number) for number in (self.arguments.pictures or "").split(",") if number]
        genhmr_figures.draw(self.arguments.figure, self, predictions, pictures, path)


# ---------------------------------------------------------------------------------- the runs


def figure_name(arguments: argparse.Namespace) -> str:
    """The name of the figure's folder and file: figure5, say, or sampling."""
    return ("figure" if arguments.figure.isdigit() else "") + arguments.figure


def text_of(arguments: argparse.Namespace, found: ablations.Found, about: str) -> str:
    """The table in Markdown."""
    name = arguments.ablate
    return ablations.table_text(
        f"GenHMR, {name.replace('table', 'Table ')}", TABLES[name], found,
        f"`python train.py {shlex.join(arguments.argv)}`\n\n{about} Errors in mm; of several seeds "
        "mean ± standard deviation.")


def score_rows(arguments: argparse.Namespace,
               parse: ablations.Parse) -> Iterator[argparse.Namespace]:
    """Run the evaluations of a table or figure: of a checkpoint, or of one new model per seed."""
    name = arguments.ablate or figure_name(arguments)
    checkpoint, found = arguments.checkpoint or SHIPPED, defaultdict(dict)
    about = f"{checkpoint.name} on {arguments.protocol or 'the rendered test split'}"
    for seed in range(arguments.seeds or 1):
        out = arguments.out / name
        if arguments.seeds:
            runs = StageRuns(arguments, parse)
            about, out = runs.about(), out / f"seed {seed}"
            folder = yield from runs.transformer({}, runs.configs["transformer"].seed + seed)
            checkpoint = folder / "checkpoint.pt"
        yield argparse.Namespace(**vars(arguments) | {
            "eval": True, "out": out, "checkpoint": checkpoint, "tokenizer": None,
            "overrides": own_overrides(arguments.overrides, TransformerTask.Config,
                                       [TokenizerTask.Config])})
        for row in SAMPLED[name].rows if arguments.ablate else ():
            errors = ablations.errors_of(out, row, OURS)
            if errors is not None:
                found[row][seed] = errors
    if arguments.ablate:
        ablations.write(arguments.out / f"{name}.md", text_of(
            arguments, found, f"Ours: {about}. `python -m benchmarks genhmr` measures time, the "
                              "paper's AITI."))


def train_rows(arguments: argparse.Namespace,
               parse: ablations.Parse) -> Iterator[argparse.Namespace]:
    """The runs of a table whose rows are trained.

    A run has a folder in OUT named by the fields it changes, so tables share rows and tokenizers,
    and finished runs are kept.
    """
    runs = StageRuns(arguments, parse)
    table, of_poses = TABLES[arguments.ablate], arguments.ablate in TOKENIZED

    def row_run(row: str, seed: int) -> Generator[argparse.Namespace, None, np.ndarray]:
        changes = table.rows[row].changes
        if of_poses:
            out = yield from runs.tokenizer(changes, seed)
            return ablations.errors_of(out, "tokenizer", table.ours)
        out = yield from runs.transformer(changes, seed)
        return ablations.errors_of(out, "T=5", table.ours)

    config = runs.configs["tokenizer" if of_poses else "transformer"]
    first = config.seed
    return ablations.score_rows(
        arguments.out / f"{arguments.ablate}.md", table.rows,
        range(first, first + (arguments.seeds or 1)), row_run,
        lambda found: text_of(arguments, found, f"Ours: {runs.about(of_poses)}."))


class StageRuns:
    """Runs of both stages, with changes of what a preset has."""

    def __init__(self, arguments: argparse.Namespace, parse: ablations.Parse) -> None:
        self.arguments, self.parse = arguments, parse
        self.preset = arguments.preset or "cpu"
        kinds = {"tokenizer": TokenizerTask, "transformer": TransformerTask}
        self.overrides = {stage: [*(() if arguments.preset else SCALE[stage]), *own_overrides(
            arguments.overrides, kind.Config, [other.Config for other in kinds.values()])]
            for stage, kind in kinds.items()}
        self.configs = {stage: override(ablations.preset_of(kind.PRESETS, self.preset, "genhmr"),
                                        self.overrides[stage]) for stage, kind in kinds.items()}
        self.flags = ablations.without(arguments.argv, "ablate", "seeds", "set", "tokenizer",
                                       "backbone", "checkpoint", "models")
        small = self.configs["transformer"].backbone == "pose"
        self.backbone = arguments.backbone or (SHIPPED if small else None)
        if self.backbone and not Path(self.backbone).is_file():
            raise ValueError(f"no encoder {self.backbone}: give one of --stage encoder with "
                             "--backbone")

    def run(self, stage: str, folder: str, changes: Sequence[str], seed: int, extra: Sequence[str],
            expected: Mapping[str, object]) -> Generator[argparse.Namespace, None, Path]:
        """Yield one run, unless it is done; return its folder."""
        out = self.arguments.out / folder / f"seed {seed}"
        yield from ablations.run(
            f"{folder}, seed {seed}", out, lambda: self.parse([
                *self.flags, "--stage", stage, "--preset", self.preset, "--out", str(out), *extra,
                "--set", *self.overrides[stage], *changes, f"seed={seed}"]),
            {**expected, "seed": seed})
        return out

    def tokenizer(self, changes: Mapping[str, int], seed: int
                  ) -> Generator[argparse.Namespace, None, Path]:
        """A tokenizer with some fields changed."""
        config = self.configs["tokenizer"]
        changed = scaled(config, changes)
        settings = ablations.settings(config, changed)
        return self.run("tokenizer", " ".join(["tokenizer", *settings]), settings, seed, (),
                        vars(changed))

    def transformer(self, changes: Mapping[str, object], seed: int
                    ) -> Generator[argparse.Namespace, None, Path]:
        """A transformer with some fields changed, on its tokenizer or on that of --tokenizer."""
        arguments, config = self.arguments, self.configs["transformer"]
        fields = {name: value for name, value in changes.items() if name != "tokenizer"}
        of_tokenizer = changes.get("tokenizer", {})
        tokenizer = arguments.tokenizer
        if of_tokenizer or not tokenizer:
            folder = yield from self.tokenizer(of_tokenizer, seed)
            tokenizer = folder / "checkpoint.pt"
        base = self.configs["tokenizer"]
        settings = ablations.settings(config, dataclasses.replace(config, **fields))
        names = [f"tokenizer.{text}" for text in ablations.settings(
            base, scaled(base, of_tokenizer))] + settings
        extra = ["--tokenizer", str(tokenizer), "--brief"]
        if self.backbone:
            extra += ["--backbone", str(self.backbone)]
        changed = dataclasses.replace(config, **fields)
        expected = {name: value for name, value in vars(changed).items()
                    if name != "image_size"}  # this one comes with --backbone
        return (yield from self.run("transformer", " ".join(names or ["unchanged"]), settings, seed,
                                    extra, expected))

    def about(self, of_poses: bool = False) -> str:
        """Describe the size of our runs, for the table."""
        pose, model = self.configs["tokenizer"], self.configs["transformer"]
        text = (f"tokenizers of {pose.codebook_size} x {pose.code_dim} where the paper has "
                f"2048 x 256, {pose.steps:,} steps of {pose.batch_size} poses")
        if not of_poses:
            text += (f"; transformers, {model.steps:,} steps of {model.batch_size} rendered "
                     f"pictures of {model.image_size} px, T = 5")
        return text
