"""Programs that some tests need and pip does not install.

A test that needs one is marked `@pytest.mark.needs("chromium")`. Where the program is missing, the test is skipped, and
the end of the run says which command installs it. On continuous integration (`CI` is set), such a test fails instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from glob import glob
from itertools import chain

EXECUTABLES = {
    "chromium": ("chromium", "google-chrome", "chromium-browser"),
    "docker-registry": ("docker-registry",),
    "g++": ("g++",),
    "pgbouncer": ("pgbouncer", "/usr/sbin/pgbouncer"),
    "prometheus": ("prometheus",),
    "postgresql": ("/usr/lib/postgresql/*/bin/postgres",),
    "redis-sentinel": ("redis-sentinel",),
    "redis-server": ("redis-server",),
    "systemd": ("systemd-analyze",),
}
"""Names or paths under which each package of Debian's may be found, under Debian's name of the package."""


def find(package: str) -> str | None:
    """Path of the program; None where it is not installed."""
    names = chain.from_iterable(sorted(glob(name)) or [name] for name in EXECUTABLES[package])  # noqa: PTH207
    return next(filter(None, map(shutil.which, names)), None)


def path(package: str) -> str:
    """Path of a program that the test is marked to need."""
    found = find(package)
    assert found, f"{package} is not installed: {install([package])}"
    return found


def install(packages: Collection[str]) -> str:
    """The command that installs them on Debian."""
    return f"apt install {' '.join(sorted(packages))}"


def on_ci() -> bool:
    """Whether nothing may be left out: CI services set `CI=true`."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")
