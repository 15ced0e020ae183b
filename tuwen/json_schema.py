"""Rules that validators check, written as JSON Schema too: what the OpenAPI document says about requests is then all
that is checked, as far as JSON Schema can say it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

JsonSchema = dict[str, Any]

STORABLE: JsonSchema = {"pattern": "^[^\\u0000]*$"}
"""Text without NUL. That it has no lone surrogates either, no pattern can say."""
WEB_ADDRESS: JsonSchema = {"format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://[^\\u0000]*$"}
BASE64: JsonSchema = {"contentEncoding": "base64", "contentMediaType": "image/*", "minLength": 1}
EMPTY: JsonSchema = {
    "maxItems": 0,
    "maxLength": 0,
    "maxProperties": 0,
    "maximum": 0,
    "minimum": 0,
    "not": {"const": True},
}
"""What Python takes for false, of any type."""
NULL: JsonSchema = {"type": "null"}


def always(*names: str) -> Callable[[JsonSchema], None]:
    """`json_schema_extra` of a model whose fields `names` have a default in Python, but are never left out in JSON."""

    def write(schema: JsonSchema) -> None:
        schema["required"] = sorted({*schema.get("required", ()), *names})
        for name in names:
            schema["properties"][name].pop("default", None)

    return write


def exactly_one(schema: JsonSchema) -> None:
    """`json_schema_extra` of a model of which exactly one field has a value: an alternative for each field."""
    fields = schema.pop("properties")
    closed = schema.pop("additionalProperties")
    schema["oneOf"] = [
        {
            "type": "object",
            "title": f"{schema['title']}By{name.title().replace('_', '')}",
            "required": [name],
            "properties": {each: _given(fields[each]) if each == name else _absent(fields[each]) for each in fields},
            "additionalProperties": closed,
        }
        for name in fields
    ]


def _given(field: JsonSchema) -> JsonSchema:
    """The schema of an optional field where it has a value."""
    [value] = [option for option in field["anyOf"] if option != NULL]
    return {**value, **{key: field[key] for key in ("title", "description") if key in field}}


def _absent(field: JsonSchema) -> JsonSchema:
    """The schema of an optional field where it may only be null. Were that its type, openapi-fetch would drop it."""
    kind = _given(field)["type"]
    return {"type": [kind, "null"], "not": {"type": kind}, "description": "left out, or null"}


def never(*forbidden: JsonSchema) -> JsonSchema:
    """`json_schema_extra` of a model that no combination of fields in `forbidden` may match."""
    return {"not": forbidden[0] if len(forbidden) == 1 else {"anyOf": list(forbidden)}}


def fields(**values: JsonSchema) -> JsonSchema:
    """A schema that matches objects in which each of these fields is absent or has such a value."""
    return {"properties": values}


def given(*, absent: JsonSchema | None = None, **values: JsonSchema) -> JsonSchema:
    """A schema that matches objects which have each of these fields, with such a value.

    Args:
        absent: further fields, which may be absent, as for `fields`.
    """
    return {"required": list(values), "properties": {**values, **(absent or {})}}


def lacking(value: str) -> JsonSchema:
    """A schema that matches lists without this value."""
    return {"not": {"contains": {"const": value}}}
