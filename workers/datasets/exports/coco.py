"""COCO's captions: captions.json with `images` and `annotations`, one annotation a caption, the chosen one first.

https://cocodataset.org/#format-data. The images stay where they are; `file_name` is their name in the source.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

from shared.intake.held_folder import HeldFolder
from tuwen.annotations import Annotation, Caption
from tuwen.version import __version__
from workers.datasets.exports.files import create_text
from workers.datasets.exports.words import Words
from workers.datasets.exports.writers import Exported

_REST = ".annotations"
_INFO = {"description": "captions by tuwen", "version": __version__}


class Coco:
    """Writes captions.json into a folder."""

    wants_images = False

    def __init__(self, folder: HeldFolder) -> None:
        self._captions = 0
        # The file has all images before all annotations, and memory may hold neither: the second list is appended.
        self._folder = folder
        self._images = create_text(folder, "captions.json")
        self._annotations = create_text(folder, _REST)
        self._images.write('{"info": ' + json.dumps(_INFO) + ', "licenses": [], "images": [')

    def write(self, exported: Exported) -> None:
        """Write an image and its captions."""
        known, id = exported.annotation, exported.number + 1
        image: dict[str, Any] = {"id": id, "file_name": known.name, "width": known.width, "height": known.height}
        extra = {"sha256": known.sha256, "custom_id": known.custom_id, "metadata": known.metadata or None}
        image |= {key: value for key, value in extra.items() if value is not None}
        self._images.write(_element(image, first=exported.number == 0))
        for said in _list_captions(exported.words, known):
            self._captions += 1
            annotation = {"id": self._captions, "image_id": id, **said}
            self._annotations.write(_element(annotation, first=self._captions == 1))

    def close(self) -> None:
        """Append the annotations to the images and finish the file."""
        self._images.write('\n], "annotations": [')
        with self._annotations as rest:
            rest.seek(0)
            shutil.copyfileobj(rest, self._images)
        self._images.write("\n]}\n")
        self._images.close()
        self._folder.remove(_REST)


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
