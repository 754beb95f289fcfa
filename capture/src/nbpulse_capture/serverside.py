"""Server-side execution (jupyter-collaboration with jupyter_server_nbmodel): which cell it is that runs.

There the server itself sends the request, so no websocket carries it and the kernel is told no cell. The run is
seen on IOPub like any other; its cell comes from nbmodel's own event stream, a logger of its own and not the
server's. It tells the cell and the document just before the kernel gets the request, one at a time for a kernel.
Without nbmodel all this is nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

CELL_EXECUTION = "https://events.jupyter.org/jupyter_server_nbmodel/cell_execution/v1"
MODULE = "jupyter_server_nbmodel"


def hook_into_nbmodel(
    find_path: Callable[[str], str | None],
    tell: Callable[[str | None, str, bool], None],
    on_fault: Callable[[Exception], None],
) -> bool:
    """
    Be told of cells about to run (True) or that have run (False), with their notebook's path; False without nbmodel.

    `find_path` gives the path of a file id, None where nobody knows it.
    """
    if find_spec(MODULE) is None:
        return False
    from importlib import import_module

    async def listen(*_: Any, **given: Any) -> None:
        try:
            data = given["data"]
            file_id = str(data["document_id"]).rpartition(":")[2]  # "json:notebook:<file id>"
            tell(find_path(file_id), str(data["cell_id"]), data["event_type"] == "execution_start")
        except Exception as error:  # noqa: BLE001 - nothing of ours may stop a server's run
            on_fault(error)

    logger: Any = import_module(f"{MODULE}.event_logger").event_logger
    logger.add_listener(schema_id=CELL_EXECUTION, listener=listen)
    return True


def make_path_finder(settings: dict[str, Any]) -> Callable[[str], str | None]:
    """Ask the server's file id manager, which may come after us."""

    def find_path(file_id: str) -> str | None:
        manager = settings.get("file_id_manager")
        path = manager.get_path(file_id) if manager is not None else None
        return str(path).strip("/") if path else None

    return find_path
