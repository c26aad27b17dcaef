"""What all data sets share: keys, random numbers, tensors; data sets joined and mixed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sets.augmentation import Augmentation, find_augmentation

# The first number of a generator's seed: one independent stream of random numbers for each use.
AUGMENTING, RENDERING, NOISE, RENDERING_BODIES, RENDERING_PEOPLE, DETAILS, MIXING = range(7)


def random_generator(*seed: int) -> np.random.Generator:
    """Return a counter-based generator that depends on these non-negative numbers alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))


class KeyedDataset(Dataset):
    """A data set whose samples are pure functions of their keys: epoch * length + index."""

    def __init__(self, split: str, splits: Sequence[str], seed: int) -> None:
        if split not in splits:
            raise ValueError(f"unknown split {split!r}: expected one of {', '.join(splits)}")
        if seed < 0:
            raise ValueError(f"expected seed >= 0, got {seed}")
        self.split, self.seed = split, seed
        self.split_id = list(splits).index(split)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the sample's arrays after the geometric part of the augmentation."""
        raise NotImplementedError

    def finish(self, sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        """Apply the rest of the augmentation in place."""

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


class ImageDataset(KeyedDataset):
    """A data set of square crops. The colours are augmented last."""

    def __init__(self, split: str, splits: Sequence[str], size: int, seed: int,
                 augmentation: str | Augmentation | None) -> None:
        super().__init__(split, splits, seed)
        if size < 16:
            raise ValueError(f"expected size >= 16, got {size}")
        self.size, self.augmentation = size, find_augmentation(augmentation)

    def finish(self, sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        if self.augmentation is not None:
            sample["image"] = self.augmentation.recolor(sample["image"], rng)


class Joined(KeyedDataset):
    """Several data sets of one split, one after the other: AMASS and MOYO, for example."""

    def __init__(self, datasets: Sequence[KeyedDataset]) -> None:
        if not datasets:
            raise ValueError("expected at least one data set to join")
        super().__init__(datasets[0].split, [datasets[0].split], datasets[0].seed)
        self.datasets = list(datasets)
        self.ends = np.cumsum([len(dataset) for dataset in datasets])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        epoch, index = self.locate(key)
        number = int(np.searchsorted(self.ends, index, side="right"))
        dataset = self.datasets[number]
        own = index - int(self.ends[number]) + len(dataset)
        return dataset[epoch * len(dataset) + own] | {"index": torch.tensor(index)}


class Mixed(KeyedDataset):
    """Several data sets in proportions: the weights choose the set of each sample at random.

    The index and the epoch within the set, which decides the augmentation, are drawn as well. An
    epoch is as long as all data sets together, or `length`. All must have one sample layout.
    """

    def __init__(self, datasets: Sequence[KeyedDataset], weights: Sequence[float],
                 length: int | None = None, seed: int = 0) -> None:
        if not datasets or len(datasets) != len(weights) or min(weights) <= 0:
            raise ValueError("expected data sets and as many weights above 0")
        super().__init__("train", ["train"], seed)
        self.datasets = list(datasets)
        self.weights = np.array(weights, np.float64) / sum(weights)
        self.length = sum(map(len, datasets)) if length is None else length

    def __len__(self) -> int:
        return self.length

    @property
    def joint_set(self) -> str | None:
        """The joint set of the bodies' keypoints; None for hands."""
        return getattr(self.datasets[0], "joint_set", None)

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
