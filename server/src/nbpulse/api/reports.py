"""The report of a class meeting: for its staff, as a table of its cells, and by a link without people."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from nbpulse.api.bodies import decode_body, read_request_body
from nbpulse.api.context import Context, describe_body, get_context, parse_id
from nbpulse.api.downloads import Form, Subject, answer_table
from nbpulse.api.joining import answer
from nbpulse.api.limits import find_address
from nbpulse.api.sharing import SharedRoute
from nbpulse.classroom.withholding import withhold_cells, withhold_figures, withhold_progress
from nbpulse.identity import asking_as
from nbpulse.records.analysis import Course, Span, Table
from nbpulse.records.report_shares import OpenedShare
from nbpulse.records.reports import Report, find_span

_MEETING = "/courses/{course_id}/meetings/{meeting_id}/report"

shared = APIRouter(prefix="/api/v1", route_class=SharedRoute)
router = APIRouter(prefix="/api/v1")


class ShareRequest(msgspec.Struct):
    """For how many days the link shows the report."""

    days: Annotated[int, msgspec.Meta(ge=1, le=365)] = 30


class SharedRequest(msgspec.Struct):
    """The code of a report's link: what follows the # in its address."""

    code: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


@shared.get(_MEETING)
async def show_report(request: Request, course_id: str, meeting_id: str) -> Response:
    """
    A meeting's figures beside those of the one before: attendance, runs, what was waited for, each cell, who was in
    trouble, what staff did and what came of it. Of the students whom the asker sees.
    """
    return answer(await get_context(request).reports.make(parse_id(course_id), parse_id(meeting_id)))


@shared.get(f"{_MEETING}.csv")
async def download_report(request: Request, course_id: str, meeting_id: str) -> Response:
    """The meeting's cells as CSV: how many students reached each, passed it, failed on it with what, and their time."""
    report = await get_context(request).reports.make(parse_id(course_id), parse_id(meeting_id))
    course = Course(report.course["short_name"], report.course["time_zone"])
    subject = Subject("report", course, Span(*find_span(report.meeting)))
    return await answer_table(request, _list_cells(report), subject, Form("csv", has_bom=True, is_identified=True))


@router.get(f"{_MEETING}/shares")
async def list_shares(request: Request, course_id: str, meeting_id: str) -> Response:
    """The links that show this report now."""
    shares = get_context(request).report_shares
    return answer({"shares": await shares.list_shares(parse_id(course_id), parse_id(meeting_id))})


@router.post(f"{_MEETING}/shares", status_code=201, openapi_extra=describe_body(ShareRequest))
async def share_report(request: Request, course_id: str, meeting_id: str) -> Response:
    """A link to the report for readers outside the staff. `code` is told this once: `/shared/report#CODE`."""
    days = decode_body(await read_request_body(request), ShareRequest).days
    shares = get_context(request).report_shares
    made, code = await shares.share(parse_id(course_id), parse_id(meeting_id), timedelta(days=days))
    return answer({**msgspec.structs.asdict(made), "code": code}, 201)


@router.delete(f"{_MEETING}/shares/{{share_id}}", status_code=204)
async def revoke_share(request: Request, course_id: str, meeting_id: str, share_id: str) -> Response:
    """Take a link back: from now on it shows nothing."""
    await get_context(request).report_shares.revoke(parse_id(course_id), parse_id(meeting_id), parse_id(share_id))
    return Response(status_code=204)


@router.post("/shared/report", openapi_extra=describe_body(SharedRequest))
async def show_shared_report(request: Request) -> Response:
    """
    The report that a link shows, for anybody who has it: no names, numbers, texts or single students, and null for what
    fewer than 5 students share. `expires_at`: until when.
    """
    code = decode_body(await read_request_body(request), SharedRequest).code
    context = get_context(request)
    async with context.guesses.guarding(find_address(request.scope)):
        opened = await context.report_shares.open(code)

    async def make() -> Response:
        return await context.freshness.answer(lambda: _make_shared(context, opened), 0)

    return await context.answers.get_or_make(("shared report", opened.id), make)


async def _make_shared(context: Context, opened: OpenedShare) -> Response:
    with asking_as(opened.created_by):
        report = await context.reports.make(opened.course_id, opened.meeting_id)
    return answer({**_withhold(report), "expires_at": opened.expires_at})


def _withhold(report: Report) -> dict[str, Any]:
    previous = report.previous and {
        "meeting": _describe_meeting(report.previous.meeting),
        "figures": withhold_figures(report.previous.figures),
    }
    return {
        "course": {name: report.course[name] for name in ("title", "time_zone")},
        "meeting": _describe_meeting(report.meeting),
        "figures": withhold_figures(report.figures),
        "previous": previous,
        "progress": withhold_progress(report.progress),
        "notebooks": report.notebooks,
        "cells": withhold_cells(report.cells),
    }


def _describe_meeting(meeting: Any) -> dict[str, Any]:
    return {name: getattr(meeting, name) for name in ("title", "started_at", "ended_at")}


def _list_cells(report: Report) -> Table:
    paths: dict[UUID, str] = {notebook.id: notebook.path for notebook in report.notebooks}
    columns = ("cell_number", "cell_id", "title", "reached", "ok", "failed", "runs", "errors", "median_ms", "p90_ms")
    rows = [
        (
            *(paths[cell.notebook_id], None if cell.cell_index is None else cell.cell_index + 1, cell.cell_id),
            *(cell.title, cell.reached, cell.ok, cell.failed, cell.runs, cell.errors, cell.median_ms, cell.p90_ms),
            *(cell.error and (cell.error.title or cell.error.label), cell.error and cell.error.students),
        )
        for cell in report.cells
    ]
    types = ("text", "integer", "text", "text", *("integer",) * 5, "number", "number", "text", "integer")
    return Table(("notebook_path", *columns, "commonest_error", "commonest_error_students"), types, rows)
