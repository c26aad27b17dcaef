"""Mesh files: the bytes of OBJ, PLY and GLB files, and the vertices of OBJ and PLY files."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np


def _obj(vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray | None,
         normals: np.ndarray) -> bytes:
    """Wavefront OBJ; colours are three more numbers after each vertex, as MeshLab reads them."""
    rows = vertices if colors is None else np.concatenate([vertices, colors], 1)
    lines = ["v " + " ".join(f"{number:.9g}" for number in row) for row in rows.tolist()]
    lines += ["f {} {} {}".format(*face) for face in (faces + 1).tolist()]
    return ("\n".join(lines) + "\n").encode()


def _ply(vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray | None,
         normals: np.ndarray) -> bytes:
    """Stanford PLY, binary little endian, colours as bytes."""
    fields = [(name, "<f4") for name in "xyz"]
    properties = [f"property float {name}" for name in "xyz"]
    if colors is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
        properties += [f"property uchar {name}" for name in ("red", "green", "blue")]
    vertex = np.empty(len(vertices), fields)
    columns = vertices.T if colors is None else (*vertices.T, *(colors * 255).round().T)
    for (name, _), column in zip(fields, columns, strict=True):
        vertex[name] = column
    face = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    face["count"], face["corners"] = 3, faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}",
              *properties, f"element face {len(faces)}",
              "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode() + vertex.tobytes() + face.tobytes()


def _glb(vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray | None,
         normals: np.ndarray) -> bytes:
    """Binary glTF 2.0: one mesh with normals and, if given, colours (linear, as glTF requires)."""
    attributes = {"POSITION": vertices, "NORMAL": normals}
    if colors is not None:
        attributes["COLOR_0"] = colors**2.2
    arrays = [*(array.astype("<f4") for array in attributes.values()), faces.astype("<u4")]
    offsets = np.cumsum([0, *(array.nbytes for array in arrays)]).tolist()
    views = [{"buffer": 0, "byteOffset": offset, "byteLength": array.nbytes, "target": 34962}
             for offset, array in zip(offsets, arrays, strict=False)]  # 34962: vertex data
    accessors = [{"bufferView": i, "componentType": 5126, "count": len(vertices), "type": "VEC3"}
                 for i in range(len(attributes))]  # 5126: float32
    accessors[0] |= {"min": arrays[0].min(0).tolist(), "max": arrays[0].max(0).tolist()}
    views[-1]["target"] = 34963  # indices
    accessors.append({"bufferView": len(attributes), "componentType": 5125,  # uint32
                      "count": faces.size, "type": "SCALAR"})
    surface = {"metallicFactor": 0, "roughnessFactor": 0.7}
    description = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{
            "attributes": {name: i for i, name in enumerate(attributes)},
            "indices": len(attributes), "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": surface, "doubleSided": True}],
        "buffers": [{"byteLength": offsets[-1]}], "bufferViews": views, "accessors": accessors,
    }
    text = json.dumps(description, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)  # chunks start at multiples of four bytes
    binary = b"".join(array.tobytes() for array in arrays)
    return b"".join([
        struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(binary)),
        struct.pack("<I4s", len(text), b"JSON"), text,
        struct.pack("<I4s", len(binary), b"BIN\0"), binary])


# ending -> function of vertices (V, 3), faces (F, 3), colours (V, 3) or None, normals (V, 3)
MESH_FORMATS = {".obj": _obj, ".ply": _ply, ".glb": _glb}


def load_vertices(path: str | Path) -> np.ndarray:
    """Read the vertices (V, 3) float32 of an OBJ file or of a binary little-endian PLY file.

    The first element of a PLY must be vertices, and their first properties x, y and z as float.
    Raises ValueError for anything else.
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
        raise ValueError(f"{path}: expected a binary little-endian PLY file whose vertices "
                         "begin with x, y and z as float")
    stride, count = sum(sizes[kind] for kind in kinds), int(found[1])
    if len(body) < stride * count:
        raise ValueError(f"{path} ends before its {count} vertices: copy it again")
    rows = np.frombuffer(body, np.uint8, stride * count).reshape(count, stride)
    return np.ascontiguousarray(rows[:, :12]).view("<f4")
