"""torch.compile before the first job, and never again: on the real architectures at toy size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from shared.model_specs import parse_models
from tests.support.fakes import painted
from tuwen.engine import Compilable, DescribeItem, GenerateItem, Item, Picture
from tuwen.errors import EngineStartFailed
from tuwen.jobs import DescribeResult
from workers.engines.checkpoint import locate
from workers.engines.clip import ClipMatcher
from workers.engines.diffusers import DiffusersGenerator
from workers.engines.placement import UnobservedRun
from workers.engines.transformers import TransformersDescriber
from workers.inference.policy import Policy

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are traced as ever, but run by the kernels of eager mode: generating code for them takes minutes."""
    compile_for_real = torch.nn.Module.compile

    def trace(self: torch.nn.Module, **options: Any) -> None:
        options.pop("mode")
        compile_for_real(self, backend="aot_eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", trace)


def load(engine: Any, text: str) -> Any:
    [spec] = parse_models(text)
    return engine(device="cpu", checkpoint=locate(spec, engine.layout, Policy(), lambda *_: None))


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, DescribeResult):
        return bool(one.text == other.text)
    assert isinstance(one, Picture), one
    return bool(np.abs(one.pixels.astype(int) - other.pixels).max() <= 2)


def pictures(count: int, **wanted: Any) -> list[Item]:
    return [GenerateItem("a cat", seed, steps=2, **wanted) for seed in range(count)]


def texts(count: int, **wanted: Any) -> list[Item]:
    return [DescribeItem(painted("nothing", 32), seed=seed or None, **wanted) for seed in range(count)]


@pytest.mark.usefixtures("traced")
def test_no_text_waits_for_the_compiler(tiny: Callable[[str], Path]) -> None:
    batches = [texts(count, max_tokens=9) for count in (1, 2, 5)] + [texts(1, prompt="what is it?")]
    plain = load(TransformersDescriber, f"transformers:{tiny('qwen2_vl')}")
    expected = [plain.run(items, UnobservedRun()) for items in batches]
    engine = load(TransformersDescriber, f"transformers:{tiny('qwen2_vl')}?compile=default")
    assert isinstance(engine, Compilable)
    engine.compile()
    ready = graphs()
    assert ready > 1  # for a single text, and for more
    for items, answers in zip(batches, expected, strict=True):
        assert all(map(alike, engine.run(items, UnobservedRun()), answers))
    assert graphs() == ready


@pytest.mark.usefixtures("traced")
def test_pictures_are_compiled_for_the_batches_that_are_measured_and_for_no_job(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's batch size is found after the start, by running larger and larger batches."""
    batches = [pictures(1), pictures(2), pictures(4), pictures(2, width=48), pictures(1, guidance=1.0)]
    plain = load(DiffusersGenerator, f"diffusers:{tiny('stable_diffusion_3')}")
    expected = [plain.run(items, UnobservedRun()) for items in batches]
    engine = load(DiffusersGenerator, f"diffusers:{tiny('stable_diffusion_3')}?compile=default&batch=1")
    assert graphs() == 0
    engine.compile()
    one = graphs()
    engine.run(pictures(2), UnobservedRun())
    assert graphs() == one > 0
    monkeypatch.setattr(engine.batch, "measure", lambda run, room: run(2))
    engine.calibrate(0)
    ready = graphs()
    assert ready > one
    for items, answers in zip(batches, expected, strict=True):
        assert all(map(alike, engine.run(items, UnobservedRun()), answers))
    assert graphs() == ready


@pytest.mark.needs("g++")  # torch.compile generates C++ for the CPU
@pytest.mark.skipif(" " in torch.__file__, reason="torch.compile links nothing that lies under a path with a space")
def test_compiled_for_real(tiny: Callable[[str], Path]) -> None:
    plain = load(DiffusersGenerator, f"diffusers:{tiny('stable_diffusion_3')}")
    [expected] = plain.run(pictures(1), UnobservedRun())
    engine = load(DiffusersGenerator, f"diffusers:{tiny('stable_diffusion_3')}?compile=default&batch=1")
    engine.compile()
    assert graphs() == 1
    [made] = engine.run(pictures(1), UnobservedRun())
    assert alike(made, expected)
    assert graphs() == 1


def test_an_engine_that_is_not_compiled_refuses_the_option(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(EngineStartFailed, match="no option is called compile"):
        load(ClipMatcher, f"clip:{tiny('clip')}?compile=default")
