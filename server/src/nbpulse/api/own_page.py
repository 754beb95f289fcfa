"""What the page of whoever asks shows of their own progress (/me), and the link by which their Jupyter opens it."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from nbpulse.api.context import get_context, get_person
from nbpulse.api.courses import find_address
from nbpulse.api.joining import answer
from nbpulse.errors import AccessDenied
from nbpulse.records.people import Person
from nbpulse.records.tokens import LINK_LIFE

router = APIRouter(prefix="/api/v1/me")
_TOLD: Final = ("cell_id", "cell_index", "title", "attempt_count", "error_count", "last_at")


@router.get("/progress")
async def show_progress(request: Request) -> Response:
    """
    One's own standing on each cell of the course's notebooks, nobody else's: `state` is ok, error, running or none.

    Signed in at the board one names the course (header NBPULSE-Course: its id); a student's token is of one.
    """
    person = get_person(request)
    rows = await get_context(request).work.list_own_cells(_course_of(person), person.user_id)
    notebooks: dict[UUID, dict[str, Any]] = {}
    for row in rows:
        notebook = notebooks.setdefault(
            row["notebook_id"],
            {"id": row["notebook_id"], "path": row["path"], "title": row["notebook_title"], "cells": []},
        )
        status = row["last_status"]
        state = "none" if status is None else status if status in ("ok", "running") else "error"
        notebook["cells"].append({name: row[name] for name in _TOLD} | {"state": state})
    return answer({"notebooks": list(notebooks.values())})


@router.post("/link", status_code=201)
async def create_own_link(request: Request) -> Response:
    """
    A code for `/me#code=…`, good once, for 10 minutes: it signs its student in at their own page alone. `url`: that
    page as browsers reach it.
    """
    person = get_person(request)
    code = await get_context(request).people.create_own_link(person.user_id, _course_of(person))
    url = f"{find_address(request)}/me#code={code}"
    return answer({"code": code, "url": url, "expires_in_s": int(LINK_LIFE.total_seconds())}, 201)


def _course_of(person: Person) -> UUID:
    if person.course_id is None:
        raise AccessDenied("NB-1103")
    return person.course_id
