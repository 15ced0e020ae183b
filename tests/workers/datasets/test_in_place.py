"""Captions written beside the images of the source: the model's stay the model's, a person's are never touched."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.pictures import picture
from tests.workers.datasets.test_sources import SETTINGS, images, listed, put
from tuwen.annotations import Annotation, Caption, Provenance, Review
from workers.datasets.exports import Owner, Summary, write
from workers.datasets.sources import SourceImage, open_source

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MADE = Provenance(model="builtin", revision="1", parameters={}, software="tuwen", worker="w", created_at=NOW)


def described(name: str, text: str, existing: tuple[str, ...] = (), reviews: tuple[Review, ...] = ()) -> Annotation:
    caption = Caption(text=text, language="en", style="short", confidence=0.9, provenance=MADE)
    return Annotation(name=name, sha256="0" * 64, captions=(caption,), existing=existing, reviews=reviews)


def annotate(source: Path, texts: Iterable[tuple[str, str]]) -> Summary:
    """Annotate in place, as a run does: what the source says of an image goes into its annotation."""
    said = {name: image.captions for name, image in images(listed(source)).items()}
    known = [described(name, text, said.get(name, ())) for name, text in texts]
    return export(source, known)


def export(source: Path, known: list[Annotation]) -> Summary:
    with open_source(str(source), SETTINGS) as opened:
        return write(
            ((each, SourceImage(each.name, each.name)) for each in known),
            str(source),
            SETTINGS,
            owner=Owner("run", overwrite=False),
            destination_format="kohya",
            read=opened.read,
            source=str(source),
        )


def errors(source: Path) -> list[tuple[str, str]]:
    path = source / ".tuwen/errors.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["name"], line["code"]) for line in found]


def test_a_models_words_stay_its_own_and_a_better_model_replaces_them(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": picture(1), "sub/b.png": picture(2), "c.png": picture(3), "c.txt": "hers"})
    texts = [("a.png", "a cat"), ("sub/b.png", "a dog"), ("c.png", "a fish")]
    assert annotate(tmp_path, texts) == Summary(3, 0, 0)
    assert (tmp_path / "a.txt").read_text() == "a cat"
    assert (tmp_path / "c.txt").read_text() == "hers"
    assert [image.captions for image in images(listed(tmp_path)).values()] == [(), ("hers",), ()]
    assert annotate(tmp_path, [("a.png", "a black cat"), ("sub/b.png", "a dog"), ("c.png", "x")]) == Summary(3, 0, 0)
    assert (tmp_path / "a.txt").read_text() == "a black cat"
    assert [image.captions for image in images(listed(tmp_path)).values()] == [(), ("hers",), ()]


def test_what_a_person_edits_is_the_persons(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": picture(1), "b.png": picture(2)})
    annotate(tmp_path, [("a.png", "a cat"), ("b.png", "a dog")])
    (tmp_path / "a.txt").write_text("my cat Felix")
    assert images(listed(tmp_path))["a.png"].captions == ("my cat Felix",)
    assert annotate(tmp_path, [("a.png", "a black cat"), ("b.png", "a brown dog")]) == Summary(2, 0, 0)
    assert [(tmp_path / name).read_text() for name in ("a.txt", "b.txt")] == ["my cat Felix", "a brown dog"]


def test_an_edit_while_the_run_is_under_way_is_kept_and_said(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": picture(1)})
    known = [described("a.png", "a cat")]
    (tmp_path / "a.txt").write_text("written meanwhile")
    assert export(tmp_path, known) == Summary(0, 0, 1)
    assert (tmp_path / "a.txt").read_text() == "written meanwhile"
    assert errors(tmp_path) == [("a.png", "caption_kept")]


def test_a_reviewers_words_are_a_persons(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": picture(1)})
    review = Review(author="Ada", text="a tabby cat", created_at=NOW)
    assert export(tmp_path, [described("a.png", "a cat", reviews=(review,))]) == Summary(1, 0, 0)
    assert images(listed(tmp_path))["a.png"].captions == ("a tabby cat",)
    annotate(tmp_path, [("a.png", "a dog")])
    assert (tmp_path / "a.txt").read_text() == "a tabby cat"


def test_the_record_of_earlier_releases_is_known(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": picture(1), "a.txt": "a cat", "b.png": picture(2), "b.txt": "hers"})
    records = [
        {"name": "a.png", "text": "a\ncat", "author": "model"},
        {"name": "b.png", "text": "hers", "author": "source"},
    ]
    put(tmp_path / ".tuwen", {"annotations.jsonl": "".join(json.dumps(record) + "\n" for record in records)})
    assert [image.captions for image in images(listed(tmp_path)).values()] == [(), ("hers",)]
    assert annotate(tmp_path, [("a.png", "a black cat")]) == Summary(1, 0, 0)
    assert (tmp_path / "a.txt").read_text() == "a black cat"


def test_folders_above_and_below_know_it_too(tmp_path: Path) -> None:
    put(tmp_path, {"x/a.png": picture(1), "x/y/b.png": picture(2)})
    annotate(tmp_path / "x", [("a.png", "a cat"), ("y/b.png", "a dog")])
    for folder in (tmp_path, tmp_path / "x", tmp_path / "x/y"):
        assert {image.captions for image in images(listed(folder)).values()} == {()}


def test_a_killed_export_has_noted_what_it_wrote(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": picture(1), "b.png": picture(2)})

    def killed() -> Iterable[Annotation]:
        yield described("a.png", "a cat")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, killed())  # type: ignore[arg-type]
    if (tmp_path / "a.txt").exists():
        assert images(listed(tmp_path))["a.png"].captions == ()
    annotate(tmp_path, [("a.png", "a black cat"), ("b.png", "a dog")])
    assert (tmp_path / "a.txt").read_text() == "a black cat"


@pytest.mark.parametrize("stem", ["图" * 82, "x" * 250, "ends with a dot.", "latin1-\\xe9"])
def test_long_and_odd_names_get_their_captions_beside_them(tmp_path: Path, stem: str) -> None:
    name = f"{stem}.png"
    put(tmp_path, {name: picture(1), "b.png": picture(2)})
    assert annotate(tmp_path, [(name, "a cat"), ("b.png", "a dog")]) == Summary(2, 0, 0)
    assert (tmp_path / f"{stem}.txt").read_text() == "a cat"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tuwen-")] == []


def test_a_name_that_cannot_be_written_costs_its_own_image(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": picture(1), "b.png": picture(2)})
    (tmp_path / "a.txt").mkdir()
    assert annotate(tmp_path, [("a.png", "a cat"), ("b.png", "a dog")]) == Summary(1, 0, 1)
    assert (tmp_path / "b.txt").read_text() == "a dog"
    assert errors(tmp_path)[0][0] == "a.png"


def test_a_picture_changed_in_the_same_second_is_another(tmp_path: Path) -> None:
    """Same name, size and time of modification: only the time of change tells."""
    put(tmp_path, {"a.bmp": b"BM" + bytes(100)})
    before = images(listed(tmp_path))["a.bmp"].version
    times = (tmp_path / "a.bmp").stat()
    (tmp_path / "a.bmp").write_bytes(b"BM" + bytes(99) + b"x")
    os.utime(tmp_path / "a.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))
    after = images(listed(tmp_path))["a.bmp"].version
    assert (tmp_path / "a.bmp").stat().st_mtime_ns == times.st_mtime_ns
    assert before != after
