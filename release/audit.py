"""`make audit`: ask the database of PyPI's advisories about everything in the locks, and about torch.

Exits with 0 when nothing is known, with 1 when an advisory names a version in them, and with 2 when the database could
not be asked: that nothing is known is said only after it was.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
GROUPS = (("runtime", "development"), ("tools",))
"""Locks that are installed together, and have one version of everything."""
FOUND, UNREACHABLE = 1, 2


def pinned(*texts: str) -> list[str]:
    """Every `name==version` in these files."""
    return sorted({pin for text in texts for pin in re.findall(r"^[\w.-]+==[^\s;]+", text, re.MULTILINE)})


def main() -> int:
    """Ask, print what was answered, and return the exit status."""
    torch = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return max(
        ask(pinned(*((ROOT / "requirements" / f"{lock}.txt").read_text() for lock in locks), *torch))
        for locks in GROUPS
    )


def ask(pins: list[str]) -> int:
    """Ask about these versions; the exit status."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins))
        file.flush()
        # All dependencies are in the list, so nothing is resolved and nothing is installed.
        options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json", "-r", file.name]
        program = Path(sys.executable).with_name("pip-audit")
        done = subprocess.run([program, *options], capture_output=True, text=True, check=False)
    return judge(done.stdout, done.stderr, len(pins))


def judge(output: str, errors: str, count: int) -> int:
    """Say what pip-audit found; the exit status.

    pip-audit exits with 1 for a finding and for a failure, and with 0 also where the index knows no advisories, as
    mirrors of PyPI do: so what it says of each version counts.
    """
    try:
        answers = json.loads(output)["dependencies"]
    except (ValueError, KeyError):
        last = errors.strip().splitlines()[-1:] or ["it said nothing"]
        return _say(UNREACHABLE, f"Nothing is known: advisories on {count} versions cannot be had ({last[0]}).")
    skipped = [answer for answer in answers if "skip_reason" in answer]
    found = [(answer, advisory) for answer in answers for advisory in answer.get("vulns", ())]
    for answer, advisory in found:
        fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
        _say(FOUND, f"{answer['name']} {answer['version']}: {advisory['id']}, fixed in {fixed}")
    if skipped:
        status = FOUND if found else UNREACHABLE
        return _say(status, f"Nothing is known of {len(skipped)} of {count} versions: {skipped[0]['skip_reason']}.")
    if found:
        return FOUND
    return _say(0, f"No advisory names any of the {count} versions.")


def _say(status: int, sentence: str) -> int:
    print(sentence, file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main())
