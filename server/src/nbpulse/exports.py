"""`nbpulse export-user`: everything that is held of one person, in a file for them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nbpulse.crypto import EncryptedField
from nbpulse.errors import NotFound, StartupError
from nbpulse.offline import open_stores
from nbpulse.portable import ExportWriter
from nbpulse.records import erasing, exporting
from nbpulse.records.audit import note_audit
from nbpulse.records.owner import OwnerPool, open_owners
from nbpulse.resources import open_outer_stores
from nbpulse.settings import Settings
from nbpulse.shards import MAIN
from nbpulse.terminal import get_text, say

if TYPE_CHECKING:
    from nbpulse.resources import OuterStores


def export_user(settings: Settings, name: str, file: Path, *, overwrite: bool) -> dict[str, int]:
    """
    Write `file` (0600); how many rows of each table are in it.

    Raises NotFound (NB-3023): nobody bears that name; StartupError: the file is there (NB-3091) or cannot be written
    (NB-3092); Unavailable: a store is away.
    """
    if file.exists() and not overwrite:
        raise StartupError("NB-3091", path=file)
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            counts = asyncio.run(_export(settings, name, out))
        draft.replace(file)
    except OSError as error:
        raise StartupError("NB-3092", path=file, detail=error.strerror or str(error)) from error
    finally:
        draft.unlink(missing_ok=True)
    say(get_text("exported", count=sum(counts.values()), file=file))
    return counts


async def _export(settings: Settings, name: str, out: IO[bytes]) -> dict[str, int]:
    with open_stores(settings.data_dir, settings.database_url, settings.redis_url) as urls:
        async with (
            open_owners(urls[0]) as pools,
            open_outer_stores(settings, pools[MAIN], urls[1]) as stores,
        ):
            pool = pools[MAIN]
            seal = EncryptedField(settings.read_encryption_keys())
            found = await erasing.find_people(pool, seal, name)
            if not found:
                raise NotFound("NB-3023", thing="user", id=name, command="nbpulse token list")
            return await _write(ExportWriter(out), pools, seal, stores, found[0])


async def _write(
    writer: ExportWriter,
    pools: Mapping[str, OwnerPool],
    seal: EncryptedField,
    stores: OuterStores,
    person: erasing.Held,
) -> dict[str, int]:
    pool = pools[MAIN]
    user_ids = await erasing.find_ids(pool, person.user_id)
    # What is on its way is read first: processed meanwhile, it is in both, and nothing is in neither.
    needles = [str(one).encode() for one in user_ids]
    waiting = [[one.decode("utf-8", "backslashreplace")] async for one in stores.stream.read_payloads(needles)]
    async with exporting.read_all(pools.values()) as connections:
        await exporting.write_tables(connections[0], seal, user_ids, writer, connections)
        await note_audit(connections[0], "data_exported", subject_id=person.user_id, facts={"by": "operator"})
    writer.write_table("stream", ["payload"], waiting)
    for series in stores.series:
        if series.has_server:
            points: list[list[Any]] = []
            for user_id in user_ids:
                points += [[one] for one in await series.read_points(user_id)]
            writer.write_table("influxdb", ["point"], points)
    return writer.close(user_id=person.user_id, username=person.username, name=person.shown, courses=person.courses)
