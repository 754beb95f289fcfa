from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_server.services.kernels.kernelmanager import MappingKernelManager
from jupyter_server.services.sessions.sessionmanager import SessionManager

from nbpulse_capture.places import Renames, SessionPlaces
from nbpulse_capture.sitting import IDLE_LIMIT_S, Sitting
from nbpulse_capture.websocket import V1_PROTOCOL, describe_marks, read_request
from student_jupyter import pack_frame

scalars = st.none() | st.booleans() | st.integers() | st.text()
anything = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
names = st.sampled_from(["a", "b", "a/b", "a/b/c", "c"])


class Sessions:
    """A session manager's one method."""

    def __init__(self, *sessions: dict[str, Any]) -> None:
        self.sessions = list(sessions)

    async def list_sessions(self) -> list[dict[str, Any]]:
        return self.sessions


def make_session(path: str, kind: str = "notebook") -> dict[str, Any]:
    return {"path": path, "type": kind, "kernel": {"id": "k"}}


@pytest.mark.parametrize(
    ("sessions", "path"),
    [
        ([make_session("week1.ipynb")], "week1.ipynb"),
        ([make_session("RTC:授業/week1.ipynb")], "授業/week1.ipynb"),
        ([make_session("lesson.md")], "lesson.md"),
        ([make_session("console-1", "console"), make_session("week1.ipynb")], "week1.ipynb"),
        ([make_session("week1.ipynb"), make_session("console-1", "console")], "week1.ipynb"),
        ([make_session("console-1", "console")], None),
        ([make_session("script.py", "file")], None),
        ([make_session("6f1c1c9e-58a4-4f0b-9d57-0f6f7a1d2c3b")], "unknown"),
        ([], "unknown"),
    ],
)
async def test_what_a_kernel_is_used_for_is_read_from_its_sessions(
    sessions: list[dict[str, Any]], path: str | None
) -> None:
    places = SessionPlaces(Sessions(*sessions), object())
    await places.refresh()
    work = places.find("k")
    if path == "unknown":
        assert work is None
    else:
        assert work is not None
        assert (work.place.path if work.place else None) == path


class Kernels(MappingKernelManager):  # type: ignore[misc, unused-ignore]
    """As far as sessions need kernels; counts how often they are asked for."""

    asked_count = 0

    def __contains__(self, kernel_id: object) -> bool:
        return True

    def kernel_model(self, kernel_id: str) -> dict[str, Any]:
        self.asked_count += 1
        return {"id": kernel_id}

    def update_env(self, **_: Any) -> None:
        """There is no process that would want it."""


async def test_jupyters_own_sessions_are_read_again_when_one_has_changed_or_a_file_was_renamed_and_not_else() -> None:
    kernels = Kernels()
    manager = SessionManager(kernel_manager=kernels)
    places = SessionPlaces(manager, object())

    async def find() -> tuple[str | None, int]:
        kernels.asked_count = 0
        for _ in range(3):
            await places.refresh()
        work = places.find("k")
        return (work.place.path if work and work.place else None), kernels.asked_count

    assert await find() == (None, 0)
    session = await manager.save_session("s", path="week1.ipynb", name="", type="notebook", kernel_id="k")
    assert await find() == ("week1.ipynb", 1)
    assert await find() == ("week1.ipynb", 0)
    places.renames.note("week1.ipynb", "week2.ipynb")
    assert await find() == ("week2.ipynb", 1)
    await manager.update_session(session["id"], path="week3.ipynb")
    assert await find() == ("week3.ipynb", 1)


async def test_another_session_manager_is_always_read_again() -> None:
    class Other(SessionManager):  # type: ignore[misc, unused-ignore]
        path = "week1.ipynb"

        async def list_sessions(self) -> list[dict[str, Any]]:
            return [make_session(self.path)]

    manager = Other(kernel_manager=Kernels())
    places = SessionPlaces(manager, object())
    for path in ("week1.ipynb", "week2.ipynb"):
        manager.path = path
        await places.refresh()
        work = places.find("k")
        assert work is not None
        assert work.place is not None
        assert work.place.path == path


def test_renames_of_files_and_folders_are_followed() -> None:
    renames = Renames()
    renames.note("week1.ipynb", "old/week1.ipynb")
    renames.note("old", "archive/2025")
    assert renames.follow("week1.ipynb") == "archive/2025/week1.ipynb"
    assert renames.follow("old/other.ipynb") == "archive/2025/other.ipynb"
    assert renames.follow("older.ipynb") == "older.ipynb"
    renames.forget("week1.ipynb")
    assert renames.follow("week1.ipynb") == "week1.ipynb", "a new file has the old name"


@given(st.lists(st.tuples(names, names), max_size=20), names)
def test_following_renames_always_ends(moves: list[tuple[str, str]], path: str) -> None:
    renames = Renames()
    for old, new in moves:
        renames.note(old, new)
    assert isinstance(renames.follow(path), str)


def test_back_and_forth_ends_at_the_first_name() -> None:
    renames = Renames()
    renames.note("a", "b")
    renames.note("b", "a")
    assert renames.follow("a") == "a"


def make_message(code: str = "1", *, silent: bool = False, **metadata: Any) -> tuple[str, bytes]:
    """The same request in the old form and in today's."""
    parts = {
        "header": {"msg_id": "m", "msg_type": "execute_request"},
        "parent_header": {},
        "metadata": metadata,
        "content": {"code": code, "silent": silent, "store_history": not silent},
    }
    return json.dumps(parts), pack_frame("shell", [json.dumps(part).encode() for part in parts.values()])


def test_a_request_reads_the_same_in_both_forms() -> None:
    old, new = make_message(cellId="c1", tags=["exercise", 3], nbgrader={"grade_id": "g"})
    request = read_request(old, None)
    assert request == read_request(new, V1_PROTOCOL)
    assert request is not None
    assert request.cell is not None
    assert (request.cell["cell_id"], request.cell["exercise_id"]) == ("c1", "g")
    assert request.marks == {"tags": ["exercise"]}


@pytest.mark.parametrize(("code", "silent"), [("", False), (" \n", False), ("%nbpulse help", False), ("x", True)])
def test_a_request_that_is_no_run_of_a_students_has_no_cell(code: str, silent: bool) -> None:
    request = read_request(make_message(code, silent=silent)[1], V1_PROTOCOL)
    assert request is not None
    assert request.cell is None


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused_and_nothing_else(raw: bytes) -> None:
    with suppress(ValueError):
        assert read_request(raw, V1_PROTOCOL) is None


@given(anything)
def test_whatever_a_cells_metadata_holds_its_marks_are_bounded(value: Any) -> None:
    for metadata in ({"tags": value, "nbpulse": value}, {"tags": [value] * 20, "nbpulse": {"cell_id": value}}):
        marks = describe_marks(metadata)
        assert len(json.dumps(marks)) < 20_000
        assert set(marks) <= {"tags", "original_cell_id"}


def test_a_sitting_begins_anew_after_thirty_idle_minutes_but_not_while_something_runs() -> None:
    sitting = Sitting(1000.0)
    first, is_new = sitting.keep(1000.0, others_run=False)
    assert is_new
    assert sitting.keep(1000.0 + IDLE_LIMIT_S, others_run=False) == (first, False)
    assert sitting.keep(1000.0 + 3 * IDLE_LIMIT_S, others_run=True) == (first, False)
    second, is_new = sitting.keep(1000.0 + 5 * IDLE_LIMIT_S, others_run=False)
    assert is_new
    assert second != first


def test_presence_is_active_then_idle_then_silent() -> None:
    sitting = Sitting(0.0)
    assert sitting.judge_presence(10.0, is_running=False) == "idle", "nothing has been run"
    sitting.keep(10.0, others_run=False)
    assert sitting.judge_presence(100.0, is_running=False) == "active"
    assert sitting.judge_presence(1000.0, is_running=False) == "idle"
    assert sitting.judge_presence(9000.0, is_running=True) == "active"
    assert sitting.judge_presence(9000.0, is_running=False) is None
