"""Images by digest: asked of a real registry, with a token as Docker Hub wants one."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.embedded.processes import choose_port
from release.images import FILES, HUB, Pin, Unknown, digest_of, main, pins
from tests.support import programs
from tests.support.waiting import PATIENT, eventually

ROOT = Path(__file__).parents[2]
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Server:
    """An HTTP server in a thread, which gives one answer to every GET, and keeps what was asked."""

    def __init__(self, answer: bytes, **headers: str):
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                self.send_response(200)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None: ...

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Registry:
    """Debian's docker-registry, which answers nobody without a token that another server hands out."""

    def __init__(self, folder: Path):
        self.tokens = Server(b'{"token": "anonymous"}')
        self.host = f"127.0.0.1:{choose_port(0, '--port')}"
        configuration = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
            "http": {"addr": self.host},
            "auth": {"silly": {"realm": f"http://{self.tokens.host}/token", "service": "registry"}},
        }
        (folder / "registry.yml").write_text(json.dumps(configuration))  # JSON is YAML
        self._process = subprocess.Popen([programs.path("docker-registry"), "serve", str(folder / "registry.yml")])
        self._http = httpx.Client(base_url=f"http://{self.host}/v2/", headers={"Authorization": "Bearer push"})
        eventually(self._answers)

    def _answers(self) -> bool:
        try:
            return self._http.get("").is_success
        except httpx.TransportError:
            return False

    def push(self, name: str, tag: str, content: bytes) -> str:
        """Push an image without layers; its digest."""
        blob = f"sha256:{sha256(content).hexdigest()}"
        place = httpx.URL(self._http.post(f"{name}/blobs/uploads/").headers["location"])
        self._http.put(place.copy_add_param("digest", blob), content=content).raise_for_status()
        config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob, "size": len(content)}
        manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}).encode()
        place = f"{name}/manifests/{tag}"
        self._http.put(place, content=manifest, headers={"Content-Type": MANIFEST}).raise_for_status()
        return f"sha256:{sha256(manifest).hexdigest()}"

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENT)
        self._http.close()
        self.tokens.close()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    yield registry
    registry.close()


@pytest.mark.needs("docker-registry")
def test_tags_are_pinned_and_pinned_again_when_they_move(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("release.images.HUB", registry.host)  # python is an official image of Docker Hub
    python = registry.push("library/python", "3.13-slim", b"{}")
    first = registry.push("team/redis", "8.1", b"{}")
    compose, dockerfile = (tmp_path / name for name in FILES)
    compose.write_text(
        f"x:\n  a:\n    image: tuwen-worker:cpu\n  b:\n    image: {registry.host}/team/redis:8.1\n    user: redis\n"
    )
    dockerfile.write_text("ARG PYTHON=3.13-slim\nFROM python:${PYTHON} AS dependencies\n")
    assert main([], root=tmp_path, scheme="http") == 0
    assert f"    image: {registry.host}/team/redis:8.1@{first}\n    user: redis\n" in compose.read_text()
    assert "    image: tuwen-worker:cpu\n" in compose.read_text()
    assert dockerfile.read_text() == f"ARG PYTHON=3.13-slim@{python}\nFROM python:${{PYTHON}} AS dependencies\n"
    assert "scope=repository%3Ateam%2Fredis%3Apull" in registry.tokens.asked[0]
    assert main(["--check"], root=tmp_path, scheme="http") == 0
    before = compose.read_text()
    second = registry.push("team/redis", "8.1", b'{"os": "linux"}')
    assert main(["--check"], root=tmp_path, scheme="http") == 1
    assert compose.read_text() == before
    assert main([], root=tmp_path, scheme="http") == 0
    assert compose.read_text() == before.replace(first, second)
    assert f"has become {second}" in capsys.readouterr().out
    compose.write_text(before.replace(":8.1@", ":9.9@"))
    assert main([], root=tmp_path, scheme="http") == 2
    assert "redis:9.9" in capsys.readouterr().err
    assert ":9.9@" in compose.read_text()


def test_a_registry_is_not_taken_at_its_word() -> None:
    server = Server(b"{}", Docker_Content_Digest="sha256:" + "0" * 64)
    try:
        with httpx.Client() as client, pytest.raises(Unknown, match="and sends"):
            digest_of(client, Pin(f"{server.host}/x", "1", None), scheme="http")
    finally:
        server.close()


def test_a_registry_that_does_not_answer_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in FILES:
        (tmp_path / name).write_text("    image: 127.0.0.1:9/x:1\n")
    assert main([], root=tmp_path, scheme="http") == 2
    assert "Nothing was changed" in capsys.readouterr().err
    assert (tmp_path / FILES[0]).read_text() == "    image: 127.0.0.1:9/x:1\n"


@pytest.mark.parametrize(
    ("name", "registry", "repository"),
    [
        ("redis", HUB, "library/redis"),
        ("chrislusf/seaweedfs", HUB, "chrislusf/seaweedfs"),
        ("ghcr.io/a/b", "ghcr.io", "a/b"),
        ("localhost/a", "localhost", "a"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000", "a"),
    ],
)
def test_registries_are_found_as_docker_finds_them(name: str, registry: str, repository: str) -> None:
    assert (Pin(name, "1", None).registry, Pin(name, "1", None).repository) == (registry, repository)


def test_every_image_of_others_has_a_digest() -> None:
    found = [image for name in FILES for image in pins((ROOT / name).read_text())]
    assert {image.name for image in found} == {"redis", "postgres", "chrislusf/seaweedfs", "python"}
    assert all(image.digest for image in found)
    # None is overlooked by the pattern.
    named = re.findall(r"^\s*image: (?!tuwen)(\S+)$", (ROOT / FILES[0]).read_text(), re.MULTILINE)
    assert len(named) == len(found) - 1
