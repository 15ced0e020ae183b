"""Training the matcher on own captions.

A picture's own captions are true of it. False are its caption with one word exchanged, where the drawn world's grammar
knows one, and the captions of other pictures; now and then such a one is true as well, which no one can tell from
captions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from workers.lab.training.data import to_tensor
from workers.lab.training.frozen import on_trunk
from workers.lab.training.loop import Outcome, Validation, train
from workers.lab.training.matcher import Batch, MatcherRecipe, fit_scale, loss
from workers.lab.training.measures import auroc, calibration_error
from workers.lab.training.own.augmentation import changed, draw
from workers.lab.training.own.data import Examples
from workers.models.matcher import Matcher, log_odds
from workers.models.text import Vocabulary
from workers.scenes.grammar import pick
from workers.scenes.lexicon import CONCEPT, KEYS, Concept
from workers.scenes.parsing import Token, tokens


def make_matcher(recipe: MatcherRecipe, words: Vocabulary) -> Matcher:
    torch.manual_seed(recipe.seed)
    return on_trunk(Matcher(words=words), recipe)


def edited(text: str, rng: np.random.Generator) -> str | None:
    """The text with one word of the drawn world exchanged for another of its kind; None where it has none."""
    known = [token for token in tokens(text) if token.role in KEYS and token.role not in ("count", "size")]
    known = [token for token in known if token.text in text.lower()]
    if not known:
        return None
    token = pick(rng, known)
    start = text.lower().index(token.text)
    return text[:start] + _exchanged(token, rng) + text[start + len(token.text) :]


def _exchanged(token: Token, rng: np.random.Generator) -> str:
    """Another word of the role, in the same form."""
    concept = CONCEPT[token.key]
    other = CONCEPT[pick(rng, [key for key in KEYS[token.role] if key != token.key])]  # type: ignore[index]
    for form in (_plural, _short):
        if token.text in form(concept) and form(other):
            return form(other)[0]
    return (other.en if token.text.isascii() else other.zh)[0]


def _plural(concept: Concept) -> tuple[str, ...]:
    return concept.plural


def _short(concept: Concept) -> tuple[str, ...]:
    return (concept.zh_short,) if concept.zh_short else ()


def false_caption(data: Examples, row: int, text: str, rng: np.random.Generator) -> str:
    """One that is not among the picture's own: with one word exchanged, or another picture's."""
    own = data.known[row].captions
    exchanged = edited(text, rng)
    if exchanged is not None and exchanged not in own:
        return exchanged
    for _ in range(20):
        other = pick(rng, data.known[int(rng.integers(len(data)))].captions)
        if other not in own:
            return other
    # All pictures seem to say the same.
    return ""


def batches(data: Examples, words: Vocabulary, recipe: MatcherRecipe) -> Callable[[int], Batch]:
    def batch(number: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, number])
        drawn = draw(data, recipe.batch, rng)
        images = changed(drawn, data, rng)
        wrong = [false_caption(data, row, text, rng) for row, text in zip(drawn.rows, drawn.captions, strict=True)]
        texts = [*drawn.captions, *wrong]
        ids = torch.from_numpy(words.encode_batch(texts))
        # The same picture may be drawn twice, and different pictures may have the same caption.
        same = drawn.rows[:, None] == drawn.rows
        fits = np.array([[text == own for text in texts] for own in drawn.captions])
        fits[:, : len(same)] |= same
        return images, ids, torch.from_numpy(fits)

    return batch


@torch.no_grad()
def pair_evidence(model: Matcher, data: Examples, seed: int, size: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """Log odds of each picture's own caption, of one with a word exchanged, and of the next picture's."""
    rng = np.random.default_rng(seed)
    device = model.strength.device
    true = [example.captions[0] for example in data.known]
    wrong = [false_caption(data, row, text, rng) for row, text in enumerate(true)]
    other = true[1:] + true[:1]

    def odds(texts: Sequence[str]) -> Tensor:
        found = []
        for start in range(0, len(data), size):
            images = model.encode_images(to_tensor(data.pixels[start : start + size], device))
            ids = torch.from_numpy(model.vocabulary.encode_batch(texts[start : start + size])).to(device)
            found.append(log_odds(model.evidence(images, model.encode_texts(ids), pairwise=True)).float().cpu())
        return torch.cat(found)

    return odds(true), odds(wrong), odds(other)


def figures(model: nn.Module, data: Examples, seed: int = 2) -> dict[str, float]:
    """Areas under the ROC curve of own captions against false ones (see `false_caption`) and other pictures'."""
    if not isinstance(model, Matcher):
        raise TypeError("the matcher's figures are for matchers")
    true, wrong, other = pair_evidence(model, data, seed)
    return {"auc_edited": auroc(true, wrong), "auc_other": auroc(true, other)}


def calibrate(model: Matcher, data: Examples) -> None:
    fit_scale(model, *pair_evidence(model, data, seed=3))


def train_matcher(
    data: Examples,
    validation: Examples,
    run: Path,
    recipe: MatcherRecipe,
    *,
    words: Vocabulary,
    minutes: float | None = None,
    device: str = "cpu",
) -> Outcome:
    judge = Validation(partial(figures, data=validation), "auc_other")
    model = make_matcher(recipe, words)
    return train(
        model, loss, batches(data, words, recipe), recipe, run, validation=judge, minutes=minutes, device=device
    )


def report(model: Matcher, splits: Mapping[str, Examples]) -> dict[str, float]:
    """Of each split, besides `figures`: calibration error over own and other captions, half and half."""
    result: dict[str, float] = {}
    for name, data in splits.items():
        true, _, other = pair_evidence(model, data, seed=5)
        fitted = model.slope.cpu() * torch.cat([true, other]) + model.offset.cpu()
        labels = torch.cat([torch.ones(len(true)), torch.zeros(len(other))])
        found = figures(model, data) | {"calibration_error": calibration_error(fitted.sigmoid(), labels)}
        result |= {f"{name}/{key}": value for key, value in found.items()}
    return result
