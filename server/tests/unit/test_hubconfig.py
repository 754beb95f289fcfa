"""What `nbpulse hub-config` prints: code a hub can read, alike for each kind; journey/test_jupyterhub.py runs it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from traitlets.config import Config
from typer.testing import CliRunner

from nbpulse import cli
from nbpulse.errors import StartupError
from nbpulse.hubconfig import Kind, compose

URL = "https://nbpulse.example/class"


def run(code: str) -> Config:
    """The configuration as a hub's file leaves it that had set nothing before."""
    config = Config()
    exec(code, {"c": config})
    return config


def list_scopes(config: Config) -> dict[str, list[str]]:
    roles: list[dict[str, Any]] = config.JupyterHub.load_roles.get_value([])
    return {role["name"]: role["scopes"] for role in roles}


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize("kind", list(Kind))
def test_each_kind_gives_users_and_their_servers_the_scopes_and_the_address(
    kind: Kind, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBPULSE_LANGUAGE", language)
    printed = compose(kind, f"{URL}/")
    if kind is Kind.Z2JH:
        values = yaml.safe_load(printed)
        config, url = run(values["hub"]["extraConfig"]["nbpulse"]), values["singleuser"]["extraEnv"]["NBPULSE_URL"]
    else:
        config = run(printed)
        url = config.Spawner.environment.get_value({})["NBPULSE_URL"]
    assert url == URL
    scopes = list_scopes(config)
    assert scopes.keys() == {"user", "server"}
    for role in scopes.values():
        assert {"access:services!service=nbpulse", "custom:nbpulse:write"} <= set(role)
        assert "custom:nbpulse:read" not in role
    assert "self" in scopes["user"]
    assert {"users:activity!user", "access:servers!server"} <= set(scopes["server"])  # the hub's own for this role
    assert config.JupyterHub.custom_scopes.get_value({}).keys() == {"custom:nbpulse:write", "custom:nbpulse:read"}


def test_what_the_hubs_file_has_set_before_stays() -> None:
    before = "c.JupyterHub.load_roles = [{'name': 'culler', 'scopes': []}]\nc.Spawner.environment = {'A': '1'}\n"
    config = run(before + compose(Kind.PLAIN, URL))
    assert [role["name"] for role in config.JupyterHub.load_roles] == ["culler", "user", "server"]
    assert config.Spawner.environment == {"A": "1", "NBPULSE_URL": URL}


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        (Kind.PLAIN, ""),
        (Kind.TLJH, "nbpulse.example"),
        (Kind.PLAIN, "ftp://nbpulse.example"),
        (Kind.Z2JH, "http://127.0.0.1:8642"),
        (Kind.Z2JH, "http://localhost"),
    ],
)
def test_without_an_address_that_students_servers_reach_it_refuses(kind: Kind, url: str) -> None:
    with pytest.raises(StartupError, match="NB-3083") as refused:
        compose(kind, url)
    assert f"nbpulse hub-config {kind.value} --public-url" in refused.value.todo("en")


def test_stdout_is_the_configuration_and_stderr_says_where_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBPULSE_LANGUAGE", "en")
    shown = CliRunner().invoke(cli.app, ["hub-config", "tljh"], env={"NBPULSE_PUBLIC_URL": URL})
    assert shown.exit_code == 0
    assert shown.stdout.rstrip("\n") == compose(Kind.TLJH, URL)
    assert "NBPULSE_HUB_API_URL=http://127.0.0.1:15001/hub/api" in shown.stderr
    assert "/opt/tljh/config/jupyterhub_config.d/nbpulse.py" in shown.stderr
