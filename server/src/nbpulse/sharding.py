"""`nbpulse shard ...`: which database holds which students' rows."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from nbpulse.administration import show_table
from nbpulse.errors import StartupError
from nbpulse.preparation import ensure_newest, find_newest_revision, make_passwords
from nbpulse.records import primaries
from nbpulse.records.databases import find_shard_url, list_databases, list_places
from nbpulse.records.owner import OwnerPool, open_owner, read_revision
from nbpulse.shards import MAIN
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
