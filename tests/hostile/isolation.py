"""What belongs to one tenant does not exist for another: every route of the OpenAPI document that takes an id."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.hostile.materials import BATCH
from tests.hostile.target import Tally, Target
from tests.support.api_server import png
from tests.support.waiting import eventually

_BODIES: dict[str, dict[str, Any]] = {
    "export_dataset": {"destination": "DESTINATION"},
    "prioritize_dataset": {"priority": 9},
    "review_item": {"verdict": "accepted"},
}
"""Valid bodies of the operations with an id that take one."""


def trespass(target: Target, tally: Tally) -> None:
    """Ask for everything of one tenant with the key of another, and then with its own."""
    with target.client() as owner, target.client(target.other_key) as stranger:
        owned = _make(target, owner)
        visible = json.dumps(owned)
        for path in ("/v1/jobs", "/v1/files", "/v1/datasets", "/v1/batches"):
            answer = stranger.get(path)
            tally.count(answer.status_code, path)
            if any(id in answer.text for id in owned.values() if len(id) > 8):
                tally.find(f"{path} lists what belongs to another tenant")
        # What ends or removes something comes last, so that the owner's own request is a fair comparison.
        requests = sorted(_requests(target, owned, tally), key=lambda request: _spoils(request[1]))
        for method, operation_id, path, nowhere in requests:
            body = _BODIES.get(operation_id)
            if body and "destination" in body:
                body = {"destination": str(target.folder / "exports" / "trespass")}
            asked = ((stranger, path), (stranger, nowhere), (owner, path))
            theirs, nobodys, mine = (_ask(client, method, each, body) for client, each in asked)
            for answer in (theirs, nobodys, mine):
                tally.count(answer.status_code, f"{method} {path}")
            if theirs.status_code < 400 or _masked(theirs) != _masked(nobodys):
                told = f"{theirs.status_code} {theirs.text[:200]}, and for an id that nobody has {nobodys.text[:200]}"
                tally.find(f"a stranger's {method} {path} was answered {told}")
            if mine.status_code in (404, 422):
                tally.find(f"the owner's own {method} {path} was answered {mine.status_code}: {mine.text[:200]}")
        for name in ("file_id", "document_id"):
            for body in _uses(owned[name]):
                path = (
                    "/v1/batches"
                    if "endpoint" in body
                    else "/v1/chat/completions"
                    if "messages" in body
                    else "/v1/jobs"
                )
                answer = stranger.post(path, json=body)
                tally.count(answer.status_code, body)
                if answer.status_code < 400:
                    tally.find(f"a stranger may use {name} {visible} in {path}")


def _spoils(operation_id: str) -> int:
    return ("cancel" in operation_id) + 2 * ("withdraw" in operation_id) + 3 * ("delete" in operation_id)


def _ask(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
    """A stream is left after its head."""
    with client.stream(method, path, json=body) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return httpx.Response(answer.status_code)
        return httpx.Response(answer.status_code, content=answer.read())


def _make(target: Target, owner: httpx.Client) -> dict[str, str]:
    """One of everything; the id of each, by the name of the parameter of a path."""
    job = (
        owner.post("/v1/jobs", json={"input": {"kind": "generate", "prompt": "a cat"}}).raise_for_status().json()["id"]
    )
    file = owner.post("/v1/files", content=png("red")).raise_for_status().json()["id"]
    form: dict[str, Any] = {"data": {"purpose": "batch"}, "files": {"file": ("batch.jsonl", BATCH)}}
    document = owner.post("/v1/files", **form).raise_for_status().json()["id"]
    batch = {"input_file_id": document, "endpoint": "/v1/images/generations", "completion_window": "24h"}
    batch_id = owner.post("/v1/batches", json=batch).raise_for_status().json()["id"]
    source = Path(target.folder, "isolated")
    source.mkdir(exist_ok=True)
    (source / "red.png").write_bytes(png("red"))
    wanted = {"source": str(source), "destination": str(target.folder / "exports" / "isolated")}
    dataset = owner.post("/v1/datasets", json=wanted).raise_for_status().json()["id"]

    def over() -> bool:
        ended = owner.get(f"/v1/datasets/{dataset}").json()["status"] in ("succeeded", "failed")
        return ended and owner.get(f"/v1/jobs/{job}").json()["status"] == "succeeded"

    eventually(over, "a job and a data set to end")
    said = owner.post(f"/v1/datasets/{dataset}/items/0/reviews", json={"verdict": "accepted"}).raise_for_status().json()
    return {
        "job_id": job,
        "file_id": file,
        "document_id": document,
        "dataset_id": dataset,
        "batch_id": batch_id,
        "image": "0",
        "review_id": said["reviews"][0]["id"],
    }


def _masked(answer: httpx.Response) -> tuple[int, str]:
    """An answer without what differs between two requests."""
    return answer.status_code, re.sub(r"[0-9a-f-]{30,}", "ID", answer.text)


def _requests(target: Target, owned: dict[str, str], tally: Tally) -> Iterator[tuple[str, str, str, str]]:
    """Method and operation of every operation that takes an id, its path, and its path with ids that nobody has. Files
    of batches are asked for beside images."""
    for path, operations in target.document()["paths"].items():
        names = re.findall(r"{(\w+)}", path)
        if not names or names == ["model"]:
            continue
        if unknown := set(names) - owned.keys():
            tally.find(f"{path} takes {unknown}, of which this program makes none")
            continue
        for method, operation in operations.items():
            for ids in (owned, {**owned, "file_id": owned["document_id"]}) if "file_id" in names else (owned,):
                nobodys = {name: re.sub("[0-9a-f]{12}$", "0" * 12, id) for name, id in ids.items()}
                yield method.upper(), operation["operationId"], path.format(**ids), path.format(**nobodys)


def _uses(id: str) -> Iterator[dict[str, Any]]:
    """Requests that name a file."""
    yield {"input": {"kind": "recognize", "image": {"file_id": id}}}
    yield {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": id}}]}]}
    yield {"input_file_id": id, "endpoint": "/v1/images/generations", "completion_window": "24h"}
