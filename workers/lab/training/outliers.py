"""Pictures that are not of the drawn world, so that models learn to say so (outlier exposure, Hendrycks et al., 2019).

Two of the families are kept out of training: they measure whether the lesson carries over to what was never shown.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tuwen.engine import Pixels

Maker = Callable[[np.random.Generator, int, Pixels], Pixels]
"""From the generator of lots, the side in pixels and a picture of the drawn world to an outlier (side, side, 3)."""


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    r, g, b = rng.integers(0, 256, 3).tolist()
    return (r, g, b)


def solid(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    return np.full((side, side, 3), _colour(rng), np.uint8)


def noise(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    """White noise in cells of 1 to 16 pixels, coloured or grey."""
    cell = int(2 ** rng.integers(0, 5))
    cells = rng.integers(0, 256, (side // cell, side // cell, 3 if rng.random() < 0.7 else 1), dtype=np.uint8)
    return np.broadcast_to(cells.repeat(cell, 0).repeat(cell, 1), (side, side, 3)).copy()


def gradient(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    a, b, c = (rng.uniform(0, 255, 3) for _ in range(3))
    x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    return (a + (b - a) * x[..., None] * 0.6 + (c - a) * y[..., None] * 0.4).clip(0, 255).astype(np.uint8)


def clouds(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    """Noise whose power falls with frequency as in photographs, with correlated colours."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(rng.standard_normal((3, side, side)), axes=(1, 2)) / frequency ** rng.uniform(0.8, 1.8)
    field = np.fft.ifft2(spectrum, axes=(1, 2)).real.transpose(1, 2, 0)
    mixed: NDArray[np.float64] = field / field.std() @ rng.uniform(-0.3, 1.0, (3, 3))
    return (rng.uniform(60, 200, 3) + rng.uniform(20, 60) * mixed).clip(0, 255).astype(np.uint8)


def shapes(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    """Ellipses and polygons over a plain ground: flat drawings, but of nothing."""
    image = Image.new("RGB", (2 * side, 2 * side), _colour(rng))
    draw = ImageDraw.Draw(image)
    for _i in range(int(rng.integers(1, 14))):
        x, y, w, h = rng.uniform(0, 2 * side, 4).tolist()
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse((x - w / 3, y - h / 3, x + w / 3, y + h / 3), fill=_colour(rng))
        elif kind == 1:
            draw.rectangle((x - w / 3, y - h / 3, x + w / 3, y + h / 3), fill=_colour(rng))
        else:
            draw.polygon(rng.uniform(0, 2 * side, 2 * int(rng.integers(3, 8))).tolist(), fill=_colour(rng))
    return np.asarray(image.reduce(2))


def shuffled(rng: np.random.Generator, side: int, picture: Pixels) -> Pixels:
    """A drawn picture cut into tiles that are put together anew."""
    n = int(rng.choice([4, 8]))
    tiles = picture.reshape(n, side // n, n, side // n, 3).swapaxes(1, 2).reshape(n * n, side // n, side // n, 3)
    tiles = tiles[rng.permutation(n * n)]
    return tiles.reshape(n, n, side // n, side // n, 3).swapaxes(1, 2).reshape(side, side, 3)


def collage(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    """Clouds with shaded ellipses and edges: the coarse statistics of a photograph."""
    ground, other = clouds(rng, side, _).astype(float), clouds(rng, side, _).astype(float)
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    for _i in range(int(rng.integers(1, 6))):
        cx, cy, rx, ry = *rng.uniform(-0.9, 0.9, 2), *rng.uniform(0.15, 0.8, 2)
        inside = np.hypot((x - cx) / rx, (y - cy) / ry) < 1
        light = (1 + rng.uniform(-0.6, 0.6) * (x - cx) / rx + rng.uniform(-0.6, 0.6) * (y - cy) / ry)[..., None]
        ground = np.where(inside[..., None], (0.5 * other + 0.5 * rng.uniform(0, 255, 3)) * light, ground)
    return ground.clip(0, 255).astype(np.uint8)


def stripes(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    """Held out: stripes and checkers at any angle."""
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, side / 3)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    if rng.random() < 0.5:
        wave = wave * np.sin(2 * np.pi * (y * np.cos(angle) - x * np.sin(angle)) / period)
    return np.where(wave[..., None] > 0, _colour(rng), _colour(rng)).astype(np.uint8)


def page(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    """Held out: lines of letters."""
    image = Image.new("RGB", (2 * side, 2 * side), "white" if rng.random() < 0.7 else _colour(rng))
    draw, size = ImageDraw.Draw(image), int(rng.integers(10, 40))
    font, ink = ImageFont.load_default(size), _colour(rng)
    for y in range(4, 2 * side, int(size * 1.3)):
        line = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz     0123456789"), 40))
        draw.text((4, y), line, fill=ink, font=font)
    return np.asarray(image.reduce(2))


FAMILIES: dict[str, Maker] = {
    "solid": solid,
    "noise": noise,
    "gradient": gradient,
    "clouds": clouds,
    "shapes": shapes,
    "shuffled": shuffled,
    "collage": collage,
}
HELD_OUT: dict[str, Maker] = {"stripes": stripes, "page": page}


def outliers(count: int, rng: np.random.Generator, drawn: Pixels, families: dict[str, Maker] = FAMILIES) -> Pixels:
    """Outliers of the families by lot, uint8 (count, side, side, 3); some are made from `drawn`, (n, side, side, 3)."""
    makers = list(families.values())
    picked = rng.integers(len(makers), size=count).tolist()
    made = [makers[k](rng, drawn.shape[1], drawn[i % len(drawn)]) for i, k in enumerate(picked)]
    return np.stack(made) if made else drawn[:0]
