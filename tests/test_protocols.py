"""Protocols of bodies, whole bodies and hands on known errors."""

import numpy as np
import pytest
import torch
from body_samples import seeds
from hypothesis import given
from official_folders import RNG
from people_samples import HAND_IDS, WHOLE

import bodymodels
import bodymodels as bm
import metrics
from sets.official import official_body

pytestmark = pytest.mark.usefixtures("few_vertices")


def whole_bodies(seed, batch=3):
    generator = torch.Generator().manual_seed(seed)
    pose = 0.4 * torch.randn(batch, 55, 3, generator=generator)
    output = WHOLE(torch.randn(batch, 10, generator=generator), pose)
    return {"joints": WHOLE.keypoints(output), "vertices": output.vertices}


ROWS = ["PA-MPJPE", "PA-PVE", "MPJPE", "PVE"]


def test_people_are_judged_by_body_and_hands():
    """Nothing for a shift; nothing after alignment for a similarity transform of the whole."""
    target = whole_bodies(0)
    shifted = {name: points + torch.tensor([0.3, -1, 5]) for name, points in target.items()}
    report = metrics.evaluate("rendered_people", shifted, target)
    assert list(report) == [*ROWS, *(f"hands {name}" for name in ROWS)]
    assert max(report.values()) < 1e-2
    turn = bm.axis_angle_to_matrix(torch.tensor([0.3, -0.8, 0.5]))
    moved = {name: 1.3 * points @ turn for name, points in target.items()}
    report = metrics.evaluate("rendered_people", moved, target)
    aligned = [name for name in report if "PA-" in name]
    assert max(report[name] for name in aligned) < 1e-2
    assert min(report[name] for name in set(report) - set(aligned)) > 10


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


def test_people_against_a_loop():
    """PVE from the pelvis, 14 joints; hands from their wrist, left and right averaged."""
    prediction, target = whole_bodies(1), whole_bodies(2)
    report = metrics.evaluate("rendered_people", prediction, target)
    (joints, meshes), (true_joints, true_meshes) = (
        (points["joints"].double().numpy(), points["vertices"].double().numpy())
        for points in (prediction, target))
    smpl14 = [1, 2, 4, 5, 7, 8, 12, 15, 16, 17, 18, 19, 20, 21]  # SMPLer-X's
    whole, body, hands = [], [], []
    for sample in range(3):
        pelvis, true_pelvis = joints[sample, 0], true_joints[sample, 0]
        whole.append(np.linalg.norm(meshes[sample] - pelvis - true_meshes[sample] + true_pelvis,
                                    axis=1).mean())
        body.append(np.linalg.norm(
            (joints[sample] - pelvis - true_joints[sample] + true_pelvis)[smpl14], axis=1).mean())
        for wrist, side in ((20, "left"), (21, "right")):
            ids = HAND_IDS[side].numpy()
            shift = joints[sample, wrist] - true_joints[sample, wrist]
            hands.append(np.linalg.norm(
                meshes[sample, ids] - shift - true_meshes[sample, ids], axis=1).mean())
    assert report["PVE"] == pytest.approx(1000 * np.mean(whole))
    assert report["MPJPE"] == pytest.approx(1000 * np.mean(body))
    assert report["hands PVE"] == pytest.approx(1000 * np.mean(hands))


def test_hands_are_aligned_one_by_one():
    """A left hand that is turned about its wrist costs PVE, but nothing after its alignment."""
    target = whole_bodies(3, batch=1)
    turned = {name: points.clone() for name, points in target.items()}
    wrist = target["joints"][:, 20:21]
    turn = bm.axis_angle_to_matrix(torch.tensor([0.0, 0.7, 0]))
    order = bm.joint_indices("smplx76", "left_hand21")
    for name, places in (("joints", order), ("vertices", HAND_IDS["left"])):
        turned[name][:, places] = (target[name][:, places] - wrist) @ turn + wrist
    report = metrics.evaluate("rendered_people", turned, target)
    assert report["hands PVE"] > 5 and report["hands MPJPE"] > 5 and report["MPJPE"] < 1e-3
    assert report["hands PA-PVE"] < 1e-2 and report["hands PA-MPJPE"] < 1e-2
    hands = [metrics.both_hands(points) for points in (turned, target)]
    direct = metrics.evaluate("rendered_people_hands", *hands)
    assert {f"hands {name}": value for name, value in direct.items()} == {
        name: value for name, value in report.items() if name.startswith("hands")}


def test_other_meshes_are_no_whole_bodies():
    points = {"joints": np.zeros((1, 76, 3)), "vertices": np.zeros((1, 6890, 3))}
    with pytest.raises(ValueError, match="those of a whole body"):
        metrics.evaluate("rendered_people", points, points)


def bodies_apart(joints, error=0.01):
    """Targets (4, J, 3) and (4, 9, 3), and predictions whose last joint is off by `error` in x."""
    target = {"joints": RNG.normal(0, 0.3, (4, joints, 3)), "vertices": RNG.normal(0, 1, (4, 9, 3))}
    prediction = {name: points.copy() for name, points in target.items()}
    prediction["joints"][:, -1, 0] += error
    return prediction, target


def test_golden_dexycb_is_relative_to_the_wrist_and_may_mirror():
    """One of 21 joints off by 10 mm is 10 / 21 mm; a mirrored hand is perfect once aligned."""
    prediction, target = bodies_apart(21)
    report = metrics.evaluate("dexycb_s0", prediction, target)
    assert report["MPJPE"] == pytest.approx(10 / 21) and report["MPVPE"] == 0
    moved = {name: points + (0.1, 0, 0.3) for name, points in target.items()}
    assert metrics.evaluate("dexycb_s0", moved, target)["MPJPE"] == pytest.approx(0, abs=1e-9)
    mirrored = {name: points * (-1, 1, 1) for name, points in target.items()}
    report = metrics.evaluate("dexycb_s0", mirrored, target)
    assert report["PA-MPJPE"] < 1e-6 and report["PA-MPVPE"] < 1e-6 and report["MPJPE"] > 10


def test_golden_lsp14_has_its_pelvis_outside_of_what_is_scored():
    """3DPW and Human3.6M: a wrong pelvis shifts all 14 joints and the mesh; spine and jaw are not
    scored; Human3.6M knows no vertices."""
    prediction, target = bodies_apart(17)  # the last joint is the jaw
    assert metrics.evaluate("3dpw_lsp14", prediction, target)["MPJPE"] == 0
    prediction["joints"][:, 14, 1] += 0.02  # the pelvis
    for name in ("3dpw_lsp14", "h36m_p2_lsp14"):
        report = metrics.evaluate(name, prediction, target)
        assert report["MPJPE"] == pytest.approx(20) and report["PA-MPJPE"] < 1e-6
        assert ("MVE" in report) == (name == "3dpw_lsp14") and "PA-MVE" not in report
    assert metrics.evaluate("3dpw_lsp14", prediction, target)["MVE"] == pytest.approx(20)
    del prediction["vertices"]
    metrics.evaluate("h36m_p2_lsp14", prediction, target)
    with pytest.raises(ValueError, match="vertices"):
        metrics.evaluate("3dpw_lsp14", prediction, target)
    mirrored = {name: points * (-1, 1, 1) for name, points in target.items()}
    assert metrics.evaluate("3dpw_lsp14", mirrored, target)["PA-MPJPE"] > 10


def test_golden_emdb_is_relative_to_the_middle_of_the_hips():
    """A hip off by 10 mm counts 5 mm in all 24 joints and 5 more, less, in itself."""
    prediction, target = bodies_apart(24, error=0.0)
    prediction["joints"][:, 1, 0] += 0.01
    report = metrics.evaluate("emdb1_24", prediction, target)
    assert report["MPJPE"] == pytest.approx(5) and report["MVE"] == pytest.approx(5)
    prediction["joints"][:, 0] += 1.0  # a wrong pelvis is one wrong joint
    assert metrics.evaluate("emdb1_24", prediction, target)["MVE"] == pytest.approx(5)


def test_golden_emdb_aligns_vertices_like_the_joints():
    """A similarity transform of the whole body is perfect after alignment; a mesh that is shifted
    against its joints stays shifted, though on its own it could be aligned."""
    target = {name: RNG.normal(0, 0.3, (2, count, 3)) for name, count in (
        ("joints", 24), ("vertices", 60))}
    turn = bm.axis_angle_to_matrix(torch.tensor([0.3, -0.8, 0.5]).double()).numpy()
    moved = {name: 1.3 * points @ turn + (1, 2, 3) for name, points in target.items()}
    report = metrics.evaluate("emdb1_24", moved, target)
    assert list(report) == ["PA-MPJPE", "PA-MVE", "MPJPE", "MVE"]
    assert report["PA-MVE"] < 1e-6 and report["MVE"] > 10
    shifted = {"joints": target["joints"], "vertices": target["vertices"] + (0, 0, 0.01)}
    assert metrics.evaluate("emdb1_24", shifted, target)["PA-MVE"] == pytest.approx(10)


def test_golden_smplx_lineage_of_3dpw_has_pve_where_both_have_vertices():
    """The mesh counts relative to the pelvis, and its row is left out without vertices."""
    prediction, target = bodies_apart(24, error=0.0)
    assert list(metrics.evaluate("3dpw_smplx_lineage", prediction, target)) == [
        "PA-MPJPE", "MPJPE", "PVE"]
    prediction["joints"][:, 0, 0] += 0.02
    assert metrics.evaluate("3dpw_smplx_lineage", prediction, target)["PVE"] == pytest.approx(20)
    del target["vertices"]
    assert "PVE" not in metrics.evaluate("3dpw_smplx_lineage", prediction, target)


def test_damaged_face_vertices_are_one_error(models, tmp_path):
    (tmp_path / "face.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': ")
    target = whole_bodies(0, batch=1)
    with pytest.raises(ValueError, match="face.npy is damaged"):
        metrics.evaluate("rendered_people", target, target, face_vertices=tmp_path / "face.npy")


def test_golden_smplx_lineage_of_3dpw_scores_fourteen_joints_of_smpl():
    """Of the 24 joints spines, collars, toes and hands do not count."""
    prediction, target = bodies_apart(24)  # the last is a hand
    assert metrics.evaluate("3dpw_smplx_lineage", prediction, target)["MPJPE"] == 0
    prediction["joints"][:, 1, 2] += 0.014
    assert metrics.evaluate("3dpw_smplx_lineage", prediction, target)["MPJPE"] == pytest.approx(1)


def test_golden_whole_bodies_have_hands_relative_to_their_wrists(models):
    """A left hand that is shifted as a whole is wrong in the body, and right as a hand."""
    body = official_body(models, None, False, family="smplx", gender="female", side="right",
                              num_betas=10)
    posed = body(torch.zeros(1, 10), torch.zeros(1, 55, 3))
    target = {"joints": body.keypoints(posed), "vertices": posed.vertices}
    prediction = {name: points.clone() for name, points in target.items()}
    ids = bodymodels.hand_vertex_ids(models / "MANO_SMPLX_vertex_ids.pkl")["left"]
    prediction["vertices"][:, ids, 0] += 0.01
    names = bodymodels.JOINT_SETS["smplx76"]
    hand = bodymodels.joint_indices(names, "left_hand21")
    prediction["joints"][:, hand, 0] += 0.01
    for protocol in ("ehf", "arctic_p1val"):
        report = metrics.evaluate(protocol, prediction, target,
                                  models / "MANO_SMPLX_vertex_ids.pkl")
        assert report["PVE"] == pytest.approx(10 * 778 / 1577, rel=1e-3)
        assert report["hands PVE"] == pytest.approx(0, abs=1e-3)
        assert report["MPJPE"] == pytest.approx(10 / 14, rel=1e-3)  # the left wrist


def test_golden_faces_are_relative_to_the_neck_and_other_joints_may_be_scored(models, tmp_path):
    """One of five vertices of a face off by 10 mm is 2 mm; "scored" replaces the 14 joints."""
    target = {"joints": RNG.normal(0, 0.3, (2, 76, 3)), "vertices": RNG.normal(0, 1, (2, 1577, 3))}
    target["scored"] = RNG.normal(0, 0.3, (2, 14, 3))
    prediction = {name: points.copy() for name, points in target.items()}
    np.save(tmp_path / "face.npy", [0, 3, 5, 7, 9])
    prediction["vertices"][:, 7, 2] += 0.01
    prediction["scored"][:, 2, 0] += 0.14
    files = models / "MANO_SMPLX_vertex_ids.pkl", tmp_path / "face.npy"
    report = metrics.evaluate("ehf", prediction, target, *files)
    assert report["face PVE"] == pytest.approx(2) and report["face PA-PVE"] > 0
    assert report["MPJPE"] == pytest.approx(10) and report["hands MPJPE"] < 1e-6
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


def meshes(seed, batch=3):
    rng = np.random.default_rng(seed)
    return {"joints": rng.normal(size=(batch, 24, 3)), "vertices": rng.normal(size=(batch, 50, 3))}


@given(seeds)
def test_rendered_bodies_are_judged_from_the_pelvis(seed):
    """A shift costs nothing; a similarity transform nothing after alignment; a mirror does cost."""
    target, rng = meshes(seed), np.random.default_rng(seed)
    shifted = {name: points + (0.3, -1, 5) for name, points in target.items()}
    report = metrics.evaluate("rendered_bodies", shifted, target)
    assert list(report) == ["PA-MPJPE", "PA-MVE", "MPJPE", "MVE"]
    assert max(report.values()) < 1e-6
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    moved = {name: 1.7 * points @ turn for name, points in target.items()}
    report = metrics.evaluate("rendered_bodies", moved, target)
    assert report["PA-MPJPE"] < 1e-6 and report["PA-MVE"] < 1e-6 and report["MPJPE"] > 1
    mirrored = {name: points * (-1, 1, 1) for name, points in target.items()}
    assert metrics.evaluate("rendered_bodies", mirrored, target)["PA-MPJPE"] > 1


def test_rendered_bodies_against_a_loop():
    """Joints and vertices minus the joints' pelvis, mean distances in mm."""
    prediction, target = meshes(0), meshes(1)
    report = metrics.evaluate("rendered_bodies", prediction, target)
    for name, key in (("joints", "MPJPE"), ("vertices", "MVE")):
        errors = [np.linalg.norm((a - p[0]) - (b - t[0]), axis=1).mean() for a, b, p, t in zip(
            prediction[name], target[name], prediction["joints"], target["joints"], strict=True)]
        assert report[key] == pytest.approx(1000 * np.mean(errors))


def test_reconstructions_are_judged_as_given():
    """No root, no alignment: a centimetre off is 10 mm."""
    target = meshes(2)
    moved = {name: points + (0.01, 0, 0) for name, points in target.items()}
    report = metrics.evaluate("pose_reconstruction", moved, target)
    assert report == pytest.approx({"MPJPE": 10, "MVE": 10})
    with pytest.raises(ValueError, match=r"joints of smpl24 are \(B, 24, 3\)"):
        metrics.evaluate("pose_reconstruction", {"joints": np.zeros((1, 21, 3)),
                                                 "vertices": np.zeros((1, 9, 3))}, target)
