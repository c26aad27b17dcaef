"""Find hands and people in a picture: by MediaPipe, an optional package, or from keypoint files."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from bodymodels import JOINT_SETS
from files import first_line
from networks.smooth import overlap
from sets.crops import inside
from sets.images import LEAST_CONFIDENCE, choose_person, read_keypoints, to_smpl45

# MediaPipe 0.10 brings the weights of its `solutions`; 1.0 and later have none. This is the last
# that does, for Python 3.9 to 3.12
INSTALL = "pip install mediapipe==0.10.21"
MOST_HANDS = 8  # that are looked for in one picture (our choice)
# Side of the part of a picture where a hand or a person is looked for again, per side of its box.
# If keypoints are further apart there than AGREED, per side, there is nobody: that refused all
# eight finds in tiles of seven photographs without people (our choices)
CONTEXT, AGREED = 1.5, 0.1
FEWEST = 6  # sure keypoints of a person in a part of a picture (our choice)
SAME = 0.3  # overlap of two boxes of one person, intersection over union (our choice)
WITHIN = 0.6  # overlap of two boxes of one hand, of the smaller box (our choice)
# MediaPipe's score from which we trust the side of a hand: in turned, scaled and mirrored
# photographs of one hand 9 of 9 were right above, 1 of 12 below
SURE = 0.8
SAME_FACE = 0.15  # distance of the faces of one person, per side of the smaller box (our choice)
FACE = [JOINT_SETS["smpl45"].index(name) for name in (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear")]
PALM = 1.7  # side of a hand's box, per distance from the wrist to the middle of the index and pinky
# knuckles, where its centre is (medians of 300 rendered hands)
LIMBS = [f"{side}_{joint}" for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
         for side in ("left", "right")]  # the joints of a person by which a mesh is judged
TINY, GREY = 32, 128  # pixels: a box too small to see a pose; what the mask hides (our choices)


class Found(NamedTuple):
    """A hand or a person in a picture."""

    box: tuple[float, float, float, float] | None = None  # x, y, width, height in pixels;
    # None: the whole picture
    side: str = "right"  # "right" or "left" hand; of a person without a meaning
    keypoints: np.ndarray | None = None  # x, y in pixels, confidence: of a hand (21, 3), of a
    # person (45, 3) in the order of smpl45
    mask: np.ndarray | None = None  # (H, W) float32 0..1, of a person; 0 outside of the part seen
    hands: np.ndarray = np.full((2, 4), np.nan)  # boxes of a person's right and left hand
    whole: tuple[float, float, float, float] | None = None  # the box of a person whom the picture
    # shows in part, with the joints that MediaPipe puts outside of it
    source: str = "MediaPipe"  # of the keypoints, or why there are none
    sure: bool = True  # of a hand's side

    @property
    def unchecked(self) -> list[str]:
        """Say why no keypoints judge the mesh, if there are none."""
        return [f"not checked: {self.source}"] * (self.keypoints is None)


def parse_box(text: str, kind: str) -> Found:
    """Convert the text of --box. kind: after those of a "hand" ",right" or ",left" may follow.

    Raises ValueError for anything but "whole" or four finite numbers, with a positive size.
    """
    parts, side = [part.strip() for part in text.split(",")], "right"
    if kind == "hand" and parts[-1] in ("left", "right"):
        side = parts.pop()
    if parts == ["whole"]:
        return Found(None, side)
    try:
        box = tuple(map(float, parts))
    except ValueError:
        box = ()
    if len(box) != 4 or not np.isfinite(box).all() or min(box[2:]) <= 0:
        raise ValueError(f"--box {text!r}: expected four numbers x,y,width,height in pixels, "
                         "as in --box 120,80,200,240, or 'whole'"
                         + ", and ,left after them for a left hand" * (kind == "hand"))
    return Found(box, side)


def find(kind: str, image: np.ndarray, given: Sequence[Found] = (),
         file: str | PathLike | None = None, *, hands: bool = False) -> list[Found]:
    """Find the hands or people of a picture (H, W, 3) uint8 RGB: in boxes, or all that are seen.

    kind: "hand" or "person". given: boxes and sides. file: see look_inside. hands: also look
    closely for the boxes of people's hands. Raises ValueError if there are none, and says why.
    """
    give = (f"give the {kind}'s place in pixels, --box X,Y,WIDTH,HEIGHT with X,Y its upper left "
            "corner, or --box whole for the whole picture")
    if given or file:
        found = [look_inside(kind, image, one, file) for one in given or [Found()]]
    else:
        try:
            found = (find_hands if kind == "hand" else find_people)(image)
        except ImportError as error:
            raise ValueError(f"no --box, and {error}; or {give}") from error
    if not found:
        raise ValueError(f"MediaPipe finds no {kind}: {give}")
    if hands:
        found = [one._replace(hands=np.array([hand.box for hand in find_their_hands(image, one)]))
                 for one in found]
    return found


def look_inside(kind: str, image: np.ndarray, given: Found, file: str | PathLike | None = None
                ) -> Found:
    """Add to a hand or person in a box its 2D keypoints: MediaPipe's, or those of a file.

    file: see read_keypoints. Without keypoints `source` says why there are none.
    """
    where = f" in the {'picture' if given.box is None else 'box'}"
    if file is not None:
        people = [to_smpl45(rows) for rows in read_keypoints(file)]
        person = choose_person(people, given.box, *image.shape[1::-1])
        if person is not None:
            forget_outside(person, image.shape)
        return given._replace(keypoints=person,
                              source=f"{file}{f' sees nobody{where}' * (person is None)}")
    try:
        found = (find_hands if kind == "hand" else find_people)(
            image, given.box or (0, 0, *image.shape[1::-1]))
    except ImportError as error:
        return given._replace(source=str(error))
    if not found:
        return given._replace(source=f"MediaPipe sees nobody{where}")
    return found[0]._replace(box=given.box, side=given.side, whole=None, sure=True)


def without_background(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Make everything but the person grey: networks see limbs in real backgrounds."""
    if mask is None:
        return image
    return np.uint8(np.rint(image * mask[..., None] + GREY * (1 - mask[..., None])))


def box_notes(box: Sequence[float] | None, shape: Sequence[int]) -> list[str]:
    """Warn of a box that is tiny, or mostly outside of a picture of (height, width)."""
    if box is None:
        return []
    x, y, w, h = box
    shown = np.minimum((x + w, y + h), shape[1::-1]) - np.maximum((x, y), 0)
    part, notes = shown.clip(0).prod() / (w * h), []
    if max(w, h) < TINY:
        notes.append(f"warning: the box is only {w:.0f} x {h:.0f} px, too small to show a pose")
    if part < 0.5:
        notes.append(f"warning: only {100 * part:.0f} % of the box x,y,width,height is inside the "
                     "picture")
    return notes


def warnings(found: Found, shape: Sequence[int], mesh: np.ndarray, own: np.ndarray | None,
             limits: tuple[float, float]) -> list[str]:
    """Return warnings of a mesh: of its box, and of 2D keypoints that it does not fit.

    shape: height and width of the picture. mesh: its keypoints (J, 2), NaN where it has none. own:
    where the network sees them (J, 3). limits: largest misfits of the given ones, which alone count
    where there are any, and of the network's own.
    """
    notes = box_notes(found.box, shape)
    distance, (most, _) = misfit(mesh, found.keypoints, LEAST_CONFIDENCE), limits
    whose = f"({found.source})"
    if distance is None:
        distance, (_, most), whose = misfit(mesh, own, 1e-6), limits, "of the network"
    if distance is not None and distance > most:
        notes.append(f"warning: the mesh does not fit the 2D keypoints {whose}: they are "
                     f"{100 * distance:.0f} % of their extent apart on average; do not trust this "
                     "result")
    return notes


def misfit(mesh: np.ndarray, rows: np.ndarray | None, least: float) -> float | None:
    """Return the mean distance of a mesh's keypoints (J, 2) from rows x, y, confidence (J, 3).

    In long sides of the tight box of the rows of at least this confidence. Of a person, the LIMBS
    count, if any is seen. None if nothing can be compared.
    """
    if rows is None:
        return None
    sure = rows[:, 2] >= least
    both = sure & np.isfinite(mesh).all(1)
    limbs = both & [name in LIMBS for name in JOINT_SETS["smpl45"]] if len(rows) == 45 else both
    both = limbs if limbs.any() else both
    side = max(box_of(rows[sure])[2:]) if both.any() else 0
    if side == 0:
        return None
    return float(np.linalg.norm(rows[both, :2] - mesh[both], axis=1).mean() / side)


def solution(name: str) -> type:
    """Import mediapipe.solutions' detector of "hands" or "pose".

    Raises ImportError, with the command that installs a usable version, where that fails.
    """
    try:
        import mediapipe
        return getattr(getattr(mediapipe.solutions, name), name.capitalize())
    except Exception as error:  # its native libraries fail in many ways
        raise ImportError(f"MediaPipe cannot be used ({first_line(error)}): {INSTALL}") from error


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


def detect(name: str, image: np.ndarray, box: Sequence[float], **options
           ) -> tuple[object, Callable[[object], np.ndarray], tuple[slice, slice]]:
    """Look for "hands" or a "pose" in a box of a picture (H, W, 3).

    Returns MediaPipe's result; a function that turns its landmarks into rows x, y in pixels of the
    picture, confidence; and the part of the picture that it saw. Raises ImportError as `solution`.
    """
    kind, (x, y, w, h) = solution(name), box
    left, top = max(int(x), 0), max(int(y), 0)
    place = slice(top, max(math.ceil(y + h), 0)), slice(left, max(math.ceil(x + w), 0))
    part = np.ascontiguousarray(image[place])  # or it is refused

    def rows(landmarks) -> np.ndarray:
        fractions = np.array([(mark.x, mark.y, mark.visibility) for mark in landmarks.landmark])
        return fractions * (part.shape[1], part.shape[0], 1) + (left, top, 0)

    if not part.size:
        return SimpleNamespace(multi_hand_landmarks=None, pose_landmarks=None), rows, place
    with quiet():
        return detector(kind, **options).process(part), rows, place


@functools.cache
def detector(kind: type, **options) -> object:
    """Make a detector, once: that takes longer than a look."""
    return kind(static_image_mode=True, **options)


def find_hands(image: np.ndarray, box: Sequence[float] | None = None) -> list[Found]:
    """Find the hands in a picture (H, W, 3) uint8 RGB and those of its people, left to right.

    In a box x, y, width, height only hands whose middle is inside are returned, the one nearest to
    the middle of the box first. Raises ImportError as `solution`.
    """
    x, y, w, h = (0, 0, *image.shape[1::-1]) if box is None else box
    more = 0 if box is None else (CONTEXT - 1) / 2  # on each side
    part, found = (x - more * w, y - more * h, w + 2 * more * w, h + 2 * more * h), []
    result, rows, _ = detect("hands", image, part, max_num_hands=MOST_HANDS)
    for number, landmarks in enumerate(result.multi_hand_landmarks or ()):
        keypoints = rows(landmarks)
        keypoints[:, 2] = 1.0  # it gives none for hands
        # It takes pictures for mirrored, as a laptop's camera shows them: its left is a right hand
        mirrored = result.multi_handedness[number].classification[0]
        side = "right" if mirrored.label == "Left" else "left"
        found.append(Found(box_of(keypoints), side, keypoints, sure=mirrored.score >= SURE))
    if box is None:
        for person in find_people(image):
            found += [hand for hand in find_their_hands(image, person)
                      if hand.keypoints is not None and is_new(hand, found)]
        return sorted(found, key=lambda one: one.box)

    def distance(one: Found) -> float:
        """From the middle of the box, 0.5 at its border."""
        left, top, width, height = one.box
        return max(abs((left + width / 2 - x) / w - 0.5), abs((top + height / 2 - y) / h - 0.5))

    return sorted((one for one in found if distance(one) <= 0.5), key=distance)


def find_people(image: np.ndarray, box: Sequence[float] | None = None) -> list[Found]:
    """Find the people in a picture (H, W, 3) uint8 RGB, from left to right, or the one in a box.

    MediaPipe sees one person at a time, and no small one: it looks at the picture, then at parts,
    in which the people it has found are grey.
    """
    if box is not None:
        return see_person(image, box)
    height, width = image.shape[:2]
    found = see_person(image, (0, 0, width, height))
    for one in found:
        image = without_background(image, 1 - one.mask)
    for part in tiles(width, height):
        for one in see_person(image, part):
            for again in see_person(image, around(one.box)):
                if (apart(one, again) <= AGREED * max(one.box[2:]) and is_new(again, found)
                        and is_seen(again, found)):
                    found.append(again)
                    image = without_background(image, 1 - again.mask)
    return sorted(found, key=lambda one: one.box)


def is_seen(one: Found, others: Sequence[Found]) -> bool:
    """Say whether a person has FEWEST sure keypoints, most of them not inside of another person."""
    x, y, _ = one.keypoints[one.keypoints[:, 2] >= LEAST_CONFIDENCE].astype(int).T
    return len(x) >= FEWEST and all(
        other.mask[y.clip(max=len(other.mask) - 1), x.clip(max=other.mask.shape[1] - 1)].mean()
        <= 0.5 for other in others)


def see_person(image: np.ndarray, box: Sequence[float]) -> list[Found]:
    """Find the one person whom MediaPipe sees best in a box of a picture (H, W, 3), or nobody.

    Keypoints outside of the picture have no confidence: it extrapolates.
    """
    result, rows, place = detect("pose", image, box, enable_segmentation=True)
    if result.pose_landmarks is None:
        return []
    keypoints = rows(result.pose_landmarks)
    whole = box_of(keypoints) if forget_outside(keypoints, image.shape) else None
    sure = keypoints[keypoints[:, 2] >= LEAST_CONFIDENCE]
    if len(sure) < 2:
        return []
    mask = np.zeros(image.shape[:2], np.float32)
    mask[place] = result.segmentation_mask
    return [Found(box_of(sure), "right", to_smpl45(keypoints), mask, hand_boxes(keypoints), whole)]


def tiles(width: int, height: int) -> Iterator[tuple[float, float, float, float]]:
    """Yield parts of a picture that overlap by half: squares side by side, then 3 x 3 quarters."""
    side = min(width, height)
    count = math.ceil(2 * max(width, height) / side) - 1
    for step in np.linspace(0, max(width, height) - side, count) if count > 1 else ():
        yield (step, 0, side, side) if width > height else (0, step, side, side)
    for row in range(3):
        for column in range(3):
            yield column * width / 4, row * height / 4, width / 2, height / 2


def around(box: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the square around a box whose side is CONTEXT times the box's longer one."""
    x, y, w, h = box
    side = CONTEXT * max(w, h)
    return x + w / 2 - side / 2, y + h / 2 - side / 2, side, side


def apart(first: Found, second: Found) -> float:
    """Return the median distance of the keypoints that two people share, in pixels."""
    both = np.minimum(first.keypoints[:, 2], second.keypoints[:, 2]) >= LEAST_CONFIDENCE
    distance = np.linalg.norm(first.keypoints[both, :2] - second.keypoints[both, :2], axis=1)
    return float(np.median(distance)) if both.any() else math.inf


def is_new(one: Found, others: Sequence[Found]) -> bool:
    """Say whether a hand or person is none of the others.

    Of two boxes of one hand the smaller is within the other. Boxes of one person overlap, or, where
    a tile shows a part of a person, the faces.
    """
    def same(other: Found) -> bool:
        if len(one.keypoints) == 21:
            return overlap(one.box, other.box, smaller=True) > WITHIN
        faces = one.keypoints[FACE, :2] - other.keypoints[FACE, :2]
        least = SAME_FACE * min(max(one.box[2:]), max(other.box[2:]))
        return np.linalg.norm(faces, axis=1).mean() < least or overlap(one.box, other.box) > SAME

    return not any(map(same, others))


def hand_boxes(keypoints: np.ndarray) -> np.ndarray:
    """Return boxes (2, 4) of the right and left hand of MediaPipe's keypoints (33, 3), or NaN."""
    boxes = np.full((2, 4), np.nan)
    for row, side in enumerate(("right", "left")):
        palm = keypoints[[JOINT_SETS["mediapipe33"].index(f"{side}_{part}")
                          for part in ("wrist", "index1", "pinky1")]]
        if palm[:, 2].min() >= LEAST_CONFIDENCE:
            middle = palm[1:, :2].mean(0)
            length = PALM * max(np.linalg.norm(middle - palm[0, :2]), 1)
            boxes[row] = *(middle - length / 2), length, length
    return boxes


def find_their_hands(image: np.ndarray, person: Found) -> list[Found]:
    """Look for a person's right and left hand in `hands`; one that is not seen has no keypoints.

    MediaPipe's detector of hands has better boxes than its detector of bodies.
    """
    found = []
    for side, box in zip(("right", "left"), person.hands, strict=True):
        seen = find_hands(image, box) if np.isfinite(box).all() else []
        found.append(seen[0]._replace(side=side, sure=True) if seen else Found(tuple(box), side))
    return found


def forget_outside(keypoints: np.ndarray, shape: Sequence[int]) -> bool:
    """Set the confidence of keypoints outside of a picture of (height, width) to 0, in place.

    Returns whether there are any outside.
    """
    seen = inside(keypoints[:, :2], *shape[1::-1])
    keypoints[:, 2] *= seen
    return not seen.all()


def box_of(keypoints: np.ndarray) -> tuple[float, float, float, float]:
    """The tight box x, y, width, height around keypoints (J, 3)."""
    low, high = keypoints[:, :2].min(0), keypoints[:, :2].max(0)
    return *low.tolist(), *(high - low).tolist()
