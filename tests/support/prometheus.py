"""A real Prometheus that scrapes what a test serves."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support import programs
from tests.support.waiting import PATIENT, eventually


class Prometheus:
    """The HTTP API of a Prometheus that runs."""

    def __init__(self, url: str):
        self._http = httpx.Client(base_url=f"{url}/api/v1", timeout=PATIENT)

    def ask(self, path: str, **parameters: str) -> Any:
        """What it answers to a request of its API; one that it refuses fails."""
        answer = self._http.get(path, params=parameters)
        assert answer.is_success, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression, now."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def answers(self) -> bool:
        """Whether it has started."""
        try:
            return self._http.get("status/runtimeinfo").is_success
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._http.close()


@contextmanager
def scraping(url: str, configuration: Path, folder: Path) -> Iterator[Prometheus]:
    """Run a Prometheus with this configuration, but that it scrapes `url` each second, without a key.

    Rules are evaluated each second, too.
    """
    settings = yaml.safe_load(configuration.read_text())
    [scrape] = settings["scrape_configs"]
    scrape |= {"scrape_interval": "1s", "static_configs": [{"targets": [url.removeprefix("http://")]}]}
    del scrape["authorization"]
    settings["rule_files"] = [str(configuration.parent / name) for name in settings["rule_files"]]
    settings["global"] = {"evaluation_interval": "1s"}
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([programs.path("prometheus"), *options], stdout=log, stderr=log)
    prometheus = Prometheus(f"http://{address}")
    try:
        eventually(lambda: prometheus.answers() or process.poll() is not None, "Prometheus did not start")
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        process.wait(PATIENT)
