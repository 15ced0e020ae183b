"""Training that starts from earlier weights; the recogniser that describer and matcher take over as their eyes."""

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
    """Weights of the recogniser that is taken over, the whole or its encoder."""
    start: str = ""
    """Weights to start from, instead of from chance."""
    freeze_trunk: bool = True


Model = TypeVar("Model", Describer, Matcher)


def on_trunk(model: Model, recipe: OnTrunkRecipe) -> Model:
    """The model with the weights and the recogniser, or its encoder, that its recipe starts from."""
    if recipe.start:
        start_from(model, Path(recipe.start))
    if recipe.trunk and isinstance(model, Matcher):
        adopt_trunk(model.trunk, Path(recipe.trunk))
        model.trunk.requires_grad_(not recipe.freeze_trunk)
    elif recipe.trunk and isinstance(model, Describer):
        adopt_recognizer(model.eyes.recognizer, Path(recipe.trunk))
        model.eyes.recognizer.requires_grad_(not recipe.freeze_trunk)
    return model


def adopt_recognizer(recognizer: Recognizer, weights: Path) -> None:
    """Load a recogniser's weights; of one that recognises other things than the drawn world's, only the encoder's."""
    if labels_beside(weights) == recognizer.labels:
        start_from(recognizer, weights)
    else:
        adopt_trunk(recognizer.trunk, weights)


def adopt_trunk(trunk: Trunk, recognizer: Path) -> None:
    """Load a recogniser's encoder into `trunk`."""
    prefix = "trunk."
    weights = {k.removeprefix(prefix): v.float() for k, v in load_file(recognizer).items() if k.startswith(prefix)}
    trunk.load_state_dict(weights)


def start_from(model: nn.Module, weights: Path) -> None:
    """Load all of a model's stored weights, to train it further. Words and parts that are new keep their random start.

    Raises:
        ConfigurationError: the weights are of another kind of model.
    """
    state = model.state_dict()
    for name, tensor in load_file(weights).items():
        mine, stored = state.get(name), tensor.float()
        if mine is None or mine.shape[1:] != stored.shape[1:] or len(mine.shape) != len(stored.shape):
            raise ConfigurationError(f"{weights} does not fit: {name} is not of this model.", field="start")
        if mine.shape != stored.shape and len(mine) > len(stored):
            # A vocabulary grows at its end; see `Vocabulary`.
            stored = torch.cat([stored, mine[len(stored) :].to(stored)])
        state[name] = stored
    model.load_state_dict(state)


def encode(trunk: Trunk, images: Tensor) -> Tensor:
    """The trunk's tokens; frozen, it is only run, several times cheaper than training it."""
    with _as_it_learns(trunk):
        tokens: Tensor = trunk(images).far
    return tokens


def read(recognizer: Recognizer, images: Tensor) -> Reading:
    """What the recogniser reads; frozen, it is only run, several times cheaper than training it."""
    with _as_it_learns(recognizer):
        reading: Reading = recognizer(images)
    return reading


@contextmanager
def _as_it_learns(part: nn.Module) -> Iterator[None]:
    """What is frozen runs as in use: without gradients, with the statistics it was trained to."""
    learning = next(part.parameters()).requires_grad
    part.train(learning)
    with torch.set_grad_enabled(learning and torch.is_grad_enabled()):
        yield
