"""metrics.py: alignment, errors, prediction files, and protocols against a loop."""

import itertools
import json
import math
import os

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from official_folders import RNG
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from set_samples import HAND_IDS, WHOLE, seeds

import bodymodels as bm
import metrics

pytestmark = pytest.mark.usefixtures("few_vertices")

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def clouds(seed, *shape, size=0.05):
    """Random points the size of a hand, float64."""
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(*shape, 3, generator=generator, dtype=torch.float64)


def similarities(seed, points):
    """Each sample of (B, N, 3) moved by its own rotation, scale and translation."""
    turns = torch.from_numpy(Rotation.random(len(points), random_state=seed).as_matrix())
    scale = 2 ** clouds(seed, len(points), 1, size=1)[..., :1]
    return scale * points @ turns + clouds(seed + 1, len(points), 1, size=1)


def squared_error(aligned, target):
    return (aligned.double() - target.double()).square().sum((1, 2))


def least_squared_error(source, target, allow_reflection, scale=True):
    """What the best transform leaves, from singular values alone: |y|^2 - (tr S)^2 / |x|^2, or
    without scale |y|^2 + |x|^2 - 2 tr S."""
    results = []
    for x, y in zip(source.double().numpy(), target.double().numpy(), strict=True):
        x, y = x - x.mean(0), y - y.mean(0)
        u, singular, vh = np.linalg.svd(x.T @ y)
        if not allow_reflection and np.linalg.det(u @ vh) < 0:
            singular[2] *= -1
        trace, size = singular.sum(), (x**2).sum()
        explained = 2 * trace - size if not scale else trace**2 / size if size > 0 else 0
        results.append((y**2).sum() - explained)
    return torch.tensor(results, dtype=torch.float64)


# -------------------------------------------------------------------------------- procrustes


@given(seeds, st.integers(1, 30), st.booleans(), st.booleans())
def test_procrustes_leaves_the_least_error_there_is(seed, points, allow_reflection, scale):
    """The error equals the one that the singular values promise, down to a single point."""
    source, target = clouds(seed, 3, points), clouds(seed + 1, 3, points)
    aligned = metrics.procrustes_align(source, target, allow_reflection=allow_reflection,
                                       scale=scale)
    torch.testing.assert_close(
        squared_error(aligned, target),
        least_squared_error(source, target, allow_reflection, scale), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(metrics.mpjpe(source, target), (source - target).norm(dim=2).mean(1))
    if scale:
        pa_mpjpe = metrics.pa_mpjpe(source, target, allow_reflection=allow_reflection)
        torch.testing.assert_close(pa_mpjpe, (aligned - target).norm(dim=2).mean(1))


def degenerate_pairs():
    """(source, target), each (1, N, 3): everything an alignment should survive."""
    hand, other = clouds(0, 1, 21, size=1), clouds(1, 1, 21, size=1)
    whole, flat, line, point, mirror = torch.tensor([  # collapse the axes
        [1.0, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [-1, 1, 1]])
    octahedron = torch.cat([torch.eye(3), -torch.eye(3)])[None].double()
    place = torch.tensor([0.1, 0.2, 0.7])
    pairs = [(hand * a, other * b) for a, b in itertools.product((whole, flat, line, point),
                                                                 repeat=2)]
    pairs += [(hand[:, :count], other[:, :count]) for count in (1, 2, 3)]
    pairs += [(hand * point + place, other * point - place), (hand * point + place, other)]
    return pairs + [(hand * mirror, hand), (hand * flat * mirror, hand * flat), (hand, hand),
                    (-hand, hand), (-octahedron, octahedron), (octahedron, octahedron)]


@pytest.mark.parametrize("dtype", FLOATS)
def test_procrustes_of_degenerate_points(dtype):
    """Finite, of the given type, and as close as any similarity gets; batches of 0 to 3, as a batch
    axis of three is easily mistaken for another."""
    for pair, samples in itertools.product(degenerate_pairs(), range(4)):
        source, target = (points.to(dtype).expand(samples, -1, -1) for points in pair)
        for allow_reflection in (False, True):
            aligned = metrics.procrustes_align(source, target, allow_reflection=allow_reflection)
            assert aligned.dtype == dtype and aligned.isfinite().all()
            least = least_squared_error(source, target, allow_reflection).clamp(min=0).sqrt()
            rounding = 10 * torch.finfo(dtype).eps  # of 63 coordinates around 1
            assert (squared_error(aligned, target).sqrt() <= least + rounding).all()
        assert metrics.f_score(source, target).shape == (samples, 2)
        assert metrics.mpjpe(source, target).dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("to", [1e-20, 1e-12, 1.0, 1e20])
@pytest.mark.parametrize("size", [1e-20, 1e-12, 1.0, 1e20])
def test_procrustes_at_every_scale(size, to):
    """A hand of 1e-20 m is aligned to one of 1e20 m, in float32, as well as any other."""
    target = clouds(0, 3, 21, size=1).float()
    source = similarities(1, target.double()).float()
    aligned = metrics.procrustes_align(size * source, to * target)
    torch.testing.assert_close(aligned / to, target, rtol=0, atol=1e-5)
    assert (metrics.pa_mpjpe(size * source, to * target) <= 1e-6 * to).all()


@pytest.mark.parametrize("chunk_bytes", [1, 3000])
def test_batch_is_a_loop_over_its_samples(monkeypatch, chunk_bytes):
    """Neither the batch nor its division into chunks changes a sample's result."""
    source, target = clouds(0, 7, 21), clouds(1, 7, 21)
    functions = (metrics.procrustes_align, metrics.pa_mpjpe, metrics.f_score)
    loop = [torch.cat([function(source[i:i + 1], target[i:i + 1]) for i in range(7)])
            for function in functions]
    for _ in range(2):
        for function, expected in zip(functions, loop, strict=True):
            torch.testing.assert_close(function(source, target), expected, rtol=0, atol=1e-14)
        monkeypatch.setitem(metrics.CHUNK_BYTES, "cpu", chunk_bytes)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["source", "target", "both"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_bad_sample_is_nan_alone(bad, which, dtype):
    """One NaN or infinite coordinate makes its sample NaN and leaves the others as they were."""
    source, target = clouds(0, 5, 21).to(dtype), clouds(1, 5, 21).to(dtype)
    functions = (metrics.procrustes_align, metrics.pa_mpjpe, metrics.f_score)
    clean = [function(source, target) for function in functions]
    for points in {"source": [source], "target": [target], "both": [source, target]}[which]:
        points[2, 7, 1] = bad
    others = [0, 1, 3, 4]
    for function, before in zip(functions, clean, strict=True):
        after = function(source, target)
        assert after[2].isnan().all()
        assert torch.equal(after[others], before[others])
    if which != "both":  # inf - inf
        assert not metrics.mpjpe(source, target)[2].isfinite()


# ------------------------------------------------------------------------------------- kinds


def test_numpy_in_numpy_out():
    """Arrays and tensors get the same answers, in any layout; nothing is written or tracked."""
    source, target = clouds(0, 3, 21).float(), clouds(1, 3, 21).float()
    before = source.clone()
    transposed = np.ascontiguousarray(source.numpy().transpose(2, 1, 0)).transpose()
    read_only = np.frombuffer(target.numpy().tobytes(), np.float32).reshape(target.shape)
    for function in (metrics.procrustes_align, metrics.mpjpe, metrics.pa_mpjpe, metrics.f_score,
                     metrics.pck_auc):
        expected, result = function(source, target), function(transposed, read_only)
        assert isinstance(expected, torch.Tensor) and isinstance(result, np.ndarray | np.floating)
        np.testing.assert_array_equal(result, expected.numpy())
        assert not function(source.clone().requires_grad_(), target).requires_grad
    assert torch.equal(source, before)


@pytest.mark.parametrize(("source", "target", "message"), [
    (torch.zeros(21, 3), torch.zeros(21, 3), r"expected points \(batch, at least one, 3\)"),
    (torch.zeros(2, 3, 21), torch.zeros(2, 3, 21), r"got \(2, 3, 21\)"),
    (torch.zeros(2, 0, 3), torch.zeros(2, 0, 3), "at least one"),
    (torch.zeros(2, 21, 3), torch.zeros(1, 21, 3), "same shape"),
    (torch.zeros(2, 21, 3).int(), torch.zeros(2, 21, 3), "floating point"),
])
def test_wrong_points_are_named(source, target, message):
    """One clear ValueError, nothing broadcast by accident."""
    for function in (metrics.procrustes_align, metrics.mpjpe, metrics.f_score, metrics.pck_auc):
        with pytest.raises(ValueError, match=message):
            function(source, target)


# ------------------------------------------------------------------------------------ errors


def test_convention_f_score_is_strict():
    """A point at exactly the threshold does not count; 0.5 and its square are exact."""
    target = np.zeros((1, 1, 3))
    prediction = np.array([[[0.0, 0.5, 0.0]]])
    assert metrics.f_score(prediction, target, [0.5, np.nextafter(0.5, 1)]).tolist() == [[0, 1]]
    assert metrics.f_score(target, target, [0.0, 1e-300]).tolist() == [[0, 1]]


def test_convention_pck_counts_the_threshold():
    """An error equal to threshold k of 0 to 99 gives the area (99 - k + 1/2) / 99."""
    thresholds = np.linspace(0, 0.05, 100)
    target = np.zeros((1, 1, 3))
    for k in range(1, 100):
        prediction = np.array([[[thresholds[k], 0, 0]]])
        assert metrics.pck_auc(prediction, target) == pytest.approx((99.5 - k) / 99, abs=1e-12)
    assert metrics.pck_auc(target, target) == pytest.approx(1)
    assert metrics.pck_auc(target + 1, target) == 0
    assert metrics.pck_auc(target * np.nan, target) == 0


# --------------------------------------------------------------------------- prediction files


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("samples", [0, 1, 3])
def test_predictions_survive_the_file(tmp_path, dtype, samples):
    """What is read is what was written, bit for bit, in the official layout."""
    random = np.random.default_rng(0)
    joints, vertices = ((random.normal(size=(samples, count, 3))
                         * 10.0 ** random.integers(-30, 30, (samples, count, 3))).astype(dtype)
                        for count in (21, 778))
    path = tmp_path / "pred.json"
    metrics.write_predictions(path, joints, torch.from_numpy(vertices))
    plain = [np.array(points).reshape(-1, count, 3) for points, count in zip(
        json.loads(path.read_text()), (21, 778), strict=True)]
    for read in (metrics.read_predictions(path, samples), plain):
        for points, written in zip(read, (joints, vertices), strict=True):
            assert points.dtype == np.float64 and points.shape == written.shape
            assert np.array_equal(points.astype(dtype), written)


JOINTS, VERTICES = [[0.0] * 3] * 21, [[0.0] * 3] * 778


@pytest.mark.parametrize(("content", "message"), [
    (b"[[[0.1, 0.2", "not a JSON file"), (b"[" * 100_000, "not a JSON file"),
    ({"joints": []}, r"list of two, \[xyz_list, verts_list\]"),
    ([[JOINTS], VERTICES], "vertices: expected 778 points of 3 numbers"),
    ([[JOINTS, JOINTS], [VERTICES]], "same samples, got 2 and 1"),
    ([[JOINTS, JOINTS[:-1]], [VERTICES] * 2], "joints: expected 21 points"),
    ([[JOINTS], [VERTICES[:-1] + [[0.0, 0.0, "0"]]]], "vertices: expected 778 points"),
    ([[JOINTS], [VERTICES[:-1] + [[0.0, 0.0, math.nan]]]], r"\[0\]: not finite at point 777"),
    ([[], []], "expected 2 samples, got 0"),
])
def test_a_bad_file_is_named(tmp_path, content, message):
    """One ValueError that names the file and the first thing wrong in it."""
    path = tmp_path / "pred.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ValueError, match=message) as caught:
        metrics.read_predictions(path, 2)
    assert "pred.json" in str(caught.value)


def test_bad_predictions_are_not_written(tmp_path):
    """An error leaves the file that was there, and nothing beside it."""
    path = tmp_path / "pred.json"
    joints, vertices = np.zeros((2, 21, 3)), np.zeros((2, 778, 3))
    metrics.write_predictions(path, joints, vertices)
    before, bad = path.read_bytes(), vertices.copy()
    bad[1, 5, 0] = math.nan
    for wrong, message in ((bad, r"vertices\[1\]: not finite at point 5"),
                           (vertices[:1], "same samples"), (joints, "expected 778 points")):
        with pytest.raises(ValueError, match=message):
            metrics.write_predictions(path, joints, wrong)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["pred.json"]


def test_command_line_scores_a_file(tmp_path, capsys):
    """It prints the table; other arguments end with one line, not a traceback."""
    target, noise = (dict(zip(("joints", "vertices"), (
        clouds(seed, 2, count).numpy() for count in (21, 778)), strict=True)) for seed in (0, 1))
    prediction = {name: points + 0.1 * noise[name] for name, points in target.items()}
    paths = [tmp_path / name for name in ("pred.json", "xyz.json", "verts.json")]
    metrics.write_predictions(paths[0], prediction["joints"], prediction["vertices"])
    for path, points in zip(paths[1:], target.values(), strict=True):
        path.write_text(json.dumps(points.tolist()))
    metrics.main(list(map(str, paths)))
    printed = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    table = metrics.evaluate("freihand", prediction, target)
    assert {name: float(value) for name, value in printed.items()} == pytest.approx(table, abs=1e-4)
    for arguments in ([], ["pred.json"], ["absent.json", "a.json", "b.json"]):
        with pytest.raises(SystemExit):
            metrics.main(arguments)
        assert "json" in capsys.readouterr().err.splitlines()[-1]


# --------------------------------------------------------------------------------- protocols

SMPL14 = [1, 2, 4, 5, 7, 8, 12, 15, 16, 17, 18, 19, 20, 21]  # SMPLer-X's
# name -> joints, root (two: their middle), joints that are scored, the mesh's row, and the aligned
# mesh's if there is one
RULES = {
    "freihand": (21, [], range(21), "MPVPE", "PA-MPVPE"),
    "rendered_hands": (21, [9], range(21), "MPVPE", "PA-MPVPE"),
    "dexycb_s0": (21, [0], range(21), "MPVPE", "PA-MPVPE"),
    "3dpw_lsp14": (17, [14], range(14), "MVE", ""),
    "h36m_p2_lsp14": (17, [14], range(14), "", ""),
    "hmr2_lsp14": (17, [14], range(14), "", ""),
    "emdb1_24": (24, [1, 2], range(24), "MVE", "PA-MVE"),
    "3dpw_smplx_lineage": (24, [0], SMPL14, "PVE", ""),
    "rendered_bodies": (24, [0], range(24), "MVE", "PA-MVE"),
    "rendered_people_hands": (21, [0], range(21), "PVE", "PA-PVE"),
    "pose_reconstruction": (24, [], range(24), "MVE", ""),
}
CURVES = {"freihand": "F AUC", "rendered_hands": "F AUC", "dexycb_s0": "AUC"}


def points_of(seed, joints, vertices=50):
    rng = np.random.default_rng(seed)
    return {"joints": rng.normal(size=(3, joints, 3)),
            "vertices": rng.normal(size=(3, vertices, 3))}


def aligned(source, target, mirror, moved, guard=0.0):
    """The similarity transform that takes source to target, applied to moved; by scipy."""
    middle, x, y = source.mean(0), source - source.mean(0), target - target.mean(0)
    rotation, _ = scipy.linalg.orthogonal_procrustes(x, y)
    if np.linalg.det(rotation) < 0 and not mirror:
        u, _, vh = np.linalg.svd(x.T @ y)
        rotation = u @ np.diag([1, 1, -1]) @ vh
    scale = ((x @ rotation) * y).sum() / (np.linalg.norm(x) + guard) ** 2
    return scale * (moved - middle) @ rotation + target.mean(0)


def f_score(points, truth, threshold):
    recall, precision = ((cKDTree(a).query(b)[0] < threshold).mean()
                         for a, b in ((points, truth), (truth, points)))
    return 2 * recall * precision / max(recall + precision, 1e-300)


def table_of(name, prediction, target):
    """The rows of a protocol, sample by sample and curve by curve."""
    _, root, scored, mesh, aligned_mesh = RULES[name]
    mirror, guard = name in ("freihand", "dexycb_s0"), 1e-8 if name == "freihand" else 0.0
    pairs = {}
    for a, b, mesh_a, mesh_b in zip(prediction["joints"], target["joints"],
                                    prediction["vertices"], target["vertices"], strict=True):
        origin = [points[root].mean(0) if root else 0 for points in (a, b)]
        a, b, mesh_a, mesh_b = (points - origin[index % 2] for index, points in
                                enumerate((a, b, mesh_a, mesh_b)))
        a, b = a[list(scored)], b[list(scored)]
        own = (a, b) if name == "emdb1_24" else (mesh_a, mesh_b)
        moved = aligned(*own, mirror, mesh_a, guard)
        for row, x, y in (("MPJPE", a, b), ("PA-MPJPE", aligned(a, b, mirror, a, guard), b),
                          (mesh, mesh_a, mesh_b), (aligned_mesh, moved, mesh_b)):
            pairs.setdefault(row, []).append((x, y))
    rows = {"MPJPE", mesh, aligned_mesh, "PA-MPJPE" if name != "pose_reconstruction" else ""} - {""}
    away = {row: np.array([np.linalg.norm(x - y, axis=1) for x, y in pairs[row]]) for row in rows}
    table, limits = {row: 1000 * away[row].mean() for row in rows}, np.linspace(0, 0.05, 100)
    for suffix, before in (("", "PA-"), (" raw", "")):
        for part, row in (("J", "MPJPE"), ("V", mesh)) if "AUC" in CURVES.get(name, "") else ():
            curve = (away[before + row][..., None] <= limits).mean((0, 1))
            table[f"AUC-{part}{suffix}"] = np.trapezoid(curve, limits) / 0.05
        for threshold in (5, 15) if "F " in CURVES.get(name, "") else ():
            table[f"F@{threshold}{suffix}"] = np.mean([
                f_score(*pair, threshold / 1000) for pair in pairs[before + mesh]])
    return table


@given(seeds)
@settings(max_examples=5)
@pytest.mark.parametrize("name", RULES)
def test_protocols_against_a_loop(name, seed):
    """Root, scored joints and units, before and after alignment; FreiHAND and DexYCB may mirror;
    EMDB's mesh moves with its joints; where the whole is does not matter to those with a root."""
    joints, root, *_, mesh, aligned_mesh = RULES[name]
    target = points_of(seed, joints)
    for share in (1.0, 0.01):  # far off, and within reach of the curves
        noise = points_of(seed + 1, joints)
        prediction = {part: points + share * noise[part] for part, points in target.items()}
        report = metrics.evaluate(name, prediction, target)
        assert report == pytest.approx(table_of(name, prediction, target), rel=1e-6)
    moved = {part: torch.from_numpy(points) + torch.tensor([0.3, -1, 5])
             for part, points in target.items()}
    report = metrics.evaluate(name, moved, target)
    assert not root or max(report[row] for row in ("MPJPE", mesh, aligned_mesh) if row) < 1e-6
    mirrored = {part: points * [-1, 1, 1] for part, points in target.items()}
    report = metrics.evaluate(name, mirrored, target)
    assert (report.get(aligned_mesh, 10) < 1e-5) == (name in ("freihand", "dexycb_s0"))


@pytest.mark.parametrize("factors", [0, 0.01, (-1, 1, 1), (1, 1, 0)], ids=str)
def test_freihand_of_absurd_predictions(factors):
    """Every number to 1e-6 of a point, a small, a mirrored and a flat hand; a NaN shows in the
    means."""
    target, noise = points_of(0, 21, 778), points_of(1, 21, 778)
    target = {name: 0.05 * points + (0.02, -0.03, 0.7) for name, points in target.items()}
    prediction = {name: factors * (points + 0.006 * noise[name])
                  for name, points in target.items()}
    table = metrics.evaluate("freihand", prediction, target)
    assert table == pytest.approx(table_of("freihand", prediction, target), abs=1e-6, rel=0)
    prediction["vertices"][2, 100, 1] = math.nan
    bad = metrics.evaluate("freihand", prediction, target)
    assert math.isnan(bad["PA-MPVPE"]) and math.isnan(bad["F@5"])
    assert bad["PA-MPJPE"] == table["PA-MPJPE"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_gives_the_numbers_of_the_cpu():
    both = points_of(0, 21), points_of(1, 21)
    on_gpu = ({name: torch.from_numpy(points).cuda() for name, points in each.items()}
              for each in both)
    expected = metrics.evaluate("freihand", *both)
    assert metrics.evaluate("freihand", *on_gpu) == pytest.approx(expected, abs=1e-9)


def whole_bodies(seed, batch=3):
    generator = torch.Generator().manual_seed(seed)
    pose = 0.4 * torch.randn(batch, 55, 3, generator=generator)
    output = WHOLE(torch.randn(batch, 10, generator=generator), pose)
    return {"joints": WHOLE.keypoints(output), "vertices": output.vertices}


ROWS = ["PA-MPJPE", "PA-PVE", "MPJPE", "PVE"]


def test_people_are_judged_by_body_and_hands():
    """PVE and 14 joints from the pelvis; hands from their wrist, aligned one by one, left and right
    averaged; nothing after alignment for a similarity transform of the whole."""
    prediction, target = whole_bodies(1), whole_bodies(2)
    report, expected = metrics.evaluate("rendered_people", prediction, target), {}
    assert list(report) == [*ROWS, *(f"hands {name}" for name in ROWS)]

    def compare(prefix, root, parts):
        pair = [{name: points[name].double().numpy() for name in points}
                for points in (prediction, target)]
        for a, b in zip(*(zip(points["joints"], points["vertices"], strict=True)
                          for points in pair), strict=True):
            for row, index, places in zip(("MPJPE", "PVE"), (0, 1), parts, strict=True):
                x, y = a[index][places] - a[0][root], b[index][places] - b[0][root]
                for name, moved in ((row, x), (f"PA-{row}", aligned(x, y, False, x))):
                    expected.setdefault(prefix + name, []).append(
                        1000 * np.linalg.norm(moved - y, axis=1).mean())

    compare("", 0, (SMPL14, slice(None)))
    for root, side in ((20, "left"), (21, "right")):
        compare("hands ", root, (bm.joint_indices("smplx76", f"{side}_hand21"),
                                 HAND_IDS[side].numpy()))
    assert report == pytest.approx({name: np.mean(errors) for name, errors in expected.items()},
                                   rel=1e-5)
    turn = bm.axis_angle_to_matrix(torch.tensor([0.3, -0.8, 0.5]))
    moved = {name: 1.3 * points @ turn + 3 for name, points in target.items()}
    report = metrics.evaluate("rendered_people", moved, target)
    assert all((report[name] < 1e-2) == ("PA-" in name) for name in report)


def test_vertices_are_optional_where_a_protocol_says_so():
    """SMPLer-X's rows on 3DPW leave PVE out; Human3.6M knows no vertices; 3DPW needs them."""
    prediction, target = points_of(0, 24), points_of(1, 24)
    del target["vertices"]
    assert list(metrics.evaluate("3dpw_smplx_lineage", prediction, target)) == ["PA-MPJPE", "MPJPE"]
    prediction, target = ({"joints": points_of(seed, 17)["joints"]} for seed in (0, 1))
    assert list(metrics.evaluate("h36m_p2_lsp14", prediction, target)) == ["PA-MPJPE", "MPJPE"]
    with pytest.raises(ValueError, match="vertices"):
        metrics.evaluate("3dpw_lsp14", prediction, target)


@pytest.mark.parametrize("protocol, change, message", [
    ("frei", {}, r"protocol 'frei': expected one of \[.*'freihand', .*'rendered_hands'.*\]"),
    ("freihand", {"joints": np.zeros((2, 16, 3))}, r"hand21 are \(B, 21, 3\), got \(2, 16, 3\)"),
    ("freihand", {"vertices": np.zeros((2, 777, 3))}, "same shape"),
    ("freihand", {"vertices": np.zeros((1, 778, 3))}, "same shape"),
    ("freihand", {"joints": np.zeros((0, 21, 3))}, "at least one sample"),
    ("pose_reconstruction", {}, r"joints of smpl24 are \(B, 24, 3\)"),
    ("rendered_people", {"joints": np.zeros((2, 76, 3))}, "those of a whole body"),
])
def test_evaluate_names_what_is_wrong(protocol, change, message, tmp_path):
    """Unknown protocols, other joint sets, other meshes and damaged files are refused."""
    target = {"joints": np.zeros((2, 21, 3)), "vertices": np.zeros((2, 778, 3))}
    true = target | change if protocol == "rendered_people" else target
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(protocol, target | change, true)
    (tmp_path / "face.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': ")
    people = whole_bodies(0, batch=1)
    with pytest.raises(ValueError, match="face.npy is damaged"):
        metrics.evaluate("rendered_people", people, people, face_vertices=tmp_path / "face.npy")


def test_errors_of_each_sample_are_those_of_the_sample_alone():
    """Their means are `evaluate`'s; both hands of a person count once; F-scores are left out."""
    prediction, target = whole_bodies(1), whole_bodies(2)
    each = metrics.evaluate_each("rendered_people", prediction, target)
    report = metrics.evaluate("rendered_people", prediction, target)
    assert {name: errors.mean() for name, errors in each.items()} == pytest.approx(report)
    for index in range(3):
        one = metrics.evaluate("rendered_people", *(
            {name: points[index:index + 1] for name, points in both.items()}
            for both in (prediction, target)))
        assert {name: errors[index] for name, errors in each.items()} == pytest.approx(one)
    hands = [{"joints": points["joints"][:, :21], "vertices": points["vertices"]}
             for points in (prediction, target)]
    assert list(metrics.evaluate_each("freihand", *hands)) == [
        "PA-MPJPE", "PA-MPVPE", "MPJPE", "MPVPE"]


def test_golden_faces_are_relative_to_the_neck_and_other_joints_may_be_scored(models, tmp_path):
    """One of five vertices of a face off by 10 mm is 2 mm; "scored" replaces the 14 joints."""
    target = {"joints": RNG.normal(0, 0.3, (2, 76, 3)), "vertices": RNG.normal(0, 1, (2, 1577, 3))}
    target["scored"] = RNG.normal(0, 0.3, (2, 14, 3))
    prediction = {name: points.copy() for name, points in target.items()}
    np.save(tmp_path / "face.npy", [0, 3, 5, 7, 9])
    prediction["vertices"][:, 7, 2] += 0.01
    prediction["scored"][:, 2, 0] += 0.14
    files = models / "MANO_SMPLX_vertex_ids.pkl", tmp_path / "face.npy"
    for protocol in ("ehf", "arctic_p1val"):
        report = metrics.evaluate(protocol, prediction, target, *files)
        assert report["face PVE"] == pytest.approx(2) and report["face PA-PVE"] > 0
        assert report["MPJPE"] == pytest.approx(10) and report["hands MPJPE"] < 1e-6
    shifted = {name: points.copy() for name, points in prediction.items()}
    shifted["vertices"][:, bm.hand_vertex_ids(files[0])["left"], 0] += 0.01
    shifted["joints"][:, bm.joint_indices("smplx76", "left_hand21"), 0] += 0.01
    moved = metrics.evaluate("ehf", shifted, target, *files)  # right as a hand, wrong in the body
    assert moved["PVE"] == pytest.approx(report["PVE"] + 10 * 778 / 1577)
    assert moved["hands PVE"] == pytest.approx(report["hands PVE"], abs=1e-6)
    unscored = {name: points for name, points in target.items() if name != "scored"}
    assert metrics.evaluate("ehf", prediction, unscored, *files)["MPJPE"] == 0  # of both, or none
    prediction["joints"][:, 12] += 0.1  # the neck: all of the face is off
    assert metrics.evaluate("ehf", prediction, target, *files)["face PVE"] > 150
    prediction["joints"][:, 0, 1] += 0.03  # the pelvis
    assert metrics.evaluate("ehf", prediction, target, *files)["PVE"] == pytest.approx(30, rel=1e-2)


def test_dexycb_result_files(tmp_path):
    """The toolkit's lines: the sample's number and 63 millimetres."""
    joints = RNG.normal(0, 0.2, (2, 21, 3))
    metrics.write_dexycb(tmp_path / "s0.txt", [4, 17], joints)
    rows = [line.split(",") for line in (tmp_path / "s0.txt").read_text().splitlines()]
    assert [row[0] for row in rows] == ["4", "17"] and {len(row) for row in rows} == {64}
    np.testing.assert_allclose(np.array(rows[1][1:], float), 1000 * joints[1].ravel(), atol=1e-4)
