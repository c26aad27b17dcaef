"""Runs that are killed at random moments and continued: python -m benchmarks resume."""

import pytest
import torch

import train
from benchmarks import resume


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "2"])
@pytest.mark.parametrize("stage", resume.SETTINGS)
def test_killed_runs_end_in_the_same_bits(stage, ranks, capsys):
    """A trial with one process and one with two: killed at random moments, the same weights."""
    code = resume.main(["--stage", stage, "--ranks", ranks, "--trials", "1", "--steps", "16"])
    assert code == 0, capsys.readouterr().out


def test_every_stage_is_killed_and_continued():
    """"all" trains nothing of its own."""
    trained = {f"{model}-{stage}".removesuffix("-") for model, paper in train.PAPERS.items()
               for stage in paper.STAGES if stage != "all"}
    assert {stage.split()[0] for stage in resume.SETTINGS} == trained


def test_a_digest_sees_every_bit_of_a_checkpoint(tmp_path):
    """Another last bit of a weight is another digest; another duration is not."""
    weight = torch.ones(3)
    digests = []
    for changed, seconds in ((0.0, 1.0), (0.0, 2.0), (2**-23, 1.0)):
        torch.save({"model": {"weight": weight + changed}, "step": 3, "seconds": seconds},
                   tmp_path / "checkpoint.pt")
        digests.append(resume.digest(tmp_path))
    assert digests[0] == digests[1] != digests[2]
    assert resume.last_step(tmp_path) == 3
