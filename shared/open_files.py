"""How many files and sockets this process may have open."""

from __future__ import annotations

import resource

MOST = 65_536
"""Enough for every process of ours; a hard limit may be a thousand million, for which some programs reserve memory."""


def raise_open_files() -> int:
    """Raise the soft limit of open files (RLIMIT_NOFILE) to the hard one, at most to `MOST`; return the soft limit.

    Many systems start processes with 1,024 for the sake of programs that use select(2), which none of ours does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MOST if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS has a lower limit beside the one that it reports
        return soft
    return wanted
