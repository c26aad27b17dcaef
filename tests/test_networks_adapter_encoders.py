"""HMR-Adapter's small encoders, and the paper's experts behind them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from adapter_samples import free_hand, images, lively, people, whole_body

import hmr_adapter as hmr
import train
import weights.genhmr
import weights.simplehand
from bodymodels import ASSETS
from hmr_adapter import in_picture
from networks import any_view
from networks.adapter_encoders import (
    OF_HANDS,
    BodyEncoder,
    HandEncoder,
    is_small,
    start_rotations,
)
from networks.adapter_rivals import build_model, share_twists
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


def test_the_presets_are_the_papers_classes():
    """The cpu preset alone has an encoder of ours; all else is of hmr_adapter.py."""
    for name, preset in hmr.PRESETS.items():
        with torch.device("meta"):
            experts = build_model(preset.hand.expert), build_model(preset.body.expert)
        small = [type(vit.patch_embed) in (HandEncoder, BodyEncoder)
                 for vit in (experts[0].backbone, experts[1].encoder)]
        assert small == [name == "cpu"] * 2 == [is_small(preset.hand.expert)] * 2
        others = {type(part).__module__ for expert in experts for part_name, part in
                  expert.named_modules() if "patch_embed" not in part_name}
        assert all(home == "hmr_adapter" or home.startswith("torch.") for home in others)


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


def test_rotations_start_with_the_pose_that_the_encoder_lifts():
    """With fewer pictures than inputs, the closed form repeats it; nothing else moves, and the
    norms keep their statistics."""
    expert, pictures = build_model(BODY.expert).train(), images(6, 128)
    load_encoder(expert, ASSETS / "genhmr_cpu.pt")
    before = {name: value.clone() for name, value in expert.state_dict().items()}
    start_rotations(expert, [pictures[:4], pictures[4:]], ridge=1e-6)
    changed = {name.rsplit(".", 2)[0] for name, value in expert.state_dict().items()
               if not torch.equal(value, before[name])}
    assert changed == {"body_regressor.root_pose_out", "body_regressor.body_pose_out"}
    assert expert.training
    with torch.no_grad():
        found = expert.eval()(pictures)["body_pose"]
        lifted = expert.encoder.patch_embed.lifted(hmr.middle_of(pictures, BODY.expert))
    torch.testing.assert_close(found[:, :22], lifted[:, :22], atol=1e-2, rtol=0)
    assert (lifted[0] - lifted[1]).abs().max() > 0.1  # so that the test can fail


def test_a_frozen_encoder_does_not_train_from_the_first_step_on(tmp_path):
    """Its norms keep their statistics, though modules begin in training mode."""
    arguments = train.parse_arguments(["--model", "hmr_adapter", "--stage", "body_expert",
                                       "--preset", "cpu", "--out", str(tmp_path)])
    task = train.TASKS["hmr_adapter-body_expert"](BODY.expert, arguments, {})
    task.is_new = False  # without rendered people
    model = train.build(task, None)
    assert model.training
    assert not any(part.training for part in model.encoder.patch_embed.modules())


def test_a_hand_encoder_learns_by_simplehands_losses():
    """They are those of SimpleHand's network on the middle of the crop, and move its heat maps;
    evaluation keeps nothing."""
    expert, batch = build_model(HAND.expert).train(), people(2, 128)
    encoder, samples = expert.backbone.patch_embed, hmr.hand_samples(batch)
    samples["vertices"] = samples["joints"][:, :1] + 0.1 * torch.randn(4, 778, 3)
    expert(samples["images"])
    loss = encoder.loss(samples)
    loss.backward()
    assert encoder.hand.keypoints_2d_head.weight.grad.abs().max() > 0
    middle = samples["keypoints_2d"] * 128 + 64 - 24  # pixels of 80
    inside = ((middle > 0) & (middle < 80)).all(2)
    terms = any_view.losses(encoder.found, {
        "image": torch.empty(1, 3, 80, 80), "vertices": samples["vertices"],
        "joints": samples["joints"], "keypoints_2d": middle, "mesh_valid": samples["valid"],
        "keypoints_valid": inside * samples["valid"][:, None]}, encoder.regressor)
    torch.testing.assert_close(loss, any_view.total_loss(terms, encoder.hand.config))
    expert.eval()(samples["images"])
    assert encoder.found is None


def test_hands_get_what_simplehand_finds():
    """A token has the U-net's features of a cell, and the keypoints that SimpleHand's network for
    photographs finds in the middle of the crop, in 2D and in 3D."""
    expert = build_model(HAND.expert)
    load_encoder(expert, ASSETS / "simplehand_views_cpu.pt")
    theirs = weights.simplehand.load_checkpoint(ASSETS / "simplehand_views_cpu.pt")
    pictures = F.interpolate(torch.rand(2, 3, 9, 9) * 255, size=128, mode="bicubic").clamp(0, 255)
    middle = F.interpolate(pictures[:, :, 24:104, 24:104], size=64, mode="bilinear",
                           antialias=True)
    with torch.no_grad():
        crops = (hmr.middle_of(pictures, HAND.expert) - expert.mean) / expert.std
        tokens = expert.eval().backbone.patch_embed(crops)
        found = theirs(middle)
        maps, _ = theirs.backbone(theirs.normalise(middle))
    torch.testing.assert_close(tokens[..., :64], maps[..., 2:14].flatten(2).mT, atol=1e-3,
                               rtol=1e-3)
    keypoints = tokens[..., 64:].unflatten(2, (21, 6))
    assert torch.equal(keypoints, keypoints[:, :1].expand_as(keypoints))  # of all cells the same
    joints = free_hand().keypoint_regressor @ found["vertices"]
    expected = (4 * (found["keypoints_2d"] - 0.5), 10 * found["spread_2d"][..., None],
                10 * (joints - joints[:, :1]))
    torch.testing.assert_close(keypoints[:, 0], torch.cat(expected, 2), atol=1e-3, rtol=1e-3)


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


def test_hands_outside_of_the_picture_are_told_apart():
    """A hand is in the picture if its box's centre is."""
    boxes = torch.tensor([[[-10.0, 5, 18, 4], [-10, 5, 22, 4]], [[90, 0, 22, 10], [60, 70, 8, 30]]])
    assert in_picture(boxes, 100, 80).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("inside", [True, False])
def test_rows_of_the_dual_path(inside, monkeypatch):
    """Hands whose box is outside of the picture are the body path's; "all hands", as in the paper,
    merges them, too. PyMAF-X's twists follow the merge."""
    hand, body = (lively(build_model(config)).eval() for config in (HAND, BODY))
    monkeypatch.setattr("hmr_adapter.in_picture",
                        lambda boxes, *_: torch.full_like(boxes[..., 0], inside) > 0)
    with torch.no_grad():
        rows = DualPathTask.outputs(None, hmr.HMRAdapter(hmr.Config(HAND, BODY), hand, body),
                                    people(2, 128))[1]
    assert torch.equal(rows["experts"], rows["expert"]) == (not inside)
    assert torch.equal(rows["experts"], rows["experts, all hands"]) == inside
    assert not torch.allclose(rows["experts, all hands"], rows["expert"])
    if inside:
        torch.testing.assert_close(rows["experts, twists shared"], share_twists(rows["experts"]))
