"""Training on the drawn world: pictures drawn, model trained, judged on the test splits and stored."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from workers.lab.training import describer, distributed, generator, matcher, recognizer
from workers.lab.training.data import Pictures, pictures
from workers.lab.training.folds import cross_validate
from workers.lab.training.loop import Outcome
from workers.lab.training.runs import Options, is_stored, make_recipe, ready, store
from workers.scenes.grammar import Split

RENDERED = 2000
"""Pictures that are rendered of each split but the training one."""


@dataclass(frozen=True, slots=True)
class Trainable:
    """How one of the models is made, trained and judged."""

    make: Callable[[Any], nn.Module]
    train: Callable[..., Outcome]
    report: Callable[[Any, dict[Split, Pictures]], dict[str, float]]
    calibrate: Callable[[Any, Pictures], None] = lambda _model, _data: None


TRAINABLE = {
    "recognizer": Trainable(
        recognizer.make_recognizer, recognizer.train_recognizer, recognizer.report, recognizer.calibrate
    ),
    "describer": Trainable(describer.make_describer, describer.train_describer, describer.report, describer.calibrate),
    "matcher": Trainable(matcher.make_matcher, matcher.train_matcher, matcher.report, matcher.calibrate),
    "generator": Trainable(generator.make_generator, generator.train_generator, generator.report),
}


def train_drawn(options: Options) -> bool:
    """Whether the run is finished; its weights are judged and stored then."""

    def draw(split: Split, count: int) -> Pictures:
        # Judging on fewer takes the first of these, so that they need not be rendered again.
        rendered = count if split == "train" else max(count, RENDERED)
        processes = max(1, (os.cpu_count() or 1) - 1)
        data = pictures(split, rendered, seed=options.data_seed, cache=options.cache, processes=processes)
        return Pictures(data.scenes[:count], data.pixels[:count])

    kind, recipe = TRAINABLE[options.model], make_recipe(options)

    def train(data: Pictures, checked: Pictures, run: Path, minutes: float | None) -> Outcome:
        return kind.train(data, checked, run, recipe, minutes=minutes, device=options.device)

    with distributed.first_goes_first():
        data, checked = draw("train", options.pictures or 20_000), draw("validation", options.checked)
    if options.folds:
        return cross_validate(data, options.folds, options.out, train, seed=recipe.seed, minutes=options.minutes)
    outcome = train(data, checked, options.out, options.minutes)
    if outcome.finished and distributed.first() and not is_stored(options):
        model = ready(kind.make(recipe), options)
        kind.calibrate(model, draw("validation", options.judged))
        splits: dict[Split, Pictures] = {"seen": draw("seen", options.judged), "unseen": draw("unseen", options.judged)}
        told = {"data_seed": options.data_seed, "pictures": len(data), "judged": options.judged}
        store(options, model, kind.report(model, splits), told)
    return outcome.finished
