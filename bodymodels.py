"""Meshes, skeletons, rotations, cameras, joint sets and mesh files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

# ------------------------------------------------------------------------------- rotations

# --------------------------------------------------------------------------------- cameras

# ---------------------------------------------------------------------------------- mirror

# ------------------------------------------------------------------------------ joint sets

# ------------------------------------------------------------------------------ safe files

# -------------------------------------------------------------------- linear blend skinning

ASSETS = Path(__file__).resolve().parent / "assets"
FREE_MODELS = ("hand_right", "hand_left", "body", "wholebody")


class BodyOutput(NamedTuple):
    """A posed mesh: vertices (B, V, 3), joints (B, K, 3) in metres, transforms (B, K, 4, 4)."""

    vertices: Tensor
    joints: Tensor
    transforms: Tensor  # joint frame -> world: [rotation | joint position]


def _rodrigues(axis_angle: Tensor) -> Tensor:  # stand-in until the rotations section exists
    angle = (axis_angle.square().sum(-1, keepdim=True) + 1e-16).sqrt()
    x, y, z = (axis_angle / angle).unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    angle = angle[..., None]
    return torch.eye(3).to(skew) + angle.sin() * skew + (1 - angle.cos()) * (skew @ skew)


class BodyModel(nn.Module):
    """Vertices and joints from shape and pose: one skinned mesh of the MANO / SMPL / SMPL-X kind."""

    def __init__(self, arrays: dict, *, name: str = "", hand_pose: str = "absolute",
                 dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.name = name
        self.side = str(arrays.get("side", ""))
        tensor = {key: torch.from_numpy(np.asarray(arrays[key], np.float64)) for key in
                  ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")}
        for key, value in tensor.items():
            self.register_buffer(key, value.to(dtype), persistent=False)
        faces = torch.from_numpy(np.asarray(arrays["f"], np.int64))
        self.register_buffer("faces", faces, persistent=False)
        parents = np.asarray(arrays["kintree_table"], np.int64)[0]
        self.parents = (-1, *map(int, parents[1:]))
        self.joint_names: tuple[str, ...] = ()
        self.num_betas = min(10, self.shapedirs.shape[2])
        self.num_expression = self.shapedirs.shape[2] - self.num_betas
        self.tip_vertex_ids = tuple(map(int, arrays.get("tip_vertex_ids", ())))
        if self.tip_vertex_ids:
            fingers = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
            tips = torch.eye(len(self.v_template), dtype=dtype)[list(self.tip_vertex_ids)]
            regressor = torch.cat([self.J_regressor, tips])[list(fingers)]
            self.register_buffer("keypoint_regressor", regressor, persistent=False)

    def forward(self, betas: Tensor, pose: Tensor, expression: Tensor | None = None,
                transl: Tensor | None = None) -> BodyOutput:
        rotations = pose if pose.dim() == 4 else _rodrigues(pose)
        batch, count = rotations.shape[:2]
        if expression is None:
            expression = betas.new_zeros(batch, self.num_expression)
        shape = torch.cat([betas, expression], 1)
        shaped = self.v_template + torch.einsum("bs,vcs->bvc", shape, self.shapedirs)
        rest_joints = self.J_regressor @ shaped
        feature = (rotations[:, 1:] - torch.eye(3).to(rotations)).flatten(1)
        posed = shaped + torch.einsum("bp,vcp->bvc", feature, self.posedirs)
        world, joints = [rotations[:, 0]], [rest_joints[:, 0]]
        for joint in range(1, count):
            parent = self.parents[joint]
            bone = (rest_joints[:, joint] - rest_joints[:, parent])[..., None]
            joints.append(joints[parent] + (world[parent] @ bone)[..., 0])
            world.append(world[parent] @ rotations[:, joint])
        world, joints = torch.stack(world, 1), torch.stack(joints, 1)
        shift = joints - (world @ rest_joints[..., None])[..., 0]
        rotation = torch.einsum("vk,bkij->bvij", self.weights, world)
        vertices = (rotation @ posed[..., None])[..., 0] + self.weights @ shift
        if transl is not None:
            vertices, joints = vertices + transl[:, None], joints + transl[:, None]
        last_row = world.new_tensor([0, 0, 0, 1]).expand(batch, count, 1, 4)
        transforms = torch.cat([torch.cat([world, joints[..., None]], -1), last_row], -2)
        return BodyOutput(vertices, joints, transforms)


def load_model(source: str | Path = "hand_right", *, hand_pose: str = "absolute",
               dtype: torch.dtype = torch.float32) -> BodyModel:
    """A free model by name ("hand_right", "hand_left", "body", "wholebody")."""
    if source not in FREE_MODELS:
        raise ValueError(f"unknown body model {source!r}: expected one of {FREE_MODELS}")
    with np.load(ASSETS / f"{source}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return BodyModel(arrays, name=str(source), hand_pose=hand_pose, dtype=dtype)

# ------------------------------------------------------------------------------ mesh files

# ------------------------------------------------------------------------------- rendering

# ------------------------------------------------------------------------------- benchmark
