"""The four engines under test, asked as the worker asks them: whole batches of what users send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tuwen.engine import DescribeItem, GenerateItem, Item, MatchItem, Picture, Pixels, RecognizeItem
from tuwen.errors import EngineError, TuwenError
from tuwen.jobs import DescribeResult, Language, MatchResult, RecognizeResult, Style
from workers.engines.builtin import BuiltinDescriber, BuiltinGenerator, BuiltinMatcher, BuiltinRecognizer
from workers.engines.placement import UnobservedRun

Built = BuiltinGenerator | BuiltinDescriber | BuiltinRecognizer | BuiltinMatcher
Result = TypeVar("Result", Picture, DescribeResult, MatchResult, RecognizeResult)


@dataclass(frozen=True, slots=True)
class Contestants:
    """The built-in engines, one of each kind."""

    generator: BuiltinGenerator
    describer: BuiltinDescriber
    recognizer: BuiltinRecognizer
    matcher: BuiltinMatcher

    @classmethod
    def load(cls, device: str) -> Contestants:
        """The engines with the shipped weights, on a device."""
        return cls(
            BuiltinGenerator(device),
            BuiltinDescriber(device),
            BuiltinRecognizer(device),
            BuiltinMatcher(device),
        )

    def revisions(self) -> dict[str, str]:
        """The revision of each engine, by its kind."""
        engines = (self.generator, self.describer, self.recognizer, self.matcher)
        return {engine.kind.value: engine.revision for engine in engines}

    def draw(self, texts: Sequence[str], seeds: Sequence[int]) -> list[Pixels]:
        """A picture for each text and seed, uint8 RGB (height, width, 3)."""
        items = [GenerateItem(text, seed) for text, seed in zip(texts, seeds, strict=True)]
        return [picture.pixels for picture in _answers(self.generator, items, Picture)]

    def describe(self, pictures: Sequence[Pixels], language: Language, style: Style = "short") -> list[DescribeResult]:
        """A caption of each picture."""
        return _answers(
            self.describer,
            [DescribeItem(each, language, style) for each in pictures],
            DescribeResult,
        )

    def recognize(self, pictures: Sequence[Pixels]) -> list[RecognizeResult]:
        """What the recogniser finds in each picture."""
        return _answers(self.recognizer, [RecognizeItem(each) for each in pictures], RecognizeResult)

    def match(self, pictures: Sequence[Pixels], texts: Sequence[str]) -> list[float]:
        """The score of each picture with its text."""
        items = [MatchItem(picture, text) for picture, text in zip(pictures, texts, strict=True)]
        return [result.score for result in _answers(self.matcher, items, MatchResult)]


def _answers(engine: Built, items: Sequence[Item], kind: type[Result]) -> list[Result]:
    answers: list[Result] = []
    size = engine.batch_limit(items[0]) if items else 1
    for start in range(0, len(items), size):
        for answer in engine.run(items[start : start + size], UnobservedRun()):
            if isinstance(answer, TuwenError):
                raise answer
            if not isinstance(answer, kind):
                raise EngineError(f"{engine.revision} answered with {type(answer).__name__}, not {kind.__name__}")
            answers.append(answer)
    return answers
