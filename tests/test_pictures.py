"""sets/pictures.py: boxes given as text, and the files that the commands on a photograph write."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bodymodels
import data
from sets import pictures

NUMBERS = st.floats(-1e6, 1e6)


@given(NUMBERS, NUMBERS, st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_box_is_read_back(x, y, width, height):
    """Four numbers with commas between them are the box, whatever the blanks."""
    text = f"{x!r}, {y!r},{width!r} ,{height!r}"
    assert pictures.parse_box(text) == (x, y, width, height)


def test_no_box_is_none():
    """Without --box there is no box."""
    assert pictures.parse_box(None) is None


@pytest.mark.parametrize("text", ["", " ", ",", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,nan,4",
                                  "1,2,inf,4", "nan,0,1,1", "1,2,0,4", "1,2,3,-4", "1;2;3;4"])
def test_bad_box_is_refused(text):
    """Anything else is one message that names the flag."""
    with pytest.raises(ValueError, match="^--box .*expected"):
        pictures.parse_box(text)


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


def a_prediction() -> tuple[dict[str, np.ndarray], np.ndarray]:
    hand = bodymodels.load_model("hand_right")
    vertices = hand.template.numpy().reshape(778, 3) + np.float32([0, 0, 0.6])
    K = np.float32([[60, 0, 24], [0, 60, 16], [0, 0, 1]])
    return {"vertices": vertices, "K": K, "side": np.array(1)}, hand.faces.numpy()


def test_written_files_hold_the_prediction(tmp_path):
    """The .npz holds the arrays and faces, the meshes their vertices, y up, around the origin."""
    prediction, faces = a_prediction()
    image, origin = np.full((32, 48, 3), 200, np.uint8), prediction["vertices"][0]
    out = tmp_path / "new" / "folder"
    message = pictures.write_result("some/photo.jpg", out, image, prediction, faces, origin,
                                    {"sampling.png": b"bytes"})
    assert {path.name for path in out.iterdir()} == {
        "photo_overlay.png", "photo_sampling.png", "photo.npz", "photo.obj", "photo.ply",
        "photo.glb"}
    assert all(name in message for name in ("photo_overlay.png", "photo_sampling.png", ".glb"))
    assert (out / "photo_sampling.png").read_bytes() == b"bytes"
    with np.load(out / "photo.npz") as arrays:
        assert set(arrays) == {"faces", *prediction}
        assert all(np.array_equal(arrays[name], value) for name, value in prediction.items())
    rows = [line.split()[1:4] for line in (out / "photo.obj").read_text().splitlines()
            if line.startswith("v ")]
    expected = (prediction["vertices"] - origin) * (1, -1, -1)
    assert np.allclose(np.array(rows, float), expected, atol=1e-7)


def test_overlay_changes_the_picture_where_the_mesh_is(tmp_path):
    """Away from the mesh the overlay is the picture; the mesh covers a part of it."""
    prediction, faces = a_prediction()
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    pictures.write_result(Path("a.png"), tmp_path, image, prediction, faces, np.zeros(3))
    same = (data.read_image(tmp_path / "a_overlay.png") == image).all(-1)
    assert 0.5 < same.mean() < 0.99


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_png_keeps_every_8_bit_value(height, width, seed):
    """An image of n / 255 is read back as n."""
    import io

    from PIL import Image

    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    with Image.open(io.BytesIO(pictures.png(image / 255))) as picture:
        assert np.array_equal(np.array(picture), image)
