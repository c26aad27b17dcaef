"""SimpleHand: faster ways to run the model beside the plain one, on the CPU and on a GPU."""

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.timing import medians
from networks.backbones import simplehand_model
from simplehand import PRESETS, Config, MeshHead, SimpleHand

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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, last = self.backbone(x.to(torch.bfloat16))
        return features.to(x.dtype), last.to(x.dtype)


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

    def channels_last(model: SimpleHand) -> SimpleHand:
        model.backbone.to(memory_format=torch.channels_last)
        return model

    def sampled(model: SimpleHand) -> SimpleHand:
        return with_sampled_cells(model) if samples_cells(model.config) else model

    ways = {"plain": lambda: run(model), "fused": lambda: run(model.fuse())}
    if samples_cells(model.config):
        ways["fused, sampled cells"] = lambda: run(sampled(model.fuse()))
    ways["the same, channels last"] = lambda: run(channels_last(sampled(model.fuse())), last)
    ways["the same, bf16"] = lambda: run(sampled(fuse_bf16(model)), last)
    ways["fused, torch.compile"] = lambda: run(torch.compile(model.fuse(), dynamic=False))
    if images.is_cuda:
        ways["fused, bf16, CUDA graph"] = lambda: cuda_graph(fuse_bf16(model), last)
    return ways


def cuda_graph(model: SimpleHand, images: Tensor) -> Way:
    """Record the model on these images; calls replay it, without a launch for each kernel."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries choose and allocate before the recording
        for _ in range(3):
            model(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(images)

    def replay() -> Mapping[str, Tensor]:
        graph.replay()
        return output

    return replay


@torch.inference_mode()
def compare(model: SimpleHand, images: Tensor, seconds: float) -> None:
    """Print a line for each way: time, images per second, time and mesh beside the plain model."""
    ways, outputs = {}, {}
    for name, prepare in variants(model, images).items():
        try:
            way = prepare()
            outputs[name] = way()["vertices"].clone()
            ways[name] = way
        except Exception as error:  # torch.compile without a compiler, a failed capture, ...
            reason = (str(error) or type(error).__name__).splitlines()[0]
            print(f"  {name:26}  not possible here: {reason[:60]}")
    times = medians(ways, seconds)
    for name, spent in times.items():
        difference = 1e3 * (outputs[name] - outputs["plain"]).abs().max().item()
        print(f"  {name:26}{spent:>10.2f}{1e3 * len(images) / spent:>11.1f}"
              f"{spent / times['plain']:>8.2f}   {difference:.1e}", flush=True)


def benchmark(config: Config, seconds: float = 20.0, batches: Sequence[int] = (1, 32)) -> None:
    """Print a table for each device and batch size."""
    torch.manual_seed(0)
    model = simplehand_model(config).eval()
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for batch in batches:
            shape = (batch, 3, config.image_size, config.image_size)
            images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
            print(f"\n{device}, batch {batch}, {torch.get_num_threads()} threads, float32 unless "
                  f"said otherwise, medians of interleaved runs\n{'':28}{'ms':>10}{'images/s':>11}"
                  f"{'ratio':>8}   largest difference, mm", flush=True)
            compare(model.to(device), images, seconds)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks simplehand", description=__doc__)
    parser.add_argument("--preset", default="paper", choices=PRESETS, help="(default: paper)")
    parser.add_argument("--seconds", type=float, default=20.0, help="per table (default: 20)")
    arguments = parser.parse_args(argv)
    benchmark(PRESETS[arguments.preset], arguments.seconds)
