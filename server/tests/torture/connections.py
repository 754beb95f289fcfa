"""Plain HTTP/1.1 over one kept-alive connection: as little between the test and the server as can be."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

# The tests' own certificates: nobody has signed them.
TRUSTING = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TRUSTING.check_hostname = False
TRUSTING.verify_mode = ssl.CERT_NONE


class UnansweredError(Exception):
    """No whole answer came: nobody knows what the server did with the request."""


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    def read(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Connection:
    """One connection that opens itself when needed. One request at a time; a failure closes it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._tls = TRUSTING if parts.scheme == "https" else None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, path: str, *, body: bytes = b"", token: str = "", headers: str = "", deadline_s: float = 10
    ) -> Answer:
        """One answer. Raises UnansweredError when none came whole within the deadline."""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n{headers}"
        if token:
            head += f"Authorization: Bearer {token}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        try:
            async with asyncio.timeout(deadline_s):
                reader, writer = self._streams or await self._open()
                writer.write(head.encode() + b"\r\n" + body)
                await writer.drain()
                return await self._read(reader)
        except (OSError, TimeoutError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            raise UnansweredError(f"{type(error).__name__}: {error}") from error
        except BaseException:
            self.close()
            raise

    async def post(self, path: str, content: object, *, token: str = "", deadline_s: float = 10) -> Answer:
        """`content` as JSON."""
        body = json.dumps(content, separators=(",", ":")).encode()
        return await self.request("POST", path, body=body, token=token, deadline_s=deadline_s)

    def close(self) -> None:
        """Forget the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 22, ssl=self._tls)
        return self._streams

    async def _read(self, reader: asyncio.StreamReader) -> Answer:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Answer(int(lines[0].split(" ", 2)[1]), headers, body)


async def get(url: str, *, token: str = "", deadline_s: float = 5) -> Answer:
    """One GET on a connection of its own."""
    connection = Connection(url)
    parts = urlsplit(url)
    path = parts.path or "/"
    try:
        return await connection.request(
            "GET", f"{path}?{parts.query}" if parts.query else path, token=token, deadline_s=deadline_s
        )
    finally:
        connection.close()
