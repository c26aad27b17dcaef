"""Open checkpoints of HMR-Adapter: train.py's, HaMeR's and SMPLer-X's."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import bodymodels
import hmr_adapter as hmr
from files import load_arrays
from networks.adapter_encoders import part_readers
from networks.adapter_rivals import BodyRival, HandRival, build_model
from weights import files

CONFIG_CLASSES = {"expert.mano_head.": hmr.HandConfig, "mano_head.": hmr.HandExpertConfig,
                  "expert.encoder.": hmr.BodyConfig, "encoder.": hmr.BodyExpertConfig}
SMPLER_X_NAMES = (  # what older releases of SMPLer-X call their parts
    (r"^(module\.)+", ""), (r"^backbone\.", "encoder."),
    (r"^body_rotation_net\.", "body_regressor."), (r"^hand_rotation_net\.", "hand_regressor."))


@files.names_its_file
def load_checkpoint(source: str | PathLike | Mapping
                    ) -> hmr.HandExpert | hmr.BodyExpert | hmr.HandAdapter | hmr.BodyAdapter:
    """Load the model of one of train.py's checkpoints, in evaluation mode on the CPU.

    source: a file or its content, {"model": state dict, "config": dataclasses.asdict(config)}.
    Raises FileNotFoundError, or ValueError for anything else and for weights that do not fit.
    """
    state, config = files.read_checkpoint(source)
    config_class = next((kind for prefix, kind in CONFIG_CLASSES.items() if any(
        name.startswith(prefix) for name in state)), None)
    files.require(config is not None and config_class is not None,
                  "this is no checkpoint of train.py --model hmr_adapter; for HaMeR's and "
                  "SMPLer-X's released ones there are load_hand_expert and load_body_expert")
    return files.from_checkpoint(build_model, config_class, config, state)


@files.names_its_file
def load_encoder(expert: hmr.HandExpert | hmr.BodyExpert, source: str | PathLike | Mapping) -> None:
    """Give a small expert the encoder of a checkpoint.

    A hand expert takes that of SimpleHand's network for photographs, a whole-body expert GenHMR's,
    alone or inside a checkpoint of GenHMR. Raises like load_checkpoint.
    """
    state, _ = files.read_checkpoint(source)
    if isinstance(expert, hmr.HandExpert):
        encoder = expert.backbone.patch_embed
        state = {f"hand.{name}": value for name, value in state.items()}
        hand = bodymodels.load_model("hand_right")
        state |= {"regressor": hand.keypoint_regressor, "parts": part_readers(hand)}
    else:
        encoder = expert.encoder.patch_embed
        state = files.part_of(state, "backbone.") or state
    files.load_weights(encoder, state)


@files.names_its_file
def load_expert(kind: type[nn.Module], source: str | PathLike | Mapping, *,
                hand_mean: Tensor | None = None) -> hmr.HandExpert | hmr.BodyExpert:
    """Load the expert of train.py's checkpoint, also out of an adapter or rival, or a released one.

    kind: HandExpert, released as HaMeR, or BodyExpert, as SMPLer-X-H. source: see load_checkpoint.
    hand_mean: axis-angles (2, 15, 3) of SMPL-X's mean hands, see `hand_mean`, to which the fingers
    of SMPLer-X's weights are relative. Raises like load_checkpoint.
    """
    state, config = files.read_checkpoint(source)
    if config is not None:
        if isinstance(config, Mapping) and "expert" in config:
            state, config = files.part_of(state, "expert."), config["expert"]
        return expert_of(load_checkpoint({"model": state, "config": config}), kind)
    hands = kind is hmr.HandExpert
    state = state if hands else files.renamed(state, SMPLER_X_NAMES)
    part, authors = ("mano_head.", "HaMeR") if hands else ("body_regressor.", "SMPLer-X")
    files.require(any(name.startswith(part) for name in state),
                  f"no {kind.__name__} in this checkpoint: expected train.py's or {authors}'s")
    expert = kind(hmr.HandExpertConfig() if hands else hmr.BodyExpertConfig(box_margin=1.2))
    unreleased = {name: value for name, value in expert.state_dict().items()
                  if re.search(r"(hand_mean|num_batches_tracked)$", name)}
    files.load_weights(expert, unreleased | state,
                       ignored=r"(discriminator|mano|smplx_layer)\.|initialized$")
    if hand_mean is not None:
        expert.hand_mean.copy_(hand_mean)
        expert.notice_hand_mean()
    elif not hands:
        print("the fingers of these weights are relative to SMPL-X's mean hand: give hand_mean to "
              "make them absolute (hands of the hand path do not use them)")
    return expert.eval()


load_hand_expert = functools.partial(load_expert, hmr.HandExpert)
load_body_expert = functools.partial(load_expert, hmr.BodyExpert)


def hand_mean(model: str | PathLike | None) -> Tensor | None:
    """Read SMPL-X's mean hands (2, 15, 3), [right, left], see load_body_expert, from its file."""
    if model is None:
        return None
    path = Path(model)
    if path.is_dir():
        path = bodymodels.find_model(path, "smplx", "right", "neutral")
    arrays = load_arrays(path, "hands_") if path.is_file() else {}
    if "hands_meanr" not in arrays:
        return None
    return torch.tensor(np.stack([np.reshape(arrays[f"hands_mean{side}"], (15, 3))
                                  for side in "rl"]), dtype=torch.float32)


def expert_of(model: nn.Module, kind: type) -> nn.Module:
    """Return the model, or the expert inside it; ValueError if that is of another kind."""
    expert = getattr(model, "expert", model)
    files.require(isinstance(expert, kind),
                  f"this checkpoint has a {type(expert).__name__}: expected a {kind.__name__}")
    return expert


@files.names_its_file
def load_path(kind: type[hmr.Adapter], source: str | PathLike | Mapping, **options) -> hmr.Adapter:
    """Load one path: an adapter or rival of train.py, or an expert alone, also a released one.

    kind: HandAdapter or BodyAdapter. options: of load_expert, for released weights. Other arguments
    and errors are as of load_checkpoint.
    """
    state, config = files.read_checkpoint(source)
    content = {"model": state, "config": config}
    if isinstance(config, Mapping) and "expert" in config:
        model = load_checkpoint(content)
        files.require(isinstance(model, kind),
                      f"this checkpoint has a {type(model).__name__}: expected a {kind.__name__}")
        return model
    inside, alone, config_class = {
        hmr.HandAdapter: (hmr.HandExpert, HandRival, hmr.HandConfig),
        hmr.BodyAdapter: (hmr.BodyExpert, BodyRival, hmr.BodyConfig)}[kind]
    expert = load_expert(inside, content, **options)
    path = alone(config_class(expert=expert.config, inject="none"), expert).eval()
    path.settings = getattr(expert, "settings", {})  # released weights have none
    return path


def load_paths(hand: str | PathLike, body: str | PathLike, *, hand_mean: Tensor | None = None
               ) -> hmr.HMRAdapter:
    """Load both paths, see load_path, for evaluation; two experts are the paper's baseline."""
    paths = (load_path(hmr.HandAdapter, hand),
             load_path(hmr.BodyAdapter, body, hand_mean=hand_mean))
    return hmr.HMRAdapter(hmr.Config(*(path.config for path in paths)), *paths).eval()
