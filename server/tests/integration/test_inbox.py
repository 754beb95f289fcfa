"""Messages between staff and students: to one, to all with an error, to the class; offers; and what became of them."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest

from nbpulse.crypto import EncryptedField
from nbpulse.records.merging import merge_users
from stage import KEY, Stage, make_run, open_stage
from stores import connect


async def send(stage: Stage, to: dict[str, Any], text: Any = "こんにちは", **body: Any) -> httpx2.Response:
    said = {} if "offer" in body else {"text": text}
    return await stage.http.post(
        f"/api/v1/courses/{stage.course.id}/messages",
        json={"id": str(uuid4()), "to": to, **said} | body,
        headers=stage.staff,
    )


async def write(stage: Stage, student: dict[str, Any], text: str, **body: Any) -> httpx2.Response:
    return await stage.http.post(
        "/api/v1/me/messages",
        json={"id": str(uuid4()), "thread_id": None, "text": text} | body,
        headers={"Authorization": f"Bearer {student['token']}"},
    )


async def set_state(stage: Stage, student: dict[str, Any], message_id: str, state: str) -> int:
    answer = await stage.http.put(
        f"/api/v1/me/messages/{message_id}/state",
        json={"state": state},
        headers={"Authorization": f"Bearer {student['token']}"},
    )
    return answer.status_code


async def read_batch(stage: Stage, batch_id: str) -> dict[str, Any]:
    answer = await stage.http.get(
        f"/api/v1/courses/{stage.course.id}/messages", params={"batch": batch_id}, headers=stage.staff
    )
    (batch,) = answer.json()["batches"]
    return dict(batch)


async def read_threads(stage: Stage, student: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await stage.http.get(
        f"/api/v1/courses/{stage.course.id}/messages", params={"student": student["user_id"]}, headers=stage.staff
    )
    threads: list[dict[str, Any]] = answer.json()["threads"]
    return threads


async def test_a_message_reaches_a_waiting_student_within_a_second_at_another_api(
    stage: Stage, stage_database: str, embedded_valkey: str
) -> None:
    student = await stage.join()
    async with open_stage(stage_database, embedded_valkey) as other:
        waiting = asyncio.create_task(other.read_inbox(student, wait_s=9))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        started = time.monotonic()
        sent = await send(stage, {"user_ids": [student["user_id"]]}, "セル 3 を先に実行してください。")
        assert (sent.status_code, sent.json()["recipients"], sent.json()["unknown"]) == (201, 1, [])
        inbox = await waiting
        assert time.monotonic() - started < 1
    (message,) = inbox["messages"]
    assert {name: message[name] for name in ("kind", "from", "is_mine", "text", "state", "offer")} == {
        "kind": "message",
        "from": "teacher",
        "is_mine": False,
        "text": "セル 3 を先に実行してください。",
        "state": "sent",
        "offer": None,
    }
    assert message["thread_id"] == message["id"]
    assert abs(message["at"] - time.time() * 1000) < 10_000
    again = await stage.read_inbox(student, inbox["after"])
    assert (again["messages"], again["after"]) == ([], inbox["after"])


async def test_a_thread_goes_on_from_both_ends_and_survives_a_restart_of_jupyter(stage: Stage) -> None:
    student = await stage.join()
    begun = await write(stage, student, "グラフが出ません")
    assert begun.status_code == 201
    thread_id = begun.json()["thread_id"]
    answered = await send(stage, {"user_ids": [student["user_id"]]}, "plt.show() は?", thread_id=thread_id)
    assert answered.status_code == 201
    assert (await write(stage, student, "出ました", thread_id=thread_id)).status_code == 201
    inbox = await stage.read_inbox(student)
    assert [(one["text"], one["is_mine"], one["from"]) for one in inbox["messages"]] == [
        ("グラフが出ません", True, None),
        ("plt.show() は?", False, "teacher"),
        ("出ました", True, None),
    ]
    assert {one["thread_id"] for one in inbox["messages"]} == {thread_id}
    (thread,) = await read_threads(stage, student)
    assert [(one["text"], one["is_from_staff"]) for one in thread["messages"]] == [
        ("グラフが出ません", False),
        ("plt.show() は?", True),
        ("出ました", False),
    ]


async def test_writing_again_under_the_same_id_changes_nothing(stage: Stage) -> None:
    student = await stage.join()
    once = {"id": str(uuid4())}
    answers = await asyncio.gather(*(write(stage, student, "help", **once) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 201]
    dispatch = {"id": str(uuid4())}
    sent = await asyncio.gather(*(send(stage, {"all": True}, **dispatch) for _ in range(5)))
    assert sorted(answer.status_code for answer in sent) == [200, 200, 200, 200, 201]
    late = await stage.join("late comer")
    assert (await send(stage, {"all": True}, **dispatch)).json()["recipients"] == 1
    assert len((await stage.read_inbox(student))["messages"]) == 2
    assert (await stage.read_inbox(late))["messages"] == []


async def test_an_offer_is_accepted_put_off_or_refused_and_staff_see_it(stage: Stage) -> None:
    students = [await stage.join(f"student {number}") for number in range(4)]
    for student in students:
        await stage.post(student["token"], make_run(1, "error"))
    await stage.work()
    async with connect(stage.database_url) as owner:
        notebook_id = str(await owner.fetchval("SELECT id FROM notebooks WHERE course_id = $1", stage.course.id))
    offer = {"notebook_id": notebook_id, "cell_id": "cell-1", "source": "df = load()\ndf.head()", "text": "Try this"}
    sent = await send(stage, {"user_ids": [one["user_id"] for one in students]}, offer=offer)
    assert sent.status_code == 201, sent.text
    batch_id = sent.json()["batch_id"]
    ids = []
    for student in students:
        (message,) = (await stage.read_inbox(student))["messages"]
        assert message["offer"] == {"notebook_path": "week1.ipynb"} | {
            name: offer[name] for name in ("notebook_id", "cell_id", "source")
        }
        assert (message["kind"], message["text"]) == ("offer", "Try this")
        ids.append(message["id"])
    assert len(set(ids)) == 4
    for state in ("shown", "accepted"):
        assert await set_state(stage, students[0], ids[0], state) == 204
    for state in ("later", "never", "accepted", "shown"):  # never is final
        assert await set_state(stage, students[1], ids[1], state) == 204
    assert await set_state(stage, students[2], ids[2], "later") == 204
    assert [(await stage.read_inbox(one))["messages"][0]["state"] for one in students] == [
        *("accepted", "never", "later", "sent")
    ]
    later = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    await stage.post(students[0]["token"], make_run(1, occurred_at=later))
    await stage.work()
    batch = await read_batch(stage, batch_id)
    counts = ("recipients", "sent", "shown", "accepted", "later", "never", "passed")
    assert [batch[name] for name in counts] == [4, 1, 0, 1, 1, 1, 1]
    assert 0 <= batch["median_accept_s"] < 30


async def test_what_became_of_a_message_is_only_its_student_s_to_say(stage: Stage) -> None:
    first, second = await stage.join("first"), await stage.join("second")
    await send(stage, {"user_ids": [first["user_id"]]})
    (message,) = (await stage.read_inbox(first))["messages"]
    assert await set_state(stage, second, message["id"], "shown") == 404
    assert await set_state(stage, first, str(uuid4()), "shown") == 404
    own = (await write(stage, second, "hello")).json()
    assert await set_state(stage, second, own["id"], "shown") == 404, "one's own message is not told to oneself"
    foreign = await write(stage, second, "mine too", thread_id=message["thread_id"])
    assert (foreign.status_code, foreign.json()["code"]) == (404, "NB-1333")
    elsewhere = await send(stage, {"user_ids": [second["user_id"]]}, thread_id=message["thread_id"])
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (404, "NB-1333")


async def test_an_announcement_to_an_error_reaches_those_who_have_it_now_and_tells_how_many_got_past(
    stage: Stage,
) -> None:
    students = [await stage.join(f"student {number}") for number in range(5)]
    for number, student in enumerate(students):
        await stage.post(student["token"], make_run(3, "error" if number < 4 else "ok", sequence=1))
    later = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    await stage.post(students[3]["token"], make_run(3, "ok", sequence=2, occurred_at=later))  # past it already
    await stage.work()
    async with connect(stage.database_url) as owner:
        fingerprint = await owner.fetchval(
            "SELECT error_fingerprint FROM events WHERE user_id = $1", UUID(students[0]["user_id"])
        )
    text = {"en": "3 of you: `df` is not defined. Run cell 3 first.", "ja": "3 人: `df` が未定義です。"}
    sent = await send(stage, {"error_fingerprint": fingerprint}, text)
    assert (sent.status_code, sent.json()["recipients"]) == (201, 3), sent.text
    (message,) = (await stage.read_inbox(students[0]))["messages"]
    assert (message["kind"], message["text"]) == ("announcement", text)
    assert [(await stage.read_inbox(one))["messages"] for one in students[3:]] == [[], []]
    for student in students[:2]:
        after = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
        await stage.post(student["token"], make_run(3, "ok", sequence=3, occurred_at=after))
    await stage.work()
    batch = await read_batch(stage, sent.json()["batch_id"])
    assert (batch["passed"], batch["recipients"], batch["text"]) == (2, 3, text)
    nobody = await send(stage, {"error_fingerprint": "0" * 16})
    assert (nobody.status_code, nobody.json()["code"]) == (422, "NB-1334")


async def test_unknown_students_are_named_and_the_others_get_it(stage: Stage) -> None:
    student, stranger = await stage.join(), str(uuid4())
    sent = await send(stage, {"user_ids": [student["user_id"], stranger, str(stage.teacher_id)]})
    assert (sent.status_code, sent.json()["recipients"]) == (201, 1)
    assert set(sent.json()["unknown"]) == {stranger, str(stage.teacher_id)}
    assert len((await stage.read_inbox(student))["messages"]) == 1
    refused = await send(stage, {"user_ids": [stranger]})
    assert (refused.status_code, refused.json()["code"]) == (404, "NB-1330")
    assert stranger in refused.json()["title"]


@pytest.mark.parametrize(
    "body",
    [
        {"to": {}},
        {"to": {"all": True, "user_ids": [str(uuid4())]}},
        {"to": {"all": True}, "text": "x" * 1001},
        {"to": {"all": True}, "text": "  "},
        {"to": {"all": True}, "text": "\x00"},
        {"to": {"all": True}, "text": {"ja": "x"}},
        {"to": {"all": True}, "thread_id": str(uuid4())},
        {"to": {"all": True}, "offer": {"notebook_id": str(uuid4()), "cell_id": "a", "source": "x", "text": "x"}},
        {"to": {"user_ids": []}},
    ],
)
async def test_what_cannot_be_sent_is_refused_and_sent_to_nobody(stage: Stage, body: dict[str, Any]) -> None:
    student = await stage.join()
    answer = await stage.http.post(
        f"/api/v1/courses/{stage.course.id}/messages",
        json={"id": str(uuid4()), "text": "x"} | body,
        headers=stage.staff,
    )
    assert answer.status_code == 422, answer.text
    assert (await stage.read_inbox(student))["messages"] == []


async def test_the_longest_text_and_source_are_taken_and_longer_ones_refused(stage: Stage) -> None:
    student = await stage.join()
    await stage.post(student["token"], make_run(1))
    await stage.work()
    async with connect(stage.database_url) as owner:
        notebook_id = str(await owner.fetchval("SELECT id FROM notebooks WHERE course_id = $1", stage.course.id))
    for length, status in ((20_000, 201), (20_001, 422)):
        offer = {"notebook_id": notebook_id, "cell_id": "a", "source": "あ" * length, "text": "い" * 1_000}
        assert (await send(stage, {"all": True}, offer=offer)).status_code == status
    (message,) = (await stage.read_inbox(student))["messages"]
    assert len(message["offer"]["source"]) == 20_000
    assert (await write(stage, student, "う" * 500)).status_code == 201
    assert (await write(stage, student, "う" * 501)).status_code == 422


async def test_an_inbox_begins_with_the_last_fifty_of_a_day(stage: Stage) -> None:
    student = await stage.join()
    for number in range(52):
        assert (await send(stage, {"all": True}, f"{number}")).status_code == 201
    inbox = await stage.read_inbox(student)
    assert [one["text"] for one in inbox["messages"]] == [str(number) for number in range(2, 52)]
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "UPDATE messages SET created_at = created_at - interval '24 hours' WHERE user_id = $1",
            UUID(student["user_id"]),
        )
    assert (await stage.read_inbox(student))["messages"] == []


async def test_nothing_is_missed_by_a_client_that_goes_on_from_the_last_answer(stage: Stage) -> None:
    """Staff and the student write at once while the inbox is followed; every message is told."""
    student = await stage.join()
    heard: dict[str, str] = {}
    is_over = asyncio.Event()

    async def follow() -> None:
        after, rose = 0, []
        while True:
            last = is_over.is_set()
            inbox = await stage.read_inbox(student, after, wait_s=0.2)
            rose.append(inbox["after"] >= after)
            after = inbox["after"]
            heard.update({one["id"]: one["state"] for one in inbox["messages"]})
            if last:
                assert all(rose)
                return

    async def say(number: int) -> None:
        if number % 3:
            assert (await write(stage, student, f"{number}")).status_code == 201
        else:
            assert (await send(stage, {"all": True}, f"{number}")).status_code == 201

    following = asyncio.create_task(follow())
    for start in range(0, 48, 6):
        await asyncio.gather(*(say(number) for number in range(start, start + 6)))
        shown = [one for one, state in heard.items() if state == "sent"]
        await asyncio.gather(*(set_state(stage, student, one, "shown") for one in shown))
    is_over.set()
    await following
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch("SELECT id::text, state FROM messages WHERE user_id = $1", UUID(student["user_id"]))
    assert heard == dict(rows)
    assert len(heard) == 48


async def test_texts_are_sealed_and_only_their_own_student_and_staff_read_them(stage: Stage) -> None:
    student, classmate = await stage.join("first"), await stage.join("second")
    await send(stage, {"user_ids": [student["user_id"]]}, "private-word")
    async with connect(stage.database_url) as owner:
        bodies = await owner.fetch("SELECT body FROM messages WHERE course_id = $1", stage.course.id)
    assert len(bodies) == 1
    assert "private-word" not in bodies[0]["body"]
    assert (await stage.read_inbox(classmate))["messages"] == []
    answer = await stage.http.get(
        f"/api/v1/courses/{stage.course.id}/messages",
        params={"student": student["user_id"]},
        headers={"Authorization": f"Bearer {classmate['token']}"},
    )
    assert answer.status_code == 403
    assert (await read_threads(stage, student))[0]["messages"][0]["text"] == "private-word"


async def test_what_two_users_were_told_comes_to_the_one_they_prove_to_be(stage: Stage) -> None:
    first, second = await stage.join("s"), await stage.join("s")
    await stage.post(second["token"], make_run(1, event_type="help_request", data={}))
    await stage.work()
    await send(stage, {"user_ids": [second["user_id"]]}, "to the second")
    thread_id = (await write(stage, second, "from the second")).json()["thread_id"]
    note = {"id": str(uuid4()), "user_id": second["user_id"], "text": "a note"}
    path = f"/api/v1/courses/{stage.course.id}"
    assert (await stage.http.post(f"{path}/alerts/{uuid4()}/note", json=note, headers=stage.staff)).status_code == 200
    await send(stage, {"user_ids": [first["user_id"]]}, "to the first")
    read_on = await stage.read_inbox(first)
    async with asyncpg.create_pool(stage.database_url, min_size=1, max_size=1) as pool:
        keep_id, drop_id = UUID(first["user_id"]), UUID(second["user_id"])
        await merge_users(pool, EncryptedField(KEY), keep_id=keep_id, drop_id=drop_id)
    async with open_stage(stage.database_url, stage.redis_url) as other:  # which knows no token's owner from before
        for student in (first, second):  # the second's machine goes on as the first
            inbox = await other.read_inbox(student, read_on["after"])
            assert [(one["text"], one["is_mine"]) for one in inbox["messages"]] == [
                ("to the second", False),
                ("from the second", True),
            ]
            assert inbox["help"]["open"] is True
        assert (await write(other, second, "goes on", thread_id=thread_id)).status_code == 201
    assert sorted(len(one["messages"]) for one in await read_threads(stage, first)) == [1, 1, 2]
    (log,) = (await stage.http.get(f"{path}/interventions", headers=stage.staff)).json()["interventions"]
    assert (log["user_id"], log["note"]) == (first["user_id"], "a note")


async def test_a_removed_course_leaves_no_message_and_no_word_of_what_was_done(stage: Stage) -> None:
    student = await stage.join()
    await send(stage, {"all": True})
    claim = {"id": str(uuid4()), "user_id": student["user_id"]}
    path = f"/api/v1/courses/{stage.course.id}/alerts/{uuid4()}/claim"
    assert (await stage.http.post(path, json=claim, headers=stage.staff)).status_code == 200
    async with connect(stage.database_url) as owner:
        for table in ("messages", "interventions"):
            rows = f"SELECT count(*) FROM {table} WHERE course_id = $1"
            assert await owner.fetchval(rows, stage.course.id) == 1
        await stage.courses.delete_course(stage.course.id)
        for table in ("messages", "interventions"):
            assert await owner.fetchval(f"SELECT count(*) FROM {table} WHERE course_id = $1", stage.course.id) == 0
