"""Rendered hands; contract, determinism and golden values of all rendered pictures."""

import pickle

import numpy as np
import pytest
import torch
from set_samples import (
    BODY_CONTRACT,
    HAND_CONTRACT,
    PEOPLE_CONTRACT,
    assert_projects,
    digest,
    hands,
    layout,
)
from torch.utils.data import DataLoader

import bodymodels
from sets import crops, rendered
from sets.augmentation import Augmentation
from sets.crops import inside
from sets.painting import paint_surface
from sets.rendered_bodies import RenderedBodies, RenderedPeople


def test_convention_hand_starts_upright():
    """Without tilt or roll the fingers point up and the back view has the thumb on the left."""
    model, seen = bodymodels.load_model("hand_right", dtype=torch.float64), set()
    for seed in range(8):
        rotation = rendered.sample_view(np.random.default_rng(seed), 0.0, 0.0)
        points = model.keypoint_regressor @ model.v_template @ torch.from_numpy(rotation).T
        assert points[12, 1] < points[0, 1]  # middle tip above the wrist: y is down
        back = rotation[2, 1] < 0  # towards the camera
        assert (points[4, 0] < points[20, 0]) == back  # thumb tip left of the pinky's
        seen.add(back)
    assert len(seen) == 2


def test_labels_are_consistent():
    """Joints are the regressor's, K projects them to the keypoints, in front of the camera."""
    regressor = bodymodels.load_model("hand_right").keypoint_regressor
    for sample in hands(length=12):
        torch.testing.assert_close(regressor @ sample["vertices"], sample["joints"],
                                   atol=2e-6, rtol=0)
        assert_projects(sample)
        assert (sample["vertices"][:, 2] > 0.1).all()
        assert sample["side"] == 1 and sample["mesh_valid"] == 1


def test_upright_crops_need_no_other_motion():
    """With probability 1 alone the knuckles stand above the wrist."""
    for sample in hands(length=12, augmentation=Augmentation(upright=1.0)):
        points = sample["keypoints_2d"]
        x, y = points[crops.KNUCKLES].mean(0) - points[0]
        assert y < 0 and abs(x) < -y


def test_projected_joints_land_on_the_hand():
    """Where a valid keypoint is, the hand is painted: on its pixel or the one beside it."""
    missed = total = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        surface, joints, K = rendered.sample_scene(rng, 128, 90.0, 180.0)
        image = np.zeros((128, 128, 3), np.float32)
        paint_surface(image, surface, rendered.hand_surface().faces, K, np.ones_like(surface))
        painted = np.pad(image[..., 0] > 0, 2)
        projected = joints @ K.T
        pixels = projected[:, :2] / projected[:, 2:]
        for x, y in pixels[inside(pixels, 128, 128) > 0]:
            column, row = int(x) + 2, int(y) + 2
            total += 1
            missed += not painted[row - 1:row + 2, column - 1:column + 2].any()
    assert total > 700 and missed == 0


def test_the_forearm_closes_the_hand():
    """Every edge of the surface has a face on either side."""
    surface = rendered.hand_surface()
    edges = np.concatenate([surface.faces[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))])
    assert {tuple(edge) for edge in edges.tolist()} == {tuple(e) for e in edges[:, ::-1].tolist()}


# ------------------------------------------------------------------- hands, bodies and people

KINDS = {"hands": (rendered.RenderedHands, HAND_CONTRACT),
         "bodies": (RenderedBodies, BODY_CONTRACT), "people": (RenderedPeople, PEOPLE_CONTRACT)}


def drawn(kind, split="train", size=48, **options):
    options = {"hand_size": 32} | options if kind == "people" else options
    return KINDS[kind][0](split, size, **{"length": 30} | options)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_keep_the_contract(kind):
    """Every sample has these keys, shapes and types; they collate."""
    sample = drawn(kind)[35]
    assert layout(sample) == KINDS[kind][1]
    assert sample["index"] == 5
    batch = next(iter(DataLoader(drawn(kind), batch_size=3)))
    assert batch["image"].shape == (3, 3, 48, 48) and batch["index"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_pure_functions_of_their_keys(kind, tmp_path):
    """The same bits from a new instance, in another order, with other threads, from a longer split,
    from the cache; other splits, seeds and epochs are others."""
    def digests(dataset):
        return [digest(dataset[key]) for key in (2, 1)]

    samples, cached = digests(drawn(kind)), drawn(kind, length=3, cache=tmp_path)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert samples == digests(drawn(kind, length=31))
    finally:
        torch.set_num_threads(threads)
    assert samples == digests(cached) == digests(pickle.loads(pickle.dumps(cached)))
    moving = drawn(kind, length=3, augmentation="official_hmr", cache=tmp_path)
    assert digests(moving) == digests(drawn(kind, augmentation="official_hmr"))
    assert len(list(tmp_path.glob("*.bin"))) == 1
    others = [drawn(kind, "test"), drawn(kind, seed=1), drawn(kind, views=30.0), moving]
    assert len({samples[0], digest(moving[5]), *(digest(other[2]) for other in others)}) == 6


GOLDEN = [  # kind, options, means of pictures (and of hands) and of keypoints by sample
    ("hands", {}, [51.63, 72.64, 146.57], [21.375, 28.022, 22.474]),
    ("hands", {"augmentation": "official_simplehand"},
     [5.01, 65.78, 64.09], [27.287, 30.927, 21.288]),
    ("hands", {"augmentation": "release_simplehand"},
     [4.98, 65.66, 62.88], [27.287, 30.426, 21.290]),
    ("hands", {"augmentation": "rendered_photos"},
     [32.07, 121.13, 126.27], [20.378, 30.640, 22.958]),
    ("hands", {"augmentation": "rendered_upright"},
     [24.42, 34.35, 91.60], [20.378, 17.276, 20.779]),
    ("bodies", {}, [72.95, 58.17, 73.64], [21.438, 27.137, 19.268]),
    ("bodies", {"version": 1}, [90.70, 147.67, 80.19], [22.199, 23.320, 20.451]),
    ("bodies", {"wide": 1.0, "lean": 45.0}, [143.70, 151.68, 63.36], [19.991, 23.405, 22.351]),
    ("bodies", {"augmentation": "official_hmr"}, [64.04, 36.62, 82.86], [19.279, 46.068, 18.315]),
    ("bodies", {"augmentation": "rendered_bodies_photos"},
     [30.62, 98.04, 110.09], [22.315, 34.978, 17.457]),
    ("people", {}, [71.19, 98.42, 79.11, 86.57], [20.058, 19.055]),
    ("people", {"version": 1}, [88.24, 93.51, 106.76, 99.58], [21.983, 19.092]),
    ("people", {"occlusion": 1.0, "wide": 0.5}, [119.38, 117.91, 122.11, 134.43], [20.995, 20.460]),
]


@pytest.mark.parametrize("kind,options,pictures,keypoints", GOLDEN)
def test_golden_pictures(kind, options, pictures, keypoints):
    """Whatever is drawn, by either version of the renderer and by each recipe, stays as it was.

    Bits may differ between processors: mean brightness and position do not.
    """
    dataset = drawn(kind, **options)
    samples = [dataset[key] for key in ((1, 34) if kind == "people" else (1, 4, 37))]
    assert [sample[name].float().mean().item() for name in ("image", "hand_images")
            for sample in samples if name in sample] == pytest.approx(pictures, abs=0.3)
    assert [sample["keypoints_2d"].mean().item() for sample in samples] == pytest.approx(
        keypoints, abs=0.01)


@pytest.mark.parametrize("kind,options,mark", [
    ("hands", {}, "e115631de64ddee5"), ("hands", {"seed": 1}, "06cc3b98a88e8f85"),
    ("bodies", {}, "0d89b5e8590b7a4d"),
    ("bodies", {"wide": 0.5, "version": 1}, "21b663aec6366d4d"),
    ("people", {"hand_size": None}, "7b316c6d4fc958ec"),
    ("people", {"lens_size": 256, "wide": 0.3}, "78ce8999a84be667")])
def test_packed_files_keep_their_names(kind, options, mark, tmp_path):
    """Old caches are found: the checksum depends on what changes pictures, and on no recipe."""
    for recipe in (None, "rendered"):
        drawn(kind, size=16, length=2, augmentation=recipe, cache=tmp_path, **options)
    assert [path.name for path in tmp_path.glob("*.bin")] == [
        f"rendered_{kind}_train_16_{mark}.bin"]


@pytest.mark.parametrize("kind,options,message", [
    ("hands", {"views": 100}, "views in 0..90"), ("hands", {"in_plane": -1}, "in_plane in 0..180"),
    ("people", {"occlusion": 1.5}, "occlusion rate in 0..1, got 1.5"),
    *((kind, options, message) for kind in KINDS for options, message in (
        ({"length": 0}, "positive length"), ({"split": "val"}, "unknown split 'val'"),
        ({"augmentation": "hmr"}, "unknown augmentation 'hmr': expected one of .*official_hmr"))),
    *((kind, options, message) for kind in ("bodies", "people") for options, message in (
        ({"views": -1}, "views in 0..180"), ({"lean": 20}, "lean in 30..180"),
        ({"wide": 2.0}, "wide in 0..1"), ({"version": 3}, "unknown version 3 of the rendered pict"),
        ({"version": None}, "unknown version None")))])
def test_bad_options_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        drawn(kind, **options)
