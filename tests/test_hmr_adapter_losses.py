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

    def terms_of(prediction: dict[str, Tensor], samples: dict[str, Tensor]) -> dict[str, Tensor]:
        return hmr.hand_losses(prediction, samples, free_hand(), TINY_HAND)

    half = {name: value.clone() for name, value in samples.items()}
    for name in half:
        half[name][2:] = math.nan if name != "valid" else 0.0
    found = terms_of(prediction, half)
    sum(found.values()).backward()
    assert all(value.grad.isfinite().all() and not value.grad[2:].any()
               for value in prediction.values())
    first = terms_of(*({name: value[:2] for name, value in each.items()}
                       for each in (prediction, samples)))
    assert torch.allclose(found["keypoints_3d"], first["keypoints_3d"] / 2)
    unknown = samples | {"betas": samples["betas"] * math.nan, "betas_valid": torch.zeros(4)}
    assert terms_of(prediction, unknown)["betas"] == 0
    full = terms_of(prediction, samples)
    del samples["vertices"], samples["betas"]
    bare = terms_of(prediction, samples)
    assert bare["vertices"] == bare["betas"] == 0
    assert torch.equal(bare["keypoints_3d"], full["keypoints_3d"])


def test_unknown_betas_are_held_near_zero():
    """weight_betas_prior squares the betas of hands of unknown shape, and no others."""
    prediction, samples = free_hand_truth()
    squares = prediction["betas"].square().sum(1)
    config = replace(TINY_HAND, weight_betas_prior=0.5)
    for known, expected in (([1, 1, 1, 1], 0.0), ([0, 1, 1, 0], squares[[0, 3]].sum() / 4),
                            (None, squares.mean())):
        samples["betas_valid"] = torch.tensor(known or [0, 0, 0, 0], dtype=torch.float32)
        if known is None:
            del samples["betas"]
        terms = hmr.hand_losses(prediction, samples, free_hand(), config)
        assert terms["betas_prior"].item() == pytest.approx(float(expected), rel=1e-5)
    prior = hmr.hand_total_loss(terms, config) - hmr.hand_total_loss(
        terms | {"betas_prior": 0.0}, config)
    assert prior.item() == pytest.approx(0.5 * squares.mean().item(), rel=1e-3)
    assert "betas_prior" not in hmr.hand_losses(prediction, samples, free_hand(), TINY_HAND)


def test_equation_6_of_matrices_is_one_loss():
    """1 - cos = ||difference||^2 / 6; with L1 the two terms differ."""
    first, second = rotations(5, 16, dtype=torch.float64), rotations(5, 16, dtype=torch.float64)
    square, cosine = hmr.pose_distance(first, second, "l2sq", torch.ones(1, 1))
    assert torch.allclose(square, (first - second).square().sum((-1, -2)))
    assert torch.allclose(cosine, square / 6)
    absolute, _ = hmr.pose_distance(first, second, "l1", torch.ones(1, 1))
    assert torch.allclose(absolute, (first - second).abs().sum((-1, -2)))
    prediction, samples = free_hand_truth()
    samples["pose"] = rotations(4, 16)
    terms = hmr.hand_losses(prediction, samples, free_hand(), TINY_HAND)
    square = (prediction["hand_pose"] - samples["pose"]).square().sum((-1, -2))
    assert torch.allclose(terms["pose"], (square.sum(1) + square.mean(1) / 6).mean())


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


@pytest.mark.parametrize(("name", "term"), [
    ("joints", "keypoints_img"), ("hand_joints", "keypoints_img"),
    ("translation", "keypoints_proj"), ("betas", "betas"), ("expression", "expression"),
    ("box_centers", "boxes"), ("box_sizes", "boxes"), ("body_pose", "pose")])
def test_body_losses_vanish_for_the_truth(name, term):
    """All seven terms are 0 for the truth, and each grows with its own error."""
    found, batch, expert = body_truth()
    for value in hmr.body_losses(found, batch, whole_body(), expert, TINY_BODY).values():
        assert value.item() == pytest.approx(0, abs=2e-4)
    found[name] = found[name] + 0.5
    assert hmr.body_losses(found, batch, whole_body(), expert, TINY_BODY)[term] > 0.01


LABELS = {  # each flag's shape, label and term
    "keypoints_valid": ((76,), "keypoints_2d", "keypoints_proj"),
    "keypoints_3d_valid": ((76,), "keypoints_3d", "keypoints_3d"),
    "body_pose_valid": ((), "body_pose", "pose"), "rotations_valid": ((55,), "body_pose", "pose"),
    "betas_valid": ((), "betas", "betas"), "expression_valid": ((), "expression", "expression"),
    "hand_valid": ((2,), "hand_boxes", "boxes"), "hand_boxes_valid": ((2,), "hand_boxes", "boxes")}


@pytest.mark.parametrize("flag", LABELS)
def test_unknown_labels_of_bodies_count_as_nothing(flag):
    """The terms of one person and of the other add up to that of both; with a flag of 0 a label may
    be NaN, without a gradient; other terms stay."""
    (shape, label, term), (found, batch, expert) = LABELS[flag], body_truth()
    found["body_pose"] = rotations(2, 55).requires_grad_()
    wrong = batch | {name: batch[name] + 0.1 * torch.randn(batch[name].shape) for name in (
        "betas", "expression", "keypoints_3d", "keypoints_2d", "hand_boxes")}

    def terms_of(known: Tensor) -> dict[str, Tensor]:
        labels = wrong[label].clone()
        labels[known == 0] = math.nan
        flags = known.view(2, *[1] * len(shape)).expand(2, *shape)
        return hmr.body_losses(found, wrong | {label: labels, flag: flags}, whole_body(), expert,
                               TINY_BODY)

    one, two, both, none = map(terms_of, torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]]))
    assert one[term] > 0 and two[term] > 0 and none[term] == 0
    assert torch.allclose(one[term] + two[term], both[term])
    assert all(both[name] == one[name] for name in both if name not in (term, "keypoints_img"))
    gradient, = torch.autograd.grad(one["pose"], found["body_pose"])
    assert gradient.isfinite().all() and (term != "pose" or not gradient[1].any())


def test_joints_count_beside_a_known_pelvis():
    """Without the pelvis, to which L_3D relates the others, no joint of the person counts."""
    found, batch, expert = body_truth()
    wrong = batch | {"keypoints_3d": batch["keypoints_3d"] + 0.1 * torch.randn(2, 76, 3)}
    flags = torch.ones(3, 2, 76)
    flags[1, 0, 0], flags[2, 0] = 0, 0
    every, no_pelvis, nothing = (
        hmr.body_losses(found, wrong | {"keypoints_3d_valid": known}, whole_body(), expert,
                        TINY_BODY)["keypoints_3d"] for known in flags)
    assert every > no_pelvis == nothing > 0


def test_poses_without_fingers_leave_them_alone():
    """The eyes are never compared; SMPL tells nothing of jaw and fingers: rotations_valid is 0."""
    found, batch, expert = body_truth()
    found["body_pose"] = rotations(2, 55).requires_grad_()
    for known in (torch.ones(55), (torch.arange(55) < 22).float()):
        pose = hmr.body_losses(found, batch | {"rotations_valid": known.expand(2, 55)},
                               whole_body(), expert, TINY_BODY)["pose"]
        gradient, = torch.autograd.grad(pose, found["body_pose"])
        known[hmr.EYES] = 0
        assert torch.equal(gradient.abs().sum((0, 2, 3)) > 0, known > 0)


def test_masked_errors_are_means_of_all():
    """L1; what is unknown counts as zero."""
    errors = torch.tensor([[[1.0, -3]], [[5, 7]]])
    assert hmr.masked_mean(errors, torch.tensor([[1], [0]])) == (1 + 3) / 4


def test_targets_of_heat_maps():
    """The pelvis is in the middle bin; a depth of 1 m behind it is in the last, of a hand 0.15 m
    behind the wrist; a hand fills half of its map, the left one mirrored."""
    found, batch, expert = body_truth()
    (body, in_map), (hands, in_box) = hmr.heat_map_targets(batch, expert, found["map_boxes"])
    depth = batch["keypoints_3d"][:, hmr.POSITIONED, 2] - batch["keypoints_3d"][:, :1, 2]
    assert torch.allclose(body[..., 2], 2 + depth / 1.0 * 2, atol=1e-4) and not depth[:, 0].any()
    assert in_map.all() and in_box.all()
    wrist = batch["keypoints_3d"][:, torch.tensor(hmr.HANDS)[:, :1], 2]
    depth = batch["keypoints_3d"][:, torch.tensor(hmr.HANDS)[:, 1:], 2] - wrist
    assert torch.allclose(hands[..., 2], 2 + depth / 0.15 * 2, atol=1e-4)
    extent = hands[..., :2].amax(2) - hands[..., :2].amin(2)
    assert extent.max() < 2 + 1e-4  # of 4 cells, less the wrist
    right_to_left = batch["keypoints_2d"][:, torch.tensor(hmr.HANDS)[LEFT, 1:], 0]
    assert torch.equal(hands[:, LEFT, :, 0].argsort(1, descending=True), right_to_left.argsort(1))
    found["map_boxes"][:, RIGHT, 0] += 100  # its hand is outside of the map
    _, (_, in_box) = hmr.heat_map_targets(batch, expert, found["map_boxes"])
    assert not in_box[:, RIGHT].any() and in_box[:, LEFT].all()


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
    batch = people() | {"body_pose_valid": torch.tensor([1.0, 0]),
                        "hand_vertices": torch.zeros(2, 2, 778, 3)}
    samples = hmr.hand_samples(batch)
    assert torch.equal(samples["images"][1], batch["hand_images"][0, LEFT])
    assert torch.equal(samples["pose"][2], batch["hand_pose"][1, RIGHT])
    assert torch.equal(samples["arm"], hmr.arm_pose(batch["body_pose"]).flatten(0, 1))
    assert samples["arm_valid"].tolist() == [1, 1, 0, 0]
    assert torch.equal(hmr.hand_samples(people())["arm_valid"], torch.ones(4))
    assert samples["keypoints_2d"].abs().max() < 0.5
    assert samples["vertices"].shape == (4, 778, 3)
    assert hmr.hand_samples(batch, "whole_body")["arm"].shape == (4, 22, 3, 3)


@pytest.mark.parametrize(("build", "frozen", "spared"), [
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
def test_parameter_groups(build, frozen, spared):
    """Matrices decay; norms, biases, positions and embeddings do not; frozen ones are out."""
    model = build()
    groups = parameter_groups(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays, stays = ({names[id(parameter)] for parameter in group["params"]} for group in groups)
    assert sorted([*decays, *stays]) == sorted(
        name for name in names.values() if not name.startswith(frozen))
    assert spared <= stays and all(parameter.ndim >= 2 for parameter in groups[0]["params"])
    assert {name for name, value in model.named_parameters() if name.endswith(".weight")
            and value.ndim > 1 and not name.startswith(frozen)} <= decays


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
