"""Answers in OpenAI's shapes, as the OpenAPI document shows them; `shared.openai` makes them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api.openai.errors import ErrorDetail


class _Whole(BaseModel):
    """An object whose fields are always there, unless they have a default."""

    model_config = ConfigDict(extra="forbid")


class TokenUsage(_Whole):
    """Tokens that the model reports; 0 where it reports none."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class ChatAnswer(_Whole):
    """The model's message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Whole):
    """The only answer to a request."""

    index: Literal[0]
    message: ChatAnswer
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(_Whole):
    """A description of an image, as a completion of a chat."""

    id: str = Field(pattern="^chatcmpl-[0-9a-f]{32}$")
    object: Literal["chat.completion"]
    created: int = Field(description="Unix time")
    model: str
    choices: list[ChatChoice] = Field(min_length=1, max_length=1)
    usage: TokenUsage


class ChatDelta(_Whole):
    """The next part of a message."""

    role: Literal["assistant"] = Field("assistant", description="in the first chunk")
    content: str = ""


class ChunkChoice(_Whole):
    """What a chunk adds to the answer."""

    index: Literal[0]
    delta: ChatDelta
    logprobs: None
    finish_reason: Literal["stop", "length"] | None


class ChatChunk(_Whole):
    """A part of a streamed completion; after the last one comes the text `[DONE]`."""

    id: str = Field(pattern="^chatcmpl-[0-9a-f]{32}$")
    object: Literal["chat.completion.chunk"]
    created: int = Field(description="Unix time")
    model: str
    choices: list[ChunkChoice] = Field(max_length=1)
    usage: TokenUsage | None = Field(None, description="in every chunk with `stream_options.include_usage`")


class DrawnImage(BaseModel):
    """An image, either as base64 or by its URL."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1})

    b64_json: str = Field("", json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"})
    url: str = Field("", json_schema_extra={"format": "uri"})
    revised_prompt: str = Field("", description="what was drawn, where the model reports it")


class DrawnImages(_Whole):
    """The images of a request, the best first."""

    created: int = Field(description="Unix time")
    data: list[DrawnImage] = Field(min_length=1)
    size: str = Field(examples=["64x64"])
    output_format: Literal["png"]
    background: Literal["opaque"]


class _ImageEvent(_Whole):
    created_at: int = Field(description="Unix time")
    quality: Literal["auto"]
    background: Literal["opaque"]
    b64_json: str = Field(json_schema_extra={"contentEncoding": "base64"})
    size: str
    output_format: str


class PartialImageEvent(_ImageEvent):
    """A small preview of the image that is being drawn."""

    type: Literal["image_generation.partial_image"]
    partial_image_index: int = Field(ge=0, le=2)


class InputTokensDetails(_Whole):
    """Always 0."""

    image_tokens: int
    text_tokens: int


class ImageUsage(_Whole):
    """Always 0: nothing here counts tokens of pictures."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails


class ImageCompletedEvent(_ImageEvent):
    """The image."""

    type: Literal["image_generation.completed"]
    revised_prompt: str = Field("", description="what was drawn, where the model reports it")
    usage: ImageUsage


class ChatErrorEvent(_Whole):
    """Why the completion ends early; it is the last event."""

    error: ErrorDetail


class ImageErrorEvent(_Whole):
    """Why there is no image; it is the last event."""

    type: Literal["error"]
    error: ErrorDetail


DONE = {"type": "object", "required": ["data"], "properties": {"data": {"const": "[DONE]"}}}
"""Schema of the last event of a streamed completion."""
