"""A prompt read once from its beginning to its end: which things it mentions, and what it says of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal, cast

from workers.scenes.grammar import ANIMALS, UNSEEN_ACTIONS
from workers.scenes.noun_phrases import WITHIN, NounPhrases, Phrase
from workers.scenes.phrases import Part
from workers.scenes.relating import Link, Spot
from workers.scenes.wording import Word

SEVERAL = 2
"""Number of things that are drawn for a plural without a number."""

Attribute = Literal["colour", "action", "size"]
ATTRIBUTES: tuple[Attribute, ...] = ("colour", "action", "size")
_CHOICE = frozenset({"or", "或", "或者", "还是"})
_INSIDE = frozenset({"里", "中", "内", "里面", "中间", "之中"})


@dataclass(slots=True, eq=False)
class Thing:
    """What the text says of one thing, or of several equal ones. Compared by identity: two equal cats are two."""

    object: str
    count: int | None = None
    """The number that is said, if one is."""
    plural: bool = False
    colour: str | None = None
    action: str | None = None
    size: str | None = None

    def agrees(self, other: Thing) -> bool:
        """Whether both can be the same thing: no attribute is said to differ."""
        pairs = [(getattr(self, role), getattr(other, role)) for role in ATTRIBUTES]
        return all(mine is None or theirs is None or mine == theirs for mine, theirs in pairs)

    @property
    def number(self) -> int:
        """The number of things to draw."""
        return self.count if self.count is not None else SEVERAL if self.plural else 1


class Reader:
    """Goes through the words once, noun phrase by noun phrase."""

    def __init__(self, text: Sequence[Word]) -> None:
        self.text = text
        self.phrases = NounPhrases(text)
        self.things: list[Thing] = []
        self.spots: list[Spot[Thing]] = []
        self.links: list[Link] = []
        self.place: str | None = None
        self.unlike: set[tuple[str, str, str]] = set()
        self.warnings: dict[str, None] = {}
        self.clause = 0
        self.part = 0
        """Number of the part of a clause: parts are joined by and, with, and relations."""
        self.subjects: list[Thing | None] = []
        """The things that a predicate is said of; None is something that is not known."""
        self.waiting: list[Word] = []
        """Predicates that come before their noun: 草地上坐着一只狗."""
        self.head: Thing | None = None
        """The subject of an English clause whose verb comes after a relation: the dog next to the cat is black."""
        self.joined = self.copula = self.everybody = self.negated = False

    def read(self) -> None:
        """Read all words; the things, their relations and the warnings are in the attributes afterwards."""
        for word, after in zip_longest(self.text, self.text[1:]):
            if word.meant:
                self.tell(f"“{word.text}” was read as “{word.meant}”")
            if word.part == "shade" and after is not None and after.part == "colour":
                self.tell(f"colours have no shades: “{word.text}” is not drawn")
        at = 0
        while at < len(self.text):
            at = self._step(at)
        for word in self.waiting:
            self.tell(f"it is not clear of what “{word.text}” is said")

    def _step(self, at: int) -> int:
        """Read what begins at this word; return where the next begins."""
        word = self.text[at]
        if word.part in ("colour", "size", "action", "rest"):
            if self._is_predicate(at):
                self._read_predicate(word)
                return at + 1
            phrase = self.phrases.at(at, first=not self.spots)
            if phrase is None or phrase.noun is None:
                self.waiting.append(word)
                return at + 1
            self._read_noun_phrase(phrase)
            return phrase.end
        if word.part in ("count", "about", "a", "the", "unknown", "object", "kind", "shade"):
            phrase = self.phrases.at(at, first=not self.spots)
            if phrase is not None:
                self._read_noun_phrase(phrase)
                return phrase.end
        self._read_other(at, word)
        return at + 1

    # ── noun phrases ──

    def _read_noun_phrase(self, phrase: Phrase) -> None:
        for place in phrase.places:
            self._read_place(place)
        if phrase.noun is not None:
            self._read_known(phrase, phrase.noun)
        elif phrase.unknown:
            self._read_unknown(phrase)
        else:
            self._read_without_noun(phrase)
        self.joined = self.copula = False

    def _read_known(self, phrase: Phrase, noun: Word) -> None:
        if noun.part == "kind":
            self.tell(f"“{noun.text}” is drawn as any {noun.key}")
        if self.negated or phrase.count == 0:
            # Negation goes on in "no dog and no cat", "without a dog or a cat".
            self.unlike.add(("object", noun.key, noun.key))
            self.negated = self.text[phrase.end].part == "and" if phrase.end < len(self.text) else False
            return
        self.unlike |= {(word.part, word.key, noun.key) for word in phrase.without}
        new = Thing(noun.key, phrase.count, noun.plural)
        self._adjust_number(new, phrase)
        for word in (*phrase.attributes, *self.waiting):
            self._give(new, word)
        self.waiting = []
        thing = None if phrase.fresh else self._find_mentioned(new)
        if thing is None:
            thing = new
            self.things.append(thing)
        else:
            for role in ATTRIBUTES:
                setattr(thing, role, getattr(thing, role) or getattr(new, role))
        self._enter(thing, phrase.end - 1)

    def _adjust_number(self, thing: Thing, phrase: Phrase) -> None:
        if phrase.about is not None:
            self.tell(f"“{phrase.about.text}” is drawn as {phrase.about.key}")
        if thing.plural and phrase.count == 1 and thing.object != "fish":
            thing.plural = False

    def _find_mentioned(self, new: Thing) -> Thing | None:
        """The thing that a noun without a or a number speaks of again."""
        return next((thing for thing in self.things if thing.object == new.object and thing.agrees(new)), None)

    def _enter(self, thing: Thing | None, at: int) -> None:
        """Make a thing the subject of what follows, together with those that it is listed with."""
        listed = self.joined and thing not in self.subjects and None not in (thing, *self.subjects)
        self.subjects = [*self.subjects, thing] if listed else [thing]
        self.spots.append(Spot(thing, at, self.clause, self.part))

    def _read_unknown(self, phrase: Phrase) -> None:
        """Something that is not known; what is said of it goes with it."""
        if self.negated:
            self.negated = False
            return
        if self._describes_place(phrase.end):
            return
        for word in phrase.attributes:
            self.tell(f"“{word.text}” is said of something that is not known")
        here = self.spots and self.spots[-1].clause == self.clause
        if phrase.begun or not here:
            self.subjects = [None]
            self.spots.append(Spot(None, phrase.end - 1, self.clause, self.part))

    def _describes_place(self, at: int) -> bool:
        """Whether an adjective here belongs to a place: a beautiful beach, 美丽的沙滩."""
        rest = [word.part for word in self.text[at:] if word.part not in ("of", "filler", "size", "colour")]
        return rest[:1] == ["place"]

    def _read_without_noun(self, phrase: Phrase) -> None:
        """猫两只; two cats, one black and one white; a cat, a black one."""
        if not self.things or phrase.count is None:
            self.waiting += phrase.attributes
            return
        last = self.things[-1]
        if phrase.count == 0:
            if self.text[phrase.end - 1].part == "measure":
                self._deny(last)
            else:
                self.tell("“0” after a noun was not read as its number")
            return
        if not phrase.attributes and last.count is None:
            last.count = phrase.count
            self._adjust_number(last, phrase)
            return
        roles = [word.part for word in phrase.attributes] or ["colour", "action"]
        untold = [t for t in self.things if t.object == last.object and not any(getattr(t, r, None) for r in roles)]
        self._split(untold[-1] if untold else last, phrase)

    def _deny(self, thing: Thing) -> None:
        """Take back a thing whose number is told to be none: 猫0只."""
        self.unlike.add(("object", thing.object, thing.object))
        self.things.remove(thing)
        self.spots = [spot for spot in self.spots if spot.thing is not thing]
        self.subjects = [subject for subject in self.subjects if subject is not thing]
        if self.head is thing:
            self.head = None

    def _split(self, whole: Thing, phrase: Phrase) -> None:
        """Some of a group are told apart from the others."""
        count = min(phrase.count or 1, whole.number)
        if count == whole.number or whole.number == 1:
            part = whole
        else:
            part = replace(whole, count=count)
            whole.count = whole.number - count
            self.things.append(part)
        for word in phrase.attributes:
            self._give(part, word)
        self._enter(part, phrase.end - 1)

    # ── predicates ──

    def _is_predicate(self, at: int) -> bool:
        """Whether an attribute is said of the noun before it."""
        word = self.text[at]
        if not self.spots:
            return False
        here = self.spots[-1].part == self.part
        if word.finite or (self.copula and here):
            return True
        if word.part in ("action", "rest") and here:
            if word.chinese:
                return not self._of_following(at)
            if not self._follows_link(at):
                return True
        return not self.phrases.leads_to_noun(at + 1, WITHIN | {"action", "rest"}) and not self._of_following(at)

    def _of_following(self, at: int) -> bool:
        """跳跃的猫 and 坐着一只狗: the noun comes after its verb."""
        if not self.text[at].chinese:
            return False
        rest = [word for word in self.text[at + 1 :] if word.part != "filler"]
        if not rest:
            return False
        if rest[0].part == "of":
            return self.phrases.leads_to_noun(at + 1, WITHIN | {"count", "about", "a", "action"})
        begins = rest[0].part in ("count", "about", "a") and self.phrases.leads_to_noun(
            at + 1, WITHIN | {"count", "about", "a"}
        )
        before = self.text[at - 1].part if at else "stop"
        return begins and before in ("place", "relation", "side", "beside", "at", "stop", "filler", "have")

    def _follows_link(self, at: int) -> bool:
        return self.text[at - 1].part in ("relation", "beside", "unshown", "on", "and", "have") if at else False

    def _read_predicate(self, word: Word) -> None:
        if word.finite:
            self._return_to_subject()
        subjects = self._find_subjects(word)
        if None in subjects:
            self.tell(f"“{word.text}” is said of something that is not known")
        for thing in subjects:
            if thing is None:
                continue
            if self.negated:
                if word.part != "rest":
                    self.unlike.add((word.part, word.key, thing.object))
            else:
                self._give(thing, word)
        self.negated = False

    def _find_subjects(self, word: Word) -> list[Thing | None]:
        subjects = self.subjects
        if subjects == [None] and self.spots[-1].clause != self.clause:
            known = [spot.thing for spot in self.spots if spot.thing is not None]
            subjects = [known[-1]] if known else subjects
        if len(subjects) < 2 or self.everybody:
            return subjects
        if word.part not in ("action", "rest"):
            return subjects if word.chinese and self.copula else subjects[-1:]
        clauses = {spot.clause for spot in self.spots[-len(subjects) :]}
        if len(clauses) > 1:
            # Tags: red cat, blue dog, small, running.
            return subjects[-1:]
        # "A cat and a dog running" may be said of both or of the dog. It is taken for both, but for those that do
        # something else already, and those that the painter has never seen do it.
        others = [
            thing
            for thing in subjects[:-1]
            if thing is not None
            and thing.object in ANIMALS
            and thing.action is None
            and (thing.object, word.key) not in UNSEEN_ACTIONS
        ]
        return [*others, subjects[-1]]

    def _give(self, thing: Thing, word: Word) -> None:
        if word.part == "rest":
            return
        role = cast("Attribute", word.part)
        had = getattr(thing, role)
        if had is None:
            setattr(thing, role, word.key)
        elif had != word.key:
            self.tell(f"one thing has one {role}: “{word.text}” is not drawn")

    # ── other words ──

    def _read_other(self, at: int, word: Word) -> None:
        match word.part:
            case "the" if word.text in ("that", "those") and self._verb_follows(at):
                self._read_pronoun(at, word)
            case "place":
                self._read_place(word)
            case "relation" | "side":
                self._read_relation(at, word)
            case "beside" | "unshown":
                self._read_unshown(at, word)
            case "on" | "at":
                self._read_preposition(at, word)
            case "be" | "are":
                self._return_to_subject()
                self.copula = bool(self.spots) and self.spots[-1].clause == self.clause
                self.everybody |= word.part == "are"
            case "both":
                self.everybody = True
            case "not":
                self.negated = True
            case "it" | "they":
                self._read_pronoun(at, word)
            case "frame":
                self._set_frame_aside()
            case "and" | "have":
                if word.text in _CHOICE and not self.negated:
                    self.tell(f"“{word.text}” leaves a choice: all of it is drawn")
                if self.phrases.leads_to_noun(at + 1, WITHIN | {"a", "the", "count", "about"}):
                    self.head = None
                self._begin_part()
                self.joined = self._after_noun(at)
            case "stop":
                self._begin_part()
                self.clause += 1
                self.everybody = self.negated = False
                self.head = None
                self.joined = word.text in (",", "、") and self._after_noun(at)

    def _read_place(self, word: Word) -> None:
        if self.negated:
            self.unlike.add(("place", word.key, ""))
            self.negated = False
        elif self.place not in (None, word.key):
            self.tell(f"a picture has one place: “{word.text}” is not drawn")
        else:
            self.place = word.key
        self.copula = False

    def _read_relation(self, at: int, word: Word) -> None:
        if self._place_follows(at):
            return
        side = word.part == "side"
        after = self.text[at + 1] if at + 1 < len(self.text) else None
        if side and after is not None and after.text == "of" and not self._frame_follows(at):
            side = False
        if word.chinese:
            before = [w.part for w in self.text[:at] if w.part != "of"]
            side = before[-1:] == [] or before[-1] not in ("object", "kind", "it", "they")
        if self.negated:
            self.tell(f"that something is not “{word.text}” cannot be drawn")
            self.negated = False
            return
        self.links.append(Link(word.key, at, self.clause, self.part, side))
        self._leave_subject(word)

    def _frame_follows(self, at: int) -> bool:
        rest = [word.part for word in self.text[at + 1 :] if word.part not in ("of", "the", "filler")]
        return rest[:1] == ["frame"]

    def _place_follows(self, at: int) -> bool:
        """Whether a place follows, so that nothing is related to another thing: over the lake, under water."""
        if self.text[at].chinese:
            return False
        rest = [
            word.part
            for word in self.text[at + 1 :]
            if word.part not in ("the", "a", "of", "filler", "size", "unknown")
        ]
        return rest[:1] == ["place"]

    def _read_unshown(self, at: int, word: Word) -> None:
        if word.part == "unshown" and not self._place_follows(at):
            self.tell(f"“{word.text}” cannot be drawn: things stand left or right of, above or below each other")
        self._leave_subject(word)

    def _leave_subject(self, relation: Word) -> None:
        """A relation leads from its subject to another thing."""
        here = self.spots and self.spots[-1].clause == self.clause
        if here and not relation.chinese and relation.part != "side":
            self.head = self.head or self.spots[-1].thing
        self._begin_part()

    def _verb_follows(self, at: int) -> bool:
        after = self.text[at + 1] if at + 1 < len(self.text) else None
        return after is not None and (after.part in ("be", "are", "not", "have") or after.finite)

    def _return_to_subject(self) -> None:
        """The verb of a clause goes back to its subject."""
        if self.head is not None:
            self.subjects, self.head = [self.head], None

    def _read_preposition(self, at: int, word: Word) -> None:
        before = self.text[at - 1].part if at else "stop"
        if word.chinese:
            if before in ("object", "kind") and word.text == "上":
                self._read_relation(at, replace(word, part="relation", key="above"))
            elif before in ("object", "kind") and word.text in _INSIDE:
                self._read_unshown(at, replace(word, part="unshown"))
            return
        noun = self.phrases.leads_to_noun(at + 1, {"a", "the", "count", "colour", "size", "unknown", "shade", "filler"})
        if noun and self.spots and self.spots[-1].clause == self.clause:
            key: Part = "relation" if word.part == "on" else "unshown"
            self._read_other(at, replace(word, part=key, key="above"))

    def _read_pronoun(self, at: int, word: Word) -> None:
        known = [spot.thing for spot in self.spots if spot.thing is not None]
        if not known:
            return
        if word.part == "they":
            self.everybody = True
            if len(self.subjects) < 2:
                self.subjects = list(self.things)
        elif self.subjects[-1:] != [None] or self.spots[-1].clause != self.clause:
            self.subjects = [known[-1]]
        self.head = None
        self.spots.append(Spot(known[-1], at, self.clause, self.part))

    def _set_frame_aside(self) -> None:
        for word in self.waiting:
            self.tell(f"“{word.text}” is said of the picture, and not drawn")
        self.waiting = []

    def _begin_part(self) -> None:
        self.part += 1
        self.joined = self.copula = False

    def _after_noun(self, at: int) -> bool:
        """Whether this word joins what comes to the noun just before it, as in a list."""
        return at > 0 and bool(self.spots) and self.spots[-1].at == at - 1

    def tell(self, warning: str) -> None:
        """Add a warning, once."""
        self.warnings.setdefault(warning)
