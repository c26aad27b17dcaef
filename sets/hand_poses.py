"""Random poses and views of the free right hand."""

from __future__ import annotations

from functools import cache

import numpy as np

from sets.crops import roll_and_mirror, rotation_to_axis

FINGER_SLOTS = {"index": 0, "middle": 3, "ring": 9, "pinky": 6}  # in MANO's order, no root
THUMB_SLOT = 12
PALM_NORMAL_UP = np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])  # back to the camera, fingers up
# Angles of the thumb in radians: flexion, abduction and twist of the saddle joint, then flexion of
# the two hinges. The pinches were fitted so that the finger pads meet on the mean free hand.
THUMB_POSES = {
    "rest": (0.10, -0.20, 0.00, 0.15, 0.20),
    "flat": (0.00, -0.60, 0.00, -0.10, -0.10),
    "up": (-0.30, -0.30, 0.00, -0.10, -0.20),
    "folded": (0.50, -0.10, 0.30, 0.70, 0.70),
    "grasp": (0.30, 0.25, 0.20, 0.35, 0.35),
}
PINCHES = {  # thumb as above; flexion of the finger's three joints, abduction of the first
    "index": ((0.26, -0.02, 0.18, 0.28, 0.30), (0.85, 0.85, 0.41), 0.00),
    "middle": ((0.44, 0.24, 0.04, 0.45, 0.44), (1.00, 0.98, 0.48), 0.07),
    "ring": ((0.61, 0.53, -0.05, 0.55, 0.47), (1.16, 0.91, 0.44), 0.17),
}
LOWER_LIMIT, UPPER_LIMIT = np.full((15, 3), -0.35), np.full((15, 3), 0.35)  # radians
LOWER_LIMIT[:, 0], UPPER_LIMIT[:, 0] = -0.3, 1.9
LOWER_LIMIT[12], UPPER_LIMIT[12] = (-0.5, -0.8, -0.4), (0.9, 0.7, 0.5)
LOWER_LIMIT[13:, 1:] = UPPER_LIMIT[13:, 1:] = 0.0


@cache
def hinge_axes() -> np.ndarray:
    """Return each joint's flexion, abduction and twist axis (15, 3, 3), rest frame, right hand.

    Fingers point along -x, the palm faces down (-y) and the index finger is on the +z side.
    Positive flexion closes the hand, positive abduction moves a finger towards the thumb.
    """
    flexion = np.tile([0.0, 0.0, 1.0], (15, 1))
    twist = np.tile([-1.0, 0.0, 0.0], (15, 1))
    flexion[THUMB_SLOT:] = 0.65, -0.74, -0.17  # from the shape of the last segment and its nail
    twist[THUMB_SLOT:] = -0.054, -0.068, 0.064  # along the thumb
    flexion /= np.linalg.norm(flexion, axis=-1, keepdims=True)
    twist -= (twist * flexion).sum(-1, keepdims=True) * flexion
    twist /= np.linalg.norm(twist, axis=-1, keepdims=True)
    return np.stack([flexion, np.cross(twist, flexion), twist], 1)


def sample_hand_pose(rng: np.random.Generator) -> np.ndarray:
    """Draw a plausible hand pose: axis-angles (15, 3), absolute, MANO's joints without the wrist.

    45 % are grasps and relaxed hands, whose fingers close together; the others are gestures (each
    finger straight or folded), pinches, and independent fingers. All stay within joint limits.
    """
    kind = rng.choice(4, p=(0.45, 0.25, 0.15, 0.15))
    if kind == 0:
        curl = rng.uniform(0, 1) + rng.uniform(-0.25, 0.25) * np.linspace(-1, 1, 4)
    elif kind == 1:
        curl = np.where(rng.random(4) < 0.5, rng.uniform(0, 0.15, 4), rng.uniform(0.75, 1, 4))
    else:
        curl = rng.uniform(0, 1, 4)
    curl = np.clip(curl + rng.normal(0, 0.05, 4), -0.1, 1)
    angles = _finger_angles(curl, rng)
    mixture = rng.dirichlet(np.full(len(THUMB_POSES), 0.4))
    thumb = mixture @ np.array(list(THUMB_POSES.values()))
    if kind == 2:
        finger = list(PINCHES)[rng.integers(len(PINCHES))]
        thumb, flexion, abduction = map(np.asarray, PINCHES[finger])
        slot = FINGER_SLOTS[finger]
        angles[slot:slot + 3, 0], angles[slot, 1] = flexion, abduction
    angles[THUMB_SLOT], angles[13:, 0] = thumb[:3], thumb[3:]
    angles += rng.normal(0, 0.04, (15, 3)) * (1.0, 0.5, 0.5)
    angles = np.clip(angles, LOWER_LIMIT, UPPER_LIMIT)
    return np.einsum("jd,jdc->jc", angles, hinge_axes())


def _finger_angles(curl: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return joint angles (15, 3) for index, middle, ring and pinky closed to 0..1, `curl` (4,)."""
    angles = np.zeros((15, 3))
    hook = rng.uniform(-1, 1)  # -1: knuckles bend first, +1: middle joints bend first
    coupling = rng.uniform(0.45, 0.75)  # the last joint follows the middle one
    spread = rng.uniform(-0.3, 1.0) * np.array([0.2, 0.03, -0.12, -0.28])
    converge = np.array([-0.05, 0.0, 0.12, 0.3])  # folded fingers aim at the base of the thumb
    for finger, slot in enumerate(FINGER_SLOTS.values()):
        closed = curl[finger]
        angles[slot, 0] = 1.4 * closed * (1 - 0.5 * max(hook, 0) * (1 - closed))
        angles[slot + 1, 0] = 1.75 * closed * (1 - 0.6 * max(-hook, 0) * (1 - closed))
        angles[slot + 2, 0] = coupling * angles[slot + 1, 0]
        angles[slot, 1] = spread[finger] * (1 - closed) + converge[finger] * closed
    return angles


def sample_view(rng: np.random.Generator, views: float, in_plane: float,
                sides: str = "both") -> np.ndarray:
    """Draw the rotation (3, 3) of the resting hand into the camera's frame.

    The hand starts with its back or palm to the camera and its fingers up. It is tilted until the
    palm's normal is up to `views` degrees off the camera's axis (uniform on the cap; 90 with both
    sides is the whole sphere), and turned in the image plane by up to +- `in_plane` degrees.
    """
    palm = {"both": bool(rng.integers(2)), "palm": True, "back": False}[sides]
    base = np.diag([-1.0, 1.0, -1.0]) @ PALM_NORMAL_UP if palm else PALM_NORMAL_UP
    cos = rng.uniform(np.cos(np.deg2rad(views)), 1)
    azimuth, sin = rng.uniform(0, 2 * np.pi), np.sqrt(1 - cos * cos)
    tilt = rotation_to_axis(np.array([sin * np.cos(azimuth), sin * np.sin(azimuth), cos]))
    roll = np.deg2rad(rng.uniform(-in_plane, in_plane))
    return roll_and_mirror(roll, False) @ tilt @ base
