"""3DPW in its official files and in Moon's."""

import json

import numpy as np
import pytest
import torch
from official_folders import CAMERA_3DPW, K_3DPW, REST_ROOT, TRANSL_3DPW, threedpw, threedpw_moon

import bodymodels
from files import safe_unpickle
from sets.augmentation import Augmentation
from sets.crops import transform_points
from sets.official import OWN, moved_translation, to_pixels

pytestmark = pytest.mark.usefixtures("few_vertices")


def test_wart_3dpw_counts_valid_people_and_numbers_pictures_by_row(folders):
    """campose_valid and keypoints decide which frames count; pictures are numbered by row."""
    dataset = threedpw(folders("3dpw"))
    rows = [(record["person"], record["image"][-9:-4].decode()) for record in dataset.records()]
    assert rows == [(0, "00000"), (0, "00002"), (1, "00000"), (1, "00001")]
    assert len(threedpw(folders("3dpw"), "train")) == 4
    assert dataset.records()["gender"].tolist() == [2, 2, 1, 1]


def test_wart_3dpw_keypoints_are_transposed(folders):
    """poses2d are (3, 18): its 15th column, the right eye, is the joint after the nose."""
    root = folders("3dpw")
    content = safe_unpickle(root / "sequenceFiles/test/courtyard_arguing_00.pkl")
    record = threedpw(root).records()[0]
    names = bodymodels.JOINT_SETS["smpl45"]
    for name, column in (("nose", 0), ("right_eye", 14), ("left_ankle", 13)):
        found = record["keypoints_2d"][names.index(name)]
        np.testing.assert_allclose(found, content["poses2d"][0][0][:, column], rtol=1e-6)
    assert record["keypoints_2d"][names.index("left_ear"), 2] == 0  # column 17
    known = content["poses2d"][0][0][:2, :17]
    np.testing.assert_allclose(record["box"], np.ptp(known, 1), rtol=1e-5)
    np.testing.assert_allclose(record["center"], (known.min(1) + known.max(1)) / 2, rtol=1e-5)


def test_golden_3dpw_camera_leads_from_the_world(folders):
    """A real frame's pelvis projects to its detected hips; with the inverse it does not."""
    record = threedpw(folders("3dpw")).records()[0]
    motion = record["world_to_camera"].astype(np.float64)
    pelvis = moved_translation(record["transl"], motion, REST_ROOT) + REST_ROOT
    np.testing.assert_allclose(to_pixels(pelvis[None], K_3DPW)[0], (271.1, 958.1), atol=0.1)
    R, t = motion[:, :3].T, -motion[:, :3].T @ motion[:, 3]
    wrong = to_pixels((R @ (TRANSL_3DPW + REST_ROOT) + t)[None], K_3DPW)[0]
    assert wrong[0] > 1080  # outside of the picture


def test_wart_3dpw_bodies_turn_with_the_camera(folders, models):
    """Mesh and joints of the gendered body are those of the world in the camera's frame."""
    root = folders("3dpw")
    content = safe_unpickle(root / "sequenceFiles/test/courtyard_arguing_00.pkl")
    dataset = threedpw(root, models=models)
    body = bodymodels.load_model(models, family="smpl", gender="male")
    pose, betas, transl = (torch.tensor(np.asarray(values)[None], dtype=torch.float32)
                           for values in (content["poses"][1][1].reshape(24, 3),
                                          content["betas"][1][:10], content["trans"][1][1]))
    world = body(betas, pose, transl=transl).vertices[0].numpy()
    expected = world @ CAMERA_3DPW[:3, :3].T + CAMERA_3DPW[:3, 3]
    found = dataset.posed(dataset.records()[3])[0].vertices[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    joints = content["jointPositions"][1][1].reshape(24, 3) @ CAMERA_3DPW[:3, :3].T
    np.testing.assert_allclose(dataset.records()[3]["keypoints_3d"][:24, :3],
                               joints + CAMERA_3DPW[:3, 3], atol=1e-5)


def test_wart_3dpw_of_moon_is_in_the_cameras_frame_and_neutral(folders):
    """Nothing is turned, and the gender does not choose the model."""
    root = folders("3dpw-moon")
    fit = json.loads((root / "3DPW_test.json").read_text())["annotations"][1]["smpl_param"]
    record = threedpw_moon(root).records()[1]
    np.testing.assert_allclose(record["pose"].ravel(), fit["pose"], rtol=1e-6)
    np.testing.assert_array_equal(record["world_to_camera"], np.eye(3, 4))
    assert record["gender"] == 0 and record["center"].tolist() == [15, 40]


def test_detections_are_the_files_own_and_truth_is_the_models(folders, models):
    """With detections=OWN they are poses2d alone, without a joint of the true body; keypoints_2d
    are the true body alone, without a detected joint."""
    root = folders("3dpw")
    content = safe_unpickle(root / "sequenceFiles/test/courtyard_arguing_00.pkl")
    dataset = threedpw(root, models=models, detections=OWN)
    sample, record = dataset[0], dataset.records()[0]
    confidence = sample["detected_confidence"]
    names = bodymodels.JOINT_SETS["smpl45"]
    detector = bodymodels.JOINT_SETS["openpose18"]
    assert {names[place] for place in torch.nonzero(confidence)[:, 0]} <= set(detector)
    homography, _, _ = dataset.crop(record, None, (54, 96), None)
    for name in ("left_wrist", "right_knee", "nose"):
        column = content["poses2d"][0][0][:, detector.index(name)]
        place = names.index(name)
        np.testing.assert_allclose(sample["detected_2d"][place],
                                   transform_points(homography, column[:2]), atol=1e-3)
        assert confidence[place] == pytest.approx(column[2])
    projected = bodymodels.project(sample["keypoints_3d"], sample["K"])
    torch.testing.assert_close(sample["keypoints_2d"], projected, atol=0.05, rtol=0)


def test_a_mirrored_detection_exchanges_left_and_right(folders):
    plain = threedpw(folders("3dpw"), detections=OWN)[0]
    mirrored = threedpw(folders("3dpw"), detections=OWN, augmentation=Augmentation(flip=1.0))[0]
    order = bodymodels.mirror_indices("smpl45")
    torch.testing.assert_close(mirrored["detected_confidence"], plain["detected_confidence"][order])
    found = mirrored["detected_confidence"] > 0
    torch.testing.assert_close(mirrored["detected_2d"][found][:, 0],
                               32 - plain["detected_2d"][order][found][:, 0], atol=1e-3, rtol=0)


def test_moons_3dpw_has_no_detections(folders, tmp_path):
    with pytest.raises(ValueError, match="ThreeDPWMoon has no detector's keypoints: give the fol"):
        threedpw_moon(folders("3dpw-moon"), detections=OWN)
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere: expected OpenPose's files"):
        threedpw_moon(folders("3dpw-moon"), detections=tmp_path / "nowhere")
