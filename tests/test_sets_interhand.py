"""InterHand2.6M: hands, validity, cameras, fits."""

import json

import numpy as np
import pytest
import torch
from official_folders import CAMPOS, INTERHAND_R, interhand

import bodymodels

pytestmark = pytest.mark.usefixtures("few_vertices")


def test_interhand_has_one_sample_a_hand(folders, models):
    """An interacting pair gives two samples; a missing fit is flagged."""
    records = interhand(folders("interhand"), models=models).records()
    assert records["side"].tolist() == [1, 1, 0, 1, 0]
    assert records["has_pose"].tolist() == [1, 1, 1, 0, 0] == records["has_betas"].tolist()
    assert len(np.unique(records["center"], axis=0)) == 5  # a box for each hand


def test_wart_interhand_camera_positions_millimetres_and_order(folders):
    """X = R (X_world - position) / 1000, from tip to base: joints come out in metres, hand21."""
    root = folders("interhand")
    world = json.loads((root / "annotations/train/InterHand2.6M_train_joint_3d.json").read_text())
    points = (np.array(world["0"]["17018"]["world_coord"]) - CAMPOS) @ INTERHAND_R.T / 1000
    record = interhand(root).records()[2]  # the left hand: 21 to 41, its wrist last
    np.testing.assert_allclose(record["keypoints_3d"][0, :3], points[41], atol=1e-6)
    np.testing.assert_allclose(record["keypoints_3d"][4, :3], points[21], atol=1e-6)  # thumb's tip
    assert 0.3 < record["keypoints_3d"][:, 2].min() < 1.2


def test_wart_interhand_fits_turn_about_the_rest_root(folders, models):
    """The reader's mesh is the world's in the camera's frame; its translation is not R T + t."""
    root = folders("interhand")
    dataset = interhand(root, models=models)
    fits = json.loads((root / "annotations/train/InterHand2.6M_train_MANO_NeuralAnnot.json")
                      .read_text())["0"]["17018"]
    for index, side in ((1, "right"), (2, "left")):
        model = bodymodels.load_model(models, family="mano", side=side, hand_pose="mean_relative",
                                      fix_left_shapedirs=side == "left")
        pose, betas, transl = (torch.tensor([fits[side][name]])
                               for name in ("pose", "shape", "trans"))
        world = model(betas, pose.view(1, 16, 3), transl=transl).vertices[0].numpy()
        expected = (world - CAMPOS / 1000) @ INTERHAND_R.T
        found = dataset.posed(dataset.records()[index])[0].vertices[0].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        naive = INTERHAND_R @ (fits[side]["trans"] - CAMPOS / 1000)
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
    records = interhand(root).records()
    assert records["side"].tolist() == [1, 1, 1, 0]
    assert records["keypoints_3d"][0, :, 3].sum() == 20
