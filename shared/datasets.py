"""Bulk annotation of data sets: requests, states, shards, and the record of one image. Pure types, no I/O.

A *dataset* here is one run: a source, what to say about each of its images, and a destination. It is planned into
*shards* of some hundred images; a shard is one row and one message. What is known of an image is one `Annotation`.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.jobs import JobError, Kind, Label, Language, RecognizeResult, Score, Style, Text, Word


class DatasetStatus(StrEnum):
    PLANNING = "planning"
    """The source is being listed; shards that are planned already run."""
    RUNNING = "running"
    EXPORTING = "exporting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (DatasetStatus.SUCCEEDED, DatasetStatus.FAILED, DatasetStatus.CANCELLED)


class ShardStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self not in (ShardStatus.QUEUED, ShardStatus.RUNNING)


SourceFormat = Literal["auto", "folder", "zip", "webdataset", "list", "imagefolder", "coco", "openai"]
ExportFormat = Literal["jsonl", "imagefolder", "parquet", "webdataset", "kohya", "coco"]
Task = Literal[Kind.DESCRIBE, Kind.RECOGNIZE, Kind.MATCH]
Place = Annotated[Word, Field(min_length=1, max_length=4096)]
"""An absolute path on the workers' machines, or `s3://BUCKET/PREFIX` of the configured service."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# ── requests ──────────────────────────────────────────────────────────────────────────────────────


class Filters(_Strict):
    """Which images stay. Whatever is dropped is listed with its reason. None means any."""

    min_side: int | None = Field(None, ge=1, description="pixels of the shorter side")
    max_side: int | None = Field(None, ge=1, description="pixels of the longer side")
    max_aspect: float | None = Field(None, ge=1, le=1000, description="longer side over shorter side")
    duplicates: Literal["keep", "exact", "perceptual"] = Field(
        "keep", description="which copies are dropped before a model sees them; the first one stays"
    )
    min_confidence: Score | None = None
    min_score: Score | None = Field(None, description="of the caption by `match`")
    in_domain: bool = Field(False, description="drop images that are unlike what the model learnt from")


class DatasetRequest(_Strict):
    """What a client asks for."""

    source: Place
    source_format: SourceFormat = "auto"
    destination: Place
    destination_format: ExportFormat = "jsonl"
    tasks: tuple[Task, ...] = Field((Kind.DESCRIBE,), min_length=1, max_length=3)
    languages: tuple[Language, ...] = Field(("en",), min_length=1, max_length=2)
    styles: tuple[Style, ...] = Field(("short",), min_length=1, max_length=3)
    max_tokens: int = Field(64, ge=1, le=2048)
    candidates: int = Field(1, ge=1, le=16, description="captions written of each image; the best by `match` is kept")
    filters: Filters = Filters()
    overwrite: bool = Field(False, description="replace captions that the destination has already")
    priority: int = Field(5, ge=0, le=9, description="among data sets; any single job goes before all of them")
    shard_size: int = Field(500, ge=1, le=10_000, description="images of a shard")
    max_attempts: int = Field(3, ge=1, le=20, description="of each image, where trying again makes sense")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.candidates > 1 and Kind.DESCRIBE not in self.tasks:
            raise ValueError("candidates are captions: add the task describe")
        if self.filters.min_score is not None and not self.scored:
            raise ValueError("filters.min_score needs the task match")
        return self

    @property
    def scored(self) -> bool:
        """Whether `match` measures the captions."""
        return Kind.MATCH in self.tasks or self.candidates > 1

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Models that a worker must hold for this, in alphabetical order."""
        wanted = {*self.tasks, *((Kind.MATCH,) if self.scored else ())}
        return tuple(kind for kind in Kind if kind in wanted)

    @property
    def parameters(self) -> dict[str, Any]:
        """What an image's annotation depends on, besides the image and the models."""
        return self.model_dump(mode="json", include={"tasks", "languages", "styles", "max_tokens", "candidates"})


# ── what is known of an image ─────────────────────────────────────────────────────────────────────


class Provenance(_Strict):
    """Where words or figures come from."""

    model: str
    revision: str = Field(description="of the weights")
    parameters: dict[str, Any] = Field(default_factory=dict, description="style, language, tokens, candidate")
    software: str = Field(description="version of this program")
    worker: str
    at: datetime


class Edit(_Strict):
    """What a person said of a caption. It never replaces the model's words, it stands beside them."""

    text: Text | None = Field(None, description="better words; none leaves the model's")
    verdict: Literal["accept", "reject"] | None = None
    author: Label
    at: datetime


class Caption(_Strict):
    text: str
    language: Language
    style: Style
    confidence: Score
    out_of_domain: bool = False
    tokens: int | None = None
    score: Score | None = Field(None, description="how well it fits, by `match`")
    provenance: Provenance
    scored_by: Provenance | None = None
    edit: Edit | None = None

    @property
    def words(self) -> str:
        """A person's, where there are any, else the model's."""
        return self.edit.text if self.edit and self.edit.text else self.text


class Recognition(_Strict):
    result: RecognizeResult
    provenance: Provenance


class ImageRef(_Strict):
    """Which image of the source."""

    name: str = Field(description="its own within the source: a path, a `custom_id`, a tar's key")
    location: str = Field(description="path or URL that it was read from")
    caption: str | None = Field(None, description="the caption that the source has of it")


class Annotation(_Strict):
    """One image of a data set: a result, or an error, or dropped, each with its reason."""

    number: int = Field(ge=0, description="place in the data set, from 0, without gaps")
    image: ImageRef
    sha256: str | None = None
    size: int | None = Field(None, description="bytes")
    width: int | None = Field(None, description="pixels")
    height: int | None = Field(None, description="pixels")
    captions: tuple[Caption, ...] = Field((), description="the best of each language and style")
    others: tuple[Caption, ...] = Field((), description="candidates that were not the best")
    recognition: Recognition | None = None
    source_score: Score | None = Field(None, description="how well the source's own caption fits, by `match`")
    dropped: str | None = Field(None, description="why a filter keeps it out of the export")
    error: JobError | None = None
    attempts: int = 1

    @property
    def ok(self) -> bool:
        return self.error is None and self.dropped is None


# ── what the API shows ────────────────────────────────────────────────────────────────────────────


class WorkerProgress(_Strict):
    worker: str
    shards: int = Field(description="that it runs now")
    images_per_second: float


class DatasetProgress(_Strict):
    """Of what is planned so far; `planned` says whether that is all."""

    images: int
    done: int = Field(description="annotated or dropped by a filter")
    failed: int
    left: int
    shards: int
    shards_left: int
    planned: bool
    images_per_second: float = Field(description="over the last minute")
    tokens_per_second: float
    eta: float | None = Field(None, description="seconds, once there is a rate to go by")
    workers: tuple[WorkerProgress, ...] = ()


class Dataset(_Strict):
    """A data set as the API shows it."""

    id: UUID
    status: DatasetStatus
    paused: bool
    priority: int
    request: DatasetRequest
    progress: DatasetProgress
    error: JobError | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
