"""How well demo.py warns of 2D errors above 10 %, on rendered hands and people.

The limits are chosen on other renders than those of the table: training images of another seed. A
mesh is bad if its keypoints are further than 10 % of the long side of the tight box from the true
ones, on average: of a hand its 21, of a person shoulders, elbows, wrists, hips, knees and ankles.
"Given" keypoints are the true ones of MediaPipe's set with noise of 2 % of the crop (our choice),
as they judge and refine in the demo.
"""

import argparse

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

import data
import genhmr
import hmr_adapter
import weights.genhmr
import weights.hmr_adapter
import weights.simplehand
from bodymodels import ASSETS, JOINT_SETS, load_model
from networks import finders
from networks.any_view import looking_again
from networks.finders import LIMBS

BAD, NOISE, SEED = 0.1, 0.02, 9
ALL = torch.ones(1, 1)  # all keypoints are valid
Scores = dict[str, tuple[np.ndarray, np.ndarray]]  # what judges -> 2D errors (B,), scores (B,)


def read(dataset: Dataset) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return all samples as a batch, their keypoints (B, J, 2) in 0..1 of the crop, and noisy ones.
    """
    batch = default_collate([dataset[index] for index in range(len(dataset))])
    true = batch["keypoints_2d"] / batch["image"].shape[-1]
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    return batch, true, true + NOISE * noise


def misfits(points: Tensor, rows: Tensor, valid: Tensor = ALL) -> np.ndarray:
    """Return finders.misfit (B,) of points and rows (B, J, 2), of which some are valid (B, J)."""
    rows = torch.cat((rows, valid.expand(rows.shape[:2])[..., None]), 2)
    return np.array([finders.misfit(*one, 1e-6)
                     for one in zip(points.numpy(), rows.numpy(), strict=True)])


def hands(split: str, count: int) -> Scores:
    """Judge SimpleHand on rendered hands of all views."""
    model = looking_again(weights.simplehand.load_checkpoint(
        ASSETS / "simplehand_views_cpu.pt").fuse())
    batch, true, noisy = read(data.RenderedHands(split, model.config.image_size, length=count,
                                                 seed=SEED))
    found = model(batch["image"])
    error = misfits(found["keypoints_2d"], true)  # the demo lays the mesh on them
    return {"simplehand, spread": (error, found["spread_2d"].mean(1).numpy()),
            "simplehand, given": (error, misfits(found["keypoints_2d"], noisy,
                                                 batch["keypoints_valid"]))}


def people(split: str, count: int) -> Scores:
    """Judge GenHMR on rendered people of all headings, unrefined and refined by P = 50 steps."""
    model = weights.genhmr.load_checkpoint(ASSETS / "genhmr_cpu.pt")
    body = load_model("body").for_keypoints()
    batch, true, noisy = read(data.RenderedBodies(split, length=count, seed=SEED, lean=45.0,
                                                  wide=0.5))
    true, noisy, own = true - 0.5, noisy - 0.5, model.backbone.keypoints(batch["image"])
    known = torch.tensor([name in JOINT_SETS["mediapipe33"] for name in JOINT_SETS["smpl45"]])
    seen = batch["keypoints_valid"] * known
    limbs = [JOINT_SETS["smpl45"].index(name) for name in LIMBS]
    sampled, scores = genhmr.sample_from(model, model.encode(batch["image"]), iterations=5), {}
    refined = genhmr.refine(model, sampled.embeddings, sampled.betas, sampled.camera, noisy, seen,
                            lambda betas, pose: body.keypoints(body(betas, pose)), iterations=50)
    for steps in (0, 50):
        points = genhmr.project_to_crop(body.keypoints(body(sampled.betas, refined.poses[steps])),
                                        sampled.camera, model.config.focal)
        error = misfits(points[:, limbs], true[:, limbs])
        scores[f"genhmr, P = {steps}, given"] = error, misfits(points, noisy, seen)
        if steps == 0:
            scores["genhmr, P = 0, own"] = error, misfits(points, own[..., :2], own[..., 2])
    return scores


def whole_bodies(split: str, count: int) -> Scores:
    """Judge HMR-Adapter's body path on rendered people."""
    path = weights.hmr_adapter.load_path(hmr_adapter.BodyAdapter,
                                         ASSETS / "hmr_adapter_body_cpu.pt")
    mesh, config = load_model("wholebody"), path.config.expert
    batch, true, noisy = read(data.RenderedPeople(
        split, length=count, seed=SEED, hand_size=16, views=path.settings.get("views", 180.0)))
    limbs = [JOINT_SETS["smplx76"].index(name) for name in LIMBS]
    found = path(batch["image"])
    posed = mesh(found["betas"], found["body_pose"], found["expression"])
    points = 0.5 + hmr_adapter.project_to_crop(posed.joints, found["translation"],
                                               config.focal)[:, limbs]
    rows, columns = config.grid
    own = 0.5 + (found["joints"][..., :2] - torch.tensor([columns, rows]) / 2) / rows
    place = [hmr_adapter.POSITIONED.index(limb) for limb in limbs]
    error = misfits(points, true[:, limbs])
    return {"hmr_adapter, own": (error, misfits(points, own[:, place])),
            "hmr_adapter, given": (error, misfits(points, noisy[:, limbs],
                                                  batch["keypoints_valid"][:, limbs]))}


def precision_recall(warned: np.ndarray, bad: np.ndarray) -> tuple[float, float]:
    """Return the share of warnings that are right, and the share of bad meshes warned of."""
    right = (warned & bad).sum()
    return right / max(warned.sum(), 1), right / max(bad.sum(), 1)


def best_limit(score: np.ndarray, bad: np.ndarray) -> float:
    """Return the score above which a warning has the best lower one of precision and recall."""
    limits = np.sort(score)
    middles = (limits[1:] + limits[:-1]) / 2
    return max(middles, key=lambda limit: min(precision_recall(score > limit, bad)))


@torch.no_grad()
def run(arguments: argparse.Namespace) -> None:
    count = arguments.count
    print(f"{count} images to choose limits, {count} for the table; bad: 2D error above 10 %\n"
          "| network, judged by | bad | limit | precision | recall |\n|---|---|---|---|---|")
    for measure in (hands, people, whole_bodies):
        chosen, judged = measure("train", count), measure("test", count)
        for name, (error, score) in judged.items():
            limit = best_limit(chosen[name][1], chosen[name][0] > BAD)
            precision, recall = precision_recall(score > limit, error > BAD)
            print(f"| {name} | {(error > BAD).sum()} of {count} | {limit:.3f} | {precision:.2f} | "
                  f"{recall:.2f} |", flush=True)
