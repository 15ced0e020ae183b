"""Serve the HTTP API with the settings of the environment: `python -m api`."""

from __future__ import annotations

import logging
import sys

import uvicorn

from api.app import create_app
from api.http.connections import bounded_http
from api.http.request_ids import LOG_FORMAT, note_in_logs
from shared.database.connections import require_supported
from shared.open_files import raise_open_files
from shared.settings import settings
from tuwen.errors import ConfigurationError

KEEP_ALIVE = 75
"""Seconds for which an idle connection is kept open: longer than clients and load balancers keep theirs (httpx 5, most
proxies 60), so that they close it first. A request sent into a connection that the server is closing would be lost."""


def main() -> int:
    """Serve the API until it is stopped."""
    note_in_logs()
    logging.basicConfig(level=logging.WARNING, format=LOG_FORMAT)
    try:
        raise_open_files()
        app = create_app(settings())
        require_supported(settings().database_url)
    except ConfigurationError as error:
        print(f"{error.code}: {error}", file=sys.stderr)  # noqa: T201 (a command's own words)
        return 1
    uvicorn.run(
        app,
        host=settings().host,
        port=settings().port,
        http=bounded_http(),
        ws="none",  # no route speaks WebSocket
        access_log=False,
        forwarded_allow_ips=[*settings().trusted_proxies],
        timeout_keep_alive=KEEP_ALIVE,
        # Event streams stay open as long as their job runs; they would hold up every stop.
        timeout_graceful_shutdown=5,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
