"""How far the judge can be believed: on pictures whose truth is known, by the same prompts and the same rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from workers.lab.evaluation.generation import PROMPT_SEED, SEEDS, six_tags
from workers.lab.evaluation.intervals import mean
from workers.lab.evaluation.judge import SIDE, Judge
from workers.lab.evaluation.prompts import COLUMNS, TAGS, Column, Prompt, prompts
from workers.lab.evaluation.sighting import Sighting, truth
from workers.lab.evaluation.verdicts import correct
from workers.lab.world.render import render
from workers.scenes.grammar import SPLITS, Scene, edit


def example(prompt: Prompt, seed: int) -> Scene:
    """A scene that the prompt is true of, drawn differently for each seed; no training picture shows it."""
    if prompt.example is None:
        raise ValueError("the prompt has no example")
    base = prompt.example.seed // len(SPLITS) + seed
    return replace(prompt.example, seed=base * len(SPLITS) + SPLITS.index(prompt.column))


def counterfactual(prompt: Prompt, rng: np.random.Generator) -> Scene:
    """A scene with a single change that makes the prompt false of it."""
    scene = example(prompt, int(rng.integers(1000)))
    if not any(wanted.action for wanted in prompt.include):
        # Nothing but a bird flies: standing still, it can be changed into something else.
        scene = replace(scene, things=tuple(replace(thing, action=None) for thing in scene.things))
    while True:
        other = edit(scene, rng, "unseen")
        if not correct(prompt, truth(other)):
            return other


def trial(asked: Sequence[Prompt], judge: Judge, seed: int) -> dict[str, list[float]]:
    """How often the judge accepts pictures whose truth is known, for each prompt.

    The pictures: four true renders (`ceiling`), a render of another prompt (`shuffled`; `shuffled_true` says whether it
    happens to be true), and a render with a single edit (`edited`).
    """
    rng = np.random.default_rng(seed)
    count = len(asked)
    true = [example(prompt, number) for prompt in asked for number in SEEDS]
    shuffled = []
    for number in range(count):
        other = number + 1 + int(rng.integers(count - 1))
        shuffled.append(example(asked[other % count], 0))
    edited = [counterfactual(prompt, rng) for prompt in asked]
    seen = judge.look([render(scene, SIDE) for scene in (*true, *shuffled, *edited)])
    repeated = [prompt for prompt in asked for _ in SEEDS]
    ceiling = _judge(repeated, seen[: len(true)])
    return {
        "ceiling": np.reshape(ceiling, (-1, len(SEEDS))).mean(1).tolist(),
        "shuffled": _judge(asked, seen[len(true) : len(true) + count]),
        "shuffled_true": _judge(asked, [truth(scene) for scene in shuffled]),
        "edited": _judge(asked, seen[-count:]),
    }


def _judge(asked: Sequence[Prompt], seen: Sequence[Sighting]) -> list[float]:
    """1 where what is seen in a picture is what its prompt asks for, otherwise 0."""
    return [float(correct(prompt, sighting)) for prompt, sighting in zip(asked, seen, strict=True)]


def figures(count: int, judge: Judge) -> dict[str, Any]:
    """Return for each column and measure the mean of GenEval's six tags, and every tag by itself."""
    return {column: _column(column, count, judge) for column in COLUMNS}


def _column(column: Column, count: int, judge: Judge) -> dict[str, Any]:
    trials = {
        tag: trial(prompts(tag, column, count, PROMPT_SEED), judge, PROMPT_SEED + i) for i, tag in enumerate(TAGS)
    }
    measures = tuple(next(iter(trials.values())))
    return {
        "mean": {m: asdict(six_tags({tag: found[m] for tag, found in trials.items()})) for m in measures},
        "tags": {tag: {m: asdict(mean(found[m])) for m in measures} for tag, found in trials.items()},
    }
