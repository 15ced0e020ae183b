"""Whether this host's worker or housekeeper does its work: `python -m workers.health worker|housekeeper`.

For health checks of containers. A running process says nothing, and one that is stuck may still answer Celery's
ping; so this looks for the traces that work leaves: the worker's heartbeats, and the housekeeper's rounds.
"""

from __future__ import annotations

import argparse
import platform
import sys

from shared.database import Database
from shared.queue import JobQueue
from shared.settings import Settings
from tuwen.errors import TuwenError


def is_worker_healthy(settings: Settings) -> bool:
    """Whether a worker of this host is warm and renewed its lease in time."""
    database = Database(settings, pool_size=1)
    try:
        return any(row.name.endswith(f"@{platform.node()}") for row in database.workers.alive())
    finally:
        database.close()


def is_housekeeper_healthy(settings: Settings) -> bool:
    """Whether a housekeeper of this host has recently done a round."""
    queue = JobQueue(settings)
    try:
        return queue.housekeeper_seen(platform.node())
    finally:
        queue.close()


def main() -> int:
    """Check the role that the command line names. Returns the exit status: 0 means healthy."""
    parser = argparse.ArgumentParser(prog="python -m workers.health", description=__doc__)
    parser.add_argument("role", choices=("worker", "housekeeper"))
    role = parser.parse_args().role
    try:
        works = {"worker": is_worker_healthy, "housekeeper": is_housekeeper_healthy}[role](Settings())
    except TuwenError as error:
        print(f"{error.code}: {error}", file=sys.stderr)  # noqa: T201 (a command's own words)
        return 1
    return 0 if works else 1


if __name__ == "__main__":
    sys.exit(main())
