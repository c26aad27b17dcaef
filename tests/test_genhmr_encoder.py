"""GenHMR's pose encoder, and the other additions for small machines."""

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from genhmr_samples import (
    POSE,
    TINY,
    TINY_ENCODER,
    TINY_TOKENIZER,
    batch_of,
    images,
    lively_model,
)
from torch import nn

import genhmr
from genhmr import GenHMR, Tokenizer


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
