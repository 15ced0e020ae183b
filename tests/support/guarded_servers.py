"""Debian's servers as careful operators run them: with TLS and private certificates, ACLs, sentinels, and a pooler."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psycopg
import redis
import trustme

from api.embedded import servers
from api.embedded.processes import Lock, spawn
from tests.support import programs
from tests.support.servers import DebianPostgres, Valkey

MASTER = "tuwen-master"


@dataclass(frozen=True)
class Certificates:
    """Files of a private authority: its own certificate, a server's for 127.0.0.1, and the client `tuwen`'s."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        for name, names in (("server", ("127.0.0.1", "localhost")), ("client", ("tuwen.example",))):
            made = authority.issue_cert(*names, common_name="tuwen")
            made.cert_chain_pems[0].write_to_path(self.folder / f"{name}.pem")
            made.private_key_pem.write_to_path(self.folder / f"{name}.key")
            (self.folder / f"{name}.key").chmod(0o600)

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def chain(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    @property
    def redis_query(self) -> str:
        """Parameters of a URL of Redis for the client's side."""
        return f"ssl_ca_certs={self.ca}&ssl_certfile={self.chain('client')}&ssl_keyfile={self.key('client')}"

    @property
    def postgres_query(self) -> str:
        """Parameters of a URL of PostgreSQL for the client's side."""
        files = f"sslrootcert={self.ca}&sslcert={self.chain('client')}&sslkey={self.key('client')}"
        return f"sslmode=verify-full&{files}"


class DebianRedis(Valkey):
    """Redis 7 from Debian's package, with further lines of its configuration."""

    def __init__(self, folder: Path, **lines: object):
        super().__init__(folder, executable=Path(programs.path("redis-server")))
        self._lines = {name.replace("_", "-"): value for name, value in lines.items()}

    def _options(self) -> dict[str, object]:
        return super()._options() | self._lines


class GuardedRedis(DebianRedis):
    """Reached by TLS and with a client's certificate only; its user `tuwen` may do what `rights` say."""

    def __init__(self, folder: Path, certificates: Certificates, rights: str):
        super().__init__(
            folder,
            tls_cert_file=certificates.chain("server"),
            tls_key_file=certificates.key("server"),
            tls_ca_cert_file=certificates.ca,
            tls_auth_clients="yes",
        )
        self._certificates = certificates
        self._rights = rights

    def _options(self) -> dict[str, object]:
        # The directive `user` may be repeated: each with its name is one line.
        return super()._options() | {"tls-port": self.port, "port": 0, "user tuwen": self._rights}

    @property
    def url(self) -> str:
        """As its administrator."""
        return f"rediss://:{self.password}@127.0.0.1:{self.port}/0?{self._certificates.redis_query}"

    def user_url(self, password: str, query: str | None = None) -> str:
        """As the user `tuwen`."""
        return f"rediss://tuwen:{password}@127.0.0.1:{self.port}/0?{query or self._certificates.redis_query}"


class Sentinel(servers.Valkey):
    """A sentinel that watches one master, of which it tells where it is."""

    name = "sentinel"

    def __init__(self, folder: Path, master: Valkey, quorum: int):
        super().__init__(folder)
        self._master = master
        self._quorum = quorum

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def _prepare(self) -> None:
        (self.folder / "server.conf").write_text(
            f"bind 127.0.0.1\nport {self.port}\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {self._master.port} {self._quorum}\n"
            f"sentinel auth-pass {MASTER} {self._master.password}\n"
            f"sentinel down-after-milliseconds {MASTER} 1000\n"
            f"sentinel failover-timeout {MASTER} 5000\n"
        )

    def _spawn(self, lock: Lock) -> subprocess.Popen[bytes]:
        program = programs.path("redis-sentinel")
        return spawn([program, "server.conf"], log=self.log, cwd=self.folder, locks=[lock])

    def master_port(self) -> int:
        """Port of the master as this sentinel knows it."""
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)[1])

    def knows(self, replicas: int, sentinels: int) -> bool:
        """Whether it has heard of so many replicas, and of so many sentinels beside itself."""
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            state = client.sentinel_masters()[MASTER]
        return bool(state["num-slaves"] >= replicas and state["num-other-sentinels"] >= sentinels)


class GuardedPostgres(DebianPostgres):
    """Reached by TLS and with a client's certificate only, which must be its user's."""

    def __init__(self, folder: Path, certificates: Certificates):
        super().__init__(folder)
        self._certificates = certificates

    def _options(self) -> dict[str, object]:
        hba = self.folder / "cluster" / "pg_hba.conf"
        hba.write_text("hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-full\n")
        files = {"cert": "server.pem", "key": "server.key", "ca": "ca.pem"}
        for name in files.values():
            copy = self.folder / "cluster" / name
            copy.write_bytes((self._certificates.folder / name).read_bytes())
            copy.chmod(0o600)
            if os.geteuid() == 0:
                owner = hba.stat()
                os.chown(copy, owner.st_uid, owner.st_gid)
        return super()._options() | {"ssl": "on"} | {f"ssl_{what}_file": name for what, name in files.items()}

    def database_url(self, name: str) -> str:
        return f"{super().database_url(name)}?{self._certificates.postgres_query}"

    def ready(self) -> bool:
        try:
            psycopg.connect(self.database_url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class PgBouncer(servers.Server):
    """PgBouncer in transaction mode before a PostgreSQL, whose databases and password it has."""

    name = "pgbouncer"
    option = "--pgbouncer-port"
    stop_signal = servers.Postgres.stop_signal

    def __init__(self, folder: Path, postgres: servers.Postgres, pool_size: int = 10):
        super().__init__(folder)
        self._postgres = postgres
        self._pool_size = pool_size

    @property
    def url(self) -> str:
        return self.database_url("tuwen")

    def database_url(self, name: str) -> str:
        """URL of the database `name` by way of the pooler."""
        return f"postgresql://tuwen:{self._postgres.password}@127.0.0.1:{self.port}/{name}"

    @property
    def _private(self) -> Path:
        return self.folder / "private"

    def _prepare(self) -> None:
        self._private.mkdir(mode=0o700, exist_ok=True)
        (self._private / "users.txt").write_text(f'"tuwen" "{self._postgres.password}"\n')
        (self._private / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={self._postgres.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {self._private / 'users.txt'}\n"
            f"pool_mode = transaction\ndefault_pool_size = {self._pool_size}\nmax_client_conn = 500\n"
        )
        if os.geteuid() == 0:
            for path in (self._private, *self._private.iterdir()):
                servers._give_to_nobody(path)

    def _spawn(self, lock: Lock) -> subprocess.Popen[bytes]:
        command = [programs.path("pgbouncer"), self._private / "pgbouncer.ini"]
        return spawn(command, log=self.log, locks=[lock], privileges=servers._privileges(self._private))

    def ready(self) -> bool:
        try:
            psycopg.connect(self.database_url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True
