"""What a course collects: set, shown, accepted, enforced at ingest, withdrawn from; on real stores."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from nbpulse import cli, metrics
from nbpulse.crypto import EncryptedField
from nbpulse.errors import NbpulseError
from stage import KEY, Stage, make_run
from stores import connect

SOURCE, OUTPUT = "SOURCE-CANARY", "OUTPUT-CANARY"
EVERY_TABLE = """
SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname IN ('public', 'timeseries') AND c.relkind IN ('r', 'p') AND NOT c.relispartition
"""


def bearer(joined: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {joined['token']}"}


async def set_collection(stage: Stage, **wanted: Any) -> dict[str, Any]:
    url = f"/api/v1/courses/{stage.course.id}/collection"
    answer = await stage.http.put(url, json=wanted, headers=stage.staff)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def show_collection(stage: Stage) -> dict[str, Any]:
    answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/collection", headers=stage.staff)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def ask_notice(stage: Stage, code: str | None = None) -> Any:
    return await stage.http.get("/api/v1/join/notice", params={"code": code or stage.course.join_code})


async def answer_notice(stage: Stage, joined: dict[str, Any], version: int, action: str = "accept") -> Any:
    body = {"version": version, "action": action}
    return await stage.http.post("/api/v1/me/consent", json=body, headers=bearer(joined))


async def ask_own(stage: Stage, joined: dict[str, Any]) -> dict[str, Any]:
    answer = await stage.http.get("/api/v1/me/collection", headers=bearer(joined))
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def find_in_tables(stage: Stage, text: str) -> list[str]:
    """Names of the tables that hold the text in clear, of whatever column."""
    async with connect(stage.database_url) as owner:
        names = [row[0] for row in await owner.fetch(EVERY_TABLE)]
        return [
            name
            for name in names
            if await owner.fetchval(f"SELECT count(*) FROM {name} t WHERE t::text LIKE '%' || $1 || '%'", text)
        ]


async def read_contents(stage: Stage, joined: dict[str, Any]) -> list[dict[str, str | None]]:
    """A student's collected sources and outputs, opened."""
    seal = EncryptedField(KEY)
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch("SELECT * FROM event_contents WHERE user_id = $1::uuid", joined["user_id"])

    def open_text(row: Any, name: str) -> str | None:
        place = {"table": "event_contents", "column": name, "user_id": row["user_id"]}
        return seal.unseal(row[name], **place) if row[name] else None

    return [{name: open_text(row, name) for name in ("source", "output")} for row in rows]


def make_told_run() -> dict[str, Any]:
    run = make_run()
    run["data"] |= {"source": SOURCE, "output": OUTPUT}
    return run


# --- the notice -------------------------------------------------------------------------------------------------------


async def test_anyone_with_the_code_reads_the_notice_before_joining(stage: Stage) -> None:
    answer = await ask_notice(stage, f" {stage.course.join_code[:3].lower()}-{stage.course.join_code[3:]} ")
    notice = answer.json()
    assert (notice["course_title"], notice["version"], notice["level"]) == ("情報 I", 1, "metadata")
    assert "Not recorded" in notice["notice"]["en"]
    assert "記録しないもの" in notice["notice"]["ja"]
    assert len(notice["recorded"]["ja"]) == len(notice["recorded"]["en"]) > 3
    assert (await ask_notice(stage)).json() == notice, "asking changes nothing"
    wrong = await ask_notice(stage, "ZZZZZZ")
    assert (wrong.status_code, wrong.json()["code"]) == (404, "NB-1105")
    async with connect(stage.database_url) as owner:
        count = await owner.fetchval("SELECT joined_count FROM courses WHERE id = $1", stage.course.id)
    assert count == 0, "nobody has joined"


async def test_each_change_is_a_version_that_is_kept_with_what_it_said(stage: Stage) -> None:
    await stage.join()
    first = await show_collection(stage)
    second = await set_collection(stage, level="source", without=["cell_focus"])
    assert (second["version"], second["level"], second["without"]) == (2, "source", ["cell_focus"])
    assert (await set_collection(stage, level="source"))["version"] == 2, "nothing is different"
    third = await set_collection(stage, added={"ja": "問い合わせ: 山田", "en": "Contact: Yamada"})
    assert (third["version"], third["level"], third["without"]) == (3, "source", ["cell_focus"])
    assert third["notice"]["en"].endswith("Contact: Yamada")
    shown = await show_collection(stage)
    assert [one["version"] for one in shown["versions"]] == [3, 2, 1]
    assert shown["versions"][2]["notice"] == first["notice"]
    async with connect(stage.database_url) as owner:
        who = await owner.fetchval(
            "SELECT created_by FROM collection_versions WHERE course_id = $1 AND version = 3", stage.course.id
        )
    assert who == stage.teacher_id


async def test_many_changes_at_once_come_one_after_the_other(stage: Stage) -> None:
    wanted = [{"level": level, "without": [field]} for level in ("source", "output") for field in ("tags", "traceback")]
    told = await asyncio.gather(*(set_collection(stage, **one) for one in wanted))
    assert sorted(one["version"] for one in told) == [2, 3, 4, 5]
    newest = max(told, key=lambda one: one["version"])
    assert (await show_collection(stage))["without"] == newest["without"]


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"level": "everything"}, "NB-1007"),
        ({"without": ["help_request"]}, "NB-1343"),
        ({"without": "cell_focus"}, "NB-1007"),
        ({"added": {"ja": "x" * 4001}}, "NB-1344"),
    ],
)
async def test_what_cannot_be_set_is_refused_and_nothing_is_changed(stage: Stage, wanted: Any, code: str) -> None:
    url = f"/api/v1/courses/{stage.course.id}/collection"
    answer = await stage.http.put(url, json=wanted, headers=stage.staff)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert (await show_collection(stage))["version"] == 1


async def test_students_see_their_own_and_set_nothing(stage: Stage) -> None:
    joined = await stage.join()
    url = f"/api/v1/courses/{stage.course.id}/collection"
    for method in ("GET", "PUT"):
        answer = await stage.http.request(method, url, json={"level": "nothing"}, headers=bearer(joined))
        assert (answer.status_code, answer.json()["code"]) == (403, "NB-1103")
    assert (await ask_own(stage, joined))["current"]["version"] == 1


# --- consent ----------------------------------------------------------------------------------------------------------


async def test_joining_keeps_which_version_was_shown(stage: Stage) -> None:
    told = await stage.join("告知あり", notice_version=1)
    assert told["collection"]["notice"] == (await ask_notice(stage)).json()["notice"]
    untold = await stage.join("古いクライアント")
    assert [one["version"] for one in (await ask_own(stage, told))["history"]] == [1]
    own = await ask_own(stage, untold)
    assert ([one["version"] for one in own["history"]], own["shown"]) == ([None], None)
    refused = await stage.http.post(
        "/api/v1/join", json={"join_code": stage.course.join_code, "display_name": "x", "notice_version": 2}
    )
    assert (refused.status_code, refused.json()["code"]) == (422, "NB-1342")
    students = (await show_collection(stage))["students"]
    assert students == {"current": 1, "older": 0, "untold": 1, "withdrawn": 0}


async def test_the_history_is_only_added_to_and_staff_see_how_many_were_shown_what(stage: Stage) -> None:
    joined = [await stage.join(f"学生{number}", notice_version=1) for number in range(3)]
    await set_collection(stage, level="output")
    assert (await answer_notice(stage, joined[0], 2)).status_code == 200
    assert (await answer_notice(stage, joined[1], 9)).json()["code"] == "NB-1342"
    assert (await answer_notice(stage, joined[2], 2, "withdraw")).status_code == 200
    history = (await ask_own(stage, joined[0]))["history"]
    assert [(one["version"], one["action"]) for one in history] == [(2, "accept"), (1, "accept")]
    students = (await show_collection(stage))["students"]
    assert students == {"current": 1, "older": 1, "untold": 0, "withdrawn": 1}


# --- enforced at ingest -----------------------------------------------------------------------------------------------


async def test_source_sent_to_a_course_that_collects_none_is_dropped_counted_and_the_run_is_kept(stage: Stage) -> None:
    joined = await stage.join(notice_version=1)
    counter = metrics.ingest_stripped_fields.labels("source")
    before = counter._value.get()
    one, many = make_told_run(), [make_told_run() for _ in range(3)]
    assert (await stage.post(joined["token"], one)).status_code == 202
    answer = await stage.post(joined["token"], many)
    assert {result["status"] for result in answer.json()["results"]} == {"accepted"}
    assert answer.headers["NBPULSE-Collection-Version"] == "1"
    assert counter._value.get() - before == 4
    assert await stage.work() == 4
    assert await read_contents(stage, joined) == []
    for text in (SOURCE, OUTPUT):
        assert await find_in_tables(stage, text) == []


async def test_a_raised_level_is_kept_of_each_student_only_after_they_were_shown_it(stage: Stage) -> None:
    joined = await stage.join(notice_version=1)
    await set_collection(stage, level="source")
    answer = await stage.post(joined["token"], [make_told_run()])
    assert answer.headers["NBPULSE-Collection-Version"] == "2", "the client learns of the new version"
    await stage.work()
    assert await read_contents(stage, joined) == []
    assert (await answer_notice(stage, joined, 2)).json()["shown"]["level"] == "source"
    await stage.post(joined["token"], [make_told_run()])
    await stage.work()
    assert await read_contents(stage, joined) == [{"source": SOURCE, "output": None}]
    assert await find_in_tables(stage, SOURCE) == [], "sealed"
    await set_collection(stage, level="output")
    assert (await answer_notice(stage, joined, 3)).status_code == 200
    await stage.post(joined["token"], make_told_run())
    await stage.work()
    assert {"source": SOURCE, "output": OUTPUT} in await read_contents(stage, joined)
    assert [await find_in_tables(stage, text) for text in (SOURCE, OUTPUT)] == [[], []]


async def test_a_lowered_level_holds_at_once_and_for_everybody(stage: Stage) -> None:
    await set_collection(stage, level="source")
    joined = await stage.join(notice_version=2)
    await stage.post(joined["token"], make_told_run())
    await set_collection(stage, level="metadata", without=["error_message", "cell_focus"])
    focus = make_run(event_type="cell_focus", data={})
    error = make_run(status="error")
    answer = await stage.post(joined["token"], [make_told_run(), focus, error])
    assert [(one["status"], one.get("code")) for one in answer.json()["results"]] == [
        ("accepted", None),
        ("rejected", "NB-1341"),
        ("accepted", None),
    ]
    assert await stage.work() == 3
    assert len(await read_contents(stage, joined)) == 1
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch("SELECT error_message, data FROM events WHERE event_id = $1::uuid", error["event_id"])
    assert [(row["error_message"], json.loads(row["data"])["error_name"]) for row in rows] == [(None, "NameError")]


async def test_a_course_that_collects_nothing_hears_raised_hands_alone(stage: Stage) -> None:
    await set_collection(stage, level="nothing")
    joined = await stage.join(notice_version=2)
    hand = {"event_id": str(uuid4()), "event_type": "help_request", "occurred_at": make_run()["occurred_at"]}
    presence = hand | {"event_id": str(uuid4()), "event_type": "presence", "data": {"state": "active"}}
    refused = await stage.post(joined["token"], make_run())
    assert (refused.status_code, refused.json()["code"]) == (422, "NB-1341")
    answer = await stage.post(joined["token"], [make_run(), presence, hand | {"data": {"message": "分かりません"}}])
    assert [one["status"] for one in answer.json()["results"]] == ["rejected", "rejected", "accepted"]
    await stage.work()
    assert [alert["text"] for alert in (await stage.snapshot())["alerts"]] == ["分かりません"]
    async with connect(stage.database_url) as owner:
        count = await owner.fetchval("SELECT count(*) FROM events WHERE course_id = $1", stage.course.id)
    assert count == 1


async def test_the_board_shows_who_has_paused(stage: Stage) -> None:
    joined = await stage.join(notice_version=1)
    presence = {"event_type": "presence", "occurred_at": make_run()["occurred_at"], "data": {"state": "paused"}}
    await stage.snapshot()  # a board is open
    assert (await stage.post(joined["token"], presence)).status_code == 202
    await asyncio.sleep(0.8)
    assert [one["st"] for one in (await stage.snapshot())["students"]] == ["paused"]


# --- withdrawing ------------------------------------------------------------------------------------------------------


async def test_who_withdraws_has_no_working_token_and_late_events_are_told_why(stage: Stage) -> None:
    joined = await stage.join(notice_version=1)
    again = await stage.join(resume_code=joined["resume_code"], notice_version=1)
    for one in (joined, again):
        assert (await stage.post(one["token"], make_run())).status_code == 202
    told = await answer_notice(stage, joined, 1, "withdraw")
    assert told.status_code == 200
    assert "情報 I" in told.json()["text"]["ja"]
    for one in (joined, again):
        for body in (make_run(), [make_run()]):
            answer = await stage.post(one["token"], body)
            assert (answer.status_code, answer.json()["code"]) == (403, "NB-1340")
        answer = await stage.http.get("/api/v1/me/collection", headers=bearer(one))
        assert (answer.status_code, answer.json()["code"]) == (403, "NB-1340")
    forged = joined["token"][:-4] + "AAAA"
    assert (await stage.post(forged, make_run())).json()["code"] == "NB-1101", "only who holds the token is told"


async def test_who_comes_back_is_the_same_student_and_the_old_token_stays_dead(stage: Stage) -> None:
    joined = await stage.join(notice_version=1)
    await answer_notice(stage, joined, 1, "withdraw")
    back = await stage.join(resume_code=joined["resume_code"], notice_version=1)
    assert back["user_id"] == joined["user_id"]
    assert (await stage.post(back["token"], make_run())).status_code == 202
    old = await stage.post(joined["token"], make_run())
    assert (old.status_code, old.json()["code"]) == (401, "NB-1161")
    actions = [one["action"] for one in (await ask_own(stage, back))["history"]]
    assert actions == ["accept", "withdraw", "accept"]


async def test_a_course_that_is_removed_takes_its_notices_and_consents_with_it(stage: Stage) -> None:
    await stage.join(notice_version=1)
    await stage.courses.delete_course(stage.course.id)
    async with connect(stage.database_url) as owner:
        for table in ("collection_versions", "consents"):
            count = await owner.fetchval(f"SELECT count(*) FROM {table} WHERE course_id = $1", stage.course.id)
            assert count == 0, table


# --- the operator's command -------------------------------------------------------------------------------------------


async def run_command(stage: Stage, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setenv("NBPULSE_DATABASE_URL", stage.database_url)
    monkeypatch.setenv("NBPULSE_REDIS_URL", stage.redis_url)
    monkeypatch.setenv("NBPULSE_ENCRYPTION_KEYS", KEY.decode())
    monkeypatch.setenv("NBPULSE_LANGUAGE", "en")
    return await asyncio.to_thread(CliRunner().invoke, cli.app, ["collection", *arguments])


async def test_the_operator_sets_level_switches_and_text_and_sees_whom_it_reached(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await stage.join(notice_version=1)
    name, text = stage.course.short_name, tmp_path / "notice.txt"
    text.write_text("目的: 授業改善\n連絡先: 山田\n", encoding="utf-8")
    asked = ("--level", "source", "--without", "cell_focus", "--without", "typing", "--notice-ja", str(text))
    first = await run_command(stage, monkeypatch, name, *asked)
    assert (first.exit_code, "Version 2 now holds" in first.stderr) == (0, True)
    assert f"{name}: level source, without: cell_focus, typing; version 2" in first.stdout
    assert "0 were shown this version, 1 an older one" in first.stdout
    assert "連絡先: 山田" in first.stdout
    again = await run_command(stage, monkeypatch, name, "--with", "typing", "--json")
    told = json.loads(again.stdout)
    assert (told["version"], told["level"], told["without"]) == (3, "source", ["cell_focus"])
    same = await run_command(stage, monkeypatch, name, "--level", "source")
    assert "version 3 still holds" in same.stderr
    shown = await run_command(stage, monkeypatch, name)
    assert (shown.stderr, "version 3" in shown.stdout) == ("", True)


async def test_what_the_operator_mistypes_is_refused_with_the_way_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = await run_command(stage, monkeypatch, stage.course.short_name, "--level", "everything")
    assert (wrong.exit_code, "nothing, metadata, source, output" in wrong.output) == (2, True)
    for arguments, code in ((("nowhere",), "NB-3023"), ((stage.course.short_name, "--without", "status"), "NB-1343")):
        refused = await run_command(stage, monkeypatch, *arguments)
        assert isinstance(refused.exception, NbpulseError)
        assert refused.exception.code == code
    assert (await show_collection(stage))["version"] == 1
