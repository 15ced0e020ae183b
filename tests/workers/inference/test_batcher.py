"""The scheduler against an engine that the test drives by hand, so that every order is the test's own choice."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from shared.fairness import PATIENCE
from tests.support.waiting import PATIENT, eventually
from tuwen.engine import GenerateItem, Item, MatchItem, Partial, Picture
from tuwen.errors import EngineCrashed, EngineError, EngineHung, EngineStartFailed, OutOfMemory, TuwenError
from tuwen.jobs import Kind, MatchResult
from workers.inference import batcher as module
from workers.inference.batcher import Batcher
from workers.inference.schedule import PendingItem, Schedule


def picture(prompt: str) -> Picture:
    return Picture(np.zeros((8, 8, 3), np.uint8), unknown_words=(prompt,))


def echo(prompts: list[str]) -> list[Any]:
    return [picture(prompt) for prompt in prompts]


class HandDrivenEngine:
    """Runs a batch each time the test says `let()`, or as they come after `open()`; remembers what it was given.

    `act` answers a batch of prompts; what it raises as EngineCrashed or EngineHung also takes the engine down.
    """

    def __init__(self, limit: int = 4, act: Callable[[list[str]], list[Any]] = echo):
        self.most = limit
        self.act = act
        self.batches: list[list[str]] = []
        self.kinds: list[Kind] = []
        self.limits_asked: list[Item] = []
        self.starts = 0
        self.start_failures: list[Exception] = []
        self.alive = False
        self.model = ""
        self.on_progress: Callable[[int, int, Mapping[int, Partial]], None]
        self.cancelled: Callable[[int], bool]
        self.watched: Callable[[int], bool]
        self._entered = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)
        self._killed = threading.Event()
        self._open = False

    def start(self) -> None:
        self.starts += 1
        if self.start_failures:
            raise self.start_failures.pop(0)
        self.alive = True

    def limit(self, kind: Kind, item: Item) -> int:
        self.limits_asked.append(item)
        return self.most

    def is_warm(self, item: Item) -> bool:
        """Tell whether this model is loaded: of those that a picture may name, only the one that ran last is."""
        return not isinstance(item, GenerateItem) or item.model == self.model

    def run(
        self,
        kind: Kind,
        items: Sequence[Any],
        on_progress: Callable[[int, int, Mapping[int, Partial]], None],
        cancelled: Callable[[int], bool],
        watched: Callable[[int], bool],
    ) -> list[Any]:
        prompts = [item.prompt if isinstance(item, GenerateItem) else item.text for item in items]
        self.on_progress, self.cancelled, self.watched = on_progress, cancelled, watched
        self.model = getattr(items[0], "model", "")
        self.kinds.append(kind)
        self.batches.append(prompts)
        self._entered.release()
        if not self._open:
            assert self._gate.acquire(timeout=PATIENT)
        try:
            if self._killed.is_set():
                raise EngineCrashed("killed")
            return self.act(prompts)
        except (EngineCrashed, EngineHung):
            self.alive = False
            raise

    def stop(self) -> None:
        self._killed.set()
        self.open()
        self.alive = False

    def entered(self) -> None:
        """Wait until one more batch has begun."""
        assert self._entered.acquire(timeout=PATIENT)

    def let(self) -> None:
        self._gate.release()

    def open(self) -> None:
        self._open = True
        self._gate.release(1000)


class Desk:
    """A batcher whose engine is busy with a first batch, `["plug"]`, while the test queues what it likes."""

    def __init__(self, engine: HandDrivenEngine, **kwargs: Any):
        self.engine = engine
        self.batcher = Batcher([engine], **kwargs)
        self.batcher.start()
        self.plug = self.ask("plug")
        engine.entered()

    def ask(self, prompt: str, steps: int | None = None, model: str = "", **kwargs: Any) -> Future[Any]:
        """Queue an item behind those already waiting; `steps` and `model` are its batch key."""
        return self.batcher.submit(GenerateItem(prompt, seed=0, steps=steps, model=model), **kwargs)

    def step(self) -> list[str]:
        """Let the running batch finish, wait for the next one to begin, and show it."""
        self.engine.let()
        self.engine.entered()
        return self.engine.batches[-1]

    def finish(self, *futures: Future[Any]) -> list[str]:
        """Run everything; what each of the futures was answered: its prompt, or the name of the error."""
        self.engine.open()
        return [told(future) for future in futures]

    def close(self) -> None:
        self.engine.open()
        self.batcher.stop(PATIENT)


def told(future: Future[Any]) -> str:
    error = future.exception(PATIENT)
    return type(error).__name__ if error is not None else future.result().unknown_words[0]


@pytest.fixture
def desk() -> Iterator[Callable[..., Desk]]:
    desks = []

    def make(limit: int = 4, act: Callable[[list[str]], list[Any]] = echo, **kwargs: Any) -> Desk:
        desks.append(Desk(HandDrivenEngine(limit, act), **kwargs))
        return desks[-1]

    yield make
    for made in desks:
        made.close()


# ── order and filling ─────────────────────────────────────────────────────────────────────────────


def test_an_item_does_not_wait_for_company(desk: Callable[..., Desk]) -> None:
    d = desk()
    assert d.engine.batches == [["plug"]]
    assert d.finish(d.plug) == ["plug"]


def test_what_gathers_while_the_engine_runs_is_the_next_batch_up_to_the_limit(desk: Callable[..., Desk]) -> None:
    d = desk(limit=4)
    futures = [d.ask(name) for name in "abcdef"]
    assert d.finish(*futures) == list("abcdef")
    assert d.engine.batches == [["plug"], ["a", "b", "c", "d"], ["e", "f"]]


def test_items_of_different_keys_never_share_a_batch_and_the_oldest_leads(desk: Callable[..., Desk]) -> None:
    d = desk()
    futures = [d.ask(name, steps) for name, steps in [("a", 1), ("b", 2), ("c", 1), ("d", 3), ("e", 2)]]
    d.finish(*futures)
    assert d.engine.batches == [["plug"], ["a", "c"], ["b", "e"], ["d"]]


def test_kinds_never_share_a_batch(desk: Callable[..., Desk]) -> None:
    d = desk(act=lambda prompts: [MatchResult(score=1)] * len(prompts) if prompts[0] == "text" else echo(prompts))
    item = MatchItem(np.zeros((8, 8, 3), np.uint8), "text")
    assert item.batch_key == ("",)
    first = d.ask("a")
    match = d.batcher.submit(item)
    assert d.finish(first) == ["a"]
    assert match.result(PATIENT) == MatchResult(score=1)
    assert d.engine.kinds == [Kind.GENERATE, Kind.GENERATE, Kind.MATCH]


def test_urgent_items_lead_and_bulk_of_the_same_key_fills_the_rest(desk: Callable[..., Desk]) -> None:
    d = desk(limit=4)
    futures = [d.ask(f"bulk{n}", priority=0) for n in range(4)]
    futures += [d.ask("person", priority=5), d.ask("urgent", priority=9), d.ask("person2", priority=5)]
    d.finish(*futures)
    assert d.engine.batches[1:] == [["urgent", "person", "person2", "bulk0"], ["bulk1", "bulk2", "bulk3"]]


def test_each_item_hears_how_large_its_batch_is_when_it_begins(desk: Callable[..., Desk]) -> None:
    d = desk(limit=2)
    heard: list[tuple[str, int]] = []

    def hear(name: str) -> Callable[[int], None]:
        def on_begin(size: int) -> None:
            heard.append((name, size))
            if name == "b":
                raise ZeroDivisionError("a listener of bad manners")

        return on_begin

    futures = [d.ask(name, on_begin=hear(name)) for name in "abc"]
    assert heard == [], "they wait"
    assert d.finish(*futures) == ["a", "b", "c"]
    assert heard == [("a", 2), ("b", 2), ("c", 1)]


def test_an_urgent_item_of_another_key_overtakes_the_bulk(desk: Callable[..., Desk]) -> None:
    d = desk(limit=2)
    futures = [d.ask(f"bulk{n}", priority=0) for n in range(4)]
    futures.append(d.ask("person", 20, priority=5))
    d.finish(*futures)
    assert d.engine.batches[1:] == [["person"], ["bulk0", "bulk1"], ["bulk2", "bulk3"]]


def test_a_stream_of_urgent_work_cannot_starve_the_rest(desk: Callable[..., Desk]) -> None:
    d = desk(limit=1)
    bulk = d.ask("bulk", priority=0)
    d.ask("urgent", 1, priority=9)
    seen = []
    while (batch := d.step()) != ["bulk"]:
        seen.append(batch)
        d.ask("urgent", 1, priority=9)
        assert len(seen) <= PATIENCE, "bulk is starved"
    assert seen == [["urgent"]] * PATIENCE
    assert d.finish(bulk) == ["bulk"]


def test_old_bulk_gets_one_batch_in_a_while_not_all_of_them(desk: Callable[..., Desk]) -> None:
    d = desk(limit=1)
    for n in range(6):
        d.ask(f"bulk{n}", priority=0)
    d.ask("urgent", 1, priority=9)
    seen = []
    for _ in range(3 * PATIENCE + 1):
        seen.append(d.step()[0])
        if seen[-1] == "urgent":
            d.ask("urgent", 1, priority=9)
    assert [name for name in seen if name != "urgent"] == ["bulk0", "bulk1", "bulk2"]
    assert seen[PATIENCE::PATIENCE] == ["bulk0", "bulk1", "bulk2"]


def test_work_for_the_loaded_model_goes_before_work_that_needs_another(desk: Callable[..., Desk]) -> None:
    d = desk(limit=1)
    d.ask("other", model="other")
    d.ask("warm")
    d.ask("urgent other", model="other", priority=9)
    d.ask("third", model="other")
    assert [d.step() for _ in range(4)] == [["urgent other"], ["other"], ["third"], ["warm"]]
    d.ask("other again", model="other")
    d.ask("warm again")
    assert d.step() == ["warm again"]


def test_a_stream_of_work_for_the_loaded_model_cannot_starve_another(desk: Callable[..., Desk]) -> None:
    d = desk(limit=1)
    d.ask("other", model="other")
    passed_over = 0
    while True:
        d.ask("warm")
        if d.step() == ["other"]:
            break
        passed_over += 1
    assert passed_over <= PATIENCE


def test_alone_means_alone(desk: Callable[..., Desk]) -> None:
    d = desk(limit=4)
    futures = [d.ask("a"), d.ask("suspect", alone=True), d.ask("b"), d.ask("suspect2", alone=True)]
    assert d.finish(*futures) == ["a", "suspect", "b", "suspect2"]
    assert d.engine.batches[1:] == [["a", "b"], ["suspect"], ["suspect2"]]


def test_the_limit_is_asked_once_for_each_key(desk: Callable[..., Desk]) -> None:
    d = desk(limit=1)
    d.finish(*[d.ask(name, steps) for name, steps in [("a", 1), ("b", 1), ("c", 2), ("d", 1)]])
    assert [item.steps for item in d.engine.limits_asked] == [None, 1, 2]  # type: ignore[union-attr]


def test_remembered_limits_have_an_end(desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED_LIMITS", 2)
    d = desk()
    d.engine.open()
    for steps in (1, 2, 1, 3, 1, 2):  # 1 is used all along; 2 is forgotten when 3 comes
        d.ask("a", steps).result(PATIENT)
    assert [item.steps for item in d.engine.limits_asked] == [None, 1, 2, 3, 2]  # type: ignore[union-attr]


def test_under_load_everybody_gets_their_own_answer() -> None:
    mixed: list[list[str]] = []

    def act(prompts: list[str]) -> list[Any]:
        if len({prompt.split()[0] for prompt in prompts}) > 1 or len(prompts) > 5:
            mixed.append(prompts)
        return echo(prompts)

    engine = HandDrivenEngine(limit=5, act=act)
    engine.open()
    batcher = Batcher([engine])
    batcher.start()
    done: list[str] = []

    def client(number: int) -> None:
        rng = random.Random(number)
        for turn in range(40):
            steps, prompt = rng.randint(1, 4), f"{number}-{turn}"
            item = GenerateItem(f"{steps} {prompt}", seed=0, steps=steps)
            answer = batcher.submit(item, priority=rng.randint(0, 9), alone=rng.random() < 0.1).result(PATIENT)
            assert isinstance(answer, Picture)
            assert answer.unknown_words == (item.prompt,)
            done.append(prompt)

    with ThreadPoolExecutor(48) as threads:
        for client_done in [threads.submit(client, number) for number in range(48)]:
            client_done.result(PATIENT)
    batcher.stop(PATIENT)
    assert len(set(done)) == 48 * 40
    assert mixed == []
    assert sum(map(len, engine.batches)) == 48 * 40


# ── failures of the engine ────────────────────────────────────────────────────────────────────────


def fits(most: int) -> Callable[[list[str]], list[Any]]:
    def act(prompts: list[str]) -> list[Any]:
        if len(prompts) > most or "huge" in prompts:
            raise OutOfMemory("too much")
        return echo(prompts)

    return act


def test_out_of_memory_halves_the_batch_and_is_remembered(desk: Callable[..., Desk]) -> None:
    d = desk(limit=8, act=fits(2))
    futures = [d.ask(str(n)) for n in range(8)]
    assert d.finish(*futures) == [str(n) for n in range(8)]
    assert [len(batch) for batch in d.engine.batches[1:]] == [8, 4, 2, 2, 2, 2]
    assert d.engine.batches[3:] == [["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"]]


def test_the_smaller_limit_holds_for_later_batches_of_that_key_alone(desk: Callable[..., Desk]) -> None:
    d = desk(limit=4, act=lambda prompts: fits(2 if prompts[0].startswith("a") else 4)(prompts))
    first = [d.ask(f"a{n}", 1) for n in range(4)]
    while d.step() != ["a2", "a3"]:
        pass
    later = [d.ask(f"a{n}", 1) for n in range(4, 8)] + [d.ask(f"b{n}", 2) for n in range(4)]
    del d.engine.batches[:]
    d.finish(*first, *later)
    assert [len(batch) for batch in d.engine.batches] == [2, 2, 4]


def test_an_item_too_big_even_alone_fails_and_the_others_keep_their_batches(desk: Callable[..., Desk]) -> None:
    d = desk(limit=4, act=fits(4))
    futures = [d.ask(name) for name in ("a", "huge", "b", "c")]
    later = [d.ask(name) for name in "defg"]
    assert d.finish(*futures, *later) == ["a", "OutOfMemory", "b", "c", *"defg"]
    assert d.engine.batches[-1] == list("defg")


def test_a_batch_that_fails_as_a_whole_is_run_item_by_item(desk: Callable[..., Desk]) -> None:
    def act(prompts: list[str]) -> list[Any]:
        if "guilty" in prompts:
            raise ZeroDivisionError("a secret of the engine")
        return echo(prompts)

    d = desk(limit=4, act=act)
    futures = [d.ask(name) for name in ("a", "guilty", "b")]
    assert d.finish(*futures) == ["a", "EngineError", "b"]
    assert d.engine.batches[1:] == [["a", "guilty", "b"], ["a"], ["guilty"], ["b"]]
    assert "secret" not in str(futures[1].exception())


def test_an_error_answered_for_one_item_is_that_items_alone(desk: Callable[..., Desk]) -> None:
    d = desk(act=lambda prompts: [EngineError("no") if name == "guilty" else picture(name) for name in prompts])
    futures = [d.ask(name) for name in ("a", "guilty", "b")]
    assert d.finish(*futures) == ["a", "EngineError", "b"]
    assert d.engine.batches[1:] == [["a", "guilty", "b"]]


def test_an_engine_that_answers_too_little_fails_nobody_silently(desk: Callable[..., Desk]) -> None:
    d = desk(act=lambda prompts: echo(prompts)[:1])
    futures = [d.ask(name) for name in "ab"]
    assert d.finish(*futures) == ["a", "b"]  # item by item it answers enough
    assert d.engine.batches[1:] == [["a", "b"], ["a"], ["b"]]


@pytest.mark.parametrize("error", [EngineCrashed, EngineHung])
def test_when_the_engine_goes_down_the_whole_batch_is_told_and_the_rest_runs_on_a_fresh_one(
    desk: Callable[..., Desk], error: type[TuwenError]
) -> None:
    def act(prompts: list[str]) -> list[Any]:
        if "killer" in prompts:
            raise error("down")
        return echo(prompts)

    d = desk(limit=3, act=act)
    futures = [d.ask(name) for name in ("a", "killer", "b", "c", "d")]
    assert d.finish(*futures) == [error.__name__] * 3 + ["c", "d"]
    assert len({id(future.exception()) for future in futures[:3]}) == 3, "they must not share a traceback"
    assert d.engine.starts == 2
    assert d.batcher.reason is None


def test_items_still_to_be_retried_when_the_engine_goes_down_are_not_blamed(desk: Callable[..., Desk]) -> None:
    crashes = iter([True])

    def act(prompts: list[str]) -> list[Any]:
        if "a" in prompts and len(prompts) == 2 and next(crashes, False):
            raise EngineCrashed("down")
        return fits(2)(prompts)

    d = desk(limit=4, act=act)
    futures = [d.ask(name) for name in "abcd"]
    assert d.finish(*futures) == ["EngineCrashed", "EngineCrashed", "c", "d"]


def test_an_engine_that_died_idle_is_replaced_before_the_next_batch(desk: Callable[..., Desk]) -> None:
    d = desk()
    d.engine.open()
    assert told(d.plug) == "plug"
    d.engine.alive = False
    assert told(d.ask("a")) == "a"
    assert d.engine.starts == 2


def test_the_engine_is_warm_again_before_anybody_asks(desk: Callable[..., Desk]) -> None:
    def act(prompts: list[str]) -> list[Any]:
        raise EngineCrashed("down")

    d = desk(act=act)
    assert d.finish(d.plug) == ["EngineCrashed"]
    eventually(lambda: d.engine.starts == 2)


def test_a_restart_that_fails_is_told_to_those_who_wait_and_tried_again(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_PAUSES", (0.0, 0.01))

    def act(prompts: list[str]) -> list[Any]:
        if "killer" in prompts:
            raise EngineCrashed("down")
        return echo(prompts)

    d = desk(limit=1, act=act)
    d.engine.start_failures = [EngineStartFailed("no weights")]
    assert d.batcher.reason is None
    futures = [d.ask("killer"), d.ask("a"), d.ask("b")]
    assert d.finish(*futures) == ["EngineCrashed", "EngineStartFailed", "EngineStartFailed"]
    eventually(lambda: d.engine.starts == 3)
    eventually(lambda: d.batcher.reason is None)
    assert told(d.ask("c")) == "c"


def test_while_the_engine_cannot_be_had_the_batcher_says_why(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_PAUSES", (0.0, 3600.0))

    def act(prompts: list[str]) -> list[Any]:
        raise EngineCrashed("down")

    d = desk(act=act)
    d.engine.start_failures = [EngineStartFailed("no weights")]
    d.finish(d.plug)
    eventually(lambda: d.batcher.reason is not None)
    assert d.batcher.reason == "no weights"
    waiting = d.ask("a")
    d.batcher.stop(PATIENT)  # ends the pause
    assert told(waiting) == "Released"


def test_an_engine_that_does_not_start_lets_nobody_in() -> None:
    engine = HandDrivenEngine()
    engine.start_failures = [EngineStartFailed("no weights")]
    batcher = Batcher([engine])
    with pytest.raises(EngineStartFailed, match="no weights"):
        batcher.start()
    batcher.stop(0)


def test_a_limit_that_cannot_be_told_fails_that_item(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    d = desk()
    ask = d.engine.limit

    def limit(kind: Kind, item: Item) -> int:
        if isinstance(item, GenerateItem) and item.prompt == "odd":
            raise EngineError("cannot say")
        return ask(kind, item)

    monkeypatch.setattr(d.engine, "limit", limit)
    futures = [d.ask("odd", 1), d.ask("a", 1), d.ask("b", 2)]
    assert d.finish(*futures) == ["EngineError", "a", "b"]


# ── cancelling, progress, stopping ────────────────────────────────────────────────────────────────


def test_an_item_cancelled_while_it_waits_never_reaches_the_engine(desk: Callable[..., Desk]) -> None:
    d = desk()
    futures = [d.ask("a"), d.ask("unwanted"), d.ask("b")]
    assert futures[1].cancel()
    assert d.batcher.waiting == 2
    assert d.finish(futures[0], futures[2]) == ["a", "b"]
    assert d.engine.batches == [["plug"], ["a", "b"]]


def test_when_all_that_wait_are_cancelled_the_engine_has_nothing_to_do(desk: Callable[..., Desk]) -> None:
    d = desk()
    assert d.ask("unwanted").cancel()
    d.finish(d.plug)
    assert told(d.ask("a")) == "a"
    assert d.engine.batches == [["plug"], ["a"]]


def test_an_item_cancelled_while_it_runs_is_flagged_and_whoever_waits_is_freed_at_once(
    desk: Callable[..., Desk],
) -> None:
    d = desk()
    futures = [d.ask("a"), d.ask("unwanted")]
    assert d.step() == ["a", "unwanted"]
    assert not d.engine.cancelled(1)
    assert futures[1].cancel()  # while the batch still runs
    assert d.engine.cancelled(1)
    assert not d.engine.cancelled(0)
    assert d.finish(futures[0]) == ["a"]


def test_a_cancelled_item_is_not_retried(desk: Callable[..., Desk]) -> None:
    d = desk(limit=2, act=fits(1))
    futures = [d.ask("a"), d.ask("unwanted")]
    assert d.step() == ["a", "unwanted"]
    assert futures[1].cancel()
    d.finish(futures[0])
    assert d.engine.batches == [["plug"], ["a", "unwanted"], ["a"]]


def test_progress_is_told_to_every_item_of_the_batch(desk: Callable[..., Desk]) -> None:
    d = desk()
    steps: dict[str, list[Any]] = {"a": [], "b": []}
    futures = [d.ask(name, on_progress=lambda *told, name=name: steps[name].append(told)) for name in steps]
    d.step()
    d.engine.on_progress(1, 2, {1: "a dog"})
    assert futures[1].cancel()
    d.engine.on_progress(2, 2, {})
    assert d.finish(futures[0]) == ["a"]
    assert steps == {"a": [(1, 2, None), (2, 2, None)], "b": [(1, 2, "a dog")]}


def test_the_engine_may_ask_which_items_are_watched(desk: Callable[..., Desk]) -> None:
    d = desk()
    followed = set()
    futures = [d.ask("a"), d.ask("b", watched=lambda: "b" in followed)]
    d.step()
    assert [d.engine.watched(index) for index in range(2)] == [False, False]
    followed.add("b")
    assert [d.engine.watched(index) for index in range(2)] == [False, True]
    d.finish(*futures)


def test_a_listener_that_fails_hurts_nobody(desk: Callable[..., Desk]) -> None:
    d = desk()
    heard = []

    def broken(step: int, *_: object) -> None:
        heard.append(step)
        raise ConnectionError("nobody there")

    futures = [d.ask("broken", on_progress=broken), d.ask("b")]
    d.step()
    d.engine.on_progress(1, 2, {})
    d.engine.on_progress(2, 2, {})
    assert d.finish(*futures) == ["broken", "b"]
    assert heard == [1]


def test_the_next_batch_does_not_wait_for_what_becomes_of_the_last_one(desk: Callable[..., Desk]) -> None:
    d = desk(limit=1)
    futures = [d.ask("a"), d.ask("b")]
    working, go_on = threading.Event(), threading.Event()

    def work(_: Future[Any]) -> None:
        working.set()
        assert go_on.wait(PATIENT)

    futures[0].add_done_callback(work)
    assert d.step() == ["a"]
    assert d.step() == ["b"]
    assert working.wait(PATIENT)
    go_on.set()
    assert d.finish(*futures) == ["a", "b"]


def test_stop_lets_the_running_batch_finish_and_releases_the_rest(desk: Callable[..., Desk]) -> None:
    d = desk()
    futures = [d.ask("a"), d.ask("b", 2, priority=9)]
    with ThreadPoolExecutor(1) as stopper:
        stopped = stopper.submit(d.batcher.stop, PATIENT)
        assert [told(future) for future in futures] == ["Released", "Released"]
        assert told(d.ask("late")) == "Released"
        assert not d.plug.done()
        d.engine.let()
        stopped.result(PATIENT)
    assert told(d.plug) == "plug"
    assert d.engine.batches == [["plug"]]
    assert not d.engine.alive


def test_stop_takes_no_longer_than_its_grace(desk: Callable[..., Desk]) -> None:
    d = desk()
    d.batcher.stop(0.01)  # the engine would run forever
    assert told(d.plug) == "Released"
    assert d.engine.starts == 1


def test_a_crash_within_the_grace_is_a_crash(desk: Callable[..., Desk]) -> None:
    def act(prompts: list[str]) -> list[Any]:
        raise EngineCrashed("down")

    d = desk(act=act)
    d.engine.open()
    d.batcher.stop(PATIENT)
    assert told(d.plug) == "EngineCrashed"


def test_an_idle_batcher_stops(desk: Callable[..., Desk]) -> None:
    d = desk()
    d.finish(d.plug)
    d.batcher.stop(PATIENT)
    assert not d.engine.alive


def test_the_hook_is_told_of_every_batch_and_may_not_hurt_it(desk: Callable[..., Desk]) -> None:
    seen = []

    def hook(kind: Kind, size: int, seconds: float) -> None:
        seen.append((kind, size))
        assert seconds > 0
        raise RuntimeError("no metrics today")

    d = desk(on_batch=hook)
    futures = [d.ask(name) for name in "abc"]
    assert d.finish(d.plug, *futures) == ["plug", "a", "b", "c"]
    assert seen == [(Kind.GENERATE, 1), (Kind.GENERATE, 3)]


# ── several engines ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pair() -> Iterator[tuple[Batcher, HandDrivenEngine, HandDrivenEngine]]:
    """A batcher with two engines, both busy with a batch of one."""
    first, second = HandDrivenEngine(), HandDrivenEngine()
    batcher = Batcher([first, second])
    batcher.start()
    for engine_busy in range(2):
        batcher.submit(GenerateItem("plug", seed=0, steps=engine_busy))
        eventually(lambda count=engine_busy + 1: len(first.batches) + len(second.batches) == count)
    assert first.batches == second.batches == [["plug"]]
    yield batcher, first, second
    first.open()
    second.open()
    batcher.stop(PATIENT)


Pair = tuple[Batcher, HandDrivenEngine, HandDrivenEngine]


def test_whichever_engine_is_free_takes_the_next_batch(pair: Pair) -> None:
    batcher, first, second = pair
    futures = [batcher.submit(GenerateItem(prompt, seed=0)) for prompt in "abcdef"]
    second.let()
    second.entered()
    eventually(lambda: second.batches[-1] == list("abcd"))
    first.open()
    assert [told(future) for future in futures[4:]] == ["e", "f"]
    second.open()
    assert [told(future) for future in futures[:4]] == list("abcd")
    assert first.batches[1:] == [["e", "f"]]


def test_what_an_idle_engine_can_do_is_left_to_it() -> None:
    waiting = Schedule()
    leaders: list[PendingItem | None] = []
    idle = threading.Thread(target=lambda: leaders.append(waiting.take_leader(lambda _: True)))
    idle.start()
    eventually(lambda: waiting._idle == 1)
    with waiting._lock:  # all at once, for the thread that is served first
        entries = [PendingItem(GenerateItem(prompt, seed=0), 5, False) for prompt in "abcd"]
        waiting._entries.extend(entries)
    leader = waiting.take_leader(lambda _: True)
    assert leader is entries[0]
    assert waiting.take_followers(leader, limit=8) == entries[1:2]
    waiting.add(PendingItem(GenerateItem("e", seed=0), 5, False))
    idle.join(PATIENT)
    assert leaders == entries[2:3]


def test_the_end_of_one_engine_is_not_the_end_of_the_others_batch(pair: Pair) -> None:
    batcher, first, second = pair
    kept = batcher.submit(GenerateItem("kept", seed=0, steps=1))
    first.let()
    eventually(lambda: first.batches[-1] == ["kept"])

    def crash(prompts: list[str]) -> list[Any]:
        if "lost" in prompts:
            raise EngineCrashed("down")
        return echo(prompts)

    second.act = crash
    lost = batcher.submit(GenerateItem("lost", seed=0, steps=2))
    second.open()
    assert told(lost) == "EngineCrashed"
    eventually(lambda: second.starts == 2)
    first.let()
    assert told(kept) == "kept"
    assert first.starts == 1


def test_an_engine_that_does_not_start_takes_the_others_down_again() -> None:
    fine, broken = HandDrivenEngine(), HandDrivenEngine()
    broken.start_failures = [EngineStartFailed("no weights")]
    batcher = Batcher([fine, broken])
    with pytest.raises(EngineStartFailed, match="no weights"):
        batcher.start()
    assert not fine.alive
    batcher.stop(0)


def test_stopping_ends_every_engine_and_releases_what_outlasts_the_grace(pair: Pair) -> None:
    batcher, first, second = pair
    first.let()  # one plug comes to its end
    waiting = batcher.submit(GenerateItem("late", seed=0))
    eventually(lambda: first.batches[-1] == ["late"])
    batcher.stop(0.1)
    assert told(waiting) == "Released"
    assert not first.alive
    assert not second.alive


# ── what may take the whole process down ──────────────────────────────────────────────────────────


def test_what_runs_is_told_before_it_runs(desk: Callable[..., Desk]) -> None:
    told_of: list[set[Any]] = []
    d = desk(limit=2, on_running=lambda owners: told_of.append(set(owners)))
    futures = [d.ask(name, owner=name) for name in "abc"]
    assert d.step() == ["a", "b"]
    assert told_of[-1] == {"a", "b"}, "c only waits"
    assert d.step() == ["c"]
    assert told_of[-1] == {"c"}
    d.finish(*futures)
    eventually(lambda: told_of[-1] == set())


def test_what_is_told_of_several_engines_is_what_runs_on_all(desk: Callable[..., Desk]) -> None:
    told_of: list[set[Any]] = []
    engines = [HandDrivenEngine(limit=1), HandDrivenEngine(limit=1)]
    batcher = Batcher(engines, on_running=lambda owners: told_of.append(set(owners)))
    batcher.start()
    futures = [batcher.submit(GenerateItem(name, seed=0), owner=name) for name in "ab"]
    for engine in engines:
        engine.entered()
    assert told_of[-1] == {"a", "b"}
    engines[0].let()
    eventually(lambda: len(told_of[-1]) == 1)
    engines[1].let()
    eventually(lambda: told_of[-1] == set())
    assert [future.result(PATIENT) for future in futures]
    batcher.stop(PATIENT)


def test_who_cannot_be_told_stops_no_batch(desk: Callable[..., Desk]) -> None:
    def fail(_: Any) -> None:
        raise ZeroDivisionError

    d = desk(on_running=fail)
    assert d.finish(d.ask("a", owner="a")) == ["a"]


def test_nothing_runs_beside_what_runs_apart() -> None:
    told_of: list[set[Any]] = []
    engines = [HandDrivenEngine(limit=4), HandDrivenEngine(limit=4)]
    batcher = Batcher(engines, on_running=lambda owners: told_of.append(set(owners)))
    batcher.start()
    plug = batcher.submit(GenerateItem("plug", seed=0), owner="plug")
    eventually(lambda: any(engine.batches for engine in engines))
    began, finish = threading.Event(), threading.Event()
    answers: list[Any] = []

    def run_apart() -> None:
        with batcher.run_apart("suspect"):
            began.set()
            assert finish.wait(PATIENT)
            answers.append(batcher.submit(GenerateItem("suspect", seed=0), owner="suspect", apart=True).result(PATIENT))

    thread = threading.Thread(target=run_apart)
    thread.start()
    eventually(lambda: batcher._waiting._apart)
    others = [batcher.submit(GenerateItem(name, seed=0), owner=name) for name in "abc"]
    assert not began.is_set(), "the plug still runs"
    for engine in engines:
        engine.open()
    assert told(plug) == "plug"
    assert began.wait(PATIENT)
    assert told_of[-1] == {"suspect"}, "it is told before it is even prepared"
    assert not any(future.done() for future in others)
    finish.set()
    thread.join(PATIENT)
    assert [answer.unknown_words for answer in answers] == [("suspect",)]
    assert [told(future) for future in others] == ["a", "b", "c"]
    batches = [batch for engine in engines for batch in engine.batches]
    assert ["suspect"] in batches
    batcher.stop(PATIENT)


def test_what_waits_to_run_apart_is_released_at_the_end(desk: Callable[..., Desk]) -> None:
    d = desk()
    entered = threading.Event()

    def run_apart() -> None:
        with d.batcher.run_apart("suspect"):
            entered.set()
            future = d.batcher.submit(GenerateItem("suspect", seed=0), apart=True)
            assert isinstance(future.exception(PATIENT), module.Released)

    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(run_apart)
        eventually(lambda: d.batcher._waiting._apart)
        assert not entered.is_set()
        d.engine.open()
        d.batcher.stop(0)
        ended.result(PATIENT)


def test_an_engine_that_dies_between_two_batches_is_not_the_next_ones_fault(desk: Callable[..., Desk]) -> None:
    """It is asked first how many such items a batch may hold: nothing of theirs has run by then."""
    d = desk()
    asked = iter([True])
    limit = d.engine.limit

    def dies(kind: Kind, item: Item) -> int:
        if next(asked, False):
            d.engine.alive = False
            raise EngineCrashed("killed while it was idle")
        return limit(kind, item)

    d.engine.limit = dies  # type: ignore[method-assign]
    assert d.finish(*[d.ask(name, 2) for name in "ab"]) == ["a", "b"]
    assert d.engine.starts == 2


def test_a_question_that_kills_every_engine_is_answered_with_that(desk: Callable[..., Desk]) -> None:
    d = desk()
    limit = d.engine.limit

    def dies(kind: Kind, item: Item) -> int:
        if getattr(item, "steps", None) == 2:
            d.engine.alive = False
            raise EngineCrashed("down")
        return limit(kind, item)

    d.engine.limit = dies  # type: ignore[method-assign]
    assert d.finish(d.ask("guilty", 2), d.ask("a", 3)) == ["EngineCrashed", "a"]
