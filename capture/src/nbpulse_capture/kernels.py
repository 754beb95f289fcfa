"""What one kernel publishes on IOPub, read by a socket of our own: KernelListener.

How much a run shows is told by our extension inside the kernel; where that does, and the course does not collect the
output itself, this server subscribes to none of it, and a flood of prints is sent once less. For other kernels it is
subscribed to all: output is then not parsed but measured, and the socket is emptied in one go instead of one message
per turn of the event loop. Signatures are not checked: who can speak on this
socket is the student's own kernel, and what it says is only ever told of that student.

What our extension inside the kernel says of a run comes with that run's `idle`, in the message's metadata: no message
more for anybody to send, carry and show.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

import zmq

from nbpulse_capture.contents import OUTPUT_TYPES, OutputText
from nbpulse_capture.execution import TOLD_PREFIX, name_told

DELIMITER = b"<IDS|MSG>"
AT_ONCE = 500
RECONNECT_MS = 5
EVERYTHING, ALL_BUT_OUTPUT = b"", b"kernel."  # beginnings of topics; of output only a run's result bears the second
TOLD_MARK = f'"{TOLD_PREFIX}'.encode()


class KernelVoice(Protocol):
    """Who is told what a kernel has said; times are the kernel's own."""

    def hear_start(self, msg_id: str, at: datetime, content: dict[str, Any]) -> bool:
        """`execute_input`; whether what the run shows is to be kept, beside its size"""

    def hear_error(self, msg_id: str, content: dict[str, Any]) -> None:
        """`error`"""

    def hear_told(self, msg_id: str, content: dict[str, Any]) -> None:
        """From our extension inside the kernel: `nbpulse_event`, or what came with a run's `idle`"""

    def wants_output(self) -> bool:
        """Whether the course collects what runs show"""

    def hear_end(self, msg_id: str, at: datetime, output_bytes: int, shown: str) -> None:
        """`status: idle` after a request to run something"""


class KernelListener:
    """The subscription to one kernel. Outlives restarts; reopened where the kernel got other ports."""

    def __init__(self, manager: Any, voice: KernelVoice, on_fault: Callable[[BaseException], None]) -> None:
        self._manager = manager
        self._voice = voice
        self._on_fault = on_fault
        self._ports: list[int] = []
        self._stream: Any = None
        self._running_id: str | None = None
        self._output_bytes: dict[str, int] = {}
        self._shown: dict[str, OutputText] = {}
        self._hears_output = True

    def open(self) -> None:
        """Listen from now on, as to a kernel that has just started; raises where it has no such socket (gateways)."""
        self._output_bytes.clear()
        self._shown.clear()
        if self._stream is not None and self._ports == list(self._manager.ports):
            self.hear_output(True)
            return
        self.close()
        self._ports = list(self._manager.ports)
        self._stream, self._hears_output = self._connect(), True
        # The stream's own handler takes one message a turn and looks at the socket three times for it.
        loop = self._stream.io_loop
        loop.remove_handler(self._stream.socket)
        loop.add_handler(self._stream.socket, self._receive, loop.READ)

    def _connect(self) -> Any:
        """
        The manager's own way, but for how soon it tries again: a kernel that starts is not there yet, and of what it
        says before it hears of us nothing is ever had. By default ZeroMQ lets 100 ms pass, a first run's time.
        """
        defaults = getattr(getattr(self._manager, "context", None), "sockopts", None)
        if defaults is None:
            return self._manager.connect_iopub()
        before = dict(defaults)
        defaults[zmq.RECONNECT_IVL] = RECONNECT_MS
        try:
            return self._manager.connect_iopub()
        finally:
            defaults.clear()
            defaults.update(before)

    def hear_output(self, is_wanted: bool) -> None:
        """Whether what the kernel shows is to come here at all, from now on."""
        if is_wanted == self._hears_output or self._stream is None or self._stream.closed():
            return
        subscribed, left = (EVERYTHING, ALL_BUT_OUTPUT) if is_wanted else (ALL_BUT_OUTPUT, EVERYTHING)
        self._stream.socket.setsockopt(zmq.SUBSCRIBE, subscribed)
        self._stream.socket.setsockopt(zmq.UNSUBSCRIBE, left)
        self._hears_output = is_wanted

    def close(self) -> None:
        """Listen no more."""
        if self._stream is not None and not self._stream.closed():
            self._stream.close(linger=0)
        self._stream = None

    def _receive(self, *_: Any) -> None:
        """The socket tells once that something has come: it must be emptied, but others have their turn meanwhile."""
        if not self.read() and self._stream is not None:
            self._stream.io_loop.add_callback(self._receive)

    def read(self) -> bool:
        """Tell of what has come; whether that was all."""
        if self._stream is None or self._stream.closed():
            return True
        socket = self._stream.socket
        for _ in range(AT_ONCE):
            try:
                self._take(socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return True
            except zmq.ZMQError as error:  # the socket itself: there is nothing more to be had of it now
                self._on_fault(error)
                return True
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not reach Jupyter's event loop
                self._on_fault(error)
        return False

    def _take(self, parts: list[bytes]) -> None:
        topic = parts[0]
        if topic.startswith((b"stream.", b"display_data", b"comm-")):
            if not topic.startswith(b"comm-"):
                self._measure(parts)
            return
        at = parts.index(DELIMITER)
        if topic.endswith(b".status") and b'"idle"' not in parts[at + 5]:
            return
        header = json.loads(parts[at + 2])
        msg_type = header["msg_type"]
        if msg_type in OUTPUT_TYPES:
            self._measure(parts)
            return
        if (msg_type == "status" and b'"idle"' not in parts[at + 5]) or b'"execute_request"' not in parts[at + 3]:
            return
        parent = json.loads(parts[at + 3])
        msg_id = str(parent["msg_id"])
        if msg_type == "status":
            told = json.loads(parts[at + 4]).get(name_told(msg_id)) if TOLD_MARK in parts[at + 4] else None
            self._end(msg_id, header, told if isinstance(told, dict) else {})
        else:
            self._tell(msg_type, msg_id, header, parts[at + 5])

    def _tell(self, msg_type: str, msg_id: str, header: dict[str, Any], raw: bytes) -> None:
        if msg_type == "execute_input":
            self._running_id, self._output_bytes[msg_id] = msg_id, 0
            if self._voice.hear_start(msg_id, read_time(header.get("date")), json.loads(raw)):
                self._shown[msg_id] = OutputText()
        elif msg_type == "error":
            self._voice.hear_error(msg_id, json.loads(raw))
        elif msg_type == "nbpulse_event":
            self._voice.hear_told(msg_id, json.loads(raw))

    def _end(self, msg_id: str, header: dict[str, Any], told: dict[str, Any]) -> None:
        if told:
            self._voice.hear_told(msg_id, told)
        if self._running_id == msg_id:
            self._running_id = None
        shown = self._shown.pop(msg_id).text if msg_id in self._shown else ""
        is_a_run, heard_bytes = msg_id in self._output_bytes, self._output_bytes.pop(msg_id, 0)
        told_bytes: Any = told.get("output_bytes")
        is_told = isinstance(told_bytes, int)
        self._voice.hear_end(msg_id, read_time(header.get("date")), told_bytes if is_told else heard_bytes, shown)
        if is_told or is_a_run:  # a silent request says nothing of the kernel
            self.hear_output(self._voice.wants_output() or not is_told)

    def _measure(self, parts: list[bytes]) -> None:
        """Add to the run that shows it; the parent is only parsed where it is not the run that began last."""
        at = parts.index(DELIMITER)
        msg_id = self._running_id
        if msg_id is None or msg_id.encode() not in parts[at + 3]:
            msg_id = json.loads(parts[at + 3]).get("msg_id")
        if msg_id in self._output_bytes:
            self._output_bytes[msg_id] += sum(map(len, parts[at + 5 :]))
        if msg_id in self._shown and not self._shown[msg_id].is_full:
            self._shown[msg_id].take(json.loads(parts[at + 2])["msg_type"], json.loads(parts[at + 5]))


def read_time(text: object) -> datetime:
    """A message's own time; now, where it bears none that can be read."""
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    return found.astimezone(UTC) if found is not None and found.tzinfo is not None else datetime.now(UTC)
