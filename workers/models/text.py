"""Text as numbers: characters of Chinese, words of English.

The vocabulary is taken from the grammar. Models that learnt from own data know more words: those are kept beside their
weights, and come after the grammar's, so that a model can be trained further on own data.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tuwen.jobs import Language, Style
from workers.scenes.lexicon import BY_ROLE, CONCEPT, PLACES_EN, PLACES_ZH
from workers.scenes.parsing import parse, tokens

LENGTH = 64
"""Longest text in tokens, the end token included; the longest caption has fewer."""

PAD, UNKNOWN, END = 0, 1, 2
_BEGIN = tuple(f"<{language} {style}>" for language in ("zh", "en") for style in ("short", "detailed", "tags"))
_GLUE_ZH = "的在正有和着，。画面图中一"
_GLUE_EN = "a an is are there and , . in this picture here"
_SYMBOL = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]")


def symbols_of(text: str) -> list[str]:
    """What of a text becomes a token: words of letters, single digits and other characters."""
    return _SYMBOL.findall(text.lower())


class Vocabulary:
    """Token ids; the same in every process, because they are derived from the lexicon and `own` alone."""

    def __init__(self, own: Sequence[str] = ()) -> None:
        self.own = tuple(own)
        """Symbols besides those of the grammar, in the order of their ids."""
        written = [_GLUE_ZH, _GLUE_EN]
        for concepts in BY_ROLE.values():
            for c in concepts:
                written += [*c.zh, *c.en, *c.plural, *c.measure, c.zh_short, c.key]
        for phrases in (*PLACES_ZH.values(), *PLACES_EN.values()):
            written += phrases
        symbols = sorted({symbol for text in written for symbol in symbols_of(text)})
        self.symbols = ("<pad>", "<unk>", "<end>", *_BEGIN, *symbols, *self.own)
        self.ids = {symbol: i for i, symbol in enumerate(self.symbols)}

    @classmethod
    def of(cls, texts: Iterable[str], *, least: int = 2, most: int = 20_000) -> Self:
        """The grammar's words and those that occur at least so often in `texts`, the `most` frequent ones."""
        counted = Counter(symbol for text in texts for symbol in symbols_of(text))
        known = vocabulary().ids
        own = [(-count, symbol) for symbol, count in counted.items() if symbol not in known and count >= least]
        return cls([symbol for _, symbol in sorted(own)[:most]])

    @classmethod
    def beside(cls, weights: Path) -> Self:
        """The vocabulary of the model with these stored weights."""
        facts = weights.with_suffix(".json")
        return cls(json.loads(facts.read_text()).get("vocabulary", ()) if facts.exists() else ())

    def __len__(self) -> int:
        return len(self.symbols)

    def learnt(self, word: str) -> bool:
        """Whether own data taught this word, which the grammar does not have."""
        found = symbols_of(word)
        return all(symbol in self.ids for symbol in found) and any(symbol in self.own for symbol in found)

    def begin(self, language: Language, style: Style) -> int:
        """The token that tells the describer which language and style to write."""
        return self.ids[f"<{language} {style}>"]

    def encode(self, text: str) -> list[int]:
        """Ids of the text's tokens and the end token; words that only people use are put as the grammar puts them."""
        ids = [self.ids.get(symbol, UNKNOWN) for symbol in symbols_of(text)]
        if UNKNOWN in ids:
            ids = [self.ids.get(symbol, UNKNOWN) for symbol in symbols_of(self._reword(text))]
        return [*ids[: LENGTH - 1], END]

    def _reword(self, text: str) -> str:
        words = []
        for token in tokens(text):
            foreign = any(symbol not in self.ids for symbol in symbols_of(token.text))
            if not foreign or not token.key:
                words.append(token.text)
            else:
                words.append(CONCEPT[token.key].en[0] if token.text.isascii() else CONCEPT[token.key].zh[0])
        return " ".join(words)

    def encode_batch(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Padded ids, shape (texts, longest)."""
        rows = [self.encode(text) for text in texts]
        ids = np.full((len(rows), max(map(len, rows), default=1)), PAD, dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the end token. Chinese is written without spaces."""
        words: list[str] = []
        for i in ids:
            if i == END:
                break
            if i > END + len(_BEGIN):
                words.append(self.symbols[i])
        if any("\u4e00" <= word <= "\u9fff" for word in words):
            return "".join(words)
        return re.sub(r" ([,.])", r"\1", " ".join(words))


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary()


def unknown_words(text: str, words: Vocabulary | None = None) -> tuple[str, ...]:
    """Words that name nothing in the drawn world and were not learnt from own data, in the order of the text."""
    words = words or vocabulary()
    return tuple(word for word in parse(text).unknown if not words.learnt(word))
