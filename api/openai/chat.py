"""`POST /v1/chat/completions`: a message with an image becomes a describe job."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response, StreamingResponse

from api.http.auth import Caller, CallerDep
from api.http.bodies import parse
from api.http.reference import json_body
from api.openai.errors import RESPONSES, OpenAIRoute, UnsupportedParameter, body, of_job
from api.openai.models import require
from api.openai.waiting import done, start, until_the_end
from api.producer.resources import Resources, ResourcesDep
from shared.settings import Settings
from tuwen.errors import EngineError, InvalidRequest
from tuwen.jobs import (
    DescribeInput,
    DescribeResult,
    ImageSource,
    Job,
    JobRequest,
    Kind,
    Label,
    Language,
    Progress,
    Status,
    Style,
    Word,
)

router = APIRouter(prefix="/v1/chat", tags=["openai"], route_class=OpenAIRoute, responses=RESPONSES)

_DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]+)*;base64,", re.ASCII)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_ONLY = {
    "n": (1, "One answer is given to a request."),
    "logprobs": (False, "Probabilities of tokens are not told."),
    "modalities": (["text"], "Answers are text."),
}
"""Parameters of which one value can be followed, besides none at all."""
_NEVER = ("tools", "tool_choice", "functions", "function_call", "audio", "top_logprobs", "web_search_options")


class ImageUrl(BaseModel):
    url: Word
    detail: str | None = None


class FileId(BaseModel):
    file_id: str = Field(pattern=r"^[0-9a-f]{64}$")


class Part(BaseModel):
    """A part of a message: text, or an image by its http(s) URL, as a data: URL, or uploaded before."""

    type: Literal["text", "image_url", "file"]
    text: Word | None = None
    image_url: ImageUrl | None = None
    file: FileId | None = None

    @property
    def image(self) -> ImageSource | None:
        """Raises InvalidRequest: the URL is none of an image."""
        if self.type == "file" and self.file:
            return ImageSource(file_id=self.file.file_id)
        return _source(self.image_url.url) if self.type == "image_url" and self.image_url else None


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Word | list[Part] | None = None

    @property
    def parts(self) -> list[Part]:
        return [Part(type="text", text=self.content)] if isinstance(self.content, str) else self.content or []


class StreamOptions(BaseModel):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(BaseModel):
    """OpenAI's parameters, and after them our own, which its clients send as `extra_body`."""

    # The others steer how words are drawn by lot, or say who asks and why: without effect here.
    model_config = ConfigDict(extra="allow")

    messages: list[Message] = Field(min_length=1)
    model: Label | None = None
    max_tokens: int | None = Field(None, ge=1, le=2048)
    max_completion_tokens: int | None = Field(None, ge=1, le=2048)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None

    language: Language | None = Field(None, description="of the answer; none means that of the question")
    style: Style | None = None

    def job(self, settings: Settings, priority: int = 5) -> JobRequest:
        """Raises InvalidRequest, naming the parameter."""
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
                    f"{name} is not supported: a message with an image is described.", field=name
                )
        if self.response_format not in (None, {"type": "text"}):
            raise UnsupportedParameter("Answers are plain text.", field="response_format")

    @property
    def _asked(self) -> Message:
        """The last message of the user: models that describe have no memory of a conversation."""
        for message in reversed(self.messages):
            if message.role == "user":
                return message
        raise InvalidRequest("There is no message of the role user.", field="messages")

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


@router.post(
    "/completions",
    summary="Describe an image (OpenAI)",
    openapi_extra=json_body(
        ChatRequest,
        {
            "describe": {
                "value": {
                    "model": "builtin",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "text", "text": "What is this?"},
                                {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
                            ],
                        }
                    ],
                }
            }
        },
    ),
)
async def complete(request: Request, caller: CallerDep, resources: ResourcesDep) -> Response:
    """The image of the last user message is described, in the language of the text beside it.

    With `stream` it is heard as it is written, where the model tells: checkpoints do, the built-in one is too quick."""
    sent = await request.body()
    wish = parse(ChatRequest, sent)
    job = await start(resources, caller, wish.job(resources.settings), len(sent))
    if wish.stream:
        usage = bool(wish.stream_options and wish.stream_options.include_usage)
        return StreamingResponse(
            _stream(resources, caller, job, include_usage=usage),
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            media_type="text/event-stream",
        )
    return JSONResponse(answer(await done(request, resources, caller, job)))


def answer(job: Job) -> dict[str, Any]:
    """OpenAI's answer of a job that has succeeded."""
    result = _result(job)
    message = {"role": "assistant", "content": result.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(job, result)}
    return {**_head(job, "chat.completion"), "choices": [choice], "usage": _usage(result)}


async def _stream(resources: Resources, caller: Caller, job: Job, *, include_usage: bool) -> AsyncIterator[bytes]:
    head = _head(job, "chat.completion.chunk") | ({"usage": None} if include_usage else {})

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _data({**head, "choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    text = GrowingText()
    async for news in until_the_end(resources, caller, job):
        if news is None:
            yield b": still here\n\n"
        elif isinstance(news, Progress):
            if delta := text.grown(news):
                yield chunk({"content": delta})
        elif news.status is not Status.SUCCEEDED:
            yield _data({"error": body(of_job(news))})
            return
        else:
            result = _result(news)
            try:
                rest = text.rest(result.text)
            except EngineError as error:
                yield _data({"error": body(error)})
                return
            if rest:
                yield chunk({"content": rest})
            yield chunk({}, _finish_reason(news, result))
            if include_usage:
                yield _data({**head, "choices": [], "usage": _usage(result)})
    yield b"data: [DONE]\n\n"


class GrowingText:
    """What was sent of a text whose end is not known yet: nothing that was sent can be taken back."""

    def __init__(self) -> None:
        self._sent = ""

    def grown(self, progress: Progress) -> str:
        """What there is to send since the last time. None while the job, begun anew, says something else."""
        text = next((part.text for part in progress.parts if part.index == 0 and part.text), "")
        return self._send(text) if text.startswith(self._sent) else ""

    def rest(self, text: str) -> str:
        """What is missing of the whole text.

        Raises:
            EngineError: it begins otherwise than what was sent.
        """
        if not text.startswith(self._sent):
            # It was begun by a worker that died, say, and written anew by another one on another chip.
            raise EngineError("the text was written anew and begins otherwise than what was sent; ask again")
        return self._send(text)

    def _send(self, text: str) -> str:
        delta = text[len(self._sent) :]
        self._sent = text
        return delta


def _data(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def _head(job: Job, name: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{job.id.hex}",
        "object": name,
        "created": int(job.created_at.timestamp()),
        "model": job.model,
    }


def _result(job: Job) -> DescribeResult:
    if not isinstance(job.result, DescribeResult):
        raise of_job(job)
    return job.result


def _finish_reason(job: Job, result: DescribeResult) -> str:
    most: int = job.input["max_tokens"]
    return "length" if result.tokens is not None and result.tokens >= most else "stop"


def _usage(result: DescribeResult) -> dict[str, int]:
    """As the model counts them; a model that does not tell counts nothing."""
    read, written = result.prompt_tokens or 0, result.tokens or 0
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _source(url: str) -> ImageSource:
    found = _DATA_URL.match(url[:200])
    if found:
        return ImageSource(base64=url[found.end() :])
    if not url.startswith(("http://", "https://")) or len(url) > 2048:
        raise InvalidRequest(
            "image_url.url is an http(s) URL of at most 2,048 characters, or data:image/…;base64,…", field="messages"
        )
    return ImageSource(url=url)
