"""Settings of a run: fields of a config, changed by --set and checked before anything starts."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Sequence

import torch

from tasks.base import RUN_FIELDS, RunConfig

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCHEDULES = ("constant", "step", "cosine")
ON_A_CPU = ("cpu", "ablation", "cpu_views")  # presets that are made for one
Value = bool | int | float | str | tuple


def override(config: RunConfig, assignments: Sequence[str]) -> RunConfig:
    """Apply each "field=value" to the config; raises ValueError for what does not fit."""
    values = {}
    kinds = {name: kind for name, kind in typing.get_type_hints(type(config)).items()
             if not dataclasses.is_dataclass(kind)}  # the config of a part comes with the part
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or name not in kinds:
            close = "".join(difflib.get_close_matches(name, kinds, 1))
            raise ValueError(f"--set {assignment}: {f'did you mean {close}? ' * bool(close)}"
                             "expected FIELD=VALUE with a field of: " + ", ".join(kinds))
        try:
            values[name] = parse_value(kinds[name], text)
        except (ValueError, KeyError):
            kind = getattr(kinds[name], "__name__", kinds[name])
            raise ValueError(f"--set {assignment}: {text!r} is not of type {kind}; by default "
                             f"{name} is {getattr(config, name)}") from None
    for name, value in values.items():
        check_value(name, value)
    try:
        config = dataclasses.replace(config, **values)
    except (ArithmeticError, TypeError, IndexError) as error:
        raise ValueError(f"--set {' '.join(assignments)}: no such model ({error})") from error
    check_config(config)
    return config


def own_overrides(assignments: Sequence[str], kind: type, kinds: Sequence[type]) -> list[str]:
    """Select what --set of a command of several stages means for a stage with this config class.

    All but the fields that only the configs of other stages have; `override` refuses the rest.
    """
    fields = [{field.name for field in dataclasses.fields(each)} for each in (kind, *kinds)]
    elsewhere = set().union(*fields) - fields[0]
    return [text for text in assignments if text.partition("=")[0] not in elsewhere]


def parse_value(kind: type, text: str) -> Value:
    """Convert text to a bool, int, float, str or comma-separated tuple of them."""
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
        return tuple(parse_value(kind, part) for part in text.split(",") if text)  # "": ()
    return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)


def as_text(value: Value) -> str:
    """Format a value as --set takes it: the inverse of parse_value."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_value(name: str, value: Value) -> None:
    """Raise ValueError for numbers that no field can mean: negative, infinite, NaN."""
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not 0 <= number < math.inf:
            raise ValueError(f"{name} is {as_text(value)}: expected finite numbers from 0 on")


def check_config(config: RunConfig) -> None:
    """Raise ValueError unless every field has a possible value, as far as the loop can tell."""
    for name in (field.name for field in dataclasses.fields(config)):
        value = getattr(config, name)
        if not dataclasses.is_dataclass(value):
            check_value(name, value)
        if "drop" in name and not value < 1:
            raise ValueError(f"{name} is {value}: expected a part of all, from 0 to below 1")
    for name in ("batch_size", "accumulate", "steps", "eval_every", "train_samples",
                 "test_samples"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}: expected at least 1")
    for name, value, allowed in (("schedule", config.schedule, SCHEDULES),
                                 ("precision", precision_of(config), PRECISIONS)):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}: expected one of {', '.join(allowed)}")
    if not config.learning_rate > 0:
        raise ValueError("learning_rate is 0: expected a number above 0")
    if getattr(config, "ema_decay", 0):  # a field of older configs
        raise ValueError(f"ema_decay is {config.ema_decay}: expected 0, there is no moving average")


def check_shares(config: RunConfig, processes: int) -> None:
    """Raise ValueError unless the samples of a step split evenly among processes and parts."""
    parts = processes * config.accumulate
    if config.batch_size % parts:
        raise ValueError(f"batch_size is {config.batch_size}: expected a multiple of {parts}, "
                         f"{processes} processes x accumulate={config.accumulate}")


def share(config: RunConfig, processes: int) -> int:
    """Return the number of samples that one process computes at once."""
    return config.batch_size // (processes * config.accumulate)


def with_run_fields(config: RunConfig, source: RunConfig) -> RunConfig:
    """Return the config with another's optimisation and data: batch, steps, views and so on."""
    return dataclasses.replace(config, **{name: getattr(source, name) for name in RUN_FIELDS
                                          if hasattr(source, name)})


def suitable_preset() -> str:
    """Choose the preset for this machine, by name."""
    if not torch.cuda.is_available():
        return "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory
    return "h200" if memory > 100e9 else "single_gpu"


def precision_of(config: RunConfig) -> str:
    """Return the config's precision: "fp32" unless it has another."""
    return getattr(config, "precision", "fp32")


def supported_precision(precision: str) -> str:
    """Return the precision, or fp16 for bf16 if the GPU cannot compute it (V100, RTX 20)."""
    if precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(
            including_emulation=False):
        return "fp16"
    return precision
