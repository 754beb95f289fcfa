"""GET /api/v1/me/audit: what the audit log tells of whoever asks."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from nbpulse.api.context import get_context, get_person
from nbpulse.api.joining import answer

router = APIRouter(prefix="/api/v1")


@router.get("/me/audit")
async def list_own_audit(
    request: Request,
    before: Annotated[int, Query(ge=1, le=2**62)] = 2**62,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """
    What was done to the person who asks, by them, and to the whole of their classes since they joined; newest first,
    in the courses that the token reaches. `by` null and not `is_mine`: the operator, or somebody who is no more.
    `next`: the `before` of the next page, null on the last.
    """
    person = get_person(request)
    rows = await get_context(request).trail.log.list_own(list(person.roles), before, limit + 1)
    page = rows[:limit]
    words = load_words()
    entries = [
        msgspec.structs.asdict(row) | {"text": words.get(row.action, {"en": row.action, "ja": row.action})}
        for row in page
    ]
    return answer({"entries": entries, "next": page[-1].id if len(rows) > limit else None})


@cache
def load_words() -> dict[str, dict[str, str]]:
    """What each action is called in a sentence that begins with who did it, in both languages."""
    text = resources.files("nbpulse").joinpath("audit_texts.json").read_text(encoding="utf-8")
    words: dict[str, dict[str, str]] = json.loads(text)
    return words
