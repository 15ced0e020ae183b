"""Checks of `tuwen doctor` for what goes wrong while a system runs: growth, clocks, limits, and stray variables."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg

from api.cli.finding import Finding
from shared.database import Database
from shared.open_files import ENOUGH, LEAST
from shared.queue import JobQueue, connect
from shared.settings import Settings
from shared.telemetry.metrics import JOBS_FINISHED, redis_key
from tuwen.jobs import Status
from tuwen.version import __version__

FREE_SPACE = 2 * 2**30
NO_SPACE = 64 * 2**20
"""Bytes on a disk below which PostgreSQL, Redis and the storage fail soon or already do."""

CLOCKS_APART = 5.0
"""Seconds between two clocks that people notice; S3 refuses signatures, and receivers webhooks, after minutes."""

MOST_USED = 0.8
"""Part of a limit, of connections or memory, from which on it will soon be reached."""

LONG = 900.0
"""Seconds that a job may wait before that is worth a word; as in the alert TuwenJobsWaitLong."""

OTHER_VARIABLES = frozenset(("TUWEN_URL", "TUWEN_API_KEY", "TUWEN_BIND", "TUWEN_LOG"))
"""Those that are no settings: options of the command, one of docker-compose.yml, and the form of the log."""

# Each changes what libpq does with TUWEN_DATABASE_URL. PGPASSWORD, PGPASSFILE and such only complete it.
_REDIRECTING = (
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGOPTIONS",
    "PGSSLMODE",
    "PGTARGETSESSIONATTRS",
    "PGCHANNELBINDING",
    "PGREQUIREAUTH",
)


def of_this_process(settings: Settings, *, embedded: bool) -> Iterator[Finding]:
    """What the shell, the service or the container gave us."""
    yield _variables(embedded=embedded)
    yield _open_files()
    if settings.storage_url.startswith("file://"):
        folder = Path(settings.storage_url.removeprefix("file://")).absolute()
        yield free_space("storage disk", folder, "make room, or use another TUWEN_STORAGE_URL")


def _variables(*, embedded: bool) -> Finding:
    known = {f"TUWEN_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    unknown = sorted(name for name in os.environ if name.startswith("TUWEN_") and name not in known)
    redirecting = [] if embedded else [name for name in _REDIRECTING if name in os.environ]
    advice = []
    if unknown:
        advice.append(f"correct or remove {', '.join(unknown)}: no setting is called so")
    if redirecting:
        advice.append(f"unset {', '.join(redirecting)}, which change what TUWEN_DATABASE_URL means, or write it there")
    found = ", ".join(unknown + redirecting)
    return Finding("environment", f"{found} set" if found else "nothing stray", "; ".join(advice), serious=False)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= ENOUGH:
        return Finding("open files", f"at most {soft}; processes raise that by themselves")
    advice = f"raise the hard limit to {ENOUGH} or more, in limits.conf, LimitNOFILE= or the container's ulimits"
    return Finding("open files", f"at most {hard}", advice, serious=hard < LEAST)


def free_space(subject: str, folder: Path, advice: str) -> Finding:
    """The space that is left on the disk of a folder, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / 2**30:.1f} GiB free at {folder}"
    return Finding(subject, found, advice if free < FREE_SPACE else "", serious=free < NO_SPACE)


# ── PostgreSQL ────────────────────────────────────────────────────────────────────────────────────


def postgres_limits(settings: Settings) -> Iterator[Finding]:
    """Whether PostgreSQL takes writes and keeps them, how full it is, and what its clock says."""
    with psycopg.connect(settings.database_url, connect_timeout=3, autocommit=True) as connection:
        yield _writes(connection)
        yield _durability(connection)
        yield _connections(connection)
        yield _clock(connection)


def _writes(connection: psycopg.Connection) -> Finding:
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("UPDATE clock SET shifted = shifted")
    except psycopg.errors.ReadOnlySqlTransaction:
        return Finding("postgres writes", "refused: it is read-only", "use the primary server, not a standby")
    except psycopg.errors.DiskFull:
        return Finding("postgres writes", "refused: its disk is full", "make room on the disk of PostgreSQL's data")
    except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege) as error:
        return Finding("postgres writes", str(error).splitlines()[0], "run as the tables' owner: tuwen migrate")
    return Finding("postgres writes", "taken")


def _durability(connection: psycopg.Connection) -> Finding:
    names = ("fsync", "full_page_writes", "synchronous_commit")
    off = [name for name in names if connection.execute(f"SHOW {name}").fetchone() == ("off",)]
    if not off:
        return Finding("postgres durability", "what is committed is on disk")
    advice = f"set {' and '.join(off)} to on: otherwise a power cut loses jobs that were accepted"
    return Finding("postgres durability", f"{', '.join(off)} off", advice, serious=False)


def _connections(connection: psycopg.Connection) -> Finding:
    [(used, ours, most)] = connection.execute("""
        SELECT count(*) FILTER (WHERE backend_type = 'client backend'),
            count(*) FILTER (WHERE application_name LIKE 'tuwen%'),
            current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
        FROM pg_stat_activity
    """)
    advice = "raise max_connections, or run fewer processes; docs/sizing.md says what each takes"
    found = f"{used} of {most} used, {ours} by Tuwen"
    return Finding("connections", found, advice if used > MOST_USED * most else "", serious=used >= most - 1)


def _clock(connection: psycopg.Connection) -> Finding:
    before = time.time()
    [(told,)] = connection.execute("SELECT EXTRACT(EPOCH FROM now())::float8")
    after = time.time()
    ahead = told - (before + after) / 2
    if abs(ahead) - (after - before) / 2 < CLOCKS_APART:
        return Finding("clocks", "PostgreSQL's and this host's agree")
    found = f"PostgreSQL's is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this host's"
    advice = "set both by NTP: jobs do not mind, but S3 refuses signatures, and receivers webhooks, minutes apart"
    return Finding("clocks", found, advice, serious=False)


# ── Redis ─────────────────────────────────────────────────────────────────────────────────────────


def redis_limits(settings: Settings) -> Iterator[Finding]:
    """Whether Redis takes writes, how full it is, and whether it has dropped anything."""
    with connect(settings) as client:
        memory, persistence, stats = (client.info(section) for section in ("memory", "persistence", "stats"))
        key = "tuwen:doctor"
        client.set(key, "1", px=1000)  # raises where Redis is full, read-only, or cannot write its file
    limit, used = int(memory["maxmemory"]), int(memory["used_memory"])
    found = f"{used / 2**20:.0f} MiB of {limit / 2**20:.0f} MiB" if limit else f"{used / 2**20:.0f} MiB, no limit set"
    full = limit and used > MOST_USED * limit
    yield Finding("redis memory", found, "raise maxmemory, or add workers: the queue fills it" if full else "", False)
    if evicted := int(stats["evicted_keys"]):
        advice = "config set maxmemory-policy noeviction; the housekeeper publishes what was lost again"
        yield Finding("redis eviction", f"{evicted} keys were evicted", advice, serious=False)
    states = ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
    if failed := [name for name in states if persistence.get(name, "ok") != "ok"]:
        yield Finding("redis persistence", f"{', '.join(failed)}: failed", "see its log, and its disk", serious=False)


# ── work ──────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    database = Database(settings, pool_size=1, longest=10.0)
    try:
        yield database
    finally:
        database.close()


def queue(settings: Settings) -> Iterator[Finding]:
    """Who waits longest, by kind and priority: those behind a stream of more urgent jobs, for one."""
    with _database(settings) as database:
        waiting = database.jobs.waiting()
    if not waiting:
        yield Finding("queue", "no job waits")
    for group in waiting:
        found = f"{group.jobs} {group.kind} jobs of priority {group.priority}, the oldest for {group.oldest_age:.0f} s"
        advice = "add workers for this kind; see whether one key submits more urgent jobs all the time"
        yield Finding("queue", found, advice if group.oldest_age > LONG else "", serious=False)


def quarantine(settings: Settings) -> Iterator[Finding]:
    """Jobs that took their workers down, as far as Redis has counted, and shards that failed."""
    with connect(settings) as client:
        counts: dict[str, str] = client.hgetall(redis_key(JOBS_FINISHED))
    wanted = f"/{Status.QUARANTINED}"
    found = {field.removesuffix(wanted): int(float(n)) for field, n in counts.items() if field.endswith(wanted)}
    many = ", ".join(f"{count} {kind}" for kind, count in found.items() if count)
    advice = "see what they share: tuwen jobs ls --status quarantined" if many else ""
    yield Finding("quarantine", f"{many} jobs took workers down" if many else "no job took workers down", advice, False)
    with _database(settings) as database:
        failed = sum(row.shards for row in database.datasets.figures() if row.shard_status == "failed")
    if failed:
        advice = "read their errors (tuwen datasets ls), then tuwen datasets retry ID"
        yield Finding("data sets", f"{failed} shards failed", advice, serious=False)


def releases(settings: Settings) -> Iterator[Finding]:
    """Housekeepers and models that are not of one release: results then depend on who does the work."""
    jobs = JobQueue(settings)
    try:
        others = {host: told for host, told in jobs.housekeeper_releases().items() if told != __version__}
    finally:
        jobs.close()
    named = ", ".join(f"{host} {release}" for host, release in sorted(others.items()))
    yield Finding(
        "releases",
        f"this is {__version__}; housekeepers: {named}" if named else f"{__version__}, and so are the housekeepers",
        "replace the processes of the other release" if named else "",
        serious=False,
    )
    with _database(settings) as database:
        workers = database.workers.alive()
    held: dict[str, dict[str, list[str]]] = {}
    for worker in workers:
        for kind, model in worker.models.items():
            for name, revision in model.revisions.items():
                held.setdefault(f"{kind} {name}", {}).setdefault(revision, []).append(worker.name)
    for served, revisions in held.items():
        if len(revisions) > 1:
            found = "; ".join(f"{', '.join(names)} have {revision}" for revision, names in sorted(revisions.items()))
            advice = "restart the workers that have the old weights: the same seed gives another picture there"
            yield Finding("models", f"{served}: {found}", advice, serious=False)


RUNNING: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    postgres_limits,
    redis_limits,
    queue,
    quarantine,
    releases,
)
"""The checks of a system whose servers run."""


def api_release(url: str) -> Iterator[Finding]:
    """Whether the API is of this release; one that does not answer is told elsewhere."""
    try:
        told = httpx.get(f"{url}/healthz", timeout=5).json()["version"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return
    if told != __version__:
        yield Finding("api release", f"{told}, and this is {__version__}", "restart the API with this release", False)
