"""COCO, AI Challenger and MPII: which people count, and how keypoints are stored."""

import numpy as np
import pytest
from official_folders import aic, coco, mpii, write

from sets.images import read_image

pytestmark = pytest.mark.usefixtures("few_vertices")


def test_coco_keeps_people_with_enough_joints(folders):
    records = coco(folders("coco")).records()
    assert records["person"].tolist() == [10, 13]
    assert coco(folders("coco"), min_keypoints=4).records()["person"].tolist() == [10, 11, 13]
    assert records["keypoints_2d"][0, :, 2].tolist() == [0] + 16 * [1]  # covered counts as seen
    assert records["center"][0].tolist() == [17, 24] and records["box"][0].tolist() == [30, 40]


def test_wart_neural_annot_of_coco_is_by_annotation_and_has_its_own_camera(fresh):
    """Only people in the file have a pose and a K, which is the fit's own."""
    root = fresh("coco")
    write(root / "fits.json", {"13": {
        "smpl_param": {"pose": [0.1] * 72, "shape": [0.2] * 10, "trans": [0, 0, 3]},
        "cam_param": {"focal": [70.0, 71], "princpt": [32.0, 24]}}})
    records = coco(root, fits="fits.json").records()
    assert records["has_pose"].tolist() == [0, 1] and records["has_transl"].tolist() == [0, 1]
    assert not records["K"][0].any() and records["K"][1, 1, 1] == 71
    with pytest.raises(FileNotFoundError, match="no .*other.json"):
        coco(root, fits="other.json")


def test_wart_coco_pictures_are_not_turned(folders):
    """Keypoints belong to the pixels as stored, so that EXIF must not turn the picture."""
    dataset = coco(folders("coco"))
    assert dataset.picture(dataset.records()[0]).shape == (48, 64, 3)
    path = folders("coco") / dataset.annotation(0)["image"]
    assert read_image(path).shape == (64, 48, 3)


def test_wart_aic_three_means_absent(folders):
    records = aic(folders("aic")).records()
    assert records["keypoints_2d"][..., 2].sum(1).tolist() == [14, 4]
    assert records["center"][0].tolist() == [17, 24]
    assert len(aic(folders("aic"), min_keypoints=5)) == 1


def test_wart_mpii_points_have_ids_and_count_from_one(folders):
    """A point's id is its joint; a single person is no list; test pictures have no labels."""
    root = folders("mpii")
    records = mpii(root).records()
    assert [name.decode() for name in records["image"]] == ["images/one.jpg", "images/two.jpg"]
    np.testing.assert_array_equal(records["keypoints_2d"][0, :, 0], 1 + np.arange(16))
    np.testing.assert_array_equal(records["center"][0], (19, 20))
    np.testing.assert_allclose(records["box"][0], (40, 40), rtol=1e-6)
    assert len(mpii(root, min_keypoints=10)) == 3
