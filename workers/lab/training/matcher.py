"""Training and measuring the matcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from workers.lab.training.data import Pictures, cut, disturb, draw_batch, to_tensor
from workers.lab.training.describer import LANGUAGES, STYLES
from workers.lab.training.frozen import OnTrunkRecipe, encode, start_on_trunk
from workers.lab.training.measures import auroc, calibration_error
from workers.lab.training.trainable import Trainable, teach
from workers.models.matcher import Claims, Matcher, log_odds
from workers.models.text import Vocabulary, vocabulary
from workers.scenes.grammar import Scene, Split, caption, edit, pick
from workers.scenes.parsing import graph, parse

CONTRAST = 0.3
"""Weight of the contrastive loss beside the binary one."""
EDITS = 9
"""Captions with one edit that the true one has to come before; see `r_precision`."""


class Batch(NamedTuple):
    """B pictures and 2B texts."""

    images: Tensor
    """(B, 3, 64, 64)"""
    ids: Tensor
    """Token ids of the pictures' own captions, then of captions with one edit, (2B, length)."""
    fits: Tensor
    """Whether a text is true of a picture, bool (B, 2B)."""


class Evidence(NamedTuple):
    """Log odds that texts fit their pictures, on the processor, (count,) each."""

    true: Tensor
    """Log odds of each picture's own caption."""
    edited: Tensor
    """Log odds of its caption with one statement changed."""
    other: Tensor
    """Log odds of the next picture's caption."""


@dataclass(frozen=True, slots=True)
class MatcherRecipe(OnTrunkRecipe):
    """How the matcher is trained."""

    learning_rate: float = 2e-3
    batch: int = 40
    omit: tuple[float, ...] = (0.0, 0.15, 0.5, 0.9)
    """Probabilities that a caption leaves a statement out, as people do; each caption gets one of them at random."""


def make_matcher(recipe: MatcherRecipe, words: Vocabulary | None = None) -> Matcher:
    """A matcher of these words, by default the drawn world's, with the weights that its recipe starts from."""
    torch.manual_seed(recipe.seed)
    return start_on_trunk(Matcher(words=words), recipe)


def say_anyhow(scene: Scene, rng: np.random.Generator, omit: float) -> str:
    """A random caption of the scene: either language, any style, any wording."""
    language = pick(rng, LANGUAGES)
    style = pick(rng, STYLES)
    return caption(scene, language, style, rng, omit=omit)


def truth(scenes: Sequence[Scene], texts: Sequence[str]) -> NDArray[np.bool_]:
    """Whether all that a text says is so in a scene, bool (scenes, texts)."""
    facts = [graph(scene).facts() for scene in scenes]
    claims = [parse(text).facts() for text in texts]
    return np.array([[claim <= fact for claim in claims] for fact in facts])


def batches(data: Pictures, recipe: MatcherRecipe) -> Callable[[int], Batch]:
    """The function that makes the batch of a step."""

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        scenes, pixels = draw_batch(data, recipe.batch, rng)
        images = disturb(to_tensor(pixels), rng)
        own = [say_anyhow(scene, rng, pick(rng, recipe.omit)) for scene in scenes]
        edited = [say_anyhow(edit(scene, rng), rng, pick(rng, recipe.omit)) for scene in scenes]
        texts = own + edited
        ids = vocabulary().encode_batch(texts)
        fits = truth(scenes, texts)
        return Batch(images, torch.from_numpy(ids), torch.from_numpy(fits))

    return batch


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Binary cross entropy of true, edited and other texts, and the contrast between them."""
    if not isinstance(model, Matcher):
        raise TypeError("the matcher's loss is for matchers")
    sight = model.regard(encode(model.trunk, batch.images))
    log_p = model.evidence(sight, model.encode_texts(batch.ids), pairwise=False)
    odds = log_odds(log_p)
    fits = batch.fits
    each = binary_cross_entropy_with_logits(odds, fits.float(), reduction="none")
    count = len(batch.images)
    edited = torch.eye(count, 2 * count, dtype=torch.bool, device=odds.device).roll(count, 1)
    positive = each[fits].mean()
    hard = each[edited & ~fits].mean()
    easy = each[~edited & ~fits].mean()
    contrast = _contrast(odds, fits)
    value: Tensor = positive + 0.5 * (hard + easy) + CONTRAST * contrast
    figures = {"positive": positive, "hard": hard, "easy": easy, "contrast": contrast}
    return value, {name: figure.detach() for name, figure in figures.items()}


def _contrast(odds: Tensor, fits: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al., 2018) both ways, from log odds and truth (B, 2B).

    Each own caption is compared with all texts, each own picture with all pictures. Other true pairs are left out.
    """
    count = len(odds)
    own = torch.arange(count, device=odds.device)
    masked = odds.masked_fill(fits, -torch.inf)
    masked[own, own] = odds[own, own]
    to_text = cross_entropy(masked, own)
    to_image = cross_entropy(masked[:, :count].T, own)
    return (to_text + to_image) / 2


Keys = tuple[Tensor, Tensor]
"""What a matcher keeps of B pictures: keys and values, (B, cells + 1, width) each."""


@torch.no_grad()
def _encode_images(model: Matcher, data: Pictures, size: int = 100) -> Keys:
    device = model.strength.device
    keys = []
    values = []
    for part in cut(len(data), size):
        key, value = model.encode_images(to_tensor(data.pixels[part], device))
        keys.append(key)
        values.append(value)
    return torch.cat(keys), torch.cat(values)


def _encode_texts(model: Matcher, texts: Sequence[str]) -> Claims:
    ids = torch.from_numpy(vocabulary().encode_batch(texts))
    return model.encode_texts(ids.to(model.strength.device))


@torch.no_grad()
def pair_evidence(model: Matcher, data: Pictures, split: Split, seed: int) -> Evidence:
    """What the matcher finds for the true caption of each picture, for an edited one, and for another picture's."""
    rng = np.random.default_rng(seed)
    images = _encode_images(model, data)
    true = [say_anyhow(scene, rng, 0.0) for scene in data.scenes]
    edited = [say_anyhow(edit(scene, rng, split), rng, 0.0) for scene in data.scenes]
    other = true[1:] + true[:1]

    def odds(texts: Sequence[str]) -> Tensor:
        log_p = model.evidence(images, _encode_texts(model, texts), pairwise=True)
        return log_odds(log_p).cpu()

    return Evidence(odds(true), odds(edited), odds(other))


@torch.no_grad()
def r_precision(model: Matcher, data: Pictures, split: Split, seed: int, others: int = 99) -> dict[str, float]:
    """How often the true one comes first.

    The figures: of 100 captions for a picture, of 100 pictures for a caption, and of the true caption and nine with one
    edit each.
    """
    rng = np.random.default_rng(seed)
    images = _encode_images(model, data)
    texts = [say_anyhow(scene, rng, 0.0) for scene in data.scenes]
    claims = _encode_texts(model, texts)
    to_text: list[bool] = []
    to_image: list[bool] = []
    for start in range(0, len(data) - others, others + 1):
        part = slice(start, start + others + 1)
        asked = Claims(claims.search[part], claims.expect[part], claims.bias[part])
        scores = model.evidence((images[0][part], images[1][part]), asked, pairwise=False).cpu()
        # Another text of the hundred may be true too; it does not count as a mistake.
        fits = torch.from_numpy(truth(data.scenes[part], texts[part]))
        rivals = scores.masked_fill(fits, -torch.inf)
        own = scores.diagonal()
        to_text += (own > rivals.amax(1)).tolist()
        to_image += (own > rivals.amax(0)).tolist()
    first = _true_before_edits(model, data, images, texts, split, rng)
    return {
        "r_precision_text": float(np.mean(to_text)),
        "r_precision_image": float(np.mean(to_image)),
        "true_over_nine_edits": float(np.mean(first)),
    }


def _true_before_edits(
    model: Matcher,
    data: Pictures,
    images: Keys,
    texts: Sequence[str],
    split: Split,
    rng: np.random.Generator,
) -> list[bool]:
    """Return, for every fourth picture, whether its caption comes before nine captions with one edit each."""
    first: list[bool] = []
    for row in range(0, len(data), 4):
        scene = data.scenes[row]
        edited = [say_anyhow(edit(scene, rng, split), rng, 0.0) for _ in range(EDITS)]
        # Now and then a caption is still true after the edit.
        wrong = [text for text in edited if not truth([scene], [text])[0, 0]]
        image = (images[0][row : row + 1], images[1][row : row + 1])
        claims = _encode_texts(model, [texts[row], *wrong])
        scores = model.evidence(image, claims, pairwise=False)[0].cpu()
        first.append(bool(scores[0] > scores[1:].max()))
    return first


def figures(model: Matcher, data: Pictures, split: Split = "validation", seed: int = 2) -> dict[str, float]:
    """Areas under the ROC curve of the true captions against edited ones and against other pictures' captions."""
    found = pair_evidence(model, data, split, seed)
    return {
        "auc_edited": auroc(found.true, found.edited),
        "auc_other": auroc(found.true, found.other),
    }


def calibrate(model: Matcher, data: Pictures, split: Split = "validation", seed: int = 3) -> None:
    """Makes the probabilities of the drawn world's pairs agree with frequencies."""
    fit_scale(model, pair_evidence(model, data, split, seed))


def fit_scale(model: Matcher, evidence: Evidence) -> None:
    """Platt scaling (Platt, 1999): fits slope and offset, with half of the weight on true texts."""
    parts = []
    for odds, label, share in zip(evidence, (1.0, 0.0, 0.0), (0.5, 0.25, 0.25), strict=True):
        parts.append((odds, torch.full_like(odds, label), torch.full_like(odds, share / len(odds))))
    odds, labels, weights = (torch.cat(column) for column in zip(*parts, strict=True))
    slope = torch.ones(1, requires_grad=True)
    offset = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([slope, offset], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = binary_cross_entropy_with_logits(slope * odds + offset, labels, weights, reduction="sum")
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    model.slope.copy_(slope.detach().squeeze().clamp(min=0.05))
    model.offset.copy_(offset.detach().squeeze())


def scaled_figures(model: Matcher, true: Tensor, false: Tensor) -> dict[str, float]:
    """Calibration error and accuracy of the calibrated model, from log odds of true and false texts."""
    odds = torch.cat([true, false])
    labels = torch.cat([torch.ones(len(true)), torch.zeros(len(false))])
    fitted = model.slope.cpu() * odds + model.offset.cpu()
    hits = (fitted > 0) == labels.bool()
    return {
        "calibration_error": calibration_error(fitted.sigmoid(), labels),
        "accuracy": float(hits.float().mean()),
    }


def report(model: Matcher, splits: Mapping[str, Pictures]) -> dict[str, float]:
    """All published figures, `<split>/<figure>`; `calibration_error` over true and edited captions, half and half."""
    result: dict[str, float] = {}
    for name, data in splits.items():
        split = cast("Split", name)
        found = figures(model, data, split) | r_precision(model, data, split, seed=4)
        evidence = pair_evidence(model, data, split, seed=5)
        scaled = scaled_figures(model, evidence.true, evidence.edited)
        found["calibration_error"] = scaled["calibration_error"]
        found["accuracy_edited"] = scaled["accuracy"]
        result |= {f"{name}/{key}": value for key, value in found.items()}
    return result


TRAINABLE: Trainable[Pictures] = Trainable(
    build=make_matcher,
    train=teach(build=make_matcher, loss=loss, batches=batches, figures=figures, metric="auc_edited"),
    report=report,
    calibrate=calibrate,
)
