"""What the three commands on a photograph share: the box, and the files they write.

simplehand.py, genhmr.py and hmr_adapter.py read the picture with `data.read_image`, call their own
`predict`, and hand its arrays to `write_result`.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

import bodymodels

MESH_ENDINGS = ("obj", "ply", "glb")


def parse_box(text: str | None) -> tuple[float, float, float, float] | None:
    """Convert the text of --box, "x,y,width,height" in pixels, to numbers; None stays None.

    Raises ValueError for anything but four finite numbers with positive width and height.
    """
    if text is None:
        return None
    try:
        x, y, width, height = (float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"--box {text!r}: expected four numbers x,y,width,height in pixels, "
                         "as in --box 120,80,200,240") from None
    if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) <= 0:
        raise ValueError(f"--box {text!r}: expected finite numbers with a positive width and "
                         "height")
    return x, y, width, height


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


def write_result(picture: str | os.PathLike, out: str | os.PathLike, image: np.ndarray,
                 prediction: Mapping[str, np.ndarray], faces: np.ndarray, origin: np.ndarray,
                 extra: Mapping[str, bytes] | None = None) -> str:
    """Write the overlay, the arrays and the mesh of one prediction; return what was written.

    Args:
        picture: path of the picture; its name without the ending starts every file's name.
        out: folder to write to, created if missing.
        image: (H, W, 3) uint8 RGB, the background of the overlay.
        prediction: arrays of `predict`; needs vertices (V, 3), metres, OpenCV camera frame, and
            K (3, 3), pixels of the picture. All of them go into the .npz.
        faces: (F, 3), counter-clockwise seen from outside.
        origin: (3,) metres, the point of the camera frame that becomes the mesh files' origin.
        extra: more files, as "sampling.png": its bytes.

    Everything is computed before the first file is written, and each file is replaced as a whole.
    Raises OSError where the folder cannot be written to.
    """
    vertices = prediction["vertices"]
    rendered = bodymodels.render(vertices, faces, prediction["K"], image.shape[:2],
                                 background=image, supersample=2)
    files = {"overlay.png": png(rendered.image)} | dict(extra or {})
    arrays = io.BytesIO()
    np.savez_compressed(arrays, faces=faces, **prediction)
    upright = (vertices - origin) * (1, -1, -1)  # y up, as mesh viewers expect

    base = Path(out) / Path(picture).stem
    base.parent.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        bodymodels.write_atomically(f"{base}_{name}", content)
    bodymodels.write_atomically(f"{base}.npz", arrays.getvalue())
    for ending in MESH_ENDINGS:
        bodymodels.save_mesh(f"{base}.{ending}", upright, faces)
    names = [f"{base.name}_{name}" for name in list(files)[1:]]
    return ", ".join([f"wrote {base}_overlay.png", *names, ".npz", ".obj", ".ply and .glb"])


def png(image: np.ndarray) -> bytes:
    """Encode an image (H, W, 3) of floats 0..1 as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(np.uint8(np.rint(255 * np.clip(image, 0, 1)))).save(content, "PNG")
    return content.getvalue()
