"""Augmentation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Augmentation:
    """A recipe. Ranges are uniform; geometry moves the crop's camera, so labels stay exact."""

    center_jitter: float = 0.0  # centre moves by +- this fraction of the box's width, both axes
    scale: tuple[float, float] = (1.0, 1.0)  # box side factor; a data set's box is tight or whole
    rotation: float = 0.0  # degrees, +- in the image plane
    radians_quirk: bool = False  # rotation as the official SimpleHand code draws it, see below
    flip: float = 0.0  # probability of mirroring: pictures of the other hand, same topology
    extreme: float = 0.0  # probability of a box around a part of the body, bodies only
    hmr_draws: bool = False  # motion drawn as HMR2.0 does, see `draw_motion`
    gain: tuple[float, float] = (1.0, 1.0)  # factor of each colour channel
    brightness: tuple[float, float] = (0.0, 0.0)  # offset, fraction of white
    contrast: tuple[float, float] = (0.0, 0.0)  # factor - 1

    @property
    def moves(self) -> bool:
        """Whether the recipe changes the crop and not only colours."""
        return (self.center_jitter, self.scale, self.rotation, self.radians_quirk, self.flip,
                self.extreme) != (0.0, (1.0, 1.0), 0.0, False, 0.0, 0.0)

    def draw_roll(self, rng: np.random.Generator) -> float:
        """An in-plane rotation in radians.

        The official code draws N(0, 90) clipped to +-180, meant as degrees, and passes it to cos
        and sin as radians: nearly uniform over the circle, with spikes at +-180 rad (4.6 %).
        """
        if self.radians_quirk:
            return float(np.clip(rng.normal(0, 90), -180, 180))
        return float(np.deg2rad(rng.uniform(-self.rotation, self.rotation)))

    def draw_motion(self, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
        """Shift of the centre (2,) in box widths, factor of the box's side, roll in radians.

        HMR2.0 draws shift and scale from a normal distribution cut off at one deviation, which is
        the range, and turns 60 % of the pictures, by one cut off at two.
        """
        if self.hmr_draws:
            low, high = self.scale
            shift, normal = np.clip(rng.normal(0, 1, 2), -1, 1), np.clip(rng.normal(), -1, 1)
            turn = np.clip(rng.normal(), -2, 2) * (rng.random() < 0.6)
            return (shift * self.center_jitter, (low + high + (high - low) * normal) / 2,
                    float(np.deg2rad(turn * self.rotation)))
        shift = rng.uniform(-self.center_jitter, self.center_jitter, 2)
        return shift, rng.uniform(*self.scale), self.draw_roll(rng)

    def recolor(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Gain, then brightness and contrast, of (3, S, S) uint8, through one table per channel."""
        gain = rng.uniform(*self.gain, (3, 1))
        brightness, contrast = rng.uniform(*self.brightness), rng.uniform(*self.contrast)
        table = np.clip(np.arange(256) * gain, 0, 255)
        table = np.clip(table * (1 + contrast) + 255 * brightness, 0, 255).round().astype(np.uint8)
        return np.stack([row[channel] for row, channel in zip(table, image, strict=True)])


COLOR = {"gain": (0.6, 1.4), "brightness": (-0.4, 0.1), "contrast": (-0.2, 0.2)}  # official
AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "official_simplehand": Augmentation(center_jitter=0.1, scale=(1.0, 1.5), radians_quirk=True,
                                        flip=0.5, **COLOR),
    "rendered": Augmentation(gain=(0.8, 1.2), brightness=(-0.15, 0.15), contrast=(-0.2, 0.2)),
    "rendered_moving": Augmentation(center_jitter=0.05, scale=(0.85, 1.15), rotation=30.0,
                                    gain=(0.8, 1.2), brightness=(-0.15, 0.15),
                                    contrast=(-0.2, 0.2)),
    # HMR2.0: SCALE .3, ROT 30, TRANS .02, FLIP .5, COLOR 20 %, extreme crops 10 %
    "official_hmr": Augmentation(center_jitter=0.02, scale=(0.7, 1.3), rotation=30.0, flip=0.5,
                                 extreme=0.1, hmr_draws=True, gain=(0.8, 1.2)),
    # HaMeR: the same but for flips and extreme crops, of a box twice as large as the hand's
    "official_hamer": Augmentation(center_jitter=0.04, scale=(1.4, 2.6), rotation=30.0,
                                   hmr_draws=True, gain=(0.8, 1.2)),
    "rendered_bodies": Augmentation(center_jitter=0.02, scale=(0.9, 1.1), rotation=8.0, flip=0.5,
                                    gain=(0.8, 1.2), brightness=(-0.15, 0.15),
                                    contrast=(-0.2, 0.2)),
}


def find_augmentation(recipe: str | Augmentation | None) -> Augmentation | None:
    """A recipe by name, or the recipe itself."""
    if isinstance(recipe, str):
        if recipe not in AUGMENTATIONS:
            raise ValueError(f"unknown augmentation {recipe!r}: expected one of "
                             f"{', '.join(AUGMENTATIONS)}, or an Augmentation")
        return AUGMENTATIONS[recipe]
    return recipe
