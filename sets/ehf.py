"""EHF: one hundred pictures of a person with aligned SMPL-X meshes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import bodymodels
from files import load_vertices
from sets.official_bodies import BodyPictures
from sets.records import boxes_around, intrinsics, rigid, with_confidence, xywh_box


class EHF(BodyPictures):
    """EHF (Pavlakos et al. 2019), one folder: 01_img.jpg, 01_align.ply, 01_2Djnt.json, ..., 100_...

    The truth is a mesh with SMPL-X's topology in the scanner's frame; `vertices(record)` returns it
    in the camera's frame. There are no parameters. Keypoints are OpenPose's.
    Option boxes: a file below root with person boxes, SMPLer-X's EHF.json; by default a box is that
    of the keypoints, so that crops differ a little from SMPLer-X's.
    """

    SPLITS, COUNTS = {"test": "test"}, {"test": 100}
    SOURCES = ("*_align.ply", "*_2Djnt.json")
    JOINTS, MODEL, OPTIONS, FILES = "openpose25", "smplx", {"boxes": ""}, ("boxes",)
    HOME = "smpl-x.is.tue.mpg.de"
    ROTATION = (-2.98747896, 0.01172457, -0.05704687)  # axis-angle
    TRANSLATION = (-0.03609917, 0.43416458, 2.37101226)  # metres
    K = intrinsics((1498.22426237, 1498.22426237), (790.263706, 578.90334))

    def rows(self) -> Iterator[dict]:
        R = bodymodels.axis_angle_to_matrix(torch.tensor(self.ROTATION, dtype=torch.float64))
        motion, boxes = rigid(R.numpy(), np.array(self.TRANSLATION)), self._boxes()
        for path in sorted(self.sources["*_align.ply"], key=lambda path: int(path.name[:-10])):
            number = path.name[:-10]
            load_vertices(self.file(path))  # so that a damaged one is reported now
            people = self.json(f"{number}_2Djnt.json")["people"]
            keypoints = np.reshape(people[0]["pose_keypoints_2d"], (25, 3))
            keypoints = with_confidence(keypoints[:, :2], keypoints[:, 2])
            center, box = boxes_around(keypoints[None])
            extension = "jpg" if (self.root / f"{number}_img.jpg").is_file() else "png"
            yield {"image": f"{number}_img.{extension}", "K": self.K, "center": center[0],
                   "box": box[0], "keypoints_2d": keypoints, "world_to_camera": motion,
                   "mesh": path.name, "frame": int(number)} | boxes.get(int(number), {})

    def _boxes(self) -> dict[int, dict[str, np.ndarray]]:
        """Return the boxes of SMPLer-X's file by the number of the picture."""
        if not self.options["boxes"]:
            return {}
        content = self.json(self.options["boxes"])
        names = {item["id"]: item["file_name"] for item in content["images"]}
        return {int(names[item["image_id"]].rpartition("/")[2].partition("_")[0]):
                xywh_box(item["body_bbox"]) for item in content["annotations"]}

    def vertices(self, record: np.ndarray) -> np.ndarray:
        """Return a record's true mesh (V, 3) in metres, in the camera's frame."""
        vertices = load_vertices(self.root / record["mesh"].decode())
        motion = record["world_to_camera"]
        return vertices @ motion[:, :3].T + motion[:, 3]

    def posed(self, record: np.ndarray, keypoints_only: bool = False
              ) -> tuple[bodymodels.BodyOutput, bodymodels.BodyModel, Tensor]:
        """Return the true mesh, with the joints that SMPL-X's regressor takes from it."""
        model = self.body()
        vertices = torch.from_numpy(self.vertices(record))[None]
        unknown = torch.full((1, len(model.parents), 4, 4), torch.nan)
        return (bodymodels.BodyOutput(vertices, model.J_regressor @ vertices, unknown), model,
                torch.zeros(3))
