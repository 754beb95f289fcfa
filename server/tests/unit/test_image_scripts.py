"""What our image is built and started with: the locked closure, the entry that fills in passwords, the secrets."""

from __future__ import annotations

import importlib.util
import stat
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from container_scripts import SCRIPTS, SECRETS
from servers import ROOT


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOCKED, START = load("install_locked"), load("start")
PINNED = LOCKED.read_lock((ROOT / "requirements.lock").read_text(encoding="utf-8"))
WANTED = ["nbpulse[parquet]", "nbpulse-capture"]


def test_the_lock_is_read_by_name() -> None:
    version, block = PINNED["prometheus-client"]
    assert block.startswith(f"prometheus-client=={version} ")


def test_the_image_gets_what_runs_and_nothing_of_the_developers() -> None:
    """Walked over this environment, which holds the whole lock."""
    names, missing = LOCKED.find_missing(WANTED, PINNED, LOCKED.find_declared)
    assert missing == set()
    assert {"asyncpg", "hiredis", "pyarrow", "redis", "starlette", "uvicorn", "uvloop"} <= names
    assert names.isdisjoint({"jupyterlab", "playwright", "pytest", "mypy", "ruff", "hatchling", "colorama"})
    without, _ = LOCKED.find_missing(["nbpulse"], PINNED, LOCKED.find_declared)
    assert "pyarrow" not in without


def test_what_is_missing_is_found_step_by_step_and_another_version_counts_as_missing() -> None:
    pinned = {name: ("2", f"{name}==2 --hash=sha256:0") for name in ("a", "b", "c")}
    installed = {"ours": ("1", ["a[x]", "b; sys_platform == 'none'"])}
    assert LOCKED.find_missing(["ours"], pinned, installed.get) == ({"ours", "a"}, {"a"})
    installed["a"] = ("2", ["c; extra == 'x'"])
    assert LOCKED.find_missing(["ours"], pinned, installed.get) == ({"ours", "a", "c"}, {"c"})
    installed["c"] = ("1", [])
    assert LOCKED.find_missing(["ours"], pinned, installed.get)[1] == {"c"}
    installed["c"] = ("2", [])
    assert LOCKED.find_missing(["ours"], pinned, installed.get)[1] == set()


def test_what_the_lock_does_not_name_is_refused_though_it_is_installed() -> None:
    installed = {"ours": ("1", ["stray"]), "stray": ("1", [])}
    with pytest.raises(ValueError, match="stray is needed and not in the lock"):
        LOCKED.find_missing(["ours"], {}, installed.get)


def test_of_two_pins_of_one_name_the_one_for_this_interpreter_counts() -> None:
    lock = [
        f"a=={version} ; python_full_version {marker} \\\n    --hash=sha256:{version}\n"
        for version, marker in ((1, "< '3.11'"), (2, ">= '3.11'"), (3, "< '3.10'"))
    ]
    assert LOCKED.read_lock("".join(lock)) == {"a": ("2", lock[1])}


def test_a_lock_line_without_a_hash_is_refused() -> None:
    with pytest.raises(ValueError, match="pins nothing here: a==1"):
        LOCKED.read_lock("a==1\nb==2 \\\n    --hash=sha256:0\n")


def test_secrets_are_put_into_our_variables_only_and_fit_for_a_url(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("p@ss/wörd\n", encoding="utf-8")
    given = {"NBPULSE_REDIS_URL": "redis://:{pass}@redis/0", "OTHER": "{pass}", "NBPULSE_PORT": "8000"}
    assert START.compose_environment(given, tmp_path) == {
        "NBPULSE_REDIS_URL": "redis://:p%40ss%2Fw%C3%B6rd@redis/0",
        "OTHER": "{pass}",
        "NBPULSE_PORT": "8000",
    }


def test_a_missing_or_empty_secret_starts_nothing_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("NBPULSE_REDIS_URL", "redis://:{redis_password}@redis/0")
    with pytest.raises(SystemExit, match=f"{tmp_path}/redis_password"):
        START.main(["api"])
    (tmp_path / "redis_password").write_text("\n")
    with pytest.raises(SystemExit, match="redis_password is empty"):
        START.main(["api"])


def test_secrets_are_made_once_different_and_closed(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    command = [str(SCRIPTS / "make-secrets.sh"), str(directory)]
    subprocess.run(command, check=True, timeout=20)
    first = {path.name: path.read_text() for path in directory.iterdir()}
    assert first.keys() == set(SECRETS)
    assert len(set(first.values())) == len(SECRETS)
    assert all(len(secret) == 48 for secret in first.values())
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    (directory / "redis_password").unlink()
    subprocess.run(command, check=True, timeout=20)
    second = {path.name: path.read_text() for path in directory.iterdir()}
    assert {name for name in first if first[name] != second[name]} == {"redis_password"}
