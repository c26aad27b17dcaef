"""sets/finders.py: hands and people as MediaPipe finds them, and versions that cannot."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import data
from sets import finders, keypoint_files

ASSETS = Path(data.__file__).parent / "assets"
INSTALL = "pip install mediapipe==0.10.21"


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
    shipped = keypoint_files.read_keypoints(ASSETS / "astronaut_keypoints.json")[0]
    shipped = keypoint_files.to_smpl45(shipped)
    (whole,) = finders.find_people(image)
    seen, placed = shipped[:, 2] > 0, keypoint_files.to_smpl45(whole.keypoints)
    assert seen.sum() == 9 and np.allclose(placed[seen], shipped[seen], atol=0.1)
    (boxed,) = finders.find_people(image, (10.5, 3.2, 390.3, 500.0))
    (alone,) = finders.find_people(image[3:504, 10:401])
    assert np.allclose(boxed.keypoints, alone.keypoints + (10, 3, 0), atol=1e-6)
    nobody = np.zeros((64, 64, 3), np.uint8)
    assert finders.find_people(nobody) == finders.find_hands(nobody) == []


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
    person, why = keypoint_files.find_person(image, None, None)
    assert person is None and why.startswith("no --keypoints, and mediapipe")
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
        def __init__(self, static_image_mode: bool, max_num_hands: int = 1) -> None:
            assert static_image_mode

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
    """Fractions of the part in the box become pixels; the box holds what is seen inside."""
    image = np.zeros((60, 40, 3), np.uint8)
    fake_detector(monkeypatch, (20, 10, 3),
                  pose_landmarks=marks(33, (0.5, 0.25), (9, 0.5), (0.1, 0.75)))
    (person,) = finders.find_people(image, (7, 30, 10, 20))
    assert person.keypoints.shape == (33, 3)
    assert np.array_equal(person.keypoints[0], (7 + 5, 30 + 5, 0.75))
    assert person.box == (8, 35, 4, 10)  # without the point beyond the picture
    placed, source = keypoint_files.find_person(image, (7, 30, 10, 20), None)
    assert placed.shape == (45, 3) and source == "MediaPipe"


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
