"""Data sets over HTTP, before any worker has touched them: what is accepted, shown, watched and listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api.http.auth import new_key
from shared.database import Database
from shared.database.shards import ShardProgress
from shared.objects.datasets import (
    Planned,
    folder,
    plan_key,
    preview_key,
    results_key,
    write_plan,
    write_results,
)
from shared.objects.storage import ObjectStore
from shared.queue import DATASETS_QUEUE
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.waiting import eventually
from tuwen.annotations import Annotation, Caption, Drop, DropReason, Provenance
from tuwen.datasets import DatasetRequest
from tuwen.jobs import JobError

T = "local"
MADE = Provenance(model="m", revision="r", software="tuwen 0", worker="w", created_at="2026-01-01T00:00:00Z")


def submit(api: httpx.Client, **wishes: Any) -> httpx.Response:
    return api.post("/v1/datasets", json={"source": "/source", "destination": "/out", **wishes})


def said(number: int, score: float | None, confidence: float, **more: Any) -> Annotation:
    caption = Caption(
        text=f"caption {number}", language="en", style="short", confidence=confidence, score=score, provenance=MADE
    )
    return Annotation(name=f"{number}.png", captions=(caption,), **more)


def annotated(settings: Settings, database: Database, id: UUID, *shards: list[Annotation]) -> None:
    """Annotate as a worker would."""
    store = ObjectStore.open(settings)
    claim = database.datasets.take(id, "h")
    assert claim is not None
    for number, images in enumerate(shards):
        plan, results, shard = plan_key(id, number, 1), results_key(id, number, 1), uuid4()
        write_plan(store, plan, [Planned({"name": each.name, "path": each.name}).line() for each in images])
        write_results(store, results, [each.model_dump_json().encode() for each in images])
        database.datasets.add_shard(claim, shard, number, len(images), plan, 0.0)
        running = database.shards.claim(shard, 5, "w")
        assert running is not None
        failed = sum(each.error is not None for each in images)
        database.shards.finish(running, results, ShardProgress(len(images) - failed, failed, 0, 30))


class TestSubmission:
    def test_is_kept_and_told_to_the_housekeepers(self, api: httpx.Client, settings: Settings) -> None:
        answer = submit(api, languages=["zh"], priority=7)
        assert answer.status_code == 202
        dataset = answer.json()
        assert answer.headers["location"] == f"/v1/datasets/{dataset['id']}"
        assert (dataset["status"], dataset["priority"], dataset["request"]["languages"]) == ("planning", 7, ["zh"])
        assert api.get(f"/v1/datasets/{dataset['id']}").json() == dataset
        assert [each["id"] for each in api.get("/v1/datasets").json()["datasets"]] == [dataset["id"]]
        import redis

        with redis.Redis.from_url(settings.redis_url) as client:
            eventually(lambda: client.llen(DATASETS_QUEUE) == 1)

    @pytest.mark.parametrize(
        ("wishes", "status", "field"),
        [
            ({"source": "relative"}, 422, "source"),
            ({"source": 7}, 422, "source"),
            ({"source": "/a\x00b"}, 422, "source"),
            ({"destination": "s3://b/../c"}, 422, "destination"),
            ({"destination": "/source/."}, 422, "destination"),
            ({"tasks": ["generate"]}, 422, "tasks"),
            ({"languages": ["fr"]}, 422, "languages"),
            ({"shard_size": 10**9}, 422, "shard_size"),
            ({"filters": {"min_side": -1}}, 422, "filters.min_side"),
            ({"filters": {"min_score": 0.5}}, 422, ""),
            ({"unknown": 1}, 422, "unknown"),
        ],
    )
    def test_what_is_refused(self, api: httpx.Client, wishes: dict[str, Any], status: int, field: str) -> None:
        answer = submit(api, **wishes)
        assert answer.status_code == status
        problem = answer.json()
        assert any(error["field"].startswith(field) for error in problem["errors"]) or not field

    def test_sidecars_may_go_beside_the_images(self, api: httpx.Client) -> None:
        assert submit(api, destination="/source", destination_format="kohya").status_code == 202

    def test_two_runs_into_one_destination(self, api: httpx.Client) -> None:
        first = submit(api).json()["id"]
        answer = submit(api, destination="/elsewhere/../out/")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert api.post(f"/v1/datasets/{first}/cancel").json()["status"] == "cancelled"
        assert submit(api).status_code == 202

    def test_what_is_not_there(self, api: httpx.Client) -> None:
        for id in ("nonsense", str(uuid4())):
            for path in ("", "/items", "/items/0", "/items/0/preview", "/events"):
                assert api.get(f"/v1/datasets/{id}{path}").status_code == 404
            for deed in ("pause", "resume", "cancel", "retry"):
                assert api.post(f"/v1/datasets/{id}/{deed}").status_code == 404


class TestDeletion:
    def test_rows_and_objects_go(self, api: httpx.Client, settings: Settings, database: Database) -> None:
        store = ObjectStore.open(settings)
        gone, kept = (UUID(submit(api, destination=f"/out/{name}").json()["id"]) for name in ("gone", "kept"))
        for id in (gone, kept):
            annotated(settings, database, id, [said(0, None, 1.0)], [said(1, None, 1.0)])
            store.put(preview_key(id, 1), b"a picture", "image/jpeg")
            said_of_it = {"author": "alice", "verdict": "accepted"}
            assert api.post(f"/v1/datasets/{id}/items/1/reviews", json=said_of_it).status_code == 201
        before = {stored.key for stored in store.list("datasets")}
        refused = api.delete(f"/v1/datasets/{gone}")
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
        assert "cancel it first" in refused.json()["detail"]
        assert {stored.key for stored in store.list("datasets")} == before
        assert api.post(f"/v1/datasets/{gone}/cancel").status_code == 200

        answer = api.delete(f"/v1/datasets/{gone}")
        assert (answer.status_code, answer.content) == (204, b"")
        for path in ("", "/items", "/items/1", "/items/1/preview", "/events"):
            assert api.get(f"/v1/datasets/{gone}{path}").status_code == 404
        assert [each["id"] for each in api.get("/v1/datasets").json()["datasets"]] == [str(kept)]
        left = {key for key in before if str(kept) in key}
        assert len(left) == 5
        eventually(lambda: {stored.key for stored in store.list("datasets")} == left)
        assert api.get(f"/v1/datasets/{kept}/items/1").json()["reviews"]
        assert api.delete(f"/v1/datasets/{gone}").status_code == 404

    def test_what_is_not_there(self, api: httpx.Client) -> None:
        for id in ("nonsense", str(uuid4())):
            assert api.delete(f"/v1/datasets/{id}").status_code == 404

    def test_somebody_elses(self, settings: Settings, database: Database) -> None:
        id = database.datasets.submit(DatasetRequest(source="/source", destination="/out"), "owner")
        database.datasets.cancel(id, "owner")
        ObjectStore.open(settings).put(plan_key(id, 0, 1), b"plan", "application/jsonl")
        with serving(settings.model_copy(update={"auth": "keys"})) as url:
            for tenant, status in (("stranger", 404), ("owner", 204)):
                key, digest = new_key()
                database.keys.add(name=tenant, tenant=tenant, sha256=digest, quota=5)
                answer = httpx.delete(f"{url}/v1/datasets/{id}", headers={"Authorization": f"Bearer {key}"})
                assert answer.status_code == status
                assert bool(database.datasets.page("owner")) is (status == 404)

    def test_storage_that_fails_leaves_the_rest_to_the_housekeeper(
        self, api: httpx.Client, settings: Settings, database: Database, tmp_path: Path
    ) -> None:
        id = UUID(submit(api).json()["id"])
        database.datasets.cancel(id, T)
        link = tmp_path / "objects" / folder(id)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path)  # which nobody may follow to remove what is there
        assert api.delete(f"/v1/datasets/{id}").status_code == 204
        assert api.get(f"/v1/datasets/{id}").status_code == 404
        assert (tmp_path / "objects").exists()


class TestWatching:
    def test_events_until_it_is_over(self, api: httpx.Client, settings: Settings, database: Database) -> None:
        id = UUID(submit(api).json()["id"])
        seen: list[dict[str, Any]] = []
        with api.stream("GET", f"/v1/datasets/{id}/events") as stream:
            for line in stream.iter_lines():
                if not line.startswith("data: "):
                    continue
                seen.append(json.loads(line.removeprefix("data: ")))
                if len(seen) == 1:
                    annotated(settings, database, id, [said(0, None, 1.0)] * 3)
                elif len(seen) == 2:
                    database.datasets.cancel(id, T)
        assert [each["status"] for each in seen] == ["planning", "planning", "cancelled"]
        assert [each["progress"]["done"] for each in seen] == [0, 3, 3]
        assert seen[1]["progress"]["images_per_second"] > 0
        assert seen[1]["progress"]["tokens_per_second"] == pytest.approx(
            10 * seen[1]["progress"]["images_per_second"], rel=0.1
        )
        assert [each["worker"] for each in seen[1]["progress"]["workers"]] == ["w"]

    def test_figures_for_prometheus(self, api: httpx.Client, settings: Settings, database: Database) -> None:
        id = UUID(submit(api).json()["id"])
        failed = said(1, None, 1.0, error=JobError(code="boom", detail="It broke."))
        annotated(settings, database, id, [said(0, None, 1.0), failed])
        text = api.get("/metrics").text
        for line in (
            'tuwen_dataset_shards{status="done"} 1.0',
            'tuwen_dataset_images{state="done"} 1.0',
            'tuwen_dataset_images{state="failed"} 1.0',
            'tuwen_dataset_images{state="left"} 0.0',
        ):
            assert line in text
        assert "tuwen_dataset_images_per_second" in text


class TestImages:
    @pytest.fixture
    def id(self, api: httpx.Client, settings: Settings, database: Database) -> UUID:
        id = UUID(submit(api).json()["id"])
        small = Drop(reason=DropReason.TOO_SMALL, detail="8×8")
        annotated(
            settings,
            database,
            id,
            [said(0, 0.5, 0.9), said(1, 0.9, 0.2), said(2, None, 0.5)],
            [said(3, 0.1, 0.8, drop=small), Annotation(name="4.png", error=JobError(code="boom", detail="It broke."))],
            [said(5, 0.5, 0.1)],
        )
        return id

    def pages(self, api: httpx.Client, id: UUID, **parameters: Any) -> list[int]:
        found: list[int] = []
        cursor: str | None = None
        while True:
            query = parameters | ({"cursor": cursor} if cursor else {})
            answer = api.get(f"/v1/datasets/{id}/items", params={"limit": 2} | query)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            assert len(page["items"]) <= 2
            found += [item["number"] for item in page["items"]]
            cursor = page["next"]
            if cursor is None:
                return found

    def test_in_order_across_shards(self, api: httpx.Client, id: UUID) -> None:
        assert self.pages(api, id) == [0, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize(
        ("sort", "numbers"),
        [
            ("score", [3, 0, 5, 1, 2, 4]),
            ("-score", [1, 0, 5, 3, 2, 4]),
            ("confidence", [5, 1, 2, 3, 0, 4]),
            ("-confidence", [0, 3, 2, 1, 5, 4]),
        ],
    )
    def test_by_score_and_confidence(self, api: httpx.Client, id: UUID, sort: str, numbers: list[int]) -> None:
        assert self.pages(api, id, sort=sort) == numbers

    @pytest.mark.parametrize(("only", "numbers"), [("failed", [4]), ("dropped", [3]), ("annotated", [0, 1, 2, 5])])
    def test_only_some(self, api: httpx.Client, id: UUID, only: str, numbers: list[int]) -> None:
        assert self.pages(api, id, only=only) == numbers
        assert sorted(self.pages(api, id, only=only, sort="score")) == numbers

    def test_reviews(self, api: httpx.Client, id: UUID) -> None:
        path = f"/v1/datasets/{id}/items/1/reviews"
        assert api.post(path, json={"author": "alice", "verdict": "rejected"}).status_code == 201
        answer = api.post(path, json={"author": "bob", "verdict": "accepted", "text": "一只猫", "language": "zh"})
        reviews = answer.json()["reviews"]
        assert [(each["author"], each["verdict"]) for each in reviews] == [("bob", "accepted"), ("alice", "rejected")]
        assert answer.json()["annotation"]["captions"][0]["text"] == "caption 1", "the model's words stay"
        assert self.pages(api, id, only="accepted") == [1]
        assert self.pages(api, id, only="rejected") == []
        assert self.pages(api, id, only="unreviewed") == [0, 2, 3, 4, 5]
        assert api.post(path, json={"author": "alice"}).status_code == 422
        assert (
            api.post(f"/v1/datasets/{id}/items/6/reviews", json={"author": "a", "verdict": "accepted"}).status_code
            == 404
        )

    def test_reviews_of_failed_images(self, api: httpx.Client, settings: Settings, database: Database) -> None:
        id = UUID(submit(api, destination="/failed").json()["id"])
        error = JobError(code="engine_error", detail="It gave up.")
        seen = Annotation(name="0.png", width=8, height=8, error=error)
        annotated(settings, database, id, [seen, Annotation(name="1.png", error=error)])
        by = {"author": "alice"}

        def review(image: int, **said: str) -> httpx.Response:
            return api.post(f"/v1/datasets/{id}/items/{image}/reviews", json=by | said)

        for image, said, reason in (
            (0, {"verdict": "accepted"}, "write its caption, or retry the failed images"),
            (0, {"verdict": "rejected"}, "write its caption, or retry the failed images"),
            (1, {"text": "a cat"}, "could not be read (engine_error)"),
            (1, {"verdict": "rejected"}, "could not be read (engine_error)"),
        ):
            refused = review(image, **said)
            assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
            assert reason in refused.json()["detail"]
        assert database.datasets.reviews(id, range(2)) == {}
        assert review(0, text="a cat", language="en").status_code == 201
        assert review(0, verdict="accepted").status_code == 201
        [verdict, words] = api.get(f"/v1/datasets/{id}/items/0").json()["reviews"]
        assert (words["author"], words["text"], verdict["verdict"]) == ("alice", "a cat", "accepted")
        assert self.pages(api, id, only="edited") == [0]
        api.delete(f"/v1/datasets/{id}/items/0/reviews/{words['id']}")
        assert review(0, verdict="rejected").status_code == 409, "there are no words any more"
        assert review(0, text="a dog", verdict="accepted").status_code == 201

    def test_reviews_of_what_was_not_reached(self, api: httpx.Client, settings: Settings, database: Database) -> None:
        id = UUID(submit(api, destination="/early").json()["id"])
        plan = plan_key(id, 0, 1)
        write_plan(ObjectStore.open(settings), plan, [Planned({"name": "0.png", "path": "0.png"}).line()])
        claim = database.datasets.take(id, "h")
        assert claim is not None
        assert database.datasets.add_shard(claim, uuid4(), 0, 1, plan, 0.0)
        refused = api.post(f"/v1/datasets/{id}/items/0/reviews", json={"author": "alice", "text": "a cat"})
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
        assert "has not been annotated yet" in refused.json()["detail"]

    def test_one(self, api: httpx.Client, id: UUID) -> None:
        assert api.get(f"/v1/datasets/{id}/items/5").json()["annotation"]["name"] == "5.png"
        assert api.get(f"/v1/datasets/{id}/items/6").status_code == 404
        assert api.get(f"/v1/datasets/{id}/items/-1").status_code == 422

    @pytest.mark.parametrize(
        "query", [{"cursor": "x"}, {"cursor": "1:2:3", "sort": "score"}, {"sort": "nonsense"}, {"limit": 0}]
    )
    def test_what_is_no_page(self, api: httpx.Client, id: UUID, query: dict[str, Any]) -> None:
        assert api.get(f"/v1/datasets/{id}/items", params=query).status_code == 422
