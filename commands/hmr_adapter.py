"""python hmr_adapter.py: whole bodies and hands in photographs, parameters of the presets."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import bodymodels
import hmr_adapter
from commands import pictures
from commands.pictures import Result, Target
from files import load_arrays
from hmr_adapter import BodyAdapter, HandAdapter, HMRAdapter
from sets.finders import LEAST_CONFIDENCE
from tasks.adapter_rows import PAPER_SAYS, REMARK, baseline, count, count_parameters, on_meta
from weights.hmr_adapter import load_path, load_paths

SMPLX55 = bodymodels.JOINT_SETS["smplx55"]
SHIPPED = {name: bodymodels.ASSETS / f"hmr_adapter_{name}_cpu.pt" for name in ("hand", "body")}
MISFIT = 0.1  # mean distance of mesh and 2D joints above which we warn, in sides of the crop (our
# choice; of twelve rendered test people it is 0.02 to 0.08)


def print_summary(as_json: bool) -> None:
    """Print the parameters of the paper's and the cpu preset by part, and of the tables' rows."""
    presets = {name: count_parameters(hmr_adapter.PRESETS[name])
               for name in ("paper", "cpu")}
    rows = {row: (count(on_meta(baseline(row)), True), says)
            for row, says in PAPER_SAYS.items()}
    if as_json:
        parameters = {name: {part: dict(zip(("all", "trainable"), both, strict=True))
                             for part, both in parts.items()} for name, parts in presets.items()}
        counted = {row: dict(zip(("trainable", "paper"), both, strict=True))
                   for row, both in rows.items()}
        print(json.dumps({"parameters": parameters, "rows": counted, "remark": REMARK}, indent=1))
        return
    for name, parts in presets.items():
        print(f"{name:<34}{'parameters':>14}{'trainable':>14}")
        for part, (number, trainable) in parts.items():
            print(f"  {part:<32}{number:>14,}{trainable:>14,}")
    print(f"\n{'trainable in the tables':<34}{'here':>14}{'paper':>14}")
    for row, (number, says) in rows.items():
        print(f"  {row:<32}{number:>14,}{says:>14}")
    print(f"\n{REMARK}")


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    command, groups = pictures.parser("hmr_adapter", "person", "the arrays of hmr_adapter.predict")
    add = groups.model.add_argument
    add("--hand", type=Path, metavar="FILE", help="the hand path: checkpoint of train.py --stage "
        "hand, or HaMeR's hamer.ckpt; without --body it gives hands, whose boxes are X,Y,W,H or "
        "X,Y,W,H,left (default, without --body: the small one in assets/)")
    add("--body", type=Path, metavar="FILE", help="the body path: checkpoint of train.py --stage "
        "body, or SMPLer-X's smpler_x_h32.pth.tar (default, without --hand: the small one in "
        "assets/)")
    add("--model", metavar="FILE", help="SMPLX_NEUTRAL.npz, or MANO_RIGHT.pkl for hands alone, for "
        "checkpoints trained on them (default: the free body, or hand)")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return pictures.main(parser(), work, argv)


def work(arguments: argparse.Namespace) -> int:
    """Print the parameters, or reconstruct the people or hands in the pictures."""
    if arguments.summary:
        print_summary(arguments.json)
        return 0
    if not arguments.hand and not arguments.body:
        arguments.hand, arguments.body = SHIPPED["hand"], SHIPPED["body"]
    return people(arguments) if arguments.body else hands(arguments)


def people(arguments: argparse.Namespace) -> int:
    """Reconstruct whole bodies, by both paths or the body path alone."""
    pictures.prepare(arguments, "person")
    body = load_mesh_model(arguments.model or "wholebody", 55, "an SMPL-X model")
    mean = hand_mean(arguments.model) if arguments.model else None
    if arguments.hand:
        model = load_paths(arguments.hand, arguments.body, hand_mean=mean)
        paths = {arguments.hand: model.hand, arguments.body: model.body}
    else:
        model = load_path(BodyAdapter, arguments.body, hand_mean=mean)
        paths = {arguments.body: model}
    told = [check_path(path, file, not arguments.model) for file, path in paths.items()]
    model, faces = model.to(arguments.device), body.faces.numpy()

    def one(image: np.ndarray, target: Target, _: Path) -> Result:
        arrays = hmr_adapter.predict(model, image, body, box=target.box)
        return Result(arrays, faces, arrays["joints"][0], notes=body_notes(arrays, model, target))

    return pictures.run(arguments, "person", one, told[-1])


def hands(arguments: argparse.Namespace) -> int:
    """Reconstruct hands alone, by the hand path, which does not know their arms."""
    pictures.prepare(arguments, "hand")
    hand = load_mesh_model(arguments.model or "hand_right", 16, "a hand model")
    model = load_path(HandAdapter, arguments.hand)
    told = check_path(model, arguments.hand, not arguments.model)
    model, faces = model.to(arguments.device), hand.faces.numpy()

    def one(image: np.ndarray, target: Target, _: Path) -> Result:
        arrays = predict_hand(model, image, hand, box=target.box, side=target.side)
        outward = faces[:, ::-1 if target.side == "left" else 1]  # mirrored, they face inwards
        return Result(arrays, outward, arrays["joints"][0],
                      notes=[f"a {target.side} hand", *hand_notes(arrays, hand, target)])

    return pictures.run(arguments, "hand", one, told)


@torch.inference_mode()
def predict_hand(model: HandAdapter, image: np.ndarray, hand: Callable, *,
                 box: Sequence[float] | None = None, side: str = "right") -> dict[str, np.ndarray]:
    """Predict the MANO mesh of one hand in a picture, in camera coordinates; its arm is unknown.

    image: (H, W, 3) uint8 RGB. hand: a right hand's model on the CPU; hand(betas, rotations,
    transl) returns vertices and joints. box: x, y, width, height in pixels, grown to 3:4 and twice
    as large (HaMeR); None: the whole picture. side: a "left" hand is mirrored for the network, and
    its mesh back, so its faces must be reversed.
    Returns float32 arrays: vertices (V, 3), joints (J, 3), metres; K (3, 3); transl (3,); rotations
    (16, 3, 3), the orientation and absolute fingers, of this hand; betas (10,), those of a right
    hand; box, the hand's square. Raises ValueError for bad input.
    """
    hmr_adapter.check_view(model, image)
    if side not in ("right", "left"):
        raise ValueError(f"side {side!r}: expected right or left")
    center, length = hmr_adapter.person_square(image.shape, box)
    length *= 1.0 if box is None else 2.0 / 1.25
    expert = model.config.expert
    crop = hmr_adapter.cut_square(model, image, center, length, expert.image_size, side == "left")
    prediction = {name: value.float().cpu() for name, value in model(crop).items()}
    transl = hmr_adapter.hand_translation(prediction["camera"], expert.focal)
    mesh = hand(prediction["betas"], prediction["hand_pose"], transl=transl)
    found = {"vertices": mesh.vertices, "joints": mesh.joints, "transl": transl}
    pose = prediction["hand_pose"]
    if side == "left":
        pose = hmr_adapter.mirror(pose)
        found = {name: value * value.new_tensor([-1, 1, 1]) for name, value in found.items()}
    found |= {"rotations": pose, "betas": prediction["betas"]}
    return hmr_adapter.to_arrays(found, center, length, expert.focal)


def load_mesh_model(source: str, joints: int, expected: str) -> bodymodels.BodyModel:
    """Load --model, on the CPU. Raises ValueError for one with other joints."""
    model = bodymodels.load_model(source, family="mano" if joints == 16 else None)
    if len(model.parents) != joints:
        raise ValueError(f"--model {source} has {len(model.parents)} joints: expected {expected}, "
                         f"with {joints}")
    return model


def hand_mean(model: str) -> Tensor | None:
    """Read SMPL-X's mean hands (2, 15, 3), [right, left], which SMPLer-X's fingers lack."""
    path = Path(model)
    if path.is_dir():
        path = bodymodels.find_model(path, "smplx", "right", "neutral")
    arrays = load_arrays(path, "hands_") if path.is_file() else {}
    if "hands_meanr" not in arrays:
        return None
    return torch.tensor(np.stack([np.reshape(arrays[f"hands_mean{side}"], (15, 3))
                                  for side in "rl"]), dtype=torch.float32)


def check_path(path: HandAdapter | BodyAdapter, checkpoint: Path, is_free: bool) -> str:
    """Say what a path was trained on; ValueError unless the mesh model is that of its training.

    train.py writes the kind of its data into a checkpoint; released weights have seen the official
    models.
    """
    data, hand = pictures.data_of(checkpoint), isinstance(path, HandAdapter)
    official = "MANO" if hand else "SMPL-X"
    if not is_free and data == "rendered":
        raise ValueError(f"{checkpoint} was trained on the free {'hand' if hand else 'body'}, "
                         f"whose shapes {official} does not have: leave out --model")
    if is_free and data not in ("unknown data", "rendered"):
        file = "MANO_RIGHT.pkl or, with --body, SMPLX_NEUTRAL.npz" if hand else "SMPLX_NEUTRAL.npz"
        raise ValueError(f"{checkpoint} was trained on {official}, whose shapes the free model "
                         f"does not have: add --model {file}")
    if data != "rendered":
        return pictures.trained_on(data)
    return ("trained on rendered people only, who face the camera within "
            f"{path.config.views:.0f} degrees: expect rough poses in photographs")


def hand_notes(arrays: Mapping[str, np.ndarray], hand: bodymodels.BodyModel,
               target: Target) -> list[str]:
    """Warn if the mesh does not fit MediaPipe's 2D keypoints, the 21 in our order."""
    if target.keypoints is None:
        return []
    pixels = hand.keypoint_regressor.numpy() @ arrays["vertices"] @ arrays["K"].T
    return pictures.fit_note(target.keypoints[:, :2], pixels[:, :2] / pixels[:, 2:],
                             max(target.box[2:]), MISFIT, "MediaPipe's 2D keypoints")


def body_notes(arrays: Mapping[str, np.ndarray], model: HMRAdapter | BodyAdapter,
               target: Target) -> list[str]:
    """Say which hands are the body path's; warn if the mesh does not fit the person's 2D joints.

    2D joints: those of the body expert and, where they are seen, MediaPipe's.
    """
    hands = zip(("right", "left"), arrays["hand_inside"], arrays["hand_valid"], strict=True)
    reasons = ("outside of the picture", "hard to see")
    notes = [f"the {side} hand is {reasons[int(inside)]}: its pose is the body path's"
             for side, inside, valid in hands if not valid and isinstance(model, HMRAdapter)]
    pixels = arrays["joints"][:55] @ arrays["K"].T
    mesh, extent = pixels[:, :2] / pixels[:, 2:], arrays["box"][2]
    rows = [row for row, joint in enumerate(hmr_adapter.POSITIONED) if joint < 55]  # in the mesh
    own = [hmr_adapter.POSITIONED[row] for row in rows]
    notes += pictures.fit_note(arrays["keypoints_2d"][rows], mesh[own], extent, MISFIT)
    if target.keypoints is None:
        return notes
    names = bodymodels.JOINT_SETS["mediapipe33"]
    seen = [(row, SMPLX55.index(name)) for row, name in enumerate(names)
            if name in SMPLX55 and target.keypoints[row, 2] >= LEAST_CONFIDENCE]
    if seen:
        rows, joints = map(list, zip(*seen, strict=True))
        notes += pictures.fit_note(target.keypoints[rows, :2], mesh[joints], extent, MISFIT,
                                   "MediaPipe's 2D keypoints")
    return notes
