"""The rows of HMR-Adapter's Tables 3 to 6, and parameter counts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from hmr_adapter import PRESETS, BodyAdapter, BodyConfig, Config, HandAdapter, HandConfig, require
from networks.adapter_rivals import build_model


def on_meta(config: HandConfig | BodyConfig) -> HandAdapter | BodyAdapter:
    """Build the model of a config without allocating its weights, to count them."""
    with torch.device("meta"):
        return build_model(config)


def count(module: nn.Module, trainable: bool = False) -> int:
    """Count the parameters of a module, or the trainable ones."""
    return sum(parameter.numel() for parameter in module.parameters()
               if parameter.requires_grad or not trainable)


def count_parameters(config: Config) -> dict[str, tuple[int, int]]:
    """Count (all, trainable) parameters of each part of both paths, without allocating them."""
    counts = {}
    for path, model in (("hand", on_meta(config.hand)), ("body", on_meta(config.body))):
        for owner, label in ((model.expert, "expert"), (model, "adapter")):
            for name, part in owner.named_children():
                if part is not model.expert:
                    counts[f"{path} {label}: {name}"] = count(part), count(part, True)
            for name, parameter in owner.named_parameters(recurse=False):
                counts[f"{path} {label}: {name}"] = (parameter.numel(),) * 2
        counts[f"{path} expert"] = count(model.expert), count(model.expert, True)
        new, trainable = (count(model, flag) - count(model.expert, flag) for flag in (False, True))
        counts[f"{path} adapter"] = new, trainable
    return counts


# The rows of the paper's tables: changes of a preset's `hand` (Tables 3, 5) or `body` (4, 6).
BASELINES: dict[str, tuple[str, dict[str, object]]] = {
    "Table 3, HaMeR": ("hand", dict(inject="none")),
    "Table 3, No. 1": ("hand", dict(inject="none", trainable="all")),
    "Table 3, No. 2": ("hand", dict(inject="none", trainable="all")),
    "Table 3, No. 3": ("hand", dict(inject="none", trainable="head")),
    "Table 3, No. 4": ("hand", dict(inject="concat", trainable="head")),
    "Table 3, No. 5": ("hand", dict(context="image")),
    "Table 3, No. 6": ("hand", dict()),
    "Table 4, SMPLer-X": ("body", dict(inject="none")),
    "Table 4, No. 1": ("body", dict(inject="none", trainable="all")),
    "Table 4, No. 2": ("body", dict(inject="none", trainable="all")),
    "Table 4, No. 3": ("body", dict(inject="none", trainable="head")),
    "Table 4, No. 4": ("body", dict(inject="concat", trainable="head",
                                    joint_proj="reuse_hand_conv")),
    "Table 4, No. 5": ("body", dict(context="tokens")),
    "Table 4, No. 6": ("body", dict()),
    "Table 5, Concatenation": ("hand", dict(inject="concat", trainable="head")),
    "Table 5, Weighted sum": ("hand", dict(inject="weighted", trainable="head")),
    "Table 5, Whole-body pose": ("hand", dict(arm="whole_body")),
    "Table 5, HMR-Adapter": ("hand", dict()),
    "Table 6, Concatenation": ("body", dict(inject="concat", trainable="head",
                                            joint_proj="reuse_hand_conv")),
    "Table 6, Weighted sum": ("body", dict(inject="weighted", trainable="head",
                                           joint_proj="reuse_hand_conv")),
    "Table 6, HMR-Adapter": ("body", dict()),
}
FROM_SCRATCH = ("Table 3, No. 2", "Table 4, No. 2")  # not pre-trained, "double steps"


def baseline(row: str, preset: str = "paper") -> HandConfig | BodyConfig:
    """Return the config of a row of the paper's tables, a key of BASELINES.

    The rows of FROM_SCRATCH have twice the preset's steps and start without a trained expert.
    """
    require(row in BASELINES, f"row {row!r}: expected one of {'; '.join(BASELINES)}")
    part, changes = BASELINES[row]
    config = replace(getattr(PRESETS[preset], part), **changes)
    return replace(config, steps=2 * config.steps) if row in FROM_SCRATCH else config


DISCRIMINATOR = 1_545_211  # parameters of HaMeR's discriminator, which no prediction depends on
PAPER_SAYS = {  # trainable parameters in the paper's tables
    "Table 3, No. 1": "671M", "Table 3, No. 3": "39M", "Table 3, No. 4": "39M",
    "Table 3, No. 5": "27M", "Table 3, No. 6": "27M", "Table 4, No. 1": "662M",
    "Table 4, No. 3": "31M", "Table 4, No. 4": "31M", "Table 4, No. 5": "37M",
    "Table 4, No. 6": "37M",
}
REMARK = f"""\
671M is HaMeR with its discriminator, {DISCRIMINATOR:,} parameters more than here, truncated, not
rounded. 27M includes copied, trained out-projections; without them it would be 24M. 37M does not
follow from the paper; our composition uses only HaMeR's numbers. With one query token the softmax
of either adapter's SA is 1: its q and k weights, 6,291,456, change only by weight decay."""
