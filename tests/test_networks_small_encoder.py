"""The small image encoder that stands in for GenHMR's ViT."""

import pytest
import torch
from genhmr_samples import SMALL, TINY, images

from genhmr import PRESETS, GenHMR
from networks.small_encoder import (
    GRID,
    NAMES,
    OTHER_SIDE,
    SmallEncoder,
    build_genhmr,
    places,
    token_of_cell,
)


def test_tokens_are_like_a_vits():
    """(B, N, D) on the config's grid, as wide as the encoder says."""
    encoder = SmallEncoder().eval()
    tokens = encoder(encoder.normalise(images(2, 128)))
    assert tokens.shape == (2, GRID[0] * GRID[1], encoder.width) == (2, 192, 112)
    cpu = PRESETS["cpu"]
    assert encoder.width + cpu.tokenizer.code_dim == cpu.vit_dim and SMALL.grid == GRID
    with pytest.raises(ValueError, match="expected .B, 3, 128, 128"):
        encoder.normalise(images(1, 64))


def test_readings_are_keypoints():
    """Probabilities of cells sum to one; places lie among the cells; the border is not trusted."""
    encoder = SmallEncoder().eval()
    reading = encoder.read(encoder.normalise(images(3, 128)))
    assert reading.heat.shape == (3, 45, 32 * 24)
    assert torch.allclose(reading.heat.exp().sum(-1), torch.ones(3, 45), atol=1e-4)
    assert (reading.at.abs() <= encoder.centres.amax(0)).all()
    assert (0 < reading.share).all() and (reading.share <= 1.00001).all()
    border = (reading.at.abs() > encoder.centres.amax(0) - 0.5 / 32).any(-1)
    assert torch.equal(reading.confidence, reading.share.masked_fill(border, 0))
    keypoints = encoder.keypoints(images(3, 128))
    assert torch.equal(keypoints[..., :2], reading.at)
    assert torch.equal(keypoints[..., 2], reading.confidence)


@pytest.mark.parametrize("per_joint", [2, 4, 8, 16])
def test_cells_of_a_block_belong_to_its_tokens(per_joint):
    """A token's place lies in its own cells; with more tokens than cells, two share one."""
    encoder = SmallEncoder()
    owner, middles = token_of_cell(per_joint).view(GRID), places(per_joint)
    assert torch.equal(owner // per_joint, encoder.joint_of_cell.view(GRID))
    for token, (x, y) in enumerate(middles.tolist()):
        cell = owner[int(y * GRID[0]), int(x * GRID[1] - 1e-4)].item()
        assert cell == (token if per_joint <= 8 else token // 2 * 2)


def test_sides_are_exchanged_by_the_gate():
    """Closed, the maps are the network's; open, left and right have exchanged theirs."""
    assert [OTHER_SIDE[other] for other in OTHER_SIDE] == list(range(45))
    for name, other in zip(NAMES, OTHER_SIDE, strict=True):
        assert NAMES[other] == name or {name[:4], NAMES[other][:4]} == {"left", "righ"}
    encoder, heat = SmallEncoder().eval(), []
    for gate in (-30.0, 30.0):
        torch.nn.init.zeros_(encoder.side.fc2.weight)
        torch.nn.init.constant_(encoder.side.fc2.bias, gate)
        heat.append(encoder.read(encoder.normalise(images(1, 128))).heat)
    assert torch.allclose(heat[0][:, OTHER_SIDE], heat[1], atol=1e-5)
    assert not torch.allclose(heat[0], heat[1], atol=1e-3)


def test_tokens_first_look_at_their_joint():
    """Before training the reference points are the blocks of the tokens' joints."""
    model = build_genhmr(SMALL)
    reference = model.transformer.reference.sigmoid()
    assert torch.allclose(reference, places(2))
    assert type(build_genhmr(TINY)) is GenHMR
    assert isinstance(model.backbone, SmallEncoder)
