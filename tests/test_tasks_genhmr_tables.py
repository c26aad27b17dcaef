"""tasks/genhmr_tables.py: the paper's rows, the runs they need, tables and figures end to end."""

import dataclasses
import json
import re

import numpy as np
import pytest
from test_tasks_genhmr import TINY, command_line, finished, flag, folder  # noqa: F401

import data
import genhmr
import train
from tasks import genhmr_figures
from tasks.base import Predictions
from tasks.genhmr_tables import (
    FIVE,
    SAMPLED,
    SHIPPED,
    TABLES,
    TOKENIZED,
    TRAINED,
    PaperTask,
    scaled,
)

ROWS = {"table2": 6, "table3": 6, "table4": 4, "table5": 4, "table6": 4, "table8": 8, "table9": 6,
        "table10": 7, "table11": 18, "table12": 5, "table13": 4, "table14": 4, "table15": 7,
        "table16": 4}  # of the paper


def test_every_row_of_the_paper_is_here():
    """Each has as many scores as its table has columns; the default model has the same in all."""
    assert {name: len(table.rows) for name, table in TABLES.items()} == ROWS
    for name, table in TABLES.items():
        assert all(len(row.paper) == len(table.paper) for row in table.rows.values())
        if name in TRAINED and name != "table15":
            paper = dataclasses.asdict(genhmr.Config())
            defaults = [row for row in table.rows.values() if all(
                paper[field] == value or field == "tokenizer" and not value
                or field == "tokenizer" and value == {"num_tokens": 96}
                for field, value in row.changes.items())]
            assert [row.paper[:4] for row in defaults] == [FIVE], name


@pytest.mark.parametrize("name", [*TRAINED, *TOKENIZED])
def test_rows_are_changes_of_a_config(name):
    """Every row makes a config, at the paper's scale the paper's own sizes."""
    for row in TABLES[name].rows.values():
        fields = {field: value for field, value in row.changes.items() if field != "tokenizer"}
        of_tokenizer = row.changes.get("tokenizer", {})
        if name in TOKENIZED:
            fields, of_tokenizer = {}, row.changes
        dataclasses.replace(genhmr.Config(), **fields)
        changed = scaled(genhmr.TokenizerConfig(), of_tokenizer)
        assert changed == dataclasses.replace(genhmr.TokenizerConfig(), **of_tokenizer)
        small = scaled(genhmr.TokenizerConfig(codebook_size=64, code_dim=16), of_tokenizer)
        assert small.codebook_size * 2048 == changed.codebook_size * 64
        assert small.code_dim * 256 == changed.code_dim * 16


@pytest.mark.parametrize(("extra", "message"), [
    (["--ablate", "table7"], "genhmr has table2, table3, table4, table5, table6, table8"),
    (["--ablate", "table2", "--figure", "5"], "with --ablate or --figure"),
    (["--ablate", "table4", "--eval"], "without --eval"),
    (["--ablate", "table4", "--seeds", "0"], "--seeds 0: expected at least 1"),
    (["--ablate", "table4", "--preset", "toy"], "no preset 'toy' for genhmr"),
    (["--ablate", "table4", "--data", "h36m-moon"], "trains on rendered data"),
    (["--ablate", "table2", "--seeds", "2", "--checkpoint", "x.pt"], "leave --checkpoint out"),
    (["--ablate", "table2", "--iterations", "3"], "--iterations means nothing to genhmr"),
    (["--ablate", "table4", "--set", "layer=3"], "field of:"),
    (["--ablate", "table2", "--checkpoint", "absent.pt"], "no checkpoint absent.pt"),
    (["--figure", "3"], "invalid choice: '3'"),
    (["--ablate", "table4", "--backbone", "absent.pt"], "no encoder absent.pt"),
])
def test_tables_that_cannot_be_are_one_line(extra, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train.main(["--model", "genhmr", "--out", str(tmp_path), *extra])
    assert message in capsys.readouterr().err + str(error.value)


def test_telling_pictures_go_from_the_best_to_the_worst():
    """By the gain of the last predictor over the first; with one predictor by its error."""
    errors = {"UGS": {"MPJPE": np.array([5.0, 5, 5, 5])}, "P": {"MPJPE": np.array([6.0, 1, 9, 4])}}
    both = Predictions(np.arange(4), {}, {}, errors)
    assert genhmr_figures.telling(both, 2) == [1, 2]
    assert genhmr_figures.telling(both, 9) == [1, 3, 0, 2]
    one = Predictions(np.arange(4), {}, {}, {"P": errors["P"]})
    assert genhmr_figures.telling(one, 1) == [1]


def test_figure_7_needs_no_model(tmp_path, capsys):
    train.main(["--model", "genhmr", "--figure", "7", "--out", str(tmp_path)])
    assert data.read_image(tmp_path / "figure7.png").std() > 5
    assert str(tmp_path / "figure7.png") in capsys.readouterr().out


def scored(folder, finished, out, *extra):  # noqa: F811
    train.main(["--model", "genhmr", "--checkpoint",
                str(finished["transformer"] / "checkpoint.pt"), "--cache", str(folder / "cache"),
                "--out", str(out), *extra])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table3", "table12"])
def test_tables_of_one_checkpoint(finished, folder, tmp_path, name):  # noqa: F811
    """Their rows are those that --eval scores, where it has them; every row is in the table."""
    scored(folder, finished, tmp_path, "--ablate", name)
    scores = json.loads((tmp_path / name / "results.json").read_text())["scores"]
    usual = json.loads((finished["transformer"] / "results.json").read_text())["scores"]
    for row, of_eval in {"table3": {"UGS": "T=5", "P = 10": "T=5 P=10"},
                         "table12": {"top-1": "T=5"}}[name].items():
        assert scores[row] == pytest.approx(usual[of_eval], rel=1e-5)
    text = (tmp_path / f"{name}.md").read_text()
    for row in SAMPLED[name].rows:
        if row == "top-20":  # the codebook has 16
            assert f"| {row} |" in text and row not in scores
            continue
        assert re.search(rf"^\| {row} \|.* {scores[row]['MPJPE']:.2f} \|.* 19 \|$", text, re.M)
    assert len(set(map(str, scores.values()))) > 4


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 6])
def test_figures_show_the_pictures_asked_for(finished, folder, tmp_path, number):  # noqa: F811
    scored(folder, finished, tmp_path, "--figure", str(number), "--pictures", "3,1")
    assert data.read_image(tmp_path / f"figure{number}" / f"figure{number}.png").std() > 5
    with pytest.raises(SystemExit, match="the test split has 19"):
        scored(folder, finished, tmp_path, "--figure", str(number), "--pictures", "19")


@pytest.mark.slow
def test_iterations_are_counted_against_one(finished, folder, tmp_path):  # noqa: F811
    """The figure's table has each oracle's MPJPE with T = 1, and paired differences from it."""
    scored(folder, finished, tmp_path, "--figure", "iterations")
    out = tmp_path / "iterations"
    assert data.read_image(out / "iterations.png").std() > 5
    scores = json.loads((out / "results.json").read_text())["scores"]
    table = (out / "iterations.md").read_text()
    for name in ("as it is", "told 90 % of the tokens", "told the 2D keypoints"):
        first, last = (scores[f"{name}, T = {T}"]["MPJPE"] for T in (1, 20))
        assert re.search(rf"^\| {name} \| {first:.1f} \|.*\| [+-]{abs(last - first):.2f} ± ", table,
                         re.MULTILINE)


@pytest.mark.slow
def test_a_table_trains_every_row_once(finished, folder, tmp_path, capsys):  # noqa: F811
    """Table 13 end to end: four tokenizers, a transformer on each; done runs are kept, and
    Table 5 finds its tokenizers here."""
    settings = [f"{name}={flag(value)}" for stage in ("tokenizer", "transformer")
                for name, value in TINY[stage].items()]
    arguments = ["--model", "genhmr", "--out", str(tmp_path), "--cache", str(folder / "cache"),
                 "--backbone", str(finished["encoder"] / "checkpoint.pt"), "--set", *settings,
                 "steps=1", "accumulate=1", "test_samples=3", "codebook_size=32", "code_dim=8"]
    train.main([*arguments, "--ablate", "table13"])
    assert capsys.readouterr().out.count("from step 0 to 1,") == 8
    runs = {path.parent.parent.name: json.loads(path.read_text())
            for path in tmp_path.glob("*/seed 0/results.json")}
    changes = ["codebook_size=16", "code_dim=4", "codebook_size=64"]
    assert set(runs) == {"unchanged", "tokenizer", *(f"tokenizer {text}" for text in changes),
                         *(f"tokenizer.{text}" for text in changes)}
    for name, results in runs.items():
        if name.startswith("tokenizer."):
            field, value = name.removeprefix("tokenizer.").split("=")
            assert results["config"]["tokenizer"][field] == int(value)
    text = (tmp_path / "table13.md").read_text()

    def error_of(name):
        return runs[name]["scores"]["T=5"]["MPJPE"]

    error = error_of("tokenizer.code_dim=4")
    assert re.search(rf"^\| 2048 x 128 \|.* {error:.2f} \|", text, re.MULTILINE)
    train.main([*arguments, "--ablate", "table5"])
    train.main([*arguments, "--ablate", "table12", "--seeds", "1"])
    assert "from step 0" not in capsys.readouterr().out
    assert (tmp_path / "table5.md").exists()
    assert f"| top-1 | 68.1 | 77.5 | 88.2 | 99.5 | {error_of('unchanged'):.2f} |" in (
        tmp_path / "table12.md").read_text()
    with pytest.raises(SystemExit, match="differs in learning_rate"):
        train.main([*arguments, "learning_rate=1", "--ablate", "table5"])


def test_changes_are_paired():
    """The standard error is that of the differences, not of two means."""
    errors = {f"a, T = {T}": {"MPJPE": np.array([1.0, 50, 99]) + 0.1 * T}
              for T in genhmr_figures.COUNTS}
    lines = genhmr_figures.changes(Predictions(np.arange(3), dict.fromkeys(errors), {}, errors))
    np.testing.assert_allclose(lines["a"][-1], (52.0, 1.9, 0.0), atol=1e-6)


def test_the_shipped_encoder_is_the_default(tmp_path):
    """Rows are trained around the encoder inside assets/genhmr_cpu.pt, if --backbone gives none."""
    arguments = train.parse_arguments(["--model", "genhmr", "--ablate", "table4", "--out",
                                       str(tmp_path), "--tokenizer", str(SHIPPED)])
    run = next(PaperTask.plan(arguments, train.parse_arguments))
    assert run.backbone == str(SHIPPED) and run.stage == "transformer"


def test_the_shipped_checkpoint_is_the_default():
    """--ablate table2 alone scores it."""
    arguments = train.parse_arguments(["--model", "genhmr", "--ablate", "table2"])
    run = next(PaperTask.plan(arguments, train.parse_arguments))
    assert run.checkpoint.name == "genhmr_cpu.pt" and run.eval and run.out.name == "table2"
