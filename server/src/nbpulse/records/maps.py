"""A course's map: a picture of the room and where its teams and seats are.

Promises: of two who change the same version, the second is refused and nothing of the first is lost; a change and its
audit row are one transaction.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
import orjson

from nbpulse.errors import Conflict, NotFound
from nbpulse.pictures import Picture
from nbpulse.records.audit import note_audit
from nbpulse.records.people import People

_COLUMNS: Final = "version, places, picture_width, picture_height"
_READ: Final = f"SELECT {_COLUMNS} FROM course_maps WHERE course_id = $1"  # noqa: S608 - constants
_READ_PICTURE: Final = "SELECT picture, picture_type FROM course_maps WHERE course_id = $1 AND picture IS NOT NULL"
# A first version follows on 0, every other on the one that was changed.
_BEGIN: Final = """
INSERT INTO course_maps AS m (course_id, {columns}, updated_by)
SELECT $1, {values}, nullif(current_setting('app.current_user_id', true), '')::uuid
WHERE $2::int = 0 OR EXISTS (SELECT FROM course_maps WHERE course_id = $1)
ON CONFLICT (course_id) DO UPDATE SET ({columns}, updated_by, version, updated_at)
    = ROW({excluded}, excluded.updated_by, m.version + 1, now())
WHERE m.version = $2 RETURNING {returned}
"""


def _write(*columns: str) -> str:
    return _BEGIN.format(
        columns=", ".join(columns),
        values=", ".join(f"${number}" for number, _ in enumerate(columns, 3)),
        excluded=", ".join(f"excluded.{name}" for name in columns),
        returned=_COLUMNS,
    )


_WRITE_PLACES: Final = _write("places")
_WRITE_PICTURE: Final = _write("picture", "picture_type", "picture_width", "picture_height")

Percent = Annotated[float, msgspec.Meta(ge=0, le=100, multiple_of=2.5)]


class Place(msgspec.Struct, frozen=True):
    """Where a team or a seat is: from the picture's left and top, in percent, in steps of 2.5."""

    kind: Literal["team", "seat"]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
    x: Percent
    y: Percent


class CourseMap(msgspec.Struct, frozen=True):
    """A course's map. `version` 0: nobody has made one; `picture`: its width and height in pixels."""

    version: int
    places: list[Place]
    picture: tuple[int, int] | None


class Maps:
    """Every method raises Unavailable (NB-2003) when PostgreSQL is away."""

    def __init__(self, people: People) -> None:
        self._people = people

    async def find(self, course_id: UUID) -> CourseMap:
        """The course's map; an empty one where there is none."""
        async with self._people.connect("find_map") as connection:
            row = await connection.fetchrow(_READ, course_id)
        return _read(row) if row else CourseMap(0, [], None)

    async def find_picture(self, course_id: UUID) -> tuple[bytes, str]:
        """Its picture and its media type. Raises NotFound (NB-1304)."""
        async with self._people.connect("find_map") as connection:
            row = await connection.fetchrow(_READ_PICTURE, course_id)
        if row is None:
            raise NotFound("NB-1304")
        return row["picture"], row["picture_type"]

    async def place(self, course_id: UUID, version: int, places: list[Place]) -> CourseMap:
        """Put these places on the map in that version, in the place of all others. Raises Conflict (NB-1300)."""
        encoded = orjson.dumps([msgspec.to_builtins(one) for one in places]).decode()
        return await self._change(_WRITE_PLACES, (course_id, version, encoded), {"places": len(places)})

    async def set_picture(self, course_id: UUID, version: int, picture: Picture | None) -> CourseMap:
        """Another picture, or none; the places stay. Raises Conflict (NB-1300)."""
        sides = (picture.body, picture.media_type, picture.width, picture.height) if picture else (None,) * 4
        return await self._change(_WRITE_PICTURE, (course_id, version, *sides), {"picture": picture is not None})

    async def _change(self, statement: str, arguments: tuple[Any, ...], facts: dict[str, int | bool]) -> CourseMap:
        async with self._people.connect("change_map") as connection:
            row = await connection.fetchrow(statement, *arguments)
            if row is None:
                raise Conflict("NB-1300")
            await note_audit(connection, "map_changed", course_id=arguments[0], facts=facts)
        return _read(row)


def _read(row: Any) -> CourseMap:
    sides = (row["picture_width"], row["picture_height"]) if row["picture_width"] else None
    return CourseMap(row["version"], msgspec.json.decode(row["places"], type=list[Place]), sides)
