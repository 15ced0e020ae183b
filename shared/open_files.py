"""The limit on open files: each connection, each thread's socket and each pipe to an engine counts."""

from __future__ import annotations

import logging
import resource

from tuwen.errors import ConfigurationError

log = logging.getLogger(__name__)

LEAST = 256
"""Open files without which a process would accept jobs and then hang."""
ENOUGH = 1024
MOST = 65_536
"""More is never needed, and some systems refuse a limit without an end."""


def raise_open_files_limit() -> None:
    """Raise the soft limit of this process, and of those it starts, as far as the hard one allows.

    Raises:
        ConfigurationError: the limit stays too low to run.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError) as error:  # macOS has a lower limit for the whole system
            log.debug("the limit on open files stays at %d: %s", soft, error)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= ENOUGH:
        return
    if soft < LEAST:
        raise ConfigurationError(
            f"A process may open only {soft} files here, and Tuwen needs {LEAST} at least: "
            f"raise the hard limit, and start again after `ulimit -n {ENOUGH}`."
        )
    log.warning("A process may open only %d files here; under load more are needed: ulimit -n %d", soft, ENOUGH)
