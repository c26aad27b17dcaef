"""Linear blend skinning beside the smplx package, forward and backward, on the CPU."""

import argparse
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.timing import medians
from bodymodels import BodyModel, load_model

CASES = (("hand_right", 1), ("hand_right", 64), ("body", 1), ("body", 64),
         ("wholebody", 1), ("wholebody", 16))  # model, batch


def smplx_vertices(model: BodyModel, lbs: Callable) -> Callable[[Tensor, Tensor], Tensor]:
    """smplx.lbs with the model's arrays in the layouts of smplx's own modules.

    Those store posedirs as a transposed view (P, 3V) with strides (1, P), which costs time.
    """
    count, vertices = model.J_regressor.shape
    offsets = model.offsets.view(-1, 3, vertices).transpose(1, 2)  # (S + P, V, 3)
    components = model.num_betas + model.num_expression
    shapedirs = offsets[:components].permute(1, 2, 0).contiguous()
    posedirs = offsets[components:].flatten(1).T.contiguous().T
    weights, parents = model.skinning_weights.T.contiguous(), torch.tensor(model.parents)

    def vertices_of(shape: Tensor, pose: Tensor) -> Tensor:
        return lbs(shape, pose.flatten(1), model.v_template, shapedirs, posedirs,
                   model.J_regressor, parents, weights)[0]

    return vertices_of


def our_vertices(model: BodyModel) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda shape, pose: model(
        shape[:, :model.num_betas], pose, shape[:, model.num_betas:]).vertices


def run(poser: Callable, shape: Tensor, pose: Tensor, with_backward: bool) -> None:
    with torch.set_grad_enabled(with_backward):
        shape, pose = (x.clone().requires_grad_(with_backward) for x in (shape, pose))
        vertices = poser(shape, pose)
        if with_backward:
            vertices.backward(torch.ones_like(vertices))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks bodymodels", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="per line (default: 4)")
    seconds = parser.parse_args(argv).seconds
    try:
        from smplx.lbs import lbs
    except ImportError:
        lbs = None
        print("smplx is not installed: our times alone (pip install smplx for the comparison)")
    print(f"{torch.get_num_threads()} threads, float32, medians of interleaved runs")
    print(f"{'model':12}{'batch':>6}  {'pass':18}{'ours ms':>9}{'smplx ms':>10}{'ratio':>7}")
    for name, batch in CASES:
        model = load_model(name)
        generator = torch.Generator().manual_seed(0)
        shape = torch.randn(batch, len(model.skeleton_basis), generator=generator)
        pose = 0.4 * torch.randn(batch, len(model.parents), 3, generator=generator)
        posers = {"ours": our_vertices(model)}
        posers |= {"smplx": smplx_vertices(model, lbs)} if lbs else {}
        for label, with_backward in (("forward", False), ("forward + backward", True)):
            times = medians({key: functools.partial(run, poser, shape, pose, with_backward)
                             for key, poser in posers.items()}, seconds)
            peer = f"{times['smplx']:10.2f}{times['ours'] / times['smplx']:7.2f}" if lbs else ""
            print(f"{name:12}{batch:6}  {label:18}{times['ours']:9.2f}{peer}", flush=True)
