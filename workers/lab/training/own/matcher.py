"""Training the matcher on own captions.

A picture's own captions are true of it. Its caption with one word exchanged, where the drawn world's grammar knows one,
and the captions of other pictures count as false; now and then such a caption is true as well, which nobody can tell
from captions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.lab.training.data import cut, to_tensor
from workers.lab.training.matcher import (
    Batch,
    Evidence,
    MatcherRecipe,
    fit_scale,
    loss,
    make_matcher,
    scaled_figures,
)
from workers.lab.training.measures import auroc, measure_splits
from workers.lab.training.own.augmentation import CaptionedPictures, draw_captioned, vary
from workers.lab.training.own.data import Examples
from workers.lab.training.trainable import Trainable, teach
from workers.models.matcher import Matcher, log_odds
from workers.models.recognizer import Labels
from workers.models.text import Vocabulary
from workers.scenes.grammar import pick
from workers.scenes.lexicon import CONCEPT, KEYS, Concept
from workers.scenes.parsing import Token, tokens


def exchange_word(text: str, rng: np.random.Generator) -> str | None:
    """The text with one word of the drawn world exchanged for another of its kind; None where it has none."""
    known = []
    for token in tokens(text):
        exchangeable = token.role in KEYS and token.role not in ("count", "size")
        if exchangeable and token.text in text.lower():
            known.append(token)
    if not known:
        return None
    token = pick(rng, known)
    start = text.lower().index(token.text)
    end = start + len(token.text)
    return text[:start] + _pick_other(token, rng) + text[end:]


def _pick_other(token: Token, rng: np.random.Generator) -> str:
    """Another word of the role, in the same form."""
    concept = CONCEPT[token.key]
    others = [key for key in KEYS[token.role] if key != token.key]  # type: ignore[index]
    other = CONCEPT[pick(rng, others)]
    for forms_of in (_plurals, _short_forms):
        forms = forms_of(other)
        if forms and token.text in forms_of(concept):
            return forms[0]
    names = other.en if token.text.isascii() else other.zh
    return names[0]


def _plurals(concept: Concept) -> tuple[str, ...]:
    return concept.plural


def _short_forms(concept: Concept) -> tuple[str, ...]:
    return (concept.zh_short,) if concept.zh_short else ()


def pick_false_caption(data: Examples, row: int, text: str, rng: np.random.Generator) -> str:
    """A caption that is not among the picture's own: its `text` with one word exchanged, or another picture's."""
    own = data.known[row].captions
    exchanged = exchange_word(text, rng)
    if exchanged is not None and exchanged not in own:
        return exchanged
    for _ in range(20):
        another = data.known[int(rng.integers(len(data)))]
        other = pick(rng, another.captions)
        if other not in own:
            return other
    # All pictures seem to have the same captions.
    return ""


def batches(data: Examples, recipe: MatcherRecipe, words: Vocabulary) -> Callable[[int], Batch]:
    """The function that makes the batch with a number."""

    def batch(number: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, number])
        drawn = draw_captioned(data, recipe.batch, rng)
        images = vary(drawn, data, rng)
        wrong = []
        for row, text in zip(drawn.rows, drawn.captions, strict=True):
            wrong.append(pick_false_caption(data, row, text, rng))
        texts = drawn.captions + wrong
        ids = words.encode_batch(texts)
        return Batch(images, torch.from_numpy(ids), torch.from_numpy(_truth(drawn, texts)))

    return batch


def _truth(drawn: CaptionedPictures, texts: Sequence[str]) -> NDArray[np.bool_]:
    """Return whether a text, the pictures' own ones first, is known to be true of a picture, bool (pictures, texts)."""
    fits = np.array([[text == own for text in texts] for own in drawn.captions])
    # The same picture may be drawn twice, and different pictures may have the same caption.
    same = drawn.rows[:, None] == drawn.rows
    fits[:, : len(same)] |= same
    return fits


@torch.no_grad()
def pair_evidence(model: Matcher, data: Examples, seed: int, size: int = 100) -> Evidence:
    """What the matcher finds for each picture's own caption, for a false one, and for the next picture's."""
    rng = np.random.default_rng(seed)
    device = model.strength.device
    true = [example.captions[0] for example in data.known]
    wrong = [pick_false_caption(data, row, text, rng) for row, text in enumerate(true)]
    other = true[1:] + true[:1]

    def odds(texts: Sequence[str]) -> Tensor:
        found = []
        for part in cut(len(data), size):
            images = model.encode_images(to_tensor(data.pixels[part], device))
            ids = torch.from_numpy(model.vocabulary.encode_batch(texts[part])).to(device)
            log_p = model.evidence(images, model.encode_texts(ids), pairwise=True)
            found.append(log_odds(log_p).float().cpu())
        return torch.cat(found)

    return Evidence(odds(true), odds(wrong), odds(other))


def figures(model: Matcher, data: Examples, seed: int = 2) -> dict[str, float]:
    """Areas under the ROC curve of own captions against false ones (see `pick_false_caption`) and other pictures'."""
    found = pair_evidence(model, data, seed)
    return {
        "auc_edited": auroc(found.true, found.edited),
        "auc_other": auroc(found.true, found.other),
    }


def calibrate(model: Matcher, data: Examples) -> None:
    """Makes the probabilities of pairs like these agree with frequencies."""
    fit_scale(model, pair_evidence(model, data, seed=3))


def report(model: Matcher, splits: Mapping[str, Examples]) -> dict[str, float]:
    """All published figures, `<split>/<figure>`; `calibration_error` over own and other captions, half and half."""

    def all_figures(model: Matcher, data: Examples) -> dict[str, float]:
        found = pair_evidence(model, data, seed=5)
        scaled = scaled_figures(model, found.true, found.other)
        return figures(model, data) | {"calibration_error": scaled["calibration_error"]}

    return measure_splits(all_figures, model, splits)


def trainable(words: Vocabulary, labels: Labels) -> Trainable[Examples]:  # noqa: ARG001 - as of the other models
    """The matcher that reads these words."""
    build = partial(make_matcher, words=words)
    return Trainable(
        build=build,
        train=teach(
            build=build,
            loss=loss,
            batches=partial(batches, words=words),
            figures=figures,
            metric="auc_other",
        ),
        report=report,
        calibrate=calibrate,
    )
