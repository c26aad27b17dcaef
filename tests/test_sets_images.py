"""Picture files: modes, orientation, damage."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sets.images import picture_files, read_image

GRADIENT = np.dstack([np.tile(np.linspace(0, 255, 12), (8, 1)), np.full((8, 12), 90),
                      np.tile(np.linspace(255, 0, 8)[:, None], (1, 12))]).round().astype(np.uint8)


def write_png(path, size, bits, color, pixels):
    """A PNG written by hand: (width, height), bits, colour type, bytes before compression."""
    header = struct.pack(">IIBBBBB", *size, bits, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(content)) + kind + content
                    + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_read_image_converts_every_mode(tmp_path, mode):
    """Any colour mode becomes (H, W, 3) uint8 RGB with the colours the picture shows."""
    picture = Image.fromarray(GRADIENT).convert(mode)
    path = tmp_path / {"CMYK": "x.tif", "YCbCr": "x.tif"}.get(mode, "x.png")
    picture.save(path)
    image = read_image(path)
    assert image.shape == (8, 12, 3) and image.dtype == np.uint8
    expected = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(image - expected).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "I;16"])
def test_strips_of_a_huge_picture_are_the_whole(tmp_path, monkeypatch, mode):
    """Whatever the mode and the orientation, also where the last strip is shorter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12) * 600)
    picture = grey if mode == "I;16" else Image.fromarray(GRADIENT).convert(mode)
    picture.save(tmp_path / "x.png", exif=exif)
    whole = read_image(tmp_path / "x.png")
    assert whole.shape == (12, 8, 3)
    for pixels in (1, 20, 50):
        monkeypatch.setattr("sets.images.STRIP", pixels)
        np.testing.assert_array_equal(read_image(tmp_path / "x.png"), whole)


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


def test_read_image_scales_sixteen_bits(tmp_path):
    """16-bit grey spans 0..255 by value / 257, and is not clipped at 255."""
    values = np.linspace(0, 65535, 48).round().astype(np.uint16).reshape(6, 8)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    write_png(tmp_path / "x.png", (8, 6), 16, 0, rows)
    image = read_image(tmp_path / "x.png")
    np.testing.assert_array_equal(image, np.repeat((values / 257).round()[..., None], 3, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image_applies_exif_orientation(tmp_path, orientation):
    """All eight orientations of the same picture come out upright."""
    stored = {1: GRADIENT, 2: GRADIENT[:, ::-1], 3: GRADIENT[::-1, ::-1], 4: GRADIENT[::-1],
              5: GRADIENT.transpose(1, 0, 2), 6: np.rot90(GRADIENT),
              7: GRADIENT[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(GRADIENT, -1)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), GRADIENT)


def test_read_image_takes_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (5, 5), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "x.gif")[2, 2] == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "bmp", "webp", "tif"])
def test_read_image_refuses_truncated_files(tmp_path, kind):
    """Half a file is one ValueError that names it, in any format."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"x.{kind}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"x\.{kind} cannot be read as a picture"):
        read_image(path)


@pytest.mark.parametrize("content", [b"text, not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
                                     b"\xff\xd8\xff" + bytes(range(64)), b"GIF89a", b"BM" * 9])
def test_read_image_refuses_what_is_no_picture(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        read_image(tmp_path / "x.jpg")


def test_read_image_names_missing_empty_and_folder(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match="empty.png is empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(ValueError, match="is not a file"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match="no picture at .*missing.png"):
        read_image(tmp_path / "missing.png")


def test_read_image_refuses_decompression_bombs(tmp_path):
    """A small file that claims a huge picture is refused before its pixels are made."""
    write_png(tmp_path / "bomb.png", (40_000, 40_000), 8, 2, b"")
    with pytest.raises(ValueError, match="too large a picture"):
        read_image(tmp_path / "bomb.png")


@given(st.integers(0, 2**32 - 1))
def test_read_image_survives_mutated_files(tmp_path_factory, seed):
    """A damaged picture gives pixels or one ValueError, never another error."""
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.getbasetemp() / f"mutated.{('png', 'jpg', 'gif', 'tif')[seed % 4]}"
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    for position in rng.integers(len(content), size=5):
        content[position] = rng.integers(256)
    path.write_bytes(content)
    try:
        assert read_image(path).dtype == np.uint8
    except ValueError as error:
        assert path.name in str(error)


def test_folders_give_their_pictures(tmp_path):
    """Files that are pictures by their ending, by name; not others, not hidden ones, as macOS
    writes them, and not our own results. What is named itself is taken whatever its ending."""
    for name in ("b.JPG", "a.png", "notes.txt", "._a.png", "a_overlay.png", "b_1_side.png"):
        (tmp_path / name).touch()
    other = tmp_path / "notes.txt"
    assert list(picture_files([tmp_path, other]).items()) == [
        ("a", tmp_path / "a.png"), ("b", tmp_path / "b.JPG"), ("notes", other)]


@given(st.lists(st.sampled_from(["a.jpg", "a.png", "x/a.png", "x/a.jpg", "b.png", "y/a.png"]),
                min_size=1, max_size=8))
def test_pictures_of_one_name_have_different_results(names):
    """Each picture has a name of its own, and a picture alone its own without ending."""
    paths = [Path(name) for name in names]
    found = picture_files(paths)
    assert list(found.values()) == paths
    assert all(path.stem in name for name, path in found.items())
    assert list(picture_files(paths[:1])) == [paths[0].stem]


def test_missing_pictures_and_videos_are_named(tmp_path, capsys):
    """No picture, an empty folder and a video: one message each, the last with the command that
    writes its frames. Pictures beside a video are taken."""
    with pytest.raises(ValueError, match="name a picture"):
        picture_files([])
    with pytest.raises(ValueError, match="has no pictures"):
        picture_files([tmp_path])
    video = tmp_path / "clip.MP4"
    video.touch()
    for path in (video, tmp_path):
        with pytest.raises(ValueError, match=r"ffmpeg -i .*clip.MP4 frames/%05d.png"):
            picture_files([path])
    (tmp_path / "a.png").touch()
    assert list(picture_files([tmp_path])) == ["a"] and "ffmpeg" in capsys.readouterr().err
