"""Which database holds which students' rows: databases added, shards moved between them, all of it checked.

Promises: what was killed goes on where it was when it is asked for again; nothing is begun that cannot be meant.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nbpulse.errors import NbpulseError, StartupError
from nbpulse.preparation import ensure_newest, find_newest_revision, make_passwords
from nbpulse.records import moves, primaries
from nbpulse.records.databases import find_shard_url, list_databases, list_places
from nbpulse.records.owner import OwnerPool, open_owner, read_revision
from nbpulse.shards import MAIN, SHARD_COUNT
from nbpulse.terminal import get_text, say, show_progress

if TYPE_CHECKING:
    from nbpulse.settings import Settings

_LOOK_S: Final = 0.1


def _require_url(settings: Settings) -> str:
    if not settings.database_url:
        raise StartupError("NB-3052", setting="NBPULSE_DATABASE_URL")
    return settings.database_url


async def add_database(settings: Settings, name: str, url: str) -> None:
    """Make an empty database one of the map's; done again it goes on where it was killed."""
    main_url, passwords = _require_url(settings), make_passwords(settings)
    if name == MAIN or not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
        raise StartupError("NB-3122", name=name)
    async with open_owner(main_url) as directory, open_owner(url) as there:
        if await read_revision(directory) != find_newest_revision():
            raise StartupError("NB-3127")
        known = {one["name"]: one["url"] for one in await list_databases(directory)}
        if name in known and known[name] != primaries.strip_password(url):
            raise StartupError("NB-3122", name=name)
        await primaries.check_server(directory, MAIN)
        if await primaries.check_server(there, name):
            await primaries.check_new(there, name)
    await ensure_newest(url, passwords)
    async with open_owner(main_url) as directory, open_owner(url) as there:
        if name not in known:
            await primaries.empty_hands(there)
        password = settings.make_password(primaries.REPLICATOR)
        for server in (directory, there):
            await primaries.make_replicator(server, password)
        await primaries.publish_directory(directory)
        await primaries.subscribe(
            directory,
            there,
            primaries.DIRECTORY,
            slot=primaries.make_slot_name(primaries.DIRECTORY, main_url, url),
            conninfo=find_shard_url(main_url, primaries.REPLICATOR, password),
        )
        await _follow_copy(there, primaries.DIRECTORY, get_text("shard_copying_directory", name=name))
        await primaries.add_database(directory, name, url)


@dataclass(frozen=True)
class Plan:
    """What was asked for: shards (none: see `is_spread`, else the moves that were begun) and the databases to go to."""

    shards: list[int]
    targets: list[str]
    is_spread: bool
    is_aborted: bool


def parse_shard(name: str) -> int:
    """`shard_17` or `17`. Raises StartupError (NB-3128)."""
    digits = name.removeprefix("shard_")
    if not digits.isdecimal() or int(digits) >= SHARD_COUNT:
        raise StartupError("NB-3128", name=name, count=SHARD_COUNT - 1)
    return int(digits)


@asynccontextmanager
async def _open_site(settings: Settings) -> AsyncIterator[moves.Site]:
    async with AsyncExitStack() as stack:
        urls = {MAIN: _require_url(settings)}
        pools = {MAIN: await stack.enter_async_context(open_owner(urls[MAIN]))}
        for one in await list_databases(pools[MAIN]):
            if one["url"]:
                urls[one["name"]] = one["url"]
                pools[one["name"]] = await stack.enter_async_context(open_owner(one["url"]))
        yield moves.Site(pools, urls, settings.make_password(primaries.REPLICATOR))


async def move(settings: Settings, plan: Plan) -> dict[str, float]:
    """
    Each shard after the other; what was begun before and is asked for again goes on where it was. How long the writes
    of each moved shard paused, in seconds.
    """
    pauses: dict[str, float] = {}
    async with _open_site(settings) as site:
        try:
            async with moves.hold_moves(site.directory):
                begun = await moves.list_moves(site.directory)
                if plan.shards:
                    begun = [one for one in begun if one.shard in plan.shards]
                for one in begun if plan.is_aborted else ():
                    await moves.abort(site, one)
                    say(get_text("shard_stayed", shard=f"shard_{one.shard}", source=one.source))
                for one in () if plan.is_aborted else await _choose(site, plan, begun):
                    pauses[f"shard_{one.shard}"] = await _move_one(site, one)
        except NbpulseError:
            raise
        except Exception as error:
            raise StartupError("NB-3130", detail=f"{type(error).__name__}: {error}") from error
    return pauses


async def _move_one(site: moves.Site, move: moves.Move) -> float:
    name = f"shard_{move.shard}"
    with show_progress(get_text("shard_moving", shard=name, source=move.source, target=move.target)) as progress:
        pause_s = await moves.finish(site, move, lambda share: progress(int(share * 100), 100))
    say(get_text("shard_moved", shard=name, target=move.target, pause_ms=round(pause_s * 1000)))
    return pause_s


async def _choose(site: moves.Site, plan: Plan, begun: list[moves.Move]) -> list[moves.Move]:
    """The moves to be made, those that were begun first. Raises StartupError: NB-3128, NB-3133."""
    if not plan.shards and not plan.is_spread:
        if not begun and not plan.targets:
            return []
        if plan.targets and not begun:
            raise StartupError("NB-3128", name="", count=SHARD_COUNT - 1)
        return begun
    targets = plan.targets or (list(site.pools) if plan.is_spread else [one.target for one in begun][:1])
    if unknown := [one for one in targets if one not in site.pools] or ([] if targets else ["--to"]):
        raise StartupError("NB-3134", name=unknown[0])
    places = {one["shard"]: one["database"] for one in await list_places(site.directory)}
    shards = plan.shards or list(places)
    goals = spread_shards({shard: places[shard] for shard in shards}, targets)
    goals |= {one.shard: one.target for one in begun if plan.is_spread}
    chosen = [await moves.begin(site.directory, shard, goal) for shard, goal in sorted(goals.items())]
    return [one for one in chosen if one is not None]


def spread_shards(places: Mapping[int, str], targets: Sequence[str]) -> dict[int, str]:
    """For each shard (by where it is) one of `targets`, evenly, with as few moves as that takes."""
    room = {
        name: len(places) // len(targets) + (place < len(places) % len(targets)) for place, name in enumerate(targets)
    }
    goals = {}
    for shard, name in sorted(places.items()):
        if room.get(name, 0) > 0:
            goals[shard] = name
            room[name] -= 1
    for shard in sorted(places.keys() - goals.keys()):
        goals[shard] = max(room, key=lambda name: room[name])
        room[goals[shard]] -= 1
    return goals


async def verify(settings: Settings) -> list[str]:
    """What is not as the map says, a sentence each."""
    async with _open_site(settings) as site:
        return await moves.verify(site)


async def _follow_copy(target: OwnerPool, publication: str, what: str) -> None:
    """Wait, with a bar, until every table's first copy is done."""
    with show_progress(what) as progress:
        while True:
            done, total = await primaries.count_synced(target, publication)
            progress(done, total)
            if total and done == total:
                return
            await asyncio.sleep(_LOOK_S)


async def read_map(settings: Settings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The databases, and each shard with its database, state and epoch."""
    async with open_owner(_require_url(settings)) as pool:
        return await list_databases(pool), await list_places(pool)
