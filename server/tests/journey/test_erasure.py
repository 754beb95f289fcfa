"""Erasing a student from everything that runs: canaries in every field, and afterwards no file of any store has one."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx2
import pytest
from redis.asyncio import Redis

from nbpulse.stream import STREAM_KEYS
from servers import make_influx
from torture.systems import System, make_environment
from working import until

WORDS = (
    *("name", "number", "message", "traceback", "source", "output", "tag", "cell", "exercise", "path", "errname"),
    *("help", "wrote", "told", "note", "offer", "spoiled", "unread", "waiting"),
)
CANARY = {word: f"cAnArY{word}qZ7" for word in WORDS}


@contextmanager
def run_influx() -> Iterator[tuple[str, Path]]:
    with make_influx() as server:
        server.start()
        yield f"{server.url}/nbpulse", server.directory


def make_event(**fields: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "event_id": str(uuid4()),
        "event_type": "cell_execution",
        "occurred_at": datetime.now(UTC).isoformat(),
        "sequence": 1,
        "notebook_path": "week1.ipynb",
        "cell_id": "shared",
        "cell_index": 0,
        "cell_type": "code",
        "data": {"status": "ok", "execution_duration_ms": 1.5, "execution_count": 1},
    } | fields


class Class:
    """A running nbpulse, its teacher, and students who send what they like."""

    def __init__(self, system: System, http: httpx2.AsyncClient) -> None:
        self.system, self._http = system, http
        self.course = f"/api/v1/courses/{system.facts['course_id']}"

    async def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> httpx2.Response:
        bearer = token or self.system.facts["teacher_token"]
        return await self._http.request(method, path, json=body, headers={"Authorization": f"Bearer {bearer}"})

    async def join(self, name: str, number: str) -> dict[str, Any]:
        code = self.system.facts["join_code"]
        wanted = {"join_code": code, "display_name": name, "student_number": number, "notice_version": 2}
        answer = await self._http.post("/api/v1/join", json=wanted)
        assert answer.status_code == 201, answer.text
        joined: dict[str, Any] = answer.json()
        return joined

    async def fetch(self, statement: str) -> list[Any]:
        connection = await asyncpg.connect(self.system.facts["database_url"])
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()

    async def read_unaccounted(self) -> float:
        """As the worker serves it, once it has found a quiet moment."""
        async with httpx2.AsyncClient() as http:
            figures = (await http.get(self.system.facts["metrics_urls"][-1])).text
        found = re.search(r"^nbpulse_unaccounted_events (\S+)", figures, re.MULTILINE)
        assert found is not None
        return float(found[1])

    async def command(self, *arguments: str, code: int = 0, **settings: str) -> tuple[str, str]:
        """The operator's `nbpulse`: what it answered, and what it said."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nbpulse", *arguments, "--data", str(self.system.data_dir)),
            env=make_environment({"NBPULSE_LANGUAGE": "en"} | settings),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, said = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode == code, said.decode()
        return out.decode(), said.decode()


async def plant(of: Class, student: dict[str, Any], mate: dict[str, Any]) -> None:
    """Canaries of one student wherever a text of theirs, or about them, can stand; a classmate beside them."""
    token = student["token"]
    failed = {
        "status": "error",
        "has_error": True,
        "error_name": CANARY["errname"],
        "error_message": f"no {CANARY['message']}",
        "traceback": CANARY["traceback"],
        "execution_duration_ms": 2.0,
    }
    events = [
        make_event(data=failed, notebook_path=f"{CANARY['path']}.ipynb", cell_id=CANARY["cell"]),
        make_event(
            exercise_id=CANARY["exercise"],
            data={
                "status": "ok",
                "execution_duration_ms": 3.0,
                "source": CANARY["source"],
                "output": CANARY["output"],
                "tags": [CANARY["tag"]],
            },
        ),
        make_event(event_type="help_request", notebook_path=None, data={"message": CANARY["help"]}),
    ]
    assert (await of.ask("POST", "/api/v1/events", events, token)).status_code == 202
    assert (await of.ask("POST", "/api/v1/events", [make_event()], mate["token"])).status_code == 202
    written = await of.ask("POST", "/api/v1/me/messages", {"id": str(uuid4()), "text": CANARY["wrote"]}, token)
    assert written.status_code < 300, written.text
    user_id = student["user_id"]
    note = {"id": str(uuid4()), "user_id": user_id, "text": CANARY["note"], "cell": CANARY["cell"]}
    noted = await of.ask("POST", f"{of.course}/alerts/{uuid4()}/note", note)
    assert noted.status_code < 300, noted.text
    told = {"id": str(uuid4()), "to": {"user_ids": [user_id]}, "text": CANARY["told"]}
    sent = await of.ask("POST", f"{of.course}/messages", told)
    assert sent.status_code < 300, sent.text
    # What cannot be stored, and what cannot even be read, goes to the dead letters.
    async with Redis.from_url(of.system.read_running()["redis_url"]) as redis:
        spoiled = {"user_id": user_id, "event_id": CANARY["spoiled"]}
        await redis.xadd(STREAM_KEYS["events"][0], {"e": json.dumps(spoiled)})
        await redis.xadd(STREAM_KEYS["events"][1], {"x": f"{user_id} {CANARY['unread']}"})

    async def is_there() -> bool:
        (row,) = await of.fetch(
            "SELECT (SELECT count(*) FROM events) AS events, (SELECT count(*) FROM dead_letters) AS letters,"
            " (SELECT count(*) FROM series_debt) AS debts, (SELECT count(*) FROM series_marks) AS marks"
        )
        return tuple(row) == (4, 2, 0, 0)

    await until(is_there, 60)
    assert (await of.ask("GET", f"{of.course}/live")).status_code == 200
    assert (await of.ask("GET", "/api/v1/me/session", token=token)).status_code == 200


def find_canaries(*folders: Path) -> dict[str, str]:
    """Canary -> the first file that holds it."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 100
    found: dict[str, str] = {}
    for path in files:
        with suppress(FileNotFoundError):  # a store at work has removed it
            content = path.read_bytes()
            found |= {canary: str(path) for canary in CANARY.values() if canary.encode() in content}
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("series", ["postgresql", "influxdb"])
async def test_no_file_holds_a_word_of_a_student_who_was_erased(data_dir: Path, series: str) -> None:
    with run_influx() if series == "influxdb" else nullcontext(("", data_dir)) as (influx_url, influx_dir):
        settings = {"NBPULSE_INFLUX_URL": influx_url, "NBPULSE_INFLUX_ERROR_TEXT": "full"} if influx_url else {}
        async with System(data_dir / "data", worker_count=1, settings=settings) as system:
            await check_erasure(system, settings, influx_dir if influx_url else None)


async def check_erasure(system: System, settings: dict[str, str], influx_dir: Path | None) -> None:
    folders = [system.data_dir, *([influx_dir] if influx_dir else [])]
    async with httpx2.AsyncClient(base_url=system.url, timeout=10) as http:
        of = Class(system, http)
        await of.command("collection", "class", "--level", "output")
        student = await of.join(CANARY["name"], CANARY["number"])
        mate = await of.join("Mate", "m-1")
        await plant(of, student, mate)
        assert set(find_canaries(*folders)) >= {CANARY[one] for one in ("number", "cell", "path", "errname", "help")}
        if influx_dir:
            assert await count_points(settings["NBPULSE_INFLUX_URL"], student["user_id"]) > 0

        _, said = await of.command("erase-user", CANARY["number"], code=1, **settings)
        assert "NB-3090" in said
        assert re.search(r"3 +events\n", said), said
        assert len(await of.fetch("SELECT FROM events")) == 4, "nothing goes without a word"
        _, said = await of.command("erase-user", CANARY["number"], "--yes", CANARY["number"], **settings)
        assert "Erased." in said

        left = await of.fetch("SELECT user_id FROM events")
        assert [str(row["user_id"]) for row in left] == [mate["user_id"]]
        assert [row["path"] for row in await of.fetch("SELECT path FROM notebooks")] == ["week1.ipynb"]
        if influx_dir:
            assert await count_points(settings["NBPULSE_INFLUX_URL"], student["user_id"]) == 0
            assert await count_points(settings["NBPULSE_INFLUX_URL"], mate["user_id"]) > 0

        # A token that was good a moment ago may be taken for good by an API process for half a minute more; what it
        # lets in is dropped.
        late = [make_event(cell_id="late")]

        async def is_refused() -> bool:
            answer = await of.ask("POST", "/api/v1/events", late, student["token"])
            return answer.status_code == 403 and answer.json()["code"] == "NB-1345"

        await until(is_refused, 60)
        board = (await of.ask("GET", f"{of.course}/live")).json()
        assert [one["id"] for one in board["students"]] == [mate["user_id"]]

        async def is_accounted() -> bool:
            return await of.read_unaccounted() == 0

        await until(is_accounted, 30)
        assert await of.fetch("SELECT FROM events WHERE cell_id = 'late'") == []
        assert await of.fetch("SELECT FROM tombstones WHERE unfinished IS NOT NULL") == []
        await of.command("compact", **settings)

        assert find_canaries(system.data_dir) == {}
        if influx_dir:
            # InfluxDB keeps the names of series in its files, also of those that are dropped: only a new database has
            # none of them, and the ledger has what others did.
            url = settings["NBPULSE_INFLUX_URL"]
            await drop_database(url)
            now = datetime.now(UTC)
            window = [(now + timedelta(hours=hours)).isoformat(timespec="seconds") for hours in (-2, 1)]
            await of.command(
                "rebuild-timeseries", "--from", window[0][:19], "--to", window[1][:19], TZ="UTC", **settings
            )
            assert find_canaries(*folders) == {}
            assert await count_points(url, mate["user_id"]) > 0
        assert (await of.ask("POST", "/api/v1/events", [make_event()], mate["token"])).status_code == 202
        assert len(await of.fetch("SELECT FROM audit_log WHERE action = 'user_erased'")) == 1


async def drop_database(url: str) -> None:
    async with httpx2.AsyncClient() as http:
        base, _, database = url.rpartition("/")
        answer = await http.post(f"{base}/query", data={"q": f"DROP DATABASE {database}"})
        assert answer.status_code == 200, answer.text


async def count_points(url: str, user_id: str) -> int:
    async with httpx2.AsyncClient() as http:
        base, _, database = url.rpartition("/")
        query = f"SELECT count(/.*/) FROM /.*/ WHERE user_id = '{user_id}'"
        answer = (await http.get(f"{base}/query", params={"db": database, "q": query})).json()
    return sum(len(one["values"]) for one in answer["results"][0].get("series", ()))
