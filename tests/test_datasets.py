"""Every data set's reader, on tiny folders in the official format: the data themselves are not ours
to ship. test_wart_*: what the formats have in store for those who do not know them."""

import io
import json
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from test_data import write_freihand
from test_people import CONTRACT as PEOPLE

import bodymodels
import data
import metrics
import sets.shards

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings("ignore:.*d is damaged and left out")  # of write_hmr2
HAND_SHAPES = {
    "image": ((3, 32, 32), torch.uint8), "K": ((3, 3), torch.float32),
    "keypoints_2d": ((21, 2), torch.float32), "keypoints_valid": ((21,), torch.float32),
    "joints": ((21, 3), torch.float32), "vertices": ((778, 3), torch.float32),
    "mesh_valid": ((), torch.float32), "side": ((), torch.int64), "index": ((), torch.int64),
    "crop": ((3, 3), torch.float32), "camera_rotation": ((3, 3), torch.float32),
}


def write(path, content=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_picture(path, size=(64, 48), color=90, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (color, 60, 60)).save(path, **options)


def rodrigues(vector):
    return bodymodels.axis_angle_to_matrix(torch.tensor(vector, dtype=torch.float64)).numpy()


def compose(first, second):
    """Axis-angle of R(first) R(second)."""
    product = torch.from_numpy(rodrigues(first) @ rodrigues(second))
    return bodymodels.matrix_to_axis_angle(product).numpy()


def hand_joints(scale=0.05):
    """Some (21, 3) in front of a camera."""
    return RNG.normal(0, scale, (21, 3)) + (0.02, 0.01, 0.8)


def write_models(folder):
    """Body models with official names and arrays; the meshes are our free ones.

    MANO_LEFT has the official file's mistake: x of its shape components is not mirrored.
    """
    for side in ("right", "left"):
        arrays = bodymodels.load_arrays(bodymodels.ASSETS / f"hand_{side}.npz")
        arrays = {name: value for name, value in arrays.items()
                  if name not in ("side", "tip_vertex_ids", "license")}
        if side == "left":
            arrays["shapedirs"] = arrays["shapedirs"] * np.array([-1, 1, 1])[:, None]
        np.savez(folder / f"MANO_{side.upper()}.npz", **arrays)
    for gender in ("NEUTRAL", "MALE", "FEMALE"):
        (folder / f"SMPL_{gender}.npz").symlink_to(bodymodels.ASSETS / "body.npz")
        (folder / f"SMPLX_{gender}.npz").symlink_to(folder / "smplx.npz")
    write_few_vertices(folder)
    names = {"spine": "spine2", "jaw": "head"}
    rows = bodymodels.joint_indices("smpl24", [
        names.get(name, name) for name in bodymodels.JOINT_SETS["h36m17_spin"]])
    regressor = bodymodels.load_arrays(bodymodels.ASSETS / "body.npz")["J_regressor"][rows]
    np.save(folder / "J_regressor_h36m.npy", regressor)


LANDMARKS = bodymodels.SURFACE_VERTEX_IDS["smplx"]


def write_few_vertices(folder):
    """The free whole body with its landmarks and hands alone, 1,577 vertices in that order."""
    arrays = bodymodels.load_arrays(bodymodels.ASSETS / "wholebody.npz")
    hands = bodymodels.hand_vertex_ids()
    joints = arrays["J_regressor"] @ arrays["v_template"]
    kept = np.concatenate([LANDMARKS, hands["left"], hands["right"]])
    for name in ("v_template", "shapedirs", "posedirs", "weights"):
        arrays[name] = arrays[name][kept]
    ones = [np.ones((len(points), 1)) for points in (joints, kept)]
    arrays["J_regressor"] = np.hstack([joints, ones[0]]) @ np.linalg.pinv(
        np.hstack([arrays["v_template"], ones[1]]))
    np.savez(folder / "smplx.npz", **arrays | {"f": np.array([[0, 1, 2]])})
    (folder / "MANO_SMPLX_vertex_ids.pkl").write_bytes(pickle.dumps({
        "left_hand": 21 + np.arange(778), "right_hand": 799 + np.arange(778)}))


@pytest.fixture(scope="module", autouse=True)
def landmarks_of_few_vertices():
    """Where SMPL-X's landmarks are in `write_few_vertices`: whole bodies would cost too much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bodymodels.SURFACE_VERTEX_IDS, "smplx", tuple(range(21)))
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of body models."""
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


# ------------------------------------------------------------------------------------- DexYCB


def write_dexycb(root):
    """Two subjects with five sequences (numbers 2 and 4 show left hands), two cameras, two frames.

    The second frame of the first camera of every sequence shows no hand.
    """
    serials = data.DexYCB.CAMERAS[:2]
    for subject in ("20200709-subject-01", "20200820-subject-03"):
        calibration = f"20200709_140042_{subject[9:]}_right"
        write(root / f"calibration/mano_{calibration}/mano.yml",
              "betas:\n" + "".join(f"- {0.1 * index}\n" for index in range(10)))
        for sequence in range(5):
            folder = root / subject / f"2020070{sequence}_140000"
            side = "left" if sequence in (2, 4) else "right"
            write(folder / "meta.yml", f"serials:\n- '{serials[0]}'\n- '{serials[1]}'\n"
                  f"num_frames: 2\nycb_ids:\n- 1\nmano_sides:\n- {side}\nmano_calib:\n"
                  f"- {calibration}\nextrinsics: 20200702_151821\n")
            for camera, serial in enumerate(serials):
                for frame in range(2):
                    write_picture(folder / serial / f"color_{frame:06d}.jpg", (640, 480))
                    joints = hand_joints()[None].astype(np.float32)
                    pose = RNG.normal(0, 0.3, (1, 51)).astype(np.float32)
                    pixels = data.pixels(joints, DEXYCB_K).astype(np.float32)
                    if (camera, frame) == (0, 1):
                        pose[:], joints[:], pixels[:] = 0, -1, -1
                    np.savez(folder / serial / f"labels_{frame:06d}.npz", pose_m=pose,
                             joint_3d=joints, joint_2d=pixels, seg=np.zeros((480, 640), np.uint8))
    for serial in serials:
        write(root / f"calibration/intrinsics/{serial}_640x480.yml",
              "color:\n  fx: 610.0\n  fy: 611.0\n  ppx: 318.0\n  ppy: 241.0\n"
              "depth:\n  fx: 1.0\n  fy: 1.0\n  ppx: 0.0\n  ppy: 0.0\n")
    write(root / "calibration/extrinsics_20200702_151821/extrinsics.yml",
          "extrinsics:\n  '836212060125': !!python/tuple\n  - 1.0\nmaster: '840412060917'\n")


DEXYCB_K = np.array([[610.0, 0, 318], [0, 611, 241], [0, 0, 1]])


def dexycb(root, split="train", **options):
    return data.DexYCB(root, split, 32, sequences=5, progress=False, **options)


def test_dexycb_s0_is_every_fifth_sequence(folders):
    """train: sequences 0 to 3 of all; val: the fifth of subjects 1 and 2; test: of the others."""
    root = folders("dexycb")
    counts = {split: len(dexycb(root, split)) for split in ("train", "val", "test")}
    assert counts == {"train": 2 * 4 * 3, "val": 3, "test": 3}
    assert {dexycb(root, "test").annotation(index)["image"][:19] for index in range(3)} == {
        "20200820-subject-03"}
    assert len(dexycb(root, "train", setup="s1")) == 30 and len(dexycb(root, setup="s3")) == 30


def test_wart_dexycb_frames_without_a_hand_are_minus_one(folders):
    """They are left out, but count in the official number of a sample."""
    dataset = dexycb(folders("dexycb"))
    assert (dataset.records()["keypoints_3d"][..., 2] > 0.3).all()
    assert dataset.records()["person"][:6].tolist() == [0, 2, 3, 4, 6, 7]
    assert dataset.annotation(1)["image"].endswith(f"{data.DexYCB.CAMERAS[1]}/color_000000.jpg")


def test_wart_dexycb_poses_are_coefficients(folders, models):
    """45 coefficients of the principal components of the hand's own side, relative to its mean."""
    root = folders("dexycb")
    records = dexycb(root, models=models).records()
    for side, number in (("right", 0), ("left", 6)):
        record = records[number]
        assert record["side"] == (side == "right") and record["has_pose"] == 1
        arrays = bodymodels.load_arrays(models / f"MANO_{side.upper()}.npz")
        with np.load((root / record["image"].decode().replace("color", "labels")).with_suffix(
                ".npz")) as label:
            pose = label["pose_m"][0].astype(np.float64)
        fingers = arrays["hands_mean"] + pose[3:48] @ arrays["hands_components"]
        expected = rodrigues(np.concatenate([pose[:3], fingers]).reshape(16, 3))
        np.testing.assert_allclose(rodrigues(record["pose"]), expected, atol=1e-5)
        np.testing.assert_array_equal(record["transl"], pose[48:].astype(np.float32))
    assert not dexycb(root).records()["has_pose"].any()  # without MANO


def test_wart_dexycb_left_hands_are_mirrored_from_unmended_meshes(folders, models):
    """A left hand's sample looks right; undone, its mesh is that of the official MANO_LEFT."""
    dataset = dexycb(folders("dexycb"), models=models)
    record, sample = dataset.records()[6], dataset[6]
    assert sample["side"] == 0 and torch.linalg.det(sample["camera_rotation"]) < 0
    left = bodymodels.load_model(models, family="mano", side="left")
    betas, pose, transl = (torch.tensor(record[name][None]) for name in ("betas", "pose", "transl"))
    expected = left(betas, pose, transl=transl).vertices[0]
    torch.testing.assert_close(sample["vertices"] @ sample["camera_rotation"], expected,
                               atol=1e-5, rtol=0)
    mended = bodymodels.load_model(models, family="mano", side="left", fix_left_shapedirs=True)
    assert (mended(betas, pose, transl=transl).vertices[0] - expected).abs().max() > 1e-3
    torch.testing.assert_close(bodymodels.project(sample["joints"], sample["K"]),
                               sample["keypoints_2d"], atol=1e-2, rtol=0)


def test_wart_dexycb_fingertips_are_manopths():
    """Its joints end at other vertices than FreiHAND's and smplx's, in all fingers."""
    tips = [bodymodels.TIP_VERTEX_IDS[name] for name in (data.DexYCB.TIPS, "freihand", "smplx")]
    assert all(tips[0][finger] not in (tips[1][finger], tips[2][finger]) for finger in range(5))


def test_dexycb_refuses(folders, tmp_path):
    root = folders("dexycb")
    with pytest.raises(ValueError, match="5 sequences where the splits count 100"):
        data.DexYCB(root, progress=False, cache=tmp_path)
    with pytest.raises(ValueError, match="setup='s9', expected one of s0, s1"):
        dexycb(root, setup="s9")
    with pytest.raises(ValueError, match="has no option colour"):
        dexycb(root, colour=1)


# ------------------------------------------------------------------------------ InterHand2.6M


def test_lists_of_a_dictionary_are_streamed(tmp_path):
    """By their key, whatever stands before them and wherever the chunks end."""
    content = {"info": {"images": 3, "text": "x" * 300}, "images": [{"id": 1}, {"id": 2}],
               "annotations": [{"id": 7, "of": [1, 2]}] * 3}
    write(tmp_path / "x.json", content)
    for chunk in range(30, 120, 7):
        for key in ("images", "annotations"):
            assert list(data.stream_json_list(tmp_path / "x.json", chunk, key)) == content[key]
    with pytest.raises(ValueError, match="it has no list 'people'"):
        list(data.stream_json_list(tmp_path / "x.json", key="people"))


INTERHAND_R, CAMPOS = rodrigues([0.2, 1.1, -0.3]), np.array([100.0, -400, 900])  # mm


def write_interhand(root):
    """Capture 0, camera 400053: a right hand, both hands, and a pair without a fit."""
    order = bodymodels.joint_indices("hand21", "interhand21")
    images, annotations, joints, fits = [], [], {}, {}
    for number, kind in enumerate(("right", "interacting", "interacting")):
        frame = 17000 + 18 * number
        name = f"Capture0/ROM01/cam400053/image{frame}.jpg"
        images.append({"id": number, "file_name": name, "width": 60, "height": 80, "capture": 0,
                       "subject": 0, "seq_name": "ROM01", "camera": "400053", "frame_idx": frame})
        valid = [[1]] * 21 + [[int(kind == "interacting")]] * 21
        annotations.append({"id": number, "image_id": number, "bbox": [1, 2, 30, 40],
                            "joint_valid": valid, "hand_type": kind, "hand_type_valid": True})
        camera = np.concatenate([hand_joints()[order], hand_joints()[order]])
        world = camera @ INTERHAND_R * 1000 + CAMPOS  # X_camera = R (X - position)
        joints[str(frame)] = {"world_coord": world.tolist(), "joint_valid": valid,
                              "hand_type": kind, "hand_type_valid": True}
        hand = {"pose": RNG.normal(0, 0.3, 48).tolist(), "shape": [0.5] * 10,
                "trans": [0.1, -0.2, 0.3]}
        if number < 2:
            fits[str(frame)] = {"right": hand, "left": hand if number else None}
        write_picture(root / "images/train" / name, (60, 80))
    base = root / "annotations/train/InterHand2.6M_train_"
    cameras = {"0": {"campos": {"400053": CAMPOS.tolist()},
                     "camrot": {"400053": INTERHAND_R.tolist()},
                     "focal": {"400053": [120.0, 121]}, "princpt": {"400053": [30.0, 40]}}}
    for name, content in (("data", {"images": images, "annotations": annotations}),
                          ("camera", cameras), ("joint_3d", {"0": joints}),
                          ("MANO_NeuralAnnot", {"0": fits})):
        write(base.with_name(base.name + name + ".json"), content)


def interhand(root, **options):
    return data.InterHand(root, "train", 32, progress=False, **options)


def test_interhand_has_one_sample_a_hand(folders, models):
    """Right, right and left, right and left; a null or missing fit is flagged, not invented."""
    records = interhand(folders("interhand"), models=models).records()
    assert records["side"].tolist() == [1, 1, 0, 1, 0]
    assert records["has_pose"].tolist() == [1, 1, 1, 0, 0] == records["has_betas"].tolist()
    assert len(np.unique(records["center"], axis=0)) == 5  # a box for each hand


def test_wart_interhand_camera_positions_millimetres_and_order(folders):
    """X = R (X_world - position) / 1000, from tip to base: joints come out in metres, hand21."""
    root = folders("interhand")
    world = json.loads((root / "annotations/train/InterHand2.6M_train_joint_3d.json").read_text())
    points = (np.array(world["0"]["17018"]["world_coord"]) - CAMPOS) @ INTERHAND_R.T / 1000
    record = interhand(root).records()[2]  # the left hand: 21 to 41, its wrist last
    np.testing.assert_allclose(record["keypoints_3d"][0, :3], points[41], atol=1e-6)
    np.testing.assert_allclose(record["keypoints_3d"][4, :3], points[21], atol=1e-6)  # thumb's tip
    assert 0.3 < record["keypoints_3d"][:, 2].min() < 1.2


def test_wart_interhand_fits_turn_about_the_rest_root(folders, models):
    """World to camera of a mesh is not R T + t: the reader's mesh is the world's mesh, moved."""
    root = folders("interhand")
    dataset = interhand(root, models=models)
    fits = json.loads((root / "annotations/train/InterHand2.6M_train_MANO_NeuralAnnot.json")
                      .read_text())["0"]["17018"]
    for index, side in ((1, "right"), (2, "left")):
        model = bodymodels.load_model(models, family="mano", side=side, hand_pose="mean_relative",
                                      fix_left_shapedirs=side == "left")
        pose, betas, transl = (torch.tensor([fits[side][name]])
                               for name in ("pose", "shape", "trans"))
        world = model(betas, pose.view(1, 16, 3), transl=transl).vertices[0].numpy()
        expected = (world - CAMPOS / 1000) @ INTERHAND_R.T
        found = dataset.posed(dataset.records()[index])[0].vertices[0].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        naive = INTERHAND_R @ (fits[side]["trans"] - CAMPOS / 1000)
        assert np.abs(naive - dataset.posed(dataset.records()[index])[2].numpy()).max() > 0.01


# --------------------------------------------------------------------------------------- 3DPW

# A real frame: courtyard_arguing_00, frame 0, person 0.
K_3DPW = np.array([[1961.8528610354, 0, 540], [0, 1969.2307692308, 960], [0, 0, 1]])
CAMERA_3DPW = np.array([[0.9583380685, 0.0366945973, -0.2832695764, -0.4610863065],
                        [0.0877543815, -0.9815754126, 0.1697317820, -1.3847345526],
                        [-0.2718222120, -0.1875185746, -0.9439011968, 5.0435929779], [0, 0, 0, 1]])
TRANSL_3DPW = np.array([0.4148810071, -0.8961028617, 1.4217196010])
REST_ROOT = np.array([-0.0018, -0.2233, 0.0282])  # about SMPL's


def write_3dpw(root):
    """One test sequence: two people, three frames, of which one has no valid camera and one no 2D
    keypoints; and one training sequence. Pickled as by Python 2."""
    for split, name in (("test", "courtyard_arguing_00"), ("train", "outdoors_b")):
        detected = RNG.uniform(10, 40, (2, 3, 3, 18))
        detected[:, :, 2] = 0.9
        detected[:, :, :2, 17] = detected[:, :, 2, 17] = 0  # one joint was not found
        detected[1, 2] = 0
        joints = RNG.normal(0, 0.3, (2, 3, 24, 3)) + TRANSL_3DPW
        content = {
            "sequence": name, "betas": list(RNG.normal(0, 1, (2, 12))), "genders": ["f", "m"],
            "poses": list(RNG.normal(0, 0.3, (2, 3, 72))),
            "trans": [np.stack([TRANSL_3DPW] * 3), RNG.normal(0, 1, (3, 3))],
            "poses2d": list(detected), "jointPositions": list(joints.reshape(2, 3, 72)),
            "img_frame_ids": np.array([0, 2, 4], np.uint16), "cam_intrinsics": K_3DPW,
            "cam_poses": np.stack([CAMERA_3DPW] * 3), "texture_maps": [],
            "campose_valid": [np.array([1, 0, 1], np.uint8), np.array([1, 1, 1], np.uint8)]}
        path = root / f"sequenceFiles/{split}/{name}.pkl"
        path.parent.mkdir(parents=True)
        path.write_bytes(pickle.dumps(content, protocol=2))
        for frame in range(3):
            write_picture(root / f"imageFiles/{name}/image_{frame:05d}.jpg", (54, 96))


def threedpw(root, split="test", **options):
    return data.ThreeDPW(root, split, 32, progress=False, **options)


def test_wart_3dpw_counts_valid_people_and_numbers_pictures_by_row(folders):
    """campose_valid and keypoints decide; img_frame_ids, at 60 Hz, are no file names."""
    dataset = threedpw(folders("3dpw"))
    rows = [(record["person"], record["image"][-9:-4].decode()) for record in dataset.records()]
    assert rows == [(0, "00000"), (0, "00002"), (1, "00000"), (1, "00001")]
    assert len(threedpw(folders("3dpw"), "train")) == 4
    assert dataset.records()["gender"].tolist() == [2, 2, 1, 1]


def test_wart_3dpw_keypoints_are_transposed(folders):
    """poses2d are (3, 18): its 15th column, the right eye, is the joint after the nose."""
    root = folders("3dpw")
    content = bodymodels.safe_unpickle(root / "sequenceFiles/test/courtyard_arguing_00.pkl")
    record = threedpw(root).records()[0]
    names = bodymodels.JOINT_SETS["smpl45"]
    for name, column in (("nose", 0), ("right_eye", 14), ("left_ankle", 13)):
        found = record["keypoints_2d"][names.index(name)]
        np.testing.assert_allclose(found, content["poses2d"][0][0][:, column], rtol=1e-6)
    assert record["keypoints_2d"][names.index("left_ear"), 2] == 0  # column 17
    known = content["poses2d"][0][0][:2, :17]
    np.testing.assert_allclose(record["box"], np.ptp(known, 1), rtol=1e-5)
    np.testing.assert_allclose(record["center"], (known.min(1) + known.max(1)) / 2, rtol=1e-5)


def test_golden_3dpw_camera_leads_from_the_world(folders):
    """A real frame's pelvis lands where its hips were detected, and not with the inverse."""
    record = threedpw(folders("3dpw")).records()[0]
    motion = record["world_to_camera"].astype(np.float64)
    pelvis = data.moved_translation(record["transl"], motion, REST_ROOT) + REST_ROOT
    np.testing.assert_allclose(data.pixels(pelvis[None], K_3DPW)[0], (271.1, 958.1), atol=0.1)
    R, t = motion[:, :3].T, -motion[:, :3].T @ motion[:, 3]
    wrong = data.pixels((R @ (TRANSL_3DPW + REST_ROOT) + t)[None], K_3DPW)[0]
    assert wrong[0] > 1080  # outside of the picture


def test_wart_3dpw_bodies_turn_with_the_camera(folders, models):
    """The gendered body in the camera's frame is that of the world, moved; so are the joints."""
    root = folders("3dpw")
    content = bodymodels.safe_unpickle(root / "sequenceFiles/test/courtyard_arguing_00.pkl")
    dataset = threedpw(root, models=models)
    body = bodymodels.load_model(models, family="smpl", gender="male")
    pose, betas, transl = (torch.tensor(np.asarray(values)[None], dtype=torch.float32)
                           for values in (content["poses"][1][1].reshape(24, 3),
                                          content["betas"][1][:10], content["trans"][1][1]))
    world = body(betas, pose, transl=transl).vertices[0].numpy()
    expected = world @ CAMERA_3DPW[:3, :3].T + CAMERA_3DPW[:3, 3]
    found = dataset.posed(dataset.records()[3])[0].vertices[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    joints = content["jointPositions"][1][1].reshape(24, 3) @ CAMERA_3DPW[:3, :3].T
    np.testing.assert_allclose(dataset.records()[3]["keypoints_3d"][:24, :3],
                               joints + CAMERA_3DPW[:3, 3], atol=1e-5)


def write_3dpw_moon(root):
    """Moon's packing, two people in one picture."""
    people = [{"id": 7 + number, "image_id": 3, "bbox": [5.0, 10, 20, 60],
               "smpl_param": {"pose": RNG.normal(0, 0.3, 72).tolist(), "shape": [0.1] * 10,
                              "trans": [0.1, 0.2, 4.0], "gender": "male"},
               "cam_param": {"focal": [60.0, 61], "princpt": [27.0, 48]}} for number in range(2)]
    picture = {"id": 3, "file_name": "image_00000.jpg", "sequence": "office", "width": 54,
               "height": 96}
    write(root / "3DPW_test.json", {"images": [picture], "annotations": people})
    write_picture(root / "imageFiles/office/image_00000.jpg", (54, 96))


def threedpw_moon(root, **options):
    return data.ThreeDPWMoon(root, "test", 32, progress=False, **options)


def test_wart_3dpw_of_moon_is_in_the_cameras_frame_and_neutral(folders):
    """Nothing is turned, and the gender does not choose the model."""
    root = folders("3dpw-moon")
    fit = json.loads((root / "3DPW_test.json").read_text())["annotations"][1]["smpl_param"]
    record = threedpw_moon(root).records()[1]
    np.testing.assert_allclose(record["pose"].ravel(), fit["pose"], rtol=1e-6)
    np.testing.assert_array_equal(record["world_to_camera"], np.eye(3, 4))
    assert record["gender"] == 0 and record["center"].tolist() == [15, 40]


# --------------------------------------------------------------------------------------- EMDB

# A real frame: P0_01_mvs_b, frame 0.
K_EMDB = np.array([[1436.4219970703125, 0, 723.2894287109375],
                   [0, 1436.4219970703125, 963.9358520507812], [0, 0, 1]])
CAMERA_EMDB = np.array([[-0.8044775487, 0.0119724517, 0.5938623864, 1.9185989272],
                        [-0.0701724767, -0.9947109990, -0.0750056810, -0.1648031171],
                        [0.5898234457, -0.1020131808, 0.8010628027, 3.0030819287], [0, 0, 0, 1]])
TRANSL_EMDB = np.array([1.1270416975, -0.1287951767, -0.9106571078], np.float32)
ROOT_EMDB = np.array([0.0301839253, -2.6950244169, 0.1059646635])
KEYPOINT_EMDB = (954.043, 1048.399)


def write_emdb(root):
    """Two sequences of four frames, one of them not good; only the first is in EMDB-1."""
    for name, first in (("P0/01_mvs_b", True), ("P9/80_outdoor_walk", False)):
        folder = root / name
        bodies = {"poses_root": np.stack([ROOT_EMDB] * 4), "trans": np.stack([TRANSL_EMDB] * 4),
                  "poses_body": RNG.normal(0, 0.2, (4, 69)),
                  "betas": RNG.normal(0, 1, 10).astype(np.float32)}
        content = {
            "gender": "male", "name": name.replace("/", "_"), "emdb1": first, "emdb2": not first,
            "n_frames": 4, "good_frames_mask": np.array([True, True, False, True]),
            "camera": {"intrinsics": K_EMDB, "extrinsics": np.stack([CAMERA_EMDB] * 4),
                       "width": 36, "height": 48},
            "smpl": bodies, "kp2d": np.full((4, 24, 2), KEYPOINT_EMDB),
            "bboxes": {"bboxes": np.tile([492.108, 581.097, 1440, 1599.060], (4, 1)),
                       "invalid_idxs": np.array([], np.int64)}}
        folder.mkdir(parents=True)
        (folder / f"{name.replace('/', '_')}_data.pkl").write_bytes(pickle.dumps(content))
        for frame in range(4):
            write_picture(folder / f"images/{frame:05d}.jpg", (36, 48))


def emdb(root, split="emdb1", **options):
    return data.EMDB(root, split, 32, progress=False, **options)


def test_wart_emdb_flags_choose_sequences_and_the_mask_frames(folders):
    """invalid_idxs is empty here and says nothing of the frame that is not good."""
    records = emdb(folders("emdb")).records()
    assert records["frame"].tolist() == [0, 1, 3]
    assert set(records["sequence"]) == {b"P0_01_mvs_b"}
    assert set(emdb(folders("emdb"), "emdb2").records()["sequence"]) == {b"P9_80_outdoor_walk"}
    np.testing.assert_allclose(records["box"][0], (947.892, 1017.963), atol=1e-3)


def test_golden_emdb_extrinsics_lead_to_the_camera(folders):
    """A real frame's root lands beside the official keypoint, and not with the inverse."""
    record = emdb(folders("emdb")).records()[0]
    motion = record["world_to_camera"].astype(np.float64)
    root = data.moved_translation(record["transl"], motion, REST_ROOT) + REST_ROOT
    found = data.pixels(root[None], K_EMDB)[0]
    np.testing.assert_allclose(found, (955.88, 1046.72), atol=0.05)
    assert np.abs(found - record["keypoints_2d"][0, :2]).max() < 2.5
    R, t = motion[:, :3].T, -motion[:, :3].T @ motion[:, 3]
    wrong = data.pixels((R @ (TRANSL_EMDB + REST_ROOT) + t)[None], K_EMDB)[0]
    np.testing.assert_allclose(wrong, (1383, 733), atol=1)
    np.testing.assert_allclose(rodrigues(record["pose"][0]),
                               CAMERA_EMDB[:3, :3] @ rodrigues(ROOT_EMDB), atol=1e-5)


# --------------------------------------------------------------------------------- Human3.6M


def write_h36m(root):
    """SPIN's files: three rows of protocol 1, of which one is from the frontal camera."""
    names = [f"images/S9_Directions_1.{camera}_000001.jpg"
             for camera in ("54138969", "60457274", "58860488")]
    solid = np.concatenate([RNG.normal(0, 0.4, (3, 24, 3)), np.ones((3, 24, 1))], 2)
    solid[:, 14, :3] = 0
    (root / "dataset_extras").mkdir()
    for name in ("h36m_valid_protocol1", "h36m_valid_protocol2"):
        np.savez(root / f"dataset_extras/{name}.npz", imgname=np.array(names), S=solid,
                 center=np.full((3, 2), 25.0), scale=np.full(3, 0.2),
                 part=np.concatenate([RNG.uniform(5, 45, (3, 24, 2)), np.ones((3, 24, 1))], 2))
    for name in names:
        write_picture(root / name, (50, 50))


def human36m(root, split="p1", **options):
    return data.Human36M(root, split, 32, progress=False, **options)


def test_wart_human36m_protocol_2_is_the_frontal_camera(folders):
    root = folders("h36m")
    assert len(human36m(root)) == 3
    assert [name.decode()[-20:-11] for name in human36m(root, "p2").records()["image"]] == [
        ".60457274"[:9]]


def test_wart_spin_scale_is_a_side_over_200(folders):
    """The crop shows the square of 200 * scale pixels around center."""
    dataset = human36m(folders("h36m"), joint_set="j24")
    corners = data.transform_points(dataset.crop(
        dataset.records()[0], np.zeros((24, 3)), (50, 50), None)[0], np.array([[5.0, 5], [45, 45]]))
    np.testing.assert_allclose(corners, [[4, 4], [28, 28]], atol=1e-4)  # of 32, an eighth unseen
    record = dataset.records()[0]
    assert record["keypoints_3d"].shape == (49, 4) and not record["keypoints_3d"][:25].any()
    np.testing.assert_array_equal(dataset[0]["keypoints_3d_valid"], np.ones(24))


def write_h36m_moon(root, subjects=(9, 11)):
    """Each subject: cameras 1 and 4, frames 0 and 3; the second frame has no fit."""
    for subject in subjects:
        base = f"annotations/Human36M_subject{subject}_"
        folder = f"s_{subject:02d}_act_02_subact_01_ca_0"
        pictures = [{"id": number, "width": 40,
                     "file_name": f"{folder}{camera}/{folder}{camera}_{frame:06d}.jpg",
                     "height": 42, "subject": subject, "action_idx": 2,
                     "subaction_idx": 1, "cam_idx": camera, "frame_idx": frame}
                    for number, (camera, frame) in enumerate(
                        ((1, 0), (4, 0), (1, 3), (4, 5)))]
        people = [{"id": number, "image_id": number, "bbox": [4.0, 5, 20, 30]}
                  for number in range(4)]
        camera = {"R": H36M_R.tolist(), "t": H36M_T.tolist(), "f": [1145.0, 1144],
                  "c": [512.0, 515]}
        world = {str(frame): (RNG.normal(0, 300, (17, 3)) + (0, 0, 900)).tolist()
                 for frame in (0, 3, 5)}
        write(root / f"{base}data.json", {"images": pictures, "annotations": people})
        write(root / f"{base}camera.json", {"1": camera, "4": camera})
        write(root / f"{base}joint_3d.json", {"2": {"1": world}})
        write(root / f"{base}SMPL_NeuralAnnot.json", {"2": {"1": {"0": {
            "pose": RNG.normal(0, 0.2, 72).tolist(), "shape": [0.2] * 10,
            "trans": [0.1, 0.2, 0.9]}}}})
        write(root / f"{base}SMPLX_NeuralAnnot.json", {"2": {"1": {"0": smplx_fit()}}})
        for picture in pictures:
            write_picture(root / "images" / picture["file_name"], (40, 42))


def smplx_fit():
    """A body by the names of NeuralAnnot."""
    sizes = {"root_pose": 3, "body_pose": 63, "shape": 10, "expr": 10, "jaw_pose": 3,
             "lhand_pose": 45, "rhand_pose": 45}
    return {name: RNG.normal(0, 0.2, size).tolist() for name, size in sizes.items()} | {
        "trans": [0.1, 0.2, 0.9]}


H36M_R, H36M_T = rodrigues([1.4, 0.2, 0.1]), np.array([100.0, 900, 5200])  # mm


def h36m_moon(root, split="p1", **options):
    return data.Human36MMoon(root, split, 32, progress=False, **options)


def test_human36m_of_moon(folders, models):
    """Every fifth frame; p2 is camera 4; joints are metres before the camera, right leg first."""
    root = folders("h36m-moon")
    assert [len(h36m_moon(root, split)) for split in ("p1", "p2")] == [6, 4]
    dataset = h36m_moon(root, models=models)
    world = json.loads((root / "annotations/Human36M_subject9_joint_3d.json").read_text())
    points = np.array(world["2"]["1"]["0"])
    record = dataset.records()[0]
    np.testing.assert_allclose(record["keypoints_3d"][:, :3],
                               (points @ H36M_R.T + H36M_T) / 1000, atol=1e-5)
    assert bodymodels.JOINT_SETS[dataset.JOINTS][1] == "right_hip"
    assert dataset.records()["has_pose"].tolist() == [1, 1, 0, 1, 1, 0]
    fit = json.loads((root / "annotations/Human36M_subject9_SMPL_NeuralAnnot.json").read_text())
    np.testing.assert_allclose(
        rodrigues(record["pose"][0]),
        H36M_R @ rodrigues(fit["2"]["1"]["0"]["pose"][:3]), atol=1e-5)


def h36m_smplx(root, split="p1", **options):
    return data.Human36MSMPLX(root, split, 32, progress=False, **options)


def test_wart_neural_annots_fingers_are_relative_to_the_mean_hand(folders, models):
    """SMPL-X's parts come by name; the root is turned into the camera, fingers made absolute; a
    frame without a fit is no person."""
    root = folders("h36m-smplx")
    dataset = h36m_smplx(root, models=models)
    fit = json.loads((root / "annotations/Human36M_subject9_SMPLX_NeuralAnnot.json").read_text())
    fit, pose = fit["2"]["1"]["0"], dataset.records()["pose"][0]
    np.testing.assert_allclose(rodrigues(pose[0]), H36M_R @ rodrigues(fit["root_pose"]), atol=1e-5)
    np.testing.assert_allclose(pose[1:22].ravel(), fit["body_pose"], rtol=1e-5)
    mean = bodymodels.load_arrays(models / "SMPLX_NEUTRAL.npz")["hands_meanr"]
    np.testing.assert_allclose(pose[40:].ravel(), fit["rhand_pose"] + mean.ravel(), atol=1e-6)
    assert not h36m_smplx(root).records()["has_hands"].any()  # without models
    people = data.OfficialPeople(dataset, 32)
    assert people.kept.tolist() == [0, 1, 3, 4]  # of six, every third has no fit
    flags = {name: float(people[0][f"{name}_valid"]) for name in ("body_pose", "betas",
                                                                  "expression")}
    assert flags == {"body_pose": 1, "betas": 1, "expression": 0}


def test_wart_h36m_regressors_differ_in_the_legs():
    """Two files of one role: SPIN's has the left leg in rows 1 to 3, Moon's the right one."""
    spin, moon = (bodymodels.JOINT_SETS[f"h36m17_{name}"] for name in ("spin", "moon"))
    assert spin[1] == "left_hip" and moon[1] == "right_hip" and spin[7:] == moon[7:]
    with_left_first = data.relabelled(np.eye(17, 4) + [0, 0, 0, 1], "h36m17_spin", "h36m17_moon")
    assert with_left_first[4, 1] == 1  # SPIN's row 1 goes to Moon's row 4


# ------------------------------------------------------------------- COCO, AI Challenger, MPII


def write_coco(root):
    """Two pictures; a person, one with few joints, a crowd and another person."""
    keypoints = np.concatenate([RNG.uniform(5, 40, (17, 2)), np.full((17, 1), 2.0)], 1)
    keypoints[0], keypoints[5, 2] = 0, 1
    few = keypoints * (np.arange(17) < 9)[:, None]
    people = [(1, keypoints, 0), (1, few, 0), (1, keypoints, 1), (2, keypoints, 0)]
    write(root / "annotations/person_keypoints_train2014.json", {
        "images": [{"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg", "width": 64,
                    "height": 48} for number in (1, 2)],
        "annotations": [{"id": 10 + number, "image_id": image, "bbox": [2.0, 4, 30, 40],
                         "iscrowd": crowd, "keypoints": points.ravel().tolist(),
                         "num_keypoints": int((points[:, 2] > 0).sum()), "area": 9.0}
                        for number, (image, points, crowd) in enumerate(people)]})
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in (1, 2):
        write_picture(root / f"train2014/COCO_train2014_{number:012d}.jpg", exif=exif)


def coco(root, **options):
    return data.COCO(root, "train", 32, progress=False, **options)


def test_coco_keeps_people_with_enough_joints(folders):
    records = coco(folders("coco")).records()
    assert records["person"].tolist() == [10, 13]
    assert coco(folders("coco"), min_keypoints=4).records()["person"].tolist() == [10, 11, 13]
    assert records["keypoints_2d"][0, :, 2].tolist() == [0] + 16 * [1]  # covered counts as seen
    assert records["center"][0].tolist() == [17, 24] and records["box"][0].tolist() == [30, 40]


def test_wart_neural_annot_of_coco_is_by_annotation_and_has_its_own_camera(fresh):
    """Only people in the file have a pose; K is the fit's, and of the others unknown."""
    root = fresh("coco")
    write(root / "fits.json", {"13": {
        "smpl_param": {"pose": [0.1] * 72, "shape": [0.2] * 10, "trans": [0, 0, 3]},
        "cam_param": {"focal": [70.0, 71], "princpt": [32.0, 24]}}})
    records = coco(root, fits="fits.json").records()
    assert records["has_pose"].tolist() == [0, 1] and records["has_transl"].tolist() == [0, 1]
    assert not records["K"][0].any() and records["K"][1, 1, 1] == 71
    with pytest.raises(FileNotFoundError, match="no .*other.json"):
        coco(root, fits="other.json")


def test_wart_coco_pictures_are_not_turned(folders):
    """Keypoints are of the pixels as stored; EXIF would make this picture upright, and wrong."""
    dataset = coco(folders("coco"))
    assert dataset.picture(dataset.records()[0]).shape == (48, 64, 3)
    path = folders("coco") / dataset.annotation(0)["image"]
    assert data.read_image(path).shape == (64, 48, 3)


def write_aic(root):
    """One picture of two people; of the second's joints only four are labelled."""
    points = np.concatenate([RNG.uniform(5, 40, (14, 2)), np.ones((14, 1))], 1)
    few = points.copy()
    few[4:] = 0, 0, 3
    few[2, 2] = 2
    write(root / "keypoint_train_annotations_20170902.json", [{
        "image_id": "0a1b", "url": "", "human_annotations": {"human1": [2, 4, 32, 44],
                                                              "human2": [10, 4, 32, 44]},
        "keypoint_annotations": {"human1": points.ravel().tolist(),
                                 "human2": few.ravel().tolist()}}])
    write_picture(root / "keypoint_train_images_20170902/0a1b.jpg")


def aic(root, **options):
    return data.AIC(root, "train", 32, progress=False, **options)


def test_wart_aic_three_means_absent(folders):
    records = aic(folders("aic")).records()
    assert records["keypoints_2d"][..., 2].sum(1).tolist() == [14, 4]
    assert records["center"][0].tolist() == [17, 24]
    assert len(aic(folders("aic"), min_keypoints=5)) == 1


def write_mpii(root):
    """A picture with one person, one with two, of whom one lacks a joint, and a test picture."""
    def person(count):
        points = [{"x": 2.0 + joint, "y": 3.0 + joint, "id": joint, "is_visible": 1}
                  for joint in RNG.permutation(16)[:count].tolist()]
        return {"x1": 1, "y1": 1, "x2": 5, "y2": 5, "scale": 0.2,
                "objpos": {"x": 20.0, "y": 21.0}, "annopoints": {"point": structs(points)}}

    def structs(rows):
        array = np.empty(len(rows), [(name, object) for name in rows[0]])
        for index, row in enumerate(rows):
            array[index] = tuple(row.values())
        return array

    pictures = structs([
        {"image": {"name": f"{name}.jpg"}, "annorect": structs(people)} for name, people in (
            ("one", [person(16)]), ("two", [person(16), person(15)]),
            ("test", [{"scale": 1.0, "objpos": {"x": 1, "y": 1}}]))])
    scipy.io.savemat(root / "mpii_human_pose_v1_u12_1.mat", {"RELEASE": {
        "annolist": pictures, "img_train": np.array([1, 1, 0])}})
    for name in ("one", "two", "test"):
        write_picture(root / f"images/{name}.jpg")


def mpii(root, **options):
    return data.MPII(root, "train", 32, progress=False, **options)


def test_wart_mpii_points_have_ids_and_count_from_one(folders):
    """Whatever their order, point 3 is joint 3; a single person is no list; test has no labels."""
    root = folders("mpii")
    records = mpii(root).records()
    assert [name.decode() for name in records["image"]] == ["images/one.jpg", "images/two.jpg"]
    np.testing.assert_array_equal(records["keypoints_2d"][0, :, 0], 1 + np.arange(16))
    np.testing.assert_array_equal(records["center"][0], (19, 20))
    np.testing.assert_allclose(records["box"][0], (40, 40), rtol=1e-6)
    assert len(mpii(root, min_keypoints=10)) == 3


# ------------------------------------------------------------------------------- MPI-INF-3DHP


def write_mpi_inf(root):
    """One sequence of eleven frames before fourteen cameras; one joint leaves the picture."""
    flat = RNG.uniform(500, 1500, (11, 28, 2))
    solid = RNG.normal(0, 300, (11, 28, 3)) + (0, 0, 3000)
    away = flat.copy()
    away[10, 20, 0] = 2100
    folder = root / "S1/Seq1"
    folder.mkdir(parents=True)

    def cell(values):
        cells = np.empty((14, 1), object)
        for camera in range(14):
            cells[camera, 0] = values(camera)
        return cells

    scipy.io.savemat(folder / "annot.mat", {
        "annot2": cell(lambda camera: (away if camera else flat).reshape(11, 56)),
        "annot3": cell(lambda camera: solid.reshape(11, 84)),
        "univ_annot3": cell(lambda camera: 0.9 * solid.reshape(11, 84))})
    lines = ["Skeletool Camera Calibration File V1.0"]
    for camera in range(14):
        matrix = np.eye(4)
        matrix[:2, :3] = [[1500 + camera, 0, 1024], [0, 1500, 1020]]
        lines += [f"name          {camera}", "  sensor      10 10", "  size        2048 2048",
                  "  animated    0", "  intrinsic   " + " ".join(map(str, matrix.ravel())),
                  "  extrinsic   " + " ".join(map(str, np.eye(4).ravel())), "  radial      0"]
    write(folder / "camera.calibration", "\n".join(lines))
    for camera in data.MPIINF3DHP.CAMERAS:
        for frame in (1, 11):
            write_picture(folder / f"imageFrames/video_{camera}/frame_{frame:06d}.jpg",
                          (2048, 2048), quality=10)


def mpi_inf(root, split="train", **options):
    return data.MPIINF3DHP(root, split, 32, progress=False, **options)


def test_wart_mpi_inf_counts_frames_from_one_and_joints_of_28(folders):
    """Every tenth frame of eight cameras, named one later; the fifth of 28 joints is the root."""
    root = folders("mpi-inf-3dhp")
    records = mpi_inf(root).records()
    assert len(records) == 8 + 1  # frame 10 has a joint outside but before the first camera
    assert records["image"][1] == b"S1/Seq1/imageFrames/video_0/frame_000011.jpg"
    content = scipy.io.loadmat(root / "S1/Seq1/annot.mat")
    solid = content["annot3"][0, 0].reshape(11, 28, 3) / 1000
    np.testing.assert_allclose(records["keypoints_3d"][0, 0, :3], solid[0, 4], rtol=1e-6)
    np.testing.assert_allclose(records["keypoints_3d"][0, 1, :3], solid[0, 18], rtol=1e-6)
    assert records["K"][2, 0, 0] == 1501 and len(mpi_inf(root, stride=1)) == 11 + 7 * 10


def test_wart_mpi_inf_test_files_are_hdf5_and_universal(tmp_path):
    """annot_data.mat is of version 7.3; by default the height-normalised joints are taken."""
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "mpi_inf_3dhp_test_set/TS1"
    solid = RNG.normal(0, 300, (3, 1, 17, 3)) + (0, 0, 3000)
    for frame in range(1, 4):
        write_picture(folder / f"imageSequence/img_{frame:06d}.jpg", (64, 64))
    with h5py.File(folder / "annot_data.mat", "w") as file:
        file["annot2"], file["annot3"] = RNG.uniform(5, 60, (3, 1, 17, 2)), solid
        file["univ_annot3"], file["valid_frame"] = 0.9 * solid, np.array([[1.0], [0], [1]])
    records = mpi_inf(tmp_path, "test").records()
    assert records["frame"].tolist() == [0, 2]
    assert records["image"][1].endswith(b"TS1/imageSequence/img_000003.jpg")
    np.testing.assert_allclose(records["keypoints_3d"][0, 0, :3], 0.9e-3 * solid[0, 0, 14],
                               rtol=1e-6)
    real = mpi_inf(tmp_path, "test", universal=False).records()
    np.testing.assert_allclose(real["keypoints_3d"][0, 0, :3], 1e-3 * solid[0, 0, 14], rtol=1e-6)


# --------------------------------------------------------------------------------- tar shards


def tar_person(**changes):
    """A person of HMR2.0's training sets."""
    return {"keypoints_2d": np.concatenate([RNG.uniform(5, 40, (44, 2)), np.ones((44, 1))], 1),
            "keypoints_3d": np.concatenate([RNG.normal(0, 0.4, (44, 3)), np.ones((44, 1))], 1),
            "center": np.array([30.0, 25]), "scale": np.array([0.1, 0.2]),
            "body_pose": RNG.normal(0, 0.2, 72), "betas": np.full(10, 0.3),
            "has_body_pose": np.array(1.0), "has_betas": np.array(1.0),
            "extra_info": {"fitting_loss": np.array({}), "detection_npz_idx": 0}} | changes


def write_shard(path, items):
    """A tar file of {name: bytes}, without folders, as webdataset writes it."""
    with tarfile.open(path, "w") as archive:
        for name, content in items.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def jpeg(size=(64, 48), color=90):
    buffer = io.BytesIO()
    Image.new("RGB", size, (color, 60, 60)).save(buffer, "jpeg")
    return buffer.getvalue()


MASKS = np.random.default_rng(2).random((2, 48, 64)) < 0.5


def write_hmr2(root):
    """A picture of three people, of whom two pass the filters; one with a mask and one person
    whose pose is not known; and one key that is damaged."""
    few = np.concatenate([np.ones((44, 2)), np.full((44, 1), 0.2)], 1)
    few[:4, 2] = 1
    lost = np.array({"reprojection_loss": np.array(32_000.0)})
    mask = io.BytesIO()
    np.savez(mask, masks=MASKS)
    flat = tar_person(has_body_pose=np.array(0.0), extra_info={"detection_npz_idx": 1})
    flat["keypoints_2d"][3, 2] = 0.1
    people = [tar_person(), tar_person(keypoints_2d=few), tar_person(betas=np.full(10, 3.5)),
              tar_person(extra_info={"fitting_loss": lost})]
    write_shard(root / "000000.tar", {
        "aic-train/a.jpg": jpeg(), "aic-train/a.data.pyd": pickle.dumps(people)} | {
        "c.jpg": jpeg(color=200), "c.data.pyd": pickle.dumps([flat]),
        "c.detection.npz": mask.getvalue(), "d.jpg": jpeg(), "d.data.pyd": b"no pickle"})


def hmr2(root, **options):
    return data.HMRShards(root, "train", 32, progress=False, **options)


def test_wart_tar_filters_of_hmr2(folders):
    """Weak keypoints, few of them, bad fits, wild shapes; an unknown shape becomes the mean one."""
    root = folders("hmr2-tars")
    records = hmr2(root).records()
    assert list(zip(records["sequence"].tolist(), records["person"].tolist(), strict=True)) == [
        (b"aic-train/a", 0), (b"aic-train/a", 2), (b"c", 0)]
    assert records["has_pose"].tolist() == [1, 0, 0] and records["has_betas"].tolist() == [1, 1, 1]
    assert not records["betas"][1:].any() and records["keypoints_2d"][2, 3].tolist() == [0, 0, 0]
    raw = hmr2(root, filters=False).records()
    assert len(raw) == 5 and raw["has_betas"].tolist() == [1] * 5
    assert raw["has_pose"].tolist() == [1, 1, 1, 1, 0]


def test_wart_tar_scale_is_width_and_height_over_200(folders):
    """Stored boxes are tight: 200 * scale is what the crop shows, 1.2 times the box."""
    record = hmr2(folders("hmr2-tars")).records()[0]
    np.testing.assert_allclose(1.2 * record["box"], (20, 40), rtol=1e-6)


def test_wart_tar_masks_belong_to_people_and_may_be_missing(folders):
    """detection_npz_idx chooses; without detection.npz all of the picture is the person's."""
    dataset = hmr2(folders("hmr2-tars"))
    assert dataset.mask(0).shape == (48, 64) and dataset.mask(0).all()
    np.testing.assert_array_equal(dataset.mask(2), MASKS[1])


@pytest.mark.filterwarnings("ignore:.*b. is damaged and left out")
def test_shards_are_read_by_all_cores_in_their_order(tmp_path):
    """As by one; a damaged one is named, also if another process reads it; excluded keys are not
    read."""
    for number in range(3):
        people = pickle.dumps([tar_person(center=np.array([number, key])) for key in range(2)])
        write_shard(tmp_path / f"{number:06d}.tar", {
            f"aic-train/k{number}.jpg": jpeg(), f"aic-train/k{number}.data.pyd": people,
            f"b{number}.jpg": jpeg(), f"b{number}.data.pyd": b"no pickle"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets.shards, "available_cores", lambda: 2)
        with pytest.warns(UserWarning, match="000001.tar: b1 is damaged and left out"):
            records = hmr2(tmp_path).records()
        assert records["center"].tolist() == [[n, key] for n in range(3) for key in range(2)]
        (tmp_path / "exclude.txt").write_text("k1\nk7\n")
        assert [name.decode() for name in hmr2(tmp_path).records()["sequence"]] == [
            "aic-train/k0"] * 2 + ["aic-train/k2"] * 2
        path = tmp_path / "000001.tar"
        path.write_bytes(path.read_bytes()[:700])
        with pytest.raises(ValueError, match="000001.tar is not as HMRShards is shipped"):
            hmr2(tmp_path)
    assert not [*tmp_path.glob("*.tmp")]


def test_tar_pictures_are_read_where_they_lie(folders):
    """Nothing is unpacked: a record holds the place of its picture in the shard."""
    dataset = hmr2(folders("hmr2-tars"))
    shades = [dataset.picture(record)[0, 0, 0] for record in dataset.records()]
    assert abs(int(shades[0]) - 90) < 3 and abs(int(shades[2]) - 200) < 3
    assert dataset.records()["image"][0] == b"000000.tar"


def test_wart_tar_damaged_keys_are_left_out_and_unknown_kinds_are_not(tmp_path):
    good = {"a.jpg": jpeg(), "a.data.pyd": pickle.dumps([tar_person()])}
    write_shard(tmp_path / "000000.tar", good | {"b.jpg": jpeg(), "b.data.pyd": b"\x80\x04."})
    with pytest.warns(UserWarning, match="b is damaged and left out"):
        assert len(hmr2(tmp_path)) == 1
    write_shard(tmp_path / "000000.tar", good | {"a.tiff": b""})
    with pytest.raises(ValueError, match="a has a part of unknown kind, tiff"):
        hmr2(tmp_path)


def test_wart_tar_cut_between_members(tmp_path):
    """tarfile takes a shard that ends early for a whole one; we do not."""
    write_shard(tmp_path / "000000.tar", {
        "a.jpg": jpeg(), "a.data.pyd": pickle.dumps([tar_person()]), "b.jpg": jpeg()})
    with tarfile.open(tmp_path / "000000.tar") as archive:
        end = archive.getmembers()[2].offset
    path = tmp_path / "000000.tar"
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=f"damaged or cut off at byte {end}"):
        hmr2(tmp_path)


def test_wart_pickles_in_shards_are_not_executed(tmp_path):
    class Malice:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    write_shard(tmp_path / "000000.tar", {
        "a.jpg": jpeg(), "a.data.pyd": pickle.dumps([Malice()]),
        "b.jpg": jpeg(), "b.data.pyd": pickle.dumps([tar_person()])})
    with pytest.warns(UserWarning, match="a is damaged and left out.*mkdir"):
        assert len(hmr2(tmp_path)) == 1
    assert not (tmp_path / "executed").exists()


def test_wart_hips_of_openpose_are_smpls_and_those_of_lsp_are_not():
    """"hmr44" has two right hips: for SMPL the first counts, for LSP the second."""
    points = np.arange(44.0)[:, None] * [1, 1] + [0, 1]
    names = bodymodels.JOINT_SETS
    smpl = data.relabelled(points, "hmr44", "smpl45")
    assert smpl[names["smpl45"].index("right_hip"), 0] == 9
    lsp = data.relabelled(points, "hmr44", "lsp14")
    assert lsp[names["lsp14"].index("right_hip"), 0] == 27
    order = [24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, *range(25, 35)]  # smplx's 45
    np.testing.assert_array_equal(smpl[order, 0], range(25))


def write_hamer(root):
    """A right and a left hand in one picture."""
    flat = np.concatenate([RNG.uniform(20, 40, (21, 2)), np.ones((21, 1))], 1)
    hands = [{"keypoints_2d": flat, "keypoints_3d": np.pad(hand_joints(), ((0, 0), (0, 1)),
                                                           constant_values=1.0),
              "center": np.array([30.0, 24]), "scale": np.array([0.1, 0.1]),
              "hand_pose": RNG.normal(0, 0.3, 48), "betas": np.zeros(10),
              "has_hand_pose": np.array(1.0), "has_betas": np.array(0.0), "right": right}
             for right in (np.array(1.0), np.array(0.0))]
    write_shard(root / "000000.tar", {"k.jpg": jpeg(), "k.data.pyd": pickle.dumps(hands)})


def hamer(root, **options):
    return data.HaMeRShards(root, "train", 32, progress=False, **options)


def test_wart_hamer_poses_are_absolute_and_left_hands_come_out_right(folders):
    dataset = hamer(folders("hamer-tars"))
    record, sample = dataset.records()[1], dataset[1]
    assert record["side"] == 0 and torch.linalg.det(sample["camera_rotation"]) < 0
    with tarfile.open(folders("hamer-tars") / "000000.tar") as archive:
        hands = bodymodels.safe_unpickle(archive.extractfile("k.data.pyd").read())
    np.testing.assert_allclose(record["pose"].ravel(), hands[1]["hand_pose"], rtol=1e-5)
    plain = dataset[0]  # the same picture and keypoints, not mirrored
    torch.testing.assert_close(sample["keypoints_2d"][:, 0], 32 - plain["keypoints_2d"][:, 0],
                               atol=1e-3, rtol=0)


def test_wart_hamer_meshes_stand_where_their_wrist_is(folders, models):
    """The shards tell no translation: mesh and joints share the wrist, also after mirroring."""
    dataset = hamer(folders("hamer-tars"), models=models)
    for index, side in enumerate(("right", "left")):
        sample = dataset[index]
        assert sample["mesh_valid"] == 1
        hand = bodymodels.load_model(models, family="mano", side=side,
                                     fix_left_shapedirs=side == "left")
        pose = torch.tensor(dataset.records()["pose"][index][None].copy())
        posed = hand(torch.zeros(1, 10), pose)
        expected = posed.vertices[0] - posed.joints[0, 0]
        found = (sample["vertices"] - sample["joints"][0]) @ sample["camera_rotation"]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------- whole bodies


def write_bedlam(root):
    """Two people of one picture, one of them nearly outside, and a close-up on its side."""
    folder = root / "all_npz_12_training"
    folder.mkdir()
    for scene, count in (("20221010_3_1000_batch01hand_6fps", 3),
                         ("20221011_1_250_batch01hand_closeup_suburb_a_6fps", 1)):
        width, height = (36, 64) if "closeup" in scene else (64, 36)
        points = RNG.uniform(1, 35, (count, 127, 2))
        points[2:, 5:] += 100
        extrinsics = np.tile(np.eye(4), (count, 1, 1))
        extrinsics[:, :3, 3], extrinsics[:, :3, :3] = (0.1, 0.2, 0.3), rodrigues([0.1, 0, 0])
        np.savez(folder / f"{scene}.npz", center=np.full((count, 2), 18.0),
                 imgname=np.array(["seq_000000/seq_000000_0000.png"] * count),
                 scale=np.full(count, 0.15), pose_cam=RNG.normal(0, 0.2, (count, 165)),
                 shape=RNG.normal(0, 1, (count, 11)), trans_cam=np.full((count, 3), 2.0),
                 gtkps=points, cam_ext=extrinsics, gender=np.array(["male"] * count),
                 cam_int=np.tile(data.intrinsics((50, 50), (width / 2, height / 2)),
                                 (count, 1, 1)))
        write_picture(root / f"{scene}/png/seq_000000/seq_000000_0000.png", (64, 36))


def bedlam(root, **options):
    return data.BEDLAM(root, "train", 32, picture_size=(64, 36), progress=False, **options)


def test_wart_bedlam_translation_shape_and_close_ups(folders):
    """trans_cam + cam_ext's, no second rotation, 11 betas of the neutral model, turned pictures."""
    dataset = bedlam(folders("bedlam"))
    records = dataset.records()
    assert len(records) == 3 and records["person"].tolist() == [0, 1, 0]
    np.testing.assert_allclose(records["transl"][0], (2.1, 2.2, 2.3), rtol=1e-6)
    arrays = bodymodels.load_arrays(dataset.sources["all_npz_12_training/*.npz"][0])
    np.testing.assert_allclose(records["pose"][0].ravel(), arrays["pose_cam"][0], rtol=1e-5)
    assert records["betas"].shape == (3, 11) and not records["gender"].any()
    assert [dataset.picture(record).shape[:2] for record in records[1:]] == [(36, 64), (64, 36)]
    np.testing.assert_allclose(1.2 * records["box"][0], (30, 30), rtol=1e-6)


def test_wart_bedlam_turns_close_ups_clockwise(tmp_path):
    """What is at the left of the stored picture comes to the top."""
    image = np.zeros((36, 64, 3), np.uint8)
    image[:, :8] = 255
    Image.fromarray(image).save(tmp_path / "x.png")
    record = data.to_records({"image": "x.png", "turns": 1}, data.record_dtype(1, 1, 1))[0]
    reader = object.__new__(data.BEDLAM)
    reader.root = tmp_path
    turned = data.BEDLAM.picture(reader, record)
    assert turned.shape == (64, 36, 3) and turned[:8].all() and not turned[8:].any()


def write_rich(root):
    """One sequence of two people, one frame, two cameras."""
    sequence = "BBQ_001_002_juggle"
    write(root / "resource/gender.json", {"1": "male", "2": "female"})
    write(root / "resource/imgext.json", {"BBQ": "bmp", "Pavallion": "png"})
    header = "sequence_name\tcapture_name\tscan_name\tid\tmoving_cam\tgender\tview_id"
    write(root / "resource/meta/train.txt",
          f"{header}\n{sequence}\tBBQ\tscan\t1,2\tno\tmale,female\t0,3\n")
    for person in ("001", "002"):
        body = {"body_pose": RNG.normal(0, 0.2, (1, 63)), "global_orient": np.full((1, 3), 0.3),
                "betas": RNG.normal(0, 1, (1, 10)), "transl": np.array([[0.1, 0.2, 4.0]]),
                "left_hand_pose": RNG.normal(0, 1, (1, 12)), "expression": np.zeros((1, 10)),
                "right_hand_pose": RNG.normal(0, 1, (1, 12)), "jaw_pose": np.zeros((1, 3)),
                "leye_pose": np.zeros((1, 3)), "reye_pose": np.zeros((1, 3))}
        path = root / f"bodies/train/{sequence}/00042/{person}.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps({key: value.astype(np.float32)
                                       for key, value in body.items()}))
    for view in (0, 3):
        motion = np.concatenate([rodrigues([0, 0.1 * view, 0]), [[0.1], [0.2], [0.5 * view]]], 1)
        nodes = {"CameraMatrix": motion, "Intrinsics": data.intrinsics((30, 30), (16, 12)),
                 "Distortion": np.zeros(5)}
        text = "".join(f"<{name}><data>{' '.join(map(str, value.ravel()))}</data></{name}>"
                       for name, value in nodes.items())
        write(root / f"scan_calibration/BBQ/calibration/{view:03d}.xml",
              f"<opencv_storage>{text}</opencv_storage>")
        write_picture(root / f"images/train/{sequence}/cam_{view:02d}/00042_{view:02d}.bmp",
                      (32, 24))


def rich(root, **options):
    return data.RICH(root, "train", 32, picture_size=(32, 24), progress=False, **options)


def test_wart_rich_pictures_of_another_size_are_refused(folders, models, tmp_path):
    """The reduced release has other pictures; the calibration is of the large ones."""
    dataset = data.RICH(folders("rich"), "train", 32, models=models, progress=False)
    with pytest.raises(ValueError, match="32 x 24 pixels where the annotation tells 4112 x 3008"):
        dataset[0]


def test_wart_rich_two_people_cameras_and_twelve_coefficients(folders, models):
    """Each person before each camera, of the own gender; the mesh is the multi-camera frame's,
    moved, with fingers from 12 components a hand and their mean."""
    root = folders("rich")
    dataset = rich(root, models=models)
    records = dataset.records()
    assert list(zip(records["person"], records["gender"], strict=True)) == [
        (1, 1), (1, 1), (2, 2), (2, 2)]
    assert records["image"][3] == b"images/train/BBQ_001_002_juggle/cam_03/00042_03.bmp"
    body = bodymodels.load_arrays(root / "bodies/train/BBQ_001_002_juggle/00042/002.pkl")
    vector = torch.from_numpy(np.concatenate([body[name] for name in data.RICH.PARTS], 1))
    model = data.official_body(models, None, False, family="smplx", gender="female",
                               hand_pose="pca", num_pca_comps=12)  # its own way to fingers
    world = model(torch.from_numpy(body["betas"]), vector,
                  transl=torch.from_numpy(body["transl"])).vertices[0].numpy()
    expected = world @ rodrigues([0, 0.3, 0]).T + (0.1, 0.2, 1.5)
    np.testing.assert_allclose(dataset.posed(records[3])[0].vertices[0].numpy(), expected,
                               atol=1e-4)
    found = records[3]["keypoints_3d"][:, :3]
    np.testing.assert_allclose(data.pixels(found, data.intrinsics((30, 30), (16, 12))),
                               records[3]["keypoints_2d"][:, :2], atol=1e-3)


KNOWN = {  # what official people and hands have beside
    **{f"{name}_valid": ((), torch.float32) for name in ("body_pose", "betas", "expression")},
    "keypoints_3d_valid": ((76,), torch.float32), "rotations_valid": ((55,), torch.float32),
    "hand_betas": ((2, 10), torch.float32), "hand_betas_valid": ((2,), torch.float32)}


@pytest.mark.parametrize("recipe", [None, "official_hmr"])
def test_official_people_keep_the_contract_of_rendered_ones(folders, models, recipe):
    """Keys, shapes and types are those of RenderedPeople; meshes and joints fit each crop."""
    pictures = data.RICH(folders("rich"), "train", 48, models=models, picture_size=(32, 24),
                         progress=False)
    sample = data.OfficialPeople(pictures, 32, augmentation=recipe)[2]
    assert {name: (tuple(value.shape), value.dtype)
            for name, value in sample.items()} == PEOPLE | KNOWN
    for points, K, expected in (("hand_joints", "hand_K", "hand_keypoints_2d"),
                                ("keypoints_3d", "K", "keypoints_2d")):
        torch.testing.assert_close(bodymodels.project(sample[points], sample[K]), sample[expected],
                                   atol=1e-2, rtol=1e-4)
    if recipe is None:  # a hand's box is half as large as its crop, in the middle
        for keypoints in sample["hand_keypoints_2d"].numpy():
            center, side = data.body_box(keypoints)
            np.testing.assert_allclose([*center, side], 16, atol=1e-2)
    assert (sample["hand_vertices"].mean(1) - sample["hand_joints"].mean(1)).norm(dim=1).max() < 0.1
    arms = bodymodels.chain_rotation(sample["arm_pose"])
    torch.testing.assert_close(arms, sample["hand_pose"][:, 0], atol=1e-4, rtol=0)
    for kind, source in ((data.OfficialPeople, bedlam(folders("bedlam"))),
                         (data.HandPairs, interhand(folders("interhand")))):
        with pytest.raises(ValueError, match="opened with a folder of models"):
            kind(source, 32)
    with pytest.raises(ValueError, match="no body before a known camera"):
        data.OfficialPeople(coco(folders("coco"), models=models))


@pytest.mark.parametrize("recipe", [None, "official_hamer"])
def test_official_hands_make_people_without_bodies(folders, models, recipe):
    """InterHand's hands of known pose by two, all right-looking: a right MANO in the sample's pose
    and shape is the sample's mesh, of left and augmented hands, too."""
    hands = data.InterHand(folders("interhand"), "train", 32, models=models, augmentation=recipe,
                           progress=False)
    pairs = data.HandPairs(hands, 48)
    assert pairs.kept.tolist() == [0, 1, 2] and len(pairs) == 2  # the last pair's second is first
    sample = pairs[0]
    assert {name: (tuple(value.shape), value.dtype)
            for name, value in pairs[1].items()} == PEOPLE | KNOWN
    assert not sample["image"].any() and hands.records()["side"].tolist()[:3] == [1, 1, 0]
    assert not sample["body_pose_valid"] and sample["hand_betas_valid"].tolist() == [1, 1]
    right = bodymodels.load_model(models, family="mano", tips="smplx")
    for number in range(2):
        sample = pairs[number]
        posed = right(sample["hand_betas"], sample["hand_pose"])
        found = sample["hand_vertices"] - sample["hand_vertices"].mean(1, keepdim=True)
        expected = posed.vertices - posed.vertices.mean(1, keepdim=True)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(bodymodels.project(sample["hand_joints"], sample["hand_K"]),
                                   sample["hand_keypoints_2d"], atol=1e-2, rtol=1e-4)


def test_freihands_poses_are_absolute_with_the_mean_hand(tmp_path, models):
    """mano is nested, mean-relative, and follows the picture's id through all backgrounds."""
    write_freihand(tmp_path)
    path = tmp_path / "training_mano.json"
    mano = RNG.normal(0, 0.3, (len(json.loads(path.read_text())), 1, 61))
    write(path, mano.tolist())
    dataset = data.FreiHAND(tmp_path, size=32, models=models, progress=False)
    pose, betas, known = dataset.hand_pose(dataset.db_size + 1)
    mean = bodymodels.load_arrays(models / "MANO_RIGHT.npz")["hands_mean"].ravel()
    np.testing.assert_allclose(pose.ravel()[3:], mano[1, 0, 3:48] + mean, atol=1e-6)
    np.testing.assert_allclose([*pose[0], *betas], [*mano[1, 0, :3], *mano[1, 0, 48:58]], atol=1e-6)
    assert known == 1 and len(data.HandPairs(dataset, 32)) == (len(dataset) + 1) // 2


def test_ehf_and_smpls_people_flag_what_they_do_not_know(folders, fresh, models):
    """EHF's hands are where its mesh has them, its pose is unknown; 3DPW's hands are unknown."""
    root = fresh("ehf")
    body = data.official_body(models, None, False, family="smplx", gender="neutral", side="right")
    mesh = (body.v_template.numpy() + (0, 0.1, 0)).astype(np.float32)
    bodymodels.save_mesh(root / "100_align.ply", mesh, [[0, 1, 2]])
    people = data.OfficialPeople(ehf(root, models=models), 32)
    sample, record = people[1], people.records(1)
    assert sample["hand_images"].shape == (2, 3, 32, 32) and not sample["body_pose_valid"]
    assert not sample["rotations_valid"].any() and sample["keypoints_3d_valid"].all()
    true = torch.from_numpy(people.pictures.vertices(record))
    joints = body.J_regressor @ true
    torch.testing.assert_close(sample["keypoints_3d"][:55], joints.float(), atol=1e-4, rtol=0)
    people = data.OfficialPeople(threedpw_moon(folders("3dpw-moon"), models=models), 32)
    sample = people[0]
    assert not sample["hand_valid"].any() and sample["body_pose_valid"] == 1
    assert not sample["keypoints_valid"][25:55].any() and sample["betas_valid"] == 0
    assert not sample["keypoints_3d_valid"][25:55].any() and sample["keypoints_3d_valid"][0] == 1
    assert sample["rotations_valid"].tolist() == [1] * 22 + [0] * 33  # SMPL has no fingers
    assert {name: tuple(value.shape) for name, value in sample.items()}.keys() == (
        PEOPLE | KNOWN).keys()


def test_bodies_without_keypoints_need_models(folders, tmp_path):
    for reader, name in ((rich, "rich"), (arctic, "arctic")):
        with pytest.raises(FileNotFoundError, match="give the folder of SMPL-X's models"):
            reader(folders(name), cache=tmp_path)


def write_arctic(root):
    """One sequence of 25 frames, of which 5 are left; one of those has no fit."""
    views = [[64, 48]] + [[40, 48]] * 8
    motion = np.tile(np.eye(4), (8, 1, 1))
    motion[:, 2, 3] = 3 + np.arange(8)
    write(root / "meta/misc.json", {"s05": {
        "gender": "female", "world2cam": motion.tolist(), "image_size": views, "ioi_offset": 4,
        "intris_mat": [data.intrinsics((30, 30), (20, 24)).tolist()] * 8}})
    write(root / "splits_json/protocol_p1.json", {"train": [], "val": ["s05/box_grab_01"]})
    write_few_vertices(root)
    template = bodymodels.load_arrays(root / "smplx.npz")["v_template"] * 1.05
    (root / "smplx.npz").unlink()
    write(root / "meta/subject_vtemplates/s05.obj",
          "".join("v {:.6f} {:.6f} {:.6f}\n".format(*row) for row in template) + "f 1 2 3\n")
    body = {"transl": np.zeros((25, 3)), "global_orient": np.tile([np.pi, 0, 0], (25, 1)),
            "body_pose": RNG.normal(0, 0.2, (25, 63))}
    body |= {name: np.zeros((25, 3)) for name in ("jaw_pose", "leye_pose", "reye_pose")}
    body |= {f"{side}_hand_pose": RNG.normal(0, 0.2, (25, 45)) for side in ("left", "right")}
    body["body_pose"][12] = np.nan
    path = root / "raw_seqs/s05/box_grab_01.smplx.npy"
    path.parent.mkdir(parents=True)
    np.save(path, np.array(body, object), allow_pickle=True)
    for view in range(1, 9):
        for frame in range(10, 15):
            write_picture(root / f"images/s05/box_grab_01/{view}/{frame + 4:05d}.jpg", (40, 48))


def arctic(root, **options):
    return data.ARCTIC(root, "val", 32, progress=False, **options)


def test_wart_arctic_offsets_views_and_templates(folders, models):
    """Ten frames off either end, then every tenth; pictures are numbered with the offset; view v
    has camera v - 1; the subject's template replaces betas; a NaN fit is left out."""
    root = folders("arctic")
    dataset = arctic(root, models=models)
    assert dataset.records()["image"][2] == b"images/s05/box_grab_01/3/00014.jpg"
    assert len(dataset) == 8 and dataset.records()["world_to_camera"][2, 2, 3] == 5
    every = arctic(root, models=models, interval=1).records()
    assert every["frame"][:4].tolist() == [10, 11, 13, 14] and len(every) == 8 * 4
    assert not every["has_betas"].any() and (every["gender"] == 2).all()
    vertices = dataset.posed(dataset.records()[0])[0].vertices[0].numpy()
    pose = torch.tensor(dataset.records()["pose"][:1].copy())
    own = dataset.body("female", num_betas=10)(torch.zeros(1, 10), pose).vertices[0]
    assert np.ptp(vertices[:, 1]) > 1.02 * np.ptp(own[:, 1].numpy())


def write_ehf(root):
    """Frames 01 and 100, with meshes of a few vertices."""
    mesh = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.2, 0], [0, 0, 0.3]], np.float32)
    for number in ("01", "100"):
        bodymodels.save_mesh(root / f"{number}_align.ply", mesh, [[0, 1, 2], [0, 2, 3]])
        flat = np.concatenate([RNG.uniform(200, 900, (25, 2)), np.ones((25, 1))], 1)
        write(root / f"{number}_2Djnt.json", {"people": [{
            "pose_keypoints_2d": flat.ravel().tolist(), "hand_left_keypoints_2d": [0.0] * 63}]})
        write_picture(root / f"{number}_img.jpg", (1600, 1200), quality=10)


def ehf(root, **options):
    return data.EHF(root, "test", 32, progress=False, **options)


def test_wart_ehf_meshes_are_the_scanners_and_numbers_have_no_constant_width(folders):
    """Frame 100 follows 99; without the rotation of 171 degrees bodies would hang head down."""
    dataset = ehf(folders("ehf"))
    assert dataset.records()["frame"].tolist() == [1, 100]
    assert np.rad2deg(np.linalg.norm(dataset.ROTATION)) == pytest.approx(171.2, abs=0.05)
    found = dataset.vertices(dataset.records()[1])
    np.testing.assert_allclose(found[0], dataset.TRANSLATION, atol=1e-6)
    assert found[2, 1] < found[0, 1] - 0.19  # the scanner's y is up, the camera's down


def test_vertices_of_mesh_files(tmp_path):
    """What save_mesh writes comes back; what is no such mesh is refused."""
    mesh = RNG.normal(0, 1, (5, 3)).astype(np.float32)
    for name in ("x.obj", "x.ply"):
        bodymodels.save_mesh(tmp_path / name, mesh, [[0, 1, 2]], colors=(1, 0, 0))
        np.testing.assert_allclose(bodymodels.load_vertices(tmp_path / name), mesh, atol=1e-6)
    whole = (tmp_path / "x.ply").read_bytes()
    for content, message in ((whole[:-40], "ends before its 5 vertices do"),
                             (whole.replace(b"little", b"big"), "no binary little-endian PLY"),
                             (whole.replace(b"float x", b"uchar x"), "no binary little-endian"),
                             (b"ply\n", "no binary little-endian PLY")):
        (tmp_path / "y.ply").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            bodymodels.load_vertices(tmp_path / "y.ply")
    (tmp_path / "y.obj").write_text("v 1 2\n")
    with pytest.raises(ValueError, match="no vertices of three numbers"):
        bodymodels.load_vertices(tmp_path / "y.obj")


# ------------------------------------------------------------------------------- all of them

WRITERS = {
    "dexycb": write_dexycb, "interhand": write_interhand, "3dpw": write_3dpw,
    "3dpw-moon": write_3dpw_moon, "emdb": write_emdb, "h36m": write_h36m,
    "h36m-moon": write_h36m_moon, "h36m-smplx": write_h36m_moon,
    "coco": write_coco, "aic": write_aic, "mpii": write_mpii,
    "mpi-inf-3dhp": write_mpi_inf, "hmr2-tars": write_hmr2, "hamer-tars": write_hamer,
    "bedlam": write_bedlam, "rich": write_rich, "arctic": write_arctic, "ehf": write_ehf}
READERS = {
    "dexycb": dexycb, "interhand": interhand, "3dpw": threedpw, "3dpw-moon": threedpw_moon,
    "emdb": emdb, "h36m": human36m, "h36m-moon": h36m_moon, "h36m-smplx": h36m_smplx,
    "coco": coco, "aic": aic,
    "mpii": mpii, "mpi-inf-3dhp": mpi_inf, "hmr2-tars": hmr2, "hamer-tars": hamer,
    "bedlam": bedlam,
    "rich": rich, "arctic": arctic, "ehf": ehf}
HANDS = ("dexycb", "interhand", "hamer-tars")
NEED_MODELS = ("rich", "arctic")
OPTIONAL = [f"Human36M_subject{subject}_{model}_NeuralAnnot.json" for subject in (9, 11)
            for model in ("SMPL", "SMPLX")]
BODIES = tuple(name for name in READERS if name not in HANDS)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """folders(NAME): the data set's folder, written once and not to be changed."""
    base, done = tmp_path_factory.mktemp("datasets"), set()

    def folder(name):
        if name not in done:
            (base / name).mkdir()
            WRITERS[name](base / name)
            done.add(name)
        return base / name

    return folder


@pytest.fixture
def fresh(folders, tmp_path):
    """fresh(NAME): a copy to spoil."""
    def folder(name):
        return shutil.copytree(folders(name), tmp_path / name, symlinks=True,
                               ignore=shutil.ignore_patterns("*_????????????????.npy"))
    return folder


@pytest.mark.parametrize("name", HANDS)
def test_hand_samples_keep_the_contract(folders, models, name):
    """The keys, shapes and types of rendered hands, and labels that fit the crop's camera."""
    dataset = READERS[name](folders(name), models=models)
    for index in range(min(3, len(dataset))):
        sample = dataset[index]
        assert {key: (tuple(value.shape), value.dtype)
                for key, value in sample.items()} == HAND_SHAPES
        if not dataset.records()["K"][index].any():
            continue
        torch.testing.assert_close(bodymodels.project(sample["joints"], sample["K"]),
                                   sample["keypoints_2d"], atol=1e-2, rtol=0)
        inside = sample["keypoints_2d"][sample["keypoints_valid"] > 0]
        assert len(inside) and ((inside >= 0) & (inside <= 32)).all()


BODY_SHAPES = {
    "image": ((3, 32, 32), torch.uint8), "K": ((3, 3), torch.float32), "K_valid": (),
    "pose": (24, 3, 3), "betas": (10,), "transl": (3,), "keypoints_3d": (45, 3),
    "keypoints_2d": (45, 2), "keypoints_valid": (45,), "keypoints_3d_valid": (45,),
    "pose_valid": (), "betas_valid": (), "transl_valid": (),
    "gender": ((), torch.int64), "index": ((), torch.int64)}
BODY_SHAPES = {name: shape if shape and isinstance(shape[0], tuple) else (shape, torch.float32)
               for name, shape in BODY_SHAPES.items()}


@pytest.mark.parametrize("name", BODIES)
def test_body_samples_keep_the_contract(folders, models, name):
    """Keys, shapes and types of rendered bodies, with and without augmentation; what is known of
    a body in space projects onto what is known of it in the picture."""
    for recipe in ("official_hmr", None):
        dataset = READERS[name](folders(name), models=models, augmentation=recipe)
        sample = dataset[0]
        assert {key: (tuple(value.shape), value.dtype)
                for key, value in sample.items()} == BODY_SHAPES
        assert all(torch.isfinite(value.float()).all() for value in sample.values())
    if sample["transl_valid"]:
        flat = data.relabelled(dataset.records()[0]["keypoints_2d"], dataset.JOINTS, "smpl45")
        made = torch.from_numpy(flat[:, 2] == 0)  # those that the body itself tells
        projected = bodymodels.project(sample["keypoints_3d"], sample["K"])
        difference = (projected - sample["keypoints_2d"])[made & (sample["keypoints_valid"] > 0)]
        assert difference.numel() == 0 or difference.abs().max() < 0.05


def test_a_mirrored_body_exchanges_left_and_right(folders):
    """Flags go with their joints: the covered left ear of one is the right ear of the other."""
    dataset = threedpw(folders("3dpw"), augmentation=data.Augmentation(flip=1.0))
    plain = threedpw(folders("3dpw"))[0]
    mirrored = dataset[0]
    order = bodymodels.mirror_indices("smpl45")
    seen = plain["keypoints_valid"][order] * mirrored["keypoints_valid"] > 0
    assert seen.sum() > 5
    torch.testing.assert_close(mirrored["keypoints_2d"][seen][:, 0],
                               32 - plain["keypoints_2d"][order][seen][:, 0], atol=1e-3, rtol=0)
    left, right = (bodymodels.JOINT_SETS["smpl45"].index(f"{side}_ear") for side in
                   ("left", "right"))
    assert not plain["keypoints_valid"][left] and not mirrored["keypoints_valid"][right]


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_is_named(fresh, models, tmp_path, name):
    """Without any one of its sources, or in a wrong folder, one message tells what is wanted."""
    root = fresh(name)
    with pytest.raises(FileNotFoundError, match="official layout, see"):
        READERS[name](tmp_path / "nowhere")
    options = {"models": models} if name in NEED_MODELS else {}
    dataset = READERS[name](root, **options)
    for pattern, paths in dataset.sources.items():
        if pattern in OPTIONAL:
            continue
        moved = [(path, path.with_name(f"{path.name}.away")) for path in paths]
        for path, away in moved:
            path.rename(away)
        with pytest.raises(FileNotFoundError, match="official layout, see") as error:
            READERS[name](root, **options)
        assert dataset.HOME in str(error.value)
        for path, away in moved:
            away.rename(path)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named(fresh, models, name):
    """Half of a file and then noise is one ValueError that names it; nothing is left behind."""
    root = fresh(name)
    options = {"models": models} if name in NEED_MODELS else {}
    for paths in READERS[name](root, **options).sources.values():
        path = paths[0]
        if path.is_dir():
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[:len(whole) // 2] + b"\n\t{[")
        for packed in root.glob("*.npy"):
            packed.unlink()
        with pytest.raises(ValueError, match=f"{path.name}.*is not as .* is shipped"):
            READERS[name](root, **options)
        assert not [*root.glob("*.npy"), *root.glob("*.tmp")]
        path.write_bytes(whole)


@pytest.mark.parametrize("name", READERS)
def test_annotation_is_packed_once(fresh, models, tmp_path, name):
    """A second reader uses the packed file; one whose source was touched packs anew."""
    root, options = fresh(name), {"cache": tmp_path / "cache"}
    options |= {"models": models} if name in NEED_MODELS else {}
    first = READERS[name](root, **options)
    stamp = first.path.stat().st_mtime_ns
    assert READERS[name](root, **options).path.stat().st_mtime_ns == stamp
    assert isinstance(first.records(), np.memmap) and not list(root.glob("*.npy"))
    source = next(path for paths in first.sources.values() for path in paths if path.is_file())
    os.utime(source, ns=(0, source.stat().st_mtime_ns + 1))
    again = READERS[name](root, **options)
    assert again.path != first.path and len(again) == len(first)
    np.testing.assert_array_equal(again.records()["image"], first.records()["image"])


@pytest.mark.parametrize("name", READERS)
def test_a_missing_picture_is_named(fresh, models, name):
    """Pictures are looked for when asked for, and then named."""
    root = fresh(name)
    dataset = READERS[name](root, **({"models": models} if name in NEED_MODELS else {}))
    path = root / dataset.annotation(0)["image"]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        dataset[0]


def test_columns_that_do_not_fit_are_named():
    """Wrong counts, NaNs and overlong names stop the reader before anything is packed."""
    dtype = data.record_dtype(21, 16, 10)
    for columns, message in (
            ({"image": ["a", "b"], "K": np.zeros((3, 3, 3))}, "K has shape"),
            ({"image": ["a", "b"], "betas": np.full((2, 10), np.nan)}, "betas has numbers that"),
            ({"image": "a" * 161}, "image is longer than 160 bytes")):
        with pytest.raises(ValueError, match=message):
            data.to_records(columns, dtype)


# ------------------------------------------------------------------- mixtures and command line


def test_mixtures_have_the_papers_weights():
    """They name data sets that exist, and sum to one where a paper tells them."""
    for name, parts in data.MIXTURES.items():
        assert all(reader in data.OFFICIAL for reader, _ in parts)
        if not name.startswith("hmr-adapter"):
            assert sum(parts.values()) == pytest.approx(1.0)
    itw, bl = data.MIXTURES["genhmr-itw"], data.MIXTURES["genhmr-bl"]
    assert itw["hmr2-tars", "insta-train-vitpose-replicate"] == 0.2 and len(itw) == 8
    assert bl["bedlam", "bedlam"] == 0.18 and bl["hmr2-tars", "mpi-inf-train-pruned"] == 0.04
    assert data.MIXTURES["genhmr-sd"]["hmr2-tars", "coco-train-2014-pruned"] == 0.4


class Numbers(data.KeyedDataset):
    """So many samples that tell their set, their index and a random number."""

    def __init__(self, name, length):
        super().__init__("train", ["train"], seed=0)
        self.name, self.length = name, length

    def __len__(self):
        return self.length

    def load(self, index, rng):
        return {"x": np.array([self.name, index, rng.random()])}


def test_mixed_samples_follow_their_weights_and_keys():
    """Three of four are of the first set; the same key gives the same sample, and epochs differ."""
    mixed = data.Mixed([Numbers(0, 5), Numbers(1, 50)], (3, 1), length=400)
    samples = [mixed[key] for key in range(400)]
    drawn = torch.stack([sample["x"] for sample in samples])
    assert 0.2 < drawn[:, 0].mean() < 0.3
    assert drawn[drawn[:, 0] == 0, 1].unique().tolist() == [0, 1, 2, 3, 4]
    assert [int(sample["index"]) for sample in samples] == list(range(400))
    assert torch.equal(mixed[7]["x"], drawn[7]) and not torch.equal(mixed[407]["x"], drawn[7])
    assert len(drawn[:, 2].unique()) == 400  # each has an augmentation of its own
    assert len(data.Mixed([Numbers(0, 5), Numbers(1, 50)], (3, 1))) == 55
    with pytest.raises(ValueError, match="as many weights above 0"):
        data.Mixed([Numbers(0, 5)], (0,))


def test_a_mixture_of_shards_is_opened_by_name(tmp_path):
    """Each data set is looked for in its folder; samples of all can be put in one batch."""
    for folder in ("h36m-train", "mpii-train", "coco-train-2014-pruned", "mpi-inf-train-pruned"):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / "000000.tar", {
            "a.jpg": jpeg(), "a.data.pyd": pickle.dumps([tar_person()])})
    mixed = data.open_official("genhmr-sd", tmp_path, size=32, augmentation="official_hmr")
    batch = torch.utils.data.default_collate([mixed[key] for key in range(4)])
    assert batch["image"].shape == (4, 3, 32, 32) and mixed.joint_set == "smpl45"
    (tmp_path / "mpii-train/000000.tar").unlink()
    with pytest.raises(FileNotFoundError, match="mpii-train"):
        data.open_official("genhmr-sd", tmp_path, size=32, cache=tmp_path / "new")
    with pytest.raises(ValueError, match="no split 'val'"):
        data.open_official("genhmr-sd", tmp_path, "val")


def test_the_mixture_of_hands_has_people_and_pairs(folders, models, tmp_path, monkeypatch):
    """HMR-Adapter's hands: of three sets of bodies and of two of hands, in one layout."""
    for kind, size in ((data.RICH, (32, 24)), (data.BEDLAM, (64, 36))):
        monkeypatch.setitem(kind.OPTIONS, "picture_size", size)
    monkeypatch.setattr(data.BEDLAM, "NUM_BETAS", 10)  # all that the free model has
    write_h36m_moon(tmp_path / "h36m", data.Human36MMoon.SUBJECTS["train"])
    write_freihand(tmp_path / "freihand")
    for name in ("rich", "bedlam", "interhand"):
        (tmp_path / name).symlink_to(folders(name))
    mixed = data.open_official("hmr-adapter-hands", tmp_path, size=48, models=models, hand_size=32,
                               augmentation="official_hmr", cache=tmp_path / "cache")
    assert [type(part) for part in mixed.datasets] == [data.OfficialPeople] * 3 + [
        data.HandPairs] * 2
    assert mixed.datasets[3].hands.augmentation == data.AUGMENTATIONS["official_hamer"]
    batch = torch.utils.data.default_collate([part[0] for part in mixed.datasets])
    assert batch["hand_images"].shape == (5, 2, 3, 32, 32)
    assert batch["body_pose_valid"].tolist() == [1, 1, 1, 0, 0]
    assert batch["betas_valid"].tolist() == [1, 0, 1, 0, 0]  # RICH's are a gendered model's
    assert batch["hand_betas_valid"].sum(1).tolist() == [0, 0, 0, 2, 2]
    assert mixed[0].keys() == batch.keys()


@pytest.mark.parametrize("arguments,expected", [
    (["3dpw", "--draw", "2"], "ThreeDPW: 4 samples, officially 35,515"),
    (["bedlam", "--option", "min_keypoints=1", "picture_size=64,36", "--draw", "1"],
     "train: 4 samples"),
    (["arctic", "--option", "hand_size=32", "--draw", "1"], "val: 8 samples"),
    (["interhand", "--draw", "1"], "train: 5 samples")])
def test_command_line_looks_at_data(folders, models, tmp_path, capsys, arguments, expected):
    """It counts, looks for the pictures, tells what is known and draws."""
    name = arguments[0]
    data.main([*arguments, "--data-root", str(folders(name)), "--cache", str(tmp_path), "--size",
               "32", "--models", str(models), "--out", str(tmp_path / "drawn.png")])
    printed = capsys.readouterr().out
    assert expected in printed and "all there; known: keypoints_2d 100 %" in printed
    columns = 2 * 3 if "hand_size=32" in arguments else 4
    assert data.read_image(tmp_path / "drawn.png").shape[1] == columns * 96


def test_command_line_tells_of_missing_pictures(fresh, capsys):
    root = fresh("coco")
    next(root.glob("train2014/*.jpg")).unlink()
    with pytest.raises(SystemExit, match="1 of 2 pictures looked for are missing, .*jpg for one"):
        data.main(["coco", "--data-root", str(root)])


# ----------------------------------------------------------------------------------- protocols


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


def test_golden_smplx_lineage_of_3dpw_scores_fourteen_joints_of_smpl():
    """Of the 24 joints spines, collars, toes and hands do not count."""
    prediction, target = bodies_apart(24)  # the last is a hand
    assert metrics.evaluate("3dpw_smplx_lineage", prediction, target)["MPJPE"] == 0
    prediction["joints"][:, 1, 2] += 0.014
    assert metrics.evaluate("3dpw_smplx_lineage", prediction, target)["MPJPE"] == pytest.approx(1)


def test_golden_whole_bodies_have_hands_relative_to_their_wrists(models):
    """A left hand that is shifted as a whole is wrong in the body, and right as a hand."""
    body = data.official_body(models, None, False, family="smplx", gender="female", side="right",
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


def test_every_evaluation_of_the_papers_has_a_protocol():
    assert {"h36m_p2_lsp14", "3dpw_lsp14", "3dpw_smplx_lineage", "emdb1_24", "freihand",
            "dexycb_s0", "arctic_p1val", "ehf", "amass_test", "moyo_val"} <= set(metrics.PROTOCOLS)


def test_dexycb_result_files(tmp_path):
    """The toolkit's lines: the sample's number and 63 millimetres."""
    joints = RNG.normal(0, 0.2, (2, 21, 3))
    metrics.write_dexycb(tmp_path / "s0.txt", [4, 17], joints)
    rows = [line.split(",") for line in (tmp_path / "s0.txt").read_text().splitlines()]
    assert [row[0] for row in rows] == ["4", "17"] and {len(row) for row in rows} == {64}
    np.testing.assert_allclose(np.array(rows[1][1:], float), 1000 * joints[1].ravel(), atol=1e-4)
