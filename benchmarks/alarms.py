"""How well demo.py warns of 2D errors above 10 %, and what GenHMR's refinement gains.

On rendered hands and people. The limits are chosen on other renders than those of the table:
training images of another seed. A mesh is bad if its keypoints are further than 10 % of the long
side of the tight box from the true ones, on average: of a hand its 21, of a person shoulders,
elbows, wrists, hips, knees and ankles. "Given" keypoints are the true ones of MediaPipe's set with
noise of 2 % of the crop (our choice), as they judge and refine in the demo.
"""

import argparse

import numpy as np
import torch
from torch import Tensor

import data
import demo
import genhmr
import hmr_adapter
import weights.genhmr
import weights.hmr_adapter
import weights.simplehand
from bodymodels import ASSETS, JOINT_SETS, load_model
from metrics import procrustes_align
from networks import finders
from networks.any_view import looking_again
from networks.finders import LIMBS

BAD, NOISE, SEED = 0.1, 0.02, 9
Scores = dict[str, np.ndarray]


def batch_of(dataset: torch.utils.data.Dataset) -> dict[str, Tensor]:
    """Return all samples of a data set as one batch."""
    samples = [dataset[index] for index in range(len(dataset))]
    return {name: torch.stack([torch.as_tensor(one[name]) for one in samples])
            for name in samples[0]}


def error_2d(points: Tensor, true: Tensor) -> np.ndarray:
    """Return mean distances of points (B, J, 2) in sides of the true ones' tight boxes (B,)."""
    side = (true.amax(1) - true.amin(1)).amax(1)
    return ((points - true).norm(dim=2).mean(1) / side).numpy()


def misfits(points: Tensor, rows: Tensor, valid: Tensor) -> np.ndarray:
    """Return finders.misfit of points (B, J, 2) and valid rows (B, J, 2), as the demo has it (B,).

    All networks have joints of smpl45 or, of hands, 21.
    """
    return np.array([finders.misfit(one.numpy(), torch.cat((row, sure[:, None]), 1).numpy(), 1e-6)
                     for one, row, sure in zip(points, rows, valid.expand(rows.shape[:2]),
                                               strict=True)])


@torch.no_grad()
def hands(split: str, count: int) -> tuple[dict[str, np.ndarray], Scores]:
    """Return SimpleHand's errors and scores of rendered hands of all views."""
    model = looking_again(weights.simplehand.load_checkpoint(
        ASSETS / "simplehand_views_cpu.pt").fuse())
    batch = batch_of(data.RenderedHands(split, model.config.image_size, length=count,
                                       seed=SEED))
    true = batch["keypoints_2d"] / batch["image"].shape[-1]
    found = model(batch["image"])
    noisy = true + NOISE * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    points = found["keypoints_2d"]  # the demo lays the mesh on them
    return {"simplehand": error_2d(points, true)}, {
        "simplehand, spread": found["spread_2d"].mean(1).numpy(),
        "simplehand, given": misfits(points, noisy, batch["keypoints_valid"])}


@torch.no_grad()
def people(split: str, count: int) -> tuple[dict[str, np.ndarray], Scores]:
    """Return GenHMR's errors and scores of rendered people of all headings; print P's errors."""
    model, body = weights.genhmr.load_checkpoint(ASSETS / "genhmr_cpu.pt"), load_model("body")
    batch = batch_of(data.RenderedBodies(split, length=count, seed=SEED, lean=45.0, wide=0.5))
    true = batch["keypoints_2d"] / batch["image"].shape[-1] - 0.5
    noisy = true + NOISE * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    known = torch.tensor([name in JOINT_SETS["mediapipe33"] for name in JOINT_SETS["smpl45"]])
    seen = batch["keypoints_valid"] * known
    limbs = [JOINT_SETS["smpl45"].index(name) for name in LIMBS]
    sampled = genhmr.sample(model, batch["image"], iterations=5)
    errors, scores = {}, {}
    for fitted in (False, True):
        camera, refined = genhmr.follow_keypoints(
            model, body, sampled, noisy, seen, iterations=50, fitted_camera=fitted)
        for steps in (0, 10, 20, 50):
            posed = body(sampled.betas, refined.poses[steps])
            points = genhmr.project_to_crop(body.keypoints(posed), camera, model.config.focal)
            name = f"genhmr, P = {steps}" + " after fit_camera" * fitted
            errors[name] = error_2d(points[:, limbs], true[:, limbs])
            scores[f"{name}, given"] = misfits(points, noisy, seen)
            joints = [x - x[:, :1] for x in (posed.joints, batch["keypoints_3d"][:, :24])]
            mean = [1000 * (x - joints[1]).norm(dim=2).mean().item() for x in (
                joints[0], procrustes_align(*joints))]
            print(f"{split} {name}: 2D {100 * errors[name].mean():.1f} %, MPJPE {mean[0]:.1f} mm, "
                  f"PA-MPJPE {mean[1]:.1f}", flush=True)
            if steps == 0 and not fitted:
                own = model.backbone.keypoints(batch["image"])
                scores[f"{name}, own"] = misfits(points, own[..., :2], own[..., 2])
    return errors, scores


@torch.no_grad()
def whole_bodies(split: str, count: int) -> tuple[dict[str, np.ndarray], Scores]:
    """Return HMR-Adapter's errors and scores of rendered people, by its body path."""
    path = weights.hmr_adapter.load_path(hmr_adapter.BodyAdapter,
                                         ASSETS / "hmr_adapter_body_cpu.pt")
    mesh, config = load_model("wholebody"), path.config.expert
    batch = batch_of(data.RenderedPeople(split, length=count, seed=SEED, hand_size=16,
                                         views=demo.largest_heading(path)))
    size, names = batch["image"].shape[-1], JOINT_SETS["smplx76"]
    true = batch["keypoints_2d"] / size - 0.5
    found = path(batch["image"])
    posed = mesh(found["betas"], found["body_pose"], found["expression"])
    points = hmr_adapter.project_to_crop(posed.joints, found["translation"], config.focal)
    rows, columns = config.grid
    own = (found["joints"][..., :2] - torch.tensor([columns, rows]) / 2) / rows
    noisy = true + NOISE * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    limbs = [names.index(name) for name in LIMBS]
    place = [hmr_adapter.POSITIONED.index(limb) for limb in limbs]
    return {"hmr_adapter": error_2d(points[:, limbs], true[:, limbs])}, {
        "hmr_adapter, own": misfits(points[:, limbs], own[:, place], torch.ones(1, 12)),
        "hmr_adapter, given": misfits(points[:, limbs], noisy[:, limbs],
                                      batch["keypoints_valid"][:, limbs])}


def precision_recall(warned: np.ndarray, bad: np.ndarray) -> tuple[float, float]:
    """Return the share of warnings that are right, and the share of bad meshes warned of."""
    right = (warned & bad).sum()
    return right / max(warned.sum(), 1), right / max(bad.sum(), 1)


def best_limit(score: np.ndarray, bad: np.ndarray) -> float:
    """Return the score above which a warning has the best lower one of precision and recall."""
    limits = np.sort(score)
    middles = (limits[1:] + limits[:-1]) / 2
    return max(middles, key=lambda limit: min(precision_recall(score > limit, bad)))


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    count = arguments.count
    print(f"{count} images to choose limits, {count} for the table; bad: 2D error above 10 %")
    rows = []
    for measure in (hands, people, whole_bodies):
        (fit_errors, fit_scores), (errors, scores) = (
            measure(split, count) for split in ("train", "test"))
        for name, score in scores.items():
            network = max((key for key in errors if name.startswith(key)), key=len)
            limit = best_limit(fit_scores[name], fit_errors[network] > BAD)
            bad = errors[network] > BAD
            precision, recall = precision_recall(score > limit, bad)
            rows.append(f"| {name} | {bad.sum()} of {count} | {limit:.3f} | {precision:.2f} | "
                        f"{recall:.2f} | {np.corrcoef(score, errors[network])[0, 1]:.2f} |")
            print(rows[-1], flush=True)
