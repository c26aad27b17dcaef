"""Shards."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import bodymodels
from sets.images import bytes_of
from sets.official import BOX_MARGIN, HandPictures, Pictures
from sets.official_bodies import BodyPictures
from sets.packing import available_cores
from sets.records import UNREADABLE, to_records


def shard_items(path: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Keys of a tar file and for each {ending: (first byte, bytes)}.

    Members belong together while their names up to the base name's first dot are the same.
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


class Shards(Pictures):
    """Tar files of HMR2.0's and HaMeR's training sets: 000000.tar, ... of one set in a folder.

    A key is a picture, data.pyd, a pickled list of the people in it, and perhaps detection.npz,
    their masks: `mask(index)`. scale is the box's width and height / 200 and a body's crop shows
    that box. A key that is damaged is left out with a warning, a damaged shard is an error, and
    what a file exclude.txt beside the shards names, a key without its folder a line, is left out,
    too. Pictures stay in the shards, which all cores read at once.
    """

    SPLITS, UNIT = {"train": ""}, "shard"
    SOURCES = ("*.tar",)
    PICTURES = ("jpg", "jpeg", "png")

    def find_sources(self) -> dict[str, list[Path]]:
        path = self.root / "exclude.txt"
        self.excluded = set(path.read_text().split()) if path.is_file() else set()
        return super().find_sources() | ({path.name: [path]} if path.is_file() else {})

    def count_rows(self) -> int:
        return len(self.sources["*.tar"])

    def rows(self) -> Iterator[np.ndarray]:
        paths = self.sources["*.tar"]
        alone = multiprocessing.current_process().daemon  # which may have no children
        workers = 1 if alone else min(available_cores(), len(paths))
        with multiprocessing.Pool(workers) if workers > 1 else contextlib.nullcontext() as pool:
            found = pool.imap(self.shard, paths, 8) if pool else map(self.shard, paths)
            for self.reading, shard in zip(paths, found, strict=True):
                if isinstance(shard, Exception):
                    raise shard
                records, complaints = shard
                for complaint in complaints:
                    warnings.warn(complaint, stacklevel=1)
                yield records

    def shard(self, path: Path) -> tuple[np.ndarray, list[str]] | Exception:
        """`people`, or why they cannot be read."""
        try:
            return self.people(path)
        except UNREADABLE as error:
            return error

    def people(self, path: Path) -> tuple[np.ndarray, list[str]]:
        """The people of one shard, and what was left out because it is damaged."""
        rows, complaints = [np.zeros(0, self.dtype)], []
        for key, parts in shard_items(path):
            unknown = set(parts) - {*self.PICTURES, "data.pyd", "detection.npz"}
            if unknown:
                raise ValueError(f"{key} has a part of unknown kind, {', '.join(unknown)}")
            picture = next((parts[ending] for ending in self.PICTURES if ending in parts), None)
            if picture is None or key.rpartition("/")[2] in self.excluded:
                continue
            try:
                people = bodymodels.safe_unpickle(bytes_of(path, *parts["data.pyd"]).read())
                rows += [to_records(row | {
                    "image": path.name, "part": picture, "person": number, "sequence": key[-96:],
                    "mask": (*parts.get("detection.npz", (0, 0)), mask_number(people[number]))
                }, self.dtype) for number, row in enumerate(map(self.person, people)) if row]
            except UNREADABLE as error:
                complaints.append(f"{path}: {key} is damaged and left out ({error})")
        return np.concatenate(rows), complaints

    def mask(self, index: int) -> np.ndarray:
        """Where in its picture (H, W) a person was detected; all of it if the shard does not tell.
        """
        record = self.records()[index]
        start, count, number = record["mask"].tolist()
        if not count or number < 0:
            return np.ones(self.picture(record).shape[:2], bool)
        member = bytes_of(self.root / record["image"].decode(), start, count)
        with np.load(member, allow_pickle=False) as arrays:
            return arrays["masks"][number].astype(bool)

    def person(self, person: dict) -> dict | None:
        """The columns of one person; None leaves it out."""
        raise NotImplementedError


class HMRShards(Shards, BodyPictures):
    """HMR2.0's training sets (Goel et al. 2023): dataset_tars/coco-train-2014-pruned and so on.

    filters: as in HMR2.0's training: keypoints below a confidence of 0.3 do not count; people with
    four keypoints or fewer, or a reprojection loss of 31,000 or more, are left out; a pose goes
    with its shape, which is not believed if a coefficient is beyond 3; a shape that is unknown is
    the mean one. SUPPRESS_BAD_POSES is not done: it needs a histogram of AMASS whose layout and
    threshold are not documented. The nine bad pictures of AI Challenger that HMR2.0 leaves out by
    name want an exclude.txt, see Shards.
    """

    JOINTS, OPTIONS = "hmr44", {"filters": True}
    HOME = "github.com/shubham-goel/4D-Humans"

    def person(self, person: dict) -> dict | None:
        keypoints = np.array(person["keypoints_2d"], np.float64)
        betas = np.array(person["betas"], np.float64)
        has_pose, has_betas = (float(np.asarray(person[name])) > 0
                               for name in ("has_body_pose", "has_betas"))
        if self.options["filters"]:
            keypoints[keypoints[:, 2] < 0.3] = 0
            if (keypoints[:, 2] > 0).sum() <= 4 or reprojection_loss(person) >= 31_000:
                return None
            has_pose = has_betas = has_pose and has_betas and np.abs(betas).max() <= 3
            betas, has_betas = betas * has_betas, True
        return {"keypoints_2d": keypoints, "keypoints_3d": person["keypoints_3d"],
                "center": person["center"],
                "box": np.broadcast_to(person["scale"], 2) * 200 / BOX_MARGIN,
                "pose": np.reshape(person["body_pose"], (24, 3)), "betas": betas,
                "has_pose": has_pose, "has_betas": has_betas}


def mask_number(person: dict) -> int:
    """Which of its picture's masks is a person's; -1 if the file does not tell."""
    return int(person.get("extra_info", {}).get("detection_npz_idx", -1))


def reprojection_loss(person: dict) -> float:
    """Of the fit behind a person of HMR2.0's; 0 if the file does not tell."""
    losses = person.get("extra_info", {}).get("fitting_loss", {})
    losses = losses.item() if isinstance(losses, np.ndarray) else losses
    return float(losses.get("reprojection_loss", 0.0))


class HaMeRShards(Shards, HandPictures):
    """HaMeR's training sets (Pavlakos et al. 2024): dataset_tars/freihand-train and so on.

    hand_pose is absolute (as HaMeR's layer and its author's answers say; not seen in a real tar).
    K is not told: the crop's camera is a guess, and joints may be relative to the wrist. The crop
    is around the keypoints: scale is not used.
    """

    COUNTS = {"freihand-train": 130_240, "interhand26m-train": 1_424_632, "dex-train": 406_888,
              "halpe-train": 34_289, "cocow-train": 78_666, "mtc-train": 363_947,
              "rhd-train": 61_705, "mpiinzsl-train": 15_184, "ho3d-train": 83_325,
              "h2o3d-train": 121_996}  # as HaMeR's epochs count
    HOME = "github.com/geopavlakos/hamer"
    MODEL_OPTIONS = {"fix_left_shapedirs": True}

    def person(self, person: dict) -> dict | None:
        return {"keypoints_2d": person["keypoints_2d"], "keypoints_3d": person["keypoints_3d"],
                "center": person["center"], "box": np.broadcast_to(person["scale"], 2) * 200,
                "pose": np.reshape(person["hand_pose"], (16, 3)), "betas": person["betas"],
                "has_pose": np.asarray(person["has_hand_pose"]) > 0,
                "has_hands": np.asarray(person["has_hand_pose"]) > 0,
                "has_betas": np.asarray(person["has_betas"]) > 0,
                "side": int(np.asarray(person["right"]))}
