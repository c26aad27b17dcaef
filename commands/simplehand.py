"""python simplehand.py: hands in photographs, parameters of the presets, exported models."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import bodymodels
import simplehand
from commands import pictures
from commands.pictures import Result, Target
from commands.simplehand_export import export
from networks.backbones import simplehand_model
from networks.upright import looking_again
from weights.simplehand import load_checkpoint

SHIPPED = bodymodels.ASSETS / "simplehand_views_cpu.pt"
# Above these we warn, all in sides of the crop (our choice): the mean spread of the heat maps, and
# mean distances of the mesh from the network's own 2D keypoints and from MediaPipe's. RESULTS.md
# tells what the first is worth; with simplehand_cpu.pt 95 % of 300 test images are below 0.022 in
# the second. SURER: if the mirrored hand's spread is below this share of the hand's, we suggest the
# other side (our choice).
SPREAD, MISFIT, DETECTOR_MISFIT = 0.1, 0.06, 0.1
SURER = 0.8

REMARK = """\
Table 2 of the paper gives 1.9 M parameters for all but the backbone, next to HRNet's scores. HRNet
needs no deconvolution, and the release has no HRNet: nothing in it adds up to 1.9 M. With FastViT
it is 6.5 M: 5.0 M for the deconvolution, 1.5 M for the mesh regressor, 0.05 M for the 2D head.
With HRNet as we read the paper it is 1.56 M."""


def print_summary(as_json: bool) -> None:
    """Print the parameters of every preset, part by part. "paper" is the released model."""
    with torch.device("meta"):  # takes no memory
        counts = {name: simplehand.count_parameters(simplehand_model(config))
                  for name, config in simplehand.PRESETS.items()}
    if as_json:
        print(json.dumps({"parameters": counts, "remark": REMARK}, indent=1))
        return
    for name, parts in counts.items():
        print(f"{name:<27}{'parameters':>14}")
        for part, number in parts.items():
            print(f"  {part:<25}{number:>14,}")
    print(f"\n{REMARK}")


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    command, groups = pictures.parser("simplehand", "hand", "the arrays of simplehand.predict")
    groups.found.add_argument(
        "--left", action="store_true", help="the hands in the boxes are left ones: mirrored for "
        "the network, the meshes mirrored back (MediaPipe tells the side itself)")
    groups.model.add_argument("--checkpoint", type=Path, default=SHIPPED, metavar="FILE",
                              help="train.py's or the authors'; assets/simplehand_cpu.pt knows "
                              "only palms and backs, and looks once, not four times")
    groups.model.add_argument("--hand", default="hand_right", metavar="FILE",
                              help="MANO_RIGHT.pkl, for checkpoints trained on MANO's meshes")
    groups.instead.add_argument("--export", type=Path, metavar="FILE", help="write the fused "
                                "--checkpoint for torch.export.load, or FILE.onnx")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return pictures.main(parser(), work, argv)


def work(arguments: argparse.Namespace) -> int:
    """Do what the arguments ask for."""
    if arguments.summary:
        print_summary(arguments.json)
        return 0
    if arguments.export:
        model = looking_again(load_checkpoint(arguments.checkpoint))
        difference = export(model, arguments.export)
        print(f"wrote {arguments.export}; read back, it differs by {difference:.0e}")
        return 0
    return reconstruct(arguments)


def reconstruct(arguments: argparse.Namespace) -> int:
    """Reconstruct the hands in the pictures."""
    pictures.prepare(arguments, "hand")
    hand = bodymodels.load_model(arguments.hand, family="mano")
    if len(hand.parents) != 16:
        raise ValueError(f"--hand {arguments.hand} has {len(hand.parents)} joints: expected a hand "
                         "model, with MANO's 16")
    model = load_checkpoint(arguments.checkpoint)
    data = pictures.data_of(arguments.checkpoint)
    is_free = torch.equal(hand.faces, bodymodels.load_model("hand_right").faces)
    check_hand(model.config.official, data, arguments.checkpoint, is_free)
    model, faces = looking_again(model.fuse()).to(arguments.device), hand.faces.numpy()

    def one(image: np.ndarray, target: Target, _: Path) -> Result:
        side = "left" if arguments.left and arguments.box else target.side
        take = functools.partial(simplehand.predict, model, image, hand.keypoint_regressor,
                                 box=target.box)
        arrays = take(side=side)
        outward = faces[:, ::-1 if side == "left" else 1]  # mirrored, they face inwards
        notes = ["taken for a right hand; for a left one add --left"
                 if arguments.box and side == "right" else f"a {side} hand"]
        if arguments.box and "spread_2d" in arrays:
            notes += side_notes(arrays, take(side="left" if side == "right" else "right"))
        return Result(arrays, outward, arrays["root"], notes=notes + fit_notes(arrays, target))

    return pictures.run(arguments, "hand", one, trained_on(model.config, data))


def check_hand(official: bool, data: str | None, checkpoint: Path, is_free: bool) -> None:
    """Raise ValueError unless the hand model is the one that a checkpoint was trained with.

    MANO and the free hand both have 778 vertices, but different ones. train.py writes the kind of
    its data into a checkpoint; the release was trained with MANO.
    """
    if is_free and (official or data in ("freihand", "dexycb")):
        raise ValueError(f"{checkpoint} was trained on MANO's meshes, whose faces and joints the "
                         "free hand does not have: add --hand MANO_RIGHT.pkl")
    if not is_free and data == "rendered":
        raise ValueError(f"{checkpoint} was trained on the free hand, whose faces and joints MANO "
                         "does not have: leave out --hand")


def side_notes(arrays: Mapping[str, np.ndarray],
               mirrored: Mapping[str, np.ndarray]) -> list[str]:
    """Warn if the heat maps are surer of the mirrored hand, of the other side."""
    if mirrored["spread_2d"].mean() >= SURER * arrays["spread_2d"].mean():
        return []
    return ["warning: it looks more like a " + (
        "left hand: add --left" if arrays["side"] else "right hand: leave out left")]


def fit_notes(arrays: Mapping[str, np.ndarray], target: Target) -> list[str]:
    """Warn of unsure heat maps, and of a mesh that does not fit the 2D keypoints.

    A network with heat maps lays its mesh on the keypoints that it found, right or wrong; so only
    a network without them is compared with its own.
    """
    pixels = arrays["joints"] @ arrays["K"].T
    mesh, extent = pixels[:, :2] / pixels[:, 2:], max(arrays["box"][2:])
    notes = []
    if "spread_2d" not in arrays:
        notes += pictures.fit_note(arrays["keypoints_2d"], mesh, extent, MISFIT)
    elif (spread := arrays["spread_2d"].mean()) > SPREAD:
        notes += ["warning: the network is not sure where the keypoints are (its heat maps spread "
                  f"over {100 * spread:.0f} % of the box): do not trust this result"]
    if target.keypoints is not None:  # MediaPipe's 21 are in our order
        notes += pictures.fit_note(target.keypoints[:, :2], mesh, extent, DETECTOR_MISFIT,
                                   "MediaPipe's 2D keypoints")
    return notes


def trained_on(config: simplehand.Config, data: str | None) -> str:
    """Say in one line what a checkpoint has seen, and what to expect of it."""
    if data != "rendered":
        return pictures.trained_on(data)
    views, other = (("from all sides", "") if config.views >= 90 else (
        f"whose palm or back faces the camera within {config.views:.0f} degrees",
        "wrong ones of other views, "))
    return (f"trained on rendered right hands {views}: expect rough meshes in photographs, {other}"
            "and always a hand, also where there is none")
