"""Packed files: annotation or rendered samples, stored once and memory-mapped afterwards."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

try:
    import fcntl
except ImportError:  # not POSIX: concurrent builders then repeat each other's work
    fcntl = None


def fingerprint(settings: dict) -> str:
    """Return sixteen hexadecimal digits that change with any of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def open_packed(path: Path, dtype: np.dtype, length: int | None) -> np.ndarray | None:
    """Memory-map the records (length,) of a complete file, or return None.

    length None accepts any number of records.
    """
    try:
        records = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # missing or damaged; numpy raises almost any error on a damaged header
        return None
    expected = records.shape[:1] if length is None else (length,)
    return records if records.dtype == dtype and records.shape == expected else None


def build_packed(path: Path, dtype: np.dtype, length: int | None, fill: Callable, *,
                 resume: bool = False) -> np.ndarray:
    """Memory-map `path`; build it first with `fill(records)` unless it is complete.

    With length None, `fill()` yields the records in chunks. With resume, `fill(records, start)`
    fills them from `start` on, in order, and yields now and then how many there are; a builder that
    was killed then continues there. The file is written beside its place and renamed, so that
    readers never see half of it. When several processes ask at once, one builds and the others
    wait and say so; the lock of a killed builder dies with it.
    Raises ValueError if the folder cannot be written or has no room.
    """
    records = open_packed(path, dtype, length)
    if records is not None:
        return records
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "w")
    except OSError as error:
        raise _not_written(path, error) from error
    temporary = path.with_suffix(".tmp" if fcntl else f".{os.getpid()}.tmp")
    with lock:
        if fcntl:
            _lock(lock, path.name)
        if open_packed(path, dtype, length) is None:  # nobody finished it while we waited
            try:
                if length is None:
                    write_records(temporary, dtype, fill())
                else:
                    _fill_records(temporary, dtype, length, fill, resume)
                os.replace(temporary, path)
            except OSError as error:
                resume = False  # a full disk, for example: leave nothing
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise _not_written(path, error) from error
                raise
            finally:
                if not resume:
                    temporary.unlink(missing_ok=True)
                if not temporary.exists():
                    _count_file(temporary).unlink(missing_ok=True)
    return open_packed(path, dtype, length)


def _lock(file: IO, name: str) -> None:
    """Wait until no other process holds the lock, then take it.

    lockf: its locks belong to the process. A lock of flock would be inherited by the data workers
    that the process forks, and would live as long as the last of them.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        print(f"waiting for another process that renders or packs {name}", file=sys.stderr,
              flush=True)
        fcntl.lockf(file, fcntl.LOCK_EX)


def _fill_records(temporary: Path, dtype: np.dtype, length: int, fill: Callable,
                  resume: bool) -> None:
    """Fill the temporary file; with resume from where its builder was killed."""
    counter = _count_file(temporary)
    start = _records_done(temporary, dtype, length) if resume else 0
    _check_room(temporary, dtype.itemsize * (length - start))
    if not start:
        counter.unlink(missing_ok=True)  # of an older file
    records = np.lib.format.open_memmap(temporary, "r+" if start else "w+", dtype, (length,))
    if resume:
        for done in fill(records, start):
            records.flush()  # to the disk, before they count
            counter.write_text(str(done))  # if torn, a smaller number
    else:
        fill(records)
    records.flush()


def _count_file(temporary: Path) -> Path:
    return temporary.with_suffix(".done")


def _records_done(temporary: Path, dtype: np.dtype, length: int) -> int:
    """Return how many records a killed builder left in the temporary file."""
    counter = _count_file(temporary)
    if open_packed(temporary, dtype, length) is None or not counter.exists():
        return 0
    text = counter.read_text(errors="replace")
    return int(text) if text.isdecimal() and int(text) <= length else 0


def _check_room(path: Path, needed: int) -> None:
    """Raise ValueError if the disk has no room: writing to a memory map would kill the process."""
    if shutil.disk_usage(path.parent).free < 1.05 * needed:
        raise _not_written(path, f"no room for {needed / 1e9:.1f} GB")


def _not_written(path: Path, reason: object) -> ValueError:
    return ValueError(f"cannot write the cache {path.parent} ({reason}): "
                      "give cache=FOLDER on a disk with room and permission")


def write_records(path: Path, dtype: np.dtype, chunks: Iterable[np.ndarray]) -> None:
    """Write the records of all chunks as one .npy file, with one chunk in memory at a time."""
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


def stream_json_list(path: Path, chunk: int = 1 << 22, key: str = "") -> Iterator[object]:
    """Yield the items of a JSON file that holds one long list, using little memory.

    key: the list is the value of this key of the file's dictionary; the key occurs once. Raises
    ValueError if the file is damaged, or if one item is longer than 16 chunks of characters.
    """
    decoder, gap = json.JSONDecoder(), re.compile(r"[\s,]*")
    with open(path, encoding="utf-8") as file:
        text = file.read(chunk).lstrip()
        start = re.compile(rf'"{key}"\s*:\s*\[' if key else r"\[")
        while key and not start.search(text) and (more := file.read(chunk)):
            text = text[-100:] + more  # a chunk may end inside the key
        match = start.search(text) if key else start.match(text)
        if not match:
            raise ValueError(f"it has no list {key!r}" if key else "it does not start with [")
        position = match.end()
        while True:
            position = gap.match(text, position).end()
            if text.startswith("]", position):
                return
            with contextlib.suppress(json.JSONDecodeError):  # the chunk may end inside the item
                item, end = _decode(decoder, text, position)
                if text[end:end + 1] in tuple(",] \t\r\n"):  # otherwise a number may continue
                    yield item
                    position = end
                    continue
            more = file.read(chunk)
            if not more or len(text) - position > 16 * chunk:
                raise ValueError("damaged or cut off")
            text, position = text[position:] + more, 0


def _decode(decoder: json.JSONDecoder, text: str, position: int) -> tuple[object, int]:
    try:
        return decoder.raw_decode(text, position)
    except RecursionError as error:
        raise ValueError("lists nested too deeply") from error
