"""`nbpulse audit`: who did what to whom, whether the log is as it was written, and the link to keep elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from nbpulse.errors import InvalidInput, NotFound, StartupError
from nbpulse.shards import MAIN
from nbpulse.terminal import answer, get_text, say, show_progress

if TYPE_CHECKING:
    from nbpulse.records.audit import Anchor, AuditRow
    from nbpulse.settings import Settings

Connect = Callable[[Path | None], "Settings"]
_Data = Annotated[Path | None, typer.Option("--data", envvar="NBPULSE_DATA_DIR", help=get_text("opt_data"))]
_Json = Annotated[bool, typer.Option("--json", help=get_text("opt_json"))]
_Name = str | None


def add_commands(app: typer.Typer, connect: Connect) -> None:
    """Add the commands to a command line that knows where the database is."""
    audit = typer.Typer(
        help=get_text("help_audit"), epilog=f"{get_text('example')} nbpulse audit list", no_args_is_help=True
    )
    app.add_typer(audit, name="audit")
    _add_list(audit, connect)
    _add_verify(audit, connect)
    _add_anchor(audit, connect)


def _add_list(audit: typer.Typer, connect: Connect) -> None:
    example = "nbpulse audit list --subject class-12 --since 2026-11-01"

    @audit.command("list", help=get_text("help_audit_list"), epilog=f"{get_text('example')} {example}")
    def show(
        *,
        since: Annotated[datetime | None, typer.Option(help=get_text("opt_since"))] = None,
        until: Annotated[datetime | None, typer.Option(help=get_text("opt_until"))] = None,
        action: Annotated[_Name, typer.Option(help=get_text("opt_action"))] = None,
        actor: Annotated[_Name, typer.Option(help=get_text("opt_actor"))] = None,
        subject: Annotated[_Name, typer.Option(help=get_text("opt_subject"))] = None,
        course: Annotated[_Name, typer.Option(help=get_text("opt_audit_course"))] = None,
        limit: Annotated[int, typer.Option(min=1, max=100_000, help=get_text("opt_limit"))] = 200,
        data: _Data = None,
        as_json: _Json = False,
    ) -> None:
        window = (since and since.astimezone(), until and until.astimezone())
        rows, names = asyncio.run(_list(connect(data), window, action, (actor, subject, course), limit))
        if as_json:
            import msgspec

            for row in rows:
                answer(msgspec.json.encode(row).decode())
        else:
            _show_table(rows, names)


def _add_verify(audit: typer.Typer, connect: Connect) -> None:
    example = "nbpulse audit verify --anchor 1204:9f2c…"

    @audit.command("verify", help=get_text("help_audit_verify"), epilog=f"{get_text('example')} {example}")
    def verify(
        *,
        anchor: Annotated[list[str] | None, typer.Option("--anchor", help=get_text("opt_anchor"))] = None,
        data: _Data = None,
        as_json: _Json = False,
    ) -> None:
        anchors = [_read_anchor(text) for text in anchor or ()]
        ends = asyncio.run(_verify(connect(data), anchors))
        _show_anchor(ends.pop(MAIN), as_json=as_json)
        for name, end in ends.items():
            say(get_text("audit_verified_in", name=name, end=end or "-"))
        say(get_text("audit_verified", count=len(anchors)))


async def _verify(settings: Settings, anchors: list[Anchor]) -> dict[str, Anchor | None]:
    """
    Where each database's log ends; the anchors are the directory's. Raises what `verify_chain` does, of a further
    database StartupError (NB-3139).
    """
    from nbpulse.records.audit import verify_chain
    from nbpulse.records.owner import open_owners

    ends: dict[str, Anchor | None] = {}
    async with open_owners(_require_url(settings)) as pools:
        for name, pool in pools.items():
            try:
                with show_progress(get_text("audit_verifying")) as report:
                    ends[name] = await verify_chain(pool, anchors if name == MAIN else (), report)
            except InvalidInput as error:
                if name == MAIN:
                    raise
                raise StartupError("NB-3139", name=name, id=error.facts["id"]) from error
    return ends


def _add_anchor(audit: typer.Typer, connect: Connect) -> None:
    @audit.command(
        "anchor", help=get_text("help_audit_anchor"), epilog=f"{get_text('example')} nbpulse audit anchor >> anchors"
    )
    def anchor(*, data: _Data = None, as_json: _Json = False) -> None:
        from nbpulse.records.audit import find_anchor

        async def run() -> Anchor | None:
            async with _open(connect(data)) as pool:
                return await find_anchor(pool)

        _show_anchor(asyncio.run(run()), as_json=as_json)


@asynccontextmanager
async def _open(settings: Settings) -> AsyncIterator[Any]:
    from nbpulse.records.owner import open_owner

    async with open_owner(_require_url(settings)) as pool:
        yield pool


def _require_url(settings: Settings) -> str:
    if not settings.database_url:
        raise StartupError("NB-3052", setting="NBPULSE_DATABASE_URL")
    return settings.database_url


def _read_anchor(text: str) -> Anchor:
    from nbpulse.records.audit import Anchor

    number, _, link = text.strip().partition(":")
    if not (number.isdecimal() and len(link) == 64):
        raise typer.BadParameter(text, param_hint="--anchor")
    return Anchor(int(number), link.lower())


async def _list(
    settings: Settings,
    window: tuple[datetime | None, datetime | None],
    action: str | None,
    names: tuple[str | None, str | None, str | None],
    limit: int,
) -> tuple[list[AuditRow], dict[UUID, str]]:
    """The rows wanted, and the usernames and short names of whom and what they tell of. Raises NotFound (NB-3023)."""
    from nbpulse.records.audit import Filter, list_rows
    from nbpulse.records.owner import find_names

    async with _open(settings) as pool:
        ids = await asyncio.gather(*(_find(pool, name, is_course=place == 2) for place, name in enumerate(names)))
        wanted = Filter(*window, action, *ids)
        rows = await list_rows(pool, wanted, limit)
        named = {one for row in rows for one in (row.actor_id, row.subject_id, row.course_id) if one}
        return rows, await find_names(pool, named)


async def _find(pool: Any, name: str | None, *, is_course: bool) -> UUID | None:
    from nbpulse.records.owner import find_course_id, find_user_id

    if name is None:
        return None
    try:
        return UUID(name)
    except ValueError:
        found = await (find_course_id if is_course else find_user_id)(pool, name)
    if found is None:
        raise NotFound("NB-3023", thing="course" if is_course else "user", id=name, command="nbpulse audit list")
    return found


def _show_table(rows: list[AuditRow], names: dict[UUID, str]) -> None:
    from nbpulse.administration import format_time, show_table

    def name(one: UUID | None) -> str:
        return names.get(one, str(one)) if one else "-"

    show_table(
        get_text("audit_none"),
        ["no.", "when", "who", "did", "to", "course", "facts"],
        [
            [
                *(str(row.id), format_time(row.at), name(row.actor_id), row.action, name(row.subject_id)),
                *(name(row.course_id), json.dumps(row.facts, ensure_ascii=False) if row.facts else ""),
            ]
            for row in rows
        ],
    )


def _show_anchor(anchor: Anchor | None, *, as_json: bool) -> None:
    if as_json:
        answer(json.dumps({"id": anchor.id, "link": anchor.link} if anchor else None))
    elif anchor is None:
        say(get_text("audit_none"))
    else:
        answer(str(anchor))
