"""Webhooks, delivered to a real HTTP server and verified as a receiver would."""

from __future__ import annotations

import json
import threading
import time
from urllib.parse import parse_qsl
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from shared.objects.signed_urls import UrlSigner
from shared.settings import Settings
from tests.support.api_server import FakeWorker, png, serving
from tests.support.waiting import PATIENT, eventually
from tests.support.webhooks import SECRET, Receiver, Sender
from tuwen.errors import Conflict, NotFound
from tuwen.jobs import JobRequest
from workers.housekeeper import webhooks


def test_signed_and_delivered_once(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings)
    id = sender.cancelled_job(receiver.url)
    assert sender.deliver() == 1
    assert sender.deliver() == 0
    [(headers, body)] = receiver.deliveries
    event = Webhook(SECRET).verify(body, headers)
    assert event["type"] == "job.cancelled"
    assert event["data"] == {"id": str(id), "status": "cancelled"}
    [row] = sender.rows()
    assert (row.delivered_at is not None, row.due_at, headers["webhook-id"]) == (True, None, str(row.id))


def test_receivers_may_change_secrets_one_by_one(settings: Settings, receiver: Receiver) -> None:
    """Standard Webhooks: while secrets are rotated, a message bears a signature by each."""
    new = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    sender = Sender(settings, webhook_secret=SecretStr(f"{new}, {SECRET}"))
    sender.cancelled_job(receiver.url)
    sender.deliver()
    [(headers, body)] = receiver.deliveries
    for secret in (new, SECRET):
        assert Webhook(secret).verify(body, headers)["type"] == "job.cancelled"
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "A" * 32).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", headers)


def test_a_receiver_that_is_gone_is_left_alone(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings)
    sender.cancelled_job(receiver.url)
    receiver.status = 410
    sender.deliver()
    [row] = sender.rows()
    assert (row.due_at, row.error) == (None, "answered 410")


def test_many_in_one_round(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings)
    count = webhooks.AT_ONCE + 1
    sender.cancelled_jobs(receiver.url, count)
    assert sender.deliver() == count
    assert len({headers["webhook-id"] for headers, _ in receiver.deliveries}) == count


def test_a_receiver_that_hangs_delays_no_other(settings: Settings, receiver: Receiver) -> None:
    """It was tried first, has more waiting than there are places, and answers nothing while the others are served."""
    sender = Sender(settings, fetch_timeout=PATIENT)
    hanging = Receiver()
    hanging.hangs = True
    sender.cancelled_jobs(hanging.url, 2 * webhooks.AT_ONCE)
    others = sender.cancelled_jobs(receiver.url, 150)
    began = time.monotonic()
    eventually(lambda: sender.webhooks.deliver() or len(receiver.deliveries) >= len(others))
    eventually(lambda: len(delivered(sender)) == len(others))
    # The hanging one is not even given up: what passes is the time of the others.
    assert time.monotonic() - began < PATIENT / 2
    assert delivered(sender) == set(others)
    assert len(hanging.deliveries) == webhooks.FIRST_PLACES
    hanging.close()


def delivered(sender: Sender) -> set[UUID]:
    return {row.job_id for row in sender.rows() if row.delivered_at is not None}


def test_a_host_that_does_not_answer_rests_and_costs_its_webhooks_no_attempts(
    settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "FIRST_REST", PATIENT)
    monkeypatch.setattr(webhooks, "LONGEST_REST", PATIENT)
    sender = Sender(settings, fetch_timeout=1.0)
    receiver.hangs = True
    ids = sender.cancelled_jobs(receiver.url, 20)
    sender.deliver()
    sender.wait_out_the_backoff()
    assert sender.deliver() == 0
    assert sorted(row.attempts for row in sender.rows()) == [0] * 16 + [1] * webhooks.FIRST_PLACES
    receiver.hangs = False
    with sender.webhooks._hosts._guard:  # its rest is over
        sender.webhooks._hosts._hosts[receiver.host].rests_until = 0.0
    receiver.deliveries.clear()
    assert sender.webhooks.deliver() == 20, "one finds out, and the others follow in the same round"
    assert delivered(sender) == set(ids)


def test_one_delivery_at_a_time_finds_out_whether_a_host_answers_again(
    settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it has been owed for a day is given up: with one try a minute a long queue would never end."""
    monkeypatch.setattr(webhooks, "FIRST_REST", 0.0)
    sender = Sender(settings, fetch_timeout=0.5)
    receiver.hangs = True
    sender.cancelled_jobs(receiver.url, 50)
    sender.webhooks.deliver()
    eventually(lambda: not sender.webhooks._hosts.in_flight)
    assert len(receiver.deliveries) < 15, "four at first, and then one after another"
    sender.age_everything(webhooks.MAX_AGE + 1)
    sender.wait_out_the_backoff()
    sender.webhooks.deliver()
    eventually(lambda: not sender.webhooks._hosts.in_flight)
    rows = sender.rows()
    assert {row.due_at for row in rows} == {None}
    assert all("did not answer" in row.error for row in rows)


def test_what_was_not_delivered_is_counted_and_shown_and_can_be_tried_again(
    settings: Settings, receiver: Receiver
) -> None:
    sender = Sender(settings)
    store = sender.database.webhooks
    receiver.status = 410
    sender.cancelled_job(receiver.url)
    sender.deliver()
    receiver.status = 500
    sender.cancelled_job(receiver.url)
    sender.deliver()
    sender.age_everything(100)
    sender.cancelled_job(receiver.url)
    figures = store.figures()
    assert (figures.waiting, figures.late, figures.given_up) == (2, 1, 1)
    assert 100 <= figures.oldest_age < 100 + PATIENT
    gone, late, waiting = store.undelivered(most=10)
    assert (gone.state, late.state, waiting.state) == ("given up", "late", "waiting")
    assert (gone.error, late.error, waiting.error) == ("answered 410", "answered 500", None)
    assert store.undelivered(state="late", most=10) == [late]
    receiver.status = 204
    assert store.retry_given_up("elsewhere.example.com") == []
    assert store.retry_given_up(receiver.host) == [gone.id]
    store.retry([late.id])
    assert sender.deliver() == 3
    assert store.figures().waiting == store.figures().given_up == 0
    assert receiver.deliveries[0][0]["webhook-id"] in {h["webhook-id"] for h, _ in receiver.deliveries[2:]}
    with pytest.raises(Conflict):
        store.retry([late.id])
    with pytest.raises(NotFound):
        store.retry([late.job_id])


def test_a_housekeeper_that_stops_does_not_wait_for_receivers_that_hang(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings, fetch_timeout=PATIENT)
    receiver.hangs = True
    sender.cancelled_job(receiver.url)
    round_ = threading.Thread(target=sender.webhooks.deliver)
    round_.start()
    eventually(lambda: receiver.deliveries)
    began = time.monotonic()
    sender.webhooks.close(0.1)
    round_.join(PATIENT)
    assert time.monotonic() - began < PATIENT / 2
    assert sender.webhooks.deliver() == 0


def test_a_receiver_in_trouble_is_tried_again_under_the_same_id(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings)
    sender.cancelled_job(receiver.url)
    receiver.status = 500
    sender.deliver()
    assert sender.deliver() == 0, "not before the backoff is over"
    sender.wait_out_the_backoff()
    receiver.status = 200
    sender.deliver()
    first, second = receiver.deliveries
    assert first[0]["webhook-id"] == second[0]["webhook-id"]
    assert json.loads(first[1]) == json.loads(second[1])


def test_given_up_after_the_last_attempt(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings)
    sender.cancelled_job(receiver.url)
    receiver.status = 500
    for _ in range(webhooks.MAX_ATTEMPTS + 3):
        sender.wait_out_the_backoff()
        sender.deliver()
    assert len(receiver.deliveries) == webhooks.MAX_ATTEMPTS
    [row] = sender.rows()
    assert (row.due_at, row.delivered_at, row.error) == (None, None, "answered 500")


def test_a_private_address_is_never_dialled(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings, fetch_allow_networks=())
    sender.cancelled_job(receiver.url)
    sender.deliver()
    assert receiver.deliveries == []
    [row] = sender.rows()
    assert row.error


def test_nothing_is_sent_unsigned(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings, webhook_secret=None)
    sender.cancelled_job(receiver.url)
    assert sender.deliver() == 0
    assert receiver.deliveries == []


def test_an_api_with_a_secret_takes_them(settings: Settings) -> None:
    signing = Settings(**{**settings.model_dump(exclude_unset=True), "webhook_secret": SECRET})
    body = {"input": {"kind": "generate", "prompt": "猫"}, "webhook": "https://example.com/hook"}
    with serving(signing) as url:
        assert httpx.post(f"{url}/v1/jobs", json=body).status_code == 202
    with serving(settings) as url:
        refused = httpx.post(f"{url}/v1/jobs", json=body)
    assert refused.status_code == 422
    assert "TUWEN_WEBHOOK_SECRET" in refused.text


def test_a_drawn_image_comes_with_its_url(settings: Settings, receiver: Receiver) -> None:
    hand = FakeWorker(settings)
    for public_url in (None, "https://tuwen.example/"):
        sender = Sender(settings, public_url=public_url)
        request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "猫"}, "webhook": receiver.url})
        [id] = sender.database.jobs.submit([request], tenant="t").ids
        hand.claim(id)
        hand.succeed(id, png())
        assert sender.deliver() == 1
        headers, body = receiver.deliveries[-1]
        data = Webhook(SECRET).verify(body, headers)["data"]
        if public_url is None:
            # Nothing says here where the API is.
            assert data == {"id": str(id), "status": "succeeded"}
            continue
        path, _, query = data["result_url"].removeprefix("https://tuwen.example").partition("?")
        assert path == f"/v1/jobs/{id}/image"
        assert UrlSigner(settings, sender.database).verify(path, parse_qsl(query)) is None
        with serving(settings) as url:
            assert httpx.get(f"{url}{path}?{query}").content == png()
    hand.close()
