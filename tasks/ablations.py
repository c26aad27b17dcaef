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
    """A table of a paper."""

    paper: tuple[str, ...]  # columns, errors in mm
    ours: tuple[str, ...]
    rows: Mapping[str, Row]
    note: str = ""  # what a reader has to know about it
    judges: tuple[tuple[int, int], ...] = ((0, 0),)  # columns of the paper and of ours by which
    # orderings are compared
    related: Callable[[str, str], bool] = lambda first, second: True  # rows that are compared


def share_a_part(first: str, second: str) -> bool:
    """Say whether two names of rows, such as "cosine, T = 5", share a part between commas."""
    return bool(set(first.split(", ")) & set(second.split(", ")))


# ----------------------------------------------------------------------------------- writing


def spread(values: np.ndarray) -> str:
    """Format the mean and, of several values, the sample's standard deviation."""
    if len(values) == 0 or np.isnan(values).any():
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


def means(scores: np.ndarray) -> np.ndarray:
    """Average the columns (N, C) over the samples that count: (C,), NaN if none does."""
    columns = [column[~np.isnan(column)] for column in np.atleast_2d(scores).T]
    return np.array([column.mean() if len(column) else math.nan for column in columns])


@dataclasses.dataclass(frozen=True)
class Ordering:
    """Two rows that the paper orders, and our differences worse - better."""

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


def orderings(table: Table, found: Found, judge: tuple[int, int]) -> Iterator[Ordering]:
    """Find all pairs of rows that the paper orders and that have a seed of ours in common."""
    theirs, ours = judge
    for (worse, high), (better, low) in itertools.permutations(table.rows.items(), 2):
        seeds = sorted(found.get(worse, {}).keys() & found.get(better, {}).keys())
        difference = high.paper[theirs] - low.paper[theirs]
        if difference > 0 and seeds and table.related(worse, better):
            each = np.array([np.atleast_2d(found[worse][seed] - found[better][seed])[:, ours]
                             for seed in seeds])  # (S, N)
            each = each[:, ~np.isnan(each).any(0)]
            count = each.shape[1]
            error = each.mean(0).std(ddof=1) / count**0.5 if count > 1 else math.nan
            if count:
                yield Ordering(better, worse, difference, each.mean(1), error)


def ordering_lines(table: Table, found: Found, judge: tuple[int, int]) -> list[str]:
    """A Markdown table of all orderings, with paired standard errors where samples are known."""
    all_pairs = list(orderings(table, found, judge))
    if not all_pairs:
        return []
    paired = not all(math.isnan(pair.error) for pair in all_pairs)
    hold = sum(pair.ours.mean() > 0 for pair in all_pairs)
    words = [f"{hold} of {len(all_pairs)} orderings hold on average"]
    if max(len(pair.ours) for pair in all_pairs) > 1 or not paired:
        words.append(f"{sum((pair.ours > 0).all() for pair in all_pairs)} with every seed")
    if paired:
        sure = [np.sign(pair.ours.mean()) for pair in all_pairs
                if abs(pair.ours.mean()) >= 2 * pair.error]
        words.append(f"{sure.count(1)} by two standard errors or more; {sure.count(-1)} fail by "
                     "as much")
    lines = [", ".join(words) + ".", "",
             f"| the paper's ordering of {table.paper[judge[0]]} | paper's difference "
             f"| our {table.ours[judge[1]]} "
             + ("| standard error " if paired else "") + "| holds |",
             "|---|---|---|" + "---|" * (1 + paired)]
    return lines + [
        f"| {pair.better} < {pair.worse} | {pair.paper:.1f} | {spread(pair.ours)} "
        + (f"| {pair.error:.2f} " if paired else "") + f"| {pair.verdict} |" for pair in all_pairs]


def table_text(title: str, table: Table, found: Found, about: str) -> str:
    """Write a table in Markdown: our scores beside the paper's, then each ordering of its rows.

    found may lack rows or seeds.
    """
    runs = [list(seeds.values()) for seeds in found.values()]
    counted = all(len(scores) == 1 and np.ndim(scores[0]) == 2 for scores in runs)
    heads = [f"paper {name}" for name in table.paper] + [f"our {name}" for name in table.ours]
    lines = [f"# {title}", "", about, "",
             f"| | {' | '.join(heads)} | {'samples' if counted else 'seeds'} |",
             "|---" * (len(heads) + 2) + "|"]
    for name, row in table.rows.items():
        seeds = list(found.get(name, {}).values())
        ours = np.array([means(scores) for scores in seeds]).reshape(-1, len(table.ours))
        entries = ["-" if math.isnan(value) else f"{value:.1f}" for value in row.paper]
        entries += [spread(column) for column in ours.T]
        entries.append(str(sum(len(scores) for scores in seeds) if counted else len(seeds)))
        lines.append(f"| {name} | {' | '.join(entries)} |")
    reasons = [f"- {name}: not run. {row.missing}" for name, row in table.rows.items()
               if row.missing]
    parts = [lines, reasons, [table.note] if table.note else [],
             *(ordering_lines(table, found, judge) for judge in table.judges)]
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
    """Remove flags with their values from a command line; "set" has several values."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
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
    """List the --set assignments that turn the first config into the second."""
    return [f"{name}={as_text(value)}" for name, value in vars(changed).items()
            if value != getattr(config, name)]


def run(title: str, out: Path, flags: Callable[[], argparse.Namespace],
        expected: Mapping[str, object]) -> Runs:
    """Yield a run into a folder unless it is done; return the content of its results.json.

    flags(): the run's. expected: fields that its config has to have; configs of its parts are not
    compared. Raises ValueError if the folder holds another run.
    """
    if not (out / "results.json").exists():
        announce(f"\n{title}")
        yield flags()
    if dist.is_initialized():
        dist.barrier()  # the leader writes results last
    results = json.loads((out / "results.json").read_text())
    plain = {name: value for name, value in expected.items() if not dataclasses.is_dataclass(value)}
    other = [name for name, value in json.loads(json.dumps(plain)).items()
             if results["config"].get(name) != value]
    if other:
        raise ValueError(f"{out} holds another run (it differs in {', '.join(other)}): give "
                         "another folder with --out")
    return results


def errors_of(out: Path, predictor: str, metrics: Sequence[str]) -> np.ndarray | None:
    """Columns (N, C) of a run's errors.npz: a predictor's errors in every sample.

    NaN for metrics that the run does not have, None if it does not have the predictor.
    """
    with np.load(out / "errors.npz") as file:
        names = [f"{predictor}: {metric}" for metric in metrics]
        known = [file[name] for name in names if name in file]
        return np.stack([file[name] if name in file else np.full_like(known[0], np.nan)
                         for name in names], 1) if known else None


def write(path: Path, text: str) -> None:
    """Write and print a table, on the first process alone."""
    if int(os.environ.get("RANK", 0)) == 0:
        bodymodels.write_atomically(path, text.encode())
        print(f"\n{text}\nin {path}", flush=True)


def score_rows(path: Path, rows: Iterable[str], seeds: Iterable[int],
               row_run: Callable[[str, int], Generator[argparse.Namespace, None, np.ndarray]],
               text: Callable[[Found], str]) -> Iterator[argparse.Namespace]:
    """The runs of every row with every seed; writes the table after each.

    row_run(row, seed) yields runs and returns our columns, see Found. All rows of a seed come
    before the next seed.
    """
    found = defaultdict(dict)
    for seed in seeds:
        for row in rows:
            found[row][seed] = yield from row_run(row, seed)
            write(path, text(found))
