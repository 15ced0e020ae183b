"""Errors on their way out of the API and back into the client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from api.http.problems import respond_to
from shared.intake.validation import invalid_fields
from tuwen.errors import FetchFailed, InvalidRequest, TuwenError, Unauthorized, Unavailable
from tuwen.exchange import error_of


def _tree(kind: type[TuwenError] = TuwenError) -> Iterator[type[TuwenError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


def there_and_back(error: TuwenError) -> TuwenError:
    sent = respond_to(error)
    request = httpx.Request("GET", "http://localhost/")
    return _received(
        httpx.Response(sent.status_code, headers=dict(sent.headers), content=bytes(sent.body), request=request)
    )


def _received(response: httpx.Response) -> TuwenError:
    return error_of(response, response.content)


@pytest.mark.parametrize("kind", [kind for kind in _tree() if kind.__module__ == "tuwen.errors"])
def test_every_error_survives_the_wire(kind: type[TuwenError]) -> None:
    error = kind("猫 got \ud800 away", field="input.prompt", retry_after=1.2)
    received = there_and_back(error)
    assert type(received) is kind
    assert (received.field, received.retry_after) == ("input.prompt", 2.0)
    assert received.detail == "猫 got ? away"


def test_several_wrong_fields_are_all_named() -> None:
    error = invalid_fields([{"loc": ("input", "generate", "prompt"), "msg": "no"}, {"loc": ("priority",), "msg": "no"}])
    problem = json.loads(bytes(respond_to(error).body))
    assert [each["field"] for each in problem["errors"]] == ["input.prompt", "priority"]
    assert problem["detail"] == "input.prompt: no (and 1 more)"
    assert type(there_and_back(error)) is InvalidRequest


def test_what_a_stranger_answers_is_an_error_too() -> None:
    request = httpx.Request("GET", "http://localhost/")
    for status, kind in ((502, Unavailable), (418, TuwenError), (500, TuwenError)):
        for content in (b"<html>", b"", b'{"status": 7}', b"\xff"):
            assert type(_received(httpx.Response(status, content=content, request=request))) is kind
    unknown = json.dumps(
        {"type": "", "title": "", "status": 400, "detail": "d", "code": "of_the_future", "errors": []}
    ).encode()
    assert type(_received(httpx.Response(400, content=unknown, request=request))) is TuwenError


def test_headers_say_how_to_go_on() -> None:
    assert respond_to(Unauthorized("no")).headers["www-authenticate"].startswith("Bearer")
    assert respond_to(FetchFailed("later", retry_after=0.1)).headers["retry-after"] == "1"
    assert "retry-after" not in respond_to(FetchFailed("later")).headers
