"""The command `tuwen`, as far as it needs no more than this package: it says what is missing, then hands over.

The command itself is `api.cli.main`. This package knows it by name only: the clients, which are all that a plain
`pip install tuwen` brings, must not need it.
"""

from __future__ import annotations

import sys
from importlib import import_module

from tuwen.errors import ConfigurationError
from tuwen.installation import require_visible


def main() -> None:
    """Entry point. An installation that cannot run the command is one sentence and exit code 1, no traceback."""
    try:
        require_visible("api")
        require_visible("shared")
    except ConfigurationError as error:
        sys.exit(f"error: {error}")
    try:
        run = import_module("api.cli.main").main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("api", "shared", "tuwen"):
            raise
        sys.exit(f"error: the command needs more than the Python client ({error.name}): pip install 'tuwen[server]'")
    run()
