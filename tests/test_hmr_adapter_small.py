"""HMR-Adapter's small experts: an encoder that finds keypoints, and what is made of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from adapter_samples import DECODER, free_hand, images, lively, people, rotations, whole_body

import bodymodels
import hmr_adapter as hmr
from networks import small_experts
from networks.adapter_rivals import build_model, share_twists
from networks.small_encoder import cell_centres
from networks.small_experts import SEEN, SEEN_HANDS, SEEN_POSITIONED, keypoint_losses
from tasks.hmr_adapter import DualPathTask
from weights.genhmr import load_encoder
from weights.hmr_adapter import load_paths, load_pose_encoder

ASSET = Path(__file__).parent.parent / "assets" / "genhmr_cpu.pt"
ENCODER = dict(backbone="pose", image_size=64, patch_size=4, vit_dim=16, widths=(4, 4, 8, 8),
               blocks=1, pooled=4, lift_width=16)
HAND = hmr.HandConfig(expert=hmr.HandExpertConfig(
    **ENCODER, **DECODER, weight_heat=1.0, weight_lift=1.0, weight_betas_prior=1.0))
BODY = hmr.BodyConfig(expert=hmr.BodyExpertConfig(
    **ENCODER, depth_bins=4, hand_cells=4, joint_dim=8, hand_upscale=1, weight_heat=1.0,
    weight_lift=1.0), **DECODER, offset_hidden=16, zero_init=False)


def body_expert() -> small_experts.PoseBodyExpert:
    return lively(build_model(BODY.expert)).eval()


def losses(model, config) -> torch.Tensor:
    """The loss of a hand expert or a body expert on noise."""
    batch = people()
    if isinstance(model, hmr.HandExpert):
        samples = hmr.hand_samples(batch)
        prediction = model(samples["images"])
        terms = hmr.hand_losses(prediction, samples, free_hand(), config)
        terms |= small_experts.hand_keypoint_losses(prediction, samples, config)
        return hmr.hand_total_loss(terms, config)
    prediction = model(batch["image"])
    terms = hmr.body_losses(prediction, batch, whole_body(), model, config)
    terms |= small_experts.body_keypoint_losses(prediction, batch, config)
    return hmr.body_total_loss(terms, config)


@pytest.mark.parametrize("config", [HAND.expert, BODY.expert], ids=["hand", "body"])
def test_all_parameters_of_an_expert_learn(config):
    """Every parameter gets a gradient, at the lack of which DDP would stop."""
    model = build_model(config)
    losses(lively(model).train(), config).backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None]


def test_adapters_wrap_small_experts():
    """With scale 0 an adapter is its small expert bit for bit, with 1 it is not."""
    arms = rotations(2, 8)
    hand, body = (lively(build_model(config)).eval() for config in (HAND, BODY))
    for scale in (0.0, 1.0):
        same = torch.equal(hand(images(), arms, scale=scale)["hand_pose"],
                           hand.expert(images())["hand_pose"])
        assert same == (scale == 0)
        same = torch.equal(body(images(), scale=scale)["body_pose"],
                           body.expert(images())["body_pose"])
        assert same == (scale == 0)


def test_the_papers_classes_name_the_builder_of_small_experts():
    """Given a small expert's config they say what builds it; that builds both paths, too."""
    for kind, config in ((hmr.HandExpert, HAND.expert), (hmr.BodyExpert, BODY.expert),
                         (hmr.HandAdapter, HAND), (hmr.BodyAdapter, BODY),
                         (hmr.HMRAdapter, hmr.Config(HAND, BODY))):
        with pytest.raises(ValueError, match="'pose'.*with build_model of networks/adapter_riv"):
            kind(config)
        model = build_model(config)
        assert isinstance(model, kind) and model.config == config


def test_body_encoder_is_genhmrs():
    """It starts from the U-net and heat maps of GenHMR's shipped encoder, and keeps its own lift;
    a hand's takes the maps and keeps its own heads; other files and widths are refused."""
    preset = hmr.PRESETS["cpu"]
    expert, theirs = build_model(preset.body.expert).eval(), load_encoder(ASSET)
    own = expert.encoder.lift.hidden[0].weight.clone()
    load_pose_encoder(expert, ASSET)
    mine, its = expert.encoder.state_dict(), theirs.state_dict()
    taken = [name for name in mine if name in its and not name.startswith(("lift.", "pool"))]
    assert {"stem.0.0.weight", "blocks.1.mlp.fc2.bias", "join4.1.running_var", "heat.weight"} <= {
        *taken}
    for name in taken:
        assert torch.equal(mine[name], its[name]), name
    assert torch.equal(expert.encoder.lift.hidden[0].weight, own)
    hand = build_model(preset.hand.expert)
    before = hand.backbone.encoder.heat.weight.clone()
    load_pose_encoder(hand, ASSET)
    assert torch.equal(hand.backbone.encoder.heat.weight, before)
    assert torch.equal(hand.backbone.encoder.join8.conv1.weight,
                       expert.encoder.join8.conv1.weight)
    with pytest.raises(ValueError, match="other widths than the expert's: expected .4, 4, 8, 8."):
        load_pose_encoder(build_model(BODY.expert), ASSET)
    with pytest.raises(ValueError, match="no pose encoder: expected one of train.py"):
        load_pose_encoder(expert, {"model": {"weight": torch.zeros(1)}})


def test_keypoints_have_the_numbers_of_bodymodels():
    """The 45 are SMPL's, in SMPL-X's numbers; hands of SMPL are middle knuckles of SMPL-X."""
    names = bodymodels.JOINT_SETS["smplx76"]
    renamed = {"left_hand": "left_middle1", "right_hand": "right_middle1"}
    expected = [renamed.get(name, name) for name in bodymodels.JOINT_SETS["smpl45"]]
    assert [names[joint] for joint in SEEN] == expected
    for side, word in zip(SEEN_HANDS, ("right", "left"), strict=True):
        assert all(expected[joint].startswith(word) for joint in side)
    assert [SEEN[joint] for joint in SEEN_POSITIONED] == hmr.POSITIONED


def test_what_is_seen_becomes_cells_and_boxes(monkeypatch):
    """Joints are where the keypoints were seen, in cells and bins; the boxes of an expert that has
    learned nothing are those of the seven keypoints of each hand."""
    expert, batch = body_expert(), people()
    for net in expert.boxes:
        torch.nn.init.zeros_(net.weight)
        torch.nn.init.zeros_(net.bias)
    seen = expert.encoder(torch.zeros(2, 3, 64, 48))
    at = batch["keypoints_2d"][:, SEEN] / 64 - 0.5
    relative = batch["keypoints_3d"] - batch["keypoints_3d"][:, :1]
    seen = seen._replace(at=at, lifted=seen.lifted._replace(joints=relative[:, SEEN]),
                         share=torch.ones(2, 45))
    monkeypatch.setattr(expert.encoder, "forward", lambda crops: seen)
    found = expert.features(batch["image"])
    (joints, valid), _ = hmr.heat_map_targets(batch, expert, found.hand_boxes)
    torch.testing.assert_close(found.joints[valid], joints[valid], atol=1e-4, rtol=1e-4)
    hand = expert.to_cells(batch["keypoints_2d"], 64)[:, [SEEN[j] for j in SEEN_HANDS[0]]]
    torch.testing.assert_close(found.box_sizes[:, 0], hand.amax(1) - hand.amin(1))
    torch.testing.assert_close(found.box_centers[:, 0], hand.mean(1))


def test_larger_pictures_are_the_same_person():
    """An encoder of 64 px averages squares of a picture of 256 px; boxes are in pixels of it."""
    expert, large = body_expert(), images(2, 256)
    with torch.no_grad():
        one, other = expert(large), expert(F.avg_pool2d(large.float(), 4))
    torch.testing.assert_close(one["body_pose"], other["body_pose"])
    torch.testing.assert_close(one["hand_boxes"], 4 * other["hand_boxes"])


def test_heat_loss_is_least_at_the_truth():
    """A heat map that is sharp at the keypoint costs nothing, one that is flat log(cells), a sharp
    one elsewhere more; a keypoint outside the crop counts a fifth; joints are relative."""
    config = BODY.expert
    centres = cell_centres(config.grid)  # (192, 2)
    at = centres[[5, 100]][None]  # (1, 2, 2)
    joints = torch.randn(1, 2, 3)
    lifted = joints - joints[:, :1] + 0.25

    def heat_of(cells):
        heat = torch.full((1, 2, len(centres)), -50.0)
        heat[0, range(2), cells] = 50.0
        return {"heat": heat.log_softmax(-1), "lifted": lifted}

    right, lift = keypoint_losses(heat_of([5, 100]), at, joints, config)
    wrong, _ = keypoint_losses(heat_of([6, 100]), at, joints, config)
    flat, _ = keypoint_losses({"heat": torch.zeros(1, 2, 192).log_softmax(-1),
                                   "lifted": lifted}, at, joints, config)
    assert right.item() < 1e-6 and flat.item() == pytest.approx(5.257, abs=1e-3)
    assert wrong > flat and lift.item() == pytest.approx(0.25)
    outside, _ = keypoint_losses({"heat": torch.zeros(1, 2, 192).log_softmax(-1),
                                      "lifted": lifted}, at + 2, joints, config)
    assert outside.item() == pytest.approx(5.257 / 5, abs=1e-3)


def test_bad_configs_of_small_experts():
    """A stride that its maps do not have and an unknown encoder are refused."""
    with pytest.raises(ValueError, match="patch_size is 8: expected 4"):
        replace(BODY.expert, patch_size=8)
    with pytest.raises(ValueError, match="backbone is 'cnn': expected one of vit, pose"):
        replace(HAND.expert, backbone="cnn")


def test_hands_outside_of_the_picture_are_told_apart():
    """A hand is in the picture if its box's centre is."""
    boxes = torch.tensor([[[-10.0, 5, 18, 4], [-10, 5, 22, 4]], [[90, 0, 22, 10], [60, 70, 8, 30]]])
    assert hmr.in_picture(boxes, 100, 80).tolist() == [[False, True], [False, False]]


def test_doubted_hands_keep_the_body_path():
    """Below the least share, the mean over its keypoints, a hand is the body path's; at 0 none is,
    and what the caller leaves out stays left out."""
    hand, body = (lively(build_model(config)).eval() for config in (HAND, BODY))
    pictures, crops = images(3), images(6, seed=7).unflatten(0, (3, 2))
    shares = hand.expert.backbone.encoder(hand.expert.normalise(crops.flatten(0, 1))).share
    shares = shares.mean(1).view(3, 2)
    every = hmr.HMRAdapter(hmr.Config(HAND, BODY), hand, body)(pictures, crops)
    assert every["hand_valid"].all()
    limit = float(shares.median())
    model = hmr.HMRAdapter(hmr.Config(HAND, BODY, least_share=limit), hand, body)
    for given in (None, torch.tensor([[1.0, 1], [0, 1], [0, 0]])):
        found = model(pictures, crops, given)
        expected = (shares >= limit) & (torch.ones(3, 2) if given is None else given).bool()
        assert expected.any() and not expected.all()
        assert torch.equal(found["hand_valid"].bool(), expected)
        assert torch.equal(found["body_pose"], hmr.merge(
            every["body_path"], every["hand_pose"], expected))
    with pytest.raises(ValueError, match="least_share is 1.5: expected a probability, 0 to 1"):
        hmr.Config(least_share=1.5)


def test_scores_without_doubt_are_another_row():
    """Beside each predictor that leaves doubted hands, the dual path scores it with all of them."""
    hand, body = (lively(build_model(config)).eval() for config in (HAND, BODY))
    for value in body.expert.boxes.parameters():
        torch.nn.init.zeros_(value)  # boxes around the keypoints, which are in the picture
    rows = {}
    with torch.no_grad():
        for share in (0.0, 1.0):
            model = hmr.HMRAdapter(hmr.Config(HAND, BODY, least_share=share), hand, body)
            rows[share] = DualPathTask.outputs(None, model, people())[1]
    for name in ("ours", "experts"):
        torch.testing.assert_close(rows[0.0][name], rows[1.0][f"{name}, all hands"])
        assert not torch.allclose(rows[0.0][name], rows[1.0][name])
    assert torch.equal(rows[1.0]["experts"], rows[1.0]["expert"])
    merged, shared = rows[0.0]["experts"], rows[0.0]["experts, twists shared"]
    torch.testing.assert_close(shared, share_twists(merged))


def test_all_hands_are_merged_wherever_they_are(monkeypatch):
    """As in the paper: "all hands" merges hands whose box is outside of the picture, too."""
    hand, body = (lively(build_model(config)).eval() for config in (HAND, BODY))
    monkeypatch.setattr(hmr, "in_picture", lambda boxes, *_: torch.zeros_like(boxes[..., 0]) > 0)
    with torch.no_grad():
        rows = DualPathTask.outputs(None, hmr.HMRAdapter(hmr.Config(HAND, BODY), hand, body),
                                    people())[1]
    assert torch.equal(rows["experts"], rows["expert"])
    assert not torch.allclose(rows["experts, all hands"], rows["expert"])


def test_the_paper_leaves_no_hand_and_the_shipped_files_do():
    """The paper's preset has no least share; loaded paths have the cpu preset's."""
    files = [ASSET.with_name(f"hmr_adapter_{path}_cpu.pt") for path in ("hand", "body")]
    least = load_paths(*files).config.least_share
    assert least == hmr.PRESETS["cpu"].least_share > hmr.PRESETS["paper"].least_share == 0


@pytest.mark.parametrize("part", ["hand", "body"])
def test_rows_that_train_an_encoder_learn_from_keypoints(part):
    """Trained as a whole, an expert's heat maps get a gradient; around a frozen one, no such term
    is in the loss of a hand."""
    config = HAND if part == "hand" else BODY
    batch = people()
    for trainable in ("all", "adapter"):
        chosen = replace(config, trainable=trainable, weight_heat=1.0, weight_lift=1.0,
                         inject="none" if trainable == "all" else "adapter")
        model = lively(build_model(chosen)).train()
        if part == "hand":
            samples = hmr.hand_samples(batch)
            prediction = model(samples["images"])
            terms = hmr.hand_losses(prediction, samples, free_hand(), chosen)
            terms |= small_experts.hand_keypoint_losses(prediction, samples, chosen)
            assert ("heat" in terms) == (trainable == "all")
            hmr.hand_total_loss(terms, chosen).backward()
        else:
            prediction = model(batch["image"])
            terms = hmr.body_losses(prediction, batch, whole_body(), model.expert, chosen)
            terms |= small_experts.body_keypoint_losses(prediction, batch, chosen)
            hmr.body_total_loss(terms, chosen).backward()
        learnt = [name for name, value in model.named_parameters()
                  if name.endswith("encoder.heat.weight") and value.grad is not None]
        assert bool(learnt) == (trainable == "all")
