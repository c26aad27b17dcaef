"""Crops: homographies, virtual cameras, resampling, recipes of augmentation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from set_samples import assert_projects, blob, centroid, digest, hands, source_picture

import data
from sets import augmentation, crops

intrinsics = st.builds(
    lambda fx, ratio, cx, cy: np.array([[fx, 0, cx], [0, fx * ratio, cy], [0, 0, 1]]),
    st.floats(80, 2000), st.floats(0.8, 1.25), st.floats(20, 300), st.floats(20, 300))
centers = st.tuples(st.floats(0, 320), st.floats(0, 240)).map(np.array)
boxes = st.tuples(st.floats(4, 120), st.floats(4, 120)).map(np.array)
rolls = st.floats(-7, 7)


@given(intrinsics, centers, boxes, rolls, st.booleans(), st.integers(0, 2**32 - 1))
def test_perspective_crop_is_a_rotated_camera(K, center, box, roll, mirror, seed):
    """Projecting rotated points with the crop's K equals moving the original's pixels."""
    crop = crops.perspective_crop(K, center, box, 96, roll=roll, mirror=mirror)
    np.testing.assert_allclose(crop.rotation @ crop.rotation.T, np.eye(3), atol=1e-12)
    assert np.isclose(np.linalg.det(crop.rotation), -1 if mirror else 1)
    np.testing.assert_allclose(crops.transform_points(crop.homography, center), [48, 48], atol=1e-6)
    pixels = center + np.random.default_rng(seed).uniform(-0.5, 0.5, (8, 2)) * box
    points = np.column_stack([pixels, np.ones(8)]) @ np.linalg.inv(K).T * 0.7
    turned = points @ crop.rotation.T @ crop.K.T
    np.testing.assert_allclose(turned[:, :2] / turned[:, 2:],
                               crops.transform_points(crop.homography, pixels), atol=1e-6)


@given(intrinsics, centers, boxes)
def test_perspective_crop_holds_the_box(K, center, box):
    """The middles of the box's sides lie in the crop, and the outermost on its border."""
    crop = crops.perspective_crop(K, center, box, 96)
    sides = center + np.array([[-1, 0], [1, 0], [0, -1], [0, 1]]) * box / 2
    reach = np.abs(crops.transform_points(crop.homography, sides) - 48).max()
    assert reach == pytest.approx(48, abs=1e-6)


@given(st.floats(70, 250), st.floats(60, 180), st.floats(50, 130), rolls, st.booleans())
def test_convention_pixels_are_half_open_squares(x, y, side, roll, mirror):
    """A warped spot is where the homography puts it, to a twentieth of a pixel."""
    center = (x + 5, y - 3)
    homography = crops.crop_homography(center, side, 96, roll=roll, mirror=mirror)
    warped = crops.warp(blob(320, 240, x, y), homography, 96)
    expected = crops.transform_points(homography, np.array([x, y]))
    np.testing.assert_allclose(centroid(warped), expected, atol=0.05)


@given(st.floats(300, 900), st.floats(250, 700), st.floats(300, 1100))
def test_reducing_warp_keeps_positions(x, y, side):
    """Averaging blocks before a strong reduction moves nothing, whatever the picture's size."""
    homography = crops.crop_homography((x, y), side, 64)
    warped = crops.warp(blob(1201, 967, x + 31, y - 17, spread=20), homography, 64)
    inside = crops.transform_points(homography, np.array([x + 31, y - 17]))
    np.testing.assert_allclose(centroid(warped), inside, atol=0.15)
    assert not crops.warp(blob(60, 40, 9, 9), crops.crop_homography((x, y), 1e23, 8), 8).any()


# ------------------------------------------------------- the crop of SimpleHand's released code


@given(intrinsics, centers, boxes, rolls)
def test_release_crop_fits_the_box_of_the_turned_corners(K, center, box, roll):
    """The longer side of the bounding box of the turned corners fills the crop; the centre comes
    to pixel S / 2; fx and fy keep their ratio."""
    crop = crops.perspective_crop(K, center, box, 96, release=True)
    corners = center + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * box / 2
    extent = np.ptp(crops.transform_points(crop.homography, corners), axis=0)
    assert extent.max() == pytest.approx(96, abs=1e-6)
    np.testing.assert_allclose(crops.transform_points(crop.homography, center), [48, 48], atol=1e-6)
    assert crop.K[1, 1] / crop.K[0, 0] == pytest.approx(K[1, 1] / K[0, 0])
    turned = crops.perspective_crop(K, center, box, 96, roll=roll, release=True)
    np.testing.assert_allclose(turned.K, crop.K)


def bilinear(image, x, y):
    """A pixel of an image at integer pixel centres, black outside: what OpenCV samples."""
    padded = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)))
    x, y = np.clip(x + 1, 0, padded.shape[1] - 1.001), np.clip(y + 1, 0, padded.shape[0] - 1.001)
    column, row = int(x), int(y)
    u, v = x - column, y - row
    return ((1 - v) * ((1 - u) * padded[row, column] + u * padded[row, column + 1])
            + v * ((1 - u) * padded[row + 1, column] + u * padded[row + 1, column + 1]))


@given(st.floats(60, 260), st.floats(40, 200), st.floats(30, 150), rolls, st.booleans())
def test_release_warp_has_pixel_centres_at_integers(x, y, side, roll, mirror):
    """Pixel (i, j) of the crop is the picture, bilinear, where the inverse homography puts (i, j);
    mirrored crops are the flipped ones."""
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    image = np.asarray(Image.fromarray(image).resize((320, 240), Image.Resampling.BICUBIC))
    K = np.array([[480.0, 0, 150], [0, 470, 110], [0, 0, 1]])
    crop, plain = (crops.perspective_crop(K, (x, y), (side, 0.8 * side), 32, roll=roll, mirror=flip,
                                          release=True) for flip in (mirror, False))
    made = crops.release_warp(image, crop.homography, 32)
    inverse = np.linalg.inv(crop.homography)
    for i, j in ((0, 0), (16, 16), (31, 4), (7, 30)):
        expected = bilinear(image, *crops.transform_points(inverse, np.array([i, j], float)))
        assert np.abs(made[j, i] - expected).max() <= 1
    flipped = crops.release_warp(image, plain.homography, 32)[:, ::-1 if mirror else 1].astype(int)
    assert np.abs(made - flipped).max() <= 1


@given(st.sampled_from(["official_simplehand", "release_simplehand", "rendered", "rendered_photos",
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
    pixels = crops.transform_points(sample["crop"].numpy(), original["keypoints_2d"].numpy())
    np.testing.assert_allclose(pixels, sample["keypoints_2d"], atol=2e-2)


def test_convention_official_rotation_is_degrees_read_as_radians():
    """N(0, 90) clipped at +-180, used as radians: 4.6 % at the ends, nearly uniform otherwise."""
    recipe, rng = data.AUGMENTATIONS["official_simplehand"], np.random.default_rng(0)
    rolls = np.array([recipe.draw_motion(rng)[2] for _ in range(20_000)])
    clipped = np.abs(rolls) == 180
    assert 0.04 < clipped.mean() < 0.052
    histogram = np.histogram(rolls[~clipped] % (2 * np.pi), 12, (0, 2 * np.pi))[0]
    assert np.abs(histogram / histogram.mean() - 1).max() < 0.08
    turns = [s["camera_rotation"] for s in hands(length=40, augmentation="official_simplehand")]
    assert 10 < (torch.linalg.det(torch.stack(turns)) < 0).sum() < 30  # about half are mirrored


@pytest.mark.parametrize("change,keeps_grey", [
    (augmentation.blur_motion, True), (augmentation.compress, True),
    (augmentation.defocus, True), (augmentation.turn_grey, True),
    (augmentation.color_light, False), (augmentation.tint, False)])
@pytest.mark.parametrize("size", [17, 64])
def test_what_photographs_have(change, keeps_grey, size):
    """All change a picture, but none its input; some keep a grey one, light and tint do not."""
    noise = np.random.default_rng(0).integers(0, 256, (3, size, size)).astype(np.uint8)
    grey = np.full_like(noise, 100)
    noises, greys = (np.stack([change(picture, np.random.default_rng(seed)) for seed in range(20)])
                     for picture in (noise, grey))
    assert noises.dtype == np.uint8 and noises.shape == (20, *noise.shape)
    assert ((noises != noise).mean((1, 2, 3)) > 0.3).sum() >= 5
    assert (np.abs(greys.astype(int) - 100).max() <= 2) == keeps_grey
    assert np.array_equal(noise, np.random.default_rng(0).integers(0, 256, (3, size, size)))
    if change is augmentation.turn_grey:  # by the brightness of red, green and blue
        brightness = np.tensordot([0.299, 0.587, 0.114], noise.astype(float), 1)
        assert np.abs(noises[0] - brightness).max() <= 0.51


def test_keypoints_are_valid_inside_picture_and_crop():
    """A keypoint counts if it was in the original picture and is in the crop; both do happen."""
    source = source_picture()
    source["keypoints_valid"] = np.arange(21) % 2.0
    sample = crops.crop_sample(source, np.array([20.0, 30]), np.array([30.0, 30]), 48)
    inside = ((sample["keypoints_2d"] >= 0) & (sample["keypoints_2d"] <= 48)).all(1)
    assert 0 < inside.sum() < 21
    np.testing.assert_array_equal(sample["keypoints_valid"], source["keypoints_valid"] * inside)
