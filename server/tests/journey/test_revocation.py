"""A token that is revoked by the operator's command: how soon two real API processes refuse it, by a real clock."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from stage import make_run
from torture.clients import join_students
from torture.connections import Connection, get
from torture.systems import System, make_environment

PROMISED_S = 60.0


async def run_command(data_dir: Path, *arguments: str) -> str:
    command = (sys.executable, "-m", "nbpulse", *arguments, "--data", str(data_dir))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=make_environment({}))
    said, _ = await process.communicate()
    assert process.returncode == 0, arguments
    return said.decode()


async def measure_end(url: str, token: str, revoked_at: float) -> float:
    """Seconds until that process says 401."""
    while (await get(f"{url}/api/v1/me", token=token)).status != 401:
        assert time.monotonic() - revoked_at < PROMISED_S * 2
        await asyncio.sleep(0.05)
    return time.monotonic() - revoked_at


async def test_a_revoked_token_is_refused_by_every_process_and_its_boards_and_inboxes_end(data_dir: Path) -> None:
    async with System(data_dir / "data", api_count=2, worker_count=1) as system:
        (student,) = await join_students(system.url, system.facts["join_code"], 1)
        teacher, course = system.facts["teacher_token"], system.facts["course_id"]
        connection = Connection(system.url)
        assert (await connection.post("/api/v1/events", make_run(), token=student.token)).status == 202
        connection.close()
        first, second = system.api_urls
        for token in (student.token, teacher):
            for url in (first, second):
                assert (await get(f"{url}/api/v1/me", token=token)).status == 200
        async with connect(f"{second.replace('http', 'ws')}/api/v1/courses/{course}/ws", proxy=None) as board:
            await board.send(json.dumps({"t": "hello", "token": teacher}))
            assert json.loads(await board.recv())["t"] == "hello"
            inbox = asyncio.create_task(
                get(f"{second}/api/v1/me/inbox?after=99&wait_s=30", token=student.token, deadline_s=60)
            )
            await asyncio.sleep(0.5)
            for token in (student.token, teacher):
                await run_command(data_dir / "data", "token", "revoke", token.split("_")[2])
            revoked_at = time.monotonic()
            tokens = [(url, token) for url in (first, second) for token in (student.token, teacher)]
            ends_s = await asyncio.gather(*(measure_end(*one, revoked_at) for one in tokens))
            try:
                async with asyncio.timeout(PROMISED_S * 2):
                    while True:
                        await board.recv()
            except ConnectionClosed as closed:
                assert closed.rcvd is not None
                assert closed.rcvd.code == 4401
            board_s = time.monotonic() - revoked_at
            answer = await inbox
            inbox_s = time.monotonic() - revoked_at
        assert answer.status == 401
        print(  # noqa: T201
            f"\nrefused by both processes after {max(ends_s):.2f} s, board closed after {board_s:.2f} s, waiting inbox"
            f" answered after {inbox_s:.2f} s"
        )
        assert max(*ends_s, board_s, inbox_s) < PROMISED_S
