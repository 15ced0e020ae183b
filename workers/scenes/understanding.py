"""What a prompt asks for, in whatever words: the statements that can be drawn, and what has to be said of the rest.

`workers.scenes.parsing` reads captions, which the grammar wrote. This reads what people write: predicates after the
noun, sides named before or after what stands there, politeness, negation, numbers, misspellings. Two rules hold:

- nothing is asked for that the text does not ask for;
- what the text asks for and cannot be drawn is told, in `warnings` or in `unknown`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuwen.jobs import Language
from workers.scenes.grammar import OPPOSITE, Mention, possible_actions
from workers.scenes.lexicon import CONCEPT, KEYS
from workers.scenes.reading import Reader, Thing
from workers.scenes.relating import find_related
from workers.scenes.wording import MOST_WORDS, neighbours, too_long, words

MOST_THINGS = 4
"""Things that fit into one picture."""
MOST_GROUPS = 2
"""Kinds of things, or looks of one kind, that fit into one picture."""


@dataclass(frozen=True, slots=True)
class Understood:
    """What a prompt says, as far as it can be drawn."""

    things: tuple[Mention, ...] = ()
    """Groups of equal things, at most `MOST_GROUPS` and `MOST_THINGS` things; two groups may be of one kind."""
    place: str | None = None
    relation: str | None = None
    """Relation of the first group to the second."""
    unlike: frozenset[tuple[str, str, str]] = frozenset()
    """What must not be: role, value and the object that it is said of ("" for the place)."""
    warnings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    """Words that name nothing in the drawn world."""
    suggestions: tuple[str, ...] = ()
    """What unknown words may be misspellings of, where that is not clear."""
    strange: bool = False
    """Something is asked for that is not known."""
    language: Language = "en"

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw: no thing that is known, nor a place alone."""
        return not self.things and (self.place is None or self.strange or bool(self.unlike))


def understand(text: str) -> Understood:
    """Read a prompt in Chinese or English."""
    reader = Reader(words(text))
    reader.read()
    if too_long(text):
        reader.tell(f"only the first {MOST_WORDS} words and characters of the prompt were read")
    return _result(reader)


def refusal(asked: Understood) -> str:
    """Say why nothing is drawn, and what could be."""
    objects = [CONCEPT[key].plural[0] for key in KEYS["object"]]
    names = [CONCEPT[key].zh[0] for key in KEYS["object"]]
    world = f"The built-in generator draws {', '.join(objects[:-1])} and {objects[-1]} ({'、'.join(names)})."
    meant = f" Did you mean “{'” or “'.join(asked.suggestions)}”?" if asked.suggestions else ""
    if asked.unknown:
        named = ", ".join(f"“{word}”" for word in asked.unknown[:10])
        return f"the built-in generator knows nothing that the prompt asks for: {named}.{meant} {world}"
    if asked.unlike:
        return f"the prompt only says what is not to be drawn. {world}"
    return f"the prompt names nothing to draw. {world}"


def _result(reader: Reader) -> Understood:
    things = [replace(thing, count=thing.number) for thing in reader.things]
    copies = dict(zip(map(id, reader.things), things, strict=True))
    groups, group_of = _group(things)
    relation = _find_relation(reader, {key: group_of[id(copy)] for key, copy in copies.items()}, groups)
    kept = _keep_fitting(reader, groups)
    if len(kept) < MOST_GROUPS:
        relation = None
    _drop_impossible(reader, kept)
    return Understood(
        tuple(Mention(g.object, g.number, g.colour, g.size, g.action) for g in kept),
        reader.place,
        relation,
        frozenset(reader.unlike),
        tuple(reader.warnings),
        _unknown(reader),
        _suggestions(reader),
        any(spot.thing is None for spot in reader.spots),
        "zh" if any(word.chinese for word in reader.text) else "en",
    )


def _find_relation(reader: Reader, group_of: dict[int, int], groups: Sequence[Thing]) -> str | None:
    found: str | None = None
    for link, subject, other in find_related(reader.links, reader.spots, reader.text):
        first = group_of[id(subject)] if subject is not None else None
        second = group_of[id(other)] if other is not None else None
        if second is None and first is not None and len(groups) == MOST_GROUPS and link.side:
            second = 1 - first
        if first is None or second is None or first == second or max(first, second) >= MOST_GROUPS:
            if subject is not None or link.side:
                reader.tell(f"“{reader.text[link.at].text}” is not drawn: it takes two different things")
            continue
        key = link.key if first == 0 else OPPOSITE[link.key]
        if found is not None and found != key:
            reader.tell(f"two things stand in one relation: “{reader.text[link.at].text}” is not drawn")
        found = found or key
    return found


def _keep_fitting(reader: Reader, groups: list[Thing]) -> list[Thing]:
    for extra in groups[MOST_GROUPS:]:
        reader.tell(f"a picture has at most {MOST_GROUPS} kinds of things: the {extra.object} is not drawn")
    kept = groups[:MOST_GROUPS]
    left = MOST_THINGS
    for i, group in enumerate(kept):
        room = left - (len(kept) - i - 1)
        if group.number > room:
            reader.tell(f"a picture has at most {MOST_THINGS} things: {room} × {group.object} of {group.number}")
            group.count = room
        left -= group.number
    return kept


def _drop_impossible(reader: Reader, groups: Sequence[Thing]) -> None:
    """Drop what a thing cannot do."""
    for group in groups:
        can = {action for place in KEYS["place"] for action in possible_actions(group.object, place)}
        if group.action is not None and group.action not in can:
            reader.tell(f"a {group.object} cannot be drawn {group.action}")
            group.action = None


def _unknown(reader: Reader) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.text for word in reader.text if word.part == "unknown"))


def _suggestions(reader: Reader) -> tuple[str, ...]:
    near = [near.text for word in reader.text if word.raw and not word.chinese for near in neighbours(word.text)]
    return tuple(dict.fromkeys(near))


def _group(things: Sequence[Thing]) -> tuple[list[Thing], dict[int, int]]:
    """Count equal things together: a cat and another cat are two cats."""
    groups: list[Thing] = []
    group_of: dict[int, int] = {}
    for thing in things:
        looks = (thing.object, thing.colour, thing.action, thing.size)
        same = [i for i, g in enumerate(groups) if (g.object, g.colour, g.action, g.size) == looks]
        if same:
            groups[same[0]].count = groups[same[0]].number + thing.number
            group_of[id(thing)] = same[0]
        else:
            group_of[id(thing)] = len(groups)
            groups.append(thing)
    return groups, group_of
