"""Which tenant's data sets read and write where, against a real PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import UUID, uuid4

import pytest
from alembic import command
from sqlalchemy import text

from shared.database import Database
from shared.database.dataset_places import require_free
from shared.migrations import _config
from shared.settings import Settings
from tests.support.plain_sql import Sql, plain_sql
from tests.support.servers import Postgres
from tuwen.datasets import DatasetRequest
from tuwen.errors import Conflict, DatabaseUnavailable, Forbidden, NotFound, TuwenError
from tuwen.jobs import JobError

A, B = "alice", "bob"
RELATED = ["/data/a/out", "/data/a/out/deeper", "/data/a", "/"]
APART = ["/data/a/out2", "/data/a/ou", "/data/b", "s3://data/a/out"]


def submit(database: Database, tenant: str, source: str, destination: str | None, key: UUID | None = None) -> UUID:
    request = DatasetRequest(source=source, destination=destination, dry_run=destination is None)
    return database.datasets.submit(request, tenant, key=key)


def add_key(database: Database, tenant: str, *roots: str) -> UUID:
    return database.keys.add(name=tenant, tenant=tenant, sha256=uuid4().hex, quota=5, dataset_roots=roots)


class TestDestinations:
    def test_an_export_stays_its_tenants(self, database: Database) -> None:
        places = database.dataset_places
        assert places.take("/data/a/out", A, uuid4()) is False
        assert places.take("/data/a/out", A, uuid4()) is True
        for place in RELATED:
            for attempt in (
                lambda place=place: places.take(place, B, uuid4()),
                lambda place=place: places.require_free(place, B),
                lambda place=place: submit(database, B, "/data/b", place),
            ):
                with pytest.raises(Forbidden, match="another tenant") as refused:
                    attempt()
                assert refused.value.field == "destination"
            database.datasets.cancel(submit(database, A, "/source", place), A)
        for place in APART:
            places.require_free(place, B)

    @pytest.mark.parametrize(
        ("mine", "theirs", "free"),
        [
            ("s3://b/out", "s3://b/out/deeper", False),
            ("s3://b/out", "s3://b/out", False),
            ("s3://b/out/deeper", "s3://b/out", False),
            ("s3://b/out", "s3://b", False),
            ("s3://b/out", "s3://b/out2", True),
            ("s3://b/out", "s3://bb/out", True),
            ("/out/100%_x", "/out/100%_x/y", False),
            ("/out/100%_x", "/out/1000_x", True),
        ],
    )
    def test_prefixes_and_odd_names(self, database: Database, mine: str, theirs: str, free: bool) -> None:
        database.dataset_places.take(mine, A, uuid4())
        if free:
            database.dataset_places.require_free(theirs, B)
        else:
            with pytest.raises(Forbidden):
                database.dataset_places.require_free(theirs, B)

    @pytest.mark.parametrize("place", RELATED)
    def test_an_unfinished_data_set_has_its_destination_for_itself(self, database: Database, place: str) -> None:
        id = submit(database, A, "/source", "/data/a/out")
        with pytest.raises(Conflict, match="being written"):
            submit(database, B, "/data/b", place)
        database.datasets.cancel(id, A)
        assert submit(database, B, "/data/b", place), "nothing was ever written there"

    def test_a_data_set_that_goes_on_is_checked_again(self, database: Database) -> None:
        id = submit(database, A, "/source", "/out")
        database.datasets.cancel(id, A)
        database.dataset_places.take("/out/inner", B, uuid4())
        with pytest.raises(Forbidden):
            database.datasets.retry(id, A)
        with pytest.raises(Forbidden):
            database.datasets.export(id, A, "/out", "jsonl", overwrite=True)
        database.datasets.export(id, A, "/other", "jsonl", overwrite=True)

    def test_the_operator_can_release_it(self, database: Database) -> None:
        database.dataset_places.take("/out", A, uuid4())
        with pytest.raises(NotFound):
            database.dataset_places.release("/out", B)
        database.dataset_places.release("/out")
        assert database.dataset_places.take("/out", B, uuid4()) is False
        with pytest.raises(NotFound):
            database.dataset_places.release("/nowhere")

    def test_of_many_at_once_one_gets_it(self, database: Database) -> None:
        def attempt(number: int) -> bool:
            try:
                database.dataset_places.take("/out" if number % 2 else "/out/deeper", f"tenant{number}", uuid4())
            except TuwenError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, range(24))) == 1

    def test_who_is_frozen_in_the_middle_holds_up_nobody(self, database: Database) -> None:
        with suppress(DatabaseUnavailable), database._connections.transaction() as frozen:
            require_free(frozen, "/a", A)
            assert frozen.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one() == "10s"
            frozen.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10ms'"))
            database.dataset_places.require_free("/b", B)


class TestSources:
    def test_nobody_writes_into_what_another_reads(self, database: Database) -> None:
        id = submit(database, A, "/data/a/photos", "/data/a/out")
        database.dataset_places.note_source("/data/a/photos", A, id)
        for place in ("/data/a/photos", "/data/a/photos/out", "/data/a"):
            with pytest.raises((Forbidden, Conflict)):
                submit(database, B, "/data/b", place)
        database.datasets.cancel(id, A)
        with pytest.raises(Forbidden, match="a source of another tenant"):
            submit(database, B, "/data/b", "/data/a/photos/out")
        database.dataset_places.require_free("/data/a/photos", A)
        database.datasets.delete(id, A)
        database.dataset_places.require_free("/data/a/photos", B)

    def test_reading_it_takes_no_destination_away(self, database: Database) -> None:
        database.dataset_places.take("/data/a/out", A, uuid4())
        id = submit(database, B, "/data/a/out", None)
        database.dataset_places.note_source("/data/a/out", B, id)
        assert database.dataset_places.take("/data/a/out", A, uuid4()) is True


class TestRootsOfADataSet:
    def test_are_those_of_its_key_now(self, database: Database) -> None:
        key = add_key(database, A, "/data/a")
        id = submit(database, A, "/data/a", "/data/a/out", key)
        assert database.dataset_places.key_roots(id) == ("/data/a",)
        database.keys.allow_datasets(key, ["/other", "s3://b"])
        assert database.dataset_places.key_roots(id) == ("/other", "s3://b")
        database.keys.revoke(key)
        assert database.dataset_places.key_roots(id) == ("/other", "s3://b")
        database.keys.allow_datasets(key, [])
        assert database.dataset_places.key_roots(id) == ()

    def test_who_retries_or_exports_it_answers_for_it(self, database: Database) -> None:
        first, second = add_key(database, A, "/data/a"), add_key(database, A, "/data/b")
        id = submit(database, A, "/data/a", "/data/a/out", first)
        database.datasets.cancel(id, A)
        database.datasets.retry(id, A, key=second)
        assert database.dataset_places.key_roots(id) == ("/data/b",)
        database.datasets.cancel(id, A)
        database.datasets.export(id, A, "/data/a/2", "jsonl", overwrite=False, key=first)
        assert database.dataset_places.key_roots(id) == ("/data/a",)

    def test_of_earlier_releases_are_those_of_the_tenants_keys(self, database: Database) -> None:
        id = submit(database, A, "/data/a", "/data/a/out")
        assert database.dataset_places.key_roots(id) is None, "an open installation has no keys"
        revoked = add_key(database, A, "/revoked")
        database.keys.revoke(revoked)
        add_key(database, B, "/data/b")
        assert database.dataset_places.key_roots(id) == ()
        add_key(database, A)
        assert database.dataset_places.key_roots(id) == ()
        add_key(database, A, "/data/a", "/data/c")
        assert set(database.dataset_places.key_roots(id) or ()) == {"/data/a", "/data/c"}
        with pytest.raises(NotFound):
            database.dataset_places.key_roots(uuid4())

    def test_keys_have_none_by_default(self, database: Database) -> None:
        add_key(database, A)
        assert database.keys.all()[0].dataset_roots == ()
        with pytest.raises(NotFound):
            database.keys.allow_datasets(uuid4(), ["/data"])


def test_a_data_set_is_stopped_with_its_reason(database: Database, sql: Sql) -> None:
    id = submit(database, A, "/data/a", "/data/a/out")
    claim = database.datasets.take(id, "h")
    assert claim is not None
    assert database.datasets.add_shard(claim, uuid4(), 0, 5, "plan/0", 0.0)
    assert database.datasets.stop(id, JobError(code="forbidden", detail="taken away"))
    stopped = database.datasets.get(id, A)
    assert (stopped.status, stopped.error) == ("failed", JobError(code="forbidden", detail="taken away"))
    assert database.shards.all(id)[0].status == "cancelled"
    assert not database.datasets.stop(id, JobError(code="forbidden", detail="again"))
    assert database.datasets.retry(id, A) == "planning", "once it has its roots back"


def test_what_earlier_releases_exported_and_read(postgres: Postgres, settings: Settings) -> None:
    url = postgres.create_database("places", template="template0")
    command.upgrade(_config(url), "0009")
    command.downgrade(_config(url), "-1")
    with plain_sql(settings.model_copy(update={"database_url": url})) as sql:
        for number, (tenant, status, destination) in enumerate(
            [(A, "succeeded", "/out"), (B, "succeeded", "/out"), (A, "succeeded", "/a"), (A, "cancelled", "/never")]
        ):
            sql(
                "INSERT INTO datasets"
                " (id, tenant, request, destination, kinds, priority, status, planned_at, finished_at) VALUES"
                " (:id, :tenant, CAST(:request AS jsonb), :out, 'describe', 5, :status, :at, now())",
                id=UUID(int=number), tenant=tenant, out=destination, status=status,
                request=f'{{"source": "/photos/{tenant}"}}', at="2026-11-01" if status == "succeeded" else None,
            )  # fmt: skip
        command.upgrade(_config(url), "0009")
        found = sql("SELECT role, place, tenant FROM dataset_places ORDER BY role, place, tenant")
    postgres.drop_database("places")
    assert [tuple(row) for row in found] == [
        ("destination", "/a", A),
        ("destination", "/out", B),
        ("source", "/photos/alice", A),
        ("source", "/photos/bob", B),
    ]
