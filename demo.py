"""Meshes of the hands or people in your pictures.

    python demo.py simplehand PICTURE ...     hands
    python demo.py genhmr PICTURE ...         people
    python demo.py hmr_adapter PICTURE ...    people with their hands; with --hand FILE alone: hands

A PICTURE is a file or a folder of files. MediaPipe, if it is installed, finds who is in it; --box
says it in pixels. Each picture gets its meshes over it (_overlay.png) and from the side
(_side.png), each mesh as a file (.obj, .ply, .glb: metres, y up) and as arrays (.npz: what
`predict` of the paper's file returns). `python demo.py simplehand --help` lists all flags.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

import bodymodels
import genhmr
import hmr_adapter
import simplehand
import weights.files
import weights.genhmr
import weights.hmr_adapter
import weights.simplehand
from bodymodels import ASSETS, JOINT_SETS
from networks import fast, finders
from networks.adapter_rivals import build_model
from networks.any_view import looking_again
from networks.backbones import ALL_PRESETS, simplehand_model
from networks.finders import Found
from networks.small_encoder import SmallEncoder, build_genhmr
from sets.images import LEAST_CONFIDENCE, picture_files, read_image

OPACITY, GREY = 0.8, 128  # of meshes in the overlay; of what MediaPipe's mask hides (our choices)
TINY, LARGEST = 32, 2000  # pixels: a box too small to see a pose; longer side of an overlay (ours)
# We warn of meshes whose mean distance from 2D keypoints is larger, in sides of the crop: those of
# a file or MediaPipe; without any, the network's own (of 300 rendered hands or bodies 95 % are
# nearer). We warn of heat maps wider than SPREAD, see RESULTS.md, and suggest the other side where
# the mirrored hand's are narrower by the factor SURER (our choices).
MISFIT, SPREAD, SURER = 0.1, 0.1, 0.8
OWN_MISFIT = {"simplehand": 0.06, "genhmr": 0.07, "hmr_adapter": 0.1}


class Result(NamedTuple):
    """The mesh of one hand or person, and what to say about it."""

    arrays: dict[str, np.ndarray]  # of `predict`: vertices, joints, K, box, ...
    faces: np.ndarray  # (F, 3), counter-clockwise seen from outside
    notes: list[str]  # to print
    mesh: np.ndarray  # (J, 2) pixels, the mesh's keypoints
    own: np.ndarray | None = None  # (J, 3) where the network sees them: x, y, confidence


# A function from a picture, a hand or person in it and the camera's K; the network; about it
Loaded = tuple[Callable[[np.ndarray, Found, np.ndarray | None], Result], nn.Module, str]

# --------------------------------------------------------------------------------- arguments


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command, which has a part of its own for each network."""
    command = argparse.ArgumentParser("demo.py", description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = command.add_subparsers(dest="network", required=True, metavar="NETWORK")
    for name in LOADERS:
        part = parts.add_parser(name)
        part._negative_number_matcher = re.compile(r"^-[\d.]")  # so that --box may start with -5
        add = part.add_argument
        add("pictures", nargs="*", type=Path, metavar="PICTURE", help="pictures, or folders")
        add("--box", action="append", default=[], metavar="X,Y,W,H", help="upper left corner, "
            "width and height of a hand or person in pixels, of a hand also X,Y,W,H,left; or "
            "'whole'; repeat it for more")
        add("--focal", type=float, metavar="PX",
            help="focal length of your camera in pixels, for distances in metres")
        add("--K", type=Path, metavar="FILE", help="a text file of its 3 x 3 intrinsics instead")
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
        add("--export", type=Path, metavar="FILE", help="write the checkpoint's network for "
            "torch.export.load instead, or as FILE.onnx")
    elif network == "genhmr":
        add("--checkpoint", type=Path, default=ASSETS / "genhmr_cpu.pt", metavar="FILE",
            help="train.py's, --stage transformer (default: assets/genhmr_cpu.pt)")
        add("--body", metavar="FILE", help="SMPL_NEUTRAL.pkl, for checkpoints trained on SMPL")
        add("--keypoints", metavar="FILE", help="2D keypoints to refine on and to find the person "
            "by, OpenPose's or COCO's JSON (default: MediaPipe's)")
        add("--iterations", type=int, default=5, metavar="T", help="of sampling (default: 5)")
        add("--mean-code", action="store_true", help="decode the mean code of each place, not the "
            "likeliest: a better single answer (ours)")
        add("--refine", type=int, default=10, metavar="P", help="refinement steps (default: 10)")
        add("--fit-camera", action="store_true", help="first fit the camera to the 2D keypoints: "
            "helps where the network's is badly wrong")
    else:
        add("--hand", type=Path, metavar="FILE", help="the hand path: train.py's --stage hand or "
            "HaMeR's hamer.ckpt")
        add("--body", type=Path, metavar="FILE", help="the body path: train.py's --stage body or "
            "SMPLer-X's smpler_x_h32.pth.tar (default of both: the small ones in assets/)")
        add("--model", metavar="FILE", help="SMPLX_NEUTRAL.npz, or MANO_RIGHT.pkl for hands alone, "
            "for checkpoints trained on them")


def find_device(name: str) -> torch.device:
    """Return the device of --device. Raises ValueError if this machine does not have it."""
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: {finders.short(error)}; expected cpu, or the name of a "
                         "device that this machine has") from error


def camera(arguments: argparse.Namespace, image: np.ndarray) -> np.ndarray | None:
    """Return K (3, 3) of --focal or --K, None without them. Raises ValueError for no such K."""
    if arguments.K is None and arguments.focal is None:
        return None
    (height, width), f = image.shape[:2], arguments.focal
    return simplehand.check_view(image, None, "right", np.loadtxt(arguments.K) if arguments.K else
                                 np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]]))[1]


# ------------------------------------------------------------------------------------ papers


def load_simplehand(arguments: argparse.Namespace) -> Loaded:
    """Load SimpleHand, for hands."""
    hand = load_mesh(arguments.hand or "hand_right", 16, "--hand")
    model = weights.simplehand.load_checkpoint(arguments.checkpoint)
    views = model.settings.get("views", 90.0)
    about = trained_on(arguments.checkpoint, arguments.hand, "--hand MANO_RIGHT.pkl", "hands " + (
        "from all sides" if views >= 90 else
        f"whose palm or back faces the camera within {views:.0f} degrees"))
    model, faces = looking_again(model.fuse()).to(arguments.device), hand.faces.numpy()

    def one(image: np.ndarray, found: Found, K: np.ndarray | None) -> Result:
        sides = ("left", "right") if found.side == "left" else ("right", "left")
        arrays, *mirrored = (simplehand.predict(
            model, image, hand.keypoint_regressor, K=K, box=found.box, side=side)
            for side in sides[:1 + bool(arguments.box)])  # MediaPipe tells the side itself
        notes = [f"a {sides[0]} hand" if not arguments.box or sides[0] == "left" else
                 "taken for a right hand; for a left one add --left"]
        own = None  # a network with heat maps lays its mesh on its own keypoints, right or wrong
        if "spread_2d" in arrays:
            spread = arrays["spread_2d"].mean()
            if mirrored and mirrored[0]["spread_2d"].mean() < SURER * spread:
                notes.append("warning: it looks more like a " + (
                    "left hand: add --left" if arrays["side"] else "right hand: leave out left"))
            if spread > SPREAD:
                notes.append("warning: the network is not sure where the keypoints are (its heat "
                             f"maps spread over {100 * spread:.0f} % of the box): do not trust "
                             "this result")
        else:
            own = np.pad(arrays["keypoints_2d"], ((0, 0), (0, 1)), constant_values=1)
        outward = faces[:, ::1 if arrays["side"] else -1]  # mirrored, they face inwards
        return Result(arrays, outward, notes, project(arrays["joints"], arrays["K"]), own)

    return one, model, about


def load_genhmr(arguments: argparse.Namespace) -> Loaded:
    """Load GenHMR, for people."""
    body = load_mesh(arguments.body or "body", 24, "--body").to(arguments.device)
    model = weights.genhmr.load_checkpoint(arguments.checkpoint).to(arguments.device)
    about = trained_on(arguments.checkpoint, arguments.body, "--body SMPL_NEUTRAL.pkl",
                       facing(model))

    def one(image: np.ndarray, found: Found, K: np.ndarray | None) -> Result:
        arrays = genhmr.predict(
            model, body, image, box=found.box, keypoints=found.keypoints,
            iterations=arguments.iterations, mean_code=arguments.mean_code,
            refinement=arguments.refine, fitted_camera=arguments.fit_camera)
        energies, count = arrays["energies"], (arrays["confidence"] > 0).sum()
        fitted = (f"fitted to {count} keypoints" if arrays["fitted"] else "not fitted: " + (
            "the keypoints do not determine it" if count else found.source))
        notes = [f"camera {fitted}"] * arguments.fit_camera
        notes.append(f"not refined: {found.source if arguments.refine else '--refine 0'}"
                     if len(energies) == 1 else f"refined against {count} keypoints "
                     f"({found.source}): energy {energies[0]:.3g} -> {energies[-1]:.3g}")
        own = None  # a ViT has no keypoints
        if isinstance(model.backbone, SmallEncoder):
            corner, side = arrays["box"][:2], arrays["box"][2]
            crop = genhmr.crop_picture(image, corner + side / 2, side, model.config.image_size)
            own = model.backbone.keypoints(crop[None].to(model.mean))[0].cpu().numpy()
            own = own * (side, side, 1) + (*(corner + side / 2), 0)
        return Result(in_camera(arrays, K), body.faces.cpu().numpy(), notes,
                      arrays["keypoints_2d"], own)

    return one, model, about


def load_hmr_adapter(arguments: argparse.Namespace) -> Loaded:
    """Load HMR-Adapter's two paths, or one: for people, or for hands without their arms."""
    load = weights.hmr_adapter
    if not arguments.hand and not arguments.body:
        arguments.hand, arguments.body = (ASSETS / f"hmr_adapter_{path}_cpu.pt"
                                          for path in ("hand", "body"))
    if arguments.body:
        mesh = load_mesh(arguments.model or "wholebody", 55, "--model")
        mean = {"hand_mean": load.hand_mean(arguments.model)} if arguments.model else {}
        model = (load.load_paths(arguments.hand, arguments.body, **mean) if arguments.hand else
                 load.load_path(hmr_adapter.BodyAdapter, arguments.body, **mean))
    else:
        mesh = load_mesh(arguments.model or "hand_right", 16, "--model")
        model = load.load_path(hmr_adapter.HandAdapter, arguments.hand)
    advice = "--model " + ("SMPLX_NEUTRAL.npz" if arguments.body else "MANO_RIGHT.pkl")
    what = facing(model)
    about = [trained_on(file, arguments.model, advice, what)
             for file in (arguments.hand, arguments.body) if file]
    model, faces = model.to(arguments.device), mesh.faces.numpy()
    joints = [JOINT_SETS["smplx55"].index(name) if name in JOINT_SETS["smplx55"] else -1
              for name in JOINT_SETS["smpl45"]]

    def person(image: np.ndarray, found: Found, K: np.ndarray | None) -> Result:
        arrays = hmr_adapter.predict(model, image, mesh, box=found.box)
        notes = [f"the {side} hand is {'hard to see' if inside else 'outside of the picture'}: its "
                 "pose is the body path's" for side, inside, valid in zip(
                     ("right", "left"), arrays["hand_inside"], arrays["hand_valid"], strict=True)
                 if arguments.hand and not valid]
        if found.keypoints is None:
            notes.append(f"not checked: {found.source}")
        pixels, own = project(arrays["joints"], arrays["K"])[joints], np.zeros((56, 3))
        pixels[np.array(joints) < 0] = np.nan  # SMPL's other keypoints
        for row, joint in enumerate(hmr_adapter.POSITIONED):
            own[min(joint, 55)] = *arrays["keypoints_2d"][row], joint < 55
        return Result(in_camera(arrays, K), faces, notes, pixels, own[joints])

    def hand(image: np.ndarray, found: Found, K: np.ndarray | None) -> Result:
        arrays = predict_hand(model, image, mesh, box=found.box, side=found.side)
        pixels = project(mesh.keypoint_regressor.numpy() @ arrays["vertices"], arrays["K"])
        outward = faces[:, ::-1 if found.side == "left" else 1]
        return Result(in_camera(arrays, K), outward, [f"a {found.side} hand"], pixels)

    return person if arguments.body else hand, model, about[-1]


LOADERS = {"simplehand": load_simplehand, "genhmr": load_genhmr, "hmr_adapter": load_hmr_adapter}


@torch.inference_mode()
def predict_hand(model: hmr_adapter.HandAdapter, image: np.ndarray, hand: Callable, *,
                 box: Sequence[float] | None = None, side: str = "right") -> dict[str, np.ndarray]:
    """Predict the MANO mesh of one hand in a picture, in camera coordinates; its arm is unknown.

    hand: a right hand's model on the CPU. box: x, y, width, height in pixels, grown to 3:4 and
    twice as large (HaMeR); None: the whole picture. side: a "left" hand is mirrored for the
    network, and its mesh back. Returns float32 arrays as hmr_adapter.predict's vertices, joints,
    transl, rotations (16, 3, 3), K and box; and betas, of a right hand.
    """
    hmr_adapter.check_view(model, image)
    center, length = hmr_adapter.person_square(image.shape, box)
    length *= 1.0 if box is None else 2.0 / 1.25
    expert, left = model.config.expert, side == "left"
    crop = hmr_adapter.cut_square(model, image, center, length, expert.image_size, left)
    prediction = {name: value.float().cpu() for name, value in model(crop).items()}
    transl = hmr_adapter.hand_translation(prediction["camera"], expert.focal)
    betas, pose = prediction["betas"], prediction["hand_pose"]
    posed, mirror = hand(betas, pose, transl=transl), transl.new_tensor([-1 if left else 1, 1, 1])
    return hmr_adapter.to_arrays({
        "vertices": mirror * posed.vertices, "joints": mirror * posed.joints,
        "transl": mirror * transl, "rotations": hmr_adapter.mirror(pose) if left else pose,
        "betas": betas}, center, length, expert.focal)


def load_mesh(source: str, joints: int, flag: str) -> bodymodels.BodyModel:
    """Load a body or hand model, on the CPU. Raises ValueError for one with other joints."""
    model = bodymodels.load_model(source, family="mano" if joints == 16 else None)
    if len(model.parents) != joints:
        raise ValueError(f"{flag} {source} has {len(model.parents)} joints: expected {joints} "
                         f"joints, as {dict([(16, 'MANO'), (24, 'SMPL'), (55, 'SMPL-X')])[joints]}")
    return model


def trained_on(checkpoint: Path, given: str | None, advice: str, what: str) -> str:
    """Say what a checkpoint has seen; ValueError unless the mesh model is that of its training.

    given: the mesh model's file, None for the free one. train.py writes the kind of its data into a
    checkpoint; the authors' weights have seen the official models.
    """
    data = weights.files.read_data_name(checkpoint)
    if given and data == "rendered":
        raise ValueError(f"{checkpoint} was trained on the free model, whose shapes the official "
                         f"one does not have: leave out {advice.split()[0]}")
    if not given and data not in ("unknown data", "rendered"):
        raise ValueError(f"{checkpoint} was trained on the official model, whose shapes the free "
                         f"one does not have: add {advice}")
    if data == "rendered":
        return f"trained on rendered {what}: expect rough meshes in photographs"
    return f"trained on {data}" if data else "weights of the authors, as they are"


def largest_heading(model: nn.Module) -> float:
    """Return how far people turned away from the camera in training, in degrees."""
    return getattr(getattr(model, "body", model), "settings", {}).get("views", 180.0)


def facing(model: nn.Module) -> str:
    """Say which people a network has seen."""
    heading = largest_heading(model)
    return ("people of all headings" if heading >= 180 else
            f"people within {heading:.0f} degrees of the camera")


# ------------------------------------------------------------------------------------- notes


def box_notes(box: Sequence[float] | None, shape: Sequence[int]) -> list[str]:
    """Warn of a box that is tiny, or mostly outside of a picture of (height, width)."""
    if box is None:
        return []
    x, y, w, h = box
    inside = np.minimum((x + w, y + h), shape[1::-1]) - np.maximum((x, y), 0)
    part = inside.clip(0).prod() / (w * h)
    tiny = f"warning: the box is only {w:.0f} x {h:.0f} px, too small to show a pose"
    outside = f"warning: only {100 * part:.0f} % of the box x,y,width,height is inside the picture"
    return [tiny] * (max(w, h) < TINY) + [outside] * bool(part < 0.5)


def fit_notes(result: Result, found: Found, limit: float) -> list[str]:
    """Warn of a mesh that does not fit the given 2D keypoints or, without any, the network's own.

    limit: largest mean distance from its own, in sides of the crop, a quarter more than the box.
    """
    for rows, least, most, whose in (
            (found.keypoints, LEAST_CONFIDENCE, MISFIT, f"({found.source})"),
            (result.own, 1e-6, limit, "of the network")):
        if rows is None:
            continue
        sure = (rows[:, 2] >= least) & np.isfinite(result.mesh).all(1)
        if sure.any():
            distance = np.linalg.norm(rows[sure, :2] - result.mesh[sure], axis=1).mean()
            distance /= 1.25 * max(found.box[2:]) if found.box else max(result.arrays["box"][2:])
            return [f"warning: the mesh does not fit the 2D keypoints {whose}: they are "
                    f"{100 * distance:.0f} % of the crop apart on average; do not trust this result"
                    ] * bool(distance > most)
    return []


def without_background(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Make everything but the person grey: networks see limbs in real backgrounds."""
    if mask is None:
        return image
    return np.uint8(np.rint(image * mask[..., None] + GREY * (1 - mask[..., None])))


# ---------------------------------------------------------------------------------- pictures


def project(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Project points (N, 3) in the camera's frame to pixels (N, 2)."""
    pixels = points @ K.T
    return pixels[:, :2] / pixels[:, 2:]


def in_camera(arrays: dict[str, np.ndarray], K: np.ndarray | None) -> dict[str, np.ndarray]:
    """Move the mesh of a conventional camera before K, where its joints keep their pixels."""
    if K is None:
        return arrays
    joints, start = arrays["joints"].astype(float), arrays["transl"].astype(float)
    shift = simplehand.fit_translation(joints - start, project(joints, arrays["K"]), K) - start
    return arrays | {name: (arrays[name] + shift).astype(np.float32) for name in (
        "vertices", "joints", "keypoints_3d", "transl") if name in arrays} | {"K": np.float32(K)}


def overlay(image: np.ndarray, results: Sequence[Result]) -> np.ndarray:
    """Draw meshes over a picture (H, W, 3) uint8, the far ones first -> floats 0..1.

    A huge picture is scaled down to LARGEST pixels.
    """
    scale = min(1.0, LARGEST / max(image.shape[:2]))
    if scale < 1:
        size = [max(round(scale * side), 1) for side in image.shape[1::-1]]
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    canvas = image.astype(np.float32) / 255
    for result in sorted(results, key=lambda one: -one.arrays["vertices"][:, 2].mean()):
        drawn = bodymodels.render(result.arrays["vertices"], result.faces,
                                  np.diag([scale, scale, 1]) @ result.arrays["K"],
                                  image.shape[:2], background=canvas, supersample=2).image
        canvas = OPACITY * drawn + (1 - OPACITY) * canvas
    return canvas


def from_the_side(result: Result, side: int = 384) -> np.ndarray:
    """Draw a mesh as seen from the left of the picture, (side, side, 3) floats 0..1."""
    vertices = result.arrays["vertices"]
    x, y, z = (vertices - (vertices.min(0) + vertices.max(0)) / 2).T
    distance = 4 * np.sqrt(x**2 + y**2 + z**2).max()
    K = np.array([[1.7 * side, 0, side / 2], [0, 1.7 * side, side / 2], [0, 0, 1]])
    return bodymodels.render(np.stack((-z, y, x + distance), 1), result.faces, K, (side, side),
                             supersample=2).image


def png(image: np.ndarray) -> bytes:
    """Encode an image (H, W, 3) of floats 0..1 as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(np.uint8(np.rint(255 * np.clip(image, 0, 1)))).save(content, "PNG")
    return content.getvalue()


def write_results(base: Path, image: np.ndarray, results: Sequence[Result]) -> list[Path]:
    """Write the overlay and side view of all results of a picture, each one's mesh and arrays.

    base: start of the files' names; a number follows if there are several results. Everything is
    computed before the first file is written, and each file is replaced as a whole.
    """
    contents = {"_overlay.png": png(overlay(image, results)),
                "_side.png": png(np.concatenate([from_the_side(one) for one in results], 1))}
    meshes = {}
    for number, (arrays, faces, *_) in enumerate(results, 1):
        start, file = f"_{number}" if len(results) > 1 else "", io.BytesIO()
        np.savez_compressed(file, faces=faces, **arrays)
        contents[f"{start}.npz"] = file.getvalue()
        upright = (arrays["vertices"] - arrays.get("root", arrays["joints"][0])) * (1, -1, -1)
        meshes |= {f"{start}.{ending}": (upright, faces) for ending in ("obj", "ply", "glb")}
    for name, content in contents.items():
        bodymodels.write_atomically(f"{base}{name}", content)
    for name, mesh in meshes.items():
        bodymodels.save_mesh(f"{base}{name}", *mesh)
    return [Path(f"{base}{name}") for name in (*contents, *meshes)]


# ---------------------------------------------------------------------------------- commands


def reconstruct(arguments: argparse.Namespace) -> int:
    """Reconstruct all hands or people in all pictures and write the files; return the exit code.

    A picture that fails is reported on stderr, and the others go on; the exit code is then 2.
    """
    alone = arguments.network == "hmr_adapter" and arguments.hand and not arguments.body
    kind = "hand" if alone or arguments.network == "simplehand" else "person"
    boxes = [finders.parse_box(text, kind) for text in arguments.box]
    if getattr(arguments, "left", False):
        boxes = [box._replace(side="left") for box in boxes]
    files, failed, written = picture_files(arguments.pictures), 0, []
    arguments.device = find_device(arguments.device)
    one, model, about = LOADERS[arguments.network](arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        try:
            image = read_image(path)
            targets = finders.find(kind, image, boxes, getattr(arguments, "keypoints", None), path)
            K = camera(arguments, image)
            results = [one(without_background(image, target.mask), target, K)
                       for target in targets]
            written += write_results(arguments.out / name, image, results)
        except (ValueError, OSError) as error:
            failed += 1
            start = "" if str(path) in str(error) or len(files) == 1 else f"{path}: "
            print(f"demo.py: {start}{error}", file=sys.stderr)
            continue
        for number, (target, result) in enumerate(zip(targets, results, strict=True), 1):
            notes = [*box_notes(target.box, image.shape), *result.notes,
                     *fit_notes(result, target, OWN_MISFIT[arguments.network])]
            if kind == "person" and largest_heading(model) < 120 and finders.from_behind(
                    target.keypoints):
                notes.append("warning: this person is seen from behind, as nobody in training was: "
                             "do not trust this result")
            start = f"{path.name}: " if len(files) > 1 else ""
            start += f"{kind} {number}: " if len(targets) > 1 else ""
            print("\n".join(start + note for note in notes), flush=True)
    if written:
        print(about)
        if arguments.K is None and arguments.focal is None:
            print("distances are conventional: for metres give your camera, --focal PX or --K FILE")
        print(f"wrote {', '.join([str(written[0]), *(file.name for file in written[1:8])])}"
              + (f" and {len(written) - 8} more files" if len(written) > 8 else ""))
    return 2 if failed else 0


def summarise(network: str) -> None:
    """Print the number of parameters of each part of each preset."""
    presets, build = {
        "simplehand": (ALL_PRESETS, simplehand_model), "genhmr": (genhmr.PRESETS, build_genhmr),
        "hmr_adapter": (hmr_adapter.PRESETS, build_model)}[network]
    for name, config in presets.items():
        with torch.device("meta"):  # takes no memory
            model = build(config)
        counts: Counter[str] = Counter()
        for parameter, value in model.named_parameters():
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
