"""A past class on the board, for its staff."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from nbpulse.api.context import get_context, parse_id
from nbpulse.api.joining import answer
from nbpulse.api.sharing import SharedRoute
from nbpulse.records.replays import Wanted

router = APIRouter(prefix="/api/v1", route_class=SharedRoute)


@router.get("/courses/{course_id}/meetings/{meeting_id}/replay")
async def replay(
    request: Request,
    course_id: str,
    meeting_id: str,
    *,
    notebook: str | None = None,
    at: Annotated[int | None, Query(ge=0, le=2**53, description="ms since 1970; by default the beginning")] = None,
    span_ms: Annotated[int, Query(ge=1_000, le=3_600_000)] = 120_000,
    step_ms: Annotated[int, Query(ge=1_000, le=60_000)] = 2_000,
) -> Response:
    """
    The board of a meeting at `at`, as the live one tells it, and the frames that lead on from it: one for each
    `step_ms` of the next `span_ms`, at most 150.
    """
    notebook_id = parse_id(notebook) if notebook else None
    place = parse_id(course_id), parse_id(meeting_id), notebook_id
    return answer(await get_context(request).replays.play(*place, Wanted(at, span_ms, step_ms)))
