"""Prompts cut into words: the drawn world's, those around them, misspelt ones, and what is not known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from workers.scenes.lexicon import BY_ROLE, EXTRA_FORMS
from workers.scenes.normalising import normalise
from workers.scenes.phrases import Part, other_words, phrases

_CHUNK = re.compile(r"[a-z]+n't|[a-z]+|'[a-z]+|\d+|[\u3400-\u9fff]|\S")
_HYPHEN = re.compile(r"(?<=[a-z])-(?=[a-z])")
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_LONGEST = 7
MOST_WORDS = 600
"""Words and characters that are read; what is longer describes no picture of few things."""
_MISSPELT_FROM = 4
"""Least letters of a word that may be misspelt: nearly every word of three is one letter from another."""
_TWO_MISTAKES_FROM = 8
_PARTICIPLES = frozenset({"asleep", "parked", "still", "located", "placed"})
"""They describe as running does, though they do not end so."""


@dataclass(frozen=True, slots=True)
class Word:
    """A stretch of the text with what it is; `key` is the value of the lexicon, the number, or nothing."""

    text: str
    part: Part
    key: str = ""
    plural: bool = False
    finite: bool = False
    """An English verb that says what its subject does: jumps, not jumping."""
    meant: str = ""
    """The word that a misspelt one was read as."""
    raw: bool = False
    """Whether it is unknown and in no list at all."""

    @property
    def chinese(self) -> bool:
        """Whether it is written in Chinese characters."""
        return bool(_CHINESE.match(self.text))


@cache
def _forms() -> dict[str, Word]:
    forms: dict[str, Word] = {}
    for role, concepts in BY_ROLE.items():
        for concept in concepts:
            for form in (*concept.zh, *concept.en, *EXTRA_FORMS[role].get(concept.key, ()), concept.zh_short):
                if form:
                    forms.setdefault(form, Word(form, role, concept.key))
            for form in concept.plural:
                plural = role == "object" and form not in concept.en
                forms[form] = Word(form, role, concept.key, plural=plural, finite=role == "action")
    for part, key, text in phrases():
        english = text.isascii()
        named = english and part in ("object", "kind")
        says = english and part in ("action", "rest") and not text.split()[0].endswith("ing")
        forms[text] = Word(
            text, part, key, plural=named and text.endswith("s"), finite=says and text not in _PARTICIPLES
        )
        if named and not text.endswith("s"):
            forms[f"{text}s"] = Word(f"{text}s", part, key, plural=True)
    return forms


def words(text: str) -> list[Word]:
    """Cut the text into the longest known words, from the left; misspelt ones are corrected."""
    return _join_characters(list(_cut(_HYPHEN.sub(" ", normalise(text)))))


def too_long(text: str) -> bool:
    """Whether the end of the text is not read."""
    return len(_CHUNK.findall(normalise(text))) > MOST_WORDS


def _cut(text: str) -> Iterator[Word]:
    chunks = _CHUNK.findall(text)[:MOST_WORDS]
    forms = _forms()
    at = 0
    while at < len(chunks):
        for length in range(min(_LONGEST, len(chunks) - at), 0, -1):
            part = chunks[at : at + length]
            written = ("" if any(map(_CHINESE.match, part)) else " ").join(part)
            found = forms.get(written)
            if found is not None and found.part == "unknown" and _begins_relation(chunks, at + length - 1, forms):
                found = None
            if found is None and length == 1:
                found = _read_unlisted(written)
            if found is not None:
                yield found
                at += length
                break


def _begins_relation(chunks: list[str], at: int, forms: dict[str, Word]) -> bool:
    """Whether a character and the next are a relation: 马上 (at once) is no word in 马上方 (above the horse)."""
    found = forms.get("".join(chunks[at : at + 2])) if _CHINESE.match(chunks[at]) else None
    return found is not None and found.part == "relation" and len(found.text) == 2


def _read_unlisted(text: str) -> Word:
    if text.isdigit():
        return Word(text, "count", str(int(text[:6])))
    if not text.isascii() or not text.isalpha():
        return Word(text, "unknown" if text.isalnum() or not text.isascii() else "stop", raw=True)
    near = neighbours(text)
    meanings = {(word.part, word.key) for word in near}
    if len(meanings) != 1:
        return Word(text, "unknown", raw=True)
    meant = near[0]
    return Word(text, meant.part, meant.key, meant.plural, meant.finite, meant=meant.text)


@lru_cache(4096)
def neighbours(text: str) -> tuple[Word, ...]:
    """Return the known words that an unknown one may be a misspelling of; the nearest only.

    A first letter is hardly ever wrong, and a word that people write is meant as it stands.
    """
    if len(text) < _MISSPELT_FROM or text in other_words():
        return ()
    most = 2 if len(text) >= _TWO_MISTAKES_FROM else 1
    found = [
        (distance(text, form), word)
        for form, word in _by_letter().get(text[0], ())
        if abs(len(form) - len(text)) <= most
    ]
    nearest = min((far for far, _ in found), default=most + 1)
    return tuple(word for far, word in found if far == nearest <= most)


@cache
def _by_letter() -> dict[str, list[tuple[str, Word]]]:
    """The English forms that may be misspelt, by their first letter."""
    forms: dict[str, list[tuple[str, Word]]] = {}
    for form, word in _forms().items():
        if form.isascii() and form.isalpha() and len(form) >= _MISSPELT_FROM and word.part not in ("unknown", "filler"):
            forms.setdefault(form[0], []).append((form, word))
    return forms


def distance(a: str, b: str) -> int:
    """Count the letters put in, left out, changed, or swapped with the next (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, other in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                row[j] = min(row[j], last[j - 2] + 1)
    return row[-1]


_CONTENT: frozenset[Part] = frozenset({"object", "colour", "size", "action", "place", "kind"})


def _join_characters(found: list[Word]) -> list[Word]:
    """A single Chinese character beside one that is in no list is part of a longer word, and not the one we know."""
    strange = [word.raw and word.chinese for word in found]

    def is_swallowed(i: int) -> bool:
        word = found[i]
        beside = (i > 0 and strange[i - 1]) or (i + 1 < len(found) and strange[i + 1])
        return word.part in _CONTENT and len(word.text) == 1 and word.chinese and beside

    whole: list[Word] = []
    for i, word in enumerate(found):
        if is_swallowed(i):
            word = Word(word.text, "unknown", raw=True)
        if whole and word.part == whole[-1].part == "unknown" and word.chinese and whole[-1].chinese:
            raw = word.raw or whole[-1].raw
            whole[-1] = Word(whole[-1].text + word.text, "unknown", raw=raw)
        else:
            whole.append(word)
    return whole
