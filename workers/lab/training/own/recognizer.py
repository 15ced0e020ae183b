"""Training the recogniser on own labels: what is known of a picture is asked, the rest is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from workers.lab.training.data import disturb, to_tensor
from workers.lab.training.disguise import retone, tilt
from workers.lab.training.frozen import adopt_trunk
from workers.lab.training.loop import Outcome, Validation, train
from workers.lab.training.outliers import outliers
from workers.lab.training.own.data import Examples
from workers.lab.training.own.labels import mirrored_slots
from workers.lab.training.recognizer import Batch, RecognizerRecipe, loss, recognize
from workers.lab.training.recognizer import make_recognizer as make_drawn
from workers.models.recognizer import Labels, Recognizer
from workers.models.trunk import GRID
from workers.scenes.grammar import SLOTS
from workers.scenes.lexicon import KEYS


def make_recognizer(recipe: RecognizerRecipe, labels: Labels) -> Recognizer:
    """For other labels than the drawn world's, only the encoder is taken over from the weights to start from."""
    if labels == KEYS:
        return make_drawn(recipe)
    torch.manual_seed(recipe.seed)
    model = Recognizer(labels=labels)
    if recipe.start:
        adopt_trunk(model.trunk, Path(recipe.start))
    return model


def batches(data: Examples, recipe: RecognizerRecipe) -> Callable[[int], Batch]:
    """As of the drawn world: colours are false, then no colour is asked for; pictures are tilted, then no pose is."""

    def batch(number: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, number])
        rows = np.sort(rng.choice(len(data), recipe.batch, replace=len(data) < recipe.batch))
        pixels = np.ascontiguousarray(data.pixels[rows])
        slots = [data.known[row].slots for row in rows]
        for i in np.flatnonzero(rng.random(recipe.batch) < 0.5):
            pixels[i], slots[i] = pixels[i, :, ::-1].copy(), mirrored_slots(slots[i])
        strange = outliers(recipe.outliers, rng, pixels)
        images, coloured = retone(to_tensor(np.concatenate([pixels, strange])), recipe.retone, rng)
        images, upright, _ = tilt(images, recipe.tilt, rng)
        facts = np.array([*slots, *[[0] * len(SLOTS)] * recipe.outliers], dtype=np.int64)
        inside = torch.arange(len(images)) < recipe.batch
        # Where things are is not known, and that something is not met among few pictures means nothing.
        anywhere = torch.ones(len(images), 2, 2, (2 * GRID) ** 2, dtype=torch.bool)
        met = torch.ones(len(data.labels["object"]), len(data.labels["action"]) + 1, dtype=torch.bool)
        return disturb(images, rng), torch.from_numpy(facts), inside, coloured, upright, anywhere, met

    return batch


@torch.no_grad()
def figures(model: nn.Module, data: Examples) -> dict[str, float]:
    """Accuracies where the truth is known: of the set of objects, and of each attribute of the objects that are there.

    `mean` is theirs, over those that are known of any picture.
    """
    readings = recognize(model, data.pixels)
    presence = torch.cat([reading.presence for reading in readings]).float().sigmoid().cpu()
    slots = np.array([example.slots for example in data.known])
    likely = presence > 0.5
    likely.scatter_(1, presence.argmax(1, keepdim=True), True)
    true = torch.zeros_like(likely)
    right: dict[str, list[bool]] = {}
    for column in (0, 5):
        rows = np.flatnonzero(slots[:, column])
        true[rows, slots[rows, column] - 1] = True
        for offset, role in enumerate(("colour", "action", "size", "count"), 1):
            guesses = torch.cat([getattr(reading, role).argmax(-1) for reading in readings]).cpu().numpy()
            wanted = slots[rows, column + offset] - (role != "action")
            found = guesses[rows, slots[rows, column] - 1]
            right.setdefault(role, []).extend((found == wanted)[wanted >= 0].tolist())
    places = torch.cat([reading.place.argmax(-1) for reading in readings]).cpu().numpy()
    right["place"] = (places == slots[:, 10] - 1)[slots[:, 10] > 0].tolist()
    right["objects"] = (likely == true).all(1).tolist()
    found = {role: float(np.mean(values)) for role, values in right.items() if values}
    return found | {"mean": float(np.mean(list(found.values())))}


def train_recognizer(
    data: Examples,
    validation: Examples,
    run: Path,
    recipe: RecognizerRecipe,
    *,
    minutes: float | None = None,
    device: str = "cpu",
) -> Outcome:
    judge = Validation(partial(figures, data=validation), "mean")
    model = make_recognizer(recipe, data.labels)
    return train(model, loss, batches(data, recipe), recipe, run, validation=judge, minutes=minutes, device=device)


def report(model: Recognizer, splits: Mapping[str, Examples]) -> dict[str, float]:
    return {f"{name}/{key}": value for name, data in splits.items() for key, value in figures(model, data).items()}
