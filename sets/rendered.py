"""What rendered pictures share: backgrounds, shading, occluders, lens, packed files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch.utils.data import DataLoader
from tqdm import tqdm

import bodymodels
from sets.packing import build_packed, fingerprint
from sets.samples import NOISE, random_generator
from sets.workers import available_cores, follow_parent

RENDER_VERSIONS = (1, 2)  # a new one whenever the same settings would give other pictures
STEEP = 0.4  # version 2: share of cameras that look from up to 40 degrees above or below
SKIN_TONES = np.array([[0.93, 0.76, 0.65], [0.87, 0.66, 0.53], [0.76, 0.54, 0.41],
                       [0.55, 0.37, 0.27], [0.36, 0.23, 0.17]])


@cache
def _noise_bank() -> np.ndarray:
    """Return noise drawn once: drawing it for each picture would cost more than posing the body."""
    return random_generator(NOISE).standard_normal(2**20, dtype=np.float32)


def shade_surface(rng: np.random.Generator, surface: np.ndarray, normals: np.ndarray,
          albedo: np.ndarray) -> np.ndarray:
    """Return the colours (V, 3) of vertices under a random key light, ambient light, highlight."""
    towards_light = rng.normal(0, 1, 3) + (0, -0.5, -0.8)  # mostly from above and from the camera
    towards_light /= np.linalg.norm(towards_light)
    warmth = rng.uniform(-0.12, 0.12) * np.array([1, 0, -1])
    key = rng.uniform(0.3, 0.9) * (1 + warmth)
    ambient = rng.uniform(0.3, 0.7) * (1 - 0.5 * warmth)
    overhead = 1 - rng.uniform(0, 0.4) * (1 + normals[:, 1:2]) / 2  # less light from below
    lambert = np.clip(normals @ towards_light, 0, None)[:, None]
    view = -surface / np.linalg.norm(surface, axis=1, keepdims=True)
    halfway = towards_light + view
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    glint = np.clip((normals * halfway).sum(1, keepdims=True), 0, None) ** 16
    return albedo * (ambient * overhead + key * lambert) + rng.uniform(0, 0.15) * glint


def random_skin(rng: np.random.Generator) -> np.ndarray:
    """Draw a skin colour (3,) between two of SKIN_TONES."""
    tone = rng.uniform(0, len(SKIN_TONES) - 1)
    base = SKIN_TONES[int(tone)] + (tone % 1) * (SKIN_TONES[int(tone) + 1]
                                                 - SKIN_TONES[int(tone)])
    return base * (1 + rng.normal(0, 0.05, 3))


def project_surface(surface: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Return the pixels and depth (V, 3) of points (V, 3), for `bodymodels.rasterize`."""
    z = surface[:, 2:]
    return np.concatenate([surface[:, :2] / z * K[0, 0] + K[:2, 2], z], 1)


def paint_surface(image: np.ndarray, surface: np.ndarray, faces: np.ndarray, K: np.ndarray,
                  colors: np.ndarray) -> np.ndarray:
    """Draw a closed surface (V, 3) into float32 0..255, in place; return its depth (S, S)."""
    size, pixels = len(image), project_surface(surface, K)
    beyond = np.concatenate([pixels[:, :2] < 0, pixels[:, :2] > size], 1)  # one bit for each border
    beyond = np.packbits(beyond, 1).ravel()[faces.T]
    faces = faces[beyond[0] & beyond[1] & beyond[2] == 0]
    x, y = pixels[:, 0][faces.T], pixels[:, 1][faces.T]
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    faces = faces[area < 0]  # front faces suffice: the surface is closed
    face_ids, barycentric, depth = bodymodels.rasterize(pixels, faces, (size, size))
    drawn = np.flatnonzero(face_ids >= 0)
    corners = (255 * colors).astype(np.float32)[faces].take(face_ids.ravel()[drawn], 0)
    weights = barycentric.reshape(-1, 3)[drawn]
    image.reshape(-1, 3)[drawn] = np.einsum("pk,pkc->pc", weights, corners)  # (pixels, 3)
    return depth


def paint_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a background (size, size, 3) uint8: colours, texture, clutter, random blur.

    Clutter is bars, discs and polygons. Some have skin colours, so that a network cannot find the
    hand by its colour.
    """
    side = size // int(rng.choice((1, 2, 4)))
    grid = int(rng.integers(1, 6))
    field = rng.normal(0, rng.uniform(10, 45), (grid, grid, 3)) + 255 * random_color(rng)
    picture = _enlarge(field, side).astype(np.float32)
    if rng.random() < 0.7:
        grid = int(rng.integers(6, max(side // 2, 7)))
        texture = rng.normal(0, 1, (grid, grid)) * rng.uniform(5, 25) + 128
        picture += _enlarge(texture, side)[..., None].astype(np.float32) - 128
    canvas = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(0, 12))):
        draw_shape(draw, rng, side, rng.uniform(-0.1, 1.1, 2), rng.uniform(0.03, 0.4))
    return np.array(canvas.resize((size, size), Image.Resampling.BILINEAR))


def random_color(rng: np.random.Generator) -> np.ndarray:
    """Draw an RGB colour (3,) in 0..1, mostly greyish."""
    return np.clip(rng.uniform(0.05, 0.95) + rng.exponential(0.12) * rng.normal(0, 1, 3), 0, 1)


def _enlarge(values: np.ndarray, side: int) -> np.ndarray:
    small = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def draw_shape(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int,
               center: np.ndarray, radius: float, fill: int | tuple[int, ...] | None = None
               ) -> None:
    """Draw a random bar, disc or polygon; centre and radius are fractions of the side.

    fill: its colour; by default a random one.
    """
    tone = SKIN_TONES[rng.integers(len(SKIN_TONES))] * rng.uniform(0.5, 1.1)
    color = tone if rng.random() < 0.3 else random_color(rng)
    fill = tuple(int(255 * min(value, 1)) for value in color) if fill is None else fill
    (x, y), radius = center * side, radius * side
    kind = rng.integers(3)
    if kind == 0:
        angle, reach = rng.uniform(0, np.pi), radius * 2.5
        dx, dy = reach * np.cos(angle), reach * np.sin(angle)
        draw.line((x - dx, y - dy, x + dx, y + dy), fill, width=max(1, int(radius * 0.7)))
    elif kind == 1:
        height = radius * rng.uniform(0.4, 1)
        draw.ellipse((x - radius, y - height, x + radius, y + height), fill)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
        points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)
        draw.polygon([tuple(point) for point in points.tolist()], fill)


def occlude(rng: np.random.Generator, picture: Image.Image) -> None:
    """Draw one or two shapes over 35 % of the pictures."""
    if rng.random() < 0.35:
        occluder = ImageDraw.Draw(picture)
        for _ in range(int(rng.integers(1, 3))):
            draw_shape(occluder, rng, picture.width, rng.uniform(0, 1, 2), rng.uniform(0.04, 0.18))


def add_lens_and_noise(rng: np.random.Generator, picture: Image.Image, lens_size: int = 128
                       ) -> np.ndarray:
    """Apply blur (the only anti-aliasing), exposure, white balance and noise; return uint8.

    lens_size: side of a picture that is blurred by 0.35 to 1.6 pixels.
    """
    radius = rng.uniform(0.35, 0.6) if rng.random() < 0.7 else rng.uniform(0.6, 1.6)
    radius *= picture.width / lens_size
    image = np.array(picture.filter(ImageFilter.BoxBlur(radius)), np.float32)
    image *= (rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    start = int(rng.integers(len(_noise_bank()) - image.size))
    noise = _noise_bank()[start:start + image.size].reshape(image.shape)
    image += noise * np.float32(rng.exponential(3.0))
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def check_version(version: int) -> int:
    """Return the version of the renderer; raise ValueError for an unknown one."""
    if version not in RENDER_VERSIONS:
        raise ValueError(f"unknown version {version!r} of the rendered pictures: expected 2, or 1 "
                         "for the pictures of older scores")
    return version


class Rendered:
    """A data set of rendered pictures: on the fly, or once into a packed file.

    Subclasses have split, seed and length, a dtype of records, and `render(index)`.
    """

    LENGTHS: dict[str, int]  # default length of each split
    path: Path | None = None
    _packed: np.ndarray | None = None

    def open_cache(self, cache: str | os.PathLike | None, kind: str, settings: dict,
                   progress: bool) -> None:
        """Find or build the packed file in the folder `cache`; its name holds a checksum."""
        if cache is not None:
            name = f"{kind}_{self.split}_{self.size}_{fingerprint(settings)}.npy"
            self.path = Path(cache) / name
            self._build(progress)

    def __len__(self) -> int:
        return self.length

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}  # workers map the file themselves

    def record(self, index: int) -> np.ndarray:
        """Return a packed record, from the cache if there is one."""
        if self.path is None:
            return self.render(index)
        if self._packed is None:
            self._packed = self._build(False)
        return self._packed[index]

    def _build(self, progress: bool) -> np.ndarray:
        return build_packed(self.path, self.dtype, self.length, resume=True,
                            fill=lambda records, start: self._fill(records, start, progress))

    def _render_batch(self, indices: list[int]) -> np.ndarray:
        return np.stack([self.render(index) for index in indices])

    def _fill(self, records: np.ndarray, start: int, progress: bool) -> Iterator[int]:
        """Render the split from `start` on, on all cores; yield the number of records done."""
        workers = available_cores() if self.length >= 256 else 0
        loader = DataLoader(range(start, self.length), batch_size=32, num_workers=workers,
                            collate_fn=self._render_batch, worker_init_fn=follow_parent,
                            generator=torch.Generator())  # the loader would advance the global one
        batches = iter(loader)
        bar = tqdm(batches, f"Rendering {self.path.name}", unit="batch", disable=not progress,
                   initial=start // 32, total=-(-self.length // 32))
        try:
            for number, batch in enumerate(bar, 1):
                records[start:start + len(batch)] = batch
                start += len(batch)
                if number % 16 == 0:
                    yield start
        finally:
            if workers:  # they ignore signals, and an error's traceback would keep them alive
                batches._shutdown_workers()
