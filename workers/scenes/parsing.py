"""Parser of captions, the inverse of `caption`: for scoring captions and for naming unknown words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from workers.scenes.grammar import OPPOSITE, Mention, Scene
from workers.scenes.lexicon import BY_ROLE, EXTRA_FORMS, FILLERS, KEYS, Role

Fact = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SceneGraph:
    """What a text says: at most one mention for each object, in the order of mention."""

    things: tuple[Mention, ...] = ()
    place: str | None = None
    relation: str | None = None
    """Relation of the first thing to the second."""
    unknown: tuple[str, ...] = ()
    """Words outside the drawn world."""

    def facts(self, *, sizes: bool = True) -> frozenset[Fact]:
        """Single statements, the same for the same meaning in any order and language."""
        found: set[Fact] = set()
        for thing in self.things:
            found |= {("object", thing.object), ("count", thing.object, str(thing.count))}
            attributes = (("colour", thing.colour), ("action", thing.action), ("size", thing.size if sizes else None))
            found |= {(role, thing.object, value) for role, value in attributes if value}
        if self.place:
            found.add(("place", self.place))
        if self.relation and len(self.things) == 2:
            first, second = (thing.object for thing in self.things)
            ordered = KEYS["object"].index(first) < KEYS["object"].index(second)
            found.add(
                ("relation", first, self.relation, second)
                if ordered
                else ("relation", second, OPPOSITE[self.relation], first)
            )
        return frozenset(found)


def graph(scene: Scene) -> SceneGraph:
    """What a complete caption of the scene says."""
    things = tuple(Mention(t.object, t.count, t.colour, t.size, t.action) for t in scene.things)
    return SceneGraph(things, scene.place, scene.relation)


@dataclass(frozen=True, slots=True)
class Token:
    """A stretch of text: a word of a role, a filler, a separator, or unknown."""

    text: str
    role: Role | Literal["filler", "separator", "exists", "unknown"]
    key: str = ""


@cache
def _forms() -> dict[str, tuple[Role, str]]:
    forms: dict[str, tuple[Role, str]] = {}
    for role, concepts in BY_ROLE.items():
        for concept in concepts:
            extra = EXTRA_FORMS[role].get(concept.key, ())
            for form in (*concept.zh, *concept.en, *concept.plural, *extra, concept.zh_short):
                if form:
                    forms.setdefault(form, (role, concept.key))
    return forms


_CHUNK = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[\u4e00-\u9fff]|[，。、；：！？,.;:!?]")
_SEPARATORS = frozenset("，。、；：！？,.;:!?") | {"and", "和", "与", "while", "以及"}
_EXISTS = frozenset({"有", "是", "is", "are"})
_LONGEST = 6


def tokens(text: str) -> Iterator[Token]:
    """Cut a text into the longest known words, from the left."""
    chunks = _CHUNK.findall(text.lower())
    forms = _forms()
    at = 0
    while at < len(chunks):
        for length in range(min(_LONGEST, len(chunks) - at), 0, -1):
            part = chunks[at : at + length]
            word = ("" if "\u4e00" <= part[0][0] <= "\u9fff" else " ").join(part)
            if word in forms:
                yield Token(word, *forms[word])
            elif word in _SEPARATORS:
                yield Token(word, "separator")
            elif word in _EXISTS:
                yield Token(word, "exists")
            elif word in FILLERS:
                yield Token(word, "filler")
            elif length > 1:
                continue
            else:
                yield Token(word, "unknown")
            at += length
            break


@dataclass(slots=True)
class _Reader:
    """Attaches each word to its noun: what stands before a noun belongs to it, what trails belongs to the last one."""

    things: dict[str, Mention] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """Objects in the order of mention, repeated mentions included."""
    pending: dict[str, str] = field(default_factory=dict)
    place: str | None = None
    relation: tuple[str, int, bool] | None = None
    """The relation, how many mentions went before it, and whether it introduces its subject (B的左边有A)."""

    def read(self, token: Token) -> None:
        match token.role:
            case "object":
                self._attach(token.key)
                self.order.append(token.key)
            case "colour" | "size" | "action" | "count":
                if token.role == "count":
                    self.trail()
                self.pending[token.role] = token.key
            case "place":
                self.trail()
                self.place = self.place or token.key
            case "relation":
                self.trail()
                self.relation = self.relation or (token.key, len(self.order), False)
            case "separator":
                self.trail()
            case "exists" if self.relation and self.relation[1] == len(self.order):
                self.relation = (*self.relation[:2], True)

    def _attach(self, object_: str) -> None:
        said = self.things.get(object_, Mention(object_))
        values = {role: value for role, value in self.pending.items() if role != "count"}
        count = int(self.pending.get("count", said.count))
        self.things[object_] = replace(said, count=count, **values)
        self.pending.clear()

    def trail(self) -> None:
        """What waits for a noun goes to the one before it."""
        if self.order and self.pending:
            self.pending.pop("count", None)
            self._attach(self.order[-1])

    def related(self) -> str | None:
        """The relation of the first thing mentioned to the second."""
        if self.relation is None or len(self.things) != 2:
            return None
        key, before, introduces = self.relation
        # Chinese puts the word after both (A在B左边) or between them (B的左边有A), English between them (A left of B).
        subject = self.order[before] if introduces and before < len(self.order) else self._subject(before)
        return key if subject == next(iter(self.things)) else OPPOSITE[key]

    def _subject(self, before: int) -> str:
        return self.order[max(0, before - 2)] if before == len(self.order) else self.order[max(0, before - 1)]


def parse(text: str) -> SceneGraph:
    """What the text says, as far as it speaks of the drawn world. Understands both languages, in any style."""
    reader = _Reader()
    unknown: list[str] = []
    last = None
    for token in tokens(text):
        if token.role == "unknown":
            joins = last is not None and last.role == "unknown" and not token.text.isascii() and not last.text.isascii()
            if joins:
                unknown[-1] += token.text
            else:
                unknown.append(token.text)
        else:
            reader.read(token)
        last = token
    reader.trail()
    things = tuple(reader.things.values())
    return SceneGraph(things, reader.place, reader.related(), tuple(dict.fromkeys(unknown)))
