"""GET /api/v1/me/export: what is held of whoever asks, as a file for them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import IO, Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from nbpulse.api.context import get_context, get_person
from nbpulse.errors import TooMuch
from nbpulse.portable import ExportWriter
from nbpulse.records import exporting
from nbpulse.records.audit import note_audit
from nbpulse.records.gathering import connect_parts

EVERY_S: Final = 300
_SPOOL_BYTES: Final = 1 << 22
_CHUNK_BYTES: Final = 1 << 16
_LEFT_OUT: Final = (
    "In here is what the person may see by themselves. Staff's notes, dead letters and what is still on its way are"
    " given by the school: nbpulse export-user."
)

router = APIRouter(prefix="/api/v1")


@router.get("/me/export", response_class=Response)
async def export_own(request: Request) -> Response:
    """
    A zip of every table that holds something of the person who asks, each as JSON and CSV, with a manifest; made once
    in five minutes. In every course, whatever course the token is of.
    """
    context, person = get_context(request), get_person(request)
    if not await context.cache.take_turn(f"nbpulse:export:{person.user_id}", EVERY_S):
        raise TooMuch(
            "NB-1346", policy="exports", limit=1, window_s=EVERY_S, retry_after_s=EVERY_S, minutes=EVERY_S // 60
        )
    file: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 - closed when it is sent
    writer = ExportWriter(file)
    try:
        async with connect_parts(context.people, "export_person", whose=person.user_id) as parts:
            await exporting.write_tables(parts.directory, context.people.seal, [person.user_id], writer, [parts.home])
            await note_audit(parts.directory, "data_exported", subject_id=person.user_id, facts={"by": "self"})
        writer.close(user_id=person.user_id, left_out=_LEFT_OUT)
        file.seek(0)
    except BaseException:
        writer.discard()
        file.close()
        raise
    name = f"nbpulse-{datetime.now(UTC):%Y-%m-%d}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(_send(file), 200, headers, "application/zip")


async def _send(file: IO[bytes]) -> AsyncIterator[Any]:
    try:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk
    finally:
        file.close()
