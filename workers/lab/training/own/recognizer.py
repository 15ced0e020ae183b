"""Training the recogniser on own labels: it is asked for what is known of a picture, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workers.lab.training.data import disturb, to_tensor
from workers.lab.training.disguise import retone, tilt
from workers.lab.training.frozen import adopt_trunk
from workers.lab.training.measures import measure_splits
from workers.lab.training.outliers import make_outliers
from workers.lab.training.own.data import Examples
from workers.lab.training.own.labels import mirrored_slots
from workers.lab.training.recognizer import Batch, RecognizerRecipe, calibrate, loss, recognize
from workers.lab.training.recognizer import make_recognizer as make_drawn
from workers.lab.training.trainable import Trainable, teach
from workers.models.recognizer import Labels, Reading, Recognizer
from workers.models.text import Vocabulary
from workers.models.trunk import GRID
from workers.scenes.grammar import SLOTS
from workers.scenes.lexicon import KEYS


def make_recognizer(recipe: RecognizerRecipe, labels: Labels) -> Recognizer:
    """A recogniser of these labels with random weights, or those that the recipe starts from.

    For other labels than the drawn world's, only the encoder is taken over from the weights to start from.
    """
    if labels == KEYS:
        return make_drawn(recipe)
    torch.manual_seed(recipe.seed)
    model = Recognizer(labels=labels)
    if recipe.start:
        adopt_trunk(model.trunk, Path(recipe.start))
    return model


def batches(data: Examples, recipe: RecognizerRecipe) -> Callable[[int], Batch]:
    """The function that makes the batch with a number.

    As in the drawn world, a picture with false colours is not asked for its colours, and a tilted one not for its pose.
    """

    def batch(number: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, number])
        rows = np.sort(rng.choice(len(data), recipe.batch, replace=len(data) < recipe.batch))
        pixels = np.ascontiguousarray(data.pixels[rows])
        slots = [data.known[row].slots for row in rows]
        for i in np.flatnonzero(rng.random(recipe.batch) < 0.5):
            pixels[i] = pixels[i, :, ::-1].copy()
            slots[i] = mirrored_slots(slots[i])
        strangers = make_outliers(recipe.outliers, rng, pixels)
        images, coloured = retone(to_tensor(np.concatenate([pixels, strangers])), recipe.retone, rng)
        tilted = tilt(images, recipe.tilt, rng)
        count = len(images)
        unknown = [(0,) * len(SLOTS)] * recipe.outliers
        facts = np.array(slots + unknown, dtype=np.int64)
        return Batch(
            images=disturb(tilted.images, rng),
            slots=torch.from_numpy(facts),
            inside=torch.arange(count) < recipe.batch,
            coloured=coloured,
            upright=tilted.upright,
            # Where things are is not known.
            where=torch.ones(count, 2, 2, (2 * GRID) ** 2, dtype=torch.bool),
            # That something is not met among few pictures means nothing.
            met=torch.ones(len(data.labels["object"]), len(data.labels["action"]) + 1, dtype=torch.bool),
        )

    return batch


@torch.no_grad()
def figures(model: nn.Module, data: Examples) -> dict[str, float]:
    """Accuracies where the truth is known: of the set of objects, and of each attribute of the objects that are there.

    `mean` is their mean, without those that are not known of any picture.
    """
    readings = recognize(model, data.pixels)
    slots = np.array([example.slots for example in data.known])
    right: dict[str, list[bool]] = {}
    for offset, role in enumerate(("colour", "action", "size", "count"), 1):
        guesses = _likeliest(readings, role)
        right[role] = [
            *_attribute_hits(guesses, slots[:, 0], slots[:, offset], role),
            *_attribute_hits(guesses, slots[:, 5], slots[:, 5 + offset], role),
        ]
    place = slots[:, 10]
    hits = _likeliest(readings, "place") == place - 1
    right["place"] = hits[place > 0].tolist()
    right["objects"] = _object_hits(readings, slots)
    found = {role: float(np.mean(values)) for role, values in right.items() if values}
    return found | {"mean": float(np.mean(list(found.values())))}


def _likeliest(readings: Sequence[Reading], role: str) -> NDArray[np.int64]:
    """Numbers of the likeliest values of a role: (pictures, objects) of an attribute, (pictures,) of the place."""
    logits: list[Tensor] = [getattr(reading, role) for reading in readings]
    found: NDArray[np.int64] = torch.cat([each.argmax(-1) for each in logits]).cpu().numpy()
    return found


def _attribute_hits(
    guesses: NDArray[np.int64], objects: NDArray[np.int64], values: NDArray[np.int64], role: str
) -> list[bool]:
    """Whether an attribute is right, for each picture where it is known; from columns of slots, (pictures,) each."""
    rows = np.flatnonzero(objects)
    # Of actions 0 is standing still, of all else it is unknown.
    wanted = values[rows] - (role != "action")
    found = guesses[rows, objects[rows] - 1]
    hits: list[bool] = (found == wanted)[wanted >= 0].tolist()
    return hits


def _object_hits(readings: Sequence[Reading], slots: NDArray[np.int64]) -> list[bool]:
    """Whether the set of objects is right, for each picture."""
    presence = torch.cat([reading.presence for reading in readings]).float().sigmoid().cpu()
    likely = presence > 0.5
    likely.scatter_(1, presence.argmax(1, keepdim=True), True)
    true = torch.zeros_like(likely)
    for column in (0, 5):
        rows = np.flatnonzero(slots[:, column])
        true[rows, slots[rows, column] - 1] = True
    hits: list[bool] = (likely == true).all(1).tolist()
    return hits


def report(model: Recognizer, splits: Mapping[str, Examples]) -> dict[str, float]:
    """All published figures, `<split>/<figure>`."""
    return measure_splits(figures, model, splits)


def trainable(words: Vocabulary, labels: Labels) -> Trainable[Examples]:  # noqa: ARG001 - as of the other models
    """The recogniser of these labels."""
    build = partial(make_recognizer, labels=labels)
    return Trainable(
        build=build,
        train=teach(build=build, loss=loss, batches=batches, figures=figures, metric="mean"),
        report=report,
        calibrate=calibrate,
    )
