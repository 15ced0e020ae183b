"""What the describer sees of a picture: what a recogniser read of it, as tokens.

A bottleneck of named concepts (Koh et al., 2020): one token for each object with its own colour, pose, size, number
and side, one for the place, one for the relation. What a green cat is to be called was then learnt from green
things and from cats; no green cat is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workers.models.recognizer import N_OBJECTS, PAIRS, Reading, Recognizer
from workers.models.trunk import WIDTH
from workers.scenes.grammar import OPPOSITE
from workers.scenes.lexicon import KEYS

TOKENS = N_OBJECTS + 2
"""Objects in the order of `KEYS["object"]`, place, relation."""
_OTHER_WAY = tuple(KEYS["relation"].index(OPPOSITE[side]) for side in KEYS["relation"])
_ATTRIBUTES = len(KEYS["colour"]) + len(KEYS["action"]) + 1 + len(KEYS["size"]) + len(KEYS["count"])
_OWN = N_OBJECTS + 1 + _ATTRIBUTES + len(KEYS["relation"])
FEATURES = _OWN + len(KEYS["place"]) + 1 + len(KEYS["relation"]) + 1
"""Length of a token."""


def concepts(reading: Reading) -> Tensor:
    """Tokens (B, TOKENS, FEATURES) of probabilities.

    An object's token says which it is, whether it is there, and, as far as it is: its attributes, and on which side of
    the other one it is. The relation's token has the relation in canonical order.
    """
    presence = reading.presence.float().sigmoid()
    there = presence[:, :, None]
    logits = (reading.colour, reading.action, reading.size, reading.count)
    attributes = torch.cat([each.float().softmax(-1) for each in logits], -1)
    relations, sides = _relations(reading, presence)
    tokens = presence.new_zeros(len(presence), TOKENS, FEATURES)
    objects = tokens[:, :N_OBJECTS]
    objects[..., :N_OBJECTS] = torch.eye(N_OBJECTS, device=presence.device)
    objects[..., N_OBJECTS:_OWN] = torch.cat([there, there * attributes, sides], -1)
    place = reading.place.float().softmax(-1)
    end = _OWN + place.shape[1]
    place_token = tokens[:, N_OBJECTS]
    place_token[:, _OWN:end] = place
    place_token[:, end] = 1.0
    relation_token = tokens[:, N_OBJECTS + 1]
    relation_token[:, -len(KEYS["relation"]) - 1 : -1] = relations.sum(1)
    relation_token[:, -1] = 1.0
    return tokens


def _relations(reading: Reading, presence: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of the relation of each pair (B, pairs, 4), and of each object's side of the other (B, 10, 4)."""
    first, second = torch.tensor(PAIRS, device=presence.device).unbind(1)
    both = presence[:, first] * presence[:, second]
    relations = reading.relation.float().softmax(-1) * both[:, :, None]
    sides = presence.new_zeros(*presence.shape, len(KEYS["relation"]))
    sides.index_add_(1, first, relations)
    sides.index_add_(1, second, relations[..., list(_OTHER_WAY)])
    return relations, sides


class Eyes(nn.Module):
    """A recogniser, and what to attend to of its readings.

    With `glimpses` that is also what the recogniser's trunk saw and has no name for: own data has words for more than
    the drawn world's concepts. They fade in as training finds them useful.
    """

    def __init__(self, width: int, *, glimpses: bool = False):
        super().__init__()
        self.recognizer = Recognizer()
        self.keys = nn.Linear(FEATURES, width)
        self.values = nn.Linear(FEATURES, width)
        self.glimpses = nn.Linear(WIDTH, 2 * width) if glimpses else None
        self.share = nn.Parameter(torch.zeros(())) if glimpses else None

    def forward(self, reading: Reading) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, tokens, width) each."""
        tokens = concepts(reading)
        keys = self.keys(tokens)
        values = self.values(tokens)
        if self.glimpses is not None and self.share is not None:
            glimpsed = self.share * self.glimpses(reading.tokens)
            more_keys, more_values = glimpsed.chunk(2, -1)
            keys = torch.cat([keys, more_keys], 1)
            values = torch.cat([values, more_values], 1)
        return keys, values
