"""networks/backbones.py: HRNet and Hiera are their authors', and the builder finds them all."""

from dataclasses import replace

import pytest
import torch
from simplehand_samples import HIERA, HRNET, TINY, count, images, on_meta, timm_or_skip
from torch import nn

from networks.backbones import PRESETS, simplehand_model
from simplehand import SimpleHand
from weights.simplehand import load_backbone


def test_parameter_counts_of_the_other_backbones():
    """With their ImageNet classifiers, HRNet-W64 and Hiera-Tiny have their authors' counts."""
    hrnet, hiera = on_meta(PRESETS["paper_hrnet"]), on_meta(PRESETS["paper_hiera"])
    assert count(hrnet.backbone) + 2048 * 1000 + 1000 == 128_059_944
    assert count(hiera.backbone) + 2 * 768 + 768 * 1000 + 1000 == 27_910_216
    stages = [value.numel() for name, value in hrnet.backbone.named_parameters()
              if not name.startswith(("incre", "downsamp", "final"))]
    assert sum(stages) == 115_697_600
    assert len(hrnet.backbone.state_dict()) == 1956 - 2
    assert len(hiera.backbone.state_dict()) == 157 - 4
    heads = [count(model.mesh_head) + count(model.keypoints_2d_head) for model in (hrnet, hiera)]
    assert heads == [1_558_239, 4_686_175]


@pytest.mark.parametrize(("name", "preset"), [
    ("hrnet_w64", "paper_hrnet"), ("hiera_tiny_224", "paper_hiera")])
def test_other_backbones_equal_timm(name, preset, capsys):
    """HRNet's two maps and Hiera's last one are timm's to 1e-5, weights copied by name."""
    theirs = timm_or_skip().create_model(name).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.normal_(module.bias, std=0.2)
    ours = simplehand_model(PRESETS[preset]).backbone.eval()
    load_backbone(ours, theirs.state_dict())
    assert "left out" in capsys.readouterr().out
    x = torch.rand(1, 3, 224, 224) if name.startswith("hiera") else torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found = ours(x)
        if name.startswith("hiera"):
            pairs = [(found[1], theirs.forward_intermediates(x, intermediates_only=True)[-1])]
        else:
            stem = theirs.act2(theirs.bn2(theirs.conv2(theirs.act1(theirs.bn1(theirs.conv1(x))))))
            pairs = list(zip(found, (theirs.stages(stem)[1], theirs.forward_features(x)),
                             strict=True))
    for ours, expected in pairs:
        assert (ours - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max())


@pytest.mark.parametrize("fields", [HRNET, HIERA], ids=str)
def test_the_paper_file_wants_other_backbones_given(fields):
    """SimpleHand alone builds FastViT; for another config it says what it expected. Hiera is for
    one image size."""
    config = replace(TINY, **fields)
    with pytest.raises(ValueError, match=f"backbone '{config.backbone}': expected that as an arg"):
        SimpleHand(config)
    given = simplehand_model(config).backbone
    assert SimpleHand(config, given).backbone is given
    if fields is HIERA:
        with pytest.raises(ValueError, match="expected 64 x 64"):
            SimpleHand(config, given).eval()(images(1, 96))
