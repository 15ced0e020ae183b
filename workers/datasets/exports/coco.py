"""COCO's captions: captions.json with `images` and `annotations`, one annotation a caption, the chosen one first.

What was recognised is in instances.json, as in COCO itself: annotations with a category, but without boxes, since
models name objects and do not locate them.

https://cocodataset.org/#format-data. The images stay where they are; `file_name` is their name in the source.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from typing import Any

from shared.intake.held_folder import HeldFolder
from tuwen.annotations import Annotation, Caption
from tuwen.jobs import RecognizedObject
from tuwen.version import __version__
from workers.datasets.exports.files import create_text
from workers.datasets.exports.words import Words
from workers.datasets.exports.writers import Exported

_INFO = {"description": "captions by tuwen", "version": __version__}


class Coco:
    """Writes captions.json into a folder, and instances.json where something was recognised."""

    wants_images = False

    def __init__(self, folder: HeldFolder) -> None:
        self._folder = folder
        self._captions = _File(folder, "captions.json")
        self._instances: _File | None = None
        self._categories: dict[str, int] = {}

    def write(self, exported: Exported) -> None:
        """Write an image, its captions, and what was recognised in it."""
        known, id = exported.annotation, exported.number + 1
        image: dict[str, Any] = {"id": id, "file_name": known.name, "width": known.width, "height": known.height}
        extra = {"sha256": known.sha256, "custom_id": known.custom_id, "metadata": known.metadata or None}
        image |= {key: value for key, value in extra.items() if value is not None}
        self._captions.add(image, _list_captions(exported.words, known))
        if known.recognition is not None:
            self._instances = self._instances or _File(self._folder, "instances.json")
            self._instances.add(image, map(self._instance, known.recognition.objects))

    def close(self) -> None:
        """Finish the files."""
        self._captions.close({})
        if self._instances is not None:
            self._instances.close({"categories": [{"id": id, "name": name} for name, id in self._categories.items()]})

    def _instance(self, thing: RecognizedObject) -> dict[str, Any]:
        category = self._categories.setdefault(thing.name, len(self._categories) + 1)
        return {"category_id": category, **thing.model_dump(mode="json", exclude={"name"}, exclude_none=True)}


class _File:
    """A file that has all images before all annotations. Memory may hold neither, so the second list is appended."""

    def __init__(self, folder: HeldFolder, name: str) -> None:
        self._folder = folder
        self._rest = f".{name}"
        self._listed = self._annotated = 0
        self._images = create_text(folder, name)
        self._annotations = create_text(folder, self._rest)
        self._images.write('{"info": ' + json.dumps(_INFO) + ', "licenses": [], "images": [')

    def add(self, image: dict[str, Any], annotations: Iterable[dict[str, Any]]) -> None:
        self._images.write(_element(image, first=self._listed == 0))
        self._listed += 1
        for said in annotations:
            annotation = {"id": self._annotated + 1, "image_id": image["id"], **said}
            self._annotations.write(_element(annotation, first=self._annotated == 0))
            self._annotated += 1

    def close(self, more: dict[str, Any]) -> None:
        """Append the annotations to the images, then `more`, and finish the file."""
        self._images.write('\n], "annotations": [')
        with self._annotations as rest:
            rest.seek(0)
            shutil.copyfileobj(rest, self._images)
        self._images.write("\n]")
        for key, value in more.items():
            self._images.write(f", {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
        self._images.write("}\n")
        self._images.close()
        self._folder.remove(self._rest)


def _element(value: dict[str, Any], *, first: bool) -> str:
    return ("\n" if first else ",\n") + json.dumps(value, ensure_ascii=False)


def _list_captions(words: Words, known: Annotation) -> list[dict[str, Any]]:
    """List the chosen words first, then the others, each with its author and what is known of it."""
    chosen: dict[str, Any] = {"caption": words.text, "author": words.author, "language": words.language}
    if words.caption is not None:
        chosen |= _to_caption(words.caption)
    elif words.provenance is not None:
        chosen["provenance"] = words.provenance.model_dump(mode="json")
    people = [
        {"caption": review.text, "author": review.author, "language": review.language or ""}
        for review in known.reviews
        if review.text is not None and (review.text, review.author) != (words.text, words.author)
    ]
    others = [_to_caption(caption) for caption in (*known.captions, *known.others) if caption is not words.caption]
    kept = [{"caption": text, "author": "source"} for text in known.existing if text != words.text]
    return [*([chosen] if words.text else []), *people, *others, *kept]


def _to_caption(caption: Caption) -> dict[str, Any]:
    known = caption.model_dump(mode="json", exclude_none=True)
    return {"caption": known.pop("text"), "author": "model", **known}
