"""How well demo.py warns of 2D errors above 10 %, on rendered hands and people.

The limits are the demo's. Those that would warn best are chosen on other renders than those of the
table, training images of another seed. A mesh is bad if its keypoints are further than 10 % of the
long side of the tight box from the true ones, on average: of a hand its 21, of a person shoulders,
elbows, wrists, hips, knees and ankles.
"Given" keypoints are the true ones of MediaPipe's set with noise of 2 % of the crop (our choice),
as they judge and refine in the demo.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

import data
import demo
from bodymodels import ASSETS, JOINT_SETS
from networks.any_view import SPREAD
from networks.finders import Found, misfit

BAD, NOISE, SEED, SMPL45 = 0.1, 0.02, 9, JOINT_SETS["smpl45"]
BOX = (0.1875, 1 / 12, 0.625, 5 / 6)  # of the crop; the network's margin makes it the whole crop
NETWORKS = {  # title: flags of demo.py, box, and what judges its meshes
    "SimpleHand": (["simplehand"], None, ("given", "spread")),
    "GenHMR, P = 0": (["genhmr", "--refine", "0"], BOX, ("given", "own")),
    "GenHMR, P = 50": (["genhmr"], BOX, ("given",)),
    "HMR-Adapter": (["hmr_adapter", "--body", str(ASSETS / "hmr_adapter_body_cpu.pt")],
                    (0.2, 0.1, 0.6, 0.8), ("given", "own"))}


def in_order(points: np.ndarray, valid: np.ndarray, names: Sequence[str] | None) -> np.ndarray:
    """Return rows x, y, confidence: of a person in the order of smpl45, 0 for other keypoints."""
    rows = np.column_stack((points, valid))
    return rows if names is None else np.array([
        rows[names.index(name)] if name in names else np.zeros(3) for name in SMPL45])


def pictures(network: str, split: str, count: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield pictures (S, S, 3), and their true and given keypoints, see in_order."""
    random, options, names = np.random.default_rng(0), {"length": count, "seed": SEED}, None
    if network == "simplehand":
        samples = data.RenderedHands(split, 64, **options)
    elif network == "genhmr":
        samples, names = data.RenderedBodies(split, lean=45.0, wide=0.5, **options), SMPL45
    else:
        samples, names = data.RenderedPeople(split, hand_size=16, **options), JOINT_SETS["smplx76"]
    for index in range(count):
        sample = samples[index]
        image = np.ascontiguousarray(sample["image"].permute(1, 2, 0).numpy())
        true, seen = sample["keypoints_2d"].numpy(), sample["keypoints_valid"].numpy()
        if names:
            seen = seen * [name in JOINT_SETS["mediapipe33"] for name in names]
        noisy = true + random.normal(0, NOISE * len(image), true.shape)
        yield image, in_order(true, np.ones(len(true)), names), in_order(noisy, seen, names)


def judge(title: str, split: str, count: int) -> dict[str, np.ndarray]:
    """Reconstruct pictures as the demo does: return their "error", and what may warn of it."""
    flags, box, judges = NETWORKS[title]
    one = demo.LOADERS[flags[0]](demo.parser().parse_args(flags)).one
    scores = defaultdict(list)
    for image, true, given in pictures(flags[0], split, count):
        box_here = box and tuple(len(image) * number for number in box)
        found = one(image, Found(box_here, keypoints=given), None)
        for name, rows in (("error", true), ("given", given), ("own", found.own)):
            scores[name].append(misfit(found.mesh, rows, 1e-6))
        scores["spread"].append(np.mean(found.arrays.get("spread_2d", 0)))
    return {name: np.array(scores[name]) for name in ("error", *judges)}


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
    """Print how well the demo's limits warn, and which limits would on as many other pictures."""
    count = arguments.count
    print(f"{count} images for the table, {count} for the best limits; bad: 2D error above 10 %\n"
          "| network, judged by | bad | limit | precision | recall | best limit |\n"
          "|---|---|---|---|---|---|")
    for title, (flags, _, _) in NETWORKS.items():
        given, own = demo.MISFITS[flags[0]]
        limits = {"given": given, "own": own, "spread": SPREAD}
        chosen, judged = judge(title, "train", count), judge(title, "test", count)
        bad = judged.pop("error") > BAD
        for name, score in judged.items():
            best = best_limit(chosen[name], chosen["error"] > BAD)
            precision, recall = precision_recall(score > limits[name], bad)
            print(f"| {title}, {name} | {bad.sum()} of {count} | {limits[name]:.2f} | "
                  f"{precision:.2f} | {recall:.2f} | {best:.3f} |", flush=True)
