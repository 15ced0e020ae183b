"""Small drawings that several animals share: eyes, and the signs of sleep, haste and water."""

from __future__ import annotations

from workers.lab.world.paint import DUST, EYE_WHITE, FOAM, PUPIL
from workers.lab.world.pen import Pen, Point


def draw_eye(pen: Pen, x: float, y: float, r: float, *, closed: bool = False) -> None:
    """An eye around x and y."""
    if closed:
        arc = [
            (x - r, y + r * 0.2),
            (x - r * 0.4, y - r * 0.4),
            (x + r * 0.4, y - r * 0.4),
            (x + r, y + r * 0.2),
        ]
        pen.limb(arc, r * 0.75, EYE_WHITE, outlined=False)
        pen.limb(arc, r * 0.5, PUPIL, outlined=False)
        return
    pen.ellipse(x, y, r, r * 1.15, EYE_WHITE, outlined=False)
    pen.ellipse(x + r * 0.25, y - r * 0.05, r * 0.58, r * 0.72, PUPIL, outlined=False)


def draw_snores(pen: Pen, x: float, y: float) -> None:
    """Z z Z rising from a sleeper."""
    pen.pose(0)
    with pen.outlined_in((60, 70, 110)):
        for i, size in enumerate((0.09, 0.12, 0.15)):
            left = x - 0.03 + 0.06 * i
            low = y + 0.16 * i
            zed = [
                (left, low + size),
                (left + size, low + size),
                (left, low),
                (left + size, low),
            ]
            if pen.flipped:
                # Letters are not mirrored.
                zed = [(2 * left + size - p, q) for p, q in zed]
            pen.limb(zed, 0.03, (250, 250, 255))


def draw_dust(pen: Pen, x: float) -> None:
    """Puffs and speed lines behind a runner."""
    with pen.outlined_in((168, 158, 146)):
        for dx, y, r in ((0.0, 0.06, 0.07), (-0.13, 0.10, 0.055), (-0.23, 0.05, 0.04)):
            pen.ellipse(x + dx, y, r, r * 0.85, DUST)
    for y in (0.36, 0.52):
        pen.limb([(x - 0.2, y), (x - 0.02, y)], 0.025, FOAM, outlined=False)
    pen.flush()


def draw_drops(pen: Pen, at: Point) -> None:
    """Drops of water around a point."""
    x, y = at
    with pen.outlined_in((96, 150, 200)):
        for dx, dy, r in (
            (0.0, 0.05, 0.05),
            (0.2, -0.04, 0.04),
            (0.42, 0.0, 0.05),
            (-0.16, 0.14, 0.035),
        ):
            pen.ellipse(x + dx - 0.1, y + dy + 0.1, r * 0.8, r, (176, 218, 244))
