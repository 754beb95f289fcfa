"""The operator's duties towards those who are recorded, as commands: erase, compact, let in again."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbpulse.errors import NotFound, StartupError
from nbpulse.terminal import answer, get_text, say, show_progress

if TYPE_CHECKING:
    from nbpulse.erasure import Eraser
    from nbpulse.settings import Settings

_Data = Annotated[Path | None, typer.Option("--data", envvar="NBPULSE_DATA_DIR", help=get_text("opt_data"))]
_Json = Annotated[bool, typer.Option("--json", help=get_text("opt_json"))]
_Yes = Annotated[str | None, typer.Option("--yes", metavar="NAME", help=get_text("opt_yes"))]
_Connect = Callable[..., "Settings"]


def _describe(name: str, example: str) -> dict[str, Any]:
    return {"help": get_text(f"help_{name}"), "epilog": f"{get_text('example')} nbpulse {example}"}


def add_commands(app: typer.Typer, connect: _Connect) -> None:
    """Add them to a command line that knows where the stores are."""

    @app.command("erase-user", **_describe("erase_user", "erase-user class-12"))
    def erase_user(
        name: Annotated[str | None, typer.Argument(help=get_text("arg_user"))] = None,
        *,
        left: Annotated[str | None, typer.Option("--left", metavar="COURSE", help=get_text("opt_left"))] = None,
        yes: _Yes = None,
        data: _Data = None,
        as_json: _Json = False,
    ) -> None:
        asyncio.run(_erase_user(connect(data, is_needed=False), name, left, yes, as_json=as_json))

    @app.command("erase-course", **_describe("erase_course", "erase-course python-2025"))
    def erase_course(
        course: Annotated[str, typer.Argument(help=get_text("arg_course"))],
        *,
        yes: _Yes = None,
        data: _Data = None,
        as_json: _Json = False,
    ) -> None:
        asyncio.run(_erase_course(connect(data, is_needed=False), course, yes, as_json=as_json))

    @app.command("export-user", **_describe("export_user", "export-user class-12 class-12.zip"))
    def export_user(
        name: Annotated[str, typer.Argument(help=get_text("arg_user"))],
        file: Annotated[Path, typer.Argument(help=get_text("arg_export"))],
        *,
        force: Annotated[bool, typer.Option("--force", help=get_text("opt_force"))] = False,
        data: _Data = None,
        as_json: _Json = False,
    ) -> None:
        from nbpulse.exports import export_user

        counts = export_user(connect(data, is_needed=False), name, file, overwrite=force)
        if as_json:
            answer(json.dumps({"file": str(file), "rows": counts}))

    @app.command("retention", **_describe("retention", "retention --dry-run"))
    def retention(
        *,
        dry_run: Annotated[bool, typer.Option("--dry-run", help=get_text("opt_dry_run"))] = False,
        data: _Data = None,
        as_json: _Json = False,
    ) -> None:
        _keep_retention(connect(data, is_needed=False), is_real=not dry_run, as_json=as_json)

    @app.command("processing-record", **_describe("processing_record", "processing-record class > record.md"))
    def processing_record(
        course: Annotated[str | None, typer.Argument(help=get_text("arg_course"))] = None, *, data: _Data = None
    ) -> None:
        from nbpulse.offline import open_database
        from nbpulse.processing import show_record

        settings = connect(data, is_needed=False)
        with open_database(settings.data_dir, settings.database_url) as url:
            asyncio.run(show_record(settings, url, course))

    @app.command("compact", **_describe("compact", "compact"))
    def compact(data: _Data = None) -> None:
        asyncio.run(_compact(connect(data, is_needed=False)))

    @app.command("readmit", **_describe("readmit", "readmit jupyterhub hanako"))
    def readmit(
        provider: Annotated[str, typer.Argument(help=get_text("arg_provider"))],
        subject: Annotated[str, typer.Argument(help=get_text("arg_subject"))],
        data: _Data = None,
    ) -> None:
        asyncio.run(_readmit(connect(data, is_needed=False), provider, subject))


@asynccontextmanager
async def _open_eraser(settings: Settings) -> AsyncIterator[Eraser]:
    """What an earlier erasure left behind is finished first, and who came back with a backup is erased again."""
    from nbpulse.erasure import open_eraser
    from nbpulse.offline import open_stores

    has_servers = bool(settings.database_url and settings.redis_url)
    with open_stores(settings.data_dir, settings.database_url, settings.redis_url) as urls:
        async with open_eraser(settings, *urls, settle_s=None if has_servers else 0.0) as eraser:
            if await eraser.erase_again() + await eraser.finish_all():
                say(get_text("erasure_finished"))
            yield eraser


async def _erase_user(
    settings: Settings, name: str | None, left: str | None, yes: str | None, *, as_json: bool
) -> None:
    async with _open_eraser(settings) as eraser:
        if left is not None:
            await _erase_left(eraser, left, yes, as_json=as_json)
        if name is None:
            return
        person = await eraser.describe_user(name)
        if person is None:
            raise NotFound("NB-3023", thing="user", id=name, command="nbpulse token list")
        say(get_text("erase_user_counts", name=person.shown, courses=", ".join(person.courses) or "-"))
        _show_counts(person.rows)
        _confirm(person.username, yes)
        rows = await eraser.erase_user(person.user_id)
        await _finish(eraser, {"user": person.username, "rows": rows}, as_json=as_json)


async def _erase_left(eraser: Eraser, course: str, yes: str | None, *, as_json: bool) -> None:
    people = await eraser.list_left(course)
    if people is None:
        raise NotFound("NB-3023", thing="course", id=course, command="nbpulse up --json")
    if not people:
        say(get_text("erase_left_none", course=course))
        return
    for person in people:
        say(get_text("erase_left_one", name=person.shown, username=person.username, rows=sum(person.rows.values())))
    _confirm(course, yes)
    with show_progress(get_text("erasing")) as report:
        for number, person in enumerate(people):
            await eraser.erase_user(person.user_id)
            report(number + 1, len(people))
    await _finish(eraser, {"users": [person.username for person in people]}, as_json=as_json)


async def _erase_course(settings: Settings, course: str, yes: str | None, *, as_json: bool) -> None:
    async with _open_eraser(settings) as eraser:
        found = await eraser.describe_course(course)
        if found is None:
            raise NotFound("NB-3023", thing="course", id=course, command="nbpulse up --json")
        say(get_text("erase_course_counts", course=found.title, students=found.students, others=found.others))
        _show_counts(found.rows)
        _confirm(course, yes)
        with show_progress(get_text("erasing")) as report:
            rows = await eraser.erase_course(found.course_id, report)
        await _finish(eraser, {"course": course, "rows": rows}, as_json=as_json)


async def _finish(eraser: Eraser, facts: dict[str, Any], *, as_json: bool) -> None:
    with show_progress(get_text("erasing_elsewhere")) as report:
        await eraser.finish_all(report)
    if as_json:
        answer(json.dumps(facts | {"has_erased_series": eraser.can_erase_series}, ensure_ascii=False))
    say(get_text("erased"))
    if not eraser.can_erase_series:
        say(get_text("erased_but_series"))


async def _compact(settings: Settings) -> None:
    from nbpulse.compaction import compact

    await compact(settings)


def _keep_retention(settings: Settings, *, is_real: bool, as_json: bool) -> None:
    from nbpulse.offline import open_database
    from nbpulse.records.owner import open_owners
    from nbpulse.records.retention import Retention, drop_expired

    retention = Retention(settings.retention_days, settings.session_retention_days)

    async def drop(url: str) -> dict[str, int]:
        total = Counter[str]()
        async with open_owners(url) as pools:
            for pool in pools.values():
                total.update(await drop_expired(pool, retention, is_real=is_real))
        return total

    with open_database(settings.data_dir, settings.database_url) as url:
        rows = asyncio.run(drop(url))
    if as_json:
        answer(json.dumps(rows))
    _show_counts(rows)
    days = {"raw_days": retention.raw_days, "session_days": retention.session_days}
    say(get_text("retention_done" if is_real else "retention_would", rows=sum(rows.values()), **days))


async def _readmit(settings: Settings, provider: str, subject: str) -> None:
    async with _open_eraser(settings) as eraser:
        if not await eraser.readmit(provider, subject):
            raise NotFound("NB-3023", thing="erased identity", id=f"{provider} {subject}", command="nbpulse audit")
    say(get_text("readmitted"))


def _show_counts(rows: dict[str, int]) -> None:
    for table, count in sorted(rows.items()):
        say(f"  {count:>10,}  {table}")


def _confirm(name: str, yes: str | None) -> None:
    """Raises StartupError (NB-3090): the name was not typed."""
    if yes is None and sys.stdin is not None and sys.stdin.isatty():
        yes = input(get_text("erase_confirm", name=name) + " ").strip()
    if yes != name:
        raise StartupError("NB-3090", name=name)
