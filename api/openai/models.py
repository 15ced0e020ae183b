"""The models that OpenAI's clients may name."""

from __future__ import annotations

from collections.abc import Sequence

from anyio.to_thread import run_sync
from fastapi import APIRouter

from api.http.auth import CallerDep
from api.openai.errors import RESPONSES
from api.producer.resources import ResourcesDep
from shared.database.workers import WorkerState
from shared.openai.models import kinds_by_model
from shared.settings import Settings
from tuwen.errors import UnknownModel
from tuwen.messages import Model

router = APIRouter(prefix="/v1/models", tags=["openai"], responses=RESPONSES)


def served_models(settings: Settings, workers: Sequence[WorkerState]) -> list[Model]:
    """Each served model once; `created` is when the first of the live `workers` started, 0 while none is alive."""
    since = int(min((worker.started_at.timestamp() for worker in workers), default=0))
    return [Model(id=name, created=since, kinds=kinds) for name, kinds in kinds_by_model(settings).items()]


@router.get("/{model:path}", response_model=Model, summary="Show a model")
async def show(_: CallerDep, model: str, resources: ResourcesDep) -> Model:
    found = {
        each.id: each for each in served_models(resources.settings, await run_sync(resources.database.workers.alive))
    }
    if model not in found:
        raise UnknownModel(f"The model is not served here; use one of {', '.join(found)}.", field="model")
    return found[model]
