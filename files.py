"""Read and write files: the ground floor. Copied alone it works with numpy and torch.

    safe_unpickle, load_arrays, load_array   pickles, .npz and .npy, running nothing that is in them
    write_atomically                         a file as a whole
    first_line                               of an error's message
    save_mesh, load_vertices                 meshes: OBJ and GLB, OBJ and PLY
    read_predictions, write_predictions, write_dexycb   predicted hands
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

Points = TypeVar("Points", Tensor, np.ndarray)

# ----------------------------------------------------------------------------- safe pickles
# A pickle is a program, and `pickle.load` runs it. Here Python's interpreter of that language keeps
# only the instructions that build data, and what a file names it looks up in _NAMES: no import.


class UnsafeFileError(ValueError):
    """The file is damaged, or asks for something other than data."""


class _NotEvaluated(UnsafeFileError):
    """An expression of chumpy, or a matrix of scipy, that is not evaluated here."""


def _expect(condition: bool, complaint: str) -> None:
    if not condition:
        raise UnsafeFileError(complaint)


@contextlib.contextmanager
def _refusing(name: object) -> Iterator[None]:
    """Turn any error into one UnsafeFileError: a damaged program can fail in any way."""
    try:
        yield
    except Exception as error:
        reason = error if isinstance(error, UnsafeFileError) else repr(error)
        raise UnsafeFileError(f"{name} is damaged or unsafe ({reason}): only text, numbers, arrays "
                              "and containers of them are read") from error


class _StandIn:
    """An object of the file; rebuild(state, *arguments) makes its value once all is read."""

    def __init__(self, rebuild: Callable, *arguments) -> None:
        self.rebuild, self.arguments, self.state = rebuild, arguments, None


def _dtype(state, code: str, *_) -> np.dtype:
    order = state[1] if state else "="
    _expect(re.fullmatch(r"[biufcSUO]\d{1,9}", code) and order in ("<", ">", "=", "|"),
            f"array type {order}{code}")
    return np.dtype(code).newbyteorder(order)


def _array(shape: tuple, dtype: np.dtype, order: str, data) -> np.ndarray:
    """The array whose elements are the bytes `data`, or the list `data` if they are objects."""
    data = data.encode("latin1") if isinstance(data, str) else data  # bytes that Python 2 wrote
    kind, size = (list, 1) if dtype.hasobject else (bytes, dtype.itemsize)
    _expect(all(type(length) is int and length >= 0 for length in shape) and size > 0
            and isinstance(data, kind) and len(data) == size * math.prod(shape),
            f"an array of shape {shape} and type {dtype} does not match its data")
    if dtype.hasobject:
        return np.fromiter(data, object, len(data)).reshape(shape, order=order)
    return np.ndarray(shape, dtype, data, order=order).copy("K")


def _sparse(state: dict, by_column: bool) -> np.ndarray:
    """The dense array of a scipy.sparse csc matrix (stored by column), or csr (by row)."""
    shape, values = state["_shape"] if "_shape" in state else state["shape"], state["data"]
    columns, rows = reversed(shape) if by_column else shape
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


def _elementwise(state: dict, operation: Callable) -> np.ndarray:
    a, b = state["a"], state["b"]
    _expect(a.shape == b.shape or 1 in (a.size, b.size), f"shapes {a.shape} and {b.shape}")
    return operation(a, b)


_CHUMPY = {  # the expressions of official files
    "chumpy.ch.Ch": lambda state: np.asarray(state["x"], np.float64),
    "chumpy.reordering.Select": lambda state: state["a"].ravel()[state["idxs"]].reshape(
        state.get("preferred_shape", -1)),
    "chumpy.reordering.Reshape": lambda state: state["a"].reshape(state["newshape"]),
    "chumpy.reordering.transpose": lambda state: state["a"].transpose(state.get("axes")),
    **{f"chumpy.ch_ops.{name}": functools.partial(_elementwise, operation=getattr(np, name))
       for name in ("add", "subtract", "multiply")},
}


def _expression(state: dict, name: str) -> np.ndarray:
    try:
        return _CHUMPY[name](state)
    except Exception as error:
        raise _NotEvaluated(f"{name} is not evaluated: {error!r}") from error


def _kind(rebuild: Callable, **options) -> Callable[..., _StandIn]:
    """A class whose objects get their whole content as state."""
    return lambda *_: _StandIn(functools.partial(rebuild, **options))


_ndarray = _kind(lambda state: _array(*state[-4:-2], "F" if state[-2] else "C", state[-1]))
_NAMES: dict[str, Callable | None] = {  # what a pickle may name, without the _ of private modules
    "numpy.dtype": functools.partial(_StandIn, _dtype),
    "numpy.ndarray": _ndarray,
    "numpy.core.multiarray.reconstruct": _ndarray,
    "numpy.core.multiarray.scalar": functools.partial(
        _StandIn, lambda _, dtype, data: _array((), dtype, "C", data)[()]),
    "numpy.core.numeric.frombuffer": functools.partial(
        _StandIn, lambda _, data, dtype, shape, order, axes=None: _array(
            shape, dtype, order.replace("K", "C"), data).transpose(axes or range(len(shape)))),
    **{f"scipy.sparse.{kind}.{kind}_{name}": _kind(_sparse, by_column=kind == "csc")
       for kind in ("csc", "csr") for name in ("matrix", "array")},
    "codecs.encode": lambda text, encoding: text.encode({"latin1": "latin1"}[encoding]),
    "collections.OrderedDict": lambda: _Table(),
    **{f"{name}.reconstructor": lambda kind, *_: kind() for name in ("copyreg", "copy_reg")},
    "builtins.object": None, "builtins.bytes": lambda: b"", "builtins.set": list,
}


class _Table(dict):
    """A dictionary with simple keys: hashing nested tuples can take forever."""

    def __setitem__(self, key, value) -> None:
        _expect(isinstance(key, (str, bytes, int, float)), "a key is neither text nor number")
        super().__setitem__(key, value)


class _Reader(pickle._Unpickler):
    """Python's pickle interpreter, unable to do anything but build data, and only so much.

    It is the one written in Python: its instructions can be replaced, and its memo is a
    dictionary, where the C one allocates as many slots as a file claims.
    """

    def __init__(self, file_size: int) -> None:
        self.left = self.limit = 2**28 + 64 * file_size  # bytes
        self.done: dict[int, tuple] = {}  # id -> object, its value, its bytes without any sharing

    def spend(self, size: int) -> None:
        self.left -= size
        _expect(self.left >= 0, "it asks for far more memory than its size explains")

    def find_class(self, module: str, name: str) -> Callable | None:
        full = f"{module}.{name}"
        plain = re.sub(r"\b_", "", full.replace("__builtin__", "builtins"))
        if plain not in _NAMES and module.startswith(("chumpy.", "scipy.sparse")):
            return _kind(_expression, name=full)
        _expect(plain in _NAMES, f"it asks for {full}")
        return _NAMES[plain]

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        _expect(type(target) is _StandIn, "it sets the state of something unknown")
        target.state = state

    dispatch = {code: run for code, run in pickle._Unpickler.dispatch.items()
                if code not in b"\x82\x83\x84io\x92"} | {  # EXT1, 2 and 4, INST, OBJ, NEWOBJ_EX
        pickle.BUILD[0]: build, pickle.EMPTY_DICT[0]: lambda self: self.append(_Table()),
        pickle.DICT[0]: lambda self: self.metastack[-1].append(_Table()) or self.load_setitems(),
        pickle.NEWOBJ[0]: pickle._Unpickler.load_reduce,
        pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8,
        pickle.EMPTY_SET[0]: pickle._Unpickler.load_empty_list,  # sets are read as lists
        pickle.ADDITEMS[0]: pickle._Unpickler.load_appends,
        pickle.FROZENSET[0]: pickle._Unpickler.load_list}

    def resolve(self, value) -> tuple:
        """What a value stands for, and its size."""
        if value is None or isinstance(value, (str, bytes, bool, int, float)):
            return value, 8 + len(value) if isinstance(value, (str, bytes)) else 8
        if id(value) in self.done:
            return self.done[id(value)][1:]
        if isinstance(value, _StandIn):
            result = value.rebuild(*(self.resolve(x)[0] for x in (value.state, *value.arguments)))
            if isinstance(result, np.ndarray):
                result = result.astype(result.dtype.newbyteorder("="), copy=False)
            self.spend(size := getattr(result, "nbytes", 8))
        else:
            is_table = isinstance(value, dict)
            _expect(is_table or type(value) in (list, tuple), "it contains other things than data")
            parts = [self.resolve(item) for item in (value.values() if is_table else value)]
            items, size = [item for item, _ in parts], 8 + sum(size for _, size in parts)
            _expect(size <= self.limit, "its containers repeat one another too often")
            result = dict(zip(value, items, strict=True)) if is_table else type(value)(items)
        self.done[id(value)] = value, result, size
        return result, size

    def unpickle(self, data: bytes):
        self.spend(16 * len(data))  # the interpreter's own objects
        super().__init__(io.BytesIO(data), encoding="latin1")
        content = self.load()
        if not isinstance(content, dict):
            return self.resolve(content)[0]
        arrays = {}
        for name, value in content.items():
            with contextlib.suppress(_NotEvaluated):
                arrays[name] = self.resolve(value)[0]
        return arrays

    def npy(self, data: bytes):
        """The array in a .npy file; one of Python objects is a pickle after a header."""
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        _expect(version in ((1, 0), (2, 0)), f"version {version} of the .npy format")
        shape, is_fortran, dtype = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(file)
        content = file.read()
        if dtype.str == "|O":
            objects = self.unpickle(content)
            return objects.item() if objects.ndim == 0 else objects
        return _array(shape, dtype, "F" if is_fortran else "C",
                      content[:dtype.itemsize * math.prod(shape)])


def safe_unpickle(source: str | Path | bytes):
    """The data in a pickle (a path, or its bytes) of any protocol, also of Python 2.

    Containers, text, numbers and arrays come back as they are, sets as lists; chumpy objects and
    scipy's csc and csr matrices as dense arrays, with neither package installed. Of a dictionary,
    entries are left out that hold other expressions of chumpy or other matrices.
    Raises UnsafeFileError, a ValueError, for anything else, and runs nothing.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    with _refusing("the pickle" if isinstance(source, bytes) else source):
        return _Reader(len(data)).unpickle(data)


def load_array(path: str | Path):
    """The array of a .npy file, or the plain data that was saved as one; errors as load_arrays."""
    data = Path(path).read_bytes()
    with _refusing(path):
        return _Reader(len(data)).npy(data)


def load_arrays(path: str | Path, prefix: str = "") -> dict[str, np.ndarray]:
    """The named arrays of a .npz, of a .npy with a dictionary in it, or else of a pickle.

    prefix: of the names that are wanted; of an .npz no others are read. Raises FileNotFoundError,
    and UnsafeFileError for a file that is damaged, not plain data, or asks for far more memory than
    its size explains.
    """
    path = Path(path)
    if path.suffix != ".npz":
        arrays = load_array(path) if path.suffix == ".npy" else safe_unpickle(path)
        _expect(isinstance(arrays, dict), f"{path} holds a {type(arrays).__name__}, not arrays")
        return {name: value for name, value in arrays.items() if name.startswith(prefix)}
    with open(path, "rb") as file, _refusing(path), zipfile.ZipFile(file) as archive:
        reader = _Reader(path.stat().st_size)
        members = [item for item in archive.infolist() if item.filename.startswith(prefix)]
        reader.spend(sum(member.file_size for member in members))
        _expect(all(member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                    for member in members), "a compression that numpy does not write")
        return {member.filename.removesuffix(".npy"): reader.npy(archive.read(member))
                for member in members}


# ------------------------------------------------------------------------- files as a whole


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


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, and the second after a colon."""
    first, *others = str(error).strip().split("\n")
    if first.endswith(":") and others:  # of load_state_dict: the second says what does not fit
        first += " " + others[0].strip()
    return (first or type(error).__name__)[:400]


# ------------------------------------------------------------------------------- mesh files
# Vertices are written as given. Viewers expect y up, the OpenCV camera frame has y down: multiply
# vertices by (1, -1, -1) first.


def _obj(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    """Wavefront OBJ."""
    lines = ["v " + " ".join(f"{number:.9g}" for number in row) for row in vertices.tolist()]
    lines += ["f {} {} {}".format(*face) for face in (faces + 1).tolist()]
    return ("\n".join(lines) + "\n").encode()


def _glb(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    """Binary glTF 2.0: one mesh with normals."""
    normals = vertex_normals(vertices, faces)
    arrays = vertices.astype("<f4"), normals.astype("<f4"), faces.astype("<u4")
    offsets = np.cumsum([0, *(array.nbytes for array in arrays)]).tolist()
    views = [{"buffer": 0, "byteOffset": offset, "byteLength": array.nbytes, "target": target}
             for offset, array, target in zip(  # 34962: vertex data, 34963: indices
                 offsets, arrays, (34962, 34962, 34963), strict=False)]
    points = {"componentType": 5126, "count": len(vertices), "type": "VEC3"}  # 5126: float32
    extent = {"min": vertices.min(0).tolist(), "max": vertices.max(0).tolist()}
    accessors = [
        {"bufferView": 0} | points | extent, {"bufferView": 1} | points,
        {"bufferView": 2, "componentType": 5125, "count": faces.size, "type": "SCALAR"}]  # uint32
    surface = {"metallicFactor": 0, "roughnessFactor": 0.7}
    description = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{
            "attributes": {"POSITION": 0, "NORMAL": 1}, "indices": 2, "material": 0}]}],
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


MESH_FORMATS = {".obj": _obj, ".glb": _glb}


def to_numpy(array) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)


def single(array) -> np.ndarray:
    with np.errstate(over="ignore"):  # check_mesh refuses infinities
        return to_numpy(array).astype(np.float32)


def check_mesh(vertices, faces) -> tuple[np.ndarray, np.ndarray]:
    """The mesh as numpy arrays, floats and int64; ValueError for what is not a triangle mesh."""
    vertices, faces = to_numpy(vertices), to_numpy(faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or vertices.dtype.kind not in "fiu":
        raise ValueError(f"vertices must be numbers of shape (V, 3), got {vertices.dtype} of "
                         f"shape {vertices.shape}")
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype.kind not in "iu":
        raise ValueError(f"faces must be integers of shape (F, 3), got {faces.dtype} of shape "
                         f"{faces.shape}")
    if faces.size and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise ValueError(f"faces refer to vertices {faces.min()} to {faces.max()}, but there are "
                         f"{len(vertices)}")
    if not np.isfinite(vertices).all():
        raise ValueError("vertices must be finite, some are NaN or infinite")
    return _floats(vertices), faces.astype(np.int64, copy=False)


def vertex_colors(colors, count: int) -> np.ndarray:
    """One colour for each vertex (V, 3) float32 in 0..1, from one for all or one for each."""
    colors = single(colors)
    if colors.shape not in [(3,), (count, 3)] or not ((colors >= 0) & (colors <= 1)).all():
        raise ValueError(f"colors must be (3,) or {(count, 3)} numbers in 0..1, got shape "
                         f"{colors.shape} from {colors.min(initial=0)} to {colors.max(initial=0)}")
    return np.broadcast_to(colors, (count, 3))


def vertex_normals(vertices, faces) -> np.ndarray:
    """Unit normals (V, 3): the area-weighted mean of the faces' normals, zero without a face.

    They point outwards if faces are counter-clockwise seen from outside.
    """
    vertices, faces = check_mesh(vertices, faces)
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.stack([np.bincount(faces.ravel(), axis.repeat(3), len(vertices))
                      for axis in normals.T], 1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return (total / np.where(length > 0, length, 1)).astype(vertices.dtype)


def save_mesh(path: str | Path, vertices, faces) -> None:
    """Write a triangle mesh as .obj or .glb, by the ending of the path.

    Args: vertices (V, 3), written as float32; faces (F, 3), at least one. Arrays or tensors. The
    file is replaced as a whole. Raises ValueError for another ending or what is not a triangle
    mesh, FileNotFoundError for a missing folder.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MESH_FORMATS:
        raise ValueError(f"cannot save {path}: the name must end in .obj or .glb")
    vertices, faces = check_mesh(single(vertices), faces)
    if not len(faces):
        raise ValueError(f"cannot save {path}: the mesh has no faces")
    write_atomically(path, MESH_FORMATS[suffix](vertices, faces))


def load_vertices(path: str | Path) -> np.ndarray:
    """Read the vertices (V, 3) float32 of an OBJ file or of a binary little-endian PLY file.

    The first element of a PLY must be vertices, with properties of floats or bytes. Raises
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
    properties = re.findall(r"property (\w+) (\w+)", found[2].decode()) if found else []
    kinds = {"float": "<f4", "float32": "<f4", "uchar": "u1", "uint8": "u1"}  # others: an error
    try:
        dtype = np.dtype([(name, kinds[kind]) for kind, name in properties])
        rows = np.frombuffer(body, dtype, int(found[1]))
        return np.stack([rows[axis] for axis in "xyz"], 1).astype(np.float32)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: expected an undamaged binary little-endian PLY file whose "
                         "vertices have x, y and z as float") from None


# ------------------------------------------------------------------------------ predictions


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
    both = pair(to_numpy(joints), to_numpy(vertices))
    write_atomically(path, json.dumps([points.tolist() for points in both]).encode())


def _floats(points: Points) -> np.ndarray:
    """Points as float32 or float64."""
    points = to_numpy(points)
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
    """Samples as one array (N, count, 3); ValueErrors begin with `name`."""
    try:
        points = np.array(samples)  # without a dtype, so that text is not converted to numbers
    except ValueError:  # lists of different lengths
        points = np.array(None)
    points = points.reshape(0, count, 3) if points.shape == (0,) else points
    if points.shape[1:] != (count, 3) or points.ndim != 3 or points.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected {count} points of 3 numbers for each sample")
    if not np.isfinite(points).all():
        sample, point, _ = np.argwhere(~np.isfinite(points))[0]
        raise ValueError(f"{name}[{sample}]: not finite at point {point}")
    return points


def read_json(path: str | Path) -> object:
    """The content of a JSON file; ValueError for another file."""
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:  # no JSON, no text
        raise ValueError(f"{path} is not a JSON file: {error}") from None
