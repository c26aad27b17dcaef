"""Random hand poses and views: limits, variety, pinches."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import bodymodels
from sets.rendered import (
    FINGER_SLOTS,
    LOWER_LIMIT,
    PINCHES,
    THUMB_SLOT,
    UPPER_LIMIT,
    hand_surface,
    hinge_axes,
    sample_hand_pose,
    sample_view,
)


@given(st.floats(0, 90), st.floats(0, 180), st.sampled_from(["both", "palm", "back"]),
       st.integers(0, 2**32 - 1))
def test_views_stay_in_their_cone(views, in_plane, sides, seed):
    """The hand's normal is within `views` degrees of the camera's axis, on the side asked for."""
    rotation = sample_view(np.random.default_rng(seed), views, in_plane, sides)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.isclose(np.linalg.det(rotation), 1)
    back_towards_camera = -rotation[2, 1]
    limit = np.cos(np.deg2rad(views)) - 1e-9
    assert abs(back_towards_camera) >= limit
    if sides != "both":
        assert back_towards_camera * (1 if sides == "back" else -1) >= limit


def test_convention_hand_starts_upright():
    """Without tilt or roll the fingers point up and the back view has the thumb on the left."""
    rotation = sample_view(np.random.default_rng(0), 0.0, 0.0, "back")
    joints = bodymodels.load_model("hand_right", dtype=torch.float64)
    points = joints.keypoint_regressor @ joints.v_template @ torch.from_numpy(rotation).T
    assert points[12, 1] < points[0, 1]  # middle tip above the wrist: y is down
    assert points[4, 0] < points[20, 0]  # thumb tip left of the pinky's


def test_default_views_cover_the_sphere():
    """Directions of the palm's normal over many draws have mean 0 and covariance 1/3."""
    rng = np.random.default_rng(0)
    for column in range(3):
        directions = np.stack([sample_view(rng, 90, 180)[:, column] for _ in range(3000)])
        np.testing.assert_allclose(directions.mean(0), 0, atol=0.05)
        np.testing.assert_allclose(directions.T @ directions / 3000, np.eye(3) / 3, atol=0.03)


@given(st.integers(0, 2**32 - 1))
def test_poses_respect_joint_limits(seed):
    """Every angle lies within its limit, and the axes of each joint are orthonormal."""
    pose = sample_hand_pose(np.random.default_rng(seed))
    axes = hinge_axes()
    np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.tile(np.eye(3), (15, 1, 1)),
                               atol=1e-12)
    angles = np.einsum("jc,jdc->jd", pose, axes)
    assert (angles >= LOWER_LIMIT - 1e-9).all() and (angles <= UPPER_LIMIT + 1e-9).all()


def test_poses_are_varied_and_fingers_go_together():
    """Fingers open and close over their whole range, neighbours more alike than not."""
    rng = np.random.default_rng(0)
    axes = hinge_axes()
    flexion = np.array([np.einsum("jc,jc->j", sample_hand_pose(rng), axes[:, 0])
                        for _ in range(800)])
    middle_joints = flexion[:, [1, 4, 10, 7]]  # index, middle, ring, pinky
    assert (middle_joints.min(0) < 0.1).all() and (middle_joints.max(0) > 1.6).all()
    correlation = np.corrcoef(middle_joints.T)
    assert correlation[0, 1] > 0.3 and correlation[1, 2] > 0.3


def test_pinches_bring_the_tips_together():
    """A pinch pose ends with thumb and fingertip within a centimetre on the mean hand."""
    model = bodymodels.load_model("hand_right", dtype=torch.float64)
    tips = {"index": 8, "middle": 12, "ring": 16}
    for finger, (thumb, flexion, abduction) in PINCHES.items():
        angles, slot = np.zeros((15, 3)), FINGER_SLOTS[finger]
        angles[slot:slot + 3, 0], angles[slot, 1] = flexion, abduction
        angles[THUMB_SLOT], angles[13:, 0] = thumb[:3], thumb[3:]
        pose = np.einsum("jd,jdc->jc", angles, hinge_axes())
        vertices = hand_surface().pose(np.zeros(10), pose)
        joints = model.keypoint_regressor.numpy() @ vertices
        assert np.linalg.norm(joints[4] - joints[tips[finger]]) < 0.01
