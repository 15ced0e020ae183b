"""Images as a generate job: what OpenAI's clients send, and what they read when the job is over."""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.objects.signed_urls import ResultUrls
from shared.objects.storage import ObjectStore
from shared.openai.errors import UnsupportedParameter, error_of_job
from shared.openai.models import require
from shared.settings import Settings
from tuwen.errors import InvalidRequest
from tuwen.jobs import (
    GenerateInput,
    GenerateResult,
    Job,
    JobRequest,
    Kind,
    Label,
    StoredImage,
    Text,
    Word,
)

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)


class ImagesRequest(BaseModel):
    """OpenAI's parameters, followed by our own, which its clients send as `extra_body`."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text
    model: Label | None = None
    n: int | None = Field(None, ge=1, le=10)
    size: str | None = Field(None, description="`auto`, or WIDTHxHEIGHT in pixels")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="`b64_json` (the default) or `url`")
    output_format: str | None = Field(None, description="`png`")
    background: str | None = Field(None, description="`auto` or `opaque`")
    stream: bool | None = None
    partial_images: int | None = Field(
        None,
        ge=0,
        le=3,
        description="with `stream`: number of small WebP previews before the image, from models that draw in steps",
    )
    quality: str | None = Field(None, description="has no effect, like style, moderation, complexity and user")
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
        """The generate job that the request asks for. Raises InvalidRequest, naming the parameter."""
        width, height = _size(self.size)
        if self.output_format not in (None, "png"):
            raise UnsupportedParameter("Images are always png; leave output_format out.", field="output_format")
        if self.background not in (None, "auto", "opaque"):
            raise UnsupportedParameter(
                "Images cannot have a transparent background; leave background out.", field="background"
            )
        count = self.n or 1
        if self.stream and count > 1:
            raise UnsupportedParameter("One image at a time can be streamed; ask for n=1.", field="n")
        if self.stream and self.response_format == "url":
            raise UnsupportedParameter(
                "A stream always contains the image itself; leave response_format out.", field="response_format"
            )
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
            # The model decides how many steps there are, so the job reports every preview, and those that are due are
            # sent.
            previews=1 if self.stream and self.partial_images else 0,
        )
        return JobRequest(input=wanted, model=require(settings, Kind.GENERATE, self.model), priority=priority)


def answer(
    settings: Settings, store: ObjectStore, urls: ResultUrls, response_format: str | None, job: Job
) -> dict[str, Any]:
    """The answer in OpenAI's shape for a job that has succeeded. Raises StorageUnavailable."""
    images = []
    words = revised_prompts(job)
    for index, image in enumerate(stored_images(job)):
        if response_format == "url":
            url = store.url(image.key, settings.result_url_ttl) or urls.image(job.id, index)
            images.append({"url": url} | words[index])
        else:
            images.append({"b64_json": image_base64(store, image)} | words[index])
    first = stored_images(job)[0]
    return {
        "created": int(job.created_at.timestamp()),
        "data": images,
        "size": f"{first.width}x{first.height}",
        "output_format": "png",
        "background": "opaque",
    }


def stored_images(job: Job) -> list[StoredImage]:
    """The images of a generate job, the best first."""
    if not isinstance(job.result, GenerateResult):
        raise error_of_job(job)
    return [each.image for each in job.result.candidates if each.image] or [job.result.image]


def revised_prompts(job: Job) -> list[dict[str, str]]:
    """OpenAI's `revised_prompt` of each image of a generate job: what was drawn, when the model reports it."""
    if not isinstance(job.result, GenerateResult):
        raise error_of_job(job)
    texts = [each.revised_prompt for each in job.result.candidates if each.image] or [job.result.revised_prompt]
    return [{"revised_prompt": text} if text else {} for text in texts]


def image_base64(store: ObjectStore, image: StoredImage) -> str:
    """Raises NotFound, StorageUnavailable."""
    return b64encode(store.get(image.key)).decode()


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text in (None, "auto"):
        return None, None
    found = _SIZE.fullmatch(text or "")
    sides = [int(side) for side in found.groups()] if found else []
    if not sides or not all(16 <= side <= 4096 for side in sides):
        raise InvalidRequest("size must be auto, or WIDTHxHEIGHT with sides of 16 to 4096 pixels.", field="size")
    return sides[0], sides[1]
