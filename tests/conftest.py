"""Real servers for the tests: Valkey and PostgreSQL from the wheels, started once; each test has a database of its own.

With pytest-xdist each of its processes starts its own pair. A test may kill a server (`valkey.kill()`) and start it
again (`valkey.start()`): it comes back on the same port with its data, and the next test finds it running anyway.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import httpx
import pytest
import redis

from api.embedded.servers import Server
from shared.database import Database
from shared.migrations import migrate
from shared.settings import Settings
from tests.support import programs
from tests.support.api_server import FakeWorker, serving
from tests.support.plain_sql import Sql, plain_sql
from tests.support.servers import DATABASES, Postgres, Valkey
from tests.support.system import System
from tests.support.waiting import PATIENT

# What a developer has set for his own installation, proxies or cloud does not reach the tests, nor what they start.
for _name in [*os.environ]:
    if _name.startswith(("AWS_", "FLOWER_", "OTEL_", "PG", "TUWEN_")) or _name.lower().endswith("_proxy"):
        del os.environ[_name]

# Both are read once, by libraries that a test or a process that it starts imports later.
os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs a hub
# OpenMP's threads otherwise wait for each other by spinning. On a busy machine one that has lost its core then holds up
# all the others, and tiny models become many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

MISSING = "missing program"
"""Property of the report of a skipped test: the packages that it needs."""

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"needs(package): it needs one of the programs {', '.join(programs.EXECUTABLES)}"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a program which is not installed; on continuous integration it fails."""
    missing = [mark.args[0] for mark in item.iter_markers("needs") if not programs.find(mark.args[0])]
    if missing:
        reason = f"needs {' and '.join(missing)}: {programs.install(missing)}"
        if programs.on_ci():
            pytest.fail(f"{reason} (CI leaves no test out)", pytrace=False)
        item.user_properties.append((MISSING, missing))
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say at the very end how many tests were skipped for want of a program, and the command that ends it."""
    yield
    # With pytest-xdist the tests ran in other processes: only what their reports carry is known here.
    reports = [dict(report.user_properties) for report in terminalreporter.stats.get("skipped", [])]
    missing = [report[MISSING] for report in reports if MISSING in report]
    if missing:
        packages = {package for some in missing for package in some}
        terminalreporter.section("left out", yellow=True)
        terminalreporter.line(
            f"{len(missing)} tests need programs that are not installed here. To run them: {programs.install(packages)}"
        )


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: Postgres) -> str:
    """Name of a migrated database, to be cloned."""
    migrate(postgres.url)
    return "tuwen"


@pytest.fixture
def database_url(postgres: Postgres, template: str) -> Iterator[str]:
    """An empty migrated database of the test's own."""
    _revive(postgres)
    name = f"test_{next(_numbers)}"
    yield postgres.create_database(name, template=template)
    _revive(postgres)
    postgres.drop_database(name)


@pytest.fixture
def redis_url(valkey: Valkey) -> Iterator[str]:
    """An empty numbered database of the test's own."""
    _revive(valkey)
    yield from _numbered_database(valkey)


@pytest.fixture(scope="session", params=["valkey", pytest.param("redis", marks=pytest.mark.needs("redis-server"))])
def redis_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """The transport under both servers we promise to work on; for tests of the transport itself."""
    if request.param == "valkey":
        yield request.getfixturevalue("valkey")
        return
    executable = Path(programs.path("redis-server"))
    with Valkey(tmp_path_factory.mktemp("redis"), executable=executable) as server:
        yield server


@pytest.fixture
def broker_url(redis_server: Valkey) -> Iterator[str]:
    """An empty numbered database of the test's own, once on each server."""
    _revive(redis_server)
    yield from _numbered_database(redis_server)


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    """An open installation on servers and folders of the test's own."""
    return _open_installation(database_url, redis_url, tmp_path)


@pytest.fixture(scope="module")
def module_settings(
    request: pytest.FixtureRequest,
    postgres: Postgres,
    valkey: Valkey,
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Settings:
    """An open installation for all tests of a module: each worker loads models, which takes seconds."""
    folder = tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])
    database_url = postgres.create_database(folder.name, template=template)
    return _open_installation(database_url, valkey.url, folder)


@pytest.fixture(scope="module")
def url(system: System) -> Iterator[str]:
    """The base URL of an open API beside the `system` that a module defines."""
    with serving(system.settings) as url:
        yield url


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint, by the name of its builder in `tests.support.checkpoints`; not to be changed."""
    from tests.support import checkpoints

    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda name: getattr(checkpoints, name)(root / name))


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """The database as the API and workers use it."""
    database = Database(settings)
    yield database
    database.close()


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    """An HTTP client of an open API."""
    with serving(settings) as url, httpx.Client(base_url=url, timeout=PATIENT) as client:
        yield client


@pytest.fixture
def hand(settings: Settings) -> Iterator[FakeWorker]:
    """The worker's side of jobs, told step by step."""
    worker = FakeWorker(settings)
    yield worker
    worker.close()


@pytest.fixture
def sql(settings: Settings) -> Iterator[Sql]:
    """Plain SQL, to turn clocks and to look behind the curtain."""
    with plain_sql(settings) as run:
        yield run


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Run torch with one thread: on a busy machine a second makes such small models slower, not faster."""
    import torch  # here, so that the other unit tests do without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _open_installation(database_url: str, redis_url: str, folder: Path) -> Settings:
    return Settings(
        database_url=database_url,
        redis_url=redis_url,
        storage_url=f"file://{folder / 'objects'}",
        data_dir=folder,
        auth="open",
    )


def _revive(server: Server) -> None:
    if not server.running:
        server.start()


def _numbered_database(server: Valkey) -> Iterator[str]:
    number = 1 + next(_numbers) % (DATABASES - 1)
    url = f"{server.url.removesuffix('/0')}/{number}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    yield url
