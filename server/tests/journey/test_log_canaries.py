"""No log holds a secret or a person: tokens, passwords, keys, codes, names, sources, messages, planted and looked for.

The logs of server, worker, supervisor and embedded servers at their most talkative, the student's Jupyter's, what the
commands say, every refusal, and every process's command line; also when stores die and when nonsense is sent.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import nbformat
import psutil
import pytest
from redis.asyncio import Redis

from stage import make_run
from student_jupyter import open_jupyter, open_notebook
from torture.connections import Answer, Connection
from torture.systems import System, make_environment
from working import until

STUDENT_CLI = "import sys; from nbpulse_capture.cli import main; sys.exit(main(sys.argv[1:]))"
TEXTS = ("name", "number", "source", "output", "error", "help", "letter", "answer", "note", "offer", "path", "nonsense")
# What each log holds if it is the log we think it is.
SIGNS = {"up.log": "nbpulse", "worker.log": "worker.", "postgresql/log": "database", "valkey/log": "Valkey is starting"}


class Canaries:
    """What was planted, by what it is, and everything that was said."""

    def __init__(self) -> None:
        self.planted = {what: f"canary-{what}-{secrets.token_hex(6)}" for what in TEXTS}
        self.heard: dict[str, str] = {}

    def plant(self, what: str, secret: str) -> str:
        assert len(secret) >= 6, what
        self.planted[what] = secret
        return secret

    def hear(self, place: str, said: str) -> None:
        self.heard[place] = self.heard.get(place, "") + said

    def find(self) -> list[str]:
        """Who told what."""
        return [
            f"{what} in {place}: {said[max(0, said.index(secret) - 80) :][:200]!r}"
            for place, said in self.heard.items()
            for what, secret in self.planted.items()
            if secret in said
        ]


class School:
    """A running nbpulse with a teacher and a student, everything they do full of canaries."""

    def __init__(self, system: System, canaries: Canaries, python: Path, place: Path) -> None:
        self.system, self.canaries = system, canaries
        self._python, self._place = python, place
        self.env = {"NBPULSE_CAPTURE_DIR": str(place / "outbox"), "NBPULSE_CAPTURE_CONFIG": str(place / "config")}
        self.connection = Connection(system.url)
        self.course = f"/api/v1/courses/{system.facts['course_id']}"

    async def ask(self, method: str, path: str, body: object = None, token: str = "", headers: str = "") -> Answer:
        """One request; what is refused is heard."""
        sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        answer = await self.connection.request(method, path, body=sent, token=token, headers=headers)
        if answer.status >= 400:
            self.canaries.hear("refusals", f"{answer.status} {answer.headers} {answer.body.decode()}\n")
        return answer

    async def run(self, *command: str, is_heard: bool = True) -> str:
        """A command of the teacher's (`nbpulse ...`) or of the student's (`nbpulse-capture ...`): what it said."""
        program, *arguments = command
        if program == "nbpulse":
            line = [sys.executable, "-m", "nbpulse", *arguments, "--data", str(self.system.data_dir)]
            env = make_environment({"NBPULSE_LOG_LEVEL": "debug"})
        else:
            line, env = [str(self._python), "-c", STUDENT_CLI, *arguments], os.environ | self.env
        process = await asyncio.create_subprocess_exec(
            *line, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        out, _ = await asyncio.wait_for(process.communicate(), 90)
        if is_heard:
            self.canaries.hear(" ".join(command[:2]), out.decode())
        return out.decode()


@pytest.mark.timeout(300)
async def test_no_log_holds_a_secret_or_a_person(data_dir: Path, tmp_path: Path, python: Path) -> None:
    canaries = Canaries()
    async with System(data_dir / "data", worker_count=1, settings={"NBPULSE_LOG_LEVEL": "debug"}) as system:
        school = School(system, canaries, python, tmp_path)
        plant_what_the_machine_keeps(school)
        await school.run("nbpulse", "collection", "class", "--level", "output")
        student = await join_and_work(school, tmp_path)
        await teach(school, student)
        await send_nonsense(school, student)
        await let_stores_die(school, student)
        await school.run("nbpulse", "doctor")
        listed = await school.run("nbpulse", "token", "list", is_heard=False)
        canaries.hear("nbpulse token", listed.replace(canaries.planted["number"], "whose it is"))
        await school.run("nbpulse", "dead-letters", "list")
        await school.run("student", "doctor")
        hear_command_lines(school)
        school.connection.close()
    for path in list_logs(system.data_dir):
        canaries.hear(str(path.relative_to(system.data_dir)), path.read_text(encoding="utf-8", errors="replace"))
    for name, sign in SIGNS.items():
        assert any(place.endswith(name) and sign in said for place, said in canaries.heard.items()), (name, sign)
    assert "worker.dead_letter" in "".join(canaries.heard.values())
    assert canaries.find() == []
    canaries.hear("a leak of ours", f"Bearer {canaries.planted['student token']}")
    assert len(canaries.find()) == 1, "the search finds what is there"


def plant_what_the_machine_keeps(school: School) -> None:
    facts, data_dir = school.system.facts, school.system.data_dir
    school.canaries.plant("teacher token", facts["teacher_token"])
    school.canaries.plant("sign-in code", facts["teacher_link"].partition("#code=")[2])
    for name in ("database_url", "redis_url"):
        if password := urlsplit(facts[name]).password:
            school.canaries.plant(f"password of {name}", password)
    for number, line in enumerate((data_dir / "encryption.key").read_text().split()):
        school.canaries.plant(f"encryption key {number}", line)
    secret = (data_dir / "secret.key").read_bytes()
    school.canaries.plant("secret key", secret.decode().strip() if secret.isascii() else secret.hex())


async def join_and_work(school: School, place: Path) -> dict[str, Any]:
    """By the student's own command and in their own Jupyter; the membership as it is kept."""
    of, planted = school.canaries, school.canaries.planted
    words = ("--name", planted["name"], "--student-number", planted["number"], "--yes")
    said = await school.run(
        "student", "join", school.system.url, school.system.facts["join_code"], *words, is_heard=False
    )
    assert planted["name"] in said  # to themselves
    (file,) = [path for path in (place / "config").rglob("*.json") if '"token"' in path.read_text()]
    membership: dict[str, Any] = json.loads(file.read_text())
    of.plant("student token", membership["token"])
    of.plant("resume code", membership["resume_code"])
    work = place / "work"
    work.mkdir()
    cell = nbformat.v4.new_code_cell("1", id="c1")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), work / f"{planted['path']}.ipynb")
    async with (
        open_jupyter(school._python, work, school.env) as jupyter,
        open_notebook(jupyter.http, f"{planted['path']}.ipynb") as notebook,
    ):
        source, output = planted["source"], planted["output"]
        await notebook.run("c1", f"# {source}\nprint('{output[:9]}' + '{output[9:]}')")
        error = planted["error"]
        await notebook.run("c1", f"raise ValueError('{error[:9]}' + '{error[9:]}')")
        await notebook.run("c1", f"%nbpulse help {planted['help']}")

        async def has_arrived() -> bool:
            board = await school.ask("GET", f"{school.course}/live", token=school.system.facts["teacher_token"])
            return planted["help"] in board.body.decode()

        await until(has_arrived, 60)
        # Jupyter's own log names the notebooks it opens.
        of.hear("the student's Jupyter", jupyter.log.read_text().replace(planted["path"], "path"))
    return membership


async def teach(school: School, student: dict[str, Any]) -> None:
    """A sign-in, a ticket, a thread from both ends, a note; all by the wire."""
    planted, headers = school.canaries.planted, f"Origin: {school.system.url}\r\n"
    signed_in = await school.ask("POST", "/api/v1/sign-in", {"code": planted["sign-in code"]}, headers=headers)
    assert signed_in.status == 200, signed_in.body
    cookie = signed_in.headers["set-cookie"].partition(";")[0]
    school.canaries.plant("session cookie", cookie.partition("=")[2])
    headers += f"Cookie: {cookie}\r\n"
    ticket = await school.ask("POST", f"{school.course}/tickets", {}, headers=headers)
    school.canaries.plant("ticket", ticket.read()["ticket"])
    letter = {"id": str(uuid4()), "text": planted["letter"]}
    told = await school.ask("POST", "/api/v1/me/messages", letter, token=student["token"])
    assert told.status == 201, told.body
    to = {"user_ids": [student["user_id"]]}
    board = (await school.ask("GET", f"{school.course}/live", headers=headers)).read()
    offer = {"notebook_id": board["notebook"]["id"], "cell_id": "c1"}
    offer |= {"source": planted["offer"], "text": planted["answer"]}
    for said in ({"text": planted["answer"]}, {"offer": offer}):
        message = {"id": str(uuid4()), "to": to, **said}
        told = await school.ask("POST", f"{school.course}/messages", message, headers=headers)
        assert told.status in (200, 201), told.body
    note = {"id": str(uuid4()), "user_id": student["user_id"], "text": planted["note"]}
    told = await school.ask("POST", f"{school.course}/alerts/{uuid4()}/note", note, headers=headers)
    assert told.status == 200, told.body


async def send_nonsense(school: School, student: dict[str, Any]) -> None:
    """Whatever a broken or an evil client sends, with a canary in it; of an event only its id is said back."""
    nonsense, token = school.canaries.planted["nonsense"], student["token"]
    wrong = school.canaries.plant("wrong token", f"nbp_student_{uuid4().hex}_{secrets.token_urlsafe(32)}")
    for path in ("/api/v1/me", f"/api/v1/me?token={wrong}", f"{school.course}/live?token={wrong}", f"/{wrong}"):
        assert (await school.ask("GET", path, token=wrong)).status in (401, 404)
    for path, method in (("/api/v1/events", "POST"), ("/api/v1/sign-in", "POST"), ("/api/v1/join", "POST")):
        for body in (nonsense.encode(), {nonsense: nonsense}, [nonsense], {"code": nonsense, "join_code": nonsense}):
            assert (await school.ask(method, path, body, token=token)).status >= 400
    for changes in ({"event_type": nonsense}, {"cell_index": nonsense}, {"data": nonsense}):
        refused = await school.ask("POST", "/api/v1/events", [make_run() | changes], token=token)
        school.canaries.hear("refusals", refused.body.decode())
    for path in (f"/api/v1/courses/{nonsense}/live", f"/web/{nonsense}", f"{school.course}/live?notebook={nonsense}"):
        assert (await school.ask("GET", path, token=token)).status >= 400
    async with Redis.from_url(school.system.facts["redis_url"]) as redis:
        await redis.xadd("nbpulse:events:{shard_0}", {"e": f'{{"{nonsense}": "{nonsense}"'.encode()})


async def let_stores_die(school: School, student: dict[str, Any]) -> None:
    """Both stores are killed while the student works."""
    for part in ("postgresql", "redis"):
        killing = asyncio.create_task(school.system.kill_part(part))
        while not killing.done():
            run = make_run(0, "error", notebook_path=f"{school.canaries.planted['path']}.ipynb")
            run["data"]["error_message"] = school.canaries.planted["error"]
            await school.ask("POST", "/api/v1/events", [run], token=student["token"])
            await asyncio.sleep(0.1)
        await killing


def hear_command_lines(school: School) -> None:
    def list_lines() -> Iterator[str]:
        assert school.system._process is not None
        root = psutil.Process(school.system._process.pid)
        for process in (root, *root.children(recursive=True)):
            yield " ".join(process.cmdline())

    school.canaries.hear("command lines", "\n".join(list_lines()))


def list_logs(data_dir: Path) -> list[Path]:
    found = [path for path in data_dir.rglob("*") if path.is_file() and (path.name == "log" or ".log" in path.name)]
    assert len(found) >= 5, found
    return found
