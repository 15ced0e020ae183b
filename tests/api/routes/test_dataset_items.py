"""Lists of a data set's images over HTTP: every order and filter, page by page, against what a plain sort says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api.http.auth import new_key
from api.routes import dataset_items
from shared.database import Database
from shared.database.shards import ShardProgress
from shared.objects import dataset_index
from shared.objects.datasets import Planned, plan_key, preview_key, results_key, write_plan, write_results
from shared.objects.storage import ObjectStore
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.system import TENANT
from tuwen.annotations import Annotation, Caption, Drop, DropReason, Provenance
from tuwen.client import Client
from tuwen.datasets import DatasetRequest, ReviewRequest
from tuwen.errors import NotFound
from tuwen.jobs import JobError

MADE = Provenance(model="m", software="tuwen", created_at=datetime(2026, 11, 21, tzinfo=UTC))
ORDERS = ("number", "score", "confidence", "-score", "-confidence")


def annotation(number: int, rng: random.Random) -> Annotation:
    """An annotation of a kind that depends on its number; many share a score."""
    name = f"{number:06d}.png"
    if number % 17 == 3:
        return Annotation(name=name, error=JobError(code="image_corrupt", detail="It is cut short."))
    if number % 17 == 5:
        return Annotation(name=name, drop=Drop(reason=DropReason.TOO_SMALL, detail="8 pixels"))
    said = Caption(
        text=f"图 {number}",
        language="zh",
        style="short",
        confidence=rng.random(),
        score=rng.randrange(10) / 10 if number % 5 else None,
        out_of_domain=number % 13 == 0,
        provenance=MADE,
    )
    return Annotation(name=name, captions=(said,))


class Filled:
    """A data set whose shards were run by hand; `known` is what was written of each image."""

    def __init__(self, settings: Settings, images: int, shard_size: int):
        self.settings = settings
        self.database = Database(settings)
        self._store = ObjectStore.open(settings)
        self.id = self.database.datasets.submit(DatasetRequest(source="/s", destination=f"/d{uuid4()}"), TENANT)
        self.known: list[Annotation] = []
        self._claim = self.database.datasets.take(self.id, "h")
        self.shards: list[UUID] = []
        rng = random.Random(1)
        for number, first in enumerate(range(0, images, shard_size)):
            self._add(number, [annotation(each, rng) for each in range(first, min(images, first + shard_size))])
        self.database.datasets.mark_planned(self._claim)

    def _add(self, number: int, found: list[Annotation]) -> None:
        shard = uuid4()
        plan, results = plan_key(self.id, number, 1), results_key(self.id, number, 1)
        write_plan(self._store, plan, [Planned({"name": each.name}).line() for each in found])
        assert self.database.datasets.add_shard(self._claim, shard, number, len(found), plan, 0.0)
        claim = self.database.shards.claim(shard, 5, "w")
        assert claim is not None
        lines = [each.model_dump_json(exclude_defaults=True).encode() for each in found]
        write_results(self._store, results, lines)
        failed = sum(each.error is not None for each in found)
        assert self.database.shards.finish(claim, results, ShardProgress(len(found) - failed, failed))
        self.known += found

    def review(self, number: int, **said: Any) -> None:
        self.database.datasets.review(self.id, number, ReviewRequest(author="Ann", **said))


@pytest.fixture
def filled(settings: Settings) -> Iterator[Filled]:
    filled = Filled(settings, images=230, shard_size=25)
    filled.review(7, verdict="accepted")
    filled.review(7, text="better")
    filled.review(9, verdict="rejected")
    filled.review(200, verdict="rejected")
    filled.review(200, verdict="accepted")
    filled.review(11, text="more words")
    yield filled
    filled.database.close()


def listed(api: httpx.Client, id: UUID, **asked: Any) -> list[dict[str, Any]]:
    """All pages of a list, in one."""
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = api.get(f"/v1/datasets/{id}/items", params={"limit": 40, **asked, **cursor}).raise_for_status().json()
        assert page["before"] in (None, len(found))
        found += page["items"]
        if page["next"] is None:
            assert page["total"] in (None, len(found))
            return found
        cursor = {"cursor": page["next"]}


def expected(filled: Filled, only: str | None) -> set[int]:
    reviewed = {7, 9, 11, 200}
    sets = {"accepted": {7, 200}, "rejected": {9}, "edited": {7, 11}, "reviewed": reviewed}
    if only in sets:
        return sets[only]
    every = dict(enumerate(filled.known))
    if only == "unreviewed":
        return every.keys() - reviewed
    passes = {
        None: lambda each: True,
        "annotated": lambda each: each.ok,
        "failed": lambda each: each.error is not None,
        "dropped": lambda each: each.drop is not None,
        "out_of_domain": lambda each: any(caption.out_of_domain for caption in each.captions),
    }
    return {number for number, each in every.items() if passes[only](each)}


FILTERS = (
    None, "annotated", "failed", "dropped", "out_of_domain", "accepted", "rejected", "edited", "reviewed", "unreviewed",
)  # fmt: skip


@pytest.mark.parametrize("only", FILTERS)
def test_every_order_of_every_filter(api: httpx.Client, filled: Filled, only: str | None) -> None:
    wanted = expected(filled, only)
    assert wanted
    for order in ORDERS:
        found = listed(api, filled.id, sort=order, **({"only": only} if only else {}))
        numbers = [item["number"] for item in found]
        assert sorted(numbers) == sorted(wanted)
        if order == "number":
            assert numbers == sorted(numbers)
            continue
        values = [_value(filled.known[number], order.removeprefix("-")) for number in numbers]
        known = [value for value in values if value is not None]
        assert values == known + [None] * (len(values) - len(known)), "what is not known comes last"
        assert known == sorted(known, reverse=order.startswith("-"))
        assert all(item["annotation"]["name"] == f"{item['number']:06d}.png" for item in found)


def _value(known: Annotation, what: str) -> float | None:
    return getattr(known.captions[0], what) if known.captions else None


@pytest.mark.parametrize("only", FILTERS)
def test_more_images_than_are_indexed_at_once(
    api: httpx.Client, filled: Filled, only: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_items, "MOST_INDEXED", 60)
    monkeypatch.setattr(dataset_index, "MOST_KEPT", 60)
    found = listed(api, filled.id, **({"only": only} if only else {}))
    assert [item["number"] for item in found] == sorted(expected(filled, only))
    refused = api.get(f"/v1/datasets/{filled.id}/items", params={"sort": "score"})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "sort")


def test_cursors_of_other_lists(api: httpx.Client, filled: Filled) -> None:
    for asked in ({"cursor": "x"}, {"cursor": "1:2:3", "sort": "score"}, {"cursor": "5", "sort": "score"}):
        assert api.get(f"/v1/datasets/{filled.id}/items", params=asked).status_code == 422
    assert api.get(f"/v1/datasets/{filled.id}/items", params={"cursor": "99999"}).json()["items"] == []
    assert listed(api, filled.id)[-1]["number"] == 229


def test_keys_sign_and_take_back_only_their_own(settings: Settings, filled: Filled) -> None:
    clients = []
    with serving(settings.model_copy(update={"auth": "keys"})) as url:
        for name, tenant in (("Ann", TENANT), ("Bo", TENANT), ("Eve", "others")):
            key, digest = new_key()
            filled.database.keys.add(name=name, tenant=tenant, sha256=digest, quota=5)
            clients.append(Client(url, key))
        ann, bo, eve = (client.datasets for client in clients)
        said = ann.review(filled.id, 50, ReviewRequest(author="Bo", verdict="rejected")).reviews[0]
        assert said.author == "Ann"
        assert said.id is not None
        for stranger in (bo, eve):
            with pytest.raises(NotFound):
                stranger.withdraw(filled.id, 50, said.id)
        assert ann.withdraw(filled.id, 50, said.id).reviews == ()
        for client in clients:
            client.close()


def test_reviews_are_taken_back_one_by_one(api: httpx.Client, filled: Filled) -> None:
    place = f"/v1/datasets/{filled.id}/items/42/reviews"
    assert api.post(place, json={"verdict": "accepted"}).status_code == 422, "without keys it says whose it is"
    api.post(place, json={"author": "Ann", "verdict": "accepted"}).raise_for_status()
    newest = api.post(place, json={"author": "Bo", "text": "一只猫", "language": "zh"}).json()["reviews"][0]
    assert api.delete(f"/v1/datasets/{filled.id}/items/41/reviews/{newest['id']}").status_code == 404
    left = api.delete(f"{place}/{newest['id']}").json()["reviews"]
    assert [(said["author"], said["verdict"]) for said in left] == [("Ann", "accepted")]
    assert api.delete(f"{place}/{newest['id']}").status_code == 404


def test_a_review_is_written_once_under_its_key(api: httpx.Client, filled: Filled) -> None:
    path, key = f"/v1/datasets/{filled.id}/items/0/reviews", {"Idempotency-Key": "r"}
    review = {"author": "alice", "text": "a cat", "language": "en"}
    first = api.post(path, json=review, headers=key)
    assert first.status_code == 201
    assert api.post(path, json=review, headers=key).json()["reviews"] == first.json()["reviews"]
    assert api.post(path, json={**review, "text": "a dog"}, headers=key).json()["code"] == "idempotency_mismatch"
    assert len(api.get(path.removesuffix("/reviews")).json()["reviews"]) == 1


def test_links_lead_from_page_to_page_and_back(api: httpx.Client, filled: Filled) -> None:
    first = api.get(f"/v1/datasets/{filled.id}/items", params={"limit": 60})
    assert set(first.links) == {"next"}
    pages, answer = [first], first
    while "next" in answer.links:
        answer = api.get(answer.links["next"]["url"])
        pages.append(answer)
    numbers = [[item["number"] for item in page.json()["items"]] for page in pages]
    assert [number for page in numbers for number in page] == list(range(230))
    for page, before in zip(pages[1:], numbers, strict=False):
        back = api.get(page.links["prev"]["url"])
        assert [item["number"] for item in back.json()["items"]] == before
    # From the middle of a page, what is before is shorter, and overlaps with nothing.
    middle = api.get(f"/v1/datasets/{filled.id}/items", params={"limit": 60, "cursor": 9})
    assert [item["number"] for item in api.get(middle.links["prev"]["url"]).json()["items"]] == list(range(10))


def test_a_list_that_cannot_go_back_has_no_link_back(api: httpx.Client, filled: Filled) -> None:
    path = f"/v1/datasets/{filled.id}/items"
    for asked in ({"sort": "-score"}, {"only": "annotated"}):
        first = api.get(path, params={"limit": 20, **asked})
        second = api.get(first.links["next"]["url"])
        assert set(second.links) == {"next"}
        assert second.json()["items"] != first.json()["items"]
        name, value = next(iter(asked.items()))
        assert f"{name}={value}" in first.links["next"]["url"], "what was asked for stays"


def test_each_image_says_where_its_preview_is(api: httpx.Client, filled: Filled) -> None:
    [listed_item, *_] = api.get(f"/v1/datasets/{filled.id}/items").json()["items"]
    shown = api.get(f"/v1/datasets/{filled.id}/items/0").json()
    ObjectStore.open(filled.settings).put(preview_key(filled.id, 0), b"a small jpeg", "image/jpeg")
    for item in (listed_item, shown):
        bare = httpx.get(item["preview_url"])
        assert (bare.status_code, bare.content, bare.headers["content-type"]) == (200, b"a small jpeg", "image/jpeg")
    part = httpx.get(shown["preview_url"], headers={"Range": "bytes=2-6"})
    assert (part.status_code, part.content) == (206, b"small")
