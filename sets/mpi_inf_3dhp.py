"""Mpi inf 3dhp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sets.crops import inside
from sets.keypoints_2d import read_mat
from sets.official_bodies import BodyPictures
from sets.records import boxes_around, with_confidence


class MPIINF3DHP(BodyPictures):
    """MPI-INF-3DHP (Mehta et al. 2017): S1/ to S8/ to train, mpi_inf_3dhp_test_set/ to evaluate.

    The frames of the videos have to be extracted by whoever has them, to S1/Seq1/imageFrames/
    video_0/frame_000001.jpg, counted from 1. Training: the eight cameras at chest height, every
    10th frame (option stride), all 17 joints in the picture; annot3, millimetres before the
    camera. Test: files of HDF5 (h5py reads them), valid frames with all joints in the picture, and
    by default univ_annot3 as in SPIN's files (option universal).
    """

    SPLITS = {"train": "S*/Seq*/annot.mat", "test": "mpi_inf_3dhp_test_set/TS*/annot_data.mat"}
    SOURCES = ("{split}",)
    JOINTS, OPTIONS = "h36m17_spin", {"stride": 10, "universal": True}
    COUNTS = {"test": 2_929}
    HOME = "vcai.mpi-inf.mpg.de/3dhp-dataset"
    CAMERAS = (0, 1, 2, 4, 5, 6, 7, 8)
    OF_28 = (4, 18, 19, 20, 23, 24, 25, 3, 5, 6, 7, 9, 10, 11, 14, 15, 16)
    OF_17 = (14, 11, 12, 13, 8, 9, 10, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4)

    def find_sources(self) -> dict[str, list[Path]]:
        found = super().find_sources()
        if self.split == "train":
            found["camera.calibration"] = [self.file(path.with_name("camera.calibration"))
                                           for path in next(iter(found.values()))]
        return found

    def rows(self) -> Iterator[dict]:
        for path in next(iter(self.sources.values())):
            folder = path.parent.relative_to(self.root)
            yield from (self._training if self.split == "train" else self._test)(path, folder)

    def _training(self, path: Path, folder: Path) -> Iterator[dict]:
        lines = self.file(folder / "camera.calibration").read_text().splitlines()
        matrices = [np.array(lines[7 * camera + 5].split()[1:], np.float64).reshape(4, 4)
                    for camera in range(14)]  # seven lines a camera, the fifth are the intrinsics
        content = read_mat(self.file(path))
        for camera in self.CAMERAS:
            K = matrices[camera][:3, :3]
            flat = content["annot2"][camera].reshape(-1, 28, 2)[:, self.OF_28]
            solid = content["annot3"][camera].reshape(-1, 28, 3)[:, self.OF_28] / 1000
            kept = np.arange(0, len(flat), self.options["stride"])
            name = f"{folder.as_posix()}/imageFrames/video_{camera}/frame_{{:06d}}.jpg"
            yield from self._frames(name, kept, flat, solid, (2048, 2048), K)

    def _test(self, path: Path, folder: Path) -> Iterator[dict]:
        import h5py  # only these six files are of this kind
        try:
            with h5py.File(self.file(path), "r") as content:
                flat, solid, valid = (content[name][()] for name in (
                    "annot2", "univ_annot3" if self.options["universal"] else "annot3",
                    "valid_frame"))
        except OSError as error:
            raise ValueError(f"no HDF5: {error}") from error
        name = f"{folder.as_posix()}/imageSequence/img_{{:06d}}.jpg"
        with Image.open(self.file(name.format(1))) as picture:
            size = picture.size
        yield from self._frames(name, np.flatnonzero(valid), flat[:, 0, self.OF_17],
                                solid[:, 0, self.OF_17] / 1000, size, np.zeros((3, 3)))

    @staticmethod
    def _frames(name: str, kept: np.ndarray, flat: np.ndarray, solid: np.ndarray,
                size: tuple[int, int], K: np.ndarray) -> Iterator[dict]:
        """The frames of those kept that have all joints in the picture."""
        kept = kept[inside(flat[kept], *size).all(1)]
        flat = with_confidence(flat[kept])
        center, box = boxes_around(flat)
        if len(kept):
            yield {"image": [name.format(frame + 1) for frame in kept], "image_size": size,
                   "center": center, "box": box, "K": K, "frame": kept, "keypoints_2d": flat,
                   "keypoints_3d": with_confidence(solid[kept])}
