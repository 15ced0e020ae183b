"""Bird and fish in their poses."""

from __future__ import annotations

from workers.lab.world.latents import Instance
from workers.lab.world.marks import draw_drops, draw_eye, draw_snores
from workers.lab.world.paint import BEAK, FOAM, Paint
from workers.lab.world.pen import Colour, Pen, Point


def draw_bird(pen: Pen, action: str | None, self_: Instance, paint: Paint) -> None:
    """A bird that looks to the right, in one of its poses."""
    asleep = action == "sleeping"
    flying = action == "flying"
    low = {"sitting": 0.32, "sleeping": 0.3, "swimming": 0.26}.get(action or "", 0.44)
    if action in ("sitting", "sleeping"):
        _draw_nest(pen)
    if flying:
        pen.pose(12 + 6 * self_.phase, (0.0, low), 0.2)
        _draw_wing(pen, (0.1, low + 0.12), 0.16, self_.phase, paint.dark)
    if action is None:
        for dx in (-0.06, 0.08):
            pen.limb([(dx, 0.3), (dx, 0.03), (dx + 0.1, 0.02)], 0.035, BEAK)
    pen.polygon(
        [
            (-0.3, low + 0.06),
            (-0.62, low + 0.16),
            (-0.64, low + 0.0),
            (-0.58, low - 0.1),
            (-0.28, low - 0.1),
        ],
        paint.dark,
    )
    pen.ellipse(-0.04, low, 0.36, 0.255, paint.base, turn=12)
    pen.flush()
    head = (0.1, low + 0.2) if asleep else (0.28, low + 0.3)
    x, y = head
    if not asleep:
        pen.polygon([(x + 0.12, y + 0.08), (x + 0.36, y - 0.02), (x + 0.12, y - 0.1)], BEAK)
    pen.ellipse(x, y, 0.195, 0.185, paint.base)
    pen.flush()
    pen.ellipse(0.1, low - 0.08, 0.17, 0.13, paint.light, outlined=False)
    draw_eye(pen, x + 0.07, y + 0.04, 0.052, closed=asleep)
    if flying:
        pen.flush()
        _draw_wing(pen, (-0.04, low + 0.02), -0.2, self_.phase, paint.dark)
    else:
        pen.blob(
            [
                (0.08, low + 0.06),
                (-0.1, low + 0.16),
                (-0.36, low + 0.02),
                (-0.44, low - 0.1),
                (-0.1, low - 0.12),
            ],
            paint.dark,
        )
    pen.flush()
    if asleep:
        draw_snores(pen, 0.28, 0.62)


def _draw_wing(pen: Pen, root: Point, lean: float, phase: float, fill: Colour) -> None:
    """A raised wing with three feathers at its end; `lean` moves its tip forward."""
    x, y = root
    up = 0.54 + 0.08 * phase
    tip = x + lean
    pen.blob(
        [
            (x + 0.16, y),
            (tip + 0.14, y + up * 0.75),
            (tip + 0.02, y + up * 1.05),
            (tip - 0.1, y + up * 0.8),
            (tip - 0.2, y + up * 0.86),
            (tip - 0.24, y + up * 0.55),
            (tip - 0.3, y + up * 0.5),
            (x - 0.18, y),
        ],
        fill,
    )


def _draw_nest(pen: Pen) -> None:
    with pen.outlined_in((74, 48, 26)):
        pen.blob(
            [
                (-0.46, 0.2),
                (-0.36, 0.02),
                (0.0, -0.02),
                (0.36, 0.02),
                (0.46, 0.2),
                (0.0, 0.12),
            ],
            (150, 106, 62),
        )
        for dx in (-0.28, -0.08, 0.12, 0.3):
            pen.limb(
                [(dx - 0.08, 0.06), (dx + 0.08, 0.12)],
                0.022,
                (104, 70, 38),
                outlined=False,
            )


def _draw_fish_tail(pen: Pen, x: float, y: float, swish: float, paint: Paint) -> None:
    pen.blob(
        [
            (x + 0.1, y),
            (x - 0.1, y + 0.24 + swish),
            (x - 0.24, y + 0.26 + swish),
            (x - 0.16, y + swish),
            (x - 0.24, y - 0.24 + swish),
            (x - 0.1, y - 0.22 + swish),
        ],
        paint.dark,
    )


def _draw_fish_body(pen: Pen, y: float, paint: Paint) -> None:
    """Fins and body around the height y."""
    pen.blob(
        [(-0.12, y + 0.2), (-0.06, y + 0.4), (0.14, y + 0.36), (0.22, y + 0.2)],
        paint.dark,
    )
    pen.blob(
        [(-0.04, y - 0.2), (-0.12, y - 0.36), (0.04, y - 0.3), (0.14, y - 0.2)],
        paint.dark,
    )
    pen.blob(
        [
            (0.52, y),
            (0.36, y + 0.2),
            (0.06, y + 0.28),
            (-0.24, y + 0.17),
            (-0.42, y),
            (-0.24, y - 0.17),
            (0.06, y - 0.27),
            (0.36, y - 0.19),
        ],
        paint.base,
    )
    pen.flush()


def _draw_fish_markings(pen: Pen, y: float, paint: Paint) -> None:
    """Belly, scales, side fin and mouth."""
    pen.blob(
        [
            (0.4, y - 0.1),
            (0.1, y - 0.08),
            (-0.22, y - 0.06),
            (-0.2, y - 0.14),
            (0.06, y - 0.23),
            (0.34, y - 0.17),
        ],
        paint.light,
        outlined=False,
    )
    for dx in (-0.08, 0.06):
        pen.limb(
            [(dx, y + 0.12), (dx + 0.05, y), (dx, y - 0.06)],
            0.026,
            paint.dark,
            outlined=False,
        )
    pen.blob(
        [(0.12, y - 0.02), (-0.04, y - 0.06), (-0.08, y - 0.16), (0.04, y - 0.12)],
        paint.dark,
        outlined=False,
    )
    pen.limb([(0.5, y - 0.05), (0.4, y - 0.07)], 0.024, paint.outline, outlined=False)


def draw_fish(pen: Pen, action: str | None, self_: Instance, paint: Paint) -> None:
    """A fish that looks to the right, in one of its poses."""
    swish = 0.06 * self_.phase
    middle = 0.42 if action == "swimming" else 0.3
    if action == "jumping":
        pen.pose(38 + 10 * self_.phase, (0.0, middle), 0.36)
        draw_drops(pen, (-0.2, -0.2))
    y = middle
    _draw_fish_tail(pen, -0.42, y, swish, paint)
    _draw_fish_body(pen, y, paint)
    _draw_fish_markings(pen, y, paint)
    draw_eye(pen, 0.32, y + 0.06, 0.062)
    pen.flush()
    if action == "swimming":
        with pen.outlined_in((110, 170, 210)):
            for dx, dy, r in (
                (0.62, 0.12, 0.045),
                (0.7, 0.26, 0.06),
                (0.6, 0.38, 0.035),
            ):
                pen.ellipse(dx, y + dy, r, r, FOAM)
