"""Training that starts from earlier weights; the encoder that describer and matcher take over from the recogniser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.errors import ConfigurationError
from workers.models.describer import Describer
from workers.models.matcher import Matcher
from workers.models.trunk import Trunk
from workers.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class OnTrunkRecipe(Recipe):
    """What describer and matcher share: they learn on top of an encoder that knows how to look."""

    steps: int = 4000
    log_every: int = 25
    validate_every: int = 250
    checkpoint_every: int = 100
    trunk: str = ""
    """Weights of the recogniser whose encoder is taken over."""
    start: str = ""
    """Weights to start from, instead of from chance."""
    freeze_trunk: bool = True


Model = TypeVar("Model", Describer, Matcher)


def on_trunk(model: Model, recipe: OnTrunkRecipe) -> Model:
    """The model with the weights and the encoder that its recipe starts from."""
    if recipe.start:
        start_from(model, Path(recipe.start))
    if recipe.trunk:
        adopt_trunk(model.trunk, Path(recipe.trunk), freeze=recipe.freeze_trunk)
    return model


def adopt_trunk(trunk: Trunk, recognizer: Path, *, freeze: bool) -> None:
    """Load the recogniser's encoder into `trunk`; frozen, it is only run, several times cheaper than training it."""
    prefix = "trunk."
    weights = {k.removeprefix(prefix): v.float() for k, v in load_file(recognizer).items() if k.startswith(prefix)}
    trunk.load_state_dict(weights)
    trunk.requires_grad_(not freeze)


def start_from(model: nn.Module, weights: Path) -> None:
    """Load all of a model's stored weights, to train it further. Words that are new keep their random start.

    Raises:
        ConfigurationError: the weights are of another kind of model.
    """
    state = model.state_dict()
    stored = {name: tensor.float() for name, tensor in load_file(weights).items()}
    for name, tensor in stored.items():
        mine = state.get(name)
        if mine is None or mine.shape[1:] != tensor.shape[1:] or len(mine.shape) != len(tensor.shape):
            raise ConfigurationError(f"{weights} does not fit: {name} is not of this model.", field="start")
        if mine.shape != tensor.shape and len(mine) > len(tensor):
            # A vocabulary grows at its end; see `Vocabulary`.
            stored[name] = torch.cat([tensor, mine[len(tensor) :].to(tensor)])
    model.load_state_dict(stored)


def encode(trunk: Trunk, images: Tensor) -> Tensor:
    """The trunk's tokens; a frozen trunk runs as in use: without gradients, with the statistics it was trained to."""
    learning = next(trunk.parameters()).requires_grad
    with torch.set_grad_enabled(learning and torch.is_grad_enabled()):
        tokens: Tensor = trunk.train(learning)(images)
    return tokens
