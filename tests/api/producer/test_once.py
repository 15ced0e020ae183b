"""`Idempotency-Key`: on every route that makes something, repeating a request does nothing again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import httpx
import pytest

from api.http.auth import new_key
from shared.database import Database
from shared.settings import Settings
from tests.support.api_server import FakeWorker, png, serving
from tests.support.plain_sql import plain_sql
from tests.support.waiting import PATIENT, eventually

GENERATE = {"input": {"kind": "generate", "prompt": "a cat"}}
QUESTION = {
    "model": "builtin",
    "messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}]}
    ],
}
Ask = Callable[[str], httpx.Response]
"""Sends a request under a key."""


@pytest.fixture(scope="module")
def api(module_settings: Settings) -> Iterator[httpx.Client]:
    with serving(module_settings) as url, httpx.Client(base_url=url, timeout=PATIENT) as client:
        yield client


class Maker:
    """Makes things over the API under a key, and prepares what they need."""

    def __init__(self, api: httpx.Client, settings: Settings):
        self.api = api
        self.settings = settings
        self.folder = settings.data_dir

    def post(self, path: str, key: str, **request: Any) -> httpx.Response:
        return self.api.post(path, headers={"Idempotency-Key": key}, **request)

    def job(self) -> str:
        id: str = self.api.post("/v1/jobs", json=GENERATE).json()["id"]
        return id

    def cancelled(self) -> str:
        id = self.job()
        assert self.api.post(f"/v1/jobs/{id}/cancel").json()["status"] == "cancelled"
        return id

    def document(self) -> str:
        form: Any = {"files": {"file": ("a.jsonl", b"{}\n")}, "data": {"purpose": "batch"}}
        id: str = self.api.post("/v1/files", **form).json()["id"]
        return id

    def dataset(self, name: str) -> dict[str, Any]:
        (self.folder / "source").mkdir(exist_ok=True)
        return {"source": str(self.folder / "source"), "destination": str(self.folder / name)}

    def ended_dataset(self, name: str) -> str:
        id: str = self.api.post("/v1/datasets", json=self.dataset(name)).json()["id"]
        assert self.api.post(f"/v1/datasets/{id}/cancel").json()["status"] == "cancelled"
        return id


@pytest.fixture(scope="module")
def maker(api: httpx.Client, module_settings: Settings) -> Maker:
    return Maker(api, module_settings)


def counts(settings: Settings) -> dict[str, int]:
    tables = ("jobs", "files", "documents", "batches", "datasets")
    with plain_sql(settings) as sql:
        return {table: sql(f"SELECT count(*) FROM {table}")[0][0] for table in tables}


def test_each_is_made_once(maker: Maker, subtests: pytest.Subtests) -> None:
    retried, ended = maker.cancelled(), maker.ended_dataset("retried")
    exported = maker.ended_dataset("exported")
    batch = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    form = {"data": {"purpose": "batch"}}
    document, other_document = maker.document(), maker.document()
    asks: dict[str, tuple[Ask, Ask]] = {
        "jobs": (
            lambda key: maker.post("/v1/jobs", key, json=GENERATE),
            lambda key: maker.post("/v1/jobs", key, json={**GENERATE, "priority": 1}),
        ),
        "jobs in one request": (
            lambda key: maker.post("/v1/jobs/batch", key, json={"jobs": [GENERATE] * 2}),
            lambda key: maker.post("/v1/jobs/batch", key, json={"jobs": [GENERATE] * 3}),
        ),
        "retries": (
            lambda key: maker.post(f"/v1/jobs/{retried}/retry", key),
            lambda key: maker.post(f"/v1/jobs/{maker.cancelled()}/retry", key),
        ),
        "images": (
            lambda key: maker.post("/v1/files", key, content=png("red")),
            lambda key: maker.post("/v1/files", key, content=png("blue")),
        ),
        "documents": (
            lambda key: maker.post("/v1/files", key, files={"file": ("a.jsonl", b"{}\n")}, **form),
            lambda key: maker.post("/v1/files", key, files={"file": ("a.jsonl", b"{ }\n")}, **form),
        ),
        "batches": (
            lambda key: maker.post("/v1/batches", key, json={**batch, "input_file_id": document}),
            lambda key: maker.post("/v1/batches", key, json={**batch, "input_file_id": other_document}),
        ),
        "data sets": (
            lambda key: maker.post("/v1/datasets", key, json=maker.dataset("one")),
            lambda key: maker.post("/v1/datasets", key, json=maker.dataset("two")),
        ),
        "retries of data sets": (
            lambda key: maker.post(f"/v1/datasets/{ended}/retry", key),
            lambda key: maker.post(f"/v1/datasets/{ended}/retry?failed_only=true", key),
        ),
        "exports": (
            lambda key: maker.post(f"/v1/datasets/{exported}/export", key, json={"destination": "/nowhere/x"}),
            lambda key: maker.post(f"/v1/datasets/{exported}/export", key, json={"destination": "/nowhere/y"}),
        ),
    }
    for name, (ask, ask_otherwise) in asks.items():
        with subtests.test(name):
            first = ask(f"key of {name}")
            assert first.status_code in (200, 201, 202), first.text
            before = counts(maker.settings)
            again = ask(f"key of {name}")
            assert (again.status_code, again.json()) == (first.status_code, first.json())
            assert counts(maker.settings) == before
            refused = ask_otherwise(f"key of {name}")
            status = 400 if "error" in refused.json() else 422
            assert (refused.status_code, refused.json()["code"]) == (status, "idempotency_mismatch")
            assert refused.json()["errors"][0]["field"] == "Idempotency-Key"
            assert ask(f"another key of {name}").status_code in (200, 201, 202, 409)


def test_a_refusal_leaves_the_key_free(maker: Maker) -> None:
    under_way = maker.api.post("/v1/datasets", json=maker.dataset("under way")).json()["id"]
    for path, request in [
        (f"/v1/datasets/{under_way}/retry", {}),
        (f"/v1/datasets/{under_way}/export", {"json": {"destination": f"{maker.folder}/z"}}),
        ("/v1/datasets", {"json": maker.dataset("under way")}),
        (f"/v1/jobs/{maker.job()}/retry", {}),
    ]:
        assert maker.post(path, f"free {path}", **request).status_code == 409
        assert maker.post("/v1/jobs", f"free {path}", json=GENERATE).status_code == 202


def test_what_was_deleted_is_not_made_again(maker: Maker) -> None:
    form: Any = {"files": {"file": ("gone.jsonl", b"{}\n")}, "data": {"purpose": "batch"}}
    dataset = maker.dataset("gone")
    for path, request in (("/v1/files", form), ("/v1/datasets", {"json": dataset})):
        id = maker.post(path, f"gone {path}", **request).json()["id"]
        if path == "/v1/datasets":
            maker.api.post(f"{path}/{id}/cancel")
        assert maker.api.delete(f"{path}/{id}").status_code in (200, 204)
        before = counts(maker.settings)
        again = maker.post(path, f"gone {path}", **request)
        assert (again.status_code, again.json()["errors"][0]["field"]) == (409, "Idempotency-Key")
        assert counts(maker.settings) == before
        assert maker.post(path, f"another for {path}", **request).status_code in (201, 202)


def test_a_key_belongs_to_what_was_asked_for(maker: Maker) -> None:
    """The same body on another route is another request."""
    assert maker.post("/v1/jobs", "k", json=GENERATE).status_code == 202
    for path, request in [
        ("/v1/files", {"content": png()}),
        ("/v1/datasets", {"json": maker.dataset("three")}),
        (f"/v1/jobs/{maker.cancelled()}/retry", {}),
        ("/v1/images/generations", {"json": {"prompt": "a cat"}}),
        ("/v1/chat/completions", {"json": QUESTION}),
    ]:
        assert maker.post(path, "k", **request).json()["code"] == "idempotency_mismatch", path


@pytest.mark.parametrize("key", ["", "ü".encode(), "a" * 256])
def test_a_key_that_cannot_be(maker: Maker, key: Any) -> None:
    for path, request in [
        ("/v1/jobs", {"json": GENERATE}),
        ("/v1/files", {"content": png()}),
        ("/v1/datasets", {"json": maker.dataset("four")}),
        (f"/v1/jobs/{maker.job()}/retry", {}),
        ("/v1/images/generations", {"json": {"prompt": "a cat"}}),
        ("/v1/chat/completions", {"json": QUESTION}),
    ]:
        answer = maker.post(path, key, **request)
        assert (answer.status_code in (400, 422), answer.json()["errors"][0]["field"]) == (True, "Idempotency-Key")


def test_duplicates_at_the_same_time_make_one(maker: Maker) -> None:
    before = counts(maker.settings)
    document = maker.document()
    batch = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "input_file_id": document}

    def repeat(path: str, key: str, **request: Any) -> set[str]:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: maker.post(path, key, **request), range(8)))
        assert {answer.status_code for answer in answers} <= {200, 201, 202}
        return {answer.json()["id"] for answer in answers}

    assert len(repeat("/v1/jobs", "at once: job", json=GENERATE)) == 1
    assert len(repeat("/v1/batches", "at once: batch", json=batch)) == 1
    assert len(repeat("/v1/datasets", "at once: data set", json=maker.dataset("five"))) == 1
    form: Any = {"files": {"file": ("a.jsonl", b"{}\n")}, "data": {"purpose": "batch"}}
    [file] = repeat("/v1/files", "at once: file", **form)
    after = counts(maker.settings)
    made = {table: after[table] - before[table] for table in after}
    assert made == {"jobs": 1, "files": 0, "documents": 2, "batches": 1, "datasets": 1}
    stored = [path for path in (maker.folder / "objects" / "documents").rglob("*") if path.is_file()]
    assert len(stored) == after["documents"], "what was uploaded again is not kept again"
    assert maker.api.get(f"/v1/files/{file}/content").content == b"{}\n"


def test_a_retry_runs_once(maker: Maker) -> None:
    id = maker.cancelled()
    assert maker.post(f"/v1/jobs/{id}/retry", "retried once").json()["status"] == "queued"
    assert maker.api.post(f"/v1/jobs/{id}/cancel").json()["status"] == "cancelled"
    assert maker.post(f"/v1/jobs/{id}/retry", "retried once").json()["status"] == "cancelled"
    assert maker.post(f"/v1/jobs/{maker.job()}/retry", "refused").status_code == 409
    assert maker.post(f"/v1/jobs/{id}/retry", "refused").status_code == 202


def test_openai_s_requests_find_their_job(maker: Maker) -> None:
    """A client whose connection broke comes back with its key: the job went on, and is not drawn twice."""
    key = {"Idempotency-Key": "images"}
    asked = {"prompt": "a cat, once"}
    with pytest.raises(httpx.ReadTimeout):
        maker.api.post("/v1/images/generations", json=asked, headers=key, timeout=0.5)
    hand = FakeWorker(maker.settings)

    def job() -> dict[str, Any] | None:
        found = [
            each for each in maker.api.get("/v1/jobs").json()["jobs"] if each["input"].get("prompt") == "a cat, once"
        ]
        assert len(found) <= 1
        return found[0] if found else None

    eventually(lambda: job() is not None, "the job")
    id = UUID(job()["id"])  # type: ignore[index]
    hand.claim(id)
    hand.succeed(id, png("red"))
    hand.close()
    answers = [maker.api.post("/v1/images/generations", json=asked, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert job() is not None
    refused = maker.api.post("/v1/images/generations", json={**asked, "response_format": "url"}, headers=key)
    assert refused.json()["error"]["code"] == "idempotency_mismatch"


def test_keys_are_each_tenant_s_own(settings: Settings, database: Database) -> None:
    with serving(settings.model_copy(update={"auth": "keys"})) as url:
        made = set()
        for tenant in ("alice", "bob"):
            key, digest = new_key()
            database.keys.add(name=tenant, tenant=tenant, sha256=digest, quota=10)
            headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "the same"}
            made |= {httpx.post(f"{url}/v1/jobs", json=GENERATE, headers=headers).json()["id"] for _ in range(2)}
    assert len(made) == 2


def test_keys_expire(maker: Maker) -> None:
    first = maker.post("/v1/jobs", "old", json=GENERATE).json()["id"]
    database = Database(maker.settings)
    database.jobs.forget_idempotency_keys()
    assert maker.post("/v1/jobs", "old", json=GENERATE).json()["id"] == first
    with plain_sql(maker.settings) as sql:
        sql("UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE key = 'old'")
    database.jobs.forget_idempotency_keys()
    database.close()
    assert maker.post("/v1/jobs", "old", json=GENERATE).json()["id"] != first
