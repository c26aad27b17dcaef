"""The benchmarks run, compare like with like, and are found from any folder."""

import dataclasses
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import simplehand_samples
import torch
from genhmr_samples import TINY

import metrics
from benchmarks import __main__ as command
from benchmarks import alarms, speed, tradeoff
from benchmarks.speed import medians
from networks.backbones import simplehand_model

ROOT = Path(__file__).resolve().parents[1]


def test_medians_run_every_function_equally_often():
    """Functions take turns: each runs as often as the others, and has a time."""
    calls = []
    times = medians({name: lambda n=name: calls.append(n) for name in "abc"}, seconds=0, rounds=4)
    assert calls == [*"abc"] * 5 and set(times) == {*"abc"}
    assert all(spent >= 0 for spent in times.values())


def test_one_thread_is_timed_by_its_own_work(monkeypatch):
    """A pause is no work of this process, so load of others does not count; with more threads it
    does."""
    monkeypatch.setattr(speed, "DEVICE", "cpu")
    for threads, least, most in ((1, 0, 15), (2, 19, math.inf)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert least <= medians({"a": lambda: time.sleep(0.02)}, seconds=0)["a"] <= most


def test_the_command_lists_its_benchmarks_from_any_folder(tmp_path):
    """`python path/to/benchmarks --help` works in an empty folder and names every benchmark."""
    done = subprocess.run([sys.executable, ROOT / "benchmarks", "--help"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in command.FUNCTIONS)


def test_geometry_compares_equals(capsys, monkeypatch):
    """smplx's vertices and the common Procrustes are ours; every pass has a ratio."""
    pytest.importorskip("smplx")
    model = speed.load_model("hand_right")
    inputs = torch.randn(2, model.num_betas), torch.randn(2, 16, 3)
    torch.testing.assert_close(speed.smplx_vertices(model)(*inputs),
                               speed.our_vertices(model)(*inputs), rtol=0, atol=1e-6)
    points = torch.randn(2, 64, 778, 3, dtype=torch.float64)
    torch.testing.assert_close(speed.common_procrustes(*points),
                               metrics.procrustes_align(*points), rtol=0, atol=1e-12)
    monkeypatch.setattr(speed, "BATCHES", {"hand_right": (2,)})
    monkeypatch.setattr(speed, "POINTS", ((9, 5),))
    command.main(["geometry", "--seconds", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "hand_right, batch 2" and len(lines) == 1 + 4 + 1 + 3
    assert all(float(line.split()[-1]) > 0 for line in lines if " ms" in line)


def test_genhmr_is_timed_for_every_t_and_p(capsys):
    """The attentions agree; the rows of the paper's Tables 2 and 3 have its times beside ours."""
    speed.compare_attention(32, 0.0)
    output = capsys.readouterr().out
    assert float(output.split("differs by ")[1].split()[0]) < 1e-4 and output.count(" ms") == 4
    speed.time_per_image(TINY, 0.0)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [re.match(r"  (.*?) \(", row)[1] for row in rows] == [
        *(f"T = {T}" for T in (1, 3, 5, 10, 15, 20)),
        *(f"T = 5, P = {P}" for P in (1, 3, 5, 10, 20))]
    assert "T = 5 (RTX A5000: 102 ms)" in rows[2] and "P = 20 (RTX A5000: 638 ms)" in rows[-1]


def test_the_fused_simplehand_computes_the_same(capsys):
    """Both are timed and compute nearly the same."""
    config = dataclasses.replace(simplehand_samples.TINY, depths=(1, 1, 1, 1))
    speed.compare_fused(simplehand_model(config).eval(), simplehand_samples.images(), 0.0)
    output = capsys.readouterr().out
    assert output.count(" ms") == 2
    assert float(output.split("differs by ")[1].split()[0]) < 1e-2


def test_the_tradeoff_has_every_row_once(tmp_path, capsys):
    """Its error is the mean over seeds, as results.json has it; the figure shows the paper, too.
    Runs without annotation have no point."""
    with pytest.raises(SystemExit, match="no runs of SimpleHand in .*tables.py simplehand table7"):
        command.main(["tradeoff", "--runs", str(tmp_path)])
    for name, fields, errors in (("unchanged", {}, (10.0, 12.0)), ("dims=64", {"tokens": (21,),
            "dims": (64,), "blocks": (1,)}, (9.5,)), ("blocks=2", {}, (None,))):
        config = dataclasses.asdict(dataclasses.replace(simplehand_samples.TINY, **fields))
        for seed, error in enumerate(errors):
            folder = tmp_path / f"simplehand {name}" / f"seed {seed}"
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(
                {"config": config,
                 "scores": {"SimpleHand": {"PA-MPJPE": error}} if error else {}}))
    command.main(["tradeoff", "--runs", str(tmp_path), "--seconds", "0"])
    rows = [row.strip("| ").split(" | ") for row in capsys.readouterr().out.splitlines()[2:4]]
    assert {name: error for name, _, error in rows} == {"unchanged": "11.00", "dims=64": "9.50"}
    assert all(float(time) > 0 for _, time, _ in rows)
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    points = tradeoff.papers_points()  # rows without a speed have no point
    assert len(points) == 9 and points["ours, FastViT"] == (pytest.approx(1000 / 70), 5.7)


@pytest.mark.slow
def test_warnings_are_judged(capsys, monkeypatch):
    """Every network is judged by what the demo judges it by, on pictures that fill the crop."""
    monkeypatch.setattr(alarms, "BAD", 0.0)
    command.main(["alarms", "--count", "2"])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[3:]]
    assert [line[0] for line in lines] == [f"| {title}, {judge}" for title, (*_, judges) in
                                           alarms.NETWORKS.items() for judge in judges]
    assert all(line[1] == "2 of 2" and 0 < float(line[2]) for line in lines)
    for network in ("simplehand", "genhmr", "hmr_adapter"):
        image, true, given = next(alarms.pictures(network, "test", 1))
        seen = given[:, 2] > 0
        apart = np.linalg.norm((given - true)[seen, :2], axis=1) / len(image)
        assert image.dtype == np.uint8 and 0.005 < apart.mean() < 0.06


def test_limits_balance_false_and_missed_warnings():
    """The best limit separates what can be separated; shares are of warnings, and of the bad."""
    scores, bad = np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, False, True, True])
    assert alarms.best_limit(scores, bad) == pytest.approx(0.25)
    assert alarms.precision_recall(scores > 0.15, bad) == (pytest.approx(2 / 3), 1)
    assert alarms.precision_recall(scores > 9, bad) == (0, 0)


def test_without_a_gpu_nothing_is_run(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command.main(["gpu"])
    assert capsys.readouterr().out.startswith("not run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simplehand", "genhmr-tokenizer"])
def test_a_training_step_is_the_trainers_own(capsys, name):
    """The code of the training rows runs on the CPU: samples, loss, backward, optimiser."""
    speed.time_step(name, "cpu", torch.device("cpu"), 0.0, "batch_size=2",
                    "accumulate=2")
    assert "2 samples" in capsys.readouterr().out
