"""WS /api/v1/courses/{course_id}/ws: a board's line to its class.

Promises: nobody hears a frame before the first message has proved who they are and that they are staff, and nobody
more than a minute after they stopped being so (at once where it is announced); each viewer keeps a place in the view's
ring, so a slow one costs nothing and is closed (1013) when it is 5 s or 256 kB behind.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
import structlog
from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from nbpulse import metrics
from nbpulse.api.context import Context, get_context, parse_id
from nbpulse.api.limits import find_address
from nbpulse.api.problems import make_problem
from nbpulse.errors import AccessDenied, NbpulseError, NotFound, TooMuch, Unavailable
from nbpulse.hub.projection import Projection
from nbpulse.hub.view import View
from nbpulse.identity import ask_as
from nbpulse.records.people import Person, Teams

NOT_SIGNED_IN: Final = 4401
NO_RIGHT: Final = 4403
TOO_SLOW: Final = 1013
TRY_LATER: Final = 1012
FIRST_MESSAGE_S: Final = 5.0
PING_S: Final = 20.0
RECHECK_S: Final = 55.0
BEHIND_S: Final = 5.0
BEHIND_BYTES: Final = 256_000

router = APIRouter()
_log = structlog.get_logger(__name__)


class ClientMessage(msgspec.Struct):
    """What a board says."""

    t: str
    ticket: str | None = None
    token: str | None = None
    epoch: str | None = None
    after_seq: int = 0
    notebook: str | None = None
    id: str | None = None
    view: Literal["board", "projector"] = "board"


class _Place(msgspec.Struct):
    """The number of a snapshot."""

    seq: int


_decode = msgspec.json.Decoder(ClientMessage).decode
_decode_place = msgspec.json.Decoder(_Place).decode


class _Closed(Exception):
    """The connection is to be closed with a code."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(str(code))


@router.websocket("/api/v1/courses/{course_id}/ws")
async def watch_classroom(websocket: WebSocket, course_id: str) -> None:
    """Serve one board until it leaves."""
    context = get_context(websocket)
    if "origin" in websocket.headers and not context.gate.is_own_origin(websocket):
        context.trail.note_refusal(AccessDenied("NB-1107"), websocket)
        await websocket.close(NO_RIGHT)
        return
    address = find_address(websocket.scope)
    try:
        context.limits.meet_address(address)
        with context.boards.proving(address):
            await websocket.accept()
            course = parse_id(course_id)
            hello = await _read_hello(websocket)
            person = websocket.state.person = await _prove(context, hello, course, address)
        ask_as(person.user_id)
        with context.boards.watching(person.user_id) as rights_changed:
            notebook_id = parse_id(hello.notebook) if hello.notebook else None
            view = await context.hub.open_view(course, notebook_id, person.teams.get(course))
            board = _Board(websocket, context, person, course, view, rights_changed=rights_changed)
            board.follows_default = notebook_id is None
            board.is_projector = hello.view == "projector"
            await board.serve(hello)
    except WebSocketDisconnect:
        return
    except (_Closed, NbpulseError) as end:
        if isinstance(end, TooMuch) and websocket.application_state is WebSocketState.CONNECTING:
            await websocket.send_denial_response(make_problem(end, websocket.headers.get("accept-language")))
            return
        if isinstance(end, NbpulseError):
            context.trail.note_refusal(end, websocket)
        await _close(websocket, _find_close_code(end))


def _find_close_code(end: Exception) -> int:
    if isinstance(end, _Closed):
        return end.code
    if isinstance(end, AccessDenied):
        return NOT_SIGNED_IN if end.code in ("NB-1101", "NB-1161", "NB-1190") else NO_RIGHT
    return NO_RIGHT if isinstance(end, NotFound) else TRY_LATER


async def _close(websocket: WebSocket, code: int) -> None:
    try:
        async with asyncio.timeout(1):
            await websocket.close(code)
    except (RuntimeError, WebSocketDisconnect, TimeoutError):
        return  # it is gone already


async def _read_hello(websocket: WebSocket) -> ClientMessage:
    try:
        async with asyncio.timeout(FIRST_MESSAGE_S):
            message = await _read_message(websocket)
    except TimeoutError as error:
        raise _Closed(NOT_SIGNED_IN) from error
    if message.t != "hello":
        raise _Closed(NOT_SIGNED_IN)
    return message


async def _read_message(websocket: WebSocket) -> ClientMessage:
    try:
        return _decode(await websocket.receive_text())
    except (msgspec.DecodeError, RecursionError, KeyError) as error:
        raise _Closed(1003) from error  # no text, or none that we speak


async def _prove(context: Context, hello: ClientMessage, course_id: UUID, address: str) -> Person:
    """Who says hello, as staff of the course."""
    if hello.ticket:
        ticket = await context.cache.use_ticket(hello.ticket)
        if ticket is None or ticket.course_id != course_id:
            raise AccessDenied("NB-1190")
        return await context.gate.find_staff(ticket.token_id, course_id)
    person = await context.gate.find_person(hello.token, address)
    return await context.gate.find_staff(person.token_id, course_id)


class _Board:
    """One board's connection: what it shows, and how far it has heard."""

    def __init__(
        self,
        websocket: WebSocket,
        context: Context,
        person: Person,
        course_id: UUID,
        view: View,
        *,
        rights_changed: asyncio.Event,
    ) -> None:
        self.follows_default = True
        self.is_projector = False
        self._websocket = websocket
        self._context = context
        self._person = person
        self._course_id = course_id
        self._view = view
        self._rights_changed = rights_changed
        self._wake = asyncio.Event()
        self._heard_seq: int | None = None  # None: it reads a snapshot and says "resume" after it
        self._turn = 0  # rises with each jump of `_heard_seq`
        self._id = secrets.token_hex(8)
        self._name: str | None = None

    async def serve(self, hello: ClientMessage) -> None:
        """Send frames and read messages until either side ends. Raises _Closed, WebSocketDisconnect."""
        metrics.live_viewers.inc()
        self._view.viewers.add(self._wake)
        try:
            await self._send({"t": "hello", "epoch": self._view.epoch, "seq": self._shown.seq})
            if hello.epoch is None:
                self._place(self._shown.seq)  # it has no snapshot to go on from: from now on
            elif hello.epoch == self._view.epoch:
                await self._resume(hello)
            await self._run()
        finally:
            self._view.viewers.discard(self._wake)
            metrics.live_viewers.dec()
            await self._forget()

    async def _run(self) -> None:
        """All four loops; the first to end, ends all, with its reason."""
        loops = (self._write(), self._read(), self._watch_pace(), self._renew())
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            self._wake.clear()
            if self._view.is_gone:
                await self._prove_again()  # it may be gone because they see other students now
                await self._show(None if self.follows_default else self._view.notebook_id)
            elif self.follows_default and self._view.is_left:
                await self._show(None)
            if not await self._send_next():
                await self._wake.wait()

    async def _send_next(self) -> bool:
        """Send what the viewer has not heard; False when there was nothing."""
        turn = self._turn
        if self._heard_seq is None:
            return False
        frames = self._shown.frames_after(self._heard_seq)
        if frames is None:
            await self._ask_for_snapshot()
            return False
        for frame in frames:
            await self._websocket.send_text(frame.text)
            if turn != self._turn:
                return True  # meanwhile it resumed elsewhere
            self._heard_seq = frame.seq
        return bool(frames)

    async def _read(self) -> None:
        while True:
            message = await _read_message(self._websocket)
            if message.t == "resume":
                await self._resume(message)
            elif message.t == "notebook":
                self.follows_default = message.id is None
                await self._show(parse_id(message.id) if message.id else None)

    async def _watch_pace(self) -> None:
        """Close who does not keep up."""
        while True:
            await asyncio.sleep(1)
            behind = self._shown.frames_after(self._heard_seq) if self._heard_seq is not None else None
            if behind and (
                time.monotonic() - behind[0].made_at > BEHIND_S
                or sum(len(frame.text) for frame in behind) > BEHIND_BYTES
            ):
                raise _Closed(TOO_SLOW)

    async def _renew(self) -> None:
        """Pings, the entry in the list of connections, and whether the viewer may still look."""
        checked_at = time.monotonic()
        while True:
            if not self.is_projector:
                self._context.trail.note_look(self._person.user_id, self._course_id)
            await self._announce()
            is_changed = await self._wait_for_change(PING_S)
            await self._send({"t": "ping", "at": round(time.time() * 1000)})
            if is_changed or time.monotonic() - checked_at + PING_S > RECHECK_S:
                try:
                    await self._prove_again()
                except Unavailable as error:
                    _log.warning("sockets.not_rechecked", code=error.code)
                    checked_at = float("-inf")  # asked again at the next ping
                else:
                    checked_at = time.monotonic()

    async def _wait_for_change(self, timeout_s: float) -> bool:
        """Whether in that time somebody said that the viewer's rights are others now."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._rights_changed.wait()
        except TimeoutError:
            return False
        self._rights_changed.clear()
        return True

    async def _prove_again(self) -> None:
        """Whether the viewer may still look, and at whom. Raises as `Gate.find_staff`."""
        self._person = await self._context.gate.find_staff(self._person.token_id, self._course_id)
        if self._teams != self._view.teams and not self._view.is_gone:
            await self._show(None if self.follows_default else self._view.notebook_id)

    @property
    def _shown(self) -> View | Projection:
        """Whose frames this board is sent."""
        return self._view.projection if self.is_projector else self._view

    @property
    def _teams(self) -> Teams | None:
        """Whose students the viewer sees; None: all."""
        return self._person.teams.get(self._course_id)

    async def _resume(self, message: ClientMessage) -> None:
        if message.epoch and message.epoch != self._view.epoch:
            # The snapshot was read of the class's notebook, which may be another by now.
            view = self._context.hub.find_view(self._course_id, message.epoch, self._teams)
            if view is not None:
                self._move(view)
        if message.epoch != self._view.epoch:
            await self._send_snapshot()
        elif self._shown.frames_after(message.after_seq) is not None:
            self._place(message.after_seq)
        else:
            await self._ask_for_snapshot()

    async def _show(self, notebook_id: UUID | None) -> None:
        """Another notebook: the board reads its snapshot and resumes from there."""
        view = await self._context.hub.open_view(self._course_id, notebook_id, self._teams)
        if view is not self._view:
            self._move(view)
            await self._ask_for_snapshot()

    def _move(self, view: View) -> None:
        self._view.viewers.discard(self._wake)
        self._view = view
        self._place(None)
        view.viewers.add(self._wake)

    def _place(self, seq: int | None) -> None:
        self._heard_seq = seq
        self._turn += 1
        self._wake.set()

    async def _ask_for_snapshot(self) -> None:
        self._place(None)
        await self._send({"t": "resync"})

    async def _send_snapshot(self) -> None:
        """
        For a board whose snapshot is another process's: behind a proxy, asking again might lead there again and again.
        """
        self._place(None)
        turn, snapshot = self._turn, self._shown.encode_snapshot()
        await self._websocket.send_text(f'{{"t":"snapshot","snapshot":{snapshot.decode()}}}')
        if turn == self._turn:
            self._place(_decode_place(snapshot).seq)

    async def _send(self, message: dict[str, Any]) -> None:
        await self._websocket.send_text(msgspec.json.encode(message).decode())

    async def _announce(self) -> None:
        try:
            await self._context.cache.note_connection(self._id, self._person.user_id)
            if not self.is_projector:
                if self._name is None:
                    self._name, _ = await self._context.people.describe_person(self._person)
                await self._context.cache.announce_staff(self._course_id, self._person.user_id, self._name)
        except Unavailable as error:
            _log.debug("sockets.not_announced", code=error.code)

    async def _forget(self) -> None:
        try:
            await self._context.cache.forget_connection(self._id)
        except Unavailable as error:
            _log.debug("sockets.not_forgotten", code=error.code)  # swept later
