"""Readings that the recogniser might make of scenes, without pictures: what the describer mostly learns from.

They are hundreds of times cheaper than rendering a picture and reading it, so language is learnt from far more scenes.
Where an imagined reading is in doubt, its probabilities are true: of all the readings that give a value the
probability p, it is right in the share p. What reads them learns to be exactly as sure as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.models.recognizer import N_OBJECTS, PAIRS, Reading
from workers.models.trunk import GRID, WIDTH
from workers.scenes.grammar import Scene, Thing, slots
from workers.scenes.lexicon import KEYS

DOUBT = 0.2
"""Share of the values that a reading is not sure of."""
_ACTIONS = (None, *KEYS["action"])
_SIZES = {
    "colour": len(KEYS["colour"]),
    "action": len(_ACTIONS),
    "size": len(KEYS["size"]),
    "count": len(KEYS["count"]),
}
"""Number of values of each attribute."""


class _Draft:
    """The logits of a batch of readings while they are imagined."""

    def __init__(self, count: int, rng: np.random.Generator):
        self.rng = rng
        self.attributes: dict[str, NDArray[np.float64]] = {}
        for name, size in _SIZES.items():
            # Any attribute may be read of what is not there.
            chances = rng.dirichlet(np.full(size, 0.5), (count, N_OBJECTS))
            self.attributes[name] = np.log(chances + 1e-4)
        self.presence = -rng.uniform(2.5, 12, (count, N_OBJECTS))
        self.relation = np.zeros((count, len(PAIRS), len(KEYS["relation"])))
        self.place = np.zeros((count, len(KEYS["place"])))

    def read(self, row: int, scene: Scene) -> None:
        """Imagines what is read of one picture."""
        scene = scene.canonical()
        facts = slots(scene)
        for thing, known in zip(scene.things, (facts[0:5], facts[5:10]), strict=False):
            self._read_thing(row, thing, known, alone=len(scene.things) == 1)
        self.place[row] = self._logits(facts[10] - 1, _any(len(KEYS["place"])))
        if scene.relation:
            pair = PAIRS.index((facts[0] - 1, facts[5] - 1))
            self.relation[row, pair] = self._logits(facts[11] - 1, _any(len(KEYS["relation"])))

    def _read_thing(self, row: int, thing: Thing, known: NDArray[np.int64], *, alone: bool) -> None:
        object_, colour, action, size, count = known.tolist()
        at = row, object_ - 1
        self.presence[at] = self.rng.uniform(2.5, 12)
        self.attributes["colour"][at] = self._logits(colour - 1, _possible_colours(thing))
        self.attributes["action"][at] = self._logits(action, _possible_actions(thing))
        self.attributes["size"][at] = self._logits(size - 1, _any(_SIZES["size"]))
        self.attributes["count"][at] = self._logits(count - 1, np.full(_SIZES["count"], alone))

    def _logits(self, true: int, possible: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Log probabilities with `true` among them, in doubt now and then against one other that is `possible`.

        The true one of two gets the share √u: so the one that has the share p is the true one with probability p.
        """
        chances = np.full(len(possible), 1e-4)
        others = [value for value in possible.nonzero()[0] if value != true]
        if others and self.rng.random() < DOUBT:
            share = float(np.sqrt(self.rng.random()))
        else:
            share = 1.0 - float(self.rng.uniform(0, 0.02))
        chances[true] += share
        other = self.rng.choice(others) if others else true
        chances[other] += 1 - share
        logits: NDArray[np.float64] = np.log(chances)
        return logits


def imagine(scenes: Sequence[Scene], rng: np.random.Generator) -> Reading:
    """A reading of each scene. No doubt brings up a pair of object and value that is held out of training."""
    count = len(scenes)
    draft = _Draft(count, rng)
    for row, scene in enumerate(scenes):
        draft.read(row, scene)
    nothing = torch.zeros(count, N_OBJECTS, 0)
    return Reading(
        presence=_tensor(draft.presence),
        **{name: _tensor(values) for name, values in draft.attributes.items()},
        place=_tensor(draft.place),
        relation=_tensor(draft.relation),
        domain=torch.full((count,), 8.0),
        evidence=nothing,
        gaze=nothing,
        tokens=torch.zeros(count, GRID * GRID, WIDTH),
    )


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _any(count: int) -> NDArray[np.bool_]:
    """All values are possible."""
    return np.ones(count, bool)


def _possible_colours(thing: Thing) -> NDArray[np.bool_]:
    return np.array([not Thing(thing.object, colour).unseen for colour in KEYS["colour"]])


def _possible_actions(thing: Thing) -> NDArray[np.bool_]:
    """Actions that a reader may take for another one; what never acts leaves no doubt."""
    if thing.action is None:
        return np.array([action is None for action in _ACTIONS])
    possible = []
    for action in _ACTIONS:
        seen = not Thing(thing.object, "", action).unseen
        possible.append(action is not None and seen)
    return np.array(possible)


def join(first: Reading, second: Reading, count: int) -> Reading:
    """The `count` first rows of one reading, then all rows of the other.

    Evidence and gaze are left out, because an imagined reading has none.
    """
    parts: dict[str, Tensor] = {}
    for name in (
        "presence",
        "colour",
        "action",
        "size",
        "count",
        "place",
        "relation",
        "domain",
        "tokens",
    ):
        rows: Tensor = getattr(first, name)[:count]
        parts[name] = torch.cat([rows.float(), getattr(second, name)])
    nothing = parts["presence"].new_zeros(len(parts["presence"]), N_OBJECTS, 0)
    return Reading(**parts, evidence=nothing, gaze=nothing)
