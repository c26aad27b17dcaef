"""Rendered hands and what several tests ask of samples."""

import hashlib
from pathlib import Path

import torch

import bodymodels
import data
from sets.rendered import RenderedHands

ROOT = Path(data.__file__).parent
CONTRACT = {
    "image": ((3, 48, 48), torch.uint8), "K": ((3, 3), torch.float32),
    "keypoints_2d": ((21, 2), torch.float32), "keypoints_valid": ((21,), torch.float32),
    "joints": ((21, 3), torch.float32), "vertices": ((778, 3), torch.float32),
    "mesh_valid": ((), torch.float32), "side": ((), torch.int64), "index": ((), torch.int64),
    "crop": ((3, 3), torch.float32), "camera_rotation": ((3, 3), torch.float32),
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
    projected = bodymodels.project(sample[points].double(), sample[K].double())
    torch.testing.assert_close(projected.float(), sample[flat], atol=atol, rtol=1e-5)


def source_picture():
    sample = {name: value.numpy() for name, value in hands(size=64)[3].items()}
    return sample | {"image": sample["image"].transpose(1, 2, 0)}
