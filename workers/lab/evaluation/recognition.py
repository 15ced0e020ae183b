"""Whether what is recognised is there: accuracy, precision, recall, macro-F1 and confusion of each attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from tuwen.jobs import RecognizedObject, RecognizeResult
from workers.lab.evaluation.intervals import Figure, figure, mean
from workers.lab.evaluation.sighting import STANDING
from workers.lab.training.measures import calibration_error
from workers.scenes.grammar import Scene, Thing
from workers.scenes.lexicon import KEYS

Attribute = Literal["object", "colour", "action", "size", "count", "place", "relation"]
CLASSES: dict[Attribute, tuple[str, ...]] = {
    "object": KEYS["object"],
    "colour": KEYS["colour"],
    "action": (STANDING, *KEYS["action"]),
    "size": KEYS["size"],
    "count": KEYS["count"],
    "place": KEYS["place"],
    "relation": KEYS["relation"],
}
NOTHING = "–"
"""Stands for what was not found where there was something, and for what was found where there was nothing."""
BINS = 10


@dataclass(slots=True)
class Answers:
    """Pairs of true and recognised values of one attribute, and the picture of each."""

    true: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    picture: list[int] = field(default_factory=list)

    def add(self, true: str, found: str, picture: int) -> None:
        """Adds the true and the recognised value of one picture."""
        self.true.append(true)
        self.found.append(found)
        self.picture.append(picture)


def figures(scenes: Sequence[Scene], results: Sequence[RecognizeResult]) -> dict[str, Any]:
    """All figures of recognition, with confusions and reliability."""
    answers = compare(scenes, results)
    exact = [right(scene, result) for scene, result in zip(scenes, results, strict=True)]
    confidence = np.array([result.confidence for result in results])
    return {
        "macro_f1": asdict(overall(answers, len(scenes))),
        "attributes": {name: _attribute(each, CLASSES[name], len(scenes)) for name, each in answers.items()},
        "exact": asdict(mean(exact)),
        "calibration_error": calibration_error(confidence, exact),
        "reliability": reliability(confidence, np.array(exact)),
    }


def compare(scenes: Sequence[Scene], results: Sequence[RecognizeResult]) -> dict[Attribute, Answers]:
    """What is so beside what was recognised. An object that is missed takes all its attributes with it."""
    answers: dict[Attribute, Answers] = {name: Answers() for name in CLASSES}
    for i, (scene, result) in enumerate(zip(scenes, results, strict=True)):
        scene = scene.canonical()
        found = {each.name: each for each in result.objects}
        for thing in scene.things:
            other = found.pop(thing.object, None)
            answers["object"].add(thing.object, thing.object if other else NOTHING, i)
            recognised = _values(other) if other else {}
            for role, value in _truth(thing).items():
                answers[role].add(value, recognised.get(role, NOTHING), i)
        for name in found:
            answers["object"].add(NOTHING, name, i)
        answers["place"].add(scene.place, result.scene or NOTHING, i)
        if scene.relation:
            same = [each.name for each in result.objects] == [thing.object for thing in scene.things]
            answers["relation"].add(scene.relation, (same and result.relation) or NOTHING, i)
    return answers


def _truth(thing: Thing) -> dict[Attribute, str]:
    action = thing.action or STANDING
    return {
        "colour": thing.colour,
        "action": action,
        "size": thing.size,
        "count": str(thing.count),
    }


def _values(found: RecognizedObject) -> dict[Attribute, str]:
    return {
        "colour": found.attributes.get("colour", NOTHING),
        "action": found.action or STANDING,
        "size": found.attributes.get("size", NOTHING),
        "count": str(found.count),
    }


def right(scene: Scene, result: RecognizeResult) -> bool:
    """Whether nothing at all is wrong."""
    return all(each.true == each.found for each in compare([scene], [result]).values())


def _hits(answers: Answers, classes: Sequence[str], pictures: int) -> NDArray[np.float64]:
    """True positives, then answers, then truths of each class, by picture: (pictures, 3 · classes)."""
    rows = np.zeros((pictures, 3, len(classes)))
    index = {value: k for k, value in enumerate(classes)}
    for true, found, picture in zip(answers.true, answers.found, answers.picture, strict=True):
        if true == found:
            rows[picture, 0, index[true]] += 1
        if found in index:
            rows[picture, 1, index[found]] += 1
        if true in index:
            rows[picture, 2, index[true]] += 1
    return rows.reshape(pictures, -1)


def macro_f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return macro-F1 of `_hits` summed over pictures, (…, 3 · classes); a class that does not occur does not count."""
    hits, said, true = np.split(sums, 3, axis=-1)
    occurs = (said + true) > 0
    each = 2 * hits / np.maximum(said + true, 1)
    result: NDArray[np.float64] = each.sum(-1) / np.maximum(occurs.sum(-1), 1)
    return result


def overall(answers: dict[Attribute, Answers], pictures: int) -> Figure:
    """The mean of all attributes' macro-F1."""
    tables = [_hits(each, CLASSES[name], pictures) for name, each in answers.items()]
    edges = np.cumsum([table.shape[1] for table in tables])[:-1]

    def mean_f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = np.split(sums, edges, -1)
        result: NDArray[np.float64] = np.mean([macro_f1(part) for part in parts], 0)
        return result

    return figure(np.hstack(tables), mean_f1)


def _attribute(answers: Answers, classes: Sequence[str], pictures: int) -> dict[str, Any]:
    precision, recall, f1, support = precision_recall_fscore_support(
        answers.true, answers.found, labels=list(classes), zero_division=0.0
    )
    labels = [*classes, NOTHING]
    hits = [true == found for true, found in zip(answers.true, answers.found, strict=True)]
    return {
        "accuracy": float(np.mean(hits)),
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "macro_f1": asdict(figure(_hits(answers, classes, pictures), macro_f1)),
        "classes": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "count": int(n)}
            for name, p, r, f, n in zip(classes, precision, recall, f1, support, strict=True)
        },
        "labels": labels,
        "confusion": confusion_matrix(answers.true, answers.found, labels=labels).tolist(),
    }


def reliability(confidence: NDArray[np.float64], exact: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Return for each bin of confidence that is not empty: how sure, how often right, how many."""
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        inside = which == number
        if inside.any():
            found = {
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(exact[inside].mean()),
                "count": int(inside.sum()),
            }
            bins.append(found)
    return bins
