"""A course's map for its staff: seen by all of them, changed by its instructors."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from nbpulse.api.bodies import decode_body, read_request_body
from nbpulse.api.context import describe_body, get_context, get_person, parse_id
from nbpulse.api.joining import answer, clean_line
from nbpulse.errors import InvalidInput
from nbpulse.pictures import MEDIA_TYPES, PICTURE_BYTES_MAX, read_picture
from nbpulse.records.maps import CourseMap, Maps, Place

router = APIRouter(prefix="/api/v1/courses/{course_id}/map")
_PLACES_BYTES_MAX: Final = 131_072  # 500 places, their names as JSON may write them
_BINARY: Final[dict[str, Any]] = {"schema": {"type": "string", "format": "binary"}}

Version = Annotated[int, Query(ge=0, le=2**31 - 2, description="The version that is changed: 0 for the first")]


class PlacesRequest(msgspec.Struct):
    """All places of the map; `version`: that which is changed."""

    version: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 2)]
    places: Annotated[list[Place], msgspec.Meta(max_length=500)]


@router.get("")
async def show_map(request: Request, course_id: str) -> Response:
    """
    Where teams and seats are (`x`, `y`: percent from the left and the top) and the picture's width and height;
    `version` 0: nobody has made a map.
    """
    return _describe(request, course_id, await _get_maps(request).find(parse_id(course_id)))


@router.put("", openapi_extra=describe_body(PlacesRequest))
async def change_places(request: Request, course_id: str) -> Response:
    """Put these places in the place of all others. 409 (NB-1300): somebody has changed that version already."""
    wanted = decode_body(await read_request_body(request, limit=_PLACES_BYTES_MAX), PlacesRequest)
    places = [Place(one.kind, _clean(one.name), one.x, one.y) for one in wanted.places]
    if len({(one.kind, one.name) for one in places}) < len(places):
        raise InvalidInput("NB-1007", detail="places: each team and seat once")
    changed = await _get_maps(request).place(parse_id(course_id), wanted.version, places)
    return _describe(request, course_id, changed)


@router.get("/picture")
async def show_picture(request: Request, course_id: str) -> Response:
    """The picture; nothing in it can run, whatever opens it."""
    body, media_type = await _get_maps(request).find_picture(parse_id(course_id))
    # Beside the policy that every answer bears: a browser holds to both.
    return Response(body, headers={"Content-Security-Policy": "sandbox"}, media_type=media_type)


@router.put(
    "/picture",
    openapi_extra={"requestBody": {"required": True, "content": dict.fromkeys(MEDIA_TYPES, _BINARY)}},
)
async def change_picture(request: Request, course_id: str, version: Version) -> Response:
    """
    Another picture of the room: PNG, JPEG or a still WebP, at most 2 MB and 6,000 pixels a side; what it tells of
    place, time and camera is left out. 409 (NB-1300) as above.
    """
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared not in MEDIA_TYPES:
        raise InvalidInput("NB-1302")
    try:
        body = await read_request_body(request, limit=PICTURE_BYTES_MAX, expected_type=declared)
    except InvalidInput as error:
        if error.code != "NB-1004":
            raise
        raise InvalidInput("NB-1301", limit_mb=PICTURE_BYTES_MAX // 1_000_000) from error
    changed = await _get_maps(request).set_picture(parse_id(course_id), version, read_picture(body))
    return _describe(request, course_id, changed)


@router.delete("/picture")
async def remove_picture(request: Request, course_id: str, version: Version) -> Response:
    """No picture any more; the places stay. 409 (NB-1300) as above."""
    return _describe(request, course_id, await _get_maps(request).set_picture(parse_id(course_id), version, None))


def _get_maps(request: Request) -> Maps:
    return Maps(get_context(request).people)


def _describe(request: Request, course_id: str, course_map: CourseMap) -> Response:
    may_change = get_person(request).roles[parse_id(course_id)] == "instructor"
    return answer({**msgspec.structs.asdict(course_map), "may_change": may_change})


def _clean(name: str) -> str:
    cleaned = clean_line(name, "name")
    if cleaned is None:
        raise InvalidInput("NB-1007", detail="name: at least 1 character")
    return cleaned
