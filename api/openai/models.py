"""Which models OpenAI's clients may name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter

from api.http.auth import CallerDep
from api.openai.errors import RESPONSES, OpenAIRoute, WrongKind
from api.producer.resources import ResourcesDep
from shared.settings import Settings
from tuwen.errors import UnknownModel
from tuwen.jobs import Kind
from tuwen.messages import Model

router = APIRouter(prefix="/v1/models", tags=["openai"], route_class=OpenAIRoute, responses=RESPONSES)


def served(settings: Settings, workers: Sequence[Any]) -> list[Model]:
    """Each model once; `created` is when the first worker that lives began to serve, 0 while none does.

    Args:
        workers: rows of `Workers.alive`.
    """
    since = int(min((row.started_at.timestamp() for row in workers), default=0))
    return [Model(id=name, created=since, kinds=kinds) for name, kinds in _kinds(settings).items()]


def require(settings: Settings, kind: Kind, name: str | None) -> str:
    """The model for a request that names `name`, or none.

    Raises:
        UnknownModel: it is not served here.
        WrongKind: it is, for something else.
    """
    ours = [model.name for model in settings.models_for(kind)]
    if name is None or name in ours:
        return name or ours[0]
    kinds = _kinds(settings).get(name)
    here = f"to {kind} there is {' or '.join(ours)}."
    if kinds is None:
        raise UnknownModel(f"The model is not served here; {here}", field="model")
    raise WrongKind(f"The model {name} is served to {' and '.join(kinds)}; {here}", field="model")


@router.get("/{model:path}", response_model=Model, summary="Show a model")
async def show(_: CallerDep, model: str, resources: ResourcesDep) -> Model:
    found = {each.id: each for each in served(resources.settings, await run_sync(resources.database.workers.alive))}
    if model not in found:
        raise UnknownModel(f"The model is not served here; there are {', '.join(found)}.", field="model")
    return found[model]


def _kinds(settings: Settings) -> Mapping[str, list[Kind]]:
    found: dict[str, list[Kind]] = {}
    for kind in Kind:
        for model in settings.models_for(kind):
            found.setdefault(model.name, []).append(kind)
    return found
