"""Safe files: official layouts are read, hostile and damaged ones are refused, nothing is run."""

import collections
import contextlib
import copyreg
import functools
import io
import itertools
import os
import pickle
import random
import struct
import sys
import tempfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from hostile import Call
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bodymodels import ASSETS, load_model
from files import UnsafeFileError, load_array, load_arrays, safe_unpickle

PROTOCOLS = range(6)


def same(a, b):
    """Equal in type and content; sets come back as lists."""
    if isinstance(a, np.ndarray):
        return (isinstance(b, np.ndarray) and a.dtype.newbyteorder("=") == b.dtype
                and a.shape == b.shape and all(map(same, a.ravel().tolist(), b.ravel().tolist())))
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, set | frozenset):
        return type(b) is list and len(a) == len(b) and a == set(b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a and b != b)


# ------------------------------------------------------------------------------------ plain data

numbers = st.integers() | st.floats() | st.booleans() | st.none()
arrays = hnp.arrays(
    hnp.boolean_dtypes() | hnp.integer_dtypes(endianness="?") | hnp.floating_dtypes(endianness="?")
    | hnp.complex_number_dtypes() | hnp.unicode_string_dtypes(max_len=3)
    | hnp.byte_string_dtypes(max_len=3), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
leaves = numbers | st.text() | st.binary() | arrays | st.sets(st.integers() | st.text())
data = st.recursive(leaves, lambda inner: st.lists(inner) | st.tuples(inner, inner)
                    | st.dictionaries(st.text() | st.integers(), inner), max_leaves=8)


@given(data)
def test_plain_data_of_every_protocol_comes_back_unchanged(value):
    """Reading a pickle of containers, text, numbers and arrays gives back what was written."""
    for protocol in PROTOCOLS:
        assert same(value, safe_unpickle(pickle.dumps(value, protocol)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_array_layouts(protocol):
    """Order, strides, byte order, sharing, object and empty arrays, scalars: all are kept."""
    grid = np.arange(24.0).reshape(2, 3, 4)
    value = {"fortran": np.asfortranarray(grid), "view": grid[:, ::2], "axes": grid.swapaxes(0, 2),
             "big-endian": grid.astype(">f4"), "empty": np.zeros((0, 3)), "zero-dim": np.array(3),
             "objects": np.array([{"x": grid}, None, [1, "a"], ()], object), "bytes": b"\xff\x00",
             "scalar": np.float32(2), "long": 2 ** 70, "ordered": collections.OrderedDict(a=1)}
    value["again"] = value["fortran"]
    result = safe_unpickle(pickle.dumps(value, protocol))
    assert isinstance(result["ordered"], dict) and result.pop("ordered") == {"a": 1}
    del value["ordered"]
    assert same(value, result)
    assert result["again"] is result["fortran"]


def test_python_2_pickle():
    """Text and array bytes of Python 2 arrive as latin-1 strings; both become what they were."""
    raw = np.arange(4, dtype="<f8")
    for text in (b"U" + bytes([32]), b"T" + struct.pack("<I", 32)):  # short and long strings
        program = (b"\x80\x02}U\x01a" + b"cnumpy.core.multiarray\n_reconstruct\n"
                   b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x04\x85cnumpy\ndtype\nU\x02f8"
                   b"K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
                   + text + raw.tobytes() + b"tbs.")
        assert same(safe_unpickle(program), {"a": raw})
    protocol_0 = b"(dp0\nS'name'\np1\nS'caf\\xe9'\np2\nsS'n'\nL12L\ns."
    assert safe_unpickle(protocol_0) == {"name": "café", "n": 12}


# ------------------------------------------------------------------- official layouts, rebuilt
# Classes with the module names that official files mention, alive only while one is written.


class _Stated:
    """An object whose whole content is its __dict__, as chumpy's and scipy's are pickled."""

    def __init__(self, **state):
        self.__dict__.update(state)

    def __reduce_ex__(self, protocol):
        if protocol < 2:  # what Python 2 wrote
            return copyreg._reconstructor, (type(self), object, None), self.__dict__
        return copyreg.__newobj__, (type(self),), self.__dict__


@pytest.fixture
def foreign(monkeypatch):
    """foreign("chumpy.ch", "Ch")(x=...) makes an object of a class that nobody can import."""

    def make(module, name):
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in sys.modules:
                monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        if not hasattr(sys.modules[module], name):
            kind = type(name, (_Stated,), {"__module__": module})
            monkeypatch.setattr(sys.modules[module], name, kind, raising=False)
        return getattr(sys.modules[module], name)

    for name in [name for name in sys.modules if name.split(".")[0] in ("chumpy", "scipy")]:
        monkeypatch.delitem(sys.modules, name)
    return make


def sparse_state(dense, by_column):
    """indptr, indices and data as scipy stores them."""
    major = dense.T if by_column else dense
    rows, columns = np.nonzero(major)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(major)))])
    return {"_shape": dense.shape, "maxprint": 50, "data": major[rows, columns],
            "indices": columns.astype(np.int32), "indptr": starts.astype(np.int32)}


def test_sparse_matrices_become_dense():
    """What scipy writes, today's and, by the protocols of then, an old one, reads as the array that
    it stands for."""
    matrix = scipy.sparse.random(6, 9, 0.3, random_state=0)
    for kind, protocol in itertools.product(
            ("csc_matrix", "csr_matrix", "csc_array", "csr_array"), PROTOCOLS):
        content = pickle.dumps(getattr(scipy.sparse, kind)(matrix), protocol)
        assert same(matrix.toarray(), safe_unpickle(content))
        if protocol < 4:  # whose names have no lengths
            old = content.replace(b"scipy.sparse._cs", b"scipy.sparse.cs")
            assert old != content and same(matrix.toarray(), safe_unpickle(old))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_chumpy_objects_become_arrays(foreign, protocol):
    """chumpy's Ch, selections, reshapes, transposes and sums evaluate to their arrays."""
    x, idxs = np.arange(12.0).reshape(3, 4), np.array([5, 0, 7, 2])
    leaf = foreign("chumpy.ch", "Ch")(x=x, _dirty_vars=set(), _itr=None, _depends_on_deps={})
    two = foreign("chumpy.ch", "Ch")(x=np.array([2.0]))
    select = foreign("chumpy.reordering", "Select")
    value = {
        "leaf": leaf,
        "select": select(a=leaf, idxs=idxs, preferred_shape=(2, 2)),
        "flat": select(a=leaf, idxs=idxs),
        "reshape": foreign("chumpy.reordering", "Reshape")(a=leaf, newshape=(4, 3)),
        "transpose": foreign("chumpy.reordering", "transpose")(a=leaf, axes=None),
        "sum": foreign("chumpy.ch_ops", "add")(
            a=leaf, b=foreign("chumpy.ch_ops", "multiply")(a=leaf, b=two)),
        "difference": foreign("chumpy.ch_ops", "subtract")(a=leaf, b=leaf),
    }
    expected = {"leaf": x, "select": x.ravel()[idxs].reshape(2, 2), "flat": x.ravel()[idxs],
                "reshape": x.reshape(4, 3), "transpose": x.T, "sum": 3 * x, "difference": 0 * x}
    assert same(expected, safe_unpickle(pickle.dumps(value, protocol)))


def concatenation(foreign):
    """The expression that official SMPL files hold as `J`: regressed joints, stacked and turned."""
    regressor = foreign("scipy.sparse.csc", "csc_matrix")(**sparse_state(np.eye(3), True))
    column = foreign("chumpy.ch", "MatVecMult")(
        mtx=regressor, vec=foreign("chumpy.ch", "Ch")(x=np.arange(3.0)))
    stacked = foreign("chumpy.reordering", "Concatenate")(axis=0, our_args=[column] * 3)
    return foreign("chumpy.reordering", "transpose")(a=stacked, axes=None)


def official(foreign, name):
    """A free model's arrays with the types, layouts and oddities of the official pickles."""
    arrays = dict(load_arrays(ASSETS / f"{name}.npz"))
    del arrays["license"]
    ch = foreign("chumpy.ch", "Ch")
    arrays["kintree_table"] = arrays["kintree_table"].astype(np.uint32)
    arrays["kintree_table"][0, 0] = 2 ** 32 - 1
    regressor = sparse_state(arrays["J_regressor"].astype(float), by_column=True)
    arrays["J_regressor"] = foreign("scipy.sparse.csc", "csc_matrix")(**regressor)
    arrays["posedirs"] = np.asfortranarray(arrays["posedirs"].astype(float))
    shapedirs = arrays["shapedirs"].astype(float)
    arrays["shapedirs"] = foreign("chumpy.reordering", "Select")(
        a=ch(x=shapedirs), idxs=np.arange(shapedirs.size), preferred_shape=shapedirs.shape)
    arrays["v_template"] = ch(x=arrays["v_template"].astype(float), _dirty_vars=set())
    return arrays


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_official_pickle_loads_as_the_model_it_holds(foreign, tmp_path, protocol):
    """A model written the official way is the same body model as its plain npz; `J` of official
    SMPL files, an expression that nobody needs, is not evaluated."""
    path = tmp_path / "MANO_RIGHT.pkl"
    arrays = official(foreign, "hand_right") | {"J": concatenation(foreign)}
    path.write_bytes(pickle.dumps(arrays, protocol))
    assert "J" not in load_arrays(path)
    model, expected = load_model(path), load_model("hand_right")
    for name, buffer in expected.named_buffers():
        assert np.allclose(buffer, model.get_buffer(name), atol=1e-7), name
    assert model.parents == expected.parents and model.side == "right"


def test_an_expression_that_is_needed_is_named(foreign, tmp_path):
    """A model whose template cannot be evaluated is refused, and so is a bare expression."""
    arrays = official(foreign, "hand_right") | {"v_template": concatenation(foreign)}
    (tmp_path / "MANO_RIGHT.pkl").write_bytes(pickle.dumps(arrays))
    with pytest.raises(ValueError, match="lacks v_template, or has it as an expression"):
        load_model(tmp_path / "MANO_RIGHT.pkl")
    with pytest.raises(UnsafeFileError, match="chumpy.ch.MatVecMult is not evaluated"):
        safe_unpickle(pickle.dumps([concatenation(foreign)]))


# --------------------------------------------------------------------------------------- hostile


class Gadget:
    """A harmless-looking class that runs a command when it is created or given a state."""

    def __new__(cls, command="true"):
        os.system(command)
        return super().__new__(cls)

    def __setstate__(self, command):
        os.system(command)


def program(*parts):
    """A protocol 4 pickle of raw instructions; a str stands for the instruction that pushes it."""
    return b"\x80\x04" + b"".join(
        part if isinstance(part, bytes) else b"\x8c" + bytes([len(part)]) + part.encode()
        for part in parts) + b"."


def file_bytes(save, value):
    buffer = io.BytesIO()
    save(buffer, value)
    return buffer.getvalue()


def hostile_objects(target):
    """Name -> an object whose pickle creates the file `target` when it is read.

    Few functions stand for all: what a pickle may name is a list, and no other name is looked up.
    """
    shell = f"touch {target}"
    system = Call(os.system, shell)
    return {
        "os.system": system,
        "eval": Call(eval, f"open({str(target)!r}, 'w').close()"),
        "__import__": Call(Call(getattr, Call(__import__, "os"), "system"), shell),
        "functools.partial": Call(functools.partial(os.system, shell)),
        "map": Call(list, Call(map, os.system, [shell])),
        "pickle.loads": Call(pickle.loads, pickle.dumps(system)),
        "deep in containers": ({"a": [1, ([system],)]},),
        "dictionary key": {system: 1},
        "set member": {system},
        "numpy object array": np.array([None, {"deep": [system]}], object),
        "numpy.load": Call(functools.partial(np.load, allow_pickle=True), Call(
            io.BytesIO, file_bytes(np.save, np.array([system])))),
        "torch storage": Call(torch.storage._load_from_bytes, file_bytes(
            lambda file, value: torch.save(value, file), system)),
    }


def hostile_programs(target):
    """Name -> the bytes of such a pickle, for what no pickler writes."""
    shell = f"touch {target}"
    quoted, arguments = repr(shell).encode(), (b"(", shell, b"t")
    gadget = f"c{__name__}\nGadget\n".encode()
    return {
        "protocol 0": b"cos\nsystem\n(S" + quoted + b"\ntR.",
        "Python 2 names": b"c__builtin__\neval\n(S\"__import__('os').system(" + quoted.replace(
            b"'", b"\\'") + b")\"\ntR.",
        "INST": b"(S" + quoted + b"\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS" + quoted + b"\no.",
        "NEWOBJ": program(gadget, *arguments, b"\x81"),
        "NEWOBJ_EX": program(gadget, *arguments, b"}\x92"),
        "BUILD": program(gadget, b")\x81", shell, b"b"),
        "STACK_GLOBAL": program("os", "system", b"\x93", *arguments, b"R"),
        "a dotted name": program("shutil", "os.system", b"\x93", *arguments, b"R"),
        "a name from the memo": program("system", b"\x940", "os", b"h\x00\x93", *arguments, b"R"),
        "EXT1": program(b"\x82\xf0", *arguments, b"R"),
        "EXT2": program(b"\x83\xf0\x00", *arguments, b"R"),
        "EXT4": program(b"\x84\xf0\x00\x00\x00", *arguments, b"R"),
        "in the middle of data": program(b"](", "a", b"cos\nsystem\n", *arguments, b"R", b"e"),
        "result thrown away": program(b"cos\nsystem\n", *arguments, b"R0N"),
        "state of an array": program(
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R",
            b"cos\nsystem\n", *arguments, b"R0(K\x01)cnumpy\ndtype\n", "f8", b"K\x00K\x01\x87R",
            b"\x89C\x08--------tb"),
    }


@pytest.fixture
def target(tmp_path):
    """The file whose existence shows that something was executed."""
    target = tmp_path / "executed"
    copyreg.add_extension("os", "system", 240)
    yield target
    copyreg.remove_extension("os", "system", 240)
    copyreg._extension_cache.pop(240, None)


HOSTILE = [*hostile_objects(Path("x")), *hostile_programs("x")]


def hostile_file(name, target, protocol=4):
    programs = hostile_programs(target)
    return programs[name] if name in programs else pickle.dumps(
        hostile_objects(target)[name], protocol)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickle_is_refused(name, target):
    """A file that makes an ordinary unpickler run code is refused, and nothing runs."""
    for protocol in (0, 2, 4, 5):
        attack = hostile_file(name, target, protocol)
        with contextlib.suppress(Exception):  # some fail after the deed
            pickle.loads(attack)
        assert target.exists(), "this file does no harm, so refusing it shows nothing"
        target.unlink()
        with pytest.raises(UnsafeFileError, match="only text, numbers, arrays"):
            safe_unpickle(attack)
        assert not target.exists()


def test_hostile_model_files_are_refused(target, tmp_path):
    """The same through the doors that users take: load_arrays and load_model, .pkl and .npz."""
    attack = Call(os.system, f"touch {target}")
    (tmp_path / "SMPL_NEUTRAL.pkl").write_bytes(pickle.dumps({"v_template": attack}))
    np.savez(tmp_path / "SMPLX_NEUTRAL.npz", v_template=np.array([attack]))
    for name in ("SMPL_NEUTRAL.pkl", "SMPLX_NEUTRAL.npz"):
        for load in (load_arrays, load_model):
            with pytest.raises(UnsafeFileError, match=f"{name}.*posix.system"):
                load(tmp_path / name)
    assert not target.exists()


# --------------------------------------------------------------------------------------- damaged


def claim(code, shape, content):
    """A pickled array that claims any type and shape for its content."""
    shape, code, content = (pickle.dumps(value, 3)[2:-1] for value in (shape, code, content))
    return (b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
            b"(K\x01" + shape + b"cnumpy\ndtype\n" + code + b"K\x00K\x01\x87R"
            b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            + content + b"tb.")


def nested_tuples(depth):
    return b")" + b"\x942\x86" * depth  # each a pair of the one before


IMPOSSIBLE = {
    "nothing": b"",
    "not a pickle": b"\x89PNG\r\n",
    "an unknown protocol": b"\x80\x09N.",
    "an unknown instruction": b"\x80\x04\xfe.",
    "a persistent name": b"Psomething\n.",
    "a persistent object": b"\x80\x02NQ.",
    "an out-of-band buffer": b"\x80\x05\x97.",
    "an empty stack": b"\x80\x040.",
    "a missing mark": b"\x80\x04NNt.",
    "a missing memo entry": b"\x80\x04h\x07.",
    "a function as data": program(b"c_codecs\nencode\n"),
    "a class as data": program(b"cnumpy\nndarray\n"),
    "an array without state": program(
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"),
    "state for a list": program(b"]", b"}", "a", b"Nsb"),
    "state for a function": program(b"c_codecs\nencode\n", b"N}", "__code__", b"Ns\x86b"),
    "state for a class": program(b"cnumpy\nndarray\n", b"N}", "rebuild", b"Ns\x86b"),
    "another codec": program(b"c_codecs\nencode\n", "x", "punycode", b"\x86R"),
    "a list that holds itself": b"\x80\x04]\x94h\x00a.",
    "lists too deep": b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "a key that takes forever to hash": b"\x80\x04}" + nested_tuples(200) + b"Ns.",
    "keys without values": b"\x80\x04}(NNNu.",
    "more bytes than there are": b"\x80\x04\x8e" + struct.pack("<Q", 2 ** 62) + b"abc.",
    "more bytearray than there is": b"\x80\x05\x96" + struct.pack("<Q", 2 ** 62) + b"abc.",
    "more text than there is": b"\x80\x04\x8d" + struct.pack("<Q", 2 ** 62) + b"abc.",
    "more integer than there is": b"\x80\x02\x8b" + struct.pack("<i", 2 ** 31 - 1) + b"abc.",
    "an array larger than its bytes": claim("f8", (2 ** 40,), b"12345678"),
    "an array smaller than its bytes": claim("f8", (0,), b"12345678"),
    "an array of negative size": claim("f8", (-1, -1), b"12345678"),
    "an array of float size": claim("f8", (1.0,), b"12345678"),
    "elements without bytes": claim("S0", (2 ** 40,), b""),
    "bytes as Python objects": claim("O8", (1,), b"12345678"),
    "a list as numbers": claim("f8", (1,), [1.0]),
    "records": claim("V8", (1,), b"12345678"),
    "dates": claim("M8", (1,), b"12345678"),
    "a type that is none": claim("f7", (1,), b"1234567"),
    "a type spelled in words": claim("float64, (2,)O", (1,), b"12345678"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_pickle_is_refused(name):
    with pytest.raises(UnsafeFileError, match="only text, numbers, arrays"):
        safe_unpickle(IMPOSSIBLE[name])


@pytest.mark.parametrize("change", [
    {"_shape": (5, 8)}, {"_shape": (4, 7)}, {"_shape": (2 ** 40, 7)}, {"_shape": (-5, -7)},
    {"_shape": (5.0, 7)}, {"indices": np.full(35, 5)}, {"indices": np.full(35, -1)},
    {"indices": np.zeros(34, int)}, {"indices": np.zeros(35)}, {"indptr": np.zeros(8, int)},
    {"indptr": np.array([0, 35, 0, 35, 35, 35, 35, 35])}, {"indptr": np.arange(0, 40, 5)[::-1]},
    {"data": np.array([None] * 35)}, {"data": np.zeros((35, 1))}, {"data": None},
    {"indptr": np.array([0, 127, -128, -1, -1, -1, -1, 35], np.int8)},
], ids=repr)
def test_sparse_matrix_that_contradicts_itself_is_refused(foreign, change):
    """Shapes, indices and pointers are checked against each other before anything is filled."""
    state = sparse_state(np.ones((5, 7)), by_column=True)
    kind = foreign("scipy.sparse.csc", "csc_matrix")
    assert safe_unpickle(pickle.dumps(kind(**state))).shape == (5, 7)
    with pytest.raises(UnsafeFileError):
        safe_unpickle(pickle.dumps(kind(**(state | change))))


def bombs(foreign):
    """Name -> a small pickle of what is huge in memory."""
    kind = foreign("scipy.sparse.csr", "csr_matrix")
    state = sparse_state(np.zeros((4096, 1), np.int8), False) | {"_shape": (4096, 4096)}
    array = (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
             b"J\x00\x00\x10\x00\x85cnumpy\ndtype\nX\x02\x00\x00\x00u1K\x00K\x01\x87R\x89h\x00tb")
    lists = [1.0] * 10
    for _ in range(8):  # ten references to ten references: as an array, a billion numbers
        lists = [lists] * 10
    ch, add = foreign("chumpy.ch", "Ch"), foreign("chumpy.ch_ops", "add")
    return {
        "empty matrices of 16 MB each": pickle.dumps([kind(**state) for _ in range(40)]),
        "arrays that share their bytes in the file alone": (
            b"\x80\x04B" + struct.pack("<I", 2**20) + bytes(2**20) + b"q\x00" + b"0("
            + array * 1000 + b"l."),
        "nested lists": pickle.dumps(lists),
        "a column plus a row": pickle.dumps(add(a=ch(x=np.zeros((9, 1))), b=ch(x=np.zeros((1, 9)))))
    }


def test_a_small_pickle_cannot_fill_the_memory(foreign):
    """What a file may become is limited by its size, for all of its parts together. A memo index of
    four billion is no reason to allocate four billion slots."""
    for name, content in bombs(foreign).items():
        assert len(content) < 2**21, name
        with pytest.raises(UnsafeFileError, match="far more memory|repeat one another|shapes"):
            safe_unpickle(content)
    assert safe_unpickle(b"\x80\x02]r\xff\xff\xff\xff.") == []


@pytest.fixture
def specimens(foreign):
    """Small files with everything in them: pickles of all protocols and an npz."""
    dense = np.eye(3)
    value = {"f": np.arange(6.0).reshape(2, 3), "u": np.array(["ab", "c"]), "s": np.float32(2),
             "o": np.array([{"k": (1, b"x")}], object), "n": [1, 2.5, None, "é", {1, 2}],
             "csc": foreign("scipy.sparse.csc", "csc_matrix")(**sparse_state(dense, True)),
             "ch": foreign("chumpy.reordering", "Select")(
                 a=foreign("chumpy.ch", "Ch")(x=dense), idxs=np.arange(3))}
    archive = io.BytesIO()
    np.savez(archive, f=value["f"], u=value["u"], o=value["o"], g=value["f"].T)
    return [pickle.dumps(value, protocol) for protocol in PROTOCOLS], archive.getvalue()


def test_every_truncation_is_refused(specimens, tmp_path):
    """No beginning of a file is mistaken for the file."""
    pickles, archive = specimens
    for file in pickles:
        for length in range(0, len(file), 7):
            with pytest.raises(UnsafeFileError):
                safe_unpickle(file[:length])
    for length in range(0, len(archive), 31):
        (tmp_path / "model.npz").write_bytes(archive[:length])
        with pytest.raises(UnsafeFileError, match="model.npz"):
            load_arrays(tmp_path / "model.npz")


def mutated(file, source):
    """The file with a few bytes changed, removed, repeated or moved."""
    file = bytearray(file)
    for _ in range(source.choice((1, 1, 2, 8))):
        start, length = source.randrange(len(file)), source.randrange(1, 9)
        piece = bytes(file[start:start + length])
        match source.randrange(4):
            case 0:
                file[start] = source.randrange(256)
            case 1:
                del file[start:start + length]
            case 2:
                file[start:start] = piece * source.randrange(1, 3)
            case 3:
                other = source.randrange(len(file))
                file[other:other + length] = piece
    return bytes(file)


def test_fuzz(specimens, tmp_path):
    """A damaged file is read or refused with UnsafeFileError: there is no third outcome."""
    pickles, archive = specimens
    source, read = random.Random(0), 0
    for file in pickles * 80:
        with contextlib.suppress(UnsafeFileError):
            safe_unpickle(mutated(file, source))
            read += 1
    assert 0 < read < 400  # the mutations are neither all fatal nor all harmless
    files = [file_bytes(np.save, array) for array in (
        np.eye(3), np.array(["ab", "c"]), np.array([{"k": 1}], object))]
    for content, name, load in ((archive, "a.npz", load_arrays),
                                *((content, "a.npy", load_array) for content in files)):
        for _ in range(120):
            (tmp_path / name).write_bytes(mutated(content, source))
            with contextlib.suppress(UnsafeFileError):
                load(tmp_path / name)


# ------------------------------------------------------------------------------------------- npz


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)


@pytest.mark.parametrize("header", [
    b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,",  # a TokenError of tokenize
    b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}\n",
    b"{'descr': '<f8', 'fortran_order': False, 'shape': (10_000_000_000_000,)}\n",
    b"{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904,)}\n",
    b"{'descr': '|S0', 'fortran_order': False, 'shape': (4611686018427387904,)}\n",
    b"{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}\n",
    b"{'descr': 7, 'fortran_order': False, 'shape': (1,)}\n",
    b"__import__('os').system('touch TARGET')\n", b"['descr']\n", b"", b"\xff" * 60,
])
def test_damaged_npy_is_refused(tmp_path, target, header):
    """Whatever numpy stumbles over becomes one UnsafeFileError that names the file, alone or in an
    archive; a header is a literal and is not executed."""
    content = npy(header.replace(b"TARGET", str(target).encode()))
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    for load, name in ((load_array, "a.npy"), (load_arrays, "a.npy"), (load_arrays, "a.npz")):
        with pytest.raises(UnsafeFileError, match=f"{name} is damaged or unsafe"):
            load(tmp_path / name)
    assert not target.exists()


def test_npz_members(tmp_path):
    """Numbers, text and arrays of objects are read from an npz without numpy's own unpickler."""
    value = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones((2, 3)).T, "text": np.array("right"),
             "rows": np.array([{"x": 1}, None], object), "table": np.array({"y": [1, 2]}, object)}
    np.savez_compressed(tmp_path / "a.npz", **value)
    result = load_arrays(tmp_path / "a.npz")
    assert result["table"] == {"y": [1, 2]}
    del value["table"], result["table"]
    assert same(value, result)


@given(arrays)
def test_npy_files_come_back_unchanged(array):
    """load_array reads what np.save wrote, in its layout."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/a.npy", array)
        if array.dtype.itemsize:
            result = load_array(f"{folder}/a.npy")
            np.testing.assert_array_equal(result, np.load(f"{folder}/a.npy"))
            assert result.dtype == array.dtype and result.flags.writeable


def test_a_small_npz_cannot_fill_the_memory(tmp_path):
    """An archive is refused for what its members claim to unpack to, before any is read."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "abc":
            archive.writestr(f"{name}.npy", npy(b"{}"))
            archive.infolist()[-1].file_size = 2**27
    with pytest.raises(UnsafeFileError, match="far more memory than its size explains"):
        load_arrays(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", npy(b"{}"))
    with pytest.raises(UnsafeFileError, match="a compression that numpy does not write"):
        load_arrays(path)
