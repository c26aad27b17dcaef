"""Read annotation files of foreign make. A damaged file is one ValueError."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from files import load_arrays


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
