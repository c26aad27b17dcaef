"""Errors between predicted and true joints and meshes, and the protocols that papers report.

Points are (B, N, 3) in metres: B samples of N corresponding joints or vertices. Every function
takes torch tensors (any float type, CPU or CUDA) or numpy arrays and returns the same kind;
gradients are not tracked. A sample with a NaN scores NaN; the other samples of its
batch are not affected. Only `evaluate` converts metres, to millimetres.

    procrustes_align    the best similarity transform of each sample onto its target
    mpjpe               mean distance of joints or, for PVE, of vertices
    pa_mpjpe            the same after procrustes_align of these points
    f_score             harmonic mean of precision and recall of two point clouds
    pck_auc             area under the curve "share of points within t"
    PROTOCOLS           by name, what a benchmark measures
    evaluate            the scores of one protocol; evaluate_each: its errors sample by sample
    read_predictions    FreiHAND's pred.json; also write_predictions, and write_dexycb

    python metrics.py pred.json evaluation_xyz.json evaluation_verts.json

To use it in another project copy bodymodels.py and files.py with it.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

import bodymodels
from files import Points, load_array, pair, read_json, read_predictions
from files import write_dexycb as write_dexycb
from files import write_predictions as write_predictions

# Memory for the temporaries of one chunk of samples: they should fit the CPU's cache. A GPU is
# faster with few, large chunks.
CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**28}


def _tensor(points: Points) -> Tensor:
    if isinstance(points, Tensor):
        return points.detach()
    return torch.from_numpy(np.require(points, requirements=["C", "W"]))  # torch's own terms


def _in_kind(function: Callable) -> Callable:
    """Let a function of two tensors (B, N, 3) take arrays too, and check its arguments."""

    @functools.wraps(function)
    @torch.no_grad()
    def wrapped(prediction: Points, target: Points, *args, **options) -> Points:
        tensors = [_tensor(points) for points in (prediction, target)]
        for points in tensors:
            size = tuple(points.shape)
            if len(size) != 3 or size[1] == 0 or size[2] != 3 or not points.is_floating_point():
                raise ValueError(f"{function.__name__}: expected points (batch, at least one, 3), "
                                 f"floating point coordinates in metres, got {size} of "
                                 f"{points.dtype}")
        if tensors[0].shape != tensors[1].shape:
            raise ValueError(f"{function.__name__}: the two sets must have the same shape, got "
                             f"{tuple(tensors[0].shape)} and {tuple(tensors[1].shape)}")
        result = function(tensors[0], tensors[1].to(tensors[0].device), *args, **options)
        return result if isinstance(prediction, Tensor) else result.numpy()[()]

    return wrapped


# -------------------------------------------------------------------------------- procrustes


@_in_kind
def procrustes_align(source: Points, target: Points, *, allow_reflection: bool = False,
                     scale: bool = True, norm_guard: float = 0.0, moved: Points | None = None
                     ) -> Points:
    """Move each source onto its target by the best similarity transform: (B, N, 3).

    Minimises sum ||s R x + t - y||^2 over rotations R, translations t and, if `scale`, s >= 0;
    with `allow_reflection` R may also mirror. Umeyama, "Least-squares estimation of transformation
    parameters between two point patterns", PAMI 1991. If several transforms are best (one, two or
    collinear points), it takes one of them; a source whose points coincide lands on the target's
    mean. Computed in float64 (for sizes from 1e-150 to 1e150), returned in the source's type.

    moved (B, M, 3): apply the transform to these points instead of the source. norm_guard (m):
    added to the norm that s divides by, as FreiHAND's script does; it makes tiny sources too small,
    and shifts a perfect one by nanometres.
    """
    moved = source if moved is None else _tensor(moved).to(source)
    aligned, most = _empty(moved.shape, moved), max(source.shape[1], moved.shape[1])
    size = max(1, CHUNK_BYTES[source.device.type] // (48 * most))
    chunks = [slice(start, start + size) for start in range(0, len(source), size)]
    buffers = source.new_empty((2, min(size, len(source)), 3, most), dtype=torch.float64)
    source_mean, target_mean, cross, norm = _moments(source, target, chunks, buffers)
    linear = _best_linear(cross, norm + norm_guard, allow_reflection, scale)
    offset = target_mean - linear @ source_mean
    for chunk in chunks:
        x = _columns(moved[chunk], buffers[0])
        y = torch.baddbmm(offset[chunk], linear[chunk], x, out=buffers[1, :len(x), :, :x.shape[2]])
        for axis in range(3):
            aligned[chunk, :, axis] = y[:, axis]
    return aligned


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Like new_empty; on the CPU numpy allocates, in huge pages, which are faster to fill."""
    if like.device.type != "cpu" or not math.prod(shape):
        return like.new_empty(shape)
    size = math.prod(shape) * like.element_size()
    return torch.from_numpy(np.empty(size, np.uint8)).view(like.dtype).view(shape)


def _columns(points: Tensor, buffer: Tensor) -> Tensor:
    """Write points (C, N, 3) into the buffer as float64 columns (C, 3, N)."""
    return buffer[:len(points), :, :points.shape[1]].copy_(points.transpose(1, 2))


def _moments(source: Tensor, target: Tensor, chunks: Sequence[slice], buffers: Tensor
             ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means (B, 3, 1) of both; of the centred points sum x y^T (B, 3, 3) and the norm of x (B,)."""
    source_mean, target_mean = buffers.new_empty(2, len(source), 3, 1)
    cross, norm = buffers.new_empty(len(source), 3, 3), buffers.new_empty(len(source))
    for chunk in chunks:
        x, y = _columns(source[chunk], buffers[0]), _columns(target[chunk], buffers[1])
        x -= torch.mean(x, 2, keepdim=True, out=source_mean[chunk])
        y -= torch.mean(y, 2, keepdim=True, out=target_mean[chunk])
        torch.bmm(x, y.transpose(1, 2), out=cross[chunk])
        torch.linalg.vector_norm(x, dim=(1, 2), out=norm[chunk])
    return source_mean, target_mean, cross, norm


def _best_linear(cross: Tensor, norm: Tensor, allow_reflection: bool, scale: bool) -> Tensor:
    """The best matrices s R (B, 3, 3); NaN where the moments are not finite."""
    invalid = ~(cross.sum((1, 2)) + norm).isfinite()[:, None, None]
    u, singular, vh = torch.linalg.svd(cross.masked_fill(invalid, 0))  # x y^T = U S V^T
    if not allow_reflection:  # flip the least important direction
        sign = (torch.linalg.det(u) * torch.linalg.det(vh)).sign()
        singular[:, 2] *= sign
        vh[:, 2] *= sign[:, None]
    rotation = (u @ vh).transpose(1, 2)  # V U^T
    if scale:
        size = torch.where(norm > 0, singular.sum(1) / norm.square(), 0)
        rotation = rotation * size[:, None, None]
    return rotation.masked_fill(invalid, math.nan)


# ------------------------------------------------------------------------------------ errors


def _distances(prediction: Tensor, target: Tensor) -> Tensor:
    return torch.linalg.vector_norm(prediction.double() - target.double(), dim=2)


def _error_type(points: Tensor) -> torch.dtype:
    """The type of errors: at least float32, as float16 does not resolve millimetres."""
    return torch.promote_types(points.dtype, torch.float32)


@_in_kind
def mpjpe(prediction: Points, target: Points) -> Points:
    """Mean position error (B,) of joints, or vertices (PVE), as given: subtract the root first."""
    return _distances(prediction, target).mean(1).to(_error_type(prediction))


@_in_kind
def pa_mpjpe(prediction: Points, target: Points, *, allow_reflection: bool = False) -> Points:
    """`mpjpe` (B,) after `procrustes_align` of these points."""
    prediction = prediction.to(_error_type(prediction))
    return mpjpe(procrustes_align(prediction, target, allow_reflection=allow_reflection), target)


@_in_kind
def pck_auc(prediction: Points, target: Points) -> Points:
    """Area under the PCK curve, from 0 to 1, one number for the whole batch.

    PCK(t), "percentage of correct keypoints", is the share of points with an error <= t, at 100
    thresholds from 0 to 50 mm (FreiHAND's). The trapezoidal area is divided by the range. All
    keypoints are equally frequent, so this equals the official mean over keypoints.
    """
    thresholds = torch.from_numpy(np.linspace(0.0, 0.05, 100)).to(prediction.device)
    distances = _distances(prediction, target).flatten()
    first = torch.bucketize(distances, thresholds)  # the first threshold >= the error
    correct = torch.bincount(first, minlength=101)[:100].cumsum(0)
    return torch.trapezoid(correct / len(distances), thresholds) / 0.05


@_in_kind
def f_score(prediction: Points, target: Points, thresholds: Sequence[float] = (0.005, 0.015)
            ) -> Points:
    """F-scores (B, T) of two point clouds at T thresholds in metres; distances are strictly below.

    Precision is the share of predicted points with a true point within the threshold, recall the
    share of true points with a predicted one. Correspondence plays no role. Knapitsch et al.,
    "Tanks and Temples", 2017.
    """
    limits = np.array(thresholds, np.float64)
    reach = max(1.01 * limits.max(), 1e-150)  # farther neighbours are not needed

    def share(points: np.ndarray, others: np.ndarray) -> np.ndarray:
        tree = cKDTree(others, balanced_tree=False, compact_nodes=False)  # quicker to build
        distances, _ = tree.query(points, distance_upper_bound=reach)
        return (distances[:, None] < limits).mean(0)

    scores = np.full((len(prediction), len(limits)), np.nan)
    clouds = (points.double().cpu().numpy() for points in (prediction, target))
    for score, a, b in zip(scores, *clouds, strict=True):
        if np.isfinite([a, b]).all():
            precision, recall = share(a, b), share(b, a)
            score[:] = 2 * precision * recall / np.maximum(precision + recall, 1e-300)  # 0 / 0: 0
    return torch.from_numpy(scores).to(prediction.device, _error_type(prediction))


# --------------------------------------------------------------------------------- protocols


@dataclass(frozen=True)
class Protocol:
    """What a benchmark measures. Joints and vertices are each aligned on their own by default.

    The target is the data set's truth: for bodies the mesh of the gendered model, or joints only.
    """

    source: str  # where these rules are written, and what is special about them
    joints: str  # a name of bodymodels.JOINT_SETS
    root: tuple[int, ...] = ()  # joints whose mean is the origin before alignment; (): as given
    aligned: str = "own"  # joints and vertices each by themselves; "by joints": vertices move with
    # the joints; "joints": only these have an aligned row; "": nothing has
    allow_reflection: bool = False  # whether the alignment may mirror
    norm_guard: float = 0.0  # m, see procrustes_align
    curves: tuple[str, ...] = ()  # "F": F-scores at 5 and 15 mm, "AUC": of PCK up to 50 mm
    vertex_error: str = "MPVPE"  # the field's name for it: for bodies, MVE or PVE; "": joints only
    vertices_optional: bool = False  # without vertices, their rows are left out
    scored: str = ""  # the joints whose errors count, a name of JOINT_SETS; "": all

    @property
    def hands(self) -> str:
        """The protocol for both hands of a whole body; "": no body has hands."""
        return "rendered_people_hands" if self.joints == "smplx76" else ""


PROTOCOLS = {
    "freihand": Protocol(
        "Zimmermann et al., ICCV 2019, and eval.py of the data set's repository. Rows before "
        "alignment compare positions as given, and the official ones are in the camera's frame. "
        "train.py gives positions relative to a joint, so its raw rows are not FreiHAND's",
        joints="hand21", allow_reflection=True, norm_guard=1e-8, curves=("F", "AUC")),
    "rendered_hands": Protocol(
        "Ours: one image does not show how far away a hand is, so errors before alignment are "
        "relative to each hand's root; a mirrored hand is an error",
        joints="hand21", root=(9,), curves=("F", "AUC")),
    "rendered_bodies": Protocol(
        "Ours, like the rows that papers report on 3DPW: relative to the pelvis, joints of the "
        "body model",
        joints="smpl24", root=(0,), vertex_error="MVE"),
    "rendered_people": Protocol(
        "SMPLer-X's evaluation, which HMR-Adapter follows: vertices relative to the pelvis, 14 "
        "joints. There regressors take both from the mesh, here the body model gives them",
        joints="smplx76", root=(0,), vertex_error="PVE", scored="smpl14"),
    "rendered_people_hands": Protocol(
        "The same: a hand's 778 vertices and 21 joints, shifted but not rotated to its wrist; the "
        "mean over all hands, visible or not",
        joints="hand21", root=(0,), vertex_error="PVE"),
    "dexycb_s0": Protocol(
        "Chao et al., CVPR 2021: relative to the wrist; the toolkit's Procrustes may mirror; "
        "frames without a hand do not count (78,768 of s0's test). Truth and prediction must have "
        "the same kind of joints. data.py regresses both from the mesh, with manopth's tip "
        "vertices, so that a perfect mesh has no error. The toolkit compares with joint_3d, the "
        "joints of the skinning skeleton",
        joints="hand21", root=(0,), allow_reflection=True, curves=("AUC",)),
    "h36m_p2_lsp14": Protocol(
        "SPIN, whose split GenHMR follows: motion-capture joints against those that SPIN's "
        "J_regressor_h36m takes from the predicted mesh, each relative to its own pelvis",
        joints="j17", root=(14,), vertex_error="", scored="lsp14"),
    "3dpw_lsp14": Protocol(
        "SPIN: joints of both meshes by J_regressor_h36m, the true mesh from the gendered SMPL; "
        "35,515 people of the test split. GenHMR does not name its regressor; HMR2.0 has another "
        "(hmr2_lsp14)",
        joints="j17", root=(14,), vertex_error="MVE", scored="lsp14", aligned="joints"),
    "hmr2_lsp14": Protocol(
        "HMR2.0's eval.py and pose_utils.py: true joints of its 3dpw_test.npz (of h36m_val_p2.npz: "
        "hmr2_h36m_lsp14) against those that SMPL_to_J19 takes from the predicted mesh, each "
        "relative to its own pelvis of MPII; joints only",
        joints="j17", root=(14,), vertex_error="", scored="lsp14"),
    "3dpw_smplx_lineage": Protocol(
        "SMPLer-X and HMR-Adapter: 14 of SMPL's own joints, Moon's files, neutral SMPL; not "
        "comparable with 3dpw_lsp14. PVE (HMR-Adapter, Table 2) needs SMPL's vertices of the "
        "predicted SMPL-X mesh; how the paper gets them is not published",
        joints="smpl24", root=(0,), vertex_error="PVE", vertices_optional=True, scored="smpl14",
        aligned="joints"),
    "emdb1_24": Protocol(
        "Kaufmann et al., ICCV 2023: 24 joints relative to the middle of the hips, gendered SMPL, "
        "all good frames of EMDB-1; vertices are aligned by the transform of the joints. The "
        "joints are the posed skeleton's; TokenHMR's evaluator regresses all 24 from the meshes. "
        "GenHMR says neither which, nor which split of EMDB",
        joints="smpl24", root=(1, 2), vertex_error="MVE", aligned="by joints"),
    "pose_reconstruction": Protocol(
        "GenHMR, AAAI 2025, Tables 5 and 6: the error of a pose tokenizer, global orientation "
        "included", joints="smpl24", aligned="", vertex_error="MVE"),
}
PROTOCOLS |= {name: PROTOCOLS["pose_reconstruction"] for name in ("amass_test", "moyo_val")}
PROTOCOLS["hmr2_h36m_lsp14"] = PROTOCOLS["hmr2_lsp14"]
PROTOCOLS |= {name: replace(PROTOCOLS["rendered_people"], source=(
    f"{data} by the rules of SMPLer-X and HMR-Adapter: vertices relative to the pelvis, hands to "
    "the wrist, EHF's faces to the neck. The neutral J_regressor takes joints from both meshes, "
    "and SMPLX_to_J14.pkl the body's 14" + note))
    for name, data, note in (("ehf", "EHF's 100 meshes", ""), (
        "arctic_p1val", "ARCTIC's p1 val, views 1-8",
        ". True meshes have the subject's template, the data set's truth; SMPLer-X makes its own "
        "from its file, by default of the neutral model. It takes every tenth row of this flat "
        "file, we every tenth frame of each sequence"))}


def evaluate(protocol: str, prediction: Mapping[str, Points], target: Mapping[str, Points],
             hand_vertices: str | Path = "wholebody", face_vertices: str | Path | None = None, *,
             each: bool = False) -> dict[str, float] | dict[str, np.ndarray]:
    """The scores of one protocol, means over the samples.

    Args:
        protocol: a name of PROTOCOLS.
        prediction, target: "joints" (B, J, 3) and, unless the protocol has none, "vertices"
            (B, V, 3), metres, in one frame. If both hold "scored" (B, S, 3), joints that another
            regressor took from the meshes, these are scored; the root is still one of "joints".
        hand_vertices: for whole bodies, the source of bodymodels.hand_vertex_ids.
        face_vertices: for whole bodies, SMPL-X__FLAME_vertex_ids.npy; adds rows "face ...".
        each: instead of means the errors (B,) of all samples, of both hands their mean; no F-scores
            and areas.

    Distances are in millimetres; F-scores and areas are from 0 to 1. "PA-" rows are after
    alignment, and so are F@5 (5 mm), F@15 and AUC; "raw" marks those before it. "hands ..." are the
    rows of both hands of a whole body. Raises ValueError for an unknown protocol or other shapes.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: expected one of {sorted(PROTOCOLS)}")
    rules, both = PROTOCOLS[protocol], (prediction, target)
    prediction, target = (_rooted(points, rules, both) for points in both)
    report = {}
    if rules.aligned:
        report |= _scores(_aligned(prediction, target, rules), target, rules, "PA-", "", each)
    report |= _scores(prediction, target, rules, "", " raw" if rules.aligned else "", each)
    if rules.hands:
        hands = evaluate(rules.hands, *(both_hands(points, hand_vertices) for points in both),
                         each=each)
        report |= {f"hands {name}": value.reshape(2, -1).mean(0) if each else value
                   for name, value in hands.items()}
    if face_vertices is not None:
        ids = load_array(face_vertices)
        neck = bodymodels.JOINT_SETS[rules.joints].index("neck")
        faces = [_tensor(points["vertices"])[:, ids] - _tensor(points["joints"])[:, [neck]]
                 for points in both]
        for before, error in (("PA-", pa_mpjpe), ("", mpjpe)):
            report[f"face {before}PVE"] = 1000 * (error(*faces) if each else error(*faces).mean())
    return {name: torch.as_tensor(value).cpu().numpy() if each else float(value)
            for name, value in report.items()}


evaluate_each = functools.partial(evaluate, each=True)


def _aligned(prediction: dict[str, Tensor], target: dict[str, Tensor], rules: Protocol
             ) -> dict[str, Tensor]:
    """The prediction after the protocol's alignment, without vertices if none are reported."""
    by = {"joints": "joints"}  # what is aligned -> by which points
    if rules.aligned != "joints" and "vertices" in prediction:
        by["vertices"] = "joints" if rules.aligned == "by joints" else "vertices"
    return {name: procrustes_align(
        prediction[points], target[points], allow_reflection=rules.allow_reflection,
        norm_guard=rules.norm_guard, moved=prediction[name]) for name, points in by.items()}


def _scores(prediction: dict[str, Tensor], target: dict[str, Tensor], rules: Protocol,
            before: str, after: str, each: bool) -> dict[str, Tensor]:
    """The rows of one stage, with `before` and `after` around their names."""
    joints = prediction["joints"], target["joints"]
    errors = {"MPJPE": mpjpe(*joints)}
    if "vertices" in prediction:
        vertices = prediction["vertices"], target["vertices"]
        errors[rules.vertex_error] = mpjpe(*vertices)
    report = {f"{before}{name}": 1000 * (error if each else error.mean())
              for name, error in errors.items()}
    if each or "vertices" not in prediction:
        return report
    if "F" in rules.curves:
        report[f"F@5{after}"], report[f"F@15{after}"] = f_score(*vertices).mean(0)
    if "AUC" in rules.curves:
        report[f"AUC-J{after}"], report[f"AUC-V{after}"] = pck_auc(*joints), pck_auc(*vertices)
    return report


def both_hands(points: Mapping[str, Points], source: str | Path = "wholebody"
               ) -> dict[str, Tensor]:
    """Joints (2B, 21, 3) and vertices (2B, 778, 3) of the hands of B whole bodies.

    points: "joints" (B, 76, 3) in "smplx76" order and "vertices" (B, 10475, 3). All left hands
    come first, then all right hands; nothing is mirrored.
    """
    joints, vertices = (_tensor(points[name]) for name in ("joints", "vertices"))
    ids = bodymodels.hand_vertex_ids(source)
    if vertices.shape[1] <= max(int(part.max()) for part in ids.values()):
        raise ValueError("the hands' vertices are those of a whole body, (B, 10475, 3), "
                         f"got {tuple(vertices.shape)}")
    order = [bodymodels.joint_indices("smplx76", f"{side}_hand21") for side in ids]
    return {"joints": torch.cat([joints[:, places] for places in order]),
            "vertices": torch.cat([vertices[:, part.to(vertices.device)] for part in ids.values()])}


def _rooted(points: Mapping[str, Points], rules: Protocol, both: Sequence[Mapping]
            ) -> dict[str, Tensor]:
    """Joints and, if they are scored, vertices, in float64, relative to the root of the joints."""
    optional = rules.vertices_optional and not all("vertices" in points for points in both)
    wanted = ["joints", "vertices"] if rules.vertex_error and not optional else ["joints"]
    missing = set(wanted) - set(points)
    if missing:
        raise ValueError(f"evaluate needs joints and vertices, {sorted(missing)} is missing")
    all_points, points = points, {name: _tensor(points[name]).double() for name in wanted}
    expected = len(bodymodels.JOINT_SETS[rules.joints])
    if points["joints"].shape[1:] != (expected, 3):
        raise ValueError(f"the joints of {rules.joints} are (B, {expected}, 3), "
                         f"got {tuple(points['joints'].shape)}")
    if not len(points["joints"]):
        raise ValueError("evaluate needs at least one sample")
    order = bodymodels.joint_indices(rules.joints, rules.scored or rules.joints)
    scored = (_tensor(all_points["scored"]).double() if all("scored" in each for each in both)
              else points["joints"][:, order])
    root = points["joints"][:, list(rules.root)].mean(1, keepdim=True) if rules.root else 0
    return {name: values - root for name, values in (points | {"joints": scored}).items()}


# -------------------------------------------------------------------------------- command line


def main(argv: Sequence[str] | None = None) -> None:
    """Score a pred.json against FreiHAND's annotation."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name in ("pred.json", "evaluation_xyz.json", "evaluation_verts.json"):
        parser.add_argument(name)
    prediction, *truth = vars(parser.parse_args(argv)).values()
    try:
        target = pair(*map(read_json, truth), ", ".join(truth) + ": ")
        both = read_predictions(prediction, len(target[0])), target
        report = evaluate("freihand", *({"joints": joints, "vertices": vertices}
                                        for joints, vertices in both))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for name, value in report.items():
        print(f"{name:12} {value:9.4f}")


if __name__ == "__main__":
    main()
