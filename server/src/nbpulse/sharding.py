"""`nbpulse shard ...`: which database holds which students' rows."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from nbpulse.administration import show_table
from nbpulse.errors import NbpulseError, StartupError
from nbpulse.preparation import ensure_newest, find_newest_revision, make_passwords
from nbpulse.records import moves, primaries
from nbpulse.records.databases import find_shard_url, list_databases, list_places
from nbpulse.records.owner import OwnerPool, open_owner, read_revision
from nbpulse.shards import MAIN, SHARD_COUNT
from nbpulse.terminal import answer, get_text, say, show_progress

if TYPE_CHECKING:
    from nbpulse.settings import Settings

_Data = Annotated[Path | None, typer.Option("--data", envvar="NBPULSE_DATA_DIR", help=get_text("opt_data"))]
_Json = Annotated[bool, typer.Option("--json", help=get_text("opt_json"))]
_Connect = Callable[..., "Settings"]
_LOOK_S: Final = 0.1


def _describe(name: str, example: str) -> dict[str, Any]:
    return {"help": get_text(f"help_{name}"), "epilog": f"{get_text('example')} nbpulse {example}"}


def add_commands(app: typer.Typer, connect: _Connect) -> None:
    """Add them to a command line that knows where the stores are."""
    shards = typer.Typer(**_describe("shard", "shard list"), no_args_is_help=True)
    app.add_typer(shards, name="shard")

    @shards.command(
        "add", **_describe("shard_add", "shard add b --url postgresql://postgres:secret@10.0.0.12:5432/nbpulse")
    )
    def add_shard_database(
        name: Annotated[str, typer.Argument(metavar="NAME", help=get_text("arg_shard_name"))],
        url: Annotated[str, typer.Option("--url", help=get_text("opt_shard_url"))],
        data: _Data = None,
    ) -> None:
        asyncio.run(_add(connect(data), name, url))
        say(get_text("shard_added", name=name))

    @shards.command("move", **_describe("shard_move", "shard move shard_17 shard_18 --to b"))
    def move_shards(
        names: Annotated[list[str] | None, typer.Argument(metavar="[SHARD]...", help=get_text("arg_shards"))] = None,
        *,
        to: Annotated[list[str] | None, typer.Option("--to", metavar="NAME", help=get_text("opt_shard_to"))] = None,
        spread: Annotated[bool, typer.Option("--spread", help=get_text("opt_spread"))] = False,
        is_aborted: Annotated[bool, typer.Option("--abort", help=get_text("opt_abort"))] = False,
        data: _Data = None,
        as_json: _Json = False,
    ) -> None:
        wanted = [_parse_shard(name) for name in names or ()]
        plan = _Plan(wanted, to or [], is_spread=spread, is_aborted=is_aborted)
        asyncio.run(_move(connect(data), plan, as_json=as_json))

    @shards.command("verify", **_describe("shard_verify", "shard verify"))
    def verify_shards(data: _Data = None, as_json: _Json = False) -> None:
        wrong = asyncio.run(_verify(connect(data)))
        if as_json:
            answer(json.dumps({"wrong": wrong}))
        elif wrong:
            raise StartupError("NB-3132", detail="; ".join(wrong))
        else:
            say(get_text("shards_right"))
        raise typer.Exit(1 if wrong else 0)

    @shards.command("list", **_describe("shard_list", "shard list --json"))
    def show_shards(data: _Data = None, as_json: _Json = False) -> None:
        asyncio.run(_list(connect(data), as_json=as_json))


def _require_url(settings: Settings) -> str:
    if not settings.database_url:
        raise StartupError("NB-3052", setting="NBPULSE_DATABASE_URL")
    return settings.database_url


async def _add(settings: Settings, name: str, url: str) -> None:
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
class _Plan:
    """What was asked for: shards (none: see `is_spread`, else the moves that were begun) and the databases to go to."""

    shards: list[int]
    targets: list[str]
    is_spread: bool
    is_aborted: bool


def _parse_shard(name: str) -> int:
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


async def _move(settings: Settings, plan: _Plan, *, as_json: bool) -> None:
    """Each shard after the other; what was begun before and is asked for again goes on where it was."""
    pauses: dict[str, float] = {}
    async with _open_site(settings) as site:
        try:
            async with moves.hold_moves(site.directory):
                begun = await moves.list_moves(site.directory)
                if plan.shards:
                    begun = [one for one in begun if one.shard in plan.shards]
                for move in begun if plan.is_aborted else ():
                    await moves.abort(site, move)
                    say(get_text("shard_stayed", shard=f"shard_{move.shard}", source=move.source))
                for move in () if plan.is_aborted else await _choose(site, plan, begun):
                    pauses[f"shard_{move.shard}"] = await _move_one(site, move)
        except NbpulseError:
            raise
        except Exception as error:
            raise StartupError("NB-3130", detail=f"{type(error).__name__}: {error}") from error
    if as_json:
        answer(json.dumps({"pause_s": pauses}))
    elif not pauses and not plan.is_aborted:
        say(get_text("shards_there"))


async def _move_one(site: moves.Site, move: moves.Move) -> float:
    name = f"shard_{move.shard}"
    with show_progress(get_text("shard_moving", shard=name, source=move.source, target=move.target)) as progress:
        pause_s = await moves.finish(site, move, lambda share: progress(int(share * 100), 100))
    say(get_text("shard_moved", shard=name, target=move.target, pause_ms=round(pause_s * 1000)))
    return pause_s


async def _choose(site: moves.Site, plan: _Plan, begun: list[moves.Move]) -> list[moves.Move]:
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


async def _verify(settings: Settings) -> list[str]:
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


async def _list(settings: Settings, *, as_json: bool) -> None:
    """Each database with its shards; as JSON each shard with its database, state and epoch."""
    async with open_owner(_require_url(settings)) as pool:
        databases, places = await list_databases(pool), await list_places(pool)
    if as_json:
        answer(json.dumps({"databases": databases, "shards": places}))
        return
    counts = Counter(place["database"] for place in places)
    moving = Counter(place["database"] for place in places if place["state"] == "moving")
    show_table(
        "",
        ["database", "address", "shards", "moving away"],
        [
            [one["name"], one["url"] or "NBPULSE_DATABASE_URL", str(counts[one["name"]]), str(moving[one["name"]])]
            for one in databases
        ],
    )
