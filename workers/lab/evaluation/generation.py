"""Whether images show what prompts ask for: GenEval's protocol in the closed domain of the drawn world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuwen.engine import Pixels
from workers.lab.evaluation.contestants import Contestants
from workers.lab.evaluation.intervals import Figure, mean, mean_of_means
from workers.lab.evaluation.judge import Judge
from workers.lab.evaluation.prompts import BESIDE, COLUMNS, GENEVAL, TAGS, Column, Prompt, prompts
from workers.lab.evaluation.verdicts import atoms, correct

SEEDS = (11, 23, 47, 91)
"""Seeds of the first prompt of a tag; those of each next one are a hundred higher.

The same four for all prompts would draw all pictures from the same four noises, and the bootstrap over prompts would
not see how much depends on them.
"""
PROMPT_SEED = 1000


@dataclass(frozen=True, slots=True)
class Drawn:
    """One prompt's four pictures and what became of them."""

    prompt: Prompt
    pictures: list[Pixels]
    right: NDArray[np.bool_]
    """The judge's verdict on each picture."""
    scores: NDArray[np.float64]
    """What the match engine, which is not the judge, gives each."""
    atoms: list[dict[str, float]]
    """Probability of each statement, for each picture."""

    @property
    def at_1(self) -> float:
        """Share of the pictures that are right."""
        return float(self.right.mean())

    @property
    def best(self) -> float:
        """Whether the picture is right that the match engine likes best."""
        return float(self.right[int(self.scores.argmax())])

    @property
    def oracle(self) -> float:
        """Whether any picture is right."""
        return float(self.right.any())


def draw(asked: Sequence[Prompt], contestants: Contestants, judge: Judge) -> list[Drawn]:
    """The pictures of each prompt, with what match engine and judge say of them."""
    texts = [prompt.text for prompt in asked for _ in SEEDS]
    seeds = [seed + 100 * number for number in range(len(asked)) for seed in SEEDS]
    pictures = contestants.draw(texts, seeds)
    scores = np.array(contestants.match(pictures, texts)).reshape(-1, len(SEEDS))
    seen = judge.look(pictures)
    drawn = []
    for i, prompt in enumerate(asked):
        mine = slice(i * len(SEEDS), (i + 1) * len(SEEDS))
        right = np.array([correct(prompt, sighting) for sighting in seen[mine]])
        held = [atoms(prompt, sighting) for sighting in seen[mine]]
        drawn.append(Drawn(prompt, pictures[mine], right, scores[i], held))
    return drawn


Gallery = dict[Column, dict[str, list[Drawn]]]


def draw_all(count: int, contestants: Contestants, judge: Judge) -> Gallery:
    """`count` prompts of each tag, seen and unseen."""
    gallery: Gallery = {}
    for column in COLUMNS:
        gallery[column] = {}
        for tag in TAGS:
            asked = prompts(tag, column, count, PROMPT_SEED)
            gallery[column][tag] = draw(asked, contestants, judge)
    return gallery


MEASURES = ("at_1", "best", "oracle")


def figures(gallery: Gallery) -> dict[str, Any]:
    """Return for each column the tags, the mean of GenEval's six, the tags beside it and Soft-TIFA."""
    return {column: _column(tags) for column, tags in gallery.items()}


def _column(tags: dict[str, list[Drawn]]) -> dict[str, Any]:
    by_tag: dict[str, dict[str, Any]] = {tag: {} for tag in tags}
    six = {}
    for measure in MEASURES:
        values = {tag: [getattr(each, measure) for each in drawn] for tag, drawn in tags.items()}
        six[measure] = asdict(six_tags(values))
        for tag, numbers in values.items():
            by_tag[tag][measure] = asdict(mean(numbers))
    languages = {}
    for language in ("zh", "en"):
        at_1 = {tag: [each.at_1 for each in drawn if each.prompt.language == language] for tag, drawn in tags.items()}
        languages[language] = asdict(six_tags(at_1))
    return {
        "mean": six,
        "mean_by_language_at_1": languages,
        "tags": {tag: by_tag[tag] for tag in GENEVAL},
        "beside": {tag: by_tag[tag] for tag in BESIDE},
        "soft_tifa": soft_tifa(tags["atoms"]),
        "by_atoms": _by_number(tags["atoms"]),
    }


def soft_tifa(drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Arithmetic mean over all atoms; over prompts the mean of the geometric mean of each one's atoms."""
    values = [[list(held.values()) for held in each.atoms] for each in drawn]
    geometric = [np.mean([_geometric(chances) for chances in each]) for each in values]
    arithmetic = [np.mean([np.mean(chances) for chances in each]) for each in values]
    kinds: dict[str, list[float]] = {}
    for each in drawn:
        for held in each.atoms:
            for name, chance in held.items():
                kinds.setdefault(name.split()[0], []).append(chance)
    return {
        "arithmetic": asdict(mean(arithmetic)),
        "geometric": asdict(mean(geometric)),
        "by_kind": {kind: float(np.mean(chances)) for kind, chances in kinds.items()},
    }


def _geometric(chances: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(np.maximum(chances, 1e-6)))))


def _by_number(drawn: Sequence[Drawn]) -> dict[int, dict[str, Any]]:
    numbers = sorted({len(each.atoms[0]) for each in drawn})
    return {n: asdict(mean([d.at_1 for d in drawn if len(d.atoms[0]) == n])) for n in numbers}


def six_tags(rights: Mapping[str, Sequence[float]]) -> Figure:
    """The unweighted mean over GenEval's six tags of one number a prompt."""
    return mean_of_means([rights[tag] for tag in GENEVAL])
