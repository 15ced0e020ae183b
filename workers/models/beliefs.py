"""What a recogniser believes of a text: how probable all its statements are, each read off the picture by itself.

No network reads the text, so a single wrong word weighs as much as the recogniser knows of what it names.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import nan

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from workers.models.recognizer import PAIRS, Reading
from workers.scenes.grammar import OPPOSITE, Mention
from workers.scenes.lexicon import KEYS
from workers.scenes.parsing import SceneGraph

SURE = 12.0
"""Log odds beyond which no opinion counts for more."""


class Beliefs:
    """Log probabilities of every single statement about B pictures.

    Args:
        reading: by a recogniser of the drawn world's labels.
    """

    def __init__(self, reading: Reading):
        self._domain = logsigmoid(reading.domain.float()).tolist()
        self._presence = logsigmoid(reading.presence.float()).tolist()
        self._attributes = {
            role: getattr(reading, role).float().log_softmax(-1).tolist()
            for role in ("colour", "action", "size", "count")
        }
        self._place = reading.place.float().log_softmax(-1).tolist()
        self._relation = reading.relation.float().log_softmax(-1).tolist()

    def log_p(self, picture: int, said: SceneGraph) -> float:
        """Log probability that a picture is of the drawn world and that all that is said of it is true.

        NaN where the text names nothing that the recogniser knows.
        """
        if not said.things and (said.unknown or not said.place):
            return nan
        total: float = self._domain[picture]
        for thing in said.things:
            number = KEYS["object"].index(thing.object)
            total += self._presence[picture][number]
            for role, value in _attributes(thing, alone=len(said.things) == 1):
                total += self._attributes[role][picture][number][value]
        if said.place:
            total += self._place[picture][KEYS["place"].index(said.place)]
        if said.relation and len(said.things) == 2:
            first, second = (KEYS["object"].index(thing.object) for thing in said.things)
            side = said.relation if first < second else OPPOSITE[said.relation]
            pair = PAIRS.index((min(first, second), max(first, second)))
            total += self._relation[picture][pair][KEYS["relation"].index(side)]
        return total


def _attributes(thing: Mention, *, alone: bool) -> Iterator[tuple[str, int]]:
    """Role and number of what is said of a thing."""
    if thing.colour:
        yield "colour", KEYS["colour"].index(thing.colour)
    if thing.action:
        yield "action", 1 + KEYS["action"].index(thing.action)
    if thing.size:
        yield "size", KEYS["size"].index(thing.size)
    # Only single things come in two kinds, so that there is nothing to be counted then.
    if alone or thing.count > 1:
        yield "count", thing.count - 1


def pool(*opinions: Tensor) -> Tensor:
    """What several log odds say together: their mean, a logarithmic opinion pool (Genest and Zidek, 1986).

    NaN is no opinion.
    """
    return torch.stack(opinions).clamp(-SURE, SURE).nanmean(0)
