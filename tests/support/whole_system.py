"""API, worker, housekeeper and Flower around servers of a test, and work of every kind for them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from api.embedded.processes import choose_port
from shared.settings import Settings
from tests.support.annotation import mistakes, paint
from tests.support.api_server import png
from tests.support.system import Process, System, running_system
from tests.support.waiting import PATIENT, eventually
from tuwen.jobs import Status

PICTURE = {"base64": base64.b64encode(png()).decode()}
INPUTS: list[dict[str, Any]] = [
    {"kind": "generate", "prompt": "a cat"},
    {"kind": "describe", "image": PICTURE},
    {"kind": "recognize", "image": PICTURE},
    {"kind": "match", "image": PICTURE, "text": "a cat"},
]
"""A job of each kind."""


class WholeSystem:
    """Four processes, and a client of the API and of Flower."""

    def __init__(self, system: System):
        self.system = system
        self.settings = system.settings
        self.api: Process
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{system.settings.port}", timeout=PATIENT)
        self._flower = httpx.Client(base_url=f"http://127.0.0.1:{system.settings.flower_port}", timeout=PATIENT)

    def start(self) -> None:
        """Start all four, and wait until they are ready."""
        self.api = self.system.start(module="api")
        self.flower = self.system.start("flower")
        self.housekeeper = self.system.housekeeper()
        self.worker = self.system.worker()
        for client, path in ((self.client, "/healthz"), (self._flower, "/healthcheck")):
            eventually(lambda client=client, path=path: _answers(client, path), self.system.last_lines)

    def submit(self, *inputs: dict[str, Any], **options: Any) -> list[str]:
        """Submit jobs by HTTP. Returns their ids."""
        answer = self.client.post("/v1/jobs/batch", json={"jobs": [{"input": each, **options} for each in inputs]})
        assert answer.status_code == 202, answer.text
        return [job["id"] for job in answer.json()["jobs"]]

    def wait(self, ids: list[str]) -> list[Status]:
        """Wait until these jobs are over. Returns how each ended."""
        self.system.wait_until(lambda: all(status.terminal for status in self.statuses(ids)), f"{len(ids)} jobs")
        return self.statuses(ids)

    def statuses(self, ids: list[str]) -> list[Status]:
        """Return the states of these jobs as the API tells them."""
        return [Status(self.client.get(f"/v1/jobs/{id}").json()["status"]) for id in ids]

    def do_everything(self, folder: Path) -> None:
        """Run a job of each kind, cancel one, follow one by its events, and annotate a data set; Flower shows all."""
        ids = self.submit(*INPUTS)
        assert set(self.wait(ids)) == {Status.SUCCEEDED}
        [slow] = self.submit({"kind": "generate", "prompt": "sleep 60"})
        eventually(lambda: self.statuses([slow]) == [Status.RUNNING], self.system.last_lines)
        with self.client.stream("GET", f"/v1/jobs/{slow}/events") as events:
            assert self.client.post(f"/v1/jobs/{slow}/cancel").is_success
            assert "cancelled" in "".join(events.iter_text())
        self.annotate(folder)
        for id in [*ids, slow]:
            state = "SUCCESS" if id != slow else "REVOKED"
            eventually(lambda id=id, state=state: self.flower_state(id) == state, self.system.last_lines)

    def annotate(self, folder: Path, count: int = 5) -> None:
        """Annotate a data set of `count` images."""
        source, destination = paint(folder / "pictures", range(count)), folder / "annotated"
        wishes = {"source": str(source), "destination": str(destination)}
        submitted = self.client.post("/v1/datasets", json=wishes)
        assert submitted.status_code == 202, submitted.text
        place = f"/v1/datasets/{submitted.json()['id']}"
        self.system.wait_until(lambda: self.client.get(place).json()["finished_at"], "the end of a data set")
        assert mistakes(destination, range(count)) == []

    def flower_state(self, id: str) -> str | None:
        """The state of a task that Flower shows; None when it has not heard of it."""
        answer = self._flower.get(f"/api/task/info/{id}")
        return str(answer.json()["state"]) if answer.is_success else None

    def flower_page(self, path: str) -> str:
        """A page of Flower's."""
        return self._flower.get(path).text

    def close(self) -> None:
        self.client.close()
        self._flower.close()


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def whole_system(settings: Settings, folder: Path, **changed: Any) -> Iterator[WholeSystem]:
    """All four processes with `settings`, started, with quick timeouts and the settings in `changed`."""
    ports = {"port": choose_port(0, "--port"), "flower_port": choose_port(0, "--flower-port")}
    with running_system(settings, folder, **{**ports, "auth": "open", **changed}) as system:
        whole = WholeSystem(system)
        try:
            whole.start()
            yield whole
        finally:
            whole.close()
