"""Training the generator on own pictures: what it needs is known of few of them, so it learns what it can.

The planner learns from captions what is to be seen. The painter learns to paint it. What else varies a picture is known
in the drawn world, but not here, so a code for each picture is learnt with the painter (GLO: Bojanowski et al., 2018,
arXiv 1707.05776). Codes have a normal prior, and its distribution function turns them into the uniform noise that the
painter is given in use. The discriminator joins in last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workers.lab.training.data import cut, to_tensor
from workers.lab.training.generator import (
    GeneratorRecipe,
    Paintings,
    Rivals,
    Texts,
    assemble,
    countdown,
    painting_loss,
    plan_loss,
    rivalry,
)
from workers.lab.training.generator import make_generator as make_drawn
from workers.lab.training.loop import Outcome, Validation, train
from workers.lab.training.measures import measure_splits
from workers.lab.training.own.data import Examples
from workers.lab.training.trainable import Trainable
from workers.models.discriminator import Discriminator
from workers.models.generator import Generator, Painter, Planner
from workers.models.recognizer import Labels
from workers.models.text import Vocabulary
from workers.scenes.grammar import SLOTS, pick
from workers.scenes.lexicon import Role

PRIOR = 1e-3
"""Weight of the codes' prior beside the reconstruction."""


def make_generator(recipe: GeneratorRecipe, words: Vocabulary, labels: Labels) -> Generator:
    """A generator with random weights that reads these words and plans with these labels."""
    sizes = []
    for slot in SLOTS:
        role = cast("Role", slot.rstrip("_12"))
        sizes.append(len(labels[role]) + 1)
    return make_drawn(recipe, words, tuple(sizes))


def plans_of(data: Examples) -> Tensor:
    """What is to be seen, int64 (count, columns); what is not known is 0, as a value of its own."""
    return torch.tensor([example.slots for example in data.known]).clamp_min(0)


def texts(data: Examples, words: Vocabulary, size: int, seed: int) -> Callable[[int], Texts]:
    """Batches of own captions with the plans of their pictures; a picture without captions leaves its place empty."""
    plans = plans_of(data)

    def batch(number: int) -> Texts:
        rng = np.random.default_rng((seed, number))
        rows = [row for row in rng.integers(len(data), size=size) if data.known[row].captions]
        captions = [pick(rng, data.known[row].captions) for row in rows]
        return Texts(torch.from_numpy(words.encode_batch(captions)), plans[rows])

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


def memory_loss(model: nn.Module, batch: Paintings) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The painter's loss, with the number of a picture in place of its noise, and the codes' prior."""
    if not isinstance(model, Remembered):
        raise TypeError("only remembered pictures have codes")
    loss, figures = painting_loss(model, batch)
    prior = model.codes(batch.noise).float().square().mean()
    return loss + PRIOR * prior, {**figures, "prior": prior.detach()}


def paintings(data: Examples, noise: Tensor, size: int, seed: int) -> Callable[[int], Paintings]:
    """Batches of pictures with their plans and their rows of `noise`: numbers of codes, or the noise itself."""
    plans = plans_of(data)

    def batch(number: int) -> Paintings:
        rng = np.random.default_rng((seed, number))
        rows = np.sort(rng.integers(len(data), size=size))
        return Paintings(plans[rows], noise[rows], to_tensor(data.pixels[rows]))

    return batch


@torch.no_grad()
def figures(planner: nn.Module, data: Examples, words: Vocabulary, size: int = 200) -> dict[str, float]:
    """How well the planner understands the first caption of each picture.

    `nats` is the negative log-likelihood of the plan, `plan` the share of what is known that the plan has right.
    """
    if not isinstance(planner, Planner):
        raise TypeError("the planner's figures are for planners")
    device = next(planner.parameters()).device
    rng = np.random.default_rng(1)
    said = data.take([row for row, example in enumerate(data.known) if example.captions])
    plans = plans_of(said)
    nats = 0.0
    right: list[Tensor] = []
    for part in cut(len(said), size):
        captions = [example.captions[0] for example in said.known[part]]
        tokens = torch.from_numpy(words.encode_batch(captions)).to(device)
        wanted = plans[part].to(device)
        nats += _plan_nats(planner(tokens, wanted), wanted)
        draws = torch.from_numpy(rng.random(wanted.shape, dtype=np.float32)).to(device)
        hits = planner.sample(tokens, draws) == wanted
        right.append(hits[wanted > 0])
    return {"nats": nats / len(said), "plan": torch.cat(right).float().mean().item()}


def _plan_nats(logits: list[Tensor], wanted: Tensor) -> float:
    """Negative log-likelihood of plans (B, columns), summed over all."""
    total = 0.0
    for column, values in zip(logits, wanted.unbind(1), strict=True):
        total += cross_entropy(column.float(), values, reduction="sum").item()
    return total


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
    """Trains planner, painter with codes, then painter against discriminator, each in its own folder below `run`."""
    left = countdown(minutes)
    generator = make_generator(recipe, words, data.labels)
    outcome = train(
        generator.planner,
        plan_loss,
        texts(data, words, recipe.planner_batch, recipe.seed),
        recipe.planner_phase(),
        run / "planner",
        validation=Validation(partial(figures, data=validation, words=words), "nats", higher=False),
        minutes=left(),
        device=device,
    )
    if outcome.finished:
        outcome = _train_painter(generator, data, run, recipe, left(), device)
    if outcome.finished:
        outcome = _train_rivals(generator, data, run, recipe, left(), device)
    assemble(run, recipe, generator)
    return outcome


def _train_painter(
    generator: Generator,
    data: Examples,
    run: Path,
    recipe: GeneratorRecipe,
    minutes: float | None,
    device: str,
) -> Outcome:
    torch.manual_seed(recipe.seed)
    model = Remembered(generator.painter, len(data), generator.shape.noise)
    batches = paintings(data, torch.arange(len(data)), recipe.batch, recipe.seed)
    phase = recipe.painter_phase()
    return train(model, memory_loss, batches, phase, run / "painter", minutes=minutes, device=device)


def _train_rivals(
    generator: Generator,
    data: Examples,
    run: Path,
    recipe: GeneratorRecipe,
    minutes: float | None,
    device: str,
) -> Outcome:
    model = Remembered(generator.painter, len(data), generator.shape.noise)
    model.load_state_dict(load_file(run / "painter/weights.safetensors"))
    with torch.no_grad():
        noise = model.cpu().noise(torch.arange(len(data)))
    torch.manual_seed(recipe.seed)
    rivals = Rivals(generator.painter, Discriminator(generator.shape.plan))
    batches = paintings(data, noise, recipe.batch, recipe.seed + 1)
    phase = recipe.rivals_phase()
    return train(rivals, rivalry(recipe), batches, phase, run / "rivals", minutes=minutes, device=device)


def report(generator: Generator, splits: Mapping[str, Examples]) -> dict[str, float]:
    """All published figures, `<split>/<figure>`."""
    return measure_splits(partial(figures, words=generator.vocabulary), generator.planner, splits)


def trainable(words: Vocabulary, labels: Labels) -> Trainable[Examples]:
    """The generator that reads these words and plans with these labels."""
    return Trainable(
        build=partial(make_generator, words=words, labels=labels),
        train=partial(train_generator, words=words),
        report=report,
    )
