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
from workers.lab.evaluation.sighting import truth
from workers.lab.evaluation.verdicts import correct
from workers.lab.world.render import render
from workers.scenes.grammar import SPLITS, Scene, edit


def example(prompt: Prompt, seed: int) -> Scene:
    """A scene that the prompt is true of, drawn otherwise for each seed, that no training picture was."""
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
    """For each prompt: how often the judge accepts true renders (`ceiling`, of four), renders of another prompt, and
    a render with a single edit; and how often it is as the truth is in each."""
    rng = np.random.default_rng(seed)
    true = [example(prompt, k) for prompt in asked for k in SEEDS]
    shuffled = [example(asked[(i + 1 + int(rng.integers(len(asked) - 1))) % len(asked)], 0) for i in range(len(asked))]
    edited = [counterfactual(prompt, rng) for prompt in asked]
    seen = judge.look([render(scene, SIDE) for scene in (*true, *shuffled, *edited)])
    ceiling = [correct(asked[i // len(SEEDS)], seen[i]) for i in range(len(true))]
    floor = [correct(p, s) for p, s in zip(asked, seen[len(true) : len(true) + len(asked)], strict=True)]
    fooled = [correct(p, s) for p, s in zip(asked, seen[-len(asked) :], strict=True)]
    coincidence = [correct(p, truth(scene)) for p, scene in zip(asked, shuffled, strict=True)]
    return {
        "ceiling": np.reshape(ceiling, (-1, len(SEEDS))).mean(1).tolist(),
        "shuffled": [float(x) for x in floor],
        "shuffled_true": [float(x) for x in coincidence],
        "edited": [float(x) for x in fooled],
    }


def figures(count: int, judge: Judge) -> dict[str, Any]:
    """For each column and measure the mean of GenEval's six tags, and every tag by itself."""
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
