"""A real worker in the test's own process, and waiting for what it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from nbpulse import worker
from nbpulse.errors import Unavailable
from nbpulse.resources import Resources
from nbpulse.stream import EventStream
from stores import count_rows


@asynccontextmanager
async def work(resources: Resources, *, claim_idle_s: float = 5) -> AsyncIterator[int]:
    """A worker in this process; the port of its /metrics."""
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(worker.run(resources, stop, claim_idle_s=claim_idle_s, announce=port.set_result))
    try:
        yield await port
    finally:
        stop.set()
        async with asyncio.timeout(15):
            await running


async def until(check: Callable[[], Awaitable[object]], limit_s: float = 60) -> None:
    async with asyncio.timeout(limit_s):
        while not await check():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.03)


async def is_drained(stream: EventStream) -> bool:
    try:
        return await stream.measure_backlog() == 0
    except Unavailable:
        return False


async def is_paid(database_url: str) -> bool:
    return await count_rows(database_url, "series_debt") == [0]
