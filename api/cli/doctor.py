"""`tuwen doctor`: what is wrong with an installation, and what to do about it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import metadata
from uuid import uuid4

import httpx
import psycopg
import redis
from packaging.requirements import Requirement

from api.cli import checks
from api.cli.finding import Finding
from api.embedded.processes import port_is_free
from api.embedded.servers import embedded_servers
from shared.database import Database
from shared.database.connections import complaint_of_age
from shared.database.deletion import MOST_COUNTED
from shared.migrations import is_current, is_newer
from shared.objects.mark import ADVICE, StorageMark
from shared.objects.storage import ObjectStore
from shared.queue import JobQueue, connect
from shared.retention import parse_age, parse_job_ages, written
from shared.settings import Settings
from tuwen.errors import ConfigurationError, NotFound, TuwenError
from tuwen.version import __version__


def examine(settings: Settings, url: str, *, embedded: bool) -> Iterator[Finding]:
    """Check everything, the cheapest first.

    `url` is where clients look for the API; `embedded` says that `tuwen up` runs and the settings are its own.
    """
    yield Finding("Python", f"{platform.python_version()} in {sys.prefix}")
    yield from _packages()
    yield from _torch(settings)
    yield checks.free_space("disk", settings.data_dir.absolute(), "make room, or choose another --data")
    yield from checks.of_this_process(settings, embedded=embedded)
    if not embedded and not {"database_url", "redis_url"} & settings.model_fields_set:
        # Nothing is configured and nothing runs: this is a fresh installation, which `tuwen up` starts.
        yield _embedded_servers()
        if _answers(url):
            # Its ports are taken for a good reason, and clients of this folder use it too.
            yield Finding("system", f"none on {settings.data_dir.absolute()}; clients use the one at {url}")
            yield from _api(url)
            return
        yield from (
            _port("port", settings.port, settings.host),
            _port("flower_port", settings.flower_port, settings.flower_host),
        )
        yield Finding("system", "not running", f"start it with: tuwen up (clients look for it at {url})", serious=False)
        return
    for look in (_redis, _postgres, _storage, _workers, _housekeeper, _webhooks, _retention):
        yield from _guard(look.__name__.strip("_"), partial(look, settings))
    for check in checks.RUNNING:
        yield from _guard(check.__name__.replace("_", " "), partial(check, settings))
    yield from _api(url)
    yield from checks.api_release(url)


def _guard(subject: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except (TuwenError, redis.RedisError, psycopg.Error, OSError) as error:
        variable = {"redis": "TUWEN_REDIS_URL", "postgres": "TUWEN_DATABASE_URL", "storage": "TUWEN_STORAGE_URL"}
        yield Finding(
            subject, str(error), f"make sure that it runs and that {variable.get(subject, 'its address')} is right"
        )


def _packages() -> Iterator[Finding]:
    """Compare installed versions with the required ones: all of `server`, and of other extras what is installed."""
    wrong, fine = [], 0
    try:
        required = metadata.requires("tuwen") or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", "this is a folder of sources, not an installation", "pip install -e '.[server]'")
        return
    for line in required:
        requirement = Requirement(line)
        optional = requirement.marker is not None and not requirement.marker.evaluate({"extra": "server"})
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if not optional:
                wrong.append(f"{requirement.name} is missing")
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            fine += 1
        else:
            wrong.append(f"{requirement.name} {installed} is not {requirement.specifier}")
    celery, kombu = metadata.version("celery"), metadata.version("kombu")
    found = f"{fine} as required; celery {celery} with kombu {kombu}"
    yield Finding("packages", "; ".join(wrong) or found, "pip install --upgrade 'tuwen[server]'" if wrong else "")


_ASK_TORCH = """
import json, torch
gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "gpus": gpus, "cores": torch.get_num_threads()}))
"""


def _torch(settings: Settings) -> Iterator[Finding]:
    """Ask torch in a separate process, because importing it takes seconds and 200 MB, and may even crash."""
    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-c", _ASK_TORCH], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding("torch", "did not load in two minutes", "check with nvidia-smi whether the device's driver hangs")
        return
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["it died"])[-1]
        missing = "No module named 'torch'" in last
        advice = "pip install 'tuwen[worker]' where workers should run" if missing else "reinstall torch"
        yield Finding("torch", last, advice, serious=not missing)
        return
    torch = json.loads(answer.stdout.splitlines()[-1])
    gpus = ", ".join(f"cuda:{index} {name}" for index, name in enumerate(torch["gpus"])) or "no GPU"
    yield Finding("torch", f"{torch['version']}, {torch['cores']} CPU threads, {gpus}")
    if settings.device.startswith("cuda") and not torch["gpus"]:
        yield Finding(
            "device", f"{settings.device}, but torch sees no GPU", "set TUWEN_DEVICE=cpu, or repair the driver"
        )
    elif settings.device == "cpu" and torch["gpus"]:
        yield Finding("device", "cpu, although there is a GPU", "use it with --device cuda:0", serious=False)


def _embedded_servers() -> Finding:
    try:
        return Finding("servers", f"embedded {embedded_servers()}")
    except ConfigurationError as error:
        return Finding("servers", "none configured, none embedded", str(error))


def _port(name: str, port: int, host: str) -> Finding:
    if port_is_free(port, host):
        return Finding(name, f"{port} is free")
    return Finding(name, f"{port} is taken by another program", f"choose another with --{name.replace('_', '-')}")


def _redis(settings: Settings) -> Iterator[Finding]:
    with connect(settings) as client:
        server, memory, persistence = (client.info(section) for section in ("server", "memory", "persistence"))
    kind = "Valkey" if "valkey_version" in server else "Redis"
    yield Finding("redis", f"{kind} {server.get('valkey_version') or server['redis_version']} answers")
    policy = memory["maxmemory_policy"]
    if policy != "noeviction":
        found = f"{policy}: a full Redis drops messages"
        yield Finding("redis eviction", found, "config set maxmemory-policy noeviction", False)
    if not int(persistence["aof_enabled"]):
        yield Finding(
            "redis persistence",
            "off: jobs wait for the housekeeper after a restart",
            "config set appendonly yes",
            False,
        )


def _postgres(settings: Settings) -> Iterator[Finding]:
    with psycopg.connect(settings.database_url, connect_timeout=3) as connection:
        version = connection.info.server_version
    yield Finding("postgres", f"PostgreSQL {version // 10_000} answers", complaint_of_age(version) or "")
    if is_newer(settings.database_url):
        yield Finding("schema", "of a newer release", "bring this installation up to that release")
    elif is_current(settings.database_url):
        yield Finding("schema", "current")
    else:
        yield Finding("schema", "behind this release", "run: tuwen migrate")


def _storage(settings: Settings) -> Iterator[Finding]:
    store = ObjectStore.open(settings)
    database = Database(settings, pool_size=1)
    try:
        if not StorageMark(database, store).agrees():
            found = "of another time than the database, as after a restore: orphans are not collected"
            yield Finding("backup", found, ADVICE, serious=False)
    finally:
        database.close()
    key = f"doctor/{uuid4()}.txt"
    store.put(key, b"tuwen", "text/plain")
    store.delete(key)
    try:
        store.get(key)
    except NotFound:
        yield Finding("storage", f"{settings.storage_url} takes, gives and deletes objects")
    else:
        yield Finding("storage", f"{settings.storage_url} does not delete", "give its user the right to delete objects")


def _workers(settings: Settings) -> Iterator[Finding]:
    database = Database(settings, pool_size=1)
    try:
        workers = database.workers.alive()
    finally:
        database.close()
    served = {kind for worker in workers for kind in worker.models}
    missing = [kind for kind in settings.kinds if kind not in served]
    names = ", ".join(f"{worker.name} on {worker.device}" for worker in workers) or "none"
    others = sorted({worker.release or "0.1.0" for worker in workers} - {__version__})
    if others:
        yield Finding("releases", f"workers of {', '.join(others)} beside {__version__}", "replace them", serious=False)
    yield Finding(
        "workers", names, f"no worker serves {', '.join(missing)}: start one (tuwen worker)" if missing else ""
    )


def _housekeeper(settings: Settings) -> Iterator[Finding]:
    queue = JobQueue(settings)
    try:
        hosts = queue.housekeepers()
    finally:
        queue.close()
    advice = "" if hosts else "lost jobs, batches and data sets wait: start one (tuwen housekeeper)"
    yield Finding("housekeeper", f"runs on {', '.join(hosts)}" if hosts else "none runs", advice)


def _answers(url: str) -> bool:
    """Whether Tuwen, and not another program, answers at this address."""
    try:
        return "components" in httpx.get(f"{url}/readyz", timeout=5).json()
    except (httpx.HTTPError, ValueError, TypeError):
        return False


def _api(url: str) -> Iterator[Finding]:
    try:
        answer = httpx.get(f"{url}/readyz", timeout=5)
    except httpx.HTTPError as error:
        yield Finding("api", f"{url}: {error}", "start it with tuwen up or tuwen api, or set TUWEN_URL")
        return
    fine = answer.is_success
    yield Finding("api", f"{url} {'is ready' if fine else answer.text.strip()}", "" if fine else "see its log")


def _webhooks(settings: Settings) -> Iterator[Finding]:
    database = Database(settings, pool_size=1)
    try:
        figures = database.webhooks.figures()
    finally:
        database.close()
    found = f"{figures.waiting} to be delivered, {figures.late} of them late; {figures.given_up} given up"
    if figures.shared and settings.webhook_secret is None:
        advice = (
            f"the housekeeper delivers {figures.shared} of them only with TUWEN_WEBHOOK_SECRET: "
            "their keys have no secret of their own"
        )
    elif figures.late:
        advice = f"the oldest is {figures.oldest_age:.0f} s old; see which receivers do not answer: tuwen webhooks ls"
    elif figures.given_up:
        advice = "once their receivers work, deliver them: tuwen webhooks retry --all"
    else:
        advice = ""
    yield Finding("webhooks", found, advice, serious=False)


OVERDUE = timedelta(days=1)
"""What is still there so long after its time shows that the housekeeper does not keep up, or has other settings."""


def _retention(settings: Settings) -> Iterator[Finding]:
    """What is deleted by its age, and whether that happens."""
    ages = parse_job_ages(settings.keep_jobs)
    uploads, batches = (written(parse_age(text)) for text in (settings.keep_uploads, settings.keep_batches))
    groups: dict[timedelta | None, list[str]] = {}
    for status, age in ages.items():
        groups.setdefault(age, []).append(status.value)
    jobs = "; ".join(f"{written(age)} for {', '.join(states)} jobs" for age, states in groups.items())
    yield Finding("retention", f"{jobs}; {uploads} for unused uploads; {batches} for batches")
    database = Database(settings, pool_size=1)
    try:
        found = {status: database.deletion.due_jobs(status, age) for status, age in ages.items() if age is not None}
    finally:
        database.close()
    for status, due in found.items():
        if not due.count:
            continue
        many = f"{MOST_COUNTED} or more" if due.count == MOST_COUNTED else str(due.count)
        oldest = f", the oldest of {due.oldest:%Y-%m-%d %H:%M}" if due.oldest else ""
        late = due.oldest is not None and due.oldest < datetime.now(UTC) - (ages[status] or OVERDUE) - OVERDUE
        yield Finding(
            "retention",
            f"{many} {status.value} jobs are due{oldest}",
            "see the log of the housekeeper, and whether it has the same TUWEN_KEEP_JOBS" if late else "",
            serious=False,
        )
