"""Every data set's reader, on tiny folders in the official format: the data themselves are not ours
to ship. test_wart_*: what the formats have in store for those who do not know them."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import bodymodels
import data

RNG = np.random.default_rng(0)
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


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder of body models with official names and arrays; the meshes are our free ones.

    MANO_LEFT has the official file's mistake: x of its shape components is not mirrored.
    """
    folder = tmp_path_factory.mktemp("models")
    for side in ("right", "left"):
        arrays = bodymodels.load_arrays(bodymodels.ASSETS / f"hand_{side}.npz")
        arrays = {name: value for name, value in arrays.items()
                  if name not in ("side", "tip_vertex_ids", "license")}
        if side == "left":
            arrays["shapedirs"] = arrays["shapedirs"] * np.array([-1, 1, 1])[:, None]
        np.savez(folder / f"MANO_{side.upper()}.npz", **arrays)
    for gender in ("NEUTRAL", "MALE", "FEMALE"):
        for family, name in (("SMPL", "body"), ("SMPLX", "wholebody")):
            (folder / f"{family}_{gender}.npz").symlink_to(bodymodels.ASSETS / f"{name}.npz")
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


# ------------------------------------------------------------------------------- all of them

WRITERS = {"dexycb": write_dexycb, "interhand": write_interhand}
READERS = {"dexycb": dexycb, "interhand": interhand}
HANDS = ("dexycb", "interhand")


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
                               ignore=shutil.ignore_patterns("*.npy", "*.lock"))
    return folder


@pytest.mark.parametrize("name", HANDS)
def test_hand_samples_keep_the_contract(folders, models, name):
    """The keys, shapes and types of rendered hands, and labels that fit the crop's camera."""
    dataset = READERS[name](folders(name), models=models)
    for index in range(min(3, len(dataset))):
        sample = dataset[index]
        assert {key: (tuple(value.shape), value.dtype)
                for key, value in sample.items()} == HAND_SHAPES
        torch.testing.assert_close(bodymodels.project(sample["joints"], sample["K"]),
                                   sample["keypoints_2d"], atol=1e-2, rtol=0)
        inside = sample["keypoints_2d"][sample["keypoints_valid"] > 0]
        assert len(inside) and ((inside >= 0) & (inside <= 32)).all()


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_is_named(fresh, tmp_path, name):
    """Without any one of its sources, or in a wrong folder, one message tells what is wanted."""
    root = fresh(name)
    with pytest.raises(FileNotFoundError, match="official layout, see"):
        READERS[name](tmp_path / "nowhere")
    dataset = READERS[name](root)
    for pattern, paths in dataset.sources.items():
        moved = [(path, path.with_name(f"away {path.name}")) for path in paths]
        for path, away in moved:
            path.rename(away)
        with pytest.raises(FileNotFoundError, match="official layout, see") as error:
            READERS[name](root)
        assert pattern.split("/")[0] in str(error.value)
        for path, away in moved:
            away.rename(path)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named(fresh, name):
    """Half of a file and then noise is one ValueError that names it; nothing is left behind."""
    root = fresh(name)
    for paths in READERS[name](root).sources.values():
        path = paths[0]
        if path.is_dir():
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[:len(whole) // 2] + b"\n\t{[")
        for packed in root.glob("*.npy"):
            packed.unlink()
        with pytest.raises(ValueError, match=f"{path.name}.*is not as .* is shipped"):
            READERS[name](root)
        assert not [*root.glob("*.npy"), *root.glob("*.tmp")]
        path.write_bytes(whole)


@pytest.mark.parametrize("name", READERS)
def test_annotation_is_packed_once(fresh, tmp_path, name):
    """A second reader uses the packed file; one whose source was touched packs anew."""
    root, cache = fresh(name), tmp_path / "cache"
    first = READERS[name](root, cache=cache)
    stamp = first.path.stat().st_mtime_ns
    assert READERS[name](root, cache=cache).path.stat().st_mtime_ns == stamp
    assert isinstance(first.records(), np.memmap) and not list(root.glob("*.npy"))
    source = next(path for paths in first.sources.values() for path in paths if path.is_file())
    source.write_bytes(source.read_bytes() + b"\n")
    again = READERS[name](root, cache=cache)
    assert again.path != first.path and len(again) == len(first)
    np.testing.assert_array_equal(again.records()["image"], first.records()["image"])


@pytest.mark.parametrize("name", READERS)
def test_a_missing_picture_is_named(fresh, name):
    """Pictures are looked for when asked for, and then named."""
    root = fresh(name)
    dataset = READERS[name](root)
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
