"""The command line: every command explains itself with an example, and no error is a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from nbpulse import __version__, cli, running
from nbpulse.errors import NbpulseError, StartupError

COMMANDS = [
    "up",
    "demo",
    "rehearse",
    "rebuild-timeseries",
    "api",
    "worker",
    "migrate",
    "doctor",
    "link",
    "token",
    "dead-letters",
    "merge-users",
    "prepare",
    "rotate-keys",
    "backup",
    "restore",
    "hub-config",
    "collection",
    "user",
    "roster",
    "invite",
    "audit",
    "erase-user",
    "erase-course",
    "compact",
    "readmit",
    "export-user",
    "processing-record",
    "retention",
    "shard",
]
SUBCOMMANDS = ["token list", "token revoke", "dead-letters list", "dead-letters show", "dead-letters replay"]
SUBCOMMANDS += [f"user {name}" for name in ("add", "link", "list", "disable", "enable")]
SUBCOMMANDS += ["roster import"]
SUBCOMMANDS += ["shard list", "shard add", "shard move", "shard verify"]
SUBCOMMANDS += ["audit list", "audit verify", "audit anchor"]


def test_a_command_imports_no_store_before_it_needs_one() -> None:
    """Every command and every process of `up` pays for what the command line imports."""
    question = "import nbpulse.cli, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    told = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, timeout=60, check=True)
    heavy = {"alembic", "asyncpg", "fastapi", "httpx2", "prometheus_client", "redis", "rich", "sqlalchemy", "structlog"}
    assert heavy & set(told.stdout.split()) == set()


def run_main(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["nbpulse", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_commands_are_those_of_the_manual() -> None:
    command = get_command(cli.app)
    assert sorted(command.commands) == sorted(COMMANDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS, "dead-letters drop"])
def test_every_command_shows_an_example_of_itself(command: str) -> None:
    shown = CliRunner().invoke(cli.app, [*command.split(), "--help"], env={"COLUMNS": "160"})
    assert shown.exit_code == 0
    assert f"nbpulse {command}" in " ".join(shown.output.split()).split("Example:")[-1].split("例:")[-1]


def test_the_version_is_the_packages() -> None:
    assert CliRunner().invoke(cli.app, ["--version"]).output.strip() == __version__


def test_an_error_is_two_lines_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NBPULSE_LANGUAGE", "en")
    for name in ("NBPULSE_DATABASE_URL", "NBPULSE_REDIS_URL", "NBPULSE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NBPULSE_DATA_DIR", str(tmp_path))
    assert run_main(["link"], monkeypatch) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"NB-3019 No nbpulse is running on {tmp_path}.\n        → Start it with `nbpulse up`")


def test_what_nobody_foresaw_is_said_in_a_sentence_too_and_shown_in_full_with_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setenv("NBPULSE_LANGUAGE", "en")
    monkeypatch.delenv("NBPULSE_DEBUG", raising=False)
    monkeypatch.setattr(cli, "app", fail)
    assert run_main([], monkeypatch) == 1
    assert "NB-3099 Something unexpected happened: ZeroDivisionError: division by zero" in capsys.readouterr().err
    monkeypatch.setenv("NBPULSE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["up", "--tls-cert", "cert.pem"], "NB-3020"),
        (["up", "--tls-cert", "absent.pem", "--tls-key", "absent.pem"], "NB-3020"),
        (["rehearse", "http://127.0.0.1:1"], "NB-3024"),
        (["dead-letters", "show", "no-id"], "NB-3019"),
        (["rebuild-timeseries", "--from", "2026-11-02", "--to", "2026-11-01"], "NB-3081"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    arguments: list[str], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("NBPULSE_DATABASE_URL", "NBPULSE_REDIS_URL", "NBPULSE_TOKEN", "NBPULSE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NBPULSE_DATA_DIR", str(tmp_path))
    assert run_main(arguments, monkeypatch) == 1
    assert capsys.readouterr().err.startswith(code)
    assert NbpulseError(code).todo("ja")


def test_where_the_servers_have_no_binary_one_sentence_names_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("NBPULSE_DATABASE_URL", "NBPULSE_REDIS_URL", "NBPULSE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NBPULSE_LANGUAGE", "en")
    obstacle = StartupError("NB-3001", server="Valkey", platform="Windows")
    monkeypatch.setattr(running, "find_obstacle", lambda: obstacle)
    assert run_main(["up", "--data", str(tmp_path / "data")], monkeypatch) == 1
    said = capsys.readouterr().err
    assert "NB-3001" in said
    assert "WSL2" in said
    assert "NBPULSE_DATABASE_URL" in said
    assert not (tmp_path / "data").exists()


def test_a_replica_of_a_server_of_ones_own_is_not_ours_to_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NBPULSE_DATABASE_URL", "postgresql://postgres@127.0.0.1:9/nbpulse")
    monkeypatch.setenv("NBPULSE_LANGUAGE", "en")
    assert run_main(["up", "--replica", "--data", str(tmp_path / "data")], monkeypatch) == 1
    said = capsys.readouterr().err
    assert "NB-3111" in said
    assert "NBPULSE_REPLICA_URLS" in said
    assert not (tmp_path / "data").exists()
