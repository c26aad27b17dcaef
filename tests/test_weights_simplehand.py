"""weights/simplehand.py: checkpoints of ours and of others, and backbones' weights."""

import os
from dataclasses import asdict, fields

import pytest
import torch
from hostile import Call
from simplehand_samples import TINY, checkpoint_of, on_meta, trained_model

import bodymodels
import simplehand
import weights.files
from simplehand import Config, SimpleHand
from tasks.settings import Settings
from weights.simplehand import RELEASE_NAMES, load_backbone, load_checkpoint


@pytest.fixture(scope="module")
def trained() -> SimpleHand:
    return trained_model()


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def apple_names(inference: bool) -> dict[str, str]:
    """Apple's name of every tensor of its fastvit_ma36 -> timm's, from the published layouts."""
    names: dict[str, str] = {}

    def conv(apple: str, timm: str, parts: tuple[str, ...] = ("weight",)) -> None:
        names.update({f"{apple}.{part}": f"{timm}.{part}" for part in parts})

    def block(apple: str, timm: str, scale: bool, identity: bool, convolve: bool = True) -> None:
        if inference:
            return conv(f"{apple}.reparam_conv", f"{timm}.reparam_conv", ("weight", "bias"))
        if identity:
            conv(f"{apple}.rbr_skip", f"{timm}.identity", NORM)
        if convolve:
            conv(f"{apple}.rbr_conv.0.conv", f"{timm}.conv_kxk.0.conv")
            conv(f"{apple}.rbr_conv.0.bn", f"{timm}.conv_kxk.0.bn", NORM)
        if scale:
            conv(f"{apple}.rbr_scale.conv", f"{timm}.conv_scale.conv")
            conv(f"{apple}.rbr_scale.bn", f"{timm}.conv_scale.bn", NORM)

    block("patch_embed.0", "stem.0", True, False)
    block("patch_embed.1", "stem.1", True, False)
    block("patch_embed.2", "stem.2", False, True)
    for stage, depth in enumerate((6, 6, 18, 6)):
        for index in range(depth):
            apple = f"network.{(0, 2, 4, 7)[stage]}.{index}"
            timm = f"stages.{stage}.blocks.{index}"
            conv(f"{apple}.convffn.conv.conv", f"{timm}.mlp.conv.conv")
            conv(f"{apple}.convffn.conv.bn", f"{timm}.mlp.conv.bn", NORM)
            conv(f"{apple}.convffn.fc1", f"{timm}.mlp.fc1", ("weight", "bias"))
            conv(f"{apple}.convffn.fc2", f"{timm}.mlp.fc2", ("weight", "bias"))
            if stage == 3:
                conv(f"{apple}.norm", f"{timm}.norm", NORM)
                conv(f"{apple}.token_mixer.qkv", f"{timm}.token_mixer.qkv")
                conv(f"{apple}.token_mixer.proj", f"{timm}.token_mixer.proj", ("weight", "bias"))
                names |= {f"{apple}.layer_scale_{n}": f"{timm}.layer_scale_{n}.gamma" for n in "12"}
                continue
            names[f"{apple}.layer_scale"] = f"{timm}.layer_scale.gamma"
            apple, timm = f"{apple}.token_mixer", f"{timm}.token_mixer"
            if inference:
                block(apple, timm, False, False)
                continue
            names[f"{apple}.layer_scale"] = f"{timm}.layer_scale.gamma"
            block(f"{apple}.norm", f"{timm}.norm", False, True, convolve=False)
            block(f"{apple}.mixer", f"{timm}.mixer", True, True)
    for stage in (1, 2, 3):
        apple, timm = f"network.{2 * stage - 1}.proj", f"stages.{stage}.downsample.proj"
        if inference:
            conv(f"{apple}.0.lkb_reparam", f"{timm}.0.reparam_conv", ("weight", "bias"))
        else:
            for theirs, ours in (("lkb_origin", "large_conv"), ("small_conv", "small_conv")):
                conv(f"{apple}.0.{theirs}.conv", f"{timm}.0.{ours}.conv")
                conv(f"{apple}.0.{theirs}.bn", f"{timm}.0.{ours}.bn", NORM)
        block(f"{apple}.1", f"{timm}.1", False, True)
    theirs, ours = ("reparam_conv",) * 2 if inference else ("pe", "pos_enc")
    conv(f"network.6.{theirs}", f"stages.3.pos_emb.{ours}", ("weight", "bias"))
    conv("conv_exp.se.reduce", "final_conv.se.fc1", ("weight", "bias"))
    conv("conv_exp.se.expand", "final_conv.se.fc2", ("weight", "bias"))
    block("conv_exp", "final_conv", True, False)
    conv("head", "head.fc", ("weight", "bias"))
    return names


@pytest.mark.parametrize(("inference", "tensors"), [(False, 1264), (True, 538)])
def test_apple_weights_load(inference, tensors):
    """All tensors of Apple's layout find their place, and each finds its own."""
    names = apple_names(inference)
    assert len(names) == tensors
    twin = on_meta(Config()).backbone
    if inference:
        twin.reparameterize()
    shapes = {name: value.shape for name, value in twin.state_dict().items()}
    shapes |= {"head.fc.weight": (1000, 1216), "head.fc.bias": (1000,)}
    state = {apple: torch.tensor(float(number)).expand(shapes[timm])
             for number, (apple, timm) in enumerate(names.items())}
    backbone = simplehand.FastViT(Config())
    load_backbone(backbone, {"state_dict": state})
    loaded = backbone.state_dict()
    for number, timm in enumerate(names.values()):
        assert timm.startswith("head.") or (loaded[timm] == number).all(), timm


def test_released_checkpoint_layout_loads(capsys):
    """{"state_dict": 1325 tensors} loads as it is, but for the two tensors nothing uses."""
    head = {"keypoints_2d_head.weight", "keypoints_2d_head.bias", "mesh_head.deconv.0.weight",
            "mesh_head.pred_final.weight", "mesh_head.pred_final.bias"}
    head |= {f"mesh_head.deconv.1.{part}" for part in NORM}
    for k in (1, 2, 3):
        head.add(f"mesh_head.pos_emb_{k}")
        modules = [f"proj_{k}", f"upsample_{k}.upsample"] + [f"encoder_{k}.0.{part}" for part in (
            "norm1", "norm2", "token_mixer.out_proj", "mlp.fc1", "mlp.fc2")]
        head |= {f"mesh_head.{name}.{part}" for name in modules for part in ("weight", "bias")}
        head |= {f"mesh_head.encoder_{k}.0.token_mixer.in_proj_{part}"
                 for part in ("weight", "bias")}
    assert len(head) == 61
    names = head | {f"backbone.{name}" for name in apple_names(inference=False).values()}
    assert len(names) == 1325
    shapes = {name: value.shape for name, value in on_meta(Config()).state_dict().items()}
    shapes |= {"backbone.head.fc.weight": (1000, 1216), "backbone.head.fc.bias": (1000,)}
    quarter = torch.tensor(0.25, dtype=torch.float16)
    state = {name: quarter.expand(shapes[ours]) for ours, name in weights.files.renamed(
        {name: name for name in names}, RELEASE_NAMES).items()}
    model = load_checkpoint({"state_dict": state})
    assert "backbone.head.fc.weight" in capsys.readouterr().out
    assert model.config == Config(official=True) and not model.training
    assert all((value == 0.25).all() for value in model.parameters())
    assert all(value.dtype == torch.float32 for value in model.parameters())


def test_checkpoints_restore_config_and_weights(trained, tmp_path):
    """What train.py saves comes back as the same model, ready for inference; weights stored in
    float16 are computed with in float32."""
    torch.save(checkpoint_of(trained), tmp_path / "tiny.pt")
    halved = {name: value.half() if value.is_floating_point() else value
              for name, value in trained.state_dict().items()}
    for source, atol in (
            (tmp_path / "tiny.pt", 0), (checkpoint_of(trained) | {"model": halved}, 1e-3)):
        model = load_checkpoint(source)
        assert model.config == TINY and not model.training
        for name, value in model.state_dict().items():
            assert value.dtype == trained.state_dict()[name].dtype
            assert torch.allclose(value, trained.state_dict()[name], atol=atol, rtol=0)


def test_partial_loads_are_refused(trained):
    """Missing, unexpected and misshapen tensors raise, all named."""
    state = dict(trained.state_dict())
    del state["mesh_head.position_embeddings.1"]
    state["surprise"] = torch.zeros(1)
    state["mesh_head.pred_final.bias"] = torch.zeros(4)
    with pytest.raises(ValueError) as caught:
        load_checkpoint(checkpoint_of(trained) | {"model": state})
    for text in ("1 missing: mesh_head.position_embeddings.1", "1 unexpected: surprise",
                 "1 of another shape: mesh_head.pred_final.bias"):
        assert text in str(caught.value)


@pytest.mark.parametrize("content, message", [
    (b"", "checkpoint"), (b"not a checkpoint", "checkpoint"), ([1, 2], "checkpoint"),
    ({"a": torch.zeros(1)}, "checkpoint|weights"), ({"model": {}, "config": {}}, "weights"),
    ({"model": 5, "config": {}}, "weights"),
    ({"model": Call(os.system, "touch exploded"), "config": {}}, "weights"),
    ({"config": TINY}, "save dataclasses.asdict"), ({"config": {"vit_depth": 32}}, "config"),
    ({"stem.0.conv_kxk.0.conv.weight": torch.zeros(1)}, "load_backbone")])
def test_bad_checkpoints_are_one_clear_error(content, message, trained, tmp_path, monkeypatch):
    """Damaged, foreign and hostile files, the dataclass itself as config and configs of others
    raise ValueError and run nothing."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    if isinstance(content, dict) and list(content) == ["config"]:
        content = checkpoint_of(trained) | content
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value) and not (tmp_path / "exploded").exists()
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        load_checkpoint(tmp_path / "nowhere.pt")


def test_a_flipped_bit_is_noticed(trained, tmp_path):
    """torch.load compares no checksum: one other bit of a weight would load as another weight."""
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": trained.state_dict(), "config": asdict(trained.config)}, path)
    whole = path.read_bytes()
    for weight in list(trained.parameters())[::10]:
        place = whole.index(weight.detach().numpy().tobytes())
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        with pytest.raises(ValueError, match="checkpoint.pt is not a readable checkpoint"):
            load_checkpoint(path)


def test_settings_of_older_checkpoints_are_told_from_the_config():
    """Every field of Settings may be in an older config, and is no unknown field there, but in the
    model's `settings`; a newer file has them beside the config."""
    names = {field.name for field in fields(Settings)}
    assert names < {*weights.files.SETTINGS}
    model = load_checkpoint(bodymodels.ASSETS / "simplehand_cpu.pt")
    assert model.settings["views"] == 15 and not names & set(vars(model.config))
    older = {"model": model.state_dict(), "config": asdict(model.config) | {"views": 20.0}}
    newer = older | {"config": asdict(model.config), "settings": {"views": 20.0}}
    assert [load_checkpoint(content).settings["views"] for content in (older, newer)] == [20, 20]
    with pytest.raises(ValueError, match="unexpected keyword argument 'sights'"):
        load_checkpoint(older | {"config": older["config"] | {"sights": 20.0}})
