"""A JupyterHub's tokens at the API: who they stand for, in which courses, and what a hub that fails does to a class."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest

from nbpulse.api import access, hub_access
from nbpulse.errors import StartupError
from nbpulse.jupyterhub import open_jupyterhub
from nbpulse.passwords import Hasher
from nbpulse.records.accounts import Accounts
from nbpulse.records.merging import merge_users
from played_hub import FULL, PlayedHub
from stage import Stage, make_run, open_stage
from stores import connect


@pytest.fixture
def hub() -> Iterator[PlayedHub]:
    played = PlayedHub()
    yield played
    played.close()


@pytest.fixture
async def hub_stage(stage_database: str, embedded_valkey: str, hub: PlayedHub) -> AsyncIterator[Stage]:
    async with open_stage(stage_database, embedded_valkey, hub_api_url=hub.api_url) as opened:
        yield opened


@asynccontextmanager
async def no_cache(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Every request is asked about anew."""
    with monkeypatch.context() as patch:
        for name in ("_REFRESH_AFTER_S", "YES_LIFE_S"):
            patch.setattr(access, name, 0.0)
        patch.setattr(hub_access, "_NO_LIFE_S", 0.0)
        yield


async def read_roles(stage: Stage, name: str) -> dict[str, str]:
    """Short name of the course -> role of the hub's user."""
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch(
            "SELECT c.short_name, e.role FROM external_identities i JOIN enrolments e USING (user_id)"
            " JOIN courses c ON c.id = e.course_id WHERE i.subject = $1",
            name,
        )
    return {row["short_name"]: row["role"] for row in rows}


def draw_name() -> str:
    """The database is shared by the tests of a run."""
    return f"alice-{uuid4().hex[:8]}"


# --- who and where ----------------------------------------------------------------------------------------------------


async def test_a_user_of_the_hub_is_a_student_without_a_step_and_stays_the_same_one(
    hub_stage: Stage, hub: PlayedHub
) -> None:
    stage, name = hub_stage, draw_name()
    first, second = (hub.give(name, f"course-{stage.course.short_name}", "staff-of-nothing") for _ in range(2))
    assert (await stage.post(first, make_run())).status_code == 202
    answer = await stage.http.get("/api/v1/me", headers={"Authorization": f"token {second}"})
    assert answer.json()["display_name"] == name
    assert [(course["id"], course["role"]) for course in answer.json()["courses"]] == [
        (str(stage.course.id), "student")
    ]
    assert (await stage.post(second, make_run())).status_code == 202
    await stage.work()
    board = await stage.snapshot()
    assert [student["num"] for student in board["students"]] == [name]
    assert len((await stage.http.get("/api/v1/me", headers={"Authorization": f"token {first}"})).json()["courses"]) == 1


async def test_a_closed_account_is_refused_whatever_the_hub_says(
    hub_stage: Stage, hub: PlayedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, name = hub_stage, draw_name()
    token = hub.give(name, f"course-{stage.course.short_name}")
    assert (await stage.post(token, make_run())).status_code == 202
    accounts = Accounts(stage.people, Hasher())
    async with connect(stage.database_url) as owner:
        user_id = await owner.fetchval("SELECT user_id FROM external_identities WHERE subject = $1", name)
    async with no_cache(monkeypatch):
        await accounts.close(user_id)
        refused = await stage.post(token, make_run())
        assert (refused.status_code, refused.json()["code"]) == (403, "NB-1125")
        await accounts.reopen(user_id)
        assert (await stage.post(token, make_run())).status_code == 202


async def test_what_a_course_collects_and_who_has_withdrawn_hold_for_the_hub_s_students_too(
    hub_stage: Stage, hub: PlayedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = hub_stage
    token = hub.give(draw_name(), f"course-{stage.course.short_name}")
    mine = {"Authorization": f"token {token}"}
    collection = f"/api/v1/courses/{stage.course.id}/collection"
    assert (await stage.post(token, make_run())).headers["nbpulse-collection-version"] == "1"
    wanted = {"level": "nothing", "without": [], "added": {"ja": "", "en": ""}}
    changed = await stage.http.put(collection, json=wanted, headers=stage.staff)
    assert changed.status_code == 200, changed.text
    refused = await stage.post(token, make_run())
    assert refused.json()["code"] == "NB-1341", "without waiting for what was known to grow old"
    version = (await stage.http.get("/api/v1/me/collection", headers=mine)).json()["current"]["version"]
    answer = {"version": version, "action": "withdraw"}
    told = await stage.http.post("/api/v1/me/consent", json=answer, headers=mine)
    assert told.status_code < 300, told.text
    async with no_cache(monkeypatch):
        late = await stage.post(token, make_run())
        assert (late.status_code, late.json()["code"]) == (403, "NB-1340")
        assert (await stage.http.get("/api/v1/me/collection", headers=mine)).status_code == 200
        again = await stage.http.post("/api/v1/me/consent", json=answer | {"action": "accept"}, headers=mine)
        assert again.status_code < 300, again.text
        back = await stage.post(token, make_run())
        assert back.json()["code"] == "NB-1341", "back in the course, which collects nothing"


async def test_bobs_name_with_alices_token_is_refused(hub_stage: Stage, hub: PlayedHub) -> None:
    stage = hub_stage
    alice, bob = (hub.give(draw_name(), f"course-{stage.course.short_name}") for _ in range(2))
    bobs = (await stage.http.get("/api/v1/me", headers={"Authorization": f"token {bob}"})).json()["user_id"]
    for named, status, code in ((bobs, 403, "NB-1102"), ("bob", 422, "NB-1011")):  # a user_id is an id
        answer = await stage.post(alice, make_run(user_id=named))
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    batch = (await stage.post(alice, [make_run(), make_run(user_id=bobs)])).json()["results"]
    assert [one.get("code") for one in batch] == [None, "NB-1102"]


async def test_many_first_requests_at_once_make_one_user(hub_stage: Stage, hub: PlayedHub) -> None:
    name = draw_name()
    tokens = [hub.give(name, f"course-{hub_stage.course.short_name}") for _ in range(12)]
    answers = await asyncio.gather(*(hub_stage.post(token, make_run()) for token in tokens))
    assert {answer.status_code for answer in answers} == {202}
    async with connect(hub_stage.database_url) as owner:
        assert await owner.fetchval("SELECT count(*) FROM users WHERE username LIKE $1 || '%'", name) == 1


async def test_a_name_taken_by_who_joined_by_code_stays_theirs(hub_stage: Stage, hub: PlayedHub) -> None:
    name = draw_name()
    joined = await hub_stage.join("誰か", student_number=name)
    token = hub.give(name, f"course-{hub_stage.course.short_name}")
    me = (await hub_stage.http.get("/api/v1/me", headers={"Authorization": f"token {token}"})).json()
    assert me["user_id"] != joined["user_id"]
    assert me["display_name"].startswith(f"{name}-")


async def test_after_two_users_became_one_the_hub_leads_to_the_one(hub_stage: Stage, hub: PlayedHub) -> None:
    stage = hub_stage
    joined = await stage.join("花子")
    token = hub.give(draw_name(), f"course-{stage.course.short_name}")
    header = {"Authorization": f"token {token}"}
    before = (await stage.http.get("/api/v1/me", headers=header)).json()
    keep_id, drop_id = UUID(joined["user_id"]), UUID(before["user_id"])
    await merge_users(stage.people._pool, stage.people._seal, keep_id=keep_id, drop_id=drop_id)
    again = hub.give(hub.users[token]["name"], f"course-{stage.course.short_name}")
    after = (await stage.http.get("/api/v1/me", headers={"Authorization": f"token {again}"})).json()
    assert after["user_id"] == joined["user_id"]


async def test_a_student_of_two_courses_names_one(hub_stage: Stage, hub: PlayedHub) -> None:
    stage = hub_stage
    other = await stage.courses.ensure_course("情報 II", f"情報{uuid4().hex[:8]}")
    token = hub.give(draw_name(), f"course-{stage.course.short_name}", f"course-{other.short_name}")
    refused = await stage.post(token, make_run())
    assert (refused.status_code, refused.json()["code"]) == (403, "NB-1113")
    assert other.short_name in refused.json()["title"]
    for named in (str(uuid4()), "class", quote(other.short_name)[:-1]):
        wrong = await stage.post(token, make_run(), headers={"Nbpulse-Course": named})
        assert (wrong.status_code, wrong.json()["code"]) == (403, "NB-1112")
    for named, course in ((quote(other.short_name), other), (str(stage.course.id), stage.course)):
        sent = make_run()
        assert (await stage.post(token, sent, headers={"Nbpulse-Course": named})).status_code == 202
        await stage.work()
        async with connect(stage.database_url) as owner:
            stored = await owner.fetchval("SELECT course_id FROM events WHERE event_id = $1::uuid", sent["event_id"])
        assert stored == course.id
        inbox = await stage.http.get(
            "/api/v1/me/inbox?wait_s=0", headers={"Authorization": f"token {token}", "Nbpulse-Course": named}
        )
        assert inbox.status_code == 200


async def test_who_is_in_no_course_here_is_refused_and_leaves_no_trace(hub_stage: Stage, hub: PlayedHub) -> None:
    name = draw_name()
    for groups in ((), ("course-of-another-server",), (f"course{hub_stage.course.short_name}",)):
        answer = await hub_stage.post(hub.give(name, *groups), make_run())
        assert (answer.status_code, answer.json()["code"]) == (403, "NB-1112")
    async with connect(hub_stage.database_url) as owner:
        assert await owner.fetchval("SELECT count(*) FROM users WHERE username = $1", name) == 0


@pytest.mark.parametrize(
    ("scopes", "lacking"),
    [
        ((), "access:services!service=nbpulse"),
        (("custom:nbpulse:write", "access:services!service=other"), "access:services!service=nbpulse"),
        (("access:services!service=nbpulse", "access:servers!user=alice"), "custom:nbpulse:write"),
    ],
)
async def test_a_token_without_the_scopes_is_refused_by_name(
    hub_stage: Stage, hub: PlayedHub, scopes: tuple[str, ...], lacking: str
) -> None:
    token = hub.give(draw_name(), f"course-{hub_stage.course.short_name}", scopes=scopes)
    answer = await hub_stage.post(token, make_run())
    assert (answer.status_code, answer.json()["code"]) == (403, "NB-1111")
    assert lacking in answer.json()["title"]


# --- staff ------------------------------------------------------------------------------------------------------------


async def test_groups_make_staff_who_read_with_the_scope_to_read_and_only_while_they_are_in_the_group(
    hub_stage: Stage, hub: PlayedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, name, short = hub_stage, draw_name(), hub_stage.course.short_name
    reading = (*FULL, "custom:nbpulse:read")
    token = hub.give(name, f"course-{short}", f"instructor-{short}", f"assistant-{short}", scopes=reading)
    header = {"Authorization": f"token {token}", "Cache-Control": "no-store"}
    live = f"/api/v1/courses/{stage.course.id}/live"
    async with no_cache(monkeypatch):
        assert (await stage.http.get(live, headers=header)).status_code == 200
        assert await read_roles(stage, name) == {short: "instructor"}
        hub.users[token]["groups"] = [f"assistant-{short}"]
        assert (await stage.http.get(live, headers=header)).status_code == 200
        assert await read_roles(stage, name) == {short: "assistant"}
        # Staff are no students: nothing of theirs is counted.
        assert (await stage.post(token, make_run())).json()["code"] == "NB-1112"
        hub.users[token]["scopes"] = list(FULL)
        assert (await stage.http.get(live, headers=header)).status_code == 403
        hub.users[token] |= {"groups": [], "scopes": list(reading)}
        nowhere = await stage.http.get(live, headers=header)
        assert (nowhere.status_code, nowhere.json()["code"]) == (403, "NB-1112")
    assert await read_roles(stage, name) == {}


async def test_a_student_who_leaves_the_group_delivers_no_more_and_the_work_stays(
    hub_stage: Stage, hub: PlayedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, name = hub_stage, draw_name()
    token = hub.give(name, f"course-{stage.course.short_name}")
    async with no_cache(monkeypatch):
        assert (await stage.post(token, make_run())).status_code == 202
        hub.users[token]["groups"] = []
        assert (await stage.post(token, make_run())).json()["code"] == "NB-1112"
    await stage.work()
    assert name in [student["num"] for student in (await stage.snapshot())["students"]]


async def test_what_an_operator_gave_by_hand_the_hub_does_not_take_away(
    hub_stage: Stage, hub: PlayedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, name, short = hub_stage, draw_name(), hub_stage.course.short_name
    token = hub.give(name, f"course-{short}")
    async with no_cache(monkeypatch), connect(stage.database_url) as owner:
        await stage.post(token, make_run())
        await owner.execute(
            "UPDATE enrolments e SET role = 'assistant', granted_by = NULL FROM external_identities i"
            " WHERE i.subject = $1 AND i.user_id = e.user_id",
            name,
        )
        for groups in ([f"course-{short}"], []):
            hub.users[token]["groups"] = groups
            await stage.post(token, make_run())
            assert await read_roles(stage, name) == {short: "assistant"}


# --- a hub that fails -------------------------------------------------------------------------------------------------


async def test_a_yes_is_asked_for_once_in_20_s_and_a_no_once_in_5_s(hub_stage: Stage, hub: PlayedHub) -> None:
    good, bad = hub.give(draw_name(), f"course-{hub_stage.course.short_name}"), "0123456789abcdef"
    for _ in range(5):
        assert (await hub_stage.post(good, make_run())).status_code == 202
        refused = await hub_stage.post(bad, make_run())
        assert (refused.status_code, refused.json()["code"]) == (401, "NB-1110")
        assert refused.headers["www-authenticate"] == "Bearer"
    assert sorted(hub.asked) == sorted([good, bad])


@pytest.mark.parametrize("token", ["short", "with space in it", "x" * 300, "nbp_student_" + "0" * 32 + "_x"])
async def test_what_cannot_be_the_hubs_token_is_no_question_to_it(hub_stage: Stage, hub: PlayedHub, token: str) -> None:
    assert (await hub_stage.post(token, make_run())).status_code == 401
    assert hub.asked == []


async def test_a_revoked_token_stops_when_its_yes_has_aged(
    hub_stage: Stage, hub: PlayedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = hub.give(draw_name(), f"course-{hub_stage.course.short_name}")
    assert (await hub_stage.post(token, make_run())).status_code == 202
    del hub.users[token]
    assert (await hub_stage.post(token, make_run())).status_code == 202
    monkeypatch.setattr(access, "_REFRESH_AFTER_S", 0.0)
    monkeypatch.setattr(access, "YES_LIFE_S", 0.0)
    assert (await hub_stage.post(token, make_run())).json()["code"] == "NB-1110"
    monkeypatch.setattr(access, "YES_LIFE_S", 30.0)
    assert (await hub_stage.post(token, make_run())).json()["code"] == "NB-1110"


@pytest.mark.parametrize("failure", ["hangs", "fails", "is another's page", "is gone"])
async def test_while_the_hub_fails_who_was_known_delivers_and_who_was_not_is_asked_to_come_again(
    hub_stage: Stage, hub: PlayedHub, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    stage = hub_stage
    known, new = (hub.give(draw_name(), f"course-{stage.course.short_name}") for _ in range(2))
    assert (await stage.post(known, make_run())).status_code == 202
    match failure:
        case "hangs":
            hub.wait_s = 9.0
        case "fails":
            hub.says = (500, b"{}")
        case "is another's page":
            hub.says = (200, b"<html>a sign-in page</html>")
        case "is gone":
            hub.close()
    began = time.monotonic()
    refused = await stage.post(new, make_run())
    assert (refused.status_code, refused.json()["code"]) == (503, "NB-2010")
    assert 1 <= int(refused.headers["retry-after"]) <= 5
    assert time.monotonic() - began < 2.6
    monkeypatch.setattr(access, "_REFRESH_AFTER_S", 0.0)
    monkeypatch.setattr(access, "YES_LIFE_S", 0.0)
    assert (await stage.post(known, make_run())).status_code == 202
    monkeypatch.setattr(access, "_GRACE_S", 0.0)
    assert (await stage.post(known, make_run())).json()["code"] == "NB-2010"


async def test_a_slow_hubs_answer_is_good_for_the_next_try(hub_stage: Stage, hub: PlayedHub) -> None:
    token = hub.give(draw_name(), f"course-{hub_stage.course.short_name}")
    hub.wait_s = 2.5
    assert (await hub_stage.post(token, make_run())).status_code == 503
    await asyncio.sleep(1.0)
    assert (await hub_stage.post(token, make_run())).status_code == 202
    assert hub.asked == [token]


async def test_a_service_of_the_hub_is_no_user(hub_stage: Stage, hub: PlayedHub) -> None:
    token = hub.give("culler", f"course-{hub_stage.course.short_name}", kind="service")
    assert (await hub_stage.post(token, make_run())).json()["code"] == "NB-1110"


async def test_without_a_hub_its_tokens_are_nobodys(stage: Stage, hub: PlayedHub) -> None:
    answer = await stage.post(hub.give(draw_name(), f"course-{stage.course.short_name}"), make_run())
    assert (answer.status_code, answer.json()["code"]) == (401, "NB-1101")


@pytest.mark.parametrize("url", ["", "hub", "ftp://hub/api", "http://"])
async def test_what_is_no_address_of_a_hub_is_said_at_start(url: str) -> None:
    with pytest.raises(StartupError, match="NB-3082"):
        async with open_jupyterhub(url):
            pass
