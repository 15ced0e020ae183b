"""The one typed configuration, read from the environment (`TUWEN_…`) once per process."""

from __future__ import annotations

import binascii
import ipaddress
from base64 import b64decode
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.model_specs import ModelSpec, parse_models
from tuwen.errors import ConfigurationError
from tuwen.jobs import Kind


def _split_list(value: object) -> object:
    """Split a list, which the environment has as `a,b`."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _require_scheme(*schemes: str) -> AfterValidator:
    def check(url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in schemes:
            raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        _ = parts.port  # raises ValueError when the port is not a number
        return url

    return AfterValidator(check)


def _check_network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


def _check_host(text: str) -> str:
    if urlsplit(f"//{text}").hostname != text.lower():
        raise ValueError("must be a name or an address alone, without scheme and port")
    return text.lower()


def _check_origin(text: str) -> str:
    text = text.lower()
    parts = urlsplit(text)
    is_origin = parts.scheme in ("http", "https") and parts.netloc and f"{parts.scheme}://{parts.netloc}" == text
    if text != "*" and not is_origin:
        raise ValueError("must be https://HOST or https://HOST:PORT as browsers send it, or *")
    return text


def _check_secret(secret: SecretStr) -> SecretStr:
    for part in secret.get_secret_value().split(","):
        try:
            key = b64decode(part.strip().removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not 24 <= len(key) <= 64:  # the lengths that Standard Webhooks allows
            raise ValueError("must be whsec_ and the base64 of 24 to 64 bytes, as `openssl rand -base64 32` makes")
    return secret


def _check_models(text: str) -> str:
    parse_models(text)
    return text


Models = Annotated[str, AfterValidator(_check_models)]
MOST_QUOTA = 2**31 - 1
Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """Settings. The environment variable of a field is `TUWEN_<FIELD>`; times are seconds, sizes bytes, lists `a,b`."""

    model_config = SettingsConfigDict(env_prefix="TUWEN_", env_ignore_empty=True, extra="ignore")

    # Where things are
    database_url: Annotated[str, _require_scheme("postgresql", "postgres")] = "postgresql://tuwen@127.0.0.1:5432/tuwen"
    redis_url: Annotated[str, _require_scheme("redis", "rediss")] = "redis://127.0.0.1:6379/0"
    storage_url: str = Field("file://.tuwen/objects", description="file://FOLDER or s3://BUCKET/PREFIX")
    s3_endpoint: str | None = Field(None, description="URL of an S3-compatible service; by default AWS")
    s3_public_endpoint: str | None = Field(None, description="the same service as clients reach it, for presigned URLs")
    s3_region: str = "us-east-1"
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None
    data_dir: Path = Field(Path(".tuwen"), description="folder of the embedded system")

    # API
    host: str = "127.0.0.1"
    port: Port = 8000
    public_url: Annotated[str, _require_scheme("http", "https")] | None = Field(
        None, description="URL at which clients reach the API, in links; by default that of the request, if trusted"
    )
    public_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(_check_host)], ...], NoDecode, BeforeValidator(_split_list)
    ] = Field(
        (), description="further names under which clients reach the API: only these may a request put into links"
    )
    trusted_proxies: Annotated[
        tuple[Annotated[str, AfterValidator(_check_network)], ...], NoDecode, BeforeValidator(_split_list)
    ] = Field(("127.0.0.1", "::1"), description="addresses and CIDRs whose X-Forwarded-Proto and X-Forwarded-For count")
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_check_origin)], ...], NoDecode, BeforeValidator(_split_list)
    ] = Field((), description="origins whose web pages may use the API, https://app.example; by default none")
    auth: Literal["keys", "open"] = Field("keys", description="open: no key needed; only allowed on loopback")
    max_body_bytes: int = 32 * 2**20
    max_jobs_per_request: int = 1000
    max_wait: float = Field(60.0, description="upper bound of Prefer: wait=N")
    result_url_ttl: float = Field(3600.0, gt=0, le=7 * 86_400, description="lifetime of signed URLs of results")
    default_quota: int = Field(10_000, ge=1, le=MOST_QUOTA, description="unfinished jobs that a key may have at once")
    default_stored_bytes: ByteSize = Field(
        ByteSize(100 * 2**30), ge=1, description="bytes that a key without a bound of its own may keep stored"
    )
    default_datasets: int = Field(
        100, ge=1, le=MOST_QUOTA, description="unfinished data sets that a key without a bound of its own may have"
    )
    default_batches: int = Field(
        100, ge=1, le=MOST_QUOTA, description="unfinished batches that a key without a bound of its own may have"
    )

    # Images that come in
    max_image_bytes: int = 20 * 2**20
    max_image_pixels: int = 50_000_000
    max_image_frames: int = 100
    max_image_metadata: int = Field(2**20, description="bytes of texts, EXIF and XMP that an image may carry")
    model_image_side: int = Field(1024, description="larger images are reduced to this before a model sees them")
    fetch_timeout: float = Field(20.0, description="time limit for one image URL, redirects included")
    fetch_allow_networks: Annotated[
        tuple[Annotated[str, AfterValidator(_check_network)], ...], NoDecode, BeforeValidator(_split_list)
    ] = Field((), description="CIDRs that image URLs and webhooks may reach although they are not public")

    # Models: `builtin`, `import:module:Class`, or a checkpoint such as `diffusers:REPO@COMMIT`; see
    # shared/model_specs.py
    generate: Models = "builtin"
    describe: Models = "builtin"
    recognize: Models = "builtin"
    match: Models = "builtin"
    unpinned: bool = Field(False, description="allow checkpoints from the hub without a commit, for development")
    safety: str | None = Field(None, description="import:module:function that judges prompts and pictures")

    # Worker
    device: str = "cpu"
    kinds: Annotated[tuple[Kind, ...], NoDecode, BeforeValidator(_split_list)] = Field(tuple(Kind), min_length=1)
    engines: int | None = Field(
        None,
        ge=1,
        description="engine processes of a worker on the CPU; by default one per core for the built-in models",
    )
    concurrency: int = Field(64, ge=1, description="jobs that a worker runs at once, per engine process")
    memory_budget: ByteSize | None = Field(
        None, description="memory for all models of a worker, such as 20GiB; by default that of the GPU"
    )
    engine_start_timeout: float = Field(
        600.0, description="an engine that makes no progress for this long while it starts is stopped"
    )
    batch_timeout: float = Field(300.0, description="an engine that is silent this long is killed")
    shutdown_grace: float = Field(30.0, description="time the running batch gets at SIGTERM")

    # Data sets
    dataset_roots: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list)] = Field(
        (),
        description="folders and s3:// prefixes that bound the data sets of all keys, which have roots of their own; "
        "without it an open installation allows every folder",
    )
    shards_at_once: int = Field(2, ge=1, description="shards that one worker runs at the same time")
    decode_threads: int = Field(2, ge=1, description="threads that read and decode the images of shards")

    # Delivery
    lease: float = Field(15.0, description="a running job whose worker is silent this long is taken back")
    heartbeat: float = 5.0
    housekeeping_interval: float = 5.0
    redispatch_after: float = Field(60.0, description="a queued job is published again when not claimed by then")
    max_attempts: int = 5
    retry_backoff: float = Field(5.0, description="first wait before another attempt; doubles, up to 300")
    max_crashes: int = 3
    job_deadline: float = Field(86_400.0, description="time from submission after which a job expires")
    webhook_secret: Annotated[SecretStr, AfterValidator(_check_secret)] | None = Field(
        None,
        description="Standard Webhooks secret, whsec_…, or `new,old` while receivers change; signs for all who have no "
        "API key with a secret of its own",
    )
    orphan_age: float = Field(86_400.0, description="stored objects that no row names are collected after this")

    # Flower
    flower_host: str = Field(
        "127.0.0.1", description="address of Flower; beyond loopback, `flower_password` must be set"
    )
    flower_port: Port = 5555
    flower_user: str = "tuwen"
    flower_password: SecretStr | None = None

    def __init__(self, **given: Any):
        """Read the fields that are not given from the environment.

        Raises:
            ConfigurationError: a value is invalid; the message names every variable that is.
        """
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise ConfigurationError("; ".join(_blame(wrong) for wrong in error.errors())) from error

    def model_for(self, kind: Kind) -> str:
        """Name of the model for jobs of `kind` that name no model."""
        return self.models_for(kind)[0].name

    def models_for(self, kind: Kind) -> tuple[ModelSpec, ...]:
        """Return every model of the kind, the default first."""
        return parse_models(getattr(self, kind.value))


def _blame(wrong: ErrorDetails) -> str:
    field, *_ = wrong["loc"]
    return f"TUWEN_{str(field).upper()}: {wrong['msg'].removeprefix('Value error, ')}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`, a name or an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@cache
def settings() -> Settings:
    """The process's settings. Tests build their own `Settings(...)` and pass them on."""
    return Settings()
