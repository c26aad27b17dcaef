"""GenHMR's uncertainty-guided sampling: schedules, iterations, chance."""

import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from genhmr_samples import SMALL, TINY, TINY_TOKENIZER, images, lively_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import genhmr
from genhmr import SCHEDULES, GenHMR, mask_counts

SPEC_COUNTS = {"cosine": [96, 87, 63, 34, 10, 0], "linear": [96, 77, 58, 39, 20, 0],
               "cubic": [96, 96, 90, 76, 47, 0], "sqrt": [96, 95, 88, 77, 58, 0],
               "training": [96, 92, 78, 57, 30, 0]}


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
    found = genhmr.sample_from(model, features, **options,
                               generator=torch.Generator().manual_seed(seed))
    iterations = options["iterations"]
    counts = mask_counts(length, iterations, options["schedule"])
    masks, confidences = found.masks, found.confidences
    assert masks.shape == (iterations + 1, 2, length)
    assert confidences.shape == found.guesses.shape == (iterations, 2, length)
    assert (masks.sum(2) == torch.tensor(counts)[:, None]).all()
    assert masks[0].all() and not masks[-1].any()
    assert found.tokens.min() >= 0 and found.tokens.max() < 32
    assert torch.equal(found.rotations, model.tokenizer.decode(found.tokens))
    inputs = torch.full((2, length), 32)
    for t in range(iterations):
        before, after, score, chosen = masks[t], masks[t + 1], confidences[t], found.guesses[t]
        logits = model.predict_logits(features, inputs).float()
        probability = (logits / options["temperature"]).softmax(-1)
        likely = probability.gather(2, chosen[..., None])[..., 0]
        assert torch.equal(score[before], likely[before])  # its plain probability
        assert t == 0 or torch.equal(score[~before], confidences[t - 1][~before])
        top = probability.topk(options["top_k"], -1).indices
        assert (top == chosen[..., None]).any(-1)[before].all()
        assert torch.equal(chosen[~before], inputs[~before])  # what was kept
        assert not (after & ~before).any()
        assert torch.equal(inputs[~before], found.tokens[~before])
        for row in range(2 if options["order"] == "confidence" else 0):
            pool = before[row]
            dropped, stay = score[row][after[row] & pool], score[row][~after[row] & pool]
            assert not len(dropped) or not len(stay) or dropped.max() <= stay.min()
        inputs = chosen.masked_fill(after, 32)
    assert torch.equal(inputs, found.tokens)


def test_one_iteration_is_the_argmax(lively):
    """T = 1 takes the most likely tokens at once, whatever the schedule."""
    features = lively.encode(images(3))
    logits = lively.predict_logits(features, torch.full((3, 48), 32))
    for schedule in SCHEDULES:
        found = genhmr.sample_from(lively, features, iterations=1, schedule=schedule)
        assert torch.equal(found.tokens, logits.argmax(-1))
        assert torch.allclose(found.confidences[0], logits.softmax(-1).amax(-1))


@pytest.mark.parametrize("config", [TINY, SMALL])
def test_rows_are_independent(config):
    """A picture's pose does not depend on its neighbours in the batch."""
    model, rows = lively_model(config), images(4, config.image_size)
    together = genhmr.sample_from(model, model.encode(rows), iterations=6)
    for row in range(4):
        alone = genhmr.sample_from(model, model.encode(rows[row:row + 1]), iterations=6)
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
    genhmr.sample_from(lively, lively.encode(images(2)), iterations=7)
    for hook in hooks:
        hook.remove()
    assert calls == {"backbone": 1, "pyramid": 1, "regressor": 1, "transformer": 7}


def test_random_order_keeps_as_many_tokens(lively):
    """The number of masked tokens is the schedule's; which ones stay depends on chance alone."""
    features = lively.encode(images(4))
    masks = [genhmr.sample_from(lively, features, iterations=5, order="random",
                                generator=torch.Generator().manual_seed(seed)).masks
             for seed in (0, 0, 1)]
    assert (masks[0].sum(2) == torch.tensor(mask_counts(48, 5))[:, None]).all()
    assert not (masks[0][1:] & ~masks[0][:-1]).any()  # a kept token stays
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    kept = ~torch.stack([genhmr.sample_from(lively, features, iterations=2, order="random").masks[1]
                         for _ in range(200)])
    assert kept.float().mean((0, 1)) == pytest.approx([0.5] * 48, abs=0.1)  # no favourite places


def test_a_low_temperature_is_greedy(lively):
    """Near 0 a draw among all codes is the likeliest code, in each iteration."""
    features = lively.encode(images(4))
    cold = genhmr.sample_from(lively, features, top_k=32, temperature=1e-4, iterations=1)
    assert torch.equal(cold.tokens, genhmr.sample_from(lively, features, iterations=1).tokens)
    drawn, greedy = (genhmr.sample_from(lively, features, top_k=top_k, temperature=1e-4)
                     for top_k in (32, 1))
    assert torch.equal(drawn.guesses, greedy.guesses) and torch.equal(drawn.masks, greedy.masks)


def test_temperature_divides_the_logits(lively):
    """Confidences are softmax(logits / T); the greedy tokens of one iteration do not change."""
    features = lively.encode(images(3))
    logits = lively.predict_logits(features, torch.full((3, 48), 32))
    for temperature in (0.3, 3.0):
        found = genhmr.sample_from(lively, features, iterations=1, temperature=temperature)
        assert torch.equal(found.tokens, logits.argmax(-1))
        expected = (logits / temperature).softmax(-1).amax(-1)
        assert torch.allclose(found.confidences[0], expected)


def test_mean_code_is_the_mean_of_the_codes(lively):
    """At T = 1 each place is decoded from p @ codebook; later only the last masked places are."""
    features = lively.encode(images(3))
    logits = lively.predict_logits(features, torch.full((3, 48), 32))
    mean = logits.softmax(-1) @ lively.tokenizer.codebook
    found = genhmr.sample_from(lively, features, iterations=1, mean_code=True)
    assert torch.allclose(found.embeddings, mean, atol=1e-5)
    assert torch.allclose(found.rotations, lively.tokenizer.decode_embeddings(mean), atol=1e-4)
    assert torch.equal(found.tokens, logits.argmax(-1))
    found = genhmr.sample_from(lively, features, iterations=4, mean_code=True)
    last = found.masks[-2]
    logits = lively.predict_logits(features, found.guesses[-2].masked_fill(last, 32))
    mean = logits.softmax(-1) @ lively.tokenizer.codebook
    codes = lively.tokenizer.quantiser.lookup(found.tokens)
    assert torch.allclose(found.embeddings[last], mean[last], atol=1e-5)
    assert torch.equal(found.embeddings[~last], codes[~last])
    assert (found.embeddings - codes).abs().amax(-1)[last].max() > 0.1  # a mean, not a code
    plain = genhmr.sample_from(lively, features, iterations=4)
    assert torch.equal(plain.tokens, found.tokens)
    assert torch.equal(plain.embeddings, codes)
    sure = genhmr.sample_from(lively, features, iterations=1, mean_code=True, temperature=1e-4)
    assert torch.allclose(sure.embeddings, lively.tokenizer.quantiser.lookup(sure.tokens))


def test_bad_options_of_sampling_are_refused(lively):
    """Training mode, unknown rules and impossible numbers are ValueErrors."""
    features = lively.encode(images(1))
    for options in ({"order": "some"}, {"temperature": 0.0}, {"temperature": -1.0},
                    {"temperature": math.nan}, {"top_k": 0}, {"top_k": 33}, {"iterations": 0},
                    {"schedule": "exp"}):
        with pytest.raises(ValueError, match="expected"):
            genhmr.sample_from(lively, features, **options)
    model = GenHMR(TINY).train()
    with pytest.raises(ValueError, match="model.eval"):
        genhmr.sample_from(model, model.encode(images(1)))
