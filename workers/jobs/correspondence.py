"""Selection among candidates: one model makes them, another scores them, and the best becomes the result.

The match model of the same worker selects; so it must not be the judge that reports how good the selection is (see
`MatchResult` on its scores).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tuwen.engine import DescribeItem, GenerateItem, MatchItem, Output, Picture
from tuwen.jobs import DescribeResult, GenerateInput, MatchResult, RankedCaption
from workers.jobs.stages import Stages

SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One candidate for a prompt; `picture` is None once it will not be kept."""

    seed: int
    picture: Picture | None
    score: float | None


@dataclass(frozen=True, slots=True)
class GeneratedImages:
    """All candidates for a prompt, the best first; the first one has its picture."""

    images: tuple[GeneratedImage, ...]
    fell_short: bool = False


def generate(item: GenerateItem, wanted: GenerateInput) -> Stages[GeneratedImages]:
    """Generate rounds of candidates until one reaches `wanted.min_score`; one round where that is not set.

    Candidate k of round r has the seed `item.seed` + r · candidates + k, so that each can be made again alone.
    """
    images: list[GeneratedImage] = []
    for number in range(wanted.rounds if wanted.min_score is not None else 1):
        first = item.seed + number * wanted.candidates
        items = [replace(item, seed=(first + k) % SEEDS) for k in range(wanted.candidates)]
        pictures = [_picture(answer) for answer in (yield items)]
        answers = yield [MatchItem(picture.pixels, item.prompt) for picture in pictures]
        images += [
            GeneratedImage(each.seed, picture, _score(answer))
            for each, picture, answer in zip(items, pictures, answers, strict=True)
        ]
        images.sort(key=lambda image: -(image.score or 0.0))  # stable: the first made of equal ones
        if wanted.keep == "best":
            images[1:] = [replace(image, picture=None) for image in images[1:]]
        if _reached(images[0], wanted):
            return GeneratedImages(tuple(images))
    return GeneratedImages(tuple(images), fell_short=True)


def _reached(best: GeneratedImage, wanted: GenerateInput) -> bool:
    return wanted.min_score is None or (best.score or 0.0) >= wanted.min_score


def describe(item: DescribeItem, count: int) -> Stages[DescribeResult]:
    """Write the most probable caption and `count` - 1 sampled ones; the one that fits the image best is the text."""
    wanted = [item, *(replace(item, seed=seed) for seed in range(1, count))]
    written = [answer for answer in (yield wanted) if isinstance(answer, DescribeResult)]
    texts = {answer.text: answer for answer in reversed(written) if answer.text}
    different = list(texts.values())[::-1]
    if not different:
        return written[0]
    answers = yield [MatchItem(item.pixels, each.text) for each in different]
    scored = [(_score(answer), each) for answer, each in zip(answers, different, strict=True)]
    scored.sort(key=lambda pair: -pair[0])
    captions = tuple(RankedCaption(text=each.text, confidence=each.confidence, score=score) for score, each in scored)
    score, best = scored[0]
    return best.model_copy(update={"score": score, "captions": captions})


def _picture(answer: Output) -> Picture:
    if not isinstance(answer, Picture):
        raise TypeError(f"a generate engine answered with {type(answer).__name__}")
    return answer


def _score(answer: Output) -> float:
    if not isinstance(answer, MatchResult):
        raise TypeError(f"a match engine answered with {type(answer).__name__}")
    return answer.score
