"""GenHMR's stage 2: masks, temperature, Gumbel-softmax, losses."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from genhmr_samples import SMALL, TINY, batch_of, keypoints_of

import genhmr
from genhmr import Config, GenHMR
from networks.small_encoder import SmallEncoder, build_genhmr
from tasks.base import parameter_groups

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
    first, second = (genhmr.random_mask(tokens[:5], 32, generator=torch.Generator().manual_seed(1))
                     for _ in range(2))
    assert torch.equal(first[1], second[1])
    for tau_max in (0.3, 0.7):  # no fewer than gamma(tau_max) are masked, and all at times
        counts = genhmr.random_mask(tokens[:3000], 32, tau_max)[1].sum(1)
        least = math.ceil(96 * math.cos(0.5 * math.pi * tau_max))
        assert least <= counts.min() <= least + 2 and counts.max() == 96


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
    """Forward, the pose of the drawn tokens; backward, the gradient of Eq. 6."""
    model = GenHMR(TINY).eval()
    logits, weights = torch.randn(2, 48, 32, requires_grad=True), torch.randn(2, 24, 3, 3)
    for temperature in (1.0, 0.1, 0.01):
        out = genhmr.relax(model, logits, temperature, torch.Generator().manual_seed(2))
        gradient, = torch.autograd.grad((weights * out).sum(), logits)
        uniform = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2))
        noisy = logits - (-uniform.log()).log()
        codes = model.tokenizer.quantiser.lookup(noisy.argmax(-1)).requires_grad_()
        drawn = model.tokenizer.decode_embeddings(codes)
        assert torch.allclose(out, drawn, atol=1e-6)
        at_codes, = torch.autograd.grad((weights * drawn).sum(), codes)
        soft = (noisy / temperature).softmax(-1) @ model.tokenizer.codebook
        expected, = torch.autograd.grad((at_codes * soft).sum(), logits)
        assert torch.allclose(gradient, expected, atol=1e-4) and gradient.abs().sum() > 0
        assert torch.allclose(out.det(), torch.ones(2, 24), atol=1e-4)


def test_known_tokens_are_not_drawn():
    """Where tokens are known, the relaxed pose has them, without a gradient to their logits."""
    model = GenHMR(TINY)
    logits, tokens = torch.randn(2, 48, 32, requires_grad=True), torch.randint(0, 32, (2, 48))
    assert torch.allclose(genhmr.relax(model, logits, 0.5, known=tokens),
                          model.tokenizer.decode(tokens))
    tokens[:, 7] = model.mask_token
    genhmr.relax(model, logits, 0.5, known=tokens).square().cumsum(1).sum().backward()
    moved = logits.grad.abs().sum(-1) > 0
    assert moved[:, 7].all() and moved.sum() == 2


# ------------------------------------------------------------------------------------ losses


def test_losses_are_those_of_48_samples(body):
    """Sums over joints and coordinates, a mean over samples, times 48."""
    model = GenHMR(TINY).eval()
    batch = genhmr.mask_batch(model, batch_of(body))
    prediction = {"logits": 1e4 * F.one_hot(batch["tokens"], 32).float(),
                  "betas": batch["betas"] + 0.5,
                  "camera": batch["camera"] + torch.tensor([0.0, 0.1, 0.0])}
    pose, true = model.tokenizer.decode(batch["tokens"]), batch["keypoints_3d"]
    guess = keypoints_of(body, prediction["betas"], pose)
    flat = genhmr.project_to_crop(guess, prediction["camera"], TINY.focal)
    expected = {
        "betas": torch.tensor(4 * 10 * 0.25), "pose": (pose - batch["pose"]).square().sum(),
        "keypoints_2d": (flat - (batch["keypoints_2d"] / 64 - 0.5)).abs().sum(),
        "keypoints_3d": ((guess - guess[:, :1]) - (true - true[:, :1])).abs().sum()}
    terms = genhmr.losses(prediction, batch, model, body, 1.0)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(48 / 4 * value.item(), rel=1e-3), name


def test_what_is_invalid_counts_as_nothing(body):
    """Invalid entries, even NaN, change neither losses nor gradients; a mean of parts is exact."""
    model = GenHMR(TINY).eval()
    batch = genhmr.mask_batch(model, batch_of(body))
    for name in ("pose_valid", "betas_valid"):
        batch[name] = torch.tensor([1.0, 0, 1, 1])
    for name in ("keypoints_3d_valid", "keypoints_valid"):
        batch[name] = (torch.rand(4, 45) > 0.4).float()
    spoiled = {name: value.clone() for name, value in batch.items()}
    spoiled["pose"][1], spoiled["betas"][1] = math.nan, math.nan
    spoiled["keypoints_2d"][batch["keypoints_valid"] == 0] = math.nan
    batch["keypoints_3d_valid"][:3, 0] = spoiled["keypoints_3d_valid"][:3, 0] = 1.0
    batch["keypoints_3d_valid"][3] = 0  # without a pelvis nothing is known: all are relative to it
    spoiled["keypoints_3d_valid"][3, 0] = 0
    spoiled["keypoints_3d"][spoiled["keypoints_3d_valid"] == 0] = math.nan
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


def test_every_part_behind_a_frozen_encoder_learns(body):
    """L_total falls and reaches all but encoder and tokenizer, which stay as they are."""
    model, batch = build_genhmr(SMALL), batch_of(body, image_size=128)
    model.tokenizer.quantiser.initialise(  # a new codebook has all codes at one place
        model.tokenizer.embed(batch["pose"]).flatten(0, 1))
    assert not model.train().backbone.training and SmallEncoder().train().training
    frozen = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    data = genhmr.mask_batch(model, batch, torch.Generator().manual_seed(0))
    optimizer, history = torch.optim.Adam(parameter_groups(model, 0.0), 2e-3), []
    for _ in range(8):
        prediction = model(data["image"], data["masked_tokens"])
        terms = genhmr.losses(prediction, data, model, body, 1.0)
        history.append(terms["mask"].item())
        optimizer.zero_grad()
        genhmr.total_loss(terms, SMALL).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and parameter.grad.abs().sum() > 0
        assert reached == (not name.startswith(("tokenizer.", "backbone."))), name
        assert parameter.requires_grad or parameter.grad is None, name
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, frozen[name]), name
    assert history[-1] < 0.9 * history[0]
