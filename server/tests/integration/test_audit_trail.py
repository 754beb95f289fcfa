"""Who looked at whom and who was refused: in the audit log, once, whatever is asked how often."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from nbpulse.api import trail
from nbpulse.api.access import RULES, Rule
from stage import Stage, make_run
from stores import connect

SHOWS_NOBODY = {"meetings", "collection", "people", "join-code.svg", "projector", "rules", "map", "picture"}
"""Reads of staff that show no student's work."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail, "FLUSH_S", 0.05)
    monkeypatch.setattr(trail, "COUNT_S", 0.5)


async def read_rows(stage: Stage, **wanted: object) -> list[dict[str, Any]]:
    """The rows of this stage's people and networks, oldest first."""
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch("SELECT * FROM audit_log ORDER BY id")
    found = [dict(row) | {"facts": json.loads(row["facts"])} for row in rows]
    return [row for row in found if all(row[name] == value for name, value in wanted.items())]


async def wait_for(stage: Stage, count: int, **wanted: object) -> list[dict[str, Any]]:
    """Those rows, when there are so many; and no more half a second later."""
    async with asyncio.timeout(10):
        while len(await read_rows(stage, **wanted)) < count:  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    rows = await read_rows(stage, **wanted)
    assert len(rows) == count, rows
    return rows


async def count_refusals(stage: Stage, since: int, code: str) -> int:
    async with connect(stage.database_url) as owner:
        found: int = await owner.fetchval(
            "SELECT coalesce(sum((facts->>'count')::int), 0)::int FROM audit_log WHERE id > $1 AND facts->>'code' = $2",
            *(since, code),
        )
    return found


async def wait_for_refusals(stage: Stage, since: int, code: str, count: int) -> None:
    async with asyncio.timeout(30):
        while await count_refusals(stage, since, code) < count:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
    assert await count_refusals(stage, since, code) == count


async def find_last(stage: Stage) -> int:
    rows = await read_rows(stage)
    return rows[-1]["id"] if rows else 0


# --- looks ------------------------------------------------------------------------------------------------------------


def test_of_every_read_of_staff_it_is_said_whether_it_shows_students_work() -> None:
    reads = {place for place, rule in RULES.items() if rule in (Rule.STAFF, Rule.READER) and place.startswith("GET ")}
    assert {place for place in reads if place.rpartition("/")[2] not in SHOWS_NOBODY} == trail.LOOKS


async def test_a_look_at_the_class_and_at_a_student_is_noted_once(stage: Stage) -> None:
    student = await stage.join()
    place, mine = f"/api/v1/courses/{stage.course.id}", {"course_id": stage.course.id}
    for _ in range(3):
        for path in ("live", "messages", "sessions", "progress", f"students/{student['user_id']}/sessions"):
            assert (await stage.http.get(f"{place}/{path}", headers=stage.staff)).status_code == 200
    (of_class,) = await wait_for(stage, 1, action="class_viewed", **mine)
    assert (of_class["actor_id"], of_class["subject_id"]) == (stage.teacher_id, None)
    (of_student,) = await wait_for(stage, 1, action="student_viewed", **mine)
    assert (of_student["actor_id"], of_student["subject_id"]) == (stage.teacher_id, UUID(student["user_id"]))


async def test_another_process_does_not_note_the_same_look_again(stage: Stage) -> None:
    entry = trail.Entry("class_viewed", stage.teacher_id, stage.course.id, once_within=trail.LOOK_LIFE)
    log = trail.AuditLog(stage.parts.people)
    await asyncio.gather(*(log.add([entry]) for _ in range(5)))
    await wait_for(stage, 1, action="class_viewed", course_id=stage.course.id)


async def test_a_board_that_only_listens_is_a_look(stage: Stage) -> None:
    async with stage.watch():
        await wait_for(stage, 1, action="class_viewed", course_id=stage.course.id, actor_id=stage.teacher_id)


async def test_a_download_is_noted_before_it_is_given_also_when_its_answer_is_shared(stage: Stage) -> None:
    place = f"/api/v1/courses/{stage.course.id}/sessions?format=csv"
    assert (await stage.http.get(place, headers=stage.staff)).status_code == 200
    (row,) = await read_rows(stage, action="exported", course_id=stage.course.id)
    assert (row["actor_id"], row["facts"]) == (stage.teacher_id, {"what": "sessions", "form": "csv"})
    other = await stage.courses.ensure_teacher(stage.course.id, username=f"t{uuid4().hex}")
    token = await stage.people.create_staff_token(other)
    assert (await stage.http.get(place, headers={"Authorization": f"Bearer {token}"})).status_code == 200
    assert (await stage.http.get(place, headers=stage.staff)).status_code == 200
    rows = await wait_for(stage, 2, action="exported", course_id=stage.course.id)
    assert [row["actor_id"] for row in rows] == [stage.teacher_id, other]


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_every_refusal_leaves_a_row_that_names_who_and_why(stage: Stage) -> None:
    alice, bob = await stage.join("Alice"), await stage.join("Bob")
    other = await stage.courses.ensure_course("Another", f"o{uuid4().hex[:8]}")
    as_alice = {"Authorization": f"Bearer {alice['token']}"}
    last = await find_last(stage)

    assert (await stage.post(alice["token"], make_run(user_id=bob["user_id"]))).status_code == 403
    forged = [make_run(user_id=bob["user_id"]), make_run(user_id=bob["user_id"]), make_run()]
    assert (await stage.post(alice["token"], forged)).status_code == 202
    assert (await stage.http.get(f"/api/v1/courses/{stage.course.id}/live", headers=as_alice)).status_code == 403
    assert (await stage.http.get(f"/api/v1/courses/{other.id}/live", headers=stage.staff)).status_code == 404
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE tokens SET expires_at = now() WHERE user_id = $1", UUID(bob["user_id"]))
    assert (await stage.post(bob["token"], make_run())).status_code == 401
    no_token = {"Authorization": f"Bearer nbp_student_{uuid4().hex}_{'x' * 43}"}
    assert (await stage.http.get("/api/v1/me", headers=no_token)).status_code == 401
    elsewhere = {"Origin": "https://elsewhere.example"}
    assert (await stage.http.post("/api/v1/sign-in", json={"code": "x"}, headers=elsewhere)).status_code == 403
    await stage.http.get("/api/v1/me")  # without a token: nobody was refused anything

    for code, count in (("NB-1102", 3), ("NB-1103", 1), ("NB-1202", 1), ("NB-1101", 1), ("NB-1107", 1), ("NB-1161", 1)):
        await wait_for_refusals(stage, last, code, count)
    rows = {row["facts"]["code"]: row for row in await read_rows(stage, action="access_refused") if row["id"] > last}
    assert rows["NB-1102"]["actor_id"] == UUID(alice["user_id"])
    assert (rows["NB-1103"]["actor_id"], rows["NB-1103"]["course_id"]) == (UUID(alice["user_id"]), stage.course.id)
    assert (rows["NB-1202"]["actor_id"], rows["NB-1202"]["course_id"]) == (stage.teacher_id, other.id)
    assert rows["NB-1161"]["actor_id"] == UUID(bob["user_id"])
    for code in ("NB-1101", "NB-1107"):
        assert (rows[code]["actor_id"], rows[code]["facts"]["network"]) == (None, "127.0.0.0/24")


async def test_a_replayed_ticket_and_a_foreign_page_leave_rows(stage: Stage) -> None:
    last = await find_last(stage)
    answer = await stage.http.post(f"/api/v1/courses/{stage.course.id}/tickets", headers=stage.staff)
    ticket = answer.json()["ticket"]
    async with stage.watch(token=None, ticket=ticket):
        pass
    with pytest.raises(ConnectionClosed) as closed:
        async with stage.watch(token=None, ticket=ticket) as socket:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4401
    url = f"{stage.url.replace('http', 'ws')}/api/v1/courses/{stage.course.id}/ws"
    with pytest.raises(InvalidStatus):
        async with open_socket(url, additional_headers={"Origin": "https://elsewhere.example"}):
            pass
    for code in ("NB-1190", "NB-1107"):
        await wait_for_refusals(stage, last, code, 1)


async def test_a_flood_of_refusals_is_counted_and_not_written_one_by_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail, "COUNT_S", 5.0)
    last = await find_last(stage)
    headers = {"Authorization": "Bearer nbp_student_x_y"}
    for _ in range(10):
        await asyncio.gather(*(stage.http.get("/api/v1/me", headers=headers) for _ in range(50)))
    await wait_for_refusals(stage, last, "NB-1101", 500)
    assert len([row for row in await read_rows(stage, action="access_refused") if row["id"] > last]) < 10


async def test_kinds_of_refusals_are_bounded_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail, "COUNT_S", 60.0)
    last = await find_last(stage)
    for _ in range(3):
        await asyncio.gather(
            *(stage.http.get(f"/api/v1/courses/{uuid4()}/live", headers=stage.staff) for _ in range(60))
        )
    monkeypatch.setattr(trail, "COUNT_S", 0.5)
    await wait_for_refusals(stage, last, "other", 180 - trail.KINDS_MAX + 1)
    assert (
        len([row for row in await read_rows(stage, action="access_refused") if row["id"] > last]) < trail.KINDS_MAX + 10
    )


# --- what people see of it --------------------------------------------------------------------------------------------


async def read_own(stage: Stage, token: str, **query: object) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    answer = await stage.http.get("/api/v1/me/audit", params=query, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_students_see_who_looked_at_them_by_name_and_nothing_of_others(stage: Stage) -> None:
    early, last = uuid4(), await find_last(stage)
    await trail.AuditLog(stage.parts.people).add([trail.Entry("class_viewed", early, stage.course.id)])
    alice, bob = await stage.join("Alice"), await stage.join("Bob")
    other = await stage.courses.ensure_course("Another", f"o{uuid4().hex[:8]}")
    await trail.AuditLog(stage.parts.people).add([trail.Entry("class_viewed", stage.teacher_id, other.id)])
    for path in ("live", f"students/{alice['user_id']}/sessions", f"students/{bob['user_id']}/sessions?format=csv"):
        await stage.http.get(f"/api/v1/courses/{stage.course.id}/{path}", headers=stage.staff)
    await wait_for(stage, 1, action="student_viewed", subject_id=UUID(alice["user_id"]))
    of_alice, of_bob = await read_own(stage, alice["token"]), await read_own(stage, bob["token"])
    told = {(one["action"], one["by"], one["course_title"], one["is_mine"]) for one in of_alice["entries"]}
    seen = {("class_viewed", "teacher", "情報 I", False), ("student_viewed", "teacher", "情報 I", False)}
    assert {one for one in told if one[1] is not None} == seen
    assert not {one for one in told if one[1] is None and not one[3]}, "looks from before they joined"
    told = {(one["action"], one["by"]) for one in of_bob["entries"] if not one["is_mine"]}
    assert told == {("class_viewed", "teacher"), ("exported", "teacher")}
    assert of_alice["entries"][0]["text"]["ja"] == "学生 1 人の学習状況を見ました"
    shown = json.dumps(of_alice)
    for secret in (str(stage.teacher_id), bob["user_id"], str(early), str(other.id)):
        assert secret not in shown
    of_staff = await read_own(stage, stage.teacher_token)
    # An earlier test's teacher may be the same person.
    assert {one["is_mine"] for one in of_staff["entries"] if one["id"] > last} == {True}


async def test_the_own_log_comes_in_pages(stage: Stage) -> None:
    student = await stage.join()
    log = trail.AuditLog(stage.parts.people)
    entry = trail.Entry("student_viewed", stage.teacher_id, stage.course.id, UUID(student["user_id"]))
    await log.add([entry] * 7)
    ids, before = list[int](), 2**62
    while True:
        page = await read_own(stage, student["token"], before=before, limit=3)
        ids += [one["id"] for one in page["entries"] if one["action"] == "student_viewed"]
        assert len(page["entries"]) <= 3
        if (before := page["next"]) is None:
            break
    assert len(set(ids)) == len(ids) == 7
    assert ids == sorted(ids, reverse=True)


# --- acts -------------------------------------------------------------------------------------------------------------


async def test_what_was_done_to_a_course_and_its_people_is_noted(stage: Stage) -> None:
    student = await stage.join(notice_version=1)
    user_id, mine = UUID(student["user_id"]), {"course_id": stage.course.id}
    place = f"/api/v1/courses/{stage.course.id}/collection"
    assert (await stage.http.put(place, json={"level": "source"}, headers=stage.staff)).status_code == 200
    as_student = {"Authorization": f"Bearer {student['token']}"}
    word = {"version": 2, "action": "withdraw"}
    assert (await stage.http.post("/api/v1/me/consent", json=word, headers=as_student)).status_code == 200
    (changed,) = await read_rows(stage, action="collection_changed", **mine)
    assert (changed["actor_id"], changed["facts"]) == (
        stage.teacher_id,
        {"version": 2, "level": "source", "without": 0},
    )
    (withdrawn,) = await read_rows(stage, action="consent_withdrawn", **mine)
    assert (withdrawn["actor_id"], withdrawn["subject_id"], withdrawn["facts"]) == (user_id, user_id, {"version": 2})
    await stage.courses.delete_course(stage.course.id)
    (removed,) = await read_rows(stage, action="course_removed", **mine)
    assert (removed["actor_id"], removed["facts"]) == (None, {"students": 1})
