"""docker-compose.yml, Dockerfile and constraints.txt: what can be said of them without building anything."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from shared.intake.dataset_places import Permission
from shared.settings import Settings
from tests.support.compose import FILE, REQUIRED, ROOT, VARIABLES, MissingVariable, compose, seconds
from tuwen.jobs import Kind

SCRIPTS = Path(sys.executable).parent
OURS = {"api", "worker-0", "worker-cpu", "housekeeper", "flower", "migrate"}
ONE_SHOT = {"migrate"}


def test_it_is_what_the_specification_says() -> None:
    check = [str(SCRIPTS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(FILE)]
    outcome = subprocess.run(check, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("name", REQUIRED)
def test_no_secret_has_a_default(name: str) -> None:
    for value in ({}, {name: ""}):
        with pytest.raises(MissingVariable, match=name):
            compose({key: secret for key, secret in VARIABLES.items() if key != name} | value)


def test_every_password_is_one_of_those() -> None:
    secret = re.compile(r"password|secret|access_key|auth$", re.IGNORECASE)
    for name, service in compose()["services"].items():
        for variable, value in service.get("environment", {}).items():
            if secret.search(variable):
                assert value is None or any(known in value for known in VARIABLES.values()), (name, variable)


def test_only_api_storage_and_flower_are_published_and_only_here(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {
        "api": ["127.0.0.1:8000:8000"],
        "s3": ["127.0.0.1:8333:8333"],
        "flower": ["127.0.0.1:5555:5555"],
    }
    elsewhere = compose(VARIABLES | {"TUWEN_BIND": "192.0.2.7"})["services"]
    assert elsewhere["api"]["ports"] == ["192.0.2.7:8000:8000"]
    assert elsewhere["flower"]["ports"] == ["127.0.0.1:5555:5555"]
    assert "network_mode" not in str(services)


def test_databases_have_no_way_out(services: dict[str, Any]) -> None:
    assert compose()["networks"]["inside"]["internal"] is True
    assert services["postgres"]["networks"] == services["redis"]["networks"] == ["inside"]


def test_every_service_that_stays_has_a_health_check(services: dict[str, Any]) -> None:
    for name in services.keys() - ONE_SHOT:
        check = services[name]["healthcheck"]
        assert check["test"][0] in ("CMD", "CMD-SHELL"), name
        assert seconds(check["timeout"]) <= seconds(check["interval"]), name
        assert services[name]["restart"] == "unless-stopped", name
    for name in ONE_SHOT:
        assert services[name]["restart"] == "no", name


def test_what_is_waited_for_can_be_waited_for(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert how["condition"] == expected, (name, other)
            assert other in services, (name, other)
            assert "profiles" not in services[other], (name, other)


def test_every_container_is_guarded_and_limited(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert {"memory", "pids"} <= service["deploy"]["resources"]["limits"].keys(), name
        if name != "s3":
            assert service["read_only"] is True, name


def test_a_worker_has_time_to_finish_its_batch(services: dict[str, Any]) -> None:
    settings = Settings()
    # Shards, then jobs, then storing and settling what is done, or a download that is under way.
    longest = 2 * settings.shutdown_grace + settings.fetch_timeout + settings.lease
    for name in ("worker-0", "worker-cpu"):
        assert seconds(services[name]["stop_grace_period"]) > longest
        assert seconds(services[name]["healthcheck"]["start_period"]) >= Settings().engine_start_timeout


def test_a_housekeeper_has_time_to_give_its_data_sets_back(services: dict[str, Any]) -> None:
    settings = Settings()
    webhooks = 2 * settings.fetch_timeout
    assert seconds(services["housekeeper"]["stop_grace_period"]) > webhooks + settings.shutdown_grace


def test_each_image_is_built_once_and_never_fetched(services: dict[str, Any]) -> None:
    """Two builds of one image at a time fail over its name, and before one there is nothing to fetch."""
    builders = [services[name]["image"] for name in OURS if "build" in services[name]]
    assert len(builders) == len(set(builders))
    assert {services[name]["image"] for name in OURS} == set(builders)
    for name in OURS:
        if "build" not in services[name]:
            assert services[name]["pull_policy"] == "never", name
            # The service that builds its image starts before it.
            assert any("build" in services[other] for other in services[name]["depends_on"]), name


def test_data_sets_lie_apart_from_what_is_kept_for_all(services: dict[str, Any]) -> None:
    for name in OURS:
        given = {key: str(value) for key, value in services[name]["environment"].items() if value is not None}
        if "TUWEN_DATASET_ROOTS" not in given:
            continue
        settings = Settings(storage_url=given["TUWEN_STORAGE_URL"], dataset_roots=given["TUWEN_DATASET_ROOTS"])
        for root in settings.dataset_roots:
            Permission.of(settings, (f"{root}/alice",)).require(f"{root}/alice/cats", "source")


def test_gpu_workers_have_a_gpu_each(services: dict[str, Any]) -> None:
    gpu = [service for name, service in services.items() if "gpu" in service.get("profiles", ())]
    devices = [service["deploy"]["resources"]["reservations"]["devices"][0] for service in gpu]
    numbers = [device["device_ids"] for device in devices]
    assert all(device["capabilities"] == ["gpu"] for device in devices)
    assert len(numbers) == len({tuple(each) for each in numbers}) >= 1
    assert len({service["hostname"] for service in gpu}) == len(gpu)


def test_every_setting_that_is_given_exists(services: dict[str, Any]) -> None:
    known = {f"TUWEN_{name.upper()}" for name in Settings.model_fields}
    for name in OURS:
        given = {variable for variable in services[name]["environment"] if variable.startswith("TUWEN_")}
        assert given <= known, name


def test_webhooks_are_accepted_where_they_are_signed(services: dict[str, Any]) -> None:
    informed = {name for name in OURS if "TUWEN_WEBHOOK_SECRET" in services[name]["environment"]}
    assert informed == {"api", "housekeeper"}


def test_models_are_known_where_requests_are_admitted_and_done(services: dict[str, Any]) -> None:
    kinds = {f"TUWEN_{kind.value.upper()}" for kind in Kind}
    informed = {name for name in OURS if kinds <= services[name]["environment"].keys()}
    assert informed == {"api", "worker-0", "worker-cpu", "housekeeper"}


def test_volumes_and_networks_are_declared(services: dict[str, Any]) -> None:
    document = compose()
    for name, service in services.items():
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in document["volumes"], name
        assert set(service["networks"]) <= document["networks"].keys(), name
    mounted = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert mounted == document["volumes"].keys()


def test_the_settings_named_in_the_introduction_are_used() -> None:
    text = FILE.read_text()
    introduction = text[: text.index("\nname:")]
    for name in (*REQUIRED, "TUWEN_BIND", "S3_PUBLIC_ENDPOINT"):
        assert name in introduction
        assert f"${{{name}" in text
    for name in re.findall(r"TUWEN_(?!BIND)[A-Z_]+", introduction):
        assert f"{name}:" in text


# ── Dockerfile ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def test_targets_exist(dockerfile: str, services: dict[str, Any]) -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE))
    arguments = set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))
    for name in OURS:
        build = services[name].get("build", services["migrate"]["build"])
        assert build["target"] in stages, name
        assert build.get("args", {}).keys() <= arguments, name


def test_what_is_copied_exists_and_reaches_the_build(dockerfile: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source
    for stage in re.findall(r"^COPY --from=(\S+)", dockerfile, re.MULTILINE):
        assert f" AS {stage}\n" in dockerfile


def test_extras_exist_and_only_the_worker_has_torch(dockerfile: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"-r (\w+)\.txt", dockerfile):
        assert extra == "base" or extra in project["optional-dependencies"], extra
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)$(.*?)(?=^FROM|\Z)", dockerfile, re.MULTILINE | re.DOTALL))
    wanted = {stage: "\n".join(_requirements(project, text)) for stage, text in stages.items()}
    for stage in ("app-build", "worker-build"):
        named = set(re.findall(r"-r (\w+)\.txt", stages[stage]))
        assert {"base", "server"} <= named
        assert set(re.findall(r"^tuwen\[(\w+)\]", wanted[stage], re.MULTILINE)) <= named, "an extra names others"
        assert "tuwen-lab" not in wanted[stage]
    assert "torch" not in wanted["app-build"]
    assert "torch" in wanted["worker-build"]
    assert "flower" in wanted["app-build"]


def _requirements(project: dict[str, Any], stage: str) -> list[str]:
    extras = project["optional-dependencies"] | {"base": project["dependencies"]}
    return [requirement for extra in re.findall(r"-r (\w+)\.txt", stage) for requirement in extras[extra]]


def test_images_run_as_nobody_in_particular(dockerfile: str) -> None:
    for target in ("app", "worker"):
        stage = dockerfile.split(f" AS {target}\n")[1].partition("\nFROM ")[0]
        assert re.findall(r"^USER (\S+)$", stage, re.MULTILINE) == ["tuwen"], target
        assert stage.index("\nUSER tuwen\n") < stage.index("\nCMD "), target


def test_constraints_name_every_dependency() -> None:
    requirements: list[str] = []
    for file in (ROOT / "pyproject.toml", ROOT / "workers/lab/pyproject.toml"):
        project = tomllib.loads(file.read_text())["project"]
        requirements += [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {re.split(r"[\[<>=!~ ]", requirement)[0].lower() for requirement in requirements} - {"tuwen", "tuwen-lab"}
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert names <= pinned
