"""`predict` of the papers: boxes, cameras, left hands, given boxes of hands; and floats in 0..1."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from adapter_samples import body_adapter, both_paths, free_hand, hand_adapter, noise, whole_body
from genhmr_samples import SMALL, TINY, images, lively_model, noisy_model
from hypothesis import given, settings
from hypothesis import strategies as st
from simplehand_samples import TINY as SMALL_HAND
from simplehand_samples import picture, randomise, trained_model

import bodymodels
import genhmr
import hmr_adapter
import simplehand

MODELS = {"simplehand": trained_model(), "genhmr": noisy_model(), "hmr_adapter": both_paths(),
          "hand": hand_adapter()}
BODY = bodymodels.load_model("body").for_keypoints()
FINDERS = {  # predict of the three papers, and of HMR-Adapter's hand path
    "simplehand": lambda model, image, **options: simplehand.predict(
        model, image, free_hand().keypoint_regressor, **options),
    "genhmr": lambda model, image, **options: genhmr.predict(model, BODY, image, **options),
    "hmr_adapter": lambda model, image, **options: hmr_adapter.predict(
        model, image, whole_body(), **options),
    "hand": lambda model, image, **options: hmr_adapter.predict_hand(
        model, image, free_hand(), **options)}
PICTURES = "uint8 RGB", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3)),
                         np.zeros((0, 64, 3), np.uint8)]
BOXES = "x,y,width,height", [
    (0, 0, 10), (0, 0, -5, 10), (500, 0, 10, 10), (-50, 0, 50, 10), (0, math.nan, 10, 10),
    (0, 0, 1e30, 1e30), (0, 0, 1e-30, 1e-30)]
CAMERAS = "intrinsics", [np.eye(4), np.zeros((3, 3)), -np.eye(3), np.full((3, 3), np.nan),
                         [[90, 0, 0], [0, 90, 0], [30, 30, 1]]]


@pytest.mark.parametrize("zoom", [0.1, 4.0])
@pytest.mark.parametrize("paper", ["genhmr", "hmr_adapter", "hand"])
def test_a_mesh_before_my_camera_keeps_its_pixels(paper, zoom):
    """It is moved as a whole, onto its old pixel; its distance grows with the focal length."""
    plain = FINDERS[paper](MODELS[paper], picture(), box=(30, 20, 60, 40))
    K = plain["K"] * [[zoom], [zoom], [1]] + [[0, 0, 7.0], [0, 0, -3], [0, 0, 0]]
    moved = FINDERS[paper](MODELS[paper], picture(), box=(30, 20, 60, 40), K=K)
    assert np.allclose(moved["K"], K)
    pixels = [bodymodels.project(found["transl"], found["K"]) for found in (plain, moved)]
    assert np.allclose(*pixels, atol=0.05)
    assert moved["transl"][2] == pytest.approx(zoom * plain["transl"][2], rel=1e-4)
    shift = moved["transl"] - plain["transl"]
    for name in ("vertices", "joints"):
        assert np.allclose(moved[name] - plain[name], shift, atol=1e-3)


def test_boxes_of_hands_are_those_of_the_crop():
    """In a picture that the crop of the box just fills, they are the body expert's own."""
    model, image = MODELS["hmr_adapter"], noise()[:64, :64]
    found = FINDERS["hmr_adapter"](model, image, box=(12.8, 6.4, 38.4, 51.2))  # 3:4, times 1.25
    with torch.no_grad():
        expected = model.body(torch.from_numpy(image).permute(2, 0, 1)[None])["hand_boxes"][0]
    assert np.allclose(found["hand_boxes"], expected, atol=0.01)


@pytest.mark.parametrize("paper", FINDERS)
def test_bad_input_is_named(paper):
    """One ValueError that says what was expected; a model in training mode is refused, too."""
    find, model, picture = FINDERS[paper], MODELS[paper], np.zeros((64, 64, 3), np.uint8)
    for name, (message, values) in {"image": PICTURES, "box": BOXES, "K": CAMERAS}.items():
        for value in values:
            with pytest.raises(ValueError, match=message):
                find(model, **{"image": picture, name: value})
    with pytest.raises(ValueError, match="eval"):
        find(copy.deepcopy(model).train(), picture)
    if paper in ("simplehand", "hand"):
        with pytest.raises(ValueError, match="right or left"):
            find(model, picture, side="both")
    if paper == "hmr_adapter":
        for boxes in ([20, 30, 15, 15], [[20, 30, 15, 0]] * 2, [[20, 30, math.inf, 15]] * 2):
            with pytest.raises(ValueError, match="hand_boxes"):
                find(model, picture, hand_boxes=np.array(boxes, float))


@pytest.mark.parametrize("paper", FINDERS)
def test_views_of_arrays_and_inference_mode(paper):
    """BGR pictures turned to RGB by a view, and a caller in inference mode, change nothing."""
    find, model, keypoints = FINDERS[paper], MODELS[paper], np.zeros((45, 3))
    keypoints[:20] = (60, 45, 1)
    options = {"keypoints": keypoints, "refinement": 2} if paper == "genhmr" else {}
    expected = find(model, picture(), **options)
    with torch.inference_mode():
        found = find(model, picture()[..., ::-1].copy()[..., ::-1], **options)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


@given(st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=4)
@pytest.mark.parametrize("paper", FINDERS)
def test_only_the_box_matters(paper, x, y):
    """In a larger black picture with the camera moved along, the mesh is the same."""
    canvas = np.zeros((140, 180, 3), np.uint8)
    K = np.array([[150.0, 0, 60], [0, 150, 45], [0, 0, 1]])
    canvas[y : y + 90, x : x + 120] = picture()
    here = FINDERS[paper](MODELS[paper], picture(), box=(30, 20, 60, 40), K=K)
    there = FINDERS[paper](MODELS[paper], canvas, box=(30 + x, 20 + y, 60, 40),
                           K=K + [[0, 0, x], [0, 0, y], [0, 0, 0]])
    assert np.allclose(here["vertices"], there["vertices"], atol=1e-3)
    for name in {"keypoints_2d", "hand_boxes"} & set(here):
        shift = [x, y, 0, 0][:here[name].shape[1]]
        assert np.allclose(here[name] + shift, there[name], atol=0.05)


@pytest.mark.parametrize("box", [None, (30.0, 20.0, 60.0, 40.0), (0.0, 0.0, 40.0, 90.0)])
@pytest.mark.parametrize("paper", ["simplehand", "hand"])
def test_left_hands_are_mirrored_right_hands(paper, box):
    """The flipped picture as a left hand gives the mirror image of the right hand."""
    find, model, image = FINDERS[paper], MODELS[paper], picture()
    right = find(model, image, box=box)
    left = find(model, image[:, ::-1], box=box and (120 - box[0] - box[2], *box[1:]), side="left")
    for name in ("vertices", "joints", "root" if paper == "simplehand" else "transl"):
        assert np.allclose(left[name] * (-1, 1, 1), right[name], atol=1e-3)
    assert np.isclose(left["K"][0, 2], 120 - right["K"][0, 2]) and right["vertices"][:, 2].min() > 0
    if paper == "simplehand":
        assert (left["side"], right["side"]) == (0, 1)
        unflipped = (120, 0) + left["keypoints_2d"] * (-1, 1)
        assert np.allclose(unflipped, right["keypoints_2d"], atol=0.05)
    else:
        assert np.allclose(bodymodels.mirror_matrix(torch.tensor(left["rotations"])),
                           right["rotations"], atol=1e-4)
        if box == (30, 20, 60, 40):  # twice the box, grown to 3:4
            assert np.allclose(right["box"], (60 - 80, 40 - 80, 160, 160))


def sampled(model: genhmr.GenHMR, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
    found = genhmr.sample_from(model, model.encode(pictures), iterations=6)
    return {"rotations": found.rotations, "masks": found.masks.transpose(0, 1)}


@pytest.mark.parametrize(("run", "size"), [
    *[(randomise(simplehand.SimpleHand(SMALL_HAND)), size) for size in (32, 64, 96, 160)],
    *[(partial(sampled, lively_model(config)), config.image_size) for config in (TINY, SMALL)],
    (both_paths(), 64), (lambda x: hand_adapter()(x, torch.eye(3).expand(len(x), 8, 3, 3)), 64)])
def test_batch_equals_loop(run, size):
    """In evaluation mode pictures do not see each other; SimpleHand takes any multiple of 32."""
    pictures = images(3, size)
    together = run(pictures)
    for row in range(3):
        for name, value in run(pictures[row:row + 1]).items():
            assert value.isfinite().all() and torch.allclose(
                value[0], together[name][row], atol=1e-4), name


def test_large_boxes_are_averaged_not_skipped():
    """Shrinking a fine chessboard gives grey, not aliases, also at the centres of its pixels."""
    board = np.indices((512, 512)).sum(0) % 2 * 255
    board = np.repeat(board[..., None], 3, 2).astype(np.uint8)
    middle, to_image = np.array([256.5, 256.5]), np.array([[8, 0, 0.5], [0, 8, 0.5], [0, 0, 1.0]])
    for crop in (simplehand.cut_out(board, to_image, 64, 8),
                 genhmr.crop_picture(board, middle, 512.0, 64),
                 hmr_adapter.cut_square(MODELS["hand"], board, np.array([*middle, 512.0]), 64)[0]):
        assert (crop[:, 1:-1, 1:-1] - 127.5).abs().max() < 1.0


def test_wide_boxes_are_averaged_along_their_longer_side(monkeypatch):
    """Fine stripes reach the network as grey."""
    model, seen = trained_model(), []
    monkeypatch.setattr(model, "forward", lambda x: seen.append(x) or {
        "vertices": torch.zeros(1, 778, 3), "keypoints_2d": torch.full((1, 21, 2), 0.5)})
    stripes = np.zeros((40, 512, 3), np.uint8)
    stripes[:, np.arange(512) % 6 < 3] = 255
    FINDERS["simplehand"](model, stripes, box=(51.2, 4, 409.6, 32))
    assert (seen[0][0, :, 32, 4:-4] - 127.5).abs().max() < 40


def test_given_boxes_of_hands_replace_the_predicted_ones():
    """Where they are not NaN. A hand whose box has its centre outside keeps the body's pose."""
    find = partial(FINDERS["hmr_adapter"], MODELS["hmr_adapter"], noise())
    given_boxes = np.array([(20.0, 30, 15, 15), (np.nan,) * 4])
    plain, found = find(), find(hand_boxes=given_boxes)
    assert np.allclose(found["hand_boxes"][0], given_boxes[0])
    assert np.allclose(found["hand_boxes"][1], plain["hand_boxes"][1])
    assert np.allclose(found["left_hand_pose"], plain["left_hand_pose"])
    assert not np.allclose(found["right_hand_pose"], plain["right_hand_pose"], atol=1e-4)
    for left, inside in ((104.0, 1), (114.0, 0), (-16.0, 0)):  # the picture is 120 px wide
        found = find(hand_boxes=np.array([(left, 30, 15, 15), (20, 30, 15, 15)]))
        assert found["hand_inside"].tolist() == found["hand_valid"].tolist() == [inside, 1]


def test_the_box_of_keypoints_has_a_margin():
    """As a given box: a fifth in all; those of little confidence or outside do not count. Without
    keypoints nothing is refined."""
    keypoints = np.zeros((45, 3))
    keypoints[:5] = (30, 20, 1), (90, 60, 0.9), (10, 80, 0.2), (130, 50, 1), (np.nan, np.inf, 0)
    found, given = (FINDERS["genhmr"](MODELS["genhmr"], picture(), **options, refinement=2)
                    for options in ({"keypoints": keypoints}, {"box": (30, 20, 60, 40)}))
    assert np.allclose(found["box"], given["box"]) and found["box"][2] == pytest.approx(1.2 * 80)
    assert np.allclose(found["confidence"][:5], (1, 0.9, 0, 0, 0))
    assert (len(found["energies"]), len(given["energies"])) == (3, 1)
    for count in (1, 0):  # one point is no box: the whole picture, of whose width 3/4 are seen
        keypoints[count:] = 0
        found = FINDERS["genhmr"](MODELS["genhmr"], picture(), keypoints=keypoints)
        assert found["box"].tolist() == [60 - 80, 45 - 80, 160, 160]


@pytest.mark.parametrize("normalise", [
    trained_model().normalise, lively_model().normalise, hand_adapter().expert.features,
    body_adapter().expert.features], ids=["simplehand", "genhmr", "hand", "body"])
def test_pictures_in_fractions_are_refused(normalise):
    """Floats in 0..1, as other code passes them, are one message; black ones are pictures."""
    images = torch.rand(2, 3, 64, 64)
    with pytest.raises(ValueError, match="0..255"):
        normalise(images)
    for good in (images * 255, images * 0, (images > 0.5).to(torch.uint8)):
        normalise(good)


def test_the_readme_s_lines_run(tmp_path, monkeypatch):
    """Its Python lines, verbatim, write the pointing hand, y up, around its root."""
    code = (bodymodels.ASSETS.parent / "README.md").read_text().split("```python\n")[1]
    (tmp_path / "assets").symlink_to(bodymodels.ASSETS)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code.split("```")[0], names)
    assert (tmp_path / "hand.glb").stat().st_size > 10_000
    wrist, tip = names["found"]["joints"][[0, 8]]
    assert wrist[1] > tip[1] and np.abs(names["upright"]).max() < 0.25  # metres
