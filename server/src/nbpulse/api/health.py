"""How this process is: alive, ready, and its metrics. Round trips are real; versions and addresses are not told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, Final

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from nbpulse.api.context import Context, get_context
from nbpulse.api.joining import answer
from nbpulse.errors import Unavailable

router = APIRouter()
_CHECK_LIMIT_S: Final = 1.0


@router.get("/health/live")
async def show_alive() -> Response:
    """The process answers."""
    return answer({"status": "alive"})


@router.get("/health/ready")
async def show_ready(request: Request) -> Response:
    """
    Events can be accepted: the stream's server answers and this process is not stopping.

    The database may be away meanwhile ("degraded"): events are kept in the stream.
    """
    health = await check_health(get_context(request))
    if get_context(request).is_stopping:
        raise Unavailable("NB-2004")
    if health["checks"]["redis"]["status"] != "healthy":
        raise Unavailable("NB-2001")
    return answer(health)


@router.get("/health")
async def show_health(request: Request) -> Response:
    """Every store with its measured response time, and the promise that holds for accepted events."""
    return answer(await check_health(get_context(request)))


@router.get("/metrics")
async def show_metrics() -> Response:
    """Prometheus metrics of this process."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def check_health(context: Context) -> dict[str, Any]:
    """One round trip to each store, at the same time, each within 1 s."""
    postgresql, redis = await asyncio.gather(_measure(context.people.check()), _measure(context.cache.check()))
    is_healthy = postgresql["status"] == redis["status"] == "healthy"
    return {
        "status": "healthy" if is_healthy else "degraded",
        "promise": context.promise,
        "checks": {"postgresql": postgresql, "redis": redis},
    }


async def _measure(check: Awaitable[None]) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(_CHECK_LIMIT_S):
            await check
    except (Unavailable, TimeoutError) as error:
        return {"status": "unhealthy", "code": getattr(error, "code", "NB-2003")}
    return {"status": "healthy", "response_time": round(time.perf_counter() - started, 6)}
