"""Noun phrases of prompts: an article or a number, attributes, and the noun that they are said of.

A phrase may lack its noun (two cats, one black), or have one that is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.scenes.phrases import Part
from workers.scenes.wording import Word

WITHIN: frozenset[Part] = frozenset({"colour", "size", "of", "shade", "unknown", "measure", "filler", "and"})
"""What stands between attributes and their noun."""


@dataclass(slots=True)
class Phrase:
    """A noun phrase: determiners, attributes, and a noun that is known (`noun`), unknown, or left out."""

    end: int
    """Index of the word after the phrase."""
    noun: Word | None = None
    count: int | None = None
    about: Word | None = None
    fresh: bool = False
    """Whether it speaks of something new: a, another, two."""
    begun: bool = False
    """Whether it has a determiner or a number."""
    attributes: list[Word] = field(default_factory=list)
    without: list[Word] = field(default_factory=list)
    """Attributes that the thing does not have."""
    places: list[Word] = field(default_factory=list)
    unknown: bool = False


class NounPhrases:
    """Finds the noun phrases of a text."""

    def __init__(self, text: Sequence[Word]) -> None:
        self.text = text

    def at(self, at: int, *, first: bool) -> Phrase | None:
        """The noun phrase that begins at a word, if one does; whether it is the first of the text."""
        found = Phrase(at)
        # Where it ends, and with how many attributes, if no noun that we know comes.
        known, kept = at, 0
        while at < len(self.text) and self._continues(at, found, first=first):
            word = self.text[at]
            if word.part in ("object", "kind"):
                found.noun, found.unknown, found.end = word, False, at + 1
                return found
            at = self._take(at, found)
            if self._may_end(word, found):
                known, kept = at, len(found.attributes)
        if found.unknown or found.count is not None:
            found.end = known
            found.attributes, found.places = found.attributes[:kept], []
            return found
        return None

    def _continues(self, at: int, found: Phrase, *, first: bool) -> bool:
        """Whether this word belongs to the phrase that was found so far."""
        word = self.text[at]
        match word.part:
            case "count" | "about" | "a" | "the":
                return self._determines(at, found)
            case "action" | "rest":
                return self._before_noun(at)
            case "place":
                return found.begun and word.chinese and self._before_noun(at)
            case "of":
                return bool(found.attributes) or found.unknown or found.begun
            case "at":
                return found.begun and word.chinese and at + 1 < len(self.text) and self._before_noun(at + 1)
            case "and" | "stop":
                return self._goes_on(at, found, first=first)
            case "not":
                return found.begun and self._find_denied(at) is not None
        return word.part in ("object", "kind", "colour", "size", "unknown", "measure", "filler", "shade")

    def _take(self, at: int, found: Phrase) -> int:
        """Add this word to the phrase; return where the next begins."""
        word = self.text[at]
        match word.part:
            case "count" | "about" | "a" | "the":
                self._determine(found, word)
            case "colour" | "size" | "action" | "rest":
                found.attributes.append(word)
            case "place":
                found.places.append(word)
            case "unknown":
                found.unknown = True
            case "not" if (denied := self._find_denied(at)) is not None:
                found.without.append(self.text[denied])
                return denied + 1
        return at + 1

    @staticmethod
    def _may_end(word: Word, found: Phrase) -> bool:
        """Whether a phrase without a known noun may end after this word."""
        match word.part:
            case "colour" | "size":
                return not found.unknown
            case "measure":
                return found.begun
        return word.part in ("count", "about", "a", "the", "unknown")

    def _find_denied(self, at: int) -> int | None:
        """Index of the attribute of the noun to come that is denied here: 不是黑色的猫, a not black cat."""
        after = next((i for i in range(at + 1, len(self.text)) if self.text[i].part not in ("be", "at")), at)
        said = self.text[after].part in ("colour", "size", "action")
        return after if said and self.leads_to_noun(after + 1, WITHIN) else None

    def _determines(self, at: int, found: Phrase) -> bool:
        """Whether a number or an article still belongs to the phrase, and does not begin another."""
        if not (found.attributes or found.unknown):
            return True
        return self.text[at].chinese and self.text[at - 1].part == "of"

    @staticmethod
    def _determine(found: Phrase, word: Word) -> None:
        found.begun = True
        if word.part == "the":
            return
        found.fresh = True
        if word.part == "a":
            found.count = found.count or 1
        else:
            found.count = int(word.key)
            found.about = word if word.part == "about" else None

    def _before_noun(self, at: int) -> bool:
        """Whether a verb or a place here describes the noun after it: a running dog, 跳跃的猫, 在草地上跳的猫."""
        word = self.text[at]
        if word.finite:
            return False
        if not word.chinese:
            return self.leads_to_noun(at + 1, {"colour", "size", "action", "unknown", "filler", "shade"})
        rest = [w for w in self.text[at + 1 :] if w.part != "filler"]
        if word.part == "place" and rest and rest[0].part == "at":
            rest = rest[1:]
        if word.part == "place" and rest and rest[0].part in ("action", "rest"):
            rest = rest[1:]
        return bool(rest) and rest[0].part == "of" and self.leads_to_noun(at + 1, WITHIN)

    def leads_to_noun(self, at: int, within: set[Part] | frozenset[Part]) -> bool:
        """Whether nothing but words of these parts stands before the next noun."""
        for word in self.text[at:]:
            if word.part in ("object", "kind"):
                return True
            if word.part not in within or word.finite:
                return False
        return False

    def _goes_on(self, at: int, found: Phrase, *, first: bool) -> bool:
        """Whether after "and" or a comma another attribute of the same noun comes: a black and white cat."""
        if not found.attributes or found.unknown or at + 1 >= len(self.text):
            return False
        word, after = self.text[at], self.text[at + 1]
        if word.part == "stop" and (word.text not in (",", "、") or not found.begun):
            return False
        if after.part not in ("colour", "size") or not self.leads_to_noun(at + 1, WITHIN):
            return False
        # "black and white dogs" begins no phrase of its own where a noun stands before: the cat is black and ...
        return found.begun or first
