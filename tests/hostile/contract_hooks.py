"""Hooks for Schemathesis: a request that is valid by the document is also made possible here.

No schema can say that a file has been uploaded, that a host is public, that a name is one of an encoding, or that bytes
are an image. Requests that are meant to be invalid stay as they are.
"""

from __future__ import annotations

import itertools
from base64 import b64encode
from typing import Any

import schemathesis
from schemathesis.core import NotSet
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.transport import Response
from schemathesis.transport.serialization import Binary

from tests.hostile.materials import BATCH, Materials
from tests.support.api_server import png

_materials = Materials.from_environment()
_numbers = itertools.count(1)
_made_possible: set[str] = set()
_IMAGE = png()


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case, __: dict[str, Any]) -> None:
    """Change the request before it is sent."""
    if case.meta is None or case.meta.generation.mode.is_negative:
        return
    make_possible = _BODIES.get(case.operation.definition.raw["operationId"])
    if make_possible is not None and not isinstance(case.body, NotSet):
        case.body = make_possible(case.body)
        _made_possible.add(case.id)
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = f"key {next(_numbers)}"  # the same key with another body is refused
    if case.query:
        case.query.pop("cursor", None)  # a cursor belongs to one list


@schemathesis.hook
def filter_failure(_: schemathesis.HookContext, failure: Failure, case: schemathesis.Case, __: Response) -> bool:
    """Whether it is a finding: Schemathesis holds a body for invalid once bytes were put into it."""
    return not (case.id in _made_possible and isinstance(failure, AcceptedNegativeData))


def _job(body: dict[str, Any]) -> dict[str, Any]:
    wanted = {**body["input"]}
    if "image" in wanted:
        wanted["image"] = {name: _IMAGES[name] for name, value in wanted["image"].items() if value is not None}
    return {**body, "input": wanted, "model": None, "webhook": None}


def _jobs(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "jobs": [_job(each) for each in body["jobs"]]}


def _images(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "model": None}


def _chat(body: dict[str, Any]) -> dict[str, Any]:
    question = {"role": "user", "content": [{"type": "file", "file": {"file_id": _materials.file_id}}]}
    return {**body, "model": None, "messages": [*body["messages"], question]}


def _batch(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "input_file_id": _materials.batch_file_id}


def _dataset(body: dict[str, Any]) -> dict[str, Any]:
    possible = {"source": _materials.source, "source_root": None, "destination": _destination(), "encoding": "gb18030"}
    return {**body, **possible}


def _export(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "destination": _destination()}


def _destination() -> str:
    return f"{_materials.destinations}/{next(_numbers)}"


def _upload(body: Any) -> Any:
    if isinstance(body, dict):
        return {**body, "file": Binary(BATCH if body.get("purpose") == "batch" else _IMAGE)}
    return Binary(_IMAGE)


_IMAGES = {
    "file_id": _materials.file_id,
    "url": _materials.image_url,
    "base64": b64encode(_IMAGE).decode(),
}
_BODIES = {
    "complete_chat": _chat,
    "create_batch": _batch,
    "export_dataset": _export,
    "generate_images": _images,
    "submit_dataset": _dataset,
    "submit_job": _job,
    "submit_jobs": _jobs,
    "upload_file": _upload,
}
