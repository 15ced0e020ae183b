"""Words that people use around the drawn world's own: numbers, politeness, negation, sides, and looser names.

They stand in `phrases.toml`, by what they do in a sentence.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Literal, cast

Part = Literal[
    "object",
    "colour",
    "action",
    "size",
    "count",
    "place",
    "relation",
    "kind",  # a more special name: an eagle is drawn as a bird
    "rest",  # standing still
    "side",  # a side of the picture
    "about",  # a number that is not exact
    "a",  # begins a noun phrase, of one new thing
    "the",  # begins a noun phrase
    "measure",
    "of",
    "at",
    "on",
    "have",
    "be",
    "are",
    "and",
    "stop",
    "not",
    "beside",
    "unshown",  # a relation that is not among the four
    "both",
    "it",
    "they",
    "frame",  # the picture itself
    "shade",
    "filler",
    "unknown",
]
"""What a word does in a sentence."""

ANY = "any"
"""Key of parts that have one meaning."""


@cache
def other_words() -> frozenset[str]:
    """Common English words that are a letter from one of ours and are meant as they stand: sheep, coat, back."""
    return frozenset(files("workers.scenes").joinpath("other_words.txt").read_text(encoding="utf-8").split())


def phrases() -> Iterator[tuple[Part, str, str]]:
    """Yield each form with its part and key; the key is "" where the part has one meaning."""
    listed = tomllib.loads(files("workers.scenes").joinpath("phrases.toml").read_text(encoding="utf-8"))
    for part, keys in listed.items():
        for key, forms in keys.items():
            for form in forms.split():
                yield cast("Part", part), "" if key == ANY or part == "unknown" else key, form.replace("_", " ")
