"""Read files of weights without running their code, and fill models with them."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from files import first_line
from simplehand import require

# The keys of a model's `settings`: "data", of its training, and the fields of Settings in
# tasks/settings.py. Older checkpoints have them in their config; ema_decay was 0 in all.
SETTINGS = (
    "data", "accumulate", "precision", "channels_last", "ema_decay", "eval_every", "seed",
    "train_samples", "test_samples", "augmentation", "views", "in_plane", "lean", "wide",
    "occlusion", "version", "test_body_size", "heading", "tilt", "uniform_rotation")
# Fields in the configs of shipped checkpoints that have become constants since
FORMER = ("num_vertices", "attention", "heat_maps", "weight_heat_maps", "focal_length",
          "decoder_head_dim", "vit_drop_path", "hand_size", "pose_term", "weight_betas")


def names_its_file(load: Callable) -> Callable:
    """Decorate a function load(..., source, ...) of weights: its ValueErrors name the file."""
    @functools.wraps(load)
    def loader(*arguments, **options):
        try:
            return load(*arguments, **options)
        except ValueError as error:
            file = next((each for each in arguments if isinstance(each, str | PathLike)), "")
            if str(file) in str(error):
                raise
            raise ValueError(f"{file}: {error}") from error

    return loader


class Foreign:
    """Stand-in for objects in a checkpoint that are not tensors (of yacs or OmegaConf, say).

    They load as an empty dictionary; their own code is neither imported nor run.
    """

    def __new__(cls, *_) -> OrderedDict:
        return OrderedDict()


def check_whole(path: str | PathLike) -> None:
    """Raise ValueError if a zip file has changed: torch.load does not compare its checksums."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            require(archive.testzip() is None, "a checksum differs")


def read_checkpoint(source: str | PathLike | Mapping) -> tuple[dict[str, Tensor], dict | None]:
    """Read the weights of a checkpoint, and its config if it has one, without running its code.

    source: a file or its content, which is train.py's {"model", "config", "settings", ...},
    {"state_dict"}, {"model_state"}, {"network"}, or the weights alone. The settings of the run
    and its data are returned in the config. Raises FileNotFoundError or ValueError.
    """
    if not isinstance(source, Mapping):
        if not Path(source).is_file():
            raise FileNotFoundError(f"no checkpoint {source}: expected one of train.py, or "
                                    "released weights, see sets/README.md for their addresses")
        try:
            check_whole(source)
            names = (torch.serialization.get_unsafe_globals_in_checkpoint(source)
                     if zipfile.is_zipfile(source) else [])
            with torch.serialization.safe_globals([(Foreign, name) for name in names]):
                source = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files raise half a dozen types
            reason = (f"{type(error).__name__}: {first_line(error)[:100]}"
                      if Path(source).stat().st_size else "it is empty")
            raise ValueError(f"{source} is not a readable checkpoint ({reason})") from error
    require(isinstance(source, Mapping), "this checkpoint is not a dictionary of weights")
    nested = (source.get(name) for name in ("model", "state_dict", "model_state", "network"))
    weights = next((value for value in nested if isinstance(value, Mapping) and value), source)
    state = {name.removeprefix("module."): value for name, value in weights.items()
             if isinstance(value, Tensor)}
    require(state, "no weights in this checkpoint: expected a dictionary of tensors, as "
                   "torch.save(model.state_dict(), FILE) writes it")
    config = source.get("config")
    if isinstance(config, Mapping) and config:
        data = {"data": source.get("data", "unknown data")}
        config = data | dict(source.get("settings") or {}) | dict(config)
    return state, config


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights of a part of a model, whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items()
            if name.startswith(prefix)}


def renamed(state: Mapping[str, Tensor], names: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Return weights under other names: patterns are replaced, one after the other."""
    for pattern, name in names:
        state = {re.sub(pattern, name, old): value for old, value in state.items()}
    return dict(state)


def without_settings(config: Mapping[str, object], kind: type) -> dict[str, object]:
    """Drop SETTINGS, which describe the run, and FORMER fields, if the dataclass lacks them."""
    kinds = typing.get_type_hints(kind)
    return {name: without_settings(value, kinds[name])
            if isinstance(value, Mapping) and dataclasses.is_dataclass(kinds.get(name)) else value
            for name, value in config.items() if name in kinds or name not in SETTINGS + FORMER}


def load_weights(module: nn.Module, state: Mapping[str, Tensor], *, ignored: str = "$.") -> None:
    """Copy weights by name, in the module's own precision.

    ignored: a pattern for the start of names that the module does not use; they are left out, and
    printed. Any other difference in names or shapes is a ValueError.
    """
    unused = {re.match(ignored, name)[0].rstrip(".") for name in fit(module, state, ignored)}
    if unused:
        print(f"left out, {type(module).__name__} does not use it: {', '.join(sorted(unused))}")
    module.load_state_dict({name: state[name] for name in module.state_dict()})


def fit(module: nn.Module, state: Mapping[str, Tensor], ignored: str) -> set[str]:
    """Return the `ignored` names of weights; any other difference is a ValueError."""
    own = module.state_dict()
    unused = {name for name in state if name not in own and re.match(ignored, name)}
    problems = {
        "missing": own.keys() - state.keys(), "unexpected": state.keys() - own.keys() - unused,
        "of another shape": {name for name in own.keys() & state.keys()
                             if own[name].shape != state[name].shape}}
    report = "; ".join(
        f"{len(names)} {problem}: {', '.join(sorted(names)[:5])}{', ...' * (len(names) > 5)}"
        for problem, names in problems.items() if names)
    require(not report, f"these weights are not {type(module).__name__}'s: {report}")
    return unused


def from_checkpoint(build: Callable[..., nn.Module], config_kind: type, config: object,
                    state: Mapping[str, Tensor], ignored: str = "$.") -> nn.Module:
    """Build a model from a checkpoint's config and weights, in evaluation mode on the CPU.

    build: a model's class, or a function that chooses it; takes a config_kind. ignored: of
    load_weights. The model gets the `settings` of its training. Raises ValueError if the config is
    not the model's, before memory is taken.
    """
    require(isinstance(config, Mapping) and config, f"the checkpoint's config is not a dictionary: "
            f"save dataclasses.asdict({config_kind.__name__}(...))")
    own = without_settings(config, config_kind)
    try:
        with torch.device("meta"):
            model = build(config_kind(**own))
    except (TypeError, RuntimeError, AssertionError, ArithmeticError, LookupError) as error:
        raise ValueError(f"the checkpoint's config is not a {config_kind.__module__}."
                         f"{config_kind.__name__}: {error}") from error
    fit(model, state, ignored)
    model = build(config_kind(**own))
    load_weights(model, state, ignored=ignored)
    model.settings = {name: value for name, value in config.items() if name in SETTINGS}
    return model.eval()


def trained_on(model: nn.Module, file: str | Path, given: str | None, advice: str,
               who: str = "people", most: int = 180) -> str:
    """Say what a checkpoint has seen; ValueError unless the mesh model is that of its training.

    given: the mesh model's file, None for the free one. most: degrees that people or hands turn
    away from the camera when they are seen from all sides.
    """
    settings = getattr(model, "settings", {})
    data = settings.get("data")  # None: weights of the authors, who trained on the official models
    free = data == "rendered"
    if bool(given) == free and data != "unknown data":
        raise ValueError(f"{file} was trained on the {'free' if free else 'official'} model, whose "
                         "shapes the other one does not have: " + (
                             f"leave out {advice.split()[0]}" if free else f"add {advice}"))
    if not free:
        return f"trained on {data}" if data else "weights of the authors, as they are"
    views = settings.get("views", most)
    sides = "from all sides" if views >= most else f"within {views:.0f} degrees of the camera"
    return f"trained on rendered {who} {sides}: expect rough meshes in photographs"
