"""Messages between the API and its client, besides jobs themselves. This module imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from tuwen.jobs import Job, JobRequest, Kind


class FieldError(BaseModel):
    """An error in one field of a request."""

    field: str = Field(examples=["input.prompt"])
    detail: str = Field(examples=["String should have at least 1 character"])


class Problem(BaseModel):
    """Problem details (RFC 9457): what went wrong."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:tuwen:problem:invalid_request",
                "title": "Unprocessable Entity",
                "status": 422,
                "detail": "input.steps: Input should be greater than or equal to 1",
                "code": "invalid_request",
                "errors": [{"field": "input.steps", "detail": "Input should be greater than or equal to 1"}],
                "request_id": "019a0c0d-e7a1-7c3e-8a51-1f0e5c2b9d34",
            }
        }
    )

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="stable name of the problem, for programs")
    errors: list[FieldError] = Field(description="the invalid fields, if any")
    request_id: str | None = Field(
        None, description="the answer's `x-request-id`: name it when you ask whoever runs the installation"
    )


class Batch(BaseModel):
    """Many jobs in one request: either all are accepted, or none."""

    model_config = ConfigDict(extra="forbid")

    jobs: list[JobRequest] = Field(min_length=1)


class Accepted(BaseModel):
    """The jobs that a batch of requests made."""

    jobs: list[Job] = Field(description="jobs in the order of the requests")


class JobPage(BaseModel):
    """Jobs, newest first."""

    jobs: list[Job]
    next: str | None = Field(description="cursor of the next page; null on the last page")


class File(BaseModel):
    """An image that jobs can name by its id."""

    id: str = Field(description="SHA-256 of the bytes", examples=["0" * 64])
    media_type: str = Field(examples=["image/png"])
    width: int = Field(description="pixels")
    height: int = Field(description="pixels")
    size: int = Field(description="bytes")
    created_at: int = Field(description="Unix time of the first upload")

    # The same values again, in the fields where clients of OpenAI's API look for them.
    object: Literal["file"] = "file"
    purpose: Literal["vision"] = "vision"
    status: Literal["processed"] = "processed"

    @computed_field  # type: ignore[prop-decorator]  # mypy allows no decorator on one
    @property
    def bytes(self) -> int:
        """Size in bytes, by the name that OpenAI's clients read."""
        return self.size

    @computed_field  # type: ignore[prop-decorator]  # mypy allows no decorator on one
    @property
    def filename(self) -> str:
        """A name for the file, made of its id and its type."""
        return f"{self.id[:12]}.{self.media_type.rpartition('/')[2]}"


class ModelWorker(BaseModel):
    """A worker that has a model loaded."""

    worker: str
    device: str
    revision: str = Field(description="revision of the weights")


class ModelState(BaseModel):
    """The default model of a kind, and the workers that have it."""

    kind: Kind
    model: str
    ready: bool = Field(description="whether a live worker has the model loaded")
    workers: list[ModelWorker]


class Model(BaseModel):
    """A model as clients of OpenAI's API read it; `kinds` says what it does here."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time since which a live worker has served the model; 0 while none does")
    owned_by: str = "tuwen"
    kinds: list[Kind]


class Models(BaseModel):
    """The models in two lists: by kind of job, and under `data` each model once, as OpenAI lists them."""

    models: list[ModelState]
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """Answer of a process that is alive."""

    status: Literal["ok"] = "ok"
    version: str


State = Literal["ok", "failed"]


class Readiness(BaseModel):
    """Whether jobs can be submitted, and the state of each part of the system."""

    status: Literal["ready", "degraded", "failed"] = Field(
        description="degraded: Redis is unavailable, so jobs are accepted and stored, but start late"
    )
    components: dict[str, State]
    problems: dict[str, str] | None = Field(
        None, description="while it is not ready: what is wrong with each part that failed"
    )
