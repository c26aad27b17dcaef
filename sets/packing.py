"""Packing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # not POSIX: concurrent builders then repeat each other's work
    fcntl = None


def fingerprint(settings: dict) -> str:
    """Sixteen hexadecimal digits that change with any of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def open_packed(path: Path, dtype: np.dtype, length: int | None) -> np.ndarray | None:
    """The memory-mapped records (length,) of a complete file, else None; length None is any."""
    try:
        records = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    expected = records.shape[:1] if length is None else (length,)
    return records if records.dtype == dtype and records.shape == expected else None


def build_packed(path: Path, dtype: np.dtype, length: int | None,
                 fill: Callable[..., Iterator[np.ndarray] | None]) -> np.ndarray:
    """Memory-map `path`, building it first with `fill(records)` unless it is complete.

    With length None the records are those that `fill()` yields, however many they are. Readers
    never see half a file: it is written beside its place and renamed. Of several processes that
    ask at once one builds and the others wait; a killed builder's lock dies with it.
    """
    records = open_packed(path, dtype, length)
    if records is not None:
        return records
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "w")
    except OSError as error:
        raise ValueError(f"cannot write the cache {path.parent} ({error}): "
                         "give cache=FOLDER on a disk with room and permission") from error
    temporary = path.with_suffix(".tmp" if fcntl else f".{os.getpid()}.tmp")
    with lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if open_packed(path, dtype, length) is None:  # nobody finished it while we waited
            needed = dtype.itemsize * (length or 0)
            if shutil.disk_usage(path.parent).free < 1.05 * needed:  # a full disk kills by SIGBUS
                raise ValueError(f"{path.parent} has no room for {needed / 1e9:.1f} GB: "
                                 "give cache=FOLDER elsewhere")
            try:
                if length is None:
                    write_records(temporary, dtype, fill())
                else:
                    records = np.lib.format.open_memmap(temporary, "w+", dtype, (length,))
                    fill(records)
                    records.flush()  # to the disk
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    return open_packed(path, dtype, length)


def write_records(path: Path, dtype: np.dtype, chunks: Iterable[np.ndarray]) -> None:
    """A .npy file of all records of the chunks, of which one at a time is in memory."""
    count = 0
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_2_0(file, header | {"shape": (0,)})
        for chunk in chunks:
            file.write(chunk.tobytes())
            count += len(chunk)
        file.seek(0)  # numpy leaves room in the header for any number of records
        np.lib.format.write_array_header_2_0(file, header | {"shape": (count,)})
        file.flush()
        os.fsync(file.fileno())


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def stream_json_list(path: Path, chunk: int = 1 << 22, key: str = "") -> Iterator[object]:
    """The items of a JSON file that holds one long list, one at a time, in little memory.

    key: the list is the value of this key, which occurs once, of the file's dictionary. Raises
    ValueError if the file is damaged, or if one item is longer than 16 chunks of characters.
    """
    decoder, gap = json.JSONDecoder(), re.compile(r"[\s,]*")
    with open(path, encoding="utf-8") as file:
        text = file.read(chunk).lstrip()
        start = re.compile(rf'"{key}"\s*:\s*\[' if key else r"\[")
        while key and not start.search(text) and (more := file.read(chunk)):
            text = text[-100:] + more  # the key may have been cut in two
        found = start.search(text) if key else start.match(text)
        if not found:
            raise ValueError(f"it has no list {key!r}" if key else "it does not start with [")
        position = found.end()
        while True:
            position = gap.match(text, position).end()
            if text.startswith("]", position):
                return
            with contextlib.suppress(json.JSONDecodeError):  # perhaps only cut by the chunk's end
                item, end = decoder.raw_decode(text, position)
                if text[end:end + 1] in tuple(",] \t\r\n"):  # else a number may go on
                    yield item
                    position = end
                    continue
            more = file.read(chunk)
            if not more or len(text) - position > 16 * chunk:
                raise ValueError("damaged or cut off")
            text, position = text[position:] + more, 0
