"""A course of its own for a rehearsal, and its removal with everything in it. Only courses marked as demo can go so."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from nbpulse.api.context import get_context, get_person, parse_id
from nbpulse.api.joining import answer
from nbpulse.records.courses import open_rehearsal, remove_demo_course

router = APIRouter(prefix="/api/v1")


@router.post("/courses/{course_id}/rehearsals", status_code=201)
async def create_rehearsal(request: Request) -> Response:
    """A new course beside this one, marked as a demo, whose instructor is the member of staff who asks."""
    context, person = get_context(request), get_person(request)
    course = await open_rehearsal(context.people)
    context.gate.forget_person(person.user_id)  # what is remembered of them does not know the new course
    return answer({"course_id": course.id, "join_code": course.join_code, "title": course.title}, 201)


@router.delete("/courses/{course_id}")
async def remove_course(request: Request, course_id: str) -> Response:
    """Remove a demo or rehearsal course: students, events, everything. Other courses are refused (403)."""
    count = await remove_demo_course(get_context(request).people, parse_id(course_id))
    return answer({"removed_students": count})
