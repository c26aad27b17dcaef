"""Scores of drawn poses: proper, calibrated, with their control."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from genhmr_samples import images, lively_model

import bodymodels
from tasks import posterior


def drawn(truths: int, samples: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return draws (N, S, 24, 3), `spread` times as wide as the truths (N, 24, 3), N(0, 1)."""
    rng = np.random.default_rng(seed)
    return (spread * rng.standard_normal((truths, samples, 24, 3)),
            rng.standard_normal((truths, 24, 3)))


def test_energy_score_is_its_definition():
    """mean |x_i - y| - 1/2 mean over i != j of |x_i - x_j|, in mm, a mean over joints."""
    draws, truth = drawn(2, 4, 1.0)
    for found, x, y in zip(posterior.energy(draws, truth), draws, truth, strict=True):
        near = np.mean([1000 * np.linalg.norm(each - y, axis=-1).mean() for each in x])
        between = np.mean([1000 * np.linalg.norm(x[i] - x[j], axis=-1).mean()
                           for i in range(4) for j in range(4) if i != j])
        assert found == pytest.approx(near - between / 2)


def test_true_draws_have_the_least_energy():
    """Narrower and wider draws score worse on average: the score is proper."""
    scores = {spread: posterior.energy(*drawn(400, 12, spread)).mean()
              for spread in (0.4, 1.0, 2.0)}
    assert scores[1.0] < min(scores[0.4], scores[2.0]) - 5


@pytest.mark.parametrize("spread", [0.4, 1.0])
def test_spread_and_error(spread):
    """Their ratio is 1 for draws as wide as the truth, and falls where draws are too narrow."""
    draws, truth = drawn(500, 12, spread)
    errors = posterior.posterior_errors(draws, draws, truth)
    ratio = np.sqrt(np.square(errors["spread"]).mean() / np.square(errors["error"]).mean())
    expected = spread * np.sqrt((1 + 1 / 12) / (1 + spread**2 / 12))
    assert ratio == pytest.approx(expected, rel=0.03)
    np.testing.assert_allclose(errors["control"], errors["energy"])  # the same draws


def test_the_control_has_the_spread_of_the_draws():
    """Draws that are T = 1's, but wider, have no advantage over the control."""
    draws, truth = drawn(50, 6, 0.5)
    mean = draws.mean(1, keepdims=True)
    wider = mean + 1.7 * (draws - mean)
    errors = posterior.posterior_errors(wider, draws, truth)
    np.testing.assert_allclose(errors["control"], errors["energy"])
    each = posterior.distance(wider, truth[:, None])
    np.testing.assert_allclose(errors["best"], each.min(1))
    np.testing.assert_allclose(errors["mean"], posterior.distance(wider.mean(1), truth))


def test_joint_nll_of_one_step_is_the_cross_entropy():
    """T = 1 reveals all tokens at once; more steps give other sums of as many terms."""
    model = lively_model()
    features, true = model.encode(images(3)), torch.randint(0, 32, (3, 48))
    logits = model.predict_logits(features, torch.full((3, 48), 32))
    expected = F.cross_entropy(logits.mT, true, reduction="none").mean(1)
    found = [posterior.joint_nll(model, features, true, steps,
                                 torch.Generator().manual_seed(0)) for steps in (1, 6)]
    assert torch.allclose(found[0], expected, atol=1e-5)
    assert not torch.allclose(found[1], expected, atol=1e-3)
    torch.nn.init.zeros_(model.transformer.head.weight)  # tokens that tell nothing of one another
    again = [posterior.joint_nll(model, features, true, steps,
                                 torch.Generator().manual_seed(0)) for steps in (1, 6)]
    assert torch.allclose(*again, atol=1e-5)


def test_draws_depend_on_the_seed_alone():
    """As many as asked for, of each picture; equal seeds give equal draws."""
    model, body = lively_model(), bodymodels.load_model("body").for_keypoints()
    features, true = model.encode(images(2)), torch.randint(0, 32, (2, 48))
    runs = [posterior.draw(model, features, body, true, 3, 4, seed) for seed in (0, 0, 1)]
    assert runs[0]["draws"].shape == (2, 4, 24, 3) and runs[0]["nll"].shape == (2,)
    assert torch.equal(runs[0]["draws"], runs[1]["draws"])
    assert not torch.equal(runs[0]["draws"], runs[2]["draws"])
    assert (runs[0]["draws"][:, :, 0] == 0).all()
    assert (0 <= runs[0]["kept"]).all() and (runs[0]["kept"] < 50).all()  # untrained
