"""GenHMR's uncertainty-guided sampling, 2D pose-guided refinement and fitted camera."""

import copy
import math
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from genhmr_samples import TINY, TINY_TOKENIZER, batch_of, images, keypoints_of, lively_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import bodymodels
import genhmr
from genhmr import SCHEDULES, GenHMR, choose, mask_counts, sample_from
from sets.rendered_bodies import sample_wide_postures
from weights.genhmr import load_checkpoint

SPEC_COUNTS = {"cosine": [96, 87, 63, 34, 10, 0], "linear": [96, 77, 58, 39, 20, 0],
               "cubic": [96, 96, 90, 76, 47, 0], "sqrt": [96, 95, 88, 77, 58, 0],
               "training": [96, 92, 78, 57, 30, 0]}

# ---------------------------------------------------------------------------------- schedules


def test_schedules_of_the_paper():
    """At 96 tokens and 5 iterations the counts are those of the printed formulas."""
    assert {name: mask_counts(96, 5, name) for name in SCHEDULES} == SPEC_COUNTS
    assert mask_counts(96, 3) == [96, 72, 24, 0]  # not 25, though cos(2 pi / 3) is not -1/2


@given(length=st.integers(1, 384), iterations=st.integers(1, 100),
       schedule=st.sampled_from(list(SCHEDULES)))
@example(length=72, iterations=3, schedule="linear")  # 24, not 25
def test_counts_never_rise(length, iterations, schedule):
    """T + 1 counts fall from L to 0; linear and cubic are those of exact arithmetic."""
    counts = mask_counts(length, iterations, schedule)
    assert len(counts) == iterations + 1 and counts[0] == length and counts[-1] == 0
    assert all(a >= b >= 0 for a, b in zip(counts, counts[1:], strict=False))
    exact = {"linear": lambda x: 1 - x, "cubic": lambda x: 1 - x**3}.get(schedule)
    assert not exact or counts == [math.ceil(exact(Fraction(t, iterations)) * length)
                                   for t in range(iterations + 1)]


# ----------------------------------------------------------------------------------- sampling

OPTIONS = {"iterations": st.integers(1, 24), "schedule": st.sampled_from(list(SCHEDULES)),
           "top_k": st.sampled_from([1, 2, 5, 32]), "temperature": st.sampled_from([0.5, 1.0, 2.0]),
           "order": st.sampled_from(["confidence", "random"])}
MODELS = {length: lively_model(replace(TINY, tokenizer=replace(TINY_TOKENIZER, num_tokens=length)))
          for length in (48, 96)}


@settings(max_examples=25)
@given(length=st.sampled_from([48, 96]), seed=st.integers(0, 99), options=st.fixed_dictionaries(
    OPTIONS))
def test_sampling_invariants(length, seed, options):
    """Counts as scheduled; the surest tokens, or random ones, are kept, and stay to the end."""
    model = MODELS[length]
    features = model.encode(images(2, seed=seed))
    found = sample_from(model, features, **options, generator=torch.Generator().manual_seed(seed))
    iterations = options["iterations"]
    counts = mask_counts(length, iterations, options["schedule"])
    masks, confidences = found.masks, found.confidences
    assert masks.shape == (iterations + 1, 2, length)
    assert confidences.shape == (iterations, 2, length)
    assert (masks.sum(2) == torch.tensor(counts)[:, None]).all()
    assert found.tokens.min() >= 0 and found.tokens.max() < 32
    assert torch.equal(found.rotations, model.tokenizer.decode(found.tokens))
    inputs = torch.full((2, length), 32)
    for t in range(iterations):
        before, after, score = masks[t], masks[t + 1], confidences[t]
        logits = model.predict_logits(features, inputs).float()
        probability = (logits / options["temperature"]).softmax(-1)
        top = probability.topk(options["top_k"], -1).values  # plain probabilities
        assert (top == score[..., None]).any(-1)[before].all()
        likely = probability.gather(2, found.tokens[..., None])[..., 0]
        assert torch.equal(score[before & ~after], likely[before & ~after])
        assert t == 0 or torch.equal(score[~before], confidences[t - 1][~before])
        assert not (after & ~before).any()
        assert torch.equal(inputs[~before], found.tokens[~before])
        for row in range(2 if options["order"] == "confidence" else 0):
            dropped, stay = (score[row][part & before[row]] for part in (after[row], ~after[row]))
            assert not len(dropped) or not len(stay) or dropped.max() <= stay.min()
        inputs = found.tokens.masked_fill(after, 32)
    assert torch.equal(inputs, found.tokens)


def test_a_random_order_has_no_favourite_places(lively):
    """The generator decides which tokens are kept, each as often as any other."""
    features = lively.encode(images(8))

    def masks(seed: int, **options) -> Tensor:
        return sample_from(lively, features, order="random", **options,
                           generator=torch.Generator().manual_seed(seed)).masks

    assert torch.equal(masks(0), masks(0)) and not torch.equal(masks(0), masks(1))
    kept = ~torch.stack([masks(seed, iterations=2)[1] for seed in range(100)])
    assert kept.float().mean((0, 1)) == pytest.approx([0.5] * 48, abs=0.1)


def test_tokens_are_drawn_in_proportion():
    """Among the k largest, with their probabilities scaled to one."""
    probability = torch.tensor([0.1, 0.4, 0.2, 0.3]).expand(2, 20_000, 4)
    tokens = choose(probability, 2, None)
    assert set(tokens.unique().tolist()) == {1, 3}
    assert (tokens == 1).float().mean().item() == pytest.approx(4 / 7, abs=0.01)
    assert (choose(probability, 1, None) == 1).all()


@pytest.mark.parametrize("iterations", [1, 4])
def test_mean_code_is_the_mean_of_the_codes(lively, iterations):
    """The places masked last are decoded from p @ codebook, the others and all tokens as ever."""
    features = lively.encode(images(3))
    found = sample_from(lively, features, iterations=iterations, mean_code=True)
    plain = sample_from(lively, features, iterations=iterations)
    last, codes = found.masks[-2], lively.tokenizer.quantiser.lookup(plain.tokens)
    inputs = found.tokens.masked_fill(last, 32)
    mean = lively.predict_logits(features, inputs).softmax(-1) @ lively.tokenizer.codebook
    assert torch.allclose(found.embeddings[last], mean[last], atol=1e-5)
    assert torch.equal(found.embeddings[~last], codes[~last])
    assert torch.equal(plain.tokens, found.tokens) and torch.equal(plain.embeddings, codes)
    assert torch.equal(found.rotations, lively.tokenizer.decode_embeddings(found.embeddings))
    assert (found.embeddings - codes).abs().amax(-1)[last].max() > 0.1  # a mean, not a code


@pytest.fixture(scope="module")
def task(body) -> tuple:
    """A model, sampled embeddings, shape and camera, and 2D joints of other poses as targets."""
    torch.manual_seed(4)
    model = GenHMR(TINY).eval()
    with torch.no_grad():  # tokens that matter, as those of a trained tokenizer do
        for name, parameter in model.tokenizer.decoder.named_parameters():
            parameter.mul_(2.0 if name.endswith("weight") else 1.0)
    batch = batch_of(body, 3)
    start = model.tokenizer.quantiser.lookup(torch.randint(32, (3, 48)))
    flat = batch["keypoints_2d"] / 64 - 0.5
    return (model, (start, batch["betas"], batch["camera"]), flat, torch.ones(3, 45),
            partial(keypoints_of, body))


def pull(task: tuple, flat=None, confidence=None, **options) -> genhmr.Refined:
    model, sampled, keypoints, ones, of = task
    return genhmr.refine(model, *sampled, keypoints if flat is None else flat,
                         ones if confidence is None else confidence, of,
                         **{"step_size": 0.05, **options})


def test_every_step_of_refinement_is_kept(task):
    """poses[n] and energies[n] are the result of n steps, as Fig. 4 and 11 show them; P = 0 is the
    embeddings' own pose, whose energy is the squared distances in 2D. Energies fall; the model
    stays, under no_grad, too."""
    model, (start, betas, camera), flat, _, of = task
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        refined = pull(task, iterations=6)
    torch.testing.assert_close(dict(model.state_dict()), dict(state), atol=0, rtol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not refined.embeddings.requires_grad and not refined.rotations.requires_grad
    assert (refined.energies.diff(dim=0) < 0).all() and len(refined.poses) == 7
    for steps in (0, 2, 6):
        alone = pull(task, iterations=steps)
        assert torch.equal(alone.rotations, refined.poses[steps])
        assert torch.equal(alone.energies, refined.energies[: steps + 1])
    rotations = model.tokenizer.decode_embeddings(start)
    assert torch.equal(refined.poses[0], rotations)
    expected = (genhmr.project_to_crop(of(betas, rotations), camera, TINY.focal) - flat).square()
    assert torch.allclose(refined.energies[0], expected.sum((1, 2)), rtol=1e-4)


def test_step_is_the_gradient_of_the_energy(task):
    """Y_1 = Y_0 - eta dG/dY: a small step lowers G by |Y_1 - Y_0|^2 / eta."""
    refined, start = pull(task, iterations=1, step_size=1e-3), pull(task, iterations=0)
    eta = 1e-3 * (24 / 45) ** 2  # there are 45 keypoints
    moved = (start.embeddings - refined.embeddings).square().sum((1, 2))
    assert torch.allclose(refined.energies[0] - refined.energies[1], moved / eta, rtol=0.05)


@pytest.fixture(scope="module")
def shipped() -> GenHMR:
    return load_checkpoint(bodymodels.ASSETS / "genhmr_cpu.pt")


@pytest.mark.parametrize("count", [24, 45])
def test_default_step_suits_any_number_of_keypoints(shipped, count):
    """With the shipped tokenizer every step lowers the mean energy, the first the energy of every
    body, and five steps lower the mean to less than a quarter."""
    body = bodymodels.load_model("body").for_keypoints()
    true = torch.from_numpy(sample_wide_postures(
        np.random.default_rng(0).spawn(8), "test", 0.0, 30.0, 45.0)[0])
    tokens = shipped.tokenizer.encode(true @ bodymodels.axis_angle_to_matrix(
        0.1 * torch.randn(8, 24, 3)))
    start = shipped.tokenizer.quantiser.lookup(tokens)
    betas, camera = torch.zeros(8, 10), torch.tensor([[0.9, 0.0, 0.0]]).expand(8, 3)

    def keypoints(betas: Tensor, pose: Tensor) -> Tensor:
        return body.keypoints(body(betas, pose))[:, :count]

    wanted = genhmr.project_to_crop(keypoints(betas, true), camera, shipped.config.focal)
    energies = genhmr.refine(shipped, start, betas, camera, wanted, torch.ones(8, count),
                             keypoints, iterations=5).energies
    mean = energies.mean(1)
    assert (mean.diff() < 0).all() and mean[5] < 0.25 * mean[0]
    assert (energies[1] < energies[0]).all()


def test_confidence_weighs(task):
    """Twice of it and half of the step make the same move; 0 changes nothing, not even with NaN."""
    once = pull(task, weight_pose=0.0, step_size=0.01, iterations=5)
    twice = pull(task, confidence=2 * task[3], weight_pose=0.0, step_size=0.005, iterations=5)
    assert torch.allclose(once.embeddings, twice.embeddings, atol=1e-5)
    assert torch.allclose(2 * once.energies[0], twice.energies[0])
    nowhere = torch.full((3, 45, 2), math.nan)
    refined = pull(task, nowhere, torch.zeros(3, 45), iterations=5)
    assert torch.equal(refined.embeddings, pull(task, iterations=0).embeddings)
    assert not refined.energies.any()
    half = (torch.arange(45) < 20).float().expand(3, 45)
    moved = torch.where(half[..., None] > 0, task[2], -7.0)
    assert torch.equal(pull(task, task[2], half).embeddings, pull(task, moved, half).embeddings)


def test_rows_are_refined_independently(task):
    """A row ends where it would end alone."""
    model, sampled, flat, ones, of = task
    together = pull(task, iterations=5, step_size=0.01)
    alone = genhmr.refine(model, *(x[1:2] for x in sampled), flat[1:2], ones[1:2], of,
                          iterations=5, step_size=0.01)
    assert torch.allclose(together.embeddings[1:2], alone.embeddings, atol=1e-5)


def test_strong_regulariser_keeps_the_pose(task):
    """The larger weight_pose, the less the pose changes."""
    start = pull(task, iterations=0).rotations
    free, held, tight = ((pull(
        task, iterations=20, step_size=7e-3, weight_pose=weight).rotations - start
    ).square().sum((1, 2, 3)) for weight in (0.0, 1.0, 20.0))
    assert (held < 0.9 * free).all() and (tight < 0.3 * held).all()


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


def test_fitted_camera_has_the_least_energy():
    """For a pose that fits badly, too, no small change of the fitted camera fits better."""
    generator = torch.Generator().manual_seed(0)
    points = 0.4 * torch.randn(3, 45, 3, generator=generator)
    camera = torch.tensor([[0.9, 0.0, 0.2], [0.8, 0.1, 0.0], [1.0, -0.1, 0.1]])
    flat = genhmr.project_to_crop(points, camera, TINY.focal)
    flat = flat + 0.03 * torch.randn(flat.shape, generator=generator)
    confidence = torch.rand(3, 45, generator=generator)

    def energy(camera: Tensor) -> Tensor:
        away = genhmr.project_to_crop(points, camera, TINY.focal) - flat
        return (confidence * away.square().sum(-1)).sum(1)

    found = genhmr.fit_camera(camera, flat, confidence, points, TINY.focal)
    assert (energy(found) < energy(camera)).all()
    for step in (*0.002 * torch.eye(3), *-0.002 * torch.eye(3)):
        assert (energy(found) < energy(found + step)).all()


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
