"""python genhmr.py: people in photographs, parameters of the presets."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import bodymodels
import genhmr
from commands import pictures
from commands.pictures import Result, Target
from sets import drawing, keypoint_files
from weights.genhmr import load_checkpoint

SHIPPED = bodymodels.ASSETS / "genhmr_cpu.pt"
# Mean distances of mesh and 2D keypoints above which we warn, in sides of the crop (our choice). Of
# 300 fresh pictures of training clips 95 % are nearer to the network's own keypoints than 0.07.
OWN_MISFIT, MISFIT = 0.07, 0.1


def print_summary(as_json: bool) -> None:
    """Print the parameters of every part of every preset. The paper gives no such counts."""
    with torch.device("meta"):  # takes no memory
        counts = {name: genhmr.count_parameters(build_genhmr(config))
                  for name, config in genhmr.PRESETS.items()}
    if as_json:
        print(json.dumps({"parameters": counts}, indent=1))
        return
    print(f"{'parameters':<20}" + "".join(f"{name:>13}" for name in counts))
    for part in counts["paper"]:
        print(f"{part:<20}" + "".join(f"{parts.get(part, 0):>13,}" for parts in counts.values()))


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    command, groups = pictures.parser("genhmr", "person", "the arrays of genhmr.predict",
                                      ", the sampling process (_sampling.png)")
    groups.found.add_argument(
        "--keypoints", metavar="FILE", help="2D keypoints to refine against, OpenPose's or COCO's "
        "JSON; without --box they also say where the person is (default: MediaPipe's)")
    add = groups.model.add_argument
    add("--checkpoint", type=Path, default=SHIPPED, metavar="FILE",
        help="checkpoint of train.py --model genhmr --stage transformer")
    add("--body", default="body", metavar="FILE",
        help="SMPL_NEUTRAL.pkl, for checkpoints trained on SMPL")
    add("--iterations", type=int, default=5, metavar="T", help="iterations of sampling")
    add("--schedule", default="cosine", choices=genhmr.SCHEDULES,
        help="how many tokens are masked after each iteration")
    add("--top-k", type=int, default=1, metavar="K", help="draw each token among its K likeliest")
    add("--refine", type=int, default=10, metavar="P", help="steps of refinement on 2D keypoints")
    add("--fit-camera", action="store_true",
        help="first fit the camera to the 2D keypoints, whatever the network predicts")
    add("--mirror", action="store_true", help="average the pose with that of the mirrored picture; "
        "needs --refine 0")
    add("--step-size", type=float, metavar="ETA",
        help="step size of the refinement (default: that of genhmr.refine)")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return pictures.main(parser(), work, argv)


def work(arguments: argparse.Namespace) -> int:
    """Print the parameters, or reconstruct the people in the pictures."""
    if arguments.summary:
        print_summary(arguments.json)
        return 0
    pictures.prepare(arguments, "person")
    body = bodymodels.load_model(arguments.body).to(arguments.device)
    if len(body.parents) != genhmr.JOINTS:
        raise ValueError(f"--body {arguments.body}: GenHMR needs SMPL's 24 joints, this model has "
                         f"{len(body.parents)}")
    model = load_checkpoint(arguments.checkpoint).to(arguments.device)
    options = {} if arguments.step_size is None else {"step_size": arguments.step_size}

    def one(image: np.ndarray, target: Target, picture: Path) -> Result:
        genhmr.check_picture(image, target.box)
        keypoints, source = find_keypoints(arguments, image, target, picture)
        arrays = genhmr.predict(
            model, body, image, box=target.box, keypoints=keypoints,
            iterations=arguments.iterations, schedule=arguments.schedule, top_k=arguments.top_k,
            refinement=arguments.refine, fitted_camera=arguments.fit_camera,
            mirrored=arguments.mirror, **options)
        sampling = drawing.draw_sampling(arrays, image, body, genhmr.crop_picture)
        notes = [*step_notes(arrays, arguments, source), *fit_notes(arrays, keypoints)]
        return Result(arrays, body.faces.cpu().numpy(), arrays["joints"][0],
                      {"sampling.png": sampling}, notes)

    at_keypoints = (lambda image: [Target()]) if arguments.keypoints else None
    data = pictures.data_of(arguments.checkpoint)
    return pictures.run(arguments, "person", one, trained_on(model.config, data), at_keypoints)


def find_keypoints(arguments: argparse.Namespace, image: np.ndarray, target: Target,
                   picture: Path) -> tuple[np.ndarray | None, str]:
    """Return the person's 2D keypoints (45, 3) and their source, or None and the reason."""
    if target.keypoints is not None:
        return keypoint_files.to_smpl45(target.keypoints), "MediaPipe"
    if arguments.keypoints is None and not arguments.refine and not arguments.fit_camera:
        return None, "--refine 0"
    return keypoint_files.find_person(image, target.box, arguments.keypoints, picture)


def step_notes(arrays: Mapping[str, np.ndarray], arguments: argparse.Namespace,
               source: str) -> list[str]:
    """Say whether the camera was fitted and the pose refined, or why not."""
    energies, count, notes = arrays["energies"], (arrays["confidence"] > 0).sum(), []
    if arguments.fit_camera and arrays["fitted"]:
        notes.append(f"camera fitted to {count} keypoints")
    elif arguments.fit_camera:
        reason = "the keypoints do not determine it" if count else source
        notes.append(f"camera not fitted: {reason}")
    if len(energies) == 1:
        return [*notes, f"not refined: {source if arguments.refine else '--refine 0'}"]
    rose = ", it rose: give a smaller --step-size" if energies[-1] > energies[0] else ""
    return [*notes, f"refined against {count} keypoints ({source}): energy {energies[0]:.3g} -> "
            f"{energies[-1]:.3g} in {len(energies) - 1} steps{rose}"]


def fit_notes(arrays: Mapping[str, np.ndarray], keypoints: np.ndarray | None) -> list[str]:
    """Warn if the mesh does not fit the network's own 2D keypoints, or the ones that are given."""
    mesh, extent, notes = arrays["keypoints_2d"], arrays["box"][2], []
    own = arrays["own_keypoints"]  # none if the encoder is a ViT
    sure = np.flatnonzero(own[:, 2] > 0)
    if len(sure):
        notes += pictures.fit_note(own[sure, :2], mesh[sure], extent, OWN_MISFIT)
    seen = arrays["confidence"] > 0
    if keypoints is not None and seen.any():
        notes += pictures.fit_note(keypoints[seen, :2], mesh[seen], extent, MISFIT,
                                   f"the {seen.sum()} keypoints that are seen")
    return notes


def trained_on(config: genhmr.Config, data: str | None) -> str:
    """Say in one line what a checkpoint has seen, and what to expect of it."""
    if data != "rendered":
        return pictures.trained_on(data)
    views = "from all sides" if config.views >= 180 else (
        f"that face the camera within {config.views:.0f} degrees")
    return (f"trained on rendered bodies {views}: photographs need 2D keypoints and --fit-camera, "
            "and their poses stay rough")
