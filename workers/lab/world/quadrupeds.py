"""Cat, dog, rabbit and horse: one body plan, four builds, six poses."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians, sin

from workers.lab.world.latents import Instance
from workers.lab.world.marks import draw_dust, draw_eye, draw_snores
from workers.lab.world.paint import EYE_WHITE, PINK, PUPIL, Paint
from workers.lab.world.pen import Pen, Point


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
    """Way from the shoulder to the head's centre, standing."""


BUILDS = {
    "cat": Build(0.46, 0.31, 0.26, 0.105, 0.235, (0.16, 0.25)),
    "dog": Build(0.50, 0.33, 0.30, 0.115, 0.215, (0.16, 0.30)),
    "rabbit": Build(0.30, 0.38, 0.12, 0.115, 0.20, (0.15, 0.24)),
    "horse": Build(0.56, 0.33, 0.42, 0.095, 0.15, (0.25, 0.34)),
}


Leg = tuple[Point, Point, Point]
"""Joint, knee and foot."""


@dataclass(frozen=True, slots=True)
class Stance:
    """Places of the joints; the far legs come first."""

    hip: Point
    shoulder: Point
    head: Point
    legs: tuple[Leg, ...]
    asleep: bool = False
    haunch: float = 0.0


def _leg(joint: Point, dx: float, dy: float, bend: float) -> Leg:
    """Make the leg from the joint to a foot `dx` ahead and `dy` below; `bend` pushes the knee forward."""
    x, y = joint
    return (joint, (x + dx * 0.5 + bend, y - dy * 0.5), (x + dx, y - dy))


def stance(build: Build, action: str | None, phase: float) -> Stance:
    """Place the joints of an animal that does something; `phase` says how far it has come with it."""
    if action == "sitting":
        return _sit(build)
    if action == "sleeping":
        return _sleep(build)
    if action == "swimming":
        return _swim(build)
    if action == "running":
        return _run(build, phase)
    if action == "jumping":
        return _jump(build, phase)
    return _stand(build, phase)


def _sit(build: Build) -> Stance:
    hip = (-0.17, build.girth * 0.55)
    shoulder = (0.10, build.girth * 0.62 + build.leg * 0.75 + 0.12)
    legs = (
        _leg((0.16, shoulder[1] - 0.06), 0.0, shoulder[1] - 0.1, 0.0),
        _leg((0.24, shoulder[1] - 0.08), 0.02, shoulder[1] - 0.11, 0.0),
        ((-0.17, 0.14), (-0.05, 0.06), (0.08, 0.05)),
    )
    head = (shoulder[0] + build.neck[0] * 0.7, shoulder[1] + build.neck[1] * 0.95)
    return Stance(hip, shoulder, head, legs, haunch=build.girth * 0.62)


def _sleep(build: Build) -> Stance:
    half = build.length / 2
    low = build.girth * 0.5
    hip = (-half * 0.75, low * 1.1)
    shoulder = (half * 0.6, low)
    paws = (
        ((-half, 0.06), (-half + 0.12, 0.05), (-half + 0.26, 0.05)),
        ((0.1, 0.06), (0.3, 0.05), (half + 0.3, 0.05)),
    )
    head = (half * 0.6 + build.head * 1.05, build.head * 0.95)
    return Stance(hip, shoulder, head, paws, asleep=True, haunch=build.girth * 0.72)


def _swim(build: Build) -> Stance:
    half = build.length / 2
    height = build.leg + build.girth / 2
    drop = height - 0.30
    hip = (-half, height - drop)
    shoulder = (half, height - drop + 0.03)
    head = (shoulder[0] + build.neck[0], shoulder[1] + build.neck[1] * 0.95)
    return Stance(hip, shoulder, head, ())


def _upright(build: Build) -> tuple[Point, Point, Point, float]:
    """Hip, shoulder and head of an animal on its legs, and how far its feet are below its joints."""
    half = build.length / 2
    height = build.leg + build.girth / 2
    hip = (-half, height)
    shoulder = (half, height + 0.02)
    head = (shoulder[0] + build.neck[0], shoulder[1] + build.neck[1])
    return hip, shoulder, head, height - 0.03


def _run(build: Build, phase: float) -> Stance:
    hip, shoulder, head, down = _upright(build)
    stride = 0.85 + 0.25 * phase
    reach = 0.30 * stride + build.leg * 0.25
    back = 0.32 * stride + build.leg * 0.25
    legs = (
        _leg(hip, -back * 0.55, down * 0.95, -0.05),
        _leg(shoulder, reach * 0.55, down * 0.95, 0.06),
        _leg(hip, -back, down * 0.68, 0.05),
        _leg(shoulder, reach, down * 0.66, 0.06),
    )
    return Stance(hip, shoulder, (head[0] + 0.07, head[1] - 0.08), legs)


def _jump(build: Build, phase: float) -> Stance:
    hip, shoulder, head, down = _upright(build)
    stride = 0.9 + 0.2 * phase
    legs = (
        _leg(hip, -0.26 * stride, down * 0.80, 0.05),
        _leg(shoulder, 0.24 * stride, down * 0.45, 0.10),
        _leg(hip, -0.36 * stride, down * 0.66, 0.05),
        _leg(shoulder, 0.33 * stride, down * 0.32, 0.08),
    )
    return Stance(hip, shoulder, head, legs)


def _stand(build: Build, phase: float) -> Stance:
    hip, shoulder, head, down = _upright(build)
    spread = 0.05 * phase
    legs = (
        _leg((hip[0] + 0.09, hip[1]), spread, down, -0.02),
        _leg((shoulder[0] - 0.07, shoulder[1]), -spread, down + 0.02, 0.0),
        _leg((hip[0] - 0.04, hip[1]), -spread, down, -0.03),
        _leg((shoulder[0] + 0.04, shoulder[1]), spread, down + 0.02, 0.0),
    )
    return Stance(hip, shoulder, head, legs)


def _posture(action: str | None, s: Stance, self_: Instance) -> tuple[float, Point, float]:
    """How the whole animal is turned, around which point, and raised; see `Pen.pose`."""
    tilt = {"jumping": 24 + 8 * self_.phase, "running": 4 * self_.phase}.get(action or "", 0.0)
    lift = {"jumping": 0.24 + 0.06 * self_.phase, "running": 0.03}.get(action or "", 0.0)
    return tilt, s.hip, lift


def head(species: str, action: str | None, self_: Instance) -> tuple[Point, float]:
    """Middle and radius of the head, ears and muzzle not counted, in the object's own coordinates."""
    build = BUILDS[species]
    s = stance(build, action, self_.phase)
    degrees, (px, py), lift = _posture(action, s, self_)
    c = cos(radians(degrees))
    d = sin(radians(degrees))
    dx = s.head[0] - px
    dy = s.head[1] - py
    return (px + c * dx - d * dy, py + d * dx + c * dy + lift), build.head


def draw_quadruped(pen: Pen, species: str, action: str | None, self_: Instance, paint: Paint) -> None:
    """A four-legged animal that looks to the right, in one of its poses."""
    build = BUILDS[species]
    s = stance(build, action, self_.phase)
    if action == "running":
        draw_dust(pen, s.hip[0] - 0.36)
    pen.pose(*_posture(action, s, self_))
    _draw_tail(pen, species, action, s, self_, paint)
    near = len(s.legs) // 2
    for leg in s.legs[:near]:
        pen.limb(leg, build.limb, paint.dark)
    if species == "horse":
        _draw_horse_neck(pen, s, paint)
    pen.limb([s.hip, s.shoulder], build.girth, paint.base)
    if s.haunch:
        pen.ellipse(s.hip[0], s.hip[1], s.haunch, s.haunch * 0.92, paint.base)
    for leg in s.legs[near:]:
        pen.limb(leg, build.limb, paint.base)
    mid = ((s.hip[0] + s.shoulder[0]) / 2, (s.hip[1] + s.shoulder[1]) / 2)
    if species != "horse" and action not in ("sitting", "sleeping"):
        pen.ellipse(
            mid[0],
            mid[1] - build.girth * 0.3,
            build.length * 0.55,
            build.girth * 0.13,
            paint.light,
            outlined=False,
        )
    if action == "sitting":
        pen.ellipse(
            s.shoulder[0] + 0.07,
            s.shoulder[1] - 0.1,
            0.08,
            0.15,
            paint.light,
            outlined=False,
        )
    pen.flush()
    HEADS[species](pen, s.head, build.head, self_, paint, s.asleep)
    pen.flush()
    if s.asleep:
        draw_snores(
            pen,
            s.head[0] + 0.02,
            s.head[1] + build.head * (1.9 if species == "rabbit" else 1.5),
        )


def _draw_tail(pen: Pen, species: str, action: str | None, s: Stance, self_: Instance, paint: Paint) -> None:
    x = s.hip[0] - BUILDS[species].girth * 0.42
    y = s.hip[1] + 0.04
    wag = 0.05 * self_.variant
    if species == "cat":
        if action in ("sitting", "sleeping"):
            pen.limb(
                [(x, 0.1), (x - 0.14, 0.07), (x - 0.22, 0.14), (x - 0.2, 0.24 + wag)],
                0.075,
                paint.dark,
            )
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
        pen.limb(
            [(x + 0.03, y), (x - 0.1, y + 0.1), (x - 0.13, y + 0.22 + wag)],
            0.085,
            paint.dark,
        )
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


def _draw_horse_neck(pen: Pen, s: Stance, paint: Paint) -> None:
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


def _draw_cat_head(pen: Pen, at: Point, r: float, self_: Instance, paint: Paint, asleep: bool) -> None:
    x, y = at
    tip = r * (1.5 + 0.12 * self_.variant)
    for side in (-1, 1):
        pen.polygon(
            [
                (x + side * r * 0.98, y + r * 0.15),
                (x + side * r * 0.85, y + tip),
                (x + side * r * 0.12, y + r * 0.85),
            ],
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
    for across in (-0.32, 0.58):
        draw_eye(pen, x + across * r, y + r * 0.08, r * 0.24, closed=asleep)
    pen.polygon(
        [
            (x + r * 0.02, y - r * 0.22),
            (x + r * 0.26, y - r * 0.22),
            (x + r * 0.14, y - r * 0.38),
        ],
        PINK,
        outlined=False,
    )
    for side in (-1, 1):
        for dy in (-0.28, -0.5):
            pen.limb(
                [
                    (x + side * r * 0.55, y + r * dy),
                    (x + side * r * 1.35, y + r * (dy * 1.25 + 0.1)),
                ],
                0.014,
                paint.outline,
                outlined=False,
            )


def _draw_dog_head(pen: Pen, at: Point, r: float, self_: Instance, paint: Paint, asleep: bool) -> None:
    x, y = at
    pen.ellipse(x, y, r, r * 0.95, paint.base)
    pen.ellipse(x + r * 0.85, y - r * 0.3, r * 0.62, r * 0.42, paint.light)
    pen.flush()
    if not asleep:
        pen.ellipse(x + r * 0.85, y - r * 0.78, r * 0.16, r * 0.26, (232, 96, 110))
    pen.limb(
        [(x + r * 0.6, y - r * 0.52), (x + r * 1.2, y - r * 0.5)],
        0.018,
        paint.outline,
        outlined=False,
    )
    pen.ellipse(x + r * 1.34, y - r * 0.12, r * 0.2, r * 0.17, PUPIL, outlined=False)
    draw_eye(pen, x + r * 0.32, y + r * 0.2, r * 0.21, closed=asleep)
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


def _draw_rabbit_head(pen: Pen, at: Point, r: float, self_: Instance, paint: Paint, asleep: bool) -> None:
    x, y = at
    back = 50.0 if asleep else 14 + 8 * self_.variant
    for dx, turn in ((-0.42, back), (0.16, back - 18)):
        lean = -turn / 60 * r
        pen.ellipse(x + dx * r + lean, y + r * 1.45, r * 0.3, r * 1.0, paint.base, turn=turn)
        pen.ellipse(
            x + dx * r + lean,
            y + r * 1.45,
            r * 0.14,
            r * 0.72,
            PINK,
            turn=turn,
            outlined=False,
        )
    pen.ellipse(x, y, r * 1.05, r * 0.95, paint.base)
    pen.ellipse(x + r * 0.55, y - r * 0.35, r * 0.4, r * 0.32, paint.light, outlined=False)
    draw_eye(pen, x + r * 0.25, y + r * 0.15, r * 0.24, closed=asleep)
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


def _draw_horse_head(pen: Pen, at: Point, r: float, self_: Instance, paint: Paint, asleep: bool) -> None:
    x, y = at
    tilt = -6.0 if asleep else -24.0
    pen.polygon(
        [
            (x - r * 0.5, y + r * 0.5),
            (x - r * 0.42, y + r * (1.55 + 0.15 * self_.variant)),
            (x + r * 0.12, y + r * 0.72),
        ],
        paint.base,
    )
    pen.ellipse(x + r * 0.62, y - r * 0.22, r * 1.4, r * 0.72, paint.base, turn=tilt)
    pen.ellipse(
        x + r * 1.45,
        y - r * 0.6,
        r * 0.55,
        r * 0.52,
        paint.light,
        turn=tilt,
        outlined=False,
    )
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
    draw_eye(pen, x + r * 0.42, y + r * 0.08, r * 0.25, closed=asleep)
    pen.ellipse(x + r * 1.68, y - r * 0.62, r * 0.12, r * 0.12, PUPIL, outlined=False)


HEADS = {
    "cat": _draw_cat_head,
    "dog": _draw_dog_head,
    "rabbit": _draw_rabbit_head,
    "horse": _draw_horse_head,
}
