"""Vertices of mesh files that data sets come with."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np


def load_vertices(path: str | Path) -> np.ndarray:
    """Vertices (V, 3) float32 of an OBJ file, or of a PLY that is binary, little endian.

    Of a PLY the first element must be vertices whose first properties are x, y and z as floats.
    ValueError for anything else.
    """
    data = Path(path).read_bytes()
    if Path(path).suffix.lower() == ".obj":
        rows = [line.split()[1:4] for line in data.decode().splitlines() if line[:2] == "v "]
        if not rows or any(len(row) < 3 for row in rows):
            raise ValueError(f"{path} has no vertices of three numbers")
        return np.array(rows, np.float32)
    header, _, body = data.partition(b"end_header\n")
    found = re.search(rb"^ply\s+format binary_little_endian 1\.0\s(?:(?!element).)*"
                      rb"element vertex (\d+)\s+((?:property \w+ \w+\s+)+)", header, re.DOTALL)
    _, kinds, names = np.reshape(found[2].decode().split(), (-1, 3)).T if found else ((), (), ())
    sizes = {"float": 4, "float32": 4, "uchar": 1, "uint8": 1, "double": 8, "int": 4}
    if [*names[:3]] != [*"xyz"] or not {*kinds[:3]} <= {"float", "float32"} or {*kinds} - {*sizes}:
        raise ValueError(f"{path} is no binary little-endian PLY of vertices with x, y, z as float")
    stride, count = sum(sizes[kind] for kind in kinds), int(found[1])
    if len(body) < stride * count:
        raise ValueError(f"{path} ends before its {count} vertices do: copy it again")
    rows = np.frombuffer(body, np.uint8, stride * count).reshape(count, stride)
    return np.ascontiguousarray(rows[:, :12]).view("<f4")
