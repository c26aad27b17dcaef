"""Official."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import bodymodels
from sets.augmentation import Augmentation
from sets.crops import inside
from sets.hand_crops import NUM_VERTICES, Annotated, HandDataset, hand_sample
from sets.images import read_image
from sets.packing import build_packed, fingerprint
from sets.records import (
    GENDERS,
    UNREADABLE,
    intrinsics,
    moved_translation,
    record_dtype,
    to_records,
)
from sets.samples import ImageDataset

BOX_MARGIN = 1.2  # of a body's crop: every lineage's; what a data set's own boxes include is undone
UNKNOWN_FOCAL = 5000.0  # pixels, where a data set does not tell: HMR's and its heirs' custom


@lru_cache(maxsize=16)
def official_body(folder: Path, template: bytes | None, light: bool, **options
                  ) -> bodymodels.BodyModel:
    """A model from a folder, with options for `load_model`; loaded once in a process.

    template: see `template_bytes`. light: for joints and keypoints alone.
    """
    if light:
        return official_body(folder, template, False, **options).for_keypoints()
    own = {} if template is None else {
        "v_template": np.frombuffer(template, np.float32).reshape(-1, 3)}
    return bodymodels.load_model(folder, **options, **own)


@lru_cache(maxsize=64)
def template_bytes(path: Path, age: int) -> bytes:
    """The vertices of a mesh file that was written at `age`, as float32."""
    return bodymodels.load_vertices(path).tobytes()


@lru_cache(maxsize=16)
def hand_space(folder: Path, family: str, side: str, gender: str
               ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean hand (45,) and principal components (45, 45) of a model's hand, or left and right."""
    arrays = bodymodels.load_arrays(bodymodels.find_model(folder, family, side, gender), "hands_")
    ends = ("",) if family == "mano" else ("l", "r")
    return [(np.reshape(arrays[f"hands_mean{end}"], 45), arrays[f"hands_components{end}"])
            for end in ends]


class Pictures(ImageDataset):
    """What the data sets below share: official files, read once; pictures, read when asked for.

    root: the folder as the authors ship it. Its annotation is packed once into a memory-mapped
    file in `cache` (default: root), and again when a source file changes: the file's name holds a
    checksum of theirs. Nothing in a file is executed. `annotation(index)` is what is known of one
    person in one picture, the same for all data sets; what is unknown is zero and flagged 0:

        image            str      picture, below root        part, turns   see `picture`
        image_size       (2,)     width and height, 0: not told
        K                (3, 3)   intrinsics, 0: unknown
        center, box      (2,)     pixels: middle, width and height of a tight box, never padded
        keypoints_2d     (J, 3)   pixels and confidence, in the order JOINTS
        keypoints_3d     (J, 4)   metres in the camera's frame, and confidence; not relative to
                                  the root, unless the data set only tells that
        pose             (P, 3)   axis-angles of MODEL: its root's in the camera's frame, fingers
                                  absolute (has_hands)
        betas            (B,)     of the model of this gender (an index of GENDERS)
        transl           (3,)     metres, in the data set's frame: `moved_translation` needs a model
        world_to_camera  (3, 4)   from that frame to the camera's
        has_pose, has_hands, has_betas, has_transl
        side             1 right hand, 0 left, -1 a body        mask     (3,), of Shards
        person, frame    numbers  sequence, mesh     texts, as the data set's docstring tells

    models: a folder of official body models, for what needs them: meshes, and fingers that are
    told relative to the models' mean hand or as coefficients of their components. options: see
    OPTIONS of each data set.
    """

    SPLITS: dict[str, str] = {"train": "train", "val": "val", "test": "test"}  # and in file names
    SOURCES: tuple[str, ...]  # patterns of files; every one must be there. {split} is replaced
    JOINTS, MODEL, NUM_BETAS = "", "smpl", 10
    HAND_SPACE = ""  # what finger angles are in the files, if not absolute: see load_model
    MODEL_OPTIONS: dict = {}  # for load_model
    OPTIONS: dict = {}  # names and defaults
    CHOICES: dict[str, Sequence] = {}  # of some options: what they may be
    FILES: tuple[str, ...] = ()  # options that name a file below root, or none
    COUNTS: dict[str, int] = {}  # samples of whole official splits, or folders
    UNIT = "part"  # what `rows` yields
    HOME = ""  # where it is to be had

    def __init__(self, root: str | os.PathLike, split: str | None = None, size: int = 224, *,
                 augmentation: str | Augmentation | None = None, seed: int = 0,
                 cache: str | os.PathLike | None = None, models: str | os.PathLike | None = None,
                 progress: bool = True, **options) -> None:
        split = next(iter(self.SPLITS)) if split is None else split
        super().__init__(split, tuple(self.SPLITS), size, seed, augmentation)
        self.root, self.progress = Path(root), progress
        self.models = None if models is None else Path(models)
        unknown = set(options) - set(self.OPTIONS)
        if unknown:
            raise ValueError(f"{type(self).__name__} has no option {', '.join(sorted(unknown))}: "
                             f"expected {', '.join(self.OPTIONS) or 'none'}")
        self.options = self.OPTIONS | options
        for name, allowed in self.CHOICES.items():
            if self.options[name] not in allowed:
                raise ValueError(f"{type(self).__name__}: {name}={self.options[name]!r}, expected "
                                 f"one of {', '.join(map(str, allowed))}")
        poses = len(bodymodels.JOINT_SETS[{"mano": "mano16", "smpl": "smpl24",
                                           "smplx": "smplx55"}[self.MODEL]])
        self.dtype = record_dtype(len(bodymodels.JOINT_SETS[self.JOINTS]), poses, self.NUM_BETAS)
        self.sources = self.find_sources()
        files = [path for paths in self.sources.values() for path in paths]
        if self.HAND_SPACE and self.models:
            files += [path for path in sorted(self.models.rglob("*")) if path.is_file()]
        marks = {os.path.relpath(path, self.root): (path.stat().st_size, path.stat().st_mtime_ns)
                 for path in files}
        name = fingerprint({"files": marks, "options": repr(sorted(self.options.items())),
                            "version": READER_VERSION})
        self.path = ((self.root if cache is None else Path(cache))
                     / f"{type(self).__name__.lower()}_{split}_{name}.npy")
        self.reading = self.root  # what an error is about
        self._packed: np.ndarray | None = None
        self.records()

    def find_sources(self) -> dict[str, list[Path]]:
        """The files that each pattern of SOURCES finds."""
        found = {}
        for pattern in (text.format(split=self.SPLITS[self.split]) for text in self.SOURCES):
            found[pattern] = sorted(self.root.glob(pattern))
            if not found[pattern]:
                raise FileNotFoundError(f"no {self.root / pattern}: expected "
                                        f"{type(self).__name__} there in its official layout, see "
                                        f"{self.HOME}")
        return found | {name: [self.file(self.options[name])] for name in self.FILES
                        if self.options[name]}

    def rows(self) -> Iterator[dict | np.ndarray]:
        """The people of the split, in an order that is always the same: what `to_records` takes
        or makes."""
        raise NotImplementedError

    def count_rows(self) -> int | None:
        """How much `rows` will yield, if that is known."""
        return None

    def file(self, path: str | os.PathLike) -> Path:
        """A file below root, which is read from now on."""
        self.reading = self.root / path
        if not self.reading.is_file():
            raise FileNotFoundError(f"no {self.reading}: expected {type(self).__name__} there in "
                                    f"its official layout, see {self.HOME}")
        return self.reading

    def json(self, path: str | os.PathLike) -> dict | list:
        """The content of a JSON file below root."""
        return json.loads(self.file(path).read_bytes())

    def yaml(self, path: str | os.PathLike) -> dict:
        """The content of a YAML file below root, of plain data alone."""
        import yaml  # comes with jupyterlab; little here wants it
        try:
            return yaml.safe_load(self.file(path).read_text())
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error

    def records(self, indices: int | np.ndarray | slice = slice(None)) -> np.ndarray:
        """Annotation, all of it or of some samples, memory-mapped."""
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
        except FileNotFoundError:
            raise
        except UNREADABLE as error:
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
        """One record: arrays, numbers and texts by name."""
        record = self.records()[index]
        values = {name: record[name].copy() for name in self.dtype.names}
        return {name: value.decode() if isinstance(value, bytes) else value
                for name, value in values.items()}

    def picture(self, record: np.ndarray) -> np.ndarray:
        """The picture (H, W, 3) of a record, as it is stored: EXIF is no part of the annotation.

        part: the first byte and the number of bytes of it in an archive, 0 bytes: a file of its
        own. turns: quarter turns clockwise that the data set asks for.
        """
        path = self.root / record["image"].decode()
        image = read_image(path, upright=False, part=tuple(record["part"].tolist()))
        image = np.ascontiguousarray(np.rot90(image, -int(record["turns"])))
        told = tuple(record["image_size"].tolist())
        if any(told) and told != image.shape[1::-1]:
            raise ValueError(f"{path} has {image.shape[1]} x {image.shape[0]} pixels where the "
                             f"annotation tells {told[0]} x {told[1]}: take the original pictures")
        return image

    def body(self, gender: str = "neutral", side: str = "right", template: str = "",
             light: bool = False, **options) -> bodymodels.BodyModel:
        """The model from the folder `models`, see `official_body`; template: a file below root."""
        if side == "right":  # what mends a left hand
            options.pop("fix_left_shapedirs", None)
        path = self.root / template
        own = template_bytes(path, path.stat().st_mtime_ns) if template else None
        return official_body(self.models, own, light, family=self.MODEL, gender=gender, side=side,
                             **options)

    def absolute(self, pose: np.ndarray, gender: str = "neutral", side: str = "right"
                 ) -> np.ndarray | None:
        """Poses (N, ...) of HAND_SPACE as absolute axis-angles (N, P, 3); None without models.

        What is relative to the mean hand is added to it number by number, as smplx does.
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

    def posed(self, record: np.ndarray, light: bool = False
              ) -> tuple[bodymodels.BodyOutput, bodymodels.BodyModel, Tensor]:
        """A record's body in the camera's frame, its model, and its translation there (3,)."""
        model = self.body(GENDERS[record["gender"]], "left" if record["side"] == 0 else "right",
                          record["mesh"].decode(), light, num_betas=self.NUM_BETAS,
                          **self.MODEL_OPTIONS)
        betas, pose = (torch.tensor(record[name][None]) for name in ("betas", "pose"))
        root = model.rest_joints(betas)[0, 0].numpy()
        transl = torch.from_numpy(moved_translation(record["transl"], record["world_to_camera"],
                                                    root).astype(np.float32))
        return model(betas, pose, transl=transl[None]), model, transl


READER_VERSION = 2  # count up whenever the same files would give other records


class HandPictures(Pictures, HandDataset):
    """Pictures of hands, cropped as those of FreiHAND; left hands are mirrored.

    A sample's joints are the given ones, never the mesh's: TIPS tells which vertices the data
    set's own fingertips are, for whoever compares them with a mesh. Vertices need `models`, the
    folder with MANO_RIGHT and MANO_LEFT; without, or with a joint unknown, mesh_valid is 0.
    """

    JOINTS, MODEL = "hand21", "mano"
    TIPS = "smplx"

    def annotated(self, index: int) -> Annotated:
        """A picture and its annotation as they are in the data set; an unknown K is guessed."""
        record = self.records()[index]
        image = self.picture(record)
        K = record["K"].astype(np.float64)
        if not K[2, 2]:
            K = intrinsics((UNKNOWN_FOCAL,) * 2, (image.shape[1] / 2, image.shape[0] / 2))
        keypoints, joints = record["keypoints_2d"], record["keypoints_3d"]
        vertices, known = np.zeros((NUM_VERTICES, 3)), 0.0
        if self.models is not None and record["has_pose"] and (joints[:, 3] > 0).all():
            output, known = self.posed(record)[0], 1.0
            vertices = output.vertices[0].numpy()
            if not record["has_transl"]:  # then where the joints are
                vertices += joints[0, :3] - output.joints[0, 0].numpy()
        valid = (keypoints[:, 2] > 0) * inside(keypoints[:, :2], image.shape[1], image.shape[0])
        return Annotated(image, K, joints[:, :3], vertices,
                         keypoints[:, :2], valid, known, int(record["side"]))

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return hand_sample(self.annotated(index), self.size, self.augmentation, rng)

    def whole_hands(self) -> np.ndarray:
        """Indices of hands whose pose, mesh and joints are all known."""
        records = self.records()
        return np.flatnonzero((records["has_pose"] > 0)
                              & (records["keypoints_3d"][..., 3] > 0).all(1))

    def hand_pose(self, index: int) -> tuple[np.ndarray, np.ndarray, float]:
        """MANO's absolute axis-angles (16, 3), before any mirroring, betas (10,) and has_betas."""
        record = self.records()[index]
        return (record["pose"].astype(np.float64), record["betas"], float(record["has_betas"]))
