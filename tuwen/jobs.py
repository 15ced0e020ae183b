"""Kinds, states, requests and results of jobs: pure types, no I/O."""

from __future__ import annotations

import math
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


class Kind(StrEnum):
    GENERATE = "generate"
    DESCRIBE = "describe"
    RECOGNIZE = "recognize"
    MATCH = "match"


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    QUARANTINED = "quarantined"

    @property
    def terminal(self) -> bool:
        return self not in (Status.QUEUED, Status.RUNNING)


def _storable(text: str) -> str:
    """PostgreSQL's text holds neither NUL nor lone surrogates."""
    if "\x00" in text:
        raise ValueError("must not contain NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain lone surrogates") from None
    return text


def _is_none(value: object) -> bool:
    return value is None


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Text = Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_storable)]
Label = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_storable)]
Word = Annotated[str, AfterValidator(_storable)]
Seconds = Annotated[float, AfterValidator(_finite)]
Tenant = str
Language = Literal["zh", "en"]
Style = Literal["short", "detailed", "tags"]
Score = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# ── requests ──────────────────────────────────────────────────────────────────────────────────────


class ImageSource(_Strict):
    """An image named in exactly one way: an uploaded file, a public URL, or base64 data."""

    file_id: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="id that POST /v1/files returned: the SHA-256 of the bytes"
    )
    url: Annotated[str, Field(max_length=2048), AfterValidator(_storable)] | None = None
    base64: str | None = Field(None, description="the file's bytes; stored as an uploaded file on submission")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(value is not None for value in (self.file_id, self.url, self.base64)) != 1:
            raise ValueError("give exactly one of file_id, url, base64")
        return self


class GenerateInput(_Strict):
    kind: Literal[Kind.GENERATE] = Kind.GENERATE
    prompt: Text
    negative_prompt: Annotated[str, Field(max_length=4000), AfterValidator(_storable)] = ""
    width: int | None = Field(None, ge=16, le=4096, description="pixels; none means the model's own size")
    height: int | None = Field(None, ge=16, le=4096, description="pixels; none means the model's own size")
    steps: int | None = Field(None, ge=1, le=500, description="sampling steps, for models that take steps")
    guidance: Annotated[float, Field(ge=0, le=100), AfterValidator(_finite)] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63, description="none means one is drawn and reported")
    candidates: int = Field(
        1, ge=1, le=16, description="images drawn, of seed, seed + 1 and so on, and scored against the prompt"
    )
    keep: Literal["best", "all"] = Field("best", description="which of the candidates are stored")
    min_score: Score | None = Field(None, description="further rounds are drawn until a candidate scores this much")
    rounds: int = Field(3, ge=1, le=8, description="with min_score: the most rounds of candidates that are drawn")
    previews: int = Field(
        0, ge=0, le=500, description="a small preview among the job's events every so many sampling steps; 0: none"
    )


class DescribeInput(_Strict):
    kind: Literal[Kind.DESCRIBE] = Kind.DESCRIBE
    image: ImageSource
    language: Language = "en"
    style: Style = "short"
    prompt: Annotated[str, Field(max_length=4000), AfterValidator(_storable)] = Field(
        "", description="what to say or answer about the image, for models that can be told"
    )
    max_tokens: int = Field(64, ge=1, le=2048)
    rerank: int = Field(
        1, ge=1, le=16, description="captions written and scored against the image; the one that fits best is the text"
    )


class RecognizeInput(_Strict):
    kind: Literal[Kind.RECOGNIZE] = Kind.RECOGNIZE
    image: ImageSource


class MatchInput(_Strict):
    kind: Literal[Kind.MATCH] = Kind.MATCH
    image: ImageSource
    text: Text
    report: bool = Field(False, description="also say which single statements of the text the image shows")


JobInput = Annotated[
    GenerateInput | DescribeInput | RecognizeInput | MatchInput,
    Field(discriminator="kind"),
]


class JobRequest(_Strict):
    """What a client submits."""

    input: JobInput
    model: Label | None = Field(None, description="none means the installation's model for the kind")
    priority: int = Field(5, ge=0, le=9, description="9 is most urgent; 0 is bulk work")
    deadline: Seconds | None = Field(None, gt=0, le=30 * 86_400, description="seconds from submission")
    max_attempts: int | None = Field(None, ge=1, le=20)
    webhook: Annotated[str, Field(max_length=2048), AfterValidator(_storable)] | None = Field(
        None, description="URL that is told, signed as Standard Webhooks, when the job is over"
    )


# ── results ───────────────────────────────────────────────────────────────────────────────────────


Warnings = Annotated[
    tuple[Word, ...],
    Field(description="what of the request the model did not heed: the end of a text that is too long, for example"),
]


class StoredImage(_Strict):
    """A generated image as it lies in object storage."""

    key: str
    sha256: str
    media_type: str = "image/png"
    width: int
    height: int


class Candidate(_Strict):
    """One of the images drawn for a prompt."""

    seed: int
    score: Score
    image: StoredImage | None = Field(None, description="none where it was not kept")


class GenerateResult(_Strict):
    kind: Literal[Kind.GENERATE] = Kind.GENERATE
    image: StoredImage
    seed: int
    score: Score | None = Field(None, description="of the image with the prompt, where candidates or min_score asked")
    candidates: tuple[Candidate, ...] = Field((), description="all that were drawn and scored, the best first")
    fell_short: bool = Field(False, description="no candidate reached min_score; the image is the best there was")
    unknown_words: tuple[Word, ...] = Field((), description="words of the prompt that the model does not know")
    warnings: Warnings = ()


class Caption(_Strict):
    """One of several captions of an image."""

    text: Word
    confidence: Score
    score: Score


class DescribeResult(_Strict):
    kind: Literal[Kind.DESCRIBE] = Kind.DESCRIBE
    text: Word
    language: Language
    confidence: Score = Field(description="geometric mean of the token probabilities")
    out_of_domain: bool = False
    tokens: int | None = Field(None, ge=0, description="written, that of the end not counted; none: not told")
    prompt_tokens: int | None = Field(None, ge=0, description="read before that, by a model that reads a prompt")
    score: Score | None = Field(None, description="of the text with the image, where rerank asked")
    captions: tuple[Caption, ...] = Field((), description="the different ones that rerank compared, the best first")
    warnings: Warnings = ()


class RecognizedObject(_Strict):
    """One object with the attributes and the action bound to it; names are English, `*_zh` Chinese."""

    name: Word
    name_zh: Word
    confidence: Score
    attributes: dict[Word, Word] = Field(default_factory=dict, description="for example colour, size")
    attributes_zh: dict[Word, Word] = Field(default_factory=dict)
    action: Word | None = None
    action_zh: Word | None = None
    count: int = 1


class RecognizeResult(_Strict):
    kind: Literal[Kind.RECOGNIZE] = Kind.RECOGNIZE
    objects: tuple[RecognizedObject, ...]
    scene: Word | None = None
    scene_zh: Word | None = None
    relation: Word | None = Field(None, description="of the first object to the second: left, right, above, below")
    confidence: Score
    out_of_domain: bool = False


class Claim(_Strict):
    """A single statement of a text, and what two models that know nothing of each other see of it in the image."""

    role: Literal["object", "count", "attribute", "action", "scene", "relation"]
    value: Word = Field(description="`cat`, `2`, `black`, `jumping`, `grass`, `left`; English, whatever the text is in")
    of: Word | None = Field(None, description="the object that it is said of")
    text: Word = Field(description="the statement in words, as the match model was asked about it")
    found: bool = Field(description="whether the recognize model sees it, bound to the right object")
    confidence: Score = Field(description="of the recognize model in the object or scene where it was found, else 0")
    score: Score = Field(description="of this statement alone with the image, by the match model")


class PairReport(_Strict):
    """Which statements of a text an image shows."""

    claims: tuple[Claim, ...]
    unknown_words: tuple[Word, ...] = Field((), description="of the text; nothing is said about them")
    out_of_domain: bool = Field(False, description="the image is none that the recognize model knows about")


class MatchResult(_Strict):
    """How well a text fits an image.

    The score is a probability, 0 to 1, that of the built-in model calibrated on captions of which half are true and
    half wrong in one word: at 0.8, four of five such texts are true. It is one number for the whole text, so one wrong
    word among many may cost little; a `report` judges statement by statement. Scores of different models, or of a
    model outside the domain that it was calibrated on, are not comparable: choose a `min_score` from examples of your
    own. And what was selected by this score must not be judged by it: the best of N scores better than it is.
    """

    kind: Literal[Kind.MATCH] = Kind.MATCH
    score: Score = Field(description="calibrated probability that the text fits the image")
    report: PairReport | None = Field(None, description="where the input asked for it")
    warnings: Warnings = ()


JobResult = Annotated[
    GenerateResult | DescribeResult | RecognizeResult | MatchResult,
    Field(discriminator="kind"),
]


def _made_storable(text: str) -> str:
    """What somebody's engine says of its failure must not be what cannot be written down."""
    return text.encode(errors="replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")


class JobError(_Strict):
    code: str
    detail: Annotated[str, AfterValidator(_made_storable)]
    retryable: bool = False


class Part(_Strict):
    """What a running job has made so far: the beginning of a text, or a small picture."""

    index: int = Field(
        0, ge=0, description="which of several: the captions that `rerank` compares, or the `candidates` of a round"
    )
    text: str | None = Field(
        None, exclude_if=_is_none, description="what is written so far and stays: the beginning of the result's text"
    )
    preview: str | None = Field(
        None, exclude_if=_is_none, description="a data: URL of at most 8 KiB, WebP of at most 128×128 pixels"
    )


class Progress(_Strict):
    """How far a running job is: `step` of `steps` (sampling steps or tokens)."""

    step: int
    steps: int
    parts: tuple[Part, ...] = Field(
        (), exclude_if=lambda parts: not parts, description="told while somebody watches the job's events"
    )

    def merged(self, unread: Progress | None) -> Progress:
        """This one, with those parts of one that nobody has read which this one does not tell anew."""
        if unread is None or not unread.parts:
            return self
        parts = {part.index: part for part in (*unread.parts, *self.parts)}
        return self.model_copy(update={"parts": tuple(parts.values())})


class Job(_Strict):
    """A job as the API shows it."""

    id: UUID
    kind: Kind
    model: str
    status: Status
    priority: int
    input: dict[str, Any]
    attempts: int
    max_attempts: int
    worker: str | None = Field(None, description="who runs it, or ran it last")
    progress: Progress | None = None
    result: JobResult | None = None
    result_url: str | None = Field(None, description="where the generated image can be fetched, for a while")
    error: JobError | None = None
    cancel_requested: bool = False
    created_at: datetime
    available_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    deadline_at: datetime
