"""SimpleHand's checkpoints: train.py's, the release's, and ImageNet's weights of backbones."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from networks import any_view
from networks.backbones import Hiera, HRNet, simplehand_model
from simplehand import Config, FastViT, SimpleHand
from weights import files

APPLE_NAMES = (  # patterns of Apple's FastViT parameter names -> timm's, which are ours
    (r"^patch_embed\.", "stem."),
    # Apple numbers the stages and the downsampling before them in one row
    (r"^network\.0\.", "stages.0.blocks."), (r"^network\.1\.", "stages.1.downsample."),
    (r"^network\.2\.", "stages.1.blocks."), (r"^network\.3\.", "stages.2.downsample."),
    (r"^network\.4\.", "stages.2.blocks."), (r"^network\.5\.", "stages.3.downsample."),
    (r"^network\.6\.pe\.", "stages.3.pos_emb.pos_enc."), (r"^network\.7\.", "stages.3.blocks."),
    (r"^conv_exp\.", "final_conv."), (r"^head\.(weight|bias)$", r"head.fc.\1"),
    (r"\.rbr_conv\.", ".conv_kxk."), (r"\.rbr_scale\.", ".conv_scale."),
    (r"\.rbr_skip\.", ".identity."), (r"\.lkb_origin\.", ".large_conv."),
    (r"\.convffn\.", ".mlp."), (r"\.(layer_scale(_[12])?)$", r".\1.gamma"),
    (r"\.se\.reduce\.", ".se.fc1."), (r"\.se\.expand\.", ".se.fc2."),
    # and two more in its inference weights
    (r"^network\.6\.reparam_conv\.", "stages.3.pos_emb.reparam_conv."),
    (r"\.lkb_reparam\.", ".reparam_conv."),
)
CLASSIFIERS = (  # of FastViT; HRNet; Hiera, by timm and by its authors
    r"^(backbone\.)?(head\.fc|classifier|head\.norm|head\.projection|norm)\.(weight|bias)$")
RELEASE_NAMES = [  # of the release's mesh head, which counts its layers from 1 -> ours
    (rf"(mesh_head\.){theirs}_{number}(\.upsample)?", rf"\g<1>{ours.format(number - 1)}")
    for number in (1, 2, 3) for theirs, ours in (
        ("pos_emb", "position_embeddings.{}"), ("proj", "layers.{}.project"),
        ("encoder", "layers.{}.metaformer"), ("upsample", "layers.{}.upsample"))]


@files.names_its_file
def load_checkpoint(source: str | PathLike | Mapping) -> SimpleHand:
    """Load the model in a checkpoint, in evaluation mode on the CPU.

    source: a file or its content: train.py's {"model", "config", ...}, or the release's
        {"state_dict": ...}, which becomes a Config(official=True). To write one of your own:
        torch.save({"model": model.state_dict(), "config": dataclasses.asdict(model.config)}, FILE)
    Raises FileNotFoundError, or ValueError for anything else and for weights that do not fit.
    """
    state, config = files.read_checkpoint(source)
    files.require(any(name.startswith("mesh_head.") for name in state),
                  "no SimpleHand checkpoint: expected train.py's or the release's "
                  "(load_backbone takes the weights of FastViT alone)")
    state = files.renamed(state, RELEASE_NAMES)
    config = {"official": True} if config is None else config
    kind = config_class(config) if isinstance(config, Mapping) else Config
    return files.from_checkpoint(simplehand_model, kind, config, state, ignored=CLASSIFIERS)


def config_class(fields: Mapping[str, object]) -> type[Config]:
    """Return the class of a config with these fields."""
    return any_view.Config if fields.get("backbone") == "unet" else Config


@files.names_its_file
def load_backbone(backbone: FastViT | HRNet | Hiera, source: str | PathLike | Mapping) -> None:
    """Load a backbone's ImageNet weights, by timm's names or its authors'.

    FastViT's may be of training or inference; for the latter the backbone is reparameterised.
    Raises like load_checkpoint.
    """
    state, _ = files.read_checkpoint(source)
    if isinstance(backbone, FastViT):
        state = files.renamed(state, APPLE_NAMES)
        if any(".reparam_conv." in name for name in state):
            backbone.reparameterize()
    files.load_weights(backbone, state, ignored=CLASSIFIERS)
