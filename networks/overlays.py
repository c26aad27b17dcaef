"""Draw meshes over a picture and from the side, and write what demo.py writes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bodymodels import render, save_mesh, write_atomically

OPACITY = 0.8  # of meshes over the picture (our choice)
LARGEST = 2000  # pixels of the longer side of an overlay (our choice)

Mesh = tuple[dict[str, np.ndarray], np.ndarray]  # arrays with vertices and K, and the faces (F, 3)


def overlay(image: np.ndarray, meshes: Sequence[Mesh]) -> np.ndarray:
    """Draw meshes over a picture (H, W, 3) uint8, the far ones first -> floats 0..1.

    A mesh is far if a pixel covers much of it: meshes can have conventional focal lengths, each its
    own, so that their distances cannot be compared.

    A huge picture is scaled down to LARGEST pixels.
    """
    scale = min(1.0, LARGEST / max(image.shape[:2]))
    if scale < 1:
        size = [max(round(scale * side), 1) for side in image.shape[1::-1]]
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    canvas = image.astype(np.float32) / 255
    for arrays, faces in sorted(meshes, key=lambda mesh: (
            -mesh[0]["vertices"][:, 2].mean() / mesh[0]["K"][0, 0])):
        canvas = render(arrays["vertices"], faces, np.diag([scale, scale, 1]) @ arrays["K"],
                        image.shape[:2], opacity=OPACITY, background=canvas, supersample=2).image
    return canvas


def from_the_side(vertices: np.ndarray, faces: np.ndarray, side: int = 384) -> np.ndarray:
    """Draw a mesh as seen from the left of the picture, (side, side, 3) floats 0..1."""
    x, y, z = (vertices - (vertices.min(0) + vertices.max(0)) / 2).T
    distance = 4 * np.sqrt(x**2 + y**2 + z**2).max()
    K = np.array([[1.7 * side, 0, side / 2], [0, 1.7 * side, side / 2], [0, 0, 1]])
    return render(np.stack((-z, y, x + distance), 1), faces, K, (side, side), supersample=2).image


def png(image: np.ndarray) -> bytes:
    """Encode an image (H, W, 3) of floats 0..1 as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(np.uint8(np.rint(255 * np.clip(image, 0, 1)))).save(content, "PNG")
    return content.getvalue()


def write_results(base: Path, image: np.ndarray, meshes: Sequence[Mesh]) -> list[Path]:
    """Write the overlay and side view of all meshes of a picture, each one's mesh and arrays.

    base: start of the files' names; a number follows if there are several meshes.
    """
    sides = [from_the_side(arrays["vertices"], faces) for arrays, faces in meshes]
    contents = {"_overlay.png": png(overlay(image, meshes)),
                "_side.png": png(np.concatenate(sides, 1))}
    files = {}
    for number, (arrays, faces) in enumerate(meshes, 1):
        start, file = f"_{number}" if len(meshes) > 1 else "", io.BytesIO()
        np.savez_compressed(file, faces=faces, **arrays)
        contents[f"{start}.npz"] = file.getvalue()
        upright = (arrays["vertices"] - arrays.get("root", arrays["joints"][0])) * (1, -1, -1)
        files |= {f"{start}.{ending}": (upright, faces) for ending in ("obj", "glb")}
    for name, content in contents.items():
        write_atomically(f"{base}{name}", content)
    for name, mesh in files.items():
        save_mesh(f"{base}{name}", *mesh)
    return [Path(f"{base}{name}") for name in (*contents, *files)]
