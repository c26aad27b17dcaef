"""Rendered bodies and people: exact labels, determinism, boxes, outfits, augmentation."""

import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from set_samples import (
    BODY,
    CROP,
    HAND,
    HAND_IDS,
    MIRROR,
    PEOPLE_CONTRACT,
    ROOT,
    SIZE,
    SMPLX55,
    WHOLE,
    assert_projects,
    blob,
    centroid,
    people,
    person_of,
    posed,
    seeds,
)

import bodymodels as bm
import data
from sets import crops, painting, rendered_bodies
from sets.augmentation import Augmentation

RECIPES = {name: data.AUGMENTATIONS[name] for name in ("official_hmr", "rendered_bodies_photos")}


def bodies(split="train", size=48, length=30, **options):
    return rendered_bodies.RenderedBodies(split, size, length=length, **options)


@pytest.mark.parametrize("recipe,atol", [
    (None, 1e-4), (replace(RECIPES["official_hmr"], flip=0.0), 1e-4),
    (replace(RECIPES["rendered_bodies_photos"], flip=0.0), 1e-4),
    (replace(RECIPES["official_hmr"], flip=1.0), 8e-3)])  # shapes are symmetric to millimetres
def test_body_labels_are_exact(recipe, atol):
    """Pose, shape and translation give the 3D keypoints; K projects them to the 2D ones."""
    light = BODY.for_keypoints()
    for sample in map(bodies(augmentation=recipe).__getitem__, range(30)):
        output = light(sample["betas"][None], sample["pose"][None], transl=sample["transl"][None])
        torch.testing.assert_close(light.keypoints(output)[0], sample["keypoints_3d"], atol=atol,
                                   rtol=0)
        assert_projects(sample, "keypoints_3d", atol=0.01)
        inside = ((sample["keypoints_2d"] >= 0) & (sample["keypoints_2d"] <= 48)).all(1)
        assert torch.equal(sample["keypoints_valid"], inside.float())
        assert (sample["keypoints_3d"][:, 2] > 1).all()


def test_extreme_crops_show_a_part():
    """With probability 1 each crop is a part's box: fewer keypoints stay inside than before."""
    recipe = Augmentation(extreme=1.0)
    assert recipe.moves
    plain, parts = bodies(), bodies(augmentation=recipe)
    kept = [(plain[key]["keypoints_valid"].sum(), parts[key]["keypoints_valid"].sum())
            for key in range(30)]
    assert all(after >= 3 for _, after in kept)
    assert np.mean([after < before for before, after in kept]) > 0.6


def test_another_process_renders_the_same_bits():
    """The textures that a process draws once do not depend on what it drew before."""
    program = ("import hashlib, torch; torch.set_num_threads(1);"
               "from sets.rendered_bodies import RenderedBodies;"
               "d = RenderedBodies('train', 48, length=30);"
               "print(hashlib.sha256(b''.join(d.render(i).tobytes() for i in range(9)))"
               ".hexdigest())")
    other = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout.strip()
    records = {i: bodies().render(i).tobytes() for i in reversed(range(9))}
    assert hashlib.sha256(b"".join(records[i] for i in range(9))).hexdigest() == other


def test_held_out_photographs_are_never_in_training():
    """Training and test share no photograph; a fifth is held out; the list names every file."""
    files = {path.stem for path in (bm.ASSETS / "backgrounds").glob("*.jpg")}
    assert set(painting.TEST_PHOTOGRAPHS) | set(painting.SURFACES) <= files
    assert len(painting.TEST_PHOTOGRAPHS) / len(files) == pytest.approx(0.2, abs=0.03)
    listed = (bm.ASSETS / "README.md").read_text()
    assert all(f"`{name}`" in listed for name in files)
    used = {}
    for split in ("train", "test"):
        surfaces = painting.textures(split)[6 * painting.COPIES:]  # after the drawn ones
        used[split] = {picture.tobytes() for picture in (*painting.photographs(split), *surfaces)}
    assert not used["train"] & used["test"]
    assert len(used["train"] | used["test"]) == len(files)
    assert len(used["test"]) == len(painting.TEST_PHOTOGRAPHS)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Twelve people rendered once, for the tests that only read them."""
    folder = tmp_path_factory.mktemp("people")
    return lambda **options: people(length=12, cache=folder, **options)


SIDES = ((0, "right"), (1, "left"))
MOVING = Augmentation(center_jitter=0.05, scale=(0.8, 1.2), rotation=40.0, flip=0.0)
MIRRORED = Augmentation(scale=(0.8, 1.2), rotation=40.0, flip=1.0)


@pytest.mark.parametrize("recipe,atol,of_hands", [
    (None, 1e-4, 1e-4), (MOVING, 1e-4, 1e-4),
    (MIRRORED, 8e-3, 0.02)])  # shapes are symmetric to millimetres
def test_labels_of_people_are_exact(packed, recipe, atol, of_hands):
    """Pose, shape, face and translation give the keypoints; the cameras project them. hand_pose
    turns the free right hand into the body's hand, or the mirrored left hand.

    To 6 mm: the hands' shapes differ. Relative to the wrist, in the camera's frame. The stored
    vertices are the body's.
    """
    for sample in packed(augmentation=recipe):
        body = posed(sample)
        torch.testing.assert_close(WHOLE.keypoints(body)[0], sample["keypoints_3d"], atol=atol,
                                   rtol=0)
        assert_projects(sample, "keypoints_3d", atol=0.01)
        assert_projects(sample, "hand_joints", "hand_K", "hand_keypoints_2d", atol=0.01)
        assert (sample["hand_K"][:, [0, 1], [0, 1]] > 0).all()
        for hand, side in SIDES:
            joints = sample["keypoints_3d"][bm.joint_indices("smplx76", f"{side}_hand21")]
            wrist = body.joints[0, SMPLX55.index(f"{side}_wrist")]
            truth = body.vertices[0][HAND_IDS[side]] - wrist
            if side == "left":
                joints, truth = bm.mirror_points(joints), bm.mirror_points(truth)
            torch.testing.assert_close(sample["hand_joints"][hand], joints)
            stored = sample["hand_vertices"][hand] - sample["hand_joints"][hand, 0]
            torch.testing.assert_close(stored, truth, atol=of_hands, rtol=0)
            output = HAND(torch.zeros(1, 10), sample["hand_pose"][hand][None])
            ours = output.vertices[0] - output.joints[0, 0]
            ours = ours * (truth.norm() / ours.norm())  # people differ in size
            assert (ours - truth).norm(dim=1).mean() < 6e-3


def test_convention_left_hands_are_mirrored(packed):
    """The left hand is stored as M R M; the arm's product is the hand's orientation."""
    for sample in packed(augmentation=MOVING):
        pose, hands = sample["body_pose"], sample["hand_pose"]
        torch.testing.assert_close(hands[0, 1:], pose[40:])
        torch.testing.assert_close(hands[1, 1:], MIRROR @ pose[25:40] @ MIRROR)
        arm = pose[bm.joint_indices("smplx55", "right_arm08")]
        torch.testing.assert_close(bm.chain_rotation(arm), hands[0, 0], atol=1e-5, rtol=0)
        wrist = posed(sample).transforms[0, SMPLX55.index("left_wrist"), :3, :3]
        torch.testing.assert_close(MIRROR @ wrist @ MIRROR, hands[1, 0], atol=1e-5, rtol=0)


def test_convention_hand_crops_are_hamers(packed):
    """Boxes are tight, x and y first; a hand counts if most of its keypoints are in the picture. A
    crop is twice the tight box, widened to the three quarters that the encoder sees."""
    for recipe in (None, MOVING):
        for sample, (hand, side) in itertools.product(packed(augmentation=recipe), SIDES):
            order = bm.joint_indices("smplx76", f"{side}_hand21")
            points = sample["keypoints_2d"][order]
            low, size = points.amin(0), points.amax(0) - points.amin(0)
            torch.testing.assert_close(sample["hand_boxes"][hand], torch.cat([low, size]))
            inside = ((points >= 0) & (points <= SIZE)).all(1).float()
            assert torch.equal(inside, sample["keypoints_valid"][order])
            assert sample["hand_valid"][hand] == float(inside.mean() > 0.5)
            if recipe is None:
                shown = 2 * max(size[1], size[0] / 0.75)
                expected = (points - low - size / 2) * CROP / shown
                expected = expected * torch.tensor([1 - 2 * hand, 1]) + CROP / 2  # left: mirrored
                torch.testing.assert_close(sample["hand_keypoints_2d"][hand], expected, atol=0.02,
                                           rtol=1e-4)


def test_views_show_the_same():
    """A hand's crop, reduced to the picture's resolution, is that part of the picture."""
    for seed in range(4):
        person = person_of(seed, size=96, occlusion=1.0)
        rng = np.random.default_rng(seed)
        start = rng.integers(0, 48, 2)
        whole = person.paint(np.eye(3), 96)[0]
        part = person.paint(crops.crop_homography(start + 24, 48, 192), 192)[0]  # 4 x as large
        x, y = start
        expected = np.asarray(Image.fromarray(whole[y:y + 48, x:x + 48]).reduce(2)).astype(float)
        ours = np.asarray(Image.fromarray(part).reduce(8)).astype(float)
        other = np.asarray(Image.fromarray(whole[::-1][y:y + 48, x:x + 48]).reduce(2))
        error = np.abs(ours - expected).mean()
        assert error < 7 and error < 0.2 * np.abs(other - expected).mean()


def test_nothing_is_known_outside_the_picture():
    """A view that reaches over the border is black there, and only there."""
    person = person_of(5)
    image, depth = person.paint(crops.crop_homography((0, 48), 64, 32), 32)
    assert (image[:, :16] == 0).all() and (depth[:, :16] == 0).all()
    assert (image[24:] == 0).all() and (depth[24:] == 0).all()
    assert image[:24, 16:].any(-1).mean() > 0.9


def test_occlusion_changes_the_shapes_alone():
    """People, clothes and cameras stay; hands that are covered are seen less, others as before."""
    clear, covered = people(occlusion=0.0), people(occlusion=1.0)
    before, after = [], []
    for key in range(8):
        one, two = clear[key], covered[key]
        for name in set(PEOPLE_CONTRACT) - {"image", "hand_images", "hand_visible"}:
            assert torch.equal(one[name], two[name]), name
        before += one["hand_visible"].tolist()
        after += two["hand_visible"].tolist()
    assert all(0 <= less <= more <= 1 for less, more in zip(after, before, strict=True))
    assert np.mean(before) > 0.55 and np.mean(after) < np.mean(before) - 0.25


def test_visible_share_of_a_hand():
    """Hidden by the person's own body: none of it. Out of the picture: none. Else what no shape
    covers.
    """
    person = person_of(3, size=96)
    person.occluders = []
    others = np.setdiff1d(np.arange(len(person.surface)), rendered_bodies.hand_vertices()[0])
    assert person.paint_hand(0, 64)[3] == 0
    person.surface[others] += (0, 0, 50)  # far behind the hand
    assert person.paint_hand(0, 64)[3] > 0.98
    center, side = crops.hand_square(person.keypoints_2d[crops.HAND_KEYPOINTS[0]])
    view = crops.crop_homography(center, side, 64)
    pixels = painting.project_surface(person.surface, view @ person.scene.K)
    hand = bm.rasterize(pixels, rendered_bodies.hand_faces()[0], (64, 64))[0] >= 0
    shares = []
    for seed in range(6):
        person.occluders = [rendered_bodies.Occluder(center + side / 8, side / 6, seed)]
        blank = Image.new("RGB", (64, 64))
        rendered_bodies.draw_occluder(blank, person.occluders[0], view, person.sources)
        shares.append(1 - np.asarray(blank).any(-1)[hand].mean())
        assert person.paint_hand(0, 64)[3] == pytest.approx(shares[-1], abs=0.02)
    assert min(shares) < 0.7
    person.keypoints_2d = person.keypoints_2d + (1000, 0)
    assert person.paint_hand(0, 64)[3] == 0


def test_a_larger_lens_size_is_a_sharper_picture():
    """Only the picture of the person changes, and its neighbouring pixels differ more."""
    blurred, sharp = (people(size=256, length=12, lens_size=size)[0] for size in (16, 256))
    for name in blurred:
        assert torch.equal(blurred[name], sharp[name]) == (name != "image"), name
    edges = [sample["image"].float().diff(dim=2).abs().mean() for sample in (blurred, sharp)]
    assert edges[1] > 1.2 * edges[0]


def spotted_person(x, y, size=64):
    """A sample whose pictures are one bright spot each, where all keypoints are."""
    spot, K = partial(blob, size, size), crops.body_camera(size)
    point = np.array([(x - size / 2) / K[0, 0], (y - size / 2) / K[0, 0], 1]) * 30
    zoom = crops.crop_homography((x + 3, y - 2), size / 2, size)
    u, v = crops.transform_points(zoom, np.array([x, y]))
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
def test_pictures_move_with_their_labels(seed, x, y):
    """After any augmentation, a spot in each picture is where its labels and camera put it."""
    recipe = Augmentation(center_jitter=0.03, scale=(0.8, 1.2), rotation=40, flip=0.5)
    person = spotted_person(x, y)
    body = person | {"pose": person["pose"][:24], "keypoints_3d": person["keypoints_3d"][:45],
                     "keypoints_2d": person["keypoints_2d"][:45]}
    body = crops.crop_body(body, 64, recipe, np.random.default_rng(seed))[0]
    labels = crops.labelled_person(person, recipe, 64, np.random.default_rng(seed))
    np.testing.assert_allclose(labels["hand_vertices"][:, 5], labels["hand_joints"][:, 5],
                               atol=1e-6)
    pictures = [body["image"].transpose(2, 0, 1), labels["image"], *labels["hand_images"]]
    expected = [body["keypoints_2d"][0], labels["keypoints_2d"][0],
                *labels["hand_keypoints_2d"][:, 0]]
    for picture, keypoint in zip(pictures, expected, strict=True):
        np.testing.assert_allclose(centroid(picture.transpose(1, 2, 0)), keypoint, atol=0.15)
    for moved in (body, labels):
        projected = moved["keypoints_3d"] @ moved["K"].T
        np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], moved["keypoints_2d"],
                                   atol=1e-6)
