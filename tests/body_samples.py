"""Bodies that several tests use."""

import torch
from hypothesis import strategies as st

import bodymodels as bm

SMPL45 = bm.JOINT_SETS["smpl45"]
BODY = bm.load_model("body")
seeds = st.integers(0, 2**31 - 1)
CONTRACT = {
    "image": ((3, 48, 48), torch.uint8), "K": ((3, 3), torch.float32),
    "pose": ((24, 3, 3), torch.float32), "pose_valid": ((), torch.float32),
    "betas": ((10,), torch.float32), "betas_valid": ((), torch.float32),
    "transl": ((3,), torch.float32), "keypoints_3d": ((45, 3), torch.float32),
    "keypoints_3d_valid": ((45,), torch.float32), "keypoints_2d": ((45, 2), torch.float32),
    "keypoints_valid": ((45,), torch.float32), "index": ((), torch.int64)}
