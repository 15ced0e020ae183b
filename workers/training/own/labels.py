"""What is to be seen on own pictures, as far as somebody said it, in the slots of the drawn world.

Slots are those of `workers.scenes.grammar.slots`, with one more value: where the action is not known it is −1, because
0 is standing still. Elsewhere 0 is both "there is none" and "not said": models are then not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.scenes.grammar import OPPOSITE
from workers.scenes.lexicon import KEYS, Role
from workers.scenes.parsing import SceneGraph, parse, tokens

UNKNOWN: tuple[int, ...] = (0, 0, -1, 0, 0, 0, 0, -1, 0, 0, 0, 0)
"""Nothing is known."""
COLUMNS: Mapping[str, Role] = {
    "objects": "object",
    "categories": "object",
    "colours": "colour",
    "colors": "colour",
    "actions": "action",
    "sizes": "size",
    "counts": "count",
    "place": "place",
    "relation": "relation",
}
"""Columns of a source with labels: one value, several with commas between them or as a list, in either language."""
_OF_THINGS: tuple[Role, ...] = ("colour", "action", "size", "count")
_WHOLE: tuple[Role, ...] = ("place", "relation")
STILL = ("standing", "none", "still", "站着", "站立", "静止", "无")


def labels_of(metadata: Mapping[str, Any], captions: Sequence[str]) -> tuple[int, ...]:
    """The slots of an image from its columns, or else from its captions.

    Of captions, those that agree in what is there count together. Unknown where there is no object of the drawn
    world, or more than two kinds, which its models do not tell apart.
    """
    said = {COLUMNS[name.lower()]: _values(value) for name, value in metadata.items() if name.lower() in COLUMNS}
    if "object" in said:
        return _from_columns(said)
    slots = UNKNOWN
    for caption in captions:
        slots = _merged(slots, _from_graph(parse(caption)))
    return slots


def _values(value: Any) -> list[str]:
    parts = value if isinstance(value, list | tuple) else str(value).replace("，", ",").split(",")
    return [str(part).strip() for part in parts]


def _key(role: Role, value: str) -> str | None:
    """The concept that a label names, in any form that texts may use."""
    return next((token.key for token in tokens(value) if token.role == role), value if value in KEYS[role] else None)


def _from_columns(said: Mapping[Role, Sequence[str]]) -> tuple[int, ...]:
    objects = [_key("object", value) for value in said["object"] if value]
    if not 1 <= len(objects) <= 2 or None in objects or len(set(objects)) < len(objects):
        return UNKNOWN
    slots = list(UNKNOWN)
    for i, object_ in enumerate(objects):
        slots[5 * i] = KEYS["object"].index(str(object_)) + 1
        for offset, role in enumerate(_OF_THINGS, 1):
            values = said.get(role, ())
            value = values[i] if i < len(values) else ""
            key = _key(role, value)
            if role == "action" and value.lower() in STILL:
                slots[5 * i + offset] = 0
            elif key:
                slots[5 * i + offset] = KEYS[role].index(key) + 1
    place, relation = (_key(role, said.get(role, [""])[0]) for role in _WHOLE)
    slots[10] = KEYS["place"].index(place) + 1 if place else 0
    slots[11] = KEYS["relation"].index(relation) + 1 if relation and len(objects) == 2 else 0
    return _canonical(slots)


def _from_graph(graph: SceneGraph) -> tuple[int, ...]:
    if not 1 <= len(graph.things) <= 2:
        return UNKNOWN
    slots = list(UNKNOWN)
    for i, thing in enumerate(graph.things):
        named: tuple[tuple[Role, str | None], ...] = (
            ("object", thing.object), ("colour", thing.colour), ("action", thing.action), ("size", thing.size),
            ("count", str(thing.count)),
        )  # fmt: skip
        for offset, (role, key) in enumerate(named):
            if key in KEYS[role]:
                slots[5 * i + offset] = KEYS[role].index(str(key)) + 1
    slots[10] = KEYS["place"].index(graph.place) + 1 if graph.place else 0
    slots[11] = KEYS["relation"].index(graph.relation) + 1 if graph.relation and len(graph.things) == 2 else 0
    return _canonical(slots)


def _canonical(slots: Sequence[int]) -> tuple[int, ...]:
    """The things in the order of the lexicon, as `Scene.canonical` has them."""
    if not slots[5] or slots[0] < slots[5]:
        return tuple(slots)
    relation = slots[11] and KEYS["relation"].index(OPPOSITE[KEYS["relation"][slots[11] - 1]]) + 1
    return (*slots[5:10], *slots[0:5], slots[10], relation)


def _merged(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """What two captions of one picture say together; the first, where they speak of different things."""
    if other == UNKNOWN or one == UNKNOWN:
        return one if other == UNKNOWN else other
    if (one[0], one[5]) != (other[0], other[5]):
        return one
    # Captions never say that something stands still, so whatever is not above 0 is not said.
    return tuple(a if a > 0 else b for a, b in zip(one, other, strict=True))


def mirrored_slots(slots: Sequence[int]) -> tuple[int, ...]:
    """What the mirror image shows: left and right change places."""
    relation = slots[11]
    if relation and KEYS["relation"][relation - 1] in ("left", "right"):
        relation = KEYS["relation"].index(OPPOSITE[KEYS["relation"][relation - 1]]) + 1
    return (*slots[:11], relation)
