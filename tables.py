"""Train and score the rows of the three papers' tables, and write ours beside the paper's figures.

    python tables.py simplehand table5 --seeds 3          # free data, small models
    python tables.py genhmr table2                        # of the shipped or a given --checkpoint
    python tables.py hmr_adapter table6 --set steps=100   # other flags go on to train.py
    torchrun --nproc-per-node 8 tables.py simplehand table4 --data freihand --data-root FOLDER \\
        --test-root FOLDER --hand MANO_RIGHT.pkl --backbone hiera_tiny.pth        # official data
    torchrun --nproc-per-node 2 tables.py genhmr table13 --data genhmr-sd --data-root FOLDER \\
        --models SMPL --protocol 3dpw_lsp14 --test-root 3DPW --backbone vitpose_backbone.pth \\
        --tokenizers "--data amass --data-root AMASS --body SMPL_NEUTRAL.pkl"
    python tables.py genhmr table1 --checkpoint FILE --protocol 3dpw_lsp14 --data-root 3DPW \\
        --models SMPL                                          # also table2 and table3
    torchrun --nproc-per-node 4 tables.py hmr_adapter table3 --data arctic --data-root FOLDER \\
        --models MODELS --checkpoint hamer.ckpt --guide smpler_x_h32.pth.tar

Rows and the papers' figures are in assets/tables.md. Without --preset and --data rows are trained
small, on rendered data; with --data by the preset "paper". Every run has a folder in OUT named by
what it changes, so tables share rows, and the same command continues where it ended. OUT/TABLE.md
and, of rows that are trained, OUT/TABLE.png, their test errors over steps, are written anew after
each row.

Tables of several data sets have one model for all: --on "--protocol emdb1_24 --test-root EMDB"
(MOYO: moyo_val, EHF: ehf) scores the same runs there, into OUT/TABLE PROTOCOL.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import bodymodels
import train
from networks.adapter_rivals import count, on_meta
from networks.backbones import simplehand_model
from tasks.base import EVALUATIONS
from tasks.files import read_table, save_figure
from tasks.ranks import announce
from tasks.settings import Settings, as_text, override, own_overrides, preset_settings

Scores = Mapping[str, Mapping[int, np.ndarray]]  # row -> seed -> our columns: means (C,), or (N, C)
# of N samples, the same in every row; NaN for a sample that does not count
SHIPPED = {part: str(bodymodels.ASSETS / f"{name}_cpu.pt") for part, name in (
    ("genhmr", "genhmr"), ("hand", "hmr_adapter_hand"), ("body", "hmr_adapter_body"))}
# What rows have in place of the cpu preset's fields if neither --preset nor --data is given, so
# that three seeds take hours, not days.
SCALE = {
    "tokenizer": ("steps=600", "eval_every=600"),
    "transformer": ("steps=240", "warmup_steps=40", "eval_every=240", "train_samples=6000",
                    "layers=4"),
} | dict.fromkeys(("hand", "body"), ("steps=500", "eval_every=500", "train_samples=6000"))
PAPER_SIZES = {"dims": 256, "codebook_size": 2048, "code_dim": 256}  # rows keep their ratio


@dataclass(frozen=True)
class Table:
    """A table of a paper."""

    paper: tuple[str, ...]  # columns
    figures: Mapping[str, list[str]]  # the paper's rows, as it prints them; "-": none
    words: Mapping[str, list[str]]  # settings and marks that make our rows
    note: str  # what a reader has to know about it
    kind: str  # the method of Runs that makes a row
    ours: tuple[str, ...]  # columns
    judges: tuple[str, ...]  # of ours, by which orderings of rows are compared
    stage: str = ""  # that is trained
    predictor: str = ""  # of the stage's run
    backbone: str = ""  # SimpleHand's, in presets of the paper's size
    related: str = ""  # if set, compare only rows whose names share a part between commas


def read_tables(path: Path = bodymodels.ASSETS / "tables.md") -> dict[str, dict[str, Table]]:
    """Read the tables: model -> "table1", ... -> table."""
    tables = {}
    for section in path.read_text().split("\n## ")[1:]:
        model, name = section.split("\n", 1)[0].split()
        facts = {fact: tuple(text.split(", ")) if fact in ("ours", "judges") else text
                 for fact, text in re.findall(r"^- (\w+): (.+)$", section, re.M)}
        heads, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")]
                            for line in re.findall(r"^\|.+\|$", section, re.M))
        words = {row: [] if made == "the model" else made.split()
                 for row, *_, made in lines if made != "-"}
        tables.setdefault(model, {})[name] = Table(
            tuple(heads[1:-1]), {row: paper for row, *paper, _ in lines}, words,
            " ".join(section.rpartition("|\n")[2].split()), **facts)
    return tables


TABLES = read_tables()


def scaled(config: object, words: Sequence[str]) -> object:
    """Apply a row's settings, FIELD=VALUE in the paper's sizes, at the config's own scale.

    CELLS is the number of cells of X_b, x2 twice the config's value. Words without "=" are marks.
    """
    settings = []
    for name, text in (word.split("=") for word in words if "=" in word):
        text = text.replace("CELLS", str((getattr(config, "image_size", 0) // 32) ** 2))
        if text == "x2":
            text = str(2 * getattr(config, name))
        elif name in PAPER_SIZES:
            own = np.atleast_1d(getattr(config, name))[0]
            text = ",".join(str(max(1, own * int(part) // PAPER_SIZES[name]))
                            for part in text.split(","))
        settings.append(f"{name}={text}")
    return override(settings, config)[0]


def differences(config: object, changed: object) -> list[str]:
    """List the --set assignments that turn the first config into the second."""
    return [f"{name}={as_text(value)}" for name, value in vars(changed).items()
            if value != getattr(config, name)]


HANDS = train.TASKS["simplehand"].PRESETS
BACKBONES = {name: differences(HANDS["paper"], HANDS[f"paper_{name}"])
             for name in ("hrnet", "hiera")}  # in presets of the paper's size


def protocol_of(flags: Sequence[str]) -> str:
    """Return the protocol that flags of train.py name; empty if they name none."""
    return flags[flags.index("--protocol") + 1] if "--protocol" in flags[:-1] else ""


def errors_of(out: Path, predictor: str, metrics: Sequence[str]) -> np.ndarray:
    """Read columns (N, C) of a run's errors.npz: a predictor's errors in every sample, or NaN.

    A dual path is read with all hands merged, as the paper does; a hand's error is that of its
    group, "clear" or "occluded".
    """
    with np.load(out / "errors.npz") as file:
        errors = dict(file)
    for name in (f"{predictor}, all hands", predictor, f"{predictor} oracle: true 2D"):
        known = [values for key, values in errors.items() if key.startswith(f"{name}: ")]
        if known:
            groups = [[errors.get(f"{name}: {group}{metric}", np.full_like(known[0], np.nan))
                       for group in ("", "clear ", "occluded ")] for metric in metrics]
            unknown = np.isnan(groups).all(1)  # (C, N)
            return np.where(unknown, np.nan, np.nansum(groups, 1)).T
    return np.full((1, len(metrics)), np.nan)


class Runs:
    """The runs of a table: train.py in this process, each run in a folder of its own in OUT."""

    def __init__(self, options: argparse.Namespace, flags: Sequence[str]) -> None:
        self.options, self.flags, self.model = options, list(flags), options.model
        self.table, self.world = TABLES[options.model][options.table], None
        self.tasks = {name.partition("-")[2]: task for name, task in train.TASKS.items()
                      if name.partition("-")[0] == self.model}  # by stage
        self.official = bool(options.data or "data=" in str(self.table.words))
        small = "ablation" if self.model == "simplehand" else "cpu"
        self.preset = options.preset or ("paper" if self.official else small)
        self.small, self.done = self.preset in ("cpu", "ablation"), set()
        self.last: Path | None = None  # folder of the last row's own training
        self.on = shlex.split(options.on or "")  # flags of all --eval, in place of the training's
        self.judge = protocol_of(self.on)
        scored_on = EVALUATIONS.get(self.judge or protocol_of(self.flags), ("",))[0]
        self.set = scored_on.split("-")[0].upper()  # as the papers write it
        given = {"genhmr": options.checkpoint, "hand": options.checkpoint, "body": options.guide}
        self.files = {part: file or SHIPPED[part] for part, file in given.items()}

    def run(self, out: Path, *flags: object) -> Path:
        """Do a run of train.py, unless the folder has it; ValueError if it has another one."""
        argv = ["--model", self.model, *map(str, flags), "--out", str(out)]
        if out not in self.done and ("--eval" in argv or not (out / "results.json").exists()):
            announce(f"\n{self.model} {self.options.table}: {out}")
            self.world = train.run(argv, self.world)
            self.world.share(None)  # the leader writes results last
        elif out not in self.done:
            results = json.loads((out / "results.json").read_text())
            train.require_same_run(train.parse_arguments(argv), results)
        self.done.add(out)
        return out

    def stage_flags(self, stage: str, *dropped: str) -> list[str]:
        """The flags for a stage: --data, and all for train.py that not only other stages have."""
        foreign = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in {name for task in self.tasks.values() for name in task.ARGUMENTS} | {*dropped}:
            if name in dropped or name not in self.tasks[stage].ARGUMENTS:
                foreign.add_argument(f"--{name.replace('_', '-')}",
                                     action="store_true" if name == "brief" else "store")
        data = "" if "data" in dropped else self.options.data
        if data == "hmr-adapter":
            data += "-hands" if stage == "hand" else "-body"
        return [*(["--stage", stage] if stage else []), *(["--data", data] if data else []),
                *foreign.parse_known_args(self.flags)[1]]

    def settings(self, stage: str) -> tuple[object, Settings, list[str]]:
        """What a stage has without a row's changes, and the --set assignments that make it."""
        task = self.tasks[stage]
        if self.preset not in task.PRESETS:
            raise ValueError(f"no preset {self.preset!r}: expected {', '.join(task.PRESETS)}")
        preset, own = task.PRESETS[self.preset], []
        if not self.options.preset and not self.official:
            own += SCALE.get(stage, ())
        if self.table.backbone and not self.small:
            own += BACKBONES[self.table.backbone]
        own += own_overrides(self.options.overrides, task, self.tasks.values())
        settings = preset_settings(task.SETTINGS, self.preset)
        return *override(own, preset, settings), own

    def trained(self, stage: str, words: Sequence[str], seed: int, *flags: object,
                label: Sequence[str] = ()) -> Path:
        """Train a stage with a row's changes; label: what else differs, for the folder's name."""
        config, _, own = self.settings(stage)
        changes = differences(config, scaled(config, words))
        name = " ".join([stage or self.model, *([*label, *changes] or ["unchanged"])])
        self.last = self.options.out / name / f"seed {seed}"
        return self.run(self.last, *flags, "--preset", self.preset,
                        "--set", *own, *changes, f"seed={seed}")

    def evaluated(self, out: Path, stage: str, *flags: object) -> Path:
        """Score a checkpoint, once in this command; return the folder of the scores."""
        asked = ["data"] if self.on or "--protocol" in self.flags else []  # which has its data set
        asked += ["protocol", "test_root", "detections"] if self.on else []
        sizes = [text for text in self.options.overrides if text.startswith("test_")]
        return self.run(out / self.judge, *self.stage_flags(stage, *asked), *self.on, "--eval",
                        *flags, *(["--set", *sizes] if sizes else []))

    def judged(self, out: Path, stage: str, *flags: object) -> Path:
        """Return the folder of a run's scores: its own, or those of its last weights with --on."""
        checkpoint = out / "checkpoint.pt"
        return self.evaluated(out, stage, "--checkpoint", checkpoint, *flags) if self.on else out

    def hands(self, words: Sequence[str], seed: int) -> np.ndarray:
        """A SimpleHand; also the number of its parameters outside of the backbone."""
        backbone = self.options.backbone
        if "hrnet" in words:
            words = ["backbone=hrnet", "upsample=1"] if self.small else BACKBONES["hrnet"]
            backbone = self.options.hrnet
        out = self.trained("", words, seed, *self.stage_flags(""),
                           *(["--backbone", backbone] if backbone else []))
        scores = json.loads((out / "results.json").read_text())["scores"].get("SimpleHand", {})
        with torch.device("meta"):
            model = simplehand_model(scaled(self.settings("")[0], words))
        scores["parameters (M)"] = (count(model) - count(model.backbone)) / 1e6
        return np.array([scores.get(name, math.nan) for name in self.table.ours])

    def tokenizer(self, words: Sequence[str], seed: int) -> Path:
        """Train a tokenizer; in tables of transformers its data are those of --tokenizers."""
        if self.table.stage == "tokenizer":
            return self.trained("tokenizer", words, seed, *self.stage_flags("tokenizer"))
        if self.official and not self.options.tokenizers:
            raise ValueError("tokenizers are trained on other data than transformers: give "
                             '--tokenizer FILE or, for example, --tokenizers "--data amass '
                             '--data-root FOLDER --body SMPL_NEUTRAL.pkl"')
        flags = self.stage_flags("tokenizer", "data", "data_root", "protocol", "test_root")
        flags += shlex.split(self.options.tokenizers or "")
        return self.trained("tokenizer", words, seed, *flags)

    def transformer(self, words: Sequence[str], seed: int, *flags: str) -> Path:
        """Train a transformer; words may change its data or, as tokenizer.FIELD, its tokenizer."""
        changes = [word.removeprefix("tokenizer.") for word in words if "tokenizer." in word]
        label = [word for word in words if "data=" in word]
        tokenizer, backbone = self.options.tokenizer, self.options.backbone
        flags = [*flags, *self.stage_flags("transformer", *["data"] * len(label)),
                 *(f"--{word}" for word in label)]
        if changes or not tokenizer:
            # the best on AMASS's validation split, as in the paper
            weights = "best.pt" if self.official else "checkpoint.pt"
            tokenizer = self.tokenizer(changes, seed) / weights
            base = self.settings("tokenizer")[0]
            label += [f"tokenizer.{text}" for text in differences(base, scaled(base, changes))]
        if backbone or self.small:
            flags += ["--backbone", backbone or SHIPPED["genhmr"]]
        own = [word for word in words if "tokenizer." not in word and "data=" not in word]
        return self.trained("transformer", own, seed, *flags, "--tokenizer", tokenizer, label=label)

    def tokenizers(self, words: Sequence[str], seed: int) -> np.ndarray:
        """A tokenizer's reconstructions; of official poses those of the test split."""
        out = self.tokenizer(words, seed)
        if self.official:
            out = self.evaluated(out / "test", "tokenizer", "--checkpoint", out / "best.pt")
        return errors_of(out, "tokenizer", self.table.ours)

    def transformers(self, words: Sequence[str], seed: int) -> np.ndarray:
        """A transformer, sampled with T = 5, in Table 7 also refined."""
        brief = ["--brief"] if self.table.predictor == "T=5" else []
        out = self.judged(self.transformer(words, seed, *brief), "transformer", *brief)
        return errors_of(out, self.table.predictor, self.table.ours)

    def sampled(self, words: Sequence[str], seed: int) -> np.ndarray:
        """A checkpoint or, with --seeds, new ones: sampled with T, schedule, top_k and refined."""
        own = [word for word in words if word[0] not in "TP"]
        out = self.options.out / self.options.table / (" ".join(own) or "default")
        checkpoint = self.files["genhmr"]
        if self.options.seeds:
            out /= f"seed {seed}"
            checkpoint = self.transformer((), seed, "--brief") / "checkpoint.pt"
        flags = [f"--{word.replace('_', '-')}" for word in own]
        flags += ["--brief"] * ("top_k" in str(self.table.words))  # rows differ in nothing else
        self.evaluated(out, "transformer", "--checkpoint", checkpoint, *flags)
        self.last = None  # rows share a training, if any
        predictor = " ".join(word for word in words if word[0] in "TP")
        return errors_of(out, predictor, self.table.ours)

    def adapter(self, part: str, words: Sequence[str], seed: int) -> Path:
        """Train the path of a part, "hand" or "body", around its expert, or "scratch" without."""
        flags = [] if "scratch" in words else ["--expert", self.files[part]]
        flags += ["--guide", self.files["body"]] * (part == "hand")
        return self.trained(part, words, seed, *self.stage_flags(part), *flags)

    def adapters(self, words: Sequence[str], seed: int) -> np.ndarray:
        """A hand path in boxes and with arms that are predicted (Table 3), or a body path."""
        out, stage = self.adapter(self.table.stage, words, seed), self.table.stage
        scores = self.judged(out, stage, *["--guide", self.files["body"]] * (stage == "hand"))
        if "expert" in words:  # before the adapter is trained
            return errors_of(scores, "expert", self.table.ours)
        errors = errors_of(scores, self.table.predictor, self.table.ours)
        config = json.loads((out / "results.json").read_text())["config"]
        model = on_meta(type(self.settings(self.table.stage)[0])(**config))
        errors[:, self.table.ours.index("parameters (M)")] = count(model, True) / 1e6
        return errors

    def pairs(self, words: Sequence[str], seed: int) -> np.ndarray:
        """A hand path (Table 5) or a body path (Table 6) beside the paper's other path, merged."""
        parts = {"hand": (), "body": ()} | {self.table.stage: words}
        hand, body = (self.adapter(part, own, seed) for part, own in parts.items())
        self.last = {"hand": hand, "body": body}[self.table.stage]
        out = self.options.out / f"{hand.parent.name} with {body.parent.name}" / f"seed {seed}"
        self.evaluated(out, "all", "--checkpoint", hand / "checkpoint.pt", "--guide",
                       body / "checkpoint.pt")
        return errors_of(out, "ours", self.table.ours)

    def paths(self, words: Sequence[str], _: int) -> np.ndarray:
        """One of the bodies of the dual path: the expert's, both experts', ours."""
        out = self.evaluated(self.options.out / self.options.table, "all", "--checkpoint",
                             self.files["hand"], "--guide", self.files["body"])
        return errors_of(out, words[0], self.table.ours)


def spread(values: np.ndarray) -> str:
    """Format the mean and, of several values, the sample's standard deviation."""
    if len(values) == 0 or np.isnan(values).any():
        return "-"
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def ordering_lines(table: Table, scores: Scores, judge: str, data: str = "") -> list[str]:
    """A Markdown table of all pairs of rows that the paper orders, on our data set or its first.

    Our differences, worse - better, are paired by sample; their standard error is that of the mean
    over samples, of each sample's mean over seeds.
    """
    name = judge.removeprefix("occluded ")
    theirs = next(place for own in (f"{data} {name}".strip(), name)
                  for place, column in enumerate(table.paper) if f" {column}".endswith(f" {own}"))
    lines, counts = [], np.zeros(3, int)
    for worse, better in itertools.permutations(table.words, 2):
        high, low = (float(table.figures[row][theirs].replace("-", "nan"))
                     for row in (worse, better))
        seeds = sorted(scores.get(worse, {}).keys() & scores.get(better, {}).keys())
        related = not table.related or set(worse.split(", ")) & set(better.split(", "))
        if not (high > low and related and seeds):
            continue  # NaN is above nothing
        each = np.array([np.atleast_2d(scores[worse][seed] - scores[better][seed])
                         for seed in seeds])[..., table.ours.index(judge)]  # (S, N)
        each = each[:, ~np.isnan(each).any(0)]
        if not each.size:
            continue
        samples, ours = each.mean(0), each.mean(1)
        error = samples.std(ddof=1) / len(samples) ** 0.5 if len(samples) > 1 else math.nan
        holds, sure = ours.mean() > 0, abs(ours.mean()) >= 2 * error
        verdict = f"{'yes' if holds else '**no**'}, in {(ours > 0).sum()} of {len(ours)}" + (
            ", within two standard errors" if abs(ours.mean()) < 2 * error else "")
        lines.append(f"| {better} < {worse} | {high - low:.1f} | {spread(ours)} | "
                     f"{spread(np.array([error]))} | {verdict} |")
        counts += [holds, sure and holds, sure and ours.mean() < 0]
    hold, sure, fail = counts
    return [f"{hold} of {len(lines)} orderings hold, {sure} by two standard errors or more; {fail} "
            "fail by as much.", "",
            f"| the paper's ordering of {table.paper[theirs]} | paper's difference | our {judge} | "
            "standard error | holds, in how many seeds |", "|---" * 5 + "|", *lines] * bool(lines)


def table_text(title: str, table: Table, scores: Scores, about: str, data: str = "") -> str:
    """Write a table in Markdown: our scores, as far as they are known, and orderings of rows."""
    def means(samples: np.ndarray) -> list[float]:
        columns = [column[~np.isnan(column)] for column in np.atleast_2d(samples).T]
        return [column.mean() if len(column) else math.nan for column in columns]

    heads = [f"paper {name}" for name in table.paper] + [f"our {name}" for name in table.ours]
    lines = [f"| | {' | '.join(heads)} | seeds |", "|---" * (len(heads) + 2) + "|"]
    for name, paper in table.figures.items():
        runs = list(scores.get(name, {}).values())
        ours = np.array([means(samples) for samples in runs]).reshape(-1, len(table.ours))
        lines.append(f"| {name} | {' | '.join([*paper, *map(spread, ours.T)])} | {len(runs)} |")
    count = max([samples.shape[0] for runs in scores.values() for samples in runs.values()
                 if samples.ndim == 2], default=0)
    parts = [f"# {title}", about + f" {count:,} test samples." * bool(count),
             "\n".join(lines), table.note,
             *("\n".join(ordering_lines(table, scores, judge, data)) for judge in table.judges)]
    return "\n\n".join(part for part in parts if part) + "\n"


def draw_curves(table: Table, folders: Mapping[str, Path], path: Path) -> None:
    """Draw the judges' test errors of rows over the steps of their trainings, in these folders.

    Dashed: the expert before training, where a run has scored it. Rows far above it are cut off.
    """
    curves = {row: rows for row, out in folders.items() if (rows := read_table(out / "scores.csv"))}
    ends = {judge.split()[-1] for judge in table.judges}
    names = dict.fromkeys(name for rows in curves.values() for name in rows[0]
                          if name.split()[-1] in ends)
    if not names:  # nothing is trained, or known
        return
    results = (json.loads((folders[row] / "results.json").read_text()) for row in curves)
    expert = next((result["scores"]["expert"] for result in results
                   if "expert" in result["scores"]), {})
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for row, rows in curves.items():
            axes.plot([int(at["step"]) for at in rows], [float(at[name]) for at in rows],
                      marker=".", label=row)
        if name in expert:
            axes.axhline(expert[name], color="k", linestyle="--", label="the expert before")
            axes.set_ylim(top=min(axes.get_ylim()[1], 1.2 * expert[name]))
        axes.set(xlabel="step", ylabel="mm", title=name)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  fontsize="small")
    save_figure(figure, path)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return tables.py's flags and those for train.py."""
    parser = argparse.ArgumentParser(
        prog="tables.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", choices=TABLES)
    add("table")
    add("--seeds", type=int, help="seeds of each row that is trained, counted up from the config's "
        "(default: 1); tables that score a checkpoint then train one per seed")
    add("--out", type=Path, help="folder of all runs (default: runs/MODEL-tables)")
    add("--set", nargs="+", action="extend", default=[], dest="overrides", metavar="FIELD=VALUE",
        help="change fields in all rows; a field reaches the stages that have it")
    for name, text in (
        ("preset", "of all runs that train (default: a small one; with --data, paper)"),
        ("data", 'as train.py has it; for hmr_adapter also "hmr-adapter", its hands and bodies'),
        ("checkpoint", "genhmr: to score; hmr_adapter: hand path, or the hand expert to adapt"),
        ("guide", "hmr_adapter: body path, or the body expert to adapt"),
        ("backbone", "weights to start from"), ("hrnet", "the same for rows with HRNet"),
        ("tokenizer", "genhmr: of rows that do not change it (default: trained for each seed)"),
        ("tokenizers", "genhmr: flags of train.py for tokenizers, in one argument"),
        ("on", "flags of train.py --eval for another data set, in one argument"),
    ):
        add(f"--{name}", help=text)
    options, flags = parser.parse_known_args(argv)
    if options.table not in TABLES[options.model]:
        parser.error(f"{options.model} has {', '.join(TABLES[options.model])}")
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: expected at least 1")
    if options.checkpoint and options.model == "genhmr" and (
            options.seeds or TABLES["genhmr"][options.table].kind != "sampled"):
        parser.error("rows are trained from new weights: leave --checkpoint out")
    if options.on and (options.model == "simplehand" or not protocol_of(shlex.split(options.on))):
        parser.error(f"--on {options.on}: expected --protocol NAME, for genhmr or hmr_adapter")
    options.out = options.out or Path("runs", f"{options.model}-tables")
    return options, flags


def main(argv: Sequence[str] | None = None) -> None:
    """Score all rows of a table; write the table after each."""
    argv = sys.argv[1:] if argv is None else argv
    options, flags = parse(argv)
    runs, scores, folders = Runs(options, flags), {}, {}
    title = " ".join([options.table, *[runs.judge] * bool(runs.on)])
    path, leader = options.out / f"{title}.md", int(os.environ.get("RANK", 0)) == 0
    about = (f"`python tables.py {shlex.join(argv)}`\n\nErrors in mm, ± over seeds. "
             f"Trained: preset {runs.preset}. Scored or adapted: files of assets/, unless given.")
    try:
        first = runs.settings(runs.table.stage)[1].seed
        for seed, name in itertools.product(
                range(first, first + (options.seeds or 1)), runs.table.words):
            row = getattr(runs, runs.table.kind)(runs.table.words[name], seed)
            scores.setdefault(name, {})[seed] = row
            if runs.last and seed == first and "expert" not in runs.table.words[name]:
                folders[name] = runs.last
            if leader:
                draw_curves(runs.table, folders, path.with_suffix(".png"))
                text = table_text(f"{options.model} {title}", runs.table, scores, about,
                                  runs.set)
                bodymodels.write_atomically(path, text.encode())
    except (ValueError, OSError) as error:
        raise SystemExit(f"tables.py: {error}") from None
    announce(f"\n{text if leader else ''}\nin {path}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
