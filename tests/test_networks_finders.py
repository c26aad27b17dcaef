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
import demo
from networks import finders
from networks.finders import Found, look_inside
from sets.images import read_keypoints, to_smpl45

ASSETS = Path(data.__file__).parent / "assets"
INSTALL = "pip install mediapipe==0.10.21"
SMPL45 = bodymodels.JOINT_SETS["smpl45"]


# ------------------------------------------------------------------------------------- boxes


def test_boxes_of_hands_may_name_the_side():
    """",left" may follow the numbers, of hands alone; "whole" is the whole picture; blanks do not
    matter."""
    assert finders.parse_box("-1.5, 2e1,3 ,4", "person") == Found((-1.5, 20, 3, 4))
    assert finders.parse_box("1,2,3,4,left", "hand") == Found((1, 2, 3, 4), "left")
    assert finders.parse_box("whole,left", "hand") == Found(None, "left")
    assert finders.parse_box(" 15, 9, 25, 44, left ", "hand") == Found((15, 9, 25, 44), "left")
    assert finders.parse_box("whole", "person") == Found(None)
    with pytest.raises(ValueError, match="^--box '1,2,3,4,left'.*'whole'$"):
        finders.parse_box("1,2,3,4,left", "person")
    with pytest.raises(ValueError, match="'whole', and ,left after them for a left hand$"):
        finders.parse_box("1,2,3,4;left", "hand")


@pytest.mark.parametrize("text", ["", " ", ",", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,nan,4",
                                  "1,2,inf,4", "nan,0,1,1", "1,2,0,4", "1,2,3,-4", "1;2;3;4",
                                  "1 2,3,4,5"])
def test_bad_box_is_refused(text):
    """Anything else is one message that names the flag."""
    with pytest.raises(ValueError, match="^--box .*expected"):
        finders.parse_box(text, "hand")


# --------------------------------------------------------------------------------- MediaPipe


def test_mediapipe_finds_the_astronaut():
    """The shipped file is what it sees; in a box it sees what that part alone would show it."""
    try:
        finders.solution("pose")
    except ImportError as error:
        pytest.skip(str(error))
    image = data.read_image(ASSETS / "astronaut.jpg")
    shipped = to_smpl45(read_keypoints(ASSETS / "astronaut_keypoints.json")[0])
    (whole,) = finders.find_people(image)
    seen = shipped[:, 2] > 0
    assert seen.sum() == 9 and np.allclose(whole.keypoints[seen], shipped[seen], atol=0.1)
    chest, sky = whole.mask[450, 220], whole.mask[100, 480]
    assert whole.mask.shape == image.shape[:2] and chest > 0.9 and sky < 0.1
    (boxed,) = finders.find_people(image, (10.5, 3.2, 390.3, 500.0))
    (alone,) = finders.find_people(image[3:504, 10:401])
    seen = alone.keypoints[:, 2] > 0
    assert np.allclose(boxed.keypoints[seen], (alone.keypoints + (10, 3, 0))[seen], atol=1e-6)
    nobody = np.zeros((64, 64, 3), np.uint8)
    assert finders.find_people(nobody) == finders.find_hands(nobody) == []
    hand = data.read_image(ASSETS / "hand_pointing.jpg")
    (inside,) = finders.find_hands(hand, (150, 90, 255, 440))
    assert 150 < inside.keypoints[8, 0] < 300 and 90 < inside.keypoints[8, 1] < 250  # its fingertip
    assert finders.find_hands(hand, (0, 0, 40, 40)) == []


@pytest.mark.parametrize(("source", "reason"), [
    ("__version__ = '1.2.2'", "no attribute 'solutions'"),
    ("import a_missing_package", "No module named 'a_missing_package'"),
    ("raise OSError('libGL.so.1: cannot open\\nshared object')", "libGL.so.1: cannot open"),
    (None, "halted|mediapipe")])
def test_unusable_mediapipe_is_named_with_the_line_to_type(source, reason, tmp_path, monkeypatch):
    """New versions, broken installations and none: the message says what is wrong, and which
    version works; the file of requirements has that version."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    if source:
        (tmp_path / "mediapipe").mkdir()
        (tmp_path / "mediapipe" / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        del sys.modules["mediapipe"]
    image = np.zeros((8, 8, 3), np.uint8)
    for find in (finders.find_people, finders.find_hands):
        with pytest.raises(ImportError, match=f"^MediaPipe cannot be used .*{reason}.*: {INSTALL}"):
            find(image)
    found = look_inside("person", image, Found())
    assert found.keypoints is None and found.source.startswith("MediaPipe cannot be used")
    assert found.unchecked == [f"not checked: {found.source}"] and not Found(keypoints=1).unchecked
    with pytest.raises(ValueError, match="no --box, and MediaPipe .* give the hand's place in pix"):
        finders.find("hand", image)
    assert INSTALL.split()[-1] in (ASSETS.parent / "requirements-optional.txt").read_text().split()


def fake_detector(monkeypatch, expected: tuple[int, ...], **result) -> None:
    """Put a detector in place of MediaPipe's, which sees `result` in pictures of one shape."""
    class Detector:
        def __init__(self, static_image_mode: bool, max_num_hands: int = 1,
                     enable_segmentation: bool = False) -> None:
            assert static_image_mode and enable_segmentation == ("pose_landmarks" in result)

        def process(self, part: np.ndarray):
            assert part.shape == expected and part.flags.c_contiguous
            return SimpleNamespace(**result)

    monkeypatch.setattr(finders, "solution", lambda name: Detector)


def marks(count: int, *points: tuple[float, float]):
    """Landmarks at fractions of a picture, the last point repeated."""
    rows = [*points, *[points[-1]] * (count - len(points))]
    return SimpleNamespace(landmark=[SimpleNamespace(x=x, y=y, visibility=0.75) for x, y in rows])


def sides_of(*labels: str, score: float = 0.9) -> list[SimpleNamespace]:
    return [SimpleNamespace(classification=[SimpleNamespace(label=label, score=score)])
            for label in labels]


def test_people_are_in_pixels_of_the_picture(monkeypatch):
    """Fractions of the part in the box become pixels, of keypoints and mask; the box holds what
    is seen inside, and what is outside of the picture has no confidence."""
    image = np.zeros((60, 40, 3), np.uint8)
    mask = np.random.default_rng(0).uniform(size=(20, 10)).astype(np.float32)
    fake_detector(monkeypatch, (20, 10, 3), segmentation_mask=mask,
                  pose_landmarks=marks(33, (0.5, 0.25), (9, 0.5), (0.1, 0.75)))
    (person,) = finders.find_people(image, (7, 30, 10, 20))
    assert np.array_equal(person.keypoints[SMPL45.index("nose")], (7 + 5, 30 + 5, 0.75))
    assert person.box == (8, 35, 4, 10)  # without the point beyond the picture
    assert np.allclose(person.whole, (8, 35, 89, 10))  # with it
    assert np.array_equal(person.mask[30:50, 7:17], mask) and person.mask.sum() == mask.sum()
    found = look_inside("person", image, Found((7, 30, 10, 20)))
    assert found.box == (7, 30, 10, 20) and found.whole is None and found.source == "MediaPipe"
    assert np.array_equal(found.keypoints, person.keypoints)
    assert finders.find_people(image, (50, 70, 10, 20)) == []  # beside the picture
    fake_detector(monkeypatch, (60, 40, 3), segmentation_mask=np.ones((60, 40)),
                  pose_landmarks=marks(33, (0.5, 0.25), (0.1, 0.75)))
    found = look_inside("person", image, Found())  # whole: no tiles, one look
    assert found.box is None and found.keypoints[SMPL45.index("nose"), 0] == 20


@pytest.mark.parametrize(("whole", "better", "box"), [
    (None, (0, 0), (0, 0, 9, 9)), ((0, 0, 9, 30), (0, 0, 9, 30), (0, 0, 9, 30)),
    ((0, 0, 9, 30), (0, 0, 9, 9), (0, 0, 9, 9))])
def test_a_person_cut_off_by_the_border_is_tried_in_two_boxes(whole, better, box):
    """The mesh that fits the given keypoints better is kept; others are tried once."""
    target, tried = person_at(10, 10)._replace(box=(0, 0, 9, 9), whole=whole), []

    def one(image, found, K):
        tried.append(found.box)
        shift = 0 if found.box == better else 3
        return demo.Result({"box": found.box}, None, [], target.keypoints[:, :2] + shift)

    image = np.zeros((20, 20, 3), np.uint8)
    result = demo.reconstruct_one(demo.Loaded(one, ""), image, target, None)
    assert result.arrays["box"] == box and len(tried) == 1 + (whole is not None)


def test_hands_come_with_their_side(monkeypatch):
    """From left to right; MediaPipe takes pictures for mirrored, so its left is a right hand."""
    fake_detector(monkeypatch, (60, 40, 3), multi_handedness=sides_of("Left", "Right"),
                  multi_hand_landmarks=[marks(21, (0.5, 0.5), (0.75, 1.0)),
                                        marks(21, (0.25, 0.5), (0.375, 1.0))])
    monkeypatch.setattr(finders, "find_people", lambda image: [])
    first, second = finders.find_hands(np.zeros((60, 40, 3), np.uint8))
    assert (first.side, first.box) == ("left", (10, 30, 5, 30))
    assert (second.side, second.box) == ("right", (20, 30, 10, 30))
    assert second.keypoints.shape == (21, 3) and (second.keypoints[:, 2] == 1).all()
    assert first.sure
    fake_detector(monkeypatch, (60, 40, 3), multi_handedness=sides_of("Left", score=0.7),
                  multi_hand_landmarks=[marks(21, (0.5, 0.5), (0.75, 1.0))])
    (unsure,) = finders.find_hands(np.zeros((60, 40, 3), np.uint8))
    assert not unsure.sure
    fake_detector(monkeypatch, (60, 40, 3), multi_handedness=None, multi_hand_landmarks=None)
    assert finders.find_hands(np.zeros((60, 40, 3), np.uint8)) == []


def test_the_hand_in_the_middle_of_a_box_is_meant(monkeypatch):
    """MediaPipe sees a larger part, for the hand's surroundings; hands beside the box are not
    meant, and the given side and box stay."""
    image = np.zeros((60, 40, 3), np.uint8)  # the part of the box is 30 x 15 px, from (5, 15) on
    fake_detector(monkeypatch, (15, 30, 3), multi_handedness=sides_of(*["Left"] * 3),
                  multi_hand_landmarks=[marks(21, (x, 0.4), (x + 0.1, 0.6))
                                        for x in (0.2, 0.5, 0.9)])
    first, second = finders.find_hands(image, (10, 17.5, 20, 10))
    assert np.allclose(first.box, (20, 21, 3, 3)) and np.allclose(second.box, (11, 21, 3, 3))
    found = look_inside("hand", image, Found((10, 17.5, 20, 10), "left"))
    assert found.side == "left" and found.box == (10, 17.5, 20, 10)
    assert np.array_equal(found.keypoints, first.keypoints)


def person_at(x: float, y: float, size: float = 20) -> Found:
    """A person with all keypoints on a circle."""
    angle = np.linspace(0, 2 * np.pi, 45, endpoint=False)
    points = size / 2 * np.stack((np.cos(angle), np.sin(angle)), 1) + (x, y)
    return Found((x - size / 2, y - size / 2, size, size), "right", rows(points))


def test_all_people_of_a_picture_are_found(monkeypatch):
    """MediaPipe sees one at a time: others are found in parts, once each, from left to right, and
    only if a look around them sees the same keypoints. Who has been found is hidden, so that people
    close to him are seen; keypoints inside of him, or few ones, are nobody."""
    def masked(x: float, y: float) -> Found:
        mask = np.zeros((100, 300), np.float32)
        mask[int(y) - 10:int(y) + 11, int(x) - 10:int(x) + 11] = 1
        return person_at(x, y)._replace(mask=mask)

    people = [masked(150, 50), masked(40, 60), masked(250, 30), masked(172, 50)]
    ghost, moved, few = masked(90, 20), masked(94, 20), masked(100, 70)
    rest = masked(155, 50)._replace(box=(151, 41, 20, 20))  # beside the first person's mask
    few.keypoints[5:, 2] = 0

    def see(image: np.ndarray, box: tuple) -> list[Found]:
        x, y, w, h = box
        inside = [one for one in [*people, rest, ghost, few]
                  if x <= one.box[0] and y <= one.box[1] and one.box[0] + 20 <= x + w
                  and one.box[1] + 20 <= y + h
                  and (image[int(one.box[1]) + 10, int(one.box[0]) + 10] == 0).all()]
        if not image[50, 150].any():  # the first person, who stands out beside the last
            inside = [one for one in inside if one is not people[3]]
        if w == 30:  # the second look
            inside = [moved if one is ghost else one for one in inside]
        return inside[:1]

    monkeypatch.setattr(finders, "see_person", see)
    image = np.zeros((100, 300, 3), np.uint8)
    found = finders.find_people(image)
    assert [one.box for one in found] == [people[number].box for number in (1, 0, 3, 2)]
    assert finders.find_people(image, (100, 0, 100, 100))[0] is people[0] and not image.any()


def test_a_part_of_a_person_is_nobody_new():
    """Seen by the face, although its box is small; others have their faces elsewhere. Of two boxes
    of one hand the smaller is mostly within the other."""
    person, part, other = person_at(50, 50, 60), person_at(60, 40), person_at(60, 40)
    part.keypoints[finders.FACE] = person.keypoints[finders.FACE]
    other.keypoints[finders.FACE] = person.keypoints[finders.FACE] + (20, 0, 0)
    assert not finders.is_new(part, [person]) and finders.is_new(other, [person])
    hand, fingers, beside = (Found(box, keypoints=np.zeros((21, 3))) for box in (
        (10, 10, 40, 40), (30, 5, 20, 20), (40, 10, 40, 40)))
    assert not finders.is_new(fingers, [hand]) and not finders.is_new(hand, [fingers])
    assert finders.is_new(beside, [hand])


@given(st.integers(1, 500), st.integers(1, 500))
def test_tiles_cover_the_picture(width, height):
    """Every point is in a tile of a quarter of the picture, none of which leaves it; the squares
    along a long picture overlap by half."""
    parts = np.array(list(finders.tiles(width, height)))
    assert (parts[:, :2] >= 0).all() and (parts[:, :2] + parts[:, 2:]).max(0)[0] <= width + 1e-6
    assert (parts[:, 1] + parts[:, 3]).max() <= height + 1e-6
    points = np.random.default_rng(0).uniform(0, 1, (50, 2)) * (width, height)
    inside = (points[:, None] >= parts[:, :2]) & (points[:, None] <= parts[:, :2] + parts[:, 2:])
    assert inside.all(2)[:, parts[:, 2] * parts[:, 3] <= width * height / 4 + 1e-6].any(1).all()
    steps = np.diff(parts[:-9, :2].sum(1))
    assert steps.max(initial=0) <= min(width, height) / 2 + 1e-6


def test_hands_are_at_the_knuckles(monkeypatch):
    """A body's wrist and knuckles give the box of a hand, the hand's detector a better one."""
    keypoints, names = np.zeros((33, 3)), bodymodels.JOINT_SETS["mediapipe33"]
    for name, x, y in (("wrist", 10, 50), ("index1", 20, 45), ("pinky1", 20, 55)):
        keypoints[names.index(f"right_{name}")] = x, y, 0.9
    boxes = finders.hand_boxes(keypoints)
    assert np.allclose(boxes[0], (20 - 8.5, 50 - 8.5, 17, 17)) and np.isnan(boxes[1]).all()
    person, image = Found((0, 0, 60, 90), hands=boxes), np.zeros((90, 120, 3), np.uint8)
    seen = [Found((12, 40, 15, 20), "left", np.ones((21, 3)))]
    monkeypatch.setattr(finders, "find_hands", lambda image, box=None: seen)
    right, left = finders.find_their_hands(image, person)
    assert right == seen[0]._replace(side="right") and left.keypoints is None
    monkeypatch.setattr(finders, "find_people", lambda image, box=None: [person])
    (found,) = finders.find("person", image, hands=True)
    assert np.array_equal(found.hands, [(12, 40, 15, 20), (np.nan,) * 4], equal_nan=True)
    seen.clear()
    (found,) = finders.find("person", image, hands=True)
    assert np.array_equal(found.hands, boxes, equal_nan=True)


# ---------------------------------------------------------------------------------- warnings


@pytest.mark.parametrize(("box", "warning"), [
    ((10, 10, 50, 60), ""), (None, ""), ((10, 10, 5, 20), "5 x 20 px, too small"),
    ((-60, 0, 100, 90), "40 % of the box"), ((80, 0, 40, 90), "")])
def test_boxes_that_show_little_are_warned_of(box, warning):
    """Of a tiny box and of one that is mostly outside of the 120 x 90 picture."""
    notes = finders.box_notes(box, (90, 120, 3))
    assert len(notes) == bool(warning) and warning in "".join(notes)


def rows(points: np.ndarray, confidence: float = 1.0) -> np.ndarray:
    return np.column_stack((points, np.full(len(points), confidence)))


@pytest.mark.parametrize(("given", "own", "warning"), [
    (None, None, ""), ((6, 8), None, "(file)"), ((3, 4), None, ""), (None, (6, 8), "of the net"),
    (None, (3, 4), ""), ((3, 4), (6, 8), ""), ((6, 8), (3, 4), "(file)")])
def test_a_mesh_beside_its_keypoints_is_warned_of(given, own, warning):
    """Given keypoints judge alone, the network's own only without them; a limit for each."""
    mesh = np.random.default_rng(0).uniform(0, 80, (45, 2))
    mesh[[0, 1]] = (0, 0), (80, 80)
    own = own and rows(mesh + own, 0.1)
    found = Found((0, 0, 64, 80), "right", given and rows(mesh + given), source="file")
    said = finders.warnings(found, (90, 120), mesh, own, (0.1, 0.09))
    assert len(said) == bool(warning) and warning in "".join(said)
    assert finders.warnings(found, (90, 120), mesh, own, (0.13, 0.13)) == []  # 10 of 80 px
    unsure = found._replace(keypoints=None if given is None else rows(mesh + given, 0.2))
    faint = None if own is None else own * (1, 1, 0)
    assert finders.warnings(unsure, (90, 120), mesh, faint, (0, 0)) == []
    nothing = np.full((45, 2), np.nan)  # joints that a mesh does not have
    assert finders.warnings(found, (90, 120), nothing, own, (0, 0)) == []


def test_the_limbs_judge_a_person():
    """Face and feet far off are no misfit, if limbs are seen; of a hand all keypoints count. The
    unit does not depend on the picture's scale."""
    mesh = np.random.default_rng(0).uniform(0, 80, (45, 2))
    limbs = np.array([name in finders.LIMBS for name in SMPL45])
    given_rows = rows(mesh + np.where(limbs, 0, 30)[:, None])
    assert limbs.sum() == 12 and finders.misfit(mesh, given_rows, 0.3) == 0
    assert finders.misfit(mesh[:21], given_rows[:21], 0.3) > 0.1
    given_rows[limbs, 2] = 0
    far = finders.misfit(mesh, given_rows, 0.3)
    assert far > 0.1 and finders.misfit(7 * mesh, given_rows * (7, 7, 1), 0.3) == pytest.approx(far)
    assert finders.misfit(mesh[:1], given_rows[:1], 0.3) is None


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
    (found,) = finders.find("person", image[:5, :5], [], path)
    assert found.source == f"{path} sees nobody in the picture"
