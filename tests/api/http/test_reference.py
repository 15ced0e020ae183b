"""The OpenAPI document tells the truth; tests/hostile/test_contract.py compares it with what a running API answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from api.app import create_app
from api.http.document import operations
from api.http.problems import is_openai
from shared.settings import Settings

Document = dict[str, Any]

KEYWORDS = frozenset(
    (
        *("type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else"),
        *("properties", "required", "additionalProperties", "propertyNames", "patternProperties"),
        *("minProperties", "maxProperties", "items", "contains", "minItems", "maxItems", "uniqueItems"),
        *("minLength", "maxLength", "pattern", "format", "contentEncoding", "contentMediaType", "contentSchema"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
        *("title", "description", "default", "examples", "example", "discriminator", "readOnly"),
    )
)
"""Keywords of JSON Schema 2020-12, and `example` and `discriminator` of OpenAPI 3.1. A schema with any other word is
valid too, and says nothing by it."""


@pytest.fixture(scope="module", params=["open", "keys"])
def document(request: pytest.FixtureRequest) -> Document:
    return create_app(Settings(auth=request.param, host="127.0.0.1")).openapi()


@pytest.fixture
def locked() -> Document:
    return create_app(Settings(auth="keys")).openapi()


def schemas(node: Any) -> Iterator[dict[str, Any]]:
    """All schemas below a schema, itself first."""
    if not isinstance(node, dict):
        return
    yield node
    for name in ("not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames"):
        yield from schemas(node.get(name))
    for name in ("anyOf", "oneOf", "allOf"):
        for each in node.get(name, ()):
            yield from schemas(each)
    for name in ("properties", "patternProperties"):
        for each in node.get(name, {}).values():
            yield from schemas(each)


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """All objects of a document."""
    if isinstance(node, dict):
        yield node
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(each)


def described(document: Document) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, each) for path, item in document["paths"].items() for method, each in operations_of(item)]


def operations_of(item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    return operations({"paths": {"": item}})


# ── the document ──────────────────────────────────────────────────────────────────────────────────────


def test_it_is_valid(document: Document) -> None:
    # Also finds references that lead nowhere, two operations of one id, and defaults that break their own schema.
    OpenAPIV31SpecValidator(document).validate()


def test_generators_can_name_what_they_make(document: Document) -> None:
    assert document["info"]["title"].isascii()
    ids = [operation["operationId"] for _, _, operation in described(document)]
    assert len(ids) == len(set(ids))
    assert [id for id in ids if not re.fullmatch(r"[a-z]+(_[a-z]+)*", id)] == []
    names = document["components"]["schemas"]
    titles = [schema.get("title", name) for name, schema in names.items()]
    assert [name for name in names if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name)] == []
    assert sorted(titles) == sorted(names)  # a generator that goes by titles meets none of them twice
    # Both would hide classes that generators write of their own, or variables in them.
    assert not {"File", "Models", "Response", "Client"} & set(names)


def test_every_rule_is_written_in_words_of_json_schema(document: Document) -> None:
    bodies = [node["schema"] for node in nodes(document["paths"]) if "schema" in node]
    for schema in (*document["components"]["schemas"].values(), *bodies):
        jsonschema.Draft202012Validator.check_schema(schema)
        for each in schemas(schema):
            assert each.keys() <= KEYWORDS, each


def test_every_operation_is_described(document: Document) -> None:
    for path, method, operation in described(document):
        assert operation["summary"], (method, path)
        assert operation["tags"], (method, path)
        statuses = operation["responses"].keys()
        assert statuses >= {"431", "500", "503"}, (method, path)
        assert "default" not in statuses, (method, path)
        for status, response in operation["responses"].items():
            assert response["description"], (method, path, status)
            if int(status) >= 400:
                assert response["content"], (method, path, status)
        if "requestBody" in operation:
            assert statuses >= {"408", "413"}, (method, path)


def test_errors_of_openai_routes_have_openais_shape(document: Document) -> None:
    for path, method, operation in described(document):
        shape = "application/json" if is_openai(path) else "application/problem+json"
        own = [response for status, response in operation["responses"].items() if int(status) in (400, 404, 409, 422)]
        assert all(shape in response["content"] for response in own), (method, path)


def test_a_key_is_demanded_where_keys_are_used() -> None:
    unlocked = create_app(Settings(auth="open", host="127.0.0.1")).openapi()
    locked = create_app(Settings(auth="keys")).openapi()
    assert "securitySchemes" not in unlocked["components"]
    for path, method, operation in described(unlocked):
        assert "security" not in operation, (method, path)
        assert "401" not in operation["responses"], (method, path)
        assert "403" in operation["responses"], (method, path)
    for path, method, operation in described(locked):
        assert ("security" in operation) == ("401" in operation["responses"]) == (path not in ("/healthz", "/readyz"))
        if "security" in operation:
            assert "WWW-Authenticate" in operation["responses"]["401"]["headers"], (method, path)
            signed = any(parameter["name"] == "signature" for parameter in operation.get("parameters", ()))
            assert ({} in operation["security"]) == signed, (method, path)


def test_streams_and_lines_are_declared(document: Document) -> None:
    paths = document["paths"]
    for path in ("/v1/jobs/{job_id}/events", "/v1/datasets/{dataset_id}/events"):
        [stream] = paths[path]["get"]["responses"]["200"]["content"].items()
        require_events(*stream)
    for path in ("/v1/chat/completions", "/v1/images/generations"):
        content = paths[path]["post"]["responses"]["200"]["content"]
        assert "application/json" in content
        require_events("text/event-stream", content["text/event-stream"])
    files = paths["/v1/files/{file_id}/content"]["get"]["responses"]["200"]["content"]
    assert "application/jsonl" in files


def require_events(media_type: str, content: dict[str, Any]) -> None:
    assert media_type == "text/event-stream"
    schema = content["schema"]
    assert (schema["type"], schema["contentMediaType"]) == ("string", "text/event-stream")
    for event in schema["contentSchema"]["items"]["oneOf"]:
        data = event["properties"]["data"]
        assert "data" in event["required"]
        assert data == {"const": "[DONE]"} or "$ref" in data["contentSchema"]


def test_header_fields_and_partial_answers_are_declared(document: Document) -> None:
    paths = document["paths"]
    for _, _, operation in described(document):
        assert all("X-Request-Id" in response["headers"] for response in operation["responses"].values())
    for path in ("/v1/jobs", "/v1/datasets", "/v1/datasets/{dataset_id}/items", "/v1/files", "/v1/batches"):
        assert "Link" in paths[path]["get"]["responses"]["200"]["headers"]
    for path, status in (("/v1/jobs", "202"), ("/v1/jobs/batch", "202"), ("/v1/images/generations", "200")):
        assert paths[path]["post"]["responses"][status]["headers"].keys() >= {"RateLimit", "RateLimit-Policy"}
    for path in ("/v1/jobs/{job_id}/image", "/v1/files/{file_id}/content"):
        responses = paths[path]["get"]["responses"]
        assert responses.keys() >= {"200", "206", "304", "307", "416"}
        assert {"Accept-Ranges", "ETag"} <= responses["200"]["headers"].keys()
        assert "Content-Range" in responses["206"]["headers"]
    making = [
        (path, operation)
        for path, method, operation in described(document)
        if method == "post" and path.rpartition("/")[2] not in ("cancel", "pause", "resume", "priority")
    ]
    assert len(making) >= 10
    for path, operation in making:
        assert "idempotency-key" in {each["name"].lower() for each in operation["parameters"]}, path


# ── requests ──────────────────────────────────────────────────────────────────────────────────────────


def validator(document: Document, name: str) -> jsonschema.Draft202012Validator:
    components = {"components": document["components"]}
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **components})


def test_the_examples_are_valid_requests(document: Document) -> None:
    examples = [
        (node["schema"], example["value"])
        for node in nodes(document["paths"])
        if "schema" in node and isinstance(node.get("examples"), dict)
        for example in node["examples"].values()
    ]
    assert len(examples) > 10
    for schema, value in examples:
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)
    texts = str(examples)
    assert "猫" in texts
    assert "cat" in texts


IMAGE = {"kind": "recognize", "image": {"url": "https://example.com/cat.png"}}
RULES: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    (
        "JobRequest",
        {"input": IMAGE},
        [
            {"input": {**IMAGE, "image": {}}},
            {"input": {**IMAGE, "image": {**IMAGE["image"], "file_id": "0" * 64}}},  # type: ignore[dict-item]
            {"input": {**IMAGE, "image": {"url": "ftp://example.com/cat.png"}}},
            {"input": {"kind": "generate", "prompt": "a\x00b"}},
            {"input": {"prompt": "a cat"}},
            {"deadline": 0},
            {"deadline": 30 * 86_400 + 1},
            {"priority": 10},
        ],
    ),
    (
        "DatasetRequest",
        {"source": "/photos", "destination": "/captions", "tasks": ["recognize", "match"]},
        [
            {"destination": None},
            {"destination": None, "dry_run": False},
            {"candidates": 2},
            {"tasks": ["recognize"], "filters": {"min_score": 0.5}},
            {"source": "photos"},
            {"tasks": []},
        ],
    ),
    (
        "ReviewRequest",
        {"author": "alice", "verdict": "accepted"},
        [{"verdict": None}, {"verdict": None, "text": None, "language": "en"}, {"text": ""}],
    ),
    (
        "ImagesRequest",
        {"prompt": "a cat", "stream": True, "size": "16x4096"},
        [{"n": 2}, {"response_format": "url"}, {"size": "15x64"}, {"size": "64x4097"}, {"output_format": "jpeg"}],
    ),
    (
        "ChatRequest",
        {"messages": [{"role": "user", "content": "?"}], "tools": [], "n": 1},
        [
            {"messages": [{"role": "system", "content": "?"}]},
            {"n": 2},
            {"tools": [{}]},
            {"logprobs": True},
            {"response_format": {"type": "json_object"}},
        ],
    ),
    (
        "BatchRequest",
        {"input_file_id": "file-0", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        [{"metadata": {"a": "\x00"}}, {"metadata": {"\x00": "a"}}, {"completion_window": "1h"}],
    ),
]


@pytest.mark.parametrize(("name", "right", "changes"), RULES, ids=[name for name, _, _ in RULES])
def test_rules_that_are_checked_are_written(
    document: Document, name: str, right: dict[str, Any], changes: list[dict[str, Any]]
) -> None:
    rules = validator(document, name)
    rules.validate(right)
    for change in changes:
        assert not rules.is_valid({**right, **change}), change


def test_null_counts_as_left_out(document: Document) -> None:
    source = validator(document, "ImageSource")
    source.validate({"file_id": None, "url": "https://example.com/cat.png", "base64": None})
    assert not source.is_valid({"file_id": None, "url": None, "base64": None})
    validator(document, "DatasetRequest").validate(
        {"source": "s3://bucket/photos", "destination": None, "dry_run": True}
    )


def test_rules_of_the_installation_are_written() -> None:
    few = create_app(Settings(auth="open", host="127.0.0.1", max_jobs_per_request=7)).openapi()
    assert few["components"]["schemas"]["Batch"]["properties"]["jobs"]["maxItems"] == 7
    review = {"verdict": "accepted"}
    assert not validator(few, "ReviewRequest").is_valid(review)
    validator(create_app(Settings(auth="keys")).openapi(), "ReviewRequest").validate(review)
