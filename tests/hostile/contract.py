"""Schemathesis against a running API: is each answer one that the OpenAPI document allows, to each kind of request?"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.hostile.addresses import ALLOWED
from tests.hostile.materials import materials
from tests.support.waiting import PATIENT

CONFIG = Path(__file__).with_name("schemathesis.toml")
_HOOKS = "tests.hostile.contract_hooks"
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Report:
    """What a run of Schemathesis found."""

    passed: bool
    cases: int
    operations: int
    text: str
    """What it printed: of each finding the request, as a curl command, the answer, and what is wrong with it."""


def check(
    url: str,
    folder: Path,
    *,
    seed: int,
    examples: int,
    phases: tuple[str, ...],
    key: str | None = None,
    seconds: int | None = None,
) -> Report:
    """Run Schemathesis with all checks against the API at `url`.

    Args:
        folder: an empty folder for its files, below which data sets may lie.
        seed: the same seed sends the same requests, as long as the answers are the same.
        examples: requests for each operation and phase, at most.
        phases: `examples`, `coverage`, `fuzzing`, `stateful`.
        key: the API key to send, in an installation that demands one.
        seconds: time after which no new phase begins.
    """
    document = folder / "openapi.json"
    document.write_text(
        json.dumps(_readable(httpx.get(f"{url}/openapi.json", timeout=PATIENT).raise_for_status().json()))
    )
    command = [
        *(sys.executable, "-m", "schemathesis.cli", f"--config-file={CONFIG}", "run", str(document), f"--url={url}"),
        *(f"--seed={seed}", f"--max-examples={examples}", f"--phases={','.join(phases)}"),
        *([f"--header=Authorization: Bearer {key}"] if key else []),
        *([f"--max-time={seconds}"] if seconds else []),
    ]
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "SCHEMATHESIS_HOOKS": _HOOKS}
    with materials(url, folder, key, ALLOWED) as made:
        environment |= made.as_environment()
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    text = ended.stdout + ended.stderr
    cases = re.search(r"([\d,]+) generated", text)
    operations = re.search(r"Tested:\s+(\d+)", text)
    return Report(
        ended.returncode == 0,
        int(cases[1].replace(",", "")) if cases else 0,
        int(operations[1]) if operations else 0,
        text,
    )


def _readable(node: object) -> object:
    """The document as Schemathesis reads it: with `itemSchema` for the events of a stream, as in OpenAPI 3.2."""
    if isinstance(node, dict):
        node = {key: _readable(value) for key, value in node.items()}
        if "text/event-stream" in node:
            schema = node["text/event-stream"]["schema"]
            node["text/event-stream"] = {"schema": {}, "itemSchema": schema["contentSchema"]["items"]}
        return node
    return [_readable(item) for item in node] if isinstance(node, list) else node
