"""What a student's day asks of the package, in one process: run by as_windows.py, prints what it found as JSON."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbpulse_capture

modules = [one.name for one in pkgutil.iter_modules(nbpulse_capture.__path__, "nbpulse_capture.")]
modules.remove("nbpulse_capture.__main__")
for name in modules:
    importlib.import_module(name)

from nbpulse_capture import cli, execution, kernel, notebook  # noqa: E402
from nbpulse_capture.claims import KernelClaim, ServerClaims, find_death, remove_dead_servers  # noqa: E402
from nbpulse_capture.membership import get_config_dir, get_data_dir, get_outbox_file  # noqa: E402
from nbpulse_capture.outbox import Outbox  # noqa: E402
from nbpulse_capture.writer import Writer  # noqa: E402


class Shell:
    """As much of an IPython shell as a recorder asks for."""

    def __init__(self) -> None:
        self.parent: dict[str, Any] = {}
        self.kernel = SimpleNamespace(get_parent=lambda: self.parent)
        self.compile = SimpleNamespace(_filename_map={})


def run_cell(recorder: kernel.Recorder, shell: Shell, number: int, error: Exception | None = None) -> None:
    """One run as IPython tells of it."""
    info = SimpleNamespace(silent=False, store_history=True, raw_cell="x = 1", cell_id=f"c{number}")
    shell.parent = {"header": {"msg_id": f"m{number}"}, "metadata": {}}
    recorder.before_run(info)
    result = SimpleNamespace(execution_count=number, error_before_exec=None, error_in_exec=error, info=info)
    recorder.after_run(result)  # type: ignore[arg-type]


url, session, root = sys.argv[1:4]
said = [cli.main(["join", url, "ABCD", "--name", "山田 花子"])]
place = notebook.locate_notebook(session, str(Path(root) / "kernel-1.json"), "77")
shell = Shell()
recorder = kernel.Recorder(shell, kernel_id=execution.find_kernel_id("kernel-1.json"), place=place, is_nested=False)  # type: ignore[arg-type]
recorder.note_load()
run_cell(recorder, shell, 1)
run_cell(recorder, shell, 2, ZeroDivisionError("division by zero"))
recorder.note_exit()

claims = ServerClaims()
claims.claim("7c1d1f0e-0d59-4a3c-9a0b-3f1f6e2b9a11")
claims.beat()
is_alive = find_death(claims.owner) is None
KernelClaim("7c1d1f0e-0d59-4a3c-9a0b-3f1f6e2b9a11").is_held()
claims.close()
remove_dead_servers()

writer = Writer(recorder.faults, lambda: None)
writer.start()
event = {"event_id": "e-1", "event_type": "kernel_status", "data": {}}
writer.hand_over(lambda outbox: outbox.put(event, "another"))
writer.stop(5)
outbox = Outbox(get_outbox_file())
kept = outbox.count_events("another")["waiting"]
outbox.close()

time.sleep(0.1)
said += [cli.main([command]) for command in ("status", "what-is-recorded", "doctor", "leave")]
found = {
    "modules": len(modules),
    "said": said,
    "place": place.path,
    "file": place.file,
    "is_alive": is_alive,
    "kept": kept,
    "faults": list(recorder.faults),
    "folders": [str(get_config_dir()), str(get_data_dir())],
}
Path(root, "found.json").write_text(json.dumps(found), encoding="utf-8")
