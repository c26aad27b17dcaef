"""GenHMR's checkpoints: of either stage, of others, old, damaged."""

from dataclasses import asdict, replace

import pytest
import torch
from genhmr_samples import SMALL, TINY, TINY_TOKENIZER, images, poses
from hostile import Call

import genhmr
from genhmr import GenHMR, Tokenizer
from networks.small_encoder import SmallEncoder, build_genhmr
from weights.genhmr import load_backbone, load_checkpoint, load_encoder, load_tokenizer


def test_checkpoints_return_the_model(tmp_path, lively):
    """File or content, of a wrapped model or not: the same model, and the same random numbers as
    after building it."""
    config, state = asdict(TINY), lively.state_dict()
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"model": state, "config": config, "step": 7}, tmp_path / "a.pt")
    torch.save({"model": wrapped, "config": config}, tmp_path / "b.pt")
    torch.manual_seed(3)
    GenHMR(TINY)
    expected = torch.rand(1)
    for source in (tmp_path / "a.pt", str(tmp_path / "b.pt"), {"model": state, "config": config}):
        torch.manual_seed(3)
        model = load_checkpoint(source)
        assert torch.equal(torch.rand(1), expected)
        assert model.config == TINY and not model.training
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_tokenizers_come_from_either_stage(lively):
    """load_tokenizer reads checkpoints of both stages."""
    tokenizer = lively.tokenizer
    sources = ({"model": tokenizer.state_dict(), "config": asdict(TINY_TOKENIZER)},
               {"model": lively.state_dict(), "config": asdict(TINY)})
    for source in sources:
        loaded = load_tokenizer(source)
        assert loaded.config == TINY_TOKENIZER and not loaded.training
        assert torch.equal(loaded.encode(poses(3)), tokenizer.encode(poses(3)))


def test_bad_checkpoints_are_refused(tmp_path, lively):
    """Other models, configs and shapes: one clear error each."""
    config, state = asdict(TINY), lively.state_dict()
    stage_1 = {"model": lively.tokenizer.state_dict(), "config": asdict(TINY_TOKENIZER)}
    with pytest.raises(ValueError, match="load_tokenizer takes stage 1"):
        load_checkpoint(stage_1)
    torch.save({"model": {"weight": torch.ones(1)}, "config": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="^.*other.pt: no tokenizer in this checkpoint"):
        load_tokenizer(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="^.*other.pt: these weights are not "):
        load_backbone(lively, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="config is not a genhmr.Config: .*colour"):
        load_checkpoint({"model": state, "config": {**config, "colour": 3}})
    for wrong in ({"vit_dim": -16}, {"heads": 0}, {"regressor_width": 10**13},  # takes no memory
                  {"tokenizer": {**config["tokenizer"], "codebook_size": 64}}):
        with pytest.raises(ValueError):
            load_checkpoint({"model": state, "config": {**config, **wrong}})


class CfgNode(dict):
    """As yacs has it: a dictionary with attributes, of a module that readers may lack."""


def test_backbones_of_others_load(tmp_path, capsys, lively):
    """4D-Humans' and TokenHMR's files with all that is in them, ViTPose's, and bare weights.

    Foreign objects, as in Lightning's hyperparameters, load without running code.
    """
    bare = lively.backbone.state_dict()
    assert {"patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.bias",
            "blocks.1.mlp.fc2.weight", "last_norm.bias"} <= set(bare)
    full = {f"backbone.{name}": value for name, value in bare.items()}
    node = CfgNode(MODEL=CfgNode(BACKBONE=1))
    node.__dict__["__immutable__"] = True
    code = f"open({str(tmp_path / 'traces')!r}, 'w').close()"
    humans = {"state_dict": {**full, "smpl_head.decpose.weight": torch.ones(2)},
              "hyper_parameters": {"cfg": node, "call": Call(eval, code)}}
    torch.save(humans, tmp_path / "humans.ckpt")
    vitpose = {"state_dict": {**full, "keypoint_head.final_layer.bias": torch.ones(17)}}
    torch.save(vitpose, tmp_path / "vitpose.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": bare}, tmp_path / "bare.pth")
    for name, left_out in (("humans.ckpt", "smpl_head"), ("vitpose.pth", "keypoint_head"),
                           ("bare.pth", "")):
        model = GenHMR(TINY)
        load_backbone(model, tmp_path / name)
        assert left_out in capsys.readouterr().out
        assert all(torch.equal(value, bare[key])
                   for key, value in model.backbone.state_dict().items())
    assert not (tmp_path / "traces").exists()
    with pytest.raises(ValueError, match="not ViT's.*missing"):
        load_backbone(GenHMR(replace(TINY, vit_depth=3)), tmp_path / "humans.ckpt")
    with pytest.raises(ValueError, match="of another shape: .*pos_embed"):
        load_backbone(GenHMR(replace(TINY, image_size=128)), tmp_path / "humans.ckpt")


def test_small_encoders_come_back_from_their_files(tmp_path):
    """Of either stage's file, an encoder gives the same tokens; others are refused, also those of
    another size. load_checkpoint builds the encoder, frozen."""
    encoder = SmallEncoder().eval()
    torch.save({"model": encoder.state_dict(), "config": {}}, tmp_path / "e.pt")
    model = build_genhmr(SMALL).eval()
    whole = {"model": model.state_dict(), "config": asdict(SMALL)}
    crops = encoder.normalise(images(2, 128))
    for source, expected in ((tmp_path / "e.pt", encoder), (whole, model.backbone)):
        again = load_encoder(source)
        assert not again.training
        assert torch.equal(again.read(crops).heat, expected.read(crops).heat)
    for content in ({"model": Tokenizer(TINY_TOKENIZER).state_dict(),
                     "config": asdict(TINY_TOKENIZER)},
                    {"model": GenHMR(TINY).state_dict(), "config": asdict(TINY)}):
        with pytest.raises(ValueError, match="no small encoder in this checkpoint"):
            load_encoder(content)
    other = encoder.state_dict() | {"heat.bias": torch.zeros(44)}
    with pytest.raises(ValueError, match="not SmallEncoder's: 1 of another shape: heat.bias"):
        load_encoder({"model": other, "config": {}})
    same = load_checkpoint(whole)
    assert same.config == SMALL and not any(p.requires_grad for p in same.backbone.parameters())
    assert torch.equal(genhmr.sample_from(same, same.encode(images(2, 128))).tokens,
                       genhmr.sample_from(model, model.encode(images(2, 128))).tokens)
