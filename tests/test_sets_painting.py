"""Version 2 of rendered bodies: backgrounds, cameras, photographs; version 1 stays."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from body_samples import seeds
from hypothesis import given, settings
from people_samples import people
from PIL import Image

import bodymodels
from sets import augmentation
from sets.augmentation import AUGMENTATIONS, Augmentation
from sets.painting import (
    SIDE,
    SURFACES,
    TEST_PHOTOGRAPHS,
    cast_shadow,
    noise,
    paint_scene,
    photographs,
    textures,
)
from sets.rendered_bodies import RenderedBodies, bystanders, camera_tilt, sample_posture

ROOT = Path(__file__).parent.parent
BODY_MEANS, BODY_KEYPOINTS = [120.93, 90.70, 121.11], [26.199, 22.199, 29.757]  # of version 1
PERSON_MEANS, HAND_MEANS = [139.61, 88.24], [133.97, 106.76]


def bodies(**options):
    return RenderedBodies("train", 48, length=30, progress=False, **options)


def test_version_1_is_as_it_was():
    """Mean brightness and position of samples that the renderer before version 2 drew."""
    body, person = bodies(version=1), people(version=1)
    assert [body[i]["image"].float().mean().item() for i in range(3)] == pytest.approx(
        BODY_MEANS, abs=0.2)
    assert [body[i]["keypoints_2d"].mean().item() for i in range(3)] == pytest.approx(
        BODY_KEYPOINTS, abs=0.01)
    assert [person[i]["image"].float().mean().item() for i in range(2)] == pytest.approx(
        PERSON_MEANS, abs=0.2)
    assert [person[i]["hand_images"].float().mean().item() for i in range(2)] == pytest.approx(
        HAND_MEANS, abs=0.2)


def test_versions_have_files_of_their_own(tmp_path):
    """The name of a packed file depends on the version, and version 2 is the default."""
    paths = [RenderedBodies("test", 16, length=1, cache=tmp_path, progress=False, **options).path
             for options in ({}, {"version": 2}, {"version": 1})]
    assert paths[0] == paths[1] != paths[2]


@pytest.mark.parametrize("version", [0, 3, None])
def test_unknown_versions_are_refused(version):
    for kind in (bodies, people):
        with pytest.raises(ValueError, match=f"unknown version {version} of the rendered pictures"):
            kind(version=version)


def test_another_process_renders_the_same_bits():
    """The textures that a process draws once do not depend on what it drew before."""
    program = ("import hashlib, torch; torch.set_num_threads(1);"
               "from sets.rendered_bodies import RenderedBodies;"
               "d = RenderedBodies('train', 48, length=30, progress=False);"
               "print(hashlib.sha256(b''.join(d.render(i).tobytes() for i in range(9)))"
               ".hexdigest())")
    other = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout.strip()
    records = {i: bodies().render(i).tobytes() for i in reversed(range(9))}
    assert hashlib.sha256(b"".join(records[i] for i in range(9))).hexdigest() == other


def test_headings_cover_the_circle():
    """With views=180 each eighth of the circle has its share of headings."""
    counts = np.zeros(8)
    for seed in range(800):
        pose, _ = sample_posture(np.random.default_rng(seed), "train", 180.0, 30.0, steep=0.4)
        x, _, z = pose[0] @ (0, 0, 1)  # where the pelvis points to
        counts[int((np.arctan2(x, -z) / (2 * np.pi) % 1) * 8)] += 1
    assert counts.min() > 70 and counts.max() < 130


def test_cameras_look_from_above_and_below():
    """A share `steep` is pitched uniformly by up to 40 degrees; without it none beyond 0.6 rad."""
    def pitches(steep):
        tilts = np.stack([camera_tilt(np.random.default_rng(seed), steep) for seed in range(2000)])
        return np.rad2deg(np.arctan2(tilts[:, 2, 1], tilts[:, 2, 2]))

    level, some, all_steep = (pitches(steep) for steep in (0.0, 0.4, 1.0))
    assert np.abs(level).max() < np.rad2deg(0.6) + 1e-6
    assert (some != level).mean() == pytest.approx(0.4, abs=0.04)
    assert np.abs(all_steep).max() <= 40 and (np.abs(all_steep) > 30).mean() == pytest.approx(
        0.25, abs=0.04)
    assert all_steep.mean() == pytest.approx(0, abs=2)


def test_held_out_photographs_are_never_in_training():
    """Training and test share no photograph; a fifth is held out; the list names every file."""
    files = {path.stem for path in (bodymodels.ASSETS / "backgrounds").glob("*.jpg")}
    assert set(TEST_PHOTOGRAPHS) | set(SURFACES) <= files
    assert len(TEST_PHOTOGRAPHS) / len(files) == pytest.approx(0.2, abs=0.03)
    listed = (bodymodels.ASSETS / "README.md").read_text()
    assert all(f"`{name}`" in listed for name in files)
    drawn = len(textures("train")) - len(set(SURFACES) - set(TEST_PHOTOGRAPHS))
    used = {}
    for split in ("train", "test"):
        surfaces = textures(split)[drawn:]
        used[split] = {picture.tobytes() for picture in (*photographs(split), *surfaces)}
    assert not used["train"] & used["test"]
    assert len(used["train"] | used["test"]) == len(files)
    assert len(used["test"]) == len(TEST_PHOTOGRAPHS)
    for name in TEST_PHOTOGRAPHS:
        with Image.open(bodymodels.ASSETS / "backgrounds" / f"{name}.jpg") as file:
            picture = file.convert("RGB")
        if name in SURFACES:
            picture = picture.resize((SIDE, SIDE))
        assert picture.tobytes() in used["test"]


@given(seeds)
@settings(max_examples=10)
def test_noise_has_the_spectrum_of_scenes(seed):
    """Amplitude falls as frequency to a power of about -0.8 to -1.4."""
    grey = np.asarray(noise(np.random.default_rng(seed)).convert("L"), np.float64)
    amplitude = np.abs(np.fft.fft2(grey - grey.mean()))
    radius = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)) * SIDE
    rings = np.array([4, 8, 16, 32, 64])
    mean = [amplitude[(radius >= ring) & (radius < 1.5 * ring)].mean() for ring in rings]
    slope = np.polyfit(np.log(rings), np.log(mean), 1)[0]
    assert -1.55 < slope < -0.65  # clipping and the small rings' randomness move it a little


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_differ_and_depend_on_the_numbers_alone(split):
    """The same generator draws the same scene; scenes of other generators differ a lot."""
    colors = np.full((100, 3), 0.5)
    scenes = [paint_scene(np.random.default_rng(seed), 64, split, colors) for seed in range(12)]
    again = paint_scene(np.random.default_rng(3), 64, split, colors)
    assert np.array_equal(scenes[3], again)
    for scene in scenes:
        assert scene.shape == (64, 64, 3) and scene.dtype == np.float32
        assert scene.min() >= 0 and scene.max() <= 255
    far = [np.abs(one - other).mean() for one, other in zip(scenes, scenes[1:], strict=False)]
    assert np.mean(far) > 30


@given(seeds)
def test_shadows_only_darken(seed):
    """No pixel becomes brighter, and a person in the picture darkens some."""
    rng = np.random.default_rng(seed)
    picture = np.full((64, 64, 3), 200, np.float32)
    cast_shadow(rng, picture, rng.uniform(16, 48, (3000, 2)))
    assert picture.max() <= 200 and 10 < picture.min() < 190


def test_other_people_stand_about():
    """A quarter of the pictures has a person behind, one in twenty one in front."""
    counts = np.array([[len(part) for part in bystanders(np.random.default_rng(seed), "train", 45)]
                       for seed in range(150)])
    assert counts.max() == 1
    assert 0.15 < counts[:, 0].mean() < 0.35 and 0 < counts[:, 1].mean() < 0.12


def picture_of(seed, size=64):
    sharp = np.random.default_rng(seed).integers(0, 256, (3, size, size))
    return sharp.astype(np.uint8)


@given(seeds)
def test_photographs_recipe_changes_colours_and_sharpness(seed):
    """Grey pictures have equal channels, tints fewer colours, and blurred ones flatter edges."""
    image, rng = picture_of(seed), np.random.default_rng(seed)
    before = image.copy()
    grey = Augmentation(grey=1.0).recolor(image, rng)
    assert (grey == grey[:1]).all() and grey.shape == image.shape
    weighted = np.tensordot([0.299, 0.587, 0.114], image.astype(float), 1)
    assert np.abs(grey[0] - weighted).max() <= 0.51
    tinted = augmentation.tint(image, rng)
    assert tinted.dtype == np.uint8 and (tinted != image).any()
    soft = augmentation.defocus(image, rng)
    assert soft.shape == image.shape and soft.dtype == np.uint8
    assert np.diff(soft.astype(float)).std() <= np.diff(image.astype(float)).std() + 1e-6
    assert np.array_equal(image, before)  # none of them writes into its input


@pytest.mark.parametrize("old,new", [("rendered_bodies_strong", "rendered_bodies_photos"),
                                     ("rendered_people", "rendered_people_photos")])
def test_photographs_recipes_crop_as_before(old, new):
    """Only colours and sharpness differ: the crops, and the labels with them, are the same."""
    one, two = (bodies(augmentation=name)[4] for name in (old, new))
    assert all(torch.equal(one[name], two[name]) for name in one if name != "image")
    assert AUGMENTATIONS[new].grey == 0.1 and AUGMENTATIONS[old].grey == 0
