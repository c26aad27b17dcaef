"""Read annotation files of foreign make. A damaged file is one ValueError."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from files import load_arrays
from sets.workers import follow_parent


class MissingPackage(ValueError):
    """A file needs a package that is not installed."""


def read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """Read these arrays of an .npz, and no others. Raises ValueError if one is missing."""
    arrays = [load_arrays(path, name).get(name) for name in names]
    missing = [name for name, array in zip(names, arrays, strict=True) if array is None]
    if missing:
        raise ValueError(f"it has no array {', '.join(missing)}")
    return arrays


def texts(names: np.ndarray) -> list[str]:
    """Convert names that a file holds as text or as bytes."""
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def read_yaml(path: Path) -> dict:
    """Read a YAML file of plain data."""
    try:
        import yaml
    except ImportError as error:
        raise MissingPackage("YAML files need PyYAML: pip install pyyaml") from error
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error


def read_mat(path: Path) -> dict:
    """Read the variables of a MATLAB file before version 7.3; structs become objects.

    Another process does it: a damaged file can make scipy crash.
    """
    if multiprocessing.current_process().daemon:  # it may not start a process
        return _load_mat(path)
    try:
        with ProcessPoolExecutor(1, initializer=follow_parent) as pool:
            return pool.submit(_load_mat, path).result()
    except ImportError:
        raise
    except Exception as error:  # damaged files raise almost any error
        raise ValueError(f"no MATLAB file before version 7.3: {error}") from error


def _load_mat(path: Path) -> dict:
    from scipy.io import loadmat  # slow to import, and needed for two data sets only
    return loadmat(path, squeeze_me=True, struct_as_record=False)


def as_list(value: object) -> list:
    """Convert a MATLAB array of objects, which scipy unwraps if it has one element, to a list."""
    return list(np.atleast_1d(np.asarray(value, object)))
