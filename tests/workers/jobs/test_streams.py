"""Texts that grow and pictures that take shape, from checkpoints in a real worker to those who watch."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from PIL import Image

from shared.settings import Settings
from tests.support.api_server import png
from tests.support.system import System, running_system
from tests.support.waiting import PATIENT
from tuwen.client import Client
from tuwen.jobs import (
    DescribeInput,
    DescribeResult,
    GenerateInput,
    ImageSource,
    JobInput,
    JobRequest,
    Progress,
    Status,
)

TOKENS = 600
"""Tokens of a text: so many that it takes seconds, and is seen to grow."""


@pytest.fixture(scope="module")
def system(module_settings: Settings, tiny: Callable[[str], Path]) -> Iterator[System]:
    models = {
        "describe": f"chat=transformers:{tiny('qwen2_vl')},captioner=transformers:{tiny('blip')}",
        "generate": f"diffusers:{tiny('stable_diffusion')}",
        "match": "import:tests.support.fakes:NullMatcher",
    }
    with running_system(module_settings, module_settings.data_dir, **models) as system:
        system.worker()
        yield system


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def watched(client: Client, wanted: JobInput) -> tuple[list[Progress], Any]:
    """Watch a job to its end: every progress that is heard of, and the result."""
    heard = []
    for job in client.iter_events(client.submit(JobRequest(input=wanted)).id):
        heard += [job.progress] if job.progress else []
    assert job.status is Status.SUCCEEDED, job.error
    return heard, job.result


def picture() -> ImageSource:
    return ImageSource(base64=b64encode(png("red", (32, 32))).decode())


def texts(heard: list[Progress], index: int = 0) -> list[str]:
    return [part.text or "" for progress in heard for part in progress.parts if part.index == index]


def test_a_watcher_sees_the_text_grow_into_the_result(client: Client) -> None:
    heard, result = watched(client, DescribeInput(image=picture(), max_tokens=TOKENS))
    assert isinstance(result, DescribeResult)
    seen = texts(heard)
    assert len(set(seen)) > 3
    assert all(later.startswith(earlier) for earlier, later in pairwise([*seen, result.text]))


def test_each_of_several_captions_grows_under_its_own_number(client: Client) -> None:
    heard, result = watched(client, DescribeInput(image=picture(), max_tokens=TOKENS, rerank=3))
    assert {part.index for progress in heard for part in progress.parts} == {0, 1, 2}
    captions = [caption.text for caption in result.captions]
    for index in range(3):
        last = texts(heard, index)[-1]
        assert last
        assert any(caption.startswith(last) for caption in captions)


def test_a_picture_takes_shape_at_the_steps_asked_for(client: Client) -> None:
    heard, _ = watched(client, GenerateInput(prompt="a cat", steps=200, previews=20, candidates=2))
    previews = {0: [], 1: []}  # type: dict[int, list[str]]
    for progress in heard:
        for part in progress.parts:
            previews[part.index].append(part.preview or "")
    for each in previews.values():
        assert 2 <= len(each) <= 9
        with Image.open(BytesIO(b64decode(each[-1].partition(",")[2]))) as image:
            assert (image.format, image.size) == ("WEBP", (16, 16))


def test_nobody_is_shown_what_nobody_asked_for(client: Client, url: str) -> None:
    """Neither without `previews`, nor where a job is only looked at."""
    heard, _ = watched(client, GenerateInput(prompt="a cat", steps=100))
    assert all(not progress.parts for progress in heard)
    job = client.submit(JobRequest(input=DescribeInput(image=picture(), max_tokens=TOKENS)))
    while (shown := httpx.get(f"{url}/v1/jobs/{job.id}").json())["status"] != "succeeded":
        assert (shown["progress"] or {"step": 0, "steps": 0}).keys() == {"step", "steps"}


@pytest.mark.parametrize("model", ["chat", "captioner"])
def test_openais_client_hears_an_answer_while_it_is_written(url: str, client: Client, model: str) -> None:
    data_url = f"data:image/png;base64,{b64encode(png('blue', (32, 32))).decode()}"
    content: Any = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": data_url}}]
    with OpenAI(base_url=f"{url}/v1", api_key="none needed", max_retries=0) as openai:
        wish: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": TOKENS,
        }
        whole = openai.chat.completions.create(**wish)
        usage = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(openai.chat.completions.create(**wish, **usage))
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(deltas) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    # A captioner of 64 positions is done before there is much to tell.
    assert len([delta for delta in deltas if delta]) >= (4 if model == "chat" else 1)


def test_openais_client_sees_partial_images(url: str) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="none needed", max_retries=0) as openai:
        stream = openai.images.generate(prompt="a cat", stream=True, partial_images=3, extra_body={"steps": 200})
        *partial, last = stream
    assert [each.type for each in partial] == ["image_generation.partial_image"] * 3
    assert [each.partial_image_index for each in partial] == [0, 1, 2]  # type: ignore[union-attr]
    for each in partial:
        with Image.open(BytesIO(b64decode(each.b64_json))) as image:
            assert image.format == each.output_format.upper() == "WEBP"
    assert last.type == "image_generation.completed"
    with Image.open(BytesIO(b64decode(last.b64_json))) as image:
        assert image.size == (32, 32)


def test_events_have_the_form_that_is_documented(url: str, client: Client) -> None:
    job = client.submit(JobRequest(input=DescribeInput(image=picture(), max_tokens=TOKENS)))
    name, forms = "", set()
    with httpx.stream("GET", f"{url}/v1/jobs/{job.id}/events", timeout=PATIENT) as answer:
        for line in answer.iter_lines():
            field, _, value = line.partition(": ")
            name = value if field == "event" else name
            if field == "data" and name == "progress" and (told := json.loads(value)).get("parts"):
                forms |= {(*told, *told["parts"][0])}
    assert forms == {("step", "steps", "parts", "index", "text")}
