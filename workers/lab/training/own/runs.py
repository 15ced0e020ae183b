"""Training on own pictures: source read, model trained, judged on the test part and stored with its words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tuwen.engine import Pixels
from tuwen.jobs import Language
from workers.lab.training import describer as drawn_describer
from workers.lab.training import distributed
from workers.lab.training import recognizer as drawn_recognizer
from workers.lab.training.folds import cross_validate
from workers.lab.training.frozen import start_from
from workers.lab.training.loop import Outcome
from workers.lab.training.own import describer, generator, matcher, recognizer
from workers.lab.training.own.data import Examples, Wanted, own_data
from workers.lab.training.runs import SHIPPED, Options, is_stored, make_recipe, ready, store
from workers.models.describer import Describer
from workers.models.text import Vocabulary


@dataclass(frozen=True, slots=True)
class Trainable:
    """How one of the models is made, trained and judged on own data."""

    make: Callable[..., nn.Module]
    train: Callable[..., Outcome]
    report: Callable[[Any, dict[str, Examples]], dict[str, float]]
    calibrate: Callable[[Any, Any], None] = lambda _model, _data: None
    labels: bool = False
    """Whether it learns what is to be seen, not what is said."""
    reads: bool = True
    """Whether it has to do with words, and so a vocabulary."""


TRAINABLE = {
    "recognizer": Trainable(
        recognizer.make_recognizer,
        recognizer.train_recognizer,
        recognizer.report,
        drawn_recognizer.calibrate,
        labels=True,
        reads=False,
    ),
    "describer": Trainable(
        describer.make_describer, describer.train_describer, describer.report, drawn_describer.calibrate
    ),
    "matcher": Trainable(matcher.make_matcher, matcher.train_matcher, matcher.report, matcher.calibrate),
    "generator": Trainable(generator.make_generator, generator.train_generator, generator.report, labels=True),
}


def train_own(options: Options) -> bool:
    """Whether the run is finished; its weights are judged and stored then."""
    kind, recipe = TRAINABLE[options.model], make_recipe(options)
    wanted = Wanted(
        options.data, options.missing, not kind.labels, options.pictures, options.root, options.image_column,
        options.caption_column,
    )  # fmt: skip
    with distributed.first_goes_first():
        data = own_data(wanted, options.out / "data", partial(described, device=options.device))
    words = Vocabulary.of(data.of("train").texts)
    reading = {"words": words} if kind.reads else {}
    seeing = {"labels": data.labels} if kind.labels else {}

    def train(learnt: Examples, checked: Examples, run: Path, minutes: float | None) -> Outcome:
        return kind.train(learnt, checked, run, recipe, **reading, minutes=minutes, device=options.device)

    if options.folds:
        return cross_validate(data, options.folds, options.out, train, seed=recipe.seed, minutes=options.minutes)
    outcome = train(data.of("train"), data.of("validation"), options.out, options.minutes)
    if outcome.finished and distributed.first() and not is_stored(options):
        model = ready(kind.make(recipe, **reading, **seeing), options)
        kind.calibrate(model, data.of("validation"))
        figures = kind.report(model, {"test": data.of("test")})
        counts = json.loads((options.out / "data/counts.json").read_text())
        store(options, model, figures, {"data": counts, "vocabulary": words.own if kind.reads else (), **seeing})
    return outcome.finished


def described(pixels: Pixels, language: Language, device: str) -> Sequence[str]:
    """Captions by the shipped describer."""
    return [text for text, _ in drawn_describer.describe(_shipped_describer(device), pixels, language, "detailed")]


@cache
def _shipped_describer(device: str) -> Describer:
    weights = SHIPPED / "describer.safetensors"
    model = Describer(words=Vocabulary.beside(weights))
    start_from(model, weights)
    return model.to(torch.device(device)).eval()
