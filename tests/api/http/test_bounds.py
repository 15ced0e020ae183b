"""What one key may keep and have under way: exact under parallel requests to several API processes, and explained."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from alembic import command
from openai import OpenAI, PermissionDeniedError, RateLimitError
from typer.testing import CliRunner

from api.cli.main import app
from api.embedded.addresses import as_environment
from api.http.auth import new_key
from shared.database import Database
from shared.migrations import _config
from shared.settings import Settings
from tests.support.api_server import FakeWorker, png, serving
from tests.support.plain_sql import Sql, plain_sql
from tests.support.servers import Postgres
from tests.support.waiting import PATIENT, eventually
from tuwen.datasets import DatasetRequest
from tuwen.errors import QuotaExceeded

IMAGE = len(png())
GENERATE = {"input": {"kind": "generate", "prompt": "a cat"}}
LINE = {"custom_id": "1", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a cat"}}


class Installation:
    """Two APIs on one database, as two processes are, and a key of a tenant called `t`."""

    def __init__(self, urls: list[str], database: Database, settings: Settings, bounds: dict[str, int]):
        self.settings = settings
        self.database = database
        self.key, digest = new_key()
        self.id = database.keys.add(name="t", tenant="t", sha256=digest, quota=50, **bounds)
        headers = {"Authorization": f"Bearer {self.key}"}
        self.apis = [httpx.Client(base_url=url, headers=headers, timeout=PATIENT) for url in urls]
        self.api = self.apis[0]
        self.openai = OpenAI(base_url=f"{urls[0]}/v1", api_key=self.key, max_retries=0)

    def together(self, request: Callable[[httpx.Client, int], httpx.Response], count: int) -> list[httpx.Response]:
        """The answers to `count` requests that are made at the same time, half of them to each API."""
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(request, cycle(self.apis), range(count)))

    def upload_batch(self, size: int = 0) -> httpx.Response:
        line = json.dumps(LINE | {"custom_id": "x" * size}).encode()
        return self.api.post("/v1/files", files={"file": ("b.jsonl", line)}, data={"purpose": "batch"})

    def stored(self) -> int:
        return self.database.usage.of(["t"])["t"].stored_bytes

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "api.cli", "keys", *words]
        environment = as_environment(self.settings)
        return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=PATIENT, check=False)

    def close(self) -> None:
        for api in self.apis:
            api.close()
        self.openai.close()


@pytest.fixture
def install(settings: Settings, database: Database, tmp_path: Path) -> Iterator[Callable[..., Installation]]:
    locked = settings.model_copy(update={"auth": "keys", "default_datasets": 3, "dataset_roots": (str(tmp_path),)})
    made: list[Installation] = []
    with serving(locked) as first, serving(locked) as second:

        def make(**bounds: int) -> Installation:
            made.append(Installation([first, second], database, locked, bounds))
            return made[-1]

        yield make
        for each in made:
            each.close()


def counted(answers: list[httpx.Response]) -> dict[int, int]:
    return dict(Counter(answer.status_code for answer in answers))


def picture(number: int) -> bytes:
    return png(f"#{number:06x}")


# ── stored bytes ──────────────────────────────────────────────────────────────────────────────────────


def test_stored_bytes_are_exact_under_parallel_uploads(install: Callable[..., Installation]) -> None:
    bound = sum(len(picture(number)) for number in range(4)) + IMAGE // 2
    there = install(max_stored_bytes=bound)
    answers = there.together(lambda api, number: api.post("/v1/files", content=picture(number)), 12)
    assert counted(answers) == {201: 4, 403: 8}
    refused = next(answer for answer in answers if answer.status_code == 403).json()
    assert refused["code"] == "storage_quota_exceeded"
    assert f"may keep {bound}" in refused["detail"]
    assert "delete what is no longer needed" in refused["detail"]
    assert there.stored() == sum(answer.json()["size"] for answer in answers if answer.status_code == 201) <= bound
    # The same bytes again are the same file, which needs no room.
    kept = next(number for number, answer in enumerate(answers) if answer.status_code == 201)
    assert there.api.post("/v1/files", content=picture(kept)).status_code == 201


def test_images_in_requests_count_and_name_their_field(install: Callable[..., Installation]) -> None:
    there = install(max_stored_bytes=IMAGE + 1)
    assert there.api.post("/v1/files", content=png()).status_code == 201
    inline = b64encode(png("red")).decode()
    job = {"input": {"kind": "recognize", "image": {"base64": inline}}}
    refused = there.api.post("/v1/jobs", json=job)
    assert (refused.status_code, refused.json()["code"]) == (403, "storage_quota_exceeded")
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{inline}"}}
    with pytest.raises(PermissionDeniedError) as error:
        there.openai.chat.completions.create(model="builtin", messages=[{"role": "user", "content": [image]}])
    assert error.value.code == "storage_quota_exceeded"
    assert set(error.value.body or {}) == {"message", "type", "param", "code"}  # type: ignore[arg-type]


def test_results_count_and_a_full_tenant_gets_no_more(
    install: Callable[..., Installation], hand: FakeWorker, sql: Sql
) -> None:
    there = install(max_stored_bytes=IMAGE)
    accepted = [UUID(there.api.post("/v1/jobs", json=GENERATE).json()["id"]) for _ in range(2)]
    for id in accepted:
        hand.claim(id)
        hand.succeed(id, png())  # what was accepted is kept, also beyond the bound
    assert there.stored() == 2 * IMAGE
    assert there.api.get(f"/v1/jobs/{accepted[0]}").json()["result"]["image"]["size"] == IMAGE
    eventually(lambda: there.api.post("/v1/jobs", json=GENERATE).status_code == 403)
    with pytest.raises(PermissionDeniedError, match="no room for results"):
        there.openai.images.generate(prompt="a cat")
    # Jobs that store nothing go on: a text needs no room.
    file = there.api.post("/v1/files", content=png()).json()
    assert file["code"] == "storage_quota_exceeded"
    sql("DELETE FROM jobs WHERE id = :id", id=accepted[0])
    sql("DELETE FROM jobs WHERE id = :id", id=accepted[1])
    assert there.stored() == 0
    assert there.api.post("/v1/jobs", json=GENERATE).status_code == 202


def test_files_of_batches_count_until_they_are_deleted(install: Callable[..., Installation]) -> None:
    there = install(max_stored_bytes=1000)
    first = there.upload_batch(500)
    assert first.status_code == 201
    assert there.stored() == first.json()["bytes"]
    assert there.upload_batch(500).json()["code"] == "storage_quota_exceeded"
    with pytest.raises(PermissionDeniedError):
        there.openai.files.create(file=("b.jsonl", b"x" * 1000), purpose="batch")
    assert there.api.delete(f"/v1/files/{first.json()['id']}").status_code == 200
    assert there.stored() == 0
    assert there.upload_batch(500).status_code == 201


def test_files_of_batches_are_exact_under_parallel_uploads(install: Callable[..., Installation]) -> None:
    there = install(max_stored_bytes=3500)

    def upload(api: httpx.Client, _: int) -> httpx.Response:
        return api.post("/v1/files", files={"file": ("b.jsonl", b"x" * 1000)}, data={"purpose": "batch"})

    assert counted(there.together(upload, 8)) == {201: 3, 403: 5}
    assert there.stored() == 3000


def test_what_was_stored_before_the_counter_is_counted(postgres: Postgres, settings: Settings) -> None:
    url = postgres.create_database("uncounted", template="template0")
    command.upgrade(_config(url), "0008")
    with plain_sql(settings.model_copy(update={"database_url": url})) as sql:
        sql("INSERT INTO files VALUES ('a', 'x', 'k', 'image/png', 1, 1, 70), ('b', 'x', 'k', 'image/png', 1, 1, 5)")
        sql("INSERT INTO documents VALUES (gen_random_uuid(), 'a', 'k', 'f', 'batch', 30)")
        command.upgrade(_config(url), "head")
        assert sql("SELECT tenant, stored_bytes FROM tenant_usage ORDER BY 1") == [("a", 100), ("b", 5)]
        sql("DELETE FROM files")
        assert sql("SELECT tenant, stored_bytes FROM tenant_usage ORDER BY 1") == [("a", 30), ("b", 0)]
    postgres.drop_database("uncounted")


# ── data sets and batches ─────────────────────────────────────────────────────────────────────────────


def test_unfinished_data_sets_are_exact_under_parallel_requests(
    install: Callable[..., Installation], tmp_path: Path
) -> None:
    there = install()  # the installation's default is three
    wanted = {"source": f"{tmp_path}/photos", "dry_run": True}
    answers = there.together(lambda api, _: api.post("/v1/datasets", json=wanted), 9)
    assert counted(answers) == {202: 3, 429: 6}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["code"] == "quota_exceeded"
    assert "3 unfinished data sets at once and has 3" in refused.json()["detail"]
    assert refused.headers["retry-after"] == "60"
    # One that is cancelled makes room for one more; a paused one does not.
    first, second, _ = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    there.api.post(f"/v1/datasets/{first}/cancel")
    there.api.post(f"/v1/datasets/{second}/pause")
    assert counted([there.api.post("/v1/datasets", json=wanted) for _ in range(2)]) == {202: 1, 429: 1}


def test_a_data_set_that_goes_on_again_counts(database: Database) -> None:
    request = DatasetRequest.model_validate({"source": "/data/x", "dry_run": True})
    over = database.datasets.submit(request, "t", most=1)
    database.datasets.cancel(over, "t")
    database.datasets.submit(request, "t", most=1)
    database.datasets.submit(request, "another", most=1)
    with pytest.raises(QuotaExceeded):
        database.datasets.export(over, "t", "/data/y", "jsonl", overwrite=False, most=1)
    with pytest.raises(QuotaExceeded):
        database.datasets.retry(over, "t", most=1)
    database.datasets.retry(over, "t", most=2)


def test_unfinished_batches_are_exact_under_parallel_requests(install: Callable[..., Installation]) -> None:
    there = install(max_batches=2)
    file = there.upload_batch().json()["id"]
    wanted: dict[str, Any] = {
        "input_file_id": file,
        "endpoint": "/v1/images/generations",
        "completion_window": "24h",
    }
    answers = there.together(lambda api, _: api.post("/v1/batches", json=wanted), 8)
    assert counted(answers) == {200: 2, 429: 6}
    with pytest.raises(RateLimitError, match="2 unfinished batches at once and has 2") as error:
        there.openai.batches.create(**wanted)
    assert (error.value.code, error.value.type) == ("rate_limit_exceeded", "rate_limit_error")


# ── the command ───────────────────────────────────────────────────────────────────────────────────────


def test_bounds_are_changed_and_shown_by_the_command(install: Callable[..., Installation]) -> None:
    there = install(max_stored_bytes=1)
    assert there.api.post("/v1/files", content=png()).status_code == 403
    changed = there.command("limit", str(there.id), "--max-stored", "1KiB", "--max-batches", "7", "--quota", "9")
    assert changed.returncode == 0, changed.stderr
    eventually(lambda: there.api.post("/v1/files", content=png()).status_code == 201)
    [key] = map(json.loads, there.command("ls", "--json").stdout.splitlines())
    assert (key["max_stored_bytes"], key["max_batches"], key["max_datasets"], key["quota"]) == (1024, 7, None, 9)
    assert key["used"] == {"stored_bytes": IMAGE, "jobs": 0, "datasets": 0, "batches": 0}
    assert not any("secret" in name or name == "sha256" for name in key)
    assert there.command("limit", str(there.id), "--max-stored", "default").returncode == 0
    table = there.command("ls").stdout
    assert f"{IMAGE}B/100.0GiB" in table
    assert "0/7" in table


@pytest.mark.parametrize(
    "wrong", [["--max-stored", "much"], ["--max-stored", "0"], ["--max-batches", "0"], ["--max-datasets", "-1"], []]
)
def test_a_bound_that_is_none_is_refused(wrong: list[str]) -> None:
    assert CliRunner().invoke(app, ["keys", "limit", str(uuid4()), *wrong]).exit_code == 2
