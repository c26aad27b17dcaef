"""FreiHAND: backgrounds, crops, packed annotation, missing and damaged files."""

import json
import pickle

import numpy as np
import pytest
import torch
from hand_samples import CONTRACT, assert_projects, digest
from official_folders import UNIQUE, write_freihand

from sets.hand_sets import FreiHAND


@pytest.fixture
def freihand(tmp_path):
    root = tmp_path / "FreiHAND"
    return root, write_freihand(root)


def reader(root, split="training", size=48, **options):
    return FreiHAND(root, split, size, progress=False, **options)


def test_freihand_backgrounds_share_one_annotation(freihand):
    """Picture v * N + i shows background v of id i and has its annotation."""
    root, samples = freihand
    dataset = reader(root)
    assert (len(dataset), dataset.db_size, dataset.versions) == (8, 2, 4)
    for index in range(8):
        source = dataset.annotated(index)
        expected = samples[index % UNIQUE]
        np.testing.assert_array_equal(source.joints, expected["joints"])
        np.testing.assert_array_equal(source.vertices, expected["vertices"])
        np.testing.assert_allclose(source.keypoints_2d, expected["keypoints_2d"], atol=1e-3)
        shown = source.image.astype(float).mean() - expected["image"].numpy().mean() / 2
        assert abs(shown - 30 * (index // UNIQUE)) < 2


def test_freihand_samples_keep_the_contract(freihand):
    """Same keys, shapes and types as rendered hands; labels exact under the crop's camera."""
    root, samples = freihand
    dataset = reader(root)
    for index in range(8):
        sample = dataset[index]
        assert {k: (tuple(v.shape), v.dtype) for k, v in sample.items()} == CONTRACT
        assert_projects(sample)
        moved = samples[index % UNIQUE]["joints"] @ sample["camera_rotation"].T
        torch.testing.assert_close(moved, sample["joints"], atol=1e-6, rtol=0)


def test_freihand_evaluation_crop_is_the_box_times_125(freihand):
    """Without augmentation the keypoints' longer side spans 1/1.25 of the crop, in its middle."""
    root, _ = freihand
    for split in ("training", "evaluation"):
        sample = reader(root, split)[0]
        assert sample["keypoints_valid"].all() and sample["mesh_valid"] == 1
        low, high = sample["keypoints_2d"].amin(0), sample["keypoints_2d"].amax(0)
        assert (high - low).max().item() == pytest.approx(48 / 1.25, rel=0.05)
        assert ((low + high) / 2 - 24).abs().max() < 2


def test_freihand_without_released_annotation(tmp_path):
    """Without it the crop is the whole picture, and keypoints and mesh are flagged as unknown."""
    root = tmp_path / "FreiHAND"
    write_freihand(root, annotated=False)
    sample = reader(root, "evaluation", size=64)[0]
    assert not sample["keypoints_valid"].any() and sample["mesh_valid"] == 0
    assert not sample["keypoints_2d"].any() and not sample["joints"].any()
    assert torch.isfinite(sample["crop"]).all()
    torch.testing.assert_close(sample["crop"], torch.eye(3), atol=0.1, rtol=0)


def test_freihand_augmentation_mirrors_and_turns(freihand):
    """The official recipe is reproducible by key, keeps labels exact, and mirrors about half."""
    root, _ = freihand
    dataset = reader(root, augmentation="official_simplehand")
    samples = [dataset[key] for key in range(40)]
    for key, sample in enumerate(samples):
        assert_projects(sample)
        assert digest(sample) == digest(reader(root, augmentation="official_simplehand")[key])
    mirrored = sum(float(torch.linalg.det(sample["camera_rotation"])) < 0 for sample in samples)
    assert 10 < mirrored < 30


def test_freihand_is_packed_once_into_a_mapped_file(freihand, tmp_path):
    """Annotation is memory-mapped float32 in the chosen folder, and packed again if changed."""
    root, samples = freihand
    before = {path.name for path in root.iterdir()}
    cache = tmp_path / "packed"
    dataset = reader(root, cache=cache)
    dataset[0]
    assert isinstance(dataset._packed, np.memmap) and dataset.dtype.itemsize == 4 * 2467
    assert len(pickle.dumps(dataset)) < 5_000  # what a worker is sent
    stamp = dataset.path.stat().st_mtime_ns
    assert reader(root, cache=cache).path.stat().st_mtime_ns == stamp
    assert {path.name for path in root.iterdir()} == before  # a read-only root is enough
    moved = [(s["joints"] + 0.25).tolist() for s in samples[:UNIQUE]]
    (root / "training_xyz.json").write_text(json.dumps(moved))
    changed = reader(root, cache=cache).annotated(0)
    np.testing.assert_allclose(changed.joints, samples[0]["joints"] + 0.25, atol=1e-6)


@pytest.mark.parametrize("name,content,message", [
    ("xyz", "[[[1, 2, 3]]]", r"training_xyz.json, item 0: expected \(21, 3\)"),
    ("xyz", "[]", "has 0 items where K has 2"),
    ("verts", "[[[0.1, 0.2", "not a whole JSON list.*download it again"),
    ("verts", '{"a": 1}', "not a whole JSON list"),
    ("K", "", "not a whole JSON list"),
    ("K", "[[1, 2], nonsense]", "not a whole JSON list"),
])
def test_freihand_bad_annotation_is_one_clear_error(freihand, name, content, message):
    root, _ = freihand
    (root / f"training_{name}.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        reader(root)
    assert not list(root.glob("*.npy"))


def test_freihand_missing_files_are_named(freihand, tmp_path):
    root, _ = freihand
    dataset = reader(root)
    (root / "training/rgb/00000003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="00000003.jpg"):
        dataset[3]
    (root / "training_xyz.json").unlink()
    with pytest.raises(FileNotFoundError, match="training_xyz.json.*official layout"):
        reader(root)
    with pytest.raises(FileNotFoundError, match="official layout"):
        reader(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unknown split 'val'"):
        reader(root, "val")


def test_freihand_counts_the_backgrounds_it_finds(freihand):
    """With only two of four backgrounds on disk the data set is half as long."""
    root, _ = freihand
    for index in range(4, 8):
        (root / f"training/rgb/{index:08d}.jpg").unlink()
    assert len(reader(root)) == 4


def test_freihand_without_meshes_has_to_be_asked_for(freihand):
    """Training without training_verts.json would learn 2D keypoints alone, without a word."""
    root, _ = freihand
    (root / "training_verts.json").unlink()
    with pytest.raises(FileNotFoundError, match="training_verts.json: without it no sample has a"):
        reader(root)
    assert reader(root, without_mesh=True)[0]["mesh_valid"] == 0


@pytest.mark.parametrize("item", [None, {"a": 1}, "text", [[1, None, 3]], [["a", "b", "c"]],
                                  [[1e400, 0, 0]] * 3, True])
def test_freihand_items_of_another_kind_are_one_clear_error(freihand, item):
    """Whatever JSON an item is, it is named with its file and number."""
    root, _ = freihand
    (root / "training_K.json").write_text(json.dumps([np.eye(3).tolist(), item]))
    with pytest.raises(ValueError, match=r"training_K.json, item 1: expected \(3, 3\) numbers"):
        reader(root)


def test_release_crop_on_freihand(freihand):
    """The release's recipes crop with its own camera, and labels stay exact in its pixels."""
    root, samples = freihand
    for recipe in ("release_simplehand", "release_simplehand_test"):
        for key in range(4):
            assert_projects(reader(root, augmentation=recipe)[key])
    sample = reader(root, augmentation="release_simplehand_test")[0]
    low, high = sample["keypoints_2d"].amin(0), sample["keypoints_2d"].amax(0)
    assert (high - low).max().item() == pytest.approx(48 / 1.25, rel=0.05)
