"""`POST /v1/images/generations`: an OpenAI request for images becomes one job with as many candidates."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import JSONResponse, Response

from api.http.auth import Caller, CallerDep
from api.http.reference import json_body
from api.http.revocation import hold_of
from api.http.streams import stream
from api.openai.errors import RESPONSES
from api.openai.requests import LIMITED, Started, follow_or_cancel, start, wait_until_done
from api.producer.links import ResultUrlsDep
from api.producer.once import IdempotencyKey
from api.producer.resources import Resources, ResourcesDep
from shared.intake.validation import parse
from shared.openai.errors import body, error_of_job
from shared.openai.images import ImagesRequest, answer, image_base64, revised_prompts, stored_images
from tuwen.jobs import Job, Progress, Status

router = APIRouter(prefix="/v1/images", tags=["openai"], responses=RESPONSES)


@router.post(
    "/generations",
    summary="Draw images (OpenAI)",
    responses=LIMITED,
    openapi_extra=json_body(ImagesRequest, {"cat": {"value": {"prompt": "一只黑色的猫在草地上跳跃", "n": 2}}}),
)
async def generate(
    request: Request,
    caller: CallerDep,
    resources: ResourcesDep,
    urls: ResultUrlsDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Draw images. With `n`, they are scored against the prompt and come in the order of their scores.

    With `stream` and `partial_images`, small previews come before the image, from models that draw in steps."""
    sent = await request.body()
    asked = parse(ImagesRequest, sent)
    started = await start(resources, caller, asked.job(resources.settings), len(sent), idempotency_key, asked)
    if asked.stream:
        hold_of(request).last_event = lambda error: _error(body(error))
        return stream(_events(resources, caller, started, asked.partial_images or 0), started.headers)
    job = await wait_until_done(request, resources, caller, started)
    made = await run_sync(answer, resources.settings, resources.store, urls, asked.response_format, job)
    return JSONResponse(made, headers=started.headers)


async def _events(resources: Resources, caller: Caller, started: Started, partial_images: int) -> AsyncIterator[bytes]:
    job, sent = started.job, 0
    async for news in follow_or_cancel(resources, caller, started):
        if news is None:
            yield KEEPALIVE_COMMENT
        elif isinstance(news, Progress):
            # Previews are spaced evenly: a single one in the middle, three at the quarters.
            if sent < partial_images and news.step * (partial_images + 1) >= news.steps * (sent + 1):
                for preview in [part.preview for part in news.parts if part.preview]:
                    yield _event(job, "partial_image", _picture(preview) | {"partial_image_index": sent})
                    sent += 1
        elif news.status is not Status.SUCCEEDED:
            yield _error(body(error_of_job(news)))
        else:
            [image] = stored_images(news)
            described: dict[str, Any] = {
                "b64_json": await run_sync(image_base64, resources.store, image),
                "size": f"{image.width}x{image.height}",
                "output_format": "png",
                **revised_prompts(news)[0],
                # OpenAI's type requires these counts, but nothing here counts tokens of pictures.
                "usage": {
                    "input_tokens": 0,
                    "output_tokens": 0,
                    "total_tokens": 0,
                    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
                },
            }
            yield _event(job, "completed", described)


def _picture(preview: str) -> dict[str, str]:
    """The fields of a preview event in OpenAI's shape."""
    head, _, data = preview.partition(";base64,")
    return {"b64_json": data, "size": "auto", "output_format": head.rpartition("/")[2]}


def _event(job: Job, name: str, data: dict[str, Any]) -> bytes:
    about = {
        "type": f"image_generation.{name}",
        "created_at": int(job.created_at.timestamp()),
        "quality": "auto",
        "background": "opaque",
    }
    return format_sse_event(event=f"image_generation.{name}", data_str=json.dumps(about | data))


def _error(error: dict[str, Any]) -> bytes:
    return format_sse_event(event="error", data_str=json.dumps({"type": "error", "error": error}))
