"""Training and judging the recogniser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import affine_grid

from workers.lab.training.data import Pictures, disturb, to_tensor
from workers.lab.training.disguise import retone, tilt
from workers.lab.training.frozen import start_from
from workers.lab.training.loop import Outcome, Validation, train
from workers.lab.training.measures import auroc
from workers.lab.training.outliers import FAMILIES, HELD_OUT, outliers
from workers.lab.training.recipe import Recipe
from workers.lab.world.latents import BACKGROUND_SIZE
from workers.lab.world.quadrupeds import BUILDS
from workers.lab.world.render import draw, places
from workers.models.recognizer import Reading, Recognizer, interpret, recognition_loss
from workers.models.trunk import GRID
from workers.scenes.grammar import Scene, Split, slots
from workers.scenes.lexicon import KEYS

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Pictures (B, 3, 64, 64), slots (B, 12), whether each is of the drawn world, has its true colours, is upright (B,),
where the things are (B, 2, 2, 256), see `recognition_loss`, and which actions were met (10, 7)."""


@dataclass(frozen=True, slots=True)
class RecognizerRecipe(Recipe):
    steps: int = 5000
    learning_rate: float = 2.5e-3
    warmup: int = 60
    ema: float = 0.998
    weight_decay: float = 0.05
    log_every: int = 25
    validate_every: int = 250
    checkpoint_every: int = 100
    batch: int = 56
    outliers: int = 6
    """Pictures from outside the drawn world in each batch, besides the others."""
    retone: float = 0.45
    """Share of the pictures that get false colours; the true ones are then not asked for."""
    lookalikes: float = 2.0
    """How much more often than others pictures of four-legged animals are drawn, and once more where they are white:
    these are what is confused with each other."""
    bare: float = 0.2
    """Share of the pictures of which only the parts that tell what things are remain, over an empty place; pose, size
    and relation are then not asked for."""
    tilt: float = 0.4
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
    facts, known = np.stack([slots(scene) for scene in data.scenes]), rectangles(data.scenes)
    met = actions_met(facts)
    often = 1 + recipe.lookalikes * lookalikes(facts)
    often /= often.sum()
    nowhere = np.zeros((recipe.outliers, *known.shape[1:]), np.float32)
    inside = torch.arange(recipe.batch + recipe.outliers) < recipe.batch

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        picked, mirror = np.sort(rng.choice(len(data), recipe.batch, p=often)), rng.random(recipe.batch) < 0.5
        pixels, shown, where = data.pixels[picked], facts[picked], known[picked]
        pixels[mirror] = pixels[mirror, :, ::-1]
        shown[mirror, -1] = _MIRRORED[shown[mirror, -1]]
        where[mirror] = where[mirror][..., [2, 1, 0, 3]] * (-1, 1, -1, 1) + (1, 0, 1, 0)
        bare = np.zeros(len(inside), bool)
        bare[: recipe.batch] = rng.random(recipe.batch) < recipe.bare
        for i in bare.nonzero()[0]:
            pixels[i], shown[i, 10] = bared(pixels[i], where[i, :, 1], rng)
        strange = outliers(recipe.outliers, rng, pixels)
        images, coloured = retone(to_tensor(np.concatenate([pixels, strange])), recipe.retone, rng)
        images, upright, change = tilt(images, recipe.tilt, rng)
        images = disturb(images, rng)
        shown = np.concatenate([shown, np.zeros((recipe.outliers, shown.shape[1]), np.int64)])
        cells = within(torch.from_numpy(np.concatenate([where, nowhere])), change)
        upright &= torch.from_numpy(~bare)
        return images, torch.from_numpy(shown), inside, coloured, upright, cells, met

    return batch


_MIRRORED = np.array([0, 2, 1, 3, 4])
"""The relation column of slots, as the mirror shows it."""


def bared(picture: np.ndarray, telling: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """The telling parts of a picture (S, S, 3), given as boxes (..., 4), over an empty place, and which place that is.

    A head is then all that tells what an animal is, whatever body and whatever signs of an action it was met with.
    """
    place, side = int(rng.integers(len(KEYS["place"]))), len(picture)
    made = draw(KEYS["place"][place], rng.uniform(-1, 1, BACKGROUND_SIZE).tolist(), [], side).copy()
    for left, top, right, bottom in telling.reshape(-1, 4):
        # Room for ears and muzzle.
        wide, tall = right - left, bottom - top
        box = np.array([left - 0.25 * wide, top - 0.45 * tall, right + 0.25 * wide, bottom + 0.1 * tall])
        x, y, to_x, to_y = (box * side).round().clip(0, side).astype(int)
        made[y:to_y, x:to_x] = picture[y:to_y, x:to_x]
    return made, place + 1


def lookalikes(facts: np.ndarray) -> NDArray[np.float64]:
    """Of slots (scenes, 12): 1 where there is a four-legged animal, 2 where one of them is white, otherwise 0."""
    legs = [KEYS["object"].index(animal) + 1 for animal in BUILDS]
    four_legged = np.isin(facts[:, [0, 5]], legs)
    white = facts[:, [1, 6]] == KEYS["colour"].index("white") + 1
    degrees: NDArray[np.float64] = four_legged.any(1).astype(float) + (four_legged & white).any(1)
    return degrees


def actions_met(facts: np.ndarray) -> Tensor:
    """Which objects (rows) some of the slots (scenes, 12) show in which action (columns), bool (10, 7)."""
    met = torch.zeros(len(KEYS["object"]), len(KEYS["action"]) + 1, dtype=torch.bool)
    for first in (0, 5):
        there = facts[facts[:, first] > 0]
        met[there[:, first] - 1, there[:, first + 2]] = True
    return met


def rectangles(scenes: Sequence[Scene]) -> np.ndarray:
    """Of each scene's first and second kind of thing, up to four: the box around the whole and around the part that
    tells what it is, the head where it has one, (scenes, 2, 2, 4, 4); zero where there is none."""
    found = np.zeros((len(scenes), 2, 2, 4, 4), np.float32)
    for row, scene in zip(found, scenes, strict=True):
        names = [thing.object for thing in scene.canonical().things]
        numbers = [0, 0]
        for each in places(scene):
            kind = names.index(each.thing.object)
            row[kind, :, numbers[kind]] = each.box, each.head.box if each.head else each.box
            numbers[kind] += 1
    return found


def within(rectangles: Tensor, change: Tensor, margin: float = 0.05) -> Tensor:
    """Which cells of changed pictures lie in any of the rectangles (B, 2, 2, 4, 4) or near it, bool (B, 2, 2, cells).

    The margin, a share of the picture's side, makes up for the shifts of `disturb` too.
    """
    grid = affine_grid(change, [len(change), 1, 2 * GRID, 2 * GRID], align_corners=False)
    x, y = ((grid + 1) / 2).flatten(1, 2)[:, None, None, None].unbind(-1)
    left, top, right, bottom = rectangles[..., None].unbind(-2)
    held = (x > left - margin) & (x < right + margin) & (y > top - margin) & (y < bottom + margin)
    return (held & (right > left)).any(3)


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    images, *truths = batch
    parts = recognition_loss(model(images), *truths)
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
