"""One student's connection to the server, and what a sender that loses nothing does with the answers.

Plain HTTP/1.1 on asyncio streams: two hundred of these cost less than the server they speak to.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from nbpulse.errors import StartupError

_TIMEOUT_S = 15.0


class Answer(NamedTuple):
    """What the server said."""

    status: int
    content: Any
    retry_after_s: float


@dataclass
class Tally:
    """What became of everything that was sent."""

    sent: int = 0
    accepted: int = 0
    rejected: int = 0
    put_off: int = 0
    longest_wait_s: float = 0.0
    ack_ms: list[float] = field(default_factory=list)


class Wire:
    """One kept-alive connection, one request at a time. A kept connection found closed is opened anew, once."""

    def __init__(self, url: str, token: str | None = None) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        if self._tls and self._host in {"127.0.0.1", "::1", "localhost"}:
            self._tls.check_hostname = False  # our own server on this machine; its certificate bears another name
            self._tls.verify_mode = ssl.CERT_NONE
        self._token = token
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def bear(self, token: str) -> None:
        """Send this token from now on."""
        self._token = token

    async def ask(
        self, method: str, path: str, content: object = None, content_type: str = "application/json"
    ) -> Answer:
        """One exchange; content that is bytes goes as it is. Raises OSError or TimeoutError when no answer came."""
        body = b"" if content is None else content if isinstance(content, bytes) else _encode(content)
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Length: {len(body)}\r\n"
        if body:
            head += f"Content-Type: {content_type}\r\n"
        if self._token:
            head += f"Authorization: Bearer {self._token}\r\n"
        async with self._lock, asyncio.timeout(_TIMEOUT_S):
            was_kept = self._streams is not None
            try:
                return await self._exchange(head.encode() + b"\r\n" + body)
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self.close()
                if not was_kept:
                    raise ConnectionError(f"{type(error).__name__}: {error}") from error
            return await self._exchange(head.encode() + b"\r\n" + body)

    async def _exchange(self, request: bytes) -> Answer:
        try:
            return await self._send(request)
        except asyncio.CancelledError:
            self.close()  # given up on: its answer would be taken for the next one's
            raise

    async def _send(self, request: bytes) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        reader, writer = self._streams
        writer.write(request)
        await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection", "").lower() == "close":
            self.close()
        try:
            parsed = json.loads(body) if body else None
        except ValueError:
            parsed = None
        return Answer(int(lines[0].split()[1]), parsed, float(headers.get("retry-after") or 1))

    def close(self) -> None:
        """Drop the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _encode(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


async def deliver(wire: Wire, events: Sequence[dict[str, Any]], tally: Tally) -> None:
    """
    Send until the server has answered for every event; refusals to wait are heeded, events keep their ids.

    Raises StartupError (NB-3021) when the server will never take them: token revoked, course gone.
    """
    tally.sent += len(events)
    first_try_s = time.perf_counter()
    delay_s = 0.2
    while True:
        started_s = time.perf_counter()
        try:
            answer = await wire.ask("POST", "/api/v1/events", list(events))
        except (OSError, TimeoutError):
            wire.close()
            answer = Answer(503, None, delay_s)
            delay_s = min(5.0, delay_s * 2)
        if answer.status in {202, 422} and isinstance(answer.content, dict):
            tally.ack_ms.append((time.perf_counter() - started_s) * 1000)
            tally.longest_wait_s = max(tally.longest_wait_s, time.perf_counter() - first_try_s)
            statuses = [result["status"] for result in answer.content["results"]]
            tally.rejected += statuses.count("rejected")
            tally.accepted += len(statuses) - statuses.count("rejected")
            return
        if answer.status not in {429, 503}:
            raise StartupError("NB-3021", url="/api/v1/events", detail=describe_refusal(answer))
        tally.put_off += 1
        await asyncio.sleep(answer.retry_after_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter


def describe_refusal(answer: Answer) -> str:
    """The server's own words, else the status."""
    content = answer.content if isinstance(answer.content, dict) else {}
    return f"{content.get('code', '')} {content.get('title') or f'HTTP {answer.status}'}".strip()


async def join(wire: Wire, url: str, join_code: str, name: str, number: str | None) -> dict[str, Any]:
    """Join the class; the wire bears the token afterwards. Raises StartupError (NB-3021)."""
    wanted = {"join_code": join_code, "display_name": name} | ({"student_number": number} if number else {})
    for attempt in range(20):
        try:
            answer = await wire.ask("POST", "/api/v1/join", wanted)
        except (OSError, TimeoutError) as error:
            if attempt == 19:
                raise StartupError("NB-3021", url=url, detail=str(error)) from error
            await asyncio.sleep(0.3)
            continue
        if answer.status == 201:
            joined: dict[str, Any] = answer.content
            wire.bear(joined["token"])
            return joined
        if answer.status not in {429, 503}:
            raise StartupError("NB-3021", url=url, detail=describe_refusal(answer))
        await asyncio.sleep(answer.retry_after_s)
    raise StartupError("NB-3021", url=url, detail="HTTP 503")
