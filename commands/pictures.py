"""What the three commands on photographs share: arguments, boxes, progress and files.

Each command builds its parser on `parser`, and gives `run` a function that reconstructs one hand or
person: from a picture and a Target to a Result.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import bodymodels
from sets import finders
from sets.images import read_image

MESH_ENDINGS = ("obj", "ply", "glb")
OURS = ("_overlay", "_sampling", "_turntable")  # ends of the names of pictures that we write
TINY = 32  # pixels, a shorter box is too small to see fingers or limbs (our choice)
OPACITY = 0.8  # of the mesh in the overlay (our choice)
LARGEST = 2000  # pixels, longer side of the overlay of a huge picture (our choice)
LOOK = ("look: .png in any viewer, .glb, .ply and .obj in Blender or MeshLab, .npz with numpy.load "
        "(arrays in metres and pixels)")


class Target(NamedTuple):
    """A hand or a person to reconstruct."""

    box: tuple[float, float, float, float] | None = None  # x, y, width, height in pixels;
    # None: the whole picture
    side: str = "right"  # of a hand
    keypoints: np.ndarray | None = None  # (J, 3) of MediaPipe: x, y in pixels, confidence


class Result(NamedTuple):
    """The mesh of one hand or person, and what to write and say about it."""

    arrays: Mapping[str, np.ndarray]  # of `predict`; needs vertices (V, 3), metres, OpenCV camera
    # frame, and K (3, 3), pixels of the picture
    faces: np.ndarray  # (F, 3), counter-clockwise seen from outside
    origin: np.ndarray  # (3,) metres, the point that becomes the mesh files' origin
    extra: Mapping[str, bytes] = {}  # more files, as "sampling.png": its bytes
    notes: Sequence[str] = ()  # lines to print


# --------------------------------------------------------------------------------- arguments


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        hidden = action.default is None or action.default is False
        return action.help if hidden else super()._get_help_string(action)


class Groups(NamedTuple):
    """The groups of a command's arguments, for its own ones."""

    found: argparse._ArgumentGroup  # what to reconstruct
    model: argparse._ArgumentGroup
    output: argparse._ArgumentGroup
    instead: argparse._ArgumentGroup  # what to do instead of reconstructing


def parser(name: str, subject: str, arrays: str, files: str = ""
           ) -> tuple[argparse.ArgumentParser, Groups]:
    """Return the parser of `python NAME.py PICTURE` with all shared arguments, and its groups.

    subject: "hand" or "person". arrays: what the .npz holds. files: what else is written.
    """
    result = argparse.ArgumentParser(
        prog=f"{name}.py", formatter_class=Formatter,
        description=f"Reconstruct the mesh of every {subject} in photographs.",
        epilog=f"Writes the meshes over the picture (_overlay.png){files}, each mesh (.obj, .ply, "
               f".glb: metres, y up) and {arrays} (.npz).")
    groups = Groups(*map(result.add_argument_group, (
        f"what to reconstruct: each {subject} that MediaPipe finds, or that a box gives", "model",
        "output", "instead")))
    result.set_defaults(program=result.prog)
    side = "[,left]" if subject == "hand" else ""
    groups.found.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE",
                              help="pictures, or folders of pictures")
    groups.found.add_argument(
        "--box", action="append", metavar=f"X,Y,W,H{side}", help=f"pixels around one {subject}: "
        "upper left corner, width, height; repeat it for more; 'whole' for the whole picture "
        "(default: found by MediaPipe)")
    groups.model.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                              help="where to compute: cpu, cuda, cuda:1, mps")
    groups.output.add_argument("--out", type=Path, default=Path("output"),
                               help="folder to write to")
    groups.output.add_argument("--turntable", action="store_true",
                               help="also write an animation of each turning mesh (_turntable.gif)")
    groups.instead.add_argument("--summary", action="store_true",
                                help="print the parameters of every preset, part by part")
    groups.instead.add_argument("--json", action="store_true", help="print the summary as JSON")
    return result, groups


def main(command: argparse.ArgumentParser, work: Callable[[argparse.Namespace], int],
         argv: Sequence[str] | None) -> int:
    """Run a command; return its exit code, 2 after one line about bad input."""
    arguments = command.parse_args(joined(sys.argv[1:] if argv is None else argv))
    try:
        return work(arguments)
    except (ValueError, OSError) as error:
        print(f"{command.prog}: {error}", file=sys.stderr)
        return 2


def joined(argv: Sequence[str]) -> list[str]:
    """Write `--box -5,10,50,60` as one word with "=": argparse takes the numbers for a flag."""
    words = []
    for word in argv:
        if words and words[-1] == "--box" and word[:1] == "-" and word[1:2] in set("0123456789."):
            word = f"{words.pop()}={word}"
        words.append(word)
    return words


def parse_box(text: str, sides: bool = False) -> Target:
    """Convert the text of --box, "x,y,width,height" in pixels or "whole", to a Target.

    sides: ",right" or ",left" may follow. Raises ValueError for anything but four finite numbers
    with positive width and height.
    """
    text, side = text.strip(), "right"
    if sides and text.endswith((",left", ",right")):
        text, _, side = text.rpartition(",")
    if text == "whole":
        return Target(None, side)
    try:
        x, y, width, height = (float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"--box {text!r}: expected four numbers x,y,width,height in pixels, "
                         "as in --box 120,80,200,240, or 'whole'") from None
    if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) <= 0:
        raise ValueError(f"--box {text!r}: expected finite numbers with a positive width and "
                         "height")
    return Target((x, y, width, height), side)


def picture_files(paths: Sequence[Path]) -> list[Path]:
    """Return the pictures themselves and those in the folders, by name, without our own results.

    Raises ValueError for no pictures, a missing file, and two pictures whose results would have
    the same name.
    """
    endings, files = Image.registered_extensions(), []
    for path in paths:
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in endings
                        and not file.stem.endswith(OURS)) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path} has no pictures: expected files such as .jpg and .png")
        files += inside
    if not files:
        raise ValueError("name a picture or a folder of pictures; --help tells what else")
    names = [file.stem for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two pictures are called {twice}: their results would have the same "
                         "name, rename one of them")
    return files


def check_folder(out: str | os.PathLike) -> None:
    """Raise ValueError unless `out` is, or can become, a folder that we may write to.

    Creates nothing, so that a command can call it before its work and leave no empty folder.
    """
    nearest = Path(out).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ValueError(f"--out {out}: {nearest} is a file, expected a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: no permission to write to {nearest}")


def find_device(name: str) -> torch.device:
    """Return the device of --device. Raises ValueError if this machine does not have it."""
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: {finders.short(error)}; expected cpu, or the name of a "
                         "device that this machine has") from error


def prepare(arguments: argparse.Namespace, subject: str) -> None:
    """Check and convert the shared arguments before any model is loaded."""
    arguments.box = [parse_box(text, subject == "hand") for text in arguments.box or ()]
    check_folder(arguments.out)
    arguments.pictures = picture_files(arguments.pictures)
    arguments.device = find_device(arguments.device)


def data_of(checkpoint: str | os.PathLike) -> str | None:
    """Return the name of the data that train.py wrote into a checkpoint; None for others' files."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return content.get("data", "unknown data") if "config" in content else None
    except Exception:  # the model is loaded elsewhere; only ours are sure to open like this
        return None


def trained_on(data: str | None) -> str:
    """Say what a checkpoint has seen that was not trained on rendered data."""
    return f"trained on {data}" if data else "weights of the authors, as they are"


# ------------------------------------------------------------------------------------- work


def run(arguments: argparse.Namespace, subject: str,
        reconstruct: Callable[[np.ndarray, Target, Path], Result], trained: str,
        find: Callable[[np.ndarray], list[Target]] | None = None) -> int:
    """Reconstruct all hands or people in all pictures, write the files; return the exit code.

    trained: one line about the checkpoint. find: in place of MediaPipe, where there is no --box.
    A picture that fails is reported on stderr, and the others go on; the exit code is then 2.
    """
    files, failed, written = arguments.pictures, 0, []
    for path in tqdm(files, unit="picture", disable=len(files) == 1):
        try:
            image = read_image(path)
            targets = targets_of(arguments, subject, image, find)
            results = [reconstruct(image, target, path) for target in targets]
            written += write_results(path, arguments.out, image, results, arguments.turntable)
        except (ValueError, OSError) as error:
            failed += 1
            told = "" if str(path) in str(error) or len(files) == 1 else f"{path}: "
            tqdm.write(f"{arguments.program}: {told}{error}", file=sys.stderr)
            continue
        for number, (target, result) in enumerate(zip(targets, results, strict=True), 1):
            start = f"{path.name}: " if len(files) > 1 else ""
            start += f"{subject} {number}: " if len(targets) > 1 else ""
            for note in (*box_notes(target.box, image.shape), *result.notes):
                tqdm.write(start + note)
    if written:
        print(trained)
        print(f"wrote {', '.join(map(str, written[:1]))}"
              + "".join(f", {file.name}" for file in written[1:8])
              + (f" and {len(written) - 8} more files" if len(written) > 8 else ""))
        print(LOOK)
    return 2 if failed else 0


def targets_of(arguments: argparse.Namespace, subject: str, image: np.ndarray,
               find: Callable[[np.ndarray], list[Target]] | None) -> list[Target]:
    """Return what --box names, or what is found. Raises ValueError if that is nothing."""
    if arguments.box:
        return arguments.box
    give = (f"give the {subject}'s place in pixels, --box X,Y,WIDTH,HEIGHT with X,Y its upper left "
            "corner, or --box whole for the whole picture")
    try:
        found = (find or (find_hands if subject == "hand" else find_people))(image)
    except ImportError as error:
        raise ValueError(f"no --box, and {error}; or {give}") from error
    if not found:
        raise ValueError(f"MediaPipe finds no {subject}: {give}")
    return found


def find_hands(image: np.ndarray) -> list[Target]:
    """Find hands by MediaPipe."""
    return [Target(*found) for found in finders.find_hands(image)]


def find_people(image: np.ndarray) -> list[Target]:
    """Find one person by MediaPipe."""
    return [Target(*found) for found in finders.find_people(image)]


def box_notes(box: Sequence[float] | None, shape: Sequence[int]) -> list[str]:
    """Warn of a box that is tiny, or mostly outside of a picture of (height, width)."""
    if box is None:
        return []
    x, y, width, height = box
    inside = np.minimum((x + width, y + height), shape[1::-1]) - np.maximum((x, y), 0)
    part, notes = inside.clip(0).prod() / (width * height), []
    if max(width, height) < TINY:
        notes.append(f"warning: the box is only {width:.0f} x {height:.0f} px, too small to show "
                     "a pose")
    if part < 0.5:
        notes.append(f"warning: only {100 * part:.0f} % of the box is inside the picture")
    return notes


def fit_note(found: np.ndarray, mesh: np.ndarray, extent: float, limit: float,
             what: str = "the network's own 2D keypoints") -> list[str]:
    """Warn if a mesh's projected keypoints (J, 2) lie far from 2D keypoints (J, 2), in pixels.

    limit: largest mean distance, as a part of `extent`, the side of the box.
    """
    distance = np.linalg.norm(found - mesh, axis=1).mean() / extent
    if distance <= limit:
        return []
    return [f"warning: the mesh does not fit {what}: they are {100 * distance:.0f} % of the box "
            "apart on average; do not trust this result"]


# ------------------------------------------------------------------------------------- files


def write_results(picture: Path, out: Path, image: np.ndarray, results: Sequence[Result],
                  turntable: bool = False) -> list[Path]:
    """Write the overlay of all results of a picture, and each one's mesh and arrays.

    The picture's name without its ending starts each file's name, followed by a number if there
    are several results. Everything is computed before the first file is written, and each file is
    replaced as a whole. Returns the files. Raises OSError where the folder cannot be written to.
    """
    contents = {"_overlay.png": png(overlay(image, results))}
    meshes = {}
    for number, result in enumerate(results, 1):
        start = f"_{number}" if len(results) > 1 else ""
        upright = (result.arrays["vertices"] - result.origin) * (1, -1, -1)  # y up, as viewers want
        for name, content in result.extra.items():
            contents[f"{start}_{name}"] = content
        if turntable:
            contents[f"{start}_turntable.gif"] = spin(upright, result.faces)
        arrays = io.BytesIO()
        np.savez_compressed(arrays, faces=result.faces, **result.arrays)
        contents[f"{start}.npz"] = arrays.getvalue()
        meshes |= {f"{start}.{ending}": (upright, result.faces) for ending in MESH_ENDINGS}
    base = Path(out) / picture.stem
    base.parent.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        bodymodels.write_atomically(f"{base}{name}", content)
    for name, (vertices, faces) in meshes.items():
        bodymodels.save_mesh(f"{base}{name}", vertices, faces)
    return [Path(f"{base}{name}") for name in (*contents, *meshes)]


def overlay(image: np.ndarray, results: Sequence[Result]) -> np.ndarray:
    """Draw meshes over a picture (H, W, 3) uint8, the far ones first -> floats 0..1.

    A huge picture is scaled down to LARGEST pixels.
    """
    scale = min(1.0, LARGEST / max(image.shape[:2]))
    if scale < 1:
        size = [max(round(scale * side), 1) for side in image.shape[1::-1]]
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    canvas = image.astype(np.float32) / 255
    for result in sorted(results, key=lambda one: -one.arrays["vertices"][:, 2].mean()):
        drawn = bodymodels.render(result.arrays["vertices"], result.faces,
                                  np.diag([scale, scale, 1]) @ result.arrays["K"],
                                  image.shape[:2], background=canvas, supersample=2).image
        canvas = OPACITY * drawn + (1 - OPACITY) * canvas
    return canvas


def spin(vertices: np.ndarray, faces: np.ndarray, *, side: int = 256, frames: int = 36) -> bytes:
    """Draw a mesh (V, 3), y up, that turns once about the vertical; a GIF of side x side px."""
    centered = (vertices - (vertices.min(0) + vertices.max(0)) / 2) * (1, -1, -1)
    radius = np.linalg.norm(centered, axis=1).max()
    K = np.array([[1.7 * side, 0, side / 2], [0, 1.7 * side, side / 2], [0, 0, 1]])
    pictures = []
    for angle in np.arange(frames) * 2 * np.pi / frames:
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0],
                         [-np.sin(angle), 0, np.cos(angle)]])
        placed = centered @ turn.T + (0, 0, 4 * radius)
        drawn = bodymodels.render(placed, faces, K, (side, side), supersample=2).image
        pictures.append(Image.fromarray(np.uint8(np.rint(255 * drawn))))
    content = io.BytesIO()
    pictures[0].save(content, "GIF", save_all=True, append_images=pictures[1:], duration=80, loop=0)
    return content.getvalue()


def png(image: np.ndarray) -> bytes:
    """Encode an image (H, W, 3) of floats 0..1 as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(np.uint8(np.rint(255 * np.clip(image, 0, 1)))).save(content, "PNG")
    return content.getvalue()
