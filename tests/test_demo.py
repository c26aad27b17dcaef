"""demo.py: pictures and folders, the three networks, warnings, cameras, and what is written."""

import io
import math
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

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
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from simplehand_samples import TINY as TINY_SIMPLEHAND
from simplehand_samples import checkpoint_of, images, randomise, trained_model
from torch import nn

import bodymodels
import data
import demo
import genhmr
import simplehand
import weights.genhmr
import weights.hmr_adapter
import weights.simplehand
from demo import Result
from hmr_adapter import BodyAdapter, BodyExpert, HandExpert
from networks import finders
from networks.finders import Found
from sets.images import picture_files, to_smpl45

ROOT = Path(demo.__file__).parent
ASTRONAUT, ASTRONAUT_KEYPOINTS = (ROOT / "assets" / f"astronaut{end}"
                                  for end in (".jpg", "_keypoints.json"))
TINY_GENHMR = genhmr.Config(
    tokenizer=genhmr.TokenizerConfig(codebook_size=64, code_dim=16, width=32, depth=1),
    image_size=128, vit_dim=32, vit_depth=1, vit_heads=2, vit_drop_path=0.0, scales=(1, 2),
    pyramid_width=16, width=16, heads=2, points=2, layers=2, ffn=32, regressor_width=16)
ENDINGS = ("_overlay.png", "_side.png", ".npz", ".obj", ".ply", ".glb")
SMPL45 = bodymodels.JOINT_SETS["smpl45"]


def picture(height: int = 90, width: int = 120) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3))
    return np.kron(small, np.ones((10, 10, 1))).astype(np.uint8)


def save_picture(path: Path) -> Path:
    Image.fromarray(picture()).save(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of tiny networks whose outputs are not all in the middle."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    model = genhmr.GenHMR(TINY_GENHMR)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    contents = {"simplehand": checkpoint_of(trained_model()),
                "genhmr": {"model": model.state_dict(), "config": asdict(TINY_GENHMR)},
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


def run(*arguments) -> int:
    return demo.main([str(argument) for argument in arguments])


# ---------------------------------------------------------------------------------- pictures


def test_boxes_may_start_with_a_minus(files, tmp_path):
    """A box may begin outside of the picture; its numbers are no flag. Other flags stay flags."""
    words = ["simplehand", "a.png", "--box", "-5,-.5,9,9", "--left", "--box", "whole"]
    read = demo.parser().parse_args(words)
    assert read.box == ["-5,-.5,9,9", "whole"] and read.left


def test_folders_give_their_pictures(tmp_path):
    """Files that are pictures by their ending, by name; not others, not hidden ones, as macOS
    writes them, and not our own results. What is named itself is taken whatever its ending."""
    for name in ("b.JPG", "a.png", "notes.txt", "._a.png", "a_overlay.png", "b_1_side.png"):
        (tmp_path / name).touch()
    other = tmp_path / "notes.txt"
    assert list(picture_files([tmp_path, other]).items()) == [
        ("a", tmp_path / "a.png"), ("b", tmp_path / "b.JPG"), ("notes", other)]


@given(st.lists(st.sampled_from(["a.jpg", "a.png", "x/a.png", "x/a.jpg", "b.png", "y/a.png"]),
                min_size=1, max_size=8))
def test_pictures_of_one_name_have_different_results(names):
    """Each picture has a name of its own, and a picture alone its own without ending."""
    paths = [Path(name) for name in names]
    found = picture_files(paths)
    assert list(found.values()) == paths
    assert all(path.stem in name for name, path in found.items())
    assert list(picture_files(paths[:1])) == [paths[0].stem]


def test_missing_pictures_and_videos_are_named(tmp_path, capsys):
    """No picture, an empty folder and a video: one message each, the last with the command that
    writes its frames. Pictures beside a video are taken."""
    with pytest.raises(ValueError, match="name a picture"):
        picture_files([])
    with pytest.raises(ValueError, match="has no pictures"):
        picture_files([tmp_path])
    video = tmp_path / "clip.MP4"
    video.touch()
    for path in (video, tmp_path):
        with pytest.raises(ValueError, match=r"ffmpeg -i .*clip.MP4 frames/%05d.png"):
            picture_files([path])
    (tmp_path / "a.png").touch()
    assert list(picture_files([tmp_path])) == ["a"] and "ffmpeg" in capsys.readouterr().err


def test_unknown_devices_are_refused():
    """A device that the machine or torch does not have is one message that names the flag."""
    assert demo.find_device("cpu").type == "cpu"
    for name in ("cpuu", "cuda:99", ""):
        with pytest.raises(ValueError, match="^--device"):
            demo.find_device(name)


# ------------------------------------------------------------------------------------- notes


@pytest.mark.parametrize(("box", "warning"), [
    ((10, 10, 50, 60), ""), (None, ""), ((10, 10, 5, 20), "5 x 20 px, too small"),
    ((-60, 0, 100, 90), "40 % of the box"), ((80, 0, 40, 90), "")])
def test_boxes_that_show_little_are_warned_of(box, warning):
    """Of a tiny box and of one that is mostly outside of the 120 x 90 picture."""
    notes = demo.box_notes(box, (90, 120, 3))
    assert len(notes) == bool(warning) and warning in "".join(notes)


def rows(points: np.ndarray, confidence: float = 1.0) -> np.ndarray:
    return np.column_stack((points, np.full(len(points), confidence)))


@pytest.mark.parametrize(("given", "own", "warning"), [
    (None, None, ""), ((6, 8), None, "(file)"), ((3, 4), None, ""), (None, (6, 8), "of the net"),
    (None, (3, 4), ""), ((3, 4), (6, 8), ""), ((6, 8), (3, 4), "(file)")])
def test_a_mesh_beside_its_keypoints_is_warned_of(given, own, warning):
    """Given keypoints judge alone, the network's own only without them; a limit for each."""
    mesh = np.random.default_rng(0).uniform(0, 80, (45, 2))
    result = Result({"box": np.array([0, 0, 140, 140])}, np.zeros((0, 3)), [], mesh,
                    own and rows(mesh + own, 0.1))
    found = Found((0, 0, 64, 80), "right", given and rows(mesh + given), source="file")
    notes = demo.fit_notes(result, found, 0.06)
    assert demo.MISFIT == 0.1 and len(notes) == bool(warning == "of the net")
    notes = demo.fit_notes(result, found._replace(box=(0, 0, 60, 75)), 0.06)  # 10 of 94 px
    assert len(notes) == bool(warning) and warning in "".join(notes)
    unsure = found._replace(keypoints=None if given is None else rows(mesh + given, 0.2))
    result = result._replace(own=own and rows(mesh + own, 0.0))
    assert demo.fit_notes(result, unsure, 0.06) == []
    nothing = result._replace(mesh=np.full((45, 2), np.nan))  # joints that a mesh does not have
    assert demo.fit_notes(nothing, found, 0.06) == []


@pytest.mark.slow
def test_keypoints_of_somebody_else_are_told():
    """On a rendered person the shipped checkpoint's mesh fits; pulled elsewhere, it does not."""
    person = data.RenderedBodies("train", length=4, seed=5, views=30.0, lean=45.0)[1]
    load, _, _ = demo.load_genhmr(demo.parser().parse_args(["genhmr", "--fit-camera"]))
    image = person["image"].permute(1, 2, 0).numpy()
    true = np.column_stack((person["keypoints_2d"], person["keypoints_valid"]))
    for shift in 0, 40:
        found = Found((16, 11, 80, 107), "right", true, source="file")
        result = load(image, found, None)
        moved = found._replace(keypoints=true + (shift, 0, 0))
        assert len(demo.fit_notes(result, moved, 0.07)) == (shift > 0)


# -------------------------------------------------------------------------------- simplehand

KINDS = {"right": "taken for a right hand; for a left one add --left", "left": "a left hand"}


@pytest.mark.parametrize("side", ["right", "left"])
def test_simplehand_on_a_picture(files, tmp_path, capsys, side):
    """Writes the overlay, the side view, three mesh files and the documented arrays."""
    photo = save_picture(tmp_path / "photo.png")
    assert run(*arguments_of("simplehand", files), photo, "--out", tmp_path / "out", "--box",
               "30,20,60,40", *["--left"] * (side == "left")) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == KINDS[side] and said[-3] == "trained on unknown data"
    assert "distances are conventional" in said[-2]
    assert said[-1].startswith(f"wrote {tmp_path}/out/photo_overlay.png, photo_side.png")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"photo{ending}" for ending in ENDINGS}
    assert data.read_image(tmp_path / "out" / "photo_overlay.png").shape == (90, 120, 3)
    hand = bodymodels.load_model("hand_right")
    with np.load(tmp_path / "out" / "photo.npz") as arrays:
        expected = simplehand.predict(weights.simplehand.load_checkpoint(files["simplehand"]),
                                      picture(), hand.keypoint_regressor, box=(30, 20, 60, 40),
                                      side=side)
        assert set(arrays) == set(expected) | {"faces"}
        for name, value in expected.items():
            assert np.allclose(arrays[name], value, atol=1e-3), name
        outward = hand.faces.numpy() if side == "right" else hand.faces.numpy()[:, ::-1]
        assert np.array_equal(arrays["faces"], outward)
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
    assert written == {f"{name}_{end}.png" for name in "ac" for end in ("overlay", "side")} | {
        f"{name}_{number}{ending}" for name in "ac" for number in (1, 2) for ending in ENDINGS[2:]}


def test_hands_are_found(files, tmp_path, capsys, monkeypatch):
    """Without --box the hands that MediaPipe finds are taken, with their sides and keypoints; in a
    box the given side counts, and MediaPipe's keypoints judge the mesh."""
    found = [Found((30, 20, 60, 40), "left", np.tile([5.0, 5, 1], (21, 1)))]
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


def test_the_view_of_real_photographs():
    """The shipped checkpoint finds wrist and index knuckle of a real left hand in two poses.

    They were marked by eye. The fist's knuckle is far off. The command warns of all but the first.
    """
    one, _, _ = demo.load_simplehand(demo.parser().parse_args(["simplehand", "--box", "whole"]))
    for name, box, marked, limit in (
            ("pointing", (150, 90, 255, 440), [(215, 515), (195, 345)], 0.2),
            ("hook", (140, 190, 255, 330), [(215, 515), (175, 350)], 0.2),
            ("fist", (128, 257, 245, 265), [(210, 515), (165, 345)], 0.3)):
        picture = data.read_image(ROOT / "assets" / f"hand_{name}.jpg")
        result = one(picture, Found(box, "left"), None)
        apart = np.linalg.norm(result.mesh[[0, 5]] - marked, axis=1)
        assert (apart < limit * max(box[2:])).all()
        assert result.notes[0] == "a left hand"
        unsure = any("not sure where the keypoints are" in note for note in result.notes)
        assert unsure == (name != "pointing")


@pytest.mark.parametrize(("spread", "other", "side", "words"), [
    (0.09, 0.09, "right", []), (0.11, 0.11, "right", ["not sure"]),
    (0.09, 0.06, "right", ["add --left"]), (0.09, 0.06, "left", ["leave out left"]),
    (0.11, 0.06, "left", ["leave out left", "not sure"])])
def test_unsure_heat_maps_are_told(spread, other, side, words, monkeypatch):
    """Wider heat maps than SPREAD: a warning. Much narrower ones of the mirrored hand: another."""
    def predict(*_, side: str, **__) -> dict[str, np.ndarray]:
        arrays = {"joints": np.ones((21, 3)), "K": np.eye(3), "side": int(side == "right")}
        return arrays | {"spread_2d": np.full(21, spread if side == given else other)}

    given = side
    one, _, _ = demo.load_simplehand(demo.parser().parse_args(["simplehand", "--box", "whole"]))
    monkeypatch.setattr(simplehand, "predict", predict)
    notes = one(picture(), Found(None, side), None).notes[1:]
    assert len(notes) == len(words) and all(map(str.__contains__, notes, words))


@pytest.mark.parametrize(("kind", "views", "words"), [
    ("rendered", 15, "within 15 degrees"), ("rendered", 90, "from all sides"),
    ("unknown data", 90, "trained on unknown data")])
def test_the_checkpoint_says_what_it_has_seen(kind, views, words, tmp_path):
    """One line from the checkpoint's data and config, not from its name."""
    torch.save(checkpoint_of(trained_model(), data=kind, settings={"views": views}),
               tmp_path / "one.pt")
    _, _, line = demo.load_simplehand(demo.parser().parse_args(
        ["simplehand", "--checkpoint", str(tmp_path / "one.pt")]))
    assert words in line and "\n" not in line


@pytest.mark.slow
@pytest.mark.parametrize("official", [False, True])
def test_exported_files_compute_the_same(tmp_path, capsys, official):
    """--export writes a file that torch.export alone loads, for any batch and on any device, with
    our answers."""
    path, checkpoint = tmp_path / "hand.pt2", tmp_path / "hand.pt"
    trained = randomise(simplehand.SimpleHand(replace(
        TINY_SIMPLEHAND, depths=(1, 1, 1, 1), tokens=(21,), dims=(8,), blocks=(1,),
        official=official)))
    torch.save(checkpoint_of(trained), checkpoint)
    assert run("simplehand", "--checkpoint", checkpoint, "--export", path) == 0
    assert "differs by" in capsys.readouterr().out
    module = torch.export.load(path).module()
    for batch in (1, 5):
        with torch.no_grad():
            expected, found = trained(images(batch)), module(images(batch))
        for name, value in expected.items():
            assert torch.allclose(found[name], value, atol=1e-5), name
    assert {file.name for file in tmp_path.iterdir()} == {"hand.pt", "hand.pt2"}
    found = module.to("meta")(images(2).to("meta"))
    assert all(value.device.type == "meta" for value in found.values())


def test_onnx_is_written_or_its_exporter_named(files, tmp_path, capsys):
    """With the exporter: the same answers, as onnxruntime says; without: one line names it."""
    arguments = [*arguments_of("simplehand", files), "--export", tmp_path / "hand.onnx"]
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        assert run(*arguments) == 2
        assert "pip install onnx onnxscript" in capsys.readouterr().err
    else:
        assert run(*arguments) == 0
        difference = float(capsys.readouterr().out.split()[-1])
        assert math.isnan(difference) or difference < 1e-4


# ------------------------------------------------------------------------------------ genhmr


def test_genhmr_on_a_picture(files, tmp_path, capsys):
    """Writes what SimpleHand does, and says how far the refinement came."""
    photo = save_picture(tmp_path / "photo.png")
    points = [[40 + index, 50 + index, 0.9] for index in range(17)]
    (tmp_path / "k.json").write_text(str([{"image_id": 1, "keypoints": sum(points, [])}]).replace(
        "'", '"'))
    assert run(*arguments_of("genhmr", files), photo, "--out", tmp_path / "out", "--box",
               "30,20,45,60", "--keypoints", tmp_path / "k.json", "--refine", "4", "--iterations",
               "3") == 0
    output = capsys.readouterr().out
    assert output.startswith("refined against 17 keypoints") and "k.json): energy" in output
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"photo{ending}" for ending in ENDINGS}
    body = bodymodels.load_model("body")
    expected = genhmr.predict(
        weights.genhmr.load_checkpoint(files["genhmr"]), body, picture(), box=(30, 20, 45, 60),
        iterations=3, refinement=4, keypoints=to_smpl45(np.array(points)))
    with np.load(tmp_path / "out" / "photo.npz") as arrays:
        assert set(arrays) == set(expected) | {"faces"}
        for name, value in expected.items():
            assert np.allclose(arrays[name], value, atol=1e-3), name
        assert np.array_equal(arrays["faces"], body.faces)


INSTALL = "no --keypoints, and mediapipe is not installed: pip install mediapipe==0.10.21"


@pytest.mark.parametrize(("arguments", "line"), [
    (["--refine", "0"], "not refined: --refine 0"),
    (["--keypoints", "unseen.json"], "not refined: unseen.json sees nobody"),
    ([], f"not refined: {INSTALL}"),
    (["--refine", "0", "--fit-camera"], f"camera not fitted: {INSTALL}"),
    (["--refine", "0", "--fit-camera", "--keypoints", "seen.json"],
     "camera fitted to 2 keypoints"),
    (["--refine", "0", "--fit-camera", "--keypoints", "one.json"],
     "camera not fitted: the keypoints do not determine it"),
])
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


def test_people_are_found(files, tmp_path, capsys, monkeypatch):
    """MediaPipe's person is refined on; who is seen from behind is warned of, if training had
    nobody like that; the network sees no background, the overlay does."""
    keypoints, seen = np.zeros((45, 3)), []
    for index, (name, x) in enumerate((("left_shoulder", 50), ("right_shoulder", 70),
                                       ("left_hip", 52), ("right_hip", 68))):
        keypoints[SMPL45.index(name)] = x, 30 + 10 * (index > 1), 0.9
    mask = np.zeros((90, 120), np.float32)
    mask[20:60, 40:80] = 1
    found = Found((45, 25, 30, 30), "right", keypoints, mask)
    monkeypatch.setattr(finders, "find_people", lambda image, box=None: [found])
    predict = genhmr.predict
    monkeypatch.setattr(genhmr, "predict", lambda model, body, image, **options: seen.append(image)
                        or predict(model, body, image, **options))
    config = torch.load(files["genhmr"], weights_only=True)
    for views, behind in (30.0, True), (180.0, False):
        config["config"]["views"] = views
        torch.save(config, tmp_path / "one.pt")
        for box in ([], ["--box", "40,20,40,40"]):
            assert run("genhmr", "--checkpoint", tmp_path / "one.pt", "--out", tmp_path / "out",
                       save_picture(tmp_path / "photo.png"), *box) == 0
            said = capsys.readouterr().out
            assert ("seen from behind" in said) == behind
            assert "refined against 4 keypoints (MediaPipe)" in said
    assert all((image[mask == 0] == demo.GREY).all() for image in seen)
    assert all(np.array_equal(image[mask == 1], picture()[mask == 1]) for image in seen)
    overlay = data.read_image(tmp_path / "out" / "photo_overlay.png")
    assert (overlay == picture()).all(-1)[mask == 0].mean() > 0.3


# ------------------------------------------------------------------------------- hmr_adapter


def test_hmr_adapter_on_a_picture(files, tmp_path, capsys, monkeypatch):
    """Two checkpoints give whole bodies; bad ones and another body are one line each."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    arguments = [*arguments_of("hmr_adapter", files), save_picture(tmp_path / "one.png"), "--out",
                 tmp_path / "out", "--box", "5,5,40,50"]
    assert run(*arguments) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"one{ending}" for ending in ENDINGS}
    arrays = np.load(tmp_path / "out" / "one.npz")
    assert arrays["vertices"].shape == (10475, 3) and arrays["right_hand_pose"].shape == (45,)
    said = capsys.readouterr().out.splitlines()
    assert f"not checked: {INSTALL}" in said and said[-3] == "trained on unknown data"
    for bad in (["--hand", files["body"]], ["--hand", tmp_path / "none.pt"], ["--model", "body"]):
        assert run(*arguments, *bad) == 2
        told = capsys.readouterr().err
        assert told.startswith("demo.py: ") and told.count("\n") == 1


def test_hmr_adapter_s_joints_are_compared_by_name(files, monkeypatch):
    """Keypoints where the mesh has its joints of that name fit, those of its mirror image do not;
    the body expert's own are its joints of that name, too."""
    one, _, _ = demo.load_hmr_adapter(demo.parser().parse_args(
        arguments_of("hmr_adapter", files)))
    result = one(noise(), Found((10, 10, 60, 70)), None)
    joints = demo.project(result.arrays["joints"], result.arrays["K"])
    names = bodymodels.JOINT_SETS["smplx55"]
    for index, name in enumerate(SMPL45):
        if name in names:
            assert np.allclose(result.mesh[index], joints[names.index(name)])
        else:
            assert np.isnan(result.mesh[index]).all() and result.own[index, 2] == 0
    keypoints_2d = result.arrays["keypoints_2d"]
    wrists = [SMPL45.index(f"{side}_wrist") for side in ("left", "right")]
    rows = [demo.hmr_adapter.POSITIONED.index(names.index(f"{side}_wrist"))
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
        monkeypatch.setattr(weights.hmr_adapter, name, lambda tiny=tiny: tiny)
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


@pytest.mark.parametrize("box", [None, (30, 10, 40, 60)])
def test_predicted_left_hands_are_mirrored_right_hands(box):
    """The mirrored picture gives the mirrored mesh, before the mirrored camera."""
    path, picture = hand_adapter(), noise()
    right = demo.predict_hand(path, picture, free_hand(), box=box)
    flipped = box and (120 - box[0] - box[2], *box[1:])
    left = demo.predict_hand(path, picture[:, ::-1], free_hand(), box=flipped, side="left")
    for name in ("vertices", "joints", "transl"):
        assert np.allclose(left[name], right[name] * (-1, 1, 1), atol=1e-4)
    assert np.isclose(left["K"][0, 2], 120 - right["K"][0, 2]) and right["vertices"][:, 2].min() > 0
    assert np.allclose(bodymodels.mirror_matrix(torch.tensor(left["rotations"])),
                       right["rotations"], atol=1e-4)
    if box:  # twice the box, grown to 3:4
        assert np.allclose(right["box"], (50 - 60, 40 - 60, 120, 120))


@pytest.mark.parametrize(("data", "given"), [("rendered", "SMPL.pkl"), ("bedlam", None),
                                             (None, None)])
def test_checkpoints_of_another_body_are_refused(tmp_path, data, given):
    """One trained on the free body needs it, one trained on an official model does not fit it."""
    path = tmp_path / "one.pt"
    torch.save({"data": data, "config": {}} if data else {"state_dict": {}}, path)
    demo.trained_on(path, None if given else "SMPL.pkl", "--body SMPL.pkl", "people")
    with pytest.raises(ValueError, match="one.pt was trained on .*(leave out|add) --body"):
        demo.trained_on(path, given, "--body SMPL.pkl", "people")
    torch.save({"model": {}, "config": {}}, path)  # which does not tell
    assert "unknown" in demo.trained_on(path, given, "--body SMPL.pkl", "people")


# ----------------------------------------------------------------------------------- cameras


@given(st.floats(0.1, 4), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_a_mesh_before_my_camera_keeps_its_pixels(zoom, x, y):
    """If the true camera only zooms, the pixels stay exactly and the distance scales; of a flat
    mesh also before any other camera that looks the same way."""
    random = np.random.default_rng(0)
    transl = np.array([x, y, 5.0])
    joints = random.normal(0, 0.3, (24, 3)) * (1, 1, 0) + transl
    old = np.array([[900.0, 0, 60], [0, 900, 45], [0, 0, 1]])
    arrays = {"joints": np.float32(joints), "transl": np.float32(transl), "K": np.float32(old),
              "vertices": np.float32(joints[:5]), "betas": np.ones(10, np.float32)}
    K = old * [[zoom], [zoom], [1]] + [[0, 0, 7.0], [0, 0, -3], [0, 0, 0]]
    moved = demo.in_camera(arrays, K)
    assert np.allclose(demo.project(moved["joints"], K), demo.project(joints, old), atol=0.05)
    assert moved["transl"][2] == pytest.approx(5 * zoom, rel=1e-3)
    shift = moved["transl"] - arrays["transl"]
    assert np.allclose(moved["vertices"] - arrays["vertices"], shift, atol=1e-5)
    assert moved["betas"] is arrays["betas"] and demo.in_camera(arrays, None) is arrays
    assert all(value.dtype == np.float32 for value in moved.values())


@pytest.mark.parametrize("network", demo.LOADERS)
def test_my_camera_reaches_every_network(network, files, tmp_path, capsys, monkeypatch):
    """--focal F and --K FILE with the same numbers give the same mesh in that camera; people are
    about twice as far away for twice the focal length, and their pixels stay."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    np.savetxt(tmp_path / "K.txt", [[300.0, 0, 60], [0, 300, 45], [0, 0, 1]])
    found = {}
    for name, flags in (("focal", ["--focal", 300]), ("K", ["--K", tmp_path / "K.txt"]),
                        ("twice", ["--focal", 600])):
        assert run(*arguments_of(network, files), save_picture(tmp_path / "photo.png"), "--box",
                   "30,20,45,60", "--out", tmp_path / name, *flags) == 0
        assert "conventional" not in capsys.readouterr().out
        found[name] = dict(np.load(tmp_path / name / "photo.npz"))
    assert all(np.array_equal(found["focal"][name], found["K"][name]) for name in found["K"])
    assert found["K"]["K"][0, 0] == 300
    if network == "simplehand":
        return  # an untrained network's keypoints fit no distance
    near, far = (found[name]["joints"].mean(0) for name in ("focal", "twice"))
    assert far[2] == pytest.approx(2 * near[2], rel=0.2)
    pixels = [demo.project(found[name]["joints"], found[name]["K"]) for name in ("focal", "twice")]
    assert np.abs(pixels[0] - pixels[1]).max() < 12


# ------------------------------------------------------------------------------------- files


def a_result(shift: float = 0) -> Result:
    hand = bodymodels.load_model("hand_right")
    vertices = hand.template.numpy().reshape(778, 3) + np.float32([shift, 0, 0.6])
    K = np.float32([[60, 0, 24], [0, 60, 16], [0, 0, 1]])
    arrays = {"vertices": vertices, "joints": vertices[:21], "K": K, "side": np.array(1)}
    return Result(arrays, hand.faces.numpy(), [], vertices[:21, :2])


@pytest.mark.parametrize("root", [False, True])
def test_written_files_hold_the_prediction(tmp_path, root):
    """The .npz holds the arrays and faces, the meshes their vertices, y up, around the root."""
    image, result = np.full((32, 48, 3), 200, np.uint8), a_result()
    origin = result.arrays["joints"][0]
    if root:
        origin = result.arrays["root"] = np.float32([1, 2, 3])
    written = demo.write_results(tmp_path / "photo", image, [result])
    assert sorted(written) == sorted(tmp_path.iterdir())
    assert {path.name for path in written} == {f"photo{ending}" for ending in ENDINGS}
    with np.load(tmp_path / "photo.npz") as arrays:
        assert set(arrays) == {"faces", *result.arrays}
        assert all(np.array_equal(arrays[name], value) for name, value in result.arrays.items())
    lines = [line.split()[1:4] for line in (tmp_path / "photo.obj").read_text().splitlines()
             if line.startswith("v ")]
    expected = (result.arrays["vertices"] - origin) * (1, -1, -1)
    assert np.allclose(np.array(lines, float), expected, atol=1e-6)


def test_several_results_share_one_overlay(tmp_path):
    """Each has its own numbered mesh files; a result that is nearer covers one behind it."""
    image, near, far = np.zeros((32, 48, 3), np.uint8), a_result(), a_result(0.03)
    far.arrays["vertices"][:, 2] += 0.2
    written = demo.write_results(tmp_path / "a", image, [near, far])
    assert {path.name for path in written} == {"a_overlay.png", "a_side.png"} | {
        f"a_{number}{ending}" for number in (1, 2) for ending in ENDINGS[2:]}
    assert data.read_image(tmp_path / "a_side.png").shape == (384, 768, 3)
    both = demo.overlay(image, [near, far])
    assert np.array_equal(both, demo.overlay(image, [far, near]))
    assert not np.array_equal(both, demo.overlay(image, [near]))


def test_overlay_changes_the_picture_where_the_mesh_is():
    """Away from the mesh the overlay is the picture; the mesh covers a part of it."""
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    drawn = demo.overlay(image, [a_result()])
    same = (np.rint(255 * drawn) == image).all(-1)
    assert 0.5 < same.mean() < 0.99


def test_overlays_of_huge_pictures_are_scaled_down(monkeypatch):
    """The longer side has at most LARGEST pixels, and the mesh stays where it is in the picture."""
    monkeypatch.setattr(demo, "LARGEST", 24)
    image = np.zeros((32, 48, 3), np.uint8)
    small = demo.overlay(image, [a_result()])
    monkeypatch.undo()
    whole = demo.overlay(image, [a_result()]).reshape(16, 2, 24, 2, 3).mean((1, 3))
    assert small.shape == (16, 24, 3) and np.abs(small - whole).max() < 0.15


def test_the_side_view_is_the_left_of_the_picture():
    """Of two triangles in front of each other the nearer one is to the right, and y stays down."""
    def centre(depth: float, height: float) -> np.ndarray:
        triangle = np.array([[0.0, 0, 0], [0, 0.1, 0.1], [0, -0.1, 0.1]])
        vertices = np.concatenate((triangle + (0, height, depth), [[0, -1, -1], [0, 1, 1]]))
        faces = np.array([[0, 1, 2], [0, 2, 1]])
        drawn = demo.from_the_side(Result({"vertices": vertices}, faces, [], np.zeros((0, 2))), 64)
        return np.argwhere(drawn.min(2) < 0.98).mean(0)

    near, far, low = centre(-0.5, 0), centre(0.5, 0), centre(0, 0.5)
    assert near[1] > 36 and far[1] < 28 and low[0] > 36


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_png_keeps_every_8_bit_value(height, width, seed):
    """An image of n / 255 is read back as n."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    with Image.open(io.BytesIO(demo.png(image / 255))) as picture:
        assert np.array_equal(np.array(picture), image)


# ---------------------------------------------------------------------------------- commands


def test_summary_counts_every_parameter_once(capsys, monkeypatch):
    """--summary names every preset; its parts add up to the whole model."""
    monkeypatch.setattr(demo, "ALL_PRESETS", {"paper": simplehand.PRESETS["paper"]})
    for module in genhmr, demo.hmr_adapter:
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
    "empty picture": (["simplehand", "empty.png"], "empty"),
    "no picture": (["genhmr"], "name a picture"),
    "text": (["simplehand", "text.jpg"], "picture"),
    "video": (["genhmr", "clip.mp4"], "ffmpeg -i clip.mp4"),
    "no checkpoint": (["simplehand", "photo.png", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
    "bad checkpoint": (["simplehand", "photo.png", "--checkpoint", "broken.pt"], "broken.pt"),
    "SimpleHand's": (["genhmr", "photo.png", "--checkpoint", "SIMPLEHAND"], "GenHMR"),
    "no hand model": (["simplehand", "photo.png", "--hand", "nowhere.pkl"], "nowhere.pkl"),
    "letters in box": (["simplehand", "photo.png", "--box", "a,b"], "x,y,width,height"),
    "three numbers in box": (["genhmr", "photo.png", "--box", "1,2,3"], "x,y,width,height"),
    "box beside the picture": (["simplehand", "photo.png", "--box", "500,500,10,10"], "120 x 90"),
    "box beside the person": (["genhmr", "photo.png", "--box", "500,500,10,10"], "120 x 90"),
    "endless box": (["simplehand", "photo.png", "--box", "0,0,1e30,1e30"], "x,y,width,height"),
    "out is a file": (["simplehand", "photo.png", "--box", "whole", "--out", "text.jpg"],
                      "text.jpg"),
    "body for a hand": (["simplehand", "photo.png", "--hand", "body"], "16 joints"),
    "hand for a body": (["genhmr", "photo.png", "--body", "hand_right"], "24 joints"),
    "MANO's without --hand": (["simplehand", "photo.png", "--checkpoint", "freihand.pt"],
                              "add --hand MANO_RIGHT.pkl"),
    "free hand's with another": (["simplehand", "photo.png", "--checkpoint", "rendered.pt",
                                  "--hand", "hand_left"], "leave out --hand"),
    "no folder to export to": (["simplehand", "--checkpoint", "rendered.pt", "--export",
                                "nowhere/hand.pt2"], "create the folder"),
    "no MediaPipe": (["simplehand", "photo.png"],
                     "give the hand's place in pixels, --box X,Y,WIDTH,HEIGHT"),
    "nobody": (["genhmr", "photo.png"], "give the person's place in pixels"),
    "no such device": (["genhmr", "photo.png", "--device", "cuda:99"], "--device cuda:99"),
    "missing keypoints": (["genhmr", "photo.png", "--keypoints", "nowhere.json"], "nowhere.json"),
    "keypoints of nobody": (["genhmr", "photo.png", "--keypoints", "nobody.json"], "no people"),
    "no iterations": (["genhmr", "photo.png", "--box", "whole", "--iterations", "0"], "iterations"),
    "negative refinement": (["genhmr", "photo.png", "--box", "whole", "--refine", "-1"], "refine"),
    "focal length of nothing": (["simplehand", "photo.png", "--box", "whole", "--focal", "0"],
                                "intrinsics"),
    "no camera": (["hmr_adapter", "photo.png", "--box", "whole", "--K", "nowhere.txt"], "nowhere"),
    "camera of words": (["simplehand", "photo.png", "--box", "whole", "--K", "text.jpg"], "float"),
    "camera of four": (["simplehand", "photo.png", "--box", "whole", "--K", "four.txt"], "intrin"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, files, tmp_path, monkeypatch, capsys):
    """Exit code 2, one line on stderr that names the problem, no file written."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)  # as if it were not installed
    monkeypatch.chdir(tmp_path)
    save_picture(tmp_path / "photo.png")
    for name, content in (("text.jpg", "this is no picture"), ("empty.png", ""),
                          ("nobody.json", '{"people": []}'), ("four.txt", "1 0 0 1"),
                          ("clip.mp4", "")):
        (tmp_path / name).write_text(content)
    (tmp_path / "broken.pt").write_bytes(files["simplehand"].read_bytes()[:1000])
    for kind in ("freihand", "rendered"):
        content = torch.load(files["simplehand"], weights_only=True)
        torch.save(content | {"data": kind}, tmp_path / f"{kind}.pt")
    before = sorted(tmp_path.iterdir())
    (network, *flags), message = BAD[case]
    flags = [files["simplehand"] if flag == "SIMPLEHAND" else flag for flag in flags]
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
    assert result.returncode == 0, result.stderr
    assert "refined against 9 keypoints" in result.stdout
    assert (tmp_path / "astronaut_overlay.png").is_file()
    assert (tmp_path / "astronaut.jpg").read_bytes() == before
