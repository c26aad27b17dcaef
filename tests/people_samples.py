"""Rendered people that several tests use."""

import numpy as np
import torch
from hypothesis import strategies as st

import bodymodels as bm
from sets.rendered_bodies import Person, RenderedPeople, sample_person

SMPLX55 = bm.JOINT_SETS["smplx55"]
WHOLE, HAND = bm.load_model("wholebody"), bm.load_model("hand_right")
LIGHT = WHOLE.for_keypoints()
HAND_IDS = bm.hand_vertex_ids("wholebody")
MIRROR = torch.diag(torch.tensor([-1.0, 1, 1]))  # M
SIZE, CROP = 48, 32
seeds = st.integers(0, 2**31 - 1)
CONTRACT = {
    "image": ((3, SIZE, SIZE), torch.uint8), "K": ((3, 3), torch.float32),
    "body_pose": ((55, 3, 3), torch.float32), "betas": ((10,), torch.float32),
    "expression": ((10,), torch.float32), "transl": ((3,), torch.float32),
    "keypoints_3d": ((76, 3), torch.float32), "keypoints_2d": ((76, 2), torch.float32),
    "keypoints_valid": ((76,), torch.float32), "hand_images": ((2, 3, CROP, CROP), torch.uint8),
    "hand_K": ((2, 3, 3), torch.float32), "hand_boxes": ((2, 4), torch.float32),
    "hand_pose": ((2, 16, 3, 3), torch.float32), "hand_joints": ((2, 21, 3), torch.float32),
    "hand_keypoints_2d": ((2, 21, 2), torch.float32), "hand_valid": ((2,), torch.float32),
    "hand_vertices": ((2, 778, 3), torch.float32), "hand_visible": ((2,), torch.float32),
    "index": ((), torch.int64),
}


def people(split="train", **options):
    settings = {"size": SIZE, "hand_size": CROP, "length": 30} | options
    return RenderedPeople(split, **settings)


def posed(sample):
    """The whole body of a sample, in the camera's frame."""
    body, pose, face, transl = (sample[name][None] for name in
                                ("betas", "body_pose", "expression", "transl"))
    return WHOLE(body, pose, face, transl=transl)


def person_of(seed, size=64, occlusion=0.0):
    rng = np.random.default_rng(seed)
    return Person(rng, sample_person(rng, "train", size, 180.0), size, occlusion)
