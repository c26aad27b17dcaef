"""tasks/hmr_adapter_tables.py: the paper's rows, and tables end to end on tiny experts."""

import json
import re

import numpy as np
import pytest
from test_tasks_adapter import TINY, finished, folder  # noqa: F401
from test_train import Run, flag

import train
import weights.hmr_adapter
from tasks.hmr_adapter import HandAdapterTask
from tasks.hmr_adapter_tables import (
    SCORED,
    SHIPPED,
    TABLES,
    TRAINED,
    PaperTask,
    TableRuns,
    hand_errors,
    merged_errors,
)

ROWS = {"table1": 9, "table2": 11, "table3": 7, "table4": 7, "table5": 4, "table6": 3}


def test_every_row_of_the_paper_is_here():
    """Each has a score per column; a row without scores of ours says why; --row has them all."""
    assert {name: len(table.rows) for name, table in TABLES.items()} == ROWS
    rows = [(table, row) for table in TABLES.values() for row in table.rows.values()]
    assert all(len(row.paper) == len(table.paper) for table, row in rows)
    assert all(bool(row.changes) != bool(row.missing) for _, row in rows)
    used = {row.changes["row"] for name in TRAINED for row in TABLES[name].rows.values()}
    for row in used:
        stage = "hand" if row[6] in "35" else "body"
        arguments = train.parse_arguments(["--model", "hmr_adapter", "--stage", stage, "--preset",
                                           "cpu", "--row", row])
        kind = train.TASKS[f"hmr_adapter-{stage}"]
        config = kind.row(kind.PRESETS["cpu"], arguments)
        assert config.steps == kind.PRESETS["cpu"].steps * (1 + row.endswith("No. 2"))


@pytest.mark.parametrize(("extra", "message"), [
    (["--ablate", "table7"], "hmr_adapter has table1, table2, table3, table4, table5, table6"),
    (["--ablate", "table3", "--eval"], "without --eval"),
    (["--ablate", "table3", "--preset", "toy"], "no preset 'toy' for hmr_adapter"),
    (["--ablate", "table4", "--data", "arctic"], "trains on rendered data"),
    (["--ablate", "table1", "--checkpoint", "absent.pt"], "absent.pt"),
    ([], "trained in stages, each a run of its own: add --stage"),
])
def test_tables_that_cannot_be_are_one_line(extra, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train.main(["--model", "hmr_adapter", "--out", str(tmp_path), *extra])
    assert message in capsys.readouterr().err + str(error.value)


def test_shipped_checkpoints_are_the_default():
    """--ablate table1 alone scores them."""
    arguments = train.parse_arguments(["--model", "hmr_adapter", "--ablate", "table1"])
    run = next(PaperTask.plan(arguments, train.parse_arguments))
    assert run.checkpoint == SHIPPED["hand"] and run.eval and run.out.name == "table1"
    assert str(run.guide) == str(SHIPPED["body"])


def test_rows_from_scratch_have_an_experts_sizes_no_weights_and_double_steps():
    arguments = train.parse_arguments(["--model", "hmr_adapter", "--ablate", "table3", "--set",
                                       "steps=7"])
    first = next(PaperTask.plan(arguments, train.parse_arguments))
    assert first.row == "Table 3, No. 6" and first.expert and first.guide
    scratch = next(TableRuns(arguments, train.parse_arguments).trained("Table 3, No. 2", 5))
    assert scratch.overrides[-2:] == ["steps=14", "seed=5"]
    task = object.__new__(HandAdapterTask)
    task.arguments, expert = scratch, weights.hmr_adapter.load_hand_expert(SHIPPED["hand"])
    task.config = HandAdapterTask.adapt(HandAdapterTask.PRESETS["cpu"], scratch)
    assert task.config.expert == expert.config and task.config.trainable == "all"
    new, old = dict(task.build().expert.named_parameters()), dict(expert.named_parameters())
    assert new.keys() == old.keys() and all(
        value.shape == old[name].shape for name, value in new.items())
    assert not any(value.equal(old[name]) for name, value in new.items() if value.ndim > 1)
    assert task.notes() == ["this row: the expert is trained from random weights, too"]


def test_all_hands_are_the_clear_and_the_occluded_ones(tmp_path):
    """Each hand counts in its group; one that is not in the picture counts in none."""
    nan = np.nan
    np.savez(tmp_path / "errors.npz", **{"found arm: clear PVE": [1.0, nan, nan],
                                         "found arm: occluded PVE": [nan, 5.0, nan]})
    columns = hand_errors(tmp_path, "found arm", ["PVE", "occluded PVE"])
    np.testing.assert_array_equal(columns, [[1, nan], [5, 5], [nan, nan]])
    assert hand_errors(tmp_path, "true arm", ["PVE"]) is None


def tables(folder, finished, out, *extra):  # noqa: F811
    settings = [f"{name}={flag(value)}" for name, value in (TINY | {"steps": 1}).items()
                if name not in ("image_size", "patch_size", "backbone", "hand_upscale",
                                "hand_cells", "depth_bins", "box_dim", "joint_dim", "vit_dim",
                                "vit_depth", "vit_heads", "arm_source")]
    return ["--model", "hmr_adapter", "--checkpoint", str(finished / "hand" / "checkpoint.pt"),
            "--guide", str(finished / "body" / "checkpoint.pt"), "--cache", str(folder / "cache"),
            "--out", str(out), *extra, "--set", *settings]


@pytest.mark.slow
def test_a_table_of_pairs_trains_every_row_once(finished, folder, tmp_path, capsys):  # noqa: F811
    """Table 6 end to end: three body paths with one hand path, then nothing is left to do."""
    arguments = tables(folder, finished, tmp_path, "--ablate", "table6")
    train.main(arguments)
    assert capsys.readouterr().out.count("from step 0 to 1,") == 4
    text = (tmp_path / "table6.md").read_text()
    for row, entry in TABLES["table6"].rows.items():
        out = tmp_path / f"Table 3, No. 6 with {entry.changes['row']}" / "seed 0"
        scores = json.loads((out / "results.json").read_text())["scores"]["ours"]
        assert re.search(rf"^\| {row} \|.* {scores['PVE']:.2f} \|", text, re.MULTILINE)
    train.main(arguments)
    assert "from step 0" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORED)
def test_tables_of_shipped_models(finished, folder, tmp_path, name):  # noqa: F811
    """Their rows are those of --stage all --eval."""
    arguments = tables(folder, finished, tmp_path, "--ablate", name)
    train.main([*arguments[:arguments.index("--set")], "--set", "test_samples=9"])
    usual = json.loads((finished / "results.json").read_text())["scores"]
    scores = json.loads((tmp_path / name / "results.json").read_text())["scores"]
    assert scores["ours"] == pytest.approx(usual["ours"], rel=1e-5)
    text = (tmp_path / f"{name}.md").read_text()
    assert re.search(rf"^\| Ours \|.* {scores['ours']['PVE']:.2f} \|", text, re.MULTILINE)
    assert "- OSX: not run." in text


@pytest.mark.slow
def test_rows_train_in_two_processes(finished, folder, tmp_path):  # noqa: F811
    """Every row of Table 3 under torchrun, No. 2 from random weights with double steps."""
    arguments = tables(folder, finished, tmp_path, "--ablate", "table3")
    output = Run(tmp_path, arguments, ranks=2).end()
    assert output.count("from step 0 to 1,") == 5 and output.count("from step 0 to 2,") == 1
    text = (tmp_path / "table3.md").read_text()
    assert len(re.findall(r"^\| (?:HaMeR|No\. [1-6]) \|(?: [\d.]+ \|){7} 18 \|$", text, re.M)) == 7


def test_tables_leave_no_hand(tmp_path):
    """Where a predictor leaves doubted hands, a table has its row without that, as in the paper."""
    rows = {"ours: PVE": np.ones(3), "ours, all hands: PVE": np.full(3, 2.0),
            "expert: PVE": np.full(3, 3.0)}
    np.savez(tmp_path / "errors.npz", **rows)
    for predictor, error in (("ours", 2.0), ("expert", 3.0)):
        assert (merged_errors(tmp_path, predictor, ["PVE"]) == error).all()
    assert merged_errors(tmp_path, "experts", ["PVE"]) is None
