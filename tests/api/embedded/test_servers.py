"""The embedded Valkey and PostgreSQL: odd folders, taken ports, kills, and being root or not."""

import os
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import psycopg
import pytest
import redis

from api.embedded.processes import Lock
from api.embedded.servers import Postgres, Server, Valkey
from tests.support.waiting import PATIENT
from tuwen.errors import ConfigurationError


@pytest.fixture(params=[Valkey, Postgres])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Server:
    return request.param(tmp_path / "带 空格的 folder")


def _write(server: Server, value: str) -> None:
    if isinstance(server, Valkey):
        with redis.Redis.from_url(server.url) as client:
            client.set("value", value)
    else:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept (value text)")
            connection.execute("INSERT INTO kept VALUES (%s)", (value,))


def _read(server: Server) -> str:
    if isinstance(server, Valkey):
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            return str(client.get("value"))
    with psycopg.connect(server.url) as connection:
        row = connection.execute("SELECT value FROM kept").fetchone()
        assert row
        return str(row[0])


def test_data_survive_a_kill_on_the_same_port(server: Server) -> None:
    with server:
        _write(server, "猫")
        port = server.port
        server.kill()
        server.start()
        assert server.port == port
        assert _read(server) == "猫"


def test_data_survive_a_stop_and_another_object(server: Server) -> None:
    with server:
        _write(server, "狗")
    assert not server.running
    with type(server)(server.folder) as again:
        assert _read(again) == "狗"


def test_taken_port_names_the_port_and_the_option(server: Server, tmp_path: Path) -> None:
    with server:
        other = type(server)(tmp_path / "other", server.port)
        with pytest.raises(ConfigurationError, match=rf"port {server.port} is already in use.*{server.option}"):
            other.start()


def test_folder_in_use_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    acquire = Lock.acquire
    monkeypatch.setattr(Lock, "acquire", lambda lock, timeout: acquire(lock))
    with server, pytest.raises(ConfigurationError, match="another process still runs"):
        type(server)(server.folder).start()


def test_password_is_private_and_needed(server: Server) -> None:
    with server:
        assert stat.S_IMODE((server.folder / "password").stat().st_mode) == 0o600
        wrong = server.url.replace(server.password, "wrong")
        connect = redis.Redis.from_url(wrong).ping if isinstance(server, Valkey) else partial(psycopg.connect, wrong)
        with pytest.raises((redis.AuthenticationError, psycopg.OperationalError), match=r"password|WRONGPASS"):
            connect()


def test_a_broken_start_shows_the_log(tmp_path: Path) -> None:
    with Valkey(tmp_path) as server:
        pass
    manifest = next((server.folder / "appendonlydir").glob("*.manifest"))
    manifest.write_text("nonsense")
    with pytest.raises(ConfigurationError, match=r"(?s)valkey did not start.*server\.log ends.*MANIFEST FILE ERROR"):
        Valkey(tmp_path).start()


def test_valkey_survives_a_torn_append_only_file(tmp_path: Path) -> None:
    with Valkey(tmp_path) as server:
        _write(server, "whole")
        server.kill()
        with next((server.folder / "appendonlydir").glob("*.incr.aof")).open("ab") as file:
            file.write(b"*3\r\n$3\r\nSET\r\n$5\r\nval")
        server.start()
        assert _read(server) == "whole"


def test_postgres_survives_a_stale_pid_file(tmp_path: Path) -> None:
    with Postgres(tmp_path) as server:
        _write(server, "kept")
        server.kill()
        pid_file = server.folder / "cluster" / "postmaster.pid"
        # The process id of somebody who lives: this test.
        pid_file.write_text("\n".join([str(os.getpid()), *pid_file.read_text().splitlines()[1:]]) + "\n")
        server.start()
        assert _read(server) == "kept"


def test_postgres_survives_a_killed_initdb(tmp_path: Path) -> None:
    unfinished = tmp_path / "cluster.new"
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text("18\n")
    with Postgres(tmp_path) as server:
        _write(server, "fresh")


def test_postgres_never_runs_as_root_and_its_folder_stays_private(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with Postgres(private / "data") as server:
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert "Uid:\t0" not in status
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_servers_end_when_their_starter_is_killed(server: Server) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.support.servers import *\n"
        f"{type(server).__name__}(Path(sys.argv[1])).start(); print('up', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(server.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as starter:
        assert starter.stdout
        assert starter.stdout.readline() == b"up\n"
        starter.send_signal(signal.SIGKILL)
    # The lock is free only when no process of the server is left.
    lock = Lock(server.folder / "lock")
    assert lock.acquire(timeout=PATIENT)
    lock.release()
