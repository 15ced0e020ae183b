"""What decides the result of a run besides model and data: the `Recipe`, its optimiser and its schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from tuwen.errors import ConfigurationError

OptimiserName: TypeAlias = Literal["adamw", "adam", "sgd"]
Schedule: TypeAlias = Literal["cosine", "linear", "trapezoid", "constant"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the result of a run, besides its model and its data. It is written beside the weights."""

    steps: int
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up; see `learning_rate`."""
    warmup: int = 200
    """Steps of linear rise."""
    floor: float = 0.01
    """Last learning rate as a share of the peak."""
    optimiser: OptimiserName = "adamw"
    momentum: float = 0.9
    """First beta of Adam and AdamW, momentum of SGD."""
    second_momentum: float = 0.99
    weight_decay: float = 0.01
    dropout: float | None = None
    """Probability in every dropout layer; None leaves each as the model sets it."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    parts: int = 1
    """Batches whose mean gradient makes one step: one after the other on one process, or shared among several.

    The result is the same either way, so it is the recipe that says how many and not the number of processes.
    """
    ema: float = 0.999
    """Decay per step of the averaged weights, which are the ones validated and shipped."""
    bf16: bool = True
    """Mixed precision where the device is fast at it; see `workers.lab.training.loop.autocast`."""
    seed: int = 0
    log_every: int = 50
    validate_every: int = 500
    checkpoint_every: int = 500
    patience: int | None = None
    """Stop after this many validations in a row without a better one; None never stops early."""

    def equals(self, stored: Mapping[str, Any]) -> bool:
        """Whether a recipe that was stored as a dictionary is this one; what it does not know yet had its default."""
        defaults = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return defaults | dict(stored) == asdict(self)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters for an optimiser: matrices and kernels, which decay, then all others, which do not.

    Decay would only pull biases, norms and embeddings towards zero.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim >= 2 and id(parameter) not in embeddings:
            decayed.append(parameter)
        else:
            free.append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser for the trainable parameters of the model."""
    groups = parameter_groups(model, recipe.weight_decay)
    betas = (recipe.momentum, recipe.second_momentum)
    match recipe.optimiser:
        case "adamw":
            return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=recipe.learning_rate, betas=betas, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True)


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of a step: linear warm-up to the peak, then down to `floor` at the last step.

    The way down is half a cosine; or a line; or the peak for four fifths of the way and then a line (trapezoid: Hägele
    et al., 2024, arXiv 2405.18392). A constant rate stays at the peak.
    """
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    remaining = max(1, recipe.steps - recipe.warmup)
    progress = min(1.0, (step - recipe.warmup) / remaining)
    match recipe.schedule:
        case "cosine":
            share = (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            share = 1 - progress
        case "trapezoid":
            share = min(1.0, (1 - progress) / 0.2)
        case "constant":
            return recipe.learning_rate
    return recipe.learning_rate * (recipe.floor + (1 - recipe.floor) * share)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group of parameters this learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def set_dropout(model: nn.Module, probability: float) -> None:
    """Gives every dropout layer this probability.

    Raises:
        ConfigurationError: the model has none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    if not layers:
        raise ConfigurationError(
            f"{type(model).__name__} has no dropout layer: leave out --dropout.",
            field="dropout",
        )
    for layer in layers:
        layer.p = probability
