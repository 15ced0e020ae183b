"""How much captions resemble other captions: BLEU-4 and CIDEr-D. Secondary here, since set phrases inflate both."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import sacrebleu

from tuwen.jobs import Language

_WORD = re.compile(r"[a-z]+|[0-9]+|[\u4e00-\u9fff]")
LONGEST = 4
SIGMA = 6.0
Grams = Counter[tuple[str, ...]]


def bleu_4(texts: Sequence[str], references: Sequence[Sequence[str]], language: Language) -> float:
    """Corpus BLEU (Post, 2018) in [0, 1]; Chinese by characters."""
    columns = [list(column) for column in zip_longest(*references)]
    tokenize = "zh" if language == "zh" else "13a"
    bleu = sacrebleu.corpus_bleu(texts, columns, tokenize=tokenize, lowercase=True)
    return bleu.score / 100


def cider_d(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D (Vedantam et al., 2015), in [0, 10]: likeness of n-grams weighted by how rare they are among pictures.

    Words are English words or Chinese characters; English ones are not stemmed.
    """
    known = [[_grams(reference) for reference in each] for each in references]
    frequency: Grams = Counter()
    for each in known:
        frequency.update(set().union(*each))
    rarity = math.log(max(2, len(known)))

    def weigh(grams: Grams) -> list[dict[tuple[str, ...], float]]:
        sizes: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
        for gram, count in grams.items():
            sizes[len(gram) - 1][gram] = count * (rarity - math.log(max(1, frequency[gram])))
        return sizes

    scores = []
    for text, others in zip(texts, known, strict=True):
        mine = _grams(text)
        likenesses = []
        for other in others:
            longer = _length(mine) - _length(other)
            likenesses.append(_likeness(weigh(mine), weigh(other), longer))
        scores.append(np.mean(likenesses))
    return float(10 * np.mean(scores))


def _grams(text: str) -> Grams:
    words = _WORD.findall(text.lower())
    grams: Grams = Counter()
    for length in range(1, LONGEST + 1):
        for start in range(len(words) - length + 1):
            grams[tuple(words[start : start + length])] += 1
    return grams


def _length(grams: Grams) -> int:
    return sum(count for gram, count in grams.items() if len(gram) == 1)


def _likeness(
    mine: list[dict[tuple[str, ...], float]],
    other: list[dict[tuple[str, ...], float]],
    longer: int,
) -> float:
    """Cosine by n-gram size, counts clipped to the reference's, less for another length."""
    values = []
    for a, b in zip(mine, other, strict=True):
        norm = _norm(a) * _norm(b)
        if not norm:
            values.append(0.0)
            continue
        dot = sum(min(weight, b[gram]) * b[gram] for gram, weight in a.items() if gram in b)
        penalty = math.exp(-(longer**2) / (2 * SIGMA**2))
        values.append(dot / norm * penalty)
    return sum(values) / LONGEST


def _norm(weights: dict[tuple[str, ...], float]) -> float:
    return math.sqrt(sum(weight * weight for weight in weights.values()))
