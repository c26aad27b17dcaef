"""Bodies that several tests use."""

import torch
from hypothesis import strategies as st

import bodymodels as bm

SMPL24, SMPL45 = bm.JOINT_SETS["smpl24"], bm.JOINT_SETS["smpl45"]
BODY, WHOLE = bm.load_model("body"), bm.load_model("wholebody")
seeds = st.integers(0, 2**31 - 1)
CONTRACT = {
    "image": ((3, 48, 48), torch.uint8), "K": ((3, 3), torch.float32),
    "pose": ((24, 3, 3), torch.float32), "pose_valid": ((), torch.float32),
    "betas": ((10,), torch.float32), "betas_valid": ((), torch.float32),
    "transl": ((3,), torch.float32), "keypoints_3d": ((45, 3), torch.float32),
    "keypoints_3d_valid": ((45,), torch.float32), "keypoints_2d": ((45, 2), torch.float32),
    "keypoints_valid": ((45,), torch.float32), "index": ((), torch.int64)}


def inputs(body, seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    betas = torch.randn(batch, 10, generator=generator)
    return betas, 0.5 * torch.randn(batch, len(body.parents), 3, generator=generator)
