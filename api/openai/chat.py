"""`POST /v1/chat/completions`: a message with an image becomes a describe job."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import JSONResponse, Response

from api.http.auth import Caller, CallerDep
from api.http.reference import json_body
from api.http.revocation import hold_of
from api.http.streams import stream
from api.openai.errors import RESPONSES
from api.openai.requests import LIMITED, Started, follow_or_cancel, start, wait_until_done
from api.producer.once import IdempotencyKey
from api.producer.resources import Resources, ResourcesDep
from shared.intake.validation import parse
from shared.openai.chat import ChatRequest, answer, completion_head, describe_result, finish_reason, token_usage
from shared.openai.errors import body, error_of_job
from tuwen.errors import EngineError
from tuwen.jobs import Progress, Status

router = APIRouter(prefix="/v1/chat", tags=["openai"], responses=RESPONSES)


@router.post(
    "/completions",
    summary="Describe an image (OpenAI)",
    responses=LIMITED,
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
async def complete(
    request: Request, caller: CallerDep, resources: ResourcesDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Describe the image of the last user message, in the language of the text beside it.

    With `stream`, the text is sent while it is written, by models that report it: checkpoints do; the built-in model
    finishes too quickly."""
    sent = await request.body()
    asked = parse(ChatRequest, sent)
    started = await start(resources, caller, asked.job(resources.settings), len(sent), idempotency_key, asked)
    if asked.stream:
        include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        hold_of(request).last_event = lambda error: _data({"error": body(error)})
        return stream(_events(resources, caller, started, include_usage=include_usage), started.headers)
    job = await wait_until_done(request, resources, caller, started)
    return JSONResponse(answer(job), headers=started.headers)


async def _events(
    resources: Resources, caller: Caller, started: Started, *, include_usage: bool
) -> AsyncIterator[bytes]:
    head = completion_head(started.job, "chat.completion.chunk") | ({"usage": None} if include_usage else {})

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _data({**head, "choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    text = GrowingText()
    async for news in follow_or_cancel(resources, caller, started):
        if news is None:
            yield KEEPALIVE_COMMENT
        elif isinstance(news, Progress):
            if delta := text.take_new(news):
                yield chunk({"content": delta})
        elif news.status is not Status.SUCCEEDED:
            yield _data({"error": body(error_of_job(news))})
            return
        else:
            result = describe_result(news)
            try:
                rest = text.take_rest(result.text)
            except EngineError as error:
                yield _data({"error": body(error)})
                return
            if rest:
                yield chunk({"content": rest})
            yield chunk({}, finish_reason(news, result))
            if include_usage:
                yield _data({**head, "choices": [], "usage": token_usage(result)})
    yield format_sse_event(data_str="[DONE]")


class GrowingText:
    """The part of an unfinished text that was already sent to the client, and cannot be taken back."""

    def __init__(self) -> None:
        self._sent = ""

    def take_new(self, progress: Progress) -> str:
        """The text to send since the last call; empty while the job, after a restart, writes another text."""
        text = next((part.text for part in progress.parts if part.index == 0 and part.text), "")
        return self._send(text) if text.startswith(self._sent) else ""

    def take_rest(self, text: str) -> str:
        """The part of the whole text that was not sent yet.

        Raises:
            EngineError: the text begins differently from the part that was sent.
        """
        if not text.startswith(self._sent):
            # For example, the worker that began the text died, and another one on another chip wrote it again.
            raise EngineError(
                "the job was restarted, and its text differs from the part that was sent; send the request again"
            )
        return self._send(text)

    def _send(self, text: str) -> str:
        delta = text[len(self._sent) :]
        self._sent = text
        return delta


def _data(value: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(value, ensure_ascii=False))
