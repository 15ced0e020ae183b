"""What `pip install` makes of this repository: two distributions, extras, the command; and how it runs beside others.

The wheels are built and installed into a folder. Where it matters that nothing else is installed, Python runs without
its site-packages (-S) and sees only the packages that pip would have brought.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from uuid import UUID
from zipfile import ZipFile

import httpx
import pytest
from packaging.requirements import Requirement
from PIL import Image

from api.embedded.addresses import Addresses, as_environment
from shared.database import Database
from shared.settings import Settings
from tests.support.api_server import FakeWorker, png, serving
from tests.support.compose import ROOT
from tests.support.waiting import eventually
from tuwen.version import __version__

ENGINE = '''
import numpy as np

from tuwen.engine import GenerateItem, Picture
from tuwen.jobs import Kind


class Red:
    """An engine of somebody's own, in a folder of his."""

    kind = Kind.GENERATE
    revision = "red"

    def __init__(self, device):
        pass

    def example(self):
        return GenerateItem("red", seed=0)

    def batch_limit(self, item):
        return 1

    def run(self, items, run):
        red = np.zeros((8, 8, 3), np.uint8)
        red[..., 0] = 255
        return [Picture(red) for _ in items]
'''


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels of this repository, by the distribution's name."""
    folder = tmp_path_factory.mktemp("wheels")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir"]
    subprocess.run([*build, folder, ROOT, ROOT / "workers" / "lab"], check=True)
    return {path.name.partition("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution tuwen, without tuwen-lab; the command is bin/tuwen."""
    folder = tmp_path_factory.mktemp("installed with space")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target"]
    subprocess.run([*pip, folder, wheels["tuwen"]], check=True)
    return folder


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of all packages that an extra brings, or, for "", that tuwen itself does."""

    def link(extra: str) -> Path:
        folder = tmp_path_factory.mktemp(f"brought-{extra or 'plain'}")
        for distribution in closure([f"tuwen[{extra}]" if extra else "tuwen"]).values():
            for file in distribution.files or ():
                top, target = file.parts[0], folder / file.parts[0]
                if top not in ("..", "__pycache__") and not target.is_symlink():
                    target.symlink_to(Path(str(distribution.locate_file(top))))
        return folder

    return link


def closure(requirements: Iterable[str]) -> dict[str, metadata.Distribution]:
    """All distributions that these requirements bring, ours left out."""
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            if requirement.name in ("tuwen", "tuwen-lab"):
                lines = declared(requirement.name, extra)
            else:
                found[requirement.name] = metadata.distribution(requirement.name)
                lines = found[requirement.name].requires or []
            each = [Requirement(line) for line in lines]
            waiting += [one for one in each if one.marker is None or one.marker.evaluate({"extra": extra})]
    return found


def declared(name: str, extra: str) -> list[str]:
    """What one of our distributions requires; the installed metadata may be older than the checkout."""
    file = ROOT / {"tuwen": "pyproject.toml", "tuwen-lab": "workers/lab/pyproject.toml"}[name]
    project = tomllib.loads(file.read_text())["project"]
    lines: list[str] = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return lines


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project, with folders of his own that have the names of ours."""
    folder = tmp_path / "project"
    for name in ("api", "shared", "workers"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"MINE = {name!r}\n")
    return folder


def python(
    *arguments: str | Path, cwd: Path, path: Iterable[Path], site: bool = False
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, *([] if site else ["-S"]), *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )


# ── the distributions ─────────────────────────────────────────────────────────────────────────────────


def contents(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_laboratory_is_a_distribution_of_its_own(wheels: dict[str, Path]) -> None:
    lab = (path for path in (ROOT / "workers" / "lab").rglob("*") if path.is_file() and path.suffix != ".pyc")
    files = {path.relative_to(ROOT).as_posix() for path in lab}
    about = {f"workers/lab/{name}" for name in ("LICENSE", "README.md", "pyproject.toml")}
    assert about < files
    assert contents(wheels["tuwen-lab"]) == files - about
    ours = contents(wheels["tuwen"])
    assert {name.partition("/")[0] for name in ours} == {"api", "shared", "tuwen", "workers"}
    assert not [name for name in ours if name.startswith("workers/lab")]
    assert {"tuwen/py.typed", "api/web/review.js", "workers/weights/describer.safetensors"} <= ours


def test_both_have_the_licence_and_one_version(wheels: dict[str, Path]) -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert (ROOT / "workers/lab/LICENSE").read_text() == licence
    for name, wheel in wheels.items():
        inner = f"{name.replace('-', '_')}-{__version__}.dist-info"
        with ZipFile(wheel) as archive:
            assert archive.read(f"{inner}/licenses/LICENSE").decode() == licence
            about = archive.read(f"{inner}/METADATA").decode()
        assert "\nLicense-Expression: Apache-2.0\n" in about
        assert f"\nVersion: {__version__}\n" in about
    assert declared("tuwen-lab", "") == [f"tuwen[worker]=={__version__}"]


def test_every_extra_names_the_others_that_it_needs() -> None:
    """All but the laboratory's go through `server`, which has what each process of ours needs."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in extras.keys() - {"server"}:
        assert "celery" in closure([f"tuwen[{extra}]"]), extra
    assert closure(["tuwen"]).keys() < closure(["tuwen[server]"]).keys()


@pytest.mark.parametrize(
    ("extra", "modules"),
    [
        ("", ["tuwen.client", "tuwen.dataset_client", "tuwen.engine", "tuwen.datasets", "tuwen.command"]),
        ("server", ["api.__main__", "api.cli.main", "api.cli.doctor", "shared.migrations", "workers.housekeeper.app"]),
        ("worker", ["workers.app", "workers.engines.builtin", "workers.inference.host"]),
        ("flower", ["workers.flower.app"]),
        ("embedded", ["api.embedded.stack", "api.cli.demo"]),
        ("datasets", ["ijson", "pyarrow.parquet", "workers.datasets.exports.parquet"]),
        ("tracing", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"]),
    ],
)
def test_an_extra_brings_what_its_part_imports(
    installed: Path, brought: Callable[[str], Path], tmp_path: Path, extra: str, modules: list[str]
) -> None:
    done = python("-c", f"import {', '.join(modules)}", cwd=tmp_path, path=[installed, brought(extra)])
    assert done.returncode == 0, done.stderr


# ── the command ───────────────────────────────────────────────────────────────────────────────────────


def test_without_the_extra_the_command_says_what_to_install(
    installed: Path, brought: Callable[[str], Path], tmp_path: Path
) -> None:
    plain, server = brought(""), brought("server")
    done = python(installed / "bin" / "tuwen", "--version", cwd=tmp_path, path=[installed, plain])
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*pip install 'tuwen\[server\]'\n", done.stderr), done.stderr
    assert (
        python(installed / "bin" / "tuwen", "--version", cwd=tmp_path, path=[installed, server]).stdout
        == f"tuwen {__version__}\n"
    )
    for command, extra in (("train", "training"), ("evaluate", "evaluation")):
        done = python(installed / "bin" / "tuwen", command, cwd=tmp_path, path=[installed, server])
        assert done.returncode == 1
        sentence = " ".join(done.stderr.split())
        assert sentence == (f"error: workers.lab.{extra} is not installed here: pip install 'tuwen[{extra}]'"), (
            done.stderr
        )


def test_with_its_distribution_the_laboratory_is_found(wheels: dict[str, Path], tmp_path: Path, project: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target"]
    subprocess.run([*pip, tmp_path / "both", *wheels.values()], check=True)
    done = python(tmp_path / "both/bin/tuwen", "train", "--help", cwd=project, path=[tmp_path / "both"], site=True)
    assert done.returncode == 0, done.stderr
    assert "--schedule" in done.stdout
    # torchrun starts processes of its own, which have to find ours, too.
    shared_out = ("train", "recognizer", "--processes", "2", "--device", "cpu", "--data", "nowhere")
    done = python(tmp_path / "both/bin/tuwen", *shared_out, cwd=project, path=[tmp_path / "both"], site=True)
    assert f"{project / 'nowhere'} cannot be read" in done.stderr + done.stdout


@pytest.mark.parametrize("name", ["api", "shared"])
def test_a_folder_that_hides_ours_is_named(
    installed: Path, brought: Callable[[str], Path], project: Path, name: str
) -> None:
    for other in {"api", "shared", "workers"} - {name}:
        (project / other / "__init__.py").unlink()
        (project / other).rmdir()
    path = [project, installed, brought("server")]
    done = python(installed / "bin" / "tuwen", "--version", cwd=project, path=path)
    assert done.returncode == 1
    said = f"{project / name} hides Tuwen's own package {name!r} in {installed}: take {project} out of PYTHONPATH"
    assert done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1, "one sentence and no traceback"


def test_an_installation_whose_files_are_links_hides_nothing(tmp_path: Path, brought: Callable[[str], Path]) -> None:
    for package in ("api", "shared", "tuwen"):
        (tmp_path / package).mkdir()
        for number, file in enumerate((ROOT / package).glob("*.py")):
            cached = tmp_path / f"{package}-{number}" / package / file.name
            cached.parent.mkdir(parents=True)
            cached.write_bytes(file.read_bytes())
            (tmp_path / package / file.name).symlink_to(cached)
    done = python("-c", "import api, shared", cwd=tmp_path, path=[tmp_path, brought("")])
    assert done.returncode == 0, done.stderr


def test_a_module_that_is_started_beside_a_folder_that_hides_ours_says_so(
    installed: Path, brought: Callable[[str], Path], project: Path
) -> None:
    (project / "api" / "__init__.py").rename(project / "api.py.txt")
    (project / "workers" / "__init__.py").rename(project / "workers.py.txt")
    for module in ("api", "workers", "api.cli"):
        done = python("-m", module, "housekeeper", cwd=project, path=[installed, brought("server")])
        assert done.returncode == 1
        assert f"{project / 'shared'} hides Tuwen's own package 'shared' in {installed}" in done.stderr.splitlines()[-1]


def test_only_commands_that_need_a_hidden_package_refuse(
    installed: Path, brought: Callable[[str], Path], project: Path
) -> None:
    (project / "api" / "__init__.py").unlink()
    (project / "shared" / "__init__.py").unlink()
    path = [project, installed, brought("server")]
    assert python(installed / "bin" / "tuwen", "--version", cwd=project, path=path).returncode == 0
    for command in ("worker", "housekeeper", "train", "evaluate"):
        done = python(installed / "bin" / "tuwen", command, cwd=project, path=path)
        assert done.returncode == 1
        assert "hides Tuwen's own package 'workers'" in " ".join(done.stderr.split()), done.stderr
        assert "Traceback" not in done.stderr


# ── in a user's own project ───────────────────────────────────────────────────────────────────────────


def test_readmes_client_lines_run_in_a_project_with_such_folders(
    installed: Path, brought: Callable[[str], Path], project: Path, settings: Settings, hand: FakeWorker
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    programs = [block for block in blocks if "tuwen import" in block]
    assert len(programs) == 2, "one for each client"
    with serving(settings) as url, doing_jobs(url, hand):
        for program in programs:
            assert "http://127.0.0.1:8000" in program
            mine = "import api, shared, workers, tuwen.engine\nassert workers.MINE and shared.MINE and api.MINE\n"
            (project / "main.py").write_text(mine + program.replace("http://127.0.0.1:8000", url))
            done = python("main.py", cwd=project, path=[installed, brought("")])
            assert done.returncode == 0, done.stderr
    assert (project / "cat.png").read_bytes() == png()
    assert "succeeded" in done.stdout


@contextmanager
def doing_jobs(url: str, hand: FakeWorker) -> Iterator[None]:
    """Do jobs as a worker would: every job that is queued meanwhile succeeds."""
    over = threading.Event()

    def work() -> None:
        with httpx.Client(base_url=url) as api:
            while not over.wait(0.05):
                for job in api.get("/v1/jobs", params={"status": "queued"}).json()["jobs"]:
                    hand.claim(UUID(job["id"]))
                    hand.succeed(UUID(job["id"]), png())

    working = threading.Thread(target=work)
    working.start()
    try:
        yield
    finally:
        over.set()
        working.join()


@pytest.mark.timeout(360)
def test_the_whole_system_runs_in_such_a_project_with_an_engine_of_its_own(
    installed: Path, project: Path, tmp_path: Path
) -> None:
    (project / "engines").mkdir()
    (project / "engines" / "mine.py").write_text(ENGINE)
    environment = os.environ | {
        "PYTHONPATH": f"{installed}{os.pathsep}{project / 'engines'}",
        "TUWEN_GENERATE": "import:mine:Red",
    }
    tuwen = [sys.executable, f"{installed}/bin/tuwen", "--data", f"{tmp_path}/data"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        up = subprocess.Popen(
            [*tuwen, "up", "--port", "0", "--no-flower"], cwd=project, env=environment, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 150
        while not Addresses.read(tmp_path / "data"):
            assert up.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        ask = [*tuwen, "generate", "a black cat", "-o", "red.png"]
        done = subprocess.run(ask, cwd=project, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert Image.open(project / "red.png").convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(60)


def test_an_engine_in_the_current_folder_is_found(
    installed: Path, tmp_path: Path, settings: Settings, database: Database
) -> None:
    """The worker is started as a module, as in the containers."""
    (tmp_path / "mine.py").write_text(ENGINE)
    environment = (
        os.environ
        | as_environment(settings)
        | {
            "PYTHONPATH": str(installed),
            "TUWEN_GENERATE": "import:mine:Red",
        }
    )
    command = [sys.executable, "-m", "workers", "worker", "--kinds", "generate"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as worker:
        try:
            eventually(lambda: bool(database.workers.alive()) or worker.poll() is not None)
            assert [next(iter(each.models)) for each in database.workers.alive()] == ["generate"]
        finally:
            worker.terminate()
