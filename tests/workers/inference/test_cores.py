"""How the cores are shared out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.settings import Settings
from tuwen.errors import ConfigurationError
from tuwen.jobs import Kind
from workers.inference import cores as module
from workers.inference.cores import engine_processes, engine_threads, usable_cores


@pytest.mark.parametrize(
    ("cpu_max", "cores"), [("150000 100000", 2), ("max 100000", None), ("1000 100000", 1), ("nonsense", None)]
)
def test_cores_are_those_of_the_container(tmp_path: Path, cpu_max: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(cpu_max)
    mine = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path / "cpu.max") == min(mine, cores or mine)
    assert usable_cores(tmp_path / "absent") == mine


@pytest.mark.parametrize(
    ("cores", "changed", "processes"),
    [
        (1, {}, 1),
        (2, {}, 2),
        (64, {}, module.MOST_PROCESSES),
        (2, {"generate": "diffusers:/models/sdxl"}, 1),
        (2, {"generate": "import:tests.support.fakes:NullGenerator"}, 1),
        (2, {"generate": "diffusers:/models/sdxl", "kinds": (Kind.DESCRIBE,)}, 2),
        (2, {"generate": "diffusers:/models/sdxl", "engines": 3}, 3),
        (2, {"device": "cuda:0"}, 1),
    ],
)
def test_a_core_each_where_the_models_are_small(
    monkeypatch: pytest.MonkeyPatch, cores: int, changed: dict[str, object], processes: int
) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: cores)
    assert engine_processes(Settings(**changed)) == processes  # type: ignore[arg-type]


def test_a_gpu_belongs_to_one_engine() -> None:
    with pytest.raises(ConfigurationError, match="TUWEN_ENGINES"):
        engine_processes(Settings(device="cuda:1", engines=2))


@pytest.mark.parametrize(
    ("cores", "processes", "beside", "threads"),
    [(1, 1, 1, 1), (2, 1, 1, 2), (2, 2, 1, 1), (8, 1, 7, 8), (16, 4, 3, 4), (2, 3, 1, 1)],
)
def test_small_models_leave_a_core_to_the_rest_and_large_ones_get_all(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, beside: int, threads: int
) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: cores)
    assert engine_threads(Settings(), processes) == beside
    assert engine_threads(Settings(match="clip:/models/clip"), processes) == threads
