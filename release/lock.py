"""`make lock`: write the hashes of everything that the commands `make demo` and `make test` install.

The versions are those of constraints.txt, and what is wanted is in pyproject.toml and workers/lab/pyproject.toml. uv
finds out what that needs on every platform from Python 3.11 on, and the hashes of all files of each version. torch is
left out: its build for the CPU and those for CUDA come from different indexes and are different files, so pip installs
it after the rest, by its version alone, with what only that build needs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCKS = {"runtime": ("worker", "datasets", "flower", "embedded"), "development": ("dev",)}
"""Name of each file in requirements/, and the extras of `tuwen` that it is for."""
OWN = ("tuwen", "tuwen-lab")
APART = "torch"
OF_TORCH = ("filelock", "fsspec", "jinja2", "networkx", "sympy", "typing-extensions")
"""What every build of torch needs; setuptools, which it needs too, comes with it."""
BUILD = ("editables", "hatchling")
"""What makes an editable installation of the project; pip would fetch it without hashes."""
_INPUTS = "# of: "


def projects() -> dict[str, dict[str, Any]]:
    """The distributions of this repository, by name."""
    files = (ROOT / "pyproject.toml", ROOT / "workers" / "lab" / "pyproject.toml")
    found = [tomllib.loads(file.read_text())["project"] for file in files]
    return {project["name"]: project for project in found}


def wanted(extras: Iterable[str]) -> list[str]:
    """The requirements of other people's distributions that these extras of `tuwen` have, in the end."""
    named = projects()
    seen: set[tuple[str, str]] = set()

    def requirements(name: str, extra: str) -> Iterator[str]:
        if (name, extra) in seen:
            return
        seen.add((name, extra))
        project = named[name]
        for line in project["dependencies"] if not extra else project["optional-dependencies"][extra]:
            match = re.match(r"([\w.-]+)(?:\[([^\]]*)\])?", line)
            if match is None or match[1] not in OWN:
                yield line
                continue
            for inner in ("", *filter(None, re.split(r"[ ,]+", match[2] or ""))):
                yield from requirements(match[1], inner)

    lines = {line for extra in ("", *extras) for line in requirements("tuwen", extra)}
    others = {line for line in lines if re.split(r"[\[<>=~!; ]", line)[0] != APART}
    return sorted({*others, *OF_TORCH, *BUILD})


def fingerprint(lock: str) -> str:
    """What a lock was made of: it changes when its requirements or a version in constraints.txt do."""
    versions = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    return sha256("\n".join([*wanted(LOCKS[lock]), *sorted(versions)]).encode()).hexdigest()


def recorded_fingerprint(lock: str) -> str:
    """The fingerprint that the file of a lock was written with."""
    lines = path(lock).read_text().splitlines()
    return next(line.removeprefix(_INPUTS) for line in lines if line.startswith(_INPUTS))


def path(lock: str) -> Path:
    """The file of a lock."""
    return ROOT / "requirements" / f"{lock}.txt"


def _compile(requirements: Iterable[str], *options: str) -> str:
    """The lines of a file for `pip install --require-hashes`."""
    command = [
        *(str(Path(sys.executable).with_name("uv")), "pip", "compile", "-", "--universal", "--python-version", "3.11"),
        *("--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--quiet", *options),
    ]
    done = subprocess.run(command, input="\n".join(requirements), capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"uv cannot resolve what is wanted with constraints.txt:\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Write all locks, those of the tools of a release included."""
    for lock in LOCKS:
        # uv replaces every requirement of torch, also those of other packages, by one that nothing meets.
        override = path(lock).with_suffix(".override")
        override.write_text(f"{APART} ; python_version < '0'\n")
        try:
            lines = _compile(wanted(LOCKS[lock]), "--constraints", "constraints.txt", "--overrides", str(override))
        finally:
            override.unlink()
        head = f"# Written by `make lock`; do not edit.\n{_INPUTS}{fingerprint(lock)}\n"
        path(lock).write_text(head + lines)
    tools = (ROOT / "release" / "tools.in").read_text().splitlines()
    (ROOT / "requirements" / "tools.txt").write_text(
        "# Written by `make lock` from release/tools.in; do not edit.\n" + _compile(tools)
    )


if __name__ == "__main__":
    main()
