"""`nbpulse collection`: what a course collects of its students, shown and set by the operator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbpulse.errors import NotFound, StartupError
from nbpulse.terminal import answer, get_text, say

if TYPE_CHECKING:
    from nbpulse.collection import Level, Notice
    from nbpulse.records.consents import Counts
    from nbpulse.settings import Settings

_Names = Annotated[list[str] | None, typer.Option("--without", help=get_text("opt_without"))]
_Back = Annotated[list[str] | None, typer.Option("--with", help=get_text("opt_with"))]
_File = Path | None
_EXAMPLE = "nbpulse collection class --level source --without cell_focus --notice-ja notice.txt"


def add_command(app: typer.Typer, connect: Callable[[Path | None], Settings]) -> None:
    """Add the command to a command line that knows where the database is."""

    @app.command("collection", help=get_text("help_collection"), epilog=f"{get_text('example')} {_EXAMPLE}")
    def collection(
        course: Annotated[str, typer.Argument(help=get_text("arg_course"))],
        *,
        level: Annotated[str | None, typer.Option(help=get_text("opt_level"))] = None,
        without: _Names = None,
        back: _Back = None,
        notice_ja: Annotated[_File, typer.Option(exists=True, dir_okay=False, help=get_text("opt_notice_ja"))] = None,
        notice_en: Annotated[_File, typer.Option(exists=True, dir_okay=False, help=get_text("opt_notice_en"))] = None,
        data: Annotated[_File, typer.Option("--data", envvar="NBPULSE_DATA_DIR", help=get_text("opt_data"))] = None,
        as_json: Annotated[bool, typer.Option("--json", help=get_text("opt_json"))] = False,
    ) -> None:
        texts = [path.read_text(encoding="utf-8").strip() if path else None for path in (notice_ja, notice_en)]
        is_asked = any(one is not None for one in (level, without, back, *texts))
        notice, is_new, counts = asyncio.run(
            _set_collection(
                connect(data), course, _read_level(level), (without or [], back or []), (texts[0], texts[1])
            )
        )
        _show(course, notice, counts, as_json=as_json)
        if is_asked:
            say(get_text("collection_changed" if is_new else "collection_same", version=notice.version))


def _read_level(text: str | None) -> Level | None:
    from nbpulse.collection import LEVELS

    level = next((one for one in LEVELS if one == text), None)
    if text is not None and level is None:
        raise typer.BadParameter(f"{text}: {', '.join(LEVELS)}", param_hint="--level")
    return level


async def _set_collection(
    settings: Settings,
    short_name: str,
    level: Level | None,
    switches: tuple[list[str], list[str]],
    texts: tuple[str | None, str | None],
) -> tuple[Notice, bool, Counts]:
    """What holds now, whether this call has made it, and how many students were shown it. Raises NotFound (NB-3023)."""
    from nbpulse.crypto import EncryptedField
    from nbpulse.records.consents import Consents
    from nbpulse.records.courses import Courses
    from nbpulse.records.owner import open_owner
    from nbpulse.records.people import People

    if not settings.database_url:
        raise StartupError("NB-3052", setting="NBPULSE_DATABASE_URL")
    async with open_owner(settings.database_url) as pool:
        seal = EncryptedField(settings.read_encryption_keys())
        course = await Courses(pool, seal).find_course(short_name)
        if course is None:
            raise NotFound("NB-3023", thing="course", id=short_name, command="nbpulse up --json")
        consents = Consents(People(pool, seal))
        current, _, _ = await consents.show(course.id)
        off, on = switches
        without = sorted({*current.without, *off} - set(on)) if off or on else None
        notice, is_new = await consents.change(course.id, None, level=level, without=without, ja=texts[0], en=texts[1])
        _, _, counts = await consents.show(course.id)
        return notice, is_new, counts


def _show(course: str, notice: Notice, counts: Counts, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        shown: dict[str, Any] = {**msgspec.structs.asdict(notice), "students": counts}
        answer(msgspec.json.encode(shown).decode())
        return
    without = ", ".join(notice.without) or "-"
    answer(get_text("collection_shown", course=course, level=notice.level, without=without, version=notice.version))
    answer(get_text("collection_counts", **msgspec.structs.asdict(counts)))
    answer(f"\n{notice.notice.ja}\n\n{notice.notice.en}")
