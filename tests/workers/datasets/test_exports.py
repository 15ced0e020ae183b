"""Exports of bulk annotation, each opened by the reader of its own ecosystem."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import resource
import signal
import tomllib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import webdataset
from PIL import Image
from pyarrow import parquet
from pycocotools.coco import COCO

from shared.settings import Settings
from tests.support.pictures import picture
from tests.support.waiting import PATIENT
from tuwen.annotations import Annotation, Caption, Drop, DropReason, Provenance, Recognition, Review, standing_reviews
from tuwen.datasets import ExportFormat
from tuwen.errors import Conflict, DestinationUnusable, NotFound, StorageUnavailable
from tuwen.jobs import JobError, RecognizedObject
from workers.datasets.exports import MARKER, Owner, Summary, write
from workers.datasets.exports.files import file_name
from workers.datasets.exports.words import chosen_words, tags
from workers.datasets.lookahead import map_ahead
from workers.datasets.sources import SourceImage, open_source

SETTINGS = Settings()
NOW = datetime(2026, 11, 21, tzinfo=UTC)
MADE = Provenance(
    model="describer", revision="abc", parameters={"style": "short"}, software="tuwen 1", worker="w1", created_at=NOW
)
SAMPLES = {"a 1.png": "a black cat", "sub/猫.png": "一只黑色的猫\n在草地上", "sub/b.png": 'a dog, "quoted"'}
FORMATS: tuple[ExportFormat, ...] = ("jsonl", "imagefolder", "parquet", "webdataset", "kohya", "coco")


def caption(text: str, **others: Any) -> Caption:
    fields = {"language": "en", "style": "short", "confidence": 0.9, "score": 0.8, "provenance": MADE} | others
    return Caption(text=text, **fields)


def annotations() -> list[Annotation]:
    good = [
        Annotation(
            name=name, sha256=f"{number:064x}", width=16, height=12, custom_id=f"id-{number}",
            metadata={"seed": number},
            captions=(caption(text),), others=(caption("worse", score=0.1),),
        )
        for number, (name, text) in enumerate(SAMPLES.items())
    ]  # fmt: skip
    broken = Annotation(name="broken.png", error=JobError(code="image_corrupt", detail="cut"), attempts=3)
    small = Annotation(name="small.png", drop=Drop(reason=DropReason.TOO_SMALL, detail="1×1"))
    rejected = Annotation(
        name="bad.png", captions=(caption("x"),), reviews=(Review(author="Ann", created_at=NOW, verdict="rejected"),)
    )
    return [good[0], broken, small, good[1], rejected, good[2]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for number, name in enumerate([*SAMPLES, "small.png", "bad.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))
    (folder / "broken.png").write_bytes(picture(9)[:50])
    return folder


def export(
    source: Path,
    out: Path | str,
    form: ExportFormat,
    annotated: Iterable[Annotation] | None = None,
    *,
    overwrite: bool = False,
    run: str = "run-1",
    settings: Settings = SETTINGS,
) -> Summary:
    with open_source(str(source), settings) as opened:
        return write(
            ((each, SourceImage(each.name, each.name)) for each in annotated or annotations()),
            str(out),
            settings,
            owner=Owner(run, overwrite=overwrite),
            destination_format=form,
            read=opened.read,
            source=str(source),
        )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def loaded(kind: str, out: Path, cache: Path, **options: Any) -> datasets.Dataset:
    return datasets.load_dataset(kind, split="train", cache_dir=str(cache), **options)


# ── each format in its own reader ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_not_in_the_export_is_listed_with_its_reason(source: Path, tmp_path: Path, form: ExportFormat) -> None:
    out = tmp_path / "out"
    assert export(source, out, form) == Summary(exported=3, dropped=2, failed=1)
    assert [(row["name"], row["code"], row["attempts"]) for row in lines(out / "errors.jsonl")] == [
        ("broken.png", "image_corrupt", 3)
    ]
    assert [(row["name"], row["reason"]) for row in lines(out / "dropped.jsonl")] == [
        ("small.png", "too_small"),
        ("bad.png", "rejected"),
    ]
    marker = json.loads((out / MARKER).read_text())
    assert (marker["run"], marker["format"], marker["exported"]) == ("run-1", form, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_jsonl_holds_everything(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", "jsonl")
    rows = loaded("json", tmp_path, tmp_path / "cache", data_files=str(tmp_path / "out/annotations.jsonl"))
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert {row["name"]: row["text"] for row in rows} == SAMPLES
    first = lines(tmp_path / "out/annotations.jsonl")[0]
    assert Provenance.model_validate(first["captions"][0]["provenance"]) == MADE
    assert [other["text"] for other in first["others"]] == ["worse"]
    assert (first["custom_id"], first["metadata"], first["author"]) == ("id-0", {"seed": 0}, "model")


def test_imagefolder_in_datasets(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", "imagefolder")
    rows = loaded("imagefolder", tmp_path, tmp_path / "cache", data_dir=str(tmp_path / "out"))
    assert sorted(row["text"] for row in rows) == sorted(SAMPLES.values())
    for row in rows:
        assert isinstance(row["image"], Image.Image)
        assert row["image"].size == (16, 12)
        assert (row["model"], row["revision"], row["worker"]) == ("describer", "abc", "w1")
        assert Provenance.model_validate(json.loads(row["annotation"])["captions"][0]["provenance"]) == MADE
    for number, name in enumerate(SAMPLES):
        assert (tmp_path / "out" / name).read_bytes() == picture(number)


def test_parquet_in_datasets_and_pyarrow(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", "parquet")
    table = parquet.read_table(tmp_path / "out/data")
    assert table.column("text").to_pylist() == list(SAMPLES.values())
    first = table.to_pylist()[0]
    assert first["image"] == {"bytes": picture(0), "path": "a 1.png"}
    assert first["created_at"] == NOW
    assert [said["chosen"] for said in first["captions"]] == [True, False]
    assert first["captions"][0]["parameters"] == '{"style": "short"}'
    rows = loaded("parquet", tmp_path, tmp_path / "cache", data_files=str(tmp_path / "out/data/*.parquet"))
    assert isinstance(rows[1]["image"], Image.Image)
    assert rows[1]["text"] == SAMPLES["sub/猫.png"]


def test_webdataset_in_webdataset(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", "webdataset")
    samples = list(webdataset.WebDataset(str(tmp_path / "out/000000.tar"), shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(3)]
    assert [sample["txt"] for sample in samples] == list(SAMPLES.values())
    assert all(sample["png"].size == (16, 12) for sample in samples)
    assert Provenance.model_validate(samples[0]["json"]["captions"][0]["provenance"]) == MADE


def test_coco_in_pycocotools(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", "coco")
    coco = COCO(str(tmp_path / "out/captions.json"))
    assert coco.getImgIds() == [1, 2, 3]
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == list(SAMPLES)
    said = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert [(each["caption"], each["author"]) for each in said] == [("a black cat", "model"), ("worse", "model")]
    assert Provenance.model_validate(said[0]["provenance"]) == MADE
    assert not (tmp_path / "out/.annotations").exists()


def test_kohya_sidecars(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", "kohya")
    texts = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_text() for path in (tmp_path / "out").rglob("*.txt")
    }
    assert texts == {"a 1.txt": "a black cat", "sub/猫.txt": "一只黑色的猫 在草地上", "sub/b.txt": 'a dog, "quoted"'}
    assert (tmp_path / "out/a 1.png").read_bytes() == picture(0)
    assert len(lines(tmp_path / "out/annotations.jsonl")) == 3


@pytest.mark.parametrize("form", FORMATS)
def test_exports_are_sources_again(source: Path, tmp_path: Path, form: ExportFormat) -> None:
    export(source, tmp_path / "out", form)
    uri, options = tmp_path / "out", {}
    if form in ("jsonl", "coco"):
        uri /= {"jsonl": "annotations.jsonl", "coco": "captions.json"}[form]
        options = {"root": str(source), "image_column": "name", "caption_column": "text"}
    elif form == "parquet":
        uri, options = uri / "data/part-00000.parquet", {"caption_column": "text"}
    with open_source(str(uri), SETTINGS, **options) as again:
        images = [entry for entry in again.images() if isinstance(entry, SourceImage)]
        found = {again.read(image): image.captions[0].replace("\n", " ") for image in images}
    assert found == {picture(n): text.replace("\n", " ") for n, text in enumerate(SAMPLES.values())}


@pytest.mark.parametrize("form", FORMATS)
def test_run_without_a_good_image_still_loads(source: Path, tmp_path: Path, form: ExportFormat) -> None:
    assert export(source, tmp_path / "out", form, annotations()[1:3]).exported == 0
    if form == "parquet":
        assert parquet.read_table(tmp_path / "out/data/part-00000.parquet").num_rows == 0
    if form == "coco":
        assert COCO(str(tmp_path / "out/captions.json")).getImgIds() == []


# ── whose words ───────────────────────────────────────────────────────────────────────────────────


def test_words_that_came_with_the_image_stay_unless_asked() -> None:
    known = Annotation(name="x", existing=("theirs",), captions=(caption("ours"),))
    assert (chosen_words(known, overwrite=False).text, chosen_words(known, overwrite=False).author) == (
        "theirs",
        "source",
    )
    assert chosen_words(known, overwrite=True).text == "ours"
    edited = known.model_copy(update={"reviews": (Review(author="Ann", created_at=NOW, text="better"),)})
    for overwrite in (False, True):
        assert chosen_words(edited, overwrite=overwrite).text == "better"
        assert chosen_words(edited, overwrite=overwrite).author == "Ann"
    assert chosen_words(Annotation(name="x", existing=("theirs",)), overwrite=True).text == "theirs"
    assert chosen_words(Annotation(name="x"), overwrite=True).text == ""


def test_words_of_one_language_replace_those_of_that_language_only() -> None:
    zh = Review(author="Bo", created_at=NOW, text="一只黑猫", language="zh")
    en = Review(author="Ann", created_at=NOW, text="a cat, black", language="en")
    known = Annotation(name="x", captions=(caption("a black cat"),), reviews=(zh,))
    assert known.captions[0].language == "en"
    assert chosen_words(known, overwrite=True).author == "model"
    both = known.model_copy(update={"reviews": (zh, en)})
    assert chosen_words(both, overwrite=True).text == "a cat, black"
    theirs = known.model_copy(update={"existing": ("whose language nobody knows",)})
    assert chosen_words(theirs, overwrite=False).text == "一只黑猫"


def test_what_still_holds_of_what_people_said() -> None:
    def said(author: str, **what: str) -> Review:
        return Review.model_validate({"author": author, "created_at": NOW, **what})

    newest = said("Cy", verdict="accepted")
    words, older = said("Bo", text="b", language="en"), said("Ann", text="a", language="en", verdict="rejected")
    chinese = said("Ann", text="甲", language="zh")
    assert standing_reviews([newest, words, chinese, older]) == (newest, words, chinese)
    assert standing_reviews([words, older]) == (words, older), "its verdict still holds"
    assert standing_reviews([]) == ()


def test_recognition_alone_becomes_tags() -> None:
    cat = RecognizedObject(
        name="cat", name_zh="猫", confidence=0.9, attributes={"colour": "black"}, action="jumping", count=2
    )
    recognition = Recognition(objects=(cat,), scene="grass", confidence=0.9, provenance=MADE)
    assert tags(recognition) == "2 black cat jumping, grass"
    words = chosen_words(Annotation(name="x", recognition=recognition), overwrite=False)
    assert (words.text, words.provenance) == ("2 black cat jumping, grass", MADE)


def test_review_goes_into_every_format_with_its_author(source: Path, tmp_path: Path) -> None:
    review = Review(author="Ann", created_at=NOW, text="in her words")
    known = [annotations()[0].model_copy(update={"reviews": (review,)})]
    for each_format in FORMATS:
        export(source, tmp_path / each_format, each_format, known)
    assert lines(tmp_path / "jsonl/annotations.jsonl")[0]["reviews"][0]["author"] == "Ann"
    assert lines(tmp_path / "jsonl/annotations.jsonl")[0]["captions"][0]["text"] == "a black cat"
    assert lines(tmp_path / "imagefolder/metadata.jsonl")[0]["author"] == "Ann"
    assert parquet.read_table(tmp_path / "parquet/data").column("author").to_pylist() == ["Ann"]
    assert (tmp_path / "kohya/a 1.txt").read_text() == "in her words"
    annotation, *others = json.loads((tmp_path / "coco/captions.json").read_text())["annotations"]
    assert (annotation["caption"], annotation["author"]) == ("in her words", "Ann")
    assert [other["caption"] for other in others] == ["a black cat", "worse"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_person_says_what_no_model_could(source: Path, tmp_path: Path, form: ExportFormat) -> None:
    gone = JobError(code="engine_error", detail="It gave up.")
    words = (Review(author="Ann", created_at=NOW, text="in her words", language="en"),)
    known = [
        Annotation(name="sub/b.png", width=16, height=12, error=gone, reviews=words),
        Annotation(name="broken.png", error=JobError(code="image_corrupt", detail="cut"), reviews=words),
        Annotation(name="a 1.png", width=16, height=12, error=gone),
        Annotation(
            name="bad.png", width=16, height=12, error=gone,
            reviews=(Review(author="Bo", created_at=NOW, verdict="rejected"), *words),
        ),
    ]  # fmt: skip
    out = tmp_path / "out"
    assert export(source, out, form, known) == Summary(exported=1, dropped=1, failed=2)
    assert [(row["name"], row["code"]) for row in lines(out / "errors.jsonl")] == [
        ("broken.png", "image_corrupt"),
        ("a 1.png", "engine_error"),
    ]
    assert [row["detail"] for row in lines(out / "dropped.jsonl")] == ["rejected by Bo"]
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    if form != "parquet":
        assert b"in her words" in written
    if form == "jsonl":
        [row] = lines(out / "annotations.jsonl")
        assert (row["text"], row["author"], row["error"]["code"]) == ("in her words", "Ann", "engine_error")
    if form == "parquet":
        [row] = parquet.read_table(out / "data").to_pylist()
        assert (row["text"], row["author"], row["captions"]) == ("in her words", "Ann", [])
    if form == "coco":
        [said] = json.loads((out / "captions.json").read_text())["annotations"]
        assert (said["caption"], said["author"]) == ("in her words", "Ann")


def test_words_of_an_image_that_is_gone_by_now_are_an_error(source: Path, tmp_path: Path) -> None:
    words = (Review(author="Ann", created_at=NOW, text="in her words"),)
    error = JobError(code="engine_error", detail="It gave up.")
    known = [Annotation(name="gone.png", width=16, height=12, error=error, reviews=words)]
    assert export(source, tmp_path / "out", "imagefolder", known) == Summary(0, 0, 1)
    [row] = lines(tmp_path / "out/errors.jsonl")
    assert (row["code"], row["detail"].startswith("not exported")) == ("not_found", True)


# ── names ─────────────────────────────────────────────────────────────────────────────────────────


def test_images_that_want_one_name_are_errors_and_leave_no_gap(source: Path, tmp_path: Path) -> None:
    (source / "a 1.jpg").write_bytes(picture(7, kind="JPEG"))
    names = ["a 1.png", "a 1.jpg", "sub/b.png"]
    known = [Annotation(name=name, captions=(caption(name),)) for name in names]
    assert export(source, tmp_path / "out", "kohya", known) == Summary(2, 0, 1)
    assert [row["number"] for row in lines(tmp_path / "out/annotations.jsonl")] == [0, 1]
    assert lines(tmp_path / "out/errors.jsonl")[0]["code"] == "name_taken"
    assert not (tmp_path / "out/a 1.jpg").exists()


def test_file_names() -> None:
    assert file_name("a/b.PNG", "jpeg") == "a/b.PNG"
    assert file_name("request-1", "jpeg") == "request-1.jpg"
    long = file_name("图" * 100 + ".png", "png")
    assert len(long.encode()) < 256
    assert long.endswith(".png")
    assert long != file_name("图" * 101 + ".png", "png")


def test_image_that_is_gone_by_now_is_an_error(source: Path, tmp_path: Path) -> None:
    (source / "a 1.png").unlink()
    assert export(source, tmp_path / "out", "webdataset") == Summary(2, 2, 2)
    assert [row["code"] for row in lines(tmp_path / "out/errors.jsonl")] == ["not_found", "image_corrupt"]


# ── destinations ──────────────────────────────────────────────────────────────────────────────────


def test_destination_within_the_source_or_around_it(source: Path) -> None:
    for out in (source, source / "out", source.parent, source / "../source"):
        with pytest.raises(DestinationUnusable, match="within each other"):
            export(source, out, "jsonl")
    with pytest.raises(DestinationUnusable):
        export(source, source / "sub", "kohya")


def test_sidecars_in_the_source_itself_keep_what_is_there(source: Path) -> None:
    (source / "a 1.txt").write_text("theirs")
    (source / "a 1.jpg").write_bytes(picture(7, kind="JPEG"))
    known = [*annotations(), Annotation(name="a 1.jpg", captions=(caption("x"),))]
    assert export(source, source, "kohya", known) == Summary(2, 2, 3)
    assert (source / "a 1.txt").read_text() == "theirs"
    assert (source / "sub/b.txt").read_text() == 'a dog, "quoted"'
    assert len(lines(source / ".tuwen/annotations.jsonl")) == 2
    assert [line["name"] for line in lines(source / ".tuwen/errors.jsonl") if line["code"] == "caption_kept"] == [
        "a 1.png"
    ]
    export(source, source, "kohya", known, overwrite=True)
    assert (source / "a 1.txt").read_text() == "a black cat"
    with open_source(str(source), SETTINGS) as again:
        assert "a 1.png" in {entry.name for entry in again.images()}


def test_foreign_destinations_are_left_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(DestinationUnusable, match="not empty"):
        export(source, out, "jsonl", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DestinationUnusable, match="is a file"):
        export(source, tmp_path / "file", "jsonl")
    assert (out / "precious").read_text() == "x"


def test_export_again_replaces_its_own_and_no_other(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", "webdataset")
    export(source, tmp_path / "out", "jsonl")
    assert not (tmp_path / "out/000000.tar").exists()
    with pytest.raises(DestinationUnusable, match="another data set"):
        export(source, tmp_path / "out", "jsonl", run="run-2")
    assert json.loads((tmp_path / "out" / MARKER).read_text())["run"] == "run-1"
    export(source, tmp_path / "out", "jsonl", run="run-2", overwrite=True)
    assert json.loads((tmp_path / "out" / MARKER).read_text())["run"] == "run-2"


def test_two_exports_into_one_destination_at_once(source: Path, tmp_path: Path) -> None:
    def meanwhile() -> Iterator[Annotation]:
        with pytest.raises(Conflict):
            export(source, tmp_path / "out", "jsonl", run="run-2")
        yield from annotations()

    export(source, tmp_path / "out", "jsonl", meanwhile())
    assert json.loads((tmp_path / "out" / MARKER).read_text())["run"] == "run-1"


def test_failure_half_way_leaves_the_destination_as_it_was(source: Path, tmp_path: Path) -> None:
    def failing() -> Iterator[Annotation]:
        yield annotations()[0]
        raise NotFound("a shard's results are gone")

    export(source, tmp_path / "out", "jsonl")
    before = (tmp_path / "out/annotations.jsonl").read_text()
    with pytest.raises(NotFound):
        export(source, tmp_path / "out", "jsonl", failing())
    assert (tmp_path / "out/annotations.jsonl").read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def _export_with_little_room(source: str, out: str, form: ExportFormat, answer: Any) -> None:
    # To the process, a file that may not grow is a disk that is full.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
    try:
        export(Path(source), Path(out), form)
    except StorageUnavailable as error:
        answer.put(str(error))
    else:
        answer.put("no error")


@pytest.mark.parametrize("form", FORMATS)
def test_full_disk_is_a_clear_error_and_leaves_nothing(source: Path, tmp_path: Path, form: ExportFormat) -> None:
    spawn = multiprocessing.get_context("fork")
    answer = spawn.SimpleQueue()
    process = spawn.Process(target=_export_with_little_room, args=(str(source), str(tmp_path / "out"), form, answer))
    process.start()
    process.join(PATIENT)
    assert "full" in answer.get()
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_what_a_killed_export_left_behind_is_cleared(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.run-1").mkdir()
    (tmp_path / ".out.run-1/half").write_text("x")
    with (tmp_path / ".out.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    export(source, tmp_path / "out", "jsonl")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}
    assert not (tmp_path / "out/half").exists()


# ── as a stream ───────────────────────────────────────────────────────────────────────────────────


def test_results_come_in_order_from_an_endless_stream() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            yield taken
            taken += 1

    assert list(islice(map_ahead(lambda number: number * 2, endless(), threads=3, ahead=5), 100)) == list(
        range(0, 200, 2)
    )
    assert taken < 110


def test_parquet_is_cut_into_row_groups(source: Path, tmp_path: Path) -> None:
    known = [Annotation(name="a 1.png", captions=(caption(str(number)),)) for number in range(2500)]
    export(source, tmp_path / "out", "parquet", known)
    file = parquet.ParquetFile(tmp_path / "out/data/part-00000.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [1000, 1000, 500]
    assert pa.compute.all(pa.compute.equal(file.read(["number"]).column(0), pa.array(range(2500)))).as_py()


# ── splits and lines, in the readers that trainers use ────────────────────────────────────────────


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    """A source with folders of splits, one of them deeper, and an image in none."""
    source = tmp_path / "divided"
    names = ("train/a.png", "train/cats/b.jpg", "photos/test-2024/c.png", "other.png")
    for number, name in enumerate(names):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(picture(number, kind="JPEG" if name.endswith("jpg") else "PNG"))
    return source


def of_splits(source: Path) -> list[Annotation]:
    with open_source(str(source), SETTINGS) as opened:
        return [Annotation(name=entry.name, captions=(caption(f"about {entry.name}"),)) for entry in opened.images()]


SPLITS = {
    "train": ["about train/a.png", "about train/cats/b.jpg"],
    "test": ["about photos/test-2024/c.png"],
    "rest": ["about other.png"],
}


@pytest.mark.parametrize("form", ["imagefolder", "parquet"])
def test_captions_load_in_every_split(divided: Path, tmp_path: Path, form: ExportFormat) -> None:
    export(divided, tmp_path / "out", form, of_splits(divided))
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: sorted(table["text"]) for split, table in loaded.items()} == SPLITS
    assert loaded["test"][0]["image"].size == Image.open(divided / "photos/test-2024/c.png").size


def test_imagefolder_of_splits_by_the_readers_own_rules(divided: Path, tmp_path: Path) -> None:
    (divided / "other.png").unlink()
    export(divided, tmp_path / "out", "imagefolder", of_splits(divided))
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: sorted(table["text"]) for split, table in loaded.items()} == {
        split: texts for split, texts in SPLITS.items() if split != "rest"
    }


def test_webdataset_of_several_formats_loads(divided: Path, tmp_path: Path) -> None:
    export(divided, tmp_path / "out", "webdataset", of_splits(divided))
    loaded = datasets.load_dataset(
        "webdataset", data_files=str(tmp_path / "out/*.tar"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == 4
    assert {row["txt"] for row in loaded} == {text for texts in SPLITS.values() for text in texts}


def test_lines_divide_where_python_divides_them(source: Path, tmp_path: Path) -> None:
    text = "one\u2028two\x85three\u2029"
    known = [Annotation(name="a 1.png", captions=(caption(text),))]
    export(source, tmp_path / "out", "jsonl", known)
    (line,) = (tmp_path / "out/annotations.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == text


def test_kohyas_configuration_names_every_folder_with_images(divided: Path, tmp_path: Path) -> None:
    """By the rules of sd-scripts: images of `image_dir` itself, each with the text of that extension beside it."""
    for out in (tmp_path / "out", divided):
        export(divided, out, "kohya", of_splits(divided))
        config = tomllib.loads(next(out.rglob("dataset.toml")).read_text())
        places = [Path(subset["image_dir"]) for subset in config["datasets"][0]["subsets"]]
        extension = config["general"]["caption_extension"]
        found = {
            image.with_suffix(extension).read_text()
            for place in places
            for image in place.iterdir()
            if image.suffix in (".png", ".jpg")
        }
        assert found == {text for texts in SPLITS.values() for text in texts}


def test_coco_of_what_was_recognised(source: Path, tmp_path: Path) -> None:
    thing = RecognizedObject(
        name="cat", name_zh="猫", count=2, confidence=0.9, attributes={"colour": "black"}, action="jumping"
    )
    recognition = Recognition(objects=(thing,), scene="grass", confidence=0.9, provenance=MADE)
    export(source, tmp_path / "out", "coco", [Annotation(name="a 1.png", recognition=recognition)])
    coco = COCO(str(tmp_path / "out/instances.json"))
    (category,) = coco.getCatIds(catNms=["cat"])
    (image,) = coco.getImgIds(catIds=[category])
    assert coco.loadImgs(image)[0]["file_name"] == "a 1.png"
    with open_source(str(tmp_path / "out/instances.json"), SETTINGS, root=str(source)) as opened:
        (entry,) = opened.images()
        assert isinstance(entry, SourceImage)
        assert entry.metadata["categories"] == ["cat"]
