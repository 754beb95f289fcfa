"""A course's map by API: who may, what is refused, two who change it at once, what may be done with its picture."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from rooms import JPEG, WEBP, make_png
from stage import Stage
from stores import connect

RED = {"kind": "team", "name": "red", "x": 12.5, "y": 40}


async def call(stage: Stage, method: str, path: str = "", *, token: str | None = None, **more: Any) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {token or stage.teacher_token}"} | more.pop("headers", {})
    url = f"/api/v1/courses/{stage.course.id}/map{path}"
    return await stage.http.request(method, url, headers=headers, **more)


async def place(stage: Stage, version: int, *places: dict[str, Any]) -> httpx2.Response:
    return await call(stage, "PUT", json={"version": version, "places": list(places)})


async def upload(stage: Stage, version: int, body: bytes, media_type: str = "image/png") -> httpx2.Response:
    headers = {"Content-Type": media_type}
    return await call(stage, "PUT", f"/picture?version={version}", content=body, headers=headers)


async def test_places_and_a_picture_are_kept_and_each_change_is_audited(stage: Stage) -> None:
    empty = {"version": 0, "places": [], "picture": None, "may_change": True}
    assert (await call(stage, "GET")).json() == empty
    assert (await call(stage, "GET", "/picture")).json()["code"] == "NB-1304"
    placed = await place(stage, 0, RED)
    assert (placed.status_code, placed.json()) == (200, empty | {"version": 1, "places": [RED]})
    for version, (body, kind) in enumerate([(make_png(), "png"), (JPEG, "jpeg"), (WEBP, "webp")], 1):
        shown = await upload(stage, version, body, f"image/{kind}")
        assert (shown.status_code, shown.json()["picture"]) == (200, [3, 2])
        picture = await call(stage, "GET", "/picture")
        assert (picture.content, picture.headers["content-type"]) == (body, f"image/{kind}")
        policies = [value for name, value in picture.headers.multi_items() if name == "content-security-policy"]
        assert "sandbox" in policies
        assert any("default-src 'none'" in one for one in policies)
        assert picture.headers["x-content-type-options"] == "nosniff"
    for version in (-1, 2**31, 2**70):
        refused = await call(stage, "DELETE", f"/picture?version={version}")
        assert (refused.status_code, refused.json()["code"]) == (422, "NB-1007")
    last = await call(stage, "DELETE", "/picture?version=4")
    assert last.json() == empty | {"version": 5, "places": [RED]}
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch(
            "SELECT actor_id, facts FROM audit_log WHERE course_id = $1 AND action = 'map_changed' ORDER BY id",
            stage.course.id,
        )
        assert [row["facts"] for row in rows] == ['{"places": 1}', *['{"picture": true}'] * 3, '{"picture": false}']
        assert {row["actor_id"] for row in rows} == {stage.teacher_id}
        assert (
            await owner.fetchval("SELECT updated_by FROM course_maps WHERE course_id = $1", stage.course.id) is not None
        )


async def test_of_two_who_change_one_version_the_second_is_told(stage: Stage) -> None:
    answers = await asyncio.gather(*(place(stage, 0, RED | {"x": 2.5 * number}) for number in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409, 409]
    refused = next(answer for answer in answers if answer.status_code == 409).json()
    assert refused["code"] == "NB-1300"
    assert refused["todo"]
    won = next(answer for answer in answers if answer.status_code == 200).json()
    assert (await call(stage, "GET")).json() == won
    assert (await upload(stage, 0, make_png())).json()["code"] == "NB-1300"
    assert (await place(stage, 7, RED)).json()["code"] == "NB-1300"
    assert (await place(stage, 1)).json()["places"] == []


async def test_no_version_but_the_first_follows_on_nothing(stage: Stage) -> None:
    assert (await place(stage, 3, RED)).json()["code"] == "NB-1300"
    assert (await call(stage, "GET")).json()["version"] == 0


@pytest.mark.parametrize(
    ("body", "media_type", "code", "status"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", "NB-1302", 422),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", "NB-1302", 422),
        (b"<html><script>alert(1)</script>", "image/jpeg", "NB-1302", 422),
        (make_png()[:-4], "image/png", "NB-1302", 422),
        (make_png() + bytes(2_000_000), "image/png", "NB-1301", 413),
        (make_png(6_001, 1), "image/png", "NB-1303", 422),
    ],
)
async def test_what_is_no_picture_is_refused(
    stage: Stage, body: bytes, media_type: str, code: str, status: int
) -> None:
    answer = await upload(stage, 0, body, media_type)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (await call(stage, "GET")).json()["version"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        RED | {"x": 101},
        RED | {"x": 13},
        RED | {"kind": "person"},
        RED | {"name": ""},
        RED | {"name": "a\x00b"},
        RED | {"name": "x" * 41},
        {"kind": "team", "name": "red"},
    ],
)
async def test_places_are_where_and_what_they_can_be(stage: Stage, wrong: dict[str, Any]) -> None:
    answer = await place(stage, 0, wrong)
    assert (answer.status_code, answer.json()["code"]) == (422, "NB-1007")


async def test_nothing_is_on_the_map_twice(stage: Stage) -> None:
    assert (await place(stage, 0, RED, RED | {"x": 50})).status_code == 422
    assert (await place(stage, 0, RED, RED | {"kind": "seat"})).status_code == 200
    assert (await place(stage, 1, *(RED | {"name": str(n)} for n in range(500)))).status_code == 200
    assert (await place(stage, 2, *(RED | {"name": str(n)} for n in range(501)))).status_code == 422


async def test_staff_see_it_instructors_change_it_and_others_do_not_know_of_it(stage: Stage) -> None:
    await upload(stage, 0, make_png())
    student = await stage.join()
    async with connect(stage.database_url) as owner:
        assistant = await owner.fetchval(
            "INSERT INTO users (username) VALUES ($1) RETURNING id", f"a-{uuid4().hex[:8]}"
        )
        await owner.execute(
            "INSERT INTO enrolments (user_id, course_id, role, teams) VALUES ($1, $2, 'assistant', '{blue}')",
            *(assistant, stage.course.id),
        )
    helper = await stage.people.create_staff_token(UUID(str(assistant)))
    shown = await call(stage, "GET", token=helper)
    assert (shown.json()["may_change"], shown.json()["picture"]) == (False, [3, 2])
    assert (await call(stage, "GET", "/picture", token=helper)).status_code == 200
    changes = [("PUT", "", {"json": {"version": 1, "places": []}}), ("DELETE", "/picture?version=1", {})]
    for method, path, more in changes:
        assert (await call(stage, method, path, token=helper, **more)).json()["code"] == "NB-1103"
        assert (await call(stage, method, path, token=student["token"], **more)).json()["code"] == "NB-1103"
    for path in ("", "/picture"):
        assert (await call(stage, "GET", path, token=student["token"])).status_code == 403


async def test_a_map_goes_with_its_course(stage: Stage) -> None:
    await upload(stage, 0, make_png())
    async with connect(stage.database_url) as owner:
        assert await owner.fetchval("SELECT count(*) FROM course_maps WHERE course_id = $1", stage.course.id) == 1
        await owner.execute("DELETE FROM courses WHERE id = $1", stage.course.id)
        assert await owner.fetchval("SELECT count(*) FROM course_maps WHERE course_id = $1", stage.course.id) == 0
