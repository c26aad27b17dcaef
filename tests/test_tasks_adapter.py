"""HMR-Adapter's four stages and its dual path: runs on tiny models, tables, official rows."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from test_tasks_genhmr import batch_of, load
from test_train import assert_same_state, flag, rows

import data
import hmr_adapter
import train
import weights.hmr_adapter
from tasks.base import Predictions
from tasks.hmr_adapter import look, stage_runs
from tasks.settings import preset_settings, settable

TINY = {  # set in every stage that has the field
    "image_size": 32, "patch_size": 8, "vit_dim": 16, "vit_depth": 1,
    "vit_heads": 2, "hand_upscale": 4, "test_body_size": 0,
    "decoder_dim": 16, "decoder_layers": 1, "decoder_heads": 2,
    "decoder_ffn": 16, "depth_bins": 4, "hand_cells": 4, "box_dim": 8, "joint_dim": 8,
    "offset_hidden": 16, "arm_source": "true", "knuckle_source": "true", "body_size": 32,
    "batch_size": 4, "steps": 4, "eval_every": 3, "warmup_steps": 1,
    "learning_rate": 1e-2, "train_samples": 20, "test_samples": 9}
ERRORS = ["PA-MPJPE", "PA-PVE", "MPJPE", "PVE"]
OF_HANDS = [f"{group} {name}" for group in ("clear", "occluded") for name in ERRORS]
OF_BODIES = ERRORS + [f"hands {name}" for name in ERRORS]
TABLES = {
    "hand_expert": (["expert", "mean hand"], OF_HANDS),
    "body_expert": (["expert", "mean pose"], OF_BODIES),
    "hand": (["found arm", "true arm", "no arm", "expert",
              *(f"{name}, true boxes" for name in ("found arm", "true arm", "no arm", "expert")),
              "mean hand"], OF_HANDS),
    "body": (["adapter", "expert", "mean pose"], OF_BODIES),
    ".": (["ours", "ours, all hands", "ours, true boxes", "experts", "experts, all hands",
           "experts, true boxes", "expert", "mean pose"],
          OF_BODIES),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all runs of these tests are."""
    return tmp_path_factory.mktemp("adapter")


def command_line(folder, stage, out, *extra, **fields):
    task = train.TASKS[f"hmr_adapter-{stage}"]
    known = {} if stage == "all" else (settable(task.PRESETS["cpu"])
                                       | settable(task.SETTINGS["cpu"]))
    settings = [f"{name}={flag(value)}" for name, value in (TINY | fields).items()
                if stage == "all" or name in known]
    return ["--model", "hmr_adapter", "--stage", stage, "--preset", "cpu", "--out", str(out),
            "--cache", str(folder / "cache"), "--save-every", "0", *map(str, extra), "--set",
            *settings]


@pytest.fixture(scope="module")
def finished(folder):
    """All stages run without interruption: their folder."""
    train.main(command_line(folder, "all", folder / "all", "--export", folder / "small"))
    return folder / "all"


def scores_of(out):
    return json.loads((out / "results.json").read_text())["scores"]


# ------------------------------------------------------------------------- what a run leaves


def test_tables_hold_the_required_rows(finished):
    """Experts, adapters and the dual path: every predictor with every error, and pictures."""
    for stage, (predictors, errors) in TABLES.items():
        scores = scores_of(finished / stage)
        assert list(scores) == predictors
        assert all(list(row) == errors for row in scores.values())
        assert np.isfinite([list(row.values()) for row in scores.values()]).all()
        assert data.read_image(finished / stage / "predictions.png").std() > 5
    assert not (finished / "log.csv").exists()


@pytest.mark.parametrize("stage", ["hand_expert", "body_expert", "hand", "body"])
def test_logs_hold_the_terms_of_the_loss(finished, stage):
    """The total is the weighted sum of what is logged; it falls; no step is missing."""
    log = rows(finished / stage / "log.csv")
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    config = weights.hmr_adapter.load_checkpoint(finished / stage / "checkpoint.pt").config
    total = hmr_adapter.hand_total_loss if "hand" in stage else hmr_adapter.body_total_loss
    for row in log:
        assert row["loss"] == pytest.approx(total(row, config), rel=1e-5)
    assert [row["step"] for row in rows(finished / stage / "scores.csv")] == [3, 4]


def test_the_scores_of_an_expert_stay_the_same_in_every_table(finished):
    """Alone, beside its adapter and, of bodies, in the dual path."""
    for stages in ((("hand_expert", "expert"), ("hand", "expert, true boxes")),
                   (("body_expert", "expert"), ("body", "expert"), (".", "expert"))):
        first, *others = (scores_of(finished / stage)[name] for stage, name in stages)
        for other in others:
            assert other == pytest.approx(first, rel=1e-4)


def test_exports_score_what_they_claim(finished, folder, tmp_path, undrawn):
    """A file in half precision gives, evaluated, the scores in it; both, those of the dual path;
    and the hand's, as --stage hand_expert, those of the expert inside."""
    hand, body = (folder / "small" / f"hmr_adapter_{stage}_cpu.pt" for stage in ("hand", "body"))
    arguments = ["--model", "hmr_adapter", "--cache", str(folder / "cache"), "--eval", "--out",
                 str(tmp_path), "--checkpoint", str(hand), "--stage"]
    small = torch.load(hand, weights_only=True)
    assert "optimizer" not in small
    train.main([*arguments, "hand"])
    claimed = small["scores"]  # with a guide
    for name, scores in scores_of(tmp_path).items():
        assert scores == pytest.approx(claimed.get(f"{name}, true boxes", claimed.get(name)),
                                       rel=1e-4)
    train.main([*arguments, "hand_expert"])
    assert scores_of(tmp_path)["expert"] == pytest.approx(claimed["expert, true boxes"], rel=1e-4)
    train.main([*arguments, "all", "--guide", str(body)])
    for name, scores in scores_of(tmp_path).items():
        assert scores == pytest.approx(scores_of(finished)[name], rel=0.02)


def test_a_changed_expert_has_no_column(finished, folder, tmp_path, undrawn):
    """A rival that trains the expert's head is scored without the expert that it was."""
    expert = finished / "hand_expert" / "checkpoint.pt"
    train.main(command_line(folder, "hand", tmp_path, "--expert", expert, steps=1, inject="none",
                            trainable="head"))
    assert list(scores_of(tmp_path)) == ["true arm", "no arm", "mean hand"]


@pytest.mark.parametrize("stage", ["hand", "body"])
def test_rows_from_scratch_train_without_an_expert(folder, tmp_path, stage, undrawn):
    """No. 2 of Tables 3 and 4: all of the network, no weights of an expert."""
    train.main(command_line(folder, stage, tmp_path, inject="none", trainable="all", steps=1,
                            batch_size=2, train_samples=4, test_samples=1, body_size=128))
    assert "expert" not in scores_of(tmp_path)


def test_the_dual_path_is_scored_as_it_is_used(finished, folder):
    """Hands are cut out at the boxes that the body path predicts; true boxes are another row."""
    arguments = train.parse_arguments([
        "--model", "hmr_adapter", "--stage", "all", "--eval", "--cache", str(folder / "cache"),
        "--checkpoint", str(finished / "hand/checkpoint.pt"), "--guide",
        str(finished / "body/checkpoint.pt")])
    arguments, = stage_runs(arguments)
    task, model, *_ = train.prepare(arguments)
    batch = batch_of(task.test_set, range(3))
    with torch.no_grad():
        predictions = task.predict(model, batch)
        found = predictions.found
        low, side = look(model.body, batch)["hand_boxes"][:, :, None].split(2, -1)
        knuckles = hmr_adapter.true_knuckles(batch)
        inside = ((knuckles >= low) & (knuckles <= low + side)).all(-1)
        share = inside[batch["hand_valid"] > 0].float().mean()
        expected = model(batch["image"])["body_pose"]
        true = model.join(model.body(batch["image"]), batch["hand_images"],
                          batch["hand_valid"])["body_pose"]
    torch.testing.assert_close(found["ours"]["pose"], expected)
    torch.testing.assert_close(found["ours, true boxes"]["pose"], true)
    assert not torch.allclose(expected, true)
    predictions = predictions.map(lambda value: value.numpy())
    assert task.notes(predictions).endswith(
        f"{share:.1%} of the true knuckles are in the predicted hand boxes.\n")


def test_the_same_command_continues_where_it_stopped(finished, folder, tmp_path, capsys):
    """Stages that are done are only scored; the others end in the checkpoints of a whole run."""
    out = tmp_path / "stopped"
    for stage in ("hand_expert", "body_expert"):
        shutil.copytree(finished / stage, out / stage)
    train.main(command_line(folder, "all", out))
    for stage in ("hand", "body"):
        assert_same_state(load(finished / stage), load(out / stage))
        assert rows(finished / stage / "log.csv") == rows(out / stage / "log.csv")
    assert scores_of(out) == scores_of(finished)
    assert capsys.readouterr().out.count("from step 4 to 4") == 2


# ------------------------------------------------------------------------------ command line


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "trained in stages, each a run of its own: add --stage hand_expert, then --stage body_ex"),
    (["--stage", "hand"], "--stage hand_expert and give its checkpoint with --expert"),
    (["--stage", "all", "--guide", "x.pt"], "trains its own --guide .*they go with --eval"),
    (["--stage", "all", "--eval"], "no checkpoint .*hand.checkpoint.pt"),
    (["--stage", "hand", "--expert", "{body_expert}"], "has a BodyExpert: expected a HandExpert"),
    (["--stage", "hand", "--eval", "--checkpoint", "{hand_expert}"],
     "has a HandExpert: expected a HandAdapter"),
    (["--stage", "all", "--eval", "--checkpoint", "{hand}", "--guide", "{hand}"],
     "has a HandAdapter: expected a BodyAdapter"),
    (["--stage", "hand", "--expert", "{hand_expert}", "--set", "arm_source=true", "inject=none"],
     "nothing to train"),
    (["--stage", "hand", "--expert", "{hand_expert}", "--set", "arm_source=found"],
     "arm_source=found .* give its checkpoint with --guide"),
])
def test_bad_arguments_are_one_clear_error(finished, arguments, message, tmp_path, capsys):
    arguments = [re.sub(r"^{(\w+)}$", lambda found: str(finished / found[1] / "checkpoint.pt"),
                        argument) for argument in arguments]
    with pytest.raises(SystemExit) as error:
        train.main(["--model", "hmr_adapter", "--out", str(tmp_path / "new"), *arguments])
    text = str(error.value) if isinstance(error.value.code, str) else capsys.readouterr().err
    assert re.search(message, text) and "Traceback" not in text
    assert not (tmp_path / "new").exists()


def test_settings_reach_the_stages_that_have_them():
    """Of --stage all: common ones everywhere, others where they exist, unknown ones to be refused.
    """
    arguments = train.parse_arguments([
        "--model", "hmr_adapter", "--stage", "all", "--preset", "cpu", "--set", "steps=7",
        "arm=whole_body", "offset_hidden=3", "vit_depth=2", "typo=1"])
    settings = {one.stage: one.overrides for one in stage_runs(arguments)[:-1]}
    assert settings == {
        "hand_expert": ["steps=7", "vit_depth=2", "typo=1"],
        "body_expert": ["steps=7", "vit_depth=2", "typo=1"],
        "hand": ["steps=7", "arm=whole_body", "typo=1"],
        "body": ["steps=7", "offset_hidden=3", "typo=1"]}


# -------------------------------------------------------------------------- data and scores


def make_task(finished, folder, out, *extra, stage=None):
    checkpoint, stage = load(finished / out), stage or out
    arguments = train.parse_arguments(command_line(folder, stage, folder / "no", *extra))
    task_class = train.TASKS[f"hmr_adapter-{stage}"]
    config = type(task_class.PRESETS["cpu"])(**checkpoint["config"])
    return task_class(config, arguments, checkpoint,
                      preset_settings(task_class.SETTINGS, "cpu", checkpoint))


def test_hands_are_scored_in_their_group(finished, folder):
    """The truth scores 0; a metre at occluded hands is no error of clear ones; absent ones (NaN)
    count nowhere."""
    task = make_task(finished, folder, "hand_expert")
    task.baseline = None
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 0.1, (3, 2, 799, 3))
    truth -= truth[:, :, :1]
    wrong = truth.copy()
    valid, visible = np.array([[1, 1], [1, 0], [1, 1.0]]), np.array([[1, 0.6], [0.4, 1], [0, 0.9]])
    wrong[visible < 0.5] += np.linspace(0, 2, 799)[:, None]
    wrong[valid == 0] = np.nan
    scores = task.scores(Predictions(
        np.arange(3), {"truth": {"points": truth}, "wrong": {"points": wrong}},
        {"points": truth, "valid": valid, "visible": visible}))
    assert list(scores) == ["truth", "wrong"]
    assert scores["truth"] == pytest.approx(dict.fromkeys(OF_HANDS, 0.0), abs=1e-4)
    for name in ERRORS:
        assert scores["wrong"][f"clear {name}"] == pytest.approx(0, abs=1e-4)
        assert scores["wrong"][f"occluded {name}"] > 10


def test_arms_and_boxes_of_the_table_are_what_they_say(finished, folder):
    """True arm: the sample's; found arm: the guide's; no arm: unknown. Crops are cut where the
    guide finds hands; "true boxes": the sample's. Hands wait at the wrist. A true mesh has no
    error: its joints are regressed from it."""
    task = make_task(finished, folder, "hand")
    batch = batch_of(task.test_set, range(4))
    model = weights.hmr_adapter.load_checkpoint(finished / "hand" / "checkpoint.pt")
    assert list(task.predict(model, batch).found) == ["true arm", "no arm", "expert"]
    file = finished / "body_expert" / "checkpoint.pt"
    task = make_task(finished, folder, "hand", "--guide", file)
    with torch.no_grad():
        predictions = task.predict(model, batch)
        found = {name: values["points"] for name, values in predictions.found.items()}
        guide = weights.hmr_adapter.load_checkpoint(file)(batch["image"])
        true = batch["hand_images"].flatten(0, 1)
        cut = hmr_adapter.crop_hands(batch["image"], guide["tight_boxes"], true.shape[-1])
        for boxes, images in (("", cut.flatten(0, 1)), (", true boxes", true)):
            for name, arm in (("true", hmr_adapter.arm_pose(batch["body_pose"])),
                              ("found", hmr_adapter.arm_pose(guide["body_pose"]))):
                expected = task.hands(model(images, arm.flatten(0, 1)))
                torch.testing.assert_close(found[f"{name} arm{boxes}"].flatten(0, 1), expected)
            torch.testing.assert_close(found[f"no arm{boxes}"].flatten(0, 1),
                                       task.hands(model(images)))
    assert len({value.double().sum().item() for value in found.values()}) == 8
    hands = [*found.values(), predictions.truth["points"]]
    assert all((value[:, :, 0] == 0).all() for value in hands)
    joints, vertices = hands[-1].split((21, 778), 2)
    torch.testing.assert_close(joints, task.hand.keypoint_regressor @ vertices)


def test_a_loss_of_hands_is_the_mean_of_its_parts(finished, folder):
    """However many of a part's hands are in the picture."""
    task = make_task(finished, folder, "hand")
    model = weights.hmr_adapter.load_checkpoint(finished / "hand" / "checkpoint.pt")
    batch = batch_of(task.test_set, range(4))
    batch["hand_valid"][:] = torch.tensor([[1.0, 0], [0, 0], [1, 1], [1, 1]])
    parts = [{name: value[part] for name, value in batch.items()}
             for part in (slice(0, 2), slice(2, 4))]
    with torch.no_grad():
        whole, *halves = (task.loss(model, each, 0)[0] for each in (batch, *parts))
    assert whole.item() == pytest.approx((halves[0] + halves[1]).item() / 2, rel=1e-4)


@pytest.mark.parametrize("source", ["true", "found"])
def test_adapters_train_with_what_their_source_says(finished, folder, source):
    """The hand's hears the true arm or the guide's; the body's is told the knuckles or is not."""
    file = finished / "body_expert" / "checkpoint.pt"
    task = make_task(finished, folder, "hand", "--guide", file)
    task.config = dataclasses.replace(task.config, arm_source=source)
    batch = batch_of(task.test_set, range(4))
    model, heard = weights.hmr_adapter.load_checkpoint(finished / "hand" / "checkpoint.pt"), []
    task.loss(lambda *inputs: heard.append(inputs[1]) or model(*inputs), batch, 0)
    with torch.no_grad():
        found = weights.hmr_adapter.load_checkpoint(file)(batch["image"])["body_pose"]
    arms = {"true": hmr_adapter.arm_pose(batch["body_pose"]),
            "found": hmr_adapter.arm_pose(found)}
    assert torch.equal(heard[0], arms[source].flatten(0, 1))
    body = make_task(finished, folder, "body")
    body.config = dataclasses.replace(body.config, knuckle_source=source)
    assert len(body.inputs(batch)) == {"true": 3, "found": 1}[source]


def test_truth_scores_zero_in_the_dual_path(finished, folder):
    """True poses and shapes through the task's own mesh have no error; those of others have."""
    task = make_task(finished, folder, "body")
    task.baseline, task.PIECE = None, 3
    batch = batch_of(task.test_set, range(5))
    shape, pose = task.shape(batch).numpy(), batch["body_pose"].numpy()
    truth = {"pose": pose, "betas": shape}
    scores = task.scores(Predictions(np.arange(5), {
        "truth": truth, "next": {"pose": np.roll(pose, 1, 0), "betas": shape}}, truth))
    assert scores["truth"] == pytest.approx(dict.fromkeys(OF_BODIES, 0.0), abs=1e-3)
    assert min(scores["next"].values()) > 5
    points = task.points(batch)
    torch.testing.assert_close(points[:, :76] + batch["transl"][:, None], batch["keypoints_3d"],
                               atol=1e-4, rtol=0)
