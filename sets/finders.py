"""Find hands and people in a picture with MediaPipe, an optional package.

The wheels of MediaPipe 0.10 bring the weights of their `solutions`. Version 1 has no solutions and
wants model files from elsewhere, so it is refused with the line that installs 0.10.21.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

INSTALL = "pip install mediapipe==0.10.21"  # the last with weights, for Python 3.9 to 3.12
LEAST_CONFIDENCE = 0.3  # of a keypoint that counts as seen, as in genhmr.py
MOST_HANDS = 8  # that are looked for in one picture (our choice)


class Found(NamedTuple):
    """A hand or a person in a picture."""

    box: tuple[float, float, float, float]  # x, y, width, height of its seen keypoints, pixels
    side: str  # "right" or "left" hand; of a person "right", without a meaning
    keypoints: np.ndarray  # (21, 3) or (33, 3): x, y in pixels, confidence


def solution(name: str, kind: str) -> type:
    """Import a class of mediapipe.solutions, such as pose.Pose.

    Raises ImportError, with the command that installs a usable version, where MediaPipe is missing,
    broken, or a version without solutions (1.0 and later).
    """
    try:
        import mediapipe
    except ModuleNotFoundError as error:
        if error.name == "mediapipe":
            raise ImportError(f"mediapipe is not installed: {INSTALL}") from None
        raise ImportError(f"mediapipe lacks {error.name}: {INSTALL}") from error
    except Exception as error:  # its native libraries fail in many ways
        raise ImportError(f"mediapipe does not import ({short(error)}): {INSTALL}") from error
    try:
        return getattr(getattr(mediapipe.solutions, name), kind)
    except Exception as error:
        version = getattr(mediapipe, "__version__", "of this version")
        raise ImportError(f"mediapipe {version} has no detectors with weights ({short(error)}): "
                          f"{INSTALL}") from error


def short(error: Exception) -> str:
    """The first line of an error's message, at most 80 characters."""
    return (str(error) or type(error).__name__).split("\n")[0][:80]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what native code writes to stderr: MediaPipe logs ten lines for each picture."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere, os.fdopen(os.dup(2), "wb") as kept:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept.fileno(), 2)


def find_hands(image: np.ndarray) -> list[Found]:
    """Find the hands in a picture (H, W, 3) uint8 RGB, from left to right.

    Raises ImportError as `solution`.
    """
    hands = solution("hands", "Hands")
    with quiet(), hands(static_image_mode=True, max_num_hands=MOST_HANDS) as detector:
        result = detector.process(np.ascontiguousarray(image))
    found = []
    for landmarks, sides in zip(result.multi_hand_landmarks or (), result.multi_handedness or (),
                                strict=True):
        keypoints = pixels(landmarks, image.shape, (0, 0))
        keypoints[:, 2] = 1.0  # it gives none for hands
        # It takes pictures for mirrored, as a laptop's camera shows them: its left is a right hand
        side = "right" if sides.classification[0].label == "Left" else "left"
        found.append(Found(box_of(keypoints), side, keypoints))
    return sorted(found, key=lambda one: one.box)


def find_people(image: np.ndarray, box: Sequence[float] | None = None) -> list[Found]:
    """Find the one person whom MediaPipe sees best in a picture (H, W, 3), or in a box of it.

    Raises ImportError as `solution`. The list is empty if fewer than two keypoints are seen.
    """
    pose = solution("pose", "Pose")
    height, width = image.shape[:2]
    x, y, w, h = (0, 0, width, height) if box is None else box
    left, top = max(int(x), 0), max(int(y), 0)
    part = np.ascontiguousarray(image[top : math.ceil(y + h), left : math.ceil(x + w)])
    with quiet(), pose(static_image_mode=True) as detector:
        landmarks = detector.process(part).pose_landmarks
    if landmarks is None:
        return []
    keypoints = pixels(landmarks, part.shape, (left, top))
    inside = ((keypoints[:, :2] >= 0) & (keypoints[:, :2] <= (width, height))).all(1)
    seen = keypoints[inside & (keypoints[:, 2] >= LEAST_CONFIDENCE)]
    return [Found(box_of(seen), "right", keypoints)] if len(seen) > 1 else []


def pixels(landmarks, shape: Sequence[int], corner: tuple[int, int]) -> np.ndarray:
    """Convert MediaPipe's fractions of a part of a picture to rows x, y in pixels, confidence."""
    (left, top), (height, width) = corner, shape[:2]
    return np.array([(left + mark.x * width, top + mark.y * height, mark.visibility)
                     for mark in landmarks.landmark], np.float64)


def box_of(keypoints: np.ndarray) -> tuple[float, float, float, float]:
    """The tight box x, y, width, height around keypoints (J, 3)."""
    low, high = keypoints[:, :2].min(0), keypoints[:, :2].max(0)
    return *low.tolist(), *(high - low).tolist()
