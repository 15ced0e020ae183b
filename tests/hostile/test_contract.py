"""Every answer is one that the OpenAPI document allows: Schemathesis with all its checks, with and without API keys.

`make hostile` runs it for longer. What it finds here, it finds again with the same seed: each finding is printed with
the request as a curl command, the answer, and what the document says instead.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api.http.auth import new_key
from shared.settings import Settings
from tests.hostile.addresses import ALLOWED
from tests.hostile.contract import Report, check
from tests.support.api_server import serving
from tests.support.system import System, running_system

OPERATIONS = 40
"""At least so many operations are tested; a document that lost some would have fewer findings, too."""


@pytest.fixture(scope="module")
def system(module_settings: Settings) -> Iterator[System]:
    """A worker and a housekeeper, so that what is submitted comes to its end."""
    folder = module_settings.data_dir
    changed = {"dataset_roots": [str(folder / "contract")], "fetch_allow_networks": [f"{ALLOWED}/32"]}
    with running_system(module_settings, folder, **changed) as system:
        system.worker()
        system.housekeeper()
        yield system


def test_without_keys(system: System) -> None:
    require_clean(run(system, "open", examples=3, phases=("examples", "coverage", "fuzzing")))


def test_with_keys(system: System) -> None:
    # The rules for bodies are the same, so nothing is gained from all the ways to break each of them again.
    require_clean(run(system, "keys", examples=6, phases=("examples", "fuzzing")))


def run(system: System, auth: str, *, examples: int, phases: tuple[str, ...]) -> Report:
    folder = system.folder / "contract" / auth
    folder.mkdir(parents=True)
    key = None
    if auth == "keys":
        key, digest = new_key()
        system.database.keys.add(
            name="a", tenant="a", sha256=digest, quota=1_000_000, dataset_roots=[str(system.folder / "contract")]
        )
    with serving(system.settings.model_copy(update={"auth": auth})) as url:
        return check(url, folder, seed=13, examples=examples, phases=phases, key=key)


def require_clean(report: Report) -> None:
    assert report.passed, report.text
    assert report.operations >= OPERATIONS
    assert report.cases >= OPERATIONS
