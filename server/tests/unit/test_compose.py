"""compose.yaml, Dockerfile and .dockerignore agree with each other, with the settings and with the command line."""

from __future__ import annotations

import os
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from container_scripts import COMPOSE, SCRIPTS
from nbpulse import cli
from nbpulse.settings import Settings
from servers import ROOT

SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {"migrate", "api", "worker"}
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SCRIPT_PATH = re.compile(r"\./(ops/containers/[\w.-]+)")


def read_instructions(keyword: str) -> list[str]:
    """What follows a keyword in the Dockerfile, continued lines joined."""
    lines = re.sub(r"\\\n\s*", " ", DOCKERFILE).splitlines()
    return [line.removeprefix(keyword).strip() for line in lines if line.startswith(f"{keyword} ")]


def list_copied(*, from_stage: bool) -> list[tuple[list[str], str]]:
    """(sources, target) of each COPY."""
    found = []
    for instruction in read_instructions("COPY"):
        words = instruction.split()
        if (words[0].startswith("--from")) == from_stage:
            words = [word for word in words if not word.startswith("--")]
            found.append((words[:-1], words[-1]))
    return found


def is_in_context(path: str) -> bool:
    """By .dockerignore's rules: the last line that matches the path or a directory above it decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!")
        above = [one for one in (Path(path), *Path(path).parents) if one.name]
        anywhere = pattern.removeprefix("**/")
        if any(fnmatch(str(one), pattern) or (anywhere != pattern and one.name == anywhere) for one in above):
            ignored = not rule.startswith("!")
    return not ignored


def test_the_services_are_the_full_stack() -> None:
    assert set(SERVICES) == {"postgres-primary", "postgres-replica", "influxdb", "redis"} | OURS
    for name in ("postgres-primary", "postgres-replica"):
        assert SERVICES[name]["image"].startswith("postgres:15")
    assert SERVICES["influxdb"]["image"] == "influxdb:1.8"


def test_every_variable_of_ours_is_a_setting() -> None:
    known = {f"NBPULSE_{name.upper()}" for name in Settings.__struct_fields__}
    used = {name for service in SERVICES.values() for name in service.get("environment", {})}
    used |= set(re.findall(r"\$\{(\w+)", str(COMPOSE))) | set(re.findall(r"NBPULSE_\w+", DOCKERFILE))
    assert {name for name in used if name.startswith("NBPULSE_")} <= known
    assert "NBPULSE_DATABASE_URL" in used


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_command_of_our_image_is_one_of_the_command_line(name: str) -> None:
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    command = SERVICES[name]["command"]
    assert [*command] == [name]
    assert command[0] in commands


def test_every_file_that_is_named_is_there_and_every_script_runs() -> None:
    named = set(SCRIPT_PATH.findall(str(COMPOSE)))
    assert {Path(path).name for path in named} == {path.name for path in SCRIPTS.glob("*.sh")} - {"make-secrets.sh"}
    for path in [*named, "ops/containers/make-secrets.sh"]:
        assert os.access(ROOT / path, os.X_OK), path


def test_each_mounted_script_is_what_its_service_starts() -> None:
    for name, service in SERVICES.items():
        mounts = [mount.split(":") for mount in service["volumes"] if mount.startswith("./")]
        for source, target, mode in mounts:
            assert mode == "ro", source
            assert target.startswith("/docker-entrypoint-initdb.d/") or service["entrypoint"] == [target], name


def test_every_volume_secret_and_network_is_declared_and_used() -> None:
    used: dict[str, set[str]] = {"volumes": set(), "secrets": set(), "networks": set()}
    for service in SERVICES.values():
        used["volumes"] |= {m.split(":")[0] for m in service.get("volumes", []) if not m.startswith("./")}
        used["secrets"] |= set(service.get("secrets", []))
        used["networks"] |= set(service["networks"])
    for kind, names in used.items():
        assert names == set(COMPOSE[kind]), kind


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_each_service_is_given_the_secrets_it_reads_and_no_other(name: str) -> None:
    service = SERVICES[name]
    text = str({key: service[key] for key in ("environment", "healthcheck") if key in service})
    read = set(re.findall(r"/run/secrets/(\w+)", text))
    if name in OURS:
        read |= set(re.findall(r"(?<!\$)\{(\w+)\}", text))
    assert read == set(service["secrets"])


def test_passwords_are_files_only_and_the_owners_is_migrates_alone() -> None:
    for name, service in SERVICES.items():
        for variable, value in service["environment"].items():
            if "PASSWORD" in variable:
                assert value.startswith("/run/secrets/"), (name, variable)
    assert {name for name in OURS if "postgres_password" in SERVICES[name]["secrets"]} == {"migrate"}
    assert is_in_context("server/src/nbpulse/cli.py")
    assert not is_in_context("secrets/postgres_password")
    assert not is_in_context("server/src/nbpulse/__pycache__/cli.pyc")


def test_only_the_api_can_be_reached_and_only_from_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8000:8000"]}
    assert COMPOSE["networks"]["stores"] == {"internal": True}
    assert [name for name, service in SERVICES.items() if "front" in service["networks"]] == ["api"]


def test_what_stays_is_started_again_and_asked_how_it_is() -> None:
    for name, service in SERVICES.items():
        if name == "migrate":
            assert (service["restart"], service["healthcheck"]) == ("no", {"disable": True})
        else:
            assert service["restart"] == "unless-stopped", name
            assert name == "api" or "test" in service["healthcheck"]
    assert len(read_instructions("HEALTHCHECK")) == 1  # the API's


def test_what_is_waited_for_exists_and_has_a_health_check() -> None:
    for service in SERVICES.values():
        for awaited, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert SERVICES[awaited]["healthcheck"]["test"], awaited
            else:
                assert (awaited, how["condition"]) == ("migrate", "service_completed_successfully")


def test_what_the_image_is_made_of_is_there_and_reaches_the_build() -> None:
    for sources, _ in list_copied(from_stage=False):
        for source in sources:
            assert (ROOT / source).exists(), source
            assert is_in_context(source.rstrip("/")), source


def test_the_image_runs_as_nobody_special_what_it_holds() -> None:
    assert DOCKERFILE.count("FROM python:3.11-slim-bookworm") == 2
    assert read_instructions("USER") == ["nbpulse"]
    inside = {
        target + Path(source).name
        for sources, target in list_copied(from_stage=False)
        for source in sources
        if target.startswith("/opt/")
    }
    commands = [shlex.split(line.replace(",", " ").strip("[]")) for line in read_instructions("ENTRYPOINT")]
    commands.append(
        shlex.split(read_instructions("HEALTHCHECK")[0].partition(" CMD ")[2].replace(",", " ").strip("[]"))
    )
    commands.append(SERVICES["worker"]["healthcheck"]["test"][1:])
    assert {path for command in commands for path in command if path.startswith("/")} == inside
