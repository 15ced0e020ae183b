"""Signed URLs: fetched bare, for a limited time, and never at a stranger's address."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import UUID, uuid4

import httpx
import pytest

from api.http.auth import new_key
from shared.database import Database
from shared.objects import signed_urls
from shared.objects.signed_urls import ResultUrls, UrlSigner
from shared.objects.storage import ObjectStore
from shared.openai.batch_lines import answer_line
from shared.settings import Settings
from tests.support.api_server import FakeWorker, png, serving
from tests.support.s3 import serve_s3
from tests.support.waiting import PATIENT
from tuwen.errors import ConfigurationError, Forbidden, LinkExpired
from tuwen.jobs import Job

GENERATE = {"input": {"kind": "generate", "prompt": "a cat"}}


@contextmanager
def connected(settings: Settings, key: str | None = None) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with serving(settings) as url, httpx.Client(base_url=url, timeout=PATIENT, headers=headers) as api:
        yield api


def drawn(api: httpx.Client, hand: FakeWorker, image: bytes) -> dict[str, Any]:
    """A job that has an image, as the API shows it."""
    id = UUID(api.post("/v1/jobs", json=GENERATE).json()["id"])
    hand.claim(id)
    hand.succeed(id, image)
    job: dict[str, Any] = api.get(f"/v1/jobs/{id}").json()
    return job


class Tenants:
    """Keys of an installation."""

    def __init__(self, database: Database):
        self._database = database

    def key(self, tenant: str) -> tuple[str, UUID]:
        key, digest = new_key()
        return key, self._database.keys.add(name=tenant, tenant=tenant, sha256=digest, quota=100)

    def revoke(self, id: UUID) -> None:
        self._database.keys.revoke(id)


@pytest.fixture
def tenants(database: Database) -> Tenants:
    return Tenants(database)


@pytest.fixture
def locked(settings: Settings) -> Settings:
    return settings.model_copy(update={"auth": "keys"})


def test_a_result_url_needs_no_key_and_ends_with_it(locked: Settings, hand: FakeWorker, tenants: Tenants) -> None:
    key, id = tenants.key("alice")
    another, _ = tenants.key("alice")
    with connected(locked, key) as api, connected(locked, another) as other_process:
        url = drawn(api, hand, png("red"))["result_url"]
        answer = httpx.get(url)
        assert (answer.status_code, answer.content) == (200, png("red"))
        assert httpx.head(url).headers["content-length"] == str(len(png("red")))
        assert httpx.get(url, headers={"Range": "bytes=0-3"}).content == png("red")[:4]
        # Every API process knows the signature of every other.
        elsewhere = urlsplit(url)._replace(netloc=urlsplit(str(other_process.base_url)).netloc).geturl()
        assert httpx.get(elsewhere).content == png("red")
        # The same in lists, and the key's own requests still need no signature.
        listed = api.get("/v1/jobs").json()["jobs"][0]["result_url"]
        assert httpx.get(listed).status_code == 200
        tenants.revoke(id)
        revoked = httpx.get(url)
        assert (revoked.status_code, revoked.json()["code"]) == (403, "forbidden")
        assert "revoked" in revoked.json()["detail"]
        # Another key of the same tenant makes URLs that hold.
        path = urlsplit(url).path
        job_id = path.split("/")[3]
        shown = other_process.get(f"/v1/jobs/{job_id}").json()["result_url"]
        assert httpx.get(shown).content == png("red")


def test_openai_s_urls_need_no_key_either(locked: Settings, hand: FakeWorker, tenants: Tenants) -> None:
    key, id = tenants.key("alice")
    with connected(locked, key) as api, ThreadPoolExecutor(1) as pool:
        asked = {"prompt": "a cat", "response_format": "url"}
        drawing = pool.submit(api.post, "/v1/images/generations", json=asked)
        job = hand.await_next()
        hand.claim(job)
        hand.succeed(job, png("red"))
        url = drawing.result(PATIENT).json()["data"][0]["url"]
        assert httpx.get(url).content == png("red")
        tenants.revoke(id)
        assert httpx.get(url).status_code == 403


def test_urls_that_are_made_without_a_request(locked: Settings, hand: FakeWorker, tenants: Tenants) -> None:
    """As webhooks and the answers of batches have them: they hold while the tenant has any key."""
    (key, first), (_, second) = tenants.key("alice"), tenants.key("alice")
    tenants.key("bob")
    database, store = Database(locked), ObjectStore.open(locked)
    with connected(locked, key) as api:
        job = Job.model_validate(drawn(api, hand, png("red")))
        urls = ResultUrls(UrlSigner(locked, database), str(api.base_url).rstrip("/"))
        line = json.loads(answer_line(locked, store, urls, "/v1/images/generations", "a", "url", job))
        url = line["response"]["body"]["data"][0]["url"]
        for revoked, status in ((first, 200), (second, 403)):
            tenants.revoke(revoked)
            assert httpx.get(url).status_code == status
    database.close()


def test_a_changed_url_is_refused(
    locked: Settings, hand: FakeWorker, tenants: Tenants, subtests: pytest.Subtests
) -> None:
    with connected(locked, tenants.key("alice")[0]) as api:
        mine, another = drawn(api, hand, png("red")), drawn(api, hand, png("blue"))
        parts = urlsplit(mine["result_url"])
        query = dict(parse_qsl(parts.query))
        for name, path, changed in [
            ("another job", f"/v1/jobs/{another['id']}/image", query),
            ("later", parts.path, {**query, "expires": str(int(query["expires"]) + 1)}),
            ("for another key", parts.path, {**query, "key": uuid4().hex}),
            ("for no key", parts.path, {name: value for name, value in query.items() if name != "key"}),
            ("another candidate", parts.path, {**query, "candidate": "1"}),
            ("no signature", parts.path, {**query, "signature": ""}),
            ("not ASCII", parts.path, {**query, "signature": "ü"}),
            ("another signature", parts.path, {**query, "signature": "0" * 64}),
        ]:
            with subtests.test(name):
                answer = httpx.get(f"{api.base_url}{path}?{urlencode(changed)}")
                assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
                assert "signature" in answer.json()["detail"]
        # It opens one door only.
        for door in (f"/v1/jobs/{mine['id']}", f"/v1/jobs/{mine['id']}/events", "/v1/jobs"):
            assert httpx.get(f"{api.base_url}{door}?{parts.query}").status_code == 401


def test_an_expired_url_says_so(settings: Settings, hand: FakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(settings) as api:
        url = drawn(api, hand, png())["result_url"]
        until = int(dict(parse_qsl(urlsplit(url).query))["expires"])
        monkeypatch.setattr(signed_urls.time, "time", lambda: until - 1.0)
        assert httpx.get(url).status_code == 200
        monkeypatch.setattr(signed_urls.time, "time", lambda: until + 1.0)
        answer = httpx.get(url)
        assert (answer.status_code, answer.json()["code"]) == (410, "link_expired")
        assert httpx.get(api.get(f"/v1/jobs/{url.split('/')[5]}").json()["result_url"]).status_code == 200


def test_urls_of_one_minute_are_equal(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = UrlSigner(Settings(result_url_ttl=600), database)
    monkeypatch.setattr(signed_urls.time, "time", lambda: 6000.0)
    first = signer.sign("/a", [("b", "c")])
    monkeypatch.setattr(signed_urls.time, "time", lambda: 5941.0)
    assert signer.sign("/a", [("b", "c")]) == first
    assert "expires=6600&" in first
    query = parse_qsl(first.partition("?")[2])
    assert signer.verify("/a", query) is None
    with pytest.raises(Forbidden):
        signer.verify("/A", query)
    monkeypatch.setattr(signed_urls.time, "time", lambda: 6601.0)
    with pytest.raises(LinkExpired):
        signer.verify("/a", query)


def test_one_secret_for_all_processes(database: Database) -> None:
    first, second = database.secrets.get("x"), database.secrets.get("x")
    assert first == second
    assert len(first) == 32
    assert database.secrets.get("y") != first


def test_a_bucket_is_reached_through_a_signed_url(settings: Settings, hand: FakeWorker, tmp_path: Path) -> None:
    with serve_s3(tmp_path / "s3") as s3:
        bucket = settings.model_copy(update=s3.settings("objects").model_dump(exclude_unset=True) | {"auth": "keys"})
        database = Database(bucket)
        key, id = Tenants(database).key("alice")
        worker = FakeWorker(bucket)
        with connected(bucket, key) as api:
            url = drawn(api, worker, png("red"))["result_url"]
            answer = httpx.get(url)
            assert (answer.status_code, answer.headers["cache-control"]) == (307, "private, no-store")
            assert answer.headers["location"].startswith(s3.endpoint)
            assert httpx.get(url, follow_redirects=True).content == png("red")
            database.keys.revoke(id)
            assert httpx.get(url).status_code == 403
        worker.close()
        database.close()


# ── whose address it is ───────────────────────────────────────────────────────────────────────────


def test_a_foreign_host_is_in_no_link(
    locked: Settings, hand: FakeWorker, tenants: Tenants, caplog: pytest.LogCaptureFixture
) -> None:
    key, _ = tenants.key("alice")
    with connected(locked, key) as api:
        id = drawn(api, hand, png())["id"]
        own = str(api.base_url).rstrip("/")
        for headers in (
            {"Host": "evil.example"},
            {"Host": "127.0.0.1.evil.example"},
            {"Host": "localhost@evil.example"},
            {"Host": "[::1"},
            {"Host": ""},
            {"X-Forwarded-Host": "evil.example"},
            {"Forwarded": "host=evil.example"},
        ):
            for path in (f"/v1/jobs/{id}", "/v1/jobs?limit=1"):
                answer = api.get(path, headers=headers)
                shown = answer.json() if "id" in answer.json() else answer.json()["jobs"][0]
                assert shown["result_url"].startswith(f"{own}/v1/jobs/{id}/image?"), headers
                assert "evil" not in answer.text + str(answer.headers)
        for path in ("/", "/v1/jobs/", "/datasets/?a=b"):
            page = api.get(path, headers={"Host": "evil.example"}, follow_redirects=False)
            assert "evil" not in page.text + str(page.headers)
    # Whoever runs the installation under another name learns of it, once.
    [said] = [record.getMessage() for record in caplog.records if "TUWEN_PUBLIC_HOSTS" in record.getMessage()]
    assert own.removeprefix("http://") in said


@pytest.mark.parametrize(
    ("changed", "host", "base"),
    [
        ({}, "localhost:8123", "http://localhost:8123"),
        ({}, "user@localhost/x", "http://localhost"),
        ({"public_hosts": ("gpu1.lan",)}, "GPU1.lan:8123", "http://gpu1.lan:8123"),
        ({"public_url": "https://tuwen.example/base/"}, "evil.example", "https://tuwen.example/base"),
    ],
)
def test_the_address_of_links(
    locked: Settings, hand: FakeWorker, tenants: Tenants, changed: dict[str, Any], host: str, base: str
) -> None:
    with connected(locked.model_copy(update=changed), tenants.key("alice")[0]) as api:
        id = drawn(api, hand, png())["id"]
        drawn(api, hand, png("red"))
        shown = api.get(f"/v1/jobs/{id}", headers={"Host": host}).json()["result_url"]
        assert shown.startswith(f"{base}/v1/jobs/{id}/image?")
        link = api.get("/v1/jobs", params={"limit": 1}, headers={"Host": host}).headers["link"]
        assert link.startswith(f"<{base}/v1/jobs?limit=1&cursor=")


@pytest.mark.parametrize(
    "wrong", [{"public_hosts": "a:80"}, {"public_hosts": "http://a"}, {"trusted_proxies": "*"}, {"public_url": "a"}]
)
def test_what_is_no_address(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=f"TUWEN_{next(iter(wrong)).upper()}"):
        Settings.model_validate(wrong)


def test_forwarded_headers_count_from_trusted_proxies_only(
    locked: Settings, hand: FakeWorker, tenants: Tenants
) -> None:
    key, _ = tenants.key("alice")
    https = {"X-Forwarded-Proto": "https"}
    for trusted, scheme in ((("127.0.0.1",), "https"), (("10.0.0.0/8",), "http")):
        with connected(locked.model_copy(update={"trusted_proxies": trusted}), key) as api:
            id = drawn(api, hand, png())["id"]
            shown = api.get(f"/v1/jobs/{id}", headers=https).json()["result_url"]
            assert shown.startswith(f"{scheme}://")


def test_previews_of_data_sets_are_signed_too(locked: Settings, tenants: Tenants, database: Database) -> None:
    key, id = tenants.key("alice")
    dataset = uuid4()
    url = ResultUrls(UrlSigner(locked, database), "", id).preview(dataset, 7)
    assert re.fullmatch(rf"/v1/datasets/{dataset}/items/7/preview\?expires=\d+&key=\w+&signature=\w+", url)
    with connected(locked, key) as api:
        assert httpx.get(f"{api.base_url}{url}").json()["code"] == "not_found"
        assert httpx.get(f"{api.base_url}{url}0").json()["code"] == "forbidden"
        assert httpx.get(f"{api.base_url}{url.partition('?')[0]}").json()["code"] == "unauthorized"


def test_the_secret_survives_the_process(database: Database, settings: Settings) -> None:
    signer = UrlSigner(settings, database)
    assert not signer.ready
    url = signer.sign("/a")
    assert signer.ready
    again = Database(settings)
    UrlSigner(settings, again).verify("/a", parse_qsl(url.partition("?")[2]))
    again.close()
