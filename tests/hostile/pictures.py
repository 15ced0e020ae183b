"""Images that explode, end too early, or were damaged: uploaded, and what is taken is given to the models."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator

from tests.hostile.target import Tally, Target
from tests.shared.intake.test_images import (
    CORRUPT,
    FORMATS,
    SPECIMENS,
    TOO_LARGE,
    TOO_MANY,
    UNSUPPORTED,
    corners,
    saved,
)

_JOBS = 60
"""Images that were taken are given to the models, at most so many."""


def upload(target: Target, tally: Tally) -> None:
    """Bombs, truncated and damaged files of every format, and jobs with those that are taken."""
    taken: list[str] = []
    with target.client() as client:
        for data in _images(target):
            answer = client.post("/v1/files", content=data)
            tally.count(answer.status_code, data[:60])
            if answer.status_code == 201 and answer.json()["id"] not in taken:
                taken.append(answer.json()["id"])
        for data in [make() for make in (TOO_LARGE | TOO_MANY | UNSUPPORTED | CORRUPT).values()]:
            if len(data) < 2**20:
                image = {"base64": b64encode(data).decode()}
                body = {"input": {"kind": "recognize", "image": image}}
                answer = client.post("/v1/jobs", json=body)
                tally.count(answer.status_code, data[:60])
                if answer.status_code == 202:
                    taken.append(answer.json()["input"]["image"]["file_id"])
        jobs = []
        for file_id in target.dice.sample(taken, min(len(taken), _JOBS)):
            body = {"input": {"kind": "recognize", "image": {"file_id": file_id}}, "max_attempts": 1}
            answer = client.post("/v1/jobs", json=body)
            tally.count(answer.status_code, body)
            jobs.append(answer.json()["id"])
        for job in jobs:
            answer = client.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=30"})
            tally.count(answer.status_code, job)
            ended = answer.json()
            crashed = (ended["error"] or {}).get("code") in ("engine_crashed", "internal_error", "engine_hung")
            if ended["status"] not in ("succeeded", "failed") or crashed:
                tally.find(f"a damaged image that was taken: {ended['status']} {ended['error']}")


def _images(target: Target) -> Iterator[bytes]:
    for make in (TOO_LARGE | TOO_MANY | UNSUPPORTED | CORRUPT).values():
        yield make()
    for kind in FORMATS.values():
        whole = saved(corners(), kind)
        for sixteenth in range(1, 16):
            yield whole[: len(whole) * sixteenth // 16]
        yield whole + target.dice.randbytes(1000)
    for _ in range(1000):
        data = bytearray(target.dice.choice(SPECIMENS))
        for _ in range(target.dice.randint(1, 6)):
            at, length = target.dice.randrange(len(data) or 1), target.dice.randint(0, 8)
            data[at : at + length] = target.dice.choice(
                [target.dice.randbytes(length), b"\xff" * length, bytes(length), b"\x7f\xff\xff\xff"]
            )
        yield bytes(data)
