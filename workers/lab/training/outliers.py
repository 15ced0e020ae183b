"""Pictures that are not of the drawn world, so that models learn to say so (outlier exposure, Hendrycks et al., 2019).

Two of the families are kept out of training: they measure whether the lesson carries over to what was never shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tuwen.engine import Pixels
from workers.lab.world.pen import Colour

Maker = Callable[[np.random.Generator, int, Pixels], Pixels]
"""Makes an outlier (side, side, 3) of a random generator, the side in pixels and a picture of the drawn world."""


def _colour(rng: np.random.Generator) -> Colour:
    r, g, b = rng.integers(0, 256, 3).tolist()
    return (r, g, b)


def _to_pixels(picture: NDArray[np.float64]) -> Pixels:
    return picture.clip(0, 255).astype(np.uint8)


def solid(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    """A single colour all over."""
    return np.full((side, side, 3), _colour(rng), np.uint8)


def noise(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    """White noise in cells of 1 to 16 pixels, coloured or grey."""
    cell = int(2 ** rng.integers(0, 5))
    across = side // cell
    channels = 3 if rng.random() < 0.7 else 1
    cells = rng.integers(0, 256, (across, across, channels), dtype=np.uint8)
    enlarged = cells.repeat(cell, 0).repeat(cell, 1)
    return np.broadcast_to(enlarged, (side, side, 3)).copy()


def gradient(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    """Three colours that run into each other."""
    corner = rng.uniform(0, 255, 3)
    right = rng.uniform(0, 255, 3)
    bottom = rng.uniform(0, 255, 3)
    x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    across = (right - corner) * x[..., None] * 0.6
    down = (bottom - corner) * y[..., None] * 0.4
    return _to_pixels(corner + across + down)


def clouds(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    """Noise whose power falls with frequency as in photographs, with correlated colours."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1.0
    white = np.fft.fft2(rng.standard_normal((3, side, side)), axes=(1, 2))
    spectrum = white / frequency ** rng.uniform(0.8, 1.8)
    field = np.fft.ifft2(spectrum, axes=(1, 2)).real.transpose(1, 2, 0)
    mixed: NDArray[np.float64] = field / field.std() @ rng.uniform(-0.3, 1.0, (3, 3))
    mean = rng.uniform(60, 200, 3)
    contrast = rng.uniform(20, 60)
    return _to_pixels(mean + contrast * mixed)


def shapes(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    """Ellipses, rectangles and polygons over a plain ground: flat drawings that show nothing."""
    image = Image.new("RGB", (2 * side, 2 * side), _colour(rng))
    draw = ImageDraw.Draw(image)
    for _i in range(int(rng.integers(1, 14))):
        x, y, w, h = rng.uniform(0, 2 * side, 4).tolist()
        box = (x - w / 3, y - h / 3, x + w / 3, y + h / 3)
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse(box, fill=_colour(rng))
        elif kind == 1:
            draw.rectangle(box, fill=_colour(rng))
        else:
            corners = int(rng.integers(3, 8))
            points = rng.uniform(0, 2 * side, 2 * corners).tolist()
            draw.polygon(points, fill=_colour(rng))
    return np.asarray(image.reduce(2))


def shuffled(rng: np.random.Generator, side: int, picture: Pixels) -> Pixels:
    """A drawn picture cut into tiles that are put together in another order."""
    n = int(rng.choice([4, 8]))
    tile = side // n
    tiles = picture.reshape(n, tile, n, tile, 3).swapaxes(1, 2)
    tiles = tiles.reshape(n * n, tile, tile, 3)
    tiles = tiles[rng.permutation(n * n)]
    return tiles.reshape(n, n, tile, tile, 3).swapaxes(1, 2).reshape(side, side, 3)


def collage(rng: np.random.Generator, side: int, drawn: Pixels) -> Pixels:
    """Clouds with shaded ellipses and edges: the coarse statistics of a photograph."""
    ground = clouds(rng, side, drawn).astype(float)
    other = clouds(rng, side, drawn).astype(float)
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    for _ in range(int(rng.integers(1, 6))):
        cx, cy = rng.uniform(-0.9, 0.9, 2)
        rx, ry = rng.uniform(0.15, 0.8, 2)
        across = (x - cx) / rx
        down = (y - cy) / ry
        inside = np.hypot(across, down) < 1
        light = 1 + rng.uniform(-0.6, 0.6) * (x - cx) / rx + rng.uniform(-0.6, 0.6) * (y - cy) / ry
        surface = 0.5 * other + 0.5 * rng.uniform(0, 255, 3)
        ground = np.where(inside[..., None], surface * light[..., None], ground)
    return _to_pixels(ground)


def stripes(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    """Stripes and checkers at any angle; held out of training."""
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    angle = rng.uniform(0, np.pi)
    period = rng.uniform(3, side / 3)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    if rng.random() < 0.5:
        wave = wave * np.sin(2 * np.pi * (y * np.cos(angle) - x * np.sin(angle)) / period)
    return np.where(wave[..., None] > 0, _colour(rng), _colour(rng)).astype(np.uint8)


def page(rng: np.random.Generator, side: int, _: Pixels) -> Pixels:
    """Lines of letters; held out of training."""
    paper = "white" if rng.random() < 0.7 else _colour(rng)
    image = Image.new("RGB", (2 * side, 2 * side), paper)
    draw = ImageDraw.Draw(image)
    size = int(rng.integers(10, 40))
    font = ImageFont.load_default(size)
    ink = _colour(rng)
    letters = list("abcdefghijklmnopqrstuvwxyz     0123456789")
    for y in range(4, 2 * side, int(size * 1.3)):
        line = "".join(rng.choice(letters, 40))
        draw.text((4, y), line, fill=ink, font=font)
    return np.asarray(image.reduce(2))


FAMILIES: Mapping[str, Maker] = {
    "solid": solid,
    "noise": noise,
    "gradient": gradient,
    "clouds": clouds,
    "shapes": shapes,
    "shuffled": shuffled,
    "collage": collage,
}
HELD_OUT: Mapping[str, Maker] = {"stripes": stripes, "page": page}


def make_outliers(
    count: int,
    rng: np.random.Generator,
    drawn: Pixels,
    families: Mapping[str, Maker] = FAMILIES,
) -> Pixels:
    """Outliers of random families, uint8 (count, side, side, 3); some are made from `drawn`, (n, side, side, 3)."""
    if count == 0:
        return drawn[:0]
    makers = list(families.values())
    picked = rng.integers(len(makers), size=count).tolist()
    made = []
    for number, family in enumerate(picked):
        make = makers[family]
        made.append(make(rng, drawn.shape[1], drawn[number % len(drawn)]))
    return np.stack(made)
