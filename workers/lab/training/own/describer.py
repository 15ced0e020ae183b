"""Training the describer on own captions, as they stand.

Each caption is learnt in every style, because nothing says which style it is, and only the languages that occur are
learnt. There is no truth to hold a caption against but what people wrote, so the figures are those of a language model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workers.lab.training.data import disturb, to_tensor
from workers.lab.training.describer import STYLES, Batch, DescriberRecipe, loss, padded
from workers.lab.training.frozen import on_trunk
from workers.lab.training.imagined import imagine
from workers.lab.training.loop import Outcome, Validation, train
from workers.lab.training.outliers import outliers
from workers.lab.training.own.augmentation import changed, draw
from workers.lab.training.own.data import Examples, language_of
from workers.models.describer import Describer
from workers.models.text import PAD, UNKNOWN, Vocabulary
from workers.scenes.grammar import pick


def make_describer(recipe: DescriberRecipe, words: Vocabulary) -> Describer:
    torch.manual_seed(recipe.seed)
    return on_trunk(Describer(words=words), recipe)


def batches(data: Examples, words: Vocabulary, recipe: DescriberRecipe) -> Callable[[int], Batch]:
    def batch(number: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, number])
        drawn = draw(data, recipe.batch, rng)
        images = changed(drawn, data, rng)
        strange = disturb(to_tensor(outliers(recipe.outliers, rng, drawn.pixels)), rng)
        told, right = teaching(drawn.captions, words, rng)
        return Batch(torch.cat([images, strange]), imagine([], rng), told[:, None], right[:, None])

    return batch


def teaching(captions: Sequence[str], words: Vocabulary, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """What the describer is told to have written, and what should come next, (B, length) each.

    A word that is in no vocabulary is told but never asked for, or "unknown" would be the best thing to say.
    """
    told, right = [], []
    for text in captions:
        ids = words.encode(text)
        told.append([words.begin(language_of(text), pick(rng, STYLES)), *ids[:-1]])
        right.append([PAD if i == UNKNOWN else i for i in ids])
    return padded(told), padded(right)


@torch.no_grad()
def figures(model: nn.Module, data: Examples, size: int = 100) -> dict[str, float]:
    """Of one caption of each picture: nats a token, and the share of tokens that are likeliest after those before."""
    if not isinstance(model, Describer):
        raise TypeError("the describer's figures are for describers")
    device = next(model.parameters()).device
    rng = np.random.default_rng(1)
    nats = right = count = 0.0
    for start in range(0, len(data), size):
        part = data.take(range(start, min(start + size, len(data))))
        pair = teaching([example.captions[0] for example in part.known], model.vocabulary, rng)
        told, wanted = (ids.to(device) for ids in pair)
        sight, _ = model.look(to_tensor(part.pixels, device))
        logits = model(sight, told)[0].float()
        nats += float(cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD, reduction="sum"))
        right += float(((logits.argmax(-1) == wanted) & (wanted != PAD)).sum())
        count += float((wanted != PAD).sum())
    return {"nats": nats / count, "next_token": right / count}


def train_describer(
    data: Examples,
    validation: Examples,
    run: Path,
    recipe: DescriberRecipe,
    *,
    words: Vocabulary,
    minutes: float | None = None,
    device: str = "cpu",
) -> Outcome:
    judge = Validation(partial(figures, data=validation), "nats", higher=False)
    model = make_describer(recipe, words)
    return train(
        model, loss, batches(data, words, recipe), recipe, run, validation=judge, minutes=minutes, device=device
    )


def report(model: Describer, splits: Mapping[str, Examples]) -> dict[str, float]:
    return {f"{name}/{key}": value for name, data in splits.items() for key, value in figures(model, data).items()}
