"""The processes that train together: torchrun's ranks, their devices and their batch norm."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

import data

TIMEOUT = timedelta(minutes=30)  # of collectives in a step: a slow loader, a first compilation
PATIENCE = timedelta(hours=12)  # of everything else: data preparation, evaluation, saving
Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """The processes that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    workers: int = 0  # data processes of each rank
    steps: dist.ProcessGroup | None = None  # for collectives of a step, which wait less long

    @property
    def leader(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def mean(self, values: Iterable[float]) -> list[float]:
        """Average each value over all processes, to the same bits on each of them."""
        total = torch.tensor(list(values), dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(total, group=self.steps)
        return (total / self.size).tolist()

    def share(self, value: Value) -> Value:
        """Send the leader's value to every process; wait until all have called this."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def gather(self, value: Value) -> list[Value]:
        """Collect every process's value on the leader, in order of rank; nothing elsewhere."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.leader else None
        dist.gather_object(value, values)
        return values or []


def join_world(workers: int | None = None) -> World:
    """Meet the other processes if torchrun started several."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = choose_device()
    if workers is None:  # a CPU that trains has no core to spare
        cores = data.available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = min(16, cores) if device.type == "cuda" else 0
    if size == 1:
        return World(device=device, workers=workers)
    served = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
                          is_master=served, timeout=PATIENCE)
    # After a restart torchrun's store still has the addresses of the last attempt: use new names.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl", rank=rank, world_size=size,
        store=dist.PrefixStore(f"attempt {attempt}", store),
        timeout=PATIENCE)  # another machine may still prepare its data
    return World(rank, size, device, workers, dist.new_group(timeout=TIMEOUT))


def choose_device() -> torch.device:
    """Choose this process's GPU, or the CPU with its share of the cores."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not torch.cuda.is_available():
        if neighbours > 1:  # torchrun would give each a single core
            torch.set_num_threads(max(1, data.available_cores() // neighbours))
        else:
            keep_freed_memory()
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(f"process {local_rank} on this machine has no GPU of its own: start at "
                         f"most {torch.cuda.device_count()} with --nproc-per-node")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")  # TF32, as convolutions have by default
    torch.backends.cudnn.benchmark = True
    return device


def keep_freed_memory() -> None:
    """Have glibc keep the buffers that a step frees for the next step, which is 9 % faster so."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD of malloc.h: the largest that all versions accept
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


class MeanOverRanks(torch.autograd.Function):
    """The mean of a tensor over all processes of a group, and of its gradient."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, x: Tensor,
                group: dist.ProcessGroup | None) -> Tensor:
        total, context.group = x.clone(), group
        dist.all_reduce(total, group=group)
        return total / dist.get_world_size()

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, gradient: Tensor
                 ) -> tuple[Tensor, None]:
        return MeanOverRanks.apply(gradient, context.group), None


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes (PyTorch's SyncBatchNorm needs CUDA)."""

    steps: dist.ProcessGroup  # of World

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        if not self.training:
            return super().forward(x)
        var, mean = (v.double() for v in torch.var_mean(x.float(), (0, 2, 3), correction=0))
        moments = MeanOverRanks.apply(torch.stack((mean, var + mean.square())), self.steps)
        mean, var = moments[0], moments[1] - moments[0].square()
        with torch.no_grad():
            count = x.numel() // x.shape[1] * dist.get_world_size()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return x * scale.to(x.dtype).view(-1, 1, 1) + shift.to(x.dtype).view(-1, 1, 1)


def share_batch_norm(model: nn.Module, world: World) -> nn.Module:
    """Make every batch norm of the model span all processes; names and weights stay."""
    if world.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model, world.steps)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__, module.steps = SharedBatchNorm, world.steps
    return model


def announce(text: str) -> None:
    """Print a line, also before the processes meet, and only from the first of them."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(text, flush=True)


def fail(message: str) -> NoReturn:
    """End this process with one message, which torchrun repeats behind its own report."""
    text, file = f"train.py: {message}", os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        details = {"py_callstack": text, "timestamp": str(int(time.time()))}
        Path(file).write_text(json.dumps({"message": {"message": text, "extraInfo": details}}))
    raise SystemExit(text)
