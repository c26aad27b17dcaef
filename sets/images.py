"""Read picture files, their cameras, and OpenPose's files with the 2D keypoints of people."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bodymodels import JOINT_SETS

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
OURS = ("_overlay.png", "_side.png")  # ends of the names of pictures that demo.py writes


def size_of(path: Path) -> tuple[int, int] | None:
    """Return a picture's width and height, as stored; None if it cannot be opened."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except Exception:  # damaged files raise half a dozen types
        return None


def read_image(path: str | os.PathLike, *, upright: bool = True,
               part: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Read a picture file as (H, W, 3) uint8 RGB.

    Transparency is composited on white, palettes, grey and CMYK are converted to RGB, and an
    animation gives its first frame. Channels of more than 8 bits are refused.

    upright: apply the EXIF orientation; False returns the pixels as they are stored.
    part: first byte and number of bytes of the picture inside an archive; 0 bytes: the whole file.
    Raises FileNotFoundError for a missing file and ValueError for a file that is not a picture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no picture at {path}: check the path")
    try:
        with Image.open(bytes_of(path, *part) if part[1] else path) as picture:
            if upright:
                ImageOps.exif_transpose(picture, in_place=True)
            if picture.mode[0] in "IF":
                raise ValueError("more than 8 bits per channel: save it with 8")
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            return np.array(picture.convert("RGB"))
    except Exception as error:  # decoders raise almost any error on damaged and on huge files
        raise ValueError(f"{path} cannot be read as a picture ({error}): "
                         "expected an undamaged JPEG, PNG or similar") from error


def picture_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the pictures and those in the folders, under different names for their results.

    Those in a folder are in the order of the numbers in their names: 2.png before 10.png. Raises
    ValueError for no pictures and for videos.
    """
    def order(path: Path) -> tuple[list[str | int], str]:
        parts = re.split(r"([0-9]+)", path.name)  # every second one is a number
        return [int(part) if odd % 2 else part for odd, part in enumerate(parts)], path.name

    files: dict[str, Path] = {}
    for path in paths:
        if path.suffix.lower() in VIDEOS:
            raise ValueError(f"{path} is a video: write its frames to a folder, as in mkdir "
                             f"frames; ffmpeg -i {path} frames/%05d.png")
        pictures = [path]
        if path.is_dir():  # with neither our own results nor macOS' ._photo.jpg
            pictures = [file for file in sorted(path.iterdir(), key=order)
                        if file.suffix.lower() in PICTURES
                        and not file.name.startswith(".") and not file.name.endswith(OURS)]
        if not pictures:
            raise ValueError(f"{path} has no pictures: expected files such as .jpg, .png")
        for file in pictures:  # the second of img.jpg and img.png writes img.png_overlay.png, ...
            names = (file.stem, file.name, f"{file.name}_{len(files) + 1}")
            files[next(name for name in names if name not in files)] = file
    if not files:
        raise ValueError("name a picture or a folder of pictures; --help tells what else")
    return files


def read_camera(path: str | PathLike) -> np.ndarray:
    """Read the 3 x 3 intrinsics of a camera from a text file; commas may be between the numbers.

    Raises ValueError that names the flag --K, for missing files too.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").replace(",", " ").splitlines()
        K = np.array([row for line in lines if (row := line.split("#")[0].split())], np.float64)
        if K.shape != (3, 3) or not np.isfinite(K).all() or min(K[0, 0], K[1, 1]) <= 0:
            raise ValueError(f"not {K.tolist()}")
    except (ValueError, OSError) as error:
        raise ValueError(f"--K {path}: expected a text file of 3 x 3 numbers, the intrinsics in "
                         f"pixels ({str(error)[:100]})") from error
    return K


def camera_of(image: np.ndarray, K: np.ndarray | None, focal: float | None, video: bool
              ) -> np.ndarray | None:
    """Return the intrinsics (3, 3) of a picture (H, W, 3): K, or of a focal length; or None.

    A video needs one camera: by default its focal length is a frame's diagonal.
    """
    if K is not None or focal is None and not video:
        return K
    height, width = image.shape[:2]
    f = focal or math.hypot(width, height)
    return np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]])


def bytes_of(path: Path, start: int, count: int) -> io.BytesIO:
    """Return `count` bytes of a file, from byte `start` on."""
    with open(path, "rb") as file:
        file.seek(start)
        return io.BytesIO(file.read(count))


LEAST_CONFIDENCE = 0.3  # of a keypoint that counts as seen, as in genhmr.py
KEYPOINT_SETS = {17: "coco17", 18: "openpose18", 25: "openpose25", 33: "mediapipe33"}


def detected_person(folder: Path, picture: str, box: Sequence[float] | None,
                    size: tuple[int, int]) -> np.ndarray:
    """Return the keypoints (45, 3) that OpenPose found of a person in a picture of a data set.

    folder: has OpenPose's files in the layout of the pictures, a/b_keypoints.json for a/b.jpg.
    box, size: see choose_person. If nobody is there, all are 0. Raises as read_keypoints.
    """
    path = folder / Path(picture).with_name(f"{Path(picture).stem}_keypoints.json")
    person = choose_person(read_keypoints(path, nobody=True), box, *size)
    return np.zeros((45, 3)) if person is None else to_smpl45(person)


def read_keypoints(path: str | PathLike, *, nobody: bool = False) -> list[np.ndarray]:
    """Read the people of OpenPose's JSON, {"people": [{"pose_keypoints_2d": [...]}]}.

    Each is (J, 3): x, y in pixels, confidence in 0..1. nobody: a file without people is no error.
    Raises FileNotFoundError, or ValueError for other contents, for no people, and for numbers of
    keypoints other than COCO's 17, OpenPose's 18 or 25 and MediaPipe's 33.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no keypoints {path}: expected OpenPose's JSON")
    try:
        people = json.loads(Path(path).read_bytes())["people"]
        rows = [np.array(person["pose_keypoints_2d"], np.float64) for person in people
                if "pose_keypoints_2d" in person]
    except (ValueError, RecursionError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{path} is not OpenPose's JSON of people ({str(error)[:80]})") from error
    if not rows and not (nobody and people == []):
        raise ValueError(f"{path} has no people with body keypoints")
    for index, row in enumerate(rows):
        if row.shape not in [(3 * count,) for count in KEYPOINT_SETS]:
            expected = ", ".join(f"{count} ({name})" for count, name in KEYPOINT_SETS.items())
            raise ValueError(f"person {index} of {path} has {row.size} numbers: expected x, y and "
                             f"confidence of {expected} keypoints")
        if not np.isfinite(row).all() or np.abs(row).max() <= 2 and row.any():
            raise ValueError(f"person {index} of {path} has numbers that are not finite, or "
                             "fractions of the picture: expected pixels")
        row[2::3] = row[2::3].clip(0, 1)
    return [row.reshape(-1, 3) for row in rows]


def to_smpl45(keypoints: np.ndarray) -> np.ndarray:
    """Reorder keypoints (J, 3) of COCO, OpenPose or MediaPipe as the body's (45, 3)."""
    rows = dict(zip(JOINT_SETS[KEYPOINT_SETS[len(keypoints)]], keypoints, strict=True))
    return np.array([rows.get(name, (0, 0, 0)) for name in JOINT_SETS["smpl45"]], np.float64)


def choose_person(people: Sequence[np.ndarray], box: Sequence[float] | None,
                  width: int, height: int) -> np.ndarray | None:
    """Return the person (J, 3) with the largest sum of confidence in the box and the picture.

    None if nobody has a keypoint there with at least LEAST_CONFIDENCE.
    """
    x, y, w, h = (0, 0, width, height) if box is None else box
    low, high = np.maximum((x, y), 0), np.minimum((x + w, y + h), (width, height))

    def score(person: np.ndarray) -> float:
        inside = ((person[:, :2] >= low) & (person[:, :2] <= high)).all(1)
        return person[inside & (person[:, 2] >= LEAST_CONFIDENCE), 2].sum()

    best = max(people, key=score, default=None)
    return None if best is None or score(best) == 0 else best
