"""`python -m workers worker|housekeeper|flower`: what the command `tuwen` and the containers run."""

from __future__ import annotations

import argparse
import logging
import sys

from shared.database.connections import require_supported
from shared.migrations import require_schema
from shared.open_files import raise_open_files
from shared.queue.access import require_access
from shared.settings import Settings
from shared.telemetry import logs
from tuwen.errors import ConfigurationError, TuwenError
from tuwen.jobs import Kind


def main() -> int:
    """Run the role that the command line names. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True)
    worker = roles.add_parser("worker", help="run jobs on one device")
    worker.add_argument("--device", help="device to run on: cpu or cuda:N; default: TUWEN_DEVICE")
    worker.add_argument("--name", help="name that distinguishes workers of one device")
    worker.add_argument("--kinds", nargs="+", type=Kind, choices=list(Kind), help="kinds of jobs; default: all")
    roles.add_parser("devices", help="print the GPUs that workers can be started on, one a line")
    roles.add_parser(
        "housekeeper", help="publish lost jobs, end dead leases, deliver webhooks, process batches and data sets"
    )
    roles.add_parser("flower", help="serve the monitoring page")
    arguments = parser.parse_args()

    for chatty in ("celery.worker.strategy", "celery.app.trace", "celery.beat"):
        logging.getLogger(chatty).setLevel(logging.WARNING)  # several lines a job
    given = {name: value for name in ("device", "kinds") if (value := getattr(arguments, name, None))}
    try:
        settings = Settings(**given)
        logs.configure(settings.log)
        return _run(arguments, settings)
    except TuwenError as error:
        logs.complain(f"{error.code}: {error}")
    return 1


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    # Imported here, so that each role loads only what it needs.
    if arguments.role == "devices":
        from workers.inference.devices import visible_devices

        print(*visible_devices(), sep="\n")
        return 0
    raise_open_files()
    require_supported(settings.database_url)
    require_schema(settings.database_url)
    require_access(settings)
    if arguments.role == "worker":
        from workers.app import run_worker

        return run_worker(settings, arguments.name)
    if arguments.role == "housekeeper":
        from workers.housekeeper.app import run_housekeeper

        return run_housekeeper(settings)
    try:
        from workers.flower.app import run_flower
    except ModuleNotFoundError as error:
        if error.name != "flower":
            raise
        raise ConfigurationError("Flower is not installed here: pip install 'tuwen[flower]'") from error
    return run_flower(settings)


if __name__ == "__main__":
    sys.exit(main())
