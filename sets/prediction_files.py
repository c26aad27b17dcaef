"""Files of predicted and true hands: FreiHAND's JSON, and the lines that DexYCB's toolkit reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

import bodymodels

Points = TypeVar("Points", Tensor, np.ndarray)


def write_dexycb(path: str | Path, numbers: Sequence[int], joints: Points) -> None:
    """Write predictions for DexYCB's toolkit: a line for each sample, its number and 63 lengths.

    numbers: official numbers of the samples, `person` in DexYCB's records. joints (N, 21, 3):
    metres, in the camera's frame, left hands not mirrored. The file has millimetres.
    """
    millimetres = 1000 * _array(joints).astype(np.float64).reshape(len(numbers), 63)
    lines = (",".join([str(int(number)), *(f"{value:.4f}" for value in row)])
             for number, row in zip(numbers, millimetres, strict=True))
    bodymodels.write_atomically(path, ("\n".join(lines) + "\n").encode())


def read_predictions(path: str | Path, samples: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read joints (N, 21, 3) and vertices (N, 778, 3) from a pred.json in FreiHAND's layout.

    The file is a list of two, [xyz_list, verts_list], in metres, in the order of the data set.
    Raises ValueError if it is something else, or does not hold `samples` samples.
    """
    content = read_json(path)
    if not isinstance(content, list) or len(content) != 2:
        raise ValueError(f"{path}: expected a list of two, [xyz_list, verts_list]")
    joints, vertices = pair(content[0], content[1], f"{path}: ")
    if samples is not None and len(joints) != samples:
        raise ValueError(f"{path}: expected {samples} samples, got {len(joints)}")
    return joints.astype(np.float64), vertices.astype(np.float64)


def write_predictions(path: str | Path, joints: Points, vertices: Points) -> None:
    """Write joints (N, 21, 3) and vertices (N, 778, 3), in metres, as FreiHAND's pred.json.

    The file has enough digits to give back the same float32 or float64 numbers.
    """
    joints, vertices = (_array(points) for points in (joints, vertices))
    texts = []
    for points in pair(joints, vertices):
        digits = "%.9g" if points.dtype == np.float32 else "%.17g"
        row = "[" + ",".join([digits] * 3) + "]"
        sample = "[" + ",".join([row] * points.shape[1]) + "]"
        texts.append("[" + ",".join(sample % tuple(values.ravel()) for values in points) + "]")
    bodymodels.write_atomically(path, f"[{texts[0]},{texts[1]}]".encode())


def _array(points: Points) -> np.ndarray:
    """Points as float32 or float64."""
    points = points.numpy(force=True) if isinstance(points, Tensor) else points
    return points.astype(np.result_type(points, np.float32), copy=False)


def pair(joints: Sequence, vertices: Sequence, where: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Joints and vertices of a JSON file as arrays; ValueError, which begins with `where`."""
    joints = _samples(joints, 21, f"{where}joints")
    vertices = _samples(vertices, 778, f"{where}vertices")
    if len(joints) != len(vertices):
        raise ValueError(f"{where}expected joints and vertices of the same samples, "
                         f"got {len(joints)} and {len(vertices)}")
    return joints, vertices


def _samples(samples: Sequence, count: int, name: str) -> np.ndarray:
    """Samples as one array (N, count, 3). ValueError names the first that does not fit."""
    if not isinstance(samples, list | np.ndarray):
        raise ValueError(f"{name}: expected a list with one entry per sample, got {samples!r:.40}")
    arrays = [_sample(sample, count, f"{name}[{index}]") for index, sample in enumerate(samples)]
    return np.stack(arrays) if arrays else np.empty((0, count, 3))


def _sample(sample: Sequence, count: int, name: str) -> np.ndarray:
    try:
        values = np.array(sample)  # without a dtype, so that text is not converted to numbers
    except ValueError:  # lists of different lengths
        values = np.array(None)
    if values.shape != (count, 3) or values.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected {count} points of 3 numbers, got {sample!r:.60}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: not finite at point {np.argwhere(~np.isfinite(values))[0, 0]}")
    return values


def read_json(path: str | Path) -> object:
    """The content of a JSON file; ValueError for another file."""
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:  # no JSON, no text
        raise ValueError(f"{path} is not a JSON file: {error}") from None
