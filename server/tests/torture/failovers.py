"""A primary of a cluster dies while its replica lags: what of that which was called accepted is there afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass, field
from uuid import uuid4

from clusters import ValkeyCluster
from nbpulse.connections import open_redis
from nbpulse.errors import Unavailable
from nbpulse.stream import STREAM_KEYS, EventStream
from nbpulse.stream.copying import StreamCopy

# What a replica that stands still has not read waits in the sockets' buffers, some MB of it, and survives its sender:
# only beyond these anything can be lost. So an entry is as large as a cell's source with a long output.
PAYLOAD_BYTES = 16_000
PAUSE_S = 2.0
_CALLERS = 24


@dataclass
class Failover:
    """One run: counts of entries at the server that died, seconds, and how the other servers' callers fared."""

    accepted: int = 0
    refused: int = 0
    lost: int = 0
    takeover_s: float = 0.0
    outage_s: float = 0.0
    beside_accepted: int = 0
    beside_refused: int = 0
    codes: set[str] = field(default_factory=set)


async def run_failover(cluster: ValkeyCluster, *, confirms: bool) -> Failover:
    """
    Load, the replica stopped, the primary killed, the replica let go, the killed one started again, all compared.

    From the kill, `takeover_s` is until the replica serves in its stead, `outage_s` until it has accepted an entry: one
    that needs a confirmation does so only once the killed one is back, as its replica.
    """
    found = Failover()
    async with open_redis(cluster.url) as redis:
        await redis.flushall()
        stream, copy = EventStream(redis, backlog_limit=10**9, confirms=confirms), StreamCopy(redis)
        primary = (await cluster.find_primaries())[0]
        replica = await cluster.find_replica(primary)
        owners = {key: await cluster.find_owner(key) for key in STREAM_KEYS["events"]}
        own = [key for key, owner in owners.items() if owner is primary]
        others = [key for key, owner in owners.items() if owner is not primary]
        accepted: set[bytes] = set()
        first_after: list[float] = []
        killed_s, is_over, is_beside_over = float("inf"), False, False

        async def send(keys: list[bytes], *, is_own: bool) -> None:
            number = 0
            while not (is_over if is_own else is_beside_over):
                number += 1
                name = uuid4().bytes
                asked_s = time.monotonic()
                try:
                    await stream.append_payloads([(keys[number % len(keys)], name.ljust(PAYLOAD_BYTES, b"."))])
                except Unavailable as error:
                    found.codes.add(error.code)
                    found.refused += is_own
                    found.beside_refused += not is_own
                    await asyncio.sleep(0.05)
                    continue
                accepted.add(name)
                found.accepted += is_own
                found.beside_accepted += not is_own
                if is_own and asked_s > killed_s:
                    first_after.append(time.monotonic())

        callers = [asyncio.create_task(send(own, is_own=True)) for _ in range(_CALLERS)]
        beside = [asyncio.create_task(send(others, is_own=False)) for _ in range(2)]
        await asyncio.sleep(1.0)
        os.kill(replica.pid, signal.SIGSTOP)
        await asyncio.sleep(PAUSE_S)
        os.kill(primary.pid, signal.SIGKILL)
        killed_s = time.monotonic()
        os.kill(replica.pid, signal.SIGCONT)
        primary.stop()
        await cluster.await_successor(replica)
        found.takeover_s = time.monotonic() - killed_s
        is_beside_over = True
        await asyncio.gather(*beside)  # starting a server holds up this process, and with it its callers
        await cluster.bring_back(primary)
        async with asyncio.timeout(60):
            while not first_after:  # noqa: ASYNC110 - of two dozen callers whoever comes first
                await asyncio.sleep(0.05)
        found.outage_s = first_after[0] - killed_s
        is_over = True
        await asyncio.gather(*callers)
        present = {entry.fields[1][:16] async for batch in copy.read() for entry in batch}
        found.lost = len(accepted - present)
        await stream.close()
        await copy.close()
    return found
