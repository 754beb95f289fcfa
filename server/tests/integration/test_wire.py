"""A simulated student's connection, on a real socket."""

from __future__ import annotations

import asyncio

import pytest

from nbpulse.simulator import wire as wires
from nbpulse.simulator.wire import Wire


async def test_an_answer_that_was_given_up_on_is_not_taken_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    may_answer = asyncio.Event()
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        while line := await reader.readline():
            path = line.split()[1].decode()
            await reader.readuntil(b"\r\n\r\n")
            if path == "/slow":
                await may_answer.wait()
            body = f'"{path}"'
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        wire = Wire(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert (await wire.ask("GET", "/first")).content == "/first"
        monkeypatch.setattr(wires, "_TIMEOUT_S", 0.05)
        with pytest.raises(TimeoutError):
            await wire.ask("GET", "/slow")
        may_answer.set()
        monkeypatch.setattr(wires, "_TIMEOUT_S", 30)
        assert (await wire.ask("GET", "/next")).content == "/next"
        wire.close()
        await asyncio.gather(*filter(None, serving))
