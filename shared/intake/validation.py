"""JSON that strangers send, parsed as a model so that an error names the field that is wrong."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tuwen.errors import InvalidRequest
from tuwen.jobs import Kind
from tuwen.messages import FieldError

Model = TypeVar("Model", bound=BaseModel)

MOST_ERRORS = 20
_LONGEST_FIELD = 200
_ENUM_MEMBER = re.compile(r"<\w+\.\w+: ('\w+')>")
_KINDS = frozenset(kind.value for kind in Kind)


class InvalidFields(InvalidRequest):
    """Several fields of a request are wrong."""

    def __init__(self, errors: Sequence[FieldError]):
        first = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{first.field}: {first.detail}{more}", field=first.field)
        self.errors = list(errors)


def invalid_fields(errors: Iterable[Mapping[str, Any]]) -> InvalidFields:
    """Convert pydantic's errors to the caller's field names, without the input, which may be huge or secret."""
    named = [FieldError(field=field_path(error["loc"]), detail=_reword(str(error["msg"]))) for error in errors]
    return InvalidFields(named[:MOST_ERRORS])


def _reword(message: str) -> str:
    """Remove from a message what only Python programmers know: `Value error, …` and `<Kind.MATCH: 'match'>`."""
    return _ENUM_MEMBER.sub(r"\1", message.removeprefix("Value error, "))


def field_path(location: Sequence[str | int]) -> str:
    """Convert pydantic's ("body", "input", "generate", "prompt") to `input.prompt`.

    pydantic inserts the name of the union's member below the field; the caller did not write that.
    """
    parts = [str(part) for part in location]
    if parts[:1] in (["body"], ["query"], ["path"], ["header"]):
        parts = parts[1:]
    kept = [
        part for before, part in zip(["", *parts], parts, strict=False) if not (before == "input" and part in _KINDS)
    ]
    return ".".join(kept)[:_LONGEST_FIELD] or "body"


def parse(model: type[Model], body: bytes) -> Model:
    """Parse the JSON in `body` as `model`.

    Raises:
        InvalidRequest: a field is wrong or the body is not JSON; the error names the fields, or the line and column.
    """
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    if any(each["type"] == "int_type" for each in found) and (rewritten := _with_whole_numbers(body)) != body:
        return parse(model, rewritten)
    if found[0]["type"] == "json_invalid":
        # The strict parser reports a line and a column; the lenient one accepts a lone surrogate, so its field is
        # named.
        raise _blame_field(model, body) or InvalidRequest(f"The body is not JSON: {found[0]['msg']}", field="body")
    raise invalid_fields(found)


def _with_whole_numbers(body: bytes) -> bytes:
    """The JSON in `body` with integers in place of numbers like `5.0`, which are integers in JSON Schema.

    Some languages write all their numbers so. They are so rare here that only a request that is refused is looked at.
    """

    def read(number: str) -> float:
        value = float(number)
        return int(value) if value.is_integer() else value

    return json.dumps(json.loads(body, parse_float=read)).encode()


def _blame_field(model: type[Model], body: bytes) -> InvalidRequest | None:
    try:
        model.model_validate(json.loads(body, parse_int=_integer))
    except ValidationError as error:
        return invalid_fields(error.errors(include_url=False, include_context=False, include_input=False))
    except (ValueError, RecursionError):
        return None
    return None


def _integer(digits: str) -> float:
    # Python refuses to convert more digits than this, without saying where they were.
    return int(digits) if len(digits) <= sys.int_info.default_max_str_digits else math.inf
