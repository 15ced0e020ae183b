"""Jobs of several engine calls: stages, candidates, reranking, and the report on a pair."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from tuwen.engine import DescribeItem, GenerateItem, Item, MatchItem, Output, Picture, RecognizeItem
from tuwen.errors import EngineError, OutOfMemory
from tuwen.jobs import DescribeResult, GenerateInput, MatchResult, RecognizedObject, RecognizeResult
from workers.jobs.correspondence import describe, generate
from workers.jobs.pairs import report
from workers.jobs.stages import Stages, run_stages

GREY = np.full((4, 4, 3), 128, np.uint8)


class Engines:
    """Answers when told to; a picture's red is its seed, and so, in hundredths, is its score."""

    def __init__(self) -> None:
        self.asked: list[tuple[Item, int, Future[Output]]] = []

    def submit(self, item: Item, number: int) -> Future[Output]:
        future: Future[Output] = Future()
        self.asked.append((item, number, future))
        return future

    def answer(self) -> list[Item]:
        """Answer all that was asked, the last first; what it was."""
        asked, self.asked = self.asked, []
        for item, _, future in reversed(asked):
            future.set_result(self._output(item))
        return [item for item, _, _ in asked]

    def _output(self, item: Item) -> Output:
        match item:
            case GenerateItem():
                return Picture(np.full((4, 4, 3), item.seed, np.uint8))
            case DescribeItem():
                text = "a cat" if item.seed in (None, 3) else "a cat " * item.seed
                return DescribeResult(text=text.strip(), language="en", confidence=0.5)
            case MatchItem():
                red = int(item.pixels[0, 0, 0])
                return MatchResult(score=red / 100 if red < 100 else len(item.text) / 100)
            case RecognizeItem():
                cat = RecognizedObject(
                    name="cat", name_zh="猫", confidence=0.9, attributes={"colour": "black"}, action="jumping"
                )
                dog = RecognizedObject(
                    name="dog", name_zh="狗", confidence=0.8, attributes={"colour": "white"}, count=1
                )
                return RecognizeResult(objects=(dog, cat), scene="grass", relation="left", confidence=0.7)

    def finish(self, stages: Stages[Any]) -> Any:
        future = run_stages(stages, self.submit)
        while not future.done():
            self.answer()
        return future.result()


@pytest.fixture
def engines() -> Engines:
    return Engines()


class TestStages:
    def test_a_stage_starts_when_the_one_before_is_answered(self, engines: Engines) -> None:
        def stages() -> Stages[list[float]]:
            pictures = yield [GenerateItem("", seed) for seed in (1, 2)]
            answers = yield [MatchItem(picture.pixels, "") for picture in pictures if isinstance(picture, Picture)]
            return [answer.score for answer in answers if isinstance(answer, MatchResult)]

        future = run_stages(stages(), engines.submit)
        assert [number for _, number, _ in engines.asked] == [0, 1]
        assert [type(item) for item in engines.answer()] == [GenerateItem] * 2
        assert not future.done()
        assert [type(item) for item in engines.answer()] == [MatchItem] * 2
        assert future.result() == [0.01, 0.02]

    def test_the_first_failure_is_the_outcome_and_the_rest_is_called_off(self, engines: Engines) -> None:
        future = run_stages(_two_at_once(), engines.submit)
        (_, _, first), (_, _, second) = engines.asked
        first.set_exception(OutOfMemory("too big"))
        assert isinstance(future.exception(), OutOfMemory)
        assert second.cancelled()

    def test_cancelling_calls_off_what_is_under_way(self, engines: Engines) -> None:
        future = run_stages(_two_at_once(), engines.submit)
        future.cancel()
        assert all(call.cancelled() for _, _, call in engines.asked)

    def test_a_mistake_between_two_stages_is_told(self, engines: Engines) -> None:
        def stages() -> Generator[Sequence[Item], list[Output], None]:
            yield [GenerateItem("", 1)]
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            engines.finish(stages())

    def test_what_is_answered_at_once_may_be(self) -> None:
        def submit(_item: Item, _number: int) -> Future[Output]:
            future: Future[Output] = Future()
            future.set_exception(EngineError("stopping"))
            return future

        assert isinstance(run_stages(_two_at_once(), submit).exception(), EngineError)


def _two_at_once() -> Stages[None]:
    yield [GenerateItem("", 1), GenerateItem("", 2)]


class TestCandidates:
    def wanted(self, **fields: Any) -> GenerateInput:
        return GenerateInput(prompt="a cat", **fields)

    def test_the_best_comes_first_and_alone_has_its_picture(self, engines: Engines) -> None:
        drawn = engines.finish(generate(GenerateItem("a cat", 7), self.wanted(candidates=3)))
        assert [(image.seed, image.score) for image in drawn.images] == [(9, 0.09), (8, 0.08), (7, 0.07)]
        assert [image.picture is not None for image in drawn.images] == [True, False, False]
        assert not drawn.fell_short

    def test_all_are_kept_when_asked(self, engines: Engines) -> None:
        drawn = engines.finish(generate(GenerateItem("a cat", 7), self.wanted(candidates=3, keep="all")))
        assert [int(image.picture.pixels[0, 0, 0]) for image in drawn.images] == [9, 8, 7]

    def test_rounds_go_on_until_one_is_good_enough(self, engines: Engines) -> None:
        wanted = self.wanted(candidates=2, min_score=0.1, rounds=4)
        drawn = engines.finish(generate(GenerateItem("a cat", 7), wanted))
        assert sorted(image.seed for image in drawn.images) == [7, 8, 9, 10]
        assert drawn.images[0].score == 0.1
        assert not drawn.fell_short

    def test_rounds_come_to_an_end(self, engines: Engines) -> None:
        wanted = self.wanted(min_score=0.9, rounds=3)
        drawn = engines.finish(generate(GenerateItem("a cat", 7), wanted))
        assert [image.seed for image in drawn.images] == [9, 8, 7]
        assert drawn.fell_short

    def test_seeds_wrap_around(self, engines: Engines) -> None:
        future = run_stages(generate(GenerateItem("a cat", 2**63 - 1), self.wanted(candidates=2)), engines.submit)
        assert [item.seed for item, _, _ in engines.asked if isinstance(item, GenerateItem)] == [2**63 - 1, 0]
        future.cancel()


class TestRerank:
    def test_the_text_is_the_one_that_fits_best(self, engines: Engines) -> None:
        result = engines.finish(describe(DescribeItem(GREY), 5))
        texts = [caption.text for caption in result.captions]
        assert texts == [" ".join(["a cat"] * count) for count in (4, 2, 1)]
        assert result.text == texts[0]
        assert result.score == max(caption.score for caption in result.captions)

    def test_the_first_caption_is_the_most_probable(self, engines: Engines) -> None:
        run_stages(describe(DescribeItem(GREY), 3), engines.submit)
        assert [item.seed for item, _, _ in engines.asked if isinstance(item, DescribeItem)] == [None, 1, 2]


class TestPairs:
    @pytest.mark.parametrize(
        ("text", "found", "missing", "unknown"),
        [
            (
                "a black cat jumping on the grass",
                {("object", "cat"), ("attribute", "black"), ("action", "jumping"), ("scene", "grass")},
                set(),
                (),
            ),
            (
                "一只白色的猫在雪地上奔跑",
                {("object", "cat")},
                {("attribute", "white"), ("action", "running"), ("scene", "snow")},
                (),
            ),
            (
                "a white dog to the left of a cat",
                {("object", "dog"), ("object", "cat"), ("attribute", "white"), ("relation", "left")},
                set(),
                (),
            ),
            ("a cat to the left of a dog", {("object", "cat"), ("object", "dog")}, {("relation", "left")}, ()),
            ("two cats and a zeppelin", {("object", "cat")}, {("count", "2")}, ("zeppelin",)),
        ],
    )
    def test_statements_are_judged_one_by_one(
        self,
        engines: Engines,
        text: str,
        found: set[tuple[str, str]],
        missing: set[tuple[str, str]],
        unknown: tuple[str, ...],
    ) -> None:
        result = engines.finish(report(MatchItem(GREY, text)))
        claims = result.report.claims
        assert {(claim.role, claim.value) for claim in claims if claim.found} == found
        assert {(claim.role, claim.value) for claim in claims if not claim.found} == missing
        assert result.report.unknown_words == unknown
        assert result.score == len(text) / 100
        for claim in claims:
            assert claim.score == len(claim.text) / 100
            assert (claim.confidence > 0) == claim.found

    def test_attributes_are_bound_to_their_objects(self, engines: Engines) -> None:
        result = engines.finish(report(MatchItem(GREY, "a white cat and a black dog")))
        assert {
            (claim.of, claim.value): claim.found for claim in result.report.claims if claim.role == "attribute"
        } == {
            ("cat", "white"): False,
            ("dog", "black"): False,
        }

    def test_statements_are_in_the_language_of_the_text(self, engines: Engines) -> None:
        result = engines.finish(report(MatchItem(GREY, "一只黑色的猫在草地上跳跃")))
        assert [claim.text for claim in result.report.claims] == [
            "一只猫",
            "一只黑色的猫",
            "一只猫在跳跃",
            "一只猫在草地上",
        ]

    def test_a_text_that_says_nothing_known(self, engines: Engines) -> None:
        result = engines.finish(report(MatchItem(GREY, "quarterly figures")))
        assert result.report.claims == ()
        assert result.report.unknown_words == ("quarterly", "figures")
