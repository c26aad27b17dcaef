"""Readers of pictures of hands: FreiHAND, DexYCB, InterHand2.6M."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

import bodymodels
from sets import official
from sets.crops import NUM_JOINTS, NUM_VERTICES, inside


class FreiHAND(official.Pictures):
    """FreiHAND (Zimmermann et al. 2019), version 2, in its official layout.

    root: the folder of training/, evaluation/ and their .json files. Training has four backgrounds
    (green screen, homogenised, sample, auto): picture = background * N + id, with one annotation
    for each id. N comes from the files (32,560), so that a smaller folder works too; evaluation has
    3,960 pictures.

    Training needs training_verts.json. Without the annotation of the evaluation split, which came
    later, the crop is the whole picture and all flags are 0. Without augmentation it is the box of
    the true keypoints x 1.25, as in the papers. Poses need `models`, for MANO's mean hand; their
    orientation is taken as the camera's, as in the data set's own tools.

    K is used as it is stored. If its pixel centres are at integers this is wrong by half a pixel,
    less than the error of the annotation. Joints are the stored xyz, not regressed ones.
    """

    SPLITS = {"train": "training", "evaluation": "evaluation"}
    SOURCES = ("{split}_K.json", "{split}/rgb/")
    OPTIONAL = ("{split}_xyz.json", "{split}_verts.json", "{split}_mano.json")
    JOINTS, MODEL, HAND_SPACE = "hand21", "mano", "mean_relative"
    FIELDS = [("vertices", np.float32, (NUM_VERTICES, 3))]
    HOME = "freihand.informatik.uni-freiburg.de"
    BACKGROUNDS = {"train": 4, "evaluation": 1}

    def rows(self) -> Iterator[dict]:
        K, xyz, verts, mano = (self._numbers(*item) for item in (
            ("K", (3, 3)), ("xyz", (NUM_JOINTS, 3)), ("verts", (NUM_VERTICES, 3)),
            ("mano", (1, 61))))
        columns = {"image": [self._picture(number) for number in range(len(K))], "side": 1, "K": K}
        if xyz is not None:
            columns["keypoints_3d"] = official.with_confidence(xyz)
            columns["keypoints_2d"] = official.with_confidence(bodymodels.project(xyz, K))
        if verts is not None:
            columns["vertices"] = verts
        if mano is not None:
            columns |= {"betas": mano[:, 0, 48:58], "has_betas": 1}
            columns |= self.hand_pose(mano[:, 0, :48], "right")
        yield columns

    def _numbers(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Read a list of items of this shape; None if it is not there and need not be."""
        file = f"{self.SPLITS[self.split]}_{name}.json"
        if not self.sources.get(file) and (self.split == "evaluation" or name == "mano"):
            return None
        numbers = np.asarray(self.json(file), np.float32)
        if numbers.shape[1:] != shape or not np.isfinite(numbers).all():
            raise ValueError(f"expected items of {shape} finite numbers, got a list of shape "
                             f"{numbers.shape}")
        return numbers

    def _picture(self, number: int) -> str:
        """Return the file of a picture, below root."""
        return f"{self.SPLITS[self.split]}/rgb/{number:08d}.jpg"

    def __len__(self) -> int:
        """Return the number of pictures of all backgrounds."""
        return self.BACKGROUNDS[self.split] * len(self.records())

    def record(self, index: int) -> np.ndarray:
        record = self.records(index % len(self.records())).copy()
        record["image"] = self._picture(index).encode()
        return record

    def mesh(self, record: np.ndarray) -> tuple[np.ndarray, float]:
        return record["vertices"], float(record["vertices"].any() and record["keypoints_3d"].any())


def read_yaml(path: Path) -> dict:
    """Read a YAML file of plain data."""
    try:
        import yaml
    except ImportError as error:
        raise OSError("YAML files need PyYAML: pip install pyyaml") from error
    return yaml.safe_load(path.read_text())


class DexYCB(official.Pictures):
    """DexYCB (Chao et al. 2021): 20200709-subject-01/ to 20201022-subject-10/ and calibration/.

    The splits are those of setup s0: every fifth sequence of a subject is not for training; of
    these the first two subjects' are "val" and the others' "test". With `models`, joints and
    keypoints are regressed from the true mesh with the right hand's regressor and TIPS, as the
    protocol dexycb_s0 does with a prediction, so that a perfect mesh has no error. joint_3d of the
    files, LBS joints with manopth's tips, which the official toolkit scores, is about 3 mm off.

    Frames without a hand, all -1 in the files, are left out: 406,888 of s0's train and 78,768 of
    its test split stay. person is the official number of the sample, which counts them.
    pose_m holds 45 coefficients of the principal components of MANO's hand of the same side,
    relative to its mean hand, in the camera's frame. The authors used MANO_LEFT without the
    correction of its shapes, and so does this reader.
    """

    SOURCES = ("20*-subject-*/*/meta.yml", "20*-subject-*/*/[0-9]*/",
               "calibration/intrinsics/*_640x480.yml", "calibration/mano_*/mano.yml")
    JOINTS, MODEL, HAND_SPACE, TIPS = "hand21", "mano", "pca", "manopth_right"
    SEQUENCES = 100  # of each subject: the splits count them
    HOME = "dex-ycb.github.io"
    CAMERAS = ("836212060125", "839512060362", "840412060917", "841412060263", "932122060857",
               "932122060861", "932122061900", "932122062010")

    def annotated(self, index: int) -> dict[str, np.ndarray]:
        source = super().annotated(index)
        if not source["mesh_valid"]:
            return source
        joints = self.body(tips=self.TIPS).keypoint_regressor.numpy() @ source["vertices"]
        keypoints = bodymodels.project(joints, source["K"])
        return source | {"joints": joints, "keypoints_2d": keypoints, "keypoints_valid": inside(
            keypoints, *source["image"].shape[1::-1])}

    def rows(self) -> Iterator[dict]:
        number = 0
        for folder in sorted(self.root.glob("20*-subject-*")):
            sequences = sorted(path for path in folder.iterdir() if path.is_dir())
            self.reading = folder
            if len(sequences) != self.SEQUENCES:
                raise ValueError(f"{len(sequences)} sequences where the splits count "
                                 f"{self.SEQUENCES}")
            fifth = "val" if int(folder.name[-2:]) < 3 else "test"
            for order, sequence in enumerate(sequences):
                if self.split != ("train" if order % 5 != 4 else fifth):
                    continue
                meta = read_yaml(self.file(sequence / "meta.yml"))
                for serial in self.CAMERAS:
                    if serial in map(str, meta["serials"]):
                        yield from self._camera(sequence, serial, meta, number)
                        number += meta["num_frames"]

    def _camera(self, sequence: Path, serial: str, meta: dict, number: int) -> Iterator[dict]:
        """Yield the frames of one camera in one sequence that show the hand."""
        color = read_yaml(self.file(f"calibration/intrinsics/{serial}_640x480.yml"))["color"]
        betas = read_yaml(self.file(f"calibration/mano_{meta['mano_calib'][0]}/mano.yml"))["betas"]
        labels = [official.read_npz(self.file(sequence / serial / f"labels_{frame:06d}.npz"),
                                    "pose_m", "joint_3d", "joint_2d")
                  for frame in range(meta["num_frames"])]
        pose, joints, keypoints = (np.concatenate(arrays) for arrays in zip(*labels, strict=True))
        frames = np.flatnonzero((joints != -1).any((1, 2)))
        if not len(frames):
            return
        keypoints = official.with_confidence(keypoints[frames])
        folder = (sequence / serial).relative_to(self.root).as_posix()
        yield official.boxes_around(keypoints) | {
            "image": [f"{folder}/color_{frame:06d}.jpg" for frame in frames],
            "image_size": (640, 480),
            "K": official.intrinsics((color["fx"], color["fy"]), (color["ppx"], color["ppy"])),
            "keypoints_2d": keypoints, "keypoints_3d": official.with_confidence(joints[frames]),
            "betas": betas, "has_betas": 1, "transl": pose[frames, 48:], "has_transl": 1,
            "side": int(meta["mano_sides"][0] == "right"), "person": number + frames,
        } | self.hand_pose(pose[frames, :48], meta["mano_sides"][0])


class InterHand(official.Pictures):
    """InterHand2.6M (Moon et al. 2020): images/ and annotations/, the 5 or the 30 fps release.

    Each hand is a sample; each of an interacting pair has the box of its own projected joints. As
    in the authors' loader, a hand without a valid wrist has no valid joint; it is left out.

    joint_3d is in millimetres of the world, tip to base. MANO's fits (NeuralAnnot; many frames have
    none) are in metres of the world, relative to the mean hand, and made with the corrected
    MANO_LEFT. camera.json holds positions of cameras, not translations.
    """

    SOURCES = tuple(f"annotations/{{split}}/InterHand2.6M_{{split}}_{name}.json"
                    for name in ("data", "camera", "joint_3d", "MANO_NeuralAnnot"))
    JOINTS, MODEL, HAND_SPACE = "hand21", "mano", "mean_relative"
    LEFT_OPTIONS = {"fix_left_shapedirs": True}
    HOME = "mks0601.github.io/InterHand2.6M"

    def rows(self) -> Iterator[dict]:
        data, cameras, joints, manos = (self.json(paths[0]) for paths in self.sources.values())
        pictures = {item["id"]: item for item in data["images"]}
        for item in data["annotations"]:
            picture = pictures[item["image_id"]]
            capture, frame = str(picture["capture"]), str(picture["frame_idx"])
            camera = [np.array(cameras[capture][name][str(picture["camera"])])
                      for name in ("campos", "camrot", "focal", "princpt")]
            fits = manos.get(capture, {}).get(frame, {})
            points = np.reshape(joints[capture][frame]["world_coord"], (2, 21, 3))
            valid = np.reshape(item["joint_valid"], (2, 21)).astype(np.float64)
            for number, side in enumerate(("right", "left")):
                if item["hand_type"] in (side, "interacting"):
                    row = self._hand(side, camera, points[number], valid[number], fits.get(side))
                    if row["keypoints_3d"][0, 3]:
                        yield row | {
                            "image": f"images/{self.split}/{picture['file_name']}",
                            "image_size": (picture["width"], picture["height"]),
                            "person": item["id"]}

    def _hand(self, side: str, camera: list[np.ndarray], world: np.ndarray, valid: np.ndarray,
              fit: dict | None) -> dict:
        """Return the columns of a hand: joints (21, 3) in the world, their validity, a fit."""
        order = bodymodels.joint_indices("interhand21", "hand21")
        position, R, focal, center = camera
        t, K = -R @ position / 1000, official.intrinsics(focal, center)
        points, valid = world[order] / 1000 @ R.T + t, valid[order]
        pixels = bodymodels.project(np.where(valid[:, None] > 0, points, 1.0), K)
        keypoints = official.with_confidence(pixels, valid)
        row = official.boxes_around(keypoints) | {
            "K": K, "keypoints_3d": official.with_confidence(points, valid),
            "keypoints_2d": keypoints, "side": int(side == "right"),
            "world_to_camera": np.column_stack([R, t])}
        if fit:
            pose = np.array(fit["pose"]).reshape(1, 16, 3)
            pose[:, 0] = official.rotate_root(R, pose[:, 0])
            row |= self.hand_pose(pose, side) | {
                "betas": fit["shape"], "transl": fit["trans"], "has_betas": 1, "has_transl": 1}
        return row
