"""Bring the database that TUWEN_DATABASE_URL names to this version of the code: `python -m shared.migrations`."""

from __future__ import annotations

import sys

from shared.migrations import migrate
from shared.settings import settings
from tuwen.errors import TuwenError


def main() -> int:
    """Migrate the configured database to the newest revision."""
    try:
        migrate(settings().database_url)
    except TuwenError as error:
        print(f"{error.code}: {error}", file=sys.stderr)  # noqa: T201 (a command's own words)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
