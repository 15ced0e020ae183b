"""How long what is over is kept: `TUWEN_KEEP_JOBS`, `TUWEN_KEEP_UPLOADS`, `TUWEN_KEEP_BATCHES`.

90d                                a number with its unit: m, h, d, w or y, or written out (90 days)
forever                            nothing is deleted by its age
30d,failed=1y,quarantined=forever  for jobs: by the state in which they ended, and 30 days in all others
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta

from tuwen.jobs import Status

FOREVER = "forever"
SHORTEST = timedelta(minutes=10)
"""What is under way needs its time: a submission that names an upload, a delivery that repeats."""

_AGE = re.compile(r"(?P<count>\d{1,6}(?:\.\d{1,3})?)\s*(?P<unit>[a-z]+)", re.ASCII)
_UNITS = {
    ("m", "min", "minute", "minutes"): timedelta(minutes=1),
    ("h", "hour", "hours"): timedelta(hours=1),
    ("d", "day", "days"): timedelta(days=1),
    ("w", "week", "weeks"): timedelta(weeks=1),
    ("y", "year", "years"): timedelta(days=365),
}
_ENDS = tuple(status for status in Status if status.terminal)


def parse_age(text: str) -> timedelta | None:
    """The age at which something is deleted; None is never.

    Raises:
        ValueError: it is no age, or so short that what is under way would be deleted.
    """
    text = text.strip().lower()
    if text == FOREVER:
        return None
    found = _AGE.fullmatch(text)
    unit = next((length for names, length in _UNITS.items() if found and found["unit"] in names), None)
    if found is None or unit is None:
        # A bare number is refused: who meant days would lose everything within seconds.
        raise ValueError(f"{text!r} is no length of time: write a number with its unit, such as 90d or 12h, or forever")
    age = float(found["count"]) * unit
    if age < SHORTEST:
        raise ValueError(f"{text!r} is too short: what is under way needs at least {SHORTEST.seconds // 60} minutes")
    return age


def parse_job_ages(text: str) -> Mapping[Status, timedelta | None]:
    """The age at which jobs are deleted, by the state in which they ended; None is never.

    Raises:
        ValueError: a part is no age, names no such state, or says twice the same.
    """
    general: timedelta | None = None
    given: dict[str, timedelta | None] = {}
    for part in text.split(","):
        name, separator, age = part.rpartition("=")
        name = name.strip().lower()
        if separator and name not in _ENDS:
            raise ValueError(f"no job ends as {name!r}; there are {', '.join(_ENDS)}")
        if name in given:
            raise ValueError(f"it says twice how long {name or 'jobs'} are kept")
        given[name] = parse_age(age)
        general = given.get("")
    return {status: given.get(status.value, general) for status in _ENDS}


def written(age: timedelta | None) -> str:
    """The age as people write it."""
    if age is None:
        return FOREVER
    for name, length in (("days", timedelta(days=1)), ("hours", timedelta(hours=1))):
        if age >= length:
            return f"{age / length:g} {name}"
    return f"{age / timedelta(minutes=1):g} minutes"
