"""docs/sizing.md: what it says of connections is what the code opens."""

from __future__ import annotations

import ast
import re

from shared.settings import Settings
from tests.support.compose import ROOT

PAGE = (ROOT / "docs/sizing.md").read_text()
OPENED_BY = {
    "API": ["api/producer/resources.py"],
    "worker": ["workers/jobs/runner.py", "workers/datasets/shards.py"],
    "housekeeper": [
        "workers/housekeeper/housekeeping.py",
        "workers/datasets/housekeeping.py",
        "workers/housekeeper/batches.py",
    ],
    "Flower": ["workers/flower/app.py"],
}
DEFAULT = 8
RELAXED = 4
"""Connections of the second pool, its overflow included; see `Connections`."""


def pool_size(file: str) -> int:
    """Size of the pool of the only `Database` that a file opens."""
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Database"
    ]
    assert len(calls) == 1, file
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in calls[0].keywords}
    size = given.get("pool_size", str(DEFAULT))
    return Settings().shards_at_once if size == "settings.shards_at_once" else int(size)


def most(process: str) -> int:
    return sum(2 * pool_size(file) + RELAXED for file in OPENED_BY[process])


def test_connections_are_those_that_the_pools_may_open() -> None:
    section = PAGE[PAGE.index("## Connections") : PAGE.index("## What ends first")]
    told = {name: int(count) for name, count in re.findall(r"^\| (\w+) \| (\d+) \|$", section, re.MULTILINE)}
    assert told == {process: most(process) for process in OPENED_BY}
    [total] = re.findall(r"take (\d+) at the very most", section)
    assert int(total) == 2 * most("API") + 8 * most("worker") + 2 * most("housekeeper") + most("Flower")


def test_no_other_process_opens_any() -> None:
    opening = {
        str(file.relative_to(ROOT))
        for top in ("api", "workers", "shared")
        for file in (ROOT / top).rglob("*.py")
        if re.search(r"\bDatabase\((settings|self)", file.read_text())
    }
    short = {"api/cli/doctor.py", "api/cli/checks.py", "workers/health.py"}
    supervisor = {"api/embedded/stack.py"}
    assert opening == {file for files in OPENED_BY.values() for file in files} | short | supervisor
