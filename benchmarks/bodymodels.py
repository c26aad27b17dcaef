"""Linear blend skinning beside the smplx package, forward and backward, on the CPU."""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import table
from bodymodels import BodyModel, load_model

CASES = (("hand_right", 1), ("hand_right", 64), ("body", 1), ("body", 64),
         ("wholebody", 1), ("wholebody", 16))  # model, batch


def smplx_vertices(model: BodyModel) -> Callable[[Tensor, Tensor], Tensor]:
    """smplx.lbs with the model's arrays in the layouts of smplx's own modules.

    Those store posedirs as a transposed view (P, 3V) with strides (1, P), which costs time.
    """
    from smplx.lbs import lbs
    offsets = model.offsets.view(-1, 3, model.J_regressor.shape[1]).transpose(1, 2)  # (S + P, V, 3)
    components = model.num_betas + model.num_expression
    shapedirs = offsets[:components].permute(1, 2, 0).contiguous()
    posedirs = offsets[components:].flatten(1).T.contiguous().T
    weights, parents = model.skinning_weights.T.contiguous(), torch.tensor(model.parents)
    return lambda shape, pose: lbs(shape, pose.flatten(1), model.v_template, shapedirs, posedirs,
                                   model.J_regressor, parents, weights)[0]


def backward(poser: Callable[[Tensor, Tensor], Tensor], *inputs: Tensor) -> None:
    poser(*(x.clone().requires_grad_() for x in inputs)).sum().backward()


def run(arguments: argparse.Namespace) -> None:
    for name, batch in CASES:
        model = load_model(name)
        inputs = (torch.randn(batch, len(model.skeleton_basis)),
                  0.4 * torch.randn(batch, len(model.parents), 3))
        posers = {"smplx": smplx_vertices(model),
                  "ours": lambda shape, pose, m=model: m(shape[:, :m.num_betas], pose,
                                                         shape[:, m.num_betas:]).vertices}
        ways = {way: partial(poser, *inputs) for way, poser in posers.items()}
        ways |= {f"{way}, and backward": partial(backward, poser, *inputs)
                 for way, poser in posers.items()}
        table(f"{name}, batch {batch}", ways, arguments.seconds)
