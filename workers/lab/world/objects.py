"""How each object looks in each of its poses.

Everything is drawn with a `Pen` in the object's own coordinates: x forward, y up, ground at 0, height about 1.
"""

from __future__ import annotations

from workers.lab.world.bird_and_fish import bird, fish
from workers.lab.world.latents import Instance
from workers.lab.world.paint import Paint
from workers.lab.world.pen import Pen
from workers.lab.world.quadrupeds import BUILDS, quadruped
from workers.lab.world.things import boat, car, house, tree

_THINGS = {"car": car, "boat": boat, "house": house, "tree": tree}


def draw_object(pen: Pen, object_: str, action: str | None, self_: Instance, paint: Paint) -> None:
    """Draw one object doing something; None is standing still."""
    if object_ in BUILDS:
        quadruped(pen, object_, action, self_, paint)
    elif object_ == "bird":
        bird(pen, action, self_, paint)
    elif object_ == "fish":
        fish(pen, action, self_, paint)
    else:
        _THINGS[object_](pen, self_, paint)
