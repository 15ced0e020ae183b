"""What a training command has to do whatever it learns from: its recipe, its folders, what is kept in the end."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tuwen.errors import ConfigurationError
from workers.lab.training import distributed
from workers.lab.training.checkpoint import save_weights
from workers.lab.training.describer import DescriberRecipe
from workers.lab.training.generator import GeneratorRecipe
from workers.lab.training.matcher import MatcherRecipe
from workers.lab.training.recipe import Recipe
from workers.lab.training.recognizer import RecognizerRecipe

log = logging.getLogger("workers.lab.training")

Options = argparse.Namespace
"""The command line of `workers.lab.training.__main__`, with `device` and `out` as they are used."""

RECIPES: Mapping[str, type[Recipe]] = {
    "recognizer": RecognizerRecipe,
    "describer": DescriberRecipe,
    "matcher": MatcherRecipe,
    "generator": GeneratorRecipe,
}
"""In the order in which they are trained: describer and matcher take over the recogniser's encoder."""

IN_FULL: Mapping[str, Mapping[str, Any]] = {
    "recognizer": {"steps": 12_000},
    "describer": {"steps": 6000},
    "matcher": {"steps": 12_000},
    "generator": {},
}
"""What `all` adds to the recipes, whose own lengths are for trying things out."""

SHIPPED = Path(__file__).parents[2] / "weights"
"""Where the built-in engines look for weights."""


def make_recipe(options: Options) -> Any:
    """The model's recipe with what the command line says.

    Raises:
        ConfigurationError: the model's recipe knows nothing of an option.
    """
    kind = RECIPES[options.model]
    known = {field.name for field in fields(kind)}
    every = {field.name for recipe in RECIPES.values() for field in fields(recipe)}
    given = {name: value for name, value in vars(options).items() if name in every and value is not None}
    if unfit := sorted(given.keys() - known):
        raise ConfigurationError(f"the {options.model} has no use for --{unfit[0]}", field=unfit[0])
    return kind(**{"parts": distributed.size(), **given})


def each(options: Options) -> Iterator[Options]:
    """The options of every model that is to be trained."""
    if options.model != "all":
        yield argparse.Namespace(**{**vars(options), "out": options.out or Path("runs", options.model)})
        return
    runs = options.out or Path("runs")
    trunk = None
    for model, more in IN_FULL.items():
        given = {name: value for name, value in vars(options).items() if value is not None}
        mine = argparse.Namespace(**{**vars(options), **more, **given, "model": model, "out": runs / model})
        # What the first model has just learnt to see.
        mine.trunk = trunk if model in ("describer", "matcher") else None
        yield mine
        trunk = trunk or str(shipped(mine))


def weights_to_keep(run: Path) -> dict[str, Tensor]:
    """The kept weights as they will be stored, in half precision: figures are those of what is shipped."""
    stored = load_file(run / "weights.safetensors")
    return {name: t.half().float() if t.is_floating_point() else t for name, t in stored.items()}


def store(options: Options, model: nn.Module, metrics: Mapping[str, float], more: Mapping[str, Any]) -> Path:
    """Writes the judged weights of a finished run and all that is known of them; the file is told."""
    facts = json.loads((options.out / "weights.json").read_text())
    facts["command"] = shlex.join(["python", "-m", "workers.lab.training", *sys.argv[1:]])
    facts |= more
    facts["metrics"] |= metrics
    target = shipped(options)
    save_weights(target, model.state_dict(), facts, half=True)
    log.info("%s\n%s", target, json.dumps(facts["metrics"], indent=2))
    return target


def shipped(options: Options) -> Path:
    """Where the finished weights of this model go."""
    return SHIPPED / f"{options.model}.safetensors" if options.ship else options.out / "shipped.safetensors"


def is_stored(options: Options) -> bool:
    """Whether the run's kept weights were judged and stored before."""
    target = shipped(options)
    return target.exists() and target.stat().st_mtime >= (options.out / "weights.safetensors").stat().st_mtime


def ready(model: nn.Module, options: Options) -> nn.Module:
    """The model with the run's kept weights, to be judged."""
    model.load_state_dict(weights_to_keep(options.out))
    return model.to(torch.device(options.device)).eval()
