"""HMR-Adapter: counts, experts, both adapters, rivals, losses, merge, dual path, checkpoints."""

import inspect
import json
import math
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bodymodels
import genhmr
import hmr_adapter as hmr
from commands import hmr_adapter as command
from hmr_adapter import (
    ARMS,
    HANDS,
    KNUCKLES,
    PRESETS,
    BodyAdapter,
    BodyConfig,
    BodyExpert,
    BodyExpertConfig,
    Config,
    HandAdapter,
    HandConfig,
    HandExpert,
    HandExpertConfig,
    HMRAdapter,
)
from tasks import adapter_rivals
from tasks.adapter_rivals import BASELINES

ENCODER = dict(image_size=64, vit_dim=32, vit_depth=1, vit_heads=2, vit_drop_path=0.5)
DECODER = dict(decoder_dim=16, decoder_layers=2, decoder_heads=2, decoder_head_dim=4,
               decoder_ffn=16)
TINY_HAND = HandConfig(expert=HandExpertConfig(**ENCODER, **DECODER))
TINY_BODY = BodyConfig(
    expert=BodyExpertConfig(**ENCODER, depth_bins=4, hand_cells=4, box_dim=8, joint_dim=8),
    **DECODER, offset_hidden=16, zero_init=False)
TINY = Config(TINY_HAND, TINY_BODY)
RIGHT, LEFT = 0, 1
ROWS = {"hand": [row for row in BASELINES if BASELINES[row][0] == "hand"],
        "body": [row for row in BASELINES if BASELINES[row][0] == "body"]}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@cache
def whole_body() -> bodymodels.BodyModel:
    """The free whole body, reduced to the vertices of its 76 keypoints."""
    return bodymodels.load_model("wholebody").for_keypoints()


@cache
def free_hand() -> bodymodels.BodyModel:
    return bodymodels.load_model("hand_right")


def images(count: int = 2, size: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def rotations(*shape: int, spread: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return bodymodels.axis_angle_to_matrix(spread * torch.randn(*shape, 3, dtype=dtype))


def lively(module: nn.Module) -> nn.Module:
    """Make weights and norm statistics as varied as those of a trained network."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.5 * float(parameter.std()) if parameter.numel() > 9
                           else 0.1)
        for buffer_owner in module.modules():
            if isinstance(buffer_owner, nn.BatchNorm2d):
                buffer_owner.running_mean.normal_(0, 0.1, generator=generator)
                buffer_owner.running_var.uniform_(0.5, 2, generator=generator)
    return module


def hand_adapter(**changes) -> HandAdapter:
    torch.manual_seed(2)
    return lively(adapter_rivals.build_model(replace(TINY_HAND, **changes))).eval()


def body_adapter(**changes) -> BodyAdapter:
    torch.manual_seed(3)
    return lively(adapter_rivals.build_model(replace(TINY_BODY, **changes))).eval()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@cache
def people(count: int = 2, size: int = 64) -> dict[str, Tensor]:
    """A batch as data.RenderedPeople makes it, with noise for pictures."""
    torch.manual_seed(4)
    pose = rotations(count, 55, spread=0.2)
    pose[:, hmr.EYES] = torch.eye(3)
    pose[:, 0] = pose[:, 0] @ torch.diag(torch.tensor([1.0, -1, -1]))  # upright in a camera
    betas, expression = 0.5 * torch.randn(count, 10), 0.5 * torch.randn(count, 10)
    body = whole_body()
    keypoints = body.keypoints(body(betas, pose, expression, torch.tensor([[0.0, -0.2, 45.0]])))
    focal = TINY_BODY.expert.focal
    flat = (focal * keypoints[..., :2] / keypoints[..., 2:] + 0.5) * size
    hands = keypoints[:, torch.tensor(HANDS)]  # (B, 2, 21, 3)
    hands_2d = flat[:, torch.tensor(HANDS)]
    low, high = hands_2d.amin(2), hands_2d.amax(2)
    center, side = (low + high) / 2, 8 / 3 * (high - low).amax(-1, keepdim=True)
    in_crop = (hands_2d - center[:, :, None]) / side[:, :, None]
    in_crop[:, LEFT, :, 0] *= -1
    hands[:, LEFT, :, 0] *= -1
    orientation = torch.stack([hmr.chain_product(pose[:, ARMS["arm"][side]])
                               for side in (RIGHT, LEFT)], 1)[:, :, None]
    fingers = torch.stack([pose[:, hmr.RIGHT_FINGERS], pose[:, hmr.LEFT_FINGERS]], 1)
    hand_pose = torch.cat((orientation, fingers), 2)
    hand_pose[:, LEFT] = bodymodels.mirror_matrix(hand_pose[:, LEFT])
    return {
        "image": images(count, size), "body_pose": pose, "betas": betas, "expression": expression,
        "keypoints_3d": keypoints, "keypoints_2d": flat, "keypoints_valid": torch.ones(count, 76),
        "hand_images": images(2 * count, size, 5).unflatten(0, (count, 2)),
        "hand_boxes": torch.cat((low, high - low), -1), "hand_pose": hand_pose,
        "hand_joints": hands, "hand_keypoints_2d": (in_crop + 0.5) * size,
        "hand_valid": torch.ones(count, 2)}


# ----------------------------------------------------------------------------- counts, presets


def trainable(config: HandConfig | BodyConfig) -> int:
    return hmr.count(adapter_rivals.on_meta(config), True)


def test_parameters_of_the_experts():
    """HaMeR has 630,912,000 + 39,497,837 parameters, SMPLer-X-H 661,827,096, part by part."""
    with torch.device("meta"):
        hand, body = HandExpert(HandExpertConfig()), BodyExpert(BodyExpertConfig())
    assert hmr.count(hand.backbone) == 630_912_000
    assert hmr.count(hand.mano_head) == 39_497_837
    assert hmr.count(hand) + adapter_rivals.DISCRIMINATOR == 671_955_048  # the paper's 671M
    layer, = {tuple(hmr.count(part) for part in layer)
              for layer in hand.mano_head.transformer.layers}
    assert layer == (2_098_176 + 2_048, 2_360_320 + 2_048, 2_099_200 + 2_048)
    assert {name: hmr.count(part) for name, part in body.named_children()} == {
        "encoder": 630_951_680, "body_position_net": 512_400, "body_regressor": 2_372_157,
        "box_net": 9_179_657, "hand_roi_net": 16_796_800, "hand_position_net": 409_920,
        "hand_regressor": 1_583_986, "face_regressor": 20_496}
    assert hmr.count(body) == 661_827_096


@pytest.mark.parametrize("changes, number", [
    ({}, 26_759_936), ({"joint_embedding": "learned"}, 26_770_176),
    ({"context": "image"}, 26_750_976), ({"arm": "whole_body"}, 26_759_936),
    ({"inject": "none"}, 0),
    ({"inject": "none", "trainable": "head"}, 39_497_837),
    ({"inject": "none", "trainable": "all"}, 670_409_837),
    ({"inject": "concat", "trainable": "head"}, 39_506_797),
    ({"inject": "weighted", "trainable": "head"}, 39_497_837 + 8_960 + 3_674_115)])
def test_trainable_parameters_of_the_hand_path(changes, number):
    """The compositions that give the paper's 27M, 39M and 671M."""
    assert trainable(replace(PRESETS["paper"].hand, **changes)) == number


@pytest.mark.parametrize("changes, number", [
    ({}, 36_508_292), ({"joint_embedding": "learned"}, 36_512_388),
    ({"offset_hidden": 0}, 35_458_692), ({"offset_hidden": 2048}, 37_693_060),
    ({"joint_proj": "reuse_hand_conv", "offset_hidden": 2048}, 37_037_188),
    ({"context": "tokens"}, 36_508_292),
    ({"inject": "none", "trainable": "head"}, 30_875_416),
    ({"inject": "none", "trainable": "all"}, 661_827_096),
    ({"inject": "concat", "trainable": "head", "joint_proj": "reuse_hand_conv"}, 31_416_088),
    ({"inject": "weighted", "trainable": "head", "joint_proj": "reuse_hand_conv"},
     30_875_416 + 788_483)])
def test_trainable_parameters_of_the_body_path(changes, number):
    """The compositions that may give the paper's 31M, 37M and 662M."""
    assert trainable(replace(PRESETS["paper"].body, **changes)) == number


def test_rows_of_the_tables_have_their_parameters():
    """The counts are the printed ones when rounded to millions, or truncated as Lightning's summary
    does."""
    for row, says in adapter_rivals.PAPER_SAYS.items():
        number = trainable(adapter_rivals.baseline(row))
        if says == "671M":
            assert (number + adapter_rivals.DISCRIMINATOR) // 10**6 == 671
        elif says in ("39M",):
            assert number // 10**6 == 39  # 39.5 rounds either way
        else:
            assert f"{round(number / 1e6)}M" == says, row


def test_presets_say_what_the_paper_says():
    """128 samples per step, 10K steps, six layers, ViT-H in both experts; the defaults are the
    paper."""
    assert PRESETS["paper"] == Config()
    for preset in ("paper", "h200", "single_gpu"):
        for part in (PRESETS[preset].hand, PRESETS[preset].body):
            assert part.batch_size == 128
            assert part.steps == 10_000
            assert (part.expert.vit_dim, part.expert.vit_depth) == (1280, 32)
    assert PRESETS["paper"].body.decoder_layers == 6
    assert PRESETS["paper"].hand.expert.decoder_layers == 6
    assert len(ARMS["arm"][RIGHT]) == len(ARMS["arm"][LEFT]) == 8


def test_cpu_checkpoints_are_small():
    """Both small paths together take less than 14 MB in half precision."""
    models = [adapter_rivals.on_meta(getattr(PRESETS["cpu"], part)) for part in ("hand", "body")]
    size = sum(2 * value.numel() for model in models
               for value in model.state_dict().values())
    assert size < 14e6


def test_precision_suits_the_hardware():
    """The paper's V100 has no bf16; the presets for newer GPUs use it in all four stages."""
    for preset, precision in (("paper", "fp16"), ("h200", "bf16"), ("single_gpu", "bf16")):
        for part in (PRESETS[preset].hand, PRESETS[preset].body):
            assert part.precision == part.expert.precision == precision


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("row", BASELINES)
def test_rows_from_scratch_take_twice_the_steps(row, preset):
    """They take "double steps of other settings" in every preset; other rows keep the preset's
    steps."""
    part, changes = BASELINES[row]
    config, own = adapter_rivals.baseline(row, preset), getattr(PRESETS[preset], part)
    assert config.steps == own.steps * (2 if row.endswith("No. 2") else 1)
    assert config == replace(own, **changes, steps=config.steps)
    assert config.trainable == "all" or row not in adapter_rivals.FROM_SCRATCH


@pytest.mark.parametrize("changes, needed", [
    ({}, True), ({"inject": "concat"}, True), ({"inject": "weighted"}, True),
    ({"inject": "none"}, False), ({"context": "image"}, False), ({"arm_source": "true"}, False)])
def test_guides_are_needed_for_predicted_arms_alone(changes, needed):
    """A model without theta_b, or trained with the true one, needs no whole-body model."""
    assert replace(TINY_HAND, **{"arm_source": "found"} | changes).needs_guide == needed


@pytest.mark.parametrize("row", BASELINES)
def test_each_row_has_its_class(row):
    """build_model picks the class of every row, and a class refuses another one's config.

    So does load_checkpoint, which knows the rivals only if it is told of them.
    """
    part, changes = BASELINES[row]
    config = replace(TINY_HAND if part == "hand" else TINY_BODY, **changes)
    base = HandAdapter if part == "hand" else BodyAdapter
    model = adapter_rivals.build_model(config)
    content = {"model": model.state_dict(), "config": asdict(config)}
    assert type(adapter_rivals.load_checkpoint(content)) is type(model)
    assert isinstance(model, base) and model.keeps_expert == (config.trainable == "adapter")
    if type(model) is not base:
        with pytest.raises(ValueError, match=f"{model.DESIGN}.*adapter_rivals"):
            base(config)
    if type(model).__module__ == "tasks.adapter_rivals":
        with pytest.raises(ValueError, match="adapter_rivals"):
            hmr.load_checkpoint(content)


@pytest.mark.parametrize("bad", [
    {"inject": "some"}, {"context": "knuckles"}, {"arm": "leg"}, {"joint_embedding": "sine"},
    {"trainable": "none"}, {"missing": "nan"}, {"pose_term": "l3"}])
def test_bad_hand_configs_are_refused_by_name(bad):
    """An invalid value raises a ValueError that names its field."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        replace(TINY_HAND, **bad)


@pytest.mark.parametrize("bad", [
    {"inject": "some"}, {"context": "arm"}, {"joint_proj": "none"}, {"joint_embedding": "flat"},
    {"trainable": "none"}, {"missing": "identity"}, {"concat_init": "ones"},
    {"inject": "concat"}])
def test_bad_body_configs_are_refused_by_name(bad):
    """An invalid value of the body's config raises a ValueError that names its field."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        replace(TINY_BODY, **bad)


def test_other_bad_settings_are_refused_by_name():
    """So do invalid values of the dual path and the encoders, and unknown rows."""
    for bad in ({"guidance": "true"}, {"least_share": -0.1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            replace(TINY, **bad)
    for bad in ({"image_size": 100}, {"vit_heads": 3}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            replace(TINY_HAND.expert, **bad)
    with pytest.raises(ValueError, match="Table 9"):
        adapter_rivals.baseline("Table 9, No. 1")


def test_config_of_a_checkpoint_becomes_the_config():
    """asdict and back is the identity, also through JSON."""
    assert Config(**json.loads(json.dumps(asdict(TINY)))) == TINY
    assert hash(Config(**asdict(TINY))) == hash(TINY)


def test_shared_blocks_are_copies():
    """Blocks shared with genhmr.py are equal, letter by letter."""
    for name in ("require", "unit", "rotation_6d_to_matrix", "matrix_to_rotation_6d", "DropPath",
                 "mlp", "SelfAttention", "ViTBlock", "ViT", "conv_norm", "ResidualMapBlock",
                 "locate", "Foreign",
                 "read_checkpoint", "load_weights", "from_checkpoint", "window"):
        copied = inspect.getsource(getattr(hmr, name)).replace("EncoderConfig", "Config")
        assert copied == inspect.getsource(getattr(genhmr, name)), name


def test_joints_have_the_numbers_of_bodymodels():
    """Every list of joint numbers agrees with the names in bodymodels.JOINT_SETS."""
    names = bodymodels.JOINT_SETS["smplx76"]
    for side, word in ((RIGHT, "right"), (LEFT, "left")):
        assert [names[joint] for joint in ARMS["arm"][side]] == [
            "pelvis", "spine1", "spine2", "spine3", f"{word}_collar", f"{word}_shoulder",
            f"{word}_elbow", f"{word}_wrist"]
        assert ARMS["arm_without_wrist"][side] == ARMS["arm"][side][:-1]
        hand = [names[joint] for joint in HANDS[side]]
        assert hand == list(bodymodels.JOINT_SETS[f"{word}_hand21"])
        assert [hand[1:][knuckle] for knuckle in KNUCKLES] == [
            f"{word}_{finger}1" for finger in ("index", "middle", "ring", "pinky")]
    assert [names[joint] for joint in hmr.POSITIONED[-5:]] == [
        "left_ear", "right_ear", "left_eye", "right_eye", "nose"]
    assert len(set(hmr.POSITIONED)) == 25 and not any(
        "_hand" in names[joint] for joint in hmr.POSITIONED)
    assert hmr.MIRRORED_BODY == bodymodels.mirror_indices(names[:22])
    for part, word in ((hmr.LEFT_FINGERS, "left"), (hmr.RIGHT_FINGERS, "right")):
        assert list(names[part]) == [
            f"{word}_{name}" for name in bodymodels.JOINT_SETS["mano16"][1:]]


# ----------------------------------------------------------------------------------- rotations


def test_convention_6d_of_both_experts():
    """HaMeR's 6D is [column 0, column 1]; SMPLer-X's the same interleaved, [0, 3, 1, 4, 2, 5]."""
    matrices = rotations(20, dtype=torch.float64)
    six = hmr.matrix_to_rotation_6d(matrices)
    assert torch.equal(six, torch.cat((matrices[..., 0], matrices[..., 1]), -1))
    interleaved = six[..., [0, 3, 1, 4, 2, 5]]
    assert torch.equal(interleaved, bodymodels.rotation_6d_to_interleaved(six))
    assert torch.equal(hmr.from_interleaved(interleaved), six)
    assert torch.allclose(hmr.rotation_6d_to_matrix(hmr.from_interleaved(interleaved)), matrices)


def test_wart_three_rotations_are_crossed_along_the_last_axis():
    """Three rotations are converted like one; torch.cross without dim, as upstream has it, crosses
    a batch of exactly three along the batch."""
    six = torch.randn(3, 6, dtype=torch.float64)
    one_by_one = torch.cat([hmr.rotation_6d_to_matrix(row[None]) for row in six])
    assert torch.allclose(hmr.rotation_6d_to_matrix(six), one_by_one, atol=1e-12)


def test_axis_angles_are_those_of_bodymodels():
    """Both conversions agree with bodymodels, also at 0 and 180 degrees, where two axes are
    valid."""
    angles = torch.cat((torch.randn(50, 3).clamp(-1.8, 1.8), torch.zeros(1, 3), torch.tensor(
        [[math.pi, 0, 0], [0, math.pi - 1e-6, 0], [1e-7, 0, 0], [0.6 * math.pi, 0.8 * math.pi, 0]]
    ))).double()
    matrices = hmr.axis_angle_to_matrix(angles)
    assert torch.allclose(matrices, bodymodels.axis_angle_to_matrix(angles), atol=1e-9)
    back = hmr.matrix_to_axis_angle(matrices)
    assert back.norm(dim=-1).max() <= math.pi + 1e-9
    assert torch.allclose(bodymodels.axis_angle_to_matrix(back), matrices, atol=1e-7)
    assert torch.allclose(hmr.matrix_to_axis_angle(matrices[:50]), angles[:50], atol=1e-6)


def test_convention_mirror_is_m_r_m():
    """mirror is M R M, maps axis-angles to (x, -y, -z), and is an involution."""
    flip, matrices = torch.diag(torch.tensor([-1.0, 1, 1])), rotations(20)
    assert torch.allclose(hmr.mirror(matrices), flip @ matrices @ flip)
    assert torch.equal(hmr.mirror(hmr.mirror(matrices)), matrices)
    angles = torch.randn(20, 3)
    assert torch.allclose(hmr.mirror(hmr.axis_angle_to_matrix(angles)),
                          hmr.axis_angle_to_matrix(angles * torch.tensor([1, -1, -1])), atol=1e-5)


def test_arm_chain_is_the_global_rotation_of_the_wrist():
    """The product of theta_b's eight rotations is the wrist's rotation of forward kinematics, and
    so the hand's orientation: the leak that the header describes."""
    pose = rotations(3, 55, spread=0.7)
    world = whole_body()(torch.zeros(3, 10), pose).transforms[..., :3, :3]
    arms = hmr.arm_pose(pose)
    assert torch.allclose(hmr.chain_product(arms[:, RIGHT]), world[:, 21], atol=1e-5)
    assert torch.allclose(hmr.mirror(hmr.chain_product(arms[:, LEFT])), world[:, 20], atol=1e-5)
    batch = people()
    told = hmr.chain_product(hmr.arm_pose(batch["body_pose"]).flatten(0, 1))
    assert torch.allclose(told, batch["hand_pose"][:, :, 0].flatten(0, 1), atol=1e-5)


@pytest.mark.parametrize("arm", ARMS)
def test_arms_of_a_mirrored_body_change_places(arm):
    """theta_b of a left arm equals theta_b of the mirror image's right arm."""
    pose = rotations(2, 55)
    mirrored = bodymodels.mirror_pose(pose, whole_body().joint_names)
    assert torch.allclose(hmr.arm_pose(mirrored, arm), hmr.arm_pose(pose, arm).flip(1))


# ------------------------------------------------------------------------------------ the experts


def naive_roi_align(features: Tensor, box: list[float], cells: int) -> Tensor:
    """Mean of bilinear samples, computed one by one as Mask R-CNN describes it."""
    (x0, y0, x1, y1), (height, width) = box, features.shape[1:]
    w, h = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
    across, down = math.ceil(w / cells), math.ceil(h / cells)
    out = torch.zeros(len(features), cells, cells, dtype=features.dtype)
    for row in range(cells):
        for column in range(cells):
            for i in range(down):
                for j in range(across):
                    y = y0 + h / cells * (row + (i + 0.5) / down)
                    x = x0 + w / cells * (column + (j + 0.5) / across)
                    if not (-1 <= y <= height and -1 <= x <= width):
                        continue
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    v, u = min(int(y), height - 2), min(int(x), width - 2)
                    dy, dx = y - v, x - u
                    out[:, row, column] += ((1 - dy) * (1 - dx) * features[:, v, u]
                                            + (1 - dy) * dx * features[:, v, u + 1]
                                            + dy * (1 - dx) * features[:, v + 1, u]
                                            + dy * dx * features[:, v + 1, u + 1])
    return out / (across * down)


BOXES = [[1.3, 2.1, 6.7, 9.9], [-3.0, -2.5, 5.0, 4.0], [4.0, 4.0, 4.2, 4.1], [5.0, 6.0, 20.0, 14.0],
         [0.0, 0.0, 9.0, 11.0], [-9.0, 3.0, -4.0, 8.0]]


def test_roi_align_is_the_loop():
    """It equals a loop for boxes inside, across the border, tiny, larger than the map, and
    outside."""
    features = torch.randn(len(BOXES), 3, 11, 9, dtype=torch.float64)
    found = hmr.roi_align(features, torch.tensor(BOXES, dtype=torch.float64), 4)
    for index, box in enumerate(torch.tensor(BOXES).tolist()):
        assert torch.allclose(found[index], naive_roi_align(features[index], box, 4), atol=1e-5)
    assert not found[-1].any()


def test_roi_align_is_torchvisions():
    """It equals torchvision's, where that is installed."""
    try:
        from torchvision.ops import roi_align
    except Exception as error:  # a torchvision of another torch raises RuntimeError
        pytest.skip(f"no torchvision: {error}")
    features = torch.randn(len(BOXES), 3, 11, 9)
    boxes = torch.tensor(BOXES)
    numbered = torch.cat((torch.arange(len(boxes))[:, None], boxes), 1)
    assert torch.allclose(hmr.roi_align(features, boxes, 4),
                          roi_align(features, numbered, 4, 1.0, -1, aligned=False), atol=1e-5)


def test_roi_align_survives_any_box():
    """Any box of an untrained network gives finite values."""
    boxes = torch.tensor([[1e6, 0, -1e6, 3], [-1e6, -1e6, 1e6, 1e6]])
    assert hmr.roi_align(torch.randn(2, 3, 8, 6), boxes, 4).isfinite().all()


def test_the_weights_of_a_box_do_not_depend_on_the_others():
    """A batch has as many samples as its longest box needs, on a GPU as the longest of all."""
    low, high = torch.tensor([1.3, -3.0]), torch.tensor([6.7, 900.0])
    one, both = (hmr.roi_weights(low[:count], high[:count], 4, 11) for count in (1, 2))
    assert torch.allclose(one[0], both[0], atol=1e-6)


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


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Eq. 1 and 2, head by head, with plain matrix products."""
    out = []
    for q_h, k_h, v_h in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1),
                             strict=True):
        weights = (q_h @ k_h.mT / math.sqrt(q_h.shape[-1])).softmax(-1)
        out.append(weights @ v_h)
    return torch.cat(out, -1)


def cross(layer: hmr.CrossAttention, x: Tensor, context: Tensor) -> Tensor:
    k, v = layer.to_kv(context).chunk(2, -1)
    return layer.to_out(attention(layer.to_q(x), k, v, layer.heads))


def self_attend(layer: hmr.TokenAttention, x: Tensor) -> Tensor:
    return layer.to_out(attention(*layer.to_qkv(x).chunk(3, -1), layer.heads))


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


def test_hidden_context_is_not_seen():
    """With a mask, only the visible part of the context has an effect."""
    decoder, context = lively(hmr.Decoder(TINY_HAND.expert, 32)), torch.randn(2, 7, 32)
    seen = torch.arange(7).expand(2, 7) < 4
    assert torch.allclose(decoder(context, seen), decoder(context[:, :4]), atol=1e-5)


def test_task_tokens_have_no_position_and_come_first():
    """The blocks run on [task tokens; patches + position]."""
    encoder = lively(hmr.TaskViT(TINY_BODY.expert)).eval()
    picture = torch.rand(2, 3, 64, 48)
    tokens, patches = encoder(picture)
    assert tokens.shape == (2, 31, 32) and patches.shape == (2, 12, 32)
    x = encoder.patch_embed["proj"](picture).flatten(2).mT
    x = x + encoder.pos_embed[:, 1:] + encoder.pos_embed[:, :1]
    x = torch.cat((encoder.task_tokens.expand(2, -1, -1), x), 1)
    for block in encoder.blocks:
        x = block(x)
    assert torch.allclose(torch.cat((tokens, patches), 1), encoder.last_norm(x), atol=1e-5)


def test_encoders_see_the_middle():
    """A square's outer eighths have no effect; of a square twice as large, every second pixel
    counts."""
    for expert in (hand_adapter().expert, body_adapter().expert):
        picture = images()
        other = picture.clone()
        other[..., :8] = 0
        other[..., -8:] = 255
        large = picture.repeat_interleave(2, 2).repeat_interleave(2, 3)
        large[..., 1::2, :] = 7
        large[..., 1::2] = 7
        keys = ("hand_pose",) if isinstance(expert, HandExpert) else ("body_pose",)
        for key in keys:
            found = expert(picture)[key]
            assert torch.equal(expert(other)[key], found)
            assert torch.equal(expert(large)[key], found)
            assert not torch.equal(expert(255 - picture)[key], found)
        with pytest.raises(ValueError, match="expected"):
            expert(images(size=48))


@pytest.mark.parametrize("batch", [1, 3])
def test_rows_of_a_batch_do_not_meet(batch):
    """Samples do not affect one another, also in batches of three (see the cross product above)."""
    body, hand, pictures = body_adapter(), hand_adapter(), images(batch)
    found = body(pictures)
    arms = hmr.arm_pose(found["body_pose"])[:, RIGHT]
    hands = hand(pictures, arms)
    for row in range(batch):
        alone = body(pictures[row:row + 1])
        assert torch.allclose(alone["body_pose"][0], found["body_pose"][row], atol=1e-4)
        one = hand(pictures[row:row + 1], arms[row:row + 1])
        assert torch.allclose(one["hand_pose"][0], hands["hand_pose"][row], atol=1e-4)


def test_body_expert_says_smplx():
    """It returns 55 valid rotations, identity eyes, a positive depth, and squares twice as wide as
    the hand boxes."""
    expert = body_adapter().expert
    found = expert(images(3))
    pose = found["body_pose"]
    assert pose.shape == (3, 55, 3, 3)
    assert torch.allclose(pose @ pose.mT, torch.eye(3).expand_as(pose), atol=1e-5)
    assert torch.equal(pose[:, hmr.EYES], torch.eye(3).expand(3, 2, 3, 3))
    assert (found["translation"][:, 2] > 0).all()
    side = expert.config.focal * 2.5 / math.sqrt(0.75)
    assert side == pytest.approx(56.38, abs=5e-3) and (found["translation"][:, 2] < side).all()
    boxes = found["map_boxes"]
    assert torch.equal(boxes[..., 2], boxes[..., 3])
    assert torch.allclose(boxes[..., :2] + boxes[..., 2:] / 2, found["box_centers"][:, :2],
                          atol=1e-5)
    assert torch.allclose(boxes[..., 2], (2 * found["box_sizes"][:, :2].amax(-1)).clamp(0.5, 8))


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
    for deconvolution in net.deconv:
        if isinstance(deconvolution, nn.ConvTranspose2d):  # symmetric kernels, so maps can mirror
            deconvolution.weight.data += deconvolution.weight.data.flip(3)
    features, boxes = torch.randn(2, 32, 4, 3), torch.tensor([[[0.2, 0.4, 1, 1], [1, 2, 1.5, 1.5]]])
    boxes = boxes.expand(2, 2, 4).clone()
    mirrored = boxes.flip(1).clone()
    # columns count from cell centres, 0 to 11 in the map of twelve
    mirrored[..., 0] = 11 / 4 - mirrored[..., 0] - mirrored[..., 2]
    found, other = net(features, boxes), net(features.flip(3), mirrored)
    assert torch.allclose(found[:, RIGHT], other[:, LEFT], atol=1e-4)
    assert torch.allclose(found[:, LEFT], other[:, RIGHT], atol=1e-4)


def test_mean_hands_make_fingers_absolute():
    """hand_mean is added to the fingers' axis-angles, the left hand's in its own frame."""
    expert, mean = body_adapter().expert, 0.2 * torch.randn(2, 15, 3)
    before = expert(images())["body_pose"]
    expert.load_state_dict(expert.state_dict() | {"hand_mean": mean})
    after = expert(images())["body_pose"]
    grown = bodymodels.matrix_to_axis_angle(before[:, 25:]) + torch.cat((mean[1], mean[0]))
    assert torch.allclose(bodymodels.axis_angle_to_matrix(grown), after[:, 25:], atol=1e-4)
    assert torch.equal(before[:, :25], after[:, :25])


# ------------------------------------------------------------------------------------ hand adapter


def test_scale_zero_is_the_hand_expert():
    """With scale 0 the result is bit for bit the expert's for any arm; with scale 1 it differs."""
    model, pictures = hand_adapter(), images(3)
    arms, expert = rotations(3, 8), model.expert(pictures)
    assert same(expert, model(pictures, arms, scale=0.0))
    assert not torch.allclose(expert["hand_pose"], model(pictures, arms)["hand_pose"], atol=1e-3)


def test_decoder_is_equation_3():
    """Z_new = Z + SA + CA(Q, K, V) + scale CA(Q', K', V'), with shared norms, in every layer."""
    model, features, guide = hand_adapter(), torch.randn(2, 12, 32), torch.randn(2, 8, 32)
    x = model.decoder.query(features)
    for (first, second, third), new in zip(model.decoder.layers, model.layers, strict=True):
        own = x + self_attend(first.fn, first.norm(x))
        other = x + self_attend(new["self_attention"], first.norm(x))
        x = (own + cross(second.fn, second.norm(own), features)
             + 0.7 * cross(new["cross_attention"], second.norm(other), guide))
        x = x + third(x)
    assert torch.allclose(model.decode(features, guide, 0.7), x, atol=1e-5)


def test_adapter_starts_as_a_copy():
    """SA' and CA' start equal to SA and CA, in memory of their own."""
    expert = lively(HandExpert(TINY_HAND.expert))
    model = HandAdapter(TINY_HAND, expert)
    for (first, second, _), new in zip(model.decoder.layers, model.layers, strict=True):
        for old, copied in ((first.fn, new["self_attention"]), (second.fn, new["cross_attention"])):
            for name, value in old.state_dict().items():
                assert torch.equal(value, copied.state_dict()[name])
                assert value.data_ptr() != copied.state_dict()[name].data_ptr()
    silent = HandAdapter(replace(TINY_HAND, zero_init=True), expert).eval()
    assert same(expert.eval()(images()), silent(images(), rotations(2, 8)))


def step_of(model: nn.Module, loss: Tensor) -> None:
    """Do one step of plain gradient descent on all that is trainable."""
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


def outputs(model: nn.Module) -> Tensor:
    """A number that depends on every predicted rotation."""
    pictures = images(3)
    if isinstance(model, HandAdapter):
        found = model(pictures, rotations(3, len(ARMS[model.config.arm][0])))["hand_pose"]
    else:
        found = model(pictures)["body_pose"]
    return (found * torch.randn_like(found)).sum()


@pytest.mark.parametrize("row", list(BASELINES))
def test_only_what_is_trainable_trains(row):
    """In training mode a step changes what the row trains and nothing else, batch norm statistics
    included; gradients reach every module that it trains."""
    part, changes = BASELINES[row]
    config = replace(TINY_HAND if part == "hand" else TINY_BODY, **changes)
    model = lively(adapter_rivals.build_model(config)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    allowed = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {"adapter": "expert.", "head": ("expert.backbone.", "expert.encoder."),
                "all": "nothing"}[config.trainable]
    assert allowed == {name for name, _ in model.named_parameters()
                       if not name.startswith(expected)}
    if not allowed:
        return
    step_of(model, outputs(model))
    for name, value in model.state_dict().items():
        if name.startswith(expected):
            assert torch.equal(value, before[name]), name
    moved = {name for name in allowed if not torch.equal(model.state_dict()[name], before[name])}
    adapter = {name for name in allowed if not name.startswith("expert.")}
    assert moved and (not adapter or moved & adapter)
    for module in model.frozen():
        assert not any(each.training for each in module.modules())
    assert model.training


@pytest.mark.parametrize("row", BASELINES)
def test_all_that_trains_gets_a_gradient(row):
    """No row has trainable parameters without a gradient, at which DDP would stop."""
    part, changes = BASELINES[row]
    tiny = TINY_HAND if part == "hand" else TINY_BODY
    model, batch = lively(adapter_rivals.build_model(replace(tiny, **changes))).train(), people()
    if part == "hand":
        samples = hmr.hand_samples(batch, model.config.arm)
        samples |= {"vertices": torch.zeros(4, 778, 3), "betas": torch.zeros(4, 10)}
        prediction = model(samples["images"], samples["arm"], samples["arm_valid"])
        terms = hmr.hand_losses(prediction, samples, free_hand(), model.config)
        loss = hmr.hand_total_loss(terms, model.config)
    else:
        prediction = model(batch["image"], hmr.true_knuckles(batch), batch["hand_valid"])
        terms = hmr.body_losses(prediction, batch, whole_body(), model.expert, model.config)
        loss = hmr.body_total_loss(terms, model.config)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if trained:
        loss.backward()
    assert not [name for name, value in trained.items() if value.grad is None]


@pytest.mark.parametrize("row", BASELINES)
def test_scale_zero_is_the_expert_inside_or_refused(row):
    """With scale 0 a row is its expert bit for bit; concat and weighted accept only 1, and say
    so."""
    part, changes = BASELINES[row]
    model = hand_adapter(**changes) if part == "hand" else body_adapter(**changes)
    inputs = (images(), rotations(2, len(ARMS[model.config.arm][0]))) if part == "hand" else (
        images(), 64 * torch.rand(2, 2, 4, 2))
    if model.config.inject in ("concat", "weighted"):
        with pytest.raises(ValueError, match=f"inject={model.config.inject} has none"):
            model(*inputs, scale=0.0)
    else:
        assert same(model.expert(images()), model(*inputs, scale=0.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("part", ["hand", "body"])
def test_half_precision_keeps_losses_and_gradients_finite(part, dtype):
    """Under autocast, in both precisions of the GPU presets, poses are rotations in full precision
    near those without it."""
    batch = people()
    model = (hand_adapter() if part == "hand" else body_adapter()).train()
    samples = hmr.hand_samples(batch)
    inputs = ((samples["images"], samples["arm"]) if part == "hand" else
              (batch["image"], hmr.true_knuckles(batch)))
    key = "hand_pose" if part == "hand" else "body_pose"
    with torch.autocast("cpu", dtype):
        pose = model(*inputs)[key]
    assert pose.dtype == torch.float32
    assert torch.allclose(pose @ pose.mT, torch.eye(3).expand_as(pose), atol=1e-4)
    assert (pose - model(*inputs)[key]).abs().mean() < 0.05
    (pose * torch.randn_like(pose)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters()
               if parameter.requires_grad)


def test_queries_and_keys_of_a_single_token_get_no_gradient():
    """A softmax over one token is 1, so two thirds of SA' have no gradient: 6 x 2 x 1024 x 512
    weights in the paper's size."""
    for model in (hand_adapter().train(), body_adapter().train()):
        outputs(model).backward()
        for layer in (model.layers if isinstance(model, HandAdapter) else model.decoder.layers):
            attend = (layer["self_attention"] if isinstance(model, HandAdapter) else layer[0].fn)
            q, k, v = attend.to_qkv.weight.grad.chunk(3)
            assert max(q.abs().max(), k.abs().max()) < 1e-5 * v.abs().max()
            assert v.abs().max() > 0
    inert = 6 * 2 * 512 * 1024
    assert inert == 6_291_456


def test_order_of_joints_matters_with_an_embedding_alone():
    """With a shared linear layer Eq. 2 ignores the order of the joints; with an embedding it does
    not."""
    pictures, arms = images(), rotations(2, 8)
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    for embedding, blind in (("none", True), ("learned", False)):
        model = hand_adapter(joint_embedding=embedding)
        first, second = (model(pictures, each)["hand_pose"] for each in (arms, arms[:, order]))
        assert torch.allclose(first, second, atol=1e-5) == blind


def test_unknown_arms():
    """An unknown arm has no effect; zeros differ from every rotation; "mask" gives the expert's
    result."""
    pictures, valid = images(), torch.tensor([1.0, 0.0])
    arms, others = rotations(2, 8), rotations(2, 8)
    for missing in ("zeros", "identity", "mask"):
        model = hand_adapter(missing=missing)
        first, second = (model(pictures, each, valid)["hand_pose"] for each in (arms, others))
        assert torch.equal(first[1], second[1])
        assert not torch.allclose(first[0], second[0], atol=1e-4)
        nothing = model(pictures)["hand_pose"]
        assert torch.allclose(nothing[1], first[1], atol=1e-6)
        rest = model(pictures, torch.eye(3).expand(2, 8, 3, 3))["hand_pose"]
        assert torch.allclose(nothing, rest, atol=1e-6) == (missing == "identity")
        expert = model.expert(pictures)["hand_pose"]
        assert torch.equal(nothing, expert) == (missing == "mask")
    with pytest.raises(ValueError, match="arm of shape"):
        model(pictures, rotations(2, 7))


def test_zeroed_arms_leave_the_bias():
    """The features of an unknown arm are the projection's bias, for every joint."""
    arm = hand_adapter().arm
    features = arm(rotations(2, 8), torch.zeros(2))
    assert torch.allclose(features, arm.projection.bias.expand(2, 8, 32))


def test_noise_on_arms_is_for_training():
    """arm_noise rotates the arms in training mode only, by angles of its size."""
    model, pictures, arms = hand_adapter(arm_noise=0.3), images(), rotations(2, 8)
    assert same(model(pictures, arms), model(pictures, arms))
    heard = []
    model.arm.register_forward_hook(lambda module, given, _: heard.append(given[0]))
    model.train()
    for _ in range(100):
        model(pictures, arms)
    error = bodymodels.matrix_to_axis_angle(arms.mT @ torch.stack(heard))
    assert error.std().item() == pytest.approx(0.3, rel=0.1)


def test_dropped_arms_are_unknown_ones():
    """arm_drop hides its share of the arms in training; unknown arms stay unknown."""
    model, arms = hand_adapter(arm_drop=0.3), rotations(400, 8)
    valid = torch.arange(400) % 2
    assert torch.equal(model.prepare_arm(arms, valid, 400)[1], valid)
    same_arms, left = model.train().prepare_arm(arms, valid, 400)
    assert torch.equal(same_arms, arms)
    assert not left[valid == 0].any() and 0.6 < left[valid == 1].float().mean() < 0.8
    features, unknown = model.arm(arms, left), model.arm(*model.prepare_arm(None, None, 400))
    assert torch.equal(features[left == 0], unknown[left == 0])
    assert (features[left == 1] != unknown[left == 1]).any((1, 2)).all()


def test_image_as_context_ignores_the_arm():
    """Table 3, No. 5 uses the image's own features in place of the arm's."""
    model = hand_adapter(context="image")
    assert not hasattr(model, "arm")
    assert same(model(images()), model(images(), rotations(2, 8)))


# ------------------------------------------------------------------------------------ body adapter


def test_scale_zero_is_the_body_expert():
    """With scale 0 the result is bit for bit the expert's; with scale 1 it differs; a zero-
    initialised adapter starts at the expert."""
    model, pictures = body_adapter(), images(3)
    expert, found = model.expert(pictures), model(pictures, scale=0.0)
    assert same(expert, found)
    refined = model(pictures)
    assert not torch.allclose(expert["body_pose"], refined["body_pose"], atol=1e-3)
    assert torch.equal(expert["body_pose"][:, 22:], refined["body_pose"][:, 22:])
    assert torch.equal(refined["initial_pose"], expert["body_pose"][:, :22])
    fresh = BodyAdapter(replace(TINY_BODY, zero_init=True), model.expert).eval()
    assert same(expert, fresh(pictures))


def test_offset_is_added_in_6d():
    """Eq. 4: theta-hat = theta_0 + scale FFN(CA(...)), in SMPLer-X's 6D."""
    model, pictures = body_adapter(), images()
    seen = model.expert.features(pictures)
    context, _ = model.knuckle_features(seen, 64, None, None)
    offset = model.offset(model.decoder(context))[:, 0].unflatten(1, (22, 6))
    pose_6d = model.expert.initial_pose(seen) + 0.5 * offset
    found = model(pictures, scale=0.5)
    assert torch.allclose(found["pose_6d"], pose_6d, atol=1e-5)
    assert torch.allclose(found["body_pose"][:, :22], bodymodels.rotation_6d_to_matrix(
        bodymodels.rotation_6d_from_interleaved(pose_6d)), atol=1e-4)


@pytest.mark.parametrize("proj", ["conv", "reuse_hand_conv"])
def test_knuckles_go_through_the_box_and_its_mirror(proj):
    """True knuckles at the predicted positions, left and right, sample the predicted features."""
    model, pictures = body_adapter(joint_proj=proj), images(3)
    seen = model.expert.features(pictures)
    seen = seen._replace(hand_maps=torch.randn_like(seen.hand_maps),
                         hand_joints=3 * torch.rand_like(seen.hand_joints))
    at = seen.hand_joints[:, :, KNUCKLES, :2].clone()
    at[:, LEFT, :, 0] = 3 - at[:, LEFT, :, 0]  # the left hand's map is mirrored
    cells = seen.hand_boxes[:, :, None, :2] + at * seen.hand_boxes[:, :, None, 2:] / 4
    pixels = 16 * (cells + torch.tensor([0.5, 0]))
    found, _ = model.knuckle_features(seen, 64, pixels, None)
    assert torch.allclose(found, model.knuckle_features(seen, 64, None, None)[0], atol=1e-3)
    assert not torch.allclose(found[:, :4], found[:, 4:], atol=1e-2)


def test_unseen_knuckles_say_nothing():
    """Knuckles outside the box or of an unseen hand sample zeros; with "mask" they get no
    attention."""
    pictures = images()
    batch = people()
    for missing in ("zeros", "mask"):
        model = body_adapter(missing=missing)
        seen = model.expert.features(pictures)
        valid = torch.tensor([[1.0, 0], [0, 0]])
        features, visible = model.knuckle_features(seen, 64, None, valid)
        assert features[0, :4].any() and not features[0, 4:].any() and not features[1].any()
        if missing == "mask":
            assert visible[0].tolist() == [True] * 4 + [False] * 4 and visible[1].all()
        else:
            assert visible is None
        assert model(pictures, None, valid)["body_pose"].isfinite().all()
        far = hmr.true_knuckles(batch) + 1e4
        far[0, 0, 0] = math.nan
        features, _ = model.knuckle_features(seen, 64, far, None)
        assert not features.any()


def test_the_body_cannot_tell_hands_without_an_embedding():
    """Eq. 4 does not depend on the order of the eight knuckles, even if the hands are exchanged."""
    order = torch.tensor([4, 5, 6, 7, 3, 2, 1, 0])
    features = torch.randn(2, 8, 8)
    model = body_adapter()
    assert torch.allclose(model.decoder(features), model.decoder(features[:, order]), atol=1e-5)
    told = body_adapter(joint_embedding="learned").joint_embedding
    first, second = model.decoder(features + told), model.decoder(features[:, order] + told)
    assert not torch.allclose(first, second, atol=1e-4)


def test_zero_padded_concatenation_keeps_the_expert():
    """A zero-padded regressor gives the same output; one with random weights does not."""
    expert, pictures = lively(BodyExpert(TINY_BODY.expert)).eval(), images()
    before = expert(pictures)["body_pose"]
    changes = dict(inject="concat", trainable="head")
    for init, kept in (("zero_pad", True), ("random", False)):
        config = replace(TINY_BODY, **changes, concat_init=init)
        model = adapter_rivals.build_model(config, expert).eval()
        assert torch.allclose(model(pictures)["body_pose"], before, atol=1e-5) == kept
        assert expert.body_regressor.root_pose_out[0].in_features == 25 * 11 + 64
        expert = lively(BodyExpert(TINY_BODY.expert)).eval()


def test_moderator_weighs():
    """The weights of the two features are positive, sum to 1 and follow the temperature."""
    moderator = lively(adapter_rivals.Moderator(4, 8))
    own, other = torch.zeros(2, 5, 4), torch.ones(2, 1, 4)
    with torch.no_grad():
        moderator.temperature.fill_(1.0)
        weights = moderator.net(torch.cat((own, other.expand_as(own)), -1)).softmax(-1)
        assert torch.allclose(moderator(own, other), weights[..., 1:].expand(2, 5, 4))
        moderator.temperature.zero_()
        assert torch.allclose(moderator(own, other), torch.full((2, 5, 4), 0.5))


# ------------------------------------------------------------------------------------------ losses


def free_hand_truth() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A prediction, and samples that it fits exactly."""
    hand, focal = free_hand(), TINY_HAND.expert.focal
    pose, betas = rotations(4, 16, spread=0.3), 0.5 * torch.randn(4, 10)
    camera = torch.tensor([[6.0, 0.0, 0.1]]).expand(4, 3)
    vertices = hand(betas, pose).vertices
    joints = torch.einsum("jv,bvc->bjc", hand.keypoint_regressor, vertices)
    translation = hmr.hand_translation(camera, focal)
    return {"hand_pose": pose, "betas": betas, "camera": camera}, {
        "pose": pose, "betas": betas, "joints": joints + 3.0, "vertices": vertices + 3.0,
        "keypoints_2d": hmr.project_to_crop(joints, translation, focal), "valid": torch.ones(4)}


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
    """Invalid hands may be NaN; missing vertices and betas give a loss of 0."""
    prediction, samples = free_hand_truth()
    samples["joints"] = samples["joints"] + 0.1 * torch.randn(4, 21, 3)
    full = hmr.hand_losses(prediction, samples, free_hand(), TINY_HAND)
    half = {name: value.clone() for name, value in samples.items()}
    for name in half:
        half[name][2:] = math.nan if name != "valid" else 0.0
    found = hmr.hand_losses(prediction, half, free_hand(), TINY_HAND)
    assert all(value.isfinite() for value in found.values())
    first = hmr.hand_losses({name: value[:2] for name, value in prediction.items()},
                            {name: value[:2] for name, value in samples.items()}, free_hand(),
                            TINY_HAND)
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
    without = {name: value for name, value in samples.items() if name != "betas"}
    terms = hmr.hand_losses(prediction, without, free_hand(), config)
    assert terms["betas_prior"].item() == pytest.approx(squares.mean().item(), rel=1e-5)
    rest = {name: value for name, value in terms.items() if name != "betas_prior"}
    assert (hmr.hand_total_loss(terms, config) - hmr.hand_total_loss(rest, config)).item() == (
        pytest.approx(0.5 * squares.mean().item(), rel=1e-3))


def test_equation_6_of_matrices_is_one_loss():
    """1 - cos = ||difference||^2 / 6; with L1 the two terms differ."""
    first, second = rotations(5, 16, dtype=torch.float64), rotations(5, 16, dtype=torch.float64)
    square, cosine = hmr.pose_distance(first, second, "l2sq")
    assert torch.allclose(cosine, square / 6)
    absolute, _ = hmr.pose_distance(first, second, "l1")
    assert torch.allclose(absolute, (first - second).abs().sum((-1, -2)))
    prediction, samples = free_hand_truth()
    samples["pose"] = rotations(4, 16)
    terms = hmr.hand_losses(prediction, samples, free_hand(), TINY_HAND)
    square, cosine = hmr.pose_distance(prediction["hand_pose"], samples["pose"], "l2sq")
    assert torch.allclose(terms["pose"], (square.sum(1) + cosine.mean(1)).mean())


def body_truth() -> tuple[dict[str, Tensor], dict[str, Tensor], BodyExpert]:
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
    """With all flags 0 every term is 0, whatever the labels are; each flag has an effect on its own
    term."""
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
    wrist = batch["keypoints_3d"][:, torch.tensor(HANDS)[:, :1], 2]
    depth = batch["keypoints_3d"][:, torch.tensor(HANDS)[:, 1:], 2] - wrist
    assert torch.allclose(hands[..., 2], 2 + depth / 0.15 * 2, atol=1e-4)
    extent = hands[..., :2].amax(2) - hands[..., :2].amin(2)
    assert extent.max() < 2 + 1e-4  # of 4 cells, less the wrist
    right_to_left = batch["keypoints_2d"][:, torch.tensor(HANDS)[LEFT, 1:], 0]
    assert torch.equal(hands[:, LEFT, :, 0].argsort(1, descending=True), right_to_left.argsort(1))


def test_frozen_terms_have_no_gradient():
    """L_img and L_beta depend on the frozen expert alone, so Eq. 7 is trained without them."""
    model, batch = body_adapter().train(), people()
    found = model(batch["image"], hmr.true_knuckles(batch), batch["hand_valid"])
    terms = hmr.body_losses(found, batch, whole_body(), model.expert, model.config)
    for name in ("keypoints_img", "betas", "expression", "boxes"):
        assert not terms[name].requires_grad, name
    for name in ("keypoints_proj", "keypoints_3d", "pose"):
        assert terms[name].requires_grad, name
    config = model.config
    expected = (config.weight_keypoints_2d * terms["keypoints_proj"]
                + config.weight_keypoints_3d * terms["keypoints_3d"]
                + config.weight_pose * terms["pose"])
    assert torch.allclose(hmr.body_total_loss(terms, config), expected)
    whole = replace(config, trainable="head")
    assert hmr.body_total_loss(terms, whole) > expected


def test_total_losses_are_weighted_sums():
    """Eq. 5 and Eq. 7 with their default weights, and all of the expert's terms."""
    terms = {name: torch.tensor(float(n)) for n, name in enumerate(
        ("keypoints_2d", "keypoints_3d", "vertices", "pose", "betas"), 1)}
    assert hmr.hand_total_loss(terms, HandConfig()).item() == pytest.approx(
        0.01 + 0.05 * 2 + 0.05 * 21 / 778 * 3 + 0.001 * 4 + 0.0005 * 5)
    terms = {name: torch.tensor(float(n)) for n, name in enumerate(
        ("keypoints_img", "keypoints_proj", "keypoints_3d", "pose", "betas", "expression",
         "boxes"), 1)}
    assert hmr.body_total_loss(terms, BodyExpertConfig()).item() == pytest.approx(
        1 + 2 + 300 + 40 + 5 + 6 + 7)
    assert hmr.body_total_loss(terms, BodyConfig()).item() == pytest.approx(2 + 300 + 40)


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


def test_parameter_groups():
    """Matrices decay; biases, norms, positions and embeddings do not; frozen parameters are left
    out."""
    model = body_adapter(joint_embedding="learned")
    decayed, spared = (group["params"] for group in hmr.parameter_groups(model, 0.1))
    numbers = sum(parameter.numel() for parameter in [*decayed, *spared])
    assert numbers == hmr.count(model, True) < hmr.count(model)
    identities = {id(parameter) for parameter in spared}
    assert id(model.joint_embedding) in identities
    assert id(model.decoder.pos_embedding) in identities
    assert all(parameter.ndim >= 2 for parameter in decayed)


@pytest.mark.parametrize("part", ["hand", "body"])
def test_an_expert_out_of_an_adapter_can_be_trained(part):
    """An expert from an adapter is frozen there; a new rival trains as much of it as of a new
    expert."""
    kind, config, load = {"hand": (HandAdapter, TINY_HAND, hmr.load_hand_expert),
                          "body": (BodyAdapter, TINY_BODY, hmr.load_body_expert)}[part]
    old = kind(config)
    assert not any(parameter.requires_grad for parameter in old.expert.parameters())
    rival = replace(config, inject="concat", trainable="head")
    fresh, around = adapter_rivals.build_model(rival), adapter_rivals.build_model(rival, old.expert)
    assert hmr.count(around, True) == hmr.count(fresh, True)
    content = {"model": kind(config).state_dict(), "config": asdict(config),
               "name": f"hmr_adapter-{part}"}
    assert all(parameter.requires_grad for parameter in load(content).parameters())


STAGES = {"hand_expert": HandExpert, "hand": HandAdapter, "body_expert": BodyExpert,
          "body": BodyAdapter}


@pytest.mark.parametrize("stage", STAGES)
def test_overfits_one_batch(stage):
    """Each of the four stages can learn a batch."""
    config = {"hand_expert": TINY_HAND.expert, "hand": TINY_HAND,
              "body_expert": TINY_BODY.expert, "body": replace(TINY_BODY, zero_init=True)}[stage]
    model, batch = STAGES[stage](config).train(), people()
    if stage == "hand":  # an expert whose readouts are near zero could not be moved
        nn.init.normal_(model.expert.mano_head.decpose.weight, std=0.3)
    samples = hmr.hand_samples(batch)
    optimizer = torch.optim.AdamW(hmr.parameter_groups(model, 0.0), lr=3e-3)
    history = []
    for _ in range(40 if "hand" in stage else 80):
        if "hand" in stage:
            extra = (samples["arm"], samples["arm_valid"]) if stage == "hand" else ()
            terms = hmr.hand_losses(model(samples["images"], *extra), samples, free_hand(), config)
            loss = hmr.hand_total_loss(terms, config)
        else:
            extra = ((hmr.true_knuckles(batch), batch["hand_valid"]) if stage == "body" else ())
            terms = hmr.body_losses(model(batch["image"], *extra), batch, whole_body(),
                                    getattr(model, "expert", model), config)
            loss = hmr.body_total_loss(terms, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    most = 0.85 if stage == "body" else 0.75  # the offset alone moves no shape, face or box
    assert min(history[-5:]) < most * history[0], history[::10]


# --------------------------------------------------------------------------------------- dual path


@pytest.mark.parametrize("wrist", ["ik", "twist"])
def test_merged_wrist_has_the_orientation_of_the_hand(wrist):
    """Forward kinematics of the merged body gives both wrists the hand network's orientation."""
    body_pose, hand_pose = rotations(4, 55, spread=0.7), rotations(4, 2, 16)
    pose = hmr.merge(body_pose, hand_pose, wrist=wrist)
    world = whole_body()(torch.zeros(4, 10), pose).transforms[..., :3, :3]
    assert torch.allclose(world[:, 21], hand_pose[:, RIGHT, 0], atol=1e-5)
    assert torch.allclose(world[:, 20], bodymodels.mirror_matrix(hand_pose[:, LEFT, 0]), atol=1e-5)
    assert torch.equal(pose[:, hmr.RIGHT_FINGERS], hand_pose[:, RIGHT, 1:])
    assert torch.equal(pose[:, hmr.LEFT_FINGERS], bodymodels.mirror_matrix(hand_pose[:, LEFT, 1:]))
    elbows = [18, 19] if wrist == "twist" else []
    untouched = [joint for joint in range(25) if joint not in (20, 21, *elbows)]
    assert torch.equal(pose[:, untouched], body_pose[:, untouched])


def test_merge_of_the_truth_is_the_truth():
    """A body merged with its own hands, as data.py has them, is that body."""
    batch = people()
    pose = hmr.merge(batch["body_pose"], batch["hand_pose"])
    assert torch.allclose(pose, batch["body_pose"], atol=1e-5)


def test_merge_keeps_what_it_is_told_to():
    """Invalid hands keep fingers, wrists and elbows."""
    body_pose, hand_pose = rotations(2, 55), rotations(2, 2, 16)
    kept = hmr.merge(body_pose, hand_pose)
    assert torch.equal(kept[:, :20], body_pose[:, :20])
    assert torch.equal(kept[:, hmr.RIGHT_FINGERS], hand_pose[:, RIGHT, 1:])
    valid = torch.tensor([[0.0, 1], [0, 0]])
    part = hmr.merge(body_pose, hand_pose, valid, wrist="twist")
    whole = hmr.merge(body_pose, hand_pose, wrist="twist")
    assert torch.equal(part[1], body_pose[1])
    assert torch.equal(part[0, [21, 19]], body_pose[0, [21, 19]])
    assert torch.equal(part[0, [20, 18]], whole[0, [20, 18]])


def test_twist_beyond_the_limit_goes_to_the_elbow():
    """The wrist keeps at most 72 degrees of twist about the forearm; smaller twists stay."""
    axis = torch.zeros(5, 3)
    axis[:, 0] = torch.tensor([0.5, 1.2, 2.0, -2.9, math.pi])
    wrist, elbow, most = hmr.axis_angle_to_matrix(axis), rotations(5), 0.4 * math.pi
    new_elbow, new_wrist = hmr.share_twist(elbow, wrist, most)
    kept = bodymodels.matrix_to_axis_angle(new_wrist)[:, 0]
    assert torch.allclose(kept, axis[:, 0].clamp(-most, most), atol=1e-4)
    assert torch.allclose(new_elbow @ new_wrist, elbow @ wrist, atol=1e-5)
    assert torch.allclose(new_elbow[:2], elbow[:2], atol=1e-6)


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


def tiny_paths(**changes) -> HMRAdapter:
    config = replace(TINY, **changes)
    return HMRAdapter(config, hand_adapter(), body_adapter()).eval()


def test_dual_path_joins_both_experts():
    """With both scales 0 it merges the body expert's body and the hand expert's hands."""
    model, pictures, hands = tiny_paths(), images(3), images(6, seed=7).unflatten(0, (3, 2))
    found = model(pictures, hands, body_scale=0.0, hand_scale=0.0)
    body = model.body.expert(pictures)
    hand_pose = model.hand.expert(hands.flatten(0, 1))["hand_pose"].unflatten(0, (3, 2))
    assert torch.equal(found["body_path"], body["body_pose"])
    assert torch.equal(found["hand_pose"], hand_pose)
    assert torch.equal(found["body_pose"], hmr.merge(body["body_pose"], hand_pose))
    ours = model(pictures, hands)
    assert not torch.allclose(ours["hand_pose"], found["hand_pose"], atol=1e-3)


def test_hands_hear_the_refined_body_or_the_initial_one():
    """`guidance` chooses the body pose whose arms the hand path gets."""
    pictures, hands = images(2), images(4, seed=7)
    for guidance, key in (("refined", "body_path"), ("initial", "initial_pose")):
        model = tiny_paths(guidance=guidance)
        found = model(pictures, hands.unflatten(0, (2, 2)))
        arms = hmr.arm_pose(found[key]).flatten(0, 1)
        expected = model.hand(hands, arms)["hand_pose"].unflatten(0, (2, 2))
        assert torch.allclose(found["hand_pose"], expected, atol=1e-6)


def test_hands_are_cut_out_where_the_body_sees_them():
    """By default hands are cut out at the predicted boxes."""
    model, pictures = tiny_paths(), images(2)
    found = model(pictures)
    crops = hmr.crop_hands(pictures, found["tight_boxes"], 64)
    assert same(found, model(pictures, crops))


def test_hands_that_are_not_valid_keep_the_body_path():
    """An invalid hand keeps its pose of the body path, with predicted boxes and with given
    crops."""
    model, pictures, valid = tiny_paths(), images(3), torch.tensor([[1.0, 1], [0, 0], [1, 0]])
    whole = model(pictures)
    for hand_images in (None, model.crop_hands(pictures, whole)):
        found = model(pictures, hand_images, valid)
        assert torch.equal(found["body_pose"][0], whole["body_pose"][0])
        assert torch.equal(found["body_pose"][1], whole["body_path"][1])
        assert torch.equal(found["body_pose"][2], hmr.merge(
            whole["body_path"], whole["hand_pose"], valid)[2])


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)


def test_predict_projects_where_the_crop_did():
    """The picture's camera projects the mesh to the same place as the crop's, and the returned
    parameters reproduce the mesh."""
    model, body = tiny_paths(), bodymodels.load_model("wholebody")
    picture = noise()
    found = hmr.predict(model, picture, body, box=(30, 10, 40, 60))
    assert found["vertices"].shape == (10475, 3) and found["joints"].shape == (55, 3)
    side = 1.25 * 60
    assert np.allclose(found["box"], [50 - side / 2, 40 - side / 2, side, side])
    pixels = found["joints"] @ found["K"].T
    joints = torch.tensor(found["joints"])[None]
    in_crop = hmr.project_to_crop(joints, torch.zeros(1, 3), 5000 / 256)[0]
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
    crop = hmr.cut_square(path, picture, np.array([x + side / 2, y + side / 2]), side, size)
    with torch.no_grad():
        expected = path(crop)
    assert np.allclose(found["rotations"], expected["body_pose"][0], atol=1e-4)
    in_crop = torch.tensor((found["keypoints_2d"] - (x, y)) * (size / side))
    assert torch.allclose(path.expert.to_cells(in_crop, size).float(),
                          expected["joints"][0, :, :2], atol=1e-3)


@pytest.mark.parametrize("box", [None, (30, 10, 40, 60)])
def test_predicted_left_hands_are_mirrored_right_hands(box):
    """The mirrored picture gives the mirrored mesh, before the mirrored camera."""
    path, picture = hand_adapter(), noise()
    right = hmr.predict_hand(path, picture, free_hand(), box=box)
    flipped = box and (120 - box[0] - box[2], *box[1:])
    left = hmr.predict_hand(path, picture[:, ::-1], free_hand(), box=flipped, side="left")
    for name in ("vertices", "joints", "transl"):
        assert np.allclose(left[name], right[name] * (-1, 1, 1), atol=1e-4)
    assert np.isclose(left["K"][0, 2], 120 - right["K"][0, 2]) and right["vertices"][:, 2].min() > 0
    assert np.allclose(bodymodels.mirror_matrix(torch.tensor(left["rotations"])),
                       right["rotations"], atol=1e-4)
    if box:  # twice the box, grown to 3:4
        assert np.allclose(right["box"], (50 - 60, 40 - 60, 120, 120))
    with pytest.raises(ValueError, match="right or left"):
        hmr.predict_hand(path, picture, free_hand(), side="both")


def test_mean_hands_come_off_for_smplx_layers():
    """A layer with flat_hand_mean=False adds the mean hand that smplx_parameters subtracts."""
    pose, mean = rotations(2, 55, spread=0.3), 0.1 * torch.randn(2, 15, 3)
    flat, relative = hmr.smplx_parameters(pose), hmr.smplx_parameters(pose, mean)
    for side, name in ((RIGHT, "right_hand_pose"), (LEFT, "left_hand_pose")):
        assert torch.allclose(relative[name] + mean[side].flatten(), flat[name], atol=1e-6)
    assert torch.equal(relative["body_pose"], flat["body_pose"])
    back = bodymodels.axis_angle_to_matrix(flat["right_hand_pose"].unflatten(1, (15, 3)))
    assert torch.allclose(back, pose[:, hmr.RIGHT_FINGERS], atol=1e-5)


def test_bad_input_is_refused():
    """predict refuses training mode, other arrays, and boxes outside the picture."""
    model, picture = tiny_paths(), np.zeros((20, 20, 3), np.uint8)
    for bad in (picture[..., 0], picture / 255, picture[:0]):
        with pytest.raises(ValueError, match="expected"):
            hmr.predict(model, bad, whole_body())
    for box in ((30, 0, 5, 5), (0, 0, -5, 5), (0, 0, math.nan, 1), (1, 2)):
        with pytest.raises(ValueError, match="box"):
            hmr.predict(model, picture, whole_body(), box=box)
    with pytest.raises(ValueError, match="training mode"):
        hmr.predict(model.train(), picture, whole_body())


# ------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_return_the_model(stage, tmp_path):
    """Each of the four models loads from a file with the same weights, config and outputs."""
    config = {"hand_expert": TINY_HAND.expert, "hand": TINY_HAND, "body_expert": TINY_BODY.expert,
              "body": TINY_BODY}[stage]
    model = lively(STAGES[stage](config)).eval()
    torch.save({"model": model.state_dict(), "config": asdict(config)}, tmp_path / "one.pt")
    loaded = hmr.load_checkpoint(tmp_path / "one.pt")
    assert type(loaded) is type(model) and loaded.config == config and not loaded.training
    assert same(model(images()), loaded(images()))
    load_expert, other = hmr.load_hand_expert, hmr.load_body_expert
    if "body" in stage:
        load_expert, other = other, load_expert
    expert = load_expert(tmp_path / "one.pt")
    assert same(getattr(model, "expert", model)(images()), expert(images()))
    with pytest.raises(ValueError, match="Expert"):
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
        expert = hmr.load_hand_expert({"state_dict": state, "hyper_parameters": {}})
    assert hmr.count(expert) == 670_409_837 and not expert.training
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
        expert = hmr.load_body_expert({"epoch": 9, "network": state, "optimizer": {}})
    assert hmr.count(expert) == 661_827_096
    said = capsys.readouterr().out
    assert "smplx_layer" in said and "hand_mean" in said


def test_differences_are_loud(capsys):
    """Missing, unexpected and misshapen weights raise, or are printed and the rest is loaded."""
    with torch.device("meta"):
        state = fake_release(HandExpert, HandExpertConfig())
        del state["mano_head.decpose.bias"]
        state["mano_head.decshape.weight"] = torch.zeros(11, 1024)
        state["mano_head.new.weight"] = torch.zeros(1)
        with pytest.raises(ValueError, match="decpose.*new.*decshape"):
            hmr.load_hand_expert({"state_dict": state})
        hmr.load_hand_expert({"state_dict": state}, strict=False)
    said = capsys.readouterr().out
    assert "loaded in part" in said and "decpose" in said and "decshape" in said and "new" in said


def test_bad_checkpoints_are_refused(tmp_path):
    """No file, no checkpoint, another model's config: one line says what was expected."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        hmr.load_checkpoint(tmp_path / "nowhere.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        hmr.load_checkpoint(tmp_path / "text.pt")
    with pytest.raises(ValueError, match="load_hand_expert"):
        hmr.load_checkpoint({"state_dict": {"mano_head.decpose.weight": torch.zeros(1)}})
    with pytest.raises(ValueError, match="config"):
        hmr.load_checkpoint({"model": {"mano_head.x": torch.zeros(1)}, "config": {"colour": 1}})
    for load in (hmr.load_hand_expert, hmr.load_body_expert):
        with pytest.raises(ValueError, match="expected"):
            load({"state_dict": {"fc.weight": torch.zeros(1)}})


# ------------------------------------------------------------------------- file and command line


def test_file_alone_imports_builds_and_runs(tmp_path):
    """Copied into an empty folder the file needs only torch and numpy."""
    shutil.copy(hmr.__file__, tmp_path)
    code = f"""
import sys; sys.path.insert(0, ".")
import torch, hmr_adapter as hmr
hand = hmr.HandConfig(expert=hmr.HandExpertConfig(**{ENCODER}, **{DECODER}))
body = hmr.BodyConfig(expert=hmr.BodyExpertConfig(
    **{ENCODER}, depth_bins=4, hand_cells=4, box_dim=8, joint_dim=8), **{DECODER})
model = hmr.HMRAdapter(hmr.Config(hand, body)).eval()
found = model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
assert found["body_pose"].shape == (2, 55, 3, 3) and found["body_pose"].isfinite().all()
foreign = {{"bodymodels", "data", "metrics", "train", "matplotlib", "torchvision", "smplx"}}
assert not foreign & set(sys.modules), foreign & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True,
                            text=True, timeout=600)
    assert result.returncode == 0, result.stderr


def test_summary_is_json_and_text(capsys):
    """--summary prints every part, and the paper's numbers beside ours."""
    assert hmr.main(["--summary", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    paper = told["parameters"]["paper"]
    assert paper["hand adapter"] == {"all": 26_759_936, "trainable": 26_759_936}
    assert paper["body adapter"]["trainable"] == 36_508_292
    assert paper["hand expert"] == {"all": 670_409_837, "trainable": 0}
    for path in ("hand", "body"):
        for part in ("expert", "adapter"):
            pieces = [both["all"] for name, both in paper.items()
                      if name.startswith(f"{path} {part}: ")]
            assert sum(pieces) == paper[f"{path} {part}"]["all"]
    assert told["rows"]["Table 4, No. 3"] == {"trainable": 30_875_416, "paper": "31M"}
    assert hmr.main(["--summary"]) == 0
    text = capsys.readouterr().out
    assert all(number in text for number in (
        "26,759,936", "36,508,292", "661,827,096", "671M", "662M", "39M", "37M", "31M", "27M"))


def save_picture(path) -> str:
    import matplotlib.image
    matplotlib.image.imsave(path, np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8))
    return str(path)


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """A picture and the checkpoints of both paths."""
    for name, model, config in (("hand", hand_adapter(), TINY_HAND),
                                ("body", body_adapter(), TINY_BODY)):
        torch.save({"model": model.state_dict(), "config": asdict(config)}, tmp_path / f"{name}.pt")
    return {"picture": save_picture(tmp_path / "one.png"), "out": str(tmp_path / "out"),
            "hand": str(tmp_path / "hand.pt"), "body": str(tmp_path / "body.pt")}


def test_command_line_writes_everything(files, tmp_path, capsys):
    """A picture and two checkpoints give an overlay, meshes and arrays."""
    import matplotlib.image
    arguments = [files["picture"], "--hand", files["hand"], "--body", files["body"], "--out",
               files["out"], "--box", "5,5,40,50"]
    assert hmr.main(arguments) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"one_overlay.png", "one.npz", "one.obj", "one.ply", "one.glb"}
    assert matplotlib.image.imread(tmp_path / "out" / "one_overlay.png").shape[:2] == (60, 50)
    arrays = np.load(tmp_path / "out" / "one.npz")
    assert arrays["vertices"].shape == (10475, 3) and arrays["right_hand_pose"].shape == (45,)
    *_, trained, wrote, look = capsys.readouterr().out.splitlines()
    assert trained == "trained on unknown data" and wrote.startswith("wrote ") and "look" in look
    for bad in (["--box", "1,2"], ["--box", "a,b,c,d"], ["--hand", files["body"]],
                ["--hand", str(tmp_path / "none.pt")], ["--model", "body"]):
        assert hmr.main([*arguments, *bad]) == 2
        told = capsys.readouterr().err
        assert told.startswith("hmr_adapter.py: ") and told.count("\n") == 1
    assert hmr.main([]) == 2


def release(model: nn.Module, **more) -> dict:
    """A checkpoint of a release's layout: weights by name, and no config of ours."""
    state = {name: value for name, value in model.state_dict().items() if name != "hand_mean"}
    return {"state_dict" if isinstance(model, HandExpert) else "network": state} | more


@pytest.mark.parametrize("given", [("hand", "body"), ("hand",), ("body",)])
def test_command_line_takes_released_weights(given, models, few_vertices, tmp_path, monkeypatch,
                                             capsys):
    """HaMeR's and SMPLer-X's files give one merged SMPL-X mesh, each alone its own mesh.

    The fingers of SMPLer-X are relative to the mean hand of the SMPL-X file; the mesh models of
    the project, whose shapes these weights do not know, are refused.
    """
    for name in ("HandExpertConfig", "BodyExpertConfig"):  # of tiny networks in place of ViT-H
        tiny = (TINY_HAND if name[0] == "H" else TINY_BODY).expert
        monkeypatch.setattr(hmr, name, lambda tiny=tiny: tiny)
    experts = {"hand": lively(HandExpert(TINY_HAND.expert)).eval(),
               "body": lively(BodyExpert(TINY_BODY.expert)).eval()}
    arguments = [save_picture(tmp_path / "one.png"), "--box", "5,5,40,50", "--out",
               str(tmp_path / "out")]
    for part in given:
        torch.save(release(experts[part], hyper_parameters={}), tmp_path / f"{part}.ckpt")
        arguments += [f"--{part}", str(tmp_path / f"{part}.ckpt")]
    assert hmr.main(arguments) == 2 and "add --model" in capsys.readouterr().err
    model = models / ("SMPLX_NEUTRAL.npz" if "body" in given else "MANO_RIGHT.npz")
    assert hmr.main([*arguments, "--model", str(model)]) == 0
    assert "weights of the authors" in capsys.readouterr().out
    arrays = np.load(tmp_path / "out" / "one.npz")
    if "body" not in given:
        assert arrays["vertices"].shape == (778, 3) and arrays["rotations"].shape == (16, 3, 3)
        return
    assert arrays["vertices"].shape == (1577, 3) and arrays["hand_valid"].any() == (len(given) > 1)
    mean = command.hand_mean(str(model))
    path = hmr.load_path(BodyAdapter, tmp_path / "body.ckpt", hand_mean=mean)
    assert torch.equal(path.expert.hand_mean, mean) and mean.abs().max() > 0.1


@pytest.mark.parametrize("data, is_free", [("rendered", False), ("bedlam", True)])
def test_checkpoints_of_another_body_are_refused(tmp_path, data, is_free):
    """One trained on the free body needs it, one trained on SMPL-X does not fit it."""
    for path in (hand_adapter(), body_adapter()):
        torch.save({"data": data, "config": {}}, tmp_path / "one.pt")
        command.check_path(path, tmp_path / "one.pt", not is_free)
        with pytest.raises(ValueError, match="one.pt was trained on"):
            command.check_path(path, tmp_path / "one.pt", is_free)
        torch.save({"model": {}, "config": {}}, tmp_path / "one.pt")  # which does not tell
        command.check_path(path, tmp_path / "one.pt", is_free)
