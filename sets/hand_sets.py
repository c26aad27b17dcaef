"""Readers of pictures of hands: FreiHAND, DexYCB, InterHand2.6M."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

import bodymodels
from sets.augmentation import Augmentation
from sets.crops import NUM_JOINTS, NUM_VERTICES, Annotated, HandDataset, hand_sample, inside
from sets.images import read_image
from sets.official import (
    HandPictures,
    boxes_around,
    hand_space,
    intrinsics,
    official_body,
    read_npz,
    rigid,
    rotate_root,
    to_pixels,
    with_confidence,
)
from sets.samples import build_packed, fingerprint, stream_json_list


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


SETUPS: dict[str, Callable[[int, int, int], str]] = {  # split of a subject, sequence and camera
    "s0": lambda subject, sequence, camera:
        "train" if sequence % 5 != 4 else "val" if subject < 2 else "test",
    "s1": lambda subject, sequence, camera:
        {6: "val", 7: "test", 8: "test"}.get(subject, "train"),
    "s2": lambda subject, sequence, camera: {6: "val", 7: "test"}.get(camera, "train"),
    "s3": lambda subject, sequence, camera:
        {3: "val", 19: "val", 7: "test", 11: "test", 15: "test"}.get(sequence // 5, "train"),
}


class DexYCB(HandPictures):
    """DexYCB (Chao et al. 2021): 20200709-subject-01/ to 20201022-subject-10/ and calibration/.

    Options:
        setup      "s0" to "s3", the official splits.
        sequences  how many sequences a subject must have, since the splits count them; 0: do not
                   check.
        joints     "mesh": with `models`, joints and keypoints are regressed from the true mesh,
                   with the right hand's regressor and manopth's tips (TIPS). Regress a prediction
                   alike and a perfect mesh has no error. This is the convention of the protocol
                   dexycb_s0 here.
                   "given": joint_3d of the files, LBS joints with manopth's tips. The official
                   toolkit scores these. Joints regressed from a perfect mesh are about 3 mm off.

    Frames without a hand, all -1 in the files, are left out: 406,888 of s0's train and 78,768 of
    its test split stay. person is the official number of the sample, which counts them.
    pose_m holds 45 coefficients of the principal components of MANO's hand of the same side,
    relative to its mean hand, in the camera's frame. The authors used MANO_LEFT without the
    correction of its shapes, and so does this reader.
    """

    SOURCES = ("20*-subject-*/*/meta.yml", "20*-subject-*/*/[0-9]*/",
               "calibration/intrinsics/*_640x480.yml", "calibration/mano_*/mano.yml")
    HAND_SPACE, TIPS = "pca", "manopth_right"
    OPTIONS = {"setup": "s0", "sequences": 100, "joints": "mesh"}
    CHOICES = {"setup": tuple(SETUPS), "joints": ("mesh", "given")}
    COUNTS = {"s0 train": 406_888, "s0 test": 78_768}
    HOME = "dex-ycb.github.io"
    CAMERAS = ("836212060125", "839512060362", "840412060917", "841412060263", "932122060857",
               "932122060861", "932122061900", "932122062010")

    def annotated(self, index: int) -> Annotated:
        source = super().annotated(index)
        if source.mesh_valid and self.options["joints"] == "mesh":
            right = official_body(self.models, None, False, family="mano", gender="neutral",
                                  side="right", tips=self.TIPS)
            source.joints = right.keypoint_regressor.numpy() @ source.vertices
            source.keypoints_2d = to_pixels(source.joints, source.K)
            height, width = source.image.shape[:2]
            source.keypoints_valid = inside(source.keypoints_2d, width, height)
        return source

    def rows(self) -> Iterator[dict]:
        number, wanted = 0, self.options["sequences"]
        for folder in sorted(self.root.glob("20*-subject-*")):
            sequences = sorted(path for path in folder.iterdir() if path.is_dir())
            self.reading = folder
            if wanted and len(sequences) != wanted:
                raise ValueError(f"{len(sequences)} sequences where the splits count {wanted}")
            subject = int(folder.name[-2:]) - 1
            for order, sequence in enumerate(sequences):
                meta = self.yaml(sequence / "meta.yml")
                for camera, serial in enumerate(self.CAMERAS):
                    split = SETUPS[self.options["setup"]](subject, order, camera)
                    if serial in map(str, meta["serials"]) and self.split == split:
                        yield from self._camera(sequence, serial, meta, number)
                        number += meta["num_frames"]

    def _camera(self, sequence: Path, serial: str, meta: dict, number: int) -> Iterator[dict]:
        """Yield the frames of one camera in one sequence that show the hand."""
        color = self.yaml(f"calibration/intrinsics/{serial}_640x480.yml")["color"]
        K = intrinsics((color["fx"], color["fy"]), (color["ppx"], color["ppy"]))
        betas = self.yaml(f"calibration/mano_{meta['mano_calib'][0]}/mano.yml")["betas"]
        side, labels, frames = meta["mano_sides"][0], [], []
        for frame in range(meta["num_frames"]):
            path = self.file(sequence / serial / f"labels_{frame:06d}.npz")
            label = [array[0] for array in read_npz(path, "pose_m", "joint_3d", "joint_2d")]
            if not (label[1] == -1).all():
                labels.append(label)
                frames.append(frame)
        if not frames:
            return
        pose, joints, keypoints = map(np.stack, zip(*labels, strict=True))
        absolute = self.absolute(pose[:, :48], side=side)
        folder = (sequence / serial).relative_to(self.root).as_posix()
        center, box = boxes_around(with_confidence(keypoints))
        yield {
            "image": [f"{folder}/color_{frame:06d}.jpg" for frame in frames],
            "image_size": (640, 480), "K": K, "center": center, "box": box,
            "sequence": sequence.name,
            "keypoints_2d": with_confidence(keypoints), "keypoints_3d": with_confidence(joints),
            "betas": betas, "has_betas": 1, "transl": pose[:, 48:], "has_transl": 1,
            "side": int(side == "right"), "person": number + np.array(frames), "frame": frames,
        } | ({} if absolute is None else {"pose": absolute, "has_pose": 1, "has_hands": 1})


class InterHand(HandPictures):
    """InterHand2.6M (Moon et al. 2020): images/ and annotations/, the 5 or the 30 fps release.

    Each hand is a sample; each of an interacting pair has the box of its own projected joints.
    Which joints are valid is stored for each picture (data.json). As in the authors' loader, a hand
    without a valid wrist has no valid joint; it is left out.

    joint_3d is in millimetres of the world, tip to base. MANO's fits (NeuralAnnot; many frames have
    none) are in metres of the world, relative to the mean hand, and made with the corrected
    MANO_LEFT. camera.json holds positions of cameras, not translations.
    """

    SOURCES = ("annotations/{split}/InterHand2.6M_{split}_data.json",
               "annotations/{split}/InterHand2.6M_{split}_camera.json",
               "annotations/{split}/InterHand2.6M_{split}_joint_3d.json",
               "annotations/{split}/InterHand2.6M_{split}_MANO_NeuralAnnot.json")
    HAND_SPACE = "mean_relative"
    MODEL_OPTIONS = {"fix_left_shapedirs": True}
    HOME = "mks0601.github.io/InterHand2.6M"
    FIELDS = ("file_name", "width", "height", "capture", "seq_name", "camera", "frame_idx")

    def rows(self) -> Iterator[dict]:
        data, *others = (next(iter(paths)) for paths in self.sources.values())
        cameras, joints, manos = map(self.json, others)
        pictures = {item["id"]: tuple(item[field] for field in self.FIELDS)  # over a million
                    for item in stream_json_list(self.file(data), key="images")}
        for item in stream_json_list(self.file(data), key="annotations"):
            picture = dict(zip(self.FIELDS, pictures[item["image_id"]], strict=True))
            capture, frame = str(picture["capture"]), str(picture["frame_idx"])
            camera = {name: np.array(cameras[capture][name][str(picture["camera"])])
                      for name in ("campos", "camrot", "focal", "princpt")}
            fits = manos.get(capture, {}).get(frame, {})
            points, valid = joints[capture][frame]["world_coord"], item["joint_valid"]
            for side, first in (("right", 0), ("left", 21)):
                if item["hand_type"] in (side, "interacting"):
                    part = slice(first, first + 21)
                    yield from self._hand(side, picture, camera, np.array(points)[part],
                                          np.array(valid, np.float64).reshape(42)[part],
                                          fits.get(side), item["id"])

    def _hand(self, side: str, picture: dict, camera: dict, world: np.ndarray, valid: np.ndarray,
              fit: dict | None, person: int) -> Iterator[dict]:
        """Yield a hand from its joints (21, 3) in the world and their validity (21,)."""
        order = bodymodels.joint_indices("interhand21", "hand21")
        valid = valid[order]
        if not valid[0]:
            return
        R, t = camera["camrot"], -camera["camrot"] @ camera["campos"] / 1000
        K = intrinsics(camera["focal"], camera["princpt"])
        points = world[order] / 1000 @ R.T + t
        keypoints = with_confidence(to_pixels(np.where(valid[:, None] > 0, points, 1.0), K), valid)
        center, box = boxes_around(keypoints[None])
        row = {"image": f"images/{self.SPLITS[self.split]}/{picture['file_name']}",
               "image_size": (picture["width"], picture["height"]), "K": K, "center": center[0],
               "box": box[0], "keypoints_2d": keypoints, "world_to_camera": rigid(R, t),
               "keypoints_3d": with_confidence(points, valid), "side": int(side == "right"),
               "person": person, "frame": picture["frame_idx"],
               "sequence": f"{picture['capture']}/{picture['seq_name']}"}
        if fit:
            row |= {"betas": fit["shape"], "transl": fit["trans"], "has_betas": 1, "has_transl": 1}
            pose = self.absolute(np.array(fit["pose"]).reshape(1, 16, 3), side=side)
            if pose is not None:
                pose[:, 0] = rotate_root(R, pose[:, 0])
                row |= {"pose": pose[0], "has_pose": 1, "has_hands": 1}
        yield row
