"""tasks/ablations.py: orderings, spreads, missing rows, runs that are done once."""

import argparse
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import ablations
from tasks.ablations import Row, Table, errors_of, means, orderings, share_a_part, table_text
from tasks.base import Predictions, Task

TABLE = Table(("3DPW",), ("MPJPE", "MVE"), {
    "a": Row({}, (70.0,)), "b": Row({"x": 2}, (68.0,)), "c": Row({}, (69.0,), "No data.")})


def test_orderings_are_paired_by_sample():
    """A shift by 1 that two rows share in every sample is sure, whatever the samples' own spread;
    samples that do not count in one of them count in neither."""
    easy = np.array([[10.0, 1], [1000, 1], [100, np.nan]])
    pair, = orderings(TABLE, {"a": {0: easy + 1}, "b": {0: easy}}, (0, 0))
    assert (pair.better, pair.worse, pair.paper) == ("b", "a", 2.0)
    assert pair.ours == pytest.approx([1]) and pair.error == pytest.approx(0, abs=1e-9)
    assert pair.verdict == "yes"
    hidden = easy.copy()
    hidden[1, 0] = np.nan
    pair, = orderings(TABLE, {"a": {0: easy + [[3, 0], [7, 0], [5, 0]]}, "b": {0: hidden}}, (0, 0))
    assert pair.ours == pytest.approx([4]) and pair.error == pytest.approx(1)  # of 3 and 5


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.integers(1, 3))
def test_the_standard_error_is_that_of_the_mean_difference(differences, seeds):
    """Also over several seeds with the same samples: of each sample's mean over them."""
    zero = np.zeros((len(differences), 1))
    each = np.array(differences)[:, None]
    found = {"a": {seed: each + seed for seed in range(seeds)}, "b": dict.fromkeys(range(9), zero)}
    pair, = orderings(TABLE, found, (0, 0))
    assert len(pair.ours) == seeds
    expected = np.std(differences, ddof=1) / len(differences) ** 0.5
    assert pair.error == pytest.approx(expected, abs=1e-9)


def test_tables_say_what_is_missing():
    """Rows without scores, columns without any, reasons; the judge is the first column."""
    text = table_text("Title", TABLE, {
        "a": {0: np.array([[5.0, np.nan], [7, np.nan]])}, "b": {0: np.array([[7.0, 3], [7, 4]])},
    }, "about")
    assert "| | paper 3DPW | our MPJPE | our MVE | samples |" in text
    assert "| a | 70.0 | 6.00 | - | 2 |" in text and "| b | 68.0 | 7.00 | 3.50 | 2 |" in text
    assert "| c | 69.0 | - | - | 0 |" in text and "- c: not run. No data." in text
    assert "| b < a | 2.0 | -1.00 | 1.00 | **no**, within two standard errors |" in text
    assert "0 of 1 orderings hold on average, 0 by two standard errors or more; 0 fail" in text
    several = {row: {seed: np.array([[1.0 + seed, 2]]) for seed in range(3)} for row in "ab"}
    assert "| a | 70.0 | 2.00 ± 1.00 | 2.00 ± 0.00 | 3 |" in table_text("", TABLE, several, "")
    assert "orderings" not in table_text("", TABLE, {}, "")
    assert np.isnan(means(np.full((3, 1), np.nan))).all()


def test_related_rows_share_a_part():
    """Table 11 compares schedules at one T, and one schedule at every T."""
    assert share_a_part("cosine, T = 5", "linear, T = 5")
    assert share_a_part("cosine, T = 5", "cosine, T = 10")
    assert not share_a_part("cosine, T = 5", "linear, T = 10")


def test_command_lines_lose_flags_and_all_their_values():
    argv = ["--model", "genhmr", "--set", "steps=3", "width=8", "--ablate", "table4", "--set",
            "a=1"]
    assert ablations.without(argv, "set", "ablate", "models") == ["--model", "genhmr"]


def test_errors_of_samples_reach_the_table(tmp_path):
    """What a run writes of its errors is read again, without the samples that do not count."""
    class Silent(Task):
        TITLE, test_set = "", range(1)

        __init__ = data_set = build = loss = predict = scores = points = picture = None

    task = object.__new__(Silent)
    task.picture = lambda *_: np.zeros((4, 4, 3))
    errors = {"T=5": {"MPJPE": np.array([1.0, np.nan])}}
    task.write(Predictions(np.arange(2), {}, {}, errors), tmp_path)
    columns = errors_of(tmp_path, "T=5", ["MPJPE", "MVE"])
    assert columns.shape == (2, 2) and columns[0, 0] == 1 and np.isnan(columns[1]).all()
    assert np.isnan(columns[:, 1]).all() and errors_of(tmp_path, "T=7", ["MPJPE"]) is None


def finish(runs, folder, config):
    """Do the runs of a generator as train.py does; returns how many there were and its value."""
    count = 0
    while True:
        try:
            next(runs)
        except StopIteration as end:
            return count, end.value
        count += 1
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"config": config, "scores": {}}))


def test_a_run_is_done_once_and_has_to_be_the_same(tmp_path):
    """The folder's results are taken if their settings are those asked for."""
    out, flags = tmp_path / "run", argparse.Namespace
    for expected in (1, 0):
        runs = ablations.run("title", out, flags, {"layers": 4, "scales": (1, 2)})
        count, results = finish(runs, out, {"layers": 4, "scales": [1, 2]})
        assert count == expected and results["scores"] == {}
    with pytest.raises(ValueError, match="differs in layers"):
        finish(ablations.run("title", out, flags, {"layers": 2}), out, {})


def test_rows_and_seeds_are_scored_in_turn(tmp_path, capsys):
    """All rows of a seed come before the next seed; the table is there after the first row."""
    done = []

    def row_run(row, seed):
        done.append((row, seed, (tmp_path / "t.md").exists()))
        yield argparse.Namespace()
        return np.array([math.nan, 1.0])

    runs = list(ablations.score_rows(tmp_path / "t.md", "ab", (4, 5), row_run,
                                     lambda found: table_text("T", TABLE, found, "")))
    assert len(runs) == 4 and done == [
        ("a", 4, False), ("b", 4, True), ("a", 5, True), ("b", 5, True)]
    assert "| b | 68.0 | - | 1.00 ± 0.00 | 2 |" in (tmp_path / "t.md").read_text()
