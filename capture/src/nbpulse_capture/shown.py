"""What a run shows, seen from inside its kernel: its size (ShownSize), and where the course collects output its text.

Every output of ipykernel's (streams, displays, results) is sent by one session; what it sends is looked at on its way
and always sent on. Told apart by the request that it answers, since async cells overlap.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from nbpulse_capture.contents import OUTPUT_TYPES, OutputText
from nbpulse_capture.faults import FaultLog

RUNS_LIMIT = 32


class ShownOutput:
    """One kernel's. Nothing is looked at while no run's output is wanted."""

    def __init__(self, faults: FaultLog) -> None:
        self._faults = faults
        self._wanted: dict[str, OutputText] = {}
        self._session: Any = None
        self._send: Callable[..., Any] | None = None

    def begin(self, session: Any, msg_id: str) -> None:
        """From now on, what this run shows is kept."""
        if self._session is None:
            self._session, self._send = session, session.send
            session.send = self._look
        self._wanted[msg_id] = OutputText()
        while len(self._wanted) > RUNS_LIMIT:  # runs whose end IPython never told
            del self._wanted[next(iter(self._wanted))]

    def end(self, msg_id: str) -> str:
        """What it has shown; nothing where nobody wanted to know."""
        if msg_id not in self._wanted:
            return ""
        try:
            sys.stdout.flush()  # waits until the thread that sends has sent
            sys.stderr.flush()
        except Exception as error:  # noqa: BLE001 - a student may have put anything there
            self._faults.note(error, "output")
        text = self._wanted.pop(msg_id).text
        if not self._wanted:
            self.detach()
        return text

    def detach(self) -> None:
        """Look at nothing any more."""
        if self._session is not None and self._session.send == self._look:
            self._session.send = self._send
            self._session = None

    def _look(self, stream: Any, msg_or_type: Any, content: Any = None, *rest: Any, **options: Any) -> Any:
        try:
            self._take(msg_or_type, content, options.get("parent") or (rest[0] if rest else None))
        except Exception as error:  # noqa: BLE001 - the output must reach the student, whatever breaks in here
            self._faults.note(error, "output")
        assert self._send is not None  # noqa: S101 - begin() set it
        return self._send(stream, msg_or_type, content, *rest, **options)

    def _take(self, msg_or_type: Any, content: Any, parent: Any) -> None:
        if isinstance(msg_or_type, dict):
            msg_type, content = msg_or_type.get("msg_type"), msg_or_type.get("content")
            parent = msg_or_type.get("parent_header")
        else:
            msg_type = msg_or_type
        if msg_type not in OUTPUT_TYPES or not isinstance(parent, dict) or not isinstance(content, dict):
            return
        msg_id = (parent.get("header") or parent).get("msg_id")
        if (shown := self._wanted.get(str(msg_id))) is not None:
            shown.take(str(msg_type), content)


class ShownSize:
    """
    How many bytes of output each run has sent, for a server that then need not receive them to know (kernels.py).

    Counted is the messages' content as it was serialized, by ipykernel's own threads; binary buffers are not.
    """

    def __init__(self, faults: FaultLog) -> None:
        self._faults = faults
        self._bytes: dict[str, int] = {}
        self._told: dict[str, dict[str, Any]] = {}
        self._session: Any = None
        self._serialize: Callable[..., list[bytes]] | None = None

    def begin(self, session: Any, msg_id: str) -> None:
        """Count what this run shows from now on."""
        if self._session is None:
            self._session, self._serialize = session, session.serialize
            session.serialize = self._look
        self._bytes[msg_id] = 0
        while len(self._bytes) > RUNS_LIMIT:
            self._forget(next(iter(self._bytes)))

    def tell_in(self, told: dict[str, Any], msg_id: str) -> None:
        """`output_bytes` is put into `told` when the run's `idle` is sent: its last lines come till then."""
        if msg_id in self._bytes:
            self._told[msg_id] = told

    def detach(self) -> None:
        """Look at nothing any more."""
        if self._session is not None and self._session.serialize == self._look:
            self._session.serialize = self._serialize
            self._session = None

    def _look(self, msg: Any, ident: Any = None) -> list[bytes]:
        assert self._serialize is not None  # noqa: S101 - begin() set it
        try:
            msg_type, parent_id = msg.get("msg_type"), str((msg.get("parent_header") or {}).get("msg_id"))
            if msg_type == "status" and parent_id in self._told and msg["content"].get("execution_state") == "idle":
                self._told[parent_id]["output_bytes"] = self._bytes[parent_id]
                self._forget(parent_id)
        except Exception as error:  # noqa: BLE001 - the message must go out, whatever breaks in here
            self._faults.note(error, "output")
            return self._serialize(msg, ident)
        parts = self._serialize(msg, ident)
        # Another thread may forget it meanwhile.
        if msg_type in OUTPUT_TYPES and (size_bytes := self._bytes.get(parent_id)) is not None:
            self._bytes[parent_id] = size_bytes + len(parts[-1])
        return parts

    def _forget(self, msg_id: str) -> None:
        self._bytes.pop(msg_id, None)
        self._told.pop(msg_id, None)
