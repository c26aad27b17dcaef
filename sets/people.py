"""What all data sets of whole bodies with crops of their hands share."""

from __future__ import annotations

import numpy as np
import torch

import bodymodels
from sets.augmentation import Augmentation
from sets.body_crops import body_box, draw_crop, move_body
from sets.crops import crop_homography, inside, roll_and_mirror, warp
from sets.samples import ImageDataset

SMPLX_JOINTS, SMPLX_KEYPOINTS = bodymodels.JOINT_SETS["smplx55"], bodymodels.JOINT_SETS["smplx76"]
HANDS = ("right", "left")  # the order of all "hand" arrays of a sample
ARMS, HAND_JOINTS, HAND_KEYPOINTS = (  # indices: (2, 8) and (2, 16) joints, (2, 21) keypoints
    [bodymodels.joint_indices(source, target(side)) for side in HANDS]
    for source, target in (
        ("smplx55", lambda side: f"{side}_arm08"),
        ("smplx55", lambda side: [f"{side}_{name}" for name in bodymodels.JOINT_SETS["mano16"]]),
        ("smplx76", lambda side: f"{side}_hand21")))
HAND_MARGIN = 2.0  # side of a hand's crop / side of the keypoints' box (HaMeR)


def hand_square(keypoints: np.ndarray) -> tuple[np.ndarray, float]:
    """Return centre (2,) and side of a hand's crop around its keypoints (N, 2).

    As in HaMeR, it is twice the tight box, widened to the part of the crop that the encoder sees.
    """
    center, side = body_box(keypoints)
    return center, HAND_MARGIN * side


class PeopleDataset(ImageDataset):
    """A data set of whole bodies with crops of their hands."""

    def finish(self, sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        super().finish(sample, rng)
        if self.augmentation is not None:
            sample["hand_images"] = np.stack([
                self.augmentation.soften(self.augmentation.recolor(image, rng), rng)
                for image in sample["hand_images"]])

    def labelled(self, sample: dict[str, np.ndarray], rng: np.random.Generator
                 ) -> dict[str, np.ndarray]:
        """Augment a person's pictures and labels, and add `person_labels`."""
        if self.augmentation is not None and self.augmentation.moves:
            sample = augment_person(sample, self.augmentation, rng)
        return person_labels(sample | {
            "image": sample["image"].transpose(2, 0, 1),
            "hand_images": sample["hand_images"].transpose(0, 3, 1, 2)}, self.size)


def person_labels(sample: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Add the labels that follow from the others, and rename "pose" to "body_pose"."""
    pose = sample.pop("pose")
    arms, hands = arm_and_hand_poses(pose)
    hand_joints = sample["keypoints_3d"][HAND_KEYPOINTS]  # (2, 21, 3)
    hand_joints[1] *= (-1, 1, 1)
    projected = hand_joints @ sample["hand_K"].swapaxes(1, 2)
    valid = inside(sample["keypoints_2d"], size, size)
    low, high = (function(sample["keypoints_2d"][HAND_KEYPOINTS], 1)
                 for function in (np.min, np.max))
    return sample | {
        "body_pose": pose, "keypoints_valid": valid, "arm_pose": arms, "hand_pose": hands,
        "hand_joints": hand_joints, "hand_keypoints_2d": projected[..., :2] / projected[..., 2:],
        "hand_boxes": np.concatenate([low, high - low], 1),
        "hand_valid": (valid[HAND_KEYPOINTS].mean(1) > 0.5).astype(np.float32)}


def arm_and_hand_poses(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split SMPL-X rotations (55, 3, 3) into arms (2, 8, 3, 3) and MANO's hands (2, 16, 3, 3).

    The left arm and hand are those of the mirrored person: M R M with M = diag(-1, 1, 1).
    """
    rotations = torch.tensor(pose)
    arms, hands = rotations[torch.tensor(ARMS)], rotations[torch.tensor(HAND_JOINTS)]
    hands[:, 0] = bodymodels.chain_rotation(arms)  # in the camera's frame, not the elbow's
    for rotations in (arms, hands):
        rotations[1] = bodymodels.mirror_matrix(rotations[1])
    return arms.numpy(), hands.numpy()


def augment_person(sample: dict[str, np.ndarray], recipe: Augmentation,
                   rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Crop all pictures (S, S, 3) and (2, H, H, 3) of a person again, and move the labels along.

    All pictures turn by the same angle, since the camera turns; each has its own shift and scale.
    Mirroring exchanges the right and the left hand.
    """
    size = len(sample["image"])
    homography, roll, mirror = draw_crop(rng, recipe, size, sample["keypoints_2d"],
                                         SMPLX_KEYPOINTS)
    moved = move_body(sample, homography, roll, mirror, "smplx55", "smplx76")
    hands = [move_hand({name: sample[name][hand] for name in sample if name.startswith("hand_")},
                       turn, recipe, rng) for hand, turn in enumerate((roll, -roll))]
    hands = hands[::-1] if mirror else hands
    return moved | {"image": warp(sample["image"], homography, size)} | {
        name: np.stack([hand[name] for hand in hands]) for name in hands[0]}


def move_hand(hand: dict[str, np.ndarray], roll: float, recipe: Augmentation,
              rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Turn a hand's crop (H, H, 3) by `roll`; draw its shift and scale from the recipe."""
    size, turn = len(hand["hand_images"]), roll_and_mirror(roll, False)
    shift, scale, _ = recipe.draw_motion(rng)
    center = size * (0.5 + recipe.hand_jitter * shift)
    homography = crop_homography(center, size * scale, size, roll=roll)
    return hand | {"hand_images": warp(hand["hand_images"], homography, size),
                   "hand_vertices": hand["hand_vertices"] @ turn.T,
                   "hand_K": homography @ hand["hand_K"] @ turn.T}
