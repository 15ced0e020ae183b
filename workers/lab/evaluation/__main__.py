"""`python -m workers.lab.evaluation --quick`: what the command `tuwen evaluate` runs."""

from __future__ import annotations

import sys

try:
    from workers.lab.evaluation.command import main
except ModuleNotFoundError as error:
    if error.name and error.name.partition(".")[0] in ("shared", "workers"):
        raise
    sys.exit(f"{error.name} is not installed here: pip install 'tuwen[evaluation]'")

if __name__ == "__main__":
    sys.exit(main())
