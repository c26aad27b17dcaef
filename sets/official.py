"""What the data sets with official annotation share: files read once, pictures read on demand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import bodymodels
from sets.augmentation import Augmentation
from sets.files import MissingPackage, read_yaml
from sets.images import read_image
from sets.official_models import hand_space, official_body, template_bytes
from sets.packing import build_packed, fingerprint
from sets.records import GENDERS, moved_translation, record_dtype, to_records
from sets.samples import ImageDataset

READER_VERSION = 3  # increase it whenever the same files would give other records
BOX_MARGIN = 1.2  # of a body's crop, as in HMR and its successors
UNKNOWN_FOCAL = 5000.0  # pixels, where a data set has no intrinsics: HMR's convention
POSE_SETS = {"mano": "mano16", "smpl": "smpl24", "smplx": "smplx55"}  # joint sets of poses


class Pictures(ImageDataset):
    """A data set of people in pictures, in the folder `root` as its authors ship it.

    The annotation is packed once into a memory-mapped file in `cache` (default: root), and again
    when a source file changes: the name of the packed file holds a checksum. Nothing in a file is
    executed. `annotation(index)` describes one person in one picture, with the same fields for all
    data sets. Unknown values are zero, with their flag at 0:

        image            str      picture, below root        part, turns   see `picture`
        image_size       (2,)     width and height, 0: unknown
        K                (3, 3)   intrinsics, 0: unknown
        center, box      (2,)     pixels: centre, width and height of a tight box, without padding
        keypoints_2d     (J, 3)   pixels and confidence, in the order JOINTS
        keypoints_3d     (J, 4)   metres in the camera's frame, and confidence; relative to the
                                  root only where the data set has nothing else
        pose             (P, 3)   axis-angles of MODEL: the root's in the camera's frame, fingers
                                  absolute (has_hands)
        betas            (B,)     of the model of this gender (an index of GENDERS)
        transl           (3,)     metres in the data set's frame, see `moved_translation`
        world_to_camera  (3, 4)   from that frame to the camera's
        has_pose, has_hands, has_betas, has_transl
        side             1 right hand, 0 left hand, -1 body      mask     (3,), see shards.py
        person, frame    numbers  sequence, mesh     texts: the docstring of each data set explains

    models: a folder of official body models. Meshes need it, and so do finger angles that are
    stored relative to a model's mean hand or as coefficients of its components.
    options: see OPTIONS of each data set.
    Raises FileNotFoundError for a missing file, ValueError for a damaged one or a bad option.
    """

    SPLITS: dict[str, str] = {"train": "train", "val": "val", "test": "test"}  # and in file names
    SOURCES: tuple[str, ...]  # patterns of files that must be there; {split} is replaced
    JOINTS, MODEL, NUM_BETAS = "", "smpl", 10
    HAND_SPACE = ""  # "mean_relative" or "pca", unless finger angles are absolute: see load_model
    MODEL_OPTIONS: dict = {}  # for load_model
    OPTIONS: dict = {}  # names and defaults
    CHOICES: dict[str, Sequence] = {}  # allowed values of some options
    FILES: tuple[str, ...] = ()  # options that name a file below root; may be empty
    COUNTS: dict[str, int] = {}  # samples of official splits, or folders
    UNIT = "part"  # what `rows` yields
    HOME = ""  # where to get the data set

    def __init__(self, root: str | os.PathLike, split: str | None = None, size: int = 224, *,
                 augmentation: str | Augmentation | None = None, seed: int = 0,
                 cache: str | os.PathLike | None = None, models: str | os.PathLike | None = None,
                 progress: bool = True, **options) -> None:
        split = next(iter(self.SPLITS)) if split is None else split
        super().__init__(split, tuple(self.SPLITS), size, seed, augmentation)
        self.root, self.progress = Path(root), progress
        self.models = None if models is None else Path(models)
        self.options = self._checked(options)
        self.dtype = record_dtype(len(bodymodels.JOINT_SETS[self.JOINTS]),
                                  len(bodymodels.JOINT_SETS[POSE_SETS[self.MODEL]]),
                                  self.NUM_BETAS)
        self.sources = self.find_sources()
        self.path = Path(self.root if cache is None else cache) / (
            f"{type(self).__name__.lower()}_{split}_{self._checksum()}.npy")
        self.reading = self.root  # the file that an error is about
        self._packed: np.ndarray | None = None
        self.records()

    def _checked(self, options: dict) -> dict:
        """Add default options; ValueError for an unknown option or a value of the wrong kind."""
        name = type(self).__name__
        unknown = set(options) - set(self.OPTIONS)
        if unknown:
            raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}: "
                             f"expected {', '.join(self.OPTIONS) or 'none'}")
        options = {option: os.fspath(value) if isinstance(value, os.PathLike) else value
                   for option, value in options.items()}
        for option, value in options.items():
            allowed, kind = self.CHOICES.get(option), type(self.OPTIONS[option])
            if allowed and value not in allowed:
                raise ValueError(f"{name}: {option}={value!r}, expected one of "
                                 f"{', '.join(map(str, allowed))}")
            if type(value) is not kind or kind is int and value < 0 or (
                    option in ("stride", "interval") and value < 1):
                raise ValueError(f"{name}: {option}={value!r}, expected a value like "
                                 f"{self.OPTIONS[option]!r}")
        return self.OPTIONS | options

    def _checksum(self) -> str:
        files = [path for paths in self.sources.values() for path in paths]
        if self.HAND_SPACE and self.models:
            files += [path for path in sorted(self.models.rglob("*")) if path.is_file()]
        marks = {os.path.relpath(path, self.root): (path.stat().st_size, path.stat().st_mtime_ns)
                 for path in files}
        return fingerprint({"files": marks, "options": repr(sorted(self.options.items())),
                            "version": READER_VERSION})

    # ---------------------------------------------------------------------- files and records

    def find_sources(self) -> dict[str, list[Path]]:
        """Return the files that match each pattern of SOURCES."""
        sources = {}
        for pattern in (text.format(split=self.SPLITS[self.split]) for text in self.SOURCES):
            sources[pattern] = sorted(self.root.glob(pattern))
            if not sources[pattern]:
                raise FileNotFoundError(f"no {self.root / pattern}: expected "
                                        f"{type(self).__name__} there in its official layout, see "
                                        f"{self.HOME}")
        return sources | {name: [self.file(self.options[name])] for name in self.FILES
                          if self.options[name]}

    def rows(self) -> Iterator[dict | np.ndarray]:
        """Yield the people of the split in a fixed order: columns for `to_records`, or records."""
        raise NotImplementedError

    def count_rows(self) -> int | None:
        """Return how many items `rows` yields, if that is known."""
        return None

    def file(self, path: str | os.PathLike) -> Path:
        """Return a file below root; errors from now on are about this file."""
        self.reading = self.root / path
        if not self.reading.is_file():
            raise FileNotFoundError(f"no {self.reading}: expected {type(self).__name__} there in "
                                    f"its official layout, see {self.HOME}")
        return self.reading

    def json(self, path: str | os.PathLike) -> dict | list:
        """Read a JSON file below root."""
        return json.loads(self.file(path).read_bytes())

    def yaml(self, path: str | os.PathLike) -> dict:
        """Read a YAML file below root."""
        return read_yaml(self.file(path))

    def records(self, indices: int | np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the annotation of all samples or of some, memory-mapped."""
        if self._packed is None:
            self._packed = build_packed(self.path, self.dtype, None, self._gather)
        return self._packed[indices]

    def _gather(self) -> Iterator[np.ndarray]:
        count = 0
        try:
            for columns in tqdm(self.rows(), f"Packing {self.path.name}", self.count_rows(),
                                unit=self.UNIT, disable=not self.progress):
                packed = isinstance(columns, np.ndarray)
                records = columns if packed else to_records(columns, self.dtype)
                count += len(records)
                yield records
        except (OSError, MemoryError, MissingPackage):
            raise
        except Exception as error:  # damaged files raise almost any error
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{self.reading} is not as {type(self).__name__} is shipped "
                             f"({reason}): copy or download it again, see {self.HOME}") from error
        if not count:
            raise ValueError(f"no sample of the split {self.split} is left in {self.root}: "
                             f"expected all of {type(self).__name__}, see {self.HOME}")

    def __len__(self) -> int:
        return len(self.records())

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}  # workers map the file themselves

    def annotation(self, index: int) -> dict:
        """Return one record as a dictionary of arrays, numbers and texts."""
        record = self.records()[index]
        values = {name: record[name].copy() for name in self.dtype.names}
        return {name: value.decode() if isinstance(value, bytes) else value
                for name, value in values.items()}

    def picture(self, record: np.ndarray) -> np.ndarray:
        """Read the picture (H, W, 3) of a record as it is stored: EXIF does not turn it.

        part: first byte and number of bytes of the picture in an archive; 0 bytes: a file of its
        own. turns: quarter turns clockwise that the data set asks for.
        """
        path = self.root / record["image"].decode()
        image = read_image(path, upright=False, part=tuple(record["part"].tolist()))
        image = np.ascontiguousarray(np.rot90(image, -int(record["turns"])))
        expected = tuple(record["image_size"].tolist())
        if any(expected) and expected != image.shape[1::-1]:
            raise ValueError(f"{path} has {image.shape[1]} x {image.shape[0]} pixels, but the "
                             f"annotation is for {expected[0]} x {expected[1]}: take the original "
                             "pictures")
        return image

    # ------------------------------------------------------------------------------ body models

    def body(self, gender: str = "neutral", side: str = "right", template: str = "",
             keypoints_only: bool = False, **options) -> bodymodels.BodyModel:
        """Load the model of this gender and side from the folder `models`.

        template: a mesh file below root whose vertices replace the resting body. keypoints_only:
        see `official_body`.
        """
        if side == "right":
            options.pop("fix_left_shapedirs", None)
        path = self.root / template
        own = template_bytes(path, path.stat().st_mtime_ns) if template else None
        return official_body(self.models, own, keypoints_only, family=self.MODEL, gender=gender,
                             side=side, **options)

    def absolute(self, pose: np.ndarray, gender: str = "neutral", side: str = "right"
                 ) -> np.ndarray | None:
        """Convert poses (N, ...) of HAND_SPACE to absolute axis-angles (N, P, 3).

        The mean hand is added number by number, as smplx does. Returns None without `models`.
        """
        if self.models is None:
            return None
        pose = np.asarray(pose, np.float64).reshape(len(pose), -1)
        hands = hand_space(self.models, self.MODEL, side, gender)
        others = 3 * self.dtype["pose"].shape[0] - 45 * len(hands)
        fingers = np.split(pose[:, others:], len(hands), 1)
        if self.HAND_SPACE == "pca":
            fingers = [values @ components[:values.shape[1]]
                       for values, (_, components) in zip(fingers, hands, strict=True)]
        fingers = [values + mean for values, (mean, _) in zip(fingers, hands, strict=True)]
        return np.concatenate([pose[:, :others], *fingers], 1).reshape(len(pose), -1, 3)

    def posed(self, record: np.ndarray, keypoints_only: bool = False
              ) -> tuple[bodymodels.BodyOutput, bodymodels.BodyModel, Tensor]:
        """Return a record's body in the camera's frame, its model, its translation there (3,)."""
        model = self.body(GENDERS[record["gender"]], "left" if record["side"] == 0 else "right",
                          record["mesh"].decode(), keypoints_only, num_betas=self.NUM_BETAS,
                          **self.MODEL_OPTIONS)
        betas, pose = (torch.tensor(record[name][None]) for name in ("betas", "pose"))
        root = model.rest_joints(betas)[0, 0].numpy()
        transl = torch.from_numpy(moved_translation(record["transl"], record["world_to_camera"],
                                                    root).astype(np.float32))
        return model(betas, pose, transl=transl[None]), model, transl
