"""networks/finders.py: boxes, MediaPipe's hands and people, and which person is meant."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bodymodels
import data
from networks import finders
from networks.finders import Found, look_inside
from sets.images import read_keypoints, to_smpl45

ASSETS = Path(data.__file__).parent / "assets"
INSTALL = "pip install mediapipe==0.10.21"
SMPL45 = bodymodels.JOINT_SETS["smpl45"]
NUMBERS = st.floats(-1e6, 1e6)


# ------------------------------------------------------------------------------------- boxes


@given(NUMBERS, NUMBERS, st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_box_is_read_back(x, y, width, height):
    """Four numbers with commas between them are the box, whatever the blanks."""
    text = f"{x!r}, {y!r},{width!r} ,{height!r}"
    assert finders.parse_box(text, "person") == Found((x, y, width, height))


def test_boxes_of_hands_may_name_the_side():
    """",left" may follow the numbers, of hands alone; "whole" is the whole picture."""
    assert finders.parse_box("1,2,3,4,left", "hand") == Found((1, 2, 3, 4), "left")
    assert finders.parse_box("whole,left", "hand") == Found(None, "left")
    assert finders.parse_box("whole", "person") == Found(None)
    with pytest.raises(ValueError, match="^--box '1,2,3,4,left'"):
        finders.parse_box("1,2,3,4,left", "person")


@pytest.mark.parametrize("text", ["", " ", ",", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,nan,4",
                                  "1,2,inf,4", "nan,0,1,1", "1,2,0,4", "1,2,3,-4", "1;2;3;4"])
def test_bad_box_is_refused(text):
    """Anything else is one message that names the flag."""
    with pytest.raises(ValueError, match="^--box .*expected"):
        finders.parse_box(text, "hand")


# --------------------------------------------------------------------------------- MediaPipe


def test_mediapipe_finds_the_astronaut():
    """The shipped file is what it sees; in a box it sees what that part alone would show it.

    Exactly, but for rounding. The two are not near each other: in a crop of this portrait the
    detector moves the elbows by up to 100 px.
    """
    try:
        finders.solution("pose", "Pose")
    except ImportError as error:
        pytest.skip(str(error))
    image = data.read_image(ASSETS / "astronaut.jpg")
    shipped = read_keypoints(ASSETS / "astronaut_keypoints.json")[0]
    shipped = to_smpl45(shipped)
    (whole,) = finders.find_people(image)
    seen, placed = shipped[:, 2] > 0, whole.keypoints
    assert seen.sum() == 9 and np.allclose(placed[seen], shipped[seen], atol=0.1)
    chest, sky = whole.mask[450, 220], whole.mask[100, 480]
    assert whole.mask.shape == image.shape[:2] and chest > 0.9 and sky < 0.1
    (boxed,) = finders.find_people(image, (10.5, 3.2, 390.3, 500.0))
    (alone,) = finders.find_people(image[3:504, 10:401])
    seen = alone.keypoints[:, 2] > 0
    assert np.allclose(boxed.keypoints[seen], (alone.keypoints + (10, 3, 0))[seen], atol=1e-6)
    assert not boxed.mask[:, 401:].any() and boxed.mask[450, 220] > 0.9
    nobody = np.zeros((64, 64, 3), np.uint8)
    assert finders.find_people(nobody) == finders.find_hands(nobody) == []
    hand = data.read_image(ASSETS / "hand_pointing.jpg")
    (inside,) = finders.find_hands(hand, (150, 90, 255, 440))
    assert 150 < inside.keypoints[8, 0] < 300 and 90 < inside.keypoints[8, 1] < 250  # its fingertip
    assert finders.find_hands(hand, (0, 0, 40, 40)) == []


def fake_mediapipe(folder: Path, monkeypatch, source: str) -> None:
    """Put a package mediapipe with this source before all others."""
    (folder / "mediapipe").mkdir()
    (folder / "mediapipe" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "mediapipe", raising=False)


@pytest.mark.parametrize(("source", "reason"), [
    ("__version__ = '1.2.2'", "mediapipe 1.2.2 has no detectors"),  # has no `solutions`
    ("import a_missing_package", "mediapipe lacks a_missing_package"),
    ("raise ImportError('libGL.so.1: cannot open\\nshared object')", "import .libGL.so.1: cannot"),
    ("raise OSError('libEGL')", "does not import .libEGL"),
    ("raise AttributeError('_ARRAY_API not found')", "does not import ._ARRAY_API not found"),
])
def test_unusable_mediapipe_is_named_with_the_line_to_type(source, reason, tmp_path, monkeypatch):
    """New versions and broken installations say what is wrong and which version works."""
    fake_mediapipe(tmp_path, monkeypatch, source)
    image = np.zeros((8, 8, 3), np.uint8)
    for find in (finders.find_people, finders.find_hands):
        with pytest.raises(ImportError, match=f"{reason}.*: {INSTALL}$"):
            find(image)
    found = look_inside("person", image, Found())
    assert found.keypoints is None and found.source.startswith("no --keypoints, and mediapipe")
    with pytest.raises(ValueError, match="no --box, and mediapipe .* give the hand's place in pix"):
        finders.find("hand", image)
    monkeypatch.delitem(sys.modules, "mediapipe", raising=False)


def test_missing_mediapipe_is_named_with_the_line_to_type(monkeypatch):
    """Without mediapipe the message says so, and how to install it; the file names the version."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(ImportError, match=f"not installed: {INSTALL}"):
        finders.find_hands(np.zeros((8, 8, 3), np.uint8))
    lines = (ASSETS.parent / "requirements-optional.txt").read_text().splitlines()
    assert INSTALL.split()[-1] in [line.split(";")[0].split("#")[0].strip() for line in lines]


def fake_detector(monkeypatch, expected: tuple[int, ...], **result) -> None:
    """Put a detector in place of MediaPipe's, which sees `result` in pictures of one shape."""
    class Detector:
        def __init__(self, static_image_mode: bool, max_num_hands: int = 1,
                     enable_segmentation: bool = False) -> None:
            assert static_image_mode and enable_segmentation == ("pose_landmarks" in result)

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            pass

        def process(self, part: np.ndarray):
            assert part.shape == expected and part.flags.c_contiguous
            return SimpleNamespace(**result)

    monkeypatch.setattr(finders, "solution", lambda name, kind: Detector)


def marks(count: int, *points: tuple[float, float]):
    """Landmarks at fractions of a picture, the last point repeated."""
    rows = [*points, *[points[-1]] * (count - len(points))]
    return SimpleNamespace(landmark=[SimpleNamespace(x=x, y=y, visibility=0.75) for x, y in rows])


def test_people_are_in_pixels_of_the_picture(monkeypatch):
    """Fractions of the part in the box become pixels, of keypoints and mask; the box holds what
    is seen inside, and what is outside of the picture has no confidence."""
    image = np.zeros((60, 40, 3), np.uint8)
    mask = np.random.default_rng(0).uniform(size=(20, 10)).astype(np.float32)
    fake_detector(monkeypatch, (20, 10, 3), segmentation_mask=mask,
                  pose_landmarks=marks(33, (0.5, 0.25), (9, 0.5), (0.1, 0.75)))
    (person,) = finders.find_people(image, (7, 30, 10, 20))
    assert person.keypoints.shape == (45, 3)
    assert np.array_equal(person.keypoints[SMPL45.index("nose")], (7 + 5, 30 + 5, 0.75))
    assert (person.keypoints[:, 0] <= 40).all()
    assert person.box == (8, 35, 4, 10)  # without the point beyond the picture
    assert np.array_equal(person.mask[30:50, 7:17], mask) and person.mask.sum() == mask.sum()
    found = look_inside("person", image, Found((7, 30, 10, 20)))
    assert found.box == (7, 30, 10, 20) and found.source == "MediaPipe"
    assert np.array_equal(found.keypoints, person.keypoints)
    assert finders.find_people(image, (50, 70, 10, 20)) == []  # beside the picture


def test_hands_come_with_their_side(monkeypatch):
    """From left to right; MediaPipe takes pictures for mirrored, so its left is a right hand."""
    sides = [SimpleNamespace(classification=[SimpleNamespace(label=label)])
             for label in ("Left", "Right")]
    fake_detector(monkeypatch, (60, 40, 3), multi_handedness=sides, multi_hand_landmarks=[
        marks(21, (0.5, 0.5), (0.75, 1.0)), marks(21, (0.25, 0.5), (0.375, 1.0))])
    first, second = finders.find_hands(np.zeros((60, 40, 3), np.uint8))
    assert (first.side, first.box) == ("left", (10, 30, 5, 30))
    assert (second.side, second.box) == ("right", (20, 30, 10, 30))
    assert second.keypoints.shape == (21, 3) and (second.keypoints[:, 2] == 1).all()
    fake_detector(monkeypatch, (60, 40, 3), multi_handedness=None, multi_hand_landmarks=None)
    assert finders.find_hands(np.zeros((60, 40, 3), np.uint8)) == []


def test_the_hand_in_the_middle_of_a_box_is_meant(monkeypatch):
    """MediaPipe sees a larger part, for the hand's surroundings; hands beside the box are not
    meant, and the given side and box stay."""
    sides = [SimpleNamespace(classification=[SimpleNamespace(label="Left")])] * 3
    image = np.zeros((60, 40, 3), np.uint8)  # the part of the box is 30 x 15 px, from (5, 15) on
    fake_detector(monkeypatch, (15, 30, 3), multi_handedness=sides, multi_hand_landmarks=[
        marks(21, (x, 0.4), (x + 0.1, 0.6)) for x in (0.2, 0.5, 0.9)])
    first, second = finders.find_hands(image, (10, 17.5, 20, 10))
    assert np.allclose(first.box, (20, 21, 3, 3)) and np.allclose(second.box, (11, 21, 3, 3))
    found = look_inside("hand", image, Found((10, 17.5, 20, 10), "left"))
    assert found.side == "left" and found.box == (10, 17.5, 20, 10)
    assert np.array_equal(found.keypoints, first.keypoints)


def test_people_from_behind_have_their_left_on_the_left():
    """Shoulders and hips must agree, and be seen."""
    front, names = np.ones((45, 3)), ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
    for name, x in zip(names, (9, 1, 8, 2), strict=True):
        front[SMPL45.index(name), 0] = x
    back = front * (-1, 1, 1)
    twisted, hidden = back.copy(), back.copy()
    twisted[SMPL45.index("left_hip"), 0] = 9
    hidden[SMPL45.index("left_hip"), 2] = 0
    assert finders.from_behind(back)
    assert not any(map(finders.from_behind, (front, twisted, hidden, None)))


# ------------------------------------------------------------------------------------- files


def test_person_of_a_file_is_found(tmp_path):
    """The best-seen person of a file comes in the body's order; if nobody is seen, why."""
    rows = np.array([(10 + number, 10 + 2 * number, 0.5) for number in range(25)])
    people = [{"pose_keypoints_2d": rows.ravel().tolist()}, {"pose_keypoints_2d": [0] * 75}]
    path = tmp_path / "k.json"
    path.write_text(json.dumps({"people": people}))
    image = np.zeros((90, 120, 3), np.uint8)
    (found,) = finders.find("person", image, [], path)
    assert found.source == str(path) and found.box is None
    assert np.array_equal(found.keypoints, to_smpl45(rows))
    (cut,) = finders.find("person", image[:40], [], path)  # of a lower picture fewer are seen
    assert np.array_equal(cut.keypoints[:, 2] > 0, (found.keypoints[:, 2] > 0)
                          & (found.keypoints[:, 1] <= 40)) and 0 < (cut.keypoints[:, 2] > 0).sum()
    (found,) = finders.find("person", image, [Found((100, 0, 20, 20))], path)
    assert found.keypoints is None and found.source == f"{path} sees nobody in the box"
