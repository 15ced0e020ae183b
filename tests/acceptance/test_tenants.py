"""Data sets of tenants that share one machine: over the real API, with real servers, a housekeeper and a worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import UUID

import pytest

from api.http.auth import new_key
from shared.settings import Settings
from tests.support.annotation import failures, paint, records
from tests.support.api_server import serving
from tests.support.system import Process, System, freeze, running_system
from tuwen.client import Client
from tuwen.datasets import Dataset, DatasetRequest, DatasetStatus, ExportRequest
from tuwen.errors import Conflict, Forbidden, InvalidRequest, NotFound

SECRET = "root:x:0:0:secret"


class Tenants:
    """Clients with keys of their own, of one installation."""

    def __init__(self, system: System, url: str, open_things: ExitStack):
        self._system, self._url, self._open = system, url, open_things
        self.keys: dict[str, UUID] = {}

    def join(self, name: str, *roots: Path | str, tenant: str | None = None) -> Client:
        """A client with a new key whose data sets may lie in these roots."""
        key, digest = new_key()
        self.keys[name] = self._system.database.keys.add(
            name=name, tenant=tenant or name, sha256=digest, quota=100, dataset_roots=[str(root) for root in roots]
        )
        return self._open.enter_context(Client(self._url, key))

    def allow(self, name: str, *roots: Path | str) -> None:
        """Change the roots of a key, and wait until every process has forgotten the old ones."""
        self._system.database.keys.allow_datasets(self.keys[name], [str(root) for root in roots])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for tenant in ("alice", "bob"):
        paint(tmp_path / f"data/{tenant}/photos", range(5))
    (tmp_path / "secret").write_text(SECRET)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def system(module_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One system for all tests here, with a housekeeper and a worker."""
    with running_system(module_settings, tmp_path_factory.mktemp("logs"), auth="keys") as system:
        yield system


@pytest.fixture(scope="module")
def housekeeper(system: System) -> Process:
    return system.housekeeper()


@pytest.fixture(scope="module")
def worker(system: System, housekeeper: Process) -> Process:
    return system.worker()


@pytest.fixture
def tenants(system: System, worker: Process) -> Iterator[Tenants]:
    with serving(system.settings) as url, ExitStack() as open_things:
        yield Tenants(system, url, open_things)


def start(client: Client, source: Path | str, out: Path | str | None, **wishes: object) -> Dataset:
    request = {"source": str(source), "destination": out and str(out), "dry_run": out is None, **wishes}
    return client.datasets.submit(DatasetRequest.model_validate(request))


def run(client: Client, source: Path | str, out: Path | str, **wishes: object) -> Dataset:
    return client.datasets.wait(start(client, source, out, **wishes).id)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refusal(ended: Dataset) -> str:
    """Why a data set failed."""
    assert (ended.status, ended.error and ended.error.code) == (DatasetStatus.FAILED, "forbidden"), ended
    assert ended.error is not None
    return ended.error.detail


def test_each_tenant_has_its_own_places(tenants: Tenants, data: Path) -> None:
    alice, bob = tenants.join("alice", data / "alice"), tenants.join("bob", data / "bob", "s3://bucket/bob")
    nobody = tenants.join("nobody")
    mine, theirs = data / "alice", data / "bob"
    for client, source, out in (
        (alice, theirs / "photos", mine / "out"),
        (alice, mine / "photos", theirs / "out"),
        (alice, mine / "../bob/photos", mine / "out"),
        (alice, f"{mine}//..//bob/photos/", mine / "out"),
        (alice, f"/{mine}/../bob/photos", mine / "out"),
        (alice, "s3://bucket/bob/photos", mine / "out"),
        (alice, mine / "photos", "s3://bucket/alice"),
        (bob, "s3://bucket/bobby", theirs / "out"),
        (bob, "s3://bucket//alice", theirs / "out"),
        (nobody, mine / "photos", mine / "out"),
        (nobody, mine / "photos", None),
    ):
        with pytest.raises(Forbidden, match="the roots of this API key"):
            start(client, source, out)
    with pytest.raises(Forbidden) as refused:
        start(alice, mine / "photos", mine / "out", source_root=str(theirs))
    assert refused.value.field == "source_root"
    with pytest.raises(InvalidRequest, match="root of data sets itself"):
        start(alice, mine / "photos", mine)
    (mine / "photos/000/000000.txt").symlink_to(data.parent / "secret")
    (mine / "photos/000/stolen.png").symlink_to(theirs / "photos/000/000001.png")
    (mine / "photos/000/again.png").symlink_to(mine / "photos/000/000001.png")
    ended = run(alice, mine / "photos", mine / "out")
    assert (ended.status, ended.progress.done, ended.progress.failed) == (DatasetStatus.SUCCEEDED, 5, 3)
    assert {failure["name"]: failure["code"] for failure in failures(mine / "out")} == {
        "000/000000.png": "path_forbidden",
        "000/000000.txt": "path_forbidden",
        "000/stolen.png": "path_forbidden",
    }
    assert {record["name"] for record in records(mine / "out")} == {
        *(f"000/{number:06d}.png" for number in range(1, 5)),
        "000/again.png",
    }
    assert SECRET.encode() not in b"".join(contents(mine / "out").values())
    with pytest.raises(NotFound):
        bob.datasets.export(ended.id, ExportRequest(destination=str(theirs / "out")))
    with pytest.raises(Forbidden):
        alice.datasets.export(ended.id, ExportRequest(destination=str(theirs / "out")))
    second = tenants.join("assistant", data / "alice/elsewhere", tenant="alice")
    for attempt in (
        lambda: second.datasets.retry(ended.id),
        lambda: second.datasets.export(ended.id, ExportRequest(destination=str(mine / "elsewhere/out"))),
    ):
        with pytest.raises(Forbidden, match="the roots of this API key"):
            attempt()


def test_nobody_writes_where_another_has(system: System, tenants: Tenants, data: Path) -> None:
    alice, rival = tenants.join("alice", data), tenants.join("rival", data)
    mine = data / "alice"
    assert run(alice, mine / "photos", mine / "out").status is DatasetStatus.SUCCEEDED
    assert run(alice, mine / "photos", mine / "photos", destination_format="kohya").status is DatasetStatus.SUCCEEDED
    before = contents(data)
    for number, target in enumerate((mine / "out", mine / "photos", mine)):
        (data / f"bob/link{number}").symlink_to(target)
    for out in (
        mine / "out",
        f"{mine}/./out//",
        f"{mine}/photos/../out",
        mine / "out/deeper",
        mine,
        mine / "photos",
        mine / "photos/000",
    ):
        with pytest.raises(Forbidden, match="of another tenant"):
            start(rival, data / "bob/photos", out, overwrite=True)
    with pytest.raises(Forbidden, match="of another tenant"):
        start(rival, mine / "photos", mine / "photos", destination_format="kohya", overwrite=True)
    # What only the file system tells is found before a single image is annotated.
    for out in ("link0", "link0/deeper", "link1/000", "link2/out"):
        ended = run(rival, data / "bob/photos", data / "bob" / out, overwrite=True)
        assert "of another tenant" in refusal(ended)
        assert ended.progress.images == 0
    for source in (data / "bob/link1", data / "bob/link1/000"):
        assert refusal(run(rival, source, source, destination_format="kohya", overwrite=True))
    assert run(rival, data / "bob/photos", data / "bob/out").status is DatasetStatus.SUCCEEDED
    [done] = [each for each in rival.datasets.iter() if each.status is DatasetStatus.SUCCEEDED]
    with pytest.raises(Forbidden):
        rival.datasets.export(done.id, ExportRequest(destination=str(mine / "out"), overwrite=True))
    rival.datasets.export(done.id, ExportRequest(destination=str(data / "bob/link0"), overwrite=True))
    assert "of another tenant" in refusal(rival.datasets.wait(done.id))
    for each in alice.datasets.iter():
        alice.datasets.delete(each.id)
    with pytest.raises(Forbidden, match="an export of another tenant"):
        start(rival, data / "bob/photos", mine / "out", overwrite=True)
    assert {path: content for path, content in contents(data).items() if path in before} == before
    system.database.dataset_places.release(str(mine / "out"))
    ended = run(rival, data / "bob/photos", mine / "out", overwrite=True)
    assert "holds an export of another tenant" in refusal(ended), "the files themselves say whose they are"
    assert contents(mine / "out") == {path: content for path, content in before.items() if "/alice/out/" in path}


def test_two_tenants_at_once(tenants: Tenants, housekeeper: Process, data: Path) -> None:
    alice, late = tenants.join("alice", data), tenants.join("late", data)
    with freeze(housekeeper.process.pid):
        start(alice, data / "alice/photos", data / "out")
        for out in ("out", "out/deeper"):
            with pytest.raises(Conflict, match="being written"):
                start(late, data / "bob/photos", data / out)


def test_roots_that_were_taken_away(
    system: System, tenants: Tenants, housekeeper: Process, worker: Process, data: Path
) -> None:
    alice = tenants.join("alice", data / "alice")
    mine = data / "alice"
    with freeze(housekeeper.process.pid):
        unplanned = start(alice, mine / "photos", mine / "1")
        tenants.allow("alice")
    assert "the roots of this API key (none)" in refusal(alice.datasets.wait(unplanned.id))
    system.wait_until(lambda: _is_refused(alice, mine), "a key whose old roots are forgotten")

    tenants.allow("alice", mine)
    system.wait_until(lambda: not _is_refused(alice, mine), "a key whose new roots are known")
    with freeze(worker.process.pid):
        planned = alice.datasets.retry(unplanned.id)
        system.wait_until(lambda: alice.datasets.get(planned.id).progress.planned, "the plan")
        tenants.allow("alice", data / "bob")
    assert str(mine / "photos") in refusal(alice.datasets.wait(planned.id))

    tenants.allow("alice", mine)
    system.wait_until(lambda: not _is_refused(alice, mine), "a key whose new roots are known")
    assert alice.datasets.retry(planned.id).error is None
    assert alice.datasets.wait(planned.id).status is DatasetStatus.SUCCEEDED
    assert len(records(mine / "1")) == 5
    assert json.loads((mine / "1/tuwen.json").read_text())["tenant"] == "alice"

    with freeze(housekeeper.process.pid):
        alice.datasets.export(planned.id, ExportRequest(destination=str(mine / "2")))
        tenants.allow("alice", mine / "photos")
    assert str(mine / "2") in refusal(alice.datasets.wait(planned.id))
    assert not (mine / "2").exists()


def _is_refused(client: Client, folder: Path) -> bool:
    try:
        id = start(client, folder, None).id
    except Forbidden:
        return True
    with suppress(Conflict):  # it is over already
        client.datasets.cancel(id)
    return False
