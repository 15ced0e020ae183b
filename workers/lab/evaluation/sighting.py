"""What is to be seen in a picture, object by object: the truth of a drawn one, or what the judge makes of any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.lab.world.latents import latents
from workers.lab.world.render import Placed, layout
from workers.scenes.grammar import Scene, Thing
from workers.scenes.lexicon import KEYS, Role

STANDING = "standing"
"""What the judge calls an animal without an action, or a thing."""
VALUES: dict[Role, tuple[str, ...]] = {
    "object": KEYS["object"],
    "colour": KEYS["colour"],
    "action": (STANDING, *KEYS["action"]),
    "size": KEYS["size"],
}
"""What can be told of one detected object, role by role."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in shares of the picture."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One object. Each role has a probability for each of its `VALUES`."""

    box: Box
    presence: float
    """Probability that something is there."""
    chances: dict[Role, NDArray[np.float32]]

    def value(self, role: Role) -> str:
        """The likeliest value of a role."""
        return VALUES[role][int(self.chances[role].argmax())]

    def chance(self, role: Role, value: str) -> float:
        """The probability that a role has this value."""
        return float(self.chances[role][VALUES[role].index(value)])

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box, x and y in shares of the picture."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True, slots=True)
class Sighting:
    """All objects of one picture, the most certain first, and the chances of each place of `KEYS["place"]`."""

    detections: tuple[Detection, ...]
    places: NDArray[np.float32]

    @property
    def place(self) -> str:
        """The likeliest place."""
        return KEYS["place"][int(self.places.argmax())]


def truth(scene: Scene) -> Sighting:
    """What is to be seen in the scene's own picture."""
    return seen_in(scene.place, layout(scene, latents(scene)))


def seen_in(place: str, placed: Sequence[Placed]) -> Sighting:
    """What is to be seen where objects were placed on purpose."""
    detections = tuple(Detection(each.box, 1.0, _certain(each.thing)) for each in placed)
    return Sighting(detections, _one_hot(KEYS["place"].index(place), len(KEYS["place"])))


def _certain(thing: Thing) -> dict[Role, NDArray[np.float32]]:
    said: dict[Role, str] = {
        "object": thing.object,
        "colour": thing.colour,
        "action": thing.action or STANDING,
        "size": thing.size,
    }
    return {role: _one_hot(VALUES[role].index(value), len(VALUES[role])) for role, value in said.items()}


def _one_hot(index: int, size: int) -> NDArray[np.float32]:
    one = np.zeros(size, np.float32)
    one[index] = 1
    return one
