"""Pictures of scenes: drawn large with Pillow, then reduced. The same scene always gives the same pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workers.lab.world.latents import Instance, latents, split_latents
from workers.lab.world.objects import draw_object
from workers.lab.world.paint import FOAM, Paint
from workers.lab.world.pen import Pen
from workers.lab.world.places import PLACES
from workers.lab.world.quadrupeds import BUILDS, head
from workers.scenes.grammar import Scene, Thing

CANVAS = 256
"""Side of the drawing in pixels; pictures larger than half of it are drawn at twice their size."""


Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a rectangle in shares of the picture."""


class Spot(NamedTuple):
    """Place of a cell's object, in shares of the picture: x of its middle, y of its feet, its height."""

    x: float
    y: float
    large: float
    small: float
    play_x: float
    play_y: float


_ALONE = (Spot(0.5, 0.84, 0.62, 0.36, 0.17, 0.06),)
_ROWS = {
    1: _ALONE,
    2: (
        Spot(0.27, 0.80, 0.42, 0.27, 0.04, 0.07),
        Spot(0.73, 0.80, 0.42, 0.27, 0.04, 0.07),
    ),
    3: (
        Spot(0.5, 0.53, 0.36, 0.25, 0.10, 0.03),
        Spot(0.26, 0.90, 0.36, 0.25, 0.04, 0.04),
        Spot(0.74, 0.90, 0.36, 0.25, 0.04, 0.04),
    ),
    4: (
        Spot(0.27, 0.52, 0.34, 0.24, 0.05, 0.03),
        Spot(0.73, 0.52, 0.34, 0.24, 0.05, 0.03),
        Spot(0.27, 0.91, 0.34, 0.24, 0.05, 0.03),
        Spot(0.73, 0.91, 0.34, 0.24, 0.05, 0.03),
    ),
}
_BESIDE = (
    Spot(0.27, 0.80, 0.42, 0.28, 0.04, 0.06),
    Spot(0.73, 0.80, 0.42, 0.28, 0.04, 0.06),
)
_STACKED = (
    Spot(0.5, 0.50, 0.38, 0.26, 0.12, 0.03),
    Spot(0.5, 0.93, 0.40, 0.27, 0.12, 0.03),
)

_WIDEST, _HIGHEST, _MARGIN = 1.35, 1.22, 0.02


def render(scene: Scene, size: int) -> NDArray[np.uint8]:
    """The scene's picture, uint8 RGB of shape (size, size, 3)."""
    return paint(scene, latents(scene), size)


class Head(NamedTuple):
    """Middle and radius in shares of the picture, ears and muzzle not counted."""

    x: float
    y: float
    radius: float

    @property
    def box(self) -> Box:
        """Around the head, with ears and muzzle."""
        return (
            self.x - 1.3 * self.radius,
            self.y - 1.5 * self.radius,
            self.x + 1.3 * self.radius,
            self.y + self.radius,
        )


class Placed(NamedTuple):
    """One object in its place, in shares of the picture: x and y of its own origin, between its feet; its height."""

    thing: Thing
    instance: Instance
    x: float
    y: float
    height: float

    @property
    def box(self) -> Box:
        """Around what is drawn of it."""
        left, right, top = _extent(self.thing.object, self.thing.action)
        if self.instance.flip < 0:
            left, right = -right, -left
        return (
            self.x + left * self.height,
            self.y - top * self.height,
            self.x + right * self.height,
            self.y,
        )

    @property
    def head(self) -> Head | None:
        """Return the place of the head of a four-legged animal; None for all other things."""
        if self.thing.object not in BUILDS:
            return None
        (x, y), radius = head(self.thing.object, self.thing.action, self.instance)
        forward = -x if self.instance.flip < 0 else x
        return Head(
            self.x + forward * self.height,
            self.y - y * self.height,
            radius * self.height,
        )


def paint(scene: Scene, vector: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """What the scene says in words, with the layout and looks of `vector` (see `latents`) instead of its own."""
    background, _ = split_latents(vector)
    return draw(scene.place, background, layout(scene, vector), size)


def draw(place: str, background: list[float], placed: Sequence[Placed], size: int) -> NDArray[np.uint8]:
    """Objects at a place, each over those before it; uint8 RGB of shape (size, size, 3)."""
    canvas = PLACES[place](max(CANVAS, 2 * size), background)
    for each in placed:
        _draw(canvas, each, place)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX, reducing_gap=None))


def layout(scene: Scene, vector: NDArray[np.float32]) -> list[Placed]:
    """Place the scene's objects; what stands further back comes first."""
    _, instances = split_latents(vector)
    return [_place(*cell) for cell in sorted(_cells(scene, instances), key=_nearness)]


def _nearness(cell: tuple[Thing, Spot, Instance]) -> float:
    """How far to the front a cell's object stands."""
    _, spot, instance = cell
    return spot.y + spot.play_y * instance.y


def places(scene: Scene) -> list[Placed]:
    """Return the places of the objects of the scene's picture, in the order of its canonical things."""
    return [_place(*cell) for cell in _cells(scene, split_latents(latents(scene))[1])]


def _cells(scene: Scene, instances: list[Instance]) -> list[tuple[Thing, Spot, Instance]]:
    scene = scene.canonical()
    if len(scene.things) == 1:
        thing = scene.things[0]
        spots = _ROWS[thing.count]
        return [(thing, spot, instance) for spot, instance in zip(spots, instances, strict=False)]
    first, second = _BESIDE if scene.relation in ("left", "right") else _STACKED
    if scene.relation in ("right", "below"):
        first, second = second, first
    return [
        (scene.things[0], first, instances[0]),
        (scene.things[1], second, instances[1]),
    ]


def _place(thing: Thing, spot: Spot, self_: Instance) -> Placed:
    left, right, top = _extent(thing.object, thing.action)
    large = thing.size == "large"
    height = (spot.large if large else spot.small) * (1 + 0.08 * self_.scale)
    room = 2 * min(spot.x, 1 - spot.x) - 2 * _MARGIN
    widest = min(_WIDEST, room / spot.large)
    height *= min(1.0, widest / (right - left), _HIGHEST / top)
    # A small object has more room to move in its cell; none leaves the picture.
    x = spot.x + spot.play_x * self_.x * (1.0 if large else 1.5)
    reach = (right - left) / 2 * height + _MARGIN
    x = min(max(x, reach), 1 - reach)
    x -= (left + right) / 2 * height * (-1 if self_.flip < 0 else 1)
    y = max(spot.y + spot.play_y * self_.y, top * height + _MARGIN)
    return Placed(thing, self_, x, y, height)


@cache
def _extent(object_: str, action: str | None) -> tuple[float, float, float]:
    """Leftmost and rightmost x and highest y of an object that looks right, in heights."""
    canvas = Image.new("RGB", (1, 1))
    pen = Pen(canvas, 0, 0, 1000, flip=False, outline=(0, 0, 0))
    pen.put = []
    draw_object(
        pen,
        object_,
        action,
        Instance(0, 0, 0, 1, 0.5, 0, 0),
        Paint.of("red", 0, night=False),
    )
    points = np.concatenate([np.array(shape) for shape in pen.put]).reshape(-1, 2) / 1000
    x, y = points.T
    return float(x.min()), float(x.max()), float(-y.min())


def _draw(canvas: Image.Image, placed: Placed, place: str) -> None:
    size = canvas.width
    thing, self_, x, y, height = placed
    paint_ = Paint.of(thing.colour, self_.shade, night=place == "night street")
    pen = Pen(
        canvas,
        x * size,
        y * size,
        height * size,
        flip=self_.flip < 0,
        outline=paint_.outline,
    )
    pen.edge *= size / CANVAS
    aloft = thing.action in ("flying", "jumping")
    wet = place == "water"
    if not wet:
        _draw_shadow(pen, x * size, y * size, height * size * (0.7 if aloft else 1.0))
    draw_object(pen, thing.object, thing.action, self_, paint_)
    pen.pose(0)
    if wet and not (thing.object == "fish" and thing.action == "swimming"):
        _draw_splash(canvas, pen, x * size, y * size, height * size, thing, aloft=aloft)


def _draw_shadow(pen: Pen, x: float, y: float, height: float) -> None:
    w = 0.5 * height
    h = 0.07 * height
    pen.glaze.ellipse((x - w, y - h, x + w, y + h * 0.9), fill=(20, 20, 40, 70))


def _draw_splash(
    canvas: Image.Image,
    pen: Pen,
    x: float,
    y: float,
    height: float,
    thing: Thing,
    *,
    aloft: bool,
) -> None:
    """The water in front of what is in it: the deeper it is, the more is hidden."""
    if not aloft:
        depth = {"swimming": 0.26, "running": 0.14}.get(thing.action or "", 0.12)
        below = canvas.getpixel((canvas.width - 1, min(canvas.height - 1, int(y))))
        w = 0.62 * height
        top = y - depth * height
        box = (x - w, top - 0.02 * height, x + w, y + 0.1 * height)
        pen.draw.ellipse(box, fill=below)
        pen.draw.arc(box, 190, 350, fill=FOAM, width=max(2, round(height / 40)))
        y = top + 0.1 * height
    for k in (0.8, 1.15):
        w = 0.55 * height * k
        h = 0.09 * height * k
        box = (x - w, y - h * 0.6, x + w, y + h * 1.4)
        pen.draw.arc(box, 15, 165, fill=FOAM, width=max(2, round(height / 50)))
