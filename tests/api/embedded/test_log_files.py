"""Logs of child processes, which are rotated while they write."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from api.embedded.log_files import LogFile
from api.embedded.processes import last_lines, spawn
from tests.support.waiting import PATIENT

WRITE = """
import os, sys
for number in range(int(sys.argv[2])):
    os.write(1 if number % 2 else 2, f"{sys.argv[1]} {number}\\n".encode())
"""


def lines(log: Path) -> list[str]:
    return [line for file in (log.with_name(f"{log.name}.1"), log) for line in file.read_text().splitlines()]


def test_no_line_is_lost_while_two_processes_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, count, limit = tmp_path / "worker.log", 30_000, 100_000
    file = LogFile.at(log)
    monkeypatch.setattr(file, "_limit", limit)
    seen: list[str] = []
    rotations = 0
    replace = Path.replace

    def note(path: Path, target: Path) -> Path:
        nonlocal rotations
        if path == log:
            rotations += 1
            assert path.stat().st_size <= limit + 2**16
            seen.extend(path.read_text().splitlines())
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", note)
    children = [spawn([sys.executable, "-c", WRITE, name, str(count)], log=log) for name in "ab"]
    assert {child.wait(PATIENT) for child in children} == {0}
    file.settle(PATIENT)
    seen += log.read_text().splitlines()
    assert rotations >= 2  # each after 100 to 165 kB of 500
    for name in "ab":
        assert [line for line in seen if line.startswith(name)] == [f"{name} {number}" for number in range(count)]
    assert {path.name for path in tmp_path.iterdir()} == {"worker.log", "worker.log.1"}


def test_a_line_longer_than_a_file_does_not_grow_it(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "x.log", limit=1000)
    for _ in range(100):
        log.write(b"x" * 500)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2500


def test_what_a_full_disk_swallowed_is_said(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "away" / "x.log")
    log.write(b"lost\n")
    (tmp_path / "away").mkdir()
    log.write(b"kept\n")
    assert log.path.read_text() == "5 bytes of this log could not be written\nkept\n"


def test_the_last_words_of_a_dead_process_are_there(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    spawn([sys.executable, "-c", "import sys; sys.exit('the reason')"], log=log).wait(PATIENT)
    assert last_lines(log) == "the reason"
