"""The labels of zero-shot recognition: the option `labels` of a model, by default the drawn world's words.

    labels=cat|dog|traffic light          objects alone
    labels=FILE.json                      {"objects": ["cat", ["traffic light", "红绿灯"]],
                                           "attributes": {"colour": ["black", "white"]},
                                           "actions": ["sitting"], "scenes": [["grass", "草地"]]}

A label is its English name, or the pair of its English and Chinese names; only "objects" must be there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tuwen.errors import EngineStartFailed
from workers.scenes.lexicon import ACTIONS, COLOURS, OBJECTS, PLACES, Concept


@dataclass(frozen=True, slots=True)
class Label:
    """The English and the Chinese name of one thing."""

    en: str
    zh: str


def _pair(value: object) -> object:
    match value:
        case str():
            return Label(value, value)
        case [str(en), str(zh)]:
            return Label(en, zh)
    return value


_Label = Annotated[Label, BeforeValidator(_pair)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    objects: tuple[_Label, ...] = Field(min_length=1)
    attributes: dict[str, tuple[_Label, ...]] = Field(default_factory=dict)
    actions: tuple[_Label, ...] = ()
    scenes: tuple[_Label, ...] = ()


@dataclass(frozen=True, slots=True)
class Labels:
    """All labels that a model looks for."""

    objects: tuple[Label, ...]
    attributes: dict[str, tuple[Label, ...]] = field(default_factory=dict)
    """Labels of each attribute, by its name."""
    actions: tuple[Label, ...] = ()
    scenes: tuple[Label, ...] = ()


def read_labels(option: str | None) -> Labels:
    """Read the labels that the option names.

    Raises:
        EngineStartFailed: the file cannot be read, or is malformed.
    """
    if option is None:
        return Labels(_names(OBJECTS), {"colour": _names(COLOURS)}, _names(ACTIONS), _names(PLACES))
    if not option.endswith(".json"):
        named = [part.strip() for part in option.split("|") if part.strip()]
        if not named:
            raise EngineStartFailed("labels= names nothing: write labels=cat|dog, or a .json file")
        return Labels(tuple(Label(name, name) for name in named))
    try:
        given = _File.model_validate_json(Path(option).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise EngineStartFailed(f"labels={option} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise EngineStartFailed(f"labels={option}: {place}: {first['msg']}") from error
    return Labels(given.objects, given.attributes, given.actions, given.scenes)


def _names(concepts: tuple[Concept, ...]) -> tuple[Label, ...]:
    return tuple(Label(concept.en[0], concept.zh[0]) for concept in concepts)
