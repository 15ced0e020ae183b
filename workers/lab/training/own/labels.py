"""What is to be seen on own pictures, as far as somebody said it, in the slots of the drawn world.

Columns of a source may name their own objects, colours, actions and places. Models then learn these, and the drawn
world's only where columns use them too. Sizes, counts and relations are always those of the drawn world.

Slots are those of `workers.scenes.grammar.slots`, with one more value: where the action is not known it is −1, because
0 is standing still. Elsewhere 0 is both "there is none" and "not said": models are then not asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tuwen.errors import ConfigurationError
from workers.models.recognizer import Labels
from workers.scenes.grammar import OPPOSITE
from workers.scenes.lexicon import KEYS, Role
from workers.scenes.parsing import SceneGraph, parse, tokens

UNKNOWN: tuple[int, ...] = (0, 0, -1, 0, 0, 0, 0, -1, 0, 0, 0, 0)
"""The slots where nothing is known."""
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
STILL = ("standing", "none", "still", "站着", "站立", "静止", "无")
"""Values of the column of actions that mean standing still."""

_OPEN: tuple[Role, ...] = ("object", "colour", "action", "place")
"""Roles that may have other labels than the drawn world's."""
LEAST = 2
"""Images that an own label must occur in."""


def label_set(rows: Iterable[Mapping[str, Any]]) -> Labels:
    """The labels that a source's columns name; those of the drawn world where they name nothing else.

    Raises:
        ConfigurationError: fewer than two objects occur often enough.
    """
    counted: dict[Role, Counter[str]] = {role: Counter() for role in _OPEN}
    for row in rows:
        said = _labels_by_role(row)
        for role in _OPEN:
            counted[role].update(_distinct(role, said.get(role, ())))
    labels = dict(KEYS)
    for role, counts in counted.items():
        if counts.keys() - set(KEYS[role]):
            frequent = [value for value, count in counts.items() if count >= LEAST]
            labels[role] = tuple(sorted(frequent))
    if len(labels["object"]) < 2:
        raise ConfigurationError(f"fewer than two objects occur in {LEAST} images or more.", field="data")
    return labels


def _distinct(role: Role, values: Sequence[str]) -> set[str]:
    """The labels that these values of one image are, each once."""
    found = set()
    for value in values:
        lower = value.lower()
        if lower and lower not in STILL:
            found.add(_find_concept(role, lower) or lower)
    return found


def labels_of(metadata: Mapping[str, Any], captions: Sequence[str], labels: Labels = KEYS) -> tuple[int, ...]:
    """The slots of an image from its columns, or from its captions where no column names an object.

    Captions that agree in what is there count together. The slots are `UNKNOWN` where there is none of the objects, or
    where there are more than two kinds, which the models do not tell apart.
    """
    said = _labels_by_role(metadata)
    if "object" in said:
        return _from_columns(said, labels)
    slots = UNKNOWN
    for caption in captions:
        slots = _merge(slots, _from_graph(parse(caption), labels))
    return slots


def _labels_by_role(metadata: Mapping[str, Any]) -> dict[Role, list[str]]:
    """The labels of one image by role."""
    said = {}
    for name, value in metadata.items():
        role = COLUMNS.get(name.lower())
        if role is not None:
            said[role] = _values(value)
    return said


def _values(value: Any) -> list[str]:
    parts = value if isinstance(value, list | tuple) else str(value).replace("，", ",").split(",")
    return [str(part).strip() for part in parts]


def _find_concept(role: Role, value: str) -> str | None:
    """The concept of the drawn world that a label is a form of; None where the label is more or something else."""
    found = list(tokens(value))
    if len(found) == 1 and found[0].role == role:
        return found[0].key
    return None


def _slot(role: Role, value: str, labels: Labels) -> int:
    """1 + the number of the label that a column names; 0 where it is none of the labels."""
    return _index(role, _find_concept(role, value) or value.lower(), labels)


def _from_columns(said: Mapping[Role, Sequence[str]], labels: Labels) -> tuple[int, ...]:
    objects = [_slot("object", value, labels) for value in said["object"] if value]
    repeated = len(set(objects)) < len(objects)
    if not 1 <= len(objects) <= 2 or 0 in objects or repeated:
        return UNKNOWN
    slots = list(UNKNOWN)
    for i, object_ in enumerate(objects):
        slots[5 * i] = object_
        for offset, role in enumerate(_OF_THINGS, 1):
            slots[5 * i + offset] = _attribute_slot(role, _value_at(said, role, i), labels)
    slots[10] = _slot("place", _value_at(said, "place", 0), labels)
    if len(objects) == 2:
        slots[11] = _slot("relation", _value_at(said, "relation", 0), labels)
    return _canonical(slots)


def _value_at(said: Mapping[Role, Sequence[str]], role: Role, number: int) -> str:
    """What a column says of the thing with this number; empty where it says nothing."""
    values = said.get(role, ())
    return values[number] if number < len(values) else ""


def _attribute_slot(role: Role, value: str, labels: Labels) -> int:
    found = _slot(role, value, labels)
    if found:
        return found
    unknown_action = role == "action" and value.lower() not in STILL
    return -1 if unknown_action else 0


def _from_graph(graph: SceneGraph, labels: Labels) -> tuple[int, ...]:
    if not 1 <= len(graph.things) <= 2:
        return UNKNOWN
    slots = list(UNKNOWN)
    for i, thing in enumerate(graph.things):
        object_ = _index("object", thing.object, labels)
        if not object_:
            return UNKNOWN
        slots[5 * i : 5 * i + 5] = [
            object_,
            _index("colour", thing.colour, labels),
            _index("action", thing.action, labels) or -1,
            _index("size", thing.size, labels),
            _index("count", str(thing.count), labels),
        ]
    slots[10] = _index("place", graph.place, labels)
    slots[11] = _index("relation", graph.relation, labels) if len(graph.things) == 2 else 0
    return _canonical(slots)


def _index(role: Role, key: str | None, labels: Labels) -> int:
    """1 + the number of a label; 0 where it is none of the labels."""
    return labels[role].index(key) + 1 if key in labels[role] else 0


def _canonical(slots: Sequence[int]) -> tuple[int, ...]:
    """The things in the order of the labels, as `Scene.canonical` has them."""
    if not slots[5] or slots[0] < slots[5]:
        return tuple(slots)
    relation = _opposite(slots[11]) if slots[11] else 0
    return (*slots[5:10], *slots[0:5], slots[10], relation)


def _opposite(relation: int) -> int:
    """The slot of the opposite relation."""
    side = KEYS["relation"][relation - 1]
    return KEYS["relation"].index(OPPOSITE[side]) + 1


def _merge(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """What two captions of one picture say together; what the first says where they speak of different things."""
    if other == UNKNOWN:
        return one
    if one == UNKNOWN:
        return other
    if (one[0], one[5]) != (other[0], other[5]):
        return one
    # Captions never say that something stands still, so whatever is not above 0 is not said.
    return tuple(a if a > 0 else b for a, b in zip(one, other, strict=True))


def mirrored_slots(slots: Sequence[int]) -> tuple[int, ...]:
    """What the mirror image shows: left and right change places."""
    relation = slots[11]
    if relation and KEYS["relation"][relation - 1] in ("left", "right"):
        relation = _opposite(relation)
    return (*slots[:11], relation)
