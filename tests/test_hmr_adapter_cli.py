"""HMR-Adapter's command line, and hands alone in a picture."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from adapter_samples import (
    TINY_BODY,
    TINY_HAND,
    body_adapter,
    free_hand,
    hand_adapter,
    lively,
    noise,
)
from torch import nn

import bodymodels
import hmr_adapter as hmr
import weights.hmr_adapter
from commands import hmr_adapter as command
from hmr_adapter import BodyAdapter, BodyExpert, HandExpert


def test_summary_is_json_and_text(capsys):
    """--summary prints every part."""
    assert hmr.main(["--summary", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    paper = told["parameters"]["paper"]
    assert paper["hand adapter"] == {"all": 26_759_936, "trainable": 26_759_936}
    assert paper["body adapter"]["trainable"] == 36_508_292
    assert paper["hand expert"] == {"all": 670_409_837, "trainable": 0}
    for path in ("hand", "body"):
        for part in ("expert", "adapter"):
            pieces = [both["all"] for name, both in paper.items()
                      if name.startswith(f"{path} {part}: ")]
            assert sum(pieces) == paper[f"{path} {part}"]["all"]
    assert hmr.main(["--summary"]) == 0
    text = capsys.readouterr().out
    assert all(number in text for number in (
        "26,759,936", "36,508,292", "661,827,096"))


def save_picture(path) -> str:
    import matplotlib.image
    matplotlib.image.imsave(path, np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8))
    return str(path)


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """A picture and the checkpoints of both paths."""
    for name, model, config in (("hand", hand_adapter(), TINY_HAND),
                                ("body", body_adapter(), TINY_BODY)):
        torch.save({"model": model.state_dict(), "config": asdict(config)}, tmp_path / f"{name}.pt")
    return {"picture": save_picture(tmp_path / "one.png"), "out": str(tmp_path / "out"),
            "hand": str(tmp_path / "hand.pt"), "body": str(tmp_path / "body.pt")}


def test_command_line_writes_everything(files, tmp_path, capsys):
    """A picture and two checkpoints give an overlay, meshes and arrays."""
    import matplotlib.image
    arguments = [files["picture"], "--hand", files["hand"], "--body", files["body"], "--out",
               files["out"], "--box", "5,5,40,50"]
    assert hmr.main(arguments) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"one_overlay.png", "one.npz", "one.obj", "one.ply", "one.glb"}
    assert matplotlib.image.imread(tmp_path / "out" / "one_overlay.png").shape[:2] == (60, 50)
    arrays = np.load(tmp_path / "out" / "one.npz")
    assert arrays["vertices"].shape == (10475, 3) and arrays["right_hand_pose"].shape == (45,)
    *_, trained, wrote, look = capsys.readouterr().out.splitlines()
    assert trained == "trained on unknown data" and wrote.startswith("wrote ") and "look" in look
    for bad in (["--box", "1,2"], ["--box", "a,b,c,d"], ["--hand", files["body"]],
                ["--hand", str(tmp_path / "none.pt")], ["--model", "body"]):
        assert hmr.main([*arguments, *bad]) == 2
        told = capsys.readouterr().err
        assert told.startswith("hmr_adapter.py: ") and told.count("\n") == 1
    assert hmr.main([]) == 2


def release(model: nn.Module, **more) -> dict:
    """A checkpoint of a release's layout: weights by name, and no config of ours."""
    state = {name: value for name, value in model.state_dict().items() if name != "hand_mean"}
    return {"state_dict" if isinstance(model, HandExpert) else "network": state} | more


@pytest.mark.parametrize("given", [("hand", "body"), ("hand",), ("body",)])
def test_command_line_takes_released_weights(given, models, few_vertices, tmp_path, monkeypatch,
                                             capsys):
    """HaMeR's and SMPLer-X's files give one merged SMPL-X mesh, each alone its own mesh.

    The fingers of SMPLer-X are relative to the mean hand of the SMPL-X file; the mesh models of
    the project, whose shapes these weights do not know, are refused.
    """
    for name in ("HandExpertConfig", "BodyExpertConfig"):  # of tiny networks in place of ViT-H
        tiny = (TINY_HAND if name[0] == "H" else TINY_BODY).expert
        monkeypatch.setattr(weights.hmr_adapter, name, lambda tiny=tiny: tiny)
    experts = {"hand": lively(HandExpert(TINY_HAND.expert)).eval(),
               "body": lively(BodyExpert(TINY_BODY.expert)).eval()}
    arguments = [save_picture(tmp_path / "one.png"), "--box", "5,5,40,50", "--out",
               str(tmp_path / "out")]
    for part in given:
        torch.save(release(experts[part], hyper_parameters={}), tmp_path / f"{part}.ckpt")
        arguments += [f"--{part}", str(tmp_path / f"{part}.ckpt")]
    assert hmr.main(arguments) == 2 and "add --model" in capsys.readouterr().err
    model = models / ("SMPLX_NEUTRAL.npz" if "body" in given else "MANO_RIGHT.npz")
    assert hmr.main([*arguments, "--model", str(model)]) == 0
    assert "weights of the authors" in capsys.readouterr().out
    arrays = np.load(tmp_path / "out" / "one.npz")
    if "body" not in given:
        assert arrays["vertices"].shape == (778, 3) and arrays["rotations"].shape == (16, 3, 3)
        return
    assert arrays["vertices"].shape == (1577, 3) and arrays["hand_valid"].any() == (len(given) > 1)
    mean = command.hand_mean(str(model))
    path = weights.hmr_adapter.load_path(BodyAdapter, tmp_path / "body.ckpt", hand_mean=mean)
    assert torch.equal(path.expert.hand_mean, mean) and mean.abs().max() > 0.1


@pytest.mark.parametrize("box", [None, (30, 10, 40, 60)])
def test_predicted_left_hands_are_mirrored_right_hands(box):
    """The mirrored picture gives the mirrored mesh, before the mirrored camera."""
    path, picture = hand_adapter(), noise()
    right = command.predict_hand(path, picture, free_hand(), box=box)
    flipped = box and (120 - box[0] - box[2], *box[1:])
    left = command.predict_hand(path, picture[:, ::-1], free_hand(), box=flipped, side="left")
    for name in ("vertices", "joints", "transl"):
        assert np.allclose(left[name], right[name] * (-1, 1, 1), atol=1e-4)
    assert np.isclose(left["K"][0, 2], 120 - right["K"][0, 2]) and right["vertices"][:, 2].min() > 0
    assert np.allclose(bodymodels.mirror_matrix(torch.tensor(left["rotations"])),
                       right["rotations"], atol=1e-4)
    if box:  # twice the box, grown to 3:4
        assert np.allclose(right["box"], (50 - 60, 40 - 60, 120, 120))
    with pytest.raises(ValueError, match="right or left"):
        command.predict_hand(path, picture, free_hand(), side="both")


@pytest.mark.parametrize("data, is_free", [("rendered", False), ("bedlam", True)])
def test_checkpoints_of_another_body_are_refused(tmp_path, data, is_free):
    """One trained on the free body needs it, one trained on SMPL-X does not fit it."""
    for path in (hand_adapter(), body_adapter()):
        torch.save({"data": data, "config": {}}, tmp_path / "one.pt")
        command.check_path(path, tmp_path / "one.pt", not is_free)
        with pytest.raises(ValueError, match="one.pt was trained on"):
            command.check_path(path, tmp_path / "one.pt", is_free)
        torch.save({"model": {}, "config": {}}, tmp_path / "one.pt")  # which does not tell
        command.check_path(path, tmp_path / "one.pt", is_free)
