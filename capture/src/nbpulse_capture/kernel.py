"""The IPython kernel extension: sees each run begin and end, writes both to the outbox, wakes the sender.

Where a Jupyter server with our extension observes this kernel (claims.py), it only adds to what that server sees: the
exact duration and what went wrong, in the metadata of the run's own last messages, so that there is none more to send,
to carry and to show. It writes nothing and starts no thread then. Whether it is so is asked at each run anew, so a
server that dies or breaks silences nobody.

Promises to the student: nothing of ours is ever raised or printed into the notebook (faults are counted and
shown by `%nbpulse status`), no run gets slower by more than a millisecond, and nothing is recorded before
joining. Where the course collects source or output, these are masked before they are written, which takes longer the
longer they are.

Why the callbacks write to disk themselves instead of handing over to a thread: it is one `write` (journal.py), and in
return a kernel that is killed in mid-run has lost nothing. What both callbacks of a run cost: bench/capture_cost.py.

Runs are paired by their request's msg_id, since async cells and subshells overlap. Not recorded: silent
requests, requests that keep no history, empty cells, `%nbpulse` itself, and batch runs (nbclient,
papermill, autograders: no cell id and no notebook session, or a kernel started from within a kernel),
consoles.
"""

from __future__ import annotations

import _thread
import asyncio
import atexit
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbpulse_capture.claims import KernelClaim
from nbpulse_capture.consent import Allowance, AllowanceFile
from nbpulse_capture.contents import fit_contents
from nbpulse_capture.execution import (
    ExecutionResult,
    Run,
    describe_event,
    describe_execution,
    describe_start,
    find_kernel_id,
    format_time,
    name_told,
)
from nbpulse_capture.faults import FaultLog
from nbpulse_capture.journal import Journal
from nbpulse_capture.membership import MembershipFile, get_outbox_file
from nbpulse_capture.notebook import VSCODE_SCHEME, NotebookPlace, locate_notebook, locate_vscode
from nbpulse_capture.policy import apply_policy
from nbpulse_capture.sender import Sender
from nbpulse_capture.shown import ShownOutput, ShownSize
from nbpulse_capture.sitting import Sitting
from nbpulse_capture.websocket import describe_cell, describe_marks, is_our_magic

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

FLUSH_AT_EXIT_S = 2.0
UNKNOWN_NOTEBOOK = "unknown"
INSIDE_KERNEL_VARIABLE = "NBPULSE_CAPTURE_KERNEL_PID"


class Recorder:
    """One kernel's observer; what IPython calls of it raises nothing."""

    def __init__(
        self, shell: InteractiveShell, *, kernel_id: uuid.UUID, place: NotebookPlace | None, is_nested: bool
    ) -> None:
        self._shell = shell
        self._kernel_id = kernel_id
        self._place = place
        self._is_nested = is_nested
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open_runs: dict[str, Run] = {}
        self._quiet = threading.Event()  # set while there is no open run
        self._quiet.set()
        self._allowance_file = AllowanceFile()
        self._sitting = Sitting(time.time())
        self._claim = KernelClaim(str(kernel_id))
        self._has_told_start = self._has_started_sender = False
        self.last_cell: dict[str, Any] = {}
        self._is_a_notebook = place is not None and place.path.endswith(".ipynb") and not is_nested
        self.faults = FaultLog()
        self.journal = Journal(self.faults)
        self._shown, self._size = ShownOutput(self.faults), ShownSize(self.faults)
        self._told_fault_count = 0
        self.sender = Sender(
            get_outbox_file(),
            MembershipFile(),
            describe_presence=self._describe_presence,
            journal=self.journal,
            quiet=self._quiet,
            settle_s=1.0,
        )

    # -- called by IPython -------------------------------------------------------------------------------

    def note_load(self) -> None:
        """The kernel has started."""
        self._quietly(self._note_load)

    def before_run(self, info: Any) -> None:
        """`pre_run_cell`."""
        self._quietly(lambda: self._before_run(info), hands_on_interrupt=True)

    def after_run(self, result: ExecutionResult | None) -> None:
        """`post_run_cell`."""
        ended_at_s = time.perf_counter()
        propagating = sys.exc_info()[1]
        self._quietly(lambda: self._after_run(result, ended_at_s, propagating))

    def note_exit(self) -> None:
        """The kernel ends in good order: say so and send what waits, for at most two seconds."""
        self._quietly(self._note_exit)

    def _quietly(self, action: Callable[[], None], *, hands_on_interrupt: bool = False) -> None:
        if os.getpid() != self._pid:
            return  # a process forked off by the student's code is not this kernel
        try:
            action()
        except KeyboardInterrupt:  # it was meant for the cell that is about to run: hand it on to that
            if hands_on_interrupt:
                threading.Timer(0.02, _thread.interrupt_main).start()
        except BaseException as error:  # noqa: BLE001 - the promise: nothing of ours appears in a notebook
            self.faults.note(error)

    # -- what they do -------------------------------------------------------------------------------------

    def _note_load(self) -> None:
        if self._claim.is_held():
            return
        if self._is_a_notebook and self._allowance_file.read().membership is not None:
            self.put("kernel_status", self.describe_place(), {"status": "started"})
            self._has_told_start = True
        self._start_sender()

    def _before_run(self, info: Any) -> None:
        parent = self._get_parent()
        msg_id = parent.get("header", {}).get("msg_id")
        if info.silent or not info.store_history or not msg_id:
            return
        metadata = parent.get("metadata") or {}
        cell_id = getattr(info, "cell_id", None) or metadata.get("cellId")
        if self._is_nested or (cell_id is None and not self._is_a_notebook) or is_our_magic(info.raw_cell):
            return
        allowance = self._allowance_file.read()
        if allowance.is_paused:  # a run that begins in a pause is not recorded, whenever it ends
            self._sitting.session_id = None  # nor missed: what the kernel counts meanwhile is in no sitting
            return
        with self._lock:
            if (open_run := self._open_runs.get(msg_id)) is not None:
                open_run.depth += 1  # the cell itself calls run_cell(): still one run
                return
            run = Run(self._kernel_id, msg_id, {}, began_at=format_time())
            self._open_runs[msg_id] = run
            self._quiet.clear()
        if isinstance(cell_id, str) and cell_id.startswith(VSCODE_SCHEME):
            self._place = locate_vscode(cell_id) or self._place
        run.common = self.describe_place() | describe_cell(cell_id, metadata)
        run.marks = describe_marks(metadata)
        self.last_cell = run.common
        if self._claim.is_held():
            self._size.begin(self._shell.kernel.session, msg_id)  # type: ignore[attr-defined]
        else:
            self._tell_start(run, allowance)
            self._look_at_contents(run, info.raw_cell, allowance)
        run.started_at_s = time.perf_counter()

    def _tell_start(self, run: Run, allowance: Allowance) -> None:
        run.common["session_id"] = self._keep_session(run.common, allowance)
        run.is_told = True
        self._store(describe_start(run), allowance)
        self._wake_sender()

    def _look_at_contents(self, run: Run, source: str, allowance: Allowance) -> None:
        """Source and output are looked at only where the course collects them and the student knows."""
        if allowance.policy.wants("source"):
            run.source = source
        if allowance.policy.wants("output"):
            self._shown.begin(self._shell.kernel.session, run.msg_id)  # type: ignore[attr-defined]

    def _after_run(self, result: ExecutionResult | None, ended_at_s: float, propagating: BaseException | None) -> None:
        msg_id = self._get_parent().get("header", {}).get("msg_id")
        with self._lock:
            run = self._open_runs.get(msg_id)
            if run is None:
                return
            run.depth -= 1
            if run.depth > 0:
                return
            del self._open_runs[msg_id]
        end = describe_execution(
            run,
            result,
            duration_ms=(ended_at_s - run.started_at_s) * 1000 if run.started_at_s else 0.0,
            propagating=propagating,
            display_error=self._get_display_error(),
            name_cell=self._name_cell,
        )
        allowance = self._allowance_file.read()
        if self._claim.is_held() and allowance.membership is not None:
            self._tell_server(msg_id, {"run": end["data"]})
        else:  # also where the server has gone in mid-run; a start that it did tell is not told twice
            if not run.is_told:
                self._tell_start(run, allowance)
            if run.source:
                end["data"]["source"] = run.source
            if output := self._shown.end(msg_id):
                end["data"]["output"] = output
            self._store(end | {"session_id": run.common["session_id"]}, allowance)
            self._wake_sender()
        if not self._open_runs:
            self._quiet.set()
        self._sitting.active_at_s = time.time()

    def _note_exit(self) -> None:
        """Who told of the beginning tells of the end."""
        if self._sitting.session_id is not None:
            place = self.describe_place() | {"session_id": self._sitting.session_id}
            self.put("session_end", place, {})
        if self._has_told_start or self._sitting.session_id is not None:
            self.put("kernel_status", self.describe_place(), {"status": "stopped"})
        self._shown.detach()
        self._size.detach()
        self.sender.stop(FLUSH_AT_EXIT_S)
        self.journal.close()

    def put(self, event_type: str, common: dict[str, Any], data: dict[str, Any]) -> str:
        """Store an event that is no execution and wake the sender; gives its id."""
        event = describe_event(event_type, common, data)
        if event_type in {"help_request", "help_cancel"} and self._claim.is_held():
            self._publish({"event": event})
        else:
            self._store(event, self._allowance_file.read())
            self._wake_sender()
        return str(event["event_id"])

    def _tell_server(self, msg_id: str, content: dict[str, Any]) -> None:
        """
        Of a run that ends: its reply and its `idle`, which carry this, are sent before the event loop turns again.

        Both the session's default metadata and the order are ipykernel's; a kernel without a loop sends a message.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._publish(content)
            return
        metadata, name = self._shell.kernel.session.metadata, name_told(msg_id)  # type: ignore[attr-defined]
        metadata[name] = self._add_faults(content)
        self._size.tell_in(content, msg_id)
        loop.call_soon(metadata.pop, name, None)

    def _add_faults(self, content: dict[str, Any]) -> dict[str, Any]:
        if self.faults.total != self._told_fault_count:
            self._told_fault_count = self.faults.total
            content["faults"] = list(self.faults)
        return content

    def _publish(self, content: dict[str, Any]) -> None:
        """Say something to the server that observes this kernel; front ends ignore what they do not know."""
        self._add_faults(content)
        kernel: Any = self._shell.kernel  # type: ignore[attr-defined]
        topic = kernel._topic("nbpulse_event")  # noqa: SLF001 - as ipykernel's own messages are named
        kernel.session.send(kernel.iopub_socket, "nbpulse_event", content, parent=kernel.get_parent(), ident=topic)

    def _start_sender(self) -> None:
        if not self._has_started_sender:
            self._has_started_sender = True
            self.sender.start()

    def _wake_sender(self) -> None:
        self._start_sender()
        self.sender.wake()

    def _store(self, event: dict[str, Any], allowance: Allowance) -> None:
        """What may be recorded, to disk before anything else."""
        membership, allowed = allowance.membership, apply_policy(event, allowance.policy)
        if membership is None or allowed is None:
            return
        self.journal.put(fit_contents(allowed), membership.account, self._place.file if self._place else None)

    def _keep_session(self, common: dict[str, Any], allowance: Allowance) -> str:
        """The learning session's id; a new one is told of."""
        session_id, is_new = self._sitting.keep(time.time(), others_run=len(self._open_runs) > 1)
        if is_new:
            place = {name: common.get(name) for name in ("notebook_path", "notebook_id")}
            self._store(describe_event("session_start", place | {"session_id": session_id}, {}), allowance)
        return session_id

    def describe_place(self) -> dict[str, Any]:
        """The notebook's part of the envelope."""
        path = self.last_cell.get("notebook_path") or (self._place.path if self._place else UNKNOWN_NOTEBOOK)
        return {"notebook_path": path, "notebook_id": None}

    def _describe_presence(self) -> dict[str, Any] | None:
        """Nothing where a server tells of this kernel's student, or where there is none."""
        if not (self._is_a_notebook or self._sitting.session_id) or self._claim.is_held():
            return None
        state = self._sitting.judge_presence(time.time(), is_running=bool(self._open_runs))
        common = self.describe_place() | {"session_id": self._sitting.session_id}
        return describe_event("presence", common, {"state": state}) if state else None

    def _get_parent(self) -> dict[str, Any]:
        kernel = getattr(self._shell, "kernel", None)
        parent: dict[str, Any] = (kernel.get_parent() if kernel is not None else None) or {}
        return parent

    def _get_display_error(self) -> BaseException | None:
        """What went wrong while the result was being shown: the student sees it as the run's error."""
        if getattr(self._shell, "_last_traceback_during_displayhook", False):
            return getattr(sys, "last_value", None)
        return None

    def _name_cell(self, file: str) -> int | None:
        names: dict[str, int] = getattr(self._shell.compile, "_filename_map", {})
        return names.get(file)


_recorder: Recorder | None = None


def get_recorder() -> Recorder | None:
    """This kernel's recorder, for the magic."""
    return _recorder


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Called by IPython at kernel start (or by `%load_ext`); in a plain terminal IPython it does nothing."""
    global _recorder
    if _recorder is not None or getattr(shell, "kernel", None) is None:
        return
    try:
        _recorder = _open_recorder(shell)
        from nbpulse_capture.magic import protect_question, run_magic

        shell.register_magic_function(run_magic, "line", "nbpulse")  # type: ignore[arg-type]
        shell.events.register("pre_run_cell", _recorder.before_run)
        shell.events.register("post_run_cell", _recorder.after_run)
        atexit.register(_recorder.note_exit)
        shell.input_transformers_cleanup.append(protect_question)
        _recorder.note_load()
    except Exception as error:  # noqa: BLE001 - a kernel must start, with us or without
        if _recorder is not None:
            _recorder.faults.note(error)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """`%unload_ext nbpulse_capture`: send what waits and observe no more."""
    global _recorder
    if _recorder is None:
        return
    from nbpulse_capture.magic import protect_question

    shell.events.unregister("pre_run_cell", _recorder.before_run)
    shell.events.unregister("post_run_cell", _recorder.after_run)
    shell.input_transformers_cleanup.remove(protect_question)
    atexit.unregister(_recorder.note_exit)
    _recorder.note_exit()
    _recorder = None


def _open_recorder(shell: InteractiveShell) -> Recorder:
    connection_file = str(shell.config.get("IPKernelApp", {}).get("connection_file") or "")
    if not connection_file:
        from ipykernel.connect import get_connection_file

        connection_file = get_connection_file()
    session_name = os.environ.get("JPY_SESSION_NAME")
    place = None
    if session_name:
        place = locate_notebook(session_name, connection_file, os.environ.get("JPY_PARENT_PID"))
    outer = os.environ.get(INSIDE_KERNEL_VARIABLE)
    is_nested = outer is not None and outer != str(os.getpid())
    os.environ[INSIDE_KERNEL_VARIABLE] = str(os.getpid())
    return Recorder(shell, kernel_id=find_kernel_id(connection_file), place=place, is_nested=is_nested)
