"""Additions to the OpenAPI document that the routes' signatures do not express."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from api.http import headers
from tuwen.messages import Problem

_unseen: dict[type[BaseModel], JsonSchemaMode] = {Problem: "serialization"}
"""Models that no route's signature mentions; `json_body` adds the models of bodies that routes parse themselves."""
_REF = "#/components/schemas/{model}"

TAGS = [
    {"name": "jobs", "description": "Submit jobs, watch them, fetch their results."},
    {"name": "files", "description": "Upload images that jobs work on."},
    {"name": "datasets", "description": "Annotate whole data sets, and review the annotations."},
    {"name": "openai", "description": "The same for clients of OpenAI's API; errors have OpenAI's shape here."},
    {"name": "monitoring", "description": "How the installation is doing."},
]

DESCRIPTION = """
Turn text into images and images into text, asynchronously.

A job is **submitted** (`POST /v1/jobs`, answered at once with its id), **watched** (`GET /v1/jobs/{id}/events`, or
`Prefer: wait=30` when it is submitted or shown), and its **result** is part of the job: text, objects, a score, or an
image under `GET /v1/jobs/{id}/image`.

Every error is [problem details](https://www.rfc-editor.org/rfc/rfc9457) with a stable `code`; on the paths of OpenAI's
API it also has OpenAI's `error`. Send an `Idempotency-Key` with whatever makes something, and repeating it after a
broken connection makes nothing twice. Every answer has an `x-request-id`, and the lists have `Link` to their next page.
"""


_FIELDS = {401: ("WWW-Authenticate",), 416: ("Content-Range",), 429: ("Retry-After", *headers.RATE_LIMIT)}
"""Header fields of refusals, by their status."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that may answer with these statuses; every route may answer with others too."""
    content = {"application/problem+json": {"schema": {"$ref": _REF.format(model=Problem.__name__)}}}
    named: dict[int | str, dict[str, Any]] = {
        status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses
    }
    for status, fields in _FIELDS.items():
        if status in named:
            named[status]["headers"] = headers.documented(*fields)
    return {**named, "default": {"description": "Problem", "content": content}}


def json_body(model: type[BaseModel], examples: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that parses its body itself, as `model`."""
    _unseen[model] = "validation"
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
    }


def install(app: FastAPI) -> None:
    """Add the models that only `json_body` and `problems` name to the OpenAPI document of `app`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=TAGS
            )
            _, named = models_json_schema([*_unseen.items()], ref_template=_REF)
            document["components"]["schemas"] |= named["$defs"]
            headers.declare_request_ids(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI asks for
