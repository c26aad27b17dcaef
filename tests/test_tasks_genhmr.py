"""GenHMR's two stages: runs on a tiny model, kills, ranks, tables, official data."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from official_folders import write_amass, write_moyo
from test_train import Run, assert_same_state, flag, rows

import bodymodels
import data
import genhmr
import train
from networks.small_encoder import IMAGE_SIZE, Lifted
from tasks.base import EVALUATIONS, Predictions
from tasks.files import comparisons
from tasks.genhmr import LIFT_WEIGHTS, imagine_bodies, in_random_crops, lift_losses
from tasks.settings import override, preset_settings
from weights.genhmr import load_checkpoint, load_encoder, load_tokenizer

TINY = {
    "tokenizer": {
        "num_tokens": 48, "codebook_size": 16, "code_dim": 8, "width": 16, "depth": 1,
        "learning_rate": 1e-3, "warmup_steps": 2, "steps": 12, "batch_size": 8, "eval_every": 5,
        "train_samples": 44, "test_samples": 19},
    "encoder": {
        "warmup_steps": 2, "steps": 4, "batch_size": 8, "eval_every": 3, "train_samples": 44,
        "test_samples": 19},
    "transformer": {
        "pyramid_width": 16, "width": 16, "heads": 2, "points": 2, "layers": 1,
        "regressor_width": 16, "learning_rate": 1e-3, "warmup_steps": 2,
        "steps": 12, "batch_size": 8, "accumulate": 2, "eval_every": 5,
        "train_samples": 44, "test_samples": 19},
}
STAGES = list(TINY)
SHIPPED = str(bodymodels.ASSETS / "genhmr_cpu.pt")
ROWS = ["T=5", "T=1", "T=3", "T=10", "T=15", "T=20", "T=5 P=1", "T=5 P=3", "T=5 P=5", "T=5 P=10",
        "T=5 P=20", "mean code", "mean code P=20", "encoder", "mean code, own 2D",
        "encoder, tokens"]  # of the last table
STATISTICS = ("perplexity", "dead_codes")  # of a batch, or over all ranks


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where all runs of these tests are."""
    return tmp_path_factory.mktemp("genhmr")


def command_line(folder, stage, out, *extra, **fields):
    settings = [f"{name}={flag(value)}" for name, value in (TINY[stage] | fields).items()]
    needed = ["--tokenizer", str(folder / "tokenizer" / "checkpoint.pt"), "--backbone",
              str(folder / "encoder" / "checkpoint.pt")] if stage == "transformer" else []
    needed += ["--cache", str(folder / "cache")] * (stage != "tokenizer")
    return ["--model", "genhmr", "--stage", stage, "--preset", "cpu", "--out", str(out),
            "--save-every", "0", *needed, *map(str, extra), "--set", *settings]


@pytest.fixture(scope="session")
def finished(folder):
    """Both stages run without interruption: their folders."""
    outs = {stage: folder / stage for stage in STAGES}
    for stage, out in outs.items():
        train.main(command_line(folder, stage, out))
    return outs


def load(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


# ------------------------------------------------------------------------- what a run leaves


def test_the_tokenizer_logs_every_loss_and_its_codebook(finished):
    """Every term of L_vq, perplexity and dead codes per step; the total is the weighted sum."""
    log = rows(finished["tokenizer"] / "log.csv")
    assert [row["step"] for row in log] == list(range(1, 13))
    config = load_tokenizer(finished["tokenizer"] / "checkpoint.pt").config
    for row in log:
        total = (config.weight_pose * row["pose"] + config.weight_vertices * row["vertices"]
                 + config.weight_joints * row["joints"] + config.weight_embedding * row["embedding"]
                 + config.weight_commitment * row["commitment"])
        assert row["loss"] == pytest.approx(total, rel=1e-5)
        assert 1 <= row["perplexity"] <= config.codebook_size
        assert 0 <= row["dead_codes"] < config.codebook_size


@pytest.mark.parametrize(("stage", "names", "errors"), [
    ("tokenizer", ["tokenizer", "1 degree", "10 % random", "mean pose"], ["MPJPE", "MVE"]),
    ("transformer", [*ROWS, "mean pose"], ["PA-MPJPE", "PA-MVE", "MPJPE", "MVE"])])
def test_tables_hold_the_required_rows(finished, stage, names, errors):
    """Reconstruction; T, P and the mean pose; and pictures."""
    scores = json.loads((finished[stage] / "results.json").read_text())["scores"]
    assert list(scores) == names
    for name, row in scores.items():
        changed = ["changed %"] * (stage == "tokenizer" and name != "mean pose")
        assert list(row) == errors + changed
    assert data.read_image(finished[stage] / "predictions.png").std() > 5


@pytest.mark.slow
def test_stage_two_is_self_contained(finished, folder, tmp_path):
    """Its checkpoint holds the tokenizer, untouched; without the file, --eval and --resume work."""
    moved = tmp_path / "alone"
    shutil.copytree(finished["transformer"], moved)
    tokenizer = load_tokenizer(finished["tokenizer"] / "checkpoint.pt")
    arguments = ["--model", "genhmr", "--stage", "transformer", "--cache", str(folder / "cache")]
    train.main([*arguments, "--eval", "--checkpoint", str(moved / "checkpoint.pt"), "--out",
                str(tmp_path / "eval")])
    run, again = (json.loads((out / "results.json").read_text())
                  for out in (finished["transformer"], tmp_path / "eval"))
    assert run["scores"] == again["scores"]
    train.main([*arguments, "--resume", "--out", str(moved), "--set", "steps=13"])
    assert load(moved)["step"] == 13
    longer = load_checkpoint(moved / "checkpoint.pt")
    assert longer.config.tokenizer == tokenizer.config
    assert_same_state(dict(longer.tokenizer.state_dict()), dict(tokenizer.state_dict()))


def test_the_encoder_learns_from_pictures_and_without(finished):
    """Each term is logged for both; the total is the weighted sum; the table tells of its poses."""
    for row in rows(finished["encoder"] / "log.csv"):
        total = row["heat"] + sum(weight * (row[name] + 0.7 * row[f"unpictured_{name}"])
                                  for name, weight in LIFT_WEIGHTS.items())
        assert row["loss"] == pytest.approx(total, rel=1e-5)
    scores = json.loads((finished["encoder"] / "results.json").read_text())["scores"]
    assert list(scores) == ["encoder", "mean pose"]
    assert scores["encoder"].keys() > {"MPJPE", "PA-MPJPE"}


def test_lift_losses_vanish_for_the_truth():
    """Zero for the true pose, shape and keypoints from the pelvis; each term sees its error."""
    body = bodymodels.load_model("body").for_keypoints()
    pose = bodymodels.axis_angle_to_matrix(0.3 * torch.randn(3, 24, 3))
    batch = {"pose": pose, "betas": torch.randn(3, 10)}
    points = body.keypoints(body(batch["betas"], pose))
    batch["keypoints_3d"] = points + 5.0
    camera = torch.tensor([[0.9, 0.1, -0.1]]).expand(3, 3)
    flat = genhmr.project_to_crop(points, camera, genhmr.Config().focal)
    batch["keypoints_2d"] = (flat + 0.5) * IMAGE_SIZE
    lifted = Lifted(points - points[:, :1], genhmr.matrix_to_rotation_6d(pose), batch["betas"],
                    camera)
    terms = lift_losses(lifted, batch, body)
    assert all(term < 1e-5 for term in terms.values())
    wrong = Lifted(*(value + 0.1 for value in lifted))
    terms = lift_losses(wrong, batch, body)
    assert terms["joints"] == pytest.approx(0.1, rel=1e-3) and terms["betas"] == (
        pytest.approx(0.01, rel=1e-3))
    assert all(term > 1e-3 for term in terms.values())


def test_bodies_without_pictures_have_crops_as_pictures():
    """Four of five bodies are within the crop, most of its height; some are truncated."""
    torch.manual_seed(0)
    keypoints = torch.rand(400, 45, 3) * torch.tensor([0.6, 1.7, 0.4])
    flat = in_random_crops(keypoints)
    inside = (flat.abs() < torch.tensor([0.375, 0.5])).all(-1)
    assert 0.7 < inside.all(1).float().mean() < 0.96
    whole = flat[inside.all(1)]
    height = whole[..., 1].amax(1) - whole[..., 1].amin(1)
    assert 0.5 < height.min() and height.max() < 1


def test_bodies_without_pictures_have_the_errors_of_pictures(finished, folder):
    """Some are truncated. Where pictures have no errors in 2D, bodies have none but a little noise;
    errors of a picture come together, at most 1.3 times as large."""
    task = make_task(folder, "encoder")
    encoder, batch = load_encoder(finished["encoder"] / "checkpoint.pt"), batch_of(
        task.test_set, range(4))
    seen = encoder.read(encoder.normalise(batch["image"]))
    seen = seen._replace(at=seen.at / 2)  # far from the border
    drawn = []
    for error in (0.0, 0.1):
        torch.manual_seed(0)
        drawn.append(imagine_bodies(encoder, seen, seen.at - error, 3, task.settings,
                                    task.light_body))
    (exact, share, bodies), (moved, *_) = drawn
    assert all((row == seen.share).all(1).any() for row in share) and len(share) == 12
    flat = bodies["keypoints_2d"] / IMAGE_SIZE - 0.5
    assert 0.5 < (flat.abs() < 0.5).all(-1).float().mean() < 1
    within = (flat.abs() < torch.tensor([0.25, 0.35])).all(-1)
    assert (exact - flat)[within].abs().max() < 0.03
    gain = (moved - exact)[within & (moved.abs() < 0.3).all(-1)] / 0.1
    assert gain.min() > 0.25 and gain.max() < 1.35


# ------------------------------------------------------------------- kill, resume, many ranks


@pytest.mark.slow
def test_two_ranks_are_two_accumulated_batches_of_stage_two(finished, folder):
    """The same losses: masks, Gumbel noise, dropped paths and the annealing do not know ranks.

    Without batch norm, that is: that of the frozen encoder only repeats its averages.
    """
    out = folder / "transformer of two"
    Run(out, command_line(folder, "transformer", out, accumulate=1), ranks=2).end()
    assert_same_losses(finished["transformer"], out)


def assert_same_losses(first, second):
    for name in ("log.csv", "scores.csv"):
        one, two = ([[value for key, value in row.items() if key not in STATISTICS]
                     for row in rows(out / name)] for out in (first, second))
        np.testing.assert_allclose(one, two, rtol=1e-2)
        np.testing.assert_allclose(one[:1], two[:1], rtol=1e-4 if name == "log.csv" else 1e-2)


# ------------------------------------------------------------------------------ command line


@pytest.mark.parametrize("name", train.TASKS)
def test_every_preset_has_the_fields_of_the_loop(name):
    """Their values pass the checks, also for those of no data set at hand."""
    task = train.TASKS[name]
    for preset, config in task.PRESETS.items():
        settings = preset_settings(task.SETTINGS, preset)
        config, settings = override(["steps=3", "seed=4"], config, settings)
        assert (config.steps, settings.seed) == (3, 4)
    assert task.SETTINGS.keys() == task.PRESETS.keys()


# -------------------------------------------------------------------------- data and scores


def make_task(folder, stage, **fields):
    return task_of(command_line(folder, stage, folder / "no", **fields))


def task_of(argv):
    """The task of a command line."""
    arguments = train.parse_arguments(argv)
    config, settings = train.choose_config(arguments, None, None)
    return train.TASKS[arguments.name](config, arguments, {}, settings)


def batch_of(dataset, indices):
    return next(train.load_batches(dataset, [list(indices)], train.World()))


def test_scores_do_not_depend_on_the_pieces(finished, folder):
    """The truth scores 0; meshes in pieces of 7 and 6 give the scores of all 13 at once."""
    task = make_task(folder, "tokenizer")
    batch = batch_of(task.test_set, range(13))
    task.set_baseline([batch])
    pose, betas, index = (batch[name].numpy() for name in ("pose", "betas", "index"))
    truth = {"pose": pose, "betas": betas, "tokens": np.zeros((13, 48), np.int64)}
    predictions = Predictions(index, {
        "truth": truth, "next": truth | {"pose": np.roll(pose, 1, 0)}}, truth)
    whole = task.scores(predictions)
    task.PIECE = 7
    assert whole.keys() == {"truth", "next", "mean pose"}
    assert whole["truth"] == pytest.approx({"MPJPE": 0.0, "MVE": 0.0, "changed %": 0.0}, abs=1e-6)
    for name, scores in task.scores(predictions).items():
        assert scores == pytest.approx(whole[name], rel=1e-5, abs=1e-6)
    assert 0 < whole["mean pose"]["MPJPE"] < whole["next"]["MPJPE"]


def test_notes_compare_predictors_and_headings(folder):
    """Paired differences leave out NaN and absent predictors; people who look at the camera are
    fronts, those who look away backs; errors that are not aligned have no such line."""
    task = make_task(folder, "encoder")
    task.COMPARED = ("ours", "theirs"), ("ours", "absent")
    angles = torch.tensor([180.0, 170, 125, 100, -90, 61, 30, 0])  # 0: looks where the camera looks
    turns = torch.zeros(8, 24, 3)
    turns[:, 0, 1] = torch.deg2rad(angles)
    truth = {"pose": bodymodels.axis_angle_to_matrix(turns).numpy()}
    pve = np.array([[1, 2, np.nan, 6], [2, 4, np.nan, 5]])
    errors = {"ours": {"PVE": pve[0]}, "theirs": {"PVE": pve[1]},
              "third": {"PA-MPJPE": np.arange(8.0)}}
    assert comparisons(task, errors) == "ours minus theirs: PVE -0.67 +- 0.88\n"
    assert task.notes(Predictions(np.arange(8), {}, truth, errors)) == (
        "third, PA-MPJPE: fronts 1.0 (3), sides 4.0 (3), backs 6.5 (2)\n")


def test_the_disturbed_tokens_belong_to_the_sample(finished, folder):
    """In any batch a sample gets the same errors: a tenth of its tokens, or one degree a joint."""
    task = make_task(folder, "tokenizer", test_samples=60)
    model = load_tokenizer(finished["tokenizer"] / "checkpoint.pt")
    batch = batch_of(task.test_set, range(60))
    turned, random = task.disturbed(model, batch, model.encode(batch["pose"]))
    part = batch_of(task.test_set, [4, 1])
    for whole, again in zip((turned, random), task.disturbed(
            model, part, model.encode(part["pose"])), strict=True):
        assert torch.equal(whole[[4, 1]], again)
    share = (random != model.encode(batch["pose"])).float().mean()
    assert share == pytest.approx(0.1 * 15 / 16, abs=0.02)  # of 16 codes one is the old one
    seen = []
    model.encode = seen.append
    task.disturbed(model, batch, random)
    trace = (seen[0] * batch["pose"]).sum((2, 3)).double()
    assert torch.rad2deg(((trace - 1) / 2).clamp(-1, 1).acos()) == pytest.approx(1.0, abs=0.05)


def test_the_noise_of_refinement_belongs_to_the_sample(finished, folder):
    """Refined in any batch, a sample comes out the same, and not as it was."""
    task = make_task(folder, "transformer")
    model = load_checkpoint(finished["transformer"] / "checkpoint.pt")
    whole = task.predict(model, batch_of(task.test_set, range(6)), final=True)
    part = task.predict(model, batch_of(task.test_set, [4, 1]), final=True)
    assert list(whole.found) == ROWS
    for name, values in part.found.items():
        for key, value in values.items():
            torch.testing.assert_close(value, whole.found[name][key][[4, 1]], rtol=1e-3, atol=1e-3)
    moved = whole.found["T=5 P=20"]["pose"] - whole.found["T=5"]["pose"]
    moved = moved.abs().amax((1, 2, 3))
    assert (moved > 1e-7).all()


def test_own_keypoints_pull_the_mean_code_towards_them(finished, folder):
    """Refined on the encoder's keypoints, the shipped model's poses project closer to sure ones."""
    task, model = make_task(folder, "transformer"), load_checkpoint(SHIPPED)
    batch = batch_of(task.test_set, range(12))
    found = task.predict(model, batch, final=True).found
    reading = model.backbone.read(model.normalise(batch["image"]))

    def distances(row):
        posed = task.light_body(found[row]["betas"], found[row]["pose"])
        at = genhmr.project_to_crop(task.light_body.keypoints(posed),
                                    model.encode(batch["image"]).camera, model.config.focal)
        return (at - reading.at).norm(dim=-1)[reading.confidence > 0.8]

    with torch.no_grad():
        assert distances("mean code, own 2D").mean() < 0.8 * distances("mean code").mean()


def test_schedules_and_top_k_reach_the_scores(finished, folder):
    """--schedule and --top-k change what is sampled (Tables 11 and 12), the same each time."""
    model = load_checkpoint(finished["transformer"] / "checkpoint.pt")

    @torch.no_grad()
    def poses(*extra):
        task = task_of(command_line(folder, "transformer", folder / "no", *extra))
        return task.predict(model, batch_of(task.test_set, range(4))).found["T=5"]["pose"]

    drawn = poses("--top-k", 16)
    assert torch.equal(drawn, poses("--top-k", 16)) and not torch.equal(drawn, poses())
    assert not torch.equal(drawn, poses("--top-k", 16, "--schedule", "linear"))
    with pytest.raises(ValueError, match="top_k is 17: expected 1 to 16"):
        poses("--top-k", 17)


def test_official_motion_trains_the_tokenizer(folder, tmp_path, undrawn):
    """AMASS and MOYO in their own layouts, both splits, from one folder with both."""
    write_amass(tmp_path / "amass")
    shutil.copytree(tmp_path / "amass/CMU", tmp_path / "amass/SFU")  # of the validation split
    write_moyo(tmp_path / "moyo", smpl=True)
    out = tmp_path / "out"
    train.main(command_line(folder, "tokenizer", out, "--data", "amass+moyo", "--data-root",
                            tmp_path, "--cache", tmp_path / "cache", steps=2))
    task = task_of(command_line(folder, "tokenizer", out, "--data", "amass+moyo", "--data-root",
                                tmp_path, "--cache", tmp_path / "cache"))
    assert [(type(part), part.split) for part in task.test_set.datasets] == [
        (data.AMASS, "val"), (data.MOYO, "val")]  # the paper chooses its tokenizer on AMASS's val
    task.arguments.eval = True
    assert task.data_set("test").datasets[0].split == "test"
    scores = json.loads((out / "results.json").read_text())["scores"]
    assert np.isfinite(list(scores["tokenizer"].values())).all()
    train.main(["--model", "genhmr", "--stage", "tokenizer", "--eval", "--protocol", "moyo_val",
                "--checkpoint", str(out / "checkpoint.pt"), "--data-root", str(tmp_path / "moyo"),
                "--out", str(tmp_path / "eval"), "--cache", str(tmp_path / "cache")])
    about = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert about["data"] == "moyo" and about["scores"] != scores


# ------------------------------------------------------------------------- official pictures


@pytest.fixture
def judge(folder, folders, models):
    """judge(PROTOCOL): the task of one protocol alone."""
    return lambda protocol: task_of(command_line(
        folder, "transformer", folder / "no", "--eval", "--protocol", protocol, "--data-root",
        folders(EVALUATIONS[protocol][0]), "--models", models))


def test_official_pictures_train_and_are_judged(finished, folder, folders, models, tmp_path):
    """HMR2.0's shards train, 3DPW judges."""
    out = tmp_path / "out"
    train.main(command_line(folder, "transformer", out, "--data", "hmr2-tars", "--data-root",
                            folders("hmr2-tars"), "--protocol", "3dpw_lsp14", "--test-root",
                            folders("3dpw"), "--models", models, steps=1,
                            batch_size=2, accumulate=1))
    scores = json.loads((out / "results.json").read_text())["scores"]
    assert sorted(scores["T=5"]) == ["MPJPE", "MVE", "PA-MPJPE"]
    assert (out / "predictions.png").is_file()


def test_perfect_predictions_have_no_error(finished, judge):
    """The truth of 3DPW is the gendered body in the camera's frame; here all genders are one."""
    task = judge("3dpw_lsp14")
    assert task.test_set.split == "test" and task.data_set("train").split == "train"
    batch = {name: value.numpy() for name, value in batch_of(task.test_set, range(4)).items()}
    truth = {name: batch[name] for name in ("pose", "betas")}
    predictions = Predictions(batch["index"], {"T=5": dict(truth)}, truth)
    report = task.scores(predictions)["T=5"]
    assert max(report.values()) < 1e-2
    predictions.found["T=5"]["pose"] = np.tile(np.eye(3, dtype=np.float32), (4, 24, 1, 1))
    assert task.scores(predictions)["T=5"]["MPJPE"] > 50


def test_wart_human36m_is_judged_by_joints_and_a_regressor_of_the_right_order(
        finished, judge, models, tmp_path):
    """The truth are the file's joints in LSP's order; Moon's regressor, right leg first, is
    refused."""
    task = judge("h36m_p2_lsp14")
    truth = task.truth(Predictions(np.arange(1), {}, {}))
    record = task.test_set.records()[0]["keypoints_3d"][25:]  # SPIN's 24
    np.testing.assert_array_equal(truth["joints"][0, 13], record[18, :3])  # Human3.6M's head
    np.testing.assert_array_equal(truth["joints"][0, 14], record[14, :3])
    assert list(truth) == ["joints"]
    regressor = np.load(models / "J_regressor_h36m.npy")
    np.save(tmp_path / "J_regressor_h36m.npy", regressor[[0, 4, 5, 6, 1, 2, 3, *range(7, 17)]])
    task.arguments.models = tmp_path
    with pytest.raises(ValueError, match="right leg first: take SPIN's file"):
        task.regressed({"vertices": np.zeros((1, 6890, 3))})


def test_hmr2s_evaluation_takes_joints_by_its_own_regressor(finished, judge, models, tmp_path):
    """SMPL_to_J19 makes the predicted joints, 3dpw_test.npz has the true ones; the fourteen are
    relative to MPII's pelvis."""
    shutil.copytree(models, tmp_path / "models", symlinks=True)
    body = bodymodels.load_model(models, family="smpl")
    rng = np.random.default_rng(0)
    regressor = rng.random((19, len(body.v_template)))
    regressor /= regressor.sum(1, keepdims=True)
    (tmp_path / "models/SMPL_to_J19.pkl").write_bytes(pickle.dumps(regressor))
    task = judge("hmr2_lsp14")
    task.arguments.models = tmp_path / "models"
    mesh = {"vertices": body.v_template.numpy()[None]}
    keypoints = np.zeros((1, 44, 4))
    keypoints[0, 25:] = np.column_stack((regressor @ mesh["vertices"][0], np.ones(19)))
    keypoints[0, [25 + 13, 25 + 15], :3] += 1  # top of the head, thorax: not scored
    keypoints[0, 25 + 18, 0] += 0.14  # Human3.6M's head, one of 14: 10 mm
    truth = {"joints": data.relabelled(keypoints, "hmr44", "j17")[..., :3].astype(np.float32)}
    errors = task.judge(mesh, truth)
    assert errors["MPJPE"] == pytest.approx(10, abs=0.01) and sorted(errors) == [
        "MPJPE", "PA-MPJPE"]
    np.testing.assert_array_equal(task.truth(Predictions(np.arange(1), {}, {}))["joints"][0, 13],
                                  task.test_set.records()[0]["keypoints_3d"][43, :3])
    (tmp_path / "models/SMPL_to_J19.pkl").write_bytes(pickle.dumps(regressor[:17]))
    del task.regressor
    with pytest.raises(ValueError, match="SMPL_to_J19.pkl has shape .17, .*: expected 19 joints"):
        task.judge(mesh, truth)


def test_refinement_on_3dpw_follows_its_detector_and_no_truth(finished, folder, judge):
    """The poses after P steps do not change with the truth, but with the detections; where there
    are none, the rows say that an oracle made them."""
    task = judge("3dpw_lsp14")
    model = load_checkpoint(folder / "transformer/checkpoint.pt")
    batch = batch_of(task.test_set, range(4))
    blind = batch | {"keypoints_2d": batch["keypoints_2d"] + 9,
                     "keypoints_valid": torch.zeros_like(batch["keypoints_valid"])}
    moved = batch | {"detected_2d": batch["detected_2d"] + 9}
    with torch.no_grad():
        found = [task.predict(model, each, final=True).found for each in (batch, blind, moved)]
    name = "T=5 P=20"
    first, same, other = (rows[name]["pose"] for rows in found)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert not torch.equal(first, found[0]["T=5"]["pose"])
    task = judge("h36m_p2_lsp14")
    with torch.no_grad():
        found = task.predict(model, batch_of(task.test_set, [0]), final=True).found
    assert not [row for row in found if "P=" in row and not row.endswith(" oracle: true 2D")]
    assert f"{name} oracle: true 2D" in found
    task.refines = judge("hmr2_lsp14").refines  # its file has no detections, and perhaps no truth
    with torch.no_grad():
        found = task.predict(model, batch_of(task.test_set, [0]), final=True).found
    assert "T=5" in found and not [row for row in found if "P=" in row]


def test_detections_of_other_data_sets_are_asked_for(finished, folder, folders, models, tmp_path):
    """--detections FOLDER reaches the pictures to evaluate on."""
    task = task_of(command_line(
        folder, "transformer", tmp_path / "no", "--eval", "--protocol", "h36m_p2_lsp14",
        "--data-root", folders("h36m"), "--models", models, "--detections", tmp_path))
    with pytest.raises(FileNotFoundError, match="no keypoints .*_keypoints.json"):
        task.test_set[0]


def test_official_pictures_need_models_and_a_protocol(finished, folder, folders, tmp_path):
    for extra, message in (
            ((), "choose the protocol with --protocol, one of 3dpw_lsp14, "),
            (("--protocol", "dexycb_s0"), "choose the protocol with --protocol, one of 3dpw"),
            (("--protocol", "3dpw_lsp14"), "SMPL_NEUTRAL, SMPL_MALE, SMPL_FEMALE")):
        with pytest.raises(SystemExit, match=message):
            train.main(command_line(folder, "transformer", tmp_path / "no", "--data", "hmr2-tars",
                                    "--data-root", folders("hmr2-tars"), *extra))
