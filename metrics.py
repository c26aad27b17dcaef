"""Errors between predicted and true joints and meshes, and the protocols that papers report.

Points are (B, N, 3) in metres: B samples of N corresponding joints or vertices. Every function
takes torch tensors (any float type, CPU or CUDA) or numpy arrays and returns the same kind;
gradients are not tracked. A sample with a NaN or an infinity scores NaN; the other samples of its
batch are not affected. Only `evaluate` converts metres, to the unit of its protocol.

    procrustes_align    the best similarity transform of each sample onto its target
    mpjpe, pve          mean distance of the joints, of the vertices
    pa_mpjpe, pa_pve    the same after procrustes_align
    f_score             harmonic mean of precision and recall of two point clouds
    pck_auc             area under the curve "share of points within t"
    PROTOCOLS           by name, what a benchmark measures
    evaluate            the scores of one protocol; evaluate_each: its errors sample by sample
    read_predictions    FreiHAND's pred.json; also write_predictions, and write_dexycb

    python metrics.py pred.json evaluation_xyz.json evaluation_verts.json
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import bodymodels
from sets.prediction_files import pair, read_json, read_predictions
from sets.prediction_files import write_dexycb as write_dexycb
from sets.prediction_files import write_predictions as write_predictions
from sets.safe_pickle import load_array

Points = TypeVar("Points", Tensor, np.ndarray)

# Memory for the temporaries of one chunk of samples: they should fit the CPU's cache. A GPU is
# faster with few, large chunks.
CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**28}


def _chunks(samples: int, bytes_each: int, device: torch.device) -> list[slice]:
    """Slices of equal length that cover all samples; the last may be shorter."""
    size = max(1, CHUNK_BYTES[device.type] // bytes_each)
    return [slice(start, min(start + size, samples)) for start in range(0, samples, size)]


def _share_out(work: Callable[..., None], bytes_each: int, *batches: Tensor) -> None:
    """Call work(*batches) on parts of the samples, one part for each thread that torch may use.

    Torch itself divides each operation, and waits for its threads each time; these wait once.
    """
    samples, device, threads = len(batches[0]), batches[0].device, torch.get_num_threads()
    parts = min(threads, len(_chunks(samples, bytes_each, device)))
    if parts < 2 or device.type != "cpu":
        return work(*batches)
    try:
        with ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, *(batch.tensor_split(parts) for batch in batches)))
    finally:
        torch.set_num_threads(threads)  # the initializer lowered it for all threads to come


def _empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like torch.empty; on the CPU numpy allocates, in huge pages, which are faster to fill."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size == 0:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size, np.uint8)).view(dtype).view(shape)


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
            if points.ndim != 3 or points.shape[1] == 0 or points.shape[2] != 3 or (
                    not points.is_floating_point()):
                raise ValueError(f"{function.__name__}: expected points (batch, at least one, 3), "
                                 "floating point coordinates in metres, got "
                                 f"{tuple(points.shape)} of {points.dtype}")
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
    aligned = _empty(moved.shape, source.dtype, source.device)
    most = max(source.shape[1], moved.shape[1])

    def align(source: Tensor, target: Tensor, moved: Tensor, aligned: Tensor) -> None:
        chunks = _chunks(len(source), 48 * most, source.device)
        buffers = _empty((2, chunks[0].stop if chunks else 0, 3, most), torch.float64,
                         source.device)
        source_mean, target_mean, cross, norm = _moments(source, target, chunks, buffers)
        linear = _best_linear(cross, norm + norm_guard, allow_reflection, scale)
        offset = target_mean - linear @ source_mean
        for chunk in chunks:
            x = _columns(moved[chunk], buffers[0])
            y = torch.baddbmm(offset[chunk], linear[chunk], x,
                              out=buffers[1, :len(x), :, :x.shape[2]])
            for axis in range(3):
                aligned[chunk, :, axis] = y[:, axis]

    _share_out(align, 48 * most, source, target, moved, aligned)
    return aligned


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
    """Mean per-joint position error (B,) of the joints as given: subtract the root first."""
    return _distances(prediction, target).mean(1).to(_error_type(prediction))


@_in_kind
def pve(prediction: Points, target: Points) -> Points:
    """Mean per-vertex error (B,), also called MPVPE or MVE: subtract the joints' root first."""
    return _distances(prediction, target).mean(1).to(_error_type(prediction))


@_in_kind
def pa_mpjpe(prediction: Points, target: Points, *, allow_reflection: bool = False) -> Points:
    """`mpjpe` (B,) after `procrustes_align`."""
    prediction = prediction.to(_error_type(prediction))
    return mpjpe(procrustes_align(prediction, target, allow_reflection=allow_reflection), target)


@_in_kind
def pa_pve(prediction: Points, target: Points, *, allow_reflection: bool = False) -> Points:
    """`pve` (B,) after `procrustes_align` of the vertices on their own."""
    prediction = prediction.to(_error_type(prediction))
    return pve(procrustes_align(prediction, target, allow_reflection=allow_reflection), target)


@_in_kind
def pck_auc(prediction: Points, target: Points, low: float = 0.0, high: float = 0.05,
            steps: int = 100) -> Points:
    """Area under the PCK curve, from 0 to 1, one number for the whole batch.

    PCK(t), "percentage of correct keypoints", is the share of points with an error <= t, at `steps`
    thresholds from `low` to `high` metres (default: FreiHAND's). The trapezoidal area is divided by
    the range. All keypoints are equally frequent, so this equals the official mean over keypoints.
    """
    thresholds = torch.from_numpy(np.linspace(low, high, steps)).to(prediction.device)
    distances = _distances(prediction, target).flatten()
    first = torch.bucketize(distances, thresholds)  # the first threshold >= the error
    correct = torch.bincount(first, minlength=steps + 1)[:steps].cumsum(0)
    return torch.trapezoid(correct / len(distances), thresholds) / (high - low)


@_in_kind
def f_score(prediction: Points, target: Points, thresholds: Sequence[float] = (0.005, 0.015)
            ) -> Points:
    """F-scores (B, T) of two point clouds at T thresholds in metres; distances are strictly below.

    Precision is the share of predicted points with a true point within the threshold, recall the
    share of true points with a predicted one. Correspondence plays no role. Knapitsch et al.,
    "Tanks and Temples", 2017.
    """
    limits = torch.tensor(thresholds, dtype=torch.float64, device=prediction.device)
    scores, sample_bytes = limits.new_empty(len(prediction), len(limits)), 256 * prediction.shape[1]

    def score(prediction: Tensor, target: Tensor, scores: Tensor) -> None:
        for chunk in _chunks(len(prediction), sample_bytes, prediction.device):
            a, b = prediction[chunk].double(), target[chunk].double()
            from_a, from_b, rounding = _nearest_squared(a, b)
            precision = _share_within(a, b, from_a, rounding, limits)
            recall = _share_within(b, a, from_b, rounding, limits)
            total = (precision + recall).clamp(min=1e-300)  # 0 / 0 is defined as 0
            scores[chunk] = (2 * precision * recall / total).T
            scores[chunk][~(a + b).sum((1, 2)).isfinite()] = math.nan

    _share_out(score, sample_bytes, prediction, target, scores)
    return scores.to(_error_type(prediction))


def _nearest_squared(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest |a_i - b_j|^2 of each a_i and of each b_j (C, N), and a bound (C, 1) on its error.

    |a|^2 - 2 a.b + |b|^2 is a matrix product of five columns. Its terms cancel, so the error is
    relative to the size of the clouds: at most 7 roundings of half an eps. On the CPU the product
    is in float32, by numpy, whose precision no setting of torch changes, and in blocks of rows so
    small (2^18 multiplications) that its BLAS does not divide them among threads.
    """
    centre = b.mean(1, keepdim=True)
    a, b = a - centre, b - centre
    a_squared, b_squared = (points.square().sum(2, keepdim=True) for points in (a, b))
    reach = (a_squared.amax(1).sqrt() + b_squared.amax(1).sqrt()).square()
    one, count = torch.ones_like(a_squared), a.shape[1]
    rows = max(1, 2**18 // (5 * count))
    blocks = functional.pad(torch.cat([a * -2, a_squared, one], 2), (0, 0, 0, -count % rows))
    left = blocks.unflatten(1, (-1, rows))  # (C, blocks, rows, 5)
    right = torch.cat([b, one, b_squared], 2).transpose(1, 2).unsqueeze(1)  # (C, 1, 5, N)
    if not a.is_cuda:
        left, right = left.float().numpy(), right.float().numpy()
    from_a, from_b = a.new_empty(2, len(a), count)
    for chunk in _chunks(len(a), 4 * count**2, a.device):
        with np.errstate(invalid="ignore", over="ignore"):
            squared = torch.as_tensor(left[chunk] @ right[chunk]).flatten(1, 2)[:, :count]
        from_a[chunk], from_b[chunk] = squared.amin(2), squared.amin(1)
    eps = torch.finfo(torch.float64 if a.is_cuda else torch.float32).eps
    return from_a, from_b, 4 * eps * reach


def _share_within(points: Tensor, others: Tensor, nearest: Tensor, rounding: Tensor,
                  limits: Tensor) -> Tensor:
    """The share (T, C) of points (C, N, 3) that have one of the others strictly within each limit.

    `nearest` (C, N): squared distances with errors up to `rounding`. Where the error could matter,
    the point's distances are computed again in float64.
    """
    beyond = nearest - limits.square()[:, None, None]  # (T, C, N)
    inside = beyond < 0
    unsettled = (~(beyond.abs() > rounding)).nonzero()  # also what overflowed
    for piece in _chunks(len(unsettled), 24 * others.shape[1], points.device):
        limit, sample, point = unsettled[piece].unbind(1)
        x, y, z = (points[sample, point, None] - others[sample]).unbind(2)
        distance = (x * x + y * y + z * z).sqrt().amin(1)
        inside[limit, sample, point] = distance < limits[limit]
    return inside.double().mean(2)


# --------------------------------------------------------------------------------- protocols

UNITS = {"m": 1.0, "cm": 100.0, "mm": 1000.0}  # per metre


@dataclass(frozen=True)
class Protocol:
    """What a benchmark measures. Joints and vertices are each aligned on their own by default.

    The target is the data set's truth: for bodies the mesh of the gendered model, or joints only.
    """

    source: str  # where these rules are written, and what is special about them
    joints: str  # a name of bodymodels.JOINT_SETS
    root: tuple[int, ...] = ()  # joints whose mean is the origin before alignment; (): as given
    alignment: str = "similarity"  # or "rigid": without scale, or "": no aligned errors
    allow_reflection: bool = False  # whether the alignment may mirror
    norm_guard: float = 0.0  # m, see procrustes_align
    unit: str = "mm"  # of the reported distances, a name of UNITS
    f_thresholds: tuple[float, ...] = ()  # m; (): no F-scores
    auc_thresholds: tuple[float, float, int] | tuple[()] = ()  # first and last in m, and how many
    vertex_error: str = "MPVPE"  # the field's name for it: for bodies, MVE or PVE; "": joints only
    vertices_optional: bool = False  # without vertices, their rows are left out
    aligned_vertices: str = "own"  # aligned "own": by themselves, "joints": like them; "": no row
    scored: str = ""  # the joints whose errors count, a name of JOINT_SETS; "": all
    hands: str = ""  # the protocol for both hands of a whole body


FREIHAND_CURVES = {"f_thresholds": (0.005, 0.015), "auc_thresholds": (0.0, 0.05, 100)}
PROTOCOLS = {
    "freihand": Protocol(
        "Zimmermann et al., ICCV 2019, and eval.py of the data set's repository. Rows before "
        "alignment compare positions as given, and the official ones are in the camera's frame. "
        "train.py gives positions relative to a joint, so its raw rows are not FreiHAND's",
        joints="hand21", allow_reflection=True, norm_guard=1e-8, **FREIHAND_CURVES),
    "rendered_hands": Protocol(
        "Ours: one image does not show how far away a hand is, so errors before alignment are "
        "relative to each hand's root; a mirrored hand is an error",
        joints="hand21", root=(9,), **FREIHAND_CURVES),
    "rendered_bodies": Protocol(
        "Ours, like the rows that papers report on 3DPW: relative to the pelvis, joints of the "
        "body model",
        joints="smpl24", root=(0,), vertex_error="MVE"),
    "rendered_people": Protocol(
        "SMPLer-X's evaluation, which HMR-Adapter follows: vertices relative to the pelvis, 14 "
        "joints. There regressors take both from the mesh, here the body model gives them",
        joints="smplx76", root=(0,), vertex_error="PVE", scored="smpl14",
        hands="rendered_people_hands"),
    "rendered_people_hands": Protocol(
        "The same: a hand's 778 vertices and 21 joints, shifted but not rotated to its wrist; the "
        "mean over all hands, visible or not",
        joints="hand21", root=(0,), vertex_error="PVE"),
    "dexycb_s0": Protocol(
        "Chao et al., CVPR 2021: relative to the wrist; the toolkit's Procrustes may mirror; "
        "frames without a hand do not count (78,768 of s0's test). Truth and prediction must have "
        "the same kind of joints. data.py regresses both from the mesh, with manopth's tip "
        "vertices, so that a perfect mesh has no error. The toolkit compares with joint_3d, the "
        "joints of the skinning skeleton (data.py: joints=given)",
        joints="hand21", root=(0,), allow_reflection=True, auc_thresholds=(0.0, 0.05, 100)),
    "h36m_p2_lsp14": Protocol(
        "SPIN, whose split GenHMR follows: motion-capture joints against those that SPIN's "
        "J_regressor_h36m takes from the predicted mesh, each relative to its own pelvis",
        joints="j17", root=(14,), vertex_error="", scored="lsp14"),
    "3dpw_lsp14": Protocol(
        "SPIN: joints of both meshes by J_regressor_h36m, the true mesh from the gendered SMPL; "
        "35,515 people of the test split. GenHMR does not name its regressor; HMR2.0 has another "
        "(hmr2_lsp14)",
        joints="j17", root=(14,), vertex_error="MVE", scored="lsp14", aligned_vertices=""),
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
        aligned_vertices=""),
    "emdb1_24": Protocol(
        "Kaufmann et al., ICCV 2023: 24 joints relative to the middle of the hips, gendered SMPL, "
        "all good frames of EMDB-1; vertices are aligned by the transform of the joints",
        joints="smpl24", root=(1, 2), vertex_error="MVE", aligned_vertices="joints"),
    "pose_reconstruction": Protocol(
        "GenHMR, AAAI 2025, Tables 5 and 6: the error of a pose tokenizer, global orientation "
        "included", joints="smpl24", alignment="", vertex_error="MVE"),
}
PROTOCOLS |= {name: PROTOCOLS["pose_reconstruction"] for name in ("amass_test", "moyo_val")}
PROTOCOLS["hmr2_h36m_lsp14"] = PROTOCOLS["hmr2_lsp14"]
PROTOCOLS |= {name: replace(PROTOCOLS["rendered_people"], source=(
    f"{data} by the rules of SMPLer-X and HMR-Adapter: vertices relative to the pelvis, hands to "
    "the wrist, EHF's faces to the neck. The neutral J_regressor takes joints from both meshes, "
    "and SMPLX_to_J14.pkl the body's 14"))
    for name, data in (("ehf", "EHF's 100 meshes"), ("arctic_p1val", "ARCTIC's p1 val, views 1-8"))}


def evaluate(protocol: str, prediction: Mapping[str, Points], target: Mapping[str, Points],
             hand_vertices: str | Path = "wholebody", face_vertices: str | Path | None = None
             ) -> dict[str, float]:
    """The scores of one protocol, means over the samples.

    Args:
        protocol: a name of PROTOCOLS.
        prediction, target: "joints" (B, J, 3) and, unless the protocol has none, "vertices"
            (B, V, 3), metres, in one frame. If both hold "scored" (B, S, 3), joints that another
            regressor took from the meshes, these are scored; the root is still one of "joints".
        hand_vertices: for whole bodies, the source of bodymodels.hand_vertex_ids.
        face_vertices: for whole bodies, SMPL-X__FLAME_vertex_ids.npy; adds rows "face ...".

    Distances are in the protocol's unit; F-scores and areas are from 0 to 1. "PA-" rows are after
    alignment, and so are F@5 (5 mm), F@15 and AUC; "raw" marks those before it. "hands ..." are the
    rows of both hands of a whole body. Raises ValueError for an unknown protocol or other shapes.
    """
    report = _report(protocol, prediction, target, hand_vertices, face_vertices)
    return {name: float(value) for name, value in report.items()}


def evaluate_each(protocol: str, prediction: Mapping[str, Points], target: Mapping[str, Points],
                  hand_vertices: str | Path = "wholebody",
                  face_vertices: str | Path | None = None) -> dict[str, np.ndarray]:
    """The errors (B,) of every sample, whose means `evaluate` returns; no F-scores and areas.

    Of both hands of a whole body it is their mean.
    """
    report = _report(protocol, prediction, target, hand_vertices, face_vertices, each=True)
    return {name: value.cpu().numpy() for name, value in report.items()}


def _report(protocol: str, prediction: Mapping[str, Points], target: Mapping[str, Points],
            hand_vertices: str | Path, face_vertices: str | Path | None, each: bool = False
            ) -> dict[str, Tensor]:
    """The rows of a protocol: means, or the errors of each sample."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: expected one of {sorted(PROTOCOLS)}")
    rules, both = PROTOCOLS[protocol], (prediction, target)
    prediction, target = (_rooted(points, rules, both) for points in both)
    report = {}
    if rules.alignment:
        report |= _scores(_aligned(prediction, target, rules), target, rules, "PA-", "", each)
    report |= _scores(prediction, target, rules, "", " raw" if rules.alignment else "", each)
    if rules.hands:
        hands = _report(rules.hands, *(both_hands(points, hand_vertices) for points in both),
                        hand_vertices, None, each)
        report |= {f"hands {name}": value.view(2, -1).mean(0) if each else value
                   for name, value in hands.items()}
    if face_vertices is not None:
        ids = load_array(face_vertices)
        neck = bodymodels.JOINT_SETS[rules.joints].index("neck")
        faces = [_tensor(points["vertices"])[:, ids] - _tensor(points["joints"])[:, [neck]]
                 for points in both]
        for before, error in (("PA-", pa_pve), ("", pve)):
            errors = error(*faces)
            report[f"face {before}PVE"] = UNITS[rules.unit] * (errors if each else errors.mean())
    return report


def _aligned(prediction: dict[str, Tensor], target: dict[str, Tensor], rules: Protocol
             ) -> dict[str, Tensor]:
    """The prediction after the protocol's alignment, without vertices if none are reported."""
    options = {"allow_reflection": rules.allow_reflection, "norm_guard": rules.norm_guard,
               "scale": rules.alignment == "similarity"}
    kinds = [name for name in prediction if name == "joints" or rules.aligned_vertices]
    by = {name: "joints" if rules.aligned_vertices == "joints" else name for name in kinds}
    return {name: procrustes_align(prediction[by[name]], target[by[name]], moved=prediction[name],
                                   **options) for name in kinds}


def _scores(prediction: dict[str, Tensor], target: dict[str, Tensor], rules: Protocol,
            before: str, after: str, each: bool) -> dict[str, Tensor]:
    """The rows of one stage, with `before` and `after` around their names."""
    joints = prediction["joints"], target["joints"]
    errors = {"MPJPE": mpjpe(*joints)}
    if "vertices" in prediction:
        vertices = prediction["vertices"], target["vertices"]
        errors[rules.vertex_error] = pve(*vertices)
    report = {f"{before}{name}": UNITS[rules.unit] * (error if each else error.mean())
              for name, error in errors.items()}
    if each or "vertices" not in prediction:
        return report
    if rules.f_thresholds:
        scores = f_score(*vertices, rules.f_thresholds).mean(0)
        for threshold, score in zip(rules.f_thresholds, scores, strict=True):
            report[f"F@{1000 * threshold:g}{after}"] = score
    if rules.auc_thresholds:
        report[f"AUC-J{after}"] = pck_auc(*joints, *rules.auc_thresholds)
        report[f"AUC-V{after}"] = pck_auc(*vertices, *rules.auc_thresholds)
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
            "vertices": torch.cat([vertices[:, part.to(vertices.device)]
                                   for part in ids.values()])}


def _rooted(points: Mapping[str, Points], rules: Protocol, both: Sequence[Mapping]
            ) -> dict[str, Tensor]:
    """Joints and, if they are scored, vertices, in float64, relative to the root of the joints."""
    optional = rules.vertices_optional and not all("vertices" in points for points in both)
    wanted = ["joints", "vertices"] if rules.vertex_error and not optional else ["joints"]
    missing = set(wanted) - set(points)
    if missing:
        raise ValueError(f"evaluate needs joints and vertices, {sorted(missing)} is missing")
    given, points = points, {name: _tensor(points[name]).double() for name in wanted}
    expected = len(bodymodels.JOINT_SETS[rules.joints])
    if points["joints"].shape[1:] != (expected, 3):
        raise ValueError(f"the joints of {rules.joints} are (B, {expected}, 3), "
                         f"got {tuple(points['joints'].shape)}")
    if not len(points["joints"]):
        raise ValueError("evaluate needs at least one sample")
    if rules.root:
        root = points["joints"][:, list(rules.root)].mean(1, keepdim=True)
        points = {name: values - root for name, values in points.items()}
    if "scored" in given:
        points["joints"] = _tensor(given["scored"]).double() - (root if rules.root else 0)
    elif rules.scored:
        scored = bodymodels.joint_indices(rules.joints, rules.scored)
        points["joints"] = points["joints"][:, scored]
    return points


# -------------------------------------------------------------------------------- command line


def main(argv: Sequence[str] | None = None) -> None:
    """Score a pred.json against FreiHAND's annotation."""
    parser = argparse.ArgumentParser(description="Errors of hand and body meshes, by protocol.")
    parser.add_argument("files", nargs="*", metavar="JSON",
                        help="pred.json evaluation_xyz.json evaluation_verts.json")
    hands = sorted(name for name, rules in PROTOCOLS.items() if rules.joints == "hand21")
    parser.add_argument("--protocol", choices=hands, default="freihand")
    arguments = parser.parse_args(argv)
    if len(arguments.files) != 3:
        parser.error("give pred.json evaluation_xyz.json evaluation_verts.json")
    prediction, *truth = arguments.files
    try:
        target = pair(*map(read_json, truth), ", ".join(truth) + ": ")
        both = read_predictions(prediction, len(target[0])), target
        report = evaluate(arguments.protocol, *(
            {"joints": joints, "vertices": vertices} for joints, vertices in both))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for name, value in report.items():
        print(f"{name:12} {value:9.4f}")


if __name__ == "__main__":
    main()
