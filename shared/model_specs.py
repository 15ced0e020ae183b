"""How an installation names its models: `TUWEN_GENERATE`, `TUWEN_DESCRIBE`, `TUWEN_RECOGNIZE`, `TUWEN_MATCH`.

    builtin
    import:package.module:Class
    [NAME=]ENGINE:REPO_OR_FOLDER[@REVISION][?OPTION=VALUE&…]      ENGINE is diffusers, transformers or clip

Several models of one kind are written `a,b`; the first serves jobs that name none. Clients name a model by NAME, or
otherwise by the hub's `owner/name` or the last part of the folder. In values `%2C`, `%26` and the like stand for `,`
and `&`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from urllib.parse import unquote

CHECKPOINT_ENGINES = ("diffusers", "transformers", "clip")

_NEXT = re.compile(r",\s*(?=(?:[\w.\-]+=)?(?:builtin\s*(?:,|$)|(?:import|diffusers|transformers|clip):))")
"""The comma before another model; a comma inside a folder's name or a value does not match."""
_NAMED = re.compile(r"(?P<name>[\w.\-]+)=(?P<rest>(?:builtin$|import:|diffusers:|transformers:|clip:).*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One configured model."""

    name: str
    """The name that a job's `model` gives."""
    engine: str
    """builtin, import, diffusers, transformers or clip."""
    text: str
    """The specification as it was written."""
    place: str = ""
    """`module:Class` of an import; folder or hub id of a checkpoint."""
    revision: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def from_checkpoint(self) -> bool:
        return self.engine in CHECKPOINT_ENGINES

    @property
    def is_folder(self) -> bool:
        """Whether the place can only be a folder on this machine; `a/b` may also be on the hub."""
        return self.place.startswith(("/", ".", "~")) or self.place.count("/") != 1


def parse_models(text: str) -> tuple[ModelSpec, ...]:
    """The models that a setting names, the default one first; at least one.

    Raises:
        ValueError: the text does not name models, or two models have the same name.
    """
    specs = tuple(_parse_one(part.strip()) for part in _NEXT.split(text))
    names = [spec.name for spec in specs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two models are called {min(twice)}: give them different names, NAME={text.split(',')[0]}")
    return specs


def _parse_one(text: str) -> ModelSpec:
    named = _NAMED.fullmatch(text)
    name, rest = (named["name"], named["rest"]) if named else ("", text)
    engine, _, where = rest.partition(":")
    if rest == "builtin":
        return ModelSpec(name or "builtin", "builtin", text)
    if engine == "import" and all(where.partition(":")[::2]):
        return ModelSpec(name or rest, "import", text, where)
    if engine in CHECKPOINT_ENGINES and where:
        where, _, query = where.partition("?")
        place, _, revision = where.partition("@")
        spec = ModelSpec(name, engine, text, unquote(place), revision or None, _options(query))
        return spec if name else _name_after_place(spec)
    raise ValueError(
        f"{text!r} names no model: use 'builtin', 'import:package.module:Class', or "
        "'diffusers:…', 'transformers:…' or 'clip:REPO_OR_FOLDER[@REVISION][?OPTION=VALUE&…]'"
    )


def _name_after_place(spec: ModelSpec) -> ModelSpec:
    name = PurePath(spec.place).name if spec.is_folder else spec.place
    return replace(spec, name=name or spec.place)


def _options(query: str) -> dict[str, str]:
    options = {}
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise ValueError(f"{part!r} is not an option: write options as OPTION=VALUE and join them by '&'")
        options[key] = unquote(value)
    return options
