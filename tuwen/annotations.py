"""The annotation of one image in a data set: pure types, no I/O.

A shard's results are lines of `Annotation`; exports, filters and the review page read nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import Field, model_validator

from tuwen.jobs import FrozenModel, JobError, Label, Language, RecognizedObject, Score, Style, Word


class Provenance(FrozenModel):
    """How a text was produced, in enough detail to produce it again."""

    model: str
    revision: str = Field("", description="revision of the weights")
    parameters: dict[str, Any] = Field(default_factory=dict, description="style, prompt, token limit… as requested")
    software: str = Field(description="name and version of the program, such as tuwen 0.1.0")
    worker: str = ""
    created_at: datetime


class Caption(FrozenModel):
    """A caption that a model wrote."""

    text: Word
    language: Language
    style: Style
    confidence: Score = Field(description="geometric mean of the token probabilities")
    score: Score | None = Field(None, description="probability that the text fits the image, by `match`")
    out_of_domain: bool = False
    tokens: int | None = None
    provenance: Provenance
    scored_by: Provenance | None = None


class Recognition(FrozenModel):
    """What the recognize model found in an image."""

    objects: tuple[RecognizedObject, ...]
    scene: Word | None = None
    scene_zh: Word | None = None
    relation: Word | None = None
    confidence: Score
    out_of_domain: bool = False
    provenance: Provenance


class DropReason(StrEnum):
    """Why an image that can be read is left out of the exported data set."""

    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"
    ASPECT = "aspect"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    LOW_CONFIDENCE = "low_confidence"
    LOW_SCORE = "low_score"
    OUT_OF_DOMAIN = "out_of_domain"
    REJECTED = "rejected"


class Drop(FrozenModel):
    """Why a filter dropped an image."""

    reason: DropReason
    detail: str


class Review(FrozenModel):
    """A person's review of an image; it is kept beside the model's captions and never replaces them."""

    id: UUID | None = Field(None, description="id with which the review can be withdrawn")
    author: Label
    created_at: datetime
    verdict: Literal["accepted", "rejected"] | None = None
    text: Word | None = Field(None, description="the person's caption; without it, the model's stays")
    language: Language | None = Field(None, description="language of the text")


def standing_reviews(reviews: Iterable[Review]) -> tuple[Review, ...]:
    """The reviews of an image that still count, of all its reviews, the newest first: the newest verdict and the newest
    caption in each language. A person who accepts an image does not undo a caption that somebody improved."""
    known: set[str] = set()
    kept = []
    for review in reviews:
        said = {"verdict"} if review.verdict is not None else set()
        if review.text is not None:
            said.add(f"words in {review.language}")
        if said - known:
            kept.append(review)
        known |= said
    return tuple(kept)


class Annotation(FrozenModel):
    """One image of the source: annotated, or dropped for a reason, or failed with an error."""

    name: str = Field(description="name, unique in the source: a relative path with / between its parts")
    sha256: str | None = None
    size: int | None = Field(None, description="bytes")
    width: int | None = Field(None, description="pixels")
    height: int | None = Field(None, description="pixels")
    custom_id: str | None = Field(None, description="the id that the source gave it")
    existing: tuple[str, ...] = Field((), description="captions that came with the image")
    existing_score: Score | None = Field(None, description="how well the first of them fits, by `match`")
    metadata: dict[str, Any] = Field(default_factory=dict, description="other values that the source has for the image")
    captions: tuple[Caption, ...] = Field((), description="the best caption of each language and style")
    others: tuple[Caption, ...] = Field((), description="candidates that were not the best")
    recognition: Recognition | None = None
    reviews: tuple[Review, ...] = Field((), description="reviews that still count, the newest first")
    drop: Drop | None = None
    error: JobError | None = None
    attempts: int = 1

    @property
    def ok(self) -> bool:
        """Whether the image was annotated: neither dropped nor failed."""
        return self.error is None and self.drop is None

    @property
    def decoded(self) -> bool:
        """Whether the file was read as an image: then a person can caption it even if the models failed."""
        return self.width is not None

    @property
    def worded(self) -> bool:
        """Whether a person has written a caption for the image."""
        return any(review.text is not None for review in self.reviews)

    @model_validator(mode="after")
    def _require_one_end(self) -> Self:
        if self.drop is not None and self.error is not None:
            raise ValueError("an image is dropped or failed, not both")
        return self
