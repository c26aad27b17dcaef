"""tasks/simplehand_tables.py: rows that build and train, scores of the paper, orderings."""

import numpy as np
import pytest
import torch

import bodymodels
import simplehand
from simplehand import PRESETS, Config, SimpleHand
from tasks.simplehand_tables import ABLATIONS, ablated, ablation_table

TINY = Config(
    image_size=64, embed_dims=(8, 8, 16, 32), depths=(1, 1, 1, 1), mlp_ratio=2.0,
    feature_width=64, layer_scale=0.5, token_width=16, dims=(32, 16, 8), heads=1,
    backbone_drop_path=0.0, drop_path=0.0, dropout=0.0,
)


def a_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    vertices = 0.1 * torch.randn(2, 778, 3, generator=generator) + torch.tensor([0, 0, 0.6])
    return {
        "image": torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8),
        "vertices": vertices, "joints": vertices[:, :21], "mesh_valid": torch.ones(2),
        "keypoints_2d": 64 * torch.rand(2, 21, 2, generator=generator),
        "keypoints_valid": torch.ones(2, 21),
        "K": torch.tensor([[100.0, 0, 32], [0, 100, 32], [0, 0, 1]]).expand(2, 3, 3),
    }


def unique_rows() -> dict[str, Config]:
    """The different configs of all ablation tables, at a size for tests."""
    rows = {ablated(TINY, changes): f"{table}: {row}"
            for table, rows in ABLATIONS.items() for row, (changes, _) in rows.items()}
    return {name: config for config, name in rows.items()}


@pytest.mark.parametrize("name", unique_rows())
def test_every_ablation_trains(name):
    """Each row of each table builds and predicts, and every parameter gets a gradient."""
    model, batch = SimpleHand(unique_rows()[name]), a_batch()
    prediction = model(batch["image"])
    assert prediction["vertices"].shape == (2, 778, 3)
    assert prediction["keypoints_2d"].shape == (2, 21, 2)
    regressor = bodymodels.load_model("hand_right").keypoint_regressor
    terms = simplehand.losses(prediction, batch, regressor)
    simplehand.total_loss(terms, model.config).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert ("coarse_2d" in terms) == ("coarse" in name)


def test_ablations_say_what_the_paper_says():
    """Equal models have equal scores in all tables, and sizes follow the config's scale."""
    scores = {}
    for rows in ABLATIONS.values():
        for changes, score in rows.values():
            assert scores.setdefault(ablated(Config(), changes), score) == score
    assert scores[Config()] == (6.2, 6.5) and len(scores) == 24
    grid = ABLATIONS["table5"]["grid, 7 x 7"][0]
    assert ablated(Config(), grid).tokens == (49, 84, 336)
    assert ablated(PRESETS["ablation"], grid).tokens == (4, 84, 336)
    wide = ABLATIONS["table7"]["dimensions 512, 256, 128"][0]
    assert ablated(PRESETS["ablation"], wide).dims == (128, 64, 32)


def test_ablation_tables_judge_by_common_seeds():
    """Means and spreads by hand; an ordering holds if the mean over seeds of both rows does."""
    found = {"ours": {0: (10.0, 12.0), 1: (12.0, 14.0)}, "identity mixer": {0: (11.0, 13.0)},
             "without position embedding": {0: (10.5, 11.0), 1: (10.0, 11.0)}}
    found = {row: {seed: np.array(scores) for seed, scores in seeds.items()}
             for row, seeds in found.items()}
    table = ablation_table("table8", found, PRESETS["ablation"], "the command")
    assert "| ours | 6.2 | 6.5 | 11.00 ± 1.41 | 13.00 ± 1.41 | 2 |" in table
    assert "| identity mixer | 6.3 | 6.6 | 11.00 | 13.00 | 1 |" in table
    assert "| separable convolution mixer | - | - | - | - | 0 |" in table
    assert "| ours < identity mixer | 0.1 | 1.00 | yes, in 1 of 1 seeds |" in table
    assert ("| ours < without position embedding | 0.1 | -0.75 ± 1.77 | **no**, in 1 of 2 seeds |"
            in table)
    assert table.count(" < ") == 2 and "`the command`" in table
