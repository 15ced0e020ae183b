"""Training and judging the recogniser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from workers.models.recognizer import Reading, Recognizer, interpret, recognition_loss
from workers.scenes.grammar import Split, slots
from workers.training.data import Pictures, disturb, draw_batch, recolour, tilt, to_tensor
from workers.training.frozen import start_from
from workers.training.loop import Outcome, Validation, train
from workers.training.measures import auroc
from workers.training.outliers import FAMILIES, HELD_OUT, outliers
from workers.training.recipe import Recipe

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Pictures (B, 3, 64, 64), slots (B, 12), whether each is of the drawn world, has its true colours, is upright (B,)."""


@dataclass(frozen=True, slots=True)
class RecognizerRecipe(Recipe):
    steps: int = 5000
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    log_every: int = 25
    validate_every: int = 250
    checkpoint_every: int = 250
    batch: int = 56
    outliers: int = 8
    """Pictures from outside the drawn world in each batch, besides the others."""
    recolour: float = 0.5
    """Share of the pictures whose hues are turned; their colours are then not asked for."""
    tilt: float = 0.35
    """Share of the pictures that are turned and stretched; pose, size and relation are then not asked for."""
    start: str = ""
    """Weights to start from, instead of from chance."""


def make_recognizer(recipe: RecognizerRecipe) -> Recognizer:
    torch.manual_seed(recipe.seed)
    model = Recognizer()
    if recipe.start:
        start_from(model, Path(recipe.start))
    return model


def batches(data: Pictures, recipe: RecognizerRecipe) -> Callable[[int], Batch]:
    def batch(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        scenes, pixels = draw_batch(data, recipe.batch, rng)
        strange = outliers(recipe.outliers, rng, pixels)
        images, coloured = recolour(to_tensor(np.concatenate([pixels, strange])), recipe.recolour, rng)
        images, upright = tilt(images, recipe.tilt, rng)
        images = disturb(images, rng)
        facts = np.stack([*map(slots, scenes), *[np.zeros(12, np.int64)] * recipe.outliers])
        inside = torch.arange(len(images)) < recipe.batch
        return images, torch.from_numpy(facts), inside, coloured, upright

    return batch


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    images, facts, inside, coloured, upright = batch
    parts = recognition_loss(model(images), facts, inside, coloured, upright)
    return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}


@torch.no_grad()
def recognize(model: nn.Module, pixels: np.ndarray, size: int = 128) -> list[Reading]:
    """Readings of undisturbed pictures, in batches of `size`."""
    device = next(model.parameters()).device
    return [model(to_tensor(pixels[i : i + size], device)) for i in range(0, len(pixels), size)]


def figures(model: nn.Module, data: Pictures) -> dict[str, float]:
    """Accuracies on pictures of the drawn world, each in [0, 1]; `scene` counts only those with no mistake at all.

    What none of the pictures has, relations say, has no figure.
    """
    found = [r.scene for reading in recognize(model, data.pixels) for r in interpret(reading)]
    right: dict[str, list[bool]] = {
        k: [] for k in ("objects", "colour", "action", "size", "count", "place", "relation", "scene")
    }
    for true, guess in zip((scene.canonical() for scene in data.scenes), found, strict=True):
        right["objects"].append([t.object for t in true.things] == [t.object for t in guess.things])
        right["place"].append(true.place == guess.place)
        right["scene"].append(replace(true, seed=0) == guess)
        guesses = {t.object: t for t in guess.things}
        for thing in true.things:
            for role in ("colour", "action", "size", "count"):
                same = thing.object in guesses and getattr(guesses[thing.object], role) == getattr(thing, role)
                right[role].append(same)
        if true.relation:
            right["relation"].append(true.relation == guess.relation)
    return {name: float(np.mean(values)) for name, values in right.items() if values}


def calibrate(model: Recognizer, data: Pictures) -> None:
    """Let nearly all of the drawn world's pictures pass as such."""
    model.domain.admit(torch.cat([reading.domain for reading in recognize(model, data.pixels)]))


def domain_figures(model: Recognizer, data: Pictures, seed: int = 1) -> dict[str, float]:
    """Area under the ROC curve of `domain` for families of outliers met in training, and for those held out; share of
    true pictures that are taken for outliers, and of held-out outliers that are not."""

    def logits(pixels: np.ndarray) -> Tensor:
        return torch.cat([reading.domain for reading in recognize(model, pixels)]).float().cpu()

    rng = np.random.default_rng(seed)
    inside = logits(data.pixels)
    met, held_out = (logits(outliers(500, rng, data.pixels, families)) for families in (FAMILIES, HELD_OUT))
    return {
        "outliers_met": auroc(inside, met),
        "outliers_held_out": auroc(inside, held_out),
        "true_refused": float((inside < 0).float().mean()),
        "outliers_admitted": float((held_out >= 0).float().mean()),
    }


def train_recognizer(
    data: Pictures,
    validation: Pictures,
    run: Path,
    recipe: RecognizerRecipe | None = None,
    *,
    minutes: float | None = None,
    device: str = "cpu",
) -> Outcome:
    recipe = recipe or RecognizerRecipe()
    judge = Validation(lambda model: figures(model, validation), "scene")
    model = make_recognizer(recipe)
    return train(model, loss, batches(data, recipe), recipe, run, validation=judge, minutes=minutes, device=device)


def report(model: Recognizer, splits: Mapping[Split, Pictures]) -> dict[str, float]:
    """All published figures, `<split>/<figure>`."""
    result = {f"{name}/{key}": value for name, data in splits.items() for key, value in figures(model, data).items()}
    return result | domain_figures(model, splits["seen"])
