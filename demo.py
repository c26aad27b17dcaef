"""Meshes of the hands or people in your pictures.

    python demo.py simplehand PICTURE ...     hands
    python demo.py genhmr PICTURE ...         people
    python demo.py hmr_adapter PICTURE ...    people with their hands; with --hand FILE alone: hands

A PICTURE is a file or a folder of files; --smooth takes the frames of a video. MediaPipe, if it is
installed, finds who is in it; --box says it in pixels. Each picture gets its meshes over it
(_overlay.png) and from the side (_side.png), each mesh as a file (.obj, .glb: metres, y up)
and as arrays (.npz: what the paper's `predict` returns). `--help` after a network lists its flags.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import bodymodels
import genhmr
import hmr_adapter
import simplehand
import weights.genhmr
import weights.hmr_adapter
import weights.simplehand
from bodymodels import ASSETS, JOINT_SETS, project
from files import first_line
from networks import fast, finders
from networks.adapter_rivals import build_model
from networks.any_view import heat_map_notes, looking_again
from networks.backbones import ALL_PRESETS, simplehand_model
from networks.finders import Found
from networks.overlays import write_results
from networks.small_encoder import SmallEncoder, build_genhmr
from networks.smooth import pose_hand, smooth_video
from sets import images
from weights.files import trained_on

CONVENTIONAL = "distances are conventional: for metres give your camera, --focal PX or --K FILE"
# Largest misfits to given 2D keypoints and to the network's own: see benchmarks/alarms.py
MISFITS = {"simplehand": (0.11, 0.06), "genhmr": (0.11, 0.07), "hmr_adapter": (0.12, 0.08)}
LEAST = {  # values of flags, and what to say of lower ones
    "smooth": (1e-6, "frames a second, such as 30"), "focal": (1e-6, "pixels, such as 1500"),
    "iterations": (1, "1 or more"), "refine": (0, "0 or more")}


class Result(NamedTuple):
    """The mesh of one hand or person, and what to say about it."""

    arrays: dict[str, np.ndarray]  # of `predict`: vertices, joints, K, box, ...
    faces: np.ndarray  # (F, 3), counter-clockwise seen from outside
    notes: list[str]  # to print
    mesh: np.ndarray  # (J, 2) pixels, the mesh's keypoints
    own: np.ndarray | None = None  # (J, 3) where the network sees them: x, y, confidence


class Loaded(NamedTuple):
    """A network, ready for pictures."""

    one: Callable[[np.ndarray, Found, np.ndarray | None], Result]  # of a picture, who is in it, K
    about: str  # what it was trained on
    kind: str = "person"  # or "hand"
    pose: Callable[[dict], dict] | None = None  # see smooth_track
    hands: bool = False  # whether it looks at a person's hands more closely


# --------------------------------------------------------------------------------- arguments


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command, with a part for each network."""
    command = argparse.ArgumentParser("demo.py", description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = command.add_subparsers(dest="network", required=True, metavar="NETWORK")
    for name in LOADERS:
        part = parts.add_parser(name)
        part._negative_number_matcher = re.compile(r"^-[\d.]")  # so that --box may start with -5
        add = part.add_argument
        add("pictures", nargs="*", type=Path, metavar="PICTURE", help="pictures, or folders")
        add("--box", action="append", default=[], metavar="X,Y,W,H", help="upper left corner, "
            "width and height of a hand or person in pixels, rather too large than too small, of a "
            "hand also X,Y,W,H,left; or 'whole'; repeat it for more")
        either = part.add_mutually_exclusive_group().add_argument
        either("--focal", type=float, metavar="PX",
               help="focal length of your camera in pixels, for distances in metres")
        either("--K", metavar="FILE", help="a text file of its 3 x 3 intrinsics instead")
        add("--smooth", type=float, metavar="FPS", help="pictures are a video's frames, FPS a "
            "second: smooth poses and places over time, one shape for each person")
        add("--out", type=Path, default="output", help="folder to write to (default: output)")
        add("--device", default="cuda" if torch.cuda.is_available() else "cpu",
            help="where to compute: cpu, cuda, cuda:1, mps (default: %(default)s)")
        add("--summary", action="store_true", help="print the parameters of every preset instead")
        own_arguments(name, add)
    return command


def own_arguments(network: str, add: Callable) -> None:
    """Add the arguments that only one network has."""
    if network == "simplehand":
        add("--left", action="store_true", help="the hands in the boxes are left ones")
        add("--checkpoint", type=Path, default=ASSETS / "simplehand_views_cpu.pt", metavar="FILE",
            help="train.py's or the authors' (default: assets/simplehand_views_cpu.pt)")
        add("--hand", metavar="FILE", help="MANO_RIGHT.pkl, for checkpoints trained on MANO")
        add("--export", type=Path, metavar="FILE",
            help="write the checkpoint's network for torch.export.load instead")
    elif network == "genhmr":
        add("--checkpoint", type=Path, default=ASSETS / "genhmr_cpu.pt", metavar="FILE",
            help="train.py's, --stage transformer (default: assets/genhmr_cpu.pt)")
        add("--body", metavar="FILE", help="SMPL_NEUTRAL.pkl, for checkpoints trained on SMPL")
        add("--keypoints", metavar="FILE",
            help="2D keypoints to refine on, OpenPose's JSON (default: MediaPipe's)")
        add("--iterations", type=int, default=5, metavar="T", help="of sampling (default: 5)")
        add("--mean-code", action="store_true",
            help="decode the mean code where tokens are masked before the last iteration (ours)")
        add("--refine", type=int, default=50, metavar="P", help="refinement steps (default: 50)")
        add("--fit-camera", action="store_true", help="first fit the camera to the 2D keypoints: "
            "for portraits, where the network's is badly wrong; elsewhere it does not help")
    else:
        add("--hand", type=Path, metavar="FILE", help="the hand path: train.py's --stage hand or "
            "HaMeR's hamer.ckpt")
        add("--body", type=Path, metavar="FILE", help="the body path: train.py's --stage body or "
            "SMPLer-X's smpler_x_h32.pth.tar (default of both: the small ones in assets/)")
        add("--model", metavar="FILE", help="SMPLX_NEUTRAL.npz, or MANO_RIGHT.pkl for hands alone, "
            "for checkpoints trained on them")


def find_device(name: str) -> torch.device:
    """Return the device of a flag --device. Raises ValueError if this machine does not have it."""
    try:
        torch.zeros(1, device=name).item()  # "meta" has no numbers
        return torch.device(name)
    except Exception as error:  # of several types
        reason = first_line(error)
        raise ValueError(f"--device {name}: this machine does not have it ({reason})") from error


def check(arguments: argparse.Namespace, pictures: Sequence[Path]) -> None:
    """Check the flags, read --K and make --out. Raises ValueError that names the flag."""
    for flag, (least, expected) in LEAST.items():
        value = getattr(arguments, flag, None)
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"--{flag} {value}: expected {expected}")
    if arguments.smooth and not arguments.K and len({*map(images.size_of, pictures)} - {None}) > 1:
        raise ValueError("--smooth: the frames have different sizes; a video has one camera")
    if getattr(arguments, "keypoints", None) and len(pictures) > 1:
        raise ValueError("--keypoints: one file is of one picture; give one PICTURE")
    if arguments.K is not None:
        arguments.K = images.read_camera(arguments.K)
    arguments.device = find_device(arguments.device)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {arguments.out}: cannot be made ({error.strerror})") from error


# ------------------------------------------------------------------------------------ papers


def load_simplehand(arguments: argparse.Namespace) -> Loaded:
    """Load SimpleHand, for hands."""
    hand = load_mesh(arguments.hand or "hand_right", 16, "--hand")
    model = weights.simplehand.load_checkpoint(arguments.checkpoint)
    about = trained_on(model, arguments.checkpoint, arguments.hand, "--hand MANO_RIGHT.pkl",
                       "hands", 90)
    model, faces = looking_again(model.fuse()).to(arguments.device), hand.faces.numpy()

    def one(image: np.ndarray, found: Found, K: np.ndarray | None) -> Result:
        sides = ["left", "right"] if found.side == "left" else ["right", "left"]
        both = [simplehand.predict(
            model, image, hand.keypoint_regressor, K=K, box=found.box, side=side)
            for side in sides[:2 if arguments.box or not found.sure else 1]]
        spreads = [each.get("spread_2d", np.zeros(1)).mean() for each in both]
        best = 0 if found.sure else int(np.argmin(spreads))
        arrays, notes = both[best], heat_map_notes(
            sides[best], spreads[best], spreads[1] if arguments.box else None)
        own = None if "spread_2d" in arrays else np.pad(  # with heat maps they always fit
            arrays["keypoints_2d"], ((0, 0), (0, 1)), constant_values=1)
        outward = faces[:, ::1 if arrays["side"] else -1]  # mirrored, they face inwards
        return Result(arrays, outward, notes, project(arrays["joints"], arrays["K"]), own)

    return Loaded(one, about, "hand")


def load_genhmr(arguments: argparse.Namespace) -> Loaded:
    """Load GenHMR, for people."""
    body = load_mesh(arguments.body or "body", 24, "--body").to(arguments.device)
    model = weights.genhmr.load_checkpoint(arguments.checkpoint).to(arguments.device)
    about = trained_on(model, arguments.checkpoint, arguments.body, "--body SMPL_NEUTRAL.pkl")

    def one(image: np.ndarray, found: Found, K: np.ndarray | None) -> Result:
        arrays = genhmr.predict(
            model, body, image, box=found.box, keypoints=found.keypoints,
            iterations=arguments.iterations, mean_code=arguments.mean_code,
            refinement=arguments.refine, fitted_camera=arguments.fit_camera, K=K)
        energies, count = arrays["energies"], int((arrays["confidence"] > 0).sum())
        seen = f"{count} keypoint{'s' * (count != 1)}"
        why = "no --keypoints, and " * (not arguments.keypoints) + found.source
        fitted = (f"fitted to {seen}" if arrays["fitted"] else "not fitted: " + (
            "the keypoints do not determine it" if count else why))
        notes = [f"camera {fitted}"] * arguments.fit_camera
        notes.append(f"not refined: {why if arguments.refine else '--refine 0'}"
                     if len(energies) == 1 else f"refined against {seen} ({found.source}): "
                     f"energy {energies[0]:.3g} -> {energies[-1]:.3g}")
        if energies[-1] > energies[0]:
            notes.append("warning: the refinement raised the energy of the 2D keypoints: give more "
                         f"steps, such as --refine {max(50, 2 * arguments.refine)}")
        own = None  # a ViT has no keypoints
        if isinstance(model.backbone, SmallEncoder):
            corner, side = arrays["box"][:2], arrays["box"][2]
            crop = genhmr.crop_picture(image, corner + side / 2, side, model.config.image_size)
            own = model.backbone.keypoints(crop[None].to(model.mean))[0].cpu().numpy()
            own = own * (side, side, 1) + (*(corner + side / 2), 0)
        return Result(arrays, body.faces.cpu().numpy(), notes, arrays["keypoints_2d"], own)

    def pose(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = (torch.tensor(arrays[name])[None].to(model.mean) for name in ("betas", "pose"))
        posed = genhmr.in_picture(body, *tensors, arrays["transl"], arrays["K"])
        return arrays | {name: np.float32(value) for name, value in posed.items()}

    return Loaded(one, about, pose=pose)


def load_hmr_adapter(arguments: argparse.Namespace) -> Loaded:
    """Load HMR-Adapter's two paths, or one: for people, or for hands without their arms."""
    load = weights.hmr_adapter
    if not arguments.hand and not arguments.body:
        arguments.hand, arguments.body = (ASSETS / f"hmr_adapter_{path}_cpu.pt"
                                          for path in ("hand", "body"))
    if arguments.body:
        mesh = load_mesh(arguments.model or "wholebody", 55, "--model")
        mean = load.hand_mean(arguments.model)
        model = (load.load_paths(arguments.hand, arguments.body, hand_mean=mean) if arguments.hand
                 else load.load_path(hmr_adapter.BodyAdapter, arguments.body, hand_mean=mean))
    else:
        mesh = load_mesh(arguments.model or "hand_right", 16, "--model")
        model = load.load_path(hmr_adapter.HandAdapter, arguments.hand)
    advice = "--model " + ("SMPLX_NEUTRAL.npz" if arguments.body else "MANO_RIGHT.pkl")
    about = [trained_on(getattr(model, path, model), file, arguments.model, advice)
             for path in ("hand", "body") if (file := getattr(arguments, path))]
    model, faces = model.to(arguments.device), mesh.faces.numpy()
    names, positioned = JOINT_SETS["smplx55"], hmr_adapter.POSITIONED
    joints = {row: names.index(name) for row, name in enumerate(JOINT_SETS["smpl45"])
              if name in names}

    def person(image: np.ndarray, found: Found, K: np.ndarray | None) -> Result:
        arrays = hmr_adapter.predict(model, image, mesh, box=found.box, hand_boxes=found.hands, K=K)
        notes = [f"the {side} hand is {'hard to see' if inside else 'outside of the picture'}: its "
                 "pose is the body path's" for side, inside, valid in zip(
                     ("right", "left"), arrays["hand_inside"], arrays["hand_valid"], strict=True)
                 if arguments.hand and not valid]
        notes += found.unchecked
        at = project(arrays["joints"], arrays["K"])
        pixels, own = np.full((45, 2), np.nan, np.float32), np.zeros((45, 3))
        for row, joint in joints.items():
            pixels[row] = at[joint]
            if joint in positioned:
                own[row] = *arrays["keypoints_2d"][positioned.index(joint)], 1
        return Result(arrays, faces, notes, pixels, own)

    def pose(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = ("betas", "rotations", "expression", "transl")
        tensors = [torch.tensor(arrays[name])[None] for name in names]
        posed = mesh(*tensors)._asdict() | hmr_adapter.smplx_parameters(tensors[1])
        return arrays | {name: value[0].numpy() for name, value in posed.items()
                         if name in arrays}

    def hand(image: np.ndarray, found: Found, K: np.ndarray | None) -> Result:
        arrays = hmr_adapter.predict_hand(model, image, mesh, box=found.box, side=found.side, K=K)
        pixels = project(mesh.keypoint_regressor.numpy() @ arrays["vertices"], arrays["K"])
        outward = faces[:, ::-1 if found.side == "left" else 1]
        arrays |= {"root": arrays["joints"][0], "side": np.array(int(found.side == "right"))}
        return Result(arrays, outward, [f"a {found.side} hand", *found.unchecked], pixels)

    if not arguments.body:
        return Loaded(hand, about[-1], "hand", lambda arrays: pose_hand(mesh, arrays))
    return Loaded(person, about[-1], pose=pose, hands=bool(arguments.hand))


LOADERS = {"simplehand": load_simplehand, "genhmr": load_genhmr, "hmr_adapter": load_hmr_adapter}


def load_mesh(source: str, joints: int, flag: str) -> bodymodels.BodyModel:
    """Load a body or hand model, on the CPU. Raises ValueError for one with other joints."""
    model = bodymodels.load_model(source, family="mano" if joints == 16 else None)
    if len(model.parents) != joints:
        raise ValueError(f"{flag} {source}: expected {joints} joints, not {len(model.parents)}")
    return model


# ---------------------------------------------------------------------------------- commands


def reconstruct(arguments: argparse.Namespace) -> int:
    """Reconstruct all in all pictures and write the files; return the exit code.

    A picture that fails is reported on stderr, and the others go on; the exit code is then 2.
    """
    files, failed, written = images.picture_files(arguments.pictures), 0, []
    check(arguments, list(files.values()))
    network = LOADERS[arguments.network](arguments)
    boxes = [finders.parse_box(text, network.kind) for text in arguments.box]
    frames: list[list[Result]] = []
    for name, path in files.items():
        frames.append([])
        try:
            image = images.read_image(path)
            targets = finders.find(network.kind, image, boxes,
                                   getattr(arguments, "keypoints", None), hands=network.hands)
            if getattr(arguments, "left", False):
                targets = [target._replace(side="left", sure=True) for target in targets]
            K = images.camera_of(image, arguments.K, arguments.focal, bool(arguments.smooth))
            results = [reconstruct_one(network, image, target, K) for target in targets]
            if arguments.smooth:
                frames[-1] = results
            else:
                written += write_results(arguments.out / name, image, [
                    (one.arrays, one.faces) for one in results])
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            failed, line = failed + 1, first_line(error)
            start = "" if str(path) in line or len(files) == 1 else f"{path}: "
            print(f"demo.py: {start}{line}", file=sys.stderr)
            continue
        for number, (target, result) in enumerate(zip(targets, results, strict=True), 1):
            start = f"{path.name}: " if len(files) > 1 else ""
            start += f"{network.kind} {number}: " if len(targets) > 1 else ""
            for note in [*result.notes, *finders.warnings(
                    target, image.shape, result.mesh, result.own, MISFITS[arguments.network])]:
                print(start + note, flush=True)
    smooth = smooth_video([[result.arrays for result in results] for results in frames],
                          arguments.smooth or 1, network.pose)
    for (name, path), results, arrays in zip(files.items(), frames, smooth, strict=True):
        if results:
            written += write_results(arguments.out / name, images.read_image(path), [
                (new, one.faces) for one, new in zip(results, arrays, strict=True)])
    if written:
        print(network.about, *[CONVENTIONAL] * (arguments.K is arguments.focal is None), sep="\n")
        print(f"wrote {', '.join([str(written[0]), *(file.name for file in written[1:8])])}"
              + (f" and {len(written) - 8} more files" if len(written) > 8 else ""))
    return 2 if failed else 0


def reconstruct_one(network: Loaded, image: np.ndarray, target: Found, K: np.ndarray | None
                    ) -> Result:
    """Reconstruct a hand or a person; of one whom the picture cuts off also in the whole's box.

    The mesh that fits the given keypoints better is kept.
    """
    image = finders.without_background(image, target.mask)
    found = network.one(image, target, K)
    if target.whole is None:
        return found
    other = network.one(image, target._replace(box=target.whole), K)
    errors = [finders.misfit(one.mesh, target.keypoints, images.LEAST_CONFIDENCE)
              for one in (found, other)]
    return other if None not in errors and errors[1] < errors[0] else found


def summarise(network: str) -> None:
    """Print the number of parameters of each part of each preset."""
    presets, build = {
        "simplehand": (ALL_PRESETS, simplehand_model), "genhmr": (genhmr.PRESETS, build_genhmr),
        "hmr_adapter": (hmr_adapter.PRESETS, build_model)}[network]
    for name, config in presets.items():
        with torch.device("meta"):  # takes no memory
            parameters = dict(build(config).named_parameters())
        counts: Counter[str] = Counter()
        for parameter, value in parameters.items():
            counts[".".join(parameter.split(".")[:-1][:2])] += value.numel()
        print(f"{name:<40}{'parameters':>14}")
        for part, count in [*counts.items(), ("total", counts.total())]:
            print(f"  {part:<38}{count:>14,}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 2 after one line about bad input."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.summary:
            summarise(arguments.network)
        elif getattr(arguments, "export", None):
            model = looking_again(weights.simplehand.load_checkpoint(arguments.checkpoint).fuse())
            difference = fast.export(model, arguments.export)
            print(f"wrote {arguments.export}; read back, it differs by {difference:.0e}")
        else:
            return reconstruct(arguments)
    except (ValueError, OSError) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
