"""HMR-Adapter's experts: decoder, encoders, heads of HaMeR and SMPLer-X."""

import math

import pytest
import torch
import torch.nn.functional as F
from adapter_samples import (
    LEFT,
    RIGHT,
    TINY_BODY,
    TINY_HAND,
    body_adapter,
    cross,
    hand_adapter,
    images,
    lively,
    self_attend,
)
from torch import Tensor, nn

import bodymodels
import hmr_adapter as hmr
from hmr_adapter import HandExpert


def naive_roi_align(features: Tensor, box: list[float], cells: int) -> Tensor:
    """Mean of bilinear samples, computed one by one as Mask R-CNN describes it."""
    (x0, y0, x1, y1), (height, width) = box, features.shape[1:]
    w, h = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
    across, down = math.ceil(w / cells), math.ceil(h / cells)
    out = torch.zeros(len(features), cells, cells, dtype=features.dtype)
    for row in range(cells):
        for column in range(cells):
            for i in range(down):
                for j in range(across):
                    y = y0 + h / cells * (row + (i + 0.5) / down)
                    x = x0 + w / cells * (column + (j + 0.5) / across)
                    if not (-1 <= y <= height and -1 <= x <= width):
                        continue
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    v, u = min(int(y), height - 2), min(int(x), width - 2)
                    dy, dx = y - v, x - u
                    out[:, row, column] += ((1 - dy) * (1 - dx) * features[:, v, u]
                                            + (1 - dy) * dx * features[:, v, u + 1]
                                            + dy * (1 - dx) * features[:, v + 1, u]
                                            + dy * dx * features[:, v + 1, u + 1])
    return out / (across * down)


BOXES = [[1.3, 2.1, 6.7, 9.9], [-3.0, -2.5, 5.0, 4.0], [4.0, 4.0, 4.2, 4.1], [5.0, 6.0, 20.0, 14.0],
         [0.0, 0.0, 9.0, 11.0], [-9.0, 3.0, -4.0, 8.0]]


def test_roi_align_is_the_loop():
    """For boxes inside, across the border, tiny, larger than the map, and outside."""
    features = torch.randn(len(BOXES), 3, 11, 9, dtype=torch.float64)
    found = hmr.roi_align(features, torch.tensor(BOXES, dtype=torch.float64), 4)
    for index, box in enumerate(torch.tensor(BOXES).tolist()):
        assert torch.allclose(found[index], naive_roi_align(features[index], box, 4), atol=1e-5)
        alone = hmr.roi_align(features[[index]], torch.tensor([box]), 4)  # has its own samples
        assert torch.allclose(found[index], alone[0], atol=1e-5)
    assert not found[-1].any()
    absurd = torch.tensor([[1e6, 0, -1e6, 3], [-1e6, -1e6, 1e6, 1e6]])
    assert hmr.roi_align(features[:2], absurd, 4).isfinite().all()


def test_expectation_is_where_the_peak_is():
    """The position is the peak, x, y, z in cells; the softmax sums to 1."""
    heat = torch.zeros(2, 3, 4, 5, 6)
    heat[1, 2, 1, 3, 4] = 100.0
    probability, position = hmr.expectation(heat, 3)
    assert torch.allclose(position[1, 2], torch.tensor([4.0, 3, 1]))
    assert torch.allclose(position[0, 0], torch.tensor([2.5, 2, 1.5]))
    assert torch.allclose(probability.sum((2, 3, 4)), torch.ones(2, 3))
    _, flat = hmr.expectation(heat[1, 2, 1], 2)
    assert torch.allclose(flat, torch.tensor([4.0, 3]))


def test_samples_at_whole_cells_are_the_cells():
    """Positions count cells; the first cell's centre is 0."""
    features = torch.randn(2, 3, 5, 4)
    found = hmr.sample_at(features, torch.tensor([[[1.0, 2], [3, 4]], [[0, 0], [2.5, 1]]]))
    assert torch.allclose(found[0, 0], features[0, :, 2, 1], atol=1e-6)
    assert torch.allclose(found[0, 1], features[0, :, 4, 3], atol=1e-6)
    assert torch.allclose(found[1, 1], features[1, :, 1, 2:].mean(-1), atol=1e-6)


def test_decoder_is_equation_1():
    """Each layer adds SA, CA over the unnormalised context, and an MLP, each after a norm of x."""
    decoder, context = lively(hmr.Decoder(TINY_HAND.expert, 32)), torch.randn(3, 7, 32)
    x = decoder.to_token_embedding.bias + decoder.pos_embedding.expand(3, 1, 16)
    for first, second, third in decoder.layers:
        x = x + self_attend(first.fn, first.norm(x))
        x = x + cross(second.fn, second.norm(x), context)
        net = third.fn.net
        x = x + net[3](F.gelu(net[0](third.norm(x))))
    assert torch.allclose(decoder(context), x, atol=1e-5)


def test_task_tokens_have_no_position_and_come_first():
    """The blocks run on [task tokens; patches + position]."""
    encoder = lively(hmr.ViT(TINY_BODY.expert, tasks=31)).eval()
    picture = torch.rand(2, 3, 64, 48)
    found = encoder(picture)
    assert found.shape == (2, 31 + 12, 32)
    x = encoder.patch_embed.proj(picture).flatten(2).mT
    x = x + encoder.pos_embed[:, 1:] + encoder.pos_embed[:, :1]
    x = torch.cat((encoder.task_tokens.expand(2, -1, -1), x), 1)
    for block in encoder.blocks:
        x = block(x)
    assert torch.allclose(found, encoder.last_norm(x), atol=1e-5)


def test_encoders_see_the_middle():
    """Outer eighths have no effect; of a square twice as large every second pixel counts."""
    for expert in (hand_adapter().expert, body_adapter().expert):
        picture = images()
        other = picture.clone()
        other[..., :8] = 0
        other[..., -8:] = 255
        large = picture.repeat_interleave(2, 2).repeat_interleave(2, 3)
        large[..., 1::2, :] = 7
        large[..., 1::2] = 7
        key = "hand_pose" if isinstance(expert, HandExpert) else "body_pose"
        found = expert(picture)[key]
        assert torch.equal(expert(other)[key], found)
        assert torch.equal(expert(large)[key], found)
        assert not torch.equal(expert(255 - picture)[key], found)
        with pytest.raises(ValueError, match="expected"):
            expert(images(size=48))


def test_body_expert_says_smplx():
    """55 valid rotations, identity eyes, a positive depth, squares twice as wide as hands."""
    expert = body_adapter().expert
    found = expert(images(3))
    pose = found["body_pose"]
    assert pose.shape == (3, 55, 3, 3)
    assert torch.allclose(pose @ pose.mT, torch.eye(3).expand_as(pose), atol=1e-5)
    assert torch.equal(pose[:, hmr.EYES], torch.eye(3).expand(3, 2, 3, 3))
    assert (found["translation"][:, 2] > 0).all()
    side = hmr.FOCAL * 2.5 / math.sqrt(0.75)
    assert side == pytest.approx(56.38, abs=5e-3) and (found["translation"][:, 2] < side).all()
    boxes = found["map_boxes"]
    assert torch.equal(boxes[..., 2], boxes[..., 3])
    assert torch.allclose(boxes[..., :2] + boxes[..., 2:] / 2, found["box_centers"][:, :2],
                          atol=1e-5)
    assert torch.allclose(boxes[..., 2], (2 * found["box_sizes"][:, :2].amax(-1)).clamp(0.5, 8))


def test_cells_and_pixels():
    """The map's first cell starts an eighth of the picture from the left, at the top."""
    expert = body_adapter().expert
    corner = expert.to_cells(torch.tensor([[8.0, 0], [56, 64]]), 64)
    assert torch.equal(corner, torch.tensor([[0.0, 0], [3, 4]]))
    boxes = torch.rand(2, 2, 4)
    pixels = expert.to_pixels(boxes, 128)
    assert torch.allclose(expert.to_cells(pixels[..., :2], 128), boxes[..., :2], atol=1e-6)
    assert torch.allclose(pixels[..., 2:] / 32, boxes[..., 2:])


def test_left_hand_is_seen_in_the_mirror():
    """Mirrored features with mirrored boxes exchange the maps of the two hands."""
    net = lively(hmr.HandRoiNet(TINY_BODY.expert)).eval()
    for deconvolution in net.deconv:
        if isinstance(deconvolution, nn.ConvTranspose2d):  # symmetric kernels, so maps can mirror
            deconvolution.weight.data += deconvolution.weight.data.flip(3)
    features, boxes = torch.randn(2, 32, 4, 3), torch.tensor([[[0.2, 0.4, 1, 1], [1, 2, 1.5, 1.5]]])
    boxes = boxes.expand(2, 2, 4).clone()
    mirrored = boxes.flip(1).clone()
    # columns count from cell centres, 0 to 11 in the map of twelve
    mirrored[..., 0] = 11 / 4 - mirrored[..., 0] - mirrored[..., 2]
    found, other = net(features, boxes), net(features.flip(3), mirrored)
    assert torch.allclose(found[:, RIGHT], other[:, LEFT], atol=1e-4)
    assert torch.allclose(found[:, LEFT], other[:, RIGHT], atol=1e-4)


def test_mean_hands_make_fingers_absolute():
    """hand_mean is added to the fingers' axis-angles, the left hand's in its own frame."""
    expert, mean = body_adapter().expert, 0.2 * torch.randn(2, 15, 3)
    before = expert(images())["body_pose"]
    expert.load_state_dict(expert.state_dict() | {"hand_mean": mean})
    after = expert(images())["body_pose"]
    grown = bodymodels.matrix_to_axis_angle(before[:, 25:]) + torch.cat((mean[1], mean[0]))
    assert torch.allclose(bodymodels.axis_angle_to_matrix(grown), after[:, 25:], atol=1e-4)
    assert torch.equal(before[:, :25], after[:, :25])
