"""What all official data sets share: files read once, pictures read on demand, samples."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import bodymodels
from files import load_arrays, load_vertices
from sets import crops
from sets.augmentation import Augmentation
from sets.images import detected_person, read_image
from sets.samples import KeyedDataset, fingerprint

GENDERS = ("neutral", "male", "female")


def record_dtype(joints: int, pose: int, betas: int) -> np.dtype:
    """Return the dtype of one person in one picture; `official.Pictures` explains the fields."""
    return np.dtype([
        ("image", "S160"), ("part", np.int64, 2), ("turns", np.int8), ("image_size", np.int32, 2),
        ("K", np.float32, (3, 3)), ("center", np.float32, 2), ("box", np.float32, 2),
        ("keypoints_2d", np.float32, (joints, 3)), ("keypoints_3d", np.float32, (joints, 4)),
        ("pose", np.float32, (pose, 3)), ("betas", np.float32, betas), ("transl", np.float32, 3),
        ("world_to_camera", np.float32, (3, 4)), ("has_pose", np.float32),
        ("has_betas", np.float32), ("has_transl", np.float32), ("gender", np.int8),
        ("side", np.int8), ("person", np.int64), ("mesh", "S96")])


def to_records(columns: dict, dtype: np.dtype) -> np.ndarray:
    """Convert columns to records: one person (columns["image"] is a text) or many (it is a list).

    A column in the shape of one record's field holds for all. Missing columns become 0 or "", side
    -1, world_to_camera the identity. Raises ValueError for a wrong shape or length, texts that are
    too long and numbers that are not finite.
    """
    count = 1 if isinstance(columns["image"], str) else len(columns["image"])
    records = np.zeros(count, dtype)
    records["side"], records["world_to_camera"] = -1, np.eye(3, 4)
    for name, value in columns.items():
        array, shape = np.asarray(value), dtype[name].shape
        if array.shape not in (shape, (count, *shape)):
            raise ValueError(f"{name} has shape {array.shape}, expected {(count, *shape)}")
        if dtype[name].kind == "S":
            array = np.char.encode(array) if array.dtype.kind == "U" else array
            if array.dtype.itemsize > dtype[name].itemsize:
                raise ValueError(f"{name} is longer than {dtype[name].itemsize} bytes")
        elif not np.isfinite(array.astype(np.float64)).all():
            raise ValueError(f"{name} has numbers that are not finite")
        records[name] = array
    return records


def rotate_root(R: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Apply R (3, 3) or (N, 3, 3) to root orientations (N, 3), all as axis-angles (N, 3)."""
    rotations = bodymodels.axis_angle_to_matrix(torch.as_tensor(root, dtype=torch.float64))
    product = torch.as_tensor(R, dtype=torch.float64) @ rotations
    return bodymodels.matrix_to_axis_angle(product).numpy()


def moved_translation(transl: np.ndarray, world_to_camera: np.ndarray, rest_root: np.ndarray
                      ) -> np.ndarray:
    """Return a body's translation (3,) in the camera's frame, for a root rotated into that frame.

    A body turns about its resting root joint j (rest_root, metres; of its shape and gender), not
    about the origin: R T + t would be wrong by |R j - j|, about 0.2 m for SMPL.
    """
    R, t = world_to_camera[:, :3], world_to_camera[:, 3]
    return R @ (rest_root + transl) + t - rest_root


def intrinsics(focal: Sequence[float], center: Sequence[float]) -> np.ndarray:
    """Return K (3, 3) from focal lengths (2,) and principal point (2,)."""
    return np.array([[focal[0], 0, center[0]], [0, focal[1], center[1]], [0, 0, 1]])


def with_confidence(points: np.ndarray, confidence: np.ndarray | float = 1.0) -> np.ndarray:
    """Append confidences (..., J) to points (..., J, D); points of confidence 0 become 0."""
    confidence = np.broadcast_to(confidence, points.shape[:-1])[..., None]
    return np.concatenate([np.where(confidence > 0, points, 0.0), confidence], -1)


def boxes_around(keypoints: np.ndarray) -> dict[str, np.ndarray]:
    """Return centre and size of the tight boxes of known keypoints (..., J, 3); 0 if none."""
    known = keypoints[..., 2:] > 0
    low = np.where(known, keypoints[..., :2], np.inf).min(-2)
    high = np.where(known, keypoints[..., :2], -np.inf).max(-2)
    some = known.any(-2)
    return {"center": np.where(some, (low + high) / 2, 0.0), "box": np.where(some, high - low, 0.0)}


def xywh_box(box: Sequence[float]) -> dict[str, np.ndarray]:
    """Return centre and size of boxes given as left, top, width and height (..., 4)."""
    box = np.asarray(box, np.float64)
    return {"center": box[..., :2] + box[..., 2:4] / 2, "box": box[..., 2:4]}


@cache
def joint_places(source: str, target: str) -> np.ndarray:
    """Return where each joint of `target` is in `source`: first and second choice (J, 2), or -1.

    Hips, shoulders and neck of OpenPose correspond to SMPL's, those of LSP to the others'. SMPL's
    head is another point than the joints of this name elsewhere.
    """
    to_model = target.startswith("smpl")
    others = source.startswith("smpl") != to_model and not (
        to_model and source.startswith("openpose"))  # whose neck and head are other points
    place = {name: index for index, name in enumerate(bodymodels.JOINT_SETS[source])}
    rows = []
    for name in bodymodels.JOINT_SETS[target]:
        plain = -1 if name in ("neck", "head") and others else place.get(name, -1)
        openpose = place.get(f"{name}_openpose", -1)
        rows.append((openpose, plain) if to_model else (plain, openpose))
    return np.array(rows)


def relabelled(keypoints: np.ndarray, source: str, target: str) -> np.ndarray:
    """Reorder keypoints (..., J, C), confidence last, to another joint set; unknown ones are 0."""
    padded = np.concatenate([keypoints, np.zeros_like(keypoints[..., :1, :])], -2)
    first, second = (padded[..., places, :] for places in joint_places(source, target).T)
    return np.where(first[..., -1:] > 0, first, second)


def read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """Read these arrays of an .npz, and no others."""
    return [load_arrays(path, name)[name] for name in names]


@lru_cache(maxsize=16)
def official_body(folder: Path, template: Path | None = None, keypoints_only: bool = False,
                  **options) -> bodymodels.BodyModel:
    """Load a model from a folder, with options for `bodymodels.load_model`.

    template: mesh file whose vertices replace the resting body. keypoints_only: leave out all
    vertices that joints and keypoints do not need.
    """
    if template is not None:
        options["v_template"] = load_vertices(template)
    model = bodymodels.load_model(folder, **options)
    return model.for_keypoints() if keypoints_only else model


@lru_cache(maxsize=16)
def hand_space(folder: Path, family: str, side: str, gender: str
               ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return mean pose (45,) and principal components (45, 45) of a model's hand.

    SMPL-X has two hands, left then right; MANO has one.
    """
    arrays = load_arrays(bodymodels.find_model(folder, family, side, gender), "hands_")
    return [(np.reshape(arrays[f"hands_mean{end}"], 45), arrays[f"hands_components{end}"])
            for end in (("",) if family == "mano" else ("l", "r"))]


READER_VERSION = 7  # increase it whenever the same files would give other records
BOX_MARGIN = 1.2  # of a body's crop, as in HMR and its successors
UNKNOWN_FOCAL = 5000.0  # pixels, where a data set has no intrinsics: HMR's convention
OWN = "own"  # detections that the data set itself ships
POSE_SETS = {"mano": "mano16", "smpl": "smpl24", "smplx": "smplx55"}  # joint sets of poses


class Official(KeyedDataset):
    """A data set in the folder `root`, as its authors ship it.

    Its annotation is packed once into a memory-mapped file in the folder `cache` (default: root),
    and again when a source file changes: the name of the packed file holds a checksum of sizes and
    dates. Of DexYCB's labels_*.npz and RICH's bodies only the folders are checked, not the files in
    them: delete the .bin when such a file changes. Nothing in a file is executed. Subclasses have
    `rows()`: it yields the records of the split in a fixed order, or columns for `to_records`.
    Raises FileNotFoundError for a missing file or folder, ValueError for a damaged file.
    """

    SPLITS: dict[str, str] = {"train": "train", "val": "val", "test": "test"}  # and in file names
    SOURCES: tuple[str, ...]  # patterns of files that must be there; {split} is replaced
    OPTIONAL: tuple[str, ...] = ()  # patterns of files that are read if they are there
    HOME = ""  # where to get the data set
    dtype: np.dtype  # of records

    def __init__(self, root: str | os.PathLike, split: str | None = None,
                 size: int | None = None, *,
                 augmentation: str | Augmentation | None = None, seed: int = 0,
                 cache: str | os.PathLike | None = None, others: Sequence[Path] = ()) -> None:
        """Find the source files and pack them. others: more files that the records depend on."""
        splits = tuple(self.SPLITS)
        super().__init__(split or splits[0], splits, seed, size, augmentation)
        self.root = Path(root).absolute()
        self.reading = self.root  # the file that an error is about
        self.sources = self.find_sources()
        files = [path for paths in self.sources.values() for path in paths] + list(others)
        stats = {os.path.relpath(path, self.root): path.stat() for path in files}
        mark = fingerprint({
            "files": {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()},
            "version": READER_VERSION})
        self.path = Path(self.root if cache is None else cache) / (
            f"{type(self).__name__.lower()}_{self.split}_{mark}.bin")
        self.records()

    def find_sources(self) -> dict[str, list[Path]]:
        """Return the files of each pattern that has some; those of SOURCES must be there."""
        sources = {}
        for pattern in (*self.SOURCES, *self.OPTIONAL):
            name = pattern.format(split=self.SPLITS[self.split])
            sources[name] = sorted(self.root.glob(name))
            if not sources[name] and pattern in self.SOURCES:
                raise self.missing(self.root / name)
        return sources

    def first_sources(self) -> list[Path]:
        """Return the files of the first pattern."""
        return next(iter(self.sources.values()))

    def missing(self, path: Path) -> FileNotFoundError:
        return FileNotFoundError(f"no {path}: expected {type(self).__name__} there in its official "
                                 f"layout, see {self.HOME}")

    def file(self, path: str | os.PathLike) -> Path:
        """Return a file below root; errors from now on are about this file."""
        self.reading = self.root / path
        if not self.reading.is_file():
            raise self.missing(self.reading)
        return self.reading

    def json(self, path: str | os.PathLike) -> dict | list:
        """Read a JSON file below root."""
        return json.loads(self.file(path).read_bytes())

    def chunks(self, start: int) -> Iterator[np.ndarray]:
        """Yield all records: an annotation is always read from its beginning, so start is 0."""
        count = start
        try:
            for records in tqdm(self.rows(), f"Packing {self.path.name}", disable=None):
                if isinstance(records, dict):
                    records = to_records(records, self.dtype)
                count += len(records)
                yield records
        except (OSError, MemoryError):
            raise
        except Exception as error:  # damaged files raise almost any error
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{self.reading} is not as {type(self).__name__} is shipped "
                             f"({reason}): copy or download it again, see {self.HOME}") from error
        if not count:
            raise ValueError(f"no sample of the split {self.split} is left in {self.root}: "
                             f"expected all of {type(self).__name__}, see {self.HOME}")


class Pictures(Official):
    """A data set of people in pictures.

    A record describes one person in one picture. Unknown values are 0, as is their flag:

        image            bytes    picture, below root        part, turns   see `picture`
        image_size       (2,)     width and height, 0: unknown
        K                (3, 3)   intrinsics, 0: unknown
        center, box      (2,)     pixels: centre, width and height of a tight box, without padding
        keypoints_2d     (J, 3)   pixels and confidence, in the order JOINTS
        keypoints_3d     (J, 4)   metres in the camera's frame (if unknown: from the root),
                                  and confidence
        pose             (P, 3)   axis-angles of MODEL: the root's in the camera's frame, fingers
                                  absolute
        betas            (B,)     of the model of this gender (an index of GENDERS)
        transl           (3,)     metres in the data set's frame, see `moved_translation`
        world_to_camera  (3, 4)   from that frame to the camera's
        has_pose, has_betas, has_transl
        side             1 right hand, 0 left hand, -1 body
        person           a number    mesh    a file: the docstring of each data set explains

    Samples of hands (MODEL "mano") are those of data.py, cropped as FreiHAND's; left hands are
    mirrored. Without `models`, or with a joint unknown, mesh_valid is 0. Samples of bodies are
    those of RenderedBodies. pose_valid and betas_valid are of SMPL: root and body joints of an
    SMPL-X pose are copied to it; betas do not fit and are 0. An unknown K is a guess, an unknown
    transl 0.

    The encoder sees the body's box x 1.2. models: a folder of official body models. Meshes need it,
    and so do finger angles that are stored relative to a mean hand or as coefficients; with it,
    bodies of known pose, shape and place have the keypoints of their model.
    detections: a detector's 2D keypoints for samples of bodies, from the data set (OWN: 3DPW), or
    from a folder of OpenPose's files, see `detected_person`:

        detected_2d          (45, 2)  pixels of the crop, in the order "smpl45"
        detected_confidence  (45,)    of the detector, 0: not found

    keypoints_* then are true wherever the model tells them; else 3DPW's are the detector's.
    """

    JOINTS, MODEL, NUM_BETAS = "", "smpl", 10
    FIELDS: list[tuple] = []  # of records, beside those of all data sets
    HAND_SPACE = ""  # "mean_relative" or "pca", unless finger angles are absolute: see `absolute`
    LEFT_OPTIONS: dict = {}  # for load_model, of left hands
    DETECTED = False  # whether keypoints_2d of a record are a detector's

    def __init__(self, root: str | os.PathLike, split: str | None = None, size: int = 224, *,
                 models: str | os.PathLike | None = None,
                 detections: str | os.PathLike | None = None, **options) -> None:
        self.models = None if models is None else Path(models)
        self.detections = detections
        if detections == OWN and not self.DETECTED:
            raise ValueError(f"{type(self).__name__} has no detector's keypoints: give the folder "
                             "of OpenPose's files")
        if detections not in (None, OWN) and not Path(detections).is_dir():
            raise FileNotFoundError(f"no folder {detections}: expected OpenPose's files in it, "
                                    "a/b_keypoints.json for each picture a/b.jpg")
        self.dtype = np.dtype(record_dtype(
            len(bodymodels.JOINT_SETS[self.JOINTS]),
            len(bodymodels.JOINT_SETS[POSE_SETS[self.MODEL]]), self.NUM_BETAS).descr + self.FIELDS)
        others = [path for path in sorted(self.models.rglob("*") if self.models else ())
                  if path.suffix in (".npz", ".pkl") and path.is_file()]
        super().__init__(root, split, size, others=others, **options)

    def require_models(self, what: str) -> None:
        """Raise FileNotFoundError unless there is a folder of body models."""
        if self.models is None:
            raise FileNotFoundError(f"{what} of {type(self).__name__} need a folder of body "
                                    "models: give models=, or --models")

    def picture(self, record: np.ndarray) -> np.ndarray:
        """Read the picture (H, W, 3) of a record as it is stored: EXIF does not turn it.

        part: see `read_image`. turns: quarter turns clockwise that the data set asks for.
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

    def body(self, gender: str = "neutral", side: str = "right", template: str = "",
             keypoints_only: bool = False, **options) -> bodymodels.BodyModel:
        """Load the model of this gender and side from the folder `models`: see `official_body`.

        template: a mesh file below root, or "".
        """
        if side == "left":
            options |= self.LEFT_OPTIONS
        return official_body(self.models, self.root / template if template else None,
                             keypoints_only, family=self.MODEL, gender=gender, side=side, **options)

    def absolute(self, pose: np.ndarray, gender: str = "neutral", side: str = "right"
                 ) -> np.ndarray | None:
        """Convert poses (N, ...) of HAND_SPACE to absolute axis-angles (N, P, 3), as smplx does.

        Returns None without `models`.
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

    def hand_pose(self, pose: np.ndarray, side: str) -> dict:
        """Return the columns of hands' poses (N, ...) of HAND_SPACE; none without `models`."""
        pose = self.absolute(pose, side=side)
        return {} if pose is None else {"pose": pose, "has_pose": 1}

    def posed(self, record: np.ndarray, keypoints_only: bool = False
              ) -> tuple[bodymodels.BodyOutput, bodymodels.BodyModel, Tensor]:
        """Return a record's body in the camera's frame, its model, its translation there (3,)."""
        model = self.body(GENDERS[record["gender"]], "left" if record["side"] == 0 else "right",
                          record["mesh"].decode(), keypoints_only, num_betas=self.NUM_BETAS)
        betas, pose = (torch.tensor(record[name][None]) for name in ("betas", "pose"))
        root = model.rest_joints(betas)[0, 0].numpy()
        transl = torch.from_numpy(moved_translation(record["transl"], record["world_to_camera"],
                                                    root).astype(np.float32))
        return model(betas, pose, transl=transl[None]), model, transl

    def camera(self, record: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Return K (3, 3) of a record, or a guess."""
        if record["K"][2, 2]:
            return record["K"].astype(np.float64)
        return intrinsics((UNKNOWN_FOCAL,) * 2, (image.shape[1] / 2, image.shape[0] / 2))

    def annotated(self, index: int) -> dict[str, np.ndarray]:
        """Return a picture of a hand and its annotation as they are stored, for `crop_sample`."""
        record = self.records(index)
        image = self.picture(record)
        keypoints, joints = record["keypoints_2d"], record["keypoints_3d"]
        vertices, known = self.mesh(record)
        return {"image": image, "K": self.camera(record, image), "joints": joints[:, :3],
                "vertices": vertices, "mesh_valid": known, "keypoints_2d": keypoints[:, :2],
                "keypoints_valid": (keypoints[:, 2] > 0) * crops.inside(
                    keypoints[:, :2], *image.shape[1::-1]), "side": int(record["side"])}

    def mesh(self, record: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the vertices (778, 3) of a hand, and 1.0 if they are known."""
        joints = record["keypoints_3d"]
        if self.models is None or not record["has_pose"] or not (joints[:, 3] > 0).all():
            return np.zeros((crops.NUM_VERTICES, 3)), 0.0
        output = self.posed(record)[0]
        vertices = output.vertices[0].numpy()
        if not record["has_transl"]:  # place the wrist where the given joints have it
            vertices += joints[0, :3] - output.joints[0, 0].numpy()
        return vertices, 1.0

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if self.MODEL == "mano":
            return crops.hand_sample(self.annotated(index), self.size, self.augmentation, rng)
        record = self.records(index)
        image = self.picture(record)
        size = image.shape[1], image.shape[0]
        keypoints_2d, keypoints_3d, transl = self.keypoints(record)
        angles, is_smpl = record["pose"], self.MODEL == "smpl"
        if not is_smpl:  # SMPL has neither fingers nor face
            angles = np.concatenate([angles[:22], 0 * angles[:2]])
        sample = {"image": image, "K": self.camera(record, image), "transl": transl,
                  "pose": bodymodels.axis_angle_to_matrix(torch.tensor(angles)).numpy(),
                  "betas": record["betas"][:10] * is_smpl,
                  "keypoints_2d": keypoints_2d[:, :2], "keypoints_3d": keypoints_3d[:, :3]}
        sample, homography, _, mirror = crops.crop_body(
            sample, self.size, self.augmentation, rng, self.square(record, size),
            keypoints_2d[:, 2] > 0)
        order = bodymodels.mirror_indices("smpl45") if mirror else slice(None)
        if self.detections is not None:
            points = self.detected(record, size)[order]  # (45, 3)
            sample |= {"detected_2d": crops.transform_points(homography, points[:, :2]),
                       "detected_confidence": points[:, 2]}
        return sample | {
            "image": sample["image"].transpose(2, 0, 1),
            "transl": sample["transl"] * float(transl.any()),
            "keypoints_valid": keypoints_2d[order, 2] * crops.inside(
                sample["keypoints_2d"], self.size, self.size),
            "keypoints_3d_valid": keypoints_3d[order, 3],
            "pose_valid": record["has_pose"], "betas_valid": record["has_betas"] * is_smpl}

    def detected(self, record: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return a detector's keypoints (45, 3): pixels and confidence. size: of the picture."""
        if self.detections == OWN:
            return relabelled(record["keypoints_2d"], self.JOINTS, "smpl45")
        corner = record["center"] - record["box"] / 2
        box = (*corner, *record["box"]) if record["box"].any() else None
        return detected_person(Path(self.detections), record["image"].decode(), box, size)

    def keypoints(self, record: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return keypoints (45, 3) and (45, 4), and the translation (3,).

        3D keypoints without a pelvis are hidden: losses on SMPL cannot use them.
        """
        keypoints_2d, keypoints_3d = (relabelled(record[name], self.JOINTS, "smpl45")
                                      for name in ("keypoints_2d", "keypoints_3d"))
        if (self.models is None or self.MODEL != "smpl"
                or not record["has_pose"] * record["has_betas"] * record["has_transl"]):
            return keypoints_2d, keypoints_3d * (keypoints_3d[0, 3] > 0), np.zeros(3, np.float32)
        output, model, transl = self.posed(record, keypoints_only=True)
        keypoints_3d = with_confidence(model.keypoints(output)[0].numpy())
        projected = with_confidence(bodymodels.project(keypoints_3d[:, :3], record["K"]),
                                    float(record["K"][2, 2]))
        annotated = 0 if self.DETECTED and self.detections is not None else keypoints_2d[:, 2:]
        return np.where(annotated > 0, keypoints_2d, projected), keypoints_3d, transl.numpy()

    def square(self, record: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float]:
        """Return centre (2,) and side of the crop of a body. No box: the whole picture."""
        center, (width, height) = record["center"].astype(np.float64), record["box"]
        if not max(width, height):
            center, (width, height) = np.array(size) / 2, np.array(size) / BOX_MARGIN
        return center, BOX_MARGIN * max(height, width / crops.SEEN_WIDTH)

    def neural_annot(self, fit: dict) -> dict:
        """Return the columns of a body that NeuralAnnot fitted with SMPL or SMPL-X."""
        row = {"betas": fit["shape"][:10], "transl": fit["trans"], "has_pose": 1, "has_betas": 1,
               "has_transl": 1}
        if self.MODEL == "smpl":
            return row | {"pose": np.reshape(fit["pose"], (24, 3))}
        parts = [fit[name] for name in ("root_pose", "body_pose", "jaw_pose")] + [np.zeros(6)] + [
            fit[name] for name in ("lhand_pose", "rhand_pose")]
        vector = np.concatenate([np.reshape(part, -1) for part in parts])[None]
        pose = self.absolute(vector)
        return row | {"pose": (vector.reshape(1, 55, 3) if pose is None else pose)[0]}

    def with_model_keypoints(self, columns: dict, gender: str = "neutral", template: str = ""
                             ) -> dict:
        """Add the keypoints of SMPL-X bodies, "smplx76", and their boxes to the columns."""
        self.require_models("keypoints")
        model = self.body(gender, template=template, keypoints_only=True, num_betas=self.NUM_BETAS)
        betas, pose = (torch.as_tensor(np.asarray(columns[name]), dtype=torch.float32)
                       for name in ("betas", "pose"))
        betas = betas.expand(len(pose), -1)
        roots = model.rest_joints(betas)[:, 0].numpy()
        transl = np.stack([moved_translation(*motion) for motion in zip(
            np.broadcast_to(columns["transl"], roots.shape), np.broadcast_to(
                columns["world_to_camera"], (len(roots), 3, 4)), roots, strict=True)])
        points = model.keypoints(model(betas, pose, transl=torch.from_numpy(transl))).numpy()
        front = (points[..., 2] > 0.05).astype(np.float32)  # metres before the camera
        keypoints = with_confidence(bodymodels.project(np.where(front[..., None] > 0, points, 1.0),
                                                    np.asarray(columns["K"])), front)
        return columns | boxes_around(keypoints) | {
            "keypoints_2d": keypoints, "keypoints_3d": with_confidence(points)}


class OfficialPeople(KeyedDataset):
    """Whole bodies of an official data set with crops of their hands; samples as RenderedPeople's.

    pictures: a data set of bodies; those before an unknown camera are left out. For SMPL-X its
    `models` have MANO_SMPLX_vertex_ids.pkl, too. A sample has these flags beside:

        body_pose_valid, betas_valid, expression_valid   ()       float32  betas: only those of the
                                                                           neutral body
        rotations_valid                                  (55,)    float32  of body_pose: SMPL has
                                                                           only the first 22
        keypoints_3d_valid                               (76,)    float32
        hand_betas                                       (2, 10)  float32  MANO's: unknown, 0
        hand_betas_valid                                 (2,)     float32

    No data set has expressions or visibility: expression is 0 and hand_visible 1. Of BEDLAM's
    eleven betas a sample has ten; keypoints and hands follow from all. Augmentation crops the crops
    again, as for rendered people. detail: above 1, and without augmentation, a sample also has
    "picture", the image with so many times as many pixels a side, to cut hands from.
    """

    def __init__(self, pictures: Pictures, hand_size: int | None = None, *,
                 augmentation: str | Augmentation | None = None, detail: int = 1) -> None:
        pictures.require_models("meshes")
        super().__init__(pictures.split, [pictures.split], pictures.seed, pictures.size,
                         augmentation)
        self.pictures, self.detail = pictures, detail
        self.hand_size = hand_size or pictures.size
        records = pictures.records()
        self.kept = np.flatnonzero((records["K"][:, 2, 2] > 0) & (
            (records["has_pose"] * records["has_transl"] > 0) | (records["mesh"] != b"")))
        if not len(self.kept):
            raise ValueError(f"{type(pictures).__name__} in {pictures.root} has no body before a "
                             "known camera: it has no samples of people")
        self.hand_vertices = [np.zeros(crops.NUM_VERTICES, np.int64)] * 2  # SMPL: unused
        if pictures.MODEL == "smplx":
            ids = bodymodels.hand_vertex_ids(pictures.models / "MANO_SMPLX_vertex_ids.pkl")
            self.hand_vertices = [ids[side] for side in crops.HANDS]

    def __len__(self) -> int:
        return len(self.kept)

    def records(self, indices: int | np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the records of `pictures` behind all samples or some."""
        return self.pictures.records()[self.kept[indices]]

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self.records(index)
        image, K = self.pictures.picture(record), record["K"].astype(np.float64)
        output, model, transl = self.pictures.posed(record)
        points = relabelled(with_confidence(model.keypoints(output)[0].numpy()),
                            f"{self.pictures.MODEL}{len(model.parents) + 21}", "smplx76")
        known = points[:, 3]
        points = np.where(points[:, 3:] > 0, points[:, :3], (0, 0, 1))  # (0, 0, 0) has no pixel
        keypoints_2d = bodymodels.project(points, K)
        size = image.shape[1], image.shape[0]
        homography = crops.crop_homography(*self.pictures.square(record, size), self.size)
        pose = np.tile(np.eye(3), (55, 1, 1))
        angles = record["pose"] if self.pictures.MODEL == "smplx" else record["pose"][:22]
        pose[:len(angles)] = bodymodels.axis_angle_to_matrix(torch.tensor(angles)).numpy()
        sample = {"image": crops.warp(image, homography, self.size), "K": homography @ K,
                  "pose": pose,
                  "betas": record["betas"][:10], "expression": np.zeros(10), "keypoints_3d": points,
                  "keypoints_2d": crops.transform_points(homography, keypoints_2d),
                  "transl": transl.numpy(), "hand_visible": np.ones(2)}
        hands = [self._hand(hand, image, K, keypoints_2d, output.vertices[0]) for hand in range(2)]
        sample |= {name: np.stack([hand[name] for hand in hands]) for name in hands[0]}
        labels = crops.labelled_person(sample, self.augmentation, self.size, rng)
        if self.detail > 1:
            finer = np.diag([self.detail, self.detail, 1]) @ homography
            labels["picture"] = crops.warp(image, finer, self.detail * self.size).transpose(2, 0, 1)
        neutral = self.pictures.MODEL == "smplx" and GENDERS[record["gender"]] == "neutral"
        return labels | {
            "keypoints_valid": labels["keypoints_valid"] * known, "keypoints_3d_valid": known,
            "rotations_valid": record["has_pose"] * (np.arange(55) < len(angles)),
            "hand_valid": labels["hand_valid"] * known[crops.HAND_KEYPOINTS].all(1),
            "body_pose_valid": record["has_pose"], "betas_valid": record["has_betas"] * neutral,
            "expression_valid": 0.0, "hand_betas": np.zeros((2, 10)),
            "hand_betas_valid": np.zeros(2)}

    def _hand(self, hand: int, image: np.ndarray, K: np.ndarray, keypoints_2d: np.ndarray,
              vertices: Tensor) -> dict[str, np.ndarray]:
        """Return crop, mesh and K of a hand; the left one is mirrored."""
        mirror, size = crops.HANDS[hand] == "left", self.hand_size
        center, side = crops.hand_square(keypoints_2d[crops.HAND_KEYPOINTS[hand]])
        view = crops.crop_homography(center, max(side, 1.0), size, mirror=mirror)
        flip = np.diag([-1.0 if mirror else 1.0, 1, 1])
        return {"hand_images": crops.warp(image, view, size), "hand_K": view @ K @ flip,
                "hand_vertices": vertices[self.hand_vertices[hand]].numpy() @ flip}


class HandPairs(KeyedDataset):
    """Pairs of official hands in the layout of OfficialPeople, to be mixed with people.

    hands: a data set of hands, opened with an augmentation and `models`. Those without a known pose
    and joints are left out. Either hand of a pair may be a right or a mirrored left one. There is
    no person: the picture (side `size`) is black.
    """

    UNKNOWN = {  # shapes of what follows from a person
        "keypoints_3d": (76, 3), "keypoints_2d": (76, 2), "keypoints_valid": 76,
        "keypoints_3d_valid": 76, "rotations_valid": 55, "hand_boxes": (2, 4), "transl": 3,
        "betas": 10, "expression": 10, "body_pose_valid": (), "betas_valid": (),
        "expression_valid": ()}

    def __init__(self, hands: Pictures, size: int) -> None:
        hands.require_models("meshes")
        super().__init__(hands.split, [hands.split], hands.seed, size)
        records = hands.records()
        whole = (records["has_pose"] > 0) & (records["keypoints_3d"][..., 3] > 0).all(1)
        self.hands, self.kept = hands, np.flatnonzero(whole)
        if not len(self.kept):
            raise ValueError(f"{type(hands).__name__} in {hands.root} has no hand whose pose, mesh "
                             "and joints are known")

    def __len__(self) -> int:
        return (len(self.kept) + 1) // 2

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        pair = []
        for number in (2 * index, 2 * index + 1):
            number = int(self.kept[number % len(self.kept)])
            sample, record = self.hands.load(number, rng), self.hands.records(number)
            self.hands.finish(sample, rng)
            turn = sample["camera_rotation"]  # the pose turns like the crop's camera
            flip = np.diag([np.sign(np.linalg.det(turn)), 1, 1])
            angles = torch.from_numpy(record["pose"].astype(np.float64))
            pose = flip @ bodymodels.axis_angle_to_matrix(angles).numpy() @ flip
            pose[0] = turn @ flip @ pose[0]
            pair.append({
                "hand_images": sample["image"], "hand_K": sample["K"], "hand_pose": pose,
                "hand_joints": sample["joints"], "hand_vertices": sample["vertices"],
                "hand_keypoints_2d": sample["keypoints_2d"], "hand_valid": sample["mesh_valid"],
                "hand_betas": record["betas"], "hand_betas_valid": float(record["has_betas"])})
        return {name: np.stack([hand[name] for hand in pair]) for name in pair[0]} | {
            name: np.zeros(shape) for name, shape in self.UNKNOWN.items()} | {
            "image": np.zeros((3, self.size, self.size), np.uint8), "K": np.eye(3),
            "body_pose": np.tile(np.eye(3), (55, 1, 1)), "hand_visible": np.ones(2)}
