"""A course's history by API: every figure is that of the events posted, worked out the long way."""

import csv
import io
import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from stage import NOBODY, Stage, make_run
from stores import connect

HISTORY = ("sessions", "progress", "failing-cells", "common-errors")


async def ask(stage: Stage, path: str, **query: Any) -> dict[str, Any]:
    answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/{path}", params=query, headers=stage.staff)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def teach(stage: Stage, students: int = 4) -> list[dict[str, Any]]:
    """A small class: student n fails n times on cell 2, then passes it; all run cells 0 and 1."""
    joined = [await stage.join(f"student {number}") for number in range(students)]
    for number, one in enumerate(joined):
        session = str(uuid4())
        runs = [make_run(cell) for cell in (0, 1)] + [make_run(2, "error") for _ in range(number)] + [make_run(2)]
        for sequence, run in enumerate(runs):
            run |= {"session_id": session, "sequence": sequence}
        await stage.post(one["token"], runs)
    await stage.work()
    return joined


async def test_the_class_summary_lists_sessions_newest_first_with_their_counts(stage: Stage) -> None:
    joined = await teach(stage)
    found = await ask(stage, "sessions")
    assert found["next"] is None
    rows = found["sessions"]
    assert {row["user_id"]: (row["cell_executions"], row["error_count"]) for row in rows} == {
        one["user_id"]: (3 + number, number) for number, one in enumerate(joined)
    }
    assert [row["started_at"] for row in rows] == sorted((row["started_at"] for row in rows), reverse=True)
    assert {row["notebook_path"] for row in rows} == {"week1.ipynb"}
    (alone,) = (await ask(stage, f"students/{joined[2]['user_id']}/sessions"))["sessions"]
    assert alone == next(row for row in rows if row["user_id"] == joined[2]["user_id"])
    assert (await ask(stage, f"students/{uuid4()}/sessions"))["sessions"] == []
    assert (await ask(stage, "sessions", notebook=str(uuid4())))["sessions"] == []
    assert len((await ask(stage, "sessions", notebook=rows[0]["notebook_id"]))["sessions"]) == 4


async def test_pages_hold_every_session_once_also_when_new_ones_begin_meanwhile(stage: Stage) -> None:
    await teach(stage, 5)
    whole = [row["id"] for row in (await ask(stage, "sessions"))["sessions"]]
    paged, cursor = [], None
    while True:
        page = await ask(stage, "sessions", limit=2, **({"cursor": cursor} if cursor else {}))
        paged += [row["id"] for row in page["sessions"]]
        cursor = page["next"]
        if cursor is None:
            break
        await teach(stage, 1)
    assert paged == whole


@pytest.mark.parametrize("path", ["progress", "failing-cells", "common-errors", "slow-cells", "recovery-times"])
async def test_pages_of_figures_are_the_whole_in_its_order(stage: Stage, path: str) -> None:
    joined = await teach(stage, 4)
    data = {"status": "error", "error_name": "KeyError", "error_message": "'x'"}
    await stage.post(joined[0]["token"], [make_run(1, "error", data=data), make_run(1)])
    await stage.work()
    name = path.replace("-", "_")
    whole = (await ask(stage, path))[name]
    assert len(whole) >= 2
    paged, query = [], "limit=1"
    while query:
        url = f"/api/v1/courses/{stage.course.id}/{path}?{query}"
        answer = await stage.http.get(url, headers=stage.staff)
        (row,) = answer.json()[name]
        paged.append(row)
        link = re.fullmatch(r'<\?(.+)>; rel="next"', answer.headers.get("link", ""))
        assert (link is not None) == (answer.json()["next"] is not None)
        as_csv = await stage.http.get(f"{url}&format=csv", headers=stage.staff)
        assert ("link" in as_csv.headers) == (link is not None)
        query = link[1] if link else ""
    assert paged == whole
    for nonsense in ("nonsense", "LTE", "MA"):  # no number, -1, 0
        refused = await stage.http.get(
            f"/api/v1/courses/{stage.course.id}/{path}?cursor={nonsense}", headers=stage.staff
        )
        assert (refused.status_code, refused.json()["code"]) == (422, "NB-1205")


async def test_progress_failing_cells_and_common_errors_are_those_of_the_runs(stage: Stage) -> None:
    joined = await teach(stage)
    progress = (await ask(stage, "progress"))["progress"]
    assert {(row["user_id"], row["completed_cells"], row["total_cells"]) for row in progress} == {
        (one["user_id"], 3, 3) for one in joined
    }
    assert {row["progress_percentage"] for row in progress} == {100.0}
    (cell,) = (await ask(stage, "failing-cells"))["failing_cells"]
    assert (cell["cell_id"], cell["attempts"], cell["errors"]) == ("cell-2", 4 + 6, 6)
    assert (cell["students"], cell["failing_students"], cell["never_passed_students"]) == (4, 3, 0)
    (group,) = (await ask(stage, "common-errors"))["common_errors"]
    assert (group["error_name"], group["errors"], group["students"]) == ("NameError", 6, 3)
    assert "not defined" not in json.dumps(group)


async def test_downloads_hold_the_same_rows_and_no_formulas(stage: Stage) -> None:
    joined = await teach(stage)
    async with connect(stage.database_url) as connection:
        await connection.execute("UPDATE users SET username = $2 WHERE id = $1", joined[0]["user_id"], f"=1+{uuid4()}")
    wanted = (await ask(stage, "sessions"))["sessions"]
    path = f"/api/v1/courses/{stage.course.id}/sessions"
    named = {"identified": 1}
    answer = await stage.http.get(path, params={"format": "csv"} | named, headers=stage.staff)
    assert f'filename="{stage.course.short_name}-sessions-' in answer.headers["content-disposition"]
    assert answer.content.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert [row["id"] for row in rows] == [row["id"] for row in wanted]
    assert Counter(row["username"][:2] for row in rows)["'="] == 1
    bare = await stage.http.get(path, params={"format": "csv", "bom": 0} | named, headers=stage.staff)
    assert bare.content == answer.content.removeprefix(b"\xef\xbb\xbf")
    lines = await stage.http.get(path, params={"format": "ndjson"} | named, headers=stage.staff)
    assert [json.loads(line) for line in lines.content.splitlines()] == wanted


async def test_a_download_names_nobody_unless_it_is_asked_to_and_that_is_noted(stage: Stage) -> None:
    joined = await teach(stage, 4)
    ids = {one["user_id"] for one in joined}

    async def download(path: str, **query: Any) -> tuple[httpx2.Response, list[dict[str, Any]]]:
        url = f"/api/v1/courses/{stage.course.id}/{path}"
        answer = await stage.http.get(url, params={"format": "ndjson"} | query, headers=stage.staff)
        assert answer.status_code == 200, answer.text
        return answer, [json.loads(line) for line in answer.content.splitlines()]

    _, sessions = await download("sessions")
    _, progress = await download("progress")
    assert len(sessions) == 4
    hidden = {row["user_id"] for row in sessions}
    assert len(hidden) == 4
    assert not hidden & ids
    assert {row["user_id"] for row in progress} == hidden, "two downloads can be put together"
    assert all(row["username"] == f"student-{row['user_id'][:8]}" for row in sessions + progress)
    assert not {row["id"] for row in sessions} & {row["id"] for row in (await ask(stage, "sessions"))["sessions"]}
    answer, cells = await download("failing-cells")
    assert cells == [], "figures of 4 students are theirs"
    assert int(answer.headers["nbpulse-suppressed-rows"]) >= 1
    manifest = await stage.http.get(
        f"/api/v1/courses/{stage.course.id}/failing-cells", params={"format": "manifest"}, headers=stage.staff
    )
    assert (manifest.json()["identified"], manifest.json()["suppressed_rows"]) == (False, 1)
    _, named = await download("sessions", identified=1)
    assert {row["user_id"] for row in named} == ids
    async with connect(stage.database_url) as connection:
        rows = await connection.fetch(
            "SELECT facts->>'identified' AS identified FROM audit_log WHERE action = 'exported' AND course_id = $1"
            " AND facts->>'what' = 'sessions' ORDER BY id",
            stage.course.id,
        )
    assert [row["identified"] for row in rows] == [None, "true"]


async def test_a_time_without_an_offset_is_the_courses(stage: Stage) -> None:
    """Tokyo's midnight, where the UTC day is another one, and a month's end."""
    token = (await stage.join())["token"]
    tokyo_day = (datetime.now(UTC) + timedelta(hours=9)).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    tokyo_day = tokyo_day.replace(day=1)  # the month's first midnight there is the month before in UTC
    midnight = (tokyo_day - timedelta(hours=9)).replace(tzinfo=UTC)
    moments = [midnight - timedelta(seconds=1), midnight, midnight + timedelta(hours=23)]
    for moment in moments:
        await stage.post(token, make_run(occurred_at=moment.isoformat(), session_id=str(uuid4())))
    await stage.work()
    day = {"start": tokyo_day.isoformat(), "end": (tokyo_day + timedelta(days=1)).isoformat()}
    rows = (await ask(stage, "sessions", **day))["sessions"]
    assert [datetime.fromisoformat(row["started_at"]) for row in rows] == moments[:0:-1]
    utc = {"start": midnight.isoformat(), "end": (midnight + timedelta(days=1)).isoformat()}
    assert (await ask(stage, "sessions", **utc))["sessions"] == rows


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"start": "2026-11-02", "end": "2026-11-01"}, "NB-1204"),
        ({"start": "2024-01-01", "end": "2026-01-01"}, "NB-1204"),
        ({"start": "0001-01-01T00:00:00"}, "NB-1204"),
        ({"cursor": "nonsense"}, "NB-1205"),
        ({"cursor": "W251bGwsIG51bGxd"}, "NB-1205"),
        ({"limit": "0"}, "NB-1007"),
        ({"format": "xml"}, "NB-1007"),
        ({"start": "yesterday"}, "NB-1007"),
    ],
)
async def test_what_cannot_be_asked_is_said(stage: Stage, query: dict[str, str], code: str) -> None:
    answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/sessions", params=query, headers=stage.staff)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


@pytest.mark.parametrize("path", ["sessions", f"students/{NOBODY}/sessions", "common-errors"])
@pytest.mark.parametrize("end", ["0001-01-01T00:00:00", "9999-12-31T23:59:59", "0001-01-01T00:00:00Z"])
async def test_the_ends_of_all_time_are_no_fault_of_ours(stage: Stage, path: str, end: str) -> None:
    answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/{path}", params={"end": end}, headers=stage.staff)
    assert answer.status_code in (200, 422), answer.text


@pytest.mark.parametrize("path", [*HISTORY, f"students/{NOBODY}/sessions"])
async def test_history_is_for_the_courses_staff_alone(stage: Stage, path: str) -> None:
    student = (await stage.join())["token"]
    for headers, status in (({}, 401), ({"Authorization": f"Bearer {student}"}, 404)):
        answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/{path}", headers=headers)
        assert answer.status_code in (status, 403), answer.text
    other = await stage.http.get(f"/api/v1/courses/{uuid4()}/{path}", headers=stage.staff)
    assert other.status_code == 404
