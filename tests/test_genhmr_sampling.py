"""GenHMR's uncertainty-guided sampling: schedules, iterations, chance."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from genhmr_samples import TINY, TINY_TOKENIZER, images, lively_model
from hypothesis import given, settings
from hypothesis import strategies as st

from genhmr import SCHEDULES, GenHMR, Sampled, choose, mask_counts, sample_from

SPEC_COUNTS = {"cosine": [96, 87, 63, 34, 10, 0], "linear": [96, 77, 58, 39, 20, 0],
               "cubic": [96, 96, 90, 76, 47, 0], "sqrt": [96, 95, 88, 77, 58, 0],
               "training": [96, 92, 78, 57, 30, 0]}

# ---------------------------------------------------------------------------------- schedules


def test_schedules_of_the_paper():
    """At 96 tokens and 5 iterations the counts are those of the printed formulas, from 1 to 0."""
    assert {name: mask_counts(96, 5, name) for name in SCHEDULES} == SPEC_COUNTS
    for gamma in SCHEDULES.values():
        assert gamma(0.0) == 1.0 and gamma(1.0) == pytest.approx(0.0, abs=1e-15)
    assert SCHEDULES["cosine"](0.3) == pytest.approx(SCHEDULES["training"](0.3) ** 2)


@given(length=st.integers(1, 384), iterations=st.integers(1, 100),
       schedule=st.sampled_from(list(SCHEDULES)))
def test_counts_never_rise(length, iterations, schedule):
    """T + 1 counts fall from L to 0; linear and cubic are those of exact arithmetic."""
    counts = mask_counts(length, iterations, schedule)
    assert len(counts) == iterations + 1 and counts[0] == length and counts[-1] == 0
    assert all(a >= b >= 0 for a, b in zip(counts, counts[1:], strict=False))
    exact = {"linear": lambda x: 1 - x, "cubic": lambda x: 1 - x**3}.get(schedule)
    assert not exact or counts == [math.ceil(exact(Fraction(t, iterations)) * length)
                                   for t in range(iterations + 1)]


def test_wart_float_traps_of_the_schedules():
    """Where plain ceil(gamma L) is wrong: an exact 24, a leftover token, 48 for 49."""
    assert math.ceil(SCHEDULES["cosine"](2 / 3) * 96) == 25
    assert mask_counts(96, 3)[2] == 24
    assert math.ceil(SCHEDULES["training"](1.0) * 96) == 1
    assert mask_counts(96, 5, "training")[-1] == 0
    assert mask_counts(72, 3, "linear") == [72, 48, 24, 0]


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
    assert confidences.shape == found.guesses.shape == (iterations, 2, length)
    assert (masks.sum(2) == torch.tensor(counts)[:, None]).all()
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
            dropped, stay = (score[row][part & before[row]] for part in (after[row], ~after[row]))
            assert not len(dropped) or not len(stay) or dropped.max() <= stay.min()
        inputs = chosen.masked_fill(after, 32)
    assert torch.equal(inputs, found.tokens)


def test_iterations_and_chance_change_the_tokens(lively):
    """T = 5 differs from T = 1, the most likely tokens; with k > 1 the generator decides, with
    k = 1 nothing is drawn."""
    features = lively.encode(images(8))

    def sampled(seed: int, **options) -> Sampled:
        return sample_from(lively, features, **options,
                           generator=torch.Generator().manual_seed(seed))

    greedy = sampled(1).tokens
    assert torch.equal(greedy, sampled(2).tokens)
    assert not torch.equal(greedy, sampled(1, iterations=1).tokens)
    logits = lively.predict_logits(features, torch.full((8, 48), 32))
    assert torch.equal(sampled(1, iterations=1).tokens, logits.argmax(-1))
    assert torch.equal(sampled(1, top_k=5).tokens, sampled(1, top_k=5).tokens)
    assert not torch.equal(sampled(1, top_k=5).tokens, sampled(2, top_k=5).tokens)
    orders = [sampled(seed, order="random").masks for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    kept = ~torch.stack([sampled(seed, iterations=2, order="random").masks[1]
                         for seed in range(100)])
    assert kept.float().mean((0, 1)) == pytest.approx([0.5] * 48, abs=0.1)  # no favourite places


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
    inputs = found.guesses[max(0, iterations - 2)].masked_fill(last, 32)
    mean = lively.predict_logits(features, inputs).softmax(-1) @ lively.tokenizer.codebook
    assert torch.allclose(found.embeddings[last], mean[last], atol=1e-5)
    assert torch.equal(found.embeddings[~last], codes[~last])
    assert torch.equal(plain.tokens, found.tokens) and torch.equal(plain.embeddings, codes)
    assert torch.equal(found.rotations, lively.tokenizer.decode_embeddings(found.embeddings))
    assert (found.embeddings - codes).abs().amax(-1)[last].max() > 0.1  # a mean, not a code


def test_bad_options_of_sampling_are_refused(lively):
    """Training mode, unknown rules and impossible numbers are ValueErrors."""
    features = lively.encode(images(1))
    for options, message in (
            ({"order": "some"}, "order"), ({"temperature": 0.0}, "temperature"),
            ({"temperature": math.nan}, "temperature"), ({"top_k": 0}, "top_k"),
            ({"top_k": 33}, "top_k"), ({"iterations": 0}, "expected 1 or more"),
            ({"schedule": "exp"}, "cosine, linear, cubic, sqrt, training")):
        with pytest.raises(ValueError, match=message):
            sample_from(lively, features, **options)
    with pytest.raises(ValueError, match="model.eval"):
        sample_from(GenHMR(TINY).train(), features)
