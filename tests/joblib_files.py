"""Pickles of others: as joblib writes them, which need not be installed, and hostile ones."""

import pickle

import numpy as np


class Call:
    """Unpickling it calls the function; so does one that stands where a function is expected."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments

    def __call__(self):
        raise NotImplementedError("only for pickle, which wants a callable")


class Wrapper:
    """What joblib pickles in the place of an array whose bytes follow."""


class JoblibPickler(pickle._Pickler):
    """Writes arrays as joblib does: a wrapper object, padding to 16 bytes, the array's bytes."""

    def save(self, value, save_persistent_id=True):
        if type(value) is not np.ndarray:
            return super().save(value, save_persistent_id)
        wrapper = Wrapper()
        wrapper.__dict__.update(subclass=np.ndarray, shape=value.shape, dtype=value.dtype,
                                order="F" if value.flags.fnc else "C", allow_mmap=True,
                                numpy_array_alignment_bytes=16)
        super().save(wrapper)
        if self.proto >= 4:
            self.framer.commit_frame(force=True)
        padding = 16 - (self.file.tell() + 1) % 16
        self.file.write(bytes([padding]) + b"\xff" * padding + value.tobytes("A"))


def joblib_dump(value, path, protocol=4):
    Wrapper.__module__, Wrapper.__qualname__ = "joblib.numpy_pickle", "NumpyArrayWrapper"
    with open(path, "wb") as file:
        pickler = JoblibPickler(file, protocol)
        pickler.file = file
        known = pickle._Pickler.save_global

        def save_global(self, obj, name=None):  # the class's module need not be installed
            if obj is not Wrapper:
                return known(self, obj, name)
            self.write(pickle.GLOBAL + b"joblib.numpy_pickle\nNumpyArrayWrapper\n")
            self.memoize(obj)

        pickler.dispatch = pickle._Pickler.dispatch | {type: save_global}
        pickler.dump(value)
