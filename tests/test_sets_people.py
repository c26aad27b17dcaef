"""Augmentation of whole bodies with crops of their hands."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from people_samples import CONTRACT, SIZE, people, seeds

import data
from sets.augmentation import Augmentation
from sets.crops import augment_person, body_camera, crop_homography, person_labels, transform_points


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Twelve people rendered once, for the tests that only read them."""
    folder = tmp_path_factory.mktemp("people")
    return lambda **options: people(length=12, cache=folder, **options)


def spotted_person(x, y, size=64):
    """A sample whose pictures are one bright spot each, where all keypoints are."""
    rows, columns = np.indices((size, size)) + 0.5

    def spot(u, v):
        bright = 250 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 18)
        return np.repeat(bright[..., None], 3, 2).round().astype(np.uint8)

    K = body_camera(size)
    point = np.array([(x - size / 2) / K[0, 0], (y - size / 2) / K[0, 0], 1]) * 30
    zoom = crop_homography((x + 3, y - 2), size / 2, size)
    u, v = transform_points(zoom, np.array([x, y]))
    right, flip = zoom @ K, np.diag([-1.0, 1, 1])
    left = np.array([[-1, 0, size], [0, 1, 0], [0, 0, 1]]) @ right @ flip
    return {"image": spot(x, y), "hand_images": np.stack([spot(u, v), spot(size - u, v)]), "K": K,
            "hand_vertices": np.tile([point, point * (-1, 1, 1)], (1, 778)).reshape(2, 778, 3),
            "hand_K": np.stack([right, left]), "hand_visible": np.array([0.25, 0.75]),
            "pose": np.tile(np.eye(3), (55, 1, 1)), "betas": np.zeros(10),
            "expression": np.zeros(10), "transl": point - (0.01, -0.2, 0.03),
            "keypoints_3d": np.tile(point, (76, 1)),
            "keypoints_2d": np.tile([x, y], (76, 1)).astype(np.float64)}


@given(seeds, st.floats(26, 38), st.floats(26, 38))
def test_all_pictures_move_with_their_labels(seed, x, y):
    """After any augmentation, a spot in each picture is where its labels and camera put it."""
    recipe = Augmentation(center_jitter=0.03, scale=(0.8, 1.2), rotation=40, flip=0.5)
    moved = augment_person(spotted_person(x, y), recipe, np.random.default_rng(seed))
    pictures = [moved["image"], *moved["hand_images"]]
    labels = person_labels(moved, 64)
    np.testing.assert_allclose(labels["hand_vertices"][:, 5], labels["hand_joints"][:, 5],
                               atol=1e-6)
    expected = [labels["keypoints_2d"][0], *labels["hand_keypoints_2d"][:, 0]]
    for picture, keypoint in zip(pictures, expected, strict=True):
        weight = picture[..., 0].astype(np.float64)
        rows, columns = np.indices(weight.shape) + 0.5
        centroid = [(weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()]
        np.testing.assert_allclose(centroid, keypoint, atol=0.15)
    projected = labels["keypoints_3d"] @ labels["K"].T
    np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], labels["keypoints_2d"],
                               atol=1e-6)


def test_mirrored_people_exchange_their_hands(packed):
    """Mirroring makes the stored left hand's crop, pose and arm those of the right hand."""
    mirrored = packed(augmentation=Augmentation(flip=1.0))
    for one, two in zip(packed(), mirrored, strict=True):
        for name in ("hand_images", "hand_pose", "arm_pose", "hand_visible", "hand_valid"):
            torch.testing.assert_close(two[name], one[name].flip(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(two["hand_keypoints_2d"], one["hand_keypoints_2d"].flip(0),
                                   atol=0.02, rtol=0)
        x, y, width, height = one["hand_boxes"].flip(0).T
        expected = torch.stack([SIZE - x - width, y, width, height], 1)
        torch.testing.assert_close(two["hand_boxes"], expected, atol=1e-3, rtol=0)
        assert torch.equal(two["image"], one["image"].flip(2))


def test_colors_of_all_pictures_change(packed):
    """A recipe of colours alone changes all three pictures and nothing else."""
    recipe = data.AUGMENTATIONS["rendered"]
    one, two = packed()[3], packed(augmentation=recipe)[3]
    for name in CONTRACT:
        assert torch.equal(one[name], two[name]) == (name not in ("image", "hand_images")), name
    assert (one["hand_images"] != two["hand_images"]).flatten(1).any(1).all()
