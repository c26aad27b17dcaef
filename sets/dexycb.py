"""DexYCB: hands that grasp objects, before eight cameras."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sets.crops import inside
from sets.files import read_npz
from sets.hand_crops import Annotated
from sets.official_hands import HandPictures
from sets.official_models import official_body
from sets.records import boxes_around, intrinsics, to_pixels, with_confidence

SETUPS: dict[str, Callable[[int, int, int], str]] = {  # split of a subject, sequence and camera
    "s0": lambda subject, sequence, camera:
        "train" if sequence % 5 != 4 else "val" if subject < 2 else "test",
    "s1": lambda subject, sequence, camera:
        {6: "val", 7: "test", 8: "test"}.get(subject, "train"),
    "s2": lambda subject, sequence, camera: {6: "val", 7: "test"}.get(camera, "train"),
    "s3": lambda subject, sequence, camera:
        {3: "val", 19: "val", 7: "test", 11: "test", 15: "test"}.get(sequence // 5, "train"),
}


class DexYCB(HandPictures):
    """DexYCB (Chao et al. 2021): 20200709-subject-01/ to 20201022-subject-10/ and calibration/.

    Options:
        setup      "s0" to "s3", the official splits.
        sequences  how many sequences a subject must have, since the splits count them; 0: do not
                   check.
        joints     "mesh": with `models`, joints and keypoints are regressed from the true mesh,
                   with the right hand's regressor and manopth's tips (TIPS). Regress a prediction
                   alike and a perfect mesh has no error. This is the convention of the protocol
                   dexycb_s0 here.
                   "given": joint_3d of the files, LBS joints with manopth's tips. The official
                   toolkit scores these. Joints regressed from a perfect mesh are about 3 mm off.

    Frames without a hand, all -1 in the files, are left out: 406,888 of s0's train and 78,768 of
    its test split stay. person is the official number of the sample, which counts them.
    pose_m holds 45 coefficients of the principal components of MANO's hand of the same side,
    relative to its mean hand, in the camera's frame. The authors used MANO_LEFT without the
    correction of its shapes, and so does this reader.
    """

    SOURCES = ("20*-subject-*/*/meta.yml", "20*-subject-*/*/[0-9]*/",
               "calibration/intrinsics/*_640x480.yml", "calibration/mano_*/mano.yml")
    HAND_SPACE, TIPS = "pca", "manopth_right"
    OPTIONS = {"setup": "s0", "sequences": 100, "joints": "mesh"}
    CHOICES = {"setup": tuple(SETUPS), "joints": ("mesh", "given")}
    COUNTS = {"s0 train": 406_888, "s0 test": 78_768}
    HOME = "dex-ycb.github.io"
    CAMERAS = ("836212060125", "839512060362", "840412060917", "841412060263", "932122060857",
               "932122060861", "932122061900", "932122062010")

    def annotated(self, index: int) -> Annotated:
        source = super().annotated(index)
        if source.mesh_valid and self.options["joints"] == "mesh":
            right = official_body(self.models, None, False, family="mano", gender="neutral",
                                  side="right", tips=self.TIPS)
            source.joints = right.keypoint_regressor.numpy() @ source.vertices
            source.keypoints_2d = to_pixels(source.joints, source.K)
            height, width = source.image.shape[:2]
            source.keypoints_valid = inside(source.keypoints_2d, width, height)
        return source

    def rows(self) -> Iterator[dict]:
        number, wanted = 0, self.options["sequences"]
        for folder in sorted(self.root.glob("20*-subject-*")):
            sequences = sorted(path for path in folder.iterdir() if path.is_dir())
            self.reading = folder
            if wanted and len(sequences) != wanted:
                raise ValueError(f"{len(sequences)} sequences where the splits count {wanted}")
            subject = int(folder.name[-2:]) - 1
            for order, sequence in enumerate(sequences):
                meta = self.yaml(sequence / "meta.yml")
                for camera, serial in enumerate(self.CAMERAS):
                    split = SETUPS[self.options["setup"]](subject, order, camera)
                    if serial in map(str, meta["serials"]) and self.split == split:
                        yield from self._camera(sequence, serial, meta, number)
                        number += meta["num_frames"]

    def _camera(self, sequence: Path, serial: str, meta: dict, number: int) -> Iterator[dict]:
        """Yield the frames of one camera in one sequence that show the hand."""
        color = self.yaml(f"calibration/intrinsics/{serial}_640x480.yml")["color"]
        K = intrinsics((color["fx"], color["fy"]), (color["ppx"], color["ppy"]))
        betas = self.yaml(f"calibration/mano_{meta['mano_calib'][0]}/mano.yml")["betas"]
        side, labels, frames = meta["mano_sides"][0], [], []
        for frame in range(meta["num_frames"]):
            path = self.file(sequence / serial / f"labels_{frame:06d}.npz")
            label = [array[0] for array in read_npz(path, "pose_m", "joint_3d", "joint_2d")]
            if not (label[1] == -1).all():
                labels.append(label)
                frames.append(frame)
        if not frames:
            return
        pose, joints, keypoints = map(np.stack, zip(*labels, strict=True))
        absolute = self.absolute(pose[:, :48], side=side)
        folder = (sequence / serial).relative_to(self.root).as_posix()
        center, box = boxes_around(with_confidence(keypoints))
        yield {
            "image": [f"{folder}/color_{frame:06d}.jpg" for frame in frames],
            "image_size": (640, 480), "K": K, "center": center, "box": box,
            "sequence": sequence.name,
            "keypoints_2d": with_confidence(keypoints), "keypoints_3d": with_confidence(joints),
            "betas": betas, "has_betas": 1, "transl": pose[:, 48:], "has_transl": 1,
            "side": int(side == "right"), "person": number + np.array(frames), "frame": frames,
        } | ({} if absolute is None else {"pose": absolute, "has_pose": 1, "has_hands": 1})
