"""Arms and hands of the whole body."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from people_samples import HAND, HAND_IDS, LIGHT, SMPLX55, WHOLE, seeds

import bodymodels as bm


@given(seeds)
def test_chain_of_an_arm_is_its_hands_orientation(seed):
    """The product of the arm's rotations is the wrist's in forward kinematics."""
    generator = torch.Generator().manual_seed(seed)
    pose = bm.axis_angle_to_matrix(torch.randn(2, 55, 3, generator=generator))
    transforms = LIGHT(torch.zeros(1, 10), pose).transforms
    for side in ("left", "right"):
        chain = bm.chain_rotation(pose[:, bm.joint_indices("smplx55", f"{side}_arm08")])
        wrist = transforms[:, SMPLX55.index(f"{side}_wrist"), :3, :3]
        torch.testing.assert_close(chain, wrist, atol=1e-5, rtol=0)


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
    with pytest.raises(ValueError, match="hand_right has no hands"):
        bm.hand_vertex_ids("hand_right")
