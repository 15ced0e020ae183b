"""`Link` on every list that has a cursor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.waiting import PATIENT


@pytest.fixture(scope="module")
def api(module_settings: Settings) -> Iterator[httpx.Client]:
    with serving(module_settings) as url, httpx.Client(base_url=url, timeout=PATIENT) as client:
        yield client


def make(api: httpx.Client, name: str, number: int) -> str:
    """One more entry of a list; its id."""
    form: Any = {"files": {"file": (f"{number}.jsonl", b"{}\n")}, "data": {"purpose": "batch"}}
    match name:
        case "jobs":
            answer = api.post("/v1/jobs", json={"input": {"kind": "generate", "prompt": str(number)}})
        case "datasets":
            answer = api.post("/v1/datasets", json={"source": "/s", "destination": f"/d{number}"})
        case "files":
            answer = api.post("/v1/files", **form)
        case _:
            file = api.post("/v1/files", **form).json()["id"]
            asked = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            answer = api.post("/v1/batches", json=asked)
    id: str = answer.json()["id"]
    return id


@pytest.mark.parametrize("name", ["jobs", "datasets", "files", "batches"])
def test_following_the_links_lists_everything_once(api: httpx.Client, name: str) -> None:
    made = [make(api, name, number) for number in range(5)]
    seen: list[str] = []
    filters = {"purpose": "batch"} if name == "files" else {"status": "queued"} if name == "jobs" else {}
    answer = api.get(f"/v1/{name}", params={"limit": 2, **filters})
    while True:
        entries = answer.json().get(name) or answer.json()["data"]
        seen += [entry["id"] for entry in entries]
        assert set(answer.links) <= {"next"}, "these lists cannot go back"
        if "next" not in answer.links:
            break
        assert answer.links["next"]["url"].startswith(f"{api.base_url}/v1/{name}?limit=2&")
        answer = api.get(answer.links["next"]["url"])
    assert [id for id in seen if id in made] == made[::-1]
    assert len(seen) == len(set(seen))
    assert "link" not in api.get(f"/v1/{name}", params={"limit": 100}).headers
