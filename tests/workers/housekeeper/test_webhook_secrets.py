"""Whose secret signs a webhook: that of the key, or of the installation, and both while they are changed."""

from __future__ import annotations

import json
import subprocess
import sys
from uuid import UUID

import httpx
from pydantic import SecretStr

from api.embedded.addresses import as_environment
from api.http.auth import new_key, new_webhook_secret
from shared.database import Database
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.plain_sql import Sql
from tests.support.waiting import eventually
from tests.support.webhooks import SECRET, KeyedSender, Receiver, signers


def test_each_key_signs_with_its_own_secret(settings: Settings, receiver: Receiver) -> None:
    first, second = (new_webhook_secret().get_secret_value() for _ in range(2))
    sender = KeyedSender(settings)
    keys = [sender.key("first", first), sender.key("second", second), sender.key("early", None)]
    jobs = [str(sender.cancelled_job_of(key, receiver.url)) for key in keys]
    jobs.append(str(sender.cancelled_job(receiver.url)))  # of an early release, which did not note the key
    assert sender.deliver() == 4
    # One tenant's secret says nothing of another's webhooks; what has none of its own is signed as before.
    assert signers(receiver, first, second, SECRET) == dict(
        zip(jobs, ({first}, {second}, {SECRET}, {SECRET}), strict=True)
    )


def test_a_secret_is_rotated_with_an_overlap(settings: Settings, receiver: Receiver, sql: Sql) -> None:
    old, new, newest = (new_webhook_secret().get_secret_value() for _ in range(3))
    sender = KeyedSender(settings)
    own, early = sender.key("own", old), sender.key("early", None)

    def signed(key: UUID) -> set[str]:
        receiver.deliveries.clear()
        id = sender.cancelled_job_of(key, receiver.url)
        sender.deliver()
        return signers(receiver, old, new, newest, SECRET)[str(id)]

    for key, before in ((own, old), (early, SECRET)):
        sender.database.keys.rotate_webhook_secret(key, SecretStr(new), 3600)
        assert signed(key) == {new, before}
    sql("UPDATE api_keys SET old_webhook_secret_until = now() - interval '1 second'")
    assert signed(own) == signed(early) == {new}
    sender.database.keys.rotate_webhook_secret(own, SecretStr(newest), 0)  # in an emergency
    assert signed(own) == {newest}


def test_only_keys_with_a_secret_send_where_the_installation_has_none(settings: Settings, receiver: Receiver) -> None:
    """The webhooks of the others wait, and lose no attempt."""
    own = new_webhook_secret().get_secret_value()
    sender = KeyedSender(settings, webhook_secret=None)
    waiting = sender.cancelled_job_of(sender.key("early", None), receiver.url)
    sent = sender.cancelled_job_of(sender.key("own", own), receiver.url)
    assert sender.deliver() == 1
    assert signers(receiver, own) == {str(sent): {own}}
    assert {row.job_id: row.attempts for row in sender.rows()} == {waiting: 0, sent: 1}
    assert sender.database.webhooks.figures().shared == 1  # `tuwen doctor` tells of it


def test_who_may_ask_for_webhooks(settings: Settings, database: Database, receiver: Receiver) -> None:
    """Without a secret of the installation, those whose key has one; the command makes keys with one, and shows it."""
    locked = settings.model_copy(update={"auth": "keys", "fetch_allow_networks": ("127.0.0.0/8",)})
    early, digest = new_key()
    id = database.keys.add(name="early", tenant="early", sha256=digest, quota=5)

    def keys(*words: str) -> str:
        program = [sys.executable, "-m", "api.cli", "keys", *words]
        done = subprocess.run(program, env=as_environment(locked), capture_output=True, text=True, check=True)
        return done.stdout

    made = json.loads(keys("create", "own", "--json"))
    with serving(locked) as url:

        def asked(key: str) -> int:
            wanted = {"input": {"kind": "generate", "prompt": "a cat"}, "webhook": receiver.url}
            headers = {"Authorization": f"Bearer {key}"}
            return httpx.post(f"{url}/v1/jobs", json=wanted, headers=headers).status_code

        assert (asked(early), asked(made["key"])) == (422, 202)
        rotated = keys("rotate-webhook-secret", str(id), "--overlap", "1").strip()
        eventually(lambda: asked(early) == 202)
    for tenant in ("own", "early"):
        for job in database.jobs.page(tenant):
            database.jobs.cancel(job.id, tenant)
    KeyedSender(locked, webhook_secret=None).deliver()
    verified = signers(receiver, made["webhook_secret"], rotated)
    assert sorted(map(list, verified.values())) == sorted([[made["webhook_secret"]], [rotated]])
