"""Tables of the papers: their rows, the runs that score them, and ours beside the paper's."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch.distributed as dist

import bodymodels
from tasks.base import RunConfig
from tasks.ranks import announce
from tasks.settings import as_text

Parse = Callable[[list[str]], argparse.Namespace]
Runs = Generator[argparse.Namespace, None, dict]  # yields runs to do, returns results of the last
Found = Mapping[str, Mapping[int, np.ndarray]]  # row -> seed -> our columns: (C,) means, or (N, C)
# of N samples, the same in every row; NaN for a sample that does not count


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: what makes it, and the paper's scores."""

    changes: Mapping[str, object]  # fields that differ from the paper's model, or other options
    paper: tuple[float, ...]  # a score per column of the paper; NaN where it has none
    missing: str = ""  # why it is not run here


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a paper. The first column of the paper's and of ours judge its orderings."""

    paper: tuple[str, ...]  # columns, errors in mm
    ours: tuple[str, ...]
    rows: Mapping[str, Row]
    note: str = ""  # what a reader has to know about it
    related: Callable[[str, str], bool] = lambda first, second: True  # rows that are compared


def share_a_part(first: str, second: str) -> bool:
    """Whether two names of rows, "cosine, T = 5" say, share a part between commas."""
    return bool(set(first.split(", ")) & set(second.split(", ")))


# ----------------------------------------------------------------------------------- writing


def spread(values: np.ndarray) -> str:
    """Format the mean and, of several values, the sample's standard deviation."""
    if len(values) < 2:
        return f"{values[0]:.2f}" if len(values) else "-"
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


@dataclasses.dataclass(frozen=True)
class Ordering:
    """Two rows that the paper orders, and our differences worse - better of the first column."""

    better: str
    worse: str
    paper: float  # the paper's difference, above 0
    ours: np.ndarray  # (S,) by seed
    error: float  # paired standard error over samples of the mean over seeds; NaN for means alone

    @property
    def verdict(self) -> str:
        """Whether our mean has the paper's sign, how often, and whether it could be chance."""
        words = ["yes" if self.ours.mean() > 0 else "**no**"]
        if len(self.ours) > 1 or math.isnan(self.error):
            words.append(f"in {(self.ours > 0).sum()} of {len(self.ours)} seeds")
        if abs(self.ours.mean()) < 2 * self.error:
            words.append("within two standard errors")
        return ", ".join(words)


def orderings(table: Table, found: Found) -> Iterator[Ordering]:
    """All pairs of rows that the paper orders and that have a seed of ours in common."""
    for (worse, high), (better, low) in itertools.permutations(table.rows.items(), 2):
        seeds = sorted(found.get(worse, {}).keys() & found.get(better, {}).keys())
        if high.paper[0] > low.paper[0] and seeds and table.related(worse, better):
            each = np.array([np.atleast_2d(found[worse][seed])[:, 0]
                             - np.atleast_2d(found[better][seed])[:, 0] for seed in seeds])
            counted = each.mean(0)[~np.isnan(each).any(0)]
            error = counted.std(ddof=1) / len(counted) ** 0.5 if len(counted) > 1 else math.nan
            yield Ordering(better, worse, high.paper[0] - low.paper[0], np.nanmean(each, 1), error)


def ordering_lines(table: Table, found: Found) -> list[str]:
    """A Markdown table of all orderings, with paired standard errors where samples are known."""
    all_pairs = list(orderings(table, found))
    if not all_pairs:
        return []
    paired = not all(math.isnan(pair.error) for pair in all_pairs)
    hold = sum(pair.ours.mean() > 0 for pair in all_pairs)
    always = sum((pair.ours > 0).all() for pair in all_pairs)
    lines = [f"{hold} of {len(all_pairs)} orderings hold on average, {always} with every seed.", "",
             f"| the paper's ordering of {table.paper[0]} | paper's difference | ours "
             + ("| standard error " if paired else "") + "| holds |",
             "|---|---|---|" + "---|" * (1 + paired)]
    return lines + [
        f"| {pair.better} < {pair.worse} | {pair.paper:.1f} | {spread(pair.ours)} "
        + (f"| {pair.error:.2f} " if paired else "") + f"| {pair.verdict} |" for pair in all_pairs]


def table_text(title: str, table: Table, found: Found, about: str) -> str:
    """Write a table in Markdown: our scores beside the paper's, then each ordering of its rows.

    found may lack rows or seeds. An ordering is judged by the first columns, over the seeds of
    both rows.
    """
    heads = [f"paper {name}" for name in table.paper] + [f"our {name}" for name in table.ours]
    lines = [f"# {title}", "", about, "", f"| | {' | '.join(heads)} | seeds |",
             "|---" * (len(heads) + 2) + "|"]
    for name, row in table.rows.items():
        seeds = [np.nanmean(np.atleast_2d(scores), 0) for scores in found.get(name, {}).values()]
        ours = np.array(seeds).reshape(-1, len(table.ours))
        entries = ["-" if math.isnan(value) else f"{value:.1f}" for value in row.paper]
        entries += [spread(column) for column in ours.T] + [str(len(ours))]
        lines.append(f"| {name} | {' | '.join(entries)} |")
    reasons = [f"- {name}: not run. {row.missing}" for name, row in table.rows.items()
               if row.missing]
    parts = [lines, reasons, [table.note] if table.note else [], ordering_lines(table, found)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


# ----------------------------------------------------------------------------------- running


def arguments(tables: Iterable[str]) -> dict[str, dict[str, object]]:
    """The flags of a task that writes tables, for argparse."""
    return {
        "ablate": {"metavar": "TABLE", "help": "write this table of the paper instead, ours beside "
                   f"the paper's, training its rows where needed: {', '.join(tables)}"},
        "seeds": {"type": int, "help": "seeds of each row of --ablate that is trained, counted up "
                  "from the config's (default: 1)"}}


def check_arguments(arguments: argparse.Namespace, tables: Iterable[str]) -> None:
    """Raise ValueError for a table that cannot be."""
    if arguments.seeds is not None and arguments.seeds < 1:
        raise ValueError(f"--seeds {arguments.seeds}: expected at least 1")
    if arguments.ablate not in (None, *tables):
        raise ValueError(f"--ablate {arguments.ablate}: {arguments.model} has {', '.join(tables)}")
    if arguments.ablate and arguments.eval:
        raise ValueError("--ablate trains what it scores: use it without --eval")


def without(argv: Sequence[str], *flags: str) -> list[str]:
    """A command line without these flags, each of which has a value; "set" has several."""
    own = argparse.ArgumentParser(add_help=False)
    for flag in flags:
        own.add_argument(f"--{flag.replace('_', '-')}", nargs="+" if flag == "set" else None,
                         action="append")
    return own.parse_known_args(list(argv))[1]


def preset_of(presets: Mapping[str, RunConfig], name: str | None, model: str) -> RunConfig:
    """The config of a preset, "ablation" if none is named; ValueError if there is none."""
    if (name or "ablation") not in presets:
        raise ValueError(f"no preset {name!r} for {model}: expected one of {', '.join(presets)}")
    return presets[name or "ablation"]


def settings(config: RunConfig, changed: RunConfig) -> list[str]:
    """What --set needs to make the second config from the first."""
    return [f"{name}={as_text(value)}" for name, value in vars(changed).items()
            if value != getattr(config, name)]


def run(title: str, out: Path, flags: Callable[[], argparse.Namespace],
        expected: Mapping[str, object]) -> Runs:
    """Yield a run into a folder unless it is done; return the content of its results.json.

    flags(): the run's. expected: fields that its config has to have. Raises ValueError
    if the folder holds another run.
    """
    if not (out / "results.json").exists():
        announce(f"\n{title}")
        yield flags()
    if dist.is_initialized():
        dist.barrier()  # the leader writes results last
    results = json.loads((out / "results.json").read_text())
    other = [name for name, value in json.loads(json.dumps(dict(expected))).items()
             if results["config"].get(name) != value]
    if other:
        raise ValueError(f"{out} holds another run (it differs in {', '.join(other)}): give "
                         "another folder with --out")
    return results


def score_rows(path: Path, rows: Iterable[str], seeds: Iterable[int],
               row_run: Callable[[str, int], Generator[argparse.Namespace, None, np.ndarray]],
               text: Callable[[Found], str]) -> Iterator[argparse.Namespace]:
    """The runs of every row with every seed; writes the table after each.

    row_run(row, seed) yields runs and returns our columns, see Found. All rows of a seed come
    before the next seed.
    """
    found, leader = defaultdict(dict), int(os.environ.get("RANK", 0)) == 0
    for seed in seeds:
        for row in rows:
            found[row][seed] = yield from row_run(row, seed)
            if leader:
                bodymodels.write_atomically(path, text(found).encode())
    announce(f"\n{text(found)}\nin {path}")
