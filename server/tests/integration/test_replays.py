"""A past class rebuilt from the ledger: its end is what the live board said, its frames lead on."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from boards import Board
from meetings import begin, help_student, raise_hand, run, teach
from nbpulse.records import replays
from stage import NOBODY, Stage, make_run, serve_api
from stores import connect

KNOWN = ("id", "num", "s", "pos", "team")
"""What the ledger knows of a student; not whether their Jupyter was there."""


async def play(stage: Stage, meeting_id: UUID, **query: Any) -> dict[str, Any]:
    path = f"/api/v1/courses/{stage.course.id}/meetings/{meeting_id}/replay"
    answer = await stage.http.get(path, params=query, headers=stage.staff)
    assert answer.status_code == 200, answer.text
    stretch: dict[str, Any] = answer.json()
    return stretch


def list_known(snapshot: dict[str, Any]) -> list[dict[str, Any]]:
    """The students' rows; a square of who is stuck is one in error of whom the board also says so."""
    rows = [{name: row[name] for name in KNOWN} for row in snapshot["students"]]
    return [row | {"s": row["s"].replace("4", "3")} for row in rows]


async def happen(stage: Stage, seed: int) -> None:
    """A class of chance: runs begun and ended anywhere on six cells, twice delivered, in any order."""
    drawn = random.Random(seed)
    now = datetime.now(UTC)
    for number in range(5):
        student = await stage.join(f"学生 {number}", student_number=f"{number}")
        events = []
        for sequence in range(30):
            at = (now - timedelta(seconds=drawn.randrange(1, 900))).isoformat()
            kind = drawn.choice(("cell_execution", "cell_execution", "cell_execution_start"))
            status = drawn.choice(("ok", "ok", "error", "interrupted", "aborted"))
            one = make_run(drawn.randrange(6), status, occurred_at=at, sequence=sequence, event_type=kind)
            events.append(one if kind == "cell_execution" else one | {"data": {}})
        drawn.shuffle(events)
        for part in (events, events[:5]):
            assert (await stage.post(student["token"], part)).status_code == 202
    await stage.work()


@pytest.mark.parametrize("seed", range(6))
async def test_at_its_end_the_board_is_the_live_one(stage: Stage, seed: int) -> None:
    # It began in the middle of it: what was before counts, as on the live board.
    meeting_id = await begin(stage, 450)
    await happen(stage, seed)
    live = await stage.snapshot()
    past = (await play(stage, meeting_id, at=2**50))["snapshot"]
    assert [cell["id"] for cell in past["cells"]] == [cell["id"] for cell in live["cells"]]
    assert list_known(past) == list_known(live)


@pytest.mark.parametrize("seed", range(4))
async def test_frames_lead_from_one_look_to_the_next(stage: Stage, seed: int) -> None:
    meeting_id = await begin(stage, 600)
    await happen(stage, seed)
    stretch = await play(stage, meeting_id, span_ms=3_600_000, step_ms=7_000)
    assert len(stretch["frames"]) <= replays.STEPS_MAX
    assert [frame["seq"] for frame in stretch["frames"]] == list(range(1, len(stretch["frames"]) + 1))
    assert stretch["frames"][-1]["at"] == stretch["until"]
    for place in (len(stretch["frames"]) // 2, len(stretch["frames"])):
        board = Board(stretch["snapshot"])
        for frame in stretch["frames"][:place]:
            board.apply(frame)
        jumped = Board((await play(stage, meeting_id, at=stretch["frames"][place - 1]["at"]))["snapshot"])
        assert board.show() == jumped.show()


@pytest.mark.parametrize("seed", range(3))
async def test_runs_are_counted_at_their_times_as_the_live_board_counts_them(stage: Stage, seed: int) -> None:
    meeting_id = await begin(stage, 1_000)
    await happen(stage, seed)
    # A board that is opened now reads them from the ledger.
    async with serve_api(stage.database_url, stage.redis_url) as (url, _):
        live = (await stage.http.get(f"{url}/api/v1/courses/{stage.course.id}/live", headers=stage.staff)).json()
    past = (await play(stage, meeting_id, at=2**50))["snapshot"]
    counts = [{step: tuple(count) for step, *count in board["trend"] if any(count)} for board in (live, past)]
    assert counts[0]
    assert counts[0] == counts[1]


async def test_alerts_hands_and_what_staff_did_are_there_when_they_were(stage: Stage) -> None:
    meeting_id = await begin(stage)
    joined = await teach(stage)
    await raise_hand(stage, joined[0], 300)
    await help_student(stage, joined[0])
    first = await play(stage, meeting_id)
    assert first["snapshot"]["alerts"] == []
    assert {row["pos"] for row in first["snapshot"]["students"]} == {0}

    async def list_kinds(ago_s: int) -> list[str]:
        at = round((datetime.now(UTC) - timedelta(seconds=ago_s)).timestamp() * 1000)
        snapshot = (await play(stage, meeting_id, at=at))["snapshot"]
        return sorted(alert["kind"] for alert in snapshot["alerts"])

    assert await list_kinds(420) == []
    # Then the third errors are a minute after the first; these two have left no event since.
    assert await list_kinds(290) == ["help"]
    assert await list_kinds(0) == []


async def test_somebody_who_worked_on_is_stuck_while_they_were(stage: Stage) -> None:
    meeting_id = await begin(stage)
    student = await stage.join()
    await run(stage, student, *((ago, 0, "error") for ago in (300, 280, 260, 240, 200)), (100, 0, "ok"))
    ends = {300: [], 210: ["stuck"], 110: ["stuck"], 90: []}
    for ago_s, kinds in ends.items():
        at = round((datetime.now(UTC) - timedelta(seconds=ago_s)).timestamp() * 1000)
        (row,) = (snapshot := (await play(stage, meeting_id, at=at))["snapshot"])["students"]
        assert [alert["kind"] for alert in snapshot["alerts"]] == kinds, ago_s
        assert row["s"] == ("1" if ago_s == 90 else "4" if kinds else "3")


async def test_an_assistant_sees_their_teams_past(stage: Stage) -> None:
    meeting_id = await begin(stage)
    joined = await teach(stage, 4)
    async with connect(stage.database_url) as owner:
        for number, one in enumerate(joined):
            team = "red" if number == 0 else "blue"
            await owner.execute("UPDATE enrolments SET team = $2 WHERE user_id = $1", UUID(one["user_id"]), team)
        assistant = await owner.fetchval("INSERT INTO users (username) VALUES ($1) RETURNING id", uuid4().hex)
        await owner.execute(
            "INSERT INTO enrolments (user_id, course_id, role, teams) VALUES ($1, $2, 'assistant', '{red}')",
            *(assistant, stage.course.id),
        )
    token = await stage.people.create_staff_token(assistant)
    path = f"/api/v1/courses/{stage.course.id}/meetings/{meeting_id}/replay"
    answer = await stage.http.get(path, params={"at": 2**50}, headers={"Authorization": f"Bearer {token}"})
    (row,) = answer.json()["snapshot"]["students"]
    assert (row["id"], row["s"]) == (joined[0]["user_id"], "11")


async def test_what_cannot_be_replayed_is_said(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting_id = await begin(stage)
    path = f"/api/v1/courses/{stage.course.id}/meetings/{{}}/replay"
    for meeting, query, status, code in (
        (meeting_id, {}, 422, "NB-1233"),
        (NOBODY, {}, 404, "NB-1230"),
        (meeting_id, {"notebook": str(NOBODY)}, 404, "NB-1201"),
        (meeting_id, {"step_ms": 0}, 422, "NB-1007"),
        (meeting_id, {"at": -1}, 422, "NB-1007"),
    ):
        answer = await stage.http.get(path.format(meeting), params=query, headers=stage.staff)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    await teach(stage)
    monkeypatch.setattr(replays, "EVENTS_MAX", 10)
    answer = await stage.http.get(path.format(meeting_id), params={"at": 2**50}, headers=stage.staff)
    assert (answer.status_code, answer.json()["code"]) == (422, "NB-1231")
