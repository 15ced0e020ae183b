"""How well image and text find each other: R-precision both ways, and the cycle prompt → image → caption."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from tuwen.jobs import Language
from workers.lab.evaluation.contestants import Contestants
from workers.lab.evaluation.description import f1, f1_rows, facts
from workers.lab.evaluation.intervals import Figure, mean
from workers.lab.training.data import Pictures
from workers.scenes.grammar import Scene, Split, caption, edit, pick
from workers.scenes.parsing import graph, parse

HUNDRED = 100
EDITS = 9


def _say(scene: Scene, language: Language, rng: np.random.Generator) -> str:
    return caption(scene, language, pick(rng, ("short", "detailed", "tags")), rng)


def figures(data: Pictures, split: Split, contestants: Contestants) -> dict[str, Any]:
    """R-precision of the match engine's log odds, and the cycle, in both languages in turn."""
    rng = np.random.default_rng(41)
    languages: list[Language] = ["zh" if number % 2 == 0 else "en" for number in range(len(data))]
    texts = [_say(scene, language, rng) for scene, language in zip(data.scenes, languages, strict=True)]
    measured = {
        "r_precision": r_precision(data, texts, contestants),
        "one_edit": one_edit(data, split, languages, contestants),
        "cycle_f1": cycle(data, languages, contestants),
    }
    result = {}
    for group, found in measured.items():
        result[group] = {name: asdict(figure) for name, figure in found.items()}
    return result


def r_precision(data: Pictures, texts: list[str], contestants: Contestants) -> dict[str, Figure]:
    """How often a picture's own caption comes first among 100, and a caption's own picture among 100.

    A caption that happens to be true of another picture of the hundred too is no wrong answer and is left out.
    """
    truth = [graph(scene).facts() for scene in data.scenes]
    claimed = [parse(text).facts() for text in texts]
    to_text = []
    to_image = []
    for start in range(0, len(data) - HUNDRED + 1, HUNDRED):
        part = slice(start, start + HUNDRED)
        scores = contestants.matcher.log_odds(list(data.pixels[part]), texts[part], pairwise=False).numpy()
        fits = np.array([[claim <= known for claim in claimed[part]] for known in truth[part]])
        rivals = np.where(fits, -np.inf, scores)
        own = np.diagonal(scores)
        to_text += (own > rivals.max(1)).tolist()
        to_image += (own > rivals.max(0)).tolist()
    return {"text": mean(to_text), "image": mean(to_image)}


def one_edit(data: Pictures, split: Split, languages: list[Language], contestants: Contestants) -> dict[str, Figure]:
    """How often the true caption scores above captions with a single wrong statement: above all of nine, above one."""
    rng = np.random.default_rng(43)
    first = []
    pair = []
    for scene, picture, language in zip(data.scenes, data.pixels, languages, strict=True):
        edited = [_say(edit(scene, rng, split), language, rng) for _ in range(EDITS)]
        known = graph(scene).facts()
        # Now and then a caption is still true after the edit.
        wrong = [text for text in edited if not parse(text).facts() <= known]
        texts = [_say(scene, language, rng), *wrong]
        scores = contestants.matcher.log_odds([picture], texts, pairwise=False)[0].numpy()
        above = scores[0] > scores[1:]
        first.append(bool(above.all()))
        pair.append(float(above.mean()))
    return {"first_of_ten": mean(first), "before_one": mean(pair)}


def cycle(data: Pictures, languages: list[Language], contestants: Contestants) -> dict[str, Figure]:
    """F1 of the facts of the caption of the image of a prompt, against the prompt's own."""
    found: dict[str, Figure] = {}
    for language in ("zh", "en"):
        scenes = [scene for scene, spoken in zip(data.scenes, languages, strict=True) if spoken == language]
        texts = [caption(scene, language, "short") for scene in scenes]
        pictures = contestants.draw(texts, [100 + i for i in range(len(texts))])
        answers = contestants.describe(pictures, language)
        said = [parse(answer.text).facts() for answer in answers]
        found[language] = f1(f1_rows([facts(scene, "short") for scene in scenes], said))
    return found
