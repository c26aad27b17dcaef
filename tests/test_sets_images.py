"""Picture files, and files with keypoints."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bodymodels
import data
from sets import images
from sets.images import read_image

GRADIENT = np.dstack([np.tile(np.linspace(0, 255, 12), (8, 1)), np.full((8, 12), 90),
                      np.tile(np.linspace(255, 0, 8)[:, None], (1, 12))]).round().astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_read_image_converts_every_mode(tmp_path, mode):
    """Any colour mode becomes (H, W, 3) uint8 RGB with the colours of the first frame."""
    picture = Image.fromarray(GRADIENT).convert(mode)
    path = tmp_path / {"CMYK": "x.tif", "YCbCr": "x.tif", "P": "x.gif"}.get(mode, "x.png")
    more = {"save_all": True, "append_images": [Image.new("RGB", (12, 8))]} if mode == "P" else {}
    picture.save(path, **more)
    image = read_image(path)
    assert image.shape == (8, 12, 3) and image.dtype == np.uint8
    expected = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(image - expected).max() <= 2


def test_read_image_composites_transparency_on_white(tmp_path):
    """Half-transparent red becomes pink and full transparency white, also with a palette."""
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :2] = (255, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    image = read_image(tmp_path / "rgba.png")
    assert np.abs(image[0, 0].astype(int) - (255, 127, 127)).max() <= 1
    assert (image[:, 2:] == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 0, 0, 200])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert (read_image(tmp_path / "palette.png") == 255).all()


def test_pictures_of_more_than_8_bits_are_refused(tmp_path):
    """Pillow would clip them to white."""
    Image.fromarray(np.full((6, 8), 40_000, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="x.png cannot be .*8 bits per channel: save it with 8"):
        read_image(tmp_path / "x.png")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


def half_a_file(kind):
    buffer = io.BytesIO()
    NOISE.save(buffer, kind)
    return buffer.getvalue()[:len(buffer.getvalue()) // 2]


@pytest.mark.parametrize("content", [
    *map(half_a_file, ("jpeg", "png", "gif", "bmp", "webp", "tiff")), b"text, not a picture",
    b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\xff\xd8\xff" + bytes(range(64)), b"GIF89a", b"BM" * 9,
    b""])
def test_read_image_refuses_what_is_no_picture(tmp_path, content):
    """Half a file, in any format, or no picture is one ValueError that names it."""
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.jpg cannot be read as a picture"):
        read_image(tmp_path / "x.jpg")


def test_read_image_names_missing_files_folders_and_bombs(tmp_path):
    """A small file that claims a huge picture is refused before its pixels are made."""
    bomb = tmp_path / "bomb.bmp"
    Image.new("RGB", (1, 1)).save(bomb)
    content = bomb.read_bytes()
    bomb.write_bytes(content[:18] + struct.pack("<ii", 40_000, 40_000) + content[26:])
    with pytest.raises(ValueError, match="bomb.bmp cannot be read as a picture .*exceeds limit"):
        read_image(bomb)
    for path in (tmp_path, tmp_path / "missing.png"):
        with pytest.raises(FileNotFoundError, match=f"no picture at {path}"):
            read_image(path)


def test_pictures_of_a_folder_are_in_the_order_of_their_numbers(tmp_path):
    """As frames are. Only our own results are left out, which end in .png."""
    for name in ("10.png", "2.png", "1.png", "a2_10.jpg", "a2_9.jpg", "01.png", "my_side.jpg",
                 "my_overlay.jpg", "1_side.png", "1_overlay.png", "notes.txt"):
        (tmp_path / name).touch()
    found = images.picture_files([tmp_path])
    assert list(found) == ["01", "1", "2", "10", "a2_9", "a2_10", "my_overlay", "my_side"]


@pytest.mark.parametrize(("text", "reason"), [
    ("", r"not \[\]"), ("1 2 3\n4 5 6", "not"), ("1 2 3\n4 5\n6 7 8", "inhomogeneous"),
    ("1 0 a\n0 1 0\n0 0 1", "'a'"), ("0 0 1\n0 1 1\n0 0 1", "not"),
    ("1 0 nan\n0 1 0\n0 0 1", "nan")])
def test_bad_cameras_are_named(text, reason, tmp_path):
    """One ValueError with the flag, the file and what is wrong."""
    path = tmp_path / "K.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^--K {path}: expected .* 3 x 3 numbers.*{reason}"):
        images.read_camera(path)


SMPL45 = bodymodels.JOINT_SETS["smpl45"]


@pytest.mark.parametrize(("count", "name"), images.KEYPOINT_SETS.items())
def test_convention_keypoints_go_to_joints_of_their_name(count, name):
    """Every joint that detector and body share arrives, everything else is zero; as in readers."""
    names = bodymodels.JOINT_SETS[name]
    assert len(names) == count
    rows = np.arange(1.0, 3 * count + 1).reshape(count, 3)
    result = images.to_smpl45(rows)
    np.testing.assert_array_equal(data.relabelled(rows, name, "smpl45"), result)
    shared = set(names) & set(SMPL45)
    assert len(shared) >= 16 and {"nose", "left_wrist", "right_knee"} <= shared
    for joint, row in zip(SMPL45, result, strict=True):
        assert np.array_equal(row, rows[names.index(joint)] if joint in shared else np.zeros(3))


def flat(count: int, offset: float = 10.0) -> list[float]:
    """x, y, confidence of `count` keypoints."""
    rows = [(offset + index, offset + 2 * index, 0.5) for index in range(count)]
    return [number for row in rows for number in row]


def save(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("people", [[25], [18, 18], [33], [17]])
def test_openposes_layout_is_read(people, tmp_path):
    """The people in order, numbers as they are in the file; people without a body do not count."""
    content = {"version": 1.3, "people": [{"face_keypoints_2d": []}, *(
        {"pose_keypoints_2d": flat(count)} for count in people)]}
    found = images.read_keypoints(save(tmp_path / "k.json", content))
    assert [len(person) for person in found] == people
    assert all(np.array_equal(person.ravel(), flat(len(person))) for person in found)


def test_detections_of_a_data_set_lie_as_its_pictures_do(tmp_path):
    """OpenPose's file of a/b.jpg is a/b_keypoints.json; who is in the box counts, or nobody."""
    (tmp_path / "P0/images").mkdir(parents=True)
    here, there = flat(25), flat(25, 200.0)
    for number, people in ((3, [there, here]), (4, [there]), (5, [])):
        save(tmp_path / f"P0/images/0000{number}_keypoints.json", {
            "people": [{"pose_keypoints_2d": numbers} for numbers in people]})

    def found(number):
        return images.detected_person(tmp_path, f"P0/images/0000{number}.jpg",
                                              (0, 0, 100, 100), (400, 400))

    assert np.array_equal(found(3), images.to_smpl45(np.reshape(here, (25, 3))))
    assert not found(4).any() and not found(5).any()
    with pytest.raises(FileNotFoundError, match="no keypoints .*P0/images/00006_keypoints.json"):
        found(6)


BAD_FILES = {
    "broken": ('{"people": [', "not OpenPose's JSON"),
    "number": (3, "not OpenPose's JSON"),
    "people is a number": ({"people": 3}, "not OpenPose's JSON"),
    "nobody": ({"people": []}, "no people"),
    "hands only": ({"people": [{"hand_left_keypoints_2d": flat(21)}]}, "no people"),
    "21 keypoints": ({"people": [{"pose_keypoints_2d": flat(21)}]}, "63 numbers.*17"),
    "null": ({"people": [{"pose_keypoints_2d": [None] * 75}]}, "not finite"),
    "fractions": ({"people": [{"pose_keypoints_2d": [0.4, 0.5, 1.0] * 25}]}, "expected pixels"),
    "NaN": ('{"people": [{"pose_keypoints_2d": [NaN, 5, 1' + ", 0" * 72 + "]}]}", "not finite"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_keypoint_files_are_named(case, tmp_path):
    """One ValueError that says what was expected, whatever the JSON."""
    content, message = BAD_FILES[case]
    with pytest.raises(ValueError, match=message):
        images.read_keypoints(save(tmp_path / "k.json", content))


def test_the_person_who_is_seen_best_is_taken():
    """In the box, if one is given; confidence outside of it does not count."""
    def person(x: float, confidence: float) -> np.ndarray:
        return np.tile([x, 50.0, confidence], (17, 1))

    unsure, sure = person(20, 0.5), person(90, 0.9)
    assert images.choose_person([unsure, sure], None, 120, 90) is sure
    assert images.choose_person([unsure, sure], (0, 0, 40, 90), 120, 90) is unsure
    assert images.choose_person([person(500, 1.0), unsure], None, 120, 90) is unsure
    assert images.choose_person([unsure, sure], (40, 0, 40, 90), 120, 90) is None
