"""docker-compose.yml as Compose reads it, without Docker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"

REQUIRED = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY", "FLOWER_PASSWORD")
VARIABLES = {name: f"{name.lower().replace('_', '')}4711" for name in REQUIRED}

_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?:(?P<operator>:?[-?])(?P<rest>[^}]*))?\})")


class MissingVariable(Exception):
    """`${NAME:?message}` without a NAME."""


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """Replace variables as Compose does: in values, not in keys; `$$` is a dollar sign."""
    if isinstance(value, dict):
        return {key: interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def one(match: re.Match[str]) -> str:
        name, operator, rest = match.group("name", "operator", "rest")
        if name is None:
            return "$"
        known = variables.get(name)
        if known is not None and (known or not (operator or "").startswith(":")):
            return known
        if operator and operator.endswith("?"):
            raise MissingVariable(name)
        return rest or ""

    return _VARIABLE.sub(one, value)


def compose(variables: Mapping[str, str] = VARIABLES) -> dict[str, Any]:
    document: dict[str, Any] = interpolate(yaml.safe_load(FILE.read_text()), variables)
    return document


def seconds(duration: str) -> float:
    """Parse a duration such as `1m30s` into seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)([smh])", duration))
