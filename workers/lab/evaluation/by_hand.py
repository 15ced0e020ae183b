"""Prompts as people write them, with what a picture of them has to show: honoured, said, or silently wrong.

The prompts were written by hand in `prompts_by_hand.json`. Those of `development` were looked at while the words were
taught; those of `held_out` were written before and only counted. A prompt is *feasible* where the drawn world holds
everything that it asks for; of the others something has to be said, or nothing drawn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

from tuwen.engine import GenerateItem, Picture, Pixels
from workers.engines.builtin import BuiltinGenerator
from workers.engines.placement import UnobservedRun
from workers.lab.evaluation.intervals import mean
from workers.lab.evaluation.judge import SIDE, Judge
from workers.lab.evaluation.prompts import POSITIONS
from workers.lab.evaluation.sighting import Detection, Sighting
from workers.lab.evaluation.verdicts import relations
from workers.lab.world.render import render
from workers.scenes.completing import Scenery, complete
from workers.scenes.grammar import SPLITS, Mention, Scene, Thing
from workers.scenes.lexicon import Role
from workers.scenes.understanding import Understood

SETS = ("development", "held_out")
SEEDS = tuple(range(301, 309))
"""Eight of each prompt."""

Outcome = Literal["honoured", "said", "silently wrong"]
OUTCOMES: tuple[Outcome, ...] = ("honoured", "said", "silently wrong")


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, and what of it a picture has to show."""

    prompt: str
    feasible: bool
    things: tuple[Mention, ...]
    """All things of the picture, and no other; none of an infeasible prompt: nothing to hold it against."""
    place: str | None = None
    relation: str | None = None
    """Relation of the first things to the second."""

    @property
    def scenes(self) -> list[Scene]:
        """Scenes that the prompt is true of, one for each seed; none where the renderer knows no such scene."""
        counts = [thing.count for thing in self.things]
        if not counts or (len(counts) == 2 and (sum(counts) > 2 or self.things[0].object == self.things[1].object)):
            return []
        asked = Understood(self.things, self.place, self.relation)
        return [_scene(complete(asked, seed), seed) for seed in SEEDS]


def _scene(scenery: Scenery, seed: int) -> Scene:
    things = tuple(Thing(t.object, t.colour or "", t.action, t.size or "", t.count) for t in scenery.things)
    return Scene(things, scenery.place, scenery.relation, seed * len(SPLITS) + SPLITS.index("seen"))


@dataclass(frozen=True, slots=True)
class Drawn:
    """What became of a prompt."""

    asked: Asked
    pictures: tuple[Pixels, ...]
    """Pictures of the prompt; there are none where it was refused."""
    right: tuple[bool, ...]
    """Whether each picture shows what it has to."""
    said: tuple[str, ...]
    """Warnings and unknown words, or the refusal."""

    @property
    def outcome(self) -> Outcome:
        if self.asked.feasible and self.pictures and all(self.right):
            return "honoured"
        return "said" if self.said else "silently wrong"


@cache
def prompts_by_hand(name: str) -> tuple[Asked, ...]:
    """The prompts of a set."""
    rows = json.loads(Path(__file__).with_name("prompts_by_hand.json").read_text(encoding="utf-8"))[name]
    return tuple(Asked(**{**row, "things": tuple(Mention(**thing) for thing in row["things"])}) for row in rows)


def draw(asked: Sequence[Asked], generator: BuiltinGenerator, judge: Judge) -> list[Drawn]:
    """Draw each prompt with each seed."""
    return [_draw(each, generator, judge) for each in asked]


def _draw(asked: Asked, generator: BuiltinGenerator, judge: Judge) -> Drawn:
    answers = generator.run([GenerateItem(asked.prompt, seed) for seed in SEEDS], UnobservedRun())
    made = [answer for answer in answers if isinstance(answer, Picture)]
    pictures = [picture.pixels for picture in made]
    said = [word for picture in made for word in (*picture.warnings, *picture.unknown_words)]
    said += [str(answer) for answer in answers if not isinstance(answer, Picture)]
    right = tuple(shows(asked, sighting) for sighting in judge.look(pictures)) if pictures else ()
    return Drawn(asked, tuple(pictures), right, tuple(dict.fromkeys(said)))


def shows(asked: Asked, sighting: Sighting) -> bool:
    """Whether a picture shows all that is asked for, and nothing else.

    What is seen within a thing that is wanted, and less certainly, is a part of it: the head of a large cat.
    """
    if asked.place not in (None, sighting.place):
        return False
    wanted = [group for group, thing in enumerate(asked.things) for _ in range(thing.count)]
    found = sighting.detections
    return any(
        _fits(asked, wanted, [found[i] for i in order])
        and all(any(_part(rest, found[i]) for i in order) for k, rest in enumerate(found) if k not in order)
        for order in permutations(range(len(found)), len(wanted))
    )


def _part(inner: Detection, outer: Detection) -> bool:
    (x, y), (left, top, right, bottom) = inner.centre, outer.box
    return inner.presence < outer.presence and left <= x <= right and top <= y <= bottom


def _fits(asked: Asked, wanted: Sequence[int], order: Sequence[Detection]) -> bool:
    if not all(_is(asked.things[group], found) for group, found in zip(wanted, order, strict=True)):
        return False
    if asked.relation is None:
        return True
    first = [found for group, found in zip(wanted, order, strict=True) if group == 0]
    second = [found for group, found in zip(wanted, order, strict=True) if group == 1]
    return all(POSITIONS[asked.relation] in relations(a.box, b.box) for a in first for b in second)


def _is(thing: Mention, found: Detection) -> bool:
    said: dict[Role, str | None] = {
        "object": thing.object,
        "colour": thing.colour,
        "action": thing.action,
        "size": thing.size,
    }
    return all(value in (None, found.value(role)) for role, value in said.items())


def figures(generator: BuiltinGenerator, judge: Judge) -> dict[str, Any]:
    """Count for each set the feasible and the infeasible prompts by outcome, and how far the judge can be believed.

    Which prompts of the development set went wrong is told; of the others that would make them a development set too.
    """
    found = {}
    for name in SETS:
        asked = prompts_by_hand(name)
        drawn = draw(asked, generator, judge)
        found[name] = summary(drawn) | {"ceiling": ceiling(asked, judge)}
        if name == "development":
            found[name]["wrong"] = [d.asked.prompt for d in drawn if d.outcome == "silently wrong"]
    return found


def ceiling(asked: Sequence[Asked], judge: Judge) -> dict[str, Any]:
    """How often the judge accepts true renders of feasible prompts: all eight of a prompt, and single pictures."""
    scenes = [(each, each.scenes) for each in asked if each.feasible]
    accepted = [
        [shows(each, sighting) for sighting in judge.look([render(scene, SIDE) for scene in drawn])]
        for each, drawn in scenes
        if drawn
    ]
    return {
        "prompts": asdict(mean([all(right) for right in accepted])),
        "pictures": asdict(mean([right for each in accepted for right in each])),
    }


def summary(drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Shares of prompts by outcome, and of pictures of feasible prompts that are right; a refusal is no picture."""
    feasible = [each for each in drawn if each.asked.feasible]
    infeasible = [each for each in drawn if not each.asked.feasible]
    right = [right for each in feasible for right in each.right or (False,) * len(SEEDS)]
    return {
        "feasible": {outcome: _share(feasible, outcome) for outcome in OUTCOMES},
        "infeasible": {outcome: _share(infeasible, outcome) for outcome in OUTCOMES[1:]},
        "pictures": asdict(mean(right)),
    }


def _share(drawn: Sequence[Drawn], outcome: Outcome) -> dict[str, Any]:
    return asdict(mean([each.outcome == outcome for each in drawn]))
