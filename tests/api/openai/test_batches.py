"""Batches with OpenAI's own client: files of requests in, files of answers out."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Batch

from api.http.auth import new_key
from api.openai.documents import document_id
from shared.settings import Settings
from tests.api.openai.test_openai import client, colour, data_url, question, system
from tests.support.api_server import png, serving
from tests.support.fakes import seed_colour
from tests.support.system import System
from tests.support.waiting import PATIENT
from tuwen.jobs import Status
from workers.housekeeper import batches
from workers.housekeeper.batches import BatchRunner

__all__ = ["client", "system"]  # fixtures

MODEL = "import:tests.support.fakes:NullDescriber"
CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"


@contextmanager
def working_off(settings: Settings) -> Iterator[BatchRunner]:
    """A housekeeper's thread for batches, in this process, where a test can change its limits."""
    runner = BatchRunner(settings)
    runner.start()
    try:
        yield runner
    finally:
        runner.close(10)


@pytest.fixture(scope="module", autouse=True)
def runner(system: System) -> Iterator[BatchRunner]:
    with working_off(system.settings) as runner:
        yield runner


def line(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def chat_line(number: int, shade: int) -> dict[str, Any]:
    image = data_url(png(f"#0000{shade:02x}"))
    return line(f"request-{number}", CHAT, {"model": MODEL, "messages": question(image)})


def drawing_line(number: int, prompt: str = "a cat", **parameters: Any) -> dict[str, Any]:
    return line(f"drawing-{number}", IMAGES, {"prompt": prompt, "seed": number, **parameters})


def submit(client: OpenAI, lines: list[Any], endpoint: Any = CHAT, **options: Any) -> Batch:
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    file = client.files.create(file=("requests.jsonl", text.encode()), purpose="batch")
    assert (file.purpose, file.bytes, file.filename) == ("batch", len(text), "requests.jsonl")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **options)


def over(client: OpenAI, batch: Batch) -> Batch:
    deadline = time.monotonic() + PATIENT
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def answers(client: OpenAI, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    lines = [json.loads(each) for each in client.files.content(file_id).text.splitlines()]
    found = {each["custom_id"]: each for each in lines}
    assert len(found) == len(lines), "a request was answered twice"
    return found


def test_every_line_is_answered_once(client: OpenAI) -> None:
    bad = [
        line("no image", CHAT, {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}),
        line("no such model", CHAT, {"model": "gpt-4o", "messages": question(data_url(png()))}),
        line("no picture", CHAT, {"model": MODEL, "messages": question("data:image/png;base64,AAAA")}),
        line("streamed", CHAT, {"model": MODEL, "messages": question(data_url(png())), "stream": True}),
    ]
    good = [chat_line(number, number % 256) for number in range(230)]
    batch = submit(client, [*good[:100], *bad, "", *good[100:]], metadata={"set": "blues"})
    assert batch.status == "validating"
    batch = over(client, batch)
    assert batch.status == "completed"
    assert batch.metadata == {"set": "blues"}
    assert batch.request_counts
    assert batch.request_counts.model_dump() == {"total": 234, "completed": 230, "failed": 4}
    found = answers(client, batch.output_file_id)
    assert len(found) == 230
    for number in range(230):
        body = found[f"request-{number}"]["response"]["body"]
        assert body["choices"][0]["message"]["content"] == f"the colour 0-0-{number % 256}"
    refused = answers(client, batch.error_file_id)
    codes = {
        id: (each["response"]["status_code"], each["response"]["body"]["error"]["code"]) for id, each in refused.items()
    }
    assert codes == {
        "no image": (400, "invalid_request"),
        "no such model": (404, "model_not_found"),
        "no picture": (400, "unsupported_format"),
        "streamed": (400, "invalid_request"),
    }
    assert batch.id in [each.id for each in client.batches.list(limit=5)]


def test_a_small_quota_slows_a_batch_and_does_not_stop_it(system: System) -> None:
    settings = system.settings.model_copy(update={"auth": "keys"})
    key, hashed = new_key()
    system.database.keys.add(name="small", tenant="small", sha256=hashed, quota=3)
    with serving(settings) as url, OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        batch = over(client, submit(client, [chat_line(number, number) for number in range(10)]))
        assert len(answers(client, batch.output_file_id)) == 10


def test_a_tenant_at_its_bound_is_told_so_line_by_line(system: System) -> None:
    """Its input takes all the room that there is."""
    lines = [drawing_line(number) for number in range(3)]
    settings = system.settings.model_copy(update={"auth": "keys"})
    key, hashed = new_key()
    bound = len("\n".join(map(json.dumps, lines)))
    system.database.keys.add(name="full", tenant="full", sha256=hashed, quota=100, max_stored_bytes=bound)
    with serving(settings) as url, OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        batch = over(client, submit(client, lines, IMAGES))
        refused = answers(client, batch.error_file_id)
    assert (batch.status, len(refused)) == ("completed", 3)
    for each in refused.values():
        assert each["response"]["status_code"] == 403
        assert each["response"]["body"]["error"]["code"] == "storage_quota_exceeded"


def test_images_come_as_bytes_or_addresses(client: OpenAI) -> None:
    lines = [drawing_line(1), drawing_line(2, n=2), drawing_line(3, response_format="url"), drawing_line(4, "reject")]
    batch = over(client, submit(client, lines, IMAGES))
    found = {id: each["response"]["body"]["data"] for id, each in answers(client, batch.output_file_id).items()}
    assert colour(b64decode(found["drawing-1"][0]["b64_json"])) == seed_colour(1)
    assert len(found["drawing-2"]) == 2
    assert found["drawing-3"][0]["url"].startswith("http://127.0.0.1:")
    failed = answers(client, batch.error_file_id)
    assert failed["drawing-4"]["response"]["status_code"] == 500
    assert failed["drawing-4"]["response"]["body"]["error"]["code"] == "engine_error"


def test_a_bad_input_is_refused_as_a_whole(client: OpenAI, system: System) -> None:
    lines = [chat_line(1, 1), "no JSON", drawing_line(2), chat_line(1, 1), {"custom_id": "x", "method": "GET"}]
    batch = over(client, submit(client, lines))
    assert batch.status == "failed"
    assert batch.errors
    assert batch.errors.data
    assert [(each.line, each.param) for each in batch.errors.data] == [
        (2, "body"),
        (3, "url"),
        (4, "custom_id"),
        (5, "method"),
    ]
    assert batch.output_file_id is None
    assert system.database.batches.jobs_under_way(document_id(batch.id.replace("batch_", "file-"))) == []


def test_too_many_lines(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_LINES", 3)
    batch = over(client, submit(client, [chat_line(number, 0) for number in range(4)]))
    assert batch.status == "failed"
    assert batch.errors
    assert [each.line for each in batch.errors.data or []] == [4]


def test_a_cancelled_batch_keeps_what_is_done(client: OpenAI, system: System) -> None:
    quick = [drawing_line(number) for number in range(5)]
    # Of another size, so that none shares a forward pass with a quick one.
    slow = [drawing_line(number, "sleep 60", size="16x16") for number in range(5, 25)]
    batch = submit(client, [*quick, *slow], IMAGES)
    system.wait_until(lambda: _succeeded(system, batch) == 5 and _running(system, batch), "the quick ones to be done")
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = over(client, batch)
    assert batch.status == "cancelled"
    assert sorted(answers(client, batch.output_file_id)) == [f"drawing-{number}" for number in range(5)]
    called_off = answers(client, batch.error_file_id)
    assert {each["error"]["code"] for each in called_off.values()} == {"batch_cancelled"}
    assert len(called_off) == 20
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def _jobs(system: System, batch: Batch) -> list[Any]:
    ids = system.database.batches.jobs_under_way(document_id(batch.id.replace("batch_", "file-")))
    return system.database.jobs.get_many(ids, "local")


def _succeeded(system: System, batch: Batch) -> int:
    written = system.database.batches.get(document_id(batch.id.replace("batch_", "file-")), "local").completed
    return written + sum(job.status is Status.SUCCEEDED for job in _jobs(system, batch))


def _running(system: System, batch: Batch) -> bool:
    return any(job.status is Status.RUNNING for job in _jobs(system, batch))


def test_another_process_takes_over(client: OpenAI, system: System) -> None:
    """A process that took the batch and died left nothing half done."""
    batch = submit(client, [chat_line(number, number % 256) for number in range(150)])
    with working_off(system.settings.model_copy(update={"lease": 2.0})):  # a second housekeeper's
        for _ in range(3):
            system.database.batches.take(0.3)  # and processes that die with it in their hands
            time.sleep(0.1)
        batch = over(client, batch)
    assert batch.request_counts
    assert batch.request_counts.completed == 150
    assert len(answers(client, batch.output_file_id)) == 150


def test_files(client: OpenAI) -> None:
    image = client.files.create(file=("cat.png", png("red")), purpose="vision")
    assert (image.object, image.purpose, image.bytes) == ("file", "vision", len(png("red")))
    assert client.files.retrieve(image.id) == image
    file = client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == b"{}\n"
    assert file.id in [each.id for each in client.files.list(purpose="batch", limit=2)]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("a.jsonl", b"{}\n"), purpose="fine-tune")
    with pytest.raises(openai.ConflictError):
        client.files.delete(image.id)


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"input_file_id": "file-00000000000000000000000000000000"}, "input_file_id"),
        ({"input_file_id": "nonsense"}, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
    ],
)
def test_what_cannot_be(client: OpenAI, changed: dict[str, Any], param: str) -> None:
    file = client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
    given: dict[str, Any] = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    with pytest.raises(openai.BadRequestError) as refused:
        client.batches.create(**{**given, **changed})
    assert refused.value.param == param


def test_a_batch_that_nobody_made(client: OpenAI) -> None:
    for id in ("batch_" + "0" * 32, "nonsense"):
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve(id)
