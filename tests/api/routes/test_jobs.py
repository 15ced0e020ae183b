"""Submitting, listing, cancelling and retrying jobs over HTTP."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import redis

from api.http.auth import new_key
from shared.database import Database
from shared.queue import JobQueue
from shared.settings import Settings
from tests.support.api_server import FakeWorker, png, serving
from tests.support.waiting import PATIENT, eventually
from tuwen.jobs import Kind

GENERATE = {"input": {"kind": "generate", "prompt": "一只黑色的猫在草地上跳跃"}}


def prompts(number: int) -> list[dict[str, Any]]:
    return [{"input": {"kind": "generate", "prompt": f"{index} cats"}} for index in range(number)]


@pytest.fixture
def keyed(settings: Settings, database: Database) -> Iterator[Callable[..., httpx.Client]]:
    """Makes an HTTP client with an API key of its own."""
    with serving(settings.model_copy(update={"auth": "keys"})) as url:
        clients: list[httpx.Client] = []

        def make(tenant: str, quota: int = 100) -> httpx.Client:
            key, digest = new_key()
            database.keys.add(name=tenant, tenant=tenant, sha256=digest, quota=quota)
            client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENT)
            clients.append(client)
            return client

        yield make
        for client in clients:
            client.close()


def queued(settings: Settings) -> Counter[str]:
    """Ids of the messages that wait for workers, with how often each does."""
    found: Counter[str] = Counter()
    with redis.Redis.from_url(settings.redis_url, decode_responses=True) as client:
        for key in client.scan_iter("tuwen.generate*"):
            found.update(_task_id(message) for message in client.lrange(key, 0, -1))
    return found


def _task_id(message: str) -> str:
    return str(json.loads(message)["headers"]["id"])


def test_a_submission_is_answered_stored_and_published(api: httpx.Client, settings: Settings) -> None:
    answer = api.post("/v1/jobs", json={**GENERATE, "priority": 9, "deadline": 60, "max_attempts": 2})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["status"] == "queued"
    assert (job["priority"], job["max_attempts"], job["model"]) == (9, 2, "builtin")
    assert api.get(answer.headers["location"]).json() == job
    eventually(lambda: queued(settings) == {job["id"]: 1})


def test_a_batch_is_accepted_whole_and_in_order(api: httpx.Client, settings: Settings) -> None:
    answer = api.post("/v1/jobs/batch", json={"jobs": prompts(40)})
    assert answer.status_code == 202
    jobs = answer.json()["jobs"]
    assert [job["input"]["prompt"] for job in jobs] == [f"{index} cats" for index in range(40)]
    eventually(lambda: queued(settings) == dict.fromkeys([job["id"] for job in jobs], 1))


@pytest.mark.parametrize(
    ("spoilt", "field", "code"),
    [
        ({"input": {"kind": "generate", "prompt": ""}}, "jobs.2.input.prompt", "invalid_request"),
        ({**GENERATE, "model": "another"}, "jobs.2.model", "unknown_model"),
        ({**GENERATE, "webhook": "http://10.0.0.1/"}, "jobs.2.webhook", "url_forbidden"),
        ({"input": {"kind": "recognize", "image": {"file_id": "a" * 64}}}, "jobs.2.input.image.file_id", "not_found"),
        (
            {"input": {"kind": "recognize", "image": {"base64": "AAAA"}}},
            "jobs.2.input.image.base64",
            "unsupported_format",
        ),
    ],
)
def test_one_bad_job_spoils_the_batch(api: httpx.Client, spoilt: dict[str, Any], field: str, code: str) -> None:
    answer = api.post("/v1/jobs/batch", json={"jobs": [GENERATE, GENERATE, spoilt]})
    assert answer.json()["code"] == code
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert api.get("/v1/jobs").json()["jobs"] == []


def test_too_many_jobs_in_one_request(settings: Settings) -> None:
    with serving(settings.model_copy(update={"max_jobs_per_request": 3})) as url, httpx.Client(base_url=url) as api:
        assert api.post("/v1/jobs/batch", json={"jobs": prompts(3)}).status_code == 202
        refused = api.post("/v1/jobs/batch", json={"jobs": prompts(4)})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["field"] == "jobs"


def test_an_image_in_the_request_becomes_a_file(api: httpx.Client) -> None:
    image = {"base64": base64.b64encode(png()).decode()}
    job = api.post("/v1/jobs", json={"input": {"kind": "recognize", "image": image}}).json()
    file_id = job["input"]["image"]["file_id"]
    assert job["input"] == {"kind": "recognize", "image": {"file_id": file_id}}
    assert api.get(f"/v1/files/{file_id}/content").content == png()


def test_the_same_key_and_body_are_the_same_job(api: httpx.Client, settings: Settings) -> None:
    headers = {"Idempotency-Key": "一".encode().hex()}
    first = api.post("/v1/jobs", json=GENERATE, headers=headers).json()
    # Written differently, it still asks for the same.
    same = f'{{ "priority":5, "input":{{"prompt":"{GENERATE["input"]["prompt"]}", "kind":"generate"}} }}'
    again = api.post("/v1/jobs", content=same.encode(), headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    other = api.post("/v1/jobs", json={**GENERATE, "priority": 6}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert other.json()["errors"][0]["field"] == "Idempotency-Key"
    eventually(lambda: queued(settings) == {first["id"]: 1})


def test_one_key_many_submissions_at_once_one_job(api: httpx.Client, settings: Settings) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: api.post("/v1/jobs", json=GENERATE, headers=headers), range(20)))
    assert {answer.status_code for answer in answers} == {202}
    (id,) = {answer.json()["id"] for answer in answers}
    assert [job["id"] for job in api.get("/v1/jobs").json()["jobs"]] == [id]
    eventually(lambda: queued(settings) == {id: 1})


def test_a_batch_is_idempotent_too(api: httpx.Client) -> None:
    headers = {"Idempotency-Key": "batch"}
    first, again = (api.post("/v1/jobs/batch", json={"jobs": prompts(3)}, headers=headers).json() for _ in range(2))
    assert first == again
    assert api.post("/v1/jobs/batch", json={"jobs": prompts(2)}, headers=headers).status_code == 422


@pytest.mark.parametrize("key", ["", "k" * 256, "tab\tbed"])
def test_an_idempotency_key_must_be_sendable(api: httpx.Client, key: str) -> None:
    answer = api.post("/v1/jobs", json=GENERATE, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "Idempotency-Key")


def test_the_quota_is_never_exceeded(keyed: Callable[..., httpx.Client]) -> None:
    client = keyed("cats", quota=7)
    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(lambda _: client.post("/v1/jobs", json=GENERATE), range(50)))
    assert Counter(answer.status_code for answer in answers) == {202: 7, 429: 43}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["code"] == "quota_exceeded"
    assert int(refused.headers["retry-after"]) > 0
    assert len(client.get("/v1/jobs").json()["jobs"]) == 7
    assert client.post("/v1/jobs/batch", json={"jobs": prompts(1)}).status_code == 429
    # One that ends makes room for one.
    id = client.get("/v1/jobs").json()["jobs"][0]["id"]
    client.post(f"/v1/jobs/{id}/cancel").raise_for_status()
    assert [client.post("/v1/jobs", json=GENERATE).status_code for _ in range(2)] == [202, 429]


def test_what_another_tenant_has_is_as_absent(keyed: Callable[..., httpx.Client]) -> None:
    mine, theirs = keyed("mine"), keyed("theirs")
    job = mine.post("/v1/jobs", json=GENERATE).json()["id"]
    file = mine.post("/v1/files", content=png()).json()["id"]
    for client, id, file_id in ((theirs, job, file), (mine, str(UUID(int=7)), "0" * 64)):
        answers = [
            client.get(f"/v1/jobs/{id}"),
            client.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=5"}),
            client.get(f"/v1/jobs/{id}/events"),
            client.get(f"/v1/jobs/{id}/image"),
            client.post(f"/v1/jobs/{id}/cancel"),
            client.post(f"/v1/jobs/{id}/retry"),
            client.get(f"/v1/files/{file_id}"),
            client.get(f"/v1/files/{file_id}/content"),
            client.post("/v1/jobs", json={"input": {"kind": "recognize", "image": {"file_id": file_id}}}),
        ]
        assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(404, "not_found")}
    assert theirs.get("/v1/jobs").json()["jobs"] == []
    assert mine.get(f"/v1/jobs/{job}").json()["status"] == "queued"
    # The same key of two tenants is two keys.
    headers = {"Idempotency-Key": "k"}
    assert len({client.post("/v1/jobs", json=GENERATE, headers=headers).json()["id"] for client in (mine, theirs)}) == 2


def test_pages_and_filters(api: httpx.Client, hand: FakeWorker) -> None:
    ids = [job["id"] for job in api.post("/v1/jobs/batch", json={"jobs": prompts(5)}).json()["jobs"]]
    hand.claim(UUID(ids[0]))
    hand.tell(UUID(ids[0]), 3, 9)
    api.post(f"/v1/jobs/{ids[1]}/cancel").raise_for_status()
    first = api.get("/v1/jobs", params={"limit": 3}).json()
    second = api.get("/v1/jobs", params={"limit": 3, "cursor": first["next"]}).json()
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == ids[::-1]
    assert second["next"] is None
    assert second["jobs"][-1]["progress"] == {"step": 3, "steps": 9}
    both = api.get("/v1/jobs", params={"status": ["running", "cancelled"]}).json()["jobs"]
    assert [job["id"] for job in both] == ids[1::-1]
    assert api.get("/v1/jobs", params={"kind": "match"}).json()["jobs"] == []
    for wrong in ({"limit": 0}, {"limit": 201}, {"status": "sleeping"}, {"cursor": "../x"}):
        answer = api.get("/v1/jobs", params=wrong)
        assert (answer.status_code, answer.json()["errors"][0]["field"].split(".")[0]) == (422, next(iter(wrong)))


def test_cancelling_and_retrying(api: httpx.Client, hand: FakeWorker, settings: Settings) -> None:
    id = api.post("/v1/jobs", json=GENERATE).json()["id"]
    assert api.post(f"/v1/jobs/{id}/retry").status_code == 409
    assert api.post(f"/v1/jobs/{id}/cancel").json()["status"] == "cancelled"
    assert api.post(f"/v1/jobs/{id}/cancel").json()["code"] == "conflict"
    eventually(lambda: queued(settings)[id] == 1)
    answer = api.post(f"/v1/jobs/{id}/retry")
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    eventually(lambda: queued(settings)[id] == 2)
    hand.claim(UUID(id))
    flagged = api.post(f"/v1/jobs/{id}/cancel").json()
    assert (flagged["status"], flagged["cancel_requested"]) == ("running", True)


def test_a_cancelled_running_job_is_told_to_its_worker(api: httpx.Client, hand: FakeWorker, settings: Settings) -> None:
    id = api.post("/v1/jobs", json=GENERATE).json()["id"]
    hand.claim(UUID(id))
    with redis.Redis.from_url(settings.redis_url, decode_responses=True) as client, client.pubsub() as told:
        told.subscribe("tuwen:cancel")
        assert told.get_message(timeout=PATIENT)["type"] == "subscribe"
        api.post(f"/v1/jobs/{id}/cancel").raise_for_status()
        assert told.get_message(timeout=PATIENT)["data"] == id


def test_the_image_of_a_job(api: httpx.Client, hand: FakeWorker) -> None:
    id = api.post("/v1/jobs", json=GENERATE).json()["id"]
    assert api.get(f"/v1/jobs/{id}/image").json()["code"] == "conflict"
    hand.claim(UUID(id))
    hand.succeed(UUID(id), png("red"))
    job = api.get(f"/v1/jobs/{id}").json()
    assert job["result_url"].partition("?")[0] == f"{api.base_url}/v1/jobs/{id}/image"
    image = api.get(job["result_url"])
    assert (image.content, image.headers["content-type"]) == (png("red"), "image/png")
    assert image.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in image.headers["cache-control"]
    unchanged = api.get(job["result_url"], headers={"If-None-Match": f'"x", W/{image.headers["etag"]}'})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert api.post(f"/v1/jobs/{id}/retry").status_code == 409


def test_links_name_the_public_address(settings: Settings, hand: FakeWorker) -> None:
    public = settings.model_copy(update={"public_url": "https://tuwen.example/base/"})
    with serving(public) as url, httpx.Client(base_url=url) as api:
        id = api.post("/v1/jobs", json=GENERATE).json()["id"]
        hand.claim(UUID(id))
        hand.succeed(UUID(id), png())
        shown = api.get(f"/v1/jobs/{id}").json()["result_url"]
        assert shown.partition("?")[0] == f"https://tuwen.example/base/v1/jobs/{id}/image"


def test_every_kind_is_submitted_to_its_own_queue(api: httpx.Client, settings: Settings) -> None:
    file = {"file_id": api.post("/v1/files", content=png()).json()["id"]}
    inputs = [
        {"kind": "generate", "prompt": "猫"},
        {"kind": "describe", "image": file, "language": "zh"},
        {"kind": "recognize", "image": {"url": "https://example.com/a.png"}},
        {"kind": "match", "image": file, "text": "猫"},
    ]
    for given in inputs:
        assert api.post("/v1/jobs", json={"input": given}).status_code == 202
    queue = JobQueue(settings)
    eventually(lambda: queue.depth() == dict.fromkeys(Kind, 1))
    queue.close()
