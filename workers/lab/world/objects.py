"""How each object looks in each of its poses.

Everything is drawn with a `Pen` in the object's own coordinates: x forward, y up, ground at 0, height about 1.
"""

from __future__ import annotations

from workers.lab.world.bird_and_fish import draw_bird, draw_fish
from workers.lab.world.latents import Instance
from workers.lab.world.paint import Paint
from workers.lab.world.pen import Pen
from workers.lab.world.quadrupeds import BUILDS, draw_quadruped
from workers.lab.world.things import draw_boat, draw_car, draw_house, draw_tree

_THINGS = {"car": draw_car, "boat": draw_boat, "house": draw_house, "tree": draw_tree}


def draw_object(pen: Pen, object_: str, action: str | None, self_: Instance, paint: Paint) -> None:
    """Draw one object doing something; None is standing still."""
    if object_ in BUILDS:
        draw_quadruped(pen, object_, action, self_, paint)
    elif object_ == "bird":
        draw_bird(pen, action, self_, paint)
    elif object_ == "fish":
        draw_fish(pen, action, self_, paint)
    else:
        _THINGS[object_](pen, self_, paint)
