"""`POST /v1/images/generations`: an OpenAI request for images becomes one job with as many candidates."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response, StreamingResponse

from api.http.auth import Caller, CallerDep
from api.http.bodies import parse
from api.http.reference import json_body
from api.openai.errors import RESPONSES, OpenAIRoute, UnsupportedParameter, body, of_job
from api.openai.models import require
from api.openai.waiting import done, start, until_the_end
from api.producer.resources import BaseUrlDep, Resources, ResourcesDep
from shared.settings import Settings
from tuwen.errors import InvalidRequest
from tuwen.jobs import (
    GenerateInput,
    GenerateResult,
    Job,
    JobRequest,
    Kind,
    Label,
    Progress,
    Status,
    StoredImage,
    Text,
    Word,
)

router = APIRouter(prefix="/v1/images", tags=["openai"], route_class=OpenAIRoute, responses=RESPONSES)

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)


class ImagesRequest(BaseModel):
    """OpenAI's parameters, and after them our own, which its clients send as `extra_body`."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text
    model: Label | None = None
    n: int | None = Field(None, ge=1, le=10)
    size: str | None = Field(None, description="`auto`, or WIDTHxHEIGHT in pixels")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="`b64_json` unless `url` is asked for")
    output_format: str | None = Field(None, description="`png`")
    background: str | None = Field(None, description="`auto` or `opaque`")
    stream: bool | None = None
    partial_images: int | None = Field(
        None, ge=0, le=3, description="with `stream`: so many small WebP previews on the way, of models that have steps"
    )
    quality: str | None = Field(None, description="without effect, as are style, moderation, complexity and the user")
    style: str | None = None
    moderation: str | None = None
    complexity: str | None = None
    output_compression: int | None = None
    user: str | None = None
    safety_identifier: str | None = None

    seed: int | None = Field(None, ge=0, lt=2**63)
    negative_prompt: Annotated[Word, Field(max_length=4000)] | None = None
    steps: int | None = Field(None, ge=1, le=500)
    guidance: Annotated[float, Field(allow_inf_nan=False)] | None = Field(None, ge=0, le=100)

    def job(self, settings: Settings, priority: int = 5) -> JobRequest:
        """Raises InvalidRequest, naming the parameter."""
        width, height = _size(self.size)
        if self.output_format not in (None, "png"):
            raise UnsupportedParameter("Images are made as png.", field="output_format")
        if self.background not in (None, "auto", "opaque"):
            raise UnsupportedParameter("Images have no transparent background.", field="background")
        count = self.n or 1
        if self.stream and count > 1:
            raise UnsupportedParameter("One image at a time can be streamed; ask for n=1.", field="n")
        if self.stream and self.response_format == "url":
            raise UnsupportedParameter("What is streamed is the image itself.", field="response_format")
        wanted = GenerateInput(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt or "",
            width=width,
            height=height,
            steps=self.steps,
            guidance=self.guidance,
            seed=self.seed,
            candidates=count,
            keep="all",
            # How many steps there are, the model decides; of the previews those are sent that are due.
            previews=1 if self.stream and self.partial_images else 0,
        )
        return JobRequest(input=wanted, model=require(settings, Kind.GENERATE, self.model), priority=priority)


@router.post(
    "/generations",
    summary="Draw images (OpenAI)",
    openapi_extra=json_body(ImagesRequest, {"cat": {"value": {"prompt": "一只黑色的猫在草地上跳跃", "n": 2}}}),
)
async def generate(request: Request, caller: CallerDep, resources: ResourcesDep, base_url: BaseUrlDep) -> Response:
    """With `n`, the images are scored against the prompt and come in the order of their scores.

    With `stream` and `partial_images`, small previews come before the image, from models that draw in steps."""
    sent = await request.body()
    wish = parse(ImagesRequest, sent)
    job = await start(resources, caller, wish.job(resources.settings), len(sent))
    if wish.stream:
        return StreamingResponse(
            _stream(resources, caller, job, wish.partial_images or 0),
            headers={"Cache-Control": "no-store"},
            media_type="text/event-stream",
        )
    job = await done(request, resources, caller, job)
    return JSONResponse(await run_sync(answer, resources, base_url, wish.response_format, job))


def answer(resources: Resources, base_url: str, response_format: str | None, job: Job) -> dict[str, Any]:
    """OpenAI's answer of a job that has succeeded. Raises StorageUnavailable."""
    images = []
    for index, image in enumerate(kept(job)):
        if response_format == "url":
            fetched_here = f"{base_url}/v1/jobs/{job.id}/image" + (f"?candidate={index}" if index else "")
            url = resources.store.url(image.key, resources.settings.result_url_ttl)
            images.append({"url": url or fetched_here})
        else:
            images.append({"b64_json": _base64(resources, image)})
    first = kept(job)[0]
    return {
        "created": int(job.created_at.timestamp()),
        "data": images,
        "size": f"{first.width}x{first.height}",
        "output_format": "png",
        "background": "opaque",
    }


def kept(job: Job) -> list[StoredImage]:
    """The images of a generate job, the best first."""
    if not isinstance(job.result, GenerateResult):
        raise of_job(job)
    return [each.image for each in job.result.candidates if each.image] or [job.result.image]


def _base64(resources: Resources, image: StoredImage) -> str:
    return b64encode(resources.store.get(image.key)).decode()


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text in (None, "auto"):
        return None, None
    found = _SIZE.fullmatch(text or "")
    sides = [int(side) for side in found.groups()] if found else []
    if not sides or not all(16 <= side <= 4096 for side in sides):
        raise InvalidRequest("size is auto, or WIDTHxHEIGHT with sides of 16 to 4096 pixels.", field="size")
    return sides[0], sides[1]


async def _stream(resources: Resources, caller: Caller, job: Job, partial_images: int) -> AsyncIterator[bytes]:
    sent = 0
    async for news in until_the_end(resources, caller, job):
        if news is None:
            yield b": still here\n\n"
        elif isinstance(news, Progress):
            # Evenly on the way: of one the middle, of three the quarters.
            if sent < partial_images and news.step * (partial_images + 1) >= news.steps * (sent + 1):
                for preview in [part.preview for part in news.parts if part.preview]:
                    yield _event(job, "partial_image", _picture(preview) | {"partial_image_index": sent})
                    sent += 1
        elif news.status is not Status.SUCCEEDED:
            yield _error(body(of_job(news)))
        else:
            [image] = kept(news)
            described = {
                "b64_json": await run_sync(_base64, resources, image),
                "size": f"{image.width}x{image.height}",
                "output_format": "png",
                # Its type has them, and nothing here counts tokens of pictures.
                "usage": {
                    "input_tokens": 0,
                    "output_tokens": 0,
                    "total_tokens": 0,
                    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
                },
            }
            yield _event(job, "completed", described)


def _picture(preview: str) -> dict[str, str]:
    """OpenAI's description of a preview."""
    head, _, data = preview.partition(";base64,")
    return {"b64_json": data, "size": "auto", "output_format": head.rpartition("/")[2]}


def _event(job: Job, name: str, data: dict[str, Any]) -> bytes:
    about = {
        "type": f"image_generation.{name}",
        "created_at": int(job.created_at.timestamp()),
        "quality": "auto",
        "background": "opaque",
    }
    return f"event: image_generation.{name}\ndata: {json.dumps(about | data)}\n\n".encode()


def _error(error: dict[str, Any]) -> bytes:
    return f"event: error\ndata: {json.dumps({'type': 'error', 'error': error})}\n\n".encode()
