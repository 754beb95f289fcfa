"""`nbpulse shard ...`: which database holds which students' rows."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbpulse.errors import StartupError
from nbpulse.terminal import answer, get_text, say

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

    @shards.command(
        "add", **_describe("shard_add", "shard add b --url postgresql://postgres:secret@10.0.0.12:5432/nbpulse")
    )
    def add_shard_database(
        name: Annotated[str, typer.Argument(metavar="NAME", help=get_text("arg_shard_name"))],
        url: Annotated[str, typer.Option("--url", help=get_text("opt_shard_url"))],
        data: _Data = None,
    ) -> None:
        from nbpulse import placement

        asyncio.run(placement.add_database(connect(data), name, url))
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
        from nbpulse import placement

        wanted = [placement.parse_shard(name) for name in names or ()]
        plan = placement.Plan(wanted, to or [], is_spread=spread, is_aborted=is_aborted)
        pauses = asyncio.run(placement.move(connect(data), plan))
        if as_json:
            answer(json.dumps({"pause_s": pauses}))
        elif not pauses and not is_aborted:
            say(get_text("shards_there"))

    @shards.command("verify", **_describe("shard_verify", "shard verify"))
    def verify_shards(data: _Data = None, as_json: _Json = False) -> None:
        from nbpulse import placement

        wrong = asyncio.run(placement.verify(connect(data)))
        if as_json:
            answer(json.dumps({"wrong": wrong}))
        elif wrong:
            raise StartupError("NB-3132", detail="; ".join(wrong))
        else:
            say(get_text("shards_right"))
        raise typer.Exit(1 if wrong else 0)

    @shards.command("list", **_describe("shard_list", "shard list --json"))
    def show_shards(data: _Data = None, as_json: _Json = False) -> None:
        from nbpulse import placement

        databases, places = asyncio.run(placement.read_map(connect(data)))
        if as_json:
            answer(json.dumps({"databases": databases, "shards": places}))
        else:
            _show_map(databases, places)


def _show_map(databases: list[dict[str, Any]], places: list[dict[str, Any]]) -> None:
    """Each database with the count of its shards."""
    from nbpulse.administration import show_table

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
