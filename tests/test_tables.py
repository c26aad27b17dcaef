"""tables.py: the papers' rows, orderings, the command of every table, and tables end to end."""

import dataclasses
import json
import re

import numpy as np
import pytest
import test_tasks_adapter
import test_tasks_genhmr
from simplehand_samples import TINY, batch_of, regressor
from test_train import Run, flag

import bodymodels
import genhmr
import hmr_adapter
import simplehand
import tables
import train
from networks.backbones import simplehand_model
from simplehand import Config
from tables import (
    TABLES,
    Table,
    differences,
    draw_curves,
    errors_of,
    ordering_lines,
    scaled,
    table_text,
)
from tasks.settings import HMR_ADAPTER, override, preset_settings, settable

ROWS = {  # of the paper; SimpleHand's Table 5 has two more of its text, Table 8 one of ours
    "simplehand": (13, 4, 7, 4, 7 + 2, 7, 7, 3 + 1),
    "genhmr": (11, 6, 6, 4, 4, 4, 6, 8, 6, 7, 18, 5, 4, 4, 7, 4),
    "hmr_adapter": (9, 11, 7, 7, 4, 3)}
PRESETS = train.TASKS["simplehand"].PRESETS
EVERY = [(model, name) for model, names in TABLES.items() for name in names]


# ------------------------------------------------------------------------------------- the rows


def test_every_row_of_the_papers_is_here():
    """Each has a figure for each of the paper's columns; every table has rows of ours."""
    for model, counts in ROWS.items():
        assert list(TABLES[model]) == [f"table{number}" for number in range(1, len(counts) + 1)]
        assert tuple(len(table.figures) for table in TABLES[model].values()) == counts
    for model, name in EVERY:
        table = TABLES[model][name]
        assert all(len(figures) == len(table.paper) for figures in table.figures.values())
        assert all(figure == "-" or float(figure.rstrip("M")) > 0
                   for figures in table.figures.values() for figure in figures)
        assert set(table.words) <= set(table.figures) and len(table.words)
        assert set(table.judges) <= set(table.ours) and hasattr(tables.Runs, table.kind)


def test_rows_are_changes_of_a_config():
    """At the paper's scale sizes are the paper's; elsewhere they keep their ratio to it."""
    grid = TABLES["simplehand"]["table5"].words["grid, 7 x 7"]
    assert scaled(Config(), grid).tokens == (49, 84, 336)
    assert scaled(PRESETS["ablation"], grid).tokens == (4, 84, 336)
    wide = TABLES["simplehand"]["table7"].words["dimensions 512, 256, 128"]
    assert scaled(Config(), wide).dims == (512, 256, 128)
    assert scaled(PRESETS["ablation"], wide).dims == (128, 64, 32)
    assert scaled(Config(), ["steps=x2", "hrnet"]).steps == 2 * Config().steps
    small = genhmr.TokenizerConfig(codebook_size=64, code_dim=16)
    codes = scaled(small, ["codebook_size=4096", "code_dim=128", "num_tokens=48"])
    assert (codes.codebook_size, codes.code_dim, codes.num_tokens) == (128, 8, 48)
    assert differences(small, codes) == ["num_tokens=48", "codebook_size=128", "code_dim=8"]
    assert override(differences(small, codes), small) == [codes]


def unique_rows() -> dict[str, Config]:
    """The different configs of SimpleHand's tables, at a size for tests."""
    tiny = dataclasses.replace(TINY, heads=1)
    small = {"hrnet": ["backbone=hrnet", "upsample=1"]}
    rows = {scaled(tiny, small.get(" ".join(words), words)): f"{name}: {row}"
            for name, table in TABLES["simplehand"].items() for row, words in table.words.items()}
    return {name: config for config, name in rows.items()}


@pytest.mark.parametrize("name", unique_rows())
def test_every_row_of_simplehand_trains(name):
    """Each row of each table builds and predicts, and every parameter gets a finite gradient; a new
    model's keypoints, but HRNet's, are near the middle, where sampling has a gradient."""
    model, batch = simplehand_model(unique_rows()[name]), batch_of(2)
    prediction = model(batch["image"])
    assert prediction["vertices"].shape == (2, 778, 3)
    assert prediction["keypoints_2d"].shape == (2, 21, 2)
    middle = ((prediction["keypoints_2d"] > 0) & (prediction["keypoints_2d"] < 1)).all()
    assert middle or model.config.backbone == "hrnet"
    terms = simplehand.losses(prediction, batch, regressor())
    simplehand.total_loss(terms, model.config).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert ("coarse_2d" in terms) == ("coarse" in name)


# ------------------------------------------------------------------------------------- writing

TABLE = Table(("3DPW PA-MPJPE", "3DPW MPJPE"), {
    "a": ["50.0", "70.0"], "b": ["-", "68.0"], "c": ["40.0", "69.0"], "d": ["-", "60.0"]},
    {"a": [], "b": ["x=2"], "d": []}, "A note.", "hands", ("MPJPE", "MVE"), ("MPJPE",))


def lines_of(scores, table=TABLE, judge="MPJPE"):
    return ordering_lines(table, {row: {seed: np.array(values) for seed, values in seeds.items()}
                                  for row, seeds in scores.items()}, judge)


def test_orderings_are_paired_by_sample():
    """A shift by 1 that two rows share in every sample is sure, whatever the samples' own spread;
    samples that do not count in one of them count in neither. Judged by the paper's MPJPE."""
    easy = np.array([[10.0, 1], [1000, 1], [100, np.nan]])
    assert lines_of({"a": {0: easy + 1}, "b": {0: easy}})[-1] == (
        "| b < a | 2.0 | 1.00 | 0.00 | yes, in 1 of 1 |")
    hidden = easy.copy()
    hidden[1, 0] = np.nan
    assert lines_of({"a": {0: easy + [[3, 0], [7, 0], [5, 0]]}, "b": {0: hidden}})[-1] == (
        "| b < a | 2.0 | 4.00 | 1.00 | yes, in 1 of 1 |")  # of 3 and 5
    far = lines_of({"a": {0: easy - [[3, 0], [7, 0], [8, 0]]}, "b": {0: easy}})
    assert far[-1] == "| b < a | 2.0 | -6.00 | 1.53 | **no**, in 0 of 1 |"
    assert far[0].startswith("0 of 1 orderings hold, 0 by two standard errors or more; 1 fail")


def test_tables_judge_by_common_seeds():
    """Of rows with means alone: spreads by hand, no standard error, how many seeds agree."""
    text = table_text("Title", TABLE, {
        "a": {0: np.array([10.0, 12]), 1: np.array([12.0, 14])},
        "b": {0: np.array([10.5, 11]), 1: np.array([10.0, 11])},
        "d": {0: np.array([11.0, 13])}}, "About.")
    assert "| a | 50.0 | 70.0 | 11.00 ± 1.41 | 13.00 ± 1.41 | 2 |" in text
    assert "| d | - | 60.0 | 11.00 | 13.00 | 1 |" in text
    assert "| b < a | 2.0 | 0.75 ± 1.77 | - | yes, in 1 of 2 |" in text
    assert "| d < b | 8.0 | -0.50 | - | **no**, in 0 of 1 |" in text
    assert text.count(" < ") == 3 and "1 of 3 orderings hold, 0 by two" in text
    assert "About.\n" in text and "A note." in text


def test_tables_say_what_is_missing():
    """Rows without scores, columns without any, other papers' rows; the number of samples."""
    text = table_text("Title", TABLE, {
        "a": {0: np.array([[5.0, np.nan], [7, np.nan]])}, "b": {0: np.array([[7.0, 3], [7, 4]])},
        "d": {0: np.full((1, 2), np.nan)}}, "About.")
    assert "| | paper 3DPW PA-MPJPE | paper 3DPW MPJPE | our MPJPE | our MVE | seeds |" in text
    assert "| a | 50.0 | 70.0 | 6.00 | - | 1 |" in text
    assert "| b | - | 68.0 | 7.00 | 3.50 | 1 |" in text
    assert "| c | 40.0 | 69.0 | - | - | 0 |" in text and "| d | - | 60.0 | - | - | 1 |" in text
    assert "About. 2 test samples." in text
    assert "| b < a | 2.0 | -1.00 | 1.00 | **no**, in 0 of 1, within two standard errors |" in text
    assert "0 of 1 orderings hold, 0 by two standard errors or more; 0 fail" in text
    assert "orderings" not in table_text("", TABLE, {}, "")


def test_related_rows_share_a_part():
    """Table 11 compares schedules at one T, and one schedule at every T."""
    table = TABLES["genhmr"]["table11"]
    scores = {row: {0: [float(number), 0, 0]} for number, row in enumerate(table.words)}
    lines = "\n".join(lines_of(scores, table))
    assert "| cosine, T = 5 < linear, T = 5 |" in lines
    assert "| cosine, T = 10 < cosine, T = 5 |" in lines
    assert "cosine, T = 5 < linear, T = 10" not in lines


def test_curves_are_the_test_errors_of_the_runs(tmp_path, monkeypatch):
    """A panel for each error that judges, a line for each row with scores, and the expert's level;
    no picture where nothing is trained."""
    figures = []
    monkeypatch.setattr(tables, "save_figure", lambda figure, path: figures.append(figure))
    table = dataclasses.replace(TABLE, judges=("PVE", "occluded PVE"))
    for row, errors in {"a": (60.0, 50.0), "b": (55.0, 52.0)}.items():
        (tmp_path / row).mkdir()
        (tmp_path / row / "scores.csv").write_text("step,clear PVE,occluded PVE,PA-PVE\n" + "".join(
            f"{step},{error},90.0,20.0\n" for step, error in zip((20, 40), errors, strict=True)))
        expert = {"expert": {"clear PVE": 61.0, "occluded PVE": 90.0}} if row == "b" else {}
        (tmp_path / row / "results.json").write_text(json.dumps({"scores": expert}))
    folders = {row: tmp_path / row for row in ("a", "b", "c")}
    draw_curves(table, folders, tmp_path / "table.png")
    clear, occluded = figures[0].axes
    assert (clear.get_title(), occluded.get_title()) == ("clear PVE", "occluded PVE")
    lines = {line.get_label(): line for line in clear.get_lines()}
    assert set(lines) == {"a", "b", "the expert before"} and len(occluded.get_lines()) == 3
    assert lines["b"].get_xydata().tolist() == [[20, 55], [40, 52]]
    assert set(lines["the expert before"].get_ydata()) == {61.0}
    draw_curves(table, {"c": tmp_path / "c"}, tmp_path / "table.png")
    assert len(figures) == 1


def test_errors_of_samples_reach_the_table(tmp_path):
    """Each hand counts in its group, one that is not in the picture in none; a dual path has all
    hands merged; what is unknown is NaN."""
    nan = np.nan
    np.savez(tmp_path / "errors.npz", **{
        "found arm: clear PVE": [1.0, nan, nan], "found arm: occluded PVE": [nan, 5.0, nan],
        "ours: PVE": np.ones(3), "ours, all hands: PVE": np.full(3, 2.0),
        "expert: PVE": np.full(3, 3.0)})
    columns = errors_of(tmp_path, "found arm", ["PVE", "occluded PVE", "MVE"])
    np.testing.assert_array_equal(columns, [[1, nan, nan], [5, 5, nan], [nan, nan, nan]])
    for predictor, error in (("ours", 2.0), ("expert", 3.0)):
        assert (errors_of(tmp_path, predictor, ["PVE"]) == error).all()
    assert np.isnan(errors_of(tmp_path, "experts", ["PVE", "MVE"])).all()


# ----------------------------------------------------------------------------- every command


def chosen(arguments, *_):
    """Stands for train.choose_config: what the flags say, without opening the files they name."""
    task = train.TASKS[arguments.name]
    preset = task.PRESETS[arguments.preset]
    settings = preset_settings(task.SETTINGS, arguments.preset)
    return override(arguments.overrides, preset, settings)


class Recorder:
    """Stands for train.run: remembers command lines and writes what a run leaves."""

    def __init__(self):
        self.runs = []

    def __call__(self, argv, world):
        arguments = train.parse_arguments(argv)
        _task, config = train.TASKS[arguments.name], None
        if not arguments.eval:
            config, settings = chosen(arguments)
        self.runs.append(arguments)
        arguments.out.mkdir(parents=True)
        names = ("MPJPE", "PA-MPJPE", "MPVPE", "PA-MPVPE", "F@5", "F@15")
        (arguments.out / "results.json").write_text(json.dumps({
            "name": arguments.name, "preset": arguments.preset,
            "data": arguments.data or "rendered", "flags": train.flags_of(arguments),
            "config": config and dataclasses.asdict(config),
            "settings": config and dataclasses.asdict(settings),
            "scores": {"SimpleHand": dict.fromkeys(names, 1.0)}}))
        predictors = ("tokenizer", "found arm", "adapter", "expert", "experts", "ours", *(
            f"T={T}{P}" for T in (1, 3, 5, 10, 15, 20) for P in ("", *(
                f" P={P}" for P in (1, 3, 5, 10, 20)))))
        np.savez(arguments.out / "errors.npz", **{
            f"{predictor}: {part}{name}": np.ones(4) for predictor in predictors
            for part in ("", "hands ") for name in ("MPJPE", "PA-MPJPE", "MVE", "PVE", "PA-PVE")})
        return train.World()


@pytest.fixture
def recorder(monkeypatch):
    """Runs are recorded, not done."""
    record = Recorder()
    monkeypatch.setattr(train, "run", record)
    monkeypatch.setattr(train, "choose_config", chosen)
    return record


OFFICIAL = {
    "simplehand": ["--data", "freihand", "--data-root", "R", "--hand", "H", "--backbone", "B"],
    "genhmr": ["--data", "genhmr-sd", "--data-root", "R", "--models", "M", "--protocol",
               "3dpw_lsp14", "--test-root", "T", "--backbone", "V", "--tokenizers",
               "--data amass --data-root A --body S"],
    "hmr_adapter": ["--data", "hmr-adapter", "--data-root", "R", "--models", "M", "--protocol",
                    "arctic_p1val", "--test-root", "T", "--checkpoint", "H", "--guide", "G"]}


@pytest.mark.parametrize(("model", "name"), EVERY)
@pytest.mark.parametrize("official", [False, True])
def test_every_table_has_a_command(model, name, official, recorder, tmp_path):
    """On free and on official data: its runs are commands that train.py takes, and every row of
    ours is in the table. SimpleHand's and GenHMR's data sets are those of their tables."""
    if name == "table7" and model == "genhmr" and not official:
        return  # compares official data sets
    table = TABLES[model][name]
    flags = OFFICIAL[model] if official else []
    if (model, name) == ("simplehand", "table3") and official:
        flags = ["dexycb" if word == "freihand" else word for word in flags]
    if model == "genhmr" and table.stage == "tokenizer" and official:
        flags = ["--data", "amass", "--data-root", "A", "--body", "S"]
    if (model, name) == ("genhmr", "table7"):
        flags = flags[2:]
    tables.main([model, name, "--out", str(tmp_path), *flags])
    text = (tmp_path / f"{name}.md").read_text()
    for row in table.words:
        assert re.search(rf"^\| {re.escape(row)} \|.* 1\.00 \|.* 1 \|$", text, re.MULTILINE)
    presets = {run.preset for run in recorder.runs if not run.eval}
    assert presets <= {"paper" if official else "ablation" if model == "simplehand" else "cpu"}
    for run in recorder.runs:
        if official and "tokenizer" in run.name and table.stage != "tokenizer":
            assert (run.data, run.data_root, run.protocol) == ("amass", "A", None)
        elif official and run.name == "genhmr-transformer" and not run.eval:
            assert run.tokenizer.endswith("best.pt")  # chosen on validation data, as the paper's
        elif official and run.eval and table.stage == "tokenizer":
            assert run.data == "amass" and run.checkpoint.name == "best.pt"
        elif official and run.eval:
            assert run.data is None and run.protocol and run.data_root == "R"
        elif official and model == "hmr_adapter":
            assert run.data == f"hmr-adapter-{'hands' if 'hand' in run.name else 'body'}"
    assert len({run.out for run in recorder.runs}) == len(recorder.runs)


@pytest.mark.parametrize(("model", "name", "protocol", "stage"), [
    ("genhmr", "table5", "moyo_val", "tokenizer"), ("genhmr", "table13", "emdb1_24", "transformer"),
    ("genhmr", "table2", "emdb1_24", "transformer"), ("hmr_adapter", "table4", "ehf", "body"),
    ("hmr_adapter", "table6", "ehf", "all"), ("hmr_adapter", "table1", "ehf", "all")])
def test_a_second_data_set_scores_the_same_runs(model, name, protocol, stage, recorder, tmp_path):
    """With --on nothing is trained again, and every row is scored there by its own flags."""
    flags = ["--data", "amass", "--data-root", "A", "--body", "S"] if stage == "tokenizer" else (
        OFFICIAL[model])
    if name == "table2":
        flags = [*flags[2:-2], "--checkpoint", "C"]
        del flags[flags.index("--backbone"):][:2]
    command = [model, name, "--out", str(tmp_path), *flags]
    tables.main(command)
    trained = sum(not run.eval for run in recorder.runs)
    tables.main([*command, "--on", f"--protocol {protocol} --test-root E"])
    assert sum(not run.eval for run in recorder.runs) == trained
    scored = [run for run in recorder.runs if run.test_root == "E"]
    assert {(run.eval, run.protocol, run.data, run.stage) for run in scored} == {
        (True, protocol, None, stage)}
    rows = {"transformers": "trained", "sampled": 1, "paths": 1, "tokenizers": "trained",
            "adapters": "trained", "pairs": 3}[TABLES[model][name].kind]
    of_stage = sum(not run.eval and run.stage == stage for run in recorder.runs)
    assert len(scored) == (of_stage if rows == "trained" else rows)
    assert f"# {model} {name} {protocol}\n" in (tmp_path / f"{name} {protocol}.md").read_text()
    assert f"# {model} {name}\n" in (tmp_path / f"{name}.md").read_text()


def test_orderings_are_those_of_the_data_set():
    """On EMDB the paper's figures on EMDB count; a data set that it lacks is judged by its first.
    """
    table = TABLES["genhmr"]["table8"]
    worse, better = "1.0 to 0.01", "0.8 to 0.01"  # on 3DPW; on EMDB the other way round
    scores = {row: {0: np.zeros((2, 3))} for row in (worse, better)}
    first, emdb = f"| {better} < {worse} | 0.1 |", f"| {worse} < {better} | 0.6 |"
    for name, line in (("", first), ("EHF", first), ("EMDB", emdb)):
        assert any(found.startswith(line) for found in ordering_lines(table, scores, "MPJPE", name))


def test_rows_with_other_backbones(recorder, tmp_path):
    """Presets of the paper's size have HRNet and Hiera of the paper's size, and their own weights;
    Table 2 counts the parameters outside of the backbone."""
    official = [*OFFICIAL["simplehand"], "--hrnet", "W"]
    tables.main(["simplehand", "table2", "--out", str(tmp_path), *official])
    tables.main(["simplehand", "table5", "--out", str(tmp_path), "--preset", "h200", *official])
    first, second = recorder.runs[0], recorder.runs[1]
    config, _ = train.choose_config(first, None, None)
    assert config == PRESETS["paper_hrnet"] and first.backbone == "W"
    assert re.search(r"^\| ours, HRNet \| 1.9M \| 5.8 \| 6.1 \| 1.56 ", (
        tmp_path / "table2.md").read_text(), re.MULTILINE)
    config, _ = train.choose_config(second, None, None)
    assert (config.backbone, config.batch_size, config.sampling) == ("hiera", 512, "global")
    assert config.embed_dims == PRESETS["paper_hiera"].embed_dims and second.backbone == "B"


def test_rows_share_runs_seeds_come_in_turn_and_done_runs_stay(recorder, tmp_path):
    """All rows of a seed come before the next seed; another table finds them; a changed setting is
    another run, which its folder does not hold."""
    command = ["simplehand", "table8", "--out", str(tmp_path), "--seeds", "2", "--set", "seed=4"]
    tables.main(command)
    done = [(run.out.parent.name, run.out.name) for run in recorder.runs]
    rows = ["simplehand unchanged", "simplehand mixer=identity",
            "simplehand position_embedding=False", "simplehand mixer=convolution"]
    assert done == [(row, f"seed {seed}") for seed in (4, 5) for row in rows]
    tables.main(command)
    assert len(recorder.runs) == 8
    tables.main(["simplehand", "table4", *command[2:]])
    assert len(recorder.runs) == 8 + 2 * 3
    with pytest.raises(SystemExit, match="already holds another run .*differs in learning_rate"):
        tables.main([*command, "learning_rate=1"])


def test_small_models_are_the_defaults(recorder, tmp_path):
    """Tables score, and train around, the checkpoints in assets/; --seeds trains instead."""
    shipped = str(bodymodels.ASSETS / "genhmr_cpu.pt")
    tables.main(["genhmr", "table2", "--out", str(tmp_path / "a")])
    tables.main(["genhmr", "table4", "--out", str(tmp_path / "b"), "--tokenizer", shipped])
    run, *trained = recorder.runs
    assert run.eval and str(run.checkpoint) == shipped and run.out.parent.name == "table2"
    assert {str(each.backbone) for each in trained} == {shipped} and len(trained) == 4
    assert all(each.brief and each.overrides[0] == "steps=240" for each in trained)
    tables.main(["genhmr", "table2", "--out", str(tmp_path / "d"), "--seeds", "1"])
    names = [each.name for each in recorder.runs[5:]]
    assert names == ["genhmr-tokenizer", "genhmr-transformer", "genhmr-transformer"]
    tables.main(["hmr_adapter", "table1", "--out", str(tmp_path / "c")])
    assert str(recorder.runs[-1].guide) == str(bodymodels.ASSETS / "hmr_adapter_body_cpu.pt")


def test_hands_without_annotation_have_no_figures(recorder, tmp_path):
    """As of FreiHAND's evaluation split before its meshes came out: pred.json is for the server."""
    command = ["simplehand", "table1", "--out", str(tmp_path), *OFFICIAL["simplehand"]]
    tables.main(command)
    for path in tmp_path.glob("*/seed 0/results.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": {}}))
    tables.main(command)
    assert "| ours, FastViT | 5.7 | 6.0 | 0.772 | 0.986 | 70 | - | - | - | - | 1 |" in (
        tmp_path / "table1.md").read_text()


@pytest.mark.parametrize(("name", "part"), [("table3", "hand"), ("table4", "body")])
def test_rows_from_scratch_have_no_expert_and_double_steps(name, part, recorder, tmp_path):
    """No. 2 alone takes "double steps of other settings"."""
    tables.main(["hmr_adapter", name, "--out", str(tmp_path), "--set", "steps=7"])
    runs = {run.out.parent.name: run for run in recorder.runs}
    scratch, full = (runs[f"{part} {steps}inject=none trainable=all"]
                     for steps in ("steps=14 ", ""))
    assert scratch.expert is None and scratch.overrides[-4:-1] == [
        "steps=14", "inject=none", "trainable=all"]
    assert full.expert and full.guide == scratch.guide
    assert [run for run in recorder.runs if "steps=14" in run.overrides] == [scratch]


@pytest.mark.parametrize(("arguments", "message"), [
    (["simplehand", "table9"], "simplehand has table1, table2, table3, table4, table5"),
    (["genhmr", "table4", "--preset", "toy"], "no preset 'toy': expected paper, h200"),
    (["genhmr", "table2", "--seeds", "2", "--checkpoint", "x.pt"], "leave --checkpoint out"),
    (["genhmr", "table4", "--set", "layer=3"], "expected FIELD=VALUE"),
    (["genhmr", "table2", "--checkpoint", "absent.pt"], "no checkpoint absent.pt"),
    (["genhmr", "table4", "--data", "genhmr-sd", "--data-root", "R"], "give --tokenizer FILE or"),
    (["simplehand", "table7", "--on", "--protocol freihand"], "for genhmr or hmr_adapter"),
    (["simplehand", "table7", "--typo"], "unrecognized arguments: --typo"),
])
def test_tables_that_cannot_be_are_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        tables.main([*arguments, "--out", str(tmp_path)])
    text = capsys.readouterr().err + str(error.value)
    assert message in text and "Traceback" not in text


# --------------------------------------------------------------------------------- end to end


# Tiny runs of GenHMR's stages and of HMR-Adapter's, in one folder
folder, genhmrs = test_tasks_genhmr.folder, test_tasks_genhmr.finished
adapters = test_tasks_adapter.finished


def adapter_command(adapters, out, name, **fields):
    """tables.py hmr_adapter for the tiny experts of `adapters`."""
    known = set().union(*(settable(getattr(hmr_adapter.PRESETS["cpu"], part))
                          for part in ("hand", "body")), settable(HMR_ADAPTER["cpu"]))
    settings = [f"{name}={flag(value)}" for name, value in (
        test_tasks_adapter.TINY | {"steps": 1} | fields).items()
        if name in known and name != "arm_source"]
    return ["hmr_adapter", name, "--checkpoint", str(adapters / "hand" / "checkpoint.pt"),
            "--guide", str(adapters / "body" / "checkpoint.pt"), "--preset", "cpu", "--cache",
            str(adapters.parent / "cache"), "--out", str(out), "--set", *settings]


@pytest.mark.slow
def test_a_table_of_pairs_trains_every_row_once(adapters, tmp_path, capsys):
    """Table 6 in two processes: three body paths with one hand path; then nothing is left to train.
    Table 1 scores the experts.
    """
    arguments = adapter_command(adapters, tmp_path, "table6")
    output = Run(tmp_path, arguments, ranks=2, program="tables.py").end()
    assert output.count("from step 0 to 1,") == 4
    text = (tmp_path / "table6.md").read_text()
    for path in tmp_path.glob("hand unchanged with *"):
        scores = json.loads((path / "seed 0" / "results.json").read_text())["scores"]["ours"]
        assert f" {scores['PVE']:.2f} |" in text
    assert len(list(tmp_path.glob("hand unchanged with *"))) == 3
    tables.main(arguments)
    assert "from step 0" not in capsys.readouterr().out
    tables.main(adapter_command(adapters, tmp_path, "table1"))
    usual = json.loads((adapters / "results.json").read_text())["scores"]
    text = (tmp_path / "table1.md").read_text()
    assert re.search(rf"^\| ours \|.* {usual['ours']['PVE']:.2f} \|", text, re.MULTILINE)
    assert re.search(r"^\| OSX \|.* - \| 0 \|$", text, re.MULTILINE)


@pytest.mark.slow
def test_tables_share_tokenizers_and_transformers(genhmrs, tmp_path, capsys):
    """Table 13 end to end: four tokenizers, a transformer on each; Table 5 finds its tokenizers
    here, and Table 12 its checkpoint."""
    folder = genhmrs["transformer"].parent
    settings = [f"{name}={flag(value)}" for stage in ("tokenizer", "transformer")
                for name, value in test_tasks_genhmr.TINY[stage].items()]
    arguments = ["--preset", "cpu", "--out", str(tmp_path), "--cache", str(folder / "cache"),
                 "--backbone", str(genhmrs["encoder"] / "checkpoint.pt"), "--set", *settings,
                 "steps=1", "accumulate=1", "test_samples=3", "codebook_size=32", "code_dim=8"]
    tables.main(["genhmr", "table13", *arguments])
    assert capsys.readouterr().out.count("from step 0 to 1,") == 8
    changes = ["codebook_size=16", "code_dim=4", "codebook_size=64"]
    runs = {path.parent.parent.name: json.loads(path.read_text())
            for path in tmp_path.glob("*/seed 0/results.json")}
    assert set(runs) == {"transformer unchanged", "tokenizer unchanged", *(
        f"tokenizer {text}" for text in changes), *(
        f"transformer tokenizer.{text}" for text in changes)}
    for name, results in runs.items():
        if name.startswith("transformer tokenizer."):
            field, value = name.removeprefix("transformer tokenizer.").split("=")
            assert results["config"]["tokenizer"][field] == int(value)
    error = runs["transformer tokenizer.code_dim=4"]["scores"]["T=5"]["MPJPE"]
    assert re.search(rf"^\| 2048 x 128 \|.* {error:.2f} \|", (
        tmp_path / "table13.md").read_text(), re.MULTILINE)
    tables.main(["genhmr", "table5", *arguments])
    tables.main(["genhmr", "table12", *arguments, "--seeds", "1"])
    assert "from step 0" not in capsys.readouterr().out
    error = runs["transformer unchanged"]["scores"]["T=5"]["MPJPE"]
    assert f"| top-1 | 68.1 | 77.5 | 88.2 | 99.5 | {error:.2f} |" in (
        tmp_path / "table12.md").read_text()


@pytest.mark.slow
def test_rows_around_the_shipped_experts(tmp_path, capsys):
    """Every row of Table 3: the expert before is a row of No. 6's run, No. 2 has double steps."""
    tables.main(["hmr_adapter", "table3", "--cache", str(tmp_path / "cache"), "--out",
                 str(tmp_path), "--set", "steps=1",
                 "eval_every=1", "batch_size=4", "train_samples=8", "test_samples=9"])
    output = capsys.readouterr().out
    assert output.count("from step 0 to 1,") == 5 and output.count("from step 0 to 2,") == 1
    text = (tmp_path / "table3.md").read_text()
    rows = re.findall(r"^\| (?:HaMeR|No\. [1-6]).* \|(?: [-\dM.]+ \|){4} ([-\d.]+) \|"
                      r"(?: [\d.]+ \|){4} 1 \|$", text, re.M)
    assert len(rows) == 7 and rows[0] == "-" and min(map(float, rows[1:])) > 0
    assert "18 test samples." in text
    assert (tmp_path / "table3.png").exists()
