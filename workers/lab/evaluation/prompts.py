"""Prompts of the drawn world by what they test, with what an image of them must show, in GenEval's JSON schema.

GenEval (Ghosh et al., 2023) asks for objects by class, count, colour and position, in six tags. Three more tags ask for
what it does not: `action` and `scene`, whose keys `action` and `scene` extend the schema, and `atoms`, prompts of
three to eight statements as GenEval 2 has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tuwen.jobs import Language, Style
from workers.scenes.grammar import (
    UNSEEN_ACTIONS,
    UNSEEN_COLOURS,
    Mention,
    Scene,
    Thing,
    sample_scene,
    say,
)

Column = Literal["seen", "unseen"]
COLUMNS: tuple[Column, ...] = ("seen", "unseen")
GENEVAL = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
BESIDE = ("action", "scene", "atoms")
TAGS = (*GENEVAL, *BESIDE)
LANGUAGES: tuple[Language, ...] = ("zh", "en")

POSITIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
FEWEST_ATOMS, MOST_ATOMS = 3, 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """An entry of `include` or `exclude`: so many objects of a class, with what is said of them."""

    object: str
    count: int = 1
    colour: str | None = None
    position: tuple[str, int] | None = None
    """GenEval's relation, and the index of the entry that it refers to."""
    action: str | None = None
    size: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry in GenEval's schema."""
        said = {
            "color": self.colour,
            "position": self.position,
            "action": self.action,
            "size": self.size,
        }
        return {
            "class": self.object,
            "count": self.count,
            **{k: v for k, v in said.items() if v is not None},
        }


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, and what an image of it must show."""

    tag: str
    column: Column
    text: str
    language: Language
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()
    place: str | None = None
    """Must be recognised too, in the tags that ask for it."""
    example: Scene | None = None
    """A scene that the text is true of."""

    def as_json(self) -> dict[str, Any]:
        """A line of GenEval's `evaluation_metadata.jsonl`."""
        line: dict[str, Any] = {
            "tag": self.tag,
            "include": [wanted.as_json() for wanted in self.include],
        }
        if self.exclude:
            line["exclude"] = [wanted.as_json() for wanted in self.exclude]
        if self.place:
            line["scene"] = self.place
        return line | {"prompt": self.text, "language": self.language, "column": self.column}


def write_jsonl(prompts: Iterable[Prompt], path: Path) -> None:
    """Writes prompts to `path`, one JSON object a line."""
    lines = [json.dumps(prompt.as_json(), ensure_ascii=False) for prompt in prompts]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def prompts(tag: str, column: Column, count: int, seed: int) -> list[Prompt]:
    """`count` different prompts, Chinese and English in turn; the same for the same arguments.

    Prompts of the unseen column name a pair of object and colour or action that was never trained, and ask for it.
    """
    rng = np.random.default_rng([seed, TAGS.index(tag), COLUMNS.index(column)])
    found: dict[str, Prompt] = {}
    while len(found) < count:
        prompt = _draw(tag, column, LANGUAGES[len(found) % 2], rng)
        if prompt is not None:
            found.setdefault(prompt.text, prompt)
    return list(found.values())


def _draw(tag: str, column: Column, language: Language, rng: np.random.Generator) -> Prompt | None:
    """A random prompt, or None where the scene that was drawn does not suit the tag."""
    scene = sample_scene(rng, column)
    pair = tag in ("two_object", "position", "color_attr")
    if tag != "atoms" and (len(scene.things) == 2) != pair:
        return None
    if tag == "counting" and scene.things[0].count == 1:
        return None
    if tag in ("single_object", "colors", "action", "scene"):
        scene = replace(scene, things=(replace(scene.things[0], count=1),))
    if tag == "action" and scene.things[0].action is None:
        return None
    if tag == "atoms":
        return _atoms(scene, column, language, rng)
    said = tuple(_mention(thing, tag, column) for thing in scene.things)
    # GenEval's tags ask for objects only: a place is said half of the time and not asked for.
    place = scene.place if tag == "scene" or rng.random() < 0.5 else None
    relation = scene.relation if tag == "position" else None
    text = say(said, place, relation, language, "short", rng)
    exclude = (Wanted(said[0].object, said[0].count + 1),) if tag == "counting" else ()
    asked_place = place if tag == "scene" else None
    return Prompt(tag, column, text, language, _to_wanted(said, relation), exclude, asked_place, scene)


def _mention(thing: Thing, tag: str, column: Column) -> Mention:
    """What the tag asks for, and what makes an unseen pair unseen."""
    pair = column == "unseen"
    colour = tag in ("colors", "color_attr") or (pair and (thing.object, thing.colour) in UNSEEN_COLOURS)
    action = tag == "action" or (pair and (thing.object, thing.action) in UNSEEN_ACTIONS)
    return Mention(
        thing.object,
        thing.count,
        thing.colour if colour else None,
        None,
        thing.action if action else None,
    )


def _atoms(scene: Scene, column: Column, language: Language, rng: np.random.Generator) -> Prompt | None:
    """A prompt of three to eight statements: objects always, the rest at random; None where it would not be one."""
    roles = []
    for i, thing in enumerate(scene.things):
        roles += [(i, role) for role in ("colour", "action", "size") if _has(thing, role)]
    roles.append((-1, "place"))
    if scene.relation:
        roles.append((-1, "relation"))
    basic = sum(1 + (thing.count > 1) for thing in scene.things)
    atoms = int(rng.integers(FEWEST_ATOMS, MOST_ATOMS + 1))
    if not 0 <= atoms - basic <= len(roles):
        return None
    chosen = {roles[i] for i in rng.permutation(len(roles))[: atoms - basic]}

    def mention(i: int, thing: Thing) -> Mention:
        said = {role: getattr(thing, role) for role in ("colour", "size", "action") if (i, role) in chosen}
        return Mention(thing.object, thing.count, **said)

    said = tuple(mention(i, thing) for i, thing in enumerate(scene.things))
    shown = [Thing(m.object, m.colour or "", m.action) for m in said]
    if column == "unseen" and not any(thing.unseen for thing in shown):
        return None
    place = scene.place if (-1, "place") in chosen else None
    relation = scene.relation if (-1, "relation") in chosen else None
    style: Style = "short"
    if rng.random() < 0.2:
        style = "tags"
    elif rng.random() < 0.3:
        style = "detailed"
    text = say(said, place, relation, language, style, rng)
    exclude = tuple(Wanted(m.object, m.count + 1) for m in said if m.count > 1)
    return Prompt("atoms", column, text, language, _to_wanted(said, relation), exclude, place, scene)


def _has(thing: Thing, role: str) -> bool:
    return getattr(thing, role) is not None


def _to_wanted(said: Sequence[Mention], relation: str | None) -> tuple[Wanted, ...]:
    wanted = [Wanted(m.object, m.count, m.colour, None, m.action, m.size) for m in said]
    if relation:
        # GenEval's first entry is what the second one stands in relation to.
        first, second = wanted
        wanted = [second, replace(first, position=(POSITIONS[relation], 0))]
    return tuple(wanted)
