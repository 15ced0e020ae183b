"""Serve the HTTP API with the settings of the environment: `python -m api`."""

import uvicorn

from shared.settings import settings


def main() -> None:
    uvicorn.run(
        "api.app:create_app",
        factory=True,
        host=settings().host,
        port=settings().port,
        access_log=False,
        # Event streams stay open as long as their job runs; they would hold up every stop.
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
