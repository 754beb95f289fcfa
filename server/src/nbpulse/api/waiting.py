"""Connections that keep the server waiting for a request: how long, and how many, are borne.

uvicorn lets a client take as long as it likes. Promises: a request's head is there within 5 s of the connection, or of
its first byte, and the whole request within 30 s of its head; the rest of a body that was refused is read for 2 s. At
most 2,000 connections are waited for, 1,000 of one address; beyond, the longest waiting is closed, so that somebody who
asks at once is served whatever others hold open. Connections beyond `most_open` are refused.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from nbpulse.allowances import group_address
from nbpulse.api.problems import make_problem
from nbpulse.errors import InvalidInput, NbpulseError, Unavailable
from nbpulse.metrics import CloseReason, closed_connections

HEAD_S: Final = 5.0
BODY_S: Final = 30.0
LINGER_S: Final = 2.0
HEAD_BYTES_MAX: Final = 65_536


class Waiting:
    """The connections of one server that it waits for, the longest waiting first."""

    def __init__(self, *, most: int = 2_000, most_of_address: int = 1_000, most_open: int = 8_000) -> None:
        self.most_open = most_open
        self._most, self._most_of_address = most, most_of_address
        self._all: dict[PatientProtocol, None] = {}
        self._by_address: dict[str, dict[PatientProtocol, None]] = {}

    def __contains__(self, connection: PatientProtocol) -> bool:
        return connection in self._all

    def __len__(self) -> int:
        return len(self._all)

    def enter(self, connection: PatientProtocol) -> None:
        """It is waited for; where that makes too many, one of the others is closed."""
        self._all[connection] = None
        neighbours = self._by_address.setdefault(connection.address, {})
        neighbours[connection] = None
        if len(neighbours) > self._most_of_address:
            next(iter(neighbours)).end("crowded")
        elif len(self._all) > self._most:
            next(iter(self._all)).end("crowded")

    def leave(self, connection: PatientProtocol) -> None:
        """It is waited for no more; nothing where it was not."""
        if connection in self._all:
            del self._all[connection]
            neighbours = self._by_address[connection.address]
            del neighbours[connection]
            if not neighbours:
                del self._by_address[connection.address]

    def close_late(self) -> None:
        """Close all whose time is over."""
        now = asyncio.get_running_loop().time()
        for connection in [one for one in self._all if one.late_at is not None and one.late_at < now]:
            connection.end("late")


class PatientProtocol(HttpToolsProtocol):
    """One HTTP connection of a server that does not wait for ever."""

    def __init__(self, *, waiting: Waiting, **options: Any) -> None:
        super().__init__(**options)
        self.address = ""
        self.late_at: float | None = None
        """When it is closed unless what is waited for has come; None: it need not come (uvicorn's keep-alive)."""
        self._waiting = waiting
        self._is_in_head, self._is_refused = True, False
        self._head_bytes = self._heads = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse it or wait for its first request."""
        super().connection_made(transport)
        self.address = group_address(self.client[0]) if self.client else ""
        if len(self.connections) > self._waiting.most_open:
            closed_connections.labels("full").inc()
            self._refuse(Unavailable("NB-2020", limit=self._waiting.most_open))
        else:
            self._wait(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._waiting.leave(self)
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        """It is a WebSocket's from now on (sockets.py)."""
        self._waiting.leave(self)
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        """Some of a request came."""
        if self._is_refused:
            return
        if self.late_at is None and self in self._waiting:
            self.late_at = self.loop.time() + HEAD_S
        was_in_head, heads = self._is_in_head, self._heads
        super().data_received(data)
        if was_in_head and self._is_in_head and heads == self._heads:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                closed_connections.labels("head").inc()
                self._refuse(InvalidInput("NB-1175", limit=HEAD_BYTES_MAX))

    def on_headers_complete(self) -> None:
        """The head is there; its body may take longer."""
        self._is_in_head, self._head_bytes, self._heads = False, 0, self._heads + 1
        self.late_at = self.loop.time() + BODY_S
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The whole request is there: now it is we who are waited for."""
        self._is_in_head = True
        if self.cycle is None or not self.cycle.response_complete:
            self._waiting.leave(self)
        else:
            self.late_at = None  # answered before it was whole; uvicorn's keep-alive
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Answered: it may ask again, or has to finish a body that nobody reads."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.cycle.more_body:
            self._wait(LINGER_S if self.cycle.response_complete else BODY_S)
        elif self.cycle.response_complete:
            # What it does not take in time, of an answer that is still here, is not kept for it either.
            self._wait(BODY_S if self.transport.get_write_buffer_size() else None)

    def end(self, reason: CloseReason) -> None:
        """Close it, telling who has begun a request why."""
        self._waiting.leave(self)
        if self._is_refused:
            self.transport.abort()
            return
        closed_connections.labels(reason).inc()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        elif reason == "late" and self._is_late_within_a_request():
            self._refuse(InvalidInput("NB-1176", head_s=HEAD_S, body_s=BODY_S))
        else:
            self.transport.close()

    def _is_late_within_a_request(self) -> bool:
        """Whether it has begun one that nobody has answered: a connection that is kept open only is told nothing."""
        has_begun = bool(self._head_bytes) if self._is_in_head else True
        return has_begun and (self.cycle is None or self._is_in_head or not self.cycle.response_started)

    def _wait(self, patience_s: float | None) -> None:
        self._waiting.leave(self)  # and last in line again
        self.late_at = None if patience_s is None else self.loop.time() + patience_s
        self._waiting.enter(self)

    def _refuse(self, error: NbpulseError) -> None:
        """Answer, and read on for a moment without heeding it: else the answer is lost with what was on its way."""
        if self.transport.is_closing():
            return
        self._is_refused = True
        self.transport.write(_write_out(make_problem(error, None)))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait(LINGER_S)


def _write_out(answer: Response) -> bytes:
    """The answer as it goes over the wire, for a connection that the application never sees."""
    head = [STATUS_LINE[answer.status_code], b"connection: close\r\n"]
    head += [b"%s: %s\r\n" % header for header in answer.raw_headers]
    return b"".join([*head, b"\r\n", bytes(answer.body)])
