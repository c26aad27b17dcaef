"""Readers of pictures of hands and bodies in the official layouts of their data sets.

    FreiHAND, DexYCB, InterHand                              hands
    ThreeDPW, ThreeDPWMoon, ThreeDPWHMR2, EMDB               bodies, out of doors
    Human36M, Human36MSMPLX, Human36MHMR2, BEDLAM, RICH, ARCTIC, EHF   bodies
    HMRShards, HaMeRShards                                   tar files of HMR2.0 and of HaMeR
"""

from __future__ import annotations

import itertools
import tarfile
import warnings
from collections.abc import Iterator
from os import fsdecode
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

import bodymodels
from files import load_arrays, load_vertices, safe_unpickle
from sets import official
from sets.crops import NUM_VERTICES, inside
from sets.images import bytes_of

SMPLX_PARTS = ("global_orient", "body_pose", "jaw_pose", "leye_pose", "reye_pose", "left_hand_pose",
               "right_hand_pose")
PLACED = {"has_pose": 1, "has_betas": 1, "has_transl": 1}


class FreiHAND(official.Pictures):
    """FreiHAND (Zimmermann et al. 2019), version 2, in its official layout.

    root: the folder of training/, evaluation/ and their .json files. Training has four backgrounds
    (green screen, homogenised, sample, auto): picture = background * N + id, with one annotation
    for each id; it is packed once for each picture (1.4 GB). N comes from the files (32,560), so
    that a smaller folder works too; evaluation has 3,960 pictures.

    Both splits need xyz and verts. Without augmentation the crop is the box of the true keypoints
    x 1.25, as in the papers. Poses need `models`, for MANO's mean hand; their orientation is taken
    as the camera's, as in the data set's own tools.

    K is used as it is stored. If its pixel centres are at integers this is wrong by half a pixel,
    less than the error of the annotation. Joints are the stored xyz, not regressed ones.
    """

    SPLITS = {"train": "training", "evaluation": "evaluation"}
    SOURCES = ("{split}_K.json", "{split}_xyz.json", "{split}_verts.json", "{split}/rgb/")
    OPTIONAL = ("{split}_mano.json",)
    JOINTS, MODEL, HAND_SPACE = "hand21", "mano", "mean_relative"
    FIELDS = [("vertices", np.float32, (NUM_VERTICES, 3))]
    HOME = "freihand.informatik.uni-freiburg.de"
    BACKGROUNDS = {"train": 4, "evaluation": 1}

    def rows(self) -> Iterator[dict]:
        split, poses = self.SPLITS[self.split], {}
        for path in self.sources[f"{split}_mano.json"]:
            mano = np.asarray(self.json(path), np.float32).reshape(-1, 61)
            poses = {"betas": mano[:, 48:58], "has_betas": 1}
            poses |= self.hand_pose(mano[:, :48], "right")
        K, xyz, vertices = (np.asarray(self.json(f"{split}_{name}.json"), np.float32)
                            for name in ("K", "xyz", "verts"))
        for start in range(0, self.BACKGROUNDS[self.split] * len(K), len(K)):
            yield poses | {
                "image": [f"{split}/rgb/{start + number:08d}.jpg" for number in range(len(K))],
                "side": 1, "K": K, "vertices": vertices,
                "keypoints_3d": official.with_confidence(xyz),
                "keypoints_2d": official.with_confidence(bodymodels.project(xyz, K))}

    def mesh(self, record: np.ndarray) -> tuple[np.ndarray, float]:
        return record["vertices"], 1.0


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


class ThreeDPW(official.Pictures):
    """3DPW (von Marcard et al. 2018): imageFiles/ and sequenceFiles/.

    A person counts in the frames with a valid camera and 2D keypoints: 35,515 of the test split.
    Poses and jointPositions, the 24 joints of the gendered body, are in the world's frame. poses2d,
    of a detector, are (3, 18) a frame. Pictures are numbered 0, 1, ..., not by img_frame_ids. The
    box is that of the 2D keypoints, as in SPIN.
    """

    SPLITS = {"test": "test", "train": "train", "val": "validation"}
    SOURCES = ("sequenceFiles/{split}/*.pkl",)
    JOINTS, DETECTED = "smpl45", True
    HOME = "virtualhumans.mpi-inf.mpg.de/3DPW"

    def rows(self) -> Iterator[dict]:
        for path in self.first_sources():
            content = safe_unpickle(self.file(path))
            for person, gender in enumerate(content["genders"]):
                detected = content["poses2d"][person].swapaxes(1, 2)  # (N, 18, 3)
                kept = np.flatnonzero((content["campose_valid"][person] > 0)
                                      & (detected[..., 2] > 0).any(1))
                detected, motion = detected[kept], content["cam_poses"][kept, :3]
                detected = official.with_confidence(detected[..., :2], detected[..., 2])
                R, t = motion[..., :3], motion[..., 3]
                joints = content["jointPositions"][person].reshape(-1, 24, 3)[kept]
                keypoints_3d = np.zeros((len(kept), 45, 4))
                keypoints_3d[:, :24] = official.with_confidence(
                    joints @ R.swapaxes(1, 2) + t[:, None])
                pose = content["poses"][person].reshape(-1, 24, 3)[kept]
                pose[:, 0] = official.rotate_root(R, pose[:, 0])
                yield PLACED | official.boxes_around(detected) | {
                    "image": [f"imageFiles/{path.stem}/image_{frame:05d}.jpg" for frame in kept],
                    "K": content["cam_intrinsics"], "pose": pose, "keypoints_3d": keypoints_3d,
                    "keypoints_2d": official.relabelled(detected, "openpose18", "smpl45"),
                    "betas": content["betas"][person][:10], "person": person,
                    "transl": content["trans"][person][kept], "world_to_camera": motion,
                    "gender": "nmf".index(gender[0])}


class ThreeDPWMoon(official.Pictures):
    """3DPW as Moon's lineage packs it: 3DPW_test.json, 3DPW_train.json, ... and imageFiles/.

    SMPL's parameters are in the camera's frame and for the neutral model. The people are not those
    of ThreeDPW, so that scores of the two cannot be compared. joint_cam is not read.
    """

    SPLITS = ThreeDPW.SPLITS
    SOURCES = ("3DPW_{split}.json",)
    JOINTS = "smpl45"
    HOME = "github.com/mks0601/3DMPPE_POSENET_RELEASE"

    def rows(self) -> Iterator[dict]:
        content = self.json(f"3DPW_{self.SPLITS[self.split]}.json")
        pictures = {item["id"]: item for item in content["images"]}
        for item in content["annotations"]:
            picture = pictures[item["image_id"]]
            camera = item.get("cam_param") or picture["cam_param"]
            yield official.xywh_box(item["bbox"]) | {
                "image": f"imageFiles/{picture['sequence']}/{picture['file_name']}",
                "K": official.intrinsics(camera["focal"], camera["princpt"]),
                "person": item["id"], "image_size": (picture["width"], picture["height"])
            } | self.neural_annot(item["smpl_param"])


class ThreeDPWHMR2(official.Pictures):
    """3DPW in HMR2.0's file hmr2_evaluation_data/3dpw_test.npz, beside the pictures it names.

    scale is the width and height of the box in pixels, or one number for both, with the margin.
    Its true joints are 44: OpenPose's 25, then the 19 of SMPL_to_J19, in metres. No poses are read.
    """

    SPLITS = {"test": "3dpw_test"}
    SOURCES = ("hmr2_evaluation_data/{split}.npz",)
    JOINTS = "hmr44"
    HOME = "github.com/shubham-goel/4D-Humans"

    def rows(self) -> Iterator[dict]:
        arrays = load_arrays(self.file(self.first_sources()[0]))
        names = [fsdecode(name) for name in arrays["imgname"]]
        count = len(names)
        box = np.asarray(arrays["scale"], np.float64).reshape(count, -1) / official.BOX_MARGIN
        flat, solid = (np.concatenate([
            arrays.get(f"{part}_keypoints_{size - 1}d", np.zeros((count, joints, size)))
            for part, joints in (("body", 25), ("extra", 19))], 1) for size in (3, 4))
        yield {"image": names, "center": arrays["center"], "box": np.broadcast_to(box, (count, 2)),
               "keypoints_2d": official.with_confidence(flat[..., :2], flat[..., 2]),
               "keypoints_3d": official.with_confidence(solid[..., :3], solid[..., 3])}


class Human36MHMR2(ThreeDPWHMR2):
    """Human3.6M, protocol 2, in HMR2.0's file hmr2_evaluation_data/h36m_val_p2.npz, the same."""

    SPLITS = {"test": "h36m_val_p2"}


class EMDB(official.Pictures):
    """EMDB (Kaufmann et al. 2023): P0/ to P9/, with 14_outdoor_climb/ and so on in them.

    A sequence's own flags say to which of the two benchmarks it belongs; good_frames_mask says
    which frames count. The world's y is up, and the extrinsics lead from the world to the camera.
    """

    SPLITS = {"emdb1": "emdb1", "emdb2": "emdb2"}
    SOURCES = ("P*/*/*_data.pkl",)
    JOINTS = "smpl24"
    HOME = "eth-ait.github.io/emdb"

    def rows(self) -> Iterator[dict]:
        for path in self.first_sources():
            content = safe_unpickle(self.file(path))
            if not content[self.split]:
                continue
            folder = path.parent.relative_to(self.root).as_posix()
            kept = np.flatnonzero(content["good_frames_mask"])
            camera, body = content["camera"], content["smpl"]
            motion = camera["extrinsics"][kept, :3]
            root = official.rotate_root(motion[..., :3], body["poses_root"][kept])
            low, high = np.split(content["bboxes"]["bboxes"][kept], 2, 1)
            yield PLACED | {
                "image": [f"{folder}/images/{frame:05d}.jpg" for frame in kept],
                "image_size": (int(camera["width"]), int(camera["height"])),
                "center": (low + high) / 2, "box": high - low, "K": camera["intrinsics"],
                "keypoints_2d": official.with_confidence(content["kp2d"][kept]),
                "pose": np.concatenate([root, body["poses_body"][kept]], 1).reshape(-1, 24, 3),
                "betas": body["betas"][:10], "transl": body["trans"][kept],
                "world_to_camera": motion, "gender": official.GENDERS.index(content["gender"])}


class Human36M(official.Pictures):
    """Human3.6M (Ionescu et al. 2014) in SPIN's file dataset_extras/h36m_valid_protocol2.npz.

    p2 is protocol 2: the frontal camera 60457274 alone, subjects 9 and 11; 27,558 pictures. scale
    is the side of a square box / 200, margin included. S is relative to the pelvis.
    """

    SPLITS = {"p2": "h36m_valid_protocol2"}
    SOURCES = ("dataset_extras/{split}.npz",)
    JOINTS = "eft49"
    HOME = "vision.imar.ro/human3.6m and github.com/nkolot/SPIN"

    def rows(self) -> Iterator[dict]:
        names, center, scale, part, solid = official.read_npz(
            self.file(self.first_sources()[0]), "imgname", "center", "scale", "part", "S")
        names = [fsdecode(name) for name in names]
        kept = [index for index, name in enumerate(names) if ".60457274" in name]
        side = np.asarray(scale[kept], np.float64) * 200 / official.BOX_MARGIN
        part, solid = (np.pad(points[kept], ((0, 0), (25, 0), (0, 0))) for points in (part, solid))
        yield {"image": [names[index] for index in kept], "center": center[kept],
               "box": np.stack([side, side], 1), "keypoints_3d": solid,
               "keypoints_2d": official.with_confidence(part[..., :2], part[..., 2])}


class Human36MSMPLX(official.Pictures):
    """Human3.6M as Moon's lineage packs it, with NeuralAnnot's fits: HMR-Adapter trains on it.

    root: images/ and annotations/Human36M_subject*_*.json. Everything is in the world's frame;
    joints and camera translations are in millimetres, the right leg comes first. Fits of SMPL-X are
    read where they exist; fingers are relative to the mean hand, and stay so without `models`. Of
    50 frames a second every STRIDE-th is taken.
    """

    SPLITS = {"train": "train"}
    SUBJECTS = (1, 5, 6, 7, 8)
    JOINTS, MODEL, HAND_SPACE, STRIDE = "h36m17_moon", "smplx", "mean_relative", 5
    SOURCES = tuple(f"annotations/Human36M_subject{subject}_{kind}.json" for subject in SUBJECTS
                    for kind in ("data", "camera", "joint_3d", "SMPLX_NeuralAnnot"))
    HOME = "github.com/mks0601/3DMPPE_POSENET_RELEASE"

    def rows(self) -> Iterator[dict]:
        sources = [paths[0] for paths in self.sources.values()]
        for first in range(0, len(sources), 4):
            data, cameras, *trees = map(self.json, sources[first:first + 4])
            pictures = {item["id"]: item for item in data["images"]}
            for item in data["annotations"]:
                picture = pictures[item["image_id"]]
                if picture["frame_idx"] % self.STRIDE == 0:
                    action, part, frame = (str(picture[f"{kind}_idx"])
                                           for kind in ("action", "subaction", "frame"))
                    joints, fit = (tree.get(action, {}).get(part, {}).get(frame) for tree in trees)
                    yield official.xywh_box(item["bbox"]) | self._person(
                        picture, cameras[str(picture["cam_idx"])], joints, fit)

    def _person(self, picture: dict, camera: dict, joints: list | None, fit: dict | None) -> dict:
        R, t = np.array(camera["R"]), np.array(camera["t"]) / 1000
        K = official.intrinsics(camera["f"], camera["c"])
        row = {"image": f"images/{picture['file_name']}", "K": K, "person": picture["subject"],
               "image_size": (picture["width"], picture["height"]),
               "world_to_camera": np.column_stack([R, t])}
        if joints is not None:
            points = np.array(joints) / 1000 @ R.T + t
            row |= {"keypoints_3d": official.with_confidence(points),
                    "keypoints_2d": official.with_confidence(bodymodels.project(points, K))}
        if fit is not None:
            row |= self.neural_annot(fit)
            row["pose"][:1] = official.rotate_root(R, row["pose"][:1])
        return row


class BEDLAM(official.Pictures):
    """BEDLAM (Black et al. 2023): all_npz_12_training/*.npz and SCENE_6fps/png/seq_000000/....

    Poses are absolute and already in the camera's frame; the translation is trans_cam plus that of
    cam_ext. Bodies are of the neutral SMPL-X with 11 shape coefficients, whatever `gender` says.
    Close-ups lie on their side: they are turned clockwise. AGORA's files in the same folder
    (agora-*.npz) have other keys; they are left out. A person counts with at
    least MIN_KEYPOINTS joints in the picture.
    """

    SPLITS = {"train": "all_npz_12_training", "val": "all_npz_12_validation"}
    SOURCES = ("{split}/*.npz",)
    JOINTS, MODEL, NUM_BETAS, MIN_KEYPOINTS = "smplx76", "smplx", 11, 8
    PICTURE_SIZE = (1280, 720)  # as stored
    HOME = "bedlam.is.tue.mpg.de"
    ARRAYS = ("imgname", "center", "scale", "gtkps", "cam_int", "cam_ext", "pose_cam", "trans_cam",
              "shape")

    def rows(self) -> Iterator[dict]:
        for path in self.first_sources():
            if path.name.startswith("agora"):
                continue
            names, center, scale, gtkps, cam_int, cam_ext, pose, transl, betas = official.read_npz(
                self.file(path), *self.ARRAYS)
            closeup = "closeup" in path.stem
            size = self.PICTURE_SIZE[::-1 if closeup else 1]
            points = gtkps[:, :76, :2]
            kept = np.flatnonzero(inside(points, *size).sum(1) >= self.MIN_KEYPOINTS)
            side = scale[kept] * 200 / official.BOX_MARGIN
            betas = np.pad(betas[kept], ((0, 0), (0, self.NUM_BETAS)))[:, :self.NUM_BETAS]
            if len(kept):
                yield PLACED | {
                    "image": [f"{path.stem}/png/{fsdecode(names[index])}" for index in kept],
                    "turns": int(closeup), "center": center[kept],
                    "box": np.stack([side, side], 1), "K": cam_int[kept],
                    "keypoints_2d": official.with_confidence(points[kept]),
                    "pose": pose[kept].reshape(-1, 55, 3), "betas": betas,
                    "transl": transl[kept] + cam_ext[kept, :3, 3],
                    "person": kept}


class RICH(official.Pictures):
    """RICH (Huang et al. 2022): bodies/, images/, scan_calibration/ and resource/.

    resource/meta has a row for each person of each sequence (id, view_id). Each of the person's
    frames before each of the row's cameras is a sample. Bodies are of the gendered SMPL-X
    (resource/gender.json), in the frame of the first camera; a hand has 12 coefficients.
    Keypoints and boxes are those of the bodies, so that `models` is required. Pictures of another
    size, as in the reduced release, are refused, since K is not theirs.
    """

    SOURCES = ("resource/meta/{split}.txt", "resource/gender.json", "resource/imgext.json",
               "bodies/{split}/*/", "scan_calibration/*/calibration/*.xml")
    JOINTS, MODEL, HAND_SPACE = "smplx76", "smplx", "pca"
    PICTURE_SIZE = (4112, 3008)  # or the other way round where K's principal point says so
    HOME = "rich.is.tue.mpg.de"

    def rows(self) -> Iterator[dict]:
        genders, extensions = (self.json(f"resource/{name}.json") for name in ("gender", "imgext"))
        lines = self.file(f"resource/meta/{self.split}.txt").read_text().splitlines()
        fields = lines[0].split("\t")
        for line in lines[1:]:
            meta = dict(zip(fields, line.split("\t"), strict=True))
            sequence, people = meta["sequence_name"], {int(name) for name in meta["id"].split(",")}
            scene = sequence.split("_")[0]
            folder = self.root / "bodies" / self.split / sequence
            frames = sorted(path for path in folder.glob("*/*.pkl") if int(path.stem) in people)
            if not frames:
                raise self.missing(folder / f"*/{meta['id']}.pkl")
            cameras = {int(view): self._camera(scene, int(view))
                       for view in meta["view_id"].split(",")}
            for path in frames:
                body, gender = load_arrays(self.file(path)), genders[str(int(path.stem))]
                for view, camera in cameras.items():
                    yield PLACED | self._body(body, gender, *camera) | {
                        "image": [f"images/{self.split}/{sequence}/cam_{view:02d}/"
                                  f"{path.parent.name}_{view:02d}.{extensions[scene]}"],
                        "gender": official.GENDERS.index(gender), "person": int(path.stem)}

    def _camera(self, scene: str, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Return world to camera (3, 4), and K (3, 3)."""
        path = self.file(f"scan_calibration/{scene}/calibration/{view:03d}.xml")
        tree = ElementTree.parse(path)
        return tuple(np.array(tree.find(f"{name}/data").text.split(), np.float64).reshape(shape)
                     for name, shape in (("CameraMatrix", (3, 4)), ("Intrinsics", (3, 3))))

    def _body(self, body: dict, gender: str, motion: np.ndarray, K: np.ndarray) -> dict:
        """Return the columns of a body in a camera's view."""
        vector = np.concatenate([np.reshape(body[name], -1) for name in SMPLX_PARTS])[None]
        self.require_models("keypoints")
        pose = self.absolute(vector, gender)
        pose[:, 0] = official.rotate_root(motion[:, :3], pose[:, 0])
        portrait = K[1, 2] > K[0, 2]
        return self.with_model_keypoints(
            {"pose": pose, "betas": np.reshape(body["betas"], (1, 10)),
             "transl": np.reshape(body["transl"], (1, 3)), "world_to_camera": motion, "K": K,
             "image_size": self.PICTURE_SIZE[::-1 if portrait else 1]}, gender)


class ARCTIC(official.Pictures):
    """ARCTIC (Fan et al. 2023), eight allocentric cameras: raw_seqs/, meta/, images/, splits_json/.

    root: the folder `data` of arctic_data. Protocol 1; HMR-Adapter scores its val split, since the
    truth of the test split is withheld. As in the official code, pictures are numbered from the
    frame plus the subject's ioi_offset, and the numbers 10 to length - 11 are used, every
    INTERVAL-th of them (our choice; HMR-Adapter's files are not public).

    View v has entry v - 1 of the cameras and v of the picture sizes. Bodies have the subject's own
    template (`mesh`) and no betas; fingers are absolute. Frames without a finite fit are left out.
    Keypoints and boxes are those of the bodies, so that `models` is required.
    """

    SPLITS = {"val": "val", "train": "train"}
    SOURCES = ("splits_json/protocol_p1.json", "meta/misc.json", "meta/subject_vtemplates/s*.obj",
               "raw_seqs/s*/*.smplx.npy")
    JOINTS, MODEL, INTERVAL = "smplx76", "smplx", 10
    HOME = "arctic.is.tue.mpg.de"
    TRIM = 10  # pictures at either end

    def rows(self) -> Iterator[dict]:
        everybody = self.json("meta/misc.json")
        for name in sorted(self.json("splits_json/protocol_p1.json")[self.split]):
            subject, sequence = name.split("/")
            misc, template = everybody[subject], f"meta/subject_vtemplates/{subject}.obj"
            body = load_arrays(self.file(f"raw_seqs/{subject}/{sequence}.smplx.npy"))
            poses = np.concatenate([np.reshape(body[part], (len(body["transl"]), -1))
                                    for part in SMPLX_PARTS], 1).reshape(-1, 55, 3)
            frames = np.arange(self.TRIM, len(poses) - self.TRIM, self.INTERVAL)
            frames = frames - misc["ioi_offset"]
            finite = np.isfinite(poses).all((1, 2)) & np.isfinite(body["transl"]).all(1)
            frames = frames[(frames >= 0) & finite[frames]]
            self.file(template)
            for view in range(1, 9) if len(frames) else ():
                motion = np.array(misc["world2cam"][view - 1], np.float64)[:3]
                pose = poses[frames].astype(np.float64)
                pose[:, 0] = official.rotate_root(motion[:, :3], pose[:, 0])
                columns = {"pose": pose, "betas": np.zeros(10), "transl": body["transl"][frames],
                           "world_to_camera": motion, "K": np.array(misc["intris_mat"][view - 1])}
                yield self.with_model_keypoints(columns, misc["gender"], template) | {
                    "image": [f"images/{name}/{view}/{frame + misc['ioi_offset']:05d}.jpg"
                              for frame in frames], "image_size": misc["image_size"][view],
                    "has_pose": 1, "has_transl": 1, "mesh": template,
                    "gender": official.GENDERS.index(misc["gender"]), "person": view}


class EHF(official.Pictures):
    """EHF (Pavlakos et al. 2019), one folder: 01_img.jpg, 01_align.ply, 01_2Djnt.json, ..., 100_...

    The truth is a mesh with SMPL-X's topology in the scanner's frame; there are no parameters.
    Keypoints are OpenPose's. Boxes are those of SMPLer-X's EHF.json, if it is there, or else those
    of the keypoints, so that crops differ a little from SMPLer-X's.
    """

    SPLITS = {"test": "test"}
    SOURCES, OPTIONAL = ("*_align.ply", "*_2Djnt.json"), ("EHF.json",)
    JOINTS, MODEL = "openpose25", "smplx"
    HOME = "smpl-x.is.tue.mpg.de"
    ROTATION = (-2.98747896, 0.01172457, -0.05704687)  # axis-angle
    TRANSLATION = (-0.03609917, 0.43416458, 2.37101226)  # metres
    K = official.intrinsics((1498.22426237, 1498.22426237), (790.263706, 578.90334))

    def rows(self) -> Iterator[dict]:
        R = bodymodels.axis_angle_to_matrix(torch.tensor(self.ROTATION, dtype=torch.float64))
        boxes = {}  # of SMPLer-X's file, by the number of the picture
        for path in self.sources["EHF.json"]:
            content = self.json(path)
            names = {item["id"]: Path(item["file_name"]).name for item in content["images"]}
            boxes |= {int(names[item["image_id"]].partition("_")[0]):
                      official.xywh_box(item["body_bbox"]) for item in content["annotations"]}
        for path in sorted(self.sources["*_align.ply"], key=lambda path: int(path.name[:-10])):
            number = path.name[:-10]
            load_vertices(self.file(path))  # so that a damaged one is reported now
            people = self.json(f"{number}_2Djnt.json")["people"]
            keypoints = np.reshape(people[0]["pose_keypoints_2d"], (25, 3))
            keypoints = official.with_confidence(keypoints[:, :2], keypoints[:, 2])
            extension = "jpg" if (self.root / f"{number}_img.jpg").is_file() else "png"
            yield official.boxes_around(keypoints) | {
                "image": f"{number}_img.{extension}", "K": self.K, "keypoints_2d": keypoints,
                "world_to_camera": np.column_stack([R.numpy(), self.TRANSLATION]),
                "mesh": path.name} | boxes.get(int(number), {})

    def posed(self, record: np.ndarray, keypoints_only: bool = False
              ) -> tuple[bodymodels.BodyOutput, bodymodels.BodyModel, Tensor]:
        """Return the true mesh in the camera's frame, with the joints of SMPL-X's regressor."""
        model, motion = self.body(), record["world_to_camera"]
        vertices = load_vertices(self.root / record["mesh"].decode())
        vertices = torch.from_numpy(vertices @ motion[:, :3].T + motion[:, 3])[None]
        unknown = torch.full((1, len(model.parents), 4, 4), torch.nan)
        return (bodymodels.BodyOutput(vertices, model.J_regressor @ vertices, unknown), model,
                torch.zeros(3))


def shard_items(path: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Yield the keys of a tar file, each with {extension: (first byte, number of bytes)}.

    Members whose names agree up to the first dot of the base name belong to one key.
    """
    with tarfile.open(path, "r:") as archive:
        files = (member for member in archive if member.isfile())

        def key(member: tarfile.TarInfo) -> str:
            folder, slash, base = member.name.rpartition("/")
            return folder + slash + base.partition(".")[0]

        for name, members in itertools.groupby(files, key):
            yield name, {member.name.rpartition("/")[2].partition(".")[2]:
                         (member.offset_data, member.size) for member in members}
        if bytes_of(path, archive.offset, 512).read() != bytes(512):  # tarfile would just stop
            raise ValueError(f"damaged or cut off at byte {archive.offset}")


class HMRShards(official.Pictures):
    """HMR2.0's training sets (Goel et al. 2023): dataset_tars/coco-train-2014-pruned and so on.

    Tar files 000000.tar, ... of one training set in a folder. A key has a picture, data.pyd, which
    is a pickled list of the people in it, and perhaps detection.npz with their masks, which is not
    read. scale is the box's width and height / 200; the crop of a body shows that box. Pictures
    stay in the shards. A damaged key is left out with a warning, a damaged shard is an error.

    Of HMR2.0's filters (see `person`) SUPPRESS_BAD_POSES is not done: it needs a histogram of AMASS
    whose layout and threshold are not documented. HMR2.0 leaves out nine bad pictures of AI
    Challenger by name; here they stay.
    """

    SPLITS, SOURCES = {"train": ""}, ("*.tar",)
    JOINTS, POSE = "hmr44", "body_pose"
    UNIT = 200 / official.BOX_MARGIN  # pixels of a box whose scale is 1
    HOME = "github.com/shubham-goel/4D-Humans"

    def rows(self) -> Iterator[np.ndarray]:
        for path in self.first_sources():
            for key, parts in shard_items(self.file(path.name)):
                picture = next((parts[name] for name in ("jpg", "jpeg", "png") if name in parts),
                               None)
                if picture is None:
                    continue
                try:
                    people = safe_unpickle(bytes_of(path, *parts["data.pyd"]).read())
                    place = {"image": path.name, "part": picture}
                    records = [
                        official.to_records(row | place | {"person": number}, self.dtype)
                        for number, row in enumerate(map(self.person, people)) if row]
                except Exception as error:  # damaged files raise almost any error
                    warnings.warn(f"{path}: {key} is damaged and left out ({error})", stacklevel=1)
                else:
                    yield from records

    def person(self, person: dict) -> dict | None:
        """Return the columns of a person or a hand after the filters of HMR2.0's and HaMeR's code.

        Keypoints of confidence below 0.3 do not count. Those with four keypoints or fewer, or a
        reprojection loss of 31,000 or more, are left out: None. A pose is used only with its shape,
        and not if a coefficient exceeds 3. An unknown shape becomes the mean.
        """
        losses = person.get("extra_info", {}).get("fitting_loss", {})
        losses = losses.item() if isinstance(losses, np.ndarray) else losses
        keypoints = np.array(person["keypoints_2d"], np.float64)
        keypoints[keypoints[:, 2] < 0.3] = 0
        if (keypoints[:, 2] > 0).sum() <= 4 or (losses.get("reprojection_loss") or 0) >= 31_000:
            return None
        betas = np.array(person["betas"], np.float64)
        known = (float(np.asarray(person[f"has_{self.POSE}"])) > 0
                 and float(np.asarray(person["has_betas"])) > 0 and np.abs(betas).max() <= 3)
        side = int(np.asarray(person["right"])) if self.MODEL == "mano" else -1
        return {"keypoints_2d": keypoints, "keypoints_3d": person["keypoints_3d"], "side": side,
                "center": person["center"], "box": np.broadcast_to(person["scale"], 2) * self.UNIT,
                "pose": np.reshape(person[self.POSE], (-1, 3)), "betas": betas * known,
                "has_pose": known, "has_betas": True}


class HaMeRShards(HMRShards):
    """HaMeR's training sets (Pavlakos et al. 2024): dataset_tars/freihand-train and so on.

    hand_pose is absolute, according to HaMeR's layer and its author's answers (not seen in a real
    shard). K is unknown: the crop's camera is a guess, and joints may be relative to the wrist. The
    crop is made around the keypoints, not with `scale`. The files and filters are HMRShards'.
    """

    JOINTS, MODEL, POSE, UNIT = "hand21", "mano", "hand_pose", 200
    HOME = "github.com/geopavlakos/hamer"
    LEFT_OPTIONS = {"fix_left_shapedirs": True}


READERS: dict[str, type[official.Pictures]] = {
    "freihand": FreiHAND, "dexycb": DexYCB, "interhand": InterHand, "3dpw": ThreeDPW,
    "3dpw-moon": ThreeDPWMoon, "3dpw-hmr2": ThreeDPWHMR2, "emdb": EMDB, "h36m": Human36M,
    "h36m-smplx": Human36MSMPLX, "h36m-hmr2": Human36MHMR2, "hmr2-tars": HMRShards,
    "hamer-tars": HaMeRShards, "bedlam": BEDLAM, "rich": RICH, "arctic": ARCTIC, "ehf": EHF}
