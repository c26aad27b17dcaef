"""The tables of HMR-Adapter's paper: --model hmr_adapter --ablate table3."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

import bodymodels
from tasks import ablations
from tasks.ablations import Row, Table
from tasks.adapter_rows import FROM_SCRATCH
from tasks.hmr_adapter import BodyAdapterTask, DualPathTask, HandAdapterTask
from tasks.settings import override, own_overrides

SHIPPED = {name: bodymodels.ASSETS / f"hmr_adapter_{name}_cpu.pt" for name in ("hand", "body")}
NAN = math.nan
OTHERS = "Another paper's model, which this project does not have."
RUN = Generator[argparse.Namespace, None, Path]

# ------------------------------------------------------------------ rows that are only scored


def of_others(papers: Mapping[str, tuple[float, ...]]) -> dict[str, Row]:
    """Make rows of other papers' models."""
    return {name: Row({}, scores, OTHERS) for name, scores in papers.items()}


# changes: the predictor of the dual path that makes the row
SCORED: dict[str, Table] = {
    "table1": Table(
        tuple(f"{data} {name}{part}" for data in ("ARCTIC", "EHF")
              for name in ("PVE", "PA-PVE", "PA-MPJPE") for part in ("", ", hands")),
        tuple(f"{part}{name}" for name in ("PVE", "PA-PVE", "PA-MPJPE") for part in ("", "hands ")),
        of_others({
            "Hand4Whole": (136.8, 54.8, 63.4, 18.1, NAN, NAN, 76.8, 39.8, 50.3, 10.8, NAN, NAN),
            "OSX": (58.4, 39.4, 33.0, 18.8, NAN, NAN, 70.8, 53.7, 48.7, 15.9, NAN, NAN),
            "PyMAF-X": (*[NAN] * 6, 64.9, 29.7, 50.2, 10.2, 52.8, 10.3),
            "SMPLer-X-B32": (56.3, 40.9, 34.9, 18.9, 34.5, 19.8,
                             67.3, 52.1, 40.7, 14.5, 44.4, 14.9),
            "SMPLer-X-H32, trained on ARCTIC": (44.7, 37.0, 27.7, 18.8, *[NAN] * 8),
            "RoboSMPLX": (*[NAN] * 6, 73.7, 34.9, 49.7, 10.0, NAN, NAN),
        }) | {
            "SMPLer-X-H32": Row({"predictor": "expert"}, (
                48.5, 38.3, 29.3, 18.9, 28.9, 19.2, 56.9, 42.2, 39.0, 14.8, 43.2, 14.7)),
            "SMPLer-X-H32 + HaMeR": Row({"predictor": "experts"}, (
                47.0, 39.0, 28.3, 16.4, 27.8, 17.4, 59.7, 52.2, 43.0, 12.3, 43.5, 12.1)),
            "Ours": Row({"predictor": "ours"}, (
                40.7, 23.6, 23.9, 10.5, 24.0, 11.0, 57.1, 32.4, 36.8, 10.0, 42.0, 9.9))},
        judges=((0, 0), (1, 1), (3, 3))),
    "table2": Table(
        ("3DPW PVE", "3DPW PA-MPJPE", "3DPW MPJPE"), ("PVE", "PA-MPJPE", "MPJPE"),
        of_others({
            "POTTER": (87.4, 44.8, 75.0), "SimHMR": (102.8, 49.5, 81.3),
            "HMR 2.0": (82.2, 44.4, 69.8), "Hand4Whole": (NAN, 54.4, 86.6),
            "OSX": (NAN, 60.6, 86.2), "PyMAF-X": (91.3, 47.1, 78.0),
            "RoboSMPLX": (95.2, 48.5, 80.1), "SMPLer-X-B32": (90.3, 53.4, 80.3),
        }) | {
            "SMPLer-X-H32": Row({"predictor": "expert"}, (86.1, 50.6, 75.0)),
            "SMPLer-X-H32 + HaMeR": Row({"predictor": "experts"}, (88.3, 46.7, 78.3)),
            "Ours": Row({"predictor": "ours"}, (82.1, 44.0, 73.0))},
        judges=((0, 0), (1, 1), (2, 2))),
}

# ---------------------------------------------------------------------- rows that are trained

# changes: the trained row of --row, and the predictor of its run that is scored
HAND = ("PVE", "PA-PVE", "PA-MPJPE", "occluded PVE")
TRAINED: dict[str, Table] = {
    "table3": Table(("ARCTIC PVE", "ARCTIC PA-PVE", "ARCTIC PA-MPJPE"), HAND, {
        "HaMeR": Row({"row": "Table 3, No. 6", "predictor": "expert"}, (38.5, 16.2, 17.1)),
        **{f"No. {number}": Row({"row": f"Table 3, No. {number}", "predictor": "found arm"}, paper)
           for number, paper in enumerate((
               (45.3, 13.9, 15.0), (53.3, 15.1, 16.3), (56.1, 14.1, 15.1), (36.7, 17.9, 18.4),
               (30.9, 9.0, 9.2), (24.1, 8.4, 8.5)), 1)}},
        note="HaMeR: the expert before; No. 1: all of it is trained on; No. 2: from random weights "
             "with double steps; No. 3: its head; No. 4: its head, the arm concatenated; No. 5: "
             "the adapter on the hand's picture; No. 6: on the arm. Arms are those that the "
             "whole-body expert finds.", judges=((0, 0), (0, 3))),
    "table4": Table(("ARCTIC PVE", "ARCTIC PA-PVE", "ARCTIC PA-MPJPE"),
                    ("PVE", "PA-PVE", "PA-MPJPE"), {
        "SMPLer-X": Row({"row": "Table 4, No. 6", "predictor": "expert"}, (48.5, 29.3, 28.9)),
        **{f"No. {number}": Row({"row": f"Table 4, No. {number}", "predictor": "adapter"}, paper)
           for number, paper in enumerate((
               (24.4, 19.5, 21.1), (35.0, 27.0, 34.6), (25.1, 21.0, 21.2), (29.9, 23.6, 25.1),
               (24.7, 20.8, 21.2), (24.7, 20.7, 21.0)), 1)}},
        note="As in Table 3; No. 4 concatenates, No. 6 adapts to, the features at the knuckles."),
    "table5": Table(("ARCTIC hands PVE", "ARCTIC hands PA-PVE"), ("hands PVE", "hands PA-PVE"), {
        "Concatenation": Row({"row": "Table 3, No. 4"}, (41.9, 15.2)),
        "Weighted sum": Row({"row": "Table 5, Weighted sum"}, (26.0, 12.1)),
        "Whole-body pose": Row({"row": "Table 5, Whole-body pose"}, (27.7, 13.4)),
        "HMR-Adapter": Row({"row": "Table 3, No. 6"}, (23.6, 10.5))},
        note="Hand paths, merged with the body path of Table 4, No. 6, in the boxes it predicts."),
    "table6": Table(("EHF PVE", "EHF PA-PVE", "EHF PA-MPJPE"), ("PVE", "PA-PVE", "PA-MPJPE"), {
        "Concatenation": Row({"row": "Table 4, No. 4"}, (95.4, 79.3, 94.0)),
        "Weighted sum": Row({"row": "Table 6, Weighted sum"}, (74.5, 57.0, 68.0)),
        "HMR-Adapter": Row({"row": "Table 4, No. 6"}, (57.1, 36.8, 42.0))},
        note="Body paths, merged with the hand path of Table 3, No. 6."),
}
TABLES = SCORED | TRAINED
# What rows have in place of the cpu preset's fields, if no --preset is given, so that a table with
# three seeds takes hours, not days.
SCALE = ("steps=500", "eval_every=500", "train_samples=6000")

# -------------------------------------------------------------------------------------- task


class PaperTask(DualPathTask):
    """Tables: several runs, or one evaluation of the dual path."""

    ARGUMENTS = DualPathTask.ARGUMENTS | ablations.arguments(TABLES)

    @classmethod
    def plan(cls, arguments: argparse.Namespace,
             parse: ablations.Parse) -> Iterator[argparse.Namespace]:
        """Yield the runs of a table; --checkpoint and --guide hold its experts or scored models."""
        name, runs = arguments.ablate, TableRuns(arguments, parse)
        table = TABLES[name]
        if name in TRAINED:
            first = runs.configs["hand"].seed
            yield from ablations.score_rows(
                arguments.out / f"{name}.md", table.rows,
                range(first, first + (arguments.seeds or 1)),
                lambda row, seed: runs.row(name, row, seed),
                lambda found: runs.text(found, runs.about()))
            return
        out = arguments.out / name
        yield runs.scoring(out, runs.hand, runs.body)
        found = {row: {0: errors} for row, entry in table.rows.items() if entry.changes and (
            errors := merged_errors(out, entry.changes["predictor"], table.ours)) is not None}
        ablations.write(arguments.out / f"{name}.md", runs.text(
            found, f"Ours: {runs.hand.name} and {runs.body.name} on "
                   f"{arguments.protocol or 'the rendered test split'}."))

    @classmethod
    def folder(cls, arguments: argparse.Namespace) -> Path:
        """The default of --out."""
        return Path("runs", "hmr_adapter-ablations")

    @classmethod
    def check_arguments(cls, arguments: argparse.Namespace) -> None:
        """Raise ValueError unless a table is asked for, and can be."""
        if arguments.ablate is None:
            raise ValueError("hmr_adapter is trained in stages, each a run of its own: add --stage "
                             "all; or ask for a table of the paper with --ablate")
        ablations.check_arguments(arguments, TABLES)
        if arguments.ablate in TRAINED and arguments.data not in (None, "rendered"):
            raise ValueError(f"--ablate {arguments.ablate} trains on rendered data: leave --data "
                             f"out; {', '.join(SCORED)} score other data, too")


class TableRuns:
    """Runs of the rows of the tables, each in a folder of its name in OUT; finished ones stay."""

    def __init__(self, arguments: argparse.Namespace, parse: ablations.Parse) -> None:
        self.arguments, self.parse = arguments, parse
        self.preset = arguments.preset or "cpu"
        self.hand = arguments.checkpoint or SHIPPED["hand"]
        self.body = Path(arguments.guide or SHIPPED["body"])
        kinds = {"hand": HandAdapterTask, "body": BodyAdapterTask}
        self.overrides = {stage: [*(() if arguments.preset else SCALE), *own_overrides(
            arguments.overrides, kind.Config, [other.Config for other in kinds.values()])]
            for stage, kind in kinds.items()}
        self.configs = {stage: override(
            ablations.preset_of(kind.PRESETS, self.preset, "hmr_adapter"), self.overrides[stage])
            for stage, kind in kinds.items()}
        self.flags = ablations.without(arguments.argv, "ablate", "seeds", "set", "checkpoint",
                                       "guide")

    def row(self, name: str, row: str, seed: int
            ) -> Generator[argparse.Namespace, None, np.ndarray]:
        """The errors of a row with a seed, our columns."""
        table, changes = TABLES[name], TABLES[name].rows[row].changes
        if name in ("table3", "table4"):
            out = yield from self.trained(changes["row"], seed)
            columns = hand_errors if name == "table3" else ablations.errors_of
            return columns(out, changes["predictor"], table.ours)
        pair = ("Table 3, No. 6", changes["row"]) if name == "table6" else (
            changes["row"], "Table 4, No. 6")
        hand = yield from self.trained(pair[0], seed)
        body = yield from self.trained(pair[1], seed)
        out = self.arguments.out / " with ".join(pair) / f"seed {seed}"
        yield from ablations.run(f"{' with '.join(pair)}, seed {seed}", out,
                                 lambda: self.scoring(out, hand / "checkpoint.pt",
                                                      body / "checkpoint.pt"), {})
        return merged_errors(out, "ours", table.ours)

    def trained(self, row: str, seed: int) -> RUN:
        """Yield the run of a row, unless it is done; return its folder."""
        stage = "hand" if row.startswith(("Table 3", "Table 5")) else "body"
        out = self.arguments.out / row / f"seed {seed}"
        steps = self.configs[stage].steps * (2 if row in FROM_SCRATCH else 1)
        argv = [*self.flags, "--stage", stage, "--preset", self.preset, "--row", row, "--out",
                str(out), "--expert", str(self.hand if stage == "hand" else self.body)]
        argv += ["--guide", str(self.body)] if stage == "hand" else []
        yield from ablations.run(f"{row}, seed {seed}", out, lambda: self.parse([
            *argv, "--set", *self.overrides[stage], f"steps={steps}", f"seed={seed}"]),
            {"seed": seed, "steps": steps, "batch_size": self.configs[stage].batch_size,
             "learning_rate": self.configs[stage].learning_rate})
        return out

    def scoring(self, out: Path, hand: Path, body: Path) -> argparse.Namespace:
        """The evaluation of a dual path."""
        sizes = [text for text in self.arguments.overrides if text.startswith("test_samples=")]
        argv = [*self.flags, "--stage", "all", "--eval", "--checkpoint", str(hand), "--guide",
                str(body), "--out", str(out), *(["--set", *sizes] if sizes else [])]
        return next(DualPathTask.plan(self.parse(argv), self.parse))

    def about(self) -> str:
        """Describe the size of our runs, for the table."""
        hand, body = self.configs["hand"], self.configs["body"]
        return (f"Ours: the experts of {self.hand.name} and {self.body.name}; hands {hand.steps:,} "
                f"and bodies {body.steps:,} steps of {hand.batch_size} rendered people. Mean ± "
                "standard deviation over seeds.")

    def text(self, found: ablations.Found, about: str) -> str:
        """The table in Markdown."""
        name = self.arguments.ablate
        return ablations.table_text(
            f"HMR-Adapter, {name.replace('table', 'Table ')}", TABLES[name], found,
            f"`python train.py {shlex.join(self.arguments.argv)}`\n\n{about} Errors in mm.")


def merged_errors(out: Path, predictor: str, metrics: Sequence[str]) -> np.ndarray | None:
    """Return columns (N, C) of a dual path that merges every hand, as the paper's does."""
    all_hands = ablations.errors_of(out, f"{predictor}, all hands", metrics)
    return ablations.errors_of(out, predictor, metrics) if all_hands is None else all_hands


def hand_errors(out: Path, predictor: str, metrics: Sequence[str]) -> np.ndarray | None:
    """Return columns (N, C) of all hands, clear and occluded, but for "occluded" metrics."""
    columns = []
    for metric in metrics:
        names = [metric] if "occluded" in metric else [f"clear {metric}", f"occluded {metric}"]
        groups = ablations.errors_of(out, predictor, names)  # NaN but in a hand's own group
        if groups is None:
            return None
        columns.append(np.where(np.isnan(groups).all(1), np.nan, np.nansum(groups, 1)))
    return np.stack(columns, 1)
