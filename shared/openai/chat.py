"""A chat completion as a describe job: what OpenAI's clients send, and what they read when the job is over."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.intake.data_urls import is_data_url
from shared.openai.errors import UnsupportedParameter, error_of_job
from shared.openai.models import require
from shared.settings import Settings
from tuwen.errors import InvalidRequest
from tuwen.jobs import (
    DescribeInput,
    DescribeResult,
    ImageSource,
    Job,
    JobRequest,
    Kind,
    Label,
    Language,
    Style,
    Word,
)

_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_ONLY = {
    "n": (1, "Each request gets one answer."),
    "logprobs": (False, "Token probabilities are not available."),
    "modalities": (["text"], "Answers are text."),
}
"""Parameters with the only value that is supported; leaving them out is supported too."""
_NEVER = ("tools", "tool_choice", "functions", "function_call", "audio", "top_logprobs", "web_search_options")


class ImageUrl(BaseModel):
    """An image by its URL, http(s) or data."""

    url: Word
    detail: str | None = None


class FileId(BaseModel):
    """An image by the id of an uploaded file."""

    file_id: str = Field(pattern=r"^[0-9a-f]{64}$")


class MessagePart(BaseModel):
    """A part of a message: text, or an image given by its http(s) URL, as a data: URL, or as an uploaded file."""

    type: Literal["text", "image_url", "file"]
    text: Word | None = None
    image_url: ImageUrl | None = None
    file: FileId | None = None

    @property
    def image(self) -> ImageSource | None:
        """The image of this part, None for text. Raises InvalidRequest when the URL cannot name an image."""
        if self.type == "file" and self.file:
            return ImageSource(file_id=self.file.file_id)
        return _source(self.image_url.url) if self.type == "image_url" and self.image_url else None


class Message(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Word | list[MessagePart] | None = None

    @property
    def parts(self) -> list[MessagePart]:
        return [MessagePart(type="text", text=self.content)] if isinstance(self.content, str) else self.content or []


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(BaseModel):
    """OpenAI's parameters, followed by our own, which its clients send as `extra_body`."""

    # The remaining parameters control sampling, or say who asks and why; they have no effect here.
    model_config = ConfigDict(extra="allow")

    messages: list[Message] = Field(min_length=1)
    model: Label | None = None
    max_tokens: int | None = Field(None, ge=1, le=2048)
    max_completion_tokens: int | None = Field(None, ge=1, le=2048)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None

    language: Language | None = Field(None, description="language of the answer; without it, that of the question")
    style: Style | None = None

    def job(self, settings: Settings, priority: int = 5) -> JobRequest:
        """The describe job that the request asks for. Raises InvalidRequest, naming the parameter."""
        self._refuse_unsupported()
        question = self._question
        chinese = _CHINESE.search(question) is not None
        wanted = DescribeInput(
            image=self._image,
            prompt=question[:4000],
            language=self.language or ("zh" if chinese else "en"),
            style=self.style or "short",
            max_tokens=self.max_completion_tokens or self.max_tokens or 64,
        )
        return JobRequest(input=wanted, model=require(settings, Kind.DESCRIBE, self.model), priority=priority)

    def _refuse_unsupported(self) -> None:
        extra = self.model_extra or {}
        for name, (only, why) in _ONLY.items():
            if extra.get(name) not in (None, only):
                raise UnsupportedParameter(f"{why} Leave {name} out.", field=name)
        for name in _NEVER:
            if extra.get(name):
                raise UnsupportedParameter(
                    f"{name} is not supported, since this endpoint only describes images; leave it out.", field=name
                )
        if self.response_format not in (None, {"type": "text"}):
            raise UnsupportedParameter("Answers are plain text; leave response_format out.", field="response_format")

    @property
    def _asked(self) -> Message:
        """The last message of the user: the models that describe images do not remember a conversation."""
        for message in reversed(self.messages):
            if message.role == "user":
                return message
        raise InvalidRequest("There is no message with the role user; add one with an image.", field="messages")

    @property
    def _question(self) -> str:
        return "\n".join(part.text for part in self._asked.parts if part.type == "text" and part.text)

    @property
    def _image(self) -> ImageSource:
        images = [image for part in self._asked.parts if (image := part.image) is not None]
        if len(images) != 1:
            raise InvalidRequest(
                f"The last user message has {len(images)} images; it needs exactly one part of the type image_url.",
                field="messages",
            )
        return images[0]


def answer(job: Job) -> dict[str, Any]:
    """The answer in OpenAI's shape for a job that has succeeded."""
    result = describe_result(job)
    message = {"role": "assistant", "content": result.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(job, result)}
    return {**completion_head(job, "chat.completion"), "choices": [choice], "usage": token_usage(result)}


def completion_head(job: Job, name: str) -> dict[str, Any]:
    """Return the fields that whole completions and their chunks share; `name` is the type of the object."""
    return {
        "id": f"chatcmpl-{job.id.hex}",
        "object": name,
        "created": int(job.created_at.timestamp()),
        "model": job.model,
    }


def describe_result(job: Job) -> DescribeResult:
    """Return the result of a describe job; raise the error of a job that has none."""
    if not isinstance(job.result, DescribeResult):
        raise error_of_job(job)
    return job.result


def finish_reason(job: Job, result: DescribeResult) -> str:
    """Say why the text ends: `length` where it has as many tokens as it may have, otherwise `stop`."""
    most: int = job.input["max_tokens"]
    return "length" if result.tokens is not None and result.tokens >= most else "stop"


def token_usage(result: DescribeResult) -> dict[str, int]:
    """Token counts as the model reports them; zero for a model that reports none."""
    read, written = result.prompt_tokens or 0, result.tokens or 0
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _source(url: str) -> ImageSource:
    if is_data_url(url):
        return ImageSource(base64=url)
    if not url.startswith(("http://", "https://")) or len(url) > 2048:
        raise InvalidRequest(
            "image_url.url must be an http(s) URL of at most 2,048 characters, or data:image/…;base64,…",
            field="messages",
        )
    return ImageSource(url=url)
