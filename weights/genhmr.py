"""Open GenHMR's checkpoints: train.py's of every stage, and weights of the paper's image encoder.

All of them are read on the CPU, and their code is not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from genhmr import Config, GenHMR, Tokenizer, TokenizerConfig
from networks.small_encoder import SmallEncoder, build_genhmr
from weights import files


@files.names_its_file
def load_checkpoint(source: str | PathLike | Mapping) -> GenHMR:
    """Load a checkpoint of stage 2, with its tokenizer, in evaluation mode on the CPU.

    source: a file of train.py or its content, {"model": state dict, "config": asdict(config)}.
    Raises FileNotFoundError, or ValueError for anything else and for weights that do not fit.
    """
    state, config = files.read_checkpoint(source)
    files.require(config is not None and any(name.startswith("transformer.") for name in state),
                  "no GenHMR checkpoint: expected train.py's of stage 2 (load_tokenizer takes "
                  "stage 1's, load_backbone the weights of a ViT alone)")
    return files.from_checkpoint(build_genhmr, Config, config, state)


@files.names_its_file
def load_tokenizer(source: str | PathLike | Mapping) -> Tokenizer:
    """Load the tokenizer of a checkpoint of stage 1 or 2; all else as of load_checkpoint."""
    state, config = files.read_checkpoint(source)
    if "tokenizer.quantiser.codebook" in state and isinstance(config, Mapping):  # of stage 2
        state, config = files.part_of(state, "tokenizer."), config.get("tokenizer")
    files.require(config is not None and any(name.startswith("quantiser.") for name in state),
                  "no tokenizer in this checkpoint: expected train.py's of stage 1 or 2")
    return files.from_checkpoint(Tokenizer, TokenizerConfig, config, state)


@files.names_its_file
def load_encoder(source: str | PathLike | Mapping) -> SmallEncoder:
    """Load the SmallEncoder of a checkpoint of --stage encoder or of stage 2, likewise."""
    state, _ = files.read_checkpoint(source)
    state = files.part_of(state, "backbone.") or state
    files.require("sizes" in state, "no small encoder in this checkpoint: expected train.py's of "
                  "--stage encoder, or of --stage transformer with its preset cpu")
    encoder = SmallEncoder()
    files.load_weights(encoder, state)
    return encoder.eval()


@files.names_its_file
def load_backbone(model: GenHMR, source: str | PathLike | Mapping) -> None:
    """Load the encoder of a 4D-Humans, TokenHMR or ViTPose checkpoint, or a bare one.

    Heads, discriminators and body models are left out, and printed. Errors as of load_checkpoint.
    """
    state, _ = files.read_checkpoint(source)
    own = files.part_of(state, "backbone.")
    unused = sorted({name.split(".")[0] for name in state if own and name[:9] != "backbone."})
    files.load_weights(model.backbone, own or state)
    if unused:
        print(f"left out, no part of the encoder: {', '.join(unused)}")
