"""FreiHAND: single right hands."""

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
from sets.official_models import hand_space
from sets.packing import build_packed, fingerprint, stream_json_list
from sets.records import to_pixels


class FreiHAND(HandDataset):
    """FreiHAND (Zimmermann et al. 2019), version 2, in its official layout.

    root: the folder of training/, evaluation/ and their .json files. Training has four backgrounds
    (green screen, homogenised, sample, auto): picture = background * N + id, with one annotation
    for each id. N comes from the files (32,560), so that a smaller folder works too.

    Training needs training_verts.json: without it there is no 3D supervision at all. Pass
    without_mesh=True for 2D keypoints and joints alone. The annotation of the evaluation split came
    later; without it keypoints are unknown, the crop is the whole picture and all flags are 0.

    Without augmentation the crop is the box of the true keypoints x 1.25, as in the papers.
    cache: folder of the packed annotation, by default root. The JSON lists, over a gigabyte of
    text, are packed once into a memory-mapped file (9.9 kB an id), and again when they change.
    models: the folder of MANO_RIGHT, whose mean hand `hand_pose` needs.

    K is used as it is stored. If its pixel centres are at integers this is wrong by half a pixel,
    less than the error of the annotation. Joints are the stored xyz, not regressed ones.
    """

    BACKGROUNDS = ("gs", "hom", "sample", "auto")
    SHAPES = {"K": (3, 3), "xyz": (NUM_JOINTS, 3), "verts": (NUM_VERTICES, 3), "mano": (1, 61)}
    COUNTS = {"training": 130_240, "evaluation": 3_960}

    def __init__(self, root: str | os.PathLike, split: str = "training", size: int = 224, *,
                 augmentation: str | Augmentation | None = None, seed: int = 0,
                 cache: str | os.PathLike | None = None, models: str | os.PathLike | None = None,
                 progress: bool = True, without_mesh: bool = False) -> None:
        super().__init__(split, ("training", "evaluation"), size, seed, augmentation)
        self.root, self.progress = Path(root), progress
        self.models = None if models is None else Path(models)
        self.pictures = self.root / split / "rgb"
        self.sources = self._find_sources(without_mesh)
        self.dtype = np.dtype([(name, np.float32, self.SHAPES[name]) for name in self.sources])
        stats = {name: path.stat() for name, path in self.sources.items()}
        marks = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
        folder = self.root if cache is None else Path(cache)
        self.path = folder / f"freihand_{split}_{fingerprint(marks)}.npy"
        self._packed: np.ndarray | None = None
        self.db_size = sum(1 for _ in self._items("K"))
        self.versions = self._count_versions()
        self._records()

    def _find_sources(self, without_mesh: bool) -> dict[str, Path]:
        sources = {name: self.root / f"{self.split}_{name}.json" for name in self.SHAPES}
        required = ("K", "xyz") if self.split == "training" else ("K",)
        for path in (self.pictures, *(sources[name] for name in required)):
            if not path.exists():
                raise FileNotFoundError(f"no {path}: expected FreiHAND's official layout in "
                                        f"{self.root}, see freihand.informatik.uni-freiburg.de")
        if self.split == "training" and not sources["verts"].is_file() and not without_mesh:
            raise FileNotFoundError(
                f"no {sources['verts']}: without it no sample has a mesh and training learns 2D "
                "keypoints alone; download it, or pass without_mesh=True (data.py: --option "
                "without_mesh=true) if you want that")
        return {name: path for name, path in sources.items() if path.is_file()}

    def _count_versions(self) -> int:
        """Return how many of the backgrounds are on the disk."""
        most = len(self.BACKGROUNDS) if self.split == "training" else 1
        there = [self.picture_path(version * self.db_size).is_file() for version in range(most)]
        if not self.db_size or not there[0]:
            raise FileNotFoundError(f"no picture for the {self.db_size} annotations of the split "
                                    f"{self.split}: expected {self.picture_path(0)}")
        return there.index(False) if False in there else most

    def __len__(self) -> int:
        return self.db_size * self.versions

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}  # workers map the file themselves

    def picture_path(self, index: int) -> Path:
        """Return the file of a picture."""
        return self.pictures / f"{index:08d}.jpg"

    def annotated(self, index: int) -> Annotated:
        """Return a picture and its annotation as they are stored."""
        image = read_image(self.picture_path(index))
        record = self._records()[index % self.db_size]
        known = "xyz" in self.sources
        K = record["K"].astype(np.float64)
        joints = record["xyz"] if known else np.zeros(self.SHAPES["xyz"])
        vertices = record["verts"] if "verts" in self.sources else np.zeros(self.SHAPES["verts"])
        keypoints, valid = np.zeros((NUM_JOINTS, 2)), np.zeros(NUM_JOINTS, np.float32)
        if known:
            keypoints = to_pixels(joints, K)
            valid = inside(keypoints, image.shape[1], image.shape[0])
        return Annotated(image, K, joints, vertices, keypoints, valid,
                         mesh_valid=float(known and "verts" in self.sources))

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return hand_sample(self.annotated(index), self.size, self.augmentation, rng)

    def whole_hands(self) -> np.ndarray:
        """Return the indices of hands with known pose, mesh and joints."""
        return np.arange(len(self) if {"mano", "xyz", "verts"} <= set(self.sources) else 0)

    def hand_pose(self, index: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Return MANO's absolute axis-angles (16, 3), betas (10,), and 1.0 since they are known.

        The orientation is taken as the camera's, as in the data set's own tools.
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
                array = self._numbers(item, name, count)
                if count < len(records):
                    records[name][count] = array
                count += 1
            if count != len(records):
                raise ValueError(f"{path} has {count} items where K has {len(records)}: "
                                 "the files do not belong together")

    def _numbers(self, item: object, name: str, number: int) -> np.ndarray:
        """Return an item of a list as an array of its shape."""
        try:
            array = np.asarray(item, np.float32)
        except (TypeError, ValueError):  # texts, nulls, dictionaries, ragged lists
            array = np.empty(0)
        if array.shape != self.SHAPES[name] or not np.isfinite(array).all():
            raise ValueError(f"{self.sources[name]}, item {number}: expected {self.SHAPES[name]} "
                             f"numbers, got {str(item)[:60]}")
        return array
