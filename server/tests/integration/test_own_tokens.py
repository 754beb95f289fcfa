"""One's own tokens: made for a script, seen, used up to their scopes, and ended."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest

from nbpulse.records import own_tokens
from stage import Stage, make_run
from stores import connect


@pytest.fixture(autouse=True)
async def no_other_tokens(stage: Stage) -> None:
    """The teacher is every stage's, and of the tokens that other stages have made for them more would be too many."""
    own = UUID(stage.staff["Authorization"].split("_")[2])
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "UPDATE tokens SET revoked_at = now()"
            " WHERE id <> $1 AND user_id = (SELECT user_id FROM tokens WHERE id = $1)",
            own,
        )


def bear(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "Cache-Control": "no-store"}


async def create(stage: Stage, headers: dict[str, str] | None = None, **fields: Any) -> httpx2.Response:
    body = {"label": "export.py", "scopes": ["course:read"]} | fields
    return await stage.http.post("/api/v1/me/tokens", json=body, headers=headers or stage.staff)


async def list_own(stage: Stage, headers: dict[str, str]) -> list[dict[str, Any]]:
    answer = await stage.http.get("/api/v1/me/tokens", headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


async def test_a_token_for_a_script_is_shown_once_and_its_secret_is_nowhere(stage: Stage) -> None:
    made = (await create(stage, days=7)).json()
    assert made["token"].startswith(f"nbp_personal_{UUID(made['id']).hex}_")
    (row,) = [one for one in await list_own(stage, stage.staff) if one["id"] == made["id"]]
    assert (row["label"], row["scopes"], row["kind"], row["is_this"]) == (
        "export.py",
        ["course:read"],
        "personal",
        False,
    )
    assert row["last_used_at"] is None
    secret = made["token"].split("_", 3)[3]
    assert secret not in (await stage.http.get("/api/v1/me/tokens", headers=stage.staff)).text
    async with connect(stage.database_url) as owner:
        for table in ("tokens", "audit_log"):
            rows = await owner.fetch(f"SELECT t::text AS row FROM {table} t")
            assert rows
            assert not [one for one in rows if secret in one["row"]]
        life = await owner.fetchval("SELECT expires_at - created_at FROM tokens WHERE id = $1", UUID(made["id"]))
    assert 6.9 < life.total_seconds() / 86_400 < 7.1
    assert (await stage.http.get("/api/v1/me", headers=bear(made["token"]))).status_code == 200
    (row,) = [one for one in await list_own(stage, stage.staff) if one["id"] == made["id"]]
    assert row["last_used_at"] is not None


async def test_scopes_mean_something(stage: Stage) -> None:
    reading = bear((await create(stage)).json()["token"])
    writing = bear((await create(stage, scopes=["course:write"])).json()["token"])
    both = bear((await create(stage, scopes=["course:write", "course:read"])).json()["token"])
    board, meetings = (f"/api/v1/courses/{stage.course.id}/{place}" for place in ("live", "meetings"))
    for headers, read_status, write_status in ((reading, 200, 403), (writing, 403, 403), (both, 200, 201)):
        read = await stage.http.get(board, headers=headers)
        write = await stage.http.post(meetings, json={}, headers=headers)
        assert (read.status_code, write.status_code) == (read_status, write_status), write.text
        for refused in (one for one in (read, write) if one.status_code == 403):
            assert refused.json()["code"] in ("NB-1103", "NB-1182")
    refused = await stage.http.post(meetings, json={}, headers=reading | {"Accept-Language": "ja"})
    assert "course:write" in refused.json()["title"]
    delivery = await stage.post(both["Authorization"].partition(" ")[2], make_run())
    assert (delivery.status_code, delivery.json()["code"]) == (403, "NB-1103")


async def test_a_script_makes_no_tokens_and_ends_none(stage: Stage) -> None:
    script = bear((await create(stage, scopes=["course:read", "course:write"])).json()["token"])
    assert (await create(stage, script)).status_code == 403
    assert (await stage.http.get("/api/v1/me/tokens", headers=script)).status_code == 403
    for one in await list_own(stage, stage.staff):
        assert (await stage.http.delete(f"/api/v1/me/tokens/{one['id']}", headers=script)).status_code == 403


async def test_nobody_makes_a_token_that_reaches_further_than_they_do(stage: Stage) -> None:
    student = await stage.join()
    answer = await create(stage, bear(student["token"]))
    assert (answer.status_code, answer.json()["code"]) == (403, "NB-1182")
    other = await stage.courses.ensure_course("Another", f"o{uuid4().hex[:8]}")
    answer = await create(stage, course_id=str(other.id))
    assert (answer.status_code, answer.json()["code"]) == (404, "NB-1202")
    bound = bear(await stage.people.create_staff_token(stage.teacher_id, stage.course.id))
    await stage.courses.ensure_teacher(other.id)
    made = (await create(stage, bound)).json()
    assert made["course_id"] == str(stage.course.id)
    for course, status in ((stage.course.id, 200), (other.id, 404)):
        answer = await stage.http.get(f"/api/v1/courses/{course}/live", headers=bear(made["token"]))
        assert answer.status_code == status


@pytest.mark.parametrize(
    "fields",
    [
        {"scopes": []},
        {"scopes": ["events:write"]},
        {"scopes": ["admin"]},
        {"label": ""},
        {"label": "mine & yours"},
        {"label": "x" * 41},
        {"days": 0},
        {"days": 401},
        {"course_id": "no id"},
    ],
)
async def test_what_a_token_cannot_be_is_refused(stage: Stage, fields: dict[str, Any]) -> None:
    answer = await create(stage, **fields)
    assert (answer.status_code, answer.json()["code"]) == (422, "NB-1007")


async def test_fields_nobody_asked_for_change_nothing(stage: Stage) -> None:
    student = await stage.join()
    made = (await create(stage, user_id=student["user_id"], kind="staff", id=str(uuid4()))).json()
    person = await stage.parts.people.find_person(made["token"])
    assert person is not None
    assert (person.user_id, person.kind) == (stage.teacher_id, "personal")


async def test_one_has_only_so_many(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    have = len(await list_own(stage, stage.staff))
    monkeypatch.setattr(own_tokens, "OWN_TOKENS_MAX", have + 1)
    assert (await create(stage)).status_code == 201
    answer = await create(stage)
    assert (answer.status_code, answer.json()["code"]) == (422, "NB-1183")


async def test_what_one_ends_is_refused_at_once_and_is_in_the_audit_log(stage: Stage) -> None:
    made = (await create(stage)).json()
    script = bear(made["token"])
    assert (await stage.http.get("/api/v1/me", headers=script)).status_code == 200
    assert (await stage.http.delete(f"/api/v1/me/tokens/{made['id']}", headers=stage.staff)).status_code == 204
    assert (await stage.http.get("/api/v1/me", headers=script)).status_code == 401
    again = await stage.http.delete(f"/api/v1/me/tokens/{made['id']}", headers=stage.staff)
    assert (again.status_code, again.json()["code"]) == (404, "NB-1201")
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch(
            "SELECT action, actor_id FROM audit_log WHERE facts->>'token_id' = $1 ORDER BY id", made["id"]
        )
    assert [tuple(row) for row in rows] == [
        ("token_created", stage.teacher_id),
        ("token_revoked", stage.teacher_id),
    ]


async def test_a_student_sees_and_ends_their_own_and_nobody_elses(stage: Stage) -> None:
    first = await stage.join("花子")
    lost = await stage.join("花子", resume_code=first["resume_code"])
    other = await stage.join("次郎")
    own = await list_own(stage, bear(first["token"]))
    assert [(one["kind"], one["is_this"]) for one in own] == [("student", False), ("student", True)]
    (theirs,) = await list_own(stage, bear(other["token"]))
    answer = await stage.http.delete(f"/api/v1/me/tokens/{theirs['id']}", headers=bear(first["token"]))
    assert answer.status_code == 404
    assert (await stage.post(lost["token"], make_run())).status_code == 202
    gone = f"/api/v1/me/tokens/{own[0]['id']}"
    assert (await stage.http.delete(gone, headers=bear(first["token"]))).status_code == 204
    assert (await stage.post(lost["token"], make_run())).status_code == 401
    assert (await stage.post(first["token"], make_run())).status_code == 202


async def test_a_token_that_has_ended_is_refused(stage: Stage) -> None:
    made = (await create(stage)).json()
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE tokens SET expires_at = now() WHERE id = $1", UUID(made["id"]))
    await asyncio.sleep(0.01)
    assert (await stage.http.get("/api/v1/me", headers=bear(made["token"]))).status_code == 401
    assert made["id"] not in [one["id"] for one in await list_own(stage, stage.staff)]


async def test_the_database_itself_lets_nobody_make_a_token_of_the_operators(stage: Stage) -> None:
    insert = "INSERT INTO tokens (user_id, kind, secret_hash) VALUES ($1, $2, 'x')"
    async with stage.parts.people.connect("create_token") as connection:
        await connection.execute(f"SET LOCAL app.current_user_id = '{stage.teacher_id}'")
        await connection.execute(insert, stage.teacher_id, "personal")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(insert, stage.teacher_id, "staff")
        raise_it = pytest.raises(asyncpg.InFailedSQLTransactionError)
        with raise_it:
            await connection.execute("SELECT 1")
