"""Tar shards, in which HMR2.0 and HaMeR ship their training sets."""

from __future__ import annotations

import itertools
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from files import safe_unpickle
from sets.images import bytes_of
from sets.official import BOX_MARGIN, Pictures, to_records


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


class Shards(Pictures):
    """Tar files 000000.tar, ... of one training set in a folder.

    A key has a picture, data.pyd, which is a pickled list of the people in it, and perhaps
    detection.npz with their masks, which is not read. scale is the box's width and height / 200;
    the crop of a body shows that box. Pictures stay in the shards. `person` of a subclass returns
    the columns of one person; None leaves the person out.

    A damaged key is left out with a warning, a damaged shard is an error.
    """

    SPLITS = {"train": ""}
    SOURCES = ("*.tar",)
    EXTENSIONS = ("jpg", "jpeg", "png")

    def rows(self) -> Iterator[np.ndarray]:
        for path in self.sources["*.tar"]:
            for key, parts in shard_items(self.file(path.name)):
                unknown = set(parts) - {*self.EXTENSIONS, "data.pyd", "detection.npz"}
                if unknown:
                    raise ValueError(f"{key} has a part of unknown kind, {', '.join(unknown)}")
                picture = next((parts[name] for name in self.EXTENSIONS if name in parts), None)
                if picture is None:
                    continue
                try:
                    people = safe_unpickle(bytes_of(path, *parts["data.pyd"]).read())
                    records = [
                        to_records(row | {"image": path.name, "part": picture, "person": number},
                                   self.dtype)
                        for number, row in enumerate(map(self.person, people)) if row]
                except Exception as error:  # damaged files raise almost any error
                    warnings.warn(f"{path}: {key} is damaged and left out ({error})", stacklevel=1)
                else:
                    yield from records


def filtered(person: dict, pose: str, unit: float) -> dict | None:
    """Return the columns of a person or a hand after the filters of HMR2.0's and HaMeR's training.

    Keypoints of confidence below 0.3 do not count. Those with four keypoints or fewer, or a
    reprojection loss of 31,000 or more, are left out. A pose is used only with its shape, and not
    if a coefficient exceeds 3. An unknown shape becomes the mean.

    pose: "body_pose" or "hand_pose". unit: pixels of a box whose scale is 1.
    """
    losses = person.get("extra_info", {}).get("fitting_loss", {})
    losses = losses.item() if isinstance(losses, np.ndarray) else losses
    keypoints = np.array(person["keypoints_2d"], np.float64)
    keypoints[keypoints[:, 2] < 0.3] = 0
    if (keypoints[:, 2] > 0).sum() <= 4 or (losses.get("reprojection_loss") or 0) >= 31_000:
        return None
    betas = np.array(person["betas"], np.float64)
    known = (float(np.asarray(person[f"has_{pose}"])) > 0
             and float(np.asarray(person["has_betas"])) > 0 and np.abs(betas).max() <= 3)
    return {"keypoints_2d": keypoints, "keypoints_3d": person["keypoints_3d"],
            "center": person["center"], "box": np.broadcast_to(person["scale"], 2) * unit,
            "pose": np.reshape(person[pose], (-1, 3)), "betas": betas * known,
            "has_pose": known, "has_betas": True}


class HMRShards(Shards):
    """HMR2.0's training sets (Goel et al. 2023): dataset_tars/coco-train-2014-pruned and so on.

    Of its filters (see `filtered`) SUPPRESS_BAD_POSES is not done: it needs a histogram of AMASS
    whose layout and threshold are not documented. HMR2.0 leaves out nine bad pictures of AI
    Challenger by name; here they stay.
    """

    JOINTS = "hmr44"
    HOME = "github.com/shubham-goel/4D-Humans"

    def person(self, person: dict) -> dict | None:
        return filtered(person, "body_pose", 200 / BOX_MARGIN)


class HaMeRShards(Shards):
    """HaMeR's training sets (Pavlakos et al. 2024): dataset_tars/freihand-train and so on.

    hand_pose is absolute, according to HaMeR's layer and its author's answers (not seen in a real
    shard). K is unknown: the crop's camera is a guess, and joints may be relative to the wrist. The
    crop is made around the keypoints, not with `scale`. Filters: see `filtered`.
    """

    JOINTS, MODEL = "hand21", "mano"
    HOME = "github.com/geopavlakos/hamer"
    LEFT_OPTIONS = {"fix_left_shapedirs": True}

    def person(self, person: dict) -> dict | None:
        row = filtered(person, "hand_pose", 200)
        return row and row | {"side": int(np.asarray(person["right"]))}
