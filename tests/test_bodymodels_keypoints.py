"""Keypoints and reduced models of bodies."""

import pytest
import torch
from body_samples import BODY, SMPL45, WHOLE, inputs, seeds
from hypothesis import given
from hypothesis import strategies as st
from smplx.vertex_ids import vertex_ids

import bodymodels as bm


@pytest.mark.parametrize("ours,theirs", [("smpl", "smplh"), ("smplx", "smplx")])
def test_landmarks_are_the_vertices_of_smplx(ours, theirs):
    """Each vertex is the one that the smplx package has under the same name."""
    sides = {"right": "r", "left": "l"}
    for name, vertex in zip(SMPL45[24:], bm.SURFACE_VERTEX_IDS[ours], strict=True):
        side, _, part = name.partition("_")
        part = part.removesuffix("_tip")
        foot = part in ("big_toe", "small_toe", "heel")
        key = (name if name == "nose" else side[0].upper() + part.title().replace("_", "") if foot
               else sides[side] + part)
        assert vertex_ids[theirs][key] == vertex, name


def test_keypoints_are_symmetric():
    """At rest left keypoints are mirror images of right ones, to a millimetre, and lie on +x."""
    keypoints = BODY.keypoints(BODY(torch.zeros(1, 10), torch.zeros(1, 24, 3)))[0]
    torch.testing.assert_close(bm.mirror_points(keypoints[bm.mirror_indices("smpl45")]), keypoints,
                               atol=1e-3, rtol=0)
    left = [name.startswith("left") for name in SMPL45]
    assert (keypoints[left][:, 0] > 0.01).all() and sum(left) == 19


@given(st.lists(st.integers(0, 6889), min_size=1, max_size=20), seeds)
def test_body_of_a_few_vertices(vertex_ids, seed):
    """It has the same joints, bit for bit, and of the same mesh the vertices asked for."""
    betas, pose = inputs(BODY, seed)
    light, full = BODY.at_vertices(vertex_ids)(betas, pose), BODY(betas, pose)
    assert torch.equal(light.joints, full.joints)
    assert torch.equal(light.transforms, full.transforms)
    torch.testing.assert_close(light.vertices, full.vertices[:, vertex_ids], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="body has no landmarks"):
        BODY.at_vertices([332]).keypoints(None)
    for bad in [0, 6890], []:
        with pytest.raises(ValueError, match="expected vertices of body, 0 to 6889"):
            BODY.at_vertices(bad)


@pytest.mark.parametrize("body", [BODY, WHOLE], ids=["smpl", "smplx"])
def test_body_for_keypoints(body):
    """It gives the same keypoints with the same gradients, from 21 vertices."""
    light, gradients = body.for_keypoints(), []
    assert light.v_template.shape == (21, 3) and light.faces.shape == (0, 3)
    betas, pose = inputs(body, 3)
    for model in (body, light):
        shape, angles = betas.clone().requires_grad_(), pose.clone().requires_grad_()
        keypoints = model.keypoints(model(shape, angles))
        (keypoints * torch.arange(3)).square().sum().backward()
        gradients.append((keypoints.detach(), shape.grad, angles.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert body.J_regressor is not None and light.J_regressor is None
    again = light.at_vertices([*range(20, -1, -1)])
    assert again.surface_vertex_ids == tuple(range(20, -1, -1))
    torch.testing.assert_close(again.keypoints(again(betas, pose)), keypoints.detach(),
                               atol=1e-6, rtol=0)
