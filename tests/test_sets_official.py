"""What all official readers promise: samples, damaged and missing files, packing, options."""

import contextlib
import os
import pickle

import numpy as np
import pytest
import torch
from official_folders import BODIES, HANDS, NEED_MODELS, OPTIONAL, READERS, threedpw
from PIL import Image

import bodymodels
from sets.augmentation import Augmentation
from sets.images import read_image
from sets.official import Pictures, record_dtype, relabelled, to_records

pytestmark = [pytest.mark.usefixtures("few_vertices"),
              pytest.mark.filterwarnings("ignore:.*d is damaged and left out")]  # of write_hmr2

HAND_SHAPES = {
    "image": ((3, 32, 32), torch.uint8), "K": ((3, 3), torch.float32),
    "keypoints_2d": ((21, 2), torch.float32), "keypoints_valid": ((21,), torch.float32),
    "joints": ((21, 3), torch.float32), "vertices": ((778, 3), torch.float32),
    "mesh_valid": ((), torch.float32), "side": ((), torch.int64), "index": ((), torch.int64),
    "crop": ((3, 3), torch.float32), "camera_rotation": ((3, 3), torch.float32),
}


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("name", HANDS)
def test_hand_samples_keep_the_contract(folders, models, name):
    """The keys, shapes and types of rendered hands, and labels that fit the crop's camera."""
    dataset = READERS[name](folders(name), models=models)
    for index in range(min(3, len(dataset))):
        sample = dataset[index]
        assert {key: (tuple(value.shape), value.dtype)
                for key, value in sample.items()} == HAND_SHAPES
        assert same(sample, pickle.loads(pickle.dumps(dataset))[index])  # as workers get it
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
        assert same(sample, pickle.loads(pickle.dumps(dataset))[0])  # as workers get it
        assert all(torch.isfinite(value.float()).all() for value in sample.values())
    if sample["transl_valid"]:
        flat = relabelled(dataset.records()[0]["keypoints_2d"], dataset.JOINTS, "smpl45")
        made = torch.from_numpy(flat[:, 2] == 0)  # those that the body itself tells
        projected = bodymodels.project(sample["keypoints_3d"], sample["K"])
        difference = (projected - sample["keypoints_2d"])[made & (sample["keypoints_valid"] > 0)]
        assert difference.numel() == 0 or difference.abs().max() < 0.05


def test_a_mirrored_body_exchanges_left_and_right(folders):
    """Flags move with their joints: a hidden left ear becomes a hidden right ear."""
    dataset = threedpw(folders("3dpw"), augmentation=Augmentation(flip=1.0))
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
    """If any source file is missing, one message says what was expected and where to get it."""
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
    """Half a file followed by noise is one ValueError that names it; nothing is left behind."""
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
    """A second reader uses the packed file; a changed source is packed again."""
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
    """A missing picture is an error that names it, when it is asked for."""
    root = fresh(name)
    dataset = READERS[name](root, **({"models": models} if name in NEED_MODELS else {}))
    path = root / dataset.annotation(0)["image"]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        dataset[0]


def test_columns_that_do_not_fit_are_named():
    """Wrong counts, NaNs and overlong names stop the reader before anything is packed."""
    dtype = record_dtype(21, 16, 10)
    for columns, message in (
            ({"image": ["a", "b"], "K": np.zeros((3, 3, 3))}, "K has shape"),
            ({"image": ["a", "b"], "betas": np.full((2, 10), np.nan)}, "betas has numbers that"),
            ({"image": "a", "box": (70, 1e23)}, "box has numbers beyond 1,000,000 pixels"),
            ({"image": "a", "center": (-2e6, 0)}, "center has numbers beyond 1,000,000 pixels"),
            ({"image": "a" * 161}, "image is longer than 160 bytes")):
        with pytest.raises(ValueError, match=message):
            to_records(columns, dtype)


def test_wart_pictures_are_not_turned(tmp_path):
    """Keypoints belong to the pixels as stored, so that EXIF must not turn the picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "x.jpg", exif=exif)
    reader = object.__new__(Pictures)
    reader.root = tmp_path
    record = to_records({"image": "x.jpg"}, record_dtype(1, 1, 1))[0]
    assert reader.picture(record).shape == (48, 64, 3)
    assert read_image(tmp_path / "x.jpg").shape == (64, 48, 3)


def test_the_largest_box_can_be_cropped(fresh):
    """The largest box that a reader accepts still gives a picture; a larger one is named."""
    path = fresh("3dpw-moon") / "3DPW_test.json"
    whole = path.read_text()
    for side, message in (("833333", None), ("1" + 23 * "0", "has numbers beyond")):
        path.write_text(whole.replace("[5.0, 10, 20, 60]", f"[5.0, 10, 20, {side}]"))
        with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
            assert READERS["3dpw-moon"](path.parent)[0]["image"].shape == (3, 32, 32)


@pytest.mark.parametrize("options,message", [
    ({"stride": 0}, "stride=0, expected a value like 5"),
    ({"stride": "x"}, "stride='x', expected"),
    ({"stride": True}, "stride=True, expected a value like 5"),
    ({"pace": 1}, "has no option pace")])
def test_options_of_the_wrong_kind_are_refused(folders, options, message):
    with pytest.raises(ValueError, match=message):
        READERS["h36m-moon"](folders("h36m-moon"), **options)


@pytest.mark.parametrize("name", ["h36m-moon", "3dpw-moon", "interhand", "dexycb", "arctic"])
def test_mutated_annotation_is_read_or_is_a_clear_error(fresh, models, name):
    """Whatever bytes change in a text file: a reader, a ValueError or a missing file, no crash."""
    root, rng = fresh(name), np.random.default_rng(0)
    options = {"models": models} if name in NEED_MODELS else {}
    paths = [path for path in sorted(root.rglob("*")) if path.suffix in (".json", ".yml")]
    for trial in range(12):
        path = paths[trial % len(paths)]
        whole = path.read_bytes()
        content = bytearray(whole)
        for place in rng.integers(len(content), size=3):
            content[place] = rng.choice(np.frombuffer(b'0{}[]":,-x\n', np.uint8))
        path.write_bytes(content)
        try:
            READERS[name](root, cache=root / str(trial), **options)
        except (ValueError, FileNotFoundError) as error:
            assert str(root) in str(error)
        path.write_bytes(whole)
