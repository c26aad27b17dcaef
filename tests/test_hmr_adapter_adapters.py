"""HMR-Adapter's two adapters and their rivals, the dual path, inference on a picture."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_samples import (
    BASELINES,
    LEFT,
    RIGHT,
    TINY_BODY,
    TINY_HAND,
    body_adapter,
    both_paths,
    cross,
    hand_adapter,
    images,
    lively,
    loss_of,
    noise,
    people,
    rotations,
    same,
    self_attend,
    whole_body,
)
from torch import nn

import bodymodels
import hmr_adapter as hmr
from networks.adapter_rivals import Moderator, build_model

ADAPTERS = {"hand": hand_adapter, "body": body_adapter}


def inputs_of(part: str, arm: str = "arm") -> tuple[tuple, str]:
    """Pictures and the true context of two people, and the name of the predicted pose."""
    batch = people()
    if part == "body":
        return (batch["image"], hmr.true_knuckles(batch)), "body_pose"
    samples = hmr.hand_samples(batch, arm)
    return (samples["images"], samples["arm"]), "hand_pose"

# ------------------------------------------------------------------------------------ hand adapter


def test_decoder_is_equation_3():
    """Z_new = Z + SA + CA(Q, K, V) + scale CA(Q', K', V'), with shared norms, in every layer."""
    model, features, guide = hand_adapter(), torch.randn(2, 12, 32), torch.randn(2, 8, 32)
    x = model.decoder.query(len(features))
    for (first, second, third), new in zip(model.decoder.layers, model.layers, strict=True):
        own = x + self_attend(first.fn, first.norm(x))
        other = x + self_attend(new["self_attention"], first.norm(x))
        x = (own + cross(second.fn, second.norm(own), features)
             + 0.7 * cross(new["cross_attention"], second.norm(other), guide))
        x = x + third(x)
    assert torch.allclose(model.decode(features, guide, 0.7), x, atol=1e-5)


def test_adapter_starts_as_a_copy():
    """SA' and CA' start equal to SA and CA, in memory of their own."""
    expert = lively(hmr.HandExpert(TINY_HAND.expert))
    model = hmr.HandAdapter(TINY_HAND, expert)
    for (first, second, _), new in zip(model.decoder.layers, model.layers, strict=True):
        for old, copied in ((first.fn, new["self_attention"]), (second.fn, new["cross_attention"])):
            for name, value in old.state_dict().items():
                assert torch.equal(value, copied.state_dict()[name])
                assert value.data_ptr() != copied.state_dict()[name].data_ptr()


@pytest.mark.parametrize("row", BASELINES)
def test_only_what_is_trainable_trains(row):
    """In training mode a step changes what the row trains and nothing else, batch norm statistics
    included. All that trains has a gradient: without it DDP would stop."""
    part, changes = BASELINES[row]
    tiny = TINY_HAND if part == "hand" else TINY_BODY
    model = lively(build_model(replace(tiny, **changes))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    frozen = {"adapter": "expert.", "head": ("expert.backbone.", "expert.encoder."),
              "all": "nothing"}[model.config.trainable]
    assert set(trained) == {name for name, _ in model.named_parameters()
                            if not name.startswith(frozen)}
    assert model.training and not any(
        each.training for module in model.frozen() for each in module.modules())
    loss = loss_of(model)
    if not trained:
        return
    loss.backward()
    assert not [name for name, value in trained.items() if value.grad is None]
    torch.optim.SGD(trained.values(), 0.1).step()
    moved = {name for name, value in model.state_dict().items()
             if not torch.equal(value, before[name])}
    assert moved and not [name for name in moved if name.startswith(frozen)]
    new = {name for name in trained if not name.startswith("expert.")}
    assert not new or moved & new


@pytest.mark.parametrize("row", BASELINES)
def test_scale_zero_is_the_expert_inside_or_refused(row):
    """With scale 0 a row is its expert, bit for bit; concat and weighted accept only 1."""
    part, changes = BASELINES[row]
    model = ADAPTERS[part](**changes)
    inputs, key = inputs_of(part, getattr(model.config, "arm", "arm"))
    if model.config.inject in ("concat", "weighted"):
        with pytest.raises(ValueError, match=f"inject={model.config.inject} has none"):
            model(*inputs, scale=0.0)
    else:
        expert = model.expert(inputs[0])
        assert same(expert, model(*inputs, scale=0.0))
        assert torch.allclose(expert[key], model(*inputs)[key], atol=1e-3) == (
            model.config.inject == "none")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("part", ADAPTERS)
def test_half_precision_keeps_poses_and_gradients_finite(part, dtype):
    """Under autocast poses are rotations in full precision, near those without it."""
    model, (inputs, key) = ADAPTERS[part]().train(), inputs_of(part)
    with torch.autocast("cpu", dtype):
        pose = model(*inputs)[key]
    assert pose.dtype == torch.float32
    assert torch.allclose(pose @ pose.mT, torch.eye(3).expand_as(pose), atol=1e-4)
    assert (pose - model(*inputs)[key]).abs().mean() < 0.05
    (pose * torch.randn_like(pose)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters()
               if parameter.requires_grad)


def test_order_of_joints_matters_with_an_embedding_alone():
    """Without an embedding Eq. 2 ignores the order of the joints."""
    pictures, arms = images(), rotations(2, 8)
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    for embedding, blind in (("none", True), ("learned", False)):
        model = hand_adapter(joint_embedding=embedding)
        first, second = (model(pictures, each)["hand_pose"] for each in (arms, arms[:, order]))
        assert torch.allclose(first, second, atol=1e-5) == blind


def test_unknown_arms():
    """An unknown arm has no effect, and differs from every rotation."""
    model, pictures, valid = hand_adapter(), images(), torch.tensor([1.0, 0.0])
    first, second = (model(pictures, rotations(2, 8), valid)["hand_pose"] for _ in range(2))
    nothing = model(pictures)["hand_pose"]
    assert torch.equal(first[1], second[1]) and torch.allclose(nothing[1], first[1], atol=1e-6)
    assert not torch.allclose(first[0], second[0], atol=1e-4)
    features = model.arm(rotations(2, 8), torch.zeros(2))  # no rotation is 0 in 6D
    assert torch.allclose(features, model.arm.projection.bias.expand(2, 8, 32))
    for bad in (rotations(2, 7), rotations(1, 8)):
        with pytest.raises(ValueError, match="arm of shape"):
            model(pictures, bad)


def test_dropped_arms_are_unknown_ones():
    """arm_drop hides its share of the arms in training alone; unknown arms stay unknown."""
    arm, arms, valid = hand_adapter(arm_drop=0.3).arm, rotations(400, 8), torch.arange(400) % 2
    whole, unknown = arm(arms), arm(None, None, 400)
    assert torch.equal(arm(arms, valid), torch.where(valid[:, None, None] > 0, whole, unknown))
    features = arm.train()(arms, valid)
    known = (features == whole).flatten(1).all(1)
    assert ((features == unknown).flatten(1).all(1) != known).all()
    assert not known[valid == 0].any() and 0.6 < known[valid == 1].float().mean() < 0.8


def test_image_as_context_ignores_the_arm():
    """Table 3, No. 5 uses the image's own features in place of the arm's."""
    model = hand_adapter(context="image")
    assert same(model(images()), model(images(), rotations(2, 8)))


# ------------------------------------------------------------------------------------ body adapter


def test_the_body_adapter_refines_the_body_alone():
    """It changes no finger, returns theta_0 as well, and starts as the expert."""
    model, pictures = body_adapter(), images(3)
    expert, refined = model.expert(pictures), model(pictures)
    assert torch.equal(expert["body_pose"][:, 22:], refined["body_pose"][:, 22:])
    assert torch.equal(refined["initial_pose"], expert["body_pose"][:, :22])
    fresh = hmr.BodyAdapter(TINY_BODY, model.expert).eval()
    assert same(expert, fresh(pictures))


def test_offset_is_added_in_6d():
    """Eq. 4: theta-hat = theta_0 + scale FFN(CA(...)), in SMPLer-X's 6D."""
    model, pictures = body_adapter(), images()
    seen = model.expert.features(pictures)
    context = model.knuckle_features(seen, 64, None, None)
    offset = model.offset(model.decoder(context))[:, 0].unflatten(1, (22, 6))
    pose_6d = model.expert.initial_pose(seen) + 0.5 * offset
    found = model(pictures, scale=0.5)
    assert torch.allclose(found["pose_6d"], pose_6d, atol=1e-5)
    assert torch.allclose(found["body_pose"][:, :22], hmr.rotation_6d_to_matrix(
        pose_6d.unflatten(-1, (3, 2)).mT.flatten(-2)), atol=1e-4)


def test_points_in_maps_of_hands():
    """A box spans the map's cells in both directions; the left hand's map is mirrored."""
    points, boxes = torch.tensor([[[[3.0, 5]], [[3.0, 9]]]]), torch.tensor([[[1.0, 2, 4, 6]] * 2])
    at, inside = hmr.to_hand_maps(points, boxes, 8)
    assert torch.allclose(at[0, :, 0], torch.tensor([[4.0, 4], [3, 28 / 3]]))
    assert inside[0, :, 0].tolist() == [True, False]


@pytest.mark.parametrize("proj", ["conv", "reuse_hand_conv"])
def test_knuckles_go_through_the_box_and_its_mirror(proj):
    """True knuckles at the predicted positions, left and right, sample the predicted features."""
    model, pictures = body_adapter(joint_proj=proj), images(3)
    seen = model.expert.features(pictures)
    seen = seen._replace(hand_maps=torch.randn_like(seen.hand_maps),
                         hand_joints=3 * torch.rand_like(seen.hand_joints))
    at = seen.hand_joints[:, :, hmr.KNUCKLES, :2].clone()
    at[:, LEFT, :, 0] = 3 - at[:, LEFT, :, 0]  # the left hand's map is mirrored
    cells = seen.hand_boxes[:, :, None, :2] + at * seen.hand_boxes[:, :, None, 2:] / 4
    pixels = 16 * (cells + torch.tensor([0.5, 0]))
    found = model.knuckle_features(seen, 64, pixels, None)
    assert torch.allclose(found, model.knuckle_features(seen, 64, None, None), atol=1e-3)
    assert not torch.allclose(found[:, :4], found[:, 4:], atol=1e-2)


def test_unseen_knuckles_say_nothing():
    """Knuckles outside the box or of an unseen hand sample zeros."""
    model, pictures, valid = body_adapter(), images(), torch.tensor([[1.0, 0], [0, 0]])
    seen = model.expert.features(pictures)
    features = model.knuckle_features(seen, 64, None, valid)
    assert features[0, :4].any() and not features[0, 4:].any() and not features[1].any()
    far = hmr.true_knuckles(people()) + 1e4
    far[0, 0, 0] = math.nan
    assert not model.knuckle_features(seen, 64, far, None).any()
    assert not model.knuckle_features(seen, 64, -far, None).any()


def test_concatenation_widens_the_regressors():
    """They read what they did before, and the knuckles' features at the end."""
    model, pictures = body_adapter(inject="concat", trainable="head"), images()
    regressor, unseen = model.expert.body_regressor, torch.zeros(2, 2)
    outs = [layer[0] for layer in (regressor.root_pose_out, regressor.body_pose_out)]
    assert [out.in_features for out in outs] == [25 * 11 + 64] * 2
    for width, blind in ((64, False), (0, True)):
        for out in outs:
            out.weight.data[:, 25 * 11 + width:] = 0
        first, second = (model(pictures, None, valid)["body_pose"] for valid in (None, unseen))
        assert torch.allclose(first, second, atol=1e-5) == blind


def test_moderator_weighs():
    """The weights of the two features are positive, sum to 1 and follow the temperature."""
    moderator = lively(Moderator(4, 8))
    own, other = torch.zeros(2, 5, 4), torch.ones(2, 1, 4)
    weights = moderator.net(torch.cat((own, other.expand_as(own)), -1))
    for temperature in (1.0, 0.0):
        nn.init.constant_(moderator.temperature, temperature)
        expected = (temperature * weights).softmax(-1)[..., 1:].expand(2, 5, 4)
        assert torch.allclose(moderator(own, other), expected)


def test_merged_wrist_has_the_orientation_of_the_hand():
    """Forward kinematics of the merged body gives both wrists the hand network's orientation."""
    body_pose, hand_pose = rotations(4, 55, spread=0.7), rotations(4, 2, 16)
    pose = hmr.merge(body_pose, hand_pose)
    world = whole_body()(torch.zeros(4, 10), pose).transforms[..., :3, :3]
    assert torch.allclose(world[:, 21], hand_pose[:, RIGHT, 0], atol=1e-5)
    assert torch.allclose(world[:, 20], bodymodels.mirror_matrix(hand_pose[:, LEFT, 0]), atol=1e-5)
    assert torch.equal(pose[:, hmr.RIGHT_FINGERS], hand_pose[:, RIGHT, 1:])
    assert torch.equal(pose[:, hmr.LEFT_FINGERS], bodymodels.mirror_matrix(hand_pose[:, LEFT, 1:]))
    untouched = [joint for joint in range(25) if joint not in (20, 21)]
    assert torch.equal(pose[:, untouched], body_pose[:, untouched])


def test_merge_keeps_what_it_is_told_to():
    """Invalid hands keep fingers and wrists; a body's own hands change nothing."""
    batch = people()
    pose = hmr.merge(batch["body_pose"], batch["hand_pose"])
    assert torch.allclose(pose, batch["body_pose"], atol=1e-5)
    body_pose, hand_pose = rotations(2, 55), rotations(2, 2, 16)
    part = hmr.merge(body_pose, hand_pose, torch.tensor([[0.0, 1], [0, 0]]))
    whole = hmr.merge(body_pose, hand_pose)
    assert torch.equal(part[1], body_pose[1])
    assert torch.equal(part[0, 21], body_pose[0, 21]) and torch.equal(part[0, 20], whole[0, 20])


def test_crops_of_hands():
    """A crop shows its square, the left one mirrored; the outside of the picture is black."""
    picture = torch.zeros(1, 3, 40, 60)
    picture[..., :] = torch.arange(60.0)
    boxes = torch.tensor([[[15.0, 11, 6, 6], [36, 11, 6, 6]]])
    crops = hmr.crop_hands(picture, boxes, 16)  # 6 wide: a square of 16 pixels, one for one
    assert torch.allclose(crops[0, RIGHT, 0, 0], torch.arange(10.0, 26), atol=1e-4)
    assert torch.allclose(crops[0, LEFT, 0, 0], torch.arange(46.0, 30, -1), atol=1e-4)
    small = hmr.crop_hands(picture, torch.tensor([[[6.0, 6, 12, 12]] * 2]), 8)
    inside = torch.arange(1.5, 28, 4)  # columns -4 to 28, four to a pixel, the first outside
    assert torch.allclose(small[0, RIGHT, 0, 4, 1:], inside, atol=1e-3)
    far = hmr.crop_hands(picture, boxes + 1000, 16)
    assert not far.any()


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_dual_path_joins_both_paths(scale):
    """Hands are cut out at the predicted boxes, get the arms of the refined pose, not of theta_0,
    and are merged. The scale is of both adapters: with 0 the experts' bodies and hands."""
    model, pictures = both_paths(), images(3)
    found, body = model(pictures, scale=scale), model.body(pictures, scale=scale)
    crops = hmr.crop_hands(pictures, body["tight_boxes"], 64).flatten(0, 1)
    for pose, equal in ((body["body_pose"], True), (body["initial_pose"], scale == 0)):
        hands = model.hand(crops, hmr.arm_pose(pose).flatten(0, 1), scale=scale)["hand_pose"]
        hands = hands.unflatten(0, (3, 2))
        assert torch.allclose(found["hand_pose"], hands, atol=1e-6) == equal
    assert torch.equal(found["body_path"], body["body_pose"])
    sharper = pictures.repeat_interleave(2, 2).repeat_interleave(2, 3)
    twice = model(pictures, sharper, scale=scale)["hand_pose"]
    crops_2 = hmr.crop_hands(sharper, 2 * body["tight_boxes"], 64)
    joined = model.join(body, crops_2, scale=scale)["hand_pose"]
    assert torch.equal(twice, joined) and not torch.equal(twice, found["hand_pose"])
    assert torch.equal(found["body_pose"], hmr.merge(body["body_pose"], found["hand_pose"]))
    valid = torch.tensor([[1.0, 1], [0, 0], [1, 0]])  # others keep the body path's pose
    part = model.join(body, crops.unflatten(0, (3, 2)), valid, scale=scale)
    assert torch.equal(part["body_pose"], hmr.merge(body["body_pose"], found["hand_pose"], valid))
    if scale == 0:
        assert torch.equal(body["body_pose"], model.body.expert(pictures)["body_pose"])
        assert torch.equal(hands, model.hand.expert(crops)["hand_pose"].unflatten(0, (3, 2)))


def test_predict_projects_where_the_crop_did():
    """The picture's camera projects the mesh like the crop's; parameters reproduce the mesh."""
    model, body = both_paths(), bodymodels.load_model("wholebody")
    picture = noise()
    found = hmr.predict(model, picture, body, box=(30, 10, 40, 60))
    assert found["vertices"].shape == (10475, 3) and found["joints"].shape == (55, 3)
    side = 1.25 * 60
    assert np.allclose(found["box"], [50 - side / 2, 40 - side / 2, side, side])
    pixels = found["joints"] @ found["K"].T
    joints = torch.tensor(found["joints"])[None]
    in_crop = hmr.project_to_crop(joints, torch.zeros(1, 3))[0]
    assert np.allclose(pixels[:, :2] / pixels[:, 2:], (in_crop.numpy() + 0.5) * side
                       + found["box"][:2], atol=0.05)
    pose = np.concatenate([found[name] for name in (
        "global_orient", "body_pose", "jaw_pose", "leye_pose", "reye_pose", "left_hand_pose",
        "right_hand_pose")]).reshape(1, 55, 3)
    mesh = body(*(torch.tensor(value) for value in (
        found["betas"][None], pose, found["expression"][None], found["transl"][None])))
    assert np.allclose(mesh.vertices[0], found["vertices"], atol=1e-3)
    again = hmr.predict(model, picture, body)
    assert again["box"][2] == 120 * 4 / 3


def test_the_body_path_alone_predicts_its_own_hands():
    """Without a hand path no hand is valid; the 2D joints are where the losses put true ones."""
    path, picture = body_adapter(), noise()
    found = hmr.predict(path, picture, whole_body(), box=(30, 10, 40, 60))
    assert not found["hand_valid"].any()
    (x, y, side, _), size = found["box"].astype(float), 64
    crop = hmr.cut_square(path, picture, np.array([x + side / 2, y + side / 2, side]), size)
    with torch.no_grad():
        expected = path(crop)
    assert np.allclose(found["rotations"], expected["body_pose"][0], atol=1e-4)
    in_crop = torch.tensor((found["keypoints_2d"] - (x, y)) * (size / side))
    assert torch.allclose(path.expert.to_cells(in_crop, size).float(),
                          expected["joints"][0, :, :2], atol=1e-3)


def test_mean_hands_come_off_for_smplx_layers():
    """A layer with flat_hand_mean=False adds the mean hand that smplx_parameters subtracts."""
    pose, mean = rotations(2, 55, spread=0.3), 0.1 * torch.randn(2, 15, 3)
    flat, relative = hmr.smplx_parameters(pose), hmr.smplx_parameters(pose, mean)
    for side, name in ((RIGHT, "right_hand_pose"), (LEFT, "left_hand_pose")):
        assert torch.allclose(relative[name] + mean[side].flatten(), flat[name], atol=1e-6)
    assert torch.equal(relative["body_pose"], flat["body_pose"])
    back = bodymodels.axis_angle_to_matrix(flat["right_hand_pose"].unflatten(1, (15, 3)))
    assert torch.allclose(back, pose[:, hmr.RIGHT_FINGERS], atol=1e-5)
