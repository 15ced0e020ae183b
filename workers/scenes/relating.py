"""Relations of prompts: which of two things is left of, right of, above or below the other.

English puts the relation between them (A left of B) or before both (left of B is A); Chinese after both (A在B左边) or
between (B的左边有A). Sides of the picture name one thing each: A on the left, 左边是A.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from workers.scenes.wording import Word

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spot(Generic[T]):
    """A mention. `thing` is None where it is something that is not known."""

    thing: T | None
    at: int
    """Index of its noun among the words."""
    clause: int
    part: int


@dataclass(frozen=True, slots=True)
class Link:
    """A relation as it stands in the text."""

    key: str
    at: int
    clause: int
    part: int
    side: bool
    """Whether it names a side of the picture, and not of another thing."""


def find_related(
    links: Sequence[Link], spots: Sequence[Spot[T]], text: Sequence[Word]
) -> Iterator[tuple[Link, T | None, T | None]]:
    """Yield each relation with its subject and what that is related to; sides have a subject only."""
    for link in links:
        if link.side:
            subject = _on_side(link, spots, text)
            yield link, subject.thing if subject else None, None
        else:
            first, second = (_chinese if text[link.at].chinese else _english)(link, spots, text)
            yield link, first.thing if first else None, second.thing if second else None


def _split_around(link: Link, spots: Sequence[Spot[T]]) -> tuple[list[Spot[T]], list[Spot[T]]]:
    """The mentions in the relation's own clause, before and after it."""
    here = [spot for spot in spots if spot.clause == link.clause]
    return [s for s in here if s.at < link.at], [s for s in here if s.at > link.at]


def _split_clauses(link: Link, spots: Sequence[Spot[T]]) -> tuple[list[Spot[T]], list[Spot[T]]]:
    """The mentions in clauses before and after the relation's own."""
    return [s for s in spots if s.clause < link.clause], [s for s in spots if s.clause > link.clause]


_Pair = tuple[Spot[T] | None, Spot[T] | None]


def _english(link: Link, spots: Sequence[Spot[T]], text: Sequence[Word]) -> _Pair[T]:  # noqa: ARG001
    before, after = _split_around(link, spots)
    earlier, later = _split_clauses(link, spots)
    if not after:
        return None, None
    if before:
        return before[-1], after[0]
    other = after[0]
    earlier = [spot for spot in earlier if spot.thing is not other.thing]
    different = [spot for spot in (*after[1:], *later) if spot.thing is not other.thing]
    if different and (len(after) > 1 or not earlier):
        return different[0], other
    return (earlier[-1] if earlier else None), other


def _chinese(link: Link, spots: Sequence[Spot[T]], text: Sequence[Word]) -> _Pair[T]:
    before, after = _split_around(link, spots)
    earlier, later = _split_clauses(link, spots)
    if not before:
        return None, None
    other = before[-1]
    firsts = [spot for spot in before[:-1] if spot.thing is not other.thing]
    stands = bool(firsts) and any(word.text in _STANDS for word in text[firsts[-1].at : other.at])
    if firsts and (stands or not after):
        return firsts[-1], other
    if after:
        return after[0], other
    follows = [spot for spot in later if spot.thing is not other.thing]
    if follows:
        return follows[0], other
    return (earlier[-1] if earlier else None), other


_STANDS = frozenset({"在", "位于", "正在", "停在", "坐在", "站在", "坐落于", "处于", "在于", "蹲在", "睡在"})


def _on_side(link: Link, spots: Sequence[Spot[T]], text: Sequence[Word]) -> Spot[T] | None:
    before, after = _split_around(link, spots)
    _, later = _split_clauses(link, spots)
    chinese = text[link.at].chinese
    if chinese and before and link.at and text[link.at - 1].text in _STANDS:
        return before[-1]
    mine = [spot for spot in before if spot.part == link.part]
    if mine and not chinese:
        return mine[-1]
    if after:
        return after[0]
    if before:
        return before[-1]
    return later[0] if later else None
