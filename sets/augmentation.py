"""Recipes of data augmentation, by name."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageFilter


@dataclass(frozen=True)
class Augmentation:
    """One recipe. Ranges are uniform unless `draws` says otherwise; labels stay exact."""

    center_jitter: float = 0.0  # fraction of the box's width: the centre moves by up to +- this
    scale: tuple[float, float] = (1.0, 1.0)  # factor of the box's side
    rotation: float = 0.0  # degrees: the picture turns by up to +- this in its plane
    flip: float = 0.0  # probability of mirroring the picture
    extreme: float = 0.0  # probability of a box around a part of the body (bodies only)
    draws: str = "uniform"  # "uniform", or as the code of "simplehand" or "hmr2" draws them
    release_crop: bool = False  # crop and resample hands as SimpleHand's release, see `crops`
    gain: tuple[float, float] = (1.0, 1.0)  # factor of each colour channel
    brightness: tuple[float, float] = (0.0, 0.0)  # offset, fraction of white
    contrast: tuple[float, float] = (0.0, 0.0)  # factor - 1
    effects: dict[str, float] = field(default_factory=dict)  # probability of each, see EFFECTS
    hand_jitter: float = 1.0  # crops of people's hands move this many times as far as their boxes
    hand_blur: float = 0.0  # half of the crops of people's hands are blurred by a box of up to this
    # radius in pixels, as crops that were enlarged are; for crops of 128 px
    upright: float = 0.0  # probability of a second crop, in which the hand points up (hands only)

    @property
    def moves(self) -> bool:
        """Whether the recipe changes the crop, and not only colours."""
        return (self.center_jitter, self.scale, self.rotation, self.draws == "simplehand",
                self.flip, self.extreme, self.upright
                ) != (0.0, (1.0, 1.0), 0.0, False, 0.0, 0.0, 0.0)

    def draw_motion(self, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
        """Draw the shift of the centre (2,) in box widths, the factor of the side, and the roll.

        HMR2.0 draws shift and scale from a normal distribution clipped at one deviation, which is
        the range. It turns 60 % of the pictures, by a normal distribution clipped at two.
        SimpleHand's code draws the roll from N(0, 90) clipped to +-180, meant as degrees, and
        passes it to cos and sin as radians: nearly uniform over the circle; 4.6 % are +-180 rad.
        """
        if self.draws == "hmr2":
            low, high = self.scale
            shift, normal = np.clip(rng.normal(0, 1, 2), -1, 1), np.clip(rng.normal(), -1, 1)
            turn = np.clip(rng.normal(), -2, 2) * (rng.random() < 0.6)
            return (shift * self.center_jitter, (low + high + (high - low) * normal) / 2,
                    float(np.deg2rad(turn * self.rotation)))
        shift = rng.uniform(-self.center_jitter, self.center_jitter, 2)
        scale = rng.uniform(*self.scale)
        if self.draws == "simplehand":
            return shift, scale, float(np.clip(rng.normal(0, 90), -180, 180))
        return shift, scale, float(np.deg2rad(rng.uniform(-self.rotation, self.rotation)))

    def recolor(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Apply gain, brightness and contrast to (3, S, S) uint8, then what photographs have."""
        gain = rng.uniform(*self.gain, (3, 1))
        brightness, contrast = rng.uniform(*self.brightness), rng.uniform(*self.contrast)
        table = np.clip(np.arange(256) * gain, 0, 255)  # one look-up table per channel
        table = np.clip(table * (1 + contrast) + 255 * brightness, 0, 255).round().astype(np.uint8)
        image = np.stack([row[channel] for row, channel in zip(table, image, strict=True)])
        for name, change in EFFECTS.items():
            if name in self.effects and rng.random() < self.effects[name]:
                image = change(image, rng)
        return image

    def soften(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Blur a hand's crop (3, H, H) uint8."""
        if not self.hand_blur or rng.random() < 0.5:
            return image
        radius = rng.uniform(0, self.hand_blur) * image.shape[1] / 128
        picture = Image.fromarray(image.transpose(1, 2, 0)).filter(ImageFilter.BoxBlur(radius))
        return np.asarray(picture).transpose(2, 0, 1)


def hide_patch(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hide a rectangle of (3, S, S) uint8, its sides 1/16 to 5/16 of S, behind noise."""
    size = image.shape[1]
    height, width = (size * rng.uniform(1 / 16, 5 / 16, 2)).astype(int)
    top, left = rng.integers(size - height), rng.integers(size - width)
    noise = rng.uniform(0, 255, (3, 1, 1)) + rng.normal(0, 30, (3, height, width))
    image[:, top:top + height, left:left + width] = np.clip(noise, 0, 255)
    return image


def color_light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiply (3, S, S) uint8 by a colour and by a coloured ramp across the picture."""
    angle, side = rng.uniform(0, 2 * np.pi), np.linspace(-1, 1, image.shape[1])
    ramp = np.cos(angle) * side + np.sin(angle) * side[:, None]  # (S, S)
    light = rng.normal(0, 0.1, (3, 1, 1)) + rng.normal(0, 0.2, (3, 1, 1)) * ramp
    return np.clip(image * np.exp(light), 0, 255).astype(np.uint8)


def turn_grey(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (3, S, S) uint8 with the brightness of the picture in each channel."""
    return np.repeat(_brightness(image)[None].round().astype(np.uint8), 3, 0)


def tint(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make the colours of (3, S, S) uint8 paler, and put one cast over all of them, as of sepia."""
    grey, cast = _brightness(image), np.exp(rng.normal(0, 0.15, (3, 1, 1))).astype(np.float32)
    colors = (grey + np.float32(rng.uniform(0, 1)) * (image - grey)) * cast
    return np.clip(colors, 0, 255).round().astype(np.uint8)


def _brightness(image: np.ndarray) -> np.ndarray:
    weights = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue: ITU-R BT.601
    return np.einsum("c,cij->ij", weights, image.astype(np.float32))


def defocus(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur (3, S, S) uint8, or store it at a resolution lower by up to 4."""
    picture, size = Image.fromarray(image.transpose(1, 2, 0)), image.shape[1]
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, size / 56)))
    else:
        small = max(int(size / rng.uniform(1.3, 4)), 8)
        picture = picture.resize((small, small), Image.Resampling.BOX).resize(
            (size, size), Image.Resampling(rng.integers(1, 4)))
    return np.asarray(picture).transpose(2, 0, 1)


def blur_motion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Average copies of (3, S, S) uint8 along a line of up to 1/12 of the side."""
    size = image.shape[1]
    angle, reach = rng.uniform(0, np.pi), rng.uniform(0, size / 24)
    margin = int(np.ceil(reach))
    padded = np.pad(image, ((0, 0), (margin, margin), (margin, margin)), "edge")
    total = np.zeros(image.shape, np.float32)
    for part in np.linspace(-reach, reach, 2 * margin + 1):
        x, y = margin + round(part * np.cos(angle)), margin + round(part * np.sin(angle))
        total += padded[:, y:y + size, x:x + size]
    return (total / (2 * margin + 1)).round().astype(np.uint8)


def compress(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Store (3, S, S) uint8 as a JPEG and read it again."""
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=int(rng.integers(15, 91)))
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


EFFECTS = {  # what photographs have, in the order in which it happens
    "patches": hide_patch, "colored_light": color_light, "tint": tint, "grey": turn_grey,
    "defocus": defocus, "motion_blur": blur_motion, "jpeg": compress}


def for_hands(recipe: Augmentation) -> Augmentation:
    """Adapt a recipe of bodies to crops of hands, as HaMeR does.

    The crop is twice as large as the hand's tight box; there are no flips and no extreme crops.
    """
    low, high = recipe.scale
    return replace(recipe, center_jitter=2 * recipe.center_jitter, scale=(2 * low, 2 * high),
                   flip=0.0, extreme=0.0)


TIGHT_BOX = Augmentation(scale=(1.25, 1.25))  # how papers crop a hand for evaluation
SIMPLEHAND = Augmentation(
    center_jitter=0.1, scale=(1.0, 1.5), flip=0.5, draws="simplehand", gain=(0.6, 1.4),
    brightness=(-0.4, 0.1), contrast=(-0.2, 0.2))  # released code
HMR2 = Augmentation(center_jitter=0.02, scale=(0.7, 1.3), rotation=30.0, flip=0.5, extreme=0.1,
                    draws="hmr2", gain=(0.8, 1.2))  # released configuration
PHOTOS = Augmentation(
    center_jitter=0.08, scale=(0.75, 1.15), rotation=30.0, gain=(0.8, 1.2),
    brightness=(-0.15, 0.15), contrast=(-0.25, 0.25),
    effects={"patches": 0.15, "colored_light": 0.3, "motion_blur": 0.25, "jpeg": 0.3})
AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    # SimpleHand's recipe with our exact crop; then with the release's own crop, to train and to
    # evaluate networks that use its weights
    "official_simplehand": SIMPLEHAND,
    "release_simplehand": replace(SIMPLEHAND, release_crop=True),
    "release_simplehand_test": replace(TIGHT_BOX, release_crop=True),
    "official_hmr": HMR2,
    "official_people": replace(HMR2, extreme=0.0),  # HaMeR's; SMPLer-X scales by 0.75 to 1.25
    # our choice, for rendered pictures
    "rendered": Augmentation(gain=(0.8, 1.2), brightness=(-0.15, 0.15), contrast=(-0.2, 0.2)),
    "rendered_photos": PHOTOS,
    "rendered_upright": replace(PHOTOS, upright=0.85),
    "rendered_bodies_photos": Augmentation(  # with what cameras, filters and files change
        center_jitter=0.05, scale=(0.82, 1.22), rotation=15.0, flip=0.5, gain=(0.75, 1.25),
        brightness=(-0.15, 0.15), contrast=(-0.25, 0.25),
        effects={"patches": 0.3, "colored_light": 0.15, "tint": 0.15, "grey": 0.1, "defocus": 0.25,
                 "motion_blur": 0.1, "jpeg": 0.3}),
    "rendered_people": Augmentation(
        center_jitter=0.07, scale=(0.8, 1.35), rotation=20.0, flip=0.5, gain=(0.75, 1.25),
        brightness=(-0.15, 0.15), contrast=(-0.25, 0.25), effects={"patches": 0.2},
        hand_jitter=2.0, hand_blur=2.5),
}


def find_augmentation(recipe: str | Augmentation | None) -> Augmentation | None:
    """Return the recipe of this name (ValueError if it is unknown), or the given recipe itself."""
    if not isinstance(recipe, str):
        return recipe
    if recipe not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {recipe!r}: expected one of "
                         f"{', '.join(AUGMENTATIONS)}, or an Augmentation")
    return AUGMENTATIONS[recipe]
