"""The package where nothing POSIX-only is there: Windows as far as Linux can play it (as_windows.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nbpulse_capture import notebook
from nbpulse_capture.cli import main

from .conftest import FakeApi

HERE = Path(__file__).parent


def live_a_day(api: FakeApi, folder: Path, encoding: str, session: str) -> tuple[dict[str, Any], str]:
    """A student's day in a process of its own: what it found, and what it said on a console of that encoding."""
    roaming, local = folder / "AppData" / "Roaming", folder / "AppData" / "Local"
    folder.mkdir(parents=True)
    described = {"root_dir": "C:\\Users\\花子\\OneDrive - 学校"}
    (folder / "jpserver-77.json").write_text(json.dumps(described), encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("NBPULSE_", "XDG_"))}
    env |= {"APPDATA": str(roaming), "LOCALAPPDATA": str(local), "PYTHONIOENCODING": encoding, "LC_ALL": "ja_JP.UTF-8"}
    scripts = [str(HERE / name) for name in ("as_windows.py", "student_on_windows.py")]
    command = [sys.executable, *scripts, api.url, session, str(folder)]
    done = subprocess.run(command, env=env, check=False, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found, done.stdout.decode(encoding)


@pytest.mark.parametrize("encoding", ["cp932", "cp1252", "utf-8"])
def test_a_students_day_without_anything_posix(tmp_path: Path, api: FakeApi, encoding: str) -> None:
    # A Japanese account, OneDrive, and a path longer than Windows once allowed (SQLite takes 512 bytes).
    folder = tmp_path / "Users" / "花子" / "OneDrive - 学校" / "長いフォルダー名" / ("x" * 100) / ("y" * 60)
    assert len(str(folder / "AppData" / "Local" / "nbpulse-capture" / "outbox.sqlite3")) > 260
    found, shown = live_a_day(api, folder, encoding, "C:\\Users\\花子\\OneDrive - 学校\\授業\\week1.ipynb")
    assert found["modules"] >= 25
    assert found["faults"] == []
    assert found["said"] == [0] * 5
    assert found["place"] == "授業/week1.ipynb", "reported as everywhere, with nobody's account in it"
    assert (found["is_alive"], found["kept"]) == (True, 1)
    assert all("AppData" in one for one in found["folders"])
    ends = api.of_type("cell_execution")
    assert [(one["cell_id"], one["data"]["status"], one["notebook_path"]) for one in ends] == [
        ("c1", "ok", "授業/week1.ipynb"),
        ("c2", "error", "授業/week1.ipynb"),
    ]
    if encoding != "cp1252":
        assert "membership.json はファイルのアクセス権では守られていません" in shown
    assert not (folder / "AppData" / "Roaming" / "nbpulse-capture" / "membership.json").exists(), "it has left"


@pytest.mark.parametrize("encoding", ["cp932", "cp1252", "ascii"])
def test_every_text_can_be_printed_on_every_console(encoding: str, tmp_path: Path) -> None:
    env = os.environ | {"PYTHONIOENCODING": encoding, "NBPULSE_CAPTURE_CONFIG": str(tmp_path), "LC_ALL": "ja_JP.UTF-8"}
    for arguments in ("--help", "join --help", "doctor", "join http://127.0.0.1:9 A --name 花子"):
        command = [sys.executable, "-m", "nbpulse_capture", *arguments.split()]
        done = subprocess.run(command, env=env, check=False, capture_output=True, timeout=60)
        assert b"Traceback" not in done.stderr, done.stderr.decode(encoding)
        assert (done.stdout + done.stderr).decode(encoding)


@pytest.mark.parametrize(
    ("session", "path"),
    [
        ("C:\\Users\\花子\\授業\\week1.ipynb", "授業/week1.ipynb"),
        ("c:\\users\\花子\\授業\\week1.ipynb", "授業/week1.ipynb"),
        ("D:\\その他\\week1.ipynb", "week1.ipynb"),
        ("\\\\server\\share\\花子\\week1.ipynb", "week1.ipynb"),
        ("授業\\week1.ipynb", "授業/week1.ipynb"),
    ],
)
def test_a_windows_path_is_told_as_the_course_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: str, path: str
) -> None:
    from pathlib import PureWindowsPath

    monkeypatch.setattr(notebook, "_PurePath", PureWindowsPath)
    (tmp_path / "jpserver-7.json").write_text(json.dumps({"root_dir": "C:\\Users\\花子"}), encoding="utf-8")
    place = notebook.locate_notebook(session, str(tmp_path / "kernel-1.json"), "7")
    assert place.path == path
    assert place.file == (session if ":" in session or session[0] == "\\" else "C:\\Users\\花子\\授業\\week1.ipynb")


def test_a_file_that_others_can_read_is_said_to_be_so(
    student: Path, api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["join", api.url, "ABCD", "--name", "花子"])
    capsys.readouterr()
    main(["doctor"])
    assert "membership.json" not in capsys.readouterr().out
    (student / "config" / "membership.json").chmod(0o644)
    main(["doctor"])
    assert "? " in (shown := capsys.readouterr().out)
    assert "has no file mode that keeps others out" in shown
