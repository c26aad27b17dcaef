"""Freihand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sets.augmentation import Augmentation
from sets.crops import inside
from sets.hand_crops import NUM_JOINTS, NUM_VERTICES, Annotated, HandDataset, hand_sample
from sets.images import read_image
from sets.official import hand_space
from sets.packing import build_packed, fingerprint, stream_json_list


class FreiHAND(HandDataset):
    """FreiHAND (Zimmermann et al. 2019) in its official layout, version 2.

    root: the folder with training/, evaluation/ and their .json files. Training has four
    backgrounds (green screen, homogenised, sample, auto), picture = background * N + id, and one
    annotation per id; N is read from the files (32,560), so a small folder works too. Evaluation
    is read with or without the annotation that was released later: without it keypoints are
    unknown, the crop is the whole picture and all flags are 0.
    Without augmentation the crop is the box of the true keypoints x 1.25, as the papers evaluate.

    cache: folder for the packed annotation, `root` by default. The JSON lists, over a gigabyte of
    text, are packed once into a memory-mapped file (9.9 kB an id) and again when they change.
    K is used as it is: if its pixel centres are at integers that is half a pixel, below the
    annotation's own error. Joints are the given xyz, never regressed. models: the folder of
    MANO_RIGHT, whose mean hand `hand_pose` needs.
    """

    BACKGROUNDS = ("gs", "hom", "sample", "auto")
    SHAPES = {"K": (3, 3), "xyz": (NUM_JOINTS, 3), "verts": (NUM_VERTICES, 3), "mano": (1, 61)}
    COUNTS = {"training": 130_240, "evaluation": 3_960}

    def __init__(self, root: str | os.PathLike, split: str = "training", size: int = 224, *,
                 augmentation: str | Augmentation | None = None, seed: int = 0,
                 cache: str | os.PathLike | None = None, models: str | os.PathLike | None = None,
                 progress: bool = True) -> None:
        super().__init__(split, ("training", "evaluation"), size, seed, augmentation)
        self.root, self.progress = Path(root), progress
        self.models = None if models is None else Path(models)
        self.pictures = self.root / split / "rgb"
        sources = {name: self.root / f"{split}_{name}.json" for name in self.SHAPES}
        self.sources = {name: path for name, path in sources.items() if path.is_file()}
        required = ("K", "xyz") if split == "training" else ("K",)
        for path in (self.pictures, *(sources[name] for name in required)):
            if not path.exists():
                raise FileNotFoundError(f"no {path}: expected FreiHAND's official layout in "
                                        f"{self.root}, see freihand.informatik.uni-freiburg.de")
        self.dtype = np.dtype([(name, np.float32, self.SHAPES[name]) for name in self.sources])
        stats = {name: path.stat() for name, path in self.sources.items()}
        marks = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
        folder = self.root if cache is None else Path(cache)
        self.path = folder / f"freihand_{split}_{fingerprint(marks)}.npy"
        self._packed: np.ndarray | None = None
        self.db_size = sum(1 for _ in self._items("K"))
        self.versions = self._count_versions()
        self._records()

    def _count_versions(self) -> int:
        most = len(self.BACKGROUNDS) if self.split == "training" else 1
        found = [self.picture_path(version * self.db_size).is_file() for version in range(most)]
        if not self.db_size or not found[0]:
            raise FileNotFoundError(f"no picture for the {self.db_size} annotations of the split "
                                    f"{self.split}: expected {self.picture_path(0)}")
        return found.index(False) if False in found else most

    def __len__(self) -> int:
        return self.db_size * self.versions

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}

    def picture_path(self, index: int) -> Path:
        """The file of a picture."""
        return self.pictures / f"{index:08d}.jpg"

    def annotated(self, index: int) -> Annotated:
        """A picture and its annotation as they are in the data set."""
        image = read_image(self.picture_path(index))
        record = self._records()[index % self.db_size]
        known = "xyz" in self.sources
        K = record["K"].astype(np.float64)
        joints = record["xyz"] if known else np.zeros(self.SHAPES["xyz"])
        vertices = record["verts"] if "verts" in self.sources else np.zeros(self.SHAPES["verts"])
        keypoints, valid = np.zeros((NUM_JOINTS, 2)), np.zeros(NUM_JOINTS, np.float32)
        if known:
            projected = joints @ K.T
            keypoints = projected[:, :2] / projected[:, 2:]
            valid = inside(keypoints, image.shape[1], image.shape[0])
        return Annotated(image, K, joints, vertices, keypoints, valid,
                         mesh_valid=float(known and "verts" in self.sources))

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return hand_sample(self.annotated(index), self.size, self.augmentation, rng)

    def whole_hands(self) -> np.ndarray:
        """Indices of hands whose pose, mesh and joints are all known."""
        return np.arange(len(self) if {"mano", "xyz", "verts"} <= set(self.sources) else 0)

    def hand_pose(self, index: int) -> tuple[np.ndarray, np.ndarray, float]:
        """MANO's absolute axis-angles (16, 3), betas (10,) and 1.0: they are known.

        The orientation is taken as the camera's, as the data set's own tools do; somebody who
        fitted it anew came to another.
        """
        mano = self._records()["mano"][index % self.db_size][0].astype(np.float64)
        [(mean, _)] = hand_space(self.models, "mano", "right", "neutral")
        pose = mano[:48] + np.concatenate([np.zeros(3), mean])
        return pose.reshape(16, 3), mano[48:58], 1.0

    def _records(self) -> np.ndarray:
        if self._packed is None:
            self._packed = build_packed(self.path, self.dtype, self.db_size, self._fill)
        return self._packed

    def _items(self, name: str) -> Iterator[object]:
        try:
            yield from stream_json_list(self.sources[name])
        except ValueError as error:
            raise ValueError(f"{self.sources[name]} is not a whole JSON list ({error}): "
                             "download it again") from error

    def _fill(self, records: np.ndarray) -> None:
        for name, path in self.sources.items():
            count = 0
            for item in tqdm(self._items(name), f"Packing {path.name}", total=len(records),
                             disable=not self.progress):
                array = np.asarray(item, np.float32)
                if array.shape != self.SHAPES[name]:
                    raise ValueError(f"{path}, item {count}: expected {self.SHAPES[name]} numbers, "
                                     f"got shape {array.shape}")
                if count < len(records):
                    records[name][count] = array
                count += 1
            if count != len(records):
                raise ValueError(f"{path} has {count} items where K has {len(records)}: "
                                 "the files do not belong together")
