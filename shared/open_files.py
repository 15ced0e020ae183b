"""How many files this process may open: each connection, each thread's socket and each pipe to an engine counts."""

from __future__ import annotations

import logging
import resource

from tuwen.errors import ConfigurationError

log = logging.getLogger(__name__)

LEAST = 256
"""Open files without which a process would accept jobs and then hang."""
ENOUGH = 1024
MOST = 65_536
"""Enough for every process of ours; a hard limit may be a thousand million, for which some programs reserve memory."""


def raise_open_files() -> int:
    """Raise the soft limit of open files (RLIMIT_NOFILE) to the hard one, at most to `MOST`; return the soft limit.

    The processes that this one starts inherit it. Many systems start processes with 1,024 for the sake of programs that
    use select(2), which none of ours does.

    Raises:
        ConfigurationError: the limit stays too low to run.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError) as error:  # macOS has a lower limit beside the one that it reports
            log.debug("the limit on open files stays at %d: %s", soft, error)
    if soft == resource.RLIM_INFINITY or soft >= ENOUGH:
        return MOST if soft == resource.RLIM_INFINITY else soft
    if soft < LEAST:
        raise ConfigurationError(
            f"A process may open only {soft} files here, and Tuwen needs {LEAST} at least: "
            f"raise the hard limit, and start again after `ulimit -n {ENOUGH}`."
        )
    log.warning("A process may open only %d files here; under load more are needed: ulimit -n %d", soft, ENOUGH)
    return soft
