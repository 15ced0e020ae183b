"""`RateLimit` and `RateLimit-Policy`: what a key has left of its quota, on each answer that spends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from api.http.auth import new_key
from api.http.rate_limits import quota_headers
from shared.database import Database
from shared.settings import Settings
from tests.support.api_server import FakeWorker, png, serving
from tests.support.waiting import PATIENT

GENERATE = {"input": {"kind": "generate", "prompt": "a cat"}}
POLICY = '"unfinished-jobs";q=4;qu="concurrent-requests"'


@pytest.fixture
def keyed(settings: Settings, database: Database) -> Iterator[Callable[..., httpx.Response]]:
    """Posts with a key that may have four unfinished jobs."""
    key, digest = new_key()
    database.keys.add(name="alice", tenant="alice", sha256=digest, quota=4)
    headers = {"Authorization": f"Bearer {key}"}
    locked = settings.model_copy(update={"auth": "keys"})
    with serving(locked) as url, httpx.Client(base_url=url, timeout=PATIENT, headers=headers) as api:
        yield api.post


def test_every_submission_says_what_is_left(keyed: Callable[..., httpx.Response]) -> None:
    first = keyed("/v1/jobs", json=GENERATE, headers={"Idempotency-Key": "a"})
    assert (first.headers["ratelimit-policy"], first.headers["ratelimit"]) == (POLICY, '"unfinished-jobs";r=3')
    two = keyed("/v1/jobs/batch", json={"jobs": [GENERATE] * 2})
    assert (two.status_code, two.headers["ratelimit"]) == (202, '"unfinished-jobs";r=1')
    # What is answered again spends nothing, and counts nothing.
    again = keyed("/v1/jobs", json=GENERATE, headers={"Idempotency-Key": "a"})
    assert (again.headers["ratelimit-policy"], again.headers.get("ratelimit")) == (POLICY, None)
    refused = keyed("/v1/jobs/batch", json={"jobs": [GENERATE] * 2})
    assert refused.status_code == 429
    assert (refused.headers["ratelimit"], refused.headers["retry-after"]) == ('"unfinished-jobs";r=1;t=5', "5")
    assert refused.headers["ratelimit-policy"] == POLICY
    id = keyed("/v1/jobs", json=GENERATE).json()["id"]
    for path, body in [
        ("/v1/jobs", GENERATE),
        ("/v1/images/generations", {"prompt": "a cat"}),
    ]:
        full = keyed(path, json=body)
        assert (full.status_code, full.headers["ratelimit"]) == (429, '"unfinished-jobs";r=0;t=5'), path
    assert keyed(f"/v1/jobs/{id}/cancel").status_code == 200
    retried = keyed(f"/v1/jobs/{id}/retry")
    assert (retried.status_code, retried.headers["ratelimit"]) == (202, '"unfinished-jobs";r=0')


def test_an_image_that_was_drawn_says_what_is_left(keyed: Callable[..., httpx.Response], hand: FakeWorker) -> None:
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(keyed, "/v1/images/generations", json={"prompt": "a cat"})
        id = hand.await_next()
        hand.claim(id)
        hand.succeed(id, png())
        answer = drawing.result(PATIENT)
    assert (answer.status_code, answer.headers["ratelimit"]) == (200, '"unfinished-jobs";r=3')
    assert answer.headers["ratelimit-policy"] == POLICY


def test_without_a_quota_there_is_nothing_to_say(api: httpx.Client) -> None:
    answer = api.post("/v1/jobs", json=GENERATE)
    assert not [name for name in answer.headers if name.startswith("ratelimit")]
    assert quota_headers(None, None) == {}
