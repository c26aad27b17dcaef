"""Official data in the layout of RenderedPeople: whole bodies, and pairs of hands."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import bodymodels
from sets.augmentation import Augmentation
from sets.crops import crop_homography, transform_points, warp
from sets.freihand import FreiHAND
from sets.hand_crops import NUM_VERTICES
from sets.official_bodies import BodyPictures
from sets.official_hands import HandPictures
from sets.people import HAND_KEYPOINTS, HANDS, PeopleDataset, hand_square
from sets.records import GENDERS, relabelled, to_pixels, with_confidence


class OfficialPeople(PeopleDataset):
    """Whole bodies of an official data set with crops of their hands; samples as RenderedPeople's.

    pictures: a data set of SMPL-X bodies before a known camera. Its folder `models` must have
    MANO_SMPLX_vertex_ids.pkl as well. People without a body or a camera are left out. EHF has no
    poses, and SMPL's bodies have only 24 joints, so that a sample has these flags as well:

        body_pose_valid, betas_valid, expression_valid   ()       float32  betas: only those of the
                                                                           neutral body
        rotations_valid                                  (55,)    float32  of body_pose: SMPL has
                                                                           only the first 22
        keypoints_3d_valid                               (76,)    float32
        hand_betas                                       (2, 10)  float32  MANO's: unknown, 0
        hand_betas_valid                                 (2,)     float32

    No data set has expressions or visibility: expression is 0 and hand_visible 1. Of BEDLAM's
    eleven betas a sample has the first ten; keypoints and hands follow from all. Augmentation crops
    the crops again, as for rendered people: outside of them the picture is black.

    detail: above 1, a sample also has "picture", the image with so many times as many pixels a
    side, to cut hands out at predicted boxes: those of the image itself are too blurred. It goes
    without augmentation.
    """

    def __init__(self, pictures: BodyPictures, hand_size: int | None = None, *,
                 augmentation: str | Augmentation | None = None, detail: int = 1) -> None:
        if detail > 1 and augmentation is not None:
            raise ValueError(f"detail={detail} is for evaluation: leave the augmentation out")
        if pictures.models is None:
            raise ValueError(f"people of {type(pictures).__name__} need meshes: open it with a "
                             "folder of models")
        super().__init__(pictures.split, [pictures.split], pictures.size, pictures.seed,
                         augmentation)
        self.pictures, self.hand_size = pictures, hand_size or pictures.size
        self.detail = detail
        records = pictures.records()
        self.kept = np.flatnonzero((records["K"][:, 2, 2] > 0) & (
            (records["has_pose"] * records["has_transl"] > 0) | (records["mesh"] != b"")))
        if not len(self.kept):
            raise ValueError(f"{type(pictures).__name__} in {pictures.root} has no body before a "
                             "known camera: it has no samples of people")
        self.hand_vertices = [np.zeros(NUM_VERTICES, np.int64)] * 2  # SMPL: unused
        if pictures.MODEL == "smplx":
            ids = bodymodels.hand_vertex_ids(pictures.models / "MANO_SMPLX_vertex_ids.pkl")
            self.hand_vertices = [ids[side] for side in HANDS]

    def __len__(self) -> int:
        return len(self.kept)

    def records(self, indices: int | np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the records of `pictures` behind all samples or some."""
        return self.pictures.records()[self.kept[indices]]

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self.records(index)
        image, K = self.pictures.picture(record), record["K"].astype(np.float64)
        output, model, transl = self.pictures.posed(record)
        points = relabelled(with_confidence(model.keypoints(output)[0].numpy()),
                            f"{self.pictures.MODEL}{len(model.parents) + 21}", "smplx76")
        known = points[:, 3]
        points = np.where(points[:, 3:] > 0, points[:, :3], (0, 0, 1))  # (0, 0, 0) has no pixel
        keypoints_2d = to_pixels(points, K)
        size = image.shape[1], image.shape[0]
        homography = self.pictures.crop(record, with_confidence(keypoints_2d, known), size,
                                        rng)[0]
        pose = np.tile(np.eye(3), (55, 1, 1))
        angles = record["pose"] if self.pictures.MODEL == "smplx" else record["pose"][:22]
        pose[:len(angles)] = bodymodels.axis_angle_to_matrix(torch.tensor(angles)).numpy()
        sample = {"image": warp(image, homography, self.size), "K": homography @ K, "pose": pose,
                  "betas": record["betas"][:10], "expression": np.zeros(10), "keypoints_3d": points,
                  "keypoints_2d": transform_points(homography, keypoints_2d),
                  "transl": transl.numpy(), "hand_visible": np.ones(2)}
        hands = [self._hand(hand, image, K, keypoints_2d, output.vertices[0]) for hand in range(2)]
        sample |= {name: np.stack([hand[name] for hand in hands]) for name in hands[0]}
        labels = self.labelled(sample, rng)
        if self.detail > 1:
            finer = np.diag([self.detail, self.detail, 1]) @ homography
            labels["picture"] = warp(image, finer, self.detail * self.size).transpose(2, 0, 1)
        neutral = self.pictures.MODEL == "smplx" and GENDERS[record["gender"]] == "neutral"
        return labels | {
            "keypoints_valid": labels["keypoints_valid"] * known, "keypoints_3d_valid": known,
            "rotations_valid": record["has_pose"] * (np.arange(55) < len(angles)),
            "hand_valid": labels["hand_valid"] * known[HAND_KEYPOINTS].all(1),
            "body_pose_valid": record["has_pose"], "betas_valid": record["has_betas"] * neutral,
            "expression_valid": 0.0, "hand_betas": np.zeros((2, 10)),
            "hand_betas_valid": np.zeros(2)}

    def _hand(self, hand: int, image: np.ndarray, K: np.ndarray, keypoints_2d: np.ndarray,
              vertices: Tensor) -> dict[str, np.ndarray]:
        """Return crop, mesh and K of a hand; the left one is mirrored."""
        mirror, size = HANDS[hand] == "left", self.hand_size
        center, side = hand_square(keypoints_2d[HAND_KEYPOINTS[hand]])
        view = crop_homography(center, max(side, 1.0), size, mirror=mirror)
        flip = np.diag([-1.0 if mirror else 1.0, 1, 1])
        return {"hand_images": warp(image, view, size), "hand_K": view @ K @ flip,
                "hand_vertices": vertices[self.hand_vertices[hand]].numpy() @ flip}


class HandPairs(PeopleDataset):
    """Pairs of official hands in the layout of OfficialPeople, to be mixed with people.

    hands: FreiHAND, InterHand2.6M, DexYCB or HaMeR's sets, opened with an augmentation and a folder
    `models`. Hands without a known pose, mesh and joints are left out. Either hand of a pair may be
    a right or a left one; left ones are mirrored. There is no person: the picture (side `size`) is
    black and body_pose_valid is 0.
    """

    def __init__(self, hands: FreiHAND | HandPictures, size: int) -> None:
        if hands.models is None:
            raise ValueError(f"pairs of {type(hands).__name__} need meshes: open it with a folder "
                             "of models")
        super().__init__(hands.split, [hands.split], size, hands.seed, None)
        self.hands, self.kept = hands, hands.whole_hands()
        if not len(self.kept):
            raise ValueError(f"{type(hands).__name__} in {hands.root} has no hand whose pose, mesh "
                             "and joints are known")

    def __len__(self) -> int:
        return (len(self.kept) + 1) // 2

    def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        pair = [self._hand(int(self.kept[number % len(self.kept)]), rng)
                for number in (2 * index, 2 * index + 1)]
        one = np.eye(3)
        return {name: np.stack([hand[name] for hand in pair]) for name in pair[0]} | {
            "image": np.zeros((3, self.size, self.size), np.uint8), "K": one,
            "body_pose": np.tile(one, (55, 1, 1)), "arm_pose": np.tile(one, (2, 8, 1, 1)),
            "keypoints_3d": np.zeros((76, 3)), "keypoints_2d": np.zeros((76, 2)),
            "keypoints_valid": np.zeros(76), "keypoints_3d_valid": np.zeros(76),
            "rotations_valid": np.zeros(55), "hand_boxes": np.zeros((2, 4)),
            "transl": np.zeros(3), "betas": np.zeros(10), "expression": np.zeros(10),
            "hand_visible": np.ones(2)} | dict.fromkeys(
                ("body_pose_valid", "betas_valid", "expression_valid"), 0.0)

    def _hand(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return a hand's crop and labels; its pose turns like the crop's camera."""
        sample = self.hands.load(index, rng)
        self.hands.finish(sample, rng)
        pose, betas, betas_valid = self.hands.hand_pose(index)
        turn = sample["camera_rotation"]
        flip = np.diag([np.sign(np.linalg.det(turn)), 1, 1])
        pose = flip @ bodymodels.axis_angle_to_matrix(torch.from_numpy(pose)).numpy() @ flip
        pose[0] = turn @ flip @ pose[0]
        return {"hand_images": sample["image"], "hand_K": sample["K"], "hand_pose": pose,
                "hand_joints": sample["joints"], "hand_vertices": sample["vertices"],
                "hand_keypoints_2d": sample["keypoints_2d"], "hand_valid": sample["mesh_valid"],
                "hand_betas": betas, "hand_betas_valid": betas_valid}
