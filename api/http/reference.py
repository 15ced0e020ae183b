"""What routes say about themselves in the OpenAPI document, besides their signatures."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode

from tuwen.messages import Problem

unseen: dict[type[BaseModel], JsonSchemaMode] = {Problem: "serialization"}
"""Models that no route's signature mentions, and whether clients send or receive them."""
REFERENCE = "#/components/schemas/{model}"
PROBLEM = "application/problem+json"
BINARY = {"type": "string", "format": "binary"}
"""Schema of bytes."""
_NOUNS = {"batches": "batch", "datasets": "dataset", "files": "file", "jobs": "job", "models": "model"}

Responses = dict[int | str, dict[str, Any]]


def operation_id(route: APIRoute) -> str:
    """The name of an operation in generated clients: its function and what it is about, such as `show_job`.

    A route whose function does not say enough names itself (`operation_id=…`).
    """
    _, _, path = route.path.partition("/v1/")
    noun = _NOUNS.get(path.partition("/")[0], "")
    return route.name if noun in route.name else f"{route.name}_{noun}"


def reference_to(model: type[BaseModel], mode: JsonSchemaMode = "serialization") -> dict[str, str]:
    """A reference to the schema of a model, which is then part of the document."""
    unseen.setdefault(model, mode)
    return {"$ref": REFERENCE.format(model=model.__name__)}


def problems(*statuses: int) -> Responses:
    """`responses` of a route whose own checks may answer with these statuses.

    What any route may answer is added by `api.http.document`, in the shape of `default`.
    """
    content = {PROBLEM: {"schema": reference_to(Problem)}}
    named: Responses = {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
    return named | {"default": {"description": "Problem", "content": content}}


def json_body(model: type[BaseModel], examples: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that parses its body itself, as `model`."""
    schema = reference_to(model, "validation")
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
    }
