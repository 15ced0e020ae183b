"""Whether captions are true and complete: read back as scene graphs and held against the truth, fact by fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from tuwen.engine import Pixels
from tuwen.jobs import DescribeResult, Language, Style
from workers.lab.evaluation.captions import bleu_4, cider_d
from workers.lab.evaluation.contestants import Contestants
from workers.lab.evaluation.intervals import Figure, figure, mean
from workers.lab.training.data import Pictures
from workers.lab.training.measures import calibration_error
from workers.scenes.grammar import ANIMALS, Mention, Scene, caption, say
from workers.scenes.lexicon import KEYS
from workers.scenes.parsing import Fact, graph, parse

LANGUAGES: tuple[Language, ...] = get_args(Language)
STYLES: tuple[Style, ...] = get_args(Style)
KINDS = {
    "object": ("object",),
    "attribute binding": ("colour", "size"),
    "count": ("count",),
    "action": ("action",),
    "scene": ("place",),
    "relation": ("relation",),
}
"""Facts as the tables name them."""
REFERENCES = 5
"""Captions in other words that BLEU and CIDEr compare with."""


def facts(scene: Scene, style: Style) -> frozenset[Fact]:
    """What a caption of the scene should say; short ones leave out sizes."""
    return graph(scene).facts(sizes=style != "short")


def f1_rows(true: Sequence[frozenset[Fact]], said: Sequence[frozenset[Fact]]) -> list[tuple[int, int, int]]:
    """Count for each picture the facts that are right, said, true."""
    return [(len(t & s), len(s), len(t)) for t, s in zip(true, said, strict=True)]


def precision_recall_f1(rows: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """Precision, recall and F1 of facts, pooled over all pictures."""
    return {
        "precision": asdict(figure(rows, lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1))),
        "recall": asdict(figure(rows, lambda sums: sums[..., 0] / np.maximum(sums[..., 2], 1))),
        "f1": asdict(f1(rows)),
    }


def f1(rows: Sequence[tuple[int, int, int]]) -> Figure:
    """F1 of facts, pooled over all pictures."""
    return figure(rows, lambda sums: 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1))


Captions = dict[Language, dict[Style, list[DescribeResult]]]


def describe(pictures: Sequence[Pixels], contestants: Contestants) -> Captions:
    """What the describer says of each picture, in each language and style."""
    captions: Captions = {}
    for language in LANGUAGES:
        captions[language] = {style: contestants.describe(pictures, language, style) for style in STYLES}
    return captions


def figures(scenes: Sequence[Scene], captions: Captions) -> dict[str, Any]:
    """How true, complete and alike the captions of each language and style are."""
    result: dict[str, Any] = {}
    for language, styles in captions.items():
        result[language] = {style: _captions(scenes, found, language, style) for style, found in styles.items()}
    return result


def _captions(scenes: Sequence[Scene], found: list[DescribeResult], language: Language, style: Style) -> dict[str, Any]:
    true = [facts(scene, style) for scene in scenes]
    said = [parse(result.text).facts() for result in found]
    exact = [t == s for t, s in zip(true, said, strict=True)]
    rng = np.random.default_rng(17)
    references = [[caption(scene, language, style, rng) for _ in range(REFERENCES)] for scene in scenes]
    texts = [result.text for result in found]
    kinds = {}
    for name, roles in KINDS.items():
        rows = f1_rows(_only(true, roles), _only(said, roles))
        kinds[name] = precision_recall_f1(rows)
    return {
        **precision_recall_f1(f1_rows(true, said)),
        "exact": asdict(mean(exact)),
        "kinds": kinds,
        **_hallucinations(true, said),
        "calibration_error": calibration_error([result.confidence for result in found], exact),
        "cider_d": cider_d(texts, references),
        "bleu_4": bleu_4(texts, references, language),
    }


def _only(each: Sequence[frozenset[Fact]], roles: Sequence[str]) -> list[frozenset[Fact]]:
    return [frozenset(fact for fact in known if fact[0] in roles) for known in each]


def _hallucinations(true: Sequence[frozenset[Fact]], said: Sequence[frozenset[Fact]]) -> dict[str, Any]:
    """CHAIR (Rohrbach et al., 2018): objects that are not there, per mention and per caption."""
    objects = f1_rows(_only(true, ["object"]), _only(said, ["object"]))
    invented = [(mentioned - right, mentioned) for right, mentioned, _ in objects]
    return {
        "chair_i": asdict(figure(invented, lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1))),
        "chair_s": asdict(mean([wrong > 0 for wrong, _ in invented])),
    }


def pope(data: Pictures, captions: Captions, contestants: Contestants) -> dict[str, Any]:
    """POPE (Li et al., 2023): is there such an object? Half of the questions are about what is there.

    The match engine answers, yes from a half upwards, and so does the describer by what it mentions. `random`
    asks about any absent object, `adversarial` about one of the same sort: an animal for an animal.
    """
    return {language: _pope(data, styles["short"], contestants, language) for language, styles in captions.items()}


def _pope(
    data: Pictures,
    captions: Sequence[DescribeResult],
    contestants: Contestants,
    language: Language,
) -> dict[str, Any]:
    mentioned = [{thing.object for thing in parse(each.text).things} for each in captions]
    result: dict[str, Any] = {}
    for sampling in ("random", "adversarial"):
        pictures: list[Pixels] = []
        texts: list[str] = []
        named: list[bool] = []
        for i, scene in enumerate(data.scenes):
            for object_ in _questions(scene, sampling, i):
                pictures.append(data.pixels[i])
                texts.append(say([Mention(object_)], None, None, language, "short"))
                named.append(object_ in mentioned[i])
        scores = contestants.match(pictures, texts)
        truth = [True, False] * len(data)
        result[sampling] = {
            "match": _yes_no(truth, [score >= 0.5 for score in scores]),
            "describe": _yes_no(truth, named),
        }
    return result


def _questions(scene: Scene, sampling: str, i: int) -> tuple[str, str]:
    """An object that is there and one that is not."""
    rng = np.random.default_rng([29, i])
    there = scene.things[int(rng.integers(len(scene.things)))].object
    present = {thing.object for thing in scene.things}
    absent = [object_ for object_ in KEYS["object"] if object_ not in present]
    alike = [object_ for object_ in absent if (object_ in ANIMALS) == (there in ANIMALS)]
    options = alike if sampling == "adversarial" and alike else absent
    return there, options[int(rng.integers(len(options)))]


def _yes_no(truth: Sequence[bool], answers: Sequence[bool]) -> dict[str, Any]:
    pairs = list(zip(truth, answers, strict=True))
    right = sum(true and answer for true, answer in pairs)
    yes = sum(answers)
    true = sum(truth)
    return {
        "accuracy": asdict(mean([true == answer for true, answer in pairs])),
        "precision": right / max(yes, 1),
        "recall": right / max(true, 1),
        "f1": 2 * right / max(yes + true, 1),
        "yes_ratio": yes / len(truth),
    }
