"""FreiHAND, DexYCB and InterHand2.6M."""

import json

import numpy as np
import official_folders as tiny
import pytest
import torch
from hand_samples import assert_projects, digest

import bodymodels
from files import load_arrays
from sets.official import HandPairs
from sets.readers import DexYCB

pytestmark = pytest.mark.usefixtures("few_vertices")


@pytest.fixture
def frei(tmp_path):
    root = tmp_path / "FreiHAND"
    return root, tiny.write_freihand(root)


def test_freihand_backgrounds_share_one_annotation(frei):
    """Picture v * N + i shows background v of id i and has its annotation."""
    root, samples = frei
    dataset = tiny.freihand(root)
    assert len(dataset) == 8
    for index in range(8):
        source, expected = dataset.annotated(index), samples[index % tiny.UNIQUE]
        np.testing.assert_array_equal(source["joints"], expected["joints"])
        np.testing.assert_array_equal(source["vertices"], expected["vertices"])
        np.testing.assert_allclose(source["keypoints_2d"], expected["keypoints_2d"], atol=1e-3)
        shown = source["image"].astype(float).mean() - expected["image"].numpy().mean() / 2
        assert abs(shown - 30 * (index // tiny.UNIQUE)) < 2


@pytest.mark.parametrize("recipe", [None, "official_simplehand", "release_simplehand",
                                    "release_simplehand_test"])
def test_freihand_labels_are_exact(frei, recipe):
    """Labels fit each recipe's camera, keys decide everything, and about half are mirrored."""
    root, samples = frei
    dataset, again = (tiny.freihand(root, augmentation=recipe) for _ in range(2))
    mirrored = 0
    for key in range(40 if recipe == "official_simplehand" else 8):
        sample = dataset[key]
        assert digest(sample) == digest(again[key])
        assert_projects(sample)
        moved = samples[key % 8 % tiny.UNIQUE]["joints"] @ sample["camera_rotation"].T
        torch.testing.assert_close(moved, sample["joints"], atol=1e-6, rtol=0)
        mirrored += bool(torch.linalg.det(sample["camera_rotation"]) < 0)
    assert recipe != "official_simplehand" or 10 < mirrored < 30


@pytest.mark.parametrize("split,recipe", [("train", None), ("evaluation", None),
                                          ("train", "release_simplehand_test")])
def test_freihand_evaluation_crop_is_the_box_times_125(frei, split, recipe):
    """Without augmentation the keypoints' longer side spans 1/1.25 of the crop, in its middle."""
    sample = tiny.freihand(frei[0], split, augmentation=recipe)[0]
    assert sample["keypoints_valid"].all() and sample["mesh_valid"] == 1
    low, high = sample["keypoints_2d"].amin(0), sample["keypoints_2d"].amax(0)
    assert (high - low).max().item() == pytest.approx(32 / 1.25, rel=0.05)
    assert recipe or ((low + high) / 2 - 16).abs().max() < 2


def test_freihand_without_released_annotation(tmp_path):
    """Without it the crop is the whole picture, and keypoints and mesh are flagged as unknown."""
    tiny.write_freihand(tmp_path, annotated=False)
    sample = tiny.freihand(tmp_path, "evaluation")[0]
    assert not sample["keypoints_valid"].any() and sample["mesh_valid"] == 0
    assert not sample["keypoints_2d"].any() and not sample["joints"].any()
    torch.testing.assert_close(sample["crop"], torch.diag(torch.tensor([0.5, 0.5, 1.0])), atol=0.1,
                               rtol=0)


@pytest.mark.parametrize("name,content,message", [
    ("xyz", "[[[1, 2, 3]]]", r"training_xyz.json.*expected items of \(21, 3\)"),
    ("K", json.dumps([np.eye(3).tolist()]), r"keypoints_3d has shape \(2, 21, 4\), expected \(1"),
    ("verts", "[[[0.1, 0.2", "training_verts.json.*download it again"),
    ("verts", '{"a": 1}', "training_verts.json is not as FreiHAND"),
    *(("K", json.dumps([np.eye(3).tolist(), item]), "training_K.json is not as FreiHAND")
      for item in (None, "text", [[1, None, 3]], [[1e400, 0, 0]] * 3))])
def test_freihand_bad_annotation_is_one_clear_error(frei, name, content, message):
    root, _ = frei
    (root / f"training_{name}.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        tiny.freihand(root)


def test_freihands_poses_are_absolute_with_the_mean_hand(tmp_path, models):
    """mano is nested, mean-relative, and follows the picture's id through all backgrounds."""
    tiny.write_freihand(tmp_path)
    mano = tiny.RNG.normal(0, 0.3, (tiny.UNIQUE, 1, 61))
    tiny.write(tmp_path / "training_mano.json", mano.tolist())
    dataset = tiny.freihand(tmp_path, models=models)
    record = dataset.record(tiny.UNIQUE + 1)
    mean = load_arrays(models / "MANO_RIGHT.npz")["hands_mean"].ravel()
    np.testing.assert_allclose(record["pose"].ravel()[3:], mano[1, 0, 3:48] + mean, atol=1e-6)
    np.testing.assert_allclose([*record["pose"][0], *record["betas"]],
                               [*mano[1, 0, :3], *mano[1, 0, 48:58]], atol=1e-6)
    assert record["has_betas"] == 1 and len(HandPairs(dataset, 32)) == (len(dataset) + 1) // 2


def test_dexycb_s0_is_every_fifth_sequence(folders):
    """train: sequences 0 to 3 of all; val: the fifth of subjects 1 and 2; test: of the others."""
    root = folders("dexycb")
    counts = {split: len(tiny.dexycb(root, split)) for split in ("train", "val", "test")}
    assert counts == {"train": 2 * 4 * 3, "val": 3, "test": 3}
    assert {name[:19] for name in tiny.dexycb(root, "test").records()["image"]} == {
        b"20200820-subject-03"}


def test_wart_dexycb_frames_without_a_hand_are_minus_one(folders):
    """Frames without a hand are left out, but count in the official number of a sample."""
    dataset = tiny.dexycb(folders("dexycb"))
    assert (dataset.records()["keypoints_3d"][..., 2] > 0.3).all()
    assert dataset.records()["person"][:6].tolist() == [0, 2, 3, 4, 6, 7]
    assert dataset.record(1)["image"].endswith(f"{DexYCB.CAMERAS[1]}/color_000000.jpg".encode())


def test_wart_dexycb_poses_are_coefficients(folders, models):
    """45 coefficients of the principal components of the hand's own side, relative to its mean."""
    root = folders("dexycb")
    records = tiny.dexycb(root, models=models).records()
    for side, number in (("right", 0), ("left", 6)):
        record = records[number]
        assert record["side"] == (side == "right") and record["has_pose"] == 1
        arrays = load_arrays(models / f"MANO_{side.upper()}.npz")
        with np.load((root / record["image"].decode().replace("color", "labels")).with_suffix(
                ".npz")) as label:
            pose = label["pose_m"][0].astype(np.float64)
        fingers = arrays["hands_mean"] + pose[3:48] @ arrays["hands_components"]
        expected = tiny.rodrigues(np.concatenate([pose[:3], fingers]).reshape(16, 3))
        np.testing.assert_allclose(tiny.rodrigues(record["pose"]), expected, atol=1e-5)
        np.testing.assert_array_equal(record["transl"], pose[48:].astype(np.float32))
    assert not tiny.dexycb(root).records()["has_pose"].any()  # without MANO


def test_wart_dexycb_left_hands_are_mirrored_from_unmended_meshes(folders, models):
    """A left hand's mesh, mirrored back, is that of the official MANO_LEFT."""
    dataset = tiny.dexycb(folders("dexycb"), models=models)
    record, sample = dataset.records()[6], dataset[6]
    assert sample["side"] == 0 and torch.linalg.det(sample["camera_rotation"]) < 0
    left = bodymodels.load_model(models, family="mano", side="left")
    betas, pose, transl = (torch.tensor(record[name][None]) for name in ("betas", "pose", "transl"))
    expected = left(betas, pose, transl=transl).vertices[0]
    torch.testing.assert_close(sample["vertices"] @ sample["camera_rotation"], expected,
                               atol=1e-5, rtol=0)
    mended = bodymodels.load_model(models, family="mano", side="left", fix_left_shapedirs=True)
    assert (mended(betas, pose, transl=transl).vertices[0] - expected).abs().max() > 1e-3
    assert_projects(sample, atol=1e-2)


def test_dexycb_needs_all_sequences(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(DexYCB, "SEQUENCES", 100)
    with pytest.raises(ValueError, match="5 sequences where the splits count 100"):
        tiny.dexycb(folders("dexycb"), cache=tmp_path)


def test_dexycb_truth_is_regressed_like_predictions(folders, models):
    """A perfect mesh has no error, also of mirrored left hands; stored joints are other points."""
    dataset = tiny.dexycb(folders("dexycb"), models=models)
    regressor = bodymodels.load_model(models, family="mano", tips=DexYCB.TIPS).keypoint_regressor
    sides = set()
    for index in (0, 6):
        sample = dataset[index]
        sides.add(int(sample["side"]))
        torch.testing.assert_close(regressor @ sample["vertices"], sample["joints"],
                                   atol=1e-6, rtol=0)
        assert_projects(sample, atol=1e-2)
    stored = dataset.records()[0]["keypoints_3d"][:, :3]
    assert sides == {0, 1} and np.abs(stored - dataset.annotated(0)["joints"]).max() > 1e-3


def test_interhand_has_one_sample_a_hand(folders, models):
    """An interacting pair gives two samples; a missing fit is flagged."""
    records = tiny.interhand(folders("interhand"), models=models).records()
    assert records["side"].tolist() == [1, 1, 0, 1, 0]
    assert records["has_pose"].tolist() == [1, 1, 1, 0, 0] == records["has_betas"].tolist()
    assert len(np.unique(records["center"], axis=0)) == 5  # a box for each hand


def test_wart_interhand_camera_positions_millimetres_and_order(folders):
    """X = R (X_world - position) / 1000, from tip to base: joints come out in metres, hand21."""
    root = folders("interhand")
    world = json.loads((root / "annotations/train/InterHand2.6M_train_joint_3d.json").read_text())
    points = np.array(world["0"]["17018"]["world_coord"]) - tiny.CAMPOS
    points = points @ tiny.INTERHAND_R.T / 1000
    record = tiny.interhand(root).records()[2]  # the left hand: 21 to 41, its wrist last
    np.testing.assert_allclose(record["keypoints_3d"][0, :3], points[41], atol=1e-6)
    np.testing.assert_allclose(record["keypoints_3d"][4, :3], points[21], atol=1e-6)  # thumb's tip
    assert 0.3 < record["keypoints_3d"][:, 2].min() < 1.2


def test_wart_interhand_fits_turn_about_the_rest_root(folders, models):
    """The reader's mesh is the world's in the camera's frame; its translation is not R T + t."""
    root = folders("interhand")
    dataset = tiny.interhand(root, models=models)
    fits = json.loads((root / "annotations/train/InterHand2.6M_train_MANO_NeuralAnnot.json")
                      .read_text())["0"]["17018"]
    for index, side in ((1, "right"), (2, "left")):
        model = bodymodels.load_model(models, family="mano", side=side,
                                      fix_left_shapedirs=side == "left")
        mean = load_arrays(models / f"MANO_{side.upper()}.npz")["hands_mean"].reshape(1, 15, 3)
        pose, betas, transl = (torch.tensor([fits[side][name]])
                               for name in ("pose", "shape", "trans"))
        pose = pose.view(1, 16, 3)
        pose[:, 1:] += torch.from_numpy(mean)
        world = model(betas, pose, transl=transl).vertices[0].numpy()
        expected = (world - tiny.CAMPOS / 1000) @ tiny.INTERHAND_R.T
        found = dataset.posed(dataset.records()[index])[0].vertices[0].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        naive = tiny.INTERHAND_R @ (fits[side]["trans"] - tiny.CAMPOS / 1000)
        assert np.abs(naive - dataset.posed(dataset.records()[index])[2].numpy()).max() > 0.01


def test_wart_interhand_validity_is_stored_for_each_picture(fresh):
    """data.json decides, not joint_3d.json; a hand without a valid wrist is left out."""
    root = fresh("interhand")
    path = root / "annotations/train/InterHand2.6M_train_data.json"
    content = json.loads(path.read_text())
    valid = np.array(content["annotations"][0]["joint_valid"])
    valid[3] = 0  # one joint of the first right hand
    content["annotations"][0]["joint_valid"] = valid.tolist()
    valid = np.array(content["annotations"][1]["joint_valid"])
    valid[41] = 0  # the wrist of the first left hand
    content["annotations"][1]["joint_valid"] = valid.tolist()
    path.write_text(json.dumps(content))
    records = tiny.interhand(root).records()
    assert records["side"].tolist() == [1, 1, 1, 0]
    assert records["keypoints_3d"][0, :, 3].sum() == 20
