"""HMR-Adapter's losses: Eq. 5 to 8, samples, what trains."""

import math
from dataclasses import asdict, replace

import genhmr_samples
import pytest
import simplehand_samples
import torch
from adapter_samples import (
    LEFT,
    RIGHT,
    TINY_BODY,
    TINY_HAND,
    body_adapter,
    free_hand,
    people,
    rotations,
    whole_body,
)
from torch import Tensor

import hmr_adapter as hmr
from genhmr import GenHMR
from networks.adapter_rivals import build_model, count
from tasks.base import parameter_groups
from weights.hmr_adapter import load_body_expert, load_hand_expert


def free_hand_truth() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A prediction, and samples that it fits exactly."""
    hand = free_hand()
    pose, betas = rotations(4, 16, spread=0.3), 0.5 * torch.randn(4, 10)
    camera = torch.tensor([[6.0, 0.0, 0.1]]).expand(4, 3)
    vertices = hand(betas, pose).vertices
    joints = torch.einsum("jv,bvc->bjc", hand.keypoint_regressor, vertices)
    translation = hmr.hand_translation(camera)
    return {"hand_pose": pose, "betas": betas, "camera": camera}, {
        "pose": pose, "betas": betas, "joints": joints + 3.0, "vertices": vertices + 3.0,
        "keypoints_2d": hmr.project_to_crop(joints, translation), "valid": torch.ones(4)}


def test_hand_losses_vanish_for_the_truth():
    """All terms are 0 for the truth, wherever the hand is, and each grows with its own error."""
    prediction, samples = free_hand_truth()
    for value in hmr.hand_losses(prediction, samples, free_hand(), TINY_HAND).values():
        assert value.item() == pytest.approx(0, abs=2e-4)
    wrong = {"pose": rotations(4, 16), "betas": samples["betas"] + 1,
             "joints": samples["joints"] + 0.1 * torch.randn(4, 21, 3),
             "vertices": samples["vertices"] + 0.1 * torch.randn(4, 778, 3),
             "keypoints_2d": samples["keypoints_2d"] + 0.1}
    sums = hmr.hand_losses(prediction, samples | wrong, free_hand(), TINY_HAND)
    assert sums["betas"].item() == pytest.approx(10, rel=1e-3)  # sums over a hand, not means
    assert sums["keypoints_2d"].item() == pytest.approx(0.1 * 42, rel=1e-3)
    assert min(value.item() for value in sums.values()) > 0.1


def test_unknown_hands_count_as_nothing():
    """Invalid hands may be NaN, without an effect on gradients; missing vertices and betas give a
    loss of 0."""
    prediction, samples = free_hand_truth()
    prediction = {name: value.detach().requires_grad_() for name, value in prediction.items()}
    samples["joints"] = samples["joints"] + 0.1 * torch.randn(4, 21, 3)
    full = hmr.hand_losses(prediction, samples, free_hand(), TINY_HAND)
    half = {name: value.clone() for name, value in samples.items()}
    for name in half:
        half[name][2:] = math.nan if name != "valid" else 0.0
    found = hmr.hand_losses(prediction, half, free_hand(), TINY_HAND)
    assert all(value.isfinite() for value in found.values())
    sum(found.values()).backward()
    assert all(value.grad.isfinite().all() and not value.grad[2:].any()
               for value in prediction.values())
    unknown = samples | {"betas": samples["betas"] * math.nan, "betas_valid": torch.zeros(4)}
    assert hmr.hand_losses(prediction, unknown, free_hand(), TINY_HAND)["betas"] == 0
    first = hmr.hand_losses(*({name: value[:2] for name, value in each.items()}
                              for each in (prediction, samples)), free_hand(), TINY_HAND)
    assert torch.allclose(found["keypoints_3d"], first["keypoints_3d"] / 2)
    del samples["vertices"], samples["betas"]
    bare = hmr.hand_losses(prediction, samples, free_hand(), TINY_HAND)
    assert bare["vertices"] == bare["betas"] == 0
    assert torch.equal(bare["keypoints_3d"], full["keypoints_3d"])


def test_unknown_betas_are_held_near_zero():
    """weight_betas_prior squares the betas of hands of unknown shape, and no others."""
    prediction, samples = free_hand_truth()
    config = replace(TINY_HAND, weight_betas_prior=0.5)
    assert "betas_prior" not in hmr.hand_losses(prediction, samples, free_hand(), TINY_HAND)
    squares = prediction["betas"].square().sum(1)
    for betas_valid, expected in (([1, 1, 1, 1], 0.0), ([0, 1, 1, 0], squares[[0, 3]].sum() / 4)):
        known = samples | {"betas_valid": torch.tensor(betas_valid, dtype=torch.float32)}
        terms = hmr.hand_losses(prediction, known, free_hand(), config)
        assert terms["betas_prior"].item() == pytest.approx(float(expected), rel=1e-5)
    del samples["betas"]
    terms = hmr.hand_losses(prediction, samples, free_hand(), config)
    assert terms["betas_prior"].item() == pytest.approx(squares.mean().item(), rel=1e-5)
    prior = hmr.hand_total_loss(terms, config) - hmr.hand_total_loss(
        terms | {"betas_prior": 0.0}, config)
    assert prior.item() == pytest.approx(0.5 * squares.mean().item(), rel=1e-3)


def test_equation_6_of_matrices_is_one_loss():
    """1 - cos = ||difference||^2 / 6; with L1 the two terms differ."""
    first, second = rotations(5, 16, dtype=torch.float64), rotations(5, 16, dtype=torch.float64)
    square, cosine = hmr.pose_distance(first, second, "l2sq", torch.ones(1, 1))
    assert torch.allclose(cosine, square / 6)
    absolute, _ = hmr.pose_distance(first, second, "l1", torch.ones(1, 1))
    assert torch.allclose(absolute, (first - second).abs().sum((-1, -2)))
    prediction, samples = free_hand_truth()
    samples["pose"] = rotations(4, 16)
    terms = hmr.hand_losses(prediction, samples, free_hand(), TINY_HAND)
    square, cosine = hmr.pose_distance(prediction["hand_pose"], samples["pose"], "l2sq",
                                       samples["valid"][:, None])
    assert torch.allclose(terms["pose"], (square.sum(1) + cosine.mean(1)).mean())


def body_truth() -> tuple[dict[str, Tensor], dict[str, Tensor], hmr.BodyExpert]:
    """A prediction, and people that it fits exactly."""
    expert, batch = body_adapter().expert, people()
    found = expert(batch["image"])
    size = batch["hand_boxes"][..., 2:] / 16
    center = batch["hand_boxes"][..., :2] / 16 - torch.tensor([0.5, 0]) + size / 2
    square = 4 * size.amax(-1, keepdim=True)
    found |= {name: batch[name] for name in ("body_pose", "betas", "expression")}
    found |= {"translation": torch.tensor([[0.0, -0.2, 45.0]]).expand(2, 3),
              "box_centers": torch.cat((center, center[:, :1]), 1),
              "box_sizes": torch.cat((size, size[:, :1]), 1),
              "map_boxes": torch.cat((center - square / 2, square, square), -1)}
    (found["joints"], _), (found["hand_joints"], _) = hmr.heat_map_targets(
        batch, expert, found["map_boxes"])
    return found, batch, expert


def test_body_losses_vanish_for_the_truth():
    """All seven terms are 0 for the truth, and each grows with its own error."""
    found, batch, expert = body_truth()
    terms = hmr.body_losses(found, batch, whole_body(), expert, TINY_BODY)
    for name, value in terms.items():
        assert value.item() == pytest.approx(0, abs=2e-4), name
    for name, term in (("joints", "keypoints_img"), ("hand_joints", "keypoints_img"),
                       ("translation", "keypoints_proj"), ("betas", "betas"),
                       ("expression", "expression"), ("box_centers", "boxes"),
                       ("box_sizes", "boxes"), ("body_pose", "pose")):
        changed = found | {name: found[name] + 0.5}
        wrong = hmr.body_losses(changed, batch, whole_body(), expert, TINY_BODY)
        assert wrong[term] > 0.01, name


def test_unknown_labels_of_bodies_count_as_nothing():
    """With all flags 0 every term is 0, and NaN poses give no gradient; each flag has an effect on
    its own term."""
    found, batch, expert = body_truth()
    found["body_pose"] = rotations(2, 55)
    flags = {"keypoints_valid": (76,), "keypoints_3d_valid": (76,), "body_pose_valid": (),
             "rotations_valid": (55,), "betas_valid": (), "expression_valid": (),
             "hand_valid": (2,)}
    wrong = batch | {"betas": batch["betas"] + 1, "expression": batch["expression"] + 1,
                     "keypoints_3d": batch["keypoints_3d"] + torch.randn(2, 76, 3),
                     "hand_boxes": batch["hand_boxes"] + 1,
                     "keypoints_2d": batch["keypoints_2d"] + torch.randn(2, 76, 2)}

    def terms_of(**changes):
        return hmr.body_losses(found, wrong | changes, whole_body(), expert, TINY_BODY)

    unknown = {name: torch.zeros(2, *shape) for name, shape in flags.items()}
    assert all(value == 0 for value in terms_of(**unknown).values())
    pose = found["body_pose"] = found["body_pose"].requires_grad_()
    terms_of(**unknown | {"body_pose": batch["body_pose"] * math.nan})["pose"].backward()
    assert torch.equal(pose.grad, torch.zeros_like(pose))
    found["body_pose"] = pose.detach()
    full = terms_of()
    assert all(value > 0 for value in full.values())
    for name, term in (("keypoints_3d_valid", "keypoints_3d"), ("body_pose_valid", "pose"),
                       ("rotations_valid", "pose"), ("betas_valid", "betas"),
                       ("expression_valid", "expression"), ("keypoints_valid", "keypoints_proj")):
        changed = terms_of(**{name: unknown[name]})
        assert changed[term] == 0 and changed["boxes"] == full["boxes"]
        first = terms_of(**{name: torch.stack((torch.ones(flags[name]), unknown[name][1]))})
        assert 0 < first[term] < full[term]
    body_alone = (torch.arange(55) < 22).float().expand(2, 55)  # SMPL tells nothing of fingers
    changed = found["body_pose"].clone()
    changed[:, 22:] = rotations(2, 33)
    assert terms_of(rotations_valid=body_alone)["pose"] == hmr.body_losses(
        found | {"body_pose": changed}, wrong | {"rotations_valid": body_alone}, whole_body(),
        expert, TINY_BODY)["pose"]


def test_targets_of_heat_maps():
    """The pelvis is in the middle bin; a depth of 0.15 m behind the wrist is in the last; a hand
    fills half of its map, the left one mirrored."""
    found, batch, expert = body_truth()
    (body, in_map), (hands, in_box) = hmr.heat_map_targets(batch, expert, found["map_boxes"])
    assert torch.equal(body[:, 0, 2], torch.full((2,), 2.0))
    assert in_map.all() and in_box.all()
    wrist = batch["keypoints_3d"][:, torch.tensor(hmr.HANDS)[:, :1], 2]
    depth = batch["keypoints_3d"][:, torch.tensor(hmr.HANDS)[:, 1:], 2] - wrist
    assert torch.allclose(hands[..., 2], 2 + depth / 0.15 * 2, atol=1e-4)
    extent = hands[..., :2].amax(2) - hands[..., :2].amin(2)
    assert extent.max() < 2 + 1e-4  # of 4 cells, less the wrist
    right_to_left = batch["keypoints_2d"][:, torch.tensor(hmr.HANDS)[LEFT, 1:], 0]
    assert torch.equal(hands[:, LEFT, :, 0].argsort(1, descending=True), right_to_left.argsort(1))


def test_total_losses_are_weighted_sums():
    """Eq. 5 and Eq. 7 with their default weights; all of the expert's terms, where it trains."""
    terms = {name: torch.tensor(float(n)) for n, name in enumerate(
        ("keypoints_2d", "keypoints_3d", "vertices", "pose", "betas"), 1)}
    assert hmr.hand_total_loss(terms, hmr.HandConfig()).item() == pytest.approx(
        0.01 + 0.05 * 2 + 0.05 * 21 / 778 * 3 + 0.001 * 4 + 0.0005 * 5)
    terms = {name: torch.tensor(float(n)) for n, name in enumerate(
        ("keypoints_img", "keypoints_proj", "keypoints_3d", "pose", "betas", "expression",
         "boxes"), 1)}
    for config in (hmr.BodyExpertConfig(), hmr.BodyConfig(trainable="head")):
        assert hmr.body_total_loss(terms, config).item() == pytest.approx(
            1 + 2 + 300 + 40 + 5 + 6 + 7)
    assert hmr.body_total_loss(terms, hmr.BodyConfig()).item() == pytest.approx(2 + 300 + 40)


def test_hand_samples_are_right_handed():
    """Pairs become samples in the order right, left, right, left, with their true arms."""
    batch = people()
    samples = hmr.hand_samples(batch)
    assert torch.equal(samples["images"][1], batch["hand_images"][0, LEFT])
    assert torch.equal(samples["pose"][2], batch["hand_pose"][1, RIGHT])
    assert torch.equal(samples["arm"], hmr.arm_pose(batch["body_pose"]).flatten(0, 1))
    assert torch.equal(samples["arm_valid"], torch.ones(4))
    assert samples["keypoints_2d"].abs().max() < 0.5
    unknown = hmr.hand_samples(batch | {"body_pose_valid": torch.tensor([1.0, 0])})
    assert unknown["arm_valid"].tolist() == [1, 1, 0, 0]
    assert hmr.hand_samples(batch, "whole_body")["arm"].shape == (4, 22, 3, 3)
    more = hmr.hand_samples(batch | {"hand_vertices": torch.zeros(2, 2, 778, 3)})
    assert more["vertices"].shape == (4, 778, 3)


@pytest.mark.parametrize(("build", "frozen", "expected"), [
    (lambda: body_adapter(joint_embedding="learned"), "expert.",
     {"joint_embedding", "decoder.pos_embedding"}),
    (lambda: GenHMR(genhmr_samples.TINY), "tokenizer.",
     {"backbone.pos_embed", "transformer.mask_embedding", "transformer.reference",
      "transformer.position_embedding", "regressor.mlp.fc2.bias"}),
    (lambda: simplehand_samples.on_meta(simplehand_samples.TINY), "nothing",
     {"mesh_head.position_embeddings.0", "mesh_head.layers.0.metaformer.0.norm1.weight",
      "keypoints_2d_head.bias", "backbone.stages.0.blocks.0.layer_scale.gamma",
      "mesh_head.layers.0.metaformer.0.token_mixer.in_proj_bias",
      "backbone.stem.0.conv_scale.bn.weight"})], ids=["hmr_adapter", "genhmr", "simplehand"])
def test_parameter_groups(build, frozen, expected):
    """Matrices decay; norms, biases, positions and embeddings do not; frozen ones are out."""
    model = build()
    decayed, spared = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [[names[id(parameter)] for parameter in group["params"]] for group in (decayed, spared)]
    assert sorted(sum(found, [])) == sorted(
        name for name in names.values() if not name.startswith(frozen))
    assert expected <= set(found[1])
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert frozen != "nothing" or {
        "mesh_head.layers.0.project.weight", "backbone.stem.0.conv_kxk.0.conv.weight",
        "mesh_head.deconv.0.weight"} <= set(found[0])


@pytest.mark.parametrize("part", ["hand", "body"])
def test_an_expert_out_of_an_adapter_can_be_trained(part):
    """It is frozen there; a new rival trains as much of it as of a new expert."""
    kind, config, load = {"hand": (hmr.HandAdapter, TINY_HAND, load_hand_expert),
                          "body": (hmr.BodyAdapter, TINY_BODY, load_body_expert)}[part]
    old = kind(config)
    assert not any(parameter.requires_grad for parameter in old.expert.parameters())
    rival = replace(config, inject="concat", trainable="head")
    fresh, around = build_model(rival), build_model(rival, old.expert)
    assert count(around, True) == count(fresh, True)
    content = {"model": kind(config).state_dict(), "config": asdict(config),
               "name": f"hmr_adapter-{part}"}
    assert all(parameter.requires_grad for parameter in load(content).parameters())
