"""The units and the chart in ops/: what can be checked of them without systemd running and without a cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from charts import Chart
from nbpulse.settings import Settings
from servers import ROOT, give_up

UNITS = ROOT / "ops/systemd"
INSTANCES = ("nbpulse-api@8643.service", "nbpulse-worker@1.service", "nbpulse-migrate.service")
KNOWN = {f"NBPULSE_{name.upper()}" for name in Settings.__struct_fields__}
EXPOSURE_MAX = 20  # tenths; 100 is a service without any protection


@pytest.fixture
def unit_path(tmp_path: Path) -> dict[str, str]:
    """An environment in which the units are installed, for programs that this machine has."""
    if shutil.which("systemd-analyze") is None:
        give_up("no systemd-analyze on the PATH (Debian's package systemd)")
    shutil.copytree(UNITS, tmp_path / "units")
    for path in (tmp_path / "units").glob("*.service"):
        text = path.read_text(encoding="utf-8")
        assert "/opt/nbpulse/bin/nbpulse" in text
        path.write_text(text.replace("/opt/nbpulse/bin/nbpulse", "/bin/true"), encoding="utf-8")
    return os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path / 'units'}:", "SYSTEMD_LOG_LEVEL": "warning"}


def analyze(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_systemd_understands_every_unit(unit_path: dict[str, str]) -> None:
    units = [f"{unit_path['SYSTEMD_UNIT_PATH'].rstrip(':')}/{name}" for name in (*INSTANCES, "nbpulse.target")]
    done = analyze(unit_path, "verify", "--man=no", "--recursive-errors=no", *units)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", INSTANCES)
def test_a_unit_may_do_little_more_than_it_must(name: str, unit_path: dict[str, str]) -> None:
    done = analyze(unit_path, "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", name)
    assert done.returncode == 0, done.stdout[-400:]


def test_units_set_only_settings_that_there_are() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in UNITS.rglob("*.*") if path.is_file())
    named = {word.partition("=")[0] for word in text.split() if word.startswith("NBPULSE_")}
    named |= {word.removeprefix("Environment=").partition("=")[0] for word in text.split() if "=NBPULSE_" in word}
    assert named
    assert named <= KNOWN


@pytest.fixture
def objects() -> dict[tuple[str, str], dict[str, Any]]:
    ingress = {"enabled": True, "className": "x", "host": "a.example", "tlsSecret": "tls", "annotations": {"a": "b"}}
    chart = Chart(ROOT / "ops/helm/nbpulse", ingress=ingress, settings={"NBPULSE_RETENTION_DAYS": 90})
    found = chart.render()
    assert len(found) == 7
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def find_container(objects: dict[tuple[str, str], dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (container,) = objects[kind, f"class-{name}"]["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def test_the_chart_has_what_runs_and_no_store(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert {f"{kind} {name}" for kind, name in objects} == {
        "Deployment class-api",
        "Deployment class-worker",
        "Service class-api",
        "PodDisruptionBudget class-api",
        "PodDisruptionBudget class-worker",
        "Job class-migrate",
        "Ingress class",
    }
    for kind, name in (("Deployment", "api"), ("Deployment", "worker"), ("Job", "migrate")):
        container = find_container(objects, kind, name)
        assert container["image"] == "registry.example/nbpulse:0.1.0"
        assert container["args"] == [name]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        names = [one["name"] for one in container["env"]]
        assert len(names) == len(set(names))
        assert set(names) <= KNOWN
        values = {one["name"]: one.get("value") for one in container["env"]}
        assert values["NBPULSE_RETENTION_DAYS"] == "90"
        assert values["NBPULSE_REDIS_URL"] is None, "what holds a password comes from a Secret"
    assert objects["Job", "class-migrate"]["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"


def test_every_selector_finds_the_pods_it_is_for(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    for name in ("api", "worker"):
        deployment = objects["Deployment", f"class-{name}"]["spec"]
        labels = deployment["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/component"] == name
        assert deployment["selector"]["matchLabels"] == labels
        budget = objects["PodDisruptionBudget", f"class-{name}"]["spec"]
        assert budget["selector"]["matchLabels"] == labels
        assert budget["maxUnavailable"] == 1
    service = objects["Service", "class-api"]["spec"]
    assert service["selector"] == objects["Deployment", "class-api"]["spec"]["template"]["metadata"]["labels"]
    backend = objects["Ingress", "class"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "class-api", "port": {"name": service["ports"][0]["name"]}}


def test_only_migrate_is_the_databases_owner_and_each_worker_has_a_name(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    def read(kind: str, name: str) -> dict[str, Any]:
        return {one["name"]: one.get("valueFrom") for one in find_container(objects, kind, name)["env"]}

    keys = {
        name: read(kind, name)["NBPULSE_DATABASE_URL"]["secretKeyRef"]["key"]
        for kind, name in (("Job", "migrate"), ("Deployment", "api"), ("Deployment", "worker"))
    }
    assert keys == {"migrate": "owner_database_url", "api": "database_url", "worker": "database_url"}
    worker_name = read("Deployment", "worker")["NBPULSE_WORKER_NAME"]
    assert worker_name == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_probes_ask_what_there_is(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    api, worker = (find_container(objects, "Deployment", name) for name in ("api", "worker"))
    assert api["readinessProbe"]["httpGet"] == {"path": "/health/ready", "port": "http"}
    assert api["livenessProbe"]["httpGet"] == {"path": "/health/live", "port": "http"}
    port = {one["name"]: one.get("value") for one in api["env"]}["NBPULSE_PORT"]
    assert api["ports"] == [{"name": "http", "containerPort": int(port)}]
    command = worker["livenessProbe"]["exec"]["command"]
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "ops/containers/check_health.py /opt/nbpulse/containers/" in dockerfile
    assert command == ["python", "/opt/nbpulse/containers/check_health.py", "worker"]
