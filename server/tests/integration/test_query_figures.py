"""A course's history by API, a random class: every figure is what plain Python makes of the events posted."""

import csv
import io
import json
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from pyarrow import parquet

from nbpulse.pipeline import measure
from nbpulse.timeseries.postgres import PostgresTimeSeries
from stage import NOBODY, Stage, make_run

ROUTES = (
    "sessions",
    "progress",
    "failing-cells",
    "common-errors",
    "slow-cells",
    "recovery-times",
    "activity",
    "error-rate",
)
STATUSES = ["ok", "ok", "ok", "error", "error", "aborted", "interrupted"]


async def get(stage: Stage, path: str, headers: dict[str, str] | None = None, **query: Any) -> Any:
    wanted = {**stage.staff, **(headers or {})}
    return await stage.http.get(f"/api/v1/courses/{stage.course.id}/{path}", params=query, headers=wanted)


async def ask(stage: Stage, path: str, **query: Any) -> list[dict[str, Any]]:
    answer = await get(stage, path, **query)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()[path.replace("-", "_")]
    return rows


async def teach(stage: Stage, runs: int = 400) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """5 students, 2 notebooks of 3 cells, `runs` runs over 5 hours, sent in any order; those in the window, and it."""
    chance = random.Random(runs)
    tokens = {(joined := await stage.join(f"student {number}"))["user_id"]: joined["token"] for number in range(5)}
    end = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
    start = end - timedelta(hours=5)
    events = []
    for sequence in range(runs):
        run = make_run(chance.randrange(3), chance.choice(STATUSES))
        # Some fall on the same moment: then their numbers tell which came first. Some lie before the window.
        run["occurred_at"] = (start + timedelta(seconds=60 * chance.randrange(-20, 300))).isoformat()
        run |= {"sequence": sequence, "notebook_path": f"week{chance.randrange(2)}.ipynb"}
        run["data"]["execution_duration_ms"] = None if chance.random() < 0.1 else round(chance.uniform(0.1, 9_000), 3)
        events.append({**run, "user": chance.choice(list(tokens))})
    chance.shuffle(events)
    for user, token in tokens.items():
        mine = [{name: value for name, value in one.items() if name != "user"} for one in events if one["user"] == user]
        assert (await stage.post(token, mine)).status_code == 202
    await stage.work()
    await write_points(stage)
    inside = [one for one in events if start.isoformat() <= one["occurred_at"] < end.isoformat()]
    return inside, {"start": start.isoformat(), "end": end.isoformat()}


async def write_points(stage: Stage) -> None:
    """What the worker does after it has acknowledged."""
    series = PostgresTimeSeries(stage._ledger._pool)
    while debts := await stage._ledger.find_debts(older_than_s=0):
        for debt in debts:
            assert await measure(debt, ledger=stage._ledger, series=series)


def group(events: Iterable[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    groups = defaultdict(list)
    for one in events:
        groups[tuple(one[name] for name in names)].append(one)
    return groups


def find_percentile(values: list[float], share: float) -> float:
    """Interpolated between the two nearest, as PostgreSQL's percentile_cont."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = ordered[int(place)]
    return low + (ordered[min(int(place) + 1, len(ordered) - 1)] - low) * (place % 1)


def key(row: dict[str, Any]) -> tuple[Any, Any]:
    return row["notebook_path"], row["cell_id"]


async def test_slow_cells_are_those_of_the_runs_with_a_duration(stage: Stage) -> None:
    events, window = await teach(stage)
    timed = [
        one for one in events if one["data"]["execution_duration_ms"] is not None and one["data"]["status"] != "aborted"
    ]
    wanted = {}
    for place, runs in group(timed, "notebook_path", "cell_id").items():
        durations = [one["data"]["execution_duration_ms"] for one in runs]
        figures = [statistics.fmean(durations), find_percentile(durations, 0.5), find_percentile(durations, 0.95)]
        wanted[place] = (len(runs), len(group(runs, "user")), pytest.approx([*figures, max(durations)]))
    rows = await ask(stage, "slow-cells", **window)
    found = {
        key(row): (row["executions"], row["students"], [row[f"{name}_ms"] for name in ("avg", "median", "p95", "max")])
        for row in rows
    }
    assert found == wanted
    assert len(found) == 6
    assert [row["p95_ms"] for row in rows] == sorted((row["p95_ms"] for row in rows), reverse=True)


async def test_recovery_is_from_each_error_to_the_same_students_next_ok_on_the_cell(stage: Stage) -> None:
    events, window = await teach(stage)
    spans: dict[Any, list[float]] = defaultdict(list)
    errors: dict[Any, list[str]] = defaultdict(list)
    for (path, cell, user), runs in group(events, "notebook_path", "cell_id", "user").items():
        runs.sort(key=lambda one: (one["occurred_at"], one["sequence"]))
        for number, run in enumerate(runs):
            if run["data"]["status"] != "error":
                continue
            errors[path, cell].append(user)
            following = [one for one in runs[number + 1 :] if one["data"]["status"] == "ok"]
            if following:
                moments = [datetime.fromisoformat(one["occurred_at"]) for one in (run, following[0])]
                spans[path, cell].append((moments[1] - moments[0]).total_seconds() * 1_000)
    rows = await ask(stage, "recovery-times", **window)
    found = {
        key(row): (row["errors"], row["recovered_errors"], row["students"], [row["median_ms"], row["p90_ms"]])
        for row in rows
    }
    assert found == {
        place: (
            len(users),
            len(spans[place]),
            len(set(users)),
            pytest.approx([find_percentile(spans[place], 0.5), find_percentile(spans[place], 0.9)]),
        )
        for place, users in errors.items()
    }
    assert any(0 < row["recovered_errors"] < row["errors"] for row in rows)


async def test_an_error_nobody_got_over_has_no_recovery_time(stage: Stage) -> None:
    token = (await stage.join())["token"]
    await stage.post(token, [make_run(0, "ok"), make_run(0, "error", sequence=2)])
    await stage.work()
    (row,) = await ask(stage, "recovery-times")
    assert (row["errors"], row["recovered_errors"], row["median_ms"], row["p90_ms"]) == (1, 0, None, None)


@pytest.mark.parametrize(("bucket", "minutes"), [("10m", 10), ("1h", 60)])
async def test_activity_and_error_rate_are_those_of_the_runs_per_bucket(
    stage: Stage, bucket: str, minutes: int
) -> None:
    events, window = await teach(stage)
    for one in events:
        seconds = datetime.fromisoformat(one["occurred_at"]).timestamp()
        one["at"] = seconds // (minutes * 60) * minutes * 60
    timed = [one for one in events if one["data"]["execution_duration_ms"] is not None]
    wanted = []
    for (at,), runs in sorted(group(timed, "at").items()):
        durations = [one["data"]["execution_duration_ms"] for one in runs]
        # Over more than an hour: the duration of the nearest rank, to 1 %.
        ranked = [sorted(durations)[percent * (len(runs) - 1) // 100] for percent in (50, 95)]
        percentiles = [pytest.approx(one, rel=0.01) for one in ranked]
        figures = [pytest.approx(statistics.fmean(durations)), *percentiles]
        wanted.append((at, len(group(runs, "user")), len(runs), figures))
    assert [
        (
            datetime.fromisoformat(row["at"]).timestamp(),
            row["students"],
            row["execution_count"],
            [row["avg_duration_ms"], row["p50_duration_ms"], row["p95_duration_ms"]],
        )
        for row in await ask(stage, "activity", bucket=bucket, **window)
    ] == wanted
    rates = {
        place: (len(runs), sum(one["data"]["status"] == "error" for one in runs))
        for place, runs in group(events, "at", "notebook_path").items()
    }
    rows = await ask(stage, "error-rate", bucket=bucket, **window)
    assert {
        (datetime.fromisoformat(row["at"]).timestamp(), row["notebook_path"]): (
            row["total_executions"],
            row["error_count"],
        )
        for row in rows
    } == rates
    assert all(row["error_rate"] == row["error_count"] / row["total_executions"] for row in rows)


async def test_every_form_holds_the_same_rows(stage: Stage) -> None:
    _, window = await teach(stage, 60)
    for path in ROUTES:
        own = ({} if path in ("progress", "failing-cells") else window) | {"identified": 1}
        rows = await ask(stage, path, **own)
        assert rows, path
        texts = await get(stage, path, format="csv", bom=0, **own)
        cells = list(csv.DictReader(io.StringIO(texts.text)))
        assert [list(row) for row in cells] == [list(row) for row in rows], path
        lines = await get(stage, path, format="ndjson", **own)
        assert [json.loads(line) for line in lines.content.splitlines()] == rows, path
        table = parquet.read_table(io.BytesIO((await get(stage, path, format="parquet", **own)).content))
        assert [plain(row) for row in table.to_pylist()] == [plain(row) for row in rows], path
        manifest = (await get(stage, path, format="manifest", **own)).json()
        assert manifest["row_count"] == len(rows), path
        assert [column["name"] for column in manifest["columns"]] == table.column_names == list(rows[0]), path
        assert manifest["time_zone"] == "Asia/Tokyo"


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its times as moments, however they were written."""
    times = {"at", "first_at", "last_at", "started_at", "ended_at", "last_activity"}
    return {
        name: datetime.fromisoformat(value) if name in times and isinstance(value, str) else value
        for name, value in row.items()
    }


async def test_an_empty_download_still_has_its_columns_and_types(stage: Stage) -> None:
    table = parquet.read_table(io.BytesIO((await get(stage, "sessions", format="parquet")).content))
    assert table.num_rows == 0
    kinds = {field.name: str(field.type) for field in table.schema}
    assert (kinds["started_at"], kinds["cell_executions"]) == ("timestamp[us, tz=UTC]", "int64")
    columns = (await get(stage, "sessions", format="manifest")).json()["columns"]
    units = {column["name"]: (column["type"], column["unit"]) for column in columns}
    assert units["total_duration_ms"] == ("integer", "ms")
    assert units["started_at"] == ("time", "UTC")


async def test_without_its_extra_parquet_is_refused_with_what_to_install(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    answer = await get(stage, "sessions", format="parquet")
    assert (answer.status_code, answer.json()["code"]) == (422, "NB-1207")
    assert "nbpulse[parquet]" in answer.json()["todo"]


async def test_a_download_is_named_by_course_and_days_of_the_courses_time_zone(stage: Stage) -> None:
    # Tokyo's whole November: in UTC it begins on 31 October.
    window = {"start": "2025-11-01T00:00:00", "end": "2025-12-01T00:00:00"}
    answer = await get(stage, "sessions", format="csv", **window)
    name = f"{stage.course.short_name}-sessions-2025-11-01-2025-11-30.csv"
    assert answer.headers["content-disposition"].startswith(f'attachment; filename="{name}"')


async def test_an_answer_that_has_not_changed_is_not_sent_twice(stage: Stage) -> None:
    joined, window = (await stage.join())["token"], {"start": "2026-01-01T00:00:00+09:00"}
    first = await get(stage, "sessions", **window)
    tag = {"If-None-Match": first.headers["etag"]}
    again = await get(stage, "sessions", tag, **window)
    assert (again.status_code, again.content) == (304, b"")
    await stage.post(joined, make_run())
    await stage.work()
    assert (await get(stage, "sessions", tag, **window)).status_code == 200


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        (f"students/{NOBODY}/sessions", {"end": "0001-01-01T00:00:00"}, "NB-1204"),
        ("sessions", {"end": "9999-12-31T23:59:59-12:00"}, "NB-1204"),
        ("activity", {"start": "3699-05-01", "end": "3699-05-02"}, "NB-1204"),
        ("error-rate", {"start": "1969-12-31T00:00:00Z", "end": "1970-01-02T00:00:00Z"}, "NB-1204"),
        ("activity", {"bucket": "1m", "start": "2026-01-01", "end": "2026-01-03"}, "NB-1206"),
        ("error-rate", {"bucket": "1h", "start": "2026-01-01", "end": "2026-03-01"}, "NB-1206"),
        ("activity", {"bucket": "7m"}, "NB-1007"),
        ("slow-cells", {"limit": "5001"}, "NB-1007"),
    ],
)
async def test_a_window_that_cannot_be_answered_is_said(
    stage: Stage, path: str, query: dict[str, str], code: str
) -> None:
    answer = await get(stage, path, **query)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


@pytest.mark.parametrize("path", ROUTES)
async def test_students_and_another_courses_teacher_are_refused(stage: Stage, path: str) -> None:
    student = {"Authorization": f"Bearer {(await stage.join())['token']}"}
    answer = await get(stage, path, student)
    assert (answer.status_code, answer.json()["code"]) == (403, "NB-1103")
    other = await stage.courses.ensure_course("Another", f"o{uuid4().hex[:8]}")
    theirs = await stage.http.get(f"/api/v1/courses/{other.id}/{path}", headers=stage.staff)
    assert (theirs.status_code, theirs.json()["code"]) == (404, "NB-1202")
    nobody = await stage.http.get(f"/api/v1/courses/{stage.course.id}/{path}")
    assert (nobody.status_code, nobody.json()["code"]) == (401, "NB-1101")
