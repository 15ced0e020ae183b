"""Label Studio: its exports as sources, and tasks for it, which are read back as it would."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.support.pictures import picture
from tests.workers.datasets.test_exports import caption, export
from tests.workers.datasets.test_sources import contents, images, listed, problems, put
from tuwen.annotations import Annotation, Review

A, B, C = picture(1), picture(2), picture(3)


def textarea(*said: str) -> dict[str, object]:
    return {"from_name": "caption", "to_name": "image", "type": "textarea", "value": {"text": list(said)}}


def test_tasks_of_its_json_export(tmp_path: Path) -> None:
    put(tmp_path, {"photos/a b.png": A, "upload/3/0123abcd-cat.png": B, "images/c.png": C, "dog.png": A})
    choice = {"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
    tasks = [
        {
            "id": 1,
            "data": {"image": "/data/local-files/?d=photos/a%20b.png", "place": "garden"},
            "annotations": [{"result": [textarea("a cat", "one cat"), choice]}, {"result": [textarea("a cat")]}],
            "predictions": [{"model_version": "x", "result": [textarea("a dog")]}],
        },
        {"id": 2, "data": {"image": "/data/upload/3/0123abcd-cat.png"}, "annotations": []},
        {
            "id": 3,
            "data": {"image": "images\\c.png"},
            "annotations": [{"was_cancelled": True, "result": [textarea("no")]}],
        },
        {
            "id": 4,
            "data": {"image": "/data/upload/7/89abcdef-dog.png"},
            "annotations": [{"result": [textarea("a dog")]}],
        },
        {"id": 5, "data": {"image": "/data/upload/7/89abcdef-gone.png"}},
        {"id": 6, "data": {"text": "no picture"}},
    ]
    path = put(tmp_path, {"project.json": json.dumps(tasks)}) / "project.json"
    entries = listed(path)
    found = images(entries)
    assert {name: image.captions for name, image in found.items()} == {
        "photos/a b.png": ("a cat", "one cat"),
        "upload/3/0123abcd-cat.png": (),
        "images/c.png": (),
        "dog.png": ("a dog",),
    }
    assert found["photos/a b.png"].metadata == {"place": "garden"}
    assert [code for _, code in problems(entries)] == ["not_found", "invalid_row"]
    assert list(contents(path, entries).values()) == [A, B, C, A]


def test_tasks_of_json_min(tmp_path: Path) -> None:
    tasks = [
        {"image": "a.png", "id": 1, "caption": "a cat", "annotator": 1, "lead_time": 2.5, "weather": "fine"},
        {"image": "b.png", "id": 2, "caption": {"text": ["two dogs", "dogs"]}, "annotator": 1},
    ]
    path = put(tmp_path, {"a.png": A, "b.png": B, "min.json": json.dumps(tasks)}) / "min.json"
    entries = listed(path)
    assert problems(entries) == []
    assert [image.captions for image in images(entries).values()] == [("a cat",), ("two dogs", "dogs")]
    assert images(entries)["a.png"].metadata == {"weather": "fine"}


def test_tasks_that_are_written_are_what_it_imports(tmp_path: Path) -> None:
    source = put(tmp_path / "source", {"a.png": A, "sub/b c.png": B})
    review = Review(author="Ada", text="a tabby cat", created_at=datetime(2026, 1, 1, tzinfo=UTC))
    known = [
        Annotation(
            name="a.png", captions=(caption("a cat"),), others=(caption("worse", score=0.1),), reviews=(review,)
        ),
        Annotation(name="sub/b c.png", captions=(caption("a dog"),)),
    ]
    export(source, tmp_path / "out", "labelstudio", known)
    tasks = json.loads((tmp_path / "out/tasks.json").read_text())
    form = ET.fromstring((tmp_path / "out/labeling.xml").read_text())
    names = {field.get("name") for field in form}
    for task in tasks:
        for each in (*task["predictions"], *task.get("annotations", ())):
            assert {(result["from_name"], result["to_name"]) for result in each["result"]} <= {("caption", "image")} & {
                (one, other) for one in names for other in names
            }
        assert set(task["data"]) >= {field.get("value", "").removeprefix("$") for field in form}
    assert [[each["score"] for each in task["predictions"]] for task in tasks] == [[0.8, 0.1], [0.8]]
    # Its document root is /, and so is ours here.
    entries = listed(tmp_path / "out/tasks.json", root="/")
    assert [image.captions for image in images(entries).values()] == [("a tabby cat",), ()]
    assert list(contents(tmp_path / "out/tasks.json", entries, root="/").values()) == [A, B]
