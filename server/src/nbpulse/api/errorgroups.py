"""What a course's staff settle about an error group: called otherwise, one with another, muted."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import structlog
from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from nbpulse.api.bodies import decode_body, read_request_body
from nbpulse.api.context import describe_body, get_context, parse_id
from nbpulse.api.joining import answer, clean_line
from nbpulse.errors import Unavailable
from nbpulse.records.errorgroups import change_group

router = APIRouter(prefix="/api/v1/courses/{course_id}")
_log = structlog.get_logger(__name__)
_PATTERN: Final = "^[0-9a-f]{16}$"

Fingerprint = Annotated[str, Path(pattern=_PATTERN)]


class GroupChange(msgspec.Struct, forbid_unknown_fields=True):
    """
    What is left out stays as it is. `title`: staff's own name, null for the error's own words; `merged_into`: another
    group's fingerprint, null for none.
    """

    title: Annotated[str, msgspec.Meta(max_length=80)] | msgspec.UnsetType | None = msgspec.UNSET
    merged_into: Annotated[str, msgspec.Meta(pattern=_PATTERN)] | msgspec.UnsetType | None = msgspec.UNSET
    is_muted: bool | msgspec.UnsetType = msgspec.UNSET


@router.patch("/errors/{fingerprint}", openapi_extra=describe_body(GroupChange))
async def settle_group(request: Request, course_id: str, fingerprint: Fingerprint) -> Response:
    """
    Call an error group otherwise, merge it into another, mute it, or take that back; for all of the course's staff. A
    muted one is in no list, banner or alert. A cell that fails for many is muted by the `fp` that boards tell of it.

    409: it would be one with itself (NB-1365), the course has too many (NB-1366).
    """
    context, course = get_context(request), parse_id(course_id)
    wanted = decode_body(await read_request_body(request), GroupChange)
    named = msgspec.structs.asdict(wanted)
    changes = {name: value for name, value in named.items() if value is not msgspec.UNSET}
    if changes.get("title") is not None:
        changes["title"] = clean_line(changes["title"], "title")
    group = await change_group(context.people, course, fingerprint, changes)
    try:
        await context.cache.announce_groups(course)
    except Unavailable as error:
        _log.warning("error_groups.not_announced", code=error.code)  # boards look every 2 s anyway
    return answer(group)
