"""Faster equals of the papers' modules: `replace` puts them in, for train.py and demo.py.

Also a file of SimpleHand for programs without simplehand.py.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bodymodels import write_atomically
from genhmr import DeformableAttention
from simplehand import MeshHead


def replace(model: nn.Module) -> nn.Module:
    """Give a model the fast equals of its layers, in place; names and weights stay."""
    for module in model.modules():
        if type(module) is DeformableAttention:
            module.__class__ = GatheringAttention
        for layer in module.deconv if isinstance(module, MeshHead) else ():
            if type(layer) is nn.ConvTranspose2d:
                layer.__class__ = PatchDeconv
    return model


class PatchDeconv(nn.ConvTranspose2d):
    """Deconvolution with kernel = stride: one matrix product turns each cell into a patch."""

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W), here for stride 4
        patches = x.permute(0, 2, 3, 1) @ self.weight.flatten(1)  # (B, H, W, C' * 4 * 4)
        patches = patches.unflatten(3, self.weight.shape[1:]).permute(0, 3, 1, 4, 2, 5)
        y = patches.flatten(4).flatten(2, 3)  # (B, C', H, 4, W, 4) -> (B, C', 4 H, 4 W)
        return y if self.bias is None else y + self.bias[:, None, None]


# -------------------------------------------------------------------------------------- GenHMR


class GatheringAttention(DeformableAttention):
    """Samples first and then projects what it sampled, as both steps are linear.

    The cells around all points of a head are one embedding bag: nothing as large as a map is made.
    """

    def sample_maps(self, values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        sampled, inside = gather(values, self.cells, locations, weights)  # (B, L, H, C)
        projection = self.value_proj.weight.unflatten(0, (self.shape[0], -1))  # W, (H, D / H, C)
        x = torch.einsum("blhc,hdc->blhd", sampled, projection)  # (B, L, H, D / H)
        bias = self.value_proj.bias.unflatten(0, (self.shape[0], -1))
        return (x + inside[..., None] * bias).flatten(2)


def gather(values: Tensor, cells: Tensor, locations: Tensor,
           weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum bilinear samples of several maps: sum_l sum_k A_lyk x^l(p_lyk).

    values: (B, N, C), the cells of all maps x^l, each row by row. cells: (maps, 2) int64, width and
    height of each. locations: (B, L, H, maps, P, 2), 0..1 over each map. weights: A, (B, L, H,
    maps, P). Returns the sums (B, L, H, C) and the sums (B, L, H) of the weights of what lies
    inside. Maps are zero outside; a NaN stays in its own query.
    """
    size, (width, _) = cells[:, None], cells[..., None].unbind(1)  # (maps, 1, 2), (maps, 1)
    at = (locations * size - 0.5).clamp_min(-1.0)  # in cells; farther out is the same
    at = torch.minimum(at, size.to(at))
    low = at.detach().floor()
    cell = low.nan_to_num(0.0).long().unsqueeze(3)  # a NaN stays in the weights of its own query
    cell = torch.cat((cell, cell + 1), 3)  # x and y of the near cells, (B, L, H, 2, maps, P, 2)
    share = torch.stack((low + 1.0 - at, at - low), 3)
    share_x, share_y = torch.where((cell < 0) | (cell >= size), 0.0, share).unbind(-1)
    column, row = torch.minimum(cell.clamp_min(0), size - 1).unbind(-1)
    starts = (cells.prod(1).cumsum(0) - cells.prod(1))[:, None]  # first row of each map in `values`
    batch = values.shape[1] * torch.arange(len(values), device=values.device)
    index = starts + row[:, :, :, :, None] * width + column[:, :, :, None]  # (B, L, H, 2, 2, ...)
    index = index.flatten(3) + batch.view(-1, 1, 1, 1)
    weight = weights[:, :, :, None, None] * share_y[:, :, :, :, None] * share_x[:, :, :, None]
    weight = weight.flatten(3).to(values)  # (B, L, H, 4 maps P)
    sums = F.embedding_bag(index.flatten(0, 2), values.flatten(0, 1), mode="sum",
                           per_sample_weights=weight.flatten(0, 2))
    return sums.view(*weight.shape[:3], -1), weight.sum(-1)


# -------------------------------------------------------------------------------- a file


@torch.no_grad()
def export(model: nn.Module, path: Path) -> float:
    """Write a fused SimpleHand; return by how much the outputs of the file differ at most.

    torch.export.load(path).module() takes uint8 RGB (B, 3, S, S), any B, as SimpleHand.forward; it
    is for the CPU and, after .to("cuda"), a GPU. Raises FileNotFoundError for a missing folder.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: create the folder {path.parent} first")
    images = torch.randint(0, 256, (3, 3, *[model.config.image_size] * 2), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    expected, file = model(images), io.BytesIO()
    program = torch.export.export(model, (images[:2],),
                                  dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in list(program.graph.nodes):  # these would insist on the device of this export
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    torch.export.save(program, file)
    again = torch.export.load(io.BytesIO(file.getvalue())).module()(images)
    write_atomically(path, file.getvalue())
    return max((again[name] - value).abs().max().item() for name, value in expected.items())
