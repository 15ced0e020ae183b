"""Celery's remote control, as `celery inspect`, `celery control` and Flower use it: what of it works here.

What only looks stays as Celery has it. `revoke` and `terminate` cancel jobs in PostgreSQL. What would make a worker do
less than its settings say, or do nothing, is answered with a sentence that says what to use instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from celery.worker.control import Panel, control_command

log = logging.getLogger(__name__)

KEPT = frozenset(
    {
        *("active", "active_queues", "clock", "conf", "hello", "memdump", "memsample", "ping", "query_task"),
        *("registered", "report", "reserved", "revoked", "scheduled", "stats"),
        *("dump_active", "dump_conf", "dump_reserved", "dump_revoked", "dump_schedule", "dump_tasks"),
        *("enable_events", "disable_events", "heartbeat"),
    }
)
"""Commands that only look, and those for events."""

_SETTINGS = "is set where the worker is started"
REFUSED = {
    "add_consumer": f"which kinds of jobs a worker takes {_SETTINGS}: tuwen worker --kinds, or TUWEN_KINDS",
    "cancel_consumer": f"which kinds of jobs a worker takes {_SETTINGS}: tuwen worker --kinds, or TUWEN_KINDS",
    "pool_grow": f"how many jobs a worker has in hand {_SETTINGS}: TUWEN_CONCURRENCY; for more, start more workers",
    "pool_shrink": f"how many jobs a worker has in hand {_SETTINGS}: TUWEN_CONCURRENCY; for less, stop workers",
    "pool_restart": "send the worker SIGTERM and start it again: its running batch ends, and the rest is queued again",
    "autoscale": "a worker has a fixed number of jobs in hand (TUWEN_CONCURRENCY); scale by the number of workers",
    "rate_limit": "jobs are not limited by rate: an API key has a quota, and a worker takes what its engine can do",
    "time_limit": "set TUWEN_BATCH_TIMEOUT for a batch, TUWEN_JOB_DEADLINE for a job, or `deadline` in a request",
    "shutdown": "send the worker SIGTERM, or stop its service, container or pod: its supervisor would start it again",
    "revoke_by_stamped_headers": "jobs have no stamps: revoke them by their ids",
    "election": "workers have nothing to elect: PostgreSQL decides which one runs a job",
    "objgraph": "it would write a file on the worker's host: use a profiler there",
}
"""Commands that are off, with what to use instead."""

OTHERWISE = "only Tuwen's own commands and those that look are on; see docs/celery.md"
"""The answer to a command that this release does not know."""


def install(cancel: Callable[[Iterable[str]], dict[str, str]]) -> None:
    """Replace Celery's remote commands in this process.

    Args:
        cancel: cancels the jobs with these ids; returns Celery's answer, `{"ok": …}` or `{"error": …}`.
    """

    def revoke(_state: object, task_id: object = (), **_: object) -> dict[str, str]:
        """Cancel jobs by their ids, whether they wait or run."""
        return cancel([task_id] if isinstance(task_id, str) else [str(id) for id in _sequence(task_id)])

    def terminate(state: object, signal: object = None, task_id: object = (), **_: object) -> dict[str, str]:  # noqa: ARG001 (Celery's signature)
        """Cancel jobs by their ids, as `revoke` does: no process is sent a signal."""
        return revoke(state, task_id)

    ids = "[id1 [id2 [... [idN]]]]"
    control_command(name="revoke", variadic="task_id", signature=ids)(revoke)
    signature = f"<signal> {ids}"
    control_command(name="terminate", args=[("signal", str)], variadic="task_id", signature=signature)(terminate)
    for name in Panel.data.keys() - KEPT - {"revoke", "terminate"}:
        Panel.data[name] = _refusal(name)


def _refusal(name: str) -> Callable[..., dict[str, str]]:
    sentence = f"{name} is off: {REFUSED.get(name, OTHERWISE)}"

    def refuse(_state: object, **_: Any) -> dict[str, str]:
        log.warning("a remote command was refused: %s", sentence)
        return {"error": sentence}

    return refuse


def _sequence(ids: object) -> Iterable[object]:
    return ids if isinstance(ids, list | tuple) else ()
