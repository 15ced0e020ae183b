"""Deleting a job over HTTP, and what refers to it afterwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from shared.objects.storage import ObjectStore
from shared.settings import Settings
from tests.support.api_server import FakeWorker, png
from tests.support.plain_sql import Sql
from tests.support.waiting import eventually
from tuwen.client import Client
from tuwen.errors import Conflict, NotFound

GENERATE = {"input": {"kind": "generate", "prompt": "一只猫"}}


def submit(api: httpx.Client, **headers: str) -> UUID:
    return UUID(api.post("/v1/jobs", json=GENERATE, headers=headers).raise_for_status().json()["id"])


def test_a_job_that_is_over_goes_with_its_picture(
    api: httpx.Client, hand: FakeWorker, settings: Settings, tmp_path: Path
) -> None:
    id = submit(api)
    hand.claim(id)
    key = hand.succeed(id, png())
    os.utime(tmp_path / "objects" / key, (0, 0))
    assert api.delete(f"/v1/jobs/{id}").status_code == 204
    for answer in (api.get(f"/v1/jobs/{id}"), api.get(f"/v1/jobs/{id}/image"), api.delete(f"/v1/jobs/{id}")):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert api.get("/v1/jobs").json()["jobs"] == []
    store = ObjectStore.open(settings)
    eventually(lambda: not list(store.list("results")), "the picture is removed")


@pytest.mark.parametrize("runs", [False, True])
def test_a_job_that_is_not_over_is_refused_and_goes_on(api: httpx.Client, hand: FakeWorker, runs: bool) -> None:
    id = submit(api)
    if runs:
        hand.claim(id)
    answer = api.delete(f"/v1/jobs/{id}")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "cancel it first" in answer.json()["detail"]
    assert api.get(f"/v1/jobs/{id}").json()["status"] == ("running" if runs else "queued")


def test_a_submission_that_is_repeated_after_its_job_was_deleted(api: httpx.Client) -> None:
    """It neither makes the job again nor fails as if nobody knew why."""
    id = submit(api, **{"Idempotency-Key": "k"})
    api.post(f"/v1/jobs/{id}/cancel").raise_for_status()
    api.delete(f"/v1/jobs/{id}").raise_for_status()
    answer = api.post("/v1/jobs", json=GENERATE, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "made a job that was deleted since" in answer.json()["detail"]
    submit(api, **{"Idempotency-Key": "another"})


def test_who_watches_a_job_that_is_deleted_learns_that_it_is_gone(
    api: httpx.Client, sql: Sql, hand: FakeWorker
) -> None:
    id = submit(api)
    seen: list[Any] = []
    with Client(str(api.base_url)) as client:
        events = client.iter_events(id)
        seen.append(next(events).status)
        sql("DELETE FROM jobs WHERE id = :id", id=id)
        hand.announce(id)
        with pytest.raises(NotFound):
            seen += [job.status for job in events]
    assert seen == ["queued"]


def test_the_python_client(api: httpx.Client) -> None:
    with Client(str(api.base_url)) as client:
        job = client.generate("a cat")
        with pytest.raises(Conflict):
            client.delete(job.id)
        client.cancel(job.id)
        client.delete(job.id)
        with pytest.raises(NotFound):
            client.get(job.id)
