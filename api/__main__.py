"""Serve the HTTP API with the settings of the environment: `python -m api`."""

from __future__ import annotations

import sys

import uvicorn

from api.app import create_app
from shared.errors import ConfigurationError
from shared.settings import settings


def main() -> int:
    try:
        app = create_app(settings())
    except ConfigurationError as error:
        print(f"{error.code}: {error}", file=sys.stderr)  # noqa: T201 (a command's own words)
        return 1
    # Event streams stay open as long as their job runs; they would hold up every stop.
    uvicorn.run(app, host=settings().host, port=settings().port, access_log=False, timeout_graceful_shutdown=5)
    return 0


if __name__ == "__main__":
    sys.exit(main())
