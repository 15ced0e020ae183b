"""Bulk annotation of data sets: requests and states. Pure types, no I/O.

A *dataset* here is one run: a source, what to say about each of its images, and a destination. It is planned as
*shards* of some hundred images; a shard is one row and one message. The outcome of an image is one
`tuwen.annotations.Annotation`.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, Field, model_validator

from tuwen.annotations import Annotation, Review
from tuwen.jobs import FrozenModel, JobError, Kind, Label, Language, Score, Style, Text, Word


class DatasetStatus(StrEnum):
    """States of a data set."""

    PLANNING = "planning"
    """The source is being listed; shards that are already planned run."""
    RUNNING = "running"
    EXPORTING = "exporting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether it is over for good, unless it is retried."""
        return self in (DatasetStatus.SUCCEEDED, DatasetStatus.FAILED, DatasetStatus.CANCELLED)


class ShardStatus(StrEnum):
    """States of a shard."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the shard is over."""
        return self not in (ShardStatus.QUEUED, ShardStatus.RUNNING)


SourceFormat = Literal["auto", "folder", "zip", "webdataset", "list", "imagefolder", "coco", "openai", "labelstudio"]
ExportFormat = Literal["jsonl", "imagefolder", "parquet", "webdataset", "kohya", "coco", "labelstudio"]
Task = Literal[Kind.DESCRIBE, Kind.RECOGNIZE, Kind.MATCH]
Place = Annotated[Word, Field(min_length=1, max_length=4096)]
"""An absolute path on the workers' machines, or `s3://BUCKET/PREFIX` of the configured service."""


# ── requests ──────────────────────────────────────────────────────────────────────────────────────


class Filters(FrozenModel):
    """Conditions for exporting images. Dropped ones are listed with their reason. A filter that is null drops none."""

    min_side: int | None = Field(None, ge=1, description="minimum of the shorter side, in pixels")
    max_side: int | None = Field(None, ge=1, description="maximum of the longer side, in pixels")
    max_aspect: float | None = Field(
        None, ge=1, le=1000, description="maximum of the longer side divided by the shorter"
    )
    duplicates: Literal["keep", "exact", "perceptual"] = Field(
        "keep", description="which copies are dropped before a model sees them; the first one stays"
    )
    min_confidence: Score | None = None
    min_score: Score | None = Field(None, description="minimum of the caption's score by `match`")
    in_domain: bool = Field(False, description="drop images that are unlike the model's training data")


def _require_encoding(name: str) -> str:
    """Return the name if Python can decode it, as most of the registered names of encodings."""
    try:
        "".encode(name)
    except LookupError:
        raise ValueError(
            f"there is no character encoding {name!r}; common ones are gb18030, big5, cp932 and cp1252"
        ) from None
    return name


_PARAMETERS = frozenset(("tasks", "languages", "styles", "prompt", "max_tokens", "candidates"))


class DatasetRequest(FrozenModel):
    """A request to annotate a data set."""

    source: Place
    source_format: SourceFormat = "auto"
    source_root: Place | None = Field(
        None,
        description="folder that the paths in a list or COCO file are relative to; by default the folder of the file",
    )
    image_column: Label | None = Field(
        None,
        description="column that names the image, for CSV, TSV and Parquet sources whose column names do not show it",
    )
    caption_column: Label | None = None
    encoding: Annotated[Label, AfterValidator(_require_encoding)] | None = Field(
        None,
        description="encoding of the source's texts, such as gb18030; by default each file's and folder's is detected",
    )
    destination: Place | None = Field(None, description="place to export to; only a dry run needs none")
    destination_format: ExportFormat = "jsonl"
    tasks: tuple[Task, ...] = Field((Kind.DESCRIBE,), min_length=1, max_length=3)
    languages: tuple[Language, ...] = Field(("en",), min_length=1, max_length=2)
    styles: tuple[Style, ...] = Field(("short",), min_length=1, max_length=3)
    prompt: Annotated[Word, Field(max_length=4000)] = Field(
        "", description="instruction for each image, for models that take a prompt"
    )
    max_tokens: int = Field(64, ge=1, le=2048)
    candidates: int = Field(1, ge=1, le=16, description="captions to write for each image; the best by `match` is kept")
    filters: Filters = Filters()
    dry_run: bool = Field(
        False, description="only count the images, find broken and duplicate ones, and estimate the effort"
    )
    overwrite: bool = Field(False, description="replace captions that the destination already has")
    priority: int = Field(5, ge=0, le=9, description="priority among data sets; any single job goes before all of them")
    shard_size: int = Field(500, ge=1, le=10_000, description="images in each shard")
    max_attempts: int = Field(3, ge=1, le=20, description="attempts for each image, where another attempt can help")

    @model_validator(mode="after")
    def _require_sense(self) -> Self:
        if self.destination is None and not self.dry_run:
            raise ValueError("destination is missing: give one, or set dry_run")
        if self.candidates > 1 and Kind.DESCRIBE not in self.tasks:
            raise ValueError("candidates need captions: add the task describe")
        if self.filters.min_score is not None and not self.scored:
            raise ValueError("filters.min_score needs the task match")
        return self

    @property
    def scored(self) -> bool:
        """Whether `match` scores the captions."""
        return Kind.MATCH in self.tasks or self.candidates > 1

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of models that a worker needs for this, in alphabetical order."""
        wanted = {*self.tasks, *((Kind.MATCH,) if self.scored else ())}
        return tuple(kind for kind in Kind if kind in wanted)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that an image's annotation depends on, besides the image and the models."""
        return self.model_dump(mode="json", include=set(_PARAMETERS))


# ── what the API shows ────────────────────────────────────────────────────────────────────────────


class WorkerProgress(FrozenModel):
    """What one worker contributes to a data set."""

    worker: str
    shards: int = Field(description="shards that the worker runs now")
    images_per_second: float


class DatasetProgress(FrozenModel):
    """Progress over the images planned so far; `planned` says whether those are all."""

    images: int
    done: int = Field(description="images that were annotated or dropped by a filter")
    dropped: int = Field(0, description="those of `done` that a filter dropped; a dry run drops none")
    failed: int
    final: int = Field(0, description="those of `failed` that fail again as long as the source is as it is")
    left: int
    shards: int
    shards_left: int
    planned: bool
    images_per_second: float = Field(description="average over the last minute")
    tokens_per_second: float
    eta: float | None = Field(None, description="estimated seconds to the end, once the speed is known")
    workers: tuple[WorkerProgress, ...] = ()


class Dataset(FrozenModel):
    """A data set as the API shows it."""

    id: UUID
    status: DatasetStatus
    paused: bool
    priority: int
    request: DatasetRequest
    progress: DatasetProgress
    estimate: dict[str, Any] | None = Field(None, description="results of a dry run")
    error: JobError | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Item(FrozenModel):
    """One image of a data set as the API shows it."""

    number: int = Field(description="position in the data set, from 0, without gaps; identifies the image in paths")
    annotation: Annotation
    reviews: tuple[Review, ...] = Field((), description="all reviews of the image, the newest first")
    preview_url: str | None = Field(
        None, description="URL of a small JPEG of the image; needs no API key, and is valid for a limited time"
    )


class DatasetPage(FrozenModel):
    """Data sets, newest first."""

    datasets: tuple[Dataset, ...]
    next: str | None = Field(description="cursor of the next page; null on the last page")


class ItemPage(FrozenModel):
    """A page of images, in the order of the list."""

    items: tuple[Item, ...]
    next: str | None = Field(description="cursor of the next page; null on the last page")
    before: int | None = Field(None, description="images of the list before this page; null when unknown")
    total: int | None = Field(None, description="images of the whole list; null when unknown")


class ExportRequest(FrozenModel):
    """A request to export the annotations to another destination."""

    destination: Place
    destination_format: ExportFormat = "jsonl"
    overwrite: bool = Field(False, description="replace captions that the destination already has")


class PriorityRequest(FrozenModel):
    """A request to change the priority of a data set."""

    priority: int = Field(ge=0, le=9, description="priority among data sets; 9 is most urgent")


class ReviewRequest(FrozenModel):
    """A person's review of an image; it is kept beside the model's captions and never replaces them."""

    author: Label | None = Field(
        None, description="author of the review; in an installation with API keys, the name of the key is used instead"
    )
    verdict: Literal["accepted", "rejected"] | None = None
    text: Text | None = None
    language: Language | None = Field(None, description="language of the text")

    @model_validator(mode="after")
    def _require_verdict_or_text(self) -> Self:
        if self.verdict is None and self.text is None:
            raise ValueError("give a verdict, a text, or both")
        return self
