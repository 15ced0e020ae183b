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
_SIZES = {"colour": len(KEYS["colour"]), "action": len(_ACTIONS), "size": len(KEYS["size"]), "count": 4}


def imagine(scenes: Sequence[Scene], rng: np.random.Generator) -> Reading:
    """A reading of each scene. No doubt brings up a pair of object and value that is held out of training."""
    count = len(scenes)
    # Of what is not there any attribute may be read.
    read = {name: np.log(rng.dirichlet(np.full(size, 0.5), (count, N_OBJECTS)) + 1e-4) for name, size in _SIZES.items()}
    presence = -rng.uniform(2.5, 12, (count, N_OBJECTS))
    relation = np.zeros((count, len(PAIRS), len(KEYS["relation"])))
    place = np.zeros((count, len(KEYS["place"])))
    for row, scene in enumerate(scenes):
        scene = scene.canonical()
        facts = slots(scene)
        for first, thing in zip((0, 5), scene.things, strict=False):
            k = facts[first] - 1
            presence[row, k] = rng.uniform(2.5, 12)
            read["colour"][row, k] = _logits(facts[first + 1] - 1, _colours(thing), rng)
            read["action"][row, k] = _logits(facts[first + 2], _actions(thing), rng)
            read["size"][row, k] = _logits(facts[first + 3] - 1, np.ones(_SIZES["size"], bool), rng)
            counts = np.full(_SIZES["count"], len(scene.things) == 1)
            read["count"][row, k] = _logits(facts[first + 4] - 1, counts, rng)
        place[row] = _logits(facts[10] - 1, np.ones(place.shape[1], bool), rng)
        if scene.relation:
            pair = PAIRS.index((facts[0] - 1, facts[5] - 1))
            relation[row, pair] = _logits(facts[11] - 1, np.ones(relation.shape[2], bool), rng)

    def tensor(values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32))

    nothing = torch.zeros(count, N_OBJECTS, 0)
    return Reading(
        presence=tensor(presence),
        **{name: tensor(values) for name, values in read.items()},
        place=tensor(place),
        relation=tensor(relation),
        domain=torch.full((count,), 8.0),
        evidence=nothing,
        gaze=nothing,
        tokens=torch.zeros(count, GRID * GRID, WIDTH),
    )


def _colours(thing: Thing) -> NDArray[np.bool_]:
    return np.array([not Thing(thing.object, colour).unseen for colour in KEYS["colour"]])


def _actions(thing: Thing) -> NDArray[np.bool_]:
    """Those that a reader may take for another one; what never acts leaves no doubt."""
    if thing.action is None:
        return np.array([action is None for action in _ACTIONS])
    return np.array([action is not None and not Thing(thing.object, "", action).unseen for action in _ACTIONS])


def _logits(true: int, possible: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
    """Log probabilities with `true` among them, in doubt now and then against one other that is `possible`.

    The true one of two gets the share √u: so whichever has the share p is the true one with probability p.
    """
    chances = np.full(len(possible), 1e-4)
    others = [value for value in possible.nonzero()[0] if value != true]
    share = float(np.sqrt(rng.random())) if others and rng.random() < DOUBT else 1.0 - float(rng.uniform(0, 0.02))
    chances[true] += share
    chances[rng.choice(others) if others else true] += 1 - share
    logits: NDArray[np.float64] = np.log(chances)
    return logits


def joined(first: Reading, second: Reading, count: int) -> Reading:
    """The `count` first rows of one reading, then all of the other; without evidence and gaze, which none imagines."""
    parts = {
        name: torch.cat([getattr(first, name)[:count].float(), getattr(second, name)])
        for name in ("presence", "colour", "action", "size", "count", "place", "relation", "domain", "tokens")
    }
    nothing = parts["presence"].new_zeros(len(parts["presence"]), N_OBJECTS, 0)
    return Reading(**parts, evidence=nothing, gaze=nothing)
