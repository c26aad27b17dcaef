"""HMR2.0's own evaluation files."""

import numpy as np
from official_folders import threedpw_hmr2, write_hmr2_evaluation

import bodymodels
from files import load_arrays
from sets.body_sets import Human36MHMR2
from sets.official import relabelled


def test_wart_hmr2_stores_boxes_with_margin_and_19_joints_after_openposes(folders):
    """The crop's side is the box grown to 3:4, no more; joint 43 is Human3.6M's head, 39 MPII's
    pelvis."""
    dataset = threedpw_hmr2(folders("3dpw-hmr2"))
    for index, side in ((0, 48), (1, 24 / 0.75)):
        homography, *_ = dataset.crop(dataset.records()[index], None, (50, 50), None)
        np.testing.assert_allclose(homography[0, 0], 32 / side, rtol=1e-5)
        np.testing.assert_allclose(homography[:2, :2] @ (25, 25) + homography[:2, 2], 16, atol=1e-4)
    stored = load_arrays(dataset.root / "hmr2_evaluation_data/3dpw_test.npz")["extra_keypoints_3d"]
    found = relabelled(dataset.records()["keypoints_3d"], "hmr44", "j17")
    names = bodymodels.JOINT_SETS["j17"]
    for name, place in (("head", 18), ("pelvis", 14), ("neck", 12), ("right_ankle", 0)):
        np.testing.assert_array_equal(found[:, names.index(name)], stored[:, place].astype("f4"))


def test_human36m_is_the_same_in_another_file(tmp_path):
    write_hmr2_evaluation(tmp_path, "h36m_val_p2")
    assert len(Human36MHMR2(tmp_path, progress=False)) == 2
