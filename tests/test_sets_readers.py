"""Readers of pictures: frames of reference, who counts, filters, damage."""

import json
import os
import pickle
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import official_folders as tiny
import pytest
import torch
from hostile import Call
from official_folders import hamer, hmr2, jpeg, tar_hand, tar_person, write_shard
from PIL import Image
from set_samples import assert_projects, hands

import bodymodels
from files import load_arrays, load_vertices, safe_unpickle
from sets.crops import crop_homography, transform_points
from sets.official import (
    OWN,
    HandPairs,
    OfficialPeople,
    intrinsics,
    moved_translation,
    official_body,
    relabelled,
)
from sets.readers import ARCTIC, RICH, SMPLX_PARTS, DexYCB

pytestmark = [pytest.mark.usefixtures("few_vertices"),
              pytest.mark.filterwarnings("ignore:.*d is damaged and left out")]  # of write_hmr2

# ---------------------------------------------------------------- FreiHAND, DexYCB, InterHand2.6M


def world_mesh(models, pose, betas, transl, **options):
    """The vertices of an official model, posed as its file says."""
    pose, betas, transl = (torch.as_tensor(np.array(x, np.float32))[None]
                           for x in (pose, betas, transl))
    body = bodymodels.load_model(models, **options)
    return body(betas, pose.view(1, -1, 3), transl=transl).vertices[0].numpy()


def test_freihand_backgrounds_share_one_annotation(folders):
    """Picture v * N + i shows background v of id i and has its annotation."""
    dataset, samples = tiny.freihand(folders("freihand")), hands(size=64, length=3)
    assert len(dataset) == 8
    for index in range(8):
        source, expected = dataset.annotated(index), samples[index % tiny.UNIQUE]
        np.testing.assert_array_equal(source["joints"], expected["joints"])
        np.testing.assert_array_equal(source["vertices"], expected["vertices"])
        np.testing.assert_allclose(source["keypoints_2d"], expected["keypoints_2d"], atol=1e-3)
        shown = source["image"].astype(float).mean() - expected["image"].numpy().mean() / 2
        assert abs(shown - 30 * (index // tiny.UNIQUE)) < 2


@pytest.mark.parametrize("split,recipe", [("train", None), ("evaluation", None),
                                          ("train", "release_simplehand_test")])
def test_freihand_evaluation_crop_is_the_box_times_125(folders, split, recipe):
    """Without augmentation the keypoints' longer side spans 1/1.25 of the crop, in its middle."""
    sample = tiny.freihand(folders("freihand"), split, augmentation=recipe)[0]
    assert sample["keypoints_valid"].all() and sample["mesh_valid"] == 1
    assert_projects(sample)
    low, high = sample["keypoints_2d"].amin(0), sample["keypoints_2d"].amax(0)
    assert (high - low).max().item() == pytest.approx(32 / 1.25, rel=0.05)
    assert recipe or ((low + high) / 2 - 16).abs().max() < 2


@pytest.mark.parametrize("name,content,message", [
    ("xyz", "[[[1, 2, 3]]]", r"has shape \(.*\), expected \(2, 21"),
    ("K", json.dumps([np.eye(3).tolist()]), r"has shape \(2, .*\), expected \(1"),
    ("verts", "[[[0.1, 0.2", "training_verts.json.*download it again"),
    ("verts", '{"a": 1}', "training_verts.json is not as FreiHAND"),
    ("K", json.dumps([np.eye(3).tolist(), "text"]), "training_K.json is not as FreiHAND")])
def test_freihand_bad_annotation_is_one_clear_error(fresh, name, content, message):
    root = fresh("freihand")
    (root / f"training_{name}.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        tiny.freihand(root)


def test_freihands_poses_are_absolute_with_the_mean_hand(fresh, models):
    """mano is nested, mean-relative, and follows the picture's id through all backgrounds."""
    root, mano = fresh("freihand"), tiny.RNG.normal(0, 0.3, (tiny.UNIQUE, 1, 61))
    tiny.write(root / "training_mano.json", mano.tolist())
    dataset = tiny.freihand(root, models=models)
    record = dataset.records(tiny.UNIQUE + 1)
    mean = load_arrays(models / "MANO_RIGHT.npz")["hands_mean"].ravel()
    np.testing.assert_allclose(record["pose"].ravel()[3:], mano[1, 0, 3:48] + mean, atol=1e-6)
    np.testing.assert_allclose([*record["pose"][0], *record["betas"]],
                               [*mano[1, 0, :3], *mano[1, 0, 48:58]], atol=1e-6)
    assert record["has_betas"] == 1 and len(HandPairs(dataset, 32)) == (len(dataset) + 1) // 2


def test_wart_dexycb_s0_is_every_fifth_sequence(folders):
    """train: sequences 0 to 3 of all; val: the fifth of subjects 1 and 2; test: of the others.
    Frames without a hand, whose labels are -1, count in the official number of a sample alone."""
    root = folders("dexycb")
    counts = {split: len(tiny.dexycb(root, split)) for split in ("train", "val", "test")}
    assert counts == {"train": 2 * 4 * 3, "val": 3, "test": 3}
    assert {name[:19] for name in tiny.dexycb(root, "test").records()["image"]} == {
        b"20200820-subject-03"}
    dataset = tiny.dexycb(root)
    assert (dataset.records()["keypoints_3d"][..., 2] > 0.3).all()
    assert dataset.records()["person"][:6].tolist() == [0, 2, 3, 4, 6, 7]
    assert dataset.records(1)["image"].endswith(f"{DexYCB.CAMERAS[1]}/color_000000.jpg".encode())


def test_wart_dexycb_poses_are_coefficients(folders, models):
    """45 coefficients of the principal components of the hand's own side, relative to its mean."""
    root = folders("dexycb")
    records = tiny.dexycb(root, models=models).records()
    for side, number in (("right", 0), ("left", 6)):
        record = records[number]
        assert record["side"] == (side == "right") and record["has_pose"] == 1
        arrays = load_arrays(models / f"MANO_{side.upper()}.npz")
        with np.load((root / record["image"].decode().replace("color", "labels")).with_suffix(
                ".npz")) as label:
            pose = label["pose_m"][0].astype(np.float64)
        fingers = arrays["hands_mean"] + pose[3:48] @ arrays["hands_components"]
        expected = tiny.rodrigues(np.concatenate([pose[:3], fingers]).reshape(16, 3))
        np.testing.assert_allclose(tiny.rodrigues(record["pose"]), expected, atol=1e-5)
        np.testing.assert_array_equal(record["transl"], pose[48:].astype(np.float32))
    assert not tiny.dexycb(root).records()["has_pose"].any()  # without MANO


def test_dexycb_needs_all_sequences(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(DexYCB, "SEQUENCES", 100)
    with pytest.raises(ValueError, match="5 sequences where the splits count 100"):
        tiny.dexycb(folders("dexycb"), cache=tmp_path)


def test_wart_dexycb_meshes_are_those_of_the_unmended_models(folders, models):
    """A left hand's mesh, mirrored back, is that of the official MANO_LEFT. A perfect mesh has no
    error: truth is regressed like predictions; the stored joints are other points."""
    dataset = tiny.dexycb(folders("dexycb"), models=models)
    regressor = bodymodels.load_model(models, family="mano", tips=DexYCB.TIPS).keypoint_regressor
    for index, side in ((0, "right"), (6, "left")):
        record, sample = dataset.records()[index], dataset[index]
        assert sample["side"] == (side == "right")
        assert (torch.linalg.det(sample["camera_rotation"]) < 0) == (side == "left")
        mesh = partial(world_mesh, models, record["pose"], record["betas"], record["transl"],
                       family="mano", side=side)
        found = sample["vertices"] @ sample["camera_rotation"]
        np.testing.assert_allclose(found, mesh(), atol=1e-5)
        torch.testing.assert_close(regressor @ sample["vertices"], sample["joints"],
                                   atol=1e-6, rtol=0)
        assert_projects(sample, atol=1e-2)
    assert np.abs(mesh(fix_left_shapedirs=True) - mesh()).max() > 1e-3
    stored = dataset.records()[0]["keypoints_3d"][:, :3]
    assert np.abs(stored - dataset.annotated(0)["joints"]).max() > 1e-3


def test_wart_interhand_camera_positions_millimetres_and_order(folders):
    """X = R (X_world - position) / 1000, from tip to base: joints come out in metres, hand21."""
    root = folders("interhand")
    world = json.loads((root / "annotations/train/InterHand2.6M_train_joint_3d.json").read_text())
    points = np.array(world["0"]["17018"]["world_coord"]) - tiny.CAMPOS
    points = points @ tiny.INTERHAND_R.T / 1000
    record = tiny.interhand(root).records()[2]  # the left hand: 21 to 41, its wrist last
    np.testing.assert_allclose(record["keypoints_3d"][0, :3], points[41], atol=1e-6)
    np.testing.assert_allclose(record["keypoints_3d"][4, :3], points[21], atol=1e-6)  # thumb's tip
    assert 0.3 < record["keypoints_3d"][:, 2].min() < 1.2


def test_wart_interhand_fits_turn_about_the_rest_root(folders, models):
    """The reader's mesh is the world's in the camera's frame; its translation is not R T + t. An
    interacting pair gives two samples; a missing fit is flagged."""
    root = folders("interhand")
    dataset = tiny.interhand(root, models=models)
    records = dataset.records()
    assert records["side"].tolist() == [1, 1, 0, 1, 0]
    assert records["has_pose"].tolist() == [1, 1, 1, 0, 0] == records["has_betas"].tolist()
    assert len(np.unique(records["center"], axis=0)) == 5  # a box for each hand
    fits = json.loads((root / "annotations/train/InterHand2.6M_train_MANO_NeuralAnnot.json")
                      .read_text())["0"]["17018"]
    for index, side in ((1, "right"), (2, "left")):
        fit = fits[side]
        pose = np.array(fit["pose"])
        pose[3:] += load_arrays(models / f"MANO_{side.upper()}.npz")["hands_mean"].ravel()
        world = world_mesh(models, pose, fit["shape"], fit["trans"], family="mano", side=side,
                           fix_left_shapedirs=side == "left")
        expected = (world - tiny.CAMPOS / 1000) @ tiny.INTERHAND_R.T
        posed, _, transl = dataset.posed(records[index])
        np.testing.assert_allclose(posed.vertices[0], expected, atol=1e-5)
        naive = tiny.INTERHAND_R @ (fit["trans"] - tiny.CAMPOS / 1000)
        assert np.abs(naive - transl.numpy()).max() > 0.01


def test_wart_interhand_validity_is_stored_for_each_picture(fresh):
    """data.json decides, not joint_3d.json; a hand without a valid wrist is left out."""
    root = fresh("interhand")
    path = root / "annotations/train/InterHand2.6M_train_data.json"
    content = json.loads(path.read_text())
    valid = np.array(content["annotations"][0]["joint_valid"])
    valid[3] = 0  # one joint of the first right hand
    content["annotations"][0]["joint_valid"] = valid.tolist()
    valid = np.array(content["annotations"][1]["joint_valid"])
    valid[41] = 0  # the wrist of the first left hand
    content["annotations"][1]["joint_valid"] = valid.tolist()
    path.write_text(json.dumps(content))
    records = tiny.interhand(root).records()
    assert records["side"].tolist() == [1, 1, 1, 0]
    assert records["keypoints_3d"][0, :, 3].sum() == 20


# ----------------------------------------------- 3DPW, EMDB, Human3.6M, BEDLAM, RICH, ARCTIC, EHF


def test_wart_3dpw_counts_valid_people_and_numbers_pictures_by_row(folders):
    """campose_valid and keypoints decide which frames count; pictures are numbered by row."""
    dataset = tiny.threedpw(folders("3dpw"))
    rows = [(record["person"], record["image"][-9:-4].decode()) for record in dataset.records()]
    assert rows == [(0, "00000"), (0, "00002"), (1, "00000"), (1, "00001")]
    assert len(tiny.threedpw(folders("3dpw"), "train")) == 4
    assert dataset.records()["gender"].tolist() == [2, 2, 1, 1]


def test_wart_3dpw_keypoints_are_transposed(folders):
    """poses2d are (3, 18): its 15th column, the right eye, is the joint after the nose."""
    root = folders("3dpw")
    content = safe_unpickle(root / "sequenceFiles/test/courtyard_arguing_00.pkl")
    record = tiny.threedpw(root).records()[0]
    names = bodymodels.JOINT_SETS["smpl45"]
    for name, column in (("nose", 0), ("neck", 1), ("right_eye", 14), ("left_ankle", 13)):
        found = record["keypoints_2d"][names.index(name)]
        np.testing.assert_allclose(found, content["poses2d"][0][0][:, column], rtol=1e-6)
    assert record["keypoints_2d"][names.index("left_ear"), 2] == 0  # column 17
    known = content["poses2d"][0][0][:2, :17]
    np.testing.assert_allclose(record["box"], np.ptp(known, 1), rtol=1e-5)
    np.testing.assert_allclose(record["center"], (known.min(1) + known.max(1)) / 2, rtol=1e-5)


def roots_in_picture(record, transl, K) -> tuple[np.ndarray, np.ndarray]:
    """The pixel of a body's root, and where the inverse of the camera's motion would put it."""
    motion = record["world_to_camera"].astype(np.float64)
    root = moved_translation(record["transl"], motion, tiny.REST_ROOT) + tiny.REST_ROOT
    R, t = motion[:, :3].T, -motion[:, :3].T @ motion[:, 3]
    return tuple(bodymodels.project(np.stack([root, R @ (transl + tiny.REST_ROOT) + t]), K))


def test_golden_3dpw_camera_leads_from_the_world(folders):
    """A real frame's pelvis projects to its detected hips; with the inverse it does not."""
    record = tiny.threedpw(folders("3dpw")).records()[0]
    found, wrong = roots_in_picture(record, tiny.TRANSL_3DPW, tiny.K_3DPW)
    np.testing.assert_allclose(found, (271.1, 958.1), atol=0.1)
    assert wrong[0] > 1080  # outside of the picture


def test_wart_3dpw_bodies_turn_with_the_camera(folders, models):
    """Mesh and joints of the gendered body are those of the world in the camera's frame."""
    root = folders("3dpw")
    content = safe_unpickle(root / "sequenceFiles/test/courtyard_arguing_00.pkl")
    dataset = tiny.threedpw(root, models=models)
    world = world_mesh(models, content["poses"][1][1], content["betas"][1][:10],
                       content["trans"][1][1], family="smpl", gender="male")
    expected = world @ tiny.CAMERA_3DPW[:3, :3].T + tiny.CAMERA_3DPW[:3, 3]
    found = dataset.posed(dataset.records()[3])[0].vertices[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    joints = content["jointPositions"][1][1].reshape(24, 3) @ tiny.CAMERA_3DPW[:3, :3].T
    np.testing.assert_allclose(dataset.records()[3]["keypoints_3d"][:24, :3],
                               joints + tiny.CAMERA_3DPW[:3, 3], atol=1e-5)


def test_wart_3dpw_of_moon_is_in_the_cameras_frame_and_neutral(folders):
    """Nothing is turned, and the gender does not choose the model."""
    root = folders("3dpw-moon")
    fit = json.loads((root / "3DPW_test.json").read_text())["annotations"][1]["smpl_param"]
    record = tiny.threedpw_moon(root).records()[1]
    np.testing.assert_allclose(record["pose"].ravel(), fit["pose"], rtol=1e-6)
    np.testing.assert_array_equal(record["world_to_camera"], np.eye(3, 4))
    assert record["gender"] == 0 and record["center"].tolist() == [15, 40]


def test_detections_are_the_files_own_and_truth_is_the_models(folders, models):
    """With detections=OWN they are poses2d alone, without a joint of the true body; keypoints_2d
    are the true body alone, without a detected joint."""
    root = folders("3dpw")
    content = safe_unpickle(root / "sequenceFiles/test/courtyard_arguing_00.pkl")
    dataset = tiny.threedpw(root, models=models, detections=OWN)
    sample, record = dataset[0], dataset.records()[0]
    confidence = sample["detected_confidence"]
    names = bodymodels.JOINT_SETS["smpl45"]
    detector = bodymodels.JOINT_SETS["openpose18"]
    assert {names[place] for place in torch.nonzero(confidence)[:, 0]} <= set(detector)
    homography = crop_homography(*dataset.square(record, (54, 96)), 32)
    for name in ("left_wrist", "right_knee", "nose"):
        column = content["poses2d"][0][0][:, detector.index(name)]
        place = names.index(name)
        np.testing.assert_allclose(sample["detected_2d"][place],
                                   transform_points(homography, column[:2]), atol=1e-3)
        assert confidence[place] == pytest.approx(column[2])
    projected = bodymodels.project(sample["keypoints_3d"], sample["K"])
    torch.testing.assert_close(sample["keypoints_2d"], projected, atol=0.05, rtol=0)


def test_moons_3dpw_has_no_detections(folders, tmp_path):
    with pytest.raises(ValueError, match="ThreeDPWMoon has no detector's keypoints: give the fol"):
        tiny.threedpw_moon(folders("3dpw-moon"), detections=OWN)
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere: expected OpenPose's files"):
        tiny.threedpw_moon(folders("3dpw-moon"), detections=tmp_path / "nowhere")


def test_wart_emdb_flags_choose_sequences_and_the_mask_frames(folders):
    """good_frames_mask decides; invalid_idxs is empty although one frame is bad."""
    records = tiny.emdb(folders("emdb")).records()
    assert records["image"].tolist() == [b"P0/01_mvs_b/images/%05d.jpg" % n for n in (0, 1, 3)]
    assert tiny.emdb(folders("emdb"), "emdb2").records(0)["image"].startswith(b"P9/80_outdoor_walk")
    np.testing.assert_allclose(records["box"][0], (947.892, 1017.963), atol=1e-3)


def test_golden_emdb_extrinsics_lead_to_the_camera(folders):
    """A real frame's root projects beside the official keypoint; with the inverse it does not."""
    record = tiny.emdb(folders("emdb")).records()[0]
    found, wrong = roots_in_picture(record, tiny.TRANSL_EMDB, tiny.K_EMDB)
    np.testing.assert_allclose(found, (955.88, 1046.72), atol=0.05)
    assert np.abs(found - record["keypoints_2d"][0, :2]).max() < 2.5
    np.testing.assert_allclose(wrong, (1383, 733), atol=1)
    np.testing.assert_allclose(tiny.rodrigues(record["pose"][0]),
                               tiny.CAMERA_EMDB[:3, :3] @ tiny.rodrigues(tiny.ROOT_EMDB), atol=1e-5)


def test_wart_human36m_protocol_2_is_the_frontal_camera(folders):
    """The crop shows the square of 200 * scale pixels around center: SPIN's scale."""
    dataset = tiny.human36m(folders("h36m"))
    names = dataset.records()["image"]
    assert [name.decode()[-20:-11] for name in names] == [".60457274"]
    corners = transform_points(crop_homography(*dataset.square(dataset.records()[0], (50, 50)), 32),
                               np.array([[5.0, 5], [45, 45]]))
    np.testing.assert_allclose(corners, [[4, 4], [28, 28]], atol=1e-4)  # of 32, an eighth unseen
    record = dataset.records()[0]
    assert record["keypoints_3d"].shape == (49, 4) and not record["keypoints_3d"][:25].any()
    assert record["keypoints_3d"][25:, 3].all()


def test_wart_human36m_of_moon(folders, models):
    """Every fifth frame; joints are metres before the camera, right leg first; the root is turned
    into the camera's frame and the mean hand is added to the fingers; frames without a fit are not
    people."""
    root = folders("h36m-smplx")
    dataset = tiny.h36m_smplx(root, models=models)
    assert len(dataset) == 15
    base = str(root / "annotations/Human36M_subject1_")
    world, fit = (json.loads(Path(f"{base}{kind}.json").read_text())["2"]["1"]["0"]
                  for kind in ("joint_3d", "SMPLX_NeuralAnnot"))
    record = dataset.records(0)
    np.testing.assert_allclose(record["keypoints_3d"][:, :3],
                               (np.array(world) @ tiny.H36M_R.T + tiny.H36M_T) / 1000, atol=1e-5)
    assert bodymodels.JOINT_SETS[dataset.JOINTS][1] == "right_hip"
    assert dataset.records()["has_pose"].tolist() == [1, 1, 0] * 5
    pose = record["pose"]
    root_pose = tiny.H36M_R @ tiny.rodrigues(fit["root_pose"])
    np.testing.assert_allclose(tiny.rodrigues(pose[0]), root_pose, atol=1e-5)
    np.testing.assert_allclose(pose[1:22].ravel(), fit["body_pose"], rtol=1e-5)
    mean = load_arrays(models / "SMPLX_NEUTRAL.npz")["hands_meanr"]
    np.testing.assert_allclose(pose[40:].ravel(), fit["rhand_pose"] + mean.ravel(), atol=1e-6)
    relative = tiny.h36m_smplx(root).records(0)["pose"]  # without models
    np.testing.assert_allclose(relative[40:].ravel(), fit["rhand_pose"], atol=1e-6)
    people = OfficialPeople(dataset, 32)
    assert people.kept.tolist()[:4] == [0, 1, 3, 4]  # every third has no fit
    flags = {name: float(people[0][f"{name}_valid"]) for name in ("body_pose", "betas",
                                                                  "expression")}
    assert flags == {"body_pose": 1, "betas": 1, "expression": 0}


def test_detections_come_from_a_folder_of_openpose(folders, tmp_path):
    """In the crop's pixels and in the order of the body, and without a joint of the annotation."""
    root, numbers = folders("h36m"), np.zeros((25, 3))
    numbers[bodymodels.JOINT_SETS["openpose25"].index("left_knee")] = 25, 25, 0.8  # box's centre
    record = tiny.human36m(root).records()[0]
    path = tmp_path / record["image"].decode().replace(".jpg", "_keypoints.json")
    tiny.write(path, {"people": [{"pose_keypoints_2d": numbers.ravel().tolist()}]})
    sample = tiny.human36m(root, detections=tmp_path)[0]
    place = bodymodels.JOINT_SETS["smpl45"].index("left_knee")
    assert torch.nonzero(sample["detected_confidence"]).tolist() == [[place]]
    assert sample["detected_confidence"][place] == pytest.approx(0.8)
    assert sample["detected_2d"][place].tolist() == pytest.approx([16.0, 16.0], abs=1e-4)
    assert "detected_2d" not in tiny.human36m(root)[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match="60457274_000001_keypoints.json"):
        tiny.human36m(root, detections=tmp_path)[0]


def test_wart_hmr2_stores_boxes_with_margin_and_19_joints_after_openposes(folders):
    """The crop's side is the box grown to 3:4, no more; joint 43 is Human3.6M's head, 39 MPII's
    pelvis."""
    dataset = tiny.threedpw_hmr2(folders("3dpw-hmr2"))
    for index, side in ((0, 48), (1, 24 / 0.75)):
        homography = crop_homography(*dataset.square(dataset.records()[index], (50, 50)), 32)
        np.testing.assert_allclose(homography[0, 0], 32 / side, rtol=1e-5)
        np.testing.assert_allclose(homography[:2, :2] @ (25, 25) + homography[:2, 2], 16, atol=1e-4)
    stored = load_arrays(dataset.root / "hmr2_evaluation_data/3dpw_test.npz")["extra_keypoints_3d"]
    found = relabelled(dataset.records()["keypoints_3d"], "hmr44", "j17")
    names = bodymodels.JOINT_SETS["j17"]
    for name, place in (("head", 18), ("pelvis", 14), ("neck", 12), ("right_ankle", 0)):
        np.testing.assert_array_equal(found[:, names.index(name)], stored[:, place].astype("f4"))


def test_wart_bedlam_translation_shape_and_close_ups(folders):
    """trans_cam + cam_ext's, no second rotation, 11 betas of the neutral model, turned pictures."""
    dataset = tiny.bedlam(folders("bedlam"))
    records = dataset.records()
    assert len(records) == 3 and records["person"].tolist() == [0, 1, 0]
    np.testing.assert_allclose(records["transl"][0], (2.1, 2.2, 2.3), rtol=1e-6)
    arrays = load_arrays(dataset.sources["all_npz_12_training/*.npz"][0])
    np.testing.assert_allclose(records["pose"][0].ravel(), arrays["pose_cam"][0], rtol=1e-5)
    assert records["betas"].shape == (3, 11) and not records["gender"].any()
    assert [dataset.picture(record).shape[:2] for record in records[1:]] == [(36, 64), (64, 36)]
    stored = np.asarray(Image.open(dataset.root / records[2]["image"].decode()))
    np.testing.assert_array_equal(dataset.picture(records[2])[0], stored[::-1, 0])  # left: top
    np.testing.assert_allclose(1.2 * records["box"][0], (30, 30), rtol=1e-6)


def test_wart_rich_pictures_of_another_size_are_refused(fresh, models, monkeypatch):
    """The calibration belongs to the large pictures, not to those of the reduced release."""
    monkeypatch.setattr(RICH, "PICTURE_SIZE", (4112, 3008))
    dataset = tiny.rich(fresh("rich"), models=models)
    with pytest.raises(ValueError, match="32 x 24 pixels, but the annotation is for 4112 x 3008"):
        dataset[0]


def test_wart_rich_two_people_cameras_and_twelve_coefficients(folders, models):
    """Each person once before each camera, with the own gender; the mesh is the multi-camera
    frame's, moved, with fingers from 12 components a hand and their mean."""
    root = folders("rich")
    dataset = tiny.rich(root, models=models)
    records = dataset.records()
    assert list(zip(records["person"], records["gender"], strict=True)) == [
        (1, 1), (1, 1), (2, 2), (2, 2)]
    assert records["image"][3] == b"images/train/BBQ_001_002_juggle/cam_03/00042_03.bmp"
    body = load_arrays(root / "bodies/train/BBQ_001_002_juggle/00042/002.pkl")
    file = load_arrays(models / "SMPLX_FEMALE.npz")
    pose = [body[name] for name in SMPLX_PARTS]
    pose[-2:] = (part @ file[f"hands_components{side}"][:12] + file[f"hands_mean{side}"].ravel()
                 for part, side in zip(pose[-2:], "lr", strict=True))
    model = official_body(models, family="smplx", gender="female")
    pose = torch.from_numpy(np.concatenate(pose, 1).reshape(1, 55, 3))
    world = model(torch.from_numpy(body["betas"]), pose,
                  transl=torch.from_numpy(body["transl"])).vertices[0].numpy()
    expected = world @ tiny.rodrigues([0, 0.3, 0]).T + (0.1, 0.2, 1.5)
    np.testing.assert_allclose(dataset.posed(records[3])[0].vertices[0].numpy(), expected,
                               atol=1e-4)
    found = records[3]["keypoints_3d"][:, :3]
    np.testing.assert_allclose(bodymodels.project(found, intrinsics((30, 30), (16, 12))),
                               records[3]["keypoints_2d"][:, :2], atol=1e-3)


def test_bodies_without_keypoints_need_models(folders, tmp_path):
    for reader, name in ((tiny.rich, "rich"), (tiny.arctic, "arctic")):
        with pytest.raises(FileNotFoundError, match="need a folder of body models"):
            reader(folders(name), cache=tmp_path)


def test_wart_arctic_offsets_views_and_templates(folders, models, tmp_path, monkeypatch):
    """Ten picture numbers off either end, then every tenth; frame = number - offset; view v has
    camera v - 1; the subject's template replaces betas; a NaN fit is left out."""
    root = folders("arctic")
    dataset = tiny.arctic(root, models=models)
    assert dataset.records()["image"][2] == b"images/s05/box_grab_01/3/00010.jpg"
    assert len(dataset) == 8 and dataset.records()["world_to_camera"][2, 2, 3] == 5
    monkeypatch.setattr(ARCTIC, "INTERVAL", 1)
    every = tiny.arctic(root, models=models, cache=tmp_path).records()
    assert [int(name[-9:-4]) for name in every["image"][:4]] == [10, 11, 13, 14]
    assert len(every) == 8 * 4
    assert not every["has_betas"].any() and (every["gender"] == 2).all()
    vertices = dataset.posed(dataset.records()[0])[0].vertices[0].numpy()
    pose = torch.tensor(dataset.records()["pose"][:1].copy())
    own = dataset.body("female", num_betas=10)(torch.zeros(1, 10), pose).vertices[0]
    assert np.ptp(vertices[:, 1]) > 1.02 * np.ptp(own[:, 1].numpy())


def test_wart_ehf_meshes_are_the_scanners_and_numbers_have_no_constant_width(folders, models):
    """Frames are sorted by number; the scanner's rotation of 171 degrees puts y down."""
    dataset = tiny.ehf(folders("ehf"), models=models)
    assert dataset.records()["image"].tolist() == [b"01_img.jpg", b"100_img.jpg"]
    assert np.rad2deg(np.linalg.norm(dataset.ROTATION)) == pytest.approx(171.2, abs=0.05)
    found = dataset.posed(dataset.records()[1])[0].vertices[0].numpy()
    np.testing.assert_allclose(found[0], dataset.TRANSLATION, atol=1e-6)
    assert found[2, 1] < found[0, 1] - 0.19  # the scanner's y is up, the camera's down


def test_vertices_of_mesh_files(tmp_path):
    """Vertices come back, also with other properties beside; what is no such mesh is refused."""
    mesh = tiny.RNG.normal(0, 1, (5, 3)).astype(np.float32)
    bodymodels.save_mesh(tmp_path / "x.obj", mesh, [[0, 1, 2]])
    tiny.write_ply(tmp_path / "x.ply", mesh)
    whole = (tmp_path / "x.ply").read_bytes()
    header, body = whole.split(b"end_header\n")
    rows = b"".join(body[12 * row:12 * row + 12] + b"\xff" for row in range(5))
    (tmp_path / "z.ply").write_bytes(
        header + b"property uchar red\nend_header\n" + rows + b"faces")
    for name in ("x.obj", "x.ply", "z.ply"):
        np.testing.assert_allclose(load_vertices(tmp_path / name), mesh, atol=1e-6)
    for content in (whole[:-4], whole.replace(b"little", b"big"), b"ply\n"):
        (tmp_path / "y.ply").write_bytes(content)
        with pytest.raises(ValueError, match="y.ply: expected an undamaged binary little-endian"):
            load_vertices(tmp_path / "y.ply")
    (tmp_path / "y.obj").write_text("v 1 2\n")
    with pytest.raises(ValueError, match="no vertices of three numbers"):
        load_vertices(tmp_path / "y.obj")


def test_wart_agoras_files_beside_bedlams_are_left_out(fresh):
    """agora-*.npz have other keys."""
    root = fresh("bedlam")
    np.savez(root / "all_npz_12_training/agora-bfh.npz", imgname=np.array(["a.png"]))
    assert len(tiny.bedlam(root)) == 3


def test_ehf_takes_the_boxes_of_smplerx_if_they_are_there(fresh):
    """A box of the file by the picture's name; pictures without one keep that of the keypoints."""
    root = fresh("ehf")
    own = np.array(tiny.ehf(root).records()["box"])
    tiny.write(root / "EHF.json", {"images": [{"id": 5, "file_name": "100_img.jpg"}],
                              "annotations": [{"image_id": 5, "body_bbox": [10, 20, 30, 40]}]})
    records = tiny.ehf(root).records()
    assert records["center"][1].tolist() == [25, 40] and records["box"][1].tolist() == [30, 40]
    np.testing.assert_array_equal(records["box"][0], own[0])


# ----------------------------------------------------------------- tar shards of HMR2.0 and HaMeR


def test_wart_tar_filters_of_hmr2(folders):
    """HMR2.0's filters drop weak keypoints, people with few, bad fits and extreme shapes. Boxes are
    tight: 200 * scale is what the crop shows, 1.2 times the box. Nothing is unpacked: a record
    holds the place of its picture in the shard."""
    dataset = hmr2(folders("hmr2-tars"))
    records = dataset.records()
    assert records["person"].tolist() == [0, 2, 0]
    assert records["has_pose"].tolist() == [1, 0, 0] and records["has_betas"].tolist() == [1, 1, 1]
    assert not records["betas"][1:].any() and records["keypoints_2d"][2, 3].tolist() == [0, 0, 0]
    np.testing.assert_allclose(1.2 * records["box"][0], (20, 40), rtol=1e-6)
    shades = [dataset.picture(record)[0, 0, 0] for record in records]
    assert abs(int(shades[0]) - 90) < 3 and abs(int(shades[2]) - 200) < 3
    assert records["image"][0] == b"000000.tar"


def test_wart_tar_filters_of_hamer(tmp_path):
    """They are the same: of a hand with an extreme or unknown shape only the keypoints count."""
    few, weak = np.zeros((21, 3)), np.ones((21, 3))
    few[:4], weak[2] = 1, (8, 9, 0.2)
    lost = {"fitting_loss": np.array({"reprojection_loss": 32_000.0})}
    hands = [tar_hand(keypoints_2d=weak), tar_hand(keypoints_2d=few), tar_hand(extra_info=lost),
             tar_hand(betas=np.full(10, 3.5)), tar_hand(has_betas=0.0, right=0.0)]
    write_shard(tmp_path / "000000.tar", {"a.jpg": jpeg(), "a.data.pyd": pickle.dumps(hands)})
    records = hamer(tmp_path).records()
    assert records["person"].tolist() == [0, 3, 4] and records["side"].tolist() == [1, 1, 0]
    assert records["has_pose"].tolist() == [1, 0, 0] and records["has_betas"].all()
    assert not records["betas"].any() and records["keypoints_2d"][0, 2].tolist() == [0, 0, 0]
    np.testing.assert_allclose(records["box"], 20, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*b. is damaged and left out")
def test_shards_are_read_in_their_order(tmp_path):
    """A damaged shard is named."""
    for number in range(3):
        people = pickle.dumps([tar_person(center=np.array([number, key])) for key in range(2)])
        write_shard(tmp_path / f"{number:06d}.tar", {
            f"aic-train/k{number}.jpg": jpeg(), f"aic-train/k{number}.data.pyd": people,
            f"b{number}.jpg": jpeg(), f"b{number}.data.pyd": b"no pickle"})
    with pytest.warns(UserWarning, match="000001.tar: b1 is damaged and left out"):
        records = hmr2(tmp_path).records()
    assert records["center"].tolist() == [[n, key] for n in range(3) for key in range(2)]
    path = tmp_path / "000001.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match="000001.tar is not as HMRShards is shipped"):
        hmr2(tmp_path)


def test_wart_tar_cut_between_members(tmp_path):
    """A shard that ends early is an error, although tarfile accepts it."""
    write_shard(tmp_path / "000000.tar", {
        "a.jpg": jpeg(), "a.data.pyd": pickle.dumps([tar_person()]), "b.jpg": jpeg()})
    with tarfile.open(tmp_path / "000000.tar") as archive:
        end = archive.getmembers()[2].offset
    path = tmp_path / "000000.tar"
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=f"damaged or cut off at byte {end}"):
        hmr2(tmp_path)


def test_wart_pickles_in_shards_are_not_executed(tmp_path):
    malice = Call(os.mkdir, str(tmp_path / "executed"))
    write_shard(tmp_path / "000000.tar", {
        "a.jpg": jpeg(), "a.data.pyd": pickle.dumps([malice]),
        "b.jpg": jpeg(), "b.data.pyd": pickle.dumps([tar_person()])})
    with pytest.warns(UserWarning, match="a is damaged and left out.*mkdir"):
        assert len(hmr2(tmp_path)) == 1
    assert not (tmp_path / "executed").exists()


def test_wart_hips_of_openpose_are_smpls_and_those_of_lsp_are_not():
    """"hmr44" has two right hips: for SMPL the first counts, for LSP the second."""
    points = np.arange(44.0)[:, None] * [1, 1] + [0, 1]
    names = bodymodels.JOINT_SETS
    smpl = relabelled(points, "hmr44", "smpl45")
    assert smpl[names["smpl45"].index("right_hip"), 0] == 9
    lsp = relabelled(points, "hmr44", "lsp14")
    assert lsp[names["lsp14"].index("right_hip"), 0] == 27
    order = [24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, *range(25, 35)]  # smplx's 45
    np.testing.assert_array_equal(smpl[order, 0], range(25))


def test_wart_hamer_poses_are_absolute_and_left_hands_come_out_right(folders, models):
    """Shards have no translation: mesh and joints share the wrist, also after mirroring."""
    dataset = hamer(folders("hamer-tars"), models=models)
    with tarfile.open(folders("hamer-tars") / "000000.tar") as archive:
        people = safe_unpickle(archive.extractfile("k.data.pyd").read())
    for index, side in enumerate(("right", "left")):
        record, sample = dataset.records()[index], dataset[index]
        assert sample["mesh_valid"] == 1 and record["side"] == (side == "right")
        assert (torch.linalg.det(sample["camera_rotation"]) < 0) == (side == "left")
        np.testing.assert_allclose(record["pose"].ravel(), people[index]["hand_pose"], rtol=1e-5)
        options = {"family": "mano", "side": side, "fix_left_shapedirs": side == "left"}
        mesh = world_mesh(models, record["pose"], np.zeros(10), np.zeros(3), **options)
        wrist = bodymodels.load_model(models, **options).rest_joints(torch.zeros(1, 10))[0, 0]
        found = (sample["vertices"] - sample["joints"][0]) @ sample["camera_rotation"]
        np.testing.assert_allclose(found, mesh - wrist.numpy(), atol=1e-5)
    plain = dataset[0]  # the same picture and keypoints, not mirrored
    torch.testing.assert_close(sample["keypoints_2d"][:, 0], 32 - plain["keypoints_2d"][:, 0],
                               atol=1e-3, rtol=0)
