"""What all official readers promise; official data in the layout of RenderedPeople."""

import os
import pickle
import shutil

import numpy as np
import official_folders as tiny
import pytest
import torch
from PIL import Image
from set_samples import BODY_CONTRACT, HAND_CONTRACT, PEOPLE_CONTRACT, assert_projects, layout

import bodymodels
from hmr_adapter import arm_pose, crop_hands
from sets.augmentation import HMR2, Augmentation, for_hands
from sets.crops import body_box
from sets.images import read_image
from sets.official import (
    OWN,
    HandPairs,
    OfficialPeople,
    Pictures,
    official_body,
    record_dtype,
    relabelled,
    to_records,
)
from sets.readers import RICH, InterHand
from tasks.hmr_adapter import sharpest

pytestmark = [pytest.mark.usefixtures("few_vertices"),
              pytest.mark.filterwarnings("ignore:.*d is damaged and left out")]  # of write_hmr2

IMAGE = {"image": ((3, 32, 32), torch.uint8)}


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items())


def opened(name, root, models, **options):
    """A data set with body models, if it cannot be read without."""
    needed = {"models": models} if name in tiny.NEED_MODELS else {}
    return tiny.READERS[name](root, **options | needed)


@pytest.mark.parametrize("name", tiny.HANDS)
def test_hand_samples_keep_the_contract(folders, models, name):
    """The keys, shapes and types of rendered hands, and labels that fit the crop's camera."""
    dataset = tiny.READERS[name](folders(name), models=models)
    for index in range(min(3, len(dataset))):
        sample = dataset[index]
        assert layout(sample) == HAND_CONTRACT | IMAGE
        assert same(sample, pickle.loads(pickle.dumps(dataset))[index])  # as workers get it
        if not dataset.records(index)["K"].any():
            continue
        assert_projects(sample, atol=1e-2)
        inside = sample["keypoints_2d"][sample["keypoints_valid"] > 0]
        assert len(inside) and ((inside >= 0) & (inside <= 32)).all()


@pytest.mark.parametrize("name", tiny.BODIES)
def test_body_samples_keep_the_contract(folders, models, name):
    """Keys, shapes and types of rendered bodies, with and without augmentation; what is known of
    a body in space projects onto what is known of it in the picture."""
    for recipe in ("official_hmr", None):
        dataset = tiny.READERS[name](folders(name), models=models, augmentation=recipe)
        sample = dataset[0]
        assert layout(sample) == BODY_CONTRACT | IMAGE
        assert same(sample, pickle.loads(pickle.dumps(dataset))[0])  # as workers get it
        assert all(torch.isfinite(value.float()).all() for value in sample.values())
    if sample["transl"].any():
        flat = relabelled(dataset.records()[0]["keypoints_2d"], dataset.JOINTS, "smpl45")
        made = torch.from_numpy(flat[:, 2] == 0)  # those that the body itself tells
        projected = bodymodels.project(sample["keypoints_3d"], sample["K"])
        difference = (projected - sample["keypoints_2d"])[made & (sample["keypoints_valid"] > 0)]
        assert difference.numel() == 0 or difference.abs().max() < 0.05


def test_a_mirrored_body_exchanges_left_and_right(folders):
    """Flags move with their joints, also those of a detector: a hidden left ear becomes a hidden
    right ear."""
    plain, mirrored = (tiny.threedpw(folders("3dpw"), detections=OWN, augmentation=recipe)[0]
                       for recipe in (None, Augmentation(flip=1.0)))
    order = bodymodels.mirror_indices("smpl45")
    for name, flags in (("keypoints_2d", "keypoints_valid"),
                        ("detected_2d", "detected_confidence")):
        seen = plain[flags][order] * mirrored[flags] > 0
        assert seen.sum() > 5
        torch.testing.assert_close(mirrored[name][seen][:, 0],
                                   32 - plain[name][order][seen][:, 0], atol=1e-3, rtol=0)
    left, right = (bodymodels.JOINT_SETS["smpl45"].index(f"{side}_ear") for side in
                   ("left", "right"))
    assert not plain["keypoints_valid"][left] and not mirrored["keypoints_valid"][right]


@pytest.mark.parametrize("name", tiny.READERS)
def test_a_missing_file_is_named(fresh, models, tmp_path, name):
    """If any source file is missing, one message says what was expected and where to get it."""
    root = fresh(name)
    with pytest.raises(FileNotFoundError, match="official layout, see"):
        tiny.READERS[name](tmp_path / "nowhere")
    dataset = opened(name, root, models)
    for pattern, paths in dataset.sources.items():
        if pattern in ("training_mano.json", "EHF.json"):
            continue  # may be missing
        moved = [(path, path.with_name(f"{path.name}.away")) for path in paths]
        for path, away in moved:
            path.rename(away)
        with pytest.raises(FileNotFoundError, match="official layout, see") as error:
            opened(name, root, models)
        assert dataset.HOME in str(error.value)
        for path, away in moved:
            away.rename(path)


@pytest.mark.parametrize("name", tiny.READERS)
def test_a_damaged_file_is_named(fresh, models, name):
    """Half a file followed by noise is one ValueError that names it."""
    root = fresh(name)
    for path in (paths[0] for paths in opened(name, root, models).sources.values() if paths):
        if path.is_dir():
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[:len(whole) // 2] + b"\n\t{[")
        for packed in root.glob("*.bin"):
            packed.unlink()
        official_body.cache_clear()  # of ARCTIC's templates
        with pytest.raises(ValueError, match=f"{path.name}.*is not as .* is shipped"):
            opened(name, root, models)
        assert not [*root.glob("*.part")]
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["freihand", "rich"])
def test_annotation_is_packed_once(fresh, models, tmp_path, name):
    """A second reader uses the packed file; a changed source is packed again."""
    root, cache = fresh(name), tmp_path / "cache"
    first = opened(name, root, models, cache=cache)
    stamp = first.path.stat().st_mtime_ns
    assert opened(name, root, models, cache=cache).path.stat().st_mtime_ns == stamp
    assert isinstance(first.records(), np.memmap) and not list(root.glob("*.bin"))
    source = next(path for paths in first.sources.values() for path in paths if path.is_file())
    os.utime(source, ns=(0, source.stat().st_mtime_ns + 1))
    again = opened(name, root, models, cache=cache)
    assert again.path != first.path and len(again) == len(first)
    np.testing.assert_array_equal(again.records()["image"], first.records()["image"])


@pytest.mark.parametrize("name", ["freihand", "arctic"])
def test_annotation_is_packed_again_for_other_models(fresh, models, tmp_path, name):
    """For another date of a model, but not for other files beside it, such as packed ones."""
    folder = shutil.copytree(models, tmp_path / "models")
    root, options = fresh(name), {"models": folder, "cache": folder}
    paths = [tiny.READERS[name](root, **options).path for _ in range(2)]
    os.utime(folder / "SMPLX_FEMALE.npz", ns=(0, 0))
    paths.append(tiny.READERS[name](root, **options).path)
    assert paths[0] == paths[1] != paths[2]


@pytest.mark.parametrize("name", tiny.READERS)
def test_a_missing_picture_is_named(fresh, models, monkeypatch, name):
    """A missing picture is an error that names it, when it is asked for. A root may be relative."""
    root = fresh(name)
    monkeypatch.chdir(root.parent)
    dataset = opened(name, name, models)
    monkeypatch.chdir(root)
    assert dataset[0]["image"].shape == (3, 32, 32)
    path = root / dataset.records(0)["image"].decode()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        dataset[0]


def test_columns_that_do_not_fit_are_named():
    """Wrong counts, NaNs and overlong names stop the reader before anything is packed."""
    dtype = record_dtype(21, 16, 10)
    for columns, message in (
            ({"image": ["a", "b"], "K": np.zeros((3, 3, 3))}, "K has shape"),
            ({"image": ["a", "b"], "betas": np.full((2, 10), np.nan)}, "betas has numbers that"),
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


KNOWN = {  # what official people and hands have beside
    **{f"{name}_valid": ((), torch.float32) for name in ("body_pose", "betas", "expression")},
    "keypoints_3d_valid": ((76,), torch.float32), "rotations_valid": ((55,), torch.float32),
    "hand_betas": ((2, 10), torch.float32), "hand_betas_valid": ((2,), torch.float32)}


@pytest.mark.parametrize("recipe", [None, "official_hmr"])
def test_official_people_keep_the_contract_of_rendered_ones(folders, models, recipe):
    """Keys, shapes and types are those of RenderedPeople; meshes and joints fit each crop."""
    pictures = RICH(folders("rich"), "train", 48, models=models)
    sample = OfficialPeople(pictures, 32, augmentation=recipe)[2]
    assert layout(sample) == PEOPLE_CONTRACT | KNOWN
    assert_projects(sample, "keypoints_3d", atol=1e-2)
    assert_projects(sample, "hand_joints", "hand_K", "hand_keypoints_2d", atol=1e-2)
    if recipe is None:  # a hand's box is half as large as its crop, in the middle
        for keypoints in sample["hand_keypoints_2d"].numpy():
            center, side = body_box(keypoints)
            np.testing.assert_allclose([*center, side], 16, atol=1e-2)
    assert (sample["hand_vertices"].mean(1) - sample["hand_joints"].mean(1)).norm(dim=1).max() < 0.1
    arms = bodymodels.chain_rotation(arm_pose(sample["body_pose"][None])[0])
    torch.testing.assert_close(arms, sample["hand_pose"][:, 0], atol=1e-4, rtol=0)
    for kind, source in ((OfficialPeople, tiny.bedlam(folders("bedlam"))),
                         (HandPairs, tiny.interhand(folders("interhand")))):
        with pytest.raises(FileNotFoundError, match="meshes of .* need a folder of body"):
            kind(source, 32)
    with pytest.raises(ValueError, match="no body before a known camera"):
        OfficialPeople(tiny.hmr2(folders("hmr2-tars"), models=models))


def test_hands_are_cut_out_of_the_picture_not_of_the_crop(folders, models):
    """At true boxes the sharper picture gives the crops of the data set; the image does not."""
    pictures = RICH(folders("rich"), "train", 16, models=models)
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    pictures.picture = lambda record: noise
    plain, sample = (OfficialPeople(pictures, 32, detail=detail)[2] for detail in (1, 4))
    assert sample["picture"].shape == (3, 64, 64) and sample["picture"].dtype == torch.uint8
    assert "picture" not in plain and torch.equal(plain["image"], sample["image"])
    batch = {name: value[None] for name, value in sample.items()}
    errors = []
    for given in (batch, {name: batch[name] for name in batch if name != "picture"}):
        crops = crop_hands(*sharpest(given, batch["hand_boxes"]), 32)
        errors.append((crops - batch["hand_images"]).abs().mean())
    assert errors[0] < errors[1] / 3, errors


@pytest.mark.parametrize("recipe", [None, for_hands(HMR2)], ids=["plain", "hamer"])
def test_official_hands_make_people_without_bodies(folders, models, recipe):
    """The right MANO in a sample's pose and shape gives the sample's mesh, also for left and
    augmented hands."""
    hands = InterHand(folders("interhand"), "train", 32, models=models, augmentation=recipe)
    pairs = HandPairs(hands, 48)
    assert pairs.kept.tolist() == [0, 1, 2] and len(pairs) == 2  # the last pair's second is first
    sample = pairs[0]
    assert layout(pairs[1]) == PEOPLE_CONTRACT | KNOWN
    assert not sample["image"].any() and hands.records()["side"].tolist()[:3] == [1, 1, 0]
    assert not sample["body_pose_valid"] and sample["hand_betas_valid"].tolist() == [1, 1]
    right = bodymodels.load_model(models, family="mano", tips="smplx")
    for number in range(2):
        sample = pairs[number]
        posed = right(sample["hand_betas"], sample["hand_pose"])
        found = sample["hand_vertices"] - sample["hand_vertices"].mean(1, keepdim=True)
        expected = posed.vertices - posed.vertices.mean(1, keepdim=True)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
        assert_projects(sample, "hand_joints", "hand_K", "hand_keypoints_2d", atol=1e-2)


def test_ehf_and_smpls_people_flag_what_they_do_not_know(folders, fresh, models):
    """EHF has hands but no pose; 3DPW's SMPL bodies have a pose but no hands."""
    root = fresh("ehf")
    body = official_body(models, family="smplx", gender="neutral", side="right")
    tiny.write_ply(root / "100_align.ply", body.v_template.numpy() + (0, 0.1, 0))
    people = OfficialPeople(tiny.ehf(root, models=models), 32)
    sample = people[1]
    assert sample["hand_images"].shape == (2, 3, 32, 32) and not sample["body_pose_valid"]
    assert not sample["rotations_valid"].any() and sample["keypoints_3d_valid"].all()
    joints = body.J_regressor @ people.pictures.posed(people.records(1))[0].vertices[0]
    torch.testing.assert_close(sample["keypoints_3d"][:55], joints.float(), atol=1e-4, rtol=0)
    people = OfficialPeople(tiny.threedpw_moon(folders("3dpw-moon"), models=models), 32)
    sample = people[0]
    assert not sample["hand_valid"].any() and sample["body_pose_valid"] == 1
    assert not sample["keypoints_valid"][25:55].any() and sample["betas_valid"] == 0
    assert not sample["keypoints_3d_valid"][25:55].any() and sample["keypoints_3d_valid"][0] == 1
    assert sample["rotations_valid"].tolist() == [1] * 22 + [0] * 33  # SMPL has no fingers
    assert sample.keys() == (PEOPLE_CONTRACT | KNOWN).keys()
