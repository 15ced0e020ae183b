"""The backgrounds: where the drawn world's scenes take place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from workers.lab.world.pen import Colour, shade

Numbers = Sequence[float]
"""The background's latents, each in [-1, 1]."""


def _gradient(size: int, horizon: float, sky: tuple[Colour, Colour], ground: tuple[Colour, Colour]) -> Image.Image:
    """Sky from top to horizon, ground from horizon to bottom, each between two colours."""
    rows = (np.arange(size) + 0.5) / size
    above = np.clip(rows / horizon, 0, 1)[:, None]
    below = np.clip((rows - horizon) / (1 - horizon), 0, 1)[:, None]
    upper = np.array(sky[0]) * (1 - above) + np.array(sky[1]) * above
    lower = np.array(ground[0]) * (1 - below) + np.array(ground[1]) * below
    column = np.where(rows[:, None] < horizon, upper, lower).astype(np.uint8)
    strip = Image.fromarray(np.ascontiguousarray(column[:, None, :]))
    return strip.resize((size, size), Image.Resampling.NEAREST)


def _mix(a: Colour, b: Colour, t: float) -> Colour:
    """The colour at the share t of the way from a to b."""
    return (
        int(a[0] + (b[0] - a[0]) * t),
        int(a[1] + (b[1] - a[1]) * t),
        int(a[2] + (b[2] - a[2]) * t),
    )


def _between(a: Colour, b: Colour, number: float) -> Colour:
    """A colour between two, where −1 is the first and 1 the second."""
    return _mix(a, b, 0.5 + 0.5 * number)


class _Sketch:
    """Draws on a square picture in shares of its side."""

    def __init__(self, image: Image.Image):
        self.size = image.width
        self.draw = ImageDraw.Draw(image)

    def line_width(self, share: int, least: int = 1) -> int:
        """The `share`-th part of the side in pixels, but `least` at least."""
        return max(least, self.size // share)

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        """A filled rectangle."""
        size = self.size
        self.draw.rectangle((size * left, size * top, size * right, size * bottom), fill=fill)

    def ellipse(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        """A filled ellipse in a rectangle."""
        size = self.size
        self.draw.ellipse((size * left, size * top, size * right, size * bottom), fill=fill)

    def disc(self, x: float, y: float, r: float, fill: Colour) -> None:
        """A filled circle around x and y."""
        self.ellipse(x - r, y - r, x + r, y + r, fill)

    def line(self, x: float, y: float, to_x: float, to_y: float, fill: Colour, width: int) -> None:
        """A line of `width` pixels."""
        size = self.size
        self.draw.line((size * x, size * y, size * to_x, size * to_y), fill=fill, width=width)

    def hill(self, horizon: float, x: float, height: float, width: float, fill: Colour) -> None:
        """A hill's top: a half ellipse that stands on the horizon."""
        size = self.size
        box = (
            (x - width) * size,
            (horizon - height) * size,
            (x + width) * size,
            (horizon + height) * size,
        )
        self.draw.pieslice(box, 180, 360, fill=fill)

    def cloud(self, x: float, y: float, r: float, fill: Colour) -> None:
        """Three ellipses side by side."""
        for dx, dy, k in ((-1.1, 0.2, 0.7), (0.0, 0.0, 1.0), (1.1, 0.25, 0.65)):
            cx = (x + dx * r) * self.size
            cy = (y + dy * r) * self.size
            q = r * k * self.size
            self.draw.ellipse((cx - q * 1.2, cy - q * 0.8, cx + q * 1.2, cy + q * 0.8), fill=fill)

    def arc(
        self,
        x: float,
        y: float,
        half: float,
        height: float,
        angles: tuple[int, int],
        fill: Colour,
    ) -> None:
        """Part of an ellipse around x and y, all in pixels, between two angles in degrees."""
        box = (x - half, y - height, x + half, y + height)
        self.draw.arc(box, *angles, fill=fill, width=self.line_width(90, 2))


def _horizon(u: Numbers) -> float:
    return 0.36 + 0.06 * u[0]


def _sky(u: Numbers) -> tuple[Colour, Colour]:
    top = _between((96, 170, 236), (150, 206, 250), u[1])
    bottom = _between((206, 232, 252), (252, 236, 214), u[2])
    return top, bottom


def grass(size: int, u: Numbers) -> Image.Image:
    """A meadow with hills, clouds, tufts and flowers."""
    horizon = _horizon(u)
    near = _between((92, 170, 66), (120, 186, 70), u[3])
    image = _gradient(size, horizon, _sky(u), (_mix(near, (170, 216, 120), 0.5), near))
    sketch = _Sketch(image)
    sketch.disc(0.5 + 0.42 * u[4], 0.1 + 0.03 * u[5], 0.055, (255, 236, 150))
    sketch.cloud(0.3 + 0.25 * u[6], 0.13 + 0.05 * u[7], 0.06, (252, 253, 255))
    sketch.cloud(0.75 + 0.2 * u[8], 0.18 + 0.05 * u[9], 0.045, (246, 250, 255))
    sketch.hill(horizon, 0.25 + 0.2 * u[10], 0.08, 0.45, (138, 194, 108))
    sketch.hill(horizon, 0.8 + 0.2 * u[11], 0.06, 0.4, (124, 184, 100))
    tuft = shade(near, 0.72)
    petals = ((255, 255, 255), (255, 214, 90), (250, 170, 190))
    for i in range(12):
        x = (0.04 + i * 0.618 + 0.3 * u[12 + i % 6]) % 1.0
        y = horizon + 0.05 + (0.95 - horizon) * ((i * 0.37 + 0.2 * u[12 + (i + 2) % 6]) % 1.0)
        if i % 4 == 3:
            sketch.disc(x, y, 0.011, petals[i // 4])
        else:
            _draw_tuft(sketch, x, y, tuft)
    return image


def _draw_tuft(sketch: _Sketch, x: float, y: float, fill: Colour) -> None:
    """Three blades of grass; those nearer to the eye are longer."""
    px = x * sketch.size
    py = y * sketch.size
    height = (0.015 + 0.02 * y) * sketch.size
    for dx in (-0.6, 0.0, 0.6):
        blade = (px, py, px + dx * height, py - height)
        sketch.draw.line(blade, fill=fill, width=sketch.line_width(110))


def sand(size: int, u: Numbers) -> Image.Image:
    """A beach with a strip of sea, ripples and shells."""
    horizon = _horizon(u)
    near = _between((232, 202, 140), (240, 212, 158), u[3])
    image = _gradient(size, horizon, _sky(u), ((246, 226, 178), near))
    sketch = _Sketch(image)
    sketch.disc(0.5 + 0.42 * u[4], 0.11 + 0.04 * u[5], 0.07, (255, 226, 110))
    strip = (0.05 + 0.015 * u[6]) * size
    shore = horizon * size
    sea = _between((70, 160, 206), (90, 184, 214), u[7])
    sketch.draw.rectangle((0, shore - strip, size, shore), fill=sea)
    sketch.draw.rectangle((0, shore, size, shore + size * 0.012), fill=(250, 250, 246))
    ripple = shade(near, 0.9)
    for i in range(7):
        x = (0.1 + i * 0.618 + 0.25 * u[8 + i]) % 1.0
        y = horizon + 0.1 + (0.86 - horizon) * ((i * 0.29 + 0.15 * u[9 + i]) % 1.0)
        half = (0.06 + 0.05 * y) * size
        sketch.arc(x * size, y * size, half, half * 0.3, (200, 340), ripple)
    sketch.disc(0.5 + 0.45 * u[16], 0.93, 0.016, (250, 180, 150))
    sketch.disc(0.5 + 0.45 * u[17], 0.72, 0.012, (255, 244, 230))
    return image


def snow(size: int, u: Numbers) -> Image.Image:
    """A snowfield before mountains, with snow falling."""
    horizon = _horizon(u)
    top = _between((150, 172, 204), (178, 196, 222), u[1])
    image = _gradient(size, horizon, (top, (214, 224, 238)), ((224, 234, 246), (246, 250, 255)))
    sketch = _Sketch(image)
    _draw_mountain(sketch, horizon, 0.22 + 0.15 * u[2], 0.2 + 0.04 * u[3])
    _draw_mountain(sketch, horizon, 0.74 + 0.15 * u[4], 0.24 + 0.04 * u[5])
    sketch.hill(horizon + 0.02, 0.4 + 0.3 * u[6], 0.06, 0.6, (232, 240, 250))
    for i in range(4):
        x = 0.5 + 0.5 * u[7 + i]
        y = horizon + 0.12 + 0.14 * i
        half = 0.14 + 0.03 * i
        box = (
            size * (x - half),
            size * (y - 0.03),
            size * (x + half),
            size * (y + 0.05),
        )
        sketch.draw.arc(box, 190, 350, fill=(206, 220, 240), width=sketch.line_width(80, 2))
    for i in range(22):
        x = (i * 0.618 + 0.4 * u[11 + i % 5]) % 1.0
        y = (i * 0.377 + 0.4 * u[13 + i % 6]) % 1.0
        sketch.disc(x, y, 0.009 + 0.004 * (i % 2), (255, 255, 255))
    return image


def _draw_mountain(sketch: _Sketch, horizon: float, x: float, height: float) -> None:
    """A mountain that stands on the horizon, with snow on its peak."""
    size = sketch.size
    base = horizon * size
    peak = (horizon - height) * size
    snowline = peak + height * size / 3
    rock = (size * (x - 0.3), base, size * x, peak, size * (x + 0.3), base)
    cap = (size * (x - 0.1), snowline, size * x, peak, size * (x + 0.1), snowline)
    sketch.draw.polygon(rock, fill=(156, 172, 202))
    sketch.draw.polygon(cap, fill=(250, 252, 255))


def water(size: int, u: Numbers) -> Image.Image:
    """A lake with waves, and a hill on its far shore."""
    horizon = _horizon(u) - 0.08
    near = _between((36, 128, 186), (52, 146, 196), u[3])
    image = _gradient(size, horizon, _sky(u), (_mix(near, (150, 214, 232), 0.6), near))
    sketch = _Sketch(image)
    sketch.cloud(0.3 + 0.25 * u[6], 0.1 + 0.04 * u[7], 0.05, (252, 253, 255))
    sketch.cloud(0.75 + 0.2 * u[8], 0.13 + 0.04 * u[9], 0.04, (246, 250, 255))
    sketch.hill(horizon, 0.5 + 0.45 * u[10], 0.05, 0.22, (110, 160, 130))
    crest = _mix(near, (235, 250, 255), 0.5)
    for i in range(14):
        x = (i * 0.618 + 0.35 * u[11 + i % 7]) % 1.0
        y = horizon + 0.04 + (0.97 - horizon) * ((i + 0.5 + 0.4 * u[12 + i % 6]) / 14)
        half = (0.03 + 0.05 * y) * size
        for side in (-1, 1):
            cx = x * size + side * half * 0.9
            box = (cx - half, y * size - half * 0.4, cx + half, y * size + half * 0.4)
            sketch.draw.arc(box, 20, 160, fill=crest, width=sketch.line_width(100, 2))
    return image


def room(size: int, u: Numbers) -> Image.Image:
    """A room with a wooden floor, a window, a picture on the wall and a rug."""
    horizon = 0.42 + 0.04 * u[0]
    paper = _between((238, 220, 190), (206, 216, 226), u[1])
    wall = _mix(paper, (236, 204, 200), 0.25 + 0.25 * u[2])
    floor = _between((170, 120, 78), (196, 148, 100), u[3])
    image = _gradient(size, horizon, (shade(wall, 1.15), wall), (shade(floor, 0.88), floor))
    sketch = _Sketch(image)
    sketch.draw.rectangle((0, (horizon - 0.03) * size, size, horizon * size), fill=shade(wall, 1.6))
    _draw_boards(sketch, horizon, 0.08 * u[4], floor)
    _draw_window(
        sketch,
        0.22 + 0.12 * u[5],
        0.05 + 0.02 * u[6],
        _between((150, 206, 246), (250, 214, 170), u[7]),
    )
    x = 0.72 + 0.1 * u[8]
    y = 0.08 + 0.03 * u[9]
    sketch.rectangle(x, y, x + 0.16, y + 0.2, (120, 84, 56))
    picture = _between((236, 220, 180), (160, 196, 170), u[10])
    sketch.rectangle(x + 0.02, y + 0.02, x + 0.14, y + 0.18, picture)
    x = 0.5 + 0.08 * u[11]
    y = 0.8 + 0.05 * u[12]
    rug = _between((186, 150, 150), (150, 160, 176), u[13])
    sketch.ellipse(x - 0.44, y - 0.14, x + 0.44, y + 0.14, rug)
    sketch.ellipse(x - 0.36, y - 0.1, x + 0.36, y + 0.1, shade(rug, 1.25))
    return image


def _draw_boards(sketch: _Sketch, horizon: float, shift: float, floor: Colour) -> None:
    """The joints of floor boards, in perspective."""
    size = sketch.size
    edge = sketch.line_width(100)
    for i in range(1, 5):
        y = (horizon + (1 - horizon) * (i / 5) ** 1.3) * size
        sketch.draw.line((0, y, size, y), fill=shade(floor, 0.8), width=edge)
    for i in range(-2, 9):
        x = i / 6 + shift
        far = size * (0.5 + (x - 0.5) * 0.8)
        near = size * (0.5 + (x - 0.5) * 1.7)
        sketch.draw.line((far, horizon * size, near, size), fill=shade(floor, 0.84), width=edge)


def _draw_window(sketch: _Sketch, x: float, y: float, view: Colour) -> None:
    """A window with four panes; x and y are its upper left corner."""
    frame = (250, 246, 238)
    bar = sketch.line_width(100) * 3
    sketch.rectangle(x, y, x + 0.28, y + 0.26, frame)
    sketch.rectangle(x + 0.02, y + 0.02, x + 0.26, y + 0.24, view)
    sketch.line(x + 0.14, y, x + 0.14, y + 0.26, frame, bar)
    sketch.line(x, y + 0.13, x + 0.28, y + 0.13, frame, bar)


def night_street(size: int, u: Numbers) -> Image.Image:
    """A street at night with houses, a lamp, stars and the moon."""
    horizon = _horizon(u) + 0.04
    image = _gradient(size, horizon, ((14, 18, 52), (44, 46, 98)), ((82, 84, 102), (102, 104, 122)))
    sketch = _Sketch(image)
    for i in range(10):
        x = (i * 0.618 + 0.3 * u[1 + i % 4]) % 1.0
        y = 0.02 + 0.16 * ((i * 0.31 + 0.2 * u[2]) % 1.0)
        sketch.disc(x, y, 0.006, (250, 246, 210))
    x = 0.5 + 0.4 * u[5]
    y = 0.1 + 0.03 * u[6]
    sketch.disc(x, y, 0.06, (250, 240, 190))
    sketch.disc(x + 0.025, y - 0.012, 0.05, (24, 27, 62))
    for i in range(6):
        _draw_building(sketch, horizon, i, u)
    sketch.draw.rectangle(
        (0, size * (horizon - 0.02), size, size * (horizon + 0.04)),
        fill=(128, 128, 146),
    )
    for i in range(5):
        x = (i / 5 + 0.1 * u[17]) % 1.0
        y = horizon + 0.2 + 0.02 * u[18]
        sketch.rectangle(x, y, x + 0.1, y + 0.022, (206, 202, 176))
    lamp = 0.08 if u[19] > 0 else 0.92
    sketch.rectangle(lamp - 0.008, 0.12, lamp + 0.008, horizon + 0.03, (20, 20, 30))
    sketch.disc(lamp, 0.12, 0.035, (255, 230, 140))
    return image


def _draw_building(sketch: _Sketch, horizon: float, i: int, u: Numbers) -> None:
    """The i-th house of the street; some of its windows are lit."""
    x = i / 6 + 0.02 * u[7 + i % 6]
    height = 0.14 + 0.06 * u[8 + i % 6]
    top = horizon - 0.02 - height
    wall = _between((30, 30, 62), (52, 46, 82), u[9 + i % 4])
    sketch.rectangle(x, top, x + 0.145, horizon - 0.02, wall)
    for row in range(3):
        for column in range(3):
            lit = (row * 3 + column + i) % 3 == (u[13 + (row + i) % 5] > 0)
            left = x + 0.022 + 0.04 * column
            upper = top + 0.025 + 0.045 * row
            if lit and upper < horizon - 0.05:
                sketch.rectangle(left, upper, left + 0.02, upper + 0.024, (252, 220, 120))


PLACES: dict[str, Callable[[int, Numbers], Image.Image]] = {
    "grass": grass,
    "sand": sand,
    "snow": snow,
    "water": water,
    "room": room,
    "night street": night_street,
}
