"""Training the describer on own captions, as people wrote them.

Each caption is learnt in every style, because nothing says which style it is, and only the languages that occur are
learnt. A caption can only be compared with what people wrote, so the figures are those of a language model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workers.lab.training.data import cut, disturb, to_tensor
from workers.lab.training.describer import (
    STYLES,
    Batch,
    DescriberRecipe,
    calibrate,
    loss,
    make_describer,
    pad_rows,
)
from workers.lab.training.imagined import imagine
from workers.lab.training.measures import measure_splits
from workers.lab.training.outliers import make_outliers
from workers.lab.training.own.augmentation import draw_captioned, vary
from workers.lab.training.own.data import Examples, language_of
from workers.lab.training.trainable import Trainable, teach
from workers.models.describer import Describer
from workers.models.recognizer import Labels
from workers.models.text import PAD, UNKNOWN, Vocabulary
from workers.scenes.grammar import pick


def batches(data: Examples, recipe: DescriberRecipe, words: Vocabulary) -> Callable[[int], Batch]:
    """The function that makes the batch with a number."""

    def batch(number: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, number])
        drawn = draw_captioned(data, recipe.batch, rng)
        images = vary(drawn, data, rng)
        outliers = make_outliers(recipe.outliers, rng, drawn.pixels)
        strange = disturb(to_tensor(outliers), rng)
        told, right = make_lessons(drawn.captions, words, rng)
        return Batch(torch.cat([images, strange]), imagine([], rng), told[:, None], right[:, None])

    return batch


def make_lessons(captions: Sequence[str], words: Vocabulary, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """What the describer is told to have written, and what should come next, (B, length) each.

    A word that is in no vocabulary is told but never asked for. Otherwise "unknown" would be the best thing to say.
    """
    told: list[list[int]] = []
    right: list[list[int]] = []
    for text in captions:
        ids = words.encode(text)
        begin = words.begin(language_of(text), pick(rng, STYLES))
        told.append([begin, *ids[:-1]])
        right.append([PAD if i == UNKNOWN else i for i in ids])
    return pad_rows(told), pad_rows(right)


@torch.no_grad()
def figures(model: nn.Module, data: Examples, size: int = 100) -> dict[str, float]:
    """How well the model foresees the first caption of each picture.

    `nats` is the negative log-likelihood of a token, `next_token` the share of tokens that were the likeliest ones.
    """
    if not isinstance(model, Describer):
        raise TypeError("the describer's figures are for describers")
    device = next(model.parameters()).device
    rng = np.random.default_rng(1)
    nats = right = count = 0.0
    for part in cut(len(data), size):
        captions = [example.captions[0] for example in data.known[part]]
        told, wanted = make_lessons(captions, model.vocabulary, rng)
        wanted = wanted.to(device)
        asked = wanted != PAD
        sight, _ = model.look(to_tensor(data.pixels[part], device))
        logits = model(sight, told.to(device))[0].float()
        loss = cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD, reduction="sum")
        hits = (logits.argmax(-1) == wanted) & asked
        nats += float(loss)
        right += float(hits.sum())
        count += float(asked.sum())
    return {"nats": nats / count, "next_token": right / count}


def report(model: Describer, splits: Mapping[str, Examples]) -> dict[str, float]:
    """All published figures, `<split>/<figure>`."""
    return measure_splits(figures, model, splits)


def trainable(words: Vocabulary, labels: Labels) -> Trainable[Examples]:  # noqa: ARG001 - as of the other models
    """The describer that writes these words."""
    build = partial(make_describer, words=words)
    return Trainable(
        build=build,
        train=teach(
            build=build,
            loss=loss,
            batches=partial(batches, words=words),
            figures=figures,
            metric="nats",
            higher=False,
        ),
        report=report,
        calibrate=calibrate,
    )
