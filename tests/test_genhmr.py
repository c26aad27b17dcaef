"""GenHMR: tokenizer, masks, deformable attention, losses, sampling, refinement, checkpoints."""

import inspect
import math
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import bodymodels
import genhmr
import simplehand
from benchmarks.genhmr import project_then_sample
from genhmr import (
    PRESETS,
    SCHEDULES,
    TOKENIZER_PRESETS,
    Config,
    DeformableAttention,
    EncoderConfig,
    GenHMR,
    Quantiser,
    Tokenizer,
    TokenizerConfig,
    mask_counts,
    sample_maps,
)
from sets.rendered_bodies import sample_wide_postures
from tasks.genhmr import augment_rotation, axis_rotation

TINY_TOKENIZER = TokenizerConfig(num_tokens=48, codebook_size=32, code_dim=8, width=16, depth=2)
TINY = Config(
    tokenizer=TINY_TOKENIZER, image_size=64, vit_dim=32, vit_depth=2, vit_heads=2,
    vit_drop_path=0.1, scales=(1, 2, 4), pyramid_width=8, width=16, heads=2, points=2, layers=2,
    ffn=32, regressor_width=16, steps=100)
SHAPES = ((4, 3), (8, 6), (16, 12))  # of three maps, not square: a swap of x and y shows
SIZES = torch.tensor(SHAPES)
SPEC_COUNTS = {"cosine": [96, 87, 63, 34, 10, 0], "linear": [96, 77, 58, 39, 20, 0],
               "cubic": [96, 96, 90, 76, 47, 0], "sqrt": [96, 95, 88, 77, 58, 0],
               "training": [96, 92, 78, 57, 30, 0]}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Body:
    """The free body with 24 joints and 21 vertices as keypoints."""

    def __init__(self) -> None:
        self.model = bodymodels.load_model("body")

    def __call__(self, betas: Tensor, rotations: Tensor) -> bodymodels.BodyOutput:
        return self.model(betas, rotations)

    def keypoints(self, output: bodymodels.BodyOutput) -> Tensor:
        return torch.cat((output.joints, output.vertices[:, :6300:300]), 1)

    def of(self, betas: Tensor, rotations: Tensor) -> Tensor:
        return self.keypoints(self(betas, rotations))


@pytest.fixture(scope="module")
def body() -> Body:
    return Body()


@pytest.fixture(scope="module")
def lively() -> GenHMR:
    """A tiny model whose probabilities differ from token to token, as those of a trained one do."""
    return lively_model()


def lively_model(config: Config = TINY) -> GenHMR:
    torch.manual_seed(1)
    model = GenHMR(config).eval()
    with torch.no_grad():
        model.transformer.head.weight.normal_(0.0, 1.0)
        model.transformer.position_embedding.normal_()
        for layer in model.transformer.layers:
            layer.cross_attention.sampling_offsets.weight.normal_(0.0, 0.2)
            layer.cross_attention.attention_weights.weight.normal_()
    return model


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(config: Config) -> GenHMR:
    with torch.device("meta"):
        return GenHMR(config)


def images(count: int = 2, size: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def poses(count: int, seed: int = 0, spread: float = 0.3) -> Tensor:
    """Bodies with random joints and headings, (count, 24, 3, 3)."""
    generator = torch.Generator().manual_seed(seed)
    angles = spread * torch.randn(count, 24, 3, generator=generator)
    return augment_rotation(bodymodels.axis_angle_to_matrix(angles), generator)


def batch_of(body: Body, size: int = 4, image_size: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """A batch as data.py makes it, its bodies seen by a camera of the training kind."""
    generator = torch.Generator().manual_seed(seed)
    pose, betas = poses(size, seed), 0.5 * torch.randn(size, 10, generator=generator)
    camera = torch.tensor([0.9, 0.0, 0.2]) + 0.05 * torch.randn(size, 3, generator=generator)
    keypoints = body.of(betas, pose)
    flat = genhmr.project_to_crop(keypoints, camera, TINY.focal)
    translation = genhmr.camera_translation(camera, TINY.focal)[:, None]
    ones = torch.ones(size)
    return {"image": images(size, image_size, seed), "pose": pose, "pose_valid": ones,
            "betas": betas, "betas_valid": ones, "keypoints_3d": keypoints + translation,
            "keypoints_3d_valid": torch.ones(size, 45), "keypoints_2d": (flat + 0.5) * image_size,
            "keypoints_valid": torch.ones(size, 45), "camera": camera}


# --------------------------------------------------------------------------- counts, presets


def test_parameter_counts():
    """The parts have the parameters that follow from the paper and its references."""
    model = on_meta(PRESETS["paper"])
    tokenizer = model.tokenizer
    assert count(tokenizer.encoder) == 5_912_320
    assert count(tokenizer.decoder) == 6_436_870
    assert tokenizer.codebook.shape == (2048, 256) and tokenizer.codebook.numel() == 524_288
    assert count(tokenizer) + tokenizer.codebook.numel() == 12_873_478  # 12.87 M
    assert count(model.backbone) == 630_912_000  # ViT-H/16, 192 + 1 positions: 630.9 M
    assert [count(level) for level in model.pyramid] == [918_528, 4_771_008, 4_935_648]
    assert count(model.transformer) == 4_601_152
    assert count(model.regressor) == 1_327_629
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 647_465_965
    assert len(tokenizer.state_dict()) == 46 and "quantiser.code_sum" in tokenizer.state_dict()


@pytest.mark.parametrize("tokens", [48, 96, 192, 384])
def test_every_length_of_table_6(tokens):
    """24 joints become 48, 96, 192 or 384 tokens and 24 joints again."""
    tokenizer = Tokenizer(replace(TINY_TOKENIZER, num_tokens=tokens)).eval()
    pose = poses(2)
    encoded = tokenizer.encode(pose)
    assert encoded.shape == (2, tokens) and encoded.dtype == torch.int64
    decoded = tokenizer.decode(encoded)
    assert decoded.shape == (2, 24, 3, 3)
    assert torch.allclose(decoded @ decoded.mT, torch.eye(3).expand_as(decoded), atol=1e-5)
    assert torch.allclose(decoded, tokenizer(pose)["rotations"], atol=1e-5)


@pytest.mark.parametrize("codes, dim", [(1024, 256), (2048, 128), (4096, 256)])
def test_every_codebook_of_table_5(codes, dim):
    """Another codebook changes only the codebook, the head and the layers next to them."""
    tokenizer = replace(TokenizerConfig(), codebook_size=codes, code_dim=dim)
    model = on_meta(replace(PRESETS["paper"], tokenizer=tokenizer))
    assert model.tokenizer.codebook.shape == (codes, dim) and model.mask_token == codes
    assert count(model.transformer) == 4_601_152 + (codes - 2048) * 257 + (dim - 256) * 256
    assert count(model.tokenizer) == 12_349_190 + (dim - 256) * (2 * 3 * 512 + 1)


def test_presets_say_what_the_paper_says():
    """All presets build; all but `cpu` have the paper's model and number of samples."""
    paper, small = PRESETS["paper"], PRESETS["cpu"]
    assert set(PRESETS) == set(TOKENIZER_PRESETS) == {"paper", "h200", "single_gpu", "cpu"}
    for name, config in PRESETS.items():
        model = on_meta(config)
        assert count(model) == 659_815_155 or name == "cpu"
        assert config.tokenizer.num_tokens == 96
        assert config.layers == 4 or name == "cpu"
        assert config.steps * config.batch_size == 300_000 * 96 or name == "cpu"
        stage_1 = TOKENIZER_PRESETS[name]
        assert stage_1.steps * stage_1.batch_size == 200_000 * 512 or name == "cpu"
    assert (paper.learning_rate, paper.batch_size) == (1e-5, 96)
    assert (paper.scales, paper.width, paper.heads, paper.points) == ((1, 4, 8), 256, 8, 4)
    assert small.tokenizer == TOKENIZER_PRESETS["cpu"] and count(on_meta(small)) < 8e6
    stage_1 = TOKENIZER_PRESETS["paper"]
    assert (stage_1.weight_pose, stage_1.weight_vertices, stage_1.weight_joints) == (1.0, 0.5, 0.3)
    assert (paper.weight_mask, paper.weight_keypoints_3d, paper.weight_keypoints_2d,
            paper.weight_pose, paper.weight_betas) == (1.0, 5e-2, 1e-2, 1e-3, 5e-4)


@pytest.mark.parametrize("bad", [
    {"image_size": 100}, {"vit_heads": 3}, {"scales": (3,)}, {"scales": ()}, {"heads": 3},
    {"mask_loss_on": "some"}, {"tau_max": 0.0}, {"tau_max": 1.5}, {"temperature_end": 0.0},
    {"temperature_duration": 0.0}])
def test_bad_configs_are_refused_by_name(bad):
    """A value that cannot work is a ValueError that names its field."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        replace(TINY, **bad)


@pytest.mark.parametrize("bad", [{"num_tokens": 24}, {"num_tokens": 100}, {"num_tokens": 72},
                                 {"momentum": 1.0}, {"codebook_size": 0}, {"network": "mlp"},
                                 {"corruption": 1.5}])
def test_bad_tokenizer_configs_are_refused_by_name(bad):
    """A value of TokenizerConfig that cannot work is a ValueError that names its field."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        replace(TINY_TOKENIZER, **bad)


def test_config_of_a_checkpoint_becomes_the_config():
    """asdict and back is the identity, also through lists, as JSON has them."""
    saved = asdict(TINY)
    assert Config(**saved) == TINY
    assert Config(**{**saved, "scales": [1, 2, 4]}) == TINY
    assert hash(Config(**saved)) == hash(TINY)


def test_shared_blocks_are_copies():
    """What this file has in common with simplehand.py is the same, letter by letter."""
    for name in ("require", "DropPath", "Foreign", "read_checkpoint",
                 "load_weights", "from_checkpoint", "window"):
        assert (inspect.getsource(getattr(genhmr, name))
                == inspect.getsource(getattr(simplehand, name)))


# ------------------------------------------------------------------------- the pose encoder


TINY_ENCODER = EncoderConfig(image_size=64, widths=(4, 4, 8, 8), blocks=1, heads=2, pooled=4,
                             lift_width=16)


def test_pose_encoder_finds_what_it_says(body):
    """Shapes; probabilities of cells sum to one; places lie among the cells."""
    encoder = genhmr.PoseEncoder(TINY_ENCODER).eval()
    seen = encoder(encoder.normalise(images(3)))
    rows, columns = TINY_ENCODER.grid
    assert seen.heat.shape == (3, 45, rows * columns) and (rows, columns) == (16, 12)
    assert torch.allclose(seen.heat.exp().sum(-1), torch.ones(3, 45), atol=1e-5)
    assert (seen.at.abs() <= encoder.centres.amax(0)).all()
    assert (0 < seen.share).all() and (seen.share <= 1.00001).all()
    assert {stride: tuple(x.shape[1:]) for stride, x in seen.maps.items()} == {
        4: (8, 16, 12), 8: (8, 8, 6), 16: (8, 4, 3)}
    assert [tuple(x.shape) for x in seen.lifted] == [(3, 45, 3), (3, 24, 6), (3, 10)]
    with pytest.raises(ValueError, match="expected .B, 3, 64, 64"):
        encoder.normalise(images(1, 32))


def test_located_keypoints_are_means_around_the_peak():
    """One hot cell is the place; of two in reach it is between; a far one only takes share."""
    centres = genhmr.cell_centres(TINY_ENCODER)
    probability = torch.zeros(1, 3, len(centres))
    probability[0, 0, 30] = 1.0
    probability[0, 1, 30], probability[0, 1, 31] = 0.6, 0.4
    probability[0, 2, 30], probability[0, 2, 100] = 0.7, 0.3
    at, share = genhmr.locate(probability, centres, 2.5 / 16)
    assert torch.allclose(at[0, 0], centres[30]) and torch.allclose(at[0, 2], centres[30])
    assert torch.allclose(at[0, 1], 0.6 * centres[30] + 0.4 * centres[31])
    assert torch.allclose(share, torch.tensor([[1.0, 1.0, 0.7]]))


def test_lift_begins_without_features_near_the_rest_pose():
    """A new lift does not read the picture, and its pose is hardly bent; shifts change little."""
    lift = genhmr.Lift(32, 7)
    at, share = 0.3 * torch.randn(5, 45, 2), torch.rand(5, 45)
    lifted = lift(at, share, torch.randn(5, 7))
    for value, without in zip(lifted, lift(at, share), strict=True):
        assert torch.equal(value, without)
    assert (genhmr.rotation_6d_to_matrix(lifted.pose) - torch.eye(3)).abs().mean() < 0.3
    weights = torch.zeros(1, 45)
    weights[:, :2] = 1.0
    moved = at[:1].clone()
    assert all(x.isfinite().all() for x in lift(0 * moved, weights))  # no extent


def test_pose_encoders_come_back_from_their_files(tmp_path):
    """Saved with its config and loaded, an encoder sees the same; others are refused."""
    encoder = genhmr.PoseEncoder(TINY_ENCODER).eval()
    torch.save({"model": encoder.state_dict(), "config": asdict(TINY_ENCODER)}, tmp_path / "e.pt")
    again = genhmr.load_encoder(tmp_path / "e.pt")
    assert again.config == TINY_ENCODER and not again.training
    crops = encoder.normalise(images(2))
    assert torch.equal(again(crops).heat, encoder(crops).heat)
    for content in ({"model": Tokenizer(TINY_TOKENIZER).state_dict(),
                     "config": asdict(TINY_TOKENIZER)}, encoder.state_dict()):
        with pytest.raises(ValueError, match="no pose encoder in this checkpoint"):
            genhmr.load_encoder(content)


@pytest.mark.parametrize("bad", [{"image_size": 100}, {"widths": (4, 8)}, {"heads": 3}])
def test_bad_encoder_configs_are_refused(bad):
    """A value that cannot work is a ValueError."""
    with pytest.raises(ValueError, match="expected"):
        replace(TINY_ENCODER, **bad)


POSE = replace(
    TINY, backbone="pose", encoder=TINY_ENCODER, scales=(2, 4), own_guesses=0.5,
    tokenizer=replace(TINY_TOKENIZER, network="joints", normalise=True), token_maps="per_place",
    distance_bias=True, unit_scales=True, mask_loss_on="masked")


def test_the_pose_encoder_stays_as_it_is(body):
    """A step of stage 2 moves neither its weights nor its averages; all else has a gradient."""
    model = GenHMR(POSE)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    batch = genhmr.mask_batch(model, batch_of(body))
    prediction = model(batch["image"], batch["masked_tokens"], own=batch["own"])
    terms = genhmr.losses(prediction, batch, model, body, 0.5)
    genhmr.total_loss(terms, POSE).backward()
    assert not model.backbone.training and not model.train().backbone.training
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_cameras_come_from_keypoints(body):
    """The camera that projects the lifted body to where its keypoints were found is found."""
    start = genhmr.PoseStart(POSE)
    start.set_pelvis(body.model.rest_joints)
    batch = batch_of(body)
    assert torch.allclose(start.pelvis(batch["betas"]),
                          body.model.rest_joints(batch["betas"])[:, 0], atol=1e-5)
    joints = body.of(batch["betas"], batch["pose"])
    lifted = genhmr.Lifted(joints - joints[:, :1], torch.zeros(4, 24, 6), batch["betas"])
    at = genhmr.project_to_crop(joints, batch["camera"], TINY.focal)
    seen = genhmr.Seen(None, at, torch.ones(4, 45), None, None, lifted, {})
    inside = (at.abs() < start.border).all(-1).sum(1)
    found = start.camera(seen)[inside > 2]
    assert len(found) and torch.allclose(found, batch["camera"][inside > 2], atol=1e-3)


def test_tokens_start_at_their_joints():
    """Tokens look where their joint was found, and start from its z in the tokenizer."""
    model = GenHMR(POSE).eval()
    with torch.no_grad():
        seen = model.backbone(model.normalise(images(2)))
        features = model.encode(images(2))
    places = (features.places - 0.5) * torch.tensor([0.75, 1.0])
    assert torch.allclose(places[:, 10], seen.at[:, 5], atol=1e-6)  # two tokens per joint
    assert torch.allclose(places[:, 11], seen.at[:, 5], atol=1e-6)
    z = torch.randn(2, 48, 8)
    change = model.regressor(seen, z).start - model.regressor(seen, torch.zeros_like(z)).start
    assert torch.allclose(change, z @ model.regressor.z.weight.T, atol=1e-5)


def test_keypoints_stand_in_for_pictures():
    """Told keypoints alone, the model starts from the lift without features."""
    model = GenHMR(POSE).eval()
    keypoints = torch.cat((0.2 * torch.randn(3, 45, 2), torch.rand(3, 45, 1)), 2)
    tokens = torch.full((3, 48), model.mask_token)
    out = model(keypoints, tokens)
    lifted = model.backbone.lift(keypoints[..., :2], keypoints[..., 2])
    assert torch.equal(out["betas"], lifted.betas) and out["logits"].shape == (3, 48, 32)
    keypoints[1] += 0.1
    moved = (model(keypoints, tokens)["logits"] != out["logits"]).flatten(1).any(1)
    assert moved.tolist() == [False, True, False]


def test_skeleton_distances_count_bones(body):
    """A metric on SMPL's tree: symmetric, 1 to the parent, 10 from hand to hand."""
    distance = genhmr.skeleton_distances()
    assert genhmr.PARENTS == tuple(body.model.parents)
    assert torch.equal(distance, distance.T) and (distance.diagonal() == 0).all()
    assert (distance[:, None] <= distance[:, :, None] + distance[None]).all()
    assert all(distance[joint, parent] == 1 for joint, parent in enumerate(genhmr.PARENTS) if joint)
    assert (distance[22, 23], distance[22, 10]) == (10, 12)


def test_biased_attention_is_attention_with_a_bias():
    """Without bias it is SelfAttention; at the start, near joints count more, but in the last."""
    biased, plain = genhmr.BiasedAttention(16, 4, 48), genhmr.SelfAttention(16, 4)
    start = biased.bias.detach().clone()
    expected = genhmr.skeleton_distances().repeat_interleave(2, 0).repeat_interleave(2, 1)
    for head, slope in enumerate((1.0, 0.5, 0.25, 0.0)):
        assert torch.equal(start[head], -slope * expected)
    plain.load_state_dict({name: value for name, value in biased.state_dict().items()
                           if name != "bias"})
    x = torch.randn(2, 48, 16)
    assert not torch.allclose(biased(x), plain(x), atol=1e-4)
    nn.init.zeros_(biased.bias)
    assert torch.allclose(biased(x), plain(x), atol=1e-5)


def test_places_have_maps_of_their_own():
    """PlaceLinear is a linear layer at each place."""
    layer, x = genhmr.PlaceLinear(3, 4, 5), torch.randn(2, 3, 4)
    nn.init.normal_(layer.bias)
    for place in range(3):
        expected = F.linear(x[:, place], layer.weight[place].T, layer.bias[place])
        assert torch.allclose(layer(x)[:, place], expected, atol=1e-6)


def test_own_guesses_are_the_surest():
    """As many tokens as were masked stay masked, those guessed least surely; the others are the
    guesses with all masked; other samples keep their tokens."""
    model = lively_model(TINY)
    tokens = torch.randint(0, 32, (3, 48))
    masked = tokens.masked_fill(torch.rand(3, 48) < 0.6, model.mask_token)
    features = model.encode(images(3))
    told = model.surest(features, masked)
    hidden = told == model.mask_token
    assert torch.equal(hidden.sum(1), (masked == model.mask_token).sum(1))
    probability = model.predict_logits(features, torch.full_like(tokens, model.mask_token)
                                       ).softmax(-1)
    confidence, best = probability.max(-1)
    assert torch.equal(told[~hidden], best[~hidden])
    for row, mask in zip(confidence, hidden, strict=True):
        assert row[mask].max() <= row[~mask].min()
    own = torch.tensor([True, False, True])
    seen = model(images(3), masked, own=own)["tokens"]
    assert torch.equal(seen[1], masked[1]) and torch.equal(seen[own], told[own])


def test_told_tokens_are_not_drawn():
    """Where tokens are told, the relaxed pose has them, without a gradient to their logits."""
    model = GenHMR(TINY)
    logits, tokens = torch.randn(2, 48, 32, requires_grad=True), torch.randint(0, 32, (2, 48))
    assert torch.allclose(genhmr.relax(model, logits, 0.5, told=tokens),
                          model.tokenizer.decode(tokens))
    tokens[:, 7] = model.mask_token
    genhmr.relax(model, logits, 0.5, told=tokens).square().cumsum(1).sum().backward()
    moved = logits.grad.abs().sum(-1) > 0
    assert moved[:, 7].all() and moved.sum() == 2


def test_pose_backbones_come_whole(tmp_path, capsys):
    """load_backbone takes the file of a pose encoder exactly, and nothing else."""
    encoder = genhmr.PoseEncoder(TINY_ENCODER)
    torch.save({"model": encoder.state_dict(), "config": asdict(TINY_ENCODER)}, tmp_path / "e.pt")
    model = GenHMR(POSE)
    genhmr.load_backbone(model, tmp_path / "e.pt")
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[name])
    saved = {"model": model.state_dict(), "config": asdict(POSE)}
    again = genhmr.load_encoder(saved)
    assert torch.equal(again.heat.weight, encoder.heat.weight) and again.config == TINY_ENCODER
    model.eval()
    same = genhmr.load_checkpoint(saved)
    assert torch.equal(genhmr.sample(same, images(2)).tokens,
                       genhmr.sample(model, images(2)).tokens)
    with pytest.raises(ValueError, match="no pose encoder"):
        genhmr.load_backbone(model, {"state_dict": {"pos_embed": torch.zeros(1)}})


@pytest.mark.parametrize("bad", [
    {"backbone": "cnn"}, {"backbone": "pose", "image_size": 128}, {"token_maps": "own"},
    {"own_guesses": 1.5}, {"backbone": "pose", "patch_size": 8}])
def test_bad_choices_of_stage_2_are_refused(bad):
    """A value that cannot work is a ValueError that names its field."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        replace(POSE, **bad)


# ------------------------------------------------------------------------ rotations, cameras


def test_convention_rotations_are_those_of_bodymodels():
    """6D both ways equals bodymodels', also where columns are zero, parallel, huge or tiny."""
    x = torch.randn(500, 6, dtype=torch.float64)
    x[:5] = torch.tensor([[0.0] * 6, [1, 2, 3, 2, 4, 6], [0, 0, 0, 1, 2, 3], [1, 2, 3, 0, 0, 0],
                          [1e-20, 0, 0, 0, 1e20, 0]])
    matrices = genhmr.rotation_6d_to_matrix(x)
    assert torch.allclose(matrices, bodymodels.rotation_6d_to_matrix(x), atol=1e-12)
    assert torch.allclose(matrices @ matrices.mT, torch.eye(3).to(x).expand_as(matrices))
    assert torch.allclose(matrices.det(), torch.ones(500).to(x))
    six = genhmr.matrix_to_rotation_6d(matrices)
    assert torch.equal(six, bodymodels.matrix_to_rotation_6d(matrices))
    assert torch.allclose(genhmr.rotation_6d_to_matrix(six), matrices)
    assert torch.equal(six[:, :3], matrices[:, :, 0])


def test_degenerate_6d_has_finite_gradients():
    """Gradients are finite where columns are zero or parallel."""
    x = torch.tensor([[0.0] * 6, [1, 2, 3, 2, 4, 6], [0, 0, 0, 1, 2, 3]], requires_grad=True)
    genhmr.rotation_6d_to_matrix(x).square().cumsum(-1).sum().backward()
    assert x.grad.isfinite().all()


def test_axis_rotation_is_rodrigues():
    """The rotation about an axis equals bodymodels' of axis times angle."""
    axis, angle = F.normalize(torch.randn(50, 3), dim=-1), 4.0 * torch.randn(50)
    expected = bodymodels.axis_angle_to_matrix(axis * angle[:, None])
    assert torch.allclose(axis_rotation(axis, angle), expected, atol=1e-5)


def test_augmentation_turns_bodies_about_their_rest_pelvis(body):
    """V' = R (V - J_0) + J_0 with the pelvis of the unposed shape, one R per body."""
    pose, betas = poses(6), torch.randn(6, 10)
    turned = augment_rotation(pose)
    assert torch.equal(turned[:, 1:], pose[:, 1:])
    rotation = turned[:, 0] @ pose[:, 0].mT
    pelvis = body.model.rest_joints(betas)[:, :1]
    before, after = body(betas, pose), body(betas, turned)
    for old, new in ((before.vertices, after.vertices), (before.joints, after.joints)):
        assert torch.allclose(new, (old - pelvis) @ rotation.mT + pelvis, atol=1e-5)
    assert (after.vertices - before.vertices @ rotation.mT).abs().max() > 0.1  # not the origin


def test_augmentation_covers_what_stage_2_meets():
    """Any heading, leans up to the tilt, and a uniform rotation for a fifth of the bodies."""
    upright = torch.eye(3).expand(20_000, 24, 3, 3)
    turns = augment_rotation(upright)[:, 0]
    lean = torch.rad2deg(turns[:, 1, 1].clamp(-1, 1).acos())  # between down and its image
    beyond = (lean > 45.001).float().mean()
    assert beyond == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)) / 2, abs=0.01)
    heading = torch.atan2(turns[:, 0, 2], turns[:, 2, 2])
    assert torch.histc(heading, 8, -math.pi, math.pi) == pytest.approx([2500] * 8, rel=0.1)
    config = replace(TokenizerConfig(), uniform_rotation=0.0, tilt=0.0)
    turns = augment_rotation(upright[:100], config=config)[:, 0]
    assert torch.allclose(turns[:, 1], torch.tensor([0.0, 1, 0]).expand(100, 3), atol=1e-6)
    turns = augment_rotation(upright[:100], config=replace(config, heading=20.0))[:, 0]
    headings = torch.rad2deg(torch.atan2(turns[:, 0, 2], turns[:, 2, 2])).abs()
    assert 15.0 < headings.max() <= 20.001
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    first, second = (augment_rotation(upright[:5], generator) for generator in generators)
    assert torch.equal(first, second)


def test_uniform_rotations_are_uniform():
    """Uniform rotations move a fixed vector uniformly over the sphere."""
    config = replace(TokenizerConfig(), uniform_rotation=1.0)
    turns = augment_rotation(torch.eye(3).expand(20_000, 24, 3, 3), config=config)[:, 0]
    for coordinate in (turns[:, 0, 2], turns[:, 1, 1], turns[:, 2, 0]):  # uniform: Archimedes
        assert torch.histc(coordinate, 8, -1, 1) == pytest.approx([2500] * 8, rel=0.1)


def test_convention_camera():
    """The crop's camera is bodymodels' with K of 5000 px at 256 px, its sides at -0.5 and 0.5."""
    points, camera = torch.randn(3, 7, 3), torch.tensor([0.9, 0.1, -0.2]) + torch.rand(3, 3)
    K = torch.tensor([[5000.0, 0, 128], [0, 5000.0, 128], [0, 0, 1]])
    translation = genhmr.camera_translation(camera, 5000.0, 256.0)
    pixels = bodymodels.project(points + translation[:, None], K)
    flat = genhmr.project_to_crop(points, camera, Config().focal)
    assert torch.allclose(flat, pixels / 256 - 0.5, atol=1e-5)
    assert torch.allclose(translation, genhmr.camera_translation(camera, Config().focal))
    assert genhmr.camera_translation(torch.tensor([[0.9, 0, 0]]), 5000, 256)[0, 2] == (
        pytest.approx(43.4, abs=0.01))


def test_convention_scale():
    """At the depth that s sets, a metre covers s / 2 of the crop, and s (x + tx) / 2 is exact."""
    camera = torch.tensor([[0.8, 0.3, -0.1]])
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    flat = genhmr.project_to_crop(points, camera, 19.53)[0]
    assert (flat[1:] - flat[0]).diagonal() == pytest.approx([0.4, 0.4])
    weak = bodymodels.weak_perspective_project(torch.zeros(1, 1, 3), camera)[0, 0]
    assert flat[0] == pytest.approx(weak / 2)


# --------------------------------------------------------------------------------- quantiser


def trained_quantiser(**options) -> Quantiser:
    """A quantiser in the middle of its training."""
    quantiser = Quantiser(replace(TINY_TOKENIZER, **options)).train()
    for _ in range(3):
        quantiser(torch.randn(8, 48, 8))
    return quantiser


def test_nearest_is_the_argmin_of_all_distances():
    """Tokens equal torch.cdist's argmin, for any leading shape."""
    quantiser = Quantiser(replace(TINY_TOKENIZER, codebook_size=300)).double()
    z = torch.randn(5, 48, 8, dtype=torch.float64)
    expected = torch.cdist(z.flatten(0, 1), quantiser.codebook).argmin(1).view(5, 48)
    assert torch.equal(quantiser.nearest(z), expected)
    assert torch.equal(quantiser.nearest(z[0]), expected[0])
    assert torch.equal(quantiser.nearest(quantiser.codebook), torch.arange(300))
    one_hot = F.one_hot(expected, 300).double()
    assert torch.equal(quantiser.lookup(expected), one_hot @ quantiser.codebook)


def test_averages_follow_the_closed_form():
    """After n batches sum = mu^n sum_0 + (1 - mu) sum_i mu^(n-i) Z_i; code = sum / count."""
    momentum = 0.9
    quantiser = trained_quantiser(momentum=momentum, codebook_size=4).double()
    total, number = quantiser.code_sum.clone(), quantiser.code_count.clone()
    batches = [torch.randn(8, 48, 8, dtype=torch.float64) for _ in range(5)]
    expected_sum, expected_count = momentum**5 * total, momentum**5 * number
    for i, z in enumerate(batches):
        one_hot = F.one_hot(quantiser.nearest(z), 4).double().flatten(0, 1)
        factor = (1 - momentum) * momentum ** (4 - i)
        expected_sum += factor * one_hot.T @ z.flatten(0, 1)
        expected_count += factor * one_hot.sum(0)
        quantiser(z)
    assert (quantiser.code_count > 1).all()  # nobody was restarted
    assert torch.allclose(quantiser.code_sum, expected_sum)
    assert torch.allclose(quantiser.code_count, expected_count)
    assert torch.allclose(quantiser.codebook, expected_sum / expected_count[:, None])


def test_gradient_passes_straight_through():
    """d quantised / d z is the identity; the value is a code."""
    quantiser = trained_quantiser().eval()
    z = torch.randn(2, 48, 8, requires_grad=True)
    out, weights = quantiser(z)["embeddings"], torch.randn(2, 48, 8)
    (weights * out).sum().backward()
    assert torch.equal(z.grad, weights)
    assert torch.allclose(out, quantiser.lookup(quantiser.nearest(z)), atol=1e-6)


def test_only_the_commitment_term_has_a_gradient():
    """With moving averages the lambda_E term has no gradient; the lambda_alpha term has one."""
    quantiser, z = trained_quantiser(), torch.randn(2, 48, 8, requires_grad=True)
    out = quantiser(z)
    assert not out["embedding_loss"].requires_grad
    assert torch.equal(out["embedding_loss"], out["commitment_loss"].detach())
    gradient, = torch.autograd.grad(out["commitment_loss"], z)
    codes = (out["embeddings"]).detach()
    assert torch.allclose(gradient, 2 * (z.detach() - codes) / z.numel(), atol=1e-6)


def test_perplexity_counts_the_tokens_in_use():
    """1 if all tokens are equal, V if all codes are equally frequent; unused codes are dead."""
    quantiser = Quantiser(TINY_TOKENIZER).eval()
    every = quantiser(quantiser.codebook[None])
    assert every["perplexity"] == pytest.approx(32) and every["dead_codes"] == 0
    one = quantiser(quantiser.codebook[:1].expand(1, 48, 8))
    assert one["perplexity"] == pytest.approx(1) and one["dead_codes"] == 31
    some = quantiser(torch.randn(4, 48, 8))
    assert 1 <= some["perplexity"] <= 32 - some["dead_codes"] + 1e-4


def test_evaluation_leaves_the_codebook_alone():
    """In evaluation mode the codebook never changes, not even with the first batch."""
    for quantiser in (Quantiser(TINY_TOKENIZER).eval(), trained_quantiser().eval()):
        before = {name: value.clone() for name, value in quantiser.state_dict().items()}
        quantiser(torch.randn(4, 48, 8))
        assert all(torch.equal(value, before[name])
                   for name, value in quantiser.state_dict().items())


def test_first_batch_gives_the_first_codes():
    """Codes start as different embeddings of the first batch, or near them if it has too few."""
    quantiser, z = Quantiser(TINY_TOKENIZER).train(), torch.randn(2, 48, 8)
    quantiser.initialise(z.flatten(0, 1))
    assert (quantiser.codebook[:, None] == z.flatten(0, 1)).all(-1).any(1).all()
    assert len(quantiser.codebook.unique(dim=0)) == 32 and quantiser.initialised
    quantiser.initialise(z[0, :5])
    distances = torch.cdist(quantiser.codebook, z[0, :5])
    assert distances.amin(1).max() < 0.3 and len(quantiser.codebook.unique(dim=0)) == 32
    quantiser.initialise(z[0, :1])  # one embedding has no spread
    assert quantiser.codebook.isfinite().all()


def starved_quantiser(**options) -> tuple[Quantiser, Tensor]:
    """A quantiser whose codes from 3 on were far from all of the last batch, and that batch."""
    quantiser = trained_quantiser(**options)
    quantiser.codebook[3:] += 1e3
    quantiser.code_count[3:] = 0.5
    quantiser.code_sum[3:] = 7.0
    z = torch.randn(8, 48, 8)
    quantiser(z)
    return quantiser, z.flatten(0, 1)


def test_unused_codes_restart_at_random_embeddings():
    """Restarted codes are random rows of the batch, not the first, with new averages."""
    quantiser, z = starved_quantiser()
    same = (quantiser.codebook[3:, None] == z).all(-1)  # (29, N)
    assert (same.sum(1) == 1).all()
    rows = same.float().argmax(1)
    assert len(rows.unique()) == 29 and rows.max() > 100
    assert torch.equal(quantiser.code_sum[3:], quantiser.codebook[3:])
    assert torch.equal(quantiser.code_count[3:], torch.ones(29))


def test_saved_and_loaded_training_steps_are_the_same():
    """Save, load, step equals step: averages and the flag of the first batch are in the state."""
    first = Tokenizer(TINY_TOKENIZER).train()
    first(poses(8))
    second = Tokenizer(TINY_TOKENIZER).train()
    second.load_state_dict(first.state_dict())
    for tokenizer in (first, second):
        torch.manual_seed(5)
        tokenizer(poses(8, seed=1))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


RANKS = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
import genhmr
rank, world = int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank,
                            world_size=world)
config = genhmr.TokenizerConfig(num_tokens=48, codebook_size=8, code_dim=4)
quantiser = genhmr.Quantiser(config).train()
torch.manual_seed(rank)  # the ranks draw differently, and agree all the same
quantiser.initialise(torch.randn(100, 4, generator=torch.Generator().manual_seed(0)))
for step in range(3):
    z = torch.randn(8, 48, 4, generator=torch.Generator().manual_seed(step))
    out = quantiser(z.chunk(world)[rank])
if rank == world - 1:
    torch.save({**quantiser.state_dict(), "perplexity": out["perplexity"]}, sys.argv[5])
if world > 1:
    dist.barrier()  # or the first to leave would take the connection away from the other
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_learn_one_codebook(tmp_path):
    """Averages run over the samples of all processes, and random restarts agree."""
    results = {}
    for world in (1, 2):
        out, store = tmp_path / f"{world}.pt", tmp_path / f"store{world}"
        folder = str(genhmr.Path(genhmr.__file__).parent)
        ranks = [subprocess.Popen([sys.executable, "-c", RANKS, folder, store, str(rank),
                                   str(world), out]) for rank in range(world)]
        assert [rank.wait(timeout=100) for rank in ranks] == [0] * world
        results[world] = torch.load(out, weights_only=True)
    for name, value in results[1].items():
        assert torch.allclose(value.float(), results[2][name].float(), atol=1e-5), name


# --------------------------------------------------------------------------------- tokenizer


def test_joints_and_tokens_are_neighbours_in_number():
    """A token sees 4 to 8 joints and no token none; a joint depends on a third of the tokens or
    more: four tokens per joint, but not of one joint."""
    tokenizer = Tokenizer(replace(TINY_TOKENIZER, num_tokens=96)).eval()
    pose = poses(1)[0].requires_grad_()
    seen = torch.stack([
        torch.autograd.grad(token.sum(), pose, retain_graph=True)[0].abs().sum((1, 2)) > 0
        for token in tokenizer.embed(pose[None])[0]])  # (96, 24)
    assert seen.sum(1).min() >= 4 and seen.sum(1).max() <= 8
    for row in seen:
        joints = row.nonzero().flatten()
        assert joints.max() - joints.min() == len(joints) - 1  # neighbours in SMPL's order
    embeddings = torch.randn(1, 96, 8, requires_grad=True)
    depends = torch.stack([
        torch.autograd.grad(joint.sum(), embeddings, retain_graph=True)[0][0].abs().sum(1) > 0
        for joint in genhmr.matrix_to_rotation_6d(tokenizer.decode_embeddings(embeddings))[0]])
    assert 32 <= depends.sum(1).min() and depends.sum(1).max() <= 70
    assert depends.any(0).all() and 8 <= depends.sum(0).min() and depends.sum(0).max() <= 18


def test_tokenizer_starts_near_the_rest_pose():
    """An untrained decoder gives small rotations, where 6D is well-conditioned."""
    for network, largest in (("convolutions", 0.5), ("joints", 1.2)):
        config = replace(TOKENIZER_PRESETS["cpu"], network=network)
        rotations = Tokenizer(config)(poses(8))["rotations"]
        assert (rotations - torch.eye(3)).abs().max() < largest
        assert (rotations - torch.eye(3)).abs().mean() < 0.3


def test_tokens_do_not_depend_on_the_precision():
    """Under autocast the tokenizer computes as without it."""
    tokenizer = Tokenizer(TINY_TOKENIZER).train()
    tokenizer(poses(8))
    tokenizer.eval()
    tokens, rotations = tokenizer.encode(poses(4)), tokenizer(poses(4))["rotations"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(poses(4)), tokens)
        assert torch.equal(tokenizer(poses(4))["rotations"], rotations)
        assert tokenizer.decode(tokens).dtype == torch.float32


ROBUST = replace(TINY_TOKENIZER, network="joints", normalise=True, corruption=0.5)


def test_tokens_of_the_joint_network_belong_to_joints():
    """Of its linear maps, token 2 j + k sees joint j alone, and joint j depends on these tokens."""
    tokenizer = Tokenizer(replace(ROBUST, normalise=False)).eval()
    for net in (tokenizer.encoder.net, tokenizer.decoder.net):
        nn.init.zeros_(net.whole[-1].weight)
        nn.init.zeros_(net.whole[-1].bias)
    pose = poses(1)[0].requires_grad_()
    seen = torch.stack([torch.autograd.grad(token.sum(), pose, retain_graph=True)[0].abs().sum(
        (1, 2)) > 0 for token in tokenizer.embed(pose[None])[0]])  # (48, 24)
    assert torch.equal(seen, torch.eye(24).bool().repeat_interleave(2, 0))
    embeddings = torch.randn(1, 48, 8, requires_grad=True)
    depends = torch.stack([
        torch.autograd.grad(joint.sum(), embeddings, retain_graph=True)[0][0].abs().sum(1) > 0
        for joint in tokenizer.decoder(embeddings.mT)[0].T])
    assert torch.equal(depends, seen.T)


def test_normalised_embeddings_have_no_scale():
    """Mean 0 and variance 1 over the dimensions of each embedding."""
    z = Tokenizer(ROBUST).embed(poses(3))
    assert torch.allclose(z.mean(-1), torch.zeros(3, 48), atol=1e-5)
    assert torch.allclose(z.var(-1, unbiased=False), torch.ones(3, 48), atol=1e-2)


def test_corruption_replaces_up_to_a_share_while_training_only():
    """Replaced embeddings are codes, a quarter of them at a share of up to one half."""
    codebook, embeddings = torch.randn(32, 8), torch.zeros(500, 48, 8)
    corrupted = genhmr.corrupt(embeddings, codebook, 0.5)
    wrong = (corrupted != 0).any(-1)
    assert wrong.float().mean() == pytest.approx(0.25, abs=0.02)
    assert 0.35 < wrong.float().mean(1).max() < 0.75
    assert torch.cdist(corrupted[wrong], codebook).amin(1).max() < 1e-2
    assert genhmr.corrupt(torch.ones(1, 48, 8), codebook, 0.0).eq(1).all()
    tokenizer = Tokenizer(ROBUST).train()
    tokenizer(poses(4))
    first, second = (tokenizer.decoder(torch.zeros(1, 8, 48)) for _ in range(2))
    assert torch.equal(first, second)
    pose = poses(4)
    drawn = []
    for seed in (0, 0, 1):
        trained = Tokenizer(ROBUST).train()
        trained.load_state_dict(tokenizer.state_dict())
        torch.manual_seed(seed)
        drawn.append(trained(pose)["rotations"])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    tokenizer.eval()
    assert torch.equal(tokenizer(pose)["rotations"], tokenizer(pose)["rotations"])
    assert torch.allclose(tokenizer(pose)["rotations"], tokenizer.decode(tokenizer.encode(pose)),
                          atol=1e-5)


def test_bad_poses_are_refused():
    """Axis-angles, or 52 joints, are a ValueError that shows the shape."""
    tokenizer = Tokenizer(TINY_TOKENIZER)
    for bad in (torch.zeros(2, 24, 3), torch.zeros(2, 52, 3, 3)):
        with pytest.raises(ValueError, match="expected matrices"):
            tokenizer.encode(bad)


def test_tokenizer_losses(body):
    """Zero for a perfect reconstruction, else mean absolute errors, weighted as in the paper."""
    batch = {"pose": poses(3), "betas": torch.randn(3, 10)}
    latent = {"embedding_loss": torch.tensor(2.0), "commitment_loss": torch.tensor(3.0)}
    terms = genhmr.tokenizer_losses({"rotations": batch["pose"], **latent}, batch, body)
    assert [terms[name].item() for name in ("pose", "vertices", "joints")] == [0, 0, 0]
    other = poses(3, seed=1)
    terms = genhmr.tokenizer_losses({"rotations": other, **latent}, batch, body)
    true, guess = body(batch["betas"], batch["pose"]), body(batch["betas"], other)
    expected = {"pose": (other - batch["pose"]).abs().mean(),
                "vertices": (true.vertices - guess.vertices).abs().mean(),
                "joints": (true.joints - guess.joints).abs().mean(),
                "embedding": 2.0, "commitment": 3.0}
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(float(value)), name
    total = genhmr.tokenizer_total_loss(terms, TokenizerConfig())
    assert total.item() == pytest.approx(float(
        expected["pose"] + 0.5 * expected["vertices"] + 0.3 * expected["joints"])
        + 0.02 * 2.0 + 0.02 * 3.0)


def test_tokenizer_overfits_one_batch(body):
    """A few hundred steps on one batch reduce the reconstruction loss to a quarter."""
    tokenizer = Tokenizer(replace(TINY_TOKENIZER, width=32, codebook_size=64))
    batch = {"pose": poses(8, spread=0.4), "betas": torch.zeros(8, 10)}
    optimizer = torch.optim.Adam(tokenizer.parameters(), 2e-3)
    history = []
    for _ in range(300):
        prediction = tokenizer(batch["pose"])
        history.append(F.l1_loss(prediction["rotations"], batch["pose"]))
        loss = history[-1] + 0.02 * prediction["commitment_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert history[-1] < 0.25 * history[0]
    assert prediction["perplexity"] > 4


# ---------------------------------------------------------------------- deformable attention


def attention_input(batch: int = 2, queries: int = 5, heads: int = 3, points: int = 2,
                    channels: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Maps, locations also outside of them, and weights that sum to one."""
    cells = sum(height * width for height, width in SHAPES)
    values = torch.randn(batch, cells, channels, dtype=dtype)
    locations = 1.6 * torch.rand(batch, queries, heads, 3, points, 2, dtype=dtype) - 0.3
    weights = torch.rand(batch, queries, heads, 3, points, dtype=dtype)
    return values, locations, weights / weights.sum((3, 4), keepdim=True)


def as_maps(values: Tensor, shapes=SHAPES) -> list[Tensor]:
    """(B, N, C) -> the maps, (B, C, h, w) each."""
    parts = values.split([height * width for height, width in shapes], 1)
    return [part.mT.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]


def naive_sample_maps(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The definition, in loops: four neighbours of each point, nothing outside of the map."""
    maps = as_maps(values)
    batch, queries, heads, levels, points = weights.shape
    out = torch.zeros(batch, queries, heads, values.shape[2], dtype=values.dtype)
    for b, q, h, level, k in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        height, width = SHAPES[level]
        x = locations[b, q, h, level, k, 0].item() * width - 0.5
        y = locations[b, q, h, level, k, 1].item() * height - 0.5
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    part = (1 - abs(x - column)) * (1 - abs(y - row))
                    out[b, q, h] += weights[b, q, h, level, k] * part * maps[level][
                        b, :, row, column]
    return out


def grid_sample_attention(module: DeformableAttention, queries: Tensor, reference: Tensor,
                          values: Tensor) -> Tensor:
    """Deformable-DETR's way: project every cell, sample each map by grid_sample, add up."""
    heads, levels, points = module.shape
    batch, length = queries.shape[:2]
    offsets = module.sampling_offsets(queries).view(batch, length, heads, levels, points, 2)
    weights = module.attention_weights(queries).view(batch, length, heads, -1).softmax(-1)
    weights = weights.view(batch, length, heads, levels, points)
    sizes = torch.tensor([[width, height] for height, width in SHAPES])
    locations = reference[:, None, None, None] + offsets / sizes[:, None]
    projected = module.value_proj(values)
    out = 0.0
    for level, map_ in enumerate(as_maps(projected)):
        map_ = map_.unflatten(1, (heads, -1)).flatten(0, 1)  # (B H, D / H, h, w)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # (B H, L, P, 2)
        sampled = F.grid_sample(map_, grid, align_corners=False)  # (B H, D / H, L, P)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        out = out + (weight * sampled).sum(-1)
    out = out.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)
    return module.output_proj(out)


def random_attention(dtype: torch.dtype = torch.float64) -> DeformableAttention:
    """A layer whose every parameter matters."""
    module = DeformableAttention(replace(TINY, width=12, heads=3, pyramid_width=4)).to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


def test_sampling_equals_four_neighbours_in_loops():
    """sample_maps equals its definition to rounding, also across borders."""
    values, locations, weights = attention_input()
    sums, inside = sample_maps(values, SIZES, locations, weights)
    assert torch.allclose(sums, naive_sample_maps(values, locations, weights), atol=1e-14)
    ones = naive_sample_maps(torch.ones_like(values), locations, weights)[..., 0]
    assert torch.allclose(inside, ones, atol=1e-14)


def test_sampling_of_simple_fields_is_exact():
    """A constant field gives the constant, a ramp the location; far outside the sum is zero."""
    values, locations, weights = attention_input(queries=200)
    inner = 0.5 / 3 + (1 - 1 / 3) * torch.rand_like(locations)  # between the outermost centres
    ramps = torch.cat([torch.stack(torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width,
        indexing="ij"), -1).flatten(0, 1) for height, width in SHAPES]).double()
    ramps = torch.cat((ramps, torch.full_like(ramps, 3.0)), 1).expand(2, -1, -1)
    sums, inside = sample_maps(ramps, SIZES, inner, weights)
    expected = (weights[..., None] * inner).sum((3, 4))
    assert torch.allclose(sums[..., 1], expected[..., 0], atol=1e-7)  # x, along the width
    assert torch.allclose(sums[..., 0], expected[..., 1], atol=1e-7)
    assert torch.allclose(sums[..., 2:], torch.full_like(sums[..., 2:], 3.0))
    assert torch.allclose(inside, torch.ones_like(inside))
    for far in (-5.0, 7.0, 1e30, -1e30, math.inf, -math.inf):
        sums, inside = sample_maps(values, SIZES, torch.full_like(locations, far), weights)
        assert not sums.any() and not inside.any()


def test_sampling_at_centres_is_a_lookup():
    """A sample at the centre of a cell is the cell; on the border it is half of the cell."""
    sizes = torch.tensor([(4, 3)])
    values = torch.randn(1, 12, 5)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(3), indexing="ij")
    centres = torch.stack(((columns + 0.5) / 3, (rows + 0.5) / 4), -1).view(1, 12, 1, 1, 1, 2)
    weights = torch.ones(1, 12, 1, 1, 1)
    assert torch.allclose(sample_maps(values, sizes, centres, weights)[0][:, :, 0], values,
                          atol=1e-5)
    border = torch.tensor([0.5 / 3, 0.0]).expand(1, 1, 1, 1, 1, 2)
    half = sample_maps(values, sizes, border, weights[:, :1])
    assert torch.allclose(half[0][0, 0, 0], 0.5 * values[0, 0], atol=1e-6)
    assert half[1].item() == pytest.approx(0.5)


def test_sampling_gradients():
    """Gradients of maps, locations and weights pass gradcheck."""
    values, locations, weights = attention_input(1, 2, 2, 1, 2)
    inputs = [x.requires_grad_() for x in (values, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, at, w: sample_maps(v, SIZES, at, w), inputs, atol=1e-6)


def test_attention_equals_projecting_everything_first():
    """Sampling before projecting equals projecting before sampling, in values and gradients."""
    module, reference = random_attention(), torch.rand(5, 2).double()
    queries, values = torch.randn(2, 5, 12).double(), attention_input()[0]
    leaves = [queries, reference, values, *module.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    ours = module(queries, reference, values, SIZES)
    theirs = grid_sample_attention(module, queries, reference, values)
    assert torch.allclose(ours, theirs, atol=1e-12)
    weights = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad((weights * ours).sum(), leaves),
                    torch.autograd.grad((weights * theirs).sum(), leaves), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor that is created."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **kwargs or {})
        for tensor in (made if isinstance(made, tuple | list) else [made]):
            if isinstance(tensor, Tensor) and not operation.is_view:
                self.elements = max(self.elements, tensor.numel())
        return made


def test_attention_makes_nothing_of_the_size_of_the_maps():
    """Its largest tensor holds the sampled vectors, not the projected maps."""
    config = Config(width=64, pyramid_width=64, vit_dim=64, vit_heads=4)
    attention, sizes = DeformableAttention(config), torch.tensor([(16, 12), (64, 48), (128, 96)])
    queries, values = torch.randn(1, 96, 64), torch.randn(1, 15_552, 64)
    largest = {}
    for function in (attention, partial(project_then_sample, attention)):
        with torch.no_grad(), Largest() as noted:
            function(queries, torch.rand(96, 2), values, sizes)
        largest[function] = noted.elements
    ours, usual = largest.values()
    assert ours == 96 * 8 * 64 and usual >= values.numel()


def test_attention_equals_transformers():
    """With its weights the layer equals Hugging Face's module to 1e-12."""
    try:
        from transformers.models.deformable_detr import modeling_deformable_detr as peer
    except Exception as error:  # not there, or without what it needs, or beside a wrong torchvision
        pytest.skip(f"no transformers: {error}")

    class Settings:
        d_model, num_feature_levels, disable_custom_kernels = 12, 3, True

    module = random_attention()
    module.value_proj = nn.Linear(12, 12).double()
    other = peer.DeformableDetrMultiscaleDeformableAttention(Settings(), num_heads=3, n_points=2)
    other.double().load_state_dict(module.state_dict())
    queries, reference = torch.randn(2, 5, 12).double(), torch.rand(5, 2).double()
    values = torch.randn(2, sum(h * w for h, w in SHAPES), 12).double()
    shapes = torch.tensor(SHAPES)
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    expected, _ = other(
        queries, encoder_hidden_states=values,
        reference_points=reference[None, :, None].expand(2, -1, 3, -1), spatial_shapes=shapes,
        spatial_shapes_list=list(SHAPES), level_start_index=starts)
    assert torch.allclose(module(queries, reference, values, SIZES), expected, atol=1e-12)


def test_nan_stays_in_its_query():
    """A location or weight that is NaN spoils its own query and head, forward and backward."""
    values, locations, weights = attention_input()
    expected, _ = sample_maps(values, SIZES, locations, weights)
    locations[1, 2, 0, 1, 1, 0] = math.nan
    weights[0, 1, 2, 0, 0] = math.nan
    locations.requires_grad_()
    sums, inside = sample_maps(values, SIZES, locations, weights)
    bad = torch.zeros_like(inside, dtype=torch.bool)
    bad[1, 2, 0] = bad[0, 1, 2] = True
    assert torch.equal(sums.isnan().all(-1), bad) and torch.equal(inside.isnan(), bad)
    assert torch.equal(sums[~bad], expected[~bad])
    gradient, = torch.autograd.grad(sums[~bad].sum(), locations)
    assert gradient[~bad].isfinite().all()


def test_nan_picture_stays_in_its_row(lively):
    """A NaN picture does not spoil the others of its batch."""
    batch = images(3).float()
    tokens = torch.full((3, 48), lively.mask_token)
    with torch.no_grad():
        expected = lively(batch, tokens)
        batch[1, 0, 5, 20] = math.nan
        spoiled = lively(batch, tokens)
    for name, value in spoiled.items():
        assert name == "tokens" or value[1].isnan().any() or not value.numel()
        assert torch.allclose(value[[0, 2]], expected[name][[0, 2]], atol=1e-5)


def test_attention_starts_as_a_ring():
    """Heads look into eight directions, their points at 1, 2, 3, 4 cells, equally weighted."""
    config = replace(TINY, width=32, heads=8, points=4)
    layer = GenHMR(config).transformer.layers[0].cross_attention
    assert not layer.sampling_offsets.weight.any() and not layer.attention_weights.weight.any()
    offsets = layer.sampling_offsets.bias.view(8, 3, 4, 2)
    assert torch.allclose(offsets.abs().amax(-1), torch.arange(1.0, 5).expand(8, 3, 4))
    assert torch.allclose(offsets[0, 0, 0], torch.tensor([1.0, 0.0]))
    assert torch.allclose(offsets[2, 1, 3], torch.tensor([0.0, 4.0]), atol=1e-5)
    assert len(offsets[:, 0, 0].round(decimals=3).unique(dim=0)) == 8


# ------------------------------------------------------------------------------------- model


def test_convention_images():
    """uint8 and floats of 0..255 are the same; the outer eighths of the width are not seen."""
    model, pictures = lively_model(), images()
    features = model.encode(pictures)
    assert torch.equal(features.values, model.encode(pictures.float()).values)
    changed = pictures.clone()
    changed[..., :8] = 0
    changed[..., -8:] = 255
    assert torch.equal(features.values, model.encode(changed).values)
    changed[..., 8] = 255 - changed[..., 8]
    assert not torch.allclose(features.values, model.encode(changed).values)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1) * 255
    assert model.normalise(mean.expand(1, 3, 64, 64)).abs().max() < 1e-6


def test_maps_have_the_scales_of_the_config():
    """Heights and widths are those of the encoder's map times 1, 4, 8 (and 16, if asked for)."""
    config = replace(PRESETS["paper"], vit_dim=16, vit_heads=2, vit_depth=1, pyramid_width=4)
    features = GenHMR(config).encode(images(2, 256))
    assert features.sizes.tolist() == [[16, 12], [64, 48], [128, 96]]
    assert features.values.shape == (2, 15_552, 4)
    assert features.betas.shape == (2, 10) and features.camera.shape == (2, 3)
    features = GenHMR(replace(config, scales=(1, 4, 8, 16))).encode(images(1, 256))
    assert features.sizes[-1].tolist() == [256, 192]  # as fine as the picture


def test_maps_lie_one_behind_the_other_row_by_row():
    """`values` are the maps of `sizes`: cell (y, x) of a level is at its start + y w + x."""
    model = lively_model()
    features = model.encode(images())
    tokens = model.backbone(model.normalise(images()))
    grid = tokens.transpose(1, 2).unflatten(2, (4, 3))
    for level, map_ in zip(model.pyramid, as_maps(features.values), strict=True):
        assert torch.allclose(level(grid), map_, atol=1e-5)


def test_regressor_starts_at_the_mean():
    """New models predict nearly no shape and HMR2.0's mean camera."""
    features = GenHMR(TINY).encode(images(4))
    assert features.betas.abs().max() < 0.1
    assert torch.allclose(features.camera, torch.tensor([0.9, 0.0, 0.0]).expand(4, 3), atol=0.1)


def test_masked_tokens_are_not_seen(lively):
    """[MASK] hides which token it replaces; any other token changes the prediction of all."""
    features = lively.encode(images(1))
    tokens = torch.randint(32, (1, 48))
    masked = tokens.clone()
    masked[:, 10] = lively.mask_token
    logits = lively.predict_logits(features, masked)
    assert logits.shape == (1, 48, 32)  # [MASK] is no output
    tokens[:, 10] = (tokens[:, 10] + 1) % 32
    other = tokens.clone()
    other[:, 10] = lively.mask_token
    assert torch.equal(lively.predict_logits(features, other), logits)
    moved = (lively.predict_logits(features, tokens) - logits).abs().amax(-1)
    assert (moved > 0).all()


def test_bad_input_is_refused(lively):
    """Pictures and tokens of other shapes or types are a ValueError that says what is expected."""
    for bad in (images(2, 32), images(2)[0], images(2)[:, :1]):
        with pytest.raises(ValueError, match="expected \\(B, 3, 64, 64\\)"):
            lively.encode(bad)
    features = lively.encode(images(2))
    for bad in (torch.zeros(2, 96, dtype=torch.int64), torch.zeros(2, 48),
                torch.zeros(1, 48, dtype=torch.int64)):
        with pytest.raises(ValueError, match="expected int64"):
            lively.predict_logits(features, bad)


def test_tokenizer_stays_frozen():
    """train(), of the model or of a parent module, leaves the tokenizer in evaluation mode."""
    model = GenHMR(TINY)
    assert model.train() is model and model.training and model.backbone.training
    assert not any(module.training for module in model.tokenizer.modules())
    assert model.eval() is model and not model.training
    assert not any(parameter.requires_grad for parameter in model.tokenizer.parameters())
    names = set(model.state_dict())
    assert {"tokenizer.quantiser.codebook", "tokenizer.quantiser.code_sum"} <= names


def test_vit_blocks_are_pre_norm_transformers():
    """Behind the patch embedding the encoder is torch's own pre-norm transformer, twice."""
    vit = randomised(GenHMR(replace(TINY, vit_drop_path=0.0)).backbone)
    x = torch.randn(2, 3, 64, 48)
    patches = F.unfold(F.pad(x, (2, 2, 2, 2)), 16, stride=16)  # two pixels outside, (B, 768, 12)
    y = (vit.patch_embed["proj"].weight.flatten(1) @ patches).mT + vit.patch_embed["proj"].bias
    y = y + vit.pos_embed[:, 1:] + vit.pos_embed[:, 0]
    for block in vit.blocks:
        peer = nn.TransformerEncoderLayer(32, 2, 128, 0.0, "gelu", 1e-6, True, True).eval()
        state = block.state_dict()
        for ours, theirs in (("attn.qkv.", "self_attn.in_proj_"), ("mlp.fc", "linear"),
                             ("attn.proj", "self_attn.out_proj")):
            state = {name.replace(ours, theirs): value for name, value in state.items()}
        peer.load_state_dict(state)
        y = peer(y)
    assert torch.allclose(vit(x), F.layer_norm(
        y, (32,), vit.last_norm.weight, vit.last_norm.bias, 1e-6), atol=1e-4)


def randomised(module: nn.Module) -> nn.Module:
    """Random norms and biases, so that a forgotten one changes the output."""
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return module.eval()


def test_mixed_precision():
    """Under bfloat16 autocast outputs are finite, close, and the camera is full precision."""
    model = lively_model(replace(TINY, vit_drop_path=0.0)).train()
    tokens = torch.full((2, 48), model.mask_token)
    expected = model(images(), tokens)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images(), tokens)
    assert out["camera"].dtype == torch.float32
    assert (out["camera"] - expected["camera"]).abs().max() < 2e-2
    scale = expected["logits"].abs().mean()
    assert (out["logits"] - expected["logits"]).abs().mean() < 0.1 * scale
    out["logits"].float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for name, parameter in model.named_parameters()
               if name.startswith(("transformer", "pyramid", "backbone")))


# ---------------------------------------------------------------------------- masks, training


def test_masks_follow_the_cosine_ratio():
    """Between 1 and L tokens are masked, 2 / pi of them on average, all of them in 9.2 %."""
    tokens = torch.randint(32, (40_000, 96))
    masked, mask = genhmr.random_mask(tokens, 32)
    assert torch.equal(masked == 32, mask) and torch.equal(masked[~mask], tokens[~mask])
    number = mask.sum(1)
    assert number.min() >= 1 and number.max() == 96
    ratio = number.double().mean().item() / 96
    assert ratio == pytest.approx(2 / math.pi + 0.5 / 96, abs=0.005)  # ceil adds half a token
    everything = 2 / math.pi * math.acos(95 / 96)
    assert everything == pytest.approx(0.092, abs=0.0005)
    assert (number == 96).double().mean().item() == pytest.approx(everything, abs=0.005)
    assert mask.double().mean(0) == pytest.approx([ratio] * 96, abs=0.02)  # no favourite places
    assert len(mask[:100].unique(dim=0)) > 80  # each sample its own
    first, second = (genhmr.random_mask(tokens[:5], 32,
                                                generator=torch.Generator().manual_seed(1))
                     for _ in range(2))
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("tau_max", [0.3, 0.7])
def test_a_smaller_range_of_tau_masks_more(tau_max):
    """No fewer tokens than gamma(tau_max) of them are masked, and all of them at times."""
    _, mask = genhmr.random_mask(torch.zeros(3000, 96, dtype=torch.int64), 32, tau_max)
    counts = mask.sum(1)
    least = math.ceil(96 * math.cos(0.5 * math.pi * tau_max))
    assert least <= counts.min() <= least + 2 and counts.max() == 96


def test_at_least_one_token_is_masked(monkeypatch):
    """Where tau rounds to 1 the ratio is 0, or less: still one token is masked."""
    monkeypatch.setattr(torch, "cos", lambda x: torch.full_like(x, -4e-8))  # float32's cos(pi / 2)
    _, mask = genhmr.random_mask(torch.zeros(3, 96, dtype=torch.int64), 32)
    assert mask.sum(1).tolist() == [1, 1, 1]


def test_samples_without_a_pose_are_all_masked(body):
    """All tokens of a sample without a pose are masked, and L_mask ignores them."""
    model, batch = GenHMR(TINY).eval(), batch_of(body)
    batch["pose_valid"] = torch.tensor([1.0, 0, 1, 0])
    batch = genhmr.mask_batch(model, batch)
    assert (batch["masked_tokens"][[1, 3]] == 32).all() and batch["mask"][[1, 3]].all()
    assert torch.equal(batch["tokens"], model.tokenizer.encode(batch["pose"]))
    logits = torch.randn(4, 48, 32, requires_grad=True)
    genhmr.mask_loss(logits, batch, TINY).backward()
    assert not logits.grad[[1, 3]].any() and logits.grad[[0, 2]].any()


def test_mask_loss_of_ignorance_is_the_log_of_the_vocabulary(body):
    """ln V for equal logits, 0 for certainty, over all tokens or only the masked ones."""
    model = GenHMR(TINY).eval()
    batch = genhmr.mask_batch(model, batch_of(body))
    assert genhmr.mask_loss(torch.zeros(4, 48, 32), batch, TINY).item() == (
        pytest.approx(math.log(32)))
    right = 100.0 * F.one_hot(batch["tokens"], 32).float()
    assert genhmr.mask_loss(right, batch, TINY).item() == pytest.approx(0, abs=1e-6)
    wrong = torch.where(batch["mask"][..., None], right, 0.0)  # right where masked, else ignorant
    masked_only = replace(TINY, mask_loss_on="masked")
    assert genhmr.mask_loss(wrong, batch, masked_only).item() == pytest.approx(0, abs=1e-6)
    seen = (~batch["mask"]).float().mean().item()
    assert genhmr.mask_loss(wrong, batch, TINY).item() == pytest.approx(seen * math.log(32))


def test_temperature_falls_and_stays():
    """Eq. 5 over half of the steps, then constant, where the formula alone would rise again."""
    config = replace(TINY, steps=1000)
    assert genhmr.gumbel_temperature(0, config) == 1.0
    assert genhmr.gumbel_temperature(250, config) == pytest.approx(0.505)
    assert genhmr.gumbel_temperature(500, config) == pytest.approx(0.01)
    assert {genhmr.gumbel_temperature(step, config) for step in (600, 750, 1000)} == {0.01}
    values = [genhmr.gumbel_temperature(step, config) for step in range(501)]
    assert all(a > b for a, b in zip(values, values[1:], strict=False))


def test_relaxed_tokens_are_tokens_and_have_the_soft_gradient():
    """Forward, exact codes of the codebook; backward, the gradient of Eq. 6."""
    model = GenHMR(TINY).eval()
    logits, weights = torch.randn(2, 48, 32, requires_grad=True), torch.randn(2, 48, 8)
    seen = []
    model.tokenizer.decode_embeddings = lambda y: seen.append(y) or y  # look inside
    for temperature in (1.0, 0.1):
        out = genhmr.relax(model, logits, temperature, torch.Generator().manual_seed(2))
        assert torch.cdist(out.detach(), model.tokenizer.codebook.expand(2, -1, -1)).amin(
            -1).max() < 2e-3
        flat = out.detach().flatten(0, 1)
        assert all(any(torch.equal(row, code) for code in model.tokenizer.codebook)
                   for row in flat[:10])
        gradient, = torch.autograd.grad((weights * out).sum(), logits)
        uniform = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2))
        noise = -(-uniform.log()).log()
        soft = ((logits + noise) / temperature).softmax(-1) @ model.tokenizer.codebook
        expected, = torch.autograd.grad((weights * soft).sum(), logits)
        assert torch.allclose(gradient, expected, atol=1e-5)
        assert gradient.abs().sum() > 0


def test_relaxed_tokens_follow_the_categorical_distribution():
    """Whatever the temperature, tokens are drawn with the probabilities of the logits."""
    model = GenHMR(TINY).eval()
    logits = torch.linspace(-2, 2, 32).expand(500, 48, 32)
    model.tokenizer.decode_embeddings = lambda y: y
    for temperature in (1.0, 0.01):
        tokens = model.tokenizer.quantiser.nearest(genhmr.relax(model, logits, temperature))
        frequency = torch.bincount(tokens.flatten(), minlength=32) / tokens.numel()
        assert torch.allclose(frequency, logits[0, 0].softmax(-1), atol=0.01)


def test_relaxed_gradients_reach_every_logit_of_a_pose():
    """Finite at low temperatures too, through codebook, decoder and 6D; frozen weights get none."""
    model = GenHMR(TINY).eval()
    logits = (10 * torch.randn(2, 48, 32)).requires_grad_()
    for temperature in (1.0, 0.01):
        rotations = genhmr.relax(model, logits, temperature)
        assert torch.allclose(rotations.det(), torch.ones(2, 24), atol=1e-4)
        gradient, = torch.autograd.grad(rotations.square().cumsum(-1).sum(), logits)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


# ------------------------------------------------------------------------------------ losses


def perfect(body: Body, model: GenHMR, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A prediction that is certain of the tokens, and right about all else."""
    return {"logits": 1e4 * F.one_hot(batch["tokens"], 32).float(), "betas": batch["betas"],
            "camera": batch["camera"]}


def decodable_batch(body: Body, model: GenHMR, size: int = 4) -> dict[str, Tensor]:
    """A batch of poses that the tokenizer can represent: a perfect prediction has no error."""
    batch = batch_of(body, size)
    batch["tokens"] = torch.randint(32, (size, 48))
    batch["pose"] = model.tokenizer.decode(batch["tokens"])
    keypoints = body.of(batch["betas"], batch["pose"])
    in_crop = genhmr.project_to_crop(keypoints, batch["camera"], TINY.focal)
    batch["keypoints_2d"] = 64 * (in_crop + 0.5)
    batch["keypoints_3d"] = keypoints + torch.tensor([0.3, -0.2, 40.0])
    batch["mask"] = torch.rand(size, 48) < 0.5
    batch["mask"][:, 0] = True
    return batch


def test_losses_vanish_for_the_truth(body):
    """True tokens, shape and camera have no loss; L_3D does not depend on the translation."""
    model = GenHMR(TINY).eval()
    batch = decodable_batch(body, model)
    terms = genhmr.losses(perfect(body, model, batch), batch, model, body, 1.0)
    assert set(terms) == {"mask", "keypoints_3d", "keypoints_2d", "pose", "betas"}
    for name, value in terms.items():
        assert value.ndim == 0 and value.item() == pytest.approx(0, abs=2e-2), name


def test_losses_are_those_of_48_samples(body):
    """Sums of errors over joints and coordinates, a mean over samples, times 48."""
    model = GenHMR(TINY).eval()
    batch = decodable_batch(body, model)
    prediction = perfect(body, model, batch)
    prediction["betas"] = batch["betas"] + 0.5
    prediction["camera"] = batch["camera"] + torch.tensor([0.0, 0.1, 0.0])
    terms = genhmr.losses(prediction, batch, model, body, 1.0)
    assert terms["betas"].item() == pytest.approx(48 * 10 * 0.25)
    guess = body.of(prediction["betas"], batch["pose"])
    flat = (genhmr.project_to_crop(guess, prediction["camera"], TINY.focal)
            - (batch["keypoints_2d"] / 64 - 0.5)).abs().sum()
    assert terms["keypoints_2d"].item() == pytest.approx(48 / 4 * flat.item(), rel=1e-3)
    true = batch["keypoints_3d"]
    error = ((guess - guess[:, :1]) - (true - true[:, :1])).abs().sum()
    assert terms["keypoints_3d"].item() == pytest.approx(48 / 4 * error.item(), rel=1e-3)


def test_pose_loss_is_the_square_of_matrices(body):
    """Sum over joints, rows and columns of squared differences, as HMR2.0's."""
    model = GenHMR(TINY).eval()
    batch = decodable_batch(body, model)
    prediction = perfect(body, model, batch)
    batch["pose"] = poses(4, seed=9)
    terms = genhmr.losses(prediction, batch, model, body, 1.0)
    expected = (model.tokenizer.decode(batch["tokens"]) - batch["pose"]).square().sum()
    assert terms["pose"].item() == pytest.approx(48 / 4 * expected.item(), rel=1e-3)


def test_what_is_invalid_counts_as_nothing(body):
    """Invalid entries, even NaN, change neither losses nor gradients; a mean of parts is exact."""
    model = GenHMR(replace(TINY, vit_drop_path=0.0)).eval()
    batch = genhmr.mask_batch(model, batch_of(body))
    for name in ("pose_valid", "betas_valid"):
        batch[name] = torch.tensor([1.0, 0, 1, 1])
    for name in ("keypoints_3d_valid", "keypoints_valid"):
        batch[name] = (torch.rand(4, 45) > 0.4).float()
    spoiled = {name: value.clone() for name, value in batch.items()}
    spoiled["pose"][1], spoiled["betas"][1] = math.nan, math.nan
    spoiled["keypoints_2d"][batch["keypoints_valid"] == 0] = math.nan
    hidden = batch["keypoints_3d_valid"] == 0
    hidden[:, 0] = False  # the pelvis is what the others are relative to
    batch["keypoints_3d_valid"][:, 0] = spoiled["keypoints_3d_valid"][:, 0] = 1.0
    spoiled["keypoints_3d"][hidden] = math.nan
    logits, results = torch.randn(4, 48, 32), []
    for data in (batch, spoiled):
        leaf = logits.clone().requires_grad_()
        torch.manual_seed(3)
        prediction = {"logits": leaf, "betas": torch.zeros(4, 10),
                      "camera": torch.tensor([0.9, 0, 0]).expand(4, 3)}
        total = genhmr.total_loss(genhmr.losses(prediction, data, model, body, 1.0), model.config)
        results.append((total, torch.autograd.grad(total, leaf)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_total_loss_is_the_weighted_sum():
    """Each weight multiplies its own term."""
    terms = {"mask": 2.0, "keypoints_3d": 3.0, "keypoints_2d": 5.0, "pose": 7.0, "betas": 11.0}
    expected = 2.0 + 5e-2 * 3 + 1e-2 * 5 + 1e-3 * 7 + 5e-4 * 11
    assert genhmr.total_loss(terms, Config()) == pytest.approx(expected)


def test_parameter_groups():
    """Every trainable parameter once, decay on matrices only, nothing of the tokenizer."""
    model = GenHMR(TINY)
    decayed, spared = genhmr.parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = Counter(names[id(p)] for group in (decayed, spared) for p in group["params"])
    assert found == Counter(name for name in names.values() if not name.startswith("tokenizer."))
    spared_names = {names[id(p)] for p in spared["params"]}
    assert {"backbone.pos_embed", "transformer.mask_embedding", "transformer.reference",
            "transformer.position_embedding", "regressor.mlp.fc2.bias"} <= spared_names
    assert all(p.ndim >= 2 for p in decayed["params"])


def test_overfits_one_batch(body):
    """Some steps on one batch learn tokens, shape and camera, and change every parameter."""
    model = GenHMR(replace(TINY, vit_drop_path=0.0, layers=1))
    model.tokenizer.quantiser.codebook.mul_(3.0)
    model.train()
    batch = batch_of(body)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.Adam(genhmr.parameter_groups(model, 0.0), 5e-3)
    history = []
    for step in range(80):
        data = genhmr.mask_batch(model, batch)
        prediction = model(data["image"], data["masked_tokens"])
        terms = genhmr.losses(prediction, data, model, body, max(0.1, 1.0 - step / 40))
        history.append(terms["mask"].item())
        optimizer.zero_grad()
        genhmr.total_loss(terms, model.config).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    assert history[0] > 3 and sum(history[-5:]) / 5 < 0.35 * history[0]
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("tokenizer."), name
    found = genhmr.sample(model.eval(), batch["image"])
    agreement = (found.tokens == model.tokenizer.encode(batch["pose"])).float().mean()
    assert agreement > 0.7


# ---------------------------------------------------------------------------------- schedules


def test_schedules_of_the_paper():
    """At 96 tokens and 5 iterations the counts are those of the printed formulas."""
    assert {name: mask_counts(96, 5, name) for name in SCHEDULES} == SPEC_COUNTS


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_fall_from_one_to_zero(name):
    """gamma(0) = 1, gamma(1) = 0 (to rounding), in between strictly decreasing."""
    gamma = SCHEDULES[name]
    values = [gamma(i / 1000) for i in range(1001)]
    assert values[0] == 1.0 and values[-1] == pytest.approx(0.0, abs=1e-15)
    assert all(a > b for a, b in zip(values, values[1:], strict=False))
    assert all(-1e-15 <= value <= 1.0 for value in values)


def test_identities_of_the_schedules():
    """Symmetry, shapes and areas: cosine is the square of the one in training."""
    x = [i / 997 for i in range(998)]
    gamma = {name: [function(t) for t in x] for name, function in SCHEDULES.items()}
    training = gamma["training"]
    assert gamma["cosine"] == pytest.approx([value**2 for value in training], abs=1e-12)
    for name in ("cosine", "linear"):
        mirrored = [SCHEDULES[name](1 - t) for t in x]
        assert [a + b for a, b in zip(gamma[name], mirrored, strict=True)] == pytest.approx(
            [1.0] * 998)
    assert [value**2 + t**2 for value, t in zip(gamma["sqrt"], x, strict=True)] == pytest.approx(
        [1.0] * 998)
    assert all(a >= b for a, b in zip(gamma["cubic"], gamma["linear"], strict=True))
    assert all(a >= b for a, b in zip(gamma["sqrt"], gamma["linear"], strict=True))
    areas = {"cosine": 0.5, "linear": 0.5, "cubic": 0.75, "sqrt": math.pi / 4,
             "training": 2 / math.pi}
    for name, area in areas.items():
        trapezoids = [(a + b) / 2 / 997
                      for a, b in zip(gamma[name], gamma[name][1:], strict=False)]
        assert sum(trapezoids) == pytest.approx(area, abs=1e-4)
    for name in ("cubic", "sqrt", "training"):  # concave, also where the paper says convex
        bends = [a - 2 * b + c for a, b, c in
                 zip(gamma[name], gamma[name][1:], gamma[name][2:], strict=False)]
        assert max(bends) < 1e-12


@given(length=st.integers(1, 384), iterations=st.integers(1, 100),
       schedule=st.sampled_from(list(SCHEDULES)))
def test_counts_never_rise(length, iterations, schedule):
    """T + 1 counts fall from L to 0."""
    counts = mask_counts(length, iterations, schedule)
    assert len(counts) == iterations + 1 and counts[0] == length and counts[-1] == 0
    assert all(a >= b >= 0 for a, b in zip(counts, counts[1:], strict=False))


@given(length=st.sampled_from([24, 48, 72, 96, 100, 192, 384]), iterations=st.integers(1, 64))
def test_counts_are_exact(length, iterations):
    """Linear and cubic equal exact arithmetic, where plain floats are one off 167 times."""
    for name, gamma in (("linear", lambda x: 1 - x), ("cubic", lambda x: 1 - x**3)):
        expected = [math.ceil(gamma(Fraction(t, iterations)) * length)
                    for t in range(iterations + 1)]
        assert mask_counts(length, iterations, name) == expected


def test_wart_float_traps_of_the_schedules():
    """Where plain ceil(gamma L) is wrong: an exact 24, a leftover token, 48 for 49."""
    assert math.ceil(SCHEDULES["cosine"](2 / 3) * 96) == 25
    assert mask_counts(96, 3)[2] == 24
    assert math.ceil(SCHEDULES["training"](1.0) * 96) == 1
    assert mask_counts(96, 5, "training")[-1] == 0
    assert mask_counts(72, 3, "linear") == [72, 48, 24, 0]


def stalls(schedule: str, iterations: int, length: int = 96) -> int:
    counts = mask_counts(length, iterations, schedule)
    return sum(a == b for a, b in zip(counts, counts[1:], strict=False))


def test_wart_some_iterations_change_nothing():
    """Slow curves mask all tokens again."""
    assert [stalls("cubic", t) for t in (5, 10, 15, 20)] == [1, 2, 3, 4]
    assert [stalls("sqrt", t) for t in (5, 10, 15, 20)] == [0, 1, 2, 3]
    assert [stalls("cosine", t) for t in (5, 10, 15, 20)] == [0, 0, 0, 1]
    assert next(t for t in range(1, 99) if stalls("cosine", t)) == 16
    assert next(t for t in range(1, 99) if stalls("linear", t)) == 97


def test_bad_schedules_are_refused():
    """An unknown name lists the known ones; less than one iteration is refused."""
    with pytest.raises(ValueError, match="cosine, linear, cubic, sqrt, training"):
        mask_counts(96, 5, "square root")
    with pytest.raises(ValueError, match="1 or more"):
        mask_counts(96, 0)


# ----------------------------------------------------------------------------------- sampling

OPTIONS = {"iterations": st.integers(1, 24), "schedule": st.sampled_from(list(SCHEDULES)),
           "top_k": st.sampled_from([1, 2, 5, 32]), "remask": st.sampled_from(["never", "any"])}
MODELS = {length: lively_model(replace(TINY, tokenizer=replace(TINY_TOKENIZER, num_tokens=length)))
          for length in (48, 96)}


@settings(max_examples=25)
@given(length=st.sampled_from([48, 96]), seed=st.integers(0, 99), options=st.fixed_dictionaries(
    OPTIONS))
def test_sampling_invariants(length, seed, options):
    """Counts as scheduled; the most confident tokens stay to the end, which has no masks."""
    model, steps, rows = MODELS[length], [], images(2, seed=seed)
    features, predict = model.encode(rows), model.predict_logits

    def observe(features, tokens):
        steps.append((tokens.clone(), predict(features, tokens).float().softmax(-1)))
        return predict(features, tokens)

    model.predict_logits = observe
    try:
        found = genhmr.sample_from(model, features, **options,
                                   generator=torch.Generator().manual_seed(seed))
    finally:
        del model.predict_logits
    iterations = options["iterations"]
    counts = mask_counts(length, iterations, options["schedule"])
    masks, confidences = found.masks, found.confidences
    assert masks.shape == (iterations + 1, 2, length)
    assert confidences.shape == (iterations, 2, length) and len(steps) == iterations
    assert (masks.sum(2) == torch.tensor(counts)[:, None]).all()
    assert masks[0].all() and not masks[-1].any()
    assert found.tokens.min() >= 0 and found.tokens.max() < 32
    assert torch.equal(found.rotations, model.tokenizer.decode(found.tokens))
    inputs = torch.stack([tokens for tokens, _ in steps])
    assert torch.equal(inputs == 32, masks[:-1])  # what is masked is what the decoder sees
    for t in range(iterations):
        before, after, score = masks[t], masks[t + 1], confidences[t]
        chosen = (inputs[t + 1] if t + 1 < iterations else found.tokens)
        assert torch.equal(found.guesses[t].masked_fill(after, 32).eq(32), after)
        assert torch.equal(found.guesses[t][~after], chosen[~after])  # all tokens, then the kept
        new = before & ~after  # guessed now, and kept
        probability = steps[t][1].gather(2, chosen.clamp(max=31)[..., None])[..., 0]
        assert torch.equal(score[new], probability[new])  # its plain probability
        top = steps[t][1].topk(options["top_k"], -1).indices
        assert (top == chosen[..., None]).any(-1)[new].all()
        if options["remask"] == "never":
            assert not (after & ~before).any()
            kept = ~before
            assert torch.equal(inputs[t][kept], found.tokens[kept])
        for row in range(2):
            pool = before[row] if options["remask"] == "never" else torch.ones_like(before[row])
            dropped, stay = score[row][after[row] & pool], score[row][~after[row] & pool]
            assert not len(dropped) or not len(stay) or dropped.max() <= stay.min()


def test_one_iteration_is_the_argmax(lively):
    """T = 1 takes the most likely tokens at once, whatever the schedule."""
    features = lively.encode(images(3))
    logits = lively.predict_logits(features, torch.full((3, 48), 32))
    for schedule in SCHEDULES:
        found = genhmr.sample_from(lively, features, iterations=1, schedule=schedule)
        assert torch.equal(found.tokens, logits.argmax(-1))
        assert torch.allclose(found.confidences[0], logits.softmax(-1).amax(-1))


def test_rows_are_independent(lively):
    """A picture's pose does not depend on its neighbours in the batch."""
    rows = images(4)
    together = genhmr.sample(lively, rows, iterations=6)
    for row in range(4):
        alone = genhmr.sample(lively, rows[row:row + 1], iterations=6)
        assert torch.equal(together.tokens[row], alone.tokens[0])
        assert torch.equal(together.masks[:, row], alone.masks[:, 0])


def test_iterations_differ_from_one(lively):
    """Kept tokens change the predictions of others: T = 5 differs from the argmax of T = 1."""
    features = lively.encode(images(8))
    tokens = [genhmr.sample_from(lively, features, iterations=t).tokens for t in (1, 5)]
    assert not torch.equal(*tokens)
    again = genhmr.sample_from(lively, features, iterations=5, generator=torch.Generator())
    assert torch.equal(again.tokens, tokens[1])  # greedy: no chance in it


def test_chance_comes_from_the_generator(lively):
    """With k > 1 equal generators give equal poses, different generators different ones."""
    features = lively.encode(images(4))

    def tokens(seed: int, top_k: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return genhmr.sample_from(lively, features, top_k=top_k, generator=generator).tokens

    assert torch.equal(tokens(1, 5), tokens(1, 5))
    assert not torch.equal(tokens(1, 5), tokens(2, 5))
    assert torch.equal(tokens(1, 1), tokens(2, 1))


def test_tokens_are_drawn_in_proportion():
    """Among the k largest, with their probabilities scaled to one."""
    probability = torch.tensor([0.1, 0.4, 0.2, 0.3]).expand(2, 20_000, 4)
    tokens = genhmr.choose(probability, 2, None)
    assert set(tokens.unique().tolist()) == {1, 3}
    assert (tokens == 1).float().mean().item() == pytest.approx(4 / 7, abs=0.01)
    assert (genhmr.choose(probability, 1, None) == 1).all()


def test_the_encoder_runs_once(lively):
    """T iterations call the encoder, the maps and the heads once, the decoder T times."""
    calls = Counter()
    parts = {"backbone": lively.backbone, "pyramid": lively.pyramid[0],
             "regressor": lively.regressor, "transformer": lively.transformer}
    hooks = [part.register_forward_hook(lambda *_, name=name: calls.update([name]))
             for name, part in parts.items()]
    genhmr.sample(lively, images(2), iterations=7)
    for hook in hooks:
        hook.remove()
    assert calls == {"backbone": 1, "pyramid": 1, "regressor": 1, "transformer": 7}


@given(st.integers(0, 99))
def test_half_way_between_two_rotations(seed):
    """The mean is a rotation, equally far from both, and of equal rotations this one."""
    draw = torch.randn(2, 5, 6, dtype=torch.float64,
                       generator=torch.Generator().manual_seed(seed))
    first, second = genhmr.rotation_6d_to_matrix(draw)
    mean = genhmr.mean_rotation(first, second)
    assert torch.allclose(mean @ mean.mT, torch.eye(3, dtype=torch.float64).expand(5, 3, 3))
    assert torch.allclose(torch.linalg.det(mean), torch.ones(5, dtype=torch.float64))
    ways = [(mean * end).sum((1, 2)) for end in (first, second)]  # 1 + 2 cos of the angle
    assert torch.allclose(*ways) and (ways[0] > 1 - 1e-9).all()
    assert torch.allclose(genhmr.mean_rotation(first, first), first)


def test_remasking_any_can_take_tokens_back():
    """Mask-Predict may mask early tokens again for more confident late ones; MaskGIT never."""
    model = lively_model()
    features, found = model.encode(images(8)), {}
    for remask in ("never", "any"):
        sharpness = iter(range(1, 9))  # every pass is surer than the one before
        model.predict_logits = lambda *_, step=sharpness: next(step) * torch.randn(8, 48, 32)
        torch.manual_seed(6)
        found[remask] = genhmr.sample_from(model, features, iterations=8, remask=remask).masks

    def taken_back(masks: Tensor) -> int:
        return (~masks[:-1] & masks[1:]).sum().item()

    assert taken_back(found["never"]) == 0 < taken_back(found["any"])
    assert torch.equal(found["never"].sum(2), found["any"].sum(2))


@pytest.mark.parametrize("remask", ["never", "any"])
def test_told_tokens_stay(lively, remask):
    """Told tokens are in every guess and never masked; the others fall with the schedule."""
    features = lively.encode(images(2))
    told = torch.randint(0, 32, (2, 48)).masked_fill(torch.arange(48) % 2 == 0, 32)
    found = genhmr.sample_from(lively, features, iterations=5, told=told, remask=remask)
    assert found.masks.sum(2).tolist() == [[count] * 2 for count in mask_counts(24, 5)]
    assert torch.equal(found.guesses[..., 1::2], told[:, 1::2].expand(5, 2, 24))
    assert not found.masks[..., 1::2].any() and found.tokens[:, ::2].max() < 32
    everything = torch.randint(0, 32, (2, 48))
    assert torch.equal(genhmr.sample_from(lively, features, told=everything).tokens, everything)
    told[0, 0] = 3
    with pytest.raises(ValueError, match="equally many tokens"):
        genhmr.sample_from(lively, features, told=told)


def test_bad_options_of_sampling_are_refused(lively):
    """Training mode, unknown rules and impossible numbers are ValueErrors."""
    features = lively.encode(images(1))
    for options in ({"remask": "some"}, {"top_k": 0}, {"top_k": 33}, {"iterations": 0},
                    {"schedule": "exp"}):
        with pytest.raises(ValueError, match="expected"):
            genhmr.sample_from(lively, features, **options)
    model = GenHMR(TINY).train()
    with pytest.raises(ValueError, match="model.eval"):
        genhmr.sample(model, images(1))


# --------------------------------------------------------------------------------- refinement


@pytest.fixture(scope="module")
def task(body) -> tuple:
    """A model, sampled tokens, shape and camera, and 2D joints of other poses as targets."""
    torch.manual_seed(4)
    model = GenHMR(TINY).eval()
    with torch.no_grad():  # tokens that matter, as those of a trained tokenizer do
        for name, parameter in model.tokenizer.decoder.named_parameters():
            parameter.mul_(2.0 if name.endswith("weight") else 1.0)
    batch = batch_of(body, 3)
    tokens = torch.randint(32, (3, 48))
    flat = batch["keypoints_2d"] / 64 - 0.5
    return model, (tokens, batch["betas"], batch["camera"]), flat, torch.ones(3, 45), body.of


def pull(task: tuple, flat=None, confidence=None, **options) -> genhmr.Refined:
    model, sampled, keypoints, ones, of = task
    return genhmr.refine(model, *sampled, keypoints if flat is None else flat,
                         ones if confidence is None else confidence, of,
                         **{"step_size": 0.05, **options})


def test_no_refinement_is_the_identity(task):
    """P = 0 returns the tokens' own pose and its energy, the squared distances in the picture."""
    model, (tokens, betas, camera), flat, _, of = task
    refined = pull(task, iterations=0)
    rotations = model.tokenizer.decode(tokens)
    assert torch.equal(refined.rotations, rotations)
    assert torch.equal(refined.embeddings, model.tokenizer.codebook[tokens])
    expected = (genhmr.project_to_crop(of(betas, rotations), camera, TINY.focal) - flat).square()
    assert refined.energies.shape == (1, 3)
    assert torch.allclose(refined.energies[0], expected.sum((1, 2)), rtol=1e-4)
    assert torch.equal(refined.poses, rotations[None])


def test_every_step_of_refinement_is_kept(task):
    """poses[n] is the result of n steps, as Fig. 4 and 11 show them, and has energies[n]."""
    refined = pull(task, iterations=6)
    assert refined.poses.shape == (7, 3, 24, 3, 3)
    for steps in (0, 2, 6):
        alone = pull(task, iterations=steps)
        assert torch.equal(alone.rotations, refined.poses[steps])
        assert torch.equal(alone.energies, refined.energies[: steps + 1])


def test_energy_falls(task):
    """Every small step of either optimiser lowers the energy of every row."""
    for optimizer, step_size in (("gd", 0.02), ("adam", 0.005)):
        refined = pull(task, iterations=20, step_size=step_size, optimizer=optimizer)
        assert refined.energies.shape == (21, 3)
        assert (refined.energies.diff(dim=0) < 0).all(), optimizer
        assert (refined.energies[-1] < 0.9 * refined.energies[0]).all()
        det = refined.rotations.det()
        assert torch.allclose(det, torch.ones_like(det), atol=1e-4)


def test_step_is_the_gradient_of_the_energy(task):
    """Y_1 = Y_0 - eta dG/dY, against finite differences."""
    model, _, _, _, _ = task
    refined = pull(task, iterations=1, step_size=1e-3)
    start = pull(task, iterations=0)
    eta = 1e-3 * 24 / 45  # there are 45 keypoints
    gradient = (start.embeddings - refined.embeddings) / eta
    drop = refined.energies[0] - refined.energies[1]
    assert torch.allclose(drop, eta * gradient.square().sum((1, 2)), rtol=0.05)


@pytest.fixture(scope="module")
def shipped() -> GenHMR:
    return genhmr.load_checkpoint(bodymodels.ASSETS / "genhmr_cpu.pt")


@pytest.mark.parametrize("count", [24, 45])
def test_default_step_suits_any_number_of_keypoints(shipped, count):
    """With the shipped tokenizer the mean energy falls with each of the first steps, and that of
    every body with the very first, whether 24 or 45 keypoints pull."""
    body = bodymodels.load_model("body").for_keypoints()
    true = torch.from_numpy(sample_wide_postures(
        np.random.default_rng(0).spawn(8), "test", 0.0, 30.0, 45.0)[0])
    start = shipped.tokenizer.encode(true @ bodymodels.axis_angle_to_matrix(
        0.1 * torch.randn(8, 24, 3)))
    betas, camera = torch.zeros(8, 10), torch.tensor([[0.9, 0.0, 0.0]]).expand(8, 3)

    def keypoints(betas: Tensor, pose: Tensor) -> Tensor:
        return body.keypoints(body(betas, pose))[:, :count]

    wanted = genhmr.project_to_crop(keypoints(betas, true), camera, shipped.config.focal)
    energies = genhmr.refine(shipped, start, betas, camera, wanted, torch.ones(8, count),
                             keypoints, iterations=5).energies
    assert (energies.mean(1).diff() < 0).all() and (energies[1] < energies[0]).all()


def test_unseen_joints_do_not_pull(task):
    """Keypoints of confidence 0 change nothing, even where they are NaN."""
    nothing = torch.zeros(3, 45)
    nowhere = torch.full((3, 45, 2), math.nan)
    for optimizer in ("gd", "adam"):
        refined = pull(task, nowhere, nothing, iterations=5, optimizer=optimizer)
        assert torch.equal(refined.embeddings, pull(task, iterations=0).embeddings)
        assert not refined.energies.any()
    half = torch.ones(3, 45)
    half[:, 20:] = 0
    moved = task[2].clone()
    moved[:, 20:] = -7.0
    assert torch.equal(pull(task, task[2], half).embeddings, pull(task, moved, half).embeddings)


def test_confidence_weighs(task):
    """Twice the confidence is twice the energy: half of the step makes the same move."""
    once = pull(task, weight_pose=0.0, step_size=0.01, iterations=5)
    twice = pull(task, confidence=2 * task[3], weight_pose=0.0, step_size=0.005, iterations=5)
    assert torch.allclose(once.embeddings, twice.embeddings, atol=1e-5)
    assert torch.allclose(2 * once.energies[0], twice.energies[0])


def test_rows_are_refined_independently(task):
    """A row ends where it would end alone."""
    model, sampled, flat, ones, of = task
    together = pull(task, iterations=5, step_size=0.01)
    for row in range(3):
        only = slice(row, row + 1)
        alone = genhmr.refine(model, *(x[only] for x in sampled), flat[only], ones[only], of,
                              iterations=5, step_size=0.01)
        assert torch.allclose(together.embeddings[only], alone.embeddings, atol=1e-5)


def test_strong_regulariser_keeps_the_pose(task):
    """The larger weight_pose, the less the pose changes."""
    start = pull(task, iterations=0).rotations

    def change(weight: float, step_size: float) -> Tensor:
        step_size *= 45 / 24  # for 45 keypoints
        refined = pull(task, iterations=40, step_size=step_size, weight_pose=weight)
        return (refined.rotations - start).square().sum((1, 2, 3))

    assert (change(1.0, 2e-3) < 0.6 * change(0.0, 2e-3)).all()
    assert (change(100.0, 2e-4) < 0.1 * change(0.0, 2e-4)).all()


def test_everything_else_is_frozen(task):
    """No parameter gets a gradient, also under no_grad; shape and camera stay the caller's."""
    model = task[0]
    with torch.no_grad():
        refined = pull(task, iterations=3)
    assert refined.energies[-1].sum() < refined.energies[0].sum()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not refined.embeddings.requires_grad and not refined.rotations.requires_grad
    state = {name: value.clone() for name, value in model.state_dict().items()}
    pull(task, iterations=3)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@given(seed=st.integers(0, 10**6), s=st.floats(0.1, 4.0), x=st.floats(-2, 2), y=st.floats(-2, 2))
def test_fitted_camera_is_the_true_one(seed, s, x, y):
    """From projected points the fit finds their camera, whatever the network's and the unseen."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(2, 24, 3, generator=generator, dtype=torch.float64) * 0.4
    camera = torch.tensor([[s, x, y], [0.9, 0.0, 0.0]], dtype=torch.float64)
    flat = genhmr.project_to_crop(points, camera, TINY.focal)
    confidence = torch.rand(2, 24, generator=generator, dtype=torch.float64)
    confidence[:, ::5], flat[:, ::5] = 0, math.nan
    network = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    found = genhmr.fit_camera(network, flat, confidence, points, TINY.focal)
    assert torch.allclose(found, camera, rtol=1e-4, atol=1e-4)


def test_fitted_camera_has_the_least_energy(task):
    """For a pose that fits badly, too, no small change of the fitted camera fits better."""
    model, (tokens, betas, camera), _, _, of = task
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        points = of(betas, model.tokenizer.decode(tokens))
    flat = genhmr.project_to_crop(points, camera, TINY.focal)
    flat = flat + 0.03 * torch.randn(flat.shape, generator=generator)
    confidence = torch.rand(3, 45, generator=generator)

    def energy(camera: Tensor) -> Tensor:
        away = genhmr.project_to_crop(points, camera, TINY.focal) - flat
        return (confidence * away.square().sum(-1)).sum(1)

    found = genhmr.fit_camera(camera, flat, confidence, points, TINY.focal)
    assert (energy(found) < energy(camera)).all()
    for step in 0.02 * torch.eye(3):
        assert (energy(found) < energy(found + step)).all()
        assert (energy(found) < energy(found - step)).all()


def test_camera_stays_where_nothing_tells_another():
    """Rows keep their camera: fewer than two keypoints, a body without size or upside down."""
    points = torch.randn(5, 24, 3, generator=torch.Generator().manual_seed(1)) * 0.4
    camera = torch.tensor([[0.9, 0.1, -0.2]]).expand(5, 3)
    flat = genhmr.project_to_crop(points, camera + 0.3, TINY.focal)
    confidence = torch.ones(5, 24)
    confidence[0] = 0
    confidence[1, 1:] = 0
    points[2], flat[3] = 0, -flat[3]
    found = genhmr.fit_camera(camera, flat, confidence, points, TINY.focal)
    assert torch.equal(found[:4], camera[:4])
    assert torch.allclose(found[4], camera[4] + 0.3, atol=1e-3)


def test_bad_refinement_is_refused(task):
    """An unknown optimizer and keypoints of other shapes are ValueErrors."""
    with pytest.raises(ValueError, match="'gd' or 'adam'"):
        pull(task, optimizer="sgd")
    with pytest.raises(ValueError, match="expected \\(3, J, 2\\)"):
        pull(task, confidence=torch.ones(3, 44))


# -------------------------------------------------------------------------------- checkpoints


def test_checkpoints_return_the_model(tmp_path, lively):
    """File or content, plain or moving average, also in half precision: the same model."""
    config, state = asdict(TINY), lively.state_dict()
    averaged = {f"module.{name}": value for name, value in state.items()}
    averaged["n_averaged"] = torch.tensor(3)
    wrong = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"model": state, "config": config, "ema": None, "step": 7}, tmp_path / "a.pt")
    torch.save({"model": wrong, "config": config, "ema": averaged}, tmp_path / "b.pt")
    for source in (tmp_path / "a.pt", str(tmp_path / "b.pt"), {"model": state, "config": config}):
        model = genhmr.load_checkpoint(source)
        assert model.config == TINY and not model.training
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    halves = {name: value.half() if value.is_floating_point() else value
              for name, value in state.items()}
    model = genhmr.load_checkpoint({"model": halves, "config": config})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.transformer.head.weight, halves["transformer.head.weight"].float())


def test_tokenizers_come_from_either_stage(lively):
    """load_tokenizer reads checkpoints of both stages."""
    tokenizer = lively.tokenizer
    sources = ({"model": tokenizer.state_dict(), "config": asdict(TINY_TOKENIZER)},
               {"model": lively.state_dict(), "config": asdict(TINY)})
    for source in sources:
        loaded = genhmr.load_tokenizer(source)
        assert loaded.config == TINY_TOKENIZER and not loaded.training
        assert torch.equal(loaded.encode(poses(3)), tokenizer.encode(poses(3)))


def test_bad_checkpoints_are_refused(tmp_path, lively):
    """Missing and damaged files, other models and other shapes: one clear error each."""
    config, state = asdict(TINY), lively.state_dict()
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        genhmr.load_checkpoint(tmp_path / "nowhere.pt")
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04 no checkpoint")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        genhmr.load_checkpoint(tmp_path / "damaged.pt")
    stage_1 = {"model": lively.tokenizer.state_dict(), "config": asdict(TINY_TOKENIZER)}
    with pytest.raises(ValueError, match="load_tokenizer takes stage 1"):
        genhmr.load_checkpoint(stage_1)
    with pytest.raises(ValueError, match="no tokenizer"):
        genhmr.load_tokenizer({"model": {"weight": torch.ones(1)}, "config": {}})
    with pytest.raises(ValueError, match="config is not GenHMR's.*colour"):
        genhmr.load_checkpoint({"model": state, "config": {**config, "colour": 3}})
    with pytest.raises(ValueError, match="of another shape.*ead.weight"):
        other = {**config["tokenizer"], "codebook_size": 64}
        genhmr.load_checkpoint({"model": state, "config": {**config, "tokenizer": other}})
    with pytest.raises(ValueError, match="1 missing: transformer.norm.bias; 1 unexpected: new"):
        odd = {name: value for name, value in state.items() if name != "transformer.norm.bias"}
        genhmr.load_checkpoint({"model": {**odd, "new": torch.ones(1)}, "config": config})
    for wrong in ({"vit_dim": -16}, {"layers": -1}, {"width": 10**9}, {"ffn": 10**13},
                  {"heads": 0}, {"tokenizer": {**config["tokenizer"], "codebook_size": 10**12}}):
        with pytest.raises(ValueError):  # before any memory is allocated for it
            genhmr.load_checkpoint({"model": state, "config": {**config, **wrong}})
    torch.save({"model": state, "config": TINY}, tmp_path / "object.pt")
    for source in (tmp_path / "object.pt", {"model": state, "config": TINY}):
        with pytest.raises(ValueError, match="not a dictionary: save dataclasses.asdict"):
            genhmr.load_checkpoint(source)
    torch.save(lively, tmp_path / "module.pt")
    for source in (tmp_path / "module.pt", {}, {"epoch": 3}):
        with pytest.raises(ValueError, match="no weights in this checkpoint"):
            genhmr.load_checkpoint(source)


def test_fields_that_are_no_more_are_ignored(lively):
    """Checkpoints with fields of earlier configs, of the model or its tokenizer, load as others;
    the shipped one is such a checkpoint."""
    old = asdict(TINY) | {"stem": [], "freeze_backbone": True, "tokenizer": asdict(
        TINY_TOKENIZER) | {"legacy_reset": False}}
    saved = {"model": lively.state_dict(), "config": old}
    assert genhmr.load_checkpoint(saved).config == TINY
    assert genhmr.load_tokenizer(saved).config == TINY_TOKENIZER
    encoder = replace(TINY_ENCODER, weight_heat=0.5)  # the encoder still has one
    saved = {"model": GenHMR(POSE).state_dict(), "config": asdict(replace(POSE, encoder=encoder))}
    assert genhmr.load_encoder(saved).config == encoder
    assert genhmr.load_checkpoint(saved).config.encoder == encoder


def test_loading_draws_the_same_random_numbers_as_building(lively):
    """Comparing shapes first leaves the random state to the model, so that runs stay the same."""
    torch.manual_seed(3)
    GenHMR(TINY)
    expected = torch.rand(1)
    torch.manual_seed(3)
    genhmr.load_checkpoint({"model": lively.state_dict(), "config": asdict(TINY)})
    assert torch.equal(torch.rand(1), expected)


class Evil:
    """Pickles as a call, and as an object of a class that is not installed here."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w').close()",)


def test_checkpoints_run_no_code(tmp_path, lively):
    """Foreign objects, as in Lightning's hyperparameters, load as empty dictionaries."""
    path, traces = tmp_path / "evil.pt", tmp_path / "traces"
    torch.save({"model": lively.state_dict(), "config": asdict(TINY),
                "hyper_parameters": {"cfg": Evil(traces)}}, path)
    model = genhmr.load_checkpoint(path)
    assert torch.equal(model.transformer.head.weight, lively.transformer.head.weight)
    assert not traces.exists()


class CfgNode(dict):
    """As yacs has it: a dictionary with attributes, of a module that readers may lack."""


def test_backbones_of_others_load(tmp_path, capsys, lively):
    """4D-Humans' and TokenHMR's files with all that is in them, ViTPose's, and bare weights."""
    bare = lively.backbone.state_dict()
    assert {"patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.bias",
            "blocks.1.mlp.fc2.weight", "last_norm.bias"} <= set(bare)
    full = {f"backbone.{name}": value for name, value in bare.items()}
    node = CfgNode(MODEL=CfgNode(BACKBONE=1))
    node.__dict__["__immutable__"] = True
    humans = {"state_dict": {**full, "smpl_head.decpose.weight": torch.ones(2)},
              "hyper_parameters": {"cfg": node}}
    torch.save(humans, tmp_path / "humans.ckpt")
    vitpose = {"state_dict": {**full, "keypoint_head.final_layer.bias": torch.ones(17)}}
    torch.save(vitpose, tmp_path / "vitpose.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": bare}, tmp_path / "bare.pth")
    for name, left_out in (("humans.ckpt", "smpl_head"), ("vitpose.pth", "keypoint_head"),
                           ("bare.pth", "")):
        model = GenHMR(TINY)
        genhmr.load_backbone(model, tmp_path / name)
        assert left_out in capsys.readouterr().out
        assert all(torch.equal(value, bare[key])
                   for key, value in model.backbone.state_dict().items())
    with pytest.raises(ValueError, match="not ViT's.*missing"):
        genhmr.load_backbone(GenHMR(replace(TINY, vit_depth=3)), tmp_path / "humans.ckpt")
    with pytest.raises(ValueError, match="of another shape: .*pos_embed"):
        genhmr.load_backbone(GenHMR(replace(TINY, image_size=128)), tmp_path / "humans.ckpt")


# --------------------------------------------------------------------------- alone, on a GPU


def test_file_alone_imports_builds_and_runs(tmp_path):
    """Copied into an empty folder it needs nothing but torch and numpy."""
    shutil.copy(genhmr.__file__, tmp_path)
    code = """
import sys; sys.path.insert(0, ".")
import torch, genhmr
tokenizer = genhmr.TokenizerConfig(codebook_size=8, code_dim=4, width=8)
config = genhmr.Config(tokenizer, image_size=64, vit_dim=16, vit_depth=1, vit_heads=2,
                       scales=(1, 2), pyramid_width=4, width=8, heads=2, layers=1, ffn=8)
model = genhmr.GenHMR(config).eval()
found = genhmr.sample(model, torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
points = torch.randn(24, 3)
refined = genhmr.refine(model, found.tokens, found.betas, found.camera, torch.zeros(1, 24, 2),
                        torch.ones(1, 24), lambda betas, pose: pose @ points[0] + points)
assert refined.rotations.shape == (1, 24, 3, 3) and refined.energies.shape == (11, 1)
foreign = {"bodymodels", "data", "metrics", "train", "matplotlib", "timm", "smplx", "mediapipe"}
assert not foreign & set(sys.modules), foreign & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True,
                            text=True, timeout=100)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu(lively, body):
    """Sampling, attention and its gradients are the same on CUDA, to rounding."""
    cpu, gpu = lively_model(), lively_model().cuda()
    tokens = torch.full((2, 48), 32)
    results = []
    for model, device in ((cpu, "cpu"), (gpu, "cuda")):
        out = model(images().to(device), tokens.to(device))
        gradients = torch.autograd.grad(out["logits"].square().mean(), [
            model.backbone.pos_embed, model.transformer.reference])
        results.append([x.cpu() for x in (*out.values(), *gradients)])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=2e-2 * a.abs().max().item())
    found = genhmr.sample(gpu, images().cuda())
    assert (found.tokens < 32).all() and found.rotations.isfinite().all()
