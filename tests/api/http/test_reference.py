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
