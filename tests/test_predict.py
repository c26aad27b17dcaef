"""`predict` of the papers: your camera, hands alone, given boxes of hands; and floats in 0..1."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adapter_samples import body_adapter, free_hand, hand_adapter, noise
from hypothesis import given
from hypothesis import strategies as st

import bodymodels
import genhmr
import hmr_adapter
import simplehand
from sets.crops import to_pixels


@given(st.floats(0.1, 4), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_a_mesh_before_my_camera_keeps_its_pixels(zoom, x, y):
    """A flat mesh keeps its pixels before any camera that looks the same way, and its distance
    grows with the focal length: by HMR-Adapter's predict and GenHMR's."""
    random = np.random.default_rng(0)
    transl = np.array([x, y, 5.0])
    flat = random.normal(0, 0.3, (45, 3)) * (1, 1, 0)
    old = np.array([[900.0, 0, 60], [0, 900, 45], [0, 0, 1]])
    K = old * [[zoom], [zoom], [1]] + [[0, 0, 7.0], [0, 0, -3], [0, 0, 0]]
    tensors = {name: torch.tensor(value)[None] for name, value in {
        "joints": flat + transl, "transl": transl, "vertices": flat[:5] + transl,
        "betas": np.ones(10)}.items()}
    square = np.array([60, 45, 900 / hmr_adapter.FOCAL])  # whose own camera is the old one
    arrays = hmr_adapter.to_arrays(tensors, square, None)
    assert np.allclose(arrays["K"], old)

    def body(betas, rotations) -> SimpleNamespace:
        return SimpleNamespace(vertices=torch.tensor(flat[None]), joints=torch.tensor(flat[None]))

    body.keypoints = lambda posed: posed.joints
    moved = hmr_adapter.to_arrays(tensors, square, K)
    crop = torch.tensor([[6.0, x, y]]).double(), 15.0, np.array([60.0, 45]), 60.0  # T, old K
    theirs = genhmr.in_picture(body, torch.ones(1), torch.ones(1),
                               *genhmr.picture_camera(*crop, K))
    for found in moved, theirs:
        pixels = to_pixels(found["joints"], K)
        assert np.allclose(pixels, to_pixels(arrays["joints"], old), atol=0.05)
        assert found["transl"][2] == pytest.approx(5 * zoom, rel=1e-4)
    shift = moved["transl"] - arrays["transl"]
    assert np.allclose(moved["vertices"] - arrays["vertices"], shift, atol=1e-5)
    assert np.array_equal(moved["betas"], arrays["betas"])
    for bad in np.eye(2), -np.eye(3), np.full((3, 3), np.nan):
        with pytest.raises(ValueError, match="intrinsics"):
            hmr_adapter.to_arrays(tensors, square, bad)
        with pytest.raises(ValueError, match="intrinsics"):
            genhmr.picture_camera(*crop, bad)


@pytest.mark.parametrize("box", [None, (30, 10, 40, 60)])
def test_predicted_left_hands_are_mirrored_right_hands(box):
    """The mirrored picture gives the mirrored mesh, before the mirrored camera."""
    path, picture = hand_adapter(), noise()
    right = hmr_adapter.predict_hand(path, picture, free_hand(), box=box)
    flipped = box and (120 - box[0] - box[2], *box[1:])
    left = hmr_adapter.predict_hand(path, picture[:, ::-1], free_hand(), box=flipped, side="left")
    for name in ("vertices", "joints", "transl"):
        assert np.allclose(left[name], right[name] * (-1, 1, 1), atol=1e-4)
    assert np.isclose(left["K"][0, 2], 120 - right["K"][0, 2]) and right["vertices"][:, 2].min() > 0
    assert np.allclose(bodymodels.mirror_matrix(torch.tensor(left["rotations"])),
                       right["rotations"], atol=1e-4)
    if box:  # twice the box, grown to 3:4
        assert np.allclose(right["box"], (50 - 60, 40 - 60, 120, 120))


def test_given_boxes_of_hands_replace_the_predicted_ones():
    """Where they are not NaN; the predicted ones given back change nothing."""
    model = hmr_adapter.HMRAdapter(
        hmr_adapter.Config(hand=hand_adapter().config, body=body_adapter().config),
        hand_adapter(), body_adapter()).eval()
    mesh, picture = bodymodels.load_model("wholebody"), noise()
    given_boxes = np.array([(20.0, 30, 15, 15), (np.nan,) * 4])
    plain, found = (hmr_adapter.predict(model, picture, mesh, hand_boxes=boxes)
                    for boxes in (None, given_boxes))
    assert np.allclose(found["hand_boxes"][0], given_boxes[0])
    assert np.allclose(found["hand_boxes"][1], plain["hand_boxes"][1])
    assert np.allclose(found["left_hand_pose"], plain["left_hand_pose"])
    assert not np.allclose(found["right_hand_pose"], plain["right_hand_pose"], atol=1e-4)


def test_pictures_in_fractions_are_refused():
    """Floats in 0..1, as other code passes them, are one message; black ones are pictures."""
    config = genhmr.Config(image_size=64, patch_size=16)
    module = torch.nn.Module()
    genhmr.register_statistics(module)
    images = torch.rand(2, 3, 64, 64)
    for normalise in (lambda x: genhmr.normalised_crop(module, x, config.image_size),
                      lambda x: simplehand.SimpleHand.normalise(SimpleNamespace(
                          mean=module.mean, std=module.std,
                          config=simplehand.Config(image_size=64)), x),
                      hand_adapter().expert.features, body_adapter().expert):
        with pytest.raises(ValueError, match="0..255"):
            normalise(images)
        for good in (images * 255, images * 0, (images > 0.5).to(torch.uint8)):
            found = normalise(good)
            assert (found["body_pose"] if isinstance(found, dict) else found).isfinite().all()


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
