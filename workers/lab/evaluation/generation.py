"""Whether images show what prompts ask for: GenEval's protocol in the closed domain of the drawn world."""

from __future__ import annotations

from collections.abc import Sequence
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
"""Of the first prompt of a tag; those of each next one are a hundred higher. The same four for all prompts would draw
all pictures from the same four noises, and the bootstrap over prompts would not see how much depends on them."""
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
    """For each picture the probability of each statement."""

    @property
    def at_1(self) -> float:
        return float(self.right.mean())

    @property
    def best(self) -> float:
        """Whether the picture is right that the match engine likes best."""
        return float(self.right[int(self.scores.argmax())])

    @property
    def oracle(self) -> float:
        return float(self.right.any())


def draw(asked: Sequence[Prompt], contestants: Contestants, judge: Judge) -> list[Drawn]:
    texts = [prompt.text for prompt in asked for _ in SEEDS]
    pictures = contestants.draw(texts, [seed + 100 * i for i in range(len(asked)) for seed in SEEDS])
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
    return {
        column: {tag: draw(prompts(tag, column, count, PROMPT_SEED), contestants, judge) for tag in TAGS}
        for column in COLUMNS
    }


MEASURES = ("at_1", "best", "oracle")


def figures(gallery: Gallery) -> dict[str, Any]:
    """For each column: the tags, the mean of GenEval's six, the tags beside it and Soft-TIFA."""
    return {column: _column(tags) for column, tags in gallery.items()}


def _column(tags: dict[str, list[Drawn]]) -> dict[str, Any]:
    by_tag = {tag: {m: asdict(mean([getattr(d, m) for d in drawn])) for m in MEASURES} for tag, drawn in tags.items()}
    six = {m: asdict(mean_of_means([[getattr(drawn, m) for drawn in tags[tag]] for tag in GENEVAL])) for m in MEASURES}
    languages = {
        language: asdict(
            mean_of_means([[d.at_1 for d in tags[tag] if d.prompt.language == language] for tag in GENEVAL])
        )
        for language in ("zh", "en")
    }
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


def six_tags(rights: dict[str, Sequence[float]]) -> Figure:
    """The unweighted mean over GenEval's six tags of one number a prompt."""
    return mean_of_means([rights[tag] for tag in GENEVAL])
