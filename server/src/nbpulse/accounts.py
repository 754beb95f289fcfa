"""`nbpulse user`: accounts for people who sign in at the board, as the operator adds, closes and lists them.

Promises: nobody's password passes through here; a person sets it, by the one-time link that `add` and `link` print.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from nbpulse.errors import NotFound, StartupError
from nbpulse.terminal import answer, get_text, say
from nbpulse.whereabouts import find_address

if TYPE_CHECKING:
    from nbpulse.records.accounts import Account, Accounts
    from nbpulse.records.people import People
    from nbpulse.settings import Settings

Connect = Callable[[Path | None], "Settings"]
DataDir = Annotated[Path | None, typer.Option("--data", envvar="NBPULSE_DATA_DIR", help=get_text("opt_data"))]
Json = Annotated[bool, typer.Option("--json", help=get_text("opt_json"))]
Name = Annotated[str, typer.Argument(metavar="NAME", help=get_text("arg_user"))]


class Role(Enum):
    """Of a course, for whom is not its student."""

    INSTRUCTOR = "instructor"
    ASSISTANT = "assistant"
    ANALYST = "analyst"


def add_commands(app: typer.Typer, connect: Connect) -> None:
    """Give `app` the command and its own."""
    users = typer.Typer(help=get_text("help_user"), epilog=_example("list"), no_args_is_help=True)
    app.add_typer(users, name="user")

    @users.command("add", help=get_text("help_user_add"), epilog=_example("add tanaka --course class"))
    def add(
        name: Name,
        *,
        display_name: Annotated[str | None, typer.Option("--display-name", help=get_text("opt_display_name"))] = None,
        course: Annotated[str | None, typer.Option("--course", help=get_text("opt_user_course"))] = None,
        role: Annotated[Role, typer.Option("--role", help=get_text("opt_user_role"))] = Role.INSTRUCTOR,
        data: DataDir = None,
        as_json: Json = False,
    ) -> None:
        async def work() -> str:
            async with _open(connect(data)) as (accounts, people):
                return await people.create_link(await accounts.add(name, display_name, course, role.value))

        _show_link(asyncio.run(work()), data, as_json=as_json)

    @users.command("link", help=get_text("help_user_link"), epilog=_example("link tanaka"))
    def link(name: Name, data: DataDir = None, as_json: Json = False) -> None:
        async def work() -> str:
            async with _open(connect(data)) as (accounts, people):
                return await people.create_link(await _find(accounts, name))

        _show_link(asyncio.run(work()), data, as_json=as_json)

    @users.command("list", help=get_text("help_user_list"), epilog=_example("list"))
    def list_all(data: DataDir = None, as_json: Json = False) -> None:
        async def work() -> list[Account]:
            async with _open(connect(data)) as (accounts, _):
                return list(await accounts.list())

        _show(asyncio.run(work()), as_json=as_json)

    @users.command("disable", help=get_text("help_user_disable"), epilog=_example("disable tanaka"))
    def disable(name: Name, data: DataDir = None) -> None:
        async def work() -> int:
            async with _open(connect(data)) as (accounts, _):
                user_id = await _find(accounts, name)
                count = await accounts.close(user_id)
            from nbpulse.administration import announce_access

            await announce_access(connect(data), user_id)
            return count

        say(get_text("user_disabled", name=name, count=asyncio.run(work())))

    @users.command("enable", help=get_text("help_user_enable"), epilog=_example("enable tanaka"))
    def enable(name: Name, data: DataDir = None) -> None:
        async def work() -> None:
            async with _open(connect(data)) as (accounts, _):
                await accounts.reopen(await _find(accounts, name))

        asyncio.run(work())
        say(get_text("user_enabled", name=name))


def _example(command: str) -> str:
    return f"{get_text('example')} nbpulse user {command}"


@asynccontextmanager
async def _open(settings: Settings) -> AsyncIterator[tuple[Accounts, People]]:
    from nbpulse.crypto import EncryptedField
    from nbpulse.passwords import Hasher
    from nbpulse.records.accounts import Accounts
    from nbpulse.records.owner import open_owner
    from nbpulse.records.people import People

    if not settings.database_url:
        raise StartupError("NB-3052", setting="NBPULSE_DATABASE_URL")
    async with open_owner(settings.database_url) as pool:
        people = People(pool, EncryptedField(settings.read_encryption_keys()))
        yield Accounts(people, Hasher()), people


async def _find(accounts: Accounts, name: str) -> UUID:
    """Raises NotFound (NB-3023)."""
    found = await accounts.find(name)
    if found is None:
        raise NotFound("NB-3023", thing="user", id=name, command="nbpulse user list")
    return found


def _show_link(code: str, data: Path | None, *, as_json: bool) -> None:
    url = f"{find_address(data)}/#code={code}&password"
    answer(json.dumps({"link": url}) if as_json else url)
    say(get_text("user_link_once"))


def _show(accounts: list[Account], *, as_json: bool) -> None:
    import msgspec

    from nbpulse.administration import format_time, show_table

    if as_json:
        answer(msgspec.json.encode(accounts).decode())
        return
    show_table(
        get_text("users_none"),
        ["name", "display name", "password", "providers", "courses", "closed"],
        [
            [
                one.username,
                one.display_name,
                "yes" if one.has_password else "-",
                ", ".join(one.providers) or "-",
                ", ".join(one.courses) or "-",
                format_time(one.disabled_at),
            ]
            for one in accounts
        ],
    )
