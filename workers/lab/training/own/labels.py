"""What is to be seen on own pictures, as far as somebody said it, in the slots of the drawn world.

Objects, colours, actions and places may be own ones, where columns name them: then these are what the models learn, and
the drawn world's only where columns use them too. Sizes, counts and relations are those of the drawn world.

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


_OPEN: tuple[Role, ...] = ("object", "colour", "action", "place")
LEAST = 2
"""Images that an own label must occur in."""


def label_set(rows: Iterable[Mapping[str, Any]]) -> Labels:
    """What a source's columns name: the drawn world where nothing else is in them.

    Raises:
        ConfigurationError: there is only one object to tell from nothing.
    """
    counted: dict[Role, Counter[str]] = {role: Counter() for role in _OPEN}
    for row in rows:
        said = _said(row)
        for role in _OPEN:
            values = {value.lower() for value in said.get(role, ()) if value and value.lower() not in STILL}
            counted[role].update({_known(role, value) or value for value in values})
    labels = dict(KEYS)
    for role, counts in counted.items():
        if counts.keys() - set(KEYS[role]):
            labels[role] = tuple(sorted(value for value, count in counts.items() if count >= LEAST))
    if len(labels["object"]) < 2:
        raise ConfigurationError(f"fewer than two objects occur in {LEAST} images or more.", field="data")
    return labels


def labels_of(metadata: Mapping[str, Any], captions: Sequence[str], labels: Labels = KEYS) -> tuple[int, ...]:
    """The slots of an image from its columns, or else from its captions.

    Of captions, those that agree in what is there count together. Unknown where there is none of the objects, or more
    than two kinds, which the models do not tell apart.
    """
    said = _said(metadata)
    if "object" in said:
        return _from_columns(said, labels)
    slots = UNKNOWN
    for caption in captions:
        slots = _merged(slots, _from_graph(parse(caption), labels))
    return slots


def _said(metadata: Mapping[str, Any]) -> dict[Role, list[str]]:
    """The labels of one image by role."""
    return {COLUMNS[name.lower()]: _values(value) for name, value in metadata.items() if name.lower() in COLUMNS}


def _values(value: Any) -> list[str]:
    parts = value if isinstance(value, list | tuple) else str(value).replace("，", ",").split(",")
    return [str(part).strip() for part in parts]


def _known(role: Role, value: str) -> str | None:
    """The concept of the drawn world that a label is a form of, and nothing but that."""
    found = list(tokens(value))
    return found[0].key if len(found) == 1 and found[0].role == role else None


def _slot(role: Role, value: str, labels: Labels) -> int:
    """1 + the number of a label that a column has; 0 where it is none."""
    return _index(role, _known(role, value) or value.lower(), labels)


def _from_columns(said: Mapping[Role, Sequence[str]], labels: Labels) -> tuple[int, ...]:
    objects = [_slot("object", value, labels) for value in said["object"] if value]
    if not 1 <= len(objects) <= 2 or 0 in objects or len(set(objects)) < len(objects):
        return UNKNOWN
    slots = list(UNKNOWN)
    for i, object_ in enumerate(objects):
        slots[5 * i] = object_
        for offset, role in enumerate(_OF_THINGS, 1):
            values = said.get(role, ())
            value = values[i] if i < len(values) else ""
            found = _slot(role, value, labels)
            slots[5 * i + offset] = found or (-1 if role == "action" and value.lower() not in STILL else 0)
    place, relation = (_slot(role, (said.get(role) or [""])[0], labels) for role in _WHOLE)
    return _canonical([*slots[:10], place, relation if len(objects) == 2 else 0])


def _from_graph(graph: SceneGraph, labels: Labels) -> tuple[int, ...]:
    if not 1 <= len(graph.things) <= 2:
        return UNKNOWN
    slots = list(UNKNOWN)
    for i, thing in enumerate(graph.things):
        values = (thing.colour, thing.action, thing.size, str(thing.count))
        slots[5 * i] = _index("object", thing.object, labels)
        for offset, (role, key) in enumerate(zip(_OF_THINGS, values, strict=True), 1):
            slots[5 * i + offset] = _index(role, key, labels) or (-1 if role == "action" else 0)
        if not slots[5 * i]:
            return UNKNOWN
    slots[10] = _index("place", graph.place, labels)
    slots[11] = _index("relation", graph.relation, labels) if len(graph.things) == 2 else 0
    return _canonical(slots)


def _index(role: Role, key: str | None, labels: Labels) -> int:
    """1 + the number of a label; 0 where it is none."""
    return labels[role].index(key) + 1 if key in labels[role] else 0


def _canonical(slots: Sequence[int]) -> tuple[int, ...]:
    """The things in the order of the labels, as `Scene.canonical` has them."""
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
