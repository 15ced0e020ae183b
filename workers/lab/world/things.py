"""Car, boat, house and tree."""

from __future__ import annotations

from workers.lab.world.latents import Instance
from workers.lab.world.paint import BEAK, GLASS, WOOD, Paint
from workers.lab.world.pen import Pen


def draw_car(pen: Pen, self_: Instance, paint: Paint) -> None:
    """A car that looks to the right."""
    roof = 0.6 + 0.04 * self_.variant
    back = -0.32 - 0.03 * self_.phase
    front = 0.2 + 0.04 * self_.phase
    pen.blob(
        [
            (-0.62, 0.2),
            (-0.62, 0.36),
            (-0.4, 0.4),
            (0.0, 0.4),
            (0.4, 0.39),
            (0.6, 0.32),
            (0.63, 0.18),
            (0.3, 0.13),
            (-0.3, 0.13),
        ],
        paint.base,
    )
    pen.polygon([(-0.46, 0.37), (back, roof), (front, roof), (0.42, 0.37)], paint.base)
    pen.flush()
    for a, b, c, d in (
        (-0.37, -0.02, back + 0.05, -0.02),
        (0.03, 0.34, 0.03, front - 0.02),
    ):
        pen.polygon(
            [(a, 0.39), (c, roof - 0.06), (d, roof - 0.06), (b, 0.39)],
            GLASS,
            outlined=False,
        )
    pen.limb([(-0.58, 0.24), (0.58, 0.24)], 0.03, paint.dark, outlined=False)
    pen.ellipse(0.57, 0.3, 0.045, 0.045, (255, 240, 160), outlined=False)
    pen.ellipse(-0.59, 0.3, 0.03, 0.045, (200, 40, 40), outlined=False)
    pen.flush()
    with pen.outlined_in((14, 14, 16)):
        for x in (-0.34, 0.36):
            pen.ellipse(x, 0.13, 0.125, 0.125, (46, 46, 50))
            pen.ellipse(x, 0.13, 0.06, 0.06, (196, 198, 204), outlined=False)


def draw_boat(pen: Pen, self_: Instance, paint: Paint) -> None:
    """A sailing boat."""
    top = 1.0 + 0.05 * self_.variant
    pen.limb([(0.02, 0.2), (0.02, top)], 0.035, WOOD)
    pen.blob(
        [
            (0.08, 0.36),
            (0.09, top * 0.72),
            (0.07, top * 0.95),
            (0.3, top * 0.66),
            (0.5 + 0.03 * self_.phase, 0.38),
            (0.28, 0.34),
        ],
        paint.base,
    )
    pen.polygon([(-0.03, 0.38), (-0.03, top * 0.86), (-0.36, 0.38)], paint.light)
    pen.flush()
    pen.polygon(
        [
            (-0.6, 0.3),
            (0.66, 0.3),
            (0.48, 0.06),
            (0.36, 0.0),
            (-0.36, 0.0),
            (-0.48, 0.06),
        ],
        paint.base,
    )
    pen.flush()
    pen.polygon(
        [(-0.58, 0.28), (0.64, 0.28), (0.6, 0.2), (-0.55, 0.2)],
        paint.light,
        outlined=False,
    )
    for x in (-0.25, 0.02, 0.29):
        pen.ellipse(x, 0.11, 0.045, 0.045, GLASS, outlined=False)
    pen.flush()


def draw_house(pen: Pen, self_: Instance, paint: Paint) -> None:
    """A house with a chimney."""
    eaves = 0.54
    top = 0.98 + 0.04 * self_.variant
    chimney = 0.2 if self_.phase > 0 else -0.32
    pen.polygon(
        [
            (chimney, eaves),
            (chimney, top),
            (chimney + 0.13, top),
            (chimney + 0.13, eaves),
        ],
        paint.dark,
    )
    pen.polygon([(-0.44, 0.0), (0.44, 0.0), (0.44, eaves), (-0.44, eaves)], paint.base)
    pen.flush()
    pen.polygon([(-0.56, eaves - 0.02), (0.56, eaves - 0.02), (0.0, top)], paint.dark)
    pen.flush()
    pen.ellipse(0.0, eaves + 0.15, 0.075, 0.075, GLASS)
    door = -0.1 + 0.06 * self_.phase
    pen.polygon([(door, 0.0), (door + 0.2, 0.0), (door + 0.2, 0.32), (door, 0.32)], WOOD)
    for x in (-0.34, 0.2):
        pen.polygon([(x, 0.22), (x + 0.16, 0.22), (x + 0.16, 0.4), (x, 0.4)], (255, 232, 150))
    pen.flush()
    for x in (-0.26, 0.28):
        pen.limb([(x, 0.23), (x, 0.39)], 0.02, paint.outline, outlined=False)
        pen.limb([(x - 0.07, 0.31), (x + 0.07, 0.31)], 0.02, paint.outline, outlined=False)
    pen.ellipse(door + 0.16, 0.15, 0.018, 0.018, BEAK, outlined=False)
    pen.flush()


def draw_tree(pen: Pen, self_: Instance, paint: Paint) -> None:
    """A tree."""
    with pen.outlined_in((58, 36, 20)):
        pen.polygon([(-0.11, 0.0), (-0.06, 0.45), (0.06, 0.45), (0.11, 0.0)], WOOD)
        pen.limb([(0.0, 0.28), (0.16, 0.48)], 0.05, WOOD)
    wide = 1 + 0.1 * self_.phase
    for x, y, r in (
        (-0.24, 0.52, 0.2),
        (0.24, 0.52, 0.2),
        (0.0, 0.5, 0.2),
        (-0.17, 0.74, 0.2),
        (0.18, 0.74, 0.2),
        (0.0, 0.86, 0.19),
    ):
        pen.ellipse(x * wide, y, r * wide, r, paint.base)
    pen.flush()
    for x, y, r in ((-0.2, 0.46, 0.12), (0.2, 0.44, 0.12), (0.04, 0.66, 0.11)):
        pen.ellipse(x * wide, y, r, r * 0.55, paint.dark, outlined=False)
    for x, y, r in ((-0.16, 0.82, 0.1), (0.12, 0.9, 0.09), (-0.26, 0.6, 0.07)):
        pen.ellipse(x * wide + 0.03 * self_.variant, y, r, r * 0.6, paint.light, outlined=False)
    pen.flush()
