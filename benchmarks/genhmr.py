"""GenHMR's deformable attention beside the usual way to compute it, and the time of every part."""

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import medians
from bodymodels import load_model
from genhmr import PRESETS, Config, DeformableAttention, Features, GenHMR, refine, sample
from networks.small_encoder import build_genhmr


def project_then_sample(attention: DeformableAttention, queries: Tensor, reference: Tensor,
                        values: Tensor, sizes: Tensor) -> Tensor:
    """DeformableAttention as it is usually written: project all cells, then sample each map."""
    heads, maps, points = attention.shape
    batch, length, _ = queries.shape
    offsets = attention.sampling_offsets(queries).unflatten(2, (*attention.shape, 2))
    weights = attention.attention_weights(queries).unflatten(2, (heads, -1)).softmax(-1)
    projected = attention.value_proj(values).unflatten(2, (heads, -1))  # (B, N, H, D / H)
    shapes, total = sizes.tolist(), 0.0
    cells = [height * width for height, width in shapes]
    for level, (part, (height, width)) in enumerate(
            zip(projected.split(cells, 1), shapes, strict=True)):
        grid = 2.0 * reference[:, None, None] - 1.0 + 2.0 * offsets[:, :, :, level] / (
            torch.tensor([width, height], device=queries.device))  # (B, L, H, P, 2)
        sampled = F.grid_sample(part.permute(0, 2, 3, 1).reshape(batch * heads, -1, height, width),
                                grid.transpose(1, 2).flatten(0, 1), align_corners=False)
        weight = weights.unflatten(3, (maps, points))[:, :, :, level].transpose(1, 2)
        total = total + (sampled * weight.flatten(0, 1)[:, None]).sum(3)  # (B H, D / H, L)
    return attention.output_proj(total.view(batch, -1, length).transpose(1, 2))


def peer_attention(attention: DeformableAttention) -> Callable:
    """Hugging Face's module with the same weights; project_then_sample without transformers."""
    try:
        from transformers.models.deformable_detr import modeling_deformable_detr as detr
    except Exception:  # its optional dependencies break in many ways
        return functools.partial(project_then_sample, attention)
    heads, maps, points = attention.shape
    config = argparse.Namespace(d_model=attention.value_proj.out_features,
                                num_feature_levels=maps, disable_custom_kernels=True)
    peer = detr.DeformableDetrMultiscaleDeformableAttention(config, heads, points)
    peer.to(attention.value_proj.weight).load_state_dict(attention.state_dict())

    def forward(queries: Tensor, reference: Tensor, values: Tensor, sizes: Tensor) -> Tensor:
        areas = sizes.prod(1)
        return peer(queries, encoder_hidden_states=values, spatial_shapes=sizes,
                    spatial_shapes_list=[tuple(size) for size in sizes.tolist()],
                    level_start_index=areas.cumsum(0) - areas,
                    reference_points=reference[None, :, None].expand(len(values), -1, maps, -1))[0]

    return forward


def benchmark_attention(width: int, seconds: float, batch: int = 1) -> None:
    """Print the times of our deformable attention and of the usual one, at the paper's sizes."""
    torch.manual_seed(0)
    attention = DeformableAttention(replace(Config(), width=width, pyramid_width=width))
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    sizes = torch.tensor([(16, 12), (64, 48), (128, 96)])
    queries, values = torch.randn(batch, 96, width), torch.randn(batch, 15_552, width)
    reference, peer = torch.rand(96, 2), peer_attention(attention)

    def run(function: Callable, backward: bool) -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            inputs = [x.detach().requires_grad_(backward) for x in (queries, values)]
            output = function(inputs[0], reference, inputs[1], sizes)
            return [output, *torch.autograd.grad(output.sum(), inputs)] if backward else [output]

    for label, backward in (("forward", False), ("forward + backward", True)):
        runs = {name: functools.partial(run, function, backward)
                for name, function in (("ours", attention), ("usual", peer))}
        times = medians(runs, seconds)
        difference = max(((x - y).abs().max() / y.abs().max()).item()
                         for x, y in zip(runs["ours"](), runs["usual"](), strict=True))
        print(f"  {f'width {width}, {label}':<32}{times['ours']:>9.1f} ms{times['usual']:>9.1f} ms"
              f"{times['ours'] / times['usual']:>8.3f}   differs by {difference:.0e}", flush=True)


def refinement_run(model: GenHMR, features: Features, embeddings: Tensor) -> Callable:
    """Return a function to time: ten steps of refinement against the free body's keypoints."""
    body = load_model("body").for_keypoints()
    return lambda: refine(
        model, embeddings, features.betas, features.camera, torch.zeros(1, 45, 2),
        torch.ones(1, 45), lambda betas, rotations: body.keypoints(body(betas, rotations)))


@torch.no_grad()
def benchmark_parts(config: Config, seconds: float) -> None:
    """Print the time of T = 5 per T = 1, and of every part of the model."""
    torch.manual_seed(0)
    model = build_genhmr(config).eval()
    images = torch.zeros(1, 3, config.image_size, config.image_size)
    features = model.encode(images)
    tokens = torch.zeros(1, config.tokenizer.num_tokens, dtype=torch.int64)
    embeddings = model.tokenizer.quantiser.lookup(tokens)
    grid = torch.zeros(1, config.vit_dim, *config.grid)
    times = medians({T: lambda T=T: sample(model, images, iterations=T) for T in (1, 5)}, seconds)
    print(f"\npicture to pose, T = 1: {times[1]:.1f} ms, T = 5: {times[5]:.1f} ms, "
          f"ratio {times[5] / times[1]:.2f} (in the paper's Table 2: 3.2)\n")
    parts = {
        "image encoder": lambda: model.backbone(model.normalise(images)),
        "feature maps": lambda: [level(grid) for level in model.pyramid],
        "shape and camera": lambda: model.regressor(grid.flatten(2).mT),
        "masked transformer, an iteration": lambda: model.predict_logits(features, tokens),
        "pose tokenizer, decoder": lambda: model.tokenizer.decode(tokens),
        "refinement, 10 steps": refinement_run(model, features, embeddings)}
    for part, time in medians(parts, seconds).items():
        print(f"  {part:<32}{time:>9.1f} ms")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks genhmr", description=__doc__)
    parser.add_argument("--preset", default="paper", choices=PRESETS, help="default: paper")
    parser.add_argument("--widths", type=int, nargs="+", default=(1024, 256), metavar="D",
                        help="of the attention (default: 1024 256)")
    parser.add_argument("--seconds", type=float, default=4.0, help="per line (default: 4)")
    arguments = parser.parse_args(argv)
    print(f"{torch.get_num_threads()} threads, float32, batch 1, medians of interleaved runs\n")
    print("deformable attention of 96 queries on 15,552 cells: this file's, the usual one, ratio")
    for width in arguments.widths:
        benchmark_attention(width, arguments.seconds)
    benchmark_parts(PRESETS[arguments.preset], 2 * arguments.seconds)
