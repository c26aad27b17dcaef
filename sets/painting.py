"""Paint what rendered pictures consist of: shading, surfaces, shapes, backgrounds, lens.

Backgrounds have the statistics of photographs: scenes, textures, collages, shadows. The textures
are drawn once for each process, from fixed numbers. A picture takes random parts of them, turned,
stretched and recoloured: that costs much less than new textures would.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

import bodymodels
from sets.samples import DETAILS, NOISE, random_generator

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
    base = SKIN_TONES[int(tone)] + (tone % 1) * (SKIN_TONES[int(tone) + 1] - SKIN_TONES[int(tone)])
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

    Some clutter has skin colours, so that a network cannot find the hand by its colour.
    """
    side = size // int(rng.choice((1, 2, 4)))
    grid = int(rng.integers(1, 6))
    field = rng.normal(0, rng.uniform(10, 45), (grid, grid, 3)) + 255 * random_color(rng)
    picture = _enlarge(field, side).astype(np.float32)
    if rng.random() < 0.7:
        grid = int(rng.integers(6, max(side // 2, 7)))
        texture = rng.normal(0, 1, (grid, grid)) * rng.uniform(5, 25) + 128
        picture += _enlarge(texture, side)[..., None].astype(np.float32) - 128
    canvas = to_image(picture)
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(0, 12))):
        draw_shape(draw, rng, side, rng.uniform(-0.1, 1.1, 2), rng.uniform(0.03, 0.4))
    return np.array(canvas.resize((size, size), Image.Resampling.BILINEAR))


def random_color(rng: np.random.Generator) -> np.ndarray:
    """Draw an RGB colour (3,) in 0..1, mostly greyish."""
    return np.clip(rng.uniform(0.05, 0.95) + rng.exponential(0.12) * rng.normal(0, 1, 3), 0, 1)


def _enlarge(values: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(to_image(values).resize((side, side), Image.Resampling.BICUBIC))


def draw_shape(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int,
               center: np.ndarray, radius: float, fill: int | tuple[int, ...] | None = None
               ) -> None:
    """Draw a random bar, disc or polygon; centre and radius are fractions of the side.

    fill: its colour; by default a random one.
    """
    tone = SKIN_TONES[rng.integers(len(SKIN_TONES))] * rng.uniform(0.5, 1.1)
    color = tone if rng.random() < 0.3 else random_color(rng)
    fill = to_fill(color) if fill is None else fill
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


def occlude(rng: np.random.Generator, picture: Image.Image, sources: Sequence[Image.Image] = ()
            ) -> None:
    """Draw one or two shapes over 35 % of the pictures; with textures, half of them have one."""
    if rng.random() < 0.35:
        for _ in range(int(rng.integers(1, 3))):
            center, radius = rng.uniform(0, 1, 2), rng.uniform(0.04, 0.18)
            if sources and rng.random() < 0.5:
                draw_piece(rng, picture, pick(rng, sources), center, radius)
            else:
                draw_shape(ImageDraw.Draw(picture), rng, picture.width, center, radius)


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


TEST_PHOTOGRAPHS = ("forest", "gravel", "lobby", "venice", "workshop")  # never in training
SURFACES = ("brick", "grass", "gravel")  # photographs of which any part may be turned
REACH = 2.7  # radii from a shape's centre to its farthest point, a bar's end
SIDE = 320  # pixels of a texture
COPIES = 6  # textures of each kind
# What a background mostly consists of, with probabilities
KINDS = {"photograph": 0.35, "room": 0.25, "collage": 0.2, "clutter": 0.2}


@cache
def photographs(split: str) -> list[Image.Image]:
    """Return the freely licensed photographs of a split; `assets/README.md` lists them."""
    paths = sorted((bodymodels.ASSETS / "backgrounds").glob("*.jpg"))
    return [Image.open(path).convert("RGB") for path in paths
            if (path.stem in TEST_PHOTOGRAPHS) == (split == "test")
            and path.stem not in SURFACES]


@cache
def textures(split: str) -> list[Image.Image]:
    """Return drawn textures, and a split's photographs of surfaces, each at least SIDE square."""
    drawn = [paint(random_generator(DETAILS, kind, copy))
             for kind, paint in enumerate((noise, patches, bricks, planks, lattice, leaves))
             for copy in range(COPIES)]
    surfaces = [Image.open(bodymodels.ASSETS / "backgrounds" / f"{name}.jpg").convert("RGB")
                for name in SURFACES if (name in TEST_PHOTOGRAPHS) == (split == "test")]
    return drawn + [picture.resize((SIDE, SIDE)) for picture in surfaces]


def noise(rng: np.random.Generator) -> Image.Image:
    """Draw coloured noise whose amplitude falls with frequency to the power -0.8 to -1.4."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((3, SIDE, SIDE)), axes=(1, 2))
    field = np.fft.irfft2(spectrum * frequency ** -rng.uniform(0.8, 1.4), axes=(1, 2))
    field /= field.std((1, 2), keepdims=True)
    mixing = np.ones((3, 1)) * (1, 0, 0) + rng.normal(0, 0.12, (3, 3))  # mostly brightness
    picture = np.tensordot(field, mixing.T * rng.uniform(30, 60), (0, 0))
    return to_image(picture + 255 * random_color(rng))


def patches(rng: np.random.Generator) -> Image.Image:
    """Draw flat patches of four colours with curved borders, as of foliage or camouflage."""
    level = np.asarray(noise(rng).convert("L"), np.float64).argsort(None).argsort()
    share = level.reshape(SIDE, SIDE) / SIDE**2
    colors = 255 * np.stack([random_color(rng) for _ in range(4)])
    return to_image(colors[(share * 4).astype(int)] + grain(rng, 12))


def bricks(rng: np.random.Generator) -> Image.Image:
    """Draw bricks or tiles with joints, each of its own brightness."""
    height, width = rng.uniform(8, 40), rng.uniform(12, 80)
    row, v = np.divmod(np.arange(SIDE)[:, None] / height, 1)
    column, u = np.divmod(np.arange(SIDE) / width + row * rng.choice((0, 0.5)), 1)
    shade = rng.normal(1, rng.uniform(0, 0.2), (64, 64))[row.astype(int), column.astype(int)]
    joint = (v < 2 / height) | (u < 2 / width)
    color = np.where(joint[..., None], random_color(rng), shade[..., None] * random_color(rng))
    return to_image(255 * color + grain(rng, 15))


def planks(rng: np.random.Generator) -> Image.Image:
    """Draw stripes of several widths with grain along them: planks, cloth, blinds."""
    number = np.searchsorted(np.cumsum(rng.exponential(rng.uniform(4, 30), 200)), np.arange(SIDE))
    shade = rng.normal(1, rng.uniform(0.05, 0.35), 201)[number][:, None]
    color = np.stack([random_color(rng), random_color(rng)])[number % rng.choice((1, 2))]
    lines = noise(rng).resize((SIDE * 8, SIDE)).crop((0, 0, SIDE, SIDE)).convert("L")
    picture = 255 * color[:, None] * shade[..., None] * np.ones((1, SIDE, 1))
    return to_image(picture + (np.asarray(lines, np.float64)[..., None] - 128) * 0.4)


def lattice(rng: np.random.Generator) -> Image.Image:
    """Draw rectangles in rectangles with frames: facades, windows, shelves, screens."""
    picture = Image.new("RGB", (SIDE, SIDE))
    draw, boxes = ImageDraw.Draw(picture), [(0.0, 0.0, float(SIDE), float(SIDE))]
    colors = [random_color(rng) for _ in range(5)]
    while boxes:
        x, y, width, height = boxes.pop()
        if max(width, height) > 24 and (rng.random() < 0.85 or max(width, height) > SIDE / 2):
            count = int(rng.integers(2, 6))
            if width > height:
                step = width / count
                boxes += [(x + i * step, y, step, height) for i in range(count)]
            else:
                step = height / count
                boxes += [(x, y + i * step, width, step) for i in range(count)]
            continue
        color = colors[rng.integers(5)] * rng.uniform(0.7, 1.2)
        draw.rectangle((x, y, x + width, y + height), to_fill(color),
                       to_fill(colors[0]), int(rng.integers(0, 4)))
    return to_image(np.asarray(picture) + grain(rng, 20))


def leaves(rng: np.random.Generator) -> Image.Image:
    """Draw shapes over shapes of all sizes: the dead leaves model of natural pictures."""
    picture = Image.new("RGB", (SIDE, SIDE), to_fill(random_color(rng)))
    draw, colors = ImageDraw.Draw(picture), [random_color(rng) for _ in range(6)]
    for _ in range(900):
        radius = 0.012 * (1 - rng.random()) ** -0.6  # as many of each size as scenes have
        color = colors[rng.integers(6)] * rng.uniform(0.5, 1.3) + rng.normal(0, 0.04, 3)
        draw_shape(draw, rng, SIDE, rng.uniform(0, 1, 2), min(radius, 0.25), to_fill(color))
    return to_image(np.asarray(picture) + grain(rng, 15))


def grain(rng: np.random.Generator, strength: float) -> np.ndarray:
    """Draw grey noise (SIDE, SIDE, 1) about 0, with a deviation of up to `strength`."""
    field = np.asarray(noise(rng).convert("L"), np.float64)[..., None]
    return (field - field.mean()) / field.std() * rng.uniform(0, strength)


def to_image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def to_fill(color: np.ndarray) -> tuple[int, ...]:
    return tuple(int(255 * min(max(value, 0), 1)) for value in color)


def cut(rng: np.random.Generator, source: Image.Image, size: int, turn: bool = True) -> Image.Image:
    """Return a random part of a picture, stretched to size x size, mirrored and recoloured.

    turn: also turn it and view it in perspective, as is right for surfaces.
    """
    width, height = source.size
    side = min(width, height) * rng.uniform(0.25 if turn else 0.4, 1)
    corner = rng.uniform(0, 1, 2) * (width - side, height - side)
    if turn and rng.random() < 0.4:
        square = np.array([[0, 0], [0, 1], [1, 1], [1, 0]]) + rng.uniform(-0.25, 0.25, (4, 2))
        quad = corner + side * np.clip(square, 0, 1)
        part = source.transform((size, size), Image.Transform.QUAD, quad.ravel().tolist(),
                                Image.Resampling.BILINEAR)
    else:
        part = source.resize((size, size), Image.Resampling.BILINEAR if turn
                             else Image.Resampling.BICUBIC, (*corner, *(corner + side)))
    turns = list(Image.Transpose) if turn else [Image.Transpose.FLIP_LEFT_RIGHT]
    if rng.random() < (0.8 if turn else 0.5):
        part = part.transpose(pick(rng, turns))
    return recolor(rng, part, 0.12 if turn else 0.08)


def recolor(rng: np.random.Generator, picture: Image.Image, cast: float) -> Image.Image:
    """Change contrast, brightness and tint of a picture; cast: deviation of the channels' gain."""
    gain = rng.uniform(0.6, 1.2) * np.exp(rng.normal(0, cast, 3))
    offset = 128 + rng.uniform(-60, 60)
    table = np.clip((np.arange(256) - 128) * gain[:, None] + offset, 0, 255)
    return picture.point(table.astype(np.uint8).ravel().tolist())


def draw_piece(rng: np.random.Generator, canvas: Image.Image, source: Image.Image,
               center: np.ndarray, radius: float) -> None:
    """Draw a shape that is filled with a texture; centre and radius are fractions of the side."""
    size = canvas.width
    reach = REACH * radius
    low = np.floor((center - reach) * size).astype(int)
    side = max(int(np.ceil(2 * reach * size)), 2)
    mask = Image.new("L", (side, side))
    draw_shape(ImageDraw.Draw(mask), rng, side, np.array([0.5, 0.5]), radius * size / side, 255)
    part = cut(rng, source, min(side, size))
    canvas.paste(part.resize((side, side)) if side > size else part, tuple(low.tolist()), mask)


def cut_piece(rng: np.random.Generator, source: Image.Image, extent: float) -> Image.Image:
    """Return a shape filled with a texture, RGBA, of the radius 1 / (2 REACH) of its side.

    The random numbers do not depend on extent, the side in pixels of what it will be drawn on.
    """
    tile, mask = cut(rng, source, SIDE), Image.new("L", (SIDE, SIDE))
    draw_shape(ImageDraw.Draw(mask), rng, SIDE, np.array([0.5, 0.5]), 0.5 / REACH, 255)
    tile.putalpha(mask)
    return tile.reduce(min(max(int(SIDE / extent), 1), 16))  # averages pixels: no aliasing


def paint_scene(rng: np.random.Generator, size: int, split: str, colors: np.ndarray) -> np.ndarray:
    """Draw the background (size, size, 3), float32 0..255, of a person with these colours (V, 3).

    One of KINDS, then a few shapes of the person's colours or with textures, light that varies
    across the picture, and often blur. A quarter of the pictures is as bright as the person.
    """
    kind = rng.choice(list(KINDS), p=list(KINDS.values()))
    if kind == "photograph":
        canvas = cut(rng, pick(rng, photographs(split)), size, turn=False)
        fine = cut(rng, pick(rng, textures(split)), size)  # photographs are small: sharper detail
        canvas = Image.blend(canvas, fine, max(rng.uniform(-0.15, 0.25), 0))
    elif kind == "clutter":
        canvas = Image.fromarray(paint_background(rng, size))
    else:
        canvas = (collage if kind == "collage" else room)(rng, size, split)
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(0, 6)) * (rng.random() < 0.6)):
        center, radius = rng.uniform(-0.1, 1.1, 2), rng.uniform(0.02, 0.25)
        if rng.random() < 0.5:
            draw_piece(rng, canvas, pick(rng, textures(split)), center, radius)
        else:
            draw_shape(draw, rng, size, center, radius, to_fill(pick(rng, colors)))
    if rng.random() < 0.4:
        canvas = canvas.filter(ImageFilter.BoxBlur(rng.exponential(1.2) * size / 128))
    picture = np.asarray(canvas, np.float32) * light(rng, size)
    if rng.random() < 0.25:
        shift = 255 * colors.mean(0) - picture.mean((0, 1))
        picture += (rng.uniform(0.4, 1) * shift).astype(np.float32)
    return np.clip(picture, 0, 255, out=picture)


def pick(rng: np.random.Generator, things: Sequence) -> Any:
    """Draw one of several things."""
    return things[rng.integers(len(things))]


def collage(rng: np.random.Generator, size: int, split: str) -> Image.Image:
    """Put parts of photographs and textures side by side, with straight and curved borders."""
    sources = textures(split)
    canvas = cut(rng, pick(rng, sources), size)
    for _ in range(int(rng.integers(1, 6))):
        source = pick(rng, photographs(split) if rng.random() < 0.3 else sources)
        if rng.random() < 0.3:  # a curved border: a threshold of another texture
            mask = cut(rng, sources[rng.integers(COPIES)], size).convert("L")
            mask = mask.point(((np.arange(256) > rng.uniform(80, 176)) * 255).tolist())
            canvas.paste(cut(rng, source, size), (0, 0), mask)
        else:
            draw_piece(rng, canvas, source, rng.uniform(-0.1, 1.1, 2), rng.uniform(0.1, 0.6))
    return canvas


def room(rng: np.random.Generator, size: int, split: str) -> Image.Image:
    """Draw a wall, a floor in perspective, and boxes before them: furniture, windows, doors."""
    sources, horizon = textures(split), int(size * rng.uniform(0.25, 0.95))
    canvas = cut(rng, pick(rng, sources), size)
    canvas = Image.blend(canvas, Image.new("RGB", (size, size), to_fill(random_color(rng))),
                         rng.uniform(0, 0.95))
    floor = cut(rng, pick(rng, sources), size)
    near = size * rng.uniform(0.1, 0.45)  # the floor's texture is larger at the picture's bottom
    quad = (0, 0, near, size, size - near, size, size, 0)
    canvas.paste(floor.transform((size, size - horizon), Image.Transform.QUAD, quad,
                                 Image.Resampling.BILINEAR), (0, horizon))
    for _ in range(int(rng.integers(0, 7))):
        width, height = (size * rng.uniform(0.08, 0.55, 2)).astype(int) + 1
        on_wall = rng.random() < 0.4
        bottom = horizon + int(size * (rng.uniform(-0.7, 0) if on_wall else rng.uniform(0, 0.25)))
        side, tilt = max(width, height), height * max(rng.normal(0, 0.1), 0)  # seen at an angle
        outline = [(0, 0), (width, tilt), (width, height - tilt), (0, height)]
        mask = Image.new("L", (side, side))
        ImageDraw.Draw(mask).polygon(outline, 255)
        plain = Image.new("RGB", (side, side), to_fill(random_color(rng)))
        part = Image.blend(cut(rng, pick(rng, sources), side), plain, rng.uniform(0, 0.8))
        place = int(size * rng.uniform(-0.2, 1)), bottom - height
        if rng.random() < 0.5:
            mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            place = place[0] - (side - width), place[1]
        canvas.paste(part, place, mask)
    return canvas


def light(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw factors (size, size, 1) of brightness that vary smoothly across a picture."""
    grid = np.exp(rng.normal(0, rng.uniform(0, 0.3), (4, 4))).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
                      )[..., None]


def cast_shadow(rng: np.random.Generator, picture: np.ndarray, pixels: np.ndarray) -> None:
    """Darken a picture (S, S, 3) where a surface (V, 2), in pixels, throws a soft shadow.

    The shadow lies on a wall, moved to a side, or flat on the floor from the lowest point on.
    """
    size, cells = len(picture), 40
    points = pixels[::7] / size
    foot = points[:, 1].max()
    squash = rng.uniform(0.8, 1.1) if rng.random() < 0.5 else rng.uniform(-0.35, 0.35)
    height = foot - points[:, 1]
    points = np.stack([points[:, 0] + rng.normal(0, 0.1) + rng.normal(0, 0.4) * height * (
        abs(squash) < 0.5), foot - squash * height], 1)
    place = np.floor(points * cells).astype(int)
    place = place[((place >= 0) & (place < cells)).all(1)]
    grid = np.ones((cells, cells), np.float32)
    grid[place[:, 1], place[:, 0]] = 1 - rng.uniform(0.15, 0.7)
    shadow = Image.fromarray((255 * grid).astype(np.uint8)).filter(
        ImageFilter.BoxBlur(rng.uniform(0.5, 2.5))).resize((size, size), Image.Resampling.BICUBIC)
    picture *= np.asarray(shadow, np.float32)[..., None] / 255
