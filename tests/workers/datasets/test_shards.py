"""Planning and running shards: real PostgreSQL, Redis, files and engine process; only the GPU is fake."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from PIL import Image
from sqlalchemy import text

from shared.database import Database
from shared.database.shards import ShardClaim
from shared.database.workers import ServedModel
from shared.leasing.endings import Stopped
from shared.objects.datasets import AtRisk, all_images, plan_key, read_plan, read_results, results_key, write_results
from shared.objects.storage import ObjectStore
from shared.queue import JobQueue, celery_app
from shared.queue.events import DONE
from shared.settings import Settings
from tests.support.fakes import painted
from tests.support.system import gone
from tests.support.waiting import PATIENT, eventually
from tuwen.annotations import Annotation, DropReason
from tuwen.datasets import DatasetRequest, DatasetStatus, ReviewRequest, ShardStatus
from tuwen.errors import SourceUnusable
from tuwen.jobs import Kind
from workers.datasets.planning import SAMPLE, DatasetPlanner
from workers.datasets.shards import STRIKES, ShardRunner
from workers.inference.batcher import Batcher
from workers.inference.process import EngineProcess

T = "tenant"
FAKES = {
    Kind.DESCRIBE: "import:tests.support.fakes:NullDescriber",
    Kind.RECOGNIZE: "import:tests.support.fakes:NullRecognizer",
    Kind.MATCH: "import:tests.support.fakes:NullMatcher",
}
MODELS = {kind: ServedModel(spec, f"revision of {kind}") for kind, spec in FAKES.items()}


@pytest.fixture(scope="module")
def batcher() -> Iterator[Batcher]:
    batcher = Batcher([EngineProcess(FAKES, "cpu", batch_timeout=PATIENT)])
    batcher.start()
    yield batcher
    batcher.stop(0)


def nobody_told() -> None: ...


class Installation:
    """A producer, a planner and a worker's shards, driven by hand."""

    def __init__(self, settings: Settings, folder: Path, batcher: Batcher):
        self.settings = settings
        self.source = folder / "source"
        self.source.mkdir()
        self.database = Database(settings)
        self.store = ObjectStore.open(settings)
        self.queue = JobQueue(settings)
        self.shards = ShardRunner(settings, celery_app(settings), "w@test", batcher, on_broken=lambda: None)
        self.shards._models = MODELS
        self.shards._consumer._heartbeat.start()

    def paint(self, name: str, trick: str = "nothing", size: int = 8) -> Path:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(painted(trick, size)).save(path)
        return path

    def submit(self, **wishes: Any) -> UUID:
        number = len(self.database.datasets.page(T))
        asked = {"source": str(self.source), "destination": f"/out/{number}", **wishes}
        return self.database.datasets.submit(DatasetRequest.model_validate(asked), T)

    def plan(self, id: UUID, wanted: Callable[[], None] = lambda: None) -> None:
        claim = self.database.datasets.take(id, "h")
        assert claim is not None
        try:
            DatasetPlanner(self.settings, self.database, self.store, self.queue, claim, wanted).plan()
        except Stopped:
            self.database.datasets.put_off(claim)
            raise
        assert self.database.datasets.mark_planned(claim)

    def planned(self, **wishes: Any) -> UUID:
        id = self.submit(**wishes)
        self.plan(id)
        return id

    def shard_ids(self, id: UUID) -> list[UUID]:
        return [sent.id for sent in self._due(id)]

    def _due(self, id: UUID) -> list[Any]:
        self.database.shards.mark_all_due()
        kinds = "+".join(self.database.datasets.request(id).kinds)
        return self.database.shards.take_due(kinds, 1000)

    def run(self, id: UUID) -> None:
        """Run every shard that may run."""
        for shard in self.shard_ids(id):
            assert self.shards.run(nobody_told, str(shard), 5) == DONE

    def found(self, id: UUID) -> dict[str, Annotation]:
        """Name → what has become of the image; no name twice."""
        images = [annotation for _, annotation in all_images(self.database, self.store, id)]
        found = {image.name: image for image in images}
        assert len(found) == len(images)
        return found

    def close(self) -> None:
        self.shards.stop(5)
        self.shards.close()
        self.queue.close()
        self.database.close()


@pytest.fixture
def here(settings: Settings, tmp_path: Path, batcher: Batcher) -> Iterator[Installation]:
    changed = {kind.value: spec for kind, spec in FAKES.items()} | {"retry_backoff": 0.01, "heartbeat": 0.1}
    installation = Installation(settings.model_copy(update=changed), tmp_path, batcher)
    yield installation
    installation.close()


class TestPlanning:
    def test_shards_hold_the_source_in_order(self, here: Installation) -> None:
        for number in range(7):
            here.paint(f"{number}.png")
        id = here.planned(shard_size=3)
        shards = here.database.shards.all(id)
        assert [(shard.number, shard.images) for shard in shards] == [(0, 3), (1, 3), (2, 1)]
        names = [
            planned.blank_annotation().name for shard in shards for planned in read_plan(here.store, shard.plan_key)
        ]
        assert names == [f"{number}.png" for number in range(7)]

    def test_names_in_any_script(self, here: Installation) -> None:
        names = ["猫 and dog.png", "new\nline.png", "ش.png", "a'b\"c.png", "sub folder/图.png"]
        for name in names:
            here.paint(name)
        id = here.planned()
        here.run(id)
        assert all(image.ok for image in here.found(id).values())
        assert len(here.found(id)) == len(names)

    @pytest.mark.parametrize("before", [1, 2])
    def test_another_planner_goes_on_where_one_stopped(self, here: Installation, before: int) -> None:
        for number in range(8):
            here.paint(f"{number}.png")
        id = here.submit(shard_size=2)
        shards = iter(range(before))

        def killed() -> None:
            if next(shards, None) is None:
                raise Stopped

        with pytest.raises(Stopped):
            here.plan(id, killed)
        assert len(here.database.shards.all(id)) == before
        here.plan(id)
        assert [shard.number for shard in here.database.shards.all(id)] == [0, 1, 2, 3]
        assert sorted(here.found(id)) == [f"{number}.png" for number in range(8)]

    def test_cancelled_and_deleted_while_it_is_planned(self, here: Installation) -> None:
        """Both happen before the heartbeat has told the planner."""
        for number in range(8):
            here.paint(f"{number}.png")
        id = here.submit(shard_size=2)

        def cancelled() -> None:
            if here.database.shards.all(id):
                here.database.datasets.cancel(id, T)
                here.database.datasets.delete(id, T)

        with pytest.raises(Stopped):
            here.plan(id, cancelled)
        assert [stored.key for stored in here.store.list("datasets")] == [plan_key(id, 0, 1)], "what was there before"

    def test_a_source_that_changed_in_between(self, here: Installation) -> None:
        for number in range(2, 8):
            here.paint(f"{number}.png")
        id = here.submit(shard_size=2)
        shards = iter(range(1))

        def killed() -> None:
            if next(shards, None) is None:
                raise Stopped

        with pytest.raises(Stopped):
            here.plan(id, killed)
        here.paint("0.png")
        here.plan(id)
        assert sorted(here.found(id)) == ["0.png", *(f"{number}.png" for number in range(2, 8))]

    def test_copies_are_dropped_before_a_model_sees_them(self, here: Installation) -> None:
        here.paint("a.png")
        here.paint("b.png")
        Image.new("RGB", (8, 8), "white").save(here.source / "c.png")
        id = here.submit(shard_size=1, filters={"duplicates": "exact"})
        shards = iter(range(2))

        def killed() -> None:
            if next(shards, None) is None:
                raise Stopped

        with pytest.raises(Stopped):
            here.plan(id, killed)
        here.paint("d.png")  # a copy of what another planner had seen
        here.plan(id)
        here.run(id)
        found = here.found(id)
        assert {name: image.drop.reason for name, image in found.items() if image.drop is not None} == {
            "b.png": DropReason.DUPLICATE,
            "d.png": DropReason.DUPLICATE,
        }
        assert found["b.png"].captions == ()
        assert found["a.png"].ok
        assert found["c.png"].ok

    def test_a_dry_run_takes_a_sample(self, here: Installation) -> None:
        for number in range(SAMPLE + 10):
            here.paint(f"{number:03d}.png")
        id = here.planned(dry_run=True, destination=None)
        assert [shard.images for shard in here.database.shards.all(id)] == [SAMPLE]

    def test_an_empty_source(self, here: Installation) -> None:
        with pytest.raises(SourceUnusable, match="no image"):
            here.planned()


class TestShards:
    def test_one_bad_image_never_fails_its_shard(self, here: Installation) -> None:
        for number in range(20):
            here.paint(f"good {number}.png")
        (here.source / "empty.png").write_bytes(b"")
        (here.source / "cut.png").write_bytes(here.paint("good.png").read_bytes()[:45])
        (here.source / "text.png").write_text("no image")
        here.paint("rejected.png", "reject")
        here.paint("unforeseen.png", "fail")
        here.paint("gone.png")
        id = here.planned(max_attempts=2)
        (here.source / "gone.png").unlink()
        here.run(id)
        found = here.found(id)
        errors = {name: image.error.code for name, image in found.items() if image.error is not None}
        assert errors == {
            "empty.png": "image_corrupt",
            "cut.png": "image_corrupt",
            "text.png": "unsupported_format",
            "rejected.png": "engine_error",
            "unforeseen.png": "engine_error",
            "gone.png": "not_found",
        }
        assert sum(image.ok for image in found.values()) == 21
        progress = here.database.datasets.get(id, T).progress
        assert (progress.done, progress.failed, progress.left) == (21, 6, 0)

    def test_an_image_that_kills_the_engine(self, here: Installation) -> None:
        for number in range(8):
            here.paint(f"{number}.png")
        here.paint("poison.png", "crash")
        id = here.planned(max_attempts=2)
        here.run(id)
        found = here.found(id)
        poison = found.pop("poison.png")
        assert poison.error is not None
        assert (poison.error.code, poison.attempts) == ("engine_crashed", 2)
        assert all(image.ok for image in found.values()), "its neighbours were tried again without it"

    def test_every_caption_says_where_it_is_from(self, here: Installation) -> None:
        here.paint("a.png")
        id = here.planned(tasks=["describe", "recognize", "match"], languages=["zh", "en"], styles=["tags"])
        here.run(id)
        image = here.found(id)["a.png"]
        assert [(caption.language, caption.style) for caption in image.captions] == [("zh", "tags"), ("en", "tags")]
        for caption in image.captions:
            assert caption.score == pytest.approx(1 / (1 + len(caption.text)))
            made = caption.provenance
            assert (made.model, made.revision, made.worker) == (FAKES[Kind.DESCRIBE], "revision of describe", "w@test")
            assert made.parameters == {"style": "tags", "max_tokens": 64}
            assert made.software.startswith("tuwen ")
            assert caption.scored_by is not None
            assert caption.scored_by.model == FAKES[Kind.MATCH]
        assert image.recognition is not None
        assert image.recognition.provenance.revision == "revision of recognize"
        assert (image.width, image.height) == (8, 8)

    def test_the_captions_that_came_with_the_images_are_scored(self, here: Installation) -> None:
        for name in ("a.png", "b.png"):
            here.paint(name)
        rows = [{"file_name": "a.png", "text": "a cat"}, {"file_name": "b.png"}]
        (here.source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        id = here.planned(tasks=["match"], source_format="imagefolder")
        here.run(id)
        found = here.found(id)
        assert found["a.png"].existing_score == pytest.approx(1 / 6)
        assert found["b.png"].error is not None
        assert "no caption" in found["b.png"].error.detail

    def test_filters_drop_with_a_reason(self, here: Installation) -> None:
        here.paint("small.png", size=8)
        here.paint("large.png", size=64)
        id = here.planned(filters={"min_side": 16})
        here.run(id)
        found = here.found(id)
        assert found["large.png"].ok
        small = found["small.png"]
        assert small.drop is not None
        assert small.drop.reason is DropReason.TOO_SMALL
        assert small.captions == (), "no model has seen it"

    def test_messages_that_are_none(self, here: Installation) -> None:
        with pytest.raises((TypeError, ValueError)):
            here.shards.run(nobody_told, {"x": 1}, "y")
        with pytest.raises(ValueError):
            here.shards.run(nobody_told, "no id", 5)

    def test_a_doubled_message_runs_once(self, here: Installation) -> None:
        here.paint("a.png")
        id = here.planned()
        [shard] = here.shard_ids(id)
        assert here.shards.run(nobody_told, str(shard), 5) == DONE
        assert here.shards.run(nobody_told, str(shard), 5) is None


class TestResuming:
    def claimed(self, here: Installation, id: UUID) -> ShardClaim:
        [shard] = here.shard_ids(id)
        claim = here.database.shards.claim(shard, 5, "dead")
        assert claim is not None
        return claim

    def test_what_is_done_is_not_done_again(self, here: Installation) -> None:
        for number in range(6):
            here.paint(f"{number}.png")
        id = here.planned()
        claim = self.claimed(here, id)
        done = Annotation(name="0.png", sha256="0" * 64).model_dump_json().encode()
        failed = b'{"name": "1.png", "error": {"code": "boom", "detail": "It broke."}}'
        key = results_key(id, 0, claim.epoch)
        write_results(here.store, key, [done, failed, None, None, None, None])
        assert here.database.shards.checkpoint(claim, key)
        here.database.shards.give_back(claim, "released")
        here.run(id)
        found = here.found(id)
        assert found["0.png"].captions == (), "it was kept as it was"
        assert found["1.png"].error is not None, "a failure is a result too, until somebody asks for another try"
        assert all(found[f"{number}.png"].captions for number in range(2, 6))
        assert list(here.store.list(key.rpartition("/")[0])) != []
        with pytest.raises(Exception, match="no object"):
            here.store.get(key)

    def test_retry_runs_only_what_failed(self, here: Installation) -> None:
        for number in range(4):
            here.paint(f"{number}.png")
        (here.source / "4.png").write_bytes(b"broken")
        id = here.planned(shard_size=3)
        here.run(id)
        claim = here.database.datasets.take(id, "h")
        assert claim is not None
        here.database.datasets.end(claim)
        first = here.found(id)
        here.paint("4.png")
        for number in range(4):  # reading these again would fail
            (here.source / f"{number}.png").unlink()
        assert here.database.datasets.retry(id, T, failed_only=True) is DatasetStatus.RUNNING
        assert len(here.shard_ids(id)) == 1, "the other shard had no failure"
        here.run(id)
        found = here.found(id)
        assert all(image.ok for image in found.values())
        assert found["4.png"].attempts == 2
        assert {name: found[name] for name in ("0.png", "1.png", "2.png", "3.png")} == {
            name: first[name] for name in ("0.png", "1.png", "2.png", "3.png")
        }

    def test_a_pause_keeps_what_is_done(self, here: Installation, batcher: Batcher) -> None:
        for number in range(200):
            here.paint(f"{number:03d}.png", "sleep" if number >= 20 else "nothing")
        id = here.planned()
        [shard] = here.shard_ids(id)
        ended: list[Any] = []
        worker = threading.Thread(target=lambda: ended.append(here.shards.run(nobody_told, str(shard), 5)))
        worker.start()
        eventually(lambda: here.database.datasets.get(id, T).progress.done > 0)
        here.database.datasets.pause(id, T)
        worker.join(PATIENT)
        [outcome] = ended
        assert outcome.event == "task-retried"
        [row] = here.database.shards.all(id)
        assert row.status is ShardStatus.QUEUED
        done = [line for line in read_results(here.store, row.results_key, 200) if line is not None]
        assert 0 < len(done) < 200
        here.database.datasets.resume(id, T)
        here.run(id)
        assert all(image.ok for image in here.found(id).values())

    def test_results_wait_for_storage_that_is_away(self, here: Installation) -> None:
        here.paint("0.png")
        for number in range(1, 40):
            here.paint(f"{number}.png", "sleep")
        id = here.planned()
        [shard] = here.shard_ids(id)
        ended: list[Any] = []
        worker = threading.Thread(target=lambda: ended.append(here.shards.run(nobody_told, str(shard), 5)))
        worker.start()
        eventually(lambda: here.database.datasets.get(id, T).progress.done > 0)
        with gone(here.settings):
            eventually(lambda: not here.shards._storage.is_open)
            worker.join(2)
            assert worker.is_alive(), "it keeps what it has"
            assert here.database.datasets.get(id, T).progress.done == 40
        worker.join(PATIENT)
        assert ended == [DONE]
        assert all(image.ok for image in here.found(id).values())

    def test_a_shard_whose_storage_is_away_is_put_off(self, here: Installation) -> None:
        here.paint("0.png")
        id = here.planned()
        [shard] = here.shard_ids(id)
        with gone(here.settings):
            outcome = here.shards.run(nobody_told, str(shard), 5)
            assert outcome is not None
            assert outcome.event == "task-retried"
            ended: list[Any] = []
            other = threading.Thread(target=lambda: ended.append(here.shards.run(nobody_told, str(shard), 5)))
            other.start()
            other.join(2)
            assert other.is_alive(), "nothing is claimed meanwhile"
            [row] = here.database.shards._run(text("SELECT status, attempts, error_code FROM shards"))
            assert tuple(row) == ("queued", 0, "storage_unavailable")
        other.join(PATIENT)
        assert ended == [DONE]

    def test_after_a_crash_small_groups_are_noted_down_first(self, here: Installation, monkeypatch: Any) -> None:
        for number in range(40):
            here.paint(f"{number:02d}.png")
        id = here.planned()
        claim = self.claimed(here, id)
        here.database.shards._run(*_crashed(claim))
        noted: list[list[Any]] = []
        store = type(here.store).put

        def put(self: ObjectStore, key: str, data: bytes, media_type: str) -> None:
            store(self, key, data, media_type)
            if "results" in key:
                noted.append(read_results(self, key, 40))

        monkeypatch.setattr(ObjectStore, "put", put)
        here.run(id)
        first, second, last = noted
        assert [isinstance(line, AtRisk) for line in first] == [True] * 32 + [False] * 8
        assert [isinstance(line, AtRisk) for line in second] == [False] * 32 + [True] * 8
        assert all(isinstance(line, bytes) for line in last)

    def test_an_image_that_kills_every_worker_is_given_up(self, here: Installation) -> None:
        for number in range(3):
            here.paint(f"{number}.png")
        id = here.planned()
        claim = self.claimed(here, id)
        key = results_key(id, 0, claim.epoch)
        write_results(here.store, key, [None, AtRisk(alone=True, strikes=STRIKES - 1), AtRisk(alone=False)])
        here.database.shards.checkpoint(claim, key)
        here.database.shards._run(*_crashed(claim))
        here.run(id)
        found = here.found(id)
        assert found["1.png"].error is not None
        assert found["1.png"].error.code == "worker_lost"
        assert found["0.png"].ok
        assert found["2.png"].ok


class TestEarlierRuns:
    def test_only_what_is_new_is_annotated(self, here: Installation) -> None:
        for number in range(5):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(here.source / f"{number}.png")
        first = here.planned(shard_size=2)
        here.run(first)
        before = here.found(first)
        here.database.datasets.review(first, 3, ReviewRequest(author="alice", text="a better caption"))
        Image.new("RGB", (8, 8), (99, 0, 0)).save(here.source / "new.png")
        Image.new("RGB", (8, 8), (98, 0, 0)).save(here.source / "1.png")  # another picture under an old name
        (here.source / "0.png").rename(here.source / "renamed.png")
        second = here.planned(shard_size=2)
        plans = [
            planned for shard in here.database.shards.all(second) for planned in read_plan(here.store, shard.plan_key)
        ]
        new = [planned.blank_annotation().name for planned in plans if planned.annotation is None]
        assert sorted(new) == ["1.png", "new.png"]
        here.run(second)
        after = here.found(second)
        assert after["renamed.png"].captions == before["0.png"].captions
        assert (
            after["renamed.png"].captions[0].provenance.created_at == before["0.png"].captions[0].provenance.created_at
        )
        assert after["2.png"] == before["2.png"]
        assert [(said.author, said.text) for said in after["3.png"].reviews] == [("alice", "a better caption")]
        assert after["1.png"].captions[0].text != before["1.png"].captions[0].text
        assert all(image.ok for image in after.values())

    def test_other_questions_are_asked_anew(self, here: Installation) -> None:
        here.paint("a.png")
        here.run(here.planned())
        second = here.planned(languages=["zh"])
        [shard] = here.database.shards.all(second)
        assert [planned.annotation for planned in read_plan(here.store, shard.plan_key)] == [None]

    def test_failures_are_tried_again(self, here: Installation) -> None:
        (here.source / "a.png").write_bytes(b"broken")
        here.run(here.planned())
        here.paint("a.png")
        second = here.planned()
        here.run(second)
        assert here.found(second)["a.png"].ok


def _crashed(claim: ShardClaim) -> tuple[Any, dict[str, Any]]:
    """Its worker was lost, some time ago."""
    from sqlalchemy import text

    statement = """UPDATE shards SET status = 'queued', crashes = 1, lease_until = NULL, worker = NULL WHERE id = :id"""
    return text(statement), {"id": claim.id}
