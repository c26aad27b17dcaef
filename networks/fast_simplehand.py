"""Faster ways to run SimpleHand: sampled cells, channels last, bfloat16, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from simplehand import Config, MeshHead, SimpleHand

Way = Callable[[], Mapping[str, Tensor]]


class SampledHead(nn.Module):
    """A fused MeshHead that computes its deconvolution only at the cells that are read.

    21 points read at most 84 of 784 cells. Each of these is a cell of X_b times one of the
    deconvolution's 16 matrices. The results are exact, but shapes depend on the points: this head
    is for eager inference, not for export, torch.compile or CUDA graphs.
    """

    def __init__(self, head: MeshHead) -> None:
        super().__init__()
        self.head, deconv = head, head.deconv[0]
        self.factor = deconv.stride[0]
        self.weight = nn.Parameter(deconv.weight.flatten(2).permute(2, 0, 1).contiguous())
        self.bias, head.deconv = deconv.bias, None

    def forward(self, features: Tensor, points: Tensor) -> Tensor:
        return self.head.regress(self.tokens(features, points))

    def tokens(self, x: Tensor, points: Tensor) -> Tensor:
        """X_b (B, C, H, W), points (B, N, 2) in 0..1 -> (B, N, C')."""
        last = points.new_tensor([self.factor * x.shape[3] - 1, self.factor * x.shape[2] - 1])
        place = (points * (last + 1) - 0.5).clamp(torch.zeros_like(last), last)  # (B, N, 2)
        low, step = place.floor(), points.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
        cell = torch.minimum(low[:, :, None] + step, last).long()  # (B, N, 4, 2), x and y
        share = 1 - (place[:, :, None] - low[:, :, None] - step).abs()  # bilinear
        coarse, phase = cell // self.factor, cell % self.factor
        batch = torch.arange(len(x), device=x.device)[:, None, None]
        rows = x[batch, :, coarse[..., 1], coarse[..., 0]].flatten(0, 2)  # (B N 4, C)
        phase = (phase[..., 0] + self.factor * phase[..., 1]).flatten()  # which of the matrices

        order = phase.argsort()
        counts = phase.bincount(minlength=len(self.weight)).tolist()
        parts = zip(rows[order].split(counts), self.weight, strict=True)
        in_order = torch.cat([torch.addmm(self.bias, *part) for part in parts]).relu()
        values = torch.empty_like(in_order)
        values[order] = in_order
        values = values.view(*cell.shape[:3], -1)  # (B, N, 4, C')
        return (share.prod(-1, keepdim=True) * values).sum(2)


def samples_cells(config: Config) -> bool:
    """Whether SampledHead computes the same as a model of this config."""
    return (config.sampling in ("point", "coarse_mesh") and not config.official
            and not config.refine and len([f for f in config.upsample if f > 1]) == 1)


def with_sampled_cells(fused: SimpleHand) -> SimpleHand:
    """Give a fused model a SampledHead, in place. Raises ValueError where that is not possible."""
    if not samples_cells(fused.config):
        raise ValueError("sampled cells: expected points sampled from one deconvolution, without "
                         "the release's sine map")
    fused.mesh_head = SampledHead(fused.mesh_head)
    return fused


class InBfloat16(nn.Module):
    """A backbone in bfloat16, channels last; its maps come back in the precision of its input."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.to(torch.bfloat16, memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(maps.to(x.dtype) for maps in self.backbone(x.to(torch.bfloat16)))


def fuse_bf16(model: SimpleHand) -> SimpleHand:
    """Return a fused copy with its backbone in bfloat16: not exact. Coordinates stay float32."""
    fused = model.fuse()
    fused.backbone = InBfloat16(fused.backbone)
    return fused


def variants(model: SimpleHand, images: Tensor) -> dict[str, Callable[[], Way]]:
    """Ways to run the model on these images, by name; the plain model is the first.

    Each value prepares its way, which may fail on this machine, and returns the function to time.
    """
    last = images.contiguous(memory_format=torch.channels_last)

    def run(way: Callable[[Tensor], Mapping[str, Tensor]], images: Tensor = images) -> Way:
        return lambda: way(images)

    def sampled(model: SimpleHand) -> SimpleHand:
        return with_sampled_cells(model) if samples_cells(model.config) else model

    ways = {"plain": lambda: run(model), "fused": lambda: run(model.fuse())}
    if samples_cells(model.config):
        ways["fused, sampled cells"] = lambda: run(sampled(model.fuse()))
    ways["the same, channels last"] = lambda: run(
        sampled(model.fuse()).to(memory_format=torch.channels_last), last)
    ways["the same, bf16"] = lambda: run(sampled(fuse_bf16(model)), last)
    ways["fused, torch.compile"] = lambda: run(torch.compile(model.fuse(), dynamic=False))
    if images.is_cuda:
        ways["fused, bf16, CUDA graph"] = lambda: cuda_graph(fuse_bf16(model), last)
    return ways


def cuda_graph(model: SimpleHand, images: Tensor) -> Way:
    """Record the model on these images; calls replay it, without a launch for each kernel."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries choose and allocate before the recording
        for _ in range(3):
            model(images)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        output = model(images)
    return lambda: graph.replay() or output
