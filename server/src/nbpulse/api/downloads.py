"""A table of rows as an answer: JSON, a download as NDJSON, CSV or Parquet, or the manifest that describes it.

Promises: every form holds the same rows in the same order; a spreadsheet finds no formula in a text; an answer that
has not changed is not sent twice (ETag).
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

import msgspec
from fastapi import Depends, Query, Request
from starlette.responses import Response

from nbpulse.api.context import get_context, get_person, parse_id
from nbpulse.api.pseudonyms import KEY_LIFE_S, pseudonymise
from nbpulse.errors import AccessDenied, InvalidInput
from nbpulse.records.analysis import Course, Span, Table

# What a spreadsheet would take for a formula: https://owasp.org/www-community/attacks/CSV_Injection
# Full-width ones too: a Japanese Excel reads them as the others.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_KINDS: Final = {
    "json": "application/json",
    "manifest": "application/json",
    "ndjson": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}
_UNITS: Final = (("_ms", "ms"), ("_percentage", "%, 0..100"), ("_rate", "ratio, 0..1"))

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Form:
    """The form of an answer, as asked for."""

    name: Literal["json", "ndjson", "csv", "parquet", "manifest"]
    has_bom: bool
    is_identified: bool

    @property
    def hides_people(self) -> bool:
        """Whether ids and names become pseudonyms: in every download that does not ask for them."""
        return self.name != "json" and not self.is_identified


@dataclass(frozen=True)
class Subject:
    """What the rows are: their name, the course, and the window they are of (None: all that is known now)."""

    name: str
    course: Course
    span: Span | None = None


def _read_form(
    format: Annotated[  # noqa: A002 - the wire's name
        Literal["json", "ndjson", "csv", "parquet", "manifest"],
        Query(description="json; a download as ndjson, csv or parquet; or the manifest that describes such a download"),
    ] = "json",
    bom: Annotated[bool, Query(description="0: CSV without the byte order mark that Excel needs")] = True,
    identified: Annotated[
        bool, Query(description="1: a download with the ids and names as they are, which the audit log tells")
    ] = False,
) -> Form:
    return Form(format, bom, identified)


AskedForm = Annotated[Form, Depends(_read_form)]


_ALONE: Final = object()


async def answer_table(
    request: Request, table: Table, subject: Subject, form: Form, *, following: str | object | None = _ALONE
) -> Response:
    """
    `table` as asked for. Of an answer in pages `following` is the next one's cursor, None on the last: `next` in JSON,
    and a Link header in every form (RFC 8288). To an analyst every form is without names.

    Raises InvalidInput (NB-1207): no Parquet here; AccessDenied (NB-1160): an analyst asked for names.
    """
    more = {} if following is _ALONE else {"next": following}
    suppressed = 0
    is_analyst = not get_person(request).is_staff(parse_id(request.path_params["course_id"]))
    if is_analyst and form.is_identified:
        raise AccessDenied("NB-1160")
    hides_people = is_analyst or form.hides_people
    if hides_people:
        # Shared by the API's processes, and forgotten: afterwards nobody can tell who was whom.
        cache, place = get_context(request).cache, f"nbpulse:pseudonyms:{subject.course.short_name}"
        key = await cache.get_or_make(place, KEY_LIFE_S, _make_key)
        table, suppressed = pseudonymise(table, key, has_paths=not is_analyst)
    # In a thread: the Parquet library is half a second of imports.
    facts = {"identified": not hides_people, "suppressed_rows": suppressed}
    content = await asyncio.to_thread(_compose, table, subject, form, more, facts)
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"Cache-Control": "no-store", "ETag": tag}  # a program may keep it, a browser may not
    if more.get("next"):
        # Relative, since a proxy may know this place by another name.
        headers["Link"] = f'<?{request.url.include_query_params(cursor=following).query}>; rel="next"'
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if suppressed:
        headers["NBPULSE-Suppressed-Rows"] = str(suppressed)
    if form.name not in ("json", "manifest"):
        headers["Content-Disposition"] = _name_file(subject, form.name)
    return Response(content, 200, headers, _KINDS[form.name])


async def _make_key() -> bytes:
    return secrets.token_bytes(32)


def _compose(table: Table, subject: Subject, form: Form, more: dict[str, Any], facts: dict[str, Any]) -> bytes:
    if form.name == "csv":
        return _compose_csv(table).encode("utf-8-sig" if form.has_bom else "utf-8")
    if form.name == "parquet":
        return _compose_parquet(table)
    if form.name == "manifest":
        return _encode(_describe(table, subject) | facts)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    if form.name == "ndjson":
        return b"".join(_encode(row) + b"\n" for row in rows)
    return _encode({subject.name.replace("-", "_"): rows, **more})


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


def _compose_parquet(table: Table) -> bytes:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise InvalidInput("NB-1207") from error
    types = {
        "integer": pa.int64(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
        "time": pa.timestamp("us", tz="UTC"),
    }
    schema = pa.schema(
        [(name, types.get(kind, pa.string())) for name, kind in zip(table.columns, table.types, strict=True)]
    )
    columns = list(zip(*table.rows, strict=True)) if table.rows else [()] * len(table.columns)
    texts = [
        [None if value is None else str(value) for value in values] if kind in ("text", "uuid") else list(values)
        for values, kind in zip(columns, table.types, strict=True)
    ]
    arrays = [pa.array(values, type=field.type) for values, field in zip(texts, schema, strict=True)]
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), out)
    return out.getvalue()


def _describe(table: Table, subject: Subject) -> dict[str, Any]:
    return {
        "name": subject.name,
        "course": subject.course.short_name,
        "time_zone": subject.course.time_zone,
        "window": subject.span and {"start": subject.span.start, "end": subject.span.end},
        "generated_at": datetime.now(UTC),
        "row_count": len(table.rows),
        "columns": [
            {"name": column, "type": kind, "unit": _find_unit(column, kind)}
            for column, kind in zip(table.columns, table.types, strict=True)
        ],
    }


def _find_unit(column: str, kind: str) -> str | None:
    if kind == "time":
        return "UTC"
    return next((unit for ending, unit in _UNITS if column.endswith(ending)), None)


def _name_file(subject: Subject, ending: str) -> str:
    """Course, name and days in the course's time zone; in ASCII too, for what reads no other name (RFC 6266)."""
    course, span = subject.course, subject.span
    days = f"-{span.first_day(course.zone)}-{span.last_day(course.zone)}" if span else ""
    whole = f"{course.short_name}-{subject.name}{days}.{ending}"
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", whole)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(whole, safe='')}"
