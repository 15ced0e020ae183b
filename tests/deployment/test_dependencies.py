"""What is imported is declared: a package that only comes along with another one may be gone with its next release."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LAB: dict[str, Any] = tomllib.loads((ROOT / "workers/lab/pyproject.toml").read_text())
OURS = {*PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], "release", "tests"}
OF_TOOLS = {"cyclonedx"}
"""Imported where the tools of a release are installed, which requirements/tools.txt pins."""
OWN_DISTRIBUTIONS = {"tuwen", "tuwen-lab"}


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def declared() -> set[str]:
    """Distributions of others that ours name, whichever extras are installed."""
    lines = [
        line
        for project in (PROJECT["project"], LAB["project"])
        for named in (project["dependencies"], *project["optional-dependencies"].values())
        for line in named
    ]
    return {normalised(re.split(r"[\[<>=~!; ]", line)[0]) for line in lines} - OWN_DISTRIBUTIONS


def imported(file: Path) -> Iterator[str]:
    """Top-level names of other people's packages that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        else:
            continue
        yield from {name.partition(".")[0] for name in names} - OURS - sys.stdlib_module_names


@pytest.mark.parametrize("package", sorted(OURS))
def test_every_imported_package_is_declared(package: str) -> None:
    distributions = packages_distributions()
    known = declared() | (OF_TOOLS if package == "release" else set())
    undeclared: dict[str, str] = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        for name in imported(file):
            if not {normalised(found) for found in distributions.get(name, [name])} & known:
                undeclared[name] = str(file.relative_to(ROOT))
    assert undeclared == {}


def test_every_declared_package_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normalised(line.partition("==")[0]) for line in lines if "==" in line}
    assert declared() <= pinned
