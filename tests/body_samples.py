"""Bodies that several tests use."""

import hashlib

import torch
from hypothesis import strategies as st

import bodymodels as bm

SMPL24, SMPL45 = bm.JOINT_SETS["smpl24"], bm.JOINT_SETS["smpl45"]
BODY, WHOLE = bm.load_model("body"), bm.load_model("wholebody")
seeds = st.integers(0, 2**31 - 1)


def digest(sample):
    joined = b"".join(sample[name].numpy().tobytes() for name in sorted(sample))
    return hashlib.sha256(joined).hexdigest()


def inputs(body, seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    betas = torch.randn(batch, 10, generator=generator)
    return betas, 0.5 * torch.randn(batch, len(body.parents), 3, generator=generator)
