"""The embedded system of `tuwen up`: servers, API, workers, housekeeper and Flower, started and supervised together.

Everything it keeps is in one data folder, which other users cannot read:

    lock          held by every process of the system, so that only one system at a time uses the folder
    system.json   the addresses, for the other commands on this machine; holds passwords (mode 0600)
    objects/      uploaded and generated images
    postgres/     valkey/     flower/     exports/
    logs/         NAME.log, and NAME.log.1 before it
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import httpx
from kombu.exceptions import KombuError
from pydantic import SecretStr
from redis.exceptions import RedisError

from api.embedded.addresses import Addresses, as_environment
from api.embedded.folders import make_private
from api.embedded.log_files import LogFile
from api.embedded.processes import (
    ChildProcess,
    Lock,
    await_end,
    choose_port,
    forget_libpq_variables,
    last_lines,
    spawn,
)
from api.embedded.servers import Postgres, Valkey, kept_password
from shared.database import Database
from shared.migrations import migrate
from shared.open_files import raise_open_files
from shared.queue import celery_app
from shared.settings import Settings, is_loopback
from tuwen.errors import ConfigurationError, Unavailable
from tuwen.installation import run_module

POLL = 0.2
START_TIMEOUT = 90.0
LONGEST_BACKOFF = 30.0
STEADY = 60.0
"""A process that ran this many seconds has recovered: its next death counts as the first again."""


@dataclass(frozen=True, slots=True)
class Event:
    """A change of one process, to be shown at the terminal."""

    process: str
    what: Literal["starting", "ready", "died", "stopping"]
    detail: str = ""


Tell = Callable[[Event], None]


class Supervised(Protocol):
    """The interface of a supervised process; our own processes and both servers have it."""

    @property
    def name(self) -> str:
        """Name in messages."""

    @property
    def log(self) -> Path:
        """File of its output."""

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""

    @property
    def exit_code(self) -> int | None:
        """Exit code; None while it runs."""

    def start(self) -> Self:
        """Start it, again if it has ended."""

    def ready(self) -> bool:
        """Whether it does its work by now."""


class Service(ChildProcess):
    """One of our own processes: `python -m …` with its settings in the environment."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        lock: Lock,
        ready: Callable[[datetime], bool],
    ):
        """`ready` tells whether the process that was started at the given time does its work by now."""
        self.name = name
        self.log = log
        self._command = command
        self._environment = environment
        self._lock = lock
        self._ready = ready
        self._started_at = datetime.now(UTC)

    def start(self) -> Self:
        """Start the process."""
        self._started_at = datetime.now(UTC)
        self._process = spawn(
            self._command,
            log=self.log,
            env=self._environment,
            locks=[self._lock],
            # We were killed, so PostgreSQL is stopping too, and the worker cannot give its jobs back. They are
            # found again when their leases expire.
            death_signal=signal.SIGKILL,
        )
        return self

    def ready(self) -> bool:
        """Whether the process does its work by now."""
        return self._ready(self._started_at)

    def request_stop(self) -> None:
        """Ask the process to stop; `await_stop` waits for it."""
        if self._process:
            self._process.terminate()

    def await_stop(self, grace: float) -> None:
        """Wait `grace` seconds for the process to end as requested, then kill it."""
        if self._process:
            await_end(self._process, grace)
            self._process = None


@dataclass
class _Member:
    """A process and its state in the supervisor."""

    process: Supervised
    announced: bool = True
    """Whether the process was announced as ready since its last start."""
    deaths: int = 0
    started: float = field(default_factory=time.monotonic)
    restart_at: float | None = None


class System:
    """All processes of the embedded system: `with System(settings, tell) as system: system.supervise()`."""

    def __init__(
        self,
        settings: Settings,
        tell: Tell,
        *,
        devices: Sequence[str] = ("cpu",),
        redis_port: int = 0,
        postgres_port: int = 0,
        flower: bool = True,
    ):
        """Port 0 picks any free port, also in `settings.port` and `settings.flower_port`."""
        self._tell = tell
        self._devices = devices
        self._with_flower = flower
        self.data = settings.data_dir.absolute()
        self._lock = Lock(self.data / "lock")
        self._valkey = Valkey(self.data / "valkey", redis_port, log=self._log("valkey"))
        self._postgres = Postgres(self.data / "postgres", postgres_port, log=self._log("postgres"))
        self._members: list[_Member] = []
        self.settings = settings
        """The settings; after the start they include the ports, URLs and passwords that were chosen."""
        self.flower_login: tuple[str, str] | None = None
        """User and password of Flower when the password was generated, so that nobody knows it yet."""

    # ── life ──────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start all processes and wait until each of them answers.

        Raises:
            ConfigurationError: a port is taken, the folder is in use, too few files may be open, or a process did not
                come up.
        """
        raise_open_files()
        forget_libpq_variables()
        self._lock_folder()
        try:
            # Checked before the servers start, so that a taken port is reported at once.
            self.settings = self._local_settings()
            for server in (self._valkey, self._postgres):
                self._start(server)
                self._announce_if_ready(self._members[-1])
            self._connect()
            for service in self._services():
                self._start(service)
            self._await_all()
            Addresses(os.getpid(), self.url, self.flower_url, as_environment(self.settings)).publish(self.data)
        except BaseException:
            self.stop()
            raise
        return self

    def supervise(self) -> None:
        """Restart processes that die; returns only by an exception, such as KeyboardInterrupt."""
        while True:
            for member in self._members:
                self._look_after(member)
            time.sleep(POLL)

    def stop(self) -> None:
        """Stop our own processes first, workers with their grace period, then the servers. An interrupt kills them."""
        grace = self.settings.shutdown_grace + 10
        ours = [member.process for member in self._members if isinstance(member.process, Service)]
        try:
            for service in ours:
                self._say(Event(service.name, "stopping"))
                service.request_stop()
            for service in ours:
                service.await_stop(grace)
            for server in (self._postgres, self._valkey):
                if server.running:
                    self._say(Event(server.name, "stopping"))
                server.stop()
        except KeyboardInterrupt:
            for service in ours:
                service.await_stop(grace=0)
            # The servers stop at once and cleanly when asked, and only they could lose data.
            for server in (self._postgres, self._valkey):
                server.stop()
        finally:
            for member in self._members:
                LogFile.at(member.process.log).settle()
            self._members.clear()
            Addresses.withdraw(self.data)
            self._lock.release()

    # ── start ─────────────────────────────────────────────────────────────────────────────────────

    def _lock_folder(self) -> None:
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The last processes of a system whose supervisor was killed may still be ending.
            free = self._lock.acquire(timeout=0 if self._lock.owner() else 15)
            if free:
                make_private(self.data)
        except OSError as error:
            self._lock.release()
            where = error.filename or self.data
            raise ConfigurationError(f"cannot use the data folder {where}: {error.strerror}") from error
        if free:
            # An earlier run that was killed left this file.
            Addresses.withdraw(self.data)
        else:
            addresses = Addresses.read(self.data)
            where = f" at {addresses.url}" if addresses else ""
            raise ConfigurationError(
                f"Tuwen already runs on {self.data}{where} (process {self._lock.owner()}); "
                "stop it there, or choose another folder with --data"
            )

    def _start(self, process: Supervised) -> None:
        self._say(Event(process.name, "starting"))
        self._members.append(_Member(process, announced=False))
        process.start()

    def _local_settings(self) -> Settings:
        """The given settings with free ports; values that the user set explicitly stay."""
        given = self.settings
        if self._with_flower and not is_loopback(given.flower_host) and given.flower_password is None:
            raise ConfigurationError(
                "Flower outside loopback needs a password: set TUWEN_FLOWER_PASSWORD, or start with --no-flower"
            )
        values: dict[str, Any] = {"data_dir": self.data, "port": choose_port(given.port, "--port", given.host)}
        if self._with_flower:
            values["flower_port"] = choose_port(given.flower_port, "--flower-port", given.flower_host)
        if "storage_url" not in given.model_fields_set:
            values["storage_url"] = f"file://{self.data / 'objects'}"
        if "auth" not in given.model_fields_set and is_loopback(given.host):
            values["auth"] = "open"
        settings = given.model_copy(update=values)
        if self._with_flower and settings.auth == "keys" and settings.flower_password is None:
            # It shows every tenant's jobs. In an open installation it shows what the API, too, shows to everybody here.
            password = kept_password(self.data / "flower")
            settings = settings.model_copy(update={"flower_password": SecretStr(password)})
            self.flower_login = settings.flower_user, password
        return settings

    def _connect(self) -> None:
        """Put the URLs of the running servers into the settings, and migrate the database to our schema."""
        urls = {"database_url": self._postgres.url, "redis_url": self._valkey.url}
        self.settings = self.settings.model_copy(update=urls)
        migrate(self.settings.database_url)
        self._database = Database(self.settings, pool_size=1)

    def _services(self) -> list[Service]:
        services = [self._service("api", run_module("api"), self._api_ready)]
        for device in self._devices:
            name = "worker" if len(self._devices) == 1 else f"worker-{device.replace(':', '')}"
            command = run_module("workers", "worker", "--device", device, "--name", name)
            services.append(self._service(name, command, partial(self._worker_ready, name)))
        services.append(self._service("housekeeper", run_module("workers", "housekeeper"), self._housekeeper_ready))
        if self._with_flower:
            services.append(self._service("flower", run_module("workers", "flower"), self._flower_ready))
        return services

    def _service(self, name: str, command: Sequence[str], ready: Callable[[datetime], bool]) -> Service:
        environment = os.environ | as_environment(self.settings)
        log = self._log(name)
        return Service(name, command, log=log, environment=environment, lock=self._lock, ready=ready)

    def _await_all(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT + self.settings.engine_start_timeout
        while waiting := [member for member in self._members if not member.announced]:
            for member in waiting:
                self._announce_if_ready(member)
                if not member.process.running:
                    raise ConfigurationError(_death_report(member.process))
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"{waiting[0].process.name} did not become ready; see {waiting[0].process.log}"
                )
            time.sleep(POLL)

    # ── supervision ───────────────────────────────────────────────────────────────────────────────

    def _look_after(self, member: _Member) -> None:
        now = time.monotonic()
        if member.process.running:
            if not member.announced:
                self._announce_if_ready(member)
            elif now - member.started > STEADY:
                member.deaths = 0
        elif member.restart_at is None:
            self._plan_restart(member, _death_report(member.process))
        elif now >= member.restart_at:
            member.restart_at, member.started, member.announced = None, now, False
            self._say(Event(member.process.name, "starting"))
            try:
                member.process.start()
            except ConfigurationError as error:
                self._plan_restart(member, str(error))

    def _plan_restart(self, member: _Member, reason: str) -> None:
        delay = min(LONGEST_BACKOFF, 2.0**member.deaths)
        member.deaths += 1
        member.restart_at = time.monotonic() + delay
        self._say(Event(member.process.name, "died", f"{reason}\nstarting it again in {delay:.0f} s"))

    def _say(self, event: Event) -> None:
        # The terminal may be gone, which is a reason to stop, but not to stop halfway.
        with suppress(OSError):
            self._tell(event)

    def _announce_if_ready(self, member: _Member) -> None:
        if member.process.ready():
            member.announced = True
            self._say(Event(member.process.name, "ready", self._describe(member.process)))

    def _describe(self, process: Supervised) -> str:
        match process.name:
            case "api":
                return self.url
            case "flower":
                return self.flower_url or ""
            case "postgres":
                return f"port {self._postgres.port}"
            case "valkey":
                return f"port {self._valkey.port}"
            case "worker":
                return self._devices[0]
        return process.name.partition("-")[2]

    def _api_ready(self, _since: datetime) -> bool:
        return _answers(f"{self.url}/readyz")

    def _flower_ready(self, _since: datetime) -> bool:
        return _answers(f"{self.flower_url}/healthcheck")

    def _worker_ready(self, name: str, since: datetime) -> bool:
        try:
            workers = self._database.workers.alive()
        except Unavailable:
            return False
        return any(worker.name == _celery_name(name) and worker.started_at >= since for worker in workers)

    def _housekeeper_ready(self, _since: datetime) -> bool:
        destination = [_celery_name("housekeeper")]
        with celery_app(self.settings) as app:
            try:
                return bool(app.control.ping(destination=destination, timeout=1, limit=1))
            except (KombuError, RedisError):
                return False

    # ── addresses ─────────────────────────────────────────────────────────────────────────────────

    @property
    def url(self) -> str:
        """Address of the API."""
        return _http(self.settings.host, self.settings.port)

    @property
    def flower_url(self) -> str | None:
        """Address of Flower; None where it is not started."""
        return _http(self.settings.flower_host, self.settings.flower_port) if self._with_flower else None

    def _log(self, name: str) -> Path:
        return self.data / "logs" / f"{name}.log"


def devices(named: Sequence[str]) -> list[str]:
    """The devices, with `all` replaced by every GPU that torch sees.

    Raises:
        ConfigurationError: there is no GPU, or torch is not installed.
    """
    if "all" not in named:
        return list(dict.fromkeys(named))
    # Runs in a separate process: torch would hold memory on every GPU as long as this process lives.
    child = subprocess.run(run_module("workers", "devices"), capture_output=True, text=True)
    found = child.stdout.split()
    if child.returncode or not found:
        reason = (child.stderr.strip().splitlines() or ["torch sees none here"])[-1]
        raise ConfigurationError(f"there is no GPU to start a worker on ({reason}); `--device cpu` needs none")
    return found


def _celery_name(name: str) -> str:
    return f"{name}@{platform.node()}"


def _http(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)  # noqa: S104
    return f"http://{reachable}:{port}"


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _death_report(process: Supervised) -> str:
    code = process.exit_code or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"{process.name} {how}. {process.log} ends:\n{last_lines(process.log)}"
