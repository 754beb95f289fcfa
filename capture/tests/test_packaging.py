"""One pip install is all, one pip uninstall leaves nothing, and nothing is needed that Jupyter does not bring."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbpulse_capture
from student_jupyter import install_capture

SOURCES = sorted(Path(nbpulse_capture.__file__).parent.glob("*.py"))
JUPYTERS = {"IPython", "ipykernel", "jupyter_core", "jupyter_server", "tornado", "nbpulse_capture", "traitlets", "zmq"}
OF_SERVER, OF_LAB = ("jupyter_server", "extension"), ("jupyterlab.labextensions",)
POSIX_ONLY = {"fcntl", "grp", "posix", "pwd", "resource", "termios", "tty"}


def find_imports(path: Path, *, is_guarded: bool = True) -> set[str]:
    """What a file imports; without what it can do without (`is_guarded` False)."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tries = [one for one in ast.walk(tree) if isinstance(one, ast.Try) and "ImportError" in ast.dump(one)]
    guarded = {inner for one in tries for statement in one.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in guarded and not is_guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_only_the_standard_library_and_jupyter_are_imported() -> None:
    imported = set().union(*map(find_imports, SOURCES))
    assert "sqlite3" in imported
    assert imported <= set(sys.stdlib_module_names) | JUPYTERS
    needed = set().union(*(find_imports(source, is_guarded=False) for source in SOURCES))
    assert "sqlite3" in needed
    assert not needed & POSIX_ONLY


def list_extensions(python: Path, home: Path, *module: str) -> str:
    """What `jupyter server extension list` or `jupyter labextension list` says, without its colours."""
    env = os.environ | {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    command = [str(python), "-m", *module, "list"]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=150)
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)


def test_pip_install_enables_and_pip_uninstall_leaves_nothing(tmp_path: Path) -> None:
    python = install_capture(tmp_path)
    root = tmp_path / "venv"
    config = root / "etc" / "ipython" / "ipython_kernel_config.json"
    assert json.loads(config.read_text()) == {"IPKernelApp": {"extra_extensions": ["nbpulse_capture.kernel"]}}
    server_config = root / "etc" / "jupyter" / "jupyter_server_config.d" / "nbpulse_capture.json"
    assert json.loads(server_config.read_text()) == {"ServerApp": {"jpserver_extensions": {"nbpulse_capture": True}}}
    listed = list_extensions(python, tmp_path, *OF_SERVER)
    assert re.search(r"nbpulse_capture enabled\b", listed), listed
    assert re.search(rf"nbpulse_capture {nbpulse_capture.__version__} OK\b", listed), listed
    listed = list_extensions(python, tmp_path, *OF_LAB)
    assert re.search(rf"nbpulse-capture v{nbpulse_capture.__version__} enabled OK\b", listed), listed
    with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as wheel:
        metadata = next(name for name in wheel.namelist() if name.endswith("METADATA"))
        assert "Requires-Dist" not in wheel.read(metadata).decode()
    pip = [sys.executable, "-m", "pip", "--python", str(python), "uninstall", "-y", "nbpulse-capture"]
    subprocess.run(pip, check=True, capture_output=True, timeout=150)
    assert [path for path in root.rglob("*") if "nbpulse" in path.name or path == config] == []
    assert "nbpulse" not in list_extensions(python, tmp_path, *OF_SERVER)
    assert "nbpulse" not in list_extensions(python, tmp_path, *OF_LAB)
