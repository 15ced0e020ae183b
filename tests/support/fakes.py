"""Engines that fake the GPU and nothing else: `TUWEN_GENERATE=import:tests.support.fakes:NullGenerator` and so on.

The four `Null…` engines answer at once, without torch. Each also does a trick when an item asks for one: a prompt
or text asks by its first word, an image by being `painted(trick)`, a plain colour that survives PNG and resizing.

    sleep [SECONDS]   takes that long (an image: 0.5) and reports 10 steps; stops when all items are cancelled
    hang              never answers and reports no progress
    crash             kills its own process with SIGKILL
    exit              leaves its process with exit code 3
    fail              raises an unexpected error, for the whole batch
    nan               answers with not-a-number, for the whole batch
    reject            fails alone: an `EngineError` in its place, the others are answered
    oom               does not fit into memory, not even alone
    murder            kills its worker, and so itself, with SIGKILL
    lose              loses the device's context, as after a CUDA device-side assertion

A prompt that begins with `revise` is drawn as what follows, with the seed as a number before it, and says so.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tuwen import errors
from tuwen.engine import (
    DescribeItem,
    GenerateItem,
    Item,
    MatchItem,
    Output,
    Picture,
    RecognizeItem,
    Run,
)
from tuwen.errors import EngineError, TuwenError
from tuwen.jobs import DescribeResult, Kind, MatchResult, RecognizedObject, RecognizeResult

Pixels = np.ndarray[Any, Any]

COLOURS: dict[str, tuple[int, int, int]] = {
    "sleep": (250, 10, 10),
    "hang": (10, 250, 10),
    "crash": (10, 10, 250),
    "exit": (250, 250, 10),
    "fail": (250, 10, 250),
    "nan": (10, 250, 250),
    "reject": (130, 10, 10),
    "oom": (10, 130, 10),
    "lose": (10, 10, 130),
    "murder": (130, 130, 10),
}


def painted(trick: str, size: int = 8) -> Pixels:
    """An image, shape (size, size, 3), that asks a fake engine for `trick`; any other word gives an innocent grey."""
    return np.full((size, size, 3), COLOURS.get(trick, (128, 128, 128)), np.uint8)


class NullGenerator:
    """Answers with 8×8 pixels of a colour derived from the seed."""

    kind = Kind.GENERATE
    revision = "null-generator"
    limit = 16

    def __init__(self, device: str):
        self.device = device

    def example(self) -> Item:
        """Return a job that the engine can do."""
        return GenerateItem("a black cat", seed=0)

    def batch_limit(self, item: Item) -> int:
        """Return the limit of the class."""
        return self.limit

    def run(self, items: Sequence[Item], run: Run) -> list[Output | TuwenError]:
        """Answer every item, after the tricks that concern the whole batch."""
        return perform(items, run, self.answer)

    def answer(self, item: Any) -> Output:
        """Answer one item."""
        if _trick(item) == "nan":
            return Picture(np.full((8, 8, 3), np.nan, np.float32))
        pixels = np.full((8, 8, 3), seed_colour(item.seed), np.uint8)
        first, _, rest = item.prompt.partition(" ")
        return Picture(pixels, (), ("revised",), f"{item.seed} {rest}") if first == "revise" else Picture(pixels)


class NullDescriber(NullGenerator):
    """Answers with the mean colour of the image."""

    kind = Kind.DESCRIBE
    revision = "null-describer"

    def example(self) -> Item:
        return DescribeItem(painted("nothing"))

    def answer(self, item: Any) -> Output:
        confidence = float("nan") if _trick(item) == "nan" else 1.0
        mean = "-".join(str(round(value)) for value in item.pixels.mean((0, 1)))
        text = f"颜色 {mean}" if item.language == "zh" else f"the colour {mean}"
        return DescribeResult(text=text, language=item.language, confidence=confidence)


class PickyDescriber(NullDescriber):
    """A describer that is surer the redder an image is, and finds very blue images out of domain."""

    def answer(self, item: Any) -> Output:
        red, _, blue = item.pixels.mean((0, 1))
        text = "一个方块" if item.language == "zh" else "a square"
        confidence = float(red) / 255
        return DescribeResult(text=text, language=item.language, confidence=confidence, out_of_domain=bool(blue > 200))


class NullRecognizer(NullGenerator):
    """Sees a cat in every image."""

    kind = Kind.RECOGNIZE
    revision = "null-recognizer"

    def example(self) -> Item:
        return RecognizeItem(painted("nothing"))

    def answer(self, item: Any) -> Output:
        confidence = float("nan") if _trick(item) == "nan" else 1.0
        cat = RecognizedObject(name="cat", name_zh="猫", confidence=confidence, attributes={"color": "black"})
        return RecognizeResult(objects=(cat,), confidence=confidence)


class NullMatcher(NullGenerator):
    """Scores by the length of the text."""

    kind = Kind.MATCH
    revision = "null-matcher"

    def example(self) -> Item:
        return MatchItem(painted("nothing"), "a cat")

    def answer(self, item: Any) -> Output:
        return MatchResult(score=float("nan") if _trick(item) == "nan" else 1 / (1 + len(item.text)))


class SlowGenerator(NullGenerator):
    """Takes 0.2 s a batch of at most 16, as a GPU might: waiting, not computing."""

    def run(self, items: Sequence[Item], run: Run) -> list[Output | TuwenError]:
        if _doze(0.2, len(items), run, steps=2):  # shorter sleeps take much longer than they say
            return [EngineError("cancelled") for _ in items]
        return super().run(items, run)


class SlowDescriber(NullDescriber):
    """Takes 0.2 s a batch of at most 16, as a GPU might: waiting, not computing."""

    def run(self, items: Sequence[Item], run: Run) -> list[Output | TuwenError]:
        if _doze(0.2, len(items), run, steps=2):
            return [EngineError("cancelled") for _ in items]
        return super().run(items, run)


class MemoryHungryGenerator(NullGenerator):
    """Promises batches of 16 and runs out of memory above 3, with torch's own error."""

    fits = 3

    def run(self, items: Sequence[Item], run: Run) -> list[Output | TuwenError]:
        if len(items) > self.fits:
            from torch import OutOfMemoryError  # what a real engine would meet

            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().run(items, run)


class Puppet(NullGenerator):
    """Runs the prompt as Python in its process, then answers with what that left in `answers`, if anything.

    `guidance`, where given, is the limit of a batch.
    """

    def batch_limit(self, item: Item) -> int:
        return int(item.guidance) if isinstance(item, GenerateItem) and item.guidance is not None else self.limit

    def example(self) -> Item:
        return GenerateItem("pass", seed=0)

    def run(self, items: Sequence[Item], run: Run) -> list[Output | TuwenError]:
        scope: dict[str, Any] = {"__name__": __name__, "errors": errors, "items": items, "run": run}
        exec(items[0].prompt, scope)  # type: ignore[union-attr]
        return scope["answers"] if "answers" in scope else [self.answer(item) for item in items]


class BrokenAtStart(NullGenerator):
    """Cannot load its weights."""

    def __init__(self, device: str):
        raise FileNotFoundError(f"no weights for {device}")


class BrokenAtWarmUp(NullGenerator):
    """Loads, and fails on its own example."""

    def example(self) -> Item:
        return GenerateItem("fail", seed=0)


class DeadAtStart(NullGenerator):
    """Takes its process down while loading."""

    def __init__(self, device: str):
        os.kill(os.getpid(), signal.SIGKILL)


class SleepyAtStart(NullGenerator):
    """An engine that is still loading when every timeout has run out."""

    def __init__(self, device: str):
        time.sleep(3600)


def refuse(subject: str | Pixels) -> str | None:
    """A safety filter that refuses one word and black pictures."""
    if isinstance(subject, str):
        return "it says forbidden" if "forbidden" in subject else None
    return "it is too dark" if subject.max() == 0 else None


def seed_colour(seed: int) -> tuple[int, int, int]:
    """The colour of `NullGenerator`'s picture for `seed`."""
    return (seed * 37 % 256, seed * 91 % 256, seed * 151 % 256)


def perform(items: Sequence[Item], run: Run, answer: Any) -> list[Output | TuwenError]:
    """Do the tricks that concern the whole batch, then answer item by item."""
    tricks = {_trick(item): item for item in items}
    if "crash" in tricks:
        os.kill(os.getpid(), signal.SIGKILL)
    if "murder" in tricks:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)
    if "exit" in tricks:
        os._exit(3)
    if "hang" in tricks:
        time.sleep(3600)
    if "oom" in tricks:
        raise MemoryError
    if "fail" in tricks:
        raise ZeroDivisionError("secret of the engine")
    if "lose" in tricks:
        raise RuntimeError("CUDA error: device-side assert triggered")
    if "sleep" in tricks and _doze(max(_seconds(item) for item in items), len(items), run):
        return [EngineError("cancelled") for _ in items]
    return [EngineError("rejected, as asked") if _trick(item) == "reject" else answer(item) for item in items]


def _trick(item: Any) -> str | None:
    words = _words(item)
    if words and words[0] in COLOURS:
        return words[0]
    if isinstance(item, GenerateItem):
        return None
    colour = tuple(item.pixels[0, 0].tolist())
    return next((trick for trick, marked in COLOURS.items() if marked == colour), None)


def _words(item: Any) -> list[str]:
    return (getattr(item, "prompt", "") or getattr(item, "text", "")).split()


def _seconds(item: Any) -> float:
    if _trick(item) != "sleep":
        return 0.0
    words = _words(item)
    return float(words[1]) if len(words) > 1 else 0.5


def _doze(seconds: float, count: int, run: Run, steps: int = 10) -> bool:
    """Sleep in some steps and report each; returns True as soon as every item is cancelled."""
    for step in range(1, steps + 1):
        if all(run.cancelled(index) for index in range(count)):
            return True
        time.sleep(seconds / steps)
        run.progress(step, steps)
    return False
