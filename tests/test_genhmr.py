"""GenHMR: parameters, presets, rotations and cameras, the model, deformable attention."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from genhmr_samples import (
    SHAPES,
    SMALL,
    TINY,
    TINY_TOKENIZER,
    as_maps,
    count,
    images,
    lively_model,
    on_meta,
    poses,
)
from torch import Tensor, nn

import bodymodels
import genhmr
from genhmr import PRESETS, TOKENIZER_PRESETS, Config, DeformableAttention, GenHMR, Tokenizer
from networks import fast
from networks.small_encoder import SmallEncoder

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
    encoded = tokenizer.encode(poses(2))
    assert encoded.shape == (2, tokens) and encoded.dtype == torch.int64
    decoded = tokenizer.decode(encoded)
    assert torch.allclose(decoded @ decoded.mT, torch.eye(3).expand(2, 24, 3, 3), atol=1e-5)
    assert torch.allclose(decoded, tokenizer(poses(2))["rotations"], atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_what_the_paper_says(name):
    """All but `cpu` have the paper's model and number of samples; all of them build."""
    config, stage_1 = PRESETS[name], TOKENIZER_PRESETS[name]
    if name == "cpu":
        assert count(on_meta(config)) < 8e6 and config.tokenizer == stage_1
        return
    assert stage_1.steps * stage_1.batch_size == 200_000 * 512
    assert config.steps * config.batch_size == 300_000 * 96
    assert count(on_meta(config)) == 659_815_155 and config.tokenizer == TOKENIZER_PRESETS["paper"]
    assert config.map_sizes == [(16, 12), (64, 48), (128, 96)]


# ----------------------------------------------------------------------------------- cameras


def test_convention_camera():
    """The crop's camera is bodymodels' with K of 5000 px at 256 px, its sides at -0.5 and 0.5."""
    points, camera = torch.randn(3, 7, 3), torch.tensor([0.9, 0.1, -0.2]) + torch.rand(3, 3)
    K = torch.tensor([[5000.0, 0, 128], [0, 5000.0, 128], [0, 0, 1]])
    translation = genhmr.camera_translation(camera, Config().focal)
    pixels = bodymodels.project(points + translation[:, None], K)
    flat = genhmr.project_to_crop(points, camera, Config().focal)
    assert torch.allclose(flat, pixels / 256 - 0.5, atol=1e-5)
    assert torch.equal(translation[:, :2], camera[:, 1:])
    far = genhmr.camera_translation(torch.tensor([[0.9, 0, 0]]), Config().focal)[0, 2]
    assert far == pytest.approx(43.4, abs=0.01)


# ------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("config", [TINY, SMALL])
def test_convention_images(config):
    """uint8 and floats of 0..255 are the same; the outer eighths of the width are not seen."""
    size = config.image_size
    model, pictures, margin = lively_model(config), images(2, size), size // 8
    features = model.encode(pictures)
    assert torch.equal(features.values, model.encode(pictures.float()).values)
    changed = pictures.clone()
    changed[..., :margin] = 0
    changed[..., -margin:] = 255
    assert torch.equal(features.values, model.encode(changed).values)
    changed[..., margin] = 255 - changed[..., margin]
    assert not torch.allclose(features.values, model.encode(changed).values)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1) * 255
    assert model.normalise(mean.expand(1, 3, size, size)).abs().max() < 1e-6


@pytest.mark.parametrize("given", [False, True])
def test_features_are_made_of_the_encoders_tokens(given):
    """Of the ViT's, or of an encoder that takes its place and keeps its weights: maps one behind
    the other, cell (y, x) at y w + x, shape and camera."""
    encoder = SmallEncoder().eval() if given else None
    before = copy.deepcopy(encoder)
    config = replace(SMALL, vit_dim=112) if given else TINY
    model, pictures = GenHMR(config, encoder).eval(), images(2, config.image_size)
    features, tokens = model.encode(pictures), model.backbone(model.normalise(pictures))
    assert not given or torch.equal(tokens, before(model.normalise(pictures)))
    maps = as_maps(features.values, config.map_sizes)
    for level, map_ in zip(model.pyramid, maps, strict=True):
        assert torch.allclose(level(tokens.mT.unflatten(2, config.grid)), map_, atol=1e-5)
    regressor = model.regressor
    both = regressor.mlp(regressor.norm(tokens).mean(1))
    assert torch.allclose(both, torch.cat((features.betas, features.camera), 1), atol=1e-5)


def test_an_encoder_that_does_not_fit_is_refused():
    """Other channels or another grid than the config's are a ValueError with both shapes; the heads
    of a ViT divide its width."""
    for changes, expected in (({"vit_dim": 48}, "192, 48"), ({"patch_size": 16}, "48, 112")):
        model = GenHMR(replace(SMALL, **{"vit_dim": 112} | changes), SmallEncoder()).eval()
        with pytest.raises(ValueError, match=f"shape \\(1, 192, 112\\): expected \\(1, {expected}"):
            model.encode(images(1, 128))
    with pytest.raises(ValueError, match="vit_heads is 3: expected a divisor of vit_dim, 32"):
        GenHMR(replace(TINY, vit_heads=3))


def test_regressor_starts_at_the_mean():
    """New models predict nearly no shape and HMR2.0's mean camera."""
    features = GenHMR(TINY).encode(images(4))
    assert features.betas.abs().max() < 0.1
    assert torch.allclose(features.camera, torch.tensor([0.9, 0.0, 0.0]).expand(4, 3), atol=0.1)


def test_decoder_layers_are_pre_norm(lively):
    """Self-attention, cross-attention and MLP, each of a norm and added; then norm and head."""
    model, features, tokens = lively.transformer, lively.encode(images(1)), torch.arange(48)[None]
    assert all(type(layer.cross_attention) is fast.GatheringAttention for layer in model.layers)
    x = model.token_embedding(lively.tokenizer.codebook[tokens % 32])
    x = torch.where(tokens[..., None] < 32, x, model.mask_embedding) + model.position_embedding
    for layer in model.layers:
        x = x + layer.self_attention(layer.norm1(x))
        x = x + layer.cross_attention(layer.norm2(x), model.reference.sigmoid(), features.values)
        x = x + layer.mlp(layer.norm3(x))
    logits = lively.predict_logits(features, tokens.clamp_max(32))
    assert torch.allclose(logits, model.head(model.norm(x)), atol=1e-4)


def logits_of(model: GenHMR, tokens: Tensor) -> None:
    model.predict_logits(model.encode(images(2)), tokens)


def sample(model: GenHMR, **options) -> None:
    genhmr.sample_from(model, model.encode(images(1)), **options)


def refine(model: GenHMR, joints: int = 45, **options) -> None:
    genhmr.refine(model, torch.zeros(3, 48, 8), torch.zeros(3, 10), torch.ones(3, 3),
                  torch.zeros(3, 45, 2), torch.ones(3, joints), None, **options)


def predict(model: GenHMR, **options) -> None:
    genhmr.predict(model, None, np.zeros((64, 64, 3), np.uint8), **options)


@pytest.mark.parametrize(("call", "name", "bad", "message"), [
    *[(GenHMR.encode, "images", bad, "expected \\(B, 3, 64, 64\\)")
      for bad in (images(2, 32), images(2)[0], images(2)[:, :1])],
    *[(logits_of, "tokens", bad, "expected int64")
      for bad in (torch.zeros(2, 96).long(), torch.zeros(2, 48), torch.zeros(1, 48).long())],
    *[(lambda model, pose: model.tokenizer.encode(pose), "pose", bad, "expected matrices")
      for bad in (torch.zeros(2, 24, 3), torch.zeros(2, 52, 3, 3))],
    (sample, "order", "some", "order"), (sample, "temperature", math.nan, "temperature"),
    (sample, "temperature", 0.0, "temperature"), (sample, "top_k", 0, "top_k"),
    (sample, "top_k", 33, "top_k"), (sample, "iterations", 0, "1 or more"),
    (sample, "schedule", "exp", "cosine, linear, cubic, sqrt"),
    *[(refine, "step_size", bad, "step_size .*: expected a number above 0")
      for bad in (-1.0, 0.0, math.inf, math.nan)],
    (refine, "joints", 44, "expected \\(3, J, 2\\)"),
    (predict, "keypoints", np.zeros((25, 3)), "45"),
    (predict, "keypoints", np.zeros((45, 2)), "confidence"),
    (predict, "keypoints", np.full((45, 3), np.nan), "not finite"),
    (predict, "iterations", 0, "iterations"), (predict, "refinement", -1, "refinement"),
    (predict, "samples", -1, "samples"), (predict, "schedule", "sine", "schedule"),
    (predict, "top_k", 0, "top_k"),
])
def test_bad_input_is_refused(lively, call, name, bad, message):
    """One ValueError that says what was expected."""
    with pytest.raises(ValueError, match=message):
        call(lively, **{name: bad})


def test_tokenizer_stays_frozen():
    """train(), of the model or of a parent module, leaves the tokenizer in evaluation mode."""
    model = GenHMR(TINY)
    assert nn.Sequential(model).train() and model.training and model.backbone.training
    assert not any(module.training for module in model.tokenizer.modules())
    assert not any(parameter.requires_grad for parameter in model.tokenizer.parameters())
    assert model.train() is model and not model.tokenizer.training
    assert "tokenizer.quantiser.codebook" in model.state_dict()


def test_vit_blocks_are_pre_norm_transformers():
    """Behind the patch embedding the encoder is torch's own pre-norm transformer, twice."""
    vit = GenHMR(TINY).backbone.eval()
    assert [block.drop_path.rate for block in vit.blocks] == [0.0, 0.55]
    for parameter in vit.parameters():
        if parameter.ndim == 1:  # a forgotten norm or bias would change the output
            nn.init.uniform_(parameter, 0.5, 1.5)
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


def test_mixed_precision():
    """Under bfloat16 autocast outputs are finite, close, and the camera is full precision."""
    model = lively_model(replace(TINY, vit_depth=1)).train()  # no drops
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu():
    """Sampling, attention and its gradients are the same on CUDA, to rounding."""
    results = []
    for device in ("cpu", "cuda"):
        model = lively_model().to(device)
        out = model(images().to(device), torch.full((2, 48), 32, device=device))
        gradients = torch.autograd.grad(out["logits"].square().mean(), [
            model.backbone.pos_embed, model.transformer.reference])
        results.append([x.cpu() for x in (*out.values(), *gradients)])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=2e-2 * a.abs().max().item())
    found = genhmr.sample_from(model, model.encode(images().cuda()))
    assert (found.tokens < 32).all() and found.rotations.isfinite().all()


# ---------------------------------------------------------------------- deformable attention

FORMS = {"plain": lambda module: module, "fast": fast.replace}
CELLS = sum(height * width for height, width in SHAPES)


def random_attention() -> DeformableAttention:
    """A layer for the maps of SHAPES, in float64, whose every parameter matters."""
    module = DeformableAttention(replace(TINY, width=12, heads=3, pyramid_width=4)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


def attention_input(queries: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, locations also outside of them, and weights that sum to one."""
    values = torch.randn(2, CELLS, 4, dtype=torch.float64)
    locations = 1.6 * torch.rand(2, queries, 3, 3, 2, 2, dtype=torch.float64) - 0.3
    weights = torch.rand(2, queries, 3, 3, 2, dtype=torch.float64)
    return values, locations, weights / weights.sum((3, 4), keepdim=True)


def in_loops(module: DeformableAttention, values: Tensor, locations: Tensor,
             weights: Tensor) -> Tensor:
    """The definition: W times the four neighbours of each point, nothing outside of the map."""
    maps = as_maps(module.value_proj(values))
    out = torch.zeros(*weights.shape[:3], 4, dtype=values.dtype)
    for b, q, h, level, k in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        height, width = SHAPES[level]
        x, y = (locations[b, q, h, level, k] * torch.tensor([width, height]) - 0.5).tolist()
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    part = (1 - abs(x - column)) * (1 - abs(y - row))
                    cell = maps[level][b, 4 * h:4 * h + 4, row, column]
                    out[b, q, h] += weights[b, q, h, level, k] * part * cell
    return out.flatten(2)


@pytest.mark.parametrize("form", FORMS)
def test_samples_are_the_definition_in_loops(form):
    """Sums of four neighbours each, head by head, to rounding, also across borders; offsets count
    cells, x and y, and weights are a softmax over maps and points."""
    module, inputs = FORMS[form](random_attention()), attention_input()
    assert torch.allclose(module.sample_maps(*inputs), in_loops(module, *inputs), atol=1e-13)
    queries, places = torch.randn(2, 5, 12).double(), torch.rand(5, 2).double()
    offsets = module.sampling_offsets(queries).view(2, 5, 3, 3, 2, 2)
    weights = module.attention_weights(queries).view(2, 5, 3, 6).softmax(-1).view(2, 5, 3, 3, 2)
    locations = places[:, None, None, None] + offsets / torch.tensor(SHAPES).flip(1)[:, None]
    expected = module.output_proj(in_loops(module, inputs[0], locations, weights))
    assert torch.allclose(module(queries, places, inputs[0]), expected, atol=1e-12)


def test_the_fast_attention_is_the_plain_one():
    """Values and gradients of queries, places, maps and all parameters; names and weights stay."""
    plain, inputs = random_attention(), (
        torch.randn(2, 5, 12).double(), torch.rand(5, 2).double(), attention_input()[0])
    gathering = fast.replace(copy.deepcopy(plain))
    assert type(plain) is DeformableAttention and type(gathering) is fast.GatheringAttention
    results, upstream = [], torch.randn(2, 5, 12).double()
    for module in (plain, gathering):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = module(*leaves)
        results.append([out, *torch.autograd.grad((upstream * out).sum(),
                                                  [*leaves, *module.parameters()])])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-10) and a.abs().max() > 1e-3
    assert list(gathering.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(("form", "width"), [("plain", 64), ("fast", 32)])
def test_the_fast_attention_projects_no_map(form, width):
    """Its operators take nothing larger than the maps, 32 channels wide; the plain one's also take
    the projected maps, of 64."""
    attention = FORMS[form](DeformableAttention(Config(width=64, pyramid_width=32)))
    inputs = torch.randn(1, 96, 64), torch.rand(96, 2), torch.randn(1, 15_552, 32)
    with torch.no_grad(), torch.profiler.profile(record_shapes=True) as noted:
        attention(*inputs)
    assert max(math.prod(shape) for event in noted.events()
               for shape in event.input_shapes) == 15_552 * width


@pytest.mark.parametrize("form", FORMS)
def test_nan_stays_in_its_query(form):
    """A location or weight that is NaN spoils its own query and head, forward and backward."""
    module, (values, locations, weights) = FORMS[form](random_attention()), attention_input()
    expected = module.sample_maps(values, locations, weights).unflatten(2, (3, 4))
    locations[1, 2, 0, 1, 1, 0] = weights[0, 1, 2, 0, 0] = math.nan
    sums = module.sample_maps(values, locations.requires_grad_(), weights).unflatten(2, (3, 4))
    bad = torch.zeros(2, 5, 3, dtype=torch.bool)
    bad[1, 2, 0] = bad[0, 1, 2] = True
    assert torch.equal(sums.isnan().all(-1), bad) and torch.equal(sums[~bad], expected[~bad])
    gradient, = torch.autograd.grad(sums[~bad].sum(), locations)
    assert gradient[~bad].isfinite().all()


def test_attention_starts_as_a_ring():
    """Heads look into eight directions, their points at 1, 2, 3, 4 cells, equally weighted."""
    layer = GenHMR(replace(TINY, width=32, heads=8, points=4)).transformer.layers[0].cross_attention
    assert not layer.sampling_offsets.weight.any() and not layer.attention_weights.weight.any()
    offsets = layer.sampling_offsets.bias.view(8, 3, 4, 2)
    assert torch.allclose(offsets.abs().amax(-1), torch.arange(1.0, 5).expand(8, 3, 4))
    assert torch.allclose(offsets[0, 0, 0], torch.tensor([1.0, 0.0]))
    assert torch.allclose(offsets[2, 1, 3], torch.tensor([0.0, 4.0]), atol=1e-5)
    assert len(offsets[:, 0, 0].round(decimals=3).unique(dim=0)) == 8
