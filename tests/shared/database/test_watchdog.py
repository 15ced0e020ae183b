"""A PostgreSQL that is silent, and one that only takes its time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from api.embedded.servers import Postgres
from shared.database import watchdog
from shared.database.connections import Connections
from shared.settings import Settings
from tests.support.system import freeze, ports_here
from tests.support.waiting import PATIENT, eventually
from tuwen.errors import DatabaseUnavailable

ASK = text("SELECT 1 AS answer")


@pytest.fixture
def connections(settings: Settings) -> Iterator[Connections]:
    connections = Connections(settings, pool_size=2, longest=20)
    yield connections
    connections.close()


def refused(connections: Connections, *, relaxed: bool = False) -> str:
    with pytest.raises(DatabaseUnavailable) as caught:
        connections.run(ASK, relaxed=relaxed)
    return caught.value.detail


def test_silence_ends_for_all_who_wait(connections: Connections, postgres: Postgres) -> None:
    """Those with a connection, those who wait for one of the others', and those who make a new one."""
    connections.run(ASK)
    connections.run(ASK, relaxed=True)
    with freeze(postgres.pid), ThreadPoolExecutor(10) as people:
        told = [people.submit(refused, connections, relaxed=number % 2 > 0) for number in range(10)]
        assert all("PostgreSQL is silent" in each.result() for each in told)
    eventually(lambda: answers(connections))
    assert answers(connections)


def answers(connections: Connections) -> bool:
    try:
        return connections.run(ASK)[0].answer == 1
    except DatabaseUnavailable:
        return False


def test_an_error_that_is_kept_keeps_no_connection(settings: Settings, postgres: Postgres) -> None:
    before = ports_here(postgres)
    with freeze(postgres.pid), pytest.raises(watchdog.Silent) as caught:
        watchdog.Watchdog(settings.database_url).connect(settings.database_url, connect_timeout=2)
    assert ports_here(postgres) <= before  # of earlier tests, some may have been closed meanwhile
    assert "timeout" in str(caught.value)


def test_a_transaction_that_is_cut_off_has_done_nothing(connections: Connections, postgres: Postgres) -> None:
    connections.run(text("CREATE TABLE notes (note text)"))
    with pytest.raises(DatabaseUnavailable, match="silent"):
        note_twice(connections, postgres)
    eventually(lambda: answers(connections))
    # Waits for the locks of the one that was cut off, and so for its end.
    assert connections.run(text("LOCK TABLE notes; SELECT * FROM notes")) == []


def note_twice(connections: Connections, postgres: Postgres) -> None:
    with connections.transaction() as connection:
        connection.execute(text("INSERT INTO notes VALUES ('half')"))
        with freeze(postgres.pid):
            connection.execute(text("INSERT INTO notes VALUES ('other half')"))


def test_a_long_statement_is_no_silence(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    look = watchdog.Watchdog._look
    monkeypatch.setattr(watchdog, "PATIENCE", 0.2)
    monkeypatch.setattr(watchdog.Watchdog, "_look", lambda self: (looks.append(1), look(self)))
    [row] = connections.run(text("SELECT 1 AS answer FROM pg_sleep(1)"))
    assert row.answer == 1
    assert looks


def test_nor_is_a_lock(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "PATIENCE", 0.2)
    lock = text("SELECT pg_advisory_xact_lock(1)")
    waiting = threading.Thread(target=connections.run, args=(lock,))
    with connections.transaction() as connection:
        connection.execute(lock)
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive()
    waiting.join(PATIENT)
    assert not waiting.is_alive()
    assert answers(connections)


def test_but_no_statement_of_a_request_lasts_for_ever(settings: Settings) -> None:
    connections = Connections(settings, longest=0.3)
    with pytest.raises(DatabaseUnavailable, match="took too long"):
        connections.run(text("SELECT pg_sleep(60)"))
    assert answers(connections)
    connections.close()


def test_both_ends_notice_when_the_other_host_is_gone(connections: Connections) -> None:
    names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count")
    for relaxed in (False, True):
        with connections.connection(relaxed=relaxed) as connection:
            told = [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names]
        assert told == ["10", "5", "2"]
