"""`nbpulse backup` and `nbpulse restore`: everything in one file, and everything back on an empty machine.

Promises:
- Of several databases it is one file; what each held comes back into one, whose shards can be moved again.
- Nothing lost: the streams are read first and PostgreSQL's snapshot is taken then, so whatever was accepted before the
  backup began is in one of them; what was processed in between is in both, and the ledger counts it once.
- A class that runs goes on meanwhile. The file has its name only when it is whole.
- A restore is everything or nothing: PostgreSQL's commit is its last step, entries keep their ids in the stream. Killed
  anywhere before it, the same command starts again; killed after it, everything is there.
- A stream that was not lost can be kept (`--keep-stream`): what it still holds is read again into the restored ledger.
- No text of a person lies open in the file, not even one that waits in the stream as it was sent; the keys are in it
  only when asked for (`--with-keys`), but must be at hand: a backup that nobody can open is none.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from nbpulse import __version__, administration
from nbpulse.archive import (
    FORMAT,
    ArchiveReader,
    ArchiveWriter,
    Manifest,
    Member,
    MemberWriter,
    Part,
    Table,
    read_archive,
    write_archive,
)
from nbpulse.crypto import EncryptedField
from nbpulse.erasure import open_eraser
from nbpulse.errors import StartupError
from nbpulse.keys import write_keys
from nbpulse.offline import open_stores
from nbpulse.preparation import ensure_schema, find_newest_revision, list_revisions, make_passwords, migrate_schema
from nbpulse.records.copying import Load, Snapshot, open_load, open_snapshot, read_clock
from nbpulse.records.moves import hold_all_still
from nbpulse.records.owner import open_owner, open_owners, read_revision
from nbpulse.records.reuniting import PART_TABLES, Reunion
from nbpulse.records.sealing import check_canaries, hold_rotation, make_canary
from nbpulse.resources import open_stream_copy
from nbpulse.settings import Settings
from nbpulse.shards import MAIN
from nbpulse.stream.copying import StreamCopy, decode_entry, read_place
from nbpulse.terminal import answer, get_text, say, show_progress

_SERIES = "timeseries.cell_executions"
_LEDGER = "public.events"
_WRITE_ENTRIES = 1_000
Report = Callable[[int, int], None]


def back_up(settings: Settings, file: Path, *, overwrite: bool, with_keys: bool, as_json: bool) -> None:
    """
    Write everything to `file`.

    Raises StartupError: the file is there (NB-3070) or cannot be written (NB-3071), the database has no tables of ours
    (NB-3076), its login does not see every row (NB-3063), new keys are being taken into use (NB-3062), the keys are
    missing (NB-3075) or others (NB-3060); of several databases one is away (NB-3135) or behind (NB-3136), or a shard
    moves (NB-3129, NB-3137).
    """
    began_s = time.monotonic()
    with (
        write_archive(file, overwrite=overwrite) as archive,
        open_stores(settings.data_dir, settings.database_url, settings.redis_url) as urls,
        show_progress(get_text("backup_running")) as report,
    ):
        manifest = asyncio.run(_write(archive, settings, *urls, report, with_keys=with_keys))
    facts = _describe(file, manifest, began_s)
    if as_json:
        answer(json.dumps(facts))
    say(get_text("backup_done", **facts))
    if with_keys:
        say(get_text("backup_keys_inside"))
    else:
        say(get_text("backup_keys_apart", place=settings.key_file or "NBPULSE_ENCRYPTION_KEYS"))


async def _write(
    archive: ArchiveWriter, settings: Settings, database_url: str, redis_url: str, report: Report, *, with_keys: bool
) -> Manifest:
    async with open_owners(database_url) as pools:
        pool = pools[MAIN]
        if await read_revision(pool) is None:
            raise StartupError("NB-3076")
        # No key comes or goes between the stream, the snapshots and what is said of keys; no row changes its database.
        async with hold_all_still(pools), hold_rotation(pool), open_stream_copy(redis_url) as stream:
            seal = EncryptedField(keys := _read_keys(settings))
            began_at = await read_clock(pool)
            with archive.add("stream") as member:
                async for batch in stream.read():
                    member.write(b"".join(entry.encode(seal) for entry in batch))
            entries = member.finish()
            # Only now: see the promise at the top. The directory last: whom the others' rows speak of is there.
            async with AsyncExitStack() as stack:
                others = {
                    name: await stack.enter_async_context(open_snapshot(one, PART_TABLES))
                    for name, one in pools.items()
                    if name != MAIN
                }
                snapshot = await stack.enter_async_context(open_snapshot(pool))
                canaries = _check_snapshots(seal, snapshot, others)
                total = sum([await one.count_rows() for one in (snapshot, *others.values())])
                tell = _count_towards(report, total)
                tables = await _write_tables(archive, snapshot, tell)
                parts = [
                    Part(
                        name,
                        [shard for shard, database in snapshot.places if database == name],
                        await _write_tables(archive, other, tell, place=f"{name}/"),
                        other.partitions,
                    )
                    for name, other in others.items()
                ]
    manifest = Manifest(
        format=FORMAT if parts else 1,
        nbpulse=__version__,
        revision=snapshot.revision,
        began_at=began_at,
        # The newest key has sealed the stream's entries, whether the database knows it yet or not.
        canaries={seal.key_ids[0]: make_canary(seal)} | canaries,
        keys=_write_keys(archive, keys) if with_keys else None,
        stream=entries,
        tables=tables,
        partitions=snapshot.partitions,
        parts=parts,
    )
    archive.close(manifest)
    return manifest


def _read_keys(settings: Settings) -> list[bytes]:
    """Those that are there: a new one would open nothing. Raises StartupError (NB-3075)."""
    if settings.key_file is not None and not settings.key_file.exists():
        raise StartupError("NB-3075", path=settings.key_file)
    return settings.read_encryption_keys()


def _check_snapshots(seal: EncryptedField, directory: Snapshot, others: Mapping[str, Snapshot]) -> dict[str, str]:
    """Every database's canaries. Raises StartupError: keys are missing (NB-3060), a database is behind (NB-3136)."""
    canaries: dict[str, str] = {}
    for name, one in (*others.items(), (MAIN, directory)):
        if one.revision != directory.revision:
            raise StartupError("NB-3136", name=name, found=one.revision, expected=directory.revision)
        check_canaries(seal, one.canaries.values())
        canaries |= one.canaries
    return canaries


def _count_towards(report: Report, total: int) -> Callable[[int], None]:
    done = 0

    def tell(rows: int) -> None:
        nonlocal done
        done += rows
        report(done, total)

    return tell


async def _write_tables(
    archive: ArchiveWriter, snapshot: Snapshot, tell: Callable[[int], None], *, place: str = ""
) -> list[Table]:
    tables = []
    for name, columns in snapshot.tables.items():
        with archive.add(f"{place}{name}") as member:

            def write(data: bytes, member: MemberWriter = member) -> None:
                tell(member.write(data))

            await snapshot.copy_table(name, write)
        tables.append(Table(name, columns, member.finish()))
    return tables


def _write_keys(archive: ArchiveWriter, keys: list[bytes]) -> Member:
    with archive.add("encryption.key") as member:
        member.write(b"".join(key + b"\n" for key in keys))
    return member.finish()


def restore(settings: Settings, file: Path, *, keep_stream: bool, as_json: bool) -> None:
    """
    Bring back what `back_up` wrote, into empty stores; with `keep_stream` beside a stream that was not lost. What was
    in several databases comes into one.

    Raises StartupError, and then nothing is there: no whole backup (NB-3072), of a newer nbpulse (NB-3073), the stores
    are not empty (NB-3074) or several databases (NB-3121), the keys are missing (NB-3075) or others (NB-3060).
    """
    began_s = time.monotonic()
    with read_archive(file) as archive:
        manifest = archive.manifest
        if manifest.revision not in list_revisions():
            raise StartupError("NB-3073", path=file, revision=manifest.revision)
        seal = _provide_seal(settings, archive)
        with open_stores(settings.data_dir, settings.database_url, settings.redis_url, may_be_new=True) as urls:
            settings = msgspec.structs.replace(settings, database_url=urls[0], redis_url=urls[1])
            with show_progress(get_text("restore_running")) as report:
                span = asyncio.run(_read(archive, settings, urls, seal, report, keep_stream=keep_stream))
            asyncio.run(_erase_again(settings, *urls))
            # The series lie in the archive only if they lay in PostgreSQL.
            if span and (settings.influx_url or not _count_rows(manifest, _SERIES)):
                points, refused = administration.rebuild_timeseries(settings, span[0], span[1] + timedelta(seconds=1))
                say(get_text("rebuilt", count=points, refused=refused))
    facts = _describe(file, manifest, began_s)
    if as_json:
        answer(json.dumps(facts))
    say(get_text("restore_done", **facts))
    if manifest.parts:
        say(get_text("restore_of_several", count=len(manifest.parts) + 1))


async def _erase_again(settings: Settings, database_url: str, redis_url: str) -> None:
    """Who was erased after the backup was made is erased from what it has brought back."""
    async with open_eraser(settings, database_url, redis_url, settle_s=0) as eraser:
        if count := await eraser.erase_again():
            say(get_text("restore_erased", count=count))
        await eraser.finish_all()


def _provide_seal(settings: Settings, archive: ArchiveReader) -> EncryptedField:
    """What opens everything in the archive; where this machine has no keys, those inside become its own."""
    manifest = archive.manifest
    if settings.key_file is None or settings.key_file.exists() or manifest.keys is None:
        keys = _read_keys(settings)
    else:
        keys = b"".join(archive.read(manifest.keys)).split()
    seal = EncryptedField(keys)
    check_canaries(seal, manifest.canaries.values())
    if settings.key_file is not None and not settings.key_file.exists():
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        write_keys(settings.key_file, keys)
    return seal


async def _read(
    archive: ArchiveReader,
    settings: Settings,
    urls: tuple[str, str],
    seal: EncryptedField,
    report: Report,
    *,
    keep_stream: bool,
) -> tuple[datetime, datetime] | None:
    database_url, redis_url = urls
    manifest = archive.manifest
    total = manifest.stream.rows + _count_rows(manifest)
    async with open_owner(database_url, alone="restore") as pool:
        found = await read_revision(pool)
        if found is None:
            await migrate_schema(database_url, make_passwords(settings), manifest.revision)
        elif found != manifest.revision:
            raise StartupError("NB-3074", place=f"schema {found}")
        async with open_load(pool, manifest.tables) as load:
            for partitions in (manifest.partitions, *(part.partitions for part in manifest.parts)):
                await load.make_partitions(partitions)
            done = await _load_tables(archive, load, lambda rows: report(rows, total))
            span = await load.finish(manifest.began_at)
            async with open_stream_copy(redis_url) as stream:
                load_entries = _add_entries if keep_stream else _load_entries
                await load_entries(archive, seal, stream, lambda rows: report(done + rows, total))
    # A login that may only load need not be able to do more, where `migrate` has prepared the newest schema.
    if found is None or manifest.revision != find_newest_revision():
        await ensure_schema(settings)
    return span


async def _load_tables(archive: ArchiveReader, load: Load, report: Callable[[int], None]) -> int:
    """How many rows there are."""
    done = 0

    def follow(member: Member) -> Any:
        nonlocal done
        for chunk in archive.read(member):
            yield chunk
            done += chunk.count(b"\n")
            report(done)

    for table in load.order(archive.manifest.tables):
        await load.load_table(table, follow(table.rows))
    if archive.manifest.parts:
        reunion = Reunion(load)
        for part in archive.manifest.parts:
            await reunion.begin(part)
            for table in part.tables:
                await reunion.load_table(table, follow(table.rows))
            await reunion.end(part)
        await reunion.finish()
    return done


async def _load_entries(
    archive: ArchiveReader, seal: EncryptedField, stream: StreamCopy, report: Callable[[int], None]
) -> None:
    """Into an empty server. Read twice: nothing is written before all of it is known to be whole."""
    member = archive.manifest.stream
    present = await stream.find_present({read_place(line) for line in archive.read_lines(member)})
    lines = (line for line in archive.read_lines(member) if read_place(line) not in present)
    done = len(present)
    while batch := list(islice(lines, _WRITE_ENTRIES)):
        await stream.write(decode_entry(line, seal) for line in batch)
        done += len(batch)
        report(done)


async def _add_entries(
    archive: ArchiveReader, seal: EncryptedField, stream: StreamCopy, report: Callable[[int], None]
) -> None:
    """Behind what a server holds that was not lost, all of which is read again; the ledger takes each event once."""
    lines, done = archive.read_lines(archive.manifest.stream), 0
    while batch := list(islice(lines, _WRITE_ENTRIES)):
        await stream.add([decode_entry(line, seal) for line in batch])
        done += len(batch)
        report(done)
    await stream.rewind()


def _count_rows(manifest: Manifest, name: str | None = None) -> int:
    tables = (*manifest.tables, *(table for part in manifest.parts for table in part.tables))
    return sum(table.rows.rows for table in tables if name in (None, table.name))


def _describe(file: Path, manifest: Manifest, began_s: float) -> dict[str, Any]:
    size_bytes = file.stat().st_size
    return {
        "file": str(file),
        "began_at": manifest.began_at.isoformat(timespec="seconds"),
        "size_bytes": size_bytes,
        "size_mb": round(size_bytes / 1e6, 1),
        "events": _count_rows(manifest, _LEDGER),
        "rows": _count_rows(manifest),
        "stream_entries": manifest.stream.rows,
        "has_keys": manifest.keys is not None,
        "duration_s": round(time.monotonic() - began_s, 1),
    }
