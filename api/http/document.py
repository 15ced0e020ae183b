"""The OpenAPI document of an installation: what the routes say, made complete.

Clients are generated from it, so it says no more and no less than what is answered here: a key is demanded only where
`TUWEN_AUTH` demands one, and every status is named, those too that are answered before a route is reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from api.http.headers import RATE_LIMIT, documented
from api.http.reference import REFERENCE, problems, unseen
from shared.settings import Settings

TITLE = "Tuwen"
"""In ASCII: generators make the names of packages and classes of it."""
SUMMARY = "图文: text into images and images into text, asynchronously"
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
HEAD is answered wherever GET is, and OPTIONS everywhere.

Text in requests is Unicode that can be stored: NUL and lone surrogates are refused everywhere.
"""

HEADERS = documented("X-Request-Id")
"""Header fields of every answer."""
STATUS_HEADERS = {
    401: documented("WWW-Authenticate"),
    405: documented("Allow"),
    416: documented("Content-Range"),
    429: documented("Retry-After", *RATE_LIMIT),
    503: documented("Retry-After"),
}
"""Header fields of every answer with one of these statuses."""

_NAMES = {"File": "UploadedImage", "Models": "ModelList"}
"""Names of schemas in place of those that generators need for themselves."""
_EVERYWHERE = (431, 500, 503)
"""Refused connections and heads, accidents, and servers that are away."""
_WITH_BODY = (408, 413)
_METHODS = frozenset(("get", "put", "post", "delete", "options", "head", "patch", "trace", "query"))


def install(app: FastAPI, settings: Settings) -> None:
    """Make `app` serve its OpenAPI document as it is for an installation with these settings."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, settings)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI asks for


def _document(app: FastAPI, settings: Settings) -> dict[str, Any]:
    document = get_openapi(
        title=TITLE,
        summary=SUMMARY,
        version=app.version,
        description=DESCRIPTION,
        routes=app.routes,
        tags=TAGS,
        license_info={"name": "Apache 2.0", "identifier": "Apache-2.0"},
    )
    _, named = models_json_schema([*unseen.items()], ref_template=REFERENCE)
    document["components"]["schemas"] |= named["$defs"]
    for _, operation in operations(document):
        _secure(operation, settings)
        _complete_responses(operation, settings)
    _secure_all(document, settings)
    _adapt_schemas(document["components"]["schemas"], settings)
    _rename_schemas(document)
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The method and the description of each operation."""
    for path in document["paths"].values():
        yield from ((method, operation) for method, operation in path.items() if method in _METHODS)


def _secure_all(document: dict[str, Any], settings: Settings) -> None:
    if settings.auth == "open":
        document["components"].pop("securitySchemes", None)


def _secure(operation: dict[str, Any], settings: Settings) -> None:
    if settings.auth == "open":
        operation.pop("security", None)
    elif any(parameter["name"] == "signature" for parameter in operation.get("parameters", ())):
        operation["security"].append({})  # a signed URL needs no key


def _complete_responses(operation: dict[str, Any], settings: Settings) -> None:
    """Add what may be answered before, around or instead of the route: in the shape of its own errors."""
    responses = operation["responses"]
    own_shape = responses.pop("default", None) or problems()["default"]
    _drop_item_schemas(responses)
    for status in _added_statuses(operation, settings):
        added = {"description": HTTPStatus(status).phrase, "content": dict(own_shape["content"])}
        responses.setdefault(str(status), added)
        if status in _EVERYWHERE:
            responses[str(status)]["content"] = {
                **responses[str(status)].get("content", {}),
                **problems()["default"]["content"],
            }
    if settings.auth == "open":
        responses.pop("401", None)
    for status, response in responses.items():
        headers = {**HEADERS, **STATUS_HEADERS.get(int(status), {}), **response.get("headers", {})}
        response["headers"] = headers
    operation["responses"] = dict(sorted(responses.items()))


def _added_statuses(operation: dict[str, Any], settings: Settings) -> list[int]:
    refused = [403] if settings.auth == "open" else [401] if "security" in operation else []
    return [*refused, *(_WITH_BODY if "requestBody" in operation else ()), *_EVERYWHERE]


def _drop_item_schemas(responses: dict[str, Any]) -> None:
    """Remove FastAPI's `itemSchema`: OpenAPI 3.1 does not know it, and `event_stream` says the same."""
    for response in responses.values():
        for content in response.get("content", {}).values():
            content.pop("itemSchema", None)


def _adapt_schemas(schemas: dict[str, Any], settings: Settings) -> None:
    """Write the rules that depend on the installation."""
    schemas["Batch"]["properties"]["jobs"]["maxItems"] = settings.max_jobs_per_request
    if settings.auth == "open":
        # No key says who the author is.
        review = schemas["ReviewRequest"]
        author = review["properties"]["author"]
        author.update(*[option for option in author.pop("anyOf") if option != {"type": "null"}])
        author.pop("default")
        review["required"] = ["author"]


def _rename_schemas(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for old, new in _NAMES.items():
        schemas[new] = {**schemas.pop(old), "title": new}
    _rename_references(
        document, {REFERENCE.format(model=old): REFERENCE.format(model=new) for old, new in _NAMES.items()}
    )
    document["components"]["schemas"] = dict(sorted(schemas.items()))


def _rename_references(node: Any, names: dict[str, str]) -> None:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key == "$ref" and value in names:
            node[key] = names[value]
        _rename_references(value, names)
