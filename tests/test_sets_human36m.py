"""Human3.6M in SPIN's files and in Moon's."""

import json

import numpy as np
import pytest
import torch
from official_folders import (
    H36M_R,
    H36M_T,
    h36m_moon,
    h36m_smplx,
    human36m,
    rodrigues,
    write,
)

import bodymodels
from files import load_arrays
from sets.crops import transform_points
from sets.official import OfficialPeople, relabelled

pytestmark = pytest.mark.usefixtures("few_vertices")


def test_wart_human36m_protocol_2_is_the_frontal_camera(folders):
    root = folders("h36m")
    assert len(human36m(root)) == 3
    assert [name.decode()[-20:-11] for name in human36m(root, "p2").records()["image"]] == [
        ".60457274"[:9]]


def test_wart_spin_scale_is_a_side_over_200(folders):
    """The crop shows the square of 200 * scale pixels around center."""
    dataset = human36m(folders("h36m"), joint_set="j24")
    corners = transform_points(dataset.crop(
        dataset.records()[0], np.zeros((24, 3)), (50, 50), None)[0], np.array([[5.0, 5], [45, 45]]))
    np.testing.assert_allclose(corners, [[4, 4], [28, 28]], atol=1e-4)  # of 32, an eighth unseen
    record = dataset.records()[0]
    assert record["keypoints_3d"].shape == (49, 4) and not record["keypoints_3d"][:25].any()
    np.testing.assert_array_equal(dataset[0]["keypoints_3d_valid"], np.ones(24))


def test_human36m_of_moon(folders, models):
    """Every fifth frame; p2 is camera 4; joints are metres before the camera, right leg first."""
    root = folders("h36m-moon")
    assert [len(h36m_moon(root, split)) for split in ("p1", "p2")] == [6, 4]
    dataset = h36m_moon(root, models=models)
    world = json.loads((root / "annotations/Human36M_subject9_joint_3d.json").read_text())
    points = np.array(world["2"]["1"]["0"])
    record = dataset.records()[0]
    np.testing.assert_allclose(record["keypoints_3d"][:, :3],
                               (points @ H36M_R.T + H36M_T) / 1000, atol=1e-5)
    assert bodymodels.JOINT_SETS[dataset.JOINTS][1] == "right_hip"
    assert dataset.records()["has_pose"].tolist() == [1, 1, 0, 1, 1, 0]
    fit = json.loads((root / "annotations/Human36M_subject9_SMPL_NeuralAnnot.json").read_text())
    np.testing.assert_allclose(
        rodrigues(record["pose"][0]),
        H36M_R @ rodrigues(fit["2"]["1"]["0"]["pose"][:3]), atol=1e-5)


def test_wart_neural_annots_fingers_are_relative_to_the_mean_hand(folders, models):
    """The root is turned into the camera's frame and the mean hand is added to the fingers; frames
    without a fit are not people."""
    root = folders("h36m-smplx")
    dataset = h36m_smplx(root, models=models)
    fit = json.loads((root / "annotations/Human36M_subject9_SMPLX_NeuralAnnot.json").read_text())
    fit, pose = fit["2"]["1"]["0"], dataset.records()["pose"][0]
    np.testing.assert_allclose(rodrigues(pose[0]), H36M_R @ rodrigues(fit["root_pose"]), atol=1e-5)
    np.testing.assert_allclose(pose[1:22].ravel(), fit["body_pose"], rtol=1e-5)
    mean = load_arrays(models / "SMPLX_NEUTRAL.npz")["hands_meanr"]
    np.testing.assert_allclose(pose[40:].ravel(), fit["rhand_pose"] + mean.ravel(), atol=1e-6)
    assert not h36m_smplx(root).records()["has_hands"].any()  # without models
    people = OfficialPeople(dataset, 32)
    assert people.kept.tolist() == [0, 1, 3, 4]  # of six, every third has no fit
    flags = {name: float(people[0][f"{name}_valid"]) for name in ("body_pose", "betas",
                                                                  "expression")}
    assert flags == {"body_pose": 1, "betas": 1, "expression": 0}


def test_wart_h36m_regressors_differ_in_the_legs():
    """SPIN's regressor has the left leg in rows 1 to 3, Moon's the right leg."""
    spin, moon = (bodymodels.JOINT_SETS[f"h36m17_{name}"] for name in ("spin", "moon"))
    assert spin[1] == "left_hip" and moon[1] == "right_hip" and spin[7:] == moon[7:]
    with_left_first = relabelled(np.eye(17, 4) + [0, 0, 0, 1], "h36m17_spin", "h36m17_moon")
    assert with_left_first[4, 1] == 1  # SPIN's row 1 goes to Moon's row 4


def test_detections_come_from_a_folder_of_openpose(folders, tmp_path):
    """In the crop's pixels and in the order of the body, and without a joint of the annotation."""
    root, numbers = folders("h36m"), np.zeros((25, 3))
    numbers[bodymodels.JOINT_SETS["openpose25"].index("left_knee")] = 25, 25, 0.8  # box's centre
    record = human36m(root).records()[0]
    path = tmp_path / record["image"].decode().replace(".jpg", "_keypoints.json")
    write(path, {"people": [{"pose_keypoints_2d": numbers.ravel().tolist()}]})
    sample = human36m(root, detections=tmp_path)[0]
    place = bodymodels.JOINT_SETS["smpl45"].index("left_knee")
    assert torch.nonzero(sample["detected_confidence"]).tolist() == [[place]]
    assert sample["detected_confidence"][place] == pytest.approx(0.8)
    assert sample["detected_2d"][place].tolist() == pytest.approx([16.0, 16.0], abs=1e-4)
    assert "detected_2d" not in human36m(root)[0]
    with pytest.raises(FileNotFoundError, match="60457274_000001_keypoints.json"):
        human36m(root, detections=tmp_path)[1]
