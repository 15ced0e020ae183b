"""Training that starts from earlier weights; the recogniser that describer and matcher take over to see with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tuwen.errors import ConfigurationError
from workers.lab.training.recipe import Recipe
from workers.models.describer import Describer
from workers.models.matcher import Matcher
from workers.models.recognizer import Reading, Recognizer, labels_beside
from workers.models.trunk import Trunk


@dataclass(frozen=True, slots=True)
class OnTrunkRecipe(Recipe):
    """What describer and matcher share: they learn on top of a recogniser."""

    steps: int = 4000
    log_every: int = 25
    validate_every: int = 250
    checkpoint_every: int = 100
    trunk: str = ""
    """Weights of the recogniser that is taken over, as a whole or its encoder alone."""
    start: str = ""
    """Weights to start from, instead of random ones."""
    freeze_trunk: bool = True


Model = TypeVar("Model", Describer, Matcher)


def start_on_trunk(model: Model, recipe: OnTrunkRecipe) -> Model:
    """Gives the model the weights, and the recogniser or its encoder, that its recipe starts from; returns the model.

    Raises:
        ConfigurationError: the weights are of another kind of model.
    """
    if recipe.start:
        start_from(model, Path(recipe.start))
    if recipe.trunk:
        adopted = adopt_eyes(model, Path(recipe.trunk))
        adopted.requires_grad_(not recipe.freeze_trunk)
    return model


def adopt_eyes(model: Describer | Matcher, weights: Path) -> nn.Module:
    """Loads a recogniser's weights into what the model sees with, and returns that part of the model.

    A matcher takes over the encoder only. So does a describer of a recogniser that was trained on other labels than the
    drawn world's.
    """
    if isinstance(model, Matcher):
        adopt_trunk(model.trunk, weights)
        return model.trunk
    recognizer = model.eyes.recognizer
    if labels_beside(weights) == recognizer.labels:
        start_from(recognizer, weights)
    else:
        adopt_trunk(recognizer.trunk, weights)
    return recognizer


def adopt_trunk(trunk: Trunk, recognizer: Path) -> None:
    """Loads the encoder of a stored recogniser into `trunk`."""
    prefix = "trunk."
    weights = {}
    for name, tensor in load_file(recognizer).items():
        if name.startswith(prefix):
            weights[name.removeprefix(prefix)] = tensor.float()
    trunk.load_state_dict(weights)


def start_from(model: nn.Module, weights: Path) -> None:
    """Loads all of a model's stored weights, to train it further. Words and parts that are new keep their random start.

    Raises:
        ConfigurationError: the weights are of another kind of model.
    """
    state = model.state_dict()
    for name, tensor in load_file(weights).items():
        mine = state.get(name)
        stored = tensor.float()
        if mine is None or not _fits(mine, stored):
            raise ConfigurationError(f"{weights} does not fit: {name} is not of this model.", field="start")
        if mine.shape != stored.shape and len(mine) > len(stored):
            # A vocabulary grows at its end; see `Vocabulary`.
            stored = torch.cat([stored, mine[len(stored) :].to(stored)])
        state[name] = stored
    model.load_state_dict(state)


def _fits(mine: Tensor, stored: Tensor) -> bool:
    """Whether the tensors differ in their first dimension at most."""
    return mine.ndim == stored.ndim and mine.shape[1:] == stored.shape[1:]


def encode(trunk: Trunk, images: Tensor) -> Tensor:
    """The trunk's tokens (B, cells, width) of pictures (B, 3, 64, 64); see `_frozen_or_learning`."""
    with _frozen_or_learning(trunk):
        tokens: Tensor = trunk(images).far
    return tokens


def read(recognizer: Recognizer, images: Tensor) -> Reading:
    """What the recogniser reads of pictures (B, 3, 64, 64); see `_frozen_or_learning`."""
    with _frozen_or_learning(recognizer):
        reading: Reading = recognizer(images)
    return reading


@contextmanager
def _frozen_or_learning(part: nn.Module) -> Iterator[None]:
    """Runs a frozen part as in use, without gradients and with its final statistics; any other part as it learns.

    A frozen part is only run, which is several times cheaper than to train it.
    """
    learning = next(part.parameters()).requires_grad
    part.train(learning)
    with torch.set_grad_enabled(learning and torch.is_grad_enabled()):
        yield
