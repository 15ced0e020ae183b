"""The release before this one: its processes, run from the history of this repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest

from api.embedded.addresses import as_environment
from shared.settings import Settings
from tests.support.programs import on_ci

ROOT = Path(__file__).parents[2]
NEEDED = ("api", "shared", "workers", "tests", "pyproject.toml")


@dataclass(frozen=True, slots=True)
class Release:
    """A release, as `tests/deployment/previous_release.json` names it."""

    version: str
    commit: str
    schema: str
    """The revision to which its migrations bring a database."""

    def source(self, folder: Path) -> Path:
        """Extract its code. Where the history is not here the test is skipped, and fails on continuous integration."""
        found = subprocess.run(["git", "cat-file", "-e", f"{self.commit}^{{commit}}"], cwd=ROOT, capture_output=True)
        if found.returncode:
            reason = f"the history lacks release {self.version} ({self.commit:.7}): git fetch --unshallow --tags"
            if on_ci():
                pytest.fail(f"{reason} (CI leaves no test out)", pytrace=False)
            pytest.skip(reason)
        archive = subprocess.run(
            ["git", "archive", self.commit, *NEEDED], cwd=ROOT, capture_output=True, check=True
        ).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            # Python has the filter since 3.11.4, and Debian 12 has 3.11.2.
            files.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        return folder


def previous_release() -> Release:
    """The release that this version has to go on beside."""
    return Release(**json.loads((ROOT / "tests" / "deployment" / "previous_release.json").read_text()))


class OldProcess:
    """`python -m …` of the code in `source`, with these settings."""

    def __init__(self, source: Path, settings: Settings, log: Path, *arguments: str):
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=source,
                env=os.environ | as_environment(settings) | {"PYTHONPATH": str(source)},
                stdout=out,
                stderr=out,
            )

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def stop(self) -> int:
        """Ask it to end as an operator would. Returns the exit status."""
        self._process.terminate()
        return self._process.wait(60)

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
