"""Rendered hands, bodies and people, and what several tests ask of samples."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

import bodymodels as bm
import data
from sets.rendered import RenderedHands
from sets.rendered_bodies import Person, RenderedPeople, sample_person

ROOT = Path(data.__file__).parent
SMPL45, SMPLX55 = bm.JOINT_SETS["smpl45"], bm.JOINT_SETS["smplx55"]
HAND, BODY, WHOLE = (bm.load_model(name) for name in ("hand_right", "body", "wholebody"))
HAND_IDS = bm.hand_vertex_ids("wholebody")
MIRROR = torch.diag(torch.tensor([-1.0, 1, 1]))  # M
SIZE, CROP = 48, 32
seeds = st.integers(0, 2**31 - 1)
HAND_CONTRACT = {
    "image": ((3, 48, 48), torch.uint8), "K": ((3, 3), torch.float32),
    "keypoints_2d": ((21, 2), torch.float32), "keypoints_valid": ((21,), torch.float32),
    "joints": ((21, 3), torch.float32), "vertices": ((778, 3), torch.float32),
    "mesh_valid": ((), torch.float32), "side": ((), torch.int64), "index": ((), torch.int64),
    "crop": ((3, 3), torch.float32), "camera_rotation": ((3, 3), torch.float32),
}
BODY_CONTRACT = {
    "image": ((3, 48, 48), torch.uint8), "K": ((3, 3), torch.float32),
    "pose": ((24, 3, 3), torch.float32), "pose_valid": ((), torch.float32),
    "betas": ((10,), torch.float32), "betas_valid": ((), torch.float32),
    "transl": ((3,), torch.float32), "keypoints_3d": ((45, 3), torch.float32),
    "keypoints_3d_valid": ((45,), torch.float32), "keypoints_2d": ((45, 2), torch.float32),
    "keypoints_valid": ((45,), torch.float32), "index": ((), torch.int64)}
PEOPLE_CONTRACT = {
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


def hands(split="train", size=48, length=40, **options):
    return RenderedHands(split, size, length=length, **options)


def digest(sample):
    joined = b"".join(sample[name].numpy().tobytes() for name in sorted(sample))
    return hashlib.sha256(joined).hexdigest()


def layout(sample):
    return {name: (tuple(value.shape), value.dtype) for name, value in sample.items()}


def assert_projects(sample, points="joints", K="K", flat="keypoints_2d", atol=2e-3):
    """The camera K takes the points to their pixels; single precision loses long focal lengths."""
    projected = bm.project(sample[points].double(), sample[K].double())
    torch.testing.assert_close(projected.float(), sample[flat], atol=atol, rtol=1e-5)


def source_picture():
    sample = {name: value.numpy() for name, value in hands(size=64)[3].items()}
    return sample | {"image": sample["image"].transpose(1, 2, 0)}


def blob(width, height, x, y, spread=3.0):
    """A picture (height, width, 3) with one bright Gaussian spot at pixel (x, y)."""
    columns, rows = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    value = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2))
    return np.repeat(value[..., None], 3, 2).round().astype(np.uint8)


def centroid(image):
    weight = image[..., 0].astype(np.float64)
    rows, columns = np.indices(weight.shape) + 0.5
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


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
