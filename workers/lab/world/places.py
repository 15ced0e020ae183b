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
    return Image.fromarray(np.ascontiguousarray(column[:, None, :])).resize((size, size), Image.Resampling.NEAREST)


def _mix(a: Colour, b: Colour, t: float) -> Colour:
    return (int(a[0] + (b[0] - a[0]) * t), int(a[1] + (b[1] - a[1]) * t), int(a[2] + (b[2] - a[2]) * t))


def _cloud(draw: ImageDraw.ImageDraw, size: int, x: float, y: float, r: float, fill: Colour) -> None:
    for dx, dy, k in ((-1.1, 0.2, 0.7), (0.0, 0.0, 1.0), (1.1, 0.25, 0.65)):
        cx, cy, q = (x + dx * r) * size, (y + dy * r) * size, r * k * size
        draw.ellipse((cx - q * 1.2, cy - q * 0.8, cx + q * 1.2, cy + q * 0.8), fill=fill)


def _disc(draw: ImageDraw.ImageDraw, size: int, x: float, y: float, r: float, fill: Colour) -> None:
    draw.ellipse(((x - r) * size, (y - r) * size, (x + r) * size, (y + r) * size), fill=fill)


def _hill(
    draw: ImageDraw.ImageDraw, size: int, horizon: float, x: float, height: float, width: float, fill: Colour
) -> None:
    """A hill's top: a half ellipse that stands on the horizon."""
    box = ((x - width) * size, (horizon - height) * size, (x + width) * size, (horizon + height) * size)
    draw.pieslice(box, 180, 360, fill=fill)


def _horizon(u: Numbers) -> float:
    return 0.36 + 0.06 * u[0]


def _sky(u: Numbers) -> tuple[Colour, Colour]:
    return _mix((96, 170, 236), (150, 206, 250), 0.5 + 0.5 * u[1]), _mix(
        (206, 232, 252), (252, 236, 214), 0.5 + 0.5 * u[2]
    )


def grass(size: int, u: Numbers) -> Image.Image:
    horizon = _horizon(u)
    near = _mix((92, 170, 66), (120, 186, 70), 0.5 + 0.5 * u[3])
    image = _gradient(size, horizon, _sky(u), (_mix(near, (170, 216, 120), 0.5), near))
    draw = ImageDraw.Draw(image)
    _disc(draw, size, 0.5 + 0.42 * u[4], 0.1 + 0.03 * u[5], 0.055, (255, 236, 150))
    _cloud(draw, size, 0.3 + 0.25 * u[6], 0.13 + 0.05 * u[7], 0.06, (252, 253, 255))
    _cloud(draw, size, 0.75 + 0.2 * u[8], 0.18 + 0.05 * u[9], 0.045, (246, 250, 255))
    _hill(draw, size, horizon, 0.25 + 0.2 * u[10], 0.08, 0.45, (138, 194, 108))
    _hill(draw, size, horizon, 0.8 + 0.2 * u[11], 0.06, 0.4, (124, 184, 100))
    tuft, petals = shade(near, 0.72), ((255, 255, 255), (255, 214, 90), (250, 170, 190))
    for i in range(12):
        x = (0.04 + i * 0.618 + 0.3 * u[12 + i % 6]) % 1.0
        y = horizon + 0.05 + (0.95 - horizon) * ((i * 0.37 + 0.2 * u[12 + (i + 2) % 6]) % 1.0)
        px, py, h = x * size, y * size, (0.015 + 0.02 * y) * size
        if i % 4 == 3:
            _disc(draw, size, x, y, 0.011, petals[i // 4])
            continue
        for dx in (-0.6, 0.0, 0.6):
            draw.line((px, py, px + dx * h, py - h), fill=tuft, width=max(1, size // 110))
    return image


def sand(size: int, u: Numbers) -> Image.Image:
    horizon = _horizon(u)
    near = _mix((232, 202, 140), (240, 212, 158), 0.5 + 0.5 * u[3])
    image = _gradient(size, horizon, _sky(u), ((246, 226, 178), near))
    draw = ImageDraw.Draw(image)
    _disc(draw, size, 0.5 + 0.42 * u[4], 0.11 + 0.04 * u[5], 0.07, (255, 226, 110))
    strip = (0.05 + 0.015 * u[6]) * size
    draw.rectangle(
        (0, horizon * size - strip, size, horizon * size), fill=_mix((70, 160, 206), (90, 184, 214), 0.5 + 0.5 * u[7])
    )
    draw.rectangle((0, horizon * size, size, horizon * size + size * 0.012), fill=(250, 250, 246))
    ripple = shade(near, 0.9)
    for i in range(7):
        x = (0.1 + i * 0.618 + 0.25 * u[8 + i]) % 1.0
        y = horizon + 0.1 + (0.86 - horizon) * ((i * 0.29 + 0.15 * u[9 + i]) % 1.0)
        w = (0.06 + 0.05 * y) * size
        draw.arc(
            (x * size - w, y * size - w * 0.3, x * size + w, y * size + w * 0.3),
            200,
            340,
            fill=ripple,
            width=max(2, size // 90),
        )
    _disc(draw, size, 0.5 + 0.45 * u[16], 0.93, 0.016, (250, 180, 150))
    _disc(draw, size, 0.5 + 0.45 * u[17], 0.72, 0.012, (255, 244, 230))
    return image


def snow(size: int, u: Numbers) -> Image.Image:
    horizon = _horizon(u)
    top = _mix((150, 172, 204), (178, 196, 222), 0.5 + 0.5 * u[1])
    image = _gradient(size, horizon, (top, (214, 224, 238)), ((224, 234, 246), (246, 250, 255)))
    draw = ImageDraw.Draw(image)
    for x, h in ((0.22 + 0.15 * u[2], 0.2 + 0.04 * u[3]), (0.74 + 0.15 * u[4], 0.24 + 0.04 * u[5])):
        base, peak = horizon * size, (horizon - h) * size
        draw.polygon((size * (x - 0.3), base, size * x, peak, size * (x + 0.3), base), fill=(156, 172, 202))
        draw.polygon(
            (size * (x - 0.1), peak + h * size / 3, size * x, peak, size * (x + 0.1), peak + h * size / 3),
            fill=(250, 252, 255),
        )
    _hill(draw, size, horizon + 0.02, 0.4 + 0.3 * u[6], 0.06, 0.6, (232, 240, 250))
    for i in range(4):
        x, y, w = 0.5 + 0.5 * u[7 + i], horizon + 0.12 + 0.14 * i, 0.14 + 0.03 * i
        draw.arc(
            (size * (x - w), size * (y - 0.03), size * (x + w), size * (y + 0.05)),
            190,
            350,
            fill=(206, 220, 240),
            width=max(2, size // 80),
        )
    for i in range(22):
        x = (i * 0.618 + 0.4 * u[11 + i % 5]) % 1.0
        y = (i * 0.377 + 0.4 * u[13 + i % 6]) % 1.0
        _disc(draw, size, x, y, 0.009 + 0.004 * (i % 2), (255, 255, 255))
    return image


def water(size: int, u: Numbers) -> Image.Image:
    horizon = _horizon(u) - 0.08
    near = _mix((36, 128, 186), (52, 146, 196), 0.5 + 0.5 * u[3])
    image = _gradient(size, horizon, _sky(u), (_mix(near, (150, 214, 232), 0.6), near))
    draw = ImageDraw.Draw(image)
    _cloud(draw, size, 0.3 + 0.25 * u[6], 0.1 + 0.04 * u[7], 0.05, (252, 253, 255))
    _cloud(draw, size, 0.75 + 0.2 * u[8], 0.13 + 0.04 * u[9], 0.04, (246, 250, 255))
    _hill(draw, size, horizon, 0.5 + 0.45 * u[10], 0.05, 0.22, (110, 160, 130))
    crest = _mix(near, (235, 250, 255), 0.5)
    for i in range(14):
        x = (i * 0.618 + 0.35 * u[11 + i % 7]) % 1.0
        y = horizon + 0.04 + (0.97 - horizon) * ((i + 0.5 + 0.4 * u[12 + i % 6]) / 14)
        w = (0.03 + 0.05 * y) * size
        for side in (-1, 1):
            cx = x * size + side * w * 0.9
            draw.arc(
                (cx - w, y * size - w * 0.4, cx + w, y * size + w * 0.4), 20, 160, fill=crest, width=max(2, size // 100)
            )
    return image


def room(size: int, u: Numbers) -> Image.Image:
    horizon = 0.42 + 0.04 * u[0]
    wall = _mix(_mix((238, 220, 190), (206, 216, 226), 0.5 + 0.5 * u[1]), (236, 204, 200), 0.25 + 0.25 * u[2])
    floor = _mix((170, 120, 78), (196, 148, 100), 0.5 + 0.5 * u[3])
    image = _gradient(size, horizon, (shade(wall, 1.15), wall), (shade(floor, 0.88), floor))
    draw = ImageDraw.Draw(image)
    edge = max(1, size // 100)
    draw.rectangle((0, (horizon - 0.03) * size, size, horizon * size), fill=shade(wall, 1.6))
    for i in range(1, 5):
        y = (horizon + (1 - horizon) * (i / 5) ** 1.3) * size
        draw.line((0, y, size, y), fill=shade(floor, 0.8), width=edge)
    for i in range(-2, 9):
        x = i / 6 + 0.08 * u[4]
        draw.line(
            (size * (0.5 + (x - 0.5) * 0.8), horizon * size, size * (0.5 + (x - 0.5) * 1.7), size),
            fill=shade(floor, 0.84),
            width=edge,
        )
    wx, wy = 0.22 + 0.12 * u[5], 0.05 + 0.02 * u[6]
    draw.rectangle((size * wx, size * wy, size * (wx + 0.28), size * (wy + 0.26)), fill=(250, 246, 238))
    draw.rectangle(
        (size * (wx + 0.02), size * (wy + 0.02), size * (wx + 0.26), size * (wy + 0.24)),
        fill=_mix((150, 206, 246), (250, 214, 170), 0.5 + 0.5 * u[7]),
    )
    draw.line(
        (size * (wx + 0.14), size * wy, size * (wx + 0.14), size * (wy + 0.26)), fill=(250, 246, 238), width=edge * 3
    )
    draw.line(
        (size * wx, size * (wy + 0.13), size * (wx + 0.28), size * (wy + 0.13)), fill=(250, 246, 238), width=edge * 3
    )
    px, py = 0.72 + 0.1 * u[8], 0.08 + 0.03 * u[9]
    draw.rectangle((size * px, size * py, size * (px + 0.16), size * (py + 0.2)), fill=(120, 84, 56))
    draw.rectangle(
        (size * (px + 0.02), size * (py + 0.02), size * (px + 0.14), size * (py + 0.18)),
        fill=_mix((236, 220, 180), (160, 196, 170), 0.5 + 0.5 * u[10]),
    )
    cx, cy = 0.5 + 0.08 * u[11], 0.8 + 0.05 * u[12]
    rug = _mix((186, 150, 150), (150, 160, 176), 0.5 + 0.5 * u[13])
    draw.ellipse((size * (cx - 0.44), size * (cy - 0.14), size * (cx + 0.44), size * (cy + 0.14)), fill=rug)
    draw.ellipse((size * (cx - 0.36), size * (cy - 0.1), size * (cx + 0.36), size * (cy + 0.1)), fill=shade(rug, 1.25))
    return image


def night_street(size: int, u: Numbers) -> Image.Image:
    horizon = _horizon(u) + 0.04
    image = _gradient(size, horizon, ((14, 18, 52), (44, 46, 98)), ((82, 84, 102), (102, 104, 122)))
    draw = ImageDraw.Draw(image)
    for i in range(10):
        _disc(
            draw,
            size,
            (i * 0.618 + 0.3 * u[1 + i % 4]) % 1.0,
            0.02 + 0.16 * ((i * 0.31 + 0.2 * u[2]) % 1.0),
            0.006,
            (250, 246, 210),
        )
    mx, my = 0.5 + 0.4 * u[5], 0.1 + 0.03 * u[6]
    _disc(draw, size, mx, my, 0.06, (250, 240, 190))
    _disc(draw, size, mx + 0.025, my - 0.012, 0.05, (24, 27, 62))
    for i in range(6):
        x, h = i / 6 + 0.02 * u[7 + i % 6], 0.14 + 0.06 * u[8 + i % 6]
        top = horizon - 0.02 - h
        draw.rectangle(
            (size * x, size * top, size * (x + 0.145), size * (horizon - 0.02)),
            fill=_mix((30, 30, 62), (52, 46, 82), 0.5 + 0.5 * u[9 + i % 4]),
        )
        for row in range(3):
            for col in range(3):
                if (row * 3 + col + i) % 3 == (u[13 + (row + i) % 5] > 0):
                    wx, wy = x + 0.022 + 0.04 * col, top + 0.025 + 0.045 * row
                    if wy < horizon - 0.05:
                        draw.rectangle(
                            (size * wx, size * wy, size * (wx + 0.02), size * (wy + 0.024)), fill=(252, 220, 120)
                        )
    draw.rectangle((0, size * (horizon - 0.02), size, size * (horizon + 0.04)), fill=(128, 128, 146))
    for i in range(5):
        x, y = (i / 5 + 0.1 * u[17]) % 1.0, horizon + 0.2 + 0.02 * u[18]
        draw.rectangle((size * x, size * y, size * (x + 0.1), size * (y + 0.022)), fill=(206, 202, 176))
    lamp = 0.08 if u[19] > 0 else 0.92
    draw.rectangle(
        (size * (lamp - 0.008), size * 0.12, size * (lamp + 0.008), size * (horizon + 0.03)), fill=(20, 20, 30)
    )
    _disc(draw, size, lamp, 0.12, 0.035, (255, 230, 140))
    return image


PLACES: dict[str, Callable[[int, Numbers], Image.Image]] = {
    "grass": grass,
    "sand": sand,
    "snow": snow,
    "water": water,
    "room": room,
    "night street": night_street,
}
