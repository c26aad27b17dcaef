"""Write SimpleHand for programs without simplehand.py: torch.export and ONNX files."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

import simplehand
from networks.upright import Upright


def export(model: simplehand.SimpleHand | Upright, path: str | PathLike) -> float:
    """Write the fused model for programs without this file; return how far its outputs are off.

    FILE.onnx is ONNX, anything else torch.export.load(FILE).module(), which runs on the CPU and,
    after .to("cuda"), on a GPU. Either takes uint8 RGB (B, 3, S, S), any B, and returns vertices
    (B, 778, 3) and keypoints_2d (B, 21, 2) as SimpleHand.forward does. The result is the largest
    absolute difference for a batch of 3, NaN for ONNX without onnxruntime.
    Raises ValueError where ONNX's exporter is not installed, FileNotFoundError for a missing
    folder. The file is replaced as a whole.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: create the folder {path.parent} first")
    model, size = model.fuse(), model.config.image_size
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    unfinished = path.with_name(f".{path.name}")
    try:
        with torch.no_grad():
            expected = model(images)
            write = export_onnx if path.suffix == ".onnx" else export_program
            found = write(model, images, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return max(((found[name] - value).abs().max().item() for name, value in expected.items()
                if name in found), default=math.nan)


def export_program(model: simplehand.SimpleHand, images: Tensor, path: Path) -> dict[str, Tensor]:
    """Write a torch.export file; return its outputs for the images."""
    program = torch.export.export(
        model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in list(program.graph.nodes):  # these would insist on the device of this export
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    torch.export.save(program, path)
    return torch.export.load(path).module()(images)


def export_onnx(model: simplehand.SimpleHand, images: Tensor, path: Path) -> dict[str, Tensor]:
    """Write an ONNX file; return its outputs for the images, nothing without onnxruntime."""
    try:
        import onnxscript  # noqa: F401, what torch.onnx writes with
    except ImportError:
        raise ValueError("ONNX: expected its exporter, pip install onnx onnxscript") from None
    names = list(model(images))
    torch.onnx.export(model, (images[:2],), str(path), input_names=["images"], output_names=names,
                      dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True,
                      external_data=False, verbose=False)
    try:
        import onnxruntime
    except ImportError:
        return {}
    session = onnxruntime.InferenceSession(str(path))
    arrays = session.run(names, {"images": images.numpy()})
    return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}
