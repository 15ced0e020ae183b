"""A small training run as its own process, to be killed or shared: `python -m tests.support.training_child RUN`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from workers.lab.training import distributed
from workers.lab.training.loop import Outcome, Validation, train
from workers.lab.training.recipe import Recipe

Pair = tuple[Tensor, Tensor]


class Net(nn.Module):
    """A network whose steps depend on more than their batch: dropout, batch norm, a part that is not always used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first = nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
        self.last = nn.Linear(16, 1)
        self.rare = nn.Linear(16, 1)

    def forward(self, inputs: Tensor, rare: bool) -> Tensor:
        hidden = self.first(inputs)
        value: Tensor = self.last(hidden) + (self.rare(hidden) if rare else 0.0)
        return value


def batch(number: int) -> Pair:
    inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(number))
    return inputs, inputs.sum(1, keepdim=True)


def squares(model: nn.Module, pair: Pair) -> tuple[Tensor, Mapping[str, Tensor]]:
    error = (model(pair[0], bool(pair[0][0, 0] > 0)).float() - pair[1]).square().mean()
    return error, {"root": error.detach().sqrt()}


def held_out(model: nn.Module) -> dict[str, float]:
    return {"error": squares(model, batch(10**6))[0].item()}


VALIDATION = Validation(held_out, "error", higher=False)


def run(folder: Path, steps: int, parts: int = 1, checkpoint_every: int = 5, pause: float = 0.0) -> Outcome:
    def paused(number: int) -> Pair:
        time.sleep(pause)
        return batch(number)

    recipe = Recipe(
        steps, learning_rate=1e-2, warmup=4, parts=parts, log_every=4, validate_every=8, ema=0.9,
        checkpoint_every=checkpoint_every, bf16=False,
    )  # fmt: skip
    return train(Net(), squares, paused, recipe, folder, validation=VALIDATION)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--checkpoint-every", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds before each batch")
    torch.set_num_threads(1)
    with distributed.join(torch.device("cpu")):
        run(**vars(parser.parse_args()))
