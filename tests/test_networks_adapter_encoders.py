"""HMR-Adapter's small encoders, and the paper's experts behind them."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from adapter_samples import free_hand, images, lively, loss_of, people

import hmr_adapter as hmr
from bodymodels import ASSETS
from networks import any_view
from networks.adapter_encoders import HandEncoder, closer_view, start_rotations
from networks.adapter_rivals import build_model
from tasks.hmr_adapter import DualPathTask, look
from weights.hmr_adapter import load_encoder

CPU = hmr.PRESETS["cpu"]
HAND = replace(CPU.hand, expert=replace(CPU.hand.expert, decoder_layers=1))
BODY = CPU.body


@pytest.mark.parametrize("config", [HAND.expert, BODY.expert], ids=["hand", "body"])
def test_every_parameter_that_is_not_frozen_learns(config):
    """Every parameter gets a gradient, at the lack of which DDP would stop; bodies' encoder none.

    The frozen encoder also keeps the statistics of its norms.
    """
    model = lively(build_model(config)).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    loss_of(model, 128).backward()
    lacking = [name for name, value in model.named_parameters() if value.grad is None]
    frozen = [name for name, _ in model.named_parameters() if name.startswith("encoder.patch_emb")]
    assert lacking == frozen
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers()
               if name.startswith("encoder.patch_embed"))


@pytest.mark.parametrize(("config", "file", "layers"), [
    (HAND.expert, "simplehand_views_cpu.pt", {"mano_head.decpose"}),
    (BODY.expert, "genhmr_cpu.pt", {"body_regressor.root_pose_out.0",
                                    "body_regressor.body_pose_out.0"})], ids=["hand", "body"])
def test_rotations_start_with_the_pose_that_the_encoder_finds(config, file, layers):
    """With fewer pictures than inputs, the closed form repeats it; nothing else moves, and the
    norms keep their statistics."""
    expert, pictures = build_model(config).train(), images(6, 128)
    load_encoder(expert, ASSETS / file)
    before = {name: value.clone() for name, value in expert.state_dict().items()}
    start_rotations(expert, [pictures[:4], pictures[4:]], ridge=1e-6)
    changed = {name.rpartition(".")[0] for name, value in expert.state_dict().items()
               if not torch.equal(value, before[name])}
    assert changed == layers and expert.training
    crops = hmr.middle_of(pictures, config)
    with torch.no_grad():
        found = expert.eval()(pictures)
        if config is BODY.expert:
            tokens = expert.encoder.patch_embed(crops)
            pose = hmr.rotation_6d_to_matrix(tokens[:, 0, 112:256].unflatten(1, (24, 6)))[:, :22]
            found = found["body_pose"][:, :22]
        else:
            tokens = expert.backbone.patch_embed((crops - expert.mean) / expert.std)
            pose = hmr.rotation_6d_to_matrix(tokens[:, 0, 190:286].unflatten(1, (16, 6)))
            found = found["hand_pose"]
    torch.testing.assert_close(found, pose, atol=1e-2, rtol=0)
    assert (pose[0] - pose[1]).abs().max() > 0.1  # so that the test can fail


def hand_encoder() -> HandEncoder:
    """An encoder with the weights of SimpleHand's network for photographs."""
    expert = build_model(HAND.expert)
    load_encoder(expert, ASSETS / "simplehand_views_cpu.pt")
    return expert.backbone.patch_embed


def test_a_hand_encoder_learns_by_simplehands_losses():
    """Of both looks, in the axes of each: a hand that, turned back, is the true one costs nothing
    but the entropy of its heat maps. They learn, too; evaluation keeps nothing."""
    encoder, samples = hand_encoder().train(), hmr.hand_samples(people(2, 128))
    samples["vertices"] = samples["joints"][:, :1] + 0.1 * torch.randn(4, 778, 3)
    encoder(torch.randn(4, 3, 128, 96))
    encoder.loss(samples).backward()
    assert encoder.hand.keypoints_2d_head.weight.grad.abs().max() > 0
    for view, _ in encoder.looks:
        vertices = torch.randn(4, 778, 3)
        vertices = vertices - (encoder.regressor @ vertices)[:, 9:10]  # as networks predict
        found = {"vertices": vertices, "keypoints_2d": 0.2 + 0.6 * torch.rand(4, 21, 2),
                 "spread_2d": torch.zeros(4, 21), "heat_maps": torch.full((4, 21, 16, 16), -1.0)}
        true = any_view.turn_back(found, *view)
        encoder.looks = [(view, found)]
        loss = encoder.loss({
            "vertices": true["vertices"], "joints": encoder.regressor @ true["vertices"],
            "keypoints_2d": true["keypoints_2d"] - 0.5, "valid": torch.ones(4)})
        assert loss.item() == pytest.approx(any_view.WEIGHT_HEAT_MAPS, abs=1e-4)
    encoder.eval()(torch.randn(4, 3, 128, 96))
    assert encoder.looks is None


def test_a_closer_look_sees_the_hand_upright_in_its_middle():
    """Of a lying hand in a corner: fingers point up, all keypoints are inside, none near a wall."""
    hand = torch.rand(8, 21, 2, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.1
    hand[:, [5, 9, 13, 17]] += torch.tensor([0.3, 0.0])
    view = closer_view(hand)
    at = torch.einsum("bij,bnj->bni", any_view.rotation(view.angle), hand - view.center[:, None])
    at = at / view.side[:, None, None] + 0.5
    assert (at[:, [5, 9, 13, 17], 1].mean(1) < at[:, 0, 1]).all()
    assert at.min() > 0 and at.max() < 1
    assert torch.maximum(at.amax((1, 2)), 1 - at.amin((1, 2))).min() > 0.9


def test_rotations_are_read_off_a_mesh():
    """Of posed hands they are the true ones within a few degrees, whatever the shape; a turn of the
    whole mesh turns the first alone."""
    encoder, hand = hand_encoder(), free_hand()
    generator = torch.Generator().manual_seed(0)
    pose = 0.3 * torch.randn(20, 16, 3, generator=generator)
    pose[:, 0] *= 6
    rotations = hmr.axis_angle_to_matrix(pose)
    vertices = hand(torch.randn(20, 10, generator=generator), rotations).vertices
    found = encoder.rotations(vertices)
    angle = hmr.matrix_to_axis_angle(found.mT @ rotations).norm(dim=-1)
    assert angle.mean() < math.radians(6)
    assert angle[:, 0].max() < math.radians(6)
    turn = rotations[0, 0]
    turned = encoder.rotations(vertices @ turn.mT)
    torch.testing.assert_close(turned[:, 1:], found[:, 1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(turned[:, 0], turn @ found[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("config", "file"), [
    (HAND.expert, "genhmr_cpu.pt"), (HAND.expert, "simplehand_cpu.pt"),
    (BODY.expert, "simplehand_views_cpu.pt")])
def test_other_checkpoints_have_no_encoder(config, file):
    """A file of another network is refused before anything changes."""
    expert = build_model(config)
    before = {name: value.clone() for name, value in expert.state_dict().items()}
    with pytest.raises(ValueError, match=f"{file}: these weights are not .* missing: "):
        load_encoder(expert, ASSETS / file)
    assert all(torch.equal(value, before[name]) for name, value in expert.state_dict().items())


def test_larger_pictures_are_the_same_person():
    """A small expert sees a picture of the test split averaged; boxes are in pixels of it."""
    body, large = lively(build_model(BODY)).eval(), images(2, 512)
    with torch.no_grad():
        one, other = look(body, {"image": large}), body(F.avg_pool2d(large.float(), 4))
    torch.testing.assert_close(one["body_pose"], other["body_pose"])
    for name in ("hand_boxes", "tight_boxes"):
        torch.testing.assert_close(one[name], 4 * other[name])


@pytest.mark.parametrize("inside", [True, False])
def test_rows_of_the_dual_path(inside, monkeypatch):
    """Hands whose box is outside of the picture are the body path's; "all hands", as in the paper,
    merges them, too."""
    hand, body = (lively(build_model(config)).eval() for config in (HAND, BODY))
    monkeypatch.setattr("hmr_adapter.in_picture",
                        lambda boxes, *_: torch.full_like(boxes[..., 0], inside) > 0)
    with torch.no_grad():
        rows = DualPathTask.outputs(None, hmr.HMRAdapter(hmr.Config(HAND, BODY), hand, body),
                                    people(2, 128))[1]
    assert torch.equal(rows["experts"], rows["expert"]) == (not inside)
    assert torch.equal(rows["experts"], rows["experts, all hands"]) == inside
    assert not torch.allclose(rows["experts, all hands"], rows["expert"])
