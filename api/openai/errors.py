"""Errors of OpenAI's paths in the OpenAPI document; `api.http.problems` makes them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field

from tuwen.messages import Problem


class ErrorDetail(BaseModel):
    """The fields of an error in OpenAI's shape."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(examples=["size"])
    code: str | None = Field(description="stable name of the error, for programs", examples=["invalid_request"])


class OpenAIError(Problem):
    """What went wrong: in OpenAI's shape under `error`, and beside it as on all other paths."""

    error: ErrorDetail


def openai_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route on one of OpenAI's paths that may answer with these statuses, and with others too."""
    named: dict[int | str, dict[str, Any]] = {
        status: {"model": OpenAIError, "description": HTTPStatus(status).phrase} for status in statuses
    }
    return {**named, "default": {"model": OpenAIError, "description": "Error"}}


RESPONSES = openai_problems()
"""`responses` of a router on OpenAI's paths."""
