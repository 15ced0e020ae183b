"""Checkpoints, and a safety filter, in the engine process that a worker has."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fakes import painted
from tests.support.waiting import PATIENT
from tuwen.engine import DescribeItem, GenerateItem, MatchItem, Picture
from tuwen.errors import ContentRefused, EngineStartFailed, UnknownModel
from tuwen.jobs import DescribeResult, Kind, MatchResult
from workers.inference.policy import Policy
from workers.inference.process import EngineProcess


def process_with(specs: dict[Kind, str], **policy: object) -> EngineProcess:
    return EngineProcess(specs, "cpu", PATIENT, PATIENT, Policy(**policy))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def two_models(tiny: Callable[[str], Path]) -> Iterator[EngineProcess]:
    """Two generators of 5 MB each, and a describer and a matcher, under a budget for one and a half generators."""
    specs = {
        Kind.GENERATE: f"xl=diffusers:{tiny('stable_diffusion_xl')},diffusers:{tiny('stable_diffusion')}?steps=2",
        Kind.DESCRIBE: f"transformers:{tiny('blip')}?pinned=1",
        Kind.MATCH: f"clip:{tiny('siglip')}?pinned=1",
    }
    process = process_with(specs, memory_budget=8_000_000)
    process.start()
    yield process
    process.stop()


def test_checkpoints_answer_in_the_process_of_a_worker(two_models: EngineProcess) -> None:
    steps: list[tuple[int, int]] = []
    items = [GenerateItem("a cat", seed, steps=40) for seed in range(2)]
    pictures = two_models.run(Kind.GENERATE, items, lambda *told: steps.append(told[:2]))
    assert [each.pixels.shape for each in pictures if isinstance(each, Picture)] == [(32, 32, 3)] * 2
    assert steps[-1][1] == 40
    [text] = two_models.run(Kind.DESCRIBE, [DescribeItem(painted("nothing"), max_tokens=4)])
    assert isinstance(text, DescribeResult)
    [score] = two_models.run(Kind.MATCH, [MatchItem(painted("nothing"), "a cat")])
    assert isinstance(score, MatchResult)
    assert two_models.revisions[Kind.GENERATE].keys() == {"xl", "stable_diffusion"}
    assert two_models.revisions[Kind.GENERATE]["xl"].startswith("stable_diffusion_xl-")


def test_models_take_turns_under_a_budget_that_holds_one_and_a_half(two_models: EngineProcess) -> None:
    first, second = GenerateItem("a cat", 1, steps=1), GenerateItem("a cat", 1, steps=1, model="stable_diffusion")
    before = two_models.run(Kind.GENERATE, [first])
    assert two_models.is_warm(first)
    assert not two_models.is_warm(second)
    two_models.run(Kind.GENERATE, [second])
    assert two_models.is_warm(second)
    assert not two_models.is_warm(first)
    assert two_models.is_warm(DescribeItem(painted("nothing")))  # pinned
    after = two_models.run(Kind.GENERATE, [first])
    assert (before[0].pixels == after[0].pixels).all()  # type: ignore[union-attr]


def test_a_model_that_the_worker_does_not_have_is_refused(two_models: EngineProcess) -> None:
    with pytest.raises(UnknownModel, match="it has xl, stable_diffusion"):
        two_models.run(Kind.GENERATE, [GenerateItem("a cat", 1, model="flux")])


def test_a_checkpoint_that_cannot_be_loaded_is_named_with_its_setting(
    tiny: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = Path(shutil.copytree(tiny("clip"), tmp_path / "clip"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    process = process_with({Kind.MATCH: f"clip:{folder}"})
    with pytest.raises(EngineStartFailed, match=rf"match engine 'clip:{folder}' cannot start: .*pickle") as caught:
        process.start()
    assert "save_pretrained" in str(caught.value)
    assert f"loading the match engine clip:{folder}" in caplog.text


@pytest.mark.parametrize(
    ("kind", "spec"),
    [(Kind.GENERATE, "clip:a/b"), (Kind.MATCH, "diffusers:a/b"), (Kind.DESCRIBE, "builtin,clip:a/b")],
)
def test_an_engine_that_does_another_thing_is_refused_before_anything_is_loaded(kind: Kind, spec: str) -> None:
    process = process_with({kind: spec})
    with pytest.raises(EngineStartFailed, match=f"and cannot {kind.value}"):
        process.start()
    assert process.pid is None


def test_the_safety_filter_judges_prompts_and_pictures() -> None:
    process = process_with(
        {Kind.GENERATE: "import:tests.support.fakes:NullGenerator"}, safety="import:tests.support.fakes:refuse"
    )
    process.start()
    try:
        asked = [("a forbidden cat", 1), ("a cat", 2), ("a cat", 0)]  # seed 0 paints black
        answers = process.run(Kind.GENERATE, [GenerateItem(*each) for each in asked])
    finally:
        process.stop()
    prompt, fine, picture = answers
    assert isinstance(prompt, ContentRefused)
    assert str(prompt) == "the safety filter refused the prompt: it says forbidden"
    assert prompt.field == "input.prompt"
    assert isinstance(fine, Picture)
    assert isinstance(picture, ContentRefused)
    assert str(picture) == "the safety filter refused the picture: it is too dark"


def test_a_preview_that_the_safety_filter_cannot_judge_is_not_shown() -> None:
    process = process_with(
        {Kind.GENERATE: "import:tests.support.fakes:Puppet"}, safety="import:tests.support.fakes:refuse"
    )
    process.start()
    half = (
        "import numpy, time\ntime.sleep(0.2)\n"
        "run.progress(1, 2, lambda index: 'words' if index else numpy.zeros((8, 8, 3), 'uint8'))"
    )
    told: list[dict[int, object]] = []
    try:
        process.run(
            Kind.GENERATE,
            [GenerateItem(prompt, 1) for prompt in ("forbidden", half, "pass")],
            lambda _step, _steps, parts: told.append(dict(parts)),
            watched=lambda _: True,
        )
    finally:
        process.stop()
    assert told == [{2: "words"}]  # of the first item, which was refused, there is nothing; of the second, a picture


@pytest.mark.parametrize("safety", ["import:tests.support.fakes:nobody", "import:no.such:filter", "strict"])
def test_a_safety_filter_that_is_not_there_keeps_the_worker_from_starting(safety: str) -> None:
    process = process_with({Kind.GENERATE: "import:tests.support.fakes:NullGenerator"}, safety=safety)
    with pytest.raises(EngineStartFailed, match=f"the safety filter '{safety}'"):
        process.start()
