"""What makes SimpleHand fast, at equal results, and files for programs without simplehand.py."""

from __future__ import annotations

import importlib.util
import io
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from bodymodels import write_atomically


def replace(model: nn.Module) -> nn.Module:
    """Give a model fast equals of its plain layers, in place; names and weights stay."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.ConvTranspose2d and layer.kernel_size == layer.stride:
                patches = PatchDeconv(layer.in_channels, layer.out_channels, layer.kernel_size,
                                      layer.stride, bias=layer.bias is not None, device="meta")
                patches.weight, patches.bias = layer.weight, layer.bias
                setattr(parent, name, patches)
    return model


class PatchDeconv(nn.ConvTranspose2d):
    """Deconvolution with kernel = stride: one matrix product turns each cell into a patch."""

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W), here for stride 4
        patches = x.permute(0, 2, 3, 1) @ self.weight.flatten(1)  # (B, H, W, C' * 4 * 4)
        patches = patches.unflatten(3, self.weight.shape[1:]).permute(0, 3, 1, 4, 2, 5)
        y = patches.flatten(4).flatten(2, 3)  # (B, C', H, 4, W, 4) -> (B, C', 4 H, 4 W)
        return y if self.bias is None else y + self.bias[:, None, None]


@torch.no_grad()
def export(model: nn.Module, path: Path) -> float:
    """Write a fused SimpleHand; return how far the outputs of the file are off.

    FILE.onnx is ONNX, anything else torch.export.load(FILE).module(), for the CPU and, after
    .to("cuda"), for a GPU. Either takes uint8 RGB (B, 3, S, S), any B, and returns vertices
    (B, 778, 3) and keypoints_2d (B, 21, 2) as SimpleHand.forward does. The result is the largest
    absolute difference for a batch of 3, NaN for ONNX without onnxruntime. Raises ValueError
    without ONNX's exporter, FileNotFoundError for a missing folder.
    """
    onnx = path.suffix == ".onnx"
    if onnx and not importlib.util.find_spec("onnxscript"):
        raise ValueError("ONNX: expected its exporter, pip install onnx onnxscript")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: create the folder {path.parent} first")
    images = torch.randint(0, 256, (3, 3, *[model.config.image_size] * 2), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    expected, found, file = model(images), {}, io.BytesIO()
    program = torch.export.export(model, (images[:2],),
                                  dynamic_shapes=({0: torch.export.Dim("batch")},))
    if onnx:
        written = torch.onnx.export(program, input_names=["images"], output_names=[*expected],
                                    dynamo=True, verbose=False)
        file.write(written.model_proto.SerializeToString())
        if importlib.util.find_spec("onnxruntime"):
            import onnxruntime
            arrays = onnxruntime.InferenceSession(file.getvalue()).run(
                [*expected], {"images": images.numpy()})
            found = dict(zip(expected, map(torch.from_numpy, arrays), strict=True))
    else:
        for node in list(program.graph.nodes):  # these would insist on the device of this export
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                program.graph.erase_node(node)
        program.graph_module.recompile()
        torch.export.save(program, file)
        found = torch.export.load(io.BytesIO(file.getvalue())).module()(images)
    write_atomically(path, file.getvalue())
    return max(((found[name] - value).abs().max().item() for name, value in expected.items()
                if name in found), default=math.nan)
