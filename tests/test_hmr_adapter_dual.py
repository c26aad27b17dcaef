"""HMR-Adapter's dual path: merged hands, crops, inference on a picture."""

import math

import numpy as np
import pytest
import torch
from adapter_samples import (
    LEFT,
    RIGHT,
    TINY,
    body_adapter,
    hand_adapter,
    images,
    noise,
    people,
    rotations,
    whole_body,
)

import bodymodels
import hmr_adapter as hmr
from hmr_adapter import HMRAdapter, cut_square, predict, smplx_parameters
from networks.adapter_rivals import share_twists


@pytest.mark.parametrize("wrist", ["ik", "twist"])
def test_merged_wrist_has_the_orientation_of_the_hand(wrist):
    """Forward kinematics of the merged body gives both wrists the hand network's orientation."""
    body_pose, hand_pose = rotations(4, 55, spread=0.7), rotations(4, 2, 16)
    pose = hmr.merge(body_pose, hand_pose)
    pose = share_twists(pose) if wrist == "twist" else pose
    world = whole_body()(torch.zeros(4, 10), pose).transforms[..., :3, :3]
    assert torch.allclose(world[:, 21], hand_pose[:, RIGHT, 0], atol=1e-5)
    assert torch.allclose(world[:, 20], bodymodels.mirror_matrix(hand_pose[:, LEFT, 0]), atol=1e-5)
    assert torch.equal(pose[:, hmr.RIGHT_FINGERS], hand_pose[:, RIGHT, 1:])
    assert torch.equal(pose[:, hmr.LEFT_FINGERS], bodymodels.mirror_matrix(hand_pose[:, LEFT, 1:]))
    elbows = [18, 19] if wrist == "twist" else []
    untouched = [joint for joint in range(25) if joint not in (20, 21, *elbows)]
    assert torch.equal(pose[:, untouched], body_pose[:, untouched])


def test_merge_keeps_what_it_is_told_to():
    """Invalid hands keep fingers, wrists and elbows; a body's own hands change nothing."""
    batch = people()
    pose = hmr.merge(batch["body_pose"], batch["hand_pose"])
    assert torch.allclose(pose, batch["body_pose"], atol=1e-5)
    body_pose, hand_pose = rotations(2, 55), rotations(2, 2, 16)
    valid = torch.tensor([[0.0, 1], [0, 0]])
    part = share_twists(hmr.merge(body_pose, hand_pose, valid), valid)
    whole = share_twists(hmr.merge(body_pose, hand_pose))
    assert torch.equal(part[1], body_pose[1])
    assert torch.equal(part[0, [21, 19]], body_pose[0, [21, 19]])
    assert torch.equal(part[0, [20, 18]], whole[0, [20, 18]])


def test_twist_beyond_the_limit_goes_to_the_elbow():
    """The wrist keeps at most 72 degrees of twist about the forearm; smaller twists stay."""
    axis = torch.zeros(5, 3)
    axis[:, 0] = torch.tensor([0.5, 1.2, 2.0, -2.9, math.pi])
    pose, most = rotations(5, 55), 0.4 * math.pi
    pose[:, [20, 21]] = hmr.axis_angle_to_matrix(axis)[:, None]
    shared = share_twists(pose, most=most)
    for elbow, wrist in ((18, 20), (19, 21)):
        kept = bodymodels.matrix_to_axis_angle(shared[:, wrist])[:, 0]
        assert torch.allclose(kept, axis[:, 0].clamp(-most, most), atol=1e-4)
        assert torch.allclose(shared[:, elbow] @ shared[:, wrist], pose[:, elbow] @ pose[:, wrist],
                              atol=1e-5)
        assert torch.allclose(shared[:2, elbow], pose[:2, elbow], atol=1e-6)


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


def test_a_crop_does_not_depend_on_its_batch():
    """Beside a box eight times as large, which needs more samples per pixel, it is the same."""
    pictures = images(3, 90).float()
    boxes = torch.tensor([[30.0, 30, 6, 6], [5, 5, 48, 48], [10, 20, 9, 20]])
    boxes = boxes[:, None].repeat(1, 2, 1)
    together = hmr.crop_hands(pictures, boxes, 16)
    for one in range(3):
        alone = hmr.crop_hands(pictures[one:one + 1], boxes[one:one + 1], 16)
        assert torch.equal(together[one], alone[0])
    assert hmr.crop_hands(pictures[:0], boxes[:0], 16).shape == (0, 2, 3, 16, 16)


def tiny_paths() -> HMRAdapter:
    return HMRAdapter(TINY, hand_adapter(), body_adapter()).eval()


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_dual_path_joins_both_paths(scale):
    """Hands are cut out at the predicted boxes, get the arms of the refined pose, not of theta_0,
    and are merged. The scale is of both adapters: with 0 the experts' bodies and hands."""
    model, pictures = tiny_paths(), images(3)
    found, body = model(pictures, scale=scale), model.body(pictures, scale=scale)
    crops = hmr.crop_hands(pictures, body["tight_boxes"], 64).flatten(0, 1)
    for pose, equal in ((body["body_pose"], True), (body["initial_pose"], scale == 0)):
        hands = model.hand(crops, hmr.arm_pose(pose).flatten(0, 1), scale=scale)["hand_pose"]
        hands = hands.unflatten(0, (3, 2))
        assert torch.allclose(found["hand_pose"], hands, atol=1e-6) == equal
    assert torch.equal(found["body_path"], body["body_pose"])
    assert torch.equal(found["body_pose"], hmr.merge(body["body_pose"], found["hand_pose"]))
    valid = torch.tensor([[1.0, 1], [0, 0], [1, 0]])  # others keep the body path's pose
    part = model.join(body, crops.unflatten(0, (3, 2)), valid, scale=scale)
    assert torch.equal(part["body_pose"], hmr.merge(body["body_pose"], found["hand_pose"], valid))
    if scale == 0:
        assert torch.equal(body["body_pose"], model.body.expert(pictures)["body_pose"])
        assert torch.equal(hands, model.hand.expert(crops)["hand_pose"].unflatten(0, (3, 2)))


def test_predict_projects_where_the_crop_did():
    """The picture's camera projects the mesh like the crop's; parameters reproduce the mesh."""
    model, body = tiny_paths(), bodymodels.load_model("wholebody")
    picture = noise()
    found = predict(model, picture, body, box=(30, 10, 40, 60))
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
    again = predict(model, picture, body)
    assert again["box"][2] == 120 * 4 / 3


def test_the_body_path_alone_predicts_its_own_hands():
    """Without a hand path no hand is valid; the 2D joints are where the losses put true ones."""
    path, picture = body_adapter(), noise()
    found = predict(path, picture, whole_body(), box=(30, 10, 40, 60))
    assert not found["hand_valid"].any()
    (x, y, side, _), size = found["box"].astype(float), 64
    crop = cut_square(path, picture, np.array([x + side / 2, y + side / 2, side]), size)
    with torch.no_grad():
        expected = path(crop)
    assert np.allclose(found["rotations"], expected["body_pose"][0], atol=1e-4)
    in_crop = torch.tensor((found["keypoints_2d"] - (x, y)) * (size / side))
    assert torch.allclose(path.expert.to_cells(in_crop, size).float(),
                          expected["joints"][0, :, :2], atol=1e-3)


def test_mean_hands_come_off_for_smplx_layers():
    """A layer with flat_hand_mean=False adds the mean hand that smplx_parameters subtracts."""
    pose, mean = rotations(2, 55, spread=0.3), 0.1 * torch.randn(2, 15, 3)
    flat, relative = smplx_parameters(pose), smplx_parameters(pose, mean)
    for side, name in ((RIGHT, "right_hand_pose"), (LEFT, "left_hand_pose")):
        assert torch.allclose(relative[name] + mean[side].flatten(), flat[name], atol=1e-6)
    assert torch.equal(relative["body_pose"], flat["body_pose"])
    back = bodymodels.axis_angle_to_matrix(flat["right_hand_pose"].unflatten(1, (15, 3)))
    assert torch.allclose(back, pose[:, hmr.RIGHT_FINGERS], atol=1e-5)
