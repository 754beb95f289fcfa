"""A real JupyterHub set up by what `nbpulse hub-config` prints: two users work in it, and do nothing else.

Each is who the hub says, in the course of their group; nobody is somebody else; a token that was taken away stops; what
is run while the hub is away arrives when it is back; the hub's token is written nowhere.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
from playwright.async_api import Page, async_playwright, expect

from servers import CHROMIUM_FLAGS
from student_hub import Hub, open_hub
from student_jupyter import Notebook, open_notebook
from torture.systems import System, find_free_port, make_environment

ARRIVES_WITHIN_S = 30.0
GROUPS = {"course-class": ["alice"], "course-stat-2": ["bob"], "instructor-class": ["carol"]}
CELLS = [("c1", "1 + 1", "ok"), ("c2", "1 / 0", "error"), ("c3", "'done'", "ok")]


@dataclass
class School:
    """nbpulse and a hub that knows each other."""

    system: System
    hub: Hub
    python: Path

    def read_token(self, user: str) -> str:
        """The token of the user's server."""
        return self.hub.read_environment(user)["JUPYTERHUB_API_TOKEN"]

    async def run_capture(self, user: str, *arguments: str) -> str:
        """What `nbpulse-capture` says in a terminal of the user's server."""
        command = [str(self.python.with_name("nbpulse-capture")), *arguments]
        environment = self.hub.read_environment(user) | {"LANG": "en_US.UTF-8"}
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, cwd=environment["HOME"], capture_output=True, timeout=60
        )
        return done.stdout.decode() + done.stderr.decode()

    async def fetch_runs(self) -> list[tuple[str, str, str, str]]:
        """The ledger's executions: user, course, cell, status; in the order in which they happened."""
        connection = await asyncpg.connect(self.system.facts["database_url"])
        try:
            rows = await connection.fetch(
                "SELECT u.username, c.short_name, e.cell_id, e.data->>'status' AS status FROM events e"
                " JOIN users u ON u.id = e.user_id JOIN courses c ON c.id = e.course_id"
                " WHERE e.event_type = 'cell_execution' ORDER BY e.occurred_at, e.sequence"
            )
        finally:
            await connection.close()
        return [tuple(row) for row in rows]

    async def wait_for_runs(self, user: str, count: int) -> list[tuple[str, str, str, str]]:
        """The user's, once there are so many."""
        deadline_s = time.monotonic() + ARRIVES_WITHIN_S
        while True:
            found = [run for run in await self.fetch_runs() if run[0] == user]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline_s, (found, self.hub.read_log("hub"))
            await asyncio.sleep(0.2)

    async def post(self, token: str, **changes: Any) -> httpx2.Response:
        """A run of cell `by-hand`, sent as anybody can who reads their own server's environment."""
        event = {"event_id": f"00000000-0000-4000-8000-{time.time_ns() % 10**12:012d}", "notebook_path": "x.ipynb"}
        event |= {"event_type": "cell_execution", "occurred_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        event |= {"cell_id": "by-hand", "data": {"status": "ok", "execution_duration_ms": 1.0}}
        async with httpx2.AsyncClient(timeout=10) as http:
            headers = {"Authorization": f"token {token}"}
            return await http.post(f"{self.system.url}/api/v1/events", json=event | changes, headers=headers)


@asynccontextmanager
async def open_school(python: Path, tmp_path: Path, data_dir: Path, *users: str) -> AsyncIterator[School]:
    """nbpulse with its first course and another; a hub with the servers of these users."""
    hub_port, public_port, client_secret = find_free_port(), find_free_port(), secrets.token_hex(32)
    settings = {"NBPULSE_HUB_API_URL": f"http://127.0.0.1:{hub_port}/hub/api"}
    settings |= {"NBPULSE_HUB_PUBLIC_URL": f"http://127.0.0.1:{public_port}"}
    settings |= {"NBPULSE_HUB_CLIENT_SECRET": client_secret}
    async with (
        System(data_dir, worker_count=1, settings=settings) as system,
        open_hub(tmp_path / "hub", python, hub_port, public_port, client_secret) as hub,
    ):
        owner = await asyncpg.connect(system.read_running()["admin_database_url"])
        await owner.execute("INSERT INTO courses (title, short_name) VALUES ('Statistics', 'stat-2')")
        await owner.close()
        printed = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "nbpulse", "hub-config", "plain", "--public-url", system.url],
            env=make_environment({}),
            capture_output=True,
            timeout=60,
            check=True,
        )
        hub.write_config(printed.stdout.decode(), GROUPS)
        await hub.start_proxy()
        await hub.start()
        for user in users:
            await hub.start_server(user)
        yield School(system, hub, python)


@asynccontextmanager
async def open_week1(school: School, user: str) -> AsyncIterator[Notebook]:
    """A notebook in the user's server."""
    # The proxy in Python passes a websocket's subprotocol on but not back.
    async with school.hub.sign_in(user) as http, open_notebook(http, "week1.ipynb", old_form=True) as notebook:
        yield notebook


def find_files_with(place: Path, *secrets: str) -> list[str]:
    """
    Files below `place` in which one of them stands; but for two that Jupyter Server itself writes into its runtime
    directory, for whoever may read its owner's files, with or without us.
    """
    wanted = [secret.encode() for secret in secrets]
    found = []
    for path in place.rglob("*"):
        is_jupyters = path.name.startswith("jpserver-") and path.parent.name == "runtime"
        if path.is_file() and not path.is_symlink() and "venv" not in path.parts and not is_jupyters:
            content = path.read_bytes()
            found += [str(path) for secret in wanted if secret in content]
    return found


async def test_two_users_of_a_hub_work_and_each_is_who_the_hub_says(
    python: Path, tmp_path: Path, data_dir: Path
) -> None:
    async with open_school(python, tmp_path, data_dir, "alice", "bob", "carol") as school:
        tokens = {user: school.read_token(user) for user in ("alice", "bob", "carol")}
        for user in tokens:
            async with open_week1(school, user) as notebook:
                for cell_id, code, _ in CELLS:
                    await notebook.run(cell_id, code)
        for user, course in (("alice", "class"), ("bob", "stat-2")):
            expected = [(user, course, cell_id, status) for cell_id, _, status in CELLS]
            assert await school.wait_for_runs(user, len(CELLS)) == expected
        await assert_nothing_is_kept_of_a_teacher(school, "carol")
        await assert_nobody_is_somebody_else(school, tokens)
        assert "Connected through JupyterHub as alice" in await school.run_capture("alice", "status")
        found = json.loads(await school.run_capture("bob", "doctor", "--json"))
        states = {one["check"]: (one["state"], one["found"]) for one in found["findings"]}
        assert states["token"][0] == "ok", found
        assert "as bob" in states["joined"][1]
        await assert_the_doctor_has_asked_the_hub(data_dir)
        for place in (tmp_path, data_dir):
            assert find_files_with(place, *tokens.values()) == []
        await assert_a_token_taken_away_stops(school, "alice")


async def assert_the_doctor_has_asked_the_hub(data_dir: Path) -> None:
    command = [sys.executable, "-m", "nbpulse", "doctor", "--json", "--data", str(data_dir)]
    done = await asyncio.to_thread(subprocess.run, command, env=make_environment({}), capture_output=True, timeout=60)
    looked = {check["name"]: check for check in json.loads(done.stdout)["checks"]}["jupyterhub"]
    assert (looked["result"], looked["found"].split(" (")[0]) == ("ok", f"JupyterHub {version('jupyterhub')}")


async def assert_nothing_is_kept_of_a_teacher(school: School, user: str) -> None:
    """She has run the same cells."""
    assert "NB-7062: Nothing is recorded here" in await school.run_capture(user, "status")
    assert "c1" not in await school.run_capture(user, "what-is-recorded")
    assert user not in {run[0] for run in await school.fetch_runs()}


async def assert_nobody_is_somebody_else(school: School, tokens: dict[str, str]) -> None:
    async with httpx2.AsyncClient() as http:
        headers = {"Authorization": f"token {tokens['bob']}"}
        bob = (await http.get(f"{school.system.url}/api/v1/me", headers=headers)).json()
    assert bob["display_name"] == "bob"
    for named, status, code in ((bob["user_id"], 403, "NB-1102"), ("bob", 422, "NB-1011")):
        refused = await school.post(tokens["alice"], user_id=named)
        assert (refused.status_code, refused.json()["code"]) == (status, code)
    wrong = await school.post(tokens["alice"][:-1] + "x")
    assert (wrong.status_code, wrong.json()["code"]) == (401, "NB-1110")


async def assert_a_token_taken_away_stops(school: School, user: str) -> None:
    """Within 60 s, though the API has just seen it work. Other tokens of hers never had the right."""
    token = school.read_token(user)
    assert (await school.post(token)).status_code == 202
    listed = (await school.hub.http.get(f"/users/{user}/tokens")).json()["api_tokens"]
    ids = [one["id"] for one in listed if one["note"] and one["note"].startswith("Server")]
    made = await school.hub.http.post(f"/users/{user}/tokens", json={"scopes": ["access:servers!user"]})
    powerless = await school.post(made.json()["token"])
    assert (powerless.status_code, powerless.json()["code"]) == (403, "NB-1111")
    for token_id in ids:
        (await school.hub.http.delete(f"/users/{user}/tokens/{token_id}")).raise_for_status()
    taken_at_s = time.monotonic()
    while (answer := await school.post(token)).status_code == 202:
        assert time.monotonic() - taken_at_s < 60
        await asyncio.sleep(1)
    assert (answer.status_code, answer.json()["code"]) == (401, "NB-1110")


async def test_what_is_run_while_the_hub_is_away_arrives_when_it_is_back(
    python: Path, tmp_path: Path, data_dir: Path
) -> None:
    async with open_school(python, tmp_path, data_dir, "alice") as school, open_week1(school, "alice") as notebook:
        await notebook.run("before", "1")
        assert [run[2] for run in await school.wait_for_runs("alice", 1)] == ["before"]
        environment = school.hub.read_environment("alice")
        await school.hub.kill()
        await notebook.run("known", "2")  # the API has seen her within the quarter of an hour
        assert [run[2] for run in await school.wait_for_runs("alice", 2)] == ["before", "known"]
        await school.system.kill_part("api")  # and now nobody remembers her
        await notebook.run("away", "3")
        status = await wait_for_trouble(school, environment)
        assert "NB-2010" in status["last_error"]["what"]
        assert [run[2] for run in await school.fetch_runs()] == ["before", "known"]
        await school.hub.start()
        assert [run[2] for run in await school.wait_for_runs("alice", 3)] == ["before", "known", "away"]
        await notebook.run("after", "4")
        assert [run[2] for run in await school.wait_for_runs("alice", 4)][-1] == "after"


@pytest.mark.browser
async def test_staff_sign_in_at_the_board_through_the_hub_and_students_see_no_class(
    python: Path, tmp_path: Path, data_dir: Path, chromium_path: str
) -> None:
    async with open_school(python, tmp_path, data_dir) as school, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)

        async def sign_in(user: str) -> Page:
            page = await (await browser.new_context(locale="en-US")).new_page()
            await page.goto(f"{school.system.url}/courses/{school.system.facts['course_id']}")
            await page.click("[data-provider=jupyterhub]")
            await page.wait_for_url(f"{school.hub.url}/hub/login**")
            await page.fill("input[name=username]", user)
            await page.fill("input[name=password]", "anything")
            await page.keyboard.press("Enter")
            await page.wait_for_url(f"{school.system.url}/**")
            return page

        carol = await sign_in("carol")
        await carol.wait_for_selector(".board")
        await expect(carol.locator("[data-action=account]")).to_contain_text("carol")
        alice = await sign_in("alice")
        await alice.wait_for_selector("[data-page=refused]")
        await alice.goto(school.system.url)
        await alice.wait_for_selector("[data-page=me]")  # her own work, and no class

        # The group is taken away: out at the next sign-in, whoever still has a session from before.
        (
            await school.hub.http.request("DELETE", "/groups/instructor-class/users", json={"users": ["carol"]})
        ).raise_for_status()
        await carol.click("[data-action=account]")
        await carol.click("[data-action=sign-out]")
        await carol.wait_for_selector("[data-provider=jupyterhub]")
        await carol.goto(f"{school.system.url}/courses/{school.system.facts['course_id']}")
        await carol.click("[data-provider=jupyterhub]")  # the hub knows her still, and asks nothing
        await carol.wait_for_selector("[data-page=refused]")
        await browser.close()


async def wait_for_trouble(school: School, environment: dict[str, str]) -> dict[str, Any]:
    """The status of her capture once an event waits."""
    command = [str(school.python.with_name("nbpulse-capture")), "status", "--json"]
    async with asyncio.timeout(30):
        while True:
            done = await asyncio.to_thread(
                subprocess.run, command, env=environment, cwd=environment["HOME"], capture_output=True, timeout=60
            )
            status: dict[str, Any] = json.loads(done.stdout)
            if status["waiting"] and status["last_error"]:
                return status
            await asyncio.sleep(0.3)
