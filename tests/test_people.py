"""People: whole bodies with crops of their hands, exact labels, occluders, and their protocols."""

import hashlib
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

import bodymodels as bm
import data
import metrics

SMPLX55, SMPLX76 = bm.JOINT_SETS["smplx55"], bm.JOINT_SETS["smplx76"]
WHOLE, HAND = bm.load_model("wholebody"), bm.load_model("hand_right")
LIGHT = WHOLE.for_keypoints()
HAND_IDS = bm.hand_vertex_ids("wholebody")
MIRROR = torch.diag(torch.tensor([-1.0, 1, 1]))  # M
SIZE, CROP = 48, 32
seeds = st.integers(0, 2**31 - 1)

CONTRACT = {
    "image": ((3, SIZE, SIZE), torch.uint8), "K": ((3, 3), torch.float32),
    "body_pose": ((55, 3, 3), torch.float32), "betas": ((10,), torch.float32),
    "expression": ((10,), torch.float32), "transl": ((3,), torch.float32),
    "keypoints_3d": ((76, 3), torch.float32), "keypoints_2d": ((76, 2), torch.float32),
    "keypoints_valid": ((76,), torch.float32), "hand_images": ((2, 3, CROP, CROP), torch.uint8),
    "hand_K": ((2, 3, 3), torch.float32), "hand_boxes": ((2, 4), torch.float32),
    "hand_pose": ((2, 16, 3, 3), torch.float32), "hand_joints": ((2, 21, 3), torch.float32),
    "hand_keypoints_2d": ((2, 21, 2), torch.float32), "hand_valid": ((2,), torch.float32),
    "hand_vertices": ((2, 778, 3), torch.float32), "hand_visible": ((2,), torch.float32),
    "arm_pose": ((2, 8, 3, 3), torch.float32), "index": ((), torch.int64),
}


def people(split="train", **options):
    settings = {"size": SIZE, "hand_size": CROP, "length": 30, "progress": False} | options
    return data.RenderedPeople(split, **settings)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Twelve people rendered once, for the tests that only read them."""
    folder = tmp_path_factory.mktemp("people")
    return lambda **options: people(length=12, cache=folder, **options)


def digest(sample):
    joined = b"".join(sample[name].numpy().tobytes() for name in sorted(sample))
    return hashlib.sha256(joined).hexdigest()


def posed(sample):
    """The whole body of a sample, in the camera's frame."""
    body, pose, face, transl = (sample[name][None] for name in
                                ("betas", "body_pose", "expression", "transl"))
    return WHOLE(body, pose, face, transl=transl)


# ------------------------------------------------------------------------- names and rotations


def test_convention_joints_of_the_arms_and_knuckles():
    """SMPL-X's indices of each arm, pelvis to wrist, and of the MCP joints, left hand first."""
    assert bm.joint_indices("smplx55", "left_arm08") == [0, 3, 6, 9, 13, 16, 18, 20]
    assert bm.joint_indices("smplx55", "right_arm08") == [0, 3, 6, 9, 14, 17, 19, 21]
    assert bm.joint_indices("left_hand21", bm.JOINT_SETS["mcp08"][:4]) == [5, 9, 13, 17]
    assert bm.joint_indices("smplx55", "mcp08") == [25, 28, 34, 31, 40, 43, 49, 46]
    for side in ("left", "right"):
        chain = bm.joint_indices("smplx55", f"{side}_arm08")
        assert [WHOLE.parents[joint] for joint in chain] == [-1, *chain[:-1]]


@given(seeds)
def test_chain_of_an_arm_is_its_hands_orientation(seed):
    """The product of the arm's rotations is the wrist's in forward kinematics, whatever they are.
    """
    generator = torch.Generator().manual_seed(seed)
    pose = bm.axis_angle_to_matrix(torch.randn(2, 55, 3, generator=generator))
    transforms = LIGHT(torch.zeros(1, 10), pose).transforms
    for side in ("left", "right"):
        chain = bm.chain_rotation(pose[:, bm.joint_indices("smplx55", f"{side}_arm08")])
        wrist = transforms[:, SMPLX55.index(f"{side}_wrist"), :3, :3]
        torch.testing.assert_close(chain, wrist, atol=1e-5, rtol=0)


def test_chain_applies_the_root_last():
    """A quarter about y at the root, then one about x: the child's x axis stays where y put it."""
    quarter = bm.axis_angle_to_matrix(torch.tensor([[0, np.pi / 2, 0], [np.pi / 2, 0, 0]]))
    chain = bm.chain_rotation(quarter)
    torch.testing.assert_close(chain @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, -1]),
                               atol=1e-6, rtol=0)
    torch.testing.assert_close(chain @ torch.tensor([0, 1.0, 0]), torch.tensor([1.0, 0, 0]),
                               atol=1e-6, rtol=0)


def test_hands_inside_the_body():
    """The vertices of each hand are its own, with MANO's topology, on the right side."""
    right, left = (WHOLE.v_template[HAND_IDS[side]] for side in ("right", "left"))
    assert right.shape == left.shape == (778, 3)
    assert (left[:, 0] > 0.6).all() and (right[:, 0] < -0.6).all()
    assert len(set(HAND_IDS["left"].tolist()) | set(HAND_IDS["right"].tolist())) == 2 * 778
    torch.testing.assert_close(bm.mirror_points(left), right, atol=1e-3, rtol=0)
    edges = (HAND.v_template[HAND.faces[:, 0]] - HAND.v_template[HAND.faces[:, 1]]).norm(dim=1)
    inside = (right[HAND.faces[:, 0]] - right[HAND.faces[:, 1]]).norm(dim=1)
    assert (edges - inside).abs().mean() < 1e-3


def test_hand_vertices_of_official_files(tmp_path):
    """MANO_SMPLX_vertex_ids.pkl is read as it is; other files are explained."""
    path = tmp_path / "MANO_SMPLX_vertex_ids.pkl"
    path.write_bytes(pickle.dumps({"left_hand": np.arange(3), "right_hand": np.arange(4, 7)}))
    ids = bm.hand_vertex_ids(path)
    assert ids["left"].tolist() == [0, 1, 2] and ids["right"].tolist() == [4, 5, 6]
    with pytest.raises(ValueError, match="hand_right tells no hands"):
        bm.hand_vertex_ids("hand_right")


# ------------------------------------------------------------------------------------ samples


def test_samples_of_people_keep_the_contract(packed):
    """These keys, shapes and types; they collate; a hand's crop is as large as asked."""
    sample = packed()[17]
    assert {name: (tuple(value.shape), value.dtype) for name, value in sample.items()} == CONTRACT
    assert sample["index"] == 5
    batch = next(iter(DataLoader(packed(), batch_size=3)))
    assert batch["hand_images"].shape == (3, 2, 3, CROP, CROP)
    assert people(hand_size=None)[0]["hand_images"].shape == (2, 3, SIZE, SIZE)


MOVING = data.Augmentation(center_jitter=0.05, scale=(0.8, 1.2), rotation=40.0, flip=0.0)
MIRRORED = data.Augmentation(scale=(0.8, 1.2), rotation=40.0, flip=1.0)


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
    """It turns the free right hand into the body's hand, or the left one's mirror image.

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
    """Of the left hand and arm, what is stored is M R M; the arm's product is the orientation."""
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
    """Twice the tight box, in the part three quarters wide that the encoder sees, centred."""
    for sample in packed():
        for hand in range(2):
            x, y, width, height = sample["hand_boxes"][hand].tolist()
            side = 2 * max(height, width / 0.75)
            points = sample["keypoints_2d"][data.HAND_KEYPOINTS[hand]]
            expected = (points - torch.tensor([x + width / 2, y + height / 2])) * CROP / side
            expected = expected * torch.tensor([1 - 2 * hand, 1]) + CROP / 2  # the left mirrored
            torch.testing.assert_close(sample["hand_keypoints_2d"][hand], expected, atol=0.02,
                                       rtol=1e-4)


# ----------------------------------------------------------------------------------- pictures


def test_people_are_pure_functions_of_their_keys(tmp_path):
    """Anew, from a longer split or from the cache: the same sample."""
    sample = digest(people()[2])
    assert sample == digest(people(length=31)[2])
    cached = people(length=3, cache=tmp_path)
    assert digest(cached[2]) == digest(pickle.loads(pickle.dumps(cached))[2]) == sample
    assert [path.name for path in tmp_path.glob("*.npy")] == [
        f"rendered_people_train_48_{data.fingerprint(self_settings(cached))}.npy"]
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
            "lean": 180.0, "hand_size": CROP, "occlusion": 0.5,
            "version": data.PEOPLE_RENDER_VERSION}


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
    """Hands and bodies are found in the packed files that were written before there were people."""
    data.RenderedHands("train", 32, length=3, cache=tmp_path, progress=False)
    data.RenderedBodies("test", 32, length=3, cache=tmp_path, progress=False)
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == [
        "rendered_bodies_test_32_80c1d066a43cbc96.npy",
        "rendered_hands_train_32_137d848af882f088.npy"]


def person_of(seed, size=64, occlusion=0.0):
    rng = np.random.default_rng(seed)
    return data.Person(rng, data.sample_person(rng, "train", size, 180.0), size, occlusion)


def test_pictures_show_the_person():
    """Whatever the surface covers is nearer than nothing, and painted in other colours than behind.
    """
    for seed in range(4):
        person = person_of(seed)
        person.occluders = []
        image, depth = person.paint(data.View(np.eye(3), 64))
        person.surface = person.surface - (100, 0, 0)
        empty, nothing = person.paint(data.View(np.eye(3), 64))
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
        near = data.View(data.crop_homography(start + 24, 48, 192), 192)  # four times as large
        (whole, _), (part, _) = person.paint(data.View(np.eye(3), 96)), person.paint(near)
        x, y = start
        expected = np.asarray(Image.fromarray(whole[y:y + 48, x:x + 48]).reduce(2)).astype(float)
        ours = np.asarray(Image.fromarray(part).reduce(8)).astype(float)
        other = np.asarray(Image.fromarray(whole[::-1][y:y + 48, x:x + 48]).reduce(2))
        error = np.abs(ours - expected).mean()
        assert error < 7 and error < 0.2 * np.abs(other - expected).mean()


def test_nothing_is_known_outside_the_picture():
    """A view that reaches over the border is black there, and only there."""
    person = person_of(5)
    image, depth = person.paint(data.View(data.crop_homography((0, 48), 64, 32), 32))
    assert (image[:, :16] == 0).all() and (depth[:, :16] == 0).all()
    assert (image[24:] == 0).all() and (depth[24:] == 0).all()
    assert image[:24, 16:].any(-1).mean() > 0.9


def test_left_hands_are_painted_mirrored():
    """The left hand's crop is the mirror image of what its view shows; K follows."""
    person = person_of(2)
    image, _, K, _ = person.paint_hand(1, 32)
    center, side = data.hand_square(person.keypoints_2d[data.HAND_KEYPOINTS[1]])
    plain, _ = person.paint(data.View(data.crop_homography(center, side, 32), 32))
    assert np.array_equal(image, plain[:, ::-1])
    joints = person.scene.keypoints[data.HAND_KEYPOINTS[1]] * (-1, 1, 1)
    pixels = joints @ K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    there = data.transform_points(data.crop_homography(center, side, 32),
                                  person.keypoints_2d[data.HAND_KEYPOINTS[1]])
    np.testing.assert_allclose(pixels, (32, 0) + there * (-1, 1), atol=0.01)


# --------------------------------------------------------------------------------- occlusion


def test_occluders_hide_hands_at_the_rate_asked_for():
    """Of many hands a share `occlusion` is covered, the same ones and more at a higher rate."""
    hands = np.random.default_rng(0).uniform(20, 40, (2, 21, 2))
    counts, fewer = [], []
    for occlusion in (0.0, 0.3, 1.0):
        shapes = [data.sample_occluders(np.random.default_rng(seed), 64, hands, occlusion)
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
    others = np.setdiff1d(np.arange(len(person.surface)), data.hand_vertices()[0])
    assert person.paint_hand(0, 64)[3] == 0
    person.surface[others] += (0, 0, 50)  # far behind the hand
    assert person.paint_hand(0, 64)[3] > 0.98
    center, side = data.hand_square(person.keypoints_2d[data.HAND_KEYPOINTS[0]])
    view = data.View(data.crop_homography(center, side, 64), 64)
    pixels = data.project_surface(person.surface, view.homography @ person.scene.K)
    hand = bm.rasterize(pixels, data.hand_faces()[0], (64, 64))[0] >= 0
    shares = []
    for seed in range(6):
        person.occluders = [data.Occluder(center + side / 8, side / 6, seed)]
        blank = Image.new("RGB", (64, 64))
        data.draw_occluder(blank, person.occluders[0], view)
        shares.append(1 - np.asarray(blank).any(-1)[hand].mean())
        assert person.paint_hand(0, 64)[3] == pytest.approx(shares[-1], abs=0.02)
    assert min(shares) < 0.7
    person.keypoints_2d = person.keypoints_2d + (1000, 0)
    assert person.paint_hand(0, 64)[3] == 0


def test_occluders_are_the_same_in_every_view():
    """A shape covers the same part of the picture however large it is drawn."""
    for seed in range(20):
        occluder = data.Occluder(np.array([30.0, 26]), 12.0, seed)
        masks = []
        for scale in (4, 8):
            picture = Image.new("RGB", (64 * scale, 64 * scale))
            view = data.View(np.diag([scale, scale, 1.0]), 64 * scale)
            data.draw_occluder(picture, occluder, view)
            masks.append(np.asarray(picture.reduce(scale)).any(-1))
        union = (masks[0] | masks[1]).sum()
        assert union > 20 and (masks[0] & masks[1]).sum() > 0.85 * union


# ------------------------------------------------------------------------------- augmentation


def spotted_person(x, y, size=64):
    """A sample whose pictures are one bright spot each, where all keypoints are."""
    rows, columns = np.indices((size, size)) + 0.5

    def spot(u, v):
        bright = 250 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 18)
        return np.repeat(bright[..., None], 3, 2).round().astype(np.uint8)

    K = data.body_camera(size)
    point = np.array([(x - size / 2) / K[0, 0], (y - size / 2) / K[0, 0], 1]) * 30
    zoom = data.crop_homography((x + 3, y - 2), size / 2, size)
    u, v = data.transform_points(zoom, np.array([x, y]))
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
    """Whatever a recipe draws, each picture's spot is where its labels and its camera put it."""
    recipe = data.Augmentation(center_jitter=0.03, scale=(0.8, 1.2), rotation=40, flip=0.5)
    moved = data.augment_person(spotted_person(x, y), recipe, np.random.default_rng(seed))
    pictures = [moved["image"], *moved["hand_images"]]
    labels = data.person_labels(moved, 64)
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
    """In a mirror the right hand's crop, pose and arm are what was stored of the left."""
    mirrored = packed(augmentation=data.Augmentation(flip=1.0))
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
    """Colours are colours; hands stay bare; palms are not darker than backs."""
    outfit = data.sample_outfit(np.random.default_rng(seed), "wholebody")
    assert outfit.albedo.shape == (10475, 3) and outfit.thickness.shape == (10475,)
    assert outfit.albedo.min() > -0.05 and outfit.albedo.max() < 1.5
    assert 0 <= outfit.thickness.min() and outfit.thickness.max() <= 0.02
    middle = data.hand_surface().palmar[:, 0]
    for vertices in data.hand_vertices():
        fingers = np.abs(data.body_surface("wholebody").template[vertices, 0]) > 0.74
        assert (outfit.thickness[vertices[fingers]] == 0).all()
        palms, backs = (outfit.albedo[vertices[fingers & side]].mean()
                        for side in (middle > 0.9, middle < 0.1))
        assert palms >= backs - 0.01


# ---------------------------------------------------------------------------------- protocols


def whole_bodies(seed, batch=3):
    generator = torch.Generator().manual_seed(seed)
    pose = 0.4 * torch.randn(batch, 55, 3, generator=generator)
    output = WHOLE(torch.randn(batch, 10, generator=generator), pose)
    return {"joints": WHOLE.keypoints(output), "vertices": output.vertices}


ROWS = ["PA-MPJPE", "PA-PVE", "MPJPE", "PVE"]


def test_people_are_judged_by_body_and_hands():
    """Nothing for a shift; nothing after alignment for a similarity transform of the whole."""
    target = whole_bodies(0)
    shifted = {name: points + torch.tensor([0.3, -1, 5]) for name, points in target.items()}
    report = metrics.evaluate("rendered_people", shifted, target)
    assert list(report) == [*ROWS, *(f"hands {name}" for name in ROWS)]
    assert max(report.values()) < 1e-2
    turn = bm.axis_angle_to_matrix(torch.tensor([0.3, -0.8, 0.5]))
    moved = {name: 1.3 * points @ turn for name, points in target.items()}
    report = metrics.evaluate("rendered_people", moved, target)
    aligned = [name for name in report if "PA-" in name]
    assert max(report[name] for name in aligned) < 1e-2
    assert min(report[name] for name in set(report) - set(aligned)) > 10


def test_people_against_a_loop():
    """PVE from the pelvis, 14 joints; hands from their wrist, left and right averaged."""
    prediction, target = whole_bodies(1), whole_bodies(2)
    report = metrics.evaluate("rendered_people", prediction, target)
    (joints, meshes), (true_joints, true_meshes) = (
        (points["joints"].double().numpy(), points["vertices"].double().numpy())
        for points in (prediction, target))
    smpl14 = [1, 2, 4, 5, 7, 8, 12, 15, 16, 17, 18, 19, 20, 21]  # SMPLer-X's
    whole, body, hands = [], [], []
    for sample in range(3):
        pelvis, true_pelvis = joints[sample, 0], true_joints[sample, 0]
        whole.append(np.linalg.norm(meshes[sample] - pelvis - true_meshes[sample] + true_pelvis,
                                    axis=1).mean())
        body.append(np.linalg.norm(
            (joints[sample] - pelvis - true_joints[sample] + true_pelvis)[smpl14], axis=1).mean())
        for wrist, side in ((20, "left"), (21, "right")):
            ids = HAND_IDS[side].numpy()
            shift = joints[sample, wrist] - true_joints[sample, wrist]
            hands.append(np.linalg.norm(
                meshes[sample, ids] - shift - true_meshes[sample, ids], axis=1).mean())
    assert report["PVE"] == pytest.approx(1000 * np.mean(whole))
    assert report["MPJPE"] == pytest.approx(1000 * np.mean(body))
    assert report["hands PVE"] == pytest.approx(1000 * np.mean(hands))


def test_hands_are_aligned_one_by_one():
    """A left hand that is turned about its wrist costs PVE, but nothing after its alignment."""
    target = whole_bodies(3, batch=1)
    turned = {name: points.clone() for name, points in target.items()}
    wrist = target["joints"][:, 20:21]
    turn = bm.axis_angle_to_matrix(torch.tensor([0.0, 0.7, 0]))
    order = bm.joint_indices("smplx76", "left_hand21")
    for name, places in (("joints", order), ("vertices", HAND_IDS["left"])):
        turned[name][:, places] = (target[name][:, places] - wrist) @ turn + wrist
    report = metrics.evaluate("rendered_people", turned, target)
    assert report["hands PVE"] > 5 and report["hands MPJPE"] > 5 and report["MPJPE"] < 1e-3
    assert report["hands PA-PVE"] < 1e-2 and report["hands PA-MPJPE"] < 1e-2
    hands = [metrics.both_hands(points) for points in (turned, target)]
    direct = metrics.evaluate("rendered_people_hands", *hands)
    assert {f"hands {name}": value for name, value in direct.items()} == {
        name: value for name, value in report.items() if name.startswith("hands")}


def test_other_meshes_are_no_whole_bodies():
    points = {"joints": np.zeros((1, 76, 3)), "vertices": np.zeros((1, 6890, 3))}
    with pytest.raises(ValueError, match="those of a whole body"):
        metrics.evaluate("rendered_people", points, points)


# ------------------------------------------------------------------------------- command line


def test_command_line_draws_people(tmp_path, capsys):
    """It describes a sample and draws bodies with their hands beside them."""
    out = tmp_path / "samples.png"
    data.main(["people", "--size", "32", "--occlusion", "1", "--draw", "3", "--out", str(out)])
    picture = data.read_image(out)
    assert picture.shape == (2 * 96, 2 * 3 * 96, 3) and picture[:96].std() > 5
    assert re.search(r"samples\n  index .*hand_images +\(2, 3, 32, 32\)", capsys.readouterr().out,
                     re.DOTALL)
    with pytest.raises(SystemExit, match="occlusion rate"):
        data.main(["people", "--occlusion", "2"])
