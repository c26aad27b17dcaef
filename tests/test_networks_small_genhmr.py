"""GenHMR with our additions: the pose tokenizer, the transformer, the start from keypoints."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from genhmr_samples import POSE, TINY, TINY_TOKENIZER, batch_of, images, lively_model, poses
from networks.small_genhmr import PoseGenHMR, SmallGenHMR, build_genhmr, build_tokenizer
from torch import nn

import genhmr
from genhmr import TOKENIZER_PRESETS, GenHMR, SelfAttention, Tokenizer
from networks import small_genhmr
from networks.pose_encoder import Lifted, Seen


@pytest.mark.parametrize(("changes", "kind"), [
    ({}, GenHMR), ({"mask_loss_on": "masked", "pretrain_steps": 3}, GenHMR),
    ({"own_guesses": 0.5}, SmallGenHMR), ({"token_maps": "per_place"}, SmallGenHMR),
    ({"distance_bias": True}, SmallGenHMR), ({"unit_scales": True}, SmallGenHMR),
    *[({"tokenizer": replace(TINY_TOKENIZER, **changes)}, SmallGenHMR) for changes in (
        {"network": "joints"}, {"normalise": True}, {"corruption": 0.1})]])
def test_additions_work_alone_and_are_refused_by_the_papers_model(changes, kind):
    """Each can be added to the paper's ViT; GenHMR and Tokenizer themselves say who builds it."""
    config = replace(TINY, **changes)
    model = build_genhmr(config)
    assert type(model) is kind
    tokens = torch.full((2, 48), model.mask_token)
    model.eval()(images(2), tokens)["logits"].square().mean().backward()
    if kind is GenHMR:
        return
    with pytest.raises(ValueError, match="build_genhmr of networks/small_genhmr.py"):
        GenHMR(config)
    if "tokenizer" in changes:
        with pytest.raises(ValueError, match="build_tokenizer of networks/small_genhmr.py"):
            Tokenizer(config.tokenizer)


def test_a_pose_encoder_is_refused_by_the_papers_model():
    """GenHMR names the field and the function that builds the model."""
    with pytest.raises(ValueError, match="backbone='pose'.*build_genhmr of networks/small_genhmr"):
        GenHMR(replace(TINY, backbone="pose", encoder=POSE.encoder))
    assert type(build_genhmr(POSE)) is PoseGenHMR


# ------------------------------------------------------------------- stage 1: pose tokenizer


ROBUST = replace(TINY_TOKENIZER, network="joints", normalise=True, corruption=0.5)


def test_tokenizer_starts_near_the_rest_pose():
    """An untrained decoder gives small rotations, where 6D is well-conditioned."""
    for network, largest in (("convolutions", 0.5), ("joints", 1.2)):
        config = replace(TOKENIZER_PRESETS["cpu"], network=network)
        rotations = build_tokenizer(config)(poses(8))["rotations"]
        assert (rotations - torch.eye(3)).abs().max() < largest
        assert (rotations - torch.eye(3)).abs().mean() < 0.3


def test_tokens_of_the_joint_network_belong_to_joints():
    """Of its linear maps, token 2 j + k sees joint j alone, and joint j depends on these tokens."""
    tokenizer = build_tokenizer(replace(ROBUST, normalise=False)).eval()
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
    z = build_tokenizer(ROBUST).embed(poses(3))
    assert torch.allclose(z.mean(-1), torch.zeros(3, 48), atol=1e-5)
    assert torch.allclose(z.var(-1, unbiased=False), torch.ones(3, 48), atol=1e-2)


def test_corruption_replaces_up_to_a_share_while_training_only():
    """Replaced embeddings are codes, a quarter of them at a share of up to one half."""
    codebook, embeddings = torch.randn(32, 8), torch.zeros(500, 48, 8)
    corrupted = small_genhmr.corrupt(embeddings, codebook, 0.5)
    wrong = (corrupted != 0).any(-1)
    assert wrong.float().mean() == pytest.approx(0.25, abs=0.02)
    assert 0.35 < wrong.float().mean(1).max() < 0.75
    assert torch.cdist(corrupted[wrong], codebook).amin(1).max() < 1e-2
    assert small_genhmr.corrupt(torch.ones(1, 48, 8), codebook, 0.0).eq(1).all()
    tokenizer = build_tokenizer(ROBUST).train()
    tokenizer(poses(4))
    first, second = (tokenizer.decoder(torch.zeros(1, 8, 48)) for _ in range(2))
    assert torch.equal(first, second)
    pose = poses(4)
    drawn = []
    for seed in (0, 0, 1):
        trained = build_tokenizer(ROBUST).train()
        trained.load_state_dict(tokenizer.state_dict())
        torch.manual_seed(seed)
        drawn.append(trained(pose)["rotations"])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    tokenizer.eval()
    assert torch.equal(tokenizer(pose)["rotations"], tokenizer(pose)["rotations"])
    assert torch.allclose(tokenizer(pose)["rotations"], tokenizer.decode(tokenizer.encode(pose)),
                          atol=1e-5)


# --------------------------------------------------------------------- stage 2: transformer


def test_the_pose_encoder_stays_as_it_is(body):
    """A step of stage 2 moves neither its weights nor its averages; all else has a gradient."""
    model = build_genhmr(POSE)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    batch = genhmr.mask_batch(model, batch_of(body))
    prediction = model(batch["image"], batch["masked_tokens"])
    batch["masked_tokens"] = prediction["tokens"]
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
    start = small_genhmr.PoseStart(POSE)
    start.set_pelvis(body.model.rest_joints)
    batch = batch_of(body)
    assert torch.allclose(start.pelvis(batch["betas"]),
                          body.model.rest_joints(batch["betas"])[:, 0], atol=1e-5)
    joints = body.of(batch["betas"], batch["pose"])
    lifted = Lifted(joints - joints[:, :1], torch.zeros(4, 24, 6), batch["betas"])
    at = genhmr.project_to_crop(joints, batch["camera"], TINY.focal)
    seen = Seen(None, at, torch.ones(4, 45), None, None, lifted, {})
    inside = (at.abs() < start.border).all(-1).sum(1)
    found = start.camera(seen)[inside > 2]
    assert len(found) and torch.allclose(found, batch["camera"][inside > 2], atol=1e-3)


def test_tokens_start_at_their_joints():
    """Tokens look where their joint was found, and start from its z in the tokenizer."""
    model = build_genhmr(POSE).eval()
    with torch.no_grad():
        seen = model.backbone(model.normalise(images(2)))
        features = model.encode(images(2))
    places = (features.places - 0.5) * torch.tensor([0.75, 1.0])
    assert torch.allclose(places[:, 10], seen.at[:, 5], atol=1e-6)  # two tokens per joint
    assert torch.allclose(places[:, 11], seen.at[:, 5], atol=1e-6)
    z = torch.randn(2, 48, 8)
    change = model.regressor(seen, z) - model.regressor(seen, torch.zeros_like(z))
    assert torch.allclose(change, z @ model.regressor.z.weight.T, atol=1e-5)


def test_keypoints_stand_in_for_pictures():
    """Told keypoints alone, the model starts from the lift without features."""
    model = build_genhmr(POSE).eval()
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
    distance = small_genhmr.skeleton_distances()
    assert small_genhmr.PARENTS == tuple(body.model.parents)
    assert torch.equal(distance, distance.T) and (distance.diagonal() == 0).all()
    assert (distance[:, None] <= distance[:, :, None] + distance[None]).all()
    assert all(distance[joint, parent] == 1
               for joint, parent in enumerate(small_genhmr.PARENTS) if joint)
    assert (distance[22, 23], distance[22, 10]) == (10, 12)


def test_biased_attention_is_attention_with_a_bias():
    """Without bias it is SelfAttention; at the start, near joints count more, but in the last."""
    biased, plain = small_genhmr.BiasedAttention(16, 4, 48), SelfAttention(16, 4)
    start = biased.bias.detach().clone()
    expected = small_genhmr.skeleton_distances().repeat_interleave(2, 0).repeat_interleave(2, 1)
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
    layer, x = small_genhmr.PlaceLinear(3, 4, 5), torch.randn(2, 3, 4)
    nn.init.normal_(layer.bias)
    for place in range(3):
        expected = F.linear(x[:, place], layer.weight[place].T, layer.bias[place])
        assert torch.allclose(layer(x)[:, place], expected, atol=1e-6)


def test_own_guesses_are_the_surest():
    """As many tokens as were masked stay masked, those guessed least surely; the others are the
    guesses with all masked; other samples keep their tokens."""
    model = lively_model(replace(TINY, vit_drop_path=0.0, own_guesses=0.5))
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
    assert torch.equal(model(images(3), masked)["tokens"], masked)  # in evaluation mode
    torch.manual_seed(0)
    own = torch.rand(3) < 0.5
    torch.manual_seed(0)
    seen = model.train()(images(3), masked)["tokens"]
    assert 0 < own.sum() < 3
    assert torch.equal(seen[~own], masked[~own]) and torch.equal(seen[own], told[own])
