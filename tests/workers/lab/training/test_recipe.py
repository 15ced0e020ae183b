"""Schedules, optimisers and what is remembered of a recipe."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from tuwen.errors import ConfigurationError
from workers.lab.training.recipe import (
    Recipe,
    Schedule,
    learning_rate,
    make_optimiser,
    parameter_groups,
    set_dropout,
)


def test_the_learning_rate_rises_then_falls_along_a_cosine() -> None:
    recipe = Recipe(steps=110, learning_rate=2.0, warmup=10, floor=0.1)
    rates = [learning_rate(step, recipe) for step in range(111)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[60] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rates[110] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_norms_biases_and_embeddings_are_not_decayed() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    decayed, free = parameter_groups(model, 0.1)
    assert [id(parameter) for parameter in decayed["params"]] == [id(model[1].weight)]
    assert len(free["params"]) == 4
    assert free["weight_decay"] == 0


def test_a_frozen_part_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    optimised = [
        id(weight) for group in make_optimiser(model, Recipe(steps=1)).param_groups for weight in group["params"]
    ]
    assert set(optimised) == {id(weight) for weight in model[1].parameters()}


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("cosine", (1.0, 0.5, 0.0245)),
        ("linear", (1.0, 0.5, 0.1)),
        ("trapezoid", (1.0, 1.0, 0.5)),
        ("constant", (1.0, 1.0, 1.0)),
    ],
)
def test_every_schedule_starts_at_the_peak_and_falls_its_own_way(
    schedule: Schedule, shares: tuple[float, float, float]
) -> None:
    recipe = Recipe(steps=110, learning_rate=2.0, warmup=10, floor=0.0, schedule=schedule)
    rates = [learning_rate(step, recipe) for step in (10, 60, 100)]
    assert rates == pytest.approx([2.0 * share for share in shares], rel=2e-3)
    assert learning_rate(110, recipe) == (2.0 if schedule == "constant" else 0.0)
    assert learning_rate(4, recipe) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_optimisers_by_name(name: str, kind: type[torch.optim.Optimizer]) -> None:
    optimiser = make_optimiser(nn.Linear(2, 2), Recipe(steps=1, optimiser=name, weight_decay=0.3))  # type: ignore[arg-type]
    assert type(optimiser) is kind
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.3, 0.0]


def test_dropout_is_set_in_every_layer_and_refused_where_there_is_none() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.2)))
    set_dropout(model, 0.4)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.4, 0.4]
    with pytest.raises(ConfigurationError, match="no dropout layer"):
        set_dropout(nn.Linear(1, 1), 0.4)


def test_a_recipe_stored_before_a_field_existed_is_still_the_same() -> None:
    recipe = Recipe(steps=3, seed=5)
    stored = asdict(recipe)
    assert recipe.equals(stored)
    del stored["schedule"], stored["parts"]
    assert recipe.equals(stored)
    assert not replace(recipe, schedule="linear").equals(stored)
    assert not replace(recipe, steps=4).equals(stored)
