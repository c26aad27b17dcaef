"""Poses of bodies without pictures: from the free motion clips, AMASS and MOYO."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import bodymodels
from files import load_arrays
from sets.official import Official, read_npz
from sets.samples import KeyedDataset

SMPL_JOINTS = bodymodels.JOINT_SETS["smpl24"]
TEST_CLIPS = ("dance_b", "getup_faceup", "kick", "run", "turn_right1")  # of motion.npz
NEAR_DUPLICATE = 0.1  # rad: keep a frame only if some joint differs by this from every kept one
Y_UP_TO_CAMERA = np.diag([1.0, -1, -1])  # a body facing +z then faces the camera
PARTS = ("pelvis|spine|neck|head", "left_(hip|knee|ankle|foot)", "right_(hip|knee|ankle|foot)",
         "left_(collar|shoulder|elbow|wrist|hand)", "right_(collar|shoulder|elbow|wrist|hand)")
PART_OF = [next(part for part, pattern in enumerate(PARTS) if re.search(pattern, name))
           for name in SMPL_JOINTS]
LIMBS = [[joint for joint, part in enumerate(PART_OF) if part in parts]  # legs, arms
         for parts in ((1, 2), (3,), (4,))]


def by_joint(other: float, **values: float) -> np.ndarray:
    """Return (24, 1) values of SMPL's joints by their names, left and right alike."""
    kinds = (name.removeprefix("left_").removeprefix("right_") for name in SMPL_JOINTS)
    return np.array([[values.get(kind, other)] for kind in kinds])


# Standard deviations in radians, of joint noise and of the turns of joints in widened poses.
# Wrists, collars and toes never move in the clips.
OTHER_NOISE = 0.03
JOINT_NOISE = by_joint(OTHER_NOISE, wrist=0.25, collar=0.08, neck=0.12, head=0.12, foot=0.1)
TURNS = by_joint(0.05, hip=0.25, knee=0.2, ankle=0.12, foot=0.1, spine1=0.07, spine2=0.07,
                 spine3=0.07, neck=0.15, head=0.15, collar=0.1, shoulder=0.35, elbow=0.3,
                 wrist=0.25, pelvis=0.0)


@cache
def motion_frames(split: str, lean: float = 180.0) -> np.ndarray:
    """Return the poses (N, 24, 3) of a split's clips, axis-angle, y up, then their mirror images.

    Whole clips of `assets/motion.npz` belong to one split. Of frames that hardly differ, the first
    is kept. All are turned to face +z. lean: largest angle in degrees between the pelvis and
    upright; 180 keeps somersaults too.
    """
    with np.load(bodymodels.ASSETS / "motion.npz") as arrays:
        clips = arrays["clip_names"][arrays["clip"]]
        poses = torch.from_numpy(arrays["poses"].astype(np.float64)).unflatten(1, (24, 3))
    poses = poses[torch.from_numpy(np.isin(clips, TEST_CLIPS) == (split == "test"))]
    rotations = bodymodels.axis_angle_to_matrix(poses)
    w, _, y, _ = bodymodels.matrix_to_quaternion(rotations[:, 0]).unbind(1)
    turn = torch.zeros(len(rotations), 3, dtype=rotations.dtype)
    turn[:, 1] = -2 * torch.atan2(y, w)  # removes the rotation about y
    rotations[:, 0] = bodymodels.axis_angle_to_matrix(turn) @ rotations[:, 0]
    kept: list[int] = []
    for index, frame in enumerate(rotations):
        trace = (rotations[kept] * frame).sum((2, 3))  # of the relative rotation
        if (((trace.clamp(-1, 3) - 1) / 2).acos().amax(1) >= NEAR_DUPLICATE).all():
            kept.append(index)
    upright = rotations[kept, 0, 1, 1] > np.cos(np.deg2rad(lean)) - 1e-6  # cosine of its lean
    frames = bodymodels.matrix_to_axis_angle(rotations[kept][upright])
    return torch.cat([frames, bodymodels.mirror_pose(frames, SMPL_JOINTS)]).numpy()


def sample_body_pose(rng: np.random.Generator, split: str, views: float = 180.0,
                     lean: float = 180.0) -> np.ndarray:
    """Draw a plausible pose: SMPL rotations (24, 3, 3), the root's in an upright camera's frame.

    Half are frames of the split's clips; the other half take legs, left arm and right arm from
    other frames. Noise moves all joints but the root. The body faces the camera and is then turned
    about the vertical by up to +- `views` degrees. lean: see `motion_frames`.
    """
    frames = motion_frames(split, lean)
    pose = frames[rng.integers(len(frames))].copy()
    if rng.random() < 0.5:
        for limb in LIMBS:
            pose[limb] = frames[rng.integers(len(frames))][limb]
    pose[1:] += rng.normal(0, 1, (23, 3)) * JOINT_NOISE[1:]
    heading = np.deg2rad(rng.uniform(-views, views))
    rotations = bodymodels.axis_angle_to_matrix(
        torch.from_numpy(np.concatenate([pose, [[0, heading, 0]]]))).numpy()
    rotations[0] = Y_UP_TO_CAMERA @ rotations[24] @ rotations[0]
    return rotations[:24]


def sample_wide_poses(rngs: Sequence[np.random.Generator], split: str, wide: float,
                      views: float = 180.0, lean: float = 180.0) -> np.ndarray:
    """Draw a pose (N, 24, 3, 3) from each generator, with a share `wide` of widened poses.

    The others are as those of `sample_body_pose`. In a widened pose each of five PARTS of the body
    may come from another frame, or lie between two, and most have joints turned by up to TURNS:
    more ways of moving than the clips show.
    """
    frames = motion_frames(split, lean)
    chance = np.stack([rng.random((7, 5)) for rng in rngs], 1)  # (7, N, 5), one for each part
    noise, turn = np.stack([rng.standard_normal((2, 24, 3)) for rng in rngs], 1)
    base, other, between = (chance[:3] * len(frames)).astype(int)  # frames
    widened, exchanged, turned, size, heading = chance[6].T
    widened = widened < wide
    other[~widened, 2] = other[~widened, 1]  # the legs are one limb
    limbs = (exchanged < 0.5)[:, None] & (np.arange(5) > 0)
    source = np.where(np.where(widened[:, None], chance[3] < 0.5, limbs), other, base[:, :1])
    share = chance[5] * (chance[4] < 0.4) * widened[:, None]  # of the frame `between`

    joints, share = np.arange(24), share[:, PART_OF, None]
    pose = ((1 - share) * frames[source[:, PART_OF], joints]
            + share * frames[between[:, PART_OF], joints])  # (N, 24, 3)
    size = 1.3 * size * (turned < 0.7) * widened
    noise[:, 0] = 0
    pose += noise * JOINT_NOISE + turn * size[:, None, None] * TURNS
    angles = np.zeros((len(rngs), 25, 3))
    angles[:, :24], angles[:, 24, 1] = pose, np.deg2rad(views * (2 * heading - 1))
    rotations = bodymodels.axis_angle_to_matrix(torch.from_numpy(angles)).numpy()
    rotations[:, 0] = Y_UP_TO_CAMERA @ rotations[:, 24] @ rotations[:, 0]
    return rotations[:, :24]


def sample_betas(rng: np.random.Generator) -> np.ndarray:
    """Draw a shape (10,) of the free body models."""
    return np.clip(rng.standard_normal(10), -2.5, 2.5)


class MotionPoses(KeyedDataset):
    """Body poses without pictures, from the free motion clips, to train a pose tokenizer.

    A sample is {"pose": (24, 3, 3) rotations, "betas": (10,), "index": ()}; every epoch has other
    poses, before an upright camera. split: "train" or "test", from different clips. views, lean:
    see `sample_body_pose`. wide: share of poses that go beyond the clips, see `sample_wide_poses`.
    """

    LENGTHS = {"train": 40_000, "test": 2_000}

    def __init__(self, split: str = "train", length: int | None = None, seed: int = 0, *,
                 views: float = 180.0, lean: float = 180.0, wide: float = 0.0) -> None:
        super().__init__(split, tuple(self.LENGTHS), seed)
        self.length = self.LENGTHS[split] if length is None else length
        check_poses(self.length, views, lean, wide)
        self.views, self.lean, self.wide = float(views), float(lean), float(wide)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the samples of several keys, as a loader asks for a batch."""
        index = torch.tensor([self.locate(key)[1] for key in keys])
        rngs = [self.generator(key) for key in keys]
        if self.wide:
            poses = sample_wide_poses(rngs, self.split, self.wide, self.views, self.lean)
        else:
            poses = np.stack([sample_body_pose(rng, self.split, self.views, self.lean)
                              for rng in rngs])
        betas = np.stack([sample_betas(rng) for rng in rngs])
        columns = zip(index, torch.from_numpy(poses).float(), torch.from_numpy(betas).float(),
                      strict=True)
        return [{"index": index, "pose": pose, "betas": betas} for index, pose, betas in columns]


def check_poses(length: int, views: float, lean: float, wide: float) -> None:
    """Raise ValueError unless a set of drawn poses can have these settings."""
    if length < 1 or not 0 <= views <= 180 or not 30 <= lean <= 180 or not 0 <= wide <= 1:
        raise ValueError("expected a positive length, views in 0..180 and lean in 30..180 degrees, "
                         f"and wide in 0..1, got {length}, {views}, {lean} and {wide}")


Z_UP_TO_CAMERA = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


class MotionCapture(Official):
    """Recorded poses of bodies; samples are those of MotionPoses.

    Recordings are z up; the root is turned into the frame of an upright camera and keeps its
    heading. The rotations of 22 joints are copied from SMPL-H or SMPL-X to SMPL, and ten betas,
    which mean another shape there; SMPL's hands are still. GenHMR converts SMPL-H to SMPL "using
    SMPL-X instructions", which fit SMPL to the meshes: L_V of a tokenizer sees other shapes.

    At either end of a sequence the share TRIM is dropped; of the other frames every STRIDE-th is
    taken. The numbers are TokenHMR's; GenHMR gives none. Subclasses have `read(path)`: SMPL poses
    (T, 24, 3), axis-angle, and betas (N,) or (T, N) of one recording.
    """

    TRIM: float
    STRIDE: int
    dtype = np.dtype([("pose", np.float32, (24, 3)), ("betas", np.float32, 10)])

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self.records(index)
        pose = torch.from_numpy(record["pose"].astype(np.float64))
        rotations = bodymodels.axis_angle_to_matrix(pose).numpy()
        rotations[0] = Z_UP_TO_CAMERA @ rotations[0]
        return {"pose": rotations, "betas": record["betas"]}

    def rows(self) -> Iterator[np.ndarray]:
        for path in (path for paths in self.sources.values() for path in paths):
            poses, betas = self.read(self.file(path.relative_to(self.root)))
            kept = slice(int(self.TRIM * len(poses)), int((1 - self.TRIM) * len(poses)),
                         self.STRIDE)
            records = np.zeros(len(poses[kept]), self.dtype)
            records["pose"][:, :22] = poses[kept, :22]
            records["betas"] = (betas[kept] if betas.ndim == 2 else betas)[..., :10]
            if not np.isfinite(records["pose"]).all() or not np.isfinite(records["betas"]).all():
                raise ValueError("its poses or betas are not finite")
            yield records


def smpl_pose(poses: np.ndarray) -> np.ndarray:
    """Select SMPL's 24 joints (T, 24, 3) from SMPL-H (T, 156) or SMPL-X (T, 165) axis-angles."""
    joints = {156: "smplh52", 165: "smplx55"}
    if poses.ndim != 2 or poses.shape[1] not in joints:
        raise ValueError(f"expected poses (T, 156), SMPL-H, or (T, 165), SMPL-X, got {poses.shape}")
    order = bodymodels.joint_indices(joints[poses.shape[1]], "amass24")
    return poses.reshape(len(poses), -1, 3)[:, order]


class AMASS(MotionCapture):
    """AMASS (Mahmood et al. 2019) in its official layout, the SMPL+H or the SMPL-X download.

    root: the folder of CMU/, KIT/, ..., with <subject>/<sequence>_poses.npz (SMPL+H) or
    <sequence>_stageii.npz (SMPL-X; ignored if the same sequence of SMPL+H is there, also under a
    data set's earlier name). Splits are TokenHMR's; of a split's data sets those are read that root
    has.

    GenHMR trains on AMASS's "standard training split". TokenHMR's is longer: it also has DanceDB,
    BMLmovi and BMLhandball. TokenHMR draws from its data sets by fixed weights; here each has its
    share of the frames.
    """

    TRIM, STRIDE, HOME = 0.2, 10, "amass.is.tue.mpg.de"
    SUBSETS = {
        "train": ("CMU", "KIT", "BMLrub", "DanceDB", "BMLmovi", "EyesJapanDataset", "BMLhandball",
                  "TotalCapture", "EKUT", "ACCAD", "TCDHands", "PosePrior"),
        "val": ("HumanEva", "HDM05", "SFU", "MoSh"),
        "test": ("Transitions", "SSM"),
    }
    ALIASES = {  # names of earlier releases
        "BMLrub": ("BioMotionLab_NTroje", "BML"), "EyesJapanDataset": ("Eyes_Japan_Dataset",),
        "HDM05": ("MPI_HDM05",), "PosePrior": ("MPI_Limits",), "MoSh": ("MPI_mosh",),
        "SSM": ("SSM_synced",), "Transitions": ("Transitions_mocap",),
        "TCDHands": ("TCD_handMocap",),
    }

    def find_sources(self) -> dict[str, list[Path]]:
        sources = {}
        for subset in self.SUBSETS[self.split]:
            files = {(path.parent.name, path.name.removesuffix(ending)): path
                     for ending in ("_stageii.npz", "_poses.npz")  # SMPL+H last: it replaces SMPL-X
                     for name in (*self.ALIASES.get(subset, ()), subset)
                     for path in self.root.glob(f"{name}/*/*{ending}")}  # no shape files
            sources[subset] = sorted(files.values())
        if not any(sources.values()):
            raise self.missing(self.root / f"{self.SUBSETS[self.split][0]}/*/*_poses.npz")
        return sources

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        poses, betas = read_npz(path, "poses", "betas")
        return smpl_pose(poses), betas


class MOYO(MotionCapture):
    """MOYO (Tripathi et al. 2023), yoga, in its official layout.

    root: the folder with mosh_smpl/ (SMPL fits, preferred) or mosh/ (SMPL-X fits), or the one above
    it; in them train/ and val/ with one .pkl a sequence. Of captures with and without hands
    (..._with_hands) only those with hands are read, as in TokenHMR. SMPL-X fits have betas of 0.
    """

    SPLITS = {"train": "train", "val": "val"}
    TRIM, STRIDE, HOME = 0.1, 5, "moyo.is.tue.mpg.de"
    LAYOUTS = ("mosh_smpl/{split}/*.pkl", "mosh/{split}/*_stageii.pkl")

    def find_sources(self) -> dict[str, list[Path]]:
        for layout in self.LAYOUTS:
            for folder in ("", "*with_hands*/", "*/"):
                pattern = folder + layout.format(split=self.split)
                files = sorted(self.root.glob(pattern))
                if files:
                    return {pattern: files}
        raise self.missing(self.root / layout.format(split=self.split))

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        arrays = load_arrays(path)
        if "fullpose" in arrays:
            return smpl_pose(arrays["fullpose"]), arrays["betas"]
        pose = np.concatenate([arrays["global_orient"], arrays["body_pose"]], 1)
        return pose.reshape(-1, 24, 3), arrays["betas"]
