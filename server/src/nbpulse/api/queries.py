"""A course's history for its staff, as JSON, NDJSON or CSV."""

from __future__ import annotations

import base64
import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from nbpulse.api.context import get_context, parse_id
from nbpulse.errors import InvalidInput
from nbpulse.records.analysis import Place, Span, Table

router = APIRouter(prefix="/api/v1/courses/{course_id}")
SPAN_MAX: Final = timedelta(days=400)
# What a spreadsheet would take for a formula: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")

Format = Annotated[Literal["json", "ndjson", "csv"], Query(description="json, or a download as NDJSON or CSV")]
Moment = Annotated[
    datetime | None, Query(description="With a UTC offset, else in the course's time zone. Default: the last day")
]
Limit = Annotated[int, Query(ge=1, le=5_000)]
Bom = Annotated[bool, Query(description="0: CSV without the byte order mark that Excel needs")]


@router.get("/sessions")
async def list_sessions(
    request: Request,
    course_id: str,
    *,
    start: Moment = None,
    end: Moment = None,
    notebook: str | None = None,
    cursor: str | None = None,
    limit: Limit = 500,
    format: Format = "json",  # noqa: A002 - the wire's name
    bom: Bom = True,
) -> Response:
    """
    The class's learning sessions, newest first (specification, query 1), by default of the last day. `next` is the
    cursor of the next page, null on the last; sessions that begin meanwhile do not shift it.
    """
    history, course = get_context(request).history, parse_id(course_id)
    span, after = await _find_span(request, course, start, end), _read_cursor(cursor)
    table = await history.list_sessions(
        course, span, user_id=None, notebook_id=_parse_optional(notebook), after=after, limit=limit
    )
    return _answer(table, "sessions", format, bom, next=_find_next(table, limit))


@router.get("/students/{user_id}/sessions")
async def list_student_sessions(
    request: Request,
    course_id: str,
    user_id: str,
    *,
    start: Moment = None,
    end: Moment = None,
    notebook: str | None = None,
    cursor: str | None = None,
    limit: Limit = 10,
    format: Format = "json",  # noqa: A002
    bom: Bom = True,
) -> Response:
    """One student's learning sessions, newest first (specification, query 2), by default of the last 400 days."""
    history, course = get_context(request).history, parse_id(course_id)
    span, after = await _find_span(request, course, start, end, SPAN_MAX), _read_cursor(cursor)
    table = await history.list_sessions(
        course, span, user_id=parse_id(user_id), notebook_id=_parse_optional(notebook), after=after, limit=limit
    )
    return _answer(table, "sessions", format, bom, next=_find_next(table, limit))


@router.get("/progress")
async def list_progress(
    request: Request,
    course_id: str,
    *,
    notebook: str | None = None,
    limit: Limit = 5_000,
    format: Format = "json",  # noqa: A002
    bom: Bom = True,
) -> Response:
    """Per student and notebook: cells whose last run was ok, of the course notebook's, and `progress_percentage`."""
    history, course = get_context(request).history, parse_id(course_id)
    table = await history.list_progress(course, _parse_optional(notebook), limit)
    return _answer(table, "progress", format, bom)


@router.get("/failing-cells")
async def list_failing_cells(
    request: Request,
    course_id: str,
    *,
    notebook: str | None = None,
    limit: Limit = 100,
    format: Format = "json",  # noqa: A002
    bom: Bom = True,
) -> Response:
    """Cells by how many students failed on them, and how many of those never passed."""
    history, course = get_context(request).history, parse_id(course_id)
    table = await history.list_failing_cells(course, _parse_optional(notebook), limit)
    return _answer(table, "failing-cells", format, bom)


@router.get("/common-errors")
async def list_common_errors(
    request: Request,
    course_id: str,
    *,
    start: Moment = None,
    end: Moment = None,
    notebook: str | None = None,
    limit: Limit = 100,
    format: Format = "json",  # noqa: A002
    bom: Bom = True,
) -> Response:
    """Error groups by how many students met them in the window, by default the last day."""
    history, course = get_context(request).history, parse_id(course_id)
    span = await _find_span(request, course, start, end)
    table = await history.list_common_errors(course, span, _parse_optional(notebook), limit)
    return _answer(table, "common-errors", format, bom)


async def _find_span(
    request: Request,
    course_id: UUID,
    start: datetime | None,
    end: datetime | None,
    default: timedelta = timedelta(days=1),
) -> Span:
    """The window asked for, `default` long without a start. Raises InvalidInput (NB-1204): empty, or over 400 days."""
    zone = ZoneInfo(await get_context(request).history.read_time_zone(course_id))
    try:
        last = _place(end, zone) if end else datetime.now(UTC)
        first = _place(start, zone) if start else last - default
    except (OverflowError, ValueError) as error:  # a year that no zone knows
        raise InvalidInput("NB-1204") from error
    if not first < last or last - first > SPAN_MAX + timedelta(days=1):
        raise InvalidInput("NB-1204")
    return Span(first, last)


def _place(moment: datetime, zone: ZoneInfo) -> datetime:
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)


def _parse_optional(text: str | None) -> UUID | None:
    return parse_id(text) if text else None


def _find_next(table: Table, limit: int) -> str | None:
    """The cursor of the page after this one; None when there can be none."""
    if len(table.rows) < limit:
        return None
    last = dict(zip(table.columns, table.rows[-1], strict=True))
    place = msgspec.json.encode(Place(last["started_at"], last["id"]))
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def _read_cursor(cursor: str | None) -> Place | None:
    """Raises InvalidInput (NB-1205): no cursor of ours."""
    if not cursor:
        return None
    try:
        place = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=Place)
        return Place(place.started_at.astimezone(UTC), place.session_id)
    except (ValueError, OverflowError) as error:
        raise InvalidInput("NB-1205") from error


def _answer(table: Table, name: str, format: str, bom: bool, **more: Any) -> Response:  # noqa: A002
    if format == "csv":
        text = _compose_csv(table)
        return _download(("\ufeff" + text if bom else text).encode(), f"{name}.csv", "text/csv; charset=utf-8")
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    if format == "ndjson":
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        return _download(lines, f"{name}.ndjson", "application/x-ndjson")
    body = msgspec.json.encode({name.replace("-", "_"): rows, **more})
    return Response(body, 200, {"Cache-Control": "no-store"}, "application/json")


def _download(content: bytes, name: str, kind: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return Response(content, 200, headers, kind)


def _compose_csv(table: Table) -> str:
    """RFC 4180 with times in ISO 8601; texts that begin like a formula get an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(table.columns)
    writer.writerows([_compose_cell(value) for value in row] for row in table.rows)
    return out.getvalue()


def _compose_cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return "" if value is None else value
