"""`nbpulse roster` and `nbpulse invite`: who a course expects, and its staff, as the operator brings them in."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from nbpulse.accounts import Role
from nbpulse.errors import InvalidInput, NotFound, StartupError
from nbpulse.terminal import answer, get_text, pick_language, say
from nbpulse.whereabouts import find_address

if TYPE_CHECKING:
    from nbpulse.records.people import People
    from nbpulse.records.rosters import Import
    from nbpulse.roster import Problem, Roster
    from nbpulse.settings import Settings

Connect = Callable[[Path | None], "Settings"]
Course = Annotated[str, typer.Argument(metavar="COURSE", help=get_text("arg_course"))]
File = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help=get_text("arg_roster"))]
DataDir = Annotated[Path | None, typer.Option("--data", envvar="NBPULSE_DATA_DIR", help=get_text("opt_data"))]
Json = Annotated[bool, typer.Option("--json", help=get_text("opt_json"))]


def add_commands(app: typer.Typer, connect: Connect) -> None:
    """Give `app` the commands."""
    rosters = typer.Typer(
        help=get_text("help_roster"), epilog=_example("roster import class roster.csv"), no_args_is_help=True
    )
    app.add_typer(rosters, name="roster")

    @rosters.command(
        "import", help=get_text("help_roster_import"), epilog=_example("roster import class roster.csv --yes")
    )
    def import_file(
        course: Course,
        file: File,
        *,
        yes: Annotated[bool, typer.Option("--yes", help=get_text("opt_roster_yes"))] = False,
        keep_missing: Annotated[bool, typer.Option("--keep-missing", help=get_text("opt_keep_missing"))] = False,
        data: DataDir = None,
        as_json: Json = False,
    ) -> None:
        from nbpulse.roster import FILE_BYTES_MAX, read_roster

        if file.stat().st_size > FILE_BYTES_MAX:
            raise InvalidInput("NB-1004", limit=FILE_BYTES_MAX)
        roster = read_roster(file.read_bytes())
        asyncio.run(_import(connect(data), course, roster, marks_left=not keep_missing, is_agreed=yes, as_json=as_json))

    @app.command("invite", help=get_text("help_invite"), epilog=_example("invite class --role assistant --team A"))
    def invite(
        course: Course,
        *,
        role: Annotated[Role, typer.Option("--role", help=get_text("opt_user_role"))] = Role.ASSISTANT,
        team: Annotated[list[str] | None, typer.Option("--team", help=get_text("opt_invite_team"))] = None,
        days: Annotated[int, typer.Option("--days", min=1, max=30, help=get_text("opt_invite_days"))] = 7,
        data: DataDir = None,
        as_json: Json = False,
    ) -> None:
        async def work() -> str:
            from nbpulse.records import invitations

            async with _open(connect(data), course) as (people, course_id):
                _, code = await invitations.invite(people, course_id, role.value, team or [], timedelta(days=days))
            return code

        url = f"{find_address(data)}/#invite={asyncio.run(work())}"
        answer(json.dumps({"link": url}) if as_json else url)
        say(get_text("invite_once"))


def _example(command: str) -> str:
    return f"{get_text('example')} nbpulse {command}"


@asynccontextmanager
async def _open(settings: Settings, short_name: str) -> AsyncIterator[tuple[People, UUID]]:
    """Raises NotFound (NB-3023)."""
    from nbpulse.crypto import EncryptedField
    from nbpulse.records.courses import Courses
    from nbpulse.records.owner import open_owner
    from nbpulse.records.people import People

    if not settings.database_url:
        raise StartupError("NB-3052", setting="NBPULSE_DATABASE_URL")
    async with open_owner(settings.database_url) as pool:
        seal = EncryptedField(settings.read_encryption_keys())
        course = await Courses(pool, seal).find_course(short_name)
        if course is None:
            raise NotFound("NB-3023", thing="course", id=short_name, command="nbpulse link")
        yield People(pool, seal), course.id


async def _import(
    settings: Settings, short_name: str, roster: Roster, *, marks_left: bool, is_agreed: bool, as_json: bool
) -> None:
    """Say what the file would do; do it when that is agreed to."""
    from nbpulse.records.rosters import import_roster

    async with _open(settings, short_name) as (people, course_id):
        plan = await import_roster(people, course_id, roster.rows, marks_left=marks_left, is_dry_run=True)
        if not as_json:
            _show(roster, plan)
        if not is_agreed and sys.stdin.isatty():
            is_agreed = typer.confirm(get_text("ask_roster"), err=True)
        if is_agreed:
            plan = await import_roster(people, course_id, roster.rows, marks_left=marks_left)
    if as_json:
        problems = [{"line": one.line, "code": one.code} for one in _list_problems(roster, plan)]
        answer(json.dumps({"is_done": is_agreed, **plan.counts, "unchanged": plan.unchanged, "problems": problems}))
    say(get_text("roster_done" if is_agreed else "roster_not_done"))


def _show(roster: Roster, plan: Import) -> None:
    for words, lines in (
        (get_text("roster_added", count=len(plan.added)), plan.added),
        (get_text("roster_changed", count=len(plan.changed)), plan.changed),
        (get_text("roster_returned", count=len(plan.returned)), plan.returned),
        (get_text("roster_left", count=len(plan.left)), plan.left),
        (get_text("roster_doubtful", count=len(plan.doubtful)), plan.doubtful),
    ):
        say(words)
        for line in lines[:20]:
            say(f"  {line.student_number} {line.name}")
        if len(lines) > 20:
            say(f"  … {len(lines) - 20}")
    say(get_text("roster_unchanged", count=plan.unchanged))
    if roster.ignored:
        say(get_text("roster_ignored", columns=", ".join(roster.ignored)))
    for problem in _list_problems(roster, plan):
        wording = InvalidInput(problem.code, **problem.facts)
        language = pick_language()
        where = get_text("roster_line", line=problem.line)
        say(f"{where} {wording.title(language)} {wording.todo(language)} {problem.code}")


def _list_problems(roster: Roster, plan: Import) -> list[Problem]:
    return sorted([*roster.problems, *plan.problems], key=lambda one: one.line)
