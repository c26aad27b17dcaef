"""HMR-Adapter: parameters, presets, rows of the tables, rotations, and both experts."""

import inspect
import math
from dataclasses import asdict, replace

import genhmr_samples
import pytest
import torch
import torch.nn.functional as F
from adapter_samples import (
    BASELINES,
    LEFT,
    RIGHT,
    TINY_BODY,
    TINY_HAND,
    body_adapter,
    cross,
    hand_adapter,
    images,
    lively,
    rotations,
    same,
    self_attend,
    whole_body,
)
from torch import Tensor, nn

import bodymodels
import genhmr
import hmr_adapter as hmr
import simplehand
import weights.hmr_adapter
from networks.adapter_rivals import build_model, count, on_meta
from tables import TABLES, scaled
from tasks.hmr_adapter import needs_guide

DISCRIMINATOR = 1_545_211  # parameters of HaMeR's, which no prediction depends on

# ----------------------------------------------------------------------------- counts, presets


def test_parameters_of_the_experts():
    """HaMeR has 630,912,000 + 39,497,837 parameters, SMPLer-X-H 661,827,096, part by part."""
    with torch.device("meta"):
        hand, body = hmr.HandExpert(hmr.HandExpertConfig()), hmr.BodyExpert(hmr.BodyExpertConfig())
    assert count(hand.backbone) == 630_912_000
    assert count(hand.mano_head) == 39_497_837
    assert count(hand) + DISCRIMINATOR == 671_955_048  # paper: 671M
    layer, = {tuple(count(part) for part in layer)
              for layer in hand.mano_head.transformer.layers}
    assert layer == (2_098_176 + 2_048, 2_360_320 + 2_048, 2_099_200 + 2_048)
    assert {name: count(part) for name, part in body.named_children()} == {
        "encoder": 630_951_680, "body_position_net": 512_400, "body_regressor": 2_372_157,
        "box_net": 9_179_657, "hand_roi_net": 16_796_800, "hand_position_net": 409_920,
        "hand_regressor": 1_583_986, "face_regressor": 20_496}
    assert count(body) == 661_827_096


@pytest.mark.parametrize("part, changes, number", [
    # test_rows_of_the_tables has the other compositions
    ("hand", {}, 26_759_936), ("hand", {"joint_embedding": "learned"}, 26_770_176),
    ("hand", {"inject": "weighted", "trainable": "head"}, 39_497_837 + 8_960 + 3_674_115),
    ("body", {}, 36_508_292), ("body", {"joint_embedding": "learned"}, 36_512_388),
    ("body", {"joint_proj": "reuse_hand_conv", "offset_hidden": 2048}, 37_037_188)])
def test_trainable_parameters_of_the_paths(part, changes, number):
    assert count(on_meta(replace(getattr(hmr.PRESETS["paper"], part), **changes)), True) == number


@pytest.mark.parametrize("name", ["table3", "table4"])
def test_rows_of_the_tables_have_their_parameters(name):
    """The counts are the printed ones, rounded to millions or truncated."""
    table = TABLES["hmr_adapter"][name]
    for row, words in table.words.items():
        says = table.figures[row][table.paper.index("parameters")]
        if "expert" in words:
            assert says == "-"
            continue
        number = count(on_meta(scaled(getattr(hmr.PRESETS["paper"], table.stage), words)), True)
        number += DISCRIMINATOR * (says == "671M")
        assert says in (f"{round(number / 1e6)}M", f"{number // 10**6}M"), row


def test_presets_say_what_the_paper_says():
    """128 samples per step, 10K steps, ViT-H in both experts; the defaults are the paper."""
    assert hmr.PRESETS["paper"] == hmr.Config()
    for preset in ("paper", "h200", "single_gpu"):
        for part in (hmr.PRESETS[preset].hand, hmr.PRESETS[preset].body):
            assert (part.batch_size, part.steps) == (128, 10_000)
            assert (part.expert.vit_dim, part.expert.vit_depth) == (1280, 32)


@pytest.mark.parametrize("changes, needed", [
    ({}, True), ({"inject": "concat"}, True), ({"inject": "none"}, False),
    ({"context": "image"}, False), ({"arm_source": "true"}, False)])
def test_guides_are_needed_for_predicted_arms_alone(changes, needed):
    """A model without theta_b, or trained with the true one, needs no whole-body model."""
    assert needs_guide(replace(TINY_HAND, **{"arm_source": "found"} | changes)) == needed


@pytest.mark.parametrize("row", BASELINES)
def test_each_row_has_its_class(row):
    """build_model and load_checkpoint pick its class, and a class refuses another one's config."""
    part, changes = BASELINES[row]
    tiny, base = (TINY_HAND, hmr.HandAdapter) if part == "hand" else (TINY_BODY, hmr.BodyAdapter)
    config = replace(tiny, **changes)
    model = build_model(config)
    content = {"model": model.state_dict(), "config": asdict(config)}
    assert type(weights.hmr_adapter.load_checkpoint(content)) is type(model)
    if type(model) is not base:
        with pytest.raises(ValueError, match=f"{model.DESIGN}.*of networks/adapter_rivals"):
            base(config)


@pytest.mark.parametrize(("config", "bad"), [
    *[(TINY_HAND, bad) for bad in (
        {"inject": "some"}, {"context": "knuckles"}, {"arm": "leg"}, {"joint_embedding": "sine"},
        {"trainable": "none"}, {"arm_source": "image"})],
    *[(TINY_BODY, bad) for bad in (
        {"inject": "some"}, {"context": "arm"}, {"joint_proj": "none"}, {"joint_embedding": "flat"},
        {"trainable": "none"}, {"knuckle_source": "image"}, {"inject": "concat"})],
    *[(TINY_HAND.expert, bad) for bad in ({"image_size": 100}, {"vit_heads": 3})],
    *[(genhmr_samples.TINY, bad) for bad in (
        {"image_size": 100}, {"scales": (3,)}, {"scales": ()}, {"heads": 3},
        {"mask_loss_on": "some"}, {"tau_max": 0.0}, {"tau_max": 1.5}, {"temperature_end": 0.0},
        {"temperature_duration": 0.0})],
    *[(genhmr_samples.TINY_TOKENIZER, bad) for bad in (
        {"num_tokens": 24}, {"num_tokens": 100}, {"num_tokens": 72}, {"momentum": 1.0},
        {"codebook_size": 0}, {"corruption": 1.5})]])
def test_bad_configs_are_refused_by_name(config, bad):
    """An invalid value raises a ValueError that names its field."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        replace(config, **bad)


def test_shared_blocks_are_copies():
    """Blocks that paper files share are equal, letter by letter."""
    for name in ("require", "unit", "rotation_6d_to_matrix", "matrix_to_rotation_6d", "DropPath",
                 "mlp", "SelfAttention", "ViTBlock"):
        copied = inspect.getsource(getattr(hmr, name)).replace("EncoderConfig", "Config")
        assert copied == inspect.getsource(getattr(genhmr, name)), name
    for name in ("require", "DropPath"):
        assert (inspect.getsource(getattr(genhmr, name))
                == inspect.getsource(getattr(simplehand, name))), name


def test_joints_have_the_numbers_of_bodymodels():
    """Every list of joint numbers agrees with the names in bodymodels.JOINT_SETS."""
    sets = bodymodels.JOINT_SETS
    names = sets["smplx76"]
    for side, word, part in ((RIGHT, "right", hmr.RIGHT_FINGERS), (LEFT, "left", hmr.LEFT_FINGERS)):
        assert tuple(names[i] for i in hmr.ARMS["arm"][side]) == sets[f"{word}_arm08"]
        hand = [names[joint] for joint in hmr.HANDS[side]]
        assert tuple(hand) == sets[f"{word}_hand21"]
        assert [hand[1:][knuckle] for knuckle in hmr.KNUCKLES] == [
            f"{word}_{finger}1" for finger in ("index", "middle", "ring", "pinky")]
        assert list(names[part]) == [f"{word}_{name}" for name in sets["mano16"][1:]]
    assert [names[joint] for joint in hmr.POSITIONED[-5:]] == [
        "left_ear", "right_ear", "left_eye", "right_eye", "nose"]
    assert len(set(hmr.POSITIONED)) == 25 and not any(
        "_hand" in names[joint] for joint in hmr.POSITIONED)
    assert hmr.MIRRORED_BODY == bodymodels.mirror_indices(names[:22])


# ----------------------------------------------------------------------------------- rotations


def test_convention_6d_of_both_experts():
    """HaMeR's 6D is [column 0, column 1]; SMPLer-X's the same interleaved, [0, 3, 1, 4, 2, 5]."""
    matrices = rotations(3, 20, dtype=torch.float64)  # torch.cross without dim would cross this
    six = hmr.matrix_to_rotation_6d(matrices)
    assert torch.equal(six, torch.cat((matrices[..., 0], matrices[..., 1]), -1))
    assert torch.equal(hmr.from_interleaved(six[..., [0, 3, 1, 4, 2, 5]]), six)
    assert torch.allclose(hmr.rotation_6d_to_matrix(six), matrices)


def test_axis_angles_are_those_of_bodymodels():
    """Both conversions agree with bodymodels, also at 0 and 180 degrees; gradients are right and
    finite next to the identity."""
    angles = torch.cat((torch.randn(50, 3).clamp(-1.8, 1.8), torch.zeros(1, 3), torch.tensor(
        [[math.pi, 0, 0], [0, math.pi - 1e-6, 0], [1e-7, 0, 0], [0.6 * math.pi, 0.8 * math.pi, 0]]
    ))).double()
    matrices = hmr.axis_angle_to_matrix(angles)
    assert torch.allclose(matrices, bodymodels.axis_angle_to_matrix(angles), atol=1e-9)
    back = hmr.matrix_to_axis_angle(matrices)
    assert back.norm(dim=-1).max() <= math.pi + 1e-9
    assert torch.allclose(bodymodels.axis_angle_to_matrix(back), matrices, atol=1e-7)
    assert torch.allclose(hmr.matrix_to_axis_angle(matrices[:50]), angles[:50], atol=1e-6)
    for size in (0.0, 1e-6, 1e-3, 1.0):
        near = hmr.axis_angle_to_matrix(size * angles[:3]).requires_grad_()
        assert torch.autograd.gradcheck(hmr.matrix_to_axis_angle, near)


def test_convention_mirror_is_m_r_m():
    """mirror is M R M, as in bodymodels, and maps axis-angles to (x, -y, -z)."""
    angles = torch.randn(20, 3)
    matrices = hmr.axis_angle_to_matrix(angles)
    assert torch.equal(hmr.mirror(matrices), bodymodels.mirror_matrix(matrices))
    assert torch.allclose(hmr.mirror(matrices),
                          hmr.axis_angle_to_matrix(angles * torch.tensor([1, -1, -1])), atol=1e-5)


@pytest.mark.parametrize("arm", hmr.ARMS)
def test_arms_of_a_mirrored_body_change_places(arm):
    """theta_b of a left arm equals theta_b of the mirror image's right arm."""
    pose = rotations(2, 55)
    mirrored = bodymodels.mirror_pose(pose, whole_body().joint_names)
    assert torch.allclose(hmr.arm_pose(mirrored, arm), hmr.arm_pose(pose, arm).flip(1))


def naive_roi_align(features: Tensor, box: list[float], cells: int) -> Tensor:
    """Mean of bilinear samples of a map (C, h, w) for each cell, as Mask R-CNN describes it."""
    (x0, y0, x1, y1), (height, width) = box, features.shape[1:]
    w, h = max(x1 - x0, 1.0) / cells, max(y1 - y0, 1.0) / cells
    across, down = math.ceil(w), math.ceil(h)
    x = x0 + w * (torch.arange(cells * across, dtype=torch.float64) + 0.5) / across
    y = y0 + h * (torch.arange(cells * down, dtype=torch.float64) + 0.5) / down
    at = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (rows, columns, 2)
    edge = torch.tensor([width, height])
    inside = ((at >= -1) & (at <= edge)).all(-1)
    samples = F.grid_sample(features[None], 2 * at[None] / (edge - 1) - 1, padding_mode="border",
                            align_corners=True)[0]
    return F.avg_pool2d(samples * inside, (down, across))


BOXES = [[1.3, 2.1, 6.7, 9.9], [-3.0, -2.5, 5.0, 4.0], [4.0, 4.0, 4.2, 4.1], [5.0, 6.0, 20.0, 14.0],
         [0.0, 0.0, 9.0, 11.0], [-9.0, 3.0, -4.0, 8.0]]


def test_roi_align_is_the_definition():
    """For boxes inside, across the border, tiny, larger than the map, and outside."""
    features = torch.randn(len(BOXES), 3, 11, 9, dtype=torch.float64)
    found = hmr.roi_align(features, torch.tensor(BOXES, dtype=torch.float64), 4)
    for index, box in enumerate(BOXES):
        assert torch.allclose(found[index], naive_roi_align(features[index], box, 4), atol=1e-5)
        alone = hmr.roi_align(features[[index]], torch.tensor([box]), 4)  # has its own samples
        assert torch.allclose(found[index], alone[0], atol=1e-5)
    absurd = torch.tensor([[1e6, 0, -1e6, 3], [-1e6, -1e6, 1e6, 1e6]])
    assert hmr.roi_align(features[:2], absurd, 4).isfinite().all()


def test_expectation_is_where_the_peak_is():
    """The position is the peak, x, y, z in cells; the softmax sums to 1."""
    heat = torch.zeros(2, 3, 4, 5, 6)
    heat[1, 2, 1, 3, 4] = 100.0
    probability, position = hmr.expectation(heat, 3)
    assert torch.allclose(position[1, 2], torch.tensor([4.0, 3, 1]))
    assert torch.allclose(position[0, 0], torch.tensor([2.5, 2, 1.5]))
    assert torch.allclose(probability.sum((2, 3, 4)), torch.ones(2, 3))
    _, flat = hmr.expectation(heat[1, 2, 1], 2)
    assert torch.allclose(flat, torch.tensor([4.0, 3]))


def test_samples_at_whole_cells_are_the_cells():
    """Positions count cells; the first cell's centre is 0."""
    features = torch.randn(2, 3, 5, 4)
    found = hmr.sample_at(features, torch.tensor([[[1.0, 2], [3, 4]], [[0, 0], [2.5, 1]]]))
    assert torch.allclose(found[0, 0], features[0, :, 2, 1], atol=1e-6)
    assert torch.allclose(found[0, 1], features[0, :, 4, 3], atol=1e-6)
    assert torch.allclose(found[1, 1], features[1, :, 1, 2:].mean(-1), atol=1e-6)


def test_decoder_is_equation_1():
    """Each layer adds SA, CA over the unnormalised context, and an MLP, each after a norm of x."""
    decoder, context = lively(hmr.Decoder(TINY_HAND.expert, 32)), torch.randn(3, 7, 32)
    x = decoder.to_token_embedding.bias + decoder.pos_embedding.expand(3, 1, 16)
    for first, second, third in decoder.layers:
        x = x + self_attend(first.fn, first.norm(x))
        x = x + cross(second.fn, second.norm(x), context)
        net = third.fn.net
        x = x + net[3](F.gelu(net[0](third.norm(x))))
    assert torch.allclose(decoder(context), x, atol=1e-5)


def test_task_tokens_have_no_position_and_come_first():
    """The blocks run on [task tokens; patches + position]."""
    encoder, picture = lively(hmr.ViT(TINY_BODY.expert, tasks=31)).eval(), torch.rand(2, 3, 64, 48)
    x = encoder.patch_embed(picture) + encoder.pos_embed[:, 1:] + encoder.pos_embed[:, :1]
    x = torch.cat((encoder.task_tokens.expand(2, -1, -1), x), 1)
    for block in encoder.blocks:
        x = block(x)
    assert x.shape == (2, 31 + 12, 32)
    assert torch.allclose(encoder(picture), encoder.last_norm(x), atol=1e-5)


@pytest.mark.parametrize("build", [hand_adapter, body_adapter])
def test_encoders_see_the_middle(build):
    """Outer eighths have no effect; of a square twice as large every second pixel counts."""
    expert, picture = build().expert, images()
    found = expert(picture)
    other = picture.clone()
    other[..., :8] = 0
    other[..., -8:] = 255
    large = picture.repeat_interleave(2, 2).repeat_interleave(2, 3)
    large[..., 1::2, :] = large[..., 1::2] = 7
    assert same(found, expert(other)) and not same(found, expert(255 - picture))
    for name in ("hand_pose", "body_pose"):
        assert name not in found or torch.equal(found[name], expert(large)[name])
    with pytest.raises(ValueError, match="expected"):
        expert(images(size=48))


def test_boxes_of_hands():
    """The hand maps see squares twice as wide as the longer side of the hands' boxes, around
    their centres; box_margin makes tight boxes smaller, around the same centres."""
    expert, pictures = body_adapter().expert, images(3)
    sizes = torch.tensor([[1.0, 1.5], [0.8, 0.6], [3.0, 3.0]])  # in cells: right, left, face
    net = expert.box_net
    for part, size in zip((net.rhand_size, net.lhand_size, net.face_size), sizes, strict=True):
        nn.init.zeros_(part[2].weight)
        part[2].bias.data = size
    found = expert(pictures)
    assert torch.allclose(found["box_sizes"], sizes.expand(3, 3, 2))
    boxes = found["map_boxes"]
    assert torch.allclose(boxes[..., 2:], torch.tensor([[3.0, 3.0], [1.6, 1.6]]).expand(3, 2, 2))
    centers = found["box_centers"][:, :2]
    assert torch.allclose(boxes[..., :2] + boxes[..., 2:] / 2, centers, atol=1e-5)
    expert.config = replace(expert.config, box_margin=1.2)
    smaller = expert(pictures)["tight_boxes"]
    for tight, size in ((found["tight_boxes"], sizes[:2]), (smaller, sizes[:2] / 1.2)):
        assert torch.allclose(tight, expert.to_pixels(torch.cat(
            (centers - size / 2, size.expand(3, 2, 2)), 2), 64), atol=1e-4)


def test_heat_maps_of_boxes_come_left_hand_first():
    """In the released weights; the maps are eight times as fine as the encoder's cells."""
    net, features, heat = body_adapter().expert.box_net, torch.randn(2, 32, 4, 3), torch.randn(
        2, 25, 4, 4, 3)
    maps = net.bbox_center(net.deconv(torch.cat((features, heat.flatten(1, 2)), 1)))
    centers, sizes = net(features, heat)
    assert maps.shape == (2, 3, 32, 24)
    assert torch.allclose(centers * 8, hmr.expectation(maps, 2)[1][:, [1, 0, 2]], atol=1e-4)
    assert sizes.shape == (2, 3, 2)


def test_experts_start_upright():
    """New hands are flat, before HaMeR's mean camera; new bodies stand upright in a camera."""
    hand, body = hmr.HandExpert(TINY_HAND.expert)(images()), hmr.BodyExpert(TINY_BODY.expert)
    eye, turn = torch.eye(3), torch.diag(torch.tensor([1.0, -1, -1]))
    assert torch.allclose(hand["hand_pose"], eye.expand(2, 16, 3, 3), atol=0.1)
    assert torch.allclose(hand["camera"], torch.tensor([0.9, 0, 0]).expand(2, 3), atol=0.05)
    pose = body(images())["body_pose"]
    assert torch.allclose(pose, torch.stack([turn] + [eye] * 54).expand(2, 55, 3, 3), atol=0.1)


def test_cameras_of_both_experts():
    """HaMeR's [s, x, y] for crops of 256 px and a focal length of 5000; SMPLer-X's depth is at most
    that at which 2.5 m squared fill a crop of 256 x 192."""
    assert torch.allclose(hmr.hand_translation(torch.tensor([[0.9, 0.1, -0.2]])),
                          torch.tensor([[0.1, -0.2, 2 * 5000 / (256 * 0.9)]]))
    expert = body_adapter().expert
    camera = expert.body_regressor["cam_out"][0]
    with torch.no_grad():
        camera.weight.zero_()
        camera.bias.copy_(torch.tensor([0.1, 0.2, 100]))
        found = expert(images())["translation"]
    most = 5000 * 2.5 / math.sqrt(256 * 192)
    assert torch.allclose(found, torch.tensor([0.1, 0.2, most]).expand(2, 3))


def test_what_is_read_off_the_heat_maps_does_not_train_them():
    """BoxNet reads them detached; body and fingers are regressed from detached keypoints, but from
    the maps of hands gradients flow."""
    expert = body_adapter().expert.requires_grad_(True)
    features = expert.features(images())
    (features.box_centers.sum() + features.box_sizes.sum()).backward()
    assert all(value.grad is None for value in expert.body_position_net.parameters())
    assert all(value.grad is not None for value in expert.box_net.parameters())
    maps, joints, hand_joints = (getattr(features, name).detach().requires_grad_()
                                 for name in ("hand_maps", "joints", "hand_joints"))
    features = expert.features(images())._replace(hand_maps=maps, joints=joints,
                                                  hand_joints=hand_joints)
    (expert.joined(features).sum() + expert.fingers(features).sum()).backward()
    assert joints.grad is None and hand_joints.grad is None and maps.grad.any()


def test_hands_are_normalised_as_hamer_s():
    """By ImageNet's mean and standard deviation; the encoder sees the middle three quarters."""
    expert = hand_adapter().expert
    expert.backbone = torch.nn.Identity()
    colour = torch.tensor([10, 100, 250], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 64, 64)
    found = expert.features(colour)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.tensor([10.0, 100, 250]) / 255 - mean) / std
    assert torch.allclose(found, expected.view(3, 1, 1).expand(2, 3, 64, 48), atol=1e-5)


def test_cells_and_pixels():
    """The map's first cell starts an eighth of the picture from the left, at the top."""
    expert = body_adapter().expert
    corner = expert.to_cells(torch.tensor([[8.0, 0], [56, 64]]), 64)
    assert torch.equal(corner, torch.tensor([[0.0, 0], [3, 4]]))
    boxes = torch.rand(2, 2, 4)
    pixels = expert.to_pixels(boxes, 128)
    assert torch.allclose(expert.to_cells(pixels[..., :2], 128), boxes[..., :2], atol=1e-6)
    assert torch.allclose(pixels[..., 2:] / 32, boxes[..., 2:])


def test_left_hand_is_seen_in_the_mirror():
    """Mirrored features with mirrored boxes exchange the maps of the two hands."""
    net = lively(hmr.HandRoiNet(TINY_BODY.expert)).eval()
    for layer in net.deconv:
        if isinstance(layer, nn.ConvTranspose2d):  # symmetric kernels, so maps can mirror
            layer.weight.data += layer.weight.data.flip(3)
    features = torch.randn(2, 32, 4, 3)
    boxes = torch.tensor([[0.2, 0.4, 1, 1], [1, 2, 1.5, 1.5]]).expand(2, 2, 4)
    mirrored = boxes.flip(1).clone()
    # columns count from cell centres, 0 to 11 in the map of twelve
    mirrored[..., 0] = 11 / 4 - mirrored[..., 0] - mirrored[..., 2]
    assert torch.allclose(net(features, boxes), net(features.flip(3), mirrored).flip(1), atol=1e-4)


def test_mean_hands_make_fingers_absolute():
    """hand_mean is added to the fingers' axis-angles, the left hand's in its own frame. Without it,
    too, there are 55 valid rotations, identity eyes and a positive depth."""
    expert, mean = body_adapter().expert, 0.2 * torch.randn(2, 15, 3)
    found = expert(images())
    before, depth = found["body_pose"], found["translation"][:, 2]
    assert before.shape == (2, 55, 3, 3)
    assert torch.allclose(before @ before.mT, torch.eye(3).expand_as(before), atol=1e-5)
    assert torch.equal(before[:, hmr.EYES], torch.eye(3).expand(2, 2, 3, 3))
    assert (depth > 0).all() and (depth < 56.381).all()
    expert.load_state_dict(expert.state_dict() | {"hand_mean": mean})
    after = expert(images())["body_pose"]
    grown = bodymodels.matrix_to_axis_angle(before[:, 25:]) + torch.cat((mean[1], mean[0]))
    assert torch.allclose(bodymodels.axis_angle_to_matrix(grown), after[:, 25:], atol=1e-4)
    assert torch.equal(before[:, :25], after[:, :25])
