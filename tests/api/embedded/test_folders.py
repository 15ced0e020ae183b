"""The data folder is closed to other users, whatever it was before; PostgreSQL, another user, still reaches its own."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from api.embedded.addresses import Addresses
from api.embedded.folders import SUBFOLDERS, close, make_private
from tests.api.embedded.test_stack import tuwen_up
from tests.support.waiting import eventually
from tuwen.client import Client
from tuwen.jobs import GenerateInput, JobRequest

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may enter, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder

    def removed() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    eventually(removed)  # servers that were just killed may still be removing files of their own


def open_folder(data: Path) -> None:
    """A data folder as earlier versions left it."""
    for name in SUBFOLDERS:
        (data / name).mkdir(parents=True)
    for path in (data, *data.iterdir()):
        path.chmod(0o755)


def test_what_exists_is_closed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    open_folder(data)
    make_private(data)
    assert {mode(path) for path in (data, *data.iterdir())} == {0o700}


def test_what_is_missing_is_made_closed(tmp_path: Path) -> None:
    make_private(tmp_path / "new" / "data")
    assert {path.name for path in (tmp_path / "new" / "data").iterdir()} == set(SUBFOLDERS)
    assert {mode(path) for path in (tmp_path / "new" / "data").rglob("*")} == {0o700}


def test_closing_makes_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    close(tmp_path)
    assert mode(tmp_path) == 0o700
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_folder_with_other_things_keeps_its_mode(tmp_path: Path) -> None:
    open_folder(tmp_path)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters").chmod(0o755)
    make_private(tmp_path)
    assert mode(tmp_path) == mode(tmp_path / "letters") == 0o755
    assert {mode(tmp_path / name) for name in SUBFOLDERS} == {0o700}


def test_a_system_closes_its_folder_and_another_user_reads_nothing(public: Path) -> None:
    data = public / "data"
    open_folder(data)
    (data / "objects" / "old upload").write_text("private")
    with tuwen_up(data, "--no-flower") as up, Client(up.addresses.url) as client:
        job = client.submit(JobRequest(input=GenerateInput(prompt="a cat")))
        client.wait(job.id)
        addresses = Addresses.read(data)
        assert addresses
        assert {mode(path) for path in (data, *data.iterdir()) if path.is_dir()} == {0o700}
        with psycopg.connect(addresses.environment["TUWEN_DATABASE_URL"]) as connection:
            connection.execute("CHECKPOINT")  # the server still reaches its files
        files = [path for path in data.rglob("*") if path.is_file()]
    assert any("results" in path.parts for path in files)
    if os.geteuid() == 0:
        script = "import sys\nfor p in sys.argv[1:]:\n  try: open(p).close(); print(p)\n  except PermissionError: pass"
        python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
        kept = [str(path) for path in files if path.exists()]
        other = subprocess.run([*NOBODY, python, "-c", script, *kept], capture_output=True, text=True, check=True)
        # PostgreSQL's cluster belongs to nobody, who stands for another user here: the way to it is closed as well.
        assert other.stdout == ""
