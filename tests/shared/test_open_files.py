"""Processes under the limits of other people's shells."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from shared.open_files import ENOUGH, LEAST
from tests.support.waiting import PATIENT

RAISE = """
import logging, resource
from shared.open_files import raise_open_files
logging.basicConfig()
raise_open_files()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def run(soft: int, hard: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python below these limits on open files."""
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=PATIENT,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    ran = run(64, 2 * ENOUGH, "-c", RAISE)
    assert (ran.stdout, ran.stderr) == (f"{2 * ENOUGH}\n", "")


def test_a_hard_limit_that_is_low_is_told() -> None:
    ran = run(64, LEAST, "-c", RAISE)
    assert ran.stdout == f"{LEAST}\n"
    assert f"may open only {LEAST} files here" in ran.stderr


@pytest.mark.parametrize(
    "command",
    [["-m", "api"], ["-m", "workers", "worker"], ["-m", "workers", "housekeeper"], ["-m", "api.cli", "up"]],
    ids=" ".join,
)
def test_one_that_is_too_low_is_refused_in_one_sentence(command: list[str]) -> None:
    refused = run(64, 64, *command)
    assert refused.returncode == 1
    [line] = refused.stderr.splitlines()
    assert "A process may open only 64 files here" in line
