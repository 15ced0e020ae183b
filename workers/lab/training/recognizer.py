"""Training and measuring the recogniser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import affine_grid

from tuwen.engine import Pixels
from workers.lab.training.data import HasPixels, Pictures, cut, disturb, to_tensor
from workers.lab.training.disguise import retone, tilt
from workers.lab.training.frozen import start_from
from workers.lab.training.loop import add_up
from workers.lab.training.measures import measure_domain, measure_splits
from workers.lab.training.outliers import make_outliers
from workers.lab.training.recipe import Recipe
from workers.lab.training.trainable import Trainable, teach
from workers.lab.world.latents import BACKGROUND_SIZE
from workers.lab.world.quadrupeds import BUILDS
from workers.lab.world.render import draw, places
from workers.models.recognizer import Reading, Recognizer, interpret, recognition_loss
from workers.models.trunk import GRID
from workers.scenes.grammar import Scene, slots
from workers.scenes.lexicon import KEYS


class Batch(NamedTuple):
    """Pictures, the last ones from outside the drawn world, and what is known of them; see `recognition_loss`."""

    images: Tensor
    """(B, 3, 64, 64)"""
    slots: Tensor
    """What the pictures show, int64 (B, 12)."""
    inside: Tensor
    """Whether each is of the drawn world, bool (B,)."""
    coloured: Tensor
    """Whether it has its true colours, bool (B,)."""
    upright: Tensor
    """Whether it is neither turned nor stretched, bool (B,)."""
    where: Tensor
    """Cells that the things are in, bool (B, 2, 2, 256)."""
    met: Tensor
    """Whether an object was met in an action, bool (10, 7)."""


@dataclass(frozen=True, slots=True)
class RecognizerRecipe(Recipe):
    """How the recogniser is trained."""

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
    """Weights to start from, instead of random ones."""


def make_recognizer(recipe: RecognizerRecipe) -> Recognizer:
    """A recogniser with random weights, or those that the recipe starts from."""
    torch.manual_seed(recipe.seed)
    model = Recognizer()
    if recipe.start:
        start_from(model, Path(recipe.start))
    return model


def batches(data: Pictures, recipe: RecognizerRecipe) -> Callable[[int], Batch]:
    """The function that makes the batch of a step."""
    facts = np.stack([slots(scene) for scene in data.scenes])
    boxes = rectangles(data.scenes)
    met = actions_met(facts)
    often = 1 + recipe.lookalikes * count_lookalikes(facts)
    often /= often.sum()
    unknown = np.zeros((recipe.outliers, facts.shape[1]), np.int64)
    nowhere = np.zeros((recipe.outliers, *boxes.shape[1:]), np.float32)
    inside = torch.arange(recipe.batch + recipe.outliers) < recipe.batch

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        picked = np.sort(rng.choice(len(data), recipe.batch, p=often))
        pixels = data.pixels[picked]
        shown = facts[picked]
        where = boxes[picked]
        _mirror(pixels, shown, where, rng.random(recipe.batch) < 0.5)
        bare = np.zeros(len(inside), bool)
        bare[: recipe.batch] = rng.random(recipe.batch) < recipe.bare
        for row in bare.nonzero()[0]:
            pixels[row], place = strip(pixels[row], where[row, :, 1], rng)
            shown[row, 10] = place + 1
        strangers = make_outliers(recipe.outliers, rng, pixels)
        images = to_tensor(np.concatenate([pixels, strangers]))
        images, coloured = retone(images, recipe.retone, rng)
        tilted = tilt(images, recipe.tilt, rng)
        images = disturb(tilted.images, rng)
        cells = cells_within(torch.from_numpy(np.concatenate([where, nowhere])), tilted.change)
        return Batch(
            images=images,
            slots=torch.from_numpy(np.concatenate([shown, unknown])),
            inside=inside,
            coloured=coloured,
            upright=tilted.upright & torch.from_numpy(~bare),
            where=cells,
            met=met,
        )

    return batch


_MIRRORED_RELATIONS = np.array([0, 2, 1, 3, 4])
"""The values of the relation column of slots, as the mirror shows them."""


def _mirror(
    pixels: Pixels,
    shown: NDArray[np.int64],
    where: NDArray[np.float32],
    flipped: NDArray[np.bool_],
) -> None:
    """Mirrors the `flipped` ones (B,) of pictures (B, S, S, 3), their slots (B, 12) and their boxes (B, …, 4)."""
    pixels[flipped] = pixels[flipped, :, ::-1]
    shown[flipped, -1] = _MIRRORED_RELATIONS[shown[flipped, -1]]
    # Left and right change places, and count from the other side.
    swapped = where[flipped][..., [2, 1, 0, 3]]
    where[flipped] = swapped * (-1, 1, -1, 1) + (1, 0, 1, 0)


def strip(picture: Pixels, telling: NDArray[np.float32], rng: np.random.Generator) -> tuple[Pixels, int]:
    """The telling parts of a picture (S, S, 3), given as boxes (…, 4), over an empty place; and that place's number.

    A head is then all that tells what an animal is, whatever body and whatever signs of an action it was met with.
    """
    place = int(rng.integers(len(KEYS["place"])))
    side = len(picture)
    background = rng.uniform(-1, 1, BACKGROUND_SIZE).tolist()
    made = draw(KEYS["place"][place], background, [], side).copy()
    for left, top, right, bottom in telling.reshape(-1, 4):
        # Room for ears and muzzle.
        wide = right - left
        tall = bottom - top
        box = np.array(
            [
                left - 0.25 * wide,
                top - 0.45 * tall,
                right + 0.25 * wide,
                bottom + 0.1 * tall,
            ]
        )
        x, y, to_x, to_y = (box * side).round().clip(0, side).astype(int)
        made[y:to_y, x:to_x] = picture[y:to_y, x:to_x]
    return made, place


def count_lookalikes(facts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1 for slots (scenes, 12) with a four-legged animal, 2 where one of them is white, otherwise 0."""
    animals = [KEYS["object"].index(animal) + 1 for animal in BUILDS]
    four_legged = np.isin(facts[:, [0, 5]], animals)
    white = facts[:, [1, 6]] == KEYS["colour"].index("white") + 1
    degrees: NDArray[np.float64] = four_legged.any(1).astype(float)
    degrees += (four_legged & white).any(1)
    return degrees


def actions_met(facts: NDArray[np.int64]) -> Tensor:
    """Find the objects (rows) that some of the slots (scenes, 12) show in each action (columns), bool (10, 7)."""
    met = torch.zeros(len(KEYS["object"]), len(KEYS["action"]) + 1, dtype=torch.bool)
    for first in (0, 5):
        there = facts[facts[:, first] > 0]
        objects = there[:, first] - 1
        actions = there[:, first + 2]
        met[objects, actions] = True
    return met


def rectangles(scenes: Sequence[Scene]) -> NDArray[np.float32]:
    """Return the rectangles of the things of each scene, float (scenes, 2, 2, 4, 4).

    The dimensions: scene; first or second kind of thing; the box around the whole, or around the part that tells what
    it is, which is its head where it has one; up to four things of a kind; left, top, right and bottom in shares of the
    picture. Where there is no thing the box is zero.
    """
    found = np.zeros((len(scenes), 2, 2, 4, 4), np.float32)
    for row, scene in zip(found, scenes, strict=True):
        names = [thing.object for thing in scene.canonical().things]
        counts = [0, 0]
        for placed in places(scene):
            kind = names.index(placed.thing.object)
            number = counts[kind]
            counts[kind] += 1
            row[kind, 0, number] = placed.box
            row[kind, 1, number] = placed.head.box if placed.head else placed.box
    return found


def cells_within(rectangles: Tensor, change: Tensor, margin: float = 0.05) -> Tensor:
    """Find the cells of changed pictures that lie in any of the rectangles or near it.

    Args:
        rectangles: as `rectangles` returns them, (B, 2, 2, 4, 4).
        change: where each point of the pictures comes from, (B, 2, 3), see `tilt`.
        margin: share of the picture's side that makes up for the shifts of `disturb` too.

    Returns:
        bool (B, 2, 2, cells)
    """
    grid = affine_grid(change, [len(change), 1, 2 * GRID, 2 * GRID], align_corners=False)
    centres = ((grid + 1) / 2).flatten(1, 2)
    x, y = centres[:, None, None, None].unbind(-1)
    left, top, right, bottom = rectangles[..., None].unbind(-2)
    across = (x > left - margin) & (x < right + margin)
    down = (y > top - margin) & (y < bottom + margin)
    exists = right > left
    return (across & down & exists).any(3)


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The sum of `recognition_loss`, and its parts."""
    reading = model(batch.images)
    losses = recognition_loss(
        reading,
        slots=batch.slots,
        inside=batch.inside,
        coloured=batch.coloured,
        upright=batch.upright,
        where=batch.where,
        met=batch.met,
    )
    return add_up(losses)


@torch.no_grad()
def recognize(model: nn.Module, pixels: Pixels, size: int = 128) -> list[Reading]:
    """Readings of undisturbed pictures, uint8 (count, 64, 64, 3), in batches of `size`."""
    device = next(model.parameters()).device
    return [model(to_tensor(pixels[part], device)) for part in cut(len(pixels), size)]


def figures(model: nn.Module, data: Pictures) -> dict[str, float]:
    """Accuracies on pictures of the drawn world, each in [0, 1]; `scene` counts only those with no mistake at all.

    A figure is absent where no picture has anything to measure, such as a relation.
    """
    found: list[Scene] = []
    for reading in recognize(model, data.pixels):
        found += [recognized.scene for recognized in interpret(reading)]
    right: dict[str, list[bool]] = {
        "objects": [],
        "colour": [],
        "action": [],
        "size": [],
        "count": [],
        "place": [],
        "relation": [],
        "scene": [],
    }
    for scene, guess in zip(data.scenes, found, strict=True):
        for name, hits in _compare(scene.canonical(), guess).items():
            right[name] += hits
    return {name: float(np.mean(hits)) for name, hits in right.items() if hits}


def _compare(true: Scene, guess: Scene) -> dict[str, list[bool]]:
    """What is right, figure by figure: one answer for the scene, or one for each of its things."""
    guesses = {thing.object: thing for thing in guess.things}
    right: dict[str, list[bool]] = {
        "objects": [[thing.object for thing in true.things] == list(guesses)],
        "place": [true.place == guess.place],
        "scene": [replace(true, seed=0) == guess],
        "relation": [true.relation == guess.relation] if true.relation else [],
    }
    for role in ("colour", "action", "size", "count"):
        hits = []
        for thing in true.things:
            other = guesses.get(thing.object)
            hits.append(other is not None and getattr(other, role) == getattr(thing, role))
        right[role] = hits
    return right


def domain_logits(model: nn.Module, pixels: Pixels) -> Tensor:
    """Logits (B,) of being of the drawn world, on the processor, of pictures uint8 (B, 64, 64, 3)."""
    readings = recognize(model, pixels)
    return torch.cat([reading.domain for reading in readings]).float().cpu()


def calibrate(model: Recognizer, data: HasPixels) -> None:
    """Lets nearly all pictures like these, which are of the world that the model knows, pass as such."""
    readings = recognize(model, data.pixels)
    model.domain.admit(torch.cat([reading.domain for reading in readings]))


def report(model: Recognizer, splits: Mapping[str, Pictures]) -> dict[str, float]:
    """All published figures, `<split>/<figure>`."""
    found = measure_splits(figures, model, splits)
    return found | measure_domain(lambda pixels: domain_logits(model, pixels), splits["seen"].pixels)


TRAINABLE: Trainable[Pictures] = Trainable(
    build=make_recognizer,
    train=teach(build=make_recognizer, loss=loss, batches=batches, figures=figures, metric="scene"),
    report=report,
    calibrate=calibrate,
)
