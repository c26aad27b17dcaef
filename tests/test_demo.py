"""demo.py: pictures and folders, the three networks, warnings, cameras, and what is written."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_samples import TINY_BODY, TINY_HAND, body_adapter, hand_adapter, lively, noise
from genhmr_samples import FOR_PICTURES, noisy_model
from PIL import Image
from simplehand_samples import checkpoint_of, picture, trained_model
from torch import nn

import bodymodels
import data
import demo
import genhmr
import hmr_adapter
import simplehand
import weights.genhmr
import weights.hmr_adapter
import weights.simplehand
from hmr_adapter import BodyAdapter, BodyExpert, HandExpert
from networks import finders
from networks.finders import Found
from sets.images import to_smpl45

ROOT = Path(demo.__file__).parent
ASTRONAUT, ASTRONAUT_KEYPOINTS = (ROOT / "assets" / f"astronaut{end}"
                                  for end in (".jpg", "_keypoints.json"))
ENDINGS = ("_overlay.png", "_side.png", ".npz", ".obj", ".glb")
SMPL45 = bodymodels.JOINT_SETS["smpl45"]


def save_picture(path: Path) -> Path:
    Image.fromarray(picture()).save(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of tiny networks whose outputs are not all in the middle."""
    folder = tmp_path_factory.mktemp("checkpoints")
    contents = {"simplehand": checkpoint_of(trained_model()),
                "genhmr": {"model": noisy_model().state_dict(), "config": asdict(FOR_PICTURES)},
                "hand": {"model": hand_adapter().state_dict(), "config": asdict(TINY_HAND)},
                "body": {"model": body_adapter().state_dict(), "config": asdict(TINY_BODY)}}
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in contents}


def arguments_of(network: str, files: dict[str, Path]) -> list[str]:
    """A network and the flags of its tiny checkpoint."""
    flags = ["--hand", files["hand"], "--body", files["body"]] if network == "hmr_adapter" else [
        "--checkpoint", files[network]]
    return [network, *map(str, flags)]


def written_of(name: str) -> set[str]:
    return {f"{name}{ending}" for ending in ENDINGS}


def assert_written(folder: Path, expected: dict[str, np.ndarray]) -> None:
    """All files of one picture are there, with these arrays."""
    assert {path.name for path in folder.iterdir()} == written_of("photo")
    with np.load(folder / "photo.npz") as arrays:
        assert set(arrays) == set(expected)
        for name, value in expected.items():
            assert np.allclose(arrays[name], value, atol=1e-3), name


def run(*arguments) -> int:
    return demo.main([str(argument) for argument in arguments])


# -------------------------------------------------------------------------------- simplehand

KINDS = {"right": "taken for a right hand; for a left one add ,left after its --box",
         "left": "a left hand"}


@pytest.mark.parametrize("side", ["right", "left"])
def test_simplehand_on_a_picture(files, tmp_path, capsys, side):
    """Writes the overlay, the side view, three mesh files and the documented arrays."""
    assert run(*arguments_of("simplehand", files), save_picture(tmp_path / "photo.png"), "--out",
               tmp_path / "out", "--box", "30,20,60,40", *["--left"] * (side == "left")) == 0
    first, *_, trained, conventional, wrote = capsys.readouterr().out.splitlines()
    assert first == KINDS[side] and trained == "trained on unknown data"
    assert "distances are conventional" in conventional
    assert wrote.startswith(f"wrote {tmp_path}/out/photo_overlay.png, photo_side.png")
    assert data.read_image(tmp_path / "out" / "photo_overlay.png").shape == (90, 120, 3)
    hand = bodymodels.load_model("hand_right")
    outward = hand.faces.numpy() if side == "right" else hand.faces.numpy()[:, ::-1]
    assert_written(tmp_path / "out", {"faces": outward} | simplehand.predict(
        weights.simplehand.load_checkpoint(files["simplehand"]), picture(), hand.keypoint_regressor,
        box=(30, 20, 60, 40), side=side))
    lines = (tmp_path / "out" / "photo.obj").read_text().splitlines()
    assert sum(line.startswith("v ") for line in lines) == 778


def test_a_folder_of_pictures(files, tmp_path, capsys):
    """Every picture gets its files and lines with its name; one that fails stops no other."""
    for name in ("a.png", "c.png"):
        save_picture(tmp_path / name)
    (tmp_path / "b.png").write_text("no picture")
    assert run(*arguments_of("simplehand", files), tmp_path, "--out", tmp_path / "out", "--box",
               "30,20,60,40", "--box", "-5,-5,20,20,left") == 2
    told = capsys.readouterr()
    lines = [line for line in told.out.splitlines() if "png: hand" in line]
    assert [line for line in lines if "warning" not in line] == [
        f"{name}: hand {number}: {KINDS[side]}" for name in ("a.png", "c.png")
        for number, side in ((1, "right"), (2, "left"))]
    assert any("too small" in line for line in lines)
    assert told.err.startswith("demo.py: ") and "b.png" in told.err
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"a_overlay.png", "a_1.npz", "a_2.glb", "c_2.obj"} < written and len(written) == 16


def test_hands_are_found(files, tmp_path, capsys, monkeypatch):
    """Without --box the hands that MediaPipe finds are taken, with their sides and keypoints; in a
    box the given side counts, and MediaPipe's keypoints judge the mesh."""
    found = [Found((30, 20, 60, 40), "left", np.linspace((0, 0, 1), (9, 9, 1), 21))]
    monkeypatch.setattr(finders, "find_hands", lambda image, box=None: found)
    arguments = [*arguments_of("simplehand", files), save_picture(tmp_path / "photo.png"), "--out",
                 tmp_path / "out"]
    for box, side in ((), 0), (("--box", "30,20,60,40"), 1):
        assert run(*arguments, *box) == 0
        said = capsys.readouterr().out
        assert said.startswith(KINDS["right" if side else "left"])
        assert "does not fit the 2D keypoints (MediaPipe)" in said
        with np.load(tmp_path / "out" / "photo.npz") as arrays:
            assert arrays["side"] == side and np.allclose(arrays["box"], (22.5, 15, 75, 50))
    found.clear()
    assert run(*arguments) == 2
    assert "finds no hand" in capsys.readouterr().err


@pytest.mark.parametrize(("spread", "other", "side", "words"), [
    (0.08, 0.08, "right", []), (0.11, 0.11, "right", ["not sure"]),
    (0.08, 0.06, "right", ["add ,left"]), (0.08, 0.06, "left", ["leave out left"]),
    (0.11, 0.06, "left", ["leave out left", "not sure"])])
def test_unsure_heat_maps_are_told(spread, other, side, words, monkeypatch):
    """Wider heat maps than SPREAD: a warning. Much narrower ones of the mirrored hand: another.

    How to say that a hand is a left one is said once.
    """
    def predict(*_, side: str, **__) -> dict[str, np.ndarray]:
        arrays = {"joints": np.ones((21, 3)), "K": np.eye(3), "side": int(side == "right")}
        return arrays | {"spread_2d": np.full(21, spread if side == given else other)}

    given = side
    one = demo.load_simplehand(demo.parser().parse_args(["simplehand", "--box", "whole"])).one
    monkeypatch.setattr(simplehand, "predict", predict)
    first, *notes = one(picture(), Found(None, side), None).notes
    assert (",left" in first) == (side == "right" and "add ,left" not in words)
    assert len(notes) == len(words) and all(map(str.__contains__, notes, words))


@pytest.mark.parametrize(("spreads", "sure", "side"), [
    ({"right": 0.05, "left": 0.04}, True, "right"), ({"right": 0.05, "left": 0.04}, False, "left"),
    ({"right": 0.05, "left": 0.06}, False, "right"), ({}, False, "right")])
def test_where_mediapipe_is_not_sure_the_heat_maps_name_the_side(spreads, sure, side, monkeypatch):
    """The narrower ones; of a network without heat maps MediaPipe's word stands."""
    def predict(*_, side: str, **__) -> dict[str, np.ndarray]:
        arrays = {"joints": np.ones((21, 3)), "K": np.eye(3), "side": int(side == "right"),
                  "keypoints_2d": np.zeros((21, 2))}
        return arrays | ({"spread_2d": np.full(21, spreads[side])} if spreads else {})

    one = demo.load_simplehand(demo.parser().parse_args(["simplehand"])).one
    monkeypatch.setattr(simplehand, "predict", predict)
    assert one(picture(), Found(None, "right", sure=sure), None).notes == [f"a {side} hand"]


@pytest.mark.parametrize(("kind", "views", "words"), [
    ("rendered", 15, "within 15 degrees"), ("rendered", 90, "from all sides"),
    ("unknown data", 90, "trained on unknown data")])
def test_the_checkpoint_says_what_it_has_seen(kind, views, words, tmp_path):
    """One line from the checkpoint's data and config, not from its name."""
    torch.save(checkpoint_of(trained_model(), data=kind, settings={"views": views}),
               tmp_path / "one.pt")
    line = demo.load_simplehand(demo.parser().parse_args(
        ["simplehand", "--checkpoint", str(tmp_path / "one.pt")])).about
    assert words in line and "\n" not in line


# ------------------------------------------------------------------------------------ genhmr


def test_genhmr_on_a_picture(files, tmp_path, capsys):
    """Writes what SimpleHand does, and says how far the refinement came."""
    points = [[40 + index, 50 + index, 0.9] for index in range(17)]
    (tmp_path / "k.json").write_text(json.dumps({"people": [{
        "pose_keypoints_2d": sum(points, [])}]}))
    assert run(*arguments_of("genhmr", files), save_picture(tmp_path / "photo.png"), "--out",
               tmp_path / "out", "--box", "30,20,45,60", "--keypoints", tmp_path / "k.json",
               "--refine", "4", "--iterations", "3") == 0
    output = capsys.readouterr().out
    assert output.startswith("refined against 17 keypoints") and "k.json): energy" in output
    body = bodymodels.load_model("body")
    assert_written(tmp_path / "out", {"faces": body.faces.numpy()} | genhmr.predict(
        weights.genhmr.load_checkpoint(files["genhmr"]), body, picture(), box=(30, 20, 45, 60),
        iterations=3, refinement=4, keypoints=to_smpl45(np.array(points))))


INSTALL = ("MediaPipe cannot be used (import of mediapipe halted; None in sys.modules): "
           "pip install mediapipe==0.10.21")


@pytest.mark.parametrize(("arguments", "line"), [
    (["--refine", "0"], "not refined: --refine 0"),
    (["--keypoints", "unseen.json"], "not refined: unseen.json sees nobody in the picture"),
    ([], f"not refined: no --keypoints, and {INSTALL}"),
    (["--refine", "0", "--fit-camera"], f"camera not fitted: no --keypoints, and {INSTALL}"),
    (["--refine", "0", "--fit-camera", "--keypoints", "seen.json"],
     "camera fitted to 2 keypoints"),
    (["--refine", "0", "--fit-camera", "--keypoints", "one.json"], "camera not fitted: the keypoin"
     "ts do not determine it")])
def test_what_was_not_done_is_said(arguments, line, files, tmp_path, monkeypatch, capsys):
    """The command succeeds and says why it did not refine, or had no keypoints to fit."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)  # as if it were not installed
    monkeypatch.chdir(tmp_path)
    save_picture(tmp_path / "photo.png")
    found = genhmr.predict(weights.genhmr.load_checkpoint(files["genhmr"]),
                           bodymodels.load_model("body"), picture())["keypoints_2d"]
    seen = [0.0] * 75
    for name in "nose", "left_wrist":  # where the network sees them, so that a camera fits
        row = 3 * bodymodels.JOINT_SETS["openpose25"].index(name)
        seen[row:row + 3] = *found[SMPL45.index(name)].clip(1, 89).tolist(), 1.0
    for name, numbers in (("unseen", [0] * 75), ("one", [50, 20, 1] + [0] * 72), ("seen", seen)):
        (tmp_path / f"{name}.json").write_text(
            f'{{"people": [{{"pose_keypoints_2d": {numbers}}}]}}')
    assert run(*arguments_of("genhmr", files), "photo.png", "--box", "whole", *arguments) == 0
    first, *rest, _, _, last = capsys.readouterr().out.splitlines()
    assert first == line and last.startswith("wrote output/photo_overlay.png")
    rest = [line for line in rest if not line.startswith("warning")]
    assert rest == (["not refined: --refine 0"] if "--fit-camera" in arguments else [])


@pytest.mark.parametrize(("energies", "steps", "words"), [
    ((9.0, 4.0), 50, []), ((4.0, 4.0), 50, []), ((4.0, 9.0), 1, ["--refine 50"]),
    ((4.0, 9.0), 50, ["--refine 100"])])
def test_a_refinement_that_raised_the_energy_is_warned_of(energies, steps, words, files,
                                                          monkeypatch):
    """After the line of the refinement, with more steps than were taken; one keypoint is one."""
    arrays = {"energies": np.array(energies), "confidence": np.eye(45)[0], "fitted": False,
              "keypoints_2d": None}
    monkeypatch.setattr(genhmr, "predict", lambda *_, **__: arrays)
    one = demo.load_genhmr(demo.parser().parse_args(
        [*arguments_of("genhmr", files), "--refine", str(steps)])).one
    first, *notes = one(picture(), Found(keypoints=np.zeros((45, 3))), None).notes
    assert first.startswith("refined against 1 keypoint (MediaPipe): energy ")
    assert len(notes) == len(words) and all(map(str.__contains__, notes, words))


def test_people_are_found(files, tmp_path, capsys, monkeypatch):
    """MediaPipe's person is refined on; the network sees no background, the overlay does."""
    keypoints, seen = np.zeros((45, 3)), []
    for name, x, y in (("left_shoulder", 70, 30), ("right_shoulder", 50, 30), ("left_hip", 68, 40),
                       ("right_hip", 52, 40)):
        keypoints[SMPL45.index(name)] = x, y, 0.9
    mask = np.zeros((90, 120), np.float32)
    mask[20:60, 40:80] = 1
    found = Found((45, 25, 30, 30), "right", keypoints, mask)
    monkeypatch.setattr(finders, "find_people", lambda image, box=None: [found])
    predict = genhmr.predict
    monkeypatch.setattr(genhmr, "predict", lambda model, body, image, **options: seen.append(image)
                        or predict(model, body, image, **options))
    for box in ([], ["--box", "40,20,40,40"]):
        assert run(*arguments_of("genhmr", files), save_picture(tmp_path / "photo.png"), "--out",
                   tmp_path / "out", *box) == 0
        assert "refined against 4 keypoints (MediaPipe)" in capsys.readouterr().out
    assert all((image[mask == 0] == finders.GREY).all()
               and np.array_equal(image[mask == 1], picture()[mask == 1]) for image in seen)
    overlay = data.read_image(tmp_path / "out" / "photo_overlay.png")
    assert (overlay == picture()).all(-1)[mask == 0].mean() > 0.3


# ------------------------------------------------------------------------------- hmr_adapter


def test_hmr_adapter_on_a_picture(files, tmp_path, capsys, monkeypatch):
    """Two checkpoints give whole bodies, with MediaPipe's boxes of hands, where it sees them."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    arguments = [*arguments_of("hmr_adapter", files), save_picture(tmp_path / "one.png"), "--out",
                 tmp_path / "out", "--box", "5,5,40,50"]
    assert run(*arguments) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == written_of("one")
    arrays = np.load(tmp_path / "out" / "one.npz")
    assert arrays["vertices"].shape == (10475, 3) and arrays["right_hand_pose"].shape == (45,)
    said = capsys.readouterr().out.splitlines()
    assert f"not checked: {INSTALL}" in said and said[-3] == "trained on unknown data"
    hands = np.array([(10.0, 20, 8, 9), (np.nan,) * 4])
    person = Found((5, 5, 40, 50), keypoints=np.zeros((45, 3)), hands=hands)
    monkeypatch.setattr(finders, "find", lambda *_, hands: [person] if hands else [])
    assert run(*arguments) == 0
    found = np.load(tmp_path / "out" / "one.npz")["hand_boxes"]
    assert np.allclose(found[0], hands[0]) and np.allclose(found[1], arrays["hand_boxes"][1])


def test_hands_alone_are_smooth_and_posed_again(files, tmp_path, capsys, monkeypatch):
    """The vertices of a smooth left or right hand are those of its smooth arrays; sides are not
    mixed; without keypoints it is said that nothing checks them."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    for number in range(3):
        Image.fromarray(np.roll(picture(), 3 * number, 1)).save(tmp_path / f"{number}.png")
    boxes = ["--box", "30,20,45,60", "--box", "30,20,45,60,left"]
    hand = bodymodels.load_model("hand_right")
    for flags in [], ["--smooth", 30]:
        assert run("hmr_adapter", "--hand", files["hand"], tmp_path, *boxes, *flags, "--out",
                   tmp_path / "out") == 0
        assert f"0.png: hand 2: not checked: {INSTALL}" in capsys.readouterr().out
        for side, sign in (1, (1, 1, 1)), (2, (-1, 1, 1)):
            found = [dict(np.load(tmp_path / "out" / f"{number}_{side}.npz"))
                     for number in range(3)]
            for arrays in found:
                assert arrays["side"] == 2 - side
                betas, turns, transl = (torch.tensor(arrays[name])[None]
                                        for name in ("betas", "rotations", "transl"))
                turns = turns if side == 1 else hmr_adapter.mirror(turns)
                posed = hand(betas, turns, transl=transl * torch.tensor(sign))
                for name in "vertices", "joints":
                    assert np.allclose(arrays[name], getattr(posed, name)[0] * torch.tensor(sign),
                                       atol=1e-5)
                assert np.array_equal(arrays["root"], arrays["joints"][0])
            same = np.ptp([arrays["betas"] for arrays in found], 0).max() < 1e-6
            assert same == bool(flags)


def test_hmr_adapter_s_joints_are_compared_by_name(files):
    """Keypoints where the mesh has its joints of that name fit, those of its mirror image do not;
    the body expert's own are its joints of that name, too."""
    one = demo.load_hmr_adapter(demo.parser().parse_args(arguments_of("hmr_adapter", files))).one
    result = one(noise(), Found((10, 10, 60, 70)), None)
    joints = bodymodels.project(result.arrays["joints"], result.arrays["K"])
    names = bodymodels.JOINT_SETS["smplx55"]
    for index, name in enumerate(SMPL45):
        if name in names:
            assert np.allclose(result.mesh[index], joints[names.index(name)])
        else:
            assert np.isnan(result.mesh[index]).all() and result.own[index, 2] == 0
    keypoints_2d = result.arrays["keypoints_2d"]
    wrists = [SMPL45.index(f"{side}_wrist") for side in ("left", "right")]
    rows = [hmr_adapter.POSITIONED.index(names.index(f"{side}_wrist"))
            for side in ("left", "right")]
    assert np.allclose(result.own[wrists, :2], keypoints_2d[rows])
    assert (result.own[wrists, 2] == 1).all() and (result.own[:, 2] > 0).sum() >= 14


def release(model: nn.Module) -> dict:
    """A checkpoint of a release's layout: weights by name, and no config of ours."""
    state = {name: value for name, value in model.state_dict().items() if name != "hand_mean"}
    return {"state_dict" if isinstance(model, HandExpert) else "network": state,
            "hyper_parameters": {}}


@pytest.mark.parametrize("given", [("hand", "body"), ("hand",), ("body",)])
def test_released_weights_need_official_models(given, models, few_vertices, tmp_path, monkeypatch,
                                               capsys):
    """HaMeR's and SMPLer-X's files give one merged SMPL-X mesh, each alone its own mesh.

    The fingers of SMPLer-X are relative to the mean hand of the SMPL-X file; the mesh models of
    the project, whose shapes these weights do not know, are refused.
    """
    for name in ("HandExpertConfig", "BodyExpertConfig"):  # of tiny networks in place of ViT-H
        tiny = (TINY_HAND if name[0] == "H" else TINY_BODY).expert
        monkeypatch.setattr(hmr_adapter, name, partial(replace, tiny))
    experts = {"hand": lively(HandExpert(TINY_HAND.expert)).eval(),
               "body": lively(BodyExpert(TINY_BODY.expert)).eval()}
    arguments = ["hmr_adapter", save_picture(tmp_path / "one.png"), "--box", "5,5,40,50", "--out",
                 tmp_path / "out"]
    for part in given:
        torch.save(release(experts[part]), tmp_path / f"{part}.ckpt")
        arguments += [f"--{part}", tmp_path / f"{part}.ckpt"]
    assert run(*arguments) == 2 and "add --model" in capsys.readouterr().err
    model = models / ("SMPLX_NEUTRAL.npz" if "body" in given else "MANO_RIGHT.npz")
    assert run(*arguments, "--model", model) == 0
    assert "weights of the authors" in capsys.readouterr().out
    arrays = np.load(tmp_path / "out" / "one.npz")
    if "body" not in given:
        assert arrays["vertices"].shape == (778, 3) and arrays["rotations"].shape == (16, 3, 3)
        return
    assert arrays["vertices"].shape == (1577, 3) and arrays["hand_valid"].any() == (len(given) > 1)
    mean = weights.hmr_adapter.hand_mean(model)
    path = weights.hmr_adapter.load_path(BodyAdapter, tmp_path / "body.ckpt", hand_mean=mean)
    assert torch.equal(path.expert.hand_mean, mean) and mean.abs().max() > 0.1
    assert path.expert.config.box_margin == 1.2  # SMPLer-X's bbox_ratio


# ----------------------------------------------------------------------------------- cameras


@pytest.mark.parametrize("network", demo.LOADERS)
def test_my_camera_reaches_every_network(network, files, tmp_path, capsys, monkeypatch):
    """--focal F and --K FILE with the same numbers give the same mesh in that camera."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    (tmp_path / "K.txt").write_text("# fx 0 cx\n300.0, 0, 60\n0, 300, 45\n\n0 0 1\n")
    found = []
    for flags in ["--focal", 300], ["--K", tmp_path / "K.txt"]:
        assert run(*arguments_of(network, files), save_picture(tmp_path / "photo.png"), "--box",
                   "30,20,45,60", "--out", tmp_path, *flags) == 0
        assert "conventional" not in capsys.readouterr().out
        found.append(dict(np.load(tmp_path / "photo.npz")))
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
    assert found[1]["K"][0, 0] == 300
    with pytest.raises(SystemExit):  # of argparse: one or the other
        run(network, "photo.png", "--focal", 300, "--K", tmp_path / "K.txt")
    assert "not allowed with" in capsys.readouterr().err


def test_frames_of_a_video_are_smoothed(files, tmp_path, capsys, monkeypatch):
    """--smooth gives every person of a folder of frames one shape and one camera, and changes what
    is written, not what is said; a frame that fails is left out."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    for number in range(3):
        Image.fromarray(np.roll(picture(), 3 * number, 1)).save(tmp_path / f"{number}.png")
    (tmp_path / "1_broken.png").touch()
    for network in demo.LOADERS:
        arguments = [*arguments_of(network, files), tmp_path, "--box", "30,20,45,60"]
        written, said = [], []
        for flags in ["--focal", 150], ["--smooth", 30]:  # the picture's diagonal
            out = tmp_path / f"{network}{flags[0]}"
            assert run(*arguments, *flags, "--out", out) == 2
            said.append([line for line in capsys.readouterr().out.splitlines() if "png: " in line])
            written.append([dict(np.load(out / f"{number}.npz")) for number in range(3)])
        raw, smooth = written
        assert said[0] == said[1] and (smooth[0]["K"] == raw[0]["K"]).all()
        assert not np.allclose(raw[1]["vertices"], smooth[1]["vertices"], atol=1e-5)
        if "betas" in raw[0]:
            mean = np.mean([arrays["betas"] for arrays in raw], 0)
            assert all(np.allclose(arrays["betas"], mean, atol=1e-5) for arrays in smooth)
        apart = [np.abs(np.diff([arrays["joints"] for arrays in each], 2, 0)).sum()
                 for each in written]
        assert apart[1] < apart[0]
        assert set(smooth[0]) == set(raw[0])


def test_frames_of_different_sizes_are_no_video(files, tmp_path, capsys, monkeypatch):
    """They have no common camera, unless --K says so; nothing is written."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    save_picture(tmp_path / "1.png")
    Image.fromarray(picture()[:80]).save(tmp_path / "2.png")
    np.savetxt(tmp_path / "K.txt", [[300.0, 0, 60], [0, 300, 45], [0, 0, 1]])
    arguments = [*arguments_of("simplehand", files), tmp_path, "--box", "30,20,45,60", "--out",
                 tmp_path / "out", "--smooth", 30]
    for flags in [], ["--focal", 300]:
        assert run(*arguments, *flags) == 2 and not (tmp_path / "out").exists()
        assert "--smooth: the frames have different sizes" in capsys.readouterr().err
    assert run(*arguments, "--K", tmp_path / "K.txt") == 0


def test_a_picture_that_takes_too_much_memory_stops_no_other(files, tmp_path, capsys, monkeypatch):
    """RuntimeErrors of torch are one line with the picture's name, too."""
    for name in "a.png", "b.png":
        save_picture(tmp_path / name)
    predict, calls = simplehand.predict, []

    def fail_once(*arguments, **options) -> dict[str, np.ndarray]:
        calls.append(1)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return predict(*arguments, **options)

    monkeypatch.setattr(simplehand, "predict", fail_once)
    assert run(*arguments_of("simplehand", files), tmp_path, "--box", "30,20,45,60", "--out",
               tmp_path / "out") == 2
    assert capsys.readouterr().err == f"demo.py: {tmp_path / 'a.png'}: CUDA out of memory.\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == written_of("b")


# ---------------------------------------------------------------------------------- commands


def test_summary_counts_every_parameter_once(capsys, monkeypatch):
    """--summary names every preset; its parts add up to the whole model."""
    monkeypatch.setattr(demo, "ALL_PRESETS", {"paper": simplehand.PRESETS["paper"]})
    for module in genhmr, hmr_adapter:
        monkeypatch.setattr(module, "PRESETS", {"paper": module.PRESETS["paper"]})
    for network in demo.LOADERS:
        assert run(network, "--summary") == 0
        heading, *lines = capsys.readouterr().out.splitlines()
        assert heading.split() == ["paper", "parameters"]
        *parts, total = (int(line.split()[-1].replace(",", "")) for line in lines)
        assert sum(parts) == total == {"simplehand": 49_391_003, "genhmr": total,
                                       "hmr_adapter": 1_395_505_161}[network]
        assert total > 5e8 or network == "simplehand"


BAD = {  # what is wrong, network: flags -> a part of the message
    "missing picture": (["simplehand", "nowhere.png"], "nowhere.png"),
    "no picture": (["genhmr"], "name a picture"),
    "video": (["genhmr", "clip.mp4"], "ffmpeg -i clip.mp4"),
    "no checkpoint": (["simplehand", "photo.png", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
    "SimpleHand's": (["genhmr", "photo.png", "--checkpoint", "SIMPLEHAND"], "GenHMR"),
    "body for hands": (["hmr_adapter", "photo.png", "--hand", "BODY"], "expected a HandAdapter"),
    "letters in box": (["simplehand", "photo.png", "--box", "a,b"], "x,y,width,height"),
    "box beside the person": (["genhmr", "photo.png", "--box", "500,500,10,10"], "120 x 90"),
    "body for a hand": (["simplehand", "photo.png", "--hand", "body"], "16 joints"),
    "MANO's without --hand": (["simplehand", "photo.png", "--checkpoint", "freihand.pt"],
                              "add --hand MANO_RIGHT.pkl"),
    "free hand's with another": (["simplehand", "photo.png", "--checkpoint", "rendered.pt",
                                  "--hand", "hand_left"], "leave out --hand"),
    "no folder to export to": (["simplehand", "--checkpoint", "rendered.pt", "--export",
                                "nowhere/hand.pt2"], "create the folder"),
    "export to a folder": (["simplehand", "--checkpoint", "rendered.pt", "--export", "."],
                           "cannot write .: it is a folder"),
    "empty checkpoint": (["simplehand", "photo.png", "--checkpoint", "clip.mp4"], "(it is empty)"),
    "text as checkpoint": (["simplehand", "photo.png", "--checkpoint", "K.txt"],
                           "K.txt is not a readable checkpoint (UnpicklingError: "),
    "keypoints of two": (["genhmr", "photo.png", "photo.png", "--keypoints", "k.json"],
                         "--keypoints: one file is of one picture; give one PICTURE"),
    "out is a file": (["genhmr", "photo.png", "--out", "K.txt", "--checkpoint", "nowhere.pt"],
                      "--out K.txt: cannot be made (File exists)"),
    "no MediaPipe": (["simplehand", "photo.png"],
                     "give the hand's place in pixels, --box X,Y,WIDTH,HEIGHT"),
    "nobody": (["genhmr", "photo.png"], "give the person's place in pixels"),
    "no such device": (["genhmr", "photo.png", "--device", "cuda:99"], "--device cuda:99"),
    "device without numbers": (["genhmr", "photo.png", "--device", "meta"], "--device meta: this"),
    **{f"focal {value}": (["simplehand", "photo.png", "--focal", value],
                          f"--focal {float(value)}: expected pixels, such as 1500")
       for value in ("0", "-5", "nan", "inf")},
    "no iterations": (["genhmr", "photo.png", "--iterations", "0"], "--iterations 0: expected 1"),
    "refine back": (["genhmr", "photo.png", "--refine", "-1"], "--refine -1: expected 0 or more"),
    "no frames a second": (["genhmr", "photo.png", "--smooth", "0"], "such as 30"),
    "no camera": (["hmr_adapter", "photo.png", "--box", "whole", "--K", "nowhere.txt"],
                  "--K nowhere.txt: expected a text file of 3 x 3 numbers"),
    "camera of two rows": (["hmr_adapter", "photo.png", "--box", "whole", "--K", "K.txt"],
                           "--K K.txt: expected a text file of 3 x 3 numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, files, tmp_path, monkeypatch, capsys):
    """Exit code 2, one line on stderr that names the problem, no file written."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)  # as if it were not installed
    monkeypatch.chdir(tmp_path)
    save_picture(tmp_path / "photo.png")
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "K.txt").write_text("300 0 60\n0 300 45")
    for kind in ("freihand", "rendered"):
        content = torch.load(files["simplehand"], weights_only=True)
        torch.save(content | {"data": kind}, tmp_path / f"{kind}.pt")
    before = sorted(tmp_path.iterdir())
    (network, *flags), message = BAD[case]
    flags = [files.get(flag.lower(), flag) if flag.isupper() else flag for flag in flags]
    assert run(*arguments_of(network, files), *flags) == 2
    output = capsys.readouterr()
    assert output.err.startswith("demo.py: ") and output.err.count("\n") == 1
    assert message in output.err and not output.out
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path not in before]


@pytest.mark.slow
def test_as_a_process_from_another_folder(files, tmp_path):
    """Run as a user does; the picture stays as it is."""
    shutil.copy(ASTRONAUT, tmp_path)
    before = ASTRONAUT.read_bytes()
    result = subprocess.run(
        [sys.executable, ROOT / "demo.py", "genhmr", "astronaut.jpg", "--checkpoint",
         files["genhmr"], "--out", ".", "--keypoints", ASTRONAUT_KEYPOINTS], cwd=tmp_path,
        capture_output=True, text=True)
    assert result.returncode == 0 and "refined against 9 keypoints" in result.stdout, result.stderr
    assert (tmp_path / "astronaut_overlay.png").is_file()
    assert (tmp_path / "astronaut.jpg").read_bytes() == before
