"""Choice of the model that does what a request of OpenAI's clients asks for."""

from __future__ import annotations

from collections.abc import Mapping

from shared.openai.errors import WrongKind
from shared.settings import Settings
from tuwen.errors import UnknownModel
from tuwen.jobs import Kind


def require(settings: Settings, kind: Kind, name: str | None) -> str:
    """The model for a request of `kind`: the one called `name`, or the default when `name` is None.

    Raises:
        UnknownModel: the model is not served here.
        WrongKind: the model is served for another kind of job.
    """
    ours = [model.name for model in settings.models_for(kind)]
    if name is None or name in ours:
        return name or ours[0]
    kinds = kinds_by_model(settings).get(name)
    here = f"use {' or '.join(ours)} to {kind}."
    if kinds is None:
        raise UnknownModel(f"The model is not served here; {here}", field="model")
    raise WrongKind(f"The model {name} is served to {' and '.join(kinds)}; {here}", field="model")


def kinds_by_model(settings: Settings) -> Mapping[str, list[Kind]]:
    """Each model that is served here, with the kinds of job that it does."""
    found: dict[str, list[Kind]] = {}
    for kind in Kind:
        for model in settings.models_for(kind):
            found.setdefault(model.name, []).append(kind)
    return found
