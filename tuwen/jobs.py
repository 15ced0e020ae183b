"""Kinds, states, requests and results of jobs: pure types, no I/O."""

from __future__ import annotations

import math
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


class Kind(StrEnum):
    """Kinds of jobs."""

    GENERATE = "generate"
    DESCRIBE = "describe"
    RECOGNIZE = "recognize"
    MATCH = "match"


class Status(StrEnum):
    """States of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    QUARANTINED = "quarantined"

    @property
    def terminal(self) -> bool:
        """Whether the job is over: its state does not change any more."""
        return self not in (Status.QUEUED, Status.RUNNING)


def _require_storable(text: str) -> str:
    """Refuse NUL and lone surrogates, which PostgreSQL's type text cannot store."""
    if "\x00" in text:
        raise ValueError("must not contain NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain lone surrogates") from None
    return text


def _is_none(value: object) -> bool:
    return value is None


def _require_finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Text = Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_require_storable)]
Label = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_require_storable)]
Word = Annotated[str, AfterValidator(_require_storable)]
Seconds = Annotated[float, AfterValidator(_require_finite)]
Tenant = str
Language = Literal["zh", "en"]
Style = Literal["short", "detailed", "tags"]
Score = Annotated[float, Field(ge=0, le=1)]


class FrozenModel(BaseModel):
    """Base of the models that do not change and refuse unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# ── requests ──────────────────────────────────────────────────────────────────────────────────────


class ImageSource(FrozenModel):
    """An image named in exactly one way: an uploaded file, a public URL, or base64 data."""

    file_id: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="id that POST /v1/files returned: the SHA-256 of the bytes"
    )
    url: Annotated[str, Field(max_length=2048), AfterValidator(_require_storable)] | None = None
    base64: str | None = Field(None, description="the file's bytes; stored as an uploaded file on submission")

    @model_validator(mode="after")
    def _require_exactly_one(self) -> Self:
        if sum(value is not None for value in (self.file_id, self.url, self.base64)) != 1:
            raise ValueError("give exactly one of file_id, url, base64")
        return self


class GenerateInput(FrozenModel):
    """Draw an image from a prompt."""

    kind: Literal[Kind.GENERATE] = Kind.GENERATE
    prompt: Text
    negative_prompt: Annotated[str, Field(max_length=4000), AfterValidator(_require_storable)] = ""
    width: int | None = Field(None, ge=16, le=4096, description="size in pixels; by default the model's own")
    height: int | None = Field(None, ge=16, le=4096, description="size in pixels; by default the model's own")
    steps: int | None = Field(None, ge=1, le=500, description="sampling steps, for models that take steps")
    guidance: Annotated[float, Field(ge=0, le=100), AfterValidator(_require_finite)] | None = None
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="random seed; by default drawn at random, and reported in the result"
    )
    candidates: int = Field(
        1, ge=1, le=16, description="images to draw, with seed, seed + 1 and so on, and to score against the prompt"
    )
    keep: Literal["best", "all"] = Field("best", description="which of the candidates are stored")
    min_score: Score | None = Field(None, description="draw further rounds until a candidate reaches this score")
    rounds: int = Field(3, ge=1, le=8, description="with min_score: maximum number of rounds of candidates")
    previews: int = Field(
        0,
        ge=0,
        le=500,
        description="send a small preview as a job event after every so many sampling steps; 0 sends none",
    )


class DescribeInput(FrozenModel):
    """Describe an image in words."""

    kind: Literal[Kind.DESCRIBE] = Kind.DESCRIBE
    image: ImageSource
    language: Language = "en"
    style: Style = "short"
    prompt: Annotated[str, Field(max_length=4000), AfterValidator(_require_storable)] = Field(
        "", description="instruction or question about the image, for models that take a prompt"
    )
    max_tokens: int = Field(64, ge=1, le=2048)
    rerank: int = Field(
        1,
        ge=1,
        le=16,
        description="captions to write and score against the image; the one that fits best becomes the text",
    )


class RecognizeInput(FrozenModel):
    """Name the objects in an image."""

    kind: Literal[Kind.RECOGNIZE] = Kind.RECOGNIZE
    image: ImageSource


class MatchInput(FrozenModel):
    """Measure how well a text fits an image."""

    kind: Literal[Kind.MATCH] = Kind.MATCH
    image: ImageSource
    text: Text
    report: bool = Field(False, description="also report which single statements of the text the image shows")


JobInput = Annotated[
    GenerateInput | DescribeInput | RecognizeInput | MatchInput,
    Field(discriminator="kind"),
]


class JobRequest(FrozenModel):
    """A request for a job, as a client submits it."""

    input: JobInput
    model: Label | None = Field(None, description="name of the model; by default the installation's model for the kind")
    priority: int = Field(5, ge=0, le=9, description="9 is most urgent; 0 is bulk work")
    deadline: Seconds | None = Field(
        None, gt=0, le=30 * 86_400, description="seconds from submission until the job expires"
    )
    max_attempts: int | None = Field(None, ge=1, le=20)
    webhook: Annotated[str, Field(max_length=2048), AfterValidator(_require_storable)] | None = Field(
        None, description="URL that is notified when the job is over, signed as in Standard Webhooks"
    )


# ── results ───────────────────────────────────────────────────────────────────────────────────────


Warnings = Annotated[
    tuple[Word, ...],
    Field(description="parts of the request that the model ignored: the end of a text that is too long, for example"),
]


class StoredImage(FrozenModel):
    """A generated image as it lies in object storage."""

    key: str
    sha256: str
    media_type: str = "image/png"
    width: int
    height: int
    size: int | None = Field(None, description="bytes; none in results of early releases")


class Candidate(FrozenModel):
    """One of the images drawn for a prompt."""

    seed: int
    score: Score
    image: StoredImage | None = Field(None, description="null when the image was not kept")
    revised_prompt: Word | None = Field(None, description="as in the result; null when the image was not kept")


class GenerateResult(FrozenModel):
    """The image that was drawn, and how."""

    kind: Literal[Kind.GENERATE] = Kind.GENERATE
    image: StoredImage
    seed: int
    score: Score | None = Field(None, description="score against the prompt, with candidates or min_score")
    candidates: tuple[Candidate, ...] = Field((), description="all images that were drawn and scored, the best first")
    fell_short: bool = Field(False, description="whether no candidate reached min_score; the image is the best of them")
    unknown_words: tuple[Word, ...] = Field((), description="words of the prompt that the model does not know")
    revised_prompt: Word | None = Field(
        None, description="what was drawn, in the model's own words, with what the prompt left open; none: not told"
    )
    warnings: Warnings = ()


class RankedCaption(FrozenModel):
    """One of several captions of an image."""

    text: Word
    confidence: Score
    score: Score


class DescribeResult(FrozenModel):
    """The text that describes the image."""

    kind: Literal[Kind.DESCRIBE] = Kind.DESCRIBE
    text: Word
    language: Language
    confidence: Score = Field(description="geometric mean of the token probabilities")
    out_of_domain: bool = False
    tokens: int | None = Field(
        None, ge=0, description="tokens written, without the end token; null when the model does not report them"
    )
    prompt_tokens: int | None = Field(None, ge=0, description="tokens read before that, by a model that takes a prompt")
    score: Score | None = Field(None, description="score of the text against the image, with rerank")
    captions: tuple[RankedCaption, ...] = Field(
        (), description="the distinct captions that rerank compared, the best first"
    )
    warnings: Warnings = ()


class RecognizedObject(FrozenModel):
    """One object with its attributes and action; names are English, those in `*_zh` Chinese."""

    name: Word
    name_zh: Word
    confidence: Score
    attributes: dict[Word, Word] = Field(
        default_factory=dict, description="attribute → value, for example for colour and size"
    )
    attributes_zh: dict[Word, Word] = Field(default_factory=dict)
    action: Word | None = None
    action_zh: Word | None = None
    count: int = 1


class RecognizeResult(FrozenModel):
    """The objects and the scene that the image shows."""

    kind: Literal[Kind.RECOGNIZE] = Kind.RECOGNIZE
    objects: tuple[RecognizedObject, ...]
    scene: Word | None = None
    scene_zh: Word | None = None
    relation: Word | None = Field(
        None, description="position of the first object relative to the second: left, right, above, below"
    )
    confidence: Score
    out_of_domain: bool = False


class Claim(FrozenModel):
    """A single statement of a text, judged against the image by two independent models."""

    role: Literal["object", "count", "attribute", "action", "scene", "relation"]
    value: Word = Field(
        description="`cat`, `2`, `black`, `jumping`, `grass`, `left`; in English, whatever the language of the text"
    )
    of: Word | None = Field(None, description="the object that the statement is about")
    text: Word = Field(description="the statement in words, as it was given to the match model")
    found: bool = Field(description="whether the recognize model sees the statement on the right object")
    confidence: Score = Field(
        description="confidence of the recognize model in the object or scene where it was found; otherwise 0"
    )
    score: Score = Field(description="score of this statement alone against the image, by the match model")


class PairReport(FrozenModel):
    """The statements of a text, each with whether the image shows it."""

    claims: tuple[Claim, ...]
    unknown_words: tuple[Word, ...] = Field((), description="words of the text that are not judged")
    out_of_domain: bool = Field(False, description="whether the image is outside the domain of the recognize model")


class MatchResult(FrozenModel):
    """How well a text fits an image.

    The score is a probability, 0 to 1. That of the built-in model is calibrated on captions of which half are true and
    half are wrong in one word: at 0.8, four of five such texts are true. It is one number for the whole text, so one
    wrong word among many may cost little; a `report` judges statement by statement. Scores of different models, or of a
    model outside the domain that it was calibrated on, are not comparable: choose a `min_score` from your own examples.
    Do not use this score to evaluate images that were selected by it: the best of N has a score that is too high.
    """

    kind: Literal[Kind.MATCH] = Kind.MATCH
    score: Score = Field(description="calibrated probability that the text fits the image")
    report: PairReport | None = Field(None, description="report, when the input asks for it")
    warnings: Warnings = ()


JobResult = Annotated[
    GenerateResult | DescribeResult | RecognizeResult | MatchResult,
    Field(discriminator="kind"),
]


def _make_storable(text: str) -> str:
    """Replace characters that PostgreSQL cannot store in an error message, which may come from any engine."""
    return text.encode(errors="replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")


class JobError(FrozenModel):
    """Why a job failed."""

    code: str
    detail: Annotated[str, AfterValidator(_make_storable)]
    retryable: bool = False


class Part(FrozenModel):
    """Partial output of a running job: the beginning of a text, or a small picture."""

    index: int = Field(
        0, ge=0, description="index among the captions that `rerank` compares, or the `candidates` of a round"
    )
    text: str | None = Field(
        None, exclude_if=_is_none, description="the text written so far, which is the beginning of the result's text"
    )
    preview: str | None = Field(
        None, exclude_if=_is_none, description="a data: URL of at most 8 KiB, WebP of at most 128×128 pixels"
    )


class Progress(FrozenModel):
    """Progress of a running job: `step` of `steps` (sampling steps or tokens)."""

    step: int
    steps: int
    parts: tuple[Part, ...] = Field(
        (),
        exclude_if=lambda parts: not parts,
        description="partial outputs, reported while a client watches the job's events",
    )

    def merge(self, unread: Progress | None) -> Progress:
        """This progress, with those parts of an older, unread progress that this one does not replace."""
        if unread is None or not unread.parts:
            return self
        parts = {part.index: part for part in (*unread.parts, *self.parts)}
        return self.model_copy(update={"parts": tuple(parts.values())})


class Job(FrozenModel):
    """A job as the API shows it."""

    id: UUID
    kind: Kind
    model: str
    status: Status
    priority: int
    input: dict[str, Any]
    attempts: int
    max_attempts: int
    worker: str | None = Field(None, description="worker that runs the job, or ran it last")
    progress: Progress | None = None
    result: JobResult | None = None
    result_url: str | None = Field(
        None, description="URL of the generated image; needs no API key, and is valid for a limited time"
    )
    error: JobError | None = None
    cancel_requested: bool = False
    created_at: datetime
    available_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    deadline_at: datetime
