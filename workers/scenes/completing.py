"""A prompt made whole: what it leaves open gets the thing's usual colour, rest, and a place that fits.

The choice among what is usual depends on the seed; what the prompt says does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from workers.scenes.grammar import OPPOSITE, SLOTS, UNSEEN_ACTIONS, Mention, Thing, pick, possible_actions, say
from workers.scenes.lexicon import CONCEPT, KEYS, PLACES_EN
from workers.scenes.understanding import Understood

USUAL_COLOURS: dict[str, tuple[str, ...]] = {
    "cat": ("black", "white", "orange"),
    "dog": ("black", "white"),
    "rabbit": ("white", "black"),
    "bird": ("red", "yellow", "blue"),
    "horse": ("black", "white"),
    "fish": ("red", "orange", "yellow"),
    "car": ("red", "blue", "yellow"),
    "boat": ("red", "white", "blue"),
    "house": ("red", "white", "yellow"),
    "tree": ("green",),
}
USUAL_PLACES: dict[str, tuple[str, ...]] = {
    "cat": ("grass",),
    "dog": ("grass", "sand"),
    "rabbit": ("grass", "snow"),
    "bird": ("grass", "sand"),
    "horse": ("grass", "sand"),
    "fish": ("water",),
    "car": ("night street", "grass"),
    "boat": ("water",),
    "house": ("grass", "sand"),
    "tree": ("grass", "sand"),
}
HIDDEN = frozenset(
    {
        *(("white", "snow"), ("white", "room"), ("black", "night street"), ("blue", "water")),
        *(("green", "grass"), ("yellow", "sand"), ("orange", "sand")),
    }
)
"""Colours that are hard to see at a place: none that is left open is chosen so."""


@dataclass(frozen=True, slots=True)
class Scenery:
    """What is drawn: everything of it is decided but the pose and the light."""

    things: tuple[Mention, ...]
    """Groups of things, at most two, each with colour and size; one without an action is at rest."""
    place: str
    relation: str | None
    text: str
    """The same in the grammar's words, in the language of the prompt."""
    warnings: tuple[str, ...]

    def slots(self) -> NDArray[np.int64]:
        """Return the columns of a plan (`workers.scenes.grammar.SLOTS`); all others are 0 if there is only a place."""
        values = dict.fromkeys(SLOTS, 0)
        order = [KEYS["object"].index(thing.object) for thing in self.things]
        swapped = order != sorted(order)
        for i, thing in enumerate(self.things[::-1] if swapped else self.things, 1):
            values[f"object_{i}"] = KEYS["object"].index(thing.object) + 1
            values[f"colour_{i}"] = KEYS["colour"].index(thing.colour or "") + 1
            values[f"action_{i}"] = KEYS["action"].index(thing.action) + 1 if thing.action else 0
            values[f"size_{i}"] = KEYS["size"].index(thing.size or "") + 1
            values[f"count_{i}"] = thing.count
        values["place"] = KEYS["place"].index(self.place) + 1
        if self.relation:
            relation = OPPOSITE[self.relation] if swapped else self.relation
            values["relation"] = KEYS["relation"].index(relation) + 1
        return np.array([values[name] for name in SLOTS], dtype=np.int64)


def complete(asked: Understood, seed: int) -> Scenery:
    """Decide what the prompt leaves open. There must be something to draw."""
    rng = np.random.default_rng(seed)
    place = asked.place or _place(asked, rng)
    things: list[Mention] = []
    for thing in asked.things:
        things.append(_complete(thing, place, asked, things, rng))
    singles = len(things) == 2 and all(thing.count == 1 for thing in things)
    relation = asked.relation or (pick(rng, ("left", "right")) if singles else None)
    warnings = [*asked.warnings, *_doubts(asked.things, asked.place)]
    if asked.relation and max(thing.count for thing in things) > 2:
        warnings.append("where the groups are to each other was left out: that works for at most two of each")
        relation = None
    # A size that the prompt does not speak of is not worth a word.
    said = [replace(thing, size=was.size) for thing, was in zip(things, asked.things, strict=True)]
    text = say(said, place, relation, asked.language, "short") if said else _place_alone(place, asked)
    return Scenery(tuple(things), place, relation, text, tuple(warnings))


def _complete(
    thing: Mention, place: str, asked: Understood, others: Sequence[Mention], rng: np.random.Generator
) -> Mention:
    colour = thing.colour or _colour(thing, place, asked, others, rng)
    action = thing.action
    possible = possible_actions(thing.object, place)
    if action is None and None not in possible:
        # A fish in the water does not stand still.
        wanted = [each for each in possible if ("action", str(each), thing.object) not in asked.unlike]
        action = wanted[0] if wanted else None
    return replace(thing, colour=colour, action=action, size=thing.size or _size(thing, colour, action, rng))


def _size(thing: Mention, colour: str, action: str | None, rng: np.random.Generator) -> str:
    """Large, to be seen well. Of pairs that no training picture shows, often only one size comes out right: either."""
    unseen = Thing(thing.object, colour, action).unseen
    return pick(rng, KEYS["size"]) if unseen else "large"


def _colour(thing: Mention, place: str, asked: Understood, others: Sequence[Mention], rng: np.random.Generator) -> str:
    unlike = {value for role, value, of in asked.unlike if role == "colour" and of == thing.object}
    # Another colour than that of the other things: so they are told apart.
    taken = {each.colour for each in (*asked.things, *others) if each is not thing}
    options = [c for c in USUAL_COLOURS[thing.object] if c not in unlike]
    options = options or [c for c in KEYS["colour"] if c not in unlike]
    for better in (
        [c for c in options if c not in taken and (c, place) not in HIDDEN],
        [c for c in options if c not in taken],
        [c for c in options if (c, place) not in HIDDEN],
    ):
        if better:
            return pick(rng, better)
    return pick(rng, options)


def _place(asked: Understood, rng: np.random.Generator) -> str:
    """A place where all the things are at home and can do what they do."""
    unlike = {value for role, value, _ in asked.unlike if role == "place"}
    allowed = [
        place
        for place in KEYS["place"]
        if place not in unlike and all(t.action in (None, *possible_actions(t.object, place)) for t in asked.things)
    ] or [place for place in KEYS["place"] if place not in unlike]
    homes = [set(USUAL_PLACES[thing.object]) for thing in asked.things]
    common = set.intersection(*homes) or next((home for home in homes if home == {"water"}), set.union(*homes))
    fitting = [place for place in allowed if place in common] or [p for p in allowed if p in set.union(*homes)]
    seen = [p for p in fitting or allowed if not any((t.colour, p) in HIDDEN for t in asked.things)]
    return pick(rng, seen or fitting or allowed)


def _doubts(things: Sequence[Mention], place: str | None) -> list[str]:
    """What can be asked of the painter, but that no training picture showed it."""
    doubts = []
    for thing in things:
        doing = f"a {thing.object} {thing.action}"
        if (thing.object, thing.action) in UNSEEN_ACTIONS:
            doubts.append(f"no training picture shows {doing}: it may come out wrong")
        elif place and thing.action and thing.action not in possible_actions(thing.object, place):
            doubts.append(f"no training picture shows {doing} {PLACES_EN[place][0]}: it may come out wrong")
    return doubts


def _place_alone(place: str, asked: Understood) -> str:
    return CONCEPT[place].zh[0] if asked.language == "zh" else PLACES_EN[place][0].partition(" ")[2]
