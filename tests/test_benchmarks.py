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
from benchmarks import bodymodels as bodies_room
from benchmarks import genhmr as genhmr_room
from benchmarks import gpu, tradeoff
from benchmarks import metrics as metrics_room
from benchmarks.timing import medians

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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for threads, least, most in ((1, 0, 15), (2, 19, math.inf)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert least <= medians({"a": lambda: time.sleep(0.02)}, seconds=0)["a"] <= most


def test_the_command_lists_its_benchmarks_from_any_folder(tmp_path):
    """`python path/to/benchmarks --help` works in an empty folder and names every benchmark."""
    done = subprocess.run([sys.executable, ROOT / "benchmarks", "--help"], cwd=tmp_path,
                          capture_output=True, text=True)
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"timing"}
    assert done.returncode == 0
    assert all(name in done.stdout for name in names if not name.startswith("__"))


def test_skinning_prints_a_ratio_for_every_pass(capsys, monkeypatch):
    pytest.importorskip("smplx")
    monkeypatch.setattr(bodies_room, "CASES", (("hand_right", 2),))
    command.main(["bodymodels", "--seconds", "0"])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "hand_right, batch 2" and len(lines) == 4
    assert all(float(line.split()[-1]) > 0 for line in lines)


def test_skinning_compares_equals():
    """smplx's vertices and ours are the same."""
    pytest.importorskip("smplx")
    model = bodies_room.load_model("hand_right")
    shape, pose = torch.randn(2, model.num_betas), torch.randn(2, 16, 3)
    torch.testing.assert_close(bodies_room.smplx_vertices(model)(shape, pose),
                               model(shape, pose).vertices, rtol=0, atol=1e-6)


def test_metrics_compares_equals():
    random = np.random.default_rng(0)
    source, target = (torch.from_numpy(random.normal(size=(64, 778, 3))) for _ in range(2))
    torch.testing.assert_close(metrics_room.common_procrustes(source, target),
                               metrics.procrustes_align(source, target), rtol=0, atol=1e-12)


def test_genhmr_prints_ratios_and_parts(capsys):
    """With equal outputs, whatever the times."""
    genhmr_room.benchmark_attention(32, 0.0)
    genhmr_room.benchmark_parts(TINY, 0.0)
    output = capsys.readouterr().out
    assert float(output.split("differs by ")[1].split()[0]) < 1e-4
    assert output.count(" ms") == 8 and "refinement, 10 steps" in output


def test_genhmr_is_timed_for_every_t_and_p(capsys):
    """The rows of the paper's Tables 2 and 3, with its seconds beside ours."""
    genhmr_room.time_per_image(TINY, 0.0)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [re.match(r"  (.*?) \(", row)[1] for row in rows] == [
        *(f"T = {T}" for T in (1, 3, 5, 10, 15, 20)),
        *(f"T = 5, P = {P}" for P in (1, 3, 5, 10, 20))]
    assert "T = 5 (RTX A5000: 102 ms)" in rows[2] and "P = 20 (RTX A5000: 638 ms)" in rows[-1]


def test_the_tradeoff_has_every_row_once(tmp_path, capsys):
    """Its error is the mean over seeds, as results.json has it; the figure shows the paper, too."""
    for name, fields, errors in (("unchanged", {}, (10.0, 12.0)), ("dims=64", {"tokens": (21,),
            "dims": (64,), "blocks": (1,)}, (9.5,))):
        config = dataclasses.asdict(dataclasses.replace(simplehand_samples.TINY, **fields))
        for seed, error in enumerate(errors):
            folder = tmp_path / f"simplehand {name}" / f"seed {seed}"
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(
                {"config": config, "scores": {"SimpleHand": {"PA-MPJPE": error}}}))
    command.main(["tradeoff", "--runs", str(tmp_path), "--seconds", "0"])
    rows = capsys.readouterr().out.splitlines()
    found = {row.split(" | ")[0][2:]: row.split(" | ")[2][:-2] for row in rows[2:4]}
    assert found == {"unchanged": "11.00", "dims=64": "9.50"}
    assert all(float(row.split(" | ")[1]) > 0 for row in rows[2:4])
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")


def test_the_papers_tradeoff_is_its_table_1():
    """Rows without a speed have no point; 70 frames per second are 14.3 ms."""
    points = tradeoff.papers_points()
    assert len(points) == 9 and points["ours, FastViT"] == (pytest.approx(1000 / 70), 5.7)


def test_a_tradeoff_without_runs_says_how_to_make_some(tmp_path):
    with pytest.raises(SystemExit, match="no runs of SimpleHand in .*tables.py simplehand table7"):
        command.main(["tradeoff", "--runs", str(tmp_path)])


def test_without_a_gpu_nothing_is_run(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command.main(["gpu"])
    assert capsys.readouterr().out.startswith("not run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simplehand", "genhmr-tokenizer"])
def test_a_training_step_is_the_trainers_own(capsys, name):
    """The code of the training rows runs on the CPU: samples, loss, backward, optimiser."""
    gpu.training_step(name, "cpu", torch.device("cpu"), 0.0, "batch_size=2",
                      "accumulate=2")
    assert "2 samples" in capsys.readouterr().out
