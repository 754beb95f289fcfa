"""The front end's files as they stand: small, without a way for a fault or for somebody's text to get into the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOMS = sorted((Path(__file__).resolve().parents[1] / "labextension" / "static").glob("*.js"))
# Where the application or the browser is given something to call later.
CALLED_LATER = re.compile(
    r"(?:addEventListener\([^,]+, |\.connect\(|setInterval\(|setTimeout\(|\.on\w+ = |"
    r"(?:createNew|activate|execute|callback|onclick): )(.{0,30})"
)
# Already guarded where it was made, or a promise's own `resolve`.
HARMLESS = ("guard(", "touch,", "done,")


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_everything_that_is_called_later_is_guarded(room: Path) -> None:
    found = CALLED_LATER.findall(room.read_text(encoding="utf-8"))
    assert [one for one in found if not one.startswith(HARMLESS)] == []


def test_there_are_callbacks_to_guard() -> None:
    found = [one for room in ROOMS for one in CALLED_LATER.findall(room.read_text(encoding="utf-8"))]
    assert len(found) >= 20


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_no_text_becomes_html_and_nothing_is_asked_of_strangers(room: Path) -> None:
    source = room.read_text(encoding="utf-8")
    html = re.findall(r".*(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\().*", source)
    assert [line.strip() for line in html] in ([], ["handSign.innerHTML = HAND;"])
    assert not re.search(r"(?<!\w)fetch\(|XMLHttpRequest|WebSocket\(|sendBeacon", source)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_no_file_outgrows_the_houses_measure(room: Path) -> None:
    lines = room.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 300
    assert max(map(len, lines)) <= 140
