"""Training and judging the describer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tuwen.jobs import Language, Style
from workers.lab.training.data import Pictures, disturb, draw_batch, to_tensor
from workers.lab.training.frozen import OnTrunkRecipe, on_trunk, read
from workers.lab.training.imagined import imagine, joined
from workers.lab.training.loop import Outcome, Validation, train
from workers.lab.training.measures import auroc
from workers.lab.training.outliers import FAMILIES, HELD_OUT, outliers
from workers.models.describer import Describer, write
from workers.models.recognizer import Reading
from workers.models.text import END, PAD, vocabulary
from workers.scenes.grammar import Scene, Split, caption, pick, sample_scene
from workers.scenes.lexicon import KEYS
from workers.scenes.parsing import graph, parse

LANGUAGES: tuple[Language, ...] = get_args(Language)
STYLES: tuple[Style, ...] = get_args(Style)


class Batch(NamedTuple):
    """Of B scenes; of some there are pictures, of the others only an imagined reading."""

    images: Tensor
    """(pictures + outliers, 3, 64, 64)"""
    imagined: Reading
    """Of the others, (B − pictures)."""
    told: Tensor
    """What the describer is told to have written before each token, (B, languages, length)."""
    right: Tensor
    """The token that should come next, (B, languages, length)."""


@dataclass(frozen=True, slots=True)
class DescriberRecipe(OnTrunkRecipe):
    learning_rate: float = 4e-3
    warmup: int = 50
    batch: int = 32
    shown: int = 8
    """How many of a batch are pictures; the others are imagined readings."""
    outliers: int = 6
    """Pictures from outside the drawn world in each batch, besides the others, where the recogniser learns too."""
    misremember: float = 0.3
    """Share of the captions that are continued from wrong words; see `misremembered`."""


def make_describer(recipe: DescriberRecipe) -> Describer:
    torch.manual_seed(recipe.seed)
    return on_trunk(Describer(), recipe)


def misremembered(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with other colours and actions: its plain captions are as long, word for word, as the true ones.

    A describer that is told to have written them still has to name what it sees. Otherwise it learns from its own
    words that what follows "green" is never a cat, because no training caption says so.
    """
    things = tuple(
        replace(t, colour=pick(rng, KEYS["colour"]), action=pick(rng, KEYS["action"]) if t.action else None)
        for t in scene.things
    )
    return replace(scene, things=things)


def padded(rows: list[list[int]]) -> Tensor:
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return ids


def batches(data: Pictures, recipe: DescriberRecipe) -> Callable[[int], Batch]:
    vocab = vocabulary()
    # Frozen eyes learn nothing from outliers.
    strangers = 0 if recipe.trunk and recipe.freeze_trunk else recipe.outliers

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        scenes, pixels = draw_batch(data, recipe.shown, rng)
        strange = outliers(strangers, rng, pixels)
        images = disturb(to_tensor(np.concatenate([pixels, strange])), rng)
        others = [sample_scene(rng, "train") for _ in range(recipe.batch - recipe.shown)]
        imagined = imagine(others, rng)
        scenes += others
        # One style a batch: its captions are about equally long, so little is spent on padding. One wording for each
        # meaning: the confidence of a token then speaks of the picture, not of synonyms.
        style = STYLES[step % len(STYLES)]
        told, right = [], []
        for scene in scenes:
            wrong = misremembered(scene, rng) if rng.random() < recipe.misremember else scene
            for language in LANGUAGES:
                begin = vocab.begin(language, style)
                told.append([begin, *vocab.encode(caption(wrong.canonical(), language, style))[:-1]])
                right.append(vocab.encode(caption(scene.canonical(), language, style)))
        shape = (len(scenes), len(LANGUAGES), -1)
        return Batch(images, imagined, padded(told).view(shape), padded(right).view(shape))

    return batch


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    if not isinstance(model, Describer):
        raise TypeError("the describer's loss is for describers")
    pictures = len(batch.told) - len(batch.imagined.presence)
    reading = read(model.eyes.recognizer, batch.images)
    sight = model.regard(joined(reading, batch.imagined, pictures))
    row = torch.arange(len(batch.told), device=batch.told.device).repeat_interleave(batch.told.shape[1])
    logits, _ = model(sight.rows(row), batch.told.flatten(0, 1))
    words = nn.functional.cross_entropy(logits.float().flatten(0, 1), batch.right.flatten(), ignore_index=PAD)
    known = (torch.arange(len(batch.images), device=row.device) < pictures).float()
    strange = nn.functional.binary_cross_entropy_with_logits(reading.domain.float(), known)
    return words + 0.5 * strange, {"words": words.detach(), "domain": strange.detach()}


@torch.no_grad()
def describe(
    model: Describer, pixels: np.ndarray, language: Language, style: Style, *, beams: int = 3, size: int = 100
) -> list[tuple[str, float]]:
    """Captions of undisturbed pictures with the geometric mean of their tokens' probabilities."""
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(pixels), size):
        sight, _ = model.look(to_tensor(pixels[start : start + size], device))
        begin = torch.full((len(sight.keys),), model.vocabulary.begin(language, style), device=device)
        for written in write(model, sight, begin, beams=beams):
            confidence = float(np.exp(np.mean(np.log(np.maximum(written.confidences, 1e-9)))))
            found.append((model.vocabulary.decode([*written.ids, END]), confidence))
    return found


def caption_figures(model: Describer, data: Pictures, style: Style = "short", beams: int = 3) -> dict[str, float]:
    """Precision, recall and F1 of the captions' facts, pooled over all pictures, for each language; `exact` is the
    share of captions without any mistake."""
    result: dict[str, float] = {}
    for language in LANGUAGES:
        captions = describe(model, data.pixels, language, style, beams=beams)
        right = said = true = exact = 0
        for scene, (text, _) in zip(data.scenes, captions, strict=True):
            facts, truth = parse(text).facts(), graph(scene).facts(sizes=style != "short")
            right, said, true = right + len(facts & truth), said + len(facts), true + len(truth)
            exact += facts == truth
        precision, recall = right / max(said, 1), right / true
        result |= {
            f"{language}_precision": precision,
            f"{language}_recall": recall,
            f"{language}_f1": 2 * right / max(said + true, 1),
            f"{language}_exact": exact / len(data),
        }
    return result


@torch.no_grad()
def domain_logits(model: Describer, pixels: np.ndarray, size: int = 100) -> Tensor:
    device = next(model.parameters()).device
    parts = [model.look(to_tensor(pixels[i : i + size], device))[1] for i in range(0, len(pixels), size)]
    return torch.cat(parts).float().cpu()


def calibrate(model: Describer, data: Pictures) -> None:
    """Let nearly all of the drawn world's pictures pass as such."""
    model.eyes.recognizer.domain.admit(domain_logits(model, data.pixels))


def domain_figures(model: Describer, data: Pictures, seed: int = 1) -> dict[str, float]:
    """Area under the ROC curve of `domain` for families of outliers met in training, and for those held out; share of
    true pictures that are taken for outliers, and of held-out outliers that are not."""
    rng = np.random.default_rng(seed)
    inside = domain_logits(model, data.pixels)
    met = domain_logits(model, outliers(500, rng, data.pixels, FAMILIES))
    held_out = domain_logits(model, outliers(500, rng, data.pixels, HELD_OUT))
    return {
        "outliers_met": auroc(inside, met),
        "outliers_held_out": auroc(inside, held_out),
        "true_refused": float((inside < 0).float().mean()),
        "outliers_admitted": float((held_out >= 0).float().mean()),
    }


def train_describer(
    data: Pictures,
    validation: Pictures,
    run: Path,
    recipe: DescriberRecipe,
    *,
    minutes: float | None = None,
    device: str = "cpu",
) -> Outcome:
    def figures(model: nn.Module) -> dict[str, float]:
        if not isinstance(model, Describer):
            raise TypeError("the describer's figures are for describers")
        found = caption_figures(model, validation, beams=1)
        return {**found, "f1": (found["zh_f1"] + found["en_f1"]) / 2}

    model = make_describer(recipe)
    judge = Validation(figures, "f1")
    return train(model, loss, batches(data, recipe), recipe, run, validation=judge, minutes=minutes, device=device)


def report(model: Describer, splits: Mapping[Split, Pictures]) -> dict[str, float]:
    """All published figures, `<split>/<style>_<figure>`."""
    result = {}
    for name, data in splits.items():
        for style in STYLES:
            for key, value in caption_figures(model, data, style).items():
                result[f"{name}/{style}_{key}"] = value
    return result | domain_figures(model, splits["seen"])
