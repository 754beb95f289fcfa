"""What is measured, and how: throughput, acknowledgement, frames with memory, start.

Each function measures one system once and answers plain figures (ms, events/s, MB); run.py alternates the systems.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from load import Load, make_posts, make_visible_posts
from systems import Nbpulse, System, measure_cpu_s, measure_pss
from viewers import Audience

BATCH_EVENTS = 50
VIEWERS = 20
_CONNECTIONS = {1: 64, BATCH_EVENTS: 8}
_RAMP_S = 3.0
_DRAIN_S = 60.0
# Of stored events a second: so much may be accepted and not yet stored before the closed loop waits.
_AHEAD_S = 0.5
_AHEAD_MIN = 400

Figures = dict[str, Any]


def find_percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 10_000) * len(ordered) // 10_000) - 1)]


def _describe_ms(latencies_s: Sequence[float]) -> Figures:
    found = {"p50_ms": find_percentile(latencies_s, 0.5), "p99_ms": find_percentile(latencies_s, 0.99)}
    found |= {"max_ms": max(latencies_s)}
    return {name: round(value * 1000, 2) for name, value in found.items()} | {"samples": len(latencies_s)}


async def measure_throughput(system: System, batch: int, seconds: float) -> Figures:
    """
    Accepted-and-stored events a second, sustained: a closed loop that waits while too much is accepted but not stored.

    Stored = rows of the ledger whose recorded_at, set by the database's clock, lies in the window.
    """
    posts = make_posts(system.students, batch)
    async with Load(system.port, _CONNECTIONS[batch], posts, other_ports=system.other_ports) as load:
        stored_before = counted = await system.count_quickly()
        counted_at, rate = time.perf_counter(), 0.0

        async def refresh() -> None:
            nonlocal counted, counted_at, rate
            now, stored = time.perf_counter(), await system.count_quickly()
            if now - counted_at > 0.02:
                rate = rate * 0.9 + (stored - counted) / (now - counted_at) * 0.1
            counted, counted_at = stored, now

        def may_send() -> bool:
            ahead = load.tally.accepted + load.in_flight - (counted - stored_before)
            return ahead < max(_AHEAD_MIN, rate * _AHEAD_S)

        load.may_send = may_send
        await load.run_closed(_RAMP_S, refresh)
        start, rows_before = await system.count_now()
        accepted_before, cpu_before = load.tally.accepted, measure_cpu_s(system.list_pids())
        await load.run_closed(seconds, refresh)
        end, cpu_after = await system.read_clock(), measure_cpu_s(system.list_pids())
        accepted = load.tally.accepted
        rows_after = await system.count_between(None, end)
        await load.settle()
        window_s = (end - start).total_seconds()
        rows_total = await _drain(system, load.tally.accepted + stored_before)
    stored_rate = (rows_after - rows_before) / window_s
    backlog = accepted + stored_before - rows_after
    return {
        "stored_per_s": round(stored_rate),
        "accepted_per_s": round((accepted - accepted_before) / window_s),
        "window_s": round(window_s, 2),
        "backlog_at_end_s": round(backlog / stored_rate, 3),
        "is_sustained": backlog <= stored_rate,
        "refused": load.tally.refused,
        "accepted": load.tally.accepted,
        "unstored": load.tally.accepted + stored_before - rows_total,
        "ack": _describe_ms(load.tally.latencies_s),
        "cpu_us_per_event": {
            name: round((cpu_after[name] - cpu_before[name]) / (rows_after - rows_before) * 1e6, 1)
            for name in cpu_after
        },
    }


async def measure_ack(system: System, rate: int, seconds: float) -> Figures:
    """Milliseconds from when a post of one event was due to its acknowledgement; evenly spaced, open loop."""
    async with Load(system.port, len(system.students), make_posts(system.students, 1)) as load:
        stored_before = await system.count_quickly()
        await load.run_open(rate, _RAMP_S)
        await load.settle()
        load.tally.latencies_s.clear()
        await load.run_open(rate, seconds)
        await load.settle()
        rows_total = await _drain(system, load.tally.accepted + stored_before)
    return _describe_ms(load.tally.latencies_s) | {
        "rate_per_s": rate,
        "refused": load.tally.refused,
        "accepted": load.tally.accepted,
        "unstored": load.tally.accepted + stored_before - rows_total,
    }


async def measure_frames(system: System, rate: int, seconds: float) -> Figures:
    """Milliseconds from when an event was due to each viewer's frame of it, then the memory of every process."""
    posts = make_visible_posts(system.students)
    async with Load(system.port, len(system.students), posts) as load:
        if isinstance(system, Nbpulse):
            # One event of each student makes the notebook's columns known before the boards open.
            await load.run_open(1_000, len(system.students) / 1_000 * 30)
            await load.settle()
            await asyncio.sleep(3)
        async with Audience(system, VIEWERS) as audience:
            load.note = audience.note
            await load.run_open(rate, _RAMP_S)
            await asyncio.sleep(1)
            audience.latencies_s.clear()
            load.tally.latencies_s.clear()
            audience.frames = 0
            started = time.perf_counter()
            await load.run_open(rate, seconds)
            took_s = time.perf_counter() - started
            pss = measure_pss(system.list_pids())
            await load.settle()
            await asyncio.sleep(2)
            found = {"frames_per_s": round(audience.frames / took_s, 1), "unseen": audience.unseen}
            found |= {"viewers": VIEWERS, "lost_viewers": audience.lost, "resyncs": audience.resyncs}
            return {
                "frame": _describe_ms(audience.latencies_s) | found,
                "ack": _describe_ms(load.tally.latencies_s),
                "pss_mb": pss,
                "pss_total_mb": round(sum(pss.values()), 1),
                "rate_per_s": rate,
                "refused": load.tally.refused,
            }


def measure_start(kind: type[System], repeats: int) -> Figures:
    """Seconds until it is ready, on an empty directory and on the same again; the medians. Leaves it stopped."""
    cold: list[float] = []
    warm: list[float] = []
    for _ in range(repeats):
        fresh = kind()
        try:
            for found in (cold, warm):
                try:
                    found.append(fresh.start())
                finally:
                    fresh.stop()
        finally:
            fresh.remove()
    return {
        "cold_s": round(find_percentile(cold, 0.5), 2),
        "warm_s": round(find_percentile(warm, 0.5), 2),
        "all_cold_s": [round(one, 2) for one in cold],
        "all_warm_s": [round(one, 2) for one in warm],
    }


async def _drain(system: System, wanted: int) -> int:
    """Rows in the ledger once all that was accepted is there, or nothing has come for 5 s."""
    deadline, rows, still_s = time.monotonic() + _DRAIN_S, -1, 0.0
    while time.monotonic() < deadline and still_s < 5:
        found = await system.count_between(None, None)
        if found >= wanted:
            return found
        still_s = still_s + 0.25 if found == rows else 0.0
        rows = found
        await asyncio.sleep(0.25)
    return rows
