"""Models that stay loaded under a budget, the size of their batches, and the holder of the GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from api.embedded.stack import devices
from tests.support.fakes import NullGenerator
from tuwen.errors import ConfigurationError, EngineStartFailed
from tuwen.jobs import Kind
from workers.engines.placement import BatchSize
from workers.inference.devices import hold
from workers.inference.residents import Key, Residents

ROOT = Path(__file__).parents[3]


def key(name: str) -> Key:
    return Kind.GENERATE, name


class Weighty(NullGenerator):
    """An engine as large as its name says."""

    def __init__(self, name: str):
        super().__init__("cpu")
        self.revision = name
        self.batch: object = object()
        self.rooms: list[int] = []

    def weights(self) -> int:
        return int(self.revision.partition("-")[2])

    def calibrate(self, room: int) -> None:
        self.rooms.append(room)


class Library:
    """Loads what is asked for and remembers it."""

    def __init__(self) -> None:
        self.loads: list[str] = []

    def load(self, wanted: Key) -> NullGenerator:
        self.loads.append(wanted[1])
        return Weighty(wanted[1]) if "-" in wanted[1] else NullGenerator("cpu")


@pytest.fixture
def library() -> Library:
    return Library()


def warm(residents: Residents) -> set[str]:
    return {name for _, name in residents.warm}


def test_the_least_recently_used_model_makes_room(library: Library) -> None:
    residents = Residents(library.load, budget=100)
    for name in ("a-30", "b-30", "a-30", "c-30"):
        residents.get(key(name))
    assert warm(residents) == {"a-30", "c-30"}
    residents.get(key("a-30"))
    assert library.loads == ["a-30", "b-30", "c-30"]
    residents.get(key("b-30"))
    assert warm(residents) == {"a-30", "b-30"}


def test_pinned_models_and_those_that_weigh_nothing_stay(library: Library) -> None:
    residents = Residents(library.load, budget=100, pinned=[key("a-30")])
    for name in ("a-30", "light", "b-40", "c-40"):
        residents.get(key(name))
    assert warm(residents) == {"a-30", "light", "c-40"}


def test_without_a_budget_everything_stays(library: Library) -> None:
    residents = Residents(library.load, budget=None)
    for name in ("a-30", "b-300"):
        residents.get(key(name))
    assert warm(residents) == {"a-30", "b-300"}


def test_a_model_that_can_never_fit_is_refused_with_what_to_do(library: Library) -> None:
    residents = Residents(library.load, budget=100, pinned=[key("a-50")])
    residents.get(key("a-50"))
    with pytest.raises(EngineStartFailed, match="raise TUWEN_MEMORY_BUDGET"):
        residents.get(key("b-30"))
    with pytest.raises(EngineStartFailed, match="c-76"):
        Residents(library.load, budget=100).get(key("c-76"))


def test_what_all_weights_leave_is_for_the_work_but_never_less_than_a_quarter(library: Library) -> None:
    residents = Residents(library.load, budget=100)
    residents.get(key("a-30"))
    assert residents.room == 70
    residents.get(key("b-60"))
    assert residents.room == 25
    residents.calibrate()
    assert warm(residents) == {"a-30"}
    assert library.loads == ["a-30", "b-60", "a-30"]  # b is measured first: it was there


def test_the_size_of_a_batch_outlives_its_model(library: Library) -> None:
    residents = Residents(library.load, budget=100)
    before = residents.get(key("a-60"))
    residents.get(key("b-60"))
    after = residents.get(key("a-60"))
    assert after is not before
    assert after.batch is before.batch  # type: ignore[attr-defined]


def test_room_is_made_by_the_size_of_the_files_before_the_first_load(library: Library) -> None:
    residents = Residents(library.load, budget=100)
    residents.get(key("a-60"))
    residents.expect(key("b-60"), 60)
    assert warm(residents) == set()


# ── batches ───────────────────────────────────────────────────────────────────────────────────────


class FakeGpu:
    """A GPU's memory and clock as torch tells of them: `each` bytes and some milliseconds an item."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, each: int, seconds: Callable[[int], float]):
        import torch

        from workers.engines import placement

        self.each, self.seconds = each, seconds
        self.now, self.peak, self.capacity = 0.0, 0, 10**12
        self.sizes: list[int] = []
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(placement, "perf_counter", lambda: self.now)

    def run(self, count: int) -> None:
        import torch

        self.sizes.append(count)
        self.peak = 1000 + self.each * count
        if self.peak > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.now += self.seconds(count)


def test_the_batch_grows_while_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch, each=100, seconds=lambda count: 1.0)
    batch = BatchSize("cuda:0", start=4, most=64)
    batch.measure(gpu.run, room=1000)
    assert batch.best == 8
    assert max(gpu.sizes) == 8  # what would not fit is foreseen, not tried


def test_the_batch_grows_only_while_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch, each=1, seconds=lambda count: max(1.0, count / 4))
    batch = BatchSize("cuda:0", start=1, most=64)
    batch.measure(gpu.run, room=10**6)
    assert batch.best == 4


def test_running_out_of_memory_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch, each=100, seconds=lambda count: 1.0)
    gpu.capacity = 1000 + 250
    batch = BatchSize("cuda:0", start=1, most=64)
    batch.measure(gpu.run, room=10**6)
    assert batch.best == 2


def test_a_given_size_is_not_measured() -> None:
    batch = BatchSize.of("cuda:0", {"batch": "3"}, start=1, most=64)
    batch.measure(lambda count: pytest.fail("tried"), room=10**6)
    assert batch.limit() == 3
    assert batch.limit(share=2) == 1


# ── one worker a GPU ──────────────────────────────────────────────────────────────────────────────


def test_what_one_process_holds_another_cannot_have_until_it_ends(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from workers.inference.devices import hold; "
        "held = hold('GPU-1', 'the GPU', pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(EngineStartFailed, match=rf"belongs to another worker .* process {other.pid}\b"):
            hold("GPU-1", "the GPU", tmp_path)
        hold("GPU-2", "another GPU", tmp_path).close()
        other.kill()
    hold("GPU-1", "the GPU", tmp_path).close()


FAKE_TORCH = """
class cuda:
    device_count = staticmethod(lambda: {count})
"""


def test_all_devices_are_the_gpus_in_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    # Two files of one size and one second are the same to Python's cache of compiled modules.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "torch.py").write_text(FAKE_TORCH.format(count=2))
    assert devices(["all"]) == ["cuda:0", "cuda:1"]
    assert devices(["cuda:1", "cpu", "cuda:1"]) == ["cuda:1", "cpu"]
    (tmp_path / "torch.py").write_text(FAKE_TORCH.format(count=0))
    with pytest.raises(ConfigurationError, match="there is no GPU to start a worker on"):
        devices(["all"])
