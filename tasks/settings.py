"""What a run has beside the paper's numbers: machine, seed, evaluations, the free data; and --set.

A paper's numbers are in the Config of its file. `Settings` are ours and stand here, for all models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch

from weights.files import require

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCHEDULES = ("constant", "step", "cosine")
CHOICES = {"schedule": SCHEDULES, "precision": PRECISIONS}  # of fields
COUNTS = "batch_size", "accumulate", "steps", "eval_every", "train_samples", "test_samples"
ON_A_CPU = ("cpu", "ablation", "cpu_views")  # presets that are made for one
OF_THE_LOOP = ("batch_size", "steps", "learning_rate", "schedule", "warmup_steps", "weight_decay",
               "gradient_clip")  # the fields of a paper's Config that the loop reads
Value = bool | int | float | str | tuple


@dataclass(frozen=True)
class Settings:
    """What a run has beside its config. All values are our choice, but where a source is named.

    None: the stage has no such setting, and --set refuses it.
    """

    # Machine
    accumulate: int = 1  # parts in which a process computes its share of a step's samples
    precision: str = "fp32"  # "fp32", "bf16", or "fp16" with a gradient scaler
    channels_last: bool = False  # memory format, for speed alone

    # Run
    eval_every: int = 1_000  # steps between evaluations
    seed: int = 0  # of initialisation, order, masks and augmentation

    # Data
    train_samples: int = 100_000  # rendered ones, or poses of the free clips, per epoch
    test_samples: int = 1_000
    augmentation: str | None = None  # recipe of training pictures, a name of data.AUGMENTATIONS
    views: float | None = None  # degrees; of hands the largest tilt of palm or back and turn in the
    # image plane, 90: the whole sphere and any turn; of bodies the largest heading, either way
    lean: float | None = None  # degrees, largest lean of bodies from upright
    wide: float | None = None  # share of training poses that go beyond the clips
    version: int | None = None  # of the renderer of bodies; 1: the pictures of older scores
    test_body_size: int | None = None  # px, side of the test split's pictures of people, from which
    # hands are cut; 0: as in training

    # GenHMR's tokenizer: "we rotate the poses at varying degrees" (paper), see augment_rotation
    tilt: float | None = None  # degrees, largest lean; turns about the vertical: up to `views`
    uniform_rotation: float | None = None  # fraction of bodies with any orientation at all


# ------------------------------------------------------------------------------------ presets

# The release trains in fp16 with a gradient scaler, evaluates by its own count, and FreiHAND has
# 130,240 images.
HANDS = Settings(precision="fp16", channels_last=True, eval_every=2_560, train_samples=130_240,
                 augmentation="rendered", views=90.0)
SIMPLEHAND = {
    "paper": HANDS, "paper_hrnet": HANDS, "paper_hiera": HANDS,
    "h200": replace(HANDS, precision="bf16", eval_every=1_280),
    "single_gpu": replace(HANDS, accumulate=8),
    "cpu": replace(HANDS, precision="fp32", eval_every=1_900, train_samples=20_000,
                   views=15.0),
    "ablation": replace(HANDS, precision="fp32", eval_every=500, train_samples=16_000,
                        views=15.0),
    "cpu_views": replace(HANDS, precision="fp32", eval_every=1_800, train_samples=80_000,
                         augmentation="rendered_upright"),
}
POSES = Settings(eval_every=5_000, train_samples=1_000_000, test_samples=2_000, views=180.0,
                 lean=180.0, wide=0.0, tilt=45.0, uniform_rotation=0.2)
GENHMR_TOKENIZER = {
    "paper": POSES,
    "h200": replace(POSES, eval_every=1_250),
    "single_gpu": replace(POSES, accumulate=2),
    "cpu": replace(POSES, eval_every=1_800, train_samples=20_000, test_samples=1_000, lean=45.0,
                   wide=0.8, tilt=40.0, uniform_rotation=0.0),
}
SMALL_BODIES = Settings(channels_last=True, eval_every=1_300, train_samples=16_000,
                        test_samples=500, augmentation="rendered_bodies_photos", views=180.0,
                        lean=45.0, wide=0.5, version=2)
# In 40 minutes of two cores headings of the whole circle are not learned, see RESULTS.md
NEW_BODIES = replace(SMALL_BODIES, views=30.0, lean=30.0, wide=0.2)
GENHMR_ENCODER = {
    "h200": replace(SMALL_BODIES, train_samples=100_000),
    "single_gpu": replace(SMALL_BODIES, train_samples=60_000),
    "cpu": NEW_BODIES,
}
# The recipe has scale, rotation, flip and colour (paper), shifts and crops of body parts (HMR2.0).
BODIES = Settings(precision="bf16", channels_last=True, eval_every=10_000, train_samples=300_000,
                  augmentation="official_hmr", views=180.0, lean=180.0, wide=0.0, version=2)
GENHMR_TRANSFORMER = {
    "paper": BODIES,
    "h200": replace(BODIES, eval_every=5_000),
    "single_gpu": replace(BODIES, accumulate=8),
    "cpu": replace(NEW_BODIES, channels_last=False, eval_every=525),
}
# V100 has no bf16.
PEOPLE = Settings(precision="fp16", eval_every=500, augmentation="official_people", views=180.0,
                  lean=180.0, wide=0.0, version=2, test_body_size=0)
SMALL_PEOPLE = replace(PEOPLE, precision="fp32", eval_every=600, train_samples=8_000,
                       test_body_size=512, augmentation="rendered_people", lean=45.0, wide=0.5)
HMR_EXPERT = {
    "paper": PEOPLE,
    "h200": replace(PEOPLE, precision="bf16"),
    "single_gpu": replace(PEOPLE, precision="bf16"),
    "cpu": replace(SMALL_PEOPLE, channels_last=True),
}
HMR_ADAPTER = HMR_EXPERT | {
    "single_gpu": replace(PEOPLE, precision="bf16", accumulate=8),
    "cpu": SMALL_PEOPLE,
}


def suitable_preset() -> str:
    """Choose the preset for this machine, by name."""
    if not torch.cuda.is_available():
        return "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory
    return "h200" if memory > 100e9 else "single_gpu"


def preset_settings(presets: Mapping[str, Settings], preset: str | None,
                    content: Mapping[str, object] | None = None) -> Settings:
    """Return a preset's settings; without one of that name the paper's, else the small model's.

    content: of a checkpoint whose settings replace them, but for those that its stage did not have.
    Older ones have them in the config.
    """
    settings = presets.get(preset) or presets.get("paper") or presets["cpu"]
    stored = (content.get("settings") or content["config"]) if content else {}
    return replace(settings, **{name: value for name, value in stored.items()
                                if name in vars(settings) and value is not None})


# -------------------------------------------------------------------------------------- --set


def settable(*parts: object) -> dict[str, Value]:
    """Return the fields of dataclasses that --set changes: a part's config comes with the part."""
    return {name: value for part in parts for name, value in vars(part).items()
            if value is not None and not dataclasses.is_dataclass(value)}


def override(assignments: Sequence[str], *parts: object) -> list:
    """Apply each "field=value" to those of the dataclasses, a config and settings, that have it.

    Raises ValueError for what does not fit.
    """
    known, changes = settable(*parts), {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        near = [f"did you mean {one}?" for one in get_close_matches(name, known, 1)]
        require(equals and name in known, f"--set {assignment}: expected FIELD=VALUE; "
                + (near or [f"fields are {', '.join(sorted(known))}"])[0])
        try:
            value = changes[name] = parse_value(text, known[name])
        except (ValueError, LookupError):
            raise ValueError(f"--set {assignment}: {text!r} is not of type "
                             f"{type(known[name]).__name__}; by default {name} is {known[name]}"
                             ) from None
        require(name not in COUNTS or value >= 1, f"{name} is {value}: expected at least 1")
        require("drop" not in name or 0 <= value < 1, f"{name} is {value}: expected a part of all, "
                "from 0 to below 1")
        require(value in CHOICES.get(name, [value]),
                f"{name} is {value!r}: expected one of {', '.join(CHOICES.get(name, ()))}")
    try:
        return [replace(part, **{name: value for name, value in changes.items()
                                 if name in vars(part)}) for part in parts]
    except (ArithmeticError, TypeError, IndexError) as error:
        raise ValueError(f"--set {' '.join(assignments)}: no such model ({error})") from error


def parse_value(text: str, old: Value) -> Value:
    """Convert text to the type of an old value: a bool, number, string, or a tuple of these."""
    if isinstance(old, tuple):
        return tuple(parse_value(part, old[0]) for part in text.split(",") if text)  # "": ()
    if isinstance(old, bool):
        return {"true": True, "false": False}[text.lower()]
    return type(old)(text)


def as_text(value: Value) -> str:
    """Format a value as --set takes it: the inverse of parse_value."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def own_overrides(assignments: Sequence[str], stage: type, stages: Iterable[type]) -> list[str]:
    """Select what --set of a command of several stages means for one of them, a Task.

    All but the fields that only other stages have; `override` refuses the rest.
    """
    def fields(task: type) -> set[str]:
        return {*vars(task.PRESETS["cpu"]), *settable(*task.SETTINGS.values())}

    foreign = set().union(*map(fields, stages)) - fields(stage)
    return [text for text in assignments if text.partition("=")[0] not in foreign]
