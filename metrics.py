"""Errors between predicted and true joints and meshes, and the protocols that papers report.

Points are (B, N, 3) in metres: B samples of N corresponding joints or vertices. Every function
takes torch tensors (any float type, CPU or CUDA) or numpy arrays and answers in kind; none
carries a gradient. A sample that holds a NaN or an infinity scores NaN, its neighbours in the
batch are not touched. `evaluate` alone leaves metres, for the unit its protocol reports.

    procrustes_align    the best similarity transform of each sample onto its target
    mpjpe, pve          mean distance of the joints, of the vertices
    pa_mpjpe, pa_pve    the same after procrustes_align
    f_score             harmonic mean of precision and recall of two point clouds
    pck_auc             area under the curve "share of points within t"
    PROTOCOLS           what one benchmark measures, by name
    evaluate            one protocol's table for one set of predictions
    read_predictions    FreiHAND's pred.json, and write_predictions

    python metrics.py pred.json evaluation_xyz.json evaluation_verts.json
"""

from __future__ import annotations

import argparse
import functools
import json
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

Points = TypeVar("Points", Tensor, np.ndarray)

# Scratch memory of one chunk of samples. A batch whose temporaries fall out of the processor's
# cache spends its time waiting for memory; a GPU wants few, large pieces.
CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**28}


def _chunks(samples: int, bytes_each: int, device: torch.device) -> list[slice]:
    """Slices of equal length, but for the last, that cover all samples."""
    size = max(1, CHUNK_BYTES[device.type] // bytes_each)
    return [slice(start, min(start + size, samples)) for start in range(0, samples, size)]


def _share_out(work: Callable[..., None], bytes_each: int, *batches: Tensor) -> None:
    """work(*batches), the samples shared out among as many threads as torch may use.

    Torch by itself divides each operation. Its threads then meet thousands of times, and where
    another program holds a core every meeting costs milliseconds. These meet once.
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
    """`torch.empty`, but on the CPU from numpy.

    That asks the system for huge pages: megabytes never used before are written six times faster.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size == 0:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size, np.uint8)).view(dtype).view(shape)


def _tensor(points: Points) -> Tensor:
    if isinstance(points, Tensor):
        return points.detach()
    return torch.from_numpy(np.require(points, requirements=["C", "W"]))  # torch's own terms


def _in_kind(function: Callable) -> Callable:
    """Turns a function of two tensors (B, N, 3) into one that checks and takes arrays, too."""

    @functools.wraps(function)
    @torch.no_grad()
    def wrapped(prediction: Points, target: Points, *args, **options) -> Points:
        tensors = [_tensor(points) for points in (prediction, target)]
        for points in tensors:
            if points.ndim != 3 or points.shape[1] == 0 or points.shape[2] != 3:
                raise ValueError(f"{function.__name__}: expected points (batch, at least one, 3), "
                                 f"got {tuple(points.shape)}")
            if not points.is_floating_point():
                raise ValueError(f"{function.__name__}: expected floating point coordinates in "
                                 f"metres, got {points.dtype}")
        if tensors[0].shape != tensors[1].shape:
            raise ValueError(f"{function.__name__}: the two sets must have the same shape, got "
                             f"{tuple(tensors[0].shape)} and {tuple(tensors[1].shape)}")
        result = function(tensors[0], tensors[1].to(tensors[0].device), *args, **options)
        return result if isinstance(prediction, Tensor) else result.numpy()[()]

    return wrapped


# -------------------------------------------------------------------------------- procrustes


@_in_kind
def procrustes_align(source: Points, target: Points, *, allow_reflection: bool = False,
                     scale: bool = True, norm_guard: float = 0.0) -> Points:
    """Each source moved onto its target by the best similarity transform (B, N, 3).

    Minimises sum ||s R x + t - y||^2 over rotations R, translations t and, if `scale`, s >= 0;
    with `allow_reflection` R may mirror, too. Umeyama, "Least-squares estimation of
    transformation parameters between two point patterns", PAMI 1991. Defined for any points:
    where several transforms are best (one, two or collinear points) it returns one of them, and
    a source without extent lands on the target's mean. Computed in float64 (sizes 1e-150 to
    1e150), returned in the source's type. FreiHAND's script adds a `norm_guard` (m) to the norm
    that s divides by: a tiny source stays too small, and a perfect one is off by nanometres.
    """
    aligned = _empty(source.shape, source.dtype, source.device)

    def align(source: Tensor, target: Tensor, aligned: Tensor) -> None:
        chunks = _chunks(len(source), 48 * source.shape[1], source.device)
        buffers = _empty((2, chunks[0].stop if chunks else 0, 3, source.shape[1]),
                         torch.float64, source.device)
        source_mean, target_mean, cross, norm = _moments(source, target, chunks, buffers)
        linear = _best_linear(cross, norm + norm_guard, allow_reflection, scale)
        offset = target_mean - linear @ source_mean
        for chunk in chunks:
            x = _columns(source[chunk], buffers[0])
            y = torch.baddbmm(offset[chunk], linear[chunk], x, out=buffers[1, :len(x)])
            for axis in range(3):
                aligned[chunk, :, axis] = y[:, axis]

    _share_out(align, 48 * source.shape[1], source, target, aligned)
    return aligned


def _columns(points: Tensor, buffer: Tensor) -> Tensor:
    """Points (C, N, 3) as float64 columns (C, 3, N), written into the buffer."""
    return buffer[:len(points)].copy_(points.transpose(1, 2))


def _moments(source: Tensor, target: Tensor, chunks: Sequence[slice], buffers: Tensor
             ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means (B, 3, 1) of both; of the centred points sum x y^T (B, 3, 3) and the norm of x (B,)."""
    source_mean, target_mean = buffers.new_empty(2, len(source), 3, 1)
    cross = buffers.new_empty(len(source), 3, 3)
    norm = buffers.new_empty(len(source))
    for chunk in chunks:
        x, y = _columns(source[chunk], buffers[0]), _columns(target[chunk], buffers[1])
        x -= torch.mean(x, 2, keepdim=True, out=source_mean[chunk])
        y -= torch.mean(y, 2, keepdim=True, out=target_mean[chunk])
        torch.bmm(x, y.transpose(1, 2), out=cross[chunk])
        torch.linalg.vector_norm(x, dim=(1, 2), out=norm[chunk])
    return source_mean, target_mean, cross, norm


def _best_linear(cross: Tensor, norm: Tensor, allow_reflection: bool, scale: bool) -> Tensor:
    """The matrices s R (B, 3, 3) that fit best, NaN where the moments are not finite."""
    invalid = ~(cross.sum((1, 2)) + norm).isfinite()[:, None, None]
    u, singular, vh = torch.linalg.svd(cross.masked_fill(invalid, 0))  # x y^T = U S V^T
    if not allow_reflection:  # turn a mirror into the best rotation: give up the last direction
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
    """A half float cannot tell millimetres apart: errors are float32 at least."""
    return torch.promote_types(points.dtype, torch.float32)


@_in_kind
def mpjpe(prediction: Points, target: Points) -> Points:
    """Mean per-joint position error (B,), of joints as given: subtract the root first."""
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
    """Area under the curve of PCK, a number from 0 to 1 for the whole batch.

    PCK(t), "percentage of correct keypoints", is the share of points with an error <= t, here at
    `steps` thresholds from `low` to `high` metres (FreiHAND's by default); the trapezoids are
    divided by the range. The official mean over keypoints is this pooled curve, as every
    keypoint is seen equally often.
    """
    thresholds = torch.from_numpy(np.linspace(low, high, steps)).to(prediction.device)
    distances = _distances(prediction, target).flatten()
    first = torch.bucketize(distances, thresholds)  # the first threshold that the error passes
    correct = torch.bincount(first, minlength=steps + 1)[:steps].cumsum(0)
    return torch.trapezoid(correct / len(distances), thresholds) / (high - low)


@_in_kind
def f_score(prediction: Points, target: Points, thresholds: Sequence[float] = (0.005, 0.015)
            ) -> Points:
    """F-scores (B, T) of two point clouds at T thresholds, compared with a strict <.

    Precision is the share of predicted points with a true point nearby, recall the share of true
    points with a predicted one; correspondence plays no part. Knapitsch et al., "Tanks and
    Temples", 2017.
    """
    limits = torch.tensor(thresholds, dtype=torch.float64, device=prediction.device)
    scores = limits.new_empty(len(prediction), len(limits))
    sample_bytes = 256 * prediction.shape[1]

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
    """|a_i - b_j|^2 at its least for each a_i and each b_j (C, N), and a bound (C, 1) on rounding.

    |a|^2 - 2 a.b + |b|^2 is a matrix product of five columns. Terms cancel, so the error is
    relative to the size of the clouds: at most 7 roundings, half an eps each.

    On the CPU the product is float32, twice as fast, by numpy, whose float32 is one whatever
    precision torch is allowed to use, and in blocks of rows that are too small for its BLAS to
    divide among threads (2^18 multiplications).
    """
    centre = b.mean(1, keepdim=True)
    a, b = a - centre, b - centre
    a_squared, b_squared = (points.square().sum(2, keepdim=True) for points in (a, b))
    reach = (a_squared.amax(1).sqrt() + b_squared.amax(1).sqrt()).square()
    one = torch.ones_like(a_squared)
    count = a.shape[1]
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
    """The share (T, C) of points (C, N, 3) with one of the others strictly within each limit.

    `nearest` (C, N) are squared distances up to `rounding`. Where that could decide, the point
    is compared with all the others once more, exactly as the official script would.
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
    """What a benchmark measures. Joints and vertices are each aligned on their own.

    Its target is the data set's truth: of bodies the mesh of the gendered model, or joints alone.
    """

    joints: str  # a name of bodymodels.JOINT_SETS
    root: tuple[int, ...]  # joints whose mean is the origin of the unaligned errors; (): as given
    alignment: str  # "similarity", or "rigid": without scale, or "": no aligned errors
    allow_reflection: bool  # whether the alignment may mirror
    norm_guard: float  # m, see procrustes_align
    unit: str  # of the reported distances, a name of UNITS
    f_thresholds: tuple[float, ...]  # m; (): no F-scores
    auc_thresholds: tuple[float, float, int] | tuple[()]  # first and last in m, and how many
    source: str  # where these rules are written
    vertex_error: str = "MPVPE"  # what the field calls it: of bodies, MVE; "": joints alone
    aligned_vertices: bool = True  # whether the vertices' error after alignment is reported
    scored: str = ""  # the joints whose errors count, a name of JOINT_SETS; "": all
    hands: str = ""  # the protocol by which both hands of a whole body are judged as well


PROTOCOLS = {
    "freihand": Protocol(
        joints="hand21", root=(), alignment="similarity", allow_reflection=True, norm_guard=1e-8,
        unit="mm", f_thresholds=(0.005, 0.015), auc_thresholds=(0.0, 0.05, 100),
        source="Zimmermann et al., ICCV 2019, and eval.py of the data set's repository"),
    "rendered_hands": Protocol(
        joints="hand21", root=(9,), alignment="similarity", allow_reflection=False, norm_guard=0.0,
        unit="mm", f_thresholds=(0.005, 0.015), auc_thresholds=(0.0, 0.05, 100),
        source="Ours: a single image does not tell how far a hand is, so unaligned errors are "
               "relative to each hand's root; a mirrored hand is an error"),
    "rendered_bodies": Protocol(
        joints="smpl24", root=(0,), alignment="similarity", allow_reflection=False, norm_guard=0.0,
        unit="mm", f_thresholds=(), auc_thresholds=(), vertex_error="MVE",
        source="Ours, after what papers report on 3DPW: relative to the pelvis, the body models' "
               "own joints; vertices are aligned on their own"),
    "rendered_people": Protocol(
        joints="smplx76", root=(0,), alignment="similarity", allow_reflection=False,
        norm_guard=0.0, unit="mm", f_thresholds=(), auc_thresholds=(), vertex_error="PVE",
        scored="smpl14", hands="rendered_people_hands",
        source="SMPLer-X's evaluation, which HMR-Adapter follows: vertices relative to the pelvis, "
               "14 joints. There both come from regressors on the mesh, here from the body model"),
    "rendered_people_hands": Protocol(
        joints="hand21", root=(0,), alignment="similarity", allow_reflection=False, norm_guard=0.0,
        unit="mm", f_thresholds=(), auc_thresholds=(), vertex_error="PVE",
        source="The same: a hand's 778 vertices relative to its wrist, which moves them but does "
               "not turn them, and its 21 joints; the mean over all hands, seen or not"),
    "dexycb_s0": Protocol(
        joints="hand21", root=(0,), alignment="similarity", allow_reflection=True, norm_guard=0.0,
        unit="mm", f_thresholds=(), auc_thresholds=(0.0, 0.05, 100),
        source="Chao et al., CVPR 2021: relative to the wrist, of joint_3d (whose tips are "
               "manopth's vertices) and of the meshes of pose_m; the toolkit's Procrustes may "
               "mirror. Frames without a hand do not count: 78,768 of s0's test"),
    "h36m_p2_lsp14": Protocol(
        joints="j17", root=(14,), alignment="similarity", allow_reflection=False, norm_guard=0.0,
        unit="mm", f_thresholds=(), auc_thresholds=(), vertex_error="", scored="lsp14",
        source="SPIN and HMR2.0, which GenHMR follows: joints of motion capture against those that "
               "SPIN's J_regressor_h36m takes from the mesh, relative to either's own pelvis"),
    "3dpw_lsp14": Protocol(
        joints="j17", root=(14,), alignment="similarity", allow_reflection=False, norm_guard=0.0,
        unit="mm", f_thresholds=(), auc_thresholds=(), vertex_error="MVE", scored="lsp14",
        aligned_vertices=False,
        source="SPIN, HMR2.0 and GenHMR: both meshes' joints by J_regressor_h36m, the true mesh of "
               "the gendered SMPL; 35,515 people of the test split"),
    "3dpw_smplx_lineage": Protocol(
        joints="smpl24", root=(0,), alignment="similarity", allow_reflection=False,
        norm_guard=0.0, unit="mm", f_thresholds=(), auc_thresholds=(), vertex_error="",
        scored="smpl14",
        source="SMPLer-X and HMR-Adapter: 14 of SMPL's own joints, Moon's files, neutral SMPL; not "
               "to be compared with 3dpw_lsp14"),
    "emdb1_24": Protocol(
        joints="smpl24", root=(1, 2), alignment="similarity", allow_reflection=False,
        norm_guard=0.0, unit="mm", f_thresholds=(), auc_thresholds=(), vertex_error="MVE",
        aligned_vertices=False,
        source="Kaufmann et al., ICCV 2023: 24 joints relative to the middle of the hips, gendered "
               "SMPL, all good frames of EMDB-1 (its vertices after alignment follow the joints' "
               "transform: not reported here)"),
    "pose_reconstruction": Protocol(
        joints="smpl24", root=(), alignment="", allow_reflection=False, norm_guard=0.0,
        unit="mm", f_thresholds=(), auc_thresholds=(), vertex_error="MVE",
        source="GenHMR, AAAI 2025, Tables 5 and 6: what a pose tokenizer loses, global orientation "
               "included"),
}
PROTOCOLS |= {name: PROTOCOLS["pose_reconstruction"] for name in ("amass_test", "moyo_val")}
PROTOCOLS |= {name: replace(PROTOCOLS["rendered_people"], source=(
    f"{data} as SMPLer-X and HMR-Adapter judge: vertices relative to the pelvis, those of hands to "
    "the wrist, those of EHF's faces to the neck. Joints are what the neutral J_regressor takes "
    "from either mesh, but the 14 of the body, which are SMPLX_to_J14.pkl's"))
    for name, data in (("ehf", "EHF's 100 meshes"), ("arctic_p1val", "ARCTIC's p1 val, views 1-8"))}


def evaluate(protocol: str, prediction: Mapping[str, Points], target: Mapping[str, Points],
             hand_vertices: str | Path = "wholebody", face_vertices: str | Path | None = None
             ) -> dict[str, float]:
    """The table of one protocol, means over the samples.

    `prediction` and `target` hold "joints" (B, J, 3) and, unless it judges joints alone,
    "vertices" (B, V, 3) in metres, in the same frame. hand_vertices: of a whole body, the source
    of `bodymodels.hand_vertex_ids`; MANO_SMPLX_vertex_ids.pkl for SMPL-X. Lengths come in the
    protocol's unit, F-scores and areas from 0 to 1. As papers do, F@5 (5 mm), F@15 and AUC are
    taken after alignment; "raw" names those before. A protocol without alignment, or without
    these, leaves them out. One for whole bodies adds the rows of its hands, named "hands ...", and
    with face_vertices, SMPL-X__FLAME_vertex_ids.npy, those of its face, relative to the neck. If
    both hold "scored", joints that another regressor took from the meshes, those are scored in the
    place of the protocol's; the root stays.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: expected one of {sorted(PROTOCOLS)}")
    rules = PROTOCOLS[protocol]
    both = prediction, target
    prediction, target = (_rooted(points, rules) for points in both)
    stages = [(prediction, "", " raw" if rules.alignment else "")]
    if rules.alignment:
        aligned = {name: procrustes_align(prediction[name], target[name],
                                          allow_reflection=rules.allow_reflection,
                                          norm_guard=rules.norm_guard,
                                          scale=rules.alignment == "similarity")
                   for name in prediction}
        stages.insert(0, (aligned, "PA-", ""))
    per_metre = UNITS[rules.unit]
    report = {}
    for points, before, after in stages:
        joints = points["joints"], target["joints"]
        report[f"{before}MPJPE"] = per_metre * mpjpe(*joints).mean()
        if not rules.vertex_error or before and not rules.aligned_vertices:
            continue
        vertices = points["vertices"], target["vertices"]
        report[f"{before}{rules.vertex_error}"] = per_metre * pve(*vertices).mean()
        if rules.f_thresholds:
            scores = f_score(*vertices, rules.f_thresholds).mean(0)
            for threshold, mean in zip(rules.f_thresholds, scores, strict=True):
                report[f"F@{1000 * threshold:g}{after}"] = mean
        if rules.auc_thresholds:
            report[f"AUC-J{after}"] = pck_auc(*joints, *rules.auc_thresholds)
            report[f"AUC-V{after}"] = pck_auc(*vertices, *rules.auc_thresholds)
    if rules.hands:
        hands = evaluate(rules.hands, *(both_hands(points, hand_vertices) for points in both))
        report |= {f"hands {name}": value for name, value in hands.items()}
    if face_vertices is not None:
        ids = np.load(face_vertices, allow_pickle=False)
        neck = bodymodels.JOINT_SETS[rules.joints].index("neck")
        faces = [_tensor(points["vertices"])[:, ids] - _tensor(points["joints"])[:, [neck]]
                 for points in both]
        report |= {f"face {before}PVE": per_metre * error(*faces).mean()
                   for before, error in (("PA-", pa_pve), ("", pve))}
    return {name: float(value) for name, value in report.items()}


def both_hands(points: Mapping[str, Points], source: str | Path = "wholebody"
               ) -> dict[str, Tensor]:
    """Joints (2B, 21, 3) and vertices (2B, 778, 3) of the hands of B whole bodies.

    points: "joints" (B, 76, 3) in "smplx76" order and "vertices" (B, 10475, 3). All left hands
    come first, then all right ones, as they are: nothing is mirrored.
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


def _rooted(points: Mapping[str, Points], rules: Protocol) -> dict[str, Tensor]:
    """Joints and, if they are judged, vertices, in float64, minus the root of the joints."""
    wanted = ["joints", "vertices"] if rules.vertex_error else ["joints"]
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


# --------------------------------------------------------------------------- prediction files


def write_dexycb(path: str | Path, numbers: Sequence[int], joints: Points) -> None:
    """Predictions for the toolkit of DexYCB: a line of number and 63 millimetres for each sample.

    numbers: the official ones of the split, `person` of data.DexYCB's records. joints (N, 21, 3):
    metres in the camera's frame, left hands as left hands.
    """
    millimetres = 1000 * np.asarray(_tensor(joints).cpu(), np.float64).reshape(len(numbers), 63)
    lines = (",".join([str(int(number)), *(f"{value:.4f}" for value in row)])
             for number, row in zip(numbers, millimetres, strict=True))
    bodymodels.write_atomically(path, ("\n".join(lines) + "\n").encode())


def read_predictions(path: str | Path, samples: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Joints (N, 21, 3) and vertices (N, 778, 3) of a pred.json in FreiHAND's layout.

    The file is a list of two, [xyz_list, verts_list], in metres and in the order of the data
    set. ValueError says what is wrong in it, or that it does not hold `samples` samples.
    """
    content = _read_json(path)
    if not isinstance(content, list) or len(content) != 2:
        raise ValueError(f"{path}: expected a list of two, [xyz_list, verts_list]")
    joints, vertices = _pair(content[0], content[1], f"{path}: ")
    if samples is not None and len(joints) != samples:
        raise ValueError(f"{path}: expected {samples} samples, got {len(joints)}")
    return joints.astype(np.float64), vertices.astype(np.float64)


def write_predictions(path: str | Path, joints: Points, vertices: Points) -> None:
    """Write joints (N, 21, 3) and vertices (N, 778, 3), in metres, as FreiHAND's pred.json.

    The digits written give back the same float32 or float64.
    """
    joints, vertices = (points.to(_error_type(points)).numpy(force=True)
                        for points in map(_tensor, (joints, vertices)))
    texts = []
    for points in _pair(joints, vertices):
        digits = "%.9g" if points.dtype == np.float32 else "%.17g"
        row = "[" + ",".join([digits] * 3) + "]"
        sample = "[" + ",".join([row] * points.shape[1]) + "]"
        texts.append("[" + ",".join(sample % tuple(values.ravel()) for values in points) + "]")
    bodymodels.write_atomically(path, f"[{texts[0]},{texts[1]}]".encode())


def _pair(joints: Sequence, vertices: Sequence, where: str = "") -> tuple[np.ndarray, np.ndarray]:
    joints = _samples(joints, 21, f"{where}joints")
    vertices = _samples(vertices, 778, f"{where}vertices")
    if len(joints) != len(vertices):
        raise ValueError(f"{where}expected joints and vertices of the same samples, "
                         f"got {len(joints)} and {len(vertices)}")
    return joints, vertices


def _samples(samples: Sequence, count: int, name: str) -> np.ndarray:
    """Samples as one array (N, count, 3). ValueError names the first that cannot be."""
    if not isinstance(samples, list | np.ndarray):
        raise ValueError(f"{name}: expected a list with one entry per sample, got {samples!r:.40}")
    arrays = [_sample(sample, count, f"{name}[{index}]") for index, sample in enumerate(samples)]
    return np.stack(arrays) if arrays else np.empty((0, count, 3))


def _sample(sample: Sequence, count: int, name: str) -> np.ndarray:
    try:
        values = np.array(sample)  # no dtype asked for: text must not pass for numbers
    except ValueError:  # ragged
        values = np.array(None)
    if values.shape != (count, 3) or values.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected {count} points of 3 numbers, got {sample!r:.60}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: not finite at point {np.argwhere(~np.isfinite(values))[0, 0]}")
    return values


def _read_json(path: str | Path) -> object:
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:  # no JSON, no text
        raise ValueError(f"{path} is not a JSON file: {error}") from None


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
    try:
        report = _evaluate_files(arguments.protocol, *arguments.files)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for name, value in report.items():
        print(f"{name:12} {value:9.4f}")


def _evaluate_files(protocol: str, prediction: str, joints: str, vertices: str
                    ) -> dict[str, float]:
    truth = _pair(_read_json(joints), _read_json(vertices), f"{joints}, {vertices}: ")
    guess = read_predictions(prediction, len(truth[0]))
    return evaluate(protocol, *({"joints": points[0], "vertices": points[1]}
                                for points in (guess, truth)))


if __name__ == "__main__":
    main()
