"""The locks in requirements/: made of what pyproject.toml says now, complete, and of use against another file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from release import audit, sbom
from release.lock import APART, LOCKS, OWN, fingerprint, path, recorded_fingerprint, wanted
from tests.support.waiting import PATIENT

ROOT = Path(__file__).parents[2]
each_lock = pytest.mark.parametrize("lock", LOCKS)


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))


@each_lock
def test_it_was_made_of_what_is_wanted_now(lock: str) -> None:
    assert recorded_fingerprint(lock) == fingerprint(lock), "run: make lock"


@each_lock
def test_every_version_is_that_of_the_constraints_and_has_hashes(lock: str) -> None:
    text = path(lock).read_text()
    constraints = pins((ROOT / "constraints.txt").read_text())
    # What only other platforms need was never installed where constraints.txt was made.
    elsewhere = {*re.findall(r"^([\w.-]+)==\S+ ; ", text, re.MULTILINE)} - constraints.keys()
    assert {name: number for name, number in pins(text).items() if name not in elsewhere}.items() <= constraints.items()
    assert all(sbom.locked_hashes(text).values())
    assert len(sbom.locked_hashes(text)) == len(pins(text))


@each_lock
def test_it_has_everything_that_is_needed_in_the_end(lock: str) -> None:
    """Followed through what is installed here; only torch and what it alone needs are missing."""
    locked, missing = pins(path(lock).read_text()), set()
    waiting = [Requirement(line) for line in wanted(LOCKS[lock])]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = normalised(requirement.name)
        if name in (*OWN, APART):
            continue
        if name not in locked:
            missing.add(name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                lines = requires(name) or []
            except PackageNotFoundError:
                continue  # of the extras that are not installed here
            needed = [Requirement(line) for line in lines]
            waiting += [each for each in needed if not each.marker or each.marker.evaluate({"extra": extra})]
    assert missing <= {"setuptools"}


def test_torch_is_the_only_thing_wanted_that_is_apart() -> None:
    for lock in LOCKS:
        assert APART not in pins(path(lock).read_text())
        assert not any(name.startswith(("nvidia-", "triton")) for name in pins(path(lock).read_text()))


def index(folder: Path, content: str) -> tuple[str, str]:
    """Make an index that has one distribution with one module: its URL, and the SHA-256 of the wheel."""
    page = folder / "simple" / "lockedthing"
    page.mkdir(parents=True)
    file = page / "lockedthing-1.0-py3-none-any.whl"
    about = "lockedthing-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("lockedthing.py", content)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: lockedthing\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    digest = sha256(file.read_bytes()).hexdigest()
    (page / "index.html").write_text(f'<a href="{file.name}#sha256={digest}">{file.name}</a>')
    return (folder / "simple").as_uri(), digest


def test_another_file_of_the_same_version_is_not_installed(tmp_path: Path) -> None:
    """As when an extra index, a mirror or a proxy has one of its own under that name."""
    good, digest = index(tmp_path / "good", "evil = False\n")
    evil, _ = index(tmp_path / "evil", "evil = True\n")
    lock = tmp_path / "lock.txt"
    lock.write_text(f"lockedthing==1.0 --hash=sha256:{digest}\n")

    def install(target: str, *indexes: str) -> subprocess.CompletedProcess[str]:
        options = ["--isolated", "--no-deps", "--require-hashes", "--target", str(tmp_path / target)]
        command = [sys.executable, "-m", "pip", "install", *options, *indexes, "-r", str(lock)]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENT, check=False)

    both = install("both", f"--index-url={good}", f"--extra-index-url={evil}")
    assert both.returncode == 0, both.stderr
    assert (tmp_path / "both" / "lockedthing.py").read_text() == "evil = False\n"
    refused = install("alone", f"--index-url={evil}")
    assert refused.returncode != 0
    assert "hashes" in refused.stderr.lower()


# ── the bill of materials and the audit ───────────────────────────────────────────────────────────────


def test_the_bill_has_the_hashes_of_the_lock() -> None:
    bill = {"components": [{"name": "Httpx", "version": version("httpx")}, {"name": "torch", "version": "2.13.0"}]}
    httpx, torch = sbom.with_hashes(bill, sbom.locked_hashes(path("runtime").read_text()))["components"]
    hashes = [each["hashes"][0]["content"] for each in httpx["externalReferences"]]
    assert len(hashes) >= 2  # a wheel and a source distribution
    assert all(f"--hash=sha256:{each}" in path("runtime").read_text() for each in hashes)
    assert torch["externalReferences"] == []


def test_an_audit_that_could_not_ask_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    good = {"name": "a", "version": "1", "vulns": []}
    bad = {"name": "b", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
    unknown = {"name": "c", "version": "1", "skip_reason": "Dependency not found on PyPI"}  # what a mirror makes of it

    def judged(*answers: dict[str, object]) -> tuple[int, str]:
        status = audit.judge(json.dumps({"dependencies": answers}), "", len(answers))
        return status, "".join(capsys.readouterr())

    assert judged(good) == (0, "No advisory names any of the 1 versions.\n")
    assert judged(good, bad) == (1, "b 1: PYSEC-1, fixed in 2\n")
    assert judged(good, unknown) == (2, "Nothing is known of 1 of 2 versions: Dependency not found on PyPI.\n")
    assert judged(bad, unknown)[0] == 1
    assert audit.judge("", "Traceback\nConnectionError: no route", 9) == 2
    assert "cannot be had (ConnectionError: no route)" in capsys.readouterr().err
    assert {"httpx==" + version("httpx"), "torch==2.13.0"} <= {
        *audit.pinned(path("runtime").read_text(), "torch==2.13.0")
    }
