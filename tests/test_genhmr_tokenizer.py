"""GenHMR's stage 1: augmentation, quantiser, tokenizer."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from genhmr_samples import TINY_TOKENIZER, poses
from torch import Tensor

import genhmr
from genhmr import Quantiser, Tokenizer, TokenizerConfig
from tasks.genhmr import augment_rotation
from tasks.settings import GENHMR_TOKENIZER

# ------------------------------------------------------------------------------------- augmentation


def test_augmentation_turns_bodies_about_their_rest_pelvis(body):
    """V' = R (V - J_0) + J_0 with the pelvis of the unposed shape, one R per body."""
    pose, betas = poses(6), torch.randn(6, 10)
    turned = augment_rotation(pose)
    assert torch.equal(turned[:, 1:], pose[:, 1:])
    rotation = turned[:, 0] @ pose[:, 0].mT
    pelvis = body.rest_joints(betas)[:, :1]
    old, new = body(betas, pose).vertices, body(betas, turned).vertices
    assert torch.allclose(new, (old - pelvis) @ rotation.mT + pelvis, atol=1e-5)


def test_augmentation_covers_what_stage_2_meets():
    """Any heading, leans up to the tilt, and a uniform rotation for a fifth of the bodies."""
    def turns(count: int, seed: int = 0, **fields) -> Tensor:
        return augment_rotation(torch.eye(3).expand(count, 24, 3, 3),
                                torch.Generator().manual_seed(seed),
                                replace(GENHMR_TOKENIZER["paper"], **fields))[:, 0]

    mixed = turns(20_000)
    lean = torch.rad2deg(mixed[:, 1, 1].clamp(-1, 1).acos())  # between down and its image
    beyond = (lean > 45.001).float().mean()
    assert beyond == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)) / 2, abs=0.01)
    heading = torch.atan2(mixed[:, 0, 2], mixed[:, 2, 2])
    assert torch.histc(heading, 8, -math.pi, math.pi) == pytest.approx([2500] * 8, rel=0.1)
    upright = turns(100, uniform_rotation=0.0, tilt=0.0, views=20.0)
    assert torch.allclose(upright[:, 1], torch.tensor([0.0, 1, 0]).expand(100, 3), atol=1e-6)
    headings = torch.rad2deg(torch.atan2(upright[:, 0, 2], upright[:, 2, 2])).abs()
    assert 15.0 < headings.max() <= 20.001
    assert torch.equal(turns(5, 3), turns(5, 3)) and not torch.equal(turns(5, 3), turns(5, 4))
    uniform = turns(20_000, uniform_rotation=1.0)
    for coordinate in (uniform[:, 0, 2], uniform[:, 1, 1], uniform[:, 2, 0]):  # Archimedes
        assert torch.histc(coordinate, 8, -1, 1) == pytest.approx([2500] * 8, rel=0.1)


# --------------------------------------------------------------------------------- quantiser


def trained_quantiser(**options) -> Quantiser:
    """A quantiser in the middle of its training."""
    quantiser = Quantiser(replace(TINY_TOKENIZER, **options)).train()
    for _ in range(3):
        quantiser(torch.randn(8, 48, 8))
    return quantiser


def test_nearest_is_the_argmin_of_all_distances():
    """Tokens equal torch.cdist's argmin, for any leading shape; lookup is the inverse."""
    quantiser = Quantiser(replace(TINY_TOKENIZER, codebook_size=300)).double()
    z = torch.randn(5, 48, 8, dtype=torch.float64)
    expected = torch.cdist(z.flatten(0, 1), quantiser.codebook).argmin(1).view(5, 48)
    assert torch.equal(quantiser.nearest(z), expected)
    assert torch.equal(quantiser.nearest(z[0]), expected[0])
    assert torch.equal(quantiser.nearest(quantiser.lookup(expected)), expected)


def test_averages_follow_the_closed_form():
    """After n batches sum = mu^n sum_0 + (1 - mu) sum_i mu^(n-i) Z_i; code = sum / count."""
    momentum = 0.9
    quantiser = trained_quantiser(momentum=momentum, codebook_size=4).double()
    sums, counts = momentum**5 * quantiser.code_sum, momentum**5 * quantiser.code_count
    for i in range(5):
        z = torch.randn(8, 48, 8, dtype=torch.float64)
        one_hot = F.one_hot(quantiser.nearest(z), 4).double().flatten(0, 1)
        factor = (1 - momentum) * momentum ** (4 - i)
        sums += factor * one_hot.T @ z.flatten(0, 1)
        counts += factor * one_hot.sum(0)
        quantiser(z)
    assert (quantiser.code_count > 1).all()  # nobody was restarted
    assert torch.allclose(quantiser.code_sum, sums)
    assert torch.allclose(quantiser.code_count, counts)
    assert torch.allclose(quantiser.codebook, sums / counts[:, None])


def test_gradient_passes_straight_through():
    """d quantised / d z is the identity, the value a code. Of the losses, with moving averages,
    only lambda_alpha's has a gradient; lambda_E's is equal."""
    quantiser = trained_quantiser().eval()
    z, weights = torch.randn(2, 48, 8, requires_grad=True), torch.randn(2, 48, 8)
    out, codes = quantiser(z), quantiser.lookup(quantiser.nearest(z))
    assert torch.equal(torch.autograd.grad((weights * out["embeddings"]).sum(), z)[0], weights)
    assert torch.allclose(out["embeddings"], codes, atol=1e-6)
    assert not out["embedding_loss"].requires_grad
    assert torch.equal(out["embedding_loss"], out["commitment_loss"].detach())
    gradient, = torch.autograd.grad(out["commitment_loss"], z)
    assert torch.allclose(gradient, 2 * (z.detach() - codes) / z.numel(), atol=1e-6)


def test_perplexity_counts_the_tokens_in_use():
    """1 if all tokens are equal, V if all codes are equally frequent; unused codes are dead."""
    quantiser = Quantiser(TINY_TOKENIZER).eval()
    before = copy.deepcopy(quantiser.state_dict())
    every = quantiser(quantiser.codebook[None])
    assert every["perplexity"] == pytest.approx(32) and every["dead_codes"] == 0
    one = quantiser(quantiser.codebook[:1].expand(1, 48, 8))
    assert one["perplexity"] == pytest.approx(1) and one["dead_codes"] == 31
    for name, value in quantiser.state_dict().items():  # evaluation changes no code
        assert torch.equal(value, before[name]), name


def test_first_batch_gives_the_first_codes():
    """Codes start as different embeddings of the first batch, or near them if it has too few."""
    quantiser, z = Quantiser(TINY_TOKENIZER).train(), torch.randn(2, 48, 8)
    quantiser.initialise(z.flatten(0, 1))
    assert (quantiser.codebook[:, None] == z.flatten(0, 1)).all(-1).any(1).all()
    assert len(quantiser.codebook.unique(dim=0)) == 32 and quantiser.initialised
    quantiser.initialise(z[0, :5])
    assert torch.cdist(quantiser.codebook, z[0, :5]).amin(1).max() < 0.3
    assert len(quantiser.codebook.unique(dim=0)) == 32
    quantiser.initialise(z[0, :1])  # one embedding has no spread
    assert quantiser.codebook.isfinite().all()


def test_unused_codes_restart_at_random_embeddings():
    """Codes far from a whole batch become random rows of it, not the first, with new averages."""
    quantiser, z = trained_quantiser(), torch.randn(8, 48, 8)
    quantiser.codebook[3:] += 1e3
    quantiser.code_count[3:], quantiser.code_sum[3:] = 0.5, 7.0
    quantiser(z)
    same = (quantiser.codebook[3:, None] == z.flatten(0, 1)).all(-1)  # (29, N)
    assert (same.sum(1) == 1).all()
    rows = same.float().argmax(1)
    assert len(rows.unique()) == 29 and rows.max() > 100
    assert torch.equal(quantiser.code_sum[3:], quantiser.codebook[3:])
    assert torch.equal(quantiser.code_count[3:], torch.ones(29))


def learn_codebook(rank: int, world: int, folder: Path) -> None:
    """Train on this process's part of three batches; the last process stores the codebook."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank,
                                world_size=world)
    quantiser = Quantiser(TokenizerConfig(num_tokens=48, codebook_size=8, code_dim=4)).train()
    torch.manual_seed(rank)  # the ranks draw differently, and agree all the same
    quantiser.initialise(torch.randn(100, 4, generator=torch.Generator().manual_seed(0)))
    for step in range(3):
        z = torch.randn(8, 48, 4, generator=torch.Generator().manual_seed(step))
        out = quantiser(z.chunk(world)[rank])
    if rank == world - 1:
        torch.save(quantiser.state_dict() | {"perplexity": out["perplexity"]}, folder / f"{world}")
    if world > 1:
        dist.barrier()  # or the first to leave would take the connection away from the other
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_learn_one_codebook(tmp_path):
    """Averages run over the samples of all processes, and random restarts agree."""
    for world in (1, 2):
        torch.multiprocessing.spawn(learn_codebook, (world, tmp_path), nprocs=world)
    one, two = (torch.load(tmp_path / f"{world}", weights_only=True) for world in (1, 2))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------- tokenizer


def test_joints_and_tokens_are_neighbours_in_number():
    """A token sees 4 to 8 joints and no token none; a joint depends on a third of the tokens or
    more: four tokens per joint, but not of one joint."""
    tokenizer = Tokenizer(replace(TINY_TOKENIZER, num_tokens=96)).eval()
    seen, = torch.autograd.functional.jacobian(
        lambda pose: tokenizer.embed(pose[None])[0].sum(1), (poses(1)[0],))
    seen = seen.abs().sum((2, 3)) > 0  # (96, 24)
    assert seen.sum(1).min() >= 4 and seen.sum(1).max() <= 8
    for row in seen:
        joints = row.nonzero().flatten()
        assert joints.max() - joints.min() == len(joints) - 1  # neighbours in SMPL's order
    depends, = torch.autograd.functional.jacobian(
        lambda z: genhmr.matrix_to_rotation_6d(tokenizer.decode_embeddings(z[None]))[0].sum(1),
        (torch.randn(96, 8),))
    depends = depends.abs().sum(2) > 0  # (24, 96)
    assert 32 <= depends.sum(1).min() and depends.sum(1).max() <= 70
    assert 8 <= depends.sum(0).min() and depends.sum(0).max() <= 18


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


def test_normalised_embeddings():
    """With `normalise` each embedding has mean 0 and variance 1; nothing else changes."""
    tokenizer = Tokenizer(TINY_TOKENIZER).eval()
    with torch.no_grad():
        tokenizer.encoder[-1].weight.mul_(10)  # the norm's 1e-5 under the root is nothing beside
    plain = tokenizer.embed(poses(5))
    std, mean = torch.std_mean(plain, -1, unbiased=False, keepdim=True)
    tokenizer.config = replace(TINY_TOKENIZER, normalise=True)
    assert torch.allclose(tokenizer.embed(poses(5)), (plain - mean) / std, atol=1e-4)


def test_corruption_replaces_some_embeddings_by_codes():
    """With a probability of up to the given share, half of it on average, by random codes."""
    codebook, embeddings = torch.randn(32, 8), torch.randn(200, 4000, 8)
    corrupted = genhmr.corrupt(embeddings, codebook, 0.4)
    changed = (corrupted != embeddings).any(-1)
    share = changed.float().mean(1)  # of a long pose, so that chance plays no great part
    assert 0.36 < share.max() < 0.42 and share.min() < 0.04
    assert share.mean().item() == pytest.approx(0.2, abs=0.03)
    assert changed.float().mean(0).std() < 0.05  # no favourite places
    assert (corrupted[changed][:5000, None] == codebook).all(-1).any(1).all()


def test_corruption_is_of_training_alone():
    """It changes what is decoded, but neither tokens nor averages, and nothing in evaluation."""
    models = [Tokenizer(replace(TINY_TOKENIZER, normalise=True, corruption=share)).train()
              for share in (0.0, 1.0)]
    models[1].load_state_dict(models[0].state_dict())
    plain, corrupted = [(torch.manual_seed(5), model(poses(8)))[1] for model in models]
    assert torch.equal(plain["tokens"], corrupted["tokens"])
    assert (plain["rotations"] - corrupted["rotations"]).abs().max() > 1e-3
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name]), name
    assert torch.equal(*[model.eval()(poses(8))["rotations"] for model in models])


def test_tokenizer_losses(body):
    """Mean absolute errors of a reconstruction, weighted as in the paper."""
    batch, found = {"pose": poses(3), "betas": torch.randn(3, 10)}, poses(3, seed=1)
    prediction = {"rotations": found, "embedding_loss": torch.tensor(2.0),
                  "commitment_loss": torch.tensor(3.0)}
    terms = genhmr.tokenizer_losses(prediction, batch, body)
    true, guess = body(batch["betas"], batch["pose"]), body(batch["betas"], found)
    expected = {"pose": (found - batch["pose"]).abs().mean(),
                "vertices": (true.vertices - guess.vertices).abs().mean(),
                "joints": (true.joints - guess.joints).abs().mean(),
                "embedding": torch.tensor(2.0), "commitment": torch.tensor(3.0)}
    torch.testing.assert_close(terms, expected)
    assert genhmr.total_loss(terms, TokenizerConfig()).item() == pytest.approx(float(
        expected["pose"] + 0.5 * expected["vertices"] + 0.3 * expected["joints"])
        + 0.02 * 2.0 + 0.02 * 3.0)
