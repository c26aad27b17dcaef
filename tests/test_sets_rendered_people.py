"""Rendered people: exact labels, hand crops, views, occluders."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
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
from sets.augmentation import Augmentation
from sets.crops import HAND_KEYPOINTS, crop_homography, hand_square, transform_points
from sets.painting import project_surface
from sets.rendered import RenderedHands, hand_surface
from sets.rendered_bodies import (
    Occluder,
    RenderedBodies,
    View,
    body_surface,
    draw_occluder,
    hand_faces,
    hand_vertices,
    sample_occluders,
    sample_outfit,
)
from sets.samples import fingerprint


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
