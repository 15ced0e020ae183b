"""Candidates, reranking and pair reports through the whole system, with the built-in models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from api.cli.main import app
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.system import running_system
from tuwen.client import Client
from tuwen.errors import NotFound
from tuwen.jobs import (
    DescribeInput,
    DescribeResult,
    GenerateInput,
    GenerateResult,
    JobRequest,
    MatchInput,
    MatchResult,
)
from workers.lab.world.render import render
from workers.scenes.grammar import Scene, Thing

BUILTIN = dict.fromkeys(("generate", "describe", "recognize", "match"), "builtin")
PROMPT = "一只黑色的猫在草地上跳跃"


@pytest.fixture(scope="module")
def client(module_settings: Settings) -> Iterator[Client]:
    with running_system(module_settings, module_settings.data_dir, **BUILTIN) as system:
        system.worker()
        with serving(system.settings) as url, Client(url) as client:
            yield client


def picture() -> bytes:
    file = BytesIO()
    scene = Scene((Thing("cat", "black", "jumping"),), "grass", seed=5)
    Image.fromarray(np.asarray(render(scene, 64))).save(file, "PNG")
    return file.getvalue()


def test_the_best_of_four(client: Client) -> None:
    wanted = GenerateInput(prompt=PROMPT, seed=11, candidates=4, keep="all")
    job = client.wait(client.submit(JobRequest(input=wanted)).id)
    assert isinstance(job.result, GenerateResult), job.error
    scores = [candidate.score for candidate in job.result.candidates]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 1
    assert {candidate.seed for candidate in job.result.candidates} == {11, 12, 13, 14}
    best = job.result.candidates[0]
    assert (job.result.seed, job.result.score, job.result.image) == (best.seed, best.score, best.image)
    # Each candidate is what a job of its seed alone draws, and its score what a match job says of it.
    alone = client.wait(client.generate(PROMPT, seed=best.seed).id)
    assert isinstance(alone.result, GenerateResult)
    assert alone.result.image.sha256 == best.image.sha256 if best.image else None
    match = client.wait(client.match(client.result_bytes(job), PROMPT).id)
    assert isinstance(match.result, MatchResult)
    assert match.result.score == pytest.approx(best.score, abs=1e-4)


def test_every_kept_candidate_can_be_fetched(client: Client) -> None:
    wanted = GenerateInput(prompt=PROMPT, candidates=2, keep="all")
    job = client.wait(client.submit(JobRequest(input=wanted)).id)
    assert isinstance(job.result, GenerateResult), job.error
    for number, candidate in enumerate(job.result.candidates):
        assert client.result_bytes(job, candidate=number)[:4] == b"\x89PNG"
        assert candidate.image is not None
    with pytest.raises(NotFound):
        client.result_bytes(job, candidate=2)


def test_a_score_that_cannot_be_reached(client: Client) -> None:
    wanted = GenerateInput(prompt="a cat and a zeppelin", candidates=2, min_score=1.0, rounds=2)
    job = client.wait(client.submit(JobRequest(input=wanted)).id)
    assert isinstance(job.result, GenerateResult), job.error
    assert job.result.fell_short
    assert len(job.result.candidates) == 4
    assert [candidate.image is not None for candidate in job.result.candidates] == [True, False, False, False]


def test_a_reranked_description(client: Client) -> None:
    wanted = DescribeInput(image=client.source(picture()), language="zh", rerank=6)
    job = client.wait(client.submit(JobRequest(input=wanted)).id)
    assert isinstance(job.result, DescribeResult), job.error
    assert job.result.captions[0].text == job.result.text
    assert job.result.score == max(caption.score for caption in job.result.captions)
    assert "猫" in job.result.text
    assert job.result.tokens


def test_a_pair_report(client: Client) -> None:
    wanted = MatchInput(image=client.source(picture()), text="a black cat jumping on the snow", report=True)
    job = client.wait(client.submit(JobRequest(input=wanted)).id)
    assert isinstance(job.result, MatchResult), job.error
    assert job.result.report is not None
    found = {claim.value: claim.found for claim in job.result.report.claims}
    assert found == {"cat": True, "black": True, "jumping": True, "snow": False}
    scores = {claim.value: claim.score for claim in job.result.report.claims}
    assert scores["cat"] > 0.5 > scores["snow"]


def tuwen(client: Client, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["--url", str(client.base_url), *arguments])


def test_the_command_keeps_the_best(client: Client, tmp_path: Path) -> None:
    done = tuwen(client, "generate", PROMPT, "-n", "3", "--keep", "best", "--seed", "3", "-o", f"{tmp_path}/")
    assert done.exit_code == 0, done.output
    assert len([*tmp_path.iterdir()]) == 1
    score, others = re.search(r"score ([\d.]+) \(the others ([\d., ]+)\)", done.stderr).groups()  # type: ignore[union-attr]
    assert len(others.split(", ")) == 2
    assert float(score) == max(float(each) for each in [score, *others.split(", ")])


def test_the_command_keeps_all(client: Client, tmp_path: Path) -> None:
    done = tuwen(client, "generate", PROMPT, "a red car", "-n", "2", "--keep", "all", "-o", f"{tmp_path}/", "--json")
    assert done.exit_code == 0, done.output
    named = [json.loads(line)["files"] for line in done.stdout.splitlines()]
    assert sorted(file for files in named for file in files) == sorted(map(str, tmp_path.iterdir()))
    assert [len(files) for files in named] == [2, 2]


def test_the_command_reports_on_a_pair(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "cat.png"
    file.write_bytes(picture())
    done = tuwen(client, "match", "a black cat on the snow by a zeppelin", str(file), "--report")
    assert done.exit_code == 0, done.output
    assert re.findall(r"^  (\S) (.*?)(?:  \(|$)", done.stdout, re.MULTILINE) == [
        ("✓", "a cat"),
        ("✓", "a black cat"),
        ("✗", "a cat on the snow"),
        ("?", "zeppelin"),
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["-n", "17", "--keep", "best"], "at most 16"), (["--keep", "all", "--min-score", "0.5"], "only the best")],
)
def test_what_the_command_refuses(client: Client, arguments: list[str], complaint: str) -> None:
    done = tuwen(client, "generate", "a cat", *arguments)
    assert done.exit_code == 2
    assert complaint in done.stderr


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"kind": "generate", "prompt": "a", "candidates": 17}, "input.candidates"),
        ({"kind": "generate", "prompt": "a", "candidates": 0}, "input.candidates"),
        ({"kind": "generate", "prompt": "a", "min_score": 1.5}, "input.min_score"),
        ({"kind": "generate", "prompt": "a", "keep": "some"}, "input.keep"),
        ({"kind": "describe", "image": {"file_id": "0" * 64}, "rerank": 99}, "input.rerank"),
    ],
)
def test_what_cannot_be(api: httpx.Client, wish: dict[str, object], field: str) -> None:
    answer = api.post("/v1/jobs", json={"input": wish})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
