"""The OpenAPI document tells the truth."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from pydantic import TypeAdapter

from api.app import create_app
from api.http.problems import is_openai
from shared.settings import Settings
from tuwen.jobs import JobRequest


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(references(value) for value in node))
    return set()


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in references(document):
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["tags"], (method, path)
            if path not in ("/healthz", "/readyz"):
                errors = "application/json" if is_openai(path) else "application/problem+json"
                assert errors in operation["responses"]["default"]["content"], (method, path)
                assert operation["security"], (method, path)


def test_header_fields_and_partial_answers_are_declared(document: dict[str, Any]) -> None:
    paths = document["paths"]
    for operations in paths.values():
        for operation in operations.values():
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
        for path, operations in paths.items()
        for method, operation in operations.items()
        if method == "post" and path.rpartition("/")[2] not in ("cancel", "pause", "resume", "priority")
    ]
    assert len(making) >= 10
    for path, operation in making:
        assert "idempotency-key" in {each["name"].lower() for each in operation["parameters"]}, path


def test_the_examples_are_valid_requests(document: dict[str, Any]) -> None:
    content = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    prompts = []
    for example in content["examples"].values():
        request = TypeAdapter(JobRequest).validate_python(example["value"])
        prompts.append(getattr(request.input, "prompt", ""))
        schema = {**content["schema"], "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(example["value"])
    assert any("猫" in prompt for prompt in prompts)
    assert any("cat" in prompt for prompt in prompts)
