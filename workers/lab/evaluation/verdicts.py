"""Whether what is seen in a picture is what a prompt asked for, by GenEval's rules, and statement by statement."""

from __future__ import annotations

import numpy as np

from workers.lab.evaluation.prompts import Prompt, Wanted
from workers.lab.evaluation.sighting import Box, Detection, Sighting
from workers.scenes.lexicon import KEYS, Role

CLEARANCE = 0.1
"""Share of both objects' sizes by which centres must differ before they count as apart (GenEval's threshold)."""


def correct(prompt: Prompt, sighting: Sighting) -> bool:
    """GenEval's verdict: everything in `include` is there, nothing in `exclude` is, and the place is right if asked."""
    groups = [_find(wanted, sighting) for wanted in prompt.include]
    shown = all(_satisfied(wanted, group, groups) for wanted, group in zip(prompt.include, groups, strict=True))
    excess = any(len(_of_class(wanted.object, sighting)) >= wanted.count for wanted in prompt.exclude)
    return shown and not excess and prompt.place in (None, sighting.place)


def _of_class(object_: str, sighting: Sighting) -> list[Detection]:
    return [detection for detection in sighting.detections if detection.value("object") == object_]


def _find(wanted: Wanted, sighting: Sighting) -> list[Detection]:
    """Return as many objects of the wanted class as are wanted, the most certain first."""
    return _of_class(wanted.object, sighting)[: wanted.count]


def _satisfied(wanted: Wanted, group: list[Detection], groups: list[list[Detection]]) -> bool:
    if len(group) < wanted.count:
        return False
    for role, value in _attributes(wanted).items():
        if any(detection.value(role) != value for detection in group):
            return False
    if wanted.position is None:
        return True
    relation, other = wanted.position
    return all(relation in relations(mine.box, theirs.box) for mine in group for theirs in groups[other])


def _attributes(wanted: Wanted) -> dict[Role, str]:
    """What is said of a wanted object."""
    said: dict[Role, str | None] = {
        "colour": wanted.colour,
        "action": wanted.action,
        "size": wanted.size,
    }
    return {role: value for role, value in said.items() if value}


def relations(box: Box, other: Box) -> set[str]:
    """How the first box stands to the second: by the direction between centres that are clear of each other."""
    mine = np.array(box)
    theirs = np.array(other)
    offset = (mine[:2] + mine[2:] - theirs[:2] - theirs[2:]) / 2
    sizes = (mine[2:] - mine[:2]) + (theirs[2:] - theirs[:2])
    clear = np.sign(offset) * np.maximum(np.abs(offset) - CLEARANCE * sizes, 0)
    if np.abs(clear).max() < 1e-3:
        return set()
    x, y = clear / np.linalg.norm(offset)
    holds = {
        "left of": x < -0.5,
        "right of": x > 0.5,
        "above": y < -0.5,
        "below": y > 0.5,
    }
    return {relation for relation, is_so in holds.items() if is_so}


def atoms(prompt: Prompt, sighting: Sighting) -> dict[str, float]:
    """Return the probability that it holds for each single statement of the prompt.

    This is Soft-TIFA (Kamath et al., 2025) with the judge's probabilities in place of a language model's answers.
    """
    holds: dict[str, float] = {}
    for wanted in prompt.include:
        name = wanted.object
        chances = [_chance(detection, name) for detection in sighting.detections]
        holds[f"object {name}"] = max(chances, default=0.0)
        if wanted.count > 1:
            holds[f"count {name}"] = _chance_of_count(wanted, sighting)
        for role, value in _attributes(wanted).items():
            both = [_chance(detection, name) * detection.chance(role, value) for detection in sighting.detections]
            holds[f"{role} {name}"] = max(both, default=0.0)
        if wanted.position:
            holds[f"position {name}"] = _chance_of_relation(wanted, prompt, sighting)
    if prompt.place:
        holds["place"] = float(sighting.places[KEYS["place"].index(prompt.place)])
    return holds


def _chance(detection: Detection, object_: str) -> float:
    return detection.presence * detection.chance("object", object_)


def _chance_of_count(wanted: Wanted, sighting: Sighting) -> float:
    """The probability of exactly so many, if detections are independent of each other (Poisson binomial)."""
    numbers = np.array([1.0])
    for detection in sighting.detections:
        chance = _chance(detection, wanted.object)
        numbers = np.convolve(numbers, [1 - chance, chance])
    return float(numbers[wanted.count]) if wanted.count < len(numbers) else 0.0


def _chance_of_relation(wanted: Wanted, prompt: Prompt, sighting: Sighting) -> float:
    if wanted.position is None or not sighting.detections:
        return 0.0
    relation, index = wanted.position
    other = prompt.include[index]
    mine = max(sighting.detections, key=lambda d: _chance(d, wanted.object))
    theirs = max(sighting.detections, key=lambda d: _chance(d, other.object))
    holds = relation in relations(mine.box, theirs.box)
    return _chance(mine, wanted.object) * _chance(theirs, other.object) if holds else 0.0
