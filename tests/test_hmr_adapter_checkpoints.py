"""HMR-Adapter's checkpoints: of train.py, HaMeR and SMPLer-X."""

from dataclasses import asdict

import pytest
import torch
from adapter_samples import STAGES, TINY_BODY, TINY_HAND, images, lively, same

from hmr_adapter import BodyExpert, BodyExpertConfig, HandAdapter, HandExpert, HandExpertConfig
from networks.adapter_rivals import count
from weights.hmr_adapter import (
    load_body_expert,
    load_checkpoint,
    load_encoder,
    load_hand_expert,
    load_path,
)


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_return_the_model(stage, tmp_path):
    """Each of the four models loads from a file with the same weights, config and outputs."""
    config = {"hand_expert": TINY_HAND.expert, "hand": TINY_HAND, "body_expert": TINY_BODY.expert,
              "body": TINY_BODY}[stage]
    model = lively(STAGES[stage](config)).eval()
    torch.save({"model": model.state_dict(), "config": asdict(config)}, tmp_path / "one.pt")
    loaded = load_checkpoint(tmp_path / "one.pt")
    assert type(loaded) is type(model) and loaded.config == config and not loaded.training
    assert same(model(images()), loaded(images()))
    load_expert, other = load_hand_expert, load_body_expert
    if "body" in stage:
        load_expert, other = other, load_expert
    expert = load_expert(tmp_path / "one.pt")
    assert same(getattr(model, "expert", model)(images()), expert(images()))
    with pytest.raises(ValueError, match="one.pt: this checkpoint has a .*Expert"):
        other(tmp_path / "one.pt")


def fake_release(kind: type, config: object, renames: tuple = (), extra: tuple = ()) -> dict:
    """A released state dict's names and shapes, without values."""
    with torch.device("meta"):
        model = kind(config)
    state = {name: value for name, value in model.state_dict().items() if name != "hand_mean"}
    for old, new in renames:
        state = {new + name.removeprefix(old) if name.startswith(old) else name: value
                 for name, value in state.items()}
    return state | {name: torch.zeros(1, device="meta") for name in extra}


HAMER_NAMES = {  # of the released checkpoint: shapes
    "backbone.pos_embed": (1, 193, 1280), "backbone.patch_embed.proj.weight": (1280, 3, 16, 16),
    "backbone.blocks.31.mlp.fc1.weight": (5120, 1280), "backbone.last_norm.bias": (1280,),
    "backbone.blocks.0.attn.qkv.bias": (3840,), "mano_head.init_hand_pose": (1, 96),
    "mano_head.decpose.weight": (96, 1024), "mano_head.deccam.bias": (3,),
    "mano_head.transformer.pos_embedding": (1, 1, 1024),
    "mano_head.transformer.to_token_embedding.weight": (1024, 1),
    "mano_head.transformer.transformer.layers.5.0.fn.to_qkv.weight": (1536, 1024),
    "mano_head.transformer.transformer.layers.0.0.norm.weight": (1024,),
    "mano_head.transformer.transformer.layers.0.0.fn.to_out.0.bias": (1024,),
    "mano_head.transformer.transformer.layers.0.1.fn.to_q.weight": (512, 1024),
    "mano_head.transformer.transformer.layers.0.1.fn.to_kv.weight": (1024, 1280),
    "mano_head.transformer.transformer.layers.0.2.fn.net.0.weight": (1024, 1024),
    "mano_head.transformer.transformer.layers.0.2.fn.net.3.bias": (1024,)}
SMPLER_X_NAMES = {
    "encoder.task_tokens": (1, 31, 1280), "body_position_net.conv.0.weight": (400, 1280, 1, 1),
    "hand_position_net.conv.0.weight": (320, 1280, 1, 1),
    "body_regressor.body_conv.0.weight": (512, 1280),
    "body_regressor.root_pose_out.0.weight": (6, 12875),
    "body_regressor.body_pose_out.0.weight": (126, 12875),
    "box_net.deconv.0.weight": (1680, 256, 4, 4), "box_net.deconv.7.running_mean": (256,),
    "box_net.bbox_center.0.weight": (3, 256, 1, 1), "box_net.lhand_size.2.weight": (2, 256),
    "box_net.face_size.0.bias": (256,), "hand_roi_net.deconv.3.weight": (640, 320, 4, 4),
    "hand_roi_net.deconv.4.weight": (320,), "hand_roi_net.conv.0.weight": (1280, 320, 1, 1),
    "hand_regressor.hand_conv.0.weight": (512, 1280, 1, 1),
    "hand_regressor.hand_conv.1.running_var": (512,),
    "hand_regressor.hand_pose_out.0.weight": (90, 10300),
    "face_regressor.expr_out.0.weight": (10, 1280),
    "face_regressor.jaw_pose_out.0.weight": (6, 1280)}


def test_hamer_checkpoints_load(capsys):
    """A full-size checkpoint loads; discriminator and MANO are left out, with a message."""
    state = fake_release(HandExpert, HandExpertConfig(), extra=(
        "discriminator.D_conv1.weight", "mano.faces_tensor", "initialized"))
    assert {name: tuple(state[name].shape) for name in HAMER_NAMES} == HAMER_NAMES
    with torch.device("meta"):
        expert = load_hand_expert({"state_dict": state, "hyper_parameters": {}})
    assert count(expert) == 670_409_837 and not expert.training
    assert "discriminator, initialized, mano" in capsys.readouterr().out


@pytest.mark.parametrize("renames", [
    (), (("encoder.", "backbone."), ("body_regressor.", "body_rotation_net."),
         ("hand_regressor.", "hand_rotation_net."))])
def test_smpler_x_checkpoints_load(renames, capsys):
    """A full-size checkpoint loads under the present and the older names, after "module."."""
    state = fake_release(BodyExpert, BodyExpertConfig(), renames, ("smplx_layer.faces",))
    if not renames:
        assert {name: tuple(state[name].shape) for name in SMPLER_X_NAMES} == SMPLER_X_NAMES
    state = {f"module.{name}": value for name, value in state.items()}
    with torch.device("meta"):
        expert = load_body_expert({"epoch": 9, "network": state, "optimizer": {}})
    assert count(expert) == 661_827_096
    said = capsys.readouterr().out
    assert "smplx_layer" in said and "hand_mean" in said


def test_former_fields_are_left_out():
    """Configs load with fields that are constants now, also inside; unknown ones are refused."""
    model = lively(HandAdapter(TINY_HAND)).eval()
    content = {"model": model.state_dict(), "config": asdict(TINY_HAND) | {"hand_size": 9}}
    content["config"]["expert"] |= {"vit_drop_path": 0.1, "decoder_head_dim": 64}
    assert same(model(images()), load_checkpoint(content)(images()))
    content["config"]["colour"] = 1
    with pytest.raises(ValueError, match="config is not a .*HandConfig: .*colour"):
        load_checkpoint(content)


def test_bad_checkpoints_are_refused(tmp_path):
    """Another model's weights or config: one line says what was expected."""
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pt")
    for load in (load_checkpoint, load_hand_expert, load_body_expert,
                 lambda source: load_path(HandAdapter, source),
                 lambda source: load_encoder(BodyExpert(TINY_BODY.expert), source)):
        with pytest.raises(ValueError, match="^[^:]*other.pt: "):
            load(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="load_hand_expert"):
        load_checkpoint({"state_dict": {"mano_head.decpose.weight": torch.zeros(1)}})
    with pytest.raises(ValueError, match="config"):
        load_checkpoint({"model": {"mano_head.x": torch.zeros(1)}, "config": {"colour": 1}})
    for load in (load_hand_expert, load_body_expert):
        with pytest.raises(ValueError, match="expected"):
            load({"state_dict": {"fc.weight": torch.zeros(1)}})
