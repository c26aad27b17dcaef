"""ARCTIC: people who handle articulated objects, before eight cameras."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from files import load_arrays
from sets.official_bodies import BodyPictures
from sets.records import GENDERS, rotate_root
from sets.rich import SMPLX_PARTS


class ARCTIC(BodyPictures):
    """ARCTIC (Fan et al. 2023), eight allocentric cameras: raw_seqs/, meta/, images/, splits_json/.

    root: the folder `data` of arctic_data. Protocol 1; HMR-Adapter scores its val split, since the
    truth of the test split is withheld. As in the official code, pictures are numbered from the
    frame plus the subject's ioi_offset, and the numbers 10 to length - 11 are used. Option
    interval: take every interval-th of them (our choice; HMR-Adapter's files are not public).

    View v has entry v - 1 of the cameras and v of the picture sizes. Bodies have the subject's own
    template (`mesh`) and no betas; fingers are absolute. Frames without a finite fit are left out.
    Keypoints and boxes are those of the bodies, so that `models` is required.
    """

    SPLITS = {"val": "val", "train": "train"}
    SOURCES = ("splits_json/protocol_p1.json", "meta/misc.json", "meta/subject_vtemplates/s*.obj",
               "raw_seqs/s*/*.smplx.npy")
    JOINTS, MODEL, OPTIONS = "smplx76", "smplx", {"interval": 10}
    HOME = "arctic.is.tue.mpg.de"
    TRIM = 10  # pictures at either end

    def rows(self) -> Iterator[dict]:
        misc = self.json("meta/misc.json")
        for name in sorted(self.json("splits_json/protocol_p1.json")[self.SPLITS[self.split]]):
            subject, sequence = name.split("/")
            body = load_arrays(self.file(f"raw_seqs/{subject}/{sequence}.smplx.npy"))
            pose = np.concatenate([np.reshape(body[part], (len(body["transl"]), -1))
                                   for part in SMPLX_PARTS], 1).reshape(-1, 55, 3)
            pictures = np.arange(self.TRIM, len(pose) - self.TRIM, self.options["interval"])
            frames = pictures - misc[subject]["ioi_offset"]
            finite = np.isfinite(pose).all((1, 2)) & np.isfinite(body["transl"]).all(1)
            frames = frames[(frames >= 0) & finite[frames]]
            for view in range(1, 9) if len(frames) else ():
                yield self._view(misc[subject], subject, sequence, view, frames,
                                 pose[frames].astype(np.float64), body["transl"][frames])

    def _view(self, misc: dict, subject: str, sequence: str, view: int, frames: np.ndarray,
              pose: np.ndarray, transl: np.ndarray) -> dict:
        motion = np.array(misc["world2cam"][view - 1], np.float64)[:3]
        pose[:, 0] = rotate_root(motion[:, :3], pose[:, 0])
        template, gender = f"meta/subject_vtemplates/{subject}.obj", misc["gender"]
        self.file(template)
        columns = self.with_model_keypoints(
            {"pose": pose, "betas": np.zeros((1, 10)), "transl": transl,
             "world_to_camera": motion, "K": np.array(misc["intris_mat"][view - 1])},
            gender, template)
        return columns | {
            "image": [f"images/{subject}/{sequence}/{view}/{frame + misc['ioi_offset']:05d}.jpg"
                      for frame in frames], "image_size": misc["image_size"][view],
            "betas": np.zeros(10), "has_pose": 1, "has_hands": 1, "has_transl": 1, "frame": frames,
            "mesh": template, "gender": GENDERS.index(gender), "sequence": f"{subject}/{sequence}",
            "person": view}
