"""Two courses and everybody who might ask: one caller, with a real token, for each column of docs/authorization.md."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed

from nbpulse.records.courses import Course
from nbpulse.records.tokens import add_token
from played_hub import PlayedHub
from stage import Stage, open_stage
from stores import connect

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "authorization.md"
REFUSED = {"NB-1101", "NB-1161", "NB-1103", "NB-1107", "NB-1110", "NB-1111", "NB-1112", "NB-1182", "NB-1202"} | {
    "NB-1210"
}
"""What a rule says no with; other codes come from what a route then does."""


def read_table() -> dict[str, dict[str, str]]:
    """Route -> caller -> cell."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    head = next(line for line in lines if line.startswith("| route |"))
    callers = [cell.strip() for cell in head.split("|")][3:-1]
    rows = [[cell.strip() for cell in line.split("|")][1:-1] for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): dict(zip(callers, row[2:], strict=True)) for row in rows}


@dataclass
class Callers:
    """The stage's course, another one, and how each caller proves who they are (headers)."""

    stage: Stage
    other: Course
    headers: dict[str, dict[str, str]]
    ids: dict[str, UUID]
    """Of those whom the database knows before they ask."""
    hub: PlayedHub

    def fill(self, path: str, course_id: UUID | None = None) -> str:
        """A route's path with the course, and what is surely not there for everything else."""
        filled = path.replace("{path:path}", "js/main.js").replace(
            "{course_id}", str(course_id or self.stage.course.id)
        )
        filled = filled.replace("{action}", "claim")
        return re.sub(r"\{\w+\}", str(UUID(int=7)), filled)

    async def ask(self, caller: str, method: str, path: str, **more: Any) -> httpx2.Response:
        """One request of the caller's, as a browser or a script of theirs would send it."""
        headers = {"Content-Type": "application/json", "Origin": self.stage.url} | self.headers[caller]
        more = {"content": b"{}"} | more if method not in ("GET", "HEAD") else more
        return await self.stage.http.request(method, path, headers=headers | more.pop("headers", {}), **more)

    async def watch(self, caller: str) -> str:
        """What becomes of the caller's board: "yes", or the code it is closed with."""
        token = self.headers[caller].get("Authorization", "").partition(" ")[2]
        ticket = None
        if "Cookie" in self.headers[caller]:
            answer = await self.ask(caller, "POST", f"/api/v1/courses/{self.stage.course.id}/tickets")
            ticket = answer.json().get("ticket")
        url = f"{self.stage.url.replace('http', 'ws')}/api/v1/courses/{self.stage.course.id}/ws"
        async with open_socket(url) as socket:
            await socket.send(json.dumps({"t": "hello", "token": token or None, "ticket": ticket}))
            try:
                return "yes" if json.loads(await socket.recv())["t"] == "hello" else "?"
            except ConnectionClosed as closed:
                return str(closed.rcvd.code if closed.rcvd else "?")

    async def sign_in(self, user_id: UUID) -> dict[str, str]:
        """A session as the board has it: the cookie's header."""
        code = await self.stage.people.create_link(user_id)
        async with httpx2.AsyncClient(base_url=self.stage.url) as browser:
            answer = await browser.post("/api/v1/sign-in", json={"code": code}, headers={"Origin": self.stage.url})
            assert answer.status_code == 200, answer.text
            return {"Cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items())}


@asynccontextmanager
async def open_callers(database_url: str, redis_url: str, **options: Any) -> AsyncIterator[Callers]:
    """A stage with all of them."""
    hub = PlayedHub()
    try:
        async with open_stage(database_url, redis_url, hub_api_url=hub.api_url, **options) as stage:
            other = await stage.courses.ensure_course("数学 I", f"o{uuid4().hex[:8]}")
            callers = Callers(stage, other, {"nobody": {}}, {}, hub)
            await _add_students(callers)
            await _add_staff(callers)
            short_name = stage.course.short_name
            write, read = (f"custom:nbpulse:{scope}" for scope in ("write", "read"))
            for name, group, scope in (("student", "course", write), ("instructor", "instructor", read)):
                token = hub.give(
                    f"hub-{name}-{uuid4().hex[:6]}",
                    f"{group}-{short_name}",
                    scopes=("access:services!service=nbpulse", scope),
                )
                callers.headers[f"hub-{name}"] = _bear(token)
            yield callers
    finally:
        hub.close()


async def _add_students(callers: Callers) -> None:
    stage = callers.stage
    joined = await stage.join("鈴木 大翔")
    answer = await stage.http.post(
        "/api/v1/join", json={"join_code": callers.other.join_code, "display_name": "佐藤 陽菜"}
    )
    assert answer.status_code == 201, answer.text
    for name, one in (("student", joined), ("student-elsewhere", answer.json())):
        callers.headers[name], callers.ids[name] = _bear(one["token"]), UUID(one["user_id"])
    async with connect(stage.database_url) as owner:
        for name, scope in (("events-only", "events:write"), ("inbox-only", "inbox:read")):
            place = callers.ids["student"], stage.course.id
            callers.headers[name] = _bear(await add_token(owner, "student", *place, scopes=(scope,)))


async def _add_staff(callers: Callers) -> None:
    stage, other, mark = callers.stage, callers.other, uuid4().hex[:8]
    for name, course in (("instructor", stage.course), ("staff-elsewhere", other), ("token-elsewhere", stage.course)):
        callers.ids[name] = await stage.courses.ensure_teacher(course.id, username=f"{name}-{mark}")
        callers.headers[name] = _bear(await stage.people.create_staff_token(callers.ids[name]))
    await stage.courses.ensure_teacher(other.id, username=f"token-elsewhere-{mark}")
    bound = await stage.people.create_staff_token(callers.ids["token-elsewhere"], other.id)
    callers.headers["token-elsewhere"] = _bear(bound)
    async with connect(stage.database_url) as owner:
        for name in ("assistant", "operator", "analyst"):
            role = "operator" if name == "operator" else "student"
            callers.ids[name] = await owner.fetchval(
                "INSERT INTO users (username, role) VALUES ($1, $2) RETURNING id", f"{name}-{mark}", role
            )
        for name in ("assistant", "analyst"):
            await owner.execute(
                "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, $3)",
                *(callers.ids[name], stage.course.id, name),
            )
        expired = await stage.people.create_staff_token(callers.ids["instructor"])
        await owner.execute(
            "UPDATE tokens SET expires_at = now() - interval '1 second' WHERE id = $1", UUID(expired.split("_")[2])
        )
        callers.headers["expired"] = _bear(expired)
        reader = await add_token(owner, "personal", callers.ids["instructor"], None, scopes=("course:read",))
        callers.headers["reader"] = _bear(reader)
    callers.headers["assistant"] = await callers.sign_in(callers.ids["assistant"])
    for name in ("operator", "analyst"):
        callers.headers[name] = _bear(await stage.people.create_staff_token(callers.ids[name]))


def _bear(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
