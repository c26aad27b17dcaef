"""Find picture files and read them as RGB arrays."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
OURS = ("_overlay", "_side")  # ends of the names of pictures that demo.py writes
STRIP = 2**22  # pixels that are converted at a time


def read_image(path: str | os.PathLike, *, upright: bool = True,
               part: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Read a picture file as (H, W, 3) uint8 RGB.

    Transparency is composited on white, 16-bit grey is scaled to 8 bits, palettes, grey and CMYK
    are converted to RGB, and an animation gives its first frame.

    upright: apply the EXIF orientation; False returns the pixels as they are stored.
    part: first byte and number of bytes of the picture inside an archive; 0 bytes: the whole file.
    Raises FileNotFoundError for a missing file and ValueError for a file that is not a picture.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no picture at {path}: check the path")
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the path of one picture")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): copy or download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice that is refused
            with Image.open(bytes_of(path, *part) if part[1] else path) as picture:
                picture.load()
                if upright:
                    ImageOps.exif_transpose(picture, in_place=True)
                return _to_array(picture)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large a picture ({error}): scale it down first") from error
    except Exception as error:  # decoders raise almost any error on damaged files
        raise ValueError(f"{path} cannot be read as a picture ({error}): "
                         "expected an undamaged JPEG, PNG or similar") from error


def picture_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the pictures and those in the folders, under different names for their results.

    Raises ValueError for no pictures and for videos alone.
    """
    files: dict[str, Path] = {}
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        videos = [file for file in inside if file.suffix.lower() in VIDEOS]
        pictures = [file for file in inside if file not in videos]
        if path.is_dir():  # with neither our own results nor macOS' ._photo.jpg
            pictures = [file for file in pictures if file.suffix.lower() in PICTURES
                        and not file.name.startswith(".") and not file.stem.endswith(OURS)]
        frames = videos and (f"{videos[0]} is a video: write its frames to a folder, as in mkdir "
                             f"frames; ffmpeg -i {videos[0]} frames/%05d.png")
        if not pictures:
            raise ValueError(frames or f"{path} has no pictures: expected files such as .jpg, .png")
        if videos:
            print(frames, file=sys.stderr)
        for file in pictures:  # the second of img.jpg and img.png writes img.png_overlay.png, ...
            names = (file.stem, file.name, f"{file.name}_{len(files) + 1}")
            files[next(name for name in names if name not in files)] = file
    if not files:
        raise ValueError("name a picture or a folder of pictures; --help tells what else")
    return files


def bytes_of(path: Path, start: int, count: int) -> io.BytesIO:
    """Return `count` bytes of a file, from byte `start` on."""
    with open(path, "rb") as file:
        file.seek(start)
        return io.BytesIO(file.read(count))


def _to_array(picture: Image.Image) -> np.ndarray:
    """Convert to (H, W, 3) uint8 strip by strip: copies of a huge picture would fill the memory."""
    width, height = picture.size
    image = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        strip = (0, top, width, min(top + rows, height))
        image[top:top + rows] = _to_rgb(picture.crop(strip) if height > rows else picture)
    return image


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # "I;16", "I;16B" and, for some 16-bit files, "I"
        grey = np.asarray(picture).astype(np.float64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its grey values do not fit 16 bits")
        return Image.fromarray(np.round(grey / 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("floating-point pictures have no defined white; save it with 8 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")
