"""Signing in with a name and a password, one's sessions and their ends, and what another site can do with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from typer.testing import CliRunner
from websockets.asyncio.client import connect as open_socket

from nbpulse import cli
from nbpulse.errors import AccessDenied, InvalidInput, NotFound
from nbpulse.passwords import Hasher
from nbpulse.records.accounts import Accounts
from stage import KEY, Stage, open_stage
from stores import connect

PASSWORD = "correct horse battery staple"
OTHER = "馬 電池 ホチキス 正しい 夕焼け 港"


@pytest.fixture
def accounts(stage: Stage) -> Accounts:
    """As the operator's command has them, with the owner's rights."""
    return Accounts(stage.people, Hasher())


class Person:
    """Somebody with a browser, at the stage's address."""

    def __init__(self, stage: Stage, http: httpx2.AsyncClient, name: str, user_id: UUID) -> None:
        self.stage, self.http, self.name, self.user_id = stage, http, name, user_id

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        sent = {"Origin": self.stage.url} | headers
        return await self.http.post(f"/api/v1{path}", headers=sent, json=body)

    async def open_link(self) -> httpx2.Response:
        return await self.post("/sign-in", {"code": await self.stage.people.create_link(self.user_id)})

    async def sign_in(self, password: str = PASSWORD, name: str | None = None) -> httpx2.Response:
        return await self.post("/sign-in/password", {"name": name or self.name, "password": password})

    async def set_password(self, new: str, present: str | None = None) -> httpx2.Response:
        body = {"new": new} | ({"present": present} if present else {})
        return await self.http.put("/api/v1/me/password", json=body, headers={"Origin": self.stage.url})

    async def read_status(self) -> int:
        return (await self.http.get("/api/v1/me")).status_code


@asynccontextmanager
async def open_browser(stage: Stage, name: str, user_id: UUID) -> AsyncIterator[Person]:
    async with httpx2.AsyncClient(base_url=stage.url, timeout=20) as http:
        yield Person(stage, http, name, user_id)


@pytest.fixture
async def tanaka(stage: Stage, accounts: Accounts) -> AsyncIterator[Person]:
    """An instructor with a password, signed in nowhere."""
    name = f"tanaka-{uuid4().hex[:6]}"
    user_id = await accounts.add(name, "田中 花子", stage.course.short_name, "instructor")
    async with open_browser(stage, name, user_id) as person:
        assert (await person.open_link()).status_code == 200
        assert (await person.set_password(PASSWORD)).status_code == 200
        assert (await person.post("/sign-out")).status_code == 204
        yield person


async def read_audit(stage: Stage, user_id: UUID) -> list[tuple[str, Any]]:
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch("SELECT action, facts FROM audit_log WHERE subject_id = $1 ORDER BY id", user_id)
    return [(row["action"], json.loads(row["facts"])) for row in rows]


# --- passwords --------------------------------------------------------------------------------------------------------


async def test_who_has_a_password_signs_in_and_sees_the_board(stage: Stage, tanaka: Person) -> None:
    answer = await tanaka.sign_in()
    assert answer.status_code == 200, answer.text
    assert answer.json()["user_id"] == str(tanaka.user_id)
    assert [one["id"] for one in answer.json()["courses"]] == [str(stage.course.id)]
    assert (await tanaka.http.get(f"/api/v1/courses/{stage.course.id}/live")).status_code == 200
    me = (await tanaka.http.get("/api/v1/me")).json()
    assert me["display_name"] == "田中 花子"
    assert ("session_started", {"by": "password"}) in await read_audit(stage, tanaka.user_id)


async def test_a_wrong_name_and_a_wrong_password_are_told_alike(stage: Stage, tanaka: Person) -> None:
    wrong = await tanaka.sign_in("wrong horse battery staple")
    unknown = await tanaka.sign_in(name="nobody-of-that-name")
    student = await stage.join("鈴木")
    without = await tanaka.sign_in(name=student["username"])
    answers = [wrong, unknown, without]
    assert {(one.status_code, one.json()["code"]) for one in answers} == {(401, "NB-1120")}
    assert len({one.text for one in answers}) == 1
    assert all("set-cookie" not in one.headers for one in answers)
    assert ("sign_in_failed", {"code": "NB-1120"}) in await read_audit(stage, tanaka.user_id)


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"name": "x"}, {"name": "", "password": "x"}, {"name": "x", "password": ""}),
        *({"name": "x", "password": 1}, {"name": "x", "password": "x" * 2_000}, {"name": "a\x00b", "password": "x"}),
    ],
)
async def test_signing_in_with_bad_input_is_refused_without_a_fault(stage: Stage, body: Any) -> None:
    answer = await stage.http.post("/api/v1/sign-in/password", json=body)
    assert answer.status_code in (401, 422)


async def test_neither_password_nor_its_hash_is_told_or_readable(stage: Stage, tanaka: Person) -> None:
    from nbpulse.migrations.runner import with_login
    from stores import WORKER_PASSWORD

    async with connect(stage.database_url) as owner:
        kept = await owner.fetchval("SELECT hash FROM passwords WHERE user_id = $1", tanaka.user_id)
        assert kept.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        assert PASSWORD not in str(await owner.fetch("SELECT * FROM users u LEFT JOIN passwords p ON p.user_id = u.id"))
    for login in ("nbpulse_api", "nbpulse_worker"):
        async with connect(with_login(stage.database_url, login, WORKER_PASSWORD)) as other, other.transaction():
            await other.execute(f"SET LOCAL app.current_user_id = '{tanaka.user_id}'")
            with pytest.raises(Exception, match="permission denied"):
                await other.fetch("SELECT hash FROM passwords")


async def test_a_hash_of_old_parameters_is_made_anew_at_the_next_sign_in(stage: Stage, tanaka: Person) -> None:
    old = await Hasher(memory_kib=8_192, passes=1).hash(PASSWORD)
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE passwords SET hash = $2 WHERE user_id = $1", tanaka.user_id, old)
        assert (await tanaka.sign_in()).status_code == 200
        kept = await owner.fetchval("SELECT hash FROM passwords WHERE user_id = $1", tanaka.user_id)
    assert "m=19456,t=2" in kept
    assert (await tanaka.sign_in()).status_code == 200


async def test_the_present_password_is_asked_for_unless_a_link_was_just_opened(stage: Stage, tanaka: Person) -> None:
    assert (await tanaka.sign_in()).status_code == 200
    for present in (None, "wrong horse battery staple"):
        refused = await tanaka.set_password(OTHER, present)
        assert (refused.status_code, refused.json()["code"]) == (403, "NB-1123")
    assert (await tanaka.set_password(OTHER, PASSWORD)).status_code == 200
    assert (await tanaka.sign_in()).json()["code"] == "NB-1120"
    assert (await tanaka.sign_in(OTHER)).status_code == 200
    await tanaka.open_link()  # forgotten
    assert (await tanaka.http.get("/api/v1/me/account")).json()["is_free"] is True
    assert (await tanaka.set_password(PASSWORD)).status_code == 200
    # The link has done its work: from now on the present one is asked for again.
    assert (await tanaka.set_password(OTHER)).json()["code"] == "NB-1123"


async def test_a_link_opened_a_while_ago_sets_no_password(stage: Stage, tanaka: Person) -> None:
    await tanaka.open_link()
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE tokens SET created_at = now() - interval '16 minutes' WHERE kind = 'session'")
    assert (await tanaka.set_password(OTHER)).json()["code"] == "NB-1123"
    assert (await tanaka.http.get("/api/v1/me/account")).json()["is_free"] is False


async def test_a_bad_new_password_changes_nothing_and_says_why(tanaka: Person) -> None:
    await tanaka.sign_in()
    for new, code in (("short", "NB-1121"), (tanaka.name + "12345678", "NB-1122"), ("1" * 20, "NB-1122")):
        refused = await tanaka.set_password(new, PASSWORD)
        assert (refused.status_code, refused.json()["code"]) == (422, code)
    assert (await tanaka.sign_in()).status_code == 200


async def test_a_token_for_scripts_cannot_take_the_account(stage: Stage, tanaka: Person) -> None:
    token = await stage.people.create_staff_token(tanaka.user_id)
    headers = {"Authorization": f"Bearer {token}", "Origin": stage.url}
    for method, path, body in (
        ("PUT", "/me/password", {"new": OTHER, "present": PASSWORD}),
        ("POST", "/sign-out/everywhere", None),
        ("GET", "/me/account", None),
    ):
        answer = await tanaka.http.request(method, f"/api/v1{path}", json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "NB-1124")


# --- sessions ---------------------------------------------------------------------------------------------------------


async def test_each_sign_in_is_a_new_session_and_ends_the_one_this_browser_had(tanaka: Person) -> None:
    await tanaka.sign_in()
    first = tanaka.http.cookies["nbpulse_session"]
    await tanaka.sign_in()
    assert tanaka.http.cookies["nbpulse_session"] != first
    stale = {"Cookie": f"nbpulse_session={first}"}
    async with httpx2.AsyncClient(base_url=tanaka.stage.url) as thief:
        assert (await thief.get("/api/v1/me", headers=stale)).status_code == 401


async def test_a_planted_cookie_is_never_taken_over(tanaka: Person) -> None:
    planted = f"nbp_session_{uuid4().hex}_{'A' * 43}"
    tanaka.http.cookies.set("nbpulse_session", planted, domain="127.0.0.1", path="/")
    answer = await tanaka.sign_in()
    assert answer.status_code == 200
    assert planted not in answer.headers["set-cookie"]


async def test_a_password_change_ends_every_other_session_and_not_this_one(stage: Stage, tanaka: Person) -> None:
    async with open_browser(stage, tanaka.name, tanaka.user_id) as elsewhere:
        await tanaka.sign_in()
        await elsewhere.sign_in()
        before = tanaka.http.cookies["nbpulse_session"]
        assert (await tanaka.set_password(OTHER, PASSWORD)).status_code == 200
        assert tanaka.http.cookies["nbpulse_session"] != before
        assert (await tanaka.read_status(), await elsewhere.read_status()) == (200, 401)
    assert ("password_changed", {}) in await read_audit(stage, tanaka.user_id)


async def test_signing_out_everywhere_ends_all_of_mine_and_nobody_elses(stage: Stage, tanaka: Person) -> None:
    async with (
        open_browser(stage, tanaka.name, tanaka.user_id) as elsewhere,
        open_browser(stage, "teacher", stage.teacher_id) as teacher,
    ):
        await tanaka.sign_in()
        await elsewhere.sign_in()
        await teacher.open_link()
        answer = await tanaka.post("/sign-out/everywhere")
        assert (answer.status_code, answer.json()) == (200, {"sessions": 2})
        assert "max-age=0" in answer.headers["set-cookie"].lower()
        statuses = [await one.read_status() for one in (tanaka, elsewhere, teacher)]
        assert statuses == [401, 401, 200]
        script = {"Authorization": f"Bearer {stage.teacher_token}"}
        assert (await stage.http.get("/api/v1/me", headers=script)).status_code == 200
    assert ("sessions_ended", {}) in await read_audit(stage, tanaka.user_id)


async def test_a_session_ends_after_12_idle_hours_and_after_7_days_in_any_case(
    stage: Stage, tanaka: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbpulse.api.access._REFRESH_AFTER_S", 0.0)
    monkeypatch.setattr("nbpulse.api.access.YES_LIFE_S", 0.0)
    async with connect(stage.database_url) as owner:

        async def age(column: str, by: timedelta) -> None:
            await owner.execute(
                f"UPDATE tokens SET {column} = now() - $2::interval WHERE user_id = $1 AND kind = 'session'"
                " AND revoked_at IS NULL",
                *(tanaka.user_id, by),
            )

        await tanaka.sign_in()
        await age("last_used_at", timedelta(hours=11, minutes=59))
        assert await tanaka.read_status() == 200
        used_at = await owner.fetchval(
            "SELECT now() - last_used_at < interval '1 minute' FROM tokens WHERE user_id = $1 AND kind = 'session'"
            " AND revoked_at IS NULL",
            tanaka.user_id,
        )
        assert used_at, "its use was not noted"
        await age("last_used_at", timedelta(hours=12, minutes=1))
        assert await tanaka.read_status() == 401
        await tanaka.sign_in()
        life = await owner.fetchval(
            "SELECT max(expires_at) - now() FROM tokens WHERE user_id = $1 AND kind = 'session'", tanaka.user_id
        )
        assert timedelta(days=6, hours=23) < life <= timedelta(days=7)
        await age("expires_at", timedelta(seconds=1))
        assert await tanaka.read_status() == 401


# --- other sites ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/sign-out", None),
        ("POST", "/sign-out/everywhere", None),
        ("PUT", "/me/password", {"new": OTHER, "present": PASSWORD}),
        ("POST", "/courses/{course}/tickets", None),
        ("POST", "/courses/{course}/meetings", {}),
        ("PUT", "/courses/{course}/collection", {}),
        ("DELETE", "/courses/{course}", None),
    ],
)
async def test_another_site_can_do_nothing_with_the_session(
    stage: Stage, tanaka: Person, method: str, path: str, body: Any
) -> None:
    await tanaka.sign_in()
    url = f"/api/v1{path.format(course=stage.course.id)}"
    own = stage.url
    for headers in (
        {},
        {"Origin": "null"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": own.replace("http:", "https:")},
        {"Origin": own + "0"},
        {"Origin": own.replace("127.0.0.1", "127.0.0.1.elsewhere.example")},
        {"Origin": f"{own}, https://elsewhere.example"},
        {"Origin": own, "Sec-Fetch-Site": "cross-site"},
        {"Origin": own, "Sec-Fetch-Site": "same-site"},
        {"Referer": own + "/"},
    ):
        answer = await tanaka.http.request(method, url, json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "NB-1107"), headers
    assert await tanaka.read_status() == 200


async def test_another_site_cannot_sign_somebody_in_as_itself(stage: Stage, tanaka: Person) -> None:
    for path, body in (
        ("/sign-in/password", {"name": tanaka.name, "password": PASSWORD}),
        ("/sign-in", {"code": await stage.people.create_link(tanaka.user_id)}),
    ):
        answer = await tanaka.post(path, body, Origin="https://elsewhere.example")
        assert (answer.status_code, answer.json()["code"]) == (403, "NB-1107")
        # What a form of another site can send without asking first is no JSON.
        form = await tanaka.http.post(
            f"/api/v1{path}", content=json.dumps(body), headers={"Content-Type": "text/plain", "Origin": stage.url}
        )
        assert form.status_code == 415


async def test_over_https_the_cookie_belongs_to_this_host_alone(stage_database: str, embedded_valkey: str) -> None:
    origin = "https://board.example"
    async with open_stage(stage_database, embedded_valkey, public_url=origin) as stage:
        code = await stage.people.create_link(stage.teacher_id)
        answer = await stage.http.post("/api/v1/sign-in", json={"code": code}, headers={"Origin": origin})
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-nbpulse_session=nbp_session_")
        parts = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "secure", "samesite=strict", "path=/"} <= parts
        assert not [part for part in parts if part.startswith("domain")]
        token = cookie.partition("=")[2].partition(";")[0]
        for name, status in (("__Host-nbpulse_session", 200), ("nbpulse_session", 401)):
            async with httpx2.AsyncClient(base_url=stage.url) as http:
                assert (await http.get("/api/v1/me", headers={"Cookie": f"{name}={token}"})).status_code == status


# --- the operator -----------------------------------------------------------------------------------------------------


async def test_a_closed_account_is_signed_in_nowhere_by_no_way_until_it_is_opened_again(
    stage: Stage, accounts: Accounts, tanaka: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbpulse.api.access._REFRESH_AFTER_S", 0.0)
    monkeypatch.setattr("nbpulse.api.access.YES_LIFE_S", 0.0)
    await tanaka.sign_in()
    script = await stage.people.create_staff_token(tanaka.user_id)
    code = await stage.people.create_link(tanaka.user_id)
    assert await accounts.close(tanaka.user_id) == 3
    assert await tanaka.read_status() == 401
    assert (await stage.http.get("/api/v1/me", headers={"Authorization": f"Bearer {script}"})).status_code == 401
    assert (await tanaka.post("/sign-in", {"code": code})).json()["code"] == "NB-1104"
    refused = await tanaka.sign_in()
    assert (refused.status_code, refused.json()["code"]) == (403, "NB-1125")
    with pytest.raises(AccessDenied, match="NB-1125"):
        await stage.people.create_link(tanaka.user_id)
    await accounts.reopen(tanaka.user_id)
    assert (await tanaka.sign_in()).status_code == 200
    done = [action for action, _ in await read_audit(stage, tanaka.user_id)]
    assert done.index("account_closed") < done.index("account_reopened")


async def test_closing_an_account_wins_against_a_sign_in_at_the_same_moment(
    stage: Stage, accounts: Accounts, tanaka: Person
) -> None:
    """Whichever is first, no token is left that works."""
    for _ in range(5):
        codes = [await stage.people.create_link(tanaka.user_id) for _ in range(4)]
        await asyncio.gather(
            *(stage.http.post("/api/v1/sign-in", json={"code": code}) for code in codes), accounts.close(tanaka.user_id)
        )
        async with connect(stage.database_url) as owner:
            left = await owner.fetchval(
                "SELECT count(*) FROM tokens WHERE user_id = $1 AND revoked_at IS NULL AND kind <> 'link'",
                tanaka.user_id,
            )
        assert left == 0
        await accounts.reopen(tanaka.user_id)


async def test_an_account_has_a_name_that_nobody_has_and_a_course_that_is_there(
    stage: Stage, accounts: Accounts
) -> None:
    name = f"sato-{uuid4().hex[:6]}"
    user_id = await accounts.add(f"  {name} ", None, None, "assistant")
    assert await accounts.find(name) == await accounts.find(str(user_id)) == user_id
    for wrong, code in ((name, "NB-1131"), (" ", "NB-1132"), ("x" * 101, "NB-1132")):
        with pytest.raises(InvalidInput, match=code):
            await accounts.add(wrong, None, None, "assistant")
    with pytest.raises(NotFound, match="NB-1352"):
        await accounts.add(f"{name}-2", None, "no-such-course", "assistant")
    assert await accounts.find(f"{name}-2") is None, "nothing of it is left"
    (listed,) = [one for one in await accounts.list() if one.id == user_id]
    assert (listed.username, listed.display_name, listed.has_password, listed.courses) == (name, name, False, [])


async def test_the_command_adds_lists_and_closes_an_account_and_its_link_signs_in(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"NBPULSE_DATABASE_URL": stage.database_url, "NBPULSE_REDIS_URL": stage.redis_url}
    environment |= {
        "NBPULSE_ENCRYPTION_KEYS": KEY.decode(),
        "NBPULSE_DATA_DIR": str(tmp_path),
        "NBPULSE_LANGUAGE": "en",
    }
    for variable, value in (environment | {"NBPULSE_PUBLIC_URL": stage.url}).items():
        monkeypatch.setenv(variable, value)

    async def run(*arguments: str) -> str:
        done = await asyncio.to_thread(CliRunner().invoke, cli.app, ["user", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    name = f"mori-{uuid4().hex[:6]}"
    link = (await run("add", name, "--display-name", "森 一郎", "--course", stage.course.short_name)).strip()
    assert link.startswith(f"{stage.url}/#code=nbp_link_")
    code = link.partition("#code=")[2].partition("&")[0]
    assert (await stage.http.post("/api/v1/sign-in", json={"code": code})).status_code == 200
    (listed,) = [one for one in json.loads(await run("list", "--json")) if one["username"] == name]
    assert (listed["display_name"], listed["courses"]) == ("森 一郎", [f"instructor {stage.course.short_name}"])
    assert name in await run("list")
    await run("disable", name)
    with pytest.raises(AccessDenied, match="NB-1125"):
        await run("link", name)
    await run("enable", name)
    assert "/#code=nbp_link_" in json.loads(await run("link", name, "--json"))["link"]
    with pytest.raises(NotFound, match="NB-3023"):
        await run("link", "nobody-of-that-name")


async def test_boards_close_when_their_viewer_signs_out_everywhere(
    stage: Stage, tanaka: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbpulse.api.sockets.PING_S", 0.2)
    monkeypatch.setattr("nbpulse.api.sockets.RECHECK_S", 0.2)
    await tanaka.sign_in()
    path = f"/courses/{stage.course.id}"
    ticket = (await tanaka.post(f"{path}/tickets")).json()["ticket"]
    async with open_socket(f"{stage.url.replace('http', 'ws')}/api/v1{path}/ws") as socket:
        await socket.send(json.dumps({"t": "hello", "ticket": ticket}))
        assert json.loads(await socket.recv())["t"] == "hello"
        await tanaka.post("/sign-out/everywhere")
        async with asyncio.timeout(10):
            await socket.wait_closed()
    assert socket.close_code == 4401
