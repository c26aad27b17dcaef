"""Read pickles, .npz and .npy files without running anything that is in them.

A pickle is a program, and `pickle.load` runs it: an official model file could do anything. Here
Python's interpreter of that language keeps only the instructions that build data. Where a file
names a class or a function, it gets a function of this module; nothing is imported for it.
Every file has a memory budget, so that a small file cannot ask for gigabytes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import pickle
import re
import secrets
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

Points = TypeVar("Points", Tensor, np.ndarray)


class UnsafeFileError(ValueError):
    """The file is damaged, or asks for something other than data."""


class _NotEvaluated(UnsafeFileError):
    """An expression of chumpy, or a matrix of scipy, that is not evaluated here."""


def _expect(condition: bool, complaint: str) -> None:
    if not condition:
        raise UnsafeFileError(complaint)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UnsafeFileError) else repr(error)


class _Budget:
    """The bytes that the content of one file may fill."""

    def __init__(self, file_size: int) -> None:
        self.left = 2**28 + 64 * file_size

    def spend(self, size: int) -> None:
        self.left -= size
        _expect(self.left >= 0, "it asks for far more memory than its size explains")


# ------------------------------------------------------ what the classes of a file are replaced by


class _StandIn:
    """An object of the file; rebuild(state, *arguments) makes its value once all is read."""

    def __init__(self, rebuild: Callable, *arguments) -> None:
        self.rebuild, self.arguments, self.state = rebuild, arguments, None


def _kind(rebuild: Callable) -> Callable[..., _StandIn]:
    """A class whose objects get their whole content as state."""
    return lambda *_: _StandIn(rebuild)


def _dtype(state, code: str, *_) -> np.dtype:
    order = state[1] if state else "="
    _expect(re.fullmatch(r"[biufcSUO]\d{1,9}", code) and order in ("<", ">", "=", "|"),
            f"array type {order}{code}")
    return np.dtype(code).newbyteorder(order)


def _array(shape: tuple, dtype: np.dtype, order: str, data) -> np.ndarray:
    """The array whose elements are the bytes `data`, or the list `data` if they are objects."""
    if isinstance(data, str):  # bytes that Python 2 wrote
        data = data.encode("latin1")
    kind, size = (list, 1) if dtype.hasobject else (bytes, dtype.itemsize)
    _expect(all(type(length) is int and length >= 0 for length in shape) and size > 0
            and isinstance(data, kind) and len(data) == size * math.prod(shape),
            f"an array of shape {shape} and type {dtype} does not match its data")
    if dtype.hasobject:
        elements = np.empty(len(data), object)
        for index, element in enumerate(data):
            elements[index] = element
        return elements.reshape(shape, order=order)
    return np.ndarray(shape, dtype, data, order=order).astype(dtype.newbyteorder("="))


def _ndarray(state: tuple) -> np.ndarray:
    *_, shape, dtype, is_fortran, data = state
    return _array(shape, dtype, "F" if is_fortran else "C", data)


def _scalar(_, dtype: np.dtype, data) -> np.generic:
    return _array((), dtype, "C", data)[()]


def _from_buffer(_, data, dtype: np.dtype, shape: tuple, order: str, axes=None) -> np.ndarray:
    array = _array(shape, dtype, "C" if order == "K" else order, data)
    return array if axes is None else array.transpose(axes)


def _joblib_array(state: dict, data: bytes) -> np.ndarray:
    return _array(state["shape"], state["dtype"], state["order"], data)


def _sparse(state: dict, by_column: bool) -> np.ndarray:
    """The dense array of a scipy.sparse csc matrix (stored by column), or csr (by row)."""
    shape = state["_shape"] if "_shape" in state else state["shape"]
    columns, rows = reversed(shape) if by_column else shape
    values = state["data"]
    indices, starts = (state[key].astype(np.int64, casting="safe") for key in ("indices", "indptr"))
    lengths = np.diff(starts)
    _expect(0 <= rows * columns <= 2**24
            and values.dtype.kind in "biuf" and values.shape == indices.shape
            and starts.shape == (columns + 1,) and starts[0] == 0 and starts[-1] == values.size
            and (lengths >= 0).all() and ((indices >= 0) & (indices < rows)).all(),
            f"a sparse matrix of shape {shape} does not match its data")
    dense = np.zeros((columns, rows), values.dtype)
    np.add.at(dense, (np.repeat(np.arange(columns), lengths), indices), values)
    return dense.T.copy() if by_column else dense


def _leaf(state: dict) -> np.ndarray:
    _expect(isinstance(state["x"], (np.ndarray, np.generic, int, float)), "x is not an array")
    return np.asarray(state["x"], np.float64)


def _select(state: dict) -> np.ndarray:
    _expect(isinstance(state["idxs"], np.ndarray), "idxs is not an array")
    chosen = state["a"].ravel()[state["idxs"]]
    return chosen.reshape(state.get("preferred_shape", chosen.shape))


def _elementwise(state: dict, operation: Callable) -> np.ndarray:
    a, b = state["a"], state["b"]
    _expect(a.shape == b.shape or 1 in (a.size, b.size), f"shapes {a.shape} and {b.shape}")
    return operation(a, b)


_CHUMPY = {  # expressions of official files
    "ch.Ch": _leaf,
    "reordering.Select": _select,
    "reordering.Reshape": lambda state: state["a"].reshape(state["newshape"]),
    "reordering.transpose": lambda state: state["a"].transpose(state.get("axes")),
    **{f"ch_ops.{name}": functools.partial(_elementwise, operation=getattr(np, name))
       for name in ("add", "subtract", "multiply")},
}


def _expression(name: str) -> Callable:
    """A class of chumpy or scipy.sparse; what cannot be evaluated raises _NotEvaluated."""

    def rebuild(state: dict) -> np.ndarray:
        try:
            return _CHUMPY[name.removeprefix("chumpy.")](state)
        except Exception as error:
            raise _NotEvaluated(f"{name} is not evaluated: {_reason(error)}") from error

    return _kind(rebuild)


def _latin1(text: str, encoding: str) -> bytes:
    _expect(encoding == "latin1", f"encoding {encoding}")
    return text.encode("latin1")


_NAMES: dict[str, Callable | None] = {  # what a pickle may name, besides expressions
    "numpy.dtype": functools.partial(_StandIn, _dtype),
    "numpy.ndarray": _kind(_ndarray),
    "joblib.numpy_pickle.NumpyArrayWrapper": _kind(_joblib_array),
    "_codecs.encode": _latin1,
    "collections.OrderedDict": lambda: _Table(),
}
for _core in ("numpy.core", "numpy._core"):
    _NAMES[f"{_core}.multiarray._reconstruct"] = _kind(_ndarray)
    _NAMES[f"{_core}.multiarray.scalar"] = functools.partial(_StandIn, _scalar)
    _NAMES[f"{_core}.numeric._frombuffer"] = functools.partial(_StandIn, _from_buffer)
for _name in ("csc.csc", "_csc.csc", "csr.csr", "_csr.csr"):
    _matrix = _kind(functools.partial(_sparse, by_column=_name.endswith("csc")))
    _NAMES[f"scipy.sparse.{_name}_matrix"] = _NAMES[f"scipy.sparse.{_name}_array"] = _matrix
for _name in ("copyreg", "copy_reg"):
    _NAMES[f"{_name}._reconstructor"] = lambda kind, *_: kind()
for _name in ("builtins", "__builtin__"):
    _NAMES |= {f"{_name}.object": None, f"{_name}.bytes": lambda: b"", f"{_name}.set": list}


# -------------------------------------------------------------------------------- the interpreter


class _Table(dict):
    """A dictionary with simple keys: hashing nested tuples can take forever."""

    def __setitem__(self, key, value) -> None:
        _expect(isinstance(key, (str, bytes, int, float)), "a key is neither text nor number")
        super().__setitem__(key, value)


class _DataUnpickler(pickle._Unpickler):
    """Python's pickle interpreter, unable to do anything but build data.

    It is the one written in Python: its instructions can be replaced, and its memo is a
    dictionary, where the C one allocates as many slots as a file claims.
    """

    def find_class(self, module: str, name: str) -> Callable | None:
        full = f"{module}.{name}"
        if full not in _NAMES and module.startswith(("chumpy.", "scipy.sparse")):
            return _expression(full)
        _expect(full in _NAMES, f"it asks for {full}")
        return _NAMES[full]

    def _refuse(self) -> None:
        raise UnsafeFileError("it contains an instruction that data does not need")

    def _dictionary(self) -> None:
        items, table = self.pop_mark(), _Table()
        for key, value in zip(items[::2], items[1::2], strict=True):
            table[key] = value
        self.append(table)

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        _expect(type(target) is _StandIn, "it sets the state of something unknown")
        target.state = state
        if target.rebuild is _joblib_array:  # its bytes follow in the file, perhaps after padding
            if state.get("numpy_array_alignment_bytes") is not None:
                self._file_read(self._file_read(1)[0])
            target.state = {key: state[key] for key in ("shape", "dtype", "order")}
            size = _dtype(state["dtype"].state, *state["dtype"].arguments).itemsize
            target.arguments = (self._file_read(size * math.prod(state["shape"])),)

    dispatch = pickle._Unpickler.dispatch | {code[0]: run for code, run in (
        (pickle.EXT1, _refuse), (pickle.EXT2, _refuse), (pickle.EXT4, _refuse),
        (pickle.INST, _refuse), (pickle.OBJ, _refuse), (pickle.NEWOBJ_EX, _refuse),
        (pickle.BUILD, _build), (pickle.NEWOBJ, pickle._Unpickler.load_reduce),
        (pickle.DICT, _dictionary), (pickle.EMPTY_DICT, lambda self: self.append(_Table())),
        (pickle.BYTEARRAY8, pickle._Unpickler.load_binbytes8),
        (pickle.EMPTY_SET, pickle._Unpickler.load_empty_list),  # sets are read as lists
        (pickle.ADDITEMS, pickle._Unpickler.load_appends),
        (pickle.FROZENSET, pickle._Unpickler.load_list))}


class _Resolver:
    """Replaces every stand-in in a value by what it stands for, within the file's budget."""

    def __init__(self, budget: _Budget) -> None:
        self.budget, self.limit = budget, budget.left
        self.done: dict[int, tuple] = {}  # id -> the value, and its bytes with repetitions unfolded

    def __call__(self, value):
        return self._resolve(value)[0]

    def _resolve(self, value) -> tuple:
        if value is None or isinstance(value, (str, bytes, bool, int, float)):
            return value, 8 + len(value) if isinstance(value, (str, bytes)) else 8
        if id(value) not in self.done:
            self.done[id(value)] = self._rebuild(value)
        return self.done[id(value)]

    def _rebuild(self, value) -> tuple:
        if isinstance(value, _StandIn):
            result = value.rebuild(*map(self, (value.state, *value.arguments)))
            size = getattr(result, "nbytes", 8)
            self.budget.spend(size)
            return result, size
        is_table = isinstance(value, dict)
        _expect(is_table or type(value) in (list, tuple), "it contains something other than data")
        parts = [self._resolve(item) for item in (value.values() if is_table else value)]
        size = 8 + sum(size for _, size in parts)
        _expect(size <= self.limit, "its containers repeat one another too often")
        items = [item for item, _ in parts]
        return dict(zip(value, items, strict=True)) if is_table else type(value)(items), size


# ------------------------------------------------------------------------------------------ files


def _unpickle(data: bytes, budget: _Budget) -> tuple:
    """The raw content of a pickle, and what resolves it."""
    budget.spend(16 * len(data))  # the interpreter's own objects
    return _DataUnpickler(io.BytesIO(data), encoding="latin1").load(), _Resolver(budget)


def safe_unpickle(source: str | Path | bytes, *, skip_expressions: bool = False):
    """The data in a pickle (a path, or its bytes), of any protocol and of Python 2 as well.

    Containers, text, numbers and numpy arrays come back as they are, sets as lists; chumpy
    objects and scipy's csc and csr matrices as dense arrays, with neither package installed.
    Pickles of joblib, uncompressed, are read as well. skip_expressions: leave those entries of a
    dictionary out that hold chumpy expressions or matrices of other kinds.
    Raises UnsafeFileError, a ValueError, for anything else, and runs nothing.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        content, resolve = _unpickle(data, _Budget(len(data)))
        if not (skip_expressions and isinstance(content, dict)):
            return resolve(content)
        arrays = {}
        for name, value in content.items():
            with contextlib.suppress(_NotEvaluated):
                arrays[name] = resolve(value)
        return arrays
    except Exception as error:  # a damaged program can fail in any way
        name = "the pickle" if isinstance(source, bytes) else source
        raise UnsafeFileError(f"{name} is damaged or is not plain data ({_reason(error)}): only "
                              f"text, numbers, arrays and containers of them are read") from error


def _npy(data: bytes, budget: _Budget):
    """The array in a .npy file's bytes; an array of Python objects is a pickle after a header."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    _expect(version in ((1, 0), (2, 0)), f"version {version} of the .npy format")
    shape, is_fortran, dtype = getattr(
        np.lib.format, f"read_array_header_{version[0]}_0")(file)
    start, count = file.tell(), math.prod(shape)
    if dtype.str == "|O":
        content, resolve = _unpickle(data[start:], budget)
        objects = resolve(content)
        return objects.item() if objects.ndim == 0 else objects
    _expect(not dtype.hasobject and dtype.itemsize > 0 and min(shape, default=0) >= 0
            and count * dtype.itemsize <= len(data) - start,
            f"an array of shape {shape} and type {dtype} does not match its data")
    flat = np.frombuffer(data, dtype, count, start) if count else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if is_fortran else "C").copy(order="K")


def _npz(file: io.BufferedReader, size: int, prefix: str) -> dict[str, np.ndarray]:
    budget = _Budget(size)
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if member.filename.startswith(prefix)]
        budget.spend(sum(member.file_size for member in members))
        _expect(all(member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                    for member in members), "a compression that numpy does not write")
        return {member.filename.removesuffix(".npy"): _npy(archive.read(member), budget)
                for member in members}


def load_arrays(path: str | Path, prefix: str = "") -> dict[str, np.ndarray]:
    """The named arrays of a file, running nothing that is in it.

    The file is .npz, or .npy with a dictionary in it, or else a pickle, of which chumpy expressions
    that cannot be evaluated are left out. prefix: of the names that are wanted; of an .npz no
    others are read. Raises FileNotFoundError, and UnsafeFileError for a file that is damaged, not
    plain data, or asks for far more memory than its size explains.
    """
    path = Path(path)
    if path.suffix == ".npz":
        with open(path, "rb") as file:
            try:
                return _npz(file, path.stat().st_size, prefix)
            except Exception as error:
                raise _damaged(path, error) from error
    arrays = load_array(path) if path.suffix == ".npy" else safe_unpickle(
        path, skip_expressions=True)
    _expect(isinstance(arrays, dict), f"{path} holds a {type(arrays).__name__}, not arrays")
    return {name: value for name, value in arrays.items() if name.startswith(prefix)}


def load_array(path: str | Path):
    """The array of a .npy file, or the plain data that was saved as one; errors as load_arrays."""
    data = Path(path).read_bytes()
    try:
        return _npy(data, _Budget(len(data)))
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: str | Path, error: Exception) -> UnsafeFileError:
    return UnsafeFileError(f"{path} is damaged or unsafe ({_reason(error)})")


# --------------------------------------------------------------------------------- files as a whole


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file as a whole: readers, and crashes, leave the old content or the new one."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: create the folder {path.parent} first")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------- mesh files


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


# -------------------------------------------------------------------------------------- predictions


def write_dexycb(path: str | Path, numbers: Sequence[int], joints: Points) -> None:
    """Write predictions for DexYCB's toolkit: a line for each sample, its number and 63 lengths.

    numbers: official numbers of the samples, `person` in DexYCB's records. joints (N, 21, 3):
    metres, in the camera's frame, left hands not mirrored. The file has millimetres.
    """
    millimetres = 1000 * _floats(joints).astype(np.float64).reshape(len(numbers), 63)
    lines = (",".join([str(int(number)), *(f"{value:.4f}" for value in row)])
             for number, row in zip(numbers, millimetres, strict=True))
    write_atomically(path, ("\n".join(lines) + "\n").encode())


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
    joints, vertices = (_floats(points) for points in (joints, vertices))
    texts = []
    for points in pair(joints, vertices):
        digits = "%.9g" if points.dtype == np.float32 else "%.17g"
        row = "[" + ",".join([digits] * 3) + "]"
        sample = "[" + ",".join([row] * points.shape[1]) + "]"
        texts.append("[" + ",".join(sample % tuple(values.ravel()) for values in points) + "]")
    write_atomically(path, f"[{texts[0]},{texts[1]}]".encode())


def _floats(points: Points) -> np.ndarray:
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
