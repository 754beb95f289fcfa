"""What an operator sees of `nbpulse up`: one command starts, watches and stops everything, and keeps the data."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import psutil
import pytest
import redis

from proxies import make_certificate
from servers import make_data_dir

START_LIMIT_S = 90
UNVERIFIED = ssl._create_unverified_context()  # the test's own certificate


class Up:
    """One `nbpulse up` or `demo` in a process of its own."""

    def __init__(self, data_dir: Path, *arguments: str, command: str = "up", **settings: str) -> None:
        self.data_dir = data_dir
        self.said = data_dir / "said.txt"
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "nbpulse",
                    command,
                    "--json",
                    "--data",
                    str(data_dir),
                    "--port",
                    "0",
                    *arguments,
                ],
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=make_environment(**settings),
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.said.read_text()
        self.facts: dict[str, Any] = json.loads(line)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def read_pids(self) -> dict[str, Any]:
        pids: dict[str, Any] = json.loads((self.data_dir / "running.json").read_text())["pids"]
        return pids

    def ask(self, method: str, path: str, body: object = None, token: str | None = None) -> tuple[int, Any]:
        request = urllib.request.Request(self.facts["url"] + path, method=method)
        request.add_header("Content-Type", "application/json")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, data, timeout=15, context=UNVERIFIED) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")

    def join(self, name: str) -> str:
        status, joined = self.ask("POST", "/api/v1/join", {"join_code": self.facts["join_code"], "display_name": name})
        assert status == 201, joined
        return str(joined["token"])

    def send_run(self, token: str) -> int:
        event = {
            "event_id": str(uuid4()),
            "event_type": "cell_execution",
            "occurred_at": datetime.now(UTC).isoformat(),
            "notebook_path": "week1.ipynb",
            "cell_id": "a1",
            "cell_index": 0,
            "data": {"status": "ok", "execution_duration_ms": 1.5},
        }
        return self.ask("POST", "/api/v1/events", event, token)[0]

    def read_live(self) -> dict[str, Any]:
        status, live = self.ask("GET", f"/api/v1/courses/{self.facts['course_id']}/live", token=self.token)
        assert status == 200, live
        return dict(live)

    @property
    def token(self) -> str:
        return str(self.facts["teacher_token"])


def make_environment(**settings: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NBPULSE_")}
    return inherited | {"NBPULSE_LANGUAGE": "en"} | settings


def run_nbpulse(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nbpulse", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, env=make_environment(), check=False)


def wait_until(is_so: Callable[[], bool], what: str, limit_s: float = 30) -> float:
    """How long it took. Connection errors mean "not yet"."""
    started_s = time.monotonic()
    while time.monotonic() - started_s < limit_s:
        with contextlib.suppress(OSError, ValueError):
            if is_so():
                return time.monotonic() - started_s
        time.sleep(0.02)
    raise AssertionError(f"not within {limit_s} s: {what}")


def list_processes(pids: dict[str, Any]) -> list[int]:
    """The ids of what still runs of these, zombies aside."""
    flat = [pid for value in pids.values() for pid in (value if isinstance(value, list) else [value])]
    found = []
    for pid in flat:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


@contextmanager
def run_up(*arguments: str, command: str = "up", **settings: str) -> Iterator[Up]:
    with make_data_dir() as data_dir:
        up = Up(data_dir, *arguments, command=command, **settings)
        try:
            yield up
        finally:
            if up.process.poll() is None:
                up.stop()


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with run_up() as running:
        yield running


def test_its_line_names_everything_that_runs(up: Up) -> None:
    assert up.facts.keys() >= {
        *("url", "teacher_link", "teacher_token", "join_code", "course_id", "database_url", "redis_url"),
        *("metrics_urls", "pids"),
    }
    pids = up.facts["pids"]
    assert pids.keys() == {"supervisor", "api", "worker", "postgresql", "redis"}
    assert pids["supervisor"] == up.process.pid
    assert "nbpulse api" in " ".join(psutil.Process(pids["api"][0]).cmdline())
    assert "nbpulse worker" in " ".join(psutil.Process(pids["worker"][0]).cmdline())
    assert psutil.Process(pids["postgresql"]).name() == "postgres"
    for url in up.facts["metrics_urls"]:
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert b"nbpulse_" in answer.read()


def test_the_teachers_link_signs_in_once(up: Up) -> None:
    code = up.facts["teacher_link"].partition("#code=")[2]
    status, signed_in = up.ask("POST", "/api/v1/sign-in", {"code": code})
    assert status == 200
    assert [course["id"] for course in signed_in["courses"]] == [up.facts["course_id"]]
    status, refused = up.ask("POST", "/api/v1/sign-in", {"code": code})
    assert (status, refused["code"]) == (401, "NB-1104")


def test_a_new_link_comes_from_another_terminal(up: Up) -> None:
    made = run_nbpulse("link", "--json", "--data", str(up.data_dir))
    assert made.returncode == 0, made.stderr
    link = json.loads(made.stdout)["teacher_link"]
    assert link.startswith(up.facts["url"])
    assert up.ask("POST", "/api/v1/sign-in", {"code": link.partition("#code=")[2]})[0] == 200


def test_a_students_run_reaches_the_board_and_the_operators_stores(up: Up) -> None:
    student = up.join("花子")
    before = up.read_live()["h"]["stored"]
    assert up.send_run(student) == 202
    wait_until(lambda: up.read_live()["h"]["stored"] == before + 1, "stored")

    async def count() -> int:
        connection = await asyncpg.connect(up.facts["database_url"])
        try:
            return int(await connection.fetchval("SELECT count(*) FROM events"))
        finally:
            await connection.close()

    assert asyncio.run(count()) >= before + 1
    client = redis.Redis.from_url(up.facts["redis_url"])
    assert client.ping()
    client.close()


def test_a_class_meeting_begins_by_itself(up: Up) -> None:
    for name in ("一郎", "二郎", "三郎"):
        assert up.send_run(up.join(name)) == 202
    wait_until(lambda: up.read_live()["meeting"] is not None, "a class meeting")


def test_a_second_one_on_the_same_data_says_so(up: Up) -> None:
    second = run_nbpulse("up", "--data", str(up.data_dir), "--port", "0")
    assert second.returncode == 1
    assert f"NB-3006 Another nbpulse (process {up.process.pid}) is running on {up.data_dir}" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_port_that_is_taken_is_said_before_anything_starts(up: Up) -> None:
    port = up.facts["url"].rpartition(":")[2]
    with make_data_dir() as elsewhere:
        refused = run_nbpulse("up", "--data", str(elsewhere), "--port", port)
        assert refused.returncode == 1
        assert f"NB-3010 127.0.0.1:{port} is already in use" in refused.stderr
        assert not (elsewhere / "postgresql").exists()


def test_the_doctor_finds_it_well(up: Up) -> None:
    found = run_nbpulse("doctor", "--json", "--data", str(up.data_dir))
    checks = {check["name"]: check for check in json.loads(found.stdout)["checks"]}
    assert {name for name, check in checks.items() if check["result"] == "failure"} == set()
    assert found.returncode == 0
    assert checks["promise"]["found"].startswith("power")
    assert {"disk", "key", "board", "postgresql", "durability", "clock", "schema", "backlog", "api", "worker"} <= set(
        checks
    )
    assert checks["unaccounted"]["found"] == "0"
    assert all(check["took_ms"] >= 0 for check in checks.values())


def test_tokens_are_listed_without_their_secrets_and_revoked(up: Up) -> None:
    student = up.join("次郎")
    listed = json.loads(run_nbpulse("token", "list", "--json", "--data", str(up.data_dir)).stdout)
    own = next(
        row for row in listed if row["kind"] == "student" and row["id"].replace("-", "") == student.split("_")[2]
    )
    assert student.split("_", 3)[3] not in json.dumps(listed)
    assert run_nbpulse("token", "revoke", own["id"], "--data", str(up.data_dir)).returncode == 0
    again = run_nbpulse("token", "revoke", own["id"], "--data", str(up.data_dir))
    assert (again.returncode, again.stderr[:7]) == (1, "NB-3023")


def test_what_cannot_be_processed_is_listed_shown_replayed_and_dropped(up: Up) -> None:
    client = redis.Redis.from_url(up.facts["redis_url"])
    client.xadd("nbpulse:events:{shard_0}", {"e": b"no json at all"})
    client.close()
    data = ("--data", str(up.data_dir))

    def list_letters() -> list[dict[str, Any]]:
        listed = run_nbpulse("dead-letters", "list", "--json", *data)
        assert listed.returncode == 0, listed.stderr
        return list(json.loads(listed.stdout))

    wait_until(lambda: len(list_letters()) == 1, "it is buried")
    letter = list_letters()[0]
    assert letter["code"] == "NB-4001"
    assert run_nbpulse("dead-letters", "show", letter["id"], *data).stdout.strip() == "no json at all"
    assert "1 put back" in run_nbpulse("dead-letters", "replay", letter["id"], *data).stderr
    wait_until(lambda: [one["id"] for one in list_letters()] not in ([], [letter["id"]]), "it is buried again")
    assert "1 deleted" in run_nbpulse("dead-letters", "drop", "all", *data).stderr
    assert list_letters() == []
    again = run_nbpulse("dead-letters", "show", letter["id"][:-1], *data)
    assert (again.returncode, again.stderr[:7]) == (1, "NB-3023")


def test_one_person_under_two_names_becomes_one(up: Up) -> None:
    joined = []
    for name in ("Aisha", "Aisha N."):
        wanted = {"join_code": up.facts["join_code"], "display_name": name}
        joined.append(up.ask("POST", "/api/v1/join", wanted)[1])
        assert up.send_run(joined[-1]["token"]) == 202
    before = up.read_live()["h"]["stored"]
    usernames = [one["username"] for one in joined]
    wait_until(lambda: up.read_live()["h"]["stored"] >= before, "stored")
    merged = run_nbpulse("merge-users", *usernames, "--data", str(up.data_dir))
    assert merged.stderr.strip().endswith(f"events belong to {usernames[0]} now.")
    wait_until(lambda: all(one["num"] != usernames[1] for one in up.read_live()["students"]), "one of them is left")
    twice = run_nbpulse("merge-users", *usernames, "--data", str(up.data_dir))
    assert (twice.returncode, twice.stderr[:7]) == (1, "NB-1021")


@pytest.mark.parametrize("part", ["api", "worker", "redis", "postgresql"])
def test_a_killed_part_is_back_on_the_same_data(up: Up, part: str) -> None:
    student = up.join(f"witness of {part}")
    before = up.read_live()["h"]["stored"]
    old = up.read_pids()
    os.kill(old[part][0] if isinstance(old[part], list) else old[part], signal.SIGKILL)
    wait_until(lambda: up.read_pids()[part] != old[part], f"a new {part}")
    wait_until(lambda: up.send_run(student) == 202, "events are accepted")
    wait_until(lambda: up.read_live()["h"]["stored"] > before, "events are stored")
    name = {"redis": "valkey"}.get(part, part)
    assert f"! {name} died (SIGKILL); starting it again in 0.2 s" in up.said.read_text()


def test_a_killed_supervisor_leaves_nothing_and_the_next_start_goes_on_where_it_was() -> None:
    with run_up() as up:
        student = up.join("太郎")
        assert up.send_run(student) == 202
        wait_until(lambda: up.read_live()["h"]["stored"] == 1, "stored")
        pids = up.read_pids()
        assert up.stop(signal.SIGKILL) == -signal.SIGKILL
        wait_until(lambda: not list_processes(pids), "every part is gone", 5)
        again = Up(up.data_dir)
        try:
            assert (again.facts["course_id"], again.facts["join_code"]) == (
                up.facts["course_id"],
                up.facts["join_code"],
            )
            assert again.token == up.token
            assert again.read_live()["h"]["stored"] == 1
            assert again.send_run(student) == 202
            wait_until(lambda: again.read_live()["h"]["stored"] == 2, "stored")
            pids = again.read_pids()
            started_s = time.monotonic()
            assert again.stop(signal.SIGINT) == 0
            assert time.monotonic() - started_s < 20
            assert list_processes(pids) == []
            assert not (up.data_dir / "running.json").exists()
        finally:
            if again.process.poll() is None:
                again.stop()


def test_it_runs_on_ones_own_servers_over_https(postgres_15: str, redis_7: str, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    arguments = ["--tls-cert", str(certificate), "--tls-key", str(key)]
    with run_up(*arguments, NBPULSE_DATABASE_URL=postgres_15, NBPULSE_REDIS_URL=redis_7) as up:
        assert up.facts["url"].startswith("https://")
        assert (up.facts["pids"]["postgresql"], up.facts["pids"]["redis"]) == (None, None)
        assert not (up.data_dir / "postgresql").exists()
        code = up.facts["teacher_link"].partition("#code=")[2]
        request = urllib.request.Request(up.facts["url"] + "/api/v1/sign-in", json.dumps({"code": code}).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=10, context=UNVERIFIED) as answer:
            cookie = answer.headers["Set-Cookie"]
        assert "Secure" in cookie
        assert "HttpOnly" in cookie
        student = up.join("Maya")
        assert up.send_run(student) == 202
        wait_until(lambda: up.read_live()["h"]["stored"] == 1, "stored")


def test_the_demo_class_lives_in_a_course_of_its_own_and_goes_with_one_command() -> None:
    with run_up("--students", "40", "--seed", "3", "--speed", "20", command="demo") as up:
        wait_until(lambda: len(up.read_live()["students"]) == 40, "everybody has joined")
        wait_until(lambda: any(alert["kind"] == "help" for alert in up.read_live()["alerts"]), "somebody asks for help")
        live = up.read_live()
        assert live["course"]["is_demo"]
        assert live["cells"]
        before = live["h"]["stored"]
        wait_until(lambda: up.read_live()["h"]["stored"] > before, "the class works on")
        refused = run_nbpulse("demo", "--remove", "--data", str(up.data_dir))
        assert (refused.returncode, refused.stderr[:7]) == (1, "NB-3025")

        rehearsed = run_nbpulse(
            *("rehearse", up.facts["url"], "--token", up.token, "--students", "15", "--minutes", "0.15", "--json")
        )
        verdicts = json.loads(rehearsed.stdout)["verdicts"]
        assert [verdict["has_passed"] for verdict in verdicts[1:4]] == [True, True, True], verdicts
        assert "gone again, with its 16 students" in rehearsed.stderr
        assert len(up.ask("GET", "/api/v1/me", token=up.token)[1]["courses"]) == 1

        up.stop()
        removed = run_nbpulse("demo", "--remove", "--data", str(up.data_dir))
        assert removed.stderr.strip() == "The demo class is gone, with its 40 students and all they did."
        assert "no demo class" in run_nbpulse("demo", "--remove", "--data", str(up.data_dir)).stderr


def test_in_the_lan_it_prints_an_address_others_can_reach_a_qr_code_and_a_warning() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        address = probe.getsockname()[0]
    with make_data_dir() as data_dir:
        said = data_dir / "said.txt"
        command = [sys.executable, "-m", "nbpulse", "up", "--data", str(data_dir), "--host", "lan", "--port", "0"]
        with said.open("wb") as file, subprocess.Popen(command, stderr=file, env=make_environment()) as process:
            try:
                wait_until(lambda: "Stop: Ctrl-C" in said.read_text(), "it is ready", START_LIMIT_S)
                metrics_urls = json.loads((data_dir / "running.json").read_text())["metrics_urls"]
                for url in metrics_urls:  # for this machine only, and so on loopback
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        assert b"nbpulse_" in answer.read()
            finally:
                process.terminate()
                process.wait(60)
        text = said.read_text()
        assert f"http://{address}:" in text
        assert "nbpulse-capture join http://" in text
        assert "█" in text or "▀" in text
        assert "Plain http carries names" in text
