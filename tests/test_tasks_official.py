"""HMR-Adapter's stages on official data, in the formats that the tests of the readers write."""

import dataclasses
import json
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import test_tasks_adapter
import torch
from official_folders import write_ply
from test_tasks_adapter import ERRORS, OF_BODIES, scores_of

import bodymodels
import train
import weights.hmr_adapter
from tasks.base import EVALUATIONS, Predictions
from tasks.hmr_adapter import BodyAdapterTask, BodyExpertTask, DualPathTask, HandAdapterTask
from tasks.settings import HMR_ADAPTER

SETTINGS = HMR_ADAPTER["cpu"]
VERTICES = 21 + 2 * 778  # of the whole bodies here: landmarks and hands


@pytest.fixture(scope="module", autouse=True)
def no_pictures(few_vertices):
    """Whole bodies of landmarks and hands alone, and no pictures of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_predictions", "draw_curves"):  # slow, and tested elsewhere
            patch.setattr(f"tasks.files.{name}", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory, folders, models):
    """The folder of all data sets, and of models with the files that judge bodies."""
    base = tmp_path_factory.mktemp("official")
    for name in ("rich", "arctic", "ehf", "interhand", "3dpw-moon"):
        shutil.copytree(folders(name), base / name, ignore=shutil.ignore_patterns("*.bin"))
    shutil.copytree(models, base / "models", symlinks=True)
    regressor = np.zeros((14, VERTICES))
    regressor[range(14), range(14)] = 1  # the first landmarks
    (base / "models/SMPLX_to_J14.pkl").write_bytes(pickle.dumps(regressor))
    np.save(base / "models/SMPL-X__FLAME_vertex_ids.npy", np.arange(5))  # nose, eyes and ears
    body = bodymodels.load_model(base / "models", family="smplx")
    for number in ("01", "100"):
        mesh = body.v_template.numpy() + (0, 0.1 * len(number), 0)
        write_ply(base / f"ehf/{number}_align.ply", mesh)
    return base


def command_line(base, stage, out, *extra, **fields):
    return test_tasks_adapter.command_line(base, stage, out, "--models", base / "models", *extra,
                                           **{"steps": 1, "batch_size": 2} | fields)


@pytest.fixture(scope="module")
def trained(base):
    """All four stages after a step: hands of InterHand2.6M, bodies of RICH; ARCTIC judges."""
    judged = ("--protocol", "arctic_p1val", "--test-root", base / "arctic")
    for stage, name in (("hand_expert", "interhand"), ("body_expert", "rich"), ("hand", "rich"),
                        ("body", "rich")):
        expert = ("--expert", base / f"runs/{stage}_expert/checkpoint.pt") if stage in (
            "hand", "body") else ()
        if stage == "hand":
            expert += "--guide", base / "runs/body_expert/checkpoint.pt"
        train.main(command_line(base, stage, base / "runs" / stage, "--data", name, "--data-root",
                                base / name, *judged, *expert))
    return base / "runs"


def evaluate(base, trained, stage, protocol, out, *extra):
    train.main(["--model", "hmr_adapter", "--stage", stage, "--eval", "--protocol", protocol,
                "--data-root", str(base / EVALUATIONS[protocol][0]), "--models",
                str(base / "models"), "--cache", str(base / "cache"), "--out", str(out), *extra])
    return scores_of(out)


def test_stages_train_and_tell_what_they_found(trained):
    """Every predictor is scored by ARCTIC's protocol."""
    assert list(scores_of(trained / "hand_expert")["expert"]) == ERRORS
    rows = ["found arm", "true arm", "no arm", "expert"]
    assert list(scores_of(trained / "hand")) == [
        *rows, *(f"{row}, true boxes" for row in rows), "mean hand"]
    assert list(scores_of(trained / "body")["adapter"]) == OF_BODIES
    for stage in ("hand_expert", "body_expert", "hand", "body"):
        scores = scores_of(trained / stage)
        assert np.isfinite([list(row.values()) for row in scores.values()]).all()


def test_hands_alone_have_no_arm_to_be_found(base, trained):
    """A guide finds arms in pictures of people, not in the black ones of pairs of hands."""
    arguments = train.parse_arguments(command_line(
        base, "hand", base / "no", "--data", "interhand", "--data-root", base / "interhand",
        "--protocol", "arctic_p1val", "--guide", trained / "body_expert/checkpoint.pt"))
    model = weights.hmr_adapter.load_checkpoint(trained / "hand/checkpoint.pt")
    task = HandAdapterTask(model.config, arguments, {"data": "interhand"}, SETTINGS)
    task.config = dataclasses.replace(task.config, arm_source="found")
    heard = []

    def trainer(images, arm, arm_valid):
        heard.append(arm_valid)
        return model(images, arm, arm_valid)

    pairs = next(train.load_batches(task.train_set, [[0, 1]], train.World()))
    task.loss(trainer, pairs, 0)
    del pairs["body_pose_valid"]
    task.loss(trainer, pairs, 0)
    assert [valid.tolist() for valid in heard] == [[0] * 4, [1] * 4]


def test_the_dual_path_is_judged_on_ehf_with_faces(base, trained, tmp_path):
    """EHF has meshes alone; hands are cut out where those are."""
    scores = evaluate(base, trained, "all", "ehf", tmp_path, "--checkpoint",
                      str(trained / "hand/checkpoint.pt"), "--guide",
                      str(trained / "body/checkpoint.pt"))
    assert list(scores) == [
        "ours", "ours, all hands", "ours, true boxes", "experts", "experts, all hands",
        "experts, true boxes", "expert", "mean pose"]
    assert list(scores["ours"]) == [*OF_BODIES, "face PA-PVE", "face PVE"]
    assert np.isfinite([list(row.values()) for row in scores.values()]).all()
    assert json.loads((tmp_path / "results.json").read_text())["data"] == "ehf"
    alone = evaluate(base, trained, "all", "ehf", tmp_path / "experts", "--checkpoint",
                     str(trained / "hand_expert/checkpoint.pt"), "--guide",
                     str(trained / "body_expert/checkpoint.pt"))  # the paper's baseline
    assert alone["ours"] == alone["experts"]
    assert alone["expert"] == pytest.approx(scores["expert"], rel=1e-3, abs=0.01)  # mm, rounding


def test_bodies_are_judged_on_3dpw_by_smpls_joints_and_mesh(base, trained, tmp_path):
    """With smplx_to_smpl.pkl in --models the table has PVE, as Table 2 of the paper does."""
    judged = ("body_expert", "3dpw_smplx_lineage", tmp_path, "--checkpoint",
              str(trained / "body_expert/checkpoint.pt"))
    assert list(evaluate(base, trained, *judged)["expert"]) == ["PA-MPJPE", "MPJPE"]
    mapping = base / "models/smplx_to_smpl.pkl"
    mapping.write_bytes(pickle.dumps({"matrix": np.eye(6890, VERTICES, dtype=np.float32)}))
    try:
        scores = evaluate(base, trained, *judged)
    finally:
        mapping.unlink()
    assert list(scores["expert"]) == ["PA-MPJPE", "MPJPE", "PVE"] and scores["expert"]["PVE"] > 0


def test_perfect_meshes_have_no_error_by_the_official_protocols(base, trained):
    """Whatever the pose or the subject's own template: the truth alone scores 0."""
    config = weights.hmr_adapter.load_checkpoint(trained / "body/checkpoint.pt").config
    for protocol in ("arctic_p1val", "ehf"):
        name = EVALUATIONS[protocol][0]
        arguments = train.parse_arguments(command_line(
            base, "body", base / "no", "--data", name, "--data-root", base / name))
        task = BodyAdapterTask(config, arguments, {"data": name}, SETTINGS)
        truth = task.truth(Predictions(np.arange(2), {}, {}))
        assert np.max(list(task.judge(truth, truth).values())) < 1e-3
        moved = {"vertices": truth["vertices"] + (np.arange(VERTICES) == 3)[:, None] * [0.14, 0, 0]}
        report = {name: errors.mean() for name, errors in task.judge(moved, truth).items()}
        # one of J14's joints, and one of the face's five
        assert report["MPJPE"] > 8 and (report.get("face PVE", 0) > 20) == (protocol == "ehf")


def test_official_people_need_models_protocols_and_splits(base, trained, tmp_path):
    rich = ("--data", "rich", "--data-root", base / "rich")
    judged = ("--protocol", "arctic_p1val", "--test-root", base / "arctic")
    for stage, extra, message in (
            ("body_expert", rich, "choose the protocol with --protocol, one of 3dpw_smplx"),
            ("body_expert", ("--data", "ehf", "--data-root", base / "ehf"), "unknown split"),
            ("body_expert", (*rich, *judged, "--models", tmp_path), "no body model in")):
        arguments = command_line(base, stage, tmp_path / "no", *extra)
        with pytest.raises(SystemExit, match=message):
            train.main(arguments)
    with pytest.raises(SystemExit, match="give the folder of SMPL-X's of all genders, MANO_RIGHT"):
        train.main(test_tasks_adapter.command_line(base, "body_expert", tmp_path / "no", *rich,
                                                   *judged))
    shutil.copytree(base / "models", tmp_path / "models", symlinks=True)
    (tmp_path / "models/SMPLX_to_J14.pkl").write_bytes(pickle.dumps(np.zeros((17, VERTICES))))
    arguments = command_line(base, "body_expert", tmp_path / "new", *rich, *judged)
    with pytest.raises(SystemExit, match="has shape .17, 1577.: expected 14 joints"):
        train.main([*arguments, "--models", str(tmp_path / "models")])
    assert not (tmp_path / "new/log.csv").exists()  # found out before the first step


def test_released_body_experts_get_the_mean_hand_of_the_models(base, monkeypatch):
    """SMPLer-X's fingers are relative to it, right hand first: to adapt it, to score it alone and
    to merge it with HaMeR."""
    arrays = bodymodels.load_arrays(base / "models/SMPLX_NEUTRAL.npz")
    expected = torch.from_numpy(np.reshape([arrays["hands_meanr"], arrays["hands_meanl"]],
                                           (2, 15, 3))).float()
    arguments = train.parse_arguments(command_line(
        base, "body", base / "no", "--expert", "x", "--data", "arctic", "--data-root",
        base / "arctic"))
    monkeypatch.setattr("tasks.hmr_adapter.load_body_expert", lambda source, hand_mean: hand_mean)
    monkeypatch.setattr("tasks.hmr_adapter.load_paths", lambda *_, hand_mean: SimpleNamespace(
        mean=hand_mean, body=SimpleNamespace(config=None)))
    for mean in (BodyAdapterTask.load_expert("x", arguments), BodyExpertTask.load("x", arguments),
                 DualPathTask.load("x", arguments).mean):
        torch.testing.assert_close(mean, expected)


def test_a_released_body_expert_is_a_guide(base, trained, tmp_path, monkeypatch):
    """As in the paper's Table 3: it finds arms and boxes as train.py's own expert does."""
    guides, path = [], trained / "body_expert/checkpoint.pt"
    expert = weights.hmr_adapter.load_body_expert(path)
    torch.save({"network": {"body_regressor.x": torch.zeros(1)}}, tmp_path / "released.pth.tar")
    monkeypatch.setattr(weights.hmr_adapter, "load_expert", lambda *_, hand_mean: expert)
    for file in (path, tmp_path / "released.pth.tar"):
        arguments = train.parse_arguments(command_line(
            base, "hand", base / "no", "--data", "rich", "--data-root", base / "rich",
            "--protocol", "arctic_p1val", "--guide", file))
        model = weights.hmr_adapter.load_checkpoint(trained / "hand/checkpoint.pt")
        guides.append(HandAdapterTask(model.config, arguments, {"data": "rich"}, SETTINGS).guide)
    images = torch.randint(0, 256, (1, 3, *[expert.config.image_size] * 2), dtype=torch.uint8)
    first, second, alone = (guide(images) for guide in (*guides, expert))
    for name in ("body_pose", "tight_boxes"):
        assert torch.equal(first[name], second[name]) and torch.equal(first[name], alone[name])
