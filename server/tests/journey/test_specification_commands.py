"""Every command of docs/specification.md, typed at a running full stack, shows what its row says."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from debian_clients import make_clients
from nbpulse.simulator import ClassOptions, Schoolroom
from servers import ROOT, make_influx
from specification import DOCUMENT, is_shown, read_rows
from torture.systems import System
from working import until

# The class goes on while it is looked at, and this machine may be busy: what is not shown at once may be shown later.
TRIES_MAX = 4
COMMAND_LIMIT_S = 90
MEASURING = "nbpulse rehearse "
OPEN_BOARD = ROOT / "docs" / "examples" / "open_board.py"


async def type_in(command: str, environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in the repository's root."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", command),
        cwd=ROOT,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(COMMAND_LIMIT_S):
        said, complained = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode(), complained.decode()


async def prepare(document: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment after the document's own first block."""
    block = re.search(r"^```bash\n(.*?)^```", document, re.DOTALL | re.MULTILINE)
    assert block
    code, said, complained = await type_in(f"set -euo pipefail\n{block[1]}\nenv -0", environment)
    assert code == 0, complained
    return dict(entry.split("=", 1) for entry in said.split("\0") if "=" in entry)


@asynccontextmanager
async def hold_class(data_dir: Path, *, goes_on: bool = True) -> AsyncIterator[dict[str, str]]:
    """A full stack with a class at work (or just over) and a board open; the environment of whoever looks at it."""
    path = make_clients(data_dir / "bin")
    with make_influx() as influx:
        influx.start()
        settings = {"NBPULSE_INFLUX_URL": f"{influx.url}/nbpulse"}
        async with System(data_dir / "data", worker_count=1, settings=settings) as system:
            room = Schoolroom(ClassOptions(system.url, system.facts["join_code"], students=12))
            playing = asyncio.create_task(room.run())
            try:
                await until(lambda: asyncio.sleep(0, room.tally.accepted > 200))
                kept = {name: value for name, value in os.environ.items() if not name.startswith("NBPULSE_")}
                seen = {**kept, "LC_ALL": "C.UTF-8", "PATH": path, "NBPULSE_DATA_DIR": str(system.data_dir)}
                environment = await prepare(DOCUMENT.read_text(encoding="utf-8"), seen)
                if not goes_on:
                    playing.cancel()
                async with open_board(environment):
                    yield environment
            finally:
                playing.cancel()
                await asyncio.gather(playing, return_exceptions=True)


@asynccontextmanager
async def open_board(environment: Mapping[str, str]) -> AsyncIterator[None]:
    board = await asyncio.create_subprocess_exec(
        sys.executable, OPEN_BOARD, env=dict(environment), stdout=subprocess.PIPE
    )
    try:
        assert board.stdout is not None
        async with asyncio.timeout(20):
            await board.stdout.readline()
        yield
    finally:
        board.terminate()
        await board.communicate()


def list_wanted() -> dict[str, list[tuple[int, str]]]:
    """Each command, and what its rows (by their line) say that it shows."""
    wanted: dict[str, list[tuple[int, str]]] = {}
    for row in read_rows(DOCUMENT.read_text(encoding="utf-8")):
        wanted.setdefault(row.command, []).append((row.line, row.shows))
    assert len(wanted) > 50
    return wanted


@pytest.mark.timeout(900)
async def test_every_command_shows_what_its_row_says(data_dir: Path) -> None:
    unshown: list[str] = []
    async with hold_class(data_dir) as environment:
        for command, shown in list_wanted().items():
            if not command.startswith(MEASURING):
                unshown += await find_unshown(command, shown, environment)
    assert not unshown, "\n\n".join(unshown)


@pytest.mark.timeout(300)
async def test_a_class_of_200_is_rehearsed_and_its_figures_told(data_dir: Path) -> None:
    """Whether a promise about time is kept here and now is for whoever reads it; that nothing is lost always holds."""
    ((command, shown),) = ((one, shown) for one, shown in list_wanted().items() if one.startswith(MEASURING))
    assert len(shown) == 3
    async with hold_class(data_dir, goes_on=False) as environment:
        code, said, complained = await type_in(command, environment)
    assert [shows for _, shows in shown if not is_shown(shows, said)] == [], f"{said}\n{complained}"
    assert code == int("\n×" in f"\n{said}"), f"{said}\n{complained}"


async def find_unshown(command: str, shown: list[tuple[int, str]], environment: Mapping[str, str]) -> list[str]:
    """What the command does not show although its rows say so."""
    for attempt in range(TRIES_MAX):
        await asyncio.sleep(2.0 * attempt)
        code, said, complained = await type_in(command, environment)
        missing = [(line, shows) for line, shows in shown if not is_shown(shows, said)]
        if code == 0 and not missing:
            return []
    what = missing or [(line, "(exit code 0)") for line, _ in shown[:1]]
    end = f"exit code {code}, said:\n{said[-1500:]}\n{complained[-500:]}"
    return [f"docs/specification.md:{line}: $ {command}\nshows no {shows}; {end}" for line, shows in what]


async def test_a_row_that_says_what_is_not_so_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "TRIES_MAX", 1)
    environment = {"PATH": os.environ["PATH"]}
    assert await find_unshown("echo 12", [(1, "12")], environment) == []
    (said,) = await find_unshown("echo 12", [(7, "13")], environment)
    assert said.startswith("docs/specification.md:7: $ echo 12\nshows no 13; exit code 0")
    (failed,) = await find_unshown("echo 12; exit 3", [(8, "12")], environment)
    assert "exit code 3" in failed
