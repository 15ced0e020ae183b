"""How each object looks in each of its poses.

Every function draws with a `Pen` in the object's own coordinates: x forward, y up, ground at 0, height about 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workers.scenes.latents import Instance
from workers.scenes.pen import Colour, Pen, Point, shade

PALETTE: dict[str, Colour] = {
    "red": (214, 44, 44),
    "orange": (246, 132, 28),
    "yellow": (250, 216, 52),
    "green": (52, 158, 66),
    "blue": (44, 100, 216),
    "purple": (142, 66, 178),
    "white": (246, 246, 248),
    "black": (38, 36, 42),
}
EYE_WHITE, PUPIL, PINK, BEAK = (252, 252, 252), (20, 18, 22), (240, 150, 160), (238, 168, 44)
WOOD, GLASS, FOAM, DUST = (112, 74, 44), (190, 226, 244), (236, 246, 252), (226, 216, 200)


@dataclass(frozen=True, slots=True)
class Paint:
    """The shades of one colour that an object is drawn with."""

    base: Colour
    dark: Colour
    light: Colour
    outline: Colour

    @classmethod
    def of(cls, colour: str, jitter: float, *, night: bool) -> Paint:
        base = shade(PALETTE[colour], 1 + 0.07 * jitter)
        if colour == "black":
            return cls(base, (24, 22, 28), (78, 76, 86), (150, 150, 168) if night else (10, 8, 12))
        if colour == "white":
            return cls(base, (206, 208, 216), (255, 255, 255), (112, 116, 130))
        # A darkened yellow would be olive.
        dark = shade((224, 164, 24), 1 + 0.07 * jitter) if colour == "yellow" else shade(base, 0.74)
        return cls(base, dark, shade(base, 1.45), shade(dark, 0.45))


def eye(pen: Pen, x: float, y: float, r: float, *, closed: bool = False) -> None:
    if closed:
        arc = [(x - r, y + r * 0.2), (x - r * 0.4, y - r * 0.4), (x + r * 0.4, y - r * 0.4), (x + r, y + r * 0.2)]
        pen.limb(arc, r * 0.75, EYE_WHITE, outlined=False)
        pen.limb(arc, r * 0.5, PUPIL, outlined=False)
        return
    pen.ellipse(x, y, r, r * 1.15, EYE_WHITE, outlined=False)
    pen.ellipse(x + r * 0.25, y - r * 0.05, r * 0.58, r * 0.72, PUPIL, outlined=False)


def snores(pen: Pen, x: float, y: float) -> None:
    """Z z Z rising from a sleeper."""
    pen.pose(0)
    outline, pen.outline = pen.outline, (60, 70, 110)
    for i, size in enumerate((0.09, 0.12, 0.15)):
        a, b = x - 0.03 + 0.06 * i, y + 0.16 * i
        zed = [(a, b + size), (a + size, b + size), (a, b), (a + size, b)]
        pen.limb(zed if not pen.flipped else [(2 * a + size - p, q) for p, q in zed], 0.03, (250, 250, 255))
    pen.flush()
    pen.outline = outline


def dust(pen: Pen, x: float) -> None:
    """Puffs and speed lines behind a runner."""
    outline, pen.outline = pen.outline, (168, 158, 146)
    for dx, y, r in ((0.0, 0.06, 0.07), (-0.13, 0.10, 0.055), (-0.23, 0.05, 0.04)):
        pen.ellipse(x + dx, y, r, r * 0.85, DUST)
    pen.flush()
    pen.outline = outline
    for y in (0.36, 0.52):
        pen.limb([(x - 0.2, y), (x - 0.02, y)], 0.025, FOAM, outlined=False)
    pen.flush()


# ── four-legged animals ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Build:
    """Proportions of a four-legged animal."""

    length: float
    girth: float
    leg: float
    limb: float
    head: float
    """Radius of the head."""
    neck: Point
    """From the shoulder to the head's centre, standing."""


BUILDS = {
    "cat": Build(0.46, 0.31, 0.26, 0.105, 0.235, (0.16, 0.25)),
    "dog": Build(0.50, 0.33, 0.30, 0.115, 0.215, (0.16, 0.30)),
    "rabbit": Build(0.30, 0.38, 0.12, 0.115, 0.20, (0.15, 0.24)),
    "horse": Build(0.56, 0.33, 0.42, 0.095, 0.15, (0.25, 0.34)),
}


@dataclass(frozen=True, slots=True)
class Stance:
    """Where the joints are: legs are (joint, knee, foot), far ones first."""

    hip: Point
    shoulder: Point
    head: Point
    legs: tuple[tuple[Point, Point, Point], ...]
    asleep: bool = False
    haunch: float = 0.0


def _leg(joint: Point, dx: float, dy: float, bend: float) -> tuple[Point, Point, Point]:
    """From the joint to a foot `dx` ahead and `dy` below; `bend` pushes the knee forward."""
    x, y = joint
    return (joint, (x + dx * 0.5 + bend, y - dy * 0.5), (x + dx, y - dy))


def stance(build: Build, action: str | None, phase: float) -> Stance:
    half, height = build.length / 2, build.leg + build.girth / 2
    hip, shoulder = (-half, height), (half, height + 0.02)
    head = (shoulder[0] + build.neck[0], shoulder[1] + build.neck[1])
    down = height - 0.03
    if action == "sitting":
        hip, shoulder = (-0.17, build.girth * 0.55), (0.10, build.girth * 0.62 + build.leg * 0.75 + 0.12)
        legs = (
            _leg((0.16, shoulder[1] - 0.06), 0.0, shoulder[1] - 0.1, 0.0),
            _leg((0.24, shoulder[1] - 0.08), 0.02, shoulder[1] - 0.11, 0.0),
            ((-0.17, 0.14), (-0.05, 0.06), (0.08, 0.05)),
        )
        head = (shoulder[0] + build.neck[0] * 0.7, shoulder[1] + build.neck[1] * 0.95)
        return Stance(hip, shoulder, head, legs, haunch=build.girth * 0.62)
    if action == "sleeping":
        low = build.girth * 0.5
        hip, shoulder = (-half * 0.75, low * 1.1), (half * 0.6, low)
        paws = (
            ((-half, 0.06), (-half + 0.12, 0.05), (-half + 0.26, 0.05)),
            ((0.1, 0.06), (0.3, 0.05), (half + 0.3, 0.05)),
        )
        head = (half * 0.6 + build.head * 1.05, build.head * 0.95)
        return Stance(hip, shoulder, head, paws, asleep=True, haunch=build.girth * 0.72)
    if action == "swimming":
        drop = height - 0.30
        hip, shoulder = (-half, height - drop), (half, height - drop + 0.03)
        head = (shoulder[0] + build.neck[0], shoulder[1] + build.neck[1] * 0.95)
        return Stance(hip, shoulder, head, ())
    if action == "running":
        s = 0.85 + 0.25 * phase
        reach, back = 0.30 * s + build.leg * 0.25, 0.32 * s + build.leg * 0.25
        legs = (
            _leg(hip, -back * 0.55, down * 0.95, -0.05),
            _leg(shoulder, reach * 0.55, down * 0.95, 0.06),
            _leg(hip, -back, down * 0.68, 0.05),
            _leg(shoulder, reach, down * 0.66, 0.06),
        )
        return Stance(hip, shoulder, (head[0] + 0.07, head[1] - 0.08), legs)
    if action == "jumping":
        s = 0.9 + 0.2 * phase
        legs = (
            _leg(hip, -0.26 * s, down * 0.80, 0.05),
            _leg(shoulder, 0.24 * s, down * 0.45, 0.10),
            _leg(hip, -0.36 * s, down * 0.66, 0.05),
            _leg(shoulder, 0.33 * s, down * 0.32, 0.08),
        )
        return Stance(hip, shoulder, head, legs)
    spread = 0.05 * phase
    legs = (
        _leg((hip[0] + 0.09, hip[1]), spread, down, -0.02),
        _leg((shoulder[0] - 0.07, shoulder[1]), -spread, down + 0.02, 0.0),
        _leg((hip[0] - 0.04, hip[1]), -spread, down, -0.03),
        _leg((shoulder[0] + 0.04, shoulder[1]), spread, down + 0.02, 0.0),
    )
    return Stance(hip, shoulder, head, legs)


def quadruped(pen: Pen, species: str, action: str | None, self_: Instance, paint: Paint) -> None:
    build = BUILDS[species]
    s = stance(build, action, self_.phase)
    if action == "running":
        dust(pen, s.hip[0] - 0.36)
    tilt = {"jumping": 24 + 8 * self_.phase, "running": 4 * self_.phase}.get(action or "", 0.0)
    lift = {"jumping": 0.24 + 0.06 * self_.phase, "running": 0.03}.get(action or "", 0.0)
    pen.pose(tilt, s.hip, lift)
    _tail(pen, species, action, s, self_, paint)
    near = len(s.legs) // 2
    for leg in s.legs[:near]:
        pen.limb(leg, build.limb, paint.dark)
    if species == "horse":
        _horse_neck(pen, s, paint)
    pen.limb([s.hip, s.shoulder], build.girth, paint.base)
    if s.haunch:
        pen.ellipse(s.hip[0], s.hip[1], s.haunch, s.haunch * 0.92, paint.base)
    for leg in s.legs[near:]:
        pen.limb(leg, build.limb, paint.base)
    mid = ((s.hip[0] + s.shoulder[0]) / 2, (s.hip[1] + s.shoulder[1]) / 2)
    if species != "horse" and action not in ("sitting", "sleeping"):
        pen.ellipse(
            mid[0], mid[1] - build.girth * 0.3, build.length * 0.55, build.girth * 0.13, paint.light, outlined=False
        )
    if action == "sitting":
        pen.ellipse(s.shoulder[0] + 0.07, s.shoulder[1] - 0.1, 0.08, 0.15, paint.light, outlined=False)
    pen.flush()
    HEADS[species](pen, s.head, build.head, self_, paint, s.asleep)
    pen.flush()
    if s.asleep:
        snores(pen, s.head[0] + 0.02, s.head[1] + build.head * (1.9 if species == "rabbit" else 1.5))


def _tail(pen: Pen, species: str, action: str | None, s: Stance, self_: Instance, paint: Paint) -> None:
    x, y = s.hip[0] - BUILDS[species].girth * 0.42, s.hip[1] + 0.04
    wag = 0.05 * self_.variant
    if species == "cat":
        if action in ("sitting", "sleeping"):
            pen.limb([(x, 0.1), (x - 0.14, 0.07), (x - 0.22, 0.14), (x - 0.2, 0.24 + wag)], 0.075, paint.dark)
        else:
            curve = [
                (x, y),
                (x - 0.12, y + 0.06),
                (x - 0.19, y + 0.18),
                (x - 0.18 + wag, y + 0.32),
                (x - 0.1 + wag, y + 0.4),
            ]
            pen.limb(curve, 0.075, paint.dark)
    elif species == "dog":
        pen.limb([(x + 0.03, y), (x - 0.1, y + 0.1), (x - 0.13, y + 0.22 + wag)], 0.085, paint.dark)
    elif species == "rabbit":
        pen.ellipse(x - 0.02, y, 0.085, 0.085, paint.light)
    else:
        pen.blob(
            [
                (x + 0.06, y + 0.06),
                (x - 0.1, y + 0.08),
                (x - 0.22 + wag, y - 0.1),
                (x - 0.2 + wag, y - 0.32),
                (x - 0.08, y - 0.14),
            ],
            paint.dark,
        )


def _horse_neck(pen: Pen, s: Stance, paint: Paint) -> None:
    (x, y), (hx, hy) = s.shoulder, s.head
    pen.blob(
        [
            (x - 0.1, y + 0.14),
            (hx - 0.2, hy + 0.06),
            (hx - 0.08, hy + 0.18),
            (hx + 0.02, hy + 0.08),
            (x + 0.1, y + 0.1),
        ],
        paint.dark,
    )
    pen.limb([(x, y + 0.02), (hx - 0.02, hy)], 0.2, paint.base)


def _cat_head(pen: Pen, at: Point, r: float, self_: Instance, paint: Paint, asleep: bool) -> None:
    x, y = at
    tip = r * (1.5 + 0.12 * self_.variant)
    for side in (-1, 1):
        pen.polygon(
            [(x + side * r * 0.98, y + r * 0.15), (x + side * r * 0.85, y + tip), (x + side * r * 0.12, y + r * 0.85)],
            paint.base,
        )
    pen.ellipse(x, y, r * 1.08, r * 0.94, paint.base)
    for side in (-1, 1):
        ear = [
            (x + side * r * 0.82, y + r * 0.5),
            (x + side * r * 0.78, y + tip * 0.84),
            (x + side * r * 0.34, y + r * 0.82),
        ]
        pen.polygon(ear, PINK, outlined=False)
    pen.ellipse(x + r * 0.14, y - r * 0.42, r * 0.46, r * 0.34, paint.light, outlined=False)
    for side in (-0.32, 0.58):
        eye(pen, x + side * r, y + r * 0.08, r * 0.24, closed=asleep)
    pen.polygon(
        [(x + r * 0.02, y - r * 0.22), (x + r * 0.26, y - r * 0.22), (x + r * 0.14, y - r * 0.38)], PINK, outlined=False
    )
    for side in (-1, 1):
        for dy in (-0.28, -0.5):
            pen.limb(
                [(x + side * r * 0.55, y + r * dy), (x + side * r * 1.35, y + r * (dy * 1.25 + 0.1))],
                0.014,
                paint.outline,
                outlined=False,
            )


def _dog_head(pen: Pen, at: Point, r: float, self_: Instance, paint: Paint, asleep: bool) -> None:
    x, y = at
    pen.ellipse(x, y, r, r * 0.95, paint.base)
    pen.ellipse(x + r * 0.85, y - r * 0.3, r * 0.62, r * 0.42, paint.light)
    pen.flush()
    if not asleep:
        pen.ellipse(x + r * 0.85, y - r * 0.78, r * 0.16, r * 0.26, (232, 96, 110))
    pen.limb([(x + r * 0.6, y - r * 0.52), (x + r * 1.2, y - r * 0.5)], 0.018, paint.outline, outlined=False)
    pen.ellipse(x + r * 1.34, y - r * 0.12, r * 0.2, r * 0.17, PUPIL, outlined=False)
    eye(pen, x + r * 0.32, y + r * 0.2, r * 0.21, closed=asleep)
    droop = r * (0.95 + 0.15 * self_.variant)
    pen.blob(
        [
            (x - r * 0.35, y + r * 0.75),
            (x - r * 0.85, y + r * 0.5),
            (x - r * 1.0, y - droop * 0.6),
            (x - r * 0.62, y - droop),
            (x - r * 0.2, y - r * 0.1),
        ],
        paint.dark,
    )


def _rabbit_head(pen: Pen, at: Point, r: float, self_: Instance, paint: Paint, asleep: bool) -> None:
    x, y = at
    back = 50 if asleep else 14 + 8 * self_.variant
    for dx, turn in ((-0.42, back), (0.16, back - 18)):
        lean = -turn / 60 * r
        pen.ellipse(x + dx * r + lean, y + r * 1.45, r * 0.3, r * 1.0, paint.base, turn=turn)
        pen.ellipse(x + dx * r + lean, y + r * 1.45, r * 0.14, r * 0.72, PINK, turn=turn, outlined=False)
    pen.ellipse(x, y, r * 1.05, r * 0.95, paint.base)
    pen.ellipse(x + r * 0.55, y - r * 0.35, r * 0.4, r * 0.32, paint.light, outlined=False)
    eye(pen, x + r * 0.25, y + r * 0.15, r * 0.24, closed=asleep)
    pen.ellipse(x + r * 0.86, y - r * 0.12, r * 0.13, r * 0.11, PINK, outlined=False)
    pen.polygon(
        [
            (x + r * 0.6, y - r * 0.5),
            (x + r * 0.84, y - r * 0.5),
            (x + r * 0.8, y - r * 0.78),
            (x + r * 0.64, y - r * 0.78),
        ],
        EYE_WHITE,
    )


def _horse_head(pen: Pen, at: Point, r: float, self_: Instance, paint: Paint, asleep: bool) -> None:
    x, y = at
    tilt = -24 if not asleep else -6
    pen.polygon(
        [
            (x - r * 0.5, y + r * 0.5),
            (x - r * 0.42, y + r * (1.55 + 0.15 * self_.variant)),
            (x + r * 0.12, y + r * 0.72),
        ],
        paint.base,
    )
    pen.ellipse(x + r * 0.62, y - r * 0.22, r * 1.4, r * 0.72, paint.base, turn=tilt)
    pen.ellipse(x + r * 1.45, y - r * 0.6, r * 0.55, r * 0.52, paint.light, turn=tilt, outlined=False)
    pen.blob(
        [
            (x - r * 0.7, y + r * 0.9),
            (x + r * 0.1, y + r * 1.0),
            (x + r * 0.45, y + r * 0.4),
            (x - r * 0.2, y + r * 0.45),
        ],
        paint.dark,
        outlined=False,
    )
    eye(pen, x + r * 0.42, y + r * 0.08, r * 0.25, closed=asleep)
    pen.ellipse(x + r * 1.68, y - r * 0.62, r * 0.12, r * 0.12, PUPIL, outlined=False)


HEADS = {"cat": _cat_head, "dog": _dog_head, "rabbit": _rabbit_head, "horse": _horse_head}


# ── bird and fish ─────────────────────────────────────────────────────────────────────────────────


def bird(pen: Pen, action: str | None, self_: Instance, paint: Paint) -> None:
    asleep, flying = action == "sleeping", action == "flying"
    low = {"sitting": 0.32, "sleeping": 0.3, "swimming": 0.26}.get(action or "", 0.44)
    if action in ("sitting", "sleeping"):
        _nest(pen)
    if flying:
        pen.pose(12 + 6 * self_.phase, (0.0, low), 0.2)
        _wing(pen, (0.1, low + 0.12), 0.16, self_.phase, paint.dark)
    if action is None:
        for dx in (-0.06, 0.08):
            pen.limb([(dx, 0.3), (dx, 0.03), (dx + 0.1, 0.02)], 0.035, BEAK)
    pen.polygon(
        [(-0.3, low + 0.06), (-0.62, low + 0.16), (-0.64, low + 0.0), (-0.58, low - 0.1), (-0.28, low - 0.1)],
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
    eye(pen, x + 0.07, y + 0.04, 0.052, closed=asleep)
    if flying:
        pen.flush()
        _wing(pen, (-0.04, low + 0.02), -0.2, self_.phase, paint.dark)
    else:
        pen.blob(
            [(0.08, low + 0.06), (-0.1, low + 0.16), (-0.36, low + 0.02), (-0.44, low - 0.1), (-0.1, low - 0.12)],
            paint.dark,
        )
    pen.flush()
    if asleep:
        snores(pen, 0.28, 0.62)


def _wing(pen: Pen, root: Point, lean: float, phase: float, fill: Colour) -> None:
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


def _nest(pen: Pen) -> None:
    outline, pen.outline = pen.outline, (74, 48, 26)
    pen.blob([(-0.46, 0.2), (-0.36, 0.02), (0.0, -0.02), (0.36, 0.02), (0.46, 0.2), (0.0, 0.12)], (150, 106, 62))
    for dx in (-0.28, -0.08, 0.12, 0.3):
        pen.limb([(dx - 0.08, 0.06), (dx + 0.08, 0.12)], 0.022, (104, 70, 38), outlined=False)
    pen.flush()
    pen.outline = outline


def fish(pen: Pen, action: str | None, self_: Instance, paint: Paint) -> None:
    swish = 0.06 * self_.phase
    middle = 0.42 if action == "swimming" else 0.3
    if action == "jumping":
        pen.pose(38 + 10 * self_.phase, (0.0, middle), 0.36)
        _drops(pen, (-0.2, -0.2))
    x, y = -0.42, middle
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
    pen.blob([(-0.12, y + 0.2), (-0.06, y + 0.4), (0.14, y + 0.36), (0.22, y + 0.2)], paint.dark)
    pen.blob([(-0.04, y - 0.2), (-0.12, y - 0.36), (0.04, y - 0.3), (0.14, y - 0.2)], paint.dark)
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
    pen.blob(
        [(0.4, y - 0.1), (0.1, y - 0.08), (-0.22, y - 0.06), (-0.2, y - 0.14), (0.06, y - 0.23), (0.34, y - 0.17)],
        paint.light,
        outlined=False,
    )
    for dx in (-0.08, 0.06):
        pen.limb([(dx, y + 0.12), (dx + 0.05, y), (dx, y - 0.06)], 0.026, paint.dark, outlined=False)
    pen.blob([(0.12, y - 0.02), (-0.04, y - 0.06), (-0.08, y - 0.16), (0.04, y - 0.12)], paint.dark, outlined=False)
    pen.limb([(0.5, y - 0.05), (0.4, y - 0.07)], 0.024, paint.outline, outlined=False)
    eye(pen, 0.32, y + 0.06, 0.062)
    pen.flush()
    if action == "swimming":
        for dx, dy, r in ((0.62, 0.12, 0.045), (0.7, 0.26, 0.06), (0.6, 0.38, 0.035)):
            pen.ellipse(dx, y + dy, r, r, FOAM)
        outline, pen.outline = pen.outline, (110, 170, 210)
        pen.flush()
        pen.outline = outline


def _drops(pen: Pen, at: Point) -> None:
    outline, pen.outline = pen.outline, (96, 150, 200)
    for dx, dy, r in ((0.0, 0.05, 0.05), (0.2, -0.04, 0.04), (0.42, 0.0, 0.05), (-0.16, 0.14, 0.035)):
        pen.ellipse(at[0] + dx - 0.1, at[1] + dy + 0.1, r * 0.8, r, (176, 218, 244))
    pen.flush()
    pen.outline = outline


# ── things ────────────────────────────────────────────────────────────────────────────────────────


def car(pen: Pen, action: str | None, self_: Instance, paint: Paint) -> None:
    roof = 0.6 + 0.04 * self_.variant
    back, front = -0.32 - 0.03 * self_.phase, 0.2 + 0.04 * self_.phase
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
    for a, b, c, d in ((-0.37, -0.02, back + 0.05, -0.02), (0.03, 0.34, 0.03, front - 0.02)):
        pen.polygon([(a, 0.39), (c, roof - 0.06), (d, roof - 0.06), (b, 0.39)], GLASS, outlined=False)
    pen.limb([(-0.58, 0.24), (0.58, 0.24)], 0.03, paint.dark, outlined=False)
    pen.ellipse(0.57, 0.3, 0.045, 0.045, (255, 240, 160), outlined=False)
    pen.ellipse(-0.59, 0.3, 0.03, 0.045, (200, 40, 40), outlined=False)
    pen.flush()
    outline, pen.outline = pen.outline, (14, 14, 16)
    for x in (-0.34, 0.36):
        pen.ellipse(x, 0.13, 0.125, 0.125, (46, 46, 50))
        pen.ellipse(x, 0.13, 0.06, 0.06, (196, 198, 204), outlined=False)
    pen.flush()
    pen.outline = outline


def boat(pen: Pen, action: str | None, self_: Instance, paint: Paint) -> None:
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
    pen.polygon([(-0.6, 0.3), (0.66, 0.3), (0.48, 0.06), (0.36, 0.0), (-0.36, 0.0), (-0.48, 0.06)], paint.base)
    pen.flush()
    pen.polygon([(-0.58, 0.28), (0.64, 0.28), (0.6, 0.2), (-0.55, 0.2)], paint.light, outlined=False)
    for x in (-0.25, 0.02, 0.29):
        pen.ellipse(x, 0.11, 0.045, 0.045, GLASS, outlined=False)
    pen.flush()


def house(pen: Pen, action: str | None, self_: Instance, paint: Paint) -> None:
    eaves, top = 0.54, 0.98 + 0.04 * self_.variant
    chimney = 0.2 if self_.phase > 0 else -0.32
    pen.polygon([(chimney, eaves), (chimney, top), (chimney + 0.13, top), (chimney + 0.13, eaves)], paint.dark)
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


def tree(pen: Pen, action: str | None, self_: Instance, paint: Paint) -> None:
    outline, pen.outline = pen.outline, (58, 36, 20)
    pen.polygon([(-0.11, 0.0), (-0.06, 0.45), (0.06, 0.45), (0.11, 0.0)], WOOD)
    pen.limb([(0.0, 0.28), (0.16, 0.48)], 0.05, WOOD)
    pen.flush()
    pen.outline = outline
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


def _four_legged(species: str) -> Callable[[Pen, str | None, Instance, Paint], None]:
    return lambda pen, action, self_, paint: quadruped(pen, species, action, self_, paint)


OBJECTS: dict[str, Callable[[Pen, str | None, Instance, Paint], None]] = {
    **{species: _four_legged(species) for species in BUILDS},
    "bird": bird,
    "fish": fish,
    "car": car,
    "boat": boat,
    "house": house,
    "tree": tree,
}
