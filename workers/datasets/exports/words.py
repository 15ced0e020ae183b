"""The text that an export has for an image: which words, whose, and the whole record beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tuwen.annotations import Annotation, Caption, Drop, DropReason, Provenance, Recognition
from tuwen.jobs import JobError


@dataclass(frozen=True, slots=True)
class Words:
    """The caption of an image, and who wrote it."""

    text: str
    language: str
    author: str
    """A person's name, `source` for words that came with the image, or `model`."""
    caption: Caption | None = None
    """The model's caption, where the model is the author."""
    provenance: Provenance | None = None


def chosen_words(annotation: Annotation, *, overwrite: bool) -> Words:
    """Choose the words to export: a person's before all others; then those that came with the image, unless they are to
    be overwritten; then the model's best; then what was recognised, as tags. A person's words in one language replace
    the model's in that language only."""
    from_source = bool(annotation.existing) and not (overwrite and (annotation.captions or annotation.recognition))
    replaced = annotation.captions[0].language if annotation.captions and not from_source else None
    for review in annotation.reviews:
        if review.text and (replaced is None or review.language in (None, replaced)):
            return Words(review.text, review.language or "", review.author)
    if from_source:
        return Words(annotation.existing[0], "", "source")
    if annotation.captions:
        best = annotation.captions[0]
        return Words(best.text, best.language, "model", best, best.provenance)
    if annotation.recognition is not None:
        return Words(tags(annotation.recognition), "en", "model", None, annotation.recognition.provenance)
    return Words("", "", "source")


def tags(recognition: Recognition) -> str:
    """What was recognised, as a line of tags: `2 black cat jumping, grass`."""
    found = []
    for thing in recognition.objects:
        parts = [
            str(thing.count) if thing.count > 1 else "",
            *thing.attributes.values(),
            thing.name,
            thing.action or "",
        ]
        found.append(" ".join(part for part in parts if part))
    return ", ".join([*found, *([recognition.scene] if recognition.scene else [])])


def drop_of(annotation: Annotation) -> Drop | None:
    """Return why the image is left out: a filter's reason or a person's; None if it is not."""
    if annotation.drop is not None:
        return annotation.drop
    judged = next((review for review in annotation.reviews if review.verdict is not None), None)
    if judged is not None and judged.verdict == "rejected":
        return Drop(reason=DropReason.REJECTED, detail=f"rejected by {judged.author}")
    return None


def failure_of(annotation: Annotation) -> JobError | None:
    """Return why there is nothing to export: the image's error, unless a person wrote what the models could not."""
    return None if annotation.decoded and annotation.worded else annotation.error


def record(number: int, annotation: Annotation, words: Words) -> dict[str, Any]:
    """All that is known of an image, as JSON: its number in the export, the words, and where they come from."""
    known = annotation.model_dump(mode="json", exclude_none=True)
    said = {"number": number, "text": words.text, "language": words.language, "author": words.author}
    return {"name": known.pop("name"), **said, **known}


def flat(annotation: Annotation, words: Words) -> dict[str, Any]:
    """The words and their provenance in columns of one type each, whatever the image; empty where it has none."""
    caption, made = words.caption, words.provenance
    return {
        "text": words.text,
        "language": words.language,
        "author": words.author,
        "style": caption.style if caption else "",
        "confidence": caption.confidence if caption else None,
        "score": caption.score if caption else annotation.existing_score,
        "model": made.model if made else "",
        "revision": made.revision if made else "",
        "parameters": json.dumps(made.parameters, ensure_ascii=False) if made else "",
        "software": made.software if made else "",
        "worker": made.worker if made else "",
        "created_at": made.created_at.isoformat() if made else "",
    }
