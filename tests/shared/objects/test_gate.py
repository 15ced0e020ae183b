"""The gate that closes while object storage is away."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from shared.objects import gate as module
from shared.objects.gate import STUBBORN, StorageGate
from shared.objects.storage import StorageRefused
from tests.support.waiting import PATIENT, eventually
from tuwen.errors import StorageUnavailable

AWAY = StorageUnavailable("it is away")


class Storage:
    """Answers as the test says; counts the looks at it."""

    def __init__(self) -> None:
        self.trouble: StorageUnavailable | None = None
        self.looks = 0
        self.refused = threading.Event()
        self.gate = StorageGate(self.check, self.refused.set)

    def check(self) -> None:
        self.looks += 1
        if self.trouble is not None:
            raise self.trouble


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.02))
    storage = Storage()
    yield storage
    storage.gate.close()


def test_it_opens_when_storage_is_back(storage: Storage) -> None:
    assert storage.gate.wait(0)
    storage.trouble = AWAY
    storage.gate.report(AWAY)
    storage.gate.report(AWAY)
    eventually(lambda: storage.looks > 3)
    assert not storage.gate.wait(0.05)
    storage.trouble = None
    assert storage.gate.wait(PATIENT)


def test_what_is_done_waits(storage: Storage) -> None:
    storage.trouble = AWAY
    stored: list[str] = []
    attempts = 0

    def store() -> str:
        nonlocal attempts
        attempts += 1
        storage.check()
        return "stored"

    thread = threading.Thread(target=lambda: stored.append(storage.gate.retry(store, lambda: True)))
    thread.start()
    eventually(lambda: storage.looks > 5)
    assert (stored, attempts) == ([], 1), "only the look asks again meanwhile"
    storage.trouble = None
    thread.join(PATIENT)
    assert stored == ["stored"]


def test_what_nobody_wants_any_more_does_not_wait(storage: Storage) -> None:
    storage.trouble = AWAY
    with pytest.raises(StorageUnavailable):
        storage.gate.retry(storage.check, lambda: storage.looks < 5)


def test_a_write_that_fails_in_a_storage_that_works_is_given_up(storage: Storage) -> None:
    attempts = []

    def store() -> None:
        attempts.append(storage.looks)
        raise AWAY

    with pytest.raises(StorageUnavailable):
        storage.gate.retry(store, lambda: True)
    assert len(attempts) == STUBBORN + 1
    assert attempts == list(range(STUBBORN + 1)), "each time it had been looked at, and had worked"


def test_an_object_that_cannot_be_read_is_told_from_an_outage(storage: Storage) -> None:
    assert not storage.gate.is_outage(AWAY)
    assert storage.gate.is_open
    storage.trouble = AWAY
    assert storage.gate.is_outage(AWAY)
    assert not storage.gate.is_open


def test_a_refusal_that_lasts_is_final(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED", 0.2)
    storage.trouble = AWAY
    storage.gate.report(AWAY)
    assert not storage.refused.wait(0.5), "it is only away"
    storage.trouble = StorageRefused("wrong credentials")
    assert storage.refused.wait(PATIENT)
    storage.trouble = None
    assert storage.gate.wait(PATIENT), "should it change its mind"
