"""A class as its staff see it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from nbpulse.api.bodies import NO_NUL, decode_body, read_request_body
from nbpulse.api.context import describe_body, get_context, get_person, parse_id
from nbpulse.api.joining import answer
from nbpulse.api.sharing import SharedRoute
from nbpulse.cache import TICKET_LIFE_S, Ticket
from nbpulse.errors import Unavailable
from nbpulse.live import SESSION_LIFE_S, SUMMARY_LIFE_S, encode_session, name_session, name_summary
from nbpulse.timeseries import Window

router = APIRouter(prefix="/api/v1")
shared = APIRouter(prefix="/api/v1", route_class=SharedRoute)
_log = structlog.get_logger(__name__)


class PositionRequest(msgspec.Struct):
    """Which cell the class is at; null: at none."""

    cell: Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=NO_NUL)] | None


@router.get("/courses/{course_id}/live")
async def show_live(request: Request, course_id: str, notebook: str | None = None) -> Response:
    """The whole board of one notebook (default: the one with most active students); frames go on from its `seq`."""
    notebook_id = parse_id(notebook) if notebook else None
    course = parse_id(course_id)
    view = await get_context(request).hub.open_view(course, notebook_id, get_person(request).teams.get(course))
    return Response(view.encode_snapshot(), 200, {"Cache-Control": "no-store"}, "application/json")


@router.get("/courses/{course_id}/charts")
async def show_charts(
    request: Request,
    course_id: str,
    notebook: str | None = None,
    team: Annotated[str | None, Query(max_length=100)] = None,
    minutes: Annotated[int | None, Query(ge=1, le=1_440)] = None,
) -> Response:
    """
    The board's charts (`funnel`, `trend`, `curve`, `exercises`) and `errors` as in its snapshot, of one team's students
    and of what was run in the last `minutes`; left out: of all students, of all they have run.
    """
    notebook_id = parse_id(notebook) if notebook else None
    course = parse_id(course_id)
    view = await get_context(request).hub.open_view(course, notebook_id, get_person(request).teams.get(course))
    return Response(view.encode_part(team, minutes), 200, {"Cache-Control": "no-store"}, "application/json")


@router.get("/courses/{course_id}/projector")
async def show_projector(request: Request, course_id: str) -> Response:
    """
    What the projector shows of the class's notebook: nobody's name, id or words, no group smaller than 3
    (`present` null: fewer than 5 are here). Frames of the WebSocket, its `hello` with `"view": "projector"`, go on from
    its `seq`.
    """
    course = parse_id(course_id)
    view = await get_context(request).hub.open_view(course, None, get_person(request).teams.get(course))
    body = view.projection.encode_snapshot()
    return Response(body, 200, {"Cache-Control": "no-store"}, "application/json")


@shared.get("/courses/{course_id}/notebooks/{notebook_id}/summary")
async def show_summary(request: Request, course_id: str, notebook_id: str) -> Response:
    """
    A notebook's class in numbers: `total_students`, `started_students`, `active_students` (15 minutes), `total_cells`,
    `avg_progress` (0..1). At most some seconds old while the class works, 5 minutes otherwise. To an assistant: of the
    students whom they see, as everything else.
    """
    context, course, notebook = get_context(request), parse_id(course_id), parse_id(notebook_id)

    async def make() -> bytes:
        return msgspec.json.encode(await context.classes.summarise_class(course, notebook))

    # The key does not name the course: who may see one course must not read another's numbers by its notebook's id.
    await context.classes.check_notebook(course, notebook)
    if course in get_person(request).teams:
        body = await make()  # the cache is of the whole class
    else:
        body = await context.cache.get_or_make(name_summary(str(notebook)), SUMMARY_LIFE_S, make)
    return Response(body, 200, {"Cache-Control": "no-store"}, "application/json")


@router.put("/courses/{course_id}/notebooks/{notebook_id}/position", openapi_extra=describe_body(PositionRequest))
async def mark_position(request: Request, course_id: str, notebook_id: str) -> Response:
    """
    Say at which cell of the notebook the class is; the same again changes nothing. `lesson`: where it has been in this
    class meeting, as on the board: [ms since 1970, cell or null] each, the newest last.
    """
    context, course, notebook = get_context(request), parse_id(course_id), parse_id(notebook_id)
    wanted = decode_body(await read_request_body(request), PositionRequest)
    lesson = await context.lessons.mark(course, notebook, wanted.cell)
    try:
        await context.cache.announce_lesson(course)
    except Unavailable as error:
        _log.warning("lesson.not_announced", code=error.code)  # boards look every 2 s anyway
    return answer({"lesson": lesson})


@router.get("/me/session")
async def show_session(request: Request) -> Response:
    """What the student who asks worked in last (`current_notebook`: its id) and when (`last_activity`)."""
    context, person = get_context(request), get_person(request)

    async def make() -> bytes:
        return encode_session(*await context.classes.find_session(person.user_id))

    body = await context.cache.get_or_make(name_session(str(person.user_id)), SESSION_LIFE_S, make)
    return Response(body, 200, {"Cache-Control": "no-store"}, "application/json")


@router.post("/courses/{course_id}/tickets", status_code=201)
async def create_ticket(request: Request, course_id: str) -> Response:
    """A one-use ticket for the course's WebSocket."""
    context, person = get_context(request), get_person(request)
    context.boards.check_room(person.user_id)
    secret = await context.cache.create_ticket(Ticket(person.token_id, parse_id(course_id)))
    return answer({"ticket": secret, "expires_in_s": TICKET_LIFE_S}, 201)


@shared.get("/courses/{course_id}/series")
async def show_series(
    request: Request,
    course_id: str,
    metric: Literal["activity", "error_rate", "learning_progress", "performance_metrics"],
    window_minutes: Annotated[int | None, Query(ge=1, le=10_080)] = None,
) -> Response:
    """
    The specification's two windows over this course's students: durations and counts per student (1 h by 10 min, with
    the class's p50 and p95), errors and executions per notebook (24 h by 1 h). And its two other measurements (1 h by
    10 min): each student's last standing per notebook; per notebook and cell type the means over students and minutes.
    """
    context = get_context(request)
    of_class = await context.find_class(parse_id(course_id))
    window = _make_window(metric, window_minutes)
    body: dict[str, Any] = {"metric": metric, "start": window.start, "end": window.end}
    body["bucket_s"] = window.bucket.total_seconds()
    match metric:
        case "activity":
            body["buckets"] = await context.series.query_activity(window, of_class)
            body["percentiles"] = await context.series.query_percentiles(window, of_class)
        case "error_rate":
            body["buckets"] = await context.series.query_error_rate(window, of_class)
        case "learning_progress":
            body["buckets"] = await context.series.query_progress(window, of_class)
        case "performance_metrics":
            body["buckets"] = await context.series.query_performance(window, of_class)
    return answer(body)


def _make_window(metric: str, window_minutes: int | None) -> Window:
    """The window that ends now, its buckets whole: the specification's size, an hour where it spans over a day."""
    by_hour = metric == "error_rate"
    minutes = window_minutes or (1440 if by_hour else 60)
    bucket = timedelta(hours=1) if by_hour or minutes > 1440 else timedelta(minutes=10)
    end = datetime.now(UTC)
    return Window(end - timedelta(minutes=minutes), end, bucket)
