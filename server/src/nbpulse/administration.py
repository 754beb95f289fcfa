"""The operator's errands: a new link, tokens, dead letters, the end of a demo class."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec

from nbpulse.cache import Cache
from nbpulse.connections import open_redis
from nbpulse.crypto import EncryptedField
from nbpulse.directory import read_running
from nbpulse.errors import NotFound, StartupError, Unavailable
from nbpulse.offline import open_database
from nbpulse.preparation import DEMO_SHORT_NAME, ensure_course
from nbpulse.records import carrying, derived, merging, points
from nbpulse.records.courses import Courses, clear_removed
from nbpulse.records.databases import list_places
from nbpulse.records.dead_letters import DeadLetter, DeadLetters
from nbpulse.records.moves import hold_all_still
from nbpulse.records.own_tokens import list_tokens
from nbpulse.records.owner import find_user_id, open_owner, open_owners
from nbpulse.records.people import People
from nbpulse.settings import Settings
from nbpulse.shards import MAIN
from nbpulse.simulator import TRUTH_FILE, measure_trouble, rank_by_need, read_truth
from nbpulse.terminal import answer, disarm, get_text, say

_HEAR_S: Final = 30.0


@asynccontextmanager
async def _open_people(settings: Settings) -> AsyncIterator[tuple[Any, EncryptedField]]:
    async with open_owner(_require_url(settings)) as pool:
        yield pool, EncryptedField(settings.read_encryption_keys())


def _require_url(settings: Settings) -> str:
    if not settings.database_url:
        raise StartupError("NB-3052", setting="NBPULSE_DATABASE_URL")
    return settings.database_url


async def create_link(settings: Settings) -> tuple[str, dict[str, str]]:
    """A sign-in code for the teacher, and the course it leads to; both made where there is none yet."""
    async with _open_people(settings) as (pool, seal):
        course, teacher_id = await ensure_course(pool, seal)
        code = await People(pool, seal).create_link(teacher_id)
    return code, {"course_id": str(course.id), "course_title": course.title, "join_code": course.join_code}


def merge_people(settings: Settings, keep: str, drop: str) -> int:
    """
    Make the user `drop` part of `keep` (usernames or ids); how many events changed hands.

    Raises NotFound (NB-3023), InvalidInput (NB-1021, NB-1022); on a site of several databases what
    `carrying.merge_across` raises too.
    """

    async def merge() -> int:
        seal = EncryptedField(settings.read_encryption_keys())
        async with open_owners(_require_url(settings)) as pools, hold_all_still(pools):
            keep_id, drop_id = [await _find_user(pools[MAIN], name) for name in (keep, drop)]
            if len(pools) == 1:
                return await merging.merge_users(pools[MAIN], seal, keep_id=keep_id, drop_id=drop_id)
            places = {row["shard"]: row["database"] for row in await list_places(pools[MAIN])}
            site, full_texts = carrying.Site(pools, places), settings.has_full_texts
            return await carrying.merge_across(site, seal, keep_id=keep_id, drop_id=drop_id, full_texts=full_texts)

    return asyncio.run(merge())


async def _find_user(pool: Any, name: str) -> UUID:
    with contextlib.suppress(ValueError):
        return UUID(name)
    found = await find_user_id(pool, name)
    if found is None:
        raise NotFound("NB-3023", thing="user", id=name, command="nbpulse token list")
    return found


# --- tokens -----------------------------------------------------------------------------------------------------------


def show_tokens(settings: Settings, *, as_json: bool) -> None:
    """Every token that works, without its secret."""

    async def read() -> list[Any]:
        async with _open_people(settings) as (pool, seal):
            return list(await list_tokens(People(pool, seal)))

    rows = asyncio.run(read())
    if as_json:
        answer(msgspec.json.encode(rows).decode())
        return
    show_table(
        get_text("tokens_none"),
        ["ID", "kind", "label", "scopes", "user", "course", "created", "last used", "expires"],
        [
            [
                str(row.id),
                row.kind,
                row.label or "",
                " ".join(row.scopes),
                row.username,
                row.course_title or "",
                format_time(row.created_at),
                format_time(row.last_used_at),
                format_time(row.expires_at),
            ]
            for row in rows
        ],
    )


def revoke_token(settings: Settings, token_id: str) -> None:
    """Raises NotFound (NB-3023) when no working token has that id."""

    async def revoke() -> None:
        async with _open_people(settings) as (pool, seal):
            user_id = await People(pool, seal).revoke_token(_parse_id(token_id, "token", "nbpulse token list"))
        if user_id is None:
            raise NotFound("NB-3023", thing="token", id=token_id, command="nbpulse token list")
        await announce_access(settings, user_id)

    asyncio.run(revoke())


async def announce_access(settings: Settings, user_id: UUID) -> None:
    """Tell the API processes whose rights are others now; where nothing answers, they find out within 60 s."""
    if settings.redis_url:
        async with open_redis(settings.redis_url) as redis:
            with contextlib.suppress(Unavailable):
                await Cache(redis).announce_access(user_id)


# --- dead letters -----------------------------------------------------------------------------------------------------


def show_letters(settings: Settings, *, as_json: bool) -> None:
    """Events that could not be processed, the oldest first."""
    letters = asyncio.run(_list_letters(settings))
    if as_json:
        answer(msgspec.json.encode(letters).decode())
        return
    show_table(
        get_text("letters_none"),
        ["ID", "since", "code", "reason", "tries", "stream"],
        [
            [str(one.id), format_time(one.first_seen_at), one.code, one.reason, str(one.deliveries), one.stream]
            for one in letters
        ],
    )


async def _list_letters(settings: Settings) -> list[DeadLetter]:
    async with _open_people(settings) as (pool, seal):
        return await DeadLetters(pool, seal).list_letters(limit=1000)


def show_letter(settings: Settings, letter_id: str) -> None:
    """One event in full, with whatever its student wrote. Raises NotFound (NB-3023)."""

    async def read() -> bytes:
        async with _open_people(settings) as (pool, seal):
            return await DeadLetters(pool, seal).read_payload(_parse_letter(letter_id))

    with _name_letter(letter_id):
        payload = asyncio.run(read()).decode("utf-8", "backslashreplace")
    try:
        answer(json.dumps(json.loads(payload), ensure_ascii=False, indent=2))
    except ValueError:  # that is why it lies here
        answer(payload)


def replay_letters(settings: Settings, letter_id: str) -> int:
    """Back into the stream, one or `all`; how many. Raises NotFound (NB-3023), Unavailable (NB-2001)."""

    async def replay() -> int:
        from nbpulse.resources import open_resources

        chosen = await _choose_letters(settings, letter_id)
        async with (
            open_resources(settings, login="nbpulse_worker", pool_size=1) as resources,
            _open_people(settings) as (pool, seal),
        ):
            for one in chosen:
                await DeadLetters(pool, seal).replay(one, resources.stream.append_payloads)
        return len(chosen)

    with _name_letter(letter_id):
        return asyncio.run(replay())


def rebuild_timeseries(settings: Settings, start: datetime, end: datetime) -> tuple[int, int]:
    """
    Write the window's points of all three measurements again from the ledger, with a bar; (points, refused) afterwards.

    Doing it twice changes nothing. Raises Unavailable (NB-2005): what was written stays, do it again.
    """
    from rich.console import Console
    from rich.progress import Progress

    async def rebuild() -> tuple[int, int]:
        from nbpulse.resources import open_resources

        written = rejected = 0
        async with (
            open_resources(settings, login="nbpulse_worker", pool_size=1) as resources,
            open_owners(_require_url(settings)) as pools,
        ):
            seal = EncryptedField(settings.read_encryption_keys())
            work = {name: await derived.find_work(pool, start, end) for name, pool in pools.items()}
            total = sum([await points.count_runs(pool, start, end) + len(work[name]) for name, pool in pools.items()])
            with Progress(console=Console(stderr=True), transient=True) as progress:
                bar = progress.add_task(get_text("rebuilding"), total=total)
                for name, pool in pools.items():
                    refused: list[Any] = []
                    async for batch in points.read_points(pool, seal, start, end, full_text=settings.has_full_texts):
                        refused += await resources.series.write_points(batch)
                        written += len(batch)
                        progress.advance(bar, len(batch))
                    async for count, made in derived.read_derived_points(pool, work[name], start, end):
                        refused += await resources.series.write_points(made)
                        written += len(made)
                        progress.advance(bar, count)
                    await points.replace_rejects(pool, start, end, refused)
                    rejected += len(refused)
            while await resources.series.refresh_rollups():
                pass
        return written, rejected

    return asyncio.run(rebuild())


def drop_letters(settings: Settings, letter_id: str) -> int:
    """Deleted for good, one or `all`; how many. Raises NotFound (NB-3023)."""

    async def drop() -> int:
        chosen = await _choose_letters(settings, letter_id)
        async with _open_people(settings) as (pool, seal):
            for one in chosen:
                await DeadLetters(pool, seal).drop(one)
        return len(chosen)

    with _name_letter(letter_id):
        return asyncio.run(drop())


async def _choose_letters(settings: Settings, letter_id: str) -> list[UUID]:
    if letter_id == "all":
        return [one.id for one in await _list_letters(settings)]
    return [_parse_letter(letter_id)]


def _parse_letter(text: str) -> UUID:
    return _parse_id(text, "dead letter", "nbpulse dead-letters list")


def _parse_id(text: str, thing: str, command: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise NotFound("NB-3023", thing=thing, id=text, command=command) from error


@contextmanager
def _name_letter(letter_id: str) -> Iterator[None]:
    try:
        yield
    except NotFound as error:
        raise NotFound("NB-3023", thing="dead letter", id=letter_id, command="nbpulse dead-letters list") from error


# --- the demo's end ---------------------------------------------------------------------------------------------------


def show_answers(data_dir: Path, *, as_json: bool) -> None:
    """
    Whom the demo's script has in trouble now, who needs help most first; as JSON all that it plants.

    Raises NotFound (NB-1370): no demo has run there.
    """
    truth = read_truth(data_dir)
    if as_json:
        answer(json.dumps(truth, ensure_ascii=False))
        return
    minute = truth["minute"]
    rows = [
        [
            str(place),
            one["seat"],
            one["name"],
            one["number"],
            get_text(f"planted_{one['kind']}"),
            get_text("planted_for", minutes=round(measure_trouble(one, minute))),
        ]
        for place, one in enumerate(rank_by_need(truth["students"], minute), 1)
    ]
    show_table(get_text("planted_none"), get_text("planted_columns").split("|"), rows)


def remove_demo(data_dir: Path, settings: Settings) -> None:
    """
    The demo course and all in it, removed from the running nbpulse's database, else from the one that lies there.

    Raises StartupError: the simulated class is still at work (NB-3025); a further database is away (NB-3135), shards
    move (NB-3129, NB-3137), or one does not follow the directory (NB-3138).
    """
    running = read_running(data_dir)
    if running is not None and (pid := running["pids"].get("demo")):
        raise StartupError("NB-3025", pid=pid)
    with open_database(data_dir, settings.database_url) as database_url:
        count = asyncio.run(_delete_demo(database_url, settings))
    (data_dir / TRUTH_FILE).unlink(missing_ok=True)
    say(get_text("demo_removed", count=count) if count is not None else get_text("demo_none"))


async def _delete_demo(database_url: str, settings: Settings) -> int | None:
    async with open_owners(database_url) as pools:
        pool = pools[MAIN]
        courses = Courses(pool, EncryptedField(settings.read_encryption_keys()))
        course = await courses.find_course(DEMO_SHORT_NAME)
        count = await courses.delete_course(course.id) if course else None
        for name, home in pools.items():  # also what one that was killed has left
            until_s = time.monotonic() + _HEAR_S
            while await clear_removed(home, pool):
                if time.monotonic() > until_s:
                    raise StartupError("NB-3138", name=name)
                await asyncio.sleep(0.1)
    return count


# --- tables -----------------------------------------------------------------------------------------------------------


def show_table(none: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; a sentence on stderr where there is nothing to show."""
    if not rows:
        say(none)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*map(disarm, row))
    with contextlib.suppress(BrokenPipeError):
        Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, markup=False).print(table)


def format_time(moment: datetime | None) -> str:
    """Local time to the minute."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment else "-"
