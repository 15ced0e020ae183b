"""Drawing smooth outlined shapes in an object's own coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

_CIRCLE = np.array([(cos(2 * pi * i / 28), sin(2 * pi * i / 28)) for i in range(28)])


def shade(colour: Colour, factor: float) -> Colour:
    """Darker below 1, lighter (towards white) above 1."""
    if factor <= 1:
        return (
            int(colour[0] * factor),
            int(colour[1] * factor),
            int(colour[2] * factor),
        )
    t = factor - 1
    return (
        int(colour[0] + (255 - colour[0]) * t),
        int(colour[1] + (255 - colour[1]) * t),
        int(colour[2] + (255 - colour[2]) * t),
    )


@cache
def _spline(points: int, steps: int = 6) -> NDArray[np.float64]:
    """Matrix that turns closed control points into a closed Catmull-Rom curve, shape (points · steps, points)."""
    t = np.arange(steps) / steps
    basis = [
        -t + 2 * t**2 - t**3,
        2 - 5 * t**2 + 3 * t**3,
        t + 4 * t**2 - 3 * t**3,
        -(t**2) + t**3,
    ]
    weights = 0.5 * np.stack(basis, 1)
    matrix = np.zeros((points * steps, points))
    for i in range(points):
        for k in range(4):
            matrix[i * steps : (i + 1) * steps, (i + k - 1) % points] += weights[:, k]
    return matrix


class Pen:
    """Collects shapes and puts them down together, so that one outline runs around all of them.

    Coordinates are the object's own: x forward, y up, the ground at y = 0, a height of about 1.
    """

    def __init__(
        self,
        canvas: Image.Image,
        x: float,
        y: float,
        height: float,
        *,
        flip: bool,
        outline: Colour,
    ):
        self.draw = ImageDraw.Draw(canvas)
        self.glaze = ImageDraw.Draw(canvas, "RGBA")
        self.unit = height
        self.outline = outline
        self.edge = 2.0 + 0.012 * height
        self._origin = np.array([x, y])
        self._mirror = -1.0 if flip else 1.0
        self._turn = np.eye(2)
        self._pivot = np.zeros(2)
        self._lift = 0.0
        self._shapes: list[tuple[list[float], float, Colour, bool]] = []
        self.put: list[list[float]] | None = None
        """Set to a list to collect what is put down, x and y in turn, in pixels."""
        self._matrix()

    @property
    def flipped(self) -> bool:
        """Whether the object looks to the left."""
        return self._mirror < 0

    def _matrix(self) -> None:
        self._affine = (self.unit * np.diag([self._mirror, -1.0]) @ self._turn).T
        offset = self._pivot - self._turn @ self._pivot + np.array([0.0, self._lift])
        self._offset = self._origin + self.unit * np.array([self._mirror, -1.0]) * offset

    def pose(self, degrees: float, pivot: Point = (0.0, 0.0), lift: float = 0.0) -> None:
        """Turn what follows around `pivot`, nose up for positive degrees, and raise it by `lift`."""
        a = degrees * pi / 180
        self._turn = np.array([[cos(a), -sin(a)], [sin(a), cos(a)]])
        self._pivot = np.array(pivot)
        self._lift = lift
        self._matrix()

    def _place(self, points: NDArray[np.float64]) -> list[float]:
        flat: list[float] = (points @ self._affine + self._offset).ravel().tolist()
        return flat

    def polygon(self, points: Sequence[Point], fill: Colour, *, outlined: bool = True) -> None:
        """A closed line through the points."""
        self._shapes.append((self._place(np.array(points)), 0.0, fill, outlined))

    def blob(self, points: Sequence[Point], fill: Colour, *, outlined: bool = True) -> None:
        """A closed smooth curve through the points."""
        self._shapes.append((self._place(_spline(len(points)) @ np.array(points)), 0.0, fill, outlined))

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        fill: Colour,
        *,
        turn: float = 0.0,
        outlined: bool = True,
    ) -> None:
        """An ellipse around x and y; `turn` is in degrees."""
        points = _CIRCLE * (rx, ry)
        if turn:
            c = cos(turn * pi / 180)
            s = sin(turn * pi / 180)
            points = points @ np.array([[c, s], [-s, c]])
        self._shapes.append((self._place(points + np.array((x, y))), 0.0, fill, outlined))

    def limb(
        self,
        points: Sequence[Point],
        width: float,
        fill: Colour,
        *,
        outlined: bool = True,
    ) -> None:
        """A thick line with round joints and ends."""
        self._shapes.append((self._place(np.array(points)), max(width * self.unit, 1.5), fill, outlined))

    @contextmanager
    def outlined_in(self, colour: Colour) -> Iterator[None]:
        """Draws the shapes of the block with another outline, and puts them down at its end."""
        outline = self.outline
        self.outline = colour
        yield
        self.flush()
        self.outline = outline

    def flush(self) -> None:
        """Put the collected shapes down: first all outlines, then all insides."""
        for points, width, _, outlined in self._shapes:
            if outlined:
                self._put(points, width, self.outline, self.edge)
        for points, width, fill, _ in self._shapes:
            self._put(points, width, fill, 0.0)
            if self.put is not None:
                self.put.append(points)
        self._shapes.clear()

    def _put(self, points: list[float], width: float, fill: Colour, edge: float) -> None:
        if width == 0.0:
            self.draw.polygon(points, fill=fill)
            if edge:
                self.draw.line(
                    [*points, *points[:4]],
                    fill=fill,
                    width=round(2 * edge),
                    joint="curve",
                )
            return
        radius = width / 2 + edge
        self.draw.line(points, fill=fill, width=round(2 * radius))
        for i in range(0, len(points), 2):
            x, y = points[i], points[i + 1]
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
