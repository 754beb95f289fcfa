"""`nbpulse shard ...`: which database holds which students' rows."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbpulse.administration import show_table
from nbpulse.errors import StartupError
from nbpulse.records.databases import list_databases, list_places
from nbpulse.records.owner import open_owner
from nbpulse.terminal import answer, get_text

if TYPE_CHECKING:
    from nbpulse.settings import Settings

_Data = Annotated[Path | None, typer.Option("--data", envvar="NBPULSE_DATA_DIR", help=get_text("opt_data"))]
_Json = Annotated[bool, typer.Option("--json", help=get_text("opt_json"))]
_Connect = Callable[..., "Settings"]


def _describe(name: str, example: str) -> dict[str, Any]:
    return {"help": get_text(f"help_{name}"), "epilog": f"{get_text('example')} nbpulse {example}"}


def add_commands(app: typer.Typer, connect: _Connect) -> None:
    """Add them to a command line that knows where the stores are."""
    shards = typer.Typer(**_describe("shard", "shard list"), no_args_is_help=True)
    app.add_typer(shards, name="shard")

    @shards.command("list", **_describe("shard_list", "shard list --json"))
    def show_shards(data: _Data = None, as_json: _Json = False) -> None:
        asyncio.run(_list(connect(data), as_json=as_json))


async def _list(settings: Settings, *, as_json: bool) -> None:
    """Each database with its shards; as JSON each shard with its database, state and epoch."""
    if not settings.database_url:
        raise StartupError("NB-3052", setting="NBPULSE_DATABASE_URL")
    async with open_owner(settings.database_url) as pool:
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
