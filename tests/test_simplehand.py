"""SimpleHand: counts, FastViT, numerics of the release, losses, inference."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from simplehand_samples import (
    HIERA,
    HRNET,
    TINY,
    UNET,
    batch_of,
    count,
    images,
    on_meta,
    picture,
    randomise,
    regressor,
    timm_or_skip,
    trained_model,
)
from torch import nn

import bodymodels
import simplehand
from networks.backbones import ALL_PRESETS, simplehand_model
from sets import crops
from simplehand import PRESETS, Config, SimpleHand
from weights.simplehand import load_backbone

# ------------------------------------------------------------------------------------ counts


def test_parameter_counts_of_the_release():
    """Every part has exactly the parameters of timm's backbone and the released heads."""
    model = on_meta(PRESETS["paper"])
    head, parts = model.mesh_head, zip(
        *((layer.project, layer.metaformer, layer.upsample) for layer in model.mesh_head.layers),
        strict=True)
    assert {name: count(part) for name, part in model.named_children()} == {
        "backbone": 42_851_004, "keypoints_2d_head": 51_114, "mesh_head": 6_488_885}
    assert count(head.deconv) == 4_981_248 and count(head.pred_final) == 195
    assert [[count(layer) for layer in layers] for layers in parts] == [
        [65_792, 32_896, 8_256], [789_760, 198_272, 49_984], [1_848, 28_560, 262_186]]
    assert [value.numel() for value in head.position_embeddings] == [5_376, 21_504, 43_008]
    assert len(model.state_dict()) == 1325 - 2  # the release without its unused head.fc
    model.backbone.reparameterize()
    assert count(model.backbone) == 42_767_632
    assert len(model.backbone.state_dict()) == 538 - 2


@pytest.mark.parametrize("name", ALL_PRESETS)
def test_presets_build_and_say_what_the_paper_says(name):
    """Every preset builds; all but the tiny ones see the paper's 13.1 M samples, at its rate of
    5e-4 for 256 samples, times the root of the ratio for larger batches."""
    config = ALL_PRESETS[name]
    assert count(on_meta(config)) > 0
    if name not in ("cpu", "cpu_views", "ablation"):
        assert config.steps * config.batch_size == 200 * 256 * 256 and config.schedule == "step"
        assert config.learning_rate == pytest.approx(5e-4 * (config.batch_size / 256)**0.5, 1e-3)
    assert config.warmup_steps < config.steps / 2


# ---------------------------------------------------------------------------------- backbone


SHALLOW = {"depths": (1, 1, 1, 1)}
VARIANTS = [HRNET, HIERA, UNET, {"sampling": "global"}, {"sampling": "global", **HRNET},
            {"refine": 1}, {"sampling": "grid", "tokens": (4, 84, 336), "upsample": (1,)},
            {"upsample": (2, 2)}, {"depths": TINY.depths},
            {}, {"official": True},
            {"sampling": "coarse_mesh", "tokens": (216, 84, 336)}, {"mixer": "identity"},
            {"mixer": "convolution", "position_embedding": False}]


def test_new_keypoints_are_in_the_middle():
    """There sampling has a gradient: also where outputs are scaled down, and without a map."""
    for sampling in ("point", "global"):
        model = SimpleHand(replace(TINY, **SHALLOW, output_scale=0.1, sampling=sampling)).eval()
        assert (model(images())["keypoints_2d"] - 0.5).abs().max() < 0.3


@pytest.mark.parametrize(("factors", "cells"), [((4,), 8), ((2, 2), 8), ((2,), 4), ((1,), 2)])
def test_deconvolutions_multiply_the_cells(factors, cells):
    """Those of Table 5: 4x at once or 2x twice, 2x, and none."""
    layers, width = simplehand.upsampler(replace(TINY, upsample=factors), 8)
    assert layers(torch.zeros(2, 8, 2, 2)).shape == (2, width, cells, cells)
    assert width == (8 if factors == (1,) else TINY.token_width)


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_every_variant_fuses(fields):
    """fuse() computes the same in the model's precision, without norms, beside the original."""
    config = fields if fields is UNET else replace(TINY, **SHALLOW | fields)
    model = randomise(simplehand_model(config))
    for module in model.backbone.modules():  # random statistics 100 norms deep overflow, near 1 not
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(2.0, 4.0)
    with torch.no_grad():
        before, fused = model(images()), model.fuse()
        after, again = fused(images()), model(images())
    for name, value in before.items():
        assert (after[name] - value).abs().max() < 3e-5 * max(1.0, value.abs().max()), name
        assert torch.equal(again[name], value)
    # the norm before attention cannot be folded into a layer without bias
    assert config.backbone == "fastvit" or not any(
        isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    half = model.bfloat16().fuse()
    assert all(value.dtype == torch.bfloat16 for value in half.parameters())
    assert half(images())["vertices"].dtype == torch.bfloat16


def test_branches_of_fastvit():
    """Each layer's output is that of its branches, written out."""
    x = torch.randn(2, 6, 8, 8)
    repmixer = randomise(simplehand.RepMixer(6, 0.5))
    mixed = repmixer.layer_scale.gamma * (repmixer.mixer(x) - repmixer.norm(x))
    assert torch.allclose(repmixer(x), x + mixed)
    one = randomise(simplehand.MobileOne(6, 6, 3, excite=False))
    branches = one.identity(x) + one.conv_kxk(x) + one.conv_scale(x)
    assert torch.allclose(one(x), nn.functional.gelu(branches))
    attend, y = simplehand.SelfAttention(64), torch.randn(2, 64, 3, 3)
    q, k, v = attend.qkv(y.flatten(2).mT).view(2, 9, 3, 2, 32).transpose(1, 3).unbind(2)
    heads = (q @ k.mT / 32**0.5).softmax(-1) @ v  # (2, heads, 9, 32)
    expected = attend.proj(heads.transpose(1, 2).flatten(2)).mT.unflatten(2, (3, 3))
    assert torch.allclose(attend(y), expected, atol=1e-6)
    position = randomise(simplehand.PositionConv(6, 7))
    assert torch.allclose(position(x), x + position.pos_enc(x))
    large = randomise(simplehand.LargeKernelConv(6, 12, 7))  # without an activation
    assert torch.allclose(large(x), large.large_conv(x) + large.small_conv(x))


def test_backbone_equals_timm(capsys):
    """With timm's weights, of training or inference, our features are timm's, also collapsed."""
    timm = timm_or_skip()
    theirs = randomise(timm.create_model("fastvit_ma36")).double()  # random weights amplify the
    collapsed = timm.utils.model.reparameterize_model(theirs)  # rounding of fp32
    ours, small = (simplehand.FastViT(Config()).eval().double() for _ in range(2))
    load_backbone(ours, theirs.state_dict())
    printed = capsys.readouterr().out
    assert "left out" in printed and "head.fc.weight" in printed and "head.fc.bias" in printed
    load_backbone(small, collapsed.state_dict())
    x = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.forward_features(x)
        results = [ours(x)[1], small(x)[1]]
        ours.reparameterize()
        names = set(ours.state_dict()) | {"head.fc.weight", "head.fc.bias"}
        assert names == set(collapsed.state_dict())
        results.append(ours(x)[1])
    for result in results:
        assert (result - expected).abs().max() < 1e-9 * max(1.0, expected.abs().max())


# ------------------------------------------------------------------------- the release's head


def test_sine_map_of_the_release():
    """The map follows its definition, value by value, y in the first half of the channels."""
    channels, size = 256, 28
    actual = simplehand.sine_map(torch.zeros(1, channels, size, size))
    assert actual.shape == (channels, size, size)
    cells = [(0, 0, 5), (1, 27, 3), (57, 13, 2), (128, 9, 0), (199, 4, 21), (255, 1, 27)]
    for channel, y, x in cells:
        position = (y if channel < 128 else x) + 1
        index = channel % 128
        angle = position / (size + 1e-6) * 2 * math.pi / 10_000 ** (2 * (index // 2) / 128)
        expected = math.cos(angle) if index % 2 else math.sin(angle)
        assert actual[channel, y, x].item() == pytest.approx(expected, abs=1e-5)
    head = SimpleHand(replace(TINY, official=True)).mesh_head
    head.deconv = nn.Identity()
    tokens = head.generate(torch.zeros(1, channels, size, size), torch.tensor([[[3.0, 13]]]) / 27)
    assert torch.allclose(tokens[0, 0], actual[:, 13, 3], atol=1e-5)  # added to the features


@functools.cache
def columns_read(official: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function: the column, of 28, that the token generator reads at fractions u of the crop."""
    head = SimpleHand(replace(TINY, official=official)).mesh_head
    head.deconv = nn.Identity()
    ramp = torch.arange(28.0).expand(1, 4, 28, 28)

    def columns(u: torch.Tensor) -> torch.Tensor:
        points = torch.stack((u, u), -1)[None]
        return (head.generate(ramp, points) - head.generate(0 * ramp, points))[0, :, 0]

    return columns


@given(st.lists(st.floats(-0.5, 1.5, width=32), min_size=21, max_size=21))
def test_convention_sampling_index(values):
    """u is read at column 28 u - 0.5 of 28, in the release at 27 u, and never outside."""
    u = torch.tensor(values)
    inside = u.clamp(0, 1)
    assert torch.allclose(columns_read(False)(u), (28 * inside - 0.5).clamp(0, 27), atol=1e-4)
    assert torch.allclose(columns_read(True)(u), 27 * inside, atol=1e-4)


def test_convention_images_are_rgb_of_0_to_255():
    """Default: ImageNet statistics on RGB. Release: BGR / 255 - 0.5. uint8 and float agree."""
    x = images(1, 32)
    ours, theirs = (SimpleHand(replace(TINY, official=official)).normalise
                    for official in (False, True))
    red = (x[0, 0].float() / 255 - 0.485) / 0.229
    assert torch.allclose(ours(x)[0, 0], red, atol=1e-6)
    assert torch.allclose(theirs(x)[0, 2], x[0, 0].float() / 255 - 0.5, atol=1e-6)
    assert torch.equal(ours(x.float()), ours(x))


# -------------------------------------------------------------------------------- the method


def test_token_generators():
    """Global: the same token everywhere. Grid: the cells of X_b, row by row."""
    features = torch.randn(2, 64, 2, 2)
    keypoints = torch.rand(2, 21, 2)
    grid = simplehand.GridHead(replace(TINY, sampling="grid", tokens=(4, 84), dims=(16, 8),
                                       blocks=(1, 1), upsample=(1,)))
    assert torch.allclose(grid.generate(features, keypoints), features.flatten(2).mT, atol=1e-6)
    point = simplehand.MeshHead(replace(TINY, upsample=(1,)))
    middle = point.generate(features, torch.full((2, 21, 2), 0.5))
    assert torch.allclose(middle, features.mean((2, 3))[:, None].expand_as(middle), atol=1e-6)
    model = SimpleHand(replace(TINY, sampling="global"))
    tokens = []
    model.mesh_head.regress = lambda x: tokens.append(x) or x
    model(images())
    assert tokens[0].shape == (2, 21, 64) and torch.equal(*tokens[0][:, [0, 20]].unbind(1))
    assert not torch.equal(*tokens[0][:, 0])


@given(st.permutations(range(9)))
def test_mixers(order):
    """Attention ignores the order; identity adds the normed tokens; convolution reaches three."""
    torch.manual_seed(0)
    block = simplehand.MetaFormerBlock(16, TINY).eval()
    x = torch.randn(2, 9, 16)
    assert torch.allclose(block(x[:, order]), block(x)[:, order], atol=1e-5)
    block = randomise(simplehand.MetaFormerBlock(16, replace(TINY, mixer="identity")))
    mixed = x + block.norm1(x)
    assert torch.equal(block(x), mixed + block.mlp(block.norm2(mixed)))
    mixer = simplehand.SeparableConv(16, TINY)
    moved = x.clone()
    moved[:, order[0]] += 1.0
    changed = (mixer(moved) - mixer(x)).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [abs(index - order[0]) <= 3 for index in range(9)]


def test_decoder_layers_grow_tokens_and_shrink_channels():
    """21 x 256 -> 84 x 256 -> 336 x 128 -> 778 x 64 -> 778 x 3, Eq. 1 by Eq. 2."""
    head = simplehand.MeshHead(Config()).eval()
    x = torch.randn(2, 21, 256)
    expected = x
    for layer, embedding, shape in zip(head.layers, head.position_embeddings, (
            (2, 84, 256), (2, 336, 128), (2, 778, 64)), strict=True):
        expected = layer(expected + embedding)  # Eq. 2 of Eq. 3
        assert expected.shape == shape
    assert torch.equal(head.regress(x), head.pred_final(expected))


def test_mesh_loss_moves_the_keypoints_but_clamped_ones():
    """Sampling points have a gradient from the mesh alone, and none outside the crop."""
    model = randomise(SimpleHand(TINY))
    keypoints = torch.rand(2, 21, 2) * 0.8 + 0.1
    keypoints[0, :7, 0], keypoints[1, 5, 1] = -0.3, 1.2
    features, _ = model.backbone(model.normalise(images(2, 128)))
    model.mesh_head(features, keypoints.requires_grad_()).square().sum().backward()
    outside = (keypoints < 0) | (keypoints > 1)
    assert (keypoints.grad[outside] == 0).all()
    assert (keypoints.grad[~outside] != 0).float().mean() > 0.9
    model(images(2, 128))["vertices"].square().sum().backward()
    assert model.keypoints_2d_head.weight.grad.abs().max() > 0


@given(st.floats(0.05, 0.9))
def test_drop_path_drops_whole_samples_and_keeps_the_mean(rate):
    """In training a sample is 0 or x / (1 - rate), as often as said; rates rise linearly."""
    torch.manual_seed(0)
    drop = simplehand.DropPath(rate)
    x = torch.ones(4000, 2, 3)
    values = drop(x)
    assert torch.equal(values, values[:, :1, :1].expand_as(values))
    assert all(v == 0 or abs(v - 1 / (1 - rate)) < 1e-5 for v in values.unique().tolist())
    assert (values > 0).float().mean().item() == pytest.approx(1 - rate, abs=0.05)
    assert drop.eval()(x) is x
    backbone = on_meta(replace(TINY, backbone_drop_path=0.2)).backbone
    rates = [part.rate for part in backbone.modules() if isinstance(part, simplehand.DropPath)]
    assert np.allclose(rates, np.linspace(0, 0.2, 5))


@pytest.mark.parametrize("config", [TINY, UNET], ids=["paper", "any view"])
def test_coordinates_stay_in_full_precision(config):
    """Under bf16 autocast the outputs are float32 and vary more finely than bf16 can."""
    model = randomise(simplehand_model(config))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prediction = model(images())
    for value in prediction.values():
        assert value.dtype == torch.float32
        assert not torch.equal(value, value.bfloat16().float())


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 65), (1, 64, 64, 3),
                                   (1, 3, 64, 96)])
def test_other_image_shapes_are_refused(shape):
    """One clear error says which shape was expected."""
    with pytest.raises(ValueError, match=r"expected \(B, 3, S, S\)"):
        SimpleHand(TINY)(torch.zeros(shape))


@pytest.mark.parametrize("fields", [
    {"image_size": 100}, {"image_size": 0}, {"depths": (1, 1, 1)}, {"large_kernel": 4},
    {"feature_width": 100}, {"dims": (16, 8)}, {"tokens": (20, 84, 336)}, {"heads": 3},
    {"embed_dims": (16, 16, 16, 16)}, {"backbone": "resnet"}, {"sampling": "everywhere"},
    {"mixer": "pooling"}, {"mlp_ratio": 0.0}, {"token_width": 0},
    {"official": True, "sampling": "global"}, {"tokens": (21, 84, 336), "sampling": "grid"},
])
def test_impossible_configs_are_refused(fields):
    """A model that cannot be built says which field is wrong, or the layer what it expected."""
    message = {"heads": "divisible by num_heads", "embed_dims": "multiple of 32",
               "feature_width": "divisible by groups", "official": "sampling"}
    name = next(iter(fields))
    with pytest.raises((ValueError, AssertionError), match=message.get(name, name)):
        on_meta(replace(TINY, **fields))


# ------------------------------------------------------------------------------------ losses


def test_losses_by_hand():
    """Sum over coordinates, mean over points, mean over the batch; weights 10, 1, 10. No loss for
    the mesh with joint 9, the middle finger's base, as origin and for keypoints as fractions of the
    crop, wherever the hand is in the camera's frame."""
    batch = batch_of(2)
    for shift in (0.0, 0.5):
        moved = batch | {name: batch[name] + shift for name in ("joints", "vertices")}
        terms = simplehand.losses(perfect(batch), moved, regressor())
        assert all(value < 1e-6 for value in terms.values())
    batch["keypoints_valid"][:] = 1
    prediction = perfect(batch)
    prediction["vertices"] += torch.tensor([0.01, -0.02, 0.03])
    prediction["keypoints_2d"][0, 3] += torch.tensor([0.5, -0.25])
    terms = simplehand.losses(prediction, batch, regressor())
    assert terms["vertices"].item() == pytest.approx(0.06, rel=1e-4)
    assert terms["joints"].item() == pytest.approx(0.06, rel=1e-3)  # rows sum to one
    assert terms["keypoints_2d"].item() == pytest.approx(0.75 / 42, rel=1e-4)
    total = simplehand.total_loss(terms, Config()).item()
    assert total == pytest.approx(10 * 0.06 + 10 * 0.06 + 0.75 / 42, rel=1e-3)


def perfect(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"vertices": batch["vertices"] - batch["joints"][:, 9:10],
            "keypoints_2d": batch["keypoints_2d"] / batch["image"].shape[-1]}


@given(st.integers(0, 1000))
def test_invalid_annotations_pull_at_nothing(seed):
    """What is invalid, even NaN, has no gradient; the loss of a batch is the mean of its parts'."""
    batch = batch_of(4, seed=seed)
    batch["mesh_valid"][seed % 4] = 0
    batch["vertices"][seed % 4] = batch["joints"][seed % 4] = math.nan
    batch["keypoints_2d"][batch["keypoints_valid"] == 0] = math.nan
    generator = torch.Generator().manual_seed(seed + 1)
    prediction = {"vertices": torch.randn(4, 778, 3, generator=generator).requires_grad_(),
                  "keypoints_2d": torch.rand(4, 21, 2, generator=generator).requires_grad_()}
    whole = simplehand.losses(prediction, batch, regressor())
    simplehand.total_loss(whole, TINY).backward()
    moved = (prediction["vertices"].grad != 0).any(-1).any(-1)
    assert torch.equal(moved, batch["mesh_valid"] > 0)
    moved = (prediction["keypoints_2d"].grad != 0).all(-1)
    assert torch.equal(moved, batch["keypoints_valid"] > 0)
    parts = [simplehand.losses(
        {name: value[half] for name, value in prediction.items()},
        {name: value[half] for name, value in batch.items()}, regressor())
        for half in (slice(0, 2), slice(2, 4))]
    for name, value in whole.items():
        assert value.item() == pytest.approx((parts[0][name] + parts[1][name]).item() / 2, rel=1e-5)


def test_coarse_mesh_loss():
    """Every fourth vertex, projected with K, is the target; those outside the crop are not."""
    batch = batch_of(2)
    vertices = batch["vertices"][:, ::4]
    true = 100.0 / 64 * vertices[..., :2] / vertices[..., 2:] + 0.5
    prediction = perfect(batch) | {"coarse_2d": true.clone()}
    assert true.shape == (2, 195, 2)
    assert simplehand.losses(prediction, batch, regressor())["coarse_2d"] < 1e-5
    prediction["coarse_2d"] += torch.tensor([0.25, -0.5])
    inside = ((true >= 0) & (true <= 1)).all(-1)
    terms = simplehand.losses(prediction, batch, regressor())
    assert terms["coarse_2d"].item() == pytest.approx(0.75 * inside.float().mean().item(), rel=1e-4)
    assert 0.1 < inside.float().mean() < 1.0
    total = simplehand.total_loss(terms, Config()) - simplehand.total_loss(
        {name: value for name, value in terms.items() if name != "coarse_2d"}, Config())
    assert total.item() == pytest.approx(terms["coarse_2d"].item(), rel=1e-3)


def test_keypoint_regressor_of_mano():
    """It is that of bodymodels with FreiHAND's fingertips; what has its tips already is refused."""
    J_regressor = torch.rand(16, 778).softmax(1)
    tips = bodymodels.TIP_VERTEX_IDS["freihand"]
    expected = bodymodels.keypoint_regressor(J_regressor, tips)
    assert torch.equal(simplehand.mano_keypoint_regressor(J_regressor.numpy()), expected)
    with pytest.raises(ValueError, match=r"\(16, 778\)"):
        simplehand.mano_keypoint_regressor(expected)


def test_wrong_shapes_of_flags_are_refused():
    """(B, 1) would spread over the batch."""
    batch = batch_of(4)
    for name in ("mesh_valid", "keypoints_valid"):
        with pytest.raises(ValueError, match=name):
            simplehand.losses(perfect(batch), batch | {name: batch[name][:, None]}, regressor())


# --------------------------------------------------------------------------------- inference


@pytest.fixture(scope="module")
def trained() -> SimpleHand:
    return trained_model()


def camera(width: float, height: float, focal: float = 150.0) -> np.ndarray:
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


@given(st.tuples(*[st.floats(-0.1, 0.1)] * 2, st.floats(0.3, 1.5)), st.floats(60, 800))
def test_translation_is_found_again(translation, focal):
    """Exact projections give the translation back; absurd ones end in front of the camera."""
    points = np.random.default_rng(0).normal(0, 0.05, (21, 3))
    K = camera(128, 100, focal)
    projected = (points + translation) @ K.T
    pixels = projected[:, :2] / projected[:, 2:]
    assert np.allclose(simplehand.fit_translation(points, pixels, K), translation, atol=1e-6)
    absurd = simplehand.fit_translation(points, 50 - 300 * points[:, :2], K)
    assert np.isfinite(absurd).all() and (points + absurd)[:, 2].min() >= 0.1 - 1e-9


@given(st.tuples(st.floats(0, 500), st.floats(0, 300), st.floats(5, 300), st.floats(5, 300)),
       st.booleans())
def test_crop_camera_is_that_of_the_training_crops(box, official):
    """As in sets/crops.py, where pixels of the release count from the centre of the first one."""
    K, box = camera(640, 480, 500.0), np.array(box)
    K[1, 1] = 450  # the release keeps the ratio
    half = 0.5 * official
    theirs, turned = simplehand.crop_camera(K, box, 128, official)
    shift = np.array([[0, 0, half], [0, 0, half], [0, 0, 0]])
    ours = crops.perspective_crop(K - shift, box[:2] + box[2:] / 2 - half, box[2:], 128,
                                  release=official)
    assert np.allclose(ours.K + shift, theirs) and np.allclose(ours.rotation, turned)


def test_convention_release_s_pixels(monkeypatch):
    """official=True: pixels and keypoints count from the centre of the first pixel."""
    from scipy import ndimage

    seen = []
    model = randomise(SimpleHand(replace(TINY, official=True)))
    monkeypatch.setattr(model, "forward", lambda x: seen.append(x) or {
        "vertices": torch.zeros(1, 778, 3), "keypoints_2d": torch.full((1, 21, 2), 0.25)})
    image, K, box = picture(), camera(120, 90), (30.0, 20.0, 60.0, 40.0)
    prediction = simplehand.predict(model, image, regressor(), box=box, K=K)

    half = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])  # our pixels -> counted from a centre
    crop_K, rotation = simplehand.crop_camera(K, prediction["box"].astype(float), 64, True)
    to_image = half @ K @ rotation.T @ np.linalg.inv(half @ crop_K)
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    source = simplehand.transform(to_image, np.stack((x, y), -1).astype(float))
    expected = np.stack([ndimage.map_coordinates(
        image[..., channel].astype(float), (source[..., 1], source[..., 0]), order=1,
        mode="grid-constant") for channel in range(3)])
    assert np.allclose(seen[0][0].numpy(), expected, atol=0.05)
    keypoint = simplehand.transform(to_image, np.array([16.0, 16.0])) + 0.5
    assert np.allclose(prediction["keypoints_2d"], keypoint, atol=1e-3)


def test_convention_whole_square_picture_is_its_own_crop(trained):
    """Without a box it reaches the network unchanged; with one the crop is a quarter larger."""
    image = picture(60, 60)[:60, :60]
    image = np.ascontiguousarray(np.pad(image, ((0, 4), (0, 4), (0, 0))))
    prediction = simplehand.predict(trained, image, regressor())
    with torch.no_grad():
        direct = trained(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert np.allclose(prediction["vertices"] - prediction["root"], direct["vertices"][0],
                       atol=1e-5)
    assert np.allclose(prediction["keypoints_2d"], direct["keypoints_2d"][0] * 64, atol=1e-3)
    prediction = simplehand.predict(trained, picture(), regressor(), box=(30, 20, 60, 40))
    joints = simplehand.regress_joints(torch.from_numpy(prediction["vertices"])[None], regressor())
    assert np.allclose(prediction["joints"], joints[0], atol=1e-5)
    assert {name: value.shape for name, value in prediction.items()} == {
        "vertices": (778, 3), "joints": (21, 3), "root": (3,), "keypoints_2d": (21, 2),
        "K": (3, 3), "box": (4,), "side": ()}
    assert all(value.dtype == np.float32 for name, value in prediction.items() if name != "side")
    assert np.allclose(prediction["box"], (22.5, 15, 75, 50))
    assert prediction["K"][0, 0] == pytest.approx(math.hypot(120, 90))
