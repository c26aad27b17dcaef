"""MPI-INF-3DHP: people before fourteen cameras, and its test set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sets.crops import inside
from sets.files import MissingPackage, read_mat
from sets.official_bodies import BodyPictures
from sets.records import boxes_around, with_confidence


class MPIINF3DHP(BodyPictures):
    """MPI-INF-3DHP (Mehta et al. 2017): S1/ to S8/ to train, mpi_inf_3dhp_test_set/ to evaluate.

    Extract the frames of the videos yourself, to S1/Seq1/imageFrames/video_0/frame_000001.jpg,
    counted from 1. Training: the eight cameras at chest height and the frames with all 17 joints in
    the picture; annot3 is in millimetres before the camera. Test: HDF5 files (read with h5py),
    valid frames with all joints in the picture.
    Options:
        stride     training: take every stride-th of these frames, counted over all videos, as SPIN
                   does.
        universal  test: True takes univ_annot3, as SPIN does; False takes annot3.
    """

    SPLITS = {"train": "S*/Seq*/annot.mat", "test": "mpi_inf_3dhp_test_set/TS*/annot_data.mat"}
    SOURCES = ("{split}",)
    JOINTS, OPTIONS = "h36m17_spin", {"stride": 10, "universal": True}
    COUNTS = {"test": 2_929}
    HOME = "vcai.mpi-inf.mpg.de/3dhp-dataset"
    CAMERAS = (0, 1, 2, 4, 5, 6, 7, 8)
    OF_28 = (4, 18, 19, 20, 23, 24, 25, 3, 5, 6, 7, 9, 10, 11, 14, 15, 16)  # h36m17 in 28 joints
    OF_17 = (14, 11, 12, 13, 8, 9, 10, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4)  # h36m17 in the test's 17

    def find_sources(self) -> dict[str, list[Path]]:
        sources = super().find_sources()
        if self.split == "train":
            sources["camera.calibration"] = [self.file(path.with_name("camera.calibration"))
                                             for path in next(iter(sources.values()))]
        return sources

    def rows(self) -> Iterator[dict]:
        counted = 0  # frames with all joints in the picture
        for path in next(iter(self.sources.values())):
            folder = path.parent.relative_to(self.root)
            if self.split == "test":
                yield from self._test(path, folder)
                continue
            for camera, (K, keypoints_2d, keypoints_3d) in self._videos(path, folder):
                kept = np.flatnonzero(inside(keypoints_2d, 2048, 2048).all(1))
                chosen = kept[-counted % self.options["stride"]::self.options["stride"]]
                counted += len(kept)
                name = f"{folder.as_posix()}/imageFrames/video_{camera}/frame_{{:06d}}.jpg"
                yield from self._frames(name, chosen, keypoints_2d, keypoints_3d, (2048, 2048), K)

    def _videos(self, path: Path, folder: Path) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        """Yield each camera with its K (3, 3), pixels (T, 17, 2) and metres (T, 17, 3)."""
        lines = self.file(folder / "camera.calibration").read_text().splitlines()
        matrices = [np.array(lines[7 * camera + 5].split()[1:], np.float64).reshape(4, 4)
                    for camera in range(14)]  # a camera has seven lines, intrinsics in the fifth
        content = read_mat(self.file(path))
        for camera in self.CAMERAS:
            yield camera, (matrices[camera][:3, :3],
                           content["annot2"][camera].reshape(-1, 28, 2)[:, self.OF_28],
                           content["annot3"][camera].reshape(-1, 28, 3)[:, self.OF_28] / 1000)

    def _test(self, path: Path, folder: Path) -> Iterator[dict]:
        try:
            import h5py
        except ImportError as error:
            raise MissingPackage("MPI-INF-3DHP's test set needs h5py: pip install h5py") from error
        try:
            with h5py.File(self.file(path), "r") as content:
                keypoints_2d, keypoints_3d, valid = (content[name][()] for name in (
                    "annot2", "univ_annot3" if self.options["universal"] else "annot3",
                    "valid_frame"))
        except OSError as error:
            raise ValueError(f"no HDF5: {error}") from error
        keypoints_2d = keypoints_2d[:, 0, self.OF_17]
        name = f"{folder.as_posix()}/imageSequence/img_{{:06d}}.jpg"
        with Image.open(self.file(name.format(1))) as picture:
            size = picture.size
        kept = np.flatnonzero(valid)
        kept = kept[inside(keypoints_2d[kept], *size).all(1)]
        yield from self._frames(name, kept, keypoints_2d, keypoints_3d[:, 0, self.OF_17] / 1000,
                                size, np.zeros((3, 3)))

    @staticmethod
    def _frames(name: str, kept: np.ndarray, keypoints_2d: np.ndarray, keypoints_3d: np.ndarray,
                size: tuple[int, int], K: np.ndarray) -> Iterator[dict]:
        keypoints_2d = with_confidence(keypoints_2d[kept])
        center, box = boxes_around(keypoints_2d)
        if len(kept):
            yield {"image": [name.format(frame + 1) for frame in kept], "image_size": size,
                   "center": center, "box": box, "K": K, "frame": kept,
                   "keypoints_2d": keypoints_2d,
                   "keypoints_3d": with_confidence(keypoints_3d[kept])}
