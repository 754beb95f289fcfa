"""Equal questions answered by one computation: whose answer it is, who may have it, and how old it may be."""

import asyncio
import time
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from prometheus_client import REGISTRY

from nbpulse.api import classrooms, queries
from nbpulse.api.access import RULES, Rule
from nbpulse.api.answers import LIFE_S
from nbpulse.api.sharing import SharedRoute
from stage import Stage, make_run
from stores import connect

Headers = dict[str, str]
# What somebody has just changed is read as it stands.


def bear(token: str) -> Headers:
    return {"Authorization": f"Bearer {token}"}


async def ask(stage: Stage, path: str, headers: Headers, course: UUID | None = None) -> httpx2.Response:
    return await stage.http.get(f"/api/v1/courses/{course or stage.course.id}/{path}", headers=headers)


def count_reads(query_type: str) -> float:
    labels = {"database": "postgresql", "query_type": query_type}
    return REGISTRY.get_sample_value("database_query_duration_seconds_count", labels) or 0


async def post_run(stage: Stage, **changes: Any) -> None:
    await stage.post((await stage.join())["token"], make_run(**changes))
    await stage.work()


async def hire(stage: Stage, *course_ids: UUID) -> Headers:
    """A new instructor of these courses."""
    user_id = uuid4()
    async with connect(stage.database_url) as owner:
        await owner.execute("INSERT INTO users (id, username) VALUES ($1, $2)", user_id, user_id.hex)
        for course_id in course_ids:
            await owner.execute(
                "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'instructor')", user_id, course_id
            )
    return bear(await stage.people.create_staff_token(user_id))


async def test_many_readers_of_one_question_cost_one_computation(stage: Stage) -> None:
    await post_run(stage)
    before = count_reads("sessions")
    answers = await asyncio.gather(*(ask(stage, "sessions", bear(stage.teacher_token)) for _ in range(20)))
    assert {one.status_code for one in answers} == {200}
    assert len({one.content for one in answers}) == len({one.headers["etag"] for one in answers}) == 1
    assert count_reads("sessions") == before + 1


@pytest.mark.parametrize("query", ["sessions?limit=2", "sessions?format=csv", "progress", "sessions?bom=0"])
async def test_another_question_has_another_answer(stage: Stage, query: str) -> None:
    await post_run(stage)
    teacher = bear(stage.teacher_token)
    await ask(stage, "sessions", teacher)
    name = query.partition("?")[0]
    before = count_reads(name)
    assert (await ask(stage, query, teacher)).status_code == 200
    assert count_reads(name) == before + 1


async def test_an_answer_is_never_older_than_two_seconds(stage: Stage) -> None:
    teacher = bear(stage.teacher_token)
    first = await ask(stage, "sessions", teacher)
    await post_run(stage)
    stored_at = time.monotonic()
    while (answer := await ask(stage, "sessions", teacher)).content == first.content:
        assert time.monotonic() - stored_at < LIFE_S
        await asyncio.sleep(0.05)
    assert len(answer.json()["sessions"]) == 1


async def test_no_store_gets_an_answer_made_then(stage: Stage) -> None:
    teacher = bear(stage.teacher_token)
    assert (await ask(stage, "sessions", teacher)).json()["sessions"] == []
    await post_run(stage)
    fresh = await ask(stage, "sessions", teacher | {"Cache-Control": "no-store"})
    assert len(fresh.json()["sessions"]) == 1


async def test_a_condition_is_answered_for_the_one_who_made_it(stage: Stage) -> None:
    await post_run(stage)
    teacher = bear(stage.teacher_token)
    window = "sessions?start=2026-01-01T00:00:00Z&end=2027-01-01T00:00:00Z"
    whole = await ask(stage, window, teacher)
    same = await ask(stage, window, teacher | {"If-None-Match": whole.headers["etag"]})
    other = await ask(stage, window, teacher | {"If-None-Match": '"another"'})
    assert [one.status_code for one in (whole, same, other)] == [200, 304, 200]
    assert same.content == b""
    assert other.content == whole.content


async def test_nobody_gets_what_was_made_for_somebody_else(stage: Stage) -> None:
    """Two courses with a teacher each, a student, a stranger: asked at once and one after the other."""
    await post_run(stage)
    teacher, student = bear(stage.teacher_token), bear((await stage.join())["token"])
    other = await stage.courses.ensure_course("Other", f"o{stage.course.id.hex[:8]}")
    other_teacher = await hire(stage, other.id)
    for path in ("sessions", "progress", "failing-cells", "common-errors", "activity"):
        for _ in range(2):
            own, as_student, as_stranger, as_nobody, foreign = await asyncio.gather(
                ask(stage, path, teacher),
                ask(stage, path, student),
                ask(stage, path, other_teacher),
                ask(stage, path, {}),
                ask(stage, path, other_teacher, other.id),
            )
            assert [own.status_code, as_student.status_code, as_stranger.status_code] == [200, 403, 404]
            assert [as_nobody.status_code, foreign.status_code] == [401, 200]
            assert next(iter(foreign.json().values())) == []
    assert len((await ask(stage, "sessions", teacher)).json()["sessions"]) == 1


async def test_two_who_teach_the_same_courses_share_an_answer_a_course_s_token_does_not(stage: Stage) -> None:
    await post_run(stage)
    one, other = await hire(stage, stage.course.id), await hire(stage, stage.course.id)
    bound = bear(await stage.people.create_staff_token(stage.teacher_id, stage.course.id))
    before = count_reads("sessions")
    answers = await asyncio.gather(*(ask(stage, "sessions", who) for who in (one, other)))
    assert [len(answer.json()["sessions"]) for answer in answers] == [1, 1]
    assert count_reads("sessions") == before + 1
    assert len((await ask(stage, "sessions", bound)).json()["sessions"]) == 1
    assert count_reads("sessions") == before + 2


async def test_two_people_get_two_answers_even_to_one_question(stage: Stage) -> None:
    """What each sees of a course depends on whom else they teach: whose name is known to one of them only."""
    other = await stage.courses.ensure_course("Other", f"o{stage.course.id.hex[:8]}")
    one, both = await hire(stage, stage.course.id), await hire(stage, stage.course.id, other.id)
    await post_run(stage)
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "UPDATE enrolments SET course_id = $2 WHERE course_id = $1 AND role = 'student'", stage.course.id, other.id
        )
    for _ in range(2):
        answers = await asyncio.gather(*(ask(stage, "sessions", who) for who in (one, both)))
        names = [[one["username"] for one in answer.json()["sessions"]] for answer in answers]
        assert names[0] == [None]
        assert names[1][0] is not None


def test_every_read_of_a_courses_history_shares_its_answers() -> None:
    routes = [*queries.router.routes, *classrooms.shared.routes]
    shared = {f"GET {route.path}" for route in routes if isinstance(route, SharedRoute)}
    assert len(shared) == len(routes) >= 11
    assert {place for place, rule in RULES.items() if rule is Rule.READER} <= shared <= RULES.keys()
