"""The whole system on Debian's servers as operators run them: TLS, ACLs, client certificates, sentinels, PgBouncer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from api.embedded.processes import choose_port
from shared.database.connections import Connections, require_supported
from shared.database.facade import Database
from shared.migrations import migrate
from shared.queue import JobQueue
from shared.queue.access import CHANNELS, KEYS, acl_rules, require_access
from shared.redis_place import RedisPlace
from shared.settings import Settings
from tests.support.guarded_servers import (
    MASTER,
    Certificates,
    DebianRedis,
    GuardedPostgres,
    GuardedRedis,
    PgBouncer,
    Sentinel,
)
from tests.support.servers import DebianPostgres, Postgres
from tests.support.system import freeze
from tests.support.waiting import eventually
from tests.support.whole_system import INPUTS, whole_system
from tuwen.errors import ConfigurationError, DatabaseUnavailable, QueueUnavailable
from tuwen.jobs import Status

PASSWORD = "correct-horse"
DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def certificates(folder: Path) -> Certificates:
    return Certificates(folder / "certificates")


@pytest.fixture(scope="module")
def guarded_redis(folder: Path, certificates: Certificates) -> Iterator[GuardedRedis]:
    with GuardedRedis(folder / "redis", certificates, f"on >{PASSWORD} {acl_rules()}") as server:
        yield server


@pytest.fixture(scope="module")
def guarded_postgres(folder: Path, certificates: Certificates) -> Iterator[GuardedPostgres]:
    with GuardedPostgres(folder / "postgres", certificates) as server:
        migrate(server.url)
        yield server


@pytest.fixture(scope="module")
def debian(folder: Path) -> Iterator[DebianPostgres]:
    with DebianPostgres(folder / "debian") as server:
        yield server


@pytest.fixture(scope="module")
def pooler(folder: Path, debian: DebianPostgres) -> Iterator[PgBouncer]:
    with PgBouncer(folder / "pgbouncer", debian) as server:
        migrate(server.url)
        yield server


def installation(folder: Path, **places: str) -> Settings:
    return Settings(storage_url=f"file://{folder / 'objects'}", data_dir=folder, **places)


# ── TLS, client certificates, ACL ─────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.needs("redis-server")
@pytest.mark.needs("postgresql")
def test_everything_with_tls_client_certificates_and_the_documented_rights(
    guarded_redis: GuardedRedis, guarded_postgres: GuardedPostgres, tmp_path: Path
) -> None:
    settings = installation(tmp_path, redis_url=guarded_redis.user_url(PASSWORD), database_url=guarded_postgres.url)
    with RedisPlace(guarded_redis.url).client(decode_responses=True) as administrator:
        administrator.acl_log_reset()
        administrator.config_resetstat()
        with whole_system(settings, tmp_path) as system:
            system.do_everything(tmp_path)
            assert "Unable to get queues" not in system.flower_page("/broker")
            assert system.client.get("/readyz").json()["status"] == "ready"
            with psycopg.connect(guarded_postgres.url) as connection:
                [[unencrypted]] = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) "
                    "WHERE application_name = 'tuwen' AND NOT ssl"
                ).fetchall()
            assert unencrypted == 0
        assert administrator.acl_log() == []  # nothing was refused
        used = {name.removeprefix("cmdstat_") for name in administrator.info("commandstats")}
    # Nothing is granted that is never used; some of it only when a connection or a lock is lost.
    granted = {right.removeprefix("+") for right in acl_rules().split() if right.startswith("+")}
    assert granted - used <= {"auth", "del", "punsubscribe", "scan", "select", "smembers", "srem", "zrem"}


def test_the_manual_has_the_rules() -> None:
    assert acl_rules() in " ".join(DOCUMENT.read_text().split())
    assert all(f"~{key}" in acl_rules() for key in KEYS)
    assert f"&{CHANNELS[1].format(db=7)}" in acl_rules(7)


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("password", "refuses the user or the password"),
        ("authority", "certificate verify failed"),
        ("no certificate", "certificate"),
    ],
)
def test_a_wrong_way_to_redis_is_a_sentence(
    guarded_redis: GuardedRedis, certificates: Certificates, tmp_path: Path, wrong: str, said: str
) -> None:
    url = {
        "password": guarded_redis.user_url("wrong"),
        "authority": guarded_redis.user_url(PASSWORD, Certificates(tmp_path / "others").redis_query),
        "no certificate": guarded_redis.user_url(PASSWORD, f"ssl_ca_certs={certificates.ca}"),
    }[wrong]
    with pytest.raises(ConfigurationError, match=f"^TUWEN_REDIS_URL: .*{said}"):
        require_access(Settings(redis_url=url))


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("missing", ["blmpop", "evalsha", "hincrbyfloat", "psubscribe"])
def test_a_missing_right_names_the_command(guarded_redis: GuardedRedis, missing: str) -> None:
    settings = Settings(redis_url=guarded_redis.user_url(PASSWORD))
    require_access(settings)
    with RedisPlace(guarded_redis.url).client() as administrator:
        administrator.execute_command("ACL", "SETUSER", "tuwen", f"-{missing}")
        try:
            with pytest.raises(ConfigurationError, match=f"(?i)tuwen.*{missing}.*docs/operations.md"):
                require_access(settings)
            administrator.execute_command("ACL", "SETUSER", "tuwen", "-publish")
            queue = JobQueue(settings)
            with pytest.raises(QueueUnavailable, match="publish"):  # taken away while processes run
                queue.request_cancel(UUID(int=0))
            queue.close()
        finally:
            administrator.execute_command("ACL", "SETUSER", "tuwen", f"+{missing}", "+publish")


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ca.pem", "client.pem", "certificate verify failed"),
        ("ca.pem", "nowhere.pem", "nowhere.pem.* does not exist"),
        ("tuwen:", "tuwen:wrong", "password authentication failed"),
        ("/tuwen?", "/nothing?", "nothing.* does not exist"),
        ("client.pem", "server.key", "certificate"),
    ],
)
def test_a_wrong_way_to_postgresql_is_a_sentence(
    guarded_postgres: GuardedPostgres, old: str, new: str, said: str
) -> None:
    url = guarded_postgres.url.replace(old, new)
    with pytest.raises(ConfigurationError, match=f"^TUWEN_DATABASE_URL: .*refused.*{said}"):
        require_supported(url)
    database = Database(Settings(database_url=url), pool_size=1)
    with pytest.raises(DatabaseUnavailable, match=said):  # what /readyz says of a password that was changed since
        database.check()
    database.close()


# ── sentinels and a pooler ────────────────────────────────────────────────────────────────────────────


@contextmanager
def replicated(folder: Path) -> Iterator[tuple[list[DebianRedis], list[Sentinel]]]:
    """A master with a replica, of one password, and three sentinels that have found each other."""
    with ExitStack() as stack:
        master = stack.enter_context(DebianRedis(folder / "master"))
        replica = DebianRedis(folder / "replica", replicaof=f"127.0.0.1 {master.port}", masterauth=master.password)
        replica.folder.mkdir()
        (replica.folder / "password").write_text(master.password)
        stack.enter_context(replica)
        sentinels = [stack.enter_context(Sentinel(folder / f"sentinel-{n}", master, 2)) for n in range(3)]
        eventually(lambda: all(sentinel.knows(replicas=1, sentinels=2) for sentinel in sentinels))
        yield [master, replica], sentinels


@pytest.mark.long
@pytest.mark.needs("redis-server")
@pytest.mark.needs("redis-sentinel")
@pytest.mark.needs("pgbouncer")
@pytest.mark.needs("postgresql")
def test_everything_behind_pgbouncer_while_sentinels_fail_over(pooler: PgBouncer, tmp_path: Path) -> None:
    with replicated(tmp_path) as ([master, replica], sentinels):
        # The first sentinel is away all the time: one of the others answers.
        hosts = ",".join(f"127.0.0.1:{port}" for port in (choose_port(0, "--port"), *(s.port for s in sentinels)))
        url = f"redis+sentinel://:{master.password}@{hosts}/{MASTER}/0"
        settings = installation(tmp_path, redis_url=url, database_url=pooler.url)
        with whole_system(settings, tmp_path, generate="import:tests.support.fakes:SlowGenerator") as system:
            system.do_everything(tmp_path)
            prompts = [{"kind": "generate", "prompt": f"picture {number}"} for number in range(200)]
            ids = system.submit(*prompts)
            master.kill()
            meanwhile = system.submit(*INPUTS)  # accepted while there is no master
            eventually(lambda: all(sentinel.master_port() == replica.port for sentinel in sentinels))
            later = system.submit(*INPUTS)
            assert set(system.wait([*ids, *meanwhile, *later])) == {Status.SUCCEEDED}
            master.start()  # it comes back as the replica of the new master
            assert set(system.wait(system.submit(*INPUTS))) == {Status.SUCCEEDED}


@pytest.mark.needs("pgbouncer")
@pytest.mark.needs("postgresql")
class TestPooler:
    @pytest.fixture
    def connections(self, pooler: PgBouncer) -> Iterator[Connections]:
        # Longer than silence is borne: a cancel that a frozen server does not answer ends Debian's PgBouncer 1.18.
        connections = Connections(Settings(database_url=pooler.url), pool_size=4, longest=20)
        yield connections
        connections.close()

    def test_nothing_of_a_session_reaches_other_clients(self, connections: Connections, pooler: PgBouncer) -> None:
        """Otherwise commits of others would not wait for the disk, and their statements would be cut short."""
        for _ in range(20):  # more often than psycopg needs to prepare a statement
            connections.run(text("SELECT 1"), relaxed=True)
            connections.run(text("SELECT 2"))
        with psycopg.connect(pooler.url, autocommit=True, prepare_threshold=None) as other:
            for name, value in (("synchronous_commit", "on"), ("statement_timeout", "0")):
                assert other.execute(f"SHOW {name}").fetchall() == [(value,)]
            assert other.execute("SELECT count(*) FROM pg_prepared_statements").fetchall() == [(0,)]

    def test_what_takes_too_long_is_cancelled_from_here(self, pooler: PgBouncer, debian: DebianPostgres) -> None:
        connections = Connections(Settings(database_url=pooler.url), pool_size=1, longest=1)
        with pytest.raises(DatabaseUnavailable, match="too long"):
            connections.run(text("SELECT pg_sleep(600)"))
        connections.close()
        with psycopg.connect(debian.url) as direct:
            asleep = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(600)%'"
            assert direct.execute(f"{asleep} AND pid <> pg_backend_pid()").fetchall() == [(0,)]

    def test_a_frozen_postgresql_behind_it_is_noticed(self, connections: Connections, debian: Postgres) -> None:
        connections.run(text("SELECT 1"))
        with freeze(debian.pid), pytest.raises(DatabaseUnavailable, match="silent"):
            connections.run(text("SELECT 1"))

        def answers() -> bool:
            try:
                return bool(connections.run(text("SELECT 1")))
            except DatabaseUnavailable:
                return False

        eventually(answers)

    def test_only_one_housekeeper_leads(self, pooler: PgBouncer) -> None:
        first, second = (Database(Settings(database_url=pooler.url), pool_size=1) for _ in range(2))
        with first.lead() as leads, second.lead() as leads_too:
            assert (leads, leads_too) == (True, False)
        with second.lead() as leads:
            assert leads
        first.close()
        second.close()

    def test_a_parameter_that_it_does_not_take_is_a_sentence(self, pooler: PgBouncer) -> None:
        with pytest.raises(ConfigurationError, match="unsupported startup parameter: options"):
            require_supported(f"{pooler.url}?options=-cjit%3Doff")
