"""SimpleHand's task: official hands and scores, as a user would run them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from official_folders import write_freihand
from test_train import CONFIG, Run, command_line, task_of

import data
import train
from networks.backbones import ALL_PRESETS
from tasks.base import Predictions
from tasks.settings import SIMPLEHAND, override

# ---------------------------------------------------------------------------- data and scores


@pytest.mark.parametrize("name", ALL_PRESETS)
def test_every_preset_fits_the_loop_and_the_data(name, tmp_path):
    config = ALL_PRESETS[name]
    task = task_of(tmp_path, config,
                   settings=override(["train_samples=3", "test_samples=2"], SIMPLEHAND[name])[0])
    assert (len(task.train_set), len(task.test_set)) == (3, 2)
    assert task.train_set[0]["image"].shape == (3, config.image_size, config.image_size)


def test_the_mean_hand_is_hard_to_beat(tmp_path):
    """The baseline takes, row by row, the better of the mean and the mean of aligned hands."""
    task = task_of(tmp_path)
    samples = [task.test_set[index] for index in range(32)]
    batch = {name: torch.stack([sample[name] for sample in samples])
             for name in ("joints", "vertices", "mesh_valid", "keypoints_2d", "keypoints_valid")}
    task.set_baseline([batch])
    root = batch["joints"][:, 9:10]
    truth = {"vertices": batch["vertices"] - root, "joints": batch["joints"] - root,
             "mesh_valid": batch["mesh_valid"], "keypoints_valid": batch["keypoints_valid"],
             "keypoints_2d": batch["keypoints_2d"] / task.config.image_size}
    truth = {name: value.numpy() for name, value in truth.items()}
    scores, shifted = {}, truth["keypoints_2d"] + np.float32([0.03, 0.04])
    for name, hand in zip(("mean", "shape"), task.baseline, strict=True):
        constant = np.broadcast_to(hand.numpy(), truth["vertices"].shape)
        found = {"SimpleHand": {"vertices": constant, "keypoints_2d": shifted}}
        scores[name] = task.scores(Predictions(np.arange(32), found, truth))
    assert scores["mean"]["SimpleHand"]["MPJPE"] < scores["shape"]["SimpleHand"]["MPJPE"]
    assert scores["shape"]["SimpleHand"]["PA-MPJPE"] < scores["mean"]["SimpleHand"]["PA-MPJPE"]
    baseline = scores["mean"]["mean hand"]
    assert baseline["MPJPE"] == scores["mean"]["SimpleHand"]["MPJPE"]
    assert baseline["PA-MPJPE"] == scores["shape"]["SimpleHand"]["PA-MPJPE"]
    assert scores["mean"]["SimpleHand"]["2D NME"] == pytest.approx(5)  # percent of the crop
    assert 5 < baseline["2D NME"] < 20
    truth["keypoints_valid"][:] = 0
    assert "2D NME" not in task.scores(Predictions(np.arange(32), found, truth))["SimpleHand"]


def test_freihand_trains_and_writes_the_prediction_file(folders, tmp_path, capsys):
    """The same loop on FreiHAND's layout, down to the file its evaluation server takes."""
    root, cache, out = folders("freihand"), tmp_path / "cache", tmp_path / "out"
    train.main(command_line(cache, out, "--data", "freihand", "--data-root", root, "--hand",
                            "hand_right", steps=2, batch_size=4))
    assert "PA-MPVPE" in capsys.readouterr().out
    joints, vertices = json.loads((out / "pred.json").read_text())
    count = len(data.FreiHAND(root, "evaluation", cache=cache))
    assert np.shape(joints) == (count, 21, 3) and np.shape(vertices) == (count, 778, 3)


@pytest.mark.slow
def test_a_damaged_picture_ends_all_processes_with_its_message(fresh, tmp_path):
    """One process meets it, the other says that it has lost a partner: no traceback but torchrun's
    own, and the message last."""
    root = fresh("freihand")
    for path in (root / "training/rgb").glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:100])
    run = Run(tmp_path / "out", command_line(
        tmp_path / "cache", tmp_path / "out", "--data", "freihand", "--data-root",
        root, "--hand", "hand_right", steps=2, batch_size=4), ranks=2)
    output = run.process.communicate(timeout=300)[0]
    assert run.process.returncode == 1 and output.count("Traceback") == 1, output
    assert "cannot be read as a picture" in output.partition("Root Cause")[2]


def test_freihand_is_judged_in_a_folder_of_its_own(tmp_path):
    """Training and evaluation come as two downloads: --data-root and --test-root."""
    for name in ("pub", "eval"):
        write_freihand(tmp_path / name)
    shutil.rmtree(tmp_path / "pub/evaluation")
    shutil.rmtree(tmp_path / "eval/training")
    task = task_of(tmp_path / "cache", CONFIG, "--data", "freihand", "--hand", "hand_right",
                   "--data-root", str(tmp_path / "pub"), "--test-root", str(tmp_path / "eval"))
    assert task.train_set.root == tmp_path / "pub" and task.test_set.root == tmp_path / "eval"


@pytest.mark.parametrize(("official", "names"), [
    (False, ("official_simplehand", None)),
    (True, ("release_simplehand", "release_simplehand_test"))])
def test_weights_of_the_release_see_its_crops(folders, tmp_path, official, names):
    """official=True: the release's crop in both splits; else ours, and augmentation to train."""
    config = dataclasses.replace(CONFIG, official=official)
    task = task_of(tmp_path, config, "--data", "freihand", "--hand", "hand_right", "--data-root",
                   str(folders("freihand")))
    assert tuple(dataset.augmentation for dataset in (task.train_set, task.test_set)) == tuple(
        name and data.AUGMENTATIONS[name] for name in names)


@pytest.mark.parametrize(("preset", "data", "steps"), [
    ("paper", "freihand", 51_200), ("paper_hrnet", "dexycb", 158_940), ("h200", "dexycb", 79_470),
    ("cpu", "dexycb", 3_800)])
def test_dexycb_is_trained_on_for_100_epochs(preset, data, steps):
    """As in the paper, which trains for 100 epochs on either data set; --set and --resume win."""
    arguments = train.parse_arguments(["--model", "simplehand", "--preset", preset, "--data", data])
    config, _ = train.choose_config(arguments, None, None)
    assert config.steps == steps
    arguments.overrides = ["steps=77"]
    run = {"name": "simplehand", "preset": preset, "data": data,
           "config": dataclasses.asdict(train.choose_config(arguments, None, None)[0])}
    arguments.overrides, arguments.resume = [], True
    assert train.choose_config(arguments, run, None)[0].steps == 77


def test_dexycb_trains_and_writes_the_result_file(folders, models, tmp_path, capsys):
    """Left and right hands in one folder; the toolkit's lines carry the official numbers."""
    root, cache, out, hands = folders("dexycb"), *(
        tmp_path / name for name in ("cache", "out", "models"))
    shutil.copytree(models, hands, ignore=shutil.ignore_patterns("SMPL*"))
    train.main(command_line(cache, out, "--data", "dexycb", "--data-root", root, "--hand", hands,
                            steps=1, batch_size=4))
    table = capsys.readouterr().out
    assert "PA-MPVPE" in table and "F@5" not in table and "mean hand" in table
    lines = (out / "dexycb.txt").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in lines] == [0, 2, 3]
    with pytest.raises(SystemExit, match="the folder of MANO_RIGHT and MANO_LEFT"):
        train.main(command_line(cache, tmp_path / "no", "--data", "dexycb", "--data-root", root,
                                "--hand", hands / "MANO_RIGHT.npz"))
