"""The benchmarks run, compare like with like, and are found from any folder."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import genhmr
import metrics
import simplehand
from benchmarks import __main__ as command
from benchmarks import bodymodels as bodies_room
from benchmarks import genhmr as genhmr_room
from benchmarks import gpu
from benchmarks import metrics as metrics_room
from benchmarks.timing import medians

ROOT = Path(__file__).resolve().parents[1]


def test_medians_run_every_function_equally_often():
    """Functions take turns: each runs as often as the others, and has a time."""
    calls = []
    times = medians({name: lambda n=name: calls.append(n) for name in "abc"}, seconds=0, rounds=4)
    assert calls == [*"abc"] * 5 and set(times) == {*"abc"}
    assert all(spent >= 0 for spent in times.values())


def test_the_command_lists_its_benchmarks_from_any_folder(tmp_path):
    """`python path/to/benchmarks --help` works in an empty folder and names every benchmark."""
    done = subprocess.run([sys.executable, ROOT / "benchmarks", "--help"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in command.NAMES)


def test_the_command_passes_options_on(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["metrics", "--help"])
    assert stop.value.code == 0 and "--samples" in capsys.readouterr().out


def test_skinning_prints_a_ratio_for_every_case(capsys, monkeypatch):
    """One line for every model, batch and pass; without smplx, our own times and a note."""
    monkeypatch.setattr(bodies_room, "CASES", (("hand_right", 2),))
    bodies_room.main(["--seconds", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[-2:]] == [["hand_right", "2", "forward"]] * 2
    assert all(float(line.split()[-1]) > 0 for line in lines[-2:])
    monkeypatch.setitem(sys.modules, "smplx.lbs", None)
    bodies_room.main(["--seconds", "0"])
    assert "smplx is not installed" in capsys.readouterr().out


def test_metrics_compares_equals(capsys):
    """The two peers compute what we compute, so that their times mean something."""
    random = np.random.default_rng(0)
    source, target = (torch.from_numpy(random.normal(size=(64, 778, 3))) for _ in range(2))
    torch.testing.assert_close(metrics_room.common_procrustes(source, target),
                               metrics.procrustes_align(source, target), rtol=0, atol=1e-12)
    target = {"joints": random.normal(size=(1, 21, 3)), "vertices": random.normal(size=(1, 60, 3))}
    prediction = {name: points + 0.01 for name, points in target.items()}
    official = metrics_room.official_structure(prediction, target)
    ours = metrics.evaluate("freihand", prediction, target)
    assert official == pytest.approx({name: ours[name] for name in official}, abs=1e-6)
    metrics_room.benchmark_procrustes(2, 50, rounds=1)
    metrics_room.benchmark_protocol(1, rounds=1, vertices=60)
    assert capsys.readouterr().out.count("largest difference") == 2


@pytest.mark.parametrize("peer", ["project_then_sample", "transformers"])
def test_genhmr_compares_what_is_equal(peer):
    """Both compute the same attention, with the same gradients, also near and over the borders."""
    if peer == "transformers":
        pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr",
                            exc_type=Exception)
    torch.manual_seed(0)
    config = genhmr.Config(width=32, pyramid_width=32, heads=4, scales=(1, 2, 4), points=3)
    attention = genhmr.DeformableAttention(config).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    sizes = torch.tensor([(5, 3), (9, 7), (4, 12)])
    inputs = [torch.randn(2, 6, 32), torch.randn(2, int(sizes.prod(1).sum()), 32),
              torch.rand(6, 2)]
    queries, values, reference = [x.double().requires_grad_() for x in inputs]
    other = functools.partial(genhmr_room.project_then_sample, attention)
    if peer == "transformers":
        other = genhmr_room.peer_attention(attention)
        assert not isinstance(other, functools.partial)
    weight = torch.randn(2, 6, 32, dtype=torch.float64)
    results = [function(queries, reference, values, sizes) for function in (attention, other)]
    gradients = [torch.autograd.grad((result * weight).sum(), (queries, values, reference))
                 for result in results]
    assert torch.allclose(*results, atol=1e-10)
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9)


def test_genhmr_prints_ratios_and_parts(capsys):
    """With equal outputs, whatever the times."""
    genhmr_room.main(["--preset", "cpu", "--widths", "32", "--seconds", "0"])
    output = capsys.readouterr().out
    assert "width 32, forward + backward" in output and "T = 5" in output
    differences = re.findall(r"differs by (\S+)", output)
    assert len(differences) == 2 and all(float(number) < 1e-4 for number in differences)
    assert output.count(" ms") >= 11 and "refinement, 10 steps" in output


# --------------------------------------------------------------------------------------- GPU


CPU = torch.device("cpu")


def test_without_a_gpu_nothing_is_run(tmp_path, capsys, monkeypatch):
    """Every part of the table says so, and the file holds what was printed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main(["--out", str(tmp_path / "new" / "gpu.md")])
    written = (tmp_path / "new" / "gpu.md").read_text()
    assert written in capsys.readouterr().out
    assert written.count("| not run |") == len(gpu.groups(CPU, 0.0)) == 3


def test_a_part_that_fails_costs_no_other(tmp_path, capsys, monkeypatch):
    """Its reason is a line of the table, and the next part is measured."""
    def broken():
        yield "| first | 1.00 | 1.0 | - |"
        raise RuntimeError("out of | memory")

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    parts = {"a": broken, "b": lambda: iter(["| second | 2.00 | 1.0 | - |"])}
    gpu.table(parts, tmp_path / "gpu.md", torch.device("cuda"))
    assert (tmp_path / "gpu.md").read_text().splitlines()[-3:] == [
        "| first | 1.00 | 1.0 | - |", "| a | failed: out of / memory | | |",
        "| second | 2.00 | 1.0 | - |"]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_sampling_has_a_line_for_each_number_of_iterations():
    """The code of GenHMR's rows runs on the CPU, with its smallest preset."""
    lines = list(gpu.genhmr_lines(genhmr.PRESETS["cpu"], CPU, 0.0))
    assert [cells(line)[0][-5:] for line in lines] == ["T = 1", "T = 5"]
    assert all(float(cells(line)[1]) > 0 for line in lines)


def test_simplehand_has_a_line_for_each_way(monkeypatch):
    """The code of SimpleHand's rows runs on the CPU; a way that fails says why, the rest go on."""
    def broken():
        raise RuntimeError("no compiler\nsecond line")

    ways = {"plain": lambda: lambda: None, "fused, torch.compile": broken}
    monkeypatch.setattr(gpu, "variants", lambda model, images: ways)
    lines = list(gpu.simplehand_lines(simplehand.PRESETS["cpu"], CPU, 0.0))
    assert float(cells(lines[0])[1]) >= 0 and "failed: no compiler |" in lines[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simplehand", "genhmr-tokenizer"])
def test_a_training_step_is_the_trainers_own(tmp_path, name):
    """The code of the training rows runs on the CPU: samples, loss, backward, optimiser."""
    line = gpu.training_line(name, "cpu", CPU, 0.0, str(tmp_path), batch_size=2, accumulate=2)
    assert "2 samples in 2 parts, fp32" in line and float(cells(line)[1]) > 0
