"""Recorded body motion without pictures: AMASS and MOYO."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import bodymodels
from files import load_arrays
from sets.files import read_npz
from sets.packing import build_packed, fingerprint
from sets.samples import KeyedDataset

Z_UP_TO_CAMERA = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


class MotionCapture(KeyedDataset):
    """Recorded poses of bodies, read once into a packed file; samples are those of MotionPoses.

    Recordings are z up; the root is turned into the frame of an upright camera and keeps its
    heading. The rotations of the first 22 joints are copied from SMPL-H or SMPL-X to SMPL, and the
    first ten betas, which mean another shape there. GenHMR converts SMPL-H to SMPL "using SMPL-X
    instructions", which fit SMPL to the meshes: L_V of a tokenizer sees slightly other shapes.

    trim: share of each sequence to drop at either end. stride: take every stride-th of the other
    frames. The defaults are TokenHMR's; GenHMR gives none. hands: SMPL's joints left_hand and
    right_hand are "still", or turn with the "index" finger, as in AMASS's own tools.
    cache: folder of the packed file (0.33 kB a frame), by default root; it is made again when the
    files change.
    """

    DTYPE = np.dtype([("pose", np.float32, (24, 3)), ("betas", np.float32, 10)])
    SPLITS: tuple[str, ...]

    def __init__(self, root: str | os.PathLike, split: str, trim: float, stride: int, hands: str,
                 seed: int, cache: str | os.PathLike | None, progress: bool) -> None:
        super().__init__(split, self.SPLITS, seed)
        if not 0 <= trim < 0.5 or stride < 1 or hands not in ("still", "index"):
            raise ValueError("expected trim in 0..0.5, a stride of 1 or more and hands still or "
                             f"index, got {trim}, {stride} and {hands!r}")
        self.root, self.trim, self.stride, self.hands = Path(root), trim, stride, hands
        self.progress = progress
        self.files = self.find_files()
        marks = {path.relative_to(self.root).as_posix(): (path.stat().st_size,
                                                          path.stat().st_mtime_ns)
                 for path in self.files}
        name = fingerprint({"files": marks, "trim": trim, "stride": stride, "hands": hands})
        self.path = ((self.root if cache is None else Path(cache))
                     / f"{type(self).__name__.lower()}_{split}_{name}.npy")
        self._packed: np.ndarray | None = None
        if not len(self._records()):
            raise ValueError(f"the {len(self.files)} files of {self.root}, split {split}, have no "
                             f"frame left with trim={trim} and stride={stride}")

    def find_files(self) -> list[Path]:
        """Return the split's recordings in a fixed order."""
        raise NotImplementedError

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Read one recording: SMPL poses (T, 24, 3), axis-angle, and betas (10,) or (T, 10)."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._records())

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}  # workers map the file themselves

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self._records()[index]
        pose = torch.from_numpy(record["pose"].astype(np.float64))
        rotations = bodymodels.axis_angle_to_matrix(pose).numpy()
        rotations[0] = Z_UP_TO_CAMERA @ rotations[0]
        return {"pose": rotations, "betas": record["betas"]}

    def _records(self) -> np.ndarray:
        if self._packed is None:
            self._packed = build_packed(self.path, self.DTYPE, None, self._gather)
        return self._packed

    def _gather(self) -> Iterator[np.ndarray]:
        bar = tqdm(self.files, f"Packing {self.path.name}", disable=not self.progress)
        return (self._excerpt(path) for path in bar)

    def _excerpt(self, path: Path) -> np.ndarray:
        poses, betas = self.read(path)
        kept = slice(int(self.trim * len(poses)), int((1 - self.trim) * len(poses)), self.stride)
        records = np.zeros(len(poses[kept]), self.DTYPE)
        records["pose"] = poses[kept]
        records["betas"] = betas[kept] if betas.ndim == 2 else betas
        if self.hands == "still":
            records["pose"][:, 22:] = 0
        if not np.isfinite(records["pose"]).all() or not np.isfinite(records["betas"]).all():
            raise ValueError(f"{path} has poses or betas that are not finite: copy it again, or "
                             "remove it")
        return records


def smpl_pose(path: Path, poses: np.ndarray) -> np.ndarray:
    """Select SMPL's 24 joints (T, 24, 3) from SMPL-H (T, 156) or SMPL-X (T, 165) axis-angles."""
    joints = {156: "smplh52", 165: "smplx55"}
    if poses.ndim != 2 or poses.shape[1] not in joints:
        raise ValueError(f"{path}: expected poses (T, 156), SMPL-H, or (T, 165), SMPL-X, got "
                         f"{poses.shape}")
    order = bodymodels.joint_indices(joints[poses.shape[1]], "amass24")
    return poses.reshape(len(poses), -1, 3)[:, order]


def first_betas(path: Path, betas: np.ndarray, frames: int) -> np.ndarray:
    """Return the first ten of betas (N,) or (frames, N), padded with zeros."""
    if betas.ndim not in (1, 2) or betas.ndim == 2 and len(betas) != frames:
        raise ValueError(f"{path}: expected betas (N,) or ({frames}, N), got {betas.shape}")
    betas = betas[..., :10]
    return np.pad(betas, [(0, 0)] * (betas.ndim - 1) + [(0, 10 - betas.shape[-1])])


class AMASS(MotionCapture):
    """AMASS (Mahmood et al. 2019) in its official layout, the SMPL+H or the SMPL-X download.

    root: the folder of CMU/, KIT/, ..., with <subject>/<sequence>_poses.npz (SMPL+H) or
    <sequence>_stageii.npz (SMPL-X; ignored beside the same sequence of SMPL+H). Splits are
    TokenHMR's; `missing` lists data sets of the split that root does not have. subsets: use these
    data sets instead, by the name of either release; all must be there.
    """

    SPLITS = ("train", "val", "test")
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
        "TCDHands": ("TCD_handMocap",), "DFaust": ("DFaust_67",),
    }

    def __init__(self, root: str | os.PathLike, split: str = "train", *,
                 subsets: Sequence[str] | None = None, trim: float = 0.2, stride: int = 10,
                 hands: str = "still", seed: int = 0, cache: str | os.PathLike | None = None,
                 progress: bool = True) -> None:
        self.subsets = subsets
        self.missing: list[str] = []
        super().__init__(root, split, trim, stride, hands, seed, cache, progress)

    def find_files(self) -> list[Path]:
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {self.root}: expected AMASS there, see "
                                    "amass.is.tue.mpg.de")
        folders = {path.name.lower(): path for path in sorted(self.root.iterdir())
                   if path.is_dir()}
        files: list[Path] = []
        for subset in self.subsets or self.SUBSETS[self.split]:
            matches = [folders[name.lower()] for name in self._names(subset)
                       if name.lower() in folders]
            files += [path for folder in matches for path in self._sequences(folder)]
            self.missing += [] if matches else [subset]
        if self.missing and self.subsets or not files:
            wanted = ", ".join(self.missing if self.missing and self.subsets else
                               self.SUBSETS[self.split])
            raise FileNotFoundError(f"no recordings of {wanted} in {self.root}: expected folders "
                                    "of these names with SUBJECT/SEQUENCE_poses.npz or "
                                    "_stageii.npz in them")
        return files

    def _names(self, subset: str) -> list[str]:
        """Return a data set's names in all releases."""
        known = {name: [name, *self.ALIASES.get(name, ())]
                 for name in (*self.ALIASES, *sum(self.SUBSETS.values(), ()))}
        return next((names for names in known.values()
                     if subset.lower() in (name.lower() for name in names)), [subset])

    @staticmethod
    def _sequences(folder: Path) -> list[Path]:
        """Return a data set's recordings, without its shape files."""
        files = {str(path).removesuffix(ending): path for ending in ("_stageii.npz", "_poses.npz")
                 for path in folder.glob(f"*/*{ending}")}  # SMPL+H last: it replaces SMPL-X
        return sorted(files.values())

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        try:
            poses, betas = (np.asarray(array, np.float64)
                            for array in read_npz(path, "poses", "betas"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as AMASS's .npz with poses and betas "
                             f"({error}): download it again") from error
        return smpl_pose(path, poses), first_betas(path, betas, len(poses))


class MOYO(MotionCapture):
    """MOYO (Tripathi et al. 2023), yoga, in its official layout.

    root: the folder with mosh_smpl/ (SMPL fits) or mosh/ (SMPL-X fits), or the one above it; in
    them train/ and val/ with one .pkl a sequence. SMPL fits are preferred. If the folders above
    include captures with and without hands (..._with_hands), only those with hands are read, as in
    TokenHMR. There is one subject, whose shape SMPL-X fits do not store as betas: they are 0.
    Nothing in a file is executed. hands="index" keeps the hand joints of an SMPL fit.
    """

    SPLITS = ("train", "val")
    LAYOUTS = ("mosh_smpl/{split}/*.pkl", "mosh/{split}/*_stageii.pkl")

    def __init__(self, root: str | os.PathLike, split: str = "train", *, trim: float = 0.1,
                 stride: int = 5, hands: str = "still", seed: int = 0,
                 cache: str | os.PathLike | None = None, progress: bool = True) -> None:
        super().__init__(root, split, trim, stride, hands, seed, cache, progress)

    def find_files(self) -> list[Path]:
        for layout in self.LAYOUTS:
            pattern = layout.format(split=self.split)
            above = list(self.root.glob(f"*/{pattern}"))
            with_hands = [path for path in above
                          if "with_hands" in path.relative_to(self.root).parts[0]]
            files = [*self.root.glob(pattern), *(with_hands or above)]
            if files:
                return sorted(files)
        wanted = " or ".join(layout.format(split=self.split) for layout in self.LAYOUTS)
        raise FileNotFoundError(f"no {wanted} in {self.root}: expected MOYO there, see "
                                "moyo.is.tue.mpg.de")

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        arrays = load_arrays(path)
        try:
            if "fullpose" in arrays:
                poses = smpl_pose(path, np.asarray(arrays["fullpose"], np.float64))
            else:
                root, body = (np.asarray(arrays[name], np.float64).reshape(-1, width)
                              for name, width in (("global_orient", 3), ("body_pose", 69)))
                poses = np.concatenate([root, body], 1).reshape(-1, 24, 3)
            betas = np.asarray(arrays["betas"], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no recording of MOYO ({error}): expected fullpose "
                             "(T, 165), or global_orient (T, 3) and body_pose (T, 69), and betas"
                             ) from error
        return poses, first_betas(path, betas, len(poses))
