"""Crops of hands and recipes of augmentation."""

import numpy as np
import pytest
import torch
from hand_samples import assert_projects, digest, hands, source_picture
from hypothesis import given
from hypothesis import strategies as st

import data
from sets import augmentation
from sets.crops import augmented_crop, crop_sample, perspective_crop, transform_points


def test_mirrored_crop_mirrors_everything():
    """Mirroring negates x of every point, maps pixels to S - x, flips the picture; K stays."""
    source, center, box = source_picture(), np.array([30.0, 34]), np.array([50.0, 40])
    plain = crop_sample(source, center, box, 48, roll=0.4)
    mirrored = crop_sample(source, center, box, 48, roll=0.4, mirror=True)
    flip = np.array([-1, 1, 1])
    for name in ("joints", "vertices"):
        np.testing.assert_allclose(mirrored[name], plain[name] * flip, atol=1e-7)
    np.testing.assert_allclose(mirrored["keypoints_2d"][:, 0], 48 - plain["keypoints_2d"][:, 0],
                               atol=1e-4)
    np.testing.assert_array_equal(mirrored["K"], plain["K"])
    difference = mirrored["image"][:, :, ::-1].astype(int) - plain["image"]
    assert np.abs(difference).max() <= 1


@given(st.sampled_from(["official_simplehand", "rendered", "rendered_moving", "rendered_photos",
                        "rendered_upright"]), st.integers(0, 3), st.integers(0, 9))
def test_augmentation_is_a_function_of_seed_epoch_and_index(recipe, epoch, index):
    """The same key gives the same sample; another epoch or seed another, with labels exact."""
    dataset = hands(length=10, augmentation=recipe)
    key = epoch * len(dataset) + index
    sample = dataset[key]
    assert digest(sample) == digest(hands(length=10, augmentation=recipe)[key])
    assert sample["index"] == index
    for other in (dataset[key + len(dataset)],
                  hands(length=10, augmentation=recipe, seed=1)[key]):
        assert not torch.equal(sample["image"], other["image"])
    assert_projects(sample)
    original = hands(length=10)[index]
    moved = original["joints"] @ sample["camera_rotation"].T
    torch.testing.assert_close(moved, sample["joints"], atol=1e-5, rtol=0)
    pixels = transform_points(sample["crop"].numpy(), original["keypoints_2d"].numpy())
    np.testing.assert_allclose(pixels, sample["keypoints_2d"], atol=2e-2)


def test_convention_official_rotation_is_degrees_read_as_radians():
    """N(0, 90) clipped at +-180, used as radians: 4.6 % at the ends, nearly uniform otherwise."""
    recipe, rng = data.AUGMENTATIONS["official_simplehand"], np.random.default_rng(0)
    rolls = np.array([recipe.draw_roll(rng) for _ in range(20_000)])
    clipped = np.abs(rolls) == 180
    assert 0.04 < clipped.mean() < 0.052
    histogram = np.histogram(rolls[~clipped] % (2 * np.pi), 12, (0, 2 * np.pi))[0]
    assert np.abs(histogram / histogram.mean() - 1).max() < 0.08


def test_official_recipe_draws_its_ranges():
    """Box jitter, scale, flips and colour gains stay in the documented ranges and fill them."""
    recipe = data.AUGMENTATIONS["official_simplehand"]
    source, center, box = source_picture(), np.array([32.0, 32]), np.array([20.0, 30])
    crops = [augmented_crop(source, center, box, 48, recipe, np.random.default_rng(i))
             for i in range(150)]
    flips = np.mean([np.linalg.det(crop["camera_rotation"]) < 0 for crop in crops])
    middles = np.array([transform_points(np.linalg.inv(crop["crop"]), np.array([24.0, 24]))
                        for crop in crops])
    offsets = (middles - center) / box[0]
    assert 0.35 < flips < 0.65
    assert np.abs(offsets).max() <= 0.1 + 1e-6 and np.abs(offsets).max() > 0.09
    plain = perspective_crop(source.K, center, box, 48).K[0, 0]
    zoom = plain / np.array([crop["K"][0, 0] for crop in crops])
    assert 0.98 < zoom.min() < 1.1 and 1.4 < zoom.max() < 1.53


@given(st.integers(0, 2**32 - 1))
def test_recolor_is_monotone_per_channel(seed):
    """Colour recipes never reorder the values of a channel, and stay within 0..255."""
    ramp = np.arange(256, dtype=np.uint8)
    image = np.broadcast_to(ramp.reshape(1, 16, 16), (3, 16, 16))
    colored = data.AUGMENTATIONS["official_simplehand"].recolor(image, np.random.default_rng(seed))
    assert colored.dtype == np.uint8
    assert (np.diff(colored.reshape(3, 256).astype(int), axis=1) >= 0).all()


@pytest.mark.parametrize("change", [augmentation.blur_motion, augmentation.compress,
                                    augmentation.color_light])
@pytest.mark.parametrize("size", [17, 64])
def test_what_photographs_have(change, size):
    """All change a picture; motion blur and JPEG keep a grey one, coloured light does not."""
    noise = np.random.default_rng(0).integers(0, 256, (3, size, size)).astype(np.uint8)
    grey = np.full_like(noise, 100)
    noises, greys = (np.stack([change(picture, np.random.default_rng(seed)) for seed in range(20)])
                     for picture in (noise, grey))
    assert noises.dtype == np.uint8 and noises.shape == (20, *noise.shape)
    assert ((noises != noise).mean((1, 2, 3)) > 0.3).sum() >= 5
    assert (np.abs(greys.astype(int) - 100).max() <= 2) == (change is not augmentation.color_light)


def test_motion_blur_draws_a_line():
    """A point becomes a line through itself of at most a twelfth of the side, of equal sum."""
    point = np.zeros((3, 49, 49), np.uint8)
    point[:, 24, 24] = 255
    for seed in range(20):
        blurred = augmentation.blur_motion(point, np.random.default_rng(seed))[0]
        line = np.argwhere(blurred) - 24
        assert abs(int(blurred.sum()) - 255) <= len(line) and not line.sum()
        assert np.linalg.norm(line, axis=1).max() <= 49 / 24 + 1
        aside = np.linalg.svd(line)[2][1]  # the direction across the line
        assert np.abs(line @ aside).max() < 1


def test_keypoints_are_valid_inside_picture_and_crop():
    """A keypoint counts if it was in the original picture and is in the crop; both do happen."""
    source = source_picture()
    source.keypoints_valid = np.arange(21) % 2.0
    sample = crop_sample(source, np.array([20.0, 30]), np.array([30.0, 30]), 48)
    inside = ((sample["keypoints_2d"] >= 0) & (sample["keypoints_2d"] <= 48)).all(1)
    assert 0 < inside.sum() < 21
    np.testing.assert_array_equal(sample["keypoints_valid"], source.keypoints_valid * inside)


def test_unknown_recipe_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown augmentation 'offical'.*official_simplehand"):
        hands(augmentation="offical")
