"""How this nbpulse is: alive, ready, every store and the worker, and its metrics.

Round trips are real and bounded to 1 s, also when a server hangs; versions, addresses and reasons are not told: the
code says what to do, `nbpulse doctor` the rest.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from typing import Any, Final

import structlog
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from nbpulse import metrics
from nbpulse.api.context import Context, get_context
from nbpulse.api.joining import answer
from nbpulse.cluster import Member
from nbpulse.errors import Unavailable
from nbpulse.records.databases import Databases
from nbpulse.records.owed import Owed, read_owed
from nbpulse.shards import MAIN

router = APIRouter()
_CHECK_LIMIT_S: Final = 1.0
# Checks that were given up and have not ended yet; a task nobody holds may vanish.
_leaving: set[asyncio.Task[Any]] = set()
_log = structlog.get_logger(__name__)
HEALTHY: Final = frozenset({"healthy", "disabled"})


@router.get("/health/live")
async def show_alive() -> Response:
    """The process answers."""
    return answer({"status": "alive"})


@router.get("/health/ready")
async def show_ready(request: Request) -> Response:
    """
    Events can be accepted: the stream's server answers and this process is not stopping.

    The database may be away meanwhile ("degraded"): events are kept in the stream. So may a server of a cluster, whose
    students alone are refused.
    """
    health = await check_database_health(get_context(request))
    if get_context(request).is_stopping:
        raise Unavailable("NB-2004")
    if health["redis"].get("error") == "NB-2001":
        raise Unavailable("NB-2001")
    return answer(health)


@router.get("/health")
async def show_health(request: Request) -> Response:
    """Every store with its measured `response_time` in ms, the worker's lag, and the promise for accepted events."""
    return answer(await check_database_health(get_context(request)))


@router.get("/metrics")
async def show_metrics(request: Request) -> Response:
    """
    Prometheus metrics of this process, and what waits in the stores for everybody.

    A store that does not say so within 1 s leaves its figures NaN: an old figure would look like a new one.
    """
    context = get_context(request)
    await asyncio.gather(_look_at_stream(context), _look_at_owed(context))
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _look_at_stream(context: Context) -> None:
    workers = backlog = math.nan
    try:
        async with asyncio.timeout(_CHECK_LIMIT_S):
            workers = len(await context.cache.read_workers())
            backlog = await context.stream.measure_backlog()
    except (Unavailable, TimeoutError) as error:
        _log.debug("metrics.stream_unknown", error=type(error).__name__)
    metrics.workers.set(workers)
    metrics.stream_backlog_events.set(backlog)


async def _look_at_owed(context: Context) -> None:
    owed = Owed(*[math.nan] * len(Owed._fields))
    task = asyncio.create_task(read_owed(context.people))
    if await _ends_in_time(task):
        if isinstance(failure := task.exception(), Unavailable):
            _log.debug("metrics.owed_unknown", code=failure.code)
        else:
            owed = task.result()
    metrics.series_debt_batches.set(owed.debt_batches)
    metrics.series_debt_oldest_seconds.set(owed.debt_oldest_s)
    metrics.dead_letters.set(owed.dead_letters)
    metrics.series_marks.set(owed.series_marks)
    metrics.series_marks_oldest_seconds.set(owed.mark_oldest_s)


async def check_database_health(context: Context) -> dict[str, Any]:
    """
    One round trip to each store, all at the same time, each within 1 s; status `healthy | unhealthy | disabled`.

    The whole is `healthy` when every part is (or is not configured), else `degraded`.
    """
    postgresql, influxdb, redis, worker = await asyncio.gather(
        check_postgres_connection(context),
        check_influx_connection(context),
        check_redis_connection(context),
        check_worker(context),
    )
    parts = {"postgresql": postgresql, "influxdb": influxdb, "redis": redis, "worker": worker}
    if context.history_pool.has_replicas:
        parts["replicas"] = check_replicas(context)
    if (databases := context.people.databases) is not None and len(databases.pools) > 1:
        parts["shard_databases"] = await check_shard_databases(databases)
    is_healthy = all(part["status"] in HEALTHY for part in parts.values())
    return {"status": "healthy" if is_healthy else "degraded", "promise": context.promise, **parts}


async def check_postgres_connection(context: Context) -> dict[str, Any]:
    """The ledger's server."""
    return await _measure(context.people.check(), "NB-2003")


async def check_shard_databases(databases: Databases) -> dict[str, Any]:
    """
    Each further database with students' rows: `lag_bytes` of the directory's log it has not confirmed, null where it
    does not follow (NB-2035).
    """

    async def check(name: str) -> dict[str, Any]:
        lag_bytes: int | None = None

        async def measure() -> None:
            nonlocal lag_bytes
            lag_bytes = await databases.measure_lag(name)

        status = {"name": name, **await _measure(measure(), "NB-2003"), "lag_bytes": lag_bytes}
        if status["status"] == "healthy" and lag_bytes is None:
            status |= {"status": "unhealthy", "error": "NB-2035"}
        return status

    found = await asyncio.gather(*(check(name) for name in databases.pools if name != MAIN))
    error = next((one["error"] for one in found if "error" in one), None)
    told = {"databases": list(found)}
    return {"status": "healthy", **told} if error is None else {"status": "unhealthy", "error": error, **told}


async def check_influx_connection(context: Context) -> dict[str, Any]:
    """The time series' own server; `disabled` where PostgreSQL keeps them."""
    if not context.series.has_server:
        return {"status": "disabled"}
    return await _measure(context.series.check(), "NB-2005")


def check_replicas(context: Context) -> dict[str, Any]:
    """The read replicas as they were seen in the last second; where one is not read from, the primary is."""
    replicas = context.history_pool.describe()
    error = next((one["error"] for one in replicas if "error" in one), None)
    told = {"lag_max_s": context.history_pool.lag_max_s, "replicas": replicas}
    return {"status": "healthy", **told} if error is None else {"status": "unhealthy", "error": error, **told}


async def check_redis_connection(context: Context) -> dict[str, Any]:
    """The server of stream, cache and live wire; where there are several each one, by role, without its address."""
    members: list[Member] = []

    async def check() -> None:
        members.extend(await context.cache.check(has_replicas=context.promise == "failover"))

    told = await _measure(check(), "NB-2001")
    if not members:
        return told
    told["servers"] = [
        {
            "role": "primary" if one.is_primary else "replica",
            "status": "unhealthy" if one.replicas is None else "healthy",
            **({"replicas": one.replicas} if one.is_primary and one.replicas is not None else {}),
        }
        for one in members
    ]
    if any(one.replicas is None for one in members):
        told |= {"status": "unhealthy", "error": "NB-2031"}
    elif context.promise == "failover" and any(one.is_primary and not one.replicas for one in members):
        told |= {"status": "unhealthy", "error": "NB-2030"}
    return told


async def check_worker(context: Context) -> dict[str, Any]:
    """Workers that were at work in the last 5 s, how far behind the last of them is, and what waits in the stream."""
    try:
        async with asyncio.timeout(_CHECK_LIMIT_S):
            workers, backlog = await asyncio.gather(context.cache.read_workers(), context.stream.measure_backlog())
    except (Unavailable, TimeoutError):
        return {"status": "unhealthy", "error": "NB-2001"}
    status = {"count": len(workers), "lag_ms": max(workers.values(), default=None), "backlog": backlog}
    return {"status": "healthy", **status} if workers else {"status": "unhealthy", "error": "NB-2006", **status}


async def _measure(check: Coroutine[Any, Any, None], code: str) -> dict[str, Any]:
    started = time.perf_counter()
    task = asyncio.create_task(check)
    is_healthy = False
    if await _ends_in_time(task):
        failure = task.exception()
        if failure is not None and not isinstance(failure, Unavailable | TimeoutError):
            raise failure
        is_healthy = failure is None
    status = {"status": "healthy" if is_healthy else "unhealthy", "response_time": _count_ms(started)}
    return status if is_healthy else status | {"error": code}


async def _ends_in_time(task: asyncio.Task[Any]) -> bool:
    """Whether it ends within 1 s; else it is given up."""
    # Not `timeout`: a driver that is cancelled may itself wait for seconds for a server that hangs.
    done, _ = await asyncio.wait({task}, timeout=_CHECK_LIMIT_S)
    if not done:
        task.cancel()
        _leaving.add(task)
        task.add_done_callback(_let_go)
    return bool(done)


def _let_go(task: asyncio.Task[Any]) -> None:
    _leaving.discard(task)
    if not task.cancelled():
        task.exception()  # looked at: what became of it has been answered long ago


def _count_ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
