"""Training and judging the matcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from workers.lab.training.data import Pictures, disturb, draw_batch, to_tensor
from workers.lab.training.describer import LANGUAGES, STYLES
from workers.lab.training.frozen import OnTrunkRecipe, encode, on_trunk
from workers.lab.training.loop import Outcome, Validation, train
from workers.lab.training.measures import auroc, calibration_error
from workers.models.matcher import Matcher, log_odds
from workers.models.text import vocabulary
from workers.scenes.grammar import Scene, Split, caption, edit, pick
from workers.scenes.parsing import graph, parse

CONTRAST = 0.3
"""Weight of the contrastive loss beside the binary one."""

Batch = tuple[Tensor, Tensor, Tensor]
"""Pictures (B, 3, 64, 64); token ids of their own captions, then of captions with one edit (2B, length); which
texts are true of which pictures (B, 2B)."""


@dataclass(frozen=True, slots=True)
class MatcherRecipe(OnTrunkRecipe):
    learning_rate: float = 2e-3
    batch: int = 40
    omit: tuple[float, ...] = (0.0, 0.15, 0.5, 0.9)
    """Probabilities that a caption leaves a statement out, as people do; each caption has one of them by lot."""


def make_matcher(recipe: MatcherRecipe) -> Matcher:
    torch.manual_seed(recipe.seed)
    return on_trunk(Matcher(), recipe)


def say(scene: Scene, rng: np.random.Generator, omit: float) -> str:
    """Any caption of the scene: either language, any style, any wording."""
    return caption(scene, pick(rng, LANGUAGES), pick(rng, STYLES), rng, omit=omit)


def truth(scenes: Sequence[Scene], texts: Sequence[str]) -> np.ndarray:
    """Whether all that a text says is so in a scene, bool (scenes, texts)."""
    facts = [graph(scene).facts() for scene in scenes]
    claims = [parse(text).facts() for text in texts]
    return np.array([[claim <= fact for claim in claims] for fact in facts])


def batches(data: Pictures, recipe: MatcherRecipe) -> Callable[[int], Batch]:
    def batch(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        scenes, pixels = draw_batch(data, recipe.batch, rng)
        images = disturb(to_tensor(pixels), rng)
        texts = [say(scene, rng, pick(rng, recipe.omit)) for scene in scenes]
        texts += [say(edit(scene, rng), rng, pick(rng, recipe.omit)) for scene in scenes]
        ids = torch.from_numpy(vocabulary().encode_batch(texts))
        return images, ids, torch.from_numpy(truth(scenes, texts))

    return batch


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    if not isinstance(model, Matcher):
        raise TypeError("the matcher's loss is for matchers")
    images, ids, fits = batch
    log_p = model.evidence(model.regard(encode(model.trunk, images)), model.encode_texts(ids), pairwise=False)
    odds, labels = log_odds(log_p), fits.float()
    each = binary_cross_entropy_with_logits(odds, labels, reduction="none")
    count = len(images)
    own = torch.eye(count, 2 * count, dtype=torch.bool, device=images.device).roll(count, 1)
    hard, easy = own & ~fits, ~own & ~fits
    binary = each[fits].mean() + 0.5 * (each[hard].mean() + each[easy].mean())
    contrast = _contrast(odds, fits, count)
    figures = {
        "positive": each[fits].mean(),
        "hard": each[hard].mean(),
        "easy": each[easy].mean(),
        "contrast": contrast,
    }
    value: Tensor = binary + CONTRAST * contrast
    return value, {name: figure.detach() for name, figure in figures.items()}


def _contrast(odds: Tensor, fits: Tensor, count: int) -> Tensor:
    """InfoNCE both ways: the own caption among all texts, the own picture among all pictures; other true pairs are
    left out of the comparison."""
    own = torch.arange(count, device=odds.device)
    masked = odds.masked_fill(fits, -torch.inf)
    masked[own, own] = odds[own, own]
    return (cross_entropy(masked, own) + cross_entropy(masked[:, :count].T, own)) / 2


def _ids(model: Matcher, texts: Sequence[str]) -> Tensor:
    return torch.from_numpy(vocabulary().encode_batch(texts)).to(model.strength.device)


@torch.no_grad()
def _encode_all(model: Matcher, data: Pictures) -> tuple[Tensor, Tensor]:
    device = model.strength.device
    parts = [model.encode_images(to_tensor(data.pixels[i : i + 100], device)) for i in range(0, len(data), 100)]
    keys, values = (torch.cat(side) for side in zip(*parts, strict=True))
    return keys, values


@torch.no_grad()
def pair_evidence(model: Matcher, data: Pictures, split: Split, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log odds of the true caption, of one with one edit, and of another picture's, for each picture."""
    rng = np.random.default_rng(seed)
    images = _encode_all(model, data)
    true = [say(scene, rng, 0.0) for scene in data.scenes]
    edited = [say(edit(scene, rng, split), rng, 0.0) for scene in data.scenes]
    other = true[1:] + true[:1]

    def odds(texts: Sequence[str]) -> Tensor:
        return log_odds(model.evidence(images, model.encode_texts(_ids(model, texts)), pairwise=True)).cpu()

    return odds(true), odds(edited), odds(other)


@torch.no_grad()
def r_precision(model: Matcher, data: Pictures, split: Split, seed: int, others: int = 99) -> dict[str, float]:
    """How often the true one comes first: of 100 captions for a picture, of 100 pictures for a caption, and of the
    true caption and nine with one edit each."""
    rng = np.random.default_rng(seed)
    images = _encode_all(model, data)
    texts = [say(scene, rng, 0.0) for scene in data.scenes]
    claims = model.encode_texts(_ids(model, texts))
    to_text, to_image, edits = [], [], []
    for start in range(0, len(data) - others, others + 1):
        stop = start + others + 1
        part = type(claims)(claims.search[start:stop], claims.expect[start:stop], claims.bias[start:stop])
        scores = model.evidence((images[0][start:stop], images[1][start:stop]), part, pairwise=False).cpu()
        # Another text of the hundred may be true too; it does not count as a mistake.
        fits = torch.from_numpy(truth(data.scenes[start:stop], texts[start:stop]))
        own = torch.arange(others + 1)
        rivals = scores.masked_fill(fits, -torch.inf)
        to_text += (scores[own, own] > rivals.amax(1)).tolist()
        to_image += (scores[own, own] > rivals.amax(0)).tolist()
    for i in range(0, len(data), 4):
        scene = data.scenes[i]
        wrong = [t for t in (say(edit(scene, rng, split), rng, 0.0) for _ in range(9)) if not truth([scene], [t])[0, 0]]
        image = (images[0][i : i + 1], images[1][i : i + 1])
        scores = model.evidence(image, model.encode_texts(_ids(model, [texts[i], *wrong])), pairwise=False)[0].cpu()
        edits.append(bool(scores[0] > scores[1:].max()))
    names = ("r_precision_text", "r_precision_image", "true_over_nine_edits")
    return {name: float(np.mean(hits)) for name, hits in zip(names, (to_text, to_image, edits), strict=True)}


def figures(model: nn.Module, data: Pictures, split: Split, seed: int = 2) -> dict[str, float]:
    """Areas under the ROC curve of the true captions against edited ones and against other pictures' captions."""
    if not isinstance(model, Matcher):
        raise TypeError("the matcher's figures are for matchers")
    true, edited, other = pair_evidence(model, data, split, seed)
    return {"auc_edited": auroc(true, edited), "auc_other": auroc(true, other)}


def calibrate(model: Matcher, data: Pictures, split: Split = "validation", seed: int = 3) -> None:
    """Make the probabilities of the drawn world's pairs mean what they say."""
    fit_scale(model, *pair_evidence(model, data, split, seed))


def fit_scale(model: Matcher, true: Tensor, edited: Tensor, other: Tensor) -> None:
    """Platt scaling (1999): fit slope and offset where half of the texts are true, a quarter have one edit.

    The arguments are the log odds of such texts, see `pair_evidence`.
    """
    odds = torch.cat([true, edited, other])
    labels = torch.cat([torch.ones(len(true)), torch.zeros(len(edited) + len(other))])
    weights = torch.cat(
        [torch.full_like(part, share / len(part)) for part, share in ((true, 0.5), (edited, 0.25), (other, 0.25))]
    )
    slope, offset = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
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


def train_matcher(
    data: Pictures,
    validation: Pictures,
    run: Path,
    recipe: MatcherRecipe,
    *,
    minutes: float | None = None,
    device: str = "cpu",
) -> Outcome:
    model = make_matcher(recipe)
    judge = Validation(lambda model: figures(model, validation, "validation"), "auc_edited")
    return train(model, loss, batches(data, recipe), recipe, run, validation=judge, minutes=minutes, device=device)


def report(model: Matcher, splits: Mapping[Split, Pictures]) -> dict[str, float]:
    """All published figures, `<split>/<figure>`; `calibration_error` over true and edited captions, half and half."""
    result: dict[str, float] = {}
    for name, data in splits.items():
        found = figures(model, data, name) | r_precision(model, data, name, seed=4)
        true, edited, _ = pair_evidence(model, data, name, seed=5)
        odds = torch.cat([true, edited])
        labels = torch.cat([torch.ones(len(true)), torch.zeros(len(edited))])
        fitted = model.slope.cpu() * odds + model.offset.cpu()
        found["calibration_error"] = calibration_error(fitted.sigmoid(), labels)
        found["accuracy_edited"] = float(((fitted > 0) == labels.bool()).float().mean())
        result |= {f"{name}/{key}": value for key, value in found.items()}
    return result
