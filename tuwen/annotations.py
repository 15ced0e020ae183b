"""What a bulk run knows of one image: pure types, no I/O.

A shard's results are lines of `Annotation`; exports, filters and the review page read nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tuwen.jobs import JobError, Label, Language, RecognizedObject, Score, Style, Word


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Provenance(_Strict):
    """How the words came about, enough to make them again."""

    model: str
    revision: str = Field("", description="of the weights")
    parameters: dict[str, Any] = Field(default_factory=dict, description="style, prompt, token limit… as requested")
    software: str = Field(description="name and version of the program, such as tuwen 0.1.0")
    worker: str = ""
    created_at: datetime


class Caption(_Strict):
    """What a model wrote."""

    text: Word
    language: Language
    style: Style
    confidence: Score = Field(description="geometric mean of the token probabilities")
    score: Score | None = Field(None, description="probability that the text fits the image, by `match`")
    out_of_domain: bool = False
    tokens: int | None = None
    provenance: Provenance
    scored_by: Provenance | None = None


class Recognition(_Strict):
    objects: tuple[RecognizedObject, ...]
    scene: Word | None = None
    scene_zh: Word | None = None
    relation: Word | None = None
    confidence: Score
    out_of_domain: bool = False
    provenance: Provenance


class DropReason(StrEnum):
    """Why an image that can be read is left out of the dataset."""

    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"
    ASPECT = "aspect"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    LOW_CONFIDENCE = "low_confidence"
    LOW_SCORE = "low_score"
    OUT_OF_DOMAIN = "out_of_domain"
    REJECTED = "rejected"


class Drop(_Strict):
    reason: DropReason
    detail: str


class Review(_Strict):
    """What a person said of an image: it stands beside the model's words and never replaces them."""

    id: UUID | None = Field(None, description="by which it can be taken back")
    author: Label
    created_at: datetime
    verdict: Literal["accepted", "rejected"] | None = None
    text: Word | None = Field(None, description="the caption in the person's words; none leaves the model's")
    language: Language | None = Field(None, description="of the text")


def standing(reviews: Iterable[Review]) -> tuple[Review, ...]:
    """Of all that people said of an image, the newest first, what still holds: the newest verdict, and the newest words
    in each language. Who accepts an image does not take back the words that another has put better."""
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


class Annotation(_Strict):
    """One image of the source: annotated, or dropped for a reason, or failed with an error."""

    name: str = Field(description="unique in its source: a relative path with / between its parts")
    sha256: str | None = None
    size: int | None = Field(None, description="bytes")
    width: int | None = Field(None, description="pixels")
    height: int | None = Field(None, description="pixels")
    custom_id: str | None = Field(None, description="the id that the source gave it")
    existing: tuple[str, ...] = Field((), description="captions that came with the image")
    existing_score: Score | None = Field(None, description="how well the first of them fits, by `match`")
    metadata: dict[str, Any] = Field(default_factory=dict, description="what else the source says of it")
    captions: tuple[Caption, ...] = Field((), description="the best of each language and style")
    others: tuple[Caption, ...] = Field((), description="candidates that were not the best")
    recognition: Recognition | None = None
    reviews: tuple[Review, ...] = Field((), description="what people said of it and still holds, the newest first")
    drop: Drop | None = None
    error: JobError | None = None
    attempts: int = 1

    @property
    def ok(self) -> bool:
        return self.error is None and self.drop is None

    @property
    def decoded(self) -> bool:
        """Whether it was read as an image: then a person can say of it what the models could not."""
        return self.width is not None

    @property
    def worded(self) -> bool:
        """Whether a person has put it into words."""
        return any(review.text is not None for review in self.reviews)

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.drop is not None and self.error is not None:
            raise ValueError("an image is dropped or failed, not both")
        return self
