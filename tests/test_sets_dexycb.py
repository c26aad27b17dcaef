"""DexYCB: splits, frames without a hand, poses, sides, joints."""

import numpy as np
import pytest
import torch
from official_folders import dexycb, rodrigues

import bodymodels
from files import load_arrays
from sets.hand_sets import DexYCB

pytestmark = pytest.mark.usefixtures("few_vertices")


def test_dexycb_s0_is_every_fifth_sequence(folders):
    """train: sequences 0 to 3 of all; val: the fifth of subjects 1 and 2; test: of the others."""
    root = folders("dexycb")
    counts = {split: len(dexycb(root, split)) for split in ("train", "val", "test")}
    assert counts == {"train": 2 * 4 * 3, "val": 3, "test": 3}
    assert {dexycb(root, "test").annotation(index)["image"][:19] for index in range(3)} == {
        "20200820-subject-03"}
    assert len(dexycb(root, "train", setup="s1")) == 30 and len(dexycb(root, setup="s3")) == 30


def test_wart_dexycb_frames_without_a_hand_are_minus_one(folders):
    """Frames without a hand are left out, but count in the official number of a sample."""
    dataset = dexycb(folders("dexycb"))
    assert (dataset.records()["keypoints_3d"][..., 2] > 0.3).all()
    assert dataset.records()["person"][:6].tolist() == [0, 2, 3, 4, 6, 7]
    assert dataset.annotation(1)["image"].endswith(f"{DexYCB.CAMERAS[1]}/color_000000.jpg")


def test_wart_dexycb_poses_are_coefficients(folders, models):
    """45 coefficients of the principal components of the hand's own side, relative to its mean."""
    root = folders("dexycb")
    records = dexycb(root, models=models).records()
    for side, number in (("right", 0), ("left", 6)):
        record = records[number]
        assert record["side"] == (side == "right") and record["has_pose"] == 1
        arrays = load_arrays(models / f"MANO_{side.upper()}.npz")
        with np.load((root / record["image"].decode().replace("color", "labels")).with_suffix(
                ".npz")) as label:
            pose = label["pose_m"][0].astype(np.float64)
        fingers = arrays["hands_mean"] + pose[3:48] @ arrays["hands_components"]
        expected = rodrigues(np.concatenate([pose[:3], fingers]).reshape(16, 3))
        np.testing.assert_allclose(rodrigues(record["pose"]), expected, atol=1e-5)
        np.testing.assert_array_equal(record["transl"], pose[48:].astype(np.float32))
    assert not dexycb(root).records()["has_pose"].any()  # without MANO


def test_wart_dexycb_left_hands_are_mirrored_from_unmended_meshes(folders, models):
    """A left hand's mesh, mirrored back, is that of the official MANO_LEFT."""
    dataset = dexycb(folders("dexycb"), models=models)
    record, sample = dataset.records()[6], dataset[6]
    assert sample["side"] == 0 and torch.linalg.det(sample["camera_rotation"]) < 0
    left = bodymodels.load_model(models, family="mano", side="left")
    betas, pose, transl = (torch.tensor(record[name][None]) for name in ("betas", "pose", "transl"))
    expected = left(betas, pose, transl=transl).vertices[0]
    torch.testing.assert_close(sample["vertices"] @ sample["camera_rotation"], expected,
                               atol=1e-5, rtol=0)
    mended = bodymodels.load_model(models, family="mano", side="left", fix_left_shapedirs=True)
    assert (mended(betas, pose, transl=transl).vertices[0] - expected).abs().max() > 1e-3
    torch.testing.assert_close(bodymodels.project(sample["joints"], sample["K"]),
                               sample["keypoints_2d"], atol=1e-2, rtol=0)


def test_wart_dexycb_fingertips_are_manopths():
    """The fingertips are other vertices than FreiHAND's and smplx's, for all fingers."""
    tips = [bodymodels.TIP_VERTEX_IDS[name] for name in (DexYCB.TIPS, "freihand", "smplx")]
    assert all(tips[0][finger] not in (tips[1][finger], tips[2][finger]) for finger in range(5))


def test_dexycb_refuses(folders, tmp_path):
    root = folders("dexycb")
    with pytest.raises(ValueError, match="5 sequences where the splits count 100"):
        DexYCB(root, progress=False, cache=tmp_path)
    with pytest.raises(ValueError, match="setup='s9', expected one of s0, s1"):
        dexycb(root, setup="s9")
    with pytest.raises(ValueError, match="has no option colour"):
        dexycb(root, colour=1)


def test_dexycb_truth_is_regressed_like_predictions(folders, models):
    """A perfect mesh has no error, also of mirrored left hands; given joints are other points."""
    dataset = dexycb(folders("dexycb"), models=models)
    regressor = bodymodels.load_model(models, family="mano", tips=DexYCB.TIPS).keypoint_regressor
    sides = set()
    for index in (0, 6):
        sample = dataset[index]
        sides.add(int(sample["side"]))
        torch.testing.assert_close(regressor @ sample["vertices"], sample["joints"],
                                   atol=1e-6, rtol=0)
        torch.testing.assert_close(bodymodels.project(sample["joints"], sample["K"]),
                                   sample["keypoints_2d"], atol=1e-2, rtol=0)
    given = dexycb(folders("dexycb"), models=models, joints="given")
    np.testing.assert_array_equal(given.annotated(0).joints,
                                  given.records()[0]["keypoints_3d"][:, :3])
    assert sides == {0, 1} and np.abs(given.annotated(0).joints
                                      - dataset.annotated(0).joints).max() > 1e-3
