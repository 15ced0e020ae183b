"""What goes over the wire besides jobs themselves: known to the API and to its client, and to nothing heavier."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from tuwen.jobs import Job, JobRequest, Kind


class FieldError(BaseModel):
    field: str = Field(examples=["input.prompt"])
    detail: str = Field(examples=["String should have at least 1 character"])


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:tuwen:problem:invalid_request",
                "title": "Unprocessable Entity",
                "status": 422,
                "detail": "input.steps: Input should be greater than or equal to 1",
                "code": "invalid_request",
                "errors": [{"field": "input.steps", "detail": "Input should be greater than or equal to 1"}],
            }
        }
    )

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="stable name of the problem, for programs")
    errors: list[FieldError] = Field(description="the fields to blame, where there are any")


class Batch(BaseModel):
    """Many jobs in one request: all of them are accepted, or none."""

    model_config = ConfigDict(extra="forbid")

    jobs: list[JobRequest] = Field(min_length=1)


class Accepted(BaseModel):
    jobs: list[Job] = Field(description="in the order of the requests")


class JobPage(BaseModel):
    """Jobs, newest first."""

    jobs: list[Job]
    next: str | None = Field(description="cursor of the next page; none when this is the last")


class File(BaseModel):
    """An image that jobs can name by its id."""

    id: str = Field(description="SHA-256 of the bytes", examples=["0" * 64])
    media_type: str = Field(examples=["image/png"])
    width: int = Field(description="pixels")
    height: int = Field(description="pixels")
    size: int = Field(description="bytes")
    created_at: int = Field(description="Unix time of the first upload")

    # The same once more, where clients of OpenAI's API look for it.
    object: Literal["file"] = "file"
    purpose: Literal["vision"] = "vision"
    status: Literal["processed"] = "processed"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bytes(self) -> int:
        return self.size

    @computed_field  # type: ignore[prop-decorator]
    @property
    def filename(self) -> str:
        return f"{self.id[:12]}.{self.media_type.rpartition('/')[2]}"


class ModelWorker(BaseModel):
    worker: str
    device: str
    revision: str = Field(description="of the weights")


class ModelState(BaseModel):
    kind: Kind
    model: str
    ready: bool = Field(description="whether a worker that lives holds it warm")
    workers: list[ModelWorker]


class Model(BaseModel):
    """A model as clients of OpenAI's API read it; `kinds` says what it does here."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time since when a worker that lives has served models, 0 while none does")
    owned_by: str = "tuwen"
    kinds: list[Kind]


class Models(BaseModel):
    """The models twice: by the kind of job, and under `data` each one once, as OpenAI lists them."""

    models: list[ModelState]
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    version: str


State = Literal["ok", "failed"]


class Readiness(BaseModel):
    status: Literal["ready", "degraded", "failed"] = Field(
        description="degraded: Redis is away, so jobs are accepted and kept, but start late"
    )
    components: dict[str, State]
