"""Data with a gap on the teacher's board: a small mark beside the name that says what is missing, and no more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from playwright.async_api import async_playwright

from servers import CHROMIUM_FLAGS
from torture.connections import Connection
from torture.systems import System
from working import until

MISSING = range(10, 20)


def make_sitting(run_count: int, without: range) -> list[dict[str, Any]]:
    """Events of a sitting that began ten minutes ago, but for some numbers."""
    session, at = str(uuid4()), datetime.now(UTC) - timedelta(minutes=10)
    events = []
    for number in range(1, run_count + 1):
        event = {"event_id": str(uuid4()), "sequence": number, "session_id": session, "notebook_path": "week1.ipynb"}
        event["occurred_at"] = (at + timedelta(seconds=number)).isoformat()
        event |= {"event_type": "cell_execution", "cell_id": "c1", "cell_index": 1, "data": {"status": "ok"}}
        events.append(event | ({"event_type": "session_start", "data": {}} if number == 1 else {}))
    return [one for one in events if one["sequence"] not in without]


@pytest.mark.browser
@pytest.mark.timeout(180)
async def test_the_board_says_whose_data_is_incomplete_and_what_is_missing(data_dir: Path, chromium_path: str) -> None:
    async with System(data_dir / "data", worker_count=1) as system:
        connection = Connection(system.url)
        for name, without in (("誠", range(0)), ("欠", MISSING)):
            asked = {"join_code": system.facts["join_code"], "display_name": name}
            token = (await connection.post("/api/v1/join", asked)).read()["token"]
            answer = await connection.post("/api/v1/events", make_sitting(30, without), token=token)
            assert answer.status == 202
        connection.close()
        owner = await asyncpg.connect(system.read_running()["admin_database_url"])
        try:

            async def is_stored() -> bool:
                return bool(await owner.fetchval("SELECT count(*) >= 60 - $1 FROM events", len(MISSING)))

            await until(is_stored)
            await owner.execute("UPDATE events SET received_at = received_at - interval '5 minutes'")
        finally:
            await owner.close()
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)
            page = await browser.new_page(viewport={"width": 1400, "height": 900}, locale="ja-JP")
            await page.goto(system.facts["teacher_link"])
            await page.wait_for_selector(".row .gap", timeout=30_000)
            marks = await page.locator(".gap").evaluate_all("all => all.map(one => one.title)")
            label = await page.locator(".row:has(.gap) .who").get_attribute("aria-label")
            await browser.close()
    assert marks == ["自己申告のデータに欠けがあります: 届いていない記録 10 件"]
    assert marks[0] in (label or ""), "a screen reader says it too"
