"""Addresses of the embedded system of a data folder: the file `system.json`, which the other commands read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pydantic import SecretStr

from api.embedded.processes import Lock
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Addresses:
    """Addresses of a running system, as they are stored in `system.json`."""

    pid: int
    url: str
    flower: str | None
    environment: dict[str, str]
    """The TUWEN_… variables, including passwords, with which a process joins the system."""

    @classmethod
    def read(cls, data: Path) -> Self | None:
        """Read the addresses of the system that runs on the folder `data`; None when no system runs on it."""
        try:
            found = cls(**json.loads((data / "system.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return found if Lock(data / "lock").owner() == found.pid else None

    def publish(self, data: Path) -> None:
        """Write the addresses to `system.json` in `data`, readable by its owner only."""
        file = data / "system.json"
        file.unlink(missing_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump(asdict(self), stream, ensure_ascii=False, indent=2)

    @staticmethod
    def withdraw(data: Path) -> None:
        """Remove `system.json` from `data`, if it exists."""
        (data / "system.json").unlink(missing_ok=True)


def as_environment(settings: Settings) -> dict[str, str]:
    """The TUWEN_… variables that give a child process these settings; defaults are left out."""
    values = {name: getattr(settings, name) for name in settings.model_fields_set}
    return {f"TUWEN_{name.upper()}": _as_text(value) for name, value in values.items() if value is not None}


def _as_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return str(value.get_secret_value())
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value)
