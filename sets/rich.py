"""RICH: people who touch the scene, before several cameras."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from files import load_arrays
from sets.official_bodies import BodyPictures
from sets.records import GENDERS, rotate_root

SMPLX_PARTS = ("global_orient", "body_pose", "jaw_pose", "leye_pose", "reye_pose", "left_hand_pose",
               "right_hand_pose")


class RICH(BodyPictures):
    """RICH (Huang et al. 2022): bodies/, images/, scan_calibration/ and resource/.

    resource/meta has a row for each person of each sequence (id, view_id). Each of the person's
    frames before each of the row's cameras is a sample. Bodies are of the gendered SMPL-X
    (resource/gender.json), in the frame of the first camera; a hand has 12 coefficients.
    Keypoints and boxes are those of the bodies, so that `models` is required.

    Option picture_size: width and height, or the other way round where K's principal point says so.
    Pictures of another size, as in the reduced release, are refused, since K is not theirs.
    """

    SOURCES = ("resource/meta/{split}.txt", "resource/gender.json", "resource/imgext.json",
               "bodies/{split}/*/", "scan_calibration/*/calibration/*.xml")
    JOINTS, MODEL, HAND_SPACE = "smplx76", "smplx", "pca"
    OPTIONS = {"picture_size": (4112, 3008)}
    HOME = "rich.is.tue.mpg.de"

    def rows(self) -> Iterator[dict]:
        genders, extensions = (self.json(f"resource/{name}.json") for name in ("gender", "imgext"))
        split = self.SPLITS[self.split]
        lines = self.file(f"resource/meta/{split}.txt").read_text().splitlines()
        fields = lines[0].split("\t")
        for line in lines[1:]:
            meta = dict(zip(fields, line.split("\t"), strict=True))
            sequence, people = meta["sequence_name"], {int(name) for name in meta["id"].split(",")}
            scene = sequence.split("_")[0]
            frames = sorted(path for path in (self.root / "bodies" / split / sequence).glob(
                "*/*.pkl") if int(path.stem) in people)
            if not frames:
                raise FileNotFoundError(f"no bodies/{split}/{sequence}/*/ of person {meta['id']} "
                                        f"in {self.root}: expected RICH's official layout, see "
                                        f"{self.HOME}")
            cameras = {int(view): self._camera(scene, int(view))
                       for view in meta["view_id"].split(",")}
            for path in frames:
                body = load_arrays(self.file(path))
                for view, (motion, K) in cameras.items():
                    yield self._person(path, body, genders[str(int(path.stem))], motion, K) | {
                        "image": f"images/{split}/{sequence}/cam_{view:02d}/{path.parent.name}_"
                                 f"{view:02d}.{extensions[scene]}", "sequence": sequence}

    def _camera(self, scene: str, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Return world to camera (3, 4), and K (3, 3)."""
        path = self.file(f"scan_calibration/{scene}/calibration/{view:03d}.xml")
        tree = ElementTree.parse(path)
        return tuple(np.array(tree.find(f"{name}/data").text.split(), np.float64).reshape(shape)
                     for name, shape in (("CameraMatrix", (3, 4)), ("Intrinsics", (3, 3))))

    def _person(self, path: Path, body: dict, gender: str, motion: np.ndarray, K: np.ndarray
                ) -> dict:
        vector = np.concatenate([np.reshape(body[name], -1) for name in SMPLX_PARTS])[None]
        pose = self.absolute(vector, gender)
        if pose is not None:
            pose[:, 0] = rotate_root(motion[:, :3], pose[:, 0])
        columns = self.with_model_keypoints(
            {"pose": pose, "betas": np.reshape(body["betas"], (1, 10)),
             "transl": np.reshape(body["transl"], (1, 3)), "world_to_camera": motion, "K": K},
            gender)
        alone = {name: value[0] for name, value in columns.items()
                 if name not in ("K", "world_to_camera")}
        portrait = K[1, 2] > K[0, 2]
        return columns | alone | {
            "has_pose": 1, "has_hands": 1, "has_betas": 1, "has_transl": 1,
            "image_size": self.options["picture_size"][::-1 if portrait else 1],
            "gender": GENDERS.index(gender), "person": int(path.stem),
            "frame": int(path.parent.name)}
