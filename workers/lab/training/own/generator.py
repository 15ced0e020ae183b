"""Training the generator on own pictures: what it needs is known of few of them, so it learns what it can.

The planner learns from captions what is to be seen. The painter learns to paint it. What varies a picture besides is
not known here, as it is of the drawn world, so a code for each picture is learnt with the painter (GLO: Bojanowski et
al., 2018, arXiv 1707.05776). Codes have a normal prior, and their distribution function makes uniform noise of them,
which is what the painter is given in use. The discriminator joins in last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workers.lab.training.data import to_tensor
from workers.lab.training.generator import (
    GeneratorRecipe,
    Paintings,
    Rivals,
    Texts,
    assemble,
    painting,
    planning,
    rivalry,
)
from workers.lab.training.generator import make_generator as make_drawn
from workers.lab.training.loop import Outcome, Validation, train
from workers.lab.training.own.data import Examples
from workers.models.discriminator import Discriminator
from workers.models.generator import Generator, Painter, Planner
from workers.models.recognizer import Labels
from workers.models.text import Vocabulary
from workers.scenes.grammar import SLOTS, pick
from workers.scenes.lexicon import Role

PRIOR = 1e-3
"""Weight of the codes' prior beside the reconstruction."""


def make_generator(recipe: GeneratorRecipe, words: Vocabulary, labels: Labels) -> Generator:
    roles = [slot.rstrip("_12") for slot in SLOTS]
    return make_drawn(recipe, words, tuple(len(labels[cast("Role", role)]) + 1 for role in roles))


def plans(data: Examples) -> Tensor:
    """What is to be seen, int64 (count, columns); what is not known is 0, as a value of its own."""
    return torch.tensor([example.slots for example in data.known]).clamp_min(0)


def texts(data: Examples, words: Vocabulary, size: int, seed: int) -> Callable[[int], Texts]:
    known = plans(data)

    def batch(number: int) -> Texts:
        rng = np.random.default_rng((seed, number))
        rows = [row for row in rng.integers(len(data), size=size) if data.known[row].captions]
        captions = [pick(rng, data.known[row].captions) for row in rows]
        return torch.from_numpy(words.encode_batch(captions)), known[rows]

    return batch


class Remembered(nn.Module):
    """A painter and a code for each picture."""

    def __init__(self, painter: Painter, count: int, noise: int):
        super().__init__()
        self.painter = painter
        self.codes = nn.Embedding(count, noise)

    def noise(self, rows: Tensor) -> Tensor:
        """(B,) → (B, noise), uniform in [-1, 1] where the codes are normal."""
        return torch.erf(self.codes(rows).float() / math.sqrt(2))

    def forward(self, plan: Tensor, rows: Tensor) -> Tensor:
        painted: Tensor = self.painter(plan, self.noise(rows))
        return painted


def remembering(model: nn.Module, batch: Paintings) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The painter's loss, with the number of a picture in place of its noise, and the codes' prior."""
    if not isinstance(model, Remembered):
        raise TypeError("only remembered pictures have codes")
    loss, figures = painting(model, batch)
    prior = model.codes(batch[1]).float().square().mean()
    return loss + PRIOR * prior, {**figures, "prior": prior.detach()}


def paintings(data: Examples, noise: Tensor, size: int, seed: int) -> Callable[[int], Paintings]:
    """Batches of pictures with their plans and their rows of `noise`: numbers of codes, or the noise itself."""
    known = plans(data)

    def batch(number: int) -> Paintings:
        rows = np.sort(np.random.default_rng((seed, number)).integers(len(data), size=size))
        return known[rows], noise[rows], to_tensor(data.pixels[rows])

    return batch


@torch.no_grad()
def figures(planner: nn.Module, data: Examples, words: Vocabulary, size: int = 200) -> dict[str, float]:
    """Of each picture's first caption: nats of the plan, and the share of what is known that the plan has right."""
    if not isinstance(planner, Planner):
        raise TypeError("the planner's figures are for planners")
    device = next(planner.parameters()).device
    rng = np.random.default_rng(1)
    said = data.take([row for row, example in enumerate(data.known) if example.captions])
    nats = 0.0
    right: list[Tensor] = []
    for start in range(0, len(said), size):
        part = said.take(range(start, min(start + size, len(said))))
        tokens = torch.from_numpy(words.encode_batch([example.captions[0] for example in part.known])).to(device)
        wanted = plans(part).to(device)
        logits = planner(tokens, wanted)
        nats += sum(
            cross_entropy(column.float(), wanted[:, i], reduction="sum").item() for i, column in enumerate(logits)
        )
        lots = torch.from_numpy(rng.random(wanted.shape, dtype=np.float32)).to(device)
        right.append((planner.sample(tokens, lots) == wanted)[wanted > 0])
    return {"nats": nats / len(said), "plan": torch.cat(right).float().mean().item()}


def train_generator(
    data: Examples,
    validation: Examples,
    run: Path,
    recipe: GeneratorRecipe,
    *,
    words: Vocabulary,
    minutes: float | None = None,
    device: str = "cpu",
) -> Outcome:
    """Planner, painter with codes, painter against discriminator, each in its own folder below `run`."""
    start = time.monotonic()

    def left() -> float | None:
        return None if minutes is None else max(0.0, minutes - (time.monotonic() - start) / 60)

    generator = make_generator(recipe, words, data.labels)
    judge = Validation(partial(figures, data=validation, words=words), "nats", higher=False)
    batches = texts(data, words, recipe.planner_batch, recipe.seed)
    phase = recipe.phase(recipe.planner_steps, recipe.learning_rate)
    outcome = train(
        generator.planner, planning, batches, phase, run / "planner", validation=judge, minutes=left(), device=device
    )
    if outcome.finished:
        outcome = _train_painter(generator, data, run, recipe, left(), device)
    if outcome.finished:
        outcome = _train_rivals(generator, data, run, recipe, left(), device)
    assemble(run, recipe, generator)
    return outcome


def _train_painter(
    generator: Generator, data: Examples, run: Path, recipe: GeneratorRecipe, minutes: float | None, device: str
) -> Outcome:
    torch.manual_seed(recipe.seed)
    model = Remembered(generator.painter, len(data), generator.shape.noise)
    batches = paintings(data, torch.arange(len(data)), recipe.batch, recipe.seed)
    phase = recipe.phase(recipe.steps, recipe.learning_rate)
    return train(model, remembering, batches, phase, run / "painter", minutes=minutes, device=device)


def _train_rivals(
    generator: Generator, data: Examples, run: Path, recipe: GeneratorRecipe, minutes: float | None, device: str
) -> Outcome:
    model = Remembered(generator.painter, len(data), generator.shape.noise)
    model.load_state_dict(load_file(run / "painter/weights.safetensors"))
    with torch.no_grad():
        noise = model.cpu().noise(torch.arange(len(data)))
    torch.manual_seed(recipe.seed)
    rivals = Rivals(generator.painter, Discriminator(generator.shape.plan))
    batches = paintings(data, noise, recipe.batch, recipe.seed + 1)
    phase = recipe.phase(recipe.rival_steps, recipe.rival_learning_rate)
    loss = rivalry(recipe.penalty, recipe.rival_weight)
    return train(rivals, loss, batches, phase, run / "rivals", minutes=minutes, device=device)


def report(generator: Generator, splits: Mapping[str, Examples]) -> dict[str, float]:
    return {
        f"{name}/{key}": value
        for name, data in splits.items()
        for key, value in figures(generator.planner, data, generator.vocabulary).items()
    }
