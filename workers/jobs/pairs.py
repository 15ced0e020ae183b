"""The report on a pair: which single statements of a text are found in an image.

Two models say so: the recognize model, which has not read the text, names what it sees, and the match model scores each
statement alone, as a short text. They are independent but for the built-in pair, of which the latter asks the former
too. Only the words of the drawn world are understood as statements (`workers.scenes.lexicon`); the others are listed,
and nothing is claimed about them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tuwen.engine import MatchItem, Output, RecognizeItem
from tuwen.jobs import Claim, Language, MatchResult, PairReport, RecognizedObject, RecognizeResult
from workers.jobs.stages import Stages
from workers.scenes.grammar import OPPOSITE, Mention, say
from workers.scenes.lexicon import PLACES_EN, PLACES_ZH
from workers.scenes.parsing import SceneGraph, parse

_CHINESE = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a text about one thing, or about the scene."""

    role: str
    value: str
    of: str | None
    text: str


def report(item: MatchItem) -> Stages[MatchResult]:
    """Score the whole pair, with a report on its statements."""
    graph = parse(item.text)
    said = list(statements(graph, "zh" if _CHINESE.search(item.text) else "en"))
    whole, seen, *parts = yield [
        item,
        RecognizeItem(item.pixels),
        *(MatchItem(item.pixels, statement.text, item.model) for statement in said),
    ]
    if not isinstance(whole, MatchResult) or not isinstance(seen, RecognizeResult):
        raise TypeError("an engine answered with another engine's result")
    claims = tuple(_claim(statement, seen, part) for statement, part in zip(said, parts, strict=True))
    found = PairReport(claims=claims, unknown_words=graph.unknown, out_of_domain=seen.out_of_domain)
    return whole.model_copy(update={"report": found})


def statements(graph: SceneGraph, language: Language) -> Iterator[Statement]:
    """Yield the single statements of a text, each put into words of `language`."""

    def words(mention: Mention, place: str | None = None) -> str:
        return say([mention], place, None, language, "short")

    for thing in graph.things:
        name = thing.object
        yield Statement("object", name, None, words(Mention(name)))
        if thing.count > 1:
            yield Statement("count", str(thing.count), name, words(Mention(name, thing.count)))
        if thing.colour:
            yield Statement("attribute", thing.colour, name, words(Mention(name, colour=thing.colour)))
        if thing.size:
            yield Statement("attribute", thing.size, name, words(Mention(name, size=thing.size)))
        if thing.action:
            yield Statement("action", thing.action, name, words(Mention(name, action=thing.action)))
    if graph.place:
        places = PLACES_ZH if language == "zh" else PLACES_EN
        anything = graph.things[0].object if graph.things else None
        text = words(Mention(anything), graph.place) if anything else places[graph.place][0]
        yield Statement("scene", graph.place, None, text)
    if graph.relation and len(graph.things) == 2:
        first, second = (Mention(thing.object) for thing in graph.things)
        text = say([first, second], None, graph.relation, language, "short")
        yield Statement("relation", graph.relation, first.object, text)


def _claim(statement: Statement, seen: RecognizeResult, scored: Output) -> Claim:
    if not isinstance(scored, MatchResult):
        raise TypeError(f"a match engine answered with {type(scored).__name__}")
    confidence = _confidence(statement, seen)
    return Claim.model_validate(
        {
            "role": statement.role,
            "value": statement.value,
            "of": statement.of,
            "text": statement.text,
            "found": confidence is not None,
            "confidence": confidence or 0.0,
            "score": scored.score,
        }
    )


def _confidence(statement: Statement, seen: RecognizeResult) -> float | None:
    """Return how sure the recognize model is of a statement; None where it found nothing of it."""
    if statement.role == "scene":
        return seen.confidence if seen.scene == statement.value else None
    if statement.role == "relation":
        return seen.confidence if _related(statement, seen) else None
    name = statement.value if statement.role == "object" else statement.of
    bearers = [each.confidence for each in seen.objects if each.name == name and _bears(each, statement)]
    return max(bearers, default=None)


def _bears(seen: RecognizedObject, statement: Statement) -> bool:
    match statement.role:
        case "count":
            return str(seen.count) == statement.value
        case "attribute":
            return statement.value in seen.attributes.values()
        case "action":
            return seen.action == statement.value
    return True


def _related(statement: Statement, seen: RecognizeResult) -> bool:
    if seen.relation is None or len(seen.objects) != 2:
        return False
    said = statement.value if seen.objects[0].name == statement.of else OPPOSITE[statement.value]
    return seen.relation == said
