"""commands/pictures.py: boxes, pictures and folders, warnings, and the files that are written."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import bodymodels
from commands import genhmr, hmr_adapter, pictures, simplehand
from commands.pictures import Result, Target

NUMBERS = st.floats(-1e6, 1e6)


@given(NUMBERS, NUMBERS, st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_box_is_read_back(x, y, width, height):
    """Four numbers with commas between them are the box, whatever the blanks."""
    text = f"{x!r}, {y!r},{width!r} ,{height!r}"
    assert pictures.parse_box(text) == Target((x, y, width, height))


@given(NUMBERS, NUMBERS)
def test_boxes_may_start_with_a_minus(x, y):
    """A box may begin outside of the picture; its numbers are no flag. Other flags stay flags."""
    box = f"{x!r},{y!r},9,9"
    read = simplehand.parser().parse_args
    words = ["a.png", "--box", box, "--left", "--box", "whole"]
    assert read(pictures.joined(words)).box == [box, "whole"]
    assert pictures.joined(["--box", "--left"]) == ["--box", "--left"]


def test_boxes_of_hands_may_name_the_side():
    """",left" may follow the numbers, of hands alone; "whole" is the whole picture."""
    assert pictures.parse_box("1,2,3,4,left", sides=True) == Target((1, 2, 3, 4), "left")
    assert pictures.parse_box("whole,left", sides=True) == Target(None, "left")
    assert pictures.parse_box("whole") == Target(None)
    with pytest.raises(ValueError, match="^--box '1,2,3,4,left'"):
        pictures.parse_box("1,2,3,4,left")


def test_folders_give_their_pictures(tmp_path):
    """Files that are pictures by their ending, by name; not others, and not our own results."""
    for name in ("b.JPG", "a.png", "notes.txt", "a_overlay.png", "b_1_turntable.gif"):
        (tmp_path / name).touch()
    other = tmp_path / "notes.txt"
    assert pictures.picture_files([tmp_path, other]) == [
        tmp_path / "a.png", tmp_path / "b.JPG", other]


def test_pictures_that_cannot_be_told_apart_are_refused(tmp_path):
    """No picture, an empty folder, and two pictures of one name: one message each."""
    with pytest.raises(ValueError, match="name a picture"):
        pictures.picture_files([])
    with pytest.raises(ValueError, match="has no pictures"):
        pictures.picture_files([tmp_path])
    with pytest.raises(ValueError, match="two pictures are called a"):
        pictures.picture_files([tmp_path / "a.png", tmp_path / "a.jpg"])


@pytest.mark.parametrize(("box", "warning"), [
    ((10, 10, 50, 60), ""), (None, ""), ((10, 10, 5, 20), "5 x 20 px, too small"),
    ((-60, 0, 100, 90), "40 % of the box is inside"), ((80, 0, 40, 90), "")])
def test_boxes_that_show_little_are_warned_of(box, warning):
    """Of a tiny box and of one that is mostly outside of the 120 x 90 picture."""
    notes = pictures.box_notes(box, (90, 120, 3))
    assert len(notes) == bool(warning) and warning in "".join(notes)


def test_a_mesh_beside_its_keypoints_is_warned_of():
    """The mean distance is compared with a part of the box."""
    found = np.zeros((4, 2))
    assert pictures.fit_note(found, found + (3, 4), 100, 0.05) == []
    note, = pictures.fit_note(found, found + (6, 8), 100, 0.05)
    assert note.startswith("warning") and "10 % of the box" in note


def test_unknown_devices_are_refused():
    """A device that the machine or torch does not have is one message that names the flag."""
    assert pictures.find_device("cpu").type == "cpu"
    for name in ("cpuu", "cuda:99", ""):
        with pytest.raises(ValueError, match="^--device"):
            pictures.find_device(name)


@pytest.mark.parametrize("text", ["", " ", ",", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,nan,4",
                                  "1,2,inf,4", "nan,0,1,1", "1,2,0,4", "1,2,3,-4", "1;2;3;4"])
def test_bad_box_is_refused(text):
    """Anything else is one message that names the flag."""
    with pytest.raises(ValueError, match="^--box .*expected"):
        pictures.parse_box(text)


@pytest.mark.parametrize("command", [simplehand, genhmr, hmr_adapter])
def test_help_has_groups_and_defaults(command):
    """All three share the same groups; a flag with a default shows it once, others show none."""
    text = " ".join(command.parser().format_help().split())
    assert all(f" {group}: " in text for group in ("model", "output", "instead"))
    assert "folder to write to (default: output)" in text
    assert "default: None" not in text and "default: False" not in text
    assert ") (default:" not in text


def test_folder_is_checked_before_the_work(tmp_path):
    """A folder, or a path below one, will do; a file, or a path below it, is refused."""
    file = tmp_path / "file"
    file.write_text("")
    pictures.check_folder(tmp_path)
    pictures.check_folder(tmp_path / "new" / "newer")
    assert not (tmp_path / "new").exists()
    for path in (file, file / "below"):
        with pytest.raises(ValueError, match="expected a folder"):
            pictures.check_folder(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0,
                    reason="root may write everywhere")
def test_folder_that_cannot_be_written_to_is_refused(tmp_path):
    """A folder without write permission is refused before the work."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ValueError, match="permission"):
            pictures.check_folder(tmp_path / "new")
    finally:
        tmp_path.chmod(0o700)


def a_result(shift: float = 0, **more) -> Result:
    hand = bodymodels.load_model("hand_right")
    vertices = hand.template.numpy().reshape(778, 3) + np.float32([shift, 0, 0.6])
    K = np.float32([[60, 0, 24], [0, 60, 16], [0, 0, 1]])
    arrays = {"vertices": vertices, "K": K, "side": np.array(1)}
    return Result(arrays, hand.faces.numpy(), vertices[0], **more)


def test_written_files_hold_the_prediction(tmp_path):
    """The .npz holds the arrays and faces, the meshes their vertices, y up, around the origin."""
    image, result = np.full((32, 48, 3), 200, np.uint8), a_result(extra={"sampling.png": b"bytes"})
    out = tmp_path / "new" / "folder"
    written = pictures.write_results(Path("some/photo.jpg"), out, image, [result])
    assert sorted(written) == sorted(out.iterdir())
    assert {path.name for path in written} == {
        "photo_overlay.png", "photo_sampling.png", "photo.npz", "photo.obj", "photo.ply",
        "photo.glb"}
    assert (out / "photo_sampling.png").read_bytes() == b"bytes"
    with np.load(out / "photo.npz") as arrays:
        assert set(arrays) == {"faces", *result.arrays}
        assert all(np.array_equal(arrays[name], value) for name, value in result.arrays.items())
    rows = [line.split()[1:4] for line in (out / "photo.obj").read_text().splitlines()
            if line.startswith("v ")]
    expected = (result.arrays["vertices"] - result.origin) * (1, -1, -1)
    assert np.allclose(np.array(rows, float), expected, atol=1e-7)


def test_several_results_share_one_overlay(tmp_path):
    """Each has its own numbered mesh files; a result that is nearer covers one behind it."""
    image, near, far = np.zeros((32, 48, 3), np.uint8), a_result(), a_result(0.03)
    far.arrays["vertices"][:, 2] += 0.2
    written = pictures.write_results(Path("a.png"), tmp_path, image, [near, far])
    assert {path.name for path in written} == {"a_overlay.png"} | {
        f"a_{number}.{ending}" for number in (1, 2) for ending in ("npz", "obj", "ply", "glb")}
    both = pictures.overlay(image, [near, far])
    assert np.array_equal(both, pictures.overlay(image, [far, near]))
    assert not np.array_equal(both, pictures.overlay(image, [near]))


def test_overlay_changes_the_picture_where_the_mesh_is():
    """Away from the mesh the overlay is the picture; the mesh covers a part of it."""
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    drawn = pictures.overlay(image, [a_result()])
    same = (np.rint(255 * drawn) == image).all(-1)
    assert 0.5 < same.mean() < 0.99


def test_overlays_of_huge_pictures_are_scaled_down(monkeypatch):
    """The longer side has at most LARGEST pixels, and the mesh stays where it is in the picture."""
    monkeypatch.setattr(pictures, "LARGEST", 24)
    image = np.zeros((32, 48, 3), np.uint8)
    small = pictures.overlay(image, [a_result()])
    monkeypatch.undo()
    whole = pictures.overlay(image, [a_result()]).reshape(16, 2, 24, 2, 3).mean((1, 3))
    assert small.shape == (16, 24, 3) and np.abs(small - whole).max() < 0.15


def test_turntable_is_an_animation_that_turns_once():
    """As many frames as asked for; the mesh is in every one, away from the border."""
    result = a_result()
    upright = result.arrays["vertices"] * (1, -1, -1)
    content = pictures.spin(upright, result.faces, side=32, frames=4)
    with Image.open(io.BytesIO(content)) as animation:
        assert (animation.n_frames, animation.size) == (4, (32, 32))
        frames = []
        for number in range(4):
            animation.seek(number)
            frames.append(np.array(animation.convert("L")) < 250)
    assert all(mask.any() and not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
               for mask in frames)
    assert abs(frames[0][:, ::-1].sum() - frames[2].sum()) < 15  # the back is the mirrored front


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_png_keeps_every_8_bit_value(height, width, seed):
    """An image of n / 255 is read back as n."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    with Image.open(io.BytesIO(pictures.png(image / 255))) as picture:
        assert np.array_equal(np.array(picture), image)
