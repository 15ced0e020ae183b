"""What a training command does with any model and any data: recipes, folders, and the weights it stores in the end."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tuwen.errors import ConfigurationError
from workers.lab.training import distributed
from workers.lab.training.checkpoint import save_weights
from workers.lab.training.describer import DescriberRecipe
from workers.lab.training.folds import Data, cross_validate
from workers.lab.training.generator import GeneratorRecipe
from workers.lab.training.loop import Outcome, command
from workers.lab.training.matcher import MatcherRecipe
from workers.lab.training.options import TrainOptions
from workers.lab.training.recipe import Recipe
from workers.lab.training.recognizer import RecognizerRecipe
from workers.lab.training.trainable import Trainable

log = logging.getLogger("workers.lab.training")

RECIPES: Mapping[str, type[Recipe]] = {
    "recognizer": RecognizerRecipe,
    "describer": DescriberRecipe,
    "matcher": MatcherRecipe,
    "generator": GeneratorRecipe,
}

IN_FULL: Mapping[str, Mapping[str, Any]] = {
    "recognizer": {"steps": 12_000},
    "describer": {"steps": 6000},
    "matcher": {"steps": 12_000},
    "generator": {},
}
"""What `all` changes in the recipes, whose own lengths are for trying things out."""

SHIPPED = Path(__file__).parents[2] / "weights"
"""Folder in which the built-in engines look for weights."""


def make_recipe(options: TrainOptions) -> Any:
    """The model's recipe with what the command line says.

    Raises:
        ConfigurationError: the model's recipe has no field for an option that was given.
    """
    kind = RECIPES[options.model]
    known = {field.name for field in fields(kind)}
    unknown = sorted(options.recipe.keys() - known)
    if unknown:
        raise ConfigurationError(f"the {options.model} has no use for --{unknown[0]}", field=unknown[0])
    return kind(**{"parts": distributed.size(), **options.recipe})


def options_of_each(options: TrainOptions) -> Iterator[TrainOptions]:
    """The options of every model that is to be trained, in their order."""
    if options.model != "all":
        yield options
        return
    runs = options.out or Path("runs")
    given = {name: value for name, value in options.recipe.items() if name != "trunk"}
    for model, in_full in IN_FULL.items():
        recipe = {**in_full, **given}
        if model in ("describer", "matcher"):
            # They take over the encoder of the recogniser that was trained first.
            recognizer = replace(options, model="recognizer", out=runs / "recognizer")
            recipe["trunk"] = str(shipped_path(recognizer))
        yield replace(options, model=model, out=runs / model, recipe=recipe)


def shipped_path(options: TrainOptions) -> Path:
    """Return the path that the finished weights of this model go to."""
    if options.ship:
        return SHIPPED / f"{options.model}.safetensors"
    return options.folder / "shipped.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Material(Generic[Data]):
    """What a run learns from and what its model is measured on."""

    train: Data
    validation: Callable[[], Data]
    folded: Data
    """What cross-validation cuts into parts."""
    calibration: Callable[[], Data]
    tests: Callable[[], Mapping[str, Data]]
    """Splits that the model has never seen, by their names."""
    facts: Mapping[str, Any]
    """What is written beside the weights: where the data came from."""


def complete(options: TrainOptions, recipe: Any, trainable: Trainable[Data], material: Material[Data]) -> bool:
    """Trains a model, or continues its run, then measures and stores its weights.

    Returns:
        Whether the run is finished; False where its time budget ended first.
    """

    def train(data: Data, validation: Data, run: Path, minutes: float | None) -> Outcome:
        return trainable.train(data, validation, run, recipe, minutes=minutes, device=options.device)

    if options.folds:
        return cross_validate(
            material.folded,
            options.folds,
            options.folder,
            train,
            seed=recipe.seed,
            minutes=options.minutes,
        )
    outcome = train(material.train, material.validation(), options.folder, options.minutes)
    if outcome.finished and distributed.is_first() and not is_stored(options):
        model = load_kept(trainable.build(recipe), options)
        trainable.calibrate(model, material.calibration())
        metrics = trainable.report(model, material.tests())
        store(options, model, metrics, material.facts)
    return outcome.finished


def is_stored(options: TrainOptions) -> bool:
    """Whether the run's kept weights were measured and stored before."""
    target = shipped_path(options)
    kept = options.folder / "weights.safetensors"
    return target.exists() and target.stat().st_mtime >= kept.stat().st_mtime


def load_kept(model: nn.Module, options: TrainOptions) -> nn.Module:
    """The model with the run's kept weights, on the run's device and ready to be measured.

    The weights are rounded to half precision, as they will be stored: the figures are those of what is shipped.
    """
    kept = load_file(options.folder / "weights.safetensors")
    model.load_state_dict({name: _rounded(weight) for name, weight in kept.items()})
    return model.to(torch.device(options.device)).eval()


def _rounded(weight: Tensor) -> Tensor:
    return weight.half().float() if weight.is_floating_point() else weight


def store(
    options: TrainOptions,
    model: nn.Module,
    metrics: Mapping[str, float],
    more: Mapping[str, Any],
) -> Path:
    """Writes the weights of a finished run in half precision, and all that is known of them beside it.

    Returns:
        The file with the weights.
    """
    facts = json.loads((options.folder / "weights.json").read_text())
    facts["command"] = command()
    facts |= more
    facts["metrics"] |= metrics
    target = shipped_path(options)
    save_weights(target, model.state_dict(), facts, half=True)
    log.info("%s\n%s", target, json.dumps(facts["metrics"], indent=2))
    return target
