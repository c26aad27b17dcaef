"""The training loop: runs are started, killed, resumed and compared as a user sees them."""

import copy
import csv
import dataclasses
import io
import json
import math
import multiprocessing
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import data
import simplehand
import train
from sets import readers
from tasks.base import Predictions
from tasks.files import add_row, add_scores, claim, cut_table, draw_curves
from tasks.ranks import share_batch_norm
from tasks.settings import SIMPLEHAND, Settings
from tasks.simplehand import SimpleHandTask
from weights.simplehand import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "image_size": 32, "embed_dims": (8, 8, 16, 32), "depths": (1, 1, 1, 1), "feature_width": 32,
    "token_width": 16, "dims": (16, 8, 8), "heads": 2, "dropout": 0.0, "drop_path": 0.0,
    "batch_size": 8, "steps": 12, "warmup_steps": 2, "eval_every": 5, "train_samples": 44,
    "test_samples": 19,
}


def changed(values, **fields):
    """A config or settings with those of the fields that it has."""
    return dataclasses.replace(values, **{
        name: value for name, value in fields.items() if hasattr(values, name)})


CONFIG, SETTINGS = changed(simplehand.PRESETS["cpu"], **TINY), changed(SIMPLEHAND["cpu"], **TINY)


def flag(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def command_line(cache, out, *extra, **fields):
    settings = [f"{name}={flag(value)}" for name, value in (TINY | fields).items()]
    return ["--model", "simplehand", "--preset", "cpu", "--cache", str(cache), "--out", str(out),
            "--save-every", "0", *map(str, extra), "--set", *settings]


class Run:
    """A run of train.py in processes of its own, which tests may kill."""

    def __init__(self, out, arguments, ranks=1, restarts=0, program="train.py"):
        self.out = out
        launcher = [sys.executable] if ranks == 1 else [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
        self.process = subprocess.Popen(
            [*launcher, str(ROOT / program), *arguments], text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            # a background shell ignores Ctrl-C, and so would all of its children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def steps(self):
        path = self.out / "log.csv"
        return len(path.read_text().splitlines()) - 1 if path.exists() else 0

    def wait_for_step(self, step):
        while self.steps() < step:
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.002)

    def ranks(self):
        """Process ids of the ranks under torchrun, in order."""
        lines = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True).stdout
        parents = dict(map(int, line.split()) for line in lines.splitlines())
        return sorted(pid for pid, parent in parents.items() if parent == self.process.pid)[:2]

    def end(self):
        output = self.process.communicate(timeout=300)[0]
        assert self.process.returncode == 0, output
        return output


def rows(path):
    """The rows of a table as numbers, without the times."""
    with open(path, newline="") as file:
        return [{name: float(value) for name, value in row.items() if "second" not in name}
                for row in csv.DictReader(file)]


def assert_same_state(first, second):
    """Equal to the last bit, wherever there is a tensor."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and first.shape == second.shape
        assert torch.equal(*(each.flatten().view(torch.uint8) for each in (first, second)))
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first.keys() - {"seconds", "flags"}:
            assert_same_state(first[name], second[name])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same_state(one, other)
    else:
        assert first == second


def assert_same_run(first, second):
    """Same checkpoint, same logs but for the times, every step once."""
    assert_same_state(*(torch.load(out / "checkpoint.pt") for out in (first, second)))
    for name in ("log.csv", "scores.csv"):
        assert rows(first / name) == rows(second / name)
    assert [row["step"] for row in rows(second / "log.csv")] == list(range(1, 13))
    assert [row["step"] for row in rows(second / "scores.csv")] == [5, 10, 12]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, cache):
    """An uninterrupted run of one process, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "one"
    return out, Run(out, command_line(cache, out)).end()


@pytest.fixture(scope="session")
def finished_by_two(tmp_path_factory, cache):
    """The same of two processes, each with half of the batch."""
    out = tmp_path_factory.mktemp("runs") / "two"
    Run(out, command_line(cache, out), ranks=2).end()
    return out


# ------------------------------------------------------------------------- what a run leaves


def test_a_run_prints_and_writes_what_it_promises(finished, cache):
    out, output = finished
    assert re.search(r"step 12/12  loss \d+\.\d+  joints .* samples/s  0:00:00 left", output)
    scores = json.loads((out / "results.json").read_text())["scores"]
    assert set(scores) == {"SimpleHand", "mean hand"}
    for name, row in scores.items():
        printed = re.search(rf"^{name}((?: +[\d.]+)+)$", output, re.MULTILINE)[1].split()
        assert list(map(float, printed)) == pytest.approx(list(row.values()), abs=6e-4)
    assert (out / "log.csv").read_text().splitlines()[0] == (
        "step,loss,joints,keypoints_2d,vertices,learning_rate,grad_norm,samples_per_second,seconds")
    for row in rows(out / "log.csv"):
        total = 10 * row["joints"] + 40 * row["keypoints_2d"] + 10 * row["vertices"]
        assert math.isclose(row["loss"], total, rel_tol=1e-5)
        assert row["learning_rate"] == pytest.approx(train.learning_rate(CONFIG, row["step"] - 1))
    for name in ("predictions.png", "curves.png"):
        assert data.read_image(out / name).std() > 10
    # first and last lines: cache, batch, the command that tries the result
    assert f"data: rendered; what is rendered or packed once is kept in {cache}" in output
    assert "8 samples per step, 8 at a time in a process" in output
    assert ("next: python demo.py simplehand PICTURE --box X,Y,WIDTH,HEIGHT "
            f"--checkpoint {out}/checkpoint.pt") in output


def test_checkpoints_are_complete_and_the_best_weights_are_kept(finished):
    """checkpoint.pt holds everything and loads safely; best.pt has the evaluation with the least
    PA-MPJPE of scores.csv; both load as models."""
    out, _ = finished
    best = torch.load(out / "best.pt", weights_only=True)
    errors = {int(row["step"]): row["PA-MPJPE"] for row in rows(out / "scores.csv")}
    assert best["step"] == min(errors, key=errors.get)
    assert best["scores"]["SimpleHand"]["PA-MPJPE"] == pytest.approx(min(errors.values()))
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    assert {"model", "optimizer", "scaler", "step", "position", "config", "preset", "flags",
            "torch", "baseline"} <= set(checkpoint)
    assert (checkpoint["step"], checkpoint["position"]) == (12, 96)
    for name in ("best.pt", "checkpoint.pt"):
        assert load_checkpoint(out / name).config == CONFIG


@given(values=st.lists(st.integers(0, 5) | st.just(math.nan), min_size=1, max_size=8))
def test_an_evaluation_is_the_best_if_it_beats_all_before_it(values, tmp_path_factory):
    """Of equal ones the first, NaN never."""
    out = tmp_path_factory.mktemp("scores")
    found = [add_scores(out, step, {"model": {"MPJPE": -value, "clear PA-MPJPE": value}})
             for step, value in enumerate(values)]
    assert found == [one == one and all(one < other for other in values[:place] if other == other)
                     for place, one in enumerate(values)]


def test_scores_are_not_rounded_to_tf32():
    """An evaluation multiplies in full precision, also on a GPU that trains with TF32."""
    during = []

    def predict(model, batch, final):
        during.append(torch.get_float32_matmul_precision())
        return Predictions(batch["index"], {}, {})

    task = SimpleNamespace(
        config=SimpleNamespace(batch_size=2), settings=SimpleNamespace(accumulate=1),
        test_set=[{"index": index} for index in range(3)], predict=predict, scores=lambda _: {})
    torch.set_float32_matmul_precision("high")
    try:
        train.evaluate(task, nn.Identity(), train.World())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert during == ["highest"] * 2


def test_eval_repeats_the_scores_and_export_ships_them(finished, tmp_path, capsys, cache,
                                                       undrawn):
    """--eval on the checkpoint gives the run's scores; on the exported file, those it claims."""
    out, _ = finished
    arguments = ["--model", "simplehand", "--eval", "--cache", str(cache)]
    train.main([*arguments, "--checkpoint", str(out / "checkpoint.pt"), "--out",
                str(tmp_path / "a"), "--export", str(tmp_path / "small.pt")])
    train.main([*arguments, "--checkpoint", str(tmp_path / "small.pt"), "--out",
                str(tmp_path / "b")])
    assert "PA-MPJPE" in capsys.readouterr().out
    run, exported, again = (json.loads((folder / "results.json").read_text())
                            for folder in (out, tmp_path / "a", tmp_path / "b"))
    for name, scores in run["scores"].items():
        for metric, value in scores.items():
            assert exported["scores"][name][metric] == pytest.approx(value, rel=0.02, abs=0.01)
            assert again["scores"][name][metric] == pytest.approx(
                exported["scores"][name][metric], rel=1e-5)
    small = torch.load(tmp_path / "small.pt", weights_only=True)
    assert small["scores"] == exported["scores"] and not {"optimizer", "flags"} & {*small}
    assert small["model"]["mesh_head.pred_final.weight"].dtype == torch.half
    assert (tmp_path / "small.pt").stat().st_size < (out / "checkpoint.pt").stat().st_size / 4
    with pytest.raises(SystemExit, match="--eval cannot change dims, which the file says"):
        train.main([*arguments, "--checkpoint", str(tmp_path / "small.pt"), "--out",
                    str(tmp_path / "c"), "--set", "dims=32,32,32"])


# ---------------------------------------------------------------------------- kill and resume


@pytest.mark.slow
def test_spawned_data_processes_bring_the_same_run(cache, tmp_path):
    """Windows and macOS start data processes afresh: rendering and the first steps, bit for bit."""
    fields = {"steps": 2, "train_samples": 256, "test_samples": 2}  # rendered by all cores
    Run(tmp_path / "fork", command_line(cache, tmp_path / "fork", **fields)).end()
    (tmp_path / "job.py").write_text(f"""
import multiprocessing, sys
sys.path.insert(0, {str(ROOT)!r})
import train
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    train.main(sys.argv[1:])
""")
    out = tmp_path / "spawn"
    Run(out, command_line(tmp_path / "cache", out, "--workers", "1", **fields),
        program=tmp_path / "job.py").end()
    one, other = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
                  for name in ("fork", "spawn"))
    assert_same_state(one, other)


@pytest.mark.slow
def test_an_interrupted_rendering_says_how_to_continue(tmp_path):
    """Ctrl-C reaches all processes: one line, and what has been rendered stays."""
    cache, out = tmp_path / "cache", tmp_path / "out"
    run = Run(out, command_line(cache, out, train_samples=5_000))
    while not any(path.stat().st_size > 10**6 for path in cache.glob("*.part")):
        assert run.process.poll() is None, run.process.communicate()[0]
        time.sleep(0.05)
    os.killpg(run.process.pid, signal.SIGINT)
    output = run.process.communicate(timeout=300)[0]
    assert output.endswith("train.py: interrupted: the same command continues\n"), output
    assert "Traceback" not in output and run.process.returncode == 1
    assert next(cache.glob("*.part")).stat().st_size > 10**6


@pytest.mark.slow
def test_torchrun_recovers_from_a_killed_rank_by_itself(finished_by_two, tmp_path, cache):
    """SIGKILL to one rank under --max-restarts: the same run in the end."""
    out = tmp_path / "restarted"
    run = Run(out, command_line(cache, out), ranks=2, restarts=1)
    run.wait_for_step(3)
    os.kill(run.ranks()[1], signal.SIGKILL)
    run.end()
    assert_same_run(finished_by_two, out)


@pytest.mark.slow
def test_number_of_processes_is_no_hyperparameter(finished, finished_by_two):
    """One process and two log the same losses and scores: the batch is split between them."""
    for name in ("log.csv", "scores.csv"):
        one, two = ([list(row.values()) for row in rows(out / name)]
                    for out in (finished[0], finished_by_two))
        np.testing.assert_allclose(one, two, rtol=2e-3)
        np.testing.assert_allclose(one[:3], two[:3], rtol=1e-4 if name == "log.csv" else 2e-3)


def test_an_existing_run_is_not_overwritten(finished, cache, capsys, undrawn):
    """Another seed, preset or kind of data is refused; the same command again only scores again."""
    out, _ = finished
    before, scores = (out / "checkpoint.pt").read_bytes(), rows(out / "scores.csv")
    for extra, fields, message in (
        ([], {"seed": 1}, r"another run \(it differs in seed\).*--resume.*--out FOLDER"),
        ([], {"steps": 24, "batch_size": 4}, "differs in batch_size, steps"),
        (["--resume", "--preset", "paper"], {}, "differs in preset"),
        (["--data", "freihand"], {}, "differs in data"),
        (["--checkpoint", out / "best.pt"], {}, "differs in checkpoint"),
        (["--backbone", out / "best.pt"], {}, "differs in backbone"),
    ):
        with pytest.raises(SystemExit, match=message):
            train.main(command_line(cache, out, *extra, **fields))
    train.main(command_line(cache, out))
    assert "from step 12 to 12" in capsys.readouterr().out
    assert (out / "checkpoint.pt").read_bytes() == before and rows(out / "scores.csv") == scores


def test_random_weights_of_a_large_backbone_are_named(cache, tmp_path, capsys, monkeypatch):
    """Whoever reproduces a paper and forgets --backbone is told; not with presets for a CPU."""
    arguments = train.parse_arguments(command_line(cache, tmp_path / "new"))
    for small, named in ((("cpu",), False), ((), True)):
        monkeypatch.setattr(train, "ON_A_CPU", small)
        task, model, run = train.prepare(arguments)
        train.begin(train.Trainer(task, train.World(), model), run)
        out = capsys.readouterr().out
        assert ("note: no --backbone" in out) == named
        assert ("--preset cpu is for a GPU" in out) == (named and not torch.cuda.is_available())


def test_a_finished_run_can_be_prolonged(finished, cache, tmp_path, undrawn):
    """--resume with more steps continues a run, without repeating its other settings; --set reaches
    the optimiser, and another precision is possible."""
    out = tmp_path / "longer"
    shutil.copytree(finished[0], out)
    train.main(["--model", "simplehand", "--cache", str(cache), "--out", str(out), "--resume",
                "--set", "steps=14", "learning_rate=1e-4", "weight_decay=0.5", "precision=fp16"])
    assert [row["step"] for row in rows(out / "log.csv")] == list(range(1, 15))
    assert [row["step"] for row in rows(out / "scores.csv")] == [5, 10, 12, 14]
    config = load_checkpoint(out / "checkpoint.pt").config
    assert config == dataclasses.replace(CONFIG, steps=14, learning_rate=1e-4, weight_decay=0.5)
    groups = torch.load(out / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    (out / "log.csv").unlink()  # as a power failure may do
    draw_curves(out)


def test_a_run_can_start_from_weights(finished, cache, tmp_path, undrawn):
    """--checkpoint: the network of the file, optimisation and data of the preset, step 0; the
    command given again continues."""
    file = finished[0] / "best.pt"
    arguments = ["--model", "simplehand", "--preset", "cpu_views", "--cache", str(cache), "--out",
                 str(tmp_path / "tuned"), "--checkpoint", str(file), "--set", "batch_size=8",
                 "train_samples=44", "test_samples=19", "learning_rate=1e-9", "warmup_steps=0"]
    train.main([*arguments, "steps=1"])
    start, tuned = (load_checkpoint(path)
                    for path in (file, tmp_path / "tuned/checkpoint.pt"))
    assert tuned.config.dims == CONFIG.dims and tuned.config.steps == 1
    assert (start.settings["views"], tuned.settings["views"]) == (15, 90)
    for one, other in zip(start.parameters(), tuned.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=0)
    train.main([*arguments, "steps=2", "--resume"])
    assert torch.load(tmp_path / "tuned/checkpoint.pt", weights_only=True)["step"] == 2
    with pytest.raises(SystemExit, match="do not fit the weights of --checkpoint"):
        train.main([*arguments, "dims=32,8,8", "--out", str(tmp_path / "no")])


def test_a_reader_never_sees_half_a_checkpoint(tmp_path):
    """While one process saves again and again and is killed doing so, every load succeeds."""
    path = tmp_path / "checkpoint.pt"
    content = {"weights": torch.arange(500_000), "step": 0}
    train.save(content, path)
    for delay in (0.05, 0.11, 0.17, 0.23):
        child = os.fork()
        if child == 0:
            for step in range(1_000_000):
                train.save(content | {"step": step}, path)
            os._exit(0)
        stop = threading.Timer(delay, os.kill, (child, signal.SIGKILL))
        stop.start()
        while stop.is_alive():
            assert torch.equal(torch.load(path)["weights"], content["weights"])
        os.waitpid(child, 0)
        assert torch.equal(torch.load(path)["weights"], content["weights"])
    assert len(list(tmp_path.iterdir())) <= 2  # kills do not pile up files


def of_another_version(content):
    run, file = torch.load(io.BytesIO(content), weights_only=True), io.BytesIO()
    torch.save(run | {"config": run["config"] | {"new_field": 1}}, file)
    return file.getvalue()


DAMAGED = "checkpoint.pt is damaged .*: restore it from a copy"


@pytest.mark.parametrize(("name", "change", "fields", "message"), [
    ("checkpoint.pt", lambda content: content[:len(content) // 2], {}, DAMAGED),
    ("checkpoint.pt", lambda content: content[:len(content) // 2] + bytes(
        [content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1:], {}, DAMAGED),
    ("checkpoint.pt", of_another_version, {},
     "settings of another version of this code.*'new_field'"),
    ("best.pt", bytes, {}, "not a run's checkpoint: .*use --checkpoint and another"),
    ("checkpoint.pt", bytes, {"dims": "32,8,8", "steps": 13},
     "does not fit these settings .*for SimpleHand: .*[Ss]ize mismatch for .*without changing the "
     "netw")])
def test_a_checkpoint_that_cannot_go_on_is_one_message_and_kept(
        name, change, fields, message, finished, cache, tmp_path):
    """Damaged, of other settings, exported, of another network: nothing is trained or written."""
    content = change((finished[0] / name).read_bytes())
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        train.main(command_line(cache, tmp_path, "--resume", **fields))
    assert (tmp_path / "checkpoint.pt").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path):
    """A file that cannot grow: OSError with advice, the old content, nothing half-written."""
    path = tmp_path / "checkpoint.pt"
    train.save({"step": 1}, path)
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="cannot write .*: make room .*; what was there is kept"):
            train.save({"step": 2, "weights": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("extra", [[], ["--eval"]], ids=["train", "eval"])
def test_data_that_cannot_be_scored_are_one_message(extra, finished, cache, tmp_path, monkeypatch):
    """What a user did wrong ends in its message also in the middle of a run; the run is kept."""
    def scores(*_):  # as with a file for another body, which is read when it is needed
        raise ValueError("J_regressor_h36m.npy has 5 vertices, the body 6890")

    monkeypatch.setattr(SimpleHandTask, "scores", scores)
    shutil.copy(finished[0] / "checkpoint.pt", tmp_path)
    with pytest.raises(SystemExit, match="train.py: .* has 5 vertices, the body 6890$"):
        train.main(["--model", "simplehand", "--cache", str(cache), "--out", str(tmp_path),
                    *(extra or ["--resume", "--set", "steps=13"])])
    step = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert step == (12 if extra else 13)


class Damaged(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, key):
        raise ValueError("picture.jpg cannot be read: copy it again")


def test_an_error_of_a_data_process_is_its_last_line():
    """PyTorch puts the traceback of the other process into the message; no process stays."""
    for workers in (0, 1):
        with pytest.raises(ValueError) as error:
            list(train.load_batches(Damaged(), [[0]], train.World(workers=workers)))
        assert train.message_of(error.value) == "picture.jpg cannot be read: copy it again"
        assert not multiprocessing.active_children()


def test_table_continues_without_gap_or_double_row(tmp_path):
    """Rows of later steps and torn ones go; without rows the names are written again. Terms that
    only a resumed run has are left out."""
    path = tmp_path / "log.csv"
    for step in range(1, 6):
        add_row(path, {"step": step, "loss": 1 / step})
    with open(path, "a") as file:
        file.write("6,0.1\n1")  # a torn row whose step looks early
    with open(path, "ab") as file:
        file.write(b"\n\xff\0\0,1\n")  # and a damaged one
    cut_table(path, 3)
    add_row(path, {"step": 4, "loss": math.nan})
    assert [row["step"] for row in rows(path)] == [1, 2, 3, 4]
    cut_table(path, 0)
    add_row(path, {"step": 1, "loss": 1.0})
    add_row(path, {"step": 2, "other": 3.0})
    add_row(path, {"step": 3, "loss": 2.0})
    assert path.read_text() == "step,loss\n1,1\n2,nan\n3,2\n"


def test_two_runs_do_not_share_a_folder(tmp_path):
    """The lock of another process is one message; it ends with that process."""
    code = "import sys, pathlib; from tasks.files import claim; lock = claim(pathlib.Path("
    code += "sys.argv[1])); print('ready', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == "ready\n"
    with pytest.raises(ValueError, match="another run is writing to"):
        claim(tmp_path)
    other.kill()
    other.wait()
    claim(tmp_path).close()


# -------------------------------------------------------------------------- the training step


def task_of(cache, config=CONFIG, *extra, settings=SETTINGS):
    """The task of a config, as the command line makes it."""
    arguments = train.parse_arguments(["--model", "simplehand", "--cache", str(cache), *extra])
    return SimpleHandTask(config, arguments, {}, settings)


def trainer_of(task, **options):
    """A trainer of one process for a task with new weights."""
    return train.Trainer(task, train.World(), train.build(task, None), **options)


def make_trainer(cache, **fields):
    """A trainer of the tiny model and a function from step to its batches."""
    config, settings = changed(CONFIG, **fields), changed(SETTINGS, **fields)
    task = task_of(cache, config, settings=settings)
    trainer = trainer_of(task)

    def batches(step):
        position = step * config.batch_size
        keys = train.rank_batches(position, 1, config.batch_size, settings.accumulate,
                                  trainer.world, len(task.train_set), settings.seed)
        return list(train.load_batches(task.train_set, keys, trainer.world))

    return trainer, batches


@pytest.mark.parametrize("fields", [
    {"dropout": 0.2, "drop_path": 0.2, "backbone_drop_path": 0.2},
    {"precision": "bf16"},
    {"precision": "fp16", "accumulate": 2, "channels_last": True},
], ids=["dropout", "bf16", "fp16, accumulate"])
def test_state_is_complete(cache, fields):
    """A trainer that takes up another's state does what that one would have done, bit for bit; in
    every precision steps learn."""
    trainer, batches = make_trainer(cache, **fields)
    losses = [trainer.train_step(batches(0))["loss"] for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]
    state = copy.deepcopy(trainer.state_dict())
    torch.rand(3)  # chance elsewhere must not matter
    expected = [trainer.train_step(batches(step)) for step in (2, 3)]
    other, _ = make_trainer(cache, **fields)
    other.load_state_dict(state)
    assert [other.train_step(batches(step)) for step in (2, 3)] == expected
    assert_same_state(other.state_dict(), trainer.state_dict())
    assert all(math.isfinite(row["loss"]) for row in expected)


class LineTask:
    """The smallest task there is, without batch norm: what the loop asks of a paper."""

    def __init__(self, config, settings=SETTINGS):
        self.config, self.settings = config, settings

    def build(self):
        return nn.Linear(3, 2)

    def to(self, device):
        pass

    def loss(self, model, batch, step):
        error = (model(batch["x"]) - batch["y"]).square().mean()
        return error, {"error": error}


def test_accumulation_is_a_bigger_batch():
    """Without batch norm, four batches of 4 take the step that one batch of 16 takes."""
    generator = torch.Generator().manual_seed(0)
    batch = {"x": torch.randn(16, 3, generator=generator), "y": torch.randn(16, 2)}
    parts = [{name: value[start:start + 4] for name, value in batch.items()}
             for start in range(0, 16, 4)]
    rows, weights = [], []
    for accumulate, batches in ((1, [batch]), (4, parts)):
        trainer = trainer_of(LineTask(changed(CONFIG, batch_size=16),
                                      changed(SETTINGS, accumulate=accumulate)))
        rows.append(trainer.train_step(batches))
        weights.append(trainer.model.weight.detach())
        assert trainer.position == 16
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-7)


def test_gradients_are_clipped():
    """The logged norm is the one before clipping; the step sees one of at most the limit."""
    trainer = trainer_of(LineTask(dataclasses.replace(CONFIG, gradient_clip=0.5)))
    seen = []
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(
        torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm().item()))
    row = trainer.train_step([{"x": 10 * torch.ones(4, 3), "y": -100 * torch.ones(4, 2)}])
    assert row["grad_norm"] > 10 and seen == [pytest.approx(0.5, rel=1e-4)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_non_finite_step_changes_nothing(cache, precision):
    """Weights, running statistics and optimiser are as before the step, to the bit."""
    trainer, batches = make_trainer(cache, precision=precision)
    trainer.scaler._init_scale = 128.0  # the first steps do not overflow
    trainer.train_step(batches(0))
    before = copy.deepcopy(trainer.state_dict())
    assert before["optimizer"]["state"]
    poisoned = batches(1)
    poisoned[0]["vertices"][3, 5] = math.nan
    row = trainer.train_step(poisoned)
    after = copy.deepcopy(trainer.state_dict())
    assert math.isnan(row["loss"]) and trainer.skipped == 1 and trainer.step == 2
    assert_same_state(after["optimizer"]["state"], before["optimizer"]["state"])
    assert_same_state(after["model"], before["model"])
    trainer.train_step(batches(2))
    assert trainer.skipped == 0


def test_an_overflow_of_the_scaler_is_not_an_error(cache):
    """Scaled too much, gradients overflow: the scale halves, no step is counted as lost."""
    trainer, batches = make_trainer(cache, precision="fp16")
    trainer.scaler._init_scale = 2.0 ** 40
    row = trainer.train_step(batches(0))
    assert not math.isfinite(row["grad_norm"]) and math.isfinite(row["loss"])
    assert trainer.skipped == 0 and trainer.scaler.get_scale() == 2.0 ** 39


@pytest.mark.slow
def test_ten_non_finite_steps_end_the_run(cache, tmp_path):
    """A learning rate of 1e30 destroys the weights in a step: ten are skipped, then it stops."""
    run = Run(tmp_path, command_line(cache, tmp_path, learning_rate=1e30, steps=50, eval_every=99))
    output = run.process.communicate(timeout=300)[0]
    assert run.process.returncode == 1, output
    assert "skipped, 10 in a row" in output and "10 steps in a row were not finite" in output
    losses = [row["loss"] for row in rows(tmp_path / "log.csv")]
    assert f"gave up at step {len(losses)}" in output and len(losses) < 50
    assert not any(math.isfinite(loss) for loss in losses[-10:])


def test_shared_batch_norm_of_one_rank_is_batch_norm(tmp_path):
    """Outputs, gradients and running statistics agree; two ranks are tested with whole runs. Of
    bfloat16, as mixed precision gives it, running statistics stay in full precision."""
    torch.distributed.init_process_group(
        "gloo", rank=0, world_size=1, store=torch.distributed.FileStore(str(tmp_path / "store"), 1))
    try:
        own, reference = (nn.Sequential(nn.BatchNorm2d(5)) for _ in range(2))
        share_batch_norm(own, train.World())
        x = (1e3 + torch.randn(4, 5, 6, 7)).requires_grad_()
        weight, results = torch.randn(4, 5, 6, 7), []
        for norm in (own, reference):
            y = norm(x)
            gradient, = torch.autograd.grad((y * weight).sum(), x)
            results.append((y, gradient, norm[0].running_mean, norm[0].running_var))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(own.eval()(x), reference.eval()(x))
        norm = share_batch_norm(nn.BatchNorm2d(5), train.World())
        assert norm(torch.randn(4, 5, 6, 7).bfloat16()).dtype == torch.bfloat16
        assert norm.running_mean.dtype == torch.float32 and norm.running_mean.abs().min() > 0
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_a_compiled_model_takes_the_same_steps():
    """--compile: the losses of three steps, to rounding."""
    batch, losses = {"x": torch.ones(4, 3), "y": -torch.ones(4, 2)}, []
    for compile in (False, True):
        trainer = trainer_of(LineTask(CONFIG), compile=compile)
        losses.append([trainer.train_step([batch])["loss"] for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# ------------------------------------------------------------------------ order and schedule

sizes = st.integers(1, 9)


@given(length=st.integers(1, 50), epochs=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_index_comes_once_per_epoch(length, epochs, seed):
    """Keys of an epoch are epoch * length + a permutation of the indices."""
    keys = [train.key_at(position, length, seed) for position in range(epochs * length)]
    for epoch in range(epochs):
        part = keys[epoch * length:(epoch + 1) * length]
        assert sorted(part) == list(range(epoch * length, (epoch + 1) * length))
    orders = [tuple(train.epoch_order(seed + other, epoch, 50)) for other in range(3)
              for epoch in range(3)]
    assert len(set(orders)) == 9


@given(batch_size=sizes, accumulate=st.integers(1, 3), ranks=st.integers(1, 4), steps=sizes,
       length=st.integers(1, 60), position=st.integers(0, 200))
def test_ranks_partition_the_steps_of_one_process(batch_size, accumulate, ranks, steps, length,
                                                  position):
    """However a step's samples are split among ranks and batches, together they are the same."""
    def keys(size, accumulate, world):
        return [key for batch in train.rank_batches(position, steps, size, accumulate, world,
                                                    length, seed=7) for key in batch]

    share = batch_size * accumulate
    total = share * ranks
    parts = [keys(total, accumulate, train.World(rank, ranks)) for rank in range(ranks)]
    alone = keys(total, 1, train.World())
    joined = [key for step in range(steps) for part in parts
              for key in part[step * share:(step + 1) * share]]
    assert joined == alone


def test_learning_rate_golden_values():
    """The release's schedule: from 0 to 5e-4 in 1,280 steps, a tenth after half of 51,200."""
    paper = simplehand.PRESETS["paper"]
    rates = [train.learning_rate(paper, step) for step in (0, 639, 1_279, 25_599, 25_600, 51_199)]
    assert rates == pytest.approx([5e-4 / 1_280, 2.5e-4, 5e-4, 5e-4, 5e-5, 5e-5])
    cosine = dataclasses.replace(paper, schedule="cosine", steps=200, warmup_steps=100)
    rates = [train.learning_rate(cosine, step) for step in (99, 100, 150, 175)]
    assert rates == pytest.approx([5e-4, 5e-4, 2.5e-4, 5e-4 * (0.5 - math.sqrt(0.125))])
    constant = dataclasses.replace(cosine, schedule="constant")
    assert [train.learning_rate(constant, step) for step in (49, 99, 199)] == pytest.approx(
        [2.5e-4, 5e-4, 5e-4])


# ------------------------------------------------------------------------------ command line


@pytest.mark.parametrize("assignment", [
    "embed_dims=0,0,0,0", "embed_dims=8,-8,16,32", "image_size=100", "accumulate=3"])
def test_settings_without_a_model_are_one_line(assignment, tmp_path):
    """Refused before any data are prepared; so is a batch that does not split."""
    with pytest.raises(SystemExit) as error:
        train.main(command_line(tmp_path / "cache", tmp_path / "out") + [assignment])
    name = {"accumulate=3": "batch_size is 8: expected a multiple of 1 processes x acc"}.get(
        assignment, assignment.split("=")[0])
    assert "\n" not in str(error.value).strip() and name in str(error.value)
    assert not (tmp_path / "cache").exists() and not (tmp_path / "out").exists()


GENHMR = ["--model", "genhmr", "--stage"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--preset", "laptop"], "no preset 'laptop' for simplehand: expected one of paper"),
    (["--data", "video"], "--data video: expected one of rendered, freihand"),
    (["--data", "freihand"], "--data-root"),
    (["--data", "freihand", "--data-root", "x", "--protocol", "3dpw_lsp14"],
     "--data freihand is evaluated by freihand, not by 3dpw_lsp14"),
    (["--data", "freihand", "--data-root", "nowhere"], "give MANO_RIGHT.pkl with --hand"),
    (["--data", "freihand", "--data-root", "nowhere", "--hand", "hand_right"], "nowhere"),
    (["--eval", "--checkpoint", __file__], "not a readable checkpoint"),
    (["--set", "banana=1"], "--set banana=1: expected FIELD=VALUE; fields are accumulate, "),
    (["--set", "step=9"], "did you mean steps"),
    (["--set", "steps=many"], "'many' is not of type int; by default steps is 3800"),
    (["--set", "steps=0"], "steps is 0: expected at least 1"),
    (["--set", "official=yes"], "'yes' is not of type bool"),
    (["--set", "dropout=2"], "dropout is 2.0: expected a part of all, from 0 to below 1"),
    (["--set", "schedule=linear"], "expected one of constant, step, cosine"),
    (["--set", "lean=3"], "expected FIELD=VALUE; fields are "),  # of bodies
    (["--stage", "tokenizer"], "simplehand is trained without --stage"),
    (["--export", str(ROOT / "assets")], "is a folder: expected a file"),
    (["--stage"], "argument --stage: expected one argument; see --help"),
    (["--tokenizer", "x"], "unrecognized arguments: --tokenizer x; see --help"),
    ([*GENHMR[:2]], "trained in stages, each a run of its own: add --stage tokenizer, then --stage "
     "encoder, then --stage transformer"),
    ([*GENHMR, "tokenizer", "--top-k", "3"], "unrecognized arguments: --top-k 3; see --help"),
    ([*GENHMR, "transformer"], "--stage tokenizer and give its checkpoint with --tokenizer"),
    ([*GENHMR, "transformer", "--preset", "cpu", "--tokenizer", str(ROOT / "assets/genhmr_cpu.pt")],
     "needs a trained encoder: make one with --stage encoder"),
    ([*GENHMR, "tokenizer", "--body", "hand_right"], "expected a SMPL model, with 24"),
    ([*GENHMR, "tokenizer", "--set", "num_tokens=95"], "num_tokens is 95"),
    ([*GENHMR, "transformer", "--set", "tokenizer=x"], "=x: expected FIELD=VALUE; fields are "),
])
def test_bad_arguments_are_one_line(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=re.escape(message)) as error:
        train.main(["--model", "simplehand", "--out", str(tmp_path / "new"), *arguments])
    assert "\n" not in str(error.value).strip()
    assert not (tmp_path / "new").exists()


def test_the_commands_for_real_data_are_understood():
    """Those of sets/README.md; that of GenHMR is its Table 1's: SD, then 3DPW with its detector."""
    text = (ROOT / "sets/README.md").read_text().replace("\\\n", "")
    simplehand, tokenizer, transformer, hand = (train.parse_arguments(shlex.split(command)) for
        command in re.findall(r"^torchrun .* train\.py (.*)$", text, re.MULTILINE))
    assert {simplehand.preset, tokenizer.preset, transformer.preset, hand.preset} == {"paper"}
    assert (transformer.data, transformer.protocol) == ("genhmr-sd", "3dpw_lsp14")
    assert readers.ThreeDPW.DETECTED and 20 in train.TASKS[transformer.name].REFINEMENTS


@pytest.mark.parametrize("name", train.TASKS)
def test_help_lists_the_fields_of_the_stage(name, capsys):
    model, _, stage = name.partition("-")
    with pytest.raises(SystemExit):
        train.main(["--model", model, *(["--stage", stage] if stage else []), "--help"])
    output = capsys.readouterr().out
    for kind in (type(train.TASKS[name].PRESETS["cpu"]), Settings):
        assert all(field.name in output for field in dataclasses.fields(kind))
