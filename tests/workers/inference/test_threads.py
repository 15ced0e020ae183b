"""How many threads a model is found to make use of; its time is told by a clock that only the model moves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tuwen.jobs import Kind
from workers.inference import threads
from workers.inference.threads import SLOW, Threads

ONE, OTHER = (Kind.DESCRIBE, "one"), (Kind.GENERATE, "other")


class Machine:
    """Stands for torch and for the clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.threads = 4
        self.trials: list[int] = []

    def set_num_threads(self, count: int) -> None:
        self.threads = count

    def model(self, seconds: Callable[[int], float]) -> Callable[[], None]:
        """A model that takes so many seconds with so many threads."""

        def trial() -> None:
            self.trials.append(self.threads)
            self.now += seconds(self.threads)

        return trial


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setitem(sys.modules, "torch", machine)
    monkeypatch.setattr(threads, "time", SimpleNamespace(perf_counter=lambda: machine.now))
    return machine


@pytest.mark.parametrize(
    ("seconds", "found"),
    [
        (lambda _: 0.02, 3),  # what it does cannot be shared out
        (lambda count: 0.02 * count, 3),  # its threads are in each other's way
        (lambda count: 0.3 / count, 4),
        (lambda count: 0.02 + 0.02 / count, 3),
    ],
)
def test_a_model_leaves_the_core_that_it_hardly_uses(
    machine: Machine, seconds: Callable[[int], float], found: int
) -> None:
    Threads(4).fit(ONE, machine.model(seconds))
    assert machine.threads == found


def test_one_disturbed_trial_decides_nothing(machine: Machine) -> None:
    def seconds(count: int) -> float:
        return 0.9 if len(machine.trials) == 4 else 0.3 / count

    Threads(4).fit(ONE, machine.model(seconds))
    assert machine.threads == 4


def test_beside_a_slow_model_nothing_matters(machine: Machine) -> None:
    Threads(4).fit(ONE, machine.model(lambda _: SLOW * 1.5))
    assert machine.trials == [4]
    assert machine.threads == 4


def test_each_model_has_its_own_number_and_is_tried_once(machine: Machine) -> None:
    ours = Threads(4)
    ours.fit(ONE, machine.model(lambda _: 0.02))
    ours.fit(OTHER, machine.model(lambda count: 0.3 / count))
    tried = len(machine.trials)
    ours.use(ONE)
    assert machine.threads == 3
    ours.use(OTHER)
    assert machine.threads == 4
    ours.fit(ONE, machine.model(lambda _: 0.02))  # it was evicted
    assert machine.threads == 3
    ours.use((Kind.MATCH, "never tried"))
    assert machine.threads == 4
    assert len(machine.trials) == tried


def test_one_thread_leaves_nothing_to_choose(machine: Machine) -> None:
    ours = Threads(1)
    ours.fit(ONE, machine.model(lambda _: 0.02))
    ours.use(ONE)
    assert (machine.trials, machine.threads) == ([], 4)


def test_a_process_without_torch_has_no_threads_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    Threads(4).use(ONE)
    assert "torch" not in sys.modules
