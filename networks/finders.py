"""Find hands and people in a picture: by MediaPipe, an optional package, or from keypoint files.

The wheels of MediaPipe 0.10 bring the weights of their `solutions`. Version 1 has no solutions and
wants model files from elsewhere, so it is refused with the line that installs 0.10.21.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np

from bodymodels import JOINT_SETS
from sets.images import LEAST_CONFIDENCE, choose_person, read_keypoints, to_smpl45

INSTALL = "pip install mediapipe==0.10.21"  # the last with weights, for Python 3.9 to 3.12
MOST_HANDS = 8  # that are looked for in one picture (our choice)
CONTEXT = 1.5  # sides of the part where a hand is looked for, per side of its box (our choice)


class Found(NamedTuple):
    """A hand or a person in a picture."""

    box: tuple[float, float, float, float] | None = None  # x, y, width, height in pixels;
    # None: the whole picture
    side: str = "right"  # "right" or "left" hand; of a person without a meaning
    keypoints: np.ndarray | None = None  # x, y in pixels, confidence: of a hand (21, 3), of a
    # person (45, 3) in the order of smpl45
    mask: np.ndarray | None = None  # (H, W) float32 0..1, of a person; 0 outside of the part seen
    source: str = "MediaPipe"  # of the keypoints, or why there are none


def parse_box(text: str, kind: str) -> Found:
    """Convert the text of --box. kind: after those of a "hand" ",right" or ",left" may follow.

    Raises ValueError for anything but "whole" or four finite numbers, with a positive size.
    """
    numbers, side = text.strip(), "right"
    if kind == "hand" and numbers.endswith((",left", ",right")):
        numbers, _, side = numbers.rpartition(",")
    if numbers == "whole":
        return Found(None, side)
    try:
        box = tuple(map(float, numbers.split(",")))
    except ValueError:
        box = ()
    if len(box) != 4 or not np.isfinite(box).all() or min(box[2:]) <= 0:
        raise ValueError(f"--box {text!r}: expected four numbers x,y,width,height in pixels, "
                         "as in --box 120,80,200,240, or 'whole'")
    return Found(box, side)


def find(kind: str, image: np.ndarray, given: Sequence[Found] = (),
         file: str | PathLike | None = None, picture: str | PathLike = "") -> list[Found]:
    """Find the hands or people of a picture (H, W, 3) uint8 RGB: in boxes, or all that are seen.

    kind: "hand" or "person". given: boxes and sides. file, picture: see look_inside.
    Raises ValueError if there are none, with the reason and what to do.
    """
    if given or file:
        return [look_inside(kind, image, one, file, picture) for one in given or [Found()]]
    give = (f"give the {kind}'s place in pixels, --box X,Y,WIDTH,HEIGHT with X,Y its upper left "
            "corner, or --box whole for the whole picture")
    try:
        found = (find_hands if kind == "hand" else find_people)(image)
    except ImportError as error:
        raise ValueError(f"no --box, and {error}; or {give}") from error
    if not found:
        raise ValueError(f"MediaPipe finds no {kind}: {give}")
    return found


def look_inside(kind: str, image: np.ndarray, given: Found, file: str | PathLike | None = None,
                picture: str | PathLike = "") -> Found:
    """Add to a hand or person in a box its 2D keypoints: MediaPipe's, if it is installed.

    file: of keypoints, see read_keypoints, instead. picture: the image's path. Without keypoints
    `source` says why there are none.
    """
    inside = "" if given.box is None else " in the box"
    if file is not None:
        people = [to_smpl45(rows) for rows in read_keypoints(file, picture)]
        person = choose_person(people, given.box, *image.shape[1::-1])
        if person is not None:
            forget_outside(person, image.shape)
        return given._replace(keypoints=person,
                              source=f"{file}{f' sees nobody{inside}' * (person is None)}")
    try:
        found = (find_hands if kind == "hand" else find_people)(image, given.box)
    except ImportError as error:
        return given._replace(source=f"no --keypoints, and {error}")
    return found[0]._replace(box=given.box, side=given.side) if found else given._replace(
        source=f"MediaPipe sees nobody{inside}")


def from_behind(keypoints: np.ndarray | None) -> bool:
    """Say whether a person is seen from behind: left shoulder and hip left of the right ones.

    keypoints: (45, 3), see Found. False if these are not all seen.
    """
    if keypoints is None:
        return False
    left, right = (keypoints[[JOINT_SETS["smpl45"].index(f"{side}_{part}")
                              for part in ("shoulder", "hip")]] for side in ("left", "right"))
    return bool(min(left[:, 2].min(), right[:, 2].min()) >= LEAST_CONFIDENCE
                and (left[:, 0] < right[:, 0]).all())


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


def find_hands(image: np.ndarray, box: Sequence[float] | None = None) -> list[Found]:
    """Find the hands in a picture (H, W, 3) uint8 RGB, from left to right.

    box: x, y, width, height in pixels. Only hands whose middle is inside are returned, the one
    that is nearest to the middle of the box first. Raises ImportError as `solution`.
    """
    hands = solution("hands", "Hands")
    x, y, w, h = (0, 0, *image.shape[1::-1]) if box is None else box
    margin = 0 if box is None else (CONTEXT - 1) / 2
    part, corner = cut(image, (x - margin * w, y - margin * h, (1 + 2 * margin) * w,
                               (1 + 2 * margin) * h))
    if not part.size:
        return []
    with quiet(), hands(static_image_mode=True, max_num_hands=MOST_HANDS) as detector:
        result = detector.process(part)
    found = []
    for landmarks, sides in zip(result.multi_hand_landmarks or (), result.multi_handedness or (),
                                strict=True):
        keypoints = pixels(landmarks, part.shape, corner)
        keypoints[:, 2] = 1.0  # it gives none for hands
        # It takes pictures for mirrored, as a laptop's camera shows them: its left is a right hand
        side = "right" if sides.classification[0].label == "Left" else "left"
        found.append(Found(box_of(keypoints), side, keypoints))
    if box is None:
        return sorted(found, key=lambda one: one.box)

    def distance(one: Found) -> float:
        """From the middle of the box, 1 at its border."""
        left, top, width, height = one.box
        return max(abs((left + width / 2 - x) / w - 0.5), abs((top + height / 2 - y) / h - 0.5)) * 2

    return sorted((one for one in found if distance(one) <= 1), key=distance)


def find_people(image: np.ndarray, box: Sequence[float] | None = None) -> list[Found]:
    """Find the one person whom MediaPipe sees best in a picture (H, W, 3), or in a box of it.

    Keypoints outside of the picture have no confidence: it extrapolates. Raises ImportError as
    `solution`. The list is empty if fewer than two keypoints are seen.
    """
    pose = solution("pose", "Pose")
    height, width = image.shape[:2]
    part, (left, top) = cut(image, (0, 0, width, height) if box is None else box)
    if not part.size:
        return []
    with quiet(), pose(static_image_mode=True, enable_segmentation=True) as detector:
        result = detector.process(part)
    if result.pose_landmarks is None:
        return []
    keypoints = pixels(result.pose_landmarks, part.shape, (left, top))
    forget_outside(keypoints, image.shape)
    seen = keypoints[keypoints[:, 2] >= LEAST_CONFIDENCE]
    mask = np.zeros((height, width), np.float32)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = result.segmentation_mask
    return [Found(box_of(seen), "right", to_smpl45(keypoints), mask)] if len(seen) > 1 else []


def forget_outside(keypoints: np.ndarray, shape: Sequence[int]) -> None:
    """Set the confidence of keypoints outside of a picture of (height, width) to 0, in place."""
    outside = (keypoints[:, :2] < 0) | (keypoints[:, :2] > shape[1::-1])
    keypoints[outside.any(1), 2] = 0


def cut(image: np.ndarray, box: Sequence[float]) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the part of a picture in a box, contiguous, and its left and upper border."""
    x, y, w, h = box
    left, top = max(int(x), 0), max(int(y), 0)
    part = image[top : max(math.ceil(y + h), 0), left : max(math.ceil(x + w), 0)]
    return np.ascontiguousarray(part), (left, top)


def pixels(landmarks, shape: Sequence[int], corner: tuple[int, int]) -> np.ndarray:
    """Convert MediaPipe's fractions of a part of a picture to rows x, y in pixels, confidence."""
    (left, top), (height, width) = corner, shape[:2]
    return np.array([(left + mark.x * width, top + mark.y * height, mark.visibility)
                     for mark in landmarks.landmark], np.float64)


def box_of(keypoints: np.ndarray) -> tuple[float, float, float, float]:
    """The tight box x, y, width, height around keypoints (J, 3)."""
    low, high = keypoints[:, :2].min(0), keypoints[:, :2].max(0)
    return *low.tolist(), *(high - low).tolist()
