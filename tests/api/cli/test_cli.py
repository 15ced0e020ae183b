"""The command line without a system behind it: names of files, wording of results, errors and exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from PIL import Image

from api.cli import dataset_terminal, terminal
from api.cli.demo import SAMPLE, thumbnail
from api.cli.images import image_files
from api.cli.place import DEFAULT_URL, Place
from api.embedded.processes import Lock, last_lines, rotate
from shared.database import Database
from shared.settings import Settings
from tests.support.plain_sql import Sql
from tests.support.waiting import PATIENT
from tuwen.datasets import Dataset, DatasetProgress, DatasetRequest, DatasetStatus
from tuwen.jobs import (
    DescribeResult,
    GenerateResult,
    Job,
    JobError,
    JobRequest,
    JobResult,
    Kind,
    MatchResult,
    Part,
    Progress,
    RecognizedObject,
    RecognizeResult,
    Status,
    StoredImage,
)


def tuwen(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "api.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENT, check=False, env=os.environ | environment, input=""
    )


def _job(status: Status, result: JobResult | None = None, error: JobError | None = None, **more: Any) -> Job:
    now = datetime.now(UTC)
    return Job(
        id=uuid4(),
        kind=result.kind if result else Kind.DESCRIBE,
        model="builtin",
        status=status,
        priority=5,
        input={},
        attempts=1,
        max_attempts=5,
        result=result,
        error=error,
        created_at=now,
        available_at=now,
        deadline_at=now,
        **more,
    )


def test_what_was_drawn_is_told_with_its_warnings() -> None:
    image = StoredImage(key="results/aa/bb.png", sha256="bb", width=64, height=64)
    made = GenerateResult(
        image=image,
        seed=7,
        unknown_words=("hat",),
        revised_prompt="a black cat on the grass",
        warnings=("“blakc” was read as “black”", "a picture has one place"),
    )
    assert terminal.outcome(_job(Status.SUCCEEDED, made)).splitlines() == [
        "64×64, seed 7; the model does not know hat",
        "drawn: a black cat on the grass",
        "warning: “blakc” was read as “black”",
        "warning: a picture has one place",
    ]
    assert terminal.outcome(_job(Status.SUCCEEDED, GenerateResult(image=image, seed=7))) == "64×64, seed 7"


# ── names of files ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_are_named_by_the_prompt(folder: Path) -> None:
    assert image_files(["一只黑色的猫，跳跃", "a cat / a dog"], None) == [
        Path("一只黑色的猫-跳跃.png"),
        Path("a-cat-a-dog.png"),
    ]


def test_a_prompt_cannot_leave_the_folder(folder: Path) -> None:
    assert image_files(["../../etc/passwd", "..."], None) == [Path("etc-passwd.png"), Path("image.png")]


def test_equal_prompts_and_old_files_get_numbers(folder: Path) -> None:
    (folder / "cat.png").touch()
    assert image_files(["cat", "cat"], None) == [Path("cat-2.png"), Path("cat-3.png")]


def test_a_named_file_is_overwritten_but_its_siblings_are_not(folder: Path) -> None:
    (folder / "out.png").touch()
    (folder / "out-2.png").touch()
    assert image_files(["cat", "dog"], "out.png") == [Path("out.png"), Path("out-3.png")]


def test_a_folder_holds_what_is_named_by_the_prompt(folder: Path) -> None:
    assert image_files(["cat"], str(folder)) == [folder / "cat.png"]
    assert image_files(["cat"], "not yet there/") == [Path("not yet there/cat.png")]
    (folder / "cat.png").touch()
    assert image_files(["cat"], str(folder)) == [folder / "cat-2.png"]


# ── wording ───────────────────────────────────────────────────────────────────────────────────────


def test_a_growing_text_is_shown_by_its_end() -> None:
    def writing(*parts: Part) -> Job:
        return _job(Status.RUNNING, progress=Progress(step=1, steps=9, parts=parts))

    assert terminal.growing_text(_job(Status.RUNNING)) == ""
    assert terminal.growing_text(writing()) == ""
    assert terminal.growing_text(writing(Part(index=1, text="another caption"))) == ""
    assert terminal.growing_text(writing(Part(text="a black\ncat"))) == "a black cat"
    long = "a black cat " * 9
    assert terminal.growing_text(writing(Part(text=long))) == "…" + long.strip()[-59:]


def test_outcomes_read_well() -> None:
    said = DescribeResult(text="一只黑猫", language="zh", confidence=0.97)
    assert terminal.outcome(_job(Status.SUCCEEDED, said)) == "一只黑猫  (97%)"
    strange = DescribeResult(text="a cat", language="en", confidence=0.2, out_of_domain=True)
    assert terminal.outcome(_job(Status.SUCCEEDED, strange)) == "a cat  (20%, unlike anything the model learnt from)"
    assert terminal.outcome(_job(Status.SUCCEEDED, MatchResult(score=0.5))) == "0.500"
    wrong = JobError(code="image_corrupt", detail="not an image")
    assert terminal.outcome(_job(Status.FAILED, error=wrong)) == "image_corrupt: not an image"
    assert terminal.outcome(_job(Status.CANCELLED)) == "cancelled"


def test_recognised_objects_come_with_all_that_belongs_to_them() -> None:
    cat = RecognizedObject(
        name="cat",
        name_zh="猫",
        confidence=0.9,
        attributes={"colour": "black"},
        attributes_zh={"colour": "黑色"},
        action="jumping",
        action_zh="跳跃",
        count=2,
    )
    car = RecognizedObject(name="car", name_zh="汽车", confidence=0.9)
    seen = RecognizeResult(objects=(cat, car), scene="grass", scene_zh="草地", relation="left", confidence=0.9)
    assert terminal.outcome(_job(Status.SUCCEEDED, seen)).splitlines() == [
        "cat 猫 ×2: black, jumping  黑色，跳跃",
        "car 汽车",
        "cat left of car",
        "scene: grass 草地  (90%)",
    ]


def test_thumbnail_has_the_colours_of_the_image() -> None:
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 128)).save(image, "PNG")
    text = thumbnail(image.getvalue(), width=4)
    assert text.plain == "  ▀▀▀▀\n  ▀▀▀▀"
    assert {str(span.style) for span in text.spans} == {"#ff0080 on #ff0080"}


def test_sample_is_a_picture() -> None:
    assert Image.open(SAMPLE).size == (256, 256)


# ── errors ────────────────────────────────────────────────────────────────────────────────────────


def test_unreachable_api_is_one_line_and_exit_code_3() -> None:
    refused = tuwen("--url", "http://127.0.0.1:9", "jobs", "ls")
    assert refused.returncode == 3
    assert refused.stderr.startswith("error: ")
    assert "http://127.0.0.1:9" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_missing_image_is_named() -> None:
    refused = tuwen("describe", "no such.png")
    assert refused.returncode == 1
    assert refused.stderr == "error: cannot read no such.png: No such file or directory\n"


def test_folder_in_place_of_an_image_is_named(tmp_path: Path) -> None:
    refused = tuwen("describe", str(tmp_path))
    assert refused.returncode == 1
    assert f"{tmp_path} is a folder" in refused.stderr.replace("\n", " ")
    assert "tuwen annotate" in refused.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "captions", "-t", "nonsense"], "'nonsense' is none of describe, recognize, match"),
        (["--out", "captions", "--style", "long"], "'long' is none of short, detailed, tags"),
        ([], "say where the annotations go, or add --dry-run"),
        (["--out", "captions", "-t", "match", "--candidates", "3"], "error: candidates need captions"),
    ],
)
def test_wrong_options_of_annotate_are_named(options: list[str], said: str) -> None:
    refused = tuwen("annotate", "photos", *options, COLUMNS="200")
    assert refused.returncode == 2
    assert said in refused.stderr
    assert "Value error" not in refused.stderr


def _dataset(request: DatasetRequest, estimate: dict[str, Any] | None = None) -> Dataset:
    progress = DatasetProgress(
        images=16, done=15, failed=1, left=0, shards=1, shards_left=0, planned=True, images_per_second=0,
        tokens_per_second=0,
    )  # fmt: skip
    now = datetime.now(UTC)
    return Dataset(
        id=uuid4(),
        status=DatasetStatus.SUCCEEDED,
        paused=False,
        priority=5,
        request=request,
        progress=progress,
        estimate=estimate,
        created_at=now,
        finished_at=now,
    )


def test_a_dry_run_is_told_from_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    dry = DatasetRequest(source="/photos", destination="/captions", dry_run=True)
    dataset_terminal.print_datasets([_dataset(dry)])
    assert "/photos → dry run" in capsys.readouterr().out
    dataset_terminal.print_dataset(_dataset(dry))
    assert "none: a dry run" in capsys.readouterr().out
    run = _dataset(dry.model_copy(update={"dry_run": False}))
    dataset_terminal.print_datasets([run])
    assert "/photos → /captions" in capsys.readouterr().out
    dataset_terminal.print_dataset(run)
    assert "speed" not in capsys.readouterr().out, "it is over"


def test_estimate_is_printed_in_an_order_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    dataset_terminal.print_estimate({"bytes": 9, "later": 1, "device_hours": 0.5, "images": 2, "entries": 3})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["entries", "images", "device hours", "bytes", "later"]


def test_wrong_setting_is_named() -> None:
    refused = tuwen("doctor", TUWEN_PORT="many")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: TUWEN_PORT: ")
    assert "Traceback" not in refused.stderr


def test_unreachable_database_is_one_line() -> None:
    refused = tuwen("keys", "ls", TUWEN_DATABASE_URL="postgresql://tuwen@127.0.0.1:9/tuwen")
    assert refused.returncode == 3
    assert refused.stderr.startswith("error: ")
    assert "Traceback" not in refused.stderr


def test_webhooks_are_shown_and_tried_again(settings: Settings, database: Database, sql: Sql) -> None:
    where = {"TUWEN_DATABASE_URL": settings.database_url, "TUWEN_DATA_DIR": str(settings.data_dir)}
    assert "0 webhooks are still to be delivered" in tuwen("webhooks", "ls", **where).stderr
    url = "https://hooks.example.com:8443/of/[alice]"
    request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "猫"}, "webhook": url})
    for id in database.jobs.submit([request] * 2, tenant="t").ids:
        database.jobs.cancel(id, "t")
    sql("UPDATE webhooks SET due_at = NULL, error = 'answered 410'")
    shown = tuwen("webhooks", "ls", **where)
    assert "2 were given up" in shown.stderr
    assert shown.stdout.count(url) == 2
    first, second = (json.loads(line) for line in tuwen("webhooks", "ls", "--json", **where).stdout.splitlines())
    assert (first["state"], first["error"], first["url"]) == ("given up", "answered 410", url)
    assert tuwen("webhooks", "ls", "--late", "--json", **where).stdout == ""
    assert tuwen("webhooks", "retry", first["id"], **where).stdout == f"{first['id']} is due\n"
    assert tuwen("webhooks", "retry", "--host", "hooks.example.com", **where).stdout == "", "another port"
    assert tuwen("webhooks", "retry", "--host", "hooks.example.com:8443", **where).stdout == f"{second['id']} is due\n"
    assert database.webhooks.figures().given_up == 0
    assert tuwen("webhooks", "retry", **where).returncode == 2
    unknown = tuwen("webhooks", "retry", str(uuid4()), **where)
    assert (unknown.returncode, "There is no webhook" in unknown.stderr) == (1, True)


def test_a_key_that_is_none_is_refused_in_one_line() -> None:
    refused = tuwen("--url", "http://127.0.0.1:9", "jobs", "ls", TUWEN_API_KEY="tw_é")
    assert refused.returncode == 1
    assert "TUWEN_API_KEY" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_no_command_loads_torch() -> None:
    script = "import sys, api.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_without_a_running_system_the_default_address_is_used(tmp_path: Path) -> None:
    assert Place(None, None, tmp_path).url == DEFAULT_URL


# ── logs and locks ────────────────────────────────────────────────────────────────────────────────


def test_full_log_becomes_the_one_before(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with log.open("ab", buffering=0) as child:
        child.write(b"old line\n")
        rotate(log, limit=4)
        child.write(b"new\n")
    assert (tmp_path / "worker.log.1").read_text() == "old line\n"
    assert log.read_text() == "new\n"
    rotate(log, limit=4)
    assert log.read_text() == "new\n"


def test_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    assert last_lines(log) == ""
    log.write_text("\n".join(f"line {number}" for number in range(10_000)) + "\n\n")
    assert last_lines(log, 2) == "line 9998\nline 9999"


def test_lock_is_held_by_children_too(tmp_path: Path) -> None:
    lock, other = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert lock.acquire()
    assert other.owner() == os.getpid()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()]) as child:
        lock.release()
        assert not other.acquire()
        assert child.stdin
        child.stdin.close()
    assert other.acquire(timeout=PATIENT)


def test_roots_of_keys(settings: Settings, database: Database) -> None:
    where = {
        "TUWEN_DATABASE_URL": settings.database_url,
        "TUWEN_DATA_DIR": str(settings.data_dir),
        "TUWEN_STORAGE_URL": "file:///data/objects",
    }
    made = tuwen("keys", "create", "alice", "--datasets", "/data/alice/, s3://b//alice", **where)
    assert made.returncode == 0, made.stderr
    assert "is open to" not in made.stderr
    assert tuwen("keys", "create", "nobody", **where).returncode == 0
    shared = tuwen("keys", "create", "bob", "--datasets", "/data", **where)
    assert "/data is open to tenant alice too" in shared.stderr
    alice, nobody, bob = (json.loads(line) for line in tuwen("keys", "ls", "--json", **where).stdout.splitlines())
    assert [key["dataset_roots"] for key in (alice, nobody, bob)] == [["/data/alice", "s3://b/alice"], [], ["/data"]]
    shown = tuwen("keys", "ls", **where).stdout
    assert "/data/alice, s3://b/alice" in shown
    assert "none" in shown
    changed = tuwen("keys", "datasets", bob["id"], "/data/bob,/more", **where)
    assert (changed.returncode, changed.stdout) == (0, f"{bob['id']} /data/bob, /more\n")
    assert "is open to" not in changed.stderr
    database.keys.revoke(UUID(alice["id"]))
    assert tuwen("keys", "datasets", alice["id"], "none", **where).stdout == f"{alice['id']} none\n"
    assert [key.dataset_roots for key in database.keys.all()] == [(), (), ("/data/bob", "/more")]
    refused = tuwen("keys", "datasets", bob["id"], "/data/objects/x", **where)
    assert (refused.returncode, "object storage" in refused.stderr) == (1, True), refused.stderr
    outside = tuwen("keys", "datasets", bob["id"], "/more", TUWEN_DATASET_ROOTS="/data", **where)
    assert (outside.returncode, "TUWEN_DATASET_ROOTS" in outside.stderr) == (1, True), outside.stderr
    database.dataset_places.take("/data/out", "alice", uuid4())
    assert tuwen("keys", "release", "/data/out/", **where).stdout == "/data/out/ released\n"
