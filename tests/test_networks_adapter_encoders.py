"""HMR-Adapter's small encoders, and the paper's experts behind them."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from adapter_samples import free_hand, images, lively, people, whole_body

import hmr_adapter as hmr
import weights.genhmr
import weights.simplehand
from bodymodels import ASSETS
from networks import any_view
from networks.adapter_encoders import OF_HANDS, HandEncoder, closer_view, start_rotations
from networks.adapter_rivals import build_model
from networks.small_encoder import NAMES
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
    model, batch = lively(build_model(config)).train(), people(2, 128)
    before = {name: value.clone() for name, value in model.named_buffers()}
    if isinstance(model, hmr.HandExpert):
        samples = hmr.hand_samples(batch)
        terms = hmr.hand_losses(model(samples["images"]), samples, free_hand(), config)
        hmr.hand_total_loss(terms, config).backward()
    else:
        terms = hmr.body_losses(model(batch["image"]), batch, whole_body(), model, config)
        hmr.body_total_loss(terms, config).backward()
    lacking = [name for name, value in model.named_parameters() if value.grad is None]
    frozen = [name for name, _ in model.named_parameters() if name.startswith("encoder.patch_emb")]
    assert lacking == frozen
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers()
               if name.startswith("encoder.patch_embed"))


def test_bodies_get_the_tokens_of_genhmrs_encoder():
    """From pictures in 0..1 it makes what GenHMR's shipped encoder makes of normalised ones; the
    whole lifted pose is beside each token."""
    expert = build_model(BODY.expert)
    load_encoder(expert, ASSETS / "genhmr_cpu.pt")
    theirs, pictures = weights.genhmr.load_encoder(ASSETS / "genhmr_cpu.pt"), images(2, 128)
    with torch.no_grad():
        tokens = expert.eval().encoder.patch_embed(hmr.middle_of(pictures, BODY.expert))
        reading = theirs.read(theirs.normalise(pictures))
    torch.testing.assert_close(tokens[..., :112], reading.tokens, atol=1e-4, rtol=1e-4)
    pose = hmr.rotation_6d_to_matrix(tokens[:, [0, 100], 112:256].unflatten(2, (24, 6)))
    torch.testing.assert_close(pose, hmr.rotation_6d_to_matrix(reading.lifted.pose)[
        :, None].expand(-1, 2, -1, -1, -1), atol=1e-4, rtol=1e-4)
    assert [NAMES[n] for n in OF_HANDS] == [f"{side}_wrist" for side in ("left", "right")] + [
        f"{side}_{finger}_tip" for side in ("left", "right")
        for finger in ("thumb", "index", "middle", "ring", "pinky")]
    heat = reading.heat.exp().view(2, -1, 16, 2, 12, 2).sum((3, 5))[:, OF_HANDS].flatten(2).mT
    torch.testing.assert_close(tokens[..., 256:], heat, atol=1e-4, rtol=1e-4)


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


def test_hands_get_what_simplehand_finds():
    """A token has the U-net's features of its cells in the whole crop, and what SimpleHand's
    network finds in a closer one: keypoints in 2D and in 3D, in the crop's axes."""
    encoder = hand_encoder().eval()
    theirs = weights.simplehand.load_checkpoint(ASSETS / "simplehand_views_cpu.pt")
    crops = F.interpolate(torch.rand(2, 3, 9, 9), size=128, mode="bicubic")[..., 16:-16]
    crops = (crops - encoder.hand.mean) / encoder.hand.std
    with torch.no_grad():
        tokens = encoder(crops)
        whole = F.pad(crops, (16, 16))
        maps, last = theirs.backbone(F.interpolate(whole, size=64, mode="bilinear",
                                                   antialias=True))
        view = closer_view(theirs.keypoints_2d_head(maps, last)["keypoints_2d"])
        near = any_view.turn(whole, *view, 64)
        found = any_view.turn_back(
            theirs(255 * (near * encoder.hand.std + encoder.hand.mean)), *view)
    cells = F.avg_pool2d(maps, 2)[..., 1:7].flatten(2).mT
    torch.testing.assert_close(tokens[..., :64], cells, atol=1e-3, rtol=1e-3)
    hand = tokens[..., 64:]
    assert torch.equal(hand, hand[:, :1].expand_as(hand))  # of all cells the same
    joints = free_hand().keypoint_regressor @ found["vertices"]
    expected = (4 * (found["keypoints_2d"] - 0.5), 10 * found["spread_2d"][..., None],
                10 * (joints - joints[:, :1]))
    torch.testing.assert_close(hand[:, 0, :126].unflatten(1, (21, 6)), torch.cat(expected, 2),
                               atol=2e-3, rtol=2e-3)
    pose = hmr.rotation_6d_to_matrix(hand[:, 0, 126:222].unflatten(1, (16, 6)))
    torch.testing.assert_close(pose, encoder.rotations(found["vertices"]), atol=2e-3, rtol=0)


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


@pytest.mark.parametrize(("config", "file", "words"), [
    (HAND.expert, "genhmr_cpu.pt", "one like assets/simplehand_views_cpu.pt"),
    (HAND.expert, "simplehand_cpu.pt", "one like assets/simplehand_views_cpu.pt"),
    (BODY.expert, "simplehand_views_cpu.pt", "one of train.py --model genhmr")])
def test_other_checkpoints_have_no_encoder(config, file, words):
    """A file of another network is refused before anything changes."""
    expert = build_model(config)
    before = {name: value.clone() for name, value in expert.state_dict().items()}
    with pytest.raises(ValueError, match=f"no encoder for this expert: expected {words}"):
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
