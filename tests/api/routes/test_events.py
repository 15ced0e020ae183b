"""Watching jobs and waiting for them."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import fastapi.routing
import httpx
import pytest
import redis

from api.embedded.servers import Valkey
from shared.queue import event_channel
from shared.settings import Settings
from tests.support.api_server import FakeWorker, png
from tests.support.waiting import eventually
from tuwen import exchange

GENERATE = {"input": {"kind": "generate", "prompt": "一只黑色的猫在草地上跳跃"}}

Event = tuple[str, Any]


@contextmanager
def watching(api: httpx.Client, id: UUID) -> Iterator[Iterator[Event]]:
    with api.stream("GET", f"/v1/jobs/{id}/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield _events(answer.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[Event]:
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def submit(api: httpx.Client) -> UUID:
    return UUID(api.post("/v1/jobs", json=GENERATE).json()["id"])


def subscribers(settings: Settings, id: UUID) -> int:
    with redis.Redis.from_url(settings.redis_url) as client:
        return int(client.pubsub_numsub(event_channel(id))[0][1])


def test_a_watcher_sees_every_change_in_order(api: httpx.Client, hand: FakeWorker) -> None:
    id = submit(api)
    with watching(api, id) as events:
        name, job = next(events)
        assert (name, job["id"], job["status"]) == ("state", str(id), "queued")
        hand.claim(id)
        name, job = next(events)
        assert (name, job["status"], job["attempts"]) == ("state", "running", 1)
        for step in (1, 2, 3):
            hand.tell(id, step, 3)
            assert next(events) == ("progress", {"step": step, "steps": 3})
        hand.succeed(id, png())
        name, job = next(events)
        assert (name, job["status"], job["result"]["image"]["width"]) == ("state", "succeeded", 8)
        assert f"/v1/jobs/{id}/image?expires=" in job["result_url"]
        assert list(events) == []


def test_nobody_stores_or_collects_a_stream(api: httpx.Client) -> None:
    with api.stream("GET", f"/v1/jobs/{submit(api)}/events") as answer:
        assert answer.headers.get_list("cache-control") == ["no-store"]
        assert answer.headers["x-accel-buffering"] == "no"


def test_an_unknown_job_is_a_problem_and_no_stream(api: httpx.Client) -> None:
    answer = api.get(f"/v1/jobs/{uuid4()}/events")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_a_quiet_stream_shows_that_it_is_alive(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        fastapi.routing._PING_INTERVAL * 2 <= exchange.STREAM_SILENCE
    )  # the client gives up a stream without even a comment
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.1)
    with api.stream("GET", f"/v1/jobs/{submit(api)}/events") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: state"
        assert any(line.startswith(":") for line in itertools.islice(lines, 10))


def test_a_job_that_is_over_is_one_event(api: httpx.Client) -> None:
    id = submit(api)
    api.post(f"/v1/jobs/{id}/cancel")
    with watching(api, id) as events:
        assert [(name, job["status"]) for name, job in events] == [("state", "cancelled")]


def test_who_comes_late_sees_the_last_progress(api: httpx.Client, hand: FakeWorker) -> None:
    id = submit(api)
    hand.claim(id)
    hand.tell(id, 4, 9)
    with watching(api, id) as events:
        assert next(events)[1]["progress"] == {"step": 4, "steps": 9}
        assert api.get(f"/v1/jobs/{id}").json()["progress"] == {"step": 4, "steps": 9}


def test_many_watchers_share_a_subscription_and_leave_nothing(
    api: httpx.Client, hand: FakeWorker, settings: Settings
) -> None:
    id = submit(api)

    def last(_: int) -> str:
        with watching(api, id) as events:
            return str([job["status"] for _, job in events][-1])

    with ThreadPoolExecutor(8) as threads:
        seen = [threads.submit(last, number) for number in range(8)]
        eventually(lambda: subscribers(settings, id) == 1)
        api.post(f"/v1/jobs/{id}/cancel")
        assert {future.result() for future in seen} == {"cancelled"}
    eventually(lambda: subscribers(settings, id) == 0)


def test_a_watcher_that_leaves_leaves_nothing(api: httpx.Client, settings: Settings) -> None:
    id = submit(api)
    with watching(api, id) as events:
        next(events)
        assert subscribers(settings, id) == 1
    eventually(lambda: subscribers(settings, id) == 0)


def test_garbage_on_the_channel_disturbs_nobody(api: httpx.Client, hand: FakeWorker, settings: Settings) -> None:
    id = submit(api)
    with watching(api, id) as events, redis.Redis.from_url(settings.redis_url) as client:
        next(events)
        for garbage in ("", "{", "7", '{"status": "levitating"}', '{"progress": {"step": "x"}}', "{}", b"\xff\xfe"):
            client.publish(event_channel(id), garbage)
        client.publish(event_channel(id), '{"status": "succeeded"}')  # a lie
        hand.claim(id)
        assert next(events)[1]["status"] == "running"


def test_a_watcher_learns_the_end_without_redis(api: httpx.Client, hand: FakeWorker, valkey: Valkey) -> None:
    id = submit(api)
    with watching(api, id) as events:
        next(events)
        valkey.kill()
        hand.claim(id)
        assert next(events)[1]["status"] == "running"
        valkey.start()
        hand.succeed(id, png())
        assert next(events)[1]["status"] == "succeeded"


def test_who_starts_to_watch_without_redis_learns_the_end(api: httpx.Client, hand: FakeWorker, valkey: Valkey) -> None:
    id = submit(api)
    valkey.kill()
    with watching(api, id) as events:
        assert next(events)[1]["status"] == "queued"
        hand.claim(id)
        hand.fail(id)
        *_, (_, job) = events
        assert job["status"] == "failed"
        assert job["error"]["code"] == "engine_error"


# ── Prefer: wait ──────────────────────────────────────────────────────────────────────────────────────


def test_a_submission_waits_for_its_result(api: httpx.Client, hand: FakeWorker, settings: Settings) -> None:
    def work() -> None:
        eventually(lambda: bool(api.get("/v1/jobs").json()["jobs"]))
        id = UUID(api.get("/v1/jobs").json()["jobs"][0]["id"])
        hand.claim(id)
        hand.succeed(id, png())

    working = threading.Thread(target=work)
    working.start()
    answer = api.post("/v1/jobs", json=GENERATE, headers={"Prefer": "respond-async, wait=30"})
    working.join()
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == "wait=30"
    eventually(lambda: subscribers(settings, UUID(answer.json()["id"])) == 0)


def test_a_wait_ends_when_its_time_is_up(api: httpx.Client, hand: FakeWorker) -> None:
    answer = api.post("/v1/jobs", json=GENERATE, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    id = UUID(answer.json()["id"])
    hand.claim(id)
    answer = api.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=0.1"})
    assert (answer.status_code, answer.json()["status"]) == (200, "running")


def test_when_its_time_is_up_a_wait_answers_with_the_job_as_it_is_then(
    api: httpx.Client, hand: FakeWorker, settings: Settings
) -> None:
    id = submit(api)

    def claim() -> None:
        eventually(lambda: subscribers(settings, id) == 1)
        hand.claim(id)

    working = threading.Thread(target=claim)
    working.start()
    answer = api.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=3"})
    working.join()
    assert answer.json()["status"] == "running"


@pytest.mark.parametrize(
    "prefer", ["wait=-1", "wait=forever", "wait", "wait=٣", "return=minimal", "wait=0", "=,=;", "wait=nan"]
)
def test_a_preference_without_sense_is_ignored(api: httpx.Client, prefer: str) -> None:
    answer = api.post("/v1/jobs", json=GENERATE, headers={"Prefer": prefer.encode()})
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


def test_who_hangs_up_while_waiting_leaves_nothing(api: httpx.Client, settings: Settings) -> None:
    id = submit(api)
    with socket.create_connection((api.base_url.host, api.base_url.port or 0)) as connection:
        connection.sendall(f"GET /v1/jobs/{id} HTTP/1.1\r\nHost: 127.0.0.1\r\nPrefer: wait=60\r\n\r\n".encode())
        eventually(lambda: subscribers(settings, id) == 1)
    eventually(lambda: subscribers(settings, id) == 0)
