"""Child processes that cannot outlive us: spawn, stop, lock, log, ports."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from api.embedded.log_files import LogFile
from tuwen.errors import ConfigurationError

LIBPQ_PREFIX = "PG"
"""Variables such as PGSSLMODE, PGSERVICE, PGOPTIONS and PGHOST, which change what every client of PostgreSQL does."""

# These ports lie below the range from which Linux and macOS take the ports of outgoing connections, so that a server
# that is killed finds its port still free when it is started again.
PORT_RANGE = range(20_000, 32_000)


def forget_libpq_variables() -> None:
    """Remove the user's settings for servers of their own from this process: they break connections to the embedded
    one, which is found by its URL alone."""
    for name in [name for name in os.environ if name.startswith(LIBPQ_PREFIX)]:
        del os.environ[name]


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    locks: Iterable[Lock] = (),
    death_signal: signal.Signals = signal.SIGTERM,
    privileges: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Start `command` in a new session, with its output appended to `log`, which is rotated.

    The child gets a new session because Ctrl-C goes to every process of the terminal's group, and we decide the order
    in which children stop. On Linux the kernel sends the child `death_signal` when this process dies for any reason
    (PR_SET_PDEATHSIG, through setpriv, which unlike a `preexec_fn` is safe beside threads). The kernel watches the
    *thread* that started the child: call this from a thread that lives as long as the process.

    `privileges` are further options of setpriv(1). The child inherits `locks` and holds them while it lives.
    """
    setpriv = shutil.which("setpriv")
    if setpriv:
        tether = [setpriv, "--pdeathsig", death_signal.name.removeprefix("SIG"), *privileges, "--"]
    elif privileges:
        raise ConfigurationError(
            "running the embedded PostgreSQL as root needs setpriv (Debian package util-linux); "
            "install it, or run as another user"
        )
    else:
        tether = []
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    output = LogFile.at(log).pipe()
    try:
        return subprocess.Popen(
            [*tether, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            pass_fds=[lock.fileno() for lock in locks],
            start_new_session=True,
        )
    finally:
        os.close(output)


def await_end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Wait `grace` seconds for a process that was asked to end, then kill it."""
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_lines(log: Path, count: int = 5) -> str:
    """The last lines of a log, for a message on the terminal."""
    LogFile.at(log).settle()
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16_384))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join([line for line in lines if line.strip()][-count:])


class ChildProcess:
    """A process that may be started again."""

    _process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit code as in `subprocess`: negative is the signal that killed it; None while it runs."""
        return self._process.poll() if self._process else None


class Lock:
    """An exclusive lock on a file, shared with the children it is passed to.

    flock(2) belongs to the open file, which children inherit: the lock is free again only when the last of them has
    ended. So holding it proves that no process of an earlier run is left, without trusting a process id that another
    program may have by now.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = -1

    def acquire(self, timeout: float = 0.0) -> bool:
        """Take the lock; False when another process still holds it after `timeout` seconds."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    return False
                time.sleep(0.05)
            else:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                self._descriptor = descriptor
                return True

    def owner(self) -> int | None:
        """Id of the process that took the lock last, if such a process lives. For messages only: ids are reused."""
        try:
            pid = int(self.path.read_text())
            os.kill(pid, 0)
        except PermissionError:
            return pid
        except (OSError, ValueError):
            return None
        return pid

    def release(self) -> None:
        """Release the lock in this process; children that inherited it keep theirs."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def fileno(self) -> int:
        """Return the descriptor of the locked file, to be inherited by children."""
        return self._descriptor


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on `port` of `host` now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def choose_port(port: int, option: str, host: str = "127.0.0.1") -> int:
    """Return `port` when it can be bound, or any free port for 0.

    Raises:
        ConfigurationError: the port is taken; the message names `option`, which changes it.
    """
    if port == 0:
        return next(p for p in random.sample(PORT_RANGE, len(PORT_RANGE)) if port_is_free(p, host))
    if not port_is_free(port, host):
        raise ConfigurationError(f"port {port} is already in use; choose another with {option}", field=option)
    return port
