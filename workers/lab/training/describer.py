"""Training and measuring the describer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tuwen.engine import Pixels
from tuwen.jobs import Language, Style
from workers.lab.training.data import HasPixels, Pictures, cut, disturb, draw_batch, to_tensor
from workers.lab.training.frozen import OnTrunkRecipe, read, start_on_trunk
from workers.lab.training.imagined import imagine, join
from workers.lab.training.measures import measure_domain, measure_splits
from workers.lab.training.outliers import make_outliers
from workers.lab.training.trainable import Trainable, teach
from workers.models.describer import Describer, write
from workers.models.recognizer import Reading
from workers.models.text import END, PAD, Vocabulary, vocabulary
from workers.scenes.grammar import Scene, caption, pick, sample_scene
from workers.scenes.lexicon import KEYS
from workers.scenes.parsing import graph, parse

LANGUAGES: tuple[Language, ...] = get_args(Language)
STYLES: tuple[Style, ...] = get_args(Style)


class Batch(NamedTuple):
    """B scenes: there are pictures of some, and only an imagined reading of the others."""

    images: Tensor
    """(pictures + outliers, 3, 64, 64)"""
    imagined: Reading
    """Readings of the other scenes, (B − pictures)."""
    told: Tensor
    """What the describer is told to have written before each token, (B, languages, length)."""
    right: Tensor
    """The token that should come next, (B, languages, length)."""


@dataclass(frozen=True, slots=True)
class DescriberRecipe(OnTrunkRecipe):
    """How the describer is trained."""

    learning_rate: float = 4e-3
    warmup: int = 50
    batch: int = 32
    shown: int = 8
    """How many scenes of a batch are pictures; the others are imagined readings."""
    outliers: int = 6
    """Pictures from outside the drawn world in each batch, besides the others, where the recogniser learns too."""
    misremember: float = 0.3
    """Share of the captions that are continued from wrong words; see `misremember`."""


def make_describer(recipe: DescriberRecipe, words: Vocabulary | None = None) -> Describer:
    """A describer of these words, by default the drawn world's, with the weights that its recipe starts from."""
    torch.manual_seed(recipe.seed)
    return start_on_trunk(Describer(words=words), recipe)


def misremember(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with other colours and actions: its plain captions are as long, word for word, as the true ones.

    A describer that is told to have written them still has to name what it sees. Otherwise it learns from its own
    words that what follows "green" is never a cat, because no training caption says so.
    """
    things = []
    for thing in scene.things:
        colour = pick(rng, KEYS["colour"])
        action = pick(rng, KEYS["action"]) if thing.action else None
        things.append(replace(thing, colour=colour, action=action))
    return replace(scene, things=tuple(things))


def pad_rows(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids of different lengths as one tensor, int64 (rows, longest)."""
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return ids


def batches(data: Pictures, recipe: DescriberRecipe) -> Callable[[int], Batch]:
    """The function that makes the batch of a step."""
    # Where the recogniser is frozen, outliers would teach nothing.
    strangers = 0 if recipe.trunk and recipe.freeze_trunk else recipe.outliers

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        scenes, pixels = draw_batch(data, recipe.shown, rng)
        strange = make_outliers(strangers, rng, pixels)
        images = disturb(to_tensor(np.concatenate([pixels, strange])), rng)
        others = [sample_scene(rng, "train") for _ in range(recipe.batch - recipe.shown)]
        imagined = imagine(others, rng)
        # One style a batch: its captions are about equally long, so little is spent on padding.
        style = STYLES[step % len(STYLES)]
        told, right = _lessons([*scenes, *others], style, recipe.misremember, rng)
        return Batch(images, imagined, told, right)

    return batch


def _lessons(scenes: Sequence[Scene], style: Style, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """What the describer is told to have written, and what should come next, (scenes, languages, length) each.

    There is one wording for each meaning: the confidence of a token then speaks of the picture, not of synonyms.
    """
    words = vocabulary()
    told: list[list[int]] = []
    right: list[list[int]] = []
    for scene in scenes:
        remembered = misremember(scene, rng) if rng.random() < share else scene
        for language in LANGUAGES:
            before = words.encode(caption(remembered.canonical(), language, style))
            told.append([words.begin(language, style), *before[:-1]])
            right.append(words.encode(caption(scene.canonical(), language, style)))
    shape = (len(scenes), len(LANGUAGES), -1)
    return pad_rows(told).view(shape), pad_rows(right).view(shape)


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Cross entropy of the next word, and of whether a picture is of the drawn world."""
    if not isinstance(model, Describer):
        raise TypeError("the describer's loss is for describers")
    count, languages = batch.told.shape[:2]
    pictures = count - len(batch.imagined.presence)
    reading = read(model.eyes.recognizer, batch.images)
    sight = model.regard(join(reading, batch.imagined, pictures))
    row = torch.arange(count, device=batch.told.device).repeat_interleave(languages)
    logits, _ = model(sight.rows(row), batch.told.flatten(0, 1))
    words = nn.functional.cross_entropy(logits.float().flatten(0, 1), batch.right.flatten(), ignore_index=PAD)
    known = (torch.arange(len(batch.images), device=row.device) < pictures).float()
    strange = nn.functional.binary_cross_entropy_with_logits(reading.domain.float(), known)
    figures = {"words": words.detach(), "domain": strange.detach()}
    return words + 0.5 * strange, figures


@torch.no_grad()
def describe(
    model: Describer,
    pixels: Pixels,
    language: Language,
    style: Style,
    *,
    beams: int = 3,
    size: int = 100,
) -> list[tuple[str, float]]:
    """Captions of undisturbed pictures, uint8 (count, 64, 64, 3), in batches of `size`.

    Returns:
        Each caption with the geometric mean of its tokens' probabilities.
    """
    device = next(model.parameters()).device
    found = []
    for part in cut(len(pixels), size):
        sight, _ = model.look(to_tensor(pixels[part], device))
        begin = torch.full((len(sight.keys),), model.vocabulary.begin(language, style), device=device)
        for written in write(model, sight, begin, beams=beams):
            text = model.vocabulary.decode([*written.ids, END])
            log_p = np.log(np.maximum(written.confidences, 1e-9))
            found.append((text, float(np.exp(np.mean(log_p)))))
    return found


def caption_figures(model: Describer, data: Pictures, style: Style = "short", beams: int = 3) -> dict[str, float]:
    """Precision, recall and F1 of the captions' facts, pooled over all pictures, for each language.

    `exact` is the share of captions without any mistake.
    """
    result: dict[str, float] = {}
    for language in LANGUAGES:
        captions = describe(model, data.pixels, language, style, beams=beams)
        right = said = true = exact = 0
        for scene, (text, _) in zip(data.scenes, captions, strict=True):
            facts = parse(text).facts()
            truth = graph(scene).facts(sizes=style != "short")
            right += len(facts & truth)
            said += len(facts)
            true += len(truth)
            exact += facts == truth
        result |= {
            f"{language}_precision": right / max(said, 1),
            f"{language}_recall": right / true,
            f"{language}_f1": 2 * right / max(said + true, 1),
            f"{language}_exact": exact / len(data),
        }
    return result


def figures(model: Describer, data: Pictures) -> dict[str, float]:
    """What is measured in each validation; `f1` is the mean of the languages."""
    found = caption_figures(model, data, beams=1)
    return {**found, "f1": (found["zh_f1"] + found["en_f1"]) / 2}


@torch.no_grad()
def domain_logits(model: Describer, pixels: Pixels, size: int = 100) -> Tensor:
    """Logits (B,) of being of the drawn world, on the processor, of pictures uint8 (B, 64, 64, 3)."""
    device = next(model.parameters()).device
    logits = []
    for part in cut(len(pixels), size):
        _, domain = model.look(to_tensor(pixels[part], device))
        logits.append(domain)
    return torch.cat(logits).float().cpu()


def calibrate(model: Describer, data: HasPixels) -> None:
    """Lets nearly all pictures like these, which are of the world that the model knows, pass as such."""
    model.eyes.recognizer.domain.admit(domain_logits(model, data.pixels))


def report(model: Describer, splits: Mapping[str, Pictures]) -> dict[str, float]:
    """All published figures, `<split>/<style>_<figure>`."""

    def figures_of_all_styles(model: Describer, data: Pictures) -> dict[str, float]:
        found = {}
        for style in STYLES:
            for key, value in caption_figures(model, data, style).items():
                found[f"{style}_{key}"] = value
        return found

    found = measure_splits(figures_of_all_styles, model, splits)
    return found | measure_domain(lambda pixels: domain_logits(model, pixels), splits["seen"].pixels)


TRAINABLE: Trainable[Pictures] = Trainable(
    build=make_describer,
    train=teach(build=make_describer, loss=loss, batches=batches, figures=figures, metric="f1"),
    report=report,
    calibrate=calibrate,
)
