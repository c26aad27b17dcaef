"""Protocols of hands, bodies and whole bodies against a loop, and on known errors."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from body_samples import seeds
from hypothesis import given, settings
from official_folders import RNG
from people_samples import HAND_IDS, WHOLE
from scipy.spatial import cKDTree

import bodymodels as bm
import metrics

pytestmark = pytest.mark.usefixtures("few_vertices")

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


KINDS = {  # of predictions, from noisy and true points
    "noisy": lambda noisy, true: noisy,
    "perfect": lambda noisy, true: true.copy(),
    "root-relative": lambda noisy, true: noisy - (0.02, -0.03, 0.7),
    "mirrored": lambda noisy, true: noisy * [-1, 1, 1],
    "small": lambda noisy, true: 0.01 * noisy,
    "zero": lambda noisy, true: 0 * true,
    "constant": lambda noisy, true: 0 * true + [0.1, 0.2, 0.7],
    "coplanar": lambda noisy, true: noisy * [1, 1, 0],
    "shifted by a threshold": lambda noisy, true: true + [0, 0.005, 0],
}


@pytest.mark.parametrize("kind", KINDS)
def test_freihand_is_the_official_evaluation(kind):
    """Every number to 1e-6, for good predictions and absurd ones; a NaN shows in the means."""
    target, noise = points_of(0, 21, 778), points_of(1, 21, 778)
    target = {name: 0.05 * points + (0.02, -0.03, 0.7) for name, points in target.items()}
    prediction = {name: KINDS[kind](points + 0.006 * noise[name], points)
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
