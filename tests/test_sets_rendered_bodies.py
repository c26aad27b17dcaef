"""Rendered bodies and people: exact labels, determinism, boxes, outfits, augmentation."""

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from body_samples import BODY, SMPL24, SMPL45
from hypothesis import given
from hypothesis import strategies as st
from people_samples import (
    CONTRACT,
    CROP,
    HAND,
    HAND_IDS,
    MIRROR,
    SIZE,
    SMPLX55,
    WHOLE,
    digest,
    people,
    person_of,
    posed,
    seeds,
)
from PIL import Image
from torch.utils.data import DataLoader

import bodymodels as bm
import data
from sets.augmentation import Augmentation
from sets.crops import (
    BODY_PARTS,
    HAND_KEYPOINTS,
    augment_person,
    body_camera,
    crop_homography,
    hand_square,
    inside,
    move_body,
    person_labels,
    transform_points,
)
from sets.motion import OTHER_NOISE, motion_frames
from sets.painting import project_surface
from sets.rendered import RenderedHands, hand_surface
from sets.rendered_bodies import (
    Occluder,
    RenderedBodies,
    View,
    augment_body,
    body_surface,
    draw_occluder,
    hand_faces,
    hand_vertices,
    paint_body,
    sample_body_scene,
    sample_occluders,
    sample_outfit,
)
from sets.samples import fingerprint

BODY_CONTRACT = {
    "image": ((3, 48, 48), torch.uint8), "K": ((3, 3), torch.float32),
    "pose": ((24, 3, 3), torch.float32), "pose_valid": ((), torch.float32),
    "betas": ((10,), torch.float32), "betas_valid": ((), torch.float32),
    "transl": ((3,), torch.float32), "keypoints_3d": ((45, 3), torch.float32),
    "keypoints_3d_valid": ((45,), torch.float32), "keypoints_2d": ((45, 2), torch.float32),
    "keypoints_valid": ((45,), torch.float32), "index": ((), torch.int64),
}
RECIPES = {name: data.AUGMENTATIONS[name] for name in ("official_hmr", "rendered_bodies")}


def bodies(split="train", size=48, length=30, **options):
    return RenderedBodies(split, size, length=length, progress=False, **options)


def test_body_samples_keep_the_contract():
    """These keys, shapes and types, all known; they collate."""
    sample = bodies()[35]
    assert {name: (tuple(value.shape), value.dtype)
            for name, value in sample.items()} == BODY_CONTRACT
    assert sample["index"] == 5 and sample["pose_valid"] == sample["betas_valid"] == 1
    assert sample["keypoints_3d_valid"].all()
    assert next(iter(DataLoader(bodies(), batch_size=3)))["image"].shape == (3, 3, 48, 48)


@pytest.mark.parametrize("recipe,atol", [
    (None, 1e-4), (replace(RECIPES["official_hmr"], flip=0.0), 1e-4),
    (replace(RECIPES["rendered_bodies"], flip=0.0), 1e-4),
    (replace(RECIPES["official_hmr"], flip=1.0), 8e-3)])  # shapes are symmetric to millimetres
def test_body_labels_are_exact(recipe, atol):
    """Pose, shape and translation give the 3D keypoints; K projects them to the 2D ones."""
    light = BODY.for_keypoints()
    for sample in map(bodies(augmentation=recipe).__getitem__, range(30)):
        output = light(sample["betas"][None], sample["pose"][None], transl=sample["transl"][None])
        torch.testing.assert_close(light.keypoints(output)[0], sample["keypoints_3d"], atol=atol,
                                   rtol=0)
        projected = bm.project(sample["keypoints_3d"].double(), sample["K"].double())
        torch.testing.assert_close(projected.float(), sample["keypoints_2d"], atol=0.01, rtol=1e-5)
        inside = ((sample["keypoints_2d"] >= 0) & (sample["keypoints_2d"] <= 48)).all(1)
        assert torch.equal(sample["keypoints_valid"], inside.float())
        assert (sample["keypoints_3d"][:, 2] > 1).all()


def test_convention_the_camera_is_the_papers():
    """5000 pixels of focal length for a crop of 256, principal point in the middle."""
    for size in (48, 256):
        K = bodies(size=size)[0]["K"]
        focal = 5000 / 256 * size
        assert K.tolist() == [[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]


def test_bodies_are_pure_functions_of_their_keys(tmp_path):
    """A sample is the same in a new instance, another order, a longer split, the cache."""
    sample = digest(bodies()[4])
    again = bodies()
    again[9]
    assert sample == digest(again[4]) == digest(bodies(length=31)[4])
    cached = bodies(cache=tmp_path)
    assert digest(cached[4]) == sample
    assert digest(pickle.loads(pickle.dumps(cached))[4]) == sample
    assert len(list(tmp_path.glob("rendered_bodies_train_48_*.npy"))) == 1
    others = [bodies("test"), bodies(seed=1), bodies(views=30.0),
              bodies(augmentation="official_hmr")]
    others.append(bodies(wide=1.0, cache=tmp_path))
    assert len({sample, *(digest(dataset[4]) for dataset in others)}) == 6
    moving = bodies(augmentation="rendered_bodies", cache=tmp_path)
    assert digest(moving[4]) == digest(bodies(augmentation="rendered_bodies")[4])
    assert digest(moving[4]) != digest(moving[34])  # the next epoch


def test_bodies_do_not_depend_on_threads():
    """One thread or two render the same bits."""
    threads, digests = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            digests.append([digest(bodies()[key]) for key in range(5)])
    finally:
        torch.set_num_threads(threads)
    assert digests[0] == digests[1]


def test_poses_of_a_split_come_from_its_clips():
    """Up to noise and mirroring, a test picture's spine is that of a frame of a test clip."""
    spine = [SMPL24.index(name) for name in ("spine1", "spine2", "spine3")]
    frames = motion_frames("test")[:, spine]
    for sample in map(bodies("test").__getitem__, range(12)):
        angles = bm.matrix_to_axis_angle(sample["pose"][spine].double()).numpy()
        assert np.abs(frames - angles).max((1, 2)).min() < 4.5 * OTHER_NOISE


def test_pictures_show_the_body():
    """Where the surface projects to, and hardly anywhere else, the picture is painted."""
    faces = body_surface().faces
    for seed in range(12):
        scene = sample_body_scene(np.random.default_rng(seed), "train", 96, 180.0, 180.0)
        image = np.full((96, 96, 3), -1, np.float32)
        paint_body(image, scene, np.random.default_rng(seed))
        painted = image[..., 0] >= 0
        pixels = bm.project(torch.from_numpy(scene.surface), torch.from_numpy(scene.K).float())
        pixels = np.concatenate([pixels.numpy(), scene.surface[:, 2:]], 1)
        silhouette = bm.rasterize(pixels, faces, (96, 96))[0] >= 0
        assert painted.mean() > 0.02
        assert (painted & silhouette).sum() > 0.98 * silhouette.sum()  # clothes hide nothing
        assert painted.sum() < 1.5 * silhouette.sum() + 40  # and are thin
        assert image.std() > 5


def test_boxes_hold_the_body_or_a_part_of_it():
    """Most crops hold all keypoints in the part the encoder sees; some are truncated, not many."""
    whole = seen = 0
    for seed in range(200):
        scene = sample_body_scene(np.random.default_rng(seed), "train", 128, 180.0, 180.0)
        projected = scene.keypoints @ scene.K.T
        pixels = projected[:, :2] / projected[:, 2:]
        whole += inside(pixels, 128, 128).all()
        seen += inside(pixels - (16, 0), 96, 128).all()
        assert inside(pixels, 128, 128).sum() >= 4
    assert 140 < whole < 180 and whole - 35 < seen <= whole


def test_parts_of_the_body():
    """Each part contains the keypoints that its name says."""
    parts = {name: {joint for joint in SMPL45 if re.search(pattern, joint)}
             for name, (pattern, _) in BODY_PARTS.items()}
    assert {"nose", "left_knee"} < parts["above the knees"]
    assert not {"left_ankle", "right_heel", "left_big_toe", "left_foot"} & parts["above the knees"]
    assert parts["above the hips"] == parts["above the knees"] - {"left_knee", "right_knee"}
    assert "left_heel" not in parts["head and shoulders"] and "left_ear" in parts[
        "head and shoulders"]
    assert sum(chance for _, chance in BODY_PARTS.values()) == pytest.approx(1)


@given(seeds)
def test_outfits_differ_between_parts(seed):
    """Colours lie in 0..1, cloth is at most centimetres thick, and a body has several colours."""
    outfit = sample_outfit(np.random.default_rng(seed))
    assert outfit.albedo.shape == (6890, 3) and outfit.thickness.shape == (6890,)
    assert (outfit.albedo >= 0).all() and outfit.albedo.max() < 1.5
    assert outfit.thickness.min() >= 0 and outfit.thickness.max() <= 0.02
    hand, chest = BODY.surface_vertex_ids[13], int(np.abs(
        body_surface().template - (0, 0.1, 0.12)).sum(1).argmin())
    assert outfit.thickness[hand] == 0 and (outfit.albedo[hand] != outfit.albedo[chest]).any()


def spotted_sample(x, y, size=96):
    """A sample whose picture is one bright spot where all its keypoints are."""
    rows, columns = np.indices((size, size)) + 0.5
    spot = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    K = body_camera(size)
    point = np.array([(x - size / 2) / K[0, 0], (y - size / 2) / K[0, 0], 1]) * 30
    return {"image": np.repeat(spot[..., None], 3, 2).round().astype(np.uint8), "K": K,
            "pose": np.tile(np.eye(3), (24, 1, 1)), "betas": np.zeros(10),
            "transl": point - (0.01, -0.2, 0.03), "keypoints_3d": np.tile(point, (45, 1)),
            "keypoints_2d": np.tile([x, y], (45, 1)).astype(np.float64)}


@given(seeds, st.floats(38, 58), st.floats(38, 58))
def test_pictures_move_with_their_labels(seed, x, y):
    """After any augmentation, a spot is where the moved keypoints are and where K projects it."""
    recipe = Augmentation(center_jitter=0.03, scale=(0.8, 1.2), rotation=40, flip=0.5)
    moved = augment_body(spotted_sample(x, y), recipe, np.random.default_rng(seed))
    weight = moved["image"][0].astype(np.float64)
    rows, columns = np.indices(weight.shape) + 0.5
    centroid = [(weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()]
    np.testing.assert_allclose(centroid, moved["keypoints_2d"][0], atol=0.1)
    projected = moved["keypoints_3d"] @ moved["K"].T
    np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], moved["keypoints_2d"],
                               atol=1e-6)


@given(seeds, st.floats(-3, 3), st.booleans())
def test_moving_a_body_can_be_undone(seed, roll, mirror):
    """Turning and mirroring back restores every label."""
    record = bodies().render(seed % 1000)
    sample = {name: record[name].astype(np.float64) for name in record.dtype.names}
    there = crop_homography((24, 24), 48, 48, roll=roll, mirror=mirror)
    moved = move_body(sample, there, roll, mirror)
    back = roll if mirror else -roll
    again = move_body(moved, crop_homography((24, 24), 48, 48, roll=back, mirror=mirror),
                           back, mirror)
    for name in ("pose", "keypoints_3d", "keypoints_2d", "K", "transl"):
        np.testing.assert_allclose(again[name], sample[name], atol=2e-6, err_msg=name)
    assert np.isclose(np.linalg.det(moved["pose"]), 1, atol=1e-5).all()
    assert moved["K"][0, 0] > 0 and moved["K"][1, 1] > 0


def test_mirrored_bodies_exchange_left_and_right():
    """After mirroring, the left hand's keypoint is the mirrored one of the right hand."""
    record = bodies().render(3)
    sample = {name: record[name] for name in record.dtype.names}
    homography = crop_homography((24, 24), 48, 48, mirror=True)
    moved = move_body(sample, homography, 0.0, True)
    left, right = SMPL45.index("left_wrist"), SMPL45.index("right_wrist")
    x, y = sample["keypoints_2d"][right]
    np.testing.assert_allclose(moved["keypoints_2d"][left], [48 - x, y], atol=1e-4)
    np.testing.assert_allclose(moved["keypoints_3d"][left],
                               sample["keypoints_3d"][right] * (-1, 1, 1), atol=1e-5)


def test_official_recipe_draws_as_hmr_does():
    """Scale 1 +- 0.3 and shift +- 0.02 cut at one deviation, 60 % turned by 30 degrees, cut at 60.
    """
    recipe = data.AUGMENTATIONS["official_hmr"]
    draws = [recipe.draw_motion(np.random.default_rng(seed)) for seed in range(3000)]
    shift, scale, roll = (np.array(values) for values in zip(*draws, strict=True))
    assert np.abs(shift).max() == 0.02 and (np.abs(shift) == 0.02).mean() == pytest.approx(
        0.317, abs=0.03)
    assert scale.min() == pytest.approx(0.7) and scale.max() == pytest.approx(1.3)
    assert scale.mean() == pytest.approx(1, abs=0.02)
    degrees = np.rad2deg(roll)
    assert (degrees != 0).mean() == pytest.approx(0.6, abs=0.03)
    assert np.abs(degrees).max() == pytest.approx(60)
    assert degrees[degrees != 0].std() == pytest.approx(29, abs=1.5)
    assert (recipe.flip, recipe.extreme, recipe.gain) == (0.5, 0.1, (0.8, 1.2))


def test_extreme_crops_show_a_part():
    """With probability 1 each crop is a part's box: fewer keypoints stay inside than before."""
    recipe = Augmentation(extreme=1.0)
    assert recipe.moves
    plain, parts = bodies(), bodies(augmentation=recipe)
    kept = [(plain[key]["keypoints_valid"].sum(), parts[key]["keypoints_valid"].sum())
            for key in range(30)]
    assert all(after >= 3 for _, after in kept)
    assert np.mean([after < before for before, after in kept]) > 0.6


@pytest.mark.parametrize("options,message", [
    ({"views": -1}, "views in 0..180"), ({"length": 0}, "positive length"),
    ({"size": 8}, "expected size >= 16, got 8"), ({"split": "val"}, "unknown split 'val'"),
    ({"augmentation": "hmr"}, "unknown augmentation 'hmr': expected one of .*official_hmr"),
])
def test_rendered_bodies_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        bodies(**options)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Twelve people rendered once, for the tests that only read them."""
    folder = tmp_path_factory.mktemp("people")
    return lambda **options: people(length=12, cache=folder, **options)


def test_samples_of_people_keep_the_contract(packed):
    """These keys, shapes and types; they collate; a hand's crop is as large as asked."""
    sample = packed()[17]
    assert {name: (tuple(value.shape), value.dtype) for name, value in sample.items()} == CONTRACT
    assert sample["index"] == 5
    batch = next(iter(DataLoader(packed(), batch_size=3)))
    assert batch["hand_images"].shape == (3, 2, 3, CROP, CROP)
    assert people(hand_size=None)[0]["hand_images"].shape == (2, 3, SIZE, SIZE)


MOVING = Augmentation(center_jitter=0.05, scale=(0.8, 1.2), rotation=40.0, flip=0.0)
MIRRORED = Augmentation(scale=(0.8, 1.2), rotation=40.0, flip=1.0)


@pytest.mark.parametrize("recipe,atol", [(None, 1e-4), (MOVING, 1e-4),
                                         (MIRRORED, 8e-3)])  # shapes are symmetric to millimetres
def test_labels_of_people_are_exact(packed, recipe, atol):
    """Pose, shape, face and translation give the keypoints; the cameras project them."""
    for sample in packed(augmentation=recipe):
        keypoints = WHOLE.keypoints(posed(sample))[0]
        torch.testing.assert_close(keypoints, sample["keypoints_3d"], atol=atol, rtol=0)
        projected = bm.project(sample["keypoints_3d"].double(), sample["K"].double())
        torch.testing.assert_close(projected.float(), sample["keypoints_2d"], atol=0.01, rtol=1e-5)
        for hand, side in enumerate(("right", "left")):
            joints = sample["keypoints_3d"][bm.joint_indices("smplx76", f"{side}_hand21")]
            joints = bm.mirror_points(joints) if side == "left" else joints
            torch.testing.assert_close(sample["hand_joints"][hand], joints)
            projected = bm.project(joints.double(), sample["hand_K"][hand].double())
            torch.testing.assert_close(projected.float(), sample["hand_keypoints_2d"][hand],
                                       atol=0.01, rtol=1e-5)
        assert (sample["hand_K"][:, [0, 1], [0, 1]] > 0).all()


@pytest.mark.parametrize("recipe,atol", [(None, 1e-4), (MOVING, 1e-4), (MIRRORED, 0.02)])
def test_hand_pose_is_manos(packed, recipe, atol):
    """hand_pose turns the free right hand into the body's hand, or the mirrored left hand.

    To 6 mm: the hands' shapes differ. Relative to the wrist, in the camera's frame. The stored
    vertices are the body's.
    """
    for sample in packed(augmentation=recipe):
        body = posed(sample)
        for hand, side in enumerate(("right", "left")):
            vertices = body.vertices[0][HAND_IDS[side]]
            wrist = body.joints[0, SMPLX55.index(f"{side}_wrist")]
            truth = vertices - wrist
            stored = sample["hand_vertices"][hand] - sample["hand_joints"][hand, 0]
            truth = bm.mirror_points(truth) if side == "left" else truth
            torch.testing.assert_close(stored, truth, atol=atol, rtol=0)
            output = HAND(torch.zeros(1, 10), sample["hand_pose"][hand][None])
            ours = output.vertices[0] - output.joints[0, 0]
            ours = ours * (truth.norm() / ours.norm())  # people differ in size
            assert (ours - truth).norm(dim=1).mean() < 6e-3


def test_convention_left_hands_are_mirrored(packed):
    """The left hand and arm are stored as M R M; the arm's product is the hand's orientation."""
    for sample in packed(augmentation=MOVING):
        pose, arms, hands = (sample[name] for name in ("body_pose", "arm_pose", "hand_pose"))
        right, left = (pose[bm.joint_indices("smplx55", f"{side}_arm08")]
                       for side in ("right", "left"))
        torch.testing.assert_close(arms, torch.stack([right, MIRROR @ left @ MIRROR]))
        torch.testing.assert_close(hands[0, 1:], pose[40:])
        torch.testing.assert_close(hands[1, 1:], MIRROR @ pose[25:40] @ MIRROR)
        torch.testing.assert_close(bm.chain_rotation(arms), hands[:, 0], atol=1e-5, rtol=0)
        wrist = posed(sample).transforms[0, SMPLX55.index("left_wrist"), :3, :3]
        torch.testing.assert_close(MIRROR @ wrist @ MIRROR, hands[1, 0], atol=1e-5, rtol=0)


def test_poses_of_people_are_rotations_with_moving_fingers(packed):
    """Fingers and wrists differ between hands and people; eyeballs look straight ahead."""
    poses = torch.stack([sample["body_pose"] for sample in packed()])
    identity = torch.eye(3)
    torch.testing.assert_close(poses @ poses.mT, identity.expand_as(poses), atol=1e-5, rtol=0)
    assert torch.linalg.det(poses).min() > 0.99
    eyes = [SMPLX55.index(f"{side}_eyeball") for side in ("left", "right")]
    assert (poses[:, eyes] == identity).all()
    hands = torch.stack([sample["hand_pose"][:, 1:] for sample in packed()]).flatten(0, 1)
    apart = torch.cdist(hands.flatten(1), hands.flatten(1)) + 9 * torch.eye(len(hands))
    assert apart.min() > 0.1
    jaws = poses[:, SMPLX55.index("jaw")]
    angles = bm.matrix_to_axis_angle(jaws)
    assert (angles[:, 0] >= 0).all() and (angles[:, 0] > 0.02).any()
    torch.testing.assert_close(angles[:, 1:], torch.zeros(12, 2), atol=1e-6, rtol=0)


def test_jaw_opens_downwards():
    """The sampled jaw's sign lowers the chin: the mouth opens."""
    pose = torch.zeros(1, 55, 3)
    pose[0, SMPLX55.index("jaw"), 0] = 0.3
    shut, wide = (WHOLE(torch.zeros(1, 10), p).vertices[0] for p in (torch.zeros(1, 55, 3), pose))
    moved = (wide - shut).norm(dim=1) > 0.005
    assert moved.any() and (wide - shut)[moved][:, 1].mean() < -0.005


def test_boxes_and_validity_of_hands(packed):
    """Boxes are tight, x and y first; a hand counts if most of its keypoints are in the picture."""
    for sample in [*packed(), *packed(augmentation=MOVING)]:
        for hand, side in enumerate(("right", "left")):
            order = bm.joint_indices("smplx76", f"{side}_hand21")
            points = sample["keypoints_2d"][order]
            low, high = points.min(0).values, points.max(0).values
            torch.testing.assert_close(sample["hand_boxes"][hand], torch.cat([low, high - low]))
            inside = ((points >= 0) & (points <= SIZE)).all(1).float()
            assert torch.equal(inside, sample["keypoints_valid"][order])
            assert sample["hand_valid"][hand] == float(inside.mean() > 0.5)


def test_convention_hand_crops_are_hamers(packed):
    """A crop is twice the tight box, widened to the three quarters that the encoder sees."""
    for sample in packed():
        for hand in range(2):
            x, y, width, height = sample["hand_boxes"][hand].tolist()
            side = 2 * max(height, width / 0.75)
            points = sample["keypoints_2d"][HAND_KEYPOINTS[hand]]
            expected = (points - torch.tensor([x + width / 2, y + height / 2])) * CROP / side
            expected = expected * torch.tensor([1 - 2 * hand, 1]) + CROP / 2  # the left mirrored
            torch.testing.assert_close(sample["hand_keypoints_2d"][hand], expected, atol=0.02,
                                       rtol=1e-4)


def test_people_are_pure_functions_of_their_keys(tmp_path):
    """A sample is the same from a new instance, from a longer split and from the cache."""
    sample = digest(people()[2])
    assert sample == digest(people(length=31)[2])
    cached = people(length=3, cache=tmp_path)
    assert digest(cached[2]) == digest(pickle.loads(pickle.dumps(cached))[2]) == sample
    assert [path.name for path in tmp_path.glob("*.npy")] == [
        f"rendered_people_train_48_{fingerprint(self_settings(cached))}.npy"]
    others = [people("test"), people(seed=1), people(views=30.0), people(lean=30.0),
              people(hand_size=40), people(augmentation="official_hmr")]
    assert len({sample, *(digest(dataset[2]) for dataset in others)}) == 7
    moving = people(length=3, augmentation="rendered_bodies", cache=tmp_path)
    assert digest(moving[2]) == digest(people(augmentation="rendered_bodies")[2])
    assert digest(moving[2]) != digest(moving[5])  # the next epoch
    assert len(list(tmp_path.glob("*.npy"))) == 1


def self_settings(dataset):
    """What the name of a packed file has to depend on."""
    return {"split": "train", "size": SIZE, "length": len(dataset), "seed": 0, "views": 180.0,
            "lean": 180.0, "hand_size": CROP, "occlusion": 0.5, "version": dataset.version}


def test_people_do_not_depend_on_threads():
    """One thread or two render the same bits."""
    threads, digests = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            digests.append([digest(people()[key]) for key in range(2)])
    finally:
        torch.set_num_threads(threads)
    assert digests[0] == digests[1]


def test_other_sets_kept_their_files(tmp_path):
    """Packed files of hands and bodies keep their names, so that old caches are found."""
    RenderedHands("train", 32, length=3, cache=tmp_path, progress=False)
    RenderedBodies("test", 32, length=3, cache=tmp_path, progress=False, version=1)
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == [
        "rendered_bodies_test_32_80c1d066a43cbc96.npy",
        "rendered_hands_train_32_137d848af882f088.npy"]


def test_pictures_show_the_person():
    """Where the surface is, the depth is finite and the colours differ from the background.
    """
    for seed in range(4):
        person = person_of(seed)
        person.occluders = []
        image, depth = person.paint(View(np.eye(3), 64))
        person.surface = person.surface - (100, 0, 0)
        empty, nothing = person.paint(View(np.eye(3), 64))
        assert 0.02 < np.isfinite(depth).mean() < 0.9 and np.isinf(nothing).all()
        changed = np.abs(image.astype(int) - empty).max(-1) > 8
        assert changed[np.isfinite(depth)].mean() > 0.7
        assert changed[np.isinf(depth)].mean() < 0.3  # the edges are blurred


def test_views_show_the_same():
    """A hand's crop, reduced to the picture's resolution, is that part of the picture."""
    for seed in range(4):
        person = person_of(seed, size=96, occlusion=1.0)
        rng = np.random.default_rng(seed)
        start = rng.integers(0, 48, 2)
        near = View(crop_homography(start + 24, 48, 192), 192)  # four times as large
        (whole, _), (part, _) = person.paint(View(np.eye(3), 96)), person.paint(near)
        x, y = start
        expected = np.asarray(Image.fromarray(whole[y:y + 48, x:x + 48]).reduce(2)).astype(float)
        ours = np.asarray(Image.fromarray(part).reduce(8)).astype(float)
        other = np.asarray(Image.fromarray(whole[::-1][y:y + 48, x:x + 48]).reduce(2))
        error = np.abs(ours - expected).mean()
        assert error < 7 and error < 0.2 * np.abs(other - expected).mean()


def test_nothing_is_known_outside_the_picture():
    """A view that reaches over the border is black there, and only there."""
    person = person_of(5)
    image, depth = person.paint(View(crop_homography((0, 48), 64, 32), 32))
    assert (image[:, :16] == 0).all() and (depth[:, :16] == 0).all()
    assert (image[24:] == 0).all() and (depth[24:] == 0).all()
    assert image[:24, 16:].any(-1).mean() > 0.9


def test_left_hands_are_painted_mirrored():
    """The left hand's crop is the mirror image of what its view shows; K follows."""
    person = person_of(2)
    image, _, K, _ = person.paint_hand(1, 32)
    center, side = hand_square(person.keypoints_2d[HAND_KEYPOINTS[1]])
    plain, _ = person.paint(View(crop_homography(center, side, 32), 32))
    assert np.array_equal(image, plain[:, ::-1])
    joints = person.scene.keypoints[HAND_KEYPOINTS[1]] * (-1, 1, 1)
    pixels = joints @ K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    there = transform_points(crop_homography(center, side, 32),
                                  person.keypoints_2d[HAND_KEYPOINTS[1]])
    np.testing.assert_allclose(pixels, (32, 0) + there * (-1, 1), atol=0.01)


def test_occluders_hide_hands_at_the_rate_asked_for():
    """A share `occlusion` of the hands is covered; a higher rate covers the same hands and more."""
    hands = np.random.default_rng(0).uniform(20, 40, (2, 21, 2))
    counts, fewer = [], []
    for occlusion in (0.0, 0.3, 1.0):
        shapes = [sample_occluders(np.random.default_rng(seed), 64, hands, occlusion)
                  for seed in range(1000)]
        counts.append(np.array([len(part) for part in shapes]))
        if occlusion > 0:
            assert all({shape.seed for shape in few} <= {shape.seed for shape in many}
                       for few, many in zip(fewer, shapes, strict=True))
        fewer = shapes
    assert 0.3 < (counts[0] > 0).mean() < 0.4 and counts[0].max() == 2
    assert (counts[1] - counts[0]).mean() == pytest.approx(0.6, abs=0.1)
    assert (counts[2] - counts[0] == 2).all()


def test_occlusion_changes_the_shapes_alone():
    """People, clothes and cameras stay; hands that are covered are seen less, others as before."""
    clear, covered = people(occlusion=0.0), people(occlusion=1.0)
    before, after = [], []
    for key in range(8):
        one, two = clear[key], covered[key]
        for name in set(CONTRACT) - {"image", "hand_images", "hand_visible"}:
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
    others = np.setdiff1d(np.arange(len(person.surface)), hand_vertices()[0])
    assert person.paint_hand(0, 64)[3] == 0
    person.surface[others] += (0, 0, 50)  # far behind the hand
    assert person.paint_hand(0, 64)[3] > 0.98
    center, side = hand_square(person.keypoints_2d[HAND_KEYPOINTS[0]])
    view = View(crop_homography(center, side, 64), 64)
    pixels = project_surface(person.surface, view.homography @ person.scene.K)
    hand = bm.rasterize(pixels, hand_faces()[0], (64, 64))[0] >= 0
    shares = []
    for seed in range(6):
        person.occluders = [Occluder(center + side / 8, side / 6, seed)]
        blank = Image.new("RGB", (64, 64))
        draw_occluder(blank, person.occluders[0], view, person.sources)
        shares.append(1 - np.asarray(blank).any(-1)[hand].mean())
        assert person.paint_hand(0, 64)[3] == pytest.approx(shares[-1], abs=0.02)
    assert min(shares) < 0.7
    person.keypoints_2d = person.keypoints_2d + (1000, 0)
    assert person.paint_hand(0, 64)[3] == 0


def test_occluders_are_the_same_in_every_view():
    """A shape covers the same part of the picture however large it is drawn."""
    for seed in range(20):
        occluder = Occluder(np.array([30.0, 26]), 12.0, seed)
        masks = []
        for scale in (4, 8):
            picture = Image.new("RGB", (64 * scale, 64 * scale))
            view = View(np.diag([scale, scale, 1.0]), 64 * scale)
            draw_occluder(picture, occluder, view)
            masks.append(np.asarray(picture.reduce(scale)).any(-1))
        union = (masks[0] | masks[1]).sum()
        assert union > 20 and (masks[0] & masks[1]).sum() > 0.85 * union


@pytest.mark.parametrize("options,message", [
    ({"occlusion": 1.5}, "occlusion rate in 0..1, got 1.5"), ({"length": 0}, "positive length"),
    ({"hand_size": 8}, "hand_size >= 16"), ({"views": 200}, "views in 0..180"),
    ({"lean": 20}, "lean in 30..180"),
    ({"split": "val"}, "unknown split 'val'"), ({"size": 8}, "expected size >= 16, got 8"),
])
def test_rendered_people_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        people(**options)


@given(seeds)
def test_outfits_of_whole_bodies(seed):
    """Colours lie in 0..1, hands stay bare, and palms are not darker than backs."""
    outfit = sample_outfit(np.random.default_rng(seed), "wholebody")
    assert outfit.albedo.shape == (10475, 3) and outfit.thickness.shape == (10475,)
    assert outfit.albedo.min() > -0.05 and outfit.albedo.max() < 1.5
    assert 0 <= outfit.thickness.min() and outfit.thickness.max() <= 0.02
    middle = hand_surface().palmar[:, 0]
    for vertices in hand_vertices():
        fingers = np.abs(body_surface("wholebody").template[vertices, 0]) > 0.74
        assert (outfit.thickness[vertices[fingers]] == 0).all()
        palms, backs = (outfit.albedo[vertices[fingers & side]].mean()
                        for side in (middle > 0.9, middle < 0.1))
        assert palms >= backs - 0.01


def test_wide_poses_go_beyond_the_clips(packed):
    """wide=0 changes nothing; with wide=1 the poses turn further from those of the clips."""
    plain, wide = people(length=12), people(length=12, wide=1.0)
    assert digest(people(length=12, wide=0.0)[0]) == digest(plain[0])
    rest = torch.eye(3)
    turns = [torch.stack([(data[i]["body_pose"][1:22] - rest).square().sum() for i in range(6)])
             for data in (plain, wide)]
    assert turns[1].mean() > turns[0].mean()
    with pytest.raises(ValueError, match="wide in 0..1"):
        people(length=12, wide=2.0)


def test_a_larger_lens_size_is_a_sharper_picture(packed):
    """Only the picture of the person changes, and its neighbouring pixels differ more."""
    blurred, sharp = (people(size=256, length=12, lens_size=size)[0] for size in (16, 256))
    for name in blurred:
        assert torch.equal(blurred[name], sharp[name]) == (name != "image"), name
    edges = [sample["image"].float().diff(dim=2).abs().mean() for sample in (blurred, sharp)]
    assert edges[1] > 1.2 * edges[0]


def test_soft_hands_keep_their_labels():
    """hand_blur blurs about half of the crops of hands and nothing else."""
    plain = people(length=12, augmentation=Augmentation())
    soft = people(length=12, augmentation=Augmentation(hand_blur=8.0))
    changed = []
    for i in range(12):
        one, other = plain[i], soft[i]
        assert all(torch.equal(one[name], other[name]) for name in one if name != "hand_images")
        for before, after in zip(one["hand_images"], other["hand_images"], strict=True):
            changed.append(not torch.equal(before, after))
            assert after.float().std() <= before.float().std() + 0.1
    assert 4 <= sum(changed) <= 20


def test_hands_jitter_further_than_bodies():
    """hand_jitter multiplies the shift of a hand's crop and leaves the person's alone."""
    near, far = (people(length=12, augmentation=Augmentation(center_jitter=0.1, hand_jitter=factor))
                 for factor in (1.0, 3.0))
    for i in range(4):
        one, other = near[i], far[i]
        assert torch.equal(one["image"], other["image"])
        middle = CROP / 2 - one["hand_K"][:, :2, 2], CROP / 2 - other["hand_K"][:, :2, 2]
        assert not torch.allclose(middle[0], middle[1])


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
