"""What all data sets share: keys, random numbers, tensors, packed files, workers."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sets.augmentation import Augmentation, find_augmentation

try:
    import fcntl
except ImportError:  # not POSIX: concurrent builders then repeat each other's work
    fcntl = None


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def follow_parent(worker: int = 0) -> None:
    """Leave signals to the process that started this worker, and end when that process ends.

    A worker_init_fn of the DataLoader: the worker of a killed process would wait for ever for work.
    """
    parent = multiprocessing.parent_process().pid

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def fingerprint(settings: dict) -> str:
    """Return sixteen hexadecimal digits that change with any of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def build_packed(path: Path, dtype: np.dtype, chunks: Callable[[int], Iterable[np.ndarray]],
                 length: int | None = None) -> np.ndarray:
    """Memory-map the records of `path` (N,); build the file if it is new.

    chunks(start) yields the records from number `start` on. They are written to a file beside
    `path`, which is renamed at the end, so that readers never see half of it. length: N, if it is
    known; then a builder that was killed or stopped continues there, and a file that was cut off is
    built anew. When several processes ask at once, one builds and the others wait and say so; the
    lock of a killed builder dies with it. Raises ValueError if the folder cannot be written.
    """
    def is_complete() -> bool:
        return path.is_file() and length in (None, path.stat().st_size / dtype.itemsize)

    if not is_complete():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = open(path.with_suffix(".lock"), "w")
        except OSError as error:
            raise ValueError(f"cannot write the cache {path.parent} ({error}): give cache=FOLDER "
                             "on a disk with room and permission") from error
        with lock:
            if fcntl:  # lockf: data workers, which the process forks, would inherit flock's lock
                try:
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    print(f"waiting for another process that renders or packs {path.name}",
                          file=sys.stderr, flush=True)
                    fcntl.lockf(lock, fcntl.LOCK_EX)
            if not is_complete():  # nobody finished it while we waited
                temporary = path.with_suffix(".part" if fcntl else f".{os.getpid()}.part")
                done = temporary.stat().st_size if temporary.is_file() else 0
                needed = (length or 0) * dtype.itemsize - done
                if needed > shutil.disk_usage(path.parent).free:
                    raise ValueError(f"{path} needs {needed / 1e9:.1f} GB, more than its disk has "
                                     "left: give cache=FOLDER on another one")
                try:
                    with open(temporary, "wb" if length is None else "ab") as file:
                        count = file.tell() // dtype.itemsize
                        file.truncate(count * dtype.itemsize)
                        for chunk in chunks(count):
                            file.write(chunk.tobytes())
                            file.flush()
                        os.fsync(file.fileno())
                    os.replace(temporary, path)
                finally:
                    if length is None:
                        temporary.unlink(missing_ok=True)
    return np.memmap(path, dtype, "r")


# The first number of a generator's seed: one independent stream of random numbers for each use.
AUGMENTING, RENDERING, NOISE, RENDERING_BODIES, RENDERING_PEOPLE, DETAILS, MIXING = range(7)


def random_generator(*seed: int) -> np.random.Generator:
    """Return a counter-based generator that depends on these non-negative numbers alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))


class KeyedDataset(Dataset):
    """A data set whose samples are pure functions of their keys: epoch * length + index.

    size, augmentation: side and recipe of square crops, if the samples have pictures. Left hands
    are mirrored, so that the labels are those of right hands. A recipe with flips mirrors hands
    once more: half of them then look like left ones, with the topology of right ones.

    Subclasses have `load(index, rng)`: the sample's arrays after the geometric part of the
    augmentation. Those with records in a memory-mapped file, which every process opens for itself,
    have what `build_packed` needs: path, dtype, perhaps length, and `chunks(start)`.
    """

    length: int | None = None
    path: Path | None = None
    _packed: np.ndarray | None = None

    def __init__(self, split: str, splits: Sequence[str], seed: int, size: int | None = None,
                 augmentation: str | Augmentation | None = None) -> None:
        if split not in splits:
            raise ValueError(f"unknown split {split!r}: expected one of {', '.join(splits)}")
        self.split, self.seed, self.size = split, seed, size
        self.split_id = list(splits).index(split)
        self.augmentation = find_augmentation(augmentation)

    def finish(self, sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        """Augment the colours in place."""
        recipe = self.augmentation
        if recipe is None:
            return
        sample["image"] = recipe.recolor(sample["image"], rng)
        if "hand_images" in sample:
            sample["hand_images"] = np.stack([recipe.soften(recipe.recolor(image, rng), rng)
                                              for image in sample["hand_images"]])
        if "mesh_valid" in sample and not sample["keypoints_valid"][[0, 9]].any():
            sample["mesh_valid"] = 0.0  # SimpleHand's release: no 3D loss without joints 0 and 9

    def locate(self, key: int) -> tuple[int, int]:
        """Return the epoch and the index of a key; IndexError if it is negative."""
        if key < 0:
            raise IndexError(f"keys count up from 0 (epoch * length + index), got {key}")
        return divmod(int(key), len(self))

    def generator(self, key: int) -> np.random.Generator:
        """Return the random numbers of a key: of its augmentation, or of all of it."""
        return random_generator(AUGMENTING, self.seed, self.split_id, *self.locate(key))

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        index, rng = self.locate(key)[1], self.generator(key)
        sample = {"index": np.int64(index)} | self.load(index, rng)
        self.finish(sample, rng)
        return {name: _tensor(value) for name, value in sample.items()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[index] for index in range(len(self)))  # one epoch; keys have no end

    def records(self, indices: int | np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return all records or some, memory-mapped."""
        if self._packed is None:
            self._packed = build_packed(self.path, self.dtype, self.chunks, self.length)
        return self._packed[indices]

    def __len__(self) -> int:
        return len(self.records())

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}


class Joined(KeyedDataset):
    """Several data sets of one split, one after the other: AMASS and MOYO, for example."""

    def __init__(self, datasets: Sequence[KeyedDataset]) -> None:
        super().__init__(datasets[0].split, [datasets[0].split], datasets[0].seed)
        self.datasets = list(datasets)

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        epoch, index = self.locate(key)
        own = index
        for dataset in self.datasets:
            if own < len(dataset):
                break
            own -= len(dataset)
        return dataset[epoch * len(dataset) + own] | {"index": torch.tensor(index)}


class Mixed(Joined):
    """Several data sets in proportions: the weights choose the set of each sample at random.

    The index and the epoch within the set are drawn as well. An epoch is as long as all data sets
    together. All must have one sample layout.
    """

    def __init__(self, datasets: Sequence[KeyedDataset], weights: Sequence[float],
                 seed: int = 0) -> None:
        super().__init__(datasets)
        self.seed = seed
        self.weights = np.array(weights, np.float64) / sum(weights)

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        epoch, index = self.locate(key)
        rng = random_generator(MIXING, self.seed, epoch, index)
        dataset = self.datasets[rng.choice(len(self.datasets), p=self.weights)]
        own = int(rng.integers(2**31)) * len(dataset) + int(rng.integers(len(dataset)))
        return dataset[own] | {"index": torch.tensor(index)}


def _tensor(value: np.ndarray | float) -> Tensor:
    array = np.asarray(value)
    kept = array.dtype in (np.uint8, np.int64)
    return torch.from_numpy(np.array(array, array.dtype if kept else np.float32, order="C"))
